"""The examples: our workflows in other pipelines, and the command after another pipeline."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import fmriprep_data
import h5py
import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.core.lesion_resampling import resample_mask
from lacuna_nipype.core.spaces import Grid

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SPACE = "MNI152NLin6Asym"
RADIUS = 15.0


def run(arguments, folder, timeout=300, **variables):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables},
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def load(path):
    image = nb.load(path)
    return np.asanyarray(image.dataobj), Grid.make(image.shape, image.affine)


# --- A plain pipeline -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory, demonstration):
    """Results of the plain pipeline on a lesion, started from a folder of its own."""
    folder = tmp_path_factory.mktemp("plain")
    mask = next((demonstration.bids_dir / "sub-01").rglob("*_mask.nii.gz"))
    connectomes = (demonstration.functional_connectome, demonstration.structural_connectome)
    run([sys.executable, EXAMPLES / "plain_nipype.py", mask, *connectomes, "work"], folder)
    return folder / "work", mask


def test_plain_pipeline_maps_the_function(plain, demonstration):
    work, mask = plain
    (path,) = (work / "fnm").glob("*.nii.gz")
    z, grid = load(path)
    lesion = resample_mask(*load(mask), grid)[0] > 0
    expected = []
    for file in sorted(demonstration.functional_connectome.glob("*.h5")):
        with h5py.File(file) as handle:
            voxels = tuple(handle["mask_indices"][()])
            seed = lesion[voxels]
            for series in handle["timeseries"][()].astype(np.float64):
                mean = series[:, seed].mean(axis=1)
                # A hundred voxels will do.
                r = [np.corrcoef(mean, column)[0, 1] for column in series[:, ::500].T]
                expected.append(np.arctanh(r))
    found = z[voxels][::500]
    assert len(found) > 50
    assert found == pytest.approx(np.mean(expected, axis=0), abs=1e-5)


def test_plain_pipeline_maps_the_structure(plain, demonstration):
    work, mask = plain
    (path,) = (work / "snm").glob("*.json")
    data, grid = load(mask)
    hit = 0
    to_voxel = np.linalg.inv(grid.affine)
    for line in nb.streamlines.load(demonstration.structural_connectome).streamlines:
        index = np.floor(line @ to_voxel[:3, :3].T + to_voxel[:3, 3] + 0.5).astype(int)
        index = index[((index >= 0) & (index < data.shape)).all(axis=1)]
        hit += bool(data[tuple(index.T)].any())
    assert json.loads(path.read_text())["StreamlinesHit"] == hit > 50
    (image,) = (work / "snm").glob("*.nii.gz")
    percent, _ = load(image)
    assert percent.min() == 0
    assert 50 < percent.max() <= 100


def test_plain_pipeline_is_short():
    text = (EXAMPLES / "plain_nipype.py").read_text().partition('"""\n\n')[2]
    assert len([line for line in text.splitlines() if line.strip()]) <= 30


# --- After fMRIPrep -------------------------------------------------------------------------


def test_command_after_fmriprep(tmp_path, demonstration):
    study = fmriprep_data.write_fmriprep_study(
        tmp_path, subjects=("01",), targets=(SPACE,), radius=RADIUS
    )
    commands = tmp_path / "bin"
    commands.mkdir()
    command = commands / "lacuna-nipype"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lacuna_nipype "$@"\n')
    command.chmod(0o755)
    run(
        [
            *("bash", EXAMPLES / "after_fmriprep.sh"),
            *(study.bids, study.fmriprep, "out"),
            *(demonstration.functional_connectome, demonstration.structural_connectome),
            *("--nprocs", "2"),
        ],
        tmp_path,
        PATH=f"{commands}{os.pathsep}{os.environ['PATH']}",
    )
    stored = tmp_path / "out" / "sub-01" / "anat"
    for wanted in ("stat-z_desc-fnm_statmap.nii.gz", "disconnectionpct_desc-snm_statmap.nii.gz"):
        assert len(list(stored.glob(f"*_space-{SPACE}_*{wanted}"))) == 1
    (sidecar,) = stored.glob("*_mask.json")
    volume = json.loads(sidecar.read_text())["LesionNormalisation"]["VolumeMLAfter"]
    # In the standard space the lesion is a ball.
    assert volume == pytest.approx(4 / 3 * math.pi * RADIUS**3 / 1000, rel=0.05)
    assert (tmp_path / "out-work").is_dir()


