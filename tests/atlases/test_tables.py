"""Parcel tables and summaries on disk."""

import json

import numpy as np
import pandas as pd
import pytest

from lacuna_nipype.atlases.tables import write_aggregates, write_damage
from lacuna_nipype.core.parcels import Parcels, labelled_weights
from lacuna_nipype.core.spaces import Grid

GRID = Grid.make((2, 2, 2), np.diag([2.0, 2, 2, 1]))
LABELS = np.array([300, 300, 300, 300, 2, 2, 70_000, 0]).reshape(2, 2, 2)


def parcels_of(index):
    index = np.array(index)
    return Parcels(GRID, index, tuple(f"r{i}" for i in index), labelled_weights(LABELS, index))


@pytest.fixture
def parcels():
    """Unsorted labels, one of them (9) without a voxel."""
    return parcels_of([300, 9, 70_000, 2])


def read(path):
    return pd.read_csv(path, sep="\t", keep_default_na=False)


def test_damage_by_hand(tmp_path, parcels):
    mask = np.array([1, 0, 0, 0, 1, 1, 0, 1], dtype=bool).reshape(2, 2, 2)
    (table_path,), summary_path = write_damage(mask, GRID, [parcels], tmp_path)
    assert table_path.read_text() == (
        "index\tname\tdamagepct\tn_voxels\tvolume_ml\tn_voxels_damaged\tvolume_damaged_ml\n"
        "300\tr300\t25\t4\t0.032\t1\t0.008\n"
        "9\tr9\tn/a\t0\t0\t0\t0\n"
        "70000\tr70000\t0\t1\t0.008\t0\t0\n"
        "2\tr2\t100\t2\t0.016\t2\t0.016\n"
    )
    assert json.loads(summary_path.read_text()) == {
        "LesionVoxels": 4,
        "LesionVolumeML": pytest.approx(0.032),
        "Atlases": [
            {
                "Regions": 4,
                "RegionsTouched": 2,
                "LesionInRegionsPercent": 75,
                "MostDamagedRegion": "r2",
                "MaximumDamagePercent": 100,
            }
        ],
    }


def test_an_empty_lesion_gives_a_full_table_and_valid_json(tmp_path, parcels):
    mask = np.zeros(GRID.shape, dtype=bool)
    (path,), summary = write_damage(mask, GRID, [parcels], tmp_path)
    assert read(path)["damagepct"].tolist() == ["0", "n/a", "0", "0"]
    (entry,) = json.loads(summary.read_text(), parse_constant=pytest.fail)["Atlases"]
    assert entry["LesionInRegionsPercent"] is None
    assert entry["MostDamagedRegion"] is None
    assert entry["RegionsTouched"] == 0


def test_atlases_do_not_overwrite_each_other(tmp_path, parcels):
    mask = LABELS == 2
    tables, summary = write_damage(mask, GRID, [parcels, parcels_of([2])], tmp_path)
    assert len(set(tables)) == 2
    assert [len(read(path)) for path in tables] == [4, 1]
    assert len(json.loads(summary.read_text())["Atlases"]) == 2
    maps = {"r": np.ones(GRID.shape), "t": np.zeros(GRID.shape)}
    tables = write_aggregates(maps.items(), None, [parcels, parcels_of([2])], tmp_path)
    assert len(set(tables)) == 4
    assert [read(path).columns[2] for path in tables] == ["r", "t", "r", "t"]
    assert [len(read(path)) for path in tables] == [4, 4, 1, 1]


def test_aggregates_by_hand(tmp_path, parcels):
    values = np.array([1.0, 2, 3, np.nan, 5, 7, 9, 100]).reshape(2, 2, 2)
    valid = LABELS != 70_000
    (path,) = write_aggregates([("z", values)], valid, [parcels], tmp_path)
    assert path.read_text() == (
        "index\tname\tz\tn_voxels\tvolume_ml\tcoverage\n"
        "300\tr300\t2\t4\t0.032\t0.75\n"
        "9\tr9\tn/a\t0\t0\tn/a\n"
        "70000\tr70000\tn/a\t1\t0.008\t0\n"
        "2\tr2\t6\t2\t0.016\t1\n"
    )


def test_r_is_averaged_through_z(tmp_path):
    r = np.zeros(GRID.shape)
    r[LABELS == 2] = [0.2, 0.8]
    maps = {"r": np.arctanh(r), "z": np.arctanh(r)}
    tables = write_aggregates(
        maps.items(), None, [parcels_of([2])], tmp_path, transforms=["tanh", "identity"]
    )
    mean = (np.arctanh(0.2) + np.arctanh(0.8)) / 2
    assert float(read(tables[0])["r"][0]) == pytest.approx(np.tanh(mean), rel=1e-9)
    assert float(read(tables[1])["z"][0]) == pytest.approx(mean, rel=1e-9)


def test_statistic_is_passed_on(tmp_path):
    values = np.array([1.0, 2, 3, 10, 5, 7, 9, 100]).reshape(2, 2, 2)
    found = {}
    for statistic in ("sum", "median"):
        (path,) = write_aggregates(
            [("x", values)], None, [parcels_of([300])], tmp_path, statistic=statistic
        )
        found[statistic] = float(read(path)["x"][0])
    assert found == {"sum": 16, "median": 2.5}
