"""Maps of siibra as files: labels put together from their parts, masks, statistical maps.

The service's own file of a whole map is used for maps of one volume alone. Of the others it merges
the parts without looking at their numbers: left and right regions, numbered alike, become one, and
more than 255 regions do not fit. Here each part is downloaded, and the regions are numbered anew.
"""

from __future__ import annotations

import logging
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nibabel as nb
import numpy as np
import pandas as pd
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from lacuna_nipype.atlases.entries import IntegrityError, SourceUnavailable
from lacuna_nipype.atlases.region_tables import side_of
from lacuna_nipype.atlases.siibra_queries import SiibraMap
from lacuna_nipype.atlases.siibra_service import SiibraService
from lacuna_nipype.core.files import atomic_path, write_table
from lacuna_nipype.core.images import save_image
from lacuna_nipype.core.parcels import integer_labels
from lacuna_nipype.core.resampling import to_canonical
from lacuna_nipype.core.spaces import Grid, check_declared_space

logger = logging.getLogger("lacuna_nipype")

_GZIP_START = b"\x1f\x8b"
# A member of an archive that claims to be larger is no image of a head.
_MOST_MEMBER_BYTES = 2**31


@dataclass(frozen=True)
class MapPart:
    """A file of a labelled map, and what its values mean.

    Parameters
    ----------
    name : str
        For messages and tables, such as ``volume 1, left hemisphere``.
    url : str or None
        None for the file of the whole map that the service makes.
    member : str or None
        File within an archive.
    numbers : mapping of int or None to int
        Number of the region (from 1, in the order of the indices) for each value; None stands
        for all values above zero.
    """

    name: str
    url: str | None
    member: str | None
    numbers: Mapping[int | None, int]


@dataclass(frozen=True, eq=False)
class LabelledMap:
    """A labelled map with regions numbered from 1 without gaps.

    Parameters
    ----------
    labels : array, three dimensions, int16 or int32
        0 is background.
    grid : Grid
        In RAS order.
    table : DataFrame
        Columns ``index``, ``name``, ``hemisphere`` (left, right or missing) and ``source``, which
        says where the service has the region. One row for each label of the image.
    without_voxels : tuple of str
        Regions of the service that have no voxel.
    unnamed_voxels : int
        Voxels whose value the service gives no region; background here.
    overlap_voxels : int
        Voxels that several parts claim; they belong to the first.
    """

    labels: NDArray[Any]
    grid: Grid
    table: pd.DataFrame
    without_voxels: tuple[str, ...]
    unnamed_voxels: int
    overlap_voxels: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a sidecar."""
        return {
            "Regions": len(self.table),
            "RegionsWithoutVoxels": list(self.without_voxels),
            "VoxelsWithoutRegion": self.unnamed_voxels,
            "VoxelsInSeveralParts": self.overlap_voxels,
        }


def plan_parts(found: SiibraMap) -> list[MapPart]:
    """Say which files make up a labelled map, from the indices of the same answer.

    Parameters
    ----------
    found : SiibraMap
        With indices and volumes.

    Returns
    -------
    list of MapPart
        Those that hold a region, in the order of volumes and fragments.

    Raises
    ------
    IntegrityError
        The map has no regions, or its indices contradict its volumes or each other.
    SourceUnavailable
        The map is kept in formats that are no NIfTI.
    """
    if not found.indices:
        raise IntegrityError(f"siibra's map {found.name!r} names no region.")
    parts: list[MapPart] = []
    for volume, provided in enumerate(found.volumes):
        for fragment, (url, member) in _addresses(found, provided).items():
            numbers = _numbers(found, volume, fragment)
            if numbers:
                name = f"volume {volume + 1}" + (f", {fragment}" if fragment else "")
                parts.append(MapPart(name, url, member, numbers))
    _check_all_planned(found, parts)
    return parts


def _addresses(
    found: SiibraMap, provided: Mapping[str, str | Mapping[str, str]]
) -> dict[str | None, tuple[str | None, str | None]]:
    """Address and member of a volume's fragments; a volume in one piece has the fragment None."""
    if "nii" in provided:
        return {key: (url, None) for key, url in _by_fragment(provided["nii"]).items()}
    if "zip/nii" in provided:
        # An address and the name of a file in the archive, with a blank between them.
        texts = {
            key: text.partition(" ") for key, text in _by_fragment(provided["zip/nii"]).items()
        }
        return {key: (url, member.strip()) for key, (url, _, member) in texts.items()}
    if len(found.volumes) == 1 and all(isinstance(url, str) for url in provided.values()):
        return {None: (None, None)}
    raise SourceUnavailable(
        f"siibra keeps the map {found.name!r} as {', '.join(provided) or 'nothing'}, not as "
        "NIfTI; fetch masks of single regions instead."
    )


