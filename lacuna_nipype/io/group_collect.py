"""Parcel tables of all participants put side by side: one table per kind."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype import __version__
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import open_regular, read_json, write_json, write_table
from lacuna_nipype.io.derivatives import bids_uri
from lacuna_nipype.io.group_results import Cohort
from lacuna_nipype.io.naming import ENTITY_NAMES, build_path
from lacuna_nipype.io.participants import choose_columns, normal_form, read_participants
from lacuna_nipype.io.quantities import TABLES
from lacuna_nipype.io.tables import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

LAYOUTS = ("bids", "lacuna")
_NAME_COLUMNS = ("name", "region", "parcel", "label", "roi")
_HELPERS = {
    *("index", "n_voxels", "volume_ml", "coverage", "n_voxels_damaged", "volume_damaged_ml"),
    *("weight", "streamlinesfull", "streamlineslesion", "n_streamlines", "n_streamlines_hit"),
}
# Columns or sidecar keys with these names stop pybids from reading the folder.
RESERVED = {*ENTITY_NAMES, *ENTITY_NAMES.values(), "suffix", "extension", "datatype", "fmap"}
_ID_COLUMNS = {
    "participant_id": {"Description": "Participant."},
    "session_id": {"Description": "Session of the lesion mask."},
    "mask_label": {"Description": "What the lesion mask shows: its label entity."},
}
# Sidecar entries of the participants' tables that hold for the table of all.
_SHARED = ("SpaceName", "Method", "HitTest", "Weighting", "Connectome", "Atlas", "Matrix")


@dataclass(frozen=True)
class Regions:
    """The regions of a parcel table and their values.

    Parameters
    ----------
    names : tuple of str
    index : tuple of str
        Numbers in the atlas as text; empty where the table has none.
    values : array of float64, shape (K,)
        NaN where the table says ``n/a``.
    """

    names: tuple[str, ...]
    index: tuple[str, ...]
    values: NDArray[np.float64]


def read_regions(path: Path, quantity: str) -> Regions:
    """Read one participant's parcel table.

    Parameters
    ----------
    path : Path
        Tabs; a column of names, and the quantity under its own name, as ``value``, or as the only
        column that is left.
    quantity : str

    Returns
    -------
    Regions

    Raises
    ------
    ValidationError
        The table is damaged, names a region twice, or does not say where its values are.
    """
    try:
        with open_regular(path) as raw:
            stream = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            header, *rows = list(csv.reader(stream, delimiter="\t"))
    except (OSError, ValueError, csv.Error) as error:
        raise ValidationError(f"{path} is empty or no table; make it again.") from error
    rows = [row for row in rows if row]
    if any(len(row) != len(header) for row in rows):
        raise ValidationError(f"{path} has rows of different length; make it again.")
    column_of_names = next((name for name in _NAME_COLUMNS if name in header), None)
    if column_of_names is None:
        raise ValidationError(f"{path} has no column of region names ({', '.join(header)}).")
    place = header.index(_value_column(path, header, column_of_names, quantity))
    named = header.index(column_of_names)
    names = tuple(row[named] for row in rows)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValidationError(f"{path} names the region {twice!r} twice.")
    numbered = "index" in header and column_of_names != "index"
    index = tuple(row[header.index("index")] for row in rows) if numbered else ()
    values = np.array([_number(row[place], path) for row in rows], dtype=np.float64)
    return Regions(names, index, values)


def _value_column(path: Path, header: Sequence[str], names: str, quantity: str) -> str:
    for column in (quantity, "value"):
        if column in header:
            return column
    left = [column for column in header if column not in (*_HELPERS, names)]
    # Other programs call their only column what they like, score for one; a column of another
    # quantity of ours means that the table stands under a wrong name.
    ours = {known for _, known in TABLES} - {"score"}
    if len(left) == 1 and left[0] not in ours:
        return left[0]
    raise ValidationError(f"{path} has no column {quantity!r} or 'value' ({', '.join(header)}).")


def _number(text: str, path: Path) -> float:
    if text.strip() in ("", "n/a"):
        return float("nan")
    try:
        return float(text)
    except ValueError as error:
        raise ValidationError(f"{path} holds {text!r} where a number belongs.") from error


def read_tables(paths: Sequence[Path], quantity: str) -> tuple[Regions, NDArray[np.float64]]:
    """Read the parcel tables of a cohort.

    Parameters
    ----------
    paths : sequence of Path
        One table per participant.
    quantity : str

    Returns
    -------
    regions : Regions
        Of the first participant.
    values : array of float64, shape (N, K)
        Participants by regions, in the order of the atlas; NaN for missing values.

    Raises
    ------
    ValidationError
        A table is damaged, or two tables differ in their regions.
    """
    first: Regions | None = None
    rows = []
    for path in paths:
        regions = read_regions(path, quantity)
        first = first or regions
        if (regions.names, regions.index) != (first.names, first.index):
            raise ValidationError(
                f"{path} and {paths[0]} have different regions "
                f"({_difference(first, regions)}): they were made with different versions of an "
                "atlas; run the participant level again with one."
            )
        rows.append(regions.values)
    if first is None:
        raise ValidationError("There is no table to read.")
    return first, np.stack(rows)


def _difference(first: Regions, second: Regions) -> str:
    if len(first.names) != len(second.names):
        return f"{len(second.names)} and {len(first.names)}"
    for old, new in zip(first.names, second.names, strict=True):
        if old != new:
            return f"{new!r} in the place of {old!r}"
    return "the same names with other numbers"


def cohort_table(
    cohort: Cohort, joined: pd.DataFrame | None = None, *, layout: str = "bids"
) -> pd.DataFrame:
    """Put the tables of a cohort side by side.

    Parameters
    ----------
    cohort : Cohort
        Parcel tables of one kind.
    joined : DataFrame, optional
        Columns for all participants, as text; the index is participants.
    layout : {"bids", "lacuna"}
        In the second, the column of labels is called ``label``.

    Returns
    -------
    DataFrame
        One row per participant: ``participant_id``, ``session_id`` where there are sessions,
        ``mask_label``, joined columns, then one column per region in the order of the atlas.

    Raises
    ------
    ValidationError
        As :func:`side_by_side`.
    """
    ids = identification(cohort, joined, layout=layout)
    return side_by_side(ids, cohort.paths, cohort.entities["statistic"])


def side_by_side(ids: pd.DataFrame, paths: Sequence[Path], quantity: str) -> pd.DataFrame:
    """Put the values of parcel tables beside who they are of.

    Parameters
    ----------
    ids : DataFrame
        From :func:`identification`.
    paths : sequence of Path
        Parcel tables, one for each row.
    quantity : str

    Returns
    -------
    DataFrame

    Raises
    ------
    ValidationError
        As :func:`read_tables`, or a region has the name of another column.
    """
    import pandas as pd

    regions, values = read_tables(paths, quantity)
    clash = sorted(set(ids.columns) & set(regions.names))
    if clash:
        raise ValidationError(
            f"A region of {paths[0]} is called {clash[0]!r}, as another column of the table; "
            "rename it in the atlas."
        )
    return pd.concat([ids, pd.DataFrame(values, columns=list(regions.names))], axis=1)


def identification(
    cohort: Cohort, joined: pd.DataFrame | None = None, *, layout: str = "bids"
) -> pd.DataFrame:
    """Give the first columns of a table: who, which mask, and what is joined.

    Parameters
    ----------
    cohort, joined, layout
        As for :func:`cohort_table`.

    Returns
    -------
    DataFrame
        Joined columns that are called like a BIDS entity or like one of these columns have
        ``participant_`` before their names.
    """
    import pandas as pd

    label, lacuna = cohort.entities.get("label"), layout == "lacuna"
    columns = {"participant_id": list(cohort.participants)}
    sessions = [file.entities.get("session") for file in cohort.files]
    if any(sessions) or lacuna:
        columns["session_id"] = [f"ses-{name}" if name else "n/a" for name in sessions]
    if label is not None:
        columns["label" if lacuna else "mask_label"] = [label] * len(cohort.files)
    table = pd.DataFrame(columns, dtype=str)
    if joined is not None:
        rows = [normal_form(name) for name in cohort.participants]
        found = joined.reindex(rows)
        for column in found.columns:
            texts = ["n/a" if pd.isna(text) or text == "" else str(text) for text in found[column]]
            table[joined_name(column, layout=layout)] = texts
    return table


def joined_name(column: str, *, layout: str = "bids") -> str:
    """Name of a joined column: a name that pybids or the table keep for something is changed."""
    taken = {*_ID_COLUMNS, "label"} if layout == "lacuna" else RESERVED | set(_ID_COLUMNS)
    return f"participant_{column}" if column in taken else column


def table_path(entities: Mapping[str, str], *, layout: str = "bids") -> str:
    """Path of a table of all participants, relative to its dataset.

    Parameters
    ----------
    entities : mapping
        Of the cohort.
    layout : {"bids", "lacuna"}

    Returns
    -------
    str
        ``phenotype/group_..._parcelstats.tsv``.
    """
    if layout == "bids":
        return build_path({**entities, "datatype": "phenotype", "extension": ".tsv"})
    scheme = {
        "ses": entities.get("session"),
        "label": entities.get("label"),
        "method": entities["desc"],
        "atlas": lacuna_atlas(entities),
        "desc": entities["statistic"],
    }
    parts = [f"{key}-{value}" for key, value in scheme.items() if value]
    return f"phenotype/{'_'.join(['group', *parts, 'parcelstats'])}.tsv"


def lacuna_atlas(entities: Mapping[str, str]) -> str:
    """Lacuna's id of an atlas: one word of name, parcels and networks."""
    word = entities["atlas"]
    scale, networks = entities.get("scale"), entities.get("segmentation", "")
    if scale is None and not networks:
        return word
    if scale:
        word += f"parcels{scale}"
    if networks.endswith("n") and networks[:-1].isdigit():
        networks = f"networks{networks[:-1]}"
    return (word + networks).lower()


