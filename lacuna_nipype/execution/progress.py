"""Progress of long work: log lines inside nodes, a bar or lines for a whole run."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

# Below nipype's logger, whose level the workers of a run take from its configuration.
logger = logging.getLogger("nipype.interface.lacuna")


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


def _nobody_listens(node: Any, status: str) -> None:
    """Stand in for the listener in the pickled copies of nodes."""


def _listener_of_a_copy() -> Callable[[Any, str], None]:
    return _nobody_listens


class RunProgress:
    """Listens to a Nipype plugin and tells the user how far the run is.

    Parameters
    ----------
    total : int
        Nodes of the expanded graph; pieces of a MapNode are added as they appear.
    stream : file, optional
        Where to draw; a bar on a terminal, one line per ten per cent elsewhere.
    """

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.records: dict[str, NodeRecord] = {}
        self.total = total
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._last_tenth = 0
        # File systems round times; no run starts in the second in which another ended.
        self._started = time.time() - 0.05
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="step", file=self._stream, dynamic_ncols=True)

    def __call__(self, node: Any, status: str) -> None:
        """Take a report of the plugin: ``start``, ``end`` or ``exception``."""
        name = node.fullname
        record = self.records.get(name)
        if status == "start":
            self.records[name] = NodeRecord(name, "running", started=time.monotonic())
            if getattr(node, "index", None) is not None and "mapflow" in str(node.output_dir()):
                self.total += 1
        elif record is None or record.status == "running":
            self.records[name] = self._ended(node, record, status)
        self._draw(name)

    def __reduce__(self) -> tuple[Callable[[], Callable[[Any, str], None]], tuple[()]]:
        """Pickle as a listener that does nothing: nipype stores it with every MapNode."""
        return _listener_of_a_copy, ()

    def _ended(self, node: Any, record: NodeRecord | None, status: str) -> NodeRecord:
        """Tell a node that ran from one that nipype found finished: its result is new."""
        if status != "end":
            return NodeRecord(node.fullname, "failed")
        result = Path(node.output_dir()) / f"result_{node.name}.pklz"
        ran = result.is_file() and result.stat().st_mtime >= self._started
        seconds = time.monotonic() - record.started if ran and record is not None else None
        return NodeRecord(node.fullname, "done" if ran else "cached", seconds)

    @property
    def finished(self) -> int:
        """Nodes that are done, from the cache or not, or failed."""
        return sum(record.status != "running" for record in self.records.values())

    def close(self) -> None:
        """Finish the bar."""
        if self._bar is not None:
            self._bar.close()

    def _draw(self, name: str) -> None:
        step = name.split(".", 1)[-1]
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.n = self.finished
            self._bar.set_description_str(step[-48:])
            return
        tenth = 10 * self.finished // max(self.total, 1)
        if tenth > self._last_tenth:
            self._last_tenth = tenth
            self._stream.write(f"{self.finished} of {self.total} steps done ({step})\n")
            self._stream.flush()
