"""Functional connectomes in Lacuna's HDF5 layout: a file, or a folder of batch files.

Each file holds ``timeseries`` (subjects, timepoints, voxels), ``mask_indices`` (3, voxels) or
(voxels, 3), ``mask_affine`` (4, 4) and the attribute ``mask_shape``. Files are opened inside the
function that reads them, read-only and without a lock, and never handed on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.hdf5 import (
    DAMAGE,
    get_dataset,
    is_there,
    read_numbers,
    text_of,
    whole,
)
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.files import open_regular, read_json
from lacuna_nipype.core.masks import check_affine
from lacuna_nipype.core.spaces import Grid, check_declared_space, declared_space

SUFFIXES = (".h5", ".hdf5")
MINIMUM_TIMEPOINTS = 10
# A tenth of a millimetre over a whole head.
MOST_GRID_VOXELS = 2**33
# Value of the attribute ``format`` by which files of our own store are told apart.
STORE_FORMAT = "lacuna-nipype connectome"


@dataclass(frozen=True)
class StoredPrecision:
    """How exactly a store keeps what it was made from.

    Parameters
    ----------
    kind : str
        Type of the stored integers.
    rank : int
        Coefficients per voxel.
    energy_lost : float
        Largest share of a subject's energy that its basis leaves out.
    error_r : float
        Largest error of a correlation found among the voxels that were checked at ingest.
    """

    kind: str
    rank: int
    energy_lost: float
    error_r: float


@dataclass(frozen=True, eq=False)
class ConnectomeFile:
    """Header of one HDF5 file of a connectome, in Lacuna's layout or of our store.

    Parameters
    ----------
    path : Path
    n_subjects, n_timepoints : int
    grid : Grid
        Volume that the brain voxels are taken from.
    voxels : array, shape (3, n_voxels), int64
        Array indices of the brain voxels in the grid, in the order of the series.
    space : str or None
        Space the file's attributes declare, in TemplateFlow's name.
    subject_chunk : int
        Subjects that HDF5 stores together (1 where they can be read one at a time).
    item_bytes : int
        Bytes of one stored value.
    precision : StoredPrecision or None
        For a file of our store; None for Lacuna's layout, which keeps the series themselves.
    chunks : tuple of int or None
        Shape of HDF5's chunks of series (subjects, time points, voxels), where there are any.
    """

    path: Path
    n_subjects: int
    n_timepoints: int
    grid: Grid
    voxels: NDArray[np.int64]
    space: str | None
    subject_chunk: int
    item_bytes: int = 4
    precision: StoredPrecision | None = None
    chunks: tuple[int, int, int] | None = None

    @property
    def read_bytes(self) -> int:
        """Memory that one read of series takes, in bytes."""
        return self.n_timepoints * self.n_voxels * self.item_bytes * self.subject_chunk

    @property
    def n_voxels(self) -> int:
        """Number of brain voxels."""
        return int(self.voxels.shape[1])

    @property
    def mask_digest(self) -> str:
        """Fingerprint of grid and voxel order: equal for files that belong together."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(np.asarray(self.grid.shape, dtype="<i8").tobytes())
        # Adding zero turns -0.0, which has other bytes, into 0.0.
        digest.update((np.round(self.grid.affine, 3) + 0.0).astype("<f8").tobytes())
        digest.update(np.ascontiguousarray(self.voxels, dtype="<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class FunctionalConnectome:
    """A checked connectome: files that agree on mask and grid.

    Parameters
    ----------
    files : tuple of ConnectomeFile
        In name order.
    space : str
        TemplateFlow name of the space.
    """

    files: tuple[ConnectomeFile, ...]
    space: str

    @property
    def paths(self) -> list[Path]:
        """Paths of the files, in name order."""
        return [file.path for file in self.files]

    @property
    def n_subjects(self) -> int:
        """Subjects in all files together."""
        return sum(file.n_subjects for file in self.files)

    @property
    def grid(self) -> Grid:
        """Volume grid shared by the files."""
        return self.files[0].grid

    @property
    def n_voxels(self) -> int:
        """Brain voxels shared by the files."""
        return self.files[0].n_voxels

    @property
    def error_r(self) -> float:
        """Error of correlations that the files state; 0 for Lacuna's layout."""
        stored = [file.precision.error_r for file in self.files if file.precision is not None]
        return max(stored, default=0.0)

    def mask(self) -> NDArray[np.bool_]:
        """Brain mask on the volume grid."""
        mask = np.zeros(self.grid.shape, dtype=bool)
        mask[tuple(self.files[0].voxels)] = True
        return mask


def _voxel_indices(dataset: h5py.Dataset, shape: tuple[int, ...], name: str) -> NDArray[np.int64]:
    """Bring ``mask_indices`` to (3, V); with V = 3 the mask's shape decides."""
    most = 3 * math.prod(shape)
    if (
        dataset.ndim != 2
        or 3 not in dataset.shape
        or not 0 < dataset.size <= most
        or dataset.dtype.kind not in "iu"
    ):
        raise ValidationError(
            f"{name} has mask_indices of shape {dataset.shape} and type {dataset.dtype} where "
            "integers of shape (3, voxels) are expected; rebuild the connectome file."
        )
    raw = dataset[()]
    layouts = [raw] if raw.shape[0] == 3 else []
    if raw.shape[1] == 3:
        layouts.append(raw.T)
    for indices in layouts:
        if np.all(indices.min(axis=1) >= 0) and np.all(indices.max(axis=1) < shape):
            return np.ascontiguousarray(indices, dtype=np.int64)
    raise ValidationError(
        f"{name} has mask_indices outside its mask_shape {'x'.join(map(str, shape))}; "
        "rebuild the connectome file."
    )


def read_mask_shape(handle: h5py.File, name: str) -> tuple[int, ...]:
    """Read the shape of the volume that a connectome's voxels are in.

    Parameters
    ----------
    handle : h5py.File
    name : str
        Of the file, for messages.

    Returns
    -------
    tuple of int
        Three numbers.

    Raises
    ------
    ValidationError
        No image of a brain has such a shape.
    """
    shape = tuple(whole(n) for n in np.asarray(handle.attrs["mask_shape"]).ravel())
    if len(shape) != 3:
        raise ValidationError(f"{name} has a mask_shape of {len(shape)} numbers, not three.")
    if min(shape) < 1 or math.prod(shape) > MOST_GRID_VOXELS:
        raise ValidationError(
            f"{name} has a mask_shape of {'x'.join(map(str, shape))}, which no brain image has; "
            "rebuild the connectome file."
        )
    return shape


def _read_datasets(handle: h5py.File, name: str) -> tuple[h5py.Dataset, Grid, NDArray[np.int64]]:
    missing = [
        key
        for key in ("timeseries", "mask_indices", "mask_affine")
        if not isinstance(handle.get(key), h5py.Dataset)
    ]
    if "mask_shape" not in handle.attrs:
        missing.append("mask_shape (attribute)")
    if missing:
        raise ValidationError(
            f"{name} lacks {', '.join(missing)}; it is not a functional connectome in "
            "Lacuna's HDF5 layout."
        )
    shape = read_mask_shape(handle, name)
    affine = read_numbers(handle, "mask_affine", (4, 4)).astype(np.float64)
    check_affine(affine, name)
    series = get_dataset(handle, "timeseries")
    voxels = _voxel_indices(get_dataset(handle, "mask_indices"), shape, name)
    if series.ndim != 3 or series.dtype.kind != "f":
        raise ValidationError(
            f"{name} has timeseries of shape {series.shape} and type {series.dtype}; "
            "(subjects, timepoints, voxels) in floating point is expected."
        )
    if series.shape[2] != voxels.shape[1]:
        raise ValidationError(
            f"{name} has series of {series.shape[2]} voxels but {voxels.shape[1]} mask_indices; "
            "rebuild the connectome file."
        )
    if not is_there(series):
        raise ValidationError(
            f"{name} holds less than its timeseries claim to be (its writing was interrupted, or "
            "it is damaged); copy or build it again."
        )
    return series, Grid.make(shape, affine), voxels


def read_connectome_file(path: Path) -> ConnectomeFile:
    """Read and check the header of one HDF5 file; the series stay on disk.

    Parameters
    ----------
    path : Path
        File in Lacuna's layout.

    Returns
    -------
    ConnectomeFile

    Raises
    ------
    ValidationError
        The file cannot be opened (missing, truncated, not HDF5), lacks a dataset, holds shapes
        that contradict each other, fewer than 10 time points, or no subject.
    """
    name = str(path)
    try:
        open_regular(path).close()
        with h5py.File(path, "r", locking=False) as handle:
            if handle.attrs.get("format") == STORE_FORMAT:
                from lacuna_nipype.connectomes.store import read_store_header

                return read_store_header(handle, path)
            series, grid, voxels = _read_datasets(handle, name)
            n_subjects, n_timepoints, _ = series.shape
            chunks = series.chunks
            item_bytes = series.dtype.itemsize
            declared = handle.attrs.get("space")
            text = "" if declared is None else text_of(declared)
            unique = np.unique(np.ravel_multi_index(tuple(voxels), grid.shape)).size
    except ValidationError:
        raise
    except DAMAGE as error:
        if not path.exists():
            raise ValidationError(f"{name} does not exist; check the connectome path.") from error
        raise ValidationError(
            f"{name} cannot be read as HDF5 ({_hdf5_reason(error)}); copy or build it again."
        ) from error
    if n_subjects < 1 or n_timepoints < MINIMUM_TIMEPOINTS:
        raise ValidationError(
            f"{name} holds {n_subjects} subjects of {n_timepoints} time points; at least one "
            f"subject and {MINIMUM_TIMEPOINTS} time points are needed."
        )
    if unique != voxels.shape[1]:
        raise ValidationError(f"{name} lists some mask_indices twice; rebuild the file.")
    space = declared_space(text, path) if text.strip() else None
    return ConnectomeFile(
        path,
        n_subjects,
        n_timepoints,
        grid,
        voxels,
        space,
        subject_chunk=chunks[0] if chunks else 1,
        item_bytes=item_bytes,
        chunks=chunks,
    )


def _hdf5_reason(error: BaseException) -> str:
    text = str(error).lower()
    if "truncated" in text:
        return "the file is truncated"
    if "signature" in text:
        return "it is no HDF5 file"
    return "it is damaged"


def connectome_paths(location: Path) -> list[Path]:
    """List the HDF5 files of a connectome in name order.

    Parameters
    ----------
    location : Path
        A file, or a folder of ``*.h5`` / ``*.hdf5`` files.

    Returns
    -------
    list of Path

    Raises
    ------
    ValidationError
        Nothing is there.
    """
    if location.is_dir():
        paths = sorted(
            path
            for path in location.iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        )
        if not paths:
            raise ValidationError(f"{location} holds no .h5 or .hdf5 file of a connectome.")
        return paths
    if not location.is_file():
        raise ValidationError(f"{location} does not exist; check --functional-connectome.")
    return [location]


def _sidecar_space(location: Path) -> str | None:
    """Space in a JSON beside the file, or of any name inside the folder."""
    candidates = (
        sorted(location.glob("*.json")) if location.is_dir() else [location.with_suffix(".json")]
    )
    for path in candidates:
        if not path.is_file():
            continue
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise ValidationError(f"{path} is not valid JSON; repair or remove it.") from error
        if isinstance(content, dict) and content.get("Space"):
            return declared_space(content["Space"], path)
    return None


def open_connectome(location: Path, space: str | None = None) -> FunctionalConnectome:
    """Check all files of a functional connectome against each other.

    Parameters
    ----------
    location : Path
        File or folder.
    space : str, optional
        Space where the files do not say; it also overrides what they say.

    Returns
    -------
    FunctionalConnectome

    Raises
    ------
    ValidationError
        A file is damaged, or nothing says which space the connectome is in.
    SpatialMismatchError
        Files disagree on mask, grid or space, or the space contradicts the grid.
    """
    files = tuple(read_connectome_file(path) for path in connectome_paths(location))
    first = files[0]
    for file in files[1:]:
        if file.mask_digest != first.mask_digest:
            raise SpatialMismatchError(
                f"{file.path} and {first.path} disagree on the brain mask or its affine "
                f"({file.n_voxels} and {first.n_voxels} voxels); they are not one connectome."
            )
        if file.space != first.space:
            raise SpatialMismatchError(
                f"{file.path} declares space {file.space} but {first.path} declares "
                f"{first.space}; they are not one connectome."
            )
    declared = space or first.space or _sidecar_space(location)
    if declared is None:
        raise ValidationError(
            f"{location} does not say which space it is in; add --functional-space SPACE."
        )
    return FunctionalConnectome(
        files, check_declared_space(declared, first.grid, f"Functional connectome {location}")
    )


def iter_subjects(
    file: ConnectomeFile, pool: Executor | None = None, ahead: int = 0
) -> Iterator[NDArray[np.floating]]:
    """Read a file subject by subject.

    Parameters
    ----------
    file : ConnectomeFile
    pool : Executor, optional
        Threads that inflate; without it the caller's own does.
    ahead : int
        Blocks of subjects to inflate ahead; see :mod:`lacuna_nipype.connectomes.series`.

    Yields
    ------
    array, shape (n_timepoints, n_voxels), float32 or float64
        Possibly read-only. Subjects that HDF5 compressed together are inflated once.

    Raises
    ------
    ValidationError
        A chunk cannot be inflated.
    """
    from lacuna_nipype.connectomes.series import read_subjects

    yield from read_subjects(file, pool, ahead)


# Seconds to inflate a gigabyte of series on one core, and to read one from a store: orders of
# magnitude for the hint below, not measurements of the machine at hand.
INFLATE_SECONDS_PER_GB = 3.5
READ_SECONDS_PER_GB = 0.5


def conversion_hint(files: Sequence[ConnectomeFile]) -> str:
    """Say what converting a connectome to the store would save, in one sentence.

    The size named is a bound: subjects whose series are band-passed need about half of it.

    Parameters
    ----------
    files : sequence of ConnectomeFile

    Returns
    -------
    str
        Empty where no file is compressed: a store, or Lacuna's layout without a filter.
    """
    from lacuna_nipype.connectomes.ingest import store_bytes

    packed = [file for file in files if file.precision is None and file.chunks is not None]
    if not packed:
        return ""
    series = stored = 0.0
    for file in packed:
        series += file.n_subjects * file.n_timepoints * file.n_voxels * file.item_bytes / 1e9
        # Centred series have one dimension less than time points.
        rank = file.n_timepoints - 1
        stored += store_bytes(file.n_subjects, file.n_voxels, rank, "int16") / 1e9
    inflating, reading = series * INFLATE_SECONDS_PER_GB, stored * READ_SECONDS_PER_GB
    return (
        f"Every run inflates {series:.3g} GB of the functional connectome, about "
        f"{_duration(inflating)} of processor time; 'lacuna-nipype connectome convert' makes this "
        f"about {_duration(reading)} of reading, in at most {stored:.2g} GB."
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{max(seconds, 1):.0f} s"
