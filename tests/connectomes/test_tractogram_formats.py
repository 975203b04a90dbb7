"""Tractograms of every format, against nibabel's eager loading, trx-python and bytes by hand."""

import csv
import gzip
import json
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.streamlines import LazyTractogram, Tractogram, TrkFile

from lacuna_nipype.connectomes import tractogram_formats
from lacuna_nipype.connectomes.tractogram import write_tck
from lacuna_nipype.connectomes.tractogram_formats import (
    TRACTOGRAM_SUFFIXES,
    iter_streamlines,
    read_tractogram_header,
    tractogram_sidecar,
    tractogram_suffix,
)
from lacuna_nipype.core.exceptions import ValidationError

DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None
OBLIQUE = np.array(
    [[-1.9, 0.2, 0.1, 88], [0.3, 2.4, -0.2, -120], [0.1, 0.1, 1.5, -70], [0, 0, 0, 1]], "f4"
)
TT_AFFINE = np.array([[-1, 0, 0, 78], [0, -1, 0, 76], [0, 0, 2, -50], [0, 0, 0, 1]], "f4")


@pytest.fixture
def rng():
    return np.random.default_rng(8)


@pytest.fixture
def lines(rng):
    """Streamlines of different lengths: empty ones first, in the middle and last, and a point."""
    sizes = (0, 5, 1, 0, 0, 40, 7, 2, 0)
    return [(rng.normal(size=(n, 3)) * 30).astype("f4") for n in sizes]


def save_trk(path, lines, affine=OBLIQUE, *, scalars=0, properties=0, **fields):
    """Write with nibabel, one by one: its container drops empty streamlines."""
    per_point = {"fa": lambda: (np.ones((len(line), scalars)) for line in lines)}
    per_line = {"id": lambda: (np.arange(properties) for _ in lines)}
    lazy = LazyTractogram(
        lambda: iter(lines),
        data_per_point=per_point if scalars else None,
        data_per_streamline=per_line if properties else None,
        affine_to_rasmm=np.eye(4),
    )
    header = {
        "voxel_to_rasmm": affine,
        "voxel_sizes": nib.affines.voxel_sizes(affine),
        "dimensions": (91, 90, 99),
        "voxel_order": "".join(nib.aff2axcodes(affine)).encode(),
        **fields,
    }
    plain = path.with_name(path.name.removesuffix(".gz"))
    TrkFile(lazy, header).save(str(plain))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def save_trx(path, lines, *, dtype="float32", offsets="uint32", method=zipfile.ZIP_STORED, **what):
    """Write the archive by hand; ``end`` is the offset after the last streamline."""
    starts = np.cumsum([0, *map(len, lines)])
    starts = starts if what.get("end", True) else starts[:-1]
    header = {
        "DIMENSIONS": [91, 109, 91],
        "VOXEL_TO_RASMM": np.eye(4).tolist(),
        "NB_VERTICES": sum(map(len, lines)),
        "NB_STREAMLINES": what.get("count", len(lines)),
    }
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("header.json", json.dumps(what.get("header", header)))
        archive.writestr("dps/wrong.float32", b"\0" * 7)
        archive.writestr(f"offsets.{offsets}", starts.astype(offsets).tobytes())
        archive.writestr(f"positions.3.{dtype}", np.concatenate(lines).astype(dtype).tobytes())
    return path


def matrix(name, values):
    """One matrix of a MATLAB 4 file."""
    kinds = {"f4": 10, "i4": 20, "u1": 50}
    values = np.atleast_2d(values)
    start = struct.pack("<5i", kinds[values.dtype.str[1:]], *values.shape, 0, len(name) + 1)
    return start + name.encode() + b"\0" + values.tobytes()


def track(first, *deltas):
    """One track of DSI Studio in 1/32 of a voxel."""
    steps = np.array(deltas, "i1").reshape(-1, 3)
    return struct.pack("<I3i", 3 * (len(steps) + 1), *first) + steps.tobytes()


