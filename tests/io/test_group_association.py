import json

import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from group_data import AFFINE, SIDECAR, map_file, write_map, write_table

from lacuna_nipype.core.association import associate, make_design
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.io.group_association import (
    associate_maps,
    associate_tables,
    cluster_table,
    lesion_volumes,
    minimum_count,
)
from lacuna_nipype.io.group_results import find_results, group_cohorts

SHAPE = (7, 8, 9)
N = 12


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def design(rng):
    return make_design(rng.normal(size=N), rng.normal(size=(N, 1)), covariate_names=["age"])


def write_all(folder, maps, **options):
    return [write_map(folder, f"{n:02d}", data, **options) for n, data in enumerate(maps)]


def values_of(path):
    return np.asarray(nb.load(path).dataobj)


@pytest.mark.parametrize(
    ("percent", "n", "expected"), [(10, 33, 4), (10, 30, 3), (0, 30, 1), (100, 7, 7), (50, 5, 3)]
)
def test_shares_are_rounded_up(percent, n, expected):
    assert minimum_count(percent, n) == expected


def test_maps_hold_the_numbers_of_the_test_in_their_voxels(tmp_path, rng, design):
    maps = rng.normal(size=(N, *SHAPE)).astype(np.float32)
    maps[:, 2:4, 2:4, 2:4] += 3 * design.tested[:, None, None, None]
    touched = rng.random(SHAPE) < 0.5
    maps[:, ~touched] = 0
    maps[:5, 3, 3, 3] = 0  # seven of twelve are left
    maps[3, 4, 4, 4] = np.nan
    paths = write_all(tmp_path, maps)
    found, clusters, summary = associate_maps(
        paths, design, tmp_path, minimum=8, permutations=99, seed=2
    )
    expected_voxels = touched.copy()
    expected_voxels[3, 3, 3] = expected_voxels[4, 4, 4] = False
    np.testing.assert_array_equal(values_of(found["tested"]), expected_voxels)
    reference = associate(maps[:, expected_voxels], design, permutations=99, seed=2)
    for name, numbers in (
        ("t", reference.t), ("logpfwe", reference.log_p), ("partialr", reference.effect),
    ):  # fmt: skip
        data = values_of(found[name])
        np.testing.assert_allclose(data[expected_voxels], numbers, rtol=1e-5)
        assert not data[~expected_voxels].any()
        np.testing.assert_array_equal(nb.load(found[name]).affine, AFFINE)
    assert list(found) == ["t", "logpfwe", "partialr", "tested"]
    told = json.loads(summary.read_text())
    assert told["ValuesTested"] == expected_voxels.sum()
    assert told["LargestT"] == pytest.approx(reference.t[np.argmax(np.abs(reference.t))])
    table = pd.read_csv(clusters, sep="\t")
    peak = np.argwhere(values_of(found["t"]) == values_of(found["t"]).max())[0]
    row = table.loc[table["peak_t"].idxmax()]
    np.testing.assert_allclose(row[["x", "y", "z_mm"]].to_numpy(float), peak * 2)


def test_voxels_must_be_valid_in_everyone(tmp_path, rng, design):
    maps = rng.normal(size=(N, *SHAPE)).astype(np.float32)
    valid = np.ones((N, *SHAPE), np.float32)
    valid[4, :3] = 0
    maps[:, 5, 5, 5] = 0  # zero is a value like another, but does not vary here
    maps[2, 6, 6, 6] = 0
    found, _, _ = associate_maps(
        write_all(tmp_path, maps),
        design,
        tmp_path,
        minimum=1,
        valid_paths=write_all(tmp_path, valid, quantity="valid"),
        permutations=19,
        seed=0,
    )
    expected = np.ones(SHAPE, bool)
    expected[:3] = expected[5, 5, 5] = False
    np.testing.assert_array_equal(values_of(found["tested"]), expected)


def test_enhancement_adds_a_map(tmp_path, rng, design):
    maps = rng.normal(size=(N, 5, 5, 5)).astype(np.float32)
    found, _, _ = associate_maps(
        write_all(tmp_path, maps), design, tmp_path, minimum=1, permutations=19, seed=0, tfce=True
    )
    assert values_of(found["logptfce"]).max() > 0


