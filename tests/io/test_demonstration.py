"""The demonstration dataset is small, valid, reproducible and anatomically sensible."""

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.cli import tutorial
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.simulation import NETWORKS, simulate_streamlines
from lacuna_nipype.io.demonstration import (
    DEFAULT_SEED,
    connectomes,
    dataset,
    write_demonstration,
    writer,
)
from lacuna_nipype.io.demonstration.anatomy import ATLAS_GRID, LESION_GRIDS, load_anatomy
from lacuna_nipype.io.demonstration.atlas import Parcellation

LEFT, RIGHT = -1, 1
MASKS = {
    "sub-01/ses-01/anat/sub-01_ses-01_space-MNI152NLin6Asym_label-acuteinfarct_mask": LEFT,
    "sub-02/ses-01/anat/sub-02_ses-01_space-MNI152NLin6Asym_label-acuteinfarct_mask": LEFT,
    "sub-02/ses-02/anat/sub-02_ses-02_space-MNI152NLin6Asym_label-acuteinfarct_mask": LEFT,
    "sub-03/anat/sub-03_space-MNI152NLin6Asym_label-acuteinfarct_mask": LEFT,
    "sub-03/anat/sub-03_space-MNI152NLin6Asym_label-haemorrhage_mask": RIGHT,
    "sub-04/anat/sub-04_space-MNI152NLin6Asym_label-acuteinfarct_mask": LEFT,
    "sub-05/anat/sub-05_space-MNI152NLin6Asym_label-acuteinfarct_mask": RIGHT,
}


@pytest.fixture(scope="session")
def anatomy():
    return load_anatomy(ATLAS_GRID)


@pytest.fixture(scope="session")
def brain():
    return load_anatomy(LESION_GRIDS["RAS"]).brain


@pytest.fixture(scope="session")
def parcellation(demonstration):
    labels = np.asarray(nib.load(demonstration.atlas_image).dataobj)
    networks = [NETWORKS.index(row["network"]) for row in read_table(demonstration.atlas_labels)]
    return Parcellation(ATLAS_GRID, labels, np.array(networks))


@pytest.fixture(scope="session")
def streamlines(demonstration):
    return nib.streamlines.load(demonstration.structural_connectome).streamlines


@pytest.fixture
def cheap(monkeypatch):
    """Replace the parts by one small file each, for tests of the folder's handling."""

    def write_parts(paths, seed):
        paths.bids_dir.mkdir()
        description = {"Name": dataset.DATASET_NAME, "Seed": seed}
        (paths.bids_dir / "dataset_description.json").write_text(json.dumps(description))
        paths.functional_connectome.mkdir(parents=True)
        paths.readme.write_text("whole")

    monkeypatch.setattr(writer, "_write_parts", write_parts)


