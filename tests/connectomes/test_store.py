"""The store: what is written comes back, damage is named, precision is what is promised."""

import json
import shutil

import h5py
import numpy as np
import pytest

from lacuna_nipype.connectomes.functional import read_connectome_file
from lacuna_nipype.connectomes.store import (
    FORMAT_VERSION,
    TILE,
    StoreSource,
    TileReader,
    write_store,
)
from lacuna_nipype.connectomes.store_pass import correlate_store
from lacuna_nipype.core.correlation import Moments, add_subject, correlation_maps
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.spaces import Grid

SHAPE = (14, 13, 12)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2, 0, -20], [0, 0, 2, -30], [0, 0, 0, 1]])
N_TIMES = 120


def voxels_of(n, seed=0):
    """Distinct voxels in an order that is neither C order nor Morton order."""
    chosen = np.random.default_rng(seed).permutation(np.prod(SHAPE))[:n]
    return np.array(np.unravel_index(chosen, SHAPE), dtype=np.int64)


def source_of(voxels, n_times=N_TIMES):
    return StoreSource(
        Grid.make(SHAPE, AFFINE), voxels, n_times, "MNI152NLin6Asym", ("a.h5 sha256:0",)
    )


def band_passed(rng, voxels, n_times=N_TIMES, *, low=0.009, high=0.08, tr=3.0):
    """Noise of 0.009 to 0.08 Hz at TR 3 s with a smooth pattern over space."""
    n = voxels.shape[1]
    frequencies = np.fft.rfftfreq(n_times, tr)
    inside = (frequencies >= low) & (frequencies <= high)
    waves = np.sin(voxels.T @ rng.normal(size=(3, 12)) / 4) @ rng.normal(size=(12, n_times)) / 3
    spectrum = np.fft.rfft(waves.T + rng.normal(size=(n_times, n)), axis=0)
    spectrum[~inside] = 0
    return 100 + 10 * np.fft.irfft(spectrum, n_times, axis=0), 2 * int(inside.sum())


@pytest.fixture
def store(tmp_path):
    """A store of three subjects and 1100 voxels (three tiles), and its series."""
    voxels = voxels_of(1100)
    rng = np.random.default_rng(1)
    series = [band_passed(rng, voxels)[0].astype(np.float32) for _ in range(3)]
    return write_store(tmp_path / "s.h5", source_of(voxels), series), voxels, series


def unpacked(path):
    """Coefficients (subject, rank, voxel) as numbers, by h5py alone, and all else."""
    with h5py.File(path) as handle:
        parts = {key: handle[key][()] for key in handle}
    n = len(parts["order"])
    parts["values"] = [
        (parts["coefficients"][:, s] * parts["scale"][:, s, None].astype(float))
        .transpose(1, 0, 2)
        .reshape(parts["coefficients"].shape[2], -1)[:, :n]
        for s in range(parts["coefficients"].shape[1])
    ]
    return parts


def test_correlations_and_norms_come_back(store):
    path, _, series = store
    parts = unpacked(path)
    order = parts["order"]
    for subject, raw in enumerate(series):
        expected = np.corrcoef(raw[:, order].astype(float), rowvar=False)
        values = parts["values"][subject]
        np.testing.assert_allclose(values.T @ values, expected, atol=1e-4)
        centred = raw[:, order].astype(float) - raw[:, order].astype(float).mean(axis=0)
        norm = parts["norm"][:, subject].ravel()[: len(order)]
        np.testing.assert_allclose(norm, np.linalg.norm(centred, axis=0), rtol=1e-6)


def test_voxels_are_those_of_the_source_in_another_order(store):
    path, voxels, _ = store
    parts = unpacked(path)
    assert sorted(parts["order"]) == list(range(1100))
    assert np.array_equal(parts["mask_indices"], voxels[:, parts["order"]])
    assert not np.array_equal(parts["order"], np.arange(1100))


def test_tiles_are_compact(tmp_path):
    whole = np.array(np.unravel_index(np.arange(16**3), (16, 16, 16)))
    source = StoreSource(Grid.make((16, 16, 16), AFFINE), whole, 12, "MNI152NLin6Asym", ())
    series = np.random.default_rng(0).normal(size=(12, 16**3))
    file = read_connectome_file(write_store(tmp_path / "s.h5", source, [series]))
    for start in range(0, 16**3, TILE):
        assert (np.ptp(file.voxels[:, start : start + TILE], axis=1) == 7).all()


