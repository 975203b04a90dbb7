"""The documented converters: names and folders in, one .tck out, positions in mm."""

import gzip
import json
import os
import re
import shutil
import struct
import subprocess
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.streamlines import LazyTractogram, TrkFile

from lacuna_nipype.connectomes import conversion
from lacuna_nipype.connectomes.conversion import (
    check_trk_header,
    find_bundles,
    merge_trk_to_tck,
    trk_to_tck,
)
from lacuna_nipype.connectomes.tractogram import iter_tck_streamlines, read_tck_header, write_tck
from lacuna_nipype.core.exceptions import (
    ProcessingError,
    SpatialMismatchError,
    ValidationError,
)

DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None
# 2 mm, LAS; 1 mm, RAS; 1.25 x 2.5 x 5 mm with turned axes: voxel (i, j, k) at (k, i, j) mm.
LAS = np.array([[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], "f4")
RAS = np.array([[1, 0, 0, -90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]], "f4")
TURNED = np.array([[0, 0, 5, -90], [1.25, 0, 0, -126], [0, -2.5, 0, 72], [0, 0, 0, 1]], "f4")
STEP = 0.5


def needs_mrtrix(function):
    missing = shutil.which("tckinfo") is None
    skip = pytest.mark.skipif(missing, reason="MRtrix3 is not on PATH")
    return pytest.mark.mrtrix(skip(function))


def lines_of(seed, n_lines=20):
    """Paths that turn at each point, in equal steps, mm."""
    rng = np.random.default_rng(seed)
    lines = []
    for n_points in rng.integers(12, 50, n_lines):
        steps = rng.normal(size=(n_points, 3)) + np.array([1.5, 0, 0])
        steps *= STEP / np.linalg.norm(steps, axis=1, keepdims=True)
        lines.append((rng.uniform(-40, 40, 3) + np.cumsum(steps, axis=0)).astype("f4"))
    return lines


def save_trk(path, lines, affine=RAS):
    """Write by nibabel, as other programs do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "voxel_to_rasmm": affine,
        "voxel_sizes": np.linalg.norm(affine[:3, :3], axis=0),
        "dimensions": (91, 109, 91),
        "voxel_order": "".join(np.array([["L", "R"], ["P", "A"], ["I", "S"]])[
            np.abs(affine[:3, :3]).argmax(axis=0), (affine[:3, :3].sum(axis=0) > 0).astype(int)
        ]),
    }  # fmt: skip
    lazy = LazyTractogram(lambda: iter(lines), affine_to_rasmm=np.eye(4))
    plain = path.with_name("plain.trk")
    TrkFile(lazy, header).save(str(plain))
    data = plain.read_bytes()
    plain.unlink()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return path


def assert_positions(tck, lines):
    found = list(iter_tck_streamlines(tck))
    assert [len(line) for line in found] == [len(line) for line in lines]
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(lines), atol=2e-4)


def names_in(path):
    sidecar = json.loads(path.with_suffix(".json").read_text())
    return [part["Name"] for part in sidecar["ConvertedFrom"]]


# One file


@pytest.mark.parametrize("name", ["a.trk", "a.trk.gz"])
@pytest.mark.parametrize("affine", [LAS, RAS, TURNED], ids=["LAS", "RAS", "turned"])
def test_positions_are_those_in_mm(tmp_path, name, affine):
    lines = lines_of(1)
    source = save_trk(tmp_path / name, lines, affine)
    out = trk_to_tck(source, str(tmp_path / "new" / "out.tck"))
    assert out == tmp_path / "new" / "out.tck"
    assert_positions(out, lines)
    header = read_tck_header(out)
    assert (header.count, header.step_size) == (20, STEP)


def test_positions_by_the_definition_of_the_format(tmp_path):
    """A file put together by hand, of each byte order: voxel corner is 0, mm along the axes."""
    points = np.array([[[9.0, 5, 3], [9, 6, 3], [9, 7, 3]]], "f4")
    for order in "<>":
        header = bytearray(1000)
        struct.pack_into("6s", header, 0, b"TRACK")
        struct.pack_into(f"{order}3h3f", header, 6, 91, 109, 91, 2, 2, 2)
        struct.pack_into(f"{order}16f", header, 440, *LAS.ravel())
        struct.pack_into("4s", header, 948, b"LAS")
        struct.pack_into(f"{order}3i", header, 988, 1, 2, 1000)
        body = struct.pack(f"{order}i", 3) + points.astype(f"{order}f4").tobytes()
        (tmp_path / "a.trk").write_bytes(bytes(header) + body)
        out = trk_to_tck(tmp_path / "a.trk", tmp_path / "a.tck", overwrite=True)
        # Voxel (4, 2, 1) is at (90 - 8, -126 + 4, -72 + 2).
        expected = [[82, -122, -70], [82, -121, -70], [82, -120, -70]]
        np.testing.assert_allclose(next(iter_tck_streamlines(out)), expected, atol=1e-4)


def test_what_is_there_is_returned(tmp_path):
    source = save_trk(tmp_path / "a.trk", lines_of(1))
    out = tmp_path / "out.tck"
    out.write_text("anything")
    assert trk_to_tck(source, out) == out
    assert out.read_text() == "anything"
    trk_to_tck(source, out, overwrite=True)
    written = out.read_bytes()
    assert trk_to_tck(source, out) == out
    assert out.read_bytes() == written
    other = save_trk(tmp_path / "b.trk", lines_of(2))
    with pytest.raises(ValidationError, match=r"made from other data \(a\.trk\)"):
        trk_to_tck(other, out)
    assert names_in(trk_to_tck(other, out, overwrite=True)) == ["b.trk"]


def test_names(tmp_path):
    source = save_trk(tmp_path / "a.trk", lines_of(1))
    with pytest.raises(ValueError, match=r"does not end in \.tck"):
        trk_to_tck(source, tmp_path / "out.trk")
    (tmp_path / "a.nii.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="is not a tractogram"):
        trk_to_tck(tmp_path / "a.nii.gz", tmp_path / "out.tck")
    with pytest.raises(FileNotFoundError, match=r"gone\.trk does not exist"):
        trk_to_tck(tmp_path / "gone.trk", tmp_path / "out.tck")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.nii.gz", "a.trk"]


def test_other_formats_are_read_too(tmp_path):
    lines = lines_of(1)
    write_tck(tmp_path / "a.tck", lines, step_size=None)
    out = trk_to_tck(tmp_path / "a.tck", tmp_path / "out.tck")
    assert_positions(out, lines)
    assert read_tck_header(out).step_size == STEP


def test_count_is_checked(tmp_path, monkeypatch):
    source = save_trk(tmp_path / "a.trk", lines_of(1))
    whole = conversion.merge_tractograms

    def lossy(sources, target, **settings):
        record = whole(sources, target, **settings)
        write_tck(target, lines_of(1)[:-1], step_size=STEP)
        return record

    monkeypatch.setattr(conversion, "merge_tractograms", lossy)
    with pytest.raises(ProcessingError, match=r"out\.tck: 19 streamlines .* instead of 20"):
        trk_to_tck(source, tmp_path / "out.tck")


# Headers that are wrong


def patched(path, offset, pattern, *values):
    data = bytearray(path.read_bytes())
    struct.pack_into(pattern, data, offset, *values)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("offset", "pattern", "values", "match"),
    [
        (0, "5s", [b"TRICK"], "not a TrackVis file"),
        (996, "<i", [999], "unusable header"),
        (992, "<i", [7], "unusable header"),
        (992, "<i", [1], "where it lies in space"),
        (440, "<16f", [0] * 16, "where it lies in space"),
        (440, "<16f", [*[0] * 15, 1], "unusable header"),
        (12, "<3f", [2, 2, 2], r"voxels of 2 x 2 x 2 mm but .* for voxels of 1 x 1 x 1 mm"),
        (12, "<3f", [1, 1, 1.5], r"voxels of 1 x 1 x 1\.5 mm but"),
        (12, "<3f", [1, 0, 1], "that no image can have"),
        (12, "<3f", [1, -1, 1], "that no image can have"),
        (12, "<3f", [1, 1, np.nan], "that no image can have"),
        (440 + 12, "<f", [np.inf], "that no image can have"),
        (440, "<f", [2], r"for voxels of 2 x 1 x 1 mm"),
        (988, "<i", [21], r"truncated \(20 of 21 streamlines"),
        (1000, "<i", [1 << 30], "is not a whole file"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_corrupt_headers(tmp_path, packed, offset, pattern, values, match):
    source = save_trk(tmp_path / "a.trk", lines_of(1))
    patched(source, offset, pattern, *values)
    if packed:
        source = source.rename(tmp_path / "a.trk.gz")
        source.write_bytes(gzip.compress(source.read_bytes()))
    with pytest.raises(ValidationError, match=match) as caught:
        trk_to_tck(source, tmp_path / "out.tck")
    assert str(source) in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("n_bytes", [0, 4, 500, 1000, 1500])
def test_cut_files(tmp_path, n_bytes):
    source = save_trk(tmp_path / "a.trk", lines_of(1))
    source.write_bytes(source.read_bytes()[:n_bytes])
    with pytest.raises(ValidationError, match=r"a\.trk "):
        trk_to_tck(source, tmp_path / "out.tck")
    assert list(tmp_path.iterdir()) == [source]


def test_html_page_saved_as_data(tmp_path):
    (tmp_path / "a.trk.gz").write_text("<!doctype html><html>Log in</html>")
    with pytest.raises(ValidationError, match=r"a\.trk\.gz is not a whole file"):
        trk_to_tck(tmp_path / "a.trk.gz", tmp_path / "out.tck")


def test_rounded_voxel_sizes_are_no_contradiction(tmp_path):
    source = save_trk(tmp_path / "a.trk", lines_of(1))
    patched(source, 12, "<3f", 1.0004, 0.9996, 1)
    check_trk_header(source)


# Folders of bundles


@pytest.fixture
def bundles(tmp_path):
    """Four bundles, each with another affine or compression; cranial nerves beside them."""
    folder = tmp_path / "cranial nerves too"  # not below the folder, so nothing of it
    parts = {
        "association/AF_L.trk.gz": (lines_of(1, 5), LAS),
        "association/AF_R.trk": (lines_of(2, 7), RAS),
        "commissural/CC.trk.gz": (lines_of(3, 9), TURNED),
        "projection/CST_L.trk": (lines_of(4, 4), LAS),
    }
    for name, (lines, affine) in parts.items():
        save_trk(folder / name, lines, affine)
    for name in ("Cranial Nerve/CNII_L.trk.gz", "x/CRANIAL_nerve/CNV.trk", "a-cranial_nerve.trk"):
        save_trk(folder / name, lines_of(9, 3))
    (folder / "association" / "readme.txt").write_text("no bundle")
    return folder, [line for lines, _ in parts.values() for line in lines]


def test_bundles_one_after_the_other(tmp_path, bundles):
    folder, lines = bundles
    out = merge_trk_to_tck(folder, tmp_path / "out.tck")
    assert_positions(out, lines)
    assert read_tck_header(out).count == 25
    assert read_tck_header(out).step_size == STEP
    assert names_in(out) == ["AF_L.trk.gz", "AF_R.trk", "CC.trk.gz", "CST_L.trk"]


def test_patterns_to_exclude(tmp_path, bundles):
    folder, _ = bundles
    assert len(find_bundles(folder, ())) == 7
    assert [path.name for path in find_bundles(folder, ("AF_", "cnii", "/cranial"))] == [
        "a-cranial_nerve.trk", "CC.trk.gz", "CST_L.trk",
    ]  # fmt: skip
    out = merge_trk_to_tck(folder, tmp_path / "out.tck", exclude_patterns=["association"])
    assert read_tck_header(out).count == 9 + 4 + 3 * 3
    assert len(find_bundles(folder, "association")) == 5


def test_no_bundles(tmp_path, bundles):
    folder, _ = bundles
    with pytest.raises(ValueError, match=r"\(7 were left out by their names\)"):
        merge_trk_to_tck(folder, tmp_path / "out.tck", exclude_patterns=["trk"])
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        merge_trk_to_tck(tmp_path / "gone", tmp_path / "out.tck")
    with pytest.raises(ValidationError, match="is not a folder"):
        merge_trk_to_tck(folder / "a-cranial_nerve.trk", tmp_path / "out.tck")


def test_hidden_files_are_no_bundles(bundles):
    folder, _ = bundles
    for name in ("__MACOSX/association/AF_L.trk.gz", "association/._AF_L.trk", ".cache/AF_L.trk"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"Mac OS X")
    assert len(find_bundles(folder)) == 4


def test_a_bundle_packed_and_unpacked(tmp_path, bundles):
    folder, _ = bundles
    packed = folder / "association" / "AF_L.trk.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    with pytest.raises(ValidationError, match=r"AF_L\.trk is there packed as well"):
        merge_trk_to_tck(folder, tmp_path / "out.tck")


def test_bundles_in_two_spaces(tmp_path, bundles):
    folder, _ = bundles
    (folder / "association" / "AF_L.json").write_text('{"Space": "MNI152NLin6Asym"}')
    (folder / "commissural" / "CC.json").write_text('{"Space": "MNI152NLin2009cAsym"}')
    with pytest.raises(SpatialMismatchError, match="different spaces"):
        merge_trk_to_tck(folder, tmp_path / "out.tck")
    assert not (tmp_path / "out.tck").exists()


def test_one_corrupt_bundle_is_named(tmp_path, bundles):
    folder, _ = bundles
    patched(folder / "projection" / "CST_L.trk", 12, "<3f", 1, 1, 1)
    with pytest.raises(ValidationError, match=r"CST_L\.trk has voxels of 1 x 1 x 1 mm but"):
        merge_trk_to_tck(folder, tmp_path / "out.tck")
    assert not (tmp_path / "out.tck").exists()


def test_merged_file_that_is_there(tmp_path, bundles):
    folder, _ = bundles
    out = merge_trk_to_tck(folder, tmp_path / "out.tck")
    before = out.stat().st_mtime_ns
    assert merge_trk_to_tck(folder, out) == out
    assert out.stat().st_mtime_ns == before
    (folder / "projection" / "CST_L.trk").unlink()
    with pytest.raises(ValidationError, match=r"AF_L\.trk\.gz, AF_R\.trk, CC\.trk\.gz and 1 more"):
        merge_trk_to_tck(folder, out)
    merge_trk_to_tck(folder, out, overwrite=True)
    assert read_tck_header(out).count == 21


# Size, and MRtrix


def test_memory_does_not_grow_with_the_number_of_bundles(tmp_path):
    line = np.zeros((500, 3), "f4")
    line[:, 0] = np.arange(500) * 0.5
    for number in range(6):
        save_trk(tmp_path / "in" / f"{number}.trk", [line] * 1500)
    tracemalloc.start()
    try:
        merge_trk_to_tck(tmp_path / "in", tmp_path / "out.tck")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 54 MB of points; the sample of a file holds a million points' distances at most.
    assert peak < 30e6


@needs_mrtrix
def test_tckinfo(tmp_path, bundles):
    folder, lines = bundles
    out = merge_trk_to_tck(folder, tmp_path / "out.tck")
    told = subprocess.run(
        ["tckinfo", "-quiet", "-count", out], check=True, capture_output=True, text=True
    ).stdout
    assert f"actual count in file: {len(lines)}\n" in told
    assert re.search(rf"^    step_size: +{STEP}$", told, re.MULTILINE)


@pytest.mark.real_data
@pytest.mark.skipif(
    DATA is None or not (DATA / "tract_formats").is_dir(),
    reason="LACUNA_TEST_DATA does not name a folder with tract_formats",
)
def test_real_bundle(tmp_path):
    source = DATA / "tract_formats" / "tract.IFOF_R.trk"
    out = trk_to_tck(source, tmp_path / "out.tck")
    found, lines = list(iter_tck_streamlines(out)), nib.streamlines.load(source).streamlines
    assert len(found) == len(lines) == read_tck_header(out).count
    assert read_tck_header(out).step_size == 1
    # Its steps are irregular, so it is resampled; ends stay.
    for line, kept in zip(lines, found, strict=True):
        np.testing.assert_allclose(kept[[0, -1]], line[[0, -1]], atol=1e-3)
