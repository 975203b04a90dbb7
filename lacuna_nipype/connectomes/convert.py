"""From Lacuna's files to the package's store, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.functional import (
    MINIMUM_TIMEPOINTS,
    ConnectomeFile,
    FunctionalConnectome,
    iter_subjects,
    open_connectome,
)
from lacuna_nipype.connectomes.ingest import (
    describe_source,
    run_tasks,
    sampled_rank,
    store_bytes,
    subject_digest,
)
from lacuna_nipype.connectomes.series_file import write_series_file
from lacuna_nipype.connectomes.store import FORMAT_VERSION, StoreSource, read_order, write_store
from lacuna_nipype.core.compression import INTEGER_LIMITS, restore_series
from lacuna_nipype.core.exceptions import ValidationError

SYNTHETIC = (
    "Synthetic time courses, made from the coefficients of a lacuna-nipype store ({kind}): they "
    "correlate with each other like the originals, but are not the originals, whose time courses "
    "the store does not keep."
)


@dataclass(frozen=True, eq=False)
class _Conversion:
    """A file of a connectome to write in the other layout."""

    target: Path
    file: ConnectomeFile
    space: str
    recipe: dict[str, Any]
    estimated_bytes: int

    @property
    def subject_names(self) -> tuple[str, ...]:
        n = self.file.n_subjects
        return tuple(f"Subject {number} of {self.file.path}" for number in range(1, n + 1))

    @property
    def subject_bytes(self) -> int:
        return 8 * self.file.n_timepoints * self.file.n_voxels

    def source(self, voxels: NDArray[np.int64], n_timepoints: int) -> StoreSource:
        """Describe what is written."""
        source = self.recipe["source"]
        names = (f"{source['name']} {source['fingerprint']}",)
        folder = str(self.file.path.parent.absolute())
        return StoreSource(self.file.grid, voxels, n_timepoints, self.space, names, folder)


class _ToStore(_Conversion):
    def write(self, path: Path, advance: Callable[[], None]) -> list[str]:
        digests: list[str] = []

        def subjects() -> Iterator[NDArray[np.floating[Any]]]:
            for series in iter_subjects(self.file):
                digests.append(subject_digest(series))
                yield series

        source = self.source(self.file.voxels, self.file.n_timepoints)
        kind = self.recipe["kind"]
        write_store(path, source, subjects(), kind=kind, progress=lambda _: advance())
        return digests


class _ToLacuna(_Conversion):
    def write(self, path: Path, advance: Callable[[], None]) -> list[str]:
        file, n_timepoints = self.file, _restored_timepoints(self.file)
        digests: list[str] = []

        def subjects() -> Iterator[NDArray[np.floating[Any]]]:
            for series in iter_restored(file, n_timepoints):
                digests.append(subject_digest(series))
                yield series

        with h5py.File(file.path, "r", locking=False) as handle:
            voxels = np.empty_like(file.voxels)
            voxels[:, read_order(handle, file)] = file.voxels
        kind = file.precision.kind if file.precision else ""
        write_series_file(
            path, self.source(voxels, n_timepoints), subjects(), file.n_subjects,
            description=SYNTHETIC.format(kind=kind), progress=lambda _: advance(),
        )  # fmt: skip
        return digests


def _restored_timepoints(file: ConnectomeFile) -> int:
    rank = file.precision.rank if file.precision else 0
    return max(rank + 1, MINIMUM_TIMEPOINTS)


def iter_restored(file: ConnectomeFile, n_timepoints: int) -> Iterator[NDArray[np.float32]]:
    """Make series from a store file, subject by subject, in the order of the store's source.

    Parameters
    ----------
    file : ConnectomeFile
        Of a store.
    n_timepoints : int
        Length of the series, more than the store's rank.

    Yields
    ------
    array, shape (n_timepoints, n_voxels), float32
    """
    with h5py.File(file.path, "r", locking=False) as handle:
        order = read_order(handle, file)
        for subject in range(file.n_subjects):
            integers = handle["coefficients"][:, subject].transpose(1, 0, 2)
            integers = integers.reshape(integers.shape[0], -1)[:, : len(order)]
            scale, norm = (
                handle[key][:, subject].ravel()[: len(order)] for key in ("scale", "norm")
            )
            series = np.empty((n_timepoints, len(order)), dtype=np.float32)
            series[:, order] = restore_series(integers * scale, norm, n_timepoints)
            yield series


def convert_connectome(
    location: Path,
    target_dir: Path,
    *,
    kind: str = "int16",
    n_procs: int = 1,
    memory_gb: float | None = None,
    overwrite: bool = False,
    space: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Turn every file of a connectome in Lacuna's layout into a file of the store.

    Parameters
    ----------
    location : Path
        File or folder.
    target_dir : Path
        Folder to write to; the files keep their names, with the suffix ``.h5``.
    kind : {"int16", "int8"}
        Type of the stored coefficients.
    n_procs : int
        Files converted at the same time.
    memory_gb : float, optional
        Fewer files at a time where they would take more memory.
    overwrite : bool
        Replace files of other content.
    space : str, optional
        Space of the connectome where its files do not say.
    progress : callable, optional
        Called with (subjects done, subjects in all).

    Returns
    -------
    list of Path
        Files of the store, in name order; those finished by an earlier run are kept.

    Raises
    ------
    ValidationError
        The connectome is unsound, a store already, or holds a subject twice; the folder cannot
        take it.
    IncompleteError
        Some files could not be written, as on a full disk; the finished ones stay.
    """
    if kind not in INTEGER_LIMITS:
        raise ValidationError(
            f"{kind!r} is not a type of store; use {' or '.join(INTEGER_LIMITS)}."
        )
    connectome = _open(location, target_dir, space)
    if any(file.precision for file in connectome.files):
        raise ValidationError(
            f"{location} is a store already; convert the files that it was made from, or turn it "
            "back into Lacuna's layout with --to-lacuna."
        )
    ranks: dict[int, int] = {}
    tasks = []
    for file in connectome.files:
        if file.n_timepoints not in ranks:
            ranks[file.n_timepoints] = sampled_rank(first_subject(file))
        rank = ranks[file.n_timepoints]
        tasks.append(
            _ToStore(
                target_dir / f"{file.path.stem}.h5",
                file,
                connectome.space,
                {
                    "layout": "store",
                    "format": FORMAT_VERSION,
                    "kind": kind,
                    "space": connectome.space,
                    "source": describe_source(file.path),
                },
                store_bytes(file.n_subjects, file.n_voxels, rank, kind),
            )
        )
    return run_tasks(
        tasks, n_procs=n_procs, memory_gb=memory_gb, overwrite=overwrite, progress=progress
    )


