"""Datasets read as containers: masks of a study, results of runs."""

import json

import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.core.exceptions import BidsError, ValidationError
from lacuna_nipype.io.containers import (
    ConnectivityMatrix,
    ParcelData,
    ScalarMetric,
    Tractogram,
    VoxelMap,
)
from lacuna_nipype.io.reading import load_bids_dataset, load_derivatives

SPACE = "MNI152NLin6Asym"
LESION = f"sub-01/ses-01/anat/sub-01_ses-01_space-{SPACE}"
ATLAS = "atlas-Demo_seg-7n_scale-100"


def write(root, name, content=None):
    """Write an image (of ``content``), JSON, or text, by extension."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith((".nii", ".nii.gz")):
        data = np.zeros((2, 2, 2), np.float32) if content is None else content
        nb.save(nb.Nifti1Image(data, np.eye(4)), path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(content), encoding="utf-8")
    else:
        path.write_text(content or "", encoding="utf-8")
    return path


# --- masks ----------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    write(tmp_path, f"{LESION}_label-acute_mask.nii.gz")
    write(tmp_path, f"sub-02/anat/sub-02_space-{SPACE}_res-2_label-acute_mask.nii.gz")
    write(tmp_path, f"sub-02/anat/sub-02_space-{SPACE}_label-chronic_mask.nii")
    write(tmp_path, f"sub-02/anat/sub-02_space-{SPACE}_desc-brain_mask.nii.gz")
    write(tmp_path, f"sub-02/anat/sub-02_space-{SPACE}_label-GM_mask.nii.gz")
    write(tmp_path, "sub-02/anat/sub-02_T1w.nii.gz")
    write(tmp_path, f"derivatives/old/{LESION}_label-acute_desc-lesion_mask.nii.gz")
    return tmp_path


def test_masks_by_their_names(study):
    loaded = load_bids_dataset(study)
    assert list(loaded) == [
        f"sub-01_ses-01_space-{SPACE}_label-acute_mask",
        f"sub-02_space-{SPACE}_res-2_label-acute_mask",
    ]
    first, second = loaded.values()
    assert first.metadata == {
        "subject_id": "sub-01", "session_id": "ses-01", "mask_label": "acute"
    }  # fmt: skip
    assert (first.space, first.resolution) == (SPACE, None)
    assert second.resolution == 2.0
    assert second.mask_img.shape == (2, 2, 2)
    assert first.results == {}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pattern": "acute"}, ["sub-01", "sub-02"]),
        ({"pattern": "ses-*acute"}, ["sub-01"]),
        ({"subjects": ["sub-02"]}, ["sub-02"]),
        ({"subjects": ["01"]}, ["sub-01"]),
        ({"suffix": "_mask.nii"}, ["sub-02"]),
    ],
)
def test_masks_that_are_asked_for(study, options, expected):
    assert [lesion.subject_id for lesion in load_bids_dataset(study, **options).values()] == (
        expected
    )


def test_folders_are_entered_unless_told_otherwise(study):
    write(study, "sub-09_label-L_mask.nii.gz")
    assert list(load_bids_dataset(study, recursive=False)) == ["sub-09_label-L_mask"]
    assert len(load_bids_dataset(study)) == 3


def test_the_sidecar_says_more_than_the_name_and_the_argument_more_than_both(study, caplog):
    sidecar = {"Space": "MNI152NLin2009cAsym", "Resolution": "Isotropic voxels of 1 mm"}
    write(study, f"sub-02/anat/sub-02_space-{SPACE}_res-2_label-acute_mask.json", sidecar)
    (lesion,) = load_bids_dataset(study, subjects=["02"]).values()
    assert (lesion.space, lesion.resolution) == ("MNI152NLin2009cAsym", 1.0)
    assert "MNI152NLin2009cAsym" in caplog.text
    (lesion,) = load_bids_dataset(study, subjects=["02"], space="X", resolution=3).values()
    assert (lesion.space, lesion.resolution) == ("X", 3)


def test_nothing_found_is_explained(study):
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        load_bids_dataset(study / "elsewhere")
    with pytest.raises(BidsError, match=r"2 of them lesion masks.*'chronic'.*label-acute"):
        load_bids_dataset(study, pattern="chronic")
    with pytest.raises(BidsError, match="07"):
        load_bids_dataset(study, subjects=["sub-07"])
    with pytest.raises(BidsError, match=r"0 of them lesion masks.*T1w"):
        load_bids_dataset(study, suffix="_roi.nii.gz")


def test_masks_of_a_derivative_are_pointed_at(tmp_path):
    write(tmp_path, "derivatives/masks/sub-01/anat/sub-01_label-L_mask.nii.gz")
    with pytest.raises(BidsError, match=r"derivatives/masks/sub-01"):
        load_bids_dataset(tmp_path)
    assert len(load_bids_dataset(tmp_path / "derivatives" / "masks")) == 1


def test_one_name_twice_is_refused(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path, f"{folder}/sub-01/anat/sub-01_label-L_mask.nii.gz")
    with pytest.raises(BidsError, match="one name"):
        load_bids_dataset(tmp_path)


# --- results --------------------------------------------------------------------------------


@pytest.fixture
def derivatives(tmp_path):
    shared = f"{LESION}_res-2_label-acute"
    write(tmp_path, f"{LESION}_res-1_label-acute_desc-lesion_mask.nii.gz", np.eye(3)[None])
    write(tmp_path, f"{shared}_stat-z_desc-fnm_statmap.nii.gz", np.full((2, 2, 2), 1.5))
    write(tmp_path, f"{shared}_stat-z_desc-fnm_statmap.json", {"Units": "1"})
    table = "index\tname\tz\tcoverage\n1\tV1\t0.25\t1\n2\tA1\tn/a\t0\n"
    write(tmp_path, f"{LESION}_{ATLAS}_label-acute_stat-z_desc-fnm_parcelstats.tsv", table)
    table = "index\tname\tdisconnectionpct\n1\tV1\t100\n2\tA1\t0\n"
    name = f"{LESION}_{ATLAS}_label-acute_stat-disconnectionpct_desc-snm"
    write(tmp_path, f"{name}_parcelstats.tsv", table)
    write(tmp_path, f"{name}_relmat.tsv", "name\tV1\tA1\nV1\t0\t7\nA1\t7\t0\n")
    write(tmp_path, f"{LESION}_label-acute_desc-snm_tractography.tck")
    numbers = {
        "Streamlines": 12, "Most": None, "Matrices": [{"Name": "Demo", "Edges": 3}],
        "Bundles": {"Hit": 1}, "Other": [1, 2],
    }  # fmt: skip
    write(tmp_path, f"{LESION}_label-acute_desc-snm_stats.json", numbers)
    record = {"Runs": [{"RunID": "one"}]}
    write(tmp_path, "sub-01/sub-01_ses-01_desc-provenance.json", record)
    write(tmp_path, f"sub-01/figures/sub-01_space-{SPACE}_label-acute_mask.nii.gz")
    write(tmp_path, "sub-10/anat/sub-10_label-L_desc-rd_stats.json", {"LesionVolumeML": 2.5})
    write(tmp_path, "sub-10/anat/.tmp-sub-10_label-L_desc-snm_stats.json", {"Half": 1})
    write(tmp_path, "logs/run/sub-01_label-L_desc-rd_stats.json", {})
    return tmp_path


def test_results_by_lesion_analysis_and_key(derivatives):
    loaded = load_derivatives(derivatives)
    assert list(loaded) == ["sub-01_ses-01_label-acute", "sub-10_label-L"]
    lesion = loaded["sub-01_ses-01_label-acute"]
    kinds = {
        analysis: {key: type(result) for key, result in results.items()}
        for analysis, results in lesion.results.items()
    }
    assert kinds == {
        "fnm": {"z": VoxelMap, f"z_{ATLAS}": ParcelData},
        "snm": {
            "Streamlines": ScalarMetric,
            "Most": ScalarMetric,
            "Demo.Edges": ScalarMetric,
            "Bundles.Hit": ScalarMetric,
            "Other": ScalarMetric,
            f"disconnectionpct_{ATLAS}": ParcelData,
            f"disconnectionpct_{ATLAS}_relmat": ConnectivityMatrix,
            "tractography": Tractogram,
        },
    }
    assert lesion.mask_img.shape == (1, 3, 3)
    assert (lesion.space, lesion.resolution) == (SPACE, 1.0)
    assert lesion.provenance == ({"RunID": "one"},)
    assert lesion.metadata == {
        "subject_id": "sub-01", "session_id": "ses-01", "mask_label": "acute"
    }  # fmt: skip


def test_values_are_those_of_the_files(derivatives):
    results = load_derivatives(derivatives)["sub-01_ses-01_label-acute"].results
    assert np.all(results["fnm"]["z"].data == 1.5)
    assert results["fnm"]["z"].metadata == {"Units": "1"}
    assert results["fnm"]["z"].resolution == 2.0
    table = results["fnm"][f"z_{ATLAS}"]
    assert (table.atlas, table.space, table.name) == ("Demo_seg-7n_scale-100", SPACE, "z")
    assert table.data["V1"] == 0.25
    assert np.isnan(table.data["A1"])
    assert results["snm"]["Streamlines"].value == 12
    assert results["snm"]["Most"].value is None
    assert results["snm"]["Other"].value == "1, 2"
    assert results["snm"][f"disconnectionpct_{ATLAS}_relmat"].data.tolist() == [[0, 7], [7, 0]]


def test_a_lesion_without_mask_and_record(derivatives):
    lesion = load_derivatives(derivatives, subjects=["sub-10"])["sub-10_label-L"]
    assert lesion.mask_img is None
    assert lesion.provenance == ()
    assert list(lesion.results) == ["rd"]
    assert list(lesion.results["rd"]) == ["LesionVolumeML"]


def test_results_that_differ_in_their_grid_only_are_told_apart(derivatives):
    name = f"{LESION}_res-1_label-acute_stat-z_desc-fnm_statmap.nii.gz"
    write(derivatives, name, np.full((2, 2, 2), -3.0))
    results = load_derivatives(derivatives)["sub-01_ses-01_label-acute"].results["fnm"]
    assert set(results) == {f"z_space-{SPACE}_res-1", f"z_space-{SPACE}_res-2", f"z_{ATLAS}"}
    assert np.all(results[f"z_space-{SPACE}_res-1"].data == -3)


def test_lacunas_names_are_read_too(tmp_path):
    stem = "sub-01/ses-01/anat/sub-01_ses-01_label-acute"
    write(tmp_path, f"{stem}_space-{SPACE}_mask.nii.gz")
    stem += "_method-snm"
    write(tmp_path, f"{stem}_space-{SPACE}_desc-disconnectionpct.nii.gz", np.ones((2, 2, 2)))
    write(tmp_path, f"{stem}_desc-summarystatistics_stats.json", {"streamlines": 5})
    table = "region\tvalue\na\t1\n"
    write(tmp_path, f"{stem}_atlas-A100_desc-disconnectionpct_parcelstats.tsv", table)
    matrix = "region\ta\na\t4\n"
    write(tmp_path, f"{stem}_atlas-A100_desc-intactconnectivitymatrix_connmatrix.tsv", matrix)
    (lesion,) = load_derivatives(tmp_path).values()
    results = lesion.results["snm"]
    assert lesion.mask_img is not None
    assert results["disconnectionpct"].data.sum() == 8
    assert results["streamlines"].value == 5
    assert results["disconnectionpct_atlas-A100"].data.to_dict() == {"a": 1}
    assert results["intactconnectivitymatrix_atlas-A100_relmat"].data.tolist() == [[4]]


def test_folders_above_the_dataset_say_nothing(tmp_path):
    root = tmp_path / "sub-99" / "ses-9" / "out"
    write(root, "sub-01/anat/sub-01_label-L_desc-rd_stats.json", {"LesionVolumeML": 2.5})
    write(root, f"sub-01/anat/sub-01_space-{SPACE}_label-L_mask.nii.gz")
    assert list(load_derivatives(root)) == ["sub-01_label-L"]
    assert len(load_bids_dataset(root, subjects=["01"])) == 1
    with pytest.raises(BidsError):
        load_bids_dataset(root, subjects=["99"])


def test_a_folder_without_results_is_refused(tmp_path, derivatives):
    with pytest.raises(FileNotFoundError):
        load_derivatives(tmp_path / "elsewhere")
    with pytest.raises(BidsError, match="07"):
        load_derivatives(derivatives, subjects=["07"])
    with pytest.raises(BidsError, match="no results"):
        load_derivatives(derivatives / "logs")


def test_damaged_numbers_are_named(derivatives):
    path = derivatives / "sub-10" / "anat" / "sub-10_label-L_desc-rd_stats.json"
    path.write_text("{")
    with pytest.raises(ValidationError, match="sub-10_label-L_desc-rd_stats"):
        load_derivatives(derivatives)
