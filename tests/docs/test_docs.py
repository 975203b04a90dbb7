"""The documentation: its commands run, its workflow blocks build, its list of files is whole."""

import argparse
import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import pytest

import lacuna_nipype
from lacuna_nipype.cli.main import COMMANDS
from lacuna_nipype.data import load_json
from lacuna_nipype.io import group_association
from lacuna_nipype.workflows import init_snm_wf

ROOT = Path(lacuna_nipype.__file__).parents[1]
DOCS = ROOT / "docs"
# Readers type the commands of these in one folder, in this order.
PAGES = ("quickstart", "tutorial_functional", "tutorial_structural")
BLOCK = re.compile(
    r"^```\{code-block\} (?P<language>bash|python)\n:class: run\n\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# Of docker, apptainer, SLURM, Lacuna.
FOREIGN_OPTIONS = (
    "--account", "--array", "--cleanenv", "--clusters", "--connectome-path", "--cpus-per-task",
    "--dependency", "--job-name", "--kill-on-invalid-dep", "--output", "--parsable",
    "--partition", "--rm", "--time",
)  # fmt: skip
SHIM = '#!/bin/sh\nexec "{python}" {arguments} "$@"\n'


def marked_blocks():
    """Language and code of every block that is marked as run, in the order of the pages."""
    return [
        pytest.param(block["language"], block["code"], id=f"{page}-{number}")
        for page in PAGES
        for number, block in enumerate(BLOCK.finditer((DOCS / f"{page}.md").read_text()), 1)
    ]


def names_of_pattern(pattern):
    """Regular expression of the paths that a pattern of the specification makes."""
    expression = ""
    for part in re.split(r"(\{[^}]*\}|[\[\]])", pattern):
        if part == "[":
            expression += "(?:"
        elif part == "]":
            expression += ")?"
        elif part.startswith("{"):
            allowed = re.search(r"<(.*?)>", part)
            values = map(re.escape, allowed[1].split("|")) if allowed else ["[a-zA-Z0-9+]+"]
            expression += f"(?:{'|'.join(values)})"
        else:
            expression += re.escape(part)
    return re.compile(expression)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Hold everything that the pages write."""
    return tmp_path_factory.mktemp("docs")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Describe a reader's machine: the command on PATH, data folders of its own, no network."""
    programs = tmp_path_factory.mktemp("bin")
    for name, arguments in (("lacuna-nipype", "-m lacuna_nipype"), ("python", "")):
        program = programs / name
        program.write_text(SHIM.format(python=sys.executable, arguments=arguments))
        program.chmod(0o755)
    home = tmp_path_factory.mktemp("home")
    nowhere = "http://127.0.0.1:9"
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "LACUNA_DATA_DIR": str(home / "lacuna"),
        "TEMPLATEFLOW_HOME": str(home / "templateflow"),
        "MPLBACKEND": "Agg",
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nowhere),
    }


