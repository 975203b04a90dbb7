"""Which streamlines a mask can hit, told from a coarse lattice of cells.

A streamline index knows the cells in which each streamline has a point. A mask on any grid is
compared with the cells first: streamlines with a point in a cell that lies wholly inside the mask
are hit, those without a point in any cell that touches it are not, and only what is left has to
be tested point by point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.mrtrix_grid import MrtrixGrid

CELL_SIZE_MM = 2.0
# Points are looked up in single precision, which is off by less than this anywhere in a head.
MARGIN_MM = 0.01
# Points are said to lie in an eighth of a cell where they are farther from its border than this.
# Half of it is several times the error of single precision within a field of view.
OCTANT_MARGIN_MM = 0.002
OUTSIDE, TOUCHED, INSIDE = 0, 1, 2


@dataclass(frozen=True, eq=False)
class CellLattice:
    """Cubes along the axes of world space.

    Parameters
    ----------
    origin : array, shape (3,), float64
        Lower corner, mm.
    shape : tuple of int
        Cells along x, y and z. One more, numbered ``n_cells``, stands for everywhere else.
    size : float
        Edge of a cell, mm.
    """

    origin: NDArray[np.float64]
    shape: tuple[int, int, int]
    size: float = CELL_SIZE_MM

    @property
    def n_cells(self) -> int:
        """Cells inside the lattice."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @classmethod
    def around(
        cls, grid: MrtrixGrid, size: float = CELL_SIZE_MM, phase: float = 0.0
    ) -> CellLattice:
        """Lattice that covers a grid's field of view; borders are at the phase (mm) and so on."""
        low, high = _bounds(grid)
        first = np.floor((low - phase) / size).astype(int)
        counts = np.ceil((high - phase) / size).astype(int) - first
        return cls(first * size + phase, (int(counts[0]), int(counts[1]), int(counts[2])), size)


@dataclass(frozen=True, eq=False)
class MaskCrop:
    """The part of a mask around its voxels, as tckedit keeps it.

    Parameters
    ----------
    grid : MrtrixGrid
        Of the crop.
    inside : array of bool, shape of the crop
    """

    grid: MrtrixGrid
    inside: NDArray[np.bool_]


def crop_mask(inside: NDArray[np.bool_], grid: MrtrixGrid) -> MaskCrop | None:
    """Cut a mask down to its voxels and one voxel more on each side.

    The crop's own transform, and not that of the whole image, is what tckedit rounds to single
    precision (MRtrix3, core/adapter/subset.h and src/dwi/tractography/roi.cpp).

    Parameters
    ----------
    inside : array of bool, shape of the grid
    grid : MrtrixGrid

    Returns
    -------
    MaskCrop or None
        None for a mask without a voxel.
    """
    bounds = [(0, n) for n in inside.shape]
    box = tuple(slice(low, high) for low, high in bounds)
    # The slowest axis in memory first: the next ones are looked at in what is left only.
    for axis in np.argsort([-abs(stride) for stride in inside.strides]):
        others = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(inside[box].any(axis=others))
        if not len(occupied):
            return None
        bounds[axis] = int(occupied[0]), int(occupied[-1]) + 1
        box = tuple(slice(low, high) for low, high in bounds)
    first = [max(low - 1, 0) for low, _ in bounds]
    stop = [min(high + 1, n) for (_, high), n in zip(bounds, inside.shape, strict=True)]
    box = tuple(slice(low, high) for low, high in zip(first, stop, strict=True))
    cropped = np.ascontiguousarray(inside[box])
    shape = (cropped.shape[0], cropped.shape[1], cropped.shape[2])
    return MaskCrop(grid.crop(np.array(first), shape), cropped)


def classify_cells(crop: MaskCrop, lattice: CellLattice, reach: float = 0.0) -> NDArray[np.uint8]:
    """Compare the cells of a lattice with a mask.

    Parameters
    ----------
    crop : MaskCrop
    lattice : CellLattice
    reach : float
        Touched are cells up to this far from the mask too, mm.

    Returns
    -------
    array, uint8, shape (n_cells + 1,)
        2: every point of the cell lies in a voxel of the mask; 1: some may; 0: none does. The
        last entry, for everywhere outside of the lattice, is 0 or 1. For an oblique mask some
        cells are 1 that could be told exactly.
    """
    status = np.zeros(lattice.n_cells + 1, dtype=np.uint8)
    low, high = _bounds(crop.grid)
    low, high = low - reach - MARGIN_MM, high + reach + MARGIN_MM
    end = lattice.origin + np.array(lattice.shape) * lattice.size
    if (low < lattice.origin).any() or (high > end).any():
        status[-1] = TOUCHED
    first = np.clip(np.floor((low - lattice.origin) / lattice.size), 0, lattice.shape).astype(int)
    stop = np.clip(np.ceil((high - lattice.origin) / lattice.size), 0, lattice.shape).astype(int)
    if (stop <= first).any():
        return status
    indices = np.stack(
        np.meshgrid(*[np.arange(a, b) for a, b in zip(first, stop, strict=True)], indexing="ij")
    ).reshape(3, -1)
    centres = lattice.origin[:, np.newaxis] + (indices + 0.5) * lattice.size
    sums = _summed_area(crop.inside)
    half = lattice.size / 2 + MARGIN_MM
    touched, _ = _count_in_boxes(crop.grid, sums, centres, half + reach)
    inside, volume = _count_in_boxes(crop.grid, sums, centres, half)
    found = np.where(inside == volume, INSIDE, np.where(touched > 0, TOUCHED, OUTSIDE))
    numbers = (indices[0] * lattice.shape[1] + indices[1]) * lattice.shape[2] + indices[2]
    status[numbers] = found
    return status


