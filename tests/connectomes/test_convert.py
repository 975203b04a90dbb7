"""Conversion to the store and back: same maps, resumable, nothing half-written."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import nibabel as nb
import numpy as np
import pytest

import lacuna_nipype
from lacuna_nipype.connectomes import convert, ingest
from lacuna_nipype.connectomes.convert import convert_connectome, store_to_lacuna
from lacuna_nipype.connectomes.functional import conversion_hint, open_connectome
from lacuna_nipype.connectomes.ingest import IncompleteError
from lacuna_nipype.connectomes.inspection import inspect_connectome
from lacuna_nipype.connectomes.maps import write_maps
from lacuna_nipype.connectomes.partial import write_partial
from lacuna_nipype.connectomes.seeds import make_seed
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError

SHAPE = (10, 11, 12)
AFFINE = np.array([[-3.0, 0, 0, 10], [0, 3, 0, -20], [0, 0, 3, -30], [0, 0, 0, 1]])
N_VOXELS, N_TIMES = 700, 30


@pytest.fixture
def voxels():
    chosen = np.random.default_rng(0).permutation(np.prod(SHAPE))[:N_VOXELS]
    return np.array(np.unravel_index(chosen, SHAPE))


def simulate(n_subjects, n_times=N_TIMES, seed=0, n_voxels=N_VOXELS):
    """Series with common signals, full rank, and a mean far from zero."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(6, n_voxels))
    return np.stack(
        [
            500 + rng.normal(size=(n_times, 6)) @ loadings + rng.normal(size=(n_times, n_voxels))
            for _ in range(n_subjects)
        ]
    ).astype(np.float32)


@pytest.fixture
def lacuna(tmp_path, voxels, write_connectome):
    """Write files of a connectome in Lacuna's layout from a list of arrays."""

    def write(*batches, folder="lacuna", **parts):
        (tmp_path / folder).mkdir(exist_ok=True)
        for number, series in enumerate(batches):
            path = tmp_path / folder / f"batch_{number:03d}.h5"
            write_connectome(path, series, voxels, SHAPE, AFFINE, **parts)
        return tmp_path / folder

    return write


@pytest.fixture
def connectome(lacuna):
    """Eight subjects in three files, one of another length."""
    return lacuna(simulate(3), simulate(3, seed=1), simulate(2, n_times=40, seed=2))


def maps_of(location, masks, folder):
    """Volumes of r, z, t (mask, x, y, z) of a connectome, through the pass and the writer."""
    files = open_connectome(location).files
    seeds = [make_seed(mask, files[0]) for mask in masks]
    folder.mkdir()
    partial = [
        # Positions differ between layouts; a seed is a set of places.
        write_partial(file, [make_seed(mask, file) for mask in masks], folder / f"{i}.h5",
                      memory_gb=1)
        for i, file in enumerate(files)
    ]  # fmt: skip
    assert all(len(seed.voxels) for seed in seeds)
    written = write_maps(partial, files[0], folder)
    return {
        key: np.stack([nb.load(path).get_fdata() for path in written[f"{key}_maps"]])
        for key in "rzt"
    }


@pytest.fixture
def masks(voxels):
    rng = np.random.default_rng(4)
    one, some = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    one[tuple(voxels[:, 17])] = True
    some[tuple(voxels[:, rng.permutation(N_VOXELS)[:25]])] = True
    return [one, some, np.ones(SHAPE, bool)]


def outside(masks):
    """Where no seed is: at a seed's own voxel r is 1, and any error of r is magnified in z."""
    return ~(masks[0] | masks[1])


# There and back