def save_tt(path, *blocks, affine=TT_AFFINE):
    parts = [matrix("dimension", np.array([157, 189, 136], "i4"))]
    parts += [matrix("voxel_size", np.array([1, 1, 2], "f4"))]
    if affine is not None:
        parts.append(matrix("trans_to_mni", affine.reshape(1, 16)))
    parts.append(matrix("report", np.frombuffer(b"text", "u1")))
    for number, block in enumerate(blocks):
        name = f"track{number or ''}"
        parts.append(matrix(name, np.frombuffer(b"".join(block), "u1")))
    path.write_bytes(gzip.compress(b"".join(parts)))
    return path


def save(path, lines):
    """Write streamlines in the format that the name asks for (.tt.gz: on its own lattice)."""
    suffix = tractogram_suffix(path)
    if suffix == ".tck":
        write_tck(path, lines, step_size=1)
    elif suffix == ".trx":
        save_trx(path, lines)
    elif suffix == ".tt.gz":
        save_tt(path, [track((1000, 900, 800), *[(3, 2, 1)] * (len(line) + 1)) for line in lines])
    else:
        save_trk(path, lines)
    return path


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and text.endswith(".") and ". " not in text


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        assert one.shape == other.shape
        np.testing.assert_array_equal(one, other)


def test_suffixes():
    for suffix in TRACTOGRAM_SUFFIXES:
        assert tractogram_suffix(f"/a.b/c.d{suffix}") == suffix
    for name in ("a.gz", "a.nii.gz", "tck", "a.h5", "a.trk.bz2", "a.TCK"):
        assert tractogram_suffix(name) is None


# .trk


@pytest.mark.parametrize("name", ["a.trk", "a.trk.gz"])
@pytest.mark.parametrize("affine", [OBLIQUE, np.diag([1, 1, 1, 1]).astype("f4")])
def test_trk_is_that_of_eager_loading(tmp_path, lines, name, affine):
    for extra in ({}, {"scalars": 2, "properties": 3}):
        path = save_trk(tmp_path / name, lines, affine, **extra)
        header = read_tractogram_header(path)
        assert (header.count, header.suffix, header.datatype) == (
            len(lines),
            name[1:],
            "Float32LE",
        )
        found = list(iter_streamlines(path))
        with gzip.open(path) if name.endswith("gz") else path.open("rb") as stream:
            eager = TrkFile.load(stream).streamlines
        # nibabel's container drops empty ones, and cannot have them beside properties.
        # Its affine is in float32, ours in float64 before the last rounding.
        for one, other in zip([line for line in found if len(line)], eager, strict=True):
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)
        assert [len(line) for line in found] == [len(line) for line in lines]
        for one, other in zip(found, lines, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
        lines = [line for line in lines if len(line)]


def test_trk_by_hand(tmp_path):
    """Corner-based mm along LPS voxels of 2 mm: the centre of voxel (0, 0, 0) is at 1, 1, 1."""
    path = save_trk(tmp_path / "a.trk", [np.zeros((1, 3), "f4")], np.diag([-2, -2, 2, 1.0]))
    body = struct.pack("<i6f", 2, 1, 1, 1, 3, 5, 1)
    path.write_bytes(path.read_bytes()[:1000] + body)
    (line,) = iter_streamlines(path)
    np.testing.assert_allclose(line, [[0, 0, 0], [-2, -4, 0]], atol=1e-6)


def test_trk_without_a_number(tmp_path, lines):
    path = save_trk(tmp_path / "a.trk", lines)
    data = bytearray(path.read_bytes())
    assert struct.unpack_from("<i", data, 988) == (9,)
    struct.pack_into("<i", data, 988, 0)
    path.write_bytes(data)
    assert read_tractogram_header(path).count is None
    assert len(list(iter_streamlines(path))) == 9


def test_trk_cut_between_two_streamlines(tmp_path, lines):
    # nibabel says nothing: 4 bytes are the last streamline, which is empty.
    path = save_trk(tmp_path / "a.trk", lines)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValidationError, match=r"truncated.*8 of 9") as error:
        list(iter_streamlines(path))
    assert one_sentence(error)


@pytest.mark.parametrize("number", [-5, 2**31 - 1, 10**6])
def test_trk_with_a_damaged_number_of_points(tmp_path, lines, number):
    path = save_trk(tmp_path / "a.trk", lines[1:])
    data = bytearray(path.read_bytes())
    struct.pack_into("<i", data, 1000, number)
    path.write_bytes(data)
    with pytest.raises(ValidationError, match="not a whole file"):
        list(iter_streamlines(path))


