"""GSP1000 images to HDF5: every series at its place, whatever interrupts, in little memory."""

import errno
import gzip
import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import h5py
import nibabel as nb
import numpy as np
import pytest

import lacuna_nipype
from lacuna_nipype.connectomes import gsp1000
from lacuna_nipype.connectomes.build import build_connectome
from lacuna_nipype.connectomes.functional import iter_subjects, open_connectome
from lacuna_nipype.connectomes.gsp1000 import (
    ARCHIVES_RECORD,
    convert_gsp1000_archives,
    converted_archives,
    gsp1000_to_hdf5,
)
from lacuna_nipype.connectomes.ingest import IncompleteError
from lacuna_nipype.core.exceptions import LacunaError, SpatialMismatchError, ValidationError

SHAPE = (7, 8, 6)
RAS = np.array([[3.0, 0, 0, -9], [0, 3, 0, -12], [0, 0, 3, -6], [0, 0, 0, 1]])
NAME = "sub-{0:04d}/func/sub-{0:04d}_bld001_rest_skip4_stc_resid_sm7_finalmask.nii.gz"
BRAIN = np.zeros(SHAPE, np.uint8)
BRAIN[1:6, 2:7, 1:5] = 1
BRAIN[1, 2, 1] = 0


def series_of(seed, n_times=20, shape=SHAPE):
    return (300 + 20 * np.random.default_rng(seed).normal(size=(*shape, n_times))).astype("f4")


