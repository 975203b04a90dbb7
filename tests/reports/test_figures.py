"""Figures: what is drawn lies where it is in the brain."""

import matplotlib as mpl
import nibabel as nb
import numpy as np
import pytest
from PIL import Image

from lacuna_nipype.reports import figures
from lacuna_nipype.reports.figures import MapStyle, lesion_levels, sample_plane

RAS = np.array([[6.0, 0, 0, -87], [0, 6, 0, -120], [0, 0, 6, -70], [0, 0, 0, 1]])
SHAPE = (30, 36, 28)
STYLE = MapStyle("A map", "t", 5.0, 20.0)


def left_lesion():
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[6:11, 14:20, 12:17] = 1
    return nb.Nifti1Image(mask, RAS)


def flipped(image):
    """The same image with x stored from right to left."""
    affine = image.affine.copy()
    affine[0, 0], affine[0, 3] = -6, RAS[0, 3] + 6 * (SHAPE[0] - 1)
    return nb.Nifti1Image(np.asarray(image.dataobj)[::-1], affine)


def turned(image):
    """The same image with its axes in another order."""
    return nb.Nifti1Image(
        np.asarray(image.dataobj).transpose(2, 0, 1), image.affine[:, [2, 0, 1, 3]]
    )


def pixels(path, colour, tolerance=40):
    """Where a picture has about a colour, as (rows, columns, 2) of a boolean mask."""
    wanted = np.array(mpl.colors.to_rgb(colour)) * 255
    shown = np.asarray(Image.open(path).convert("RGB"), dtype=float)
    return np.all(np.abs(shown - wanted) < tolerance, axis=2)


def test_a_plane_holds_the_nearest_voxels():
    rng = np.random.default_rng(0)
    image = nb.Nifti1Image(rng.normal(size=SHAPE).astype(np.float32), RAS)
    data, inverse = np.asarray(image.dataobj), np.linalg.inv(RAS)
    for axis, position in ((0, -33.2), (1, 14.0), (2, 21.7)):
        plane = sample_plane(image, axis, position)
        across, up = (i for i in range(3) if i != axis)
        low = [bounds[0] for bounds in figures.BOX_MM]
        for row, column in rng.integers(0, np.array(plane.shape), size=(50, 2)):
            point = np.zeros(3)
            point[axis], point[across], point[up] = position, low[across] + column, low[up] + row
            voxel = np.rint(inverse[:3, :3] @ (point + 1e-3) + inverse[:3, 3]).astype(int)
            inside = np.all(voxel >= 0) and np.all(voxel < SHAPE)
            assert plane[row, column] == (data[tuple(voxel)] if inside else 0)


@pytest.mark.parametrize("change", [flipped, turned])
def test_the_order_of_the_axes_does_not_matter(change):
    rng = np.random.default_rng(0)
    image = nb.Nifti1Image(rng.normal(size=SHAPE).astype(np.float32), RAS)
    for axis in range(3):
        np.testing.assert_array_equal(
            sample_plane(change(image), axis, 10.3), sample_plane(image, axis, 10.3)
        )


def test_an_oblique_image_is_cut_where_it_is():
    angle = np.deg2rad(30)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = rotation @ RAS
    data = np.zeros(SHAPE, dtype=np.float32)
    data[20, 10, 15] = 1
    centre = affine @ [20, 10, 15, 1]
    plane = sample_plane(nb.Nifti1Image(data, affine), 2, centre[2])
    rows, columns = np.nonzero(plane)
    assert columns.mean() + figures.BOX_MM[0][0] == pytest.approx(centre[0], abs=0.5)
    assert rows.mean() + figures.BOX_MM[1][0] == pytest.approx(centre[1], abs=0.5)
    # 6 x 6 mm.
    assert 30 <= len(rows) <= 42


def test_levels_go_through_the_lesion():
    # z indices 12 to 16.
    assert lesion_levels(left_lesion()) == [2.0, 8.0, 14.0, 20.0, 26.0]
    assert lesion_levels(left_lesion(), most=2) == [2.0, 26.0]
    data = np.zeros(SHAPE, dtype=np.uint8)
    data[3, 3, 3] = 1
    assert lesion_levels(nb.Nifti1Image(data, RAS)) == [-52.0]


@pytest.mark.parametrize("change", [lambda image: image, flipped, turned])
def test_a_left_lesion_is_on_the_left_of_every_slice(tmp_path, change):
    figures.draw_lesion_slices(change(left_lesion()), tmp_path / "slices.png")
    found = pixels(tmp_path / "slices.png", figures.LESION_COLOUR, tolerance=60)
    # Five slices: four of equal width above, one below.
    panel = found.shape[1] / 4
    _, columns = np.nonzero(found)
    assert found.sum() > 500
    assert np.all(columns % panel < panel / 2)
    # x = -51 to -27 of -80 to 80 mm.
    assert np.median(columns % panel) / panel == pytest.approx((80 - 39) / 161, abs=0.04)


