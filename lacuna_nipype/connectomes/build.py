"""A functional connectome from 4D images and a brain mask."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from lacuna_nipype.connectomes.confounds import (
    read_confounds,
    read_repetition_time,
    select_columns,
)
from lacuna_nipype.connectomes.functional import MINIMUM_TIMEPOINTS
from lacuna_nipype.connectomes.ingest import (
    describe_source,
    run_tasks,
    sampled_rank,
    store_bytes,
    subject_digest,
)
from lacuna_nipype.connectomes.series_file import write_series_file
from lacuna_nipype.connectomes.store import FORMAT_VERSION, StoreSource, write_store
from lacuna_nipype.core.compression import INTEGER_LIMITS
from lacuna_nipype.core.denoising import denoise_series
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.images import open_image, read_voxels
from lacuna_nipype.core.masks import check_affine
from lacuna_nipype.core.spaces import Grid, check_declared_space

LAYOUTS = ("store", "lacuna")
_UNREADABLE = (OSError, EOFError, zlib.error, ImageFileError)


@dataclass(frozen=True, eq=False)
class _Image:
    """A subject's image, its header checked."""

    path: Path
    name: str
    grid: Grid
    n_timepoints: int
    table: Path | None = None
    confounds: NDArray[np.float64] | None = None
    repetition_time: float | None = None

    def source(self) -> dict[str, Any]:
        """Say what the subject is made from, for the recipe."""
        source = describe_source(self.path, self.name)
        if self.table is not None:
            source["confounds"] = describe_source(self.table)
        if self.repetition_time is not None:
            source["repetition_time"] = self.repetition_time
        return source

    def clean(self, raw: NDArray[np.float32], settings: dict[str, Any]) -> NDArray[np.float32]:
        """Clean the image's series."""
        return denoise_series(
            raw, confounds=self.confounds, repetition_time=self.repetition_time, **settings
        )


@dataclass(frozen=True, eq=False)
class _Batch:
    """One file of the connectome to write."""

    target: Path
    images: tuple[_Image, ...]
    grid: Grid
    voxels: NDArray[np.int64]
    space: str
    recipe: dict[str, Any]
    estimated_bytes: int

    @property
    def subject_names(self) -> tuple[str, ...]:
        return tuple(str(image.path) for image in self.images)

    @property
    def n_timepoints(self) -> int:
        return self.images[0].n_timepoints

    @property
    def subject_bytes(self) -> int:
        # The whole image is in memory at first, in single precision.
        inside = 8 * self.voxels.shape[1]
        return self.n_timepoints * (inside + 2 * int(np.prod(self.grid.shape)))

    def write(self, path: Path, advance: Callable[[], None]) -> list[str]:
        digests: list[str] = []

        def subjects() -> Iterator[NDArray[np.float32]]:
            for image in self.images:
                raw = read_series(image.path, self.grid, self.voxels)
                digests.append(subject_digest(raw))
                settings = self.recipe["cleaning"] | self.recipe.get("filters", {})
                yield image.clean(raw, settings)

        names = tuple(f"{s['name']} {s['fingerprint']}" for s in self.recipe["sources"])
        source = StoreSource(self.grid, self.voxels, self.n_timepoints, self.space, names)
        if self.recipe["layout"] == "store":
            kind = self.recipe["kind"]
            write_store(path, source, subjects(), kind=kind, progress=lambda _: advance())
        else:
            write_series_file(
                path, source, subjects(), len(self.images),
                description="Built from 4D images by lacuna-nipype connectome build.",
                progress=lambda _: advance(),
            )  # fmt: skip
        return digests


