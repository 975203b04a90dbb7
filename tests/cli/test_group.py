import json
import sys

import numpy as np
import pytest
from group_data import SIDECAR, SPACE, write_map, write_participants, write_table

from lacuna_nipype.cli.group import plan_group
from lacuna_nipype.cli.main import main
from lacuna_nipype.cli.parser import parse_config
from lacuna_nipype.core.exceptions import LacunaError, ValidationError
from lacuna_nipype.io.derivatives import sidecar_path

SUBJECTS = [f"{n:02d}" for n in range(1, 9)]


@pytest.fixture
def study(tmp_path):
    """Eight participants with masks, functional and structural maps, and two tables."""
    rng = np.random.default_rng(8)
    out = tmp_path / "out"
    for number, subject in enumerate(SUBJECTS):
        lesion = rng.random((4, 4, 4)) < 0.5
        volume = float(lesion.sum())
        write_map(out, subject, lesion, desc="lesion", volume=volume)
        for quantity in ("t", "z", "valid", "p"):
            data = np.ones((4, 4, 4)) if quantity == "valid" else rng.normal(size=(4, 4, 4))
            write_map(out, subject, data, quantity=quantity, volume=volume)
        disconnected = rng.random((4, 4, 4)) * 100
        write_map(
            out, subject, disconnected, desc="snm", quantity="disconnectionpct", volume=volume
        )
        sidecar = {**SIDECAR, "LesionVolumeML": volume}
        for quantity, desc in (("z", "fnm"), ("damagepct", "rd"), ("t", "fnm")):
            row = (number, number**2, rng.normal())
            write_table(out, subject, row, quantity=quantity, desc=desc, sidecar=sidecar)
    rows = [f"sub-{s}\t{n * 1.5 % 4}\t{'ab'[n % 2]}" for n, s in enumerate(SUBJECTS)]
    rows[2] = "sub-03\tn/a\ta"
    bids = tmp_path / "bids"
    write_participants(bids, "participant_id\tscore\tside\n" + "\n".join(rows[:-1]) + "\n")
    return tmp_path


def configure(study, *options):
    words = [study / "bids", study / "out", "group", "-w", study / "work", *options]
    return parse_config([str(word) for word in words])


def names(entries):
    return sorted(entry["name"] for entry in entries)


def test_everything_is_put_together_by_default(study):
    plan = plan_group(configure(study))
    assert len(plan.tables) == 3
    assert names(plan.overlaps) == [
        f"space-{SPACE}_res-2_label-L_desc-lesion_mask",
        f"space-{SPACE}_res-2_label-L_stat-disconnectionpct_desc-snm_statmap",
        f"space-{SPACE}_res-2_label-L_stat-t_desc-fnm_statmap",
    ]
    assert plan.map_tests == plan.table_tests == []


def test_participants_without_a_kind_of_result_are_named_once(study):
    assert plan_group(configure(study)).notices == []
    for pattern in ("*damagepct*.tsv", "*label-L_desc-lesion_mask.nii.gz"):
        for path in (study / "out" / "sub-02").rglob(pattern):
            path.unlink()
    (notice,) = plan_group(configure(study)).notices
    assert notice.startswith("sub-02: ")
    assert "2 kinds" in notice


def test_tests_are_planned_for_the_right_quantities(study):
    plan = plan_group(configure(study, "--score", "score", "--group", "side"))
    assert names(plan.map_tests) == sorted(
        f"{model}_space-{SPACE}_res-2_label-L_{kind}"
        for model in ("score", "side")
        for kind in (
            "desc-lesion_mask",
            "stat-z_desc-fnm_statmap",
            "stat-disconnectionpct_desc-snm_statmap",
        )
    )
    assert len(plan.table_tests) == 4
    functional = next(
        one for one in plan.map_tests if "score_" in one["name"] and "fnm" in one["name"]
    )
    assert [path.name.split("_stat-")[1] for path in functional["valid_paths"]] == [
        "valid_desc-fnm_statmap.nii.gz"
    ] * 6
    assert functional["minimum"] == 6
    assert functional["metadata"]["ParticipantsLeftOut"] == {
        "sub-03": "no score",
        "sub-08": "not in the table of participants",
    }
    assert functional["design"].covariate_names == ("lesion_volume_ml",)
    sparse = next(one for one in plan.map_tests if "lesion_mask" in one["name"])
    assert sparse["minimum"] == 1
    contrast = next(one for one in plan.table_tests if one["name"].startswith("side"))
    assert contrast["metadata"]["Contrast"] == "b against a"
    assert any("left out of the test for score" in n and "sub-03" in n for n in plan.notices)


