"""The Pini method from files to masks, against a direct computation over all subjects."""

from __future__ import annotations

import json

import nibabel as nb
import numpy as np
import pytest
from sklearn.decomposition import PCA

from lacuna_nipype.connectomes.functional import read_connectome_file
from lacuna_nipype.connectomes.pini import write_seed_correlations, write_selected_seeds
from lacuna_nipype.connectomes.seeds import make_seed
from lacuna_nipype.connectomes.store import StoreSource, write_store

SHAPE = (8, 9, 10)
N_SUBJECTS, N_TIMES = 9, 40


@pytest.fixture
def study():
    """Series of nine subjects in a brain of about 400 voxels, and two lesions."""
    rng = np.random.default_rng(11)
    brain = rng.uniform(size=SHAPE) < 0.6
    voxels = np.array(np.nonzero(brain))
    series = rng.normal(size=(N_SUBJECTS, N_TIMES, voxels.shape[1]))
    series += rng.normal(size=(N_SUBJECTS, N_TIMES, 1)) * rng.uniform(size=voxels.shape[1])
    lesions = np.zeros((2, *SHAPE), dtype=bool)
    lesions[0, 1:6, 2:6, 1:7] = True
    lesions[1, 4, 4, 4:6] = True
    return series.astype(np.float32), voxels, lesions


def cut(study, folder, sizes, write_connectome, kind=None):
    """Write the connectome in files of so many subjects each, in Lacuna's layout or as a store."""
    series, voxels, _ = study
    affine = np.diag([4.0, 4, 4, 1])
    files, start = [], 0
    for number, size in enumerate(sizes):
        path = folder / f"part_{kind}_{len(sizes)}_{number}.h5"
        part = series[start : start + size]
        start += size
        if kind is None:
            write_connectome(path, part, voxels, SHAPE, affine)
        else:
            lacuna = write_connectome(folder / "header.h5", part, voxels, SHAPE, affine)
            header = read_connectome_file(lacuna)
            source = StoreSource(header.grid, header.voxels, N_TIMES, "MNI152NLin6Asym", ("x",))
            write_store(path, source, part, kind=kind)
        files.append(read_connectome_file(path))
    return files


def select(study, folder, files, percentile=20.0):
    """Run both steps; boolean masks on the grid, and the JSON records."""
    partials = []
    for number, file in enumerate(files):
        seeds = [make_seed(lesion, file) for lesion in study[2]]
        partials.append(write_seed_correlations(file, seeds, folder / f"seeds_{number}.h5"))
    out = folder / f"selected_{len(files)}_{percentile}"
    masks, metas = write_selected_seeds(partials, seeds, files[0], out, percentile=percentile)
    return (
        [np.asarray(nb.load(path).dataobj) > 0 for path in masks],
        [json.loads(path.read_text())["PiniSelection"] for path in metas],
    )


def reference(study, percentile):
    """All subjects at once: correlation by correlation, scikit-learn, percentile."""
    series, voxels, lesions = study
    masks = []
    for lesion in lesions:
        inside = np.flatnonzero(lesion[tuple(voxels)])
        r = np.zeros((N_SUBJECTS, len(inside)))
        for subject in range(N_SUBJECTS):
            values = series[subject][:, inside].astype(np.float64)
            for place in range(len(inside)):
                r[subject, place] = np.corrcoef(values.mean(axis=1), values[:, place])[0, 1]
        size = np.abs(PCA(n_components=1, svd_solver="full").fit(r).components_[0])
        mask = np.zeros(SHAPE, dtype=bool)
        mask[tuple(voxels[:, inside[size >= np.percentile(size, percentile)]])] = True
        masks.append(mask)
    return masks


@pytest.mark.parametrize("percentile", [0.0, 20.0, 55.0])
def test_agrees_with_a_direct_computation(study, tmp_path, write_connectome, percentile):
    files = cut(study, tmp_path, [9], write_connectome)
    masks, records = select(study, tmp_path, files, percentile)
    for mask, expected, record in zip(masks, reference(study, percentile), records, strict=True):
        np.testing.assert_array_equal(mask, expected)
        assert record["VoxelsKept"] == expected.sum()
        assert 0 < record["VarianceExplained"] <= 1


@pytest.mark.parametrize("kind", [None, "int16", "int8"])
def test_how_the_connectome_is_cut_does_not_matter(study, tmp_path, write_connectome, kind):
    expected = reference(study, 20.0)
    for sizes in ([9], [2, 7], [1, 1, 3, 4]):
        masks, _ = select(study, tmp_path, cut(study, tmp_path, sizes, write_connectome, kind))
        for mask, whole in zip(masks, expected, strict=True):
            # Integers of eight bits move loadings that lie at the percentile across it.
            allowed = 0 if kind != "int8" else 0.06 * whole.sum()
            assert (mask != whole).sum() <= allowed


def test_empty_lesion_and_single_subject(study, tmp_path, write_connectome):
    series, voxels, lesions = study
    lesions[1] = False
    single = (series[:1], voxels, lesions)
    masks, records = select(single, tmp_path, cut(single, tmp_path, [1], write_connectome))
    assert masks[1].sum() == 0
    assert records[1]["VoxelsKept"] == 0
    assert records[0]["VoxelsKept"] == records[0]["VoxelsBefore"] == masks[0].sum()
