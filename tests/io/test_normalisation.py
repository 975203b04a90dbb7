"""Which transform a native lesion gets, and whether it puts the lesion where it belongs."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel as nb
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.lesion_resampling import warp_mask
from lacuna_nipype.core.spaces import Grid, template_grid
from lacuna_nipype.core.transforms import load_point_map
from lacuna_nipype.io.collect import LesionRecord, collect_masks, single_mask_record
from lacuna_nipype.io.images import load_mask
from lacuna_nipype.io.normalisation import (
    NativeTransform,
    check_xfm,
    expand_xfm,
    find_native_transform,
    given_transform,
    is_native,
    is_native_space,
    transform_target,
)


def _load_sibling(name):
    path = Path(__file__).parents[1] / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


fmriprep_data = _load_sibling("fmriprep_data")

ASYM6, ASYM2009 = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
OBLIQUE = nb.affines.from_matvec(
    [[0.98, -0.17, 0.05], [0.17, 0.98, -0.08], [-0.03, 0.09, 0.99]], [-70.0, -90, -60]
)


def write_image(path, grid=None, code=1):
    grid = grid or Grid.make((8, 9, 10), OBLIQUE)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nb.Nifti1Image(np.zeros(grid.shape, np.uint8), grid.affine)
    image.set_sform(grid.affine, code)
    nb.save(image, path)
    return path


@pytest.fixture
def make_record(tmp_path):
    """Write an empty native mask of a raw dataset and make its record."""

    def make(space="T1w", *, subject="01", session=None, run=None, acquisition=None, grid=None):
        folder = tmp_path / "raw" / f"sub-{subject}" / (f"ses-{session}" if session else "")
        path = folder / "anat" / f"sub-{subject}_label-L_mask.nii.gz"
        return LesionRecord(
            path=write_image(path, grid), subject=subject, session=session, label="L",
            acquisition=acquisition, run=run, space=space, space_source="entity" if space else "",
            dataset="raw", root=tmp_path / "raw",
        )  # fmt: skip

    return make


@pytest.fixture
def add(tmp_path):
    """Write empty files such as ``sub-01_from-T1w_to-X_mode-image_xfm.h5`` where they belong."""

    def write(*names, dataset="fmriprep"):
        paths = []
        for name in names:
            folders = [chunk for chunk in name.split("_") if chunk[:4] in ("sub-", "ses-")]
            path = (tmp_path / dataset).joinpath(*folders, "anat", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            paths.append(path)
        return paths[0] if len(paths) == 1 else paths

    return write


@pytest.fixture
def find(tmp_path):
    def search(record, *targets, datasets=("fmriprep",), **options):
        roots = {name: tmp_path / name for name in datasets}
        return find_native_transform(record, roots, targets or (ASYM2009,), **options)

    return search


def xfm(stem, target=ASYM2009, source="T1w"):
    return f"{stem}_from-{source}_to-{target}_mode-image_xfm.h5"


# --- is it native? --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "native"),
    [
        *(("T1w", True), ("orig", True), ("individual", True), ("anat", True), ("native", True)),
        *(("FLAIR", True), ("TRACE", True), ("t1W", True)),
        *((ASYM6, False), ("FSL", False), ("MNI152NLin6Asm", False), ("Talairach", False)),
    ],
)
def test_declared_space_decides(tmp_path, make_record, space, native):
    record = make_record(space, grid=template_grid(ASYM6, 2))
    assert is_native(record) is native
    assert is_native_space(space) is native
    record.path.unlink()  # the declaration is enough
    assert is_native(record) is native


STANDARD = [(ASYM6, 1), (ASYM6, 2), (ASYM2009, 1), (ASYM2009, 2), ("MNI152NLin2009bAsym", 0.5)]


@pytest.mark.parametrize(("space", "resolution"), STANDARD)
def test_undeclared_on_a_standard_grid_is_not_native(make_record, space, resolution):
    grid = template_grid(space, resolution)
    flip = nb.affines.from_matvec(np.diag([-1, 1, 1]), [grid.shape[0] - 1, 0, 0])
    for affine in (grid.affine, grid.affine @ flip):  # RAS, and LAS as FSL stores it
        record = make_record(None)
        assert is_native(record, Grid.make(grid.shape, affine)) is False


def test_undeclared_on_the_grid_of_public_lesion_sets_is_not_native(make_record):
    """Colin27's grid is used for several spaces: unknown, but certainly no native image."""
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = -90, -126, -72
    record = make_record(None, grid=Grid.make((181, 217, 181), affine))
    assert is_native(record) is False


