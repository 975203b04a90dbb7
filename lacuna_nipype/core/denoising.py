"""Confounds and frequencies taken out of a subject's series, together with trends."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.cleaning import clean_series
from lacuna_nipype.core.exceptions import ValidationError

_VOXEL_BLOCK = 8192
# Fewer dimensions than these are no series to correlate.
_FEWEST_LEFT = 3


def denoise_series(
    series: NDArray[np.floating[Any]],
    *,
    confounds: NDArray[np.floating[Any]] | None = None,
    high_pass: float | None = None,
    low_pass: float | None = None,
    repetition_time: float | None = None,
    polynomial: int | None = None,
    global_signal: bool = False,
    standardize: bool = False,
) -> NDArray[np.float32]:
    """Clean every voxel's series of confounds, frequencies, trends and the global signal.

    Without confounds and frequencies this is :func:`lacuna_nipype.core.cleaning.clean_series`.
    With them, :func:`nilearn.signal.clean` takes a linear trend off, filters series and confounds
    alike (Butterworth, fifth order, forwards and backwards), and regresses the filtered confounds
    out, so that none of what was filtered comes back (Lindquist et al. 2019, Human Brain Mapping
    40, 2358). Higher trends and the global signal are confounds there.

    Parameters
    ----------
    series : array, shape (n_timepoints, n_voxels)
        One subject, raw.
    confounds : array, shape (n_timepoints, n_confounds), optional
        Signals to regress out.
    high_pass, low_pass : float, optional
        Hz; slower, or faster, fluctuations are removed.
    repetition_time : float, optional
        Seconds between time points, which filters need.
    polynomial : int, optional
        Order of the trend to remove: 0 the mean, 1 a line, 2 a parabola.
    global_signal : bool
        Remove the mean series of all voxels too.
    standardize : bool
        Divide by the standard deviation over time.

    Returns
    -------
    array, shape (n_timepoints, n_voxels), float32
        With mean zero where there are confounds or filters. Zeros for a voxel with a value that
        is not finite; exactly constant where a voxel was, or where nothing but rounding is left.

    Raises
    ------
    ValidationError
        The confounds have another length or are not finite; the frequencies are not between 0
        and half the sampling rate, or in the wrong order, or there is no repetition time; or
        there are too few time points for what is to be removed.
    """
    filtered = high_pass is not None or low_pass is not None
    if confounds is None and not filtered:
        return clean_series(
            series, polynomial=polynomial, global_signal=global_signal, standardize=standardize
        )
    if filtered:
        _check_band(high_pass, low_pass, repetition_time)
    detrend = polynomial is not None and polynomial > 0
    nuisance = _beside_trend(_nuisance(series, confounds, polynomial, global_signal), detrend)
    n_removed = (np.linalg.matrix_rank(nuisance) if nuisance.size else 0) + detrend + 1
    _check_length(len(series), int(n_removed), high_pass, low_pass, repetition_time)
    settings: dict[str, Any] = {
        "detrend": detrend,
        "confounds": nuisance if nuisance.shape[1] else None,
        "filter": "butterworth" if filtered else False,
        "high_pass": high_pass,
        "low_pass": low_pass,
        "t_r": repetition_time,
    }
    out = np.zeros(series.shape, dtype=np.float32)
    # As in clean_series: residuals below the rounding of the data are not a signal.
    rounding = np.finfo(series.dtype if series.dtype.kind == "f" else np.float64).eps
    for start in range(0, series.shape[1], _VOXEL_BLOCK):
        block = series[:, start : start + _VOXEL_BLOCK].astype(np.float64)
        block[:, ~np.isfinite(block).all(axis=0)] = 0.0
        before = np.linalg.norm(block, axis=0)
        block = _clean(block, settings)
        block -= block.mean(axis=0)
        block[:, np.linalg.norm(block, axis=0) <= rounding * before] = 0.0
        if standardize:
            deviation = block.std(axis=0)
            block /= np.where(deviation > 0, deviation, 1.0)
        out[:, start : start + _VOXEL_BLOCK] = block
    return out


def _check_band(
    high_pass: float | None, low_pass: float | None, repetition_time: float | None
) -> None:
    if repetition_time is None or not 0 < repetition_time < float("inf"):
        raise ValidationError("Filters need the repetition time, a number of seconds above 0.")
    nyquist = 0.5 / repetition_time
    for frequency in (high_pass, low_pass):
        if frequency is not None and not 0 < frequency < nyquist:
            raise ValidationError(
                f"A filter at {frequency:g} Hz is not possible: with {repetition_time:g} s "
                f"between time points, frequencies are between 0 and {nyquist:g} Hz."
            )
    if high_pass is not None and low_pass is not None and not high_pass < low_pass:
        raise ValidationError(
            f"Nothing is both faster than {high_pass:g} Hz and slower than {low_pass:g} Hz."
        )


def _nuisance(
    series: NDArray[np.floating[Any]],
    confounds: NDArray[np.floating[Any]] | None,
    polynomial: int | None,
    global_signal: bool,
) -> NDArray[np.float64]:
    """Columns to regress out, shape (n_timepoints, n); a line is not among them."""
    n_timepoints = len(series)
    columns: list[NDArray[np.float64]] = []
    if confounds is not None:
        if confounds.ndim != 2 or len(confounds) != n_timepoints:
            raise ValidationError(
                f"Confounds of shape {confounds.shape} do not go with {n_timepoints} time points."
            )
        if not np.isfinite(confounds).all():
            raise ValidationError("Confounds must be finite numbers.")
        columns.append(confounds.astype(np.float64))
    if polynomial is not None:
        if not 0 <= polynomial < n_timepoints - 2:
            raise ValidationError(
                f"A trend of order {polynomial} cannot be taken out of {n_timepoints} time points."
            )
        times = np.linspace(-1.0, 1.0, n_timepoints)
        trend = np.polynomial.legendre.legvander(times, max(polynomial, 1))
        columns.append(np.asarray(trend[:, 2:], dtype=np.float64))
    finite = np.isfinite(series).all(axis=0)
    if global_signal and finite.any():
        mean = series[:, finite].mean(axis=1, dtype=np.float64)
        columns.append(np.asarray(mean, dtype=np.float64)[:, np.newaxis])
    return np.concatenate([np.empty((n_timepoints, 0)), *columns], axis=1)


def _beside_trend(columns: NDArray[np.float64], detrend: bool) -> NDArray[np.float64]:
    """Take the mean and the line off, and leave columns out of which only rounding is left."""
    times = np.linspace(-1.0, 1.0, len(columns))
    basis = np.linalg.qr(np.polynomial.legendre.legvander(times, int(detrend)))[0]
    size = np.linalg.norm(columns, axis=0)
    # Twice, because the first residual of a strong trend carries its rounding.
    for _ in range(2):
        columns = columns - basis @ (basis.T @ columns)
    left = np.linalg.norm(columns, axis=0)
    kept = left > len(columns) * np.finfo(np.float64).eps * size
    return np.asarray(columns[:, kept] / left[kept], dtype=np.float64)


def _check_length(
    n_timepoints: int,
    n_removed: int,
    high_pass: float | None,
    low_pass: float | None,
    repetition_time: float | None,
) -> None:
    """Refuse to regress out about as many signals as a series has dimensions."""
    n_dimensions = float(n_timepoints)
    if repetition_time is not None:
        top = 0.5 / repetition_time if low_pass is None else low_pass
        # A sine and a cosine for each multiple of one period per run.
        n_dimensions *= 2 * repetition_time * (top - (high_pass or 0.0))
    if n_dimensions - n_removed < _FEWEST_LEFT:
        raise ValidationError(
            f"{n_removed} signals (the mean among them) cannot be taken out of {n_timepoints} "
            f"time points, of which the filters leave about {n_dimensions:.0f} dimensions; use "
            "fewer confounds, a wider band or longer series."
        )


def _clean(block: NDArray[np.float64], settings: dict[str, Any]) -> NDArray[np.float64]:
    # nilearn takes a second or two to import.
    import nilearn
    from nilearn.signal import clean

    # "As it is" was spelled False before version 0.13.
    new = [int(number) for number in nilearn.__version__.split(".")[:2]] >= [0, 13]
    try:
        cleaned = clean(block, standardize=None if new else False, **settings)
    except ValueError as error:
        # Such as fewer time points than the ends of the filter take.
        reason = str(error).rstrip(".")
        raise ValidationError(
            f"nilearn cannot clean {len(block)} time points this way ({reason})."
        ) from error
    return np.array(cleaned, dtype=np.float64)
