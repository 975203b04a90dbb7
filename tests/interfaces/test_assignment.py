"""Nodes of streamlines: against tck2connectome typed by hand and a search of all voxels."""

import logging
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import nipype.pipeline.engine as pe
import numpy as np
import pytest

from lacuna_nipype.connectomes.tractogram import read_tck_header, write_tck
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.interfaces import AssignStreamlines
from lacuna_nipype.interfaces.assignment import HIGHEST_LABEL, check_labels, read_assignments
from lacuna_nipype.interfaces.mrtrix import MRtrixError

DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None
N = 300
EMPTY = np.empty((0, 3), "f4")
SHAPE = (12, 14, 10)
# Voxels of 3 x 2.5 x 4 mm, the first axis from right to left.
AFFINE = np.array([[-3.0, 0, 0, 16], [0, 2.5, 0, -18], [0, 0, 4, -19], [0, 0, 0, 1]])


def needs_mrtrix(function):
    missing = shutil.which("tck2connectome") is None
    skip = pytest.mark.skipif(missing, reason="MRtrix3 is not on PATH")
    return pytest.mark.mrtrix(skip(function))


def assign(base_dir, **inputs):
    interface = AssignStreamlines(**{name: str(value) for name, value in inputs.items()})
    return load(pe.Node(interface, name="node", base_dir=str(base_dir)).run())


def load(result):
    return np.load(result.outputs.out_file)


def typed(folder, tracks, nodes, *options):
    """Assignments that tck2connectome makes when a user types it."""
    words = ["tck2connectome", tracks, nodes, "m.csv", "-out_assignments", "a.txt", "-force"]
    words = [str(word) for word in [*words, "-quiet", *options]]
    subprocess.run(words, check=True, cwd=folder, capture_output=True)
    return np.loadtxt(folder / "a.txt", dtype=int, ndmin=2)


def save(path, data):
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    return path


@pytest.fixture
def labels():
    """Twelve nodes of scattered voxels, between much that is no node; no voxel of node 5."""
    rng = np.random.default_rng(2)
    labels = rng.integers(1, 13, SHAPE)
    labels[rng.random(SHAPE) < 0.85] = 0
    labels[labels == 5] = 0
    return labels


@pytest.fixture
def nodes(tmp_path, labels):
    return save(tmp_path / "nodes.nii.gz", labels.astype("i2"))


@pytest.fixture
def lines():
    """Streamlines around the grid, some ends outside; some of one point or of no length."""
    rng = np.random.default_rng(1)
    lines = [
        rng.uniform((-22, -22, -24), (22, 22, 24), (n, 3)).astype("f4")
        for n in rng.integers(2, 9, N)
    ]
    lines[4] = lines[4][:1]
    lines[9] = np.repeat(lines[9][:1], 3, axis=0)
    return lines


@pytest.fixture
def tracks(tmp_path, lines):
    path = tmp_path / "in put" / "tracks.tck"
    path.parent.mkdir()
    write_tck(path, lines, step_size=1.0)
    return path


def searched(lines, labels, radius):
    """Label of the nearest voxel of any node, over all voxels, if closer than the radius."""
    voxels = np.argwhere(labels)
    centres = voxels @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    found = []
    for line in lines:
        ends = np.stack([line[0], line[-1]]).astype("f8")
        distances = np.linalg.norm(ends[:, None] - centres, axis=2)
        nearest = distances.argmin(axis=1)
        pair = labels[tuple(voxels[nearest].T)]
        found.append(np.where(distances.min(axis=1) < radius, pair, 0))
    return np.array(found)


@needs_mrtrix
@pytest.mark.parametrize("radius", [None, 1.5, 9.0])
@pytest.mark.parametrize("threads", [1, 2])
def test_nodes_of_both_ends(tmp_path, tracks, lines, nodes, labels, radius, threads):
    inputs = {} if radius is None else {"search_radius": radius}
    interface = AssignStreamlines(
        in_file=str(tracks), nodes=str(nodes), num_threads=threads, **inputs
    )
    found = load(pe.Node(interface, name="node", base_dir=str(tmp_path)).run())
    assert (found.shape, found.dtype) == ((N, 2), np.uint16)
    np.testing.assert_array_equal(found, searched(lines, labels, radius or 4.0))
    options = [] if radius is None else ["-assignment_radial_search", radius]
    np.testing.assert_array_equal(found, typed(tmp_path, tracks, nodes, *options))
    assert 5 not in found
    assert (found == 0).any()
    assert found.max() == 12
    # Of what was written on the way, nothing is left.
    left = {path.name for path in (tmp_path / "node").iterdir() if path.suffix != ".pklz"}
    assert {name for name in left if name[0] != "_"} == {"assignments.npy"}