def test_undeclared_on_any_other_grid_is_native(make_record):
    record = make_record(None)
    assert is_native(record) is True
    shifted = template_grid(ASYM6, 2).affine.copy()
    shifted[0, 3] += 0.5
    assert is_native(record, Grid.make((91, 109, 91), shifted)) is True


def test_undeclared_and_unreadable(make_record):
    record = make_record(None)
    record.path.write_bytes(b"no image")
    with pytest.raises(ValidationError, match=record.path.name):
        is_native(record)


# --- which file -----------------------------------------------------------------------------


@pytest.mark.parametrize("target", [ASYM2009, ASYM6])
def test_both_spaces_of_fmriprep(make_record, add, find, target):
    path = add(xfm("sub-01", target))
    add(xfm("sub-01", "T1w", target), "sub-01_from-T1w_to-fsnative_mode-image_xfm.txt")
    add(xfm("sub-010", target), "sub-01_from-T1w_to-MNI152NLin6Asym_mode-points_xfm.h5")
    assert find(make_record(), ASYM2009) == NativeTransform(path, "T1w", target)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ((ASYM6,), ASYM6),
        ((ASYM2009,), ASYM2009),
        ((ASYM6, ASYM2009), ASYM6),
        ((ASYM2009, ASYM6), ASYM2009),
        (("MNI152NLin2009bAsym",), ASYM2009),  # one anatomy
        (("MNI152NLin2009aAsym", ASYM6), ASYM2009),
        (("MNI152_2mm",), ASYM6),
    ],
)
def test_target_that_is_wanted(make_record, add, find, wanted, expected):
    add(xfm("sub-01", ASYM2009), xfm("sub-01", ASYM6), xfm("sub-01", "MNI152Lin"))
    found = find(make_record(), *wanted)
    assert found.target == expected
    assert found.path.name == xfm("sub-01", expected)


def test_exact_space_before_its_family(make_record, add, find):
    add(xfm("sub-01", ASYM2009), xfm("sub-01", "MNI152NLin2009bAsym"))
    assert find(make_record(), "MNI152NLin2009bAsym").target == "MNI152NLin2009bAsym"


@pytest.mark.parametrize(
    "name",
    [
        "sub-01_acq-mprage_run-1_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5",
        "sub-01_from-T1w_to-MNI152NLin2009cAsym_res-2_mode-image_xfm.h5",
        "sub-01_res-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5",
        "sub-01_from-T1w_to-MNI152NLin2009cAsym_xfm.h5",
        "sub-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.txt",
    ],
)
def test_other_entities_in_the_name(make_record, add, find, name):
    path = add(name)
    assert find(make_record(), ASYM2009).path == path


def test_session_first_then_the_whole_participant(make_record, add, find):
    whole = add(xfm("sub-01"))
    add(xfm("sub-01_ses-01"))
    record = make_record(session="02")
    assert find(record).path == whole
    own = add(xfm("sub-01_ses-02", ASYM6))
    assert find(record, ASYM2009).path == own
    assert find(make_record()).path == whole


def test_session_named_by_the_folder_only(tmp_path, make_record, find):
    path = tmp_path / "fmriprep" / "sub-01" / "ses-02" / "anat" / xfm("sub-01")
    path.parent.mkdir(parents=True)
    path.touch()
    assert find(make_record(session="02")).path == path
    with pytest.raises(ValidationError):
        find(make_record(session="01"))


def test_several_transforms_are_an_error(make_record, add, find):
    runs = add(xfm("sub-01_run-1"), xfm("sub-01_run-2"), xfm("sub-01_acq-fast_run-2"))
    with pytest.raises(ValidationError, match="--xfm") as caught:
        find(make_record())
    assert all(str(path) in str(caught.value) for path in runs)
    assert find(make_record(run="02")).path == runs[1]
    assert find(make_record(run="2", acquisition="fast")).path == runs[2]
    with pytest.raises(ValidationError, match="--xfm"):
        find(make_record(run="3"))


