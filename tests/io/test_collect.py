"""Which files count as lesion masks, and what is said when none or too many do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from lacuna_nipype.core.exceptions import BidsError, ValidationError
from lacuna_nipype.io.collect import (
    collect_masks,
    read_bids_filter_file,
    single_mask_record,
)
from lacuna_nipype.io.naming import build_path

MNI = "MNI152NLin6Asym"


def make(root, *names, description=None, sidecars=None):
    """Write a dataset: names such as ``sub-01_ses-02_label-L_mask.nii.gz`` go where they belong.

    A name with a slash is a path below the root. ``sidecars`` maps names to JSON contents.
    """
    sidecars = sidecars or {}
    root.mkdir(parents=True, exist_ok=True)
    for name in [*names, *sidecars]:
        if "/" in name:
            path = root / name
        else:
            folders = [chunk for chunk in name.split("_") if chunk[:4] in ("sub-", "ses-")]
            path = root.joinpath(*folders, "anat", name) if folders else root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(sidecars.get(name, {})))
    if description is not None:
        (root / "dataset_description.json").write_text(json.dumps(description))
    return root


def keys(collection):
    return [record.key for record in collection.records]


def names(collection):
    return [record.path.name for record in collection.records]


# --- the naming schemes of public data ------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "description", "key", "space"),
    [
        pytest.param(
            f"sub-01/ses-01/anat/sub-01_ses-01_space-{MNI}_label-acuteinfarct_mask.nii.gz",
            {"Name": "x", "DatasetType": "derivative", "GeneratedBy": [{"Name": "Lacuna"}]},
            "sub-01_ses-01_label-acuteinfarct",
            MNI,
            id="tutorial",
        ),
        pytest.param(
            "sub-r001s001/ses-1/anat/"
            "sub-r001s001_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz",
            {"Name": "ATLAS", "BIDSVersion": "1.6.0"},
            "sub-r001s001_ses-1_label-L",
            "MNI152NLin2009aSym",
            id="atlas2",
        ),
        pytest.param(
            "sub-1/dwi/sub-1_space-TRACE_desc-lesionAcute_mask.nii.gz",
            None,
            "sub-1_label-lesionAcute",
            "TRACE",
            id="soop",
        ),
        pytest.param(
            "sub-01/anat/sub-01_label-lesion_roi.nii.gz", None, "sub-01_label-lesion", None
        ),
        pytest.param("sub-01/anat/sub-01_roi.nii", None, "sub-01_label-L", None),
        pytest.param(
            "sub-01/anat/sub-01_desc-lesion_mask.nii.gz", None, "sub-01_label-lesion", None
        ),
        pytest.param("sub-01_label-L_mask.nii.gz", None, "sub-01_label-L", None, id="flat"),
        pytest.param(
            "sub-01/ses-2/masks/lesion_label-L_mask.nii.gz",
            None,
            "sub-01_ses-2_label-L",
            None,
            id="folders-name-the-participant",
        ),
    ],
)
def test_public_names(tmp_path, path, description, key, space):
    target = tmp_path / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.touch()
    make(tmp_path, description=description)
    (record,) = collect_masks(tmp_path).records
    assert record.key == key
    assert record.path == target
    assert record.space == space
    assert record.space_source == ("entity" if space else "")
    assert (record.dataset, record.root) == ("raw", tmp_path)


def test_soop_has_two_lesions_per_participant(tmp_path):
    """As published: a raw dataset whose masks are in derivatives, in the folder dwi."""
    make(tmp_path, "sub-1_T1w.nii.gz", description={"Name": "SOOP", "BIDSVersion": "1.8.0"})
    for desc in ("lesionAcute", "lesionChronic"):
        name = f"derivatives/lesion_masks/sub-1/dwi/sub-1_space-TRACE_desc-{desc}_mask.nii.gz"
        make(tmp_path, name)
    collection = collect_masks(tmp_path)
    assert keys(collection) == ["sub-1_label-lesionAcute", "sub-1_label-lesionChronic"]
    assert {record.dataset for record in collection.records} == {"lesion_masks"}
    assert any("lesion_masks" in notice for notice in collection.notices)


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_desc-brain_mask.nii.gz",
        "sub-01_label-brain_mask.nii.gz",
        "sub-01_label-head_mask.nii.gz",
        "sub-01_label-GM_mask.nii.gz",
        "sub-01_label-wm_mask.nii.gz",
        "sub-01_label-CSF_mask.nii.gz",
        "sub-01_label-BG_roi.nii.gz",
        "sub-01_label-L_desc-brain_mask.nii.gz",
        "sub-01_desc-brain_roi.nii.gz",
    ],
)
@pytest.mark.parametrize("pattern", [None, "*"])
def test_brain_and_tissue_masks_are_never_lesions(tmp_path, name, pattern):
    make(tmp_path, name, "sub-01_label-lesion_roi.nii.gz")
    collection = collect_masks(tmp_path, pattern=pattern)
    assert names(collection) == ["sub-01_label-lesion_roi.nii.gz"]
    assert not collection.notices


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_T1w.nii.gz",
        "sub-01_label-GM_probseg.nii.gz",
        "sub-01_label-L_probseg.nii.gz",
        "sub-01_desc-aseg_dseg.nii.gz",
        "sub-01_label-L_mask.json",
        "sub-01_label-L_mask.nii.gz.part",
        "sub-01/func/sub-01_task-rest_label-L_mask.nii.gz",
        "sub-01/figures/sub-01_label-L_mask.nii.gz",
        "sub-01/.hidden/sub-01_label-L_mask.nii.gz",
        "sourcedata/sub-01/anat/sub-01_label-L_mask.nii.gz",
        "code/sub-01_label-L_mask.nii.gz",
        "work/sub-01/anat/sub-01_label-L_mask.nii.gz",
    ],
)
def test_other_files_are_not_masks(tmp_path, name):
    make(tmp_path, name, "sub-02_label-L_mask.nii.gz")
    assert keys(collect_masks(tmp_path)) == ["sub-02_label-L"]


def test_masks_that_may_be_lesions_are_not_dropped_in_silence(tmp_path):
    make(tmp_path, "sub-01_label-L_mask.nii.gz", "sub-02_desc-tumor_mask.nii.gz")
    collection = collect_masks(tmp_path)
    assert keys(collection) == ["sub-01_label-L"]
    assert any("sub-02_desc-tumor_mask" in notice for notice in collection.notices)
    assert any("sub-02" in notice and "No lesion mask" in notice for notice in collection.notices)


# --- one output per mask --------------------------------------------------------------------


def test_several_sessions_labels_and_runs(tmp_path):
    make(
        tmp_path,
        "sub-02_ses-02_label-a+b_mask.nii.gz",
        "sub-02_ses-01_label-L_mask.nii",
        "sub-02_ses-01_label-R_mask.nii.gz",
        "sub-01_acq-flair_run-02_label-L_mask.nii.gz",
        "sub-01_acq-flair_run-01_label-L_mask.nii.gz",
        "sub-01_acq-T1_run-01_label-L_mask.nii.gz",
    )
    records = collect_masks(tmp_path).records
    assert [record.key for record in records] == [
        "sub-01_acq-T1_run-01_label-L",
        "sub-01_acq-flair_run-01_label-L",
        "sub-01_acq-flair_run-02_label-L",
        "sub-02_ses-01_label-L",
        "sub-02_ses-01_label-R",
        "sub-02_ses-02_label-a+b",
    ]
    paths = {build_path({**r.entities, "desc": "rd", "suffix": "stats"}) for r in records}
    assert len(paths) == len(records)
    assert "sub-01/anat/sub-01_acq-flair_run-02_label-L_desc-rd_stats.json" in paths
    assert len({hash(record) for record in records}) == len(records)


def test_labels_are_cleaned(tmp_path):
    make(tmp_path, "sub-01_label-acute-infarct_mask.nii.gz")
    assert keys(collect_masks(tmp_path)) == ["sub-01_label-acuteInfarct"]


@pytest.mark.parametrize(
    "pair",
    [
        ("sub-01_label-L_desc-a_mask.nii.gz", "sub-01_label-L_desc-b_mask.nii.gz"),
        ("sub-01_space-T1w_label-L_mask.nii.gz", f"sub-01_space-{MNI}_label-L_mask.nii.gz"),
        ("sub-01_label-L_mask.nii.gz", "sub-01_label-L_roi.nii.gz"),
        ("sub-01_label-L_mask.nii.gz", "sub-01/dwi/sub-01_label-L_mask.nii.gz"),
        ("sub-01_label-a-b_mask.nii.gz", "sub-01_label-aB_mask.nii.gz"),
    ],
)
def test_masks_with_the_same_output_names(tmp_path, pair):
    make(tmp_path, *pair)
    with pytest.raises(BidsError) as caught:
        collect_masks(tmp_path)
    assert all(name.split("/")[-1] in str(caught.value) for name in pair)
    assert "\n" not in str(caught.value)


def test_a_pattern_resolves_equal_names(tmp_path):
    make(
        tmp_path,
        "sub-01_space-T1w_label-L_mask.nii.gz",
        f"sub-01_space-{MNI}_label-L_mask.nii.gz",
    )
    (record,) = collect_masks(tmp_path, pattern=f"*space-{MNI}*").records
    assert record.space == MNI


def test_compressed_and_uncompressed_twins(tmp_path):
    make(tmp_path, "sub-01_label-L_mask.nii.gz", "sub-01_label-L_mask.nii")
    with pytest.raises(BidsError, match=r"sub-01_label-L_mask\.nii\.gz"):
        collect_masks(tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "sub-01/anat/sub-02_label-L_mask.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-2_label-L_mask.nii.gz",
    ],
)
def test_name_and_folder_that_contradict(tmp_path, path):
    make(tmp_path, path)
    with pytest.raises(BidsError, match=path.rsplit("/", 1)[1]):
        collect_masks(tmp_path)


def test_participant_labels_that_cannot_be_written_again(tmp_path):
    make(tmp_path, "sub-pat-1/anat/sub-pat-1_label-L_mask.nii.gz")
    with pytest.raises(BidsError, match="pat-1"):
        collect_masks(tmp_path)


def test_entities_in_the_path_of_the_dataset_are_not_the_masks(tmp_path):
    root = tmp_path / ".cache" / "sub-99_ses-9" / "label-GM_space-X_desc-brain"
    make(root, "sub-01_desc-lesion_mask.nii.gz")
    (record,) = collect_masks(root, bids_filters={"session": None, "label": None}).records
    assert record.key == "sub-01_label-lesion"
    assert record.space is None


# --- participants and sessions --------------------------------------------------------------


@pytest.fixture
def cohort(tmp_path):
    return make(
        tmp_path / "study",
        "sub-01_ses-01_label-L_mask.nii.gz",
        "sub-01_ses-02_label-L_mask.nii.gz",
        "sub-01_ses-03_label-L_mask.nii.gz",
        "sub-010_ses-01_label-L_mask.nii.gz",
        "sub-02_ses-02_label-L_mask.nii.gz",
        "sub-03_ses-04_T1w.nii.gz",
    )


@pytest.mark.parametrize("label", ["01", "sub-01", ["sub-01"], ["01", "sub-01"]])
def test_participant_label(cohort, label):
    records = collect_masks(cohort, participant_label=label).records
    assert {record.subject for record in records} == {"01"}  # and never 010
    assert len(records) == 3


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        (["01"], ["01", "01"]),
        (["ses-01", "02"], ["01", "01", "02", "02"]),
        (["01", "02", "ses-03"], ["01", "01", "02", "02", "03"]),
    ],
)
def test_session_labels_filter_whatever_their_number(cohort, sessions, expected):
    collection = collect_masks(cohort, session_label=sessions)
    assert sorted(record.session for record in collection.records) == expected


def test_masks_without_session_are_out_when_sessions_are_named(cohort):
    make(cohort, "sub-04_label-L_mask.nii.gz")
    records = collect_masks(cohort, session_label=["01"]).records
    assert {record.session for record in records} == {"01"}


def test_unknown_participant(cohort):
    with pytest.raises(BidsError, match=r"sub-1\b.*sub-01"):
        collect_masks(cohort, participant_label=["02", "1"])
    with pytest.raises(BidsError, match="sub-xyz"):
        collect_masks(cohort, participant_label="xyz")


def test_unknown_session(cohort):
    with pytest.raises(BidsError, match=r"ses-1\b.*ses-01"):
        collect_masks(cohort, session_label=["1", "02"])


def test_known_session_without_mask_is_no_unknown_session(cohort):
    with pytest.raises(BidsError, match="No lesion mask"):
        collect_masks(cohort, session_label="04")


def test_named_participant_without_mask_does_not_stop_the_others(cohort):
    collection = collect_masks(cohort, participant_label=["02", "03"])
    assert keys(collection) == ["sub-02_ses-02_label-L"]
    (notice,) = collection.notices
    assert "sub-03" in notice


# --- pattern and filters --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*desc-tumor*", ["sub-02_desc-tumor_mask.nii.gz"]),
        ("sub-03_mask", ["sub-03_mask.nii.gz"]),
        ("sub-03_mask.nii.gz", ["sub-03_mask.nii.gz"]),
        ("*label-L_mask", ["sub-01_label-L_mask.nii.gz"]),
        (
            "*.nii.gz",
            [
                "sub-03_mask.nii.gz",
                "sub-01_label-L_mask.nii.gz",
                "sub-02_desc-tumor_mask.nii.gz",
            ],
        ),
    ],
)
def test_pattern(tmp_path, pattern, found):
    make(
        tmp_path,
        "sub-01_label-L_mask.nii.gz",
        "sub-02_desc-tumor_mask.nii.gz",
        "sub-03_mask.nii.gz",
        "sub-03_desc-brain_mask.nii.gz",
        "sub-03_T1w.nii.gz",
    )
    assert sorted(names(collect_masks(tmp_path, pattern=pattern))) == sorted(found)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"desc": "tumor"}, {"sub-02_desc-tumor_mask.nii"}),
        ({"label": None, "desc": None}, {"sub-03_mask.nii.gz"}),
        ({"label": "*"}, {"sub-01_run-01_label-L_mask.nii.gz", "sub-01_label-R_mask.nii.gz"}),
        ({"label": ["R", "X"]}, {"sub-01_label-R_mask.nii.gz"}),
        ({"label": ["R", None]}, None),
        ({"run": 1}, {"sub-01_run-01_label-L_mask.nii.gz"}),
        ({"run": "01"}, {"sub-01_run-01_label-L_mask.nii.gz"}),
        ({"subject": "sub-01", "run": None}, {"sub-01_label-R_mask.nii.gz"}),
        ({"suffix": "lesion"}, {"sub-04_lesion.nii.gz"}),
        ({"extension": "nii", "desc": "*"}, {"sub-02_desc-tumor_mask.nii"}),
        ({"datatype": "func"}, {"sub-05_task-rest_label-L_mask.nii.gz"}),
        # A session says nothing about what a mask shows, so the usual rule stands.
        (
            {"ses": None},
            {"sub-01_run-01_label-L_mask.nii.gz", "sub-01_label-R_mask.nii.gz"},
        ),
    ],
)
def test_filters(tmp_path, filters, found):
    make(
        tmp_path,
        "sub-01_run-01_label-L_mask.nii.gz",
        "sub-01_label-R_mask.nii.gz",
        "sub-02_desc-tumor_mask.nii",
        "sub-02_desc-brain_mask.nii",
        "sub-03_mask.nii.gz",
        "sub-04_lesion.nii.gz",
        "sub-05/func/sub-05_task-rest_label-L_mask.nii.gz",
    )
    result = set(names(collect_masks(tmp_path, bids_filters=filters)))
    if found is None:
        found = {
            "sub-01_label-R_mask.nii.gz",
            "sub-02_desc-tumor_mask.nii",
            "sub-03_mask.nii.gz",
        }
    assert result == found


@pytest.mark.parametrize("filters", [{"lable": "L"}, {"label": {"a": 1}}, {"label": True}])
def test_wrong_filters(tmp_path, filters):
    make(tmp_path, "sub-01_label-L_mask.nii.gz")
    with pytest.raises(ValidationError, match=next(iter(filters))):
        collect_masks(tmp_path, bids_filters=filters)


def test_filter_file(tmp_path):
    path = tmp_path / "filter.json"
    path.write_text(json.dumps({"t1w": {"what": "ever"}, "lesion": {"desc": None, "run": 1}}))
    assert read_bids_filter_file(path) == {"desc": None, "run": 1}
    path.write_text(json.dumps({"bold": {"task": "rest"}}))
    assert read_bids_filter_file(path) == {}


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"lesion": []}', '{"lesion": {"lable": "L"}}', '{"Lesions": {}}', "\x00"],
)
def test_wrong_filter_file(tmp_path, text):
    path = tmp_path / "filter.json"
    path.write_text(text)
    with pytest.raises(ValidationError, match=r"filter\.json") as caught:
        read_bids_filter_file(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError, match="absent"):
        read_bids_filter_file(tmp_path / "absent.json")


# --- datasets -------------------------------------------------------------------------------


def test_named_derivatives_win_over_the_dataset(tmp_path):
    raw = make(tmp_path / "raw", "sub-01_label-L_mask.nii.gz", "sub-02_label-L_mask.nii.gz")
    other = make(tmp_path / "other", "sub-01_label-L_mask.nii.gz")
    collection = collect_masks(raw, derivatives={"manual": other})
    assert [record.dataset for record in collection.records] == ["manual", "raw"]
    assert collection.records[0].root == other
    assert any("manual" in notice for notice in collection.notices)


def test_the_same_mask_in_two_derivatives(tmp_path):
    raw = make(tmp_path / "raw", "sub-01_T1w.nii.gz")
    one = make(tmp_path / "one", "sub-01_label-L_mask.nii.gz")
    two = make(tmp_path / "two", "sub-01_label-L_mask.nii.gz")
    with pytest.raises(BidsError) as caught:
        collect_masks(raw, derivatives={"one": one, "two": two})
    assert str(one) in str(caught.value)
    assert str(two) in str(caught.value)


def test_own_derivatives_are_searched_only_when_nothing_else_has_a_mask(tmp_path):
    make(tmp_path, "sub-01_label-L_mask.nii.gz")
    make(tmp_path / "derivatives" / "seg", "sub-02_label-L_mask.nii.gz")
    assert keys(collect_masks(tmp_path)) == ["sub-01_label-L"]


def test_a_participant_known_only_to_a_derivative(tmp_path):
    make(tmp_path, "sub-01_T1w.nii.gz")
    make(tmp_path / "derivatives" / "seg", "sub-02_label-L_mask.nii.gz")
    assert keys(collect_masks(tmp_path, participant_label="02")) == ["sub-02_label-L"]


OWN = {"Name": "x", "DatasetType": "derivative", "GeneratedBy": [{"Name": "lacuna-nipype"}]}


def test_own_output_is_not_found_as_lesions(tmp_path):
    make(tmp_path, "sub-01_T1w.nii.gz")
    make(tmp_path / "derivatives" / "seg", "sub-01_label-L_mask.nii.gz")
    own = make(
        tmp_path / "derivatives" / "whatever",
        "sub-01_space-X_label-L_desc-lesion_mask.nii.gz",
        description=OWN,
    )
    assert [r.dataset for r in collect_masks(tmp_path).records] == ["seg"]
    named = collect_masks(tmp_path, derivatives={"earlier": own})
    assert [r.dataset for r in named.records] == ["earlier"]


def test_own_output_as_the_dataset(tmp_path):
    make(tmp_path, "sub-01_label-L_mask.nii.gz", description=OWN)
    with pytest.raises(BidsError, match="--derivatives"):
        collect_masks(tmp_path)
    assert keys(collect_masks(tmp_path, derivatives={"x": tmp_path})) == ["sub-01_label-L"]


def test_output_and_work_folders_are_excluded(tmp_path):
    out = tmp_path / "derivatives" / "out"
    work = tmp_path / "sub-01" / "scratch"
    make(tmp_path, "sub-01_label-L_mask.nii.gz", "sub-01/scratch/sub-01_label-L_mask.nii.gz")
    assert keys(collect_masks(tmp_path, exclude=[out, work])) == ["sub-01_label-L"]
    # An output folder around the dataset, or equal to it, must not hide the dataset.
    for folder in (tmp_path, tmp_path.parent):
        assert keys(collect_masks(tmp_path, exclude=[folder, work])) == ["sub-01_label-L"]


def test_output_folder_within_derivatives_is_excluded(tmp_path):
    make(tmp_path, "sub-01_T1w.nii.gz")
    out = make(tmp_path / "derivatives" / "out", "sub-01_label-L_desc-lesion_mask.nii.gz")
    with pytest.raises(BidsError, match="No lesion mask"):
        collect_masks(tmp_path, exclude=[out])


@pytest.mark.parametrize("kind", ["raw", "derivative", None])
def test_type_of_the_dataset_does_not_matter(tmp_path, kind):
    """Not even a derivative without GeneratedBy, or a description that is no JSON."""
    make(tmp_path, "sub-01_label-L_mask.nii.gz")
    text = "{" if kind is None else json.dumps({"Name": "x", "DatasetType": kind})
    (tmp_path / "dataset_description.json").write_text(text)
    assert keys(collect_masks(tmp_path)) == ["sub-01_label-L"]


@pytest.mark.parametrize("description", [[], {"GeneratedBy": ["x"]}, {"GeneratedBy": "x"}])
def test_description_of_the_wrong_form(tmp_path, description):
    make(tmp_path, "sub-01_label-L_mask.nii.gz", description=description)
    with pytest.raises(BidsError, match="dataset_description"):
        collect_masks(tmp_path)


def test_description_that_is_nested_without_end(tmp_path):
    make(tmp_path, "sub-01_label-L_mask.nii.gz")
    (tmp_path / "dataset_description.json").write_text("[" * 100_000)
    with pytest.raises(BidsError, match="dataset_description"):
        collect_masks(tmp_path)


def test_dataset_that_is_no_folder(tmp_path):
    file = tmp_path / "x"
    file.touch()
    good = make(tmp_path / "good", "sub-01_label-L_mask.nii.gz")
    for path in (file, tmp_path / "absent"):
        with pytest.raises(BidsError, match=str(path)):
            collect_masks(path)
        with pytest.raises(BidsError, match="seg"):
            collect_masks(good, derivatives={"seg": path})


def test_relative_paths(tmp_path, monkeypatch):
    make(tmp_path / "study", "sub-01_label-L_mask.nii.gz")
    monkeypatch.chdir(tmp_path / "study" / "sub-01")
    (record,) = collect_masks("../../study").records
    assert record.path == tmp_path / "study" / "sub-01" / "anat" / "sub-01_label-L_mask.nii.gz"


def test_nothing_found_says_what_was_seen(tmp_path):
    make(
        tmp_path, "sub-01_T1w.nii.gz", "sub-01_desc-brain_mask.nii.gz", "sub-01_desc-x_mask.nii.gz"
    )
    with pytest.raises(BidsError) as caught:
        collect_masks(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path), "3 image files", "2 of them", "sub-01_desc-x_mask", "--pattern"):
        assert part in message


def test_empty_folder(tmp_path):
    make(tmp_path, "too/deep/sub-01/anat/sub-01_label-L_mask.nii.gz")
    with pytest.raises(BidsError, match=r"No lesion mask.*sub-<label>"):
        collect_masks(tmp_path)


# --- links ----------------------------------------------------------------------------------


def test_links_are_followed_and_kept(tmp_path):
    """As datalad stores files: the name is a link into a store of nameless content."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "abc123").touch()
    anat = tmp_path / "study" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    mask = anat / "sub-01_label-L_mask.nii.gz"
    mask.symlink_to(os.path.relpath(store / "abc123", anat))
    (tmp_path / "link").symlink_to(tmp_path / "study")
    make(tmp_path / "elsewhere", "sub-02/anat/sub-02_label-L_mask.nii.gz")
    (tmp_path / "study" / "sub-02").symlink_to(tmp_path / "elsewhere" / "sub-02")
    records = collect_masks(tmp_path / "link").records
    assert [record.key for record in records] == ["sub-01_label-L", "sub-02_label-L"]
    assert records[0].path == tmp_path / "link" / mask.relative_to(tmp_path / "study")


