"""What tests of several folders share."""

import importlib.util
import sys
from pathlib import Path

import pytest


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
def warps(tmp_path_factory):
    """Both synthetic transforms between the standard spaces, in a TemplateFlow home."""
    return _load("transform_data").write_templateflow_home(tmp_path_factory.mktemp("templateflow"))


@pytest.fixture
def templateflow_home(warps, monkeypatch):
    """Let TEMPLATEFLOW_HOME name the folder of the synthetic transforms."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(warps.home))
    return warps.home