def test_several_datasets(tmp_path, make_record, add, find):
    one = add(xfm("sub-01"))
    assert find(make_record(), datasets=("other", "fmriprep")).path == one
    (tmp_path / "link").symlink_to(tmp_path / "fmriprep")
    assert find(make_record(), datasets=("fmriprep", "link")).target == ASYM2009
    two = add(xfm("sub-01"), dataset="other")
    with pytest.raises(ValidationError) as caught:
        find(make_record(), datasets=("other", "fmriprep"))
    assert str(one) in str(caught.value)
    assert str(two) in str(caught.value)


def test_the_dataset_of_the_mask_is_searched(make_record, add):
    path = add(xfm("sub-01"), dataset="raw")
    assert find_native_transform(make_record(), [], [ASYM6]).path == path


def test_not_found_says_what_was_looked_for(tmp_path, make_record, add, find):
    add(xfm("sub-01_ses-01"), xfm("sub-02"))
    with pytest.raises(ValidationError) as caught:
        find(make_record(session="02"), ASYM6)
    message = str(caught.value)
    assert "\n" not in message
    anat = tmp_path / "fmriprep" / "sub-01"
    for part in (
        *(xfm("sub-01_ses-02", ASYM6), f"to-{ASYM2009}", str(anat / "ses-02" / "anat")),
        *(str(anat / "anat"), xfm("sub-01_ses-01"), "--xfm", "label-L_mask"),
    ):
        assert part in message


def test_not_found_without_a_declared_space_still_asks_for_it(make_record, find):
    for roots in ([], ["fmriprep"]):
        with pytest.raises(ValidationError) as caught:
            find(make_record(None), datasets=roots)
        assert "--mask-space" in str(caught.value)
        assert "--xfm" in str(caught.value)


def test_another_image_needs_its_own_transform(make_record, add, find):
    add(xfm("sub-01"))
    with pytest.raises(ValidationError, match="from-FLAIR_to-"):
        find(make_record("flair"))
    path = add(xfm("sub-01", source="FLAIR"))
    assert find(make_record("FLAIR")) == NativeTransform(path, "FLAIR", ASYM2009)


def test_standard_mask_is_a_mistake_of_the_caller(make_record, find):
    with pytest.raises(ValueError, match=ASYM6):
        find(make_record(ASYM6))


def test_content_that_was_never_fetched(make_record, add, find):
    path = add(xfm("sub-01"))
    path.unlink()
    path.symlink_to("../../.git/annex/objects/gone")
    with pytest.raises(ValidationError, match="datalad get") as caught:
        find(make_record())
    assert str(path) in str(caught.value)


# --- several T1w images merged to one reference ---------------------------------------------


ORIG = "_from-orig_to-T1w_mode-image_xfm.txt"


@pytest.mark.parametrize(("space", "goes_first"), [("T1w", False), ("orig", True), (None, True)])
def test_merged_sessions(make_record, add, find, space, goes_first):
    """What was drawn on a session's own image first has to go to the reference."""
    whole = add(xfm("sub-01"))
    one, two = add(f"sub-01_ses-01{ORIG}", f"sub-01_ses-02{ORIG}")
    for session, step in (("01", one), ("02", two)):
        found = find(make_record(space, session=session))
        assert found.before == (step if goes_first else None)
        assert found.paths == ((step, whole) if goes_first else (whole,))


@pytest.mark.parametrize("session", [None, "03"])
def test_merged_sessions_and_a_mask_of_none_of_them(make_record, add, find, session):
    add(xfm("sub-01"), f"sub-01_ses-01{ORIG}", f"sub-01_ses-02{ORIG}")
    with pytest.raises(ValidationError, match="sub-01_ses-02_from-orig"):
        find(make_record("orig", session=session))
    assert find(make_record("T1w", session=session)).before is None


def test_merged_runs(make_record, add, find):
    add(xfm("sub-01"))
    _, two = add(f"sub-01_run-1{ORIG}", f"sub-01_run-2{ORIG}")
    with pytest.raises(ValidationError, match="run-2_from-orig"):
        find(make_record("orig"))
    assert find(make_record("orig", run="02")).before == two


def test_steps_of_other_sessions_do_not_concern_a_session_with_its_own_transform(
    make_record, add, find
):
    add(xfm("sub-01_ses-01"), f"sub-01_ses-02{ORIG}")
    found = find(make_record("orig", session="01"))
    assert (found.before, found.notices) == (None, ())


def test_a_session_without_a_step_to_the_common_reference_is_said(make_record, add, find):
    add(xfm("sub-01"))
    (notice,) = find(make_record("orig", session="01")).notices
    assert "ses-01" in notice


