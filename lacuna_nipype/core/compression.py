"""A subject's series as few coefficients per voxel, exact for correlation.

Correlation needs inner products over time only, so centred unit-norm series can be replaced by
their coefficients in an orthonormal basis of the temporal space that they span. Band-passed data
span far fewer dimensions than they have time points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from lacuna_nipype.core.correlation import unit_columns

# Share of the energy (squared norm) that may be lost: of all voxels together, and of the voxel
# that is represented worst. Correlations change by no more than the square root of the product
# of two such shares, and by half a share where a voxel meets itself.
TOTAL_TOLERANCE = 1e-8
VOXEL_TOLERANCE = 1e-6
# Largest integers that coefficients are scaled to.
INTEGER_LIMITS = {"int16": 32767, "int8": 127}


@dataclass(frozen=True, eq=False)
class Compressed:
    """One subject in a basis of its own temporal space.

    Parameters
    ----------
    coefficients : array, shape (rank, n_voxels), float32
        Unit norm per voxel; zeros for a voxel that does not vary.
    norm : array, shape (n_voxels,), float32
        Norm of the centred raw series.
    lost : float
        Share of the energy of all unit-norm series that the basis leaves out.
    lost_worst : float
        The largest such share of any voxel.
    n_constant : int
        Voxels whose series is constant or not finite.
    """

    coefficients: NDArray[np.float32]
    norm: NDArray[np.float32]
    lost: float
    lost_worst: float
    n_constant: int

    @property
    def rank(self) -> int:
        """Number of coefficients per voxel."""
        return int(self.coefficients.shape[0])


def compress_subject(
    series: NDArray[np.floating[Any]],
    *,
    total_tolerance: float = TOTAL_TOLERANCE,
    voxel_tolerance: float = VOXEL_TOLERANCE,
) -> Compressed:
    """Represent a subject's series by as few coefficients as its temporal rank needs.

    Parameters
    ----------
    series : array, shape (n_timepoints, n_voxels)
        Raw series.
    total_tolerance, voxel_tolerance : float
        Shares of energy that may be lost, over all voxels and in the worst one.

    Returns
    -------
    Compressed
        The rank is measured: the fewest leading eigenvectors of the time-by-time Gram matrix of
        the unit-norm series within both tolerances; n_timepoints - 1 for data of full rank.
    """
    unit, varies = unit_columns(series)
    n_times = series.shape[0]
    eigenvalues, vectors = np.linalg.eigh(unit @ unit.T)
    eigenvalues, vectors = np.maximum(eigenvalues[::-1], 0.0), vectors[:, ::-1]
    total = float(varies.sum()) or 1.0
    left_out = np.append(total - np.cumsum(eigenvalues), 0.0) / total
    # Nothing varies in an empty subject: one coefficient, all zero, is enough.
    rank = int(np.argmax(left_out <= total_tolerance)) + 1 if varies.any() else 1
    rank = max(1, min(rank, n_times - 1))
    full = vectors.T @ unit
    while True:
        energy = np.einsum("kv,kv->v", full[:rank], full[:rank])
        worst = float(np.max(1.0 - energy[varies], initial=0.0))
        if worst <= voxel_tolerance or rank >= n_times - 1:
            break
        # The next rank at which the energy of the remaining directions is a tenth of it.
        rank = min(n_times - 1, rank + max(1, n_times // 20))
    kept = full[:rank] / np.sqrt(np.where(varies, np.maximum(energy, 1e-300), 1.0))
    norm = _centred_norm(series, varies)
    return Compressed(
        kept.astype(np.float32),
        norm,
        max(0.0, float(1.0 - energy[varies].mean())) if varies.any() else 0.0,
        max(0.0, worst),
        int((~varies).sum()),
    )


def _centred_norm(
    series: NDArray[np.floating[Any]], varies: NDArray[np.bool_]
) -> NDArray[np.float32]:
    values = np.where(varies, series, 0).astype(np.float64)
    values -= values.mean(axis=0)
    return np.sqrt(np.einsum("tv,tv->v", values, values)).astype(np.float32)


def quantise(
    coefficients: NDArray[np.float32], kind: str
) -> tuple[NDArray[np.integer[Any]], NDArray[np.float32]]:
    """Store coefficients as integers with one scale per voxel.

    Parameters
    ----------
    coefficients : array, shape (rank, n_voxels), float32
        Unit norm per voxel. They are rotated by an orthonormal cosine transform first, which
        leaves all inner products as they are and spreads the leading coefficients over all.
    kind : {"int16", "int8"}
        Type of the integers.

    Returns
    -------
    integers : array, shape (rank, n_voxels)
    scale : array, shape (n_voxels,), float32
        Coefficient = integer times scale, of unit norm. Zero for a voxel that does not vary.
    """
    rotated = scipy.fft.dct(coefficients, axis=0, norm="ortho")
    largest = np.abs(rotated).max(axis=0)
    step = np.where(largest > 0, largest, 1.0) / INTEGER_LIMITS[kind]
    integers = np.rint(rotated / step).astype(kind)
    # The scale restores unit length, not the step: a voxel then correlates with itself as 1.
    length = np.sqrt(np.einsum("kv,kv->v", integers, integers, dtype=np.float64))
    scale = np.where(length > 0, 1.0 / np.where(length > 0, length, 1.0), 0.0)
    return integers, scale.astype(np.float32)


def restore_series(
    coefficients: NDArray[np.floating[Any]], norm: NDArray[np.floating[Any]], n_timepoints: int
) -> NDArray[np.float32]:
    """Make series that correlate like the ones that were compressed.

    Parameters
    ----------
    coefficients : array, shape (rank, n_voxels)
        Unit norm per voxel.
    norm : array, shape (n_voxels,)
    n_timepoints : int
        Length of the series, more than the rank.

    Returns
    -------
    array, shape (n_timepoints, n_voxels), float32
        Mean zero over time, with the inner products of the original centred series. The time
        courses themselves are not the original ones, whose basis is not kept.
    """
    rank = coefficients.shape[0]
    spectrum = np.zeros((n_timepoints, coefficients.shape[1]))
    # Frequency 0 of the cosine transform is the mean over time, and stays zero.
    spectrum[1 : rank + 1] = coefficients * norm
    return scipy.fft.idct(spectrum, axis=0, norm="ortho").astype(np.float32)


def morton_order(voxels: NDArray[np.integer[Any]]) -> NDArray[np.intp]:
    """Order voxels along a Z-curve, so that neighbours in the list are neighbours in the brain.

    Parameters
    ----------
    voxels : array, shape (3, n_voxels)
        Array indices, below 2**20.

    Returns
    -------
    array of int, shape (n_voxels,)
        Positions in the given list, in Morton order: any aligned run of 512 voxels of a full
        volume is a cube of 8 x 8 x 8.
    """
    code = np.zeros(voxels.shape[1], dtype=np.uint64)
    for axis in range(3):
        bits = voxels[axis].astype(np.uint64)
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            bits = (bits | (bits << np.uint64(shift))) & np.uint64(mask)
        code |= bits << np.uint64(2 - axis)
    return np.argsort(code, kind="stable")
