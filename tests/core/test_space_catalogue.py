"""Spaces whose grids say nothing, spaces that cannot be warped, and grids of any size."""

import numpy as np
import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.spaces import (
    Grid,
    canonical_space,
    check_declared_space,
    grid_of_size,
    is_warpable,
    known_spaces,
    same_space,
    spaces_of_grid,
    template_grid,
)

NLIN6, NLIN2009C, COLIN = "MNI152NLin6Asym", "MNI152NLin2009cAsym", "MNIColin27"


def grid_of(shape, size, origin):
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = origin
    return Grid.make(shape, affine)


def test_colin27_is_listed_and_cannot_be_warped():
    assert canonical_space("colin27") == COLIN
    assert template_grid(COLIN, 1).same_as(grid_of((181, 217, 181), 1, (-90, -126, -72)))
    assert [space for space in known_spaces() if not is_warpable(space)] == [COLIN]
    assert not any(same_space(COLIN, other) for other in known_spaces() if other != COLIN)


@pytest.mark.parametrize(
    "grid",
    [
        grid_of((181, 217, 181), 1, (-90, -126, -72)),
        # The stroke lesions that were drawn on Colin27.
        grid_of((181, 217, 181), 1, (-90, -125, -71)),
        grid_of((61, 73, 61), 3, (-90, -126, -72)),
    ],
    ids=["Colin27, and SPM at 1 mm", "stroke lesions", "SPM at 3 mm"],
)
def test_grids_of_several_spaces_contradict_no_declaration(grid):
    assert spaces_of_grid(grid) == ()
    for space in known_spaces():
        assert check_declared_space(space, grid, "x") == space


def test_standard_grids_still_contradict_colin27():
    with pytest.raises(ValidationError, match=NLIN6):
        check_declared_space(COLIN, template_grid(NLIN6, 1), "x")


def test_3_mm_of_fsl_is_every_third_voxel_of_1_mm():
    fine, coarse = template_grid(NLIN6, 1), template_grid(NLIN6, 3)
    assert coarse.shape == (61, 73, 61)
    first = (coarse.affine[:3, 3] - fine.affine[:3, 3]).astype(int)
    assert np.array_equal(coarse.affine[:3, 3], fine.affine[:3, 3] + first)
    last = first + 3 * (np.array(coarse.shape) - 1)
    assert np.all(last < fine.shape)


@pytest.mark.parametrize("space", [NLIN6, NLIN2009C])
@pytest.mark.parametrize("size", [1.0, 1.5, 2.0, 2.5, 3.0, 4.0])
def test_grids_of_any_size_cover_the_space(space, size):
    grid, whole = grid_of_size(space, size), template_grid(space, 1)
    np.testing.assert_allclose(grid.voxel_sizes, size)
    first = grid.affine[:3, 3] - size / 2
    last = first + size * np.array(grid.shape)
    if size in (1.5, 2.5):
        assert np.all(first <= whole.affine[:3, 3] - 0.5 + 1e-9)
        assert np.all(last >= whole.affine[:3, 3] + np.array(whole.shape) - 0.5 - 1e-9)
        assert np.all(last - first < np.array(whole.shape) + size)
    elif size <= 3:
        assert grid.same_as(template_grid(space, size))