@pytest.mark.parametrize(("kind", "bound"), [("int16", 2e-4), ("int8", 3e-2)])
def test_there_and_back_gives_the_maps_of_the_original(connectome, masks, tmp_path, kind, bound):
    store = convert_connectome(connectome, tmp_path / "store", kind=kind)
    assert [path.name for path in store] == ["batch_000.h5", "batch_001.h5", "batch_002.h5"]
    back = store_to_lacuna(tmp_path / "store", tmp_path / "back")
    assert [path.name for path in back] == [path.name for path in store]
    info = inspect_connectome(tmp_path / "store")
    assert info["CorrelationErrorMaximum"] < bound
    maps = {
        name: maps_of(tmp_path / name, masks, tmp_path / f"maps_{name}")
        for name in ("lacuna", "store", "back")
    }
    for name in ("store", "back"):
        z, expected = (maps[m]["z"][:, outside(masks)] for m in (name, "lacuna"))
        # An error of r grows by 1 / (1 - r^2) in z; the sample of voxels may miss the worst.
        error = 2 * info["CorrelationErrorMaximum"] / (1 - np.tanh(expected) ** 2)
        assert (np.abs(z - expected) <= error).all()
        assert np.abs(maps[name]["r"] - maps["lacuna"]["r"]).max() < bound
    # Restored series have unit length, stored vectors nearly so.
    back, stored = (maps[name]["z"][:, outside(masks)] for name in ("back", "store"))
    np.testing.assert_allclose(back, stored, atol=bound)


def test_a_seed_of_one_voxel_is_that_voxel_in_both_layouts(connectome, voxels, tmp_path):
    """Each voxel's own correlation is one, wherever its column lies."""
    convert_connectome(connectome, tmp_path / "store")
    store_to_lacuna(tmp_path / "store", tmp_path / "back")
    masks = np.zeros((5, *SHAPE), bool)
    chosen = [0, 99, 350, 511, 699]
    for mask, voxel in zip(masks, chosen, strict=True):
        mask[tuple(voxels[:, voxel])] = True
    for name in ("lacuna", "store", "back"):
        r = maps_of(tmp_path / name, masks, tmp_path / f"maps_{name}")["r"]
        for volume, mask in zip(r, masks, strict=True):
            assert np.unravel_index(volume.argmax(), SHAPE) == tuple(np.argwhere(mask)[0])
            assert volume.max() > 0.9999
            assert np.sort(volume.ravel())[-2] < 0.999


def test_files_back_in_lacunas_layout(connectome, voxels, tmp_path):
    convert_connectome(connectome, tmp_path / "store")
    path = store_to_lacuna(tmp_path / "store", tmp_path / "back")[2]
    with h5py.File(path) as handle:
        series = handle["timeseries"]
        assert series.shape == (2, 40, N_VOXELS)
        assert series.dtype == np.float32
        assert series.chunks == (1, 40, N_VOXELS)
        assert (series.compression, series.compression_opts, series.shuffle) == ("gzip", 4, True)
        assert np.array_equal(handle["mask_indices"], voxels)
        np.testing.assert_allclose(handle["mask_affine"], AFFINE)
        assert tuple(handle.attrs["mask_shape"]) == SHAPE
        assert handle.attrs["space"] == "MNI152NLin6Asym"
        assert handle.attrs["n_subjects"] == 2
        assert "Synthetic" in handle.attrs["description"]
        assert "correlate" in handle.attrs["description"]
        assert json.loads(handle.attrs["source"])[0].startswith("batch_002.h5 sha256:")
        original = simulate(2, n_times=40, seed=2)[1].astype(float)
        expected, found = (np.corrcoef(x, rowvar=False) for x in (original, series[1]))
        np.testing.assert_allclose(found, expected, atol=2e-4)
        np.testing.assert_allclose(
            series[1].std(axis=0) * np.sqrt(40), original.std(axis=0) * np.sqrt(40), rtol=1e-3
        )


def test_the_size_that_is_promised_is_the_most_it_takes(lacuna, tmp_path):
    batches = [simulate(3), simulate(2, n_times=40, seed=2)]
    files = open_connectome(lacuna(*batches, chunks=(1, 10, N_VOXELS))).files
    promised = float(re.search(r"at most (\S+) GB", conversion_hint(files))[1]) * 1e9
    stores = convert_connectome(tmp_path / "lacuna", tmp_path / "store")
    taken = sum(path.stat().st_size for path in stores)
    assert 0.9 * promised < taken < 1.05 * promised  # given with two digits


def test_series_of_low_rank_come_back_with_ten_time_points(lacuna, tmp_path):
    rng = np.random.default_rng(1)
    low = (rng.normal(size=(20, 3)) @ rng.normal(size=(3, N_VOXELS)))[np.newaxis]
    convert_connectome(lacuna(low), tmp_path / "store")
    store_to_lacuna(tmp_path / "store", tmp_path / "back")
    (file,) = open_connectome(tmp_path / "back").files
    assert file.n_timepoints == 10


