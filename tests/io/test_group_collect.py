import io
import json
import os

import numpy as np
import pandas as pd
import pytest
from group_data import REGIONS, SPACE, table_file, write_participants, write_result, write_table

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.io.group_collect import (
    cohort_table,
    describe_cohort_table,
    join_columns,
    lacuna_atlas,
    read_regions,
    table_path,
    write_cohort_table,
)
from lacuna_nipype.io.group_results import find_results, group_cohorts


@pytest.fixture
def root(tmp_path):
    return tmp_path / "out"


def only_cohort(root):
    (cohort,) = group_cohorts(find_results([root]))
    return cohort


def test_rows_are_participants_and_columns_regions_in_atlas_order(root, tmp_path):
    write_table(root, "02", (0.1, "n/a", -3))
    write_table(root, "01", (1e-9, 2, 123456789.25))
    path = write_cohort_table(tmp_path / "t.tsv", cohort_table(only_cohort(root)), {})
    text = path.read_text()
    assert text == (
        "participant_id\tmask_label\tzeta\talpha\tNA\n"
        "sub-01\tL\t1e-09\t2\t123456789.2\n"
        "sub-02\tL\t0.1\tn/a\t-3\n"
    )


def test_table_equals_what_pandas_makes_of_the_files(root):
    rng = np.random.default_rng(1)
    for number in range(7):
        write_table(root, f"{number:02d}", rng.normal(size=3).round(6), session="01")
    table = cohort_table(only_cohort(root))
    frames = {
        path.name[:6]: pd.read_csv(path, sep="\t", keep_default_na=False).set_index("name")["z"]
        for path in root.glob("sub-*/ses-01/anat/*.tsv")
    }
    expected = pd.DataFrame(frames).T.sort_index()[list(REGIONS)]
    assert list(table["session_id"]) == ["ses-01"] * 7
    assert list(table["participant_id"]) == list(expected.index)
    np.testing.assert_array_equal(table[list(REGIONS)].to_numpy(), expected.to_numpy(float))


def test_joined_columns_come_before_regions_as_text(root, tmp_path):
    for subject in ("01", "02", "03"):
        write_table(root, subject, (1, 2, 3))
    source = write_participants(
        tmp_path, "participant_id\tage\tsession\tcode\nsub-01\t60\tx\t007\n02\tn/a\ty\t\n"
    )
    (tmp_path / "participants.json").write_text(json.dumps({"age": {"Units": "year"}}))
    joined = join_columns(source, ["code", "age", "session"])
    table = cohort_table(only_cohort(root), joined.table)
    assert list(table.columns)[:5] == [
        "participant_id", "mask_label", "code", "age", "participant_session",
    ]  # fmt: skip
    assert list(table["code"]) == ["007", "n/a", "n/a"]
    assert list(table["age"]) == ["60", "n/a", "n/a"]
    assert joined.descriptions["age"] == {"Units": "year"}
    assert "participant_session" in joined.descriptions


def test_join_without_table_or_column_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="--participants"):
        join_columns(None, ["age"])
    with pytest.raises(ValidationError, match="no column 'age'"):
        join_columns(write_participants(tmp_path, "participant_id\tx\nsub-1\t1\n"), ["age"])
    assert join_columns(None, []).table is None


def test_sidecar_names_sources_and_no_entity(root):
    write_table(root, "01", (1, 2, 3), names=("hemi", "subject", "ok"))
    cohort = only_cohort(root)
    sidecar = describe_cohort_table(
        cohort, links={"": root}, parameters={"Pattern": "*"}, missing=["sub-02"]
    )
    assert sidecar["Sources"] == [f"bids::{cohort.paths[0].relative_to(root)}"]
    assert sidecar["ParticipantsWithoutTable"] == ["sub-02"]
    assert sidecar["Connectome"]["Fingerprint"] == "sha256:1"
    assert "ok" in sidecar
    assert not {"hemi", "subject", "label", "session", "space"} & set(sidecar)
    json.dumps(sidecar, allow_nan=False)


def test_tables_with_other_regions_are_refused(root):
    write_table(root, "01", (1, 2, 3))
    write_table(root, "02", (1, 2, 3), names=("alpha", "zeta", "NA"))
    with pytest.raises(ValidationError, match="'alpha' in the place of 'zeta'"):
        cohort_table(only_cohort(root))
    write_table(root, "02", (1, 2), names=("zeta", "alpha"))
    with pytest.raises(ValidationError, match="2 and 3"):
        cohort_table(only_cohort(root))