def classify_octants(
    crop: MaskCrop, lattice: CellLattice, status: NDArray[np.uint8], reach: float = 0.0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Compare the eighths of cells that touch a mask with it.

    Parameters
    ----------
    crop : MaskCrop
    lattice : CellLattice
    status : array, uint8, shape (n_cells + 1,)
        From :func:`classify_cells` with the same reach.
    reach : float
        As for :func:`classify_cells`.

    Returns
    -------
    touched, inside : array, uint8, shape (n_cells + 1,)
        One bit for each eighth (the upper half along x 1, y 2, z 4 is the number of the bit):
        whether a point there may lie in a voxel of the mask, and whether it must. Points nearer
        to a border of eighths than ``OCTANT_MARGIN_MM`` are left out of account. Only of cells
        whose status is 1; 0 elsewhere.
    """
    touched, inside = (np.zeros(lattice.n_cells + 1, dtype=np.uint8) for _ in range(2))
    cells = np.flatnonzero(status[:-1] == TOUCHED)
    index = np.stack(np.unravel_index(cells, lattice.shape))
    sums = _summed_area(crop.inside)
    # Of the margin, one half keeps points away from borders, the other is for single precision.
    half = lattice.size / 4 - OCTANT_MARGIN_MM / 2
    for octant in range(8):
        upper = np.array([octant & 1, octant >> 1 & 1, octant >> 2])[:, np.newaxis]
        centres = lattice.origin[:, np.newaxis] + (index + 0.25 + 0.5 * upper) * lattice.size
        hit, volume = _count_in_boxes(crop.grid, sums, centres, half)
        certain = hit == volume
        if reach:
            hit, _ = _count_in_boxes(crop.grid, sums, centres, half + reach + MARGIN_MM)
        touched[cells] |= ((hit > 0) << octant).astype(np.uint8)
        inside[cells] |= (certain << octant).astype(np.uint8)
    return touched, inside


def _bounds(grid: MrtrixGrid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest world coordinates of a grid's voxels, edges included."""
    corners = np.stack(
        np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape], indexing="ij"), axis=-1
    ).reshape(-1, 3)
    world = corners @ grid.voxel_to_world[:3, :3].T + grid.origin
    return world.min(axis=0), world.max(axis=0)


def _summed_area(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count voxels before each corner, shape + 1 along each axis."""
    sums = np.zeros(tuple(n + 1 for n in inside.shape), dtype=np.int64)
    sums[1:, 1:, 1:] = inside.cumsum(0, dtype=np.int64).cumsum(1).cumsum(2)
    return sums


def _count_in_boxes(
    grid: MrtrixGrid, sums: NDArray[np.int64], centres: NDArray[np.float64], half: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Voxels of the mask, and voxels at all, that boxes around world positions overlap."""
    matrix = grid.world_to_voxel
    place = matrix[:, :3] @ centres + matrix[:, 3:]
    extent = np.abs(matrix[:, :3]).sum(axis=1, keepdims=True) * half
    shape = np.array(grid.shape)[:, np.newaxis]
    first = np.floor(place - extent + 0.5)
    stop = np.floor(place + extent + 0.5) + 1
    volume = (stop - first).prod(axis=0)
    a = np.clip(first, 0, shape).astype(np.intp)
    b = np.clip(stop, 0, shape).astype(np.intp)
    counts = (
        sums[b[0], b[1], b[2]] - sums[a[0], b[1], b[2]]
        - sums[b[0], a[1], b[2]] - sums[b[0], b[1], a[2]]
        + sums[a[0], a[1], b[2]] + sums[a[0], b[1], a[2]]
        + sums[b[0], a[1], a[2]] - sums[a[0], a[1], a[2]]
    )  # fmt: skip
    return counts, volume
