"""Lesions keep their volume, whatever grid and space they are brought to."""

import itertools

import nibabel as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine

from lacuna_nipype.core.lesion_resampling import resample_mask, warp_mask
from lacuna_nipype.core.resampling import centre_of_mass, resample_nearest
from lacuna_nipype.core.spaces import Grid, grid_of_size
from lacuna_nipype.core.transforms import PointMap, load_point_map

NLIN6, NLIN2009C = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
GRIDS = list(itertools.product((NLIN6, NLIN2009C), (1, 2, 3)))


def ellipsoid(grid, centre, radii):
    """Voxels whose centres lie in an ellipsoid."""
    axes = np.ogrid[tuple(slice(n) for n in grid.shape)]
    rows = zip(grid.affine[:3, :3], grid.affine[:3, 3], centre, radii, strict=True)
    return (
        sum(
            ((sum(a * x for a, x in zip(row, axes, strict=True)) + shift - middle) / radius) ** 2
            for row, shift, middle, radius in rows
        )
        < 1
    )


def pull_of(warps, source, target):
    if source == target:
        return PointMap()
    return load_point_map([warps.to_nlin6 if target == NLIN6 else warps.to_2009c])


def fine_truth(point_map, mask, source, centre, reach):
    """Volume (ml) and centre (mm) of a drawn lesion after its warp, from many points.

    One point at random in every cell of a fine lattice: a regular one would meet the voxels of
    the mask again and again at the same place.
    """
    step, rng = reach / 40, np.random.default_rng(0)
    axes = [np.arange(c - reach, c + reach, step) for c in centre]
    total, volume = np.zeros(3), 0
    for x in axes[0]:
        points = np.stack(np.meshgrid([x], *axes[1:], indexing="ij"), axis=-1).reshape(-1, 3)
        points = points + rng.uniform(0, step, points.shape)
        index = apply_affine(np.linalg.inv(source.affine), point_map(points))
        nearest = np.floor(index + 0.5).astype(int)
        nearest[np.any((nearest < 0) | (nearest >= source.shape), axis=1)] = 0
        inside = mask[tuple(nearest.T)]
        total, volume = total + points[inside].sum(axis=0), volume + inside.sum()
    return volume * step**3 / 1000, total / volume


@pytest.mark.parametrize("millilitres", [1.2, 4.0, 11.0])
@pytest.mark.parametrize("number", range(2))
def test_volume_and_place_between_all_grids(warps, millilitres, number):
    rng = np.random.default_rng([int(millilitres), number])
    centre = rng.uniform(-40, 40, 3)
    radii = np.cbrt(millilitres * 3000 / 4 / np.pi) * np.array([1.25, 1, 0.8])
    adjusted = 0
    for space, size in GRIDS:
        source = grid_of_size(space, size)
        mask = ellipsoid(source, centre, radii)
        for target_space in (NLIN6, NLIN2009C):
            point_map = pull_of(warps, space, target_space)
            volume, place = fine_truth(point_map, mask, source, centre, 20 + radii.max())
            for target_size in (1, 2, 3):
                target = grid_of_size(target_space, target_size)
                moved, account = warp_mask(mask, source, target, point_map)
                adjusted += account.voxels_adjusted > 0
                assert account.volume_ml_after == pytest.approx(volume, rel=0.05)
                shift = np.abs(centre_of_mass(moved, target) - place)
                assert shift.max() < 0.5 * max(size, target_size)
                if space == target_space:
                    assert account.volume_ml_after == pytest.approx(
                        account.volume_ml_before, rel=0.05
                    )
    # Nearest neighbour alone would fail here.
    assert adjusted or millilitres > 4


def shares_by_hand(mask, source, target, n_points):
    """Share of lesion in every voxel of a grid, point by point."""
    steps = (np.arange(n_points) + 0.5) / n_points - 0.5
    to_source = np.linalg.inv(source.affine) @ target.affine
    shares = np.zeros(target.shape)
    for voxel in np.ndindex(*target.shape):
        for step in itertools.product(steps, repeat=3):
            place = to_source[:3, :3] @ (np.array(voxel) + step) + to_source[:3, 3]
            nearest = np.floor(place + 0.5 + 1e-4).astype(int)
            if np.all(nearest >= 0) and np.all(nearest < source.shape):
                shares[voxel] += mask[tuple(nearest)]
    return shares / n_points**3


def small_case(seed):
    rng = np.random.default_rng(seed)
    source = Grid.make((14, 13, 12), nb.affines.from_matvec(np.diag([2.0, 2.2, 2.5]), [-14] * 3))
    turn = nb.eulerangles.euler2mat(*rng.uniform(-0.4, 0.4, 3))
    target = Grid.make((10, 9, 8), nb.affines.from_matvec(turn * 3.1, [-13, -12, -10]))
    mask = ellipsoid(source, rng.uniform(-4, 4, 3), rng.uniform(5, 9, 3))
    return mask, source, target


def test_adjusted_lesions_are_the_voxels_that_they_cover_most():
    n_adjusted = 0
    for seed in range(40):
        mask, source, target = small_case(seed)
        moved, account = resample_mask(mask, source, target)
        nearest = resample_nearest(mask, source, target)
        assert account.voxels_adjusted == np.count_nonzero(moved != nearest)
        if account.voxels_adjusted and n_adjusted < 3:
            n_adjusted += 1
            shares = shares_by_hand(mask, source, target, 4)
            assert moved.sum() == round(shares.sum())
            assert shares[moved].min() >= shares[~moved].max()
            assert abs(nearest.sum() / shares.sum() - 1) > 0.04
    assert n_adjusted == 3


def test_small_and_well_sampled_lesions_are_nearest_neighbour():
    source, target = grid_of_size(NLIN6, 1), grid_of_size(NLIN2009C, 2)
    for radius, centre in ((3, (20, 10, 5)), (25, (-20, -10, 15))):
        mask = ellipsoid(source, centre, (radius,) * 3)
        moved, account = resample_mask(mask, source, target)
        assert account.voxels_adjusted == 0
        assert np.array_equal(moved, resample_nearest(mask, source, target))


def test_a_lesion_cut_by_the_field_of_view_is_not_made_larger_inside():
    source = Grid.make((30, 30, 30), np.diag([2.0, 2, 2, 1]))
    mask = ellipsoid(source, (30, 30, 30), (20, 20, 20))
    target = Grid.make((7, 20, 20), np.diag([3.0, 3, 3, 1]))
    moved, account = resample_mask(mask, source, target)
    nearest = resample_nearest(mask, source, target)
    assert account.volume_ml_after < 0.5 * account.volume_ml_before
    assert abs(int(moved.sum()) - int(nearest.sum())) < 0.1 * nearest.sum()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_adjusting_does_not_depend_on_storage(seed):
    mask, source, target = small_case(seed)
    expected, account = resample_mask(mask, source, target)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = target.shape[0] - 1
    other = Grid.make(target.shape, target.affine @ flip)
    turn = np.diag([1.0, -1, 1, 1])
    turn[1, 3] = source.shape[1] - 1
    stored = Grid.make(source.shape, source.affine @ turn)
    found, again = resample_mask(mask[:, ::-1], stored, other)
    assert again.voxels_adjusted == account.voxels_adjusted
    assert np.array_equal(found[::-1], expected)
    warped, _ = warp_mask(mask, source, target, PointMap())
    assert np.array_equal(warped, expected)
