"""The record of a run of the group level, and its page made again."""

import json
from datetime import datetime, timezone
from types import SimpleNamespace

import numpy as np
import pytest
from group_data import SPACE, write_map, write_participants

from lacuna_nipype.cli.group import plan_group
from lacuna_nipype.cli.group_report import GroupReporter
from lacuna_nipype.cli.main import main
from lacuna_nipype.cli.parser import parse_config
from lacuna_nipype.execution.runner import Failure, RunOutcome
from lacuna_nipype.reports import group

RUN = "20260102T000000-01234567"
STARTED = datetime(2026, 1, 2, tzinfo=timezone.utc)


@pytest.fixture
def study(tmp_path):
    """Five participants with lesion masks, four with a score."""
    rng = np.random.default_rng(1)
    for number in range(1, 6):
        mask = rng.random((4, 4, 4)) < 0.5
        write_map(tmp_path / "out", f"0{number}", mask, desc="lesion", volume=float(mask.sum()))
    rows = ["participant_id\tscore\tage", "01\t1\t30", "sub-02\t2.5\t40", "sub-03\tn/a\t50",
            "sub-04\t7\t60", "sub-05\t3\t70"]  # fmt: skip
    write_participants(tmp_path / "bids", "\n".join(rows) + "\n")
    return tmp_path


def words(study, *options):
    given = (study / "bids", study / "out", "group", "-w", study / "work", *options)
    return [str(word) for word in given]


def reporter(study, *options):
    argv = words(study, *options)
    config = parse_config(argv)
    return GroupReporter(config, plan_group(config), RUN, STARTED, argv)


def recorded(study):
    return json.loads((study / "out" / "logs" / RUN / "outcome.json").read_text())


def test_the_record_says_what_was_asked_and_from_whom(study):
    made = reporter(study, "--score", "score", "--participants-columns", "age")
    made.begin([study / "out" / "tpl-x" / "a.nii.gz"])
    record = recorded(study)
    assert record["Ended"] is None
    assert record["CommandLine"].endswith("--score score --participants-columns age")
    own = record["Group"]
    assert own["Results"] == ["tpl-x/a.nii.gz"]
    assert own["Datasets"] == [str(study / "out")]
    assert own["Columns"]["score"] == {
        "sub-01": "1", "sub-02": "2.5", "sub-03": "n/a", "sub-04": "7", "sub-05": "3",
    }  # fmt: skip
    assert list(own["Columns"]["age"].values()) == ["30", "40", "50", "60", "70"]
    assert any("sub-03" in text for text in own["Warnings"])
    assert own["Missing"] == []


def test_a_failed_step_is_told_in_words(study, monkeypatch):
    monkeypatch.setattr(group, "write_group_report", lambda *a, **k: SimpleNamespace(
        path="group.html", problems=("one problem",)))  # fmt: skip
    made = reporter(study, "--score", "score")
    name = f"score_space_{SPACE}_res_2_label_L_desc_lesion_mask"
    log = study / "out" / "logs" / RUN
    failures = (
        Failure(f"group_wf.associate_{name}", "no space left.", log / "crash-1.txt"),
        Failure("group_wf.other", "killed", None),
    )
    problems = made.end([study / "out" / "tpl-x"], RunOutcome({}, failures, "the plugin died"))
    assert problems == ("one problem",)
    own = recorded(study)["Group"]
    failed = f"The test of score_space-{SPACE}_res-2_label-L_desc-lesion_mask failed"
    assert own["Errors"] == [
        f"{failed}: no space left. Details: logs/{RUN}/crash-1.txt.",
        "The step other failed: killed.",
        "The run ended early: the plugin died",
    ]
    assert own["Missing"] == ["tpl-x"]
    assert recorded(study)["Ended"] is not None


def test_a_page_that_cannot_be_written_does_not_hide_the_results(study):
    (study / "out" / "group.html").mkdir()
    made = reporter(study)
    (problem,) = made.end([], RunOutcome({}, (), None))
    assert "group.html" in problem


def test_only_reports_of_a_folder_without_a_group(study, capsys):
    assert main(words(study, "--reports-only")) == 2
    (last,) = capsys.readouterr().err.splitlines()
    assert last.startswith(f"lacuna-nipype: {study / 'out'} holds no results of a group; run")
    assert not (study / "out" / "group.html").exists()
    assert not (study / "work").exists()


def test_a_dry_run_writes_no_page(study, capsys):
    reporter(study).begin([])
    before = sorted((study / "out").rglob("*"))
    assert main(words(study, "--reports-only", "--dry-run")) == 0
    assert main(words(study, "--dry-run")) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert sorted((study / "out").rglob("*")) == before


def test_a_damaged_result_is_a_sentence_and_an_exit_code(study, capsys):
    path = study / "out" / f"tpl-{SPACE}" / "anat" / f"tpl-{SPACE}_stat-count_desc-lesion_statmap"
    path.parent.mkdir(parents=True)
    path.with_name(f"{path.name}.nii.gz").write_bytes(b"not this")
    assert main(words(study, "--reports-only")) == 1
    seen = capsys.readouterr()
    assert "Report: " in seen.out
    (last,) = seen.err.splitlines()
    assert last.startswith("lacuna-nipype: The report is incomplete (1 in all); the first: ")
    assert f"{path.name}.nii.gz is damaged" in last
