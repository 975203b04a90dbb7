"""Masks of any names become a dataset: names, refusals, tables, and bytes that stay."""

import gzip
import json
import os

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.core.exceptions import BidsError, ValidationError
from lacuna_nipype.core.spaces import template_grid
from lacuna_nipype.io.bidsify import bidsify, match_participants, merge_rows, plan_names
from lacuna_nipype.io.collect import collect_masks
from lacuna_nipype.io.normalisation import is_native

SPACE, OTHER = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
AFFINE = np.array([[-6.0, 0, 0, 60], [0, 6, 0, -80], [0, 0, 6, -50], [0, 0, 0, 1]])
SHAPE = (20, 24, 20)


def save(path, *, data=None, affine=AFFINE, codes=(4, 1), value=1):
    """Write a mask, of which the number of voxels tells it from others where it matters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        data = np.zeros(SHAPE, np.int16)
        data[4:8, 8:12, 8:12] = value
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    image.header["descrip"] = b"drawn on a Friday"
    nib.save(image, path)
    return path


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in", tmp_path / "out"


@pytest.fixture
def convert(folders):
    def run(**options):
        return bidsify(*folders, **{"space": SPACE, **options})

    return run


def files(folder):
    """Every file and its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("Subject_001.nii.gz", "sub-Subject001/anat/sub-Subject001_space-{S}_label-lesion_mask"),
        ("P 07-left.nii", "sub-P07Left/anat/sub-P07Left_space-{S}_label-lesion_mask"),
        ("07.lesion.nii.gz", "sub-07Lesion/anat/sub-07Lesion_space-{S}_label-lesion_mask"),
        ("Müller.nii", "sub-Muller/anat/sub-Muller_space-{S}_label-lesion_mask"),
        ("sub-01.nii.gz", "sub-01/anat/sub-01_space-{S}_label-lesion_mask"),
        ("sub-01_lesion.nii", "sub-01/anat/sub-01_space-{S}_label-lesion_mask"),
        (
            "sub-01_ses-2_T1w_lesion.nii",
            "sub-01/ses-2/anat/sub-01_ses-2_space-{S}_label-lesion_mask",
        ),
        ("sub-01_label-L_mask.nii.gz", "sub-01/anat/sub-01_space-{S}_label-L_mask"),
        # Kept and put in order; a roi becomes a mask.
        (
            "sub-01_label-L_res-2_run-01_acq-hi_ses-3_roi.nii.gz",
            "sub-01/ses-3/anat/sub-01_ses-3_acq-hi_run-01_space-{S}_res-2_label-L_mask",
        ),
        ("sub-01_desc-lesionAcute_mask.nii", "sub-01/anat/sub-01_space-{S}_desc-lesionAcute_mask"),
        ("sub-01_desc-x_mask.nii", "sub-01/anat/sub-01_space-{S}_label-lesion_desc-x_mask"),
        ("sub-01_space-FSL_label-L_mask.nii", "sub-01/anat/sub-01_space-{S}_label-L_mask"),
        ("sub-01_space-MNI_label-L_mask.nii", "sub-01/anat/sub-01_space-{S}_label-L_mask"),
        ("sub-01/ses-2/lesion.nii", "sub-01/ses-2/anat/sub-01_ses-2_space-{S}_label-lesion_mask"),
    ],
)
def test_names(tmp_path, name, target):
    planned, refused, left_out = plan_names([tmp_path / name], tmp_path, space=SPACE)
    assert (refused, left_out) == ({}, [])
    assert planned[0].target == f"{target.format(S=SPACE)}.nii.gz"


def test_session_and_label_are_for_names_without(tmp_path):
    names = ["a.nii", "sub-01_ses-2_label-L_mask.nii", "sub-02_desc-lesion_mask.nii"]
    images = [tmp_path / name for name in names]
    planned, _, _ = plan_names(images, tmp_path, space=SPACE, session="9", label="stroke")
    assert [mask.target.rpartition("/")[2] for mask in planned] == [
        f"sub-a_ses-9_space-{SPACE}_label-stroke_mask.nii.gz",
        f"sub-01_ses-2_space-{SPACE}_label-L_mask.nii.gz",
        f"sub-02_ses-9_space-{SPACE}_label-stroke_desc-lesion_mask.nii.gz",
    ]


