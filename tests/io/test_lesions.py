"""Which masks take part in a run, which do not, and why."""

import dataclasses
from pathlib import Path

import nibabel as nb
import nitransforms
import numpy as np
import pytest

from lacuna_nipype.core.exceptions import EmptyMaskError, SpatialMismatchError
from lacuna_nipype.core.spaces import Grid, template_grid
from lacuna_nipype.io.collect import LesionRecord
from lacuna_nipype.io.lesions import inspect_lesion, inspect_lesions

SPACE, OTHER = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
SHAPE = (9, 10, 8)
AFFINE = np.diag([10.0, 10, 10, 1])
AFFINE[:3, 3] = -40, -50, -30
TARGETS = {"atlas Demo": SPACE}


@pytest.fixture
def make_record(tmp_path):
    """Write a mask with a box of voxels (or any data) and make its record."""

    def make(subject="01", *, box=np.s_[2:5, 2:5, 2:5], data=None, affine=AFFINE, space=SPACE):
        if data is None:
            data = np.zeros(SHAPE, dtype=np.uint8)
            data[box] = 1
        path = tmp_path / f"sub-{subject}_mask.nii.gz"
        image = nb.Nifti1Image(data, affine)
        image.set_sform(affine, 4)
        nb.save(image, path)
        return record_of(path, subject, space)

    return make


def record_of(path, subject="01", space=SPACE):
    return LesionRecord(
        path=Path(path), subject=subject, session=None, label="L", acquisition=None, run=None,
        space=space, space_source="entity", dataset="raw", root=Path(path).parent,
    )  # fmt: skip


def refusal(record, **options):
    """The reason for which a single mask is refused."""
    inspection = inspect_lesions([record], **{"targets": TARGETS, **options})
    assert inspection.lesions == ()
    assert inspection.skipped == {}
    (reason,) = inspection.refused.values()
    assert str(record.path) in reason
    return reason


EMPTY = np.s_[0:0, 0, 0]


def test_good_mask(make_record):
    (lesion,) = inspect_lesions([make_record()], targets=TARGETS).lesions
    assert lesion.n_voxels == 27
    assert lesion.volume_ml == pytest.approx(27)
    assert lesion.space == SPACE
    assert lesion.resolution == "10"
    assert lesion.warnings == ()
    assert lesion.entities == {"subject": "01", "space": SPACE, "label": "L"}


def test_alias_becomes_the_name_of_the_space(make_record):
    (lesion,) = inspect_lesions([make_record(space="MNI152_2mm")], targets=TARGETS).lesions
    assert lesion.space == lesion.entities["space"] == SPACE


def test_voxels_of_no_whole_size_have_no_resolution(make_record):
    affine = AFFINE.copy()
    affine[0, 0] = 9.5
    (lesion,) = inspect_lesions([make_record(affine=affine)], targets=TARGETS).lesions
    assert lesion.resolution is None


def test_missing_file(tmp_path):
    assert "exist" in refusal(record_of(tmp_path / "gone.nii.gz"))


@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.95])
def test_damaged_file(make_record, share):
    data = np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.uint8)
    record = make_record(data=data)
    content = record.path.read_bytes()
    record.path.write_bytes(content[: int(share * len(content))])
    refusal(record)


def test_text_in_place_of_an_image(make_record):
    record = make_record()
    record.path.write_text("version https://git-lfs.github.com/spec/v1\n")
    refusal(record)


@pytest.mark.parametrize(
    "data",
    [
        np.linspace(0, 1, np.prod(SHAPE)).reshape(SHAPE),
        np.full(SHAPE, np.nan),
        np.ones(SHAPE, dtype=np.uint8),
        np.zeros((*SHAPE, 2), dtype=np.uint8),
        np.full(SHAPE, 3, dtype=np.int16),
    ],
    ids=["grey", "nan", "no background", "two volumes", "label 3"],
)
def test_values_that_make_no_mask(make_record, data):
    refusal(make_record(data=data))


def change_header(path, offset, content):
    """Overwrite bytes of an uncompressed NIfTI file."""
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(content)


