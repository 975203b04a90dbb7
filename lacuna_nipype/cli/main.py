"""Entry point: the first word decides which command runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from lacuna_nipype.cli.ending import INTERRUPTED, end, run_command

if TYPE_CHECKING:
    from lacuna_nipype.cli.config import RunConfig

# Each is a module beside this one; only the one that was asked for is imported.
COMMANDS = ("atlas", "bidsify", "check", "collect", "connectome", "fetch", "tutorial")
_INTERRUPTED = "Interrupted; run again with the same work folder to continue."


def main(argv: Sequence[str]) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str
        Words after the program's name. A dataset folder that is called like a command is
        written with its path, such as ``./tutorial``.

    Returns
    -------
    int
        Exit code: 0 all done, 1 some participant or step failed, 2 usage, 3 parts of a bundle
        were left out, 70 the graph could not be built, 127 an external program is missing, 130
        interrupted.
    """
    # Nipype would otherwise ask a server for its newest version.
    os.environ.setdefault("NIPYPE_NO_ET", "1")
    if argv and argv[0] in COMMANDS:
        command = import_module(f"lacuna_nipype.cli.{argv[0]}")
        return command.main(list(argv[1:]))
    from lacuna_nipype.cli.parser import parse_config

    return run_command(
        lambda: parse_config(argv),
        lambda config: _run(config, argv),
        where=lambda config: config.output_dir,
        interrupted=_INTERRUPTED,
    )


def _run(config: RunConfig, argv: Sequence[str]) -> int:
    if config.group_level is not None:
        from lacuna_nipype.cli.group import run_group_level

        return run_group_level(config, argv)
    from lacuna_nipype.cli.participant import run_participant_level

    return run_participant_level(config, argv)


def run_from_command_line() -> None:
    """Run the command that was typed and leave with its exit code."""
    if sys.argv[1:2] == ["fetch"]:
        from lacuna_nipype.cli.fetch import hide_key

        hide_key(sys.argv[1:])
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        code = end(INTERRUPTED, _INTERRUPTED)
    sys.exit(code)
