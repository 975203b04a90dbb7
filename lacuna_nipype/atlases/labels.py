"""Files that name the regions of an atlas."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import open_regular
from lacuna_nipype.core.text import whole_number


@dataclass(frozen=True)
class RegionName:
    """A region's number and name."""

    index: int
    name: str


def read_labels(path: Path) -> list[RegionName]:
    """Read the names of an atlas's regions.

    Parameters
    ----------
    path : Path
        One of: a table with a header and the columns ``index`` and ``name``, separated by tabs
        (``.tsv``) or commas (``.csv``); ``number name`` on each line; one name on each line,
        the first being region 1. Empty lines and lines that start with ``#`` are skipped.

    Returns
    -------
    list of RegionName
        In the file's order; number 0 (background) left out.

    Raises
    ------
    ValidationError
        The file is missing, not text, empty, or has doubled numbers or names.
    """
    try:
        with open_regular(path) as stream:
            text = stream.read().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ValidationError(f"Labels file {path} does not exist.") from error
    except OSError as error:
        raise ValidationError(f"Labels file {path} cannot be read.") from error
    except UnicodeDecodeError as error:
        raise ValidationError(f"Labels file {path} is not a text file (UTF-8).") from error
    # A line ends where Python's text files end it; splitlines() would cut names as well.
    rows = io.StringIO(text, newline=None)
    lines = [row.rstrip("\n") for row in rows if row.strip() and not row.startswith("#")]
    if not lines:
        raise ValidationError(f"Labels file {path} names no region.")
    if path.suffix.lower() in (".tsv", ".csv"):
        regions = _from_table(lines, path)
    else:
        regions = _from_lines([line.strip() for line in lines], path)
    regions = [region for region in regions if region.index != 0]
    for what in ("index", "name"):
        counts = Counter(getattr(region, what) for region in regions)
        doubled = [str(value) for value, count in counts.items() if count > 1]
        if doubled:
            raise ValidationError(
                f"Labels file {path} uses the {what} {', '.join(doubled[:5])} more than once."
            )
    return regions


def _from_table(lines: Sequence[str], path: Path) -> list[RegionName]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = list(csv.DictReader(lines, delimiter=delimiter))
    header = rows[0].keys() if rows else lines[0].split(delimiter)
    if not {"index", "name"} <= set(header):
        raise ValidationError(f"Labels file {path} lacks the columns index and name.")
    regions = []
    for row in rows:
        number, name = (row["index"] or "").strip(), (row["name"] or "").strip()
        size = whole_number(number.removeprefix("-" if number.startswith("-") else "+"))
        if size is None or not name:
            raise ValidationError(
                f"Labels file {path} has a row with index {number[:40]!r} and name "
                f"{name[:80]!r}; the index is a whole number and the name is not empty."
            )
        regions.append(RegionName(-size if number.startswith("-") else size, name))
    return regions


def _from_lines(lines: Sequence[str], path: Path) -> list[RegionName]:
    parts = [line.split(maxsplit=1) for line in lines]
    numbers = [whole_number(part[0]) if len(part) == 2 else None for part in parts]
    if None not in numbers:
        pairs = zip(numbers, parts, strict=True)
        return [RegionName(n, part[1].strip()) for n, part in pairs if n is not None]
    numbered = sum(len(part) == 2 and part[0].isdecimal() for part in parts)
    if numbered > len(parts) // 2:
        odd = lines[numbers.index(None)]
        raise ValidationError(
            f"Labels file {path} has 'number name' on most lines but not in {odd[:80]!r}; use "
            "one form."
        )
    return [RegionName(number, line) for number, line in enumerate(lines, start=1)]
