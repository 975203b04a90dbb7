"""Building a streamline index: what is read, what is written, what is refused."""

import functools
import itertools
import os
import subprocess
import sys
import textwrap
import time

import h5py
import numpy as np
import pytest

from lacuna_nipype.connectomes import streamline_blocks, streamline_index
from lacuna_nipype.connectomes.streamline_blocks import iter_blocks
from lacuna_nipype.connectomes.streamline_index import (
    ARRAYS,
    FORMAT_VERSION,
    LONG_STEP_MM,
    find_tractogram,
    is_index,
    read_index_record,
    write_index,
)
from lacuna_nipype.connectomes.streamline_query import StreamlineIndex
from lacuna_nipype.connectomes.tractogram import (
    iter_tck_streamlines,
    read_tck_header,
    write_tck,
)
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.mrtrix_grid import MrtrixGrid, make_mrtrix_grid
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.core.streamline_index import crop_mask

NAN = np.full((1, 3), np.nan)
INF = np.full((1, 3), np.inf)
AFFINE = np.array([[1.0, 0, 0, -10], [0, 1, 0, -10], [0, 0, 1, -10], [0, 0, 0, 1]])
GRID = Grid.make((21, 21, 21), AFFINE)


def raw_tck(path, *parts, dtype="<f4", count=None, offset=200, tail=b""):
    """Write a tractogram triplet by triplet."""
    name = f"Float{8 * int(dtype[2])}{'LE' if dtype[0] == '<' else 'BE'}"
    lines = ["mrtrix tracks", f"datatype: {name}", f"file: . {offset}", "END", ""]
    if count is not None:
        lines.insert(1, f"count: {count}")
    data = b"".join(np.asarray(part, dtype=float).reshape(-1, 3).astype(dtype).tobytes()
                    for part in parts)  # fmt: skip
    path.write_bytes("\n".join(lines).encode().ljust(offset, b"\0") + data + tail)
    return path


def line(n, start=(0.0, 0.0, 0.0), step=(1.0, 0.0, 0.0)):
    return np.asarray(start) + np.arange(n)[:, np.newaxis] * np.asarray(step)


def wandering(rng, n):
    """Streamlines of very different lengths, empty ones and single points among them."""
    lengths = rng.choice([0, 1, 2, 5, 30, 200], n)
    return [
        (rng.uniform(-9, 9, 3) + np.cumsum(rng.normal(0, 0.4, (k, 3)), axis=0)).astype("f4")
        for k in lengths
    ]


def index_of(tractogram, name="a.h5", **options):
    options = {"grid": GRID, "space": "here", **options}
    return write_index(tractogram, tractogram.parent / name, **options)


def mask(*voxels):
    """Mask of voxels of the grid, given by where they are, mm."""
    grid = make_mrtrix_grid(GRID.shape, GRID.affine, np.ones(3))
    inside = np.zeros(grid.shape, dtype=bool)
    for voxel in voxels:
        inside[tuple(np.array(voxel) + 10)] = True
    return crop_mask(inside, grid)


def whole_grid():
    """Mask of the whole field of view."""
    return mask(*itertools.product(range(-10, 11), repeat=3))


def places(density):
    """Where a density is not zero, mm."""
    return sorted(map(tuple, (np.argwhere(density) - 10).tolist()))


def assert_one_sentence(error):
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text


# Blocks