def test_a_relative_of_the_space_stays(tmp_path):
    """2009a and 2009c are one anatomy."""
    path = tmp_path / "sub-01_space-MNI152NLin2009aAsym_label-L_mask.nii"
    planned, _, _ = plan_names([path], tmp_path, space=OTHER)
    assert "space-MNI152NLin2009aAsym" in planned[0].target


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sub-01_space-MNI152NLin2009cAsym_mask.nii", "MNI152NLin2009cAsym"),
        ("sub-01_space-T1w_mask.nii", "T1w"),
        ("sub-01_dir-AP_label-L_mask.nii", "dir-"),
        ("___.nii", "participant"),
    ],
)
def test_names_that_are_refused(tmp_path, name, reason):
    planned, refused, _ = plan_names([tmp_path / name], tmp_path, space=SPACE)
    assert planned == []
    assert reason in refused[tmp_path / name]
    assert str(tmp_path / name) in refused[tmp_path / name]


@pytest.mark.parametrize(
    "name", ["sub-01_T1w.nii", "sub-01_desc-brain_mask.nii", "sub-01_dseg.nii"]
)
def test_other_images_are_left_out(tmp_path, name):
    planned, refused, left_out = plan_names([tmp_path / name], tmp_path, space=SPACE)
    assert (planned, refused, left_out) == ([], {}, [tmp_path / name])


@pytest.mark.parametrize(
    "pair",
    [
        ("P_01.nii", "P-01.nii.gz"),
        ("a.nii", "a.nii.gz"),
        ("one/lesion.nii", "two/lesion.nii"),
        ("P01.nii", "p01.nii"),  # one file on disks that do not tell case
    ],
)
def test_names_that_would_become_one_are_refused_both(tmp_path, pair):
    images = [tmp_path / name for name in (*pair, "other.nii")]
    planned, refused, _ = plan_names(images, tmp_path, space=SPACE)
    assert [mask.source for mask in planned] == images[2:]
    assert set(refused) == set(images[:2])
    for reason in refused.values():
        assert all(str(path) in reason for path in images[:2])


# --- conversion -----------------------------------------------------------------------------


def test_bytes_stay(folders, convert):
    """Of .nii.gz the file itself; of .nii, which is compressed, what is in it."""
    folder, out = folders
    plain = save(folder / "plain.nii", value=255, codes=(2, 0))
    packed = save(folder / "packed.nii.gz", data=np.eye(20, 24)[..., None].repeat(20, 2))
    assert plain.read_bytes()[:2] != b"\x1f\x8b"
    convert()
    first, second = (
        out / f"sub-{name}" / "anat" / f"sub-{name}_space-{SPACE}_label-lesion_mask.nii.gz"
        for name in ("plain", "packed")
    )
    assert gzip.decompress(first.read_bytes()) == plain.read_bytes()
    assert second.read_bytes() == packed.read_bytes()
    image = nib.load(first)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 0)
    assert np.array_equal(image.affine, AFFINE)


def test_compressing_twice_gives_the_same_file(folders, convert, tmp_path):
    save(folders[0] / "a.nii")
    convert()
    os.utime(folders[0] / "a.nii", (1, 1))
    bidsify(folders[0], tmp_path / "again", space=SPACE)
    first, again = files(folders[1]), files(tmp_path / "again")
    assert first == again


def test_sidecars_and_tables(folders, convert):
    folder, out = folders
    save(folder / "deep" / "P 1.nii")
    save(folder / "sub-02_ses-1_label-L_res-6_mask.nii.gz")
    done = convert(manual=True)
    assert len(done.written) == 2
    sidecar = json.loads(next(out.glob("sub-P1/anat/*.json")).read_text())
    assert sidecar == {
        "Type": "Lesion",
        "SpatialReference": "https://templateflow.s3.amazonaws.com/"
        f"tpl-{SPACE}/tpl-{SPACE}_res-01_T1w.nii.gz",
        "Space": SPACE,
        "Manual": True,
        "Sources": ["bids:originals:deep/P%201.nii"],
    }
    assert "6 x 6 x 6" in json.loads(next(out.rglob("*res-6*.json")).read_text())["Resolution"]
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["DatasetLinks"] == {"originals": str(folder)}
    assert (out / "participants.tsv").read_text() == "participant_id\nsub-02\nsub-P1\n"
    header, *rows = [
        line.split("\t") for line in (out / "sourcedata/bidsify.tsv").read_text().splitlines()
    ]
    assert header[:2] == ["bids", "original"]
    mapping = {row[1]: row[0] for row in rows}
    assert set(mapping) == {"deep/P 1.nii", "sub-02_ses-1_label-L_res-6_mask.nii.gz"}
    assert all((out / path).is_file() for path in mapping.values())


