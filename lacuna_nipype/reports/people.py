"""The table of participants on the page of the group."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lacuna_nipype.core.masks import hemisphere_of, left_share, lesion_points
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.reports.results import (
    LesionResults,
    find_results,
    list_participants,
    read_outcomes,
)
from lacuna_nipype.reports.sections import TITLES, read_volume
from lacuna_nipype.reports.tables import Cell, Column, SortableTable, frame_content, number_cell

if TYPE_CHECKING:
    import pandas as pd

# Of a message on the page; the table to take along has all of it.
MOST_CHARACTERS = 160
MISSING = ("", "n/a", "N/A", "NA", "nan", "NaN")


@dataclass
class Person:
    """A participant, or one session of a participant.

    Parameters
    ----------
    name : str
        Such as ``sub-01``.
    session : str
        Label, empty where there are no sessions.
    page : str
        Address of the participant's page, relative to that of the group; empty where there is
        none.
    lesions : list of str
        Labels.
    volume_ml : float
        Of all lesions together; NaN where it is not known.
    hemisphere : str
        ``left``, ``right`` or ``both``; empty where it is not known.
    analyses : set of str
        Those with results.
    errors, warnings : list of str
    """

    name: str
    session: str = ""
    page: str = ""
    lesions: list[str] = field(default_factory=list)
    volume_ml: float = float("nan")
    hemisphere: str = ""
    analyses: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class People:
    """Everybody in the folders that the group's results come from.

    Parameters
    ----------
    persons : tuple of Person
        By name and session.
    problems : tuple of str
        What is there and cannot be read.
    """

    persons: tuple[Person, ...]
    problems: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Participants, each once."""
        return list(dict.fromkeys(person.name for person in self.persons))

    @property
    def analyses(self) -> list[str]:
        """Analyses that somebody has results of, in their usual order."""
        return [key for key in TITLES if any(key in person.analyses for person in self.persons)]


def find_people(output_dir: Path, datasets: Iterable[Path], names: Iterable[str] = ()) -> People:
    """Look at everybody whose results lie in some datasets.

    Parameters
    ----------
    output_dir : Path
        Derivatives dataset with the page of the group.
    datasets : iterable of Path
        Where results of participants lie.
    names : iterable of str
        Participants who are in results of the group; they have a row without results too.

    Returns
    -------
    People
    """
    persons: dict[tuple[str, str], Person] = {}
    problems: list[str] = []
    for root in datasets:
        try:
            outcomes = read_outcomes(root)
        except ValueError as error:
            outcomes = {}
            problems.append(str(error))
        for label in sorted({*list_participants(root), *outcomes}):
            page = root / f"sub-{label}.html"
            link = os.path.relpath(page, output_dir) if page.is_file() else ""
            own = _persons(f"sub-{label}", find_results(root, label), problems)
            for person in own:
                person.page = link
                person.errors += outcomes.get(label, {}).get("Errors", [])
                person.errors += _missing(outcomes.get(label, {}).get("Missing", []))
                person.warnings += outcomes.get(label, {}).get("Warnings", [])
                persons.setdefault((person.name, person.session), person)
    known = {name for name, _ in persons}
    for name in names:
        if name not in known:
            persons[name, ""] = Person(name)
    return People(tuple(persons[key] for key in sorted(persons)), tuple(problems))


def _missing(paths: Sequence[str]) -> list[str]:
    if not paths:
        return []
    return [f"{len(paths)} result{'' if len(paths) == 1 else 's'} missing, such as {paths[0]}."]


def _persons(name: str, lesions: Sequence[LesionResults], problems: list[str]) -> list[Person]:
    """Put the lesions of each session together."""
    by_session: dict[str, list[LesionResults]] = {}
    for lesion in lesions:
        by_session.setdefault(lesion.entities.get("ses", ""), []).append(lesion)
    persons = []
    for session, own in by_session.items() or [("", [])]:
        person = Person(name, session)
        person.lesions = list(dict.fromkeys(lesion.entities.get("label", "") for lesion in own))
        person.analyses = {
            file.entities.get("desc", "") for lesion in own for file in lesion.files
        } & set(TITLES)
        _measure(person, own, problems)
        persons.append(person)
    return persons


def _measure(person: Person, lesions: Sequence[LesionResults], problems: list[str]) -> None:
    """Volume and side of the lesions of a session, from their masks."""
    volume, left, right = 0.0, 0.0, 0.0
    for lesion in lesions:
        file = lesion.newest("mask", "lesion")
        if file is None:
            continue
        try:
            affine, values = read_volume(file.path)
        except ValueError as error:
            problems.append(f"{person.name}: {error}")
            return
        grid = Grid.make(values.shape, affine)
        points = lesion_points(values > 0, grid)
        own = points.shape[1] * grid.voxel_volume_ml
        volume += own
        share = left_share(points)
        if share is not None:
            left += share * own
            right += (1 - share) * own
        person.volume_ml = volume
    if left + right:
        person.hemisphere = hemisphere_of(left / (left + right))