def store_to_lacuna(
    location: Path,
    target_dir: Path,
    *,
    n_procs: int = 1,
    memory_gb: float | None = None,
    overwrite: bool = False,
    space: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Turn every file of a store into one of Lacuna's layout.

    The series are made up (the store does not keep the originals' time courses), but correlate
    with each other like the originals, within the error that the store records.

    Parameters
    ----------
    location : Path
        File or folder of a store.
    target_dir, n_procs, memory_gb, overwrite, space, progress
        As for :func:`convert_connectome`.

    Returns
    -------
    list of Path

    Raises
    ------
    ValidationError
        The store is unsound or none; the folder cannot take the files.
    IncompleteError
        Some files could not be written; the finished ones stay.
    """
    connectome = _open(location, target_dir, space)
    tasks = []
    for file in connectome.files:
        if file.precision is None:
            raise ValidationError(f"{file.path} is in Lacuna's layout already.")
        recipe = {
            "layout": "lacuna",
            "space": connectome.space,
            "source": describe_source(file.path),
        }
        size = 4 * file.n_subjects * _restored_timepoints(file) * file.n_voxels
        target = target_dir / f"{file.path.stem}.h5"
        tasks.append(_ToLacuna(target, file, connectome.space, recipe, size))
    return run_tasks(
        tasks, n_procs=n_procs, memory_gb=memory_gb, overwrite=overwrite, progress=progress
    )


def _open(location: Path, target_dir: Path, space: str | None) -> FunctionalConnectome:
    folder = location if location.is_dir() else location.parent
    if target_dir.resolve() == folder.resolve():
        raise ValidationError(f"{target_dir} holds the connectome itself; choose another folder.")
    return open_connectome(location, space)


def first_subject(file: ConnectomeFile) -> NDArray[np.floating[Any]]:
    """Read the series of a file's first subject."""
    subjects = iter_subjects(file)
    try:
        return next(subjects)
    finally:
        subjects.close()  # type: ignore[attr-defined]
