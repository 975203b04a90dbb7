"""Regions as sparse weights over voxels, and what is computed with them.

A labelled atlas gives every voxel of a parcel the weight 1, a probabilistic one its probability;
all sums over regions are then one sparse product, whatever the kind or the number of regions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.lesion_resampling import resample_mask
from lacuna_nipype.core.resampling import (
    TIE_TOLERANCE,
    count_outside,
    nearest_voxels,
    resample_nearest,
)
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.core.transforms import PointMap, pull_coordinates

STATISTICS = ("mean", "sum", "median", "std", "percent", "volume")
# Weights that are widened to double precision at a time.
_WEIGHTS_AT_A_TIME = 4_000_000

# Beyond it, floats are not exact and integers of 64 bits overflow.
LARGEST_LABEL = 2**53


@dataclass(frozen=True, eq=False)
class Parcels:
    """Regions on a voxel grid.

    Parameters
    ----------
    grid : Grid
        Volume the regions are defined on.
    index : array, shape (n_regions,), int64
        Label in the image, or number of the volume (from 1) of a 4D atlas.
    names : tuple of str
        Unique, in the order of the rows.
    weights : sparse CSR array, shape (n_regions, n_voxels of the grid in C order), float32
        A region that has no voxel on this grid keeps an empty row.
    """

    grid: Grid
    index: NDArray[np.int64]
    names: tuple[str, ...]
    weights: sp.csr_array

    @property
    def totals(self) -> NDArray[np.float64]:
        """Sum of weights per region, shape (n_regions,): its voxels, for a labelled atlas."""
        return _product(self.weights, np.ones(self.weights.shape[1]))


def _product(weights: sp.csr_array, values: NDArray[Any]) -> NDArray[np.float64]:
    flat = np.asarray(values, dtype=np.float64).ravel()
    out = np.empty(weights.shape[0])
    for rows in _row_blocks(weights):
        out[rows] = weights[rows] @ flat
    return out


def _row_blocks(weights: sp.csr_array) -> Iterator[slice]:
    """Rows whose weights are few enough to be widened; a row is never split."""
    limits = np.arange(0, weights.nnz, _WEIGHTS_AT_A_TIME)[1:]
    edges = np.searchsorted(weights.indptr, limits)
    starts = np.unique(np.array([0, *edges, weights.shape[0]]))
    for first, last in itertools.pairwise(starts):
        yield slice(int(first), int(last))


def integer_labels(data: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Labels of an image as integers; NaN and everything at or below zero is background.

    Parameters
    ----------
    data : array
        Integers, or floats that hold whole numbers to within 1e-3.
    name : str
        How the message names the image.

    Returns
    -------
    array of int64, same shape

    Raises
    ------
    ValidationError
        The values are not whole numbers, infinite, or too large for a label.
    """
    if data.dtype.kind not in "biuf":
        raise ValidationError(f"{name} holds {data.dtype} values where labels are plain numbers.")
    if data.size and (data > LARGEST_LABEL).any():
        raise ValidationError(
            f"{name} has values above {LARGEST_LABEL}, which are the label of no parcel; write it "
            "again."
        )
    if data.dtype.kind == "f":
        values = np.where(np.isfinite(data), data, 0)
        rounded = np.rint(values)
        if not np.allclose(values, rounded, atol=1e-3, rtol=0):
            raise ValidationError(
                f"{name} is a 3D image with values that are not whole numbers; a labelled atlas "
                "holds one integer per parcel (a probabilistic one is 4D)."
            )
        data = rounded
    return np.maximum(data.astype(np.int64), 0)


def labelled_weights(labels: NDArray[np.int64], index: NDArray[np.int64]) -> sp.csr_array:
    """Sparse weights of a labelled image.

    Parameters
    ----------
    labels : array, shape of a grid
        0 is background. Labels that are not in the index are ignored.
    index : array, shape (n_regions,)
        Labels of the rows, in any order.

    Returns
    -------
    sparse CSR array, shape (n_regions, n_voxels), float32
    """
    flat = labels.ravel()
    voxels = np.flatnonzero(flat)
    order = np.argsort(index)
    position = np.minimum(np.searchsorted(index[order], flat[voxels]), len(index) - 1)
    rows = order[position]
    known = index[rows] == flat[voxels]
    rows, voxels = rows[known], voxels[known]
    ones = np.ones(len(rows), dtype=np.float32)
    return sp.csr_array((ones, (rows, voxels)), shape=(len(index), flat.size))


