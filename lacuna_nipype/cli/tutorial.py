"""``lacuna-nipype tutorial DIR``: write a demonstration dataset and say what to run next."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lacuna_nipype.io.demonstration import DemonstrationPaths

USAGE_ERROR = 2


def main(argv: list[str]) -> int:
    """Run the command.

    Parameters
    ----------
    argv : list of str
        Arguments after ``tutorial``.

    Returns
    -------
    int
        Exit code: 0, or 2 for wrong arguments or a folder that cannot be used.
    """
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    # Heavy imports wait until the arguments are right.
    from lacuna_nipype.core.exceptions import ValidationError
    from lacuna_nipype.io.demonstration import DEFAULT_SEED, write_demonstration

    logging.basicConfig(format="%(message)s")
    logging.getLogger("lacuna_nipype").setLevel(logging.INFO)
    seed = DEFAULT_SEED if options.seed is None else options.seed
    try:
        paths = write_demonstration(options.directory, seed=seed, force=options.force)
    except (ValidationError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return USAGE_ERROR
    sys.stdout.write(_summary(paths))
    return 0


def _parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="lacuna-nipype tutorial",
        description="Write a demonstration dataset (synthetic lesions, atlas and connectomes on "
        "MNI anatomy; about 40 MB, ten seconds, no network) and print the next command.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="folder to write into")
    parser.add_argument(
        "--force",
        action="store_true",
        help="write into a folder that is not empty, replacing an older demonstration in it",
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        help="random seed; the same seed gives the same data (default: a fixed one)",
    )
    return parser


def _seed(text: str) -> int:
    """Read a seed: an integer that is not negative."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 0 or more")
    return int(text)


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
