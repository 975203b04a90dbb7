"""What ``connectome info`` says of content: checksums, values that are not numbers, counts."""

import hashlib
import json

import numpy as np
import pytest

from lacuna_nipype.connectomes.inspection import inspect_connectome
from lacuna_nipype.connectomes.streamline_index import write_index
from lacuna_nipype.connectomes.tractogram import write_tck
from lacuna_nipype.core.exceptions import SpatialMismatchError
from lacuna_nipype.core.spaces import template_grid

SPACE = "MNI152NLin6Asym"
SHAPE = (6, 5, 4)
AFFINE = np.diag([3.0, 3, 3, 1])


def sha256(path):
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_functional_connectome(tmp_path, write_connectome):
    voxels = np.argwhere(np.ones(SHAPE)).T
    rng = np.random.default_rng(0)
    for number in range(2):
        series = rng.normal(size=(2, 20, voxels.shape[1]))
        if number == 0:
            series[0, 3, [5, 9]] = np.nan, np.inf
            series[0, 4, 5] = np.nan
        write_connectome(tmp_path / f"{number}.h5", series, voxels, SHAPE, AFFINE)
    found = inspect_connectome(tmp_path)
    parts = "".join(sha256(tmp_path / f"{number}.h5") for number in range(2))
    assert found["Fingerprint"] == f"combined-sha256:{hashlib.sha256(parts.encode()).hexdigest()}"
    assert found["SeriesNotFiniteOfFirstSubject"] == 2
    assert inspect_connectome(tmp_path / "1.h5")["Fingerprint"] == sha256(tmp_path / "1.h5")
    assert inspect_connectome(tmp_path / "1.h5")["SeriesNotFiniteOfFirstSubject"] == 0
    write_connectome(tmp_path / "2.h5", series[..., :-1], voxels[:, :-1], SHAPE, AFFINE)
    with pytest.raises(SpatialMismatchError, match="disagree on the brain mask"):
        inspect_connectome(tmp_path)


def test_tractogram_and_its_index(tmp_path):
    path = tmp_path / "lines.tck"
    lines = [np.cumsum(np.tile([[0, 0, 1.0]], (n, 1)), axis=0) for n in (8, 0, 5, 9)]
    write_tck(path, lines, step_size=1.0)
    calls = []
    found = inspect_connectome(path, check_data=True, progress=lambda *n: calls.append(n))
    json.dumps(found, allow_nan=False)
    assert found["Fingerprint"] == sha256(path)
    assert found["Check"] == {
        "Streamlines": 4,
        "StreamlinesAgreeWithHeader": True,
        "StreamlinesEmpty": 1,
        "StreamlinesNotFinite": 0,
    }
    write_index(path, tmp_path / "i.h5", grid=template_grid(SPACE, 2), space=SPACE, upsample=1)
    assert inspect_connectome(tmp_path / "i.h5")["Fingerprint"] == sha256(tmp_path / "i.h5")
    # A coordinate that is not a number and no separator, and a header that says too much
    content = path.read_bytes()
    point = np.array([0, 0, 7], "<f4").tobytes()
    assert content.count(point) == 2
    broken = content.replace(point, np.array([0, np.nan, 7], "<f4").tobytes(), 1)
    start = broken.index(b"count: ") + len(b"count: ")
    path.write_bytes(broken[:start] + b"5" + broken[start + 1 :])
    check = inspect_connectome(path, check_data=True)["Check"]
    assert (check["Streamlines"], check["StreamlinesNotFinite"]) == (4, 1)
    assert check["StreamlinesAgreeWithHeader"] is False