def nonzero_voxels(data: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Voxels of a map that are not zero, and their values.

    Parameters
    ----------
    data : array, three dimensions
        In any order of memory; no copy of it is made.

    Returns
    -------
    voxels : array of int, ascending
        Flat indices in C order.
    values : array, dtype of the map
    """
    if data.flags.c_contiguous:
        voxels = np.flatnonzero(data)
        return voxels, data.reshape(-1)[voxels]
    # Images are read in Fortran order: looked through as they lie, and put in order after.
    z, y, x = np.unravel_index(np.flatnonzero(data.T), data.T.shape)
    voxels = np.ravel_multi_index((x, y, z), data.shape)
    voxels.sort()
    return voxels, data[np.unravel_index(voxels, data.shape)]


@dataclass(frozen=True, eq=False)
class SparseSampler:
    """Trilinear interpolation of many maps that are zero nearly everywhere.

    Where the voxels of the target take their values is computed once for all maps; of each map
    only the voxels of the target between values that are not zero are interpolated.

    Parameters
    ----------
    shape : tuple of int
        Of the maps.
    coordinates : array, shape (3, n_voxels of the target in C order), float32
        Fractional indices of the maps.
    cells : array, shape (n_voxels of the target,), int32
        Which eight voxels of a map surround each place: a flat index into cells that start one
        voxel before the map; the number of cells for a place beyond all.
    keep_level : bool
        At the border, take the mean of the voxels there are, instead of zeros beyond it.
    """

    shape: tuple[int, int, int]
    coordinates: NDArray[np.float32]
    cells: NDArray[np.int32]
    keep_level: bool

    @classmethod
    def make(cls, source: Grid, target: Grid, point_map: PointMap | None = None) -> SparseSampler:
        """Prepare the way from a grid to another.

        Parameters
        ----------
        source, target : Grid
        point_map : PointMap, optional
            From points of the target's space to points of the source's, where these differ.
            Values at the border then follow
            :class:`lacuna_nipype.core.transforms.LinearSampler`, otherwise
            :func:`lacuna_nipype.core.resampling.resample_linear`.

        Returns
        -------
        SparseSampler
        """
        coordinates = pull_coordinates(source, target, point_map or PointMap())
        n_cells = [n + 1 for n in source.shape]
        cells = np.zeros(coordinates.shape[1], dtype=np.int32)
        beyond = np.zeros(coordinates.shape[1], dtype=bool)
        for places, n in zip(coordinates, n_cells, strict=True):
            cell = np.floor(places)
            cell += 1
            beyond |= ~((cell >= 0) & (cell < n))
            cell[beyond] = 0
            cells *= n
            cells += cell.astype(np.int32)
        cells[beyond] = int(np.prod(n_cells))
        return cls(source.shape, coordinates, cells, point_map is not None)

    def __call__(
        self, data: NDArray[Any], voxels: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Interpolate a map.

        Parameters
        ----------
        data : array, shape of the maps
            Finite numbers.
        voxels : array of int
            Flat indices, in C order, of those that are not zero.

        Returns
        -------
        voxels : array of int, ascending
            Flat indices into the target of values that are not zero.
        values : array of float32
        """
        from scipy.ndimage import map_coordinates

        touched = np.flatnonzero(self._filled_cells(voxels)[self.cells])
        places = self.coordinates[:, touched]
        # The sums in double precision, so that a constant stays what it is.
        values = map_coordinates(
            data, places, output=np.float64, order=1, mode="grid-constant", cval=0.0
        )
        if self.keep_level:
            size = np.array(self.shape)[:, np.newaxis]
            inside = np.minimum(np.minimum(1, 1 + places), size - places)
            weight = np.prod(np.maximum(inside, 0), axis=0, dtype=np.float64)
            known = weight >= 0.5 - TIE_TOLERANCE
            values = np.where(known, values / np.where(known, weight, 1), 0)
        values = values.astype(np.float32)
        filled = values != 0
        return touched[filled], values[filled]

    def _filled_cells(self, voxels: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Which cells have a corner that is not zero; a last one, for what is beyond, has none."""
        padded = tuple(n + 2 for n in self.shape)
        corners = np.zeros(padded, dtype=bool)
        x, y, z = np.unravel_index(voxels, self.shape)
        corners.reshape(-1)[((x + 1) * padded[1] + y + 1) * padded[2] + z + 1] = True
        corners = corners[1:] | corners[:-1]
        corners = corners[:, 1:] | corners[:, :-1]
        corners = corners[:, :, 1:] | corners[:, :, :-1]
        return np.append(corners.reshape(-1), False)


def aggregate(
    parcels: Parcels,
    values: NDArray[Any],
    valid: NDArray[np.bool_],
    statistic: str = "mean",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Summarise a map over regions.

    Parameters
    ----------
    parcels : Parcels
    values : array, shape of the grid
        Continuous map.
    valid : array of bool, shape of the grid
        Voxels at which the map means something; values that are not finite are invalid too.
        Voxels outside never enter, so they cannot dilute a mean.
    statistic : {"mean", "sum", "median", "std", "percent", "volume"}
        Weighted by the region's weights, except the median, which is over voxels of non-zero
        weight. ``std`` is of the population (ddof = 0), ``percent`` the share of valid weight
        on voxels that are not zero, ``volume`` that weight in ml.

    Returns
    -------
    result : array, shape (n_regions,)
        NaN for a region without a valid voxel.
    coverage : array, shape (n_regions,)
        Share (0 to 1) of the region's weight that is valid; NaN for a region without weight.

    Raises
    ------
    ValidationError
        The statistic is unknown, or shapes disagree.
    """
    if statistic not in STATISTICS:
        raise ValidationError(f"Unknown statistic {statistic!r}; one of {', '.join(STATISTICS)}.")
    if values.shape != parcels.grid.shape or valid.shape != parcels.grid.shape:
        raise ValidationError(
            f"A map of shape {values.shape} cannot be summarised over parcels of shape "
            f"{parcels.grid.shape}; resample one to the other's grid."
        )
    # One copy, whatever the order of memory, and changed in place: maps are large.
    flat = np.array(values, dtype=np.float64, order="C").reshape(-1)
    usable = np.isfinite(flat)
    usable &= valid.reshape(-1)
    flat[~usable] = 0.0
    weight = _product(parcels.weights, usable)
    totals = parcels.totals
    present = weight > 0
    divisor = np.where(present, weight, 1.0)
    total = _product(parcels.weights, flat)
    mean = total / divisor
    if statistic == "mean":
        result = mean
    elif statistic == "sum":
        result = total
    elif statistic == "std":
        result = np.sqrt(_squared_deviations(parcels.weights, flat, usable, mean) / divisor)
    elif statistic == "median":
        result = _medians(parcels.weights, flat, usable)
    else:
        nonzero = _product(parcels.weights, usable & (flat != 0))
        result = (
            100.0 * nonzero / divisor
            if statistic == "percent"
            else nonzero * parcels.grid.voxel_volume_ml
        )
    coverage = np.where(totals > 0, weight / np.where(totals > 0, totals, 1.0), np.nan)
    return np.where(present, result, np.nan), coverage


def _squared_deviations(
    weights: sp.csr_array,
    flat: NDArray[np.float64],
    usable: NDArray[np.bool_],
    mean: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Weighted sum of squared differences from each region's mean."""
    result = np.zeros(weights.shape[0])
    for rows in _row_blocks(weights):
        block = weights[rows]
        row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
        deviation = (flat[block.indices] - mean[rows][row]) ** 2
        deviation *= block.data * usable[block.indices]
        result[rows] = np.bincount(row, deviation, minlength=block.shape[0])
    return result


def _medians(
    weights: sp.csr_array, flat: NDArray[np.float64], usable: NDArray[np.bool_]
) -> NDArray[np.float64]:
    result = np.full(weights.shape[0], np.nan)
    for row in range(weights.shape[0]):
        voxels = weights.indices[weights.indptr[row] : weights.indptr[row + 1]]
        voxels = voxels[usable[voxels]]
        if len(voxels):
            result[row] = np.median(flat[voxels])
    return result


@dataclass(frozen=True, eq=False)
class RegionalDamageResult:
    """How much of each region a lesion takes; arrays of shape (n_regions,), float64.

    Parameters
    ----------
    damage : array
        Per cent of the region's weight inside the lesion; NaN for a region without weight.
    total, damaged : array
        Weight of the region, and of it inside the lesion, on the grid used: voxels, for a
        labelled atlas.
    voxel_volume_ml : float
        Volume of one voxel of the grid used.
    lesion_in_regions : float
        Per cent of the lesion that lies in some region, with what is outside the atlas's field
        of view counted as in none; NaN for an empty lesion.
    """

    damage: NDArray[np.float64]
    total: NDArray[np.float64]
    damaged: NDArray[np.float64]
    voxel_volume_ml: float
    lesion_in_regions: float


def covering_lattice(lattice: Grid, volume: Grid) -> Grid:
    """Extend a lattice to the field of view of a volume, voxel centres kept."""
    corners = np.stack(
        np.meshgrid(*[(-0.5, n - 0.5) for n in volume.shape], indexing="ij"), axis=-1
    ).reshape(-1, 3)
    matrix = np.linalg.inv(lattice.affine) @ volume.affine
    ends = corners @ matrix[:3, :3].T + matrix[:3, 3]
    first = np.floor(ends.min(axis=0)).astype(int)
    last = np.ceil(ends.max(axis=0)).astype(int)
    affine = lattice.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    return Grid.make((last - first + 1).tolist(), affine)


def regional_damage(
    mask: NDArray[np.bool_], mask_grid: Grid, parcels: Parcels
) -> RegionalDamageResult:
    """Per cent of each region inside a lesion.

    Counted on the finer of the two grids: where the atlas is at least as fine, the mask is
    brought to it by nearest neighbour; where the mask is finer, the atlas is brought to the
    mask's lattice, extended over the whole atlas so that a mask with a small field of view does
    not shrink the regions. Space must be the same.

    Parameters
    ----------
    mask : array of bool, shape of the mask's grid
    mask_grid : Grid
    parcels : Parcels
        On the atlas's own grid.

    Returns
    -------
    RegionalDamageResult
        100 * |lesion and region| / |region|; probabilities are summed instead of counted.
    """
    n_lesion = float(np.count_nonzero(mask))
    if parcels.grid.voxel_volume_ml <= mask_grid.voxel_volume_ml * 1.001:
        on_atlas, _ = resample_mask(mask, mask_grid, parcels.grid)
        lesion = on_atlas.ravel().astype(np.float64)
        total, volume = parcels.totals, parcels.grid.voxel_volume_ml
        outside = count_outside(mask, mask_grid, parcels.grid)
        n_lesion = lesion.sum() + outside * mask_grid.voxel_volume_ml / volume
    else:
        lesion, lattice = _counts_per_atlas_voxel(mask, mask_grid, parcels.grid)
        total, volume = _product(parcels.weights, lattice), mask_grid.voxel_volume_ml
    damaged = _product(parcels.weights, lesion)
    anywhere = np.zeros(parcels.weights.shape[1], dtype=bool)
    anywhere[parcels.weights.indices] = True
    share = 100.0 * lesion[anywhere].sum() / n_lesion if n_lesion else np.nan
    present = total > 0
    damage = np.where(present, 100.0 * damaged / np.where(present, total, 1.0), np.nan)
    return RegionalDamageResult(damage, total, damaged, volume, float(share))


def _counts_per_atlas_voxel(
    mask: NDArray[np.bool_], mask_grid: Grid, atlas_grid: Grid
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lesion voxels, and voxels of the extended lattice, nearest to each atlas voxel (C order)."""
    canonical = atlas_grid.canonical
    lattice = covering_lattice(mask_grid, canonical)
    lesion_on_lattice = resample_nearest(mask, mask_grid, lattice)
    size = int(np.prod(canonical.shape))
    lesion, everything = np.zeros(size), np.zeros(size)
    planes = max(1, 4_000_000 // (lattice.shape[1] * lattice.shape[2]))
    for start in range(0, lattice.shape[0], planes):
        block = slice(start, min(start + planes, lattice.shape[0]))
        nearest = nearest_voxels(canonical, lattice, block)
        inside = nearest >= 0
        everything += np.bincount(nearest[inside], minlength=size)
        hit = nearest[inside & lesion_on_lattice[block]]
        lesion += np.bincount(hit, minlength=size)
    # Back from RAS order to the order in which the atlas's voxels are stored.
    stored = resample_nearest(
        np.arange(size).reshape(canonical.shape), canonical, atlas_grid
    ).ravel()
    return lesion[stored], everything[stored]
