"""Disconnectivity interfaces through nodes; only the last test needs MRtrix3."""

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nb
import numpy as np
import pandas as pd
import pytest

from lacuna_nipype.connectomes.prepare import read_matrix
from lacuna_nipype.interfaces import (
    BundleDisconnection,
    DerivativesDataSink,
    DisconnectivityMatrix,
    FullMatrix,
    PrepareGroups,
    PrepareNodes,
    PrepareWeights,
)
from lacuna_nipype.io.quantities import describe_matrix, describe_table, matrix_quantities
from lacuna_nipype.io.tables import column_descriptions, write_matrix

# Nodes 1 to 4, of which the first has no streamline.
PAIRS = [[2, 3], [3, 2], [2, 3], [2, 4], [4, 3], [4, 4], [0, 2], [0, 0], [2, 3]]
HITS = [0, 1, 3, 5, 6]
NAMES = ["n/a", "t", "left, A1", "index"]
KINDS = ("streamlinesfull", "streamlineslesion", "streamlinesintact", "disconnectionpct")
FULL = [[0, 0, 0, 0], [0, 0, 4, 1], [0, 4, 0, 1], [0, 1, 1, 0]]
PERCENT = [[0, 0, 0, 0], [0, 0, 50, 100], [0, 50, 0, 0], [0, 100, 0, 0]]
DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None
WEIGHTS = "# of 9 streamlines\n1 2 4 8 16\n32 64 128 0.5\n"


@pytest.fixture
def files(tmp_path):
    """Assignments, hits, nodes and weights of nine streamlines, and of a second atlas."""
    folder = tmp_path / "inputs"
    folder.mkdir(exist_ok=True)
    np.save(folder / "pairs.npy", np.array(PAIRS, dtype=np.int32))
    np.save(folder / "other.npy", np.minimum(np.array(PAIRS, dtype=np.int32), 2))
    np.save(folder / "hits.npy", np.array(HITS, dtype=np.int64))
    np.save(folder / "none.npy", np.zeros(0, dtype=np.int64))
    rows = "".join(f"{10 * number}\t{name}\n" for number, name in enumerate(NAMES, start=1))
    (folder / "nodes.tsv").write_text("index\tname\n" + rows)
    (folder / "two.tsv").write_text("index\tname\n1\tone\n2\ttwo\n")
    (folder / "weights.txt").write_text(WEIGHTS)
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.fixture
def lesion(files, run_node):
    """Run the matrices of one lesion and one or two atlases; the outputs."""

    def run(hits="hits", atlases=("pairs",), weights=None, **options):
        tables = {"pairs": files["nodes"], "other": files["two"]}
        own = {} if weights is None else {"streamline_weights": weights}
        full = [
            run_node(
                FullMatrix(assignments=files[name], nodes_table=tables[name], **own),
                f"full_{name}",
            ).out_file
            for name in atlases
        ]
        return run_node(
            DisconnectivityMatrix(
                hits=files[hits],
                assignments=[files[name] for name in atlases],
                nodes_tables=[tables[name] for name in atlases],
                full_matrices=full,
                atlas_names=[f"atlas {name}" for name in atlases],
                **own,
                **options,
            )
        )

    return run


def values_of(path):
    return read_matrix(Path(path)).values  # noqa: PD011


def test_prepare_nodes(atlas, run_node, in_node_folder, data_of):
    image, labels = atlas
    Path(labels).write_text("index\tname\n2\thigh\n5\tnowhere\n1\tlow\n")
    outputs = run_node(PrepareNodes(in_file=image, labels_file=labels))
    assert in_node_folder([outputs.out_file, outputs.table])
    assert np.array_equal(data_of(outputs.out_file), np.array([0, 3, 1])[data_of(image)])
    assert np.array_equal(nb.load(outputs.out_file).affine, nb.load(image).affine)
    assert Path(outputs.table).read_text() == "index\tname\n2\thigh\n5\tnowhere\n1\tlow\n"


def test_full_matrix(files, run_node, in_node_folder):
    interface = FullMatrix(assignments=files["pairs"], nodes_table=files["nodes"])
    out_file = run_node(interface).out_file
    assert in_node_folder(out_file)
    assert np.load(out_file).tolist() == FULL
    assert np.load(out_file).dtype == np.float64


