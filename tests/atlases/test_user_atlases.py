"""Registered atlases: what is accepted, what is refused, and what is stored."""

import json
import os
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.atlases import (
    AtlasNotFound,
    IntegrityError,
    fetch_parcellation,
    list_atlases,
    list_regions,
    register_atlas,
    unregister_atlas,
)
from lacuna_nipype.atlases.catalogue import Atlas, check_atlas
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError

NLIN6, NLIN2009C = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
DATA = Path(os.environ.get("LACUNA_TEST_DATA", "nowhere")) / "parcellations"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="LACUNA_TEST_DATA has no parcellations")


@pytest.fixture
def files(tmp_path, write_labels, data_dir):
    """An image with labels 1, 2 and 300, and their names."""
    image = write_labels(tmp_path / "in" / "mine.nii.gz", NLIN6, 2, [1, 2, 300], np.int16)
    labels = tmp_path / "in" / "mine.tsv"
    labels.write_text("index\tname\tcolor\n2\tb\t#00ff00\n1\ta\tn/a\n300\tc\t#0000ff\n")
    return image, labels


def test_register_list_fetch_unregister(files, data_dir):
    image, labels = files
    entry = register_atlas("My-Atlas", image, labels, "FSL", "Me 2024", "CC0")
    assert (entry.id, entry.kind, entry.space, entry.resolutions) == (
        "My-Atlas", "labelled", NLIN6, (2.0,),
    )  # fmt: skip
    assert (entry.n_regions, entry.source) == (3, "user")
    assert entry.entities == {"atlas": "MyAtlas"}
    assert list_atlases(source="user") == [entry]
    found = fetch_parcellation("my-atlas")
    assert found.from_cache
    assert (found.entry, found.resolution) == (entry, 2.0)
    stem = f"tpl-{NLIN6}_atlas-MyAtlas_res-2_dseg"
    assert found.image == data_dir / "atlases" / "user" / f"tpl-{NLIN6}" / f"{stem}.nii.gz"
    assert found.image.read_bytes() == image.read_bytes()
    assert found.labels.read_text() == (
        "index\tname\tcolor\n2\tb\t#00ff00\n1\ta\tn/a\n300\tc\t#0000ff\n"
    )
    content = json.loads(found.metadata.read_text())
    assert (content["Citation"], content["License"]) == ("Me 2024", "CC0")
    # What was registered no longer matters.
    image.unlink()
    assert fetch_parcellation("My-Atlas").sha256 == found.sha256
    assert unregister_atlas("MY-ATLAS") == [entry]
    assert list_atlases(source="user") == []
    assert not found.image.exists()
    assert labels.exists()


def test_one_name_in_two_spaces_and_no_second_in_one(files, tmp_path, write_labels):
    image, labels = files
    first = register_atlas("A", image, labels, NLIN6)
    other = write_labels(tmp_path / "c.nii.gz", NLIN2009C, 2, [1, 2, 300], np.int16)
    second = register_atlas("A", other, labels, NLIN2009C)
    assert list_atlases(source="user") == [second, first]
    assert register_atlas("A", image, labels, NLIN6, "again").citation == "again"
    finer = write_labels(tmp_path / "f.nii.gz", NLIN6, 1, [1, 2, 300], np.int16)
    with pytest.raises(ValidationError, match="overwrite"):
        register_atlas("a", finer, labels, NLIN6)
    with pytest.raises(ValidationError, match="atlas-A"):
        register_atlas("A-", finer, labels, NLIN6)
    assert register_atlas("a", finer, labels, NLIN6, overwrite=True).resolutions == (1.0,)
    assert [entry.id for entry in list_atlases("FSL", "user")] == ["a"]
    with pytest.raises(ValidationError, match="add its space"):
        fetch_parcellation("A")
    assert len(unregister_atlas("A")) == 2


@pytest.mark.parametrize("name", ["", "siibra:x", "a b", "../a", "-a", "x" * 65, "..."])
def test_names_that_cannot_be_used(files, name):
    with pytest.raises(ValidationError, match="name"):
        register_atlas(name, *files, NLIN6)


def test_unknown_names_get_the_closest(files):
    register_atlas("Brainstem", *files, NLIN6)
    with pytest.raises(AtlasNotFound, match="Brainstem"):
        unregister_atlas("Brainstm")
    with pytest.raises(KeyError):
        unregister_atlas("nothing")


def variant(files, tmp_path, change, dtype=np.float32):
    """Register the atlas with other voxels."""
    source = nb.load(files[0])
    data = change(np.asanyarray(source.dataobj).astype(np.float64))
    image = nb.Nifti1Image(data.astype(dtype), source.affine)
    image.set_sform(source.affine, 4)
    nb.save(image, tmp_path / "variant.nii.gz")
    return register_atlas("V", tmp_path / "variant.nii.gz", files[1], NLIN6)


