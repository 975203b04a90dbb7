"""A participant run on the tutorial's data: what it writes, and what the numbers are."""

import csv
import hashlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

SPACE = "MNI152NLin6Asym"
ACUTE, HAEMORRHAGE = "acuteinfarct", "haemorrhage"
LESIONS = [
    ("sub-01/ses-01/anat/sub-01_ses-01", ACUTE),
    ("sub-02/ses-01/anat/sub-02_ses-01", ACUTE),
    ("sub-02/ses-02/anat/sub-02_ses-02", ACUTE),
    ("sub-03/anat/sub-03", ACUTE),
    ("sub-03/anat/sub-03", HAEMORRHAGE),
    ("sub-04/anat/sub-04", ACUTE),
    ("sub-05/anat/sub-05", ACUTE),
]
# Their masks are stored with x from left to right and from right to left.
BOTH_ORDERS = [LESIONS[0], LESIONS[6]]
# The acute infarct of sub-03 lies below the cortex and touches no parcel.
IN_CORTEX = [lesion for lesion in LESIONS if lesion != ("sub-03/anat/sub-03", ACUTE)]
ATLAS = "atlas-Demo_seg-7n_scale-100"
FNM_GRID, SNM_GRID = "res-4", "res-2"
FNM_MAPS = ("r", "z", "t", "p", "q", "qsig", "valid")
FNM_TABLES = ("r", "z", "t")


def map_name(lesion, analysis, quantity):
    stem, label = lesion
    grid = FNM_GRID if analysis == "fnm" else SNM_GRID
    return f"{stem}_space-{SPACE}_{grid}_label-{label}_stat-{quantity}_desc-{analysis}_statmap"


def table_name(lesion, analysis, quantity):
    stem, label = lesion
    return (
        f"{stem}_space-{SPACE}_{ATLAS}_label-{label}_stat-{quantity}_desc-{analysis}_parcelstats"
    )


def mask_name(lesion):
    stem, label = lesion
    return f"{stem}_space-{SPACE}_res-1_label-{label}_desc-lesion_mask"


def source_name(lesion):
    stem, label = lesion
    return f"{stem}_space-{SPACE}_label-{label}_mask.nii.gz"


def stats_name(lesion, analysis):
    stem, label = lesion
    return f"{stem}_space-{SPACE}_label-{label}_desc-{analysis}_stats.json"


def expected_outputs(lesion):
    """Names of everything but sidecars that a full run writes for a lesion."""
    return [
        f"{mask_name(lesion)}.nii.gz",
        f"{table_name(lesion, 'rd', 'damagepct')}.tsv",
        *(f"{map_name(lesion, 'fnm', quantity)}.nii.gz" for quantity in FNM_MAPS),
        *(f"{table_name(lesion, 'fnm', quantity)}.tsv" for quantity in FNM_TABLES),
        f"{map_name(lesion, 'snm', 'disconnectionpct')}.nii.gz",
        f"{table_name(lesion, 'snm', 'mapdisconnectionpct')}.tsv",
        *(stats_name(lesion, analysis) for analysis in ("rd", "fnm", "snm")),
    ]


