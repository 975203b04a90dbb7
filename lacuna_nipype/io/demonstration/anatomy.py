"""The MNI anatomy that nilearn ships, on the grids of the demonstration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lacuna_nipype.core.resampling import resample_linear, resample_nearest
from lacuna_nipype.core.spaces import Grid


def _grid(shape: tuple[int, int, int], first: tuple[float, float, float], size: float) -> Grid:
    """Make a grid from its first voxel (mm); a first voxel on the right means LAS."""
    affine = np.diag([-size if first[0] > 0 else size, size, size, 1.0])
    affine[:3, 3] = first
    return Grid.make(shape, affine)


LESION_GRIDS = {
    "LAS": _grid((182, 218, 182), (90, -126, -72), 1.0),
    "RAS": _grid((182, 218, 182), (-91, -126, -72), 1.0),
}
"""The 1 mm grid of MNI152NLin6Asym, as FSL stores it and as others do."""

ATLAS_GRID = _grid((91, 109, 91), (-90, -126, -72), 2.0)
FUNCTIONAL_GRID = _grid((46, 55, 46), (90, -126, -72), 4.0)


def world_coordinates(grid: Grid, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give the coordinates of a mask's voxels.

    Parameters
    ----------
    grid : Grid
        Grid of the mask.
    mask : array of bool
        Voxels wanted.

    Returns
    -------
    array, shape (n_voxels, 3)
        World coordinates in mm, voxels in C order.
    """
    return np.einsum("ij,nj->ni", grid.affine[:3, :3], np.argwhere(mask)) + grid.affine[:3, 3]


@dataclass(frozen=True)
class Anatomy:
    """Tissue on one grid.

    Parameters
    ----------
    grid : Grid
        The grid.
    brain : array of bool
        Brain mask.
    grey, white : array of float32
        Probability of grey and of white matter.
    """

    grid: Grid
    brain: NDArray[np.bool_]
    grey: NDArray[np.float32]
    white: NDArray[np.float32]

    def lesionable(self) -> NDArray[np.bool_]:
        """Give the voxels of brain tissue, without cerebrospinal fluid."""
        return np.asarray(self.brain & (self.grey + self.white > 0.5))

    def cortex(self) -> NDArray[np.bool_]:
        """Give roughly the cerebral cortex: no cerebellum, brain stem or deep nuclei."""
        x, y, z = self._coordinates()
        tentorium = -13 + 0.14 * (y + 50) - 0.20 * (np.abs(x) - 20).clip(0)
        cerebellum = (y < -36) & (z < tentorium)
        stem = (np.abs(x) < 16) & (y < 0) & (y >= -42) & (z < 2)
        basal_ganglia = ((np.abs(x) - 18) / 15) ** 2 + ((y + 6) / 26) ** 2 + (
            (z - 4) / 16
        ) ** 2 < 1
        thalamus = (np.abs(x) < 20) & (y > -36) & (y < 22) & (z > -4) & (z < 20)
        caudate = (np.abs(x) > 11) & (np.abs(x) < 26) & (y > -44) & (y < 22) & (z > 0) & (z < 28)
        nuclei = basal_ganglia | thalamus | caudate
        grey = self.brain & (self.grey > 0.45) & (np.abs(x) > 0)
        pieces, _ = ndimage.label(grey & ~cerebellum & ~stem & ~nuclei)
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        return np.asarray(sizes[pieces] > 200)

    def deep_white(self, depth: float = 4.0) -> NDArray[np.bool_]:
        """Give cerebral white matter at least so deep (mm), away from the midline."""
        x, y, z = self._coordinates()
        inside = ndimage.distance_transform_edt(
            self.white > 0.5, sampling=np.abs(np.diag(self.grid.affine)[:3])
        )
        cerebrum = (z > -14) | ((y > -30) & (z > -30) & (np.abs(x) > 24))
        return np.asarray((inside >= depth) & (np.abs(x) > 12) & cerebrum)

    def callosum(self) -> NDArray[np.bool_]:
        """Give the corpus callosum where it crosses the midline."""
        x, y, z = self._coordinates()
        arch = (y > -45) & (y < 36) & (z > -4) & (z < 36)
        components, _ = ndimage.label((self.white > 0.5) & (np.abs(x) < 2) & arch)
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        return np.asarray(components == sizes.argmax())

    def _coordinates(self) -> list[NDArray[np.float64]]:
        """Give x, y and z in mm, broadcastable to the grid; its axes are the world's."""
        axes = [
            self.grid.affine[axis, axis] * np.arange(n) + self.grid.affine[axis, 3]
            for axis, n in enumerate(self.grid.shape)
        ]
        return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def load_anatomy(grid: Grid) -> Anatomy:
    """Bring nilearn's MNI anatomy (local files) onto a grid, in world coordinates.

    Parameters
    ----------
    grid : Grid
        The grid wanted.

    Returns
    -------
    Anatomy
        Tissue on that grid: the mask by nearest neighbour, probabilities by linear
        interpolation.
    """
    from nilearn import datasets

    brain, mask_grid = _volume(datasets.load_mni152_brain_mask(resolution=1))
    return Anatomy(
        grid=grid,
        brain=resample_nearest(brain, mask_grid, grid) > 0,
        grey=resample_linear(*_volume(datasets.load_mni152_gm_template(resolution=1)), grid),
        white=resample_linear(*_volume(datasets.load_mni152_wm_template(resolution=1)), grid),
    )


def _volume(image: Any) -> tuple[NDArray[Any], Grid]:
    """Give an image's values and grid."""
    return np.asarray(image.dataobj), Grid.make(image.shape, image.affine)
