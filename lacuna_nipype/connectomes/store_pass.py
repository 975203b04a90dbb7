"""The correlation pass over a file of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.functional import ConnectomeFile
from lacuna_nipype.connectomes.store import BLOCK_BYTES, TILE, TileReader
from lacuna_nipype.core.correlation import Moments


def store_bytes_per_seed(file: ConnectomeFile) -> int:
    """Memory that each further seed takes in a pass over a store file, in bytes."""
    rank = file.precision.rank if file.precision else file.n_timepoints
    weights = file.n_subjects * rank * (8 + 4)
    return 2 * 8 * file.n_voxels + weights + 6 * 4 * TILE


def store_block_bytes(file: ConnectomeFile) -> int:
    """Memory that the two buffers of a pass over a store file take, in bytes."""
    rank = file.precision.rank if file.precision else file.n_timepoints
    tile = file.n_subjects * TILE * (rank * file.item_bytes + 4)
    return 2 * max(tile, BLOCK_BYTES)


def _tile_blocks(reader: TileReader, tile_bytes: int) -> list[tuple[int, int]]:
    count = max(1, BLOCK_BYTES // tile_bytes)
    return [
        (first, min(count, reader.n_tiles - first)) for first in range(0, reader.n_tiles, count)
    ]


def seed_weights(
    file: ConnectomeFile, reader: TileReader, seeds: Sequence[NDArray[np.intp]]
) -> NDArray[np.float32]:
    """Mean raw series of each seed in each subject's own basis, unit norm.

    Parameters
    ----------
    file : ConnectomeFile
    reader : TileReader
        Only the tiles that some seed touches are read.
    seeds : sequence of int arrays
        Ascending positions among the file's voxels.

    Returns
    -------
    array, shape (n_subjects, n_seeds, rank), float32
        Zeros for a seed that is empty or does not vary.
    """
    from lacuna_nipype.core.kernels import add_seed_series

    rank = file.precision.rank if file.precision else 0
    sums = np.zeros((len(seeds), file.n_subjects, rank))
    touching: dict[int, list[tuple[int, NDArray[np.intp]]]] = {}
    for number, voxels in enumerate(seeds):
        tiles, starts = np.unique(voxels // TILE, return_index=True)
        for tile, part in zip(tiles, np.split(voxels, starts[1:]), strict=True):
            touching.setdefault(int(tile), []).append((number, part - tile * TILE))
    for tile in sorted(touching):
        coefficients = reader.read("coefficients", tile, 1)[0]
        amplitude = reader.read("scale", tile, 1)[0] * reader.read("norm", tile, 1)[0]
        for number, voxels in touching[tile]:
            add_seed_series(coefficients, amplitude, voxels, sums[number])
    norm = np.sqrt(np.einsum("lsk,lsk->ls", sums, sums))
    unit = sums / np.where(norm > 0, norm, 1.0)[:, :, np.newaxis]
    return np.ascontiguousarray(unit.transpose(1, 0, 2), dtype=np.float32)


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
        Tiles computed at the same time; one more thread reads ahead.
    progress : callable, optional
        Called with the number of tiles that have become done.

    Returns
    -------
    Moments
        Of all subjects of the file. Each tile is read once, for all seeds.
    """
    moments = Moments.zeros(len(seeds), file.n_voxels)
    moments.n_subjects = file.n_subjects
    with TileReader(file) as reader, ThreadPoolExecutor(n_threads) as workers:
        weights = seed_weights(file, reader, seeds)

        def one(tile: int, coefficients: NDArray[Any], scale: NDArray[np.float32]) -> None:
            _correlate_tile(tile, coefficients, scale, weights, moments)

        for first, coefficients, scale in _stream(reader, file):
            tiles = range(first, first + len(coefficients))
            list(workers.map(one, tiles, coefficients, scale))
            if progress is not None:
                progress(len(tiles))
    return moments


def _stream(
    reader: TileReader, file: ConnectomeFile
) -> Iterator[tuple[int, NDArray[Any], NDArray[np.float32]]]:
    """Blocks of tiles, the next one being read while one is worked on."""
    rank = file.precision.rank if file.precision else 0
    tile_bytes = file.n_subjects * TILE * (rank * file.item_bytes + 4)
    blocks = _tile_blocks(reader, tile_bytes)

    def read(block: tuple[int, int]) -> tuple[int, NDArray[Any], NDArray[np.float32]]:
        return block[0], reader.read("coefficients", *block), reader.read("scale", *block)

    with ThreadPoolExecutor(1) as ahead:
        pending = ahead.submit(read, blocks[0])
        for number in range(len(blocks)):
            current = pending.result()
            if number + 1 < len(blocks):
                pending = ahead.submit(read, blocks[number + 1])
            yield current


def _correlate_tile(
    tile: int,
    coefficients: NDArray[Any],
    scale: NDArray[np.float32],
    weights: NDArray[np.float32],
    moments: Moments,
) -> None:
    from lacuna_nipype.core.kernels import correlate_tile

    n_seeds = weights.shape[1]
    origin = np.zeros((n_seeds, TILE), dtype=np.float32)
    total, squares = np.zeros((n_seeds, TILE)), np.zeros((n_seeds, TILE))
    correlate_tile(coefficients, scale, weights, origin, total, squares)
    n = coefficients.shape[0]
    block = slice(tile * TILE, min((tile + 1) * TILE, moments.mean.shape[1]))
    used = block.stop - block.start
    moments.mean[:, block] = (origin + total / n)[:, :used]
    moments.m2[:, block] = np.maximum(squares - total**2 / n, 0.0)[:, :used]
    moments.n_varying[block] = (scale > 0).sum(axis=0)[:used]
