"""Maps are compared with their source series: what is wrong, or not at hand, is noticed."""

import json
import shutil

import h5py
import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.connectomes.convert import convert_connectome
from lacuna_nipype.connectomes.functional import open_connectome
from lacuna_nipype.connectomes.maps import write_maps
from lacuna_nipype.connectomes.partial import write_partial
from lacuna_nipype.connectomes.seeds import read_seeds
from lacuna_nipype.connectomes.verify import Probe, recompute_z, source_paths, verify_maps
from lacuna_nipype.core.exceptions import ValidationError

SHAPE = (9, 8, 7)
AFFINE = np.array([[-4.0, 0, 0, 16], [0, 4, 0, -20], [0, 0, 4, -12], [0, 0, 0, 1]])
N_SUBJECTS, N_TIMES, N_VOXELS = 6, 40, 300
LAYOUTS = [None, "int16", "int8"]


@pytest.fixture
def source(tmp_path, write_connectome):
    """A connectome of two files in Lacuna's layout, with holes, and masks of four lesions."""
    rng = np.random.default_rng(4)
    chosen = rng.permutation(np.prod(SHAPE))[:N_VOXELS]
    voxels = np.array(np.unravel_index(chosen, SHAPE))
    series = rng.normal(size=(N_SUBJECTS, N_TIMES, N_VOXELS))
    series += rng.normal(size=(N_SUBJECTS, N_TIMES, 1)) * rng.uniform(size=N_VOXELS)
    series[:, :, 5] = 2.5
    series[1, 3, 6] = np.nan
    series[4] = 0
    folder = tmp_path / "source"
    folder.mkdir()
    for name, part in (("a.h5", slice(0, 2)), ("b.hdf5", slice(2, 6))):
        write_connectome(folder / name, series[part].astype("f4"), voxels, SHAPE, AFFINE)
    masks = []
    for number, share in enumerate((0.1, 0.4, 0.0, 1.0)):
        masks.append(tmp_path / f"mask-{number}.nii.gz")
        image = nb.Nifti1Image((rng.random(SHAPE) < share).astype(np.uint8), AFFINE)
        nb.save(image, masks[-1])
    return folder, masks


def connectome_of(folder, kind):
    """The connectome itself, or a store made of it."""
    if kind is None:
        return open_connectome(folder)
    convert_connectome(folder, folder.parent / kind, kind=kind)
    return open_connectome(folder.parent / kind)


def r_maps(connectome, masks, folder):
    partials = [
        write_partial(file, read_seeds(file, masks), folder / f"{n}.partial", memory_gb=4)
        for n, file in enumerate(connectome.files)
    ]
    return write_maps(partials, connectome.files[0], folder / "maps")["r_maps"]


def tamper(path, change):
    image = nb.load(path)
    data = np.asanyarray(image.dataobj).copy()
    change(data)
    nb.save(nb.Nifti1Image(data, image.affine), path)


# --- verify_maps ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYOUTS)
def test_right_maps_are_accepted(tmp_path, source, kind):
    folder, masks = source
    connectome = connectome_of(folder, kind)
    paths = source_paths(connectome.files)
    assert paths == [folder / "a.h5", folder / "b.hdf5"]
    records = verify_maps(
        paths, masks, r_maps(connectome, masks, tmp_path), tmp_path / "verified",
        n_voxels=N_VOXELS, stored_error=connectome.error_r,
    )  # fmt: skip
    assert len(records) == len(masks)
    for path in records:
        record = json.loads(path.read_text())["Verification"]
        assert record["Voxels"] == N_VOXELS
        assert record["SourceFiles"] == ["a.h5", "b.hdf5"]
        assert 0 <= record["LargestDifferenceOfR"] <= record["Limit"]
        if kind is None:
            assert record["LargestDifferenceOfR"] < 1e-6
            assert record["Limit"] == 1e-5
        else:
            assert record["Limit"] == pytest.approx(1e-5 + 5 * connectome.error_r)