def save(path, data, affine=RAS, dtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nb.Nifti1Image(data, affine)
    if dtype is not None:
        image.set_data_dtype(dtype)
    nb.save(image, path)
    return path


@pytest.fixture
def mask(tmp_path):
    return save(tmp_path / "mask.nii.gz", BRAIN)


@pytest.fixture
def study(tmp_path):
    """Write subjects with the lengths given; gives the folder."""

    def write(*lengths, folder="gsp"):
        for number, n_times in enumerate(lengths):
            save(tmp_path / folder / NAME.format(number + 1), series_of(number, n_times))
        return tmp_path / folder

    return write


@pytest.fixture
def pack(tmp_path):
    """Tar subjects of a folder by their numbers; a name that ends in gz is compressed."""

    def write(name, folder, numbers, prefix="GSP1000/"):
        path = tmp_path / name
        with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as out:
            for number in numbers:
                member = NAME.format(number)
                out.add(folder / member, prefix + member)
        return path

    return write


def read(folder):
    return [s for file in open_connectome(folder).files for s in iter_subjects(file)]


def digests(folder):
    """Hash of every file; nothing hidden may be left."""
    assert not [p for p in folder.rglob("*") if p.name.startswith(".")]
    paths = sorted(folder.glob("*.h5"))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5")}


# Folders of images


def test_series_voxels_and_layout(tmp_path, mask, study):
    folder, seen = study(20, 20, 20), []
    paths = gsp1000_to_hdf5(
        str(folder), str(mask), str(tmp_path / "out"), 2,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert [p.name for p in paths] == ["gsp1000_chunk_000.h5", "gsp1000_chunk_001.h5"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for number, series in enumerate(read(tmp_path / "out")):
        assert series.dtype == np.float32
        assert np.array_equal(series, series_of(number)[BRAIN > 0].T)
    with h5py.File(paths[0]) as handle:
        assert handle["timeseries"].shape == (2, 20, BRAIN.sum())
        assert handle["timeseries"].chunks == (1, 20, BRAIN.sum())
        assert np.array_equal(handle["mask_indices"], np.nonzero(BRAIN))
        assert np.array_equal(handle["mask_affine"], RAS)
        assert handle.attrs["mask_shape"].tolist() == list(SHAPE)
        assert handle.attrs["space"] == "MNI152NLin6Asym"
        assert [handle.attrs[f"n_{k}"] for k in ("subjects", "timepoints", "voxels")] == [
            2, 20, BRAIN.sum(),
        ]  # fmt: skip
        sources = json.loads(handle.attrs["source"])
        assert [text.split()[0] for text in sources] == [NAME.format(1), NAME.format(2)]
        content = (folder / NAME.format(1)).read_bytes()
        assert sources[0].split()[1] == f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int32, np.float64, ">f4"])
def test_values_are_those_that_nibabel_reads(tmp_path, mask, dtype):
    """Also of scaled integers, and to the last bit."""
    path = save(tmp_path / "gsp" / NAME.format(1), series_of(0), dtype=dtype)
    gsp1000_to_hdf5(tmp_path / "gsp", mask, tmp_path / "out")
    (series,) = read(tmp_path / "out")
    assert np.array_equal(series, nb.load(path).get_fdata(dtype=np.float32)[BRAIN > 0].T)
    np.testing.assert_allclose(series, series_of(0)[BRAIN > 0].T, atol=1)


@pytest.mark.parametrize("orientation", ["LAS", "PIR"])
def test_axes_in_another_order_are_no_other_grid(tmp_path, mask, caplog, orientation):
    image = nb.Nifti1Image(series_of(0), RAS)
    start = nb.orientations.io_orientation(RAS)
    end = nb.orientations.axcodes2ornt(orientation)
    turned = image.as_reoriented(nb.orientations.ornt_transform(start, end))
    save(tmp_path / "gsp" / NAME.format(1), np.asarray(turned.dataobj), turned.affine)
    gsp1000_to_hdf5(tmp_path / "gsp", mask, tmp_path / "out")
    assert np.array_equal(read(tmp_path / "out")[0], series_of(0)[BRAIN > 0].T)
    assert not caplog.records


def test_another_grid_is_resampled_in_the_world(tmp_path, mask, caplog):
    """A field linear in x, y, z (mm) is interpolated exactly; expected from positions alone."""
    affine = np.diag([2.0, 2, 2.5, 1])
    affine[:3, 3] = (-13, -15, -10)
    shape = (15, 17, 11)
    world = np.einsum("ij,j...->i...", affine[:3, :3], np.indices(shape).astype(float))
    world += affine[:3, 3].reshape(3, 1, 1, 1)
    slopes = np.random.default_rng(1).normal(size=(12, 3))
    data = np.einsum("ti,i...->...t", slopes, world).astype(np.float32) + 50
    for number in (1, 2):
        save(tmp_path / "gsp" / NAME.format(number), data + number, affine)
    save(tmp_path / "gsp" / NAME.format(3), series_of(3, 12))
    with caplog.at_level(logging.WARNING):
        (path,) = gsp1000_to_hdf5(tmp_path / "gsp", mask, tmp_path / "out")
    positions = RAS[:3, :3] @ np.array(np.nonzero(BRAIN)) + RAS[:3, 3:]
    first, second, third = read(tmp_path / "out")
    np.testing.assert_allclose(first, slopes @ positions + 51, atol=2e-4)
    np.testing.assert_allclose(second, slopes @ positions + 52, atol=2e-4)
    assert np.array_equal(third, series_of(3, 12)[BRAIN > 0].T)
    (record,) = caplog.records
    assert NAME.format(1) in record.getMessage()
    assert "linearly" in record.getMessage()
    with h5py.File(path) as handle:
        sources = json.loads(handle.attrs["recipe"])["sources"]
    assert [source.get("resampled") for source in sources] == ["linear", "linear", None]


def test_brain_that_is_cut_off_a_little(tmp_path, mask, caplog):
    """20 of the brain's 99 voxels: refused; 1 of 100: told, and zero."""
    save(tmp_path / "gsp" / NAME.format(1), series_of(1)[:5])
    with pytest.raises(SpatialMismatchError, match=r"sub-0001.* leaves out 20% of .*mask\.nii"):
        gsp1000_to_hdf5(tmp_path / "gsp", mask, tmp_path / "out")
    brain = BRAIN.copy()
    brain[6, 3, 2] = 1
    wide = save(tmp_path / "wide.nii.gz", brain)
    save(tmp_path / "gsp" / NAME.format(1), series_of(1)[:6])
    gsp1000_to_hdf5(tmp_path / "gsp", wide, tmp_path / "out")
    assert "0 in the 1.0% of the brain" in caplog.text
    (series,) = read(tmp_path / "out")
    outside = list(zip(*np.nonzero(brain), strict=True)).index((6, 3, 2))
    assert not series[:, outside].any()
    assert np.array_equal(
        np.delete(series, outside, axis=1), series_of(1)[BRAIN > 0].T
    )  # fmt: skip


def test_lengths_go_to_files_of_their_own(tmp_path, mask, study):
    lengths = [20, 25, 20, 25, 20, 30]
    paths = gsp1000_to_hdf5(study(*lengths), mask, tmp_path / "out", 2)
    files = open_connectome(tmp_path / "out").files
    assert [f.path for f in files] == paths
    # Those that fill up first, then the rest by first occurrence.
    assert [(f.n_subjects, f.n_timepoints) for f in files] == [(2, 20), (2, 25), (1, 20), (1, 30)]
    order = [0, 2, 1, 3, 4, 5]
    for number, series in zip(order, read(tmp_path / "out"), strict=True):
        assert np.array_equal(series, series_of(number, lengths[number])[BRAIN > 0].T)


def test_first_subjects_only_and_other_files_left_aside(tmp_path, mask, study):
    folder = study(20, 20, 20)
    image = (folder / NAME.format(1)).read_bytes()
    for other in (
        "sub-0000/func/sub-0000_bld002_rest_x_finalmask.nii.gz",
        "sub-0000/func/._sub-0000_bld001_rest_x_finalmask.nii.gz",
        "sub-0000/anat/sub-0000_bld001_rest_x_finalmask.nii.gz",
        "other/func/sub-0000_bld001_rest_x_finalmask.nii.gz",
    ):
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / other).write_bytes(image)
    gsp1000_to_hdf5(folder, mask, tmp_path / "out", 10, max_subjects=2)
    assert len(read(tmp_path / "out")) == 2


