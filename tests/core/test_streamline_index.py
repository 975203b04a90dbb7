"""Cells compared with masks, and the crops of masks, against points looked up one by one."""

import itertools
import math

import nibabel as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna_nipype.core import streamline_kernels as kernels
from lacuna_nipype.core.mrtrix_grid import make_mrtrix_grid
from lacuna_nipype.core.streamline_index import (
    INSIDE,
    OUTSIDE,
    TOUCHED,
    CellLattice,
    MaskCrop,
    classify_cells,
    crop_mask,
)


def make_grid(shape, spacing, turn=(1.0, 0.0, 0.0, 0.0), origin=(0.0, 0.0, 0.0)):
    """Grid from a quaternion, as MRtrix sees it."""
    turn = np.asarray(turn) / np.linalg.norm(turn)
    affine = np.eye(4)
    affine[:3, :3] = nb.quaternions.quat2mat(turn) * spacing
    affine[:3, 3] = origin
    return make_mrtrix_grid(tuple(shape), affine, np.asarray(spacing, dtype=float))


def looked_up(crop, points):
    """Whether each point is inside, in single precision as tckedit looks it up."""
    x, y, z = points.astype(np.float32).T
    rows = crop.grid.world_to_voxel_single
    place = np.stack([(r[0] * x + r[1] * y) + (r[2] * z + r[3]) for r in rows], axis=1)
    assert place.dtype == np.float32
    voxel = np.copysign(np.floor(np.abs(place.astype(float)) + 0.5), place).astype(int)
    known = ((voxel >= 0) & (voxel < crop.grid.shape)).all(axis=1)
    inside = np.zeros(len(points), dtype=bool)
    inside[known] = crop.inside[tuple(voxel[known].T)]
    return inside


def cell_of(lattice, points):
    """Number of the cell of each point by plain arithmetic in double precision."""
    index = np.floor((points.astype(np.float64) - lattice.origin) / lattice.size).astype(int)
    within = ((index >= 0) & (index < lattice.shape)).all(axis=1)
    number = (index[:, 0] * lattice.shape[1] + index[:, 1]) * lattice.shape[2] + index[:, 2]
    return np.where(within, number, lattice.n_cells)


# Lattice


@pytest.mark.parametrize("turn", [(1, 0, 0, 0), (0.9, 0.2, -0.3, 0.1)])
def test_lattice_covers_the_grid(turn):
    grid = make_grid((7, 9, 5), (1.5, 1, 3), turn, (-13.3, 4.1, 0.2))
    lattice = CellLattice.around(grid, 2.5)
    corners = np.array(list(itertools.product(*[(-0.5, n - 0.5) for n in grid.shape])))
    world = corners @ grid.voxel_to_world[:3, :3].T + grid.origin
    end = lattice.origin + np.array(lattice.shape) * lattice.size
    assert (lattice.origin <= world.min(axis=0)).all()
    assert (end >= world.max(axis=0)).all()
    assert (world.min(axis=0) - lattice.origin < 2.5).all()
    assert (end - world.max(axis=0) < 2.5).all()
    assert lattice.n_cells == np.prod(lattice.shape)
    np.testing.assert_allclose(lattice.origin % 2.5, 0, atol=1e-12)


def test_cells_of_streamlines():
    rng = np.random.default_rng(3)
    lattice = CellLattice(np.array([-4.0, -6.0, 2.0]), (5, 4, 3))
    lengths = [0, 1, 40, 3, 0, 200, 1]
    parts = [rng.uniform(-8, 14, (n, 3)) for n in lengths]
    parts[3][1] = [1e6, -1e30, 3]
    parts[3][2] = [0, np.nan, 3]
    # On borders of cells.
    parts[5][:100] = np.round(parts[5][:100])
    parts = [part.astype(np.float32) for part in parts]
    first = np.concatenate([[0], np.cumsum([n + 1 for n in lengths])])
    points = np.concatenate([np.vstack([part, [[np.nan] * 3]]) for part in parts]).astype("f4")
    listed = np.ones(len(parts), dtype=bool)
    for stamp, left_out in ((0, None), (50, 2), (2**32 - 1 - len(parts), None)):
        if left_out is not None:
            listed[left_out] = False
        stamps = np.full(lattice.n_cells + 1, 1, np.uint32) if stamp else np.zeros(61, np.uint32)
        cells, counts = np.empty(len(points), np.uint32), np.empty(len(parts), np.uint32)
        n = kernels.list_cells(
            points, first, lattice.origin, lattice.size, np.array(lattice.shape), stamps, stamp,
            cells, counts, listed,
        )  # fmt: skip
        assert n == counts.sum()
        found = np.split(cells[:n], np.cumsum(counts)[:-1])
        for number, part in enumerate(parts):
            with np.errstate(invalid="ignore"):
                expected = set(cell_of(lattice, part)) if listed[number] else set()
            assert len(found[number]) == len(expected)
            assert set(found[number].tolist()) == expected
        listed[:] = True


