"""How many streamlines a .tck file really holds, and copies without those that have no points.

MRtrix commands disagree about a wrong ``count`` in the header: tckmap and tck2connectome stop
after that many streamlines, tckedit reads on. So the file itself is counted, block by block and
by MRtrix's rules: a NaN in x ends a streamline, an infinite x ends the file, and so does the end
of the file; points after the last separator are dropped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.tractogram import TckHeader, read_tck_header
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import atomic_path

BLOCK_BYTES = 1 << 24
_COUNT_WIDTH = 20


@dataclass(frozen=True)
class StreamlineCounts:
    """Streamlines that are in a file, whatever its header says.

    Attributes
    ----------
    n : int
        All streamlines: every one has a position (and a weight), with or without points.
    n_empty : int
        Streamlines without points.
    n_one_point : int
        Streamlines of one point.
    n_zero_length : int
        Streamlines of several points that are all the same.
    """

    n: int
    n_empty: int
    n_one_point: int
    n_zero_length: int


def count_streamlines(
    path: str | os.PathLike[str], *, block_bytes: int = BLOCK_BYTES
) -> StreamlineCounts:
    """Count the streamlines of a .tck file; the ``count`` of its header is not used.

    Parameters
    ----------
    path : path-like
        The file.
    block_bytes : int, optional
        Size of one read; memory use is a small multiple of it.

    Returns
    -------
    StreamlineCounts
        What MRtrix would read if the header had no count.

    Raises
    ------
    ValidationError
        As :func:`~lacuna_nipype.connectomes.tractogram.read_tck_header`.
    """
    header = read_tck_header(path)
    n = n_empty = n_one_point = n_zero_length = 0
    rest = _Unfinished()
    for points, separators in _iter_blocks(header, block_bytes):
        if not separators.size:
            rest.extend(points)
            continue
        rest.extend(points[: separators[0]])
        starts, stops = separators[:-1] + 1, separators[1:]
        lengths = stops - starts
        n += separators.size
        n_empty += int(np.count_nonzero(lengths == 0)) + (rest.n_points == 0)
        n_one_point += int(np.count_nonzero(lengths == 1)) + (rest.n_points == 1)
        n_zero_length += _count_zero_length(points, starts, stops) + rest.is_zero_length
        rest = _Unfinished()
        rest.extend(points[separators[-1] + 1 :])
    return StreamlineCounts(int(n), n_empty, n_one_point, n_zero_length)


def check_count(path: str | os.PathLike[str]) -> StreamlineCounts:
    """Count the streamlines of a .tck file and refuse a header that disagrees.

    Parameters
    ----------
    path : path-like
        The file. A header without a count is accepted: MRtrix then reads everything.

    Returns
    -------
    StreamlineCounts
        What is in the file.

    Raises
    ------
    ValidationError
        The header's count is not the number of streamlines in the file; or as
        :func:`~lacuna_nipype.connectomes.tractogram.read_tck_header`.
    """
    header = read_tck_header(path)
    counts = count_streamlines(path)
    if header.count is not None and header.count != counts.n:
        raise ValidationError(
            f"{header.path} says in its header that it holds {header.count} streamlines, but "
            f"there are {counts.n} in it, and MRtrix commands do not agree which to believe; "
            "write it again with `lacuna-nipype connectome convert`, or copy it again if it "
            "should hold more."
        )
    return counts


def copy_without_empty(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    block_bytes: int = BLOCK_BYTES,
) -> NDArray[np.int64]:
    """Copy a .tck file without the streamlines that have no points.

    The points are copied bit by bit, in the datatype they have. Of the header, the datatype and
    the step size are kept, and the count is set right.

    Parameters
    ----------
    source : path-like
        File to copy.
    target : path-like
        File to write, atomically.
    block_bytes : int, optional
        Size of one read; memory use is a small multiple of it.

    Returns
    -------
    array of int64, shape (n_dropped,)
        Rising positions, from 0 in the source, of the streamlines left out.

    Raises
    ------
    ValidationError
        As :func:`~lacuna_nipype.connectomes.tractogram.read_tck_header`.
    """
    header = read_tck_header(source)
    text, count_position = _compose_header(header)
    dropped = [np.empty(0, np.int64)]
    n, after_separator = 0, True
    end = np.full((1, 3), np.inf, header.dtype)
    with atomic_path(target) as temporary, temporary.open("wb") as stream:
        stream.write(text)
        for points, separators in _iter_blocks(header, block_bytes):
            previous = np.concatenate([[-1 if after_separator else -2], separators[:-1]])
            empty = separators == previous[: separators.size] + 1
            dropped.append(n + np.flatnonzero(empty))
            np.delete(points, separators[empty], axis=0).tofile(stream)
            n += separators.size
            if len(points):
                after_separator = bool(separators.size) and separators[-1] == len(points) - 1
        # Points after the last separator may have been copied: MRtrix drops them here as there.
        end.tofile(stream)
        positions = np.concatenate(dropped)
        stream.seek(count_position)
        stream.write(str(n - len(positions)).encode())
    return positions


class _Unfinished:
    """A streamline whose end was not read yet; its points are not kept, however many."""

    def __init__(self) -> None:
        self.n_points = 0
        self._first: NDArray[np.float32] | None = None
        self._all_same = True

    @property
    def is_zero_length(self) -> bool:
        return self.n_points > 1 and self._all_same

    def extend(self, points: NDArray[Any]) -> None:
        if not len(points):
            return
        if self._first is None:
            # A copy, because the next block is read to the same place.
            self._first = _as_read(points[0]).copy()
        self.n_points += len(points)
        self._all_same = self._all_same and bool((_as_read(points) == self._first).all())


def _iter_blocks(
    header: TckHeader, block_bytes: int
) -> Iterator[tuple[NDArray[Any], NDArray[np.intp]]]:
    """Give the file's triplets up to its end, as stored, and where the separators among them are.

    The array is used again for the next block.
    """
    triplet = 3 * header.dtype.itemsize
    raw = np.empty(max(block_bytes // triplet, 1) * triplet, np.uint8)
    buffer = raw.view(header.dtype).reshape(-1, 3)
    with header.path.open("rb") as stream:
        stream.seek(header.offset)
        while n_read := stream.readinto(raw.data) // triplet:
            x = _as_read(buffer[:n_read, 0])
            odd = np.flatnonzero(~np.isfinite(x))
            ends = odd[np.isinf(x[odd])]
            stop = int(ends[0]) if ends.size else n_read
            yield buffer[:stop], odd[odd < stop]
            if ends.size:
                return


def _as_read(values: NDArray[Any]) -> NDArray[np.float32]:
    """Cast as MRtrix does before it looks at a coordinate: a huge double becomes infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def _count_zero_length(
    points: NDArray[Any], starts: NDArray[np.intp], stops: NDArray[np.intp]
) -> int:
    several = stops - starts > 1
    starts, stops = starts[several], stops[several]
    # Most streamlines are ruled out by their second point.
    first = _as_read(points[starts])
    same = (first == _as_read(points[starts + 1])).all(axis=1)
    if not same.any():
        return 0
    starts, stops, first = starts[same], stops[same], first[same]
    lengths = stops - starts
    offsets = np.cumsum(lengths) - lengths
    rows = np.arange(lengths.sum()) + np.repeat(starts - offsets, lengths)
    equal = (_as_read(points[rows]) == np.repeat(first, lengths, axis=0)).all(axis=1)
    return int(np.count_nonzero(np.logical_and.reduceat(equal, offsets)))


def _compose_header(header: TckHeader) -> tuple[bytes, int]:
    """Give the bytes before the first point, and the place of the count among them."""
    lines = ["mrtrix tracks"]
    if header.step_size is not None:
        lines.append(f"step_size: {header.step_size!r}")
    lines += [f"datatype: {header.datatype}", "count: "]
    start = "\n".join(lines).encode()
    middle = b"0".ljust(_COUNT_WIDTH) + b"\nfile: . "
    offset = len(start) + len(middle) + 32
    offset += -offset % 8
    return (start + middle + f"{offset}\nEND\n".encode()).ljust(offset, b"\0"), len(start)
