"""Graphs run to their end: settings, crash files, what the terminal shows.

Settings of nipype are global, so each run has a process of its own.
"""

import json
import subprocess
import sys
import textwrap

import pytest
from nipype.pipeline import engine as pe

from lacuna_nipype.core.exceptions import DependencyError, ValidationError
from lacuna_nipype.execution import runner
from lacuna_nipype.execution.progress import RunProgress
from lacuna_nipype.execution.runner import (
    make_plugin,
    plugin_arguments,
    read_failures,
    require_plugin,
)

PRELUDE = """
import dataclasses, json, logging, sys
from pathlib import Path
from lacuna_nipype.execution.runner import configure_nipype, expanded_nodes, run_graph

def fine(x):
    import logging
    logging.getLogger("nipype.interface").info("working on %s", x)
    print("printed by the step")
    return x

def fails(x):
    raise ValueError(f"Mask {x} is damaged: copy it again.")

def function(f, name, kind=None, **options):
    from nipype.interfaces import utility as niu
    from nipype.pipeline import engine as pe
    interface = niu.Function(input_names=["x"], output_names=["y"], function=f)
    return (kind or pe.Node)(interface, name=name, **options)

def main(folder, plugin, verbose):
    logs = Path(folder, "logs")
    logs.mkdir(exist_ok=True)
    configure_nipype(log_dir=logs, stop_on_first_crash=False, verbose=int(verbose))
    from nipype.pipeline import engine as pe
    workflow = pe.Workflow("wf", base_dir=str(Path(folder, "work")))
    build(workflow, pe)
    outcome = run_graph(
        workflow, n_nodes=len(expanded_nodes(workflow)), plugin=plugin, nprocs=2, memory_gb=2.0,
        crash_dir=logs,
    )
    result = {
        "nodes": {name: record.status for name, record in outcome.nodes.items()},
        "failures": [[f.node, f.reason, f.crash_file.is_file()] for f in outcome.failures],
        "error": outcome.error,
    }
    Path(folder, "outcome.json").write_text(json.dumps(result))
"""

ONE_FAILS = """
def build(workflow, pe):
    first, bad, after, other = (
        function(f, name)
        for f, name in ((fine, "first"), (fails, "bad"), (fine, "after"), (fine, "other"))
    )
    first.inputs.x = other.inputs.x = "m.nii"
    workflow.connect([(first, bad, [("y", "x")]), (bad, after, [("y", "x")])])
    workflow.add_nodes([other])
"""

PIECES = """
def build(workflow, pe):
    pieces = function(fails, "pieces", pe.MapNode, iterfield=["x"])
    pieces.inputs.x = ["a", "b"]
    workflow.add_nodes([pieces])
"""

ALL_FINE = """
def build(workflow, pe):
    pieces = function(fine, "pieces", pe.MapNode, iterfield=["x"])
    pieces.inputs.x = ["a", "b"]
    last = function(fine, "last")
    workflow.connect(pieces, "y", last, "x")
"""

both_plugins = pytest.mark.parametrize("plugin", ["Linear", "MultiProc"])


@pytest.fixture
def run(tmp_path):
    """Run a graph in a process of its own: what became of it, and what it printed."""

    def start(build, plugin, verbose=0):
        script = tmp_path / "script.py"
        ending = 'if __name__ == "__main__":\n    main(*sys.argv[1:])\n'
        script.write_text("\n".join([PRELUDE, textwrap.dedent(build), ending]))
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path), plugin, str(verbose)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "outcome.json").read_text()), done

    return start


@both_plugins
def test_failure_names_step_and_reason(run, tmp_path, plugin):
    outcome, done = run(ONE_FAILS, plugin)
    reason = "Mask m.nii is damaged: copy it again."
    assert outcome["failures"] == [["wf.bad", reason, True]]
    assert outcome["error"] is None
    # What could not run has no status; what did not depend on the failure ran.
    assert outcome["nodes"] == {"wf.first": "done", "wf.bad": "failed", "wf.other": "done"}
    (failure,) = read_failures(tmp_path / "logs")
    assert (failure.node, failure.reason) == ("wf.bad", reason)
    # The trace is for the log and the crash file.
    assert "Traceback" not in done.stdout + done.stderr
    assert "nipype.workflow" not in done.stdout
    assert "[Node]" not in done.stdout
    log = (tmp_path / "logs" / "run.log").read_text()
    assert "wf.bad" in log
    assert "Traceback" in log or "crash" in log


NO_PLACE_FOR_LOGS = """
def fails_without_logs(x):
    import shutil
    from pathlib import Path
    shutil.rmtree(x)
    # As little can be written there as to a full disk.
    Path(x).write_bytes(b"")
    raise ValueError("Mask m.nii is damaged: copy it again.")

def build(workflow, pe):
    bad, other = function(fails_without_logs, "bad"), function(fine, "other")
    bad.inputs.x = str(Path(sys.argv[1], "logs"))
    other.inputs.x = "m.nii"
    workflow.add_nodes([bad, other])
"""


@both_plugins
def test_a_failure_is_told_where_the_logs_have_no_place(run, tmp_path, plugin):
    outcome, _ = run(NO_PLACE_FOR_LOGS, plugin)
    # The crash file is in the folder of the step instead.
    assert outcome["failures"] == [["wf.bad", "Mask m.nii is damaged: copy it again.", True]]
    assert len(list((tmp_path / "work" / "wf" / "bad").glob("crash-*.txt"))) == 1
    assert outcome["nodes"] == {"wf.bad": "failed", "wf.other": "done"}


