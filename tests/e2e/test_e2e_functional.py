"""Functional network maps through the real command: stores, methods, thresholds, parcels."""

import hashlib
import json
import shutil
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

SPACE = "MNI152NLin6Asym"
STEM = f"sub-05/anat/sub-05_space-{SPACE}"
ATLAS = "atlas-Demo_seg-7n_scale-100"
LABEL = "label-acuteinfarct"
STATS = f"{STEM}_{LABEL}_desc-fnm_stats.json"
N_SUBJECTS = 12
# What the verification allows as well: five times the error of r that the store has measured,
# and the rounding of maps in single precision.
MARGIN, FLOOR = 5, 1e-5


def map_name(quantity):
    return f"{STEM}_res-4_{LABEL}_stat-{quantity}_desc-fnm_statmap.nii.gz"


def table_name(analysis, quantity):
    return f"{STEM}_{ATLAS}_{LABEL}_stat-{quantity}_desc-{analysis}_parcelstats.tsv"


def read_json(path):
    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def load(path):
    return np.asanyarray(nib.load(path).dataobj)


def results(out):
    """Names of everything written for the participant but provenance, with digests."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.glob("sub-*/**/*")
        if path.is_file() and "desc-provenance" not in path.name
    }


def with_sidecars(*names):
    return {*names, *(name.split(".nii")[0].split(".tsv")[0] + ".json" for name in names)}


def planned(process, out):
    """Files that a dry run lists."""
    lines = process.stdout.splitlines()
    listed = lines[lines.index("Outputs:") + 1 : -1]
    return {Path(line.strip()).relative_to(out).as_posix() for line in listed}


@pytest.fixture(scope="module")
def run(run_command, demonstration, tmp_path_factory):
    """Run the participant level for one lesion; the process and the folder of results."""

    def start(*options, folder=None):
        folder = folder or tmp_path_factory.mktemp("run")
        process = run_command(
            *(demonstration.bids_dir, folder / "out", "participant"),
            *("--participant-label", "05", "--plugin", "Linear", "--nprocs", "2"),
            *("-w", folder / "work", *options),
        )
        return process, folder / "out"

    return start


@pytest.fixture(scope="module")
def finished(run):
    """Results of a run of the functional analysis that has to succeed."""

    def start(connectome, *options):
        process, out = run("--functional-connectome", connectome, *options)
        assert process.returncode == 0, process.stdout
        return out

    return start


@pytest.fixture(scope="module")
def lacuna(demonstration, tmp_path_factory):
    """The connectome in a folder of its own, so that it can be moved."""
    folder = tmp_path_factory.mktemp("connectome") / "lacuna"
    shutil.copytree(demonstration.functional_connectome, folder)
    return folder


@pytest.fixture(scope="module")
def stores(lacuna, run_command):
    """Stores of both types."""
    made = {}
    for kind, options in (("int16", []), ("int8", ["--compact"])):
        made[kind] = lacuna.parent / kind
        process = run_command("connectome", "convert", lacuna, made[kind], *options)
        assert process.returncode == 0, process.stdout
        assert kind in process.stdout
    return made


@pytest.fixture(scope="module")
def series_run(finished, lacuna):
    return finished(lacuna, "--verify", "10")


@pytest.fixture(scope="module")
def store_runs(finished, stores):
    return {kind: finished(path, "--verify", "10") for kind, path in stores.items()}


def error_of(store):
    """Largest error of a correlation that the files of a store record."""
    errors = []
    for path in store.iterdir():
        with h5py.File(path) as handle:
            errors.append(handle["error_r"][()].max())
    return max(errors)


# --- stores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int16", "int8"])
def test_a_store_gives_the_maps_of_its_source(series_run, store_runs, stores, kind):
    out, error = store_runs[kind], error_of(stores[kind])
    assert error < {"int16": 1e-4, "int8": 2e-2}[kind]
    assert set(results(out)) == set(results(series_run))
    valid = load(series_run / map_name("valid")) > 0
    np.testing.assert_array_equal(load(out / map_name("valid")) > 0, valid)
    r, z, t = (load(series_run / map_name(quantity))[valid] for quantity in "rzt")
    own_r, own_z, own_t = (load(out / map_name(quantity))[valid] for quantity in "rzt")
    allowed = FLOOR + MARGIN * error
    np.testing.assert_allclose(own_r, r, rtol=0, atol=allowed)
    assert (np.abs(own_z - z) <= allowed / (1 - r**2)).all()
    strong = np.abs(t) > 3
    assert strong.sum() > 10_000
    # Five times what is promised for 200 subjects.
    promised = {"int16": 2e-6, "int8": 3.5e-4}[kind]
    assert np.median(np.abs(own_t[strong] / t[strong] - 1)) < 5 * promised
    # It is the store that was read.
    assert not np.array_equal(own_z, z)


def test_sidecars_say_what_stands_behind_the_numbers(series_run, store_runs, stores):
    for kind, out in {None: series_run, **store_runs}.items():
        valid = int((load(out / map_name("valid")) > 0).sum())
        for name in results(out):
            if "desc-fnm_statmap.json" not in name:
                continue
            sidecar = read_json(out / name)
            connectome, numbers = sidecar["Connectome"], sidecar["Statistics"]
            assert connectome["NumberOfSubjects"] == numbers["NumberOfSubjects"] == N_SUBJECTS
            assert numbers["DegreesOfFreedom"] == N_SUBJECTS - 1
            assert numbers["ValidVoxels"] == valid
            assert numbers["FDRFamilySize"] == valid - numbers["SeedVoxels"] > 0
            if kind is None:
                assert connectome["Layout"] == "series"
                assert "MeasuredErrorOfR" not in connectome
            else:
                assert connectome["Layout"] == "store"
                assert connectome["StoredType"] == kind
                assert connectome["MeasuredErrorOfR"] == error_of(stores[kind])
                assert 0 < connectome["StoredRank"] < 60
        assert (
            "tanh(z)" in read_json(out / map_name("r").replace(".nii.gz", ".json"))["Description"]
        )


# --- verification ---------------------------------------------------------------------------


def test_verification_is_recorded(series_run, store_runs, stores, lacuna):
    sources = [path.name for path in sorted(lacuna.iterdir())]
    for kind, out in {None: series_run, **store_runs}.items():
        sidecars = [name for name in results(out) if "desc-fnm" in name and name.endswith("json")]
        assert len(sidecars) == 8
        for name in sidecars:
            if name == STATS:
                continue
            record = read_json(out / name)["Verification"]
            assert record["Voxels"] == 10
            assert record["SourceFiles"] == sources
            stored = error_of(stores[kind]) if kind else 0
            assert record["Limit"] == pytest.approx(FLOOR + MARGIN * stored)
            assert record["LargestDifferenceOfR"] <= record["Limit"]


def test_a_store_whose_sources_moved_says_so_and_finishes(run, stores, lacuna):
    moved = lacuna.rename(lacuna.with_name("elsewhere"))
    try:
        process, out = run("--functional-connectome", stores["int16"], "--verify", "10")
    finally:
        moved.rename(lacuna)
    assert process.returncode == 0, process.stdout
    (note,) = [line for line in process.stdout.splitlines() if "--verify" in line]
    assert note.startswith("Note: The series that the store was made from are not at hand")
    sidecar = read_json(out / map_name("z").replace(".nii.gz", ".json"))
    assert "Verification" not in sidecar
    assert sidecar["Connectome"]["StoredType"] == "int16"


# --- methods and maps -----------------------------------------------------------------------


def test_pini_chooses_voxels_and_says_which_share(finished, lacuna, series_run):
    out = finished(
        lacuna, "--fnm-method", "pini", "--pini-percentile", "30", "--verify", "5"
    )  # fmt: skip
    assert set(results(out)) == set(results(series_run))
    before = read_json(series_run / map_name("r").replace(".nii.gz", ".json"))
    after = read_json(out / map_name("r").replace(".nii.gz", ".json"))
    assert "PiniSelection" not in before
    selection, n = after["PiniSelection"], before["Statistics"]["SeedVoxels"]
    assert selection["Percentile"] == 30
    assert selection["VoxelsBefore"] == n
    # With loadings that differ, 30 per cent lie below the percentile.
    assert selection["VoxelsKept"] == n - int(np.ceil(0.3 * (n - 1)))
    assert selection["VoxelsKept"] == after["Statistics"]["SeedVoxels"]
    assert 0 < selection["VarianceExplained"] < 1
    assert "Boes" in before["Method"]
    assert "Pini" in after["Method"]
    assert after["Verification"]["Voxels"] == 5
    boes, pini = (load(folder / map_name("z")) for folder in (series_run, out))
    assert 1e-3 < np.abs(boes - pini).max() < 0.5
    assert np.corrcoef(boes.ravel(), pini.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    ("options", "gone", "new", "other"),
    [
        (["--t-threshold", "5", "--no-p-map"], "p q qsig", "tsig", ""),
        (["--t-threshold", "5", "--fdr-alpha", "0.001"], "", "tsig", "qsig"),
    ],
    ids=["t-threshold and no-p-map", "t-threshold and fdr-alpha"],
)
def test_choices_change_the_files_they_should(
    run, lacuna, series_run, tmp_path, options, gone, new, other
):
    """Maps that leave, maps that come, and maps that change; everything else stays."""
    arguments = ("--functional-connectome", lacuna, *options)
    dry, out = run(*arguments, "--dry-run", folder=tmp_path)
    assert dry.returncode == 0, dry.stdout
    assert not out.exists()
    process, _ = run(*arguments, folder=tmp_path)
    assert process.returncode == 0, process.stdout
    before, after = results(series_run), results(out)
    assert planned(dry, out) == set(after)
    assert set(before) - set(after) == with_sidecars(*map(map_name, gone.split()))
    assert set(after) - set(before) == with_sidecars(*map(map_name, new.split()))
    changed = {
        name for name in before.keys() & after.keys()
        if name.endswith(".nii.gz") and before[name] != after[name]
    }  # fmt: skip
    assert changed == set(map(map_name, other.split()))
    tsig, t = load(out / map_name("tsig")), load(out / map_name("t"))
    np.testing.assert_array_equal(tsig, np.abs(t) > 5)
    assert 0 < tsig.sum() < (t != 0).sum()
    numbers = read_json(out / STATS)
    numbers = numbers.get("Statistics", numbers)
    assert numbers["TThreshold"] == 5
    assert numbers["VoxelsAboveTThreshold"] == tsig.sum()
    if "q" in gone.split():
        assert "FDRAlpha" not in numbers
    else:
        np.testing.assert_array_equal(
            load(out / map_name("qsig")), load(out / map_name("q")) < 0.001
        )
        assert numbers["FDRAlpha"] == 0.001
        assert numbers["SignificantVoxels"] == load(out / map_name("qsig")).sum()


def test_probabilities_are_stored_in_double_precision(series_run):
    brain = load(series_run / map_name("valid")) > 0
    for quantity in "pq":
        values = load(series_run / map_name(quantity))
        assert values.dtype == np.float64
        assert (values[~brain] == 1).all()
        assert ((values > 0) & (values <= 1)).all()


def test_a_connectome_of_one_subject(run, lacuna, tmp_path):
    with (
        h5py.File(lacuna / "demo_part-1.h5") as source,
        h5py.File(tmp_path / "one.h5", "w") as target,
    ):
        target["timeseries"] = source["timeseries"][:1]
        for key in ("mask_indices", "mask_affine"):
            source.copy(key, target)
        for key in ("mask_shape", "space"):
            target.attrs[key] = source.attrs[key]
    process, out = run(
        *("--functional-connectome", tmp_path / "one.h5", "--parcel-atlases", "Demo"),
        *("--analysis", "fnm", "--t-threshold", "3", "--verify", "5"),
    )
    assert process.returncode == 0, process.stdout
    assert "Note: The functional connectome has one subject" in process.stdout
    assert set(results(out)) == {
        *with_sidecars(
            *map(map_name, ("r", "z", "valid")),
            *(table_name("fnm", quantity) for quantity in "rz"),
            f"{STEM}_res-1_{LABEL}_desc-lesion_mask.nii.gz",
        ),
        STATS,
    }
    sidecar = read_json(out / map_name("z").replace(".nii.gz", ".json"))
    assert sidecar["Connectome"]["NumberOfSubjects"] == 1
    assert "DegreesOfFreedom" not in sidecar["Statistics"]
    assert sidecar["Verification"]["LargestDifferenceOfR"] < FLOOR


# --- between parcels ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def matrices(run_command, demonstration, tmp_path_factory):
    """Matrices of z and r between the parcels of the demonstration's atlas."""
    folder = tmp_path_factory.mktemp("matrices")
    process = run_command(
        *("connectome", "prepare", demonstration.functional_connectome, folder),
        *("--parcel-atlases", "Demo", "-d", demonstration.bids_dir),
    )
    assert process.returncode == 0, process.stdout
    return {key: folder / f"functional_{ATLAS}_stat-{key}_relmat.tsv" for key in "zr"}


