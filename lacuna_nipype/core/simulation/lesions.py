"""Irregular blobs that look like lesions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SMOOTHNESS_MM = 3.0


def simulate_lesion(
    tissue: NDArray[np.bool_],
    affine: NDArray[np.floating],
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    volume_ml: float,
    rng: np.random.Generator,
    *,
    irregularity: float = 0.35,
) -> NDArray[np.bool_]:
    """Grow an irregular lesion around a point, inside the tissue.

    Smoothed noise is added to the distance from an ellipsoid's centre; the voxels with the lowest
    sums make the lesion, of which the largest component is kept. With the same random numbers and
    radii, a smaller lesion lies inside a larger one: one lesion can be followed over time.

    Parameters
    ----------
    tissue : array of bool, shape (x, y, z)
        Where the lesion may be; also bounded to the hemisphere of the centre.
    affine : array, shape (4, 4)
        Voxel to world (mm, RAS).
    centre : tuple of float
        Centre in mm.
    radii : tuple of float
        Semi-axes of the ellipsoid along x, y and z, in mm. They give the shape and the reach.
    volume_ml : float
        Volume wanted. The result is a little smaller, by the pieces that do not connect.
    rng : numpy.random.Generator
        Source of the noise.
    irregularity : float
        Standard deviation of the noise, as a fraction of the ellipsoid's radius; 0 is smooth.

    Returns
    -------
    array of bool, shape (x, y, z)
        The lesion, a single connected component.

    Raises
    ------
    ValueError
        The tissue near the centre cannot hold the volume.
    """
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    n_voxels = max(1, round(volume_ml / voxel_ml))
    middle, scale = np.asarray(centre, float), np.asarray(radii, float)
    box, world = _neighbourhood(tissue.shape, affine, middle, 2.0 * scale)
    distance = np.sqrt(np.sum(((world - middle) / scale) ** 2, axis=-1))
    sigma = SMOOTHNESS_MM / np.linalg.norm(affine[:3, :3], axis=0)
    noise = ndimage.gaussian_filter(rng.standard_normal(distance.shape), sigma)
    score = distance + irregularity * noise / noise.std()
    allowed = tissue[box] & (world[..., 0] * middle[0] > 0)
    if np.count_nonzero(allowed) < n_voxels:
        raise ValueError(f"No room for {volume_ml} ml of lesion around {centre} mm.")
    score = np.where(allowed, score, np.inf)
    threshold = np.partition(score, n_voxels - 1, axis=None)[n_voxels - 1]
    lesion = np.zeros(tissue.shape, dtype=bool)
    lesion[box] = _largest_component(score <= threshold)
    return lesion


def _neighbourhood(
    shape: tuple[int, ...],
    affine: NDArray[np.floating],
    centre: NDArray[np.float64],
    reach: NDArray[np.float64],
) -> tuple[tuple[slice, ...], NDArray[np.float64]]:
    """Give the voxels within reach of a point: their slices and their world coordinates."""
    signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
    corners = centre + reach * signs
    inverse = np.linalg.inv(affine)
    voxels = np.einsum("ij,nj->ni", inverse[:3, :3], corners) + inverse[:3, 3]
    low = np.clip(np.floor(voxels.min(axis=0)).astype(int), 0, shape)
    high = np.clip(np.ceil(voxels.max(axis=0)).astype(int) + 1, 0, shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    grid = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), axis=-1)
    return box, np.einsum("ij,xyzj->xyzi", affine[:3, :3], grid) + affine[:3, 3]


def _largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest face-connected component."""
    components, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return np.asarray(components == sizes.argmax())
