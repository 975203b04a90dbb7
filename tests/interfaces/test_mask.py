"""Mask interfaces through nodes: canonical form, change of grid, caching."""

import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.interfaces import ResampleMask, ValidateMask


def test_validate_writes_bytes_on_the_masks_own_grid(
    make_mask, run_node, in_node_folder, content_of
):
    source = make_mask(dtype=np.float64)
    outputs = run_node(ValidateMask(in_file=source, space="MNI152NLin6Asym"))
    image = nb.load(outputs.out_file)
    assert in_node_folder([outputs.out_file, outputs.out_meta])
    assert image.get_data_dtype() == np.uint8
    assert np.array_equal(image.get_fdata(), nb.load(source).get_fdata())
    assert np.array_equal(image.affine, nb.load(source).affine)
    meta = content_of(outputs.out_meta)
    assert outputs.n_voxels == meta["LesionVoxels"] == 12
    assert meta["LesionVolumeML"] == pytest.approx(12 * 0.512)
    assert meta["Warnings"] == []


def test_validate_passes_an_empty_mask(make_mask, run_node, data_of):
    outputs = run_node(ValidateMask(in_file=make_mask(box=np.s_[0:0, 0:0, 0:0])))
    assert outputs.n_voxels == 0
    assert not data_of(outputs.out_file).any()


def test_validate_keeps_remarks(make_mask, run_node, content_of):
    outputs = run_node(ValidateMask(in_file=make_mask(box=np.s_[2, 2, 2])))
    assert len(content_of(outputs.out_meta)["Warnings"]) == 1


def test_validate_refuses_values_that_are_not_binary(make_image, run_node, shape):
    grey = make_image("grey.nii.gz", np.linspace(0, 1, np.prod(shape)).reshape(shape))
    with pytest.raises(RuntimeError, match="not binary"):
        run_node(ValidateMask(in_file=grey))


def test_validate_refuses_a_space_that_the_grid_contradicts(make_image, run_node):
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -96.5, -132.5, -78.5
    data = np.zeros((97, 115, 97), dtype=np.uint8)
    data[40:50, 40:50, 40:50] = 1
    mask = make_image("mask.nii.gz", data, affine)
    with pytest.raises(RuntimeError, match="MNI152NLin2009"):
        run_node(ValidateMask(in_file=mask, space="MNI152NLin6Asym"))


def test_validate_twice_is_cached(make_mask, runs_once):
    mask = make_mask()
    assert runs_once(lambda: ValidateMask(in_file=mask))


def test_resample_to_a_finer_grid(
    make_mask, make_image, run_node, in_node_folder, data_of, content_of, affine, shape
):
    fine = affine.copy()
    fine[:3, :3] /= 2
    fine[:3, 3] -= 2
    reference = make_image("reference.nii.gz", np.zeros([2 * n for n in shape], "u1"), fine)
    mask = make_mask()
    outputs = run_node(ResampleMask(in_file=mask, reference=reference))
    assert in_node_folder([outputs.out_file, outputs.out_meta])
    expected = data_of(mask).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert np.array_equal(data_of(outputs.out_file), expected)
    assert np.allclose(nb.load(outputs.out_file).affine, fine)
    accounting = content_of(outputs.out_meta)["LesionResampling"]
    assert (accounting["VoxelsBefore"], accounting["VoxelsAfter"]) == (12, 96)
    assert accounting["VolumeMLAfter"] == pytest.approx(accounting["VolumeMLBefore"])
    assert not accounting["KeptByCentre"]


def test_resample_follows_the_world_and_not_the_array(make_mask, make_image, run_node, data_of):
    """A reference with a flipped axis holds the lesion at the same place in the world."""
    mask = make_mask()
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 5
    flipped = nb.load(mask).affine @ flip
    reference = make_image("reference.nii.gz", np.zeros((6, 7, 5), "u1"), flipped)
    outputs = run_node(ResampleMask(in_file=mask, reference=reference))
    assert np.array_equal(data_of(outputs.out_file), data_of(mask)[::-1])


def test_resample_never_loses_a_lesion(make_mask, make_image, run_node, data_of, content_of):
    coarse = np.diag([19.0, 19, 19, 1])
    coarse[:3, 3] = -20 + 9, -24 + 9, -16 + 9
    reference = make_image("reference.nii.gz", np.zeros((3, 3, 3), "u1"), coarse)
    outputs = run_node(ResampleMask(in_file=make_mask(box=np.s_[0, 0, 0]), reference=reference))
    assert data_of(outputs.out_file).sum() == 1
    assert content_of(outputs.out_meta)["LesionResampling"]["KeptByCentre"]


def test_resample_twice_is_cached(make_mask, runs_once):
    mask = make_mask()
    assert runs_once(lambda: ResampleMask(in_file=mask, reference=mask))
