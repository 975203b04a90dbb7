"""What makes an array a lesion mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.spaces import Grid

BINARY_TOLERANCE = 1e-3
FEW_VOXELS = 10
# Half of a typical MNI152 brain mask (about 1,880 ml at 1 mm).
LARGE_LESION_ML = 940.0


def check_affine(affine: NDArray[np.float64], name: str) -> None:
    """Refuse an affine that cannot place voxels in the brain.

    Parameters
    ----------
    affine : array, shape (4, 4)
        Voxel to world (mm).
    name : str
        How the message names the image.

    Raises
    ------
    ValidationError
        The affine is not finite, not invertible, or has voxels outside 0.1 to 20 mm.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ValidationError(
            f"{name} has an affine with values that are not finite; repair the header."
        )
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if sizes.min() < 0.1 or sizes.max() > 20:
        raise ValidationError(
            f"{name} has voxels of {' x '.join(f'{s:.3g}' for s in sizes)} mm, "
            "outside the 0.1 to 20 mm of a brain image; repair the header."
        )
    if abs(np.linalg.det(affine[:3, :3])) < 0.5 * float(np.prod(sizes)):
        raise ValidationError(f"{name} has an affine whose axes collapse; repair the header.")


def binarise_mask(data: NDArray[Any], name: str) -> tuple[NDArray[np.bool_], list[str]]:
    """Turn an image array into a boolean lesion mask, or say why it is none.

    Two values are allowed, 0 and 1 (each to within 1e-3, as float rounding leaves them) or 0
    and 255. An array of zeros only is a valid, empty mask: what to do with it is the caller's
    policy.

    Parameters
    ----------
    data : array, shape (x, y, z) or (x, y, z, 1)
        Image values.
    name : str
        How messages name the image.

    Returns
    -------
    mask : array of bool, shape (x, y, z)
    warnings : list of str
        Oddities that do not prevent the analysis.

    Raises
    ------
    ValidationError
        The array has another number of dimensions, values that are not finite or not binary,
        or no background.
    """
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise ValidationError(
            f"{name} has {data.ndim} dimensions (shape {'x'.join(map(str, data.shape))}) "
            "where a lesion mask has three; give one 3D mask per file."
        )
    if data.size == 0:
        raise ValidationError(f"{name} has no voxels at all; give another file.")
    if data.dtype.kind not in "biuf":
        raise ValidationError(
            f"{name} holds {data.dtype} values where a lesion mask holds plain numbers; "
            "export it as integers."
        )
    warnings: list[str] = []
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        what = "only NaN" if np.isnan(data).all() else "NaN or infinite values"
        raise ValidationError(f"{name} holds {what}; a lesion mask is 0 and 1 everywhere.")
    if data.dtype.kind == "b":
        mask = data
    else:
        # Not np.abs: in 8 bits the absolute value of -128 is -128.
        near_zero = (data >= -BINARY_TOLERANCE) & (data <= BINARY_TOLERANCE)
        if np.all(near_zero | (np.abs(data - 1.0) <= BINARY_TOLERANCE)):
            mask = ~near_zero
        elif np.all(near_zero | (data == 255)):
            mask = data == 255
            warnings.append(f"{name} holds 0 and 255; 255 is read as lesion.")
        else:
            values = np.unique(data[~near_zero])
            raise ValidationError(
                f"{name} is not binary ({len(values)} values besides 0, from {values[0]:g} to "
                f"{values[-1]:g}); threshold it to 0 and 1 first."
            )
    if mask.all():
        raise ValidationError(f"{name} is lesion in every voxel; a mask needs a background.")
    return mask, warnings


def size_warnings(mask: NDArray[np.bool_], grid: Grid, name: str) -> list[str]:
    """Remarks on lesions that are suspiciously small or large.

    Parameters
    ----------
    mask : array of bool, shape of the grid
    grid : Grid
    name : str
        How the remarks name the image.

    Returns
    -------
    list of str
        Empty for ordinary lesions and for empty masks.
    """
    voxels = int(np.count_nonzero(mask))
    volume = voxels * grid.voxel_volume_ml
    if 0 < voxels < FEW_VOXELS:
        return [f"{name} has {voxels} lesion voxels only ({volume:.3g} ml)."]
    if volume > LARGE_LESION_ML:
        return [f"{name} covers {volume:.0f} ml, more than half of a brain."]
    return []
