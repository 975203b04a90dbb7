"""The same files given to the command itself, in a process of its own."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import data, kinds, plain

CODES = (0, 1, 2, 3, 127)
SECONDS = 90


@dataclass(frozen=True)
class Command:
    """A command and the files it reads.

    Parameters
    ----------
    name : str
    make : callable
        Writes sound files into a folder.
    targets : tuple of str
        Files that are spoilt, one at a time.
    words : callable
        Arguments of the command, given the folder.
    check : callable
        Given the folder and what was printed, says what is wrong with a success; empty for
        nothing.
    claims : callable
        Files that a failed command must not leave behind.
    """

    name: str
    make: Callable[[Path], object]
    targets: tuple[str, ...]
    words: Callable[[Path], list[object]]
    check: Callable[[Path, str], str]
    claims: Callable[[Path], list[Path]] = lambda folder: []


def environment(folder: Path) -> dict[str, str]:
    package = Path(__file__).resolve().parents[2]
    return {
        **os.environ,
        "LACUNA_DATA_DIR": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "TEMPLATEFLOW_HOME": str(folder / "templateflow"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")])),
    }


def run(command: Command, folder: Path, sound: Path, target: str) -> str:
    """Run a command on a folder one of whose files is spoilt.

    Returns
    -------
    str
        ``success`` or ``exit code N``.

    Raises
    ------
    AssertionError
        It hangs, ends in a traceback or with an odd code, says nothing, or is wrong.
    """
    words = [sys.executable, "-m", "lacuna_nipype", *map(str, command.words(folder))]
    process = subprocess.Popen(
        words, cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        printed, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise AssertionError(f"no end within {SECONDS} s") from None
    text = printed.decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    code = process.returncode
    if "Traceback (most recent call last)" in text:
        raise AssertionError(f"traceback, exit code {code}:\n{text[-3000:]}")
    if code not in CODES:
        raise AssertionError(f"exit code {code}:\n{text[-2000:]}")
    if code:
        # A failed run ends with the place of its log, behind the sentence.
        if not last.rpartition(" Log: ")[0].endswith(".") and not last.rstrip().endswith(
            (".", "?", ")", ":", "'")
        ):
            raise AssertionError(f"exit code {code} without a sentence:\n{text[-2000:]}")
        left = command.claims(folder)
        if left:
            raise AssertionError(f"exit code {code}, and yet there is {left[0]}")
        return f"exit code {code}"
    try:
        complaint = command.check(folder, text)
    except Exception:  # noqa: BLE001 - the file says nothing, so its damage must not matter
        restore(folder / target, sound / target)
        complaint = command.check(folder, text)
    if complaint:
        raise AssertionError(f"exit code 0, but {complaint}:\n{text[-1500:]}")
    return "success"


def restore(path: Path, sound: Path) -> None:
    """Put the sound file in the place of the spoilt one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    shutil.copy2(sound, path)


# Masks of a dataset


def _check_input(folder: Path) -> list[object]:
    return ["check", "input", folder / "bids", "--bids-filter-file", folder / "filter.json",
            "--output-file", folder / "table.tsv", "--nprocs", 1]  # fmt: skip


def _right_table(folder: Path, text: str) -> str:
    with (folder / "table.tsv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    mask = folder / "bids" / "sub-01" / "anat" / f"{data.MASK_NAME}.nii.gz"
    expected = [int(plain.mask(mask)["mask"].sum())]
    found = [int(float(row["voxels"])) for row in rows]
    return "" if found == expected else f"it counts {found} voxels, not {expected}"


# Connectomes


def _info(name: str) -> Callable[[Path], list[object]]:
    return lambda folder: ["connectome", "info", folder / name, "--json", "--check-data"]


def _right_subjects(name: str) -> Callable[[Path, str], str]:
    def check(folder: Path, text: str) -> str:
        found = json.loads(text[text.index("{") :])
        said = plain.connectome(folder / name)["series"].shape
        shape = [found["NumberOfSubjects"], found["NumberOfTimePoints"], found["NumberOfVoxels"]]
        expected = [said[0], [said[1]], said[2]]
        return "" if shape == expected else f"it says {shape}, not {expected}"

    return check


def _right_streamlines(name: str, reader: kinds.Reader) -> Callable[[Path, str], str]:
    def check(folder: Path, text: str) -> str:
        found = json.loads(text[text.index("{") :])["Check"]["Streamlines"]
        expected = len(reader(folder / name))
        return "" if found == expected else f"it counts {found} streamlines, not {expected}"

    return check


def _valid_json(folder: Path, text: str) -> str:
    json.loads(text[text.index("{") :])
    return ""


def _convert(name: str) -> Callable[[Path], list[object]]:
    return lambda folder: ["connectome", "convert", folder / name, folder / "out.tck",
                           "--space", data.SPACE]  # fmt: skip


def _same_streamlines(name: str, reader: kinds.Reader) -> Callable[[Path, str], str]:
    def check(folder: Path, text: str) -> str:
        found, expected = plain.tck(folder / "out.tck"), reader(folder / name)
        same = len(found) == len(expected) and all(
            a.shape == b.shape and np.allclose(a, b, atol=1e-3)
            for a, b in zip(found, expected, strict=True)
        )
        return (
            "" if same else f"{len(found)} streamlines differ from the {len(expected)} of {name}"
        )

    return check


def _names(folder: Path, text: str) -> str:
    expected = [row[0] for row in kinds.KINDS_BY_NAME["registry"].plain(folder)]
    missing = [name for name in expected if name.strip() and name.split()[0] not in text]
    return f"it does not list {missing[0]!r}" if missing else ""


def _sources(folder: Path, text: str) -> str:
    return "" if "gsp1000" in text.lower() else "it does not list gsp1000"


COMMANDS: tuple[Command, ...] = (
    *(Command("check input", kinds.make_dataset, (target,), _check_input, _right_table)
      for target in (f"bids/sub-01/anat/{data.MASK_NAME}.nii.gz",
                     f"bids/sub-01/anat/{data.MASK_NAME}.json",
                     "bids/dataset_description.json", "filter.json")),
    *(Command("connectome info", kinds.make_connectomes, (name,), _info(name),
              _right_subjects(name)) for name in ("packed.h5", "plain.h5")),
    Command("connectome info", kinds.make_store, ("store/source.h5",), _info("store/source.h5"),
            _valid_json),
    Command("connectome info", kinds.make_index, ("index.h5",), _info("index.h5"), _valid_json),
    *(Command("connectome info", kinds.make_tractograms, (name,), _info(name),
              _right_streamlines(name, reader)) for name, reader in kinds.TRACTOGRAMS),
    *(Command("connectome convert", kinds.make_tractograms, (name,), _convert(name),
              _same_streamlines(name, reader), lambda folder: list(folder.glob("out.tck")))
      for name, reader in kinds.TRACTOGRAMS[1:]),
    Command("connectome list", data.write_registry, ("connectomes/registry.json",),
            lambda folder: ["connectome", "list"], _names),
    Command("fetch --list", data.write_registry, ("connectomes/sources.json",),
            lambda folder: ["fetch", "--list"], _sources),
)  # fmt: skip
