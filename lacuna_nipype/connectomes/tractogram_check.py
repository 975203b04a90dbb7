"""Is a tractogram where a brain is? A sample of its vertices against the MNI152 brain mask."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.tractogram import check_tck, sample_blocks
from lacuna_nipype.connectomes.tractogram_formats import iter_streamlines, tractogram_suffix
from lacuna_nipype.core.brain import load_brain_mask
from lacuna_nipype.core.exceptions import ValidationError

MAX_SHARE_OUTSIDE = 0.2
DILATION_MM = 4.0
# A brain whose x and y are mirrored is still mostly inside, because a brain is nearly symmetric:
# 9 to 17 % of the vertices leave it, where 0 % do unmirrored (whole ones and single bundles).
_MIRRORED_SHARE = 0.05
_MIRRORED_RATIO = 4.0
_N_BLOCKS, _BLOCK_BYTES = 32, 1 << 20
_LPS = np.array([-1, -1, 1], np.float32)


def share_outside_brain(
    tractogram: str | os.PathLike[str] | Iterable[NDArray[np.float32]],
    *,
    n_blocks: int = _N_BLOCKS,
    block_bytes: int = _BLOCK_BYTES,
) -> float:
    """Measure which share of a tractogram's vertices is outside the brain.

    The brain is the mask of nilearn's MNI152 template, dilated by 4 mm, which covers what the MNI
    templates differ by; vertices are looked up in its nearest voxel (2 mm).

    Parameters
    ----------
    tractogram : path-like or iterable of numpy.ndarray
        A file of any format, or points in scanner space (mm, RAS+), shape (n, 3) each; rows
        that are not finite (separators) are not counted.
    n_blocks, block_bytes : int, optional
        Size of the sample: at most ``n_blocks * block_bytes`` bytes are read, from evenly spaced
        blocks of a .tck file, or from the beginning of a file of another format. All points of
        an iterable are used.

    Returns
    -------
    float
        Share of the sampled vertices, 0 to 1.

    Raises
    ------
    ValidationError
        The file cannot be read, or there are no vertices.
    """
    name, blocks = _blocks(tractogram, n_blocks, block_bytes)
    return _count_outside(name, blocks).share


def check_placement(path: str | os.PathLike[str]) -> float:
    """Refuse a tractogram that is not where a brain is.

    Voxel coordinates and other spaces put most vertices outside. Mirrored axes (LPS instead of
    RAS) put few outside, and are recognised because the vertices fit better when x and y are
    mirrored back. A swap of left and right alone cannot be seen, as a brain is symmetric; neither
    can a mirrored bundle that fits at both places.

    Parameters
    ----------
    path : path-like
        File of any format.

    Returns
    -------
    float
        Share of vertices outside the brain, as :func:`share_outside_brain`.

    Raises
    ------
    ValidationError
        As there; or more than 20 % of the vertices are outside the brain; or more than 5 % are,
        but less than a quarter of that, and at most 5 %, with x and y mirrored.
    """
    name, blocks = _blocks(path, _N_BLOCKS, _BLOCK_BYTES)
    found = _count_outside(name, blocks)
    percent = f"{100 * found.share:.0f} % of the vertices of {name} are outside the brain"
    if found.fits_mirrored:
        raise ValidationError(
            f"{percent} but only {100 * found.mirrored:.0f} % with x and y mirrored, so it seems "
            "to be in LPS instead of RAS coordinates; export it again in RAS mm."
        )
    if found.share > MAX_SHARE_OUTSIDE:
        raise ValidationError(
            f"{percent}, so its coordinates are those of voxels or of another space than MNI "
            f"({found.extent}); export it again in RAS mm of an MNI152 template."
        )
    return found.share


@dataclass(frozen=True)
class _Outside:
    """Vertices outside the brain: as they are, and with x and y mirrored."""

    share: float
    mirrored: float
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def fits_mirrored(self) -> bool:
        """Whether mirrored axes explain what is outside."""
        return self.mirrored <= _MIRRORED_SHARE < self.share and (
            self.mirrored * _MIRRORED_RATIO < self.share
        )

    @property
    def extent(self) -> str:
        """Range of the coordinates, for messages."""
        pairs = zip("xyz", self.low, self.high, strict=True)
        return ", ".join(f"{axis} {low:.0f} to {high:.0f}" for axis, low, high in pairs)


def _blocks(
    tractogram: str | os.PathLike[str] | Iterable[NDArray[np.float32]],
    n_blocks: int,
    block_bytes: int,
) -> tuple[str, Iterable[NDArray[np.float32]]]:
    """Name for messages, and arrays of points."""
    if not isinstance(tractogram, (str, os.PathLike)):
        return "the tractogram", tractogram
    path = Path(tractogram)
    if tractogram_suffix(path) == ".tck":
        return str(path), sample_blocks(
            check_tck(path), n_blocks=n_blocks, block_bytes=block_bytes
        )
    return str(path), _beginning(iter_streamlines(path), n_blocks * block_bytes)


def _beginning(
    streamlines: Iterator[NDArray[np.float32]], n_bytes: int
) -> Iterator[NDArray[np.float32]]:
    """Join the first streamlines into larger arrays, which are looked up faster."""
    n_read, parts = 0, [np.empty((0, 3), np.float32)]
    for streamline in streamlines:
        n_read += streamline.nbytes
        parts.append(streamline)
        if n_read >= n_bytes:
            break
        if len(parts) == 1024:
            yield np.concatenate(parts)
            parts = parts[:1]
    yield np.concatenate(parts)


def _count_outside(name: str, blocks: Iterable[NDArray[np.float32]]) -> _Outside:
    mask, world_to_voxel = _brain()
    n_points = n_outside = n_mirrored = 0
    low, high = np.full(3, np.inf, np.float32), np.full(3, -np.inf, np.float32)
    for block in blocks:
        points = block[np.isfinite(block).all(axis=1)]
        if not len(points):
            continue
        n_points += len(points)
        n_outside += len(points) - _count_inside(mask, world_to_voxel, points)
        n_mirrored += len(points) - _count_inside(mask, world_to_voxel, points * _LPS)
        low, high = np.minimum(low, points.min(axis=0)), np.maximum(high, points.max(axis=0))
    if not n_points:
        raise ValidationError(f"{name} has no vertices; use a tractogram that does.")
    return _Outside(n_outside / n_points, n_mirrored / n_points, low, high)


def _count_inside(
    mask: NDArray[np.bool_], world_to_voxel: NDArray[np.float64], points: NDArray[np.float32]
) -> int:
    voxels = np.rint(points @ world_to_voxel[:3, :3].T + world_to_voxel[:3, 3])
    # Compared as floats: coordinates of any size are allowed.
    within = ((voxels >= 0) & (voxels < mask.shape)).all(axis=1)
    x, y, z = voxels[within].astype(np.intp).T
    return int(np.count_nonzero(mask[x, y, z]))


@lru_cache(maxsize=1)
def _brain() -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Dilated mask on a 2 mm grid, and the matrix from mm to its voxels."""
    from scipy.ndimage import distance_transform_edt

    whole, grid = load_brain_mask()
    margin = int(np.ceil(DILATION_MM / 2)) + 1
    brain = np.pad(whole[::2, ::2, ::2], margin)
    to_world = grid.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    to_world[:3, 3] -= to_world[:3, :3] @ np.full(3, margin)
    mask = distance_transform_edt(~brain, sampling=2.0) <= DILATION_MM
    return np.asarray(mask, bool), np.asarray(np.linalg.inv(to_world), np.float64)