@both_plugins
def test_pieces_of_a_mapnode_fail_under_their_full_names(run, plugin):
    outcome, _ = run(PIECES, plugin)
    assert sorted(outcome["failures"]) == [
        [f"wf.pieces._pieces{number}", f"Mask {name} is damaged: copy it again.", True]
        for number, name in enumerate("ab")
    ]


@both_plugins
def test_second_run_is_cached(run, plugin):
    first, _ = run(ALL_FINE, plugin)
    pieces = {f"wf.pieces._pieces{n}" for n in range(2)}
    assert set(first["nodes"]) == {"wf.pieces", "wf.last", *pieces}
    assert set(first["nodes"].values()) == {"done"}
    second, _ = run(ALL_FINE, plugin)
    assert set(second["nodes"].values()) == {"cached"}
    assert set(second["nodes"]) == set(first["nodes"])


def test_lines_of_interfaces_go_to_the_log_file(run, tmp_path):
    _, done = run(ALL_FINE, "Linear")
    assert "nipype" not in done.stdout
    assert "working on" in (tmp_path / "logs" / "run.log").read_text()


def test_verbose_run_shows_the_steps(run):
    _, done = run(ALL_FINE, "Linear", verbose=1)
    assert "wf.last" in done.stdout + done.stderr


def test_no_crash_file_no_failure(tmp_path):
    assert read_failures(tmp_path) == ()


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("ValueError: plain: with colons", "plain: with colons"),
        ("package.module.SpatialMismatchError: Mask is elsewhere", "Mask is elsewhere"),
        ("MemoryError", "MemoryError"),
        ("Killed", "Killed"),
    ],
)
@pytest.mark.parametrize("indent", ["", "\t"])
def test_reason_is_the_last_error(tmp_path, ending, reason, indent):
    outer = "" if ending == "Killed" else "nipype.NodeExecutionError: Exception raised\n\n"
    crash = tmp_path / "crash-20260101-000000-me-bad-1.txt"
    crash.write_text(
        f"Node: wf.bad\nWorking directory: {tmp_path}\n\nNode inputs:\n\nx = 1\n\n"
        f"Traceback (most recent call last):\n{outer}{indent}{ending}\n\n"
    )
    (failure,) = read_failures(tmp_path)
    assert (failure.node, failure.reason, failure.crash_file) == ("wf.bad", reason, crash)


def test_one_failure_per_step_and_the_newest_counts(tmp_path):
    for number in range(2):
        (tmp_path / f"crash-2026010{number}-000000-me-bad-{number}.txt").write_text(
            f"Node: wf.bad\n\nTraceback:\nValueError: number {number}\n"
        )
    (failure,) = read_failures(tmp_path)
    assert failure.reason == "number 1"


def test_damaged_crash_file_is_still_a_failure(tmp_path):
    (tmp_path / "crash-20260101-000000-me-bad-1.txt").write_bytes(b"\xff\xfe\x00")
    assert len(read_failures(tmp_path)) == 1


def test_plugin_arguments():
    progress = RunProgress(1)
    linear = plugin_arguments("Linear", nprocs=4, memory_gb=8.0, progress=progress)
    assert linear == {"status_callback": progress}
    several = plugin_arguments("MultiProc", nprocs=4, memory_gb=8.0, progress=progress)
    assert several["n_procs"] == 4
    assert several["memory_gb"] == 8.0
    assert several["status_callback"] is progress
    # A step that declares more than there is must run alone, not never.
    assert several["raise_insufficient"] is False


def test_the_users_arguments_win():
    arguments = plugin_arguments(
        "MultiProc", nprocs=4, memory_gb=8.0, progress=RunProgress(1), asked={"n_procs": 1, "a": 2}
    )
    assert (arguments["n_procs"], arguments["memory_gb"], arguments["a"]) == (1, 8.0, 2)


def test_ours_stand_in_for_three_of_nipypes_plugins():
    names = {
        name: type(make_plugin(name, {})).__name__ for name in ("Linear", "MultiProc", "SLURM")
    }
    assert names == {
        "Linear": "GuardedLinearPlugin",
        "MultiProc": "GuardedMultiProcPlugin",
        "SLURM": "GuardedSLURMPlugin",
    }
    assert type(make_plugin("PBS", {})).__module__ == "nipype.pipeline.plugins.pbs"


def test_a_plugin_that_cannot_be_made_ends_the_run_with_its_reason(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("There is no file of an IPython cluster.")

    monkeypatch.setattr(runner, "make_plugin", refuse)
    outcome = runner.run_graph(
        pe.Workflow("wf", base_dir=str(tmp_path)), n_nodes=0, plugin="IPython", nprocs=1,
        memory_gb=1.0, crash_dir=tmp_path,
    )  # fmt: skip
    assert outcome.error == "There is no file of an IPython cluster."


def test_a_cluster_without_its_commands_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    require_plugin("MultiProc")
    with pytest.raises(DependencyError, match="sbatch"):
        require_plugin("SLURM")
    with pytest.raises(ValidationError, match="template"):
        require_plugin("SLURM", {"template": "nowhere.sh"})
    with pytest.raises(ValidationError, match="quot"):
        require_plugin("SLURM", {"sbatch_args": "--comment 'open"})
