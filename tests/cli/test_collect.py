import json

import pandas as pd
import pytest
from group_data import SIDECAR, write_participants, write_table

from lacuna_nipype.cli.main import main


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "derivatives"
    for subject, value in (("01", 1), ("02", 2)):
        write_table(folder, subject, (value, value, value))
        write_table(folder, subject, (value, "n/a", value), quantity="damagepct", desc="rd")
    return folder


def test_tables_land_in_phenotype(root, capsys):
    assert main(["collect", str(root)]) == 0
    assert sorted(path.suffix for path in (root / "phenotype").iterdir()) == [
        ".json", ".json", ".tsv", ".tsv",
    ]  # fmt: skip
    assert "2 tables" in capsys.readouterr().out.splitlines()[-1]


def test_pattern_and_folder(root, tmp_path, capsys):
    arguments = ["--pattern", "*damagepct*", "--output-dir", str(tmp_path / "here"), "--verbose"]
    assert main(["collect", str(root), *arguments]) == 0
    (table,) = (tmp_path / "here").glob("*.tsv")
    assert "damagepct" in table.name
    assert "sub-02" in capsys.readouterr().out
    sidecar = json.loads(table.with_suffix(".json").read_text())
    assert sidecar["Parameters"]["Pattern"] == "*damagepct*"
    assert sidecar["Sources"][0].startswith("bids:derivatives:sub-01/")


def test_participants_of_the_linked_dataset_are_joined(root, tmp_path):
    write_participants(tmp_path / "bids", "participant_id\tage\nsub-01\t60\nsub-02\t70\n")
    root.joinpath("dataset_description.json").write_text(
        json.dumps({"DatasetLinks": {"raw": str(tmp_path / "bids")}})
    )
    assert main(["collect", str(root), "--participants-columns", "age"]) == 0
    table = next((root / "phenotype").glob("*stat-z*.tsv"))
    assert list(pd.read_csv(table, sep="\t")["age"]) == [60, 70]


def test_lacunas_layout(root):
    assert main(["collect", str(root), "--output-layout", "lacuna", "--pattern", "*stat-z*"]) == 0
    (table,) = (root / "phenotype").glob("*.tsv")
    assert table.name == "group_label-L_method-fnm_atlas-Toy_desc-z_parcelstats.tsv"


def test_mixture_is_refused_unless_chosen(root, capsys):
    write_table(root, "03", (3, 3, 3), sidecar={**SIDECAR, "Software": {"Version": "0.1"}})
    assert main(["collect", str(root)]) == 2
    assert "Software.Version" in capsys.readouterr().err
    assert not (root / "phenotype").exists()
    assert main(["collect", str(root), "--select", "Software.Version=0.1"]) == 0
    (table,) = (root / "phenotype").glob("*.tsv")
    assert list(pd.read_csv(table, sep="\t")["participant_id"]) == ["sub-03"]
    assert main(["collect", str(root), "--allow-mixed"]) == 0
    assert len(pd.read_csv(table, sep="\t")) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pattern", "*nothing*"], "there are 4, such as"),
        (["--participants-columns", "age"], "--participants"),
        (["--select", "x"], "KEY=VALUE"),
        (["--participant-label", "99"], "No parcel table"),
    ],
)
def test_mistakes_are_one_sentence(root, capsys, arguments, words):
    assert main(["collect", str(root), *arguments]) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_nothing_is_written_when_one_table_is_damaged(root):
    next(root.glob("sub-02/anat/*stat-z*.tsv")).write_text("name\tz\nx\t1\n")
    assert main(["collect", str(root)]) == 2
    assert not (root / "phenotype").exists()
