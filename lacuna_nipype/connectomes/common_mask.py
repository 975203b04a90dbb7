"""The voxels that are brain in every subject, as the mask of a connectome."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.build import read_brain_mask
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.images import save_image
from lacuna_nipype.core.spaces import Grid


def write_common_mask(masks: Sequence[Path], target: Path, *, overwrite: bool = False) -> Path:
    """Intersect brain masks.

    Parameters
    ----------
    masks : sequence of Path
        Binary images of the same voxels, whatever the order of their axes.
    target : Path
        Image to write, on the grid of the first mask.
    overwrite : bool, optional
        Replace a target that holds another mask; one that holds the same is kept.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    ValidationError
        A mask is none; no voxel is in all of them; or the target is there and is another.
    SpatialMismatchError
        A mask has other voxels than the first.
    """
    grid, voxels = read_brain_mask(masks[0])
    common = _volume(grid, grid, voxels)
    for path in masks[1:]:
        own, voxels = read_brain_mask(path)
        if not own.same_lattice(grid):
            raise SpatialMismatchError(
                f"Brain mask {path} ({own.describe()}) is not on the grid of {masks[0]} "
                f"({grid.describe()}); choose images of one resolution, or give --mask."
            )
        common &= _volume(grid, own, voxels)
    if not common.any():
        raise ValidationError(
            f"No voxel is in all {len(masks)} brain masks, {masks[0]} the first of them; check "
            "them, or give --mask."
        )
    if target.exists():
        present, voxels = read_brain_mask(target)
        if present.same_as(grid) and np.array_equal(_volume(grid, present, voxels), common):
            return target
        if not overwrite:
            raise ValidationError(
                f"{target} is there already and was made from other brain masks; choose another "
                "folder, or add --overwrite to replace it."
            )
    return save_image(target, common, grid.affine, np.uint8)


def _volume(grid: Grid, own: Grid, voxels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark voxels of one order of axes in an array of another."""
    to_grid = np.linalg.inv(grid.affine) @ own.affine
    placed = np.rint(to_grid[:3, :3] @ voxels + to_grid[:3, 3:]).astype(np.intp)
    volume = np.zeros(grid.shape, dtype=np.bool_)
    volume[tuple(placed)] = True
    return volume
