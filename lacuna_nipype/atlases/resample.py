"""Parcellations on another grid: no label is invented, and what is lost is told."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lacuna_nipype.atlases.checking import read_volumes, read_whole_labels
from lacuna_nipype.atlases.entries import SpaceMismatch
from lacuna_nipype.atlases.labels import RegionName, read_labels
from lacuna_nipype.atlases.parcels import ParcelChange, open_atlas
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.images import TEMPLATE_CODE
from lacuna_nipype.core.resampling import (
    nearest_voxels,
    resample_linear,
    resample_nearest,
    to_canonical,
)
from lacuna_nipype.core.spaces import (
    Grid,
    canonical_space,
    check_declared_space,
    same_space,
    spaces_of_grid,
)
from lacuna_nipype.core.transforms import (
    LinearSampler,
    PointMap,
    pull_coordinates,
    warp_labels,
)

METHODS = ("nearest", "majority", "linear")
_SPACE_IN_NAME = re.compile(r"(?:^|_)(?:tpl|space)-([a-zA-Z0-9]+)_")
# Parts of a voxel along an axis among which a majority is sought.
_MOST_PARTS = 8
_POINTS_AT_A_TIME = 4_000_000


@dataclass(frozen=True, eq=False)
class ResampledRegions(ParcelChange):
    """What a change of grid did to the regions of an atlas.

    Parameters
    ----------
    names : tuple of str
    volume_ml_before, volume_ml_after : array, shape (n_regions,), float64
    index : tuple of int
        Label, or number of the volume from 1.
    """

    index: tuple[int, ...] = ()

    def table(self) -> pd.DataFrame:
        """Regions that are left, ``index`` and ``name``: one row for each label of the image."""
        kept = [
            (index, name)
            for index, name, volume in zip(
                self.index, self.names, self.volume_ml_after, strict=True
            )
            if volume > 0
        ]
        return pd.DataFrame(kept, columns=["index", "name"])


def resample_parcellation(
    image: str | os.PathLike[str] | nb.Nifti1Image,
    reference: str | os.PathLike[str] | nb.Nifti1Image | Grid,
    method: str = "nearest",
    *,
    labels: Path | None = None,
    image_space: str | None = None,
    reference_space: str | None = None,
    transform: PointMap | None = None,
) -> tuple[nb.Nifti1Image, ResampledRegions]:
    """Bring a parcellation to the grid of another image.

    Parameters
    ----------
    image : path-like or nibabel image
        3D labels, or 4D with one volume for each region.
    reference : path-like, nibabel image or Grid
        Whose grid is wanted.
    method : {"nearest", "majority", "linear"}
        ``nearest``: the value at the centre of the voxel. ``majority``: the label that most of
        the voxel has, background included; of labels that have equal parts, the smallest above
        0. ``linear``: trilinear, for 4D images alone.
    labels : Path, optional
        Names for the report; labels are named by their numbers without it.
    image_space, reference_space : str, optional
        Names or aliases of standard spaces. By default those in the files' names (``tpl-``,
        ``space-``), else those whose standard grid it is.
    transform : PointMap, optional
        From points of the reference to points of the image, where their spaces differ.

    Returns
    -------
    image : nibabel image
        On the reference's grid: labels in their own integer type, float labels as int32,
        volumes as float32 (with ``nearest`` in their own type). Its labels are among those of
        the input.
    report : ResampledRegions
        Volumes before and after, and the regions that were lost.

    Raises
    ------
    SpaceMismatch
        The two are in different spaces and there is no transform.
    SpatialMismatchError
        A file's grid contradicts its space.
    ValidationError
        An image cannot be used, or the method does not suit it.
    """
    if method not in METHODS:
        raise ValidationError(f"There is no method {method!r}; there is {', '.join(METHODS)}.")
    source, name = _open(image, "The parcellation")
    grid = Grid.make(source.shape[:3], source.affine)
    target, target_name = _target_grid(reference)
    if transform is None:
        _check_spaces(
            _spaces(name, grid, image_space), _spaces(target_name, target, reference_space)
        )
    four = len(source.shape) == 4 and source.shape[3] > 1
    regions = None if labels is None else read_labels(Path(labels))
    if four:
        return _resample_volumes(source, name, grid, target, method, regions, transform)
    if method == "linear":
        raise ValidationError(
            f"{name} holds labels, which cannot be interpolated; use nearest or majority."
        )
    return _resample_labels(source, name, grid, target, method, regions, transform)


def _open(image: str | os.PathLike[str] | nb.Nifti1Image, what: str) -> tuple[nb.Nifti1Image, str]:
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        return open_atlas(path)[0], str(path)
    if len(image.shape) not in (3, 4):
        raise ValidationError(f"{what} has {len(image.shape)} dimensions, not 3 or 4.")
    return image, image.get_filename() or what


def _target_grid(
    reference: str | os.PathLike[str] | nb.Nifti1Image | Grid,
) -> tuple[Grid, str]:
    if isinstance(reference, Grid):
        return reference, "The reference"
    opened, name = _open(reference, "The reference")
    return Grid.make(opened.shape[:3], opened.affine), name


def _spaces(name: str, grid: Grid, declared: str | None) -> tuple[str, tuple[str, ...]]:
    """Spaces that an image may be in; none where nothing tells."""
    if declared is None:
        match = _SPACE_IN_NAME.search(Path(name).name)
        try:
            declared = canonical_space(match.group(1)) if match else None
        except ValidationError:
            # A template that this package has no grids of.
            declared = None
    if declared is not None:
        return name, (check_declared_space(declared, grid, name),)
    return name, spaces_of_grid(grid)


def _check_spaces(
    image: tuple[str, tuple[str, ...]], reference: tuple[str, tuple[str, ...]]
) -> None:
    if not image[1] or not reference[1]:
        return
    if not any(same_space(own, other) for own in image[1] for other in reference[1]):
        raise SpaceMismatch(
            f"{image[0]} is in {' / '.join(image[1])} but {reference[0]} is in "
            f"{' / '.join(reference[1])}; a transform between them is needed, or a reference in "
            "the space of the parcellation."
        )


def _label_type(dtype: np.dtype[Any], largest: int) -> np.dtype[Any]:
    """Integer type for labels on disk."""
    if dtype.kind in "iu":
        return dtype
    return np.dtype(np.int32 if largest < 2**31 else np.int64)


def _resample_labels(
    source: nb.Nifti1Image,
    name: str,
    grid: Grid,
    target: Grid,
    method: str,
    regions: list[RegionName] | None,
    transform: PointMap | None,
) -> tuple[nb.Nifti1Image, ResampledRegions]:
    data = read_whole_labels(source, name)
    if method == "majority" and transform is not None:
        raise ValidationError("A majority is sought within one space; warp with nearest.")
    if transform is not None:
        moved = warp_labels(data, grid, target, transform)
    elif method == "majority":
        moved = majority_labels(data, grid, target, _parts(grid, target))
    else:
        moved = resample_nearest(data, grid, target)
    dtype = _label_type(source.get_data_dtype(), int(data.max()))
    index, before = _count(data)
    after = dict(zip(*(values.tolist() for values in _count(moved)), strict=True))
    known = {region.index: region.name for region in regions or ()}
    _check_named(index, known if regions is not None else None, name)
    report = ResampledRegions(
        tuple(known.get(label, str(label)) for label in index.tolist()),
        before * grid.voxel_volume_ml,
        np.array([after.get(label, 0) for label in index.tolist()], float)
        * target.voxel_volume_ml,
        tuple(index.tolist()),
    )
    return _image(moved.astype(dtype), target, dtype), report


def _check_named(index: NDArray[Any], known: Mapping[int, str] | None, name: str) -> None:
    if known is None:
        return
    unnamed = [str(label) for label in index.tolist() if label not in known]
    if unnamed:
        raise ValidationError(
            f"{name} has labels that the table does not name: {', '.join(unnamed[:10])}."
        )


def _count(labels: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    return np.unique(labels[labels > 0], return_counts=True)


def _parts(grid: Grid, target: Grid) -> int:
    """Into how many parts along each axis a target voxel is cut, so that none spans two voxels."""
    ratio = float(target.voxel_sizes.max() / grid.voxel_sizes.min())
    return int(np.clip(np.ceil(ratio - 1e-3), 1, _MOST_PARTS))


def majority_labels(
    data: NDArray[np.int64], grid: Grid, target: Grid, parts: int
) -> NDArray[np.int64]:
    """Label that most of each target voxel has.

    Parameters
    ----------
    data : array of int64, shape of the grid
    grid, target : Grid
    parts : int
        Each voxel is cut into this many parts along every axis, each of which has the label at
        its centre. With 1 this is the nearest neighbour.

    Returns
    -------
    array of int64, shape of the target
        Background counts like a label. Equal parts go to the smallest label above 0.
    """
    values, canonical = to_canonical(data, grid)
    flat = np.append(np.ascontiguousarray(values).reshape(-1), 0)
    out = np.empty(target.shape, dtype=np.int64)
    planes = max(1, _POINTS_AT_A_TIME // (target.shape[1] * target.shape[2] * parts**3))
    fine = _cut(target, parts)
    for start in range(0, target.shape[0], planes):
        stop = min(start + planes, target.shape[0])
        # An index of -1, outside of the field of view, is the background at the end.
        labels = flat[nearest_voxels(canonical, fine, slice(start * parts, stop * parts))]
        shape = (stop - start, parts, target.shape[1], parts, target.shape[2], parts)
        cubes = labels.reshape(shape).transpose(0, 2, 4, 1, 3, 5)
        out[start:stop] = _modes(cubes.reshape(-1, parts**3)).reshape(out[start:stop].shape)
    return out


def _cut(target: Grid, parts: int) -> Grid:
    if parts == 1:
        return target
    scale = np.diag([1 / parts] * 3 + [1.0])
    # The first part's centre lies before the voxel's.
    scale[:3, 3] = (1 / parts - 1) / 2
    return Grid.make([size * parts for size in target.shape], target.affine @ scale)


def _modes(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Most frequent value of each row, shape (n_rows, n_values)."""
    result = labels[:, 0].copy()
    mixed = np.flatnonzero((labels != labels[:, :1]).any(axis=1))
    rows = np.sort(labels[mixed], axis=1)
    best = np.zeros(len(rows), dtype=np.int64)
    chosen = np.zeros(len(rows), dtype=np.int64)
    run = np.zeros(len(rows), dtype=np.int64)
    for place in range(rows.shape[1]):
        same = rows[:, place] == rows[:, place - 1] if place else np.zeros(len(rows), bool)
        run = np.where(same, run + 1, 1)
        # Values ascend, so of equal counts the smaller stays; but any label beats background.
        better = (run > best) | ((run == best) & (chosen == 0))
        best = np.where(better, run, best)
        chosen = np.where(better, rows[:, place], chosen)
    result[mixed] = chosen
    return result


