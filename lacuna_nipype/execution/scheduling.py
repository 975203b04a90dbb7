"""The loop of a run: which steps are ready, what has ended, and what that makes ready.

Nipype's own loop looks at the whole table of dependencies at every poll, and some of its faults
end in waiting for ever. This one counts, for every step, the steps before it that have not ended.
"""

from __future__ import annotations

import heapq
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from traceback import format_exception
from typing import Any

from nipype import logging
from nipype.interfaces.base import Bunch
from nipype.pipeline.engine import MapNode
from nipype.pipeline.plugins.base import PluginBase
from nipype.pipeline.plugins.tools import report_crash, report_nodes_not_run
from nipype.utils.misc import str2bool

from lacuna_nipype.execution.signals import leave_if_asked, undisturbed

logger = logging.getLogger("nipype.workflow")

WAITING, RUNNING, ENDED = "waiting", "running", "ended"


def _has_its_outputs(node: Any) -> bool:
    """Tell whether what a finished node noted can be read, and the files that it names are there.

    Clusters purge old files and leave the younger, which may be the note itself.
    """
    try:
        outputs = node.result.outputs or Bunch()
        # A MapNode has a Bunch, whose "get" is that of a dictionary.
        content = outputs if isinstance(outputs, Bunch) else outputs.get()
        values = [value for _, value in content.items()]
    except Exception:
        logger.debug("The result of %s cannot be read.", node, exc_info=True)
        return False
    folder = node.output_dir()
    return all(os.path.lexists(path) for path in _paths_below(values, folder))


def _forget(node: Any) -> None:
    """Remove what says that a step is finished; the step empties its folder itself."""
    folder = Path(node.output_dir())
    for path in (*folder.glob("_0x*.json"), *folder.glob("result_*.pklz")):
        with suppress(OSError):
            path.unlink()