def test_header(store):
    path, _, _ = store
    file = read_connectome_file(path)
    assert (file.n_subjects, file.n_timepoints, file.n_voxels) == (3, N_TIMES, 1100)
    assert file.space == "MNI152NLin6Asym"
    assert file.grid.same_as(Grid.make(SHAPE, AFFINE))
    assert file.precision.kind == "int16"
    with h5py.File(path) as handle:
        assert handle.attrs["format_version"] == FORMAT_VERSION
        assert json.loads(handle.attrs["sources"]) == ["a.h5 sha256:0"]
        for key in ("coefficients", "scale", "norm"):
            assert handle[key].chunks is None
            assert handle[key].compression is None


def test_reader_reads_what_h5py_reads(store):
    file = read_connectome_file(store[0])
    with h5py.File(file.path, locking=False) as handle, TileReader(file) as reader:
        assert reader.n_tiles == 3
        for key in ("coefficients", "scale", "norm"):
            assert np.array_equal(reader.read(key, 1, 2), handle[key][1:3])


def test_no_subject_leaves_no_file(tmp_path):
    with pytest.raises(ValidationError, match="No subject"):
        write_store(tmp_path / "s.h5", source_of(voxels_of(5)), [])
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_no_file(tmp_path):
    def subjects():
        yield np.random.default_rng(0).normal(size=(N_TIMES, 5))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "s.h5", source_of(voxels_of(5)), subjects())
    assert list(tmp_path.iterdir()) == []


# Damage


def test_newer_version_is_refused(store):
    with h5py.File(store[0], "r+") as handle:
        handle.attrs["format_version"] = FORMAT_VERSION + 1
    with pytest.raises(ValidationError, match=r"format 2, newer .*update lacuna-nipype"):
        read_connectome_file(store[0])


@pytest.mark.parametrize("part", ["mask_indices", "coefficients", "energy_lost", "mask_affine"])
def test_missing_dataset_is_named_as_incomplete(store, part):
    with h5py.File(store[0], "r+") as handle:
        del handle[part]
    with pytest.raises(ValidationError, match=r"s\.h5 is an incomplete store"):
        read_connectome_file(store[0])


def test_parts_that_disagree(store):
    with h5py.File(store[0], "r+") as handle:
        indices = handle["mask_indices"][:, :500]
        del handle["mask_indices"]
        handle["mask_indices"] = indices
    with pytest.raises(ValidationError, match="parts disagree"):
        read_connectome_file(store[0])


@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
def test_truncated_file_is_refused(store, tmp_path, share):
    cut = tmp_path / "cut.h5"
    shutil.copy(store[0], cut)
    with cut.open("r+b") as stream:
        stream.truncate(int(share * store[0].stat().st_size))
    with pytest.raises(ValidationError, match=r"cut\.h5 cannot be read as HDF5"):
        read_connectome_file(cut)


def test_file_cut_while_it_is_open(store):
    file = read_connectome_file(store[0])
    with TileReader(file) as reader:
        with file.path.open("r+b") as stream:
            stream.truncate(4096)
        with pytest.raises(ValidationError, match="truncated"):
            reader.read("coefficients", 2, 1)


# Precision


def test_rank_of_band_passed_data_is_measured(tmp_path):
    voxels, rng = voxels_of(600), np.random.default_rng(5)
    series, expected = zip(*(band_passed(rng, voxels) for _ in range(2)), strict=True)
    # The band holds both parts of each frequency, and the mean is not counted.
    path = write_store(tmp_path / "s.h5", source_of(voxels), series)
    with h5py.File(path) as handle:
        assert (handle["rank"][()] == expected[0]).all()
        assert 45 <= expected[0] <= 55
        assert handle["energy_lost"][()].max() <= 1e-8
        assert handle["energy_lost_worst"][()].max() <= 1e-6
        assert handle["coefficients"].shape[2] == expected[0]


def test_rank_of_white_noise_is_full(tmp_path):
    voxels = voxels_of(600)
    series = np.random.default_rng(5).normal(size=(N_TIMES, 600))
    file = read_connectome_file(write_store(tmp_path / "s.h5", source_of(voxels), [series]))
    assert file.precision.rank == N_TIMES - 1


def test_subjects_of_unequal_rank_share_a_file(tmp_path):
    voxels, rng = voxels_of(600), np.random.default_rng(5)
    series = [
        band_passed(rng, voxels)[0],
        rng.normal(size=(N_TIMES, 600)),
        band_passed(rng, voxels, high=0.04)[0],
    ]
    parts = unpacked(write_store(tmp_path / "s.h5", source_of(voxels), series))
    assert parts["rank"][1] == N_TIMES - 1
    assert parts["rank"][2] < parts["rank"][0] < 60
    for values, raw in zip(parts["values"], series, strict=True):
        expected = np.corrcoef(raw[:, parts["order"]], rowvar=False)
        np.testing.assert_allclose(values.T @ values, expected, atol=1e-4)