def test_step_that_was_never_fetched(make_record, add, find):
    add(xfm("sub-01"))
    step = add(f"sub-01_ses-01{ORIG}")
    step.unlink()
    step.symlink_to("gone")
    with pytest.raises(ValidationError, match=r"from-orig.*datalad get"):
        find(make_record("orig", session="01"))


# --- masks that declare nothing -------------------------------------------------------------


def moved(mm):
    affine = OBLIQUE.copy()
    affine[0, 3] += mm
    return Grid.make((8, 9, 10), affine)


@pytest.mark.parametrize("where", ["fmriprep", "raw"])
def test_undeclared_mask_on_its_t1w_image(make_record, add, find, where):
    path = add(xfm("sub-01"))
    name = "sub-01_desc-preproc_T1w.nii.gz" if where == "fmriprep" else "sub-01_T1w.nii.gz"
    write_image(add(name, dataset=where), moved(0.001))  # as another program rounds
    found = find(make_record(None))
    assert found.path == path
    (notice,) = found.notices
    assert str(path) in notice


def test_undeclared_mask_on_another_grid_is_not_warped_on_suspicion(make_record, add, find):
    add(xfm("sub-01"))
    write_image(add("sub-01_desc-preproc_T1w.nii.gz"), moved(2))
    write_image(add("sub-01_T1w.nii.gz", dataset="raw"), moved(4))
    with pytest.raises(ValidationError, match="--mask-space") as caught:
        find(make_record(None))
    assert "sub-01_desc-preproc_T1w.nii.gz" in str(caught.value)
    assert find(make_record("T1w")).notices == ()


def test_undeclared_mask_with_nothing_to_compare(make_record, add, find):
    """Images in a standard space, or whose content was not fetched, say nothing."""
    add(xfm("sub-01"), "sub-01_desc-preproc_T1w.nii.gz")
    write_image(add(f"sub-01_space-{ASYM6}_desc-preproc_T1w.nii.gz"), template_grid(ASYM6, 2))
    assert len(find(make_record(None)).notices) == 1


def test_undeclared_mask_drawn_on_the_merged_reference(make_record, add, find):
    add(xfm("sub-01"))
    step = add(f"sub-01_ses-02{ORIG}")
    write_image(add("sub-01_desc-preproc_T1w.nii.gz"))
    raw = add("sub-01_ses-02_T1w.nii.gz", dataset="raw")
    write_image(raw, moved(5))
    assert find(make_record(None, session="02")).before is None
    assert find(make_record(None, session="02", grid=moved(5))).before == step
    write_image(raw)  # both grids are the same: BIDS' default, the image of the session
    assert find(make_record(None, session="02")).before == step


def test_grid_that_was_read_already(make_record, add, find):
    add(xfm("sub-01"))
    record = make_record(None)
    write_image(add("sub-01_T1w.nii.gz", dataset="raw"))
    record.path.write_bytes(b"")
    assert find(record, grid=moved(0)).target == ASYM2009


# --- --xfm ----------------------------------------------------------------------------------


def test_placeholders(tmp_path, make_record, monkeypatch):
    path = tmp_path / "data" / "01" / "02" / "t1_to_mni.h5"
    path.parent.mkdir(parents=True)
    path.touch()
    record = make_record(session="02")
    assert expand_xfm(f"{tmp_path}/data/{{subject}}/{{session}}/t1_to_mni.h5", record) == path
    assert expand_xfm(str(path), record) == path
    monkeypatch.chdir(tmp_path)
    assert expand_xfm("data/{subject}/02/t1_to_mni.h5", record) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_xfm("~/data/{subject}/02/t1_to_mni.h5", record) == path


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("{subjct}.h5", "subjct"),
        ("{subject.x}.h5", "subject.x"),
        ("{subject!r}.h5", "subject"),
        ("{}.h5", "{subject}"),
        ("{subject.h5", "braces"),
        ("}.h5", "braces"),
        ("", "empty"),
    ],
)
def test_wrong_patterns(make_record, pattern, part):
    for check in (check_xfm, lambda text: expand_xfm(text, make_record())):
        with pytest.raises(ValidationError, match="--xfm") as caught:
            check(pattern)
        assert part in str(caught.value)


def test_one_file_for_several_participants(make_record):
    records = [make_record(), make_record(session="2"), make_record(subject="02")]
    check_xfm("a.h5", records[:2])
    check_xfm("{subject}.h5", records)
    with pytest.raises(ValidationError, match=r"sub-01, sub-02"):
        check_xfm("a.h5", records)


