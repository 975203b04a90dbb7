"""A streamline index against tckmap, tckedit and tck2connectome, number by number, bit by bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lacuna_nipype.connectomes import streamline_blocks
from lacuna_nipype.connectomes.streamline_index import write_index
from lacuna_nipype.connectomes.streamline_query import StreamlineIndex
from lacuna_nipype.connectomes.tractogram import iter_tck_streamlines, write_tck
from lacuna_nipype.core.images import save_image
from lacuna_nipype.core.mrtrix_grid import as_mask, grid_of_image
from lacuna_nipype.core.spaces import Grid, template_grid
from lacuna_nipype.core.streamline_index import crop_mask

COMMANDS = ("tckmap", "tckedit", "tck2connectome")
DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None

pytestmark = [
    pytest.mark.mrtrix,
    pytest.mark.skipif(
        any(shutil.which(command) is None for command in COMMANDS),
        reason="MRtrix3 is not on PATH",
    ),
]
real_data = [
    pytest.mark.real_data,
    pytest.mark.skipif(
        DATA is None or not (DATA / "lesions_stroke").is_dir(),
        reason="LACUNA_TEST_DATA does not name a folder with the real data",
    ),
]


# The two sides


def run(folder, *words):
    command = [*map(str, words), "-quiet", "-force", "-nthreads", "0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def volume(path):
    return np.asarray(nb.load(path).dataobj)


def tckmap(folder, tractogram, *options):
    run(folder, "tckmap", "-template", "grid.nii", *options, tractogram, "tdi.nii")
    return volume(folder / "tdi.nii")


def assignments(folder, tractogram, labels):
    """Pairs of nodes; MRtrix warns of gaps among the labels and goes on."""
    run(folder, "tck2connectome", tractogram, labels, "c.csv", "-out_assignments", "nodes.txt")
    return np.loadtxt(folder / "nodes.txt", dtype=int, ndmin=2)


def selected_by_tckedit(folder, tractogram, mask):
    run(folder, "tckedit", tractogram, "-include", mask, "hits.tck")
    return list(iter_tck_streamlines(folder / "hits.tck"))


def read_crop(path):
    image = nb.load(path)
    grid = grid_of_image(image, path.name)
    return crop_mask(grid.from_stored(as_mask(np.asarray(image.dataobj))), grid)


def read_labels(path):
    image = nb.load(path)
    grid = grid_of_image(image, path.name)
    return np.ascontiguousarray(grid.from_stored(volume(path).astype(np.int32))), grid


def assert_same_streamlines(index, positions, expected):
    found = list(index.streamlines(positions))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.tobytes() == other.tobytes()


def assert_same_hits(folder, tractogram, index, mask, *options):
    """Selected streamlines and their density; gives how many."""
    crop = read_crop(folder / mask)
    hits = index.select(crop)
    assert_same_streamlines(index, hits, selected_by_tckedit(folder, tractogram, mask))
    expected = tckmap(folder, "hits.tck", *options)
    np.testing.assert_array_equal(index.grid.to_stored(index.count(hits)), expected)
    assert set(hits) <= set(index.select(crop, "segments"))
    return len(hits)


# Made-up data

ORIENTATIONS = {
    "LAS": np.diag([-1.0, 1, 1]),
    "RAS": np.eye(3),
    "LIA": np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "oblique": nb.quaternions.quat2mat([0.95, 0.1, -0.2, 0.2144761]),
    "steep": nb.quaternions.quat2mat([0.7, 0.45, 0.1, -0.5454356]),
}
SPACINGS = [(1, 1, 1), (2, 2, 2), (1.1, 0.9, 2), (1.5, 3, 1.25), (3.3, 3.3, 3.3), (0.7, 0.7, 1.6)]
FIELD_MM = 24.0


@dataclass(frozen=True)
class Field:
    """A voxel grid around the origin."""

    orientation: str
    spacing: tuple[float, float, float]
    shift: float

    @property
    def shape(self):
        return tuple(int(np.ceil(FIELD_MM / size)) for size in self.spacing)

    @property
    def affine(self):
        affine = np.eye(4)
        affine[:3, :3] = ORIENTATIONS[self.orientation] * self.spacing
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(self.shape) - 1) / 2) + self.shift
        # On quarters, so that borders of voxels are where points can be.
        affine[:3, 3] = np.round(4 * affine[:3, 3]) / 4
        return affine


fields = st.builds(
    Field,
    orientation=st.sampled_from(list(ORIENTATIONS)),
    spacing=st.sampled_from(SPACINGS),
    shift=st.sampled_from([0.0, 0.25, 3.0, -1.5]),
)


def made_up_streamlines(rng, n, step, ties, *, empty=True):
    """Curves inside and outside of the field, with points on borders of voxels."""
    streamlines = []
    for _ in range(n):
        n_points = int(rng.choice([0, 1, 2, 3, 25, 60] if empty else [1, 2, 3, 25, 60]))
        directions = rng.normal(0, 0.5, (n_points, 3)) + rng.normal(size=3)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True) + 1e-9
        points = rng.uniform(-12, 12, 3) + step * np.cumsum(directions, axis=0)
        if ties:
            points = np.round(points / ties) * ties
        if n_points and rng.random() < 0.05:
            points[-1] = rng.choice([-1e6, 200.5, 1e6], 3)
        streamlines.append(points.astype(np.float32))
    return streamlines


def write_mask(path, rng, field, kind):
    """A mask with values that are inside or outside after rounding."""
    values = [0, 1, -1, 3]
    if kind != "int16":
        values += [0.5, 0.49, -0.5, -0.4, np.nan, np.inf]
    share = rng.choice([0.02, 0.1, 0.5])
    data = np.where(rng.random(field.shape) < share, rng.choice(values, field.shape), 0)
    data[tuple(n // 2 for n in field.shape)] = 1
    dtype = np.int16 if kind == "int16" else np.float32
    image = nb.Nifti1Image(data.astype(dtype), field.affine)
    if kind == "qform":
        image.set_qform(field.affine, 1)
        image.header["sform_code"] = 0
    elif kind == "pixdim":
        # As some programs leave it; MRtrix has a tolerance.
        sizes = image.header["pixdim"]
        sizes[1:4] *= rng.choice([1 - 5e-6, 1 + 5e-6, 1 + 3e-5], 3)
        content = image.header.copy()
        nb.save(image, path)
        raw = bytearray(path.read_bytes())
        raw[80:92] = content["pixdim"][1:4].astype("<f4").tobytes()
        path.write_bytes(raw)
        return
    nb.save(image, path)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    template=fields,
    lesion=fields,
    step=st.sampled_from([0.3, 0.5, 1.0, 2.0]),
    ties=st.sampled_from([0, 0.5, 0.25, 0.55]),
    upsampling=st.sampled_from(["step", "none", 1, 2, 5]),
    kind=st.sampled_from(["int16", "float32", "qform", "pixdim"]),
)
def test_maps_and_selections(seed, template, lesion, step, ties, upsampling, kind):
    rng = np.random.default_rng(seed)
    options = ["-upsample", upsampling] if isinstance(upsampling, int) else []
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(streamline_blocks, "MOST_STREAMLINES", 29)
        folder = Path(name)
        streamlines = made_up_streamlines(rng, 70, step, ties)
        write_tck(folder / "a.tck", streamlines, step_size=None if upsampling == "none" else step)
        save_image(folder / "grid.nii", np.zeros(template.shape), template.affine, np.uint8)
        write_mask(folder / "mask.nii", rng, lesion, kind)
        record = write_index(
            folder / "a.tck", folder / "a.h5", grid=Grid.make(template.shape, template.affine),
            space="here", upsample=options[1] if options else None,
        )  # fmt: skip
        with StreamlineIndex(record.path) as index:
            whole = index.grid.to_stored(index.density)
            np.testing.assert_array_equal(whole, tckmap(folder, "a.tck", *options))
            weights = rng.lognormal(0, 2, len(streamlines)).astype(np.float32)
            (folder / "weights.txt").write_text("\n".join(f"{w:.9g}" for w in weights) + "\n")
            np.testing.assert_array_equal(
                index.grid.to_stored(index.total_density(weights)),
                tckmap(folder, "a.tck", "-tck_weights_in", "weights.txt", *options),
            )
            assert_same_hits(folder, "a.tck", index, "mask.nii", *options)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    field=fields,
    ties=st.sampled_from(["voxels", "voxels", "halves", "none"]),
    share=st.sampled_from([0.02, 0.1, 0.6]),
)
def test_nodes_of_the_ends(seed, field, ties, share):
    """Ends on borders of voxels are equally near to two nodes: the last bit decides."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ends = rng.uniform(-2, np.array(field.shape) + 2, (600, 2, 3))
        if ties == "voxels":
            ends = np.round(2 * ends) / 2
        ends = ends @ field.affine[:3, :3].T + field.affine[:3, 3]
        if ties == "halves":
            ends = np.round(4 * ends) / 4
        others = made_up_streamlines(rng, 30, 1.0, 0, empty=False)
        write_tck(folder / "a.tck", [*ends, *others], step_size=1.0)
        # Labels with gaps.
        labels = 3 * rng.integers(1, 200, field.shape) * (rng.random(field.shape) < share)
        labels[0, 0, 0] = 9
        save_image(folder / "labels.nii", labels, field.affine, np.int32)
        record = write_index(
            folder / "a.tck", folder / "a.h5", grid=Grid.make((3, 3, 3), np.eye(4)), space="here"
        )
        expected = assignments(folder, "a.tck", "labels.nii")
        with StreamlineIndex(record.path) as index:
            found = index.assign_nodes(*read_labels(folder / "labels.nii"))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sides", [(3, 4, 5), (5, 12, 13), (7, 24, 25)])
