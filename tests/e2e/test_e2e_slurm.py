"""The real command on a real SLURM of one machine."""

import pytest
from slurm_cluster import reason_to_skip, running_cluster

PARTICIPANT = ("--participant-label", "02")


@pytest.fixture(scope="module")
def cluster():
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def run_with(demonstration, full_arguments, run_command, tmp_path_factory):
    """Run everything on one participant, and give the process and the output folder."""

    def run(plugin, *words, env=None):
        folder = tmp_path_factory.mktemp(plugin)
        process = run_command(
            *(demonstration.bids_dir, folder / "out", "participant", *full_arguments),
            *(*PARTICIPANT, "--plugin", plugin, "-w", folder / "work", *words),
            env=env,
            timeout=600,
        )
        return process, folder / "out"

    return run


def results(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and "logs" not in path.parts
        and "desc-provenance" not in path.name
        # Reports quote the command.
        and path.suffix != ".html"
    }


def test_a_cluster_does_not_change_a_byte(run_with, cluster, validate_bids):
    on_cluster, out = run_with("SLURM", env=cluster.environment)
    assert on_cluster.returncode == 0, on_cluster.stdout
    here, other = run_with("MultiProc")
    assert here.returncode == 0, here.stdout
    assert results(out) == results(other)
    assert on_cluster.stdout.splitlines()[-1] == f"Results: {out}"
    # Every step was a job.
    assert len(cluster.jobs("all")) > 10
    validate_bids(out)


def test_a_partition_that_is_not_there(run_with, cluster):
    words = ("--plugin-args", '{"sbatch_args": "--partition=nowhere"}')
    process, _ = run_with("SLURM", *words, env=cluster.environment)
    assert process.returncode == 1
    assert "Traceback" not in process.stdout
    assert "partition" in process.stdout.splitlines()[-1]


def test_a_machine_without_slurm(run_with, tmp_path):
    process, _ = run_with("SLURM", env={"PATH": str(tmp_path)})
    assert process.returncode == 127
    assert "sbatch" in process.stdout.splitlines()[-1]