def test_session_that_is_not_there(make_record):
    with pytest.raises(ValidationError, match="no session"):
        expand_xfm("{session}.h5", make_record())


def test_missing_file(tmp_path, make_record):
    with pytest.raises(ValidationError, match=str(tmp_path / "01.h5")):
        expand_xfm(f"{tmp_path}/{{subject}}.h5", make_record())
    with pytest.raises(ValidationError, match="folder"):
        expand_xfm(str(tmp_path), make_record())
    (tmp_path / "x.h5").symlink_to("gone")
    with pytest.raises(ValidationError, match="datalad get"):
        expand_xfm(str(tmp_path / "x.h5"), make_record())
    (tmp_path / "sub-01.h5").touch()
    with pytest.raises(ValidationError, match=r"sub-\{subject\}"):
        expand_xfm(f"{tmp_path}/{{subject}}.h5", make_record())


def test_transform_of_another_participant(tmp_path, add, make_record):
    path = add(xfm("sub-02"))
    with pytest.raises(ValidationError, match="sub-02"):
        expand_xfm(str(path), make_record())
    # A mask without a BIDS name has no participant that the transform could contradict.
    single = single_mask_record(write_image(tmp_path / "lesion.nii.gz"), "T1w")
    assert given_transform(str(path), single) == NativeTransform(path, "T1w", ASYM2009)


def test_transform_of_another_session_is_said(add, make_record):
    found = given_transform(str(add(xfm("sub-01_ses-01"))), make_record(session="02"))
    (notice,) = found.notices
    assert "ses-01" in notice
    assert "ses-02" in notice


@pytest.mark.parametrize(
    ("name", "sidecar", "flag", "expected"),
    [
        (xfm("sub-01", ASYM6), None, None, ASYM6),
        ("warp_to-MNI152NLin6Asym.mat", None, None, ASYM6),
        ("t1_to_mni.h5", {"Space": ASYM6}, None, ASYM6),
        ("t1_to_mni.h5", {"To": "FSL"}, None, ASYM6),
        ("t1_to_mni.h5", None, "FSL", ASYM6),
        (xfm("sub-01", ASYM6), {"Space": ASYM6}, None, ASYM6),
        (xfm("sub-01", ASYM6), {"Space": ASYM6}, ASYM2009, ASYM2009),
        (xfm("sub-01", "template"), {"Space": ASYM6}, None, ASYM6),
    ],
)
def test_target_of_a_transform(tmp_path, name, sidecar, flag, expected):
    path = tmp_path / name
    if sidecar is not None:
        (tmp_path / f"{name.rpartition('.')[0]}.json").write_text(json.dumps(sidecar))
    assert transform_target(path, flag) == expected


@pytest.mark.parametrize(
    ("name", "sidecar", "flag", "part"),
    [
        ("t1_to_mni.h5", None, None, "--xfm-space"),
        ("t1_to_mni.h5", "{}", None, "--xfm-space"),
        (xfm("sub-01", "MNI152NLin6Asm"), None, None, "--xfm-space"),
        (xfm("sub-01", ASYM6), json.dumps({"Space": ASYM2009}), None, "--xfm-space"),
        ("t1_to_mni.h5", "{", None, "t1_to_mni.json"),
        ("t1_to_mni.h5", "[]", None, "t1_to_mni.json"),
        ("t1_to_mni.h5", None, "MNI152NLin6Asm", "MNI152NLin6Asm"),
        (xfm("sub-01", "T1w", ASYM6), None, None, f"from-T1w_to-{ASYM6}"),
        (xfm("sub-01", "T1w", ASYM6), None, ASYM6, f"from-T1w_to-{ASYM6}"),
        (f"x_from-{ASYM6}.h5", None, ASYM6, f"from-T1w_to-{ASYM6}"),
    ],
)
def test_target_that_is_unknown_or_wrong(tmp_path, name, sidecar, flag, part):
    if sidecar is not None:
        (tmp_path / f"{name.rpartition('.')[0]}.json").write_text(sidecar)
    with pytest.raises(ValidationError) as caught:
        transform_target(tmp_path / name, flag)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_transform_from_another_image(add, make_record):
    path = str(add(xfm("sub-01", source="T2w")))
    with pytest.raises(ValidationError, match="T2w"):
        given_transform(path, make_record("T1w"))
    assert given_transform(path, make_record("T2w")).source == "T2w"
    assert given_transform(path, make_record(None)).source == "T2w"
    assert given_transform(str(add(xfm("sub-01"))), make_record("orig")).source == "T1w"


