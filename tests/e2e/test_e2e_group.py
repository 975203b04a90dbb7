"""The group level on the tutorial's cohort, and on the real lesions."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import defaultdict
from pathlib import Path

import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from pages import by_id, cards, facts, parse, table_rows, words

SPACE = "MNI152NLin6Asym"
DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None
ATLAS_STEM = "tpl-MNI152NLin6Asym_res-01_atlas-Schaefer2018_desc-100Parcels7Networks_dseg"


def read(path):
    return pd.read_csv(path, sep="\t", keep_default_na=False, na_values=["n/a"], dtype={0: str})


def expected_tables(out):
    """All parcel tables by the name of their group's table, with pandas and names alone."""
    frames = defaultdict(dict)
    for path in out.glob("sub-*/**/*_parcelstats.tsv"):
        subject, rest = path.name.split("_", 1)
        quantity = rest.split("_stat-")[1].split("_")[0]
        table = pd.read_csv(path, sep="\t", keep_default_na=False, na_values=["n/a"])
        frames[f"group_{rest}"][subject] = table.set_index("name")[quantity]
    return {name: pd.DataFrame(columns).T.sort_index() for name, columns in frames.items()}


def compare_tables(out):
    expected = expected_tables(out)
    written = {path.name: read(path) for path in (out / "phenotype").glob("*.tsv")}
    assert set(written) == set(expected)
    for name, table in written.items():
        regions = list(expected[name].columns)
        assert list(table.columns)[-len(regions) :] == regions
        assert list(table["participant_id"]) == list(expected[name].index)
        np.testing.assert_allclose(
            table[regions].to_numpy(float), expected[name].to_numpy(float), rtol=1e-9
        )
    return written


def volume(path):
    """Voxels in the order of RAS, whatever the order in the file."""
    return np.asarray(nb.as_closest_canonical(nb.load(path)).dataobj)


def stack(out, ending):
    """Maps of participants by what their names share."""
    found = defaultdict(list)
    for path in sorted(out.glob(f"sub-*/**/*{ending}")):
        found[path.name.split("_", 1)[1]].append(volume(path))
    return {name: np.stack(maps) for name, maps in found.items()}


def group_map(out, name, ending):
    """The group's map that belongs to participants' maps of a name (without their ending)."""
    session = f"ses-{name.split('ses-')[1].split('_')[0]}" if "ses-" in name else ""
    start = name.replace(f"_space-{SPACE}", "").replace(f"space-{SPACE}_", "")
    folder = out / f"tpl-{SPACE}" / session / "anat"
    (path,) = folder.glob(f"tpl-{SPACE}_{start}_{ending}.nii.gz")
    return volume(path)


def compare_overlaps(out, *, t=5.0):
    compared = 0
    for name, maps in stack(out, "_desc-lesion_mask.nii.gz").items():
        stem = name.removesuffix("_desc-lesion_mask.nii.gz")
        count = group_map(out, stem, "stat-count_desc-lesion_statmap")
        np.testing.assert_array_equal(count, (maps > 0).sum(axis=0))
        share = group_map(out, stem, "desc-overlap_probseg")
        np.testing.assert_allclose(share, (maps > 0).mean(axis=0), rtol=1e-6)
        compared += 1
    for name, maps in stack(out, "_stat-t_desc-fnm_statmap.nii.gz").items():
        stem = name.removesuffix("_stat-t_desc-fnm_statmap.nii.gz")
        for sign, word in ((1, "positive"), (-1, "negative")):
            share = group_map(out, stem, f"stat-overlap{word}_desc-fnm_statmap")
            np.testing.assert_allclose(share, (sign * maps > t).mean(axis=0), rtol=1e-6)
            compared += 1
    for name, maps in stack(out, "_stat-disconnectionpct_desc-snm_statmap.nii.gz").items():
        stem = name.removesuffix("_stat-disconnectionpct_desc-snm_statmap.nii.gz")
        share = group_map(out, stem, "stat-overlap_desc-snm_statmap")
        np.testing.assert_allclose(share, (maps >= 50).mean(axis=0), rtol=1e-6)
        compared += 1
    return compared


@pytest.fixture(scope="module")
def cohort(multiproc, tmp_path_factory):
    """A copy of the results of the participant level."""
    folder = tmp_path_factory.mktemp("group")
    shutil.copytree(multiproc.out, folder / "out")
    return folder


@pytest.fixture(scope="module")
def group_arguments(cohort, demonstration):
    return (
        *(demonstration.bids_dir, cohort / "out", "group", "-w", cohort / "work"),
        *("--participants-columns", "age", "symptom_score", "--plugin", "Linear"),
    )