@pytest.fixture
def plain_record(tmp_path):
    """Record of a good mask that is not compressed."""
    path = tmp_path / "sub-01_mask.nii"
    data = np.zeros(SHAPE, np.uint8)
    data[2:5, 2:5, 2:5] = 1
    nb.save(nb.Nifti1Image(data, AFFINE), path)
    return record_of(path)


def test_unoriented_image(plain_record):
    assert inspect_lesions([plain_record], targets=TARGETS).lesions
    # qform_code and sform_code
    change_header(plain_record.path, 252, bytes(4))
    refusal(plain_record)


def test_space_that_nobody_says(make_record):
    assert "--mask-space" in refusal(make_record(space=None))


def test_space_that_nobody_knows(make_record):
    assert "T1w" in refusal(make_record(space="T1w"))


def on_grid(make_record, grid, **options):
    data = np.zeros(grid.shape, dtype=np.uint8)
    data[30:34, 30:34, 30:34] = 1
    return make_record(data=data, affine=grid.affine, **options)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1)])
@pytest.mark.parametrize("space", [None, "MNI"])
def test_the_grid_hints_at_a_space_that_is_not_said(make_record, flips, space):
    """In any orientation; but it is no proof, so the mask is refused all the same."""
    standard = template_grid(SPACE, 2.0)
    corner = np.where(np.array(flips) < 0, np.array(standard.shape) - 1, 0)
    turn = np.diag([*flips, 1.0])
    turn[:3, 3] = corner
    grid = Grid.make(standard.shape, standard.affine @ turn)
    reason = refusal(on_grid(make_record, grid, space=space))
    assert f"--mask-space {SPACE}" in reason


def test_a_grid_of_no_space_gives_no_hint(make_record):
    reason = refusal(make_record(space=None))
    assert "--mask-space SPACE" in reason
    assert OTHER in reason


def test_the_grid_is_no_hint_for_another_template(make_record):
    """Its symmetric sister has the same grid, and is another anatomy."""
    reason = refusal(on_grid(make_record, template_grid(OTHER, 2.0), space="MNI152NLin2009cSym"))
    assert "--mask-space" not in reason


def test_what_is_wrong_with_a_name_refuses_that_mask_only(make_record):
    bad, good = make_record("01"), make_record("02")
    bad = dataclasses.replace(bad, problem=f"Mask {bad.path} is in X but in Y.")
    inspection = inspect_lesions([bad, good], targets=TARGETS)
    assert [lesion.record for lesion in inspection.lesions] == [good]
    assert inspection.refused == {bad.key: bad.problem}


def test_space_of_another_anatomy(make_record):
    reason = refusal(make_record(space=OTHER))
    assert "atlas Demo" in reason
    assert SPACE in reason
    assert OTHER in reason


def on_the_grid_of_another_space(make_record):
    grid = template_grid(OTHER, 3.0)
    data = np.zeros(grid.shape, dtype=np.uint8)
    data[30:34, 30:34, 30:34] = 1
    return make_record(data=data, affine=grid.affine)


def test_grid_that_contradicts_the_space(make_record):
    assert OTHER in refusal(on_the_grid_of_another_space(make_record))


def test_user_may_insist_on_a_space(make_record):
    record = on_the_grid_of_another_space(make_record)
    (lesion,) = inspect_lesions([record], targets=TARGETS, insist_on_space=True).lesions
    assert lesion.space == SPACE
    assert any(OTHER in warning for warning in lesion.warnings)


def test_insisting_does_not_make_spaces_equal(make_record):
    refusal(make_record(space=OTHER), insist_on_space=True)


def brain(box):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[box] = True
    return mask, Grid.make(SHAPE, AFFINE)


EMPTIES = pytest.mark.parametrize(
    "options",
    [{"box": EMPTY}, {"brain": brain(np.s_[6:, 6:, 6:])}],
    ids=["no voxel", "outside the brain"],
)


@EMPTIES
def test_empty_mask_warns(make_record, options):
    record = make_record(box=options.get("box", np.s_[2:5, 2:5, 2:5]))
    result = inspect_lesions([record], targets=TARGETS, brain=options.get("brain"))
    (lesion,) = result.lesions
    assert len(lesion.warnings) == 1
    assert str(record.path) in lesion.warnings[0]


