"""From an atlas on disk to sparse region weights on a grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from lacuna_nipype.atlases.labels import RegionName, read_labels
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import atomic_path, parse_json
from lacuna_nipype.core.images import open_image, read_voxels, verify_checksum
from lacuna_nipype.core.masks import check_affine
from lacuna_nipype.core.parcels import (
    Parcels,
    SparseSampler,
    integer_labels,
    labelled_weights,
    nonzero_voxels,
)
from lacuna_nipype.core.resampling import resample_nearest
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.core.transforms import PointMap, warp_labels


@dataclass(frozen=True, eq=False)
class ParcelChange:
    """What a change of grid or space did to the regions of an atlas.

    Parameters
    ----------
    names : tuple of str
    volume_ml_before, volume_ml_after : array, shape (n_regions,), float64
        Volume in ml, of probabilities their sum.
    """

    names: tuple[str, ...]
    volume_ml_before: NDArray[np.float64]
    volume_ml_after: NDArray[np.float64]

    @property
    def lost(self) -> tuple[str, ...]:
        """Regions that had a volume and have none now."""
        gone = (self.volume_ml_before > 0) & (self.volume_ml_after == 0)
        return tuple(name for name, is_gone in zip(self.names, gone, strict=True) if is_gone)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a sidecar."""
        before, after = self.volume_ml_before, self.volume_ml_after
        known = before > 0
        percent = np.where(known, 100 * (after / np.where(known, before, 1) - 1), 0)
        largest = int(np.argmax(np.abs(percent)))
        return {
            "Regions": len(self.names),
            "RegionsLost": list(self.lost),
            "VolumeMLBefore": float(before.sum()),
            "VolumeMLAfter": float(after.sum()),
            "LargestChangePercent": float(percent[largest]),
            "LargestChangeRegion": self.names[largest],
        }


def open_atlas(path: Path) -> tuple[nb.Nifti1Image, Grid, int]:
    """Open an atlas image without reading its voxels.

    Parameters
    ----------
    path : Path
        NIfTI image: 3D (labels) or 4D (one probability map or binary volume per region).

    Returns
    -------
    image : nibabel image
        Keeps its file open, so that volumes read in order are inflated once.
    grid : Grid
    n_volumes : int
        0 for a labelled atlas.

    Raises
    ------
    ValidationError
        The file is missing, no NIfTI image of three or four dimensions, or does not say where
        its voxels are.
    """
    try:
        image = open_image(path, keep_file_open=True)
    except FileNotFoundError as error:
        raise ValidationError(f"Atlas image {path} does not exist.") from error
    except OSError as error:
        raise ValidationError(f"Atlas image {path} is not a readable NIfTI image.") from error
    if not isinstance(image, nb.Nifti1Image | nb.Nifti2Image):
        raise ValidationError(f"Atlas image {path} is a {type(image).__name__}, not NIfTI.")
    shape = image.shape
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) not in (3, 4):
        raise ValidationError(f"Atlas image {path} has {len(shape)} dimensions, not 3 or 4.")
    check_affine(image.affine, f"Atlas image {path}")
    grid = Grid.make(shape[:3], image.affine)
    return image, grid, shape[3] if len(shape) == 4 else 0


def _read(image: nb.Nifti1Image, path: Path, volume: int | None = None) -> NDArray[Any]:
    try:
        if volume is None:
            return read_voxels(image).reshape(image.shape[:3])
        return read_voxels(image, volume)
    except (OSError, ValueError) as error:
        raise ValidationError(
            f"Atlas image {path} is damaged or truncated; copy it again."
        ) from error


def _check_whole(image: nb.Nifti1Image, path: Path) -> None:
    try:
        verify_checksum(image)
    except OSError as error:
        raise ValidationError(
            f"Atlas image {path} is damaged or truncated; copy it again."
        ) from error


def _match_labels(
    regions: Sequence[RegionName], present: NDArray[np.int64], image: Path, labels: Path
) -> list[RegionName]:
    named = {region.index for region in regions}
    unnamed = [str(label) for label in present if label not in named]
    if unnamed:
        raise ValidationError(
            f"Labels file {labels} has {len(regions)} names but leaves {len(unnamed)} of the "
            f"{len(present)} labels of {image} without one: {', '.join(unnamed[:10])}"
            f"{', ...' if len(unnamed) > 10 else ''}."
        )
    in_image = set(present.tolist())
    return [region for region in regions if region.index in in_image]


def load_parcels(
    image_path: Path,
    labels_path: Path,
    target: Grid | None = None,
    point_map: PointMap | None = None,
) -> Parcels:
    """Read an atlas and bring it to a grid, see :func:`bring_parcels`."""
    return bring_parcels(image_path, labels_path, target, point_map)[0]


