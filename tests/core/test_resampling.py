"""Resampling against loops over voxels in world coordinates."""

import itertools
import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna_nipype.core.lesion_resampling import resample_mask
from lacuna_nipype.core.resampling import (
    centre_of_mass,
    count_outside,
    nearest_voxels,
    resample_linear,
    resample_nearest,
    to_canonical,
)
from lacuna_nipype.core.spaces import Grid, template_grid

FEW = settings(max_examples=15, deadline=None, derandomize=True)
SEEDS = st.integers(0, 10_000)
STORAGES = [
    (axes, flips)
    for axes in itertools.permutations(range(3))
    for flips in ([], [0], [1, 2], [0, 1, 2])
]


def grid_of(shape, size, origin=(0, 0, 0)):
    return Grid.make(shape, nib.affines.from_matvec(np.eye(3) * size, origin))


def stored(data, grid, axes, flips):
    """The same image with its array axes permuted and some of them run backwards."""
    data, affine = data.transpose(axes), grid.affine[:, [*axes, 3]]
    for axis in flips:
        data = np.flip(data, axis)
        affine = affine.copy()
        affine[:3, 3] += affine[:3, axis] * (data.shape[axis] - 1)
        affine[:3, axis] *= -1
    return data, Grid.make(data.shape, affine)


def random_grid(rng, shape):
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    sizes = rng.uniform(0.7, 3, 3)
    affine = nib.affines.from_matvec(rotation * sizes, np.zeros(3))
    centre = affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    affine[:3, 3] = rng.uniform(-2, 2, 3) - centre
    return Grid.make(shape, affine)


def containing_voxel(point, grid):
    """Loop over all voxels for the one whose box contains a point; None outside."""
    for index in np.ndindex(*grid.shape):
        offset = point - (grid.affine[:3, :3] @ index + grid.affine[:3, 3])
        inside = [
            abs(offset @ column) <= 0.5 * (column @ column) for column in grid.affine[:3, :3].T
        ]
        if all(inside):
            return index
    return None


def world(grid, index):
    return grid.affine[:3, :3] @ np.asarray(index, float) + grid.affine[:3, 3]


# Nearest neighbour


@FEW
@given(SEEDS)
def test_nearest_takes_the_voxel_that_contains_the_point_on_oblique_grids(seed):
    rng = np.random.default_rng(seed)
    source, target = random_grid(rng, (4, 5, 3)), random_grid(rng, (4, 3, 5))
    data = rng.integers(1, 30_000, size=source.shape).astype(np.int16)
    found = resample_nearest(data, source, target, fill=-1)
    assert found.dtype == np.int16
    for index in np.ndindex(*target.shape):
        voxel = containing_voxel(world(target, index), source)
        assert found[index] == (-1 if voxel is None else data[voxel])


@pytest.mark.parametrize(("axes", "flips"), STORAGES)
def test_storage_order_of_source_and_target_does_not_matter_even_at_ties(axes, flips):
    rng = np.random.default_rng(3)
    # Every second target centre lies exactly midway between two source centres.
    source, target = grid_of((6, 5, 4), 1.0), grid_of((5, 4, 3), 1.5, (0, -1.5, 1))
    data = rng.integers(1, 99, size=source.shape)
    plain = resample_nearest(data, source, target)
    assert np.array_equal(resample_nearest(*stored(data, source, axes, flips), target), plain)
    turned, other = stored(plain, target, axes, flips)
    assert np.array_equal(resample_nearest(data, source, other), turned)


def test_a_tie_goes_to_the_larger_world_coordinate():
    source, target = grid_of((4, 1, 1), 1.0), grid_of((3, 1, 1), 1.0, (0.5, 0, 0))
    found = resample_nearest(np.array([10, 11, 12, 13]).reshape(4, 1, 1), source, target)
    assert found.ravel().tolist() == [11, 12, 13]


@pytest.mark.parametrize("noise", [1e-6, -1e-6])
def test_rounding_of_an_affine_does_not_decide_a_tie(noise):
    source, target = grid_of((4, 1, 1), 1.0), grid_of((3, 1, 1), 1.0, (0.5 + noise, 0, 0))
    found = resample_nearest(np.array([10, 11, 12, 13]).reshape(4, 1, 1), source, target)
    assert found.ravel().tolist() == [11, 12, 13]