@pytest.mark.parametrize("points_per_read", [1, 2, 7, 64, 10**6])
@pytest.mark.parametrize("most", [1, 3, 2**16])
@pytest.mark.parametrize("dtype", ["<f4", ">f8"])
def test_blocks_hold_every_streamline_in_order(
    tmp_path, monkeypatch, points_per_read, most, dtype
):
    monkeypatch.setattr(streamline_blocks, "MOST_STREAMLINES", most)
    streamlines = wandering(np.random.default_rng(1), 30)
    parts = [part for streamline in streamlines for part in (streamline, NAN)]
    path = raw_tck(tmp_path / "a.tck", *parts, INF, dtype=dtype)
    found, position = [], 0
    for block in iter_blocks(read_tck_header(path), points_per_read=points_per_read):
        assert 1 <= block.n_streamlines <= most
        assert block.position == position
        assert block.points.dtype == np.float32
        assert len(block.points) == block.first[-1]
        position += len(block.points)
        for a, b in zip(block.first[:-1], block.first[1:], strict=True):
            assert np.isnan(block.points[b - 1, 0])
            found.append(block.points[a : b - 1])
    assert len(found) == len(streamlines)
    for first, second in zip(found, streamlines, strict=True):
        np.testing.assert_array_equal(first, second)
    # Those of the plain reader.
    for first, second in zip(found, iter_tck_streamlines(path), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("points_per_read", [1, 4, 1000])
@pytest.mark.parametrize(
    ("count", "kept"), [(None, 5), (0, 5), (1, 1), (3, 3), (5, 5), (9, 5), ("many", 5)]
)
def test_header_counts(tmp_path, monkeypatch, points_per_read, count, kept):
    monkeypatch.setattr(streamline_blocks, "MOST_STREAMLINES", 2)
    parts = [part for n in (3, 0, 5, 1, 2) for part in (line(n), NAN)]
    path = raw_tck(tmp_path / "a.tck", *parts, INF, count=count)
    blocks = list(iter_blocks(read_tck_header(path), points_per_read=points_per_read))
    assert sum(block.n_streamlines for block in blocks) == kept
    sizes = np.concatenate([np.diff(block.first) - 1 for block in blocks])
    assert sizes.tolist() == [3, 0, 5, 1, 2][:kept]


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        ([line(3), NAN, line(4), INF], [3]),
        ([line(3), NAN, line(4)], [3]),
        ([line(3), NAN, INF, line(4), NAN], [3]),
        ([line(3), NAN, [[-np.inf, 1, 1]], line(4), NAN, INF], [3]),
        ([line(3), [[np.nan, 5, 5]], line(2), NAN, INF], [3, 2]),
        ([line(3), [[1, np.nan, 1]], [[1, 1, np.inf]], NAN, INF], [5]),
        ([NAN, NAN, NAN, INF], [0, 0, 0]),
        ([INF], []),
        ([line(7), INF], []),
        ([], []),
    ],
)
@pytest.mark.parametrize("points_per_read", [1, 3, 1000])
def test_separators_and_ends(tmp_path, parts, sizes, points_per_read):
    path = raw_tck(tmp_path / "a.tck", *parts, tail=b"12345")
    blocks = list(iter_blocks(read_tck_header(path), points_per_read=points_per_read))
    found = [size for block in blocks for size in (np.diff(block.first) - 1).tolist()]
    assert found == sizes


# The index and its file


def test_record(tmp_path):
    path = tmp_path / "a.tck"
    parts = [line(4), np.empty((0, 3)), line(1), line(3, step=(0, LONG_STEP_MM + 1, 0)), line(2)]
    write_tck(path, parts, step_size=1.0)
    record = index_of(path, space="MNI152NLin6Asym")
    assert record.path == tmp_path / "a.h5"
    assert record.tractogram == path
    assert (record.n_streamlines, record.n_points) == (5, 10)
    assert (record.n_empty, record.n_one_point) == (1, 1)
    assert (record.upsample, record.step_size, record.reach) == (4, 1.0, 0.5)
    assert record.space == "MNI152NLin6Asym"
    assert record.grid.same_as(GRID)
    assert isinstance(record.mrtrix_grid, MrtrixGrid)
    assert vars(read_index_record(record.path)).keys() == vars(record).keys()
    again = read_index_record(record.path)
    assert all(
        getattr(again, key) == getattr(record, key) for key in vars(record) if key != "grid"
    )
    assert is_index(record.path)
    with StreamlineIndex(record.path) as index:
        (block,) = index.blocks
        np.testing.assert_array_equal(
            block.end[:, 0], [[0, 0, 0], [np.nan] * 3, [0, 0, 0], [0, 0, 0], [0, 0, 0]]
        )
        np.testing.assert_array_equal(
            block.end[:, 1], [[3, 0, 0], [np.nan] * 3, [0, 0, 0], [0, 18, 0], [1, 0, 0]]
        )
        assert block.long.tolist() == [3]