def test_same_bytes_wherever_and_whenever(tmp_path, mask, study):
    lengths = (20, 20, 25, 20, 20)
    gsp1000_to_hdf5(study(*lengths), mask, tmp_path / "one", 2)
    time.sleep(1.1)
    other = study(*lengths, folder="elsewhere/below")
    for path in other.rglob("*.gz"):
        path.write_bytes((tmp_path / "gsp" / path.relative_to(other)).read_bytes())
    gsp1000_to_hdf5(other, mask, tmp_path / "deep/two", 2)
    assert len(digests(tmp_path / "one")) == 3
    assert digests(tmp_path / "one") == digests(tmp_path / "deep/two")


def test_finished_files_are_kept_unless_something_changed(tmp_path, mask, study):
    folder, out = study(20, 20, 20), tmp_path / "out"
    paths = gsp1000_to_hdf5(folder, mask, out, 1)
    before, hashes = times(out), digests(out)
    paths[1].unlink()
    gsp1000_to_hdf5(folder, mask, out, 1)
    assert digests(out) == hashes
    assert times(out)[paths[0].name] == before[paths[0].name]
    save(folder / NAME.format(3), series_of(7))
    with pytest.raises(ValidationError, match=r"chunk_002\.h5 .* --overwrite"):
        gsp1000_to_hdf5(folder, mask, out, 1)
    gsp1000_to_hdf5(folder, mask, out, 1, overwrite=True)
    assert times(out)[paths[0].name] == before[paths[0].name]
    # Larger files: those beyond are removed, too.
    with pytest.raises(ValidationError, match="not part"):
        gsp1000_to_hdf5(folder, mask, out, 3)
    gsp1000_to_hdf5(folder, mask, out, 3, overwrite=True)
    assert list(digests(out)) == ["gsp1000_chunk_000.h5"]
    assert len(read(out)) == 3


# Archives


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("per_chunk", [2, 3, 10])
def test_archives_give_the_bytes_of_their_folder(tmp_path, mask, study, pack, suffix, per_chunk):
    folder = study(20, 25, 20, 20, 25, 20, 20)
    gsp1000_to_hdf5(folder, mask, tmp_path / "one", per_chunk)
    archives = [
        pack(f"a.{suffix}", folder, [1, 2, 3], prefix=""),
        pack(f"b.{suffix}", folder, [4, 5]),
        pack(f"c.{suffix}", folder, [6, 7], prefix="./data/x/"),
    ]
    seen = []
    paths = convert_gsp1000_archives(
        archives, mask, tmp_path / "two", per_chunk, scratch=tmp_path / "scratch",
        progress=lambda *counts: seen.append(counts),
    )  # fmt: skip
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert [path.name for path in paths] == list(digests(tmp_path / "two"))
    assert seen == [(n, 7) for n in range(1, 8)]
    assert all(path.exists() for path in archives)
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["gsp1000.lock"]


