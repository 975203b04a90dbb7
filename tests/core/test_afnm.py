"""Parcel-level mapping: three parcels by hand, and np.corrcoef in a loop."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna_nipype.core import afnm
from lacuna_nipype.core.afnm import (
    WEIGHTINGS,
    FisherMean,
    lesion_scores,
    lesion_weights,
    parcel_scores,
    parcel_series,
)
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.parcels import Parcels, labelled_weights
from lacuna_nipype.core.spaces import Grid

# Three parcels of 4, 2 and 10 voxels; the lesion takes 1 voxel of the first and 2 of the second.
TOTAL, DAMAGED = np.array([4.0, 2, 10]), np.array([1.0, 2, 0])
Z = np.array([[0, 0.5, -0.2], [0.5, 0, 0.8], [-0.2, 0.8, 0]])
BY_HAND = {
    "fractional": ([0.5, 0.5, 0], [0.25, 0.25, 0.3]),
    "binary": ([1, 1, 0], [0.5, 0.5, 0.6]),
    "voxel_count": ([0.25, 1, 0], [0.5, 0.125, 0.75]),
}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_three_parcels_by_hand(weighting):
    weights, scores = BY_HAND[weighting]
    m = lesion_weights(DAMAGED, TOTAL, weighting)
    assert m == pytest.approx(weights)
    assert parcel_scores(m, Z) == pytest.approx(scores)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_three_parcels_from_a_mask(weighting):
    """The same numbers from voxels, through the overlap of mask and atlas."""
    grid = Grid.make((16, 1, 1), np.diag([2.0, 2, 2, 1]))
    labels = np.repeat([1, 2, 3], [4, 2, 10]).reshape(grid.shape)
    index = np.array([1, 2, 3])
    parcels = Parcels(grid, index, ("a", "b", "c"), labelled_weights(labels, index))
    mask = np.zeros(grid.shape, dtype=bool)
    mask[3:6] = True
    result = lesion_scores(mask, grid, parcels, Z, weighting)
    assert result.weight == pytest.approx(BY_HAND[weighting][0])
    assert result.score == pytest.approx(BY_HAND[weighting][1])
    nothing = lesion_scores(np.zeros_like(mask), grid, parcels, Z, weighting)
    assert nothing.score.tolist() == [0, 0, 0]


def test_parcel_without_connectivity_takes_no_part():
    grid = Grid.make((3, 1, 1), np.diag([2.0, 2, 2, 1]))
    index = np.array([1, 2, 3])
    parcels = Parcels(grid, index, ("a", "b", "c"), sp.csr_array(np.eye(3, dtype=np.float32)))
    z = Z.copy()
    z[1], z[:, 1] = np.nan, np.nan
    mask = np.array([True, True, False]).reshape(grid.shape)
    result = lesion_scores(mask, grid, parcels, z, "fractional")
    # The second is touched but not counted, so the first has all the weight.
    assert result.weight.tolist() == [1, 0, 0]
    assert result.score == pytest.approx([0, np.nan, -0.2], nan_ok=True)
    assert result.connected.tolist() == [True, False, True]
    only = lesion_scores(mask & (np.arange(3) == 1).reshape(grid.shape), grid, parcels, z)
    assert only.score == pytest.approx([0, np.nan, 0], nan_ok=True)


def test_a_single_missing_value_is_left_out_of_the_sum():
    z = Z.copy()
    z[0, 1] = z[1, 0] = np.nan
    assert parcel_scores(np.array([1.0, 1, 0]), z) == pytest.approx([0, 0, 0.6])


def test_parcel_of_no_voxel_is_not_touched():
    assert lesion_weights(np.zeros(2), np.array([0.0, 5]), "voxel_count").tolist() == [0, 0]
    with pytest.raises(ValidationError, match=r"fractional, binary, voxel_count"):
        lesion_weights(DAMAGED, TOTAL, "voxels")


def simulated(rng, n_subjects, n_timepoints=20, n_voxels=30):
    common = rng.normal(size=(n_subjects, n_timepoints, 3))
    noise = rng.normal(size=(n_subjects, n_timepoints, n_voxels))
    return (1000 + 20 * (common @ rng.normal(size=(3, n_voxels)) + noise)).astype(np.float32)


def random_weights(rng, n_parcels=5, n_voxels=30):
    weights = rng.random((n_parcels, n_voxels)) * (rng.random((n_parcels, n_voxels)) < 0.3)
    weights[:, :n_parcels] += np.eye(n_parcels)
    return sp.csr_array(weights.astype(np.float32))


def reference_z(subjects, weights):
    """Mean of z, one pair of parcels at a time."""
    dense = weights.toarray().astype(np.float64)
    n = len(dense)
    z = np.zeros((len(subjects), n, n))
    for subject, series in enumerate(subjects):
        means = []
        for row in dense:
            used = (row > 0) & np.isfinite(series).all(axis=0)
            means.append(series[:, used].astype(np.float64) @ row[used] / row[used].sum())
        for i in range(n):
            for j in range(n):
                if i != j:
                    r = np.corrcoef(means[i], means[j])[0, 1]
                    z[subject, i, j] = np.arctanh(np.clip(r, -(1 - 1e-7), 1 - 1e-7))
    return z.mean(axis=0)


def mean_of(subjects, weights):
    mean = FisherMean.zeros(weights.shape[0])
    for series in subjects:
        mean.add_series(parcel_series(series, weights))
    return mean


def test_mean_series_leave_out_what_is_not_finite(monkeypatch):
    rng = np.random.default_rng(0)
    series, weights = simulated(rng, 1)[0], random_weights(rng)
    series[3, 0], series[4, 7] = np.nan, np.inf
    kept = np.setdiff1d(np.arange(30), [0, 7])
    dense = weights.toarray().astype(np.float64)[:, kept]
    expected = dense @ series[:, kept].T.astype(np.float64) / dense.sum(axis=1, keepdims=True)
    assert np.allclose(parcel_series(series, weights), expected, rtol=1e-12)
    monkeypatch.setattr(afnm, "BLOCK_BYTES", 1)
    assert np.allclose(parcel_series(series, weights), expected, rtol=1e-12)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_matrix_is_that_of_corrcoef_in_any_order_and_grouping(seed):
    rng = np.random.default_rng(seed)
    subjects, weights = simulated(rng, 4), random_weights(rng)
    subjects[1, 2, 6] = np.nan
    z = mean_of(subjects, weights).z_matrix()
    assert np.allclose(z, reference_z(subjects, weights), atol=1e-11)
    assert np.array_equal(z, z.T)
    assert not z.diagonal().any()
    merged = mean_of(subjects[2:], weights).merge(mean_of(subjects[1::-1], weights))
    assert merged.n_subjects == 4
    assert np.allclose(merged.z_matrix(), z, rtol=1e-12, atol=1e-14)


def test_coefficients_give_what_series_give():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(4, 30))
    centred = rows - rows.mean(axis=1, keepdims=True)
    _, _, basis = np.linalg.svd(centred, full_matrices=False)
    first, second = FisherMean.zeros(4), FisherMean.zeros(4)
    first.add_series(rows + 50)
    second.add_coefficients(3 * centred @ basis.T)
    assert np.allclose(first.z_matrix(), second.z_matrix(), atol=1e-11)


def test_constant_and_absent_parcels():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(2, 4, 20))
    rows[:, 0] = 0.1
    rows[:, 1] = np.nan
    rows[1, 2] = 7.7
    mean = FisherMean.zeros(4)
    for series in rows:
        mean.add_series(series)
    z = mean.z_matrix()
    assert mean.n_varying.tolist() == [0, 0, 1, 2]
    assert np.isnan(z[:2]).all()
    assert np.isnan(z[:, :2]).all()
    # Constant in one of two subjects: zero there.
    assert z[2, 3] == pytest.approx(np.arctanh(np.corrcoef(rows[0, 2], rows[0, 3])[0, 1]) / 2)


def test_equal_series_stay_finite():
    rows = np.random.default_rng(3).normal(size=(1, 20))
    mean = FisherMean.zeros(2)
    mean.add_series(np.vstack([rows, rows]))
    assert mean.z_matrix()[0, 1] == pytest.approx(np.arctanh(1 - 1e-7))
