"""HDF5 connectomes: what is read, and how each kind of damage is named."""

import json

import numpy as np
import pytest

from lacuna_nipype.connectomes.functional import (
    connectome_paths,
    iter_subjects,
    open_connectome,
    read_connectome_file,
)
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError

SHAPE = (5, 6, 7)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2, 0, -20], [0, 0, 2, -30], [0, 0, 0, 1]])
VOXELS = np.array([[4, 0, 2, 3], [1, 5, 2, 0], [6, 6, 0, 3]])
FSL_2MM = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


def series_of(n_subjects=3, n_timepoints=12, n_voxels=4, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_subjects, n_timepoints, n_voxels)).astype(dtype)


@pytest.fixture
def write(tmp_path, write_connectome):
    def write_file(name="batch.h5", series=None, voxels=VOXELS, **parts):
        series = series_of() if series is None else series
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        shape, affine = parts.pop("shape", SHAPE), parts.pop("affine", AFFINE)
        return write_connectome(path, series, voxels, shape, affine, **parts)

    return write_file


# Sound files


@pytest.mark.parametrize("transposed", [False, True])
def test_header_by_hand(write, transposed):
    path = write(voxels=VOXELS.T if transposed else VOXELS)
    file = read_connectome_file(path)
    assert (file.path, file.n_subjects, file.n_timepoints, file.n_voxels) == (path, 3, 12, 4)
    assert np.array_equal(file.voxels, VOXELS)
    assert file.grid.shape == SHAPE
    assert np.array_equal(file.grid.affine, AFFINE)
    assert file.space == "MNI152NLin6Asym"


