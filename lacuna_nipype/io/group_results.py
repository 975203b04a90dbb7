"""Results of a participant level found again: ours, and those under Lacuna's own names."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lacuna_nipype.core.exceptions import BidsError, ValidationError
from lacuna_nipype.core.files import read_json
from lacuna_nipype.io.derivatives import sidecar_path
from lacuna_nipype.io.naming import ENTITY_NAMES, parse_entities, split_extension

# Sidecar entries that must agree before results are put side by side. Entries that are not listed
# (sources, volumes, statistics) differ between participants.
PARAMETERS = (
    "Software.Version",
    "GeneratedBy.Version",
    "Method",
    "HitTest",
    "Weighting",
    "PiniSelection.Percentile",
    "Connectome.Name",
    "Connectome.Fingerprint",
    "MatrixFingerprint",
    "StreamlineWeights.Fingerprint",
    "StreamlineGroups.Fingerprint",
    "Parameters",
    "Atlas.Name",
    "Atlas.Image",
)
# Quantities of Lacuna's maps that have other names here.
_LACUNA_MAPS = {
    "rmap": "r",
    "zmap": "z",
    "tmap": "t",
    "pmap": "p",
    "pfdrmap": "q",
    "pfdrthresholdmap": "qsig",
    "tthresholdmap": "tsig",
}
_LACUNA_METHODS = {"damage": "rd", "regionaldamage": "rd"}
_IMAGES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class ResultFile:
    """A file that the participant level left.

    Parameters
    ----------
    path : Path
    root : Path
        Its dataset.
    entities : mapping
        By pybids' names, in this package's vocabulary whoever wrote the file.
    """

    path: Path
    root: Path
    entities: Mapping[str, str]

    @property
    def participant(self) -> str:
        """Participant as tables name it, such as ``sub-01``."""
        return f"sub-{self.entities['subject']}"

    def kind(self, apart: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """All entities but some: equal for files that go together."""
        return tuple(sorted((k, v) for k, v in self.entities.items() if k not in apart))

    def fits(self, pattern: str | None) -> bool:
        """Tell whether a glob fits the file's name, with or without its extension."""
        name = self.path.name
        return (
            pattern is None
            or fnmatchcase(name, pattern)
            or fnmatchcase(split_extension(name)[0], pattern)
        )

    def sidecar(self) -> dict[str, Any]:
        """Read the JSON beside the file; empty when there is none.

        Raises
        ------
        ValidationError
            It is damaged.
        """
        path = sidecar_path(self.path)
        try:
            content = read_json(path)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ValidationError(f"Sidecar {path} is no JSON; make that result again.") from error
        return content if isinstance(content, dict) else {}


@dataclass(frozen=True)
class Cohort:
    """Results of one kind, one per participant, in the order of the participants.

    Parameters
    ----------
    entities : mapping
        Entities that all share.
    files : tuple of ResultFile
    """

    entities: Mapping[str, str]
    files: tuple[ResultFile, ...]

    @property
    def participants(self) -> tuple[str, ...]:
        """Participants, such as ``sub-01``."""
        return tuple(file.participant for file in self.files)

    @property
    def paths(self) -> list[Path]:
        """Files in the order of the participants."""
        return [file.path for file in self.files]

    def describe(self) -> str:
        """Name the kind in words of file names."""
        parts = [
            f"{key}-{self.entities[name]}"
            for key, name in ENTITY_NAMES.items()
            if name in self.entities
        ]
        return "_".join([*parts, self.entities.get("suffix", "")]).rstrip("_")


def find_results(
    roots: Sequence[Path],
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
) -> list[ResultFile]:
    """Find tables, maps and lesion masks of participants.

    Parameters
    ----------
    roots : sequence of Path
        Derivatives datasets. A file that two of them hold counts twice, see
        :func:`group_cohorts`.
    participants, sessions : sequence of str
        Labels to keep, without ``sub-`` and ``ses-``; empty for all.

    Returns
    -------
    list of ResultFile
        Sorted by path within each dataset.

    Raises
    ------
    BidsError
        A dataset is missing, or there are no participants' folders in it.
    """
    found: list[ResultFile] = []
    for root in roots:
        if not root.is_dir():
            raise BidsError(f"Derivatives folder {root} does not exist.")
        folders = sorted(path for path in root.glob("sub-*") if path.is_dir())
        if not folders:
            raise BidsError(
                f"{root} holds no participants' folders (sub-*): run the participant level first, "
                "or name the folder that it wrote to."
            )
        for folder in folders:
            if participants and folder.name.removeprefix("sub-") not in participants:
                continue
            for path in _files_below(folder):
                result = parse_result(path, root)
                if result is None:
                    continue
                if not sessions or result.entities.get("session") in sessions:
                    found.append(result)
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    """Files of a participant; figures and temporary files are none of the results."""
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "figures")
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(where) / name