def test_only_images_of_one_file_are_unpacked_at_a_time(tmp_path, mask, study, pack, monkeypatch):
    archives = [pack("a.tar", study(*[20] * 7), range(1, 8))]
    most, write = [], gsp1000.run_tasks

    def watch(*args, **kwargs):
        most.append(len(list((tmp_path / "scratch").rglob("*.nii.gz"))))
        return write(*args, **kwargs)

    monkeypatch.setattr(gsp1000, "run_tasks", watch)
    convert_gsp1000_archives(archives, mask, tmp_path / "out", 3, scratch=tmp_path / "scratch")
    assert most == [3, 3, 1]


def test_archives_are_removed_when_their_subjects_are_safe(tmp_path, mask, study, pack):
    folder = study(*[20] * 6)
    archives = [pack("a.tar", folder, [1, 2, 3]), pack("b.tar", folder, [4, 5, 6])]
    there = []
    arguments = (archives, mask, tmp_path / "out", 2)
    convert_gsp1000_archives(
        *arguments, scratch=tmp_path / "s", keep_original=False,
        progress=lambda done, _: there.append((done, [path.exists() for path in archives])),
    )  # fmt: skip
    # The third subject is in the second file.
    assert there[3] == (4, [True, True])
    assert there[4] == (5, [False, True])
    assert not any(path.exists() for path in archives)
    assert converted_archives(tmp_path / "out") == {
        "a.tar": [NAME.format(n) for n in (1, 2, 3)],
        "b.tar": [NAME.format(n) for n in (4, 5, 6)],
    }
    # Called again, they are not needed.
    before = times(tmp_path / "out")
    assert len(convert_gsp1000_archives(*arguments, scratch=tmp_path / "s")) == 3
    assert times(tmp_path / "out") == before
    # Until a file is lost.
    (tmp_path / "out/gsp1000_chunk_001.h5").unlink()
    assert converted_archives(tmp_path / "out") == {}
    with pytest.raises(FileNotFoundError, match=r"a\.tar does not exist; download"):
        convert_gsp1000_archives(*arguments, scratch=tmp_path / "s")


def test_archives_one_after_another(tmp_path, mask, study, pack):
    folder = study(*[20] * 5)
    gsp1000_to_hdf5(folder, mask, tmp_path / "one", 2)
    for name, numbers in (("a.tar", [1, 2]), ("b.tar", [3, 4]), ("c.tar", [5])):
        convert_gsp1000_archives(
            [pack(name, folder, numbers)], mask, tmp_path / "two", 2, scratch=tmp_path / "s"
        )
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_first_subjects_of_archives(tmp_path, mask, study, pack):
    folder = study(*[20] * 4)
    archives = [pack("a.tar", folder, [1, 2, 3]), pack("b.tar", folder, [4])]
    convert_gsp1000_archives(
        archives, mask, tmp_path / "out", 10, scratch=tmp_path / "s", max_subjects=2,
        keep_original=False,
    )  # fmt: skip
    assert len(read(tmp_path / "out")) == 2
    assert all(path.exists() for path in archives)
    assert converted_archives(tmp_path / "out") == {}
    convert_gsp1000_archives(archives, mask, tmp_path / "out", 10, scratch=tmp_path / "s")
    assert [len(read(tmp_path / "out")), len(digests(tmp_path / "out"))] == [4, 2]


def test_archives_that_changed(tmp_path, mask, study, pack):
    folder = study(20, 20)
    archives, out = [pack("a.tar", folder, [1, 2])], tmp_path / "out"
    convert_gsp1000_archives(archives, mask, out, 1, scratch=tmp_path / "s")
    before = times(out)
    save(folder / NAME.format(2), series_of(9, 22))
    pack("a.tar", folder, [1, 2])
    with pytest.raises(ValidationError, match=r"chunk_001\.h5 .* --overwrite"):
        convert_gsp1000_archives(archives, mask, out, 1, scratch=tmp_path / "s")
    convert_gsp1000_archives(archives, mask, out, 1, scratch=tmp_path / "s", overwrite=True)
    assert times(out)["gsp1000_chunk_000.h5"] == before["gsp1000_chunk_000.h5"]
    assert np.array_equal(read(out)[1], series_of(9, 22)[BRAIN > 0].T)
    # Another mask changes all; what could not be made again is not removed.
    other = save(tmp_path / "other.nii.gz", np.roll(BRAIN, 1, axis=0))
    archives[0].unlink()
    with pytest.raises(FileNotFoundError):
        convert_gsp1000_archives(archives, other, out, 1, scratch=tmp_path / "s", overwrite=True)
    assert len(digests(out)) == 2


