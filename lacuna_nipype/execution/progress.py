"""Progress of long work: log lines inside nodes, a bar or lines for a whole run."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from lacuna_nipype.execution.telling import going_on, is_open, tell

# Below nipype's logger, whose level the workers of a run take from its configuration.
logger = logging.getLogger("nipype.interface.lacuna")
# Folder in which Nipype runs the pieces of a MapNode.
_PIECES = "mapflow"


def log_progress(what: str, *, every_seconds: float = 30.0) -> Callable[[int, int], None]:
    """Make a callback that logs how far a loop is, at most every so many seconds.

    Parameters
    ----------
    what : str
        Start of the line.
    every_seconds : float
        Shortest time between two lines; the first comes after it too.

    Returns
    -------
    callable
        Takes (done, total).
    """
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= every_seconds:
            last = time.monotonic()
            logger.info("%s %d of %d", what, done, total)

    return report


@dataclass
class NodeRecord:
    """What is known of one node of a run.

    Parameters
    ----------
    name : str
        Full name in the graph.
    status : str
        ``running``, ``done``, ``cached`` or ``failed``.
    seconds : float or None
        Wall time between start and end, where it ran.
    """

    name: str
    status: str
    seconds: float | None = None
    started: float = field(default=0.0, repr=False)


def step_name(name: str, folder: Path, base_dir: str | Path | None) -> str:
    """Full name of a node; Nipype gives the pieces of a MapNode none, but their folders do.

    Parameters
    ----------
    name : str
        Name as Nipype has it.
    folder : Path
        Where the node works.
    base_dir : path-like or None
        Work folder of the run.

    Returns
    -------
    str
    """
    if folder.parent.name != _PIECES or base_dir is None or not folder.is_relative_to(base_dir):
        return name
    above = folder.parent.parent.relative_to(base_dir)
    return ".".join([*above.parts, folder.name])


def _result_time(node: Any, folder: Path) -> int | None:
    """When Nipype wrote the result of a node, in ns; None while there is none."""
    try:
        return (folder / f"result_{node.name}.pklz").stat().st_mtime_ns
    except OSError:
        return None


class RunProgress:
    """Listens to a Nipype plugin and tells the user how far the run is.

    Parameters
    ----------
    total : int
        Nodes of the expanded graph; pieces of a MapNode are added as they appear.
    stream : file, optional
        Where to draw; a bar on a terminal, one line per ten per cent elsewhere. The run goes on
        where nothing can be written.
    base_dir : path-like, optional
        Work folder of the run: names the pieces of a MapNode after it.
    """

    def __init__(
        self,
        total: int,
        stream: TextIO | None = None,
        *,
        base_dir: str | Path | None = None,
    ) -> None:
        self.records: dict[str, NodeRecord] = {}
        self.total = total
        self._base_dir = base_dir
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._last_tenth = self._n_finished = 0
        # Time of the result that each step had from an earlier run, when it started.
        self._earlier: dict[str, int | None] = {}
        self._started = time.time_ns()
        if is_open(self._stream) and self._stream.isatty():
            from tqdm import tqdm

            with going_on(self._stream):
                self._bar = tqdm(total=total, unit="step", file=self._stream, dynamic_ncols=True)

    def __call__(self, node: Any, status: str) -> None:
        """Take a report of the plugin: ``start``, ``end`` or ``exception``."""
        folder = Path(node.output_dir())
        name = step_name(node.fullname, folder, self._base_dir)
        record = self.records.get(name)
        if record is None and folder.parent.name == _PIECES:
            self.total += 1
        before = record is not None and record.status != "running"
        if status == "start":
            self.records[name] = NodeRecord(name, "running", started=time.monotonic())
            self._earlier[name] = _result_time(node, folder)
        elif record is None or record.status == "running":
            self.records[name] = self._ended(node, name, record, status)
        # Counted along, because thousands of steps ask thousands of times.
        self._n_finished += (self.records[name].status != "running") - before
        self._draw(name)

    def _ended(self, node: Any, name: str, record: NodeRecord | None, status: str) -> NodeRecord:
        """Tell a node that ran from one that nipype found finished: its result is new."""
        if status != "end":
            return NodeRecord(name, "failed")
        now = _result_time(node, Path(node.output_dir()))
        if record is not None and now != self._earlier.get(name):
            return NodeRecord(name, "done", time.monotonic() - record.started)
        # Nipype's own plugins run small steps by themselves and announce no start of theirs.
        if record is None and now is not None and now >= self._started:
            return NodeRecord(name, "done")
        return NodeRecord(name, "cached")

    @property
    def finished(self) -> int:
        """Nodes that are done, from the cache or not, or failed."""
        return self._n_finished

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            with going_on(self._stream):
                self._bar.close()

    def _draw(self, name: str) -> None:
        step = name.split(".", 1)[-1]
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.n = self.finished
            with going_on(self._stream):
                self._bar.set_description_str(step[-48:])
            return
        tenth = 10 * self.finished // max(self.total, 1)
        if tenth > self._last_tenth:
            self._last_tenth = tenth
            tell(f"{self.finished} of {self.total} steps done ({step})", self._stream)
