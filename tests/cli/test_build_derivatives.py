"""``lacuna-nipype connectome build`` from datasets of XCP-D and fMRIPrep, in small."""

import json

import nibabel as nb
import numpy as np
import pandas as pd
import pytest

from lacuna_nipype.cli.connectome import main
from lacuna_nipype.connectomes.functional import iter_subjects, open_connectome
from lacuna_nipype.core.denoising import denoise_series
from lacuna_nipype.core.spaces import template_grid

SHAPE, SPACE, TR = (7, 6, 5), "MNI152NLin2009cAsym", 2.0
AFFINE = np.array([[4.0, 0, 0, -16], [0, 4, 0, -20], [0, 0, 4, -12], [0, 0, 0, 1]])
# As many time points as the run of each participant has.
LENGTHS = {"01": 60, "02": 80, "03": 60}


def brain_of(label):
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:6, 1:5, 1:4] = 1
    mask[int(label), 1, 1] = 0
    return mask


def series_of(label):
    rng = np.random.default_rng(int(label))
    return (300 + 8 * rng.normal(size=(*SHAPE, LENGTHS[label]))).astype(np.float32)


def table_of(label):
    rng = np.random.default_rng([int(label), 7])
    table = pd.DataFrame(rng.normal(size=(LENGTHS[label], 2)), columns=["rot_x", "csf"])
    return table.assign(framewise_displacement=table["rot_x"].diff().abs())


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    nb.save(nb.Nifti1Image(data, AFFINE), path)


@pytest.fixture(scope="module")
def derivatives(tmp_path_factory):
    """Three participants; the name says denoised, or preproc."""
    root = tmp_path_factory.mktemp("derivatives")
    for label in LENGTHS:
        start = f"sub-{label}_task-rest"
        kind = f"{start}_space-{SPACE}_res-4"
        for desc in ("denoised", "preproc"):
            func = root / f"sub-{label}" / "func"
            save(func / f"{kind}_desc-{desc}_bold.nii.gz", series_of(label))
            (func / f"{kind}_desc-{desc}_bold.json").write_text(json.dumps({"RepetitionTime": TR}))
        save(func / f"{kind}_desc-brain_mask.nii.gz", brain_of(label))
        table_of(label).to_csv(
            func / f"{start}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a"
        )
    return root


def build(capsys, out, *words, code=0):
    words = ["build", out, *words, "--space", SPACE, "--layout", "lacuna", "--nprocs", 1]
    assert main([str(word) for word in words]) == code
    printed = capsys.readouterr()
    if code:
        assert "Traceback" not in printed.err
        start, _, reason = printed.err.strip().splitlines()[-1].partition(": ")
        assert start == "lacuna-nipype"
        return reason
    assert printed.out.splitlines()[-1] == f"Connectome: {out}"
    assert ("Repetition time: 2 s" in printed.out) == ("--low-pass" in words)
    return open_connectome(out).files


def common():
    return np.logical_and.reduce([brain_of(label) > 0 for label in LENGTHS])


