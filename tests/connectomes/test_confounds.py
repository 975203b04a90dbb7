"""Confounds, filters and masks of many subjects on their way into a connectome."""

import json

import h5py
import nibabel as nb
import numpy as np
import pandas as pd
import pytest

from lacuna_nipype.connectomes.build import build_connectome
from lacuna_nipype.connectomes.common_mask import write_common_mask
from lacuna_nipype.connectomes.confounds import (
    read_confounds,
    read_repetition_time,
    select_columns,
)
from lacuna_nipype.connectomes.functional import iter_subjects, open_connectome
from lacuna_nipype.core.denoising import denoise_series
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError

SHAPE, SPACE, N_TIMES = (6, 5, 4), "MNI152NLin6Asym", 60
AFFINE = np.array([[3.0, 0, 0, -9], [0, 3, 0, -12], [0, 0, 3, -6], [0, 0, 0, 1]])


def save(path, data, *, affine=AFFINE, repetition_time=None, orientation=None):
    image = nb.Nifti1Image(data, affine)
    if repetition_time is not None:
        image.header.set_zooms((3, 3, 3, repetition_time))
        image.header.set_xyzt_units("mm", "sec")
    if orientation:
        start = nb.orientations.io_orientation(affine)
        end = nb.orientations.axcodes2ornt(orientation)
        image = image.as_reoriented(nb.orientations.ornt_transform(start, end))
    nb.save(image, path)
    return path


def series_of(seed, n_times=N_TIMES):
    rng = np.random.default_rng(seed)
    return (500 + 9 * rng.normal(size=(*SHAPE, n_times))).astype(np.float32)


def table_of(seed, n_times=N_TIMES, n_outliers=0):
    rng = np.random.default_rng([1, seed])
    table = pd.DataFrame(rng.normal(size=(n_times, 3)), columns=["trans_x", "trans_y", "csf"])
    table["trans_x_derivative1"] = table["trans_x"].diff()
    for number in range(n_outliers):
        table[f"motion_outlier{number:02d}"] = np.arange(n_times) == 7 * number + 3
    return table.astype(float)


@pytest.fixture
def write_table(tmp_path):
    def write(name, table):
        path = tmp_path / f"{name}.tsv"
        table.to_csv(path, sep="\t", index=False, na_rep="n/a")
        return path

    return write


@pytest.fixture
def brain():
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:5, 1:4, 1:3] = 1
    return mask


@pytest.fixture
def mask(tmp_path, brain):
    return save(tmp_path / "mask.nii.gz", brain)


# Tables


def test_columns_by_name_and_pattern(write_table):
    paths = [write_table("a", table_of(0, n_outliers=2)), write_table("b", table_of(1))]
    chosen = select_columns(paths, ["csf", "trans_?", "motion_outlier*", "csf"])
    assert chosen == [
        ["csf", "trans_x", "trans_y", "motion_outlier00", "motion_outlier01"],
        ["csf", "trans_x", "trans_y"],
    ]
    with pytest.raises(ValidationError, match=r"a\.tsv has no column tran_x; there are trans_x"):
        select_columns(paths, ["tran_x"])
    with pytest.raises(ValidationError, match=r"matches rot_\*"):
        select_columns(paths, ["csf", "rot_*"])
    with pytest.raises(ValidationError, match=r"gone\.tsv does not exist"):
        select_columns([paths[0].with_name("gone.tsv")], ["csf"])


def test_values(write_table):
    table = table_of(0)
    path = write_table("a", table)
    values = read_confounds(path, ["trans_x_derivative1", "csf"], N_TIMES)
    assert np.array_equal(values[:, 1], table["csf"])
    assert values[0, 0] == values[1, 0] == table["trans_x_derivative1"][1]
    with pytest.raises(ValidationError, match=r"a\.tsv has 60 rows, but .* 61 time points"):
        read_confounds(path, ["csf"], N_TIMES + 1)


def test_values_that_are_none(write_table, tmp_path):
    table = table_of(0)
    table.loc[9, "csf"] = np.nan
    with pytest.raises(ValidationError, match=r"csf of .* no value for time point 9"):
        read_confounds(write_table("a", table), ["trans_x", "csf"], N_TIMES)
    table["csf"] = table["csf"].astype(object)
    table.loc[9, "csf"] = "many"
    with pytest.raises(ValidationError, match=r"csf of .* not a number"):
        read_confounds(write_table("a", table), ["csf"], N_TIMES)
    (tmp_path / "b.tsv").write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(ValidationError, match=r"b\.tsv is not a table"):
        select_columns([tmp_path / "b.tsv"], ["csf"])
    (tmp_path / "b.tsv").write_text("")
    with pytest.raises(ValidationError, match=r"b\.tsv is not a table"):
        select_columns([tmp_path / "b.tsv"], ["csf"])


def test_repetition_time(tmp_path):
    path = save(tmp_path / "a.nii.gz", series_of(0), repetition_time=2.5)
    assert read_repetition_time(path) == 2.5
    image = nb.load(path)
    image.header.set_xyzt_units("mm", "msec")
    image.header.set_zooms((3, 3, 3, 800))
    nb.save(image, tmp_path / "b.nii")
    assert read_repetition_time(tmp_path / "b.nii") == pytest.approx(0.8)
    (tmp_path / "a.json").write_text('{"RepetitionTime": 0.72}')
    assert read_repetition_time(path) == 0.72
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValidationError, match=r"a\.json is not valid JSON"):
        read_repetition_time(path)
    # 1 without a unit is what nibabel writes for "not known".
    with pytest.raises(ValidationError, match=r"c\.nii\.gz .* --repetition-time"):
        read_repetition_time(save(tmp_path / "c.nii.gz", series_of(0)))


# Into a connectome


