"""The record that a run leaves of its options, and what of its outputs is missing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lacuna_nipype.cli.arguments import existing_path, named_path
from lacuna_nipype.cli.atlas_outputs import planned_atlases
from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.cli.inputs import RunInputs
from lacuna_nipype.cli.parser import build_parser, parse_config
from lacuna_nipype.cli.plan import planned_outputs
from lacuna_nipype.cli.state import changed_files, mask_entry, mask_signature, read_state
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import read_json
from lacuna_nipype.io.lesions import Inspection, Lesion

# What a run may use depends on the machine and the day, and does not change its results.
_RESOURCES = (
    "nprocs",
    "omp_nthreads",
    "memory_gb",
    "verbose",
    "dry_run",
    "stop_on_first_crash",
    "reports",
    "reports_only",
    "submit",
    "array_size",
    "submit_part",
)
# Runs that differ in nothing else are parts of one, such as the jobs of an array.
_OF_A_PART = (*_RESOURCES, "participant_label", "work_dir", "plugin", "plugin_args")


@dataclass(frozen=True)
class RunRecord:
    """Options of the latest run, together with runs that did other participants alike.

    Parameters
    ----------
    run : str
        Name of the latest run, which starts with its date.
    options : dict
        As in :class:`RunConfig`, in plain values.
    """

    run: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Gap:
    """A lesion whose results are not all there.

    Parameters
    ----------
    lesion : Lesion
    missing : tuple of str
        Paths relative to the output folder; also of files that are not what was stored.
    n_expected : int
    """

    lesion: Lesion
    missing: tuple[str, ...]
    n_expected: int

    def describe(self) -> str:
        """Say in one line what is missing."""
        key = self.lesion.record.key
        if not self.missing:
            return f"{key}: the mask has changed since its results were made"
        if len(self.missing) == self.n_expected:
            return f"{key}: all {self.n_expected} outputs missing or changed"
        return (
            f"{key}: {len(self.missing)} of {self.n_expected} outputs missing or changed, such as "
            f"{self.missing[0]}"
        )


def read_record(output_dir: Path) -> RunRecord:
    """Read the options of the latest run that wrote into a folder.

    Parameters
    ----------
    output_dir : Path

    Returns
    -------
    RunRecord
        Participants are those of all runs with otherwise equal options; none stands for all.

    Raises
    ------
    ValidationError
        The folder holds no record of a participant run, or a damaged one.
    """
    found = {path.parent.name: _read(path) for path in output_dir.glob("logs/*/config.json")}
    runs = {
        name: found[name]
        for name in sorted(found)
        if found[name].get("analysis_level") == "participant"
    }
    if not runs:
        raise ValidationError(
            f"{output_dir} holds no record of a participant run (logs/*/config.json); give the "
            "output folder of one."
        )
    latest = list(runs)[-1]
    labels = [
        options.get("participant_label", [])
        for options in runs.values()
        if _without_parts(options) == _without_parts(runs[latest])
    ]
    merged = sorted({label for part in labels for label in part}) if all(labels) else []
    return RunRecord(latest, {**runs[latest], "participant_label": merged})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ValidationError(f"The record {path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ValidationError(f"The record {path} must hold a JSON object.")
    return content


def _without_parts(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in _OF_A_PART}


def recorded_config(
    record: RunRecord, bids_dir: Path, output_dir: Path, changes: Sequence[str] = ()
) -> RunConfig:
    """Make a run's configuration again from its record.

    Parameters
    ----------
    record : RunRecord
    bids_dir, output_dir : Path
        Where the folders are now.
    changes : sequence of str
        Words of a command line; what they set replaces what was recorded.

    Returns
    -------
    RunConfig

    Raises
    ------
    ValidationError
        An input of the run is gone.
    SystemExit
        With code 2 and one sentence, for a mistake in the changes.
    """
    flags = {_flag(word) for word in changes if word.startswith("-")}
    options = dict(record.options)
    if "--use-plugin" in flags:
        options.pop("plugin", None)
        options.pop("plugin_args", None)
    for action in build_parser()._actions:
        if flags.intersection(action.option_strings):
            options.pop(action.dest, None)
        elif action.option_strings and action.type in (existing_path, named_path):
            _check_inputs(action, options.get(action.dest), record.run)
    places = [str(bids_dir), str(output_dir), "participant"]
    return parse_config([*places, *command_words(options), *changes])


def _flag(word: str) -> str:
    """Take the flag out of a word that may hold its value too: ``--name=value``, ``-dPATH``."""
    if word.startswith("--"):
        return word.partition("=")[0].replace("_", "-")
    return word[:2]


def _check_inputs(action: argparse.Action, value: Any, run: str) -> None:
    if value is None:
        return
    paths = [pair[1] for pair in value] if action.type is named_path else [value]
    for path in paths:
        if not Path(path).exists():
            flag = action.option_strings[-1]
            raise ValidationError(
                f"{path}, {flag} of the run {run}, is not there any more; put it back, or say "
                f"where it is with {flag}."
            )


def command_words(options: Mapping[str, Any]) -> list[str]:
    """Write options as words of a command line, without those that are as by default.

    Parameters
    ----------
    options : mapping
        As in :class:`RunConfig`, in plain values. What concerns the machine only (processors,
        memory, verbosity) is left out, and so is what the parser does not know.

    Returns
    -------
    list of str
    """
    words: list[str] = []
    for action in build_parser()._actions:
        value = options.get(action.dest)
        if not action.option_strings or action.dest in _RESOURCES or value is None:
            continue
        default = str(action.default) if isinstance(action.default, Path) else action.default
        if value == default:
            continue
        flag = action.option_strings[-1]
        if action.nargs == 0:
            words.append(flag)
        elif isinstance(action, argparse._AppendAction):
            for values in value:
                words += [flag, *map(str, values)]
        elif isinstance(value, dict):
            words += [flag, json.dumps(value)]
        elif action.nargs is not None:
            words += [flag, *("=".join(v) if isinstance(v, list) else str(v) for v in value)]
        else:
            words += [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]
    return words


def find_missing(output_dir: Path, inputs: RunInputs) -> list[Gap]:
    """List the lesions whose results are not all as stored, or are those of another mask.

    Parameters
    ----------
    output_dir : Path
    inputs : RunInputs
        Inputs of the run.

    Returns
    -------
    list of Gap
        In the order of the lesions.
    """
    gaps = []
    for lesion in inputs.inspection.lesions:
        expected = planned_outputs(replace(inputs, inspection=Inspection((lesion,), {}, {})))
        stored, entry = read_state(output_dir, lesion.record.key), mask_entry(lesion)
        known = {
            path: file
            for name in (entry, *inputs.analyses)
            if name in stored
            for path, file in stored[name].files.items()
        }
        missing = tuple(changed_files(output_dir, expected, known))
        # Without a record, as of a run that was killed, nothing speaks against the mask.
        changed = entry in stored and stored[entry].signature != mask_signature(lesion)
        if missing or changed:
            gaps.append(Gap(lesion, missing, len(expected)))
    return gaps


def find_missing_atlases(output_dir: Path, inputs: RunInputs) -> list[str]:
    """List the files of the run's atlases that are not there, relative to the output folder."""
    if not inputs.inspection.lesions:
        return []
    expected = planned_atlases(inputs.used_atlases)
    return [path for path in expected if not _is_there(output_dir / path)]


def _is_there(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
