import pytest
from group_data import SIDECAR, table_file, write_map, write_result, write_table

from lacuna_nipype.core.exceptions import BidsError, ValidationError
from lacuna_nipype.io.group_results import (
    find_results,
    group_cohorts,
    parameter_set,
    parse_result,
    parse_selection,
    refuse_mixed_grids,
    settle_parameters,
)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "out"


def cohorts_of(root, **options):
    return group_cohorts(find_results([root]), **options)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "sub-1_label-a_method-snm_space-S_desc-disconnectionpct.nii.gz",
            {"desc": "snm", "statistic": "disconnectionpct", "suffix": "statmap", "space": "S"},
        ),
        (
            "sub-1_label-a_method-fnm_space-S_desc-tmap.nii.gz",
            {"desc": "fnm", "statistic": "t", "suffix": "statmap"},
        ),
        (
            "sub-1_label-a_method-damage_atlas-x_desc-damagepct_parcelstats.tsv",
            {"desc": "rd", "statistic": "damagepct", "atlas": "x"},
        ),
        ("sub-1_label-a_space-S_mask.nii.gz", {"desc": "lesion", "suffix": "mask"}),
        (
            "sub-Jürgen_label-a_stat-z_desc-fnm_statmap.nii.gz",
            {"subject": "Jürgen", "statistic": "z"},
        ),
    ],
)
def test_names_of_lacuna_mean_the_same(tmp_path, name, expected):
    result = parse_result(tmp_path / name, tmp_path)
    assert expected.items() <= result.entities.items()


@pytest.mark.parametrize(
    "name",
    [
        "sub-1_label-a_desc-snm_stats.json",
        "sub-1_desc-brain_mask.nii.gz",
        "sub-1_stat-x_desc-snm_relmat.tsv",
        "group_stat-z_desc-fnm_parcelstats.tsv",
        "sub-1_T1w.nii.gz",
        "sub-1_desc-snm_tractography.tck",
    ],
)
def test_other_files_are_no_results(tmp_path, name):
    assert parse_result(tmp_path / name, tmp_path) is None


def test_kinds_are_kept_apart_and_participants_sorted(root):
    for subject in ("10", "02"):
        write_table(root, subject, (1, 2, 3))
        write_table(root, subject, (1, 2, 3), session="01")
        write_table(root, subject, (1, 2, 3), quantity="r")
    write_table(root, "02", (1, 2, 3), label="M")
    found = cohorts_of(root)
    kinds = {
        (c.entities.get("session"), c.entities["label"], c.entities["statistic"]): c.participants
        for c in found
    }
    both = ("sub-02", "sub-10")
    assert kinds == {
        (None, "L", "z"): both,
        ("01", "L", "z"): both,
        (None, "L", "r"): both,
        (None, "M", "z"): ("sub-02",),
    }


def test_sessions_are_pooled_when_asked(root):
    write_table(root, "01", (1, 2, 3), session="02")
    write_table(root, "01", (1, 2, 3), session="01")
    write_table(root, "02", (1, 2, 3))
    (cohort,) = cohorts_of(root, pool_sessions=True)
    assert [file.entities.get("session") for file in cohort.files] == ["01", None]
    assert "session" not in cohort.entities


def test_filters_keep_participants_and_sessions(root):
    for subject in ("01", "02"):
        for session in ("a", "b"):
            write_table(root, subject, (1, 2, 3), session=session)
    found = find_results([root], participants=["02"], sessions=["b"])
    assert [(r.participant, r.entities["session"]) for r in found] == [("sub-02", "b")]


def test_folder_without_participants_is_refused(tmp_path):
    with pytest.raises(BidsError, match="participant level"):
        find_results([tmp_path])
    with pytest.raises(BidsError, match="does not exist"):
        find_results([tmp_path / "no"])


