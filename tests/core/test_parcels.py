"""Regional damage and summaries over parcels, against loops over voxels."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.parcels import (
    STATISTICS,
    Parcels,
    aggregate,
    covering_lattice,
    integer_labels,
    labelled_weights,
    regional_damage,
)
from lacuna_nipype.core.spaces import Grid

FEW = settings(max_examples=12, deadline=None, derandomize=True)
RANDOM = st.integers(0, 10_000)
STORAGES = [
    (axes, flips)
    for axes in itertools.permutations(range(3))
    for flips in ([], [0], [1, 2], [0, 1, 2])
]
ANGLE = 0.4
TURN = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]])


def grid_of(shape, size, origin=(0, 0, 0), rotation=None):
    rotation = np.eye(3) if rotation is None else rotation
    return Grid.make(shape, nib.affines.from_matvec(rotation * size, origin))


def stored(data, grid, axes, flips):
    """The same image with its array axes permuted and some of them run backwards."""
    data, affine = data.transpose(axes), grid.affine[:, [*axes, 3]]
    for axis in flips:
        data = np.flip(data, axis)
        affine = affine.copy()
        affine[:3, 3] += affine[:3, axis] * (data.shape[axis] - 1)
        affine[:3, axis] *= -1
    return data, Grid.make(data.shape, affine)


def parcels_of(labels, grid, index=None):
    index = np.unique(labels[labels > 0]) if index is None else np.asarray(index)
    names = tuple(f"region {number}" for number in index)
    return Parcels(grid, index, names, labelled_weights(labels, index))


def weighted(weights, grid):
    """Parcels of rows of weights, each of the grid's shape."""
    rows = sp.csr_array(np.array([w.ravel() for w in weights], dtype=np.float32))
    names = tuple(f"region {row}" for row in range(len(weights)))
    return Parcels(grid, np.arange(1, len(weights) + 1), names, rows)


def blocks(rng, shape, n_labels=4):
    return rng.integers(0, n_labels + 1, size=shape)


def voxel_at(point, grid):
    """Voxel that contains a world point (the larger one at a border); None outside."""
    position = np.linalg.solve(grid.affine[:3, :3], point - grid.affine[:3, 3])
    index = np.floor(position + 0.5 + 1e-6).astype(int)
    inside = np.all(index >= 0) and np.all(index < grid.shape)
    return tuple(index) if inside else None


def damage_on_atlas(mask, mask_grid, labels, atlas_grid):
    """Look up the mask at every voxel of the atlas."""
    total, damaged = {}, {}
    for index in np.ndindex(*atlas_grid.shape):
        label = labels[index]
        point = atlas_grid.affine[:3, :3] @ index + atlas_grid.affine[:3, 3]
        voxel = voxel_at(point, mask_grid)
        total[label] = total.get(label, 0) + 1
        damaged[label] = damaged.get(label, 0) + (voxel is not None and bool(mask[voxel]))
    return total, damaged


def damage_on_mask(mask, mask_grid, labels, atlas_grid, reach):
    """Look up the atlas at every point of the mask's lattice, far beyond the mask itself."""
    total, damaged = {}, {}
    for index in itertools.product(range(-reach, reach + 1), repeat=3):
        point = mask_grid.affine[:3, :3] @ index + mask_grid.affine[:3, 3]
        voxel = voxel_at(point, atlas_grid)
        if voxel is None:
            continue
        label = labels[voxel]
        inside = all(0 <= i < n for i, n in zip(index, mask.shape, strict=True))
        total[label] = total.get(label, 0) + 1
        damaged[label] = damaged.get(label, 0) + (inside and bool(mask[index]))
    return total, damaged


def assert_damage(result, parcels, total, damaged):
    assert result.total.tolist() == [total.get(i, 0) for i in parcels.index.tolist()]
    assert result.damaged.tolist() == [damaged.get(i, 0) for i in parcels.index.tolist()]
    expected = [100 * damaged[i] / total[i] for i in parcels.index.tolist()]
    np.testing.assert_allclose(result.damage, expected, rtol=1e-14)


# Labels


