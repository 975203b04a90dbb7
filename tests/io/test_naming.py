"""Names of outputs: patterns, labels, and agreement with pybids."""

from __future__ import annotations

import re

import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.io.naming import (
    ENTITY_NAMES,
    build_path,
    load_patterns,
    parse_entities,
    sanitize_label,
    split_extension,
)

SUBJECT = {"subject": "01", "session": "02", "label": "acuteinfarct"}
SPACE = {"space": "MNI152NLin6Asym"}
SCHAEFER = {"atlas": "Schaefer2018", "segmentation": "7n", "scale": "100"}
STEM = "sub-01/ses-02/anat/sub-01_ses-02"
MNI = "space-MNI152NLin6Asym"
SCALE = "atlas-Schaefer2018_seg-7n_scale-100"

GROUP = {"template": "X", "res": "2", "label": "L"}
OUTPUTS = [
    (
        dict(SUBJECT | SPACE, res="2", desc="lesion", suffix="mask"),
        f"{STEM}_{MNI}_res-2_label-acuteinfarct_desc-lesion_mask.nii.gz",
    ),
    (
        dict(SUBJECT | SPACE, suffix="mask", extension=".json"),
        f"{STEM}_{MNI}_label-acuteinfarct_desc-lesion_mask.json",
    ),
    (
        dict(SUBJECT | SPACE, res="2", statistic="disconnectionpct", desc="snm", suffix="statmap"),
        f"{STEM}_{MNI}_res-2_label-acuteinfarct_stat-disconnectionpct_desc-snm_statmap.nii.gz",
    ),
    (
        dict(
            SPACE | {"subject": "01", "label": "L", "acquisition": "flair", "run": "02"},
            statistic="z",
            desc="fnm",
            suffix="statmap",
            extension=".json",
        ),
        f"sub-01/anat/sub-01_acq-flair_run-02_{MNI}_label-L_stat-z_desc-fnm_statmap.json",
    ),
    (
        dict(SUBJECT | SPACE | SCHAEFER, statistic="damagepct", desc="rd", suffix="parcelstats"),
        f"{STEM}_{MNI}_{SCALE}_label-acuteinfarct_stat-damagepct_desc-rd_parcelstats.tsv",
    ),
    (
        dict(
            SUBJECT | SPACE,
            atlas="AAL",
            statistic="streamlinesfull",
            desc="snm",
            suffix="relmat",
            extension=".json",
        ),
        f"{STEM}_{MNI}_atlas-AAL_label-acuteinfarct_stat-streamlinesfull_desc-snm_relmat.json",
    ),
    (
        dict(SUBJECT, desc="fnm", suffix="stats"),
        f"{STEM}_label-acuteinfarct_desc-fnm_stats.json",
    ),
    ({"subject": "01", "desc": "provenance"}, "sub-01/sub-01_desc-provenance.json"),
    (
        {"subject": "01", "session": "02", "desc": "provenance"},
        "sub-01/sub-01_ses-02_desc-provenance.json",
    ),
    (
        dict(
            SPACE | {"datatype": "phenotype", "session": "02", "label": "L", "atlas": "AAL"},
            statistic="score",
            desc="afnm",
            suffix="parcelstats",
        ),
        f"phenotype/group_ses-02_{MNI}_atlas-AAL_label-L_stat-score_desc-afnm_parcelstats.tsv",
    ),
    (
        dict(SCHAEFER, template="X", res="2", suffix="dseg"),
        f"tpl-X/tpl-X_{SCALE}_res-2_dseg.nii.gz",
    ),
    (
        {"template": "X", "res": "2", "label": "L", "desc": "overlap", "suffix": "probseg"},
        "tpl-X/anat/tpl-X_res-2_label-L_desc-overlap_probseg.nii.gz",
    ),
    (
        dict(GROUP, session="02", statistic="overlap", desc="snm", suffix="statmap"),
        "tpl-X/ses-02/anat/tpl-X_ses-02_res-2_label-L_stat-overlap_desc-snm_statmap.nii.gz",
    ),
    (
        dict(GROUP, model="iq", statistic="t", desc="snm", suffix="statmap"),
        "tpl-X/anat/tpl-X_res-2_label-L_model-iq_stat-t_desc-snm_statmap.nii.gz",
    ),
    (
        dict(GROUP, model="iq", statistic="t", desc="lesion", suffix="clusters"),
        "tpl-X/anat/tpl-X_res-2_label-L_model-iq_stat-t_desc-lesion_clusters.tsv",
    ),
    (
        dict(GROUP, atlas="AAL", model="iq", statistic="z", desc="fnm", suffix="parcelstats"),
        "tpl-X/anat/tpl-X_atlas-AAL_res-2_label-L_model-iq_stat-z_desc-fnm_parcelstats.tsv",
    ),
]


@pytest.mark.parametrize(("entities", "path"), OUTPUTS)
def test_build_path_of_every_output(entities, path):
    assert build_path(entities) == path


@pytest.mark.parametrize(("entities", "path"), OUTPUTS)
def test_pybids_builds_the_same_path(entities, path):
    from bids.layout.writing import build_path as pybids_build_path

    assert pybids_build_path(dict(entities), list(load_patterns()), strict=True) == path


@pytest.mark.parametrize(("entities", "path"), OUTPUTS)
def test_names_can_be_taken_apart_again(entities, path):
    parsed = {ENTITY_NAMES.get(k, k): v for k, v in parse_entities(path).items()}
    for name, value in entities.items():
        if name != "datatype":
            assert parsed[name] == value


