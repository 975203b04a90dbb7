"""Grids as MRtrix sees them, against what MRtrix itself says about the same files."""

import itertools
import shutil
import subprocess

import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.mrtrix_grid import MrtrixGrid, as_mask, grid_of_image, make_mrtrix_grid

SHAPE = (4, 5, 6)
SPACING = np.array([1.5, 2.0, 0.75])
ORIGIN = np.array([-7.25, 3.5, 11.0])


def needs_mrtrix(function):
    missing = any(shutil.which(command) is None for command in ("mrinfo", "mrgrid", "tckedit"))
    skip = pytest.mark.skipif(missing, reason="MRtrix3 is not on PATH")
    return pytest.mark.mrtrix(skip(function))


def orientations():
    """The 48 ways to store a volume along the axes of world space."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product([1, -1], repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = 0
            for axis in range(3):
                affine[order[axis], axis] = signs[axis] * SPACING[axis]
            affine[:3, 3] = ORIGIN
            yield affine


def rotations(n, seed):
    """Random rotations, some of them also reflections, some near half a turn."""
    rng = np.random.default_rng(seed)
    for number in range(n):
        quaternion = rng.normal(size=4)
        if number % 3 == 0:
            quaternion[0] *= 1e-4
        rotation = nb.quaternions.quat2mat(quaternion / np.linalg.norm(quaternion))
        rotation[:, 2] *= rng.choice([-1, 1])
        yield rotation


def oblique_affines(n, seed=1):
    for rotation in rotations(n, seed):
        affine = np.eye(4)
        affine[:3, :3] = rotation * SPACING
        affine[:3, 3] = ORIGIN
        yield affine


def grid_of(affine, shape=SHAPE):
    return make_mrtrix_grid(shape, affine, np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))


def mrtrix_says(paths):
    """Size, spacing, strides and transform of images, as mrinfo prints them."""
    options = ["-size", "-spacing", "-strides", "-transform"]
    told = subprocess.run(
        ["mrinfo", "-quiet", *options, *paths], check=True, capture_output=True, text=True
    ).stdout
    lines = [[float(word) for word in line.split()] for line in told.splitlines() if line.strip()]
    assert len(lines) == 7 * len(paths)
    return [lines[i : i + 7] for i in range(0, len(lines), 7)]


def assert_as_mrtrix_says(grids, paths):
    for grid, (size, spacing, strides, *transform) in zip(grids, mrtrix_says(paths), strict=True):
        assert list(grid.shape) == size
        np.testing.assert_allclose(grid.spacing, spacing, rtol=1e-14, atol=0)
        signs = np.where(grid.flips, -1, 1)
        assert ((np.array(grid.axes) + 1) * signs).tolist() == strides
        expected = np.array(transform)[:3]
        # mrinfo prints 15 digits.
        np.testing.assert_allclose(grid.directions, expected[:, :3], rtol=1e-14, atol=1e-15)
        np.testing.assert_allclose(grid.origin, expected[:, 3], rtol=1e-14, atol=1e-13)


# Realignment


@pytest.mark.parametrize("affine", [*orientations(), *oblique_affines(20)])
def test_every_voxel_keeps_its_place_and_value(affine):
    grid = grid_of(affine)
    data = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    moved = grid.from_stored(data)
    assert moved.shape == grid.shape
    assert np.array_equal(grid.to_stored(moved), data)
    for voxel in itertools.product(*map(range, grid.shape)):
        world = grid.voxel_to_world @ [*voxel, 1]
        stored = np.linalg.solve(affine, world)[:3]
        assert np.allclose(stored, np.round(stored), atol=1e-9)
        assert data[tuple(np.round(stored).astype(int))] == moved[voxel]


@pytest.mark.parametrize("affine", list(orientations()))
def test_axes_become_those_of_world_space(affine):
    grid = grid_of(affine)
    np.testing.assert_array_equal(grid.directions, np.eye(3))
    assert grid.n_voxels == np.prod(SHAPE)
    # The lowest corner of the field of view is the first voxel.
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in SHAPE])))
    lowest = (corners @ affine[:3, :3].T + affine[:3, 3]).min(axis=0)
    np.testing.assert_allclose(grid.origin, lowest, atol=1e-12)


def test_arrays_are_views():
    data = np.zeros(SHAPE)
    grid = grid_of(next(itertools.islice(orientations(), 11, None)))
    assert np.shares_memory(grid.from_stored(data), data)
    assert np.shares_memory(grid.to_stored(grid.from_stored(data)), data)


def test_world_to_voxel_is_the_inverse():
    for affine in [*orientations(), *oblique_affines(20)]:
        grid = grid_of(affine)
        product = np.vstack([grid.world_to_voxel, [0, 0, 0, 1]]) @ grid.voxel_to_world
        np.testing.assert_allclose(product, np.eye(4), atol=1e-13)
        assert grid.world_to_voxel_single.dtype == np.float32
        assert np.array_equal(grid.world_to_voxel_single, grid.world_to_voxel.astype(np.float32))


# Inverses that a program compiled with Eigen 3.4.0 for x86-64 gives.
EIGEN = [
    (
        np.diag([np.float32(3.3), 1.25, 1.5]),
        [-3.75, 11.55, -7.5],
        [
            ["0x1.364d93b012ce7p-2", "0x0.0p+0", "0x0.0p+0", "0x1.22e8ba7511a19p+0"],
            ["0x0.0p+0", "0x1.9999999999999p-1", "0x0.0p+0", "-0x1.27ae147ae147bp+3"],
            ["0x0.0p+0", "0x0.0p+0", "0x1.5555555555555p-1", "0x1.4000000000000p+2"],
        ],
    ),
    (
        np.array([[0.6, -0.8, 0], [0.48, 0.36, -0.8], [0.64, 0.48, 0.6]]) * [1.0, 2.0, 3.0],
        [-10.5, 20.25, -7.0],
        [
            [
                "0x1.3333333333333p-1",
                "0x1.eb851eb851eb8p-2",
                "0x1.47ae147ae147cp-1",
                "0x1.0f5c28f5c28fcp+0",
            ],
            [
                "-0x1.999999999999ap-2",
                "0x1.70a3d70a3d709p-3",
                "0x1.eb851eb851eb9p-3",
                "-0x1.8a8f5c28f5c28p+2",
            ],
            ["0x0.0p+0", "-0x1.1111111111111p-2", "0x1.9999999999999p-3", "0x1.b333333333334p+2"],
        ],
    ),
]


@pytest.mark.parametrize(("matrix", "origin", "expected"), EIGEN)
def test_inverse_to_the_last_bit(matrix, origin, expected):
    directions, spacing = np.asarray(matrix, dtype=np.float64), np.ones(3)
    grid = MrtrixGrid(
        SHAPE, spacing, directions, np.array(origin), (0, 1, 2), (False, False, False)
    )
    found = [[float(value).hex() for value in row] for row in grid.world_to_voxel + 0.0]
    assert found == expected


@needs_mrtrix
def test_grids_are_those_that_mrtrix_sees(tmp_path):
    grids, paths = [], []
    for number, affine in enumerate([*orientations(), *oblique_affines(60)]):
        image = nb.Nifti1Image(np.zeros(SHAPE, np.uint8), affine)
        path = tmp_path / f"{number}.nii"
        nb.save(image, path)
        paths.append(path)
        grids.append(grid_of_image(nb.load(path), "image"))
    assert_as_mrtrix_says(grids, paths)


@needs_mrtrix
def test_grids_that_have_a_qform_only(tmp_path):
    grids, paths = [], []
    for number, affine in enumerate([*orientations(), *oblique_affines(60, seed=2)]):
        image = nb.Nifti1Image(np.zeros(SHAPE, np.uint8), affine)
        image.set_qform(affine, 1)
        image.header["sform_code"] = 0
        path = tmp_path / f"{number}.nii"
        nb.save(image, path)
        paths.append(path)
        grids.append(grid_of_image(nb.load(path), "image"))
    assert_as_mrtrix_says(grids, paths)


@needs_mrtrix
def test_quaternions_of_half_a_turn(tmp_path):
    """Single precision leaves less than nothing, nothing or little for the first number."""
    grids, paths = [], []
    for number, rest in enumerate([-2e-7, -6e-8, 0, 6e-8, 1.2e-7, 2.4e-7, 3e-7, 5e-7, 1e-6]):
        for axis in range(3):
            image = nb.Nifti1Image(np.zeros(SHAPE, np.uint8), np.diag([*SPACING, 1]))
            image.set_qform(image.affine, 1)
            image.header["sform_code"] = 0
            image.header[f"quatern_{'bcd'[axis]}"] = np.sqrt(1 - rest)
            image.header["pixdim"][0] = 1 - 2 * (number % 2)
            path = tmp_path / f"{number}_{axis}.nii"
            content = image.header.binaryblock.ljust(352, b"\0") + bytes(int(np.prod(SHAPE)))
            path.write_bytes(content)
            paths.append(path)
            grids.append(grid_of_image(nb.load(path), "image"))
    assert_as_mrtrix_says(grids, paths)


@needs_mrtrix
@pytest.mark.parametrize("sign", [1, -1])
def test_voxel_sizes_of_the_header_or_of_the_transform(tmp_path, sign):
    grids, paths = [], []
    affines = list(oblique_affines(12, seed=3))
    factors = [1, 1 + 5e-6, 1 - 5e-6, 1 + 3e-5, 1 - 3e-5, 2]
    for number, (affine, factor) in enumerate(zip(affines, factors * 2, strict=True)):
        image = nb.Nifti1Image(np.zeros(SHAPE, np.uint8), affine)
        sizes = image.header["pixdim"][1:4]
        sizes[number % 3] *= factor
        path = tmp_path / f"{number}.nii"
        nb.save(image, path)
        # The header as it is: nibabel puts it right on the way.
        content = bytearray(path.read_bytes())
        content[80:92] = (sign * sizes).astype("<f4").tobytes()
        path.write_bytes(content)
        paths.append(path)
        grids.append(grid_of_image(nb.load(path), "image"))
    assert_as_mrtrix_says(grids, paths)


@pytest.mark.parametrize(
    ("factor", "kept"), [(1, True), (1 + 5e-6, True), (1 + 3e-5, False), (0, False)]
)
def test_voxel_sizes_that_differ_from_the_transform(factor, kept):
    sizes = SPACING * [1, factor, 1]
    grid = make_mrtrix_grid(SHAPE, np.diag([*SPACING, 1]), sizes)
    np.testing.assert_allclose(grid.spacing, sizes if kept else SPACING, rtol=1e-15)


def test_what_is_no_volume_in_space_is_refused():
    image = nb.Nifti1Image(np.zeros(SHAPE, np.uint8), None)
    with pytest.raises(ValidationError, match="neither sform nor qform"):
        grid_of_image(image, "mask.nii")
    with pytest.raises(ValidationError, match="not a NIfTI volume"):
        grid_of_image(nb.Nifti1Image(np.zeros((4, 5), np.uint8), np.eye(4)), "mask.nii")
    with pytest.raises(ValidationError, match="not a NIfTI volume"):
        grid_of_image(nb.MGHImage(np.zeros(SHAPE, np.uint8), np.eye(4)), "mask.mgz")


# Cropping


@needs_mrtrix
def test_a_crop_is_placed_as_mrtrix_places_it(tmp_path):
    for number, affine in enumerate([*list(orientations())[::9], *oblique_affines(6, seed=4)]):
        path, cropped = tmp_path / f"{number}.nii", tmp_path / f"{number}.mif"
        nb.save(nb.Nifti1Image(np.zeros(SHAPE, np.uint8), affine), path)
        grid = grid_of_image(nb.load(path), "image")
        first = np.array([1, 2, 1]) if number % 2 else np.array([2, 0, 1])
        shape = tuple(int(n) for n in np.array(grid.shape) - first - 1)
        axes = [("-axis", str(axis), f"{first[axis]},1") for axis in range(3)]
        command = ["mrgrid", "-quiet", path, "crop", *itertools.chain(*axes), cropped]
        subprocess.run(command, check=True)
        crop = grid.crop(first, shape)
        size, spacing, _, *transform = mrtrix_says([cropped])[0]
        assert (list(crop.shape), crop.spacing.tolist()) == (size, spacing)
        np.testing.assert_allclose(crop.origin, np.array(transform)[:3, 3], rtol=1e-14, atol=1e-13)
        np.testing.assert_allclose(
            crop.voxel_to_world[:3] @ [0, 0, 0, 1], grid.voxel_to_world[:3] @ [*first, 1]
        )


# Masks

BELOW_HALF = float(np.nextafter(np.float32(0.5), np.float32(0)))
VALUES = [0, 1, -1, 2, 0.5, -0.5, 0.49, -0.49, BELOW_HALF, 1e-6, 1e30, np.nan, np.inf, -np.inf]


def test_values_that_are_inside():
    expected = [False, True, True, True, True, True] + [False] * 4 + [True] + [False] * 3
    for dtype in (np.float32, np.float64):
        assert as_mask(np.array(VALUES, dtype)).tolist() == expected
    assert as_mask(np.array([-128, -1, 0, 1, 127], np.int8)).tolist() == [1, 1, 0, 1, 1]
    assert as_mask(np.array([0, 200], np.uint8)).tolist() == [0, 1]
    assert as_mask(np.array([-(2**63), 0], np.int64)).tolist() == [1, 0]
    assert as_mask(np.array([True, False])).tolist() == [1, 0]


@needs_mrtrix
@pytest.mark.parametrize(
    ("dtype", "slope", "inter"),
    # MRtrix 3.0.3 does not scale floating-point values, against the standard; we do.
    [("f4", 1, 0), ("f8", 1, 0), ("i2", 1, 0), ("i2", 0.25, -0.5), ("u1", 0.1, 0), ("i1", 1, 0)],
)
def test_inside_is_what_tckedit_takes_for_inside(tmp_path, dtype, slope, inter):
    if dtype[0] == "f":
        stored = np.array(VALUES, dtype)
    else:
        stored = np.arange(-8, 14) if dtype[0] == "i" else np.arange(22)
        stored = stored.astype(dtype)
    image = nb.Nifti1Image(stored[:, np.newaxis, np.newaxis], np.eye(4))
    image.header.set_slope_inter(slope, inter)
    path = tmp_path / "mask.nii"
    # Saving would scale the values anew.
    with path.open("wb") as stream:
        image.header["vox_offset"] = 352
        image.header["magic"] = b"n+1"
        stream.write(image.header.binaryblock.ljust(352, b"\0") + stored.tobytes())
    points = np.stack([np.arange(len(stored)), *np.zeros((2, len(stored)))], axis=1)
    separated = np.stack([points, np.full_like(points, np.nan)], axis=1).reshape(-1, 3)
    text = b"mrtrix tracks\ndatatype: Float32LE\nfile: . 100\nEND\n".ljust(100, b"\0")
    end = np.full((1, 3), np.inf)
    (tmp_path / "all.tck").write_bytes(text + np.vstack([separated, end]).astype("<f4").tobytes())
    command = ["tckedit", "-quiet", "all.tck", "-include", "mask.nii", "hit.tck"]
    subprocess.run(command, cwd=tmp_path, check=True)
    hit = nb.streamlines.load(tmp_path / "hit.tck").streamlines
    inside = as_mask(np.asarray(nb.load(path).dataobj).ravel())
    assert [round(float(line[0, 0])) for line in hit] == np.flatnonzero(inside).tolist()
