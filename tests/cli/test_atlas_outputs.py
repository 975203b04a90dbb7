"""Atlases as a run leaves them in its derivatives."""

import gzip
import json

import nibabel as nb
import numpy as np
import pandas as pd
import pytest

from lacuna_nipype.atlases.catalogue import Atlas, find_bids_atlases
from lacuna_nipype.cli.atlas_outputs import (
    atlas_path,
    atlas_table_uri,
    planned_atlases,
    write_atlases,
)

SPACE = "MNI152NLin6Asym"


@pytest.fixture
def make(tmp_path):
    """Write an atlas with two regions; give it."""

    def write(data=None, *, size=(2, 2, 2), name="a.nii.gz", table=None, **facts):
        if data is None:
            data = np.array([0, 1, 2, 2, 0, 0, 1, 0], np.uint8).reshape(2, 2, 2)
        nb.save(nb.Nifti1Image(data, np.diag([*size, 1])), tmp_path / name)
        labels = (tmp_path / name).with_suffix(".tsv")
        labels.write_text(table or "index\tname\n0\tnothing\n2\tright\n1\tleft\n")
        return Atlas("My A", tmp_path / name, labels, SPACE, "MyA", **facts)

    return write


def read(path):
    return json.loads(path.read_text())


def test_names(make):
    stem = f"tpl-{SPACE}/tpl-{SPACE}_atlas-MyA"
    assert atlas_path(make()) == f"{stem}_res-2_dseg.nii.gz"
    assert atlas_path(make(size=(1.25, 1.25, 1.25)), ".json") == f"{stem}_res-1p25_dseg.json"
    assert atlas_path(make(size=(2, 2, 3))) == f"{stem}_dseg.nii.gz"
    many = make(np.ones((2, 2, 2, 2), np.float32), segmentation="x", scale="2")
    assert atlas_table_uri(many) == f"bids::{stem}_seg-x_scale-2_res-2_probseg.tsv"


def test_all_that_is_planned_is_written_and_nothing_else(make, tmp_path):
    out = tmp_path / "out"
    atlas = make(license="CC0", citation="Me 2021", url="https://example.org", source="user")
    assert write_atlases(out, [atlas], {"raw": tmp_path}) == []
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == set(planned_atlases([atlas]))
    content = read(out / atlas_path(atlas, ".json"))
    assert content["Sources"] == ["bids:raw:a.nii.gz"]
    assert (content["License"], content["Citation"], content["Source"]) == (
        "CC0", "Me 2021", "user",
    )  # fmt: skip
    assert content["ReferencesAndLinks"] == ["https://example.org"]
    assert content["SHA256"] == content["SourceSHA256"]
    assert (out / atlas_path(atlas)).read_bytes() == atlas.image.read_bytes()
    table = pd.read_csv(out / atlas_path(atlas, ".tsv"), sep="\t")
    assert table.to_dict("list") == {
        "index": [2, 1], "name": ["right", "left"], "hemisphere": ["right", "left"],
    }  # fmt: skip
    described = read(out / "atlas-MyA_description.json")
    assert (described["Name"], described["License"]) == ("MyA", "CC0")
    # Another run finds it there.
    (again,) = find_bids_atlases(out)
    assert (again.atlas, again.space) == ("MyA", SPACE)


def test_labels_stored_as_floats_become_whole_numbers(make, tmp_path):
    data = np.array([0, 1, 2, 2, 0, np.nan, 1, -1], np.float32).reshape(2, 2, 2)
    atlas = make(data, name="a.nii")
    write_atlases(tmp_path / "out", [atlas], {})
    image = nb.load(tmp_path / "out" / atlas_path(atlas))
    assert image.get_data_dtype() == np.int16
    assert np.asarray(image.dataobj).ravel().tolist() == [0, 1, 2, 2, 0, 0, 1, 0]


def test_probabilities_keep_their_bytes(make, tmp_path):
    atlas = make(np.random.default_rng(1).random((2, 2, 2, 2)).astype(np.float32), name="a.nii")
    write_atlases(tmp_path / "out", [atlas], {})
    copy = (tmp_path / "out" / atlas_path(atlas)).read_bytes()
    assert gzip.decompress(copy) == atlas.image.read_bytes()
    assert copy[4:8] == b"\0\0\0\0"


def test_colours_that_are_none_are_left_out(make, tmp_path):
    for colour, kept in (("#12aBcd", True), ("reddish", False)):
        atlas = make(table=f"index\tname\tcolor\tlabel\n1\ta\t{colour}\tx\n2\tb\tn/a\ty\n")
        write_atlases(tmp_path / colour, [atlas], {})
        table = pd.read_csv(tmp_path / colour / atlas_path(atlas, ".tsv"), sep="\t")
        assert list(table) == ["index", "name", *(["color"] if kept else [])]


def test_several_images_of_one_name_share_a_description(make, tmp_path):
    out = tmp_path / "out"
    first = make(name="a.nii.gz", scale="100", license="MIT")
    second = make(name="b.nii.gz", scale="200")
    write_atlases(out, [first], {})
    write_atlases(out, [second], {})
    described = read(out / "atlas-MyA_description.json")
    assert sorted(described["Files"]) == [atlas_path(first), atlas_path(second)]
    assert described["License"] == "MIT"
    (out / atlas_path(first)).unlink()
    write_atlases(out, [second], {})
    assert list(read(out / "atlas-MyA_description.json")["Files"]) == [atlas_path(second)]


@pytest.mark.parametrize("ending", [".nii.gz", ".tsv", ".json"])
@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"[1")], ids=["lost", "damaged"]
)
def test_what_is_damaged_is_written_again(make, tmp_path, ending, damage):
    out, atlas = tmp_path / "out", make()
    write_atlases(out, [atlas], {})
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    times = {path: path.stat().st_mtime_ns for path in before}
    assert write_atlases(out, [atlas], {}) == []
    assert {path: path.stat().st_mtime_ns for path in before} == times
    damage(out / atlas_path(atlas, ending))
    damage(out / "atlas-MyA_description.json")
    remarks = write_atlases(out, [atlas], {})
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert remarks == []


def test_another_atlas_of_the_name_is_told(make, tmp_path):
    out = tmp_path / "out"
    write_atlases(out, [make()], {})
    other = make(np.array([1, 1, 2, 2, 0, 0, 1, 0], np.uint8).reshape(2, 2, 2))
    (remark,) = write_atlases(out, [other], {})
    assert "My A" in remark
    assert (out / atlas_path(other)).read_bytes() == other.image.read_bytes()