def _by_fragment(address: str | Mapping[str, str]) -> dict[str | None, str]:
    return {None: address} if isinstance(address, str) else dict(address.items())


def _numbers(found: SiibraMap, volume: int, fragment: str | None) -> dict[int | None, int]:
    numbers: dict[int | None, int] = {}
    for number, (name, entries) in enumerate(found.indices.items(), start=1):
        for entry in entries:
            if entry.volume != volume or (fragment and entry.fragment not in (None, fragment)):
                continue
            # A volume that is one region as a whole has no room for another.
            alone = entry.label is None or None in numbers
            others = set(numbers.values()) if alone else {numbers.get(entry.label, number)}
            if others - {number}:
                raise IntegrityError(
                    f"siibra's map {found.name!r} gives the label {entry.label} of volume "
                    f"{volume + 1} to {name!r} and to another region."
                )
            numbers[entry.label] = number
    return numbers


def _check_all_planned(found: SiibraMap, parts: Sequence[MapPart]) -> None:
    planned = {number for part in parts for number in part.numbers.values()}
    missing = [name for number, name in enumerate(found.indices, start=1) if number not in planned]
    if missing:
        raise IntegrityError(
            f"siibra's map {found.name!r} has {len(missing)} regions in volumes or fragments "
            f"that it does not have, such as {missing[0]!r}."
        )


@dataclass(eq=False)
class _Mosaic:
    """Labels while parts are added."""

    grid: Grid | None = None
    labels: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 0, 0), np.int32))
    unnamed: int = 0
    overlap: int = 0

    def add(self, data: NDArray[np.int64], grid: Grid, part: MapPart) -> None:
        """Put the regions of a part where no earlier part has one."""
        if self.grid is None:
            self.grid, self.labels = grid, np.zeros(grid.shape, dtype=np.int32)
        elif not self.grid.same_as(grid):
            raise IntegrityError(
                f"The parts of the map are on different grids ({self.grid.describe()}; "
                f"{part.name}: {grid.describe()}), so they cannot be put together."
            )
        voxels = np.flatnonzero(data)
        numbers = _renumber(data.ravel()[voxels], part.numbers)
        self.unnamed += int(np.count_nonzero(numbers == 0))
        flat = self.labels.reshape(-1)
        free = flat[voxels] == 0
        self.overlap += int(np.count_nonzero(~free & (numbers > 0)))
        flat[voxels[free]] = numbers[free]


def _renumber(values: NDArray[np.int64], numbers: Mapping[int | None, int]) -> NDArray[np.int32]:
    """Numbers of regions for values above zero; 0 for a value that has none."""
    if None in numbers:
        return np.full(values.shape, numbers[None], dtype=np.int32)
    known = np.array(sorted(label for label in numbers if label is not None), dtype=np.int64)
    meant = np.array([numbers[int(label)] for label in known], dtype=np.int32)
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[place] == values, meant[place], 0).astype(np.int32)


def build_labelled_map(
    service: SiibraService, found: SiibraMap, space: str, folder: Path
) -> LabelledMap:
    """Download the parts of a labelled map and put them together.

    Parameters
    ----------
    service : SiibraService
    found : SiibraMap
        With indices and volumes.
    space : str
        TemplateFlow name of its space.
    folder : Path
        For the parts, one at a time; nothing is left in it.

    Returns
    -------
    LabelledMap

    Raises
    ------
    IntegrityError
        A part is no readable image of labels, or the parts do not fit together.
    SpatialMismatchError
        A part lies on the standard grid of another space.
    AtlasNotFound, SourceUnavailable
        A part cannot be had.
    """
    mosaic = _Mosaic()
    for part in plan_parts(found):
        path = _fetch_part(service, found, part, folder)
        try:
            data, grid = _read_labels(path, f"{found.name} ({part.name})", space)
        finally:
            path.unlink()
        mosaic.add(data, grid, part)
    return _finish(found, mosaic)


