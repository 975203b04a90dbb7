"""Confounds and frequencies: against least squares, sines, and nilearn called in one go."""

import warnings

import numpy as np
import pytest
from nilearn.signal import clean

from lacuna_nipype.core.cleaning import clean_series
from lacuna_nipype.core.denoising import denoise_series
from lacuna_nipype.core.exceptions import ValidationError

N_TIMES, N_VOXELS, TR = 150, 12, 2.0


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def confounds(rng):
    return np.cumsum(rng.normal(size=(N_TIMES, 4)), axis=0) * [1, 1e-3, 50, 1] + [0, 5, -400, 9]


@pytest.fixture
def series(rng, confounds):
    values = 800 + 20 * rng.normal(size=(N_TIMES, N_VOXELS))
    return (values + confounds @ rng.normal(size=(4, N_VOXELS))).astype(np.float32)


def residuals(series, columns):
    """By textbook least squares."""
    design = np.column_stack([np.ones(len(series)), *np.transpose(columns)])
    values = series.astype(float)
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def powers(order):
    return np.linspace(-1, 1, N_TIMES)[:, np.newaxis] ** np.arange(1, order + 1)


@pytest.mark.parametrize("order", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("global_signal", [False, True])
def test_confounds_are_regressed_out_at_once(series, confounds, order, global_signal):
    found = denoise_series(
        series, confounds=confounds, polynomial=order, global_signal=global_signal
    )
    columns = np.hstack([confounds, powers(order or 0)])
    if global_signal:
        columns = np.column_stack([columns, series.mean(axis=1, dtype=float)])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, residuals(series, columns), atol=1e-4)


def test_order_of_the_columns_and_copies_do_not_matter(series, confounds):
    first = denoise_series(series, confounds=confounds)
    twice = np.column_stack([confounds[:, ::-1], confounds, np.ones(N_TIMES), np.zeros(N_TIMES)])
    np.testing.assert_allclose(denoise_series(series, confounds=twice), first, atol=1e-4)


def test_confound_that_is_a_line_beside_a_line(series, confounds):
    """Of such a column rounding is left, which must not be taken for a signal."""
    line = 1e6 + 3.3 * np.arange(N_TIMES)
    both = np.column_stack([confounds, line, np.full(N_TIMES, 0.1)])
    expected = denoise_series(series, confounds=confounds, polynomial=1)
    found = denoise_series(series, confounds=both, polynomial=1)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_frequencies():
    """Sines in the middle of a long run, away from the ends that filters disturb."""
    times = np.arange(1000) * TR
    sines = np.sin(2 * np.pi * np.outer(times, [0.003, 0.04, 0.18]))
    for band, kept in (
        ({"high_pass": 0.01}, [0, 1, 1]),
        ({"low_pass": 0.1}, [1, 1, 0]),
        ({"high_pass": 0.01, "low_pass": 0.1}, [0, 1, 0]),
    ):
        found = denoise_series(sines + 500, repetition_time=TR, **band)
        middle = found[300:700].std(axis=0) / sines[300:700].std(axis=0)
        np.testing.assert_allclose(middle, kept, atol=0.02)


def test_filtered_signals_do_not_come_back(series, confounds):
    """Confounds are filtered like the series: what is left is orthogonal to the filtered ones."""
    band = {"high_pass": 0.02, "low_pass": 0.1}
    found = denoise_series(
        series, confounds=confounds, polynomial=1, repetition_time=TR, **band
    ).astype(float)
    spectrum = np.abs(np.fft.rfft(found, axis=0)) ** 2
    frequencies = np.fft.rfftfreq(N_TIMES, TR)
    outside = (frequencies < 0.01) | (frequencies > 0.15)
    assert spectrum[outside].sum() < 0.02 * spectrum.sum()
    filtered = denoise_series(confounds, polynomial=1, repetition_time=TR, **band).astype(float)
    assert np.abs(np.corrcoef(found.T, filtered.T)[:N_VOXELS, N_VOXELS:]).max() < 1e-4


@pytest.mark.parametrize("standardize", [False, True])
def test_all_at_once_is_what_nilearn_does(series, confounds, standardize):
    band = {"high_pass": 0.01, "low_pass": 0.15}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = denoise_series(
            series, confounds=confounds, polynomial=1, repetition_time=TR,
            standardize=standardize, **band,
        )  # fmt: skip
    expected = clean(
        series.astype(float), confounds=confounds, detrend=True, t_r=TR, filter="butterworth",
        standardize="zscore_sample", **band,
    )  # fmt: skip
    # nilearn divides by the standard deviation of the sample.
    scale = np.sqrt(N_TIMES / (N_TIMES - 1)) if standardize else found.std(axis=0, ddof=1)
    np.testing.assert_allclose(found / scale, expected, atol=1e-4)


def test_blocks_of_voxels_make_no_difference(series, confounds, monkeypatch):
    whole = denoise_series(series, confounds=confounds, low_pass=0.1, repetition_time=TR)
    monkeypatch.setattr("lacuna_nipype.core.denoising._VOXEL_BLOCK", 5)
    parts = denoise_series(series, confounds=confounds, low_pass=0.1, repetition_time=TR)
    np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_nothing_but_trends_is_as_before(series):
    settings = {"polynomial": 2, "global_signal": True, "standardize": True}
    assert np.array_equal(denoise_series(series, **settings), clean_series(series, **settings))
    assert np.array_equal(denoise_series(series), series)


@pytest.mark.parametrize("band", [{}, {"high_pass": 0.01, "repetition_time": TR}])
def test_constant_and_broken_voxels_are_constant(series, confounds, band):
    series[:, 1] = 17.3
    series[5, 2] = np.nan
    series[5, 3] = np.inf
    series[:, 4] = confounds[:, 0] * 7
    found = denoise_series(
        series, confounds=confounds, global_signal=True, standardize=True, **band
    )
    assert not found[:, [1, 2, 3]].any()
    assert np.isfinite(found).all()
    if not band:
        assert not found[:, 4].any()
    assert (found[:, 5:].std(axis=0) > 0.9).all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"high_pass": 0.01}, "repetition time"),
        ({"low_pass": 0.1, "repetition_time": 0}, "repetition time"),
        ({"low_pass": 0.25, "repetition_time": 2}, "between 0 and 0.25 Hz"),
        ({"high_pass": -1, "repetition_time": 2}, "between 0 and 0.25 Hz"),
        ({"high_pass": 0.1, "low_pass": 0.1, "repetition_time": 2}, "Nothing is both"),
        ({"confounds": np.zeros((149, 2))}, r"\(149, 2\) do not go with 150 time points"),
        ({"confounds": np.zeros(150)}, "do not go with"),
        ({"confounds": np.full((150, 1), np.nan)}, "finite"),
        ({"confounds": np.zeros((150, 1)), "polynomial": -1}, "order -1"),
        ({"confounds": np.random.default_rng(0).normal(size=(150, 147))}, "148 signals"),
        (
            {
                "confounds": np.random.default_rng(0).normal(size=(150, 20)),
                "high_pass": 0.05, "low_pass": 0.08, "repetition_time": 2,
            },
            "leave about 18 dimensions",
        ),
    ],
)  # fmt: skip
def test_what_is_not_possible(series, settings, match):
    with pytest.raises(ValidationError, match=match):
        denoise_series(series, **settings)


def test_run_that_is_shorter_than_the_ends_of_the_filter(rng):
    with pytest.raises(ValidationError, match="cannot clean 20 time points"):
        denoise_series(rng.normal(size=(20, 3)), high_pass=0.01, low_pass=0.2, repetition_time=2.0)
