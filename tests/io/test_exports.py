"""Containers written to files, and read back."""

import gzip
import json

import nibabel as nb
import numpy as np
import pandas as pd
import pytest

from lacuna_nipype.io.containers import (
    ConnectivityMatrix,
    ParcelData,
    ScalarMetric,
    SubjectData,
    Tractogram,
    VoxelMap,
)
from lacuna_nipype.io.exports import (
    batch_export_to_csv,
    batch_export_to_tsv,
    export_bids_derivatives,
    export_provenance_to_json,
    export_results_to_csv,
    export_results_to_json,
    export_results_to_tsv,
    save_nifti,
)
from lacuna_nipype.io.reading import load_derivatives
from lacuna_nipype.io.validation import validate_bids_derivatives

SPACE = "MNI152NLin6Asym"
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
ATLAS = "Demo_seg-7n_scale-100"


def image(data):
    return nb.Nifti1Image(np.asarray(data, np.float32), AFFINE)


@pytest.fixture
def mask():
    data = np.zeros((3, 4, 5))
    data[1, 2, 3] = 1
    return image(data)


@pytest.fixture
def lesion(mask, tmp_path):
    streamlines = tmp_path / "lesion.tck"
    nb.streamlines.save(
        nb.streamlines.Tractogram([np.zeros((2, 3), np.float32)], affine_to_rasmm=np.eye(4)),
        streamlines,
    )
    regions = pd.DataFrame({"index": [1, 2], "name": ["V1", "A1"], "z": [0.25, np.nan]})
    matrix = pd.DataFrame([[0, 7.5], [7.5, np.nan]], index=["V1", "A1"], columns=["V1", "A1"])
    return SubjectData(
        mask,
        SPACE,
        2.0,
        {"subject_id": "sub-01", "session_id": "ses-02", "mask_label": "acute"},
        {
            "fnm": {
                "z": VoxelMap(image(np.full((3, 4, 5), 1.5)), "z", SPACE, 2.0, {"Method": "x"}),
                "parcels": ParcelData(regions, "z", ATLAS),
                "N": ScalarMetric(np.int64(12), "N"),
                "Mean": ScalarMetric(float("nan"), "Mean"),
            },
            "snm": {
                "edges": ConnectivityMatrix(matrix, "streamlinesfull", ATLAS),
                "lines": Tractogram(streamlines),
                "Worst": ScalarMetric("V1", "Worst"),
            },
        },
        [{"RunID": "one"}],
    )


# --- images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_an_image_in_memory_is_saved(lesion, tmp_path, extension):
    path = save_nifti(lesion, tmp_path / "new" / f"mask{extension}")
    saved = nb.load(path)
    np.testing.assert_array_equal(saved.dataobj, lesion.mask_img.dataobj)
    np.testing.assert_array_equal(saved.affine, AFFINE)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == (extension == ".nii.gz")


@pytest.mark.parametrize("before", [".nii", ".nii.gz"])
@pytest.mark.parametrize("after", [".nii", ".nii.gz"])
def test_a_file_is_taken_over_as_it_is_stored(mask, tmp_path, before, after):
    source = tmp_path / f"source{before}"
    nb.save(mask, source)
    path = save_nifti(SubjectData(source), str(tmp_path / f"mask{after}"))
    contents = [
        gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes()
        for p in (source, path)
    ]
    assert contents[0] == contents[1]
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == (after == ".nii.gz")


def test_the_anatomical_image_on_request(mask, tmp_path):
    lesion = SubjectData(mask, anatomical_img=image(np.ones((2, 2, 2))))
    save_nifti(lesion, tmp_path / "a.nii.gz", save_anatomical=True)
    assert nb.load(tmp_path / "a_anatomical.nii.gz").shape == (2, 2, 2)
    save_nifti(lesion, tmp_path / "b.nii.gz")
    assert not (tmp_path / "b_anatomical.nii.gz").exists()
    with pytest.raises(ValueError, match="anatomical"):
        save_nifti(SubjectData(mask), tmp_path / "c.nii.gz", save_anatomical=True)
    assert not (tmp_path / "c.nii.gz").exists()


