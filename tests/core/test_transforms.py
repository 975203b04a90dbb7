"""Warps against scipy on the same field, with affines and LPS flips by hand."""

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import h5py
import nibabel as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from transform_data import (
    AFFINE,
    LPS,
    NLIN6,
    NLIN2009C,
    Field,
    apply_affine,
    displacement,
    points_of,
    sampled,
    write_affine,
    write_composite,
    write_field,
)

from lacuna_nipype.core import lesion_resampling, transforms
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.lesion_resampling import resample_mask, warp_mask
from lacuna_nipype.core.resampling import centre_of_mass, resample_nearest
from lacuna_nipype.core.spaces import (
    Grid,
    check_declared_space,
    grid_of_size,
    same_space,
    template_grid,
)
from lacuna_nipype.core.transforms import (
    AffineStep,
    FieldStep,
    LinearSampler,
    PointMap,
    check_domain,
    check_domains,
    load_point_map,
    pull_coordinates,
    warp_labels,
    warp_map,
)

DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None
FEW = settings(max_examples=20, deadline=None, derandomize=True)
SEEDS = st.integers(0, 10_000)
NLIN2009A, NLIN2009B = "MNI152NLin2009aAsym", "MNI152NLin2009bAsym"


def grid_of(shape, size, origin=(0, 0, 0), rotation=None):
    turn = np.eye(3) if rotation is None else rotation
    return Grid.make(shape, nb.affines.from_matvec(turn * size, origin))


def rotation_of(seed):
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return turn * np.sign(np.linalg.det(turn))


def step_of(field):
    """The package's form of a field of the tests."""
    displacements = np.ascontiguousarray(np.moveaxis(field.displacements, -1, 0))
    return FieldStep(Grid.make(displacements.shape[1:], field.affine), displacements)


