"""Which arrays are lesion masks."""

import numpy as np
import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.masks import (
    binarise_mask,
    check_affine,
    check_shear,
    left_share,
    lesion_points,
    share_inside,
    size_warnings,
)
from lacuna_nipype.core.spaces import Grid

NAME = "Mask sub-01.nii.gz"
LESION = np.zeros((4, 5, 6), dtype=bool)
LESION[1:3, 2:4, 1] = True


def of_values(background, lesion, dtype):
    return np.where(LESION, lesion, background).astype(dtype)


def grid_of_ml(volume_ml):
    return Grid.make((200, 200, 200), np.diag([(volume_ml * 1000) ** (1 / 3)] * 3 + [1.0]))


@pytest.mark.parametrize(
    "dtype", [bool, np.int8, np.uint8, np.int16, np.uint16, np.int64, np.float32, np.float64]
)
def test_zero_and_one_of_any_type(dtype):
    mask, warnings = binarise_mask(of_values(0, 1, dtype), NAME)
    assert mask.dtype == bool
    assert np.array_equal(mask, LESION)
    assert warnings == []


@pytest.mark.parametrize(
    ("background", "lesion"), [(0.0, 0.9995), (0.0005, 1.0), (-0.0005, 1.0005), (0.0, 1.0 - 1e-7)]
)
def test_rounding_by_other_tools_is_binary(background, lesion):
    mask, _ = binarise_mask(of_values(background, lesion, np.float32), NAME)
    assert np.array_equal(mask, LESION)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_255_is_read_with_a_warning(dtype):
    mask, warnings = binarise_mask(of_values(0, 255, dtype), NAME)
    assert np.array_equal(mask, LESION)
    assert len(warnings) == 1
    assert NAME in warnings[0]


@pytest.mark.parametrize(
    ("background", "lesion", "dtype"),
    [
        (0, 2, np.uint8),
        (0, -1, np.int16),
        (0, 0.5, np.float32),
        (0, 0.998, np.float64),
        (0.002, 1, np.float64),
        (1, 255, np.uint8),
        (0, 254, np.uint8),
        # In 8 and 16 bits these are their own absolute value.
        (0, -128, np.int8),
        (0, -32768, np.int16),
    ],
)
def test_other_pairs_are_refused(background, lesion, dtype):
    with pytest.raises(ValidationError, match=r"sub-01\.nii\.gz"):
        binarise_mask(of_values(background, lesion, dtype), NAME)


def test_labels_and_probabilities_are_refused():
    labels = np.arange(24).reshape(2, 3, 4)
    for values in (labels % 3, labels / 24, np.where(labels == 1, 255, labels > 4)):
        with pytest.raises(ValidationError, match=r"sub-01\.nii\.gz"):
            binarise_mask(values, NAME)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    data = of_values(0, 1, np.float32)
    data[0, 0, 0] = value
    with pytest.raises(ValidationError, match=r"sub-01\.nii\.gz"):
        binarise_mask(data, NAME)
    with pytest.raises(ValidationError, match=r"sub-01\.nii\.gz"):
        binarise_mask(np.full((2, 2, 2), value), NAME)


@pytest.mark.parametrize(
    "data",
    [
        np.ones((2, 2, 2)),
        np.full((2, 2, 2), 255),
        np.zeros((2, 2)),
        np.zeros((2, 2, 2, 3)),
        np.zeros((2, 2, 2, 1, 2)),
        np.zeros((0, 2, 2)),
        np.zeros((2, 2, 2), dtype=np.complex64),
        np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]),
    ],
    ids=["all one", "all 255", "2D", "4D", "5D", "empty array", "complex", "colours"],
)
def test_arrays_that_are_no_mask(data):
    with pytest.raises(ValidationError, match=r"sub-01\.nii\.gz"):
        binarise_mask(data, NAME)


@pytest.mark.parametrize("extra", [(1,), (1, 1)])
def test_trailing_singletons_are_squeezed(extra):
    mask, _ = binarise_mask(of_values(0, 1, np.uint8).reshape(LESION.shape + extra), NAME)
    assert np.array_equal(mask, LESION)


def test_a_leading_singleton_is_a_thin_volume():
    mask, _ = binarise_mask(of_values(0, 1, np.uint8)[1:2], NAME)
    assert mask.shape == (1, 5, 6)


def test_no_lesion_is_valid():
    mask, warnings = binarise_mask(np.zeros((3, 3, 3)), NAME)
    assert not mask.any()
    assert warnings == []