def describe_cohort_table(
    cohort: Cohort,
    *,
    links: Mapping[str, Path | str],
    parameters: Mapping[str, Any],
    missing: Sequence[str] = (),
    joined: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Sidecar of a table of all participants.

    Parameters
    ----------
    cohort : Cohort
    links : mapping of str to path
        Datasets that source addresses refer to; the empty name is the dataset itself.
    parameters : mapping
        How the table was asked for.
    missing : sequence of str
        Participants of the folder without such a table.
    joined : mapping, optional
        Descriptions of joined columns.

    Returns
    -------
    dict
        No key is a BIDS entity, which would stop pybids.
    """
    analysis, quantity = cohort.entities["desc"], cohort.entities["statistic"]
    regions = read_regions(cohort.paths[0], quantity)
    first = cohort.files[0].sidecar()
    known = COLUMNS.get(quantity, {})
    what = TABLES.get((analysis, quantity), f"{quantity} of every region ({analysis}).")
    content: dict[str, Any] = {
        "Description": f"One row per participant, one column per region. {what}",
        "Quantity": quantity,
        "NumberOfParticipants": len(cohort.files),
        "ParticipantsWithoutTable": list(missing),
        **{key: first[key] for key in _SHARED if key in first},
        "Parameters": dict(parameters),
        "Sources": [bids_uri(path, links) for path in cohort.paths],
        "Software": {"Name": "lacuna-nipype", "Version": __version__},
        **{key: _ID_COLUMNS[key] for key in identification(cohort).columns if key in _ID_COLUMNS},
        **dict(joined or {}),
    }
    numbers = regions.index or [str(n) for n in range(1, len(regions.names) + 1)]
    for number, name in zip(numbers, regions.names, strict=True):
        if name not in RESERVED and name not in content:
            meaning = {"Description": f"{known.get('Description', quantity)} Region {number}."}
            content[name] = {**known, **meaning}
    return content


@dataclass(frozen=True)
class Joined:
    """Columns of the table of participants that go into other tables.

    Parameters
    ----------
    table : DataFrame or None
        Text; the index is participants. None when nothing is joined.
    descriptions : mapping
        Sidecar entries under the names the columns get.
    """

    table: pd.DataFrame | None
    descriptions: Mapping[str, Any]


def join_columns(path: Path | None, columns: Sequence[str], *, layout: str = "bids") -> Joined:
    """Read columns of the table of participants, with what its sidecar says of them.

    Parameters
    ----------
    path : Path or None
        ``participants.tsv``.
    columns : sequence of str
    layout : {"bids", "lacuna"}

    Returns
    -------
    Joined

    Raises
    ------
    ValidationError
        There is no such table or column.
    """
    if not columns:
        return Joined(None, {})
    if path is None:
        raise ValidationError("There is no participants.tsv; name one with --participants.")
    table = choose_columns(read_participants(path), columns, path)
    sidecar = _read_json(path.with_suffix(".json"))
    descriptions = {
        joined_name(column, layout=layout): sidecar.get(
            column, {"Description": f"Column {column} of the table of participants."}
        )
        for column in columns
    }
    return Joined(table, descriptions)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValidationError(f"{path} is no JSON; correct it or remove it.") from error
    return content if isinstance(content, dict) else {}


def write_cohort_table(path: Path, table: pd.DataFrame, sidecar: Mapping[str, Any]) -> Path:
    """Write a table of all participants and its sidecar.

    Parameters
    ----------
    path : Path
        The table; the sidecar lies beside it.
    table : DataFrame
        From :func:`cohort_table`.
    sidecar : mapping
        From :func:`describe_cohort_table`.

    Returns
    -------
    Path
    """
    write_json(path.with_suffix(".json"), dict(sidecar))
    return write_table(path, table)
