"""Runs from Python: the results are those of the command, given back as containers."""

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nb
import numpy as np
import pandas as pd
import pytest

import lacuna_nipype
from lacuna_nipype import api
from lacuna_nipype.core.exceptions import ProcessingError, ValidationError
from lacuna_nipype.io import (
    ConnectivityMatrix,
    ParcelData,
    ScalarMetric,
    Tractogram,
    VoxelMap,
    batch_export_to_tsv,
    load_bids_dataset,
    load_derivatives,
    validate_bids_derivatives,
)

ROOT = Path(lacuna_nipype.__file__).parents[1]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
ATLAS = "Demo_seg-7n_scale-100"
SPACE = "MNI152NLin6Asym"
LESION = "sub-01_ses-01_label-acuteinfarct"
KEYS = [
    LESION,
    "sub-02_ses-01_label-acuteinfarct",
    "sub-02_ses-02_label-acuteinfarct",
    "sub-03_label-acuteinfarct",
    "sub-03_label-haemorrhage",
    "sub-04_label-acuteinfarct",
    "sub-05_label-acuteinfarct",
]


def comparable(lesions):
    """All values of lesions, by lesion, analysis and key."""
    found = {}
    for lesion, data in lesions.items():
        found[lesion, "mask"] = np.asarray(data.mask_img.dataobj)
        for analysis, results in data.results.items():
            for key, result in results.items():
                value = result.value if isinstance(result, ScalarMetric) else result.data
                found[lesion, analysis, key] = value
    return found


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, (np.ndarray, pd.Series)):
            np.testing.assert_array_equal(value, second[key], err_msg=str(key))
        else:
            assert value == second[key], key


@pytest.fixture(scope="module")
def api_run(demonstration, tmp_path_factory):
    """A call on the tutorial's dataset, with everything that it can make."""
    work = tmp_path_factory.mktemp("api") / "work"
    lesions = lacuna_nipype.run(
        demonstration.bids_dir,
        functional_connectome=demonstration.functional_connectome,
        structural_connectome=demonstration.structural_connectome,
        atlases=["Demo"],
        work_dir=work,
        nprocs=2,
    )
    return lesions, work


def test_a_call_gives_what_the_command_writes(api_run, multiproc):
    lesions, _ = api_run
    assert list(lesions) == KEYS
    assert_same(comparable(lesions), comparable(load_derivatives(multiproc.out)))


def test_values_are_those_of_the_files(multiproc):
    lesion = load_derivatives(multiproc.out)[LESION]
    stem = multiproc.out / f"sub-01/ses-01/anat/sub-01_ses-01_space-{SPACE}"
    kinds = {}
    for path in sorted(stem.parent.glob("*_statmap.nii.gz")):
        quantity = path.name.split("_stat-")[1].split("_")[0]
        analysis = path.name.split("_desc-")[1].split("_")[0]
        result = lesion.results[analysis][quantity]
        np.testing.assert_array_equal(result.data, nb.load(path).get_fdata())
        assert result.metadata == json.loads(
            path.with_name(path.name.replace(".nii.gz", ".json")).read_text()
        )
        kinds[result.path] = VoxelMap
    for path in sorted(stem.parent.glob("*_parcelstats.tsv")):
        quantity = path.name.split("_stat-")[1].split("_")[0]
        analysis = path.name.split("_desc-")[1].split("_")[0]
        result = lesion.results[analysis][f"{quantity}_atlas-{ATLAS}"]
        table = pd.read_csv(path, sep="\t")
        np.testing.assert_array_equal(result.data, table[quantity])
        assert list(result.data.index) == list(table["name"])
        kinds[result.path] = ParcelData
    loaded = {
        result.path: type(result)
        for results in lesion.results.values()
        for result in results.values()
        if not isinstance(result, ScalarMetric)
    }
    assert loaded == kinds
    assert len(kinds) == 8 + 5
    for analysis in ("rd", "fnm", "snm"):
        numbers = json.loads(
            Path(f"{stem}_label-acuteinfarct_desc-{analysis}_stats.json").read_text()
        )
        for key, value in numbers.items():
            if not isinstance(value, list):
                assert lesion.results[analysis][key].value == value


