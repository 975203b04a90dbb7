"""Results and records found in a derivatives folder."""

import importlib.util
import json
from pathlib import Path

import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.reports.results import (
    RunRecords,
    find_results,
    list_participants,
    read_outcomes,
    read_runs,
)

spec = importlib.util.spec_from_file_location("report_data", Path(__file__).parent / "conftest.py")
report_data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report_data)


def write_outcome(out, run, participants, ended="2026-01-02T04:00:00+00:00"):
    record = {"RunID": run, "Ended": ended, "Participants": participants}
    report_data.write_json(out / "logs" / run / "outcome.json", record)


def test_lesions_are_told_apart_by_session_and_label(tmp_path):
    report_data.write_participant(tmp_path, "02", session="02")
    report_data.write_participant(tmp_path, "02", session="01")
    report_data.write_participant(tmp_path, "02", session="01", label="bleeding")
    found = find_results(tmp_path, "02")
    assert [lesion.key for lesion in found] == [
        "sub-02_ses-01_label-bleeding", "sub-02_ses-01_label-stroke", "sub-02_ses-02_label-stroke"
    ]  # fmt: skip
    assert found[0].title == "Session 01, lesion bleeding"
    assert len({len(lesion.files) for lesion in found}) == 1


def test_another_participant_whose_name_begins_alike_is_left_out(tmp_path):
    report_data.write_participant(tmp_path, "1")
    report_data.write_participant(tmp_path, "12")
    assert list_participants(tmp_path) == ["1", "12"]
    assert [lesion.key for lesion in find_results(tmp_path, "1")] == ["sub-1_label-stroke"]


def test_of_results_in_two_spaces_the_newer_counts(out):
    import os

    (old,) = out.glob("**/*_stat-t_desc-fnm_statmap.nii.gz")
    new = old.with_name(old.name.replace("NLin6Asym", "NLin2009cAsym"))
    new.write_bytes(old.read_bytes())
    os.utime(old, (1, 1))
    (lesion,) = find_results(out, "01")
    assert lesion.newest("statmap", "fnm", "t").path == new
    os.utime(new, (0, 0))
    assert lesion.newest("statmap", "fnm", "t").path == old


def test_the_last_run_of_a_participant_counts(tmp_path):
    write_outcome(tmp_path, "20260101-a", {"01": {"Errors": ["old"]}, "02": {"Errors": ["of 02"]}})
    write_outcome(tmp_path, "20260102-b", {"01": {"Errors": [], "Warnings": ["small"]}})
    outcomes = read_outcomes(tmp_path)
    assert outcomes["01"]["Errors"] == []
    assert outcomes["01"]["Warnings"] == ["small"]
    assert outcomes["01"]["RunID"] == "20260102-b"
    assert outcomes["02"]["Errors"] == ["of 02"]


def test_a_run_that_was_killed_is_an_error_of_its_participants(tmp_path):
    write_outcome(tmp_path, "20260101-a", {"01": {"Errors": []}}, ended=None)
    (error,) = read_outcomes(tmp_path)["01"]["Errors"]
    assert "20260101-a" in error


def test_every_analysis_comes_from_its_own_last_run(tmp_path):
    first = report_data.run_record(RunID="a", Started="2026-01-01T00:00:00+00:00")
    second = report_data.run_record(RunID="b", Started="2026-01-02T00:00:00+00:00",
                                    Analyses={"rd": {}})  # fmt: skip
    for session in ("01", "02"):
        report_data.write_json(tmp_path / "sub-01" / f"sub-01_ses-{session}_desc-provenance.json",
                               {"Runs": [second, first]})  # fmt: skip
    runs = read_runs(tmp_path, "01")
    assert [run["RunID"] for run in runs] == ["a", "b"]
    # One input of each session.
    assert len(runs[0]["Inputs"]) == 2
    records = RunRecords(runs, {})
    assert {name: run["RunID"] for name, run in records.analyses.items()} == {
        "rd": "b", "fnm": "a", "snm": "a"
    }  # fmt: skip


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_record_is_named(tmp_path, content):
    path = tmp_path / "sub-01" / "sub-01_desc-provenance.json"
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValidationError, match="desc-provenance"):
        read_runs(tmp_path, "01")


def test_nothing_is_found_in_an_empty_folder(tmp_path):
    assert list_participants(tmp_path) == []
    assert find_results(tmp_path, "01") == []
    assert read_outcomes(tmp_path) == {}
    assert json.dumps(read_runs(tmp_path, "01")) == "[]"
