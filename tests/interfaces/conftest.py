"""Tiny synthetic inputs: a 6 x 7 x 5 grid of 8 mm voxels, an HDF5 connectome, an atlas."""

import json

import h5py
import nibabel as nb
import numpy as np
import pytest
from nipype.pipeline import engine as pe

SHAPE = (6, 7, 5)
AFFINE = np.array([[8.0, 0, 0, -20], [0, 8, 0, -24], [0, 0, 8, -16], [0, 0, 0, 1]])


@pytest.fixture
def affine():
    return AFFINE.copy()


@pytest.fixture
def shape():
    return SHAPE


@pytest.fixture
def make_image(tmp_path):
    """Write an image with the sform of a standard space; the path as text."""

    def make(name, data, affine=AFFINE):
        image = nb.Nifti1Image(np.asarray(data), affine)
        image.set_sform(affine, 4)
        path = tmp_path / "inputs" / name
        path.parent.mkdir(exist_ok=True)
        nb.save(image, path)
        return str(path)

    return make


@pytest.fixture
def make_mask(make_image):
    """Write a mask that is 1 inside a box of voxels."""

    def make(name="mask.nii.gz", box=np.s_[2:4, 2:5, 1:3], dtype=np.uint8):
        data = np.zeros(SHAPE, dtype=dtype)
        data[box] = 1
        return make_image(name, data)

    return make


@pytest.fixture
def make_connectome(tmp_path):
    """Write an HDF5 file of a connectome; brain voxels are those away from the border."""

    def make(name="batch_1.h5", n_subjects=3, seed=0):
        rng = np.random.default_rng(seed)
        brain = np.zeros(SHAPE, dtype=bool)
        brain[1:-1, 1:-1, 1:-1] = True
        voxels = np.array(np.nonzero(brain))
        path = tmp_path / "inputs" / name
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as handle:
            handle["timeseries"] = rng.normal(size=(n_subjects, 15, voxels.shape[1])).astype("f4")
            handle["mask_indices"] = voxels
            handle["mask_affine"] = AFFINE
            handle.attrs["mask_shape"] = SHAPE
            handle.attrs["space"] = "MNI152NLin6Asym"
        return str(path)

    return make


@pytest.fixture
def atlas(tmp_path, make_image):
    """Image and labels of an atlas of two regions: low and high along x."""
    data = np.zeros(SHAPE, dtype=np.int16)
    data[:3], data[3:] = 1, 2
    labels = tmp_path / "inputs" / "labels.tsv"
    image = make_image("atlas.nii.gz", data)
    labels.write_text("index\tname\n1\tlow\n2\thigh\n")
    return image, str(labels)


@pytest.fixture
def run_node(tmp_path):
    """Run an interface as a node under ``tmp_path/work``; the outputs."""

    def run(interface, name="node", **options):
        return (
            pe.Node(interface, name=name, base_dir=str(tmp_path / "work"), **options).run().outputs
        )

    return run


@pytest.fixture
def in_node_folder(tmp_path):
    """Tell whether files lie in the folder of the node that :func:`run_node` ran."""

    def check(paths, name="node"):
        folder = tmp_path / "work" / name
        paths = [paths] if isinstance(paths, str) else paths
        return bool(paths) and all(path.startswith(f"{folder}/") for path in paths)

    return check


@pytest.fixture
def runs_once(tmp_path):
    """Run what makes an interface twice, and tell whether the second run was cached."""

    def check(make_interface):
        result = tmp_path / "work" / "twice" / "result_twice.pklz"
        times = []
        for _ in range(2):
            pe.Node(make_interface(), name="twice", base_dir=str(tmp_path / "work")).run()
            times.append(result.stat().st_mtime_ns)
        return times[0] == times[1]

    return check


@pytest.fixture
def data_of():
    return lambda path: np.asanyarray(nb.load(path).dataobj)


@pytest.fixture
def content_of():
    def read(path):
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)

    return read