def test_whole_floats_are_stored_as_integers(files, tmp_path):
    assert variant(files, tmp_path, lambda data: data).n_regions == 3
    stored = nb.load(fetch_parcellation("V").image)
    assert stored.get_data_dtype() == np.int16
    original = np.asanyarray(nb.load(files[0]).dataobj)
    assert np.array_equal(np.asanyarray(stored.dataobj), original)
    assert np.array_equal(stored.affine, nb.load(files[0]).affine)


@pytest.mark.parametrize(
    ("change", "dtype", "message"),
    [
        (lambda data: data + 0.5, np.float32, "whole numbers"),
        (lambda data: data - 1, np.int16, "negative"),
        (lambda data: -data, np.float32, "negative"),
        (lambda data: np.where(data == 2, np.nan, data), np.float32, "finite"),
        (lambda data: data * 0, np.int16, "no label"),
        (lambda data: np.where(data == 2, 77, data), np.int16, "77"),
    ],
)
def test_images_that_are_no_labels(files, tmp_path, change, dtype, message):
    with pytest.raises(ValidationError, match=message):
        variant(files, tmp_path, change, dtype)
    assert list_atlases(source="user") == []


def test_a_truncated_image(files):
    image, labels = files
    image.write_bytes(image.read_bytes()[:-200])
    with pytest.raises(ValidationError, match=r"mine\.nii\.gz.*(damaged|read)"):
        register_atlas("A", image, labels, NLIN6)


def test_an_image_that_states_no_position(files):
    image = nb.load(files[0])
    image.header["sform_code"] = image.header["qform_code"] = 0
    data = np.asanyarray(image.dataobj)
    nb.save(nb.Nifti1Image(data, None, image.header), files[0])
    with pytest.raises(ValidationError, match="does not state"):
        register_atlas("A", *files, NLIN6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index\tname\n1\ta\n2\ta\n300\tc\n", "name a"),
        ("index\tname\n1\ta\n1\tb\n300\tc\n", "index 1"),
        ("index\tname\n1\ta\n2\tb\n", "300"),
        ("index\tname\n1\ta\n2\t\n300\tc\n", "not empty"),
    ],
)
def test_names_missing_or_doubled(files, text, message):
    files[1].write_text(text)
    with pytest.raises(ValidationError, match=message):
        register_atlas("A", *files, NLIN6)


def test_text_files_of_names_become_tables(tmp_path, data_dir, write_labels):
    image = write_labels(tmp_path / "a.nii.gz", NLIN6, 2, [1, 2, 3])
    numbered, plain = tmp_path / "numbered.txt", tmp_path / "plain.txt"
    numbered.write_text("3 Third one\n1 First\n2 Second\n9 Absent\n")
    plain.write_text("First\nSecond\nThird one\n")
    for name, labels in (("N", numbered), ("P", plain)):
        assert register_atlas(name, image, labels, NLIN6).n_regions == 3
        table = list_regions(name).sort_values("index")
        assert table["name"].tolist() == ["First", "Second", "Third one"]
        assert table["index"].tolist() == [1, 2, 3]
    # A list whose first line names the background would put every name one off.
    plain.write_text("Background\nFirst\nSecond\nThird one\n")
    with pytest.raises(ValidationError, match="4 lines"):
        register_atlas("Q", image, plain, NLIN6)


@pytest.mark.parametrize("maximum", [1, 0.4], ids=["binary volumes", "probabilities"])
def test_4d_of_two_kinds(tmp_path, data_dir, write_image, maximum):
    data = np.zeros((5, 6, 7, 3), np.float32)
    for number in range(3):
        data[number, :, :, number] = maximum
    image, labels = write_image(tmp_path / "p.nii", data), tmp_path / "p.txt"
    labels.write_text("a\nb\nc\n")
    entry = register_atlas("P", image, labels, NLIN6)
    assert (entry.kind, entry.n_regions) == ("probabilistic", 3)
    stored = fetch_parcellation("P")
    assert stored.image.name.endswith("_probseg.nii.gz")
    assert np.array_equal(np.asanyarray(nb.load(stored.image).dataobj), data)
    labels.write_text("a\nb\n")
    with pytest.raises(ValidationError, match="2 names for the 3 volumes"):
        register_atlas("Q", image, labels, NLIN6)
    labels.write_text("a\nb\nc\n")
    # A volume of zeros keeps its row.
    write_image(tmp_path / "p.nii", data * [1, 0, 1])
    assert register_atlas("E", image, labels, NLIN6).n_regions == 3
    assert list_regions("E")["volume_mm3"].tolist()[1] == 0
    write_image(tmp_path / "p.nii", -data)
    with pytest.raises(ValidationError, match="negative"):
        register_atlas("Q", image, labels, NLIN6)