def build_connectome(
    images: Sequence[Path],
    mask: Path,
    target_dir: Path,
    *,
    space: str,
    layout: str = "store",
    kind: str = "int16",
    subjects_per_file: int = 10,
    n_procs: int = 1,
    memory_gb: float | None = None,
    detrend: int | None = None,
    remove_global_signal: bool = False,
    standardize: bool = False,
    confounds: Sequence[str] = (),
    confounds_tables: Sequence[Path] = (),
    high_pass: float | None = None,
    low_pass: float | None = None,
    repetition_time: float | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Make a functional connectome from one 4D image per subject.

    Parameters
    ----------
    images : sequence of Path
        NIfTI images, one subject each, in standard space.
    mask : Path
        Binary brain mask. Images must have the same voxels in world space; their axes may be
        stored in another order or direction.
    target_dir : Path
        Folder to write to; files are named ``<folder>_chunk-000.h5`` and so on.
    space : str
        Standard space of images and mask.
    layout : {"store", "lacuna"}
        The package's store, or Lacuna's HDF5 layout.
    kind : {"int16", "int8"}
        Type of a store's coefficients.
    subjects_per_file : int
        At most so many; subjects of different length go to different files.
    n_procs : int
        Files written at the same time.
    memory_gb : float, optional
        Fewer files at a time where they would take more memory.
    detrend : int, optional
        Order of the polynomial trend to remove.
    remove_global_signal, standardize : bool
        As in :func:`lacuna_nipype.core.cleaning.clean_series`.
    confounds : sequence of str
        Columns to regress out, by name or pattern.
    confounds_tables : sequence of Path
        The table of each image, where there are confounds.
    high_pass, low_pass : float, optional
        Hz; see :func:`lacuna_nipype.core.denoising.denoise_series`.
    repetition_time : float, optional
        Seconds between the volumes of all images; by default what each image says itself. Only
        filters need it.
    overwrite : bool
        Replace files of other content.
    progress : callable, optional
        Called with (subjects done, subjects in all).

    Returns
    -------
    list of Path
        The files; those finished by an earlier run of the same settings are kept.

    Raises
    ------
    ValidationError
        An image is missing, damaged, not 4D, too short, or one subject occurs twice; the mask is
        not binary; a setting is not possible; a table lacks a column or has another length.
    SpatialMismatchError
        An image lies on another grid than the mask, or the space contradicts the grid.
    IncompleteError
        Some files could not be written; the finished ones stay.
    """
    _check_settings(images, layout, kind, subjects_per_file)
    grid, voxels = read_brain_mask(mask)
    space = check_declared_space(space, grid, f"Brain mask {mask}")
    checked = _check_images(images, mask, grid)
    checked = _with_confounds(checked, confounds, confounds_tables)
    cleaning = {
        "polynomial": detrend,
        "global_signal": remove_global_signal,
        "standardize": standardize,
    }
    filters = {"high_pass": high_pass, "low_pass": low_pass}
    if high_pass is None and low_pass is None:
        filters = {}
    else:
        checked = [_with_repetition_time(image, repetition_time) for image in checked]
    settings: dict[str, Any] = {
        "layout": layout,
        "format": FORMAT_VERSION if layout == "store" else None,
        "kind": kind if layout == "store" else None,
        "space": space,
        "cleaning": cleaning,
        "mask": describe_source(mask),
    }
    # Only where they are used: files built without them stay what their recipe says.
    if confounds:
        settings["confounds"] = list(confounds)
    if filters:
        settings["filters"] = filters
    sizes: dict[int, int] = {}
    tasks = []
    for number, batch in enumerate(_batches(checked, subjects_per_file)):
        length = batch[0].n_timepoints
        if length not in sizes:
            sizes[length] = _estimate_subject(
                batch[0], grid, voxels, layout, kind, cleaning | filters
            )
        sources = [image.source() for image in batch]
        tasks.append(
            _Batch(
                target_dir / f"{target_dir.absolute().name}_chunk-{number:03d}.h5",
                batch, grid, voxels, space,
                {**settings, "sources": sources},
                sizes[length] * len(batch),
            )
        )  # fmt: skip
    return run_tasks(
        tasks, n_procs=n_procs, memory_gb=memory_gb, overwrite=overwrite, progress=progress
    )


def _check_settings(
    images: Sequence[Path], layout: str, kind: str, subjects_per_file: int
) -> None:
    if not images:
        raise ValidationError("No image was given to build a connectome from.")
    if layout not in LAYOUTS or kind not in INTEGER_LIMITS:
        raise ValidationError(
            f"Layout {layout!r} with type {kind!r} is not possible; layouts are "
            f"{' and '.join(LAYOUTS)}, types {' and '.join(INTEGER_LIMITS)}."
        )
    if subjects_per_file < 1:
        raise ValidationError("A file must hold at least one subject.")
    for number, path in enumerate(images):
        if path in images[:number]:
            raise ValidationError(f"{path} is given twice; give each subject once.")


def read_brain_mask(path: Path) -> tuple[Grid, NDArray[np.int64]]:
    """Read a brain mask.

    Parameters
    ----------
    path : Path
        3D NIfTI image of two values, 0 and another.

    Returns
    -------
    grid : Grid
    voxels : array, shape (3, n_voxels)
        Array indices of the voxels inside.

    Raises
    ------
    ValidationError
        It cannot be read, is not 3D, not binary, or empty.
    """
    image = _open_image(path)
    try:
        data = read_voxels(image)
    except OSError as error:
        raise ValidationError(f"{path} is damaged; copy it again.") from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise ValidationError(f"{path} has {data.ndim} dimensions; a brain mask has three.")
    values = np.unique(data)
    if not np.isfinite(values).all() or len(values) > 2 or (len(values) == 2 and values[0] != 0):
        raise ValidationError(
            f"{path} is not binary; give a brain mask of 0 and 1 (threshold it first)."
        )
    if not len(values) or values[-1] <= 0:
        raise ValidationError(f"{path} is empty; give a mask that holds the brain.")
    check_affine(image.affine, str(path))
    return Grid.make(data.shape, image.affine), np.array(np.nonzero(data), dtype=np.int64)


def _open_image(path: Path) -> Any:
    if not path.is_file():
        raise ValidationError(f"{path} does not exist; check the path.")
    try:
        image = open_image(path)
    except OSError as error:
        raise ValidationError(f"{path} cannot be read as an image; copy it again.") from error
    if not isinstance(image, nb.Nifti1Pair):
        raise ValidationError(f"{path} is not a NIfTI image; convert it.")
    return image


def _check_images(images: Sequence[Path], mask: Path, grid: Grid) -> list[_Image]:
    parent = Path(os.path.commonpath([path.absolute().parent for path in images]))
    checked = []
    for path in images:
        shape, affine = (image := _open_image(path)).shape, image.affine
        if len(shape) != 4:
            raise ValidationError(
                f"{path} has {len(shape)} dimensions where a subject's image has four, the last "
                "of which is time."
            )
        if shape[3] < MINIMUM_TIMEPOINTS:
            raise ValidationError(
                f"{path} has {shape[3]} time points; at least {MINIMUM_TIMEPOINTS} are needed."
            )
        check_affine(affine, str(path))
        own = Grid.make(shape[:3], affine)
        if not own.same_lattice(grid):
            raise SpatialMismatchError(
                f"{path} ({own.describe()}) is not on the grid of the brain mask {mask} "
                f"({grid.describe()}); resample one of them first."
            )
        name = path.absolute().relative_to(parent).as_posix()
        checked.append(_Image(path, name, own, int(shape[3])))
    return checked


def _with_confounds(
    images: list[_Image], patterns: Sequence[str], tables: Sequence[Path]
) -> list[_Image]:
    """Read the confounds of all subjects, a small part of their images."""
    if len(tables) != (len(images) if patterns else 0):
        raise ValidationError(
            f"There are {len(tables)} confounds tables for {len(images)} images and "
            f"{len(patterns)} columns to take from them; give one for each image, and columns."
        )
    if not patterns:
        return images
    return [
        replace(image, table=path, confounds=read_confounds(path, columns, image.n_timepoints))
        for image, path, columns in zip(
            images, tables, select_columns(tables, patterns), strict=True
        )
    ]


def _with_repetition_time(image: _Image, given: float | None) -> _Image:
    seconds = read_repetition_time(image.path) if given is None else given
    return replace(image, repetition_time=seconds)


def _batches(images: Sequence[_Image], size: int) -> list[tuple[_Image, ...]]:
    """Cut into files of one length each, in the order given."""
    batches = []
    for length in dict.fromkeys(image.n_timepoints for image in images):
        alike = [image for image in images if image.n_timepoints == length]
        batches += [tuple(alike[i : i + size]) for i in range(0, len(alike), size)]
    return batches


def read_series(path: Path, grid: Grid, voxels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Take the series of given voxels out of an image, by their places in the world.

    Parameters
    ----------
    path : Path
        4D image with the voxels of the grid, its axes in any order and direction.
    grid : Grid
        That the indices belong to.
    voxels : array, shape (3, n_voxels)

    Returns
    -------
    array, shape (n_timepoints, n_voxels), float32

    Raises
    ------
    ValidationError
        The image is damaged.
    """
    image = _open_image(path)
    check_affine(image.affine, str(path))
    if len(image.shape) != 4 or not Grid.make(image.shape[:3], image.affine).same_lattice(grid):
        raise ValidationError(f"{path} is not on the grid of the brain mask; resample it first.")
    to_own = np.linalg.inv(image.affine) @ grid.affine
    own = np.rint(to_own[:3, :3] @ voxels + to_own[:3, 3:]).astype(np.intp)
    try:
        data = read_voxels(image, dtype=np.float32)
    except OSError as error:
        raise ValidationError(f"{path} is damaged; copy it again.") from error
    return np.ascontiguousarray(data[tuple(own)].T)


def _estimate_subject(
    image: _Image,
    grid: Grid,
    voxels: NDArray[np.int64],
    layout: str,
    kind: str,
    cleaning: dict[str, Any],
) -> int:
    n_voxels = voxels.shape[1]
    if layout == "lacuna":
        return 4 * image.n_timepoints * n_voxels
    # Also refuses settings that the series are too short for, before any work is done.
    cleaned = image.clean(read_series(image.path, grid, voxels), cleaning)
    return store_bytes(1, n_voxels, sampled_rank(cleaned), kind)
