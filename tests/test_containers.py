"""The container files name what is there, and agree with each other."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
APPTAINER = (ROOT / "apptainer.def").read_text()


def instructions(name):
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def section(name):
    return re.search(rf"^%{name}\n((?:    .*\n)+)", APPTAINER, re.MULTILINE)[1]


def copied():
    """Files that the Dockerfile takes from the checkout."""
    return {
        source
        for line in instructions("COPY")
        if not line.startswith("--from")
        for source in line.split()[:-1]
    }


def packages(text):
    lists = re.findall(r"--no-install-recommends ([^&\n]+)", text)
    return {name for line in lists for name in line.split()}


def test_what_is_copied_exists_and_is_the_same_in_both():
    assert copied() == {line.split()[0] for line in section("files").splitlines()}
    assert all((ROOT / name).exists() for name in copied())


def test_docker_ignores_all_but_what_is_copied():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == copied()


def test_both_install_the_same_debian_packages():
    assert packages(DOCKERFILE) == packages(section("post"))
    assert "mrtrix3" in packages(DOCKERFILE)


def test_nobody_is_root_and_the_command_is_the_entry_point():
    assert instructions("USER")[-1] == "lacuna"
    assert "lacuna-nipype" in instructions("ENTRYPOINT")[0]
    assert "lacuna-nipype" in section("runscript")
    assert len(set(instructions("FROM")[-1].split()) & {APPTAINER.split()[3]}) == 1
