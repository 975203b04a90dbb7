"""Answers of a streamline index against slow, plain references.

The references do MRtrix's arithmetic in numpy, every operation rounded to single precision; that
MRtrix itself agrees is the matter of another file.
"""

from __future__ import annotations

import functools
import itertools

import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.connectomes import streamline_blocks, streamline_index
from lacuna_nipype.connectomes.streamline_index import grid_as_written, write_index
from lacuna_nipype.connectomes.streamline_query import StreamlineIndex
from lacuna_nipype.connectomes.tractogram import check_tck, iter_tck_streamlines, write_tck
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.mrtrix_grid import make_mrtrix_grid
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.core.streamline_index import crop_mask

F = np.float32


def turned(quaternion, spacing, origin):
    affine = np.eye(4)
    quaternion = np.asarray(quaternion, dtype=float)
    rotation = nb.quaternions.quat2mat(quaternion / np.linalg.norm(quaternion))
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = origin
    return affine


AFFINES = {
    "LAS": np.array([[-1.0, 0, 0, 11], [0, 1, 0, -12], [0, 0, 1, -10], [0, 0, 0, 1]]),
    "RAS": np.array([[2.0, 0, 0, -13], [0, 2, 0, -12.5], [0, 0, 2, -14], [0, 0, 0, 1]]),
    "LIA": np.array([[-1.0, 0, 0, 11], [0, 0, 1.0, -12], [0, -1.0, 0, 10], [0, 0, 0, 1]]),
    "oblique": turned([0.95, 0.1, -0.2, 0.15], [1.1, 0.9, 2.0], [-14, -9, -17]),
    "steep": turned([0.75, 0.4, 0.1, -0.5], [0.7, 1.6, 1.2], [-12, 8, -14]),
}
SHAPES = {
    "LAS": (23, 25, 22),
    "RAS": (13, 13, 14),
    "LIA": (24, 22, 25),
    "oblique": (24, 26, 14),
    "steep": (30, 17, 20),
}


def some_streamlines(rng, n, step, *, on_halves):
    """Curves that turn, some empty, some a point, some with long jumps or far away."""
    streamlines = []
    for number in range(n):
        n_points = int(rng.choice([0, 1, 2, 3, 12, 40, 70]))
        directions = rng.normal(size=(n_points, 3)) * 0.5 + rng.normal(size=3)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True) + 1e-9
        points = rng.uniform(-12, 12, 3) + step * np.cumsum(directions, axis=0)
        if on_halves:
            points = np.round(2 * points) / 2
        if n_points > 5 and number % 9 == 0:
            points[3] *= 40
        if n_points > 5 and number % 11 == 0:
            points[4] = rng.choice([-1e6, 1e6], 3)
        streamlines.append(points.astype(F))
    return streamlines


def small_blocks(monkeypatch, n_streamlines, n_points=90):
    """Make blocks of a few streamlines, so that there are many."""
    monkeypatch.setattr(streamline_blocks, "MOST_STREAMLINES", n_streamlines)
    read = functools.partial(streamline_blocks.iter_blocks, points_per_read=n_points)
    monkeypatch.setattr(streamline_index, "iter_blocks", read)