def test_content_that_was_never_fetched(tmp_path):
    make(tmp_path, "sub-01_label-L_mask.nii.gz", "sub-02_T1w.nii.gz")
    mask = tmp_path / "sub-02" / "anat" / "sub-02_label-L_mask.nii.gz"
    mask.symlink_to("../../.git/annex/objects/gone")
    with pytest.raises(BidsError, match=r"sub-02_label-L_mask.*datalad get"):
        collect_masks(tmp_path)
    assert keys(collect_masks(tmp_path, participant_label="01")) == ["sub-01_label-L"]
    with pytest.raises(BidsError, match="datalad get"):
        single_mask_record(mask)


# --- space and sidecars ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sidecar", "space"),
    [
        ({"Space": "MNI152_2mm"}, "MNI152_2mm"),
        (
            {"SpatialReference": f"https://x.org/tpl-{MNI}/tpl-{MNI}_res-02_T1w.nii.gz"},
            MNI,
        ),
        ({"SpatialReference": {"VolumeReference": f"bids:tf:{MNI}.nii.gz"}}, MNI),
        ({"SpatialReference": f"https://x.org/tpl-{MNI}_res-02_T1w.nii.gz"}, MNI),
        ({"SpatialReference": MNI}, MNI),
        ({"SpatialReference": "/usr/local/fsl/data/standard/MNI152_T1_2mm_brain.nii.gz"}, MNI),
        (
            {
                "SpatialReference": {
                    "VolumeReference": f"tpl-{MNI}_res-02_T1w.nii.gz",
                    "CIFTI_STRUCTURE_CORTEX_LEFT": "tpl-fsLR_hemi-L_den-32k_sphere.surf.gii",
                }
            },
            MNI,
        ),
        ({"SpatialReference": {"a": "tpl-fsLR_x", "b": f"tpl-{MNI}_x"}}, None),
        ({"SpatialReference": {"VolumeReference": 3}}, None),
        ({"SpatialReference": ["tpl-fsLR_x"]}, "fsLR"),
        ({"Space": "MNI152", "SpatialReference": f"tpl-{MNI}_x"}, MNI),
        ({"SpatialReference": "bids:raw:sub-01/anat/sub-01_T1w.nii.gz"}, None),
        ({"SpatialReference": "MNI152NLin2009cAsym or MNI152NLin6Asym"}, None),
        ({"Space": 3}, None),
        ({}, None),
    ],
)
def test_space_by_sidecar(tmp_path, sidecar, space):
    make(
        tmp_path,
        "sub-01_label-L_mask.nii.gz",
        sidecars={"sub-01_label-L_mask.json": sidecar},
    )
    (record,) = collect_masks(tmp_path).records
    assert record.space == space
    assert record.space_source == ("sidecar" if space else "")
    assert record.sidecar == sidecar
    assert ("space" in record.entities) == (space is not None)


