"""Results of the group that a run did not store: kept where they are what it would have stored."""

from types import SimpleNamespace

import pytest

from lacuna_nipype.cli.group_state import settle
from lacuna_nipype.execution.progress import NodeRecord
from lacuna_nipype.execution.runner import RunOutcome

FAILED = (SimpleNamespace(node="group.a", reason="", crash_file=None),)


def run(out, signature, outcome):
    """Settle a run with one result; whether that is still there."""
    path = out / "phenotype" / "a.tsv"
    path.parent.mkdir(exist_ok=True)
    for file in (path, path.with_suffix(".json")):
        file.touch()
    settle(out, {path: signature}, {path: "group.ds_a"}, outcome)
    assert path.with_suffix(".json").exists() == path.exists()
    return path.exists()


@pytest.mark.parametrize("told", [True, False], ids=["told", "by a plugin that does not tell"])
def test_what_a_failed_run_leaves(tmp_path, told):
    records = {"group.ds_a": NodeRecord("group.ds_a", "done")} if told else {}
    assert run(tmp_path, "one", RunOutcome(records, (), None))
    assert run(tmp_path, "one", RunOutcome({}, FAILED, None))
    assert run(tmp_path, "one", RunOutcome({}, (), "ended early"))
    assert not run(tmp_path, "two", RunOutcome({}, FAILED, None))
    # Nobody knows any more what it was made of.
    assert not run(tmp_path, "one", RunOutcome({}, FAILED, None))


def test_a_damaged_note_says_nothing(tmp_path):
    assert run(tmp_path, "one", RunOutcome({}, (), None))
    (tmp_path / "logs" / "state" / "group.json").write_text("{")
    assert not run(tmp_path, "one", RunOutcome({}, FAILED, None))