def some_field(seed, shape=(9, 8, 7), amplitude=3.0):
    """A rough field on an oblique grid around the origin."""
    rng = np.random.default_rng(seed)
    affine = nb.affines.from_matvec(rotation_of(seed) * [2.0, 2.5, 3.0], [0, 0, 0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Field(rng.uniform(-amplitude, amplitude, (*shape, 3)).astype(np.float32), affine)


def some_affine(seed):
    rng = np.random.default_rng(seed)
    return nb.affines.from_matvec(np.eye(3) + 0.1 * rng.normal(size=(3, 3)), rng.normal(size=3))


def some_points(seed, n=300, extent=20):
    return np.random.default_rng(seed).uniform(-extent, extent, (n, 3))


# Files and directions


@pytest.mark.parametrize("order", ["field affine", "affine field", "affine field affine field"])
def test_composites_in_any_order(tmp_path, order):
    makers = [some_field if kind == "field" else some_affine for kind in order.split()]
    parts = [make(seed) for seed, make in enumerate(makers)]
    point_map = load_point_map([write_composite(tmp_path / "warp.h5", parts)])
    points = expected = some_points(0)
    for part in parts:
        expected = part(expected) if isinstance(part, Field) else apply_affine(part, expected)
    np.testing.assert_allclose(point_map(points), expected, atol=2e-6)
    assert [type(step) for step in point_map.steps] == [
        FieldStep if isinstance(part, Field) else AffineStep for part in parts
    ]


def test_one_displacement_by_hand_in_lps(tmp_path):
    # One voxel, at LPS (10, 20, 30), displaced by LPS (1, 2, 3): RAS (-10, -20, 30), (-1, -2, 3).
    with h5py.File(tmp_path / "warp.h5", "w") as file:
        file["TransformGroup/0/TransformType"] = [b"CompositeTransform_double_3_3"]
        file["TransformGroup/1/TransformType"] = [b"DisplacementFieldTransform_double_3_3"]
        file["TransformGroup/1/TransformParameters"] = np.array([1.0, 2, 3])
        file["TransformGroup/1/TransformFixedParameters"] = np.array(
            [1.0, 1, 1, 10, 20, 30, 2, 2, 2, 1, 0, 0, 0, 1, 0, 0, 0, 1]
        )
    point_map = load_point_map([tmp_path / "warp.h5"])
    points = np.array([[-10.0, -20, 30], [-10.9, -20, 30], [-11.1, -20, 30]])
    moved = points + np.array([[-1.0, -2, 3], [-1, -2, 3], [0, 0, 0]])
    np.testing.assert_allclose(point_map(points), moved, atol=1e-12)


@pytest.mark.parametrize("suffix", [".txt", ".tfm", ".mat"])
def test_affines_that_nitransforms_wrote(tmp_path, suffix):
    path = write_affine(tmp_path / f"affine{suffix}", AFFINE)
    points = some_points(1, extent=90)
    expected = apply_affine(AFFINE, points)
    np.testing.assert_allclose(load_point_map([path])(points), expected, atol=2e-3)


def test_an_affine_by_hand_in_lps(tmp_path):
    # ITK: y = M (x - c) + c + t. A shift of LPS (1, 2, 3) is one of RAS (-1, -2, 3).
    path = tmp_path / "affine.txt"
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\n"
        "Transform: MatrixOffsetTransformBase_double_3_3\n"
        "Parameters: 2 0 0 0 1 0 0 0 1 1 2 3\nFixedParameters: 5 0 0\n"
    )
    # RAS x of -7 is LPS 7: 2 (7 - 5) + 5 + 1 = 10, RAS -10.
    point_map = load_point_map([path])
    np.testing.assert_allclose(point_map(np.array([[-7.0, 0, 0]])), [[-10, -2, 3]], atol=1e-6)


@pytest.mark.parametrize("name", ["warp.nii.gz", "warp.nii"])
def test_displacement_fields(tmp_path, name):
    points = some_points(2)
    # A field of one plane keeps its three axes.
    for number, shape in enumerate([(9, 8, 7), (6, 1, 5)]):
        field = some_field(3, shape=shape)
        path = write_field(tmp_path / f"{number}_{name}", field)
        np.testing.assert_allclose(load_point_map([path])(points), field(points), atol=2e-6)


def test_nitransforms_agrees_on_the_voxels_of_a_field(tmp_path):
    from nitransforms.manip import TransformChain

    field = some_field(5)
    path = write_composite(tmp_path / "warp.h5", [field, AFFINE])
    points = points_of(field.displacements.shape[:3], field.affine)
    theirs = TransformChain.from_filename(str(path), fmt="itk").map(points)
    np.testing.assert_allclose(load_point_map([path])(points), theirs, atol=1e-4)


def test_files_are_given_in_the_order_of_application_to_images(tmp_path):
    first = write_affine(tmp_path / "from-A_to-B.mat", some_affine(1))
    second = write_field(tmp_path / "from-B_to-C.nii.gz", field := some_field(2))
    points = some_points(3)
    # Points go the other way: of C to B, then of B to A.
    expected = apply_affine(some_affine(1), field(points))
    np.testing.assert_allclose(load_point_map([first, second])(points), expected, atol=1e-5)


def test_no_file_is_the_identity():
    points = some_points(4)
    assert np.array_equal(load_point_map([])(points), points)
    assert np.array_equal(PointMap().inverse_at(points[0]), points[0])


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "warp.h5"
    points = some_points(5)
    for seed in (1, 2):
        write_composite(path, [some_field(seed, shape=(9 + seed, 8, 7))])
        expected = some_field(seed, shape=(9 + seed, 8, 7))(points)
        np.testing.assert_allclose(load_point_map([path])(points), expected, atol=2e-6)


def test_the_synthetic_transforms_undo_each_other(warps):
    points = some_points(6, n=2000, extent=60)
    assert 7 < np.linalg.norm(displacement(points), axis=1).max() <= 8
    for target, path in ((NLIN2009C, warps.to_2009c), (NLIN6, warps.to_nlin6)):
        found = load_point_map([path])(points)
        np.testing.assert_allclose(found, warps.pull(target, points), atol=1e-6)
    back = load_point_map([warps.to_2009c, warps.to_nlin6])(points)
    assert np.abs(back - points).max() < 0.03


def nifti(path, shape, intent="", dtype=np.float32):
    image = nb.Nifti1Image(np.zeros(shape, dtype), np.eye(4))
    image.header.set_intent("vector", name=intent)
    nb.save(image, path)


def swollen(path, name):
    """A composite of an affine that claims a thousand million parameters, in a few bytes."""
    composite_of(path, "CompositeTransform", "AffineTransform_double_3_3")
    with h5py.File(path, "a") as file:
        group = file["TransformGroup/1"]
        for part, size in (("TransformParameters", 12), ("TransformFixedParameters", 3)):
            n = 10**9 if part == name else size
            group.create_dataset(part, shape=(n,), dtype="f8", compression="gzip")


def composite_of(path, *kinds):
    with h5py.File(path, "w") as file:
        for number, kind in enumerate(kinds):
            file[f"TransformGroup/{number:d}/TransformType"] = [kind.encode()]


UNREADABLE = {
    "none.h5": None,
    "empty.h5": lambda path: path.write_bytes(b""),
    "text.h5": lambda path: path.write_text("no HDF5"),
    "other.h5": lambda path: h5py.File(path, "w").close(),
    "single.h5": lambda path: composite_of(path, "AffineTransform_double_3_3"),
    "nothing.h5": lambda path: composite_of(path, "CompositeTransform_double_3_3"),
    "foreign.h5": lambda path: composite_of(path, "CompositeTransform", "BSplineTransform"),
    "many.h5": lambda path: composite_of(path, "CompositeTransform", *["AffineTransform"] * 10),
    "long.h5": lambda path: composite_of(path, "CompositeTransform", "Affine" * 10_000),
    "unprintable.h5": lambda path: composite_of(path, "CompositeTransform", "Affine\x01"),
    "hollow.h5": lambda path: composite_of(path, "CompositeTransform", "AffineTransform"),
    "swollen.h5": lambda path: swollen(path, "TransformParameters"),
    "swollen_fixed.h5": lambda path: swollen(path, "TransformFixedParameters"),
    "words.txt": lambda path: path.write_text("hello"),
    "bytes.txt": lambda path: path.write_bytes(bytes(range(256))),
    "rigid.txt": lambda path: path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: Euler3DTransform_double_3_3\n"
        "Parameters: 0 0 0 1 2 3\nFixedParameters: 0 0 0\n"
    ),
    "singular.txt": lambda path: path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 0 0 0 0 1 0 0 0 1 1 2 3\nFixedParameters: 0 0 0\n"
    ),
    "unnamed.txt": lambda path: path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 1 1 2 3\n1000 0 0 0\n"
    ),
    "joined.txt": lambda path: path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 1 1 2 3\n"
        "FixedParameters: 0 0 0Parameters: 1 0 0 0 1 0 0 0 1 1 2 3\n"
    ),
    "short.txt": lambda path: path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 1 0 0 0 1 0 0 0 1 1 2 3\nFixedParameters: 0\n"
    ),
    "flirt.mat": lambda path: path.write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"),
    "fnirt.nii.gz": lambda path: nifti(path, (3, 3, 3, 3)),
    "spm.nii": lambda path: nifti(path, (3, 3, 3, 1, 3), "Mapping"),
    "mask.nii.gz": lambda path: nifti(path, (3, 3, 3)),
    "damaged.nii.gz": lambda path: path.write_bytes(b"\x1f\x8b\x08 and so on"),
    "warp.lta": lambda path: path.write_text("type = 1"),
    "warp.mgz": lambda path: path.write_bytes(b"123"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path, name):
    if UNREADABLE[name] is not None:
        UNREADABLE[name](tmp_path / name)
    with pytest.raises(ValidationError) as error:
        load_point_map([tmp_path / name])
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def test_a_file_cut_short_and_one_with_nan(tmp_path):
    path = write_composite(tmp_path / "warp.h5", [some_field(1, shape=(20, 20, 20))])
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(ValidationError, match=r"warp\.h5"):
        load_point_map([path])
    field = some_field(1)
    field.displacements[2, 2, 2, 1] = np.nan
    with pytest.raises(ValidationError, match="finite"):
        load_point_map([write_composite(tmp_path / "nan.h5", [field])])


