"""``--submit slurm-array`` on a real SLURM of one machine."""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from slurm_cluster import reason_to_skip, running_cluster

PARTICIPANT = ("--participant-label", "02")
PATIENCE_SECONDS = 300
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "hpc.md"


@pytest.fixture(scope="module")
def cluster():
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def submit(demonstration, full_arguments, run_command, cluster, tmp_path):
    """Submit everything on one participant; the process, and the output folder."""

    def run(*words):
        arguments = (
            *(demonstration.bids_dir, tmp_path / "out", "participant", *full_arguments),
            *(*PARTICIPANT, "-w", tmp_path / "work", "--submit", "slurm-array"),
            *("--omp-nthreads", "2", *words),
        )
        process = run_command(*arguments, env=cluster.environment, timeout=300)
        return process, tmp_path / "out"

    return run


@pytest.fixture
def dry(demonstration, run_command, tmp_path):
    """Print the scripts of a run, where there is no SLURM at all."""

    def run(*words, level="--dry-run"):
        places = (demonstration.bids_dir, tmp_path / "out", "participant", "-w", tmp_path / "work")
        return run_command(
            *(*places, *PARTICIPANT, "--submit", "slurm-array", level, *words),
            env={"PATH": str(tmp_path)},
        )

    return run


def test_a_dry_run_prints_the_scripts_and_writes_nothing(dry, demonstration, tmp_path):
    series = ("--functional-connectome", demonstration.functional_connectome)
    for words, tasks in (((), 2), (("--array-size", "1"), 1), (("--array-size", "50"), 2)):
        process = dry(*series, *words, "--no-reports")
        assert process.returncode == 0, process.stdout
        assert f"#SBATCH --array=0-{tasks - 1}\n" in process.stdout
        assert f'--submit-part "correlate:$SLURM_ARRAY_TASK_ID/{tasks}"' in process.stdout
        assert process.stdout.count("--no-reports") == 2
        assert "--submit slurm-array" not in process.stdout
        # It says first what it would do.
        said = process.stdout.index(f"array of {tasks} task")
        assert said < process.stdout.index("#SBATCH")
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_the_example_in_the_documentation(demonstration, run_command, tmp_path):
    """The command there prints what stands there, but for the folder and the run's name."""
    page = DOCUMENTATION.read_text(encoding="utf-8")
    command, printed = re.search(
        r"```bash\n(lacuna-nipype bids out .*?)```\n.*?```text\n(.*?)```", page, re.DOTALL
    ).groups()
    shutil.copytree(demonstration.directory, tmp_path / "demo")
    words = shlex.split(command.replace("\\\n", " "))[1:]
    process = run_command(*words, cwd=tmp_path / "demo", reports=True)
    assert process.returncode == 0, process.stdout
    name = r"\d{8}T\d{6}-[0-9a-f]{8}"
    (ours,) = set(re.findall(name, printed))
    said = re.sub(name, ours, process.stdout.replace(str(tmp_path), "/scratch"))
    beginning = printed.splitlines()[0]
    # Empty lines between the scripts are fewer on the page.
    said = re.sub(r"\n{3,}", "\n\n", said[said.index(beginning) :])
    assert said.strip() == printed.strip()


def test_without_a_functional_connectome_there_is_one_job(dry):
    process = dry("--parcel-atlases", "Demo")
    assert process.returncode == 0, process.stdout
    assert "merge.sh" in process.stdout
    assert "--array=0" not in process.stdout


def test_a_machine_without_slurm(dry, tmp_path):
    process = dry("--parcel-atlases", "Demo", level="-v")
    assert process.returncode == 127
    assert "sbatch" in process.stdout.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_words_that_make_no_sense(dry, run_command, demonstration, tmp_path):
    places = (demonstration.bids_dir, tmp_path / "out", "participant", "--parcel-atlases", "Demo")
    for words in (
        ("--array-size", "3"),
        ("--submit-part", "correlate:2/2"),
        ("--submit-part", "other:0/2"),
        ("--submit", "other"),
    ):
        process = run_command(*places, *words)
        assert process.returncode == 2
        assert "Traceback" not in process.stdout


