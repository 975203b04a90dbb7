"""Parcel interfaces through nodes; expected values by hand."""

import numpy as np
import pandas as pd
import pytest

from lacuna_nipype.interfaces import AggregateParcels, PrepareParcels, RegionalDamage


def table_of(path):
    return pd.read_csv(path, sep="\t", keep_default_na=False, na_values=["n/a"])


@pytest.fixture
def parcels(atlas, run_node):
    image, labels = atlas
    return run_node(PrepareParcels(in_file=image, labels_file=labels), "parcels").out_file


def test_prepared_on_the_atlas_own_grid(parcels, in_node_folder, shape):
    from lacuna_nipype.atlases.parcels import read_parcels

    prepared = read_parcels(parcels)
    assert in_node_folder(parcels, "parcels")
    assert prepared.grid.shape == shape
    assert prepared.names == ("low", "high")
    assert prepared.totals.tolist() == [3 * 7 * 5, 3 * 7 * 5]


def test_prepared_on_a_reference(atlas, make_image, run_node, affine):
    from lacuna_nipype.atlases.parcels import read_parcels

    reference = make_image("half.nii.gz", np.zeros((3, 7, 5), dtype=np.uint8), affine)
    outputs = run_node(PrepareParcels(in_file=atlas[0], labels_file=atlas[1], reference=reference))
    prepared = read_parcels(outputs.out_file)
    assert prepared.grid.shape == (3, 7, 5)
    assert prepared.names == ("low", "high")
    assert prepared.totals.tolist() == [105, 0]


def test_damage(parcels, make_mask, run_node, in_node_folder, content_of):
    mask = make_mask(box=np.s_[2:4, 0:3, 0:5])
    outputs = run_node(RegionalDamage(mask_file=mask, parcels_files=[parcels, parcels]))
    assert in_node_folder([*outputs.tables, outputs.summary])
    assert len(outputs.tables) == 2
    table = table_of(outputs.tables[0])
    assert table.columns[:3].tolist() == ["index", "name", "damagepct"]
    assert table["name"].tolist() == ["low", "high"]
    assert table["damagepct"].to_numpy() == pytest.approx([100 * 15 / 105] * 2)
    assert table["n_voxels_damaged"].tolist() == [15, 15]
    assert content_of(outputs.summary)["LesionVoxels"] == 30


def test_damage_of_an_empty_mask_is_zero(parcels, make_mask, run_node):
    outputs = run_node(
        RegionalDamage(mask_file=make_mask(box=np.s_[0:0, 0, 0]), parcels_files=parcels)
    )
    assert isinstance(outputs.tables, str)
    assert table_of(outputs.tables)["damagepct"].tolist() == [0, 0]


def test_averages(parcels, make_image, run_node, in_node_folder, shape):
    data = np.zeros(shape, dtype=np.float32)
    data[:3], data[3:] = 0.5, -1
    valid = np.ones(shape, dtype=np.uint8)
    valid[0], data[0] = 0, 99
    valid[3:] = 0
    z_map = make_image("z.nii.gz", data)
    outputs = run_node(
        AggregateParcels(
            in_files=[z_map, z_map],
            quantities=["r", "z"],
            transforms=["tanh", "identity"],
            valid_mask=make_image("valid.nii.gz", valid),
            parcels_files=[parcels, parcels],
        )
    )
    assert in_node_folder(outputs.tables)
    tables = [table_of(path) for path in outputs.tables]
    assert [table.columns[2] for table in tables] == ["r", "z", "r", "z"]
    assert tables[1]["z"][0] == pytest.approx(0.5)
    assert tables[0]["r"][0] == pytest.approx(np.tanh(0.5))
    assert tables[0]["coverage"].to_numpy() == pytest.approx([2 / 3, 0])
    assert tables[0]["r"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("statistic", "expected"), [("mean", 1 / 3), ("sum", 35), ("percent", 100 / 3)]
)
def test_statistics(parcels, make_image, run_node, shape, statistic, expected):
    data = np.zeros(shape, dtype=np.float32)
    data[0] = 1
    outputs = run_node(
        AggregateParcels(
            in_files=make_image("map.nii.gz", data),
            quantities=["z"],
            parcels_files=parcels,
            statistic=statistic,
        )
    )
    assert table_of(outputs.tables)["z"][0] == pytest.approx(expected)


def test_map_on_another_grid_is_refused(parcels, make_image, run_node):
    other = make_image("other.nii.gz", np.zeros((4, 4, 4), dtype=np.float32))
    with pytest.raises(RuntimeError, match="shape"):
        run_node(AggregateParcels(in_files=[other], quantities=["z"], parcels_files=[parcels]))


def test_each_is_cached(atlas, parcels, make_mask, make_image, runs_once, shape):
    mask, zeros = make_mask(), make_image("zeros.nii.gz", np.zeros(shape, dtype=np.float32))
    assert runs_once(lambda: PrepareParcels(in_file=atlas[0], labels_file=atlas[1]))
    assert runs_once(lambda: RegionalDamage(mask_file=mask, parcels_files=[parcels]))
    assert runs_once(
        lambda: AggregateParcels(in_files=[zeros], quantities=["z"], parcels_files=[parcels])
    )
