"""Files that are damaged, absurd or malicious: one sentence, whatever the damage."""

import io
import json
import os
import struct
import zipfile

import h5py
import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.connectomes.build import read_series
from lacuna_nipype.connectomes.bundles import read_streamline_groups, save_streamline_groups
from lacuna_nipype.connectomes.confounds import read_repetition_time
from lacuna_nipype.connectomes.convert import convert_connectome, store_to_lacuna
from lacuna_nipype.connectomes.functional import iter_subjects, open_connectome
from lacuna_nipype.connectomes.inspection import inspect_connectome
from lacuna_nipype.connectomes.prepare import read_matrix
from lacuna_nipype.connectomes.registry import list_registered, registry_file
from lacuna_nipype.connectomes.streamline_index import is_index, write_index
from lacuna_nipype.connectomes.streamline_query import StreamlineIndex, read_mask
from lacuna_nipype.connectomes.tractogram import write_tck
from lacuna_nipype.connectomes.tractogram_formats import iter_streamlines, tractogram_sidecar
from lacuna_nipype.connectomes.weights import read_streamline_weights
from lacuna_nipype.core.disconnectivity import StreamlineGroups
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.spaces import Grid

SHAPE, AFFINE = (8, 9, 7), np.diag([4.0, 4, 4, 1])
SPACE = "MNI152NLin6Asym"
DEEP = '{"a":' * 20_000


def refused(function, *arguments, match=None):
    """Check that a call ends in one sentence; a string to look for may be given."""
    with pytest.raises(ValidationError, match=match) as caught:
        function(*arguments)
    assert str(caught.value).isprintable()


# Functional connectomes


@pytest.fixture
def connectome(tmp_path, write_connectome):
    voxels = np.array(np.nonzero(np.ones(SHAPE)))[:, 20:400]
    series = np.random.default_rng(0).normal(size=(2, 12, 380)).astype(np.float32)
    return write_connectome(tmp_path / "c.h5", series, voxels, SHAPE, AFFINE, chunks=(1, 12, 380))


def _link(file, name, target):
    del file[name]
    file[name] = target


def _replace(file, name, **content):
    del file[name]
    file.create_dataset(name, **content)


CONNECTOME_DAMAGE = {
    "loop of links": lambda f: _link(f, "timeseries", h5py.SoftLink("timeseries")),
    "link outside": lambda f: _link(f, "timeseries", h5py.ExternalLink("/etc/passwd", "/x")),
    "terabytes of series": lambda f: _replace(
        f, "timeseries", shape=(2**20, 2**20, 380), dtype="f4", chunks=(1, 1, 380)
    ),
    "series that were never written": lambda f: _replace(
        f, "timeseries", shape=(2, 12, 380), dtype="f4"
    ),
    "terabytes of indices": lambda f: _replace(
        f, "mask_indices", shape=(3, 2**40), dtype="i4", chunks=(3, 1)
    ),
    "indices of nothing": lambda f: _replace(f, "mask_indices", data=h5py.Empty("i4")),
    "series of nothing": lambda f: _replace(f, "timeseries", data=h5py.Empty("f4")),
    "an affine of text": lambda f: _replace(f, "mask_affine", data="text"),
    "an affine of three rows": lambda f: _replace(f, "mask_affine", data=np.eye(3)),
    "a shape of text": lambda f: f.attrs.__setitem__("mask_shape", "large"),
    "a shape of NaN": lambda f: f.attrs.__setitem__("mask_shape", [np.nan, 9, 7]),
    "a shape with a fraction": lambda f: f.attrs.__setitem__("mask_shape", [8.5, 9, 7]),
    "an absurd shape": lambda f: f.attrs.__setitem__("mask_shape", [2**20, 2**20, 2**20]),
    "a space that is no UTF-8": lambda f: f.attrs.__setitem__("space", np.bytes_(b"\xff\xfe")),
    "a space of numbers": lambda f: f.attrs.__setitem__("space", [1.0, 2.0]),
}


@pytest.mark.parametrize("damage", CONNECTOME_DAMAGE.values(), ids=CONNECTOME_DAMAGE)
def test_damaged_functional_connectomes(connectome, damage):
    with h5py.File(connectome, "r+") as file:
        damage(file)
    refused(open_connectome, connectome, match=connectome.name)


