"""What happens to clusters, to the real command with ``--plugin SLURM`` on a real SLURM.

As for other faults: an exit code, a message, nothing half-written, and results in the end that
are those of a run without a cluster and without a fault.
"""

import json
import os
import shutil
import signal
import time

import pytest
from run_results import (
    assert_ended_well,
    assert_every_file_is_whole,
    assert_failed,
    results,
    stop_in_the_middle,
    two_versions,
    wait_until,
)
from slurm_cluster import reason_to_skip, running_cluster

N_FILES = 2
PARTICIPANT = "04"
# The pass over the file that differs between the versions.
LAST_PASS = f"_correlate{N_FILES - 1}"


@pytest.fixture(scope="module")
def cluster():
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def nothing_is_left(cluster):
    """No test finds the jobs of another one."""
    yield
    cluster.command("scancel", "--user=root", check=False)
    deadline = time.monotonic() + 60
    while cluster.jobs():
        assert time.monotonic() < deadline, cluster.logs()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def connectomes(demonstration, tmp_path_factory):
    return two_versions(demonstration.functional_connectome, tmp_path_factory, N_FILES)


@pytest.fixture
def connectome(connectomes, tmp_path):
    """A copy of the first version that a test may change."""
    return shutil.copytree(connectomes["first"], tmp_path / "copy" / "connectome")


@pytest.fixture(scope="module")
def arguments(demonstration):
    def make(folder, connectome, plugin="SLURM", **plugin_args):
        asked = json.dumps({"squeue_interval": 0.5, "retry_timeout": 1, **plugin_args})
        return (
            *(demonstration.bids_dir, folder / "out", "participant", "--parcel-atlases", "Demo"),
            *("--functional-connectome", connectome, "--participant-label", PARTICIPANT),
            *("--plugin", plugin, "--nprocs", "2", "-w", folder / "work"),
            *(("--plugin-args", asked) if plugin == "SLURM" else ()),
        )

    return make


@pytest.fixture(scope="module")
def undisturbed(arguments, connectomes, run_command, tmp_path_factory):
    """Results with each version of the connectome, without a cluster and without any fault."""
    made = {}

    def run(version="first"):
        if version not in made:
            folder = tmp_path_factory.mktemp(f"undisturbed-{version}")
            process = run_command(*arguments(folder, connectomes[version], "MultiProc"))
            assert process.returncode == 0, process.stdout
            made[version] = results(folder / "out")
        return made[version]

    return run


@pytest.fixture
def start(start_command, cluster, tmp_path):
    """Start the command on the cluster; the process and its log."""
    started = []

    def run(*words, env=None):
        log = tmp_path / f"run-{len(started)}.log"
        started.append(start_command(*words, log=log, env={**cluster.environment, **(env or {})}))
        return started[-1], log

    yield run
    for process in started:
        process.kill()


@pytest.fixture
def run(run_command, cluster):
    """Run the command on the cluster to its end."""
    return lambda *words: run_command(*words, env=cluster.environment, timeout=300)


def find_job(cluster, step, *states):
    """Number of the job of a step, or None."""
    return next((job for job, name in cluster.jobs(*states).items() if step in name), None)


def fake_command(folder, name, text):
    """Put a command before the real one on PATH: the environment."""
    path = folder / "bin" / name
    path.parent.mkdir()
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return {"PATH": f"{path.parent}{os.pathsep}{os.environ['PATH']}"}


def log_of(out):
    return "\n".join(path.read_text() for path in out.glob("logs/*/run.log"))


def test_a_job_is_cancelled_before_it_starts(
    arguments, connectome, connectomes, undisturbed, start, run, cluster, tmp_path
):
    """There is an older result of the step: it must not pass for that of this run."""
    assert_ended_well(run(*arguments(tmp_path, connectome)), tmp_path / "out", undisturbed())
    last = f"part-{N_FILES - 1}.h5"
    shutil.copyfile(connectomes["second"] / last, connectome / last)
    process, log = start(*arguments(tmp_path, connectome, sbatch_args="--hold"))
    cancelled = False
    while process.poll() is None:
        for job, name in cluster.jobs("PENDING").items():
            ours = LAST_PASS in name
            cluster.command(*(["scancel"] if ours else ["scontrol", "release"]), job, check=False)
            cancelled |= ours
        time.sleep(0.1)
    assert cancelled
    assert_failed(log.read_text(), process.returncode, "CANCELLED")
    out = tmp_path / "out"
    assert_every_file_is_whole(out)
    # No map has anything of the file that was not read.
    maps = {name: found for name, found in results(out).items() if "desc-fnm" in name}
    assert maps.items() <= undisturbed().items()
    assert_ended_well(run(*arguments(tmp_path, connectome)), out, undisturbed("second"))