def test_integer_labels_by_hand():
    data = np.array([-7, 0, 3, 300, 40_000, 3_000_000])
    assert integer_labels(data, "x").tolist() == [0, 0, 3, 300, 40_000, 3_000_000]
    assert (
        integer_labels(data.astype(np.float64), "x").tolist() == integer_labels(data, "x").tolist()
    )
    values = np.array([np.nan, -np.inf, -1.0, 1.9999, 255.0004], dtype=np.float32)
    assert integer_labels(values, "x").tolist() == [0, 0, 0, 2, 255]
    for large in (np.inf, 1e30):
        with pytest.raises(ValidationError, match="above"):
            integer_labels(np.append(values, large), "x")
    with pytest.raises(ValidationError, match="above"):
        integer_labels(np.array([2**64 - 1], dtype=np.uint64), "x")


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float32])
def test_integer_labels_do_not_wrap(dtype):
    largest = 127 if dtype == np.int8 else 255
    data = np.array([0, 1, largest]).astype(dtype)
    assert integer_labels(data, "x").tolist() == [0, 1, largest]
    assert integer_labels(data, "x").dtype == np.int64


@pytest.mark.parametrize(
    "data",
    [
        np.array([0, 0.5]),
        np.array([0, 1], dtype=np.complex64),
        np.zeros(2, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]),
    ],
    ids=["fraction", "complex", "colours"],
)
def test_values_that_are_no_labels_are_refused(data):
    with pytest.raises(ValidationError, match=r"atlas\.nii"):
        integer_labels(data, "atlas.nii")