def test_region_called_like_an_id_column_is_refused(root):
    write_table(root, "01", (1, 2, 3), names=("a", "b", "mask_label"))
    with pytest.raises(ValidationError, match="mask_label"):
        cohort_table(only_cohort(root))


@pytest.mark.parametrize(
    "text",
    [
        "region\tvalue\na b\t1\nc\tn/a\n",
        'name\tscore\tn_voxels\n"a b"\t1\t4\nc\t\t4\n',
        "index\tlabel\tvalue\n1\ta b\t1\n2\tc\tn/a\n",
    ],
)
def test_foreign_tables_are_understood(tmp_path, text):
    path = tmp_path / "t.tsv"
    path.write_text(text)
    regions = read_regions(path, "disconnectionpct")
    assert regions.names == ("a b", "c")
    np.testing.assert_array_equal(regions.values, [1, np.nan])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("a\tb\n1\t2\n", "no column of region names"),
        ("name\tb\tc\nx\t2\t3\n", "no column 'z'"),
        ("name\tdamagepct\nx\t2\n", "no column 'z'"),
        ("name\tz\nx\t2\nx\t3\n", "twice"),
        ("name\tz\nx\tten\n", "'ten'"),
        ("name\tz\nx\t1\t2\n", "different length"),
    ],
)
def test_damaged_tables_are_named(tmp_path, text, words):
    path = tmp_path / "t.tsv"
    path.write_text(text)
    with pytest.raises(ValidationError, match=words):
        read_regions(path, "z")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t.tsv")
    with pytest.raises(ValidationError, match="no table"):
        read_regions(tmp_path / "t.tsv", "z")


def test_names_of_both_layouts(root):
    write_table(root, "01", (1, 2, 3), session="01")
    entities = only_cohort(root).entities
    assert table_path(entities) == (
        f"phenotype/group_ses-01_space-{SPACE}_atlas-Toy_label-L_stat-z_desc-fnm_parcelstats.tsv"
    )
    schaefer = {**entities, "atlas": "Schaefer2018", "scale": "100", "segmentation": "7n"}
    assert lacuna_atlas(schaefer) == "schaefer2018parcels100networks7"
    assert table_path(schaefer, layout="lacuna") == (
        "phenotype/group_ses-01_label-L_method-fnm_atlas-schaefer2018parcels100networks7"
        "_desc-z_parcelstats.tsv"
    )


def test_columns_of_lacunas_layout(root):
    write_table(root, "01", (1, 2, 3))
    table = cohort_table(only_cohort(root), layout="lacuna")
    assert list(table.columns)[:3] == ["participant_id", "session_id", "label"]
    assert list(table["session_id"]) == ["n/a"]


def test_lacunas_own_folder_is_collected(root):
    for subject, value in (("01", 5), ("02", 7)):
        name = f"sub-{subject}_ses-01_label-a_method-snm_atlas-x_desc-disconnectionpct_parcelstats"
        path = write_result(root / f"sub-{subject}" / "ses-01" / "anat" / f"{name}.tsv")
        path.write_text(f"region\tvalue\nr1\t{value}\n")
    cohort = only_cohort(root)
    assert table_path(cohort.entities) == (
        "phenotype/group_ses-01_atlas-x_label-a_stat-disconnectionpct_desc-snm_parcelstats.tsv"
    )
    assert list(cohort_table(cohort)["r1"]) == [5, 7]


def test_names_beyond_ascii_survive(root, tmp_path):
    write_table(root, "Zoë", (1, 2, 3), names=("Área 1", "b", "c"))
    source = write_participants(tmp_path, "participant_id\tcity\nsub-Zoë\tMünchen\n")
    joined = join_columns(source, ["city"])
    path = write_cohort_table(
        tmp_path / "t.tsv", cohort_table(only_cohort(root), joined.table), {}
    )
    read = pd.read_csv(io.StringIO(path.read_text(encoding="utf-8")), sep="\t")
    assert read.loc[0, ["participant_id", "city", "Área 1"]].tolist() == ["sub-Zoë", "München", 1]


def test_pooled_sessions_name_each_participants_own(root):
    write_table(root, "01", (1, 2, 3), session="b")
    write_table(root, "02", (1, 2, 3))
    (cohort,) = group_cohorts(find_results([root]), pool_sessions=True)
    assert list(cohort_table(cohort)["session_id"]) == ["ses-b", "n/a"]
    assert table_file(root, "01", session="b") in cohort.paths
