"""Files of the structural side that become others while a run reads them.

The first version of a file gives other results than the second, which is of the same size and
time. Whenever the one takes the place of the other, nothing may be stored that both went into.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_results import assert_ended_well, assert_every_file_is_whole, assert_failed, results

import lacuna_nipype

PARTICIPANT = "05"
N_STREAMLINES = 12_000


class Versions:
    """Two versions of each file, under the same name."""

    def __init__(self, folder, tractogram):
        self.folders = {}
        for version in ("first", "second"):
            self.folders[version] = folder / version
            self.folders[version].mkdir()
            (self.folders[version] / "demo.json").write_bytes(
                tractogram.with_suffix(".json").read_bytes()
            )
            weights = np.full(N_STREAMLINES, 0.5) + (version == "second") * 0.25
            np.savetxt(self.folders[version] / "weights.txt", weights, fmt="%.2f")
        content = tractogram.read_bytes()
        (self.folders["first"] / "demo.tck").write_bytes(content)
        start = content.index(b"\nfile: . ") + len(b"\nfile: . ")
        offset = int(content[start : content.index(b"\n", start)])
        points = np.frombuffer(content, dtype="<f4", offset=offset) + np.float32(3)
        moved = content[:offset] + points.astype("<f4").tobytes()
        assert len(moved) == len(content)
        (self.folders["second"] / "demo.tck").write_bytes(moved)


@pytest.fixture(scope="module")
def versions(demonstration, run_command, tmp_path_factory):
    made = Versions(tmp_path_factory.mktemp("versions"), demonstration.structural_connectome)
    # Indices of one and the same tractogram.
    for version, resolution in (("first", "2"), ("second", "1")):
        tractogram = made.folders["first"] / "demo.tck"
        index = made.folders[version] / "demo.h5"
        process = run_command(
            "connectome", "convert", tractogram, index, "--resolution", resolution
        )
        assert process.returncode == 0, process.stdout
    return made


@pytest.fixture(scope="module")
def arguments(demonstration):
    def make(folder, files, engine, *more):
        return (
            *(demonstration.bids_dir, folder / "out", "participant", "--analysis", "snm"),
            *("--participant-label", PARTICIPANT, "--parcel-atlases", "Demo"),
            *("--structural-connectome", files / ("demo.h5" if engine == "made" else "demo.tck")),
            *("--compute-disconnectivity-matrix", "--plugin", "Linear", "-w", folder / "work"),
            *(["--snm-engine", engine] if engine != "made" else []),
            *more,
        )

    return make


class Files:
    """Files of a run, of which one may become its second version."""

    def __init__(self, folder, versions, name):
        self.folder, self.path = folder / "files", folder / "files" / name
        shutil.copytree(versions.folders["first"], self.folder)
        # The index finds its tractogram where it was made.
        self.new = folder / "new"
        shutil.copyfile(versions.folders["second"] / name, self.new)
        status = self.path.stat()
        os.utime(self.new, ns=(status.st_atime_ns, status.st_mtime_ns))

    def replace(self):
        """Do it, as ``mv`` does."""
        self.new.replace(self.path)


@pytest.fixture
def make_files(tmp_path, versions):
    return lambda name: Files(tmp_path, versions, name)


def weights_of(files):
    return ("--streamline-weights", files.folder / "weights.txt")


@pytest.fixture(scope="module")
def expected(versions, arguments, run_command, tmp_path_factory):
    """Results with the second version of a file, without any fault."""
    finished = {}

    def run(name, engine, weights):
        if (name, engine, weights) not in finished:
            folder = tmp_path_factory.mktemp("undisturbed")
            files = Files(folder, versions, name)
            files.replace()
            more = weights_of(files) if weights else ()
            process = run_command(*arguments(folder, files.folder, engine, *more))
            assert process.returncode == 0, process.stdout
            finished[name, engine, weights] = results(folder / "out")
        return finished[name, engine, weights]

    return run


def assert_nothing_is_mixed(text, code, files, out):
    assert_failed(text, code, f"{files.path} has changed since the run began")
    assert not [name for name in results(out) if "desc-snm" in name]
    assert_every_file_is_whole(out)


@pytest.mark.mrtrix
@pytest.mark.parametrize(("name", "command"), [("demo.tck", "tckmap"), ("demo.tck", "tckedit"),
                                               ("weights.txt", "tckmap")])  # fmt: skip
def test_while_mrtrix_reads(name, command, make_files, arguments, expected, run_command, tmp_path):
    files = make_files(name)
    words = arguments(tmp_path, files.folder, "mrtrix", *weights_of(files))
    commands = tmp_path / "bin"
    commands.mkdir()
    # The command itself reads the one version, and whatever comes after it the other.
    (commands / command).write_text(
        f'#!/bin/sh\n{shutil.which(command)} "$@"\ncode=$?\n'
        # Asked for its version, it reads nothing.
        f"[ $# -lt 3 -o ! -e {files.new} ] || mv {files.new} {files.path}\nexit $code\n"
    )
    (commands / command).chmod(0o755)
    before = run_command(*words, env={"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"})
    assert not files.new.exists()
    assert_nothing_is_mixed(before.stdout, before.returncode, files, tmp_path / "out")
    again = run_command(*words)
    assert_ended_well(again, tmp_path / "out", expected(name, "mrtrix", weights=True))


# The real command, in which a step of the class that is named ends with the file replaced.
REPLACING = """
import os, sys
from lacuna_nipype.cli.main import run_from_command_line
from lacuna_nipype.interfaces import streamlines

new, path, step = sys.argv[1:4]
interface = getattr(streamlines, step)
run = interface._run_interface

def run_and_replace(self, runtime):
    runtime = run(self, runtime)
    if os.path.exists(new):
        os.replace(new, path)
    return runtime

interface._run_interface = run_and_replace
sys.argv[1:] = sys.argv[4:]
run_from_command_line()
"""


@pytest.mark.parametrize(
    ("name", "engine", "step"),
    [
        ("demo.tck", "index", "CheckTractogram"),
        ("demo.tck", "index", "BuildStreamlineIndex"),
        ("demo.tck", "index", "IndexedDensity"),
        ("weights.txt", "index", "CheckTractogram"),
        ("demo.h5", "made", "CheckTractogram"),
        ("demo.h5", "made", "IndexedDensity"),
    ],
)
def test_between_the_steps(
    name, engine, step, make_files, arguments, expected, run_command, tmp_path
):
    files = make_files(name)
    words = arguments(tmp_path, files.folder, engine, *weights_of(files))
    checkout = str(Path(lacuna_nipype.__file__).parents[1])
    paths = [checkout, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.run(
        [sys.executable, "-c", REPLACING, files.new, files.path, step, *words, "--no-reports"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, cwd=tmp_path, timeout=120,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert not files.new.exists()
    assert_nothing_is_mixed(process.stdout, process.returncode, files, tmp_path / "out")
    again = run_command(*words)
    assert_ended_well(again, tmp_path / "out", expected(name, engine, weights=True))


@pytest.mark.parametrize("engine", [pytest.param("mrtrix", marks=pytest.mark.mrtrix), "index"])
def test_between_runs(engine, make_files, arguments, expected, run_command, tmp_path):
    files = make_files("demo.tck")
    words = arguments(tmp_path, files.folder, engine)
    first = run_command(*words)
    assert first.returncode == 0, first.stdout
    before = results(tmp_path / "out")
    files.replace()
    after = expected("demo.tck", engine, weights=False)
    assert after != before
    assert_ended_well(run_command(*words), tmp_path / "out", after)
