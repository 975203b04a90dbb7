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
        ("text.nii.gz", gzip.compress(b"no image", mtime=0)),
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


# --- the way through the blocks -------------------------------------------------------------

LARGE = np.random.default_rng(1).random((70, 60, 50)) < 0.1  # 210,000 voxels, several blocks


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<f4", ">f8", "<i8"])
def test_every_type_is_read_alike_compressed_or_not(tmp_path, dtype):
    data = LARGE.astype(dtype)
    byte_order = ">" if dtype[0] == ">" else "<"
    header = nib.Nifti1Header(endianness=byte_order)
    header.set_data_dtype(np.dtype(dtype))
    for name in ("a.nii", "a.nii.gz"):
        nib.save(nib.Nifti1Image(data, AFFINE, header), tmp_path / name)
        mask = load_mask(tmp_path / name)
        assert np.array_equal(mask.data, LARGE)
        assert mask.data.flags.f_contiguous
        assert mask.n_voxels == np.count_nonzero(LARGE)


@pytest.mark.parametrize("values", [(0, 255), (0.0, 0.9999), (2e-4, 1.0)])
def test_other_pairs_of_values_take_the_long_way(save, values):
    low, high = values
    data = np.where(LARGE, high, low).astype(np.float32)
    assert np.array_equal(load_mask(save(data)).data, LARGE)


@pytest.mark.parametrize("value", [np.nan, 2, -1, 0.5])
def test_one_wrong_voxel_near_the_end_is_found(save, value):
    data = LARGE.astype(np.float32)
    data[-1, -1, -2] = value
    with pytest.raises(ValidationError, match=r"lesion\.nii\.gz"):
        load_mask(save(data))


def test_files_compressed_in_several_parts(save, tmp_path):
    """As bgzip and parallel compressors write them."""
    raw = gzip.decompress(save(LARGE.astype(np.uint8)).read_bytes())
    parts = [raw[start : start + 50_000] for start in range(0, len(raw), 50_000)]
    (tmp_path / "parts.nii.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    assert np.array_equal(load_mask(tmp_path / "parts.nii.gz").data, LARGE)


def test_more_bytes_than_voxels_are_ignored(save):
    path = save(LARGE.astype(np.uint8))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(10**6)))
    assert np.array_equal(load_mask(path).data, LARGE)


def test_a_wrong_checksum_is_named(save):
    path = save(LARGE.astype(np.uint8))
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 255
    path.write_bytes(raw)
    with pytest.raises(ValidationError, match=r"lesion\.nii\.gz"):
        load_mask(path)


# --- orientation ----------------------------------------------------------------------------


def save_forms(path, sform, qform, codes=(4, 1)):
    image = nib.Nifti1Image(LESION, None)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    nib.save(image, path)
    return path


def moved(millimetres):
    affine = AFFINE.copy()
    affine[1, 3] += millimetres
    return affine


def test_sform_and_qform_that_disagree_are_warned_of(tmp_path):
    mask = load_mask(save_forms(tmp_path / "forms.nii.gz", AFFINE, moved(12.5)))
    assert np.array_equal(mask.grid.affine, AFFINE)
    (warning,) = mask.warnings
    for part in ("forms.nii.gz", "12.5 mm", "sform (code 4) is used", "qform (code 1)"):
        assert part in warning


def test_the_disagreement_is_that_of_the_farthest_voxel(tmp_path):
    turn = AFFINE.copy()
    angle = np.radians(1)
    turn[1:3, 1:3] = 2 * np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    corners = [(0, 6 * y, 7 * z, 1) for y in (0, 1) for z in (0, 1)]
    farthest = max(np.linalg.norm((turn - AFFINE) @ corner) for corner in corners)
    (warning,) = load_mask(save_forms(tmp_path / "a.nii.gz", AFFINE, turn)).warnings
    assert f"{farthest:.3g} mm" in warning


@pytest.mark.parametrize(
    ("qform", "codes"),
    [(AFFINE, (4, 4)), (moved(0.05), (4, 1)), (moved(50), (4, 0)), (moved(50), (0, 1))],
    ids=["equal", "rounding", "no qform", "no sform"],
)
def test_forms_that_leave_no_doubt(tmp_path, qform, codes):
    assert load_mask(save_forms(tmp_path / "a.nii.gz", AFFINE, qform, codes)).warnings == ()


def test_a_qform_that_cannot_be_read_is_warned_of(tmp_path):
    path = save_forms(tmp_path / "a.nii", AFFINE, AFFINE)
    raw = path.read_bytes()
    # quatern_b to quatern_d: no rotation has such a quaternion
    path.write_bytes(raw[:256] + np.full(3, 5, "<f4").tobytes() + raw[268:])
    (warning,) = load_mask(path).warnings
    assert "qform" in warning


@pytest.mark.parametrize(("lean", "refused"), [(0.003, None), (0.02, False), (0.1, True)])
def test_sheared_affines(tmp_path, lean, refused):
    affine = AFFINE.copy()
    affine[1, 2] = 2 * lean
    image = nib.Nifti1Image(LESION, None)
    image.set_sform(affine, 4)
    nib.save(image, tmp_path / "lean.nii.gz")
    if refused:
        with pytest.raises(ValidationError, match=r"lean\.nii\.gz .*sheared"):
            load_mask(tmp_path / "lean.nii.gz")
    else:
        warnings = load_mask(tmp_path / "lean.nii.gz").warnings
        assert len(warnings) == (0 if refused is None else 1)
        assert all("sheared" in warning for warning in warnings)


def test_a_series_is_refused_by_its_header(tmp_path):
    """Its voxels, of which there may be gigabytes, are not read."""
    image = nib.Nifti1Image(np.zeros((4, 4, 4, 5), np.uint8), AFFINE)
    nib.save(image, tmp_path / "bold.nii.gz")
    raw = gzip.decompress((tmp_path / "bold.nii.gz").read_bytes())
    (tmp_path / "bold.nii.gz").write_bytes(gzip.compress(raw[:360]))
    with pytest.raises(ValidationError, match="4 dimensions"):
        load_mask(tmp_path / "bold.nii.gz")