@pytest.mark.parametrize("n_procs", [1, 2])
def test_each_subject_is_cleaned_of_its_own(tmp_path, mask, brain, write_table, n_procs):
    data = [series_of(n, N_TIMES + 5 * (n == 1)) for n in range(3)]
    data_tables = [table_of(n, len(values[0, 0, 0]), n) for n, values in enumerate(data)]
    times = [2.0, 1.0, 3.0]
    images = [
        save(tmp_path / f"s{n}.nii.gz", values, repetition_time=times[n])
        for n, values in enumerate(data)
    ]
    tables = [write_table(f"t{n}", table) for n, table in enumerate(data_tables)]
    settings = {
        "space": SPACE, "layout": "lacuna", "subjects_per_file": 1, "n_procs": n_procs,
        "confounds": ["trans_*", "motion_outlier*"], "confounds_tables": tables,
        "high_pass": 0.01, "low_pass": 0.12, "detrend": 1, "standardize": True,
    }  # fmt: skip
    paths = build_connectome(images, mask, tmp_path / "c", **settings)
    files = open_connectome(tmp_path / "c").files
    # Those of one length first.
    for file, number in zip(files, (0, 2, 1), strict=True):
        table = data_tables[number].drop(columns="csf").bfill()
        expected = denoise_series(
            data[number][brain > 0].T, confounds=table.to_numpy(), high_pass=0.01, low_pass=0.12,
            repetition_time=times[number], polynomial=1, standardize=True,
        )  # fmt: skip
        (found,) = iter_subjects(file)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with h5py.File(paths[2]) as handle:
        recipe = json.loads(handle.attrs["recipe"])
    assert recipe["confounds"] == ["trans_*", "motion_outlier*"]
    assert recipe["filters"] == {"high_pass": 0.01, "low_pass": 0.12}
    assert recipe["sources"][0]["repetition_time"] == 1.0
    assert recipe["sources"][0]["confounds"]["name"] == "t1.tsv"
    # Finished files are kept, unless a table has changed.
    before = [path.stat().st_mtime_ns for path in paths]
    build_connectome(images, mask, tmp_path / "c", **settings)
    assert [path.stat().st_mtime_ns for path in paths] == before
    write_table("t1", data_tables[1] * 1.5)
    with pytest.raises(ValidationError, match="--overwrite"):
        build_connectome(images, mask, tmp_path / "c", **settings)


def test_recipe_without_confounds_is_as_it_was(tmp_path, mask):
    """Files of earlier versions are still recognised as finished."""
    image = save(tmp_path / "s.nii.gz", series_of(0))
    (path,) = build_connectome([image], mask, tmp_path / "c", space=SPACE, layout="lacuna")
    with h5py.File(path) as handle:
        recipe = json.loads(handle.attrs["recipe"])
    assert sorted(recipe) == ["cleaning", "format", "kind", "layout", "mask", "sources", "space"]
    assert sorted(recipe["sources"][0]) == ["bytes", "fingerprint", "name"]


def test_what_does_not_go_together(tmp_path, mask, write_table):
    image = save(tmp_path / "s.nii.gz", series_of(0))
    table = write_table("t", table_of(0, N_TIMES + 1))
    for settings, match in (
        ({"confounds": ["csf"]}, "0 confounds tables for 1 images"),
        ({"confounds_tables": [table]}, "1 confounds tables for 1 images and 0 columns"),
        ({"confounds": ["csf"], "confounds_tables": [table]}, r"t\.tsv has 61 rows"),
        ({"low_pass": 0.1}, "repetition time"),
        ({"low_pass": 0.3, "repetition_time": 2.0}, "between 0 and 0.25 Hz"),
    ):
        with pytest.raises(ValidationError, match=match):
            build_connectome([image], mask, tmp_path / "c", space=SPACE, **settings)
        assert not list((tmp_path / "c").glob("**/*"))


# The voxels of all


def test_common_mask(tmp_path, brain):
    others = np.roll(brain, 1, axis=0), np.roll(brain, 1, axis=1) * 3
    paths = [
        save(tmp_path / "a.nii.gz", brain),
        save(tmp_path / "b.nii.gz", others[0], orientation="LSP"),
        save(tmp_path / "c.nii", others[1].astype(np.float32)),
    ]
    target = write_common_mask(paths, tmp_path / "out" / "m.nii.gz")
    image = nb.load(target)
    expected = (brain > 0) & (others[0] > 0) & (others[1] > 0)
    assert np.array_equal(np.asarray(image.dataobj), expected)
    assert np.array_equal(image.affine, AFFINE)
    assert image.get_data_dtype() == np.uint8
    before = target.stat().st_mtime_ns
    write_common_mask(paths, target)
    assert target.stat().st_mtime_ns == before
    with pytest.raises(ValidationError, match="made from other brain masks"):
        write_common_mask(paths[:2], target)
    write_common_mask(paths[:2], target, overwrite=True)
    assert np.count_nonzero(nb.load(target).dataobj) == np.count_nonzero(
        (brain > 0) & (others[0] > 0)
    )


def test_masks_without_a_common_voxel_or_grid(tmp_path, brain):
    first = save(tmp_path / "a.nii.gz", brain)
    with pytest.raises(ValidationError, match="No voxel is in all 2 brain masks"):
        write_common_mask([first, save(tmp_path / "b.nii.gz", 1 - brain)], tmp_path / "m.nii.gz")
    moved = AFFINE.copy()
    moved[1, 3] += 1.5
    with pytest.raises(SpatialMismatchError, match=r"d\.nii\.gz .* not on the grid of .*a\.nii"):
        write_common_mask(
            [first, save(tmp_path / "d.nii.gz", brain, affine=moved)], tmp_path / "n.nii.gz"
        )
