"""Lesions on other grids and in other spaces, and the account of what that did to them.

Nearest neighbour neither grows nor shrinks lesions on average, as linear interpolation with a
threshold of a half does (by 5 to 10 % of 10 ml between grids of 2 and 3 mm). A single lesion of
few voxels may still lose or win much, which is put right here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.resampling import (
    centre_of_mass,
    resample_nearest,
    round_indices,
    to_canonical,
)
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.core.transforms import (
    POINTS_AT_A_TIME,
    PointMap,
    candidate_voxels,
    nearest_values,
    source_indices,
)

# The volume of a lesion of this size in ml, or larger, changes by this share at most. Below, the
# volume is that of a few voxels, and nothing but a finer grid can hold it.
GUARDED_ML, MOST_CHANGE = 1.0, 0.04
# That holds for voxels of up to 3 mm; on coarser grids nearest neighbour is left as it is.
COARSEST_ML = 0.03
# A first look at the volume, voxel by voxel, is not more exact than this.
_ROUGHNESS = 0.015
# Points per axis at which a voxel's share of lesion is taken.
_POINTS_PER_AXIS = (3, 6)


@dataclass(frozen=True)
class LesionResampling:
    """What a change of grid did to a lesion.

    Parameters
    ----------
    voxels_before, voxels_after : int
        Lesion voxels on the mask's own grid and on the target grid.
    volume_ml_before, volume_ml_after : float
        Volume in ml.
    centre_shift_mm : float or None
        Distance in mm between the centres of mass; None for an empty mask. After a warp it is
        measured in the space that the lesion comes from: the result is taken back there, every
        voxel with the volume that it has there, so that only what sampling did is counted.
    kept_by_centre : bool
        The lesion would have vanished; the target voxel that holds its centre of mass was kept.
    voxels_adjusted : int
        Voxels added to or taken from the result of nearest neighbour, so that the lesion keeps
        its volume (see :func:`warp_mask`).
    """

    voxels_before: int
    voxels_after: int
    volume_ml_before: float
    volume_ml_after: float
    centre_shift_mm: float | None
    kept_by_centre: bool
    voxels_adjusted: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a sidecar, under BIDS-style keys (``VoxelsBefore``, ...)."""
        names = {"ml": "ML", "mm": "MM"}
        return {
            "".join(names.get(word, word.capitalize()) for word in key.split("_")): value
            for key, value in asdict(self).items()
        }


def resample_mask(
    mask: NDArray[np.bool_], source: Grid, target: Grid
) -> tuple[NDArray[np.bool_], LesionResampling]:
    """Bring a binary mask to another grid of its space; see :func:`warp_mask`.

    Parameters
    ----------
    mask : array of bool, shape of the source grid
    source, target : Grid

    Returns
    -------
    resampled : array of bool, shape of the target grid
    accounting : LesionResampling
    """
    resampled = resample_nearest(mask, source, target, fill=0)
    before = centre_of_mass(mask, source)
    kept = keep_centre(resampled, target, before)
    adjusted = 0
    if before is not None:
        change = resampled.sum() * target.voxel_volume_ml / (mask.sum() * source.voxel_volume_ml)
        if _is_guarded(mask, source, target, change):
            adjusted = _keep_volume(resampled, mask, source, target, PointMap())
    after = centre_of_mass(resampled, target)
    shift = None
    if before is not None and after is not None:
        shift = float(np.linalg.norm(after - before))
    return resampled, _account(mask, source, resampled, target, shift, kept, adjusted)


def warp_mask(
    mask: NDArray[np.bool_], source: Grid, target: Grid, point_map: PointMap
) -> tuple[NDArray[np.bool_], LesionResampling]:
    """Bring a binary mask through a transform without ever losing a lesion to sampling.

    Nearest neighbour, as :func:`lacuna_nipype.core.transforms.warp_labels`, with two exceptions.
    A non-empty lesion of which no voxel is left keeps the target voxel that contains its centre
    of mass, provided that the centre lies in the target's field of view. And where a lesion of
    1 ml or more, on voxels of 3 mm or less, would change its volume by more than 4 % beyond what
    the transform itself does, it becomes the voxels that it covers most, so many that their
    volume is right.

    Parameters
    ----------
    mask : array of bool, shape of the source grid
    source, target : Grid
    point_map : PointMap
        From points of the target to points of the source.

    Returns
    -------
    warped : array of bool, shape of the target grid
    accounting : LesionResampling
    """
    values, canonical = to_canonical(mask, source)
    warped = np.zeros(target.shape, dtype=bool)
    centre = centre_of_mass(mask, source)
    kept, shift, adjusted = False, None, 0
    if centre is not None:
        # Only pieces of the target whose image, bounded from outside, meets the lesion's box.
        for index in candidate_voxels(values, canonical, target, point_map):
            coordinates = source_indices(index, canonical, target, point_map)
            warped[tuple(index.T)] = nearest_values(values, coordinates, 0)
        if not warped.any():
            kept = keep_centre(warped, target, point_map.inverse_at(centre))
        if warped.any():
            place, volume = _back_in_source(warped, target, point_map)
            change = volume / 1000 / (mask.sum() * source.voxel_volume_ml)
            if _is_guarded(mask, source, target, change):
                adjusted = _keep_volume(warped, mask, source, target, point_map)
                place, _ = _back_in_source(warped, target, point_map)
            shift = float(np.linalg.norm(place - centre))
    return warped, _account(mask, source, warped, target, shift, kept, adjusted)