@needs_mrtrix
def test_one_point_and_no_length_are_left_to_mrtrix(tmp_path, nodes, labels):
    place = np.argwhere(labels)[0]
    point = (AFFINE[:3, :3] @ place + AFFINE[:3, 3]).astype("f4")
    lines = [point[None], np.repeat(point[None], 4, axis=0), np.stack([point, point + 1])]
    write_tck(tmp_path / "a.tck", lines, step_size=1.0)
    found = assign(tmp_path, in_file=tmp_path / "a.tck", nodes=nodes)
    assert (found[:, 0] == labels[tuple(place)]).all()
    assert (found[:2, 1] == labels[tuple(place)]).all()


@needs_mrtrix
@pytest.mark.parametrize("threads", [1, 2])
def test_streamlines_without_points_have_no_node(tmp_path, lines, nodes, labels, threads, caplog):
    """On these tck2connectome crashes, or takes the nodes of a streamline before them."""
    expected = searched(lines, labels, 4.0)
    empty = [0, 1, 17, 150, N - 1]
    for place in empty:
        lines[place] = EMPTY
        expected[place] = 0
    write_tck(tmp_path / "a.tck", lines, step_size=1.0)
    interface = AssignStreamlines(
        in_file=str(tmp_path / "a.tck"), nodes=str(nodes), num_threads=threads
    )
    with caplog.at_level(logging.WARNING, logger="nipype.interface"):
        found = load(pe.Node(interface, name="node", base_dir=str(tmp_path)).run())
    np.testing.assert_array_equal(found, expected)
    assert "5 of the 300 streamlines" in caplog.text
    assert not list((tmp_path / "node").glob("*.tck"))


@needs_mrtrix
@pytest.mark.parametrize("lines", [[], [EMPTY], [EMPTY, EMPTY]])
def test_nothing_to_assign(tmp_path, nodes, lines):
    write_tck(tmp_path / "a.tck", lines, step_size=None)
    found = assign(tmp_path, in_file=tmp_path / "a.tck", nodes=nodes)
    assert (found.shape, found.dtype) == ((len(lines), 2), np.uint16)
    assert not found.any()


@needs_mrtrix
def test_no_node_in_the_image(tmp_path, tracks, caplog):
    nodes = save(tmp_path / "none.nii.gz", np.zeros(SHAPE, "u1"))
    with caplog.at_level(logging.WARNING, logger="nipype.interface"):
        found = assign(tmp_path, in_file=tracks, nodes=nodes)
    assert found.shape == (N, 2)
    assert not found.any()
    assert "holds no label" in caplog.text


@needs_mrtrix
@pytest.mark.parametrize("dtype", ["u1", "i4", "f4", "f8"])
def test_stored_types(tmp_path, tracks, lines, labels, dtype):
    nodes = save(tmp_path / "typed.nii", labels.astype(dtype))
    found = assign(tmp_path, in_file=tracks, nodes=nodes)
    np.testing.assert_array_equal(found, searched(lines, labels, 4.0))


@needs_mrtrix
@pytest.mark.skipif(shutil.which("mrconvert") is None, reason="MRtrix3 is not on PATH")
def test_nodes_in_the_format_of_mrtrix(tmp_path, tracks, lines, nodes, labels):
    words = ["mrconvert", nodes, tmp_path / "nodes.mif", "-quiet"]
    subprocess.run(words, check=True)
    found = assign(tmp_path, in_file=tracks, nodes=tmp_path / "nodes.mif")
    np.testing.assert_array_equal(found, searched(lines, labels, 4.0))


# What is refused


@needs_mrtrix
@pytest.mark.parametrize(("factor", "problem"), [(0.5, "integers"), (-1, "[Nn]egative")])
def test_labels_that_mrtrix_refuses(tmp_path, tracks, labels, factor, problem):
    nodes = save(tmp_path / "bad.nii", (labels * factor).astype("f4"))
    interface = AssignStreamlines(in_file=str(tracks), nodes=str(nodes))
    with pytest.raises(MRtrixError, match=problem):
        interface.run(cwd=str(tmp_path))


