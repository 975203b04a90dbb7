"""The parcel-level workflow from connectome to table, in one graph with the atlas."""

import h5py
import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from nipype.pipeline import engine as pe

from lacuna_nipype.atlases.parcels import load_parcels
from lacuna_nipype.connectomes.prepare import prepare_matrix
from lacuna_nipype.interfaces import PrepareParcels
from lacuna_nipype.io.quantities import describe_table
from lacuna_nipype.io.tables import column_descriptions
from lacuna_nipype.workflows import init_afnm_wf

SHAPE = (6, 7, 5)
AFFINE = np.array([[8.0, 0, 0, -20], [0, 8, 0, -24], [0, 0, 8, -16], [0, 0, 0, 1]])
NAMES = ["A", "B", "C"]


def save(path, data, affine=AFFINE):
    image = nb.Nifti1Image(data, affine)
    image.set_sform(affine, 4)
    nb.save(image, path)
    return path


@pytest.fixture
def study(tmp_path):
    """Mask and atlas on a grid twice as fine as the connectome's, and the connectome's series."""
    rng = np.random.default_rng(11)
    coarse = np.zeros(SHAPE, dtype=np.int16)
    coarse[:2], coarse[2:4], coarse[4:] = 1, 2, 3
    fine = coarse.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    affine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] -= 2
    save(tmp_path / "atlas.nii.gz", fine, affine)
    (tmp_path / "labels.tsv").write_text(
        "index\tname\n" + "".join(f"{n}\t{name}\n" for n, name in enumerate(NAMES, start=1))
    )
    mask = np.zeros(fine.shape, dtype=np.uint8)
    mask[3:5, 2:6, 2:6] = 1
    save(tmp_path / "mask.nii.gz", mask, affine)
    voxels = np.array(np.nonzero(coarse))
    common = rng.normal(size=(4, 20, 2)) @ rng.normal(size=(2, voxels.shape[1]))
    series = (common + rng.normal(size=common.shape)).astype(np.float32)
    with h5py.File(tmp_path / "c.h5", "w") as handle:
        handle["timeseries"], handle["mask_indices"] = series, voxels
        handle["mask_affine"] = AFFINE
        handle.attrs["mask_shape"], handle.attrs["space"] = SHAPE, "MNI152NLin6Asym"
    exact = series.astype(np.float64)
    means = [exact[:, :, coarse[tuple(voxels)] == n].mean(axis=2) for n in (1, 2, 3)]
    z = np.mean(
        [np.arctanh(np.corrcoef(rows) - np.eye(3)) for rows in zip(*means, strict=True)], axis=0
    )
    return tmp_path, z


def test_from_connectome_to_table(study):
    folder, z = study
    from lacuna_nipype.core.spaces import Grid

    parcels = load_parcels(
        folder / "atlas.nii.gz", folder / "labels.tsv", Grid.make(SHAPE, AFFINE)
    )
    matrix = prepare_matrix(folder / "c.h5", parcels, folder / "matrices", name="X").z_file
    outer = pe.Workflow(name="outer", base_dir=str(folder / "work"))
    atlas = pe.Node(
        PrepareParcels(
            in_file=str(folder / "atlas.nii.gz"), labels_file=str(folder / "labels.tsv")
        ),
        name="atlas",
    )
    afnm_wf = init_afnm_wf(matrix_file=matrix, weighting="voxel_count")
    afnm_wf.inputs.inputnode.mask_file = str(folder / "mask.nii.gz")
    outer.connect(atlas, "out_file", afnm_wf, "inputnode.parcels_file")
    outer.run()
    path = folder / "work" / "outer" / "afnm_wf" / "scores" / "scores.tsv"
    table = pd.read_csv(path, sep="\t")
    # 16 voxels of the 4 x 14 x 10 of the first and of the second parcel.
    weight = np.array([16 / 560, 16 / 560, 0])
    assert table["name"].tolist() == NAMES
    assert table["weight"].to_numpy() == pytest.approx(weight)
    assert table["score"].to_numpy() == pytest.approx(weight @ z, rel=1e-8)
    assert set(column_descriptions(path)) == set(table.columns)
    assert describe_table("afnm", "score")["Description"]


def test_graph_is_made_before_the_matrix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workflow = init_afnm_wf(matrix_file="later.tsv", name="mine")
    assert workflow.name == "mine"
    assert workflow.get_node("matrix_buffer").inputs.matrix_file == str(tmp_path / "later.tsv")
