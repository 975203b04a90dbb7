"""``lacuna-nipype connectome convert`` and ``info`` on tractograms."""

import hashlib
import json
import os
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from nibabel.streamlines import Tractogram, TrkFile

from lacuna_nipype.cli.connectome import main
from lacuna_nipype.connectomes.tractogram import iter_tck_streamlines, read_tck_header, write_tck

SPACE = "MNI152NLin6Asym"
DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None


def arcs(n_lines=30, step=0.5):
    """Half circles around the middle of the brain, of radii from 15 to 40 mm."""
    lines = []
    for radius in np.linspace(15, 40, n_lines):
        angles = np.arange(0, np.pi, step / radius)
        circle = np.stack([radius * np.cos(angles), -20 + 0 * angles, radius * np.sin(angles)], 1)
        lines.append(circle.astype("f4"))
    return lines


def save_trk(path, lines):
    tractogram = Tractogram(lines, affine_to_rasmm=np.eye(4))
    TrkFile(tractogram, {"voxel_to_rasmm": np.eye(4)}).save(str(path))
    return path


@pytest.fixture
def trk(tmp_path):
    return save_trk(tmp_path / "brain.trk", arcs())


@pytest.fixture
def hdf5(tmp_path):
    """A functional connectome as far as its name and layout are looked at."""
    with h5py.File(tmp_path / "functional.h5", "w") as handle:
        handle["timeseries"] = np.zeros((1, 5, 4), "f4")
    return tmp_path / "functional.h5"


def run(capsys, *words, code=0):
    assert main([str(word) for word in words]) == code, capsys.readouterr().err
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed


def refused(capsys, *words, code=2):
    printed = run(capsys, *words, code=code)
    assert printed.out == ""
    start, _, reason = printed.err.strip().splitlines()[-1].partition(": ")
    assert start == "lacuna-nipype"
    return reason


def info(capsys, path):
    return json.loads(run(capsys, "info", path, "--json").out)