def test_trk_that_does_not_know_where_it_is(tmp_path, lines):
    path = save_trk(tmp_path / "a.trk", lines)
    data = bytearray(path.read_bytes())
    data[440:504] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(ValidationError, match="vox_to_ras") as error:
        read_tractogram_header(path)
    assert one_sentence(error)


# .trx


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("offsets", ["uint32", "uint64"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("block", [1, 4, 1 << 14])
def test_trx_by_hand(tmp_path, monkeypatch, lines, method, offsets, dtype, block):
    monkeypatch.setattr(tractogram_formats, "_TRX_BLOCK", block)
    path = save_trx(tmp_path / "a.trx", lines, dtype=dtype, offsets=offsets, method=method)
    header = read_tractogram_header(path)
    assert (header.count, header.datatype) == (9, f"{dtype.capitalize()}LE")
    assert_same(list(iter_streamlines(path)), [line.astype(dtype).astype("f4") for line in lines])


@pytest.mark.parametrize("block", [1, 4, 1 << 14])
@pytest.mark.parametrize("count", [8, 9])
def test_trx_of_early_writers(tmp_path, monkeypatch, lines, block, count):
    """Without the last offset; some such files say one streamline less than they have."""
    monkeypatch.setattr(tractogram_formats, "_TRX_BLOCK", block)
    lines[-1] = lines[1]
    path = save_trx(tmp_path / "a.trx", lines, end=False, count=count)
    assert read_tractogram_header(path).count == 9
    assert_same(list(iter_streamlines(path)), lines)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_trx_of_trx_python(tmp_path, lines, dtype, method):
    memmap = pytest.importorskip("trx.trx_file_memmap")
    filled = [line for line in lines if len(line)]
    tractogram = Tractogram(filled, affine_to_rasmm=np.eye(4))
    types = {"positions": np.dtype(dtype), "offsets": np.dtype("uint64"), "dpv": {}, "dps": {}}
    reference = nib.Nifti1Image(np.zeros((9, 9, 9), "u1"), np.eye(4))
    made = memmap.TrxFile.from_lazy_tractogram(tractogram, reference, dtype_dict=types)
    memmap.save(made, str(tmp_path / "a.trx"), compression_standard=method)
    made.close()
    found = list(iter_streamlines(tmp_path / "a.trx"))
    loaded = memmap.load(str(tmp_path / "a.trx"))
    assert loaded.streamlines._data.dtype == dtype
    assert_same(found, [np.asarray(line, "f4") for line in loaded.streamlines])
    assert_same(found, [line.astype(dtype).astype("f4") for line in filled])
    loaded.close()


def test_trx_needs_no_room_to_unpack(tmp_path, monkeypatch, lines):
    path = save_trx(tmp_path / "a.trx", lines, method=zipfile.ZIP_DEFLATED)
    path.chmod(0o444)
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert len(list(iter_streamlines(path))) == 9
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ({"count": 0}, "holds no streamlines"),
        ({"count": 7}, "as many points"),
        ({"count": 11}, "as many points"),
        ({"header": []}, "NB_STREAMLINES"),
        ({"header": {"NB_STREAMLINES": "x", "NB_VERTICES": 3}}, "NB_STREAMLINES"),
        ({"offsets": "uint16"}, "type that TRX allows"),
        ({"dtype": "int32"}, "type that TRX allows"),
    ],
)
def test_trx_that_contradicts_itself(tmp_path, lines, what, problem):
    path = save_trx(tmp_path / "a.trx", lines, **what)
    with pytest.raises(ValidationError, match=problem) as error:
        read_tractogram_header(path)
    assert one_sentence(error)


@pytest.mark.parametrize("starts", [[1, 2, 10], [0, 7, 3, 10], [0, 50, 10]])
def test_trx_with_wrong_offsets(tmp_path, starts):
    path = tmp_path / "a.trx"
    header = {"NB_STREAMLINES": len(starts) - 1, "NB_VERTICES": 10}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        archive.writestr("positions.3.float32", bytes(120))
        archive.writestr("offsets.uint32", np.array(starts, "u4").tobytes())
    with pytest.raises(ValidationError, match="offsets"):
        list(iter_streamlines(path))


