"""Tables that say to which bundles the streamlines of a tractogram belong."""

from __future__ import annotations

import json
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lacuna_nipype.core.disconnectivity import StreamlineGroups
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import atomic_path, open_regular, parse_json

# Rows of a table that are read at a time.
BLOCK_ROWS = 1 << 20
NONE = "n/a"
# What numpy and zipfile raise for archives that are damaged or hold something else;
# NotImplementedError is zipfile's, for encryption and methods of compression it does not have.
_NO_ARCHIVE = (
    *(OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError),
    *(OverflowError, MemoryError, NotImplementedError, RuntimeError, SyntaxError),
    *(zlib.error, zipfile.BadZipFile, tokenize.TokenError),
)


def read_streamline_groups(path: Path, n_streamlines: int) -> StreamlineGroups:
    """Read which streamlines form which bundle.

    Parameters
    ----------
    path : Path
        ``.tsv`` or ``.tsv.gz`` with the columns ``streamline`` (position in the tractogram,
        from 0) and ``bundle`` (name); others are ignored. Without ``streamline`` the table has
        one row per streamline, in order. A streamline may stand in several rows, in none, or
        with the bundle ``n/a``. Or what :func:`save_streamline_groups` wrote (``.npz``).
    n_streamlines : int
        Streamlines of the tractogram.

    Returns
    -------
    StreamlineGroups
        Bundles in the order of their first rows; a pair that stands twice counts once.

    Raises
    ------
    ValidationError
        The file is missing, is not such a table, names a streamline that the tractogram does
        not have, or has an empty name or no bundle at all.
    """
    if path.suffix == ".npz":
        groups = _read_archive(path)
        if groups.n_streamlines != n_streamlines:
            raise ValidationError(
                f"{path} describes a tractogram of {groups.n_streamlines} streamlines, not of "
                f"{n_streamlines}; prepare it again."
            )
        return groups
    try:
        open_regular(path).close()
        return _read_table(path, n_streamlines)
    except FileNotFoundError as error:
        raise ValidationError(f"Streamline groups {path} do not exist; check the path.") from error
    except ValidationError:
        raise
    # The parser's own errors, and texts that are no UTF-8, are ValueErrors.
    except (OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
        raise ValidationError(
            f"Streamline groups {path} are not a readable table (.tsv or .tsv.gz)."
        ) from error


def _read_table(path: Path, n_streamlines: int) -> StreamlineGroups:
    has_positions = _check_header(path)
    numbers: dict[str, int] = {}
    # One number per pair of bundle and streamline, so that they sort and compare at once.
    keys, n_rows = [], 0
    for table in _blocks(path):
        bundle = _numbers_of(path, table["bundle"], numbers, n_rows)
        if has_positions:
            position = _positions_of(path, table["streamline"], n_streamlines, n_rows)
        else:
            position = np.arange(n_rows, n_rows + len(table))
        n_rows += len(table)
        keys.append((bundle * n_streamlines + position)[bundle >= 0])
    if not has_positions and n_rows != n_streamlines:
        raise ValidationError(
            f"{path} has {n_rows} rows and no column 'streamline', but the tractogram has "
            f"{n_streamlines} streamlines; add that column or give one row per streamline."
        )
    if not keys or not numbers:
        raise ValidationError(f"Streamline groups {path} name no bundle.")
    bundle, position = np.divmod(np.unique(np.concatenate(keys)), n_streamlines)
    return StreamlineGroups(tuple(numbers), position, bundle.astype(np.int32), n_streamlines)


def _check_header(path: Path) -> bool:
    """Whether the table has positions; it must have names."""
    try:
        columns = pd.read_csv(path, sep="\t", nrows=0, encoding="utf-8-sig").columns
    except pd.errors.EmptyDataError as error:
        raise ValidationError(f"Streamline groups {path} are an empty file.") from error
    if "bundle" not in columns:
        raise ValidationError(
            f"{path} has no column 'bundle'; streamline groups are a table with the columns "
            "'streamline' and 'bundle', separated by tabs."
        )
    return "streamline" in columns


def _blocks(path: Path) -> Iterator[pd.DataFrame]:
    # Names such as NA and nan are names. The C parser reads a block with one type per column.
    with pd.read_csv(
        path,
        sep="\t",
        usecols=lambda column: column in ("streamline", "bundle"),
        dtype={"bundle": "str"},
        na_filter=False,
        encoding="utf-8-sig",
        low_memory=False,
        chunksize=BLOCK_ROWS,
    ) as reader:
        # A header alone makes one block without rows.
        yield from (block for block in reader if len(block))


def _numbers_of(
    path: Path, column: pd.Series, numbers: dict[str, int], first_row: int
) -> NDArray[np.int64]:
    """Turn names into numbers, -1 for none; names not seen yet are added to ``numbers``."""
    codes, found = pd.factorize(column)
    own = np.empty(len(found), dtype=np.int64)
    for code, value in enumerate(found):
        name = value.strip() if isinstance(value, str) else ""
        if not name:
            row = first_row + int((codes == code).argmax())
            raise ValidationError(
                f"{path} has no bundle in row {row + 1} below the header; write {NONE} for a "
                "streamline that belongs to none."
            )
        own[code] = -1 if name == NONE else numbers.setdefault(name, len(numbers))
    return own[codes]


def _positions_of(
    path: Path, column: pd.Series, n_streamlines: int, first_row: int
) -> NDArray[np.int64]:
    whole = pd.api.types.is_integer_dtype(column.dtype)
    numbers = pd.to_numeric(column, errors="coerce")
    wrong = ~((numbers >= 0) & (numbers < n_streamlines) & (numbers % 1 == 0)).to_numpy()
    if wrong.any() or not whole:
        row = int(wrong.argmax())
        raise ValidationError(
            f"{path} has the streamline {str(column.iloc[row])!r} in row {first_row + row + 1} "
            f"below the header; positions are whole numbers from 0 to {n_streamlines - 1}."
        )
    return column.to_numpy(dtype=np.int64)


def save_streamline_groups(groups: StreamlineGroups, path: Path) -> Path:
    """Write groups to an ``.npz`` file, atomically; it is read in milliseconds.

    Parameters
    ----------
    groups : StreamlineGroups
    path : Path
        Target, ending in ``.npz``.

    Returns
    -------
    Path
    """
    meta = {"names": list(groups.names), "n_streamlines": groups.n_streamlines}
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            meta=np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8),
            streamline=groups.streamline,
            bundle=groups.bundle,
        )
    return path


