"""Runs that are handed over to jobs: what contradicts it, and what is kept between the jobs."""

import os
import re
import shutil
import signal
from types import SimpleNamespace

import pytest

from lacuna_nipype.cli.main import main
from lacuna_nipype.cli.parser import parse_config
from lacuna_nipype.cli.recovery import remove_steps
from lacuna_nipype.cli.submit import (
    _Plan,
    _submit_or_take_back,
    clear_passes,
    passes_folder,
)
from lacuna_nipype.connectomes.partial import TAKEN
from lacuna_nipype.execution.slurm_array import Job
from lacuna_nipype.execution.slurm_commands import JOBS_FOLDER
from lacuna_nipype.execution.slurm_options import read_job_arguments
from lacuna_nipype.workflows.base import workflow_name


@pytest.mark.parametrize(
    ("level", "words"),
    [
        ("group", ["--submit", "slurm-array"]),
        ("participant", ["--submit", "slurm-array", "--reports-only"]),
        ("participant", ["--submit", "slurm-array", "--plugin", "Linear"]),
        ("participant", ["--array-size", "3"]),
    ],
)
def test_contradictions(demonstration, tmp_path, capsys, level, words):
    places = [demonstration.bids_dir, tmp_path / "out", level, "-w", tmp_path / "work"]
    with pytest.raises(SystemExit) as stop:
        parse_config([str(word) for word in (*places, "--parcel-atlases", "Demo", *words)])
    assert stop.value.code == 2
    assert words[0] in capsys.readouterr().err.splitlines()[-1]


def test_passes_go_when_they_were_taken(tmp_path):
    """Another run with the same work folder may still need what it has not taken."""
    config = SimpleNamespace(work_dir=tmp_path / "work")
    clear_passes(config)
    folder = passes_folder(config)
    folder.mkdir(parents=True)
    for name in ("taken.h5", "waiting.h5"):
        (folder / name).write_bytes(b"moments")
    step = tmp_path / "work" / workflow_name() / "fnm_wf" / "correlate" / "mapflow" / "_correlate0"
    step.mkdir(parents=True)
    (step / TAKEN).write_text(f"{folder / 'taken.h5'}\n")
    clear_passes(config)
    assert [path.name for path in folder.iterdir()] == ["waiting.h5"]
    (step / TAKEN).write_text(f"{folder / 'waiting.h5'}\n")
    clear_passes(config)
    assert not folder.exists()


def test_what_tells_of_jobs_outlives_the_steps(tmp_path):
    """A run that overwrites still has to end the jobs of one that was killed."""
    for name in (f"{JOBS_FOLDER}/token", "fnm_wf/reduce"):
        (tmp_path / name).mkdir(parents=True)
    remove_steps(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [JOBS_FOLDER]
    assert (tmp_path / JOBS_FOLDER / "token").is_dir()
    remove_steps(tmp_path / "missing")


def test_jobs_have_the_memory_that_their_largest_step_takes(
    demonstration, tmp_path, capsys, monkeypatch
):
    """Also where that is more than --mem: SLURM would end them."""
    monkeypatch.setattr("lacuna_nipype.cli.graph.pass_memory", lambda config, inputs: 3.0)
    words = [demonstration.bids_dir, tmp_path / "out", "participant", "--dry-run", "--mem", "1G"]
    words += ["--functional-connectome", demonstration.functional_connectome]
    words += ["--submit", "slurm-array", "-w", tmp_path / "work"]
    assert main([str(word) for word in words]) == 0
    asked = re.findall(r"#SBATCH --mem=(\d+)M", capsys.readouterr().out)
    assert len(asked) == 2
    assert min(map(int, asked)) * 2**20 > 3.4e9


def test_tasks_have_the_threads_that_were_asked_for(demonstration, tmp_path, capsys):
    words = [demonstration.bids_dir, tmp_path / "out", "participant", "--dry-run"]
    words += ["--functional-connectome", demonstration.functional_connectome, "--nprocs", "2"]
    words += ["--submit", "slurm-array", "-w", tmp_path / "work", "--omp-nthreads", "16"]
    assert main([str(word) for word in words]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"#SBATCH --cpus-per-task=(\d+)", printed) == ["16", "2"]
    assert "--nprocs 16 --omp-nthreads 16 " in printed


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_jobs_are_submitted_leaves_none(tmp_path, monkeypatch, capsys, number):
    """An array without the job after it would be of no use; a second signal changes nothing."""
    commands = {
        "sbatch": "if [ ! -e {0}/once ]; then touch {0}/once; echo 7; exit; fi\n"
        "kill -{1} {2}; sleep 300",
        "squeue": "echo '8 merge-r1'",
        "scancel": 'kill -TERM {2}; echo "$*" >> {0}/cancelled',
    }
    for name, text in commands.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text.format(tmp_path, int(number), os.getpid())}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    jobs = [Job(name, ("echo",), 1, 1.0, 1.0) for name in ("correlate", "merge")]
    plan = _Plan(
        (jobs[0],), jobs[1], {}, "r1", tmp_path / "submit", read_job_arguments({}), n_files=1
    )
    with pytest.raises((SystemExit, KeyboardInterrupt)) as stop:
        _submit_or_take_back(SimpleNamespace(plugin_args={}), plan)
    if number != signal.SIGINT:
        assert stop.value.code == 128 + number
    assert (tmp_path / "cancelled").read_text().splitlines() == ["--quiet 7", "--quiet 8"]
    assert capsys.readouterr().out.splitlines()[-1] == "No job is left."


def test_masks_that_are_all_refused_are_no_success(demonstration, tmp_path, capsys):
    bids = tmp_path / "bids"
    shutil.copytree(
        demonstration.bids_dir, bids,
        ignore=shutil.ignore_patterns("sub-01", "sub-02", "sub-03", "sub-05"),
    )  # fmt: skip
    (mask,) = bids.rglob("sub-04*_mask.nii.gz")
    os.truncate(mask, 100)
    words = [bids, tmp_path / "out", "participant", "--parcel-atlases", "Demo", "--dry-run"]
    words += ["--functional-connectome", demonstration.functional_connectome]
    words += ["--submit", "slurm-array", "-w", tmp_path / "work"]
    assert main([str(word) for word in words]) == 1
    assert "refused" in capsys.readouterr().err
