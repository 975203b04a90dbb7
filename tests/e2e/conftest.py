"""The real command in a process of its own, and the tutorial's data to run it on."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from prepared_command import PreparedCommand

import lacuna_nipype

MRTRIX_COMMANDS = ("tckedit", "tckmap", "tck2connectome", "mrcalc")
HAS_MRTRIX = all(shutil.which(name) for name in MRTRIX_COMMANDS)
PROCESSORS = "2"
NO_REPORTS = "--no-reports"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            # Nothing needs MRtrix3 but the engine of that name; .ci/run and `make test` install it
            # where they can, so this skips only where neither root nor conda is at hand.
            if item.get_closest_marker("mrtrix") and not HAS_MRTRIX:
                item.add_marker(pytest.mark.skip(reason="MRtrix3 is not on PATH"))


def command_line(*arguments, reports=False):
    """Words of the command; pages take seconds, and only their own tests ask for them."""
    words = [str(argument) for argument in arguments]
    level = "participant" in words or "group" in words
    if level and not reports and NO_REPORTS not in words:
        words.append(NO_REPORTS)
    return [sys.executable, "-m", "lacuna_nipype", *words]


def environment(changes=None):
    """Environment of the command: this checkout, whatever else is installed."""
    checkout = str(Path(lacuna_nipype.__file__).parents[1])
    paths = [checkout, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(changes or {})}


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended: what it printed, and the folders it used."""

    process: subprocess.CompletedProcess
    arguments: tuple
    out: Path
    work: Path


@pytest.fixture(scope="session")
def prepared_command():
    """An interpreter that has imported what the command needs, and forks at every run of it."""
    prepared = PreparedCommand(environment())
    yield prepared
    prepared.close()


@pytest.fixture(scope="session")
def run_command(prepared_command, tmp_path_factory):
    """Run the command; both streams come back as one text, in the order of a terminal."""
    elsewhere = tmp_path_factory.mktemp("cwd")

    def run(*arguments, env=None, timeout=120, cwd=elsewhere, reports=False):
        words, changed = command_line(*arguments, reports=reports), environment(env)
        finished = prepared_command.run(words[3:], env=changed, cwd=cwd, timeout=timeout)
        return finished or subprocess.run(
            words,
            cwd=cwd,
            env=changed,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def start_command():
    """Start the command in a process group of its own and do not wait for it."""

    def start(*arguments, log, env=None):
        with log.open("w") as stream:
            return subprocess.Popen(
                command_line(*arguments),
                cwd=log.parent,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    return start


@pytest.fixture(scope="session")
def full_arguments(demonstration):
    """Arguments for all analyses."""
    return (
        *("--functional-connectome", demonstration.functional_connectome),
        *("--structural-connectome", demonstration.structural_connectome),
        *("--parcel-atlases", "Demo"),
        *("--nprocs", PROCESSORS),
    )


@pytest.fixture(scope="session")
def full_run(demonstration, full_arguments, run_command, tmp_path_factory):
    """One finished run of everything with a plugin; kept for the session."""
    finished = {}

    def run(plugin):
        if plugin not in finished:
            folder = tmp_path_factory.mktemp(plugin)
            arguments = (
                *(demonstration.bids_dir, folder / "out", "participant"),
                *full_arguments,
                *("--plugin", plugin, "-w", folder / "work", NO_REPORTS),
            )
            process = run_command(*arguments)
            assert process.returncode == 0, process.stdout
            finished[plugin] = FinishedRun(process, arguments, folder / "out", folder / "work")
        return finished[plugin]

    return run


@pytest.fixture(scope="session")
def multiproc(full_run):
    return full_run("MultiProc")


@pytest.fixture(scope="session")
def linear(full_run):
    return full_run("Linear")


@pytest.fixture(scope="session")
def validate_bids():
    """Run the BIDS validator on a dataset; skips where it is not installed."""

    def validate(dataset):
        beside_python = Path(sys.executable).parent / "bids-validator-deno"
        validator = shutil.which("bids-validator-deno") or shutil.which(beside_python)
        if validator is None:
            pytest.skip("bids-validator-deno is not installed")
        run = subprocess.run([validator, dataset], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout

    return validate