@pytest.mark.parametrize(
    ("voxels", "voxel_ml", "n_warnings"),
    [(0, 0.001, 0), (1, 0.001, 1), (9, 0.001, 1), (10, 0.001, 0), (500, 0.008, 0), (500, 2, 1)],
)
def test_remarks_on_size(voxels, voxel_ml, n_warnings):
    mask = np.zeros((10, 10, 10), dtype=bool)
    mask.ravel()[:voxels] = True
    warnings = size_warnings(mask, grid_of_ml(voxel_ml), NAME)
    assert len(warnings) == n_warnings
    assert all(NAME in warning for warning in warnings)


@pytest.mark.parametrize(
    "affine",
    [
        np.full((4, 4), np.nan),
        np.eye(3),
        np.diag([0.0, 1, 1, 1]),
        np.diag([0.05, 1, 1, 1]),
        np.diag([1.0, 1, 21, 1]),
        np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
    ids=["nan", "3x3", "no extent", "tiny", "huge", "collapsed"],
)
def test_affines_that_place_nothing(affine):
    with pytest.raises(ValidationError, match=r"sub-01\.nii\.gz"):
        check_affine(affine, NAME)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (-2, 2, 2), (0.5, 0.5, 5), (0.1, 20, 1)])
def test_affines_of_brain_images(sizes):
    check_affine(np.diag([*sizes, 1.0]), NAME)


# --- shear ----------------------------------------------------------------------------------


def sheared(degrees, sizes=(1.0, 2.0, 3.0)):
    """Axes of which the second leans towards the first, as a whole turned in space."""
    angle = np.radians(degrees)
    axes = np.array([[1, np.sin(angle), 0], [0, np.cos(angle), 0], [0, 0, 1]])
    turn = np.array([[0.8, 0, -0.6], [0, 1, 0], [0.6, 0, 0.8]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * sizes
    return affine


@pytest.mark.parametrize("degrees", [0, 0.4, -0.4])
def test_perpendicular_axes_pass(degrees):
    assert check_shear(sheared(degrees), NAME) == []


@pytest.mark.parametrize("degrees", [0.6, -1.9])
def test_a_little_shear_is_remarked_on(degrees):
    (remark,) = check_shear(sheared(degrees), NAME)
    assert NAME in remark
    assert f"{abs(degrees):.1f} degrees" in remark


@pytest.mark.parametrize("degrees", [2.1, -30])
def test_much_shear_is_refused(degrees):
    with pytest.raises(ValidationError, match=rf"sub-01\.nii\.gz .*{abs(degrees):.1f} degrees"):
        check_shear(sheared(degrees), NAME)


def test_flipped_and_permuted_axes_are_no_shear():
    affine = np.array([[0, -2, 0, 5], [0, 0, 1.0, 6], [-3, 0, 0, 7], [0, 0, 0, 1]])
    assert check_shear(affine, NAME) == []


# --- where a lesion is ----------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("affine", [np.diag([-2.0, 2, 2, 1]), sheared(20)])
def test_points_of_a_lesion(order, affine):
    affine = affine.copy()
    affine[:3, 3] = 10, -20, 30
    mask = np.random.default_rng(0).random((5, 7, 6)) < 0.3
    expected = {
        tuple(np.round(affine @ [*voxel, 1], 9)[:3])
        for voxel in zip(*np.nonzero(mask), strict=True)
    }
    points = lesion_points(np.array(mask, order=order), Grid.make(mask.shape, affine))
    assert points.shape == (3, np.count_nonzero(mask))
    assert {tuple(point) for point in np.round(points.T, 9)} == expected


def test_points_of_an_empty_mask():
    assert lesion_points(np.zeros((2, 3, 4), bool), Grid.make((2, 3, 4), np.eye(4))).shape == (
        3,
        0,
    )


@pytest.mark.parametrize(
    ("x", "share"),
    [
        ([-10, -20, -30, 10], 0.75),
        ([-10, 1.5, -2, 2, 0], 1.0),  # at the midline: counts for no side
        ([2.5, 30], 0.0),
        ([-1, 0, 1], None),
        ([], None),
    ],
)
def test_share_in_the_left_hemisphere(x, share):
    points = np.stack([np.array(x, float), np.zeros(len(x)), np.ones(len(x))])
    assert left_share(points) == share


def test_share_inside_a_region():
    region = np.zeros((4, 4, 4), dtype=bool)
    region[:2] = True
    grid = Grid.make(region.shape, np.diag([-2.0, 2, 2, 1]))
    # Voxels 0, 1, 1 (rounded from 1.4), 2 along x; the last two are outside the grid.
    x = np.array([0, -2, -2.8, -4, 10, -1e12])
    points = np.stack([x, np.ones(6), np.full(6, 6.0)])
    assert share_inside(points, region, grid) == pytest.approx(3 / 6)
