"""``lacuna-nipype tutorial DIR``: write a demonstration dataset and say what to run next."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lacuna_nipype.cli.arguments import Parser, natural_number
from lacuna_nipype.cli.ending import run_command
from lacuna_nipype.cli.terminal import show_log

if TYPE_CHECKING:
    from lacuna_nipype.io.demonstration import DemonstrationPaths


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str
        Arguments after ``tutorial``.

    Returns
    -------
    int
        Exit code: 0; 2 for wrong arguments or a folder that cannot be used; 130 when interrupted.
    """
    return run_command(
        lambda: _parser().parse_args(argv),
        _run,
        interrupted="Interrupted; run the same command with --force to begin anew.",
    )


def _run(options: argparse.Namespace) -> None:
    # Heavy imports wait until the arguments are right.
    from lacuna_nipype.io.demonstration import DEFAULT_SEED, write_demonstration

    show_log("lacuna_nipype")
    seed = DEFAULT_SEED if options.seed is None else options.seed
    paths = write_demonstration(options.directory, seed=seed, force=options.force)
    sys.stdout.write(_summary(paths))


def _parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = Parser(
        prog="lacuna-nipype tutorial",
        description="Write a demonstration dataset (synthetic lesions, atlas and connectomes on "
        "MNI anatomy; about 40 MB, ten seconds, no network) and print the next command.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="folder to write into")
    parser.add_argument(
        "--force",
        action="store_true",
        help="write into a folder that is not empty, replacing an older demonstration in it",
    )
    parser.add_argument(
        "--seed",
        type=natural_number,
        metavar="N",
        help="random seed; the same seed gives the same data (default: a fixed one)",
    )
    return parser


def _summary(paths: DemonstrationPaths) -> str:
    """Tell what was written and the command to run next."""
    command = [
        "lacuna-nipype",
        str(paths.bids_dir),
        str(paths.directory / "results"),
        "participant",
        "--functional-connectome",
        str(paths.functional_connectome),
        "--structural-connectome",
        str(paths.structural_connectome),
        "--parcel-atlases",
        "Demo",
        "--plugin",
        "MultiProc",
    ]
    return (
        f"Lesion masks and atlas:  {paths.bids_dir}\n"
        f"Functional connectome:   {paths.functional_connectome}\n"
        f"Structural connectome:   {paths.structural_connectome}\n"
        f"Read first:              {paths.readme}\n"
        f"Next: {shlex.join(command)}\n"
    )