def test_a_slice_of_the_index_map_is_the_slice_of_the_whole():
    rng = np.random.default_rng(1)
    source, target = random_grid(rng, (6, 7, 8)), random_grid(rng, (5, 4, 6))
    whole = nearest_voxels(source, target)
    assert np.array_equal(nearest_voxels(source, target, slice(2, 4)), whole[2:4])
    assert whole.min() == -1
    assert whole.max() < 6 * 7 * 8


def test_equal_grids_give_an_independent_copy():
    grid = grid_of((2, 2, 2), 1.0)
    data = np.zeros(grid.shape, dtype=bool)
    resample_nearest(data, grid, grid)[0, 0, 0] = True
    assert not data.any()


def test_canonical_order_is_a_view():
    data = np.arange(24).reshape(2, 3, 4)
    turned, grid = to_canonical(*stored(data, grid_of((2, 3, 4), 2.0), (2, 0, 1), [1]))
    assert np.array_equal(turned, data)
    assert np.shares_memory(turned, data)
    assert grid.same_as(grid_of((2, 3, 4), 2.0))


# Lesions


def test_a_mask_stored_from_right_to_left_lands_on_its_own_side():
    target = template_grid("MNI152NLin6Asym", 2)
    mask, source = stored(np.zeros(target.shape, dtype=bool), target, (0, 1, 2), [0])
    assert source.affine[0, 0] == -2
    assert source.affine[0, 3] == 90
    # World (-30, 12, 8): voxel (90 - -30) / 2 = 60 in this storage, (-30 - -90) / 2 = 30 in RAS.
    mask = mask.copy()
    mask[60, 69, 40] = True
    moved, accounting = resample_mask(mask, source, target)
    assert np.argwhere(moved).tolist() == [[30, 69, 40]]
    assert accounting.voxels_after == 1
    assert accounting.centre_shift_mm == 0


def test_accounting_by_hand():
    # 1 mm voxels at 0..7; 2 mm voxels at 0, 2, 4, 6 take every second of them.
    source, target = grid_of((8, 8, 8), 1.0), grid_of((4, 4, 4), 2.0)
    mask = np.zeros(source.shape, dtype=bool)
    mask[2:5, 2:4, 2] = True
    moved, accounting = resample_mask(mask, source, target)
    # x in {2, 3, 4} keeps 2 and 4, y in {2, 3} keeps 2, z = 2 stays.
    assert np.argwhere(moved).tolist() == [[1, 1, 1], [2, 1, 1]]
    assert accounting.to_dict() == {
        "VoxelsBefore": 6,
        "VoxelsAfter": 2,
        "VolumeMLBefore": pytest.approx(0.006, abs=1e-15),
        "VolumeMLAfter": pytest.approx(0.016, abs=1e-15),
        # Centre of mass from (3, 2.5, 2) to (3, 2, 2).
        "CentreShiftMM": pytest.approx(0.5, abs=1e-12),
        "KeptByCentre": False,
        "VoxelsAdjusted": 0,
    }
    json.dumps(accounting.to_dict(), allow_nan=False)


def test_a_one_voxel_lesion_survives_a_coarser_grid():
    source, target = (
        template_grid("MNI152NLin2009cAsym", 1),
        template_grid("MNI152NLin2009cAsym", 2),
    )
    mask = np.zeros(source.shape, dtype=bool)
    # World (-31, 23, 11); centres of the 2 mm voxels are at -96.5 + 2 i and so on.
    mask[65, 155, 89] = True
    assert not resample_nearest(mask, source, target).any()
    moved, accounting = resample_mask(mask, source, target)
    assert accounting.kept_by_centre
    assert (accounting.voxels_before, accounting.voxels_after) == (1, 1)
    assert accounting.volume_ml_after == pytest.approx(0.008)
    (voxel,) = np.argwhere(moved)
    assert np.all(np.abs(world(target, voxel) - [-31, 23, 11]) <= 1)