def test_the_same_image_is_stored_with_the_same_bytes(tmp_path, data_dir, write_image):
    data = np.zeros((4, 4, 4), np.uint8)
    data[0] = 1
    labels = tmp_path / "l.txt"
    labels.write_text("one\n")
    image = write_image(tmp_path / "a.nii", data)
    register_atlas("A", image, labels, NLIN6)
    first = fetch_parcellation("A").sha256
    unregister_atlas("A")
    os.utime(image, (1, 1))
    register_atlas("A", image, labels, NLIN6)
    assert fetch_parcellation("A").sha256 == first


def test_changed_files_are_noticed(files, caplog):
    register_atlas("A", *files, NLIN6)
    stored = fetch_parcellation("A")
    whole = stored.image.read_bytes()
    stored.image.write_bytes(whole[:-1] + b"x")
    fetch_parcellation("A")
    with pytest.raises(IntegrityError, match="SHA-256"):
        fetch_parcellation("A", verify=True)
    stored.image.write_bytes(whole[:-1])
    with pytest.raises(IntegrityError, match="atlas register"):
        fetch_parcellation("A")
    stored.metadata.write_text("{}")
    assert list_atlases(source="user") == []
    assert "damaged" in caplog.text


# Real files


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize(
    ("name", "space", "count"),
    [
        (
            "tpl-MNI152NLin6Asym_res-01_atlas-Schaefer2018_desc-100Parcels7Networks_dseg",
            NLIN6,
            100,
        ),
        (
            "tpl-MNI152NLin6Asym_res-01_atlas-Schaefer2018_desc-400Parcels17Networks_dseg",
            NLIN6,
            400,
        ),
        ("tpl-MNI152NLin6Asym_res-01_atlas-TianSubcortex_desc-3TS1_dseg", NLIN2009C, 16),
    ],
)
def test_real_atlases_have_their_labels(data_dir, name, space, count):
    image, labels = DATA / f"{name}.nii.gz", DATA / f"{name}.txt"
    assert register_atlas("Real", image, labels, space).n_regions == count
    stored = fetch_parcellation("Real")
    data = np.asanyarray(nb.load(stored.image).dataobj)
    table = list_regions("Real")
    assert (
        sorted(np.unique(data[data > 0]).tolist())
        == sorted(table["index"])
        == list(range(1, count + 1))
    )
    assert table["name"].tolist() == labels.read_text().split()
    assert data.dtype == np.int16
    # Volumes and one centroid against a plain count.
    voxel = abs(np.linalg.det(nb.load(image).affine[:3, :3]))
    original = np.asanyarray(nb.load(image).dataobj)
    row = table.iloc[-1]
    voxels = np.argwhere(original == count)
    assert row["volume_mm3"] == pytest.approx(len(voxels) * voxel)
    centre = nb.affines.apply_affine(nb.load(image).affine, voxels).mean(axis=0)
    np.testing.assert_allclose(row[["x", "y", "z"]].astype(float), centre, atol=1e-6)
    sides = {"left": -1, "right": 1}
    named = table[table["hemisphere"] != ""]
    assert len(named) == count
    assert (np.sign(named["x"]) == named["hemisphere"].map(sides)).all()


@pytest.mark.real_data
@needs_data
@pytest.mark.parametrize(
    ("name", "declared", "actual"),
    [
        ("tpl-MNI152NLin6Asym_res-01_atlas-TianSubcortex_desc-3TS1_dseg", NLIN6, NLIN2009C),
        (
            "tpl-MNI152NLin2009aAsym_res-01_atlas-HCP1065_desc-thr0p1_probseg",
            "MNI152NLin2009aAsym",
            NLIN6,
        ),
    ],
)
def test_real_atlases_in_a_wrong_space_are_refused_by_name(data_dir, name, declared, actual):
    image, labels = DATA / f"{name}.nii.gz", DATA / f"{name}.txt"
    with pytest.raises(SpatialMismatchError, match=name) as caught:
        register_atlas("Real", image, labels, declared)
    assert actual in str(caught.value)
    assert list_atlases(source="user") == []
    with pytest.raises(SpatialMismatchError, match=name):
        check_atlas(Atlas("Real", image, labels, declared, "Real"))


@pytest.mark.real_data
@needs_data
def test_real_tracts_of_binary_volumes(data_dir):
    name = "tpl-MNI152NLin2009aAsym_res-01_atlas-HCP1065_desc-thr0p1_probseg"
    entry = register_atlas("T", DATA / f"{name}.nii.gz", DATA / f"{name}.txt", NLIN6)
    assert (entry.kind, entry.n_regions) == ("probabilistic", 64)
