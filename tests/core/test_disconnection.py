"""Per cent of streamlines cut, against MRtrix and by hand."""

import json
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.core.disconnection import disconnection_percent, summarise_disconnection
from lacuna_nipype.core.exceptions import ValidationError

GUARDED = "{full} 0 -gt {hit} {full} -divide 100 -multiply 0 -if"


def test_by_hand():
    hit, full = np.array([0, 1, 3, 5, 0]), np.array([0, 4, 3, 8, 7])
    percent = disconnection_percent(hit, full)
    assert percent.dtype == np.float32
    assert percent.tolist() == [0, 25, 100, 62.5, 0]


def test_no_streamline_at_all_is_zero_and_never_nan():
    with np.errstate(all="raise"):
        percent = disconnection_percent(np.array([0.0, 2.0]), np.zeros(2))
    assert percent.tolist() == [0, 0]


def test_densities_on_two_grids_are_refused():
    with pytest.raises(ValidationError):
        disconnection_percent(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)))


@pytest.mark.mrtrix
@pytest.mark.skipif(shutil.which("mrcalc") is None, reason="MRtrix3 is not on PATH")
@pytest.mark.parametrize("fractional", [False, True])
def test_equals_mrcalc_to_the_last_bit(tmp_path, fractional):
    rng = np.random.default_rng(11)
    full = rng.integers(0, 50, size=(12, 13, 14)).astype(np.float32)
    if fractional:
        full *= rng.random(full.shape, dtype=np.float32)
    hit = np.floor(full * rng.random(full.shape, dtype=np.float32))
    for name, data in (("hit", hit), ("full", full)):
        nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / f"{name}.nii")
    expression = GUARDED.format(hit=tmp_path / "hit.nii", full=tmp_path / "full.nii").split()
    target = tmp_path / "percent.nii"
    subprocess.run(
        ["mrcalc", *expression, target, "-datatype", "float32", "-quiet"], check=True, timeout=60
    )
    expected = np.asanyarray(nib.load(target).dataobj)
    percent = disconnection_percent(hit, full)
    assert np.count_nonzero(full == 0) > 10
    assert np.array_equal(percent.view(np.uint32), expected.astype(np.float32).view(np.uint32))


def test_summary_by_hand():
    percent = np.array([0, 0, 10, 50, 90], dtype=np.float32)
    assert summarise_disconnection(percent, 0.008, 200, 30) == {
        "Streamlines": 200,
        "StreamlinesHit": 30,
        "StreamlinesHitPercent": 15.0,
        "VoxelsAffected": 3,
        "MeanDisconnectionPercent": 50.0,
        "MaximumDisconnectionPercent": 90.0,
        "VolumeHalfDisconnectedML": pytest.approx(0.016),
    }


@pytest.mark.parametrize(("total", "hit"), [(200, 0), (0, 0), (None, None)])
def test_summary_of_no_streamline_is_valid_json(total, hit):
    summary = summarise_disconnection(np.zeros(4, dtype=np.float32), 0.001, total, hit)
    json.dumps(summary, allow_nan=False)
    assert summary["MeanDisconnectionPercent"] == 0
    assert summary["MaximumDisconnectionPercent"] == 0
    assert summary["VolumeHalfDisconnectedML"] == 0
    assert summary["StreamlinesHitPercent"] == (0 if total else None)
