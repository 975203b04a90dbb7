"""Whether image, names and space of an atlas agree, before anything is made of it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.atlases.entries import AtlasKind
from lacuna_nipype.atlases.labels import RegionName, read_labels
from lacuna_nipype.atlases.parcels import open_atlas
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.parcels import integer_labels
from lacuna_nipype.core.spaces import GRID_TOLERANCE_MM, Grid, check_declared_space

_MOST_SHOWN = 10


@dataclass(frozen=True)
class CheckedAtlas:
    """What an atlas turned out to be.

    Parameters
    ----------
    kind : {"labelled", "probabilistic"}
    grid : Grid
    resolution : float or None
        Voxel size in mm; None for voxels that are no cubes.
    regions : tuple of RegionName
        In the order of the table: those whose label is in the image, or one for each volume.
    empty : tuple of RegionName
        Those without a voxel: names that no label has, or volumes of zeros.
    """

    kind: AtlasKind
    grid: Grid
    resolution: float | None
    regions: tuple[RegionName, ...]
    empty: tuple[RegionName, ...]


def grid_resolution(grid: Grid) -> float | None:
    """Edge of a voxel in mm to the micrometre; None for voxels that are no cubes."""
    sizes = grid.voxel_sizes
    if float(sizes.max() - sizes.min()) > GRID_TOLERANCE_MM:
        return None
    return round(float(sizes[0]), 3)


def read_volumes(image: nb.Nifti1Image, name: str) -> Iterator[NDArray[Any]]:
    """Read the volumes of an image one after the other, one of a 3D image.

    Parameters
    ----------
    image : nibabel image
    name : str
        How a message names it.

    Yields
    ------
    array, three dimensions

    Raises
    ------
    ValidationError
        The file is damaged or cut short.
    """
    volumes = image.shape[3] if len(image.shape) > 3 else None
    try:
        if volumes is None or volumes == 1:
            yield np.asanyarray(image.dataobj).reshape(image.shape[:3])
            return
        for number in range(volumes):
            yield np.asanyarray(image.dataobj[..., number])
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValidationError(f"{name} is damaged or cut short; get it again.") from error


def read_whole_labels(image: nb.Nifti1Image, name: str) -> NDArray[np.int64]:
    """Read the labels of a 3D image, whole numbers from 0 on.

    Parameters
    ----------
    image : nibabel image
    name : str
        How a message names it.

    Returns
    -------
    array of int64, three dimensions

    Raises
    ------
    ValidationError
        A value is negative, not finite or not whole, or nothing is above 0.
    """
    data = next(iter(read_volumes(image, name)))
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise ValidationError(f"{name} has values that are not finite; labels are whole numbers.")
    labels = integer_labels(data, name)
    if data.dtype.kind in "if" and data.min() < -0.5:
        raise ValidationError(
            f"{name} has negative values, such as {data.min():g}; labels are whole numbers from "
            "0 (background) on."
        )
    if not labels.any():
        raise ValidationError(f"{name} has no label above zero.")
    return labels


def check_image(
    image_path: Path, regions: Sequence[RegionName], space: str, *, image_name: str, table: str
) -> CheckedAtlas:
    """Compare an image with its names and its space.

    Parameters
    ----------
    image_path : Path
        3D labels, or 4D with one volume for each region, of probabilities or of 0 and 1.
    regions : sequence of RegionName
    space : str
        Name or alias.
    image_name, table : str
        How messages name the image and its table.

    Returns
    -------
    CheckedAtlas

    Raises
    ------
    SpatialMismatchError
        The grid is that of another space.
    ValidationError
        The image cannot be read, states no position, or holds other things than labels or
        probabilities; a label has no name.
    """
    image, grid, n_volumes = open_atlas(image_path)
    check_declared_space(space, grid, image_name)
    if not (image.header["sform_code"] or image.header["qform_code"]):
        raise ValidationError(
            f"{image_name} does not state where its voxels lie (sform and qform codes are 0); "
            "write it again with the affine of its template."
        )
    kind: AtlasKind = "probabilistic" if n_volumes else "labelled"
    if n_volumes:
        filled = _check_volumes(image, n_volumes, regions, image_name, table)
        kept = tuple(regions)
    else:
        present = np.unique(read_whole_labels(image, image_name))
        kept = filled = _check_labels(set(present.tolist()) - {0}, regions, image_name, table)
    empty = tuple(region for region in regions if region not in filled)
    return CheckedAtlas(kind, grid, grid_resolution(grid), kept, empty)


def _check_labels(
    present: set[int], regions: Sequence[RegionName], image: str, table: str
) -> tuple[RegionName, ...]:
    unnamed = sorted(present - {region.index for region in regions})
    if unnamed:
        shown = ", ".join(map(str, unnamed[:_MOST_SHOWN]))
        more = ", ..." if len(unnamed) > _MOST_SHOWN else ""
        raise ValidationError(
            f"{table} has {len(regions)} names but leaves {len(unnamed)} of the {len(present)} "
            f"labels of {image} without one: {shown}{more}."
        )
    return tuple(region for region in regions if region.index in present)


def _check_volumes(
    image: nb.Nifti1Image, n_volumes: int, regions: Sequence[RegionName], name: str, table: str
) -> tuple[RegionName, ...]:
    if len(regions) != n_volumes:
        raise ValidationError(
            f"{table} has {len(regions)} names for the {n_volumes} volumes of {name}."
        )
    # Volumes follow the order of the numbers, not the order in which the table lists them.
    ordered = sorted(regions, key=lambda region: region.index)
    kept = set()
    for region, data in zip(ordered, read_volumes(image, name), strict=True):
        kind = data.dtype.kind
        unusable = kind not in "biuf" or (kind == "f" and not np.isfinite(data).all())
        if unusable or (kind in "if" and data.min() < 0):
            raise ValidationError(
                f"{name} has values in the volume of {region.name} that are negative or not "
                "finite; probabilities are zero or more."
            )
        if data.any():
            kept.add(region)
    if not kept:
        raise ValidationError(f"{name} has no value above zero.")
    return tuple(region for region in regions if region in kept)


def check_parcellation(image: Path, labels: Path, space: str) -> CheckedAtlas:
    """Check an atlas of the user's, see :func:`check_image`.

    Parameters
    ----------
    image : Path
    labels : Path
        See :func:`lacuna_nipype.atlases.labels.read_labels`.
    space : str
        Name or alias.

    Returns
    -------
    CheckedAtlas

    Raises
    ------
    SpatialMismatchError, ValidationError
        Also for a list of names, one on each line, that is longer than the largest label: its
        first line may name the background, and then every name is one off.
    """
    regions = read_labels(labels)
    checked = check_image(
        image, regions, space, image_name=f"Atlas image {image}", table=f"Labels file {labels}"
    )
    largest = max(region.index for region in checked.regions)
    if checked.kind == "labelled" and _is_plain_list(labels) and len(regions) > largest:
        raise ValidationError(
            f"Labels file {labels} has {len(regions)} lines but the largest label of {image} is "
            f"{largest}; the first line must be the name of label 1, or write 'number name' on "
            "each line."
        )
    return checked


def _is_plain_list(labels: Path) -> bool:
    """Tell whether the lines of a file are names without numbers."""
    if labels.suffix.lower() in (".tsv", ".csv"):
        return False
    lines = labels.read_text(encoding="utf-8-sig").splitlines()
    words = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return not all(len(parts) > 1 and parts[0].isdecimal() for parts in words)
