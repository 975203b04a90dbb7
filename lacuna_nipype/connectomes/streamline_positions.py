"""Which streamlines tckedit kept: each is given a weight that says its position.

tckedit writes streamlines without a word about where they were in its input, but it writes their
weights beside them. Weights are single precision and are printed with nine digits, which tell
every such number from all others. So the weights are a rising sequence of single-precision
numbers, all of them whole: 1, 2, 3 and so on up to 2^24, and from there every next one that
exists (2^24 + 2, ...).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import atomic_path

# Numbers that are turned into text at a time, and bytes of text into numbers.
BLOCK_NUMBERS = 1 << 20
BLOCK_BYTES = 1 << 22

# Up to here every whole number is a single-precision one; further on, count by bit patterns.
_EXACT = 1 << 24
_EXACT_BITS = int(np.float32(_EXACT).view(np.uint32))
_INFINITE_BITS = int(np.float32(np.inf).view(np.uint32))
MOST_STREAMLINES = _EXACT - 1 + _INFINITE_BITS - _EXACT_BITS


def position_weights(positions: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Give the weights that stand for positions.

    Parameters
    ----------
    positions : array of int
        Positions from 0, below :data:`MOST_STREAMLINES` (889 million).

    Returns
    -------
    array of float32, same shape
        Position + 1 up to 2^24; whole numbers, rising, and each exact.
    """
    numbers = positions.astype(np.int64) + 1
    bits = np.maximum(numbers - _EXACT, 0) + _EXACT_BITS
    further = bits.astype(np.uint32).view(np.float32)
    small: NDArray[np.bool_] = numbers < _EXACT
    return np.where(small, numbers.astype(np.float32), further)


def weighted_positions(weights: NDArray[np.float32]) -> NDArray[np.int64]:
    """Give the positions that weights stand for; the sign of a weight is ignored.

    Parameters
    ----------
    weights : array of float32
        What :func:`position_weights` made.

    Returns
    -------
    array of int64, same shape
        Positions from 0; negative for a number that is none of these weights.
    """
    magnitudes = np.abs(weights)
    bits = np.ascontiguousarray(magnitudes).view(np.uint32).astype(np.int64)
    small = magnitudes < _EXACT
    numbers = np.where(small, magnitudes, 0).astype(np.int64)
    numbers = np.where(numbers == magnitudes, numbers, 0)
    positions = np.where(small, numbers - 1, bits - _EXACT_BITS + _EXACT - 1)
    return np.where(np.isfinite(magnitudes), positions, -1)


def write_position_weights(
    path: str | os.PathLike[str],
    n_streamlines: int,
    *,
    passing: NDArray[np.bool_] | None = None,
) -> None:
    """Write the weights of all streamlines of a tractogram, as MRtrix reads them.

    Parameters
    ----------
    path : path-like
        Text to write: numbers on one line, about 8 bytes each.
    n_streamlines : int
        Streamlines in the file, empty ones counted.
    passing : array of bool, shape (n_streamlines,), optional
        False where a weight is to be negative, so that tckedit takes the streamline for one that
        fails its limits of weights. All pass otherwise.

    Raises
    ------
    ValidationError
        There are more than :data:`MOST_STREAMLINES`.
    """
    if n_streamlines > MOST_STREAMLINES:
        raise ValidationError(
            f"A tractogram of {n_streamlines} streamlines is too large to tell them apart after a "
            f"selection; split it into files of at most {MOST_STREAMLINES}."
        )
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as stream:
        if n_streamlines == 0:
            # MRtrix refuses a file without numbers, but ignores one too many.
            stream.write("1 ")
        for start in range(0, n_streamlines, BLOCK_NUMBERS):
            block = np.arange(start, min(start + BLOCK_NUMBERS, n_streamlines))
            weights = position_weights(block)
            if passing is not None:
                weights[~passing[block]] *= -1
            stream.write("%d " * len(block) % tuple(weights.tolist()))


def read_positions(path: str | os.PathLike[str], n_streamlines: int) -> NDArray[np.int64]:
    """Read the positions of the streamlines that tckedit selected.

    Parameters
    ----------
    path : path-like
        Weights that tckedit wrote, having read those of :func:`write_position_weights`.
    n_streamlines : int
        Streamlines of its input.

    Returns
    -------
    array of int64, shape (n_selected,)
        Positions from 0, rising; one is there more than once where a mask cut a streamline into
        pieces.

    Raises
    ------
    ValidationError
        The file is not such weights.
    """
    parts = [np.empty(0, np.int64)]
    with Path(path).open("rb") as stream:
        rest = b""
        while block := stream.read(BLOCK_BYTES):
            text, blank, rest = (rest + block).rpartition(b" ")
            parts.append(_parse(path, text + blank))
        parts.append(_parse(path, rest))
    positions = np.concatenate(parts)
    outside = positions.size and (positions[0] < 0 or positions[-1] >= n_streamlines)
    if outside or (positions[1:] < positions[:-1]).any():
        raise ValidationError(
            f"{path} does not hold rising positions among {n_streamlines} streamlines; MRtrix "
            "changed their order or their weights."
        )
    return positions


def _parse(path: str | os.PathLike[str], text: bytes) -> NDArray[np.int64]:
    try:
        return weighted_positions(np.array(text.split(), dtype=np.float64).astype(np.float32))
    except ValueError as error:
        raise ValidationError(f"{path} holds something else than streamline weights.") from error


def write_selected_weights(
    path: str | os.PathLike[str],
    weights: NDArray[np.float32] | None,
    positions: NDArray[np.int64],
) -> None:
    """Write the weights of selected streamlines as tckedit would.

    Parameters
    ----------
    path : path-like
        Text to write: one line, nine significant digits.
    weights : array of float32, shape (n_streamlines,), or None
        Weights of all streamlines; None where each is 1.
    positions : array of int64, shape (n_selected,)
        Positions of those selected.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as stream:
        for start in range(0, len(positions), BLOCK_NUMBERS):
            block = positions[start : start + BLOCK_NUMBERS]
            values = np.ones(len(block)) if weights is None else weights[block]
            stream.write("%.9g " * len(block) % tuple(values.tolist()))
