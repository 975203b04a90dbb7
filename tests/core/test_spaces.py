"""Standard grids are the published ones, and only world coordinates decide what agrees."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.spaces import (
    Grid,
    canonical_space,
    check_declared_space,
    declared_space,
    known_spaces,
    same_space,
    spaces_of_grid,
    template_grid,
    template_grids,
)

NLIN6, NLIN2009C = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
NLIN2009A, NLIN2009B = "MNI152NLin2009aAsym", "MNI152NLin2009bAsym"
STORAGES = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product([1, -1], repeat=3)
]
ROTATION = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])


def grid_of(shape, size, origin):
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = origin
    return Grid.make(shape, affine)


def stored(grid, axes, signs):
    """The same voxels with the array's axes permuted and some of them run backwards."""
    columns = [grid.affine[:3, axis] * sign for axis, sign in zip(axes, signs, strict=True)]
    shape = [grid.shape[axis] for axis in axes]
    last = [(n - 1 if sign < 0 else 0) for n, sign in zip(shape, signs, strict=True)]
    affine = np.eye(4)
    affine[:3, :3] = np.stack(columns, axis=1)
    affine[:3, 3] = grid.affine[:3, 3] - affine[:3, :3] @ last
    return Grid.make(shape, affine)


def world_of(grid):
    indices = np.indices(grid.shape).reshape(3, -1).T
    return nib.affines.apply_affine(grid.affine, indices)


# Grids of the standard volumes


@pytest.mark.parametrize(
    ("space", "size", "shape", "origin"),
    [
        (NLIN6, 0.5, (364, 436, 364), (-91.5, -126, -72)),
        (NLIN6, 1, (182, 218, 182), (-91, -126, -72)),
        (NLIN6, 2, (91, 109, 91), (-90, -126, -72)),
        (NLIN2009C, 1, (193, 229, 193), (-96, -132, -78)),
        (NLIN2009C, 2, (97, 115, 97), (-96.5, -132.5, -78.5)),
        (NLIN2009B, 0.5, (394, 466, 378), (-98, -134, -72)),
    ],
)
def test_grid_is_the_published_one(space, size, shape, origin):
    grid = template_grid(space, size)
    assert grid.shape == shape
    np.testing.assert_array_equal(grid.affine[:3, :3], np.eye(3) * size)
    np.testing.assert_array_equal(grid.affine[:3, 3], origin)


def test_files_of_fsl_are_stored_from_right_to_left():
    affine = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    assert spaces_of_grid(Grid.make((91, 109, 91), affine)) == (NLIN6,)


@pytest.mark.parametrize("space", [NLIN2009A, NLIN2009B])
def test_variants_of_2009_borrow_the_2_mm_grid_of_2009c(space):
    assert template_grid(space, 2).same_as(template_grid(NLIN2009C, 2))


def test_grids_are_listed_finest_first():
    for space in known_spaces():
        sizes = [grid.voxel_sizes[0] for grid in template_grids(space)]
        assert sizes == sorted(sizes)


def test_a_resolution_nobody_publishes_is_refused():
    with pytest.raises(ValidationError, match="7 mm"):
        template_grid(NLIN6, 7)


# Names


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("MNI152NLin6Asym", NLIN6),
        ("mni152nlin6asym", NLIN6),
        (" MNI152_2mm ", NLIN6),
        ("FSL", NLIN6),
        ("MNI152NLin2009cAsym", NLIN2009C),
        ("MNI152NLin2009b", NLIN2009B),
    ],
)
def test_names_and_aliases(name, space):
    assert canonical_space(name) == space


def test_every_alias_belongs_to_one_space():
    for space in known_spaces():
        assert canonical_space(space) == space


def test_a_misspelt_space_is_refused_with_the_nearest_name():
    with pytest.raises(ValidationError, match=NLIN6) as error:
        canonical_space("MNI152NLin6Assym")
    assert "MNI152NLin6Assym" in str(error.value)


@pytest.mark.parametrize("value", [5, True, ["MNI152NLin6Asym"], {"Name": "FSL"}, "MNI", None])
def test_what_a_file_declares_is_refused_by_the_name_of_the_file(value, tmp_path):
    with pytest.raises(ValidationError, match=r"side\.json"):
        declared_space(value, tmp_path / "side.json")
    assert declared_space("FSL", tmp_path / "side.json") == NLIN6


@pytest.mark.parametrize("first", [NLIN2009A, NLIN2009B, NLIN2009C])
@pytest.mark.parametrize("second", [NLIN2009A, NLIN2009B, NLIN2009C])
def test_2009_variants_are_one_anatomy(first, second):
    assert same_space(first, second)
    assert not same_space(first, NLIN6)
    assert not same_space("MNI152_1mm", second)


