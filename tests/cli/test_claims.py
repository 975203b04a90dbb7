"""Runs on one output folder tell each other which lesions they work on."""

import subprocess
import sys

import pytest

from lacuna_nipype.cli.claims import claimed
from lacuna_nipype.core.exceptions import LacunaError

MINE = {"sub-01_label-L": {"rd": "a", "fnm": "b"}, "sub-02_label-L": {"rd": "c"}}


def claims(out):
    return sorted(path.name for path in (out / "logs" / "running").glob("*"))


def test_a_claim_lasts_as_long_as_the_run(tmp_path):
    with claimed(tmp_path, "run-1", MINE):
        assert claims(tmp_path) == ["run-1.json"]
    assert claims(tmp_path) == []
    with pytest.raises(RuntimeError), claimed(tmp_path, "run-1", MINE):
        raise RuntimeError
    assert claims(tmp_path) == []


@pytest.mark.parametrize(
    ("theirs", "refused"),
    [
        ({"sub-03_label-L": {"rd": "x"}}, False),
        # The same results, whoever writes them.
        ({"sub-01_label-L": {"rd": "a", "fnm": "b"}}, False),
        # Files of other names.
        ({"sub-01_label-L": {"snm": "x"}}, False),
        ({"sub-01_label-L": {"rd": "a", "fnm": "x"}}, True),
        ({"sub-02_label-L": {"rd": "x"}, "sub-03_label-L": {"rd": "y"}}, True),
    ],
)
def test_other_results_of_the_same_lesion_are_refused(tmp_path, theirs, refused):
    with claimed(tmp_path, "run-1", MINE):
        if refused:
            (key,) = set(theirs) & set(MINE)
            with (
                pytest.raises(LacunaError, match=f"run-1.*{key}"),
                claimed(tmp_path, "run-2", theirs),
            ):
                pass
            assert claims(tmp_path) == ["run-1.json"]
        else:
            with claimed(tmp_path, "run-2", theirs):
                assert claims(tmp_path) == ["run-1.json", "run-2.json"]
    with claimed(tmp_path, "run-3", theirs):
        assert claims(tmp_path) == ["run-3.json"]


def test_the_claim_of_a_killed_run_is_void(tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from lacuna_nipype.cli.claims import claimed
with claimed(Path({str(tmp_path)!r}), "killed", {MINE}):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode < 0
    assert claims(tmp_path) == ["killed.json"]
    other = {key: {"rd": "x"} for key in MINE}
    with claimed(tmp_path, "next", other):
        assert claims(tmp_path) == ["next.json"]


def test_two_masks_of_one_lesion_are_refused_whatever_the_analyses(tmp_path):
    mask = "lesion T1w MNI152NLin6Asym"
    with claimed(tmp_path, "run-1", {"sub-01": {"fnm": "a", mask: "old"}}):
        with claimed(tmp_path, "run-2", {"sub-01": {"rd": "a", mask: "old"}}, alone=True):
            pass
        with (
            pytest.raises(LacunaError, match=r"run-1.*sub-01"),
            claimed(tmp_path, "run-3", {"sub-01": {"rd": "a", mask: "new"}}),
        ):
            pass


def test_a_run_that_ends_meanwhile_is_no_obstacle(tmp_path):
    with claimed(tmp_path, "run-1", MINE):
        # Still listed, and gone when it is looked at.
        (tmp_path / "logs" / "running" / "run-0.json").symlink_to("nowhere")
        with claimed(tmp_path, "run-2", MINE):
            assert "run-2.json" in claims(tmp_path)