@pytest.fixture(scope="module")
def finished(cohort, group_arguments, run_command):
    process = run_command(*group_arguments)
    assert process.returncode == 0, process.stdout
    return cohort / "out"


def test_tables_equal_what_pandas_makes(finished, demonstration):
    tables = compare_tables(finished)
    # Two sessions, masks without a session, and a second label.
    assert {name.split("_space-")[0] for name in tables} == {
        "group_ses-01", "group_ses-02", "group",
    }  # fmt: skip
    people = read(demonstration.bids_dir / "participants.tsv").set_index("participant_id")
    for table in tables.values():
        np.testing.assert_array_equal(
            table["symptom_score"], people.loc[table["participant_id"], "symptom_score"]
        )


def test_overlaps_equal_a_sum(finished):
    assert compare_overlaps(finished) >= 16


def test_sidecars_say_where_results_come_from(finished):
    path = next((finished / f"tpl-{SPACE}" / "ses-01").glob("anat/*overlappositive*.json"))
    sidecar = json.loads(path.read_text())
    assert sidecar["NumberOfParticipants"] == len(sidecar["Sources"]) == 2
    assert sidecar["Threshold"] == {"Comparison": "above", "Value": 5.0}
    for source in sidecar["Sources"]:
        assert (finished / source.removeprefix("bids::")).is_file()
    table = next((finished / "phenotype").glob("*.json"))
    content = json.loads(table.read_text())
    assert {"Sources", "Parameters", "age"} <= set(content)


def test_second_run_does_nothing(finished, group_arguments, run_command):
    process = run_command(*group_arguments)
    assert process.returncode == 0, process.stdout
    assert "\n0 steps ran" in f"\n{process.stdout}"


def test_overwrite_does_all_again(finished, group_arguments, run_command):
    tables = {path: path.read_bytes() for path in (finished / "phenotype").glob("*.tsv")}
    process = run_command(*group_arguments, "--overwrite")
    assert process.returncode == 0, process.stdout
    assert ", 0 were up to date, 0 failed" in process.stdout
    assert {path: path.read_bytes() for path in tables} == tables


def test_a_result_that_was_changed_is_stored_again(finished, group_arguments, run_command):
    table = next((finished / "phenotype").glob("*.tsv"))
    kept = table.read_bytes(), table.with_suffix(".json").read_bytes()
    for path in (table, table.with_suffix(".json")):
        path.write_text("{}\n")
        # Later than what was stored by more than the clocks of file systems differ.
        os.utime(path, times=(time.time() + 10, time.time() + 10))
        process = run_command(*group_arguments)
        assert process.returncode == 0, process.stdout
        assert "\n1 steps ran" in f"\n{process.stdout}"
    assert (table.read_bytes(), table.with_suffix(".json").read_bytes()) == kept


def test_association_of_the_pooled_cohort(finished, group_arguments, run_command, validate_bids):
    process = run_command(
        *group_arguments,
        *("--score", "symptom_score", "--pool-sessions", "--permutations", 150),
        *("--session-label", "01"),
    )
    # Two participants of one session: too few, said in one sentence.
    assert process.returncode == 2
    assert process.stdout.splitlines()[-1].startswith("lacuna-nipype: 2 participants are too few")
    process = run_command(
        *group_arguments,
        *("--score", "symptom_score", "--pool-sessions", "--permutations", 150),
    )
    assert process.returncode == 0, process.stdout
    assert "5 participants have 120 different orders" in process.stdout
    start = f"tpl-{SPACE}_res-4_label-acuteinfarct_model-symptomScore"
    folder = finished / f"tpl-{SPACE}" / "anat"
    made = {path.name.removeprefix(start).partition(".")[0] for path in folder.glob(f"{start}*")}
    assert made == {
        "_stat-t_desc-fnm_statmap", "_stat-logpfwe_desc-fnm_statmap",
        "_stat-partialr_desc-fnm_statmap", "_stat-tested_desc-fnm_statmap",
        "_stat-t_desc-fnm_clusters",
    }  # fmt: skip
    (table,) = folder.glob("*model-symptomScore_stat-z_desc-fnm_parcelstats.tsv")
    assert len(read(table)) == 100
    sidecar = json.loads((folder / f"{start}_stat-t_desc-fnm_statmap.json").read_text())
    assert sidecar["DegreesOfFreedom"] == 2
    assert sidecar["Parameters"]["Covariates"] == ["lesion_volume_ml"]
    validate_bids(finished)


