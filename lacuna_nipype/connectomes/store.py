"""The package's own functional connectome: coefficients in tiles, ready to stream.

A file is HDF5 with uncompressed contiguous datasets, so that a pass reads it at the speed of the
disk: ``coefficients`` (tile, subject, rank, 512) as int16 or int8; ``scale`` and ``norm`` (tile,
subject, 512) float32; ``mask_indices`` (3, V) in storage order (Morton), ``order`` (V) the place
of each stored voxel in the source's list; ``rank``, ``energy_lost``, ``energy_lost_worst``,
``error_r`` and ``n_constant``, one value per subject; ``mask_affine``. See
:mod:`lacuna_nipype.core.compression` for what the numbers mean.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype import __version__
from lacuna_nipype.connectomes.functional import (
    STORE_FORMAT,
    ConnectomeFile,
    StoredPrecision,
    read_mask_shape,
)
from lacuna_nipype.connectomes.hdf5 import DAMAGE, get_dataset, read_numbers, text_of, whole
from lacuna_nipype.core.compression import (
    INTEGER_LIMITS,
    Compressed,
    compress_subject,
    morton_order,
    quantise,
)
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import atomic_path
from lacuna_nipype.core.masks import check_affine
from lacuna_nipype.core.spaces import Grid, declared_space

FORMAT_VERSION = 1
TILE = 512
# Voxels per subject whose mutual correlations are compared with the exact ones at ingest.
N_CHECKED = 64
BLOCK_BYTES = 64_000_000


@dataclass(frozen=True, eq=False)
class StoreSource:
    """Where the series of a store come from.

    Parameters
    ----------
    grid : Grid
    voxels : array, shape (3, n_voxels)
        Array indices of the brain voxels, in the order of the series.
    n_timepoints : int
    space : str
        Standard space.
    names : tuple of str
        Of the subjects or of the source files, with their fingerprints, for the record.
    folder : str
        Where the source files were, so that maps can be verified against them.
    """

    grid: Grid
    voxels: NDArray[np.int64]
    n_timepoints: int
    space: str
    names: tuple[str, ...]
    folder: str = ""


@dataclass
class _SubjectRecord:
    """What is kept of each subject apart from its coefficients."""

    rank: int
    energy_lost: float
    energy_lost_worst: float
    error_r: float
    n_constant: int


def write_store(
    target: Path,
    source: StoreSource,
    subjects: Iterable[NDArray[np.floating[Any]]],
    *,
    kind: str = "int16",
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write one file of a store.

    Parameters
    ----------
    target : Path
        HDF5 file; written atomically.
    source : StoreSource
    subjects : iterable of arrays, shape (n_timepoints, n_voxels)
        Raw series, one subject at a time; only one is in memory.
    kind : {"int16", "int8"}
        Type of the stored coefficients.
    progress : callable, optional
        Called with the number of subjects done.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    ValidationError
        There is no subject.
    """
    order = morton_order(source.voxels)
    n_tiles = -(-len(order) // TILE)
    records: list[_SubjectRecord] = []
    target.parent.mkdir(parents=True, exist_ok=True)
    # The rank of a later subject is not known yet, so subjects are laid down one after another
    # in a scratch file and cut into tiles at the end.
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=target.parent) as scratch:
        parts = []
        for number, series in enumerate(subjects):
            part = Path(scratch) / f"{number}.npz"
            records.append(_write_subject(part, series[:, order], kind, number))
            parts.append(part)
            if progress is not None:
                progress(number + 1)
        if not parts:
            raise ValidationError(f"No subject to write to {target}.")
        with atomic_path(target) as temporary, h5py.File(temporary, "w", libver="latest") as out:
            _write_header(out, source, order, records, kind)
            _write_tiles(out, parts, records, n_tiles, kind)
    return target


def _write_subject(
    path: Path, series: NDArray[np.floating[Any]], kind: str, number: int
) -> _SubjectRecord:
    compressed = compress_subject(series)
    integers, scale = quantise(compressed.coefficients, kind)
    error = _measure_error(series, compressed, integers, scale, number)
    with path.open("wb") as stream:
        np.savez(stream, integers=integers, scale=scale, norm=compressed.norm)
    return _SubjectRecord(
        compressed.rank,
        compressed.lost,
        compressed.lost_worst,
        error,
        compressed.n_constant,
    )