# --- cost -----------------------------------------------------------------------------------


def test_a_thousand_participants(tmp_path):
    root = tmp_path / "fmriprep"
    labels = [f"{number:04d}" for number in range(1000)]
    for label in labels:
        anat = root / f"sub-{label}" / "anat"
        anat.mkdir(parents=True)
        for target in (ASYM6, ASYM2009):
            (anat / xfm(f"sub-{label}", target)).touch()
            (anat / xfm(f"sub-{label}", "T1w", target)).touch()
    record = LesionRecord(
        path=tmp_path / "mask.nii.gz", subject="", session=None, label="L", acquisition=None,
        run=None, space="T1w", space_source="entity", dataset="raw", root=tmp_path,
    )  # fmt: skip
    start = time.process_time()
    for label in labels:
        own = replace(record, subject=label)
        assert find_native_transform(own, [root], [ASYM6]).path.name == xfm(f"sub-{label}", ASYM6)
    assert time.process_time() - start < 10  # 0.3 s where it was written


# --- the generated study --------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two participants and transforms to both spaces of fMRIPrep."""
    return fmriprep_data.write_fmriprep_study(
        tmp_path_factory.mktemp("study"), targets=(ASYM2009, ASYM6)
    )


@pytest.fixture(scope="module")
def merged_study(tmp_path_factory):
    """One participant whose two sessions were merged; masks on the sessions' own images."""
    return fmriprep_data.write_fmriprep_study(
        tmp_path_factory.mktemp("merged"), subjects=("01",), sessions=("a", "b"), merged=True,
        space=None, field_resolution=3.0, precision="float", inverses=True,
    )  # fmt: skip


def to_lps(points):
    return points * [-1, -1, 1]


def itk_map(path, points):
    """Points (RAS) through an ITK composite or text affine: read by hand, field by scipy."""
    points = to_lps(np.asarray(points, dtype=float))
    if path.suffix != ".h5":
        lines = dict(line.split(": ") for line in path.read_text().splitlines() if ": " in line)
        numbers = np.array(lines["Parameters"].split(), dtype=float)
        assert set(lines["FixedParameters"].split()) == {"0"}
        return to_lps(points @ numbers[:9].reshape(3, 3).T + numbers[9:])
    with h5py.File(path) as file:
        group = file["TransformGroup"]
        for number in sorted(map(int, group), reverse=True)[:-1]:  # the last one first, not "0"
            part = group[str(number)]
            fixed = part["TransformFixedParameters"][:]
            values = part["TransformParameters"][:].astype(float)
            if part["TransformType"][0].startswith(b"Affine"):
                matrix, translation = values[:9].reshape(3, 3), values[9:]
                points = (points - fixed) @ matrix.T + fixed + translation
                continue
            size = fixed[:3].astype(int)
            index = (points - fixed[3:6]) @ fixed[9:].reshape(3, 3) / fixed[6:9]
            field = values.reshape(*size[::-1], 3)
            shift = [
                map_coordinates(field[..., axis], index[..., ::-1].T, order=1, mode="constant").T
                for axis in range(3)
            ]
            points = points + np.stack(shift, axis=-1)
    return to_lps(points)


def independent_warp(mask, paths, grid):
    """Nearest neighbour at the points that each voxel of the target grid comes from."""
    points = fmriprep_data.voxel_centres(grid)
    for path in reversed(paths):
        points = itk_map(path, points)
    image = nb.load(mask)
    index = nb.affines.apply_affine(np.linalg.inv(image.affine), points)
    data = np.asarray(image.dataobj)
    return map_coordinates(data, np.moveaxis(index, -1, 0), order=0, mode="constant") > 0


def warp(mask, paths, grid):
    """Warp a mask as the program does."""
    image = load_mask(mask)
    return warp_mask(image.data, image.grid, grid, load_point_map(paths))


def around(lesion, target, resolution=1.0, margin=24):
    """Part of a target's grid around a lesion: the whole of it takes a minute."""
    whole = template_grid(target, resolution)
    centre = nb.affines.apply_affine(np.linalg.inv(whole.affine), lesion.centre_in(target))
    start = np.round(centre - margin / resolution).astype(int)
    affine = whole.affine.copy()
    affine[:3, 3] = nb.affines.apply_affine(whole.affine, start)
    return Grid.make([int(2 * margin / resolution) + 1] * 3, affine)


