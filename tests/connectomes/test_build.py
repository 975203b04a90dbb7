"""A connectome from images: every series at its own place in the world."""

import json

import h5py
import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.connectomes.build import build_connectome
from lacuna_nipype.connectomes.functional import iter_subjects, open_connectome
from lacuna_nipype.connectomes.store_pass import correlate_store
from lacuna_nipype.core.cleaning import clean_series
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError

SHAPE = (7, 8, 6)
RAS = np.array([[3.0, 0, 0, -9], [0, 3, 0, -12], [0, 0, 3, -6], [0, 0, 0, 1]])
SPACE = "MNI152NLin6Asym"


@pytest.fixture
def brain():
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:6, 2:7, 1:5] = 1
    mask[1, 2, 1] = 0
    return mask


def series_of(seed=0, n_times=20):
    rng = np.random.default_rng(seed)
    return (300 + 20 * rng.normal(size=(*SHAPE, n_times))).astype(np.float32)


@pytest.fixture
def save(tmp_path):
    def write(name, data, affine=RAS, orientation=None):
        image = nb.Nifti1Image(data, affine)
        if orientation:
            start = nb.orientations.io_orientation(affine)
            end = nb.orientations.axcodes2ornt(orientation)
            image = image.as_reoriented(nb.orientations.ornt_transform(start, end))
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        nb.save(image, path)
        return path

    return write


@pytest.fixture
def mask(save, brain):
    return save("mask.nii.gz", brain)


def read_lacuna(folder):
    """All series, (subject, time, voxel), and the voxels."""
    files = open_connectome(folder).files
    return [series for file in files for series in iter_subjects(file)], files


def test_series_and_voxels(tmp_path, save, mask, brain):
    data = [series_of(seed) for seed in range(3)]
    images = [save(f"s{n}.nii.gz", values) for n, values in enumerate(data)]
    out = tmp_path / "made"
    paths = build_connectome(images, mask, out, space="FSL", layout="lacuna", subjects_per_file=2)
    assert [path.name for path in paths] == ["made_chunk-000.h5", "made_chunk-001.h5"]
    found, files = read_lacuna(out)
    assert [file.n_subjects for file in files] == [2, 1]
    assert {file.space for file in files} == {SPACE}
    assert np.array_equal(files[0].voxels, np.nonzero(brain))
    for series, values in zip(found, data, strict=True):
        assert np.array_equal(series, values[brain > 0].T)
    with h5py.File(paths[1]) as handle:
        assert json.loads(handle.attrs["source"])[0].startswith("s2.nii.gz sha256:")


@pytest.mark.parametrize("orientation", ["LAS", "LPI", "PIR", "SAL"])
@pytest.mark.parametrize("turned", ["image", "mask", "both"])
def test_orientation_does_not_matter(tmp_path, save, brain, orientation, turned):
    """World positions decide, also where all shapes agree."""
    data = series_of()
    image = save("s.nii.gz", data, orientation=orientation if turned != "mask" else None)
    mask = save("m.nii.gz", brain, orientation=orientation if turned != "image" else None)
    build_connectome([image], mask, tmp_path / "c", space=SPACE, layout="lacuna")
    (series,), (file,) = read_lacuna(tmp_path / "c")
    world = file.grid.affine[:3, :3] @ file.voxels + file.grid.affine[:3, 3:]
    voxels = np.rint(np.linalg.inv(RAS[:3, :3]) @ (world - RAS[:3, 3:])).astype(int)
    assert sorted(map(tuple, voxels.T)) == sorted(map(tuple, np.argwhere(brain)))
    assert np.array_equal(series, data[tuple(voxels)].T)


def test_scaled_integers_are_read_with_their_scale(tmp_path, save, mask, brain):
    data = series_of()
    image = nb.Nifti1Image(data, RAS)
    image.set_data_dtype(np.int16)
    nb.save(image, tmp_path / "s.nii")
    build_connectome([tmp_path / "s.nii"], mask, tmp_path / "c", space=SPACE, layout="lacuna")
    (series,), _ = read_lacuna(tmp_path / "c")
    np.testing.assert_allclose(series, data[brain > 0].T, atol=0.01)


@pytest.mark.parametrize("layout", ["store", "lacuna"])
def test_cleaning_is_applied_and_layouts_agree(tmp_path, save, mask, brain, layout):
    data = series_of(n_times=40)
    data[..., :] += np.linspace(0, 900, 40, dtype=np.float32) ** 1.2
    build_connectome(
        [save("s.nii.gz", data)], mask, tmp_path / "c", space=SPACE, layout=layout,
        detrend=2, remove_global_signal=True, standardize=True, kind="int16",
    )  # fmt: skip
    expected = clean_series(data[brain > 0].T, polynomial=2, global_signal=True, standardize=True)
    (file,) = open_connectome(tmp_path / "c").files
    if layout == "lacuna":
        assert np.array_equal(next(iter_subjects(file)), expected)
        return
    order = h5py.File(file.path, locking=False)["order"][()]
    r = np.tanh(correlate_store(file, [np.array([11])]).mean[0])
    exact = np.corrcoef(expected[:, order].astype(float), rowvar=False)[11]
    np.testing.assert_allclose(np.delete(r, 11), np.delete(exact, 11), atol=1e-4)
    # Three for the trend, one for the global signal.
    assert file.precision.rank == 36


def test_unequal_lengths_go_to_separate_files(tmp_path, save, mask):
    lengths = [20, 25, 20, 25, 20]
    images = [save(f"s{i}.nii.gz", series_of(i, n)) for i, n in enumerate(lengths)]
    paths = build_connectome(images, mask, tmp_path / "c", space=SPACE, subjects_per_file=2)
    files = open_connectome(tmp_path / "c").files
    assert [(f.n_subjects, f.n_timepoints) for f in files] == [(2, 20), (1, 20), (2, 25)]
    assert [file.path for file in files] == paths


