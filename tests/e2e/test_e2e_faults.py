"""What clusters do to runs: no half-written result, a message that helps, and a rerun that ends.

Each fault happens to the real command; what is left is compared with an undisturbed run.
"""

import contextlib
import errno
import os
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

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

from lacuna_nipype.workflows.base import workflow_name

N_FILES = 4
PARTICIPANT = "04"
MEBIBYTE = 2**20
# What is left of a disk that is full: less than a map, but more than nothing.
LEFT_BYTES = 16 * 1024


@pytest.fixture(scope="module")
def connectomes(demonstration, tmp_path_factory):
    """Two versions of a connectome in several files, which differ in the last of them."""
    return two_versions(demonstration.functional_connectome, tmp_path_factory, N_FILES)


@pytest.fixture
def connectome(connectomes, tmp_path):
    """A copy of the first version that a test may change."""
    return Path(shutil.copytree(connectomes["first"], tmp_path / "copy" / "connectome"))


@pytest.fixture(scope="module")
def arguments(demonstration):
    def make(out, work, connectome, *more, plugin="MultiProc"):
        return (
            *(demonstration.bids_dir, out, "participant", "--parcel-atlases", "Demo"),
            *("--functional-connectome", connectome, "--participant-label", PARTICIPANT),
            *("--plugin", plugin, "--nprocs", "2", "-w", work, *more),
        )

    return make


@pytest.fixture(scope="module")
def undisturbed(arguments, connectomes, run_command, tmp_path_factory):
    """Results with each version of the connectome, without any fault."""
    made = {}

    def run(version="first"):
        if version not in made:
            folder = tmp_path_factory.mktemp(f"undisturbed-{version}")
            out, work = folder / "out", folder / "work"
            process = run_command(*arguments(out, work, connectomes[version]))
            assert process.returncode == 0, process.stdout
            made[version] = results(out)
        return made[version]

    return run


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes in /proc")
def test_a_worker_is_killed(
    arguments, connectomes, undisturbed, start_command, run_command, tmp_path
):
    out, work = tmp_path / "out", tmp_path / "work"
    words = arguments(out, work, connectomes["first"])
    log = tmp_path / "killed.log"
    process = start_command(*words, log=log)
    held = []

    def is_held():
        held.append(stop_in_the_middle(work, "_correlate"))
        return held[-1] is not None

    try:
        wait_until(is_held, process, log)
        os.kill(held[-1], signal.SIGKILL)
        process.wait(120)
    finally:
        process.kill()
    text = log.read_text()
    assert_failed(text, process.returncode, "signal 9", hint="--nprocs")
    assert re.search(r"^  all +fnm_wf\.correlate\._correlate\d", text, re.MULTILINE), text
    assert_every_file_is_whole(out)
    # What does not need the step was finished.
    assert any(name.endswith("desc-rd_parcelstats.tsv") for name in results(out))
    assert results(out).items() < undisturbed().items()
    assert_ended_well(run_command(*words), out, undisturbed())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own; a function fills it but for some bytes, another empties it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={16 * MEBIBYTE}", "tmpfs", folder]
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")

    def fill():
        with (folder / "filler").open("wb") as stream:
            while True:
                space = os.statvfs(folder)
                size = space.f_bavail * space.f_frsize - LEFT_BYTES
                try:
                    os.posix_fallocate(stream.fileno(), 0, size)
                except OSError as error:
                    # The run took some of it in between.
                    if error.errno != errno.ENOSPC:
                        raise
                else:
                    return

    yield folder, fill, (folder / "filler").unlink
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(
    ("where", "plugin"), [("out", "MultiProc"), ("out", "Linear"), ("work", "MultiProc")]
)
def test_the_disk_is_full(
    where, plugin, small_disk, arguments, connectomes, undisturbed, start_command, run_command,
    tmp_path,
):  # fmt: skip
    disk, fill, empty = small_disk
    out, work = (disk if name == where else tmp_path for name in ("out", "work"))
    out, work = out / "out", work / "work"
    words = arguments(out, work, connectomes["first"], plugin=plugin)
    log = tmp_path / "full.log"
    process = start_command(*words, log=log)
    try:
        # Maps are made, and about to be stored.
        wait_until(lambda: any(work.rglob("_correlate*/result_*.pklz")), process, log)
        fill()
        process.wait(120)
    finally:
        process.kill()
    assert_failed(log.read_text(), process.returncode, "Errno 28", hint="Disk full")
    assert_every_file_is_whole(out)
    # What is there is right.
    assert results(out).items() < undisturbed().items()
    empty()
    assert_ended_well(run_command(*words), out, undisturbed())