@pytest.mark.e2e
@pytest.mark.parametrize(("language", "code"), marked_blocks())
def test_block_runs(language, code, folder, environment):
    words = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else ["python", "-c"]
    done = subprocess.run(
        [shutil.which(words[0], path=environment["PATH"]), *words[1:], code],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_marked_block_is_found():
    """A block that is typed otherwise would be skipped in silence."""
    marks = sum((DOCS / f"{page}.md").read_text().count(":class: run") for page in PAGES)
    assert len(marked_blocks()) == marks >= 10


# --- What the pages wrote -------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(folder):
    """Files of all derivatives that the pages made."""
    found = [
        path
        for root in ("results", "functional", "regions", "structural")
        for path in sorted((folder / root).rglob("*"))
        if path.is_file()
    ]
    if not found:
        pytest.skip("the blocks of the pages were not run")
    return found


@pytest.fixture(scope="module")
def outputs_page():
    return (DOCS / "outputs.md").read_text()


def test_every_file_is_on_the_page_of_outputs(written, folder, outputs_page):
    patterns = load_json("lacuna_bids_config.json")["default_path_patterns"]
    expressions = [names_of_pattern(pattern) for pattern in patterns]
    listed = re.findall(r"^\| `([^`]+)` \|", outputs_page, re.MULTILINE)
    unknown = []
    for path in written:
        name = "/".join(path.relative_to(folder).parts[1:])
        known = any(expression.fullmatch(name) for expression in expressions)
        if not known and not any(PurePosixPath(name).match(pattern) for pattern in listed):
            unknown.append(name)
    assert not unknown


def keys_of(content):
    """All keys of a JSON object, those inside of it too, except names of atlases."""
    for key, value in content.items():
        yield key
        if key == "Matrices":
            value = next(iter(value.values()))
        if key == "Atlases":
            value = value[0]
        if key in ("Matrices", "Atlases"):
            yield from value


def test_every_number_and_sidecar_key_is_on_the_page_of_outputs(written, outputs_page):
    unknown = set()
    for path in written:
        name = path.name
        if path.suffix != ".json" or not name.startswith(("sub-", "group", "tpl-")):
            continue
        if name.endswith(("_desc-provenance.json", "_dseg.json")) or "state" in path.parts:
            continue
        for key in keys_of(json.loads(path.read_text())):
            # Tables describe their columns, which begin with a small letter or a digit.
            if key[0].isupper() and f"`{key}`" not in outputs_page:
                unknown.add((name, key))
    assert not unknown


def test_every_column_is_on_the_page_of_outputs(written, outputs_page):
    own = {*group_association.CLUSTER_COLUMNS, *group_association.PARCEL_COLUMNS}
    unknown = set()
    for path in written:
        if not path.name.endswith(("_parcelstats.tsv", "_clusters.tsv")):
            continue
        columns = path.read_text().split("\n", 1)[0].split("\t")
        if path.name.startswith("group"):
            columns = columns[: columns.index("mask_label") + 1]
        unknown |= {
            name for name in columns if name not in own and f"`{name}`" not in outputs_page
        }
    assert not unknown


# --- The rest of the pages ------------------------------------------------------------------


def test_usage_has_every_command():
    page = (DOCS / "usage.md").read_text()
    for command in COMMANDS:
        assert f"lacuna_nipype.cli.{command}:" in page


def options_of(parser):
    """All long options of a parser and of its subcommands."""
    for action in parser._actions:
        yield from (name for name in action.option_strings if name.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from options_of(inner)


def test_pages_name_options_that_exist():
    known = set(FOREIGN_OPTIONS)
    page = (DOCS / "usage.md").read_text()
    for module, name, prog in re.findall(r"\{usage\} ([\w.]+):(\w+)\n(:prog:)?", page):
        function = getattr(importlib.import_module(module), name)
        parser = argparse.ArgumentParser() if prog else function()
        if prog:
            function(parser)
        known |= set(options_of(parser))
    unknown = {
        (path.name, option)
        for path in DOCS.glob("*.md")
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", path.read_text())
        if option not in known
    }
    assert not unknown


def test_drawing_of_the_architecture_has_every_folder():
    drawn = re.findall(r'class="name"[^>]*>([^<]+)<', (DOCS / "architecture.svg").read_text())
    folders = [path.parent.name for path in (ROOT / "lacuna_nipype").glob("*/__init__.py")]
    assert sorted(drawn) == sorted([*folders, "api"])


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text()
    listed = set(re.findall(r"^(\w+)$", index, re.MULTILINE))
    assert {path.stem for path in DOCS.glob("*.md")} - {"index"} == listed


@pytest.fixture
def draw_workflow(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "extensions")
    return importlib.import_module("graph_drawing").draw_workflow


def test_graphs_of_the_pages_can_be_drawn(draw_workflow):
    """Those in docstrings are built by the tests of the workflows."""
    page = (DOCS / "workflows.md").read_text()
    blocks = re.findall(r"^\.\. workflow::\n\n((?: {4}.*\n|\n)+)", page, re.MULTILINE)
    assert blocks
    for block in blocks:
        names = {}
        exec(textwrap.dedent(block), names)  # noqa: S102 - our own page
        assert draw_workflow(names["wf"]).count("<rect") == len(names["wf"]._graph)


@pytest.mark.parametrize("engine", ["mrtrix", "index"])
def test_drawing_of_a_workflow_has_every_node_and_edge(draw_workflow, engine):
    workflow = init_snm_wf(engine=engine, atlas_names=["A"], with_groups=True)
    svg = ElementTree.fromstring(draw_workflow(workflow))  # noqa: S314 - made here
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in svg.iter(f"{space}text")]
    graph = workflow._graph
    assert {node.name for node in graph.nodes()} <= set(texts)
    assert len(list(svg.iter(f"{space}title"))) == graph.number_of_edges()
    boxes = [
        [float(box.get(key)) for key in ("x", "y", "width", "height")]
        for box in svg.iter(f"{space}rect")
    ]
    for first, second in itertools.combinations(boxes, 2):
        apart = [
            first[axis] + first[axis + 2] <= second[axis]
            or second[axis] + second[axis + 2] <= first[axis]
            for axis in (0, 1)
        ]
        assert any(apart)