def parse_result(path: Path, root: Path) -> ResultFile | None:
    """Understand the name of a result.

    Parameters
    ----------
    path : Path
    root : Path
        Its dataset.

    Returns
    -------
    ResultFile or None
        None for what is neither a parcel table, a map nor a lesion mask.
    """
    named = parse_entities(path.name)
    extension = named.get("extension", "")
    if "sub" not in named or extension not in (".tsv", *_IMAGES):
        return None
    if "method" in named:
        named = _from_lacuna(named)
    suffix = named.get("suffix")
    if suffix == "mask":
        # A mask that names no analysis is the lesion itself, as in Lacuna's folders.
        named.setdefault("desc", "lesion")
        usable = named["desc"] == "lesion" and extension in _IMAGES
    elif suffix == "statmap":
        usable = extension in _IMAGES and {"stat", "desc"} <= named.keys()
    else:
        usable = suffix == "parcelstats" and extension == ".tsv" and {"stat", "desc"} <= set(named)
    if not usable:
        return None
    entities = {ENTITY_NAMES.get(key, key): value for key, value in named.items()}
    return ResultFile(path, root, entities)


def _from_lacuna(named: Mapping[str, str]) -> dict[str, str]:
    """Entities of one of Lacuna's names in our vocabulary: method- is desc-, desc- is stat-."""
    entities = {key: value for key, value in named.items() if key not in ("method", "desc")}
    method, quantity = named["method"], named.get("desc")
    entities["desc"] = _LACUNA_METHODS.get(method, method)
    if quantity:
        entities["stat"] = quantity
    if "suffix" not in entities:
        entities["suffix"] = "statmap"
        if quantity:
            entities["stat"] = _LACUNA_MAPS.get(quantity, quantity)
    return entities


def group_cohorts(results: Iterable[ResultFile], *, pool_sessions: bool = False) -> list[Cohort]:
    """Put results of one kind together.

    Parameters
    ----------
    results : iterable of ResultFile
    pool_sessions : bool
        Put sessions together, the first of each participant's; otherwise each is a cohort.

    Returns
    -------
    list of Cohort
        In the order of their entities.

    Raises
    ------
    BidsError
        A participant has two files of one kind.
    """
    by_kind: dict[tuple[tuple[str, str], ...], dict[str, ResultFile]] = defaultdict(dict)
    apart = ("subject", "extension", *(("session",) if pool_sessions else ()))
    if pool_sessions:
        results = sorted(results, key=lambda result: result.entities.get("session", ""))
    for result in results:
        cohort = by_kind[result.kind(apart)]
        other = cohort.setdefault(result.participant, result)
        same_session = result.entities.get("session") == other.entities.get("session")
        if other is not result and same_session:
            raise BidsError(
                f"{result.participant} has two results of one kind, {other.path} and "
                f"{result.path}; keep one of them."
            )
    return [
        Cohort(dict(kind), tuple(files[name] for name in sorted(files)))
        for kind, files in sorted(by_kind.items())
    ]


