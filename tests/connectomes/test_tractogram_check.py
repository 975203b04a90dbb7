"""Where a tractogram is: the demonstration and real ones as they are, mirrored, and in voxels."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.streamlines import Tractogram, TrkFile
from nilearn.datasets import load_mni152_brain_mask
from scipy.ndimage import distance_transform_edt

from lacuna_nipype.connectomes.tractogram import iter_tck_streamlines, write_tck
from lacuna_nipype.connectomes.tractogram_check import check_placement, share_outside_brain
from lacuna_nipype.connectomes.tractogram_formats import iter_streamlines
from lacuna_nipype.core.exceptions import ValidationError

DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None
# Voxel coordinates of the 1 mm grids of FSL (LAS) and of SPM (RAS), and of a 2 mm grid.
VOXELS = {
    "las_1mm": np.array([[-1, 0, 0, 90], [0, 1, 0, 126], [0, 0, 1, 72], [0, 0, 0, 1.0]]),
    "ras_1mm": np.array([[1, 0, 0, 90], [0, 1, 0, 126], [0, 0, 1, 72], [0, 0, 0, 1.0]]),
    "las_2mm": np.array([[-0.5, 0, 0, 45], [0, 0.5, 0, 63], [0, 0, 0.5, 36], [0, 0, 0, 1.0]]),
}
LPS = np.diag([-1.0, -1, 1, 1])


@pytest.fixture(scope="module")
def tractogram(demonstration):
    return demonstration.structural_connectome


@pytest.fixture(scope="module")
def brain():
    """Distance to the brain in mm, on the 1 mm grid, and the matrix from mm to its voxels."""
    image = load_mni152_brain_mask(resolution=1)
    outside = np.pad(np.asarray(image.dataobj) == 0, 10, constant_values=True)
    to_voxel = np.linalg.inv(image.affine)
    to_voxel[:3, 3] += 10
    return distance_transform_edt(outside), to_voxel


def moved(lines, matrix):
    return (nib.affines.apply_affine(matrix, line).astype("f4") for line in lines)


def real(*parts):
    if DATA is None or not DATA.joinpath(*parts).is_file():
        pytest.skip("LACUNA_TEST_DATA does not name a folder with the real tractograms")
    return DATA.joinpath(*parts)


def one_sentence(error):
    text = str(error.value)
    return "\n" not in text and text.endswith(".") and ". " not in text


def test_by_hand():
    inside, outside = [[0, 0, 20], [10, -30, 0], [-20, 10, 10]], [[0, 0, 200]]
    points = [np.array(inside, "f4"), np.full((1, 3), np.nan, "f4"), np.array(outside, "f4")]
    assert share_outside_brain(points) == 0.25
    assert share_outside_brain(points[:2]) == 0
    # Coordinates of any size, and a separator like in a .tck file.
    far = np.array([[1e30, 0, 0], [np.inf, np.inf, np.inf], [0, 0, -1e30]], "f4")
    assert share_outside_brain([far]) == 1


def test_dilation_is_about_four_mm(brain):
    distance, to_voxel = brain
    rng = np.random.default_rng(0)
    points = rng.uniform([-90, -130, -70], [90, 95, 100], (200_000, 3)).astype("f4")
    x, y, z = np.rint(nib.affines.apply_affine(to_voxel, points)).astype(int).T
    at = distance[x, y, z]
    for low, high, share in ((0, 2, 0.0), (6.5, 400, 1.0)):
        chosen = points[(at >= low) & (at <= high)]
        assert len(chosen) > 1000
        assert share_outside_brain([chosen]) == share
    between = (at >= 3) & (at <= 5)
    assert 0.25 < share_outside_brain([points[between]]) < 0.75


def test_no_vertices(tmp_path):
    with pytest.raises(ValidationError, match="no vertices"):
        share_outside_brain([np.zeros((0, 3), "f4")])
    write_tck(tmp_path / "a.tck", [np.zeros((0, 3), "f4")] * 3, step_size=1)
    with pytest.raises(ValidationError, match=r"a\.tck has no vertices"):
        check_placement(tmp_path / "a.tck")


def test_damaged_and_missing_files(tmp_path, tractogram):
    (tmp_path / "a.tck").write_bytes(tractogram.read_bytes()[:-30])
    for function in (share_outside_brain, check_placement):
        with pytest.raises(ValidationError, match="truncated"):
            function(tmp_path / "a.tck")
        with pytest.raises(ValidationError, match="does not exist"):
            function(tmp_path / "b.trx")


def test_demonstration_is_in_the_brain(tractogram):
    assert check_placement(tractogram) < 0.01
    assert check_placement(tractogram) == share_outside_brain(tractogram)


@pytest.mark.parametrize("grid", VOXELS)
def test_demonstration_in_voxels(tmp_path, tractogram, grid):
    path = tmp_path / "voxels.tck"
    write_tck(path, moved(iter_tck_streamlines(tractogram), VOXELS[grid]), step_size=None)
    with pytest.raises(ValidationError, match="those of voxels or of another space") as error:
        check_placement(path)
    assert str(path) in str(error.value)
    assert one_sentence(error)
    assert share_outside_brain(path) > 0.5


def test_demonstration_mirrored(tmp_path, tractogram):
    path = tmp_path / "lps.tck"
    write_tck(path, moved(iter_tck_streamlines(tractogram), LPS), step_size=None)
    with pytest.raises(ValidationError, match="LPS instead of RAS") as error:
        check_placement(path)
    assert one_sentence(error)
    # Few enough to pass by their number alone.
    assert 0.05 < share_outside_brain(path) < 0.2


def test_other_formats_are_read_from_the_beginning(tmp_path, tractogram):
    lines = list(iter_tck_streamlines(tractogram))[:2000]
    for name, matrix in (("good", np.eye(4)), ("lps", LPS), ("voxels", VOXELS["las_1mm"])):
        tractogram = Tractogram(list(moved(lines, matrix)), affine_to_rasmm=np.eye(4))
        TrkFile(tractogram, {"voxel_to_rasmm": np.eye(4)}).save(str(tmp_path / f"{name}.trk"))
    assert check_placement(tmp_path / "good.trk") < 0.01
    for name, problem in (("lps", "LPS instead"), ("voxels", "those of voxels")):
        with pytest.raises(ValidationError, match=problem):
            check_placement(tmp_path / f"{name}.trk")
    # A small sample is the first streamlines only.
    beginning = [*lines[:50], *moved(lines[50:], VOXELS["las_1mm"])]
    tractogram = Tractogram(beginning, affine_to_rasmm=np.eye(4))
    TrkFile(tractogram, {"voxel_to_rasmm": np.eye(4)}).save(str(tmp_path / "half.trk"))
    assert share_outside_brain(tmp_path / "half.trk", n_blocks=1, block_bytes=1200) == 0
    assert share_outside_brain(tmp_path / "half.trk") > 0.9


def test_blocks_are_from_all_over_a_tck(tmp_path):
    good = np.zeros((50, 3), "f4")
    write_tck(tmp_path / "a.tck", [good] * 500 + [good + 200] * 500, step_size=None)
    share = share_outside_brain(tmp_path / "a.tck", n_blocks=10, block_bytes=6000)
    assert share == pytest.approx(0.5, abs=0.05)


def test_nilearn_waits_until_it_is_needed():
    code = (
        "import sys, lacuna_nipype.connectomes.tractogram_check;sys.exit('nilearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Real files

REAL = [
    ("tractogram_hcp1065", "hcp1065_10403_step2mm.tck"),
    ("tract_formats", "tract.SLF1_R.tck"),
    ("tract_formats", "tract.IFOF_R.trk"),
    ("tract_formats", "dpsv.trx"),
    ("tract_formats", "TR_S_R.tt.gz"),
]


@pytest.mark.real_data
@pytest.mark.parametrize("parts", REAL, ids=lambda parts: parts[1])
def test_real_ones_are_in_the_brain(parts):
    assert check_placement(real(*parts)) < 0.01


@pytest.mark.real_data
def test_share_of_a_real_one_by_another_way(brain):
    path = real("tractogram_hcp1065", "hcp1065_10403_step2mm.tck")
    distance, to_voxel = brain
    points = np.concatenate(list(nib.streamlines.load(path).streamlines))
    for matrix in (LPS, np.diag([1.15, 1.15, 1.15, 1])):
        there = nib.affines.apply_affine(matrix, points)
        voxels = np.rint(nib.affines.apply_affine(to_voxel, there)).astype(int)
        # The margin is outside.
        x, y, z = voxels.clip(0, np.array(distance.shape) - 1).T
        expected = (distance[x, y, z] > 4).mean()
        assert 0.03 < expected < 0.3
        found = share_outside_brain([there.astype("f4")])
        assert found == pytest.approx(expected, abs=0.01)


@pytest.mark.real_data
@pytest.mark.parametrize("where", [*VOXELS, "lps"])
def test_real_ones_elsewhere(tmp_path, where):
    path = real("tractogram_hcp1065", "hcp1065_10403_step2mm.tck")
    matrix = VOXELS.get(where, LPS)
    write_tck(tmp_path / "a.tck", moved(iter_tck_streamlines(path), matrix), step_size=None)
    problem = "LPS instead of RAS" if where == "lps" else "those of voxels"
    with pytest.raises(ValidationError, match=problem):
        check_placement(tmp_path / "a.tck")


@pytest.mark.real_data
@pytest.mark.parametrize("parts", REAL[1:], ids=lambda parts: parts[1])
def test_single_bundles_elsewhere(tmp_path, parts):
    cases = [(VOXELS["las_1mm"], "those of voxels")]
    # This bundle reaches as far to the front as to the back, so that both ways fit.
    cases += [] if "TR_S" in parts[1] else [(LPS, "LPS instead")]
    for matrix, problem in cases:
        lines = moved(iter_streamlines(real(*parts)), matrix)
        write_tck(tmp_path / "a.tck", lines, step_size=None)
        with pytest.raises(ValidationError, match=problem):
            check_placement(tmp_path / "a.tck")
