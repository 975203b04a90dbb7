"""The compiled inner loops of the correlation pass; imported only where they run.

Both work on one tile of the store: coefficients of shape (subjects, rank, 512).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.compiling import compiled
from lacuna_nipype.core.correlation import R_LIMIT

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
_SQUARED_LIMIT = POLYNOMIAL_LIMIT * POLYNOMIAL_LIMIT
_ONE, _THIRD, _FIFTH, _SEVENTH = (np.float32(1 / n) for n in (1, 3, 5, 7))
_HALF_LOG_2 = np.float32(np.log(2) / 2)
_ROOT_HALF_BITS = np.float32(np.sqrt(0.5)).view(np.int32)
# In single precision, correlations this close to 1 cannot be told from 1: they get the z of the
# limit that double precision has, so that a voxel that is the whole seed does not vary.
_ALMOST_ONE = np.float32(1.0 - 1e-6)
_LARGEST_Z = np.float32(np.arctanh(R_LIMIT))


@compiled(fast=True)
def _fisher_row(row: Any, scale: Any, scratch: Any) -> None:
    """Scale, clip and transform one row of inner products in place.

    All loops run over vectors: without branches, and with a logarithm of its own, because a call
    of the library's takes longer than all the rest. ``scratch`` is float32, two rows.
    """
    large = False
    for v in range(row.size):
        r = min(max(row[v] * scale[v], -_LIMIT), _LIMIT)
        row[v] = r
        large |= abs(r) >= POLYNOMIAL_LIMIT
    if large:
        # z = log(q) / 2 with q = (1 + |r|) / (1 - |r|) = 2^e m, and m between sqrt(1/2) and
        # sqrt(2): log(m) / 2 = arctanh((m - 1) / (m + 1)), a short series.
        quotient, exponent = scratch[0], scratch[1]
        bits = quotient.view(np.int32)
        for v in range(row.size):
            r = abs(row[v])
            quotient[v] = (_ONE + r) / (_ONE - r)
        for v in range(row.size):
            e = np.int32(np.int32(bits[v] - _ROOT_HALF_BITS) >> np.int32(23))
            exponent[v] = np.float32(e)
            bits[v] = np.int32(bits[v] - np.int32(e << np.int32(23)))
        for v in range(row.size):
            m = quotient[v]
            t = (m - _ONE) / (m + _ONE)
            u = t * t
            logarithm = exponent[v] * _HALF_LOG_2 + t * (
                _ONE + u * (_THIRD + u * (_FIFTH + u * _SEVENTH))
            )
            r = row[v]
            q = r * r
            small = r * (_C0 + q * (_C1 + q * (_C2 + q * (_C3 + q * (_C4 + q * _C5)))))
            signed = logarithm if r > 0 else -logarithm
            value = signed if q >= _SQUARED_LIMIT else small
            value = _LARGEST_Z if r >= _ALMOST_ONE else value
            row[v] = -_LARGEST_Z if r <= -_ALMOST_ONE else value
    else:
        for v in range(row.size):
            r = row[v]
            q = r * r
            row[v] = r * (_C0 + q * (_C1 + q * (_C2 + q * (_C3 + q * (_C4 + q * _C5)))))


@compiled(fast=True)
def _combine_one(weights: Any, rows: Any, out: Any) -> None:
    """Sum rows by one seed's weights; rows may be the stored integers."""
    rank = rows.shape[0]
    out[:] = 0
    i = 0
    while i + 3 < rank:
        w0, w1, w2, w3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        y0, y1, y2, y3 = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        for v in range(out.size):
            out[v] += (
                w0 * np.float32(y0[v])
                + w1 * np.float32(y1[v])
                + w2 * np.float32(y2[v])
                + w3 * np.float32(y3[v])
            )
        i += 4
    while i < rank:
        w0, y0 = weights[i], rows[i]
        for v in range(out.size):
            out[v] += w0 * np.float32(y0[v])
        i += 1