def test_nodes_on_a_turned_grid(tmp_path, axis, sides):
    """Where the sines of the angle leave ends on borders, nearly."""
    rng = np.random.default_rng(axis)
    i, j = (other for other in range(3) if other != axis)
    affine = np.eye(4)
    affine[i, i] = affine[j, j] = sides[0] / sides[2]
    affine[j, i] = sides[1] / sides[2]
    affine[i, j] = -affine[j, i]
    shape = (12, 13, 14)
    ends = rng.integers(0, 28, (5000, 2, 3)) / 2
    ends = ends @ affine[:3, :3].T
    ends[::2] = np.round(ends[::2] * 4) / 4
    write_tck(tmp_path / "a.tck", ends, step_size=1.0)
    labels = rng.integers(1, 60, shape) * (rng.random(shape) < 0.1)
    save_image(tmp_path / "labels.nii", labels, affine, np.int32)
    record = write_index(
        tmp_path / "a.tck", tmp_path / "a.h5", grid=Grid.make((3, 3, 3), np.eye(4)), space="here"
    )
    with StreamlineIndex(record.path) as index:
        found = index.assign_nodes(*read_labels(tmp_path / "labels.nii"))
    np.testing.assert_array_equal(found, assignments(tmp_path, "a.tck", "labels.nii"))


