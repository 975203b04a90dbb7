"""MRtrix track files: header, integrity, step size, reader and writer, checked against MRtrix."""

import re
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.connectomes.tractogram import (
    check_tck,
    iter_tck_streamlines,
    measure_step_size,
    parse_step_size,
    read_tck_header,
    upsample_ratio,
    write_tck,
)
from lacuna_nipype.core.exceptions import ValidationError

NAN = np.full((1, 3), np.nan)
INF = np.full((1, 3), np.inf)
HEADER = "mrtrix tracks\ndatatype: Float32LE\ncount: 2\nfile: . 200\nEND\n"


def needs_mrtrix(function):
    missing = shutil.which("tckinfo") is None or shutil.which("tckmap") is None
    skip = pytest.mark.skipif(missing, reason="MRtrix3 is not on PATH")
    return pytest.mark.mrtrix(skip(function))


def straight(n_points, step=1.0, start=(0.0, 0.0, 0.0)):
    points = np.tile(np.asarray(start, "f4"), (n_points, 1))
    points[:, 0] += np.arange(n_points, dtype="f4") * np.float32(step)
    return points


def wandering(rng, n_points, step):
    """A path that turns at each point, so that upsampling finds voxels that points miss."""
    directions = rng.normal(size=(n_points, 3)) + np.array([1.5, 0, 0])
    directions *= step / np.linalg.norm(directions, axis=1, keepdims=True)
    return (rng.uniform(-8, 0, 3) + np.cumsum(directions, axis=0)).astype("f4")


def raw_tck(path, *parts, header=HEADER, dtype="<f4", tail=b""):
    """Write a header padded to 200 bytes, triplets as they are, and more bytes."""
    data = b"".join(np.asarray(part).astype(dtype).tobytes() for part in parts)
    path.write_bytes(header.encode().ljust(200, b"\0") + data + tail)
    return path


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and text.endswith(".") and ". " not in text.replace("file: . ", "")


# Header


def test_header_fields(tmp_path):
    path = raw_tck(
        tmp_path / "a.tck",
        INF,
        header="mrtrix tracks    \ncommand_history: one\nstep_size: 0.5 # mm\nbad line\n"
        "command_history: two\nDatatype: float64be\ncount: 7\ntotal_count: 9\nfile: . 200\nEND\n",
    )
    header = read_tck_header(path)
    assert (header.path, header.count, header.offset) == (path, 7, 200)
    assert (header.datatype, header.dtype) == ("Float64BE", np.dtype(">f8"))
    assert header.step_size == 0.5
    assert header.fields == {
        "command_history": "one\ntwo",
        "step_size": "0.5",
        "count": "7",
        "total_count": "9",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", 1.0), (" 0.25 ", 0.25), ("1e-1", 0.1)]
    + [(t, None) for t in (None, "", "variable", "0", "-1", "nan", "inf", "1 mm", "1\n1", "1_0")],
)
def test_step_size_text(text, expected):
    assert parse_step_size(text) == expected


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("garbage\nEND\n", "not an MRtrix track file"),
        ("", "not an MRtrix track file"),
        ("mrtrix tracks\ndatatype: Float32LE\nfile: . 200\n", "header that is cut"),
        ("mrtrix tracks\ndatatype: Int16LE\nfile: . 200\nEND\n", "Int16LE"),
        ("mrtrix tracks\nfile: . 200\nEND\n", "(none)"),
        ("mrtrix tracks\ndatatype: Float32LE\nEND\n", "OFFSET"),
        ("mrtrix tracks\ndatatype: Float32LE\nfile: .\nEND\n", "OFFSET"),
        ("mrtrix tracks\ndatatype: Float32LE\nfile: . 12\nEND\n", "inside its own header"),
        ("mrtrix tracks\ndatatype: Float32LE\nfile: other.dat 0\nEND\n", "other.dat"),
    ],
)
def test_bad_headers_are_one_sentence(tmp_path, header, problem):
    path = raw_tck(tmp_path / "bad.tck", straight(3), NAN, INF, header=header)
    with pytest.raises(ValidationError, match=re.escape(problem)) as error:
        read_tck_header(path)
    assert str(path) in str(error.value)
    assert one_sentence(error)


@pytest.mark.parametrize(("name", "problem"), [("no.tck", "not exist"), ("a.trk", "end in .tck")])
def test_wrong_paths(tmp_path, name, problem):
    with pytest.raises(ValidationError, match=problem):
        read_tck_header(tmp_path / name)
    # The reader complains at the call, not when the first streamline is asked for.
    with pytest.raises(ValidationError, match=problem):
        iter_tck_streamlines(tmp_path / name)


def test_folder_is_not_a_tck(tmp_path):
    (tmp_path / "a.tck").mkdir()
    with pytest.raises(ValidationError, match="cannot be read"):
        read_tck_header(tmp_path / "a.tck")


# Integrity


