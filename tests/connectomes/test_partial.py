"""The pass over a connectome, its merge and the maps, against np.corrcoef over all subjects."""

import json
import tracemalloc
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from lacuna_nipype.connectomes.functional import read_connectome_file
from lacuna_nipype.connectomes.maps import write_maps
from lacuna_nipype.connectomes.partial import (
    iter_merged,
    pass_memory_gb,
    seeds_digest,
    seeds_per_group,
    write_partial,
)
from lacuna_nipype.connectomes.seeds import Seed, make_seed, read_seeds
from lacuna_nipype.core.correlation import bytes_per_seed, correlation_maps
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError

FEW = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    # The fixtures make a new folder at each call.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SHAPE = (4, 5, 3)
# Stored from right to left, as FSL's images are.
AFFINE = np.array([[-2.0, 0, 0, 6], [0, 2, 0, -20], [0, 0, 2, -30], [0, 0, 0, 1]])
N_VOXELS, N_SUBJECTS = 20, 6


def brain_voxels(rng):
    chosen = rng.permutation(np.prod(SHAPE))[:N_VOXELS]
    return np.array(np.unravel_index(chosen, SHAPE))


@pytest.fixture(scope="module")
def data():
    """Voxel indices, series of all subjects and lesion masks on the grid."""
    rng = np.random.default_rng(42)
    voxels = brain_voxels(rng)
    common = rng.normal(size=(N_SUBJECTS, 25, 3))
    series = common @ rng.normal(size=(3, N_VOXELS)) + rng.normal(size=(N_SUBJECTS, 25, N_VOXELS))
    series = (100 + series).astype(np.float32)
    series[:, :, 3] = 7
    series[1, 5, 4] = np.nan
    masks = [rng.random(SHAPE) < share for share in (0.2, 0.5, 0.0, 0.1, 1.0)]
    return voxels, series, masks


@pytest.fixture
def connectome(data, write_connectome, tmp_path_factory):
    """Write the subjects into several files: a list of subject numbers for each."""
    voxels, series, _ = data

    def write(parts, order=None, chunks=None):
        folder = tmp_path_factory.mktemp("connectome")
        order = range(N_VOXELS) if order is None else order
        return [
            read_connectome_file(
                write_connectome(
                    folder / f"batch-{number}.h5",
                    series[part][:, :, order],
                    voxels[:, order],
                    SHAPE,
                    AFFINE,
                    chunks=chunks,
                )
            )
            for number, part in enumerate(parts)
        ]

    return write


def run(files, masks, folder, memory_gb=4.0):
    seeds = [make_seed(mask, files[0]) for mask in masks]
    return [
        write_partial(file, seeds, folder / f"partial-{number}.h5", memory_gb=memory_gb)
        for number, file in enumerate(files)
    ]


def merged_maps(paths):
    return [correlation_maps(moments) for moments in iter_merged(paths)]


def reference(data, mask):
    """z of each subject in each brain voxel."""
    voxels, series, _ = data
    lesion = [v for v in range(N_VOXELS) if mask[tuple(voxels[:, v])]]
    z = np.zeros((N_SUBJECTS, N_VOXELS))
    for subject in range(N_SUBJECTS):
        values = series[subject].astype(np.float64)
        finite = [v for v in lesion if np.isfinite(values[:, v]).all()]
        if not finite:
            continue
        mean = sum(values[:, v] for v in finite) / len(finite)
        for v in range(N_VOXELS):
            if np.isfinite(values[:, v]).all() and values[:, v].std() > 0:
                r = np.corrcoef(mean, values[:, v])[0, 1]
                z[subject, v] = np.arctanh(np.clip(r, -1 + 1e-7, 1 - 1e-7))
    return z


# Seeds


def test_seed_by_hand(connectome, data):
    voxels, _, _ = data
    (file,) = connectome([[0]])
    mask = np.zeros(SHAPE, dtype=bool)
    for number in (7, 2, 11):
        mask[tuple(voxels[:, number])] = True
    outside = np.argwhere(
        ~np.isin(np.arange(60).reshape(SHAPE), np.ravel_multi_index(voxels, SHAPE))
    )
    mask[tuple(outside[0])] = mask[tuple(outside[1])] = True
    seed = make_seed(mask, file)
    assert seed.voxels.tolist() == [2, 7, 11]
    assert seed.n_outside == 2


