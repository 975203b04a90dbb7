"""Atlases by id in a run: registered, from BIDS datasets and from TemplateFlow, warped or not.

Regions are octants of an ellipsoid, a function of the place, so that what every table must hold is
computed from the places of voxels alone.
"""

import gzip
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import map_coordinates
from transform_data import NLIN6, NLIN2009C, apply_affine, points_of

from lacuna_nipype.core.spaces import template_grid

SCHAEFER_ID = "schaefer2018parcels100networks7"
ALIAS = "Schaefer2018_100Parcels7Networks"
NAMES = [f"{side} {place} {height}" for side in ("Left", "Right") for place in ("back", "front")
         for height in ("low", "high")]  # fmt: skip
STEP = 50  # between the labels of the registered atlas, up to 400
ATLASES = {
    "Mine": "atlas-Mine_res-1_dseg",
    ALIAS: "atlas-Schaefer2018_seg-7n_scale-100_res-1_dseg",
    "Lab": "atlas-Lab_res-2_dseg",
    "Other": "atlas-Other_res-1_dseg",
    "Direct": "atlas-Direct_res-1_dseg",
    "Soft": "atlas-Soft_res-2_probseg",
}
LABELLED = [name for name in ATLASES if name != "Soft"]
SPACES = {**dict.fromkeys(ATLASES, NLIN6), "Other": NLIN2009C}


def octants(points):
    """Regions 1 to 8 of places in mm, 0 outside of them."""
    centred = (points - (0.3, -18.3, 12.3)) / (62, 80, 60)
    label = 1 + ((centred > 0) @ np.array([4, 2, 1]))
    return np.where((centred**2).sum(axis=1) < 1, label, 0)


def save(path, data, grid, dtype):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nb.Nifti1Image(np.asarray(data, dtype), grid.affine)
    image.set_sform(grid.affine, 4)
    image.set_qform(grid.affine, 4)
    nb.save(image, path)
    return path


def save_octants(path, space, size, warp=None, step=1):
    grid = template_grid(space, size)
    points = points_of(grid.shape, grid.affine)
    labels = octants(points if warp is None else warp(points)).reshape(grid.shape)
    return save(path, labels * step, grid, np.int16)


def write_table(path, step=1):
    table = pd.DataFrame({"index": step * np.arange(1, 9), "name": NAMES})
    table.to_csv(path, sep="\t", index=False)
    return path


def soft_weights(points):
    """Probabilities of eight regions, float32: (n, 8); larger towards the right."""
    level = np.clip(0.5 + points[:, :1] / 200, 0.05, 1)
    return (level * (octants(points)[:, None] == np.arange(1, 9))).astype(np.float32)


@pytest.fixture(scope="module")
def places(tmp_path_factory, warps, run_command):
    """Data folder with two registered atlases, TemplateFlow home with one, dataset with three."""
    root = tmp_path_factory.mktemp("atlases")
    home = root / "templateflow"
    shutil.copytree(warps.home, home)
    stem = f"tpl-{NLIN6}_res-01_atlas-Schaefer2018_desc-100Parcels7Networks_dseg"
    save_octants(home / f"tpl-{NLIN6}" / f"{stem}.nii.gz", NLIN6, 1)
    table = f"{stem.replace('_res-01', '')}.tsv"
    write_table(home / f"tpl-{NLIN6}" / table)

    lab = root / "lab"
    for name, space, size in (("Lab", NLIN6, 2), ("Other", NLIN2009C, 1), ("Direct", NLIN6, 1)):
        path = lab / f"tpl-{space}" / f"tpl-{space}_atlas-{name}_dseg.nii.gz"
        # Where a voxel of NLin6 lies in the other space.
        warp = (lambda points: warps.pull(NLIN6, points)) if name == "Direct" else None
        save_octants(path, space, size, warp)
        write_table(path.with_name(path.name.replace(".nii.gz", ".tsv")))
    description = {"Name": "Lab's", "License": "CC0", "Citation": "Lab 2020"}
    (lab / "atlas-Lab_description.json").write_text(json.dumps(description))

    env = {"LACUNA_DATA_DIR": str(root / "data"), "TEMPLATEFLOW_HOME": str(home)}
    mine = save_octants(root / "mine.nii.gz", NLIN6, 1, step=STEP)
    grid = template_grid(NLIN6, 2.0)
    weights = soft_weights(points_of(grid.shape, grid.affine)).reshape(*grid.shape, 8)
    soft = save(root / "soft.nii", weights, grid, np.float32)
    for words in (
        ("Mine", mine, write_table(root / "mine.tsv", STEP), "--citation", "Me 2021"),
        ("Soft", soft, write_table(root / "soft.tsv"), "--license", "CC-BY"),
    ):
        done = run_command("atlas", "register", *words, "--space", NLIN6, env=env)
        assert done.returncode == 0, done.stdout
    return root, lab, env


