"""Standard spaces and voxel grids, compared in world coordinates (mm, RAS)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import cast

import nibabel as nb
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.data import load_json

GRID_TOLERANCE_MM = 1e-3


@dataclass(frozen=True, eq=False)
class Grid:
    """A voxel lattice in world space.

    Parameters
    ----------
    shape : tuple of int
        Number of voxels along each of the three axes.
    affine : array, shape (4, 4), float64
        Voxel indices to world coordinates (mm, RAS).
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @classmethod
    def make(cls, shape: Sequence[int], affine: ArrayLike) -> Grid:
        """Build a grid from anything that looks like a shape and an affine."""
        return cls(
            (int(shape[0]), int(shape[1]), int(shape[2])), np.asarray(affine, dtype=np.float64)
        )

    @cached_property
    def voxel_sizes(self) -> NDArray[np.float64]:
        """Edge lengths of a voxel along the array axes, mm, shape (3,)."""
        return np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))

    @cached_property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @cached_property
    def canonical(self) -> Grid:
        """The same lattice with axes permuted and flipped to the nearest RAS order."""
        orientation = nb.io_orientation(self.affine)
        affine = self.affine @ nb.orientations.inv_ornt_aff(orientation, self.shape)
        shape = [0, 0, 0]
        for axis, (target, _) in enumerate(orientation):
            shape[int(target)] = self.shape[axis]
        return Grid.make(shape, affine)

    @property
    def resolution_label(self) -> str | None:
        """Value of the BIDS ``res`` entity: whole millimetres, None for any other voxel size."""
        sizes = self.voxel_sizes
        whole = round(float(sizes[0]))
        if whole >= 1 and np.allclose(sizes, whole, atol=GRID_TOLERANCE_MM):
            return str(whole)
        return None

    def same_as(self, other: Grid, *, tolerance_mm: float = GRID_TOLERANCE_MM) -> bool:
        """Tell whether shape and affine agree (array order included)."""
        return self.shape == other.shape and bool(
            np.allclose(self.affine, other.affine, atol=tolerance_mm, rtol=0)
        )

    def same_lattice(self, other: Grid, *, tolerance_mm: float = GRID_TOLERANCE_MM) -> bool:
        """Tell whether both describe the same voxels, in whatever axis order or direction."""
        return self.canonical.same_as(other.canonical, tolerance_mm=tolerance_mm)

    def describe(self) -> str:
        """Say shape, voxel size and first voxel in RAS order, for messages."""
        grid = self.canonical
        size = " x ".join(f"{value:g}" for value in np.round(grid.voxel_sizes, 3))
        origin = ", ".join(f"{value:g}" for value in np.round(grid.affine[:3, 3], 3))
        return f"{'x'.join(map(str, grid.shape))} voxels of {size} mm, first at {origin}"


def _catalogue() -> dict[str, dict]:
    return load_json("spaces.json")["spaces"]


def known_spaces() -> tuple[str, ...]:
    """Names of the standard spaces this package knows the grids of."""
    return tuple(_catalogue())


def canonical_space(name: str) -> str:
    """Translate a space name or one of its aliases to the TemplateFlow name.

    Parameters
    ----------
    name : str
        Name as found in an entity, a sidecar, an HDF5 attribute or a flag; case is ignored.

    Returns
    -------
    str
        TemplateFlow name, such as ``MNI152NLin6Asym``.

    Raises
    ------
    ValidationError
        The name is not known; the message offers the nearest ones.
    """
    spellings = {}
    for space, entry in _catalogue().items():
        for spelling in (space, *entry["aliases"]):
            spellings[spelling.lower()] = space
    # JSON files may hold anything, a number or a list.
    if not isinstance(name, str):
        raise ValidationError(
            "A space is named by a text, such as MNI152NLin6Asym; this is of the type "
            f"{type(name).__name__}."
        )
    found = spellings.get(name.strip().lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), spellings, n=1)
        hint = f" Did you mean {spellings[near[0]]}?" if near else ""
        raise ValidationError(
            f"Space {name!r} is not one of the supported standard spaces "
            f"({', '.join(known_spaces())}).{hint}"
        )
    return found


def declared_space(value: object, source: Path) -> str:
    """Translate a space that a file names; what is wrong with it is said of that file.

    Parameters
    ----------
    value : object
        What stands under the file's key, mostly a text.
    source : Path
        File that declares it.

    Returns
    -------
    str
        TemplateFlow name; see :func:`canonical_space`.

    Raises
    ------
    ValidationError
        It is no text, or no space that is known.
    """
    try:
        return canonical_space(cast(str, value))
    except ValidationError as error:
        raise ValidationError(f"{source}: {error}") from error


