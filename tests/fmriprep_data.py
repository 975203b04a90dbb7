"""Write a small study as fMRIPrep leaves it, with lesions whose place in MNI space is known.

Every transform is an analytic map (a smooth displacement, then an affine), so the true outline of
each lesion in the standard space is a formula; :meth:`NativeLesion.expected` evaluates it on any
grid. What is written is what ITK would write: the composite as HDF5 (nitransforms has no writer
for it), the affine alone as ``.txt`` and ``.mat`` by nitransforms.

Conventions, all of them ITK's: a transform named ``from-T1w_to-MNI...`` maps *points* of the
template to points of the T1w image; coordinates in files are LPS (here RAS); a composite lists
its parts in the order in which images are moved, so a point goes through the last part first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import nibabel as nb
import numpy as np

from lacuna_nipype.core.spaces import Grid, template_grid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Right anterior and left posterior: a mirrored or inverted warp misses both.
CENTRES = ((34.0, 12.0, 22.0), (-38.0, -46.0, 16.0))
RADIUS_MM = 9.0
NATIVE_SHAPE = (216, 200, 184)  # along posterior, superior and right: a sagittal acquisition


@dataclass(frozen=True, eq=False)
class Warp:
    """Map of points from a template (mm, RAS) to a participant's T1w image.

    Parameters
    ----------
    grid : Grid
        Where the displacement is sampled in the file; it is zero at the borders.
    affine : array, shape (4, 4)
        Applied after the displacement.
    amplitude : array, shape (3,)
        Largest displacement along x, y and z in mm.
    """

    grid: Grid
    affine: np.ndarray
    amplitude: np.ndarray

    def displacement(self, points):
        """Displacement in mm at template points, shape (..., 3)."""
        ends = self.grid.affine[:3, :3].diagonal() * (np.array(self.grid.shape) - 1)
        phase = np.clip((points - self.grid.affine[:3, 3]) / ends, 0, 1) * np.pi
        bump = np.prod(np.sin(phase) ** 2, axis=-1)
        turn = np.cos(phase[..., [1, 2, 0]] + [0.3, -0.4, 0.9])
        return bump[..., np.newaxis] * turn * self.amplitude

    def to_native(self, points):
        """T1w points of template points."""
        return _apply(self.affine, points + self.displacement(points))

    def to_standard(self, points, *, affine_only=False):
        """Template points of T1w points; the displacement is undone by fixed-point iteration."""
        moved = _apply(np.linalg.inv(self.affine), points)
        if affine_only:
            return moved
        found = moved
        for _ in range(60):  # each step shrinks the error to less than a half
            before, found = found, moved - self.displacement(found)
            if np.abs(found - before).max() < 1e-10:
                return found
        raise RuntimeError("The displacement is too steep to be undone.")


@dataclass(frozen=True, eq=False)
class NativeLesion:
    """A lesion in a participant's own space: its files, and the truth about it.

    Parameters
    ----------
    subject : str
    session : str or None
    mask : Path
        Image of the lesion, 1 mm, oblique.
    grid : Grid
        Its grid.
    transforms : dict of str to Path
        Composite ``.h5`` from T1w to each target space.
    affines, affines_mat : dict of str to Path
        The affine part alone for each target space, as ``.txt`` and ``.mat``.
    to_reference : Path or None
        Rigid ``.txt`` from the mask's own T1w image to the merged T1w reference.
    warps : dict of str to Warp
        The true maps, from each target space to T1w.
    rigid : array, shape (4, 4)
        True map of points from the T1w reference to the mask's own image; identity unless merged.
    centre : array, shape (3,)
        In the first target space the lesion is a ball around this point (mm).
    radius : float
        Radius of that ball (mm).
    """

    subject: str
    session: str | None
    mask: Path
    grid: Grid
    transforms: dict[str, Path]
    affines: dict[str, Path]
    affines_mat: dict[str, Path]
    to_reference: Path | None
    warps: dict[str, Warp]
    rigid: np.ndarray
    centre: np.ndarray
    radius: float

    def expected(self, grid, target=None, *, affine_only=False):
        """Tell which voxels of a grid in a target space are lesion.

        Parameters
        ----------
        grid : Grid
        target : str, optional
            Default: the first target space of the study.
        affine_only : bool
            When the mask is normalised with the affine part alone.

        Returns
        -------
        array of bool, shape of the grid
        """
        first, target = next(iter(self.warps)), target or next(iter(self.warps))
        points = voxel_centres(grid)
        if affine_only:
            native = _apply(self.warps[target].affine, points)
        elif target == first:
            return self._in_ball(points)
        else:
            native = self.warps[target].to_native(points)
        return self._in_ball(self.warps[first].to_standard(native))

    def centre_in(self, target):
        """Position (mm) in a target space of the point that is the ball's centre in the first."""
        first = next(iter(self.warps))
        native = self.warps[first].to_native(self.centre)
        return self.warps[target].to_standard(native)

    def _in_ball(self, points):
        return np.linalg.norm(points - self.centre, axis=-1) <= self.radius


