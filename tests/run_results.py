"""What tests of whole runs look at: the results, and whether every file of them is whole."""

import contextlib
import gzip
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np


def results(out):
    """Content of every result by its path; logs and provenance tell when and how instead."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and "logs" not in path.parts
        and "desc-provenance" not in path.name
        # A killed process may leave a hidden file under a name that no reader takes for a result.
        and not path.name.startswith(".tmp-")
    }


def assert_every_file_is_whole(out):
    """Nothing that is named like a result is half of one."""
    for name, content in results(out).items():
        assert content, name
        if name.endswith(".nii.gz"):
            image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
            assert np.isfinite(image.get_fdata()).all(), name
        elif name.endswith(".json"):
            json.loads(content)
        elif name.endswith(".tsv"):
            rows = [line.split("\t") for line in content.decode().splitlines()]
            assert len({len(row) for row in rows}) == 1, name
            assert len(rows) > 1, name


def wait_until(condition, process, log, seconds=120):
    """Wait for something that a run in the background does."""
    deadline = time.monotonic() + seconds
    while not condition():
        text = log.read_text()
        assert process.poll() is None, f"the run ended before: {text}"
        assert time.monotonic() < deadline, text
        time.sleep(0.01)


def assert_ended_well(process, out, expected):
    """A run says where its results are, and they are those of an undisturbed run."""
    assert process.returncode == 0, process.stdout
    assert process.stdout.splitlines()[-1] == f"Results: {out}"
    assert results(out) == expected


def assert_failed(text, returncode, reason, *, hint=None):
    """The reason is in the last line, the table and the hint are before it, and no traceback."""
    assert returncode == 1, text
    last = text.splitlines()[-1]
    assert last.startswith("lacuna-nipype: "), text
    assert reason in last, text
    assert "Traceback" not in text
    assert "Failed steps:" in text
    if hint is not None:
        assert re.search(f"^Hint: .*{hint}", text, re.MULTILINE), text


def two_versions(source, tmp_path_factory, n_files):
    """Two versions of a connectome in several files, which differ in the last of them.

    Files of both are of the same size. The folders by version.
    """
    sources = sorted(source.glob("*.h5"))
    versions = {}
    for version, power in (("first", 1), ("second", 3)):
        # The name of the folder is in the sidecars.
        folder = versions[version] = tmp_path_factory.mktemp(version) / "connectome"
        folder.mkdir()
        for number in range(n_files):
            part = folder / f"part-{number}.h5"
            shutil.copyfile(sources[number % len(sources)], part)
        _store_plainly(part, power)
    return versions


def _store_plainly(path, power):
    """Change the series of a file; without compression, its size does not tell."""
    with h5py.File(path, "r+") as file:
        series = file["timeseries"][:] ** power
        del file["timeseries"]
        file.create_dataset("timeseries", data=series, track_times=False)


def processes_in(folder):
    """Processes that work in a folder or below: their numbers and where they are."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            place = (path / "cwd").readlink()
            if place.is_relative_to(folder):
                found[int(path.name)] = place
    return found


def stop_in_the_middle(work, step):
    """Hold a worker while it runs a step; its number, or None where none can be had now."""
    for pid, folder in processes_in(work).items():
        if step not in folder.name:
            continue
        os.kill(pid, signal.SIGSTOP)
        still_there = processes_in(work).get(pid) == folder
        if still_there and not list(folder.glob("result_*.pklz")):
            return pid
        os.kill(pid, signal.SIGCONT)
    return None
