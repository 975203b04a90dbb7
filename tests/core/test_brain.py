"""The brain mask of the package: nilearn's, and a brain."""

import numpy as np
import pytest
from nilearn.datasets import load_mni152_brain_mask

from lacuna_nipype.core.brain import load_brain_mask


def test_it_is_the_mask_of_nilearn():
    mask, grid = load_brain_mask()
    theirs = load_mni152_brain_mask(resolution=1)
    assert np.array_equal(mask, np.asarray(theirs.dataobj) > 0)
    np.testing.assert_array_equal(grid.affine, theirs.affine)


def test_it_is_a_brain():
    mask, grid = load_brain_mask()
    assert 1700 < np.count_nonzero(mask) * grid.voxel_volume_ml < 2000
    inside = np.rint(np.linalg.inv(grid.affine) @ [-30, -20, 20, 1])[:3].astype(int)
    assert mask[tuple(inside)]
    assert not mask[0, 0, 0]


def test_nobody_changes_it_for_the_others():
    mask, _ = load_brain_mask()
    with pytest.raises(ValueError, match="read-only"):
        mask[0, 0, 0] = True