def _paths_below(value: Any, folder: str) -> Iterator[str]:
    """Give all texts in nested values that are paths in a folder."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _paths_below(item, folder)
    elif isinstance(value, str) and value.startswith(f"{folder}{os.sep}"):
        yield value


@dataclass
class Step:
    """A node of the graph and where it stands.

    Parameters
    ----------
    node : nipype Node
    after : list of int
        Numbers of the steps that need this one.
    n_before : int
        Steps that this one needs and that have not ended.
    whole : int or None
        For a piece of a MapNode: the number of the MapNode.
    status : {"waiting", "running", "ended"}
    expanded : bool
        The pieces of this MapNode are steps of their own.
    announced : bool
        Its start has been told.
    """

    node: Any
    after: list[int] = field(default_factory=list)
    n_before: int = 0
    whole: int | None = None
    status: str = WAITING
    expanded: bool = False
    announced: bool = False


@dataclass(frozen=True)
class Ending:
    """News of a step that has ended.

    Parameters
    ----------
    number : int
    traceback : list of str or None
        Lines of the error; None where it succeeded.
    """

    number: int
    traceback: list[str] | None = None


@dataclass(frozen=True)
class FailedStep:
    """A step that has failed.

    Parameters
    ----------
    node : nipype Node
    traceback : str
    crash_file : str or None
        None where it could not be written.
    """

    node: Any
    traceback: str
    crash_file: str | None


class SchedulingPlugin(PluginBase):
    """Base of plugins that run several steps at once.

    What runs a step is up to the subclass. Here are the rules that hold for all: a step starts
    when those before it have ended well; a step that fails has a crash file and takes those
    after it with it, and nothing else; a step whose results are up to date does not run; steps
    marked ``run_without_submitting`` run in this process.

    Parameters
    ----------
    plugin_args : dict, optional
        ``status_callback``: called with a node and ``start``, ``end`` or ``exception``.

    Attributes
    ----------
    failed : list of FailedStep
        Those of the last run, in order of time.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args or {})
        self.failed: list[FailedStep] = []

    @abstractmethod
    def _open(self) -> None:
        """Prepare to run steps."""

    @abstractmethod
    def _close(self) -> None:
        """End what was prepared; all steps have ended."""

    @abstractmethod
    def _abandon(self) -> None:
        """End what was prepared at once, with all steps that still run."""

    @abstractmethod
    def _has_room(self, step: Step) -> bool:
        """Tell whether a step may start beside those that run."""

    @abstractmethod
    def _is_full(self) -> bool:
        """Tell that no step may start, whatever it needs."""

    @abstractmethod
    def _submit(self, number: int, step: Step) -> bool:
        """Start a step; False puts it off until the next look."""

    @abstractmethod
    def _wait(self) -> list[Ending]:
        """Wait until a step has ended, or until it is time to look again."""

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run a graph.

        Parameters
        ----------
        graph : networkx.DiGraph
            Of nodes.
        config : dict
            Nipype's settings of the workflow.
        updatehash : bool
            Only note the hashes of finished nodes whose inputs have changed.

        Raises
        ------
        RuntimeError
            After the end, when steps have failed: the first error. With nipype's option
            ``stop_on_first_crash``, at the first.
        """
        self._begin(graph, config, updatehash)
        try:
            self._open()
            self._loop()
        except BaseException:
            # Also Ctrl-C and a signal to terminate: nothing may go on working behind our back.
            with undisturbed():
                self._abandon()
            raise
        self._close()
        report_nodes_not_run(self._not_run)
        if len(self._errors) > 1:
            raise RuntimeError(f"{len(self._errors)} steps failed. The first:\n{self._errors[0]}")
        if self._errors:
            raise RuntimeError(self._errors[0])

    def _begin(self, graph: Any, config: Any, updatehash: bool) -> None:
        import networkx as nx

        self._config = config
        self._updatehash = updatehash
        self._stop_early = str2bool(config["execution"]["stop_on_first_crash"])
        self._errors: list[str] = []
        self.failed = []
        self._not_run: list[dict[str, Any]] = []
        nodes = list(nx.topological_sort(graph))
        numbers = {node: number for number, node in enumerate(nodes)}
        self._steps = [
            Step(node, [numbers[after] for after in graph.successors(node)], graph.in_degree(node))
            for node in nodes
        ]
        self._n_left = len(self._steps)
        self._running: set[int] = set()
        # Steps whose time has come, the first in the order of the graph on top.
        self._ready = [number for number, step in enumerate(self._steps) if not step.n_before]

    def _loop(self) -> None:
        while self._n_left:
            leave_if_asked()
            self._start_what_can()
            if self._running or self._expects_news():
                for ending in self._wait():
                    self._end(ending)
            elif self._n_left:
                # Never wait for what cannot come.
                raise RuntimeError(f"{self._n_left} steps are left and none of them can start.")

    def _expects_news(self) -> bool:
        """Tell whether waiting makes sense although no step runs."""
        return False

    def _start_what_can(self) -> None:
        """Start every ready step for which there is room, in the order of the graph."""
        put_off = []
        while self._ready and not self._is_full():
            number = heapq.heappop(self._ready)
            step = self._steps[number]
            if step.status == WAITING and not self._expand(number) and not self._start(number):
                put_off.append(number)
        for number in put_off:
            heapq.heappush(self._ready, number)

    def _expand(self, number: int) -> bool:
        """Make steps of the pieces of a MapNode; True where the MapNode has to wait for them."""
        step = self._steps[number]
        if not isinstance(step.node, MapNode) or step.expanded:
            return False
        step.expanded = True
        try:
            pieces = step.node.get_subnodes() if step.node.num_subnodes() > 1 else []
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this step's failure
            self._end(Ending(number, format_exception(error)))
            return True
        for piece in pieces:
            heapq.heappush(self._ready, len(self._steps))
            self._steps.append(Step(piece, [number], whole=number))
        step.n_before = len(pieces)
        self._n_left += len(pieces)
        return bool(pieces)

    def _start(self, number: int) -> bool:
        """Start a step, or end it if there is nothing to run; False where it has to wait."""
        step = self._steps[number]
        if not self._has_room(step):
            return False
        if self._is_up_to_date(step.node):
            self._end(Ending(number))
            return True
        if not step.announced:
            step.announced = True
            self._tell(step.node, "start")
        try:
            if step.node.run_without_submitting:
                step.node.run(updatehash=self._updatehash)
            elif not self._submit(number, step):
                return False
            else:
                step.status = RUNNING
                self._running.add(number)
                return True
            ending = Ending(number)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this step's failure
            leave_if_asked()
            ending = Ending(number, format_exception(error))
        leave_if_asked()
        self._end(ending)
        return True

    def _is_up_to_date(self, node: Any) -> bool:
        if not str2bool(node.config["execution"]["local_hash_check"]):
            return False
        try:
            cached, updated = node.is_cached()
        except Exception:
            # The step itself will run into it and say so.
            logger.warning("The cache of %s cannot be read; it runs again.", node, exc_info=True)
            return False
        if not (cached and updated):
            return False
        if node.overwrite or (node.overwrite is None and node.interface.always_run):
            return False
        if _has_its_outputs(node):
            return True
        logger.warning("Files of %s are gone from the work folder; it runs again.", node)
        _forget(node)
        return False

    def _end(self, ending: Ending) -> None:
        """Note that a step has ended, well or not."""
        self._running.discard(ending.number)
        if ending.traceback is None:
            self._tell(self._steps[ending.number].node, "end")
            self._leave(ending.number)
        else:
            self._fail(ending.number, ending.traceback)

    def _leave(self, number: int) -> None:
        """Take an ended step out of the way of those after it."""
        step = self._steps[number]
        step.status = ENDED
        self._n_left -= 1
        for after in step.after:
            self._steps[after].n_before -= 1
            if not self._steps[after].n_before and self._steps[after].status == WAITING:
                heapq.heappush(self._ready, after)

    def _fail(self, number: int, traceback: list[str]) -> None:
        """Report a failed step, and take all steps that need it out of the run."""
        step = self._steps[number]
        self._tell(step.node, "exception")
        self._errors.append("".join(traceback))
        crash_file = self._write_crash_file(step.node, list(traceback))
        self.failed.append(FailedStep(step.node, "".join(traceback), crash_file))
        if self._stop_early:
            raise RuntimeError(self._errors[-1])
        lost = list(self._needing(number))
        for other in lost:
            self._steps[other].status = ENDED
        self._n_left -= len(lost)
        dependents = [self._steps[other].node for other in lost]
        self._not_run.append(
            {"node": step.node, "dependents": dependents, "crashfile": crash_file}
        )

    def _write_crash_file(self, node: Any, traceback: list[str]) -> str | None:
        """Write a crash file: among the logs or, where that disk is full, into the step's folder.

        ``None`` where there is no place for it either.
        """
        settings = node.config["execution"]
        logs = settings["crashdump_dir"]
        for folder in (logs, node.output_dir()):
            settings["crashdump_dir"] = folder
            try:
                return str(report_crash(node, traceback=list(traceback)))
            except OSError as error:
                logger.error("The crash file of %s cannot be written: %s", node, error)
                self._remove_crash_file(Path(folder), node)
            finally:
                settings["crashdump_dir"] = logs
        return None

    def _remove_crash_file(self, folder: Path, node: Any) -> None:
        """Remove what a crash file that could not be written to its end has left."""
        whole = {failed.crash_file for failed in self.failed}
        for path in folder.glob("crash-*.txt"):
            if f"-{node._id}-" in path.name and str(path) not in whole:
                path.unlink(missing_ok=True)

    def _needing(self, number: int) -> Iterator[int]:
        """Give a step and all that need it, directly or not, as far as they have not ended.

        The other pieces of a MapNode do not need a failed piece, and still run.
        """
        found = {number}
        stack = [number]
        while stack:
            current = stack.pop()
            if self._steps[current].status != ENDED:
                yield current
            new = [after for after in self._steps[current].after if after not in found]
            found.update(new)
            stack.extend(new)

    def _tell(self, node: Any, status: str) -> None:
        if self._status_callback:
            self._status_callback(node, status)
