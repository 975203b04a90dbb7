"""Series inflated by threads: the same numbers as h5py gives, whatever the layout."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from lacuna_nipype.connectomes import partial, series
from lacuna_nipype.connectomes.functional import (
    conversion_hint,
    iter_subjects,
    read_connectome_file,
)
from lacuna_nipype.connectomes.partial import (
    iter_merged,
    least_pass_memory_gb,
    pass_memory_gb,
    seeds_per_group,
    write_partial,
)
from lacuna_nipype.connectomes.seeds import Seed
from lacuna_nipype.connectomes.series import blocks_ahead, reading_bytes
from lacuna_nipype.core.correlation import bytes_per_seed, correlation_maps
from lacuna_nipype.core.exceptions import ValidationError

SHAPE = (6, 7, 8)
N_SUBJECTS, N_TIMES, N_VOXELS = 7, 15, 50


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(3).normal(size=(N_SUBJECTS, N_TIMES, N_VOXELS)) + 100


@pytest.fixture
def make(tmp_path, values):
    """Write a connectome; keyword arguments go to the dataset of series."""
    numbers = itertools.count()

    def write(dtype="<f4", data=None, **storage):
        path = tmp_path / f"file-{next(numbers)}.h5"
        data = (values if data is None else data).astype(dtype)
        with h5py.File(path, "w") as out:
            out.create_dataset("timeseries", data=data, **storage)
            out["mask_indices"] = np.array(np.unravel_index(np.arange(N_VOXELS), SHAPE))
            out["mask_affine"] = np.eye(4)
            out.attrs["mask_shape"], out.attrs["space"] = SHAPE, "MNI152NLin6Asym"
        return read_connectome_file(path), data

    return write


def read(file, n_threads=2, ahead=1):
    with ThreadPoolExecutor(n_threads) as pool:
        return list(iter_subjects(file, pool, ahead))


CHUNKS = [(1, 15, 50), (1, 4, 50), (1, 15, 7), (3, 15, 50), (2, 4, 7), (7, 15, 50), (1, 1, 1)]
FILTERS = [
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True},
    {"shuffle": True},
    {},
]


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("filters", FILTERS, ids=["gzip", "both", "shuffle", "none"])
@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_any_chunks_behind_gzip_and_shuffle(make, chunks, filters, dtype):
    file, data = make(dtype, chunks=chunks, **filters)
    assert file.chunks == chunks
    for found in (list(iter_subjects(file)), read(file), read(file, 3, 4)):
        assert np.array_equal(found, data)
        assert {(one.shape, one.dtype) for one in found} == {((15, 50), np.dtype(dtype))}


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f2"])
def test_other_floating_point_numbers(make, dtype):
    file, data = make(dtype, chunks=(1, 15, 50), compression="gzip", shuffle=True)
    assert np.array_equal(read(file), data)


@pytest.mark.parametrize(
    "storage",
    [
        {},
        {"chunks": (1, 15, 50), "compression": "lzf"},
        {"chunks": (2, 4, 7), "compression": "gzip", "fletcher32": True},
        {"chunks": (1, 15, 50), "scaleoffset": 6},
    ],
    ids=["contiguous", "lzf", "fletcher32", "scale-offset"],
)
def test_all_else_is_left_to_h5py(make, monkeypatch, storage):
    file, data = make(**storage)
    monkeypatch.setattr(series._Source, "_inflate", None)
    np.testing.assert_allclose(read(file), data, atol=1e-5)


def test_the_raw_way_is_taken(make, monkeypatch):
    file, data = make(chunks=(1, 15, 50), compression="gzip", shuffle=True)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
    assert np.array_equal(read(file), data)


def test_a_chunk_that_skipped_a_filter(make, values):
    file, data = make(chunks=(1, 15, 50), compression="gzip", shuffle=True)
    raw = np.ascontiguousarray(data[2] * 2)
    with h5py.File(file.path, "a") as handle:
        # Both filters skipped, as HDF5 does where a filter fails or does not pay.
        handle["timeseries"].id.write_direct_chunk((2, 0, 0), raw.tobytes(), filter_mask=0b11)
        assert np.array_equal(handle["timeseries"][2], raw)
    assert np.array_equal(read(file)[2], raw)


def test_chunks_that_were_never_written(make, tmp_path):
    file, _ = make(chunks=(1, 15, 50), compression="gzip")
    with h5py.File(file.path, "a") as handle:
        del handle["timeseries"]
        handle.create_dataset(
            "timeseries", (7, 15, 50), "f4", chunks=(1, 15, 50), compression="gzip", fillvalue=2
        )[1] = 5
    found = np.array(read(read_connectome_file(file.path)))
    assert np.all(found[1] == 5)
    assert np.all(np.delete(found, 1, axis=0) == 2)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
def test_order_with_any_number_of_threads(make, n_threads, ahead):
    file, data = make(chunks=(2, 15, 20), compression="gzip")
    assert np.array_equal(read(file, n_threads, ahead), data)


# Damage


def damaged(file, number, how):
    with h5py.File(file.path, "r") as handle:
        info = handle["timeseries"].id.get_chunk_info(number)
    raw = bytearray(file.path.read_bytes())
    where = slice(info.byte_offset, info.byte_offset + info.size)
    if how == "zeros":
        raw[where] = bytes(info.size)
    elif how == "cut":
        raw[where.start + info.size // 2 : where.stop] = bytes(info.size - info.size // 2)
    else:
        raw[where.start + info.size // 2] ^= 0xFF
    file.path.write_bytes(raw)


@pytest.mark.parametrize("how", ["zeros", "cut", "a byte"])
@pytest.mark.parametrize("chunks", [(2, 15, 50), (2, 15, 20)])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_damaged_chunk_is_named_after_sound_subjects(make, how, chunks, threads):
    file, data = make(chunks=chunks, compression="gzip")
    damaged(file, 2 * -(-50 // chunks[2]), how)
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        subjects = iter_subjects(file, pool if threads else None, 2)
        for number in range(4):
            assert np.array_equal(next(subjects), data[number])
        with pytest.raises(ValidationError, match=r"file-0\.h5.*subjects 5 to 6"):
            next(subjects)


@pytest.mark.parametrize("size", [0, 10, 15 * 50 * 4 - 4, 15 * 50 * 4 + 4])
def test_a_chunk_of_a_wrong_size(make, size):
    import zlib

    file, _ = make(chunks=(1, 15, 50), compression="gzip")
    with h5py.File(file.path, "a") as handle:
        handle["timeseries"].id.write_direct_chunk((6, 0, 0), zlib.compress(bytes(size)))
    with pytest.raises(ValidationError, match="subjects 7 to 7"):
        read(file)


def test_a_pass_over_a_damaged_file_leaves_nothing(make, tmp_path):
    file, _ = make(chunks=(1, 15, 50), compression="gzip")
    damaged(file, 3, "zeros")
    target = tmp_path / "out" / "partial.h5"
    target.parent.mkdir()
    with pytest.raises(ValidationError, match="subjects 4 to 4"):
        write_partial(file, [Seed(np.arange(3), 0)], target, memory_gb=2, n_threads=2)
    assert list(target.parent.iterdir()) == []


def test_a_reader_that_stops_early_leaves_no_thread(make):
    file, _ = make(chunks=(1, 15, 50), compression="gzip")
    before = threading.active_count()
    with ThreadPoolExecutor(2) as pool:
        subjects = iter_subjects(file, pool, 3)
        next(subjects)
        subjects.close()
    assert threading.active_count() == before


# The pass


def maps_of(file, folder, n_threads, seeds, memory_gb=2.0):
    target = folder / f"{file.path.stem}-{n_threads}-{memory_gb}.h5"
    write_partial(file, seeds, target, memory_gb=memory_gb, n_threads=n_threads)
    return [correlation_maps(moments) for moments in iter_merged([target])]


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_maps_against_corrcoef(make, tmp_path, monkeypatch, values, dtype):
    monkeypatch.setattr("lacuna_nipype.core.correlation.VOXEL_BLOCK", 16)
    data = values.copy()
    data[:, :, 4] = 7
    data[1, 3, 5] = np.nan
    file, data = make(dtype, data, chunks=(2, 15, 20), compression="gzip", shuffle=True)
    voxels = np.arange(8, 20)
    seeds = [Seed(voxels, 0)]
    (maps,) = maps_of(file, tmp_path, 3, seeds)
    z = np.zeros((N_SUBJECTS, N_VOXELS))
    for subject, v in itertools.product(range(N_SUBJECTS), range(N_VOXELS)):
        one = data[subject].astype(np.float64)
        if v != 4 and (subject, v) != (1, 5):
            z[subject, v] = np.arctanh(np.corrcoef(one[:, voxels].mean(axis=1), one[:, v])[0, 1])
    np.testing.assert_allclose(maps.z[0], z.mean(axis=0), rtol=0, atol=1e-11)


@pytest.mark.parametrize("storage", [{}, {"chunks": (1, 15, 50), "compression": "gzip"}])
def test_threads_do_not_change_a_single_bit(make, tmp_path, monkeypatch, storage):
    monkeypatch.setattr("lacuna_nipype.core.correlation.VOXEL_BLOCK", 16)
    file, _ = make(**storage)
    seeds = [Seed(np.arange(n), 0) for n in (3, 0, 50)]
    first = maps_of(file, tmp_path, 1, seeds)
    for n_threads in (2, 4):
        for one, other in zip(first, maps_of(file, tmp_path, n_threads, seeds), strict=True):
            assert np.array_equal(one.z, other.z)
            assert np.array_equal(one.t, other.t)


def test_memory_for_reading_ahead(make):
    whole, _ = make(chunks=(1, 15, 50), compression="gzip")
    assert [blocks_ahead(whole, n) for n in (1, 2, 8)] == [1, 2, 8]
    # The subject in use, two ahead, and two chunks as they are stored.
    subject = 15 * 50 * 4
    assert reading_bytes(whole, 2, 2) == 3 * subject + 2 * subject
    cut, _ = make(chunks=(1, 15, 10), compression="gzip")
    assert [blocks_ahead(cut, n) for n in (1, 5, 6)] == [1, 1, 2]
    assert reading_bytes(cut, 2, 1) == 2 * subject + 2 * 2 * subject // 5
    contiguous, _ = make()
    assert reading_bytes(contiguous, 2, 0) == subject
    assert pass_memory_gb(whole, 5, 4) > pass_memory_gb(whole, 5, 1)


def test_little_memory_means_less_reading_ahead(make, monkeypatch):
    file, _ = make(chunks=(1, 15, 50), compression="gzip")
    fixed = partial._fixed_bytes(file, 8, 8)
    assert partial._blocks_ahead(file, 2 * fixed / 1e9, 8) == 8
    assert partial._blocks_ahead(file, 1.99 * fixed / 1e9, 8) < 8
    assert partial._blocks_ahead(file, 1e-9, 8) == 0
    assert seeds_per_group(file, 1e-9, 8) == 1
    least = least_pass_memory_gb(file, 8)
    assert partial._blocks_ahead(file, least, 8) == 0
    assert least * 1e9 == pytest.approx(
        partial._fixed_bytes(file, 8, 0) + bytes_per_seed(file.n_voxels)
    )


# The hint


def test_what_a_conversion_would_save(make):
    file, _ = make(chunks=(1, 15, 50), compression="gzip")
    assert "connectome convert" in conversion_hint([file, file])
    assert conversion_hint([make()[0]]) == ""