def test_mask_is_where_the_indices_are(write):
    connectome = open_connectome(write())
    mask = connectome.mask()
    assert mask.shape == SHAPE
    assert mask.sum() == 4
    assert all(mask[tuple(voxel)] for voxel in VOXELS.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chunks", [None, (1, 12, 4), (2, 5, 3), (3, 12, 4)])
def test_subjects_are_read_one_by_one_whatever_the_chunks(write, chunks, dtype):
    series = series_of(dtype=dtype)
    file = read_connectome_file(write(series=series, chunks=chunks))
    assert file.subject_chunk == (chunks[0] if chunks else 1)
    subjects = list(iter_subjects(file))
    assert np.array_equal(subjects, series)
    assert {subject.shape for subject in subjects} == {(12, 4)}
    assert {subject.dtype for subject in subjects} == {np.dtype(dtype)}


def test_three_voxels_are_told_apart_by_the_shape_of_the_mask(write):
    # As (3, voxels), the first row holds x; only so do the indices fit into 5 x 6 x 7.
    voxels = np.array([[4, 0, 2], [5, 1, 2], [6, 6, 0]])
    for raw in (voxels, voxels.T):
        file = read_connectome_file(write(series=series_of(n_voxels=3), voxels=raw))
        assert np.array_equal(file.voxels, voxels)


def test_files_of_a_folder_are_taken_in_name_order(tmp_path, write):
    for number in (10, 2, 1):
        write(f"c/batch_{number:03d}.h5", series_of(n_subjects=number))
    write("c/batch_004.HDF5", series_of(n_subjects=4))
    write("c/.hidden.h5")
    (tmp_path / "c" / "notes.txt").write_text("no connectome")
    connectome = open_connectome(tmp_path / "c")
    assert [file.n_subjects for file in connectome.files] == [1, 2, 4, 10]
    assert [path.name for path in connectome.paths] == [
        "batch_001.h5",
        "batch_002.h5",
        "batch_004.HDF5",
        "batch_010.h5",
    ]
    assert connectome.n_subjects == 17
    assert connectome.n_voxels == 4


def test_files_may_differ_in_the_number_of_timepoints(tmp_path, write):
    write("c/a.h5", series_of(n_timepoints=12))
    write("c/b.h5", series_of(n_timepoints=30))
    assert [f.n_timepoints for f in open_connectome(tmp_path / "c").files] == [12, 30]


def test_negative_zero_in_an_affine_is_zero(tmp_path, write):
    write("c/a.h5")
    write("c/b.h5", affine=np.where(AFFINE == 0, -0.0, AFFINE))
    assert open_connectome(tmp_path / "c").n_subjects == 6


# Spaces


@pytest.mark.parametrize(
    "name", ["MNI152_2mm", "mni152nlin6asym", "FSL", np.bytes_(b"MNI152_2mm")]
)
def test_aliases_of_the_space(write, name):
    path = write(space=name, shape=(91, 109, 91), affine=FSL_2MM)
    assert open_connectome(path).space == "MNI152NLin6Asym"


@pytest.mark.parametrize("space", [None, "", " "])
def test_a_file_without_a_space_needs_one(write, space):
    path = write(space=space)
    with pytest.raises(ValidationError, match=r"batch\.h5"):
        open_connectome(path)
    assert open_connectome(path, "MNI152NLin2009cAsym").space == "MNI152NLin2009cAsym"


def test_the_space_asked_for_wins(write):
    assert open_connectome(write(), "MNI152NLin2009b").space == "MNI152NLin2009bAsym"


@pytest.mark.parametrize("folder", [False, True])
def test_space_from_a_sidecar(tmp_path, write, folder):
    path = write("c/batch.h5", space=None)
    sidecar = tmp_path / "c" / ("dataset.json" if folder else "batch.json")
    sidecar.write_text(json.dumps({"Space": "MNI152_2mm"}))
    connectome = open_connectome(path.parent if folder else path)
    assert connectome.space == "MNI152NLin6Asym"


def test_a_sidecar_that_is_not_json_is_named(write):
    path = write(space=None)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(ValidationError, match=r"batch\.json"):
        open_connectome(path)


def test_unknown_spaces_are_named_with_their_file(write):
    with pytest.raises(ValidationError, match=r"batch\.h5") as error:
        open_connectome(write(space="Talairach"))
    assert "Talairach" in str(error.value)
    path = write(space=None)
    path.with_suffix(".json").write_text(json.dumps({"Space": "Talairach"}))
    with pytest.raises(ValidationError, match=r"batch\.json"):
        open_connectome(path)


def test_a_space_that_the_grid_contradicts(write):
    path = write(space="MNI152NLin2009cAsym", shape=(91, 109, 91), affine=FSL_2MM)
    with pytest.raises(SpatialMismatchError, match=r"batch\.h5"):
        open_connectome(path)


# Files that disagree


@pytest.mark.parametrize(
    "difference",
    [
        {"voxels": VOXELS[:, ::-1]},
        {"voxels": VOXELS[:, :3], "series": series_of(n_voxels=3)},
        {"affine": AFFINE + np.eye(4, k=3)},
        {"affine": AFFINE * [-1, 1, 1, 1]},
        {"shape": (5, 6, 8)},
        {"space": "MNI152NLin2009cAsym"},
        {"space": None},
    ],
    ids=["voxel order", "voxels", "origin", "orientation", "shape", "space", "no space"],
)
def test_siblings_that_disagree(tmp_path, write, difference):
    write("c/first.h5")
    write("c/second.h5", **difference)
    with pytest.raises(SpatialMismatchError, match=r"second\.h5") as error:
        open_connectome(tmp_path / "c")
    assert "first.h5" in str(error.value)


# Damaged files


@pytest.mark.parametrize("key", ["timeseries", "mask_indices", "mask_affine", "mask_shape"])
def test_a_missing_part(write, key):
    with pytest.raises(ValidationError, match=r"batch\.h5") as error:
        read_connectome_file(write(**{key: None}))
    assert key in str(error.value)


@pytest.mark.parametrize(
    "parts",
    [
        {"series": series_of(n_timepoints=9)},
        {"series": series_of(n_subjects=0)},
        {"series": series_of(n_voxels=5)},
        {"series": series_of()[0]},
        {"series": series_of().astype(np.int16)},
        {"voxels": VOXELS[:, [0, 1, 2, 0]]},
        {"voxels": VOXELS + 1},
        {"voxels": VOXELS - 1},
        {"voxels": VOXELS[:2]},
        {"voxels": VOXELS[0]},
        {"voxels": VOXELS + 0.5},
        {"voxels": np.zeros((3, 0), dtype=int), "series": series_of(n_voxels=0)},
        {"voxels": np.full((3, 3), 9), "series": series_of(n_voxels=3)},
        {"shape": (5, 6)},
        {"affine": np.eye(3)},
        {"affine": np.full((4, 4), np.nan)},
        {"affine": np.diag([0.0, 1, 1, 1])},
    ],
    ids=[
        "nine timepoints",
        "no subject",
        "more series than voxels",
        "one subject without its axis",
        "integers",
        "a voxel twice",
        "voxels too large",
        "voxels below zero",
        "two coordinates",
        "flat voxels",
        "half voxels",
        "no voxel",
        "three voxels outside either way",
        "two dimensions",
        "affine of 3 x 3",
        "affine of nan",
        "affine without extent",
    ],
)
def test_contradictions_are_named_with_their_file(write, parts):
    with pytest.raises(ValidationError, match=r"batch\.h5"):
        read_connectome_file(write(**parts))


def test_ten_timepoints_are_enough(write):
    assert read_connectome_file(write(series=series_of(n_timepoints=10))).n_timepoints == 10


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_a_truncated_file(write, keep):
    path = write(series=series_of(50))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if keep < 1 else keep])
    with pytest.raises(ValidationError, match=r"batch\.h5"):
        read_connectome_file(path)


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "batch.h5"
    path.write_text("subject,voxel\n1,2\n" * 1000)
    with pytest.raises(ValidationError, match=r"batch\.h5"):
        open_connectome(path)


def test_a_damaged_chunk_is_named_when_it_is_read(tmp_path, write_connectome):
    import h5py

    path = tmp_path / "batch.h5"
    series = series_of(4, 200)
    write_connectome(path, series[:1], VOXELS, SHAPE, AFFINE)
    with h5py.File(path, "a") as handle:
        del handle["timeseries"]
        data = handle.create_dataset(
            "timeseries", data=series, chunks=(2, 200, 4), compression="gzip"
        )
        where = data.id.get_chunk_info(1)
    raw = bytearray(path.read_bytes())
    raw[where.byte_offset : where.byte_offset + where.size] = bytes(where.size)
    path.write_bytes(raw)
    file = read_connectome_file(path)
    subjects = iter_subjects(file)
    assert np.array_equal([next(subjects), next(subjects)], series[:2])
    with pytest.raises(ValidationError, match=r"batch\.h5"):
        next(subjects)


def test_places_without_a_connectome(tmp_path):
    with pytest.raises(ValidationError, match="nowhere"):
        open_connectome(tmp_path / "nowhere")
    with pytest.raises(ValidationError, match=r"nowhere\.h5"):
        read_connectome_file(tmp_path / "nowhere.h5")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("soon")
    with pytest.raises(ValidationError, match="empty"):
        connectome_paths(tmp_path / "empty")


def test_one_bad_file_among_good_ones_is_named(tmp_path, write):
    write("c/good.h5")
    write("c/wrong.h5").write_bytes(b"")
    with pytest.raises(ValidationError, match=r"wrong\.h5"):
        open_connectome(tmp_path / "c")