@pytest.mark.parametrize("name", ["mask.mgz", "mask", "mask.nii.bz2", "mask.gz"])
def test_other_formats_are_refused(lesion, tmp_path, name):
    with pytest.raises(ValueError, match=r"\.nii"):
        save_nifti(lesion, tmp_path / name)


def test_a_lesion_without_mask_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="no mask"):
        save_nifti(SubjectData(None), tmp_path / "mask.nii")


# --- BIDS derivatives -----------------------------------------------------------------------


def test_derivatives_come_back_as_they_went(lesion, tmp_path):
    folder = export_bids_derivatives(lesion, tmp_path / "out")
    assert folder == tmp_path / "out" / "sub-01"
    assert validate_bids_derivatives(tmp_path / "out") == {"errors": [], "warnings": []}
    (back,) = load_derivatives(tmp_path / "out").values()
    assert back.metadata == lesion.metadata
    assert (back.space, back.resolution) == (SPACE, 2.0)
    np.testing.assert_array_equal(back.mask_img.dataobj, lesion.mask_img.dataobj)
    assert back.mask_img.get_data_dtype() == np.uint8
    fnm, snm = back.results["fnm"], back.results["snm"]
    np.testing.assert_array_equal(fnm["z"].data, lesion.results["fnm"]["z"].data)
    assert fnm["z"].metadata["Method"] == "x"
    assert fnm["z"].metadata["Units"] == "1"
    table = fnm[f"z_atlas-{ATLAS}"]
    pd.testing.assert_frame_equal(table.table, lesion.results["fnm"]["parcels"].table)
    assert "Description" in table.metadata["z"]
    assert (fnm["N"].value, fnm["Mean"].value) == (12, None)
    edges = snm[f"streamlinesfull_atlas-{ATLAS}_relmat"]
    np.testing.assert_array_equal(edges.data, lesion.results["snm"]["edges"].data)
    assert len(list(snm["tractography"].load().streamlines)) == 1
    assert snm["Worst"].value == "V1"
    assert back.provenance == ({"RunID": "one"},)


def test_names_are_those_of_a_run(lesion, tmp_path):
    export_bids_derivatives(lesion, tmp_path / "out")
    stem = f"sub-01_ses-02_space-{SPACE}"
    names = {p.name for p in (tmp_path / "out" / "sub-01" / "ses-02" / "anat").iterdir()}
    assert {
        f"{stem}_res-2_label-acute_desc-lesion_mask.nii.gz",
        f"{stem}_res-2_label-acute_stat-z_desc-fnm_statmap.nii.gz",
        f"{stem}_atlas-{ATLAS}_label-acute_stat-z_desc-fnm_parcelstats.tsv",
        f"{stem}_label-acute_desc-snm_stats.json",
    } <= names
    assert not [name for name in names if name.startswith(".")]


def test_files_are_copied_from_a_dataset_to_another(lesion, tmp_path):
    export_bids_derivatives(lesion, tmp_path / "out")
    (back,) = load_derivatives(tmp_path / "out").values()
    export_bids_derivatives(back, tmp_path / "copy")

    def contents(root):
        return {
            path.relative_to(root): path.read_bytes()
            for path in root.glob("sub-*/**/*")
            if path.is_file()
        }

    assert contents(tmp_path / "copy") == contents(tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "gone"),
    [
        ("export_lesion_mask", "*_mask.*"),
        ("export_voxelmaps", "*_statmap.*"),
        ("export_parcel_data", "*_parcelstats.*"),
        ("export_connectivity", "*_relmat.*"),
        ("export_connectivity", "*_tractography.*"),
        ("export_scalars", "*_stats.json"),
        ("export_provenance", "*_desc-provenance.json"),
    ],
)
def test_what_is_not_asked_for_is_not_written(lesion, tmp_path, option, gone):
    export_bids_derivatives(lesion, tmp_path / "all")
    assert list((tmp_path / "all").rglob(gone))
    export_bids_derivatives(lesion, tmp_path / "less", **{option: False})
    assert not list((tmp_path / "less").rglob(gone))
    assert (tmp_path / "less" / "dataset_description.json").is_file()