# A declared space against the grid


@pytest.mark.parametrize(("axes", "signs"), STORAGES)
def test_contradiction_is_found_in_any_storage_order(axes, signs):
    grid = stored(template_grid(NLIN2009C, 2), axes, signs)
    with pytest.raises(SpatialMismatchError, match=r"Tian\.nii") as error:
        check_declared_space(NLIN6, grid, "Tian.nii")
    assert NLIN2009C in str(error.value)
    assert check_declared_space(NLIN2009C, grid, "Tian.nii") == NLIN2009C


def test_contradiction_works_both_ways_and_spares_relatives():
    with pytest.raises(SpatialMismatchError):
        check_declared_space(NLIN2009C, template_grid(NLIN6, 1), "x")
    assert check_declared_space(NLIN2009B, template_grid(NLIN2009C, 1), "x") == NLIN2009B
    assert check_declared_space("MNI152_2mm", template_grid(NLIN6, 2), "x") == NLIN6


@pytest.mark.parametrize(
    "grid",
    [
        grid_of((97, 115, 97), 2, (-96, -132.5, -78.5)),
        grid_of((91, 109, 91), 2, (-96.5, -132.5, -78.5)),
        grid_of((64, 64, 30), 3.5, (-110, -110, -50)),
    ],
    ids=["other origin", "other shape", "nobody's"],
)
def test_an_unknown_grid_says_nothing(grid):
    assert spaces_of_grid(grid) == ()
    assert check_declared_space(NLIN6, grid, "x") == NLIN6
    assert check_declared_space(NLIN2009C, grid, "x") == NLIN2009C


# Grids


@pytest.mark.parametrize(("axes", "signs"), STORAGES)
@pytest.mark.parametrize("oblique", [False, True])
def test_canonical_order_keeps_the_voxels_where_they_are(axes, signs, oblique):
    plain = Grid.make((3, 4, 5), np.diag([1.0, 2.0, 3.0, 1.0]))
    if oblique:
        plain = Grid.make((3, 4, 5), nib.affines.from_matvec(ROTATION * [1, 2, 3], [5, -7, 9]))
    other = stored(plain, axes, signs)
    assert other.canonical.same_as(plain)
    assert other.same_lattice(plain)
    assert other.same_as(plain) == (axes == (0, 1, 2) and signs == (1, 1, 1))
    first = sorted(map(tuple, np.round(world_of(other), 6)))
    assert first == sorted(map(tuple, np.round(world_of(plain), 6)))
    np.testing.assert_allclose(other.voxel_volume_ml, 0.006, rtol=1e-12)
    np.testing.assert_allclose(other.voxel_sizes, np.array([1.0, 2, 3])[list(axes)], rtol=1e-12)


@pytest.mark.parametrize(
    ("shift", "agree"), [(0.0, True), (0.0009, True), (0.0011, False), (0.5, False)]
)
def test_grids_agree_to_a_thousandth_of_a_millimetre(shift, agree):
    first = grid_of((4, 4, 4), 2, (0, 0, 0))
    assert first.same_as(grid_of((4, 4, 4), 2, (shift, 0, 0))) == agree
    assert first.same_lattice(grid_of((4, 4, 4), 2, (shift, 0, 0))) == agree


def test_equal_affines_do_not_make_equal_grids():
    assert not grid_of((4, 4, 4), 2, (0, 0, 0)).same_as(grid_of((4, 4, 5), 2, (0, 0, 0)))


@pytest.mark.parametrize(
    ("sizes", "label"),
    [
        ((1, 1, 1), "1"),
        ((2, 2, 2), "2"),
        ((2.0000001, 2, 2), "2"),
        ((0.5, 0.5, 0.5), None),
        ((1.5, 1.5, 1.5), None),
        ((2, 2, 3), None),
        ((0.0004, 1, 1), None),
    ],
)
def test_resolution_label(sizes, label):
    assert Grid.make((3, 3, 3), np.diag([*sizes, 1.0])).resolution_label == label
    turned = nib.affines.from_matvec(ROTATION * sizes, [1, 2, 3])
    assert Grid.make((3, 3, 3), turned).resolution_label == label


def test_description_is_of_the_voxels_not_of_their_storage():
    grid = template_grid(NLIN6, 2)
    assert stored(grid, (2, 0, 1), (-1, 1, -1)).describe() == grid.describe()
    assert "91x109x91" in grid.describe()