def test_masks_of_validity_count_only_when_all_have_one(study):
    next((study / "out" / "sub-01").rglob("*stat-valid*.nii.gz")).unlink()
    plan = plan_group(configure(study, "--score", "score", "--analysis", "fnm"))
    assert [one["valid_paths"] for one in plan.map_tests] == [[]]


def test_options_reach_the_tests(study):
    plan = plan_group(
        configure(
            study, "--score", "score", "--no-volume-covariate", "--min-overlap", "50%",
            "--permutations", "77", "--seed", "5", "--analysis", "lesion", "snm",
            "--overlap-threshold", "3",
        )
    )  # fmt: skip
    assert {one["metadata"]["Parameters"]["Permutations"] for one in plan.map_tests} == {77}
    assert {one["seed"] for one in plan.map_tests} == {5}
    assert {one["minimum"] for one in plan.map_tests} == {3}
    assert {one["design"].covariate_names for one in plan.map_tests} == {()}
    assert not any("fnm" in name for name in names(plan.map_tests))
    assert not plan.tables
    plan = plan_group(configure(study, "--overlap-threshold", "3", "--analysis", "fnm"))
    assert [one.rule.threshold for one in plan.overlaps[0]["made"]] == [3, -3]


def test_mixed_grids_are_refused_unless_chosen(study):
    write_map(study / "out", "01", np.ones((8, 8, 8)), res="1", desc="lesion")
    with pytest.raises(ValidationError, match="--space and --resolution"):
        plan_group(configure(study))
    plan_group(configure(study, "--resolution", "2"))


def test_maps_with_one_name_and_two_grids_are_refused(study):
    write_map(study / "out", "01", np.ones((5, 5, 5)), desc="lesion")
    with pytest.raises(LacunaError, match="different grids"):
        plan_group(configure(study))


def test_mixed_versions_are_refused_unless_chosen(study):
    old = {**SIDECAR, "Software": {"Name": "lacuna-nipype", "Version": "0.1"}}
    write_map(study / "out", "01", np.ones((4, 4, 4)), desc="lesion", sidecar=old)
    with pytest.raises(ValidationError, match="--allow-mixed"):
        plan_group(configure(study, "--analysis", "lesion"))
    chosen = ("--select", "Software.Version=0.2")
    plan = plan_group(configure(study, "--analysis", "lesion", *chosen))
    assert len(plan.overlaps[0]["paths"]) == 7
    plan_group(configure(study, "--analysis", "lesion", "--allow-mixed"))


@pytest.mark.parametrize("out", ["out", "new"])
def test_results_of_another_dataset_join_in(study, out):
    """A folder of Lacuna's, whose names say the same in other words."""
    for subject in ("21", "22"):
        stem = f"sub-{subject}_label-M_method-fnm_space-{SPACE}_desc-tmap"
        path = write_map(study / "lacuna", subject, np.full((4, 4, 4), 9.0))
        path.rename(path.with_name(f"{stem}.nii.gz"))
    (study / "bids" / "participants.tsv").unlink()
    words = [study / "bids", study / out, "group", "-d", f"old={study / 'lacuna'}"]
    plan = plan_group(parse_config([str(word) for word in words]))
    foreign = next(one for one in plan.overlaps if "res-2" not in one["name"])
    assert (len(plan.overlaps) == 1) == (out == "new")
    assert foreign["metadata"]["Sources"][0].startswith("bids:old:sub-21/")
    assert foreign["entities"] == {"template": SPACE, "label": "M"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--covariates", "age"], "--covariates needs"),
        (["--score", "a", "--group", "a"], "tested twice"),
        (["--score", "a", "--covariates", "a"], "is a covariate and is to be tested"),
        (["--score", "a", "--min-overlap", "200%"], "share from 0% to 100%"),
        (["--seed", "-1"], "--seed"),
        (["--permutations", "0"], "above 0"),
    ],
)
def test_parser_says_what_is_wrong(study, capsys, options, words):
    with pytest.raises(SystemExit):
        configure(study, *options)
    assert words in capsys.readouterr().err