def read_table(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def inside(mask, affine, points):
    voxels = np.round(nib.affines.apply_affine(np.linalg.inv(affine), points)).astype(int)
    return mask[tuple(voxels.T)]


def test_the_whole_is_small_and_complete(demonstration):
    files = [path for path in demonstration.directory.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 60e6
    assert {path.name for path in demonstration.directory.iterdir()} == {
        "README.md",
        "bids",
        "connectomes",
    }
    assert all(path.exists() for path in (demonstration.atlas_image, demonstration.atlas_labels))


def test_the_readme_says_what_it_is_and_how_to_run_it(demonstration):
    text = demonstration.readme.read_text()
    assert "not for science" in text
    assert (
        "lacuna-nipype DIR/bids OUT participant "
        "--functional-connectome DIR/connectomes/functional "
        "--structural-connectome DIR/connectomes/structural/demo.tck "
        "--parcel-atlases Demo --plugin MultiProc\n"
    ) in text


def test_masks_have_the_names_that_bids_gives(demonstration):
    found = demonstration.bids_dir.glob("sub-*/**/*_mask.nii.gz")
    stems = {path.relative_to(demonstration.bids_dir).as_posix()[:-7] for path in found}
    assert stems == set(MASKS)
    assert all((demonstration.bids_dir / f"{stem}.json").exists() for stem in stems)


def test_participants_match_the_folders(demonstration):
    rows = read_table(demonstration.bids_dir / "participants.tsv")
    folders = {path.name for path in demonstration.bids_dir.glob("sub-*")}
    assert {row["participant_id"] for row in rows} == folders
    assert all(float(row["symptom_score"]) >= 0 for row in rows)


@pytest.mark.parametrize(("stem", "side"), MASKS.items())
def test_a_lesion_is_inside_the_brain_and_on_its_side(demonstration, brain, stem, side):
    image = nib.load(demonstration.bids_dir / f"{stem}.nii.gz")
    lesion = np.asarray(image.dataobj)
    points = nib.affines.apply_affine(image.affine, np.argwhere(lesion))
    assert image.shape == (182, 218, 182)
    assert image.get_data_dtype() == np.uint8
    assert set(np.unique(lesion)) == {0, 1}
    assert 1000 <= lesion.sum() <= 40_000
    assert (points[:, 0] * side > 0).all()
    assert inside(brain, LESION_GRIDS["RAS"].affine, points).all()


def test_both_storage_orientations_occur_on_both_sides(demonstration):
    first_voxels = {
        (side, *nib.load(demonstration.bids_dir / f"{stem}.nii.gz").affine[:3, 3].astype(int))
        for stem, side in MASKS.items()
    }
    assert first_voxels == {(s, x, -126, -72) for s in (LEFT, RIGHT) for x in (90, -91)}


def test_the_second_session_is_a_smaller_lesion_inside_the_first(demonstration):
    first, second = (
        np.asarray(nib.load(demonstration.bids_dir / f"{stem}.nii.gz").dataobj) > 0
        for stem in list(MASKS)[1:3]
    )
    assert 0 < second.sum() < 0.7 * first.sum()
    assert not (second & ~first).any()


def test_the_dataset_passes_the_bids_validator(demonstration):
    beside_python = Path(sys.executable).parent / "bids-validator-deno"
    validator = shutil.which("bids-validator-deno") or shutil.which(beside_python)
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    run = subprocess.run(
        [validator, demonstration.bids_dir], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout


def test_the_atlas_has_mirrored_parcels_and_matching_names(demonstration, parcellation):
    image = nib.load(demonstration.atlas_image)
    rows = read_table(demonstration.atlas_labels)
    labels = parcellation.labels
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(image.affine, ATLAS_GRID.affine)
    assert np.unique(labels).tolist() == list(range(101))
    assert np.bincount(labels.ravel()).min() > 200
    left = np.where((labels > 0) & (labels <= 50), labels, 0)
    np.testing.assert_array_equal(np.where(left > 0, left + 50, 0)[::-1], labels * (labels > 50))
    assert [int(row["index"]) for row in rows] == list(range(1, 101))
    assert len({row["name"] for row in rows}) == 100
    for one, other in zip(rows[:50], rows[50:], strict=True):
        assert one["name"].replace("_LH_", "_RH_") == other["name"]
        assert one["network"] == other["network"]
    assert min(Counter(row["network"] for row in rows).values()) >= 6


def test_the_functional_connectome_has_the_documented_layout(demonstration):
    files = sorted(demonstration.functional_connectome.iterdir())
    assert [path.name for path in files] == ["demo_part-1.h5", "demo_part-2.h5"]
    for path in files:
        with h5py.File(path) as store:
            series, attributes = store["timeseries"], store.attrs
            n_voxels = series.shape[2]
            assert series.shape[:2] == (6, 60)
            assert 28_000 < n_voxels < 30_000
            assert series.dtype == np.float32
            assert series.chunks == (1, 60, n_voxels)
            assert store["mask_indices"].shape == (3, n_voxels)
            assert tuple(attributes["mask_shape"]) == (46, 55, 46)
            assert attributes["space"] == "MNI152NLin6Asym"
            assert [attributes[f"n_{what}"] for what in ("subjects", "timepoints", "voxels")] == [
                *series.shape
            ]


def test_a_seed_correlates_with_its_network(demonstration, parcellation):
    """The seed is found through world coordinates alone, as a reader of the file would."""
    within, between = [], []
    for path in demonstration.functional_connectome.iterdir():
        with h5py.File(path) as store:
            points = nib.affines.apply_affine(store["mask_affine"][:], store["mask_indices"][:].T)
            labels = inside(parcellation.labels, ATLAS_GRID.affine, points)
            network = np.concatenate([[-1], parcellation.networks])[labels]
            series = store["timeseries"][0].astype(float)
        series = (series - series.mean(axis=0)) / series.std(axis=0)
        for label in (1, 20, 45):
            seed = series[:, labels == label].mean(axis=1)
            r = (seed / seed.std()) @ series / len(series)
            own = network == parcellation.networks[label - 1]
            within.append(r[own & (labels != label)].mean())
            between.append(r[~own & (labels > 0)].mean())
    assert np.mean(within) > np.mean(between) + 0.2


def test_the_tractogram_runs_inside_the_brain(streamlines, anatomy):
    points = streamlines.get_data()
    assert len(streamlines) == 12_000
    assert inside(anatomy.brain, ATLAS_GRID.affine, points).mean() > 0.9
    assert inside(anatomy.white + anatomy.grey > 0.5, ATLAS_GRID.affine, points).mean() > 0.9


def test_streamlines_prefer_their_own_network(streamlines, parcellation):
    ends = np.array([[line[0], line[-1]] for line in streamlines])
    labels = inside(parcellation.labels, ATLAS_GRID.affine, ends.reshape(-1, 3)).reshape(-1, 2)
    known = (labels > 0).all(axis=1)
    networks = parcellation.networks[labels[known] - 1]
    assert known.mean() > 0.6
    assert np.mean(networks[:, 0] == networks[:, 1]) > 0.4


def test_the_tractogram_has_its_step_size_count_and_end_marker(demonstration):
    path = demonstration.structural_connectome
    header = nib.streamlines.load(path, lazy_load=True).header
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert float(header["step_size"]) == 1
    assert int(header["count"]) == sidecar["Count"] == 12_000
    assert sidecar["Space"] == "MNI152NLin6Asym"
    assert sidecar["StepSize"] == 1.0
    assert np.isinf(np.frombuffer(path.read_bytes()[-12:], "<f4")).all()


@pytest.mark.mrtrix
@pytest.mark.skipif(shutil.which("tckinfo") is None, reason="MRtrix3 is not on PATH")
def test_mrtrix_counts_the_streamlines(demonstration):
    command = ["tckinfo", "-quiet", "-count", demonstration.structural_connectome]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "actual count in file: 12000" in text


def test_a_lesion_is_the_same_to_the_byte(demonstration, tmp_path):
    tissue = load_anatomy(LESION_GRIDS["RAS"]).lesionable()
    plan = dataset.LESIONS[0]
    lesion = dataset.make_lesion(plan, tissue, DEFAULT_SEED)
    path = tmp_path / "again.nii.gz"
    dataset.save_volume(path, lesion[::-1].astype(np.uint8), LESION_GRIDS[plan.storage])
    assert digest(path) == digest(demonstration.bids_dir / f"{plan.stem}.nii.gz")
    assert not np.array_equal(lesion, dataset.make_lesion(plan, tissue, DEFAULT_SEED + 1))


def test_a_connectome_file_is_the_same_to_the_byte(parcellation, tmp_path, monkeypatch):
    voxels = connectomes.FunctionalVoxels(
        ATLAS_GRID, np.zeros((3, 200), np.int32), np.arange(200) % 101
    )
    paths = [tmp_path / name for name in ("one.h5", "other.h5")]
    for path, now in zip(paths, (1e9, 1.5e9), strict=True):
        monkeypatch.setattr("time.time", lambda now=now: now)
        connectomes.write_functional_file(path, voxels, parcellation.networks, [[1, 2, 3]])
    assert digest(paths[0]) == digest(paths[1])


def test_streamlines_are_the_same_to_the_bit(anatomy, parcellation, streamlines):
    cortex = connectomes.make_cortex(anatomy, parcellation)
    rng = np.random.default_rng([DEFAULT_SEED, 3])
    again = simulate_streamlines(cortex, connectomes.N_STREAMLINES, rng)
    np.testing.assert_array_equal(np.concatenate(again), streamlines.get_data())


def test_a_folder_that_is_not_empty_is_refused(cheap, tmp_path):
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(ValidationError, match=r"is not empty; name a new folder"):
        write_demonstration(tmp_path)


def test_a_file_is_refused(cheap, tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ValidationError, match="is a file"):
        write_demonstration(path)


def test_force_replaces_a_demonstration_and_nothing_else(cheap, tmp_path):
    write_demonstration(tmp_path, seed=1)
    (tmp_path / "results").mkdir()
    (tmp_path / "bids" / "stale").write_text("")
    paths = write_demonstration(tmp_path, seed=2, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "bids",
        "connectomes",
        "results",
    }
    assert [path.name for path in paths.bids_dir.iterdir()] == ["dataset_description.json"]
    assert json.loads((paths.bids_dir / "dataset_description.json").read_text())["Seed"] == 2


def test_force_never_replaces_a_dataset_of_somebody_else(cheap, tmp_path):
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids" / "dataset_description.json").write_text('{"Name": "My patients"}')
    with pytest.raises(ValidationError, match="which would be lost"):
        write_demonstration(tmp_path, force=True)
    assert (tmp_path / "bids" / "dataset_description.json").exists()


def test_a_run_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(paths, seed):
        paths.bids_dir.mkdir()
        raise RuntimeError("disk full")

    monkeypatch.setattr(writer, "_write_parts", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        write_demonstration(tmp_path / "demo")
    assert list((tmp_path / "demo").iterdir()) == []


def test_leftovers_of_a_killed_run_are_cleared(cheap, tmp_path):
    (tmp_path / ".lacuna-tutorial-abc" / "bids").mkdir(parents=True)
    assert write_demonstration(tmp_path).readme.exists()
    assert not list(tmp_path.glob(".lacuna*"))


def test_the_command_prints_the_next_command(cheap, tmp_path, capsys):
    folder = tmp_path / "my demo"
    assert tutorial.main([str(folder)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"Next: lacuna-nipype '{folder}/bids' '{folder}/results' participant")


def test_the_command_explains_a_bad_folder(cheap, tmp_path, capsys):
    (tmp_path / "thesis.doc").write_text("mine")
    assert tutorial.main([str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("argv", [[], ["a", "b"], ["a", "--seed", "-3"], ["a", "--seed", "x"]])
def test_the_command_refuses_bad_usage(argv, capsys):
    assert tutorial.main(argv) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("lacuna-nipype: ")


def test_the_help_needs_no_heavy_import():
    code = (
        "import sys; from lacuna_nipype.cli.tutorial import main; assert main(['--help']) == 0; "
        "assert not {'numpy', 'scipy', 'nibabel', 'nilearn', 'h5py'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
