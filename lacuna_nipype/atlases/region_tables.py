"""The table of regions that stands beside every atlas of the catalogue."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from lacuna_nipype.atlases.labels import RegionName, read_labels
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import write_table

#: Columns beside index and name that mean the same under several headings.
_SYNONYMS = {
    "hemisphere": ("hemisphere", "hemi", "side"),
    "network": ("network", "network_label", "network_name", "yeo_networks7"),
    "color": ("color", "colour", "hex"),
}
_SIDES = {
    "left": "left", "lh": "left", "l": "left", "right": "right", "rh": "right", "r": "right"
}  # fmt: skip
_SCHAEFER = re.compile(r"(?:7|17)Networks_[LR]H_([A-Za-z]+)_")


def read_table(labels: Path) -> pd.DataFrame:
    """Read the regions of an atlas with all that its table says of them.

    Parameters
    ----------
    labels : Path
        See :func:`lacuna_nipype.atlases.labels.read_labels`.

    Returns
    -------
    DataFrame
        ``index`` (int) and ``name`` first, then the other columns of a table as text, in the
        file's order; no row for background. A missing value is an empty text.

    Raises
    ------
    ValidationError
        As ``read_labels``.
    """
    regions = read_labels(labels)
    table = pd.DataFrame({"index": [r.index for r in regions], "name": [r.name for r in regions]})
    if labels.suffix.lower() not in (".tsv", ".csv"):
        return table
    text = labels.read_text(encoding="utf-8-sig")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    rows = csv.DictReader(lines, delimiter="\t" if labels.suffix.lower() == ".tsv" else ",")
    by_index = {int(row["index"]): row for row in rows}
    for column in (column for column in rows.fieldnames or () if column not in table):
        values = [by_index[index].get(column) or "" for index in table["index"]]
        table[column] = ["" if value.strip() == "n/a" else value.strip() for value in values]
    return table


def keep_regions(table: pd.DataFrame, regions: Iterable[RegionName]) -> pd.DataFrame:
    """Leave out the rows of regions that have no voxel."""
    kept = {region.index for region in regions}
    return table[table["index"].isin(kept)].reset_index(drop=True)


def write_regions(path: Path, table: pd.DataFrame) -> Path:
    """Write a table of regions, ``n/a`` for what is empty; see :func:`read_table`."""
    return write_table(path, table.replace("", np.nan))


def with_sides(table: pd.DataFrame) -> pd.DataFrame:
    """Give a table the columns hemisphere, network and color, found in it or in the names.

    Parameters
    ----------
    table : DataFrame
        Of :func:`read_table`.

    Returns
    -------
    DataFrame
        ``index, name, hemisphere`` (left, right or empty), ``network`` and ``color``; what is
        not known is empty.
    """
    lower = {str(column).lower(): column for column in table}
    found = {
        wanted: next((lower[name] for name in names if name in lower), None)
        for wanted, names in _SYNONYMS.items()
    }
    names = table["name"].astype(str)
    result = pd.DataFrame({"index": table["index"].astype(int), "name": names})
    for wanted, column in found.items():
        if column is not None:
            values = table[column].astype(str).tolist()
        elif wanted == "network":
            matches = [_SCHAEFER.match(name) for name in names]
            values = [match.group(1) if match else "" for match in matches]
        else:
            values = [""] * len(table)
        if wanted == "hemisphere":
            stated = [_SIDES.get(value.lower(), value) for value in values]
            values = [own or side_of(name) for own, name in zip(stated, names, strict=True)]
        result[wanted] = values
    return result


def side_of(name: str) -> str:
    """Read the side from a region's name.

    Parameters
    ----------
    name : str

    Returns
    -------
    str
        ``left`` or ``right`` where exactly one of them, or its abbreviation as a word of its own
        (LH, L, lh), is in the name; else empty.
    """
    words = re.split(r"[^A-Za-z]+", name)
    # A single letter is a side where it ends the name or stands alone in capitals.
    words = [word for word in words if len(word) > 1 or word in ("L", "R")]
    sides = {_SIDES[word.lower()] for word in words if word.lower() in _SIDES}
    return sides.pop() if len(sides) == 1 else ""


def find_regions(table: pd.DataFrame, names: Iterable[str | int]) -> list[RegionName]:
    """Pick regions by name, or by number where no region has such a name.

    Parameters
    ----------
    table : DataFrame
        With ``index`` and ``name``.
    names : iterable of str or int
        Case is ignored.

    Returns
    -------
    list of RegionName
        In the order asked for, each once.

    Raises
    ------
    AtlasNotFound
        There is no such region; the message offers the nearest names.
    ValidationError
        No region was asked for.
    """
    from lacuna_nipype.atlases.entries import AtlasNotFound
    from lacuna_nipype.atlases.matching import nearest_names

    regions = [
        RegionName(int(index), str(name))
        for index, name in zip(table["index"], table["name"], strict=True)
    ]
    by_name = {region.name.casefold(): region for region in regions}
    by_index = {str(region.index): region for region in regions}
    chosen: dict[int, RegionName] = {}
    for wanted in names:
        text = str(wanted).strip()
        region = by_name.get(text.casefold()) or by_index.get(text)
        if region is None:
            offer = nearest_names(text, [region.name for region in regions])
            raise AtlasNotFound(
                f"There is no region {text!r} in this atlas; there is {', '.join(offer)}."
            )
        chosen.setdefault(region.index, region)
    if not chosen:
        raise ValidationError("No region was named; name at least one.")
    return list(chosen.values())