def test_nothing_is_replaced_unasked(lesion, tmp_path):
    export_bids_derivatives(lesion, tmp_path, export_lesion_mask=False)
    with pytest.raises(FileExistsError, match="overwrite"):
        export_bids_derivatives(lesion, tmp_path)
    assert not list(tmp_path.rglob("*_mask.nii.gz"))
    export_bids_derivatives(lesion, tmp_path, overwrite=True)
    (back,) = load_derivatives(tmp_path).values()
    assert back.mask_img is not None
    assert len(back.provenance) == 1


def test_two_lesions_of_a_session_share_their_record(lesion, mask, tmp_path):
    other = SubjectData(
        mask, SPACE, None, {**lesion.metadata, "mask_label": "old"}, {}, [{"RunID": "two"}]
    )
    export_bids_derivatives(lesion, tmp_path)
    export_bids_derivatives(other, tmp_path)
    loaded = load_derivatives(tmp_path)
    assert list(loaded) == ["sub-01_ses-02_label-acute", "sub-01_ses-02_label-old"]
    record = ({"RunID": "one"}, {"RunID": "two"})
    assert all(found.provenance == record for found in loaded.values())


def test_a_description_that_is_there_stays(lesion, tmp_path):
    description = tmp_path / "dataset_description.json"
    description.write_text(json.dumps({"Name": "Mine"}))
    export_bids_derivatives(lesion, tmp_path)
    assert json.loads(description.read_text()) == {"Name": "Mine"}


def test_analyses_of_your_own(mask, tmp_path):
    results = {"My analysis": {"some score": VoxelMap(mask, "some score", SPACE)}}
    lesion = SubjectData(mask, SPACE, None, {"subject_id": "01"}, results)
    export_bids_derivatives(lesion, tmp_path)
    (back,) = load_derivatives(tmp_path).values()
    assert list(back.results["MyAnalysis"]) == ["someScore"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metadata": {}}, "subject_id"),
        ({"space": None}, "space"),
        ({"results": {"fnm": {"z": ParcelData(pd.DataFrame(), "z", "", SPACE)}}}, "atlas"),
        ({"mask_img": None}, "export_lesion_mask"),
        ({"mask_img": image(np.full((2, 2, 2), 0.5))}, "binary"),
        (
            {"results": {"fnm": {k: VoxelMap(image(np.ones((2, 2, 2))), "z") for k in "ab"}}},
            "Two results",
        ),
    ],
)
def test_what_cannot_be_named_is_refused(mask, tmp_path, changes, reason):
    fields = {"mask_img": mask, "space": SPACE, "metadata": {"subject_id": "01"}, **changes}
    with pytest.raises(ValueError, match=reason):
        export_bids_derivatives(SubjectData(**fields), tmp_path / "out")


# --- tables ---------------------------------------------------------------------------------


def test_one_row_per_lesion(lesion, mask, tmp_path):
    other = SubjectData(
        mask, SPACE, None, {"subject_id": "07"}, {"fnm": {"N": ScalarMetric(3, "N")}}
    )
    path = batch_export_to_csv([lesion, other], tmp_path / "new" / "table.csv")
    table = pd.read_csv(path, dtype={"subject_id": str})
    assert list(table.columns) == [
        *("subject_id", "session_id", "mask_label", "coordinate_space"),
        *("fnm.parcels.V1", "fnm.parcels.A1", "fnm.N", "fnm.Mean", "snm.Worst"),
    ]
    assert list(table["subject_id"]) == ["sub-01", "sub-07"]
    assert table["fnm.parcels.V1"].tolist()[0] == 0.25
    assert table["fnm.N"].tolist() == [12, 3]
    assert table["snm.Worst"][0] == "V1"
    missing = table.isna()
    assert missing["fnm.parcels.A1"].all()
    assert missing.loc[1, ["session_id", "mask_label", "fnm.parcels.V1", "snm.Worst"]].all()