def test_labels_too_high(tmp_path, tracks, labels):
    """The command would make a matrix of 2 GB and print it, for hours."""
    data = labels.astype("i4")
    data[0, 0, 0] = HIGHEST_LABEL
    check_labels(save(tmp_path / "most.nii", data))
    data[0, 0, 0] = 70_000
    nodes = save(tmp_path / "high.nii", data)
    interface = AssignStreamlines(in_file=str(tracks), nodes=str(nodes))
    with pytest.raises(ValidationError, match=r"high\.nii has labels up to 70000"):
        interface.run(cwd=str(tmp_path))


@pytest.mark.parametrize("count", [100, N + 1])
def test_wrong_count_in_the_header(tmp_path, tracks, nodes, count):
    """tck2connectome would stop after so many streamlines."""
    header = f"mrtrix tracks\ndatatype: Float32LE\ncount: {count}\nfile: . 200\nEND\n"
    data = tracks.read_bytes()[read_tck_header(tracks).offset :]
    (tmp_path / "a.tck").write_bytes(header.encode().ljust(200, b"\0") + data)
    interface = AssignStreamlines(in_file=str(tmp_path / "a.tck"), nodes=str(nodes))
    with pytest.raises(ValidationError, match=f"{count} streamlines, but there are {N}"):
        interface.run(cwd=str(tmp_path))


# The text of the assignments


def test_text_of_assignments(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("# tck2connectome a.tck  (version=3.0.3)\n1 2\n0 0\n# more\n12 3\n")
    found = read_assignments(path, 3)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, [[1, 2], [0, 0], [12, 3]])
    path.write_text("# comment only\n")
    assert read_assignments(path, 0).shape == (0, 2)


@pytest.mark.parametrize(
    "text", ["1 2\n", "1 2\n3 4\n5 6\n", "1 2\n3\n", "1 2 3\n4 5 6\n", "1 2\n3 x\n"]
)
def test_text_that_is_no_assignments(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(MRtrixError, match=r"tck2connectome failed: .*a\.txt"):
        read_assignments(tmp_path / "a.txt", 2)


def test_text_of_many_assignments(tmp_path):
    pairs = np.random.default_rng(0).integers(0, 400, (200_000, 2))
    rows = "\n".join(f"{first} {second}" for first, second in pairs.tolist())
    (tmp_path / "a.txt").write_text(f"# comment\n{rows}\n")
    np.testing.assert_array_equal(read_assignments(tmp_path / "a.txt", 200_000), pairs)


# Caching


@needs_mrtrix
def test_threads_are_no_part_of_the_hash(tmp_path, tracks, nodes):
    for threads in (1, 2):
        marker = tmp_path / "node" / "marker"
        if marker.parent.exists():
            marker.touch()
        interface = AssignStreamlines(in_file=str(tracks), nodes=str(nodes), num_threads=threads)
        pe.Node(interface, name="node", base_dir=str(tmp_path)).run()
        assert marker.exists() is (threads == 2)


@needs_mrtrix
@pytest.mark.real_data
@pytest.mark.skipif(
    DATA is None or not (DATA / "tractogram_hcp1065").is_dir(),
    reason="LACUNA_TEST_DATA does not name a folder with the real data",
)
@pytest.mark.parametrize("parcels", ["100Parcels7Networks", "400Parcels17Networks"])
def test_real_parcellations(tmp_path, parcels):
    tracks = DATA / "tractogram_hcp1065" / "hcp1065_10403_step2mm.tck"
    name = f"tpl-MNI152NLin6Asym_res-01_atlas-Schaefer2018_desc-{parcels}_dseg.nii.gz"
    nodes = DATA / "parcellations" / name
    found = assign(tmp_path, in_file=tracks, nodes=nodes)
    assert found.shape == (10_403, 2)
    assert 0.3 < (found > 0).all(axis=1).mean() < 1
    np.testing.assert_array_equal(found, typed(tmp_path, tracks, nodes))
    # The matrix that the command makes follows from the pairs.
    matrix = np.loadtxt(tmp_path / "m.csv", delimiter=",")
    expected = np.zeros((len(matrix) + 1,) * 2)
    np.add.at(expected, tuple(np.sort(found, axis=1).T), 1)
    np.testing.assert_array_equal(matrix, expected[1:, 1:])