def _finish(found: SiibraMap, mosaic: _Mosaic) -> LabelledMap:
    counts = np.bincount(mosaic.labels.ravel(), minlength=len(found.indices) + 1)[1:]
    if mosaic.grid is None or not counts.any():
        raise IntegrityError(f"siibra's map {found.name!r} has no voxel of any of its regions.")
    kept = np.flatnonzero(counts)
    names = [" ".join(name.split()) for name in found.indices]
    rows = [
        {
            "index": index,
            "name": names[place],
            "hemisphere": side_of(names[place]) or None,
            "source": _places(found, int(place)),
        }
        for index, place in enumerate(kept, start=1)
    ]
    table = pd.DataFrame(rows)
    doubled = table["name"][table["name"].duplicated()]
    if len(doubled):
        raise IntegrityError(f"siibra's map {found.name!r} names {doubled.iloc[0]!r} twice.")
    lookup = np.zeros(len(names) + 1, dtype=np.int32 if len(kept) > 32767 else np.int16)
    lookup[kept + 1] = np.arange(1, len(kept) + 1)
    result = LabelledMap(
        lookup[mosaic.labels],
        mosaic.grid,
        table,
        tuple(name for name, count in zip(names, counts, strict=True) if not count),
        mosaic.unnamed,
        mosaic.overlap,
    )
    _report(found, result)
    return result


def _report(found: SiibraMap, result: LabelledMap) -> None:
    for count, what in (
        (result.unnamed_voxels, "voxels belong to no region of the service and are left out"),
        (result.overlap_voxels, "voxels lie in several parts and belong to the first"),
        (len(result.without_voxels), "regions have no voxel and are left out"),
    ):
        if count:
            logger.warning("siibra's map %s: %d %s.", found.name, count, what)


def _places(found: SiibraMap, place: int) -> str:
    entries = list(found.indices.values())[place]
    texts = []
    for entry in entries:
        parts = [f"volume {entry.volume + 1}", entry.fragment]
        parts.append(None if entry.label is None else f"label {entry.label}")
        texts.append(", ".join(part for part in parts if part))
    return "; ".join(texts)


def _fetch_part(service: SiibraService, found: SiibraMap, part: MapPart, folder: Path) -> Path:
    if part.url is None:
        target = folder / "part.nii.gz"
        url = service.address(
            "map", "labelled_map.nii.gz", parcellation_id=found.parcellation, space_id=found.space
        )
        service.download(url, target)
        return target
    if part.member is not None:
        return _fetch_member(service, part.url, part.member, folder)
    packed = urlsplit(part.url).path.lower().endswith(".gz")
    target = folder / ("part.nii.gz" if packed else "part.nii")
    service.download(part.url, target)
    return target if packed else _with_right_ending(target)


def _fetch_member(service: SiibraService, url: str, member: str, folder: Path) -> Path:
    archive, target = folder / "part.zip", folder / "part.nii"
    try:
        service.download(url, archive)
        with zipfile.ZipFile(archive) as opened:
            if opened.getinfo(member).file_size > _MOST_MEMBER_BYTES:
                raise IntegrityError(f"{member} in {url} is too large to be an image.")
            with opened.open(member) as stream, target.open("wb") as copy:
                shutil.copyfileobj(stream, copy)
    except (zipfile.BadZipFile, KeyError, zlib.error, EOFError, RuntimeError) as error:
        target.unlink(missing_ok=True)
        raise IntegrityError(f"{url} is no archive that holds {member}.") from error
    finally:
        archive.unlink(missing_ok=True)
    return _with_right_ending(target)


def _with_right_ending(path: Path) -> Path:
    """Rename a file that is compressed although its address does not say so."""
    with path.open("rb") as stream:
        packed = stream.read(2) == _GZIP_START
    return path.rename(path.with_name(f"{path.name}.gz")) if packed else path


def _read_image(path: Path, what: str, space: str) -> tuple[NDArray[Any], Grid]:
    """Read every voxel, which also proves that the file is whole; in RAS order."""
    try:
        image = nb.load(path)
        data = np.asanyarray(image.dataobj)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        raise IntegrityError(
            f"What siibra gave for {what} is damaged or no NIfTI image; try again."
        ) from error
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise IntegrityError(f"What siibra gave for {what} has {data.ndim} dimensions, not 3.")
    grid = Grid.make(data.shape, image.affine)
    check_declared_space(space, grid, f"siibra's {what}")
    data, grid = to_canonical(data, grid)
    return data, grid


def _read_labels(path: Path, what: str, space: str) -> tuple[NDArray[np.int64], Grid]:
    data, grid = _read_image(path, what, space)
    if data.min() < 0:
        raise IntegrityError(f"siibra's {what} has negative labels.")
    return integer_labels(data, f"siibra's {what}"), grid


