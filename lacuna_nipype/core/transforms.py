"""Moving voxel data between spaces: masks, labels and maps through ITK transforms.

A transform from A to B resamples images of A on grids of B, so it maps points of B to points of
A. ITK's files hold it in LPS, everything here is in RAS, and in mm. A displacement field is
interpolated linearly, as ITK does, and displaces nothing outside its grid.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.files import fingerprint, open_regular
from lacuna_nipype.core.images import open_image, read_voxels
from lacuna_nipype.core.resampling import TIE_TOLERANCE, round_indices, to_canonical
from lacuna_nipype.core.spaces import Grid, same_space, spaces_of_grid

COMPOSITE_SUFFIXES = (".h5",)
AFFINE_SUFFIXES = (".txt", ".tfm", ".mat")
FIELD_SUFFIXES = (".nii.gz", ".nii")

# Bounding box of the brain in MNI152 space (mm), of FSL's mask at 1 mm.
BRAIN_BOX = np.array([[-70.0, -106.0, -72.0], [72.0, 73.0, 81.0]])

_COMPOSITE, _AFFINE, _FIELD = (
    "CompositeTransform",
    "AffineTransform",
    "DisplacementFieldTransform",
)
# The target that a file's name gives: TemplateFlow's, or fMRIPrep's.
_TARGET_IN_NAME = re.compile(
    r"^tpl-([a-zA-Z0-9]+)_(?:.*_)?from-|(?:^|_)to-([a-zA-Z0-9]+)_(?:.*_)?xfm\."
)
# Points taken through a transform at a time: about 60 MB of coordinates.
POINTS_AT_A_TIME = 500_000
# Edge in voxels of the blocks of a field whose extremes are kept.
_BLOCK = 8
# So many blocks along an axis are compared one by one.
_MOST_BLOCKS = 6
# Edge in mm of the pieces of a grid that are looked at as a whole.
_CELL_MM = 8.0
_MARGIN = 1e-3
_INVERSE_TOLERANCE_MM = 1e-4
# What libraries raise for files that are damaged or of another kind; NotImplementedError is
# scipy's for a .mat file of MATLAB 7.3, and nitransforms' for a transform that is no affine.
_UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(NotImplementedError, OverflowError, MemoryError, RuntimeError),
    *(ImageFileError, HeaderDataError, zlib.error),
)

Points = NDArray[np.floating[Any]]


def _interval(matrix: Points, low: Points, high: Points) -> tuple[Points, Points]:
    """Boxes that contain the images of boxes under an affine."""
    centre = (low + high) / 2 @ matrix[:3, :3].T + matrix[:3, 3]
    half = (high - low) / 2 @ np.abs(matrix[:3, :3]).T
    return centre - half, centre + half


@dataclass(frozen=True, eq=False)
class AffineStep:
    """An affine map of points.

    Parameters
    ----------
    matrix : array, shape (4, 4), float64
        Invertible; mm, RAS.
    """

    matrix: NDArray[np.float64]

    def __call__(self, points: Points) -> Points:
        """Map points, shape (n, 3)."""
        return points @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def bounds(self, low: Points, high: Points) -> tuple[Points, Points]:
        """Boxes, shape (n, 3) each, that contain the images of boxes."""
        return _interval(self.matrix, low, high)

    def inverse_at(self, point: Points) -> Points | None:
        """Point, shape (3,), that is mapped to the given one."""
        inverse: Points = np.linalg.inv(self.matrix)
        return inverse[:3, :3] @ point + inverse[:3, 3]


@dataclass(frozen=True, eq=False)
class FieldStep:
    """A field of displacements.

    Parameters
    ----------
    grid : Grid
        Where the field is known; points elsewhere stay where they are.
    displacements : array, shape (3, x, y, z), float32
        mm along the three axes of the world, RAS.
    """

    grid: Grid
    displacements: NDArray[np.float32]

    def __call__(self, points: Points) -> Points:
        """Map points, shape (n, 3)."""
        from scipy.ndimage import map_coordinates

        index = self._index(points)
        inside = self._inside(index)
        moved = points.copy()
        if inside.any():
            which = slice(None) if inside.all() else inside
            coordinates = np.ascontiguousarray(index[which].T)
            for axis in range(3):
                # In the outer half of the border's voxels the border's displacement holds.
                moved[which, axis] += map_coordinates(
                    self.displacements[axis], coordinates, output=np.float64, order=1,
                    mode="nearest", prefilter=False,
                )  # fmt: skip
        return moved

    def covers(self, points: Points) -> NDArray[np.bool_]:
        """Tell which points, shape (n, 3), lie in the field."""
        return self._inside(self._index(points))

    def _index(self, points: Points) -> Points:
        inverse = self._world_to_index
        return points @ inverse[:3, :3].T + inverse[:3, 3]

    def _inside(self, index: Points) -> NDArray[np.bool_]:
        shape = np.array(self.grid.shape)
        return np.asarray(np.all((index >= -0.5) & (index < shape - 0.5), axis=1))

    @cached_property
    def _world_to_index(self) -> Points:
        return np.linalg.inv(self.grid.affine)

    @cached_property
    def _extremes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and largest displacement in each block of voxels, shape (3, blocks)."""
        low = high = self.displacements
        for axis in (1, 2, 3):
            starts = np.arange(0, low.shape[axis], _BLOCK)
            low = np.minimum.reduceat(low, starts, axis=axis)
            high = np.maximum.reduceat(high, starts, axis=axis)
        return low.astype(np.float64), high.astype(np.float64)

    def bounds(self, low: Points, high: Points) -> tuple[Points, Points]:
        """Boxes, shape (n, 3) each, that contain the images of boxes.

        An interpolated displacement lies between the extremes of the voxels around the point,
        hence between those of all blocks that the box touches; outside the field it is zero.
        """
        first, last = _interval(self._world_to_index, low, high)
        shape = np.array(self.grid.shape)
        leaves = np.any((first < -0.5 + _MARGIN) | (last > shape - 0.5 - _MARGIN), axis=1)
        block_first = np.clip(np.floor(first).astype(np.intp), 0, shape - 1) // _BLOCK
        block_last = np.clip(np.floor(last).astype(np.intp) + 1, 0, shape - 1) // _BLOCK
        least, largest = self._extremes_between(block_first, block_last)
        least[leaves] = np.minimum(least[leaves], 0)
        largest[leaves] = np.maximum(largest[leaves], 0)
        return low + least, high + largest

    def _extremes_between(
        self, first: NDArray[np.intp], last: NDArray[np.intp]
    ) -> tuple[Points, Points]:
        lows, highs = self._extremes
        least = np.full(first.shape, np.inf)
        largest = np.full(first.shape, -np.inf)
        # Boxes that a wild field has blown up get the extremes of the whole field.
        wide = np.any(last - first >= _MOST_BLOCKS, axis=1)
        least[wide], largest[wide] = lows.min(axis=(1, 2, 3)), highs.max(axis=(1, 2, 3))
        spans = (last - first)[~wide].max(axis=0, initial=0) + 1
        for offset in itertools.product(*map(range, spans.tolist())):
            i, j, k = np.minimum(first + offset, last).T
            least = np.minimum(least, lows[:, i, j, k].T)
            largest = np.maximum(largest, highs[:, i, j, k].T)
        return least, largest

    def inverse_at(self, point: Points) -> Points | None:
        """Point, shape (3,), that is displaced to the given one; None where none was found.

        Fixed-point iteration, which converges where the field stretches by less than its own
        length, and Newton's method from its end where it does not.
        """
        found = point
        for _ in range(100):
            rest = self(found[None])[0] - point
            if np.linalg.norm(rest) < _INVERSE_TOLERANCE_MM:
                return found
            found = found - rest
        return self._newton(point, point)

    def _newton(self, start: Points, point: Points) -> Points | None:
        found, rest = start, self(start[None])[0] - point
        step = np.eye(3) * float(self.grid.voxel_sizes.min()) / 4
        for _ in range(100):
            if np.linalg.norm(rest) < _INVERSE_TOLERANCE_MM:
                return found
            slope = (self(found + step) - self(found - step)).T / (2 * step[0, 0])
            change = np.linalg.lstsq(slope, -rest, rcond=None)[0]
            for factor in (1, 0.5, 0.25, 0.1, 0.03, 0.01):
                tried = found + factor * change
                tried_rest = self(tried[None])[0] - point
                if np.linalg.norm(tried_rest) < np.linalg.norm(rest):
                    break
            else:
                return None
            found, rest = tried, tried_rest
        return None