def same_space(first: str, second: str) -> bool:
    """Tell whether two space names mean one anatomy (2009a, 2009b and 2009c do)."""
    catalogue = _catalogue()
    families = [catalogue[canonical_space(name)]["family"] for name in (first, second)]
    return families[0] == families[1]


def is_warpable(space: str) -> bool:
    """Tell whether images can be taken from this space to others (from MNIColin27: no)."""
    return bool(_catalogue()[canonical_space(space)].get("warpable", True))


def _grid_of_entry(entry: dict) -> Grid:
    affine = np.diag([entry["voxel_size"]] * 3 + [1.0])
    affine[:3, 3] = entry["origin"]
    return Grid.make(entry["shape"], affine)


def template_grids(space: str) -> list[Grid]:
    """All catalogued grids of a space, in RAS order, finest first."""
    return list(_grids_of(canonical_space(space)))


@cache
def _grids_of(space: str) -> tuple[Grid, ...]:
    # Asked for every mask of a cohort.
    return tuple(_grid_of_entry(entry) for entry in _catalogue()[space]["grids"])


def template_grid(space: str, resolution: float) -> Grid:
    """Grid of a space's standard volume at a resolution.

    Parameters
    ----------
    space : str
        Name or alias of a standard space.
    resolution : float
        Voxel size in mm.

    Returns
    -------
    Grid
        In RAS order. The 2009a and 2009b variants share the anatomy of 2009c and borrow its
        grid at resolutions of which they have no volume of their own.

    Raises
    ------
    ValidationError
        There is no such volume.
    """
    space = canonical_space(space)
    family = _catalogue()[space]["family"]
    relatives = [name for name, entry in _catalogue().items() if entry["family"] == family]
    for name in (space, *relatives):
        for grid in template_grids(name):
            if np.allclose(grid.voxel_sizes, resolution, atol=GRID_TOLERANCE_MM):
                return grid
    raise ValidationError(f"There is no standard {resolution:g} mm grid of {space}.")


def grid_of_size(space: str, voxel_size: float) -> Grid:
    """Grid of a space at any voxel size.

    Parameters
    ----------
    space : str
        Name or alias of a standard space.
    voxel_size : float
        mm.

    Returns
    -------
    Grid
        In RAS order: the standard grid where there is one of this size, else a lattice over the
        field of view of the 1 mm grid, with the same centre.
    """
    try:
        return template_grid(space, voxel_size)
    except ValidationError:
        whole = template_grid(space, 1)
    shape = np.ceil(np.array(whole.shape) / voxel_size - GRID_TOLERANCE_MM).astype(int)
    affine = np.diag([voxel_size] * 3 + [1.0])
    centre = whole.affine[:3, 3] + (np.array(whole.shape) - 1) / 2
    affine[:3, 3] = centre - voxel_size * (shape - 1) / 2
    return Grid.make(shape.tolist(), affine)


def spaces_of_grid(grid: Grid) -> tuple[str, ...]:
    """Names of the spaces one of whose standard grids has exactly these voxels.

    Grids on which images of several spaces are common name no space: SPM's bounding box at 1 mm,
    for one, which is Colin27's own grid.
    """
    return tuple(
        space
        for space, content in _catalogue().items()
        if any(
            grid.same_lattice(_grid_of_entry(entry))
            for entry in content["grids"]
            if entry.get("distinctive", True)
        )
    )


def check_declared_space(space: str, grid: Grid, what: str) -> str:
    """Refuse a declared space that the voxel grid contradicts.

    A grid that is a standard grid of other spaces and not of the declared one (nor of its
    family) is a contradiction; a grid that is nobody's standard grid says nothing.

    Parameters
    ----------
    space : str
        Declared space (name or alias).
    grid : Grid
        Grid of the image.
    what : str
        How the message names the image.

    Returns
    -------
    str
        Canonical name of the declared space.

    Raises
    ------
    SpatialMismatchError
        The grid belongs to another space.
    """
    space = canonical_space(space)
    owners = spaces_of_grid(grid)
    if owners and not any(same_space(space, owner) for owner in owners):
        raise SpatialMismatchError(
            f"{what} is declared to be in {space} but lies on the standard grid of "
            f"{' / '.join(owners)} ({grid.describe()}); correct the declaration or the image."
        )
    return space
