"""Eighths of cells compared with masks, and with points looked up one by one."""

import nibabel as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna_nipype.core import streamline_kernels as kernels
from lacuna_nipype.core.mrtrix_grid import make_mrtrix_grid
from lacuna_nipype.core.streamline_index import (
    INSIDE,
    OCTANT_MARGIN_MM,
    OUTSIDE,
    TOUCHED,
    CellLattice,
    classify_cells,
    classify_octants,
    crop_mask,
)


def make_grid(shape, spacing, turn=(1.0, 0.0, 0.0, 0.0), origin=(0.0, 0.0, 0.0)):
    turn = np.asarray(turn) / np.linalg.norm(turn)
    affine = np.eye(4)
    affine[:3, :3] = nb.quaternions.quat2mat(turn) * spacing
    affine[:3, 3] = origin
    return make_mrtrix_grid(tuple(shape), affine, np.asarray(spacing, dtype=float))


def looked_up(crop, points):
    """Whether each point is inside, in single precision as tckedit looks it up."""
    x, y, z = points.T
    rows = crop.grid.world_to_voxel_single
    place = np.stack([(r[0] * x + r[1] * y) + (r[2] * z + r[3]) for r in rows], axis=1)
    assert place.dtype == np.float32
    voxel = np.copysign(np.floor(np.abs(place.astype(float)) + 0.5), place).astype(int)
    known = ((voxel >= 0) & (voxel < crop.grid.shape)).all(axis=1)
    inside = np.zeros(len(points), dtype=bool)
    inside[known] = crop.inside[tuple(voxel[known].T)]
    return inside


def cells_and_octants(lattice, points):
    """Cell and eighth of each point, and whether it is off all borders; -1 outside."""
    place = (points.astype(np.float64) - lattice.origin) / lattice.size
    within = ((place >= 0) & (place < lattice.shape)).all(axis=1)
    index = np.floor(place).astype(int)
    number = (index[:, 0] * lattice.shape[1] + index[:, 1]) * lattice.shape[2] + index[:, 2]
    half = np.floor(2 * place).astype(int) - 2 * index
    away = np.abs(2 * place - np.round(2 * place)) * lattice.size / 2
    certain = (away >= OCTANT_MARGIN_MM).all(axis=1)
    return np.where(within, number, -1), half @ [1, 2, 4], certain


def random_case(seed):
    rng = np.random.default_rng(seed)
    spacing = rng.uniform(0.4, 3, 3)
    turn = rng.normal(size=4) if rng.random() < 0.5 else (1, 0, 0, 0)
    origin = rng.uniform(-120, 120, 3)
    if rng.random() < 0.5:
        spacing, origin = np.full(3, rng.choice([0.5, 1.0, 2.0])), np.round(origin)
    shape = np.clip((rng.uniform(4, 25) / spacing).astype(int), 1, 40)
    grid = make_grid(shape, spacing, turn, origin)
    inside = rng.random(grid.shape) < rng.choice([0.05, 0.5, 0.95, 1])
    inside[0, 0, 0] = True
    lattice = CellLattice.around(grid, 2.0, float(rng.choice([0.0, 0.5])))
    return crop_mask(inside, grid), lattice, rng


def points_around(crop, lattice, rng, n=20_000):
    voxel = rng.uniform(-2, np.array(crop.grid.shape) + 1, (n, 3))
    near = rng.random((n, 3)) < 0.3
    voxel[near] = (np.round(voxel - 0.5) + 0.5 + rng.normal(0, 2e-3, (n, 3)))[near]
    points = voxel @ crop.grid.voxel_to_world[:3, :3].T + crop.grid.origin
    # On and beside borders of eighths.
    near = rng.random((n, 3)) < 0.2
    snapped = np.round(points - lattice.origin) + lattice.origin
    points[near] = (snapped + rng.normal(0, 2e-3, (n, 3)))[near]
    return points.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), reach=st.sampled_from([0.0, 0.5, 3.0]))