def a_mask(rng, affine, shape, share=0.02):
    """Scattered voxels and a block of them on some grid, as the index wants it."""
    grid = make_mrtrix_grid(shape, affine, np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    inside = rng.random(grid.shape) < share
    low = [int(rng.integers(0, n - 2)) for n in grid.shape]
    inside[low[0] : low[0] + 4, low[1] : low[1] + 3, low[2] : low[2] + 4] = True
    return inside, grid


# The references


def rounded(values):
    """Halves away from zero."""
    values = np.asarray(values, dtype=np.float64)
    return np.copysign(np.floor(np.abs(values) + 0.5), values)


def voxels_at(transform, shape, points):
    """Voxels of those of some points that have one, by single-precision arithmetic."""
    x, y, z = np.asarray(points, dtype=F).reshape(-1, 3).T
    with np.errstate(over="ignore", invalid="ignore"):
        place = [(r[0] * x + r[1] * y) + (r[2] * z + r[3]) for r in transform.astype(F)]
    assert place[0].dtype == F
    index = rounded(np.stack(place, axis=1))
    known = ((index >= 0) & (index < shape)).all(axis=1)
    return list(map(tuple, index[known].astype(int).tolist()))


def upsampled(points, ratio):
    """Points and those that tckmap puts between them, in any order."""
    if ratio < 2 or len(points) < 2:
        return points
    with np.errstate(over="ignore", invalid="ignore"):
        before = points[0] + (points[0] - points[1])
        after = points[-1] + (points[-1] - points[-2])
    padded = np.stack([before, *points, after])
    half, t = F(0.5), F(0.5) * F(0.1)
    found = [points]
    for k in range(1, ratio):
        p = F(k / ratio)
        p2 = p * p
        p3 = p * p2
        weights = (
            (half - t) * (F(2) * p2 - p3 - p),
            F(1) + (F(1.5) + t) * p3 - (F(2.5) + t) * p2,
            (F(2) + F(2) * t) * p2 + (half - t) * p - (F(1.5) + t) * p3,
            (half - t) * (p3 - p2),
        )
        a, b, c, d = (w * padded[i : len(padded) - 3 + i] for i, w in enumerate(weights))
        found.append(((a + b) + c) + d)
        assert found[-1].dtype == F
    return np.concatenate(found)


def voxels_of(points, grid, ratio):
    """All voxels of a streamline, each once."""
    return set(voxels_at(grid.world_to_voxel, grid.shape, upsampled(points, ratio)))


def density_of(streamlines, grid, ratio, weights=None):
    density = np.zeros(grid.shape, dtype=np.uint32 if weights is None else F)
    for number, points in enumerate(streamlines):
        for voxel in voxels_of(points, grid, ratio):
            density[voxel] += 1 if weights is None else weights[number]
    return density


def cropped(inside, grid):
    """Transform, shape and values of the box of a mask, one voxel larger."""
    found = np.argwhere(inside)
    low = np.maximum(found.min(axis=0) - 1, 0)
    high = np.minimum(found.max(axis=0) + 2, grid.shape)
    affine = grid.voxel_to_world.copy()
    for axis in range(3):
        affine[:3, 3] += int(low[axis]) * grid.spacing[axis] * grid.directions[:, axis]
    box = inside[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return np.linalg.inv(affine)[:3], box


def hit_by_vertices(streamlines, inside, grid):
    transform, box = cropped(inside, grid)
    hits = []
    for number, points in enumerate(streamlines):
        if any(box[voxel] for voxel in voxels_at(transform, box.shape, points)):
            hits.append(number)
    return hits


def shares_inside(start, end, inside, grid, half):
    """Share of a segment inside a box around each voxel of a mask; below 0 where it misses."""
    voxels = np.argwhere(inside)
    to_voxel = np.linalg.inv(grid.voxel_to_world)
    a = to_voxel[:3, :3] @ start.astype(float) + to_voxel[:3, 3]
    b = to_voxel[:3, :3] @ end.astype(float) + to_voxel[:3, 3]
    enter, leave = np.zeros(len(voxels)), np.ones(len(voxels))
    for axis in range(3):
        low, high = voxels[:, axis] - half - a[axis], voxels[:, axis] + half - a[axis]
        step = b[axis] - a[axis]
        if step == 0:
            outside = (low > 0) | (high < 0)
            leave[outside] = -np.inf
        else:
            enter = np.maximum(enter, np.minimum(low / step, high / step))
            leave = np.minimum(leave, np.maximum(low / step, high / step))
    return leave - enter


def cross_the_mask(streamlines, inside, grid):
    """Streamlines that certainly do, and those that certainly do not."""
    hit, missed = [], []
    vertices = set(hit_by_vertices(streamlines, inside, grid))
    for number, points in enumerate(streamlines):
        # Boxes a little smaller and a little larger than voxels: what only touches may be either.
        longest = [
            max(
                (
                    shares_inside(start, end, inside, grid, half).max()
                    for start, end in itertools.pairwise(points)
                ),
                default=-1.0,
            )
            for half in (0.5 - 1e-6, 0.5 + 1e-6)
        ]
        if number in vertices or longest[0] > 1e-7:
            hit.append(number)
        elif longest[1] < 0:
            missed.append(number)
    return hit, missed


# An index per grid


@pytest.fixture(scope="module", params=list(AFFINES))
def built(request, tmp_path_factory):
    """Index of streamlines on halves or anywhere, in blocks of five; with the streamlines."""
    number = list(AFFINES).index(request.param)
    rng = np.random.default_rng(100 + number)
    streamlines = some_streamlines(rng, 60, [1, 0.7, 2, 1.5, 0.5][number], on_halves=number < 3)
    folder = tmp_path_factory.mktemp("built")
    write_tck(folder / "a.tck", streamlines, step_size=1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_blocks(monkeypatch, 5)
        record = write_index(
            folder / "a.tck", folder / "a.h5", space="here",
            grid=Grid.make(SHAPES[request.param], AFFINES[request.param]),
            upsample=[None, None, 3, 2, 1][number],
        )  # fmt: skip
    with StreamlineIndex(record.path, n_threads=2) as index:
        assert len(index.blocks) > 12
        yield index, streamlines


@pytest.fixture
def case(built):
    return *built, np.random.default_rng(9)


def test_voxels_of_every_streamline(case):
    index, streamlines, _ = case
    ratio = index.record.upsample
    for number, points in enumerate(streamlines):
        density = index.count(np.array([number]))
        assert density.max(initial=0) <= 1
        expected = voxels_of(points, index.grid, ratio)
        assert set(map(tuple, np.argwhere(density).tolist())) == expected


def test_density_of_all_and_of_some(case):
    index, streamlines, rng = case
    ratio = index.record.upsample
    expected = density_of(streamlines, index.grid, ratio)
    assert expected.sum() > 150
    np.testing.assert_array_equal(index.density, expected)
    np.testing.assert_array_equal(index.total_density(), expected)
    everything = np.arange(len(streamlines))
    np.testing.assert_array_equal(index.count(everything), expected)
    some = np.flatnonzero(rng.random(len(streamlines)) < 0.3)
    counted = index.count(some)
    assert counted.dtype == np.uint32
    np.testing.assert_array_equal(
        counted, density_of([streamlines[i] for i in some], index.grid, ratio)
    )
    nothing = index.count(np.empty(0, dtype=np.int64))
    assert (nothing.shape, nothing.any()) == (index.grid.shape, False)


def test_weights_are_added_in_the_order_of_the_file(case):
    index, streamlines, rng = case
    ratio = index.record.upsample
    weights = np.exp(rng.normal(0, 3, len(streamlines))).astype(F)
    expected = density_of(streamlines, index.grid, ratio, weights)
    found = index.total_density(weights)
    assert found.dtype == F
    np.testing.assert_array_equal(found, expected)
    some = np.flatnonzero(rng.random(len(streamlines)) < 0.5)
    np.testing.assert_array_equal(
        index.count(some, weights),
        density_of([streamlines[i] for i in some], index.grid, ratio, weights[some]),
    )


@pytest.mark.parametrize("mask_grid", list(AFFINES))
def test_streamlines_with_a_vertex_in_a_mask(case, mask_grid):
    index, streamlines, rng = case
    n_hits = 0
    for _ in range(4):
        inside, grid = a_mask(rng, AFFINES[mask_grid], SHAPES[mask_grid])
        hits = index.select(crop_mask(inside, grid))
        assert hits.dtype == np.int64
        assert hits.tolist() == hit_by_vertices(streamlines, inside, grid)
        n_hits += len(hits)
    assert 4 < n_hits < 4 * len(streamlines) - 4


@pytest.mark.parametrize("mask_grid", list(AFFINES))
def test_streamlines_that_cross_a_mask(case, mask_grid):
    index, streamlines, rng = case
    inside, grid = a_mask(rng, AFFINES[mask_grid], SHAPES[mask_grid], share=0.003)
    found = index.select(crop_mask(inside, grid), "segments").tolist()
    hit, missed = cross_the_mask(streamlines, inside, grid)
    assert set(hit) <= set(found)
    assert not set(missed) & set(found)
    assert len(hit) + len(missed) > 0.9 * len(streamlines)
    assert set(hit_by_vertices(streamlines, inside, grid)) <= set(found)
    # Points along the segments, without any clipping.
    to_voxel = np.linalg.inv(grid.voxel_to_world)
    for number, points in enumerate(streamlines):
        for start, end in itertools.pairwise(points.astype(float)):
            way = start + np.linspace(0, 1, 301)[:, np.newaxis] * (end - start)
            place = way @ to_voxel[:3, :3].T + to_voxel[:3, 3]
            voxel = np.floor(place + 0.5).astype(int)
            clear = (np.abs(place + 0.5 - np.round(place + 0.5)) > 1e-6).all(axis=1)
            voxel = voxel[clear & ((voxel >= 0) & (voxel < grid.shape)).all(axis=1)]
            if inside[tuple(voxel.T)].any():
                assert number in found
                break


def nearest_node(point, labels, grid, radius=4.0):
    """Node of the nearest labelled voxel centre; None where several are equally near."""
    centres = np.argwhere(labels) @ grid.voxel_to_world[:3, :3].T + grid.origin
    distances = np.sqrt(((centres - point.astype(float)) ** 2).sum(axis=1))
    nearest = distances.min()
    if abs(nearest - radius) < 1e-9:
        return None
    if nearest > radius:
        return 0
    nodes = set(labels[labels > 0][distances < nearest + 1e-9].tolist())
    return nodes.pop() if len(nodes) == 1 else None


@pytest.mark.parametrize("label_grid", list(AFFINES))
def test_nodes_of_the_ends(case, label_grid):
    index, streamlines, rng = case
    affine, shape = AFFINES[label_grid], SHAPES[label_grid]
    grid = make_mrtrix_grid(shape, affine, np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    labels = np.where(rng.random(grid.shape) < 0.004, rng.integers(1, 90, grid.shape), 0)
    nodes = index.assign_nodes(labels.astype(np.int32), grid)
    assert (nodes.shape, nodes.dtype) == ((len(streamlines), 2), np.uint16)
    compared = 0
    for points, found in zip(streamlines, nodes, strict=True):
        if not len(points):
            assert found.tolist() == [0, 0]
            continue
        for end, node in zip((points[0], points[-1]), found, strict=True):
            expected = nearest_node(end, labels, grid)
            if expected is not None:
                compared += 1
                assert node == expected
    assert compared > 50
    assert 0 < (nodes > 0).sum() < nodes.size


def test_a_smaller_radius_finds_less(case):
    index, _, rng = case
    labels = np.where(rng.random(index.grid.shape) < 0.01, 3, 0).astype(np.int32)
    counts = [(index.assign_nodes(labels, index.grid, radius) > 0).sum() for radius in (0, 1, 4)]
    assert counts[0] == 0
    assert counts[1] < counts[2]


def test_streamlines_as_they_were(case, tmp_path):
    index, streamlines, rng = case
    some = np.flatnonzero(rng.random(len(streamlines)) < 0.4)
    for number, points in zip(some, index.streamlines(some), strict=True):
        assert points.dtype == F
        np.testing.assert_array_equal(points, streamlines[number])
    target = index.write_streamlines(some, tmp_path / "some.tck")
    header = check_tck(target)
    assert (header.count, header.step_size) == (len(some), 1.0)
    for number, points in zip(some, iter_tck_streamlines(target), strict=True):
        np.testing.assert_array_equal(points, streamlines[number])


def test_sums_of_weights_in_single_precision(made):
    """Where the order of adding is all that matters."""
    weights = np.array([2**24, 1, 1, 1, 2, -(2**24)], dtype=F)
    points = np.array([[0, 0, 0], [1, 0, 0]], dtype=F)
    with made([points] * 6) as index:
        assert index.total_density(weights).max() == 2
        assert index.count(np.array([1, 2, 3, 4]), weights).max() == 5
        assert index.count(np.array([0, 1, 5]), weights).max() == 0


# What does not depend on threads, blocks, direction and the like


@pytest.fixture
def made(tmp_path):
    """Make an index of given streamlines; keyword arguments go to the index's writer."""

    def make(streamlines, *, name="a", shape=(25, 25, 25), origin=-12, n_threads=1, **options):
        path = tmp_path / f"{name}.tck"
        write_tck(path, streamlines, step_size=1)
        affine = np.eye(4)
        affine[:3, 3] = origin
        record = write_index(
            path, tmp_path / f"{name}.h5", grid=Grid.make(shape, affine), space="here", **options
        )
        return StreamlineIndex(record.path, n_threads=n_threads)

    return make


def test_threads_change_nothing(made, monkeypatch):
    rng = np.random.default_rng(5)
    streamlines = some_streamlines(rng, 200, 1, on_halves=False)
    small_blocks(monkeypatch, 9)
    weights = rng.random(200).astype(F)
    inside, grid = a_mask(rng, AFFINES["oblique"], SHAPES["oblique"])
    labels = (rng.random(grid.shape) < 0.1).astype(np.int32)
    answers = []
    for n_threads in (1, 2, 7):
        with made(streamlines, n_threads=n_threads) as index:
            hits = index.select(crop_mask(inside, grid), "segments")
            answers.append(
                (
                    index.select(crop_mask(inside, grid)),
                    hits,
                    index.count(hits),
                    index.count(hits, weights),
                    index.assign_nodes(labels, grid),
                )
            )
    for other in answers[1:]:
        for first, second in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_answers_do_not_depend_on_the_blocks(made, monkeypatch):
    rng = np.random.default_rng(6)
    streamlines = some_streamlines(rng, 150, 1, on_halves=True)
    inside, grid = a_mask(rng, AFFINES["LIA"], SHAPES["LIA"])
    answers = []
    for n_streamlines, n_points in ((2**16, 10**6), (1, 10), (11, 10**6), (2**16, 1)):
        small_blocks(monkeypatch, n_streamlines, n_points)
        with made(streamlines) as index:
            hits = index.select(crop_mask(inside, grid), "segments")
            vertices = index.select(crop_mask(inside, grid))
            answers.append((index.density, vertices, hits, index.count(hits)))
    for other in answers[1:]:
        for first, second in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("hit_test", ["vertices", "segments"])
def test_direction_of_a_streamline_changes_nothing(made, hit_test):
    """Points on borders, edges and corners of voxels, whose coordinates are exact."""
    rng = np.random.default_rng(7)
    streamlines = [
        np.round(2 * rng.uniform(-1, 15, (n, 3))).astype(F) / 2
        for n in rng.integers(2, 6, 400).tolist()
    ]
    grid = make_mrtrix_grid((15, 15, 15), np.diag([1.0, 1, 1, 1]), np.ones(3))
    inside = rng.random(grid.shape) < 0.01
    with made(streamlines) as index:
        forwards = index.select(crop_mask(inside, grid), hit_test)
    with made([points[::-1] for points in streamlines], name="b") as index:
        backwards = index.select(crop_mask(inside, grid), hit_test)
    np.testing.assert_array_equal(forwards, backwards)
    assert 10 < len(forwards) < 390


@pytest.mark.parametrize(
    ("points", "hit"),
    [
        ([[-3, 0, 0], [3, 0, 0]], True),
        ([[-3, 0.5, 0], [3, 0.5, 0]], False),
        ([[-3, -0.5, 0], [3, -0.5, 0]], True),
        ([[-3, 0.49, 0.49], [3, 0.49, 0.49]], True),
        ([[-1, 0, 0], [1, 2, 0]], False),
        ([[-1, -0.01, 0], [1, 1.97, 0]], True),
        ([[0, 0, 0]], True),
        ([[-3, 0, 0], [-0.6, 0, 0]], False),
        ([[-3, 0, 0], [-0.51, 0, 0], [3, 3, 0]], True),
        ([[-3, -3, -3], [3, 3, 3]], True),
        ([[3, 3, 3], [-3, -3, -3]], True),
        ([[3, 0, 0], [3, 0, 0], [2, 0, 0]], False),
        ([[0, 0, -5000], [0, 0, 5000]], True),
        ([[0, 0.6, -5000], [0, 0.6, 5000]], False),
    ],
)
def test_one_voxel_and_one_line(made, points, hit):
    """The voxel around 0, 0, 0; of a border, the upper voxel has it."""
    grid = make_mrtrix_grid((7, 7, 7), np.diag([1.0, 1, 1, 1]), np.ones(3)).crop(
        np.array([-3, -3, -3]), (7, 7, 7)
    )
    inside = np.zeros(grid.shape, dtype=bool)
    inside[3, 3, 3] = True
    with made([np.array(points, dtype=F)]) as index:
        assert len(index.select(crop_mask(inside, grid), "segments")) == hit


def test_masks_beyond_the_grid_of_the_density(made):
    """Streamlines are found where the density's grid does not reach."""
    far = np.array([[40.0, 0, 0], [41, 0, 0], [80, 0, 0]], dtype=F)
    near = np.array([[0.0, 0, 0], [1, 0, 0]], dtype=F)
    grid = make_mrtrix_grid((200, 3, 3), np.diag([1.0, 1, 1, 1]), np.ones(3))
    with made([near, far, near]) as index:
        for voxels, vertices, segments in (
            (slice(40, 42), [1], [1]),
            (slice(60, 62), [], [1]),
            (slice(80, 81), [1], [1]),
            (slice(81, 90), [], []),
            (slice(0, 90), [0, 1, 2], [0, 1, 2]),
        ):
            inside = np.zeros(grid.shape, dtype=bool)
            inside[voxels, 0, 0] = True
            crop = crop_mask(inside, grid)
            assert index.select(crop).tolist() == vertices
            assert index.select(crop, "segments").tolist() == segments


def test_no_mask_and_an_unknown_test(made):
    with made([np.zeros((3, 3), dtype=F)]) as index:
        found = index.select(None)
        assert (found.shape, found.dtype) == ((0,), np.int64)
        with pytest.raises(ValidationError, match="spheres"):
            index.select(None, "spheres")


def test_density_on_a_stored_order_of_axes(made, tmp_path):
    """The grid that was asked for is the image's; answers are in near-RAS order."""
    points = np.array([[3.0, -2, 1], [4, -2, 1]], dtype=F)
    path = tmp_path / "x.tck"
    write_tck(path, [points], step_size=None)
    grid = Grid.make(SHAPES["LIA"], AFFINES["LIA"])
    record = write_index(path, tmp_path / "x.h5", grid=grid, space="here")
    with StreamlineIndex(record.path) as index:
        stored = index.grid.to_stored(index.density)
        world = np.argwhere(stored) @ AFFINES["LIA"][:3, :3].T + AFFINES["LIA"][:3, 3]
        assert sorted(map(tuple, world.tolist())) == [(3, -2, 1), (4, -2, 1)]
        assert stored.shape == SHAPES["LIA"]
    np.testing.assert_array_equal(
        record.mrtrix_grid.voxel_to_world, grid_as_written(grid).voxel_to_world
    )
