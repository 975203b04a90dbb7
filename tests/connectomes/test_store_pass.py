"""The pass over a store: however it is cut into reads and threads, the same numbers."""

import numpy as np
import pytest

from lacuna_nipype.connectomes import store_pass
from lacuna_nipype.connectomes.functional import read_connectome_file
from lacuna_nipype.connectomes.partial import pass_memory_gb
from lacuna_nipype.connectomes.store import StoreSource, write_store
from lacuna_nipype.connectomes.store_pass import correlate_store, store_block_bytes
from lacuna_nipype.core.correlation import Moments, add_subject, correlation_maps
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.spaces import Grid

SHAPE = (11, 12, 13)
# Two full tiles of voxels and a part of a third; more subjects than are summed at once.
N_SUBJECTS, N_TIMES, N_VOXELS = 37, 16, 1100


@pytest.fixture(scope="module")
def subjects():
    rng = np.random.default_rng(5)
    common = rng.normal(size=(N_SUBJECTS, N_TIMES, 3)) @ rng.normal(size=(3, N_VOXELS))
    series = 100 + common + 2 * rng.normal(size=(N_SUBJECTS, N_TIMES, N_VOXELS))
    series[:, :, 1] = 3
    series[4, :, 2] = 3
    return series.astype(np.float32)


@pytest.fixture(scope="module")
def stores(subjects, tmp_path_factory):
    voxels = np.array(np.unravel_index(np.arange(N_VOXELS), SHAPE))
    source = StoreSource(Grid.make(SHAPE, np.eye(4)), voxels, N_TIMES, "MNI152NLin6Asym", ("x",))
    folder = tmp_path_factory.mktemp("stores")
    return {
        (kind, n): read_connectome_file(
            write_store(folder / f"{kind}-{n}.h5", source, subjects[:n], kind=kind)
        )
        for kind in ("int16", "int8")
        for n in (1, N_SUBJECTS)
    }


SEEDS = [np.arange(3), np.array([], dtype=np.intp), np.arange(500, 1050), np.array([1099])]


def expected(subjects, file):
    """Moments in double precision, voxels in the file's order."""
    order = np.ravel_multi_index(tuple(file.voxels), SHAPE)
    moments = Moments.zeros(len(SEEDS), N_VOXELS)
    for series in subjects[: file.n_subjects]:
        add_subject(moments, series[:, order], SEEDS)
    return moments


@pytest.mark.parametrize(("kind", "tolerance"), [("int16", 2e-5), ("int8", 5e-3)])
def test_a_store_against_the_series(stores, subjects, kind, tolerance):
    file = stores[kind, N_SUBJECTS]
    found, exact = correlate_store(file, SEEDS), expected(subjects, file)
    assert found.n_subjects == N_SUBJECTS
    assert np.array_equal(found.n_varying, exact.n_varying)
    # A seed's own voxel is at the limit, where z says little.
    usual = np.abs(exact.mean) < 2
    np.testing.assert_allclose(found.mean[usual], exact.mean[usual], rtol=0, atol=tolerance)
    assert not found.mean[1].any()
    one, other = correlation_maps(found), correlation_maps(exact)
    large = usual & (np.abs(other.t) > 3)
    assert np.median(np.abs(one.t[large] / other.t[large] - 1)) < 10 * tolerance


@pytest.mark.parametrize("kind", ["int16", "int8"])
@pytest.mark.parametrize("n", [1, N_SUBJECTS])
@pytest.mark.parametrize("n_threads", [1, 2, 7])
@pytest.mark.parametrize("read_bytes", [1, 300_000, 10**9])
def test_reads_and_threads_do_not_change_a_bit(
    stores, monkeypatch, kind, n, n_threads, read_bytes
):
    file = stores[kind, n]
    whole = correlate_store(file, SEEDS)
    monkeypatch.setattr(store_pass, "READ_BYTES", read_bytes)
    done = []
    found = correlate_store(file, SEEDS, n_threads=n_threads, progress=done.append)
    assert sum(done) == 3
    for key in ("mean", "m2", "n_varying"):
        assert np.array_equal(getattr(found, key), getattr(whole, key)), key


def test_no_seed_at_all(stores):
    moments = correlate_store(stores["int16", N_SUBJECTS], [])
    assert moments.mean.shape == (0, N_VOXELS)
    assert moments.n_varying.max() == N_SUBJECTS


def test_a_truncated_store(stores, tmp_path):
    file = stores["int16", N_SUBJECTS]
    raw = file.path.read_bytes()
    try:
        file.path.write_bytes(raw[: len(raw) // 2])
        with pytest.raises((ValidationError, OSError)):
            correlate_store(file, SEEDS, n_threads=2)
    finally:
        file.path.write_bytes(raw)


def test_buffers_are_bounded(stores):
    file = stores["int16", N_SUBJECTS]
    assert store_block_bytes(file, 2) == 3 * store_pass.READ_BYTES
    assert pass_memory_gb(file, 10, 4) > pass_memory_gb(file, 10, 1)