def dice(first, second):
    return 2 * np.sum(first & second) / (first.sum() + second.sum())


def centre_of(mask, grid):
    return nb.affines.apply_affine(grid.affine, np.argwhere(mask).mean(axis=0))


def record_for(study, lesion):
    (record,) = [r for r in collect_masks(study.bids).records if r.path == lesion.mask]
    return record


def test_layout_is_what_itk_writes(study):
    """Names, shapes and types as in files of ITK's HDF5 writer, down to its string type."""
    with h5py.File(study.lesions[0].transforms[ASYM2009]) as file:
        assert set(file) == {"HDFVersion", "ITKVersion", "OSName", "OSVersion", "TransformGroup"}
        group = file["TransformGroup"]
        assert list(group) == ["0", "1", "2"]
        assert list(group["0"]) == ["TransformType"]
        types = [group[key]["TransformType"] for key in group]
        assert [kind[0] for kind in types] == [
            b"CompositeTransform_double_3_3",
            b"AffineTransform_double_3_3",
            b"DisplacementFieldTransform_double_3_3",
        ]
        for kind in types:
            assert kind.shape == (1,)
            assert h5py.check_string_dtype(kind.dtype) == ("ascii", None)  # variable length
        for key, n_fixed, n_parameters in (("1", 3, 12), ("2", 18, 97 * 115 * 97 * 3)):
            assert group[key]["TransformFixedParameters"].shape == (n_fixed,)
            assert group[key]["TransformParameters"].shape == (n_parameters,)
            assert group[key]["TransformParameters"].dtype == np.float64
        fixed = group["2"]["TransformFixedParameters"][:]
    # In LPS, the first voxel of a RAS image is at positive x and y, and both axes run backwards.
    assert fixed[:9].tolist() == [97, 115, 97, 96.5, 132.5, -78.5, 2, 2, 2]
    assert fixed[9:].tolist() == [-1, 0, 0, 0, -1, 0, 0, 0, 1]


def test_layout_of_single_precision(merged_study):
    with h5py.File(merged_study.lesions[0].transforms[ASYM2009]) as file:
        part = file["TransformGroup/2"]
        assert part["TransformType"][0] == b"DisplacementFieldTransform_float_3_3"
        assert part["TransformParameters"].dtype == np.float32
        assert part["TransformFixedParameters"].dtype == np.float64


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("target", [ASYM2009, ASYM6])
def test_files_say_the_true_map(study, number, target):
    """By hand, and by nitransforms; both against the formula that the lesions are made with."""
    from nitransforms.manip import load

    lesion = study.lesions[number]
    warp = lesion.warps[target]
    rng = np.random.default_rng(0)
    points = rng.uniform([-70, -100, -50], [70, 70, 80], (400, 3))
    truth = warp.to_native(points)
    assert np.abs(warp.displacement(points)).max() > 2  # the field matters
    path = lesion.transforms[target]
    assert np.abs(itk_map(path, points) - truth).max() < 0.01  # linear interpolation at 2 mm
    assert np.abs(load(path, fmt="itk").map(points) - truth).max() < 1e-4  # cubic
    assert np.abs(warp.to_standard(truth) - points).max() < 1e-9
    for affine in (lesion.affines[target], lesion.affines_mat[target]):
        from nitransforms.linear import load as load_affine

        matrix = load_affine(affine, fmt="itk").matrix
        assert np.allclose(matrix, warp.affine, atol=1e-4)


def test_inverse_files_say_the_inverse_map(merged_study):
    lesion = merged_study.lesions[0]
    path = lesion.transforms[ASYM2009]
    inverse = path.with_name(xfm("sub-01", "T1w", ASYM2009))
    points = np.random.default_rng(0).uniform([-50, -80, -30], [50, 50, 60], (400, 3))
    native = lesion.warps[ASYM2009].to_native(points)
    assert np.abs(itk_map(inverse, native) - points).max() < 0.03  # linear at 3 mm