# Bounds and inverse


@FEW
@given(SEEDS)
def test_bounds_contain_the_images_of_all_points(seed):
    rng = np.random.default_rng(seed)
    # Many blocks of voxels, and boxes that end anywhere in them.
    steps = [step_of(some_field(seed, shape=(20, 18, 11))), AffineStep(some_affine(seed))]
    steps = [*steps[:: rng.choice([1, -1])], step_of(some_field(seed + 1))]
    point_map = PointMap(tuple(steps))
    low = rng.uniform(-30, 25, (80, 3))
    high = low + rng.uniform(0, 12, (80, 3)) * rng.choice([1, 0.05], (80, 1))
    first, last = point_map.bounds(low, high)
    for share in [*rng.random((60, 80, 3)), np.zeros((80, 3)), np.ones((80, 3))]:
        moved = point_map(low + share * (high - low))
        assert np.all(moved >= first - 1e-9)
        assert np.all(moved <= last + 1e-9)


def test_bounds_reach_over_to_the_next_voxel():
    # Index and mm agree; only voxels 8 and on are displaced, but 7.5 is halfway to them.
    displacements = np.zeros((3, 16, 4, 4), np.float32)
    displacements[0, 8:] = 10
    point_map = PointMap((FieldStep(grid_of((16, 4, 4), 1), displacements),))
    first, last = point_map.bounds(np.array([[7.2, 1, 1]]), np.array([[7.5, 2, 2]]))
    assert point_map(np.array([[7.5, 2, 2]]))[0, 0] == pytest.approx(12.5)
    assert first[0, 0] <= 7.2 + 2
    assert last[0, 0] >= 12.5


def test_bounds_of_smooth_transforms_are_tight(warps):
    point_map = load_point_map([warps.to_2009c])
    low = some_points(1, n=200, extent=60)
    first, last = point_map.bounds(low, low + 8)
    # Exact ones would be as wide as 8 mm times the stretch, which is below 1.6.
    assert np.max(last - first) < 25


@FEW
@given(SEEDS)
def test_inverse_of_smooth_transforms(warps, seed):
    point = np.random.default_rng(seed).uniform(-60, 60, 3)
    for paths in ([warps.to_2009c], [warps.to_nlin6], [warps.to_2009c, warps.to_nlin6]):
        point_map = load_point_map(paths)
        found = point_map.inverse_at(point)
        np.testing.assert_allclose(point_map(found[None])[0], point, atol=1e-3)


def test_inverse_where_fixed_point_iteration_diverges():
    # x + u(x) = 3.2 x inside: each iteration would overshoot by more than the rest.
    shape, affine = (21, 21, 21), nb.affines.from_matvec(np.eye(3) * 2, [-20, -20, -20])
    stretch = sampled(lambda points: 2.2 * points, shape, affine)
    found = PointMap((step_of(stretch),)).inverse_at(np.array([6.4, -3.2, 9.6]))
    np.testing.assert_allclose(found, [2, -1, 3], atol=1e-3)


def test_no_inverse_where_nothing_is_mapped_to():
    # Everything up to 50 mm jumps away by 30 mm to the right, and what is beyond stays.
    shape, affine = (5, 5, 5), nb.affines.from_matvec(np.eye(3) * 25, [-50, -50, -50])
    jump = sampled(lambda points: np.tile([300.0, 0, 0], (len(points), 1)), shape, affine)
    point_map = PointMap((step_of(jump),))
    assert point_map.inverse_at(np.zeros(3)) is None
    mask = np.zeros((3, 3, 3), bool)
    mask[1, 1, 1] = True
    source, target = grid_of((3, 3, 3), 1, (-1, -1, -1)), grid_of((20, 20, 20), 2, (-20, -20, -20))
    warped, accounting = warp_mask(mask, source, target, point_map)
    assert not warped.any()
    assert accounting.centre_shift_mm is None
    assert not accounting.kept_by_centre


# Masks


def centred(shape, size, seed):
    """An oblique grid around the origin."""
    turn = rotation_of(seed) * size
    return Grid.make(shape, nb.affines.from_matvec(turn, -turn @ ((np.array(shape) - 1) / 2)))


@pytest.mark.parametrize("seed", range(6))
def test_nearest_against_a_loop_over_voxels(seed):
    rng = np.random.default_rng(seed)
    field, affine = some_field(seed), some_affine(seed)
    point_map = PointMap((step_of(field), AffineStep(affine)))
    source, target = centred((9, 7, 8), 2.1, seed), centred((10, 11, 9), 1.7, seed + 50)
    labels = rng.integers(1, 500, source.shape).astype(np.int16)
    found = warp_labels(labels, source, target, point_map)
    assert found.dtype == np.int16
    assert 100 < np.count_nonzero(found) < found.size
    lesion, _ = warp_mask(labels < 40, source, target, point_map)
    points = apply_affine(affine, field(points_of(target.shape, target.affine)))
    index = apply_affine(np.linalg.inv(source.affine), points)
    for place, voxel in zip(np.ndindex(*target.shape), index, strict=True):
        nearest = np.rint(voxel).astype(int)
        if np.abs(np.abs(voxel - nearest) - 0.5).min() < 1e-3:
            continue
        inside = np.all(nearest >= 0) and np.all(nearest < source.shape)
        expected = labels[tuple(nearest)] if inside else 0
        assert found[place] == expected
        assert lesion[place] == (0 < expected < 40)


