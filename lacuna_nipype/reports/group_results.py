"""What the derivatives folder holds of the group: maps, tables, atlases, and records of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import LacunaError, ValidationError
from lacuna_nipype.reports.results import (
    OUTCOME_NAME,
    ResultFile,
    file_entities,
    read_object,
)
from lacuna_nipype.reports.tables import read_table

# Key in the record of a run that tells the group level's from those of participants.
GROUP_RECORD = "Group"
_OVERLAPS = ("count", "overlappositive", "overlapnegative", "overlap")
_ANALYSES = ("lesion", "rd", "fnm", "afnm", "snm")
# What a record of a run of the group level holds.
_OF_A_RUN = {"RunID", "Started", "Ended", "CommandLine", "Software", "Parameters", GROUP_RECORD}


@dataclass(frozen=True)
class TestResults:
    """Files of one test: maps or a table, of one score or group.

    Parameters
    ----------
    entities : mapping of str to str
        Those that all its files have.
    files : mapping of str to ResultFile
        By quantity: ``t``, ``logpfwe``, ``partialr``, ``tested``, ``logptfce``, ``clusters``; or
        ``parcelstats`` alone.
    """

    # pytest would take the name for that of a class of tests.
    __test__ = False

    entities: Mapping[str, str]
    files: Mapping[str, ResultFile]

    @property
    def main(self) -> ResultFile:
        """File whose sidecar describes the test."""
        first = next(iter(self.files.values()))
        return self.files.get("t") or self.files.get("parcelstats") or first


@dataclass(frozen=True)
class GroupResults:
    """All that the group level left.

    Parameters
    ----------
    overlaps : tuple of ResultFile
        Overlap maps; the share of lesions comes with its count.
    tests : tuple of TestResults
        By model, maps before tables.
    tables : tuple of ResultFile
        Tables of all participants, in ``phenotype/``.
    """

    overlaps: tuple[ResultFile, ...] = ()
    tests: tuple[TestResults, ...] = ()
    tables: tuple[ResultFile, ...] = ()

    @property
    def files(self) -> list[ResultFile]:
        """Every file, by path."""
        tested = [file for test in self.tests for file in test.files.values()]
        return sorted((*self.overlaps, *tested, *self.tables), key=lambda file: file.path)


def find_group_results(output_dir: Path) -> GroupResults:
    """Find the results of the group level by their names.

    Parameters
    ----------
    output_dir : Path
        Derivatives dataset.

    Returns
    -------
    GroupResults
    """
    overlaps: list[ResultFile] = []
    tests: dict[tuple[bool, tuple[tuple[str, str], ...]], dict[str, ResultFile]] = {}
    for path in sorted(output_dir.glob("tpl-*/**/tpl-*_desc-*")):
        if not path.name.endswith((".nii.gz", ".tsv")) or path.parent.name != "anat":
            continue
        file = ResultFile(path, file_entities(path.name))
        entities = file.entities
        suffix, stat = entities["suffix"], entities.get("stat", "")
        if "model" in entities and suffix in ("statmap", "clusters", "parcelstats"):
            of_regions = suffix == "parcelstats"
            apart = ("suffix",) if of_regions else ("suffix", "stat")
            shared = tuple((key, value) for key, value in entities.items() if key not in apart)
            own = tests.setdefault((of_regions, shared), {})
            own[stat if suffix == "statmap" else suffix] = file
        elif (suffix, entities["desc"]) == ("probseg", "overlap") or stat in _OVERLAPS:
            overlaps.append(file)
    found = [TestResults(dict(shared), files) for (_, shared), files in tests.items()]
    tables = (
        ResultFile(path, file_entities(path.name))
        for path in sorted(output_dir.glob("phenotype/group_*_parcelstats.tsv"))
    )
    return GroupResults(tuple(overlaps), tuple(sorted(found, key=_order)), tuple(tables))


def _order(test: TestResults) -> tuple[str, int, int, str]:
    entities = test.entities
    analysis = entities.get("desc", "")
    place = _ANALYSES.index(analysis) if analysis in _ANALYSES else len(_ANALYSES)
    return entities["model"], place, "parcelstats" in test.files, test.main.path.name


def read_group_runs(output_dir: Path) -> tuple[dict[str, Any], ...]:
    """Read what runs of the group level recorded.

    Parameters
    ----------
    output_dir : Path
        Derivatives dataset.

    Returns
    -------
    tuple of dict
        Oldest first. Under ``Group``: ``Datasets`` (where participants' results lie), ``Results``
        (paths), ``Columns`` (of the table of participants, by name and participant),
        ``Warnings``, ``Errors`` and ``Missing``.

    Raises
    ------
    ValidationError
        A record is damaged.
    """
    runs = []
    for path in sorted(output_dir.glob(f"logs/*/{OUTCOME_NAME}")):
        record = read_object(path)
        if GROUP_RECORD not in record:
            continue
        own = record[GROUP_RECORD]
        if not set(record) >= _OF_A_RUN or not isinstance(own, dict):
            raise ValidationError(f"{path} lacks what a run records; remove it.")
        runs.append(record)
    return tuple(sorted(runs, key=lambda run: (str(run["Started"]), str(run["RunID"]))))


def runs_of_results(
    runs: Sequence[Mapping[str, Any]], results: GroupResults, output_dir: Path
) -> list[dict[str, Any]]:
    """Pick the runs that results come from: of each result, the last run that made it.

    Parameters
    ----------
    runs : sequence of mapping
        From :func:`read_group_runs`.
    results : GroupResults
    output_dir : Path

    Returns
    -------
    list of dict
        The last one first, with the number of its results under ``Made``.
    """
    last: dict[str, str] = {}
    for run in runs:
        last.update(dict.fromkeys(run[GROUP_RECORD].get("Results", []), str(run["RunID"])))
    here = {file.path.relative_to(output_dir).as_posix() for file in results.files}
    used: dict[str, int] = {}
    for path in here:
        if path in last:
            used[last[path]] = used.get(last[path], 0) + 1
    return [
        {**run, "Made": f"{used[str(run['RunID'])]} on this page"}
        for run in reversed(runs)
        if str(run["RunID"]) in used
    ]


@dataclass
class RegionFinder:
    """Tells in which region of an atlas a point lies.

    Parameters
    ----------
    output_dir : Path
        Derivatives dataset; the atlases of its runs lie in the folders of their spaces.
    problems : list of str
        Atlases that cannot be read.
    """

    output_dir: Path
    problems: list[str] = field(default_factory=list)
    _known: dict[str, list[_Labelled]] = field(default_factory=dict)

    def describe(self, space: str, point: Iterable[float]) -> str:
        """Name the regions around a point.

        Parameters
        ----------
        space : str
        point : iterable of three floats
            mm, RAS.

        Returns
        -------
        str
            Such as ``7Networks_LH_Vis_1 (Schaefer100)``; empty where there is no atlas in that
            space.
        """
        place = np.array([*point, 1.0])
        if not np.isfinite(place).all():
            return ""
        if space not in self._known:
            self._known[space] = self._read(space)
        named = [(atlas.name, atlas.at(place)) for atlas in self._known[space]]
        return "; ".join(f"{region} ({name})" for name, region in named)

    def _read(self, space: str) -> list[_Labelled]:
        found = []
        for path in sorted((self.output_dir / f"tpl-{space}").glob("tpl-*_atlas-*_dseg.nii.gz")):
            try:
                found.append(_Labelled.read(path))
            except (LacunaError, ValueError) as error:
                self.problems.append(f"The atlas {path.name} cannot be read: {error}")
        return found


@dataclass(frozen=True)
class _Labelled:
    """An atlas with a label for every voxel."""

    name: str
    labels: NDArray[Any]
    inverse: NDArray[np.float64]
    names: Mapping[int, str]

    @classmethod
    def read(cls, path: Path) -> _Labelled:
        from lacuna_nipype.reports.sections import read_volume

        file = ResultFile(path, file_entities(path.name))
        affine, labels = read_volume(path)
        table = read_table(path.with_name(path.name.replace(".nii.gz", ".tsv")), "index", "name")
        names = {int(n): str(name) for n, name in zip(table["index"], table["name"], strict=True)}
        name = str(file.sidecar.get("Name") or file.entities.get("atlas", "atlas"))
        return cls(name, labels, np.asarray(np.linalg.inv(affine), dtype=np.float64), names)

    def at(self, place: NDArray[np.float64]) -> str:
        voxel = np.rint(self.inverse @ place)[:3].astype(int)
        if (voxel < 0).any() or (voxel >= self.labels.shape).any():
            return "outside"
        label = int(self.labels[tuple(voxel)])
        return self.names.get(label, "in no region")
