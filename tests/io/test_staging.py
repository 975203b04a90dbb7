"""Masks of any origin as a dataset that a run can read."""

import json

import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.io.collect import collect_masks
from lacuna_nipype.io.staging import STAGED_PATTERN, stage_masks


@pytest.fixture
def image():
    data = np.zeros((4, 4, 4), np.uint8)
    data[1, 1, 1] = 1
    return nb.Nifti1Image(data, np.diag([2, 2, 2, 1]))


def saved(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nb.save(image, path)
    return path


def found(dataset):
    """Records that a run would find, by key."""
    records = collect_masks(dataset, pattern=STAGED_PATTERN).records
    return {record.key: record for record in records}


def test_images_are_numbered(image, tmp_path):
    keys = stage_masks([image, image], tmp_path / "masks")
    assert keys == ["sub-01_label-L", "sub-02_label-L"]
    records = found(tmp_path / "masks")
    assert list(records) == keys
    np.testing.assert_array_equal(nb.load(records["sub-02_label-L"].path).dataobj, image.dataobj)
    assert len(stage_masks([image] * 100, tmp_path / "many")) == 100
    assert "sub-007_label-L" in found(tmp_path / "many")


def test_files_keep_what_their_names_say(image, tmp_path):
    first = saved(image, tmp_path / "sub-03_ses-1_space-MNI152NLin6Asym_label-acute_mask.nii.gz")
    second = saved(image, tmp_path / "patient 7.nii")
    first.with_name(first.name.replace(".nii.gz", ".json")).write_text('{"Note": "drawn"}')
    keys = stage_masks([second, str(first)], tmp_path / "masks")
    assert keys == ["sub-patient7_label-L", "sub-03_ses-1_label-acute"]
    records = found(tmp_path / "masks")
    assert set(records) == set(keys)
    assert records[keys[1]].space == "MNI152NLin6Asym"
    assert records[keys[1]].sidecar == {"Note": "drawn"}
    assert records[keys[0]].path.samefile(second)


def test_a_space_of_the_sidecar_is_kept(image, tmp_path):
    path = saved(image, tmp_path / "lesion.nii.gz")
    (tmp_path / "lesion.json").write_text(json.dumps({"Space": "MNI152NLin6Asym"}))
    (key,) = stage_masks([path], tmp_path / "masks")
    assert found(tmp_path / "masks")[key].space == "MNI152NLin6Asym"


def test_names_of_a_mapping_are_participants(image, tmp_path):
    path = saved(image, tmp_path / "sub-03_label-acute_mask.nii.gz")
    masks = {"sub-Anna": image, "Karl-Otto": path}
    keys = stage_masks(masks, tmp_path / "masks")
    assert keys == ["sub-Anna_label-L", "sub-KarlOtto_label-acute"]
    assert set(found(tmp_path / "masks")) == set(keys)


def test_what_has_not_changed_is_left_alone(image, tmp_path):
    stage_masks([image], tmp_path / "masks")
    (path,) = (tmp_path / "masks").rglob("*_mask.nii.gz")
    before = path.stat().st_mtime_ns
    stage_masks([nb.Nifti1Image(np.asarray(image.dataobj), image.affine)], tmp_path / "masks")
    assert path.stat().st_mtime_ns == before
    stage_masks([nb.Nifti1Image(1 - np.asarray(image.dataobj), image.affine)], tmp_path / "masks")
    assert nb.load(path).get_fdata().sum() == 63


def test_masks_of_an_earlier_call_are_gone(image, tmp_path):
    path = saved(image, tmp_path / "lesion.nii.gz")
    (tmp_path / "lesion.json").write_text('{"Note": "drawn"}')
    stage_masks({"a": path, "b": image}, tmp_path / "masks")
    stage_masks({"b": image}, tmp_path / "masks")
    assert list(found(tmp_path / "masks")) == ["sub-b_label-L"]
    assert not list((tmp_path / "masks").rglob("sub-a_*"))
    assert path.is_file()


@pytest.mark.parametrize("masks", [[], {}])
def test_no_mask(tmp_path, masks):
    with pytest.raises(ValidationError, match="no mask"):
        stage_masks(masks, tmp_path / "masks")


def test_what_cannot_be_staged_is_named(image, tmp_path):
    path = saved(image, tmp_path / "lesion.nii.gz")
    with pytest.raises(ValidationError, match="sub-lesion_label-L"):
        stage_masks([path, path], tmp_path / "masks")
    with pytest.raises(ValidationError, match=r"missing\.nii"):
        stage_masks([tmp_path / "missing.nii"], tmp_path / "masks")
    with pytest.raises(ValidationError, match="ndarray"):
        stage_masks([np.zeros((2, 2, 2))], tmp_path / "masks")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValidationError, match="something else"):
        stage_masks([image], tmp_path / "other")
