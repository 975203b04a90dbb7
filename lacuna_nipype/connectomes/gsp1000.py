"""The GSP1000 connectome, from its images or its archives to Lacuna's HDF5 files.

Images are read volume by volume and only the brain's voxels are kept, so that memory holds one
subject's series and not its image. Files are closed in the order in which they fill up, which is
the same for a folder and for archives that hold it, and does not change when a run is interrupted
and started again.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import nibabel as nb
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener
from numpy.typing import NDArray

from lacuna_nipype.connectomes.archives import archive_sizes, iter_archive
from lacuna_nipype.connectomes.build import read_brain_mask
from lacuna_nipype.connectomes.functional import MINIMUM_TIMEPOINTS
from lacuna_nipype.connectomes.hdf5 import DAMAGE
from lacuna_nipype.connectomes.ingest import RECIPE, describe_source, run_tasks, subject_digest
from lacuna_nipype.connectomes.series_file import write_series_file
from lacuna_nipype.connectomes.store import StoreSource
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.files import lock_file, parse_json, read_json, write_json
from lacuna_nipype.core.images import check_size, open_image
from lacuna_nipype.core.masks import check_affine
from lacuna_nipype.core.resampling import resample_linear, round_indices, voxel_map
from lacuna_nipype.core.spaces import Grid, check_declared_space

SPACE = "MNI152NLin6Asym"
IMAGE_PATTERN = "sub-*/func/*bld001_rest_*_finalmask.nii.gz"
#: Record of the archives that are converted, beside the files.
ARCHIVES_RECORD = "gsp1000_archives.json"
DESCRIPTION = "GSP1000 resting-state series, as they are in its images."
_FORMAT = 1
# Share of the brain that an image on another grid may leave out.
_MOST_OUTSIDE = 0.05
_LOGGER = logging.getLogger("lacuna_nipype.connectomes.gsp1000")
_UNREADABLE = (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error)

StrPath = str | os.PathLike[str]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class _Brain:
    """The mask."""

    path: Path
    grid: Grid
    voxels: NDArray[np.int64]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What all files of the connectome have in common."""
        return {
            "layout": "lacuna",
            "dataset": "GSP1000",
            "format": _FORMAT,
            "space": SPACE,
            "mask": describe_source(self.path),
        }


@dataclass(frozen=True, eq=False)
class _Image:
    """A subject's image, its header checked; ``name`` is that in the data set."""

    path: Path
    name: str
    grid: Grid
    n_timepoints: int
    resampled: bool

    def describe(self) -> dict[str, Any]:
        """Entry of a recipe."""
        source = describe_source(self.path, self.name)
        return {**source, "resampled": "linear"} if self.resampled else source


@dataclass(frozen=True, eq=False)
class _Chunk:
    """One file of the connectome; without images it is one that is finished."""

    target: Path
    brain: _Brain
    images: tuple[_Image, ...]
    recipe: dict[str, Any]

    @property
    def subject_names(self) -> tuple[str, ...]:
        return tuple(source["name"] for source in self.recipe["sources"])

    @property
    def subject_bytes(self) -> int:
        return 8 * self.images[0].n_timepoints * self.brain.voxels.shape[1]

    @property
    def estimated_bytes(self) -> int:
        return len(self.images) * self.subject_bytes // 2

    def write(self, path: Path, advance: Callable[[], None]) -> list[str]:
        digests: list[str] = []
        brain, length = self.brain, self.images[0].n_timepoints

        def subjects() -> Iterator[NDArray[np.float32]]:
            series = np.empty((length, brain.voxels.shape[1]), dtype=np.float32)
            for image in self.images:
                _read_subject(image, brain, series)
                digests.append(subject_digest(series))
                yield series

        sources = self.recipe["sources"]
        names = tuple(f"{source['name']} {source['fingerprint']}" for source in sources)
        write_series_file(
            path, StoreSource(brain.grid, brain.voxels, length, SPACE, names), subjects(),
            len(self.images), description=DESCRIPTION, progress=lambda _: advance(),
        )  # fmt: skip
        return digests