def test_masks_are_those_of_the_dataset(api_run, demonstration):
    lesions, _ = api_run
    masks = load_bids_dataset(demonstration.bids_dir)
    assert len(masks) == len(KEYS)
    given = masks[f"sub-01_ses-01_space-{SPACE}_label-acuteinfarct_mask"]
    assert given.mask_img.get_fdata().sum() == lesions[LESION].mask_img.get_fdata().sum() > 0
    assert given.space == lesions[LESION].space == SPACE


def test_the_output_is_a_dataset_with_a_record(api_run, validate_bids):
    lesions, work = api_run
    out = work / "derivatives"
    assert validate_bids_derivatives(out) == {"errors": [], "warnings": []}
    (run,) = lesions[LESION].provenance
    assert run["Parameters"]["parcel_atlases"] == ["Demo"]
    assert run["Parameters"]["nprocs"] == 2
    validate_bids(out)


def test_a_table_of_all_lesions(api_run, tmp_path):
    lesions, _ = api_run
    path = batch_export_to_tsv(list(lesions.values()), tmp_path / "table.tsv", "rd")
    table = pd.read_csv(path, sep="\t", dtype={"subject_id": str})
    assert list(table["subject_id"]) == [key.split("_")[0] for key in KEYS]
    columns = [name for name in table if name.startswith(f"rd.damagepct_atlas-{ATLAS}.")]
    assert len(columns) == 100
    for row, lesion in enumerate(lesions.values()):
        damage = lesion.results["rd"][f"damagepct_atlas-{ATLAS}"].data
        np.testing.assert_allclose(table.loc[row, columns].astype(float), damage, rtol=1e-9)


# --- masks that are no dataset --------------------------------------------------------------


@pytest.fixture
def mask_path(demonstration):
    return next(demonstration.bids_dir.glob("sub-04/anat/*_mask.nii.gz"))


def test_images_and_files(demonstration, mask_path, multiproc, tmp_path, capsys):
    atlas = next(demonstration.bids_dir.glob("tpl-*/*_dseg.nii.gz"))
    labels = atlas.with_name(atlas.name.replace(".nii.gz", ".tsv"))
    places = {"work_dir": tmp_path / "work", "output_dir": tmp_path / "out"}
    options = {
        "atlases": [("Own", atlas, labels, SPACE)], "mask_space": SPACE, "plugin": "Linear",
        "structural_connectome": demonstration.structural_connectome,
        "compute_disconnectivity_matrix": True, "keep_intermediate": True,
        # Its masks are not those that were given.
        "derivatives": {"demo": demonstration.bids_dir},
    }  # fmt: skip
    masks = {"image": nb.load(mask_path), "file": mask_path}
    lesions = lacuna_nipype.run(masks, **options, **places)
    assert "2 lesions of 2 participants" in capsys.readouterr().out
    assert list(lesions) == ["sub-file_label-acuteinfarct", "sub-image_label-L"]
    expected = load_derivatives(multiproc.out)["sub-04_label-acuteinfarct"].results
    for lesion in lesions.values():
        damage = lesion.results["rd"]["damagepct_atlas-Own"].data
        np.testing.assert_array_equal(damage, expected["rd"][f"damagepct_atlas-{ATLAS}"].data)
        snm = lesion.results["snm"]
        np.testing.assert_array_equal(
            snm["disconnectionpct"].data, expected["snm"]["disconnectionpct"].data
        )
        cut = snm["streamlineslesion_atlas-Own_relmat"]
        assert isinstance(cut, ConnectivityMatrix)
        assert cut.data.shape == (100, 100)
        assert isinstance(snm["tractography"], Tractogram)
        streamlines = list(snm["tractography"].load().streamlines)
        assert len(streamlines) == snm["StreamlinesHit"].value > 0
    # The same again, with one mask less: no step runs, and the other lesion is not given.
    again = lacuna_nipype.run({"image": nb.load(mask_path)}, **options, **places)
    printed = capsys.readouterr().out
    assert list(again) == ["sub-image_label-L"]
    assert "0 steps ran" in printed or "up to date" in printed


def test_one_file(mask_path, tmp_path):
    lesions = lacuna_nipype.run(
        str(mask_path),
        atlases=["Demo"],
        derivatives={"demo": mask_path.parents[2]},
        work_dir=tmp_path / "work",
        plugin="Linear",
    )
    assert list(lesions) == ["sub-04_label-acuteinfarct"]


# --- the caller's process -------------------------------------------------------------------