def read_matrix(path):
    return pd.read_csv(path, sep="\t", index_col="name", na_values="n/a", keep_default_na=False)


def test_a_score_is_the_weighted_sum_of_a_row(run, matrices, tmp_path):
    z = read_matrix(matrices["z"])
    assert list(z.index) == list(z.columns)
    assert z.notna().all(axis=None)
    np.testing.assert_allclose(read_matrix(matrices["r"]), np.tanh(z), atol=1e-9)
    for weighting in ("fractional", "binary", "voxel_count"):
        # In one work folder: a choice that changes is computed again.
        process, out = run(
            *("--analysis", "rd", "afnm", "--connectivity-matrix", matrices["z"]),
            *("--parcel-atlases", "Demo", "--afnm-weighting", weighting),
            folder=tmp_path,
        )
        assert process.returncode == 0, process.stdout
        damage = pd.read_csv(out / table_name("rd", "damagepct"), sep="\t").set_index("name")
        touched = damage["n_voxels_damaged"] > 0
        assert touched.sum() > 3
        weights = {
            "fractional": touched / touched.sum(),
            "binary": touched.astype(float),
            "voxel_count": damage["n_voxels_damaged"] / damage["n_voxels"],
        }[weighting]
        expected = weights.reindex(z.index).to_numpy() @ z.to_numpy()
        scores = pd.read_csv(out / table_name("afnm", "score"), sep="\t").set_index("name")
        assert list(scores.index) == list(damage.index)
        np.testing.assert_allclose(scores["weight"], weights, rtol=1e-9)
        np.testing.assert_allclose(scores["score"].reindex(z.index), expected, rtol=1e-8)
        sidecar = read_json(out / table_name("afnm", "score").replace(".tsv", ".json"))
        assert sidecar["Weighting"] == weighting
        assert sidecar["Matrix"] == matrices["z"].name
        assert sidecar["Connectome"]["NumberOfSubjects"] == N_SUBJECTS
        assert sidecar["Statistics"]["RegionsTouched"] == touched.sum()
        assert scores["score"].idxmax() == sidecar["Statistics"]["RegionOfHighestScore"]


def test_matrices_that_do_not_fit_are_refused(run, matrices, demonstration, tmp_path):
    process, out = run(
        *("--analysis", "afnm", "--connectivity-matrix", matrices["r"]),
        *("--parcel-atlases", "Demo"),
    )
    assert process.returncode == 2, process.stdout
    assert matrices["r"].name in process.stdout.splitlines()[-1]
    assert "stat-z" in process.stdout.splitlines()[-1]
    assert not out.exists()
    labels = pd.read_csv(demonstration.atlas_labels, sep="\t")
    labels["name"] = "Other_" + labels["name"]
    labels.to_csv(tmp_path / "other.tsv", sep="\t", index=False)
    process, out = run(
        *("--analysis", "afnm", "--connectivity-matrix", matrices["z"], "--custom-parcellation"),
        *("Other", demonstration.atlas_image, tmp_path / "other.tsv", SPACE),
    )
    assert process.returncode == 2, process.stdout
    last = process.stdout.splitlines()[-1]
    assert matrices["z"].name in last
    assert "Other_7Networks_LH_Vis_1" in last
    assert not out.exists()
    assert not list(out.parent.iterdir())
