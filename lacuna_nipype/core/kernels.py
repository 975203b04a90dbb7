"""The compiled inner loops of the correlation pass; imported only where they run.

Both work on one tile of the store: coefficients of shape (subjects, rank, 512).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

# arctanh(x) = x * P(x^2) for |x| < 0.6, least squares at Chebyshev nodes in x: error 2e-7.
# Above, the logarithm is used.
POLYNOMIAL_LIMIT = np.float32(0.6)


def _fit_polynomial() -> tuple[np.float32, ...]:
    nodes = 0.6 * np.cos((np.arange(4000) + 0.5) / 8000 * np.pi)
    powers = np.stack([nodes ** (2 * order + 1) for order in range(6)], axis=1)
    fitted = np.linalg.lstsq(powers, np.arctanh(nodes), rcond=None)[0]
    return tuple(np.float32(value) for value in fitted)


_C0, _C1, _C2, _C3, _C4, _C5 = _fit_polynomial()
_LIMIT = np.float32(1.0 - 1e-7)
_ONE, _HALF = np.float32(1.0), np.float32(0.5)
SUBJECTS_IN_SINGLE = 16


@numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"})
def _fisher_row(row: Any, scale: Any) -> None:
    """Scale, clip and transform one row of inner products in place."""
    large = False
    for v in range(row.size):
        r = min(max(row[v] * scale[v], -_LIMIT), _LIMIT)
        row[v] = r
        large |= abs(r) >= POLYNOMIAL_LIMIT
    if large:
        for v in range(row.size):
            r = row[v]
            if abs(r) >= POLYNOMIAL_LIMIT:
                row[v] = _HALF * np.log((_ONE + r) / (_ONE - r))
            else:
                q = r * r
                row[v] = r * (_C0 + q * (_C1 + q * (_C2 + q * (_C3 + q * (_C4 + q * _C5)))))
    else:
        for v in range(row.size):
            r = row[v]
            q = r * r
            row[v] = r * (_C0 + q * (_C1 + q * (_C2 + q * (_C3 + q * (_C4 + q * _C5)))))


@numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"})
def correlate_tile(
    coefficients: Any, scale: Any, weights: Any, origin: Any, total: Any, squares: Any
) -> None:
    """Correlate all seeds with the voxels of one tile, subject by subject.

    Parameters
    ----------
    coefficients : array, shape (n_subjects, rank, n_voxels), int16 or int8
    scale : array, shape (n_subjects, n_voxels), float32
        Coefficient = integer times scale.
    weights : array, shape (n_subjects, n_seeds, rank), float32
        Unit-norm series of each seed in the subject's basis; zeros for an empty seed.
    origin : array, shape (n_seeds, n_voxels), float32
        Set to Fisher's z of the first subject. Deviations from it are summed, so that equal
        values give a variance of exactly zero and nothing cancels.
    total, squares : array, shape (n_seeds, n_voxels), float64
        The sums of deviations and of their squares are added to these. Sixteen subjects at a
        time are summed in single precision.
    """
    n_subjects, rank, n_voxels = coefficients.shape
    n_seeds = weights.shape[1]
    values = np.empty((rank, n_voxels), np.float32)
    z = np.empty((n_seeds, n_voxels), np.float32)
    part = np.zeros((n_seeds, n_voxels), np.float32)
    part_squares = np.zeros((n_seeds, n_voxels), np.float32)
    for subject in range(n_subjects):
        integers = coefficients[subject]
        for i in range(rank):
            for v in range(n_voxels):
                values[i, v] = np.float32(integers[i, v])
        np.dot(weights[subject], values, z)
        for seed in range(n_seeds):
            row = z[seed]
            _fisher_row(row, scale[subject])
            if subject == 0:
                origin[seed, :] = row
            for v in range(n_voxels):
                deviation = row[v] - origin[seed, v]
                part[seed, v] += deviation
                part_squares[seed, v] += deviation * deviation
        if subject % SUBJECTS_IN_SINGLE == SUBJECTS_IN_SINGLE - 1 or subject == n_subjects - 1:
            for seed in range(n_seeds):
                for v in range(n_voxels):
                    total[seed, v] += part[seed, v]
                    squares[seed, v] += part_squares[seed, v]
                    part[seed, v] = 0
                    part_squares[seed, v] = 0


@numba.njit(nogil=True, cache=True)
def add_seed_series(coefficients: Any, amplitude: Any, voxels: Any, sums: Any) -> None:
    """Add the raw series of some voxels of a tile to a seed's sum, subject by subject.

    Parameters
    ----------
    coefficients : array, shape (n_subjects, rank, n_voxels), int16 or int8
    amplitude : array, shape (n_subjects, n_voxels), float32
        Scale times norm of the raw series.
    voxels : int array
        Positions in the tile.
    sums : array, shape (n_subjects, rank), float64
        Added to.
    """
    for subject in range(coefficients.shape[0]):
        for i in range(coefficients.shape[1]):
            added = 0.0
            for v in voxels:
                added += np.float64(amplitude[subject, v]) * np.float64(
                    coefficients[subject, i, v]
                )
            sums[subject, i] += added


def fisher_z(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fisher's z of correlations, by the arithmetic of the pass (single precision)."""
    out = np.array(values, dtype=np.float32)
    _fisher_row(out, np.ones_like(out))
    return out