@pytest.mark.parametrize(
    ("step_size", "upsample", "ratio"),
    [(None, None, 1), (None, 3, 3), (0.5, None, 2), (0.5, 1, 1), (2.0, None, 7)],
)
def test_upsampling(tmp_path, step_size, upsample, ratio):
    path = tmp_path / "a.tck"
    write_tck(path, [line(3, step=(2, 0, 0))], step_size=step_size)
    record = index_of(path, upsample=upsample)
    assert (record.upsample, record.step_size) == (ratio, step_size)
    with StreamlineIndex(record.path) as index:
        found = places(index.density)
    stored = [(0, 0, 0), (2, 0, 0), (4, 0, 0)]
    assert found == (stored if ratio == 1 else [(x, 0, 0) for x in range(5)])


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("offset", [200, 203])
def test_datatypes_and_offsets_give_the_same_answers(tmp_path, dtype, offset):
    """Points in double precision or another byte order are read one streamline at a time."""
    rng = np.random.default_rng(2)
    streamlines = wandering(rng, 40)
    parts = [part for streamline in streamlines for part in (streamline, NAN)]
    plain = index_of(raw_tck(tmp_path / "a.tck", *parts, INF))
    other = index_of(raw_tck(tmp_path / "b.tck", *parts, INF, dtype=dtype, offset=offset), "b.h5")
    crop = mask(*itertools.product(range(-4, 3, 2), repeat=3))
    with StreamlineIndex(plain.path) as first, StreamlineIndex(other.path) as second:
        np.testing.assert_array_equal(first.density, second.density)
        for hit_test in ("vertices", "segments"):
            hits = first.select(crop, hit_test)
            assert 3 < len(hits) < 35
            np.testing.assert_array_equal(hits, second.select(crop, hit_test))
        pairs = zip(first.streamlines(hits), second.streamlines(hits), strict=True)
        for one, two in pairs:
            assert two.dtype == np.float32
            np.testing.assert_array_equal(one, two)


def test_the_file_is_the_same_whatever_the_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(streamline_blocks, "MOST_STREAMLINES", 13)
    path = tmp_path / "a.tck"
    write_tck(path, wandering(np.random.default_rng(3), 300), step_size=0.5)
    contents = []
    for n_threads in (1, 3):
        index_of(path, "a.h5", n_threads=n_threads)
        contents.append((tmp_path / "a.h5").read_bytes())
        # HDF5 may keep times, in seconds.
        time.sleep(1.1 * (n_threads == 1))
    assert contents[0] == contents[1]


def test_arrays_are_aligned(tmp_path, monkeypatch):
    """Kernels are compiled for aligned arrays; others would cost seconds each."""
    monkeypatch.setattr(streamline_blocks, "MOST_STREAMLINES", 2)
    path = tmp_path / "a.tck"
    write_tck(path, wandering(np.random.default_rng(4), 30), step_size=1.0)
    with StreamlineIndex(index_of(path).path) as index:
        assert len(index.blocks) == 15
        for block in index.blocks:
            assert all(getattr(block, name).flags.aligned for name in ARRAYS)
        assert index.density.flags.aligned


def test_scratch_numbers_that_run_out_start_again(tmp_path, monkeypatch):
    """Streamlines are told apart by a running number of 32 bits."""
    monkeypatch.setattr(streamline_blocks, "MOST_STREAMLINES", 10)
    path = tmp_path / "a.tck"
    write_tck(path, wandering(np.random.default_rng(5), 200), step_size=0.5)
    plain = index_of(path, "plain.h5")
    original = streamline_index._Encoder._scratch

    def near_the_end(encoder):
        scratch = original(encoder)
        scratch.stamp = max(scratch.stamp, 2**32 - 150)
        return scratch

    monkeypatch.setattr(streamline_index._Encoder, "_scratch", near_the_end)
    late = index_of(path, "late.h5")
    assert plain.path.read_bytes() == late.path.read_bytes()


def test_jumps_need_more_room_than_there_was(tmp_path):
    """Every point is far from the one before: five bytes each instead of one."""
    rng = np.random.default_rng(6)
    points = rng.integers(-10, 11, (4000, 3)).astype("f4")
    path = tmp_path / "a.tck"
    write_tck(path, [points, points[:50]], step_size=None)
    with StreamlineIndex(index_of(path).path) as index:
        expected = np.zeros(GRID.shape, dtype=int)
        for part in (points, points[:50]):
            expected[tuple(np.unique(part.astype(int) + 10, axis=0).T)] += 1
        np.testing.assert_array_equal(index.density, expected)
        assert index.blocks[0].chain_start[-1] > 1.5 * len(points)
        np.testing.assert_array_equal(index.count(np.array([0, 1])), expected)


# Strange points