@pytest.mark.parametrize(("manual", "said"), [(True, True), (False, False), (None, None)])
def test_nothing_is_said_about_drawing_that_is_not_known(folders, convert, manual, said):
    save(folders[0] / "a.nii")
    convert(manual=manual)
    assert json.loads(next(folders[1].rglob("*mask.json")).read_text()).get("Manual") is said


def test_the_originals_own_sidecar_is_kept(folders, convert):
    save(folders[0] / "a.nii")
    own = {"Manual": False, "Space": "MNI152", "Rater": "AB", "SpatialReference": f"tpl-{SPACE}_x"}
    (folders[0] / "a.json").write_text(json.dumps(own))
    convert()
    sidecar = json.loads(next(folders[1].rglob("*mask.json")).read_text())
    assert sidecar["Space"] == SPACE
    assert {key: sidecar[key] for key in own if key != "Space"} == {
        key: value for key, value in own.items() if key != "Space"
    }


def test_masks_that_cannot_be_used_are_all_named_and_the_others_done(folders, convert):
    folder, out = folders
    save(folder / "good.nii")
    bad = [
        save(folder / "grey.nii", data=np.linspace(0, 1, 8000, dtype="f4").reshape(20, 20, 20)),
        save(folder / "series.nii", data=np.zeros((*SHAPE, 2), np.uint8)),
        save(folder / "nowhere.nii", codes=(0, 0)),
        save(folder / "contradicts.nii"),
        save(folder / "damaged.nii"),
        save(folder / "unpacked.nii"),
    ]
    grid = template_grid(OTHER, 3.0)
    data = np.zeros(grid.shape, np.uint8)
    data[20:30, 20:30, 20:30] = 1
    bad.append(save(folder / "other.nii.gz", data=data, affine=grid.affine))
    (folder / "contradicts.json").write_text(json.dumps({"Space": OTHER}))
    (folder / "damaged.json").write_text("{")
    # No compressed file, for all its name says.
    bad[5] = bad[5].rename(folder / "unpacked.nii.gz")
    done = convert(n_threads=3)
    assert [mask.source.name for mask in done.written] == ["good.nii"]
    assert set(done.refused) == set(bad)
    assert all(str(path) in reason for path, reason in done.refused.items())
    assert {path.name for path in out.glob("sub-*")} == {"sub-good"}
    assert "sub-good" in (out / "participants.tsv").read_text()


def test_nothing_is_written_when_all_is_refused(folders, convert):
    save(folders[0] / "nowhere.nii", codes=(0, 0))
    assert len(convert().refused) == 1
    assert not folders[1].exists()


def test_the_same_again_does_nothing(folders, convert):
    save(folders[0] / "a.nii")
    save(folders[0] / "b.nii.gz")
    convert()
    before = {path: path.stat().st_mtime_ns for path in folders[1].rglob("*")}
    done = convert()
    assert (len(done.written), len(done.unchanged)) == (0, 2)
    assert {path: path.stat().st_mtime_ns for path in folders[1].rglob("*")} == before


def test_a_mask_that_is_compressed_otherwise_is_the_same(folders, convert):
    source = save(folders[0] / "a.nii.gz")
    convert()
    source.write_bytes(gzip.compress(gzip.decompress(source.read_bytes()), 1))
    assert len(convert().unchanged) == 1


def test_another_content_is_never_written_over(folders, convert):
    save(folders[0] / "a.nii")
    save(folders[0] / "b.nii")
    convert()
    before = files(folders[1])
    save(folders[0] / "a.nii", value=255)
    done = convert()
    assert [path.name for path in done.refused] == ["a.nii"]
    assert [mask.source.name for mask in done.unchanged] == ["b.nii"]
    assert files(folders[1]) == before


