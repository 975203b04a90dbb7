"""Small atlases on disk, and the server of siibra."""

import importlib.util
import sys
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.core.spaces import template_grid

# Loaded before the tests, so that these write ``from siibra_server import ...``.
if "siibra_server" not in sys.modules:
    _spec = importlib.util.spec_from_file_location(
        "siibra_server", Path(__file__).parents[1] / "siibra_server.py"
    )
    sys.modules["siibra_server"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["siibra_server"])


@pytest.fixture
def data_dir(data_folder, tmp_path, monkeypatch):
    """Give the data folder, with nothing in TemplateFlow's."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templateflow"))
    return data_folder


def save(path, data, affine=None):
    """Write an image with sform and qform codes, its folder too."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nb.Nifti1Image(data, np.diag([2.0, 2, 2, 1]) if affine is None else affine)
    image.set_sform(image.affine, 4)
    image.set_qform(image.affine, 4)
    nb.save(image, path)
    return path


@pytest.fixture
def write_image():
    return save


@pytest.fixture
def write_labels():
    """Write one label for each block of ten voxels along x, on the grid of a template."""

    def write(path, space, resolution, labels, dtype=np.uint8):
        grid = template_grid(space, resolution)
        data = np.zeros(grid.shape, dtype)
        for number, label in enumerate(labels):
            data.reshape(-1)[10 * number : 10 * number + 10] = label
        return save(path, data, grid.affine)

    return write