@FEW
@given(SEEDS)
def test_the_fast_path_is_the_full_computation(warps, seed):
    rng = np.random.default_rng(seed)
    paths = ([warps.to_2009c], [warps.to_nlin6], [warps.to_2009c, warps.to_nlin6])
    point_map = load_point_map(paths[seed % 3])
    source = grid_of((45, 52, 45), 3.3, (-70, -95, -60))
    target = grid_of((38, 45, 40), 4.0, (-75, -100, -65), rotation_of(seed) if seed % 2 else None)
    mask = np.zeros(source.shape, bool)
    # Some blobs, of which a few touch the border of the image.
    for _ in range(rng.integers(1, 4)):
        mask |= drawn_on(
            source,
            apply_affine(source.affine, rng.uniform(0, source.shape)[None])[0],
            rng.uniform(3, 25, 3),
        )
    full = warp_labels(mask, source, target, point_map)
    fast, accounting = warp_mask(mask, source, target, point_map)
    if not full.any() and accounting.kept_by_centre:
        assert fast.sum() == 1
    elif not accounting.voxels_adjusted:
        assert np.array_equal(fast, full)


@pytest.mark.parametrize("distance", [30.0, -30.0])
def test_the_fast_path_sees_the_border_of_a_field(distance):
    # Inside the field points come from 30 mm further right, or left; outside they stay.
    shape, affine = (5, 5, 5), nb.affines.from_matvec(np.eye(3) * 4, [-8, -8, -8])
    shift = sampled(lambda points: np.tile([distance, 0, 0], (len(points), 1)), shape, affine)
    point_map = PointMap((step_of(shift),))
    source = target = grid_of((80, 30, 30), 1, (-40, -15, -15))
    for box in (np.s_[60:75, 5:25, 5:25], np.s_[28:36, 10:12, 3:6], np.s_[5:9, 5:9, 5:9]):
        mask = np.zeros(source.shape, bool)
        mask[box] = True
        fast, _ = warp_mask(mask, source, target, point_map)
        assert np.array_equal(fast, warp_labels(mask, source, target, point_map))
        assert fast.any()


@pytest.mark.parametrize("at_a_time", [1, 777])
def test_pieces_of_any_size_give_the_same(warps, monkeypatch, at_a_time):
    point_map = load_point_map([warps.to_2009c])
    source, target = template_grid(NLIN6, 3), grid_of((14, 15, 16), 4, (-60, -50, -10))
    rng = np.random.default_rng(0)
    mask, data = rng.random(source.shape) < 0.3, rng.normal(size=source.shape)
    mask[:20] = False
    expected = (
        warp_labels(mask, source, target, point_map),
        warp_mask(mask, source, target, point_map)[0],
        *warp_map(data, source, target, point_map),
    )
    for module in (transforms, lesion_resampling):
        monkeypatch.setattr(module, "POINTS_AT_A_TIME", at_a_time)
    found = (
        warp_labels(mask, source, target, point_map),
        warp_mask(mask, source, target, point_map)[0],
        *warp_map(data, source, target, point_map),
    )
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


@FEW
@given(SEEDS)
def test_without_a_transform_it_is_a_change_of_grid(seed):
    rng = np.random.default_rng(seed)
    # Many ties: every second target voxel lies midway between two source voxels.
    source = grid_of((8, 9, 7), 1.0, (-4, -4, -3))
    target = grid_of((6, 6, 6), 1.5, (-4, -4.5, -3))
    flip = Grid.make(target.shape, target.affine @ np.diag([-1, 1, 1, 1]))
    mask = rng.random(source.shape) < rng.choice([0.005, 0.3])
    for grid in (target, flip):
        expected, expected_accounting = resample_mask(mask, source, grid)
        found, accounting = warp_mask(mask, source, grid, PointMap())
        assert np.array_equal(found, expected)
        shift = expected_accounting.centre_shift_mm
        assert accounting == replace(expected_accounting, centre_shift_mm=ANY)
        assert accounting.centre_shift_mm == (
            None if shift is None else pytest.approx(shift, abs=1e-9)
        )
        labels = rng.integers(0, 9, source.shape)
        plain = resample_nearest(labels, source, grid)
        assert np.array_equal(warp_labels(labels, source, grid, PointMap()), plain)
        # Ties go the same way in the world whatever way the image is stored.
        turn = np.diag([-1.0, 1, 1, 1])
        turn[0, 3] = source.shape[0] - 1
        stored = Grid.make(source.shape, source.affine @ turn)
        assert np.array_equal(warp_labels(labels[::-1], stored, grid, PointMap()), plain)
        assert np.array_equal(warp_mask(mask[::-1], stored, grid, PointMap())[0], expected)


def test_a_lesion_that_would_vanish_keeps_the_voxel_of_its_centre(warps):
    source, target = template_grid(NLIN6, 1), template_grid(NLIN2009C, 3)
    point_map = load_point_map([warps.to_2009c])
    kept = 0
    for seed in range(6):
        mask = np.zeros(source.shape, bool)
        voxel = np.random.default_rng(seed).integers(50, 110, 3)
        mask[tuple(voxel)] = True
        warped, accounting = warp_mask(mask, source, target, point_map)
        kept += accounting.kept_by_centre
        assert warped.sum() == accounting.voxels_after == 1
        # The opposite transform, computed without the package, says where the lesion goes.
        goal = warps.pull(NLIN6, apply_affine(source.affine, voxel[None]))[0]
        found = centre_of_mass(warped, target)
        assert np.all(np.abs(found - goal) < 1.5 + 0.03)
        # And where the voxel comes from is what the shift is measured by.
        origin = warps.pull(NLIN2009C, found[None])[0]
        shift = np.linalg.norm(origin - apply_affine(source.affine, voxel[None])[0])
        assert accounting.centre_shift_mm == pytest.approx(shift, abs=1e-4)
        assert accounting.volume_ml_before == pytest.approx(0.001)
        assert accounting.volume_ml_after == pytest.approx(0.027)
    assert kept >= 4