def last_line(process):
    return process.stdout.splitlines()[-1]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(out):
    """Digests of every result; logs and provenance differ from run to run."""
    return {
        path.relative_to(out).as_posix(): digest(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and "logs" not in path.parts and "desc-provenance" not in path.name
    }


def read_json(path):
    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def read_table(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def column(rows, name, kind=float):
    return np.array([kind(row[name]) for row in rows])


def load(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def world(affine, voxels):
    return nib.affines.apply_affine(affine, voxels)


def nearest(affine, points):
    """Voxels that hold world points; a point between two goes to the one with larger index."""
    voxels = nib.affines.apply_affine(np.linalg.inv(affine), points)
    return np.floor(voxels + 0.5 + 1e-6).astype(int)


def values_at(image_path, points):
    """Look up world points in an image, 0 outside of it."""
    image = nib.as_closest_canonical(nib.load(image_path))
    data, voxels = np.asarray(image.dataobj), nearest(image.affine, points)
    inside = np.all((voxels >= 0) & (voxels < data.shape), axis=1)
    values = np.zeros(len(points), dtype=data.dtype)
    values[inside] = data[tuple(voxels[inside].T)]
    return values


# --- files ----------------------------------------------------------------------------------


def test_all_planned_outputs_are_there_and_nothing_else(multiproc):
    planned = {name for lesion in LESIONS for name in expected_outputs(lesion)}
    sidecars = {
        name.removesuffix(".nii.gz").removesuffix(".tsv") + ".json"
        for name in planned
        if not name.endswith(".json")
    }
    provenance = {
        "sub-01/sub-01_ses-01_desc-provenance.json",
        "sub-02/sub-02_ses-01_desc-provenance.json",
        "sub-02/sub-02_ses-02_desc-provenance.json",
        *(f"sub-{n}/sub-{n}_desc-provenance.json" for n in ("03", "04", "05")),
    }
    atlas = {
        f"tpl-{SPACE}/tpl-{SPACE}_{ATLAS}_res-2_dseg{e}" for e in (".nii.gz", ".tsv", ".json")
    }
    atlas |= {"atlas-Demo_description.json"}
    found = {
        path.relative_to(multiproc.out).as_posix()
        for path in multiproc.out.rglob("*")
        if path.is_file() and "logs" not in path.parts
    }
    whole = {".bidsignore", "dataset_description.json"}
    assert found == planned | sidecars | provenance | atlas | whole


def test_the_plugin_does_not_change_a_byte(multiproc, linear):
    assert contents(multiproc.out) == contents(linear.out)


def test_the_results_pass_the_bids_validator(multiproc, validate_bids):
    validate_bids(multiproc.out)


def test_no_json_holds_nan(multiproc):
    paths = list(multiproc.out.rglob("*.json"))
    assert len(paths) > 70
    for path in paths:
        read_json(path)


def test_the_description_is_a_derivative_that_links_its_source(multiproc, demonstration):
    description = read_json(multiproc.out / "dataset_description.json")
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "lacuna-nipype"
    assert Path(description["DatasetLinks"]["raw"]) == demonstration.bids_dir


def test_every_image_and_table_has_a_sidecar_that_says_what_it_is(multiproc, demonstration):
    for lesion in LESIONS:
        for name in expected_outputs(lesion):
            if name.endswith(".json"):
                continue
            path = multiproc.out / name
            sidecar = read_json(path.with_name(path.name.split(".")[0] + ".json"))
            assert sidecar["Description"].endswith("."), name
            assert sidecar["SpaceName"] == SPACE
            assert sidecar["Sources"] == [f"bids:raw:{source_name(lesion)}"]
            assert (demonstration.bids_dir / source_name(lesion)).is_file()


def test_maps_state_their_units_and_resolution(multiproc):
    units = {**dict.fromkeys(FNM_MAPS, "1"), "disconnectionpct": "%"}
    for path in multiproc.out.rglob("*_statmap.json"):
        sidecar = read_json(path)
        assert sidecar["Units"] == units[re.search(r"stat-(\w+?)_", path.name)[1]]
        assert sidecar["Resolution"]


def test_functional_results_name_their_connectome(multiproc, demonstration):
    files = sorted(demonstration.functional_connectome.iterdir())
    combined = "".join(f"sha256:{digest(path)}" for path in files).encode()
    for path in multiproc.out.rglob("*_stat-*_desc-fnm_*.json"):
        expected = {
            "Name": "functional",
            "SpaceName": SPACE,
            "NumberOfFiles": 2,
            "NumberOfSubjects": 12,
            "Fingerprint": f"combined-sha256:{hashlib.sha256(combined).hexdigest()}",
        }
        assert expected.items() <= read_json(path)["Connectome"].items()


def test_structural_results_name_their_tractogram(multiproc, demonstration):
    paths = list(multiproc.out.rglob("*_stat-*_desc-snm_*.json"))
    assert len(paths) == 2 * len(LESIONS)
    for path in paths:
        sidecar = read_json(path)
        assert sidecar["Connectome"] == {
            "Name": "demo.tck",
            "SpaceName": SPACE,
            "Fingerprint": f"sha256:{digest(demonstration.structural_connectome)}",
        }
        assert sidecar["Tractogram"]["NumberOfStreamlines"] == 12_000
        # As many lesions as here are done with an index, whether MRtrix3 is there or not.
        assert (sidecar["Engine"], sidecar["HitTest"]) == ("index", "vertices")
        assert "MRtrixVersion" not in sidecar


def test_tables_list_all_parcels_in_the_order_of_the_atlas(multiproc, demonstration):
    atlas = [(row["index"], row["name"]) for row in read_table(demonstration.atlas_labels)]
    assert len(atlas) == 100
    paths = list(multiproc.out.rglob("*_parcelstats.tsv"))
    assert len(paths) >= 28
    for path in paths:
        rows = read_table(path)
        quantity = re.search(r"stat-(\w+?)_", path.name)[1]
        assert list(rows[0])[:3] == ["index", "name", quantity], path.name
        assert {"n_voxels", "volume_ml"} <= set(rows[0])
        assert [(row["index"], row["name"]) for row in rows] == atlas
        assert np.isfinite(column(rows, quantity)).all()
        sidecar = read_json(path.with_suffix(".json"))
        assert set(rows[0]) <= set(sidecar)
        assert sidecar[quantity]["Units"]


def test_sessions_are_kept_apart(multiproc, demonstration):
    for lesion in LESIONS[1:3]:
        stored, affine = load(multiproc.out / f"{mask_name(lesion)}.nii.gz")
        source, source_affine = load(demonstration.bids_dir / source_name(lesion))
        np.testing.assert_array_equal(stored, source)
        np.testing.assert_array_equal(affine, source_affine)
    first, second = (
        column(read_table(multiproc.out / f"{table_name(lesion, 'rd', 'damagepct')}.tsv"),
               "damagepct")
        for lesion in LESIONS[1:3]
    )  # fmt: skip
    # The lesion of the second session is what is left of the first.
    assert (second <= first).all()
    assert second.sum() < 0.9 * first.sum()


def test_labels_are_kept_apart(multiproc):
    infarct, haemorrhage = (
        load(multiproc.out / f"{map_name(lesion, 'fnm', 'z')}.nii.gz")[0]
        for lesion in LESIONS[3:5]
    )
    assert not np.array_equal(infarct, haemorrhage)
    sides = [
        np.sign(world(affine, np.argwhere(mask))[:, 0]).mean()
        for mask, affine in (
            load(multiproc.out / f"{mask_name(lesion)}.nii.gz") for lesion in LESIONS[3:5]
        )
    ]
    assert sides == [-1, 1]


# --- what the user reads --------------------------------------------------------------------


def test_the_last_line_names_the_results(multiproc, linear):
    for run in (multiproc, linear):
        assert last_line(run.process) == f"Results: {run.out}"
        assert "Traceback" not in run.process.stdout


def progress(process):
    return [
        tuple(map(int, match))
        for match in re.findall(r"^(\d+) of (\d+) steps done", process.stdout, flags=re.MULTILINE)
    ]


def steps_that_ran(process):
    if re.search(r"^\d+ lesions? of an earlier run up to date", process.stdout, re.MULTILINE):
        found = re.search(r"^(\d+) steps ran,", process.stdout, flags=re.MULTILINE)
        return int(found[1]) if found else 0
    return int(re.search(r"^(\d+) steps ran,", process.stdout, flags=re.MULTILINE)[1])


@pytest.mark.parametrize("plugin", ["Linear", "MultiProc"])
def test_progress_counts_up_to_the_steps_that_ran(full_run, plugin):
    process = full_run(plugin).process
    lines = progress(process)
    assert len(lines) >= 8
    assert lines == sorted(lines)
    assert lines[-1] == (steps_that_ran(process), steps_that_ran(process))


def test_nothing_is_written_outside_the_named_folders(run_command, full_arguments,
                                                      demonstration, tmp_path):  # fmt: skip
    here = tmp_path / "here"
    here.mkdir()
    before = contents(demonstration.bids_dir)
    run = run_command(
        *(demonstration.bids_dir, tmp_path / "out", "participant", "--analysis", "rd"),
        *full_arguments,
        *("--participant-label", "04", "--plugin", "Linear", "-w", tmp_path / "work"),
        cwd=here,
    )
    assert run.returncode == 0, run.stdout
    assert not list(here.iterdir())
    assert contents(demonstration.bids_dir) == before


@pytest.mark.parametrize("plugin", ["Linear", "MultiProc"])
def test_provenance_tells_what_was_done_with_what(full_run, demonstration, plugin):
    run = full_run(plugin)
    lesion = LESIONS[2]
    path = run.out / "sub-02" / "sub-02_ses-02_desc-provenance.json"
    record = read_json(path)["Runs"][0]
    assert record["CommandLine"] == "lacuna-nipype " + shlex.join(map(str, run.arguments))
    versions = record["Software"]
    assert {"lacuna-nipype", "Python", "nipype", "nibabel", "numpy", "h5py"} <= set(versions)
    assert "MRtrix3" not in versions
    assert [(i["URI"], i["Fingerprint"], i["SpaceName"]) for i in record["Inputs"]] == [
        (
            f"bids:raw:{source_name(lesion)}",
            f"sha256:{digest(demonstration.bids_dir / source_name(lesion))}",
            SPACE,
        )
    ]
    assert record["Parameters"]["plugin"] == plugin
    assert record["Started"] <= record["Ended"]
    steps = {step["Name"]: step for step in record["Steps"]}
    assert {"fnm_wf.correlate", "fnm_wf.reduce"} <= set(steps)
    assert "sub_02_ses_02_label_acuteinfarct_wf.damage_wf.damage" in steps
    assert "" not in steps
    of_lesions = {name for name in steps if name.startswith("sub_")}
    assert {name.split("_wf")[0].removesuffix("_mask") for name in of_lesions} == {
        "sub_02_ses_02_label_acuteinfarct"
    }
    assert {step["Status"] for step in steps.values()} == {"done"}
    assert steps["fnm_wf.reduce"]["Seconds"] > 0
    assert sum(step["Seconds"] or 0 for step in steps.values()) < 120


def test_a_log_folder_holds_the_configuration_of_the_run(linear):
    (folder,) = [path for path in (linear.out / "logs").iterdir() if path.name[0].isdigit()]
    assert read_json(folder / "config.json")["plugin"] == "Linear"
    assert (folder / "run.log").stat().st_size > 1000
    assert not list(folder.glob("crash-*"))


# --- numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("lesion", BOTH_ORDERS)
def test_damage_equals_a_count_through_world_coordinates(multiproc, demonstration, lesion):
    mask, affine = load(demonstration.bids_dir / source_name(lesion))
    every = world(affine, np.indices(mask.shape).reshape(3, -1).T)
    labels = values_at(demonstration.atlas_image, every)
    size = np.bincount(labels, minlength=101)[1:]
    damaged = np.bincount(labels[mask.ravel() > 0], minlength=101)[1:]
    rows = read_table(multiproc.out / f"{table_name(lesion, 'rd', 'damagepct')}.tsv")
    assert damaged.sum() > 1000
    np.testing.assert_array_equal(column(rows, "n_voxels", int), size)
    np.testing.assert_array_equal(column(rows, "n_voxels_damaged", int), damaged)
    np.testing.assert_allclose(column(rows, "damagepct"), 100 * damaged / size, rtol=1e-9)


@pytest.mark.parametrize("lesion", BOTH_ORDERS)
def test_functional_maps_equal_plain_correlations(multiproc, demonstration, lesion):
    z, chosen = [], slice(None, None, 1499)
    for path in sorted(demonstration.functional_connectome.iterdir()):
        with h5py.File(path) as store:
            points = world(store["mask_affine"][:], store["mask_indices"][:].T)
            seed = values_at(demonstration.bids_dir / source_name(lesion), points) > 0
            assert seed.sum() > 50
            for subject in store["timeseries"]:
                mean = subject[:, seed].astype(float).mean(axis=1)
                others = subject[:, chosen].T.astype(float)
                z.append([np.arctanh(np.corrcoef(mean, other)[0, 1]) for other in others])
    z = np.array(z)
    assert z.shape == (12, 20)
    mean, deviation = z.mean(axis=0), z.std(axis=0, ddof=1)
    expected = {"z": mean, "r": np.tanh(mean), "t": mean / (deviation / np.sqrt(12))}
    for quantity, values in expected.items():
        path = multiproc.out / f"{map_name(lesion, 'fnm', quantity)}.nii.gz"
        tolerance = 1e-3 if quantity == "t" else 1e-5
        np.testing.assert_allclose(values_at(path, points[chosen]), values, atol=tolerance)


@pytest.mark.parametrize("lesion", IN_CORTEX)
def test_the_network_that_is_hit_most_is_the_one_that_correlates(multiproc, demonstration, lesion):
    networks = np.array([row["network"] for row in read_table(demonstration.atlas_labels)])
    damage = read_table(multiproc.out / f"{table_name(lesion, 'rd', 'damagepct')}.tsv")
    damaged = column(damage, "n_voxels_damaged", int)
    r = column(read_table(multiproc.out / f"{table_name(lesion, 'fnm', 'r')}.tsv"), "r")
    hit = max(set(networks), key=lambda name: damaged[networks == name].sum())
    # Parcels outside the lesion only: those inside share its noise.
    means = {name: r[(networks == name) & (damaged == 0)].mean() for name in set(networks)}
    best_other = max(mean for name, mean in means.items() if name != hit)
    assert means[hit] > best_other + 0.15


def test_a_lesion_on_the_right_stays_on_the_right(multiproc):
    lesion = ("sub-05/anat/sub-05", ACUTE)
    mask, affine = load(multiproc.out / f"{mask_name(lesion)}.nii.gz")
    inside = world(affine, np.argwhere(mask))
    assert (inside[:, 0] > 0).all()
    damage = read_table(multiproc.out / f"{table_name(lesion, 'rd', 'damagepct')}.tsv")
    assert {"_RH_" in row["name"] for row in damage if float(row["damagepct"]) > 0} == {True}
    # Noise of the seed's own voxels makes them correlate more than the mirrored ones.
    z_map = multiproc.out / f"{map_name(lesion, 'fnm', 'z')}.nii.gz"
    seed, mirrored = (values_at(z_map, inside * sign).mean() for sign in ([1, 1, 1], [-1, 1, 1]))
    assert seed > mirrored + 0.01
    z, z_affine = load(z_map)
    assert world(z_affine, np.unravel_index(z.argmax(), z.shape))[0] > 0


def test_streamlines_are_cut_on_the_side_of_the_lesion(multiproc):
    path = multiproc.out / f"{map_name(LESIONS[6], 'snm', 'disconnectionpct')}.nii.gz"
    percent, affine = load(path)
    x = world(affine, np.argwhere(percent > 50))[:, 0]
    assert (x > 0).mean() > 0.8


@pytest.mark.mrtrix
@pytest.mark.parametrize("lesion", BOTH_ORDERS)
def test_disconnection_equals_the_commands_run_by_hand(multiproc, demonstration, lesion, tmp_path):
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -90, -126, -72
    template = nib.Nifti1Image(np.zeros((91, 109, 91), np.uint8), affine)
    template.header.set_sform(affine, 4)
    nib.save(template, tmp_path / "grid.nii")
    full = demonstration.structural_connectome
    mask = demonstration.bids_dir / source_name(lesion)
    share = ["full.nii", "0", "-gt", "hit.nii", "full.nii", "-divide", "0", "-if"]
    for command in (
        ["tckmap", "-template", "grid.nii", full, "full.nii"],
        ["tckedit", full, "hit.tck", "-include", mask],
        ["tckmap", "-template", "grid.nii", "hit.tck", "hit.nii"],
        ["mrcalc", *share, "100", "-mult", "pct.nii"],
    ):
        subprocess.run([*command, "-quiet"], cwd=tmp_path, check=True, capture_output=True)
    expected, expected_affine = load(tmp_path / "pct.nii")
    found, found_affine = load(
        multiproc.out / f"{map_name(lesion, 'snm', 'disconnectionpct')}.nii.gz"
    )
    np.testing.assert_allclose(found_affine, expected_affine, atol=1e-5)
    assert found.dtype == expected.dtype == np.float32
    assert expected.max() == 100
    np.testing.assert_array_equal(found, expected)
    hit = nib.streamlines.load(tmp_path / "hit.tck", lazy_load=True)
    stats = read_json(multiproc.out / stats_name(lesion, "snm"))
    assert stats["StreamlinesHit"] == int(hit.header["count"])
    assert stats["Streamlines"] == 12_000


# --- again ----------------------------------------------------------------------------------


def test_a_second_run_runs_nothing(multiproc, run_command):
    before = contents(multiproc.out)
    times = {name: (multiproc.out / name).stat().st_mtime_ns for name in before}
    again = run_command(*multiproc.arguments)
    assert again.returncode == 0, again.stdout
    assert steps_that_ran(again) == 0
    assert last_line(again) == f"Results: {multiproc.out}"
    assert contents(multiproc.out) == before
    assert {name: (multiproc.out / name).stat().st_mtime_ns for name in before} == times
    # Nothing was done, so there is nothing to record of the participants.
    runs = read_json(multiproc.out / "sub-04" / "sub-04_desc-provenance.json")["Runs"]
    assert len(runs) == 1


def test_a_deleted_derivative_comes_back(linear, run_command):
    before = contents(linear.out)
    lesion = LESIONS[0]
    deleted = [
        f"{map_name(lesion, 'fnm', 'z')}.nii.gz",
        f"{table_name(lesion, 'rd', 'damagepct')}.tsv",
        stats_name(LESIONS[4], "fnm"),
    ]
    for name in deleted:
        (linear.out / name).unlink()
    again = run_command(*linear.arguments)
    assert again.returncode == 0, again.stdout
    assert 0 < steps_that_ran(again) <= 3
    assert contents(linear.out) == before


def test_a_deleted_sidecar_comes_back(linear, run_command):
    before = contents(linear.out)
    sidecar = linear.out / f"{map_name(LESIONS[1], 'fnm', 'r')}.json"
    kept = sidecar.read_bytes()
    sidecar.unlink()
    try:
        again = run_command(*linear.arguments)
        assert again.returncode == 0, again.stdout
        assert contents(linear.out) == before
    finally:
        sidecar.write_bytes(kept)


def test_a_mask_that_was_drawn_again_is_computed_again(run_command, demonstration, tmp_path):
    """And the other participant's results are left alone."""
    dataset = tmp_path / "bids"
    shutil.copytree(demonstration.bids_dir, dataset,
                    ignore=shutil.ignore_patterns("sub-01", "sub-02", "sub-03"))  # fmt: skip
    arguments = (
        *(dataset, tmp_path / "out", "participant", "--parcel-atlases", "Demo"),
        *("--plugin", "Linear", "-w", tmp_path / "work"),
    )
    assert run_command(*arguments).returncode == 0
    first = contents(tmp_path / "out")
    source = dataset / source_name(LESIONS[5])
    image = nib.load(source)
    data = np.asarray(image.dataobj).copy()
    data[: data.shape[0] // 2 - 40] = 0
    data[60:80, 100:120, 100:120] = 1
    nib.save(nib.Nifti1Image(data, image.affine, image.header), source)
    again = run_command(*arguments)
    assert again.returncode == 0, again.stdout
    second = contents(tmp_path / "out")
    changed = {name for name in first if first[name] != second[name]}
    assert changed
    assert all(name.startswith("sub-04/") for name in changed)
    runs = read_json(tmp_path / "out/sub-04/sub-04_desc-provenance.json")["Runs"]
    assert runs[1]["Inputs"][0]["Fingerprint"] == f"sha256:{digest(source)}"
    assert runs[0]["Inputs"][0]["Fingerprint"] != runs[1]["Inputs"][0]["Fingerprint"]


# --- choices --------------------------------------------------------------------------------


def stored_masks(out):
    return {path.relative_to(out).as_posix().split(".")[0]
            for path in out.rglob("*_desc-lesion_mask.nii.gz")}  # fmt: skip


def planned_masks(process, out):
    """Masks that a dry run would store."""
    names = re.findall(r"^  (/\S+_desc-lesion_mask)\.nii\.gz$", process.stdout, re.MULTILINE)
    return {Path(name).relative_to(out).as_posix() for name in names}


def test_one_participant_alone(run_command, demonstration, tmp_path):
    run = run_command(
        *(demonstration.bids_dir, tmp_path / "out", "participant"),
        *("--participant-label", "sub-02", "--parcel-atlases", "Demo"),
        *("--plugin", "Linear", "-w", tmp_path / "work"),
    )
    assert run.returncode == 0, run.stdout
    assert stored_masks(tmp_path / "out") == set(map(mask_name, LESIONS[1:3]))
    assert [path.name for path in (tmp_path / "out").glob("sub-*")] == ["sub-02"]


@pytest.mark.parametrize(
    ("choice", "lesions"),
    [
        (["--participant-label", "02"], LESIONS[1:3]),
        (["--participant_label", "sub-05", "01"], [LESIONS[0], LESIONS[6]]),
        (["--session-label", "02"], LESIONS[2:3]),
        (["--session-label", "ses-01"], LESIONS[:2]),
        (["--pattern", "*haemorrhage*"], LESIONS[4:5]),
        (["--bids-filter-file", {"lesion": {"session": "02"}}], LESIONS[2:3]),
        (["--bids-filter-file", {"lesion": {"label": HAEMORRHAGE}}], LESIONS[4:5]),
        (["--bids-filter-file", {"t1w": {"session": "02"}}], LESIONS),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value[0], str) else "",
)
def test_masks_are_chosen(run_command, demonstration, tmp_path, choice, lesions):
    words = []
    for word in choice:
        if isinstance(word, dict):
            (tmp_path / "filter.json").write_text(json.dumps(word))
            word = tmp_path / "filter.json"
        words.append(word)
    run = run_command(
        *(demonstration.bids_dir, tmp_path / "out", "participant", "--parcel-atlases", "Demo"),
        *(*words, "-w", tmp_path / "work", "--dry-run"),
    )
    assert run.returncode == 0, run.stdout
    assert planned_masks(run, tmp_path / "out") == set(map(mask_name, lesions))


def test_a_dry_run_lists_steps_and_outputs_and_writes_nothing(
    run_command, demonstration, full_arguments, multiproc, tmp_path
):
    here = tmp_path / "here"
    here.mkdir()
    run = run_command(
        *(demonstration.bids_dir, tmp_path / "out", "participant", *full_arguments),
        *("-w", tmp_path / "work", "--dry-run"),
        cwd=here,
    )
    assert run.returncode == 0, run.stdout
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]
    lines = run.stdout.splitlines()
    steps = lines[lines.index("Steps:") + 1 : lines.index("Outputs:")]
    outputs = lines[lines.index("Outputs:") + 1 : -1]
    listed = {Path(line.strip()).relative_to(tmp_path / "out").as_posix() for line in outputs}
    expected = {name for lesion in LESIONS for name in expected_outputs(lesion)}
    assert expected <= listed
    written = {path.relative_to(multiproc.out).as_posix() for path in multiproc.out.rglob("*")}
    assert listed <= written
    assert {name for name in listed - expected if not name.endswith(".json")} == {
        f"tpl-{SPACE}/tpl-{SPACE}_{ATLAS}_res-2_dseg{ending}" for ending in (".nii.gz", ".tsv")
    }
    assert "  fnm_wf.correlate x 2" in steps
    assert len(steps) > 50
    assert lines[-1] == f"Dry run: {len(steps)} steps, {len(outputs)} files; nothing was run."


def test_regional_damage_alone_needs_no_mrtrix(
    run_command, demonstration, tmp_path, validate_bids
):
    (tmp_path / "bin").mkdir()
    run = run_command(
        *(demonstration.bids_dir, tmp_path / "out", "participant", "--analysis", "rd"),
        *("--parcel-atlases", "Demo", "--participant-label", "05"),
        *("--structural-connectome", demonstration.structural_connectome),
        *("--plugin", "Linear", "-w", tmp_path / "work"),
        env={"PATH": str(tmp_path / "bin")},
    )
    assert run.returncode == 0, run.stdout
    suffixes = {path.name.split(".")[0].rsplit("_", 1)[1]
                for path in (tmp_path / "out/sub-05/anat").iterdir()}  # fmt: skip
    assert suffixes == {"mask", "parcelstats", "stats"}
    assert not list((tmp_path / "out").rglob("*_statmap.*"))


def test_a_single_mask_in_place_of_a_dataset(
    run_command, demonstration, tmp_path, multiproc, validate_bids
):
    mask = tmp_path / "scans" / "patient 7.nii.gz"
    mask.parent.mkdir()
    shutil.copyfile(demonstration.bids_dir / source_name(LESIONS[6]), mask)
    run = run_command(
        *(mask, tmp_path / "out", "participant", "--mask-space", SPACE),
        "--custom-parcellation",
        *("My regions", demonstration.atlas_image, demonstration.atlas_labels, SPACE),
        *("--plugin", "Linear", "-w", tmp_path / "work"),
    )
    assert run.returncode == 0, run.stdout
    (table,) = (tmp_path / "out").rglob("*_parcelstats.tsv")
    assert table.name.startswith(f"sub-patient7_space-{SPACE}_atlas-Myregions_")
    same = multiproc.out / f"{table_name(LESIONS[6], 'rd', 'damagepct')}.tsv"
    assert table.read_text() == same.read_text()
    assert list(mask.parent.iterdir()) == [mask]
    validate_bids(tmp_path / "out")