# Crops


@pytest.mark.parametrize(
    ("voxels", "first", "shape"),
    [
        ([(4, 4, 4)], (3, 3, 3), (3, 3, 3)),
        ([(0, 4, 8)], (0, 3, 7), (2, 3, 2)),
        ([(1, 1, 1), (3, 6, 2)], (0, 0, 0), (5, 8, 4)),
        ([(0, 0, 0), (8, 8, 8)], (0, 0, 0), (9, 9, 9)),
    ],
)
def test_crop_is_the_voxels_and_one_more(voxels, first, shape):
    grid = make_grid((9, 9, 9), (1, 2, 3), origin=(10, 20, 30))
    inside = np.zeros(grid.shape, dtype=bool)
    inside[tuple(np.transpose(voxels))] = True
    crop = crop_mask(inside, grid)
    assert crop.inside.shape == crop.grid.shape == shape
    assert crop.inside.flags.c_contiguous
    np.testing.assert_array_equal(crop.grid.origin, grid.origin + np.array(first) * [1, 2, 3])
    np.testing.assert_array_equal(np.argwhere(crop.inside) + first, np.argwhere(inside))


def test_no_voxel_no_crop():
    grid = make_grid((3, 4, 5), (1, 1, 1))
    assert crop_mask(np.zeros(grid.shape, dtype=bool), grid) is None


# Cells and masks


def random_case(seed, *, smallest=0.1):
    """Oblique grid of any size, mask with holes, and a lattice that need not cover it."""
    rng = np.random.default_rng(seed)
    spacing = np.exp(rng.uniform(np.log(smallest), np.log(4), 3))
    shape = np.clip((rng.uniform(3, 25) / spacing).astype(int), 1, 70)
    turn = rng.normal(size=4) if rng.random() < 0.6 else (1, 0, 0, 0)
    origin = rng.uniform(-90, 90, 3)
    if rng.random() < 0.5:
        spacing, origin = np.round(2 * spacing + 0.5) / 2, np.round(2 * origin) / 2
    grid = make_grid(shape, spacing, turn, origin)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    centre, radius = rng.uniform(0, grid.shape), rng.uniform(0.3, 1) * max(grid.shape)
    inside = ((index - centre) ** 2).sum(axis=-1) < radius**2
    inside[tuple(rng.integers(0, n) for n in grid.shape)] ^= True
    inside &= rng.random(grid.shape) > rng.choice([0, 0, 0.01, 0.3])
    if not inside.any():
        inside[0, 0, 0] = True
    field = make_grid(
        rng.integers(4, 30, 3), rng.uniform(0.5, 2, 3), origin=origin + rng.uniform(-20, 10, 3)
    )
    own = grid if rng.random() < 0.5 else field
    lattice = CellLattice.around(own, float(rng.choice([0.5, 1.0, 2.0, 2.0, 3.3])))
    return crop_mask(inside, grid), lattice, rng


def points_around(crop, lattice, rng, n=20_000):
    """Points in and around a mask: anywhere, near borders of voxels, and on those of cells."""
    crop_shape = np.array(crop.grid.shape)
    voxel = rng.uniform(-2, crop_shape + 1, (n, 3))
    near = rng.random((n, 3)) < 0.3
    voxel[near] = (np.round(voxel - 0.5) + 0.5 + rng.normal(0, 1e-5, (n, 3)))[near]
    points = voxel @ crop.grid.voxel_to_world[:3, :3].T + crop.grid.origin
    on_border = rng.random((n, 3)) < 0.2
    snapped = np.round((points - lattice.origin) / lattice.size) * lattice.size + lattice.origin
    points[on_border] = (snapped + rng.normal(0, 1e-5, (n, 3)) * rng.integers(0, 2))[on_border]
    return points.astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_cells_tell_what_their_points_would(seed):
    crop, lattice, rng = random_case(seed)
    status = classify_cells(crop, lattice)
    assert status.shape == (lattice.n_cells + 1,)
    assert status.dtype == np.uint8
    assert status[-1] != INSIDE
    points = points_around(crop, lattice, rng)
    of_points = status[cell_of(lattice, points)]
    inside = looked_up(crop, points)
    assert inside[of_points == INSIDE].all()
    assert not inside[of_points == OUTSIDE].any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), reach=st.sampled_from([0.1, 0.5, 1.0, 4.0]))