def test_matrices_by_hand(lesion, in_node_folder, content_of):
    outputs = lesion()
    assert in_node_folder([*outputs.matrices, outputs.tables, outputs.summary])
    assert [Path(path).stem.split("_")[1] for path in outputs.matrices] == list(KINDS)
    assert {read_matrix(Path(path)).names for path in outputs.matrices} == {tuple(NAMES)}
    full, cut, intact, percent = map(values_of, outputs.matrices)
    assert full.tolist() == FULL
    assert percent.tolist() == PERCENT
    assert np.array_equal(cut + intact, full)
    assert cut.sum() == 6
    table = pd.read_csv(outputs.tables, sep="\t", keep_default_na=False)
    assert table.to_dict("list") == {
        "index": [10, 20, 30, 40],
        "name": NAMES,
        "disconnectionpct": [0, 60, 40, 50],
        "streamlinesfull": [0, 5, 5, 2],
        "streamlineslesion": [0, 3, 2, 1],
    }
    statistics = content_of(outputs.summary)["Matrices"]["atlas pairs"]
    assert statistics["ParcelOfMaximumDegreeLost"] == "t"
    assert statistics["Preservation"] == 0.5
    assert statistics["StreamlinesUnassigned"] == 2
    assert statistics["StreamlinesHitAssigned"] == 4


def test_several_atlases_in_order(lesion, content_of):
    outputs = lesion(atlases=("pairs", "other"))
    assert len(outputs.matrices) == 8
    assert [len(read_matrix(Path(path)).names) for path in outputs.matrices] == [4] * 4 + [2] * 4
    assert len(outputs.tables) == 2
    assert list(content_of(outputs.summary)["Matrices"]) == ["atlas pairs", "atlas other"]


def test_only_what_is_asked_for(lesion, content_of):
    outputs = lesion(with_matrices=False, with_roi=False)
    assert not Path(outputs.summary).parent.joinpath("roi-00.tsv").exists()
    assert [path.name for path in Path(outputs.summary).parent.glob("*.tsv")] == []
    assert content_of(outputs.summary)["Matrices"]["atlas pairs"]["Edges"] == 3


def test_no_streamline_hit(lesion):
    outputs = lesion("none")
    full, cut, intact, percent = map(values_of, outputs.matrices)
    assert full.tolist() == intact.tolist() == FULL
    assert not cut.any()
    assert not percent.any()
    text = Path(outputs.summary).read_text()
    statistics = json.loads(text, parse_constant=pytest.fail)["Matrices"]["atlas pairs"]
    assert statistics["MeanDisconnectionPercent"] == 0
    assert statistics["ParcelOfMaximumDegreeLost"] is None
    assert statistics["Preservation"] == 1


def test_weights_as_text_and_prepared(files, lesion, run_node, in_node_folder):
    prepare = PrepareWeights(in_file=files["weights"], n_streamlines=9)
    prepared = run_node(prepare, "weights").out_file
    assert in_node_folder(prepared, "weights")
    for weights in (files["weights"], prepared):
        full, cut, *_ = map(values_of, lesion(weights=weights).matrices)
        assert full[1:, 1:].tolist() == [[0, 7.5, 8], [7.5, 0, 16], [8, 16, 0]]
        assert cut[1:, 1:].tolist() == [[0, 3, 8], [3, 0, 0], [8, 0, 0]]


def test_files_that_do_not_belong_together(files, run_node):
    full = run_node(FullMatrix(assignments=files["pairs"], nodes_table=files["nodes"])).out_file
    options = {
        "hits": files["hits"], "assignments": [files["pairs"]], "full_matrices": [full],
        "nodes_tables": [files["nodes"]], "atlas_names": ["a"],
    }  # fmt: skip
    for wrong in (
        {"nodes_tables": [files["two"]]},
        {"full_matrices": [full, full]},
        {name: value * 2 for name, value in options.items() if isinstance(value, list)},
        {"streamline_weights": files["weights"]},
    ):
        with pytest.raises(RuntimeError, match="ValidationError"):
            run_node(DisconnectivityMatrix(**{**options, **wrong}), "wrong")


@pytest.fixture
def groups_file(tmp_path):
    path = tmp_path / "inputs" / "groups.tsv"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "streamline\tbundle_index\tbundle\n0\t7\tCST left\n1\t7\tCST left\n2\t7\tCST left\n"
        "8\t7\tCST left\n3\t3\tNA\n1\t3\tNA\n4\t9\tsafe\n"
    )
    return str(path)