def test_a_lesion_beyond_the_field_of_view_is_not_moved_into_it(warps):
    mask = np.zeros((10, 10, 10), bool)
    mask[4, 5, 6] = True
    source, target = grid_of((10, 10, 10), 1, (-40, -20, 10)), grid_of((9, 9, 9), 2, (40, 0, 0))
    warped, accounting = warp_mask(mask, source, target, load_point_map([warps.to_2009c]))
    assert not warped.any()
    assert accounting.to_dict() == {
        "VoxelsBefore": 1, "VoxelsAfter": 0, "VolumeMLBefore": 0.001, "VolumeMLAfter": 0.0,
        "CentreShiftMM": None, "KeptByCentre": False, "VoxelsAdjusted": 0,
    }  # fmt: skip


def test_an_empty_mask_stays_empty(warps):
    mask = np.zeros((4, 4, 4), bool)
    grid = grid_of(mask.shape, 2)
    warped, accounting = warp_mask(mask, grid, grid, load_point_map([warps.to_2009c]))
    assert not warped.any()
    json.dumps(accounting.to_dict(), allow_nan=False)
    assert accounting.centre_shift_mm is None


# Every pair of space, orientation and resolution

# 36 ml; smaller ones are in test_lesion_resampling.py.
LESION_CENTRE, LESION_RADII = np.array([-34.0, -22.0, 14.0]), np.array([20.0, 24.0, 18.0])
LESION_ML = 4 / 3 * np.pi * LESION_RADII.prod() / 1000
GRIDS = [
    *((space, size) for space in (NLIN6, NLIN2009C) for size in (1, 2, 3)),
    (NLIN2009B, 1),
]
TURN = np.deg2rad(11)
ORIENTATIONS = {
    "RAS": np.eye(3),
    "LAS": np.diag([-1.0, 1, 1]),
    "oblique": np.array(
        [[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]]
    ),
}


def turned(grid, turn):
    """A lattice over the same volume with other axes."""
    centre = apply_affine(grid.affine, (np.array(grid.shape)[None] - 1) / 2)[0]
    shape = np.rint(np.abs(turn.T) @ grid.shape).astype(int)
    matrix = turn * grid.voxel_sizes[0]
    return Grid.make(shape, nb.affines.from_matvec(matrix, centre - matrix @ ((shape - 1) / 2)))


def in_lesion(points):
    return np.sum(((points - LESION_CENTRE) / LESION_RADII) ** 2, axis=1) < 1


def drawn_on(grid, centre=LESION_CENTRE, radii=LESION_RADII):
    """An ellipsoid on a grid, by the positions of the voxel centres."""
    axes = np.ogrid[tuple(slice(n) for n in grid.shape)]
    distance = 0
    for row, shift, middle, radius in zip(
        grid.affine[:3, :3], grid.affine[:3, 3], centre, radii, strict=True
    ):
        place = sum(
            np.float32(slope) * axis.astype(np.float32)
            for slope, axis in zip(row, axes, strict=True)
        )
        distance = distance + ((place + np.float32(shift - middle)) / np.float32(radius)) ** 2
    return distance < 1


def pull_between(warps, source, target):
    if same_space(source, target):
        return lambda points: points
    return lambda points: warps.pull(NLIN6 if target == NLIN6 else NLIN2009C, points)


@pytest.fixture(scope="module")
def truth(warps):
    """Centre of mass (mm) of the true warped lesion, and its stretch, by pair of spaces."""
    axes = [np.arange(c - 45, c + 45, 1.3) for c in LESION_CENTRE]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    found = {}
    for source, target in itertools.product((NLIN6, NLIN2009C), repeat=2):
        inside = in_lesion(pull_between(warps, source, target)(points))
        stretch = inside.sum() * 1.3**3 / 1000 / LESION_ML
        found[source, target] = points[inside].mean(axis=0), stretch
    for pair in itertools.product((NLIN6, NLIN2009C, NLIN2009A, NLIN2009B), repeat=2):
        found[pair] = found[tuple(NLIN6 if space == NLIN6 else NLIN2009C for space in pair)]
    return found


def paths_between(warps, source, target):
    if same_space(source, target):
        return []
    return [warps.to_nlin6 if target == NLIN6 else warps.to_2009c]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("mask_grid", GRIDS, ids=lambda pair: f"{pair[0][8:]}-{pair[1]}mm")
def test_lesions_of_any_grid_in_any_space(warps, truth, mask_grid, orientation):
    space, size = mask_grid
    source = turned(grid_of_size(space, size), ORIENTATIONS[orientation])
    mask = drawn_on(source)
    drawn = centre_of_mass(mask, source) - LESION_CENTRE
    for target_space, target_size in GRIDS:
        target = grid_of_size(target_space, target_size)
        point_map = load_point_map(paths_between(warps, space, target_space))
        warped, accounting = warp_mask(mask, source, target, point_map)
        centre, stretch = truth[space, target_space]
        # Half a voxel of the coarser grid: where 2 mm voxels meet 1 mm voxels midway, all of a
        # lesion's surface is a tie, and 0.5 mm is what the rule for ties costs.
        shift = np.abs(centre_of_mass(warped, target) - centre)
        assert shift.max() < 0.5 * max(size, target_size), (target_space, target_size)
        assert accounting.centre_shift_mm < 0.5 * max(size, target_size)
        assert np.linalg.norm(drawn) < 0.1 * size
        expected = accounting.volume_ml_before * stretch
        assert accounting.volume_ml_after == pytest.approx(expected, rel=0.05)