def test_a_chunk_that_holds_next_to_nothing(connectome):
    with h5py.File(connectome, "r+") as file:
        whole = file["timeseries"][()]
        _replace(file, "timeseries", data=whole, chunks=(1, 12, 380), compression=4)
        file["timeseries"].id.write_direct_chunk((1, 0, 0), b"\x78\x9c")
    (file,) = open_connectome(connectome).files
    refused(lambda: list(iter_subjects(file)), match="subjects 2 to 2")


def test_a_pipe_in_place_of_a_connectome(tmp_path):
    os.mkfifo(tmp_path / "c.h5")
    refused(open_connectome, tmp_path, match="cannot be read")
    assert not is_index(tmp_path / "c.h5")


# The store


@pytest.fixture
def store(connectome, tmp_path):
    (path,) = convert_connectome(connectome, tmp_path / "store")
    return path


STORE_DAMAGE = {
    "a group": lambda f: (f.__delitem__("norm"), f.create_group("norm")),
    "voxels outside": lambda f: f["mask_indices"].__setitem__((0, 0), 99),
    "negative voxels": lambda f: f["mask_indices"].__setitem__((0, 0), -1),
    "half a voxel": lambda f: _replace(f, "mask_indices", data=f["mask_indices"][()] + 0.5),
    "a voxel twice": lambda f: f["mask_indices"].__setitem__(np.s_[:, 0], f["mask_indices"][:, 1]),
    "another type": lambda f: _replace(f, "scale", data=f["scale"][()].astype("f8")),
    "fewer tiles": lambda f: _replace(f, "norm", data=f["norm"][:, :1]),
    "compressed tiles": lambda f: _replace(f, "norm", data=f["norm"][()], compression=1),
    "losses that are NaN": lambda f: f["error_r"].__setitem__(0, np.nan),
    "another kind": lambda f: f.attrs.__setitem__("kind", "float64"),
    "a version of text": lambda f: f.attrs.__setitem__("format_version", "new"),
    "an absurd shape": lambda f: f.attrs.__setitem__("mask_shape", [12, 2**31, 10]),
    "a fraction of a voxel": lambda f: f.attrs.__setitem__("n_voxels", 380.5),
    "an absurd number of voxels": lambda f: f.attrs.__setitem__("n_voxels", 2**60),
}


@pytest.mark.parametrize("damage", STORE_DAMAGE.values(), ids=STORE_DAMAGE)
def test_damaged_stores(store, damage):
    with h5py.File(store, "r+") as file:
        damage(file)
    refused(open_connectome, store, match=store.name)


def test_a_damaged_record_of_sources_is_as_good_as_none(store):
    with h5py.File(store, "r+") as file:
        file.attrs["sources"] = DEEP
    assert inspect_connectome(store)["Sources"] == []


ORDER_DAMAGE = {
    "a voxel twice": lambda f: f["order"].__setitem__(0, f["order"][1]),
    "fractions": lambda f: _replace(f, "order", data=f["order"][()] + 0.5),
}


@pytest.mark.parametrize("damage", ORDER_DAMAGE.values(), ids=ORDER_DAMAGE)
def test_a_damaged_order_is_refused(store, tmp_path, damage):
    with h5py.File(store, "r+") as file:
        damage(file)
    refused(store_to_lacuna, store, tmp_path / "back", match="damaged store")


# Tractograms and their index


@pytest.fixture
def tck(tmp_path):
    x = np.arange(0, 24, 1.5)
    lines = [np.stack([x, np.full(16, y), np.full(16, 8.0)], axis=1) for y in range(0, 30, 3)]
    write_tck(tmp_path / "a.tck", lines, step_size=1.5)
    return tmp_path / "a.tck"


@pytest.fixture
def index(tck, tmp_path):
    write_index(tck, tmp_path / "a.h5", grid=Grid.make(SHAPE, AFFINE), space=SPACE)
    return tmp_path / "a.h5"