def test_coordinates_that_are_not_numbers(tmp_path):
    """As tckedit: a streamline whose length is not a number is not found; tckmap maps it."""
    n, inf = np.nan, np.inf
    streamlines = [
        [[0, 0, 0], [1, 0, 0], [2, n, 0]],
        [[0, 0, 0], [1, 0, 0], [2, inf, 0]],
        [[0, 0, 0], [3, inf, 0], [3, inf, 0]],
        [[0, n, 0]],
        [[0, 0, n], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 1e20]],
        [[0, 0, 0], [0, 0, -inf], [0, 0, 0]],
        [],
        [[0, 0, 0]],
        [[5, 0, 0], [6, 0, 0]],
    ]
    parts = [part for points in streamlines for part in (points, NAN)]
    path = raw_tck(tmp_path / "a.tck", *parts, INF)
    with StreamlineIndex(index_of(path, upsample=3).path) as index:
        for hit_test in ("vertices", "segments"):
            assert index.select(mask((0, 0, 0)), hit_test).tolist() == [1, 5, 6, 8]
        assert index.density[10, 10, 10] == 7
        assert places(index.density)[0] == (0, 0, 0)
        assert index.blocks[0].long.tolist() == [1, 5, 6]
        assert index.record.reach == 0.5


def test_points_far_outside(tmp_path):
    far = line(3, start=(1e6, -1e6, 0))
    jump = np.array([[0, 0, 0], [1e6, 0, 0], [0, 1, 0], [3e8, 3e8, 3e8]])
    path = tmp_path / "a.tck"
    write_tck(path, [far, jump, line(2)], step_size=1.0)
    with StreamlineIndex(index_of(path).path) as index:
        assert index.record.reach == 0.5
        assert index.select(mask((0, 0, 0))).tolist() == [1, 2]
        # The way there and back.
        assert index.select(mask((5, 0, 0))).tolist() == []
        assert index.select(mask((5, 0, 0)), "segments").tolist() == [1]
        assert index.select(whole_grid()).tolist() == [1, 2]
        assert index.density[10, 10, 10] == 2
        affine = np.eye(4)
        affine[:3, 3] = [1e6, -1e6, 0]
        grid = make_mrtrix_grid((3, 3, 3), affine, np.ones(3))
        there = crop_mask(np.ones(grid.shape, dtype=bool), grid)
        assert index.select(there).tolist() == [0]


def test_streamlines_beyond_the_header_count_do_not_exist(tmp_path):
    parts = [part for _ in range(5) for part in (line(3), NAN)]
    path = raw_tck(tmp_path / "a.tck", *parts, INF, count=2)
    with StreamlineIndex(index_of(path).path) as index:
        assert index.record.n_streamlines == 2
        assert index.density.max() == 2
        assert index.select(mask((0, 0, 0))).tolist() == [0, 1]


def test_empty_streamlines_only(tmp_path):
    path = raw_tck(tmp_path / "a.tck", NAN, NAN, INF)
    record = index_of(path)
    assert (record.n_streamlines, record.n_empty, record.n_points) == (2, 2, 0)
    with StreamlineIndex(record.path) as index:
        assert not index.density.any()
        assert index.select(whole_grid(), "segments").tolist() == []
        labels = np.ones(GRID.shape, dtype=np.int32)
        assert not index.assign_nodes(labels, index.grid).any()


def test_streamlines_outside_of_the_grid(tmp_path):
    path = tmp_path / "a.tck"
    write_tck(path, [line(3, start=(50, 0, 0))], step_size=1.0)
    with StreamlineIndex(index_of(path).path) as index:
        assert not index.density.any()
        assert not index.count(np.array([0])).any()


# What is refused


@pytest.mark.parametrize("lost", [1, 12, 30])
def test_truncated_tractogram(tmp_path, lost):
    path = tmp_path / "a.tck"
    write_tck(path, [line(10), line(10)], step_size=1.0)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(ValidationError, match="truncated"):
        index_of(path)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("parts", [[INF], [line(3), INF]])
def test_tractogram_without_streamlines(tmp_path, parts):
    path = raw_tck(tmp_path / "a.tck", *parts, count=7)
    with pytest.raises(ValidationError, match="holds no streamlines"):
        index_of(path)
    assert sorted(tmp_path.iterdir()) == [path]


def change(path):
    with path.open("r+b") as stream:
        stream.seek(250)
        stream.write(b"\1")