def test_maps_without_anything_to_test_are_refused(tmp_path, design):
    paths = write_all(tmp_path, np.zeros((N, *SHAPE)))
    with pytest.raises(ValidationError, match="lower --min-overlap"):
        associate_maps(paths, design, tmp_path, minimum=2, permutations=9, seed=0)


def test_maps_on_two_grids_are_refused(tmp_path, rng, design):
    paths = write_all(tmp_path, rng.normal(size=(N, *SHAPE)))
    write_map(tmp_path, "03", np.ones((3, 3, 3)))
    with pytest.raises(SpatialMismatchError, match="sub-03"):
        associate_maps(paths, design, tmp_path, minimum=2, permutations=9, seed=0)


def test_no_cluster_is_an_empty_table(tmp_path):
    path = write_map(tmp_path, "01", np.ones(SHAPE))
    for threshold in (2.0, np.inf):
        table = cluster_table(path, threshold)
        assert table.empty
        assert list(table.columns)[:4] == ["cluster_id", "x", "y", "z_mm"]


def test_clusters_of_both_signs_are_listed(tmp_path):
    data = np.zeros(SHAPE)
    data[1:3, 1:3, 1:3] = 4
    data[5, 6, 7] = -6
    path = write_map(tmp_path, "01", data)
    table = cluster_table(path, 3.0).sort_values("peak_t")
    assert list(table["peak_t"]) == [-6, 4]
    assert list(table["cluster_size_mm3"]) == [8, 64]
    assert table.iloc[0][["x", "y", "z_mm"]].tolist() == [10, 12, 14]


def test_regions_keep_their_places(tmp_path, rng, design):
    values = rng.normal(size=(N, 3)).round(6)
    values[:, 0] += 4 * design.tested.round(6)
    values[:9, 1] = 0
    paths = [write_table(tmp_path, f"{n:02d}", row) for n, row in enumerate(values)]
    table, _ = associate_tables(paths, "z", design, tmp_path, minimum=4, permutations=199, seed=5)
    read = pd.read_csv(table, sep="\t", keep_default_na=False, na_values=["n/a"])
    assert list(read["name"]) == ["zeta", "alpha", "NA"]
    assert list(read["index"]) == [5, 6, 7]
    assert list(read["n_nonzero"]) == [N, 3, N]
    reference = associate(values[:, [0, 2]], design, permutations=199, seed=5)
    np.testing.assert_allclose(read["t_value"][[0, 2]], reference.t, rtol=1e-8)
    np.testing.assert_allclose(read["p_fwe"][[0, 2]], 10**-reference.log_p, rtol=1e-8)
    assert read.loc[1, ["t_value", "partial_r", "p_fwe"]].isna().all()


def test_tables_without_anything_to_test_are_refused(tmp_path, design):
    paths = [write_table(tmp_path, f"{n:02d}", (0, 0, "n/a")) for n in range(N)]
    with pytest.raises(ValidationError, match="No region"):
        associate_tables(paths, "z", design, tmp_path, minimum=1, permutations=9, seed=0)


def test_volumes_come_from_sidecars_or_masks(tmp_path):
    write_map(tmp_path, "01", np.ones(SHAPE), volume=12.5)
    write_map(tmp_path, "02", np.ones(SHAPE), volume=None)
    write_map(tmp_path, "03", np.ones(SHAPE), volume=None)
    mask = np.zeros(SHAPE)
    mask[:2, :2, :5] = 1
    write_map(tmp_path, "02", mask, desc="lesion", sidecar=SIDECAR)
    write_map(tmp_path, "03", mask, desc="lesion", label="other")
    results = find_results([tmp_path])
    cohort = next(c for c in group_cohorts(results) if c.entities["desc"] == "fnm")
    masks = [result for result in results if result.entities["suffix"] == "mask"]
    # 20 voxels of 8 mm^3.
    assert lesion_volumes(cohort, masks) == pytest.approx({"sub-01": 12.5, "sub-02": 0.16})
    assert map_file(tmp_path, "01") in cohort.paths
