"""What commands write on the terminal: lines, tables, progress, log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lacuna_nipype.execution.telling import going_on, is_open, tell

#: Name of the logger of long computations.
COMPUTATIONS = "nipype.interface.lacuna"
#: What is said goes into the log file of a run too, under this name.
logger = logging.getLogger("lacuna_nipype.terminal")
# Without a log file yet, Python would print records of errors on the terminal once more.
logging.getLogger("lacuna_nipype").addHandler(logging.NullHandler())


def say(text: str) -> None:
    """Print a line at once, and log it; a run goes on where it cannot be printed."""
    tell(text, sys.stdout)
    logger.info("%s", text)


def print_lines(*lines: str) -> None:
    """Print lines that are a command's result."""
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def count(number: int, noun: str) -> str:
    """Write a number and what is counted, with an s unless it is one."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lay rows out as lines whose cells stand below each other.

    Parameters
    ----------
    rows : iterable of sequence of str
        All of one length.

    Returns
    -------
    list of str
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def show_log(name: str | None = None) -> None:
    """Show warnings on standard error.

    Parameters
    ----------
    name : str, optional
        A logger whose remarks are shown too.
    """
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: record.name != logger.name)
    logging.basicConfig(format="%(message)s", handlers=[handler])
    if name is not None:
        logging.getLogger(name).setLevel(logging.INFO)


class Progress:
    """A bar on a terminal, log lines elsewhere; a callback and a context.

    Parameters
    ----------
    what : str
        What is being done, such as ``Masks read:``.
    unit : str
        What is counted, in the singular.
    """

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._bar: Any = None
        self._log: Callable[[int, int], None] | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with going_on(sys.stderr):
                self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        """Show how much is done."""
        if not (is_open(sys.stderr) and sys.stderr.isatty()):
            if self._log is None:
                from lacuna_nipype.execution.progress import log_progress

                self._log = log_progress(self._what)
            self._log(done, total)
            return
        with going_on(sys.stderr):
            self._draw(done, total)

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=done, desc=self._what, unit=self._unit, dynamic_ncols=True
            )
        self._bar.n = done
        self._bar.refresh()
