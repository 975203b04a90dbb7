"""Streamlines counted in the file, against a loop over the bytes and against MRtrix."""

import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.connectomes.streamline_counts import (
    StreamlineCounts,
    check_count,
    copy_without_empty,
    count_streamlines,
)
from lacuna_nipype.connectomes.tractogram import iter_tck_streamlines, read_tck_header, write_tck
from lacuna_nipype.core.exceptions import ValidationError

NAN = np.full((1, 3), np.nan)
INF = np.full((1, 3), np.inf)


def needs_mrtrix(function):
    skip = pytest.mark.skipif(shutil.which("tckinfo") is None, reason="MRtrix3 is not on PATH")
    return pytest.mark.mrtrix(skip(function))


def raw_tck(path, *parts, count=None, datatype="Float32LE", step_size=None, tail=b""):
    """Write triplets as they are behind a header of 200 bytes."""
    dtype = {"LE": "<", "BE": ">"}[datatype[-2:]] + {"32": "f4", "64": "f8"}[datatype[5:7]]
    lines = ["mrtrix tracks", f"datatype: {datatype}", "file: . 200"]
    lines += [f"count: {count}"] if count is not None else []
    lines += [f"step_size: {step_size}"] if step_size is not None else []
    data = b"".join(np.asarray(part).astype(dtype).tobytes() for part in parts)
    path.write_bytes("\n".join([*lines, "END\n"]).encode().ljust(200, b"\0") + data + tail)
    return path


def points(n, start=0.0):
    return np.arange(3 * n, dtype="f8").reshape(n, 3) + start


def counted_slowly(path):
    """One triplet after the other, as MRtrix reads them."""
    header = read_tck_header(path)
    data = path.read_bytes()[header.offset :]
    data = data[: len(data) - len(data) % (3 * header.dtype.itemsize)]
    found, current = [], []
    with np.errstate(over="ignore"):
        triplets = np.frombuffer(data, header.dtype).reshape(-1, 3).astype("f4")
    for row in triplets:
        if np.isinf(row[0]):
            break
        if np.isnan(row[0]):
            found.append(current)
            current = []
        else:
            current.append(tuple(row.tolist()))
    return StreamlineCounts(
        len(found),
        sum(len(each) == 0 for each in found),
        sum(len(each) == 1 for each in found),
        sum(len(each) > 1 and len(set(each)) == 1 for each in found),
    )


SAME = np.ones((3, 3))
RETURNING = np.array([[1.0, 1, 1], [1, 1, 1], [2, 1, 1], [1, 1, 1]])


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([INF], (0, 0, 0, 0)),
        ([], (0, 0, 0, 0)),
        ([NAN, INF], (1, 1, 0, 0)),
        ([points(4), NAN, points(2), NAN, INF], (2, 0, 0, 0)),
        ([points(4), NAN, NAN, NAN, points(1), NAN, SAME, NAN, INF], (5, 2, 1, 1)),
        # Only the whole streamline tells that it has a length.
        ([RETURNING, NAN, SAME, NAN, INF], (2, 0, 0, 1)),
        # The end of the file ends it, and points without a separator are dropped.
        ([points(4), NAN, points(3)], (1, 0, 0, 0)),
        ([points(4), NAN, SAME, INF], (1, 0, 0, 0)),
        # Nothing counts after the end marker, of which x alone is looked at.
        ([SAME, NAN, [[-np.inf, 0, 0]], SAME, NAN, INF], (1, 0, 0, 1)),
        # A separator is one by its x alone, and a NaN in y is none.
        ([SAME, [[np.nan, 1, 1]], [[0, np.nan, 0]], NAN, INF], (2, 0, 1, 1)),
    ],
)
@pytest.mark.parametrize("datatype", ["Float32LE", "Float32BE", "Float64LE", "Float64BE"])
def test_counts(tmp_path, parts, expected, datatype):
    path = raw_tck(tmp_path / "a.tck", *parts, count=77, datatype=datatype)
    for triplets in (1, 2, 3, 1000):
        block_bytes = triplets * 3 * read_tck_header(path).dtype.itemsize
        assert count_streamlines(path, block_bytes=block_bytes) == StreamlineCounts(*expected)
    assert counted_slowly(path) == StreamlineCounts(*expected)


def test_doubles_are_looked_at_as_mrtrix_reads_them(tmp_path):
    # 1e39 is infinite in single precision; the other two differ in double precision only.
    close = np.array([[1.0, 1, 1], [1.0 + 1e-12, 1, 1]])
    path = raw_tck(
        tmp_path / "a.tck", close, NAN, [[1e39, 0, 0]], close, NAN, datatype="Float64LE"
    )
    assert count_streamlines(path) == counted_slowly(path) == StreamlineCounts(1, 0, 0, 1)


def test_incomplete_triplet_is_ignored(tmp_path):
    path = raw_tck(tmp_path / "a.tck", points(2), NAN, tail=NAN.astype("<f4").tobytes()[:11])
    assert count_streamlines(path).n == 1


def random_streamlines(seed, n=300):
    """Streamlines of 0 to 6 points, many of them without length."""
    rng = np.random.default_rng(seed)
    lines = []
    for n_points in rng.integers(0, 7, n):
        line = rng.integers(0, 2, (n_points, 3)).astype("f4")
        lines.append(np.repeat(line[:1], n_points, axis=0) if rng.random() < 0.4 else line)
    return lines


