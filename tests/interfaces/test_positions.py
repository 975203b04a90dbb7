"""Which streamlines tckedit selected: exact whatever is in the file and whatever the options."""

import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import nipype.pipeline.engine as pe
import numpy as np
import pytest
from nipype.interfaces.base import isdefined

from lacuna_nipype.connectomes import streamline_positions
from lacuna_nipype.connectomes.streamline_positions import (
    MOST_STREAMLINES,
    position_weights,
    read_positions,
    weighted_positions,
    write_position_weights,
    write_selected_weights,
)
from lacuna_nipype.connectomes.tractogram import iter_tck_streamlines, read_tck_header, write_tck
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.interfaces.mrtrix import SelectStreamlines

DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None
N = 400
# Around every change of rule or of the distance between neighbours.
STARTS = [0, 2**23 - 500, 2**24 - 500, 2**25, 2**26 - 500, 10**8, 5 * 10**8, MOST_STREAMLINES - N]


def needs_mrtrix(function):
    skip = pytest.mark.skipif(shutil.which("tckedit") is None, reason="MRtrix3 is not on PATH")
    return pytest.mark.mrtrix(skip(function))


def tckedit(folder, *words):
    words = ["tckedit", *map(str, words), "-quiet", "-force"]
    subprocess.run(words, check=True, cwd=folder, capture_output=True)


def select(base_dir, **inputs):
    interface = SelectStreamlines(with_positions=True, **inputs)
    outputs = pe.Node(interface, name="node", base_dir=str(base_dir)).run().outputs
    return outputs, np.load(outputs.positions)


def points_of(path):
    return Path(path).read_bytes()[read_tck_header(path).offset :]


@pytest.fixture
def lines():
    """Streamlines in a box of 20 mm, with those among them that MRtrix treats specially."""
    rng = np.random.default_rng(3)
    lines = [
        (rng.uniform(-10, 10, 3) + np.cumsum(rng.normal(size=(n, 3)), axis=0)).astype("f4")
        for n in rng.integers(2, 12, N)
    ]
    for place in (0, 7, 8, 200, N - 1):
        lines[place] = np.empty((0, 3), "f4")
    for place in (1, 50, 300):
        lines[place] = rng.uniform(-3, 2, (1, 3)).astype("f4")
    for place in (2, 60, N - 2):
        lines[place] = np.repeat(rng.uniform(-3, 2, (1, 3)), 5, axis=0).astype("f4")
    # Twins, which only their positions tell apart.
    lines[100] = lines[99].copy()
    lines[350] = lines[50].copy()
    return lines


@pytest.fixture
def tracks(tmp_path, lines):
    path = tmp_path / "in put" / "tracks.tck"
    path.parent.mkdir()
    write_tck(path, lines, step_size=1.0)
    return str(path)


@pytest.fixture
def mask(tmp_path):
    data = np.zeros((20, 20, 20), "u1")
    data[7:13, 7:13, 7:13] = 1
    return save(tmp_path / "mask.nii.gz", data)


def save(path, data):
    affine = np.eye(4)
    affine[:3, 3] = -10
    nib.save(nib.Nifti1Image(data, affine), path)
    return str(path)


def in_mask(line):
    """Whether a vertex is in the mask of the fixture: voxels 7 to 12 of 1 mm from -10 mm."""
    voxels = np.floor(line.astype("f8") + 10 + 0.5)
    return bool(((voxels >= 7) & (voxels < 13)).all(axis=1).any())


@pytest.fixture
def weights(tmp_path):
    """A file of weights, and the numbers in it."""
    values = np.random.default_rng(4).gamma(2.0, size=N).astype("f4")
    values[5], values[6] = 0, 1e-30
    path = tmp_path / "weights.txt"
    path.write_text("# made by a test\n" + "\n".join(map(repr, values.tolist())) + "\n")
    return str(path), values


# Weights that are positions


