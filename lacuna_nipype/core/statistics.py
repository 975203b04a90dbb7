"""Probabilities of t maps and their correction for many voxels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST = np.finfo(np.float64).tiny


def p_values(t: NDArray[np.floating[Any]], degrees_of_freedom: int) -> NDArray[np.float64]:
    """Two-sided probability of Student's t.

    Parameters
    ----------
    t : array
        0 or NaN where t is undefined.
    degrees_of_freedom : int
        At least 1.

    Returns
    -------
    array, float64
        1 where t is 0 or undefined; never below the smallest normal double, so that -log10 p
        stays finite (307.7 at most).
    """
    from scipy.special import stdtr

    magnitude = np.where(np.isfinite(t), np.abs(t), 0.0).astype(np.float64)
    p = 2.0 * stdtr(degrees_of_freedom, -magnitude)
    return np.clip(p, SMALLEST, 1.0)


def q_values(p: NDArray[np.float64], family: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Control the false discovery rate (Benjamini & Hochberg 1995).

    Parameters
    ----------
    p : array
        Probabilities.
    family : array of bool, same shape
        Tests that count; the correction is for their number.

    Returns
    -------
    array, float64
        Smallest rate at which each test of the family would be called significant; NaN outside.
    """
    q = np.full(p.shape, np.nan)
    values = p[family]
    if values.size == 0:
        return q
    order = np.argsort(values, kind="stable")
    ranked = values[order] * values.size / np.arange(1, values.size + 1)
    monotone = np.minimum.accumulate(ranked[::-1])[::-1]
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(monotone, 1.0)
    q[family] = adjusted
    return q