def test_missing_values_are_written_out(lesion, tmp_path):
    csv = export_results_to_csv(lesion, tmp_path / "t.csv").read_text().splitlines()
    assert csv[1] == f"sub-01,ses-02,acute,{SPACE},0.25,NaN,12,NaN,V1"
    tsv = export_results_to_tsv(lesion, tmp_path / "t.tsv").read_text().splitlines()
    assert tsv[1].split("\t") == ["sub-01", "ses-02", "acute", SPACE,
                                  "0.25", "n/a", "12", "n/a", "V1"]  # fmt: skip


def test_one_analysis_without_metadata(lesion, tmp_path):
    path = batch_export_to_tsv([lesion], tmp_path / "t.tsv", "snm", include_metadata=False)
    assert path.read_text() == "snm.Worst\nV1\n"


@pytest.mark.parametrize(
    "export", [export_results_to_csv, export_results_to_tsv, export_results_to_json]
)
def test_what_is_not_there_cannot_be_exported(lesion, mask, tmp_path, export):
    with pytest.raises(ValueError, match=r"'rd'.*fnm, snm"):
        export(lesion, tmp_path / "table", "rd")
    with pytest.raises(ValueError, match="no results"):
        export(SubjectData(mask), tmp_path / "table")
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize("export", [batch_export_to_csv, batch_export_to_tsv])
def test_an_empty_list_cannot_be_exported(tmp_path, export):
    with pytest.raises(ValueError, match="empty"):
        export([], tmp_path / "table")


def test_maps_alone_make_no_row(mask, tmp_path):
    lesion = SubjectData(mask, results={"fnm": {"z": VoxelMap(mask, "z")}})
    with pytest.raises(ValueError, match="maps"):
        export_results_to_csv(lesion, tmp_path / "t.csv")


# --- JSON -----------------------------------------------------------------------------------


def read_strictly(path):
    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_results_as_json(lesion, tmp_path):
    content = read_strictly(export_results_to_json(lesion, tmp_path / "r.json"))
    assert set(content) == {"metadata", "results"}
    assert content["metadata"]["coordinate_space"] == SPACE
    fnm = content["results"]["fnm"]
    assert fnm["parcels"] == {"V1": 0.25, "A1": None}
    assert (fnm["N"], fnm["Mean"]) == (12, None)
    assert fnm["z"] == {"type": "VoxelMap", "file": None}
    assert content["results"]["snm"]["lines"]["file"].endswith("lesion.tck")


def test_parts_of_the_results_as_json(lesion, tmp_path):
    path = export_results_to_json(
        lesion, tmp_path / "r.json", "snm", False, include_provenance=True, indent=None
    )
    content = read_strictly(path)
    assert set(content) == {"results", "provenance"}
    assert set(content["results"]) == {"snm"}
    assert content["provenance"] == [{"RunID": "one"}]
    assert len(path.read_text().splitlines()) == 1


def test_provenance_as_json(lesion, tmp_path):
    path = export_provenance_to_json(lesion, tmp_path / "p.json", indent=4)
    assert read_strictly(path) == {"Runs": [{"RunID": "one"}]}
    assert path.read_text().splitlines()[1].startswith("    ")
    # What is written can be read again.
    assert SubjectData(None, provenance=path).provenance == ({"RunID": "one"},)
    with pytest.raises(ValueError, match="provenance"):
        export_provenance_to_json(SubjectData(None), tmp_path / "p.json")
