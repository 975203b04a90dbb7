"""Synthetic transforms in ITK's files, and the same maps computed without the package.

Points of MNI152NLin2009cAsym are displaced by a smooth field of up to 8 mm, then go through an
affine to MNI152NLin6Asym. The opposite transform is made as ANTs makes it: the inverse affine is
met first, then an inverse field on the grid of the first one. All arrays here are RAS and mm;
files are LPS, and the flips are written out.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel as nb
import numpy as np
from scipy.ndimage import map_coordinates

NLIN6, NLIN2009C = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
# First and last voxel of the standard volumes at 1 mm.
EXTENT = {
    NLIN6: ((-91, -126, -72), (90, 91, 109)),
    NLIN2009C: ((-96, -132, -78), (96, 96, 114)),
}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
TURN = np.deg2rad(4)
AFFINE = np.array(
    [
        [1.03 * np.cos(TURN), -np.sin(TURN), 0.01, 2.0],
        [np.sin(TURN), 0.97 * np.cos(TURN), -0.02, -3.0],
        [0.0, 0.03, 1.02, 1.5],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


def displacement(points):
    """Displacement in mm at points, shape (n, 3); never longer than 8 mm."""
    x, y, z = np.asarray(points, float).T / 22.0
    return np.stack(
        [
            4.6 * np.sin(x + 0.4) * np.cos(0.7 * y),
            4.4 * np.cos(0.8 * y - 0.6 * z),
            4.7 * np.sin(z - 0.3 * x + 1),
        ],
        axis=1,
    )


def apply_affine(matrix, points):
    return np.asarray(points, float) @ matrix[:3, :3].T + matrix[:3, 3]


@dataclass(frozen=True)
class Field:
    """Displacements, shape (x, y, z, 3), on a grid of a shape and an affine."""

    displacements: np.ndarray
    affine: np.ndarray

    def __call__(self, points):
        """Displace points: linear in between, the border's value half a voxel further, then 0."""
        points = np.asarray(points, float)
        index = apply_affine(np.linalg.inv(self.affine), points).T
        shape = np.array(self.displacements.shape[:3])[:, None]
        inside = np.all((index >= -0.5) & (index < shape - 0.5), axis=0)
        return points + np.stack(
            [
                map_coordinates(self.displacements[..., axis], index, order=1, mode="nearest")
                * inside
                for axis in range(3)
            ],
            axis=1,
        )


def points_of(shape, affine):
    """World positions of all voxels in C order, shape (n, 3)."""
    return apply_affine(affine, np.indices(shape).reshape(3, -1).T)


def sampled(function, shape, affine):
    """A field of the values of a function of points, as float32."""
    values = function(points_of(shape, affine)).reshape(*shape, 3)
    return Field(values.astype(np.float32), np.asarray(affine, float))


def grid_over(space, spacing):
    """Shape and affine of a lattice over the whole of a space."""
    first, last = np.array(EXTENT[space], float)
    shape = np.ceil((last - first) / spacing).astype(int) + 1
    return tuple(shape.tolist()), nb.affines.from_matvec(np.eye(3) * spacing, first)


def inverse_displacement(points):
    """What undoes :func:`displacement`, by fixed-point iteration."""
    points = np.asarray(points, float)
    back = np.zeros_like(points)
    for _ in range(60):
        back = -displacement(points + back)
    return back


# Files


def write_composite(path, parts):
    """Write ITK's composite .h5 of affines (4 x 4) and fields, in the order in which points pass.

    ITK keeps them the other way round: the last of the file is the first that is applied.
    """
    kinds = [f"{'Affine' if isinstance(p, np.ndarray) else 'DisplacementField'}" for p in parts]
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["TransformGroup/0/TransformType"] = [b"CompositeTransform_float_3_3"]
        for number, (kind, part) in enumerate(list(zip(kinds, parts, strict=True))[::-1], 1):
            group = file.create_group(f"TransformGroup/{number}")
            group["TransformType"] = [f"{kind}Transform_float_3_3".encode()]
            if kind == "Affine":
                matrix = LPS @ part @ LPS
                # About a centre, to see that it is taken into account.
                centre = np.array([3.0, -5.0, 7.0])
                shift = matrix[:3, 3] + matrix[:3, :3] @ centre - centre
                group["TransformParameters"] = np.append(matrix[:3, :3].ravel(), shift)
                group["TransformFixedParameters"] = centre
                continue
            affine, shape = LPS @ part.affine, part.displacements.shape[:3]
            spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
            direction = affine[:3, :3] / spacing
            group["TransformFixedParameters"] = np.concatenate(
                [shape, affine[:3, 3], spacing, direction.ravel()]
            )
            # The vector's component varies fastest, then x, y, z.
            vectors = part.displacements * np.array([-1, -1, 1], np.float32)
            group["TransformParameters"] = vectors.transpose(2, 1, 0, 3).ravel()
    return path


