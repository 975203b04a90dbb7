"""Moving voxel data between grids of one space, in world coordinates."""

from __future__ import annotations

from typing import Any

import nibabel as nb
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.spaces import Grid

# Indices this close below a half are halves but for float noise: grids of different resolution
# meet on exact ties, and a tie must not depend on how an affine was rounded.
TIE_TOLERANCE = 1e-4


def to_canonical(data: NDArray[Any], grid: Grid) -> tuple[NDArray[Any], Grid]:
    """Permute and flip an array to its grid's RAS order (a view, no copy)."""
    return nb.apply_orientation(data, nb.io_orientation(grid.affine)), grid.canonical


def voxel_map(source: Grid, target: Grid) -> NDArray[np.float64]:
    """Matrix, shape (4, 4), from target voxel indices to source voxel indices."""
    return np.linalg.inv(source.affine) @ target.affine


def round_indices(coordinates: NDArray[np.float64]) -> NDArray[np.intp]:
    """Nearest voxel of fractional indices; one midway goes to the larger index."""
    return np.floor(coordinates + 0.5 + TIE_TOLERANCE).astype(np.intp)


def _single_axis_map(matrix: NDArray[np.float64]) -> list[int] | None:
    """For each source axis the one target axis it depends on; None for rotated grids."""
    strong = np.abs(matrix[:3, :3]) > 1e-6
    if not (np.all(strong.sum(axis=0) == 1) and np.all(strong.sum(axis=1) == 1)):
        return None
    return [int(np.flatnonzero(row)[0]) for row in strong]


def _along(values: NDArray[np.intp], axis: int) -> NDArray[np.intp]:
    return values.reshape([-1 if i == axis else 1 for i in range(3)])


def nearest_voxels(source: Grid, target: Grid, x_slice: slice | None = None) -> NDArray[np.intp]:
    """Flat index of the nearest source voxel for each target voxel.

    Parameters
    ----------
    source, target : Grid
        The source grid should be in canonical order, so that ties go the same way in the world
        whatever order the array was stored in.
    x_slice : slice, optional
        Planes of the target's first axis to do, all by default; bounds the memory.

    Returns
    -------
    array of int, shape of the target (or of its slice)
        Flat C-order index into the source, -1 outside its field of view. A point midway between
        two voxels belongs to the one with the larger source index.
    """
    matrix = voxel_map(source, target)
    x_slice = slice(None) if x_slice is None else x_slice
    ranges = [np.arange(target.shape[0])[x_slice], *(np.arange(n) for n in target.shape[1:])]
    strides = (source.shape[1] * source.shape[2], source.shape[2], 1)
    axes = _single_axis_map(matrix)
    flat: NDArray[np.intp] = np.zeros([len(r) for r in ranges], dtype=np.intp)
    outside = np.zeros(flat.shape, dtype=bool)
    for axis in range(3):
        if axes is None:
            coordinates = matrix[axis, 3] + sum(
                matrix[axis, other] * _along(ranges[other], other) for other in range(3)
            )
        else:
            other = axes[axis]
            coordinates = matrix[axis, 3] + matrix[axis, other] * _along(ranges[other], other)
        index = round_indices(np.asarray(coordinates))
        outside |= (index < 0) | (index >= source.shape[axis])
        flat += index * strides[axis]
    flat[outside] = -1
    return flat


def resample_nearest(
    data: NDArray[Any], source: Grid, target: Grid, *, fill: float = 0
) -> NDArray[Any]:
    """Nearest neighbour in world coordinates, for masks and labels.

    Parameters
    ----------
    data : array, shape of the source grid
        Values of any dtype, which is kept.
    source, target : Grid
        Any orientation.
    fill : float
        Value outside the source's field of view.

    Returns
    -------
    array, shape of the target grid
    """
    if source.same_as(target):
        return np.array(data)
    data, source = to_canonical(data, source)
    values = np.ascontiguousarray(data).reshape(-1)
    out = np.full(target.shape, fill, dtype=data.dtype)
    planes = max(1, 4_000_000 // (target.shape[1] * target.shape[2]))
    for start in range(0, target.shape[0], planes):
        block = slice(start, min(start + planes, target.shape[0]))
        index = nearest_voxels(source, target, block)
        inside = index >= 0
        out[block][inside] = values[index[inside]]
    return out


def resample_linear(data: NDArray[Any], source: Grid, target: Grid) -> NDArray[np.float32]:
    """Trilinear interpolation in world coordinates, for continuous maps; 0 outside.

    Parameters
    ----------
    data : array, shape of the source grid
        Values that are not finite count as 0, so that a background of NaN does not spread.
    source, target : Grid

    Returns
    -------
    array, shape of the target grid, float32
    """
    from scipy.ndimage import affine_transform

    values = np.nan_to_num(np.asarray(data, dtype=np.float32), nan=0, posinf=0, neginf=0)
    if source.same_as(target):
        return values
    matrix = voxel_map(source, target)
    return affine_transform(
        values,
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=target.shape,
        order=1,
        mode="grid-constant",
        cval=0.0,
    )


def centre_of_mass(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64] | None:
    """World position (mm, shape (3,)) of a mask's centre of mass; None when it is empty."""
    voxels = np.argwhere(mask)
    if len(voxels) == 0:
        return None
    return grid.affine[:3, :3] @ voxels.mean(axis=0) + grid.affine[:3, 3]


def count_outside(mask: NDArray[np.bool_], source: Grid, target: Grid) -> int:
    """Count the voxels of a mask whose centres lie outside a grid's field of view."""
    matrix = voxel_map(target.canonical, source)
    index = round_indices(np.argwhere(mask) @ matrix[:3, :3].T + matrix[:3, 3])
    outside = (index < 0) | (index >= target.canonical.shape)
    return int(np.count_nonzero(outside.any(axis=1)))
