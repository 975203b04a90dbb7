"""Regions of an atlas on disk: where they lie, how large they are, and their masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lacuna_nipype.atlases.checking import read_volumes, read_whole_labels
from lacuna_nipype.atlases.labels import RegionName
from lacuna_nipype.atlases.parcels import open_atlas
from lacuna_nipype.atlases.region_tables import find_regions, read_table, with_sides
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.images import TEMPLATE_CODE
from lacuna_nipype.core.spaces import Grid


def measure_regions(image_path: Path, labels_path: Path) -> pd.DataFrame:
    """List the regions of an atlas with their centroids and volumes.

    Parameters
    ----------
    image_path : Path
        3D labels, or 4D with one volume for each region.
    labels_path : Path
        Table of regions.

    Returns
    -------
    DataFrame
        ``index``, ``name``, ``hemisphere``, ``network``, ``color`` (empty where not known),
        ``x``, ``y``, ``z`` (centroid in mm, RAS, of voxel centres; of probabilities weighted by
        them) and ``volume_mm3`` (of probabilities their sum). A region without a voxel has the
        volume 0 and NaN for a centroid.

    Raises
    ------
    ValidationError
        Image or table cannot be used.
    """
    table = with_sides(read_table(labels_path))
    image, grid, n_volumes = open_atlas(image_path)
    name = f"Atlas image {image_path}"
    if n_volumes:
        if n_volumes != len(table):
            raise ValidationError(
                f"{labels_path} has {len(table)} names for the {n_volumes} volumes of {name}."
            )
        # Volumes follow the order of the numbers.
        order = np.argsort(table["index"].to_numpy(), kind="stable")
        weights, sums = np.zeros(n_volumes), np.zeros((n_volumes, 3))
        for row, data in zip(order, read_volumes(image, name), strict=True):
            weights[row], sums[row] = _moments(data)
    else:
        weights, sums = _label_moments(read_whole_labels(image, name), table["index"].to_numpy())
    with np.errstate(invalid="ignore"):
        centres = sums / np.where(weights > 0, weights, np.nan)[:, None]
    points = centres @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    table["x"], table["y"], table["z"] = points.T
    table["volume_mm3"] = weights * grid.voxel_volume_ml * 1000
    return table


def _moments(data: NDArray[Any]) -> tuple[float, NDArray[np.float64]]:
    """Sum of a volume's finite values, and of its voxel indices weighted by them."""
    values = np.nan_to_num(np.asarray(data, dtype=np.float64), nan=0, posinf=0, neginf=0)
    sums = []
    for axis, size in enumerate(values.shape):
        others = tuple(other for other in range(3) if other != axis)
        sums.append(float(values.sum(axis=others) @ np.arange(size)))
    return float(values.sum()), np.array(sums)


def _label_moments(
    labels: NDArray[np.int64], index: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count the voxels of each label, and sum up their voxel indices."""
    voxels = np.nonzero(labels)
    present, inverse, counts = np.unique(labels[voxels], return_inverse=True, return_counts=True)
    totals = np.stack(
        [np.bincount(inverse, axis, minlength=len(present)) for axis in voxels], axis=1
    )
    place = np.minimum(np.searchsorted(present, index), len(present) - 1)
    known = present[place] == index
    return np.where(known, counts[place], 0.0), np.where(known[:, None], totals[place], 0.0)


def mask_of_regions(
    image_path: Path, labels_path: Path, names: Iterable[str | int], threshold: float = 0.0
) -> tuple[nb.Nifti1Image, list[RegionName]]:
    """Make one mask of some regions of an atlas.

    Parameters
    ----------
    image_path, labels_path : Path
    names : iterable of str or int
        Names, or numbers; case is ignored.
    threshold : float
        Of a 4D atlas: a voxel belongs to a region whose value is above this.

    Returns
    -------
    image : nibabel image, uint8
        0 and 1, on the grid of the atlas.
    regions : list of RegionName
        What was asked for.

    Raises
    ------
    AtlasNotFound
        There is no such region.
    ValidationError
        Image or table cannot be used, or no voxel is left.
    """
    table = read_table(labels_path)
    regions = find_regions(table, names)
    image, grid, n_volumes = open_atlas(image_path)
    name = f"Atlas image {image_path}"
    wanted = {region.index for region in regions}
    mask = np.zeros(grid.shape, dtype=bool)
    if n_volumes:
        for index, data in _numbered_volumes(image, name, table, n_volumes):
            if index in wanted:
                mask |= np.nan_to_num(data) > threshold
    else:
        mask = np.isin(read_whole_labels(image, name), list(wanted))
    if not mask.any():
        chosen = ", ".join(region.name for region in regions)
        raise ValidationError(
            f"{name} has no voxel of {chosen}"
            + (f" above {threshold:g}; lower the threshold." if n_volumes else ".")
        )
    return _mask_image(mask, grid), regions


def _numbered_volumes(
    image: nb.Nifti1Image, name: str, table: pd.DataFrame, n_volumes: int
) -> Iterator[tuple[int, NDArray[Any]]]:
    if n_volumes != len(table):
        raise ValidationError(f"{name} has {n_volumes} volumes for {len(table)} names.")
    numbers = sorted(int(index) for index in table["index"])
    yield from zip(numbers, read_volumes(image, name), strict=True)


def _mask_image(mask: NDArray[np.bool_], grid: Grid) -> nb.Nifti1Image:
    image = nb.Nifti1Image(mask.astype(np.uint8), grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, TEMPLATE_CODE)
    image.set_qform(grid.affine, TEMPLATE_CODE)
    return image
