"""External programs: found or not, new enough or not."""

import shutil

import pytest

from lacuna_nipype.core.exceptions import DependencyError
from lacuna_nipype.execution.programs import check_mrtrix, require_mrtrix_commands

HAS_MRTRIX = shutil.which("tckedit") is not None


@pytest.fixture
def fake_command(tmp_path, monkeypatch):
    """Make commands that print a text for ``-version``, the only ones on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name, answer):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\necho '{answer}'\n")
        script.chmod(0o755)

    return make


@pytest.mark.mrtrix
@pytest.mark.skipif(not HAS_MRTRIX, reason="MRtrix3 is not on PATH")
def test_installed_mrtrix():
    assert check_mrtrix(["tckedit", "tckmap", "mrcalc"], minimum="3.0").startswith("3.")


@pytest.mark.parametrize(
    "version", ["3.0.3", "3.0.10", "3.0.4-12-gabcdef0-dirty", "3.1", "4.0.0-dev"]
)
def test_new_enough(fake_command, version):
    fake_command("tckedit", f"== tckedit {version} ==")
    assert check_mrtrix(["tckedit"]) == version


@pytest.mark.parametrize("version", ["3.0.2", "3.0_RC3-86-g4b523b41", "0.3.15", "2.9.9"])
def test_too_old(fake_command, version):
    fake_command("tckmap", "== tckmap 3.0.3 ==")
    fake_command("tckedit", f"== tckedit {version} ==")
    with pytest.raises(DependencyError, match=r"tckedit is from MRtrix3 .* 3\.0\.3 or newer"):
        check_mrtrix(["tckmap", "tckedit"])


def test_missing_commands_are_named_together(fake_command):
    fake_command("tckmap", "== tckmap 3.0.3 ==")
    with pytest.raises(DependencyError) as error:
        check_mrtrix(["tckedit", "tckmap", "mrcalc"])
    message = str(error.value)
    assert "commands tckedit, mrcalc cannot be found" in message
    assert "apt-get install mrtrix3" in message
    assert "conda install" in message
    assert "\n" not in message


def test_another_program_of_that_name(fake_command):
    fake_command("tckedit", "Tcl kit editor 8.6")
    with pytest.raises(DependencyError, match="does not answer as MRtrix3 does"):
        check_mrtrix(["tckedit"])


def test_explicit_search_path(tmp_path):
    with pytest.raises(DependencyError, match="command tckedit cannot"):
        require_mrtrix_commands(["tckedit", "tckedit"], path=str(tmp_path))


def test_nothing_asked():
    with pytest.raises(ValueError, match="at least one"):
        check_mrtrix([])