def test_sidecars_are_inherited(tmp_path):
    make(
        tmp_path,
        "sub-01_ses-1_label-L_mask.nii.gz",
        sidecars={
            "mask.json": {"a": "root", "b": "root", "c": "root", "d": "root"},
            "label-L_mask.json": {"b": "label", "c": "label", "d": "label"},
            "label-R_mask.json": {"a": "not applicable"},
            "T1w.json": {"a": "not applicable"},
            "sub-01/sub-01_mask.json": {"c": "subject", "d": "subject"},
            "sub-01_ses-1_label-L_mask.json": {"d": "own"},
        },
    )
    (record,) = collect_masks(tmp_path).records
    assert record.sidecar == {"a": "root", "b": "label", "c": "subject", "d": "own"}


@pytest.mark.parametrize(
    "sidecar",
    [
        {"Space": "MNI152NLin2009cAsym"},
        {"SpatialReference": "tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz"},
        {"Space": MNI, "SpatialReference": "tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz"},
    ],
)
def test_name_and_sidecar_that_disagree(tmp_path, sidecar):
    name = f"sub-01_space-{MNI}_label-L_mask"
    make(tmp_path, f"{name}.nii.gz", sidecars={f"{name}.json": sidecar})
    make(tmp_path, "sub-02_label-L_mask.nii.gz")
    one, other = collect_masks(tmp_path).records
    assert (one.space, one.space_source, other.problem) == (None, "", "")
    for part in (name, MNI, "MNI152NLin2009cAsym", "--mask-space"):
        assert part in one.problem
    collection = collect_masks(tmp_path, mask_space="MNI152NLin2009cAsym")
    record = collection.records[0]
    assert (record.space, record.space_source) == ("MNI152NLin2009cAsym", "mask-space")
    assert record.problem == ""
    assert any(MNI in notice for notice in collection.notices)


