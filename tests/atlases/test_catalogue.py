"""Atlases given on the command line or found in BIDS datasets."""

import json

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.atlases.catalogue import (
    Atlas,
    atlas_description,
    check_atlas,
    custom_atlas,
    find_bids_atlases,
)
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.spaces import template_grid

NLIN6, NLIN2009C = "MNI152NLin6Asym", "MNI152NLin2009cAsym"


@pytest.fixture
def dataset(tmp_path):
    """Write atlases by the name of their image, without its ending, and its voxel size."""

    def write(*names, size=2.0, ending="_dseg.nii.gz", table=True):
        for name in names:
            folder = tmp_path / name.split("_")[0]
            folder.mkdir(exist_ok=True)
            data = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
            if ending.startswith("_probseg"):
                data = np.ones((2, 2, 2, 7), dtype=np.float32)
            affine = np.diag([size, size, size, 1])
            nib.save(nib.Nifti1Image(data, affine), folder / f"{name}{ending}")
            if table:
                rows = "".join(f"{i}\tregion {i}\n" for i in range(1, 8))
                stem = f"{name}{ending.split('.')[0]}"
                (folder / f"{stem}.tsv").write_text("index\tname\n" + rows)
        return tmp_path

    return write


def ids(atlases):
    return [atlas.id for atlas in atlases]


# Given by hand


def test_custom_atlas_is_named_by_letters_and_digits(tmp_path):
    atlas = custom_atlas("My atlas_2!", tmp_path / "a.nii", tmp_path / "a.txt", "MNI152_2mm")
    assert atlas.id == "My atlas_2!"
    assert atlas.atlas == "Myatlas2"
    assert atlas.space == NLIN6
    assert atlas.entities == {"atlas": "Myatlas2"}


@pytest.mark.parametrize("name", ["", "__", "ä-ö"])
def test_a_name_without_letters_is_refused(tmp_path, name):
    with pytest.raises(ValidationError):
        custom_atlas(name, tmp_path / "a.nii", tmp_path / "a.txt", NLIN6)


def test_an_unknown_space_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="Talairach"):
        custom_atlas("a", tmp_path / "a.nii", tmp_path / "a.txt", "Talairach")


# Found


def test_atlases_of_a_dataset(dataset):
    root = dataset("tpl-MNI152NLin6Asym_atlas-B_res-02", "tpl-MNI152NLin2009cAsym_atlas-A")
    found = find_bids_atlases(root)
    assert [(atlas.id, atlas.space) for atlas in found] == [("A", NLIN2009C), ("B", NLIN6)]
    for atlas in found:
        check_atlas(atlas)


def test_segmentations_and_scales_of_one_atlas_are_told_apart(dataset):
    root = dataset(
        "tpl-MNI152NLin6Asym_atlas-S_seg-7n_scale-100",
        "tpl-MNI152NLin6Asym_atlas-S_seg-17n_scale-100",
        "tpl-MNI152NLin6Asym_atlas-S_seg-7n_scale-200",
        "tpl-MNI152NLin6Asym_atlas-T_seg-x",
    )
    found = find_bids_atlases(root)
    assert sorted(ids(found)) == [
        "S_seg-17n_scale-100",
        "S_seg-7n_scale-100",
        "S_seg-7n_scale-200",
        "T",
    ]
    by_id = {atlas.id: atlas for atlas in found}
    assert by_id["S_seg-7n_scale-200"].entities == {
        "atlas": "S",
        "segmentation": "7n",
        "scale": "200",
    }
    entities = [tuple(sorted(atlas.entities.items())) for atlas in found]
    assert len(set(entities)) == 4


@pytest.mark.parametrize("ending", ["_dseg.nii", "_probseg.nii.gz", "_probseg.nii"])
def test_kinds_of_images(dataset, ending):
    (atlas,) = find_bids_atlases(dataset("tpl-MNI152NLin6Asym_atlas-A", ending=ending))
    assert atlas.image.name.endswith(ending)
    check_atlas(atlas)


def test_what_is_left_out(dataset):
    root = dataset("tpl-MNI152NLin6Asym_atlas-A")
    dataset("tpl-MNI152NLin6Asym_atlas-NoTable", table=False)
    dataset("tpl-fsaverage_atlas-Surface", "tpl-OASIS30ANTs_atlas-Other")
    dataset("tpl-MNI152NLin6Asym_atlas-Mask", ending="_mask.nii.gz")
    assert ids(find_bids_atlases(root)) == ["A"]


def test_a_name_with_an_odd_part_is_no_obstacle(dataset):
    root = dataset("tpl-MNI152NLin6Asym_atlas-A_copy", "tpl-MNI152NLin6Asym_atlas-B")
    assert ids(find_bids_atlases(root)) == ["A", "B"]


def test_a_folder_without_atlases(tmp_path):
    assert find_bids_atlases(tmp_path) == []
    assert find_bids_atlases(tmp_path / "nowhere") == []


# Checked


def test_an_atlas_on_the_grid_of_another_space_is_refused(tmp_path):
    # As the Tian atlas is distributed: named NLin6, on the 2 mm grid of 2009c.
    grid = template_grid(NLIN2009C, 2)
    data = np.zeros(grid.shape, dtype=np.uint8)
    data[40:50, 50:60, 40:50] = 1
    nib.save(nib.Nifti1Image(data, grid.affine), tmp_path / "tian.nii")
    (tmp_path / "tian.txt").write_text("thalamus\n")
    atlas = Atlas("T", tmp_path / "tian.nii", tmp_path / "tian.txt", NLIN6, "T")
    with pytest.raises(SpatialMismatchError, match=r"tian\.nii"):
        check_atlas(atlas)
    check_atlas(Atlas("T", atlas.image, atlas.labels, NLIN2009C, "T"))


def test_an_atlas_without_all_names_is_refused(dataset):
    (atlas,) = find_bids_atlases(dataset("tpl-MNI152NLin6Asym_atlas-A"))
    atlas.labels.write_text("index\tname\n1\ta\n")
    with pytest.raises(ValidationError, match=atlas.labels.name):
        check_atlas(atlas)


def test_description(dataset):
    (atlas,) = find_bids_atlases(dataset("tpl-MNI152NLin6Asym_atlas-A"))
    described = atlas_description(atlas)
    assert described["Name"] == "A"
    assert "License" not in described
    atlas.labels.with_suffix(".json").write_text(json.dumps({"License": "CC0", "Citation": ""}))
    described = atlas_description(atlas)
    assert described["License"] == "CC0"
    assert "Citation" not in described
    assert str(atlas.image.parent) not in json.dumps(described)
