"""One case after the other, in a process that may die of them.

The process reads lines of JSON with the number and the folder of a case and answers with lines
of JSON; whatever else is printed goes elsewhere.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .commands import COMMANDS, SECONDS, Command, run
from .kinds import KINDS, Kind
from .mutations import pick, spoil
from .runs import RUNS

# Every so many cases one goes through the command line.
COMMAND_EVERY = 10
# A reader may take so long; a command longer.
CASE_SECONDS = 20
# What a process may map, and what it may really use, beyond what it needs without any case.
ADDRESS_BYTES = 6_000_000_000
RESIDENT_BYTES = 700_000_000
MOST_CHARACTERS = 1500


def case_of(seed: int, number: int) -> tuple[Kind | Command, str, np.random.Generator]:
    """What a case reads, which file is spoilt, and the generator of the damage."""
    rng = np.random.default_rng([seed, number])
    command = number % COMMAND_EVERY == COMMAND_EVERY - 1
    subject: Kind | Command = pick(rng, (*COMMANDS, *RUNS) if command else KINDS)
    return subject, pick(rng, subject.targets), rng


def make_sound(subject: Kind | Command, base: Path) -> Path:
    """The folder with the sound files of a kind, made once."""
    folder = base / subject.make.__name__
    if not folder.is_dir():
        partial = base / f"{folder.name}.{os.getpid()}"
        partial.mkdir(parents=True)
        subject.make(partial)
        try:
            partial.rename(folder)
        except OSError:  # another worker was faster
            shutil.rmtree(partial)
    return folder


def run_case(seed: int, number: int, base: Path, folder: Path) -> dict[str, Any]:
    """Spoil a file, read it, and judge what came of it."""
    subject, target, rng = case_of(seed, number)
    sound = make_sound(subject, base)
    shutil.copytree(sound, folder, symlinks=True)
    damage = spoil(folder / target, rng)
    # A bomb is heavy for those who make it, too.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = {"kind": subject.name, "target": target, "damage": damage, "peak": peak}
    if isinstance(subject, Command):
        try:
            return {**report, "outcome": run(subject, folder, sound, target)}
        except Exception as error:  # noqa: BLE001 - anything else is a finding
            return {**report, "outcome": "FAILED", "detail": f"{error}"}
    try:
        return {**report, **_judge(subject, sound, folder)}
    except Exception:  # noqa: BLE001 - anything else is a finding
        return {**report, "outcome": "FAILED", "detail": traceback.format_exc()}


def _judge(kind: Kind, sound: Path, folder: Path) -> dict[str, Any]:
    from lacuna_nipype.core.exceptions import LacunaError

    try:
        result = kind.read(folder)
    except LacunaError as error:
        fault = _fault_of(str(error))
        detail = f"{type(error).__name__}: {error}"
        return {"outcome": "FAILED" if fault else "one sentence", "detail": f"{fault}{detail}"}
    if same(result, _sound_result(kind, sound)):
        return {"outcome": "same result"}
    if kind.plain is None:
        return {"outcome": "possible"} if kind.free and kind.free(result) else _wrong(result, None)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            said = kind.plain(folder)
    except Exception as error:  # noqa: BLE001 - the file says nothing
        if kind.free is not None and kind.free(result):
            return {"outcome": "possible"}
        return _wrong(result, error)
    return {"outcome": "as the file says"} if same(result, said) else _wrong(result, said)


def _fault_of(message: str) -> str:
    """What is wrong with a message to the user."""
    if "\n" in message or not all(c.isprintable() for c in message):
        return "[message is not one printable line] "
    if len(message) > MOST_CHARACTERS:
        return f"[message of {len(message)} characters] "
    return "" if message.rstrip().endswith((".", "?")) else "[message is no sentence] "


def _wrong(result: Any, said: Any) -> dict[str, Any]:
    return {
        "outcome": "FAILED",
        "detail": f"a result that the file does not say: {result!r:.1500}\nplain: {said!r:.1500}",
    }


_results: dict[str, Any] = {}


def _sound_result(kind: Kind, sound: Path) -> Any:
    if kind.name not in _results:
        copy = sound.with_name(f"{sound.name}.read.{os.getpid()}")
        shutil.copytree(sound, copy)
        _results[kind.name] = kind.read(copy)
        if kind.plain is not None and not same(_results[kind.name], kind.plain(copy)):
            raise AssertionError(f"{kind.name}: the plain reader disagrees about a sound file")
        shutil.rmtree(copy)
    return _results[kind.name]


def same(first: Any, second: Any) -> bool:
    """Tell whether two results are equal, numbers up to rounding."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    arrays = isinstance(first, np.ndarray) or isinstance(second, np.ndarray)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and not arrays:
        return len(first) == len(second) and all(map(same, first, second))
    if arrays or (isinstance(first, float | int) and isinstance(second, float | int)):
        if not arrays and first == second:
            return True
        a, b = np.asarray(first), np.asarray(second)
        if a.shape != b.shape or a.dtype.kind not in "biuf" or b.dtype.kind not in "biuf":
            return False
        with np.errstate(all="ignore"):
            return bool(np.allclose(a, b, rtol=1e-5, atol=1e-4, equal_nan=True))
    return bool(first == second)


def main(seed: int, base: Path) -> None:
    """Answer lines from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(base / f"printed-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(1, 2)
    faulthandler.enable()
    limit_memory()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        asked = json.loads(line)
        folder = Path(asked["folder"])
        # Where a crash or an endless loop is; the case then counts as failed, and the worker ends.
        command = asked["number"] % COMMAND_EVERY == COMMAND_EVERY - 1
        faulthandler.dump_traceback_later(CASE_SECONDS + SECONDS * command, exit=True)
        report = run_case(seed, asked["number"], base, folder)
        faulthandler.cancel_dump_traceback_later()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = max(start, report.pop("peak"))
        if (peak - start) * 1024 > RESIDENT_BYTES:
            report["detail"] = f"{(peak - start) // 1024} MB of memory; {report.get('detail')}"
            report["outcome"], report["restart"] = "FAILED", True
        answers.write(json.dumps(report) + "\n")
        answers.flush()


def limit_memory() -> None:
    """Make gigantic allocations fail."""
    import h5py
    import nibabel
    import pandas  # noqa: F401

    import lacuna_nipype.connectomes.inspection  # noqa: F401

    _ = h5py, nibabel
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
