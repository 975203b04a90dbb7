"""Transforms through nodes; expected values from maps of points computed without the package."""

import nibabel as nb
import numpy as np
import pytest
from transform_data import NLIN6, NLIN2009C, apply_affine, points_of

from lacuna_nipype.core.files import fingerprint
from lacuna_nipype.core.spaces import template_grid
from lacuna_nipype.core.lesion_resampling import warp_mask
from lacuna_nipype.core.transforms import load_point_map
from lacuna_nipype.interfaces import (
    ApplyTransform,
    PrepareNodes,
    PrepareParcels,
    ResampleMask,
    TemplateGrid,
)

SOURCE, TARGET = template_grid(NLIN6, 3), template_grid(NLIN2009C, 3)


@pytest.fixture
def reference(run_node):
    return run_node(TemplateGrid(space=NLIN2009C, resolution=3.0), "grid").out_file


@pytest.fixture
def ball():
    distance = np.linalg.norm(points_of(SOURCE.shape, SOURCE.affine) - [-30, -20, 15], axis=1)
    return (distance < 18).reshape(SOURCE.shape)


def test_a_mask(warps, ball, reference, make_image, run_node, in_node_folder, content_of, data_of):
    mask = make_image("mask.nii.gz", ball.astype(np.uint8), SOURCE.affine)
    outputs = run_node(
        ApplyTransform(
            in_file=mask, transforms=[str(warps.to_2009c)], reference=reference,
            target_space=NLIN2009C,
        )
    )  # fmt: skip
    assert in_node_folder([outputs.out_file, outputs.out_meta])
    assert nb.load(outputs.out_file).get_data_dtype() == np.uint8
    np.testing.assert_array_equal(nb.load(outputs.out_file).affine, TARGET.affine)
    expected, accounting = warp_mask(ball, SOURCE, TARGET, load_point_map([warps.to_2009c]))
    assert np.array_equal(data_of(outputs.out_file) > 0, expected)
    # The ball, where its points come from.
    places = points_of(TARGET.shape, TARGET.affine)[expected.ravel()]
    pulled = warps.pull(NLIN2009C, places)
    assert np.linalg.norm(pulled - [-30, -20, 15], axis=1).max() < 18 + 2.6
    meta = content_of(outputs.out_meta)
    assert meta["LesionResampling"] == accounting.to_dict()
    assert meta["Transforms"] == [
        {"File": warps.to_2009c.name, "Fingerprint": fingerprint(warps.to_2009c)}
    ]


def test_a_chain_comes_back(warps, ball, make_image, run_node, data_of):
    mask = make_image("mask.nii.gz", ball.astype(np.uint8), SOURCE.affine)
    chain = [str(warps.to_2009c), str(warps.to_nlin6)]
    outputs = run_node(ApplyTransform(in_file=mask, transforms=chain, reference=mask))
    assert np.count_nonzero((data_of(outputs.out_file) > 0) ^ ball) < 0.005 * ball.sum()


def test_without_transforms_it_resamples(ball, reference, make_image, run_node, data_of):
    mask = make_image("mask.nii.gz", ball.astype(np.uint8), SOURCE.affine)
    moved = run_node(ApplyTransform(in_file=mask, reference=reference), "moved")
    plain = run_node(ResampleMask(in_file=mask, reference=reference), "plain")
    assert np.array_equal(data_of(moved.out_file), data_of(plain.out_file))


def test_labels(warps, ball, reference, make_image, run_node, content_of, data_of):
    labels = np.where(ball, 40_000, 0).astype(np.float32)
    labels[20, 30, 30:40] = 3
    # At the edge of the image, which is outside the other one.
    labels[0, 0, 0] = 9
    image = make_image("labels.nii.gz", labels, SOURCE.affine)
    outputs = run_node(
        ApplyTransform(
            in_file=image, transforms=[str(warps.to_2009c)], reference=reference,
            interpolation="labels",
        )
    )  # fmt: skip
    assert set(np.unique(data_of(outputs.out_file))) == {0, 3, 40_000}
    assert nb.load(outputs.out_file).get_data_dtype().kind == "i"
    meta = content_of(outputs.out_meta)["LabelResampling"]
    assert meta == {"Labels": 3, "LabelsLost": [9]}


def test_a_map(warps, ball, reference, make_image, run_node, content_of, data_of):
    x = points_of(SOURCE.shape, SOURCE.affine)[:, 0].reshape(SOURCE.shape)
    image = make_image("map.nii.gz", np.where(ball, x, 1e6).astype(np.float32), SOURCE.affine)
    valid = make_image("valid.nii.gz", ball.astype(np.uint8), SOURCE.affine)
    outputs = run_node(
        ApplyTransform(
            in_file=image, valid_mask=valid, transforms=[str(warps.to_2009c)],
            reference=reference, interpolation="linear", fill=-1.0,
        )
    )  # fmt: skip
    values, inside = data_of(outputs.out_file), data_of(outputs.out_valid) > 0
    assert values.dtype == np.float32
    assert np.all(values[~inside] == -1)
    assert 0 < inside.sum() < 1.3 * ball.sum()
    pulled = warps.pull(NLIN2009C, points_of(TARGET.shape, TARGET.affine)[inside.ravel()])
    # Linear within, and at the border the nearest valid voxels.
    assert np.abs(values[inside] - pulled[:, 0]).max() < 2.6
    assert np.median(np.abs(values[inside] - pulled[:, 0])) < 1e-4
    assert content_of(outputs.out_meta)["Interpolation"] == "linear"