def parameter_set(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """Pick what says how a result was made.

    Parameters
    ----------
    sidecar : mapping

    Returns
    -------
    dict
        Of :data:`PARAMETERS`, those that are there.
    """
    values = {key: _look_up(sidecar, key) for key in PARAMETERS}
    if "Engine" in sidecar:
        # The engines of structural disconnection are tested to agree; Method names the engine.
        values["Method"] = None
    return {key: value for key, value in values.items() if value is not None}


def _look_up(content: Any, key: str) -> Any:
    """Value under a dotted key; the first entry of a list stands for it."""
    for part in key.split("."):
        if isinstance(content, list):
            content = content[0] if content else None
        content = content.get(part) if isinstance(content, Mapping) else None
    return content


def parse_selection(words: Sequence[str]) -> dict[str, str]:
    """Read ``KEY=VALUE`` words.

    Parameters
    ----------
    words : sequence of str
        Keys of sidecars, with dots between levels: ``Software.Version=0.2``.

    Returns
    -------
    dict

    Raises
    ------
    ValidationError
        A word holds no ``=``, or a key comes twice.
    """
    selection: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValidationError(f"{word!r} is not KEY=VALUE, such as Software.Version=0.2.")
        if key in selection:
            raise ValidationError(f"{key} is given twice; only one value can be chosen.")
        selection[key] = value
    return selection


def settle_parameters(
    cohort: Cohort, *, selection: Mapping[str, str] | None = None, allow_mixed: bool = False
) -> Cohort:
    """Keep the results that were made as asked, and see that all were made alike.

    Parameters
    ----------
    cohort : Cohort
    selection : mapping, optional
        Sidecar values to keep, by dotted keys.
    allow_mixed : bool
        Take results of several versions or parameter sets together.

    Returns
    -------
    Cohort
        Maybe without any file.

    Raises
    ------
    ValidationError
        The results differ in how they were made.
    """
    files = cohort.files
    if not selection and allow_mixed:
        return cohort
    sidecars = [file.sidecar() for file in files]
    if selection:
        kept = [
            (file, sidecar)
            for file, sidecar in zip(files, sidecars, strict=True)
            if all(_text(_look_up(sidecar, key)) == value for key, value in selection.items())
        ]
        files, sidecars = tuple(file for file, _ in kept), [sidecar for _, sidecar in kept]
    kept_cohort = Cohort(cohort.entities, files)
    if not allow_mixed:
        _refuse_mixture(kept_cohort, [parameter_set(sidecar) for sidecar in sidecars])
    return kept_cohort


def _refuse_mixture(cohort: Cohort, sets: Sequence[Mapping[str, Any]]) -> None:
    """Raise when two results differ in a parameter; the message says how to choose."""
    for key in PARAMETERS:
        places: dict[str, list[Path]] = defaultdict(list)
        for file, values in zip(cohort.files, sets, strict=True):
            places[_text(values.get(key))].append(file.path)
        if len(places) < 2:
            continue
        counted = "; ".join(
            f"{value} in {len(paths)}, such as {paths[0].name}" for value, paths in places.items()
        )
        advice = next((value for value in places if value != "absent"), "VALUE")
        raise ValidationError(
            f"Results of {cohort.describe()} were not all made alike ({key}: {counted}); choose "
            f"with --select '{key}={advice}', or take all of them with --allow-mixed."
        )


def _text(value: Any) -> str:
    if value is None:
        return "absent"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def refuse_mixed_grids(cohorts: Sequence[Cohort]) -> None:
    """See that no cohort of maps is torn apart by spaces or resolutions.

    Parameters
    ----------
    cohorts : sequence of Cohort
        Of maps. Several spaces or resolutions are fine when each has all the participants.

    Raises
    ------
    ValidationError
        Participants' maps of one quantity lie in different spaces or resolutions.
    """
    apart = ("space", "res")
    together: dict[tuple[tuple[str, str], ...], list[Cohort]] = defaultdict(list)
    for cohort in cohorts:
        shared = {key: value for key, value in cohort.entities.items() if key not in apart}
        together[tuple(sorted(shared.items()))].append(cohort)
    for shared_entities, parts in together.items():
        if len({part.participants for part in parts}) < 2:
            continue
        listed = "; ".join(
            f"space {part.entities.get('space', 'unnamed')}, resolution "
            f"{part.entities.get('res', 'unnamed')}: {shorten(part.participants)}"
            for part in parts
        )
        what = Cohort(dict(shared_entities), ()).describe()
        raise ValidationError(
            f"Participants' maps of {what} lie on different grids ({listed}); choose with --space "
            "and --resolution, or run the participant level with one --output-resolution."
        )


def shorten(names: Sequence[str], most: int = 5) -> str:
    """List names, of many the first few."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