@dataclass(frozen=True, eq=False)
class FmriprepStudy:
    """What was written.

    Parameters
    ----------
    bids : Path
        Raw dataset: lesion masks (and empty T1w images).
    fmriprep : Path
        Derivatives dataset with the transforms.
    affines : Path
        Folder of the affines for ``--xfm``, without any dataset around them.
    lesions : list of NativeLesion
        Sorted by participant and session.
    """

    bids: Path
    fmriprep: Path
    affines: Path
    lesions: list[NativeLesion] = field(default_factory=list)


def write_fmriprep_study(
    root: Path,
    *,
    subjects: Sequence[str] = ("01", "02"),
    sessions: Sequence[str] = (),
    merged: bool = False,
    targets: Sequence[str] = ("MNI152NLin2009cAsym",),
    space: str | None = "T1w",
    images: bool = True,
    inverses: bool = False,
    field_resolution: float = 2.0,
    precision: str = "double",
    radius: float = RADIUS_MM,
    seed: int = 1,
) -> FmriprepStudy:
    """Write a raw dataset with native lesion masks and its fMRIPrep derivatives.

    ::

        root/bids/sub-01[/ses-a]/anat/sub-01[_ses-a][_space-T1w]_label-lesion_mask.nii.gz
        root/fmriprep/sub-01[/ses-a]/anat/
            sub-01[_ses-a]_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5
            sub-01[_ses-a]_from-orig_to-T1w_mode-image_xfm.txt    (merged sessions only)
        root/affines/sub-01[_ses-a]_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.{txt,mat}

    Parameters
    ----------
    root : Path
        Folder to write into; it may exist.
    subjects : sequence of str
        Labels. Lesions lie in the right hemisphere of the first, third, ... participant and in
        the left of the others.
    sessions : sequence of str
        Labels; empty for a study without sessions.
    merged : bool
        fMRIPrep merged the sessions: one reference and one set of transforms per participant,
        and a rigid transform to the reference in each session. Otherwise each session has its
        own transforms.
    targets : sequence of str
        Standard spaces to write transforms to; lesions are balls in the first.
    space : str or None
        ``space`` entity of the masks. With ``T1w`` they lie on the grid of the reference; with
        ``orig`` or None (no entity) on the grid of the session's own image, which differs from
        it if sessions are merged.
    images : bool
        Write T1w images too: voxels all zero, but with the right grids.
    inverses : bool
        Write the ``from-MNI..._to-T1w`` transforms too.
    field_resolution : float
        Voxel size (mm) of the displacement fields, on a standard grid of the target space.
    precision : {"double", "float"}
        Number type of the composites; fMRIPrep's own are of either type.
    radius : float
        Radius of the lesions in mm.
    seed : int
        Of the participants' random positions and warps.

    Returns
    -------
    FmriprepStudy
    """
    study = FmriprepStudy(root / "bids", root / "fmriprep", root / "affines")
    _describe(study.bids, "Lesions in native space", None)
    _describe(study.fmriprep, "fMRIPrep - fMRI PREProcessing workflow", "fMRIPrep")
    study.affines.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    places = [None] if merged or not sessions else list(sessions)
    for number, subject in enumerate(subjects):
        centre = np.array(CENTRES[number % len(CENTRES)])
        for place in places:
            warps = {t: _random_warp(rng, t, field_resolution) for t in targets}
            files = _write_transforms(study, _stem(subject, place), warps, precision, inverses)
            reference = _native_grid(rng, next(iter(warps.values())))
            if images:
                path = _anat(study.fmriprep, subject, place, "_desc-preproc_T1w.nii.gz")
                _save(path, np.zeros(reference.shape, np.uint8), reference)
            for session in sessions if place is None and sessions else [place]:
                own, rigid, step = reference, np.eye(4), None
                if merged:
                    rigid = _rigid(rng, degrees=12, mm=15)
                    own = Grid.make(reference.shape, rigid @ reference.affine)
                    step = _anat(
                        study.fmriprep, subject, session, "_from-orig_to-T1w_mode-image_xfm.txt"
                    )
                    _write_affine(step, rigid)
                if images:
                    path = _anat(study.bids, subject, session, "_T1w.nii.gz")
                    _save(path, np.zeros(own.shape, np.uint8), own)
                if space == "T1w":
                    own, rigid = reference, np.eye(4)
                entity = "" if space is None else f"_space-{space}"
                lesion = NativeLesion(
                    subject, session,
                    _anat(study.bids, subject, session, f"{entity}_label-lesion_mask.nii.gz"),
                    own, *files, None if space == "T1w" else step, warps, rigid, centre, radius,
                )  # fmt: skip
                _save(lesion.mask, _draw(lesion), lesion.grid)
                study.lesions.append(lesion)
    return study