@EMPTIES
def test_empty_mask_is_skipped(make_record, options):
    record = make_record(box=options.get("box", np.s_[2:5, 2:5, 2:5]))
    result = inspect_lesions(
        [record], targets=TARGETS, brain=options.get("brain"), on_empty="skip"
    )
    assert (result.lesions, result.refused) == ((), {})
    assert set(result.skipped) == {record.key}


@EMPTIES
def test_empty_mask_is_an_error(make_record, options):
    record = make_record(box=options.get("box", np.s_[2:5, 2:5, 2:5]))
    refusal(record, brain=options.get("brain"), on_empty="error")
    with pytest.raises(EmptyMaskError):
        inspect_lesion(record, targets=TARGETS, brain=options.get("brain"), on_empty="error")


def test_partly_inside_the_brain_is_inside(make_record):
    result = inspect_lesions([make_record()], targets=TARGETS, brain=brain(np.s_[4:, 4:, 4:]))
    assert result.lesions[0].warnings == ()


def shift(folder, millimetres):
    """An ITK transform that moves images to the right."""
    matrix = np.eye(4)
    matrix[0, 3] = -millimetres
    path = folder / f"from-T1w_to-MNI_{millimetres}_xfm.txt"
    nitransforms.linear.Affine(matrix).to_filename(path, fmt="itk")
    return path


@pytest.mark.parametrize(("millimetres", "outside"), [(0, True), (30, False)])
def test_a_mask_of_another_space_is_looked_for_where_it_comes_to_lie(
    make_record, tmp_path, millimetres, outside
):
    # Index 2 to 4 on each axis, and index 6 to 8 of the brain along the first.
    record = make_record(space=OTHER, box=np.s_[2:5, 2:5, 2:5])
    there = brain(np.s_[6:, 2:5, 2:5])
    options = {
        "targets": TARGETS,
        "brain": there,
        "obstacle": lambda source, target: None,
        "route": lambda space: [shift(tmp_path, millimetres)],
    }
    for policy, kind in (("skip", "skipped"), ("error", "refused")):
        result = inspect_lesions([record], on_empty=policy, **options)
        assert set(getattr(result, kind)) == ({record.key} if outside else set())
        assert len(result.lesions) == (not outside)


def test_skipping_empty_masks_does_not_skip_bad_ones(make_record):
    refusal(make_record(space=OTHER), on_empty="skip")


def test_unknown_policy():
    with pytest.raises(ValueError, match="on_empty"):
        inspect_lesions([], targets={}, on_empty="ignore")


def test_nothing_to_inspect():
    assert inspect_lesions([], targets={}).lesions == ()


def test_one_bad_mask_prevents_no_other_and_threads_change_nothing(make_record):
    records = [
        make_record(f"{number:02d}", box=EMPTY if number % 4 == 1 else np.s_[1:3, 1:4, 1:4])
        for number in range(12)
    ]
    for number in (3, 8):
        records[number].path.write_bytes(b"no image")
    told = []
    results = [
        inspect_lesions(
            records,
            targets=TARGETS,
            on_empty="skip",
            n_threads=n_threads,
            progress=lambda done, total: told.append((done, total)),
        )
        for n_threads in (1, 4)
    ]
    assert results[0] == results[1]
    assert told == [(done, 12) for done in range(1, 13)] * 2
    assert list(results[0].refused) == [records[3].key, records[8].key]
    assert list(results[0].skipped) == [records[n].key for n in (1, 5, 9)]
    left = [records[n] for n in range(12) if n not in (1, 3, 5, 8, 9)]
    assert [lesion.record for lesion in results[0].lesions] == left


def test_single_mask_raises(make_record):
    with pytest.raises(SpatialMismatchError):
        inspect_lesion(make_record(space=OTHER), targets=TARGETS)


@pytest.mark.parametrize(
    "dtype", [np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), np.complex64]
)
def test_exotic_types_are_refused_and_do_not_end_the_run(make_record, dtype):
    data = np.zeros(SHAPE, dtype=dtype)
    if data.dtype.names:
        data["R"][2:4] = 200
    else:
        data[2:4] = 1j
    refusal(make_record(data=data))


def test_header_with_an_unknown_type_does_not_end_the_run(plain_record):
    change_header(plain_record.path, 70, (9999).to_bytes(2, "little"))
    refusal(plain_record)