def people_table(
    people: People,
    columns: Mapping[str, Mapping[str, str]],
    left_out: Mapping[str, str],
    tested: Iterable[str] = (),
) -> SortableTable:
    """Prepare the table of participants.

    Parameters
    ----------
    people : People
    columns : mapping of str to mapping
        Columns of the table of participants that were used: text by participant.
    left_out : mapping of str to str
        Who took no part in a test, and why.
    tested : iterable of str
        Participants who are in results of the group; empty where that is not known.

    Returns
    -------
    SortableTable
    """
    import pandas as pd

    inside = set(tested)
    with_sessions = any(person.session for person in people.persons)
    with_outsiders = bool(inside) and any(p.name not in inside for p in people.persons)
    heads = [Column("Participant"), *([Column("Session")] if with_sessions else [])]
    heads += [
        Column("Lesion (ml)", "Volume of all lesions of the row.", is_number=True),
        Column("Hemisphere", "At least 95 % of the lesion's volume, or both."),
        Column("Lesions", "Labels of the masks."),
    ]
    heads += [Column(key.upper(), f"{TITLES[key]}: are there results?") for key in people.analyses]
    numeric = {name: _are_numbers(values.values()) for name, values in columns.items()}
    heads += [
        Column(name, "From the table of participants.", is_number=numeric[name])
        for name in columns
    ]
    heads += [*([Column("In the group")] if with_outsiders else []), Column("Flags", wraps=True)]
    rows, whole = [], []
    for person in people.persons:
        flags = _flags(person, left_out.get(person.name, ""))
        row = [Cell(person.name, link=person.page)]
        row += [Cell(person.session or "n/a")] if with_sessions else []
        row += [
            number_cell(person.volume_ml),
            Cell(person.hemisphere or "n/a"),
            Cell(", ".join(person.lesions) or "none"),
        ]
        row += [Cell("yes" if key in person.analyses else "missing") for key in people.analyses]
        row += [
            _own_cell(values.get(person.name, "n/a"), numeric[name])
            for name, values in columns.items()
        ]
        row += [Cell("yes" if person.name in inside else "no")] if with_outsiders else []
        rows.append((*row, Cell(_shorten(flags))))
        whole.append([*(cell.text for cell in row), flags])
    names = _file_columns(people, columns, with_sessions, with_outsiders)
    frame = pd.DataFrame(whole, columns=names, dtype=str)
    frame["lesion_volume_ml"] = [person.volume_ml for person in people.persons]
    n = len(people.names)
    caption = f"{n} participant{'' if n == 1 else 's'}"
    if len(people.persons) > n:
        caption += f", {len(people.persons)} sessions"
    return SortableTable(
        "Participants", "Table of participants", f"{caption}.", tuple(heads), tuple(rows),
        frame_content(_without_breaks(frame)), "group_participants.tsv",
    )  # fmt: skip


def _file_columns(
    people: People, columns: Iterable[str], with_sessions: bool, with_outsiders: bool
) -> list[str]:
    return [
        "participant_id", *(["session_id"] if with_sessions else []), "lesion_volume_ml",
        "hemisphere", "lesions", *people.analyses, *columns,
        *(["in_group"] if with_outsiders else []), "flags",
    ]  # fmt: skip


def _without_breaks(frame: pd.DataFrame) -> pd.DataFrame:
    """Texts must not add cells or rows to the file."""
    for column in frame.columns:
        if column != "lesion_volume_ml":
            frame[column] = frame[column].str.replace(r"[\t\r\n]+", " ", regex=True)
    return frame


def _flags(person: Person, left_out: str) -> str:
    parts = [f"Error: {text}" for text in person.errors]
    parts += [f"Warning: {text}" for text in person.warnings]
    if left_out:
        parts.append(f"Left out of a test: {left_out}.")
    return " ".join(parts)


def _shorten(text: str) -> str:
    if len(text) <= MOST_CHARACTERS:
        return text
    return text[:MOST_CHARACTERS].rsplit(" ", 1)[0] + " ..."


def _are_numbers(texts: Iterable[str]) -> bool:
    known = [text for text in texts if text.strip() not in MISSING]
    return bool(known) and all(_number(text) is not None for text in known)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _own_cell(text: str, is_number: bool) -> Cell:
    text = "n/a" if text.strip() in MISSING else text
    return Cell(text, _number(text) if is_number else None)
