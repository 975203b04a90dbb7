"""Scripts of a run that is split over an array of jobs; run by a shell with a pretended sbatch."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.execution.slurm_array import Job, after_options, job_script, submit_script
from lacuna_nipype.execution.slurm_options import read_template

ARRAY = Job("correlate", ("echo", "it's", "a b", "$HOME"), 4, 2.0, 30, tasks=3)
LAST = Job("merge", ("true",), 2, 1.0, 1)


def options(script):
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    words = [shlex.split(line)[1] for line in lines]
    return dict(word.removeprefix("--").split("=", 1) for word in words)


def write(job=ARRAY, template=None, sbatch_args=(), folder=Path("/logs"), start=Path("/")):
    return job_script(
        job, run="r1", folder=folder, start=start, template=read_template(template),
        sbatch_args=sbatch_args,
    )  # fmt: skip


def test_what_a_job_asks_for():
    asked = options(write())
    assert asked["array"] == "0-2"
    assert asked["cpus-per-task"] == "4"
    # 2 GB, and room for Python.
    assert 2e9 < int(asked["mem"].removesuffix("M")) * 2**20 < 3e9
    assert int(asked["time"]) > 60
    assert asked["output"] == "/logs/correlate-%A_%a.log"
    single = options(write(LAST))
    assert "array" not in single
    assert single["output"] == "/logs/merge-%j.log"


def test_options_of_the_user_replace_ours():
    assert "mem" not in options(write(sbatch_args=["--mem-per-cpu=1G"]))
    assert "time" not in options(write(sbatch_args=["-t", "10"]))
    script = write(template="#SBATCH --time=7\n#SBATCH --partition=main\nmodule load x")
    assert options(script)["time"] == "7"
    assert options(script)["partition"] == "main"


def test_options_come_before_the_first_command():
    script = write(template="#!/bin/zsh\nmodule load x\n#SBATCH --time=7")
    lines = script.splitlines()
    assert lines[0] == "#!/bin/zsh"
    ours = [number for number, line in enumerate(lines) if "--array" in line]
    assert max(ours) < lines.index("module load x") < lines.index("cd / || exit 1")


def test_a_percent_sign_and_a_blank_in_the_name_of_the_folder():
    script = write(folder=Path("/a b/100%"))
    assert options(script)["output"] == "/a b/100%%/correlate-%A_%a.log"


@pytest.mark.parametrize("name", ["it's", 'say "so"', "a #1", "plain"])
def test_paths_of_log_files_are_quoted(name):
    script = write(folder=Path("/", name))
    assert options(script)["output"] == f"/{name}/correlate-%A_%a.log"
    assert '#SBATCH --output="/' in script


def test_paths_that_slurm_cannot_write_to_are_refused():
    for name in ("a\\b", "a\nb"):
        with pytest.raises(ValidationError, match="another output folder"):
            write(folder=Path("/", name))


@pytest.mark.parametrize(("gb", "said"), [(0.5, "0.93 GiB"), (9.2, "9 GiB"), (128, "120 GiB")])
def test_memory_is_said_in_plain_numbers(gb, said):
    assert f" {said} " in Job("merge", (), 1, gb, 1).describe()


@pytest.mark.parametrize("task", [0, 2])
def test_a_shell_runs_the_command_as_it_was_given(tmp_path, task):
    start = tmp_path / "it's here"
    start.mkdir()
    script = write(start=start, template="#\necho from $PWD")
    done = subprocess.run(
        ["bash"], input=script, env={**os.environ, "SLURM_ARRAY_TASK_ID": str(task)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[1:] == [f"it's a b $HOME --submit-part correlate:{task}/3"]


def run_submit(tmp_path, text, *words):
    """Run the script that submits; pretended jobs get the numbers 1, 2, ..."""
    sbatch = tmp_path / "sbatch"
    calls = tmp_path / "calls"
    sbatch.write_text(
        f'#!/bin/sh\nprintf "%s|" "$@" >> {calls}\necho >> {calls}\nwc -l < {calls} | tr -d " "\n'
    )
    sbatch.chmod(0o755)
    script = tmp_path / "submit.sh"
    script.write_text(text)
    done = subprocess.run(
        ["sh", str(script), *words], capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    return done, [line.split("|")[:-1] for line in calls.read_text().splitlines()]


def test_jobs_wait_for_those_before_them(tmp_path):
    relate = Job("relate", ("true",), 1, 1.0, 1, tasks=3)
    text = submit_script(
        [relate, ARRAY], LAST, folder=Path("/a b"), sbatch_args=["--account=lab", "-q", "x y"]
    )
    done, calls = run_submit(tmp_path, text, "--array=1,2")
    assert done.returncode == 0, done.stderr
    common = ["--parsable", "--account=lab", "-q", "x y"]
    assert calls == [
        [*common, "--array=1,2", "/a b/relate.sh"],
        [*common, *after_options(1), "--array=1,2", "/a b/correlate.sh"],
        [*common, *after_options(2), "/a b/merge.sh"],
    ]
    assert done.stdout.split("\n")[:3] == ["relate: job 1", "correlate: job 2", "merge: job 3"]


def test_a_run_without_a_pass_is_one_job(tmp_path):
    done, calls = run_submit(tmp_path, submit_script([], LAST, folder=Path("/f"), sbatch_args=[]))
    assert done.returncode == 0, done.stderr
    assert calls == [["--parsable", "/f/merge.sh"]]