@compiled(fast=True)
def _combine_four(weights: Any, rows: Any, out: Any) -> None:
    """Sum rows by the weights of four seeds, four rows at a time.

    Each row that is loaded serves four seeds and each sum that is stored four rows, so that the
    loop is bound by multiplications, as in a matrix product of BLAS, which is slow to start at
    this size and cannot be relied on to stay in its thread.
    """
    rank = rows.shape[0]
    a, b, c, d = weights[0], weights[1], weights[2], weights[3]
    za, zb, zc, zd = out[0], out[1], out[2], out[3]
    out[:] = 0
    i = 0
    while i + 3 < rank:
        a0, a1, a2, a3 = a[i], a[i + 1], a[i + 2], a[i + 3]
        b0, b1, b2, b3 = b[i], b[i + 1], b[i + 2], b[i + 3]
        c0, c1, c2, c3 = c[i], c[i + 1], c[i + 2], c[i + 3]
        d0, d1, d2, d3 = d[i], d[i + 1], d[i + 2], d[i + 3]
        r0, r1, r2, r3 = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        for v in range(za.size):
            y0, y1, y2, y3 = r0[v], r1[v], r2[v], r3[v]
            za[v] += a0 * y0 + a1 * y1 + a2 * y2 + a3 * y3
            zb[v] += b0 * y0 + b1 * y1 + b2 * y2 + b3 * y3
            zc[v] += c0 * y0 + c1 * y1 + c2 * y2 + c3 * y3
            zd[v] += d0 * y0 + d1 * y1 + d2 * y2 + d3 * y3
        i += 4
    while i < rank:
        a0, b0, c0, d0, r0 = a[i], b[i], c[i], d[i], rows[i]
        for v in range(za.size):
            y0 = r0[v]
            za[v] += a0 * y0
            zb[v] += b0 * y0
            zc[v] += c0 * y0
            zd[v] += d0 * y0
        i += 1


@compiled(fast=True)
def _accumulate(z: Any, origin: Any, total: Any, squares: Any) -> None:
    # Sums in double precision: in single, the order of subjects would show.
    for v in range(z.size):
        deviation = np.float64(z[v]) - np.float64(origin[v])
        total[v] += deviation
        squares[v] += deviation * deviation


@compiled()
def correlate_tile(
    coefficients: Any,
    scale: Any,
    weights: Any,
    origin: Any,
    total: Any,
    squares: Any,
    first: Any = True,
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
        The sums of deviations and of their squares are added to these.
    first : bool
        Whether these are the tile's first subjects; otherwise the origin is left as it is.
    """
    n_subjects, rank, n_voxels = coefficients.shape
    n_seeds = weights.shape[1]
    values = np.empty((rank, n_voxels), np.float32)
    z = np.empty((4, n_voxels), np.float32)
    scratch = np.empty((2, n_voxels), np.float32)
    for subject in range(n_subjects):
        integers = coefficients[subject]
        if n_seeds > 1:
            for i in range(rank):
                row, source = values[i], integers[i]
                for v in range(n_voxels):
                    row[v] = np.float32(source[v])
        seed = 0
        while seed < n_seeds:
            at_once = 4 if seed + 4 <= n_seeds else 1
            if at_once == 4:
                _combine_four(weights[subject, seed : seed + 4], values, z)
            elif n_seeds > 1:
                _combine_one(weights[subject, seed], values, z[0])
            else:
                _combine_one(weights[subject, seed], integers, z[0])
            for k in range(at_once):
                _fisher_row(z[k], scale[subject], scratch)
                if first and subject == 0:
                    origin[seed + k, :] = z[k]
                _accumulate(z[k], origin[seed + k], total[seed + k], squares[seed + k])
            seed += at_once


@compiled(fast=True)
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
    # All voxels of the tile, most with weight zero: that is faster than to pick some.
    chosen = np.zeros(coefficients.shape[2])
    for subject in range(coefficients.shape[0]):
        for v in voxels:
            chosen[v] = amplitude[subject, v]
        for i in range(coefficients.shape[1]):
            row = coefficients[subject, i]
            added = 0.0
            for v in range(chosen.size):
                added += chosen[v] * np.float64(row[v])
            sums[subject, i] += added


def fisher_z(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fisher's z of correlations, by the arithmetic of the pass (single precision)."""
    out = np.array(values, dtype=np.float32)
    _fisher_row(out, np.ones_like(out), np.empty((2, out.size), np.float32))
    return out
