"""Which voxels of a lesion represent it: the selection of Pini et al. (2021).

The lesion's voxels are related to the lesion's mean series in every subject of the connectome;
the first principal component over subjects tells which voxels vary together, and the voxels that
load least on it are left out of the seed (doi:10.1093/braincomms/fcab259).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def principal_loadings(
    correlations: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.float64], float]:
    """Find the loadings of voxels on the first principal component over subjects.

    Parameters
    ----------
    correlations : array, shape (n_subjects, n_voxels)
        Correlation of each voxel with the lesion's mean series in each subject.

    Returns
    -------
    loadings : array, shape (n_voxels,), float64
        Unit norm; the sign is arbitrary. Zeros where subjects do not differ at all.
    explained : float
        Share (0 to 1) of the variance that the component explains; 0 where there is none.
    """
    centred = correlations.astype(np.float64)
    centred -= centred.mean(axis=0)
    # Subjects are fewer than voxels, so the small of the two Gram matrices is taken apart.
    gram = centred @ centred.T
    eigenvalues, vectors = np.linalg.eigh(gram)
    total = float(np.trace(gram))
    if total <= np.finfo(np.float64).eps * correlations.size:
        return np.zeros(correlations.shape[1]), 0.0
    loadings = centred.T @ vectors[:, -1]
    return loadings / np.linalg.norm(loadings), float(eigenvalues[-1]) / total


def keep_voxels(loadings: NDArray[np.float64], percentile: float) -> NDArray[np.bool_]:
    """Choose the voxels that load at least as much as a percentile of all.

    Parameters
    ----------
    loadings : array, shape (n_voxels,)
    percentile : float
        0 to 100; the size of the loading counts, not its sign.

    Returns
    -------
    array of bool, shape (n_voxels,)
        All voxels where no loading differs from zero (a single subject, a single voxel).
    """
    size = np.abs(loadings)
    if size.size == 0 or not size.any():
        return np.ones(size.shape, dtype=bool)
    return size >= np.percentile(size, percentile)