def test_a_vague_sidecar_does_not_contradict(tmp_path):
    name = f"sub-01_space-{MNI}_label-L_mask"
    make(tmp_path, f"{name}.nii.gz", sidecars={f"{name}.json": {"Space": "MNI152"}})
    assert collect_masks(tmp_path).records[0].space == MNI


@pytest.mark.parametrize(
    ("entity", "sidecar", "settled"),
    [
        ("MNI152", "MNI152NLin2009cAsym", "MNI152NLin2009cAsym"),  # says more
        ("MNI152NLin6", "FSL", "MNI152NLin6"),  # two names of one space
        ("MNI152NLin2009aAsym", "MNI152NLin2009cAsym", "MNI152NLin2009aAsym"),  # one anatomy
        ("T1w", "t1w", "T1w"),
    ],
)
def test_name_and_sidecar_that_agree_in_other_words(tmp_path, entity, sidecar, settled):
    name = f"sub-01_space-{entity}_label-L_mask"
    make(tmp_path, f"{name}.nii.gz", sidecars={f"{name}.json": {"Space": sidecar}})
    (record,) = collect_masks(tmp_path).records
    assert (record.space, record.problem) == (settled, "")


def test_a_vague_space_is_not_contradicted_by_the_users(tmp_path):
    make(tmp_path, "sub-01_space-MNI152_label-L_mask.nii.gz")
    assert collect_masks(tmp_path, mask_space="MNI152NLin2009cAsym").notices == ()