@pytest.fixture(scope="module")
def fifty_subjects():
    """Series of 50 subjects, three seeds, and t against float64."""
    voxels = voxels_of(1500, seed=2)
    series = [
        band_passed(np.random.default_rng(100 + s), voxels)[0].astype(np.float32)
        for s in range(50)
    ]
    distance = ((voxels[:, :, None] - voxels[:, None, :3]) ** 2).sum(axis=0)
    seeds = [np.flatnonzero(distance[:, i] <= 9) for i in range(3)]
    z = []
    for raw in series:
        data = raw.astype(float)
        means = np.column_stack([data[:, seed].mean(axis=1) for seed in seeds])
        r = np.corrcoef(means, data, rowvar=False)[:3, 3:]
        z.append(np.arctanh(np.clip(r, -1 + 1e-7, 1 - 1e-7)))
    z = np.array(z)
    outside = np.ones((3, 1500), dtype=bool)
    for row, seed in enumerate(seeds):
        outside[row, seed] = False
    t = z.mean(axis=0) / (z.std(axis=0, ddof=1) / np.sqrt(50))
    return voxels, series, seeds, outside, t


@pytest.mark.parametrize(
    ("kind", "median", "tail"), [("int16", 1e-5, 6e-5), ("int8", 1.75e-3, 1.05e-2)]
)
def test_error_of_t(tmp_path, fifty_subjects, kind, median, tail):
    """Bounds are five times 2e-6 and 1.2e-5 (int16), 3.5e-4 and 2.1e-3 (int8)."""
    voxels, series, seeds, outside, exact = fifty_subjects
    path = write_store(tmp_path / "s.h5", source_of(voxels), series, kind=kind)
    file = read_connectome_file(path)
    with h5py.File(path) as handle:
        order = handle["order"][()]
    place = np.empty(len(order), dtype=np.intp)
    place[order] = np.arange(len(order))
    moments = correlate_store(file, [np.sort(place[seed]) for seed in seeds])
    found = correlation_maps(moments).t[:, place]
    used = outside & (np.abs(exact) > 3)
    assert used.sum() > 500
    error = np.abs(found - exact)[used] / np.abs(exact)[used]
    assert np.median(error) < median
    assert np.quantile(error, 0.99) < tail
    # The measured error that the file reports is of the right size.
    assert file.precision.error_r < {"int16": 1e-4, "int8": 2e-2}[kind]


# Subjects with holes


@pytest.mark.parametrize("kind", ["int16", "int8"])
def test_voxels_without_a_signal(tmp_path, kind):
    voxels, rng = voxels_of(700), np.random.default_rng(7)
    series = band_passed(rng, voxels)[0].astype(np.float32)
    series[:, 0] = 3.7
    series[5, 1] = np.nan
    series[7, 2] = np.inf
    path = write_store(tmp_path / "s.h5", source_of(voxels), [series], kind=kind)
    parts = unpacked(path)
    assert parts["n_constant"].tolist() == [3]
    place = [int(np.flatnonzero(parts["order"] == v)[0]) for v in range(3)]
    assert not parts["values"][0][:, place].any()
    assert not parts["norm"][:, 0].ravel()[place].any()
    # Constant voxels inside a seed change nothing: their raw series adds a constant.
    file = read_connectome_file(path)
    other = int(np.flatnonzero(parts["order"] == 50)[0])
    alone = correlate_store(file, [np.array([other])])
    joined = correlate_store(file, [np.sort([*place, other])])
    assert np.array_equal(alone.mean, joined.mean)
    assert not alone.mean[0, place].any()
    assert alone.n_varying.sum() == 697


def test_subject_of_zeros(tmp_path):
    voxels, rng = voxels_of(600), np.random.default_rng(8)
    series = [band_passed(rng, voxels)[0], np.zeros((N_TIMES, 600))]
    path = write_store(tmp_path / "s.h5", source_of(voxels), series)
    file = read_connectome_file(path)
    with h5py.File(path) as handle:
        assert handle["n_constant"][()].tolist() == [0, 600]
        order = handle["order"][()]
    moments = correlate_store(file, [np.array([3, 4])])
    expected = Moments.zeros(1, 600)
    for raw in series:
        add_subject(expected, raw[:, order], [np.array([3, 4])])
    np.testing.assert_allclose(moments.mean, expected.mean, atol=1e-4)
    assert (moments.n_varying == 1).all()