def test_masks_are_read_on_the_grid_of_the_connectome_only(tmp_path, connectome, data):
    (file,) = connectome([[0]])
    mask = data[2][1]
    paths = [tmp_path / "same.nii.gz", tmp_path / "mirrored.nii.gz"]
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), AFFINE), paths[0])
    (seed,) = read_seeds(file, paths[:1])
    assert seed.voxels.tolist() == make_seed(mask, file).voxels.tolist()
    # Equal shape, other orientation: by index it would be the other hemisphere.
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), AFFINE * [-1, 1, 1, 1]), paths[1])
    with pytest.raises(SpatialMismatchError, match=r"mirrored\.nii\.gz"):
        read_seeds(file, paths)


def test_digest_of_seeds():
    first, second = Seed(np.array([1, 2]), 0), Seed(np.array([3]), 5)
    assert seeds_digest([first, second]) != seeds_digest([second, first])
    assert seeds_digest([first, second]) != seeds_digest([Seed(np.array([1, 2, 3]), 0)])
    assert seeds_digest([Seed(np.array([1, 2], dtype=np.int32), 9)]) == seeds_digest([first])


# The pass


@pytest.mark.parametrize("chunks", [None, (2, 25, N_VOXELS), (1, 10, 7)])
def test_maps_against_corrcoef_over_all_subjects(tmp_path, connectome, data, chunks):
    files = connectome([[0, 1, 2, 3], [4, 5]], chunks=chunks)
    found = merged_maps(run(files, data[2], tmp_path))
    for maps, mask in zip(found, data[2], strict=True):
        z = reference(data, mask)
        np.testing.assert_allclose(maps.z[0], z.mean(axis=0), rtol=0, atol=1e-11)
        spread = z.std(axis=0) > 1e-9
        t = stats.ttest_1samp(z[:, spread], 0).statistic
        np.testing.assert_allclose(maps.t[0, spread], t, rtol=1e-8)
        assert np.all(maps.t[0, ~spread] == 0)


def test_progress_and_contents_of_a_partial_file(tmp_path, connectome, data):
    (file,) = connectome([[0, 1, 2]])
    seeds = [make_seed(mask, file) for mask in data[2]]
    calls = []
    path = write_partial(
        file, seeds, tmp_path / "p.h5", memory_gb=4, progress=lambda *call: calls.append(call)
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]
    with h5py.File(path) as handle:
        assert handle["mean"].shape == handle["m2"].shape == (5, N_VOXELS)
        assert handle["mean"].dtype == np.float64
        # Voxel 3 is constant in all subjects, voxel 4 holds a NaN in subject 1.
        expected = [3] * N_VOXELS
        expected[3], expected[4] = 0, 2
        assert handle["n_varying"][:].tolist() == expected
        assert handle["seed_voxels"][:].tolist() == [len(seed.voxels) for seed in seeds]
        assert handle["seed_voxels_outside"][:].tolist() == [seed.n_outside for seed in seeds]
        assert handle.attrs["n_subjects"] == 3


def test_a_failed_pass_leaves_nothing(tmp_path, connectome, data):
    (file,) = connectome([[0, 1, 2]])

    def stop(done, total):
        raise KeyboardInterrupt

    folder = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        write_partial(
            file, [make_seed(data[2][0], file)], folder / "p.h5", memory_gb=4, progress=stop
        )
    assert list(folder.iterdir()) == []


def test_two_runs_write_the_same_bytes(tmp_path, connectome, data):
    files = connectome([[0, 1, 2]])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = run(files, data[2], tmp_path / "a"), run(files, data[2], tmp_path / "b")
    assert first[0].read_bytes() == second[0].read_bytes()


# Memory


def test_a_small_budget_makes_groups_and_changes_nothing(tmp_path, connectome, data):
    files = connectome([[0, 1, 2, 3, 4, 5]])
    (tmp_path / "a").mkdir()
    calls = []
    whole = run(files, data[2], tmp_path / "a", memory_gb=4)
    seeds = [make_seed(mask, files[0]) for mask in data[2]]
    for budget, n_groups in ((0.0, 5), (budget_for(files[0], 2), 3), (budget_for(files[0], 4), 2)):
        calls.clear()
        path = write_partial(
            files[0],
            seeds,
            tmp_path / "small.h5",
            memory_gb=budget,
            progress=lambda *call: calls.append(call),
        )
        assert calls[-1] == (6 * n_groups, 6 * n_groups)
        with h5py.File(path) as small, h5py.File(whole[0]) as large:
            for key in large:
                np.testing.assert_allclose(small[key][:], large[key][:], rtol=0, atol=1e-12)


