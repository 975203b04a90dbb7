"""Parcellations on other grids: no label invented, losses told, spaces never mixed."""

import itertools
from collections import Counter

import nibabel as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transform_data import NLIN6, NLIN2009C

from lacuna_nipype.atlases import SpaceMismatch, resample_parcellation
from lacuna_nipype.atlases.resample import majority_labels
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.spaces import Grid, template_grid
from lacuna_nipype.core.transforms import load_point_map

# Labels far apart, more than one byte holds.
LABELS = st.sampled_from([0, 0, 1, 2, 7, 255, 256, 3000])


@st.composite
def grids(draw, most=6):
    shape = [draw(st.integers(1, most)) for _ in range(3)]
    sizes = [draw(st.sampled_from([0.7, 1.0, 1.5, 2.0, 3.0])) for _ in range(3)]
    signs = [draw(st.sampled_from([-1, 1])) for _ in range(3)]
    affine = np.zeros((4, 4))
    for row, axis in enumerate(draw(st.permutations([0, 1, 2]))):
        affine[row, axis] = sizes[axis] * signs[axis]
    affine[:, 3] = [*(draw(st.integers(-3, 3)) for _ in range(3)), 1]
    return Grid.make(shape, affine)


@st.composite
def parcellations(draw):
    grid = draw(grids())
    data = draw(hnp.arrays(np.int32, grid.shape, elements=LABELS))
    data.reshape(-1)[0] = 7
    return nb.Nifti1Image(data, grid.affine), grid


METHODS = st.sampled_from(["nearest", "majority"])
labels_of = lambda image: set(np.unique(np.asanyarray(image.dataobj)).tolist()) - {0}


@given(parcellations(), METHODS)
@settings(max_examples=60, deadline=None)
def test_the_identity_keeps_every_label(parcellation, method):
    image, grid = parcellation
    same, report = resample_parcellation(image, grid, method)
    assert np.array_equal(np.asanyarray(same.dataobj), np.asanyarray(image.dataobj))
    assert np.allclose(same.affine, image.affine)
    assert report.lost == ()
    np.testing.assert_allclose(report.volume_ml_after, report.volume_ml_before)


@given(parcellations(), METHODS)
@settings(max_examples=40, deadline=None)
def test_the_order_in_which_voxels_are_stored_does_not_matter(parcellation, method):
    image, grid = parcellation
    stored, _ = resample_parcellation(image, grid.canonical, method)
    back, report = resample_parcellation(stored, grid, method)
    assert np.array_equal(np.asanyarray(back.dataobj), np.asanyarray(image.dataobj))
    assert report.lost == ()


@given(parcellations(), grids(), METHODS)
@settings(max_examples=120, deadline=None)
def test_the_labels_only_become_fewer_and_the_table_follows(parcellation, target, method):
    image, _ = parcellation
    moved, report = resample_parcellation(image, target, method)
    left = labels_of(moved)
    assert left <= labels_of(image)
    assert moved.shape == target.shape
    assert moved.get_data_dtype() == np.int32
    # Table and image are bijective, and what is in neither is told.
    table = report.table()
    assert table["index"].is_unique
    assert table["name"].is_unique
    assert set(table["index"].tolist()) == left
    assert set(report.lost) == {str(label) for label in labels_of(image) - left}
    voxels = Counter(np.asanyarray(moved.dataobj).reshape(-1).tolist())
    volume = target.voxel_volume_ml
    for label, after in zip(report.index, report.volume_ml_after, strict=True):
        assert after == pytest.approx(voxels[label] * volume)


@given(parcellations(), grids(most=4))
@settings(max_examples=40, deadline=None)
def test_nearest_against_distances(parcellation, target):
    image, grid = parcellation
    moved = np.asanyarray(resample_parcellation(image, target)[0].dataobj)
    data = np.asanyarray(image.dataobj)
    inverse = np.linalg.inv(grid.affine)
    for voxel in itertools.product(*map(range, target.shape)):
        place = nb.affines.apply_affine(inverse @ target.affine, voxel)
        # Voxels whose centre is nearest along every axis; several on a tie.
        near = [
            [i for i in range(size) if abs(i - at) <= 0.5 + 1e-3]
            for size, at in zip(grid.shape, place, strict=True)
        ]
        candidates = {int(data[index]) for index in itertools.product(*near)}
        border = any(abs(abs(at - round(at)) - 0.5) < 1e-3 for at in place)
        assert int(moved[voxel]) in (candidates or {0}) | ({0} if border else set())


@given(st.integers(2, 3), st.data())
@settings(max_examples=40, deadline=None)
def test_majority_against_a_count(parts, data):
    shape = tuple(data.draw(st.integers(1, 3)) for _ in range(3))
    fine = data.draw(
        hnp.arrays(np.int64, [size * parts for size in shape], elements=st.integers(0, 3))
    )
    grid = Grid.make(fine.shape, np.eye(4))
    affine = np.diag([parts, parts, parts, 1.0])
    affine[:3, 3] = (parts - 1) / 2
    found = majority_labels(fine, grid, Grid.make(shape, affine), parts)
    for voxel in itertools.product(*map(range, shape)):
        cube = tuple(slice(parts * i, parts * i + parts) for i in voxel)
        counts = Counter(fine[cube].reshape(-1).tolist())
        most = max(counts.values())
        best = sorted(label for label, count in counts.items() if count == most)
        assert found[voxel] == next((label for label in best if label), 0)