@pytest.mark.parametrize("change", [lambda image: image, flipped, turned])
def test_a_left_lesion_is_in_the_left_half_of_the_glass_brain(tmp_path, change):
    figures.draw_lesion_glass(change(left_lesion()), tmp_path / "glass.png")
    found = pixels(tmp_path / "glass.png", figures.LESION_COLOUR)
    width = found.shape[1]
    # From the left, from behind, from the right (where it cannot be seen), from above.
    shares = [found[:, int(a * width) : int(b * width)].sum() for a, b in
              ((0, 0.28), (0.28, 0.5), (0.5, 0.785), (0.785, 1))]  # fmt: skip
    assert min(shares[0], shares[1], shares[3]) > 300
    assert shares[2] == 0
    _, columns = np.nonzero(found[:, int(0.785 * width) :])
    assert columns.max() < 0.5 * 0.215 * width


def test_only_what_exceeds_the_threshold_is_drawn(tmp_path):
    data = np.zeros(SHAPE, dtype=np.float32)
    data[20:24, 14:20, 12:17] = 4.9
    weak = nb.Nifti1Image(data.copy(), RAS)
    data[20:24, 14:20, 12:17] = 20
    strong = nb.Nifti1Image(data, RAS)
    nothing = nb.Nifti1Image(np.zeros_like(data), RAS)
    for name, image in (("weak", weak), ("strong", strong), ("nothing", nothing)):
        figures.draw_map_slices(image, STYLE, tmp_path / f"{name}.png")
    read = {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert read["weak"] == read["nothing"] != read["strong"]


def test_the_lesion_is_outlined(tmp_path):
    data = nb.Nifti1Image(np.zeros(SHAPE, dtype=np.float32), RAS)
    figures.draw_map_slices(data, STYLE, tmp_path / "map.png", lesion=left_lesion())
    outline = pixels(tmp_path / "map.png", figures.OUTLINE_COLOUR)
    assert 100 < outline.sum() < 3000


def test_the_peak_is_where_the_lines_cross(tmp_path):
    data = np.zeros(SHAPE, dtype=np.float32)
    data[22, 16, 14] = 20
    x, y, z = (RAS @ [22, 16, 14, 1])[:3]
    image = nb.Nifti1Image(data, RAS)
    figures.draw_map_peak(image, STYLE, (x, y, z), tmp_path / "peak.png")
    white = pixels(tmp_path / "peak.png", "white", tolerance=12)
    # Views from the side and from behind are 197 and 161 mm wide; the third is seen from above.
    scale = 0.9 * white.shape[1] / (197 + 161 + 161)
    first = int((197 + 161) * scale)
    rows, columns = np.nonzero(white[:, first : first + int(161 * scale)])
    bottom = white.shape[0]
    assert len(rows) > 60
    assert np.median(columns) / scale + figures.BOX_MM[0][0] == pytest.approx(x, abs=2)
    assert np.median(bottom - rows) / scale + figures.BOX_MM[1][0] == pytest.approx(y, abs=2)


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: figures.draw_lesion_slices(left_lesion(), path),
        lambda path: figures.draw_lesion_glass(left_lesion(), path),
        lambda path: figures.draw_matrix(np.eye(3) * 50, [("a", 1), ("b", 2)], "M", "%", path),
    ],
)
def test_pictures_are_the_same_every_time_and_leave_nothing_behind(tmp_path, draw):
    import matplotlib.pyplot as plt

    for name in ("one", "two"):
        draw(tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert plt.get_fignums() == []
    with Image.open(tmp_path / "one.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_a_matrix_shows_its_networks(tmp_path):
    values = np.full((6, 6), np.nan)
    figures.draw_matrix(values, [("", 6)], "M", "%", tmp_path / "grey.png")
    values[:3, 3:] = 100
    figures.draw_matrix(values, [("", 6)], "M", "%", tmp_path / "corner.png")
    bright = pixels(tmp_path / "corner.png", mpl.colormaps["inferno"](1.0)[:3], tolerance=12)
    box = bright[:, : int(0.87 * bright.shape[1])]
    rows, columns = np.nonzero(box)
    # The upper right quarter: rows from the top down, columns from the left.
    assert columns.min() / bright.shape[1] == pytest.approx(0.15 + 0.72 / 2, abs=0.02)
    assert rows.max() / bright.shape[0] == pytest.approx(1 - (0.14 + 0.77 / 2), abs=0.03)
    assert not pixels(tmp_path / "grey.png", mpl.colormaps["inferno"](1.0)[:3], 12)[
        :, : box.shape[1]
    ].any()
