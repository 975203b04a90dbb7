"""Structural interfaces through nodes; none of these needs MRtrix3."""

import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.connectomes.tractogram import write_tck
from lacuna_nipype.core.spaces import template_grid
from lacuna_nipype.interfaces import DisconnectionMap, TemplateGrid


def test_template_grid(run_node, in_node_folder):
    outputs = run_node(TemplateGrid(space="MNI152NLin6Asym", resolution=2.0))
    grid = template_grid("MNI152NLin6Asym", 2.0)
    image = nb.load(outputs.out_file)
    assert in_node_folder(outputs.out_file)
    assert image.shape == grid.shape
    assert np.array_equal(image.affine, grid.affine)
    assert image.header["sform_code"] == image.header["qform_code"] == 4


def test_template_grid_of_no_such_resolution(run_node):
    with pytest.raises(RuntimeError, match="no standard"):
        run_node(TemplateGrid(space="MNI152NLin6Asym", resolution=1.7))


@pytest.fixture
def densities(make_image, shape):
    full, hit = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    full[1], full[2], full[3] = 3, 8, 1
    hit[1], hit[2] = 1, 6
    return make_image("hit.nii.gz", hit), make_image("full.nii.gz", full)


def test_disconnection(densities, run_node, in_node_folder, data_of, content_of):
    hit, full = densities
    outputs = run_node(DisconnectionMap(lesion_tdi=hit, full_tdi=full))
    assert in_node_folder([outputs.out_file, outputs.valid_mask, outputs.summary])
    percent = data_of(outputs.out_file)
    assert percent.dtype == np.float32
    third = np.float32(1) / np.float32(3) * np.float32(100)
    assert [percent[x, 0, 0] for x in range(4)] == [0, third, 75, 0]
    assert np.array_equal(data_of(outputs.valid_mask), (data_of(full) > 0).astype(np.uint8))
    summary = content_of(outputs.summary)
    assert summary["StreamlinesHitPercent"] is None
    assert summary["MaximumDisconnectionPercent"] == 75


def test_disconnection_counts_streamlines(densities, tmp_path, run_node, content_of):
    lesion = tmp_path / "inputs" / "lesion.tck"
    write_tck(lesion, [np.zeros((3, 3), np.float32)], step_size=1.0)
    outputs = run_node(
        DisconnectionMap(
            lesion_tdi=densities[0],
            full_tdi=densities[1],
            lesion_tractogram=str(lesion),
            n_streamlines=4,
        )
    )
    summary = content_of(outputs.summary)
    assert (summary["StreamlinesHit"], summary["Streamlines"]) == (1, 4)
    assert summary["StreamlinesHitPercent"] == 25


def test_densities_on_two_grids_are_refused(densities, make_image, run_node):
    other = make_image("other.nii.gz", np.zeros((4, 4, 4), dtype=np.float32))
    with pytest.raises(RuntimeError, match="grid"):
        run_node(DisconnectionMap(lesion_tdi=densities[0], full_tdi=other))


def test_each_is_cached(densities, runs_once):
    hit, full = densities
    assert runs_once(lambda: TemplateGrid(space="MNI152NLin6Asym", resolution=2.0))
    assert runs_once(lambda: DisconnectionMap(lesion_tdi=hit, full_tdi=full))
