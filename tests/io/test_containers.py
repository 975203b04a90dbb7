"""Containers over files and over what is in memory."""

import dataclasses
import json
import pickle

import nibabel as nb
import numpy as np
import pandas as pd
import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.io.containers import (
    ConnectivityMatrix,
    ParcelData,
    ScalarMetric,
    SubjectData,
    Tractogram,
    VoxelMap,
)

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture
def values():
    return np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.fixture
def image(values):
    return nb.Nifti1Image(values, AFFINE)


def test_a_map_in_memory_is_not_copied(image, values):
    assert VoxelMap(image, "z").image is image
    assert VoxelMap(image, "z").data is values
    assert VoxelMap(image, "z").path is None


def test_a_map_on_disk_is_read_when_asked_for(image, values, tmp_path):
    path = tmp_path / "map.nii.gz"
    result = VoxelMap(str(path), "z", "MNI152NLin6Asym", 2.0)
    with pytest.raises(ValidationError, match="not there"):
        _ = result.image
    nb.save(image, path)
    assert result.path == path
    np.testing.assert_array_equal(result.data, values)
    # Nothing is kept: what is on disk counts.
    nb.save(nb.Nifti1Image(values + 1, AFFINE), path)
    np.testing.assert_array_equal(result.data, values + 1)


def test_a_damaged_image_is_named(tmp_path):
    path = tmp_path / "map.nii.gz"
    path.write_bytes(b"no image")
    with pytest.raises(ValidationError, match=r"map\.nii\.gz"):
        _ = VoxelMap(path).image


def test_metadata_is_given_or_read(image, tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"Units": "1"}))
    assert VoxelMap(image, metadata=path).metadata == {"Units": "1"}
    assert VoxelMap(image, metadata={"Units": "%"}).metadata == {"Units": "%"}
    assert VoxelMap(image).metadata == {}
    path.write_text("[1]")
    with pytest.raises(ValidationError, match="object"):
        _ = VoxelMap(image, metadata=path).metadata


def test_containers_cannot_be_changed(image):
    result = VoxelMap(image, "z")
    for name in ("image", "name", "metadata"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(result, name, None)


@pytest.mark.parametrize("kind", [VoxelMap, ParcelData, ConnectivityMatrix, SubjectData])
def test_content_must_be_given(kind):
    with pytest.raises(TypeError, match="missing"):
        kind()


def test_regions_keep_their_names_and_order(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text(
        "index\tname\tz\tn_voxels\n3\tNA\t0.5\t8\n1\t007\tn/a\t0\n2\tNone\t-1e-3\t2\n",
        encoding="utf-8",
    )
    data = ParcelData(path, "z", "Demo").data
    assert list(data.index) == ["NA", "007", "None"]
    assert data["NA"] == 0.5
    assert np.isnan(data["007"])
    assert data["None"] == -1e-3
    assert data.name == "z"


def test_a_table_of_other_names_gives_its_last_column():
    table = pd.DataFrame({"region": ["a", "b"], "value": [1.0, 2.0]})
    assert ParcelData(table, "disconnectionpct", "Demo").data.to_dict() == {"a": 1.0, "b": 2.0}
    assert ParcelData(table, "x").table is table


def test_a_matrix_keeps_the_names_of_regions(tmp_path):
    path = tmp_path / "matrix.tsv"
    path.write_text("name\t01\tNA\n01\t0\t2.5\nNA\t2.5\tn/a\n")
    matrix = ConnectivityMatrix(path, "streamlineslesion", "Demo")
    assert matrix.regions == ("01", "NA")
    np.testing.assert_array_equal(matrix.data, [[0, 2.5], [2.5, np.nan]])
    assert matrix.data.dtype == np.float64


@pytest.mark.parametrize("text", ["name\ta\tb\na\t1\t2\n", "name\ta\tb\nb\t1\t2\na\t1\t2\n"])
def test_a_matrix_has_the_same_regions_in_rows_and_columns(tmp_path, text):
    path = tmp_path / "matrix.tsv"
    path.write_text(text)
    with pytest.raises(ValidationError, match=r"matrix\.tsv"):
        _ = ConnectivityMatrix(path).data


def test_streamlines_come_one_after_the_other(tmp_path):
    lines = [np.array([[0, 0, 0], [1, 2, 3]], np.float32), np.array([[5, 5, 5]], np.float32)]
    path = tmp_path / "lines.tck"
    tractogram = nb.streamlines.Tractogram(lines, affine_to_rasmm=np.eye(4))
    nb.streamlines.save(tractogram, path)
    found = list(Tractogram(str(path)).load().streamlines)
    assert [line.tolist() for line in found] == [line.tolist() for line in lines]
    path.write_bytes(b"mrtrix image")
    with pytest.raises(ValidationError, match=r"lines\.tck"):
        Tractogram(path).load()


def test_a_lesion_knows_whose_it_is(image, tmp_path):
    nb.save(image, tmp_path / "mask.nii.gz")
    lesion = SubjectData(
        mask_img=tmp_path / "mask.nii.gz",
        space="MNI152NLin6Asym",
        resolution=2,
        metadata={"subject_id": "01", "session_id": "ses-02"},
        results={"fnm": {"z": VoxelMap(image, "z"), "n": ScalarMetric(3, "n")}},
    )
    assert (lesion.subject_id, lesion.session_id) == ("sub-01", "ses-02")
    assert lesion.mask_path == tmp_path / "mask.nii.gz"
    np.testing.assert_array_equal(lesion.mask_img.dataobj, image.dataobj)
    assert lesion.provenance == ()
    assert lesion.anatomical_img is None
    assert SubjectData(None).mask_img is None
    assert SubjectData(image).mask_img is image


def test_the_record_of_runs_is_read(tmp_path):
    path = tmp_path / "provenance.json"
    path.write_text(json.dumps({"Runs": [{"RunID": "a"}]}))
    assert SubjectData(None, provenance=path).provenance == ({"RunID": "a"},)
    assert SubjectData(None, provenance=[{"RunID": "b"}]).provenance == [{"RunID": "b"}]
    path.write_text("{}")
    with pytest.raises(ValidationError, match="Runs"):
        _ = SubjectData(None, provenance=path).provenance


def test_texts_read_nothing(tmp_path):
    missing = tmp_path / "missing.nii.gz"
    text = repr(VoxelMap(missing, "z", metadata=tmp_path / "missing.json"))
    assert "missing.nii.gz" in text
    assert "missing.json" not in text
    lesion = SubjectData(missing, metadata={"subject_id": "sub-01", "mask_label": "L"})
    assert "sub-01_label-L" in repr(lesion)


def test_paths_travel_between_processes(image, tmp_path):
    nb.save(image, tmp_path / "mask.nii.gz")
    lesion = pickle.loads(pickle.dumps(SubjectData(tmp_path / "mask.nii.gz")))  # noqa: S301
    assert lesion.mask_img.shape == (2, 3, 4)
