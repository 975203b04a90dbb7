"""What tests of several folders share."""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lacuna_nipype.io.demonstration import DemonstrationPaths

_CHECKOUT = Path(__file__).parents[1]


def _load(name):
    """Import a module that lies beside this file, whatever the working folder is."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


# Loaded before any test module, so that these write ``from transform_data import ...``.
_load("transform_data")
_load("fmriprep_data")
_load("loopback")
_load("prepared_command")
_load("slurm_cluster")
_load("group_data")
_load("siibra_server")
_load("run_results")
_load("pages")


def pytest_collection_modifyitems(items):
    """Put the longest modules first, so that no worker is left alone with one at the end."""
    longest = {"e2e": 0, "execution": 1}
    items.sort(key=lambda item: longest.get(item.path.parent.name, 2))


@pytest.fixture(autouse=True)
def data_folder(tmp_path_factory, monkeypatch):
    """Keep tests away from the registries and downloads of whoever runs them."""
    folder = tmp_path_factory.mktemp("data", numbered=True)
    monkeypatch.setenv("LACUNA_DATA_DIR", str(folder))
    return folder


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory):
    """The tutorial's data, made by its command once for all workers; each has a copy."""
    own = tmp_path_factory.getbasetemp()
    common = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    made = common / "tutorial"
    with (common / "tutorial.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            words = [sys.executable, "-m", "lacuna_nipype", "tutorial", common / "unfinished"]
            subprocess.run(words, check=True, capture_output=True, cwd=_CHECKOUT)
            (common / "unfinished").rename(made)
    paths = DemonstrationPaths(tmp_path_factory.mktemp("demonstration") / "demo")
    shutil.copytree(made, paths.directory)
    return paths


@pytest.fixture(scope="session")
def warps(tmp_path_factory):
    """Both synthetic transforms between the standard spaces, in a TemplateFlow home."""
    return _load("transform_data").write_templateflow_home(tmp_path_factory.mktemp("templateflow"))


@pytest.fixture
def templateflow_home(warps, monkeypatch):
    """Let TEMPLATEFLOW_HOME name the folder of the synthetic transforms."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(warps.home))
    return warps.home