def save_labelled_map(result: LabelledMap, image: Path, labels: Path) -> None:
    """Write a labelled map and the table of its regions.

    Parameters
    ----------
    result : LabelledMap
    image, labels : Path
        NIfTI and TSV.
    """
    save_image(image, result.labels, result.grid.affine, result.labels.dtype)
    write_table(labels, result.table)


def fetch_region_mask(
    service: SiibraService,
    parcellation_id: str,
    space_id: str,
    region: str,
    space: str,
    target: Path,
) -> Grid:
    """Download the mask of a region, of an inner node as well.

    Parameters
    ----------
    service : SiibraService
    parcellation_id, space_id : str
    region : str
        Name as the service spells it, see
        :func:`lacuna_nipype.atlases.siibra_queries.get_region`.
    space : str
        TemplateFlow name.
    target : Path
        ``.nii.gz``, written atomically: uint8, 0 and 1, in RAS order.

    Returns
    -------
    Grid

    Raises
    ------
    IntegrityError
        What came is no mask, or an empty one.
    AtlasNotFound, SourceUnavailable, SpatialMismatchError
        The service has no such mask, fails, or gives one of another space.
    """
    url = service.address(
        "map", "labelled_map.nii.gz",
        parcellation_id=parcellation_id, space_id=space_id, region_id=region,
    )  # fmt: skip
    with atomic_path(target) as temporary:
        service.download(url, temporary)
        data, grid = _read_labels(temporary, f"mask of {region}", space)
        if data.max() != 1:
            raise IntegrityError(
                f"siibra's mask of {region} holds values up to {data.max()} and not 0 and 1."
            )
        save_image(temporary, data, grid.affine, np.uint8)
    return grid


def fetch_statistical_map(
    service: SiibraService,
    parcellation_id: str,
    space_id: str,
    region: str,
    space: str,
    target: Path,
) -> dict[str, Any]:
    """Download the statistical map of a region.

    Parameters
    ----------
    service : SiibraService
    parcellation_id, space_id : str
    region : str
        Name as the indices of the map spell it, see
        :func:`lacuna_nipype.atlases.siibra_queries.find_statistical_region`.
    space : str
        TemplateFlow name.
    target : Path
        ``.nii.gz``, written atomically: the bytes that came.

    Returns
    -------
    dict
        ``Minimum`` and ``Maximum`` over finite voxels, and ``VoxelsNotFinite``.

    Raises
    ------
    IntegrityError
        What came is no map: damaged, negative, or zero throughout.
    AtlasNotFound, SourceUnavailable, SpatialMismatchError
        The service has no such map, fails, or gives one of another space.
    """
    url = service.address(
        "map", "statistical_map.nii.gz",
        parcellation_id=parcellation_id, region_id=region, space_id=space_id,
    )  # fmt: skip
    with atomic_path(target) as temporary:
        service.download(url, temporary)
        data, _ = _read_image(temporary, f"statistical map of {region}", space)
        finite = data[np.isfinite(data)]
        if not finite.size or finite.min() < 0 or finite.max() == 0:
            raise IntegrityError(
                f"siibra's statistical map of {region} has no positive value, or negative ones."
            )
    return {
        "Minimum": float(finite.min()),
        "Maximum": float(finite.max()),
        "VoxelsNotFinite": int(data.size - finite.size),
    }


def fetch_template_on_map_grid(
    service: SiibraService, parcellation_id: str, space_id: str, space: str, target: Path
) -> Path:
    """Download the template of a space, resampled onto the voxels of a parcellation's map.

    The service calls this "resampled template" and has called it a resampled map. It holds
    intensities of the template (its T1-weighted image), not labels: no parcellation is resampled.

    Parameters
    ----------
    service : SiibraService
    parcellation_id, space_id : str
    space : str
        TemplateFlow name.
    target : Path
        ``.nii.gz``, written atomically: the bytes that came.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    IntegrityError
        What came is no image.
    AtlasNotFound, SourceUnavailable, SpatialMismatchError
        The service has no such map, fails, or gives an image of another space.
    """
    url = service.address(
        "map", "resampled_template", parcellation_id=parcellation_id, space_id=space_id
    )
    with atomic_path(target) as temporary:
        service.download(url, temporary)
        _read_image(temporary, f"template on the grid of {parcellation_id}", space)
    return target