def test_dry_run_writes_nothing(finished, group_arguments, run_command):
    before = sorted(finished.rglob("*"))
    process = run_command(*group_arguments, "--dry-run")
    assert process.returncode == 0, process.stdout
    assert "nothing was run" in process.stdout
    assert sorted(finished.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--score", "iq"), "no column 'iq'; its columns: age"),
        (("--score", "handedness", "--pool-sessions"), "is no number"),
        (("--group", "age", "--pool-sessions"), "5 groups"),
        (("--analysis", "afnm"), "No result fits"),
        (("--space", "MNI152NLin2009cAsym"), "No result fits"),
        (("--tfce",), "--tfce needs --score"),
        (("--select", "Software.Version"), "KEY=VALUE"),
    ],
)
def test_mistakes_are_one_sentence(finished, group_arguments, run_command, options, words):
    process = run_command(*group_arguments, *options)
    assert process.returncode == 2, process.stdout
    last = process.stdout.splitlines()[-1]
    assert last.startswith("lacuna-nipype: ")
    assert words in last


def test_options_of_the_group_are_refused_elsewhere(demonstration, run_command, tmp_path):
    process = run_command(
        demonstration.bids_dir, tmp_path / "out", "participant", "--score", "age"
    )
    assert process.returncode == 2
    assert "--score is an option of the group level" in process.stdout


@pytest.fixture(scope="module")
def real(tmp_path_factory, run_command):
    """The 33 real lesions through regional damage and structural disconnection, then the group."""
    root = tmp_path_factory.mktemp("real")
    rows = ["participant_id\tseverity"]
    for source in sorted((DATA / "lesions_stroke").glob("Subject_*.nii.gz")):
        subject = source.name.removeprefix("Subject_").removesuffix(".nii.gz")
        target = root / f"bids/sub-{subject}/anat/sub-{subject}_label-stroke_mask.nii.gz"
        target.parent.mkdir(parents=True)
        target.symlink_to(source)
        # A score that follows damage of one place: the posterior left insula.
        image = nb.load(source)
        ijk = np.rint(np.linalg.inv(image.affine) @ [-38, -8, 8, 1])[:3].astype(int)
        box = np.asarray(image.dataobj)[tuple(slice(i - 6, i + 7) for i in ijk)]
        rows.append(f"sub-{subject}\t{box.mean() * 10 + int(subject) % 7 / 5:.3f}")
    (root / "bids" / "dataset_description.json").write_text(
        json.dumps({"Name": "real", "BIDSVersion": "1.10.1", "DatasetType": "derivative"})
    )
    (root / "bids" / "participants.tsv").write_text("\n".join(rows) + "\n")
    atlas = DATA / "parcellations" / ATLAS_STEM
    process = run_command(
        *(root / "bids", root / "out", "participant", "--mask-space", SPACE),
        "--structural-connectome",
        DATA / "tractogram_hcp1065" / "hcp1065_1000_step2mm.tck",
        *("--structural-space", SPACE, "--snm-engine", "index", "-w", root / "work"),
        *("--custom-parcellation", "Schaefer100", f"{atlas}.nii.gz", f"{atlas}.txt", SPACE),
        timeout=900,
    )
    assert process.returncode == 0, process.stdout[-3000:]
    process = run_command(
        *(root / "bids", root / "out", "group", "-w", root / "work_group", "--seed", 1),
        *("--score", "severity", "--permutations", 200),
        reports=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stdout[-3000:]
    return root


@pytest.mark.real_data
@pytest.mark.skipif(
    DATA is None or not (DATA / "lesions_stroke").is_dir(),
    reason="LACUNA_TEST_DATA does not name a folder with the real data",
)
def test_real_lesions(real, validate_bids):
    out = real / "out"
    tables = compare_tables(out)
    assert {len(table) for table in tables.values()} == {33}
    assert compare_overlaps(out) == 2
    (path,) = out.glob("tpl-*/anat/*model-severity_stat-t_desc-lesion_clusters.tsv")
    clusters = read(path)
    peak = clusters.loc[clusters["peak_t"].idxmax(), ["x", "y", "z_mm"]].to_numpy(float)
    # Where the score was planted; lesions are large, so the peak may lie some way off.
    assert np.linalg.norm(peak - [-38, -8, 8]) < 20
    validate_bids(out)
    compare_page(out)


def compare_page(out):
    """The page tells the largest overlap of the 33, counted here, and lists all of them."""
    page = parse(out / "group.html")
    total = sum(
        (np.asarray(nb.load(mask).dataobj) > 0).astype(np.int32)
        for mask in out.glob("sub-*/anat/*_desc-lesion_mask.nii.gz")
    )
    told = facts(cards(page, "overlap-")["Lesions"])
    assert told["Largest overlap"].startswith(f"{total.max()} of 33 participants")
    (table,) = by_id(page, "participants").iter("table")
    assert len(table_rows(table)[1]) == 33
    assert "Schaefer100" in words(page)