def test_octants_tell_what_their_points_would(seed, reach):
    crop, lattice, rng = random_case(seed)
    status = classify_cells(crop, lattice, reach)
    touched, inside = classify_octants(crop, lattice, status, reach)
    assert touched.shape == inside.shape == status.shape
    assert not (inside & ~touched).any()
    assert not touched[status != TOUCHED].any()
    points = points_around(crop, lattice, rng)
    way = rng.normal(size=points.shape)
    way *= rng.uniform(0, reach) / np.linalg.norm(way, axis=1, keepdims=True)
    moved = (points + way).astype(np.float32)
    hit = looked_up(crop, points)
    cell, octant, certain = cells_and_octants(lattice, points)
    known = (cell >= 0) & certain & (status[cell] == TOUCHED)
    assert hit[known & (inside[cell] >> octant & 1 == 1)].all()
    # What is no farther from a point inside than the reach is touched.
    cell, octant, certain = cells_and_octants(lattice, moved)
    known = (cell >= 0) & certain & (status[cell] == TOUCHED)
    assert not hit[known & (touched[cell] >> octant & 1 == 0)].any()


def test_voxels_that_are_eighths_are_told_all():
    """Voxels of 1 mm with centres at whole millimetres, as in standard spaces."""
    rng = np.random.default_rng(2)
    grid = make_grid((30, 31, 29), (1, 1, 1), origin=(-12, 3, -40))
    inside = rng.random(grid.shape) < 0.4
    inside[:12, :9], inside[20:28, 20:28, 20:28] = False, True
    lattice = CellLattice.around(grid, 2.0, 0.5)
    np.testing.assert_array_equal(lattice.origin % 2, 0.5)
    crop = crop_mask(inside, grid)
    status = classify_cells(crop, lattice)
    touched, certain = classify_octants(crop, lattice, status)
    np.testing.assert_array_equal(touched, certain)
    n_told = sum(int((certain >> octant & 1).sum()) for octant in range(8))
    assert n_told + 8 * (status == INSIDE).sum() == inside.sum()
    assert all((status == value).any() for value in (OUTSIDE, TOUCHED, INSIDE))


@pytest.mark.parametrize("listed", [True, False])
def test_octants_of_streamlines(listed):
    rng = np.random.default_rng(8)
    lattice = CellLattice(np.array([-4.5, -6.5, 1.5]), (5, 4, 3))
    lengths = [0, 1, 40, 3, 0, 60, 1, 25]
    parts = [rng.uniform((-5, -7, 1), (6, 2, 8), (n, 3)).astype("f4") for n in lengths]
    parts[3][1] = [1e6, -1e30, 3]
    parts[3][2] = [0, np.nan, 3]
    parts[5][::7] = np.round(2 * parts[5][::7]) / 2
    first = np.concatenate([[0], np.cumsum([n + 1 for n in lengths])])
    points = np.concatenate([np.vstack([part, [[np.nan] * 3]]) for part in parts]).astype("f4")
    place = (lattice.origin, lattice.size, np.array(lattice.shape))
    wanted = np.ones(len(parts), dtype=bool)
    wanted[2] = listed
    cells, counts = np.empty(len(points), np.uint32), np.empty(len(parts), np.uint32)
    stamps = np.zeros(lattice.n_cells + 1, np.uint32)
    n = kernels.list_cells(points, first, *place, stamps, 0, cells, counts, wanted)
    occurring, sizes = np.unique(cells[:n], return_counts=True)
    slots = np.full(lattice.n_cells + 1, -1)
    slots[occurring] = np.arange(len(occurring))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    found = np.full(lattice.n_cells + 1, 77, np.uint16)
    members, octants = np.empty(n, np.uint16), np.empty(n, np.uint8)
    kernels.invert_cells(
        points, first, *place, OCTANT_MARGIN_MM, cells[:n], counts, slots, starts[:-1].copy(),
        found, members, octants,
    )  # fmt: skip
    n_certain = 0
    for slot, cell in enumerate(occurring.tolist()):
        own = slice(starts[slot], starts[slot + 1])
        assert (np.diff(members[own].astype(int)) > 0).all()
        for number, bits in zip(members[own].tolist(), octants[own].tolist(), strict=True):
            with np.errstate(invalid="ignore"):
                of_point, octant, certain = cells_and_octants(lattice, parts[number])
            here = of_point == (cell if cell < lattice.n_cells else -1)
            assert here.any()
            expected = int(np.bitwise_or.reduce(1 << octant[here]))
            if cell == lattice.n_cells or not certain[here].all():
                expected = 0
            assert bits == expected
            n_certain += bits > 0
    assert 20 < n_certain < n - 10
