import nibabel as nb
import numpy as np
import pytest
from group_data import AFFINE, write_map

from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.io.group_maps import common_grid, overlap_maps, read_on_grid, write_overlaps

SHAPE = (4, 5, 6)


@pytest.fixture
def maps():
    return np.random.default_rng(3).normal(scale=5, size=(9, *SHAPE)).astype(np.float32)


def write_all(folder, maps, **options):
    return [write_map(folder, f"{n:02d}", data, **options) for n, data in enumerate(maps)]


def flipped(path):
    """The same image with another order and direction of axes."""
    image = nb.load(path)
    turned = image.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    nb.save(turned, path)


@pytest.mark.parametrize(
    ("analysis", "quantity", "reference"),
    [
        ("fnm", "t", [lambda m: (m > 4).mean(0), lambda m: (m < -4).mean(0)]),
        ("snm", "disconnectionpct", [lambda m: (m >= 50).mean(0)]),
        ("lesion", None, [lambda m: (m > 0).mean(0), lambda m: (m > 0).sum(0)]),
    ],
)
def test_overlap_equals_a_numpy_sum(tmp_path, maps, analysis, quantity, reference):
    if analysis == "snm":
        maps = np.abs(maps).round() * 10
    if analysis == "lesion":
        maps = (maps > 3).astype(np.float32)
    paths = write_all(tmp_path, maps)
    flipped(paths[4])
    made = overlap_maps(analysis, quantity, t_threshold=4)
    rows = [(one.rule.comparison, one.rule.threshold, one.fraction) for one in made]
    written = write_overlaps(paths, rows, tmp_path)
    assert len(written) == len(reference)
    for path, expected in zip(written, reference, strict=True):
        image = nb.load(path)
        np.testing.assert_allclose(np.asarray(image.dataobj), expected(maps), rtol=1e-6)
        np.testing.assert_array_equal(image.affine, AFFINE)


def test_other_maps_have_no_overlap():
    assert overlap_maps("fnm", "z") == ()
    assert overlap_maps("snm", "tdi") == ()


def test_turned_axes_are_turned_back(tmp_path, maps):
    first, second = write_all(tmp_path, maps[:2])
    flipped(second)
    grid = common_grid([first, second])
    np.testing.assert_array_equal(read_on_grid(second, grid), maps[1])


def test_different_grids_are_refused_with_the_list(tmp_path, maps):
    paths = write_all(tmp_path / "a", maps[:2])
    shifted = AFFINE + np.array([[0, 0, 0, 1.0]] + 3 * [[0, 0, 0, 0]])
    paths += write_all(tmp_path / "b", maps[:1], affine=shifted, label="M")
    with pytest.raises(SpatialMismatchError, match=r"label-L.*label-M"):
        common_grid(paths)


def test_unreadable_maps_are_named(tmp_path, maps):
    path = write_all(tmp_path, maps[:1])[0]
    grid = common_grid([path])
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValidationError, match="make it again"):
        read_on_grid(path, grid)
    path.write_text("no image")
    with pytest.raises(ValidationError, match="no readable image"):
        common_grid([path])
    with pytest.raises(ValidationError, match="no map"):
        common_grid([])