def write_composite(path, parts, precision="double"):
    """Write an ITK composite transform as HDF5, in the layout of ITK's own writer.

    Parameters
    ----------
    path : Path
    parts : sequence of (4, 4) array or (Grid, array) tuple
        Affines (points, RAS) and displacement fields (grid, and array of shape (x, y, z, 3),
        mm, RAS), in the order of the file: a point goes through the last one first.
    precision : {"double", "float"}
        Type of the parameters; fixed parameters are double.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"double": np.float64, "float": np.float32}[precision]
    with h5py.File(path, "w") as file:
        about = {"ITKVersion": "5.3.0", "HDFVersion": "1.12.1", "OSName": "Linux"}
        for name, text in {**about, "OSVersion": "5.15.0"}.items():
            _write_text(file, name, text)
        _write_text(file, "TransformGroup/0/TransformType", f"CompositeTransform_{precision}_3_3")
        for number, part in enumerate(parts, start=1):
            is_affine = not isinstance(part, tuple)
            name = "AffineTransform" if is_affine else "DisplacementFieldTransform"
            fixed, values = _affine_numbers(part) if is_affine else _field_numbers(*part)
            group = f"TransformGroup/{number}"
            _write_text(file, f"{group}/TransformType", f"{name}_{precision}_3_3")
            file[f"{group}/TransformFixedParameters"] = np.asarray(fixed, dtype=np.float64)
            file[f"{group}/TransformParameters"] = np.asarray(values, dtype=kind)


def voxel_centres(grid):
    """World positions (mm) of all voxels, shape (x, y, z, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return _apply(grid.affine, index)


# --- numbers --------------------------------------------------------------------------------


def _apply(matrix, points):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _affine_numbers(ras):
    """Centre of rotation, then matrix (by rows) and translation, as ITK splits an affine."""
    lps = LPS @ ras @ LPS
    centre = np.array([0.5, 19.0, 2.0])
    matrix, offset = lps[:3, :3], lps[:3, 3]
    return centre, [*matrix.ravel(), *(offset - centre + matrix @ centre)]


def _field_numbers(grid, displacement):
    """Size, origin, spacing and direction (by rows), then vectors with x fastest."""
    lps = LPS @ grid.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = lps[:3, :3] / spacing
    vectors = displacement * LPS.diagonal()[:3]
    fixed = [*grid.shape, *lps[:3, 3], *spacing, *direction.ravel()]
    return fixed, vectors.transpose(2, 1, 0, 3).ravel()


def _rotation(rng, degrees):
    x, y, z = np.deg2rad(rng.uniform(0.4, 1, 3) * rng.choice([-1, 1], 3) * degrees)
    about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    about_y = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    return np.array(about_x) @ about_y @ about_z


def _rigid(rng, degrees, mm):
    rigid = np.eye(4)
    rigid[:3, :3] = _rotation(rng, degrees)
    rigid[:3, 3] = rng.uniform(0.5, 1, 3) * rng.choice([-1, 1], 3) * mm
    return rigid


def _random_warp(rng, target, resolution):
    affine = _rigid(rng, degrees=8, mm=20)
    affine[:3, :3] = affine[:3, :3] @ np.diag(rng.uniform(0.9, 1.08, 3))
    amplitude = rng.uniform(4, 7, 3) * rng.choice([-1, 1], 3)
    return Warp(template_grid(target, resolution), affine, amplitude)


def _native_grid(rng, warp):
    """Grid of a sagittal acquisition, oblique, around the head."""
    corner = warp.grid.affine @ [*(np.array(warp.grid.shape) - 1), 1]
    middle = warp.to_native((warp.grid.affine[:3, 3] + corner[:3]) / 2)
    affine = np.eye(4)
    # First axis towards posterior, second superior, third right.
    affine[:3, :3] = _rotation(rng, 14) @ [[0, 0, 1], [-1, 0, 0], [0, 1, 0]]
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(NATIVE_SHAPE) - 1) / 2)
    return Grid.make(NATIVE_SHAPE, affine)


