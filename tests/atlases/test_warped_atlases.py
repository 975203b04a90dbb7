"""Atlases in another space: labels never mix, probabilities are interpolated, losses are told."""

import json

import nibabel as nb
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from transform_data import NLIN6, NLIN2009C, apply_affine, points_of

from lacuna_nipype.atlases.nodes import make_nodes
from lacuna_nipype.atlases.parcels import bring_parcels, load_parcels
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.spaces import Grid, template_grid
from lacuna_nipype.core.transforms import PointMap, load_point_map

# An atlas of FSL's space at 3 mm, stored from right to left; labels far apart, one a single voxel.
SHAPE = (61, 73, 61)
GRID = template_grid(NLIN6, 3)
LAS = GRID.affine @ np.array([[-1, 0, 0, 60], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
TARGET = template_grid(NLIN2009C, 3)
LABELS = [7, 3000, 12, 5]


@pytest.fixture
def labelled(tmp_path):
    x, y, z = points_of(SHAPE, LAS).T
    data = np.zeros(np.prod(SHAPE), np.int32)
    inside = (x / 65) ** 2 + ((y + 18) / 85) ** 2 + ((z - 8) / 65) ** 2 < 1
    data[inside & (x < 0)] = 7
    data[inside & (x >= 0) & (y > 0)] = 3000
    data[inside & (x >= 0) & (y <= 0)] = 12
    data = data.reshape(SHAPE)
    data[30, 40, 30] = 5
    nb.save(nb.Nifti1Image(data, LAS), tmp_path / "atlas.nii.gz")
    (tmp_path / "labels.tsv").write_text(
        "index\tname\n3000\tfront\n5\ttiny\n7\tleft\n99\tabsent\n12\tback\n"
    )
    return data, tmp_path / "atlas.nii.gz", tmp_path / "labels.tsv"


def source_indices(warps):
    pulled = warps.pull(NLIN2009C, points_of(TARGET.shape, TARGET.affine))
    return apply_affine(np.linalg.inv(LAS), pulled)


def test_labels_against_nearest_voxels_found_without_the_package(warps, labelled):
    data, image, names = labelled
    parcels, change = bring_parcels(image, names, TARGET, load_point_map([warps.to_2009c]))
    assert parcels.names == ("front", "tiny", "left", "back")
    index = source_indices(warps)
    expected = map_coordinates(data, index.T, order=0, mode="grid-constant")
    clear = np.all(np.abs(np.abs(index - np.rint(index)) - 0.5) > 1e-3, axis=1)
    dense = parcels.weights.toarray()
    assert set(np.unique(dense)) == {0.0, 1.0}
    for row, label in zip(dense, parcels.index, strict=True):
        assert np.array_equal(row[clear] == 1, expected[clear] == label)
    # Left is left still, although the file runs from right to left.
    x = points_of(TARGET.shape, TARGET.affine)[:, 0]
    assert x[dense[2] > 0].mean() < -20
    np.testing.assert_allclose(change.volume_ml_before[1], 0.027)
    np.testing.assert_allclose(change.volume_ml_after, parcels.totals * 0.027)


def test_lost_regions_keep_their_row_and_are_named(warps, labelled):
    _, image, names = labelled
    coarse = Grid.make((12, 14, 12), np.diag([15.0, 15, 15, 1]) + offset(-85, -120, -70))
    parcels, change = bring_parcels(image, names, coarse, load_point_map([warps.to_2009c]))
    assert parcels.names[1] == "tiny"
    assert parcels.totals[1] == 0
    assert change.lost == ("tiny",)
    found = change.to_dict()
    json.dumps(found, allow_nan=False)
    assert found["Regions"] == 4
    assert found["RegionsLost"] == ["tiny"]
    assert (found["LargestChangePercent"], found["LargestChangeRegion"]) == (-100, "tiny")
    assert found["VolumeMLAfter"] == pytest.approx(parcels.totals.sum() * 15**3 / 1000)
    kept, unchanged = bring_parcels(image, names)
    assert unchanged.lost == ()
    assert unchanged.to_dict()["LargestChangePercent"] == 0
    np.testing.assert_allclose(unchanged.volume_ml_before, kept.totals * 0.027)


def offset(*origin):
    matrix = np.zeros((4, 4))
    matrix[:3, 3] = origin
    return matrix


def test_the_identity_is_a_change_of_grid(labelled):
    _, image, names = labelled
    other = Grid.make((40, 50, 45), np.diag([4.0, 4, 4, 1]) + offset(-81.3, -110.2, -65.1))
    plain, warped = (
        load_parcels(image, names, other),
        load_parcels(image, names, other, PointMap()),
    )
    assert np.array_equal(plain.weights.toarray(), warped.weights.toarray())


def test_probabilities_against_scipy(warps, tmp_path):
    rng = np.random.default_rng(0)
    x, y, z = points_of(SHAPE, LAS).T
    bump = np.exp(-(((x + 30) / 15) ** 2 + ((y + 20) / 20) ** 2 + ((z - 10) / 15) ** 2))
    volumes = np.stack([bump.reshape(SHAPE), rng.random(SHAPE), np.zeros(SHAPE)], -1)
    volumes[:, :, :, 1][:, :20] = np.nan
    volumes[30, 40, 30, 2] = 1
    image, names = tmp_path / "atlas.nii.gz", tmp_path / "names.txt"
    nb.save(nb.Nifti1Image(volumes.astype(np.float32), LAS), image)
    names.write_text("bump\nnoise\nvoxel\n")
    parcels, change = bring_parcels(image, names, TARGET, load_point_map([warps.to_2009c]))
    index = source_indices(warps).T
    inside = np.all((index > 0) & (index < np.array(SHAPE)[:, None] - 1), axis=0)
    dense = parcels.weights.toarray()
    for row, volume in zip(dense, np.nan_to_num(np.moveaxis(volumes, -1, 0)), strict=True):
        expected = map_coordinates(volume.astype(np.float32), index, order=1)
        np.testing.assert_allclose(row[inside], expected[inside], atol=2e-5)
    sums = np.nansum(volumes, axis=(0, 1, 2)) * 0.027
    np.testing.assert_allclose(change.volume_ml_before, sums, rtol=1e-5)
    np.testing.assert_allclose(change.volume_ml_after, dense.sum(axis=1) * 0.027, rtol=1e-5)


def test_nodes_stay_whole_numbers_with_every_row(warps, labelled):
    data, image, names = labelled
    point_map = load_point_map([warps.to_2009c])
    nodes = make_nodes(image, names, TARGET, point_map)
    assert nodes.grid is TARGET
    assert nodes.data.dtype == np.int32
    assert nodes.data.shape == TARGET.shape
    # Nodes are numbered by the rows of the table, of which one has no voxel.
    assert nodes.names == ("front", "tiny", "left", "absent", "back")
    assert set(np.unique(nodes.data)) <= {0, 1, 2, 3, 5}
    number = {3000: 1, 5: 2, 7: 3, 12: 5, 0: 0}
    index = source_indices(warps)
    clear = np.all(np.abs(np.abs(index - np.rint(index)) - 0.5) > 1e-3, axis=1)
    nearest = map_coordinates(data, index.T, order=0, mode="grid-constant")
    expected = np.array([number[label] for label in nearest.tolist()])
    assert np.array_equal(nodes.data.ravel()[clear], expected[clear])
    assert nodes.change.names == ("front", "tiny", "left", "back")


def test_a_warp_needs_a_grid(warps, labelled):
    _, image, names = labelled
    with pytest.raises(ValidationError, match=r"atlas\.nii\.gz"):
        load_parcels(image, names, None, load_point_map([warps.to_2009c]))