def _measure_error(
    series: NDArray[np.floating[Any]],
    compressed: Compressed,
    integers: NDArray[np.integer[Any]],
    scale: NDArray[np.float32],
    seed: int,
) -> float:
    """Largest difference of correlations between some voxels, stored against exact."""
    varying = np.flatnonzero(compressed.norm > 0)
    if len(varying) < 2:
        return 0.0
    rng = np.random.default_rng(seed)
    chosen = rng.choice(varying, size=min(N_CHECKED, len(varying)), replace=False)
    exact = np.corrcoef(series[:, chosen].astype(np.float64), rowvar=False)
    stored = integers[:, chosen].astype(np.float64) * scale[chosen]
    # Stored vectors are used as they are, so their length errs too.
    return float(np.abs(stored.T @ stored - exact).max())


def _write_header(
    out: h5py.File,
    source: StoreSource,
    order: NDArray[np.intp],
    records: Sequence[_SubjectRecord],
    kind: str,
) -> None:
    for key, values in (
        ("order", order.astype(np.int32)),
        ("mask_indices", source.voxels[:, order].astype(np.int32)),
        ("mask_affine", source.grid.affine),
        *(
            (key, np.array([getattr(r, key) for r in records]))
            for key in _SubjectRecord.__annotations__
        ),
    ):
        out.create_dataset(key, data=values, track_times=False)
    attributes: Mapping[str, Any] = {
        "format": STORE_FORMAT,
        "format_version": FORMAT_VERSION,
        "software": f"lacuna-nipype {__version__}",
        "mask_shape": source.grid.shape,
        "space": source.space,
        "n_subjects": len(records),
        "n_timepoints": source.n_timepoints,
        "n_voxels": len(order),
        "kind": kind,
        "sources": json.dumps(list(source.names)),
        "source_folder": source.folder,
    }
    for key, value in attributes.items():
        out.attrs[key] = value


def _write_tiles(
    out: h5py.File,
    parts: Sequence[Path],
    records: Sequence[_SubjectRecord],
    n_tiles: int,
    kind: str,
) -> None:
    rank = max(record.rank for record in records)
    shape = (n_tiles, len(parts))
    coefficients = out.create_dataset(
        "coefficients", (*shape, rank, TILE), kind, track_times=False
    )
    numbers = {
        key: out.create_dataset(key, (*shape, TILE), "f4", track_times=False)
        for key in ("scale", "norm")
    }
    for subject, path in enumerate(parts):
        with np.load(path) as part:
            integers = part["integers"]
            tiles = np.zeros((rank, n_tiles * TILE), dtype=kind)
            tiles[: len(integers), : integers.shape[1]] = integers
            coefficients[:, subject] = tiles.reshape(rank, n_tiles, TILE).transpose(1, 0, 2)
            for key, dataset in numbers.items():
                padded = np.zeros(n_tiles * TILE, dtype=np.float32)
                padded[: integers.shape[1]] = part[key]
                dataset[:, subject] = padded.reshape(n_tiles, TILE)
        path.unlink()


def read_store_header(handle: h5py.File, path: Path) -> ConnectomeFile:
    """Read the header of a store file that is open.

    Parameters
    ----------
    handle : h5py.File
    path : Path

    Returns
    -------
    ConnectomeFile

    Raises
    ------
    ValidationError
        The file was written by a newer version, or is not complete.
    """
    try:
        version = whole(handle.attrs.get("format_version", 0))
        if version > FORMAT_VERSION:
            raise ValidationError(
                f"{path} is a store of format {version}, newer than this program's "
                f"{FORMAT_VERSION}; update lacuna-nipype or convert the connectome again."
            )
        n_voxels = whole(handle.attrs["n_voxels"])
        voxels = read_numbers(handle, "mask_indices", (3, n_voxels), kinds="iu").astype(np.int64)
        affine = read_numbers(handle, "mask_affine", (4, 4))
        grid = Grid.make(read_mask_shape(handle, str(path)), affine)
        kind = text_of(handle.attrs["kind"])
        shape = _check_tiles(handle, n_voxels, kind)
        losses = {
            key: read_numbers(handle, key, shape[1:2]) for key in _SubjectRecord.__annotations__
        }
        if not all(np.isfinite(values).all() for values in losses.values()):
            raise ValueError("a loss that is not finite")
        precision = StoredPrecision(
            kind=kind,
            rank=shape[2],
            energy_lost=float(losses["energy_lost"].max()),
            error_r=float(losses["error_r"].max()),
        )
        n_timepoints = whole(handle.attrs["n_timepoints"])
        space = declared_space(text_of(handle.attrs["space"]), path)
        _check_voxels(voxels, grid, path)
    except ValidationError:
        raise
    except KeyError as error:
        raise ValidationError(f"{path} is an incomplete store; convert it again.") from error
    except DAMAGE as error:
        raise ValidationError(
            f"{path} is a store whose parts disagree or are damaged; convert it again."
        ) from error
    return ConnectomeFile(
        path, int(shape[1]), n_timepoints, grid, voxels, space, 1,
        item_bytes=np.dtype(kind).itemsize, precision=precision,
    )  # fmt: skip