def test_tractogram_that_changes_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(streamline_blocks, "MOST_STREAMLINES", 2)
    path = tmp_path / "a.tck"
    write_tck(path, [line(10)] * 6, step_size=1.0)
    with pytest.raises(ValidationError, match="changed while it was indexed"):
        index_of(path, progress=lambda done, size: change(path))
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("n_threads", [1, 3])
def test_interruption_leaves_nothing_and_keeps_what_was(tmp_path, monkeypatch, n_threads):
    monkeypatch.setattr(streamline_blocks, "MOST_STREAMLINES", 2)
    path = tmp_path / "a.tck"
    write_tck(path, [line(10)] * 20, step_size=1.0)
    seen = []

    def stop(done, size):
        seen.append(done)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_of(path, n_threads=n_threads, progress=stop)
    assert sorted(tmp_path.iterdir()) == [path]
    record = index_of(path)
    content = record.path.read_bytes()
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        index_of(path, n_threads=n_threads, progress=stop)
    assert record.path.read_bytes() == content
    assert sorted(tmp_path.iterdir()) == [record.path, path]


def test_a_failing_thread_stops_the_build(tmp_path, monkeypatch):
    monkeypatch.setattr(streamline_blocks, "MOST_STREAMLINES", 2)
    path = tmp_path / "a.tck"
    write_tck(path, [line(10)] * 20, step_size=1.0)

    def fail(encoder, block):
        raise MemoryError("no more")

    monkeypatch.setattr(streamline_index._Encoder, "encode", fail)
    with pytest.raises(MemoryError, match="no more"):
        index_of(path, n_threads=3)
    assert sorted(tmp_path.iterdir()) == [path]


def test_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(streamline_blocks, "MOST_STREAMLINES", 2)
    path = tmp_path / "a.tck"
    write_tck(path, [line(10)] * 9, step_size=1.0)
    seen = []
    index_of(path, progress=lambda done, size: seen.append((done, size)))
    size = path.stat().st_size
    assert {total for _, total in seen} == {size}
    done = [value for value, _ in seen]
    assert len(done) == 6
    assert done == sorted(done)
    assert done[-1] == size


# The index and its tractogram


@pytest.fixture
def built(tmp_path):
    """An index and its tractogram in a folder of their own."""
    folder = tmp_path / "one"
    folder.mkdir()
    write_tck(folder / "a.tck", [line(10), line(3, start=(0, 5, 0))], step_size=1.0)
    return index_of(folder / "a.tck")


def test_tractogram_is_found_where_it_was_and_beside_the_index(built, tmp_path):
    assert find_tractogram(built) == built.tractogram
    moved = tmp_path / "two"
    built.path.parent.rename(moved)
    record = read_index_record(moved / "a.h5")
    assert record.tractogram == built.tractogram
    assert find_tractogram(record) == moved / "a.tck"
    with StreamlineIndex(moved / "a.h5") as index:
        assert index.select(mask((1, 0, 0))).tolist() == [0]
    # Somewhere else and under another name, it has to be named.
    elsewhere = tmp_path / "b.tck"
    (moved / "a.tck").rename(elsewhere)
    with pytest.raises(ValidationError, match="is not there") as error:
        find_tractogram(record)
    assert_one_sentence(error)
    assert find_tractogram(record, elsewhere) == elsewhere
    with StreamlineIndex(moved / "a.h5", elsewhere) as index:
        assert index.select(mask((1, 0, 0))).tolist() == [0]
    with pytest.raises(ValidationError, match="is not there"):
        find_tractogram(record, tmp_path / "c.tck")


def test_another_tractogram_is_refused(built, tmp_path):
    other = tmp_path / "b.tck"
    write_tck(other, [line(10), line(3, start=(0, 6, 0))], step_size=1.0)
    for open_it in (find_tractogram, lambda record, path: StreamlineIndex(record.path, path)):
        with pytest.raises(ValidationError, match="another tractogram") as error:
            open_it(built, other)
        assert_one_sentence(error)


def test_a_changed_tractogram_is_refused(built):
    change(built.tractogram)
    with pytest.raises(ValidationError, match="another tractogram"):
        StreamlineIndex(built.path)


def test_touching_the_tractogram_is_no_change(built):
    os.utime(built.tractogram, (1, 1))
    with StreamlineIndex(built.path) as index:
        assert index.record.n_streamlines == 2


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_truncated_index(built, keep):
    content = built.path.read_bytes()
    built.path.write_bytes(content[:keep])
    with pytest.raises(ValidationError, match="cannot be read as a streamline index") as error:
        StreamlineIndex(built.path)
    assert_one_sentence(error)
    assert not is_index(built.path)


