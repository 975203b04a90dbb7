"""Writing a functional connectome file in Lacuna's HDF5 layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype import __version__
from lacuna_nipype.connectomes.store import StoreSource
from lacuna_nipype.core.files import atomic_path


def write_series_file(
    target: Path,
    source: StoreSource,
    subjects: Iterable[NDArray[np.floating[Any]]],
    n_subjects: int,
    *,
    description: str,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write one file in Lacuna's layout.

    Parameters
    ----------
    target : Path
        HDF5 file; written atomically.
    source : StoreSource
        Grid, voxels in the order of the series, their length, and what they were made from.
    subjects : iterable of arrays, shape (n_timepoints, n_voxels)
        One subject at a time; only one is in memory.
    n_subjects : int
        How many there will be.
    description : str
        Attribute ``description``.
    progress : callable, optional
        Called with the number of subjects done.

    Returns
    -------
    Path
        The target. Series are float32, compressed (gzip 4, shuffled) subject by subject.
    """
    n_voxels = source.voxels.shape[1]
    shape = (n_subjects, source.n_timepoints, n_voxels)
    with atomic_path(target) as temporary, h5py.File(temporary, "w") as out:
        series = out.create_dataset(
            "timeseries", shape, "f4", chunks=(1, *shape[1:]),
            compression="gzip", compression_opts=4, shuffle=True, track_times=False,
        )  # fmt: skip
        for number, values in enumerate(subjects):
            series[number] = values
            if progress is not None:
                progress(number + 1)
        for key, content in (
            ("mask_indices", source.voxels.astype(np.int32)),
            ("mask_affine", source.grid.affine),
        ):
            out.create_dataset(key, data=content, track_times=False)
        attributes: dict[str, Any] = {
            "mask_shape": source.grid.shape,
            "space": source.space,
            "n_subjects": n_subjects,
            "n_timepoints": source.n_timepoints,
            "n_voxels": n_voxels,
            "description": description,
            "source": json.dumps(list(source.names)),
            "software": f"lacuna-nipype {__version__}",
        }
        for key, value in attributes.items():
            out.attrs[key] = value
    return target