def test_what_the_user_changed_in_the_dataset_stays(folders, convert):
    save(folders[0] / "a.nii")
    convert()
    (sidecar,) = folders[1].rglob("*mask.json")
    sidecar.write_text('{"Mine": 1}')
    table = folders[1] / "participants.tsv"
    table.write_text("participant_id\tage\nsub-a\t50\n")
    description = json.loads((folders[1] / "dataset_description.json").read_text())
    (folders[1] / "dataset_description.json").write_text(json.dumps(description | {"Name": "My"}))
    save(folders[0] / "b.nii")
    convert()
    assert sidecar.read_text() == '{"Mine": 1}'
    assert table.read_text() == "participant_id\tage\nsub-a\t50\nsub-b\tn/a\n"
    assert json.loads((folders[1] / "dataset_description.json").read_text())["Name"] == "My"


def test_a_second_folder_adds_to_the_dataset(folders, convert, tmp_path):
    save(folders[0] / "a.nii")
    convert(session="1")
    save(tmp_path / "followup" / "a.nii")
    bidsify(tmp_path / "followup", folders[1], space=SPACE, session="2")
    assert [r.key for r in collect_masks(folders[1]).records] == [
        "sub-a_ses-1_label-lesion",
        "sub-a_ses-2_label-lesion",
    ]
    links = json.loads((folders[1] / "dataset_description.json").read_text())["DatasetLinks"]
    assert links == {"originals": str(folders[0]), "originals2": str(tmp_path / "followup")}
    assert (folders[1] / "participants.tsv").read_text() == "participant_id\nsub-a\n"
    assert len((folders[1] / "sourcedata/bidsify.tsv").read_text().splitlines()) == 3


def test_the_dataset_may_lie_within_the_folder(folders, convert):
    save(folders[0] / "a.nii")
    out = folders[0] / "bids"
    for _ in range(2):
        done = bidsify(folders[0], out, space=SPACE)
    assert len(done.unchanged) == 1
    assert done.refused == {}


def test_foreign_datasets_and_wrong_folders(folders, convert, tmp_path):
    folder, out = folders
    with pytest.raises(ValidationError, match=str(folder)):
        convert()
    save(folder / "a.nii")
    with pytest.raises(ValidationError, match="choose another"):
        bidsify(folder, folder, space=SPACE)
    with pytest.raises(ValidationError, match="absent"):
        bidsify(tmp_path / "absent", out, space=SPACE)
    with pytest.raises(ValidationError, match="MNI151"):
        convert(space="MNI151")
    with pytest.raises(ValidationError, match="xyz"):
        convert(pattern="xyz*")
    out.mkdir()
    for description in ('{"Name": "Mine"}', "{"):
        (out / "dataset_description.json").write_text(description)
        with pytest.raises(BidsError, match="another dataset"):
            convert()
    assert len(files(out)) == 1


def test_only_other_images(folders, convert):
    save(folders[0] / "sub-01_T1w.nii.gz")
    with pytest.raises(ValidationError, match="sub-01_T1w"):
        convert()


def test_pattern_hidden_files_and_notices(folders, convert):
    for name in ("a_lesion.nii", "a_T1.nii", ".b_lesion.nii", ".git/c_lesion.nii"):
        save(folders[0] / name)
    save(folders[0] / "sub-01_FLAIR.nii.gz")
    done = convert(pattern="*lesion*")
    assert [mask.source.name for mask in done.written] == ["a_lesion.nii"]
    assert done.notices == ()
    (notice,) = convert(pattern="[!.]*").notices
    assert "sub-01_FLAIR" in notice