def test_coordinates_that_are_not_numbers(tmp_path):
    """Except that tckedit cuts a streamline whose first point is not finite."""
    n, inf = np.nan, np.inf
    streamlines = [
        [[1, 1, 1], [2, 1, 1], [3, n, 1]],
        [[1, 1, 1], [2, 1, 1], [3, inf, 1]],
        [[1, 1, 1], [3, inf, 1], [3, inf, 1]],
        [[1, n, 1]],
        [[1, 1, n], [1, 1, 1]],
        [[1, 1, 1], [1, 1, 1e20]],
        [[1, 1, 1], [1, 1, -inf], [1, 1, 1]],
        [[2, 2, 2]],
        [[1, 1, 1], [2, 1, 1]],
    ]
    separated = [np.vstack([points, np.full((1, 3), n)]) for points in streamlines]
    data = np.vstack([*separated, np.full((1, 3), inf)]).astype("<f4")
    head = b"mrtrix tracks\nstep_size: 1\ndatatype: Float32LE\nfile: . 100\nEND\n"
    (tmp_path / "a.tck").write_bytes(head.ljust(100, b"\0") + data.tobytes())
    inside = np.zeros((5, 5, 5), dtype=np.uint8)
    inside[1, 1, 1] = inside[2, 2, 2] = 1
    for name in ("grid.nii", "mask.nii"):
        save_image(tmp_path / name, inside, np.eye(4), np.uint8)
    record = write_index(
        tmp_path / "a.tck", tmp_path / "a.h5", grid=Grid.make((5, 5, 5), np.eye(4)), space="here"
    )
    with StreamlineIndex(record.path) as index:
        np.testing.assert_array_equal(
            index.grid.to_stored(index.density), tckmap(tmp_path, "a.tck")
        )
        assert assert_same_hits(tmp_path, "a.tck", index, "mask.nii") == 5


def test_no_streamline_is_hit(tmp_path):
    write_tck(tmp_path / "a.tck", [np.zeros((3, 3)), np.ones((3, 3))], step_size=1.0)
    inside = np.zeros((5, 5, 5), dtype=np.uint8)
    inside[4, 4, 4] = 1
    for name in ("grid.nii", "mask.nii"):
        save_image(tmp_path / name, inside, np.eye(4), np.uint8)
    record = write_index(
        tmp_path / "a.tck", tmp_path / "a.h5", grid=Grid.make((5, 5, 5), np.eye(4)), space="here"
    )
    with StreamlineIndex(record.path) as index:
        assert assert_same_hits(tmp_path, "a.tck", index, "mask.nii") == 0