@pytest.mark.parametrize("seed", range(5))
def test_random_files(tmp_path, seed):
    path = tmp_path / "a.tck"
    lines = random_streamlines(seed)
    write_tck(path, lines, step_size=1.0)
    expected = counted_slowly(path)
    assert expected.n == 300
    assert min(expected.n_empty, expected.n_one_point, expected.n_zero_length) > 10
    for block_bytes in (12, 132, 1 << 24):
        assert count_streamlines(path, block_bytes=block_bytes) == expected


@needs_mrtrix
def test_number_is_that_of_tckinfo(tmp_path):
    cases = [
        [points(4), NAN, NAN, points(1), NAN, SAME, NAN, INF],
        [points(4), NAN, points(3)],
        [NAN, NAN, points(4), NAN, [[np.inf, 0, 0]], points(4), NAN],
    ]
    for parts in cases:
        path = raw_tck(tmp_path / "a.tck", *parts, count=1000)
        words = ["tckinfo", "-count", str(path)]
        told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert f"actual count in file: {count_streamlines(path).n}\n" in told


# The header's count


def test_count_that_agrees_or_is_missing(tmp_path):
    parts = [points(2), NAN, NAN, points(2), NAN, INF]
    for count in (3, None):
        path = raw_tck(tmp_path / "a.tck", *parts, count=count)
        assert check_count(path) == StreamlineCounts(3, 1, 0, 0)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_count_that_disagrees(tmp_path, count):
    path = raw_tck(tmp_path / "a.tck", points(2), NAN, NAN, points(2), NAN, INF, count=count)
    with pytest.raises(ValidationError) as error:
        check_count(path)
    text = str(error.value)
    assert str(path) in text
    assert f"holds {count} streamlines" in text
    assert "there are 3" in text
    assert "connectome convert" in text


@needs_mrtrix
@pytest.mark.skipif(shutil.which("tckmap") is None, reason="MRtrix3 is not on PATH")
def test_commands_disagree_about_a_wrong_count(tmp_path):
    """Why a wrong count is refused."""
    path = raw_tck(
        tmp_path / "a.tck", points(1), NAN, points(1), NAN, points(1), NAN, INF, count=1
    )
    quiet = {"cwd": tmp_path, "check": True, "capture_output": True}
    subprocess.run(["tckedit", path, "edited.tck"], **quiet)
    assert len(list(iter_tck_streamlines(tmp_path / "edited.tck"))) == 3
    subprocess.run(["tckmap", path, "-vox", "30", "tdi.nii"], **quiet)
    assert np.asarray(nib.load(tmp_path / "tdi.nii").dataobj).sum() == 1


# Copies without empty streamlines


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block_bytes", [12, 36, 132, 1 << 24])
def test_copy_without_empty(tmp_path, seed, block_bytes):
    source, target = tmp_path / "a.tck", tmp_path / "b.tck"
    lines = random_streamlines(seed)
    write_tck(source, lines, step_size=0.7)
    dropped = copy_without_empty(source, target, block_bytes=block_bytes)
    assert dropped.dtype == np.int64
    np.testing.assert_array_equal(dropped, [i for i, line in enumerate(lines) if not len(line)])
    kept = [line for line in lines if len(line)]
    found = list(iter_tck_streamlines(target))
    assert len(found) == len(kept)
    assert all(np.array_equal(a, b) for a, b in zip(found, kept, strict=True))
    header = read_tck_header(target)
    assert (header.count, header.step_size) == (len(kept), 0.7)
    assert check_count(target).n_empty == 0


@pytest.mark.parametrize("datatype", ["Float32LE", "Float32BE", "Float64LE", "Float64BE"])
def test_copy_keeps_the_datatype(tmp_path, datatype):
    parts = [NAN, points(2, 0.1), NAN, NAN, points(1), NAN, points(2), INF]
    source = raw_tck(tmp_path / "a.tck", *parts, datatype=datatype)
    dropped = copy_without_empty(source, tmp_path / "b.tck")
    assert dropped.tolist() == [0, 2]
    header = read_tck_header(tmp_path / "b.tck")
    assert (header.datatype, header.count, header.step_size) == (datatype, 2, None)
    # The last points have no separator, in the copy as in the source.
    expected = np.concatenate([points(2, 0.1), NAN, points(1), NAN, points(2), INF])
    data = (tmp_path / "b.tck").read_bytes()[header.offset :]
    np.testing.assert_array_equal(
        np.frombuffer(data, header.dtype).reshape(-1, 3), expected.astype(header.dtype)
    )
    assert count_streamlines(tmp_path / "b.tck").n == 2


@needs_mrtrix
def test_mrtrix_reads_the_copy(tmp_path):
    write_tck(tmp_path / "a.tck", random_streamlines(9), step_size=1.0)
    dropped = copy_without_empty(tmp_path / "a.tck", tmp_path / "b.tck")
    words = ["tckinfo", "-count", str(tmp_path / "b.tck")]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert f"actual count in file: {300 - len(dropped)}\n" in told