def gsp1000_to_hdf5(
    gsp_dir: StrPath,
    mask_path: StrPath,
    output_dir: StrPath,
    subjects_per_chunk: int = 10,
    *,
    max_subjects: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write the GSP1000 images of a folder as files in Lacuna's HDF5 layout.

    Parameters
    ----------
    gsp_dir : path-like
        Folder with ``sub-*/func/*bld001_rest_*_finalmask.nii.gz``, one image per subject, in
        MNI152NLin6Asym.
    mask_path : path-like
        Binary brain mask. Images with its voxels (in any order of axes) are taken as they are;
        others are resampled to it by trilinear interpolation in world coordinates, with a
        warning (logged), and what is not finite in them becomes 0.
    output_dir : path-like
        Folder for ``gsp1000_chunk_000.h5`` and so on, in the order in which they fill up.
    subjects_per_chunk : int
        Subjects per file at most; those of different length go to different files.
    max_subjects : int, optional
        Take the first so many only.
    overwrite : bool
        Replace files that were made from other data or with other settings, and remove
        ``gsp1000_chunk_*.h5`` beyond them.
    progress : callable, optional
        Called with (subjects done, subjects in all).

    Returns
    -------
    list of Path
        The files. Series are raw, float32, (subjects, time points, voxels). Those finished by an
        earlier run with the same input are kept; an interrupted run goes on after them.

    Raises
    ------
    FileNotFoundError
        The folder or the mask is missing.
    ValidationError
        (A ValueError.) No image is found; one is damaged, not 4D, too short, has no place in the
        world, or is that of a subject who has another; a file is there from other data.
    SpatialMismatchError
        Mask or image lie on the grid of another space, or an image leaves out more than 5 % of
        the brain.
    IncompleteError
        Some files could not be written, as on a full disk; the finished ones stay.
    """
    folder, target_dir = Path(gsp_dir), Path(output_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give that of the GSP1000 images.")
    _check_numbers(subjects_per_chunk, max_subjects)
    brain = _read_brain(Path(mask_path))
    paths = _find_images(folder)[:max_subjects]
    check = _GridCheck(brain)
    images = [check.open(path, path.relative_to(folder).as_posix()) for path in paths]
    chunks = [
        _make_chunk(_chunk_path(target_dir, number), brain, batch)
        for number, batch in enumerate(_batches(images, subjects_per_chunk))
    ]
    if overwrite:
        kept = {chunk.target for chunk in chunks}
        _remove([path for path in _chunk_files(target_dir) if path not in kept])
    return run_tasks(chunks, overwrite=overwrite, progress=progress)


def convert_gsp1000_archives(
    archives: Sequence[StrPath],
    mask_path: StrPath,
    output_dir: StrPath,
    subjects_per_chunk: int = 10,
    *,
    scratch: StrPath,
    max_subjects: int | None = None,
    keep_original: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write the GSP1000 images in archives as files in Lacuna's layout, as they are unpacked.

    The images of the files that are being filled are unpacked, no more: those of one file, or of
    one per length where lengths differ.

    Parameters
    ----------
    archives : sequence of path-like
        In the order of the subjects; images are found in them at any depth by the names that
        :func:`gsp1000_to_hdf5` takes. An archive that an earlier call converted wholly may be
        gone (see :func:`converted_archives`).
    mask_path, output_dir, subjects_per_chunk
        As there. Files that are finished stay as they are, whatever number of subjects they
        hold, also those of other archives: archives can be converted one after another, as long
        as their names differ.
    scratch : path-like
        Folder to unpack to; what this function puts there is removed at the end, and what a
        killed call left at the beginning of the next one.
    max_subjects : int, optional
        Take the first so many of these archives only.
    keep_original : bool
        When False, each archive is removed as soon as all its subjects are in finished files.
    overwrite, progress
        As there.

    Returns
    -------
    list of Path
        All files of the connectome. Where all images are in the order of their names, they are
        byte by byte those that :func:`gsp1000_to_hdf5` makes of the unpacked archives.

    Raises
    ------
    FileNotFoundError
        An archive or the mask is missing.
    ValidationError, SpatialMismatchError, IncompleteError, ProcessingError
        As there, and as :func:`lacuna_nipype.connectomes.archives.iter_archive`; two calls use
        one scratch folder.
    """
    _check_numbers(subjects_per_chunk, max_subjects)
    brain, folder = _read_brain(Path(mask_path)), Path(output_dir)
    finished, stale = _finished_chunks(folder, brain)
    listing = _list_archives([Path(path) for path in archives], folder, finished)
    subjects = [subject for found in listing.values() for subject in found][:max_subjects]
    stale += _remade(finished, subjects)
    if stale and not overwrite:
        raise ValidationError(
            f"{stale[0]} was made from other data or with other settings; choose another folder, "
            "or add --overwrite to replace it."
        )
    finished = [chunk for chunk in finished if chunk.target not in stale]
    _check_available(subjects, finished)
    _remove(stale)
    with _unpacking_folder(Path(scratch)) as unpacked:
        run = _ArchiveRun(brain, folder, unpacked, finished, subjects, progress)
        for _ in run.convert(subjects_per_chunk):
            _settle_archives(listing, folder, run.done, keep_original)
    return sorted(chunk.target for chunk in run.finished)


def converted_archives(output_dir: StrPath) -> dict[str, list[str]]:
    """Tell which archives :func:`convert_gsp1000_archives` has converted to a folder.

    Parameters
    ----------
    output_dir : path-like

    Returns
    -------
    dict
        By file name of the archive, the names of its images; only archives all of whose subjects
        are in files that are there. They need not be fetched again.
    """
    folder = Path(output_dir)
    there = {
        source["name"]
        for path in _chunk_files(folder)
        for source in (_read_recipe(path) or {}).get("sources", ())
    }
    record = _read_record(folder)
    return {name: names for name, names in record.items() if there.issuperset(names)}


# Images


def _check_numbers(subjects_per_chunk: int, max_subjects: int | None) -> None:
    if subjects_per_chunk < 1:
        raise ValidationError("A file must hold at least one subject.")
    if max_subjects is not None and max_subjects < 1:
        raise ValidationError("At least one subject must be taken.")


def _read_brain(path: Path) -> _Brain:
    if not path.is_file():
        raise FileNotFoundError(f"Brain mask {path} does not exist; check the path.")
    grid, voxels = read_brain_mask(path)
    check_declared_space(SPACE, grid, f"Brain mask {path}")
    return _Brain(path, grid, voxels)


def image_name(member: str) -> str | None:
    """Name of an image in the data set, from its path; None for any other file.

    Parameters
    ----------
    member : str
        Path with ``/``, as in an archive.

    Returns
    -------
    str or None
        Such as ``sub-0001/func/..._finalmask.nii.gz``. Files that begin with a dot are none:
        macOS puts such a companion beside each file.
    """
    path = PurePosixPath(member)
    name = PurePosixPath(*path.parts[-3:])
    if path.name.startswith(".") or not name.match(IMAGE_PATTERN):
        return None
    return name.as_posix()


def _find_images(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.glob(IMAGE_PATTERN) if not path.name.startswith("."))
    if not paths:
        raise ValidationError(
            f"{folder} holds no GSP1000 image ({IMAGE_PATTERN}); give the folder that holds the "
            "subjects' folders."
        )
    _check_one_each(path.relative_to(folder).as_posix() for path in paths)
    return paths


def _check_one_each(names: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        subject = name.partition("/")[0]
        if subject in seen:
            raise ValidationError(
                f"{subject} has two images, {seen[subject]} and {name}; remove one of them."
            )
        seen[subject] = name


def _load_header(path: Path) -> Any:
    try:
        image = open_image(path)
        check_size(image)
    except OSError as error:
        raise ValidationError(
            f"{path} cannot be read as an image; fetch or copy it again."
        ) from error
    if not isinstance(image, nb.Nifti1Pair):
        raise ValidationError(f"{path} is not a NIfTI image; fetch or copy it again.")
    return image


class _GridCheck:
    """Checks headers against the brain mask, and warns once of each other grid."""

    def __init__(self, brain: _Brain) -> None:
        self._brain = brain
        self._others: list[Grid] = []

    def open(self, path: Path, name: str) -> _Image:
        """Read and check a header."""
        image = _load_header(path)
        if len(image.shape) != 4:
            raise ValidationError(
                f"{path} has {len(image.shape)} dimensions where a subject's image has four, the "
                "last of which is time."
            )
        n_timepoints = int(image.shape[3])
        if n_timepoints < MINIMUM_TIMEPOINTS:
            raise ValidationError(
                f"{path} has {n_timepoints} time points; at least {MINIMUM_TIMEPOINTS} are needed."
            )
        if image.get_data_dtype().kind not in "iuf":
            raise ValidationError(f"{path} does not hold plain numbers; fetch or copy it again.")
        check_affine(image.affine, str(path))
        grid = Grid.make(image.shape[:3], image.affine)
        other = not grid.same_lattice(self._brain.grid)
        if other and not any(grid.same_as(seen) for seen in self._others):
            self._check_other(path, image, grid)
            self._others.append(grid)
        return _Image(path, name, grid, n_timepoints, other)

    def _check_other(self, path: Path, image: Any, grid: Grid) -> None:
        mask = f"the brain mask {self._brain.path} ({self._brain.grid.describe()})"
        if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
            raise SpatialMismatchError(
                f"{path} does not say where it lies in the world (sform_code and qform_code are "
                f"0), and does not have the voxels of {mask}; repair its header."
            )
        check_declared_space(SPACE, grid, str(path))
        outside = _share_outside(self._brain, grid)
        if outside > _MOST_OUTSIDE:
            raise SpatialMismatchError(
                f"{path} ({grid.describe()}) leaves out {outside:.0%} of {mask}; give the mask "
                "that belongs to the images."
            )
        _LOGGER.warning(
            "%s (%s) lies on another grid than %s; images on this grid are resampled to it "
            "linearly%s.",
            path, grid.describe(), mask,
            f", with 0 in the {outside:.1%} of the brain that they leave out" if outside else "",
        )  # fmt: skip


def _share_outside(brain: _Brain, grid: Grid) -> float:
    matrix = voxel_map(grid, brain.grid)
    index = round_indices(matrix[:3, :3] @ brain.voxels + matrix[:3, 3:])
    outside = (index < 0) | (index >= np.array(grid.shape)[:, np.newaxis])
    return float(outside.any(axis=0).mean())


def _read_subject(image: _Image, brain: _Brain, series: NDArray[np.float32]) -> None:
    """Fill in the series of the brain's voxels, (n_timepoints, n_voxels)."""
    take = _taker(image.grid, brain)
    for time, volume in enumerate(_iter_volumes(image.path)):
        series[time] = take(volume)


def _taker(own: Grid, brain: _Brain) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Give the function that takes the brain's voxels out of a volume on another grid."""
    if own.same_lattice(brain.grid):
        matrix = voxel_map(own, brain.grid)
        index = round_indices(matrix[:3, :3] @ brain.voxels + matrix[:3, 3:])
        flat = np.ravel_multi_index(tuple(index), own.shape, order="F")
        return lambda volume: volume.reshape(-1, order="F")[flat]
    # Interpolated within the box that the brain lies in.
    first, last = brain.voxels.min(axis=1), brain.voxels.max(axis=1)
    shift = np.eye(4)
    shift[:3, 3] = first
    box = Grid.make(tuple(last - first + 1), brain.grid.affine @ shift)
    inside = tuple(brain.voxels - first[:, np.newaxis])
    return lambda volume: resample_linear(volume, own, box)[inside]


def _iter_volumes(path: Path) -> Iterator[NDArray[np.float32]]:
    """Read a 4D image volume by volume from beginning to end, in single precision."""
    proxy = _load_header(path).dataobj
    *shape, n_volumes = proxy.shape
    n_bytes = int(np.prod(shape)) * proxy.dtype.itemsize
    header = (tuple(shape), proxy.dtype, 0, proxy.slope, proxy.inter)
    try:
        with ImageOpener(str(path)) as stream:
            stream.read(proxy.offset)
            for _ in range(n_volumes):
                raw = stream.read(n_bytes)
                if len(raw) < n_bytes:
                    raise EOFError
                # Scaled by nibabel itself, as anybody else sees the image.
                part = ArrayProxy(io.BytesIO(raw), header)
                yield np.asanyarray(part, dtype=np.float32)
            # The checksum comes at the end.
            while stream.read(2**20):
                pass
    except _UNREADABLE as error:
        raise ValidationError(f"{path} is damaged; fetch or copy it again.") from error


# Files


def _batches(images: Iterable[_Image], size: int) -> Iterator[tuple[_Image, ...]]:
    """Cut into files of one length each, as they fill up; the unfilled come last."""
    waiting: dict[int, list[_Image]] = {}
    for image in images:
        alike = waiting.setdefault(image.n_timepoints, [])
        alike.append(image)
        if len(alike) == size:
            del waiting[image.n_timepoints]
            yield tuple(alike)
    yield from map(tuple, waiting.values())


def _make_chunk(target: Path, brain: _Brain, images: tuple[_Image, ...]) -> _Chunk:
    recipe = {**brain.settings, "sources": [image.describe() for image in images]}
    return _Chunk(target, brain, images, recipe)


def _chunk_path(folder: Path, number: int) -> Path:
    return folder / f"gsp1000_chunk_{number:03d}.h5"


def _chunk_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("gsp1000_chunk_*.h5"))


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()


def _read_recipe(path: Path) -> dict[str, Any] | None:
    """Read what a file was made from; None where it does not say."""
    try:
        with h5py.File(path, "r", locking=False) as handle:
            recipe = parse_json(str(handle.attrs.get(RECIPE, "null")))
    except DAMAGE:
        return None
    return recipe if isinstance(recipe, dict) and "sources" in recipe else None


# Archives


@dataclass(frozen=True)
class _Subject:
    """An image in an archive; the size is not known where the archive is gone."""

    archive: Path
    member: str
    name: str
    n_bytes: int | None


def _finished_chunks(folder: Path, brain: _Brain) -> tuple[list[_Chunk], list[Path]]:
    """Give the files made with the same settings, and the paths of the others."""
    finished, stale = [], []
    for path in _chunk_files(folder):
        recipe = _read_recipe(path) or {}
        if {**recipe, "sources": None} == {**brain.settings, "sources": None}:
            finished.append(_Chunk(path, brain, (), recipe))
        else:
            stale.append(path)
    return finished, stale


def _list_archives(
    archives: Sequence[Path], folder: Path, finished: Sequence[_Chunk]
) -> dict[Path, list[_Subject]]:
    """List the images of each archive, from its headers or, where it is gone, the record."""
    there = {name for chunk in finished for name in chunk.subject_names}
    record = _read_record(folder)
    listing: dict[Path, list[_Subject]] = {}
    for path in archives:
        if path.name in {other.name for other in listing}:
            raise ValidationError(f"Two archives are named {path.name}; give each one once.")
        if path.is_file():
            listing[path] = [
                _Subject(path, member, name, size)
                for member, size in archive_sizes(path).items()
                if (name := image_name(member)) is not None
            ]
        elif (names := record.get(path.name)) and there.issuperset(names):
            listing[path] = [_Subject(path, "", name, None) for name in names]
        else:
            raise FileNotFoundError(f"{path} does not exist; download it (again).")
        if not listing[path]:
            raise ValidationError(
                f"{path} holds no GSP1000 image ({IMAGE_PATTERN}); give archives that do."
            )
    if not listing:
        raise ValidationError("No archive of GSP1000 was given.")
    _check_one_each(subject.name for found in listing.values() for subject in found)
    return listing


def _remade(finished: Sequence[_Chunk], subjects: Sequence[_Subject]) -> list[Path]:
    """Files that hold an image of another size than its namesake in the archives."""
    sizes = {subject.name: subject.n_bytes for subject in subjects}
    return [
        chunk.target
        for chunk in finished
        if any(
            sizes.get(source["name"]) not in (None, source["bytes"])
            for source in chunk.recipe["sources"]
        )
    ]


def _check_available(subjects: Sequence[_Subject], finished: Sequence[_Chunk]) -> None:
    """Refuse before anything is removed that could not be made again."""
    there = {name for chunk in finished for name in chunk.subject_names}
    for subject in subjects:
        if subject.n_bytes is None and subject.name not in there:
            raise FileNotFoundError(f"{subject.archive} does not exist; download it (again).")


@contextmanager
def _unpacking_folder(scratch: Path) -> Iterator[Path]:
    """Give an empty folder that only this call uses, and remove it."""
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / "gsp1000.lock").open("w") as lock:
        if not lock_file(lock, wait=False):
            raise ValidationError(
                f"Another run unpacks GSP1000 in {scratch} at this moment; wait for it to end."
            )
        folder = scratch / "gsp1000_unpacked"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class _ArchiveRun:
    """Unpacks images and writes files until all subjects are in one."""

    def __init__(
        self,
        brain: _Brain,
        folder: Path,
        unpacked: Path,
        finished: list[_Chunk],
        subjects: Sequence[_Subject],
        progress: Progress | None,
    ) -> None:
        self._brain, self._folder, self._unpacked = brain, folder, unpacked
        self._subjects, self._progress = subjects, progress
        self.finished = finished
        self.done = {name for chunk in finished for name in chunk.subject_names}
        self._total = len(self.done | {subject.name for subject in subjects})

    def convert(self, size: int) -> Iterator[None]:
        """Write what is missing, with a pause before the first file and after each."""
        yield
        for images in _batches(self._arriving(), size):
            self._write(images)
            for image in images:
                image.path.unlink()
            yield

    def _arriving(self) -> Iterator[_Image]:
        """Unpack and check the images that no file holds, one at a time."""
        check = _GridCheck(self._brain)
        todo: dict[Path, set[str]] = {}
        for subject in self._subjects:
            if subject.name not in self.done:
                todo.setdefault(subject.archive, set()).add(subject.member)
        for archive, members in todo.items():
            # So that messages about an image name its archive.
            folder = self._unpacked / archive.name
            for path in iter_archive(archive, folder, wanted=members.__contains__):
                yield check.open(path, str(image_name(path.relative_to(folder).as_posix())))

    def _write(self, images: tuple[_Image, ...]) -> None:
        taken = {chunk.target for chunk in self.finished}
        paths = (_chunk_path(self._folder, number) for number in itertools.count())
        target = next(path for path in paths if path not in taken)
        chunk = _make_chunk(target, self._brain, images)
        run_tasks([*self.finished, chunk], progress=self._report)
        self.finished.append(_Chunk(target, self._brain, (), chunk.recipe))
        self.done.update(chunk.subject_names)

    def _report(self, done: int, _: int) -> None:
        if self._progress is not None:
            self._progress(done, self._total)


def _settle_archives(
    listing: Mapping[Path, Sequence[_Subject]], folder: Path, done: set[str], keep: bool
) -> None:
    """Take note of the archives that are converted, and remove them if they are not kept."""
    record = _read_record(folder)
    for archive, subjects in listing.items():
        names = [subject.name for subject in subjects]
        if not done.issuperset(names):
            continue
        if record.get(archive.name) != names:
            record[archive.name] = names
            write_json(folder / ARCHIVES_RECORD, {"Archives": record})
        if not keep:
            archive.unlink(missing_ok=True)


def _read_record(folder: Path) -> dict[str, list[str]]:
    """Names of the images of each archive that was converted."""
    path = folder / ARCHIVES_RECORD
    try:
        record = read_json(path)["Archives"]
        return {str(name): [str(image) for image in images] for name, images in record.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValidationError(
            f"{path} is no record of converted archives; remove it, and archives that are gone "
            "will be asked for again."
        ) from error