def test_reach_touches_cells_around_the_mask(seed, reach):
    """A point inside is hit by a segment from any point that is no farther than the reach."""
    crop, lattice, rng = random_case(seed, smallest=0.3)
    status = classify_cells(crop, lattice, reach)
    inside = points_around(crop, lattice, rng, 4000)
    inside = inside[looked_up(crop, inside)].astype(np.float64)
    way = rng.normal(size=inside.shape)
    way *= reach / np.linalg.norm(way, axis=1, keepdims=True)
    way *= np.where(rng.random((len(way), 1)) < 0.5, 1, rng.random((len(way), 1)))
    assert (status[cell_of(lattice, (inside + way).astype(np.float32))] != OUTSIDE).all()
    # What lies inside does not depend on it.
    np.testing.assert_array_equal(status == INSIDE, classify_cells(crop, lattice) == INSIDE)


def test_cells_of_a_box_by_hand():
    """Voxels of 2 mm whose borders are those of the cells."""
    grid = make_grid((10, 10, 10), (2, 2, 2), origin=(1, 1, 1))
    inside = np.zeros(grid.shape, dtype=bool)
    inside[2:7, 2:7, 2:7] = True
    lattice = CellLattice.around(grid)
    assert (lattice.shape, lattice.origin.tolist()) == ((10, 10, 10), [0, 0, 0])
    status = classify_cells(crop_mask(inside, grid), lattice)
    cells = status[:-1].reshape(lattice.shape)
    # A margin around each cell allows for single precision: one layer less, one layer more.
    expected = np.full(cells.shape, OUTSIDE)
    expected[1:8, 1:8, 1:8] = TOUCHED
    expected[3:6, 3:6, 3:6] = INSIDE
    np.testing.assert_array_equal(cells, expected)
    assert status[-1] == OUTSIDE


def test_most_cells_of_a_large_mask_are_told():
    """Otherwise the index would be right and slow."""
    turn = (0.98, 0.1, 0.15, -0.05)
    grid = make_grid((50, 50, 50), (1, 1, 1), turn, (-25, -25, -25))
    inside = np.zeros(grid.shape, dtype=bool)
    inside[10:40, 10:40, 10:40] = True
    lattice = CellLattice.around(grid)
    status = classify_cells(crop_mask(inside, grid), lattice)
    volume = 8 * (status == INSIDE).sum()
    assert 0.6 * 30**3 < volume < 30**3
    assert 8 * (status == TOUCHED).sum() < 0.7 * 30**3


@pytest.mark.parametrize("shift", [-500.0, 500.0])
def test_mask_far_from_the_lattice(shift):
    grid = make_grid((5, 5, 5), (1, 1, 1))
    crop = crop_mask(np.ones(grid.shape, dtype=bool), grid)
    far = make_grid((5, 5, 5), (1, 1, 1), origin=(0, shift, 0))
    status = classify_cells(crop, CellLattice.around(far))
    assert not status[:-1].any()
    # Points outside of the lattice may lie in it.
    assert status[-1] == TOUCHED


def test_mask_that_sticks_out_of_the_lattice():
    grid = make_grid((20, 20, 20), (1, 1, 1))
    crop = crop_mask(np.ones(grid.shape, dtype=bool), grid)
    small = make_grid((5, 5, 5), (1, 1, 1), origin=(5, 5, 5))
    status = classify_cells(crop, CellLattice.around(small))
    assert (status[:-1] == INSIDE).all()
    assert status[-1] == TOUCHED


# Kernels


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 1.25, 3), (0.7, 0.7, 2.3)])
def test_search_offsets_against_a_plain_search(spacing):
    """As tck2connectome's source has it: squares added from z to x, equal ones as they come."""
    radius = 4.0
    half = math.sqrt(sum((size / 2) ** 2 for size in spacing))
    assert kernels.half_diagonal(np.array(spacing, dtype=float)) == pytest.approx(half)
    expected = []
    reach = math.ceil((radius + half) / min(spacing))
    for z, y, x in itertools.product(range(-reach, reach + 1), repeat=3):
        a, b, c = x * spacing[0], y * spacing[1], z * spacing[2]
        distance = math.sqrt((c * c + b * b) + a * a)
        if distance < radius + half:
            expected.append((distance, z, y, x))
    found = kernels.search_offsets(np.array(spacing, dtype=float), radius)
    assert [[x, y, z] for _, z, y, x in sorted(expected)] == found.tolist()