@pytest.mark.parametrize("prepared", [False, True])
def test_bundles_by_hand(files, groups_file, run_node, in_node_folder, content_of, prepared):
    if prepared:
        groups_file = run_node(PrepareGroups(in_file=groups_file, n_streamlines=9), "p").out_file
    outputs = run_node(
        BundleDisconnection(groups_file=groups_file, hits=files["hits"], n_streamlines=9)
    )
    assert in_node_folder([outputs.out_file, outputs.summary])
    table = pd.read_csv(outputs.out_file, sep="\t", keep_default_na=False)
    assert table.to_dict("list") == {
        "index": [1, 2, 3],
        "name": ["CST left", "NA", "safe"],
        "streamlinespct": [50, 100, 0],
        "n_streamlines": [4, 2, 1],
        "n_streamlines_hit": [2, 2, 0],
    }
    assert content_of(outputs.summary)["Bundles"]["BundleOfMaximumDisconnection"] == "NA"


def test_bundles_with_weights(files, groups_file, run_node):
    outputs = run_node(
        BundleDisconnection(
            groups_file=groups_file,
            hits=files["hits"],
            n_streamlines=9,
            streamline_weights=files["weights"],
        )
    )
    table = pd.read_csv(outputs.out_file, sep="\t", keep_default_na=False)
    assert table["streamlinespct"].tolist() == [40, 100, 0]


def test_each_is_cached(files, groups_file, atlas, runs_once):
    image, labels = atlas
    assert runs_once(lambda: PrepareNodes(in_file=image, labels_file=labels))
    assert runs_once(lambda: FullMatrix(assignments=files["pairs"], nodes_table=files["nodes"]))
    assert runs_once(
        lambda: BundleDisconnection(groups_file=groups_file, hits=files["hits"], n_streamlines=9)
    )


# Tables, names and sidecars


