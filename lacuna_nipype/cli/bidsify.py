"""``lacuna-nipype bidsify IN OUT --space SPACE``: a folder of masks becomes a BIDS dataset."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lacuna_nipype.cli.arguments import (
    Parser,
    absolute_path,
    existing_path,
    label_of,
    positive_integer,
)
from lacuna_nipype.cli.ending import OK, SOME_FAILED, USAGE, end, run_command
from lacuna_nipype.cli.terminal import COMPUTATIONS, Progress, show_log

if TYPE_CHECKING:
    from lacuna_nipype.io.bidsify import Conversion

DESCRIPTION = """\
Copy lesion masks of any names into a BIDS derivatives dataset. Names that are BIDS keep their
entities; of other names, the participant's label is made. Masks that cannot be used are refused,
nothing that exists is overwritten, and voxels and headers stay as they are."""


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str
        Arguments after ``bidsify``.

    Returns
    -------
    int
        Exit code: 0; 1 when masks were refused and all others are done; 2 for wrong arguments or
        folders; 130 when interrupted.
    """
    return run_command(lambda: _parser().parse_args(argv), _run)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lacuna-nipype bidsify", description=DESCRIPTION, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "folder", metavar="IN", type=existing_path,
        help="folder with masks (.nii, .nii.gz), in subfolders too",
    )  # fmt: skip
    parser.add_argument("dataset", metavar="OUT", type=absolute_path, help="dataset to make")
    parser.add_argument(
        "--space", metavar="SPACE",
        help="standard space of the masks, such as MNI152NLin6Asym, or T1w for the participants' "
        "own",
    )  # fmt: skip
    parser.add_argument(
        "--session", type=_bids_label("ses-"), metavar="LABEL",
        help="session of masks whose names have none",
    )  # fmt: skip
    parser.add_argument(
        "--label", type=_bids_label("label-"), metavar="LABEL",
        help="what the masks show, where names do not say it (default: lesion)",
    )  # fmt: skip
    parser.add_argument(
        "--participants", type=existing_path, metavar="TSV",
        help="table for participants.tsv; its column participant_id, or its first, names the "
        "originals or the participants",
    )  # fmt: skip
    parser.add_argument(
        "--pattern", metavar="GLOB", help="only files whose name fits, such as '*lesion*'"
    )
    drawn = parser.add_mutually_exclusive_group()
    drawn.add_argument(
        "--manual", action="store_true", default=None, dest="manual",
        help="say in the sidecars that the masks were drawn by hand",
    )  # fmt: skip
    drawn.add_argument(
        "--automatic", action="store_false", dest="manual",
        help="say in the sidecars that a program made the masks (default: say neither)",
    )  # fmt: skip
    parser.add_argument(
        "--nprocs", "--nthreads", "--n-cpus", type=positive_integer, metavar="N",
        help="masks to read and write at the same time (default: all processors that are allowed)",
    )  # fmt: skip
    return parser


def _bids_label(prefix: str) -> Callable[[str], str]:
    strip = label_of(prefix)

    def checked(text: str) -> str:
        from lacuna_nipype.io.naming import is_label

        label = strip(text)
        if not is_label(label):
            raise argparse.ArgumentTypeError(
                f"{label!r} holds characters other than letters, digits and +"
            )
        return label

    return checked


def _run(options: argparse.Namespace) -> int:
    from lacuna_nipype.execution.resources import available_processors
    from lacuna_nipype.io.bidsify import bidsify

    show_log(COMPUTATIONS)
    if options.space is None:
        return end(USAGE, _ask_for_space(options))
    with Progress("Masks done:", "mask") as progress:
        done = bidsify(
            options.folder,
            options.dataset,
            space=options.space,
            session=options.session,
            label=options.label,
            participants=options.participants,
            pattern=options.pattern,
            manual=options.manual,
            n_threads=options.nprocs or available_processors(),
            progress=progress,
        )
    return _report(options, done)


def _ask_for_space(options: argparse.Namespace) -> str:
    """Say that a space is needed, with what the first mask's grid suggests."""
    from lacuna_nipype.io.bidsify import find_images
    from lacuna_nipype.io.images import load_mask
    from lacuna_nipype.io.lesions import which_space

    first = find_images(options.folder, pattern=options.pattern, exclude=options.dataset)[0]
    grid = load_mask(first).grid
    advice = which_space(grid, "--space", f"the grid of {first.name}")
    return f"No header says which standard space masks are in, so it has to be given: {advice}."


def _report(options: argparse.Namespace, done: Conversion) -> int:
    for notice in done.notices:
        sys.stdout.write(f"Note: {notice}\n")
    for reason in done.refused.values():
        sys.stdout.write(f"Error: {reason}\n")
    n_done = len(done.written) + len(done.unchanged)
    counts = f"{len(done.written)} new, {len(done.unchanged)} there already"
    if done.refused:
        first = next(iter(done.refused.values()))
        return end(
            SOME_FAILED,
            f"{len(done.refused)} of {len(done.refused) + n_done} masks refused ({counts}); the "
            f"first: {first}",
        )
    return end(OK, f"{n_done} masks in {options.dataset} ({counts}).")
