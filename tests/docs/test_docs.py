"""The documentation: its commands run, its workflow blocks build, its list of files is whole."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lacuna_nipype
from lacuna_nipype.data import load_json

ROOT = Path(lacuna_nipype.__file__).parents[1]
DOCS = ROOT / "docs"
# Readers type the commands of these in one folder, in this order.
PAGES = ("quickstart", "tutorial_functional", "tutorial_structural")
BLOCK = re.compile(
    r"^```\{code-block\} (?P<language>bash|python)\n:class: run\n\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SHIM = '#!/bin/sh\nexec "{python}" {arguments} "$@"\n'


def marked_blocks():
    """Language and code of every block that is marked as run, in the order of the pages."""
    for page in PAGES:
        for number, block in enumerate(BLOCK.finditer((DOCS / f"{page}.md").read_text()), 1):
            yield pytest.param(block["language"], block["code"], id=f"{page}-{number}")


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
    print(done.stdout)  # noqa: T201 - shown when a later block fails