def _check_groups(groups: StreamlineGroups) -> None:
    """Refuse numbers that lead beyond the tractogram or the names; ValueError."""
    for values, end in (
        (groups.streamline, groups.n_streamlines), (groups.bundle, len(groups.names)),
    ):  # fmt: skip
        if values.ndim != 1 or values.dtype.kind not in "iu" or len(values) != len(groups.bundle):
            raise ValueError(f"an array of {values.shape} and type {values.dtype}")
        if len(values) and (values.min() < 0 or values.max() >= end):
            raise ValueError(f"a number that is not below {end}")


def _read_archive(path: Path) -> StreamlineGroups:
    try:
        open_regular(path).close()
        with np.load(path, allow_pickle=False) as archive:
            meta = parse_json(archive["meta"].tobytes().decode("utf-8"))
            groups = StreamlineGroups(
                tuple(str(name) for name in meta["names"]),
                archive["streamline"],
                archive["bundle"],
                int(meta["n_streamlines"]),
            )
        _check_groups(groups)
        return groups
    except FileNotFoundError as error:
        raise ValidationError(f"Streamline groups {path} do not exist; check the path.") from error
    except _NO_ARCHIVE as error:
        raise ValidationError(
            f"{path} is not an archive of streamline groups; prepare it again."
        ) from error