@dataclass(frozen=True, eq=False)
class PointMap:
    """Where each point of a target space comes from in a source space.

    Parameters
    ----------
    steps : tuple of AffineStep or FieldStep
        In the order in which points of the target pass them; none for the identity.
    """

    steps: tuple[AffineStep | FieldStep, ...] = ()

    def __call__(self, points: Points) -> Points:
        """Map points of the target, shape (n, 3), mm RAS, float64, to points of the source."""
        for step in self.steps:
            points = step(points)
        return points

    def bounds(self, low: Points, high: Points) -> tuple[Points, Points]:
        """Boxes that contain all that boxes of the target are mapped to.

        Parameters
        ----------
        low, high : array, shape (n, 3)
            Corners of boxes along the axes of the world, mm.

        Returns
        -------
        low, high : array, shape (n, 3)
        """
        for step in self.steps:
            low, high = step.bounds(low, high)
        return low, high

    def inverse_at(self, point: Points) -> Points | None:
        """Point of the target that is mapped to a point of the source.

        Parameters
        ----------
        point : array, shape (3,)
            mm, RAS.

        Returns
        -------
        array, shape (3,), or None
            To within a thousandth of a millimetre; None where no such point was found.
        """
        found: Points | None = np.asarray(point, dtype=np.float64)
        for step in reversed(self.steps):
            found = None if found is None else step.inverse_at(found)
        if found is None or np.linalg.norm(self(found[None])[0] - point) > _MARGIN:
            return None
        return found