@dataclass(frozen=True)
class Study:
    out: Path
    arguments: tuple
    env: dict

    def file(self, atlas, what):
        stem = ATLASES[atlas].rpartition("_res")[0]
        (path,) = self.out.glob(f"sub-01/ses-01/anat/*_{stem}_label-*_stat-{what}.tsv")
        return path

    def table(self, atlas, what):
        return pd.read_csv(self.file(atlas, f"{what}_parcelstats"), sep="\t", index_col="name")

    def image(self, what):
        (path,) = self.out.glob(f"sub-01/ses-01/anat/*{what}.nii.gz")
        image = nb.load(path)
        return np.asarray(image.dataobj), image.affine

    def atlas_file(self, atlas, ending):
        space = SPACES[atlas]
        return self.out / f"tpl-{space}" / f"tpl-{space}_{ATLASES[atlas]}{ending}"


@pytest.fixture(scope="module")
def study(places, demonstration, run_command, tmp_path_factory):
    root, lab, env = places
    prepared = run_command(
        *("connectome", "prepare", demonstration.functional_connectome, root / "matrices"),
        *("--parcel-atlases", "mine", "other", "direct", "--datasets", f"lab={lab}"),
        *("--nprocs", "2"),
        env=env,
    )
    assert prepared.returncode == 0, prepared.stdout
    (matrix,) = (root / "matrices").glob("*_atlas-Mine_stat-z_relmat.tsv")
    folder = tmp_path_factory.mktemp("ids")
    arguments = (
        *(demonstration.bids_dir, folder / "out", "participant", "-w", folder / "work"),
        *("--functional-connectome", demonstration.functional_connectome),
        *("--structural-connectome", demonstration.structural_connectome),
        *("--connectivity-matrix", matrix, "--snm-engine", "index"),
        "--compute-disconnectivity-matrix",
        *("--parcel-atlases", *(name.lower() for name in ATLASES), "--datasets", f"lab={lab}"),
        *("--participant-label", "01", "--nprocs", "2"),
    )
    done = run_command(*arguments, env=env, timeout=400)
    assert done.returncode == 0, done.stdout
    return Study(folder / "out", arguments, env)


# Numbers


def mask_points(study):
    data, affine = study.image("desc-lesion_mask")
    return apply_affine(affine, np.argwhere(data))


def damage(labels, hit):
    total = np.bincount(labels, minlength=9)[1:]
    return 100 * np.bincount(hit, minlength=9)[1:] / total


@pytest.mark.parametrize(("atlas", "largest"), [("Mine", 1e-6), (ALIAS, 1e-6), ("Lab", 0.5)])
def test_regional_damage(study, atlas, largest):
    grid = template_grid(NLIN6, 1.0)
    labels = octants(points_of(grid.shape, grid.affine))
    expected = damage(labels, octants(mask_points(study)))
    assert expected.max() > 3
    table = study.table(atlas, "damagepct_desc-rd")
    assert list(table.index) == NAMES
    assert list(table["index"]) == [n * (STEP if atlas == "Mine" else 1) for n in range(1, 9)]
    np.testing.assert_allclose(table["damagepct"], expected, atol=largest)