def _is_guarded(mask: NDArray[np.bool_], source: Grid, target: Grid, change: float) -> bool:
    """Whether a lesion whose volume is multiplied by some number has to be put right."""
    large = np.count_nonzero(mask) * source.voxel_volume_ml >= GUARDED_ML
    fine = target.voxel_volume_ml <= COARSEST_ML
    return bool(large and fine and abs(change - 1) > MOST_CHANGE - _ROUGHNESS)


def _keep_volume(
    resampled: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    source: Grid,
    target: Grid,
    point_map: PointMap,
) -> int:
    """Make a lesion the voxels that it covers most; the number of voxels that changed.

    What a transform or the border of the field of view does to the volume is left: the sum of
    the shares that the lesion has in the target's voxels is what its volume should be.
    """
    index, share = _coverage(mask, source, target, point_map)
    if len(index) == 0:
        return 0
    n_expected = share.sum()
    if abs(np.count_nonzero(resampled) - n_expected) <= MOST_CHANGE * n_expected:
        return 0
    # The decision must not hang on the order of storage, so ties go by the place in the world.
    position = index @ target.affine[:3, :3].T
    nearest = resampled[tuple(index.T)]
    order = np.lexsort((*np.round(position, 6).T, ~nearest, -np.round(share, 9)))
    chosen = index[order[: max(1, round(n_expected))]]
    adjusted = np.zeros_like(resampled)
    adjusted[tuple(chosen.T)] = True
    n_changed = int(np.count_nonzero(adjusted != resampled))
    resampled[...] = adjusted
    return n_changed


def _coverage(
    mask: NDArray[np.bool_], source: Grid, target: Grid, point_map: PointMap
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Target voxels, shape (n, 3), that a lesion has a share in, and their shares."""
    values, canonical = to_canonical(mask, source)
    finest = 2 * target.voxel_sizes.max() / source.voxel_sizes.min()
    n_points = int(np.clip(np.ceil(finest), *_POINTS_PER_AXIS))
    steps = (np.arange(n_points) + 0.5) / n_points - 0.5
    offsets = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    at_a_time = max(1, POINTS_AT_A_TIME // len(offsets))
    found, shares = [], []
    # Twice the half diagonal of a voxel: transforms stretch.
    margin = float(np.linalg.norm(target.voxel_sizes))
    for block in candidate_voxels(values, canonical, target, point_map, margin):
        for start in range(0, len(block), at_a_time):
            index = block[start : start + at_a_time]
            points = (index[:, np.newaxis] + offsets).reshape(-1, 3)
            hit = nearest_values(values, source_indices(points, canonical, target, point_map), 0)
            share = hit.reshape(len(index), -1).mean(axis=1)
            found.append(index[share > 0])
            shares.append(share[share > 0])
    return np.concatenate(found), np.concatenate(shares)


def _back_in_source(
    warped: NDArray[np.bool_], target: Grid, point_map: PointMap
) -> tuple[NDArray[np.float64], float]:
    """Centre of mass (mm) and volume (mm3) of a result where it came from."""
    index = np.argwhere(warped)
    total, weight = np.zeros(3), 0.0
    for start in range(0, len(index), POINTS_AT_A_TIME):
        block = index[start : start + POINTS_AT_A_TIME].astype(np.float64)
        points = block @ target.affine[:3, :3].T + target.affine[:3, 3]
        half = target.affine[:3, :3].T / 2
        edges = [point_map(points + step) - point_map(points - step) for step in half]
        volumes = np.abs(np.linalg.det(np.stack(edges, axis=-1)))
        total += volumes @ point_map(points)
        weight += float(volumes.sum())
    return total / weight, weight


def keep_centre(
    resampled: NDArray[np.bool_], target: Grid, centre: NDArray[np.floating[Any]] | None
) -> bool:
    """Put a lesion of which no voxel is left back where its centre of mass was.

    Parameters
    ----------
    resampled : array of bool, shape of the grid
        Changed in place where it is empty and the centre lies in the field of view.
    target : Grid
    centre : array, shape (3,), or None
        World position, mm; None for a lesion that was empty from the start.

    Returns
    -------
    bool
        Whether a voxel was put back.
    """
    if centre is None or resampled.any():
        return False
    # In RAS order, so that a centre midway between two voxels goes the same way in the world.
    view, ras = to_canonical(resampled, target)
    position = np.linalg.inv(ras.affine) @ np.append(centre, 1.0)
    index = round_indices(position[:3])
    if not np.all((index >= 0) & (index < ras.shape)):
        return False
    view[tuple(index)] = True
    return True


def _account(
    mask: NDArray[np.bool_],
    source: Grid,
    resampled: NDArray[np.bool_],
    target: Grid,
    shift: float | None,
    kept: bool,
    adjusted: int,
) -> LesionResampling:
    """Count a lesion before and after; the rest as in :class:`LesionResampling`."""
    voxels_before, voxels_after = int(np.count_nonzero(mask)), int(np.count_nonzero(resampled))
    return LesionResampling(
        voxels_before=voxels_before,
        voxels_after=voxels_after,
        volume_ml_before=voxels_before * source.voxel_volume_ml,
        volume_ml_after=voxels_after * target.voxel_volume_ml,
        centre_shift_mm=shift,
        kept_by_centre=kept,
        voxels_adjusted=adjusted,
    )