@pytest.mark.parametrize("lost", [1, 12, 13, 24, 40, 100])
def test_truncated_copy_is_refused(tmp_path, lost):
    path = tmp_path / "a.tck"
    write_tck(path, [straight(10), straight(20)], step_size=1)
    assert check_tck(path).count == 2
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(ValidationError, match="truncated") as error:
        check_tck(path)
    assert one_sentence(error)


def test_file_cut_within_its_padding_is_refused(tmp_path):
    path = tmp_path / "a.tck"
    path.write_bytes(HEADER.encode())
    with pytest.raises(ValidationError, match="truncated"):
        check_tck(path)


@pytest.mark.parametrize(
    ("parts", "tail"),
    [
        ([straight(4), NAN, [[np.inf, 0, 0]]], b""),
        ([straight(4), NAN, -INF], b""),
        ([straight(4), NAN, INF], b"\0" * 17),
        ([straight(4), NAN, INF, np.zeros((50, 3))], b""),
        ([straight(4), NAN, straight(4), INF], b""),
    ],
    ids=["x_only", "minus", "bytes_after", "points_after", "no_last_separator"],
)
def test_what_mrtrix_reads_safely_is_accepted(tmp_path, parts, tail):
    path = raw_tck(tmp_path / "a.tck", *parts, tail=tail)
    check_tck(path)
    assert [len(s) for s in iter_tck_streamlines(path)] == [4]


@pytest.mark.parametrize("count", [0, 5])
def test_no_streamlines(tmp_path, count):
    header = HEADER.replace("count: 2", f"count: {count}")
    path = raw_tck(tmp_path / "a.tck", INF, header=header)
    with pytest.raises(ValidationError, match="holds no streamlines"):
        check_tck(path)
    raw_tck(path, header=header)
    with pytest.raises(ValidationError, match="truncated" if count else "holds no streamlines"):
        check_tck(path)


# Step size


def test_regular_step_with_short_last_segments(tmp_path):
    path = tmp_path / "a.tck"
    # One segment in twenty is shorter, as at the ends of tckgen's streamlines.
    lines = [np.vstack([straight(20, 0.5), [[9.6, 0, 0]]]) for _ in range(30)]
    write_tck(path, lines, step_size=None)
    found = measure_step_size(read_tck_header(path))
    assert found.regular
    assert found.median == pytest.approx(0.5, rel=1e-6)
    assert found.n_segments == 600


def test_irregular_step(tmp_path):
    path = tmp_path / "a.tck"
    write_tck(path, [straight(10, 0.5), straight(10, 1.0)], step_size=None)
    assert not measure_step_size(read_tck_header(path)).regular


def test_step_size_reads_blocks_only(tmp_path):
    path = tmp_path / "a.tck"
    write_tck(path, [straight(100, 0.7) for _ in range(200)], step_size=None)
    found = measure_step_size(read_tck_header(path), n_blocks=4, block_bytes=1200)
    assert 300 < found.n_segments <= 4 * 99
    assert found.median == pytest.approx(0.7, rel=1e-5)


def test_no_segment_to_measure(tmp_path):
    path = raw_tck(tmp_path / "a.tck", straight(1), NAN, NAN, straight(1), NAN, INF)
    with pytest.raises(ValidationError, match="step size cannot be measured"):
        measure_step_size(read_tck_header(path))


@pytest.mark.parametrize(
    ("step", "voxels", "expected"),
    [
        (1, [1, 1, 1], 4),
        (0.5, [1, 1, 1], 2),
        (1, [2, 2, 2], 2),
        (0.3, [1, 1, 1], 1),
        (0.333, [1.0], 1),
        (0.3331, [1.0], 2),
        (1, [3, 1.25, 2], 3),
        (0, [1], 1),
        (float("nan"), [1], 1),
    ],
)
def test_upsample_ratio(step, voxels, expected):
    ratio = upsample_ratio(step, voxels)
    assert ratio == expected
    assert isinstance(ratio, int)


@pytest.mark.parametrize("voxels", [[], [0, 1, 1], [-1.0], [float("nan")]])
def test_upsample_ratio_needs_voxel_sizes(voxels):
    with pytest.raises(ValidationError, match="Voxel sizes"):
        upsample_ratio(1, voxels)


@needs_mrtrix
@pytest.mark.parametrize("step", [0.2, 0.333, 0.4, 0.999, 1.0, 1.7])
@pytest.mark.parametrize("voxels", [(1, 1, 1), (2, 1.25, 1.5)])
def test_upsample_ratio_is_that_of_tckmap(tmp_path, rng, step, voxels):
    affine = np.diag([*voxels, 1.0])
    affine[:3, 3] = -20
    nib.save(nib.Nifti1Image(np.zeros((40, 40, 40), "u1"), affine), tmp_path / "grid.nii")
    lines = [wandering(rng, 12, step) for _ in range(100)]
    write_tck(tmp_path / "with.tck", lines, step_size=step)
    write_tck(tmp_path / "without.tck", lines, step_size=None)

    def tdi(tracks, *options):
        command = ["tckmap", "-quiet", "-force", "-nthreads", "0", "-template", "grid.nii"]
        subprocess.run([*command, *options, tracks, "tdi.nii"], check=True, cwd=tmp_path)
        return np.asarray(nib.load(tmp_path / "tdi.nii").dataobj)

    ratio = upsample_ratio(step, voxels)
    expected = tdi("with.tck")
    np.testing.assert_array_equal(tdi("without.tck", "-upsample", str(ratio)), expected)
    # The next ratios differ, so the equality above says something.
    assert tdi("without.tck", "-upsample", str(ratio + 1)).sum() != expected.sum()