@pytest.mark.parametrize(("axes", "flips"), STORAGES)
def test_the_kept_voxel_does_not_depend_on_storage(axes, flips):
    # World 1, midway between the target's 0 and 2 on each axis.
    source, target = grid_of((8, 8, 8), 1.0), grid_of((4, 4, 4), 2.0)
    mask = np.zeros(source.shape, dtype=bool)
    mask[1, 1, 1] = True
    expected = np.zeros(target.shape, dtype=bool)
    expected[1, 1, 1] = True
    turned, other = stored(expected, target, axes, flips)
    for image in ((mask, source), stored(mask, source, axes, flips)):
        moved, accounting = resample_mask(*image, other)
        assert accounting.kept_by_centre
        assert np.array_equal(moved, turned)


def test_a_lesion_outside_the_field_of_view_is_not_moved_into_it():
    source, target = grid_of((8, 8, 8), 1.0), grid_of((2, 2, 2), 2.0, (20, 0, 0))
    mask = np.zeros(source.shape, dtype=bool)
    mask[4, 4, 4] = True
    moved, accounting = resample_mask(mask, source, target)
    assert not moved.any()
    assert not accounting.kept_by_centre
    assert accounting.centre_shift_mm is None


def test_an_empty_mask_stays_empty():
    mask = np.zeros((4, 4, 4), dtype=bool)
    moved, accounting = resample_mask(mask, grid_of((4, 4, 4), 1.0), grid_of((2, 2, 2), 2.0))
    assert not moved.any()
    assert (accounting.voxels_before, accounting.voxels_after) == (0, 0)
    assert centre_of_mass(mask, grid_of((4, 4, 4), 1.0)) is None


def test_centre_of_mass_by_hand():
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[3, 1, 2] = True
    grid = Grid.make((4, 4, 4), [[-2, 0, 0, 10], [0, 2, 0, 0], [0, 0, 2, -5], [0, 0, 0, 1]])
    np.testing.assert_array_equal(centre_of_mass(mask, grid), [7, 1, -3])


@FEW
@given(SEEDS)
def test_voxels_outside_are_those_that_no_voxel_contains(seed):
    rng = np.random.default_rng(seed)
    source, target = random_grid(rng, (4, 5, 3)), random_grid(rng, (3, 3, 4))
    mask = rng.random(source.shape) < 0.5
    outside = sum(
        containing_voxel(world(source, index), target) is None for index in np.argwhere(mask)
    )
    assert count_outside(mask, source, target) == outside


# Linear


def trilinear(data, grid, point):
    """Weighted sum over the eight voxels around a point; voxels that do not exist are 0."""
    position = np.linalg.solve(grid.affine[:3, :3], point - grid.affine[:3, 3])
    low = np.floor(position).astype(int)
    total = 0.0
    for corner in itertools.product([0, 1], repeat=3):
        index = low + corner
        if np.all(index >= 0) and np.all(index < data.shape):
            total += data[tuple(index)] * np.prod(1 - np.abs(position - index))
    return total


@FEW
@given(SEEDS)
def test_linear_is_the_weighted_sum_of_eight_neighbours(seed):
    rng = np.random.default_rng(seed)
    source, target = random_grid(rng, (5, 4, 6)), random_grid(rng, (4, 4, 4))
    data = rng.normal(size=source.shape).astype(np.float32)
    found = resample_linear(data, source, target)
    assert found.dtype == np.float32
    for index in np.ndindex(*target.shape):
        expected = trilinear(data, source, world(target, index))
        assert found[index] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(("axes", "flips"), STORAGES)
def test_linear_does_not_depend_on_storage(axes, flips):
    rng = np.random.default_rng(5)
    source, target = random_grid(rng, (5, 6, 7)), random_grid(rng, (4, 4, 4))
    data = rng.normal(size=source.shape)
    plain = resample_linear(data, source, target)
    other = resample_linear(*stored(data, source, axes, flips), target)
    np.testing.assert_allclose(other, plain, atol=1e-6)


def test_a_background_of_nan_does_not_spread():
    source, target = grid_of((6, 6, 6), 1.0), grid_of((5, 5, 5), 1.0, (0.5, 0.5, 0.5))
    data = np.full(source.shape, np.nan)
    data[2:5, 2:5, 2:5] = 4.0
    found = resample_linear(data, source, target)
    assert np.isfinite(found).all()
    assert found[2, 2, 2] == 4
    # Half of its neighbours are background.
    assert found[1, 2, 2] == 2
    assert np.isfinite(resample_linear(data, source, source)).all()
