import unicodedata

import numpy as np
import pytest
from group_data import write_participants

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.io.participants import build_design, choose_columns, read_participants

TABLE = """participant_id\tage\tsex\tscore\tgroup
sub-01\t60\tF\t1.5\ta
sub-02\t61\tM\t2.5\ta
sub-03\t70\tF\tn/a\tb
04\t50\tM\t4\tb
sub-05\t55\tF\t0\tb
sub-06\t58\tM\t9\ta
"""
EVERYBODY = [f"sub-0{n}" for n in range(1, 7)]


@pytest.fixture
def table(tmp_path):
    return read_participants(write_participants(tmp_path, TABLE))


def test_ids_are_text_and_have_their_prefix(table):
    assert list(table.index) == EVERYBODY
    assert table.at["sub-04", "age"] == "50"


def test_names_that_look_alike_are_one(tmp_path):
    composed = "Jürgen"
    decomposed = unicodedata.normalize("NFD", composed)
    path = write_participants(tmp_path, f"participant_id\tscore\nsub-{decomposed}\t1\n")
    assert list(read_participants(path).index) == [f"sub-{composed}"]


def test_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = write_participants(tmp_path, "\ufeffparticipant_id\tscore\nsub-1\t1\n")
    assert list(read_participants(path).columns) == ["score"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id\tscore\nsub-1\t2\n", "no column participant_id"),
        ("participant_id\tscore\nsub-1\t2\n1\t3\n", "sub-1 more than once"),
        ("participant_id\ta\ta\nsub-1\t2\t3\n", "two columns 'a'"),
        ("", "no table"),
        ("participant_id\ta\nsub-1\t1\t2\t3\n", "no table"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, text, words):
    with pytest.raises(ValidationError, match=words):
        read_participants(write_participants(tmp_path, text))


def test_wrong_encoding_and_missing_file_are_told(tmp_path):
    path = tmp_path / "participants.tsv"
    with pytest.raises(ValidationError, match="does not exist"):
        read_participants(path)
    path.write_bytes("participant_id\tname\nsub-1\tJörg\n".encode("latin-1"))
    with pytest.raises(ValidationError, match="UTF-8"):
        read_participants(path)


def test_unknown_column_lists_those_there(tmp_path, table):
    with pytest.raises(ValidationError, match="age, sex, score, group"):
        choose_columns(table, ["iq"], tmp_path)


def test_design_has_scores_covariates_and_volumes(table):
    volumes = {name: float(n) ** 2 for n, name in enumerate(EVERYBODY)}
    built = build_design(
        table, [*EVERYBODY, "sub-99"], "score", covariates=["age"], volumes=volumes
    )
    assert built.participants == ("sub-01", "sub-02", "sub-04", "sub-05", "sub-06")
    assert built.dropped == {
        "sub-03": "no score",
        "sub-99": "not in the table of participants",
    }
    np.testing.assert_array_equal(built.design.tested, [1.5, 2.5, 4, 0, 9])
    np.testing.assert_array_equal(
        built.design.covariates, np.transpose([[60, 61, 50, 55, 58], [0, 1, 9, 16, 25]])
    )
    assert built.design.covariate_names == ("age", "lesion_volume_ml")


def test_text_becomes_indicators(table):
    built = build_design(table, EVERYBODY, "score", covariates=["sex"])
    assert built.design.covariate_names == ("sex=M",)
    np.testing.assert_array_equal(built.design.covariates[:, 0], [0, 1, 1, 0, 1])


def test_two_groups_are_coded_in_the_order_of_the_alphabet(table):
    built = build_design(table, EVERYBODY, "group", groups=True)
    assert built.levels == ("a", "b")
    np.testing.assert_array_equal(built.design.tested, [0, 0, 1, 1, 1, 0])


@pytest.mark.parametrize(
    ("who", "column", "options", "words"),
    [
        (EVERYBODY, "sex", {}, "is no number"),
        (EVERYBODY, "age", {"groups": True}, "6 groups"),
        (["sub-01", "sub-02"], "score", {"covariates": ["age"]}, "too few"),
        (["sub-03"], "score", {}, "None of the 1"),
        (["sub-01", "sub-05", "sub-03"], "sex", {"groups": True}, "1 groups"),
    ],
)
def test_designs_that_cannot_be_tested_are_refused(table, who, column, options, words):
    with pytest.raises(ValidationError, match=words):
        build_design(table, who, column, **options)


def test_no_volume_no_part(table):
    volumes = dict.fromkeys(EVERYBODY[:5], 1.0) | {"sub-02": 2.0}
    built = build_design(table, EVERYBODY, "score", volumes=volumes)
    assert built.dropped["sub-06"] == "no lesion volume"