def test_parser_keeps_levels_apart(study, capsys):
    words = [str(study / "bids"), str(study / "out"), "participant", "--analysis", "lesion"]
    with pytest.raises(SystemExit):
        parse_config(words)
    assert "group level" in capsys.readouterr().err
    for option in (
        ["--tfce"],
        ["--min-overlap", "5"],
        ["--no-volume-covariate"],
        ["--allow-mixed"],
    ):
        with pytest.raises(SystemExit):
            parse_config([*words[:3], *option])
        assert f"{option[0]} is an option of the group level" in capsys.readouterr().err


def test_record_of_a_run_is_json(study):
    json.dumps(configure(study, "--score", "score").to_dict())


def test_a_plugin_that_cannot_work_is_refused_before_anything_is_done(study, capsys, monkeypatch):
    words = [str(study / "bids"), str(study / "out"), "group", "-w", str(study / "work")]
    template = ("--plugin", "SLURM", "--plugin-args", '{"template": "nowhere.sh"}')
    assert main([*words, *template, "--dry-run"]) == 2
    assert "nowhere.sh" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(study))
    monkeypatch.setitem(sys.modules, "ipyparallel", None)
    for plugin in ("SLURM", "IPython"):
        assert main([*words, "--plugin", plugin]) == 127
        (sentence,) = capsys.readouterr().err.splitlines()
        assert f"--plugin {plugin} needs" in sentence
    assert not (study / "work").exists()
    assert not (study / "out" / "logs").exists()


def test_without_table_a_score_is_refused(study, capsys):
    (study / "bids" / "participants.tsv").unlink()
    words = [study / "bids", study / "out", "group", "-w", study / "work", "--score", "score"]
    assert main([str(word) for word in words]) == 2
    assert "--participants" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("split", [True, False], ids=["over sessions", "in one session"])
def test_sessions_are_named_where_together_they_would_do(tmp_path, split):
    """Two participants are too few for a test; four would do."""
    out, bids = tmp_path / "out", tmp_path / "bids"
    rows = [f"sub-{subject}\t{number**2}" for number, subject in enumerate(SUBJECTS)]
    write_participants(bids, "participant_id\tscore\n" + "\n".join(rows) + "\n")
    for number, subject in enumerate(SUBJECTS[: 4 if split else 2]):
        session = "02" if number > 1 else "01"
        write_table(out, subject, (number, number**2, 1), session=session)
    options = ("--score", "score", "--no-volume-covariate")
    with pytest.raises(ValidationError, match="too few") as error:
        plan_group(configure(tmp_path, *options))
    assert ("--pool-sessions" in str(error.value)) == split
    if split:
        assert plan_group(configure(tmp_path, *options, "--pool-sessions")).table_tests


def test_a_step_that_fails_leaves_no_earlier_result_in_its_place(study, capsys, monkeypatch):
    words = [study / "bids", study / "out", "group", "-w", study / "work", "--no-reports"]
    words = [str(word) for word in (*words, "--plugin", "Linear", "--nprocs", "1")]
    assert main(words) == 0
    folder = study / "out" / f"tpl-{SPACE}"
    before = {path for path in folder.rglob("*") if path.is_file()}

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr("lacuna_nipype.io.group_maps.write_overlaps", fail)
    write_map(study / "out", "01", np.full((4, 4, 4), 9.0), quantity="t", volume=1.0)
    capsys.readouterr()
    assert main(words) == 1
    assert "1 step failed, outputs missing: " in capsys.readouterr().err
    gone = before - {path for path in folder.rglob("*") if path.is_file()}
    assert gone
    assert all("_desc-fnm_" in path.name for path in gone)
    records = [json.loads(p.read_text()) for p in (study / "out" / "logs").glob("*/outcome.json")]
    (missing,) = (record["Group"]["Missing"] for record in records if record["Group"]["Errors"])
    images = {path for path in gone if path.suffix == ".gz"}
    assert {study / "out" / name for name in missing} == images
    assert {sidecar_path(path) for path in images} == gone - images
    # What fails and would have come out the same stays.
    left = before - gone
    assert main([*words, "-w", str(study / "elsewhere")]) == 1
    assert {path for path in folder.rglob("*") if path.is_file()} == left
