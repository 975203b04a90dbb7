"""Words, places and figures that overlap maps and tests of the group share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.reports import figures
from lacuna_nipype.reports.figures import MapStyle
from lacuna_nipype.reports.group_results import RegionFinder
from lacuna_nipype.reports.results import ResultFile
from lacuna_nipype.reports.sections import TITLES, Analysis, Picture

# So that only voxels of exactly zero, which were not tested, are left out.
ANY = 1e-6
KINDS = {"lesion": "Lesions", **TITLES}


def words_of(entities: Mapping[str, str]) -> str:
    """Say which lesions results are about.

    Parameters
    ----------
    entities : mapping of str to str
        By their keys in the file name.

    Returns
    -------
    str
        Such as ``session 01, stroke``.
    """
    words = {"ses": "session ", "acq": "acquisition ", "run": "run ", "label": ""}
    return ", ".join(f"{word}{entities[key]}" for key, word in words.items() if key in entities)


def title_of(title: str, entities: Mapping[str, str], others: Iterable[Mapping[str, str]]) -> str:
    """Say in a title which lesions it is about, where there are several kinds."""
    apart = len({words_of(other) for other in others}) > 1
    return f"{title} ({words_of(entities)})" if apart else title


def participants_text(n: Any) -> str:
    """Write a number of participants."""
    return f"{n} participant{'' if n == 1 else 's'}"


def peak_of(
    values: NDArray[np.floating[Any]], affine: NDArray[np.float64]
) -> tuple[tuple[float, float, float], float, int]:
    """Largest value, where it is, and at how many voxels; of several, the one in their middle."""
    largest = float(values.max())
    voxels = np.argwhere(values == values.max())
    middle = voxels.mean(axis=0)
    chosen = voxels[np.argmin(((voxels - middle) ** 2).sum(axis=1))]
    x, y, z = affine[:3, :3] @ chosen + affine[:3, 3]
    return (float(x), float(y), float(z)), largest, len(voxels)


def place_text(point: Iterable[float]) -> str:
    """Write a point in mm."""
    return "x {:.0f}, y {:.0f}, z {:.0f} mm".format(*point)


def add_region(
    part: Analysis, file: ResultFile, point: Sequence[float], regions: RegionFinder
) -> None:
    """Say in which region a point is, where an atlas tells."""
    named = regions.describe(file.entities.get("tpl", ""), point)
    if named:
        part.facts.append(("Region there", named))


def add_space(part: Analysis, file: ResultFile) -> None:
    """Say in which space a map is, and how fine."""
    resolution = file.sidecar.get("Resolution")
    space = file.sidecar.get("SpaceName") or file.entities.get("tpl", "not known")
    words = str(resolution)[0].lower() + str(resolution)[1:] if resolution else ""
    part.facts.append(("Space", f"{space}{f', {words}' if words else ''}"))


def draw_map(
    part: Analysis,
    file: ResultFile,
    image: Any,
    style: MapStyle,
    point: Sequence[float],
    folder: Path,
    said: str,
    *,
    levels: bool = False,
) -> None:
    """Draw slices through a point, a transparent brain, and slices at the usual levels."""
    stem = file.path.name.removesuffix(".nii.gz").replace("tpl-", "group_space-", 1)
    where = place_text(point)
    if levels:
        path = folder / f"{stem}slices.png"
        figures.draw_map_slices(image, style, path)
        alt = f"{style.title} on eight axial slices."
        part.pictures.append(
            Picture(path, alt, f"{said} z in mm, the same levels in every figure.")
        )
    path = folder / f"{stem}peak.png"
    figures.draw_map_peak(image, style, point, path)
    alt = f"{style.title}, three slices through the largest value at {where}."
    caption = f"Slices through the largest value ({where})."
    part.pictures.append(Picture(path, alt, caption if levels else f"{caption} {said}"))
    path = folder / f"{stem}glass.png"
    figures.draw_map_glass(image, style, path)
    alt = f"{style.title} in a transparent brain from four sides."
    part.pictures.append(Picture(path, alt, "The largest value along the line of sight."))