def test_the_stretch_is_the_jacobian_of_the_field(warps, truth):
    for source, target in ((NLIN6, NLIN2009C), (NLIN2009C, NLIN6)):
        pull = pull_between(warps, source, target)
        grid = grid_of_size(target, 2)
        mask, _ = warp_mask(
            drawn_on(grid_of_size(source, 2)), grid_of_size(source, 2), grid,
            load_point_map(paths_between(warps, source, target)),
        )  # fmt: skip
        jacobian = jacobian_of(pull, points_in(mask, grid))
        assert 1 / jacobian.mean() == pytest.approx(truth[source, target][1], rel=0.01)
        assert jacobian.max() / jacobian.min() > 1.5


def points_in(mask, grid):
    return apply_affine(grid.affine, np.argwhere(mask))


def jacobian_of(pull, points, step=2.0):
    """Volume in the source of a volume in the target, by central differences."""
    columns = [
        (pull(points + step * axis) - pull(points - step * axis)) / (2 * step)
        for axis in np.eye(3)
    ]
    return np.abs(np.linalg.det(np.stack(columns, axis=-1)))


@pytest.mark.parametrize("size", [1, 2])
def test_the_volume_of_a_lesion_of_one_millilitre(warps, size):
    source, target = template_grid(NLIN6, 1), template_grid(NLIN2009C, size)
    point_map = load_point_map([warps.to_2009c])
    pull = pull_between(warps, NLIN6, NLIN2009C)
    for seed in range(4):
        centre = np.random.default_rng(seed).uniform(-45, 45, 3)
        mask = drawn_on(source, centre, (6.4, 6.4, 6.4))
        warped, accounting = warp_mask(mask, source, target, point_map)
        assert accounting.volume_ml_before > 1
        restored = np.sum(jacobian_of(pull, points_in(warped, target))) * target.voxel_volume_ml
        assert restored == pytest.approx(accounting.volume_ml_before, rel=0.05)


def test_a_lesion_on_the_grid_of_the_stroke_data(warps, truth):
    # Colin27's shape, no standard grid, declared to be MNI152NLin6Asym.
    source, target = grid_of((181, 217, 181), 1, (-90, -125, -71)), template_grid(NLIN2009C, 2)
    mask = drawn_on(source)
    check_domain(warps.to_2009c, target, source=source)
    warped, _ = warp_mask(mask, source, target, load_point_map([warps.to_2009c]))
    centre, stretch = truth[NLIN6, NLIN2009C]
    assert np.abs(centre_of_mass(warped, target) - centre).max() < 0.2
    assert warped.sum() * 8 == pytest.approx(mask.sum() * stretch, rel=0.02)


@pytest.mark.real_data
@pytest.mark.skipif(
    DATA is None or not (DATA / "lesions_stroke").is_dir(),
    reason="LACUNA_TEST_DATA does not name a folder with the real data",
)
@pytest.mark.parametrize("size", [1, 2])
def test_real_lesions_keep_their_volume_and_place(warps, size):
    target, point_map = template_grid(NLIN2009C, size), load_point_map([warps.to_2009c])
    for path in sorted((DATA / "lesions_stroke").rglob("*.nii.gz"))[::4]:
        image = nb.load(path)
        source, mask = Grid.make(image.shape, image.affine), np.asanyarray(image.dataobj) > 0
        assert check_declared_space(NLIN6, source, str(path)) == NLIN6
        check_domain(warps.to_2009c, target, source=source)
        warped, accounting = warp_mask(mask, source, target, point_map)
        jacobian = jacobian_of(
            lambda points: warps.pull(NLIN2009C, points), points_in(warped, target)
        )
        restored = jacobian.sum() * target.voxel_volume_ml
        assert restored == pytest.approx(accounting.volume_ml_before, rel=0.02)
        assert accounting.centre_shift_mm < 0.25 * size


# Maps


def weighted_mean(data, valid, index):
    """Sum over the eight voxels around a place; those that are invalid or absent have no part."""
    low = np.floor(index).astype(int)
    total = weight = 0.0
    for corner in itertools.product([0, 1], repeat=3):
        voxel = low + corner
        if np.all(voxel >= 0) and np.all(voxel < data.shape) and valid[tuple(voxel)]:
            share = np.prod(1 - np.abs(index - voxel))
            total += data[tuple(voxel)] * share
            weight += share
    return (total / weight if weight else np.nan), weight


@pytest.mark.parametrize("seed", range(3))
def test_linear_against_a_loop_over_voxels(seed):
    rng = np.random.default_rng(seed)
    field, affine = some_field(seed), some_affine(seed)
    source, target = centred((9, 7, 8), 2.1, seed), centred((8, 7, 9), 2.0, seed + 50)
    data, valid = rng.normal(size=source.shape), rng.random(source.shape) < 0.7
    data[~valid] = rng.choice([np.nan, np.inf, 1e30, 0], size=np.count_nonzero(~valid))
    point_map = PointMap((step_of(field), AffineStep(affine)))
    values, inside = warp_map(data, source, target, point_map, valid=valid, fill=-7)
    assert values.dtype == np.float32
    points = apply_affine(affine, field(points_of(target.shape, target.affine)))
    index = apply_affine(np.linalg.inv(source.affine), points)
    assert inside.any()
    assert not inside.all()
    for place, voxel in zip(np.ndindex(*target.shape), index, strict=True):
        expected, weight = weighted_mean(data, valid, voxel)
        if abs(weight - 0.5) > 1e-3:
            assert inside[place] == (weight > 0.5)
        if inside[place]:
            assert values[place] == pytest.approx(expected, abs=1e-5)
        else:
            assert values[place] == -7