@pytest.mark.parametrize(("end", "reason"), [("scancel", "CANCELLED"), ("kill", "signal 9")])
def test_a_job_ends_in_the_middle(
    end, reason, arguments, connectomes, undisturbed, start, run, cluster, tmp_path
):
    words = arguments(tmp_path, connectomes["first"])
    process, log = start(*words)
    held = []

    def is_held():
        held.append(stop_in_the_middle(tmp_path / "work", LAST_PASS))
        return held[-1] is not None

    wait_until(is_held, process, log)
    job = find_job(cluster, LAST_PASS, "RUNNING")
    assert job is not None
    if end == "scancel":
        cluster.command("scancel", job)
    else:
        cluster.kill_job(job)
    process.wait(120)
    out = tmp_path / "out"
    assert_failed(log.read_text(), process.returncode, reason)
    assert_every_file_is_whole(out)
    # What does not need the step was finished.
    found = results(out)
    assert any(name.endswith("desc-rd_parcelstats.tsv") for name in found)
    assert found.items() < undisturbed().items()
    assert not [name for name in found if "desc-fnm" in name]
    assert_ended_well(run(*words), out, undisturbed())


def test_squeue_fails_for_ten_seconds(
    arguments, connectomes, undisturbed, start, run, tmp_path, cluster
):
    began, real = tmp_path / "began", shutil.which("squeue")
    environment = fake_command(
        tmp_path,
        "squeue",
        f"[ -e {began} ] || date +%s > {began}\n"
        f"if [ $(( $(date +%s) - $(cat {began}) )) -lt 10 ]; then\n"
        '  echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2; exit 1\n'
        f'fi\nexec {real} "$@"',
    )
    words, out = arguments(tmp_path, connectomes["first"]), tmp_path / "out"
    process, log = start(*words, env=environment)
    held = []

    def is_held():
        held.append(stop_in_the_middle(tmp_path / "work", LAST_PASS))
        return held[-1] is not None

    # The last job outlives the ten seconds, so that squeue is asked afterwards too.
    wait_until(is_held, process, log)
    wait_until(lambda: "SLURM answers again" in log_of(out), process, log)
    os.kill(held[-1], signal.SIGCONT)
    assert process.wait(300) == 0, log.read_text()
    assert log.read_text().splitlines()[-1] == f"Results: {out}"
    assert log_of(out).count("Socket timed out") == 1
    assert results(out) == undisturbed()
    assert_ended_well(run(*words), out, undisturbed())


def test_the_controller_restarts_in_the_middle(
    arguments, connectomes, undisturbed, start, run, cluster, tmp_path
):
    words, out = arguments(tmp_path, connectomes["first"]), tmp_path / "out"
    process, log = start(*words)
    held = []

    def is_held():
        held.append(stop_in_the_middle(tmp_path / "work", LAST_PASS))
        return held[-1] is not None

    wait_until(is_held, process, log)
    cluster.stop_daemon("slurmctld")
    try:
        # The job ends while nobody is there to be told.
        os.kill(held[-1], signal.SIGCONT)
        time.sleep(3)
    finally:
        cluster.start_daemon("slurmctld")
    assert process.wait(300) == 0, log.read_text()
    assert log.read_text().splitlines()[-1] == f"Results: {out}"
    assert results(out) == undisturbed()
    deadline = time.monotonic() + 60
    while not cluster.is_ready():
        assert time.monotonic() < deadline, cluster.logs()
        time.sleep(0.1)
    assert_ended_well(run(*words), out, undisturbed())


def test_sbatch_is_rejected(arguments, connectomes, undisturbed, run, cluster, tmp_path):
    words, out = arguments(tmp_path, connectomes["first"]), tmp_path / "out"
    before = len(cluster.jobs("all"))
    nowhere = arguments(tmp_path, connectomes["first"], sbatch_args="--partition=nowhere")
    process = run(*nowhere)
    assert_failed(process.stdout, process.returncode, "partition")
    assert len(cluster.jobs("all")) == before
    assert_every_file_is_whole(out)
    assert not [name for name in results(out) if name.startswith("sub-")]
    assert_ended_well(run(*words), out, undisturbed())


def test_the_manager_is_killed(arguments, connectomes, undisturbed, start, run, cluster, tmp_path):
    words, out = arguments(tmp_path, connectomes["first"]), tmp_path / "out"
    process, log = start(*words)
    held = []

    def is_held():
        held.append(stop_in_the_middle(tmp_path / "work", LAST_PASS))
        return held[-1] is not None

    wait_until(is_held, process, log)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert_every_file_is_whole(out)
    assert results(out).items() < undisturbed().items()
    left = find_job(cluster, LAST_PASS, "RUNNING")
    assert left is not None
    # It does not work on the same files as the job of the next run.
    again = run(*words)
    assert cluster.description(left)["JobState"] == "CANCELLED"
    assert_ended_well(again, out, undisturbed())
