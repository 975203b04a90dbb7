"""Reading the series of Lacuna's HDF5 files, inflated by several threads.

Chunks behind the filters gzip and shuffle (either, both or none, over any shape of chunks) are
read raw and inflated here, because zlib works outside of Python's lock while HDF5 inflates one
chunk after another. Everything else is left to h5py: contiguous series, other filters (lzf, szip,
fletcher32, plug-ins), numbers that are not IEEE floating point, files with chunks that were never
written.
"""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.hdf5 import DAMAGE, MOST_INFLATED
from lacuna_nipype.core.exceptions import ValidationError

if TYPE_CHECKING:
    from lacuna_nipype.connectomes.functional import ConnectomeFile

_NUMBERS = {
    "<f2": h5py.h5t.IEEE_F16LE,
    "<f4": h5py.h5t.IEEE_F32LE,
    "<f8": h5py.h5t.IEEE_F64LE,
    ">f2": h5py.h5t.IEEE_F16BE,
    ">f4": h5py.h5t.IEEE_F32BE,
    ">f8": h5py.h5t.IEEE_F64BE,
}
_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
# Small chunks are handed to a thread several at a time, and values are put into order in pieces
# that stay in its cache.
_TASK_BYTES = 4_000_000
_PIECE = 65_536

Chunk = tuple[int, int, int]


