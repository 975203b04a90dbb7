"""Voxel grids as MRtrix3 sees them: axes near RAS, and positions rounded to voxels its way.

Which voxel a point belongs to, when it lies on the border of two, depends on the direction of the
grid's axes and on every rounding on the way. Nothing here is a matter of taste: it is what
MRtrix3 3.0.3 does (core/header.cpp, core/axes.cpp, core/transform.h, core/file/nifti_utils.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import nibabel as nb
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError

# Relative difference from which MRtrix trusts the transform and not the header's voxel sizes.
_SPACING_TOLERANCE = 1e-5
# Square of a quaternion's first number below which MRtrix takes it for 0.
_SMALL_QUATERNION = 1e-7


@dataclass(frozen=True, eq=False)
class MrtrixGrid:
    """A voxel grid whose axes were permuted and flipped to the nearest RAS order.

    Parameters
    ----------
    shape : tuple of int
        Voxels along each axis, in near-RAS order.
    spacing : array, shape (3,), float64
        Voxel sizes in mm, in that order.
    directions : array, shape (3, 3), float64
        Unit vectors of the axes, one per column.
    origin : array, shape (3,), float64
        World position (mm, RAS) of the centre of the first voxel.
    axes : tuple of int
        Axis of the stored image for each of these axes.
    flips : tuple of bool
        Whether that axis of the stored image runs the other way.
    """

    shape: tuple[int, int, int]
    spacing: NDArray[np.float64]
    directions: NDArray[np.float64]
    origin: NDArray[np.float64]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @property
    def n_voxels(self) -> int:
        """Number of voxels."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @cached_property
    def voxel_to_world(self) -> NDArray[np.float64]:
        """Affine of voxel centres, shape (4, 4)."""
        affine = np.eye(4)
        affine[:3, :3] = self.directions * self.spacing
        affine[:3, 3] = self.origin
        return affine

    @cached_property
    def world_to_voxel(self) -> NDArray[np.float64]:
        """Inverse of :attr:`voxel_to_world`, shape (3, 4), double precision, to the last bit."""
        return _inverse(self.voxel_to_world)

    @property
    def world_to_voxel_single(self) -> NDArray[np.float32]:
        """The same in single precision, in which tckmap and tckedit look voxels up."""
        return np.ascontiguousarray(self.world_to_voxel, dtype=np.float32)

    def crop(self, first: NDArray[np.int64], shape: tuple[int, int, int]) -> MrtrixGrid:
        """Cut a box out of the grid; the origin moves axis by axis, in double precision."""
        origin = self.origin.copy()
        for axis in range(3):
            origin += int(first[axis]) * self.spacing[axis] * self.directions[:, axis]
        return MrtrixGrid(
            shape, self.spacing, self.directions, origin, (0, 1, 2), (False, False, False)
        )

    def from_stored(self, data: NDArray[Any]) -> NDArray[Any]:
        """Bring an array from the image's own order of axes to this grid's; a view."""
        view = data.transpose(self.axes)
        return view[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)]

    def to_stored(self, data: NDArray[Any]) -> NDArray[Any]:
        """Bring an array from this grid's order of axes back to the image's; a view."""
        steps = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        inverse = np.argsort(self.axes)
        return data[steps].transpose(inverse)


