"""Weights of streamlines, such as those of SIFT2."""

from __future__ import annotations

import re
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import atomic_path, open_regular

# Text that is turned into numbers at a time.
BLOCK_BYTES = 1 << 24
_COMMENT = re.compile(rb"#[^\n]*")
# MRtrix takes commas and semicolons between numbers too.
# What numpy raises for headers that are damaged or absurd, and for archives.
_NO_ARRAY = (
    *(OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, OverflowError),
    *(MemoryError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile),
)
_SEPARATORS = bytes.maketrans(b",;", b"  ")


def read_streamline_weights(path: Path, n_streamlines: int) -> NDArray[np.float32]:
    """Read one weight per streamline.

    Parameters
    ----------
    path : Path
        Text as MRtrix's ``-tck_weights_in`` takes it: numbers on one line or several, ``#``
        before comments; or what :func:`save_streamline_weights` wrote (``.npy``).
    n_streamlines : int
        Streamlines of the tractogram.

    Returns
    -------
    array, shape (n_streamlines,), float32
        Finite and not negative.

    Raises
    ------
    ValidationError
        The file is missing, is not numbers, has another count, or holds a weight that is
        negative or not finite.
    """
    try:
        if path.suffix == ".npy":
            weights = _load(path)
        else:
            with open_regular(path) as stream:
                weights = _parse(path, stream)
    except FileNotFoundError as error:
        raise ValidationError(
            f"Streamline weights {path} do not exist; check the path."
        ) from error
    except (OSError, EOFError, ValueError) as error:
        if isinstance(error, ValidationError):
            raise
        raise ValidationError(f"Streamline weights {path} cannot be read.") from error
    if len(weights) != n_streamlines:
        raise ValidationError(
            f"{path} has {len(weights)} weights for a tractogram of {n_streamlines} streamlines; "
            "give the weights that were made for this tractogram."
        )
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        place = int(wrong.argmax())
        raise ValidationError(
            f"{path} has the weight {weights[place]:g} for streamline {place} (counted from 0); "
            "weights are finite and not negative."
        )
    return weights


def _load(path: Path) -> NDArray[np.float32]:
    try:
        open_regular(path).close()
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if found.dtype.kind not in "iuf":
            raise TypeError(f"an array of {found.dtype}")
        return np.array(found, dtype=np.float32).ravel()
    except FileNotFoundError:
        raise
    except _NO_ARRAY as error:
        raise ValidationError(f"{path} is not an array of numbers.") from error


def _parse(path: Path, stream: BinaryIO) -> NDArray[np.float32]:
    parts = [np.zeros(0, dtype=np.float32)]
    for text in _pieces(path, stream):
        plain = _COMMENT.sub(b"", text).translate(_SEPARATORS)
        words = plain.split()
        try:
            # float() takes underscores, which are no part of a number elsewhere.
            if b"_" in plain:
                raise ValueError("underscore")
            # A double too large for single precision becomes infinite, and is refused as such.
            with np.errstate(over="ignore"):
                parts.append(np.array(list(map(float, words))).astype(np.float32))
        except ValueError as error:
            odd = next(word for word in words if not _is_number(word)).decode(errors="replace")
            raise ValidationError(
                f"{path} holds {odd[:40]!r} where a number is wanted; streamline weights are text "
                "with one number per streamline."
            ) from error
    return np.concatenate(parts)


def _pieces(path: Path, stream: BinaryIO) -> Iterator[bytes]:
    """Text in blocks that end between two words and outside of comments."""
    rest = b""
    while block := stream.read(BLOCK_BYTES):
        block = rest + block
        end = block.rfind(b"\n") + 1
        if b"#" not in block[end:]:
            end = max(end, block.rfind(b" ") + 1, block.rfind(b"\t") + 1)
        if end == 0 and len(block) > BLOCK_BYTES:
            raise ValidationError(
                f"{path} is not text with one number per streamline; it has no lines."
            )
        yield block[:end]
        rest = block[end:]
    yield rest


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return b"_" not in word


def save_streamline_weights(weights: NDArray[np.float32], path: Path) -> Path:
    """Write weights to a ``.npy`` file, atomically; it is read in milliseconds.

    Parameters
    ----------
    weights : array, shape (n_streamlines,)
    path : Path
        Target, ending in ``.npy``.

    Returns
    -------
    Path
    """
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, weights.astype(np.float32, copy=False))
    return path