def ask(path):
    """All that an index is asked in a run."""
    with StreamlineIndex(path) as found:
        mask = np.zeros(SHAPE, np.uint8)
        mask[1:4, 1:6, 1:4] = 1
        nb.save(nb.Nifti1Image(mask, AFFINE), path.with_name("mask.nii"))
        crop = read_mask(path.with_name("mask.nii"))
        hits = found.select(crop), found.select(crop, "segments")
        every = np.arange(found.record.n_streamlines)
        found.count(every)
        found.count(every, np.ones(len(every), np.float32))
        list(found.streamlines(every))
        return hits


def _fill(name, value):
    return lambda f: f[f"blocks/00000/{name}"].__setitem__(Ellipsis, value)


INDEX_DAMAGE = {
    "chains beyond the grid": _fill("chain", 26),
    "unknown chain codes": _fill("chain", 200),
    "chains that jump anywhere": _fill("chain", 27),
    "chains that end elsewhere": _fill("chain_start", 2**31),
    "members that are no streamlines": _fill("member", 60_000),
    "cells that are not there": _fill("cell", 2**31),
    "cells that end elsewhere": _fill("cell_start", 2**31),
    "points that are not there": _fill("first", 2**31),
    "points from the end": lambda f: f["blocks/00000/first"].__setitem__(
        ..., f["blocks/00000/first"][()][::-1]
    ),
    "points in disorder": lambda f: f["blocks/00000/first"].__setitem__(3, 0),
    "another type": lambda f: _replace(
        f, "blocks/00000/octant", data=f["blocks/00000/octant"][()].astype("i8")
    ),
    "another shape": lambda f: _replace(f, "blocks/00000/end", data=np.zeros(3, "f4")),
    "a group": lambda f: (
        f.__delitem__("blocks/00000/octant"), f.create_group("blocks/00000/octant"),
    ),
    "a density of another grid": lambda f: _replace(f, "density", data=np.zeros((2, 2, 2), "u4")),
    "a lattice of no size": lambda f: f.attrs.__setitem__("cell_size", 0.0),
    "a lattice of another size": lambda f: f.attrs.__setitem__("cell_size", 2.5),
    "a lattice elsewhere": lambda f: f.attrs.__setitem__("cell_origin", [0.5, 0.5, 2.5]),
    "a lattice at a number": lambda f: f.attrs.__setitem__("cell_origin", 2),
    "text for a number": lambda f: f.attrs.__setitem__("n_streamlines", "many"),
    "a place that is a list": lambda f: f["blocks/00000"].attrs.__setitem__("position", [1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("damage", INDEX_DAMAGE.values(), ids=INDEX_DAMAGE)
def test_a_damaged_index_is_refused_and_nothing_is_read_beyond_it(index, damage):
    sound = ask(index)
    assert len(sound[0])
    with h5py.File(index, "r+") as file:
        damage(file)
    refused(ask, index, match="damaged")


def trk(path, **fields):
    """A TrackVis file of one streamline with fields of its header changed."""
    line = np.zeros((4, 3), np.float32)
    header = {"voxel_to_rasmm": AFFINE, "voxel_sizes": (4, 4, 4), "dimensions": SHAPE}
    stream = io.BytesIO()
    tractogram = nb.streamlines.Tractogram([line], affine_to_rasmm=np.eye(4))
    nb.streamlines.TrkFile(tractogram, header=header).save(stream)
    data = bytearray(stream.getvalue())
    places = {"voxel_size": (12, "<f"), "n_scalars": (36, "<h"), "vox_to_ras": (440, "<f"),
              "order": (948, "<i"), "n_count": (988, "<i"), "n_points": (1000, "<i")}  # fmt: skip
    for name, value in fields.items():
        struct.pack_into(places[name][1], data, places[name][0], value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "fields",
    [{"n_scalars": -1}, {"order": -1}, {"n_points": 2**31 - 1}, {"n_points": -4},
     {"vox_to_ras": float("nan")}, {"voxel_size": 0.0}, {"voxel_size": float("inf")}],
    ids=lambda fields: str(fields),
)  # fmt: skip
def test_absurd_trackvis_headers(tmp_path, fields):
    path = trk(tmp_path / "a.trk", **fields)
    refused(lambda: list(iter_streamlines(path)), match="a.trk")


@pytest.mark.parametrize("damage", ["cut", "deep", "infinite", "bomb"])
def test_damaged_trx_archives(tmp_path, damage):
    path = tmp_path / "a.trx"
    header = {"NB_STREAMLINES": 1, "NB_VERTICES": 2}
    sound = json.dumps(header)
    texts = {
        "deep": DEEP,
        "infinite": '{"NB_STREAMLINES": 1e999, "NB_VERTICES": 2}',
        "bomb": " " * 20_000_000 + sound,
    }
    text = texts.get(damage, sound)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", text)
        archive.writestr("positions.3.float32", np.zeros(6, "<f4").tobytes())
        archive.writestr("offsets.uint64", np.array([0, 2], "<u8").tobytes())
    if damage == "cut":
        data = path.read_bytes()
        path.write_bytes(data[:40] + data[46:])
    refused(lambda: list(iter_streamlines(path)), match="a.trx")


@pytest.mark.parametrize("suffix", [".tck", ".trk", ".trk.gz", ".trx", ".tt.gz"])
def test_pipes_and_circular_links_in_place_of_tractograms(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"loop{suffix}").symlink_to(f"loop{suffix}")
    for name in ("pipe", "loop"):
        refused(iter_streamlines, tmp_path / f"{name}{suffix}", match=name)


# Weights and groups


def test_weights_of_an_archive_or_of_words(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    refused(read_streamline_weights, tmp_path / "a.npy", 3, match="not an array of numbers")
    np.save(tmp_path / "b.npy", np.array(["1", "2", "3"]))
    refused(read_streamline_weights, tmp_path / "b.npy", 3, match="not an array of numbers")
    np.save(tmp_path / "c.npy", np.zeros(3))
    data = (tmp_path / "c.npy").read_bytes()
    (tmp_path / "c.npy").write_bytes(data.replace(b"'descr'", b"'des(r'").replace(b"}", b"("))
    refused(read_streamline_weights, tmp_path / "c.npy", 3, match="not an array of numbers")


@pytest.mark.parametrize(
    ("streamline", "bundle"),
    [([0, 9], [0, 0]), ([0, -1], [0, 0]), ([0, 1], [0, 5]), ([0], [0, 0])],
)
def test_groups_that_lead_beyond_the_tractogram(tmp_path, streamline, bundle):
    groups = StreamlineGroups(
        ("a",), np.array(streamline, np.int64), np.array(bundle, np.int32), 3
    )
    save_streamline_groups(groups, tmp_path / "g.npz")
    refused(read_streamline_groups, tmp_path / "g.npz", 3, match="not an archive")


# JSON beside the files, and the registry


def test_deep_json_is_damaged_json(tmp_path, tck):
    (tmp_path / "a.json").write_text(DEEP)
    refused(tractogram_sidecar, tck, match="not valid JSON")
    (tmp_path / "m.json").write_text(DEEP)
    (tmp_path / "m.tsv").write_text("name\ta\na\tn/a\n")
    refused(read_matrix, tmp_path / "m.tsv", match="not valid JSON")
    registry_file().parent.mkdir(parents=True)
    registry_file().write_text(DEEP)
    refused(list_registered, match="damaged")


@pytest.mark.parametrize("told", ["2.5", True, [], -1, 0, float("inf"), {"a": 1}])
def test_a_repetition_time_that_is_none_is_not_passed_over(tmp_path, told):
    nb.save(nb.Nifti1Image(np.zeros((3, 3, 3, 4), np.uint8), AFFINE), tmp_path / "b.nii")
    (tmp_path / "b.json").write_text(json.dumps({"RepetitionTime": told}))
    refused(read_repetition_time, tmp_path / "b.nii", match="b.json")


def test_a_series_that_lost_its_dimensions(tmp_path):
    nb.save(nb.Nifti1Image(np.zeros(12, np.float32), AFFINE), tmp_path / "b.nii")
    grid, voxels = Grid.make(SHAPE, AFFINE), np.zeros((3, 1), np.int64)
    refused(read_series, tmp_path / "b.nii", grid, voxels, match="grid of the brain mask")
