"""What makes an array a lesion mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.spaces import Grid

BINARY_TOLERANCE = 1e-3
FEW_VOXELS = 10
# Half of a typical MNI152 brain mask (about 1,880 ml at 1 mm).
LARGE_LESION_ML = 940.0
# Programs differ on axes that are not perpendicular: nibabel follows them, a qform cannot hold
# them, and ITK (so ANTs) takes the qform instead or refuses the image. The first angle moves the
# edge of a brain by less than a millimetre, the second by about three.
SHEAR_REMARK_DEG = 0.5
SHEAR_LIMIT_DEG = 2.0
# The template's own midline strays by about as much.
MIDLINE_MM = 2.0
# A lesion belongs to one hemisphere if no more than a twentieth of it lies in the other.
ONE_SIDED_SHARE = 0.95


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


def check_shear(affine: NDArray[np.float64], name: str) -> list[str]:
    """Refuse an affine whose axes are far from perpendicular, and remark on one a little off.

    Parameters
    ----------
    affine : array, shape (4, 4)
        Voxel to world (mm), invertible.
    name : str
        How messages name the image.

    Returns
    -------
    list of str
        A remark for angles between 0.5 and 2 degrees; else empty.

    Raises
    ------
    ValidationError
        Two axes are more than 2 degrees away from a right angle.
    """
    axes = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    cosines = np.abs((axes.T @ axes)[np.triu_indices(3, k=1)])
    degrees = float(np.degrees(np.arcsin(min(1.0, cosines.max()))))
    if degrees > SHEAR_LIMIT_DEG:
        raise ValidationError(
            f"{name} has a sheared affine (its axes are {degrees:.1f} degrees away from right "
            "angles), which programs read differently; resample it onto a plain grid first."
        )
    if degrees > SHEAR_REMARK_DEG:
        text = (
            f"{name} has a slightly sheared affine (its axes are {degrees:.1f} degrees away from "
            "right angles), which is followed; other programs may place it differently."
        )
        return [text]
    return []


def check_dimensions(shape: Sequence[int], name: str) -> None:
    """Refuse an image that is not one volume.

    Parameters
    ----------
    shape : sequence of int
        Axes of length 1 after the third do not count.
    name : str
        How the message names the image.

    Raises
    ------
    ValidationError
        It has fewer or more than three dimensions.
    """
    used = list(shape)
    while len(used) > 3 and used[-1] == 1:
        used.pop()
    if len(used) != 3:
        raise ValidationError(
            f"{name} has {len(used)} dimensions (shape {'x'.join(map(str, used))}) "
            "where a lesion mask has three; give one 3D mask per file."
        )


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
    check_dimensions(data.shape, name)
    data = data.reshape(data.shape[:3], order="A")
    if data.size == 0:
        raise ValidationError(f"{name} has no voxels at all; give another file.")
    if data.dtype.kind not in "biuf":
        raise ValidationError(
            f"{name} holds {data.dtype} values where a lesion mask holds plain numbers; "
            "export it as integers."
        )
    mask, value = _lesion_voxels(data, name)
    if mask.all():
        raise ValidationError(f"{name} is lesion in every voxel; a mask needs a background.")
    if value == 255:
        return mask, [f"{name} holds 0 and 255; 255 is read as lesion."]
    return mask, []


def _lesion_voxels(data: NDArray[Any], name: str) -> tuple[NDArray[np.bool_], int]:
    """Voxels of the lesion and the value they hold, 1 or 255."""
    if data.dtype.kind == "b":
        return data, 1
    # Nearly all masks hold two exact values, which two counts tell in a tenth of the time. NaN
    # differs from 0 and from anything else, so that it does not pass.
    n_nonzero = np.count_nonzero(data != 0)
    for value in (1, 255):
        mask = data == value
        if np.count_nonzero(mask) == n_nonzero:
            return mask, value
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        what = "only NaN" if np.isnan(data).all() else "NaN or infinite values"
        raise ValidationError(f"{name} holds {what}; a lesion mask is 0 and 1 everywhere.")
    # Not np.abs: in 8 bits the absolute value of -128 is -128.
    near_zero = (data >= -BINARY_TOLERANCE) & (data <= BINARY_TOLERANCE)
    if np.all(near_zero | (np.abs(data - 1.0) <= BINARY_TOLERANCE)):
        return ~near_zero, 1
    mask = data == 255
    if np.all(near_zero | mask):
        return mask, 255
    values = np.unique(data[~near_zero])
    raise ValidationError(
        f"{name} is not binary ({len(values)} values besides 0, from {values[0]:g} to "
        f"{values[-1]:g}); threshold it to 0 and 1 first."
    )


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
        count = f"{voxels} lesion voxel{'' if voxels == 1 else 's'}"
        return [f"{name} has {count} only ({volume:.3g} ml)."]
    if volume > LARGE_LESION_ML:
        return [f"{name} covers {volume:.0f} ml, more than half of a brain."]
    return []


def lesion_points(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64]:
    """World coordinates of the lesion voxels' centres.

    Parameters
    ----------
    mask : array of bool, shape of the grid
    grid : Grid

    Returns
    -------
    array, shape (3, n_voxels)
        mm, RAS; in the order of the array's memory.
    """
    # A tenth of the time of argwhere and a matrix product.
    order: Literal["C", "F"] = "F" if mask.flags.f_contiguous else "C"
    flat = np.flatnonzero(mask.ravel(order=order))
    return _mapped(grid.affine, np.unravel_index(flat, mask.shape, order=order))


def _mapped(
    affine: NDArray[np.floating[Any]], points: Sequence[NDArray[Any]]
) -> NDArray[np.float64]:
    """Apply an affine to the three coordinates of points; (3, n) comes back.

    Zeros of the matrix cost nothing, and there are six of them as a rule.
    """
    mapped = np.empty((3, len(points[0])))
    for axis in range(3):
        mapped[axis] = affine[axis, 3]
        for factor, coordinate in zip(affine[axis, :3], points, strict=True):
            if factor:
                mapped[axis] += factor * coordinate
    return mapped


def left_share(points: NDArray[np.float64]) -> float | None:
    """Share of a lesion that lies in the left hemisphere, of what lies in either.

    Parameters
    ----------
    points : array, shape (3, n_points)
        World coordinates in mm, RAS, in a standard space: the midline is at x = 0.

    Returns
    -------
    float or None
        0 to 1; points within 2 mm of the midline belong to neither side. None when there are
        no others.
    """
    left = np.count_nonzero(points[0] < -MIDLINE_MM)
    right = np.count_nonzero(points[0] > MIDLINE_MM)
    return left / (left + right) if left + right else None


def hemisphere_of(share: float) -> str:
    """Name the hemisphere of a lesion.

    Parameters
    ----------
    share : float
        Share that lies in the left one, see :func:`left_share`.

    Returns
    -------
    str
        ``left`` or ``right`` (at least 95 % of the lesion), else ``both``.
    """
    if share >= ONE_SIDED_SHARE:
        return "left"
    return "right" if share <= 1 - ONE_SIDED_SHARE else "both"


def share_inside(points: NDArray[np.float64], region: NDArray[np.bool_], grid: Grid) -> float:
    """Share of points whose nearest voxel belongs to a region.

    Parameters
    ----------
    points : array, shape (3, n_points)
        World coordinates, mm; at least one.
    region : array of bool, shape of the grid
    grid : Grid

    Returns
    -------
    float
        0 to 1; points outside the grid are outside the region.
    """
    voxels = np.rint(_mapped(np.linalg.inv(grid.affine), tuple(points)))
    # Compared as floats: coordinates of any size are allowed.
    within = np.ones(voxels.shape[1], dtype=bool)
    for index, length in zip(voxels, grid.shape, strict=True):
        within &= (index >= 0) & (index < length)
    if not within.all():
        voxels = voxels[:, within]
    x, y, z = voxels.astype(np.intp)
    return float(np.count_nonzero(region[x, y, z]) / len(within))
