"""Images: volumes in a standard space, written and read back, and files of whatever origin."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike, NDArray

from lacuna_nipype.core.files import atomic_path, open_regular
from lacuna_nipype.core.spaces import Grid

# "Aligned to a template" in NIfTI's table of transform codes.
TEMPLATE_CODE = 4
# What nibabel raises for headers and voxels that are damaged, cut short or absurd.
_UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, OverflowError),
    *(ZeroDivisionError, MemoryError, struct.error, zlib.error, ImageFileError, HeaderDataError),
)
# Deflate cannot do better; a header that claims more was never true.
_MOST_INFLATED = 1032
_BLOCK_BYTES = 2**17


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

    Raises
    ------
    OSError
        As :func:`open_image` and :func:`read_voxels`.
    """
    image = open_image(path)
    return read_voxels(image), Grid.make(image.shape[:3], image.affine)


def open_image(path: str | os.PathLike[str], **keywords: Any) -> Any:
    """Open an image that anybody may have written; its voxels are not read.

    Parameters
    ----------
    path : path-like
    **keywords
        Of ``nibabel.load``.

    Returns
    -------
    nibabel image
        Of whatever format.

    Raises
    ------
    OSError
        The file is missing (FileNotFoundError), is no file, or no image that nibabel reads.
    """
    open_regular(path).close()
    try:
        image = nb.load(path, **keywords)
        shape = getattr(image, "shape", ())
        if min(shape, default=1) < 1:
            raise ValueError(f"a shape of {shape}")
    except _UNREADABLE as error:
        raise OSError(f"{path} is no image that can be read: {error}") from error
    return image


def read_voxels(
    image: Any, volume: int | None = None, dtype: DTypeLike | None = None
) -> NDArray[Any]:
    """Read the values of an image that was opened with :func:`open_image`.

    Parameters
    ----------
    image : nibabel image
    volume : int, optional
        One volume along the fourth axis; all without.
    dtype : numpy dtype, optional
        Of the result.

    Returns
    -------
    array
        Scaled as the header says.

    Raises
    ------
    OSError
        The file is damaged, or too short for what its header claims. Nothing of the size that
        an absurd header claims is ever allocated.
    """
    path = Path(image.get_filename() or "")
    try:
        check_size(image)
        if volume is not None:
            return np.asanyarray(image.dataobj[..., volume], dtype=dtype)
        if path.name.endswith(".nii.gz"):
            return _read_checked(path, image, dtype)
        return np.asanyarray(image.dataobj, dtype=dtype)
    except _UNREADABLE as error:
        raise OSError(f"{path} is damaged or truncated: {error}") from error


def check_size(image: Any) -> None:
    """Refuse an image that claims more voxels than its file can hold.

    Parameters
    ----------
    image : nibabel image
        From :func:`open_image`.

    Raises
    ------
    OSError
        Its header is absurd, or the file truncated.
    """
    path, stored = Path(image.get_filename() or ""), image.dataobj
    inflated = {".gz": _MOST_INFLATED, ".nii": 1}.get(path.suffix)
    if inflated is None or not hasattr(stored, "offset"):
        return
    claimed = math.prod(map(int, image.shape)) * stored.dtype.itemsize + int(stored.offset)
    if claimed > inflated * path.stat().st_size:
        raise OSError(f"{path} is too short for the {claimed} bytes that its header claims")


def verify_checksum(image: Any) -> None:
    """Read a compressed image to its end, where its checksum is compared.

    :func:`read_voxels` does so itself unless it reads single volumes.

    Parameters
    ----------
    image : nibabel image
        From :func:`open_image`.

    Raises
    ------
    OSError
        The file is damaged.
    """
    path = Path(image.get_filename() or "")
    if not path.name.endswith(".nii.gz"):
        return
    try:
        with gzip.open(path) as stream:
            while stream.read(_BLOCK_BYTES):
                pass
    except _UNREADABLE as error:
        raise OSError(f"{path} is damaged or truncated: {error}") from error


def _read_checked(path: Path, image: Any, dtype: DTypeLike | None) -> NDArray[Any]:
    """Read on to the end of a compressed file, where its checksum is compared."""
    with gzip.open(path) as stream:
        values = np.asanyarray(type(image).from_stream(stream).dataobj, dtype=dtype)
        while stream.read(_BLOCK_BYTES):
            pass
    return values
