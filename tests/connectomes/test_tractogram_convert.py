"""Tractograms converted to .tck: points, step, order, and what the record and the sidecar say."""

import gzip
import json
import re
import shutil
import struct
import subprocess
import tracemalloc
import zipfile

import nibabel as nib
import numpy as np
import pytest
from nibabel.streamlines import LazyTractogram, TckFile, Tractogram, TrkFile

from lacuna_nipype.connectomes import tractogram_convert
from lacuna_nipype.connectomes.tractogram import (
    check_tck,
    iter_tck_streamlines,
    measure_step_size,
    read_tck_header,
    write_tck,
)
from lacuna_nipype.connectomes.tractogram_convert import (
    convert_tractogram,
    measure_step,
    merge_tractograms,
)
from lacuna_nipype.connectomes.tractogram_formats import iter_streamlines, read_tractogram_header
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.files import fingerprint
from lacuna_nipype.core.streamline_resampling import arc_lengths

AFFINE = np.array([[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], "f4")
FORMATS = ("a.tck", "a.trk", "a.trk.gz", "a.trx", "a.tt.gz")


def needs_mrtrix(function):
    missing = shutil.which("tckinfo") is None or shutil.which("tckmap") is None
    skip = pytest.mark.skipif(missing, reason="MRtrix3 is not on PATH")
    return pytest.mark.mrtrix(skip(function))


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def wandering(rng, n_points, step):
    """A path that turns at each point."""
    directions = rng.normal(size=(n_points, 3)) + np.array([1.5, 0, 0])
    directions *= step / np.linalg.norm(directions, axis=1, keepdims=True)
    return (rng.uniform(-8, 0, 3) + np.cumsum(directions, axis=0)).astype("f4")


def bundle(rng, n_lines=40, step=0.5):
    return [wandering(rng, n, step) for n in rng.integers(12, 60, n_lines)]


def compressed(rng, n_lines=30):
    """Streamlines with segments from 0.1 to 3 mm."""
    return [
        np.cumsum(rng.uniform(0.05, 2, (n, 1)) * np.ones((1, 3)), axis=0).astype("f4")
        for n in rng.integers(3, 30, n_lines)
    ]


def save(path, lines):
    """Write in the format of the name; .tt.gz rounds to 1/32 mm."""
    if path.name.endswith(".tck"):
        write_tck(path, lines, step_size=None)
    elif path.name.endswith(".trx"):
        header = {"NB_STREAMLINES": len(lines), "NB_VERTICES": sum(map(len, lines))}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("header.json", json.dumps(header))
            archive.writestr("positions.3.float32", np.concatenate(lines).tobytes())
            starts = np.cumsum([0, *map(len, lines)]).astype("u4")
            archive.writestr("offsets.uint32", starts.tobytes())
    elif path.name.endswith(".tt.gz"):
        body = b""
        for line in lines:
            grid = np.rint(line * 32).astype("i4")
            body += struct.pack("<I3i", 3 * len(line), *grid[0])
            body += np.diff(grid, axis=0).astype("i1").tobytes()
        parts = struct.pack("<5i", 10, 1, 16, 0, 13) + b"trans_to_mni\0"
        parts += np.eye(4, dtype="f4").tobytes()
        parts += struct.pack("<5i", 50, 1, len(body), 0, 6) + b"track\0" + body
        path.write_bytes(gzip.compress(parts))
    else:
        lazy = LazyTractogram(lambda: iter(lines), affine_to_rasmm=np.eye(4))
        plain = path.with_name("plain.trk")
        TrkFile(lazy, {"voxel_to_rasmm": AFFINE, "voxel_sizes": (2, 2, 2)}).save(str(plain))
        data = plain.read_bytes()
        plain.unlink()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def assert_same(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def sidecar(path):
    return json.loads(path.with_suffix(".json").read_text())


# Points and steps


@pytest.mark.parametrize("name", FORMATS)
def test_regular_points_keep_their_bits(tmp_path, rng, name):
    # Whole thirty-seconds, so that .tt.gz is as regular as the others.
    step = np.array([16, 0, 0]) / 32
    lines = [(rng.integers(-900, 900, 3) / 32 + np.arange(n)[:, None] * step) for n in (5, 30, 9)]
    lines = [line.astype("f4") for line in lines]
    source = save(tmp_path / name, lines)
    record = convert_tractogram(source, tmp_path / "out.tck")
    header = check_tck(tmp_path / "out.tck")
    assert (header.count, header.step_size) == (3, 0.5)
    assert_same(iter_tck_streamlines(tmp_path / "out.tck"), iter_streamlines(source))
    for line, found in zip(lines, iter_tck_streamlines(tmp_path / "out.tck"), strict=True):
        np.testing.assert_allclose(found, line, atol=1e-5)
    assert (record.n_streamlines, record.n_empty, record.n_one_point) == (3, 0, 0)
    assert (record.step_size, record.resampled, record.space) == (0.5, False, None)
    (part,) = record.sources
    assert part.path == source
    assert part.fingerprint == fingerprint(source)
    assert part.measured_step_size == pytest.approx(0.5, abs=1e-5)
    assert part.regular


@pytest.mark.parametrize("name", ["a.tck", "a.trk", "a.trk.gz", "a.trx"])
def test_irregular_ones_are_resampled(tmp_path, rng, name):
    lines = compressed(rng)
    source = save(tmp_path / name, lines)
    record = convert_tractogram(source, tmp_path / "out.tck")
    assert record.resampled
    assert not record.sources[0].regular
    segments = np.concatenate([np.linalg.norm(np.diff(s, axis=0), axis=1) for s in lines])
    assert record.sources[0].measured_step_size == pytest.approx(np.median(segments), abs=1e-4)
    # The median is above 1 mm, which is the coarsest step that is chosen.
    assert record.step_size == read_tck_header(tmp_path / "out.tck").step_size == 1.0
    for line, found in zip(lines, iter_tck_streamlines(tmp_path / "out.tck"), strict=True):
        np.testing.assert_allclose(found[[0, -1]], line[[0, -1]], atol=1e-4)
        total = np.linalg.norm(line[-1] - line[0])
        # Straight lines: the steps are those of the line but for the last.
        if total > 1.01:
            steps = np.linalg.norm(np.diff(found, axis=0), axis=1)
            np.testing.assert_allclose(steps[:-1], 1, atol=1e-4)
            assert len(found) == int(np.ceil(total - 0.01)) + 1
    assert record.n_streamlines == len(lines)


@pytest.mark.parametrize(
    ("factor", "expected"), [(1.0, 1.0), (0.2, None), (0.001, 0.1)], ids=["1mm", "median", "0.1mm"]
)
def test_step_chosen_for_irregular_ones(tmp_path, rng, factor, expected):
    lines = [line * np.float32(factor) for line in compressed(rng, 60)]
    source = save(tmp_path / "a.tck", lines)
    record = convert_tractogram(source, tmp_path / "out.tck")
    median = round(measure_step_size(read_tck_header(source)).median, 4)
    assert record.step_size == (expected or median)


@pytest.mark.parametrize("name", ["a.tck", "a.trk"])
def test_another_step_on_request(tmp_path, rng, name):
    lines = bundle(rng, step=0.5)
    source = save(tmp_path / name, lines)
    record = convert_tractogram(source, tmp_path / "out.tck", step_size=0.25)
    assert (record.step_size, record.resampled, record.sources[0].regular) == (0.25, True, True)
    step = measure_step_size(read_tck_header(tmp_path / "out.tck"))
    assert step.median == pytest.approx(0.25, abs=1e-4)
    for line, found in zip(lines, iter_tck_streamlines(tmp_path / "out.tck"), strict=True):
        # Every second point is one of the old ones.
        n = min(len(line) - 1, len(found[::2]) - 1)
        np.testing.assert_allclose(found[::2][:n], line[:n], atol=2e-3)
    # Asked for what it has: nothing is moved.
    record = convert_tractogram(source, tmp_path / "same.tck", step_size=0.5)
    assert not record.resampled
    assert_same(iter_tck_streamlines(tmp_path / "same.tck"), iter_streamlines(source))


@pytest.mark.parametrize("step", [0, -1, float("nan")])
def test_steps_that_are_none(tmp_path, rng, step):
    source = save(tmp_path / "a.tck", bundle(rng))
    with pytest.raises(ValidationError, match="step size"):
        convert_tractogram(source, tmp_path / "out.tck", step_size=step)
    assert list(tmp_path.iterdir()) == [source]


def test_empty_and_short_ones_are_kept_in_place(tmp_path, rng):
    lines = bundle(rng, 6)
    lines[1] = np.zeros((0, 3), "f4")
    lines[3] = np.full((1, 3), 4, "f4")
    lines[5] = np.zeros((0, 3), "f4")
    source = save(tmp_path / "a.trk", lines)
    for step in (None, 0.2):
        record = convert_tractogram(source, tmp_path / "o.tck", step_size=step, overwrite=True)
        assert (record.n_streamlines, record.n_empty, record.n_one_point) == (6, 2, 1)
        found = list(iter_tck_streamlines(tmp_path / "o.tck"))
        assert [len(line) for line in found if len(line) < 2] == [0, 1, 0]
        for line, kept in zip(lines, found, strict=True):
            np.testing.assert_allclose(kept[:1], line[:1], atol=1e-5)


def test_a_tck_gets_its_step(tmp_path, rng):
    """As tckedit leaves it when it merges files: step_size variable."""
    lines = bundle(rng, step=0.7)
    source = tmp_path / "a.tck"
    fields = {"step_size_note": "x", "timestamp": "17", "output_step_size": "9"}
    write_tck(source, lines, step_size=None, fields={**fields, "comment": "one\ntwo"})
    data = source.read_bytes().replace(b"step_size_note: x", b"step_size: varied")
    source.write_bytes(data)
    assert read_tck_header(source).step_size is None
    record = convert_tractogram(source, tmp_path / "out.tck")
    header = read_tck_header(tmp_path / "out.tck")
    assert header.step_size == record.step_size == 0.7
    assert header.fields["comment"] == "one\ntwo"
    assert header.fields["timestamp"] == "17"
    assert "output_step_size" not in header.fields
    assert_same(iter_tck_streamlines(tmp_path / "out.tck"), lines)
    # The timestamp ties files of values per point to the points.
    convert_tractogram(source, tmp_path / "fine.tck", step_size=0.1)
    assert "timestamp" not in read_tck_header(tmp_path / "fine.tck").fields


@pytest.mark.parametrize(("told", "expected"), [(0.7003, 0.7003), (1.0, 0.7)])
def test_a_step_in_the_header_counts_if_it_is_right(tmp_path, rng, told, expected):
    write_tck(tmp_path / "a.tck", bundle(rng, step=0.7), step_size=told)
    record = convert_tractogram(tmp_path / "a.tck", tmp_path / "out.tck")
    assert (record.step_size, record.resampled) == (expected, False)


def test_irregular_after_the_sample(tmp_path, rng, monkeypatch):
    """The beginning is regular, most of the rest is not: seen while writing."""
    monkeypatch.setattr(tractogram_convert, "_SAMPLE_POINTS", 500)
    monkeypatch.setattr(tractogram_convert, "_BATCH", 8)
    source = save(tmp_path / "a.trk", bundle(rng, 40) + compressed(rng, 200))
    assert measure_step(read_tractogram_header(source)).regular
    record = convert_tractogram(source, tmp_path / "out.tck")
    assert (record.resampled, record.sources[0].regular) == (True, False)
    assert record.n_streamlines == 240
    assert record.step_size == 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.trk", "out.json", "out.tck"]


def test_progress(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(tractogram_convert, "_BATCH", 16)
    seen = []
    for name in ("a.trk", "a.tt.gz"):
        source = save(tmp_path / name, bundle(rng, 40))
        convert_tractogram(
            source, tmp_path / "o.tck", overwrite=True, progress=lambda *at: seen.append(at)
        )
    assert seen == [(16, 40), (32, 40), (40, 40)]


# What is refused


@pytest.mark.parametrize("name", ["a.tck", "a.trk", "a.trx"])
@pytest.mark.parametrize("number", [0, 37])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_coordinates_that_are_not_finite(tmp_path, rng, monkeypatch, name, number, value):
    monkeypatch.setattr(tractogram_convert, "_BATCH", 16)
    lines = bundle(rng)
    lines[number][4, 1] = value
    if name == "a.tck":
        # The writer refuses such a line, so the value is put in afterwards.
        marker = np.array([12345.0], "f4")
        lines[number][4, 1] = marker[0]
        source = save(tmp_path / name, lines)
        data = source.read_bytes()
        assert data.count(marker.tobytes()) == 1
        source.write_bytes(data.replace(marker.tobytes(), np.array([value], "f4").tobytes()))
    else:
        source = save(tmp_path / name, lines)
    with pytest.raises(ValidationError, match=rf"a\.t.. has .* in streamline {number} "):
        convert_tractogram(source, tmp_path / "out.tck", step_size=0.2)
    with pytest.raises(ValidationError, match=rf"a\.t.. has .* in streamline {number} "):
        convert_tractogram(source, tmp_path / "out.tck")
    assert list(tmp_path.iterdir()) == [source]


def test_targets(tmp_path, rng):
    source = save(tmp_path / "a.trk", bundle(rng))
    with pytest.raises(ValidationError, match=r"does not end in \.tck"):
        convert_tractogram(source, tmp_path / "b.trk")
    convert_tractogram(source, tmp_path / "b.tck")
    with pytest.raises(ValidationError, match=r"b\.tck exists already"):
        convert_tractogram(source, tmp_path / "b.tck")
    convert_tractogram(source, tmp_path / "b.tck", overwrite=True)
    with pytest.raises(ValidationError, match="file to read from"):
        convert_tractogram(tmp_path / "b.tck", tmp_path / "b.tck", overwrite=True)
    (tmp_path / "c.json").write_text('{"Other": 1}')
    with pytest.raises(ValidationError, match=r"c\.json exists already"):
        convert_tractogram(source, tmp_path / "c.tck")
    with pytest.raises(ValidationError, match="no tractogram to write"):
        merge_tractograms([], tmp_path / "c.tck")


def test_truncated_source_leaves_nothing(tmp_path, rng):
    source = save(tmp_path / "a.trk.gz", bundle(rng, 3000))
    source.write_bytes(source.read_bytes()[:-1000])
    with pytest.raises(ValidationError, match=r"a\.trk\.gz is not a whole file"):
        convert_tractogram(source, tmp_path / "out.tck")
    assert list(tmp_path.iterdir()) == [source]


def test_nothing_to_measure(tmp_path):
    source = save(tmp_path / "a.trk", [np.zeros((1, 3), "f4")])
    for step in (None, 1):
        with pytest.raises(ValidationError, match="no streamline of two points"):
            convert_tractogram(source, tmp_path / "out.tck", step_size=step)
    with pytest.raises(ValidationError, match="no streamline of two points"):
        measure_step(read_tractogram_header(source))


# Space and sidecar


def test_sidecar_says_what_was_done(tmp_path, rng):
    lines = bundle(rng, 5)
    lines[2] = lines[2][:1]
    source = save(tmp_path / "a.trx", lines)
    record = convert_tractogram(source, tmp_path / "out.tck", space="mni152nlin6asym")
    assert record.space == "MNI152NLin6Asym"
    found = sidecar(tmp_path / "out.tck")
    assert found.pop("Software")["Name"] == "lacuna-nipype"
    (part,) = found.pop("ConvertedFrom")
    assert found == {
        "Space": "MNI152NLin6Asym",
        "Units": "mm",
        "NumberOfStreamlines": 5,
        "NumberOfEmptyStreamlines": 0,
        "NumberOfOnePointStreamlines": 1,
        "StepSize": 0.5,
        "Resampled": False,
    }
    assert part["Name"] == "a.trx"
    assert part["Fingerprint"] == fingerprint(source)
    assert part["MeasuredStepSize"] == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(ValidationError, match="Space 'T1w'"):
        convert_tractogram(source, tmp_path / "new.tck", space="T1w")


def test_space_of_the_source(tmp_path, rng):
    source = save(tmp_path / "a.trk.gz", bundle(rng))
    beside = {"Space": "MNI152NLin2009cAsym", "Description": "of the source", "StepSize": 99}
    (tmp_path / "a.json").write_text(json.dumps(beside))
    assert convert_tractogram(source, tmp_path / "b.tck").space == "MNI152NLin2009cAsym"
    assert "Description" not in sidecar(tmp_path / "b.tck")
    # The JSON of the source is that of the target too: it is completed.
    record = convert_tractogram(source, tmp_path / "a.tck", space="MNI152NLin6Asym")
    assert record.space == "MNI152NLin6Asym"
    found = sidecar(tmp_path / "a.tck")
    assert found["Description"] == "of the source"
    assert (found["Space"], found["StepSize"]) == ("MNI152NLin6Asym", 0.5)


# Merging


def test_merged_ones_come_one_after_the_other(tmp_path, rng):
    parts = [bundle(rng, n) for n in (7, 4, 9)]
    parts[1][2] = parts[1][2][:0]
    sources = [
        save(tmp_path / name, lines)
        for name, lines in zip(("a.trk", "b.trx", "c.tck"), parts, strict=True)
    ]
    nothing = save(tmp_path / "d.trk", [np.zeros((1, 3), "f4")])
    record = merge_tractograms([*sources, nothing], tmp_path / "out.tck")
    expected = [line for source in [*sources, nothing] for line in iter_streamlines(source)]
    assert_same(iter_tck_streamlines(tmp_path / "out.tck"), expected)
    assert [part.n_streamlines for part in record.sources] == [7, 4, 9, 1]
    assert (record.n_streamlines, record.n_empty, record.n_one_point) == (21, 1, 1)
    assert (record.step_size, record.resampled) == (0.5, False)
    assert record.sources[3].measured_step_size is None
    assert [part["Name"] for part in sidecar(tmp_path / "out.tck")["ConvertedFrom"]] == [
        "a.trk", "b.trx", "c.tck", "d.trk"
    ]  # fmt: skip


@pytest.mark.parametrize(("asked", "expected"), [(None, 0.5), (2.0, 2.0), (0.8, 0.8)])
def test_merged_ones_have_one_step(tmp_path, rng, asked, expected):
    sources = [
        save(tmp_path / "a.trk", bundle(rng, 30, 2.0)),
        save(tmp_path / "b.trk", bundle(rng, 30, 0.5)),
    ]
    record = merge_tractograms(sources, tmp_path / "out.tck", step_size=asked)
    assert record.step_size == expected
    steps = [part.measured_step_size for part in record.sources]
    assert [part.resampled for part in record.sources] == [
        abs(step - expected) > 0.01 for step in steps
    ]
    before = [line for source in sources for line in iter_streamlines(source)]
    after = iter_tck_streamlines(tmp_path / "out.tck")
    for line, found in zip(before, after, strict=True):
        assert len(found) == np.ceil(arc_lengths(line)[-1] / expected - 0.01) + 1
        # Straight lines between the points of a bent path are shorter than a step.
        steps = np.linalg.norm(np.diff(found, axis=0), axis=1)
        assert (steps <= 1.011 * expected).all()


def test_merged_ones_are_in_one_space(tmp_path, rng):
    sources = [save(tmp_path / f"{name}.trk", bundle(rng)) for name in "ab"]
    out = tmp_path / "out.tck"
    assert merge_tractograms(sources, out).space is None
    (tmp_path / "a.json").write_text('{"Space": "MNI152NLin6Asym"}')
    assert merge_tractograms(sources, out, overwrite=True).space is None
    (tmp_path / "b.json").write_text('{"Space": "MNI152NLin2009cAsym"}')
    with pytest.raises(SpatialMismatchError, match="different spaces"):
        merge_tractograms(sources, out, overwrite=True)
    record = merge_tractograms(sources, out, overwrite=True, space="MNI152NLin6Asym")
    assert record.space == "MNI152NLin6Asym"


# Size


@pytest.mark.parametrize("name", ["a.trk", "a.trx"])
@pytest.mark.parametrize("step", [None, 0.9])
def test_memory_is_bounded(tmp_path, name, step):
    line = np.zeros((500, 3), "f4")
    line[:, 0] = np.arange(500) * 0.5
    source = save(tmp_path / name, [line] * 6000)
    tracemalloc.start()
    try:
        record = convert_tractogram(source, tmp_path / "out.tck", step_size=step)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert record.n_streamlines == 6000
    # Below the 36 MB of the file, most of it the lengths in the sample of a million points.
    assert peak < 30e6


# MRtrix


@needs_mrtrix
@pytest.mark.parametrize("step", [None, 0.3])
def test_tckinfo_counts_the_same(tmp_path, rng, step):
    source = save(tmp_path / "a.trk.gz", bundle(rng, 1234))
    convert_tractogram(source, tmp_path / "out.tck", step_size=step)
    told = subprocess.run(
        ["tckinfo", "-quiet", "-count", tmp_path / "out.tck"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "actual count in file: 1234\n" in told
    assert re.search(rf"^    step_size: +{step or 0.5}$", told, re.MULTILINE)


@needs_mrtrix
def test_tckmap_sees_what_nibabel_writes(tmp_path, rng):
    lines = bundle(rng, 200, step=1.0)
    source = save(tmp_path / "a.trk", lines)
    convert_tractogram(source, tmp_path / "ours.tck")
    loaded = nib.streamlines.load(source).streamlines
    for name, header in (("nibabel", {"step_size": "1.0"}), ("without", {})):
        tractogram = Tractogram(loaded, affine_to_rasmm=np.eye(4))
        TckFile(tractogram, header=header).save(str(tmp_path / f"{name}.tck"))
    grid = np.diag([1.0, 1, 1, 1])
    grid[:3, 3] = -20
    nib.save(nib.Nifti1Image(np.zeros((100, 60, 60), "u1"), grid), tmp_path / "grid.nii")

    def tdi(name):
        command = ["tckmap", "-quiet", "-force", "-nthreads", "0", "-template", "grid.nii"]
        subprocess.run([*command, f"{name}.tck", "tdi.nii"], check=True, cwd=tmp_path)
        return np.asarray(nib.load(tmp_path / "tdi.nii").dataobj)

    ours = tdi("ours")
    assert ours.sum() > 5000
    np.testing.assert_array_equal(ours, tdi("nibabel"))
    # Without the step, voxels are missed: the step does something.
    assert tdi("without").sum() < 0.95 * ours.sum()
    # A finer step by resampling says nearly the same.
    convert_tractogram(source, tmp_path / "fine.tck", step_size=0.25)
    fine = tdi("fine")
    assert np.corrcoef(ours.ravel(), fine.ravel())[0, 1] > 0.97