def _draw(lesion):
    """Native mask: the voxels whose true position in the first target space is in the ball."""
    first = next(iter(lesion.warps))
    warp, grid = lesion.warps[first], lesion.grid
    middle = _apply(lesion.rigid, warp.to_native(lesion.centre))
    index = _apply(np.linalg.inv(grid.affine), middle).round().astype(int)
    reach = int(np.ceil(2 * lesion.radius)) + 3
    block = tuple(slice(i - reach, i + reach + 1) for i in index)
    offset = nb.affines.from_matvec(np.eye(3), index - reach)
    part = Grid.make([2 * reach + 1] * 3, grid.affine @ offset)
    points = _apply(np.linalg.inv(lesion.rigid), voxel_centres(part))
    data = np.zeros(grid.shape, dtype=np.uint8)
    data[block] = lesion._in_ball(warp.to_standard(points))
    return data


# --- files ----------------------------------------------------------------------------------


def _stem(subject, session):
    return f"sub-{subject}" + (f"_ses-{session}" if session else "")


def _anat(root, subject, session, ending):
    folder = root / f"sub-{subject}"
    if session:
        folder = folder / f"ses-{session}"
    return folder / "anat" / (_stem(subject, session) + ending)


def _describe(root, name, program):
    root.mkdir(parents=True, exist_ok=True)
    content = {"Name": name, "BIDSVersion": "1.9.0", "DatasetType": "raw"}
    if program:
        content["DatasetType"] = "derivative"
        content["GeneratedBy"] = [{"Name": program, "Version": "25.1.0"}]
    (root / "dataset_description.json").write_text(json.dumps(content))


def _save(path, data, grid):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nb.Nifti1Image(data, grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, 1)
    image.set_qform(grid.affine, 1)
    nb.save(image, path)


def _write_text(file, name, text):
    file.create_dataset(name, data=[text], dtype=h5py.string_dtype("ascii"))


def _write_affine(path, points_ras):
    from nitransforms.linear import Affine

    path.parent.mkdir(parents=True, exist_ok=True)
    Affine(points_ras).to_filename(path, fmt="itk")


def _write_transforms(study, stem, warps, precision, inverses):
    """Composites and affines of one reference; returns their paths by target space."""
    subject, _, session = stem.removeprefix("sub-").partition("_ses-")
    composites, texts, matrices = {}, {}, {}
    for target, warp in warps.items():
        ending = f"_from-T1w_to-{target}_mode-image_xfm"
        composites[target] = _anat(study.fmriprep, subject, session, f"{ending}.h5")
        points = voxel_centres(warp.grid)
        write_composite(
            composites[target], [warp.affine, (warp.grid, warp.displacement(points))], precision
        )
        if inverses:
            moved = _apply(warp.affine, points)
            path = _anat(
                study.fmriprep, subject, session, f"_from-{target}_to-T1w_mode-image_xfm.h5"
            )
            parts = [(warp.grid, warp.to_standard(moved) - points), np.linalg.inv(warp.affine)]
            write_composite(path, parts, precision)
        texts[target] = study.affines / f"{stem}{ending}.txt"
        matrices[target] = study.affines / f"{stem}{ending}.mat"
        _write_affine(texts[target], warp.affine)
        _write_affine(matrices[target], warp.affine)
    return composites, texts, matrices
