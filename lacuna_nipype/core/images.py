"""Volumes in a standard space, written and read back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from numpy.typing import DTypeLike, NDArray

from lacuna_nipype.core.files import atomic_path
from lacuna_nipype.core.spaces import Grid

# "Aligned to a template" in NIfTI's table of transform codes.
TEMPLATE_CODE = 4


def save_image(
    path: str | os.PathLike[str], data: NDArray[Any], affine: NDArray[Any], dtype: DTypeLike
) -> Path:
    """Write a volume in a standard space, atomically.

    Parameters
    ----------
    path : path-like
        ``.nii`` or ``.nii.gz``.
    data : array
    affine : array, shape (4, 4)
    dtype : numpy dtype
        Type on disk; no scaling is applied.

    Returns
    -------
    Path
    """
    image = nb.Nifti1Image(np.asarray(data, dtype=dtype), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, TEMPLATE_CODE)
    image.set_qform(image.affine, TEMPLATE_CODE)
    with atomic_path(path) as temporary:
        nb.save(image, temporary)
    return Path(path)


def load_map(path: str | os.PathLike[str]) -> tuple[NDArray[Any], Grid]:
    """Read a volume that this package wrote.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    data : array, three dimensions
    grid : Grid
    """
    image = nb.load(path)
    return np.asanyarray(image.dataobj), Grid.make(image.shape[:3], image.affine)