@contextlib.contextmanager
def largest_file(n_bytes):
    """Let no file that is written grow beyond a size: what a quota does, without being root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_limit_of_size(arguments, connectomes, undisturbed, run_command, tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    words = arguments(out, work, connectomes["first"])
    with largest_file(200 * 1024):
        process = run_command(*words)
    assert_failed(process.stdout, process.returncode, "Errno 27", hint="file size")
    assert_every_file_is_whole(out)
    assert results(out).items() < undisturbed().items()
    assert_ended_well(run_command(*words), out, undisturbed())


def test_a_connectome_file_is_replaced_between_runs(
    arguments, connectome, connectomes, undisturbed, run_command, tmp_path
):
    out, work = tmp_path / "out", tmp_path / "work"
    words = arguments(out, work, connectome)
    assert_ended_well(run_command(*words), out, undisturbed("first"))
    # As `cp -p` of another version leaves it: of the same size and time.
    last = connectome / f"part-{N_FILES - 1}.h5"
    before = last.stat()
    shutil.copyfile(connectomes["second"] / last.name, last)
    assert last.stat().st_size == before.st_size
    os.utime(last, ns=(before.st_atime_ns, before.st_mtime_ns))
    process = run_command(*words)
    assert_ended_well(process, out, undisturbed("second"))


def test_a_connectome_file_is_replaced_in_the_middle_of_a_run(
    arguments, connectome, connectomes, undisturbed, start_command, run_command, tmp_path
):
    out, work = tmp_path / "out", tmp_path / "work"
    words = arguments(out, work, connectome, plugin="Linear")
    log = tmp_path / "replaced.log"
    last = connectome / f"part-{N_FILES - 1}.h5"
    shutil.copyfile(connectomes["second"] / last.name, connectome / ".new")
    process = start_command(*words, log=log)
    try:
        wait_until(lambda: any(work.rglob("_correlate0/result_*.pklz")), process, log)
        (connectome / ".new").replace(last)
        process.wait(120)
    finally:
        process.kill()
    assert_failed(log.read_text(), process.returncode, f"{last} has changed")
    # No map of some subjects of the one version and some of the other.
    assert not [name for name in results(out) if "desc-fnm" in name]
    assert_every_file_is_whole(out)
    assert_ended_well(run_command(*words), out, undisturbed("second"))


def test_runs_on_one_output_folder_at_once(
    arguments, connectomes, undisturbed, start_command, run_command, validate_bids, tmp_path
):
    out, log = tmp_path / "out", tmp_path / "first.log"
    words = arguments(out, tmp_path / "work", connectomes["first"])
    process = start_command(*words, log=log)
    others = []
    try:
        # It has told the others what it does, and holds no lock that they wait for.
        begun = (tmp_path / "work" / workflow_name()).joinpath("lesions.json")
        wait_until(begun.exists, process, log)
        assert any(out.glob("logs/running/*.json"))
        os.kill(process.pid, signal.SIGSTOP)
        # The same work folder.
        refused = run_command(*words)
        assert refused.returncode == 2, refused.stdout
        assert f"{tmp_path / 'work'} is in use by another run" in refused.stdout.splitlines()[-1]
        # The same lesions with other results, which would be mixed with those of the first.
        mixed = arguments(out, tmp_path / "mixed", connectomes["first"], "--t-threshold", "2")
        refused = run_command(*mixed)
        assert refused.returncode == 2, refused.stdout
        assert f"works on sub-{PARTICIPANT}" in refused.stdout.splitlines()[-1]
        os.kill(process.pid, signal.SIGCONT)
        # The same results, and those of another participant.
        same = arguments(out, tmp_path / "same", connectomes["first"])
        more = ["05" if word == PARTICIPANT else word for word in same]
        more[more.index(tmp_path / "same")] = tmp_path / "other"
        for name, own in (("same", same), ("other", more)):
            own_log = tmp_path / f"{name}.log"
            others.append((start_command(*own, log=own_log), own_log))
        for running, own_log in [(process, log), *others]:
            assert running.wait(240) == 0, own_log.read_text()
            assert own_log.read_text().splitlines()[-1] == f"Results: {out}"
    finally:
        for running in [process, *(other for other, _ in others)]:
            running.kill()
    assert not any(out.glob("logs/running/*"))
    assert_every_file_is_whole(out)
    found = results(out)
    expected = undisturbed()
    assert {name: content for name, content in found.items() if name in expected} == expected
    new = {name.split("/")[0] for name in set(found) - set(expected)}
    assert new == {"sub-05"}
    validate_bids(out)
