"""What the derivatives folder holds of a participant: results, and the records of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import read_json

OUTCOME_NAME = "outcome.json"
_IDENTITY = ("ses", "acq", "run", "label")
_EXTENSIONS = (".nii.gz", ".tsv", ".json")
# What every run records of a participant.
_OF_A_RUN = {"RunID", "Started", "Ended", "CommandLine", "Software", "Parameters", "Analyses",
             "Atlases", "Inputs"}  # fmt: skip


@dataclass(frozen=True)
class ResultFile:
    """One result.

    Parameters
    ----------
    path : Path
    entities : mapping of str to str
        By their keys in the file name (``ses``, ``label``, ``stat``, ...), and ``suffix``.
    """

    path: Path
    entities: Mapping[str, str]

    @property
    def sidecar_path(self) -> Path:
        """JSON beside it, which may be missing."""
        name = self.path.name
        for extension in _EXTENSIONS:
            name = name.removesuffix(extension)
        return self.path.with_name(f"{name}.json")

    @cached_property
    def sidecar(self) -> dict[str, Any]:
        """Content of the JSON beside it; empty where there is none."""
        return read_object(self.sidecar_path)


@dataclass(frozen=True)
class LesionResults:
    """All results of one lesion.

    Parameters
    ----------
    key : str
        Text that identifies it, such as ``sub-01_ses-01_label-L``.
    entities : mapping of str to str
        Those of ``ses``, ``acq``, ``run`` and ``label`` that its files have.
    files : tuple of ResultFile
        By name.
    """

    key: str
    entities: Mapping[str, str]
    files: tuple[ResultFile, ...] = ()

    @property
    def title(self) -> str:
        """Words for a heading."""
        words = {"ses": "Session", "acq": "acquisition", "run": "run"}
        parts = [f"{word} {self.entities[key]}" for key, word in words.items()
                 if key in self.entities]  # fmt: skip
        text = ", ".join([*parts, f"lesion {self.entities.get('label', '')}".strip()])
        return text[0].upper() + text[1:]

    def select(
        self, suffix: str, desc: str | None = None, stat: str | None = None
    ) -> list[ResultFile]:
        """List the files of a kind, by name."""
        wanted = {"suffix": suffix, "desc": desc, "stat": stat}
        return [
            file
            for file in self.files
            if all(value in (None, file.entities.get(key)) for key, value in wanted.items())
        ]

    def newest(
        self, suffix: str, desc: str | None = None, stat: str | None = None
    ) -> ResultFile | None:
        """Give the file of a kind; where runs left it in several spaces, the last one."""
        found = self.select(suffix, desc, stat)
        return max(found, key=lambda file: file.path.stat().st_mtime_ns, default=None)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict
        Empty where the file is missing.

    Raises
    ------
    ValidationError
        The file is damaged.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValidationError(f"{path} is damaged; remove it and run again.") from error
    if not isinstance(content, dict):
        raise ValidationError(f"{path} must hold a JSON object; remove it and run again.")
    return content


def list_participants(output_dir: Path) -> list[str]:
    """List the participants of whom a derivatives folder holds results.

    Parameters
    ----------
    output_dir : Path

    Returns
    -------
    list of str
        Labels without ``sub-``, in order.
    """
    folders = (path for path in output_dir.glob("sub-*") if path.is_dir())
    return sorted(path.name.removeprefix("sub-") for path in folders)


def find_results(output_dir: Path, participant: str) -> list[LesionResults]:
    """Find the results of a participant, lesion by lesion.

    Parameters
    ----------
    output_dir : Path
        Derivatives dataset.
    participant : str
        Label without ``sub-``.

    Returns
    -------
    list of LesionResults
        By session, acquisition, run and label.
    """
    found: dict[tuple[str, ...], list[ResultFile]] = {}
    for path in sorted((output_dir / f"sub-{participant}").glob("**/anat/sub-*_label-*")):
        if path.suffix == ".json" and not path.name.endswith("_stats.json"):
            continue
        entities = file_entities(path.name)
        identity = tuple(entities.get(key, "") for key in _IDENTITY)
        found.setdefault(identity, []).append(ResultFile(path, entities))
    return [
        _lesion(participant, dict(zip(_IDENTITY, identity, strict=True)), files)
        for identity, files in sorted(found.items())
    ]


def _lesion(
    participant: str, identity: Mapping[str, str], files: Iterable[ResultFile]
) -> LesionResults:
    entities = {key: value for key, value in identity.items() if value}
    parts = [f"sub-{participant}", *(f"{key}-{value}" for key, value in entities.items())]
    return LesionResults("_".join(parts), entities, tuple(files))


def file_entities(name: str) -> dict[str, str]:
    """Take the name of a result apart: values by their keys, and ``suffix``."""
    stem, *_ = name.split(".")
    *pairs, suffix = stem.split("_")
    return {**dict(pair.split("-", 1) for pair in pairs if "-" in pair), "suffix": suffix}


@dataclass(frozen=True)
class RunRecords:
    """What runs recorded of a participant.

    Parameters
    ----------
    runs : tuple of dict
        Entries of the provenance files, oldest first.
    outcome : dict
        What the last run that took the participant says of them: ``RunID``, ``Analyses`` (asked
        for), ``Warnings``, ``Errors``, and ``Missing`` (paths); empty where no run left a record.
    """

    runs: tuple[dict[str, Any], ...]
    outcome: Mapping[str, Any]

    def run_of(self, analysis: str) -> dict[str, Any] | None:
        """Give the last run that did an analysis."""
        return next((run for run in reversed(self.runs) if analysis in run["Analyses"]), None)

    @property
    def analyses(self) -> dict[str, dict[str, Any]]:
        """The last run of every analysis, in their usual order."""
        runs = {name: self.run_of(name) for name in ("rd", "fnm", "snm", "afnm")}
        return {name: run for name, run in runs.items() if run is not None}


def read_runs(output_dir: Path, participant: str) -> tuple[dict[str, Any], ...]:
    """Read the runs that a participant's provenance files name.

    Parameters
    ----------
    output_dir : Path
    participant : str

    Returns
    -------
    tuple of dict
        Oldest first; of a run that took several sessions, one entry with the inputs of all.

    Raises
    ------
    ValidationError
        A provenance file is damaged.
    """
    runs: dict[str, dict[str, Any]] = {}
    for path in sorted((output_dir / f"sub-{participant}").glob("sub-*_desc-provenance.json")):
        for run in read_object(path).get("Runs", []):
            if not isinstance(run, dict) or not set(run) >= _OF_A_RUN:
                raise ValidationError(f"{path} lacks what a run records; remove it and run again.")
            known = runs.setdefault(run["RunID"], {**run, "Inputs": []})
            known["Inputs"] = [*known["Inputs"], *run["Inputs"]]
    return tuple(sorted(runs.values(), key=lambda run: (run["Started"], run["RunID"])))


def read_outcomes(output_dir: Path) -> dict[str, dict[str, Any]]:
    """Read what the last run of every participant says of them.

    Parameters
    ----------
    output_dir : Path

    Returns
    -------
    dict of str to dict
        By label; see :class:`RunRecords`. A run that was killed has left no end: its
        participants have that as an error.

    Raises
    ------
    ValidationError
        A record is damaged.
    """
    outcomes: dict[str, dict[str, Any]] = {}
    for path in sorted(output_dir.glob(f"logs/*/{OUTCOME_NAME}")):
        record = read_object(path)
        for participant, own in record.get("Participants", {}).items():
            errors = list(own.get("Errors", []))
            if record.get("Ended") is None:
                errors.append(
                    f"The run {record.get('RunID')} did not come to its end (it was killed, or it "
                    "is still running); run the same command again to complete it."
                )
            outcomes[participant] = {**own, "Errors": errors, "RunID": record.get("RunID")}
    return outcomes
