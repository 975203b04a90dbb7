"""Streamlines with points at equal distances along their length."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError

# A point closer to the last one than this share of a step is left out.
_SHORTEST_LAST_STEP = 0.01


def arc_lengths(points: NDArray[Any]) -> NDArray[np.float64]:
    """Measure how far along a streamline each of its points is.

    Parameters
    ----------
    points : numpy.ndarray
        Points in mm, finite, shape (n, 3).

    Returns
    -------
    numpy.ndarray
        Distance from the first point along straight segments in mm (float64 arithmetic),
        shape (n,), starting at 0.
    """
    differences = np.diff(points.astype(np.float64), axis=0)
    lengths = np.zeros(len(points))
    np.cumsum(np.sqrt((differences**2).sum(axis=1)), out=lengths[1:])
    return lengths


def resample_streamline(points: NDArray[Any], step_size: float) -> NDArray[np.float32]:
    """Place points at equal distances along a streamline.

    New points lie on the straight segments between the old ones, at 0, 1, 2, ... steps along
    the length, and the last point is kept, so that its segment may be shorter than a step (and
    is at most 1 % longer). Where the streamline bends, two new points are less than a step
    apart, as the crow flies.

    Parameters
    ----------
    points : numpy.ndarray
        Points in mm, finite, shape (n, 3).
    step_size : float
        Distance in mm.

    Returns
    -------
    numpy.ndarray
        Points in mm, float32, shape (m, 3), first and last as they were. A streamline no longer
        than a step, which includes those of one point and of none, passes unchanged.

    Raises
    ------
    ValidationError
        The step is not a positive number.
    """
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValidationError(f"The step size must be a positive number of mm, not {step_size}.")
    unchanged = np.asarray(points, np.float32)
    along = arc_lengths(points) if len(points) > 1 else np.zeros(1)
    total = along[-1]
    if total <= (1 + _SHORTEST_LAST_STEP) * step_size:
        return unchanged
    n_whole = math.ceil(total / step_size - _SHORTEST_LAST_STEP)
    at = np.append(np.arange(n_whole) * step_size, total)
    resampled = np.empty((len(at), 3), np.float32)
    for axis in range(3):
        resampled[:, axis] = np.interp(at, along, points[:, axis])
    # Bit for bit, where interpolation in another precision might round.
    resampled[[0, -1]] = unchanged[[0, -1]]
    return resampled
