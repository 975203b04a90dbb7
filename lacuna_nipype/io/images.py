"""Lesion masks read from NIfTI files."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nb
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.masks import binarise_mask, check_affine, size_warnings
from lacuna_nipype.core.spaces import Grid


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

    @property
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

    Returns
    -------
    Mask
        May be empty: what to do then is the caller's policy.

    Raises
    ------
    ValidationError
        The file is missing, no NIfTI image, truncated, without orientation, or no binary mask.
    """
    name = f"Mask {path}"
    image = _load(Path(path), name)
    header = image.header
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise ValidationError(
            f"{name} has neither an sform nor a qform (both codes are 0), so nothing says where "
            "its voxels are; set one, for instance from the image it was drawn on."
        )
    if image.affine is None or len(image.shape) < 3:
        raise ValidationError(f"{name} has {len(image.shape)} dimensions, not three.")
    affine = np.asarray(image.affine, dtype=np.float64)
    check_affine(affine, name)
    try:
        values = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValidationError(
            f"{name} is truncated or damaged (its voxels cannot be read); copy it again."
        ) from error
    data, warnings = binarise_mask(values, name)
    grid = Grid.make(data.shape, affine)
    return Mask(data, grid, (*warnings, *size_warnings(data, grid, name)))


def _load(path: Path, name: str) -> nb.Nifti1Image:
    if not path.is_file():
        raise ValidationError(f"{name} does not exist.")
    try:
        image = nb.load(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ValidationError(
            f"{name} is not a readable NIfTI image (damaged, truncated or another format); "
            "export it again as .nii.gz."
        ) from error
    if not isinstance(image, nb.Nifti1Image | nb.Nifti2Image):
        raise ValidationError(f"{name} is a {type(image).__name__}, not NIfTI; convert it first.")
    return image
