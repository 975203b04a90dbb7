"""What headers tell of a run's data."""

import math
from dataclasses import replace

import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.cli.graph import pass_memory
from lacuna_nipype.cli.inputs import gather_inputs
from lacuna_nipype.cli.parser import parse_config
from lacuna_nipype.cli.sizes import run_sizes
from lacuna_nipype.connectomes.functional import open_connectome
from lacuna_nipype.connectomes.partial import seeds_per_group

PARTICIPANT = ("--participant-label", "02")


def sizes(demonstration, tmp_path, *words):
    places = [demonstration.bids_dir, tmp_path / "out", "participant", "-w", tmp_path / "work"]
    words = (*PARTICIPANT, "--omp-nthreads", "2", "--nprocs", "2", *words)
    config = parse_config([str(word) for word in (*places, *words)])
    inputs = gather_inputs(config)
    return run_sizes(config, inputs, 1.5), inputs


def test_all_analyses(demonstration, tmp_path):
    found, inputs = sizes(
        demonstration, tmp_path,
        *("--functional-connectome", demonstration.functional_connectome),
        *("--structural-connectome", demonstration.structural_connectome),
        *("--parcel-atlases", "Demo", "--snm-engine", "index"),
    )  # fmt: skip
    masks = [nb.load(lesion.record.path) for lesion in inputs.inspection.lesions]
    assert found.lesions == len(masks) == 2
    assert found.mask_voxels == max(math.prod(mask.shape) for mask in masks)
    connectome = open_connectome(demonstration.functional_connectome)
    assert found.brain_voxels == connectome.n_voxels
    assert found.all_subjects == connectome.n_subjects > found.subjects
    assert found.files == len(connectome.files)
    atlas = np.asarray(nb.load(inputs.atlases[0].image).dataobj)
    assert found.atlas_voxels == atlas.size
    assert np.count_nonzero(atlas) / 3 < found.atlas_values < 3 * np.count_nonzero(atlas)
    assert found.regions == len(np.unique(atlas[atlas > 0]))
    tractogram = demonstration.structural_connectome
    assert found.tractogram_bytes == tractogram.stat().st_size
    assert 0 < found.streamlines < found.tractogram_bytes / 100
    # 2 mm, as by default, and nothing is returned to another grid.
    assert found.structural_voxels == 91 * 109 * 91
    assert found.returned_voxels == found.transform_bytes == 0
    largest = max(mask.get_fdata().sum() * abs(np.linalg.det(mask.affine)) for mask in masks)
    one = abs(np.linalg.det(connectome.grid.affine))
    assert found.seed_voxels == pytest.approx(largest / one, abs=2)
    assert (found.pass_gb, found.threads) == (1.5, 2)
    assert 0 < found.read_gb < 1


def test_a_pass_has_memory_for_all_lesions_at_once(demonstration, tmp_path):
    """With a thousandth of a GB less, the last of many would cost another pass."""
    places = [demonstration.bids_dir, tmp_path / "out", "participant", "-w", tmp_path / "work"]
    connectome = ("--functional-connectome", demonstration.functional_connectome)
    config = parse_config([str(word) for word in (*places, *PARTICIPANT, *connectome)])
    config = replace(config, omp_nthreads=1, nprocs=1, memory_gb=64.0)
    inputs = gather_inputs(config)
    lesion = inputs.inspection.lesions[0]
    for n_lesions in range(1, 400):
        inspection = replace(inputs.inspection, lesions=(lesion,) * n_lesions)
        memory_gb = pass_memory(config, replace(inputs, inspection=inspection))
        for file in inputs.functional.files:
            assert seeds_per_group(file, memory_gb, 1) >= n_lesions


def test_a_pass_stays_within_its_share(demonstration, tmp_path):
    """Subjects that would be inflated ahead, one for each thread, count only where there is room.

    The scans are pretended: 1000 time points, 0.8 GB each.
    """
    places = [demonstration.bids_dir, tmp_path / "out", "participant", "-w", tmp_path / "work"]
    connectome = ("--functional-connectome", demonstration.functional_connectome)
    config = parse_config([str(word) for word in (*places, *PARTICIPANT, *connectome)])
    inputs = gather_inputs(config)
    long = replace(
        inputs.functional.files[0], n_timepoints=1000, voxels=np.zeros((3, 200_000), dtype=int),
        chunks=None, precision=None,
    )  # fmt: skip
    inputs = replace(inputs, functional=replace(inputs.functional, files=(long,)))
    for budget in (4.0, 8.0):
        given = replace(config, omp_nthreads=16, nprocs=16, memory_gb=budget)
        assert pass_memory(given, inputs) <= budget
    # Jobs of a cluster have what they need, unless a limit is given.
    job = replace(config, plugin="SLURM", omp_nthreads=16, nprocs=1, memory_gb=0.0)
    assert pass_memory(job, inputs) > 13
    assert pass_memory(replace(job, memory_gb=4.0), inputs) == 4
    # Less than one seed takes cannot be had.
    assert pass_memory(replace(config, omp_nthreads=16, memory_gb=0.5), inputs) > 0.5


def test_regional_damage_alone(demonstration, tmp_path):
    found, _ = sizes(demonstration, tmp_path, "--parcel-atlases", "Demo")
    assert found.mask_voxels > found.atlas_voxels > 0
    assert found.functional_voxels == found.tractogram_bytes == found.read_gb == 0


def test_maps_on_another_grid(demonstration, tmp_path):
    found, _ = sizes(
        demonstration, tmp_path, "--functional-connectome", demonstration.functional_connectome,
        "--output-resolution", "1",
    )  # fmt: skip
    assert found.returned_voxels == 182 * 218 * 182