def write_affine(path, matrix):
    """Write an affine as ITK's .txt or .mat with nitransforms."""
    from nitransforms.linear import Affine

    path.parent.mkdir(parents=True, exist_ok=True)
    Affine(matrix).to_filename(str(path), fmt="itk")
    return path


def write_field(path, field):
    """Write a displacement field as ITK's .nii.gz: five dimensions, vectors in LPS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = field.displacements * np.array([-1, -1, 1], np.float32)
    image = nb.Nifti1Image(vectors[:, :, :, None], field.affine)
    image.header.set_intent("vector")
    nb.save(image, path)
    return path


@dataclass(frozen=True)
class SyntheticWarps:
    """A TemplateFlow home and the maps of points of its two transforms.

    Parameters
    ----------
    home : Path
    to_2009c, to_nlin6 : Path
        ``from-MNI152NLin6Asym`` to 2009c, and back: they take images there.
    field, inverse_field : Field
        Both on a lattice of 2009c.
    """

    home: Path
    to_2009c: Path
    to_nlin6: Path
    field: Field
    inverse_field: Field

    def pull(self, target, points):
        """Where points of the target space come from in the other one, shape (n, 3)."""
        if target == NLIN2009C:
            return apply_affine(AFFINE, self.field(points))
        return self.inverse_field(apply_affine(np.linalg.inv(AFFINE), points))


def write_brain_mask(folder, space, resolution):
    """Write an ellipsoid of the size of a brain under TemplateFlow's name."""
    size = float(resolution)
    first = np.array(EXTENT[space][0], float)
    first += {(NLIN6, 2): (1, 0, 0), (NLIN2009C, 2): (-0.5, -0.5, -0.5)}.get(
        (space, resolution), (0, 0, 0)
    )
    shape = {
        (NLIN6, 1): (182, 218, 182),
        (NLIN6, 2): (91, 109, 91),
        (NLIN2009C, 1): (193, 229, 193),
        (NLIN2009C, 2): (97, 115, 97),
    }[space, resolution]
    affine = nb.affines.from_matvec(np.eye(3) * size, first)
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    distance = sum(
        ((size * axis + origin - centre) / half) ** 2
        for axis, origin, centre, half in zip(axes, first, (0, -18, 8), (70, 88, 72), strict=True)
    )
    data = (distance < 1).astype(np.uint8)
    if space == NLIN6:
        # FSL's files run from right to left.
        data = data[::-1]
        affine = affine @ np.array(
            [[-1, 0, 0, shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
        )
    path = folder / f"tpl-{space}" / f"tpl-{space}_res-{resolution:02d}_desc-brain_mask.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nb.save(nb.Nifti1Image(data, affine), path)
    return path


def write_templateflow_home(folder, *, spacing=4.0, mask_resolutions=(2,)):
    """Write both transforms, and brain masks of both spaces, under TemplateFlow's names.

    Parameters
    ----------
    folder : Path
        Becomes the TEMPLATEFLOW_HOME.
    spacing : float
        Voxel size in mm of the displacement fields.
    mask_resolutions : sequence of int
        1 and 2 are possible, in mm.

    Returns
    -------
    SyntheticWarps
    """
    shape, affine = grid_over(NLIN2009C, spacing)
    field = sampled(displacement, shape, affine)
    inverse_field = sampled(inverse_displacement, shape, affine)
    paths = {
        target: folder / f"tpl-{target}" / f"tpl-{target}_from-{source}_mode-image_xfm.h5"
        for source, target in ((NLIN6, NLIN2009C), (NLIN2009C, NLIN6))
    }
    write_composite(paths[NLIN2009C], [field, AFFINE])
    write_composite(paths[NLIN6], [np.linalg.inv(AFFINE), inverse_field])
    for space in (NLIN6, NLIN2009C):
        for resolution in mask_resolutions:
            write_brain_mask(folder, space, resolution)
    return SyntheticWarps(folder, paths[NLIN2009C], paths[NLIN6], field, inverse_field)