def _check_tiles(handle: h5py.File, n_voxels: int, kind: str) -> tuple[int, int, int, int]:
    """Shape of the coefficients; ValueError where the parts of a store disagree.

    Tiles are read straight from the file, by a type and a place that must be true.
    """
    n_tiles = -(-n_voxels // TILE)
    n_subjects, rank = get_dataset(handle, "coefficients").shape[1:3]
    shape = (n_tiles, n_subjects, rank, TILE)
    small = (n_tiles, n_subjects, TILE)
    if kind not in INTEGER_LIMITS or n_subjects < 1 or rank < 1:
        raise ValueError(f"{n_subjects} subjects of {rank} coefficients, {kind}")
    for key, wanted, dtype in (
        ("coefficients", shape, kind), ("scale", small, "float32"), ("norm", small, "float32"),
    ):  # fmt: skip
        part = get_dataset(handle, key)
        if part.shape != wanted or part.dtype != dtype or part.id.get_offset() is None:
            raise ValueError(f"{key} of {part.shape} and type {part.dtype}")
    return shape


def _check_voxels(voxels: NDArray[np.int64], grid: Grid, path: Path) -> None:
    check_affine(grid.affine, str(path))
    inside = (voxels >= 0).all() and (voxels < np.array(grid.shape)[:, np.newaxis]).all()
    if not inside or len(np.unique(np.ravel_multi_index(tuple(voxels), grid.shape))) < len(
        voxels[0]
    ):
        raise ValueError("voxels outside of the grid, or twice")


def read_order(handle: h5py.File, file: ConnectomeFile) -> NDArray[np.int64]:
    """Read the place of each stored voxel in the source's list.

    Parameters
    ----------
    handle : h5py.File
    file : ConnectomeFile
        The header of the same file.

    Returns
    -------
    array of int64, shape (n_voxels,)
        A permutation.

    Raises
    ------
    ValidationError
        The store does not say it.
    """
    try:
        order = read_numbers(handle, "order", (file.n_voxels,), kinds="iu").astype(np.int64)
        if not np.array_equal(np.sort(order), np.arange(file.n_voxels)):
            raise ValueError("no permutation")
    except DAMAGE as error:
        raise ValidationError(f"{file.path} is a damaged store; convert it again.") from error
    return order


class TileReader:
    """Reads tiles of a store file straight from disk.

    Contiguous datasets have one offset in the file, so tiles are read with pread: no cache of
    HDF5 in between, and no mapped memory that would count as the process's own.

    Parameters
    ----------
    file : ConnectomeFile
        Of a store.
    """

    def __init__(self, file: ConnectomeFile) -> None:
        try:
            with h5py.File(file.path, "r", locking=False) as handle:
                self._places = {
                    key: (handle[key].id.get_offset(), handle[key].dtype, handle[key].shape)
                    for key in ("coefficients", "scale", "norm")
                }
        except DAMAGE as error:
            raise ValidationError(
                f"{file.path} is truncated or gone; convert or copy it again."
            ) from error
        self._descriptor = os.open(file.path, os.O_RDONLY)
        self._path = file.path
        self.n_tiles = int(self._places["coefficients"][2][0])

    def __enter__(self) -> TileReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self, key: str, first: int, count: int) -> NDArray[Any]:
        """Read consecutive tiles of a dataset.

        Parameters
        ----------
        key : {"coefficients", "scale", "norm"}
        first, count : int

        Returns
        -------
        array, shape (count, ...)

        Raises
        ------
        ValidationError
            The file ends too early.
        """
        offset, dtype, shape = self._places[key]
        out = np.empty((count, *shape[1:]), dtype=dtype)
        view = out.data.cast("B")
        position = offset + first * out[:1].nbytes
        done = 0
        while done < len(view):
            got = os.preadv(self._descriptor, [view[done:]], position + done)
            if got == 0:
                raise ValidationError(f"{self._path} is truncated; convert or copy it again.")
            done += got
        return out
