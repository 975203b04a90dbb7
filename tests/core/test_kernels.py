"""The compiled kernels against plain numpy in double precision."""

import itertools

import numpy as np
import pytest

from lacuna_nipype.core.kernels import add_seed_series, correlate_tile, fisher_z

LIMIT = np.float32(1 - 1e-7)


# Fisher's z


def test_z_of_small_correlations():
    r = np.linspace(-0.6, 0.6, 200_001).astype(np.float32)
    r = r[np.abs(r) < 0.6]
    assert np.abs(fisher_z(r) - np.arctanh(r.astype(np.float64))).max() <= 3e-7


def test_z_of_large_correlations():
    r = np.concatenate([np.linspace(0.6, 0.9999, 100_001), 1 - np.geomspace(1e-4, 2e-6, 1000)])
    r = np.concatenate([-r, r]).astype(np.float32)
    np.testing.assert_allclose(fisher_z(r), np.arctanh(r.astype(np.float64)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("mixed", [False, True], ids=["small only", "small and large"])
def test_both_branches_give_small_correlations_the_same(mixed):
    r = np.linspace(-0.59, 0.59, 512).astype(np.float32)
    if mixed:
        r[100] = 0.9
    expected = np.arctanh(r.astype(np.float64))
    np.testing.assert_allclose(fisher_z(r), expected, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("r", [1 - 4e-7, 1.0, 1.5, 1e30])
def test_what_cannot_be_told_from_one_has_the_z_of_the_limit(r):
    expected = np.arctanh(1 - 1e-7)
    found = fisher_z(np.array([r, -r], dtype=np.float32))
    np.testing.assert_allclose(found, [expected, -expected], rtol=1e-6)


def test_z_is_odd_and_zero_at_zero():
    r = np.linspace(0, 1, 1001).astype(np.float32)
    np.testing.assert_allclose(fisher_z(-r), -fisher_z(r), rtol=1e-6, atol=0)
    assert fisher_z(np.zeros(3, dtype=np.float32)).tolist() == [0, 0, 0]


def test_the_input_stays():
    r = np.full(5, 0.5, dtype=np.float32)
    fisher_z(r)
    assert np.all(r == 0.5)


# One tile


def simulated(kind, n_subjects, n_seeds, rank=13, n_voxels=96, seed=0):
    """Unit-norm coefficients as integers with scales, and unit-norm weights."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n_subjects, rank, n_voxels)) + rng.normal(size=(rank, n_voxels))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    scale = np.abs(values).max(axis=1) / np.iinfo(kind).max
    integers = np.rint(values / scale[:, np.newaxis]).astype(kind)
    weights = rng.normal(size=(n_subjects, n_seeds, rank))
    weights += values[:, :, :n_seeds].transpose(0, 2, 1)
    weights /= np.linalg.norm(weights, axis=2, keepdims=True)
    return integers, scale.astype(np.float32), weights.astype(np.float32)


def reference(integers, scale, weights):
    """Fisher's z of every subject, seed and voxel: (n_subjects, n_seeds, n_voxels)."""
    values = integers.astype(np.float64) * scale[:, np.newaxis].astype(np.float64)
    r = np.einsum("slk,skv->slv", weights.astype(np.float64), values)
    return np.arctanh(np.clip(r, -LIMIT, LIMIT))


def run(integers, scale, weights, cuts=()):
    """Mean and squared deviations of z, the subjects given in one go or in several."""
    n, _, n_voxels = integers.shape
    n_seeds = weights.shape[1]
    origin = np.full((n_seeds, n_voxels), 99, dtype=np.float32)
    total, squares = np.zeros((n_seeds, n_voxels)), np.zeros((n_seeds, n_voxels))
    edges = [0, *cuts, n]
    for start, stop in itertools.pairwise(edges):
        part = slice(start, stop)
        correlate_tile(
            integers[part], scale[part], weights[part], origin, total, squares, start == 0
        )
    return origin, total, squares


@pytest.mark.parametrize("kind", ["int16", "int8"])
@pytest.mark.parametrize("n_subjects", [1, 2, 16, 17, 40])
@pytest.mark.parametrize("n_seeds", [1, 2, 3, 4, 5, 9])
def test_a_tile_against_numpy(kind, n_subjects, n_seeds):
    data = simulated(kind, n_subjects, n_seeds)
    z = reference(*data)
    origin, total, squares = run(*data)
    np.testing.assert_allclose(origin, z[0], rtol=1e-6, atol=1e-6)
    mean = origin + total / n_subjects
    np.testing.assert_allclose(mean, z.mean(axis=0), rtol=0, atol=1e-6)
    m2 = squares - total**2 / n_subjects
    expected = ((z - z.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(m2, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 7, 50])
def test_any_rank(rank):
    data = simulated("int16", 3, 5, rank=rank, n_voxels=33)
    origin, total, _ = run(*data)
    z = reference(*data)
    # Rounding of r grows by 1 / (1 - r^2) in z, and r is large where there are few directions.
    error = np.abs(origin + total / 3 - z.mean(axis=0))
    assert np.all(error <= 3e-7 * np.mean(1 + np.cosh(z) ** 2, axis=0))


def test_subjects_in_parts_are_the_same_subjects():
    data = simulated("int16", 50, 5)
    whole = run(*data)
    # Cut where single precision is left anyway: the very same numbers.
    for first, second in zip(whole, run(*data, cuts=[16, 48]), strict=True):
        assert np.array_equal(first, second)
    for first, second in zip(whole, run(*data, cuts=[1, 30]), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)


def test_what_is_there_already_is_added_to():
    integers, scale, weights = simulated("int16", 4, 2)
    origin, total, squares = run(integers, scale, weights)
    more, more_squares = total + 5, squares + 7
    more -= total
    correlate_tile(integers, scale, weights, np.zeros_like(origin), more, more_squares)
    np.testing.assert_allclose(more, total + 5, atol=1e-12)
    np.testing.assert_allclose(more_squares, 2 * squares + 7, atol=1e-12)


@pytest.mark.parametrize("kind", ["int16", "int8"])
@pytest.mark.parametrize("n_seeds", [1, 5])
def test_a_constant_voxel_has_no_correlation(kind, n_seeds):
    integers, scale, weights = simulated(kind, 20, n_seeds)
    integers[:, :, 7], scale[:, 7] = 0, 0
    # The scale decides, should there be integers.
    scale[:, 8] = 0
    origin, total, squares = run(integers, scale, weights)
    for values in (origin, total, squares):
        assert not values[:, 7:9].any()
        assert values[:, 9:].any()


@pytest.mark.parametrize("empty", [0, 3, 4])
def test_an_empty_seed_has_no_correlation(empty):
    integers, scale, weights = simulated("int16", 20, 5)
    weights[:, empty] = 0
    origin, total, squares = run(integers, scale, weights)
    for values in (origin, total, squares):
        assert not values[empty].any()
        assert np.delete(values, empty, axis=0).any(axis=1).all()


@pytest.mark.parametrize("n_subjects", [2, 17, 100])
@pytest.mark.parametrize("n_seeds", [1, 6])
def test_equal_subjects_do_not_deviate_at_all(n_subjects, n_seeds):
    one = simulated("int16", 1, n_seeds)
    _, total, squares = run(*(np.repeat(part, n_subjects, axis=0) for part in one))
    assert not total.any()
    assert not squares.any()


def test_a_seed_does_not_depend_on_the_others():
    integers, scale, weights = simulated("int16", 10, 9)
    together = run(integers, scale, weights)
    for seed in range(9):
        alone = run(integers, scale, weights[:, seed : seed + 1].copy())
        for first, second in zip(alone, together, strict=True):
            np.testing.assert_allclose(first[0], second[seed], rtol=0, atol=5e-6)


def test_a_voxel_that_is_the_seed_reaches_the_limit():
    integers, scale, weights = simulated("int16", 3, 1)
    values = integers[:, :, 0] * scale[:, :1]
    weights[:, 0] = values / np.linalg.norm(values, axis=1, keepdims=True)
    origin, total, _ = run(integers, scale, weights)
    # Integers err by 2e-5, so r stays that far from one at most.
    assert np.tanh(np.float64(origin[0, 0] + total[0, 0] / 3)) > 1 - 1e-4
    assert np.isfinite(origin).all()


# Seeds


@pytest.mark.parametrize("kind", ["int16", "int8"])
@pytest.mark.parametrize("voxels", [[], [5], [0, 95], range(96)])
def test_sums_of_seed_series(kind, voxels):
    integers, scale, _ = simulated(kind, 7, 1)
    amplitude = (scale * np.linspace(1, 50, 96)).astype(np.float32)
    voxels = np.array(voxels, dtype=np.intp)
    sums = np.ones((7, 13))
    add_seed_series(integers, amplitude, voxels, sums)
    chosen = integers[:, :, voxels].astype(np.float64) * amplitude[:, np.newaxis, voxels]
    np.testing.assert_allclose(sums, 1 + chosen.sum(axis=2), rtol=1e-12, atol=1e-12)
