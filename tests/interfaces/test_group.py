import json
import sys
from pathlib import Path

import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from group_data import write_map, write_table
from nipype.pipeline import engine as pe

from lacuna_nipype.interfaces.group import (
    AssociateMaps,
    AssociateTables,
    CollectTable,
    CountOverlap,
)


def run(interface, folder):
    return pe.Node(interface, name="node", base_dir=str(folder)).run().outputs


def test_table_of_all(tmp_path):
    files = [write_table(tmp_path / "in", s, (n, "n/a", 3)) for n, s in enumerate(("01", "02"))]
    outputs = run(
        CollectTable(
            in_files=[str(path) for path in files],
            quantity="z",
            first_columns=[("participant_id", ["sub-01", "sub-02"]), ("age", ["060", "n/a"])],
        ),
        tmp_path,
    )
    assert Path(outputs.out_file).read_text() == (
        "participant_id\tage\tzeta\talpha\tNA\nsub-01\t060\t0\tn/a\t3\nsub-02\tn/a\t1\tn/a\t3\n"
    )


def test_overlap(tmp_path):
    maps = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype("f4")
    files = [write_map(tmp_path / "in", f"{n}", data) for n, data in enumerate(maps)]
    outputs = run(
        CountOverlap(
            in_files=[str(path) for path in files],
            comparisons=["above", "below"],
            thresholds=[0.0, -1.0],
            fractions=[False, True],
        ),
        tmp_path,
    )
    count, share = (np.asarray(nb.load(path).dataobj) for path in outputs.out_files)
    np.testing.assert_array_equal(count, (maps > 0).sum(0))
    np.testing.assert_allclose(share, (maps < -1).mean(0), rtol=1e-6)
    assert count.dtype == np.int32


@pytest.mark.parametrize("covariates", [None, [[1.0, 4, 2, 8, 5, 7, 3, 9]]])
def test_associations(tmp_path, covariates):
    rng = np.random.default_rng(2)
    score = rng.normal(size=8)
    maps = rng.normal(size=(8, 3, 3, 3))
    settings = {
        "tested": score.tolist(),
        "tested_name": "score",
        "permutations": 29,
        **({"covariates": covariates, "covariate_names": ["age"]} if covariates else {}),
    }
    files = [write_map(tmp_path / "in", f"{n}", data) for n, data in enumerate(maps)]
    outputs = run(AssociateMaps(in_files=[str(p) for p in files], **settings), tmp_path / "a")
    assert [Path(path).name.partition(".")[0] for path in outputs.out_maps] == [
        "t", "logpfwe", "partialr", "tested",
    ]  # fmt: skip
    effect = np.asarray(nb.load(outputs.out_maps[2]).dataobj)
    if covariates is None:
        expected = np.corrcoef(score, maps[:, 1, 1, 1])[0, 1]
        assert effect[1, 1, 1] == pytest.approx(expected, rel=1e-5)
    assert json.loads(Path(outputs.summary).read_text())["ValuesTested"] == 27
    assert Path(outputs.clusters).read_text().startswith("cluster_id\tx\ty\tz_mm\t")
    tables = [write_table(tmp_path / "in", f"{n}", data[0, 0]) for n, data in enumerate(maps)]
    outputs = run(
        AssociateTables(in_files=[str(p) for p in tables], quantity="z", **settings),
        tmp_path / "b",
    )
    table = pd.read_csv(outputs.out_file, sep="\t")
    np.testing.assert_allclose(table["partial_r"], effect[0, 0], rtol=1e-5)


def test_module_is_light():
    import subprocess

    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, lacuna_nipype.interfaces.group; print('nilearn' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "False"