def _resample_volumes(
    source: nb.Nifti1Image,
    name: str,
    grid: Grid,
    target: Grid,
    method: str,
    regions: list[RegionName] | None,
    transform: PointMap | None,
) -> tuple[nb.Nifti1Image, ResampledRegions]:
    n_volumes = source.shape[3]
    if method == "majority":
        raise ValidationError(f"{name} has a volume for each region; use linear or nearest.")
    if regions is None:
        regions = [RegionName(number, str(number)) for number in range(1, n_volumes + 1)]
    if len(regions) != n_volumes:
        raise ValidationError(f"{name} has {n_volumes} volumes, and {len(regions)} names.")
    regions = sorted(regions, key=lambda region: region.index)
    dtype = np.dtype(np.float32) if method == "linear" else source.get_data_dtype()
    out = np.empty((*target.shape, n_volumes), dtype=dtype, order="F")
    coordinates = None
    if method == "linear" and transform is not None:
        coordinates = pull_coordinates(grid, target, transform)
    before, after = np.empty(n_volumes), np.empty(n_volumes)
    for number, data in enumerate(read_volumes(source, name)):
        clean = np.nan_to_num(data, nan=0, posinf=0, neginf=0) if data.dtype.kind == "f" else data
        if clean.min() < 0:
            raise ValidationError(
                f"{name} has negative values in volume {number + 1}; probabilities are zero or "
                "more."
            )
        if coordinates is not None:
            moved = LinearSampler.make(clean)(coordinates)[0].reshape(target.shape)
        elif method == "linear":
            moved = resample_linear(clean, grid, target)
        elif transform is not None:
            moved = warp_labels(clean, grid, target, transform)
        else:
            moved = resample_nearest(clean, grid, target)
        out[..., number] = moved
        before[number] = clean.sum(dtype=np.float64) * grid.voxel_volume_ml
        after[number] = moved.sum(dtype=np.float64) * target.voxel_volume_ml
    report = ResampledRegions(
        tuple(region.name for region in regions), before, after,
        tuple(region.index for region in regions),
    )  # fmt: skip
    return _image(out, target, dtype), report


def _image(data: NDArray[Any], grid: Grid, dtype: np.dtype[Any]) -> nb.Nifti1Image:
    image = nb.Nifti1Image(data, grid.affine, dtype=dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, TEMPLATE_CODE)
    image.set_qform(grid.affine, TEMPLATE_CODE)
    return image
