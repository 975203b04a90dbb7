"""What a check of masks says about each."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.core.spaces import Grid, template_grid
from lacuna_nipype.io.checking import check_masks, check_table
from lacuna_nipype.io.collect import LesionRecord
from lacuna_nipype.io.normalisation import NativeTransform

SPACE, OTHER = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
GRID = template_grid(SPACE, 2.0)
# A box of 60 x 60 x 60 mm around the origin, in place of a brain.
BRAIN_AFFINE = np.array([[1.0, 0, 0, -30], [0, 1, 0, -30], [0, 0, 1, -30], [0, 0, 0, 1]])
BRAIN = (np.ones((60, 60, 60), dtype=bool), Grid.make((60, 60, 60), BRAIN_AFFINE))


def box(low, high):
    """Voxels of the 2 mm grid whose centres lie between two corners in mm, both included."""
    to_voxel = np.linalg.inv(GRID.affine)
    first, last = (np.rint(to_voxel @ [*corner, 1])[:3].astype(int) for corner in (low, high))
    data = np.zeros(GRID.shape, np.uint8)
    data[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = 1
    return data


def box_data(low=(-20, -10, -10), high=(-12, -2, -2)):
    """By default 5 x 5 x 5 voxels, 1 ml, on the left."""
    return box(low, high)


@pytest.fixture
def record(tmp_path):
    def make(subject="01", data=None, *, grid=GRID, space=SPACE, session=None, problem=""):
        path = tmp_path / f"sub-{subject}" / f"sub-{subject}_mask.nii.gz"
        path.parent.mkdir(exist_ok=True)
        image = nib.Nifti1Image(box_data() if data is None else data, grid.affine)
        image.set_sform(grid.affine, 4)
        nib.save(image, path)
        return LesionRecord(
            path=path, subject=subject, session=session, label="L", acquisition=None, run=None,
            space=space, space_source="entity", dataset="raw", root=Path(tmp_path),
            problem=problem,
        )  # fmt: skip

    return make


def check(record, **options):
    (outcome,) = check_masks([record], brain=BRAIN, **options)
    return outcome


def test_a_good_mask(record):
    found = check(record())
    assert (found.space, found.n_voxels, found.volume_ml) == (SPACE, 125, pytest.approx(1))
    assert (found.hemisphere, found.left_share, found.share_in_brain) == ("left", 1.0, 1.0)
    assert found.warnings == found.errors == ()


@pytest.mark.parametrize(
    ("low", "high", "side", "share"),
    [
        ((-20, 0, 0), (-12, 8, 8), "left", 1.0),
        ((12, 0, 0), (20, 8, 8), "right", 0.0),
        ((-20, 0, 0), (20, 8, 8), "both", 0.5),
        # x from -40 to 4: nineteen planes left of the midline's 2 mm, and one right of it.
        ((-40, 0, 0), (4, 8, 8), "left", 19 / 20),
        ((-40, 0, 0), (6, 8, 8), "both", 19 / 21),
        ((-2, 0, 0), (2, 8, 8), None, None),
    ],
)
def test_hemisphere(record, low, high, side, share):
    found = check(record(data=box(low, high)))
    assert found.hemisphere == side
    assert found.left_share == (None if share is None else pytest.approx(share))


def test_the_side_is_that_of_the_world_whatever_the_order_of_the_array(record):
    """The same lesion stored from right to left (as FSL does) and from left to right."""
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = GRID.shape[0] - 1
    mirrored = Grid.make(GRID.shape, GRID.affine @ flip)
    found = [
        check(record("01", box_data())),
        check(record("02", box_data()[::-1], grid=mirrored)),
        check(record("03", box_data()[::-1])),
    ]
    assert [outcome.hemisphere for outcome in found] == ["left", "left", "right"]


def test_share_in_the_brain(record):
    # x from -48 to -12 in steps of 2; the box reaches to -30.5: -30 is in, -32 is not.
    found = check(record(data=box((-48, 0, 0), (-12, 8, 8))))
    assert found.share_in_brain == pytest.approx(10 / 19)
    (warning,) = found.warnings
    assert "53 %" in warning
    assert str(found.record.path) in warning
    outside = check(record(data=box((-80, 0, 0), (-70, 8, 8))))
    assert outside.share_in_brain == 0
    assert "no voxel" in outside.warnings[0]


def test_a_mask_that_strays_a_little_is_no_reason_to_worry(record):
    found = check(record(data=box((-32, 0, 0), (-12, 8, 8))))
    assert found.share_in_brain == pytest.approx(10 / 11)
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("on_empty", "n_warnings", "n_errors"), [("warn", 1, 0), ("skip", 1, 0), ("error", 0, 1)]
)
def test_an_empty_mask(record, on_empty, n_warnings, n_errors):
    found = check(record(data=np.zeros(GRID.shape, np.uint8)), on_empty=on_empty)
    assert (found.n_voxels, found.volume_ml) == (0, 0)
    assert found.hemisphere is found.share_in_brain is None
    assert (len(found.warnings), len(found.errors)) == (n_warnings, n_errors)


def test_what_is_known_is_kept_beside_an_error(record):
    found = check(record(space=None))
    assert (found.space, found.n_voxels, found.volume_ml) == (None, 125, pytest.approx(1))
    assert found.hemisphere is found.share_in_brain is None
    (error,) = found.errors
    assert f"--mask-space {SPACE}" in error


def test_a_declared_space_that_the_grid_contradicts(record):
    found = check(record(space=OTHER))
    assert found.space == OTHER
    (error,) = found.errors
    assert SPACE in error
    assert OTHER in error
    insisted = check(record(space=OTHER), insist_on_space=True)
    assert insisted.errors == ()
    assert len(insisted.warnings) == 1


def test_all_that_is_wrong_is_said(record):
    """The contradiction in the name, and the values that make no mask."""
    bad = record(data=box_data() * 3, problem="Mask x is in A by its name but in B.")
    found = check(bad)
    assert len(found.errors) == 2
    assert found.n_voxels is None
    readable = check(record("02", problem="Mask x is in A by its name but in B."))
    assert len(readable.errors) == 1
    assert readable.n_voxels == 125


def test_a_native_mask_has_no_place_in_a_standard_brain(record):
    def normalise(record, grid):
        return NativeTransform(Path("/x.h5"), "T1w", SPACE, None, ("Remark.",))

    grid = Grid.make(GRID.shape, GRID.affine + np.diag([0.1, 0, 0, 0]))
    found = check(record(space="T1w", grid=grid), normalise=normalise)
    assert (found.space, found.errors, found.warnings) == ("T1w", (), ("Remark.",))
    assert found.n_voxels == 125
    assert found.hemisphere is found.share_in_brain is None


def test_masks_with_the_voxels_of_another_participants(record):
    records = [
        record("01"),
        record("02"),
        record("03", box((0, 0, 0), (8, 8, 8))),
        record("04", np.zeros(GRID.shape, np.uint8)),
        record("05", np.zeros(GRID.shape, np.uint8)),
    ]
    found = check_masks(records, brain=BRAIN)
    for one, other in ((0, 1), (1, 0)):
        (warning,) = found[one].warnings
        assert str(records[other].path) in warning
    assert found[2].warnings == ()
    assert all("voxels of" not in outcome.warnings[0] for outcome in found[3:])


def test_two_sessions_of_one_participant_may_be_alike(record):
    first = record("01", session="1")
    second = LesionRecord(**{**vars(first), "session": "2"})
    assert all(found.warnings == () for found in check_masks([first, second], brain=BRAIN))


def test_threads_and_bad_masks_change_nothing_for_others(record):
    records = [record(f"{number:02d}", box((0, 0, 2 * number), (8, 8, 20))) for number in range(9)]
    records[4].path.write_bytes(b"no image")
    told = []
    one, four = (
        check_masks(
            records,
            brain=BRAIN,
            n_threads=n_threads,
            progress=lambda done, total: told.append((done, total)),
        )
        for n_threads in (1, 4)
    )
    assert one == four
    assert [found.record for found in one] == records
    assert [len(found.errors) for found in one] == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert told == [(done, 9) for done in range(1, 10)] * 2


def test_table(record):
    records = [record("01", session="a"), record("02", space=None)]
    table = check_table(check_masks(records, brain=BRAIN))
    assert list(table["participant_id"]) == ["sub-01", "sub-02"]
    assert table["session_id"].tolist()[0] == "ses-a"
    assert table["session_id"].isna().tolist() == [False, True]
    assert table["voxels"].tolist() == [125, 125]
    assert table["left_pct"].tolist()[0] == table["brain_pct"].tolist()[0] == 100
    assert table["brain_pct"].isna().tolist() == [False, True]
    assert table["mask"].tolist() == ["sub-01/sub-01_mask.nii.gz", "sub-02/sub-02_mask.nii.gz"]
    assert table["errors"].isna().tolist() == [True, False]
    assert len(check_table([])) == 0
