"""Maps of a cohort: one grid for all, overlap counted with one map in memory at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.images import open_image, read_voxels, save_image
from lacuna_nipype.core.overlap import Rule, count_overlap
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.io.quantities import resolution_text

T_THRESHOLD = 5.0
DISCONNECTION_PERCENT = 50.0


@dataclass(frozen=True)
class OverlapMap:
    """A map of how many participants' maps pass a threshold.

    Parameters
    ----------
    rule : Rule
    entities : mapping
        Further entities of its name.
    fraction : bool
        Share of the participants instead of their number.
    description : str
    """

    rule: Rule
    entities: Mapping[str, str]
    fraction: bool
    description: str


def overlap_maps(
    analysis: str, quantity: str | None, *, t_threshold: float = T_THRESHOLD
) -> tuple[OverlapMap, ...]:
    """List the overlap maps that are made of a kind of map.

    Parameters
    ----------
    analysis : str
        ``lesion``, ``fnm`` or ``snm``.
    quantity : str or None
        Value of the ``stat`` entity; None for lesion masks.
    t_threshold : float
        For functional network maps.

    Returns
    -------
    tuple of OverlapMap
        Empty for maps of which no overlap is made.
    """
    if analysis == "lesion":
        inside = Rule("above", 0.0)
        name = {"suffix": "probseg", "desc": "overlap"}
        count = {"suffix": "statmap", "desc": "lesion", "statistic": "count"}
        return (
            OverlapMap(inside, name, True, "Share of the participants with a lesion here."),
            OverlapMap(inside, count, False, "Number of participants with a lesion here."),
        )
    if (analysis, quantity) == ("fnm", "t"):
        return tuple(
            OverlapMap(
                Rule("above" if sign > 0 else "below", sign * t_threshold),
                {"suffix": "statmap", "desc": "fnm", "statistic": name},
                True,
                f"Share of the lesions whose network map has t {'>' if sign > 0 else '<'} "
                f"{sign * t_threshold:g} here.",
            )
            for sign, name in ((1, "overlappositive"), (-1, "overlapnegative"))
        )
    if (analysis, quantity) == ("snm", "disconnectionpct"):
        found = OverlapMap(
            Rule("at_least", DISCONNECTION_PERCENT),
            {"suffix": "statmap", "desc": "snm", "statistic": "overlap"},
            True,
            "Share of the lesions that cut at least "
            f"{DISCONNECTION_PERCENT:g} % of the streamlines here.",
        )
        return (found,)
    return ()


def describe_overlap(made: OverlapMap, n: int, resolution: str | None) -> dict[str, Any]:
    """Sidecar content of an overlap map.

    Parameters
    ----------
    made : OverlapMap
    n : int
        Number of maps.
    resolution : str or None
        Value of the ``res`` entity.

    Returns
    -------
    dict
    """
    rule = made.rule
    return {
        "Description": made.description,
        "Units": "1",
        "NumberOfParticipants": n,
        "Threshold": {"Comparison": rule.comparison, "Value": rule.threshold},
        **({"Resolution": resolution_text(resolution)} if resolution else {}),
    }


def common_grid(paths: Sequence[Path]) -> Grid:
    """Find the grid that all images lie on; only headers are read.

    Parameters
    ----------
    paths : sequence of Path

    Returns
    -------
    Grid
        Of the first image. Others may store the same voxels in another order of axes.

    Raises
    ------
    SpatialMismatchError
        Images lie on different grids; the message lists them.
    ValidationError
        An image cannot be read.
    """
    grids: list[Grid] = []
    members: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        grid = _grid(path)
        place = next((n for n, known in enumerate(grids) if known.same_lattice(grid)), None)
        if place is None:
            place = len(grids)
            grids.append(grid)
        members[place].append(path.name)
    if len(grids) > 1:
        listed = "; ".join(
            f"{grids[place].describe()}: {', '.join(names[:3])}"
            + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            for place, names in members.items()
        )
        raise SpatialMismatchError(
            f"Maps that belong together lie on different grids ({listed}); run the participant "
            "level for all of them with the same connectome and resolution."
        )
    if not grids:
        raise ValidationError("There is no map to read.")
    return grids[0]


def _open(path: Path) -> Any:
    try:
        image = open_image(path)
    except OSError as error:
        raise ValidationError(f"{path} is no readable image; make it again.") from error
    if len(image.shape) != 3:
        raise ValidationError(f"{path} has {len(image.shape)} dimensions; a map has three.")
    return image


def _grid(path: Path) -> Grid:
    image = _open(path)
    return Grid.make(image.shape, image.affine)


def read_on_grid(path: Path, grid: Grid) -> NDArray[Any]:
    """Read a map with its axes in the order and direction of a grid.

    Parameters
    ----------
    path : Path
    grid : Grid
        Holds the voxels of the image, see :func:`common_grid`.

    Returns
    -------
    array, shape of the grid

    Raises
    ------
    ValidationError
        The file is damaged.
    """
    image = _open(path)
    try:
        data = read_voxels(image)
    except OSError as error:
        raise ValidationError(f"{path} is truncated or damaged; make it again.") from error
    if Grid.make(image.shape, image.affine).same_as(grid):
        return data
    turn = nb.orientations.ornt_transform(
        nb.io_orientation(image.affine), nb.io_orientation(grid.affine)
    )
    return np.asarray(nb.orientations.apply_orientation(data, turn))


def iter_maps(paths: Sequence[Path], grid: Grid) -> Iterator[NDArray[Any]]:
    """Read maps one after another."""
    for path in paths:
        yield read_on_grid(path, grid)


def write_overlaps(
    paths: Sequence[Path], made: Sequence[tuple[str, float, bool]], folder: Path
) -> list[Path]:
    """Count and write overlap maps of one kind of map.

    Parameters
    ----------
    paths : sequence of Path
        One map per participant.
    made : sequence of (comparison, threshold, fraction)
        See :class:`OverlapMap`.
    folder : Path

    Returns
    -------
    list of Path
        ``overlap-00.nii.gz`` ..., in the order asked for: float32 shares, or numbers as int32.

    Raises
    ------
    SpatialMismatchError, ValidationError
        See :func:`common_grid`.
    """
    grid = common_grid(paths)
    rules = {f"{number:02d}": _rule(*row[:2]) for number, row in enumerate(made)}
    counts, n = count_overlap(iter_maps(paths, grid), rules)
    written = []
    for (name, count), (_, _, fraction) in zip(counts.items(), made, strict=True):
        data, dtype = (count / n, "<f4") if fraction else (count, "<i4")
        written.append(save_image(folder / f"overlap-{name}.nii.gz", data, grid.affine, dtype))
    return written


def _rule(comparison: str, threshold: float) -> Rule:
    if comparison not in ("above", "below", "at_least"):
        raise ValidationError(f"{comparison!r} is no comparison.")
    return Rule(comparison, threshold)  # type: ignore[arg-type]
