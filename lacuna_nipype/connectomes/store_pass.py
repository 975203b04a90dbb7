"""The correlation pass over a file of the store."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.functional import ConnectomeFile
from lacuna_nipype.connectomes.store import TILE, TileReader
from lacuna_nipype.core.correlation import Moments
from lacuna_nipype.core.exceptions import ValidationError

# A thread reads this much at a time, at least 16 subjects of a tile.
READ_BYTES = 8_000_000
# Subjects are cut where the kernel turns from single to double precision.
_SUBJECT_STEP = 16


def store_bytes_per_seed(file: ConnectomeFile, n_threads: int = 1) -> int:
    """Memory that each further seed takes in a pass over a store file, in bytes."""
    weights = 3 * file.n_subjects * _rank(file) * 8
    return 2 * 8 * file.n_voxels + weights + (n_threads + 1) * 10 * 4 * TILE


def store_block_bytes(file: ConnectomeFile, n_threads: int = 1) -> int:
    """Memory that the buffers of a pass over a store file take, in bytes."""
    one_tile = file.n_subjects * TILE * (_rank(file) * file.item_bytes + 4 + 4)
    buffers = (n_threads + 1) * max(READ_BYTES, _SUBJECT_STEP * _subject_bytes(file))
    # Seeds are averaged a tile per thread, before the buffers are made.
    return max(buffers, n_threads * one_tile)


def _rank(file: ConnectomeFile) -> int:
    return file.precision.rank if file.precision else file.n_timepoints


def _subject_bytes(file: ConnectomeFile) -> int:
    """Bytes of one subject in one tile."""
    return TILE * (_rank(file) * file.item_bytes + 4)


def _tiles_of_seeds(
    seeds: Sequence[NDArray[np.intp]],
) -> dict[int, list[tuple[int, slice, NDArray[np.intp]]]]:
    """Tiles that seeds touch: seed, its stretch of voxels there, and their places in the tile."""
    touching: dict[int, list[tuple[int, slice, NDArray[np.intp]]]] = {}
    for number, voxels in enumerate(seeds):
        tiles, starts = np.unique(voxels // TILE, return_index=True)
        stops = [*starts, len(voxels)][1:]
        for tile, start, stop in zip(tiles, starts, stops, strict=True):
            part = (number, slice(start, stop), voxels[start:stop] - tile * TILE)
            touching.setdefault(int(tile), []).append(part)
    return dict(sorted(touching.items()))


def correlate_seed_voxels(
    file: ConnectomeFile, seeds: Sequence[NDArray[np.intp]]
) -> Iterator[tuple[int, slice, NDArray[np.float32]]]:
    """Correlate each seed's own voxels with the seed's mean raw series.

    Parameters
    ----------
    file : ConnectomeFile
    seeds : sequence of int arrays
        Ascending positions among the file's voxels.

    Yields
    ------
    seed : int
    stretch : slice
        Voxels of the seed, by their place in its list.
    correlations : array, shape (n_subjects, n_voxels of the stretch), float32
    """
    with TileReader(file) as reader:
        weights = seed_weights(file, reader, seeds)
        for tile, parts in _tiles_of_seeds(seeds).items():
            coefficients = reader.read("coefficients", tile, 1)[0]
            scale = reader.read("scale", tile, 1)[0]
            for seed, stretch, voxels in parts:
                values = coefficients[:, :, voxels].astype(np.float32)
                r = np.einsum("sk,skv->sv", weights[:, seed], values, optimize=True)
                yield seed, stretch, r * scale[:, voxels]


def seed_weights(
    file: ConnectomeFile,
    reader: TileReader,
    seeds: Sequence[NDArray[np.intp]],
    n_threads: int = 1,
) -> NDArray[np.float32]:
    """Mean raw series of each seed in each subject's own basis, unit norm.

    Parameters
    ----------
    file : ConnectomeFile
    reader : TileReader
        Only the tiles that some seed touches are read.
    seeds : sequence of int arrays
        Ascending positions among the file's voxels.
    n_threads : int
        Tiles read at the same time; the sums do not depend on it.

    Returns
    -------
    array, shape (n_subjects, n_seeds, rank), float32
        Zeros for a seed that is empty or does not vary.
    """
    from lacuna_nipype.core.kernels import add_seed_series

    sums = np.zeros((len(seeds), file.n_subjects, _rank(file)))
    touching = iter(_tiles_of_seeds(seeds).items())

    def read(tile: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
        amplitude = reader.read("scale", tile, 1)[0] * reader.read("norm", tile, 1)[0]
        return reader.read("coefficients", tile, 1)[0], amplitude

    def add(number: int, tiles: Sequence[tuple[Any, Any, NDArray[np.intp]]]) -> None:
        for coefficients, amplitude, voxels in tiles:
            add_seed_series(coefficients, amplitude, voxels, sums[number])

    def add_batch(workers: ThreadPoolExecutor, batch: Sequence[tuple[int, list[Any]]]) -> None:
        # A seed belongs to one thread at a time, and takes its tiles in order.
        work: dict[int, list[Any]] = {}
        contents = workers.map(read, [tile for tile, _ in batch])
        for content, (_, parts) in zip(contents, batch, strict=True):
            for number, _, voxels in parts:
                work.setdefault(number, []).append((*content, voxels))
        list(workers.map(add, work.keys(), work.values()))

    with ThreadPoolExecutor(n_threads) as workers:
        while batch := list(itertools.islice(touching, n_threads)):
            add_batch(workers, batch)
    norm = np.sqrt(np.einsum("lsk,lsk->ls", sums, sums))
    sums /= np.where(norm > 0, norm, 1.0)[:, :, np.newaxis]
    return np.ascontiguousarray(sums.transpose(1, 0, 2), dtype=np.float32)


def correlate_store(
    file: ConnectomeFile,
    seeds: Sequence[NDArray[np.intp]],
    *,
    n_threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Moments:
    """Correlate seeds with every voxel of a store file.

    Parameters
    ----------
    file : ConnectomeFile
    seeds : sequence of int arrays
        Ascending positions among the file's voxels; may be empty.
    n_threads : int
        Tiles computed at the same time. Each thread reads what it computes, straight into the
        processor's cache; one thread more than this keeps the disk busy meanwhile.
    progress : callable, optional
        Called with the number of tiles that have become done.

    Returns
    -------
    Moments
        Of all subjects of the file. Each tile is read once, for all seeds.
    """
    moments = Moments.zeros(len(seeds), file.n_voxels)
    moments.n_subjects = file.n_subjects
    reader = _BufferedReader(file)
    with reader, ThreadPoolExecutor(n_threads + 1) as workers:
        weights = seed_weights(file, reader, seeds, n_threads)
        buffers: SimpleQueue[NDArray[np.uint8]] = SimpleQueue()
        for _ in range(n_threads + 1):
            buffers.put(np.empty(reader.buffer_bytes, dtype=np.uint8))

        def work(first: int) -> int:
            count = min(reader.tiles_at_once, reader.n_tiles - first)
            buffer = buffers.get()
            try:
                _correlate_tiles(reader, range(first, first + count), buffer, weights, moments)
            finally:
                buffers.put(buffer)
            return count

        try:
            for count in workers.map(work, range(0, reader.n_tiles, reader.tiles_at_once)):
                if progress is not None:
                    progress(count)
        except BaseException:
            workers.shutdown(cancel_futures=True)
            raise
    return moments


class _BufferedReader(TileReader):
    """Reads some tiles, or some subjects of one tile, into memory that is used again."""

    def __init__(self, file: ConnectomeFile) -> None:
        super().__init__(file)
        subject = _subject_bytes(file)
        step = max(1, READ_BYTES // (subject * _SUBJECT_STEP)) * _SUBJECT_STEP
        # Subjects of a tile to read together, and tiles where they are few.
        self.subjects_at_once = min(file.n_subjects, step)
        self.tiles_at_once = max(1, READ_BYTES // (subject * file.n_subjects))
        self.buffer_bytes = self.tiles_at_once * self.subjects_at_once * subject
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def read_into(
        self, buffer: NDArray[np.uint8], key: str, tiles: range, subjects: slice
    ) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Read into the front of a buffer; give the values and the rest of the buffer.

        Either several whole tiles, or some subjects of a single one, so that the values lie side
        by side in the file.
        """
        offset, dtype, shape = self._places[key]
        item = int(np.prod(shape[2:])) * dtype.itemsize
        n_subjects = subjects.stop - subjects.start
        n_bytes = len(tiles) * n_subjects * item
        position = offset + (tiles.start * shape[1] + subjects.start) * item
        view = buffer.data[:n_bytes]
        done = 0
        while done < n_bytes:
            got = os.preadv(self._descriptor, [view[done:]], position + done)
            if got == 0:
                raise ValidationError(f"{self._path} is truncated; convert or copy it again.")
            done += got
        values = buffer[:n_bytes].view(dtype).reshape(len(tiles), n_subjects, *shape[2:])
        return values, buffer[n_bytes:]


