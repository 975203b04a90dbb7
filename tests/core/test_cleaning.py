"""Cleaning against ordinary least squares with a design matrix of plain powers."""

import numpy as np
import pytest

from lacuna_nipype.core.cleaning import clean_series
from lacuna_nipype.core.exceptions import ValidationError

N_TIMES, N_VOXELS = 40, 25


@pytest.fixture
def series():
    rng = np.random.default_rng(3)
    times = np.arange(N_TIMES)[:, np.newaxis]
    drift = 1000 + 3 * times * rng.normal(size=N_VOXELS) + 0.1 * times**2
    shared = 5 * rng.normal(size=(N_TIMES, 1))
    return (drift + shared + rng.normal(size=(N_TIMES, N_VOXELS))).astype(np.float32)


def reference(series, polynomial, global_signal):
    """One voxel after the other; the global signal from the detrended series."""
    times = np.linspace(0, 1, len(series))
    powers = [times**order for order in range((polynomial or 0) + 1)]

    def residual(y, columns):
        design = np.column_stack(columns)
        return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]

    y = series.astype(float)
    detrended = np.column_stack([residual(voxel, powers) for voxel in y.T])
    if not global_signal:
        return detrended
    signal = detrended.mean(axis=1)
    return np.column_stack([residual(voxel, [signal]) for voxel in detrended.T])


@pytest.mark.parametrize("polynomial", [0, 1, 2, 5])
@pytest.mark.parametrize("global_signal", [False, True])
def test_equals_least_squares_voxel_by_voxel(series, polynomial, global_signal):
    found = clean_series(series, polynomial=polynomial, global_signal=global_signal)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference(series, polynomial, global_signal), atol=2e-5)


def test_global_signal_alone_takes_the_mean_with_it(series):
    found = clean_series(series, global_signal=True)
    np.testing.assert_allclose(found, reference(series, None, True), atol=2e-5)
    assert abs(found.mean(axis=1)).max() < 1e-4


def test_without_steps_the_series_stay_as_they_are(series):
    found = clean_series(series)
    assert np.array_equal(found, series)
    assert found is not series


def test_standardized_series_have_unit_variance(series):
    found = clean_series(series, standardize=True).astype(float)
    raw = series.astype(float)
    np.testing.assert_allclose(found, (raw - raw.mean(0)) / raw.std(0), atol=2e-6)


def test_many_voxels_are_cleaned_in_blocks(series, monkeypatch):
    whole = clean_series(series, polynomial=2, global_signal=True)
    monkeypatch.setattr("lacuna_nipype.core.cleaning._VOXEL_BLOCK", 7)
    blocks = clean_series(series, polynomial=2, global_signal=True)
    # BLAS sums in another order for another width.
    np.testing.assert_allclose(blocks, whole, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_series_that_are_not_finite_become_zero_and_leave_the_others_alone(series, bad):
    dirty = np.column_stack([series, np.full(N_TIMES, 7, np.float32)])
    dirty[4, -1] = bad
    found = clean_series(dirty, polynomial=1, global_signal=True, standardize=True)
    assert not found[:, -1].any()
    expected = clean_series(series, polynomial=1, global_signal=True, standardize=True)
    np.testing.assert_allclose(found[:, :-1], expected, atol=1e-5)


@pytest.mark.parametrize("value", [0, 0.1, 12345.678])
@pytest.mark.parametrize(
    "steps",
    [{"polynomial": 2}, {"global_signal": True}, {"standardize": True}, {}],
    ids=["trend", "global", "standardize", "none"],
)
def test_constant_series_stay_exactly_constant(series, value, steps):
    series[:, 3] = value
    found = clean_series(series, **steps)
    assert (found[:, 3] == found[0, 3]).all()
    assert np.ptp(found[:, 4]) > 0


def test_nothing_but_rounding_counts_as_nothing(series):
    series[:, 0] = 100 + 0.1 * np.arange(N_TIMES, dtype=np.float32)
    assert not clean_series(series, polynomial=1)[:, 0].any()
    # One voxel is its own global signal.
    assert not clean_series(series[:, 1:2], global_signal=True).any()


def test_all_zero_subject():
    zeros = np.zeros((20, 5), np.float32)
    assert not clean_series(zeros, polynomial=2, global_signal=True, standardize=True).any()


@pytest.mark.parametrize("order", [-1, 38, 100])
def test_orders_that_leave_nothing_are_refused(series, order):
    with pytest.raises(ValidationError, match=f"order {order} .* 40 time points"):
        clean_series(series, polynomial=order)