@pytest.mark.parametrize("atlas", ["Other", "Direct"])
def test_regional_damage_of_an_atlas_that_is_warped(study, atlas, warps):
    grid = template_grid(NLIN6, 1.0)
    labels = octants(warps.pull(NLIN6, points_of(grid.shape, grid.affine)))
    expected = damage(labels, octants(warps.pull(NLIN6, mask_points(study))))
    found = study.table(atlas, "damagepct_desc-rd")["damagepct"]
    # Nearest neighbour moves borders by up to half a voxel.
    np.testing.assert_allclose(found, expected, atol=1e-6 if atlas == "Direct" else 0.15)
    straight = study.table("Mine", "damagepct_desc-rd")["damagepct"]
    assert np.abs(straight - expected).max() > 0.5


def test_regional_damage_of_probabilities(study):
    # On the mask's lattice, each voxel of which takes the atlas's nearest one.
    table = study.table("Soft", "damagepct_desc-rd")
    points = points_of(template_grid(NLIN6, 1.0).shape, template_grid(NLIN6, 1.0).affine)
    weights, hit = soft_weights(points).sum(axis=0), soft_weights(mask_points(study)).sum(axis=0)
    np.testing.assert_allclose(table["damagepct"], 100 * hit / weights, atol=0.5)
    assert study.atlas_file("Soft", ".nii.gz").is_file()


@pytest.mark.parametrize("atlas", list(ATLASES))
@pytest.mark.parametrize(
    ("what", "image"),
    [("z_desc-fnm", "stat-z_desc-fnm_statmap"),
     ("mapdisconnectionpct_desc-snm", "stat-disconnectionpct_desc-snm_statmap")],
)  # fmt: skip
def test_means_of_maps(study, warps, atlas, what, image):
    data, affine = study.image(image)
    valid = np.ones(data.shape, bool)
    if "fnm" in what:
        valid = study.image("stat-valid_desc-fnm_statmap")[0] > 0
    points = points_of(data.shape, affine)
    if atlas == "Soft":
        grid = template_grid(NLIN6, 2.0)
        on_grid = soft_weights(points_of(grid.shape, grid.affine)).reshape(*grid.shape, 8)
        places = apply_affine(np.linalg.inv(grid.affine), points).T
        weights = np.stack(
            [
                map_coordinates(on_grid[..., n], places, order=1, mode="grid-constant")
                for n in range(8)
            ],
            axis=1,
        )
    else:
        if atlas in ("Other", "Direct"):
            points = warps.pull(NLIN6, points)
        weights = octants(points)[:, None] == np.arange(1, 9)
    total = (data.reshape(-1, 1) * weights * valid.reshape(-1, 1)).sum(axis=0)
    table = study.table(atlas, what)
    # Means are over valid voxels alone; the share of these is in the table.
    expected = total / (table["n_voxels"] * table["coverage"])
    np.testing.assert_allclose(table["n_voxels"], weights.sum(axis=0), rtol=0.1)
    assert np.ptp(expected) > 0.01
    # A voxel of a map may lie between two of an atlas, of which either is the nearest.
    tolerance = (1e-5 if atlas == "Soft" else 0.1) * np.ptp(expected)
    np.testing.assert_allclose(table[what.split("_")[0]], expected, atol=tolerance)


def test_matrices(study):
    matrices = {
        atlas: pd.read_csv(study.file(atlas, "streamlinesfull_desc-snm_relmat"), sep="\t")
        for atlas in LABELLED
    }
    values = {atlas: table.iloc[:, 1:].to_numpy() for atlas, table in matrices.items()}
    for table in matrices.values():
        assert list(table["name"]) == list(table.columns[1:]) == NAMES
    np.testing.assert_array_equal(values["Mine"], values[ALIAS])
    total = values["Direct"].sum()
    assert total > 5000
    # Streamlines that end at a border between regions.
    assert np.abs(values["Other"] - values["Direct"]).sum() < 0.03 * total
    assert np.abs(values["Mine"] - values["Direct"]).sum() > 0.06 * total