def _correlate_tiles(
    reader: _BufferedReader,
    tiles: range,
    buffer: NDArray[np.uint8],
    weights: NDArray[np.float32],
    moments: Moments,
) -> None:
    """Read and correlate some tiles; with many subjects that is one tile, in several reads."""
    from lacuna_nipype.core.kernels import correlate_tile

    n, n_seeds = weights.shape[:2]
    parts = [
        slice(start, min(start + reader.subjects_at_once, n))
        for start in range(0, n, reader.subjects_at_once)
    ]
    origin = np.zeros((n_seeds, TILE), dtype=np.float32)
    total, squares = np.zeros((n_seeds, TILE)), np.zeros((n_seeds, TILE))
    for part in parts:
        scale, rest = reader.read_into(buffer, "scale", tiles, part)
        coefficients, _ = reader.read_into(rest, "coefficients", tiles, part)
        for i, tile in enumerate(tiles):
            block = slice(tile * TILE, min((tile + 1) * TILE, moments.mean.shape[1]))
            used = slice(0, block.stop - block.start)
            varying = np.count_nonzero(scale[i] > 0, axis=0)
            moments.n_varying[block] += varying[used].astype(np.int32)
            first, last = part is parts[0], part is parts[-1]
            if first:
                total[:], squares[:] = 0, 0
            correlate_tile(coefficients[i], scale[i], weights[part], origin, total, squares, first)
            if last:
                moments.mean[:, block] = (origin + total / n)[:, used]
                moments.m2[:, block] = np.maximum(squares - total**2 / n, 0.0)[:, used]
