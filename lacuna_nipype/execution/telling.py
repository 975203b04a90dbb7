"""What a run tells, on streams that may fail: a closed terminal or a full disk does not end it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, TypeGuard


def tell(text: str, stream: TextIO | None) -> None:
    """Write a line at once, or nothing where that cannot be done.

    Parameters
    ----------
    text : str
    stream : file or None
        Python has none for a stream that was closed when it started.
    """
    if is_open(stream):
        with going_on(stream):
            stream.write(f"{text}\n")
            stream.flush()


def is_open(stream: TextIO | None) -> TypeGuard[TextIO]:
    """Whether there is a stream and nobody has closed it.

    Parameters
    ----------
    stream : file or None

    Returns
    -------
    bool
    """
    return stream is not None and not getattr(stream, "closed", False)


@contextmanager
def going_on(stream: TextIO) -> Iterator[None]:
    """Go on where writing to a stream fails; from then on, what is written to it goes nowhere.

    Parameters
    ----------
    stream : file
    """
    try:
        yield
    except OSError:
        # What it holds back would fail again, and at the end of Python change the exit code.
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, stream.fileno())
            finally:
                os.close(nowhere)
