"""Denoised images of datasets as XCP-D and fMRIPrep name them, by their names alone."""

from pathlib import Path

import pytest

from lacuna_nipype.core.exceptions import BidsError
from lacuna_nipype.io.functional_images import (
    ImageFilter,
    find_beside,
    find_functional_images,
)

SPACE = "MNI152NLin2009cAsym"
KIND = f"space-{SPACE}_res-2"


@pytest.fixture
def dataset(tmp_path):
    """Make empty files with these names, each in its participant's func folder."""

    def make(name, *files):
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        for file in files:
            parts = file.split("_")
            folders = [part for part in parts[:2] if part.startswith(("sub-", "ses-"))]
            path = root.joinpath(*folders, "func", file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return root

    return make


def names(paths):
    return [path.name for path in paths]


def test_xcp_d(dataset):
    root = dataset(
        "xcp_d",
        f"sub-02_task-rest_{KIND}_desc-denoised_bold.nii.gz",
        f"sub-01_task-rest_{KIND}_desc-denoised_bold.nii.gz",
        f"sub-01_task-rest_{KIND}_desc-denoised_bold.json",
        f"sub-01_task-rest_{KIND}_desc-denoisedSmoothed_bold.nii.gz",
        f"sub-01_task-rest_{KIND}_desc-brain_mask.nii.gz",
        "sub-01_task-rest_space-MNI152NLin6Asym_res-2_desc-denoised_bold.nii.gz",
        "sub-01_task-rest_space-fsLR_den-91k_desc-denoised_bold.dtseries.nii",
        "sub-01_task-rest_space-T1w_desc-denoised_bold.nii.gz",
        f"sub-01_task-rest_{KIND}_stat-alff_desc-smooth_boldmap.nii.gz",
    )
    found = find_functional_images([root], ImageFilter("mni152nlin2009casym"))
    assert names(found) == [
        f"sub-0{n}_task-rest_{KIND}_desc-denoised_bold.nii.gz" for n in (1, 2)
    ]  # fmt: skip
    smooth = find_functional_images([root], ImageFilter(SPACE, desc="denoisedSmoothed"))
    assert names(smooth) == [f"sub-01_task-rest_{KIND}_desc-denoisedSmoothed_bold.nii.gz"]


def test_filters(dataset):
    root = dataset(
        "d",
        *(
            f"sub-01_ses-{ses}_task-{task}_run-0{run}_space-{SPACE}_res-{res}_desc-denoised_bold"
            ".nii.gz"
            for ses in ("a", "b")
            for task in ("rest", "nback")
            for run in (1, 2)
            for res in (1, 2)
        ),
    )
    wanted = {"sessions": ("b",), "task": "rest", "run": "2", "res": "02"}
    (found,) = find_functional_images([root], ImageFilter(SPACE, **wanted))
    assert found.name.startswith("sub-01_ses-b_task-rest_run-02_")
    assert "_res-2_" in found.name
    for key, flag in (
        ("sessions", "--session-label"), ("task", "--task"), ("run", "--run"), ("res", "--res"),
    ):  # fmt: skip
        fewer = {name: value for name, value in wanted.items() if name != key}
        with pytest.raises(BidsError, match=rf"sub-01 has 2 images .* choose one by {flag}\."):
            find_functional_images([root], ImageFilter(SPACE, **fewer))


def test_participants(dataset):
    root = dataset(
        "d", *(f"sub-{n}_task-rest_{KIND}_desc-denoised_bold.nii" for n in ("1", "2", "10"))
    )
    found = find_functional_images([root], ImageFilter(SPACE, participants=("2", "10")))
    assert [path.name[:6].rstrip("_") for path in found] == ["sub-10", "sub-2"]
    with pytest.raises(BidsError, match="sub-3 has no image"):
        find_functional_images([root], ImageFilter(SPACE, participants=("2", "3")))


def test_one_image_twice(dataset):
    name = f"sub-1_task-rest_{KIND}_desc-denoised_bold.nii"
    root = dataset("d", name, f"{name}.gz")
    with pytest.raises(BidsError, match="remove one of them"):
        find_functional_images([root], ImageFilter(SPACE))
    first, second = dataset("a", name), dataset("b", name)
    with pytest.raises(BidsError, match="remove one of them"):
        find_functional_images([first, second], ImageFilter(SPACE))
    other = dataset("c", name, name.replace("_task", "_dir-AP_task"))
    with pytest.raises(BidsError, match="--images"):
        find_functional_images([other], ImageFilter(SPACE))


def test_nothing_found_says_what_is_there(dataset, tmp_path):
    root = dataset("d", f"sub-1_task-rest_{KIND}_desc-preproc_bold.nii.gz")
    with pytest.raises(
        BidsError,
        match=rf"None of the 1 images in .* is space-{SPACE}_desc-denoised_task-x; there are "
        rf"space {SPACE}; desc preproc; res 2; task rest\.",
    ):
        find_functional_images([root], ImageFilter(SPACE, task="x"))
    with pytest.raises(BidsError, match="holds no image"):
        find_functional_images([dataset("empty")], ImageFilter(SPACE))
    with pytest.raises(BidsError, match="is not a folder"):
        find_functional_images([tmp_path / "gone"], ImageFilter(SPACE))


# What lies beside an image


@pytest.fixture
def fmriprep(dataset):
    return dataset(
        "fmriprep",
        *(
            f"sub-{sub}_task-rest_run-{run}_{part}"
            for sub in ("1", "2")
            for run in (1, 2)
            for part in (
                f"{KIND}_desc-preproc_bold.nii.gz",
                f"{KIND}_desc-brain_mask.nii.gz",
                f"space-{SPACE}_res-1_desc-brain_mask.nii.gz",
                "space-T1w_desc-brain_mask.nii.gz",
                "desc-brain_mask.nii.gz",
                "desc-confounds_timeseries.tsv",
                "desc-confounds_timeseries.json",
            )
        ),
        f"sub-1_{KIND}_desc-brain_mask.nii.gz",
    )


def test_masks_and_tables(fmriprep):
    images = find_functional_images([fmriprep], ImageFilter(SPACE, "preproc", run="2"))
    for folders in ([fmriprep], []):
        masks = find_beside(images, folders, "mask", SPACE)
        assert names(masks) == [
            f"sub-{n}_task-rest_run-2_{KIND}_desc-brain_mask.nii.gz" for n in (1, 2)
        ]
        tables = find_beside(images, folders, "confounds")
        assert names(tables) == [
            f"sub-{n}_task-rest_run-2_desc-confounds_timeseries.tsv" for n in (1, 2)
        ]


def test_table_in_another_dataset_and_with_fewer_entities(dataset, fmriprep):
    xcp_d = dataset("xcp_d", f"sub-1_task-rest_run-1_{KIND}_desc-denoised_bold.nii.gz")
    images = find_functional_images([xcp_d], ImageFilter(SPACE))
    (table,) = find_beside(images, [xcp_d, fmriprep], "confounds")
    assert table.name == "sub-1_task-rest_run-1_desc-confounds_timeseries.tsv"
    old = dataset("old", "sub-1_task-rest_desc-confounds_regressors.tsv")
    assert names(find_beside(images, [old], "confounds")) == [
        "sub-1_task-rest_desc-confounds_regressors.tsv"
    ]
    # Nearest in entities, not in folders.
    assert find_beside(images, [old, fmriprep], "confounds") == [table]


def test_nothing_beside(dataset, fmriprep):
    xcp_d = dataset("xcp_d", f"sub-1_task-rest_run-3_{KIND}_desc-denoised_bold.nii.gz")
    images = find_functional_images([xcp_d], ImageFilter(SPACE))
    with pytest.raises(BidsError, match=r"no confounds table .* for .*run-3.* in .*fmriprep"):
        find_beside(images, [fmriprep], "confounds")
    with pytest.raises(BidsError, match="no brain mask"):
        find_beside(images, [fmriprep], "mask", SPACE)
    # An anatomical mask of the same space is on the grid of the anatomy.
    with pytest.raises(BidsError, match="no brain mask"):
        find_beside([Path(f"sub-1_task-x_{KIND}_bold.nii.gz")], [fmriprep], "mask", SPACE)


def test_two_tables(dataset, fmriprep):
    again = dataset("again", "sub-1_task-rest_run-1_desc-confounds_timeseries.tsv")
    images = find_functional_images(
        [fmriprep], ImageFilter(SPACE, "preproc", run="1", participants=("1",))
    )
    with pytest.raises(BidsError, match=r"Both .* and .* fit"):
        find_beside(images, [fmriprep, again], "confounds")