def test_two_files_of_one_kind_are_refused(tmp_path):
    for name in ("first", "second"):
        write_table(tmp_path / name, "01", (1, 2, 3))
    results = find_results([tmp_path / "first", tmp_path / "second"])
    with pytest.raises(BidsError, match="sub-01 has two results"):
        group_cohorts(results)


@pytest.mark.parametrize(
    "change",
    [
        {"Software": {"Version": "0.1"}},
        {"Connectome": {"Name": "norm", "Fingerprint": "sha256:2"}},
        {"Method": "Another."},
        {"PiniSelection": {"Percentile": 20.0, "VoxelsKept": 3}},
        {"Atlas": {"Name": "Toy", "Image": "other.nii.gz"}},
        {"GeneratedBy": [{"Name": "lacuna", "Version": "1"}]},
    ],
)
def test_results_made_in_two_ways_are_refused(root, change):
    write_table(root, "01", (1, 2, 3))
    write_table(root, "02", (1, 2, 3), sidecar={**SIDECAR, **change})
    (cohort,) = cohorts_of(root)
    with pytest.raises(ValidationError, match="--select"):
        settle_parameters(cohort)
    assert settle_parameters(cohort, allow_mixed=True) == cohort


def test_a_selection_resolves_a_mixture(root):
    write_table(root, "01", (1, 2, 3))
    write_table(root, "02", (1, 2, 3), sidecar={**SIDECAR, "Software": {"Version": "0.1"}})
    (cohort,) = cohorts_of(root)
    kept = settle_parameters(cohort, selection=parse_selection(["Software.Version=0.1"]))
    assert kept.participants == ("sub-02",)


def test_missing_sidecar_is_another_way(root):
    write_table(root, "01", (1, 2, 3))
    write_table(root, "02", (1, 2, 3)).with_suffix(".json").unlink()
    with pytest.raises(ValidationError, match="absent in 1"):
        settle_parameters(cohorts_of(root)[0])


def test_numbers_of_single_participants_make_no_mixture(root):
    write_table(root, "01", (1, 2, 3), sidecar={**SIDECAR, "LesionVolumeML": 1, "Sources": ["a"]})
    write_table(root, "02", (1, 2, 3), sidecar={**SIDECAR, "LesionVolumeML": 2, "Sources": ["b"]})
    (cohort,) = cohorts_of(root)
    assert settle_parameters(cohort) == cohort


def test_engines_of_disconnection_count_as_one_way():
    mrtrix, index = ({"Engine": name, "Method": name, "HitTest": "x"} for name in ("a", "b"))
    assert parameter_set(mrtrix) == parameter_set(index) == {"HitTest": "x"}


def test_damaged_sidecar_is_named(root):
    write_table(root, "01", (1, 2, 3)).with_suffix(".json").write_text("{")
    with pytest.raises(ValidationError, match=r"parcelstats\.json is no JSON"):
        settle_parameters(cohorts_of(root)[0])


@pytest.mark.parametrize("words", [["x"], ["=1"], ["a=1", "a=2"]])
def test_bad_selection_is_refused(words):
    with pytest.raises(ValidationError):
        parse_selection(words)


def test_maps_on_two_grids_are_refused_with_the_list(root):
    write_map(root, "01", [[[1]]])
    write_map(root, "02", [[[1]]], res="1")
    with pytest.raises(ValidationError, match=r"resolution 1: sub-02; .*resolution 2: sub-01"):
        refuse_mixed_grids(cohorts_of(root))


def test_maps_of_all_participants_on_two_grids_are_fine(root):
    for subject in ("01", "02"):
        for res in ("1", "2"):
            write_map(root, subject, [[[1]]], res=res)
    refuse_mixed_grids(cohorts_of(root))


def test_figures_and_temporary_files_are_left_alone(root):
    write_table(root, "01", (1, 2, 3))
    write_result(root / "sub-01" / "figures" / table_file(root, "01").name)
    (root / "sub-01" / "anat" / ".tmp-sub-01_stat-z_desc-fnm_parcelstats.tsv").write_text("")
    assert len(find_results([root])) == 1