def test_zip_that_is_no_trx(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.trx", "w") as archive:
        archive.writestr("other.txt", "x")
    with pytest.raises(ValidationError, match=r"header\.json is missing"):
        read_tractogram_header(tmp_path / "a.trx")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_trx_with_a_flipped_byte(tmp_path, rng, method):
    line = rng.normal(size=(5000, 3)).astype("f4")
    path = save_trx(tmp_path / "a.trx", [line], method=method)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValidationError, match="not a whole file"):
        list(iter_streamlines(path))


# .tt.gz


def test_tt_by_hand(tmp_path):
    path = save_tt(
        tmp_path / "a.tt.gz",
        [track((320, 640, 32), (32, -16, 127), (-128, 0, 1)), track((-32, 0, 64))],
        [track((0, 0, 0), (8, 8, 8))],
    )
    assert read_tractogram_header(path).count is None
    first, second, third = iter_streamlines(path)
    # x = 78 - i, y = 76 - j, z = 2 k - 50, where (i, j, k) are the numbers over 32.
    expected = [[68, 56, -48], [67, 56.5, -40.0625], [71, 56.5, -40]]
    np.testing.assert_array_equal(first, np.array(expected, "f4"))
    np.testing.assert_array_equal(second, [[79, 76, -46]])
    np.testing.assert_array_equal(third, [[78, 76, -50], [77.75, 75.75, -49.5]])


def test_tt_that_does_not_know_where_it_is(tmp_path):
    path = save_tt(tmp_path / "a.tt.gz", [track((0, 0, 0))], affine=None)
    with pytest.raises(ValidationError, match="trans_to_mni") as error:
        read_tractogram_header(path)
    assert one_sentence(error)


@pytest.mark.parametrize(
    "block", [[b"\x04\0\0\0" + bytes(12)], [bytes(16)], [b"\xff\xff\xff\xff" + bytes(12)], [b"ab"]]
)
def test_tt_with_damaged_tracks(tmp_path, block):
    path = save_tt(tmp_path / "a.tt.gz", block)
    with pytest.raises(ValidationError, match="not a whole file"):
        list(iter_streamlines(path))


def test_tt_cut_anywhere_inside(tmp_path):
    whole = gzip.decompress(save_tt(tmp_path / "a.tt.gz", [track((0, 0, 0))]).read_bytes())
    for length in range(len(whole)):
        path = tmp_path / "cut.tt.gz"
        path.write_bytes(gzip.compress(whole[:length], compresslevel=1))
        with pytest.raises(ValidationError):
            list(iter_streamlines(path))


def test_gzip_that_is_no_tt(tmp_path):
    (tmp_path / "a.tt.gz").write_bytes(gzip.compress(b"some text that is long enough"))
    with pytest.raises(ValidationError, match="not a TinyTrack file"):
        read_tractogram_header(tmp_path / "a.tt.gz")
    (tmp_path / "a.tt.gz").write_bytes(gzip.compress(matrix("fib", np.zeros((3, 3), "f4"))))
    with pytest.raises(ValidationError, match="holds no tracks"):
        read_tractogram_header(tmp_path / "a.tt.gz")


# All formats


@pytest.mark.parametrize("suffix", TRACTOGRAM_SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path, rng, suffix, share):
    lines = [rng.normal(size=(20, 3)).astype("f4") for _ in range(300)]
    path = save(tmp_path / f"a{suffix}", lines)
    assert len(list(iter_streamlines(path))) == 300
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValidationError, match=str(path)) as error:
        list(iter_streamlines(path))
    assert one_sentence(error)