def test_finished_files_are_kept_unless_something_changed(tmp_path, save, mask):
    images = [save(f"s{i}.nii.gz", series_of(i)) for i in range(3)]
    settings = {"space": SPACE, "subjects_per_file": 1, "n_procs": 2}
    paths = build_connectome(images, mask, tmp_path / "c", **settings)
    before = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    build_connectome(images, mask, tmp_path / "c", **settings)
    after = [path.stat().st_mtime_ns for path in paths]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    with pytest.raises(ValidationError, match="--overwrite"):
        build_connectome(images, mask, tmp_path / "c", detrend=1, **settings)
    build_connectome(images, mask, tmp_path / "c", detrend=1, overwrite=True, **settings)


def test_constant_and_broken_series_are_counted(tmp_path, save, mask):
    data = series_of()
    data[2, 3, 2] = 5
    data[3, 3, 2, 7] = np.nan
    (path,) = build_connectome(
        [save("s.nii.gz", data)], mask, tmp_path / "c", space=SPACE, detrend=2,
        remove_global_signal=True,
    )  # fmt: skip
    with h5py.File(path) as handle:
        assert handle["n_constant"][()].tolist() == [2]


def test_names_tell_subjects_of_one_file_name_apart(tmp_path, save, mask):
    images = [save(f"sub-{i}/bold.nii.gz", series_of(i)) for i in (1, 2)]
    (path,) = build_connectome(images, mask, tmp_path / "c", space=SPACE)
    with h5py.File(path) as handle:
        names = [text.split()[0] for text in json.loads(handle.attrs["sources"])]
    assert names == ["sub-1/bold.nii.gz", "sub-2/bold.nii.gz"]


# Bad input


@pytest.fixture
def refuse(tmp_path, mask):
    """Build and expect an error; nothing is written."""

    def run(error, match, images, brain=mask, **settings):
        with pytest.raises(error, match=match):
            build_connectome(images, brain, tmp_path / "c", **{"space": SPACE, **settings})
        assert not list((tmp_path / "c").glob("**/*"))

    return run


def test_another_grid_is_refused_with_both_names(save, refuse):
    good = save("good.nii.gz", series_of())
    shifted = RAS.copy()
    shifted[0, 3] += 1
    for number, image in enumerate(
        [
            save("a.nii.gz", series_of(1), affine=shifted),
            save("b.nii.gz", series_of(1)[1:]),
            # Same shape and voxel size, mirrored in the header only.
            save("c.nii.gz", series_of(1), affine=RAS @ np.diag([-1, 1, 1, 1])),
        ]
    ):
        name = "abc"[number]
        refuse(SpatialMismatchError, rf"{name}\.nii\.gz .*mask\.nii\.gz", [good, image])


def test_images_that_are_none(tmp_path, save, refuse):
    good = save("good.nii.gz", series_of())
    refuse(ValidationError, r"gone\.nii\.gz does not exist", [good, tmp_path / "gone.nii.gz"])
    refuse(
        ValidationError, r"d3\.nii\.gz has 3 dimensions", [save("d3.nii.gz", series_of()[..., 0])]
    )
    short = save("short.nii.gz", series_of(n_times=9))
    refuse(ValidationError, r"short\.nii\.gz has 9 time points; at least 10", [good, short])
    text = tmp_path / "text.nii.gz"
    text.write_text("no image")
    refuse(ValidationError, r"text\.nii\.gz cannot be read", [good, text])
    refuse(ValidationError, "No image", [])


@pytest.mark.parametrize("name", ["cut.nii.gz", "cut.nii"])
def test_truncated_image(tmp_path, save, refuse, name):
    path = save(name, series_of())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuse(ValidationError, "cut.* is damaged", [path])


def test_subject_twice(tmp_path, save, refuse):
    first, second = save("a.nii.gz", series_of()), save("b.nii.gz", series_of(), orientation="LAS")
    refuse(ValidationError, r"a\.nii\.gz is given twice", [first, first])
    refuse(ValidationError, r"b\.nii\.gz and .*a\.nii\.gz hold identical", [first, second])


def test_masks_that_are_none(save, refuse, brain):
    images = [save("s.nii.gz", series_of())]
    for data, match in (
        (brain * 0, "is empty"),
        (brain * np.linspace(0, 1, 6), "is not binary"),
        (np.stack([brain, brain], axis=-1), "has 4 dimensions"),
        (np.where(brain, np.nan, 0.0), "is not binary"),
        (brain.astype(np.float32) - 1, "is not binary|is empty"),
    ):
        refuse(ValidationError, match, images, save("bad.nii.gz", data))


def test_space_that_the_grid_contradicts(save, refuse):
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = (-96.5, -132.5, -78.5)
    mask = np.zeros((97, 115, 97), np.uint8)
    mask[40:43, 40:43, 40:43] = 1
    image = save("s.nii.gz", np.zeros((97, 115, 97, 10), np.uint8), affine=affine)
    refuse(SpatialMismatchError, "2009c", [image], save("m.nii.gz", mask, affine=affine))
    refuse(ValidationError, "not one of the supported", [image], space="MNI305")


@pytest.mark.parametrize(
    "settings",
    [{"layout": "zarr"}, {"kind": "float16"}, {"subjects_per_file": 0}, {"detrend": 19},
     {"detrend": -1}],
)  # fmt: skip
def test_settings_that_are_not_possible(save, refuse, settings):
    refuse(ValidationError, ".", [save("s.nii.gz", series_of())], **settings)