def test_voxels_of_points_to_the_last_bit():
    """Transforms that bring points to the borders of voxels, give or take a rounding."""
    rng = np.random.default_rng(12)
    shape = np.array([5, 5, 5])
    other = 0
    for _ in range(2000):
        x, y, z = point = rng.uniform(-90, 90, 3).astype(np.float32)
        transform = rng.uniform(-1, 1, (3, 4)).astype(np.float32)
        target = rng.integers(0, 4, 3) + 0.5
        transform[:, 3] = target - transform[:, :3].astype(float) @ point.astype(float)
        tree = [(r[0] * x + r[1] * y) + (r[2] * z + r[3]) for r in transform]
        row = [((r[0] * x + r[1] * y) + r[2] * z) + r[3] for r in transform]
        assert tree[0].dtype == np.float32
        a, b, c = np.floor(np.array(tree, dtype=float) + 0.5).astype(int)
        assert kernels._voxel(transform, shape, x, y, z) == (a * 5 + b) * 5 + c
        other += (np.floor(np.array(row, dtype=float) + 0.5) != [a, b, c]).any()
    assert other > 200


def test_points_to_the_last_bit():
    """As a program compiled with Eigen 3.4.0 for x86-64 has them: rows are not added alike."""
    matrix = np.array([[0.8, 1.5, -0.9, 0.7], [1.7, -1.8, 1.3, -1.1], [1.2, 0.6, 1.2, -0.4]])
    found = [kernels._transformed(matrix, axis, -9.0, 76.0, -77.0).hex() for axis in range(3)]
    assert found == ["0x1.6199999999999p+7", "-0x1.fa9999999999bp+7", "-0x1.cffffffffffffp+5"]


@pytest.mark.parametrize(
    ("place", "node"),
    [(0.5, 20), (np.nextafter(0.5, 0), 10), (1.5, 30), (np.nextafter(1.5, 0), 20)],
)
def test_end_on_the_border_of_two_nodes(place, node):
    """Both are equally near, so the one whose voxel the end rounds to is taken."""
    inverse, forward = np.eye(4)[:3], np.eye(4)[:3]
    inverse[0, 3], forward[0, 3] = place, -0.5 if place < 1 else -1.5
    nodes = np.empty(1, dtype=np.int32)
    kernels.nearest_nodes(
        np.zeros((1, 3), dtype=np.float32), inverse, forward,
        kernels.search_offsets(np.ones(3), 4.0), 4.0, kernels.half_diagonal(np.ones(3)),
        np.array([3, 1, 1]), np.array([10, 20, 30], dtype=np.int32), nodes,
    )  # fmt: skip
    assert nodes[0] == node


def test_hermite_weights_are_a_cubic():
    """In double precision and from the textbook: tension 0.1, endpoints and their slopes."""
    for ratio in (2, 3, 4, 7):
        weights = kernels.hermite_weights(ratio)
        assert weights.dtype == np.float32
        assert weights.shape == (ratio - 1, 4)
        for step, row in enumerate(weights, start=1):
            p = step / ratio
            h00, h10 = 2 * p**3 - 3 * p**2 + 1, p**3 - 2 * p**2 + p
            h01, h11 = -2 * p**3 + 3 * p**2, p**3 - p**2
            slope = (1 - 0.1) / 2
            expected = [-slope * h10, h00 - slope * h11, h01 + slope * h10, slope * h11]
            np.testing.assert_allclose(row, expected, atol=2e-7)
    assert kernels.hermite_weights(1).shape == (0, 4)


def test_a_crop_is_a_grid_like_any_other():
    grid = make_grid((9, 9, 9), (1, 1, 1))
    inside = np.zeros(grid.shape, dtype=bool)
    inside[4, 5, 6] = True
    crop = crop_mask(inside, grid)
    again = crop_mask(crop.inside, crop.grid)
    assert isinstance(again, MaskCrop)
    np.testing.assert_array_equal(again.grid.voxel_to_world, crop.grid.voxel_to_world)
