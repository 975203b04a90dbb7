"""Lesion masks on disk: what is read and which files are refused."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.io.images import load_mask

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
LESION = np.zeros((6, 7, 8), dtype=np.uint8)
LESION[2:5, 3:6, 1:3] = 1


@pytest.fixture
def save(tmp_path):
    def save_image(data=LESION, name="lesion.nii.gz", affine=AFFINE, kind=nib.Nifti1Image):
        nib.save(kind(data, affine), tmp_path / name)
        return tmp_path / name

    return save_image


@pytest.mark.parametrize("name", ["lesion.nii", "lesion.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_mask_by_hand(save, name, kind, dtype):
    mask = load_mask(save(LESION.astype(dtype), name, kind=kind))
    assert mask.data.dtype == bool
    assert np.array_equal(mask.data, LESION == 1)
    assert mask.grid.shape == (6, 7, 8)
    assert np.array_equal(mask.grid.affine, AFFINE)
    # 3 x 3 x 2 voxels of 8 cubic millimetres.
    assert mask.n_voxels == 18
    assert mask.volume_ml == pytest.approx(0.144)
    assert mask.warnings == ()


def test_path_may_be_text(save):
    assert load_mask(str(save())).n_voxels == 18


def test_volume_counts_the_voxels_of_an_oblique_grid(save):
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    mask = load_mask(save(affine=nib.affines.from_matvec(turn * [1, 2, 3], [1, 2, 3])))
    assert mask.volume_ml == pytest.approx(18 * 6 / 1000, rel=1e-6)


def test_oddities_are_warned_of(save):
    few = np.zeros_like(LESION)
    few[0, 0, 0] = 255
    mask = load_mask(save(few))
    assert mask.n_voxels == 1
    assert len(mask.warnings) == 2
    assert all("lesion.nii.gz" in warning for warning in mask.warnings)


def test_an_empty_mask_is_left_to_the_caller(save):
    mask = load_mask(save(np.zeros_like(LESION)))
    assert mask.n_voxels == 0
    assert mask.volume_ml == 0


def test_a_trailing_axis_of_one_is_squeezed(save):
    assert load_mask(save(LESION[..., None])).grid.shape == LESION.shape


def test_values_scaled_in_the_header_are_read_as_scaled(tmp_path):
    image = nib.Nifti1Image(LESION.astype(np.int16) * 1000, AFFINE)
    image.header.set_slope_inter(1 / 1000, 0)
    nib.save(image, tmp_path / "scaled.nii")
    assert load_mask(tmp_path / "scaled.nii").n_voxels == 18


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (4, 4)])
def test_one_orientation_code_is_enough(tmp_path, codes):
    image = nib.Nifti1Image(LESION, None)
    image.set_sform(AFFINE, codes[0])
    image.set_qform(AFFINE, codes[1])
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(load_mask(tmp_path / "a.nii").grid.affine, AFFINE, atol=1e-6)


def test_an_image_that_says_nothing_of_its_place_is_refused(tmp_path):
    image = nib.Nifti1Image(LESION, None)
    image.set_sform(AFFINE, 0)
    image.set_qform(AFFINE, 0)
    nib.save(image, tmp_path / "nowhere.nii.gz")
    with pytest.raises(ValidationError, match=r"nowhere\.nii\.gz"):
        load_mask(tmp_path / "nowhere.nii.gz")


@pytest.mark.parametrize(
    "data",
    [
        LESION[0],
        np.stack([LESION, LESION], axis=3),
        LESION * np.float32(0.5),
        LESION * 2,
        np.where(LESION, np.nan, 0).astype(np.float32),
        np.ones_like(LESION),
        LESION.astype(np.complex64),
        np.zeros(LESION.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]),
    ],
    ids=["2D", "4D", "probability", "label", "nan", "everywhere", "complex", "colours"],
)
def test_images_that_are_no_mask_are_named(save, data):
    with pytest.raises(ValidationError, match=r"lesion\.nii\.gz"):
        load_mask(save(data))


@pytest.mark.parametrize("sizes", [(30, 30, 30), (0.01, 1, 1)])
def test_affines_that_place_nothing_in_a_brain(save, sizes):
    with pytest.raises(ValidationError, match=r"lesion\.nii\.gz"):
        load_mask(save(affine=np.diag([*sizes, 1.0])))


@pytest.mark.parametrize("name", ["lesion.nii", "lesion.nii.gz"])
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.6, 0.95])
def test_truncated_files_are_named(save, name, keep):
    noise = (np.random.default_rng(0).random((30, 30, 30)) < 0.5).astype(np.uint8)
    path = save(noise, name)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw))])
    with pytest.raises(ValidationError, match=r"lesion\.nii"):
        load_mask(path)


def test_damaged_compression_is_named(save):
    noise = (np.random.default_rng(0).random((30, 30, 30)) < 0.5).astype(np.uint8)
    path = save(noise)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 200] = bytes(200)
    path.write_bytes(raw)
    with pytest.raises(ValidationError, match=r"lesion\.nii\.gz"):
        load_mask(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.nii.gz", b"no image"),
        ("text.nii.gz", gzip.compress(b"no image")),
        ("text.nii", b"no image"),
        ("page.html", b"<html></html>"),
        ("surface.gii", b"<GIFTI></GIFTI>"),
    ],
)
def test_other_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValidationError, match=name):
        load_mask(tmp_path / name)


def test_another_image_format_is_named(tmp_path):
    nib.save(nib.MGHImage(LESION, AFFINE), tmp_path / "lesion.mgz")
    with pytest.raises(ValidationError, match=r"lesion\.mgz"):
        load_mask(tmp_path / "lesion.mgz")


def test_a_header_of_an_unknown_type_is_named(save):
    path = save(name="lesion.nii")
    raw = path.read_bytes()
    path.write_bytes(raw[:70] + (999).to_bytes(2, "little") + raw[72:])
    with pytest.raises(ValidationError, match=r"lesion\.nii"):
        load_mask(path)


def test_missing_files_and_folders_are_named(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    for name in ("nowhere.nii.gz", "folder.nii"):
        with pytest.raises(ValidationError, match=name):
            load_mask(tmp_path / name)