@pytest.mark.parametrize("kind", [None, "int16"])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: np.add(data, 2e-3, out=data),
        lambda data: np.negative(data, out=data),
        lambda data: data.__setitem__(..., data[::-1].copy()),
        lambda data: data.__setitem__(..., 0),
        lambda data: data.__setitem__(..., np.nan),
    ],
    ids=["shifted", "other sign", "mirrored", "empty", "nan"],
)
def test_a_wrong_map_is_named(tmp_path, source, kind, change):
    folder, masks = source
    connectome = connectome_of(folder, kind)
    maps = r_maps(connectome, masks, tmp_path)
    tamper(maps[1], change)
    with pytest.raises(ValidationError, match=r"lesion-0001_r\.nii\.gz differs"):
        verify_maps(
            source_paths(connectome.files), masks, maps, tmp_path / "verified",
            n_voxels=40, stored_error=connectome.error_r,
        )  # fmt: skip


def test_maps_of_swapped_lesions_are_refused(tmp_path, source):
    folder, masks = source
    connectome = connectome_of(folder, None)
    maps = r_maps(connectome, masks, tmp_path)
    with pytest.raises(ValidationError, match="lesion-0001_r"):
        verify_maps(connectome.paths, masks[:2], [maps[1], maps[0]], tmp_path / "v", n_voxels=9)


def test_voxels_are_the_same_in_every_run(tmp_path, source):
    folder, masks = source
    connectome = connectome_of(folder, None)
    maps = r_maps(connectome, masks, tmp_path)
    first, second = (
        verify_maps(connectome.paths, masks, maps, tmp_path / name, n_voxels=7)
        for name in ("first", "second")
    )
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_recomputation_by_hand(source):
    folder, _ = source
    connectome = open_connectome(folder)
    series = np.concatenate(
        [h5py.File(path)["timeseries"][:].astype(float) for path in connectome.paths]
    )
    # Voxel 6 holds a NaN in subject 1, voxel 5 is constant, subject 4 is all zero.
    probes = [
        Probe(np.array([6, 7]), np.array([5, 9])),
        Probe(np.array([], dtype=int), np.array([9])),
    ]
    both, none = recompute_z(connectome.files, probes)
    expected = 0.0
    for subject in (0, 1, 2, 3, 5):
        seed = series[subject][:, [7] if subject == 1 else [6, 7]].mean(axis=1)
        expected += np.arctanh(np.corrcoef(seed, series[subject][:, 9])[0, 1]) / 6
    np.testing.assert_allclose(both, [0, expected], atol=1e-12)
    assert none.tolist() == [0]


# --- source_paths ---------------------------------------------------------------------------


def test_sources_that_moved_or_changed_are_not_at_hand(source):
    folder, _ = source
    store = connectome_of(folder, "int16")
    assert source_paths(store.files) == sorted(folder.iterdir())
    moved = folder.rename(folder.with_name("elsewhere"))
    assert source_paths(store.files) is None
    moved.rename(folder)
    assert source_paths(store.files) is not None
    kept = (folder / "b.hdf5").read_bytes()
    with h5py.File(folder / "b.hdf5", "a") as handle:
        handle["timeseries"][0, 0, 0] += 1
    assert source_paths(store.files) is None
    (folder / "b.hdf5").write_bytes(kept)
    assert source_paths(store.files) is not None
    (folder / "a.h5").unlink()
    assert source_paths(store.files) is None


def test_a_store_may_move_without_its_sources(tmp_path, source):
    folder, _ = source
    connectome_of(folder, "int16")
    shutil.move(tmp_path / "int16", tmp_path / "moved")
    store = open_connectome(tmp_path / "moved")
    assert source_paths(store.files) == sorted(folder.iterdir())


def test_sources_whose_suffix_is_in_capitals(source):
    folder, _ = source
    (folder / "b.hdf5").rename(folder / "b.HDF5")
    store = connectome_of(folder, "int16")
    assert [path.name for path in source_paths(store.files)] == ["a.h5", "b.HDF5"]


def test_a_store_that_does_not_say_where_it_comes_from(source):
    folder, _ = source
    store = connectome_of(folder, "int16")
    with h5py.File(store.paths[0], "a") as handle:
        handle.attrs["source_folder"] = ""
    assert source_paths(store.files) is None