def budget_for(file, n_seeds):
    return pass_memory_gb(file, n_seeds) + bytes_per_seed(file.n_voxels) / 2e9


def test_group_size_by_hand(connectome):
    (file,) = connectome([[0, 1, 2]], chunks=(2, 25, N_VOXELS))
    for n_seeds in (1, 3, 50):
        assert seeds_per_group(file, budget_for(file, n_seeds)) == n_seeds
        # What is said to be enough for all is enough.
        assert seeds_per_group(file, pass_memory_gb(file, n_seeds)) >= n_seeds
    assert seeds_per_group(file, 0.001) == 1
    # One seed of a whole brain at 2 mm: two float64 maps of 230,000 voxels are 3.7 MB.
    assert 3.6e6 < bytes_per_seed(230_000) < 4.2e6


def test_memory_does_not_grow_with_the_number_of_subjects(tmp_path, write_connectome):
    rng = np.random.default_rng(1)
    shape = (20, 20, 20)
    series = rng.normal(size=(60, 12, 8000)).astype(np.float32)
    path = write_connectome(
        tmp_path / "c.h5", series, np.indices(shape).reshape(3, -1), shape, AFFINE
    )
    file = read_connectome_file(path)
    total, one = series.nbytes, series[0].nbytes
    seeds = [Seed(np.arange(10 * number, 10 * number + 10), 0) for number in range(4)]
    del series
    tracemalloc.start()
    try:
        write_partial(file, seeds, tmp_path / "p.h5", memory_gb=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * one + 4 * bytes_per_seed(8000) + 1e6
    assert peak < total / 6


# The merge


@FEW
@given(st.integers(0, 10_000))
def test_cut_of_the_connectome_order_of_files_and_of_masks_do_not_matter(
    tmp_path_factory, connectome, data, seed
):
    rng = np.random.default_rng(seed)
    masks = data[2]
    subjects, cuts = rng.permutation(N_SUBJECTS), np.sort(rng.integers(1, N_SUBJECTS, 2))
    parts = [part.tolist() for part in np.split(subjects, cuts) if len(part)]
    order = rng.permutation(len(masks))
    whole = run(connectome([list(range(N_SUBJECTS))]), masks, tmp_path_factory.mktemp("whole"))
    pieces = run(
        connectome(parts), [masks[i] for i in order], tmp_path_factory.mktemp("parts"), memory_gb=0
    )
    expected = merged_maps(whole)
    for position, maps in zip(order, merged_maps(pieces), strict=True):
        np.testing.assert_allclose(maps.z, expected[position].z, rtol=0, atol=1e-12)
        np.testing.assert_allclose(maps.t, expected[position].t, rtol=1e-8, atol=1e-8)


def test_order_of_voxels_does_not_matter(tmp_path, connectome, data):
    order = np.random.default_rng(3).permutation(N_VOXELS)
    (tmp_path / "turned").mkdir()
    plain = merged_maps(run(connectome([[0, 1, 2]]), data[2], tmp_path))
    turned = merged_maps(run(connectome([[0, 1, 2]], order=order), data[2], tmp_path / "turned"))
    for first, second in zip(plain, turned, strict=True):
        np.testing.assert_allclose(second.z[0], first.z[0, order], rtol=0, atol=1e-12)


def test_one_file_or_many_in_any_order(tmp_path, connectome, data):
    (tmp_path / "one").mkdir()
    (one,) = run(connectome([[0, 1, 2, 3, 4, 5]]), data[2], tmp_path / "one")
    many = run(connectome([[3], [5, 0], [1, 2, 4]]), data[2], tmp_path)
    whole = merged_maps([one])
    for paths in (many, many[::-1], [many[1], many[0], many[2]]):
        for first, second in zip(whole, merged_maps(paths), strict=True):
            np.testing.assert_allclose(second.z, first.z, rtol=0, atol=1e-12)
            np.testing.assert_allclose(second.t, first.t, rtol=1e-9, atol=1e-9)


def test_partial_results_of_two_passes_do_not_merge(tmp_path, connectome, data):
    files = connectome([[0, 1], [2, 3]])
    first = run(files, data[2], tmp_path)
    (tmp_path / "b").mkdir()
    other_seeds = run(files, data[2][:2], tmp_path / "b")
    with pytest.raises(ValidationError, match="seeds_digest"):
        list(iter_merged([first[0], other_seeds[1]]))
    (tmp_path / "c").mkdir()
    turned = connectome([[2, 3]], order=range(N_VOXELS - 1, -1, -1))
    other_mask = run(turned, data[2], tmp_path / "c")
    with pytest.raises(ValidationError, match="mask_digest"):
        list(iter_merged([first[0], other_mask[0]]))


# Maps on disk


def volume(path):
    image = nib.load(path)
    np.testing.assert_allclose(image.affine, AFFINE)
    return np.asanyarray(image.dataobj)


def test_maps_on_disk(tmp_path, connectome, data):
    voxels, _, masks = data
    files = connectome([[0, 1, 2, 3], [4, 5]])
    written = write_maps(run(files, masks, tmp_path), files[0], tmp_path / "maps")
    assert {len(written[f"{key}_maps"]) for key in "rzt"} == {5}
    valid = volume(written["valid_mask"])
    assert valid.sum() == N_VOXELS - 1
    assert valid[tuple(voxels[:, 3])] == 0
    for number, mask in enumerate(masks):
        z = reference(data, mask)
        expected = {"z": z.mean(axis=0), "r": np.tanh(z.mean(axis=0))}
        for key, values in expected.items():
            image = np.zeros(SHAPE)
            for v in range(N_VOXELS):
                image[tuple(voxels[:, v])] = values[v]
            found = volume(written[f"{key}_maps"][number])
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, image, rtol=0, atol=1e-6)
        t = volume(written["t_maps"][number])
        assert np.isfinite(t).all()
        assert np.all(t[valid == 0] == 0)


