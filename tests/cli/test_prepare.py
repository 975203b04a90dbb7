"""The command ``connectome prepare`` in a process of its own."""

import subprocess
import sys

import h5py
import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.connectomes.prepare import read_matrix

SHAPE = (8, 9, 7)
AFFINE = np.array([[8.0, 0, 0, -28], [0, 8, 0, -32], [0, 0, 8, -24], [0, 0, 0, 1]])
SPACE = "MNI152NLin6Asym"


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "lacuna_nipype", "connectome", "prepare", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def save(path, data, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nb.Nifti1Image(data, affine)
    image.set_sform(affine, 4)
    nb.save(image, path)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two files of a connectome without a space of its own, and an atlas on a finer grid."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(4)
    brain = np.zeros(SHAPE, dtype=bool)
    brain[:, 1:-1, 1:-1] = True
    (folder / "mini").mkdir()
    for number in range(2):
        with h5py.File(folder / "mini" / f"batch_{number}.h5", "w") as handle:
            series = rng.normal(size=(2, 15, np.count_nonzero(brain)))
            handle["timeseries"] = series.astype(np.float32)
            handle["mask_indices"], handle["mask_affine"] = np.array(np.nonzero(brain)), AFFINE
            handle.attrs["mask_shape"] = SHAPE
    labels = np.zeros((16, 18, 14), dtype=np.int16)
    labels[:8], labels[8:] = 1, 2
    labels[:, 0] = 3
    affine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] -= 2
    stem = f"tpl-{SPACE}_atlas-Halves_dseg"
    save(folder / "atlases" / f"tpl-{SPACE}" / f"{stem}.nii.gz", labels, affine)
    table = "index\tname\n1\tlow\n2\thigh\n3\trim\n"
    (folder / "atlases" / f"tpl-{SPACE}" / f"{stem}.tsv").write_text(table)
    return folder


@pytest.fixture
def atlas(study):
    stem = study / "atlases" / f"tpl-{SPACE}" / f"tpl-{SPACE}_atlas-Halves_dseg"
    return [f"{stem}.nii.gz", f"{stem}.tsv"]


def test_prepare(study, atlas, tmp_path):
    words = [
        study / "mini", tmp_path / "out", "--custom-parcellation", "My own", *atlas, SPACE,
        "--parcel-atlases", "Halves", "--datasets", study / "atlases",
        "--functional-space", SPACE, "--nprocs", 2,
    ]  # fmt: skip
    done = run(*words)
    assert (done.returncode, done.stderr) == (0, "")
    names = [f"mini_atlas-{name}_stat-z_relmat" for name in ("Myown", "Halves")]
    own, found = (read_matrix(tmp_path / "out" / f"{name}.tsv") for name in names)
    assert own.names == found.names == ("low", "high", "rim")
    assert np.array_equal(own.values, found.values, equal_nan=True)
    assert np.isnan(own.values[2]).all()
    assert (own.space, own.n_subjects) == (SPACE, 4)
    assert own.sidecar["Connectome"]["Fingerprint"].startswith("combined-sha256:")
    assert own.sidecar["Atlas"]["Name"] == "My own"
    assert str(own.path) in done.stdout
    assert "3 parcels, 4 subjects, 1 of them without connectivity (rim)" in done.stdout
    again = run(*words)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert run(*words, "--overwrite").returncode == 0


def test_wrong_use_ends_in_one_sentence(study, atlas, tmp_path):
    here, out = study / "mini", tmp_path / "out"
    own = ["--custom-parcellation", "A", *atlas]
    for words, reason in [
        ([here, out], "--custom-parcellation"),
        ([study / "none", out, *own, SPACE], "does not exist"),
        ([here, out, "--parcel-atlases", "Halves", "--functional-space", SPACE], "'Halves'"),
        ([here, out, *own, SPACE], "does not say which space"),
        ([here, out, *own, "MNI152NLin2009cAsym", "--functional-space", SPACE], "Atlas A is in"),
        ([here, out, *own, SPACE, "--functional-space", SPACE, "--nprocs", "0"], "above 0"),
    ]:
        done = run(*words)
        assert done.returncode == 2, words
        assert reason in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert not out.exists()
    assert run("--help").returncode == 0