def test_denoised_images_in_the_voxels_of_all(capsys, tmp_path, derivatives):
    files = build(capsys, tmp_path / "c", "--derivatives", derivatives)
    assert [(file.n_subjects, file.n_timepoints) for file in files] == [(2, 60), (1, 80)]
    found = [series for file in files for series in iter_subjects(file)]
    for label, series in zip(("01", "03", "02"), found, strict=True):
        assert np.array_equal(series, series_of(label)[common()].T)
    mask = nb.load(tmp_path / "c" / "c_desc-brain_mask.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj), common())
    # The same command again has nothing to do.
    before = [file.path.stat().st_mtime_ns for file in files]
    files = build(capsys, tmp_path / "c", "--derivatives", derivatives)
    assert [file.path.stat().st_mtime_ns for file in files] == before


def test_confounds_and_filters(capsys, tmp_path, derivatives):
    (file,) = build(
        capsys, tmp_path / "c", "--derivatives", derivatives, "--desc", "preproc",
        "--participant-label", "sub-02", "--confounds", "rot_?", "framewise_displacement",
        "--high-pass", 0.01, "--low-pass", 0.1, "--detrend", 1, "--standardize",
    )  # fmt: skip
    inside = brain_of("02") > 0
    expected = denoise_series(
        series_of("02")[inside].T, confounds=table_of("02")[["rot_x", "framewise_displacement"]]
        .bfill().to_numpy(), high_pass=0.01, low_pass=0.1, repetition_time=TR, polynomial=1,
        standardize=True,
    )  # fmt: skip
    (found,) = iter_subjects(file)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_same_by_a_pattern(capsys, tmp_path, derivatives):
    """Any images with BIDS names have their masks and tables beside them."""
    cleaning = ("--confounds", "csf", "--low-pass", 0.1)
    first = build(
        capsys, tmp_path / "a", "--derivatives", derivatives, "--desc", "preproc", *cleaning
    )
    second = build(
        capsys, tmp_path / "b", "--images", derivatives / "sub-*/func/*desc-preproc_bold.nii.gz",
        "--mask", "common", *cleaning,
    )  # fmt: skip
    for one, other in zip(first, second, strict=True):
        for series, same in zip(iter_subjects(one), iter_subjects(other), strict=True):
            assert np.array_equal(series, same)


def test_mask_of_templateflow(capsys, tmp_path, monkeypatch):
    grid = template_grid(SPACE, 2)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "home"))
    data = np.zeros((*grid.shape, 12), np.uint8)
    brain = np.zeros(grid.shape, np.uint8)
    brain[40:43, 50:53, 45:47] = 1
    data[brain > 0] = np.random.default_rng(0).integers(0, 255, (18, 12))
    folder = tmp_path / "d" / "sub-1" / "func"
    folder.mkdir(parents=True)
    nb.save(
        nb.Nifti1Image(data, grid.affine),
        folder / f"sub-1_task-rest_space-{SPACE}_desc-denoised_bold.nii.gz",
    )
    words = ("--derivatives", tmp_path / "d", "--mask", "templateflow")
    assert "is missing from" in build(capsys, tmp_path / "c", *words, code=2)
    home = tmp_path / "home" / f"tpl-{SPACE}"
    home.mkdir(parents=True)
    nb.save(
        nb.Nifti1Image(brain, grid.affine), home / f"tpl-{SPACE}_res-02_desc-brain_mask.nii.gz"
    )
    (file,) = build(capsys, tmp_path / "c", *words)
    (found,) = iter_subjects(file)
    assert np.array_equal(found, data[brain > 0].T)


def test_mistakes(capsys, tmp_path, derivatives):
    image = next((derivatives / "sub-01" / "func").glob("*preproc_bold.nii.gz"))
    for words, sentence in (
        ((), "--derivatives"),
        (("--derivatives", derivatives, "--images", image), "not allowed with"),
        (("--derivatives", tmp_path / "gone"), "does not exist"),
        (("--derivatives", derivatives, "--high-pass", "x"), "positive number of Hz"),
        (("--derivatives", derivatives, "--task", "task-"), "is not a label"),
        (("--images", image), "--images needs --mask"),
        (("--images", image, "--mask", "common", "--task", "rest"), "--task chooses among"),
        (
            ("--images", image, "--mask", "common", "--session-label", "1"),
            "--session-label chooses among",
        ),
        (("--derivatives", derivatives, "--desc", "x"), "desc denoised, preproc"),
        (("--derivatives", derivatives, "--participant-label", "04"), "None of the 6 images"),
        (("--derivatives", derivatives, "--repetition-time", "2"), "--repetition-time is for"),
        (("--derivatives", derivatives, "--confounds", "rot_z"), "has no column rot_z"),
        (("--derivatives", derivatives, "--low-pass", "0.3"), "between 0 and 0.25 Hz"),
        (("--derivatives", derivatives, "--mask", "templateflow"), "no brain mask of"),
    ):
        assert sentence in build(capsys, tmp_path / "c", *words, code=2)
        assert not list((tmp_path / "c").glob("*.h5"))


def test_masks_that_are_missing(capsys, tmp_path, derivatives):
    source = derivatives / "sub-01" / "func"
    folder = tmp_path / "d" / "sub-01" / "func"
    folder.mkdir(parents=True)
    name = f"sub-01_task-rest_space-{SPACE}_res-4_desc-denoised_bold.nii.gz"
    (folder / name).write_bytes((source / name).read_bytes())
    line = build(capsys, tmp_path / "c", "--derivatives", tmp_path / "d", code=2)
    assert line.startswith("There is no brain mask")
    assert line.endswith("give --mask IMAGE or --mask templateflow.")
