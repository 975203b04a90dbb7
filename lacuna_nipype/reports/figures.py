"""Figures of lesions, maps and matrices, drawn with nilearn and matplotlib.

All are light on black, as scans are looked at, which suits a light page and a dark one. The left
of every picture is the left of the brain, and says so. nilearn and matplotlib take seconds to
import, which is why that is done in functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.files import atomic_path

# Axial levels in mm of every map, the same for all participants so that pages can be compared.
LEVELS_MM = (-44, -28, -12, 4, 20, 36, 52, 66)
SLICES_PER_ROW = 4
INK, PAPER = "#e8e8e8", "#000000"
LESION_COLOUR, OUTLINE_COLOUR = "#ff6a3d", "#5fe3ff"
# What slices show of the MNI space: x, y, z from and to, mm.
BOX_MM = ((-80.0, 80.0), (-114.0, 82.0), (-68.0, 88.0))
_DPI = 110

# Axis and position in mm of a slice; the values in it.
View = tuple[int, float]
Plane = NDArray[np.float32]


@dataclass(frozen=True)
class MapStyle:
    """How a map is shown.

    Parameters
    ----------
    title : str
    label : str
        Text at the colour bar: quantity and unit.
    threshold : float
        Voxels whose value is smaller in size are left out.
    maximum : float
        End of the colour bar; larger values have its colour.
    two_sided : bool
        There are values below minus the threshold too.
    colours : str
        Name of a colour map of nilearn or matplotlib; zero is its middle when two-sided or
        symmetric, its start otherwise.
    symmetric : bool
        The colour map runs from minus the maximum.
    whole : bool
        The values are counts: no fraction is written at the colour bar.
    """

    title: str
    label: str
    threshold: float
    maximum: float
    two_sided: bool = False
    colours: str = "cold_hot"
    symmetric: bool = True
    whole: bool = False

    @property
    def minimum(self) -> float:
        """Value at the start of the colour map."""
        return -self.maximum if self.symmetric else 0.0


def lesion_levels(mask: Any, most: int = 2 * SLICES_PER_ROW) -> list[float]:
    """Choose axial levels from the bottom to the top of a lesion.

    Parameters
    ----------
    mask : nibabel image
        Not empty.
    most : int
        Number of levels, less where the lesion is flat.

    Returns
    -------
    list of float
        z in mm, evenly spaced through voxel centres.
    """
    voxels = np.argwhere(np.asarray(mask.dataobj) > 0)
    z = voxels @ mask.affine[2, :3] + mask.affine[2, 3]
    levels = np.unique(np.round(z, 3))
    picked = np.unique(np.linspace(0, len(levels) - 1, most).round().astype(int))
    return [float(level) for level in levels[picked]]


def sample_plane(image: Any, axis: int, position: float, *, linear: bool = False) -> Plane:
    """Cut a plane out of an image, whatever the order and the angles of its axes are.

    Parameters
    ----------
    image : nibabel image
        3D, without NaN.
    axis : {0, 1, 2}
        What the plane is perpendicular to: x (sagittal), y (coronal) or z (axial).
    position : float
        Along that axis, mm.
    linear : bool
        Between voxels, linear interpolation instead of the nearest voxel.

    Returns
    -------
    array of float32
        Points 1 mm apart over the box of the MNI brain (:data:`BOX_MM`); rows from the bottom
        up (or from behind to the front) and columns from left to right (or from behind to the
        front). Zero outside of the image.
    """
    from scipy.ndimage import map_coordinates

    ranges = [np.arange(low, high + 1.0) for low, high in BOX_MM]
    ranges[axis] = np.array([float(position)])
    # A point midway between voxels takes the one that is further right, in front and up, in
    # whatever order they are stored.
    points = np.stack(np.meshgrid(*ranges, indexing="ij")).reshape(3, -1) + 1e-3
    inverse = np.linalg.inv(image.affine)
    voxels = inverse[:3, :3] @ points + inverse[:3, 3:]
    values = map_coordinates(
        np.asarray(image.dataobj, dtype=np.float32), voxels, order=1 if linear else 0, cval=0.0
    )
    return np.asarray(values.reshape([len(r) for i, r in enumerate(ranges) if i != axis]).T)


def draw_lesion_slices(mask: Any, path: Path) -> None:
    """Draw axial slices through a lesion on the template.

    Parameters
    ----------
    mask : nibabel image
        Binary, not empty, in a standard space.
    path : Path
        PNG to write.
    """
    from matplotlib.colors import ListedColormap

    views = [(2, level) for level in lesion_levels(mask)]
    figure, axes = _slice_figure("Lesion, axial slices", views, bar=False)
    montage = _montage(_cropped(mask), views)
    axes.imshow(
        np.ma.masked_less(montage, 0.5), origin="lower", interpolation="nearest", alpha=0.7,
        cmap=ListedColormap([LESION_COLOUR]),
    )  # fmt: skip
    axes.contour(montage, levels=[0.5], colors=LESION_COLOUR, linewidths=0.9)
    _save(figure, path)


def draw_lesion_glass(mask: Any, path: Path) -> None:
    """Draw a lesion in a transparent brain, from both sides, behind and above.

    Parameters
    ----------
    mask : nibabel image
        Binary, not empty, in a standard space.
    path : Path
        PNG to write.
    """
    from matplotlib.colors import ListedColormap

    figure = _figure("Lesion in the glass brain", 3.0)
    _glass(figure, _cropped(mask, whole_x=True), (0, 0.09, 1, 0.79), threshold=0.5,
           cmap=ListedColormap([LESION_COLOUR]))  # fmt: skip
    _save(figure, path)


def draw_map_slices(image: Any, style: MapStyle, path: Path, *, lesion: Any = None) -> None:
    """Draw a map on axial slices of the template, with the outline of the lesion.

    Parameters
    ----------
    image : nibabel image
        In a standard space, without NaN.
    style : MapStyle
    path : Path
        PNG to write.
    lesion : nibabel image, optional
        Binary mask to outline, not empty.
    """
    _draw_views(image, style, [(2, level) for level in LEVELS_MM], path, lesion)


def draw_map_peak(
    image: Any, style: MapStyle, point: Sequence[float], path: Path, *, lesion: Any = None
) -> None:
    """Draw the three slices of a map through a point.

    Parameters
    ----------
    image : nibabel image
        In a standard space, without NaN.
    style : MapStyle
    point : sequence of three floats
        mm, RAS.
    path : Path
        PNG to write.
    lesion : nibabel image, optional
        Binary mask to outline, not empty.
    """
    _draw_views(image, style, list(enumerate(point)), path, lesion, cross=point)


def _draw_views(
    image: Any,
    style: MapStyle,
    views: Sequence[View],
    path: Path,
    lesion: Any,
    cross: Sequence[float] | None = None,
) -> None:
    figure, axes = _slice_figure(style.title, views)
    montage = _montage(image, views)
    axes.imshow(
        np.ma.masked_where(np.abs(montage) < style.threshold, montage), origin="lower",
        interpolation="nearest", cmap=_colour_map(style.colours), vmin=style.minimum,
        vmax=style.maximum,
    )  # fmt: skip
    if lesion is not None:
        outline = _montage(_cropped(lesion), views)
        if outline.any():
            axes.contour(outline, levels=[0.5], colors=OUTLINE_COLOUR, linewidths=1.0)
    if cross is not None:
        _draw_cross(axes, views, cross)
    _colour_bar(figure, style)
    _save(figure, path)


def draw_map_glass(image: Any, style: MapStyle, path: Path) -> None:
    """Draw a map in a transparent brain, from both sides, behind and above.

    Parameters
    ----------
    image : nibabel image
        In a standard space, without NaN.
    style : MapStyle
    path : Path
        PNG to write.
    """
    figure = _figure(style.title, 3.0)
    _glass(figure, image, (0, 0.09, 0.9, 0.79), threshold=style.threshold, plot_abs=False,
           cmap=_colour_map(style.colours), vmin=style.minimum, vmax=style.maximum)  # fmt: skip
    _colour_bar(figure, style)
    _save(figure, path)


def draw_matrix(
    matrix: NDArray[np.floating[Any]],
    blocks: Sequence[tuple[str, int]],
    title: str,
    label: str,
    path: Path,
) -> None:
    """Draw a matrix between regions as a heat map with lines between networks.

    Parameters
    ----------
    matrix : array, shape (n_regions, n_regions)
        NaN where two regions are not connected at all: grey.
    blocks : sequence of (str, int)
        Name and number of regions of each network, in the order of the rows.
    title, label : str
        Above the figure; at the colour bar, with the unit.
    path : Path
        PNG to write.
    """
    import matplotlib as mpl

    figure = _figure(title, 6.6, width=8.0)
    axes = figure.add_axes((0.15, 0.14, 0.72, 0.77), facecolor="#2b2b2b")
    colours = mpl.colormaps["inferno"].with_extremes(bad="#2b2b2b")
    shown = axes.imshow(matrix, cmap=colours, vmin=0, vmax=100, interpolation="nearest")
    edges = np.cumsum([0, *(size for _, size in blocks)]) - 0.5
    if len(blocks) > 1:
        axes.hlines(edges[1:-1], *edges[[0, -1]], color="#9a9a9a", linewidth=0.5)
        axes.vlines(edges[1:-1], *edges[[0, -1]], color="#9a9a9a", linewidth=0.5)
    middles = (edges[1:] + edges[:-1]) / 2
    names = [name for name, _ in blocks]
    axes.set_xticks(middles, names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(middles, names)
    axes.tick_params(colors=INK, labelsize=10 if len(blocks) <= 10 else 8, length=0)
    bar = figure.colorbar(shown, cax=figure.add_axes((0.89, 0.14, 0.025, 0.77)))
    _dress_bar(bar, label)
    _save(figure, path)


# --- pieces ---------------------------------------------------------------------------------


@cache
def _template() -> Any:
    """MNI152 template that nilearn carries, 1 mm; nothing is downloaded."""
    from nilearn.datasets import load_mni152_template

    return load_mni152_template(resolution=1)


def _figure(title: str, height: float, width: float = 10.0) -> Any:
    from matplotlib.figure import Figure

    # Not of pyplot: nothing is kept of it when it is saved, however many are drawn.
    figure = Figure(figsize=(width, height), facecolor=PAPER, dpi=_DPI)
    figure.text(0.012, 1 - 0.12 / height, title, color=INK, fontsize=14, va="top")
    return figure


def _slice_figure(title: str, views: Sequence[View], *, bar: bool = True) -> tuple[Any, Any]:
    """Make a figure with the template in several views, and the axes to draw on, in mm."""
    template = _montage(_template(), views, linear=True)
    share, head = (0.9 if bar else 1.0), 0.45
    # One slice or two are not blown up to the width of many.
    across = max(template.shape[1], 3 * (BOX_MM[0][1] - BOX_MM[0][0] + 1))
    height = template.shape[0] * 10.0 * share / across
    figure = _figure(title, height + head)
    axes = figure.add_axes((0, 0, share * template.shape[1] / across, height / (height + head)))
    axes.set_axis_off()
    axes.imshow(template, origin="lower", cmap="gray", vmin=0.0, vmax=1.15,
                interpolation="bilinear")  # fmt: skip
    # What is drawn later must not move the limits.
    axes.autoscale(enable=False)
    for (axis, position), (row, column) in zip(views, _corners(views), strict=True):
        _mark(axes, axis, position, row, column)
    return figure, axes


def _mark(axes: Any, axis: int, position: float, row: int, column: int) -> None:
    """Write the place of a slice below it, and left and right at its sides."""
    style = {"color": INK, "fontsize": 11, "clip_on": True}
    words = f"{'xyz'[axis]} = {position:.0f}"
    axes.text(column + 4, row + 4, words, va="bottom", **style)
    width, height = _plane_shape(axis)[::-1]
    sides = ("behind", "front") if axis == 0 else ("L", "R")
    for side, x, align in zip(sides, (6, width - 6), ("left", "right"), strict=True):
        axes.text(column + x, row + height - 4, side, ha=align, va="top", **style)


def _draw_cross(axes: Any, views: Sequence[View], point: Sequence[float]) -> None:
    for (axis, _), (row, column) in zip(views, _corners(views), strict=True):
        across, up = (other for other in range(3) if other != axis)
        x = column + point[across] - BOX_MM[across][0]
        y = row + point[up] - BOX_MM[up][0]
        height, width = _plane_shape(axis)
        axes.plot([column, column + width], [y, y], color=INK, linewidth=0.5)
        axes.plot([x, x], [row, row + height], color=INK, linewidth=0.5)


def _montage(image: Any, views: Sequence[View], *, linear: bool = False) -> Plane:
    """Put planes of an image beside each other, rows of four from the top down."""
    corners = _corners(views)
    shapes = [_plane_shape(axis) for axis, _ in views]
    ends = [(r + h, c + w) for (r, c), (h, w) in zip(corners, shapes, strict=True)]
    whole = np.zeros(np.max(ends, axis=0), dtype=np.float32)
    for (axis, position), (row, column) in zip(views, corners, strict=True):
        plane = sample_plane(image, axis, position, linear=linear)
        whole[row : row + plane.shape[0], column : column + plane.shape[1]] = plane
    return whole


def _corners(views: Sequence[View]) -> list[tuple[int, int]]:
    """Row and column at the bottom left of every view in the montage, whose rows go upwards."""
    n_rows = -(-len(views) // SLICES_PER_ROW)
    heights = [_plane_shape(axis)[0] for axis, _ in views]
    corners, column = [], 0
    for number, (axis, _) in enumerate(views):
        row, place = divmod(number, SLICES_PER_ROW)
        column = 0 if place == 0 else column
        corners.append(((n_rows - 1 - row) * max(heights), column))
        column += _plane_shape(axis)[1]
    return corners


def _plane_shape(axis: int) -> tuple[int, int]:
    """Rows and columns of a plane."""
    across, up = (int(high - low) + 1 for i, (low, high) in enumerate(BOX_MM) if i != axis)
    return up, across


def _cropped(mask: Any, *, whole_x: bool = False) -> Any:
    """Keep the box around a lesion: the rest costs time and shows nothing.

    From ``whole_x``, nilearn can tell where the hemispheres are.
    """
    import nibabel as nb

    data = np.asarray(mask.dataobj) > 0
    inside = np.argwhere(data)
    first, last = np.maximum(inside.min(axis=0) - 1, 0), inside.max(axis=0) + 2
    if whole_x:
        sideways = int(np.argmax(np.abs(mask.affine[0, :3])))
        first[sideways], last[sideways] = 0, data.shape[sideways]
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    affine = mask.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    return nb.Nifti1Image(data[box].astype(np.float32), affine)


def _glass(figure: Any, image: Any, box: tuple[float, ...], **options: Any) -> None:
    """Draw four views and say from where each is seen."""
    from nilearn.plotting import plot_glass_brain

    with warnings.catch_warnings():
        # A hemisphere may hold nothing; that is no news.
        warnings.filterwarnings("ignore", message="empty mask")
        display = plot_glass_brain(
            image, display_mode="lyrz", figure=figure, axes=box, black_bg=True, colorbar=False,
            annotate=True, **options,
        )  # fmt: skip
    sides = {"l": "left side", "y": "from behind", "r": "right side", "z": "from above"}
    for direction, words in sides.items():
        axes = display.axes[direction].ax
        axes.text(0.5, -0.02, words, color=INK, fontsize=10, ha="center", va="top",
                  transform=axes.transAxes)  # fmt: skip


def _colour_bar(figure: Any, style: MapStyle) -> None:
    """Draw the bar of the values that are shown; those below the threshold are grey."""
    import matplotlib as mpl
    import matplotlib.ticker

    axes = figure.add_axes((0.92, 0.1, 0.016, 0.72))
    norm = mpl.colors.Normalize(style.minimum, style.maximum)
    # A point at the end says that there are values beyond it; per cent end at 100.
    beyond = ("neither", "max", "both")[style.symmetric + (style.symmetric and style.two_sided)]
    bar = figure.colorbar(
        mpl.cm.ScalarMappable(norm, _colour_map(style.colours)), cax=axes, extend=beyond
    )
    low = -style.threshold if style.symmetric else 0.0
    axes.axhspan(low, style.threshold, color="#4a4a4a")
    if not style.two_sided:
        axes.set_ylim(0, style.maximum)
    bar.locator = mpl.ticker.MaxNLocator(6, steps=[1, 2, 5, 10], integer=style.whole)
    _dress_bar(bar, style.label)


def _colour_map(name: str) -> Any:
    import matplotlib as mpl
    import nilearn.plotting  # noqa: F401 - its colour maps are registered on import

    return mpl.colormaps[name]


def _dress_bar(bar: Any, label: str) -> None:
    bar.set_label(label, color=INK, fontsize=11)
    bar.ax.tick_params(colors=INK, labelsize=10)
    bar.outline.set_edgecolor("#7a7a7a")


def _save(figure: Any, path: Path) -> None:
    """Write a PNG of 256 colours: a third of the size, and no loss that can be seen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    with atomic_path(path) as temporary:
        few = drawn.quantize(256, method=Image.Quantize.MAXCOVERAGE)
        few.save(temporary, format="PNG", optimize=True)