def test_maps_against_scipy_on_the_same_field(warps):
    source, target = template_grid(NLIN6, 3), template_grid(NLIN2009C, 3)
    points = points_of(source.shape, source.affine)
    data = np.sin(points[:, 0] / 9 + points[:, 1] / 11).reshape(source.shape)
    values, inside = warp_map(data, source, target, load_point_map([warps.to_2009c]))
    places = points_of(target.shape, target.affine)
    index = apply_affine(np.linalg.inv(source.affine), warps.pull(NLIN2009C, places))
    expected = map_coordinates(data, index.T, order=1, mode="constant", cval=np.nan)
    known = np.isfinite(expected)
    assert inside.ravel()[known].all()
    np.testing.assert_allclose(values.ravel()[known], expected[known], atol=2e-6)
    # And the map itself, which is smooth, is found again in the other space.
    pulled = warps.pull(NLIN2009C, places[known])
    truth = np.sin(pulled[:, 0] / 9 + pulled[:, 1] / 11)
    assert np.abs(values.ravel()[known] - truth).max() < 0.05


def test_a_constant_stays_what_it_is_up_to_its_border(warps):
    source, target = template_grid(NLIN6, 3), template_grid(NLIN2009C, 3)
    distance = np.linalg.norm(points_of(source.shape, source.affine) - [0, -20, 10], axis=1)
    valid = (distance < 50).reshape(source.shape)
    data = np.where(valid, 0.7, np.nan)
    for background in (data, np.nan_to_num(data)):
        values, inside = warp_map(
            background, source, target, load_point_map([warps.to_2009c]), valid=valid, fill=1
        )
        np.testing.assert_allclose(values[inside], 0.7, rtol=1e-6)
        assert np.all(values[~inside] == 1)
    # As many voxels are valid as the ball has in the other space.
    nearest = warp_labels(valid, source, target, load_point_map([warps.to_2009c]))
    assert np.count_nonzero(inside) == pytest.approx(np.count_nonzero(nearest), rel=0.02)


def test_without_a_transform_and_on_its_own_grid_nothing_changes():
    grid = grid_of((5, 6, 7), 2, (-3, 4, 5), rotation_of(1))
    data = np.random.default_rng(0).normal(size=grid.shape)
    values, inside = warp_map(data, grid, grid, PointMap())
    assert inside.all()
    np.testing.assert_allclose(values, data, atol=1e-6)


def test_coordinates_are_worth_keeping_for_many_maps(warps):
    source, target = template_grid(NLIN6, 3), grid_of((14, 15, 16), 4, (-60, -50, -10))
    point_map = load_point_map([warps.to_2009c])
    data = np.random.default_rng(0).normal(size=source.shape)
    coordinates = pull_coordinates(source, target, point_map)
    assert coordinates.dtype == np.float32
    values, inside = LinearSampler.make(data)(coordinates, fill=2)
    expected, expected_inside = warp_map(data, source, target, point_map, fill=2)
    assert np.array_equal(inside, expected_inside.ravel())
    np.testing.assert_allclose(values, expected.ravel(), atol=1e-4)


# Transforms that belong to other images


@pytest.fixture
def on_standard_grids(tmp_path):
    """Forward transforms whose fields lie on the standard 3 mm or 2 mm grids, as ANTs' do."""

    def write(space):
        grid = template_grid(space, 3 if space == NLIN2009C else 2)
        field = sampled(displacement, grid.shape, grid.affine)
        return write_composite(tmp_path / f"to-{space}.h5", [field, AFFINE])

    return write


@pytest.mark.parametrize(("target", "other"), [(NLIN2009C, NLIN6), (NLIN6, NLIN2009C)])
def test_the_opposite_transform_is_refused(on_standard_grids, target, other):
    right, wrong = on_standard_grids(target), on_standard_grids(other)
    for size in (1, 2, 3):
        grid = template_grid(target, size)
        check_domain(right, grid, space=target)
        with pytest.raises(SpatialMismatchError) as error:
            check_domain(wrong, grid, space=target)
        for text in (str(wrong), grid.describe(), other, target):
            assert text in str(error.value)
    # The grid alone tells it too; relatives of 2009c are no others.
    with pytest.raises(SpatialMismatchError, match="opposite"):
        check_domain(wrong, template_grid(target, 1))
    if target == NLIN2009C:
        check_domain(right, template_grid(NLIN2009B, 0.5), space=NLIN2009B)


def test_the_synthetic_transforms_lead_where_they_should(warps):
    grids = {space: template_grid(space, 2) for space in (NLIN6, NLIN2009C)}
    check_domain(warps.to_2009c, grids[NLIN2009C], space=NLIN2009C, source=grids[NLIN6])
    # ANTs' inverse: an affine first, and the field on the other space's grid.
    check_domain(warps.to_nlin6, grids[NLIN6], space=NLIN6, source=grids[NLIN2009C])


