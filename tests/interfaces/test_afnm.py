"""Scores of parcels through nodes; expected values by hand."""

import numpy as np
import pandas as pd
import pytest

from lacuna_nipype.interfaces import ParcelScores, PrepareParcels

COLUMNS = ["index", "name", "score", "n_voxels", "volume_ml", "weight"]


def table_of(path):
    return pd.read_csv(path, sep="\t", keep_default_na=False, na_values=["n/a"])


@pytest.fixture
def parcels(make_image, tmp_path, shape, run_node):
    """Three parcels: x = 0, x = 1 and 2, x = 3 to 5 (35, 70 and 105 voxels)."""
    data = np.zeros(shape, dtype=np.int16)
    data[0], data[1:3], data[3:] = 1, 2, 3
    labels = tmp_path / "labels.tsv"
    labels.write_text("index\tname\n1\tA\n2\tB\n3\tC\n")
    image = make_image("atlas.nii.gz", data)
    return run_node(PrepareParcels(in_file=image, labels_file=str(labels)), "parcels").out_file


@pytest.fixture
def matrix(tmp_path):
    """The parcels in another order: z(A, B) = 0.5, z(A, C) = -0.2, z(B, C) = 0.8."""
    path = tmp_path / "c_atlas-X_stat-z_relmat.tsv"
    path.write_text("name\tC\tA\tB\nC\t0\t-0.2\t0.8\nA\t-0.2\t0\t0.5\nB\t0.8\t0.5\t0\n")
    path.with_suffix(".json").write_text('{"NumberOfSubjects": 12}')
    return str(path)


@pytest.fixture
def mask(make_mask):
    """All of A, and half of B."""
    return make_mask(box=np.s_[0:2])


@pytest.mark.parametrize(
    ("weighting", "weights", "scores"),
    [
        ("fractional", [0.5, 0.5, 0], [0.25, 0.25, 0.3]),
        ("binary", [1, 1, 0], [0.5, 0.5, 0.6]),
        ("voxel_count", [1, 0.5, 0], [0.25, 0.5, 0.2]),
    ],
)
def test_scores(mask, parcels, matrix, run_node, in_node_folder, weighting, weights, scores):
    outputs = run_node(
        ParcelScores(mask_file=mask, parcels_file=parcels, matrix_file=matrix, weighting=weighting)
    )
    assert in_node_folder([outputs.table, outputs.summary])
    table = table_of(outputs.table)
    assert table.columns.tolist() == COLUMNS
    assert table["name"].tolist() == ["A", "B", "C"]
    assert table["weight"].to_numpy() == pytest.approx(weights)
    assert table["score"].to_numpy() == pytest.approx(scores)
    assert table["n_voxels"].tolist() == [35, 70, 105]


def test_summary(mask, parcels, matrix, run_node, content_of):
    outputs = run_node(ParcelScores(mask_file=mask, parcels_file=parcels, matrix_file=matrix))
    assert content_of(outputs.summary) == {
        "LesionVoxels": 70,
        "LesionVolumeML": pytest.approx(70 * 0.512),
        "Weighting": "fractional",
        "NumberOfSubjects": 12,
        "Regions": 3,
        "RegionsTouched": 2,
        "LesionInRegionsPercent": 100,
        "RegionsWithoutConnectivity": 0,
        "RegionsTouchedWithoutConnectivity": [],
        "HighestScore": pytest.approx(0.3),
        "RegionOfHighestScore": "C",
        "LowestScore": pytest.approx(0.25),
        "RegionOfLowestScore": "A",
    }


def test_empty_mask_scores_zero(make_mask, parcels, matrix, run_node, content_of):
    empty = make_mask(box=np.s_[0:0])
    outputs = run_node(ParcelScores(mask_file=empty, parcels_file=parcels, matrix_file=matrix))
    assert table_of(outputs.table)["score"].tolist() == [0, 0, 0]
    summary = content_of(outputs.summary)
    assert (summary["RegionsTouched"], summary["HighestScore"]) == (0, None)
    assert summary["LesionInRegionsPercent"] is None


def test_parcel_without_connectivity_keeps_its_row(mask, parcels, tmp_path, run_node, content_of):
    path = tmp_path / "m.tsv"
    path.write_text("name\tA\tB\tC\nA\tn/a\tn/a\tn/a\nB\tn/a\t0\t0.8\nC\tn/a\t0.8\t0\n")
    outputs = run_node(ParcelScores(mask_file=mask, parcels_file=parcels, matrix_file=str(path)))
    table = table_of(outputs.table)
    assert table["score"].isna().tolist() == [True, False, False]
    assert table["score"][1:].tolist() == [0, 0.8]
    assert content_of(outputs.summary)["RegionsTouchedWithoutConnectivity"] == ["A"]
    assert content_of(outputs.summary)["NumberOfSubjects"] is None


def test_matrix_of_another_atlas_is_refused(mask, parcels, tmp_path, run_node):
    path = tmp_path / "m.tsv"
    path.write_text("name\tA\tX\nA\t0\t1\nX\t1\t0\n")
    interface = ParcelScores(mask_file=mask, parcels_file=parcels, matrix_file=str(path))
    with pytest.raises(RuntimeError, match=r"only in the atlas: B, C; only in the matrix: X"):
        run_node(interface)


def test_is_cached(mask, parcels, matrix, runs_once):
    assert runs_once(
        lambda: ParcelScores(mask_file=mask, parcels_file=parcels, matrix_file=matrix)
    )
