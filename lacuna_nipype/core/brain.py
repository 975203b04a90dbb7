"""Where the brain is in MNI coordinates."""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.images import load_map
from lacuna_nipype.core.spaces import Grid


@cache
def load_brain_mask() -> tuple[NDArray[np.bool_], Grid]:
    """Read the brain mask that comes with the package.

    Returns
    -------
    mask : array of bool, shape (197, 233, 189)
        Shared between callers, and read-only.
    grid : Grid
        1 mm. The template is the symmetric one of 2009; the asymmetric ones differ from it by a
        few millimetres, which does not matter for the share of a lesion inside.
    """
    with as_file(files("lacuna_nipype.data").joinpath("brain_mask.nii.gz")) as path:
        values, grid = load_map(path)
    mask = values > 0
    mask.setflags(write=False)
    return mask, grid