# Interruptions


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Twelve subjects that take a while each, as a folder and as two archives."""
    root = tmp_path_factory.mktemp("large")
    shape = (30, 36, 30)
    affine = np.diag([6.0, 6, 6, 1])
    affine[:3, 3] = (-90, -126, -72)
    brain = np.zeros(shape, np.uint8)
    brain[4:26, 4:32, 4:26] = 1
    save(root / "mask.nii.gz", brain, affine)
    for number in range(1, 13):
        save(root / "gsp" / NAME.format(number), series_of(number, 40, shape), affine)
    for name, numbers in (("a.tar", range(1, 8)), ("b.tar", range(8, 13))):
        with tarfile.open(root / name, "w") as out:
            for number in numbers:
                out.add(root / "gsp" / NAME.format(number), NAME.format(number))
    gsp1000_to_hdf5(root / "gsp", root / "mask.nii.gz", root / "whole", 3)
    return root


SCRIPT = """
import sys
from pathlib import Path
from lacuna_nipype.connectomes.gsp1000 import convert_gsp1000_archives, gsp1000_to_hdf5
root, out, way = map(Path, sys.argv[1:])
if way.name == "folder":
    gsp1000_to_hdf5(root / "gsp", root / "mask.nii.gz", out, 3)
else:
    convert_gsp1000_archives(
        [root / "a.tar", root / "b.tar"], root / "mask.nii.gz", out, 3, scratch=out / "scratch"
    )