def chunks_per_block(file: ConnectomeFile) -> int:
    """Chunks that the subjects stored together are cut into."""
    if file.chunks is None:
        return 1
    _, times, voxels = file.chunks
    return -(-file.n_timepoints // times) * -(-file.n_voxels // voxels)


def blocks_ahead(file: ConnectomeFile, n_threads: int) -> int:
    """How many blocks of subjects to inflate ahead, so that all threads have work."""
    return max(1, -(-n_threads // chunks_per_block(file)))


def reading_bytes(file: ConnectomeFile, n_threads: int, ahead: int) -> int:
    """Memory that :func:`read_subjects` holds, in bytes.

    The block in use, those ahead of it, and per thread a chunk as it is stored, inflated and in
    order.
    """
    chunk = 0
    if file.chunks is not None:
        at_once = min(n_threads, (ahead + 1) * chunks_per_block(file))
        # A single chunk becomes the block as it is.
        copies = 1 if chunks_per_block(file) == 1 else 2
        chunk = at_once * copies * int(np.prod(file.chunks)) * file.item_bytes
    return (1 + ahead) * file.read_bytes + chunk


def read_subjects(
    file: ConnectomeFile, pool: Executor | None = None, ahead: int = 0
) -> Iterator[NDArray[np.floating[Any]]]:
    """Read a file subject by subject.

    Parameters
    ----------
    file : ConnectomeFile
        In Lacuna's layout.
    pool : Executor, optional
        Threads that inflate; without it the caller's own does.
    ahead : int
        Blocks (subjects that HDF5 stores together; mostly one) that the pool inflates while the
        caller works on an earlier one.

    Yields
    ------
    array, shape (n_timepoints, n_voxels), of the file's type
        Possibly read-only.

    Raises
    ------
    ValidationError
        A chunk cannot be read or inflated.
    """
    starts = range(0, file.n_subjects, file.subject_chunk)
    with open_file(file.path) as handle:
        source = _Source(file, handle["timeseries"])
        if pool is None or not source.raw:
            for start in starts:
                yield from source.block(start)
            return
        waiting: deque[_Pending] = deque()
        coming = iter(starts)
        try:
            for start in itertools.islice(coming, ahead + 1):
                waiting.append(_Pending(source, start, pool))
            while waiting:
                block = waiting.popleft().result()
                yield from block
                # Frees the block before the next one is begun.
                del block
                waiting.extend(
                    _Pending(source, start, pool) for start in itertools.islice(coming, 1)
                )
        finally:
            # The file must stay open until no thread reads from it.
            for pending in waiting:
                pending.cancel()


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file whose header was read before; it may have been cut or removed since."""
    try:
        handle = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise ValidationError(
            f"{path} is truncated or gone; convert, copy or build it again."
        ) from error
    with handle:
        yield handle


class _Source:
    """The series of an open file, in blocks of the subjects that are stored together."""

    def __init__(self, file: ConnectomeFile, series: h5py.Dataset) -> None:
        self._file, self._series = file, series
        stored = series.id.get_type()
        self._dtype = next(
            (np.dtype(name) for name, kind in _NUMBERS.items() if stored.equal(kind)), None
        )
        properties = series.id.get_create_plist()
        self._filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        self.raw = (
            series.chunks is not None
            and series.chunks[0] == file.subject_chunk
            and self._dtype is not None
            and set(self._filters) <= {_DEFLATE, _SHUFFLE}
            and series.id.get_num_chunks() == self._n_chunks()
        )

    def _n_chunks(self) -> int:
        pairs = zip(self._series.shape, self._series.chunks, strict=True)
        return int(np.prod([-(-whole // chunk) for whole, chunk in pairs]))

    def subjects(self, start: int) -> slice:
        """Subjects of the block that begins at ``start``."""
        return slice(start, min(start + self._file.subject_chunk, self._file.n_subjects))

    def chunks(self, start: int) -> list[Chunk]:
        """Places of the block's chunks."""
        _, n_times, n_voxels = self._series.shape
        _, times, voxels = self._series.chunks
        return [
            (start, time, voxel)
            for time in range(0, n_times, times)
            for voxel in range(0, n_voxels, voxels)
        ]

    def block(self, start: int) -> NDArray[Any]:
        """Read a block in the caller's thread."""
        if self.raw:
            chunks = self.chunks(start)
            if len(chunks) == 1:
                return self.whole(start)
            out = self.empty(start)
            self.fill(out, chunks)
            return out
        try:
            return np.asarray(self._series[self.subjects(start)])
        except DAMAGE as error:
            raise self._damaged(start) from error

    def empty(self, start: int) -> NDArray[Any]:
        """Room for a block."""
        subjects = self.subjects(start)
        shape = (subjects.stop - subjects.start, *self._series.shape[1:])
        return np.empty(shape, dtype=self._dtype)

    def whole(self, start: int) -> NDArray[Any]:
        """Read a block of a single chunk, without a copy where it can be had without one."""
        subjects = self.subjects(start)
        values = self._inflate((start, 0, 0))
        return values[: subjects.stop - start, : self._series.shape[1], : self._series.shape[2]]

    def fill(self, out: NDArray[Any], chunks: list[Chunk]) -> None:
        """Inflate chunks into the block they belong to."""
        for chunk in chunks:
            target = out[:, chunk[1] :, chunk[2] :]
            values = self._inflate(chunk)
            shape = tuple(map(min, zip(target.shape, values.shape, strict=True)))
            part = tuple(slice(0, length) for length in shape)
            target[part] = values[part]

    def _inflate(self, chunk: Chunk) -> NDArray[Any]:
        """Read a chunk's values, in the chunk's full shape (beyond the edge of the data too)."""
        shape = self._series.chunks
        n_bytes = int(np.prod(shape)) * self._series.dtype.itemsize
        try:
            mask, data = self._series.id.read_direct_chunk(chunk)
            if n_bytes > MOST_INFLATED * len(data):
                raise ValueError(f"{len(data)} bytes for a chunk of {n_bytes}")
            for number in reversed(range(len(self._filters))):
                if mask >> number & 1:
                    continue
                if self._filters[number] == _DEFLATE:
                    data = zlib.decompress(data, bufsize=n_bytes)
                else:
                    data = _unshuffle(data, self._series.dtype.itemsize)
            values = np.frombuffer(data, dtype=self._dtype)
            return values.reshape(shape)
        except (*DAMAGE, zlib.error) as error:
            raise self._damaged(chunk[0]) from error

    def _damaged(self, start: int) -> ValidationError:
        subjects = self.subjects(start)
        return ValidationError(
            f"{self._file.path} has damaged data in subjects {subjects.start + 1} to "
            f"{subjects.stop}; copy or build it again."
        )


class _Pending:
    """A block that a pool is inflating."""

    def __init__(self, source: _Source, start: int, pool: Executor) -> None:
        chunks = source.chunks(start)
        self._block: NDArray[Any] | None = None
        self._futures: list[Future[Any]]
        if len(chunks) == 1:
            self._futures = [pool.submit(source.whole, start)]
            return
        self._block = source.empty(start)
        together = max(1, _TASK_BYTES * len(chunks) // max(1, self._block.nbytes))
        self._futures = [
            pool.submit(source.fill, self._block, chunks[first : first + together])
            for first in range(0, len(chunks), together)
        ]

    def result(self) -> NDArray[Any]:
        """Wait until the block is complete."""
        try:
            results = [future.result() for future in self._futures]
        except BaseException:
            self.cancel()
            raise
        return results[0] if self._block is None else self._block

    def cancel(self) -> None:
        """Give the block up; returns when no thread works on it."""
        for future in self._futures:
            future.cancel()
        for future in self._futures:
            if not future.cancelled():
                future.exception()


def _unshuffle(data: bytes, item_bytes: int) -> NDArray[np.uint8]:
    """Undo HDF5's shuffle: all first bytes, all second bytes, ... become values again."""
    planes = np.frombuffer(data, dtype=np.uint8).reshape(item_bytes, -1)
    out = np.empty(planes.shape[::-1], dtype=np.uint8)
    for start in range(0, len(out), _PIECE):
        piece = slice(start, start + _PIECE)
        out[piece] = planes[:, piece].T
    return out.reshape(-1)