@pytest.mark.parametrize(
    ("name", "leads_to_2009c"),
    [
        (f"tpl-{NLIN2009C}_from-{NLIN6}_mode-image_xfm.h5", True),
        (f"tpl-{NLIN6}_from-{NLIN2009C}_mode-image_xfm.h5", False),
        ("sub-1_from-T1w_to-MNI152NLin2009bAsym_mode-image_xfm.h5", True),
        (f"sub-1_from-{NLIN2009C}_to-T1w_mode-image_xfm.h5", False),
        (f"sub-1_from-T1w_to-{NLIN6}_xfm.h5", False),
        ("up-to-date_xfm.h5", True),
        ("warp.h5", True),
    ],
)
def test_a_name_that_says_another_direction_is_believed(warps, tmp_path, name, leads_to_2009c):
    path = tmp_path / name
    path.write_bytes(warps.to_2009c.read_bytes())
    template = template_grid(NLIN2009C, 2)
    for options in ({}, {"space": "MNI152NLin2009aAsym"}):
        if leads_to_2009c:
            check_domain(path, template, **options)
        else:
            with pytest.raises(SpatialMismatchError, match="name"):
                check_domain(path, template, **options)
    # A grid that is nobody's does not contradict it.
    check_domain(path, grid_of((40, 40, 40), 3.3, (-60, -70, -60)))


def native(shift=(12.0, -25.0, 30.0)):
    """An affine from MNI points to points of a scanner, and a T1w grid there."""
    turn = np.deg2rad(14)
    matrix = np.array(
        [
            [1.05 * np.cos(turn), -np.sin(turn), 0, shift[0]],
            [np.sin(turn), 0.95 * np.cos(turn), 0, shift[1]],
            [0, 0, 0.9, shift[2]],
            [0, 0, 0, 1],
        ]
    )
    centre = apply_affine(matrix, [[0, -18, 8]])[0]
    return matrix, grid_of((88, 120, 96), 2.0, centre - [88, 120, 96])


def test_native_images_there_and_back(tmp_path):
    matrix, t1w = native()
    template = template_grid(NLIN2009C, 3)
    field = sampled(displacement, template.shape, template.affine)
    to_mni = write_composite(tmp_path / "from-T1w_to-MNI.h5", [field, matrix])
    # ANTs' inverse has its field on the template's grid; a direct one has it on the T1w's.
    to_t1w = write_composite(tmp_path / "from-MNI_to-T1w.h5", [np.linalg.inv(matrix), field])
    direct = write_composite(
        tmp_path / "direct.h5",
        [sampled(displacement, t1w.shape, t1w.affine), np.linalg.inv(matrix)],
    )
    check_domain(to_mni, template_grid(NLIN2009C, 1), source=t1w)
    check_domain(to_t1w, t1w, source=template)
    check_domain(direct, t1w, source=template)
    with pytest.raises(SpatialMismatchError, match="opposite"):
        check_domain(direct, template, space=NLIN2009C, source=t1w)


def test_a_field_that_misses_the_brain_is_refused(tmp_path):
    template = template_grid(NLIN2009C, 2)
    small = grid_of((30, 30, 30), 3, (-20, -60, -20))
    path = write_composite(
        tmp_path / "small.h5", [sampled(displacement, small.shape, small.affine)]
    )
    with pytest.raises(SpatialMismatchError) as error:
        check_domain(path, template)
    assert str(path) in str(error.value)
    assert small.describe() in str(error.value)
    assert template.describe() in str(error.value)
    # On a target that is no larger than the field there is nothing to object to.
    check_domain(path, grid_of((20, 20, 20), 2, (-10, -40, -10)), space=NLIN2009C)


def test_a_transform_of_another_subject_is_refused(tmp_path):
    matrix, _ = native()
    # This subject's scanner coordinates are far off from those of the transform.
    _, elsewhere = native(shift=(220.0, 200.0, -180.0))
    path = write_affine(tmp_path / "sub-02_from-T1w_to-MNI.mat", matrix)
    template = template_grid(NLIN2009C, 2)
    check_domain(path, template, source=native()[1])
    with pytest.raises(SpatialMismatchError, match="subject") as error:
        check_domain(path, template, source=elsewhere)
    assert elsewhere.describe() in str(error.value)


def test_a_chain_is_checked_as_a_whole(warps, tmp_path):
    matrix, t1w = native()
    first = write_composite(tmp_path / "from-T1w_to-2009c.h5", [warps.field, matrix])
    chain = [first, warps.to_nlin6]
    target = template_grid(NLIN6, 2)
    check_domains(chain, target, space=NLIN6, source=t1w)
    points = some_points(1, extent=50)
    expected = apply_affine(matrix, warps.field(warps.pull(NLIN6, points)))
    np.testing.assert_allclose(load_point_map(chain)(points), expected, atol=1e-5)
    check_domains([], target, source=t1w)


def test_lps_is_what_the_files_hold(warps):
    # Once more against the flip by hand, for the affine of a file.
    with h5py.File(warps.to_2009c) as file:
        group = file["TransformGroup/1"]
        values, centre = group["TransformParameters"][()], group["TransformFixedParameters"][()]
    matrix, shift = values[:9].reshape(3, 3), values[9:]
    point = np.array([10.0, -20, 30])
    lps = matrix @ (LPS[:3, :3] @ point - centre) + centre + shift
    np.testing.assert_allclose(LPS[:3, :3] @ lps, apply_affine(AFFINE, point[None])[0], atol=1e-9)


def test_the_inverse_of_a_normalisation_is_refused_under_any_name(tmp_path):
    """A native image: ANTs keeps the inverse's field on the standard grid, behind the affine."""
    import fmriprep_data

    study = fmriprep_data.write_fmriprep_study(
        tmp_path, subjects=("01",), targets=(NLIN2009C,), inverses=True, images=False
    )
    (lesion,) = study.lesions
    forward = lesion.transforms[NLIN2009C]
    (inverse,) = forward.parent.glob(f"*from-{NLIN2009C}_to-T1w*.h5")
    target = template_grid(NLIN2009C, 2.0)
    check_domains([forward], target, space=NLIN2009C, source=lesion.grid)
    forward.unlink()
    inverse.rename(forward)
    with pytest.raises(SpatialMismatchError, match="other direction"):
        check_domains([forward], target, space=NLIN2009C, source=lesion.grid)
