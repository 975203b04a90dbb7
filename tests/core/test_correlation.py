"""Correlation maps against np.corrcoef in a loop, and what must not change them."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lacuna_nipype.core.correlation import (
    VOXEL_BLOCK,
    Moments,
    add_subject,
    correlation_maps,
    merge_moments,
    seed_series,
)

FEW = settings(max_examples=15, deadline=None, derandomize=True)
RANDOM = st.integers(0, 10_000)
HIGHEST_Z = np.arctanh(1 - 1e-7)
SEEDS = [np.array([0, 3, 4]), np.array([7]), np.arange(12)]


def simulated(rng, n_subjects, n_timepoints=30, n_voxels=12):
    """Subjects whose voxels share signals, so that correlations are of all sizes."""
    subjects = []
    for _ in range(n_subjects):
        common = rng.normal(size=(n_timepoints, 3))
        noise = rng.normal(size=(n_timepoints, n_voxels))
        subjects.append(1000 + 20 * (common @ rng.normal(size=(3, n_voxels)) + noise))
    return subjects


def reference_z(subjects, seed):
    """Fisher's z per subject and voxel, one np.corrcoef at a time."""
    rows = []
    for series in subjects:
        series = series.astype(np.float64)
        finite = [v for v in seed if np.isfinite(series[:, v]).all()]
        mean = np.mean([series[:, v] for v in finite], axis=0) if finite else None
        row = []
        for voxel in series.T:
            r = 0.0
            if mean is not None and np.isfinite(voxel).all() and len(set(voxel)) > 1:
                r = np.corrcoef(mean, voxel)[0, 1]
            row.append(np.arctanh(np.clip(r, -(1 - 1e-7), 1 - 1e-7)))
        rows.append(row)
    return np.array(rows)


def moments_of(subjects, seeds=SEEDS):
    moments = Moments.zeros(len(seeds), subjects[0].shape[1])
    for series in subjects:
        add_subject(moments, series, seeds)
    return moments


def assert_same(first, second, atol=1e-12):
    assert first.n_subjects == second.n_subjects
    np.testing.assert_allclose(first.mean, second.mean, rtol=0, atol=atol)
    np.testing.assert_allclose(first.m2, second.m2, rtol=0, atol=atol * 100)
    assert np.array_equal(first.n_varying, second.n_varying)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_subjects", [2, 3, 20])
def test_maps_against_corrcoef_and_ttest(dtype, n_subjects):
    rng = np.random.default_rng(n_subjects)
    subjects = [series.astype(dtype) for series in simulated(rng, n_subjects)]
    maps = correlation_maps(moments_of(subjects))
    for row, seed in enumerate(SEEDS):
        z = reference_z(subjects, seed)
        np.testing.assert_allclose(maps.z[row], z.mean(axis=0), rtol=0, atol=1e-11)
        np.testing.assert_allclose(maps.r[row], np.tanh(z.mean(axis=0)), rtol=0, atol=1e-11)
        others = [v for v in range(12) if seed.tolist() != [v]]
        t = stats.ttest_1samp(z[:, others], 0).statistic
        np.testing.assert_allclose(maps.t[row, others], t, rtol=1e-9)


def test_by_hand():
    # Deviations of the seed are (-1, 0, 1), of the other voxel (-1, 1, 0): r = 1/2, or -1/2
    # with the sign turned; a third subject has r = 0.
    seed, other = np.array([1.0, 2, 3]), np.array([1.0, 3, 2])
    subjects = [np.stack([seed, y], axis=1) for y in (other, other, -other, [1.0, 0, 1])]
    maps = correlation_maps(moments_of(subjects, [np.array([0])]))
    z = np.log(3) / 2  # arctanh(1/2)
    # Deviations of (z, z, -z, 0) from z/4 are 3/4, 3/4, -5/4 and -1/4 of z: squares add up to
    # 44/16 of z squared.
    sd = z * np.sqrt(44 / 16 / 3)
    assert maps.z[0, 1] == pytest.approx(z / 4, abs=1e-15)
    assert maps.r[0, 1] == pytest.approx(np.tanh(z / 4), abs=1e-15)
    assert maps.t[0, 1] == pytest.approx(z / 4 / (sd / 2), rel=1e-12)