def test_what_is_no_index(built, tmp_path):
    assert not is_index(built.tractogram)
    assert not is_index(tmp_path / "none.h5")
    with pytest.raises(ValidationError, match="cannot be read"):
        read_index_record(built.tractogram)
    with pytest.raises(ValidationError, match="cannot be read"):
        read_index_record(tmp_path / "none.h5")
    with h5py.File(tmp_path / "b.h5", "w") as handle:
        handle["timeseries"] = np.zeros(3)
    assert not is_index(tmp_path / "b.h5")
    with pytest.raises(ValidationError, match="not a streamline index"):
        read_index_record(tmp_path / "b.h5")


@pytest.mark.parametrize("part", ["blocks", "blocks/00000", "blocks/00001/chain", "density"])
def test_index_that_lacks_a_part(tmp_path, monkeypatch, part):
    monkeypatch.setattr(streamline_blocks, "MOST_STREAMLINES", 2)
    write_tck(tmp_path / "a.tck", [line(10)] * 6, step_size=1.0)
    path = index_of(tmp_path / "a.tck").path
    with h5py.File(path, "r+") as handle:
        del handle[part]
    with pytest.raises(ValidationError, match="damaged") as error:
        StreamlineIndex(path)
    assert_one_sentence(error)


@pytest.mark.parametrize("key", ["format_version", "fingerprint", "cell_shape", "grid_affine"])
def test_index_that_lacks_an_attribute(built, key):
    with h5py.File(built.path, "r+") as handle:
        del handle.attrs[key]
    with pytest.raises(ValidationError, match="damaged"):
        StreamlineIndex(built.path)


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, 99])
def test_other_format_versions(built, version):
    with h5py.File(built.path, "r+") as handle:
        handle.attrs["format_version"] = version
    with pytest.raises(ValidationError, match=f"format version {version}") as error:
        StreamlineIndex(built.path)
    assert_one_sentence(error)
    assert is_index(built.path)


# Memory

PEAK = """
    import resource, sys
    from pathlib import Path
    import lacuna_nipype.connectomes.streamline_index as streamline_index
    from lacuna_nipype.connectomes import streamline_blocks
    from lacuna_nipype.core.spaces import Grid
    import functools, numpy as np
    read = functools.partial(streamline_blocks.iter_blocks, points_per_read=20_000)
    streamline_index.iter_blocks = read
    affine = np.eye(4)
    affine[:3, 3] = -10
    peaks = []
    for name in sys.argv[1:]:
        streamline_index.write_index(
            Path(name), Path(name).with_suffix(".h5"), grid=Grid.make((21, 21, 21), affine),
            space="here", n_threads=2,
        )
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    print(*peaks)
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Peak of a process that indexes a small file first and then one of 30 MB."""
    rng = np.random.default_rng(8)
    one = rng.uniform(-9, 9, (2000, 1, 3)) + np.cumsum(rng.normal(0, 0.3, (2000, 50, 3)), axis=1)
    parts = np.concatenate([one, np.full((2000, 1, 3), np.nan)], axis=1)
    small = raw_tck(tmp_path / "small.tck", parts, INF)
    large = raw_tck(tmp_path / "large.tck", *[parts] * 25, INF)
    assert large.stat().st_size > 30e6
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), small, large],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second = map(int, done.stdout.split())
    assert second - first < 10e6
    with StreamlineIndex(large.with_suffix(".h5")) as index:
        assert index.record.n_streamlines == 50_000
        assert index.density.sum() == 25 * StreamlineIndex(small.with_suffix(".h5")).density.sum()


def test_a_streamline_longer_than_several_reads(tmp_path, monkeypatch):
    read = functools.partial(iter_blocks, points_per_read=10)
    monkeypatch.setattr(streamline_index, "iter_blocks", read)
    rng = np.random.default_rng(9)
    long = rng.uniform(-9, 9, (137, 3))
    path = tmp_path / "a.tck"
    write_tck(path, [line(2), long, line(3), long[:100], line(1)], step_size=1.0)
    many = index_of(path, "many.h5", upsample=2)
    monkeypatch.undo()
    one = index_of(path, "one.h5", upsample=2)
    with StreamlineIndex(many.path) as first, StreamlineIndex(one.path) as second:
        assert (len(first.blocks), len(second.blocks)) == (3, 1)
        np.testing.assert_array_equal(first.density, second.density)
        for hit_test in ("vertices", "segments"):
            np.testing.assert_array_equal(
                first.select(mask((3, 3, 3), (0, 0, 0)), hit_test),
                second.select(mask((3, 3, 3), (0, 0, 0)), hit_test),
            )
        for one_line, other in zip(
            first.streamlines(np.arange(5)), second.streamlines(np.arange(5)), strict=True
        ):
            np.testing.assert_array_equal(one_line, other)