def test_nothing_of_the_callers_is_changed(mask_path, tmp_path):
    """Environment, logging and modules stay; and a script needs no guard for its workers."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import logging, os, sys
before = dict(os.environ), list(logging.getLogger().handlers)
import lacuna_nipype
lesions = lacuna_nipype.run(
    {str(mask_path)!r},
    atlases=["Demo"],
    derivatives={{"demo": {str(mask_path.parents[2])!r}}},
    work_dir="work",
    plugin="MultiProc",
)
assert list(lesions) == ["sub-04_label-acuteinfarct"], lesions
assert before == (dict(os.environ), list(logging.getLogger().handlers))
assert "nipype" not in sys.modules
print("end of script")
"""
    )
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("end of script") == 1


@pytest.mark.parametrize("deaf", [False, True])
def test_an_interruption_ends_the_command_and_its_workers(tmp_path, monkeypatch, deaf):
    command = tmp_path / "command"
    ignore = "trap '' INT" if deaf else ":"
    command.write_text(f"#!/bin/sh\n{ignore}\nsleep 60 &\necho started $$\nwait\n")
    command.chmod(0o755)
    monkeypatch.setattr(api.sys, "executable", str(command))
    monkeypatch.setattr(api, "_PATIENCE_S", 0.5)
    printed = []

    def interrupt(text):
        printed.append(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(api.sys.stdout, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        api._run_command([])
    group = int(printed[0].split()[1])
    deadline = time.monotonic() + 10
    while _group_is_alive(group):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _group_is_alive(group):
    """Whether a process of a group runs: a dead one may wait for its parent to notice."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, own = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(own) == group and state != "Z":
            return True
    return False


def test_a_command_that_dies_is_told(tmp_path, monkeypatch):
    command = tmp_path / "command"
    command.write_text("#!/bin/sh\nkill -9 $$\n")
    command.chmod(0o755)
    monkeypatch.setattr(api.sys, "executable", str(command))
    with pytest.raises(ProcessingError, match="-9"):
        api._run_command([])


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({}, ValidationError, "nothing to compute"),
        ({"functional_connectome": "nowhere.h5"}, ValidationError, "nowhere"),
        ({"atlases": ["Demo"], "nprocs": 0}, ValidationError, "whole number"),
        ({"atlases": ["Nothing"]}, ValidationError, "Nothing"),
        ({"atlases": "Demo"}, TypeError, "list"),
        ({"atlases": [("Own", "atlas.nii.gz")]}, TypeError, "labels"),
        ({"atlases": ["Demo"], "nproc": 2}, TypeError, "nprocs"),
        ({"atlases": ["Demo"], "parcel_atlases": ["Demo"]}, TypeError, "parcel_atlases"),
        ({"atlases": ["Demo"], "dry_run": True}, TypeError, "dry_run"),
    ],
)
def test_mistakes_raise_one_sentence(demonstration, tmp_path, options, error, reason):
    with pytest.raises(error, match=reason) as raised:
        lacuna_nipype.run(demonstration.bids_dir, work_dir=tmp_path / "work", **options)
    assert "\n" not in str(raised.value)


def test_masks_that_cannot_be_used_raise(mask_path, tmp_path):
    image = nb.load(mask_path)
    image = nb.Nifti1Image(np.asarray(image.dataobj) * 0.5, image.affine)
    with pytest.raises(ProcessingError, match="binary"):
        lacuna_nipype.run(
            [image], atlases=["Demo"], derivatives=[mask_path.parents[2]],
            mask_space=SPACE, work_dir=tmp_path / "work",
        )  # fmt: skip
    with pytest.raises(TypeError, match="pattern"):
        lacuna_nipype.run([image], atlases=["Demo"], pattern="*", work_dir=tmp_path / "work")


# --- examples -------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(example, tmp_path, monkeypatch):
    assert len(example.read_text().splitlines()) < 25
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example)])
    names = runpy.run_path(str(example), run_name="__main__")
    assert list(names["lesions"]) == KEYS
    table = pd.read_csv(names["folder"] / "lesions.tsv", sep="\t")
    assert table.shape[0] == len(KEYS)
    assert table[f"rd.damagepct_atlas-{ATLAS}.{names['damage'].index[0]}"][0] == pytest.approx(
        names["damage"].iloc[0]
    )
    assert names["network"].ndim == 3