def test_a_one_voxel_seed_reaches_the_limit_and_no_t():
    subjects = simulated(np.random.default_rng(0), 5)
    maps = correlation_maps(moments_of(subjects, [np.array([7])]))
    assert maps.z[0, 7] == HIGHEST_Z
    assert maps.t[0, 7] == 0
    assert np.isfinite(maps.t).all()
    parts = [moments_of([series], [np.array([7])]) for series in subjects]
    merged = parts[0]
    for part in parts[1:]:
        merged = merge_moments(merged, part)
    maps = correlation_maps(merged)
    assert maps.z[0, 7] == pytest.approx(HIGHEST_Z, abs=1e-12)
    assert maps.t[0, 7] == 0


def test_an_inverted_copy_reaches_the_limit_from_below():
    series = simulated(np.random.default_rng(0), 1)[0]
    series[:, 1] = -series[:, 0]
    assert moments_of([series], [np.array([0])]).mean[0, 1] == -HIGHEST_Z


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1234.5678, -1e6, 1e-20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_voxels_have_no_correlation(value, dtype):
    subjects = [series.astype(dtype) for series in simulated(np.random.default_rng(2), 4)]
    for series in subjects:
        series[:, 5] = value
    subjects[0][:, 6] = value
    moments = moments_of(subjects)
    maps = correlation_maps(moments)
    assert np.all(maps.z[:, 5] == 0)
    assert np.all(maps.t[:, 5] == 0)
    assert moments.n_varying.tolist() == [4, 4, 4, 4, 4, 0, 3, 4, 4, 4, 4, 4]
    # Constant in one subject only: r = 0 there, and the others count as they are.
    np.testing.assert_allclose(
        maps.z[0, 6], reference_z(subjects, SEEDS[0]).mean(axis=0)[6], atol=1e-11
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_count_as_constant(value):
    subjects = simulated(np.random.default_rng(3), 4)
    for number, series in enumerate(subjects):
        series[number, 3] = value
        series[:, 9] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moments = moments_of(subjects)
        maps = correlation_maps(moments)
    for row, seed in enumerate(SEEDS):
        z = reference_z(subjects, seed)
        np.testing.assert_allclose(maps.z[row], z.mean(axis=0), rtol=0, atol=1e-11)
    assert np.all(maps.z[:, [3, 9]] == 0)
    assert np.isfinite(maps.t).all()
    # Voxel 3 is left out of the mean of seed {0, 3, 4}.
    without = correlation_maps(moments_of(subjects, [np.array([0, 4])]))
    np.testing.assert_allclose(maps.z[0], without.z[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("constant", [5.0, 0.1, 1234.5678])
def test_a_seed_that_says_nothing_gives_zeros(constant):
    subjects = simulated(np.random.default_rng(4), 3)
    for series in subjects:
        series[:, 1] = np.nan
        series[:, 2] = constant
    seeds = [np.array([], dtype=np.intp), np.array([1]), np.array([2]), np.array([1, 2])]
    maps = correlation_maps(moments_of(subjects, seeds))
    for values in (maps.z, maps.r, maps.t):
        assert np.all(values == 0)


def test_one_subject_has_no_t():
    subjects = simulated(np.random.default_rng(5), 1)
    maps = correlation_maps(moments_of(subjects))
    assert maps.t is None
    np.testing.assert_allclose(maps.z[0], reference_z(subjects, SEEDS[0])[0], atol=1e-11)


def test_equal_subjects_have_no_t():
    series = simulated(np.random.default_rng(6), 1)[0]
    maps = correlation_maps(moments_of([series] * 5))
    assert np.all(maps.t == 0)


def test_voxels_are_independent_of_their_block():
    rng = np.random.default_rng(8)
    series = rng.normal(size=(12, VOXEL_BLOCK + 3))
    series[:, -1] = series[:, 1]
    moments = moments_of([series], [np.array([0, VOXEL_BLOCK + 1])])
    z = reference_z([series[:, [0, VOXEL_BLOCK + 1, 1, VOXEL_BLOCK]]], [0, 1])[0]
    found = moments.mean[0, [0, VOXEL_BLOCK + 1, 1, VOXEL_BLOCK]]
    np.testing.assert_allclose(found, z, atol=1e-12)
    assert moments.mean[0, -1] == pytest.approx(moments.mean[0, 1], abs=1e-14)


def test_seed_series_is_of_the_raw_mean():
    # Not of standardised series: the loud voxel dominates.
    time = np.arange(10.0)
    series = np.stack([100 * np.sin(time), np.cos(time)], axis=1)
    (seed,) = seed_series(series, [np.array([0, 1])])
    mean = series.mean(axis=1) - series.mean()
    np.testing.assert_allclose(seed, mean / np.linalg.norm(mean), atol=1e-15)


def test_input_is_left_as_it_was():
    series = simulated(np.random.default_rng(9), 1)[0]
    series[0, 0] = np.nan
    before = series.copy()
    moments_of([series])
    np.testing.assert_array_equal(series, before)


# Invariants


@FEW
@given(RANDOM)
def test_order_of_subjects_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    subjects = simulated(rng, 7)
    shuffled = [subjects[i] for i in rng.permutation(7)]
    assert_same(moments_of(subjects), moments_of(shuffled))


@FEW
@given(RANDOM)
def test_merging_any_partition_equals_one_pass(seed):
    rng = np.random.default_rng(seed)
    subjects = simulated(rng, 9)
    part = rng.integers(0, 4, size=9)
    merged = Moments.zeros(len(SEEDS), 12)
    for number in rng.permutation(4):
        own = [series for series, where in zip(subjects, part, strict=True) if where == number]
        if own:
            merged = merge_moments(merged, moments_of(own))
    assert_same(merged, moments_of(subjects))
    first, second = correlation_maps(merged), correlation_maps(moments_of(subjects))
    np.testing.assert_allclose(first.t, second.t, rtol=1e-9, atol=1e-9)


def test_merging_nothing_is_nothing():
    empty = Moments.zeros(2, 3)
    merged = merge_moments(empty, empty)
    assert merged.n_subjects == 0
    assert not merged.mean.any()


def test_merging_leaves_its_arguments_alone():
    subjects = simulated(np.random.default_rng(10), 4)
    first, second = moments_of(subjects[:2]), moments_of(subjects[2:])
    before = first.mean.copy()
    merge_moments(first, second).mean[:] = 99
    np.testing.assert_array_equal(first.mean, before)


@FEW
@given(RANDOM)
def test_order_and_number_of_seeds_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    subjects = simulated(rng, 4)
    together = moments_of(subjects)
    order = rng.permutation(len(SEEDS))
    shuffled = moments_of(subjects, [rng.permutation(SEEDS[i]) for i in order])
    np.testing.assert_allclose(shuffled.mean, together.mean[order], rtol=0, atol=1e-12)
    alone = moments_of(subjects, [SEEDS[1]])
    np.testing.assert_allclose(alone.mean[0], together.mean[1], rtol=0, atol=1e-12)


@FEW
@given(RANDOM, st.sampled_from([1e-6, 0.5, 3.0, 1e6]))
def test_units_of_a_scanner_do_not_matter(seed, scale):
    subjects = simulated(np.random.default_rng(seed), 3)
    scaled = [series * scale for series in subjects]
    shifted = [series + 7 for series in subjects]
    assert_same(moments_of(scaled), moments_of(subjects), atol=1e-11)
    assert_same(moments_of(shifted), moments_of(subjects), atol=1e-11)


@FEW
@given(RANDOM)
def test_order_of_timepoints_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    subjects = simulated(rng, 3)
    order = rng.permutation(30)
    assert_same(moments_of([s[order] for s in subjects]), moments_of(subjects), atol=1e-11)