@pytest.mark.parametrize("start", STARTS)
def test_weights_stand_for_positions(start):
    positions = np.arange(start, start + N)
    weights = position_weights(positions)
    assert weights.dtype == np.float32
    assert np.isfinite(weights).all()
    assert (weights >= 1).all()
    assert (weights == np.floor(weights)).all()
    assert (np.diff(weights.astype("f8")) > 0).all()
    np.testing.assert_array_equal(weighted_positions(weights), positions)
    np.testing.assert_array_equal(weighted_positions(-weights), positions)
    # Nine digits tell each from its neighbours.
    printed = np.array([f"{weight:.9g}" for weight in weights.tolist()], dtype="f8")
    np.testing.assert_array_equal(weighted_positions(printed.astype("f4")), positions)


def test_small_weights_are_positions_counted_from_one():
    np.testing.assert_array_equal(position_weights(np.arange(5)), [1, 2, 3, 4, 5])
    largest = position_weights(np.array([2**24 - 2, 2**24 - 1, 2**24, 2**24 + 1]))
    assert largest.tolist() == [2**24 - 1, 2**24, 2**24 + 2, 2**24 + 4]
    assert position_weights(np.array([MOST_STREAMLINES - 1]))[0] == np.finfo("f4").max


def test_other_numbers_stand_for_no_position():
    others = np.array([0, 0.5, 1.5, np.nan, np.inf, -np.inf], "f4")
    assert (weighted_positions(others) < 0).all()


@needs_mrtrix
@pytest.mark.parametrize("start", STARTS)
def test_tckedit_keeps_these_weights(tmp_path, start):
    """Also in the places of files that are too large for a test."""
    rng = np.random.default_rng(0)
    write_tck(tmp_path / "a.tck", list(rng.normal(size=(N, 2, 3))), step_size=1.0)
    weights = position_weights(np.arange(start, start + N))
    (tmp_path / "in.txt").write_text("%d " * N % tuple(weights.tolist()))
    tckedit(tmp_path, "a.tck", "-tck_weights_in", "in.txt", "-tck_weights_out", "out.txt", "b.tck")
    found = read_positions(tmp_path / "out.txt", MOST_STREAMLINES)
    np.testing.assert_array_equal(found, np.arange(start, start + N))


def test_weights_file(tmp_path, monkeypatch):
    monkeypatch.setattr(streamline_positions, "BLOCK_NUMBERS", 3)
    monkeypatch.setattr(streamline_positions, "BLOCK_BYTES", 7)
    passing = np.ones(12, dtype=bool)
    passing[[0, 4]] = False
    write_position_weights(tmp_path / "w.txt", 12, passing=passing)
    assert (tmp_path / "w.txt").read_text() == "-1 2 3 4 -5 6 7 8 9 10 11 12 "
    np.testing.assert_array_equal(read_positions(tmp_path / "w.txt", 12), np.arange(12))
    (tmp_path / "w.txt").write_text("")
    found = read_positions(tmp_path / "w.txt", 0)
    assert (found.shape, found.dtype) == ((0,), np.int64)
    write_selected_weights(tmp_path / "s.txt", np.arange(9, dtype="f4") / 3, np.arange(4, 8))
    assert (tmp_path / "s.txt").read_text() == "1.33333337 1.66666663 2 2.33333325 "


@pytest.mark.parametrize("text", ["1 3 2 ", "0 1 ", "1 2.5 ", "1 2 11 ", "1 x ", "nan "])
def test_weights_that_are_no_positions(tmp_path, text):
    (tmp_path / "w.txt").write_text(text)
    with pytest.raises(ValidationError, match=r"w\.txt"):
        read_positions(tmp_path / "w.txt", 10)


def test_too_many_streamlines(tmp_path):
    with pytest.raises(ValidationError, match="too large"):
        write_position_weights(tmp_path / "w.txt", MOST_STREAMLINES + 1)


# SelectStreamlines


@needs_mrtrix
@pytest.mark.parametrize("nthreads", [0, 2])
def test_positions_are_those_of_the_streamlines_hit(tmp_path, tracks, lines, mask, nthreads):
    outputs, positions = select(tmp_path, in_files=tracks, include=[mask], nthreads=nthreads)
    expected = [i for i, line in enumerate(lines) if in_mask(line)]
    assert positions.dtype == np.int64
    assert positions.tolist() == expected
    assert {1, 2, 50, 350} <= set(expected)
    assert 25 < len(expected) == outputs.count < N
    found = list(iter_tck_streamlines(outputs.out_file))
    assert all(np.array_equal(a, lines[i]) for a, i in zip(found, expected, strict=True))
    assert not isdefined(outputs.tck_weights_out)
    # Nothing that only this needed is left.
    node = tmp_path / "node"
    assert outputs.positions == str(node / "positions.npy")
    assert sorted(path.name for path in node.glob("*.t*")) == ["command.txt", "edited.tck"]