def test_matrices_name_the_table_of_their_nodes(study):
    for atlas in LABELLED:
        path = study.file(atlas, "streamlinesfull_desc-snm_relmat").with_suffix(".json")
        (address,) = json.loads(path.read_text())["NodeFiles"]
        nodes = study.out / address.removeprefix("bids::")
        assert nodes == study.atlas_file(atlas, ".tsv")
        assert list(pd.read_csv(nodes, sep="\t")["name"]) == NAMES


def test_scores_of_the_matrix_of_an_atlas(study):
    table = study.table("Mine", "score_desc-afnm")
    assert list(table.index) == NAMES
    assert np.isfinite(table["score"]).all()
    assert np.ptp(table["score"]) > 0.01


def test_a_matrix_is_prepared_with_an_atlas_that_is_warped(study, places):
    tables = {}
    for atlas in ("Other", "Direct", "Mine"):
        (path,) = (places[0] / "matrices").glob(f"*_atlas-{atlas}_stat-z_relmat.tsv")
        tables[atlas] = pd.read_csv(path, sep="\t", index_col="name").to_numpy()
    off = ~np.eye(8, dtype=bool)
    warped, straight = (
        np.abs(tables[atlas] - tables["Direct"])[off].max() for atlas in ("Other", "Mine")
    )
    assert warped < straight / 2


# The atlases in the derivatives


@pytest.mark.parametrize("atlas", list(ATLASES))
def test_the_atlas_is_in_the_derivatives(study, places, atlas):
    root = places[0]
    image, sidecar = study.atlas_file(atlas, ".nii.gz"), study.atlas_file(atlas, ".json")
    content = json.loads(sidecar.read_text())
    assert content["SHA256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    said = {
        "Mine": ("user", "Citation", "Me 2021"),
        "Soft": ("user", "License", "CC-BY"),
        "Lab": ("bids", "Citation", "Lab 2020"),
        ALIAS: ("templateflow", "License", "MIT"),
    }.get(atlas, ("bids", "SpaceName", SPACES[atlas]))
    assert content["Source"] == said[0]
    assert said[2] in content[said[1]]
    table = pd.read_csv(study.atlas_file(atlas, ".tsv"), sep="\t")
    assert list(table["name"]) == NAMES
    assert list(table["hemisphere"]) == ["left"] * 4 + ["right"] * 4
    assert list(table["index"]) == [n * (STEP if atlas == "Mine" else 1) for n in range(1, 9)]
    entity = ATLASES[atlas].split("_")[0]
    described = json.loads((study.out / f"{entity}_description.json").read_text())
    (file,) = described["Files"].values()
    assert file["SHA256"] == content["SHA256"]
    if atlas == "Soft":
        assert gzip.decompress(image.read_bytes()) == (root / "soft.nii").read_bytes()
    elif atlas == "Mine":
        assert image.read_bytes() == (root / "mine.nii.gz").read_bytes()


def test_the_results_pass_the_bids_validator(study, validate_bids):
    validate_bids(study.out)