def test_rows_follow_the_index_not_the_size_of_the_labels():
    labels = np.array([5, 0, 2, 5, 9, 2, 2, 70_000]).reshape(2, 2, 2)
    weights = labelled_weights(labels, np.array([9, 2, 70_000, 4, 5]))
    expected = [
        [0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
        [0] * 8,
        [1, 0, 0, 1, 0, 0, 0, 0],
    ]
    assert weights.toarray().tolist() == expected


def test_labels_without_a_row_are_ignored():
    labels = np.array([1, 2, 3, 99]).reshape(1, 2, 2)
    assert labelled_weights(labels, np.array([2])).toarray().tolist() == [[0, 1, 0, 0]]


# Regional damage


def test_same_grid_by_hand():
    labels = np.array([[[1, 1, 1, 1], [2, 2, 0, 3]]])
    mask = np.array([[[1, 0, 0, 0], [1, 1, 1, 0]]], dtype=bool)
    grid = grid_of(labels.shape, 2)
    result = regional_damage(mask, grid, parcels_of(labels, grid))
    assert result.damage.tolist() == [25, 100, 0]
    assert result.total.tolist() == [4, 2, 1]
    assert result.damaged.tolist() == [1, 2, 0]
    assert result.voxel_volume_ml == pytest.approx(0.008)
    assert result.lesion_in_regions == 75


@FEW
@given(RANDOM)
def test_same_grid_against_loops(seed):
    rng = np.random.default_rng(seed)
    grid = grid_of((5, 6, 4), 2, (-3, 1, 2))
    labels, mask = blocks(rng, grid.shape), rng.random(grid.shape) < 0.3
    parcels = parcels_of(labels, grid)
    result = regional_damage(mask, grid, parcels)
    assert_damage(result, parcels, *damage_on_atlas(mask, grid, labels, grid))


@FEW
@given(RANDOM, st.booleans())
def test_atlas_as_fine_as_the_mask_but_shifted_or_finer(seed, finer):
    rng = np.random.default_rng(seed)
    mask_grid = grid_of((5, 6, 4), 2.0)
    size, shape = (0.8, (9, 10, 7)) if finer else (2.0, (5, 5, 5))
    atlas_grid = grid_of(shape, size, rng.uniform(-1.5, 1.5, 3))
    labels, mask = blocks(rng, shape), rng.random(mask_grid.shape) < 0.3
    parcels = parcels_of(labels, atlas_grid)
    result = regional_damage(mask, mask_grid, parcels)
    assert_damage(result, parcels, *damage_on_atlas(mask, mask_grid, labels, atlas_grid))
    assert result.voxel_volume_ml == pytest.approx(size**3 / 1000)


@pytest.mark.parametrize("rotation", [None, TURN], ids=["straight", "oblique"])
@pytest.mark.parametrize("size", [1.0, 0.7], ids=["integer ratio", "other ratio"])
@pytest.mark.parametrize(
    ("shape", "origin"), [((16, 16, 16), (-2, -2, -2)), ((4, 3, 5), (1.2, 2.3, 0.4))]
)
def test_mask_finer_than_the_atlas(rotation, size, shape, origin):
    rng = np.random.default_rng(17)
    atlas_grid = grid_of((4, 3, 4), 2.0, (0.13, -0.21, 0.37))
    labels = blocks(rng, atlas_grid.shape, 3)
    mask_grid = grid_of(shape, size, origin, rotation)
    mask = rng.random(shape) < 0.4
    parcels = parcels_of(labels, atlas_grid)
    result = regional_damage(mask, mask_grid, parcels)
    expected = damage_on_mask(mask, mask_grid, labels, atlas_grid, reach=17)
    assert_damage(result, parcels, *expected)
    assert result.voxel_volume_ml == pytest.approx(size**3 / 1000)
    in_regions = sum(count for label, count in expected[1].items() if label)
    assert result.lesion_in_regions == pytest.approx(100 * in_regions / mask.sum(), rel=1e-12)


def test_a_small_field_of_view_does_not_shrink_the_regions():
    # One atlas voxel of 2 mm is 8 voxels of 1 mm; the mask's volume covers a corner only.
    labels = np.ones((4, 4, 4), dtype=int)
    atlas_grid = grid_of((4, 4, 4), 2, (0.5, 0.5, 0.5))
    mask = np.ones((2, 2, 2), dtype=bool)
    result = regional_damage(mask, grid_of((2, 2, 2), 1), parcels_of(labels, atlas_grid))
    assert result.total.tolist() == [512]
    assert result.damaged.tolist() == [8]
    assert result.damage.tolist() == [100 * 8 / 512]


@pytest.mark.parametrize(("axes", "flips"), STORAGES)
@pytest.mark.parametrize("mask_size", [1.0, 2.0, 3.0])
def test_storage_of_mask_and_atlas_does_not_matter(axes, flips, mask_size):
    rng = np.random.default_rng(23)
    # Borders of voxels coincide, so that every kind of tie occurs.
    atlas_grid, mask_grid = grid_of((4, 5, 3), 2.0), grid_of((7, 6, 5), mask_size, (-1, 0, -1))
    labels, mask = blocks(rng, atlas_grid.shape), rng.random(mask_grid.shape) < 0.3
    plain = regional_damage(mask, mask_grid, parcels_of(labels, atlas_grid))
    turned_mask = stored(mask, mask_grid, axes, flips)
    turned_atlas = stored(labels, atlas_grid, axes, flips)
    for image, atlas in (
        (turned_mask, (labels, atlas_grid)),
        ((mask, mask_grid), turned_atlas),
        (turned_mask, turned_atlas),
    ):
        result = regional_damage(*image, parcels_of(*atlas))
        assert np.array_equal(result.total, plain.total)
        assert np.array_equal(result.damaged, plain.damaged)
        assert result.lesion_in_regions == plain.lesion_in_regions


def test_probabilities_by_hand():
    grid = grid_of((1, 2, 2), 1)
    parcels = weighted(
        [np.array([[[0.5, 0.25], [0.25, 0]]]), np.array([[[0, 0], [0.5, 1]]])], grid
    )
    mask = np.array([[[1, 0], [1, 0]]], dtype=bool)
    result = regional_damage(mask, grid, parcels)
    np.testing.assert_allclose(result.damage, [75, 100 / 3], rtol=1e-12)
    np.testing.assert_allclose(result.total, [1, 1.5])
    np.testing.assert_allclose(result.damaged, [0.75, 0.5])
    assert result.lesion_in_regions == 100


def test_probabilities_under_a_finer_mask():
    grid = grid_of((2, 1, 1), 2, (0.5, 0.5, 0.5))
    parcels = weighted([np.array([0.75, 0.25]).reshape(2, 1, 1)], grid)
    mask = np.zeros((4, 2, 2), dtype=bool)
    mask[1:3] = True
    result = regional_damage(mask, grid_of(mask.shape, 1), parcels)
    # Of the eight 1 mm voxels of each 2 mm voxel, four are damaged.
    np.testing.assert_allclose(result.total, [8.0])
    np.testing.assert_allclose(result.damaged, [4.0])
    np.testing.assert_allclose(result.damage, [50.0])


def test_a_region_without_voxels_keeps_its_row():
    labels = np.array([1, 1, 3, 3]).reshape(1, 2, 2)
    grid = grid_of(labels.shape, 1)
    parcels = parcels_of(labels, grid, [3, 2, 1])
    mask = labels == 3
    result = regional_damage(mask, grid, parcels)
    np.testing.assert_array_equal(result.damage, [100, np.nan, 0])
    assert result.total.tolist() == [2, 0, 2]


def test_an_empty_lesion_damages_nothing():
    labels = np.array([1, 1, 2, 0]).reshape(1, 2, 2)
    grid = grid_of(labels.shape, 2)
    for size in (1, 2, 3):
        mask_grid = grid_of((3, 3, 3), size)
        result = regional_damage(np.zeros((3, 3, 3), bool), mask_grid, parcels_of(labels, grid))
        assert result.damage.tolist() == [0, 0]
        assert np.isnan(result.lesion_in_regions)


def test_lesion_beyond_the_field_of_view_of_the_atlas_is_in_no_region():
    labels = np.ones((2, 2, 2), dtype=int)
    atlas = parcels_of(labels, grid_of(labels.shape, 1))
    for size in (1, 0.5):
        shape = (int(6 / size), int(2 / size), int(2 / size))
        grid = grid_of(shape, size, [(size - 1) / 2] * 3)
        mask = np.zeros(shape, dtype=bool)
        mask[:, : int(1 / size)] = True  # 12 cubic millimetres, 4 of them in the atlas
        result = regional_damage(mask, grid, atlas)
        assert result.damage.tolist() == [50]
        assert result.lesion_in_regions == pytest.approx(100 * 4 / 12)


def test_a_flat_lesion_is_not_lost_between_the_voxels_of_the_atlas():
    # A mask of thin, tall voxels: larger than those of the atlas, but between their centres.
    mask_grid = Grid.make((9, 9, 3), np.diag([0.4, 0.4, 8.0, 1.0]))
    atlas_grid = grid_of((4, 4, 4), 1.0)
    mask = np.zeros(mask_grid.shape, dtype=bool)
    mask[4, 4, 0] = True
    parcels = parcels_of(np.ones((4, 4, 4), dtype=int), atlas_grid)
    assert regional_damage(mask, mask_grid, parcels).damage[0] > 0


def test_covering_lattice_keeps_centres_and_covers_the_volume():
    rng = np.random.default_rng(3)
    lattice = grid_of((3, 4, 5), 0.7, (1, 2, 3), TURN)
    volume = grid_of((6, 5, 4), 2.0, (-4, 0, 1))
    cover = covering_lattice(lattice, volume)
    np.testing.assert_array_equal(cover.affine[:3, :3], lattice.affine[:3, :3])
    steps = np.linalg.solve(lattice.affine[:3, :3], (cover.affine - lattice.affine)[:3, 3])
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    points = rng.uniform([-5, -1, 0], [7, 9, 8], size=(200, 3))
    assert all(voxel_at(point, cover) is not None for point in points)


# Summaries of maps


def summary_by_loop(weights, values, valid, statistic, voxel_ml):
    """One region, voxel by voxel: the summary and the coverage."""
    pairs = [
        (float(w), float(v))
        for w, v, ok in zip(weights.ravel(), values.ravel(), valid.ravel(), strict=True)
        if w != 0 and ok and np.isfinite(v)
    ]
    everything = sum(float(w) for w in weights.ravel())
    coverage = sum(w for w, _ in pairs) / everything if everything else np.nan
    if not pairs:
        return np.nan, coverage
    total = sum(w for w, _ in pairs)
    mean = sum(w * v for w, v in pairs) / total
    result = {
        "mean": mean,
        "sum": sum(w * v for w, v in pairs),
        "median": np.median([v for _, v in pairs]),
        "std": np.sqrt(sum(w * (v - mean) ** 2 for w, v in pairs) / total),
        "percent": 100 * sum(w for w, v in pairs if v != 0) / total,
        "volume": voxel_ml * sum(w for w, v in pairs if v != 0),
    }
    return result[statistic], coverage


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("probabilistic", [False, True])
def test_statistics_against_loops(statistic, probabilistic):
    rng = np.random.default_rng(31)
    grid = grid_of((5, 6, 7), 1.5)
    labels = blocks(rng, grid.shape, 5)
    weights = [(labels == label).astype(np.float32) for label in (4, 1, 5, 2, 3, 9)]
    if probabilistic:
        weights = [w * rng.random(grid.shape, dtype=np.float32) for w in weights]
    values = rng.normal(3, 2, size=grid.shape)
    values[rng.random(grid.shape) < 0.3] = 0
    values[0, 0, :] = [np.nan, np.inf, -np.inf, 1, 2, 3, 4]
    valid = rng.random(grid.shape) < 0.7
    valid[labels == 5] = False
    result, coverage = aggregate(weighted(weights, grid), values, valid, statistic)
    expected = [summary_by_loop(w, values, valid, statistic, 0.003375) for w in weights]
    np.testing.assert_allclose(result, [e[0] for e in expected], rtol=1e-10)
    np.testing.assert_allclose(coverage, [e[1] for e in expected], rtol=1e-10)
    assert np.isnan(result[2])
    assert coverage[2] == 0
    assert np.isnan(coverage[5])


def test_statistics_by_hand():
    labels = np.array([1, 1, 1, 1, 2, 2, 3, 0]).reshape(2, 2, 2)
    values = np.array([1.0, 2, 0, 100, 7, 7, 5, 9]).reshape(2, 2, 2)
    valid = np.array([1, 1, 1, 0, 1, 1, 0, 1], dtype=bool).reshape(2, 2, 2)
    parcels = parcels_of(labels, grid_of((2, 2, 2), 2))
    expected = {
        "mean": [1, 7, np.nan],
        "sum": [3, 14, np.nan],
        "median": [1, 7, np.nan],
        "std": [np.sqrt(2 / 3), 0, np.nan],
        "percent": [200 / 3, 100, np.nan],
        "volume": [0.016, 0.016, np.nan],
    }
    for statistic, numbers in expected.items():
        result, coverage = aggregate(parcels, values, valid, statistic)
        np.testing.assert_allclose(result, numbers, rtol=1e-12, err_msg=statistic)
        np.testing.assert_allclose(coverage, [0.75, 1, 0])


@pytest.mark.parametrize(("axes", "flips"), STORAGES)
def test_storage_does_not_matter_for_summaries(axes, flips):
    rng = np.random.default_rng(37)
    grid = grid_of((3, 4, 5), 2)
    labels, values = blocks(rng, grid.shape), rng.normal(size=grid.shape)
    valid = rng.random(grid.shape) < 0.8
    turned, other = stored(labels, grid, axes, flips)
    for statistic in STATISTICS:
        plain = aggregate(parcels_of(labels, grid), values, valid, statistic)
        found = aggregate(
            parcels_of(turned, other, np.unique(labels[labels > 0])),
            stored(values, grid, axes, flips)[0],
            stored(valid, grid, axes, flips)[0],
            statistic,
        )
        np.testing.assert_allclose(found, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, bool])
def test_maps_of_any_type(dtype):
    labels = np.ones((2, 2, 2), dtype=int)
    values = np.array([1, 0, 0, 1, 1, 1, 0, 0]).reshape(2, 2, 2).astype(dtype)
    parcels = parcels_of(labels, grid_of((2, 2, 2), 1))
    result, _ = aggregate(parcels, values, np.ones((2, 2, 2), bool), "mean")
    assert result.tolist() == [0.5]


def test_unknown_statistics_and_other_shapes_are_refused():
    parcels = parcels_of(np.ones((2, 2, 2), dtype=int), grid_of((2, 2, 2), 1))
    everywhere = np.ones((2, 2, 2), dtype=bool)
    with pytest.raises(ValidationError, match="average"):
        aggregate(parcels, np.zeros((2, 2, 2)), everywhere, "average")
    with pytest.raises(ValidationError):
        aggregate(parcels, np.zeros((2, 4, 1)), np.ones((2, 4, 1), dtype=bool))
    with pytest.raises(ValidationError):
        aggregate(parcels, np.zeros((2, 2, 2)), np.ones((8, 1, 1), dtype=bool))