def test_the_opposite_transform_is_refused(warps, ball, make_image, run_node, tmp_path):
    from transform_data import AFFINE, displacement, sampled, write_composite

    grid = template_grid(NLIN2009C, 3)
    field = sampled(displacement, grid.shape, grid.affine)
    forward = write_composite(tmp_path / "forward.h5", [field, AFFINE])
    mask = make_image("mask.nii.gz", ball.astype(np.uint8), SOURCE.affine)
    with pytest.raises(RuntimeError, match="opposite"):
        run_node(
            ApplyTransform(
                in_file=mask, transforms=[str(forward)], reference=mask, target_space=NLIN6
            )
        )


@pytest.mark.parametrize("problem", ["4D", "other grid"])
def test_bad_input(ball, make_image, run_node, problem):
    data = np.stack([ball, ball], -1).astype(np.uint8)
    image = make_image("map.nii.gz", data if problem == "4D" else data[..., 0], SOURCE.affine)
    valid = make_image("valid.nii.gz", np.ones((3, 3, 3), np.uint8), SOURCE.affine)
    with pytest.raises(RuntimeError, match="dimensions" if problem == "4D" else "grid"):
        run_node(
            ApplyTransform(
                in_file=image, reference=valid, interpolation="linear", valid_mask=valid
            )
        )


@pytest.fixture
def sides(make_image, tmp_path):
    """An atlas of two halves of a ball in FSL's space, with labels that are far apart."""
    points = points_of(SOURCE.shape, SOURCE.affine)
    inside = np.linalg.norm(points - [0, -18, 8], axis=1) < 55
    labels = np.where(inside, np.where(points[:, 0] < 0, 5, 700), 0).reshape(SOURCE.shape)
    (tmp_path / "names.tsv").write_text("index\tname\n700\tright\n5\tleft\n")
    return make_image("sides.nii.gz", labels.astype(np.int32), SOURCE.affine), str(
        tmp_path / "names.tsv"
    )


def test_parcels_in_another_space(warps, sides, reference, run_node, in_node_folder, content_of):
    from lacuna_nipype.atlases.parcels import read_parcels

    outputs = run_node(
        PrepareParcels(
            in_file=sides[0], labels_file=sides[1], reference=reference,
            transforms=[str(warps.to_2009c)],
        )
    )  # fmt: skip
    assert in_node_folder([outputs.out_file, outputs.out_meta])
    parcels = read_parcels(outputs.out_file)
    assert parcels.grid.same_as(TARGET)
    assert parcels.names == ("right", "left")
    points = points_of(TARGET.shape, TARGET.affine)
    for row, sign in zip(parcels.weights.toarray(), (1, -1), strict=True):
        pulled = warps.pull(NLIN2009C, points[row > 0])
        assert np.linalg.norm(pulled - [0, -18, 8], axis=1).max() < 55 + 2.6
        assert np.min(pulled[:, 0] * sign) > -1.51
    meta = content_of(outputs.out_meta)
    assert meta["RegionResampling"]["RegionsLost"] == []
    assert meta["Transforms"][0]["File"] == warps.to_2009c.name


def test_parcels_without_transforms_tell_what_was_lost(sides, reference, run_node, content_of):
    own = run_node(PrepareParcels(in_file=sides[0], labels_file=sides[1]), "own")
    meta = content_of(own.out_meta)
    assert meta["Transforms"] == []
    assert meta["RegionResampling"]["LargestChangePercent"] == 0


def test_nodes_in_another_space(warps, sides, reference, run_node, content_of, data_of):
    outputs = run_node(
        PrepareNodes(
            in_file=sides[0], labels_file=sides[1], reference=reference,
            transforms=[str(warps.to_2009c)],
        )
    )  # fmt: skip
    nodes = data_of(outputs.out_file)
    assert nodes.dtype == np.int32
    assert set(np.unique(nodes)) == {0, 1, 2}
    inside = points_of(TARGET.shape, TARGET.affine)[(nodes == 2).ravel()]
    assert warps.pull(NLIN2009C, inside)[:, 0].max() < 1.51
    np.testing.assert_array_equal(nb.load(outputs.out_file).affine, TARGET.affine)
    assert content_of(outputs.out_meta)["Transforms"][0]["File"] == warps.to_2009c.name
    own = run_node(PrepareNodes(in_file=sides[0], labels_file=sides[1]), "own")
    assert data_of(own.out_file).shape == SOURCE.shape


def test_each_is_cached(warps, ball, reference, make_image, runs_once):
    mask = make_image("mask.nii.gz", ball.astype(np.uint8), SOURCE.affine)
    assert runs_once(
        lambda: ApplyTransform(in_file=mask, transforms=[str(warps.to_2009c)], reference=reference)
    )


def test_transforms_need_a_reference(warps, sides, run_node):
    for interface in (PrepareParcels, PrepareNodes):
        with pytest.raises(ValueError, match="reference"):
            run_node(
                interface(in_file=sides[0], labels_file=sides[1], transforms=[str(warps.to_2009c)])
            )


def test_the_affine_of_the_reference_decides(warps, ball, make_image, run_node, data_of):
    # The same lattice, stored from right to left.
    flip = np.array([[-1, 0, 0, 64], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    mask = make_image("mask.nii.gz", ball.astype(np.uint8), SOURCE.affine)
    found = []
    for name, affine in (("ras", TARGET.affine), ("las", TARGET.affine @ flip)):
        reference = make_image(f"{name}.nii.gz", np.zeros(TARGET.shape, np.uint8), affine)
        outputs = run_node(
            ApplyTransform(in_file=mask, transforms=[str(warps.to_2009c)], reference=reference),
            name,
        )
        found.append(data_of(outputs.out_file))
    assert np.array_equal(found[0], found[1][::-1])
    assert apply_affine(TARGET.affine, np.argwhere(found[0])).mean(axis=0)[0] < -20
