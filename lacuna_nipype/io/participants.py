"""The table of participants: read as text, joined to results, turned into a design."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.association import Design, make_design
from lacuna_nipype.core.exceptions import ValidationError

if TYPE_CHECKING:
    import pandas as pd

MISSING = ("", "n/a", "N/A", "NA", "nan", "NaN")
VOLUME = "lesion_volume_ml"


def normal_form(name: str) -> str:
    """Give a participant's name one form: ``sub-`` before it, composed characters.

    Accented letters may be stored as one character or as two, which look the same.
    """
    name = unicodedata.normalize("NFC", name.strip())
    return name if name.startswith("sub-") else f"sub-{name}"


def read_participants(path: Path) -> pd.DataFrame:
    """Read ``participants.tsv``.

    Parameters
    ----------
    path : Path
        Tab-separated, UTF-8, with a column ``participant_id`` (with or without ``sub-``).

    Returns
    -------
    DataFrame
        Text as it stands in the file; the index is the participants, such as ``sub-01``.

    Raises
    ------
    ValidationError
        The file is missing, is no such table, or names a participant or a column twice.
    """
    import pandas as pd

    if not path.is_file():
        raise ValidationError(f"{path} does not exist; give a table with --participants.")
    try:
        rows = pd.read_csv(
            path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig", header=None
        )
    except UnicodeDecodeError as error:
        raise ValidationError(f"{path} is not UTF-8; save it again in that encoding.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValidationError(f"{path} is no table with tabs ({str(error).strip()}).") from error
    names = [str(name).strip() for name in rows.iloc[0]]
    if "participant_id" not in names:
        raise ValidationError(
            f"{path} has no column participant_id (its columns: {', '.join(names)})."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValidationError(f"{path} has two columns {twice[0]!r}; rename one.")
    table = rows.iloc[1:].set_axis(names, axis=1).astype(str)
    index = pd.Index([normal_form(str(name)) for name in table.pop("participant_id")])
    if not index.is_unique:
        first = index[index.duplicated()][0]
        raise ValidationError(f"{path} names {first} more than once; keep one row of it.")
    return table.set_index(index)


def choose_columns(table: pd.DataFrame, columns: Sequence[str], path: Path) -> pd.DataFrame:
    """Pick columns of a table of participants.

    Parameters
    ----------
    table : DataFrame
        From :func:`read_participants`.
    columns : sequence of str
    path : Path
        The file, for messages.

    Returns
    -------
    DataFrame

    Raises
    ------
    ValidationError
        There is no such column.
    """
    for column in columns:
        if column not in table.columns:
            raise ValidationError(
                f"{path} has no column {column!r}; its columns: {', '.join(table.columns)}."
            )
    return table[list(columns)]


@dataclass(frozen=True)
class CohortDesign:
    """A design, and who it is about.

    Parameters
    ----------
    design : Design
        One row per participant that takes part.
    participants : tuple of str
        Rows of the design.
    dropped : mapping of str to str
        Participants that have results but take no part, and why.
    levels : tuple of str
        The two groups, first and second, of a contrast of groups; empty otherwise.
    """

    design: Design
    participants: tuple[str, ...]
    dropped: Mapping[str, str]
    levels: tuple[str, ...] = ()


def build_design(
    table: pd.DataFrame,
    participants: Sequence[str],
    tested: str,
    *,
    covariates: Sequence[str] = (),
    volumes: Mapping[str, float] | None = None,
    groups: bool = False,
) -> CohortDesign:
    """Turn columns of the table of participants into a design.

    Parameters
    ----------
    table : DataFrame
        From :func:`read_participants`; holds the columns that are named here.
    participants : sequence of str
        Those with results.
    tested : str
        Column of the score, or of the group.
    covariates : sequence of str
        Columns; one with text becomes an indicator for each level but the first.
    volumes : mapping of str to float, optional
        Lesion volume of participants (ml), a covariate; None for none.
    groups : bool
        The tested column holds two groups; the contrast is the second, in the order of the
        alphabet, against the first.

    Returns
    -------
    CohortDesign

    Raises
    ------
    ValidationError
        The score is no number, or constant, there are not two groups, or too few participants
        for the covariates.
    """
    dropped: dict[str, str] = {}
    kept: list[str] = []
    needed = (tested, *covariates)
    for name in participants:
        row = normal_form(name)
        if row not in table.index:
            dropped[name] = "not in the table of participants"
            continue
        missing = [column for column in needed if str(table.loc[row, column]).strip() in MISSING]
        if missing:
            dropped[name] = f"no {' and no '.join(missing)}"
        elif volumes is not None and name not in volumes:
            dropped[name] = "no lesion volume"
        else:
            kept.append(name)
    if not kept:
        reasons = ", ".join(sorted(set(dropped.values())))
        raise ValidationError(
            f"None of the {len(participants)} participants with results can be tested for "
            f"{tested!r} ({reasons})."
        )
    rows = table.loc[[normal_form(name) for name in kept]]
    levels: tuple[str, ...] = ()
    if groups:
        levels, values = _two_groups(tested, [str(value).strip() for value in rows[tested]])
    else:
        values = _numbers(tested, [str(value) for value in rows[tested]], kept)
    columns: list[NDArray[np.float64]] = []
    names: list[str] = []
    for column in covariates:
        for name, numbers in _covariate(column, [str(v).strip() for v in rows[column]]).items():
            names.append(name)
            columns.append(numbers)
    if volumes is not None:
        names.append(VOLUME)
        columns.append(np.array([volumes[name] for name in kept]))
    matrix = np.column_stack(columns) if columns else np.empty((len(kept), 0))
    design = make_design(values, matrix, tested_name=tested, covariate_names=names)
    return CohortDesign(design, tuple(kept), dropped, levels)


def _numbers(column: str, texts: Sequence[str], who: Sequence[str]) -> NDArray[np.float64]:
    values = np.empty(len(texts))
    for row, (text, name) in enumerate(zip(texts, who, strict=True)):
        try:
            values[row] = float(text)
        except ValueError as error:
            raise ValidationError(
                f"Column {column!r} of the table of participants holds {text!r} for {name}, which "
                "is no number; write n/a where it is missing."
            ) from error
        if not np.isfinite(values[row]):
            raise ValidationError(f"Column {column!r} holds {text!r} for {name}; write n/a.")
    return values


def _two_groups(column: str, texts: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    levels = sorted(set(texts))
    if len(levels) != 2:
        raise ValidationError(
            f"Column {column!r} holds {len(levels)} groups among the participants with results "
            f"({', '.join(levels[:5])}); a contrast needs two."
        )
    return tuple(levels), np.array([float(text == levels[1]) for text in texts])


def _covariate(column: str, texts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Columns of a covariate: its numbers, or an indicator for each level but the first."""
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        others = sorted(set(texts))[1:]
        if not others:
            return {column: np.zeros(len(texts))}
        return {
            f"{column}={level}": np.array([float(text == level) for text in texts])
            for level in others
        }
    if not np.isfinite(numbers).all():
        raise ValidationError(f"Covariate {column!r} holds infinite values; write n/a.")
    return {column: numbers}
