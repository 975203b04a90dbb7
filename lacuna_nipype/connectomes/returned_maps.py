"""Functional maps on another grid, or in another space, than the connectome's.

Statistics are not moved one by one: z and its standard error are interpolated, and everything
else is made of them, so that r = tanh(z) and t = z / error hold in every voxel afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.maps import MAPS, MapOptions, derive_maps
from lacuna_nipype.core.correlation import CorrelationMaps, t_values
from lacuna_nipype.core.images import save_image
from lacuna_nipype.core.spaces import Grid


def return_maps(
    z: NDArray[Any],
    standard_error: NDArray[Any] | None,
    valid: NDArray[np.bool_],
    seed: NDArray[np.bool_],
    n_subjects: int,
    options: MapOptions,
) -> dict[str, NDArray[Any]]:
    """Make all maps of one lesion from z and its standard error on the new grid.

    Parameters
    ----------
    z, standard_error : array, shape of the grid
        Interpolated; no standard error for a connectome of one subject.
    valid : array of bool, shape of the grid
        Voxels at which they mean something.
    seed : array of bool, shape of the grid
        The lesion, which is left out of the family of tests.
    n_subjects : int
        Of the connectome.
    options : MapOptions

    Returns
    -------
    dict of str to array, shape of the grid
        By quantity, and ``valid``; 0 outside the valid voxels, 1 for p and q.
    """
    inside = np.asarray(z, dtype=np.float64)[valid]
    t = error = None
    if standard_error is not None:
        error = np.asarray(standard_error, dtype=np.float64)[valid]
        t = t_values(inside, error)
    maps = CorrelationMaps(inside, np.tanh(inside), t, error)
    made = derive_maps(maps, n_subjects, ~seed[valid], options)
    volumes: dict[str, NDArray[Any]] = {}
    for key, values in made.items():
        dtype, background = MAPS[key]
        volumes[key] = np.full(valid.shape, background, dtype=dtype)
        volumes[key][valid] = values
    volumes["valid"] = valid.astype(np.uint8)
    return volumes


def write_returned_maps(
    volumes: dict[str, NDArray[Any]], grid: Grid, folder: Path
) -> dict[str, str]:
    """Write maps; give their paths by quantity."""
    return {
        key: str(save_image(folder / f"{key}.nii.gz", values, grid.affine, values.dtype))
        for key, values in volumes.items()
    }