def test_masks_are_oblique_and_on_both_sides(study):
    (right, left) = study.lesions
    assert right.centre[0] > 0 > left.centre[0]
    for lesion in study.lesions:
        image = nb.load(lesion.mask)
        assert nb.aff2axcodes(image.affine) == ("P", "S", "R")
        assert np.allclose(nb.affines.voxel_sizes(image.affine), 1)
        assert nb.affines.obliquity(image.affine).min() > np.deg2rad(2)
        ball = 4 / 3 * np.pi * lesion.radius**3
        scale = np.linalg.det(lesion.warps[ASYM2009].affine[:3, :3])
        assert np.asarray(image.dataobj).sum() == pytest.approx(ball * scale, rel=0.25)


# --- does the lesion arrive? ----------------------------------------------------------------


@pytest.mark.parametrize("target", [ASYM2009, ASYM6])
@pytest.mark.parametrize("number", [0, 1])
def test_found_transform_takes_the_lesion_home(study, number, target):
    lesion = study.lesions[number]
    record = record_for(study, lesion)
    assert is_native(record)
    found = find_native_transform(record, {"fmriprep": study.fmriprep}, [target])
    assert found.paths == (lesion.transforms[target],)
    grid = around(lesion, target)
    truth = lesion.expected(grid, target)
    warped, accounting = warp(lesion.mask, found.paths, grid)
    by_hand = independent_warp(lesion.mask, found.paths, grid)
    assert np.sum(warped != by_hand) < 3  # on the very edge, by rounding
    # Twice through a 1 mm lattice: half a voxel at the surface of a 9 mm ball.
    assert dice(warped, truth) > 0.95
    assert accounting.volume_ml_after == pytest.approx(truth.sum() / 1000, rel=0.05)
    assert np.linalg.norm(centre_of(warped, grid) - centre_of(truth, grid)) < 0.1
    assert accounting.centre_shift_mm < 0.5
    # On the whole grid nothing else appears; on the coarser one the lesion stays where it is.
    assert warp(lesion.mask, found.paths, template_grid(target, 1))[0].sum() == warped.sum()
    coarse = template_grid(target, 2)
    warped, accounting = warp(lesion.mask, found.paths, coarse)
    assert accounting.volume_ml_after == pytest.approx(truth.sum() / 1000, rel=0.05)
    assert np.linalg.norm(centre_of(warped, coarse) - centre_of(truth, grid)) < 0.3


def test_the_opposite_transform_does_not(merged_study):
    """The tests around would notice."""
    lesion = merged_study.lesions[0]
    path = lesion.transforms[ASYM2009].with_name(xfm("sub-01", "T1w", ASYM2009))
    grid = around(lesion, ASYM2009)
    warped = independent_warp(lesion.mask, [lesion.to_reference, path], grid)
    assert dice(warped, lesion.expected(grid)) < 0.1


def test_given_affine(study):
    for lesion in study.lesions:
        record = record_for(study, lesion)
        grid = around(lesion, ASYM2009)
        truth = lesion.expected(grid, affine_only=True)
        for ending in ("txt", "mat"):
            pattern = (
                f"{study.affines}/sub-{{subject}}_from-T1w_to-{ASYM2009}_mode-image_xfm.{ending}"
            )
            found = given_transform(pattern, record)
            assert found.target == ASYM2009
            warped, _ = warp(lesion.mask, found.paths, grid)
            assert dice(warped, truth) > 0.95
            assert np.linalg.norm(centre_of(warped, grid) - centre_of(truth, grid)) < 0.1
        by_hand = independent_warp(lesion.mask, [lesion.affines[ASYM2009]], grid)
        assert np.sum(warped != by_hand) < 3


def test_merged_sessions_take_the_lesion_home(merged_study):
    for lesion in merged_study.lesions:
        record = record_for(merged_study, lesion)
        assert record.space is None
        assert is_native(record)
        found = find_native_transform(record, [merged_study.fmriprep], [ASYM2009])
        assert found.paths == (lesion.to_reference, lesion.transforms[ASYM2009])
        grid = around(lesion, ASYM2009)
        truth = lesion.expected(grid)
        warped, _ = warp(lesion.mask, found.paths, grid)
        assert np.sum(warped != independent_warp(lesion.mask, found.paths, grid)) < 3
        assert dice(warped, truth) > 0.95
        assert np.linalg.norm(centre_of(warped, grid) - centre_of(truth, grid)) < 0.1
        # Without the step to the reference the lesion would be somewhere else.
        astray = independent_warp(lesion.mask, found.paths[1:], around(lesion, ASYM2009))
        assert dice(astray, truth) < 0.5