# Files


def load_point_map(paths: Sequence[Path]) -> PointMap:
    """Read transforms that are applied to images one after the other.

    Parameters
    ----------
    paths : sequence of Path
        In the order in which they are applied to images: from A to B, then from B to C. ITK's
        composite (.h5), affine (.txt, .tfm, .mat) or displacement field (.nii.gz, .nii). None
        for the identity.

    Returns
    -------
    PointMap
        From points of C to points of A.

    Raises
    ------
    ValidationError
        A file is missing, damaged, or of a kind that is not read.
    """
    return PointMap(tuple(step for path in reversed(paths) for step in _load_steps(Path(path))))


def _load_steps(path: Path) -> tuple[AffineStep | FieldStep, ...]:
    try:
        with open_regular(path) as stream:
            status = os.fstat(stream.fileno())
    except OSError as error:
        raise ValidationError(f"Transform {path} does not exist or cannot be read.") from error
    if status.st_size == 0:
        raise ValidationError(
            f"Transform {path} is empty (a placeholder whose content was never fetched); fetch it."
        )
    return _read_steps(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _read_steps(path: Path, modified: int, size: int) -> tuple[AffineStep | FieldStep, ...]:
    """Read a file's steps in the order of points; two files stay in memory for more lesions."""
    name = path.name.lower()
    try:
        if name.endswith(COMPOSITE_SUFFIXES):
            steps = _read_composite(path)
        elif name.endswith(AFFINE_SUFFIXES):
            steps = [_read_affine(path)]
        elif name.endswith(FIELD_SUFFIXES):
            steps = [_read_field(path)]
        else:
            known = ", ".join((*COMPOSITE_SUFFIXES, *AFFINE_SUFFIXES, *FIELD_SUFFIXES))
            raise ValidationError(
                f"Transform {path} ends in none of {known}; give one that ITK or ANTs wrote."
            )
        for step in steps:
            _check_step(step, path)
    except ValidationError:
        raise
    except _UNREADABLE as error:
        raise ValidationError(
            f"Transform {path} cannot be read as a file of ITK or ANTs ({_in_short(error)}); it "
            "is damaged, cut short or of another program."
        ) from error
    return tuple(steps)


def _in_short(error: BaseException) -> str:
    return f"{error}".splitlines()[0].strip()[:150] if str(error).strip() else type(error).__name__


def _read_composite(path: Path) -> list[AffineStep | FieldStep]:
    from nitransforms.io.itk import ITKCompositeH5, ITKLinearTransform

    _check_composite(path)
    steps: list[AffineStep | FieldStep] = []
    for content in ITKCompositeH5.from_filename(str(path)):
        if isinstance(content, ITKLinearTransform):
            steps.append(AffineStep(np.asarray(content.to_ras(), dtype=np.float64)))
        else:
            steps.append(_field_step(content))
    # The transform that was added last is the first that a point meets.
    return steps[::-1]


def _check_composite(path: Path) -> None:
    """Refuse what the reader of composites would skip or take in the wrong order."""
    import h5py

    with h5py.File(path, "r") as file:
        group = file["TransformGroup"]
        kinds = [_kind_of(group[key]["TransformType"], path) for key in group]
        for key, kind in zip(group, kinds, strict=True):
            _check_sizes(group[key], kind, path)
    if not kinds or not kinds[0].startswith(_COMPOSITE):
        raise ValidationError(
            f"Transform {path} holds no composite transform; write it with ANTs' "
            "--write-composite-transform, or give the affine as .txt or .mat."
        )
    foreign = [kind for kind in kinds[1:] if not kind.startswith((_AFFINE, _FIELD))]
    if foreign:
        raise ValidationError(
            f"Transform {path} holds a {foreign[0]}, which is not read; collapse it to affines "
            "and displacement fields with antsApplyTransforms."
        )
    # Groups come in the order of their names as text, where 10 is before 2.
    if not 2 <= len(kinds) <= 10:
        raise ValidationError(
            f"Transform {path} is a composite of {len(kinds) - 1} transforms; one of 1 to 9 can "
            "be read."
        )


def _kind_of(dataset: Any, path: Path) -> str:
    """Kind of a transform, as ITK writes it: one short text."""
    kind = bytes(dataset[0]).decode() if dataset.shape == (1,) else ""
    if not 0 < len(kind) < 100 or not kind.isprintable():
        raise ValidationError(
            f"Transform {path} does not say of which kind its parts are; it is damaged: write it "
            "again."
        )
    return kind


def _check_sizes(group: Any, kind: str, path: Path) -> None:
    """Refuse parameters of another number than a transform has, before they are read."""

    def find(name: str) -> Any:
        # Older versions of ITK wrote the word without its first s.
        return group[name] if name in group else group.get(name.replace("Trans", "Tran"), ())

    fixed, parameters = find("TransformFixedParameters"), find("TransformParameters")
    sizes = int(np.size(fixed)), int(np.size(parameters))
    fits = True
    if kind.startswith(_AFFINE):
        fits = sizes == (3, 12)
    elif kind.startswith(_FIELD):
        fits = sizes[0] == 18 and sizes[1] == 3 * math.prod(map(float, fixed[:3]))
    if not fits:
        raise ValidationError(
            f"Transform {path} holds {sizes[1]} parameters and {sizes[0]} fixed ones, which is "
            f"not what a {kind} has; it is damaged or of another program."
        )


def _read_affine(path: Path) -> AffineStep:
    from nitransforms.io.itk import ITKLinearTransform

    if path.suffix.lower() != ".mat":
        text = path.read_text(encoding="utf-8")
        kinds = [line[10:].strip() for line in text.splitlines() if line[:10] == "Transform:"]
        if len(kinds) != 1 or not kinds[0].startswith((_AFFINE, "MatrixOffsetTransformBase")):
            raise ValidationError(
                f"Transform {path} holds {' and '.join(kinds) or 'no ITK transform'} where one "
                f"{_AFFINE} is read; convert it with antsApplyTransforms or ConvertTransformFile."
            )
        _check_affine_lines(text, path)
    return AffineStep(np.asarray(ITKLinearTransform.from_filename(str(path)).to_ras(), np.float64))


def _check_affine_lines(text: str, path: Path) -> None:
    """See that what nitransforms takes by the places of lines is there, and nothing else."""
    lines = [line.partition(":") for line in text.splitlines() if line.strip()[:1] not in "#"]
    for place, (key, expected) in enumerate((("Parameters", 12), ("FixedParameters", 3)), start=1):
        name, _, values = lines[place] if place < len(lines) else ("", "", "")
        try:
            found = len([float(word) for word in values.split()])
        except ValueError:
            found = 0
        if name.strip() != key or found != expected:
            raise ValidationError(
                f"Transform {path} has no line of {key} with {expected} numbers in its place; it "
                "is damaged: write it again."
            )


def _read_field(path: Path) -> FieldStep:
    from nitransforms.io.itk import ITKDisplacementsField

    image = open_image(path)
    shape = image.shape
    # SPM writes positions, not displacements, in the same five dimensions.
    if len(shape) != 5 or shape[3:] != (1, 3) or image.header.get_intent()[2] == "Mapping":
        raise ValidationError(
            f"Transform {path} is no displacement field of ITK or ANTs, which has the shape "
            f"x,y,z,1,3 (here {','.join(map(str, shape))}); convert fields of FSL and SPM first."
        )
    image = nb.Nifti1Image(read_voxels(image, dtype=np.float32), image.affine, image.header)
    return _field_step(ITKDisplacementsField.from_image(image), shape[:3])


def _field_step(image: nb.Nifti1Image, shape: tuple[int, ...] | None = None) -> FieldStep:
    data = np.asanyarray(image.dataobj)
    data = data.reshape((*(shape or data.shape[:3]), 3))
    displacements = np.ascontiguousarray(np.moveaxis(data, -1, 0), dtype=np.float32)
    return FieldStep(Grid.make(displacements.shape[1:], image.affine), displacements)


def _check_step(step: AffineStep | FieldStep, path: Path) -> None:
    affine = isinstance(step, AffineStep)
    matrix = step.matrix if isinstance(step, AffineStep) else step.grid.affine
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-6:
        what = "an affine" if affine else "a displacement field on a grid"
        raise ValidationError(f"Transform {path} holds {what} that cannot be inverted.")
    if isinstance(step, FieldStep) and not np.isfinite(step.displacements).all():
        raise ValidationError(f"Transform {path} holds displacements that are not finite.")


# Does a transform belong to these images?


def load_checked_point_map(
    paths: Sequence[Path], target: Grid, *, space: str | None = None, source: Grid | None = None
) -> PointMap:
    """Read transforms that shall lead to a target grid.

    Parameters
    ----------
    paths, target, space, source
        See :func:`load_point_map` and :func:`check_domains`.

    Returns
    -------
    PointMap

    Raises
    ------
    ValidationError
        A file cannot be read, or (SpatialMismatchError) leads elsewhere.
    """
    check_domains(paths, target, space=space, source=source)
    return load_point_map(paths)


def describe_transforms(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Name and fingerprint of each file, in the order of application to images, for sidecars."""
    return [{"File": path.name, "Fingerprint": fingerprint(path)} for path in map(Path, paths)]


def check_domain(
    path: Path, target: Grid, *, space: str | None = None, source: Grid | None = None
) -> None:
    """Refuse one transform that does not lead to a target grid, see :func:`check_domains`."""
    check_domains([path], target, space=space, source=source)


def check_domains(
    paths: Sequence[Path], target: Grid, *, space: str | None = None, source: Grid | None = None
) -> None:
    """Refuse transforms of the wrong direction, or of other images.

    The name of the last file (``_to-SPACE_``, or TemplateFlow's ``tpl-SPACE_from-``) must not
    name another space. Every displacement field must be known wherever the brain of the target
    is taken to. A field that is met first lies on the target's own grid, so it must not be one
    of another standard space or of the source. (A field behind an affine may lie in either
    space: ANTs keeps the field of an inverse transform on the grid of the forward one.)

    Parameters
    ----------
    paths : sequence of Path
        In the order in which they are applied to images.
    target : Grid
        Grid to resample on.
    space : str, optional
        Standard space of the target; by its grid when left out. The brain is then where MNI's
        is; in a target of no standard space it is what is mapped to MNI's brain.
    source : Grid, optional
        Grid of the images to resample. The brain must be mapped into it.

    Raises
    ------
    SpatialMismatchError
        Names the file and the grids.
    ValidationError
        A file cannot be read.
    """
    steps = [(Path(path), step) for path in reversed(paths) for step in _load_steps(Path(path))]
    if steps:
        _check_direction(*steps[0], target, space, source)
        own = [step for path, step in steps if path == steps[0][0]]
        _check_order(steps[0][0], own, target, space, source)
    points = _brain_points(PointMap(tuple(step for _, step in steps)), target, space)
    n_brain = len(points)
    for path, step in steps:
        if isinstance(step, FieldStep) and n_brain:
            covered = np.count_nonzero(step.covers(points)) / n_brain
            if covered < 0.99:
                raise SpatialMismatchError(
                    f"Transform {path} has a displacement field ({step.grid.describe()}) that "
                    f"covers {100 * covered:.0f} % of the brain on the grid to resample on "
                    f"({target.describe()}); it leads to another space or another subject."
                )
        points = step(points)
    if source is not None and steps and n_brain and not _covers(source, points).any():
        raise SpatialMismatchError(
            f"Transform {' and '.join(str(path) for path in paths)} takes no point of the brain "
            f"on {target.describe()} into the image ({source.describe()}); it belongs to another "
            "subject, or leads the other way."
        )


def _check_direction(
    path: Path, field: AffineStep | FieldStep, target: Grid, space: str | None, source: Grid | None
) -> None:
    targets = (space,) if space else spaces_of_grid(target)
    match = _TARGET_IN_NAME.search(path.name)
    if match and targets and not any(_is_space(match[1] or match[2], one) for one in targets):
        raise SpatialMismatchError(
            f"Transform {path} leads to {match[1] or match[2]} by its name but shall lead to "
            f"{' / '.join(targets)} ({target.describe()}); give the one of the right direction."
        )
    # TemplateFlow's own files are what their names say, whatever grid their fields have.
    if isinstance(field, AffineStep) or (match and match[1]):
        return
    owners = spaces_of_grid(field.grid)
    foreign = owners and targets and not any(same_space(a, b) for a in owners for b in targets)
    from_source = (
        source is not None
        and field.grid.same_lattice(source)
        and not field.grid.same_lattice(target)
        and not (owners and targets)
    )
    if foreign or from_source:
        whose = " / ".join(owners) if foreign else "the image to resample"
        goal = " / ".join(targets) or "the grid to resample on"
        raise SpatialMismatchError(
            f"Transform {path} has its displacement field on the grid of {whose} "
            f"({field.grid.describe()}) but shall lead to {goal} ({target.describe()}); give the "
            "one of the opposite direction."
        )


def _is_space(name: str, space: str) -> bool:
    """Tell whether a name found in a file's name means a standard space."""
    try:
        return same_space(name, space)
    except ValidationError:
        return False


def _check_order(
    path: Path,
    steps: Sequence[AffineStep | FieldStep],
    target: Grid,
    space: str | None,
    source: Grid | None,
) -> None:
    """Refuse the inverse of a normalisation, whatever its name says.

    ANTs computes a normalisation on the grid of the standard space. Points of that space meet the
    field first and the affine then; in the inverse, the affine comes first, and the field behind
    it still lies on the standard grid.
    """
    match = _TARGET_IN_NAME.search(path.name)
    if source is None or spaces_of_grid(source) or (match and match[1]):
        return
    field = next((step for step in steps if isinstance(step, FieldStep)), None)
    if field is None or not isinstance(steps[0], AffineStep):
        return
    targets = (space,) if space else spaces_of_grid(target)
    owners = spaces_of_grid(field.grid)
    if any(same_space(a, b) for a in owners for b in targets):
        raise SpatialMismatchError(
            f"Transform {path} has its affine before a displacement field on the grid of "
            f"{' / '.join(owners)}, as the inverse of a normalisation has; it leads from "
            f"{' / '.join(targets)} to the participant: give the one of the other direction."
        )


def _brain_points(point_map: PointMap, target: Grid, space: str | None) -> Points:
    """Points some 8 mm apart in the target's field of view that lie in the brain."""
    extent = np.array(target.shape) * target.voxel_sizes
    counts = np.maximum(2, np.ceil(extent / _CELL_MM)).astype(int)
    axes = [
        np.linspace(0, n - 1, min(count, n))
        for n, count in zip(target.shape, counts.tolist(), strict=True)
    ]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    points = index @ target.affine[:3, :3].T + target.affine[:3, 3]
    standard = space is not None or bool(spaces_of_grid(target))
    places = points if standard else point_map(points)
    centre, half = BRAIN_BOX.mean(axis=0), np.diff(BRAIN_BOX, axis=0)[0] / 2
    return points[np.sum(((places - centre) / half) ** 2, axis=1) < 1]


def _covers(grid: Grid, points: Points) -> NDArray[np.bool_]:
    inverse = np.linalg.inv(grid.affine)
    index = points @ inverse[:3, :3].T + inverse[:3, 3]
    return np.asarray(np.all((index >= -0.5) & (index < np.array(grid.shape) - 0.5), axis=1))


# Warps


def _slabs(target: Grid) -> Iterator[slice]:
    """Planes of a grid's first axis, so many that their points fit into memory."""
    planes = max(1, POINTS_AT_A_TIME // (target.shape[1] * target.shape[2]))
    for start in range(0, target.shape[0], planes):
        yield slice(start, min(start + planes, target.shape[0]))


def source_indices(
    index: NDArray[Any], source: Grid, target: Grid, point_map: PointMap
) -> NDArray[np.float64]:
    """Fractional source indices of target indices, both of shape (n, 3)."""
    # Floats first: a product with integers takes another, far slower way.
    index = index.astype(np.float64)
    points = point_map(index @ target.affine[:3, :3].T + target.affine[:3, 3])
    inverse = np.linalg.inv(source.affine)
    return points @ inverse[:3, :3].T + inverse[:3, 3]


def _slab_indices(target: Grid, slab: slice) -> NDArray[np.intp]:
    ranges = [np.arange(target.shape[0])[slab], *(np.arange(n) for n in target.shape[1:])]
    return np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)


def nearest_values(
    values: NDArray[Any], coordinates: NDArray[np.float64], fill: float
) -> NDArray[Any]:
    """Nearest values at fractional indices, shape (n, 3); the fill value outside."""
    index = round_indices(coordinates)
    inside = np.all((index >= 0) & (index < values.shape), axis=1)
    out = np.full(len(index), fill, dtype=values.dtype)
    out[inside] = values[tuple(index[inside].T)]
    return out


def warp_labels(
    labels: NDArray[Any], source: Grid, target: Grid, point_map: PointMap, *, fill: float = 0
) -> NDArray[Any]:
    """Nearest neighbour through a transform, for labels and masks.

    Parameters
    ----------
    labels : array, shape of the source grid
        Values of any dtype, which is kept.
    source, target : Grid
        Any orientation.
    point_map : PointMap
        From points of the target to points of the source.
    fill : float
        Value outside the source's field of view.

    Returns
    -------
    array, shape of the target grid
        A point midway between two voxels takes the value of the one whose index in RAS order is
        larger, as in :func:`lacuna_nipype.core.resampling.resample_nearest`.
    """
    values, canonical = to_canonical(labels, source)
    out = np.empty(target.shape, dtype=labels.dtype)
    for slab in _slabs(target):
        coordinates = source_indices(_slab_indices(target, slab), canonical, target, point_map)
        out[slab] = nearest_values(values, coordinates, fill).reshape(out[slab].shape)
    return out


def candidate_voxels(
    mask: NDArray[np.bool_],
    source: Grid,
    target: Grid,
    point_map: PointMap,
    margin_mm: float = 0.0,
) -> Iterator[NDArray[np.intp]]:
    """Find all target voxels that may take their value from a lesion.

    Parameters
    ----------
    mask : array of bool, shape of the source grid
        Not empty.
    source, target : Grid
    point_map : PointMap
        From points of the target to points of the source.
    margin_mm : float
        Voxels whose centres are taken this far from the lesion's box are found, too.

    Yields
    ------
    array, shape (n, 3)
        Indices, some 100 MB of coordinates at a time.
    """
    box = [np.flatnonzero(mask.any(axis=axes))[[0, -1]] for axes in ((1, 2), (0, 2), (0, 1))]
    lesion_first, lesion_last = np.array(box).T
    edges = np.maximum(1, np.rint(_CELL_MM / target.voxel_sizes)).astype(int)
    starts = np.stack(
        np.meshgrid(
            *(np.arange(0, n, edge) for n, edge in zip(target.shape, edges, strict=True)),
            indexing="ij",
        ),
        axis=-1,
    ).reshape(-1, 3)
    ends = np.minimum(starts + edges, target.shape) - 1
    corners = _interval(target.affine, starts.astype(np.float64), ends.astype(np.float64))
    low, high = point_map.bounds(*corners)
    to_index: Points = np.linalg.inv(source.affine)
    first, last = _interval(to_index, low, high)
    margin = 0.5 + _MARGIN + margin_mm / source.voxel_sizes
    meets = (last > lesion_first - margin) & (first < lesion_last + margin)
    found = starts[meets.all(axis=1)]
    offsets = np.stack(np.meshgrid(*map(np.arange, edges), indexing="ij"), axis=-1).reshape(-1, 3)
    cells = max(1, POINTS_AT_A_TIME // len(offsets))
    for start in range(0, len(found), cells):
        index = (found[start : start + cells, None] + offsets).reshape(-1, 3)
        yield index[np.all(index < target.shape, axis=1)]


def pull_coordinates(source: Grid, target: Grid, point_map: PointMap) -> NDArray[np.float32]:
    """Where in the source's voxels each target voxel takes its value, for many maps at once.

    Parameters
    ----------
    source, target : Grid
    point_map : PointMap
        From points of the target to points of the source.

    Returns
    -------
    array, shape (3, n_voxels of the target in C order), float32
        Fractional indices of the source; 12 bytes per voxel.
    """
    out = np.empty((3, int(np.prod(target.shape))), dtype=np.float32)
    plane = target.shape[1] * target.shape[2]
    for slab in _slabs(target):
        index = _slab_indices(target, slab)
        out[:, slab.start * plane : slab.stop * plane] = source_indices(
            index, source, target, point_map
        ).T
    return out


@dataclass(frozen=True, eq=False)
class LinearSampler:
    """Trilinear interpolation among the valid voxels of a map.

    Parameters
    ----------
    values : array, shape of the map, float32
        0 in invalid voxels.
    validity : array, shape of the map, float32
        1 in valid voxels, else 0.
    """

    values: NDArray[np.float32]
    validity: NDArray[np.float32]

    @classmethod
    def make(cls, data: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> LinearSampler:
        """Prepare a map; values that are not finite are invalid in any case."""
        usable = np.isfinite(data) if valid is None else np.isfinite(data) & valid
        return cls(np.where(usable, data, 0).astype(np.float32), usable.astype(np.float32))

    def __call__(
        self, coordinates: NDArray[np.floating[Any]], fill: float = 0.0
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Interpolate.

        Parameters
        ----------
        coordinates : array, shape (3, n)
            Fractional indices of the map.
        fill : float
            Value where the result is invalid.

        Returns
        -------
        values : array, shape (n,), float32
            Mean of the valid voxels around each place, with their trilinear weights.
        valid : array of bool, shape (n,)
            Where these weights sum up to a half at least; what is beyond the border has none.
        """
        from scipy.ndimage import map_coordinates

        # The sums in double precision, so that a constant stays what it is.
        options: dict[str, Any] = {"order": 1, "mode": "grid-constant", "output": np.float64}
        weight = map_coordinates(self.validity, coordinates, **options)
        total = map_coordinates(self.values, coordinates, **options)
        inside = weight >= 0.5 - TIE_TOLERANCE
        values = np.full(len(weight), fill, dtype=np.float32)
        values[inside] = total[inside] / weight[inside]
        return values, inside


def warp_map(
    data: NDArray[Any],
    source: Grid,
    target: Grid,
    point_map: PointMap,
    *,
    valid: NDArray[np.bool_] | None = None,
    fill: float = 0.0,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Linear interpolation through a transform, for continuous maps.

    Parameters
    ----------
    data : array, shape of the source grid
        Values that are not finite are invalid.
    source, target : Grid
    point_map : PointMap
        From points of the target to points of the source; ``PointMap()`` changes the grid only.
    valid : array of bool, shape of the source grid, optional
        Voxels at which the map means something. The others never enter an average, so a
        background of any value cannot bleed in.
    fill : float
        Value of the result outside its valid voxels.

    Returns
    -------
    values : array, shape of the target grid, float32
    valid : array of bool, shape of the target grid
        Where a half of the weight at least is that of valid voxels.
    """
    sampler = LinearSampler.make(data, valid)
    values = np.empty(target.shape, dtype=np.float32)
    inside = np.empty(target.shape, dtype=bool)
    for slab in _slabs(target):
        coordinates = source_indices(_slab_indices(target, slab), source, target, point_map).T
        block, block_inside = sampler(coordinates, fill)
        values[slab] = block.reshape(values[slab].shape)
        inside[slab] = block_inside.reshape(inside[slab].shape)
    return values, inside
