"""``lacuna-nipype fetch templates``: the table, and downloads without a network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transform_data import NLIN6, NLIN2009C, write_brain_mask

import lacuna_nipype
from lacuna_nipype.cli.main import main

BOTH = [NLIN6, NLIN2009C]


def command(*words, home, program=("-m", "lacuna_nipype"), **env):
    checkout = str(Path(lacuna_nipype.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *program, *map(str, words)],
        env={**os.environ, "PYTHONPATH": checkout, "TEMPLATEFLOW_HOME": str(home), **env},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_dry_run_prints_the_table(templateflow_home, capsys):
    assert main(["fetch", "templates", "--for", "FSL", "MNI152NLin2009bAsym", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert str(templateflow_home) in lines[0]
    states = {line.split()[-1]: line.split()[0] for line in lines[1:]}
    assert states == {
        f"tpl-{NLIN2009C}/tpl-{NLIN2009C}_from-{NLIN6}_mode-image_xfm.h5": "present",
        f"tpl-{NLIN6}/tpl-{NLIN6}_from-{NLIN2009C}_mode-image_xfm.h5": "present",
        f"tpl-{NLIN6}/tpl-{NLIN6}_res-01_desc-brain_mask.nii.gz": "missing",
        f"tpl-{NLIN6}/tpl-{NLIN6}_res-02_desc-brain_mask.nii.gz": "present",
        f"tpl-{NLIN2009C}/tpl-{NLIN2009C}_res-01_desc-brain_mask.nii.gz": "missing",
        f"tpl-{NLIN2009C}/tpl-{NLIN2009C}_res-02_desc-brain_mask.nii.gz": "present",
    }


def test_spaces_of_one_anatomy_need_their_mask_only(templateflow_home, capsys):
    spaces = ["MNI152NLin2009aAsym", NLIN2009C, "MNI152NLin2009bAsym"]
    assert main(["fetch", "templates", "--for", *spaces, "--dry-run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    "words",
    [
        ["templates", "--for", NLIN6, "MNIColin27"],
        ["templates", "--for", "nowhere"],
        ["templates", "--for"],
        ["templates"],
        ["nothing"],
        [],
    ],
)
def test_wrong_arguments(templateflow_home, capsys, words):
    assert main(["fetch", *words]) == 2
    assert capsys.readouterr().err.splitlines()[-1]


def test_help_needs_nothing(tmp_path):
    done = command("fetch", "templates", "--help", home=tmp_path / "none")
    assert done.returncode == 0
    assert "--for" in done.stdout
    assert not (tmp_path / "none").exists()


def test_nothing_is_downloaded_where_all_is_there(warps, tmp_path, capsys, monkeypatch):
    for space in BOTH:
        shutil.copytree(warps.home / f"tpl-{space}", tmp_path / f"tpl-{space}")
        write_brain_mask(tmp_path, space, 1)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    monkeypatch.setattr("lacuna_nipype.atlases.templates._download", None)
    assert main(["fetch", "templates", "--for", *BOTH]) == 0
    assert "missing" not in capsys.readouterr().out


def test_without_a_network_it_ends_with_one_sentence(tmp_path):
    # A proxy at which nobody listens.
    proxy = "http://127.0.0.1:9"
    done = command(
        "fetch", "templates", "--for", *BOTH,
        home=tmp_path, https_proxy=proxy, HTTPS_PROXY=proxy, no_proxy="", NO_PROXY="",
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"tpl-{NLIN2009C}_from-{NLIN6}_mode-image_xfm.h5" in last
    assert "network" in last
    assert "Traceback" not in done.stderr
    # What is left is a placeholder, which counts as missing.
    path = tmp_path / f"tpl-{NLIN2009C}" / f"tpl-{NLIN2009C}_from-{NLIN6}_mode-image_xfm.h5"
    assert path.stat().st_size == 0


SERVER = """
import sys
import requests

class Answer:
    status_code = {status}
    headers = {{}}
    def __init__(self, url):
        assert url.startswith("https://"), url
        start = b"\\x89HDF\\r\\n\\x1a\\n" if url.endswith(".h5") else b"\\x1f\\x8b"
        self.content = {content}
    def iter_content(self, size):
        yield self.content
        if {breaks}:
            raise requests.exceptions.ConnectionError("cut")

requests.get = lambda url, **options: Answer(url)
from lacuna_nipype.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def served(home, *words, status=200, content="start + url.encode()", breaks=False):
    script = SERVER.format(status=status, content=content, breaks=breaks)
    return command(*words, home=home, program=("-c", script))


@pytest.mark.parametrize("stocked", [False, True])
def test_templateflows_client_fetches_each_file_from_its_place(tmp_path, stocked):
    kept = tmp_path / f"tpl-{NLIN6}" / f"tpl-{NLIN6}_res-02_desc-brain_mask.nii.gz"
    if stocked:
        # A home without TemplateFlow's placeholders, but for one file that is there.
        kept.parent.mkdir()
        kept.write_bytes(b"\x1f\x8b own")
    done = served(tmp_path, "fetch", "templates", "--for", *BOTH)
    assert done.returncode == 0, done.stderr
    names = [line.split()[-1] for line in done.stdout.splitlines()[1:7]]
    assert len(names) == 6
    for name in names:
        content = (tmp_path / name).read_bytes()
        if stocked and tmp_path / name == kept:
            assert content == b"\x1f\x8b own"
        else:
            assert content.endswith(f"/{name}".encode())
    assert done.stdout.count("Fetched") == 5 + (not stocked)
    again = command("fetch", "templates", "--for", *BOTH, home=tmp_path)
    assert again.returncode == 0
    assert "missing" not in again.stdout


@pytest.mark.parametrize(
    "wrong",
    [{"content": "b'<html>sign in</html>'"}, {"breaks": True}, {"status": 503}],
    ids=["a message", "cut off", "refused"],
)
def test_what_is_not_the_file_is_not_kept(tmp_path, wrong):
    done = served(tmp_path, "fetch", "templates", "--for", *BOTH, **wrong)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    path = tmp_path / f"tpl-{NLIN2009C}" / f"tpl-{NLIN2009C}_from-{NLIN6}_mode-image_xfm.h5"
    assert path.stat().st_size == 0
