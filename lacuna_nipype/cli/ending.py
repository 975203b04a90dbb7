"""How every command ends: with one sentence as its last line, and an exit code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from lacuna_nipype.cli.terminal import logger
from lacuna_nipype.core.exceptions import DependencyError, LacunaError
from lacuna_nipype.execution.telling import going_on, is_open, tell

OK = 0
#: Some participant, file or step failed, or something cannot be had; all others are done.
SOME_FAILED = 1
#: The command or its input cannot be used.
USAGE = 2
#: A bundle was written without some of its parts.
LEFT_OUT = 3
#: The graph could not be built.
NOT_BUILT = 70
#: An external program is missing.
MISSING_PROGRAM = 127
#: Ctrl-C.
INTERRUPTED = 130

Options = TypeVar("Options")
Codes = Mapping[type[Exception], int]
# Of the classes that an error belongs to, the nearest counts.
_CODES: Codes = {LacunaError: USAGE, DependencyError: MISSING_PROGRAM, OSError: USAGE}


def run_command(
    parse: Callable[[], Options],
    run: Callable[[Options], int | None],
    *,
    codes: Callable[[], Codes] = dict,
    where: Callable[[Options], Path | None] = lambda options: None,
    interrupted: str = "Interrupted; run the same command again to continue.",
) -> int:
    """Parse the arguments of a command, run it, and end it.

    Parameters
    ----------
    parse : callable
    run : callable
        Takes the parsed arguments; gives an exit code, or None for 0.
    codes : callable
        Gives exit codes of errors that have another than usual: 127 for a missing program, else
        2. Called after an error only, so that it may import what is heavy.
    where : callable
        Gives the folder that is worked on, for errors of the system that name no file.
    interrupted : str
        What to say to who pressed Ctrl-C.

    Returns
    -------
    int
        Exit code; where it is not 0, the reason is the last line printed.
    """
    place = None
    try:
        options = parse()
        place = where(options)
        return run(options) or OK
    except SystemExit as stop:
        # A parser has said what is wrong.
        return int(stop.code or OK)
    except (LacunaError, OSError) as error:
        return end_with(error, place, codes=codes())
    except KeyboardInterrupt:
        return end(INTERRUPTED, interrupted)


def end(code: int, reason: str) -> int:
    """Print the reason as the last line, on the stream that fits the exit code.

    Parameters
    ----------
    code : int
    reason : str
        One sentence.

    Returns
    -------
    int
        The exit code.
    """
    if is_open(sys.stdout):
        with going_on(sys.stdout):
            sys.stdout.flush()
    if code == OK:
        tell(reason, sys.stdout)
    else:
        tell(f"lacuna-nipype: {reason}", sys.stderr)
    logger.log(logging.INFO if code == OK else logging.ERROR, "%s", reason)
    return code


def end_with(
    error: LacunaError | OSError, where: Path | None = None, *, codes: Codes | None = None
) -> int:
    """End with what an error says, and the exit code that it stands for.

    Parameters
    ----------
    error : LacunaError or OSError
    where : Path, optional
        What was worked on, for errors of the system that name no file.
    codes : mapping, optional
        Exit codes of errors that have another than usual.

    Returns
    -------
    int
        The exit code.
    """
    known = {**_CODES, **(codes or {})}
    code = next(known[kind] for kind in type(error).__mro__ if kind in known)
    reason = describe_os_error(error, where) if isinstance(error, OSError) else str(error)
    return end(code, reason)


def describe_os_error(error: OSError, where: Path | None = None) -> str:
    """Say which file, or else what was worked on, and why.

    Parameters
    ----------
    error : OSError
    where : Path, optional

    Returns
    -------
    str
        One sentence. An error without a number says by itself what is wrong, if nothing else
        is known.
    """
    # Of a copy, the second is the one that was written.
    place = error.filename2 or error.filename or where
    reason = (error.strerror or str(error)).rstrip(".")
    if place is None and error.strerror is None:
        return f"{reason}."
    return f"{'A file' if place is None else place}: {reason}."
