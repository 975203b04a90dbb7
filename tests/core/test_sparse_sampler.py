"""Maps that are zero nearly everywhere, interpolated where they are not, against dense ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna_nipype.core.parcels import (
    Parcels,
    SparseSampler,
    _row_blocks,
    aggregate,
    nonzero_voxels,
)
from lacuna_nipype.core.resampling import resample_linear
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.core.transforms import AffineStep, LinearSampler, PointMap, pull_coordinates

SOURCE = Grid.make((9, 7, 8), [[-2, 0, 0, 6], [0, 2, 0, -4], [0, 0, 2, 1], [0, 0, 0, 1]])
TURN = np.deg2rad(25)
TARGETS = {
    "the same": SOURCE,
    "half a voxel on": Grid.make(
        (9, 7, 8), [[-2, 0, 0, 7], [0, 2, 0, -3], [0, 0, 2, 0], [0, 0, 0, 1]]
    ),
    "coarser": Grid.make((4, 5, 4), [[4, 0, 0, -9], [0, 3, 0, -5], [0, 0, 4, 0], [0, 0, 0, 1]]),
    "finer, beyond all sides": Grid.make(
        (30, 30, 30), [[1, 0, 0, -16], [0, 1, 0, -9], [0, 0, 1, -6], [0, 0, 0, 1]]
    ),
    "turned": Grid.make(
        (14, 14, 14),
        [
            [1.5 * np.cos(TURN), -1.5 * np.sin(TURN), 0, -10],
            [1.5 * np.sin(TURN), 1.5 * np.cos(TURN), 0, -8],
            [0, 0, 1.5, -2],
            [0, 0, 0, 1],
        ],
    ),
    "elsewhere": Grid.make((3, 3, 3), [[1, 0, 0, 90], [0, 1, 0, 90], [0, 0, 1, 9], [0, 0, 0, 1]]),
}


def sparse_map(rng, dtype, order="C"):
    data = rng.random(SOURCE.shape) * (rng.random(SOURCE.shape) < 0.05)
    # A corner, whose neighbours are beyond the border.
    data[0, 0, 0] = 0.7
    return np.asarray(data * (100 if np.issubdtype(dtype, np.integer) else 1), dtype, order)


def dense(sampler, data, n_voxels):
    voxels, values = sampler(data, nonzero_voxels(data)[0])
    assert (np.diff(voxels) > 0).all()
    assert (values != 0).all()
    assert values.dtype == np.float32
    out = np.zeros(n_voxels, np.float32)
    out[voxels] = values
    return out


@pytest.mark.parametrize("order", ["C", "F"])
def test_nonzero_voxels_are_in_c_order(order):
    data = sparse_map(np.random.default_rng(1), np.float64, order)
    voxels, values = nonzero_voxels(data)
    assert np.array_equal(voxels, np.flatnonzero(np.ascontiguousarray(data)))
    assert np.array_equal(values, data.ravel()[voxels])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("name", TARGETS)
def test_a_change_of_grid_is_that_of_dense_maps(name, dtype):
    target = TARGETS[name]
    sampler = SparseSampler.make(SOURCE, target)
    for seed, order in ((2, "C"), (3, "F")):
        data = sparse_map(np.random.default_rng(seed), np.dtype(dtype), order)
        found = dense(sampler, data, np.prod(target.shape))
        expected = resample_linear(data, SOURCE, target).ravel()
        np.testing.assert_allclose(found, expected, atol=2e-6 * max(1, float(data.max())))


@pytest.mark.parametrize("name", TARGETS)
def test_a_warp_is_that_of_dense_maps(name):
    target = TARGETS[name]
    matrix = np.array([[0.9, 0.1, 0, 1], [-0.1, 1.1, 0.05, -1], [0, 0, 1, 0.3], [0, 0, 0, 1.0]])
    point_map = PointMap((AffineStep(matrix),))
    sampler = SparseSampler.make(SOURCE, target, point_map)
    data = sparse_map(np.random.default_rng(4), np.float32, "F")
    expected, _ = LinearSampler.make(data)(pull_coordinates(SOURCE, target, point_map))
    found = dense(sampler, data, np.prod(target.shape))
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_an_empty_map_stays_empty():
    sampler = SparseSampler.make(SOURCE, TARGETS["turned"])
    assert not dense(sampler, np.zeros(SOURCE.shape, np.uint8), 14**3).any()


def weights_of(rng, n_rows, n_voxels):
    import scipy.sparse as sp

    return sp.csr_array(sp.random(n_rows, n_voxels, 0.4, "csr", np.float32, rng))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 40))
def test_blocks_of_rows_change_no_result(seed, n_rows, at_a_time):
    from lacuna_nipype.core import parcels as module

    rng = np.random.default_rng(seed)
    weights = weights_of(rng, n_rows, 24)
    parcels = Parcels(
        Grid.make((2, 3, 4), np.eye(4)), np.arange(1, n_rows + 1),
        tuple(map(str, range(n_rows))), weights,
    )  # fmt: skip
    values, valid = rng.normal(size=(2, 3, 4)), rng.random((2, 3, 4)) < 0.8
    whole = {key: aggregate(parcels, values, valid, key)[0] for key in ("mean", "std", "percent")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WEIGHTS_AT_A_TIME", at_a_time)
        blocks = list(_row_blocks(weights))
        assert [row for b in blocks for row in range(b.start, b.stop)] == list(range(n_rows))
        for key, expected in whole.items():
            found = aggregate(parcels, values, valid, key)[0]
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_aggregates_of_probabilities_by_dense_arithmetic():
    rng = np.random.default_rng(8)
    weights = weights_of(rng, 5, 24)
    parcels = Parcels(Grid.make((2, 3, 4), np.eye(4)), np.arange(1, 6), tuple("abcde"), weights)
    values, valid = rng.normal(size=(2, 3, 4)), rng.random((2, 3, 4)) < 0.7
    w = weights.toarray().astype(float) * valid.ravel()
    mean = w @ values.ravel() / w.sum(axis=1)
    spread = (w * (values.ravel() - mean[:, None]) ** 2).sum(axis=1) / w.sum(axis=1)
    np.testing.assert_allclose(aggregate(parcels, values, valid)[0], mean)
    np.testing.assert_allclose(aggregate(parcels, values, valid, "std")[0], np.sqrt(spread))
    coverage = w.sum(axis=1) / weights.toarray().astype(float).sum(axis=1)
    np.testing.assert_allclose(aggregate(parcels, values, valid)[1], coverage)