def test_mask_space_that_says_the_same_needs_no_notice(tmp_path):
    make(tmp_path, f"sub-01_space-{MNI}_label-L_mask.nii.gz", "sub-02_label-L_mask.nii.gz")
    collection = collect_masks(tmp_path, mask_space=MNI)
    assert [record.space for record in collection.records] == [MNI, MNI]
    assert collection.notices == ()


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_unreadable_sidecar(tmp_path, text):
    make(tmp_path, "sub-01_label-L_mask.nii.gz")
    sidecar = tmp_path / "sub-01" / "anat" / "sub-01_label-L_mask.json"
    sidecar.write_bytes(text.encode("latin-1"))
    make(tmp_path, "sub-02_label-L_mask.nii.gz")
    bad, good = collect_masks(tmp_path).records
    assert str(sidecar) in bad.problem
    assert str(bad.path) in bad.problem
    assert good.problem == ""


def test_sidecars_of_other_masks_are_not_read(tmp_path):
    make(tmp_path, "sub-01_label-L_mask.nii.gz", "sub-02_label-L_mask.nii.gz")
    (tmp_path / "sub-02" / "anat" / "sub-02_label-L_mask.json").write_text("{")
    assert len(collect_masks(tmp_path, participant_label="01").records) == 1


# --- a single mask --------------------------------------------------------------------------


