"""Signals that end a run: with its workers and jobs, and whatever step runs in this process.

Nipype takes any exception inside a step, Ctrl-C included, for a failure of that step. So what a
signal asked for is remembered, and whoever runs a step in this process looks afterwards.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from lacuna_nipype.execution.telling import tell

_asked: list[BaseException] = []


def leave_if_asked() -> None:
    """Raise what a signal has asked for since the run began, if one has come."""
    if _asked:
        raise _asked[0]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let no signal cut short what ends a run; only Ctrl-C twice does.

    Raises
    ------
    KeyboardInterrupt
        At the second SIGINT: a cluster that does not answer can take minutes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        if told:
            raise KeyboardInterrupt
        told.append(number)
        tell("Ending what still runs; Ctrl-C once more to leave it behind.", sys.stderr)

    before = {
        number: signal.signal(number, wait if number == signal.SIGINT else signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: not set by Python.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def held_back() -> Iterator[None]:
    """Hold signals back for a moment, such as between the start of a process and its name.

    Those that Python does not handle act at once, as ever. Outside of the main thread there is
    nothing to hold: no handler runs there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {
        number: signal.signal(number, note)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        if callable(signal.getsignal(number))
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let signals end a run, also while a step runs in this process.

    Raises
    ------
    SystemExit
        With 128 and the number of the signal, for SIGTERM and SIGHUP.
    KeyboardInterrupt
        For SIGINT.
    """
    _asked.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        # nohup ignores the one that comes when the terminal closes.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    }

    def leave(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            _asked.append(KeyboardInterrupt())
            raise _asked[0]
        # The end takes a moment, and is not to be cut short.
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        name = signal.Signals(number).name
        # SIGHUP comes when the terminal is closed.
        tell(f"Ended by {name}; run again with the same work folder to continue.", sys.stderr)
        _asked.append(SystemExit(128 + number))
        raise _asked[0]

    for number in before:
        signal.signal(number, leave)
    try:
        yield
    finally:
        if _asked:
            _end_commands()
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


def _end_commands() -> None:
    """End the commands of steps in this process, which know nothing of the signal."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