@needs_mrtrix
def test_the_same_streamlines_without_positions(tmp_path, tracks, mask):
    outputs, _ = select(tmp_path, in_files=tracks, include=[mask])
    tckedit(tmp_path, tracks, "-include", mask, "hand.tck")
    assert points_of(outputs.out_file) == points_of(tmp_path / "hand.tck")


@needs_mrtrix
@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"minweight": 1.5},
        {"maxweight": 2.5},
        {"minweight": 1.5, "maxweight": 2.5},
        {"minweight": 0.0},
        {"maxweight": 0.0},
        {"minweight": 1.5, "inverse": True},
        {"number": 20, "skip": 5},
        {"ends_only": True, "minlength": 3.0},
    ],
)
def test_weights_and_limits_are_those_of_tckedit(tmp_path, tracks, mask, weights, inputs):
    path, values = weights
    options = []
    for name, value in inputs.items():
        options += [f"-{name}"] + ([] if value is True else [value])
    tckedit(
        tmp_path, tracks, "-include", mask, *options, "-tck_weights_in", path,
        "-tck_weights_out", "hand.txt", "hand.tck",
    )  # fmt: skip
    outputs, positions = select(
        tmp_path,
        in_files=tracks,
        include=[mask],
        tck_weights_in=path,
        tck_weights_out="w.txt",
        **inputs,
    )
    assert points_of(outputs.out_file) == points_of(tmp_path / "hand.tck")
    assert Path(outputs.tck_weights_out).read_text() == (tmp_path / "hand.txt").read_text()
    found = np.array(Path(outputs.tck_weights_out).read_text().split(), dtype="f4")
    np.testing.assert_array_equal(found, values[positions])
    assert len(positions) == outputs.count


@needs_mrtrix
@pytest.mark.parametrize("inputs", [{}, {"maxweight": 0.5}, {"minweight": 1.5, "inverse": True}])
def test_without_weights_each_weighs_one(tmp_path, tracks, mask, inputs):
    options = [
        f"-{name}" if value is True else f"-{name} {value}" for name, value in inputs.items()
    ]
    words = " ".join(options).split()
    tckedit(tmp_path, tracks, "-include", mask, *words, "-tck_weights_out", "hand.txt", "hand.tck")
    outputs, _ = select(
        tmp_path, in_files=tracks, include=[mask], tck_weights_out="w.txt", **inputs
    )
    assert points_of(outputs.out_file) == points_of(tmp_path / "hand.tck")
    assert Path(outputs.tck_weights_out).read_text() == (tmp_path / "hand.txt").read_text()


@needs_mrtrix
def test_pieces_of_a_streamline_share_its_position(tmp_path, tracks, lines, mask):
    outputs, positions = select(tmp_path, in_files=tracks, mask=[mask])
    pieces = list(iter_tck_streamlines(outputs.out_file))
    assert len(pieces) == len(positions) > len(set(positions.tolist()))
    assert (np.diff(positions) >= 0).all()
    for piece, position in zip(pieces, positions, strict=True):
        assert set(map(bytes, piece)) <= set(map(bytes, lines[position]))


@needs_mrtrix
def test_nothing_hit_and_an_empty_mask(tmp_path, tracks, mask, weights):
    empty = save(tmp_path / "empty.nii.gz", np.zeros((20, 20, 20), "u1"))
    for include in ([empty], [mask, empty], ["500,500,500,1"]):
        outputs, positions = select(
            tmp_path,
            in_files=tracks,
            include=include,
            tck_weights_in=weights[0],
            tck_weights_out="w.txt",
        )
        assert (positions.shape, positions.dtype) == ((0,), np.int64)
        assert outputs.count == 0
        assert Path(outputs.tck_weights_out).read_text() == ""


