"""A .tck file in blocks of whole streamlines, for loops that are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.tractogram import TckHeader

# Members of a block are numbered with 16 bits.
MOST_STREAMLINES = 1 << 16
POINTS_PER_READ = 6_000_000


@dataclass(frozen=True, eq=False)
class StreamlineBlock:
    """Consecutive streamlines of a file.

    Parameters
    ----------
    points : array, float32, shape (n, 3)
        World positions in mm, with the separator after every streamline.
    first : array, int64, shape (n_streamlines + 1,)
        Place of each streamline's first point; it ends before the separator at
        ``first[i + 1] - 1``.
    position : int
        Place of the first point among all triplets of the file.
    """

    points: NDArray[np.float32]
    first: NDArray[np.int64]
    position: int

    @property
    def n_streamlines(self) -> int:
        """Streamlines of the block, empty ones counted."""
        return len(self.first) - 1


def iter_blocks(
    header: TckHeader, *, points_per_read: int = POINTS_PER_READ
) -> Iterator[StreamlineBlock]:
    """Read a .tck file block by block, by MRtrix's rules.

    A NaN in x ends a streamline, an infinite x ends the file, points after the last NaN are
    dropped, and so are streamlines beyond the header's count, where it has one, as tckmap does.

    Parameters
    ----------
    header : TckHeader
    points_per_read : int, optional
        Triplets read at once; a block holds about as many, or one streamline that is longer.

    Yields
    ------
    StreamlineBlock
        Of at most 65,536 streamlines.
    """
    left = header.count or None
    rest = np.empty((0, 3), dtype=np.float32)
    position = 0
    with header.path.open("rb") as stream:
        stream.seek(header.offset)
        ended = False
        while not ended:
            read = _read(stream, header, points_per_read)
            ended = not len(read)
            stops = np.flatnonzero(np.isinf(read[:, 0]))
            if stops.size:
                read, ended = read[: stops[0]], True
            points = np.concatenate([rest, read]) if len(rest) else read
            separators = np.flatnonzero(np.isnan(points[:, 0]))
            for start in range(0, len(separators), MOST_STREAMLINES):
                ends = separators[start : start + MOST_STREAMLINES]
                ends = ends if left is None else ends[:left]
                if not len(ends):
                    return
                begin = int(separators[start - 1]) + 1 if start else 0
                first = np.concatenate([[0], ends + 1 - begin]).astype(np.int64)
                yield StreamlineBlock(points[begin : int(ends[-1]) + 1], first, position + begin)
                left = None if left is None else left - len(ends)
            used = int(separators[-1]) + 1 if len(separators) else 0
            # A copy, so that the rest does not keep the whole block in memory.
            rest, position = points[used:].copy(), position + used


def _read(stream: BinaryIO, header: TckHeader, n_triplets: int) -> NDArray[np.float32]:
    data = np.fromfile(stream, dtype=header.dtype, count=3 * n_triplets)
    usable = data[: len(data) - len(data) % 3]
    with np.errstate(over="ignore"):
        points = usable.astype(np.float32, copy=False)
    return points.reshape(-1, 3)