def test_single_mask_with_a_plain_name(tmp_path):
    path = tmp_path / "Subject_001.nii.gz"
    path.touch()
    (tmp_path / "Subject_001.json").write_text(json.dumps({"Space": MNI}))
    record = single_mask_record(path)
    assert record.key == "sub-Subject001_label-L"
    assert (record.space, record.space_source) == (MNI, "sidecar")
    assert single_mask_record(path, "T1w").space_source == "mask-space"


def test_single_mask_with_a_bids_name(tmp_path):
    make(tmp_path, f"sub-01_ses-2_space-{MNI}_desc-lesion_mask.nii.gz")
    path = next(tmp_path.rglob("*.nii.gz"))
    record = single_mask_record(path, None)
    assert record.key == "sub-01_ses-2_label-lesion"
    assert record.space == MNI
    assert record.root == tmp_path


@pytest.mark.parametrize("name", ["absent.nii.gz", "mask.mgz"])
def test_single_mask_that_is_none(tmp_path, name):
    (tmp_path / "mask.mgz").touch()
    with pytest.raises(ValidationError, match=name):
        single_mask_record(tmp_path / name)


# --- cost -----------------------------------------------------------------------------------


def test_a_thousand_participants(tmp_path):
    for number in range(1000):
        anat = tmp_path / f"sub-{number:04d}" / "anat"
        func = tmp_path / f"sub-{number:04d}" / "func"
        anat.mkdir(parents=True)
        func.mkdir()
        (anat / f"sub-{number:04d}_label-L_mask.nii.gz").touch()
        (anat / f"sub-{number:04d}_T1w.nii.gz").touch()
        (func / f"sub-{number:04d}_task-rest_bold.nii.gz").touch()
    start = time.process_time()
    assert len(collect_masks(tmp_path).records) == 1000
    everyone = time.process_time() - start
    start = time.process_time()
    assert len(collect_masks(tmp_path, participant_label=["0001", "0500"]).records) == 2
    two = time.process_time() - start
    assert everyone < 15  # 1.3 s where it was written; pybids' own defaults take 8
    assert two < everyone / 2  # the others' folders were not entered


def test_pybids_is_imported_only_to_search():
    code = (
        "import sys, lacuna_nipype.io.collect, lacuna_nipype.io.naming as n; n.load_patterns();"
        "sys.exit('bids' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
