"""Matrices of a connectome against np.corrcoef in a loop, in both layouts, and reading them."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from lacuna_nipype.connectomes import prepare
from lacuna_nipype.connectomes.functional import open_connectome
from lacuna_nipype.connectomes.prepare import (
    Parcellation,
    prepare_matrices,
    prepare_matrix,
    read_matrix,
)
from lacuna_nipype.connectomes.store import StoreSource, write_store
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.parcels import Parcels, labelled_weights
from lacuna_nipype.core.spaces import Grid

SPACE = "MNI152NLin6Asym"
SHAPE = (12, 10, 8)
AFFINE = np.array([[-2.0, 0, 0, 6], [0, 2, 0, -20], [0, 0, 2, -30], [0, 0, 0, 1]])
GRID = Grid.make(SHAPE, AFFINE)
# More than one tile of the store, the last one not full.
N_VOXELS, N_SUBJECTS, N_PARCELS = 700, 6, 5
NAMES = ("V1 left", "name", "n/a", 'M1 "hand"', "outside")


@pytest.fixture(scope="module")
def data():
    """Voxels, series, parcels: the last one outside the brain, one voxel constant, one NaN."""
    rng = np.random.default_rng(7)
    order = rng.permutation(np.prod(SHAPE))
    voxels = np.array(np.unravel_index(order[:N_VOXELS], SHAPE))
    labels = np.zeros(np.prod(SHAPE), dtype=np.int64)
    labels[order[:N_VOXELS]] = rng.integers(0, N_PARCELS, N_VOXELS)
    labels[order[N_VOXELS : N_VOXELS + 20]] = N_PARCELS
    labels[order[N_VOXELS + 20 : N_VOXELS + 60]] = 1
    labels[order[3:5]] = 2
    index = np.arange(1, N_PARCELS + 1)
    parcels = Parcels(GRID, index, NAMES, labelled_weights(labels.reshape(SHAPE), index))
    common = rng.normal(size=(N_SUBJECTS, 24, 3))
    series = common @ rng.normal(size=(3, N_VOXELS)) + rng.normal(size=(N_SUBJECTS, 24, N_VOXELS))
    series = (500 + 10 * series).astype(np.float32)
    series[:, :, 3] = 7
    series[1, 5, 4] = np.nan
    return voxels, series, parcels


def reference(data):
    """Mean z over subjects, one np.corrcoef at a time."""
    voxels, series, parcels = data
    dense = parcels.weights[:, np.ravel_multi_index(tuple(voxels), SHAPE)].toarray()
    z = np.zeros((N_PARCELS, N_PARCELS))
    for subject in series:
        used = np.isfinite(subject).all(axis=0)
        means = [subject[:, used & (row > 0)].astype(float).mean(axis=1) for row in dense[:-1]]
        for i in range(N_PARCELS - 1):
            for j in range(N_PARCELS - 1):
                if i != j:
                    z[i, j] += np.arctanh(np.corrcoef(means[i], means[j])[0, 1]) / N_SUBJECTS
    z[-1], z[:, -1] = np.nan, np.nan
    return z


@pytest.fixture
def write(tmp_path, data, write_connectome):
    """Write a connectome as files of so many subjects each."""

    def make(name, groups, kind=None):
        voxels, series, _ = data
        folder = tmp_path / name
        folder.mkdir()
        for number, group in enumerate(groups):
            path = folder / f"batch_{number}.h5"
            if kind is None:
                write_connectome(
                    path,
                    series[group],
                    voxels,
                    SHAPE,
                    AFFINE,
                    chunks=(len(group) // 2 or 1, 24, 700),
                )
            else:
                source = StoreSource(GRID, voxels, 24, SPACE, ("test",))
                write_store(path, source, series[group], kind=kind)
        return folder

    return make


def z_of(location, data, target, **options):
    written = prepare_matrix(location, data[2], target, name="My Atlas", **options)
    return read_matrix(written.z_file).values  # noqa: PD011


def close(first, second, **tolerance):
    return np.allclose(first, second, equal_nan=True, **tolerance)


TWO_FILES = [[0, 1, 2, 3], [4, 5]]


def test_lacuna_layout_is_exact(write, data, tmp_path):
    location = write("gsp_mini", TWO_FILES)
    done = []
    written = prepare_matrix(
        location, data[2], tmp_path / "out", name="My Atlas", progress=lambda *n: done.append(n)
    )
    assert written.z_file.name == "gspmini_atlas-MyAtlas_stat-z_relmat.tsv"
    assert written.r_file.name == "gspmini_atlas-MyAtlas_stat-r_relmat.tsv"
    assert (written.names, written.missing, written.n_subjects) == (NAMES, ("outside",), 6)
    z, r = read_matrix(written.z_file), read_matrix(written.r_file)
    assert close(z.values, reference(data), atol=1e-9, rtol=0)
    assert close(r.values, np.tanh(reference(data)), atol=1e-9, rtol=0)
    assert (z.names, z.statistic, z.space, z.n_subjects) == (NAMES, "z", SPACE, 6)
    assert r.statistic == "r"
    assert done == [(n, 6) for n in range(1, 7)]
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.mark.parametrize(("kind", "error"), [("int16", 1e-4), ("int8", 1e-2)])
def test_store_errs_by_what_it_stores(write, data, tmp_path, monkeypatch, kind, error):
    location = write("store", TWO_FILES, kind)
    z = z_of(location, data, tmp_path / "out")
    assert close(z, reference(data), atol=error, rtol=0)
    assert not close(z, reference(data), atol=1e-9, rtol=0)
    # Subjects in smaller groups.
    monkeypatch.setattr(prepare, "SUMS_BYTES", 1)
    monkeypatch.setattr(prepare, "SUBJECTS_AT_ONCE", 3)
    assert close(z_of(location, data, tmp_path / "again"), z, rtol=1e-9)


@pytest.mark.parametrize("kind", [None, "int16"])
def test_neither_files_nor_order_matter(write, data, tmp_path, kind):
    first = z_of(write("one", [range(6)], kind), data, tmp_path / "a")
    second = z_of(write("three", [[5, 2], [0], [4, 1, 3]], kind), data, tmp_path / "b")
    # A table has ten digits.
    assert close(first, second, rtol=2e-9, atol=1e-12)


def test_processes_change_nothing(write, data, tmp_path):
    location, done = write("c", TWO_FILES), []
    one = z_of(location, data, tmp_path / "a")
    two = z_of(location, data, tmp_path / "b", n_procs=2, progress=lambda *n: done.append(n))
    assert close(one, two, rtol=2e-9, atol=1e-12)
    assert done[-1] == (6, 6)


def test_several_atlases_in_one_pass(write, data, tmp_path, monkeypatch):
    parcels = data[2]
    connectome = open_connectome(write("c", TWO_FILES))
    halves = np.zeros(SHAPE, dtype=np.int64)
    halves[:6], halves[6:] = 2, 1
    index = np.array([1, 2])
    other = Parcels(GRID, index, ("low", "high"), labelled_weights(halves, index))
    reads = []
    original = prepare.iter_subjects
    monkeypatch.setattr(
        prepare, "iter_subjects", lambda file: reads.append(file.path) or original(file)
    )
    written = prepare_matrices(
        connectome,
        [
            Parcellation("first", parcels),
            Parcellation("2nd", other, {"atlas": "B", "segmentation": "7n", "scale": "2"}),
        ],
        tmp_path / "out",
        label="c",
    )
    assert len(reads) == 2
    assert written[1].z_file.name == "c_atlas-B_seg-7n_scale-2_stat-z_relmat.tsv"
    assert close(read_matrix(written[0].z_file).values, reference(data), atol=1e-9, rtol=0)
    assert read_matrix(written[1].z_file).names == ("low", "high")


def test_sidecar_says_where_the_matrix_is_from(write, data, tmp_path):
    location = write("c", TWO_FILES, "int16")
    written = prepare_matrix(
        location, data[2], tmp_path, name="A", fingerprint="sha256:0", space=SPACE
    )
    sidecar = json.loads(written.z_file.with_suffix(".json").read_text())
    assert (sidecar["Directed"], sidecar["ValidDiagonal"], sidecar["Weighted"]) == (0, 0, 1)
    assert "Fisher" in sidecar["RelationshipMeasure"]
    assert sidecar["ParcelsWithoutConnectivity"] == ["outside"]
    assert sidecar["ParcelCoverage"]["Values"]["outside"] == 0
    assert 0 < sidecar["ParcelCoverage"]["Values"]["V1 left"] < 1
    connectome = sidecar["Connectome"]
    assert (connectome["Fingerprint"], connectome["NumberOfFiles"]) == ("sha256:0", 2)
    assert connectome["StoredType"] == "int16"


def test_parcel_that_varies_in_some_subjects_only(tmp_path, data, write_connectome):
    voxels, series, _ = data
    series = series.copy()
    series[0, :, 10] = 3
    index = np.array([1, 2, 3])
    labels = np.zeros(SHAPE, dtype=np.int64)
    for label, voxel in enumerate((10, 11, 12), start=1):
        labels[tuple(voxels[:, voxel])] = label
    parcels = Parcels(GRID, index, ("a", "b", "c"), labelled_weights(labels, index))
    path = write_connectome(tmp_path / "c.h5", series[:2], voxels, SHAPE, AFFINE)
    written = prepare_matrix(path, parcels, tmp_path, name="A")
    z = np.arctanh(np.corrcoef(series[1][:, 10:13].astype(float), rowvar=False)[0, 1])
    matrix = read_matrix(written.z_file)
    assert matrix.z_for("abc")[0, 1] == pytest.approx(z / 2)
    sidecar = json.loads(written.z_file.with_suffix(".json").read_text())
    assert sidecar["ParcelsConstantInSomeSubjects"] == ["a"]


def test_matrices_are_not_replaced_unasked(write, data, tmp_path):
    location = write("c", [range(2)])
    z_of(location, data, tmp_path)
    with pytest.raises(ValidationError, match=r"exists already.*--overwrite"):
        z_of(location, data, tmp_path)
    z_of(location, data, tmp_path, overwrite=True)


def test_what_cannot_be_prepared(write, data, tmp_path):
    location, parcels = write("c", [range(2)]), data[2]
    shifted = Parcels(Grid.make(SHAPE, AFFINE + 0.5), parcels.index, NAMES, parcels.weights)
    with pytest.raises(SpatialMismatchError, match=r"Atlas A .*not on the grid"):
        prepare_matrix(location, shifted, tmp_path / "out", name="A")
    empty = Parcels(GRID, parcels.index, NAMES, sp.csr_array(parcels.weights.shape))
    with pytest.raises(ValidationError, match="fewer than two parcels"):
        prepare_matrix(location, empty, tmp_path / "out", name="A")
    with pytest.raises(ValidationError, match="one matrix"):
        prepare_matrices(
            open_connectome(location),
            [Parcellation("A", parcels), Parcellation("A!", parcels)],
            tmp_path / "out",
            label="c",
        )
    assert not (tmp_path / "out").exists()


def table_of(names=("a", "b", "c"), rows=None, values=None):
    values = np.zeros((3, 3)) if values is None else np.array(values, dtype=object)
    table = pd.DataFrame(values, columns=list(names))
    table.insert(0, "name", list(rows or names))
    return table.to_csv(sep="\t", index=False)


GOOD = [[0, 1, "n/a"], [1, 0, 2], ["n/a", 2, 0]]


def test_a_matrix_of_ones_own(tmp_path):
    path = tmp_path / "own_stat-z_relmat.tsv"
    path.write_text("\ufeff" + table_of(values=GOOD), encoding="utf-8")
    matrix = read_matrix(path)
    assert (matrix.statistic, matrix.space, matrix.n_subjects) == ("z", None, None)
    assert close(matrix.values, [[0, 1, np.nan], [1, 0, 2], [np.nan, 2, 0]])
    assert matrix.same_parcels("cab")
    assert close(matrix.z_for("cab"), [[0, np.nan, 2], [np.nan, 0, 1], [2, 1, 0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no connectivity matrix"),
        ("a\tb\n1\t2\n", "no connectivity matrix"),
        ("name\n", "not square"),
        ("name\ta\tb\na\t0\t1\n", "not square: 1 rows, 2 columns"),
        ("name\ta\tb\na\t0\t1\nb\t1\n", "1 values in row 'b'"),
        (table_of(rows=("a", "c", "b")), r"same order \(first 'b' and 'c'\)"),
        (table_of(names=("a", "b", "b")), "more than one parcel called b"),
        (table_of(values=[[0, 1, 0], [1.1, 0, 0], [0, 0, 0]]), "not symmetric"),
        (table_of(values=[[0, "n/a", 0], [1, 0, 0], [0, 0, 0]]), "not symmetric"),
        (table_of(values=[[0, "inf", 0], ["inf", 0, 0], [0, 0, 0]]), "'inf' between 'a' and 'b'"),
        (table_of(values=[[0, "nan", 0], ["nan", 0, 0], [0, 0, 0]]), "neither a finite number"),
        (table_of(values=[[0, "x", 0], ["x", 0, 0], [0, 0, 0]]), "'x' between"),
    ],
)
def test_tables_that_are_no_matrix(tmp_path, text, message):
    path = tmp_path / "m.tsv"
    path.write_text(text)
    with pytest.raises(ValidationError, match=message) as caught:
        read_matrix(path)
    assert "m.tsv" in str(caught.value)


def test_files_that_are_no_table(tmp_path):
    with pytest.raises(ValidationError, match="does not exist"):
        read_matrix(tmp_path / "none.tsv")
    with pytest.raises(ValidationError, match="not a readable table"):
        read_matrix(tmp_path)
    path = tmp_path / "m.tsv"
    path.write_bytes(b"\x89HDF\r\n\xff\xfe")
    with pytest.raises(ValidationError, match="not a readable table"):
        read_matrix(path)
    path.write_text(table_of(values=GOOD))
    path.with_suffix(".json").write_text("{")
    with pytest.raises(ValidationError, match="valid JSON"):
        read_matrix(path)


def test_parcels_that_are_not_those_of_the_atlas(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_text(table_of(values=GOOD))
    with pytest.raises(ValidationError, match=r"only in Demo: d, e; only in the matrix: b, c\."):
        read_matrix(path).z_for(["a", "d", "e"], "Demo")
    path = path.rename(tmp_path / "m_stat-r_relmat.tsv")
    with pytest.raises(ValidationError, match=r"holds r and not Fisher's z"):
        read_matrix(path).z_for("abc")