def test_command_after_fmriprep_says_how_to_call_it(tmp_path):
    done = subprocess.run(
        ["bash", EXAMPLES / "after_fmriprep.sh"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "BIDS FMRIPREP OUT" in done.stderr
    assert "pipefail" not in done.stderr


# --- In the graphs of the fMRIPrep family ---------------------------------------------------


def python_with_fmriprep():
    named = os.environ.get("LACUNA_TEST_FMRIPREP")
    if named:
        return named
    return sys.executable if importlib.util.find_spec("fmriprep") else None


@pytest.fixture(scope="module")
def family(tmp_path_factory, demonstration):
    """What the script beside this file found, and the folder it worked in."""
    python = python_with_fmriprep()
    if python is None:
        pytest.skip(
            "fmriprep is not installed and LACUNA_TEST_FMRIPREP names no Python that has it; "
            "scripts/embedding-environment.sh makes one"
        )
    folder = tmp_path_factory.mktemp("fmriprep")
    home = folder / "templateflow"
    home.mkdir()
    run(
        [python, ROOT / "tests" / "e2e" / "fmriprep_graphs.py", folder, demonstration.directory],
        folder,
        timeout=600,
        TEMPLATEFLOW_HOME=str(home),
    )
    return json.loads((folder / "found.json").read_text()), folder


GRAPHS = ("fresh", "precomputed", "fmriprep")


@pytest.mark.parametrize("graph", GRAPHS)
def test_graph_of_the_family_expands_with_our_step(family, graph):
    names = family[0][graph]["names"]
    ours = [name for name in names if ".lesion_network_wf." in name]
    assert len(set(ours)) == len(ours)
    for step in ("mask_wf.normalise", "fnm_wf.correlate", "snm_wf.disconnection", "ds_fnm_z"):
        assert sum(name.endswith(step) for name in ours) == 1, step
    # What output spaces and surfaces multiply in their graph is not multiplied in ours.
    assert len(ours) < 30 < len(names)


@pytest.mark.parametrize("graph", GRAPHS)
def test_methods_text_of_the_family_holds_ours(family, graph):
    text = family[0][graph]["text"]
    assert len(re.findall("lacuna-nipype", text)) == 1
    assert SPACE in text


@pytest.mark.parametrize(
    ("graph", "registers"), [("fresh", True), ("precomputed", False), ("fmriprep", True)]
)
def test_our_step_waits_for_their_registration(family, graph, registers):
    leading = family[0][graph]["leading"]
    assert any("register_template_wf" in name for name in leading) == registers
    theirs = [name for name in leading if ".lesion_network_wf." not in name]
    # Without, only the nodes that hold the transforms' paths come before ours.
    assert all(name.endswith("_buffer") for name in theirs) != registers


def test_space_that_fmriprep_does_not_normalise_to_is_refused(family):
    assert "MNI152NLin2009aSym" in family[0]["fmriprep"]["complaint"]


def test_our_step_runs_with_their_sinks(family):
    """With transforms of an earlier run, nothing else of the graph is needed."""
    stored = family[1] / "smriprep" / "sub-01" / "anat"
    prefix = f"sub-01_space-{SPACE}_label-lesion_stat-"
    endings = ["r_desc-fnm", "z_desc-fnm", "t_desc-fnm", "disconnectionpct_desc-snm"]
    names = {f"{prefix}{e}_statmap{x}" for e in endings for x in (".nii.gz", ".json")}
    assert {path.name for path in stored.iterdir()} == names
    sidecar = json.loads((stored / f"{prefix}z_desc-fnm_statmap.json").read_text())
    volume = sidecar["LesionNormalisation"]["VolumeMLAfter"]
    ball = 4 / 3 * math.pi * fmriprep_data.RADIUS_MM**3 / 1000
    assert volume == pytest.approx(ball, rel=0.05)
    assert sidecar["LesionResampling"]["VoxelsAfter"] > 0
    z, _ = load(stored / f"{prefix}z_desc-fnm_statmap.nii.gz")
    assert np.isfinite(z).all()
    assert z.std() > 0