def test_one_file_and_several_processes(connectome, masks, tmp_path):
    one = convert_connectome(connectome / "batch_001.h5", tmp_path / "one")
    several = convert_connectome(connectome, tmp_path / "several", n_procs=3)
    assert [path.name for path in one] == ["batch_001.h5"]
    with h5py.File(one[0]) as a, h5py.File(several[1]) as b:
        for key in a:
            assert np.array_equal(a[key], b[key]), key


def test_progress_counts_subjects(connectome, tmp_path):
    calls = []
    convert_connectome(connectome, tmp_path / "a", progress=lambda *now: calls.append(now))
    assert calls == [(done, 8) for done in range(1, 9)]
    calls.clear()
    convert_connectome(
        connectome, tmp_path / "b", n_procs=2, progress=lambda *now: calls.append(now)
    )
    assert calls == sorted(calls)
    assert calls[-1] == (8, 8)


def test_memory_limits_the_processes(connectome):
    tasks = [type("Task", (), {"subject_bytes": 1e8})()] * 5
    assert ingest._worker_count(tasks, 4, None) == 4
    assert ingest._worker_count(tasks, 8, None) == 5
    assert ingest._worker_count(tasks, 4, 2.0) == 2
    assert ingest._worker_count(tasks, 4, 0.1) == 1


# Resuming


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5")}


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_finished_files_are_kept(connectome, tmp_path):
    out = tmp_path / "store"
    convert_connectome(connectome, out)
    before = times(out)
    (out / "batch_001.h5").unlink()
    del before["batch_001.h5"]
    assert len(convert_connectome(connectome, out, n_procs=2)) == 3
    after = times(out)
    assert after.pop("batch_001.h5")
    assert after == before


@pytest.mark.parametrize("change", ["source", "kind", "foreign", "damaged"])
def test_files_of_other_content_are_replaced_only_on_request(lacuna, tmp_path, change):
    connectome, out = lacuna(simulate(1), simulate(1, seed=1)), tmp_path / "store"
    convert_connectome(connectome, out)
    kind = "int8" if change == "kind" else "int16"
    if change == "source":
        lacuna(simulate(1, seed=9))
    if change == "foreign":
        lacuna(simulate(1, seed=3), folder="store")
    if change == "damaged":
        (out / "batch_000.h5").write_bytes(b"no HDF5")
    before = times(out)
    with pytest.raises(ValidationError, match=r"batch_000\.h5 .* --overwrite"):
        convert_connectome(connectome, out, kind=kind)
    assert times(out) == before
    convert_connectome(connectome, out, kind=kind, overwrite=True)
    after = times(out)
    assert after["batch_000.h5"] != before["batch_000.h5"]
    assert (after["batch_001.h5"] == before["batch_001.h5"]) == (change != "kind")
    assert {f.precision.kind for f in open_connectome(out).files} == {kind}


def test_a_folder_with_other_connectome_files_is_refused(connectome, tmp_path):
    out = tmp_path / "store"
    convert_connectome(connectome, out)
    (connectome / "batch_002.h5").unlink()
    with pytest.raises(ValidationError, match=r"batch_002\.h5 is not part of this connectome"):
        convert_connectome(connectome, out, overwrite=True)


def test_the_source_folder_is_no_target(connectome):
    for target in (connectome, connectome / ".." / "lacuna"):
        with pytest.raises(ValidationError, match="choose another folder"):
            convert_connectome(connectome, target)


def test_two_names_that_become_one(lacuna, voxels, tmp_path, write_connectome):
    folder = lacuna(simulate(1))
    write_connectome(folder / "batch_000.hdf5", simulate(1, seed=1), voxels, SHAPE, AFFINE)
    with pytest.raises(ValidationError, match=r"both become batch_000\.h5"):
        convert_connectome(folder, tmp_path / "store")