def test_native_masks_are_declared_so(folders, convert):
    """In BIDS, a name without a space means the participant's own."""
    save(folders[0] / "a.nii")
    save(folders[0] / "sub-02_space-T1w_label-L_mask.nii.gz")
    grid = template_grid(SPACE, 2.0)
    data = np.zeros(grid.shape, np.uint8)
    data[20:30, 20:30, 20:30] = 1
    standard = save(folders[0] / "standard.nii", data=data, affine=grid.affine)
    done = convert(space="t1w")
    assert set(done.refused) == {standard}
    assert [mask.target for mask in done.written] == [
        "sub-a/anat/sub-a_label-lesion_mask.nii.gz",
        "sub-02/anat/sub-02_label-L_mask.nii.gz",
    ]
    records = collect_masks(folders[1]).records
    assert [record.space for record in records] == ["T1w", "T1w"]
    assert all(is_native(record) for record in records)


# --- participants ---------------------------------------------------------------------------


@pytest.fixture
def masks(tmp_path):
    images = [tmp_path / name for name in ("P_01.nii", "P_02.nii.gz", "sub-03_label-L_mask.nii")]
    return plan_names(images, tmp_path, space=SPACE)[0]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "spellings",
    [
        ("P_01.nii", "P_02.nii.gz", "sub-03_label-L_mask.nii"),
        ("P_01", "P_02", "sub-03_label-L_mask"),
        ("sub-P01", "sub-P02", "sub-03"),
        ("P01", "P02", "03"),
        ("P-01", "P 02", "some/where/sub-03_label-L_mask.nii.gz"),
    ],
)
@pytest.mark.parametrize("key", ["participant_id", "file"])
def test_rows_are_found_by_any_name(tmp_path, masks, spellings, key):
    lines = [f"{key}\tage\tsex", *(f"{name}\t{i}\tF" for i, name in enumerate(spellings))]
    path = write(tmp_path / "p.tsv", "\n".join(lines))
    rows, unmatched = match_participants(path, masks)
    assert unmatched == []
    assert rows == [
        {"participant_id": name, "age": str(i), "sex": "F"}
        for i, name in enumerate(["sub-P01", "sub-P02", "sub-03"])
    ]


def test_the_column_participant_id_need_not_be_the_first(tmp_path, masks):
    path = write(tmp_path / "p.tsv", "age\tparticipant_id\n5\tsub-03\n\n7\tsub-99\n\t P01 \n")
    rows, unmatched = match_participants(path, masks)
    assert rows == [
        {"participant_id": "sub-03", "age": "5"},
        {"participant_id": "sub-P01", "age": "n/a"},
    ]
    assert unmatched == ["sub-99"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("id,age\nP01,5\n", "tab"),
        ("id\tage\nP01\n", "Row 2"),
        ("id\tid\nP01\t1\n", "columns"),
        ("id\t\nP01\t1\n", "columns"),
        ("id\tage\nP01\t5\nP_01.nii\t6\n", "sub-P01"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, masks, text, reason):
    path = write(tmp_path / "p.tsv", text)
    with pytest.raises(ValidationError, match=reason):
        match_participants(path, masks)


def test_a_table_of_participants_in_the_dataset(folders, convert, tmp_path):
    save(folders[0] / "a.nii")
    save(folders[0] / "b.nii")
    save(folders[0] / "bad.nii", codes=(0, 0))
    table = write(tmp_path / "p.tsv", "\ufeffname\tage\na.nii\t50\nbad.nii\t9\nnobody\t1\n")
    done = convert(participants=table)
    assert "nobody" in done.notices[0]
    expected = "participant_id\tage\nsub-a\t50\nsub-b\tn/a\n"
    assert (folders[1] / "participants.tsv").read_text() == expected
    # What was not known may be filled in, what was may not change.
    write(table, "name\tage\nb\t60\n")
    convert(participants=table)
    assert (folders[1] / "participants.tsv").read_text() == expected.replace("n/a", "60")
    write(table, "name\tage\nb\t61\n")
    save(folders[0] / "c.nii")
    with pytest.raises(ValidationError, match="'60'"):
        convert(participants=table)
    assert not (folders[1] / "sub-c").exists()


def test_rows_are_merged_by_key(tmp_path):
    old = [{"k": "b", "x": "1"}, {"k": "a", "x": "n/a"}]
    new = [{"k": "a", "x": "2", "y": "3"}, {"k": "b", "x": "n/a"}]
    assert merge_rows(old, new, "k", tmp_path) == [
        {"k": "a", "x": "2", "y": "3"},
        {"k": "b", "x": "1", "y": "n/a"},
    ]
