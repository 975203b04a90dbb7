"""Every step that reads a user's large file insists on the content that it is told."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from lacuna_nipype.connectomes.streamline_index import write_index
from lacuna_nipype.connectomes.tractogram import write_tck
from lacuna_nipype.core.files import fingerprint
from lacuna_nipype.core.images import save_image
from lacuna_nipype.core.spaces import template_grid
from lacuna_nipype.interfaces import (
    AssignIndexedStreamlines,
    AssignStreamlines,
    BuildStreamlineIndex,
    CheckTractogram,
    ConnectomeMask,
    IndexedDensity,
    IndexedDisconnection,
    PrepareGroups,
    PrepareWeights,
    SelectStreamlines,
    TCKMap,
)

SPACE = "MNI152NLin6Asym"
N = 4
needs_mrtrix = pytest.mark.skipif(shutil.which("tckmap") is None, reason="needs MRtrix3")


@pytest.fixture
def files(tmp_path, make_connectome):
    """Paths of the inputs, as text, by name."""
    grid = template_grid(SPACE, 2.0)
    lines = [np.float32([[-20 + 2 * k, 0, z] for k in range(20)]) for z in range(N)]
    paths = {
        name: tmp_path / name
        for name in ("a.tck", "a.h5", "weights.txt", "groups.tsv", "mask.nii", "nodes.nii")
    }
    write_tck(paths["a.tck"], lines, step_size=2.0)
    write_index(paths["a.tck"], paths["a.h5"], grid=grid, space=SPACE)
    paths["weights.txt"].write_text("0.5\n" * N)
    rows = "".join(f"{number}\tBundle\n" for number in range(N))
    paths["groups.tsv"].write_text(f"streamline\tbundle\n{rows}")
    ones = np.zeros(grid.shape)
    ones[45:, 55:75, 30:50] = 1
    for name in ("mask.nii", "nodes.nii"):
        save_image(paths[name], ones, grid.affine, "u1")
    return {name: str(path) for name, path in paths.items()} | {"c.h5": make_connectome()}


def tracks(files):
    return {"tractogram": files["a.tck"], "index": files["a.h5"]}


CASES = {
    # Interface, its inputs, and the file of each fingerprint.
    "ConnectomeMask": (
        ConnectomeMask, lambda f: {"connectome_file": f["c.h5"]}, {"fingerprint": "c.h5"},
    ),
    "CheckTractogram": (
        CheckTractogram, lambda f: {"in_file": f["a.tck"]}, {"fingerprint": "a.tck"},
    ),
    "BuildStreamlineIndex": (
        BuildStreamlineIndex,
        lambda f: {"tractogram": f["a.tck"], "reference": f["mask.nii"], "space": SPACE},
        {"fingerprint": "a.tck"},
    ),
    "IndexedDensity": (
        IndexedDensity, tracks, {"fingerprint": "a.tck", "index_fingerprint": "a.h5"},
    ),
    "AssignIndexedStreamlines": (
        AssignIndexedStreamlines,
        lambda f: {**tracks(f), "nodes": f["nodes.nii"]},
        {"fingerprint": "a.tck", "index_fingerprint": "a.h5"},
    ),
    "IndexedDisconnection": (
        IndexedDisconnection,
        lambda f: {**tracks(f), "mask_file": f["mask.nii"], "full_tdi": f["mask.nii"]},
        {"fingerprint": "a.tck", "index_fingerprint": "a.h5"},
    ),
    "PrepareWeights": (
        PrepareWeights,
        lambda f: {"in_file": f["weights.txt"], "n_streamlines": N},
        {"fingerprint": "weights.txt"},
    ),
    "PrepareGroups": (
        PrepareGroups,
        lambda f: {"in_file": f["groups.tsv"], "n_streamlines": N},
        {"fingerprint": "groups.tsv"},
    ),
    "AssignStreamlines": (
        AssignStreamlines,
        lambda f: {"in_file": f["a.tck"], "nodes": f["nodes.nii"]},
        {"fingerprint": "a.tck"},
    ),
    "TCKMap": (
        TCKMap,
        lambda f: {
            "in_file": f["a.tck"], "reference": f["mask.nii"], "tck_weights": f["weights.txt"],
        },
        {"fingerprint": "a.tck", "weights_fingerprint": "weights.txt"},
    ),
    "SelectStreamlines": (
        SelectStreamlines,
        lambda f: {
            "in_files": [f["a.tck"]], "include": [f["mask.nii"]], "out_file": "hit.tck",
            "tck_weights_in": f["weights.txt"], "tck_weights_out": "hit.txt",
        },
        {"fingerprint": "a.tck", "weights_fingerprint": "weights.txt"},
    ),
}  # fmt: skip
MRTRIX = ("AssignStreamlines", "TCKMap", "SelectStreamlines")
PAIRS = [
    pytest.param(name, field, marks=needs_mrtrix if name in MRTRIX else ())
    for name, (_, _, contents) in CASES.items()
    for field in contents
]


@pytest.mark.parametrize(("name", "field"), PAIRS)
def test_another_content_is_refused(name, field, files, run_node):
    interface, inputs, contents = CASES[name]
    right = {own: fingerprint(_path(files, file)) for own, file in contents.items()}
    run_node(interface(**inputs(files), **right), "right")
    path = _path(files, contents[field])
    with pytest.raises(Exception, match=rf"{path.name} has changed since the run began"):
        run_node(interface(**inputs(files), **{**right, field: "sha256:0"}), "wrong")


def _path(files, name):
    return Path(files[name])


def test_the_first_step_finds_the_contents_out(files, run_node):
    outputs = run_node(CheckTractogram(in_file=files["a.tck"], index=files["a.h5"]))
    assert outputs.fingerprint == fingerprint(_path(files, "a.tck"))
    assert outputs.index_fingerprint == fingerprint(_path(files, "a.h5"))
    weights = run_node(PrepareWeights(in_file=files["weights.txt"], n_streamlines=N), "weights")
    assert weights.fingerprint == fingerprint(_path(files, "weights.txt"))