def test_convert_and_inform(capsys, tmp_path, trk):
    out = tmp_path / "out" / "brain.tck"
    lines = run(capsys, "convert", trk, out, "--space", SPACE).out.splitlines()
    assert lines == [
        "Streamlines: 30 (0 empty, 0 of one point)",
        "Step: 0.5 mm (0.5 mm measured; points are as they were)",
        f"Space: {SPACE}",
        "Outside the brain: 0 % of the vertices",
        f"Tractogram: {out}",
    ]
    for line, found in zip(arcs(), iter_tck_streamlines(out), strict=True):
        np.testing.assert_allclose(found, line, atol=1e-5)
    before, after = info(capsys, trk), info(capsys, out)
    assert before.pop("MeasuredStepSize") == pytest.approx(0.5, abs=1e-4)
    assert after.pop("MeasuredStepSize") == pytest.approx(0.5, abs=1e-4)
    for found, path in ((before, trk), (after, out)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        assert found.pop("Fingerprint") == f"sha256:{content}"
    assert before == {
        "Layout": "tractogram",
        "Path": str(trk),
        "Bytes": trk.stat().st_size,
        "Space": None,
        "NumberOfStreamlines": 30,
        "DataType": "Float32LE",
        "StepSize": None,
        "RegularSteps": True,
        "ShareOutsideBrain": 0.0,
    }
    assert after == {
        **before, "Path": str(out), "Bytes": out.stat().st_size, "Space": SPACE, "StepSize": 0.5
    }  # fmt: skip


def test_step_on_request(capsys, tmp_path, trk):
    out = tmp_path / "out.tck"
    lines = run(capsys, "convert", trk, out, "--step_size", "1.25").out.splitlines()
    assert lines[1] == "Step: 1.25 mm (0.5 mm measured; streamlines were resampled)"
    assert lines[2].startswith("Space: not known; give --space")
    assert read_tck_header(out).step_size == 1.25
    # On straight lines between the old points, so nearly on the circles.
    for radius, line in zip(np.linspace(15, 40, 30), iter_tck_streamlines(out), strict=True):
        np.testing.assert_allclose(np.hypot(line[:, 0], line[:, 2]), radius, atol=0.003)


def test_irregular_steps(capsys, tmp_path):
    rng = np.random.default_rng(1)
    lines = [line[np.sort(rng.permutation(len(line))[:40])] for line in arcs()]
    source = save_trk(tmp_path / "a.trk", lines)
    assert info(capsys, source)["RegularSteps"] is False
    printed = run(capsys, "convert", source, tmp_path / "out.tck").out
    assert "irregular; streamlines were resampled" in printed
    assert info(capsys, tmp_path / "out.tck")["RegularSteps"] is True


def test_a_tck_without_a_step(capsys, tmp_path):
    write_tck(tmp_path / "a.tck", arcs(), step_size=None)
    assert info(capsys, tmp_path / "a.tck")["StepSize"] is None
    run(capsys, "convert", tmp_path / "a.tck", tmp_path / "b.tck")
    assert info(capsys, tmp_path / "b.tck")["StepSize"] == 0.5


def test_info_as_text(capsys, trk):
    lines = run(capsys, "info", trk).out.splitlines()
    for start in ("Layout: ", "NumberOfStreamlines: ", "ShareOutsideBrain: "):
        assert any(line.startswith(start.strip()) for line in lines)


def test_overwrite(capsys, tmp_path, trk):
    out = tmp_path / "out.tck"
    run(capsys, "convert", trk, out)
    assert "out.tck exists already" in refused(capsys, "convert", trk, out)
    run(capsys, "convert", trk, out, "--overwrite", "--step-size", "1")
    assert read_tck_header(out).step_size == 1


def test_arguments_of_the_other_kind(capsys, tmp_path, trk, hdf5):
    out = tmp_path / "out.tck"
    for flags in (["--to-lacuna"], ["--compact"], ["--nprocs", "2"]):
        line = refused(capsys, "convert", trk, out, *flags)
        assert line == f"{trk} is a tractogram; leave {flags[0]} out."
    line = refused(capsys, "convert", hdf5, tmp_path / "store", "--step-size", "1")
    assert line == f"{hdf5} is a functional connectome; leave --step-size out."
    assert not out.exists()


def test_wrong_arguments(capsys, tmp_path, trk):
    for step in ("0", "-1", "x", "nan", "inf"):
        assert "--step-size" in refused(
            capsys, "convert", trk, tmp_path / "o.tck", f"--step-size={step}"
        )
    for name in ("out", "out.trk", "out.h5.gz"):
        assert "does not end in .tck" in refused(capsys, "convert", trk, tmp_path / name)
    assert "Space 'T1w'" in refused(capsys, "convert", trk, tmp_path / "o.tck", "--space", "T1w")
    assert "file to read from" in refused(
        capsys, "convert", save_tck(tmp_path), save_tck(tmp_path), "--overwrite"
    )
    assert "does not exist" in refused(capsys, "convert", tmp_path / "no.trk", tmp_path / "o.tck")


def save_tck(folder):
    write_tck(folder / "same.tck", arcs(), step_size=0.5)
    return folder / "same.tck"


def test_damaged_files(capsys, tmp_path, trk):
    data = trk.read_bytes()
    trk.write_bytes(data[:-7])
    for words in (("convert", trk, tmp_path / "o.tck"), ("info", trk)):
        assert refused(capsys, *words).startswith(f"{trk} is not a whole file")
    trk.write_bytes(b"x" * 3000)
    assert "not a TrackVis file" in refused(capsys, "info", trk)
    assert sorted(tmp_path.iterdir()) == [trk]


@pytest.mark.parametrize(
    ("matrix", "problem"),
    [
        (np.array([[-1, 0, 0, 90], [0, 1, 0, 126], [0, 0, 1, 72], [0, 0, 0, 1]]), "of voxels"),
        (np.diag([-1, -1, 1, 1]), "LPS instead of RAS"),
    ],
)
def test_elsewhere(capsys, tmp_path, matrix, problem):
    front = [line + np.array([0, -60, 0], "f4") for line in arcs()]
    lines = [nib.affines.apply_affine(matrix, line) for line in front]
    source = save_trk(tmp_path / "a.trk", [line.astype("f4") for line in lines])
    assert problem in refused(capsys, "convert", source, tmp_path / "o.tck")
    assert sorted(tmp_path.iterdir()) == [source]
    # Looking at it is allowed.
    assert info(capsys, source)["ShareOutsideBrain"] > 0.05


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "count", "step", "regular"),
    [
        ("TR_S_R.tt.gz", 1159, 0.501, True),
        ("dpsv.trx", 460, 0.5019, False),
        ("tract.IFOF_R.trk", 14, 1.0, False),
        ("tract.SLF1_R.tck", 13, 1.0, False),
    ],
)
def test_real_ones(capsys, tmp_path, name, count, step, regular):
    if DATA is None or not (DATA / "tract_formats" / name).is_file():
        pytest.skip("LACUNA_TEST_DATA does not name a folder with the real tractograms")
    out = tmp_path / "out.tck"
    printed = run(capsys, "convert", DATA / "tract_formats" / name, out, "--space", SPACE).out
    assert printed.startswith(f"Streamlines: {count} ")
    assert ("irregular" in printed) is not regular
    found = info(capsys, out)
    assert (found["NumberOfStreamlines"], found["StepSize"]) == (count, step)
    assert found["ShareOutsideBrain"] < 0.01
    assert found["RegularSteps"]
