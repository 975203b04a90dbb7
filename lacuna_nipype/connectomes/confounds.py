"""What cleaning a subject's series needs beside the image: confounds and the repetition time."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import read_json
from lacuna_nipype.core.images import open_image

if TYPE_CHECKING:
    import pandas as pd

_WILDCARDS = frozenset("*?[")
# Nobody waits longer for a volume; also keeps infinity out.
_MOST_SECONDS = 1e6
_MISSING = ["n/a", "NaN", "nan", ""]
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}


def select_columns(tables: Sequence[Path], patterns: Sequence[str]) -> list[list[str]]:
    """Choose columns of confounds tables by name.

    Parameters
    ----------
    tables : sequence of Path
        One for each subject.
    patterns : sequence of str
        Names, which every table must have, and patterns such as ``motion_outlier*``, which may
        match nothing in some tables but not in all.

    Returns
    -------
    list of list of str
        Names of the columns of each table, in the order of the patterns, each once.

    Raises
    ------
    ValidationError
        A table cannot be read, or lacks a column; or a pattern matches nothing anywhere.
    """
    chosen: list[list[str]] = []
    unmatched = list(dict.fromkeys(patterns))
    for path in tables:
        names = list(_read_table(path, n_rows=0).columns)
        own = []
        for pattern in patterns:
            found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
            if not found and not _WILDCARDS & set(pattern):
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5) or names[:5]
                raise ValidationError(
                    f"{path} has no column {pattern}; there are {', '.join(near)} and others."
                )
            if found and pattern in unmatched:
                unmatched.remove(pattern)
            own += found
        chosen.append(list(dict.fromkeys(own)))
    if unmatched:
        raise ValidationError(
            f"No column of {tables[0]}, nor of the other tables, matches {unmatched[0]}; check "
            "the pattern."
        )
    return chosen


def read_confounds(path: Path, columns: Sequence[str], n_timepoints: int) -> NDArray[np.float64]:
    """Read columns of a confounds table.

    Parameters
    ----------
    path : Path
        Tab-separated, with a row for each time point, as fMRIPrep writes it.
    columns : sequence of str
        Names of columns.
    n_timepoints : int
        Length of the subject's image.

    Returns
    -------
    array, shape (n_timepoints, n_columns), float64
        Where only the first row says ``n/a``, as for differences to the row before, it has the
        value of the second.

    Raises
    ------
    ValidationError
        The table cannot be read or has another number of rows; or a column has ``n/a``
        elsewhere, or something that is not a number.
    """
    table = _read_table(path)
    if len(table) != n_timepoints:
        raise ValidationError(
            f"{path} has {len(table)} rows, but its image has {n_timepoints} time points; use the "
            "table that was made with the image."
        )
    values = np.empty((n_timepoints, len(columns)))
    for number, name in enumerate(columns):
        try:
            values[:, number] = table[name].astype(np.float64)
        except ValueError:
            raise ValidationError(
                f"Column {name} of {path} holds something that is not a number; leave it out."
            ) from None
    first = np.isnan(values[0])
    values[0, first] = values[1, first]
    broken = np.argwhere(~np.isfinite(values))
    if len(broken):
        row, number = broken[0]
        raise ValidationError(
            f"Column {columns[number]} of {path} has no value for time point {row} (counted from "
            "0); leave the column out."
        )
    return values


def _read_table(path: Path, n_rows: int | None = None) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        raise ValidationError(f"{path} does not exist; check the path.")
    try:
        # What pandas takes for missing besides, such as None, is a mistake among numbers.
        return pd.read_csv(path, sep="\t", nrows=n_rows, keep_default_na=False, na_values=_MISSING)
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise ValidationError(f"{path} is not a table with tabs; write it again.") from error


def _checked_seconds(told: Any, sidecar: Path) -> float:
    number = isinstance(told, (int, float)) and not isinstance(told, bool)
    if not number or not 0 < told < _MOST_SECONDS:
        raise ValidationError(
            f"{sidecar} has the RepetitionTime {told!r}, which is no number of seconds."
        )
    return float(told)


def read_repetition_time(image: str | os.PathLike[str]) -> float:
    """Find the time between the volumes of an image.

    Parameters
    ----------
    image : path-like
        4D NIfTI image. RepetitionTime in the JSON file of the same name counts before the image's
        header, and the header only where it names the unit.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    ValidationError
        Neither says it.
    """
    path = Path(image)
    sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if sidecar.is_file():
        try:
            content: Any = read_json(sidecar)
        except (OSError, ValueError) as error:
            raise ValidationError(f"{sidecar} is not valid JSON; repair or remove it.") from error
        if not isinstance(content, dict):
            raise ValidationError(f"{sidecar} must hold a JSON object; repair or remove it.")
        told = content.get("RepetitionTime")
        if told is not None:
            return _checked_seconds(told, sidecar)
    try:
        header = open_image(path).header
        seconds = float(header.get_zooms()[3]) * _SECONDS.get(header.get_xyzt_units()[1], 0.0)
    except (OSError, AttributeError, IndexError, KeyError) as error:
        raise ValidationError(
            f"{path} cannot be read as an image in four dimensions; copy it again."
        ) from error
    if not 0 < seconds < float("inf"):
        raise ValidationError(
            f"Neither the header of {path} nor a JSON file beside it tells the repetition time; "
            "give it with --repetition-time."
        )
    return seconds