# Many streamlines, real ones


def smooth_streamlines(n, seed=11):
    """Smooth curves through a brain's field of view, 1 mm steps: shape (n, 60, 3)."""
    rng = np.random.default_rng(seed)
    turns = rng.normal(0, 0.12, (n, 60, 3)).astype(np.float32)
    directions = rng.normal(size=(n, 1, 3)).astype(np.float32) + np.cumsum(turns, axis=1)
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    start = rng.uniform([-70, -100, -60], [70, 60, 70], (n, 1, 3)).astype(np.float32)
    return start + np.cumsum(directions, axis=1)


@pytest.mark.parametrize("n", [10_000, pytest.param(200_000, marks=real_data)])
def test_many_streamlines_on_a_standard_grid(tmp_path, n):
    points = smooth_streamlines(n)
    write_tck(tmp_path / "a.tck", points, step_size=1.0)
    grid = template_grid("MNI152NLin6Asym", 1)
    save_image(tmp_path / "grid.nii", np.zeros(grid.shape), grid.affine, np.uint8)
    distance = np.linalg.norm(
        np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1) - [60, 110, 80],
        axis=-1,
    )
    for number, radius in enumerate((2, 12, 40)):
        save_image(tmp_path / f"mask_{number}.nii", distance < radius, grid.affine, np.uint8)
    blocks = np.add.outer(np.add.outer(np.arange(182) // 9, 21 * (np.arange(218) // 11)),
                          420 * (np.arange(182) // 10))  # fmt: skip
    labels = np.where((distance > 60) & (distance < 75), blocks % 300, 0)
    save_image(tmp_path / "labels.nii", labels, grid.affine, np.int32)
    record = write_index(
        tmp_path / "a.tck", tmp_path / "a.h5", grid=grid, space="MNI152NLin6Asym", n_threads=2
    )
    with StreamlineIndex(record.path, n_threads=2) as index:
        np.testing.assert_array_equal(
            index.grid.to_stored(index.density), tckmap(tmp_path, "a.tck")
        )
        counts = [
            assert_same_hits(tmp_path, "a.tck", index, f"mask_{number}.nii") for number in range(3)
        ]
        assert counts == sorted(counts)
        assert counts[2] > n / 20
        found = index.assign_nodes(*read_labels(tmp_path / "labels.nii"))
        np.testing.assert_array_equal(found, assignments(tmp_path, "a.tck", "labels.nii"))
        assert (found > 0).mean() > 0.02


def on_real_data(function):
    for mark in real_data:
        function = mark(function)
    return function


@pytest.fixture(scope="module")
def real_folder(tmp_path_factory):
    """10,403 streamlines of the HCP1065 atlas and their index."""
    folder = tmp_path_factory.mktemp("real")
    source = DATA / "tractogram_hcp1065" / "hcp1065_10403_step2mm.tck"
    (folder / "a.tck").symlink_to(source)
    grid = template_grid("MNI152NLin6Asym", 2)
    save_image(folder / "grid.nii", np.zeros(grid.shape), grid.affine, np.uint8)
    write_index(folder / "a.tck", folder / "a.h5", grid=grid, space="MNI152NLin6Asym", upsample=3)
    return folder


@on_real_data
def test_real_density(real_folder):
    with StreamlineIndex(real_folder / "a.h5") as index:
        expected = tckmap(real_folder, "a.tck", "-upsample", 3)
        np.testing.assert_array_equal(index.grid.to_stored(index.density), expected)
        assert index.record.n_streamlines == 10_403


@on_real_data
def test_real_lesions(real_folder):
    lesions = sorted((DATA / "lesions_stroke").glob("*.nii.gz"))
    assert len(lesions) == 33
    with StreamlineIndex(real_folder / "a.h5", n_threads=2) as index:
        counts = [
            assert_same_hits(real_folder, "a.tck", index, lesion, "-upsample", 3)
            for lesion in lesions
        ]
    assert min(counts) > 0
    assert max(counts) < 10_403


@on_real_data
@pytest.mark.parametrize("parcels", ["100Parcels7Networks", "400Parcels17Networks"])
def test_real_nodes(real_folder, parcels):
    pattern = f"*MNI152NLin6Asym*Schaefer2018*{parcels}*dseg.nii.gz"
    (atlas,) = (DATA / "parcellations").glob(pattern)
    with StreamlineIndex(real_folder / "a.h5", n_threads=2) as index:
        found = index.assign_nodes(*read_labels(atlas))
    np.testing.assert_array_equal(found, assignments(real_folder, "a.tck", atlas))
    assert (found > 0).mean() > 0.5