"""


def start(*words):
    checkout = str(Path(lacuna_nipype.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, words)],
        env={**os.environ, "PYTHONPATH": checkout},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("way", ["folder", "archives"])
def test_killed_and_started_again(tmp_path, large, way):
    """Twice killed, at a subject of the second and of a later file: the same bytes."""
    out = tmp_path / "out"
    kept = {}
    for n_finished in (1, 2):
        process = start(large, out, way)
        deadline = time.monotonic() + 60
        while len(list(out.glob("*.h5"))) < n_finished and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        text, _ = process.communicate(timeout=60)
        assert process.returncode == -9, text
        assert n_finished <= len(times(out)) < 4
        assert kept.items() <= times(out).items()
        kept = times(out)
    process = start(large, out, way)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert kept.items() <= times(out).items()
    assert digests(out) == digests(large / "whole")
    assert not list(out.rglob("*.nii.gz"))


def test_full_disk(tmp_path, mask, study, pack, monkeypatch):
    """One sentence, finished files stay, and it goes on."""
    folder, out = study(*[20] * 4), tmp_path / "out"
    write, calls = gsp1000.write_series_file, []

    def fill(path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *args, **kwargs)

    monkeypatch.setattr(gsp1000, "write_series_file", fill)
    with pytest.raises(IncompleteError, match=r"disk .* is full; 1 of 2 files .* kept"):
        gsp1000_to_hdf5(folder, mask, out, 2)
    assert list(digests(out)) == ["gsp1000_chunk_000.h5"]
    calls.clear()
    archives, other = [pack("a.tar", folder, range(1, 5))], tmp_path / "other"
    with pytest.raises(IncompleteError, match="is full"):
        convert_gsp1000_archives(
            archives, mask, other, 2, scratch=tmp_path / "s", keep_original=False
        )
    assert archives[0].exists()
    assert list(digests(other)) == ["gsp1000_chunk_000.h5"]
    assert not list((tmp_path / "s").rglob("*.nii.gz"))
    gsp1000_to_hdf5(folder, mask, out, 2)
    convert_gsp1000_archives(archives, mask, other, 2, scratch=tmp_path / "s")
    assert digests(out) == digests(other)


def test_two_runs_in_one_scratch_folder(tmp_path, mask, study, pack):
    archives = [pack("a.tar", study(20, 20), [1, 2])]
    errors = []

    def again(*_):
        with pytest.raises(ValidationError, match="at this moment") as caught:
            convert_gsp1000_archives(archives, mask, tmp_path / "b", 1, scratch=tmp_path / "s")
        errors.append(caught.value)

    convert_gsp1000_archives(
        archives, mask, tmp_path / "a", 1, scratch=tmp_path / "s", progress=again
    )
    assert len(errors) == 2
    assert len(read(tmp_path / "a")) == 2


# Bad input


@pytest.fixture
def refuse(tmp_path, mask):
    """Convert ``gsp`` and expect one sentence; nothing is written."""

    def run(error, match, brain=mask, **settings):
        with pytest.raises(error, match=match) as caught:
            gsp1000_to_hdf5(tmp_path / "gsp", brain, tmp_path / "out", **settings)
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "out").glob("**/*"))

    return run


def test_nothing_there(tmp_path, study, mask, refuse):
    refuse(FileNotFoundError, r"gsp is not a folder")
    (tmp_path / "gsp").mkdir()
    refuse(ValueError, "holds no GSP1000 image")
    study(20)
    refuse(FileNotFoundError, r"gone\.nii\.gz does not exist", tmp_path / "gone.nii.gz")
    refuse(ValidationError, "at least one", subjects_per_chunk=0)
    refuse(ValidationError, "At least one", max_subjects=0)


def test_a_subject_twice(tmp_path, study, refuse):
    folder = study(20, 20)
    other = folder / NAME.format(2).replace("skip4", "skip0")
    other.write_bytes((folder / NAME.format(1)).read_bytes())
    refuse(ValidationError, "sub-0002 has two images")
    other.rename(folder / NAME.format(2))
    refuse(ValidationError, r"sub-0002.* and sub-0001.* hold identical series")


@pytest.mark.parametrize(
    ("data", "affine", "error", "match"),
    [
        (series_of(0)[..., 0], RAS, ValidationError, "has 3 dimensions"),
        (series_of(0, 9), RAS, ValidationError, "has 9 time points; at least 10"),
        (series_of(0)[..., None], RAS, ValidationError, "has 5 dimensions"),
        (series_of(0), np.diag([50, 2, 2, 1]), ValidationError, "outside the 0.1 to 20 mm"),
        # Mirrored in the header only: half of the brain is somewhere else.
        (series_of(0), RAS @ np.diag([-1, 1, 1, 1]), SpatialMismatchError, "leaves out"),
        (np.zeros((97, 115, 97, 10), "u1"),
         np.array([[2, 0, 0, -96.5], [0, 2, 0, -132.5], [0, 0, 2, -78.5], [0, 0, 0, 1]]),
         SpatialMismatchError, "2009c"),
        (series_of(0).astype(np.complex64), RAS, ValidationError, "plain numbers"),
    ],
)  # fmt: skip
def test_images_that_do_not_fit(tmp_path, study, refuse, data, affine, error, match):
    study(20)
    save(tmp_path / "gsp" / NAME.format(2), data, affine)
    refuse(error, f"sub-0002.* {match}|{match}")


def test_image_without_a_place_in_the_world(tmp_path, refuse):
    image = nb.Nifti1Image(series_of(0, shape=(8, 9, 7)), RAS)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    path = tmp_path / "gsp" / NAME.format(1)
    path.parent.mkdir(parents=True)
    nb.save(image, path)
    refuse(SpatialMismatchError, r"sub-0001.* where it lies in the world")


def test_damaged_images(tmp_path, study, refuse, mask):
    path = study(20) / NAME.format(1)
    whole = path.read_bytes()
    raw = gzip.decompress(whole)
    for bad in (
        whole[: len(whole) // 2],
        # Cut within the checksum at the very end, and a wrong one.
        whole[:-2],
        whole[:-6] + b"\xff\xff" + whole[-4:],
        # Sound gzip, too short inside.
        gzip.compress(raw[:-100]),
    ):
        path.write_bytes(bad)
        refuse(ValidationError, r"sub-0001.* is damaged; fetch")
    for bad in (b"<!DOCTYPE html>", b"", gzip.compress(b"text")):
        path.write_bytes(bad)
        refuse(ValidationError, r"sub-0001.* cannot be read as an image")


def test_one_damaged_subject_costs_its_file_only(tmp_path, mask, study):
    folder = study(*[20] * 4)
    path = folder / NAME.format(2)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(IncompleteError, match=r"sub-0002.* is damaged.*3 of 4 files are finished"):
        gsp1000_to_hdf5(folder, mask, tmp_path / "out", 1)
    assert len(digests(tmp_path / "out")) == 3


def test_bad_archives(tmp_path, mask, study, pack):
    folder = study(20, 20)
    good, out = pack("a.tar", folder, [1]), tmp_path / "out"

    def refused(error, match, *archives):
        with pytest.raises(error, match=match) as caught:
            convert_gsp1000_archives(archives, mask, out, 1, scratch=tmp_path / "s")
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "s").rglob("*.nii.gz"))
        assert not list(out.glob("*.h5"))

    refused(ValidationError, "No archive")
    refused(FileNotFoundError, r"gone\.tar does not exist", good, tmp_path / "gone.tar")
    refused(ValidationError, r"named a\.tar", good, good)
    refused(ValidationError, "sub-0001 has two images", good, pack("b.tar", folder, [1, 2]))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(good.read_bytes()[:3000])
    refused(ValidationError, r"cut\.tar is truncated", good, cut)
    cut.write_text("<html>Log in</html>")
    refused(ValidationError, r"cut\.tar is a web page", good, cut)
    broken = folder / NAME.format(2)
    broken.write_bytes(broken.read_bytes()[:-2])
    refused(ValidationError, r"b\.tar/.*sub-0002.* is damaged", pack("b.tar", folder, [2]))
    with tarfile.open(tmp_path / "none.tar", "w") as archive:
        info = tarfile.TarInfo("readme.txt")
        archive.addfile(info, io.BytesIO())
    refused(ValidationError, r"none\.tar holds no GSP1000 image", tmp_path / "none.tar")
    out.mkdir(exist_ok=True)
    (out / ARCHIVES_RECORD).write_text('{"Archives": {"a.t')
    refused(ValidationError, r"gsp1000_archives\.json is no record", good)


# Memory


@pytest.mark.parametrize("way", ["folder", "archives"])
def test_memory_holds_about_one_subject(tmp_path, large, way):
    """Four subjects in a file, in bytes that numpy and Python allocate at the most."""
    import tracemalloc

    subject = 4 * 40 * 22 * 28 * 22
    tracemalloc.start()
    try:
        if way == "folder":
            gsp1000_to_hdf5(large / "gsp", large / "mask.nii.gz", tmp_path / "out", 12)
        else:
            convert_gsp1000_archives(
                [large / "a.tar", large / "b.tar"], large / "mask.nii.gz", tmp_path / "out", 12,
                scratch=tmp_path / "s",
            )  # fmt: skip
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Fingerprints are taken in blocks of 1 MB, archives unpacked in such.
    assert peak < 2 * subject + 3e6


@pytest.mark.real_data
def test_real_images(tmp_path):
    """Four real subjects, against what is built of whole images."""
    root = os.environ.get("LACUNA_TEST_DATA")
    if not root or not (Path(root) / "fmri_lowres").is_dir():
        pytest.skip("LACUNA_TEST_DATA does not name a folder with fmri_lowres")
    source = Path(root) / "fmri_lowres"
    images = sorted(source.glob("sub-*_lowres.nii.gz"))
    for number, path in enumerate(images):
        target = tmp_path / "gsp" / NAME.format(number + 1)
        target.parent.mkdir(parents=True)
        target.symlink_to(path)
    mask = source / "mask_mni152brain_lowres.nii.gz"
    gsp1000_to_hdf5(tmp_path / "gsp", mask, tmp_path / "out", 2)
    targets = [tmp_path / "gsp" / NAME.format(number + 1) for number in range(len(images))]
    build_connectome(targets, mask, tmp_path / "built", space="FSL", layout="lacuna")
    found = read(tmp_path / "out")
    assert len(found) == 4
    for series, built in zip(found, read(tmp_path / "built"), strict=True):
        assert np.array_equal(series, built)
        assert series.std() > 0


def test_errors_are_of_the_package():
    assert issubclass(IncompleteError, LacunaError)
    assert issubclass(ValidationError, ValueError)
