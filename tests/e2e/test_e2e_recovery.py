"""A run that is killed and started again ends like one that never was."""

import gzip
import json
import os
import shutil
import signal
import time

import nibabel as nib
import numpy as np
import pytest

N_FILES = 8
PATIENCE_SECONDS = 120
ATTEMPTS = 5


@pytest.fixture(scope="module")
def long_connectome(demonstration, tmp_path_factory):
    """The tutorial's files several times over: enough passes to be killed between them."""
    folder = tmp_path_factory.mktemp("connectome") / "long"
    folder.mkdir()
    sources = sorted(demonstration.functional_connectome.iterdir())
    for number in range(N_FILES):
        (folder / f"part-{number}.h5").symlink_to(sources[number % len(sources)])
    return folder


@pytest.fixture(scope="module")
def arguments(demonstration, full_arguments, long_connectome):
    """Arguments of a run, from its folder."""
    changed = [
        long_connectome if word == demonstration.functional_connectome else word
        for word in full_arguments
    ]

    def make(folder, plugin):
        return (
            *(demonstration.bids_dir, folder / "out", "participant", *changed),
            *("--participant-label", "02", "03", "--plugin", plugin, "-w", folder / "work"),
        )

    return make


def wait_until(condition, process, log):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, f"the run ended before it could be killed: {log()}"
        assert time.monotonic() < deadline, log()
        time.sleep(0.01)


def start_and_kill(start_command, arguments, folder, condition):
    """Start a run, and kill its whole process group when the condition holds."""
    log = folder / "killed.log"
    process = start_command(*arguments, log=log)
    try:
        wait_until(condition, process, log.read_text)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    assert process.returncode == -signal.SIGKILL


def finished_passes(work):
    """Results of passes over one connectome file that nipype has noted as finished."""
    noted = [path for path in work.rglob("_correlate*/_0x*.json") if "unfinished" not in path.name]
    partial = [path.with_name("partial.h5") for path in noted]
    return {path: path.stat().st_mtime_ns for path in partial}


def results(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and "logs" not in path.parts
        and "desc-provenance" not in path.name
        and not path.name.startswith(".tmp-")
    }


def assert_every_file_is_whole(out):
    for path in out.rglob("*"):
        # A killed process may leave a hidden file under a name that no reader takes for a result.
        if not path.is_file() or path.name.startswith(".tmp-") or "logs" in path.parts:
            continue
        if path.name.endswith(".nii.gz"):
            gzip.decompress(path.read_bytes())
            assert np.isfinite(nib.load(path).get_fdata()).all(), path.name
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".tsv":
            assert len(path.read_text(encoding="utf-8").splitlines()) == 101, path.name


@pytest.fixture(scope="module")
def uninterrupted(arguments, run_command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = run_command(*arguments(folder, "Linear"))
    assert run.returncode == 0, run.stdout
    return results(folder / "out")


@pytest.mark.parametrize("plugin", ["Linear", "MultiProc"])
def test_a_killed_run_continues_where_it_was(
    plugin, arguments, uninterrupted, start_command, run_command, validate_bids, tmp_path
):
    out, work = tmp_path / "out", tmp_path / "work"
    words = arguments(tmp_path, plugin)

    # Killed between the passes over the connectome.
    start_and_kill(start_command, words, tmp_path, lambda: len(finished_passes(work)) >= 2)
    first = finished_passes(work)
    assert 2 <= len(first) < N_FILES
    assert_every_file_is_whole(out)

    # Killed again while derivatives are being stored. A busy machine may be late for that, so the
    # run can be set back to where it was.
    for name in ("out", "work"):
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-kept", symlinks=True)
    for _ in range(ATTEMPTS):
        start_and_kill(start_command, words, tmp_path,
                       lambda: any(out.rglob("*_desc-fnm_*.nii.gz")))  # fmt: skip
        if set(results(out)) < set(uninterrupted):
            break
        for name in ("out", "work"):
            shutil.rmtree(tmp_path / name)
            shutil.copytree(tmp_path / f"{name}-kept", tmp_path / name, symlinks=True)
    second = finished_passes(work)
    assert len(second) == N_FILES
    assert {path: second[path] for path in first} == first
    assert_every_file_is_whole(out)
    assert set(results(out)) < set(uninterrupted)

    last = run_command(*words)
    assert last.returncode == 0, last.stdout
    assert last.stdout.splitlines()[-1] == f"Results: {out}"
    assert finished_passes(work) == second
    assert results(out) == uninterrupted
    validate_bids(out)


def test_files_of_a_killed_run_do_not_count_as_results(
    arguments, run_command, validate_bids, demonstration, tmp_path
):
    """What a process killed in the middle of a copy leaves behind is nobody's result."""
    out = tmp_path / "out"
    words = (
        *(demonstration.bids_dir, out, "participant", "--parcel-atlases", "Demo"),
        *("--participant-label", "04", "--plugin", "Linear", "-w", tmp_path / "work"),
    )
    folder = out / "sub-04" / "anat"
    folder.mkdir(parents=True)
    (folder / ".tmp-abc.nii.gz").write_bytes(b"half of a map")
    (folder / ".tmp-abc.json").write_bytes(b"{")
    run = run_command(*words)
    assert run.returncode == 0, run.stdout
    validate_bids(out)
