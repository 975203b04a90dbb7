"""Lesion masks read from NIfTI files."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.images import check_size, open_image, read_voxels
from lacuna_nipype.core.masks import (
    binarise_mask,
    check_affine,
    check_dimensions,
    check_shear,
    size_warnings,
)
from lacuna_nipype.core.spaces import Grid

FORMS_TOLERANCE_MM = 0.1
_GZIP = 16 + zlib.MAX_WBITS  # tells zlib to expect, and to verify, a gzip wrapper
_BLOCK_BYTES = 2**18  # fits the processor's cache


@dataclass(frozen=True, eq=False)
class Mask:
    """A validated lesion mask in memory.

    Parameters
    ----------
    data : array of bool, shape of the grid
    grid : Grid
    warnings : tuple of str
        Remarks that do not prevent the analysis.
    """

    data: NDArray[np.bool_]
    grid: Grid
    warnings: tuple[str, ...]

    @cached_property
    def n_voxels(self) -> int:
        """Lesion voxels."""
        return int(np.count_nonzero(self.data))

    @property
    def volume_ml(self) -> float:
        """Lesion volume in ml."""
        return self.n_voxels * self.grid.voxel_volume_ml


def load_mask(path: str | os.PathLike[str]) -> Mask:
    """Read and validate a lesion mask.

    Parameters
    ----------
    path : path-like
        NIfTI image; see :func:`lacuna_nipype.core.masks.binarise_mask` for what is accepted.
        The sform says where its voxels are, the qform where there is no sform.

    Returns
    -------
    Mask
        May be empty: what to do then is the caller's policy.

    Raises
    ------
    ValidationError
        The file is missing, no NIfTI image, truncated, without orientation or with axes that are
        far from perpendicular, or no binary mask.
    """
    name = f"Mask {path}"
    image = _load(Path(path), name)
    header = image.header
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise ValidationError(
            f"{name} has neither an sform nor a qform (both codes are 0), so nothing says where "
            "its voxels are; set one, for instance from the image it was drawn on."
        )
    check_dimensions(image.shape, name)
    affine = np.asarray(image.affine, dtype=np.float64)
    check_affine(affine, name)
    warnings = [*check_shear(affine, name), *_qform_warnings(header, name)]
    try:
        values = _read_values(Path(path), image)
    except (OSError, ValueError, zlib.error) as error:
        raise ValidationError(
            f"{name} is truncated or damaged (its voxels cannot be read); copy it again."
        ) from error
    data, remarks = binarise_mask(values, name)
    grid = Grid.make(data.shape, affine)
    return Mask(data, grid, (*warnings, *remarks, *size_warnings(data, grid, name)))


def _load(path: Path, name: str) -> nb.Nifti1Image:
    if not path.is_file():
        raise ValidationError(f"{name} does not exist.")
    try:
        image = open_image(path)
    except OSError as error:
        raise ValidationError(
            f"{name} is not a readable NIfTI image (damaged, truncated or another format); "
            "export it again as .nii.gz."
        ) from error
    if not isinstance(image, nb.Nifti1Image | nb.Nifti2Image):
        raise ValidationError(f"{name} is a {type(image).__name__}, not NIfTI; convert it first.")
    return image


def _qform_warnings(header: nb.Nifti1Header, name: str) -> list[str]:
    """Remark on a qform that places the voxels elsewhere than the sform does."""
    sform, sform_code = header.get_sform(coded=True)
    if sform is None or int(header["qform_code"]) == 0:
        return []
    used = f"its sform (code {int(sform_code)})"
    try:
        qform = header.get_qform()
    except (HeaderDataError, ValueError):
        return [f"{name} has a qform that cannot be read; {used} is used."]
    # The distance of two affine maps is largest at a corner of the volume.
    corners = np.array(list(product(*((0, n - 1) for n in header.get_data_shape()[:3]))))
    difference = (qform - sform)[:3]
    distances = np.linalg.norm(corners @ difference[:, :3].T + difference[:, 3], axis=1)
    if distances.max() <= FORMS_TOLERANCE_MM:
        return []
    text = (
        f"{name} has an sform and a qform that disagree, by up to {distances.max():.3g} mm; "
        f"{used} is used, its qform (code {int(header['qform_code'])}) is not."
    )
    return [text]


def _read_values(path: Path, image: nb.Nifti1Image) -> NDArray[Any]:
    """Voxel values, or whether they are 1 where all are exactly 0 or 1."""
    mask = _read_zeros_and_ones(path, image) if path.suffix == ".gz" else None
    return read_voxels(image) if mask is None else mask


def _read_zeros_and_ones(path: Path, image: nb.Nifti1Image) -> NDArray[np.bool_] | None:
    """Read a compressed mask block by block; None for any but plain zeros and ones.

    Its values are never in memory as a whole, which for masks of floats takes most of the time
    and seven eighths of the memory. Other threads run while a block is inflated.
    """
    stored = image.dataobj
    check_size(image)
    if stored.dtype.kind not in "iuf" or (stored.slope, stored.inter) != (1.0, 0.0):
        return None
    inflate = zlib.decompressobj(wbits=_GZIP)
    inflate.decompress(path.read_bytes(), stored.offset)
    mask = np.empty(int(np.prod(stored.shape, dtype=np.int64)), dtype=bool)
    step = max(1, _BLOCK_BYTES // stored.dtype.itemsize)
    for start in range(0, len(mask), step):
        part = mask[start : start + step]
        block = inflate.decompress(inflate.unconsumed_tail, part.size * stored.dtype.itemsize)
        if len(block) < part.size * stored.dtype.itemsize:
            return None  # truncated, or compressed in several parts, as bgzip does
        values = np.frombuffer(block, stored.dtype)
        np.equal(values, 1, out=part)
        # What is neither 0 nor 1, NaN included, makes a difference.
        if np.count_nonzero(values != 0) != np.count_nonzero(part):
            return None
    while inflate.unconsumed_tail and not inflate.eof:
        inflate.decompress(inflate.unconsumed_tail, _BLOCK_BYTES)
    # Only at the end of the stream has zlib compared the checksum.
    return mask.reshape(stored.shape, order="F") if inflate.eof else None