def test_summary_of_a_map(tmp_path, connectome, data):
    voxels, _, masks = data
    files = connectome([[0, 1, 2, 3], [4, 5]])
    written = write_maps(run(files, masks, tmp_path), files[0], tmp_path / "maps")
    for number, mask in enumerate(masks):
        summary = json.loads(Path(written["summaries"][number]).read_text())
        r = np.delete(np.tanh(reference(data, mask).mean(axis=0)), 3)
        inside = int(mask[tuple(voxels)].sum())
        assert summary["SeedVoxels"] == inside
        assert summary["SeedVoxelsOutsideConnectome"] == int(mask.sum()) - inside
        assert summary["NumberOfSubjects"] == 6
        assert summary["NumberOfFiles"] == 2
        assert summary["DegreesOfFreedom"] == 5
        assert summary["ValidVoxels"] == N_VOXELS - 1
        assert summary["RMean"] == pytest.approx(r.mean(), abs=1e-10)
        assert summary["RStandardDeviation"] == pytest.approx(r.std(), abs=1e-10)
        assert summary["RMinimum"] == pytest.approx(r.min(), abs=1e-10)
        assert summary["RMaximum"] == pytest.approx(r.max(), abs=1e-10)


def test_one_subject_has_no_t_map(tmp_path, connectome, data):
    files = connectome([[2]])
    written = write_maps(run(files, data[2], tmp_path), files[0], tmp_path / "maps")
    assert written["t_maps"] == []
    assert len(written["z_maps"]) == 5
    assert "DegreesOfFreedom" not in json.loads(Path(written["summaries"][0]).read_text())


def test_a_connectome_without_variation_gives_valid_json(tmp_path, write_connectome):
    path = write_connectome(
        tmp_path / "c.h5", np.ones((2, 10, 3)), np.eye(3, dtype=int), SHAPE, AFFINE
    )
    file = read_connectome_file(path)
    partial = write_partial(file, [Seed(np.array([0]), 0)], tmp_path / "p.h5", memory_gb=1)
    written = write_maps([partial], file, tmp_path / "maps")
    summary = json.loads(Path(written["summaries"][0]).read_text())
    assert summary["ValidVoxels"] == 0
    assert summary["RMean"] is None
    assert not volume(written["z_maps"][0]).any()
    assert not volume(written["t_maps"][0]).any()