def bring_parcels(
    image_path: Path,
    labels_path: Path,
    target: Grid | None = None,
    point_map: PointMap | None = None,
) -> tuple[Parcels, ParcelChange]:
    """Read an atlas and bring it to a grid of the same space, or of another.

    Parameters
    ----------
    image_path : Path
        3D labels (nearest neighbour when resampled; values at or below 0 are background) or 4D
        volumes (trilinear when resampled).
    labels_path : Path
        Names, see :func:`lacuna_nipype.atlases.labels.read_labels`. The rows of the result keep
        the order of this file; names without a voxel in the image are left out.
    target : Grid, optional
        Grid to bring the atlas to; its own when left out. A region that vanishes on the way
        keeps its row.
    point_map : PointMap, optional
        From points of the target's space to points of the atlas's, where these differ.

    Returns
    -------
    Parcels
    ParcelChange

    Raises
    ------
    ValidationError
        Image or labels are unreadable, a label of the image has no name, or there is a point
        map and no grid.
    """
    if point_map is not None and target is None:
        raise ValidationError(
            f"Atlas image {image_path} is to be warped, so the grid to warp it to is needed."
        )
    image, grid, n_volumes = open_atlas(image_path)
    names = read_labels(labels_path)
    out = grid if target is None else target
    if n_volumes:
        regions = _match_volumes(names, n_volumes, image_path, labels_path)
        weights, before = _volume_weights(image, image_path, n_volumes, grid, out, point_map)
    else:
        labels = integer_labels(_read(image, image_path), f"Atlas image {image_path}")
        present, counts = np.unique(labels[labels > 0], return_counts=True)
        if len(present) == 0:
            raise ValidationError(f"Atlas image {image_path} has no label above zero.")
        regions = _match_labels(names, present, image_path, labels_path)
        index = np.array([region.index for region in regions], dtype=np.int64)
        before = counts[np.searchsorted(present, index)].astype(np.float64)
        if point_map is None:
            labels = resample_nearest(labels, grid, out)
        else:
            labels = warp_labels(labels, grid, out, point_map)
        weights = labelled_weights(labels, index)
    parcels = Parcels(
        out,
        np.array([region.index for region in regions], dtype=np.int64),
        tuple(region.name for region in regions),
        sp.csr_array(weights),
    )
    after = parcels.totals * out.voxel_volume_ml
    return parcels, ParcelChange(parcels.names, before * grid.voxel_volume_ml, after)


def _match_volumes(
    names: Sequence[RegionName], n_volumes: int, image: Path, labels: Path
) -> list[RegionName]:
    if len(names) != n_volumes:
        raise ValidationError(
            f"Labels file {labels} has {len(names)} names for the {n_volumes} volumes of {image}."
        )
    # Volumes follow the order of the numbers, not the order in which the file lists them.
    return sorted(names, key=lambda region: region.index)


def _volume_weights(
    image: nb.Nifti1Image,
    path: Path,
    n_volumes: int,
    grid: Grid,
    out: Grid,
    point_map: PointMap | None,
) -> tuple[sp.csr_array, NDArray[np.float64]]:
    """Sparse rows, one per volume, and the sum of each on the atlas's own grid.

    Only one volume is in memory at a time, as it is stored; of the others what is not zero.
    """
    moved = point_map is not None or not out.same_as(grid)
    sampler = SparseSampler.make(grid, out, point_map) if moved else None
    before, places, weights = [], [], []
    for volume in range(n_volumes):
        data, voxels, values = _read_probabilities(image, path, volume)
        before.append(float(values.sum(dtype=np.float64)))
        if sampler is not None:
            voxels, values = sampler(data, voxels)
        places.append(voxels.astype(np.int32))
        weights.append(values)
    _check_whole(image, path)
    starts = np.cumsum([0, *map(len, places)])
    rows = np.concatenate(weights)
    # One copy at a time.
    weights.clear()
    shape = (n_volumes, int(np.prod(out.shape)))
    return sp.csr_array((rows, np.concatenate(places), starts), shape=shape), np.array(before)


def _read_probabilities(
    image: nb.Nifti1Image, path: Path, volume: int
) -> tuple[NDArray[Any], NDArray[np.intp], NDArray[np.float32]]:
    """Read a volume of a 4D atlas, its voxels that are not zero, and their values.

    Values that are not finite become 0.
    """
    data = _read(image, path, volume)
    if data.dtype.kind not in "biuf":
        raise ValidationError(
            f"Atlas image {path} holds {data.dtype} values where probabilities are plain numbers."
        )
    voxels, values = nonzero_voxels(data)
    finite = np.isfinite(values)
    if not finite.all():
        data = np.where(np.isfinite(data), data, 0)
        voxels, values = voxels[finite], values[finite]
    if len(values) and values.min() < 0:
        raise ValidationError(
            f"Atlas image {path} has negative values in volume {volume + 1}; "
            "probabilities are zero or more."
        )
    return data, voxels, values.astype(np.float32)


def save_parcels(parcels: Parcels, path: Path) -> Path:
    """Write region weights to an ``.npz`` file that :func:`read_parcels` reads in milliseconds.

    Parameters
    ----------
    parcels : Parcels
    path : Path
        Target, ending in ``.npz``; written atomically.

    Returns
    -------
    Path
    """
    meta = {
        "shape": list(parcels.grid.shape),
        "affine": parcels.grid.affine.tolist(),
        "names": list(parcels.names),
    }
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            meta=np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8),
            index=parcels.index,
            data=parcels.weights.data.astype(np.float32, copy=False),
            indices=parcels.weights.indices,
            indptr=parcels.weights.indptr,
        )
    return path


def read_parcels(path: Path) -> Parcels:
    """Read what :func:`save_parcels` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        meta = parse_json(archive["meta"].tobytes())
        grid = Grid.make(meta["shape"], meta["affine"])
        weights = sp.csr_array(
            (archive["data"], archive["indices"], archive["indptr"]),
            shape=(len(meta["names"]), int(np.prod(grid.shape))),
        )
        return Parcels(grid, archive["index"], tuple(meta["names"]), weights)
