"""Options of the group level, and what is wrong between them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

# Of core.association and io.group_maps, whose imports --help shall not pay for.
PERMUTATIONS = 5000
T_THRESHOLD = 5.0
MIN_OVERLAP = 10.0


@dataclass(frozen=True)
class GroupOptions:
    """What the group level was asked for; fields are named like the flags.

    Parameters
    ----------
    score, group : tuple of str
        Columns of the table of participants to test: numbers, and two groups.
    covariates : tuple of str
    volume_covariate : bool
        The volume of the lesion is a covariate.
    permutations, seed : int
    min_overlap : float
        Per cent of the participants.
    tfce : bool
    overlap_threshold : float
        t of functional network maps.
    participants : Path or None
    participants_columns : tuple of str
    space, resolution : str or None
        Maps to take, where there are several.
    pool_sessions : bool
    select : tuple of str
        ``KEY=VALUE`` of sidecars.
    allow_mixed : bool
    """

    score: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    volume_covariate: bool = True
    permutations: int = PERMUTATIONS
    seed: int = 0
    min_overlap: float = MIN_OVERLAP
    tfce: bool = False
    overlap_threshold: float = T_THRESHOLD
    participants: Path | None = None
    participants_columns: tuple[str, ...] = ()
    space: str | None = None
    resolution: str | None = None
    pool_sessions: bool = False
    select: tuple[str, ...] = ()
    allow_mixed: bool = False


def _per_cent(text: str) -> float:
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0% to 100%")
    return value


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 4294967295")
    return int(text)


def add_group_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of the group level to the parser."""
    from lacuna_nipype.cli.arguments import number_between, positive_integer
    from lacuna_nipype.cli.collect import add_table_options

    group.add_argument(
        "--score", nargs="+", default=[], metavar="COLUMN",
        help="columns of participants.tsv with numbers: test maps and regions for an association",
    )  # fmt: skip
    group.add_argument(
        "--group", nargs="+", default=[], metavar="COLUMN",
        help="columns of participants.tsv with two groups: test maps and regions for a difference",
    )  # fmt: skip
    group.add_argument(
        "--covariates", nargs="+", default=[], metavar="COLUMN",
        help="columns of participants.tsv to take account of in these tests",
    )  # fmt: skip
    group.add_argument(
        "--no-volume-covariate", action="store_false", dest="volume_covariate",
        help="leave the volume of the lesion out of the covariates",
    )  # fmt: skip
    group.add_argument(
        "--permutations", type=positive_integer, default=PERMUTATIONS, metavar="N",
        help=f"permutations of a test (default: {PERMUTATIONS})",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=_seed, default=0, metavar="N", help="seed of permutations (default: 0)"
    )
    group.add_argument(
        "--min-overlap", type=_per_cent, default=MIN_OVERLAP, metavar="SHARE",
        help="test voxels and regions that are touched in this share of the participants "
        f"(default: {MIN_OVERLAP:g}%%)",
    )  # fmt: skip
    group.add_argument(
        "--tfce", action="store_true",
        help="threshold-free cluster enhancement too, which takes hours for maps of 2 mm",
    )  # fmt: skip
    group.add_argument(
        "--overlap-threshold", type=number_between(0, 1e6), default=T_THRESHOLD, metavar="T",
        help="functional network maps overlap where t is larger, or smaller than -T "
        f"(default: {T_THRESHOLD:g})",
    )  # fmt: skip
    group.add_argument(
        "--space", metavar="SPACE", help="maps to take, where there are several spaces"
    )
    group.add_argument(
        "--resolution", metavar="RES",
        help="maps to take, where there are several resolutions: the res entity of their names",
    )  # fmt: skip
    add_table_options(group)


def take_group_options(options: dict[str, Any]) -> GroupOptions | None:
    """Take the options of the group level out of all others.

    Parameters
    ----------
    options : dict
        Parsed; loses these options.

    Returns
    -------
    GroupOptions or None
        None at another level.
    """
    own = {field.name: options.pop(field.name) for field in fields(GroupOptions)}
    values = {
        name: tuple(dict.fromkeys(value)) if isinstance(value, list) else value
        for name, value in own.items()
    }
    return GroupOptions(**values) if options["analysis_level"] == "group" else None


def find_group_problem(options: Mapping[str, Any]) -> str | None:
    """Say what is wrong between options of the group level, or None."""
    defaults = GroupOptions()
    if options["analysis_level"] != "group":
        for field in fields(GroupOptions):
            value, default = options[field.name], getattr(defaults, field.name)
            if (tuple(value) if isinstance(value, list) else value) != default:
                name = "no_volume_covariate" if field.name == "volume_covariate" else field.name
                return f"--{name.replace('_', '-')} is an option of the group level"
        return None
    tested = [*options["score"], *options["group"]]
    if not tested:
        for name in ("covariates", "tfce"):
            if options[name]:
                return f"--{name} needs --score or --group"
    twice = next((name for name in tested if tested.count(name) > 1), None)
    if twice:
        return f"{twice} is to be tested twice (--score, --group)"
    both = [name for name in options["covariates"] if name in tested]
    if both:
        return f"{both[0]} is a covariate and is to be tested"
    return None