def test_majority_keeps_what_the_centre_misses():
    # Of a cube of 2 x 2 x 2, seven voxels are of label 5 and the one that nearest takes is not.
    data = np.full((2, 2, 2), 5, np.int16)
    data[1, 1, 1] = 9
    image = nb.Nifti1Image(data, np.eye(4))
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = 0.5
    target = Grid.make((1, 1, 1), affine)
    assert np.asanyarray(resample_parcellation(image, target)[0].dataobj).item() == 9
    moved, report = resample_parcellation(image, target, "majority")
    assert np.asanyarray(moved.dataobj).item() == 5
    assert report.lost == ("9",)
    np.testing.assert_allclose(report.volume_ml_before, [0.007, 0.001])
    np.testing.assert_allclose(report.volume_ml_after, [0.008, 0])


@pytest.fixture
def atlas(tmp_path, write_labels):
    image = write_labels(
        tmp_path / f"tpl-{NLIN6}_atlas-A_dseg.nii.gz", NLIN6, 2, [1, 300], np.int16
    )
    labels = tmp_path / "names.tsv"
    labels.write_text("index\tname\n300\tback\n1\tfront\n")
    return image, labels


def test_files_names_and_types(atlas, tmp_path):
    image, labels = atlas
    moved, report = resample_parcellation(image, template_grid(NLIN6, 1), labels=labels)
    assert moved.shape == (182, 218, 182)
    assert moved.get_data_dtype() == np.int16
    assert report.table().to_dict("list") == {"index": [1, 300], "name": ["front", "back"]}
    assert report.to_dict()["Regions"] == 2
    reference = tmp_path / "reference.nii.gz"
    nb.save(moved, reference)
    assert nb.load(reference).header["sform_code"] == 4
    back, _ = resample_parcellation(reference, image)
    assert labels_of(back) <= {1, 300}
    floats = nb.Nifti1Image(
        np.asanyarray(nb.load(image).dataobj).astype(np.float32), nb.load(image).affine
    )
    assert resample_parcellation(floats, image)[0].get_data_dtype() == np.int32
    labels.write_text("index\tname\n1\tfront\n")
    with pytest.raises(ValidationError, match="300"):
        resample_parcellation(image, image, labels=labels)


def test_another_space_needs_a_transform(atlas, warps):
    image, _ = atlas
    target = template_grid(NLIN2009C, 2)
    with pytest.raises(SpaceMismatch, match="transform"):
        resample_parcellation(image, target)
    with pytest.raises(SpaceMismatch, match=NLIN2009C):
        resample_parcellation(image, Grid.make((9, 9, 9), np.eye(4)), reference_space=NLIN2009C)
    point_map = load_point_map([warps.to_2009c])
    moved, report = resample_parcellation(image, target, transform=point_map)
    assert moved.shape == target.shape
    assert set(report.table()["index"]) == labels_of(moved) <= {1, 300}
    with pytest.raises(ValidationError, match="nearest"):
        resample_parcellation(image, target, "majority", transform=point_map)


def test_one_anatomy_is_one_space(atlas, tmp_path, write_labels):
    image = write_labels(tmp_path / "c.nii.gz", NLIN2009C, 2, [1])
    resample_parcellation(image, template_grid("MNI152NLin2009bAsym", 1))


def test_a_name_that_the_grid_contradicts(tmp_path, write_labels):
    image = write_labels(tmp_path / f"tpl-{NLIN6}_atlas-T_dseg.nii.gz", NLIN2009C, 2, [1])
    with pytest.raises(SpatialMismatchError, match="atlas-T"):
        resample_parcellation(image, template_grid(NLIN2009C, 1))


def test_methods_that_do_not_suit(atlas, write_image, tmp_path):
    with pytest.raises(ValidationError, match="labels"):
        resample_parcellation(atlas[0], atlas[0], "linear")
    with pytest.raises(ValidationError, match="cubic"):
        resample_parcellation(atlas[0], atlas[0], "cubic")
    volumes = write_image(tmp_path / "p.nii.gz", np.ones((3, 3, 3, 2), np.float32))
    with pytest.raises(ValidationError, match="volume"):
        resample_parcellation(volumes, volumes, "majority")


def test_volumes_are_interpolated_or_stay_binary(tmp_path, write_image):
    rng = np.random.default_rng(0)
    data = rng.random((6, 7, 8, 3)).astype(np.float32)
    image = write_image(tmp_path / "p.nii.gz", data)
    same, report = resample_parcellation(image, image, "linear")
    assert np.array_equal(np.asanyarray(same.dataobj), data)
    np.testing.assert_allclose(
        report.volume_ml_before, data.sum(axis=(0, 1, 2)) * 0.008, rtol=1e-5
    )
    np.testing.assert_allclose(report.volume_ml_after, report.volume_ml_before, rtol=1e-6)
    # Midway between two voxels along x.
    affine = np.diag([2.0, 2, 2, 1])
    affine[0, 3] = 1
    between, _ = resample_parcellation(image, Grid.make((5, 7, 8), affine), "linear")
    np.testing.assert_allclose(
        np.asanyarray(between.dataobj), (data[:-1] + data[1:]) / 2, atol=1e-6
    )
    binary = write_image(tmp_path / "b.nii.gz", (data > 0.5).astype(np.uint8))
    moved, report = resample_parcellation(binary, Grid.make((9, 9, 9), np.diag([1.3] * 3 + [1])))
    assert set(np.unique(np.asanyarray(moved.dataobj))) == {0, 1}
    assert moved.get_data_dtype() == np.uint8
    assert report.index == (1, 2, 3)
    bad = write_image(tmp_path / "n.nii.gz", -data)
    with pytest.raises(ValidationError, match="negative"):
        resample_parcellation(bad, bad, "linear")
