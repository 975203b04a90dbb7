"""Taking trends and the global signal out of a subject's series before they are correlated."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError

_VOXEL_BLOCK = 8192


def clean_series(
    series: NDArray[np.floating[Any]],
    *,
    polynomial: int | None = None,
    global_signal: bool = False,
    standardize: bool = False,
) -> NDArray[np.float32]:
    """Regress nuisance signals out of every voxel's series by least squares.

    Parameters
    ----------
    series : array, shape (n_timepoints, n_voxels)
        One subject, raw.
    polynomial : int, optional
        Order of the trend to remove: 0 the mean, 1 a line, 2 a parabola.
    global_signal : bool
        Remove the mean series of all voxels too (and with it each voxel's own mean), in one
        regression together with the trend.
    standardize : bool
        Divide by the standard deviation over time, after taking the mean off.

    Returns
    -------
    array, shape (n_timepoints, n_voxels), float32
        Zeros for a voxel with a value that is not finite. A voxel that is constant, or of which
        nothing but rounding is left, is exactly constant, so that it counts as such.

    Raises
    ------
    ValidationError
        The order is negative, or as many signals would be removed as there are time points.
    """
    nuisance = _nuisance(series, polynomial, global_signal)
    out = np.zeros(series.shape, dtype=np.float32)
    # Residuals below the rounding of the data themselves are not a signal.
    rounding = np.finfo(series.dtype if series.dtype.kind == "f" else np.float64).eps
    for start in range(0, series.shape[1], _VOXEL_BLOCK):
        block = series[:, start : start + _VOXEL_BLOCK].astype(np.float64)
        block[:, ~np.isfinite(block).all(axis=0)] = 0.0
        if nuisance is not None or standardize:
            before = np.linalg.norm(block, axis=0)
            basis = _polynomials(len(series), 0) if nuisance is None else nuisance
            block = block - basis @ (basis.T @ block)
            block[:, np.linalg.norm(block, axis=0) <= rounding * before] = 0.0
        if standardize:
            deviation = block.std(axis=0)
            block /= np.where(deviation > 0, deviation, 1.0)
        out[:, start : start + _VOXEL_BLOCK] = block
    return out


def _nuisance(
    series: NDArray[np.floating[Any]], polynomial: int | None, global_signal: bool
) -> NDArray[np.float64] | None:
    """Orthonormal columns to project out, or None where nothing is."""
    if polynomial is None and not global_signal:
        return None
    n_timepoints, order = len(series), polynomial or 0
    if not 0 <= order < n_timepoints - 2:
        raise ValidationError(
            f"A trend of order {order} cannot be taken out of {n_timepoints} time points."
        )
    basis = _polynomials(n_timepoints, order)
    finite = np.isfinite(series).all(axis=0)
    if not global_signal or not finite.any():
        return basis
    signal = series[:, finite].mean(axis=1, dtype=np.float64)
    size = np.linalg.norm(signal)
    # Twice, because the first residual of a strong trend carries its rounding.
    for _ in range(2):
        signal = signal - basis @ (basis.T @ signal)
    left = np.linalg.norm(signal)
    if left <= np.finfo(np.float64).eps * size:
        return basis
    return np.column_stack([basis, signal / left])


def _polynomials(n_timepoints: int, order: int) -> NDArray[np.float64]:
    """Orthonormal polynomials over the time points, shape (n_timepoints, order + 1)."""
    times = np.linspace(-1.0, 1.0, n_timepoints)
    return np.linalg.qr(np.polynomial.legendre.legvander(times, order))[0]