def test_the_derivatives_give_the_atlases_to_another_run(study, run_command, tmp_path):
    done = run_command(
        *("atlas", "list", "--source", "bids", "--datasets", study.out, "--json"),
        env={"LACUNA_DATA_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout
    found = {(entry["entities"]["atlas"], entry["space"]) for entry in json.loads(done.stdout)}
    names = {name: ATLASES[name].split("_")[0].removeprefix("atlas-") for name in ATLASES}
    assert found == {(names[name], SPACES[name]) for name in ATLASES}


def test_files_that_are_there_are_left_alone_and_lost_ones_come_back(study, run_command):
    lost = study.atlas_file("Lab", ".tsv")
    before = {path: path.stat().st_mtime_ns for path in study.out.glob("tpl-*/*")}
    content = lost.read_bytes()
    lost.unlink()
    checked = run_command("check", "output", study.arguments[0], study.out, env=study.env)
    assert checked.returncode == 1
    assert lost.name in checked.stdout
    done = run_command(*study.arguments, env=study.env)
    assert done.returncode == 0, done.stdout
    assert "up to date" in done.stdout
    assert lost.read_bytes() == content
    changed = {path for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {study.atlas_file("Lab", ending) for ending in (".tsv", ".nii.gz", ".json")}
    checked = run_command("check", "output", study.arguments[0], study.out, env=study.env)
    assert checked.returncode == 0, checked.stdout


# One run more


def test_only_the_matrix_s_atlas_is_used_by_afnm(study, places, run_command, tmp_path):
    root, lab, env = places
    (matrix,) = (root / "matrices").glob("*_atlas-Mine_stat-z_relmat.tsv")
    words = (
        *(study.arguments[0], tmp_path / "out", "participant", "-w", tmp_path / "work"),
        *("--analysis", "afnm", "--connectivity-matrix", matrix, "--participant-label", "01"),
        *("--parcel-atlases", "Lab", "Mine", "--datasets", f"lab={lab}"),
    )
    planned = run_command(*words, "--dry-run", env=env)
    assert planned.returncode == 0, planned.stdout
    assert "atlas-Mine_description.json" in planned.stdout
    assert not (tmp_path / "out").exists()


def test_another_atlas_of_the_same_name_is_told(study, places, run_command, tmp_path):
    _, lab, env = places
    shutil.copytree(lab, tmp_path / "lab")
    words = (
        *(study.arguments[0], tmp_path / "out", "participant", "-w", tmp_path / "work"),
        *("--parcel-atlases", "Lab", "--datasets", tmp_path / "lab"),
        *("--participant-label", "01"),
    )
    assert run_command(*words, env=env).returncode == 0
    image = tmp_path / "lab" / f"tpl-{NLIN6}" / f"tpl-{NLIN6}_atlas-Lab_dseg.nii.gz"
    data = np.asarray(nb.load(image).dataobj)
    save(image, np.where(data == 8, 7, data), template_grid(NLIN6, 2.0), np.int16)
    done = run_command(*words, env=env)
    assert done.returncode == 0, done.stdout
    assert "another atlas of the name Lab" in done.stdout
    (copy,) = (tmp_path / "out").glob("tpl-*/*_dseg.nii.gz")
    assert np.asarray(nb.load(copy).dataobj).max() == 7
    assert "another atlas" not in run_command(*words, env=env).stdout


@pytest.mark.parametrize("flag", [[], ["--dry-run"]])
def test_misspelt_ids_stop_the_run_before_it_starts(study, places, run_command, tmp_path, flag):
    _, lab, env = places
    done = run_command(
        *(study.arguments[0], tmp_path / "out", "participant", "-w", tmp_path / "work", *flag),
        *("--parcel-atlases", "Mine", "Labb", SCHAEFER_ID, "schaefer2018parcels100network7"),
        *("--datasets", f"lab={lab}"),
        env=env,
    )
    assert done.returncode == 2, done.stdout
    last = done.stdout.splitlines()[-1]
    for word in ("'Labb'", "Lab", "'schaefer2018parcels100network7'", SCHAEFER_ID):
        assert word in last
    assert "'Mine'" not in last
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "work").exists()


def test_an_atlas_that_is_not_fetched_yet_names_the_command(study, places, run_command, tmp_path):
    done = run_command(
        *(study.arguments[0], tmp_path / "out", "participant", "-w", tmp_path / "work"),
        *("--parcel-atlases", "Mine", "schaefer2018parcels200networks7"),
        env=places[2],
    )
    assert done.returncode == 2, done.stdout
    command = f"lacuna-nipype atlas fetch schaefer2018parcels200networks7 --space {NLIN6}"
    assert command in done.stdout.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_atlas_whose_way_is_missing_is_named(study, places, run_command, tmp_path):
    _, lab, env = places
    done = run_command(
        *(study.arguments[0], tmp_path / "out", "participant", "-w", tmp_path / "work"),
        *("--structural-connectome", study.arguments[8], "--participant-label", "01"),
        *("--compute-disconnectivity-matrix", "--parcel-atlases", "Other"),
        *("--datasets", f"lab={lab}"),
        env={**env, "TEMPLATEFLOW_HOME": str(tmp_path / "empty")},
    )
    assert done.returncode == 2, done.stdout
    assert f"Atlas Other is in {NLIN2009C}" in done.stdout.splitlines()[-1]