def test_short_keys_and_absent_entities():
    entities = {"sub": "01", "ses": None, "label": "L", "desc": "snm", "suffix": "stats"}
    assert build_path(entities) == "sub-01/anat/sub-01_label-L_desc-snm_stats.json"


@pytest.mark.parametrize(
    "change",
    [
        {"statistic": None},  # mandatory
        {"space": None},
        {"subject": None},
        {"desc": "method"},  # not allowed
        {"suffix": "bold"},
        {"extension": ".nii"},
        {"datatype": "func"},
        {"echo": "1"},  # no place: two echoes would overwrite each other
        {"nonsense": "1"},
    ],
)
def test_build_path_refuses_what_does_not_fit(change):
    entities = dict(
        SUBJECT | SPACE, statistic="z", desc="fnm", suffix="statmap", extension=".nii.gz"
    )
    build_path(entities)
    with pytest.raises(ValidationError, match="label=acuteinfarct"):
        build_path({**entities, **change})


@pytest.mark.parametrize("value", ["", "a_b", "a-b", "../x", "a/b", "a b", "é"])
def test_build_path_refuses_unsafe_values(value):
    with pytest.raises(ValidationError, match="label"):
        build_path({"subject": "01", "label": value, "desc": "snm", "suffix": "stats"})


def test_build_path_refuses_an_entity_given_twice():
    with pytest.raises(ValidationError, match="subject"):
        build_path({"sub": "01", "subject": "02", "desc": "provenance"})


PATTERNS = ["{a}[_b-{b}][_c-{c<x|y>}]{d|dd}", "{a}_{e<q>|q}.[{f}]"]


@pytest.mark.parametrize(
    ("entities", "path"),
    [
        ({"a": "1"}, "1dd"),
        ({"a": "1", "b": "2", "d": "3"}, "1_b-23"),
        ({"a": "1", "c": "y"}, "1_c-ydd"),
        ({"a": "1", "e": "q"}, "1_q."),
        ({"a": "1", "f": "2"}, "1_q.2"),
        ({"a": "1", "c": "z"}, None),
        ({"b": "1"}, None),
        ({"a": "1", "b": "2", "f": "3"}, None),
    ],
)
def test_pattern_language(entities, path):
    if path is None:
        with pytest.raises(ValidationError):
            build_path(entities, PATTERNS)
    else:
        assert build_path(entities, PATTERNS) == path


def test_all_patterns_keep_the_order_of_entities():
    order = ["sub", "tpl", "ses", "acq", "run", "space", "atlas", "seg", "scale"]
    order += ["res", "label", "model", "stat", "desc"]
    for pattern in load_patterns():
        keys = re.findall(r"[_/]([a-z]+)-\{", "/" + pattern.rsplit("/", 1)[1])
        assert keys == sorted(keys, key=order.index)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("acuteinfarct", "acuteinfarct"),
        ("acute+infarct", "acute+infarct"),
        ("acute_infarct", "acuteInfarct"),
        ("acute infarct", "acuteInfarct"),
        ("Subject_001", "Subject001"),
        ("T1-lesion (left)", "T1LesionLeft"),
        ("Läsion", "Lasion"),
        ("_7 networks_", "7Networks"),
    ],
)
def test_sanitize_label(text, label):
    assert sanitize_label(text) == label
    assert sanitize_label(label) == label


@pytest.mark.parametrize("text", ["", "_-", "病変"])
def test_sanitize_label_refuses_empty(text):
    with pytest.raises(ValidationError):
        sanitize_label(text)


@pytest.mark.parametrize(
    ("name", "entities"),
    [
        (
            "sub-01_ses-1_space-S_label-a+b_mask.nii.gz",
            {"sub": "01", "ses": "1", "space": "S", "label": "a+b"}
            | {"suffix": "mask", "extension": ".nii.gz"},
        ),
        ("x/sub-02/sub-01_T1w.json", {"sub": "01", "suffix": "T1w", "extension": ".json"}),
        ("sub-01_desc-snm.nii", {"sub": "01", "desc": "snm", "extension": ".nii"}),
        ("sub-01_label-acute_infarct_roi", {"sub": "01", "label": "acute", "suffix": "roi"}),
        ("mask.nii.gz", {"suffix": "mask", "extension": ".nii.gz"}),
        (
            "sub-01_desc-v1.2_mask.nii.gz",
            {"sub": "01", "desc": "v1.2", "suffix": "mask", "extension": ".nii.gz"},
        ),
        ("Subject_001.nii.gz", {"suffix": "001", "extension": ".nii.gz"}),
    ],
)
def test_parse_entities(name, entities):
    assert parse_entities(name) == entities


def test_split_extension():
    assert split_extension("a/b_mask.nii.gz") == ("b_mask", ".nii.gz")
    assert split_extension("b_mask") == ("b_mask", "")


def test_pybids_reads_outputs_back(tmp_path):
    """With the shipped configuration the maps of one mask can be told apart by pybids."""
    from importlib.resources import files

    from bids.layout import BIDSLayout

    for stat in ("z", "t"):
        entities = {**SUBJECT, **SPACE, "statistic": stat, "desc": "fnm", "suffix": "statmap"}
        path = tmp_path / build_path(entities)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    config = str(files("lacuna_nipype.data") / "lacuna_bids_config.json")
    layout = BIDSLayout(tmp_path, validate=False, config=["bids", "derivatives", config])
    found = layout.get(statistic="z", desc="fnm", label="acuteinfarct", return_type="filename")
    assert len(found) == 1
    assert "stat-z" in found[0]
    known = set(layout.get_entities())
    assert known >= set(ENTITY_NAMES.values())