@pytest.mark.parametrize("suffix", TRACTOGRAM_SUFFIXES)
def test_files_of_another_kind(tmp_path, rng, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(rng.bytes(5000))
    with pytest.raises(ValidationError, match=str(path)) as error:
        iter_streamlines(path)
    assert one_sentence(error)
    path.unlink()
    with pytest.raises(ValidationError, match="does not exist"):
        iter_streamlines(path)
    path.mkdir()
    with pytest.raises(ValidationError, match="cannot be read"):
        iter_streamlines(path)


def test_other_suffixes(tmp_path):
    with pytest.raises(ValidationError, match=r"not a tractogram \(\.tck"):
        read_tractogram_header(tmp_path / "a.vtk")


@pytest.mark.parametrize("suffix", TRACTOGRAM_SUFFIXES)
def test_memory_is_bounded(tmp_path, rng, suffix):
    """12 MB of points are never in memory together."""
    steps = rng.normal(size=(500, 3)).astype("f4")
    path = save(tmp_path / f"a{suffix}", [steps + n for n in range(2000)])
    streamlines = iter_streamlines(path)
    n_points, peak = 0, 0
    tracemalloc.start()
    try:
        for streamline in streamlines:
            n_points += len(streamline)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n_points >= 1_000_000
    limit = 45e6 if suffix == ".tck" else 4e6  # chunks of 16 MiB, see iter_tck_streamlines
    assert peak < limit


@pytest.mark.parametrize("suffix", TRACTOGRAM_SUFFIXES)
def test_sidecar(tmp_path, suffix):
    path = tmp_path / f"whole.brain{suffix}"
    beside = tmp_path / "whole.brain.json"
    assert tractogram_sidecar(path) == (beside, {})
    beside.write_text('{"Space": "MNI152NLin6Asym"}')
    assert tractogram_sidecar(path) == (beside, {"Space": "MNI152NLin6Asym"})
    for text in ("[]", "{", "\xff"):
        beside.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValidationError, match="not valid JSON"):
            tractogram_sidecar(path)


# Real files


def real(*parts):
    if DATA is None or not DATA.joinpath(*parts).is_file():
        pytest.skip("LACUNA_TEST_DATA does not name a folder with the real tractograms")
    return DATA.joinpath(*parts)


@pytest.mark.real_data
def test_real_tt_is_where_its_bundle_is():
    """The right superior thalamic radiation, against the same bundle of another release."""
    lines = list(iter_streamlines(real("tract_formats", "TR_S_R.tt.gz")))
    assert len(lines) == 1159
    bundle_file = real("tractogram_hcp1065", "streamline_bundle.tsv.gz")
    with gzip.open(bundle_file, "rt") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    wanted = "ProjectionBasalGanglia_ThalamicRadiationR_Superior"
    all_lines = iter_streamlines(real("tractogram_hcp1065", "hcp1065_10403_step2mm.tck"))
    bundle = np.concatenate(
        [line for line, row in zip(all_lines, rows, strict=True) if row["bundle"] == wanted]
    )
    points = np.concatenate(lines)[::50]
    nearest = np.sqrt(((points[:, None] - bundle[None]) ** 2).sum(axis=2)).min(axis=1)
    assert np.median(nearest) < 2
    assert np.percentile(nearest, 95) < 8
    # The same with x mirrored, or without the affine, is elsewhere.
    mirrored = points * np.array([-1, 1, 1], "f4")
    nearest = np.sqrt(((mirrored[:, None] - bundle[None]) ** 2).sum(axis=2)).min(axis=1)
    assert np.median(nearest) > 15


@pytest.mark.real_data
def test_real_trk_is_that_of_eager_loading():
    path = real("tract_formats", "tract.IFOF_R.trk")
    eager = nib.streamlines.load(path).streamlines
    assert len(eager) == 14
    for one, other in zip(iter_streamlines(path), eager, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


@pytest.mark.real_data
def test_real_trx_counts_by_its_offsets():
    """Its header says 459, its offsets and its values per streamline 460."""
    path = real("tract_formats", "dpsv.trx")
    with zipfile.ZipFile(path) as archive:
        points = np.frombuffer(archive.read("positions.3.float16"), "<f2").reshape(-1, 3)
        starts = np.frombuffer(archive.read("offsets.uint32"), "<u4")
    lines = list(iter_streamlines(path))
    assert len(lines) == len(starts) == read_tractogram_header(path).count
    np.testing.assert_array_equal(np.concatenate(lines), points.astype("f4"))
    # No segment leaps from one streamline to another.
    assert max(np.linalg.norm(np.diff(line, axis=0), axis=1).max() for line in lines) < 2