# Reader


@pytest.mark.parametrize("chunk_bytes", [1, 12, 36, 60, 1 << 20])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
def test_reader_rules(tmp_path, chunk_bytes, dtype):
    name = f"Float{8 * int(dtype[2])}{'LE' if dtype[0] == '<' else 'BE'}"
    path = raw_tck(
        tmp_path / "a.tck",
        *[straight(5), NAN, NAN, straight(1, start=(3, 2, 1)), [[np.nan, 7, 7]]],
        # Only x counts: this NaN in y is a coordinate, and points after the marker are not read.
        *[[[1, np.nan, 1]], NAN, straight(3), INF, straight(2), NAN],
        header=HEADER.replace("Float32LE", name),
        dtype=dtype,
    )
    found = list(iter_tck_streamlines(path, chunk_bytes=chunk_bytes))
    assert [s.shape for s in found] == [(5, 3), (0, 3), (1, 3), (1, 3)]
    assert all(s.dtype == np.float32 and s.base is None for s in found)
    np.testing.assert_array_equal(found[0], straight(5))
    np.testing.assert_array_equal(found[2], [[3, 2, 1]])


def test_reader_takes_a_file_without_its_end(tmp_path):
    path = raw_tck(tmp_path / "a.tck", straight(5), NAN, straight(5), tail=b"12345")
    assert [len(s) for s in iter_tck_streamlines(path)] == [5]


# Writer


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def test_round_trip_keeps_every_bit(tmp_path, rng):
    lines = [rng.normal(size=(n, 3)).astype("f4") for n in (3, 0, 1, 50)]
    path = tmp_path / "deep" / "a.tck"
    fields = {"comment": "one\ntwo", "count": "99", "file": "x", "source": "Wärme"}
    assert write_tck(path, iter(lines), step_size=0.1, fields=fields) == 4
    header = check_tck(path)
    assert (header.count, header.step_size, header.datatype) == (4, 0.1, "Float32LE")
    assert header.fields["comment"] == "one\ntwo"
    assert header.fields["source"] == "Wärme"
    assert header.offset % 4 == 0
    for line, found in zip(lines, iter_tck_streamlines(path), strict=True):
        np.testing.assert_array_equal(line, found)
    # A header's fields can be handed on as they are.
    assert write_tck(path, [], step_size=None, fields=header.fields) == 0
    assert read_tck_header(path).step_size is None


@pytest.mark.parametrize(
    ("lines", "options", "problem"),
    [
        ([np.zeros((3, 2))], {}, "shape"),
        ([np.zeros(3)], {}, "shape"),
        ([straight(2), np.array([[0, np.nan, 0]])], {}, "streamline 1"),
        ([np.array([[1e39, 0, 0]])], {}, "not finite"),
        ([], {"step_size": 0}, "step size"),
        ([], {"step_size": float("nan")}, "step size"),
        ([], {"fields": {"a:b": "c"}}, "a:b"),
    ],
)
def test_writer_refuses_and_leaves_nothing(tmp_path, lines, options, problem):
    with pytest.raises(ValidationError, match=problem):
        write_tck(tmp_path / "a.tck", lines, **{"step_size": None, **options})
    assert list(tmp_path.iterdir()) == []


def test_writer_insists_on_the_suffix(tmp_path):
    with pytest.raises(ValidationError, match=r"\.tck"):
        write_tck(tmp_path / "a.trk", [], step_size=None)


def test_nibabel_reads_it(tmp_path, rng):
    lines = [rng.normal(size=(n, 3)).astype("f4") for n in (3, 8)]
    write_tck(tmp_path / "a.tck", lines, step_size=1)
    loaded = nib.streamlines.load(tmp_path / "a.tck")
    assert int(loaded.header["count"]) == 2
    for line, found in zip(lines, loaded.streamlines, strict=True):
        np.testing.assert_array_equal(line, found)


@needs_mrtrix
@pytest.mark.parametrize("n_lines", [0, 1, 12, 1234])
def test_tckinfo_agrees(tmp_path, n_lines):
    path = tmp_path / "a.tck"
    write_tck(path, (straight(5) for _ in range(n_lines)), step_size=0.5)
    told = subprocess.run(
        ["tckinfo", "-quiet", "-count", path], check=True, capture_output=True, text=True
    ).stdout
    assert re.search(rf"^    count: +{n_lines}$", told, re.MULTILINE)
    assert re.search(r"^    step_size: +0\.5$", told, re.MULTILINE)
    assert f"actual count in file: {n_lines}\n" in told
