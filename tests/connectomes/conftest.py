"""Small functional connectomes on disk."""

import h5py
import numpy as np
import pytest


@pytest.fixture
def write_connectome():
    """Write one HDF5 file in Lacuna's layout; any part can be replaced or left out (None)."""

    def write(
        path, series, voxels, shape, affine, *, space="MNI152NLin6Asym", chunks=None, **parts
    ):
        content = {
            "timeseries": np.asarray(series),
            "mask_indices": np.asarray(voxels),
            "mask_affine": np.asarray(affine, dtype=float),
            "mask_shape": np.asarray(shape),
            **parts,
        }
        with h5py.File(path, "w") as handle:
            for key in ("timeseries", "mask_indices", "mask_affine"):
                if content[key] is not None:
                    handle.create_dataset(
                        key, data=content[key], chunks=chunks if key == "timeseries" else None
                    )
            if content["mask_shape"] is not None:
                handle.attrs["mask_shape"] = content["mask_shape"]
            if space is not None:
                handle.attrs["space"] = space
        return path

    return write