def make_mrtrix_grid(
    shape: tuple[int, int, int], affine: NDArray[np.float64], pixdim: NDArray[np.float64]
) -> MrtrixGrid:
    """Reorder a grid's axes as MRtrix does when it opens an image.

    Parameters
    ----------
    shape : tuple of int
        Of the image as stored.
    affine : array, shape (4, 4), float64
        Voxel indices to world (mm, RAS), as in the header.
    pixdim : array, shape (3,)
        Voxel sizes of the header in mm; they win over the lengths of the affine's columns unless
        these differ by more than 1e-5 of their size.

    Returns
    -------
    MrtrixGrid
    """
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    directions = affine[:3, :3] / lengths
    sizes = np.asarray(pixdim, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        agree = np.abs(sizes / lengths - 1) <= _SPACING_TOLERANCE
    spacing = sizes if agree.all() else lengths
    return _realign(shape, directions, spacing, affine[:3, 3].astype(np.float64))


def _realign(
    shape: tuple[int, int, int],
    directions: NDArray[np.float64],
    spacing: NDArray[np.float64],
    origin: NDArray[np.float64],
) -> MrtrixGrid:
    """Permute and flip the axes of a grid to the nearest RAS order."""
    axes = _nearest_axes(directions)
    directions = directions.copy()
    flipped = [False, False, False]
    for scanner_axis, axis in enumerate(axes):
        if directions[scanner_axis, axis] < 0:
            flipped[axis] = True
    for axis in range(3):
        if flipped[axis]:
            directions[:, axis] = -directions[:, axis]
            length = (shape[axis] - 1) * spacing[axis]
            origin = origin - length * directions[:, axis]
    order = list(axes)
    first, second, third = (shape[axis] for axis in axes)
    return MrtrixGrid(
        (first, second, third),
        spacing[order],
        np.ascontiguousarray(directions[:, order]),
        origin,
        axes,
        (flipped[axes[0]], flipped[axes[1]], flipped[axes[2]]),
    )


def grid_of_image(image: nb.Nifti1Image, name: str) -> MrtrixGrid:
    """Grid of a NIfTI image, from the transform that MRtrix uses.

    Parameters
    ----------
    image : nibabel.Nifti1Image
        Three dimensions.
    name : str
        How the message names the image.

    Returns
    -------
    MrtrixGrid
        From the sform if its code is set, else from the qform.

    Raises
    ------
    ValidationError
        The image is not three-dimensional NIfTI, or has neither transform.
    """
    header = image.header
    if not isinstance(header, nb.Nifti1Header) or len(image.shape) < 3:
        raise ValidationError(f"{name} is not a NIfTI volume; convert it to one.")
    shape = (int(image.shape[0]), int(image.shape[1]), int(image.shape[2]))
    pixdim = np.abs(header["pixdim"][1:4].astype(np.float64))
    if int(header["sform_code"]) > 0:
        return make_mrtrix_grid(shape, header.get_sform(), pixdim)
    if int(header["qform_code"]) <= 0:
        raise ValidationError(
            f"{name} has neither sform nor qform, so its place in space is not known; write it "
            "again with the transform that it belongs to."
        )
    offsets = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return _realign(shape, _qform_directions(header), pixdim, np.array(offsets))


def _qform_directions(header: nb.Nifti1Header) -> NDArray[np.float64]:
    """Make unit vectors of the axes, one per column, from the quaternion of a header.

    Of a unit quaternion, NIfTI stores three numbers in single precision. MRtrix takes the fourth
    for 0 below another limit than nibabel, and does not make the length 1 above it.
    """
    b, c, d = (float(header[f"quatern_{letter}"]) for letter in "bcd")
    squared = (b * b + d * d) + c * c
    if 1 - squared < _SMALL_QUATERNION:
        a, b, c, d = 0.0, *(value / np.sqrt(squared) for value in (b, c, d))
    else:
        a = float(np.sqrt(1 - squared))
    # Rotation by a unit quaternion (Eigen 3.4, Geometry/Quaternion.h).
    directions = np.array(
        [
            [1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)],
        ]
    )
    if float(header["pixdim"][0]) < 0:
        directions[:, 2] = -directions[:, 2]
    return directions


def _nearest_axes(directions: NDArray[np.float64]) -> tuple[int, int, int]:
    """Image axis nearest to each scanner axis; one that is taken yields to the free one."""
    axes = [int(np.argmax(np.abs(row))) for row in directions]

    def free(one: int, other: int) -> int:
        return next(axis for axis in range(3) if axis not in (one, other))

    if axes[0] == axes[1]:
        axes[1] = free(axes[0], axes[2])
    if axes[0] == axes[2]:
        axes[2] = free(axes[0], axes[1])
    if axes[1] == axes[2]:
        axes[2] = free(axes[0], axes[1])
    return axes[0], axes[1], axes[2]


def _inverse(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert by cofactors, with every sum in the order of Eigen 3.4 on x86-64.

    A point on the border of two voxels belongs to one or the other by the last bit.
    """
    rows = [[float(value) for value in row] for row in affine[:3]]

    def cofactor(i: int, j: int) -> float:
        below, under = rows[(i + 1) % 3], rows[(i + 2) % 3]
        right, next_right = (j + 1) % 3, (j + 2) % 3
        return below[right] * under[next_right] - below[next_right] * under[right]

    terms = [cofactor(i, 0) * rows[i][0] for i in range(3)]
    scale = 1.0 / ((terms[0] + terms[1]) + terms[2])
    inverse = np.empty((3, 4))
    for i in range(3):
        a, b, c = (cofactor(j, i) * scale for j in range(3))
        x, y, z = -a * rows[0][3], -b * rows[1][3], -c * rows[2][3]
        # Eigen works on the first two rows at once, and so from left to right.
        inverse[i] = a, b, c, (x + y) + z if i < 2 else x + (y + z)
    return inverse


def as_mask(data: NDArray[Any]) -> NDArray[np.bool_]:
    """Which voxels MRtrix takes for inside when it reads an image as a mask.

    Parameters
    ----------
    data : array

    Returns
    -------
    array of bool
        Values that round (halves away from zero) to something other than 0; what is not finite
        is outside.
    """
    with np.errstate(invalid="ignore"):
        # No abs(): it leaves the smallest integer of a type negative.
        inside = (data >= 0.5) | (data <= -0.5)
    if data.dtype.kind == "f":
        inside &= np.isfinite(data)
    return inside
