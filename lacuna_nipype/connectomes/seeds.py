"""Lesion masks as seeds of a functional connectome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.functional import ConnectomeFile
from lacuna_nipype.core.exceptions import SpatialMismatchError
from lacuna_nipype.core.images import load_map


@dataclass(frozen=True, eq=False)
class Seed:
    """Voxels of a lesion in a connectome.

    Parameters
    ----------
    voxels : array of int, shape (n,)
        Positions among the connectome's brain voxels, ascending.
    n_outside : int
        Lesion voxels of the same grid outside the connectome's brain mask.
    """

    voxels: NDArray[np.intp]
    n_outside: int


def make_seed(mask: NDArray[np.bool_], file: ConnectomeFile) -> Seed:
    """Find a mask's voxels among those of a connectome.

    Parameters
    ----------
    mask : array of bool, shape of the connectome's grid
    file : ConnectomeFile

    Returns
    -------
    Seed
    """
    inside = np.flatnonzero(mask[tuple(file.voxels)])
    return Seed(inside, int(np.count_nonzero(mask)) - len(inside))


def read_seeds(file: ConnectomeFile, mask_files: Sequence[Path]) -> list[Seed]:
    """Read masks that lie on a connectome's grid.

    Parameters
    ----------
    file : ConnectomeFile
    mask_files : sequence of Path

    Returns
    -------
    list of Seed

    Raises
    ------
    SpatialMismatchError
        A mask lies on another grid; it must be resampled first.
    """
    seeds = []
    for path in mask_files:
        data, grid = load_map(path)
        if not grid.same_as(file.grid):
            raise SpatialMismatchError(
                f"Mask {path} ({grid.describe()}) is not on the grid of connectome {file.path} "
                f"({file.grid.describe()}); resample it first."
            )
        seeds.append(make_seed(data > 0, file))
    return seeds