@pytest.fixture
def pretended(demonstration, run_command, tmp_path):
    """Submit a run with pretended commands of SLURM; what is printed, and calls of a command."""
    folder = tmp_path / "bin"
    folder.mkdir()
    commands = {
        # Jobs have the numbers 1, 2, ..., and stay in the queue.
        "sbatch": "for word; do case $word in --job-name=*) name=${word#*=};; esac; done\n"
        f'echo "$((++number)) $name" >> {tmp_path}/queue\necho $number',
        "squeue": f"cat {tmp_path}/queue",
        "scancel": "true",
        "scontrol": "true",
    }

    def run(*words, asked=None, **before):
        for name, text in commands.items():
            path = folder / name
            path.write_text(
                f'#!/bin/bash\necho "$*" >> {tmp_path}/{name}.calls\n'
                f"calls=$(wc -l < {tmp_path}/{name}.calls)\n"
                f"number=$(cat {tmp_path}/queue 2> /dev/null | wc -l)\n"
                f"{before.get(name, '')}\n{text}\n"
            )
            path.chmod(0o755)
        arguments = {"retry_timeout": 0.05, "squeue_timeout": 20, **(asked or {})}
        process = run_command(
            *(demonstration.bids_dir, tmp_path / "out", "participant", *PARTICIPANT),
            *("-w", tmp_path / "work", "--submit", "slurm-array", *words),
            *("--functional-connectome", demonstration.functional_connectome),
            *("--plugin-args", json.dumps(arguments)),
            env={"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
        )
        return process

    def calls(name):
        path = tmp_path / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    run.calls = calls
    return run


TIME_OUT = "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1"


def test_submission_goes_on_after_a_failure_that_passes(pretended):
    process = pretended(sbatch=f"if [ $calls = 2 ]; then {TIME_OUT}; fi")
    assert process.returncode == 0, process.stdout
    assert numbers(process) == {"correlate": 1, "merge": 2}
    assert process.stdout.count("Trying again") == 1
    assert "--dependency=afterok:1" in pretended.calls("sbatch")[-1]
    assert pretended.calls("scancel") == []


def test_a_job_whose_submission_was_said_to_fail_is_not_submitted_twice(pretended, tmp_path):
    made = (
        f"for word; do case $word in --job-name=*) echo 5 ${{word#*=}} > {tmp_path}/queue;; esac"
    )
    process = pretended(sbatch=f"if [ $calls = 1 ]; then {made}; done; {TIME_OUT}; fi")
    assert process.returncode == 0, process.stdout
    assert numbers(process)["correlate"] == 5
    assert len(pretended.calls("sbatch")) == 2


def test_what_was_submitted_is_cancelled_when_the_rest_is_refused(pretended, tmp_path):
    """So is a job that was made without being told."""
    refusal = "echo 'sbatch: error: Batch job submission failed: Invalid account' >&2; exit 1"
    queue, both = tmp_path / "queue", tmp_path / "both"
    lost = f"(cat {queue}; sed 's/1 correlate/7 merge/' {queue}) > {both}; mv {both} {queue}"
    process = pretended(sbatch=f"if [ $calls = 2 ]; then {lost}; {refusal}; fi")
    assert process.returncode == 1
    last = process.stdout.splitlines()[-1]
    assert "merge.sh" in last
    assert "Invalid account" in last
    assert last.endswith("No job is left.")
    assert pretended.calls("scancel") == ["--quiet 1", "--quiet 7"]


def test_jobs_that_could_not_be_cancelled_are_named(pretended):
    process = pretended(
        sbatch=f"if [ $calls = 1 ]; then {TIME_OUT}; fi",
        squeue="echo away >&2; exit 1",
        asked={"squeue_timeout": 0.3},
    )
    assert process.returncode == 1
    assert "may be left" in process.stdout.splitlines()[-1]
    assert "squeue --name=correlate-" in process.stdout.splitlines()[-1]


def test_ctrl_c_takes_back_what_was_submitted(pretended):
    process = pretended(sbatch="if [ $calls = 2 ]; then kill -INT $PPID; sleep 60; fi")
    assert process.returncode == 130, process.stdout
    assert "No job is left." in process.stdout
    assert pretended.calls("scancel") == ["--quiet 1"]


def test_an_array_that_is_too_large(pretended):
    said = "echo 'Batch job submission failed: Invalid job array specification' >&2; exit 1"
    process = pretended(sbatch=said)
    assert process.returncode == 1
    assert "Lower --array-size." in process.stdout.splitlines()[-1]


def test_options_that_replace_what_the_program_asks_for_are_said(pretended):
    process = pretended(
        "--dry-run", asked={"sbatch_args": "--mem=64G", "template": "#SBATCH -c 9"}
    )
    assert process.returncode == 0, process.stdout
    (line,) = [line for line in process.stdout.splitlines() if line.startswith("SLURM is asked")]
    assert "your --cpus-per-task and --mem " in line


@pytest.mark.parametrize(
    "asked",
    [
        {"template": 5},
        {"sbatch_args": {"mem": "4G"}},
        {"python": 3},
        {"template": "#!/bin/bash\n#SBATCH --comment=it's"},
    ],
)
def test_arguments_of_no_use_are_one_sentence(pretended, asked, tmp_path):
    process = pretended(asked=asked)
    assert process.returncode == 2, process.stdout
    assert "Traceback" not in process.stdout
    assert next(iter(asked)) in process.stdout.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def wait(cluster, out):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while cluster.jobs():
        assert time.monotonic() < deadline, (cluster.jobs(), logs(out))
        time.sleep(0.2)


def logs(out):
    return {path.name: path.read_text() for path in sorted(out.glob("logs/*/submit/*.log"))}


def results(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and "logs" not in path.parts and "desc-provenance" not in path.name
    }


def numbers(process):
    """Numbers of the jobs, by what they do."""
    found = re.findall(r"^(?:Job )?(\d+): (\w+)$", process.stdout, re.MULTILINE)
    return {name: int(number) for number, name in found}


@pytest.mark.parametrize("method", ["boes", "pini"])
def test_the_same_bytes_as_on_one_machine(
    submit, cluster, demonstration, full_arguments, run_command, tmp_path, method
):
    process, out = submit("--fnm-method", method)
    assert process.returncode == 0, process.stdout
    jobs = numbers(process)
    stages = ["relate", "correlate"] if method == "pini" else ["correlate"]
    assert list(jobs) == [*stages, "merge"]
    wait(cluster, out)
    said = logs(out)
    # Two tasks of each array, and the job after them.
    assert len(said) == 2 * len(stages) + 1
    assert all("is done." in text for name, text in said.items() if "merge" not in name)
    (merged,) = [text for name, text in said.items() if "merge" in name]
    assert merged.splitlines()[-1] == f"Results: {out}"
    work = tmp_path / "work"
    assert not (work / "passes").exists()
    assert not any((work / "parts").iterdir())
    here = run_command(
        *(demonstration.bids_dir, tmp_path / "other", "participant", *full_arguments),
        *(*PARTICIPANT, "-w", tmp_path / "work2", "--fnm-method", method),
        timeout=300,
    )
    assert here.returncode == 0, here.stdout
    assert results(out) == results(tmp_path / "other")


def test_a_task_that_is_cancelled_and_what_is_missing_submitted_again(submit, cluster, tmp_path):
    process, out = submit("--plugin-args", '{"sbatch_args": "--hold"}')
    assert process.returncode == 0, process.stdout
    jobs = numbers(process)
    cluster.command("scancel", f"{jobs['correlate']}_1")
    for job in jobs.values():
        cluster.command("scontrol", "release", job)
    # The job after the array goes, too.
    wait(cluster, out)
    assert [name.split("-")[0] for name in logs(out)] == ["correlate"]
    assert not list(out.glob("sub-*"))
    (script,) = out.glob("logs/*/submit/submit.sh")
    assert f"sh {script}" in process.stdout
    kept = {path: path.stat().st_ino for path in (tmp_path / "work" / "passes").iterdir()}
    assert len(kept) == 1
    again = subprocess.run(
        ["sh", str(script), "--array=0,1"], capture_output=True, text=True, check=False,
        env={**os.environ, **cluster.environment}, timeout=60,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    held = re.findall(r"job (\d+)$", again.stdout, re.MULTILINE)
    assert len(held) == 2
    for job in held[:1]:
        cluster.command("scontrol", "release", job)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(cluster.jobs()) > 1:
        assert time.monotonic() < deadline, logs(out)
        time.sleep(0.2)
    now = {path: path.stat().st_ino for path in (tmp_path / "work" / "passes").iterdir()}
    # What was there was not made again.
    assert len(now) == 2
    assert kept.items() < now.items()
    cluster.command("scontrol", "release", held[1])
    wait(cluster, out)
    (merged,) = [text for name, text in logs(out).items() if "merge" in name]
    assert merged.splitlines()[-1] == f"Results: {out}"


def test_a_partition_that_is_not_there(submit):
    process, out = submit("--plugin-args", '{"sbatch_args": "--partition=nowhere"}')
    assert process.returncode == 1
    assert "Traceback" not in process.stdout
    assert "partition" in process.stdout.splitlines()[-1]
    assert not list(out.glob("sub-*"))
