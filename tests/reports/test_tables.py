"""Tables of regions and matrices, put together from the files of a lesion."""

import numpy as np
import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.reports.results import find_results
from lacuna_nipype.reports.tables import (
    QUANTITIES,
    matrix_pictures,
    network_of,
    order_by_network,
    region_tables,
)


@pytest.mark.parametrize(
    ("region", "network"),
    [
        ("7Networks_LH_SomMot_3", "SomMot"),
        ("17Networks_RH_DefaultA_IPL_1", "DefaultA"),
        ("7Networks_LH_Vis", "Vis"),
        ("Left-Thalamus", None),
        ("Networks_LH_Vis_1", None),
        ("", None),
    ],
)
def test_the_network_is_part_of_schaefers_names(region, network):
    assert network_of(region) == network


def test_regions_of_a_network_stand_together():
    names = ["7Networks_LH_Vis_1", "7Networks_LH_Cont_1", "Thalamus", "7Networks_RH_Vis_1",
             "7Networks_RH_Cont_1", "7Networks_RH_Vis_2"]  # fmt: skip
    order, blocks = order_by_network(names)
    assert order.tolist() == [0, 3, 5, 1, 4, 2]
    assert blocks == (("Vis", 3), ("Cont", 2), ("other", 1))


def test_regions_without_networks_keep_their_order():
    order, blocks = order_by_network(["b", "a", "c"])
    assert order.tolist() == [0, 1, 2]
    assert blocks == (("", 3),)


def test_one_table_holds_all_quantities_in_the_order_of_the_atlas(out):
    (lesion,) = find_results(out, "01")
    (table,) = region_tables(lesion)
    assert table.name == "Schaefer2018_100"
    frame = table.frame
    assert " ".join(frame.columns) == (
        "index name network volume_ml rd_damagepct fnm_t snm_disconnectionpct"
    )
    assert frame["index"].tolist() == [1, 2, 3, 4, 5, 6]
    assert frame["network"].tolist() == ["Vis", "SomMot", "Default", "Vis", "SomMot", "other"]
    assert frame["rd_damagepct"].tolist() == [0, 65.14606, 8.5, 0, 0, 0]
    assert np.isnan(frame["fnm_t"].iloc[5])
    assert table.description["fnm_t"] == "What t is."


def test_a_region_that_one_table_lacks_keeps_its_row(out):
    (path,) = out.glob("**/*_stat-t_desc-fnm_parcelstats.tsv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[3:]]) + "\n")
    (table,) = region_tables(find_results(out, "01")[0])
    assert len(table.frame) == 6
    assert np.isnan(table.frame["fnm_t"].tolist()[:2]).all()
    assert table.frame["fnm_t"].tolist()[2:5] == [-15, 1, 18]


def test_the_top_is_by_size_and_without_zeros(out):
    (table,) = region_tables(find_results(out, "01")[0])
    by_stat = {quantity.stat: quantity for quantity in table.quantities}
    assert [value for _, value in table.top(by_stat["t"], 3)] == [20, 18, -15]
    assert [name for name, _ in table.top(by_stat["damagepct"])] == [
        "7Networks_LH_SomMot_1", "7Networks_LH_Default_1"
    ]  # fmt: skip


def test_every_analysis_has_bars_once(out):
    (table,) = region_tables(find_results(out, "01")[0])
    with_bars = [quantity.stat for quantity in table.with_bars]
    assert with_bars == ["damagepct", "t", "disconnectionpct"]
    assert len({(q.analysis, q.stat) for q in QUANTITIES}) == len(QUANTITIES)


def test_pairs_without_streamlines_are_no_number(out):
    (picture,) = matrix_pictures(find_results(out, "01")[0])
    # Vis, Vis, SomMot, SomMot, Default, other: places 0, 3, 1, 4, 2, 5.
    assert picture.blocks == (("Vis", 2), ("SomMot", 2), ("Default", 1), ("other", 1))
    assert np.isnan(picture.values[0, 1])
    assert picture.values[2, 4] == picture.values[4, 2] == 50
    assert np.nansum(picture.values) == 100
    assert np.isnan(np.diag(picture.values)).all()
    assert picture.statistics == {"Edges": 5, "EdgesAffected": 2}


def test_a_damaged_table_is_named(out):
    (path,) = out.glob("**/*_stat-t_desc-fnm_parcelstats.tsv")
    path.write_text("index\tregion\n1\tx\n")
    with pytest.raises(ValidationError, match=r"stat-t_desc-fnm_parcelstats\.tsv lacks a column"):
        region_tables(find_results(out, "01")[0])


def test_a_damaged_matrix_is_named(out):
    (path,) = out.glob("**/*_stat-disconnectionpct_desc-snm_relmat.tsv")
    path.write_text("name\ta\tb\na\t1\t2\n")
    with pytest.raises(ValidationError, match="no square matrix"):
        matrix_pictures(find_results(out, "01")[0])
