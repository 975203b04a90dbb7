"""TemplateFlow's files, looked up without a network."""

import subprocess
import sys

import pytest
from transform_data import NLIN6, NLIN2009C

from lacuna_nipype.atlases.templates import (
    fetch_command,
    find_template,
    find_transform,
    missing_sentence,
    template_needs,
    templateflow_home,
    transform_chain,
)
from lacuna_nipype.core.exceptions import ValidationError

FAMILY = ["MNI152NLin2009aAsym", "MNI152NLin2009bAsym", NLIN2009C]


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_home_is_that_of_templateflow(monkeypatch, tmp_path):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert templateflow_home() == tmp_path / "a"
    monkeypatch.delenv("TEMPLATEFLOW_HOME")
    assert templateflow_home() == tmp_path / "b" / "templateflow"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert templateflow_home() == tmp_path / "c" / ".cache" / "templateflow"


@pytest.mark.parametrize("relative", FAMILY)
def test_chains_name_templateflows_spaces(relative):
    assert transform_chain("FSL", relative) == [(NLIN6, NLIN2009C)]
    assert transform_chain(relative, NLIN6) == [(NLIN2009C, NLIN6)]
    for other in FAMILY:
        assert transform_chain(relative, other) == []
    assert transform_chain(NLIN6, "MNI152_2mm") == []


def test_colin27_cannot_be_warped():
    assert transform_chain("Colin27", "MNIColin27") == []
    for pair in ((NLIN6, "Colin27"), ("MNIColin27", NLIN2009C)):
        with pytest.raises(ValidationError, match="MNIColin27"):
            transform_chain(*pair)


def test_the_direction_is_that_of_images(templateflow_home, warps):
    assert find_transform(NLIN6, "MNI152NLin2009bAsym") == warps.to_2009c
    assert find_transform(NLIN2009C, "FSL") == warps.to_nlin6
    assert warps.to_2009c.name == f"tpl-{NLIN2009C}_from-{NLIN6}_mode-image_xfm.h5"
    with pytest.raises(ValidationError, match="anatomy"):
        find_transform(NLIN2009C, "MNI152NLin2009aAsym")


def test_placeholders_are_absent(empty_home, warps):
    name = f"tpl-{NLIN6}/{warps.to_nlin6.name}"
    assert find_transform(NLIN2009C, NLIN6) is None
    (empty_home / f"tpl-{NLIN6}").mkdir(parents=True)
    (empty_home / name).touch()
    assert find_template(name) is None
    (empty_home / name).write_bytes(b"1")
    assert find_transform(NLIN2009C, NLIN6) == empty_home / name
    # A link of datalad whose content was not fetched.
    (empty_home / name).unlink()
    (empty_home / name).symlink_to("../.git/annex/objects/none")
    assert find_template(name) is None


def test_what_is_missing_is_said_with_its_command(empty_home):
    pairs = [(NLIN6, FAMILY[1]), (FAMILY[0], "FSL"), (NLIN6, NLIN2009C), (FAMILY[0], FAMILY[2])]
    needs = template_needs(pairs)
    assert [need.name for need in needs] == [
        f"tpl-{NLIN2009C}/tpl-{NLIN2009C}_from-{NLIN6}_mode-image_xfm.h5",
        f"tpl-{NLIN6}/tpl-{NLIN6}_from-{NLIN2009C}_mode-image_xfm.h5",
    ]
    assert all(need.path is None and need.kind == "transform" for need in needs)
    assert needs[0].command == fetch_command([NLIN6, NLIN2009C])
    sentence = missing_sentence(needs)
    for text in (needs[0].name, needs[1].name, str(empty_home), needs[0].command):
        assert text in sentence
    assert needs[1].name not in missing_sentence(needs[:1])
    assert missing_sentence([]) == ""
    (empty_home / f"tpl-{NLIN6}").mkdir(parents=True)
    needs[1].expected.write_bytes(b"1")
    found = template_needs(pairs)
    assert [need.path for need in found] == [None, needs[1].expected]
    assert needs[1].name not in missing_sentence(found)


def test_looking_up_imports_no_client(tmp_path):
    script = (
        "import sys; from lacuna_nipype.atlases import masks, templates; "
        "print(templates.find_transform('FSL', 'MNI152NLin2009cAsym'), "
        "'templateflow' in sys.modules, 'requests' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"TEMPLATEFLOW_HOME": str(tmp_path / "none"), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["None", "False", "False"]
    assert not (tmp_path / "none").exists()