@pytest.mark.parametrize("n_procs", [1, 2])
def test_interrupt_leaves_finished_files_and_nothing_else(connectome, tmp_path, n_procs):
    def progress(done, total):
        if done >= 5:
            raise KeyboardInterrupt

    out = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        convert_connectome(connectome, out, n_procs=n_procs, progress=progress)
    assert hidden(out) == []
    if n_procs == 1:
        assert sorted(times(out)) == ["batch_000.h5"]
    before = times(out)
    convert_connectome(connectome, out)
    assert before.items() <= times(out).items()


def start(*words):
    checkout = str(Path(lacuna_nipype.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-m", "lacuna_nipype", "connectome", *map(str, words)],
        env={**os.environ, "PYTHONPATH": checkout},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_conversion_can_go_on(tmp_path, write_connectome, sent):
    folder, out = tmp_path / "lacuna", tmp_path / "store"
    folder.mkdir()
    whole = np.array(np.nonzero(np.ones((20, 20, 15))))
    for number in range(8):
        series = simulate(3, n_times=60, seed=number, n_voxels=whole.shape[1])
        write_connectome(folder / f"b{number:02d}.h5", series, whole, (20, 20, 15), AFFINE)
    words = ("convert", folder, out, "--nprocs", 2)
    process = start(*words)
    deadline = time.monotonic() + 60
    while not list(out.glob("*.h5")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(sent)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == (-9 if sent == signal.SIGKILL else 130), text
    before = times(out)
    assert 1 <= len(before) < 8
    for path in sorted(out.glob("*.h5")):
        inspect_connectome(path, check_data=True)
    if sent != signal.SIGKILL:
        assert hidden(out) == []
        assert text.strip().splitlines()[-1].startswith("lacuna-nipype: Interrupted; finished")
    process = start(*words)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert before.items() <= times(out).items()
    assert len(times(out)) == 8
    assert hidden(out) == []


def test_two_runs_do_not_write_to_one_folder(connectome, tmp_path):
    out = tmp_path / "store"
    with ingest._scratch_folder(out), pytest.raises(ValidationError, match="Another run"):
        convert_connectome(connectome, out)
    convert_connectome(connectome, out)


# The disk


def test_too_little_space_is_said_before_the_start(connectome, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(ingest.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValidationError, match=r"needs about .* GB .* free some space"):
        convert_connectome(connectome, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError("Can't write (error message = 'No space left on device')"),
    ],
)
def test_full_disk_keeps_what_is_finished(connectome, tmp_path, monkeypatch, error):
    out, write = tmp_path / "store", convert.write_store
    written = []

    def write_until_full(path, *words, **options):
        if written:
            path.write_bytes(b"half")
            raise error
        written.append(write(path, *words, **options))

    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_store", write_until_full)
        with pytest.raises(IncompleteError, match=r"disk .* is full; 1 of 3 files are finished"):
            convert_connectome(connectome, out)
    assert hidden(out) == []
    before = times(out)
    assert sorted(before) == ["batch_000.h5"]
    convert_connectome(connectome, out)
    assert before.items() <= times(out).items()


def test_size_is_foretold(connectome, tmp_path):
    told = inspect_connectome(connectome)["BytesAsStore"]
    for kind in ("int16", "int8"):
        paths = convert_connectome(connectome, tmp_path / kind, kind=kind)
        size = sum(path.stat().st_size for path in paths)
        assert size == pytest.approx(told[kind], rel=0.1)


# Unsound connectomes


def test_one_damaged_file_does_not_stop_the_others(connectome, tmp_path, lacuna):
    lacuna(
        simulate(1), simulate(2, seed=1), simulate(1, seed=2), folder="gzip", chunks=(1, 30, 700)
    )
    path = tmp_path / "gzip" / "batch_001.h5"
    with h5py.File(path, "r+") as handle:
        series = handle["timeseries"][()]
        del handle["timeseries"]
        data = handle.create_dataset(
            "timeseries", data=series, chunks=(1, 30, 700), compression="gzip"
        )
        place = data.id.get_chunk_info(1)
    with path.open("r+b") as stream:
        stream.seek(place.byte_offset + 100)
        stream.write(b"\0" * 2000)
    for n_procs in (1, 2):
        out = tmp_path / f"store{n_procs}"
        with pytest.raises(IncompleteError, match=r"1 of 3 files failed, batch_001\.h5 first"):
            convert_connectome(tmp_path / "gzip", out, n_procs=n_procs)
        assert sorted(times(out)) == ["batch_000.h5", "batch_002.h5"]
        assert hidden(out) == []
    # Alone, it is plain bad input.
    with pytest.raises(ValidationError, match="damaged data"):
        convert_connectome(path, tmp_path / "alone")


@pytest.mark.parametrize("n_procs", [1, 2])
def test_subject_in_two_files(lacuna, tmp_path, n_procs):
    first, second = simulate(3), simulate(3, seed=1)
    second[1] = first[2]
    with pytest.raises(ValidationError, match="identical series: one subject counted twice") as e:
        convert_connectome(lacuna(first, second), tmp_path / "store", n_procs=n_procs)
    for name in ("Subject 3 of", "batch_000.h5", "Subject 2 of", "batch_001.h5"):
        assert name in str(e.value)
    assert len(times(tmp_path / "store")) == 1
    assert hidden(tmp_path / "store") == []


def test_subject_twice_in_one_file_or_in_a_file_finished_earlier(lacuna, tmp_path):
    series = simulate(3)
    with pytest.raises(ValidationError, match=r"Subject 3 of .* and Subject 1 of"):
        convert_connectome(lacuna(series[[0, 1, 0]]), tmp_path / "store")
    out = tmp_path / "resumed"
    convert_connectome(lacuna(series), out)
    with pytest.raises(ValidationError, match=r"Subject 1 of .*batch_001\.h5 and Subject 2 of"):
        # In double precision, it is still the same subject.
        convert_connectome(lacuna(series, series[1:2].astype(float)), out)


def test_subjects_of_zeros_are_no_duplicates_but_counted(lacuna, tmp_path):
    series = simulate(3)
    series[1:] = 0
    convert_connectome(lacuna(series), tmp_path / "store")
    info = inspect_connectome(tmp_path / "store")
    assert info["ConstantVoxelsMaximum"] == N_VOXELS
    check = inspect_connectome(tmp_path / "lacuna", check_data=True)["Check"]
    assert check["SubjectsWithoutVariation"] == [
        "Subject 2 of batch_000.h5", "Subject 3 of batch_000.h5",
    ]  # fmt: skip
    assert check["SubjectsTwice"] == []


def test_series_that_cannot_be_correlated_are_counted(lacuna, tmp_path, masks):
    series = simulate(4)
    series[0, :, :5] = 7
    series[1, 3, 5:8] = np.nan
    series[2, 3, 8] = np.inf
    series[3] = series[0]
    folder = lacuna(series)
    check = inspect_connectome(folder, check_data=True)["Check"]
    assert (check["SeriesNotFinite"], check["SeriesConstant"]) == (4, 10)
    assert check["UnusableVoxelsOfASubjectMaximum"] == 5
    assert check["SubjectsTwice"] == [["Subject 1 of batch_000.h5", "Subject 4 of batch_000.h5"]]
    folder = lacuna(series[:3])
    convert_connectome(folder, tmp_path / "store")
    assert inspect_connectome(tmp_path / "store")["ConstantVoxelsMaximum"] == 5
    store_to_lacuna(tmp_path / "store", tmp_path / "back")
    maps = {
        n: maps_of(tmp_path / n, masks, tmp_path / f"m{n}") for n in ("lacuna", "store", "back")
    }
    for name in ("store", "back"):
        assert np.isfinite(maps[name]["z"]).all()
        np.testing.assert_allclose(maps[name]["r"], maps["lacuna"]["r"], atol=3e-4)


def test_files_that_disagree(lacuna, voxels, tmp_path, write_connectome):
    folder = lacuna(simulate(1))
    write_connectome(folder / "other.h5", simulate(1, seed=1), voxels[:, ::-1], SHAPE, AFFINE)
    with pytest.raises(SpatialMismatchError, match="disagree on the brain mask"):
        convert_connectome(folder, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_wrong_way_round(connectome, tmp_path):
    convert_connectome(connectome, tmp_path / "store")
    with pytest.raises(ValidationError, match="is a store already"):
        convert_connectome(tmp_path / "store", tmp_path / "again")
    with pytest.raises(ValidationError, match="in Lacuna's layout already"):
        store_to_lacuna(connectome, tmp_path / "again")
    with pytest.raises(ValidationError, match="'float16' is not a type"):
        convert_connectome(connectome, tmp_path / "again", kind="float16")


def test_space_is_asked_for_and_recorded(lacuna, tmp_path):
    folder = lacuna(simulate(1), space=None)
    assert inspect_connectome(folder)["Space"] is None
    with pytest.raises(ValidationError, match="which space"):
        convert_connectome(folder, tmp_path / "store")
    convert_connectome(folder, tmp_path / "store", space="FSL")
    assert open_connectome(tmp_path / "store").space == "MNI152NLin6Asym"


# Inspection


def test_what_a_store_says_of_itself(connectome, tmp_path):
    convert_connectome(connectome, tmp_path / "store", kind="int8")
    info = inspect_connectome(tmp_path / "store", check_data=True)
    json.dumps(info, allow_nan=False)
    assert info["Layout"] == "store"
    assert (info["NumberOfFiles"], info["NumberOfSubjects"]) == (3, 8)
    assert info["NumberOfTimePoints"] == [30, 40]
    assert info["NumberOfVoxels"] == N_VOXELS
    assert info["GridShape"] == list(SHAPE)
    assert info["VoxelSize"] == [3.0, 3.0, 3.0]
    assert info["FirstVoxel"] == [10.0, -20.0, -30.0]
    assert (info["Orientation"], info["Space"]) == ("LAS", "MNI152NLin6Asym")
    assert info["CoefficientType"] == ["int8"]
    assert (info["RankMinimum"], info["RankMedian"], info["RankMaximum"]) == (29, 29.0, 39)
    assert 1e-4 < info["CorrelationErrorMaximum"] < 0.03
    assert info["ConstantVoxelsMaximum"] == 0
    assert len(info["Sources"]) == 3
    assert info["Bytes"] == sum(p.stat().st_size for p in (tmp_path / "store").iterdir())
    assert info["Check"] == {"SeriesDamaged": 0}


def test_damage_inside_a_store_is_found(connectome, tmp_path):
    path = convert_connectome(connectome, tmp_path / "store")[1]
    with h5py.File(path, "r+") as handle:
        handle["coefficients"][1, 2, :, 5:9] = 0
    assert inspect_connectome(path, check_data=True)["Check"] == {"SeriesDamaged": 4}


def test_what_files_of_lacuna_say_of_themselves(lacuna):
    folder = lacuna(simulate(2), chunks=(1, 10, 700))
    info = inspect_connectome(folder)
    json.dumps(info, allow_nan=False)
    assert info["Layout"] == "lacuna"
    assert (info["Compression"], info["Chunks"]) == (["none"], ["1x10x700"])
    assert info["RankOfFirstSubject"] == 29
    assert "Check" not in info


def test_layouts_do_not_mix(lacuna, tmp_path):
    folder = lacuna(simulate(1), folder="mixed")
    (path,) = convert_connectome(folder, tmp_path / "one")
    path.rename(folder / "store.h5")
    with pytest.raises(ValidationError, match=r"disagree|mixes"):
        inspect_connectome(folder)


def test_tractogram(tmp_path):
    from lacuna_nipype.connectomes.tractogram import write_tck

    path = tmp_path / "t.tck"
    lines = [np.cumsum(np.tile([[0, 0, 1.5]], (20, 1)), axis=0) for _ in range(7)]
    write_tck(path, lines, step_size=None)
    info = inspect_connectome(path)
    assert (info["Layout"], info["NumberOfStreamlines"]) == ("tractogram", 7)
    assert (info["StepSize"], info["Space"]) == (None, None)
    assert info["MeasuredStepSize"] == pytest.approx(1.5)
    path.with_suffix(".json").write_text('{"Space": "MNI152NLin2009bAsym"}')
    write_tck(path, lines, step_size=1.5)
    info = inspect_connectome(path)
    assert (info["StepSize"], info["Space"]) == (1.5, "MNI152NLin2009bAsym")
    json.dumps(info, allow_nan=False)