@needs_mrtrix
@pytest.mark.parametrize("count", ["", "count: 3\n", "count: 100000\n"])
def test_the_header_is_not_believed(tmp_path, tracks, lines, mask, count):
    header = f"mrtrix tracks\n{count}datatype: Float32LE\nfile: . 200\nEND\n"
    path = tmp_path / "a.tck"
    path.write_bytes(header.encode().ljust(200, b"\0") + points_of(tracks))
    _, positions = select(tmp_path, in_files=str(path), include=[mask])
    assert positions.tolist() == [i for i, line in enumerate(lines) if in_mask(line)]


@needs_mrtrix
def test_a_tractogram_without_streamlines(tmp_path, mask):
    write_tck(tmp_path / "none.tck", [], step_size=1.0)
    outputs, positions = select(tmp_path, in_files=str(tmp_path / "none.tck"), include=[mask])
    assert (positions.shape, outputs.count) == ((0,), 0)


def test_one_file_only(tmp_path, tracks, mask):
    interface = SelectStreamlines(in_files=[tracks, tracks], include=[mask], with_positions=True)
    with pytest.raises(ValidationError, match="one track file, but 2"):
        interface.run(cwd=str(tmp_path))


@needs_mrtrix
def test_wrong_number_of_weights(tmp_path, tracks, mask, weights):
    """tckedit itself would read no further than the weights, and say nothing with -quiet."""
    short = tmp_path / "short.txt"
    short.write_text(" ".join(map(repr, weights[1][:-1].tolist())))
    interface = SelectStreamlines(
        in_files=tracks, include=[mask], with_positions=True, tck_weights_in=str(short)
    )
    with pytest.raises(ValidationError, match=r"short\.txt"):
        interface.run(cwd=str(tmp_path))
    assert not list(tmp_path.glob("position*"))


@needs_mrtrix
def test_failure_leaves_nothing(tmp_path, tracks):
    (tmp_path / "bad.nii").write_text("no image")
    interface = SelectStreamlines(
        in_files=tracks, exclude=[str(tmp_path / "bad.nii")], with_positions=True
    )
    with pytest.raises(RuntimeError, match="tckedit failed"):
        interface.run(cwd=str(tmp_path))
    assert not list(tmp_path.glob("position*"))


@needs_mrtrix
def test_second_run_is_cached(tmp_path, tracks, mask):
    for expected in (True, False):
        marker = tmp_path / "node" / "marker"
        if marker.parent.exists():
            marker.touch()
        select(tmp_path, in_files=tracks, include=[mask])
        assert marker.exists() is not expected


def test_without_positions_nothing_changes(tracks):
    interface = SelectStreamlines(in_files=tracks, tck_weights_in=tracks, minweight=2.0)
    assert "position_weights" not in interface.cmdline
    assert "-minweight 2.0" in interface.cmdline
    interface.inputs.with_positions = True
    assert interface.cmdline.count("-minweight") == interface.cmdline.count("_weights_in ") == 1


@needs_mrtrix
@pytest.mark.real_data
@pytest.mark.skipif(
    DATA is None or not (DATA / "tractogram_hcp1065").is_dir(),
    reason="LACUNA_TEST_DATA does not name a folder with the real data",
)
def test_real_lesions(tmp_path):
    """The streamlines at the positions are those written, for 33 lesions of real patients."""
    path = DATA / "tractogram_hcp1065" / "hcp1065_10403_step2mm.tck"
    lines = list(iter_tck_streamlines(path))
    vertices = np.concatenate(lines).astype("f8")
    owner = np.repeat(np.arange(len(lines)), [len(line) for line in lines])
    lesions = sorted((DATA / "lesions_stroke").glob("*.nii.gz"))
    assert len(lesions) == 33
    n_hit = 0
    for lesion in lesions:
        outputs, positions = select(tmp_path, in_files=str(path), include=[str(lesion)])
        written = list(iter_tck_streamlines(outputs.out_file))
        assert all(np.array_equal(a, lines[i]) for a, i in zip(written, positions, strict=True))
        image = nib.load(lesion)
        data = np.asarray(image.dataobj) != 0
        voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), vertices)
        # Not a vertex of this file is so near a voxel's border that single precision matters.
        x, y, z = np.floor(voxels + 0.5).astype(int).clip(0, np.array(data.shape) - 1).T
        np.testing.assert_array_equal(positions, np.unique(owner[data[x, y, z]]))
        n_hit += len(positions)
    assert n_hit > 10_000
