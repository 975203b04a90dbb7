"""What holds for the repository as a whole: its files, the layers of the package, import costs."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lacuna_nipype

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lacuna_nipype"

# Lowest first; a module imports from its own folder and from the layers below it.
LAYERS = [
    {"data"},
    {"core"},
    {"remote"},
    {"atlases", "connectomes", "execution"},
    {"reports", "io"},
    {"interfaces"},
    {"workflows"},
    {"cli"},
    {"__main__", "api"},
]
LEVEL = {folder: level for level, layer in enumerate(LAYERS) for folder in layer}
EVERYWHERE = {"__version__", "data"}
# The numerics know neither nipype nor a network.
FOREIGN_TO_CORE = {"nipype", "requests", "templateflow", "urllib"}


def imported_modules(source: str, package: str) -> set[str]:
    """Absolute dotted names of all that a module of ``package`` imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            anchor = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join(anchor + ([node.module] if node.module else []))
            names.update(f"{origin}.{alias.name}" for alias in node.names)
    return names


def forbidden_imports(source: str, package: str, folder: str) -> list[str]:
    """Imports that break the layer rule, for a module of ``folder`` in ``package``."""
    wrong = []
    for name in sorted(imported_modules(source, package)):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top != "lacuna_nipype":
            upward = folder == "core" and top in FOREIGN_TO_CORE
        elif target in {"", folder, *EVERYWHERE}:
            upward = False
        else:
            upward = LEVEL.get(target, len(LAYERS)) >= LEVEL.get(folder, -1)
        if upward:
            wrong.append(name)
    return wrong


def python_files() -> list[str]:
    """Modules of the package, relative to it."""
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def modules_loaded(*arguments: str) -> dict[str, int]:
    """Run Python with ``arguments``; the modules it imported and their cumulative microseconds."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    complaint = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 0, "\n".join(complaint)
    rows = re.findall(r"^import time:\s*\d+ \|\s*(\d+) \|\s*(\S+)$", done.stderr, re.MULTILINE)
    return {name: int(microseconds) for microseconds, name in rows}


def top_level(modules: dict[str, int]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("name", ["interfaces", "workflows"])
def test_top_level_links_lead_into_the_package(name):
    assert (ROOT / name).is_symlink()
    assert (ROOT / name).resolve() == PACKAGE / name
    assert (ROOT / name).is_dir()


@pytest.mark.parametrize("name", ["scripts/setup-environment.sh", ".ci/run"])
def test_scripts_are_executable(name):
    assert os.access(ROOT / name, os.X_OK)


def test_licence_is_the_one_declared():
    first, second = (ROOT / "LICENSE").read_text().split("\n")[1:3]
    assert first.strip() == "Apache License"
    assert second.strip().startswith("Version 2.0")


def test_citation_and_changes_name_this_version():
    version = lacuna_nipype.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [version]
    release = version.partition(".dev")[0]
    assert f"\n## {release}" in (ROOT / "CHANGES.md").read_text()


def test_every_folder_belongs_to_a_layer():
    folders = {path.name for path in PACKAGE.iterdir() if any(path.rglob("*.py"))}
    assert folders <= set(LEVEL)


@pytest.mark.parametrize("name", python_files())
def test_imports_go_downwards_only(name):
    path = PACKAGE / name
    package = ".".join(path.parent.relative_to(ROOT).parts)
    folder = Path(name).parts[0].removesuffix(".py")
    assert forbidden_imports(path.read_text(), package, folder) == []


@pytest.mark.parametrize(
    ("folder", "statement"),
    [
        ("core", "import nipype"),
        ("core", "def late():\n    from nipype.interfaces import base"),
        ("core", "from lacuna_nipype.io import masks"),
        ("connectomes", "from lacuna_nipype.atlases import catalogue"),
        ("remote", "from lacuna_nipype.connectomes import registry"),
        ("io", "from ..interfaces import masks"),
        ("interfaces", "import lacuna_nipype.workflows.base"),
        ("workflows", "from lacuna_nipype import cli"),
        ("io", "from .. import workflows"),
    ],
)
def test_layer_rule_sees_an_upward_import(folder, statement):
    assert forbidden_imports(statement, f"lacuna_nipype.{folder}", folder)


@pytest.mark.parametrize(
    ("folder", "statement"),
    [
        ("core", "from lacuna_nipype import __version__"),
        ("core", "from .files import write_atomically"),
        ("io", "from . import masks"),
        ("io", "from ..core import masks"),
        ("interfaces", "import nipype\nfrom lacuna_nipype.io.masks import collect"),
        ("cli", "from lacuna_nipype import data, workflows"),
    ],
)
def test_layer_rule_allows_a_downward_import(folder, statement):
    assert forbidden_imports(statement, f"lacuna_nipype.{folder}", folder) == []


def test_importing_the_package_is_cheap():
    modules = modules_loaded("-c", "import lacuna_nipype")
    assert modules["lacuna_nipype"] < 300_000
    assert not top_level(modules) & {"nipype", "nilearn"}


def test_help_imports_neither_nipype_nor_nilearn():
    modules = modules_loaded("-m", "lacuna_nipype", "--help")
    assert "lacuna_nipype.cli.main" in modules
    assert not top_level(modules) & {"nipype", "nilearn"}