def test_matrix_tables_hold_numbers_as_they_are(tmp_path):
    names = ["name", 'say "x"', "a\tb"]
    values = np.array([[0, 123456789, 1 / 3], [123456789, 0, np.nan], [1e-12, 1e10, 7]])
    path = write_matrix(tmp_path / "m.tsv", names, values)
    with path.open(newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t"))
    assert rows[0] == ["name", *names]
    assert [row[0] for row in rows[1:]] == names
    assert [row[1:] for row in rows[1:]] == [
        ["0", "123456789", "0.3333333333"],
        ["123456789", "0", "n/a"],
        ["1e-12", "1e+10", "7"],
    ]


def test_parcels_called_like_a_column_are_not_described(lesion):
    outputs = lesion()
    for path in outputs.matrices:
        assert set(column_descriptions(Path(path))) == {"name"}
    table = Path(outputs.tables)
    header = table.read_text().splitlines()[0].split("\t")
    assert list(column_descriptions(table)) == header


def test_columns_of_bundles_are_described_as_bundles(tmp_path):
    path = tmp_path / "bundles.tsv"
    path.write_text("index\tname\tstreamlinespct\tn_streamlines\tn_streamlines_hit\n")
    described = column_descriptions(path)
    assert list(described) == path.read_text().split()
    assert all("egion" not in entry["Description"] for entry in described.values())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("quantity", KINDS)
def test_sidecars_of_matrices(quantity, weighted):
    described = describe_matrix("snm", quantity, weighted=weighted, node_files=["bids::a.tsv"])
    units = "%" if quantity == "disconnectionpct" else "arbitrary" if weighted else "1"
    flags = {key: described[key] for key in described if isinstance(described[key], bool)}
    assert flags == {
        "Directed": False, "Weighted": True, "ValidDiagonal": False, "NonNegative": True
    }  # fmt: skip
    assert described["Units"] == units
    assert ("weight" in described["RelationshipMeasure"]) == weighted
    assert described["NodeFiles"] == ["bids::a.tsv"]
    assert "NodeFiles" not in describe_matrix("snm", quantity)


def test_stored_as_derivatives(tmp_path, lesion, content_of, run_node):
    outputs = lesion()
    assert matrix_quantities("snm") == KINDS
    atlas = {"atlas": "Demo", "scale": "4"}
    variants = [{**atlas, "statistic": kind, "suffix": "relmat"} for kind in KINDS]
    variants.append({**atlas, "statistic": "disconnectionpct", "suffix": "parcelstats"})
    described = [describe_matrix("snm", kind) for kind in KINDS]
    described.append(describe_table("snm", "disconnectionpct"))
    sink = DerivativesDataSink(
        base_directory=str(tmp_path / "derivatives"),
        in_file=[*outputs.matrices, outputs.tables],
        entities={"subject": "01", "space": "MNI152NLin6Asym", "label": "L", "desc": "snm"},
        variants=variants,
        variant_metadata=described,
    )
    stored = run_node(sink, "sink")
    stem = "sub-01_space-MNI152NLin6Asym_atlas-Demo_scale-4_label-L_stat-"
    assert [Path(path).name for path in stored.out_file] == [
        *(f"{stem}{kind}_desc-snm_relmat.tsv" for kind in KINDS),
        f"{stem}disconnectionpct_desc-snm_parcelstats.tsv",
    ]
    sidecar = content_of(stored.out_meta[0])
    assert sidecar["RelationshipMeasure"] == "Number of streamlines"
    assert "t" not in sidecar
    assert content_of(stored.out_meta[4])["disconnectionpct"]["Units"] == "%"


@pytest.mark.real_data
@pytest.mark.mrtrix
@pytest.mark.skipif(
    DATA is None or not (DATA / "tractogram_hcp1065").is_dir(),
    reason="LACUNA_TEST_DATA does not name a folder with the real data",
)
@pytest.mark.skipif(shutil.which("tck2connectome") is None, reason="MRtrix3 is not on PATH")
def test_real_tractogram_equals_mrtrix(tmp_path, run_node):
    """A stroke, an atlas and a tractogram of (slightly) different templates: numbers only."""
    tractogram = DATA / "tractogram_hcp1065" / "hcp1065_10403_step2mm.tck"
    stem = "tpl-MNI152NLin6Asym_res-01_atlas-Schaefer2018_desc-400Parcels17Networks_dseg"
    nodes = run_node(
        PrepareNodes(
            in_file=str(DATA / "parcellations" / f"{stem}.nii.gz"),
            labels_file=str(DATA / "parcellations" / f"{stem}.txt"),
        ),
        "nodes",
    )

    def mrtrix(*words):
        subprocess.run([*words, "-quiet", "-force"], check=True, timeout=120, cwd=tmp_path)

    def matrix(tracks):
        mrtrix(
            "tck2connectome", tracks, nodes.out_file, "m.csv", "-symmetric", "-zero_diagonal",
            "-out_assignments", "pairs.txt",
        )  # fmt: skip
        return np.loadtxt(tmp_path / "m.csv", delimiter=",")

    expected_full = matrix(tractogram)
    np.save(tmp_path / "pairs.npy", np.loadtxt(tmp_path / "pairs.txt", dtype=np.int32))
    # The positions travel through tckedit as weights.
    np.savetxt(tmp_path / "positions.txt", np.arange(10_403), fmt="%d")
    mrtrix(
        "tckedit", tractogram, "hit.tck", "-include",
        DATA / "lesions_stroke" / "Subject_005.nii.gz",
        "-tck_weights_in", "positions.txt", "-tck_weights_out", "hits.txt",
    )  # fmt: skip
    hits = np.loadtxt(tmp_path / "hits.txt", dtype=float).ravel().astype(np.int64)
    np.save(tmp_path / "hits.npy", hits)
    expected = matrix("hit.tck")
    pairs, table = str(tmp_path / "pairs.npy"), nodes.table
    full = run_node(FullMatrix(assignments=pairs, nodes_table=table), "full").out_file
    outputs = run_node(
        DisconnectivityMatrix(
            hits=str(tmp_path / "hits.npy"),
            assignments=[pairs],
            nodes_tables=[table],
            full_matrices=[full],
            atlas_names=["Schaefer"],
        )
    )
    own = [values_of(path) for path in outputs.matrices]
    assert own[0].shape == (400, 400)
    assert 100 < len(hits) < 10_403
    assert expected.sum() > 0
    assert np.array_equal(own[0], expected_full)
    assert np.array_equal(own[1], expected)
    assert np.array_equal(own[2], expected_full - expected)
    with np.errstate(invalid="ignore"):
        percent = np.nan_to_num(100 * expected / expected_full)
    np.testing.assert_allclose(own[3], percent, rtol=1e-9)
