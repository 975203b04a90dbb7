"""Facts about a map or parcellation, read one volume at a time."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from lacuna_nipype.atlases.checking import read_volumes
from lacuna_nipype.atlases.parcels import open_atlas

_MOST_LABELS = 10_000
# Sums in double precision of this many voxels at a time bound the memory.
_BLOCK = 1 << 22


def map_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe the values of an image.

    Parameters
    ----------
    path : path-like
        NIfTI image of three or four dimensions.

    Returns
    -------
    dict
        ``min``, ``max`` and ``mean`` of the finite values (None where there is none),
        ``n_voxels``, ``n_nonzero`` (finite and not 0), ``n_nan``, ``n_infinite``, ``shape``,
        ``voxel_size`` (mm), ``dtype`` (on disk), and ``labels``: the labels above 0 of a 3D image
        of whole numbers, None for any other. All values are plain, so that JSON takes them.

    Raises
    ------
    ValidationError
        The file is missing, damaged, or no such image.
    """
    path = Path(path)
    image, grid, n_volumes = open_atlas(path)
    facts = _Facts(labelled=not n_volumes)
    for data in read_volumes(image, f"Image {path}"):
        flat = data.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            facts.add(flat[start : start + _BLOCK])
    return {
        **facts.to_dict(),
        "shape": [int(size) for size in image.shape],
        "voxel_size": [round(float(size), 6) for size in grid.voxel_sizes],
        "dtype": str(image.get_data_dtype()),
    }


class _Facts:
    def __init__(self, labelled: bool) -> None:
        self._low, self._high, self._total = math.inf, -math.inf, 0.0
        self._voxels = self._finite = self._nonzero = self._nan = 0
        self._labels: set[int] | None = set() if labelled else None

    def add(self, values: Any) -> None:
        self._voxels += values.size
        if values.dtype.kind == "f":
            self._nan += int(np.count_nonzero(np.isnan(values)))
            values = values[np.isfinite(values)]
        if not values.size:
            return
        self._finite += values.size
        self._nonzero += int(np.count_nonzero(values))
        self._low = min(self._low, float(values.min()))
        self._high = max(self._high, float(values.max()))
        self._total += float(values.sum(dtype=np.float64))
        if self._labels is None:
            return
        # Cheaper than sorting the values of a map, most of which are not whole.
        if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
            self._labels = None
            return
        self._labels.update(int(label) for label in np.unique(values))
        if self._low < 0 or len(self._labels) > _MOST_LABELS:
            self._labels = None

    def to_dict(self) -> dict[str, Any]:
        known = self._finite > 0
        return {
            "min": self._low if known else None,
            "max": self._high if known else None,
            "mean": self._total / self._finite if known else None,
            "n_voxels": self._voxels,
            "n_nonzero": self._nonzero,
            "n_nan": self._nan,
            "n_infinite": self._voxels - self._finite - self._nan,
            "labels": None if self._labels is None else sorted(self._labels - {0}),
        }
