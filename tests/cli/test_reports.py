"""What a run records for the pages of its participants."""

import json
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest

from lacuna_nipype.cli import reports
from lacuna_nipype.execution.runner import Failure, RunOutcome
from lacuna_nipype.reports.results import read_outcomes

STARTED = datetime(2026, 1, 2, tzinfo=timezone.utc)
RUN = "20260102T000000-01234567"


@pytest.fixture
def inputs(monkeypatch):
    """Two participants with a lesion each, one with a refused and one with a skipped mask."""
    lesions = tuple(
        SimpleNamespace(
            record=SimpleNamespace(subject=subject, label="L", key=f"sub-{subject}_label-L"),
            warnings=(f"warning of {subject}",) if subject == "01" else (),
        )
        for subject in ("01", "02")
    )
    inspection = SimpleNamespace(
        lesions=lesions,
        refused={"sub-03_ses-01_label-L": "not binary"},
        skipped={"sub-04_label-L": "empty"},
    )
    planned = ["sub-01/anat/one.tsv", "sub-02/ses-01/anat/two.tsv"]
    monkeypatch.setattr(reports, "planned_outputs", lambda inputs: planned)
    return SimpleNamespace(analyses=("rd", "snm"), inspection=inspection)


def outcome_of(*failures, error=None):
    return RunOutcome({}, tuple(failures), error)


def record(out, inputs, **options):
    names = reports.write_outcome(inputs, out, RUN, started=STARTED, **options)
    assert names == ["01", "02", "03", "04"]
    return read_outcomes(out)


def test_masks_are_told_whose_they_are(inputs, tmp_path):
    (tmp_path / "sub-01/anat").mkdir(parents=True)
    (tmp_path / "sub-01/anat/one.tsv").touch()
    said = record(tmp_path, inputs)
    assert said["01"]["Warnings"] == ["warning of 01"]
    assert said["01"]["Missing"] == said["01"]["Errors"] == []
    assert said["02"]["Missing"] == ["sub-02/ses-01/anat/two.tsv"]
    assert said["03"]["Errors"] == ["not binary"]
    assert said["04"]["Warnings"] == ["empty"]
    assert {tuple(own["Analyses"]) for own in said.values()} == {("rd", "snm")}


def test_a_failed_step_is_told_to_its_participant_alone(inputs, tmp_path):
    node = "lacuna_wf.sub_02_label_L_wf.snm_wf.select"
    failure = Failure(node, "no space left.", tmp_path / "crash-1.txt")
    said = record(tmp_path, inputs, outcome=outcome_of(failure))
    (error,) = said["02"]["Errors"]
    assert error == (
        "Lesion L: Structural disconnection failed in the step snm_wf.select: no space left. "
        f"Details: logs/{RUN}/crash-1.txt."
    )
    assert said["01"]["Errors"] == []


def test_a_shared_step_is_told_to_all_who_miss_something(inputs, tmp_path):
    (tmp_path / "sub-01/anat").mkdir(parents=True)
    (tmp_path / "sub-01/anat/one.tsv").touch()
    failure = Failure("lacuna_wf.fnm_wf.reduce", "killed", None)
    said = record(tmp_path, inputs, outcome=outcome_of(failure))
    assert said["02"]["Errors"] == [
        "The functional network failed in the step fnm_wf.reduce: killed."
    ]
    assert said["01"]["Errors"] == []


def test_a_run_that_ends_early_is_told(inputs, tmp_path):
    said = record(tmp_path, inputs, outcome=outcome_of(error="the plugin died"))
    assert said["01"]["Errors"] == ["The run ended early: the plugin died"]


def test_before_the_end_nothing_is_missing_yet(inputs, tmp_path):
    said = record(tmp_path, inputs, ended=False)
    assert said["01"]["Missing"] == []
    assert "did not come to its end" in said["01"]["Errors"][0]
    path = tmp_path / "logs" / RUN / "outcome.json"
    assert json.loads(path.read_text())["Ended"] is None


def test_pages_that_cannot_be_made_do_not_hide_the_results(inputs, tmp_path):
    damaged = tmp_path / "logs" / "20250101T000000-x" / "outcome.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    config = SimpleNamespace(
        dry_run=False,
        reports=True,
        output_dir=Path(tmp_path),
        memory_gb=1.0,
        nprocs=1,
        plugin="MultiProc",
    )
    problems = reports.Reporter(config, inputs, RUN, STARTED).end(outcome_of())
    assert len(problems) == 1
    assert str(damaged) in problems[0]
