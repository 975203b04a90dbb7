"""What the page says of one lesion: facts, figures, bars and tables, analysis by analysis."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError, sentence_of
from lacuna_nipype.core.masks import hemisphere_of, left_share, lesion_points
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.reports import figures
from lacuna_nipype.reports.figures import MapStyle
from lacuna_nipype.reports.results import LesionResults, ResultFile
from lacuna_nipype.reports.tables import (
    MatrixPicture,
    RegionTable,
    SortableTable,
    matrix_pictures,
    region_tables,
)

logger = logging.getLogger("lacuna_nipype")

# Without a threshold of the user's own, this share of the voxels is shown: the strongest.
SHOWN_SHARE = 0.1
# The peak is looked for this far from the lesion, where smoothness does not explain it.
PEAK_DISTANCE_MM = 10.0
DISCONNECTION_SHOWN_PCT = 1.0
FEW_SEED_VOXELS_INSIDE = 0.8
MANY_SUBJECTS = 100
TITLES = {
    "rd": "Regional damage",
    "fnm": "Functional network",
    "afnm": "Functional network by regions",
    "snm": "Structural disconnection",
}


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Parameters
    ----------
    path : Path
        PNG.
    alt : str
        What it shows, for those who do not see it.
    caption : str
    """

    path: Path
    alt: str
    caption: str


class Bar(NamedTuple):
    """Value of one region.

    Parameters
    ----------
    name, value : str
    length : float
        Per cent of the longest.
    negative : bool
    marked : bool
        Stands out, such as a value that is significant.
    """

    name: str
    value: str
    length: float
    negative: bool
    marked: bool = False


@dataclass(frozen=True)
class Bars:
    """Regions with the largest values of one quantity.

    Parameters
    ----------
    title, unit : str
    rows : tuple of Bar
    note : str
        What marked ones are; empty where none are to be marked.
    """

    title: str
    unit: str
    rows: tuple[Bar, ...]
    note: str = ""


@dataclass
class Analysis:
    """What the page says of one analysis.

    Parameters
    ----------
    key, title : str
    facts : list of (str, str)
    pictures : list of Picture
    bars : list of Bars
    tables : list of SortableTable
    files : list of Path
        Results that it is about.
    remarks : list of str
        What a reader must know to read the figures rightly.
    missing : list of str
        What was not made, or is not there any more.
    failures : list of str
        What is there and cannot be shown, and why.
    """

    key: str
    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    tables: list[SortableTable] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass
class LesionSection:
    """What the page says of one lesion.

    Parameters
    ----------
    lesion : LesionResults
    mask : Analysis
        Of the lesion itself.
    analyses : list of Analysis
    tables : list of RegionTable
    """

    lesion: LesionResults
    mask: Analysis
    analyses: list[Analysis] = field(default_factory=list)
    tables: list[RegionTable] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """All that is there and could not be shown."""
        return [text for part in (self.mask, *self.analyses) for text in part.failures]


def lesion_section(
    lesion: LesionResults, folder: Path, expected: Mapping[str, Any]
) -> LesionSection:
    """Make everything that the page says of a lesion, and draw its figures.

    Parameters
    ----------
    lesion : LesionResults
    folder : Path
        Where the figures go.
    expected : mapping
        Analyses that ran or were to run, by key; only the keys count.

    Returns
    -------
    LesionSection
        A result that is missing or damaged is named in it; it does not raise.
    """
    mask = Analysis("lesion", "Lesion")
    section = LesionSection(lesion, mask)
    shown = _Shown(lesion, folder)
    attempt(mask, "The lesion", lambda: _describe_lesion(mask, shown))
    tables: list[RegionTable] = []
    attempt(mask, "The tables of regions", lambda: tables.extend(region_tables(lesion)))
    section.tables = tables
    describe = {"rd": _damage, "fnm": _functional, "afnm": _by_regions, "snm": _structural}
    for key, title in TITLES.items():
        made = [file for file in lesion.files if file.entities.get("desc") == key]
        if not made and key not in expected:
            continue
        analysis = Analysis(key, title)
        section.analyses.append(analysis)
        if not made:
            analysis.missing.append("There are no results of this analysis.")
            continue
        attempt(analysis, title, lambda: describe[key](analysis, shown))  # noqa: B023
        analysis.bars = [bars for table in tables for bars in _bars(table, key)]
    return section


def attempt(part: Analysis, what: str, make: Callable[[], None]) -> None:
    """Do one part of a page; whatever is wrong with its files, the others are still shown.

    Parameters
    ----------
    part : Analysis
        Is told what cannot be shown.
    what : str
        Start of that sentence.
    make : callable
    """
    try:
        make()
    except Exception as error:
        logger.exception("%s cannot be shown", what)
        part.failures.append(f"{what} cannot be shown: {sentence_of(error)}")


class _Shown:
    """A lesion's images, read once, and the figures drawn of them."""

    def __init__(self, lesion: LesionResults, folder: Path) -> None:
        import nibabel as nb

        self.lesion, self.folder = lesion, folder
        self.file = lesion.newest("mask", "lesion")
        self.mask: Any = None
        self.data: NDArray[np.bool_] | None = None
        self.problem = ""
        if self.file is None:
            return
        try:
            affine, values = read_volume(self.file.path)
        except ValidationError as error:
            # Maps are shown without the outline of the lesion.
            self.problem = str(error)
        else:
            self.data = values > 0
            self.mask = nb.Nifti1Image(self.data.astype(np.uint8), affine)

    @property
    def outline(self) -> Any:
        """The mask, unless there is nothing to outline."""
        return self.mask if self.data is not None and self.data.any() else None

    def figure(self, name: str) -> Path:
        """Path of a figure."""
        return self.folder / f"{self.lesion.key}_desc-{name}.png"


# --- the lesion itself ----------------------------------------------------------------------


def _describe_lesion(part: Analysis, shown: _Shown) -> None:
    if shown.problem:
        raise ValidationError(shown.problem)
    if shown.file is None or shown.data is None:
        part.missing.append("There is no mask of this lesion in the results.")
        return
    sidecar = shown.file.sidecar
    sizes = np.linalg.norm(shown.mask.affine[:3, :3], axis=0)
    size = " \u00d7 ".join(f"{value:.3g}" for value in sizes)
    n_voxels = int(shown.data.sum())
    volume = n_voxels * float(np.prod(sizes)) / 1000
    part.facts += [
        ("Volume", f"{number_text(volume)} ml ({n_voxels:,} voxels of {size} mm)"),
        ("Space", str(shown.file.entities.get("space", "not known"))),
    ]
    sources = [str(source).rpartition("/")[2] for source in sidecar.get("Sources", [])]
    if n_voxels:
        grid = Grid.make(shown.mask.shape, shown.mask.affine)
        _locate(part, lesion_points(shown.data, grid))
        _draw_lesion(part, shown, sidecar)
    else:
        part.remarks.append("The mask holds no lesion voxel: there is nothing to draw.")
    if sources:
        part.facts.append(("Mask", ", ".join(sources)))
    if sidecar.get("LesionNormalisation"):
        account = _resampling(sidecar["LesionNormalisation"])
        part.facts.append(("Normalised from the participant's image", account))


def _locate(part: Analysis, points: NDArray[np.float64]) -> None:
    share = left_share(points)
    if share is None:
        side = "at the midline"
    else:
        words = {"left": "left", "right": "right", "both": "both sides"}[hemisphere_of(share)]
        side = f"{words} ({100 * share:.0f} % left, {100 * (1 - share):.0f} % right)"
    x, y, z = points.mean(axis=1)
    part.facts.append(("Hemisphere", side))
    part.facts.append(("Centre of mass", f"x {x:.0f}, y {y:.0f}, z {z:.0f} mm (MNI)"))


def _draw_lesion(part: Analysis, shown: _Shown, sidecar: Mapping[str, Any]) -> None:
    slices, glass = shown.figure("lesionslices"), shown.figure("lesionglass")
    figures.draw_lesion_slices(shown.mask, slices)
    figures.draw_lesion_glass(shown.mask, glass)
    facts = dict(part.facts)
    where = f"{facts['Volume']}, hemisphere: {facts['Hemisphere']}"
    part.pictures += [
        Picture(
            slices,
            f"Axial slices from the bottom to the top of the lesion on a brain template; {where}.",
            "Axial slices from the bottom to the top of the lesion (orange), z in mm, on the "
            "MNI152 template of 2009, which differs from other MNI templates by a few mm.",
        ),
        Picture(
            glass,
            f"The lesion in a transparent brain from four sides; {where}.",
            "The whole lesion, projected onto four views.",
        ),
    ]


def _resampling(account: Mapping[str, Any]) -> str:
    text = (
        f"{account['VoxelsBefore']:,} to {account['VoxelsAfter']:,} voxels, "
        f"{number_text(account['VolumeMLBefore'])} to {number_text(account['VolumeMLAfter'])} ml"
    )
    if account.get("CentreShiftMM") is not None:
        text += f", centre moved by {account['CentreShiftMM']:.1f} mm"
    if account.get("VoxelsAdjusted"):
        text += f", {account['VoxelsAdjusted']:,} voxels adjusted to keep the volume"
    if account.get("KeptByCentre"):
        text += "; the lesion is smaller than a voxel, so the voxel at its centre stands for it"
    return text


# --- analyses -------------------------------------------------------------------------------


def _damage(part: Analysis, shown: _Shown) -> None:
    stats = _stats(shown, "rd")
    for atlas in stats.get("Atlases", []):
        touched = f"{atlas['RegionsTouched']} of {atlas['Regions']} regions touched"
        inside = atlas.get("LesionInRegionsPercent")
        if inside is not None:
            touched += f"; {inside:.0f} % of the lesion lies in regions of the atlas"
        part.facts.append((f"Atlas {atlas['Name']}", touched))
        if not atlas["RegionsTouched"]:
            part.remarks.append(
                f"The lesion touches no region of {atlas['Name']}: that says that it lies "
                "elsewhere (such as in white matter), not that it does no harm."
            )


def _functional(part: Analysis, shown: _Shown) -> None:
    quantity = "t"
    file = shown.lesion.newest("statmap", "fnm", "t")
    if file is None:
        quantity, file = "z", shown.lesion.newest("statmap", "fnm", "z")
    if file is None:
        part.missing.append("There is no map of t or z.")
        return
    stats = file.sidecar.get("Statistics", {})
    _seed_facts(part, file)
    image, values = load_map(file)
    strongest = _strongest(values, _valid(shown, values.shape), stats.get("TThreshold"), quantity)
    if strongest is None:
        part.remarks.append("The map is zero everywhere, so there is nothing to draw.")
        return
    threshold, why = strongest
    unit = "Fisher z" if quantity == "z" else f"t, {stats.get('DegreesOfFreedom', '?')} df"
    maximum = max(float(np.percentile(np.abs(values[values != 0]), 99.5)), 1.05 * threshold)
    style = MapStyle(
        f"Functional network of the lesion, {quantity} map", unit, threshold, maximum,
        two_sided=bool((values <= -threshold).any()),
    )  # fmt: skip
    said = f"Shown: |{quantity}| \u2265 {number_text(threshold)}, {why}. "
    _draw_functional(part, shown, image, style, said, quantity)
    if (stats.get("NumberOfSubjects") or 0) >= MANY_SUBJECTS:
        part.remarks.append(
            "With so many subjects nearly every voxel differs from zero: the map ranks voxels, "
            "it is no test of this participant. Groups are what is tested."
        )


def _seed_facts(part: Analysis, file: ResultFile) -> None:
    sidecar = file.sidecar
    stats, connectome = sidecar.get("Statistics", {}), sidecar.get("Connectome", {})
    name = connectome.get("RegisteredName") or connectome.get("Name", "not known")
    n_subjects = connectome.get("NumberOfSubjects", "?")
    part.facts.append(("Connectome", f"{name}, {n_subjects} subjects"))
    inside = stats.get("SeedVoxels")
    outside = stats.get("SeedVoxelsOutsideConnectome") or 0
    if inside is not None:
        total = inside + outside
        share = inside / total if total else 0.0
        covered = f"{inside:,} of {total:,} lesion voxels lie in the connectome's brain"
        part.facts.append(("Seed coverage", f"{covered} ({100 * share:.0f} %)"))
        if total and share < FEW_SEED_VOXELS_INSIDE:
            part.remarks.append(
                f"Only {100 * share:.0f} % of the lesion lies where the connectome has data; the "
                "network is that of this part."
            )
    for key, title in (
        ("LesionNormalisation", "Lesion in the connectome's space"),
        ("LesionResampling", "Lesion on the connectome's grid"),
    ):
        if sidecar.get(key):
            part.facts.append((title, _resampling(sidecar[key])))
    if stats.get("SignificantPercent") is not None:
        rate = f"false discovery rate {stats['FDRAlpha']:g}"
        share_text = f"{stats['SignificantPercent']:.0f} % ({rate})"
        part.facts.append(("Voxels that differ from zero", share_text))


def _draw_functional(
    part: Analysis, shown: _Shown, image: Any, style: MapStyle, said: str, quantity: str
) -> None:
    slices, peak_path, glass = (shown.figure(f"fnm{name}") for name in ("slices", "peak", "glass"))
    figures.draw_map_slices(image, style, slices, lesion=shown.outline)
    figures.draw_map_glass(image, style, glass)
    part.pictures.append(
        Picture(slices, f"{style.title} on eight axial slices, with the outline of the lesion.",
                f"{said}Outline: the lesion. z in mm, the same levels in every report.")
    )  # fmt: skip
    point, value = peak_away_from(image, shown.outline)
    where = "x {:.0f}, y {:.0f}, z {:.0f} mm".format(*point)
    part.facts.append(
        (f"Strongest more than {PEAK_DISTANCE_MM:.0f} mm from the lesion",
         f"{quantity} = {number_text(value)} at {where}")
    )  # fmt: skip
    figures.draw_map_peak(image, style, point, peak_path, lesion=shown.outline)
    part.pictures += [
        Picture(peak_path, f"{style.title}, three slices through its peak at {where}.",
                f"Slices through the strongest voxel away from the lesion ({where})."),
        Picture(glass, f"{style.title} in a transparent brain from four sides.",
                f"{said}Projected onto four views."),
    ]  # fmt: skip


def _by_regions(part: Analysis, shown: _Shown) -> None:
    tables = shown.lesion.select("parcelstats", "afnm")
    for file in tables:
        weighting = file.sidecar.get("Weighting")
        atlas = file.sidecar.get("Atlas", {}).get("Name", "")
        if weighting:
            part.facts.append((f"Weights of regions, {atlas}", str(weighting)))


def _structural(part: Analysis, shown: _Shown) -> None:
    stats = _stats(shown, "snm")
    file = shown.lesion.newest("statmap", "snm", "disconnectionpct")
    if file is not None:
        connectome = file.sidecar.get("Connectome", {})
        name = connectome.get("RegisteredName") or connectome.get("Name", "not known")
        part.facts.append(("Tractogram", str(name)))
    if "Streamlines" in stats:
        hit, total = stats["StreamlinesHit"], stats["Streamlines"]
        cut = f"{count_text(hit)} of {count_text(total)}"
        part.facts.append(("Streamlines cut", f"{cut} ({stats['StreamlinesHitPercent']:.1f} %)"))
        part.facts.append(
            ("At least half disconnected", f"{number_text(stats['VolumeHalfDisconnectedML'])} ml")
        )
    if file is None:
        part.missing.append("There is no disconnection map.")
    else:
        _draw_structural(part, shown, file)
    for picture in matrix_pictures(shown.lesion):
        _draw_matrix(part, shown, picture)


def _draw_structural(part: Analysis, shown: _Shown, file: ResultFile) -> None:
    image, values = load_map(file)
    if not (values >= DISCONNECTION_SHOWN_PCT).any():
        part.remarks.append("The lesion cuts no streamline, so there is nothing to draw.")
        return
    style = MapStyle(
        "Structural disconnection", "streamlines cut (%)", DISCONNECTION_SHOWN_PCT, 100.0,
        colours="inferno", symmetric=False,
    )  # fmt: skip
    slices, glass = shown.figure("snmslices"), shown.figure("snmglass")
    figures.draw_map_slices(image, style, slices, lesion=shown.outline)
    figures.draw_map_glass(image, style, glass)
    said = (
        "Share of the streamlines through each voxel that pass the lesion. Shown: "
        f"{DISCONNECTION_SHOWN_PCT:g} % and more. "
    )
    part.pictures += [
        Picture(slices, "Disconnection on eight axial slices, with the outline of the lesion.",
                f"{said}Outline: the lesion. z in mm, the same levels in every report."),
        Picture(glass, "Disconnection in a transparent brain from four sides.",
                "The largest value along the line of sight, on four views."),
    ]  # fmt: skip


def _draw_matrix(part: Analysis, shown: _Shown, picture: MatrixPicture) -> None:
    short = "".join(char for char in picture.name if char.isalnum())
    path = shown.figure(f"matrix{short}")
    figures.draw_matrix(
        picture.values, picture.blocks, f"Disconnection between regions, {picture.name}",
        "streamlines cut (%)", path,
    )  # fmt: skip
    networks = ", ".join(name for name, _ in picture.blocks if name)
    ordered = f" Regions in the order of networks: {networks}." if networks else ""
    part.pictures.append(
        Picture(
            path,
            f"Matrix of {len(picture.values)} by {len(picture.values)} regions of {picture.name}: "
            "per cent of streamlines cut between every two.",
            f"Per cent of the streamlines between every two regions of {picture.name} that pass "
            f"the lesion; grey: no streamline joins them.{ordered}",
        )
    )
    edges, affected = picture.statistics.get("Edges"), picture.statistics.get("EdgesAffected")
    if edges is not None and affected is not None:
        part.facts.append(
            (
                f"Connections affected, {picture.name}",
                f"{count_text(affected)} of {count_text(edges)}",
            )
        )


# --- numbers --------------------------------------------------------------------------------


def _strongest(
    values: NDArray[np.floating[Any]],
    valid: NDArray[np.bool_] | None,
    t_threshold: float | None,
    quantity: str,
) -> tuple[float, str] | None:
    """Threshold of what is shown, and why it is that; None for a map of zeros."""
    inside = np.abs(values[valid] if valid is not None and valid.any() else values[values != 0])
    if not inside.size or not inside.any():
        return None
    if quantity == "t" and t_threshold and (inside >= t_threshold).any():
        return float(t_threshold), "the threshold of the run"
    threshold = float(np.percentile(inside, 100 * (1 - SHOWN_SHARE)))
    if threshold <= 0:
        threshold = float(inside[inside > 0].min())
    return threshold, f"the strongest {100 * SHOWN_SHARE:.0f} % of voxels in the brain"


def peak_away_from(image: Any, lesion: Any = None) -> tuple[tuple[float, float, float], float]:
    """Find the largest value in size that is not near the lesion.

    Parameters
    ----------
    image : nibabel image
        Map without NaN, not zero everywhere.
    lesion : nibabel image, optional
        Binary mask in the same space.

    Returns
    -------
    point : tuple of three floats
        mm, RAS.
    value : float
        With its sign. Where all voxels are near the lesion, the largest of all.
    """
    from scipy.spatial import cKDTree

    values = np.asarray(image.dataobj, dtype=np.float64)
    flat = np.abs(values).ravel()
    candidates = np.flatnonzero(flat)
    order = candidates[np.argsort(-flat[candidates], kind="stable")]
    points = np.stack(np.unravel_index(order, values.shape), axis=1)
    world = points @ image.affine[:3, :3].T + image.affine[:3, 3]
    first = 0
    if lesion is not None:
        mask = np.asarray(lesion.dataobj) > 0
        near = cKDTree(lesion_points(mask, Grid.make(mask.shape, lesion.affine)).T)
        # The peak is among the first as a rule; distances of all voxels would take seconds.
        for start in range(0, len(world), 2000):
            distance, _ = near.query(world[start : start + 2000])
            far = np.flatnonzero(distance > PEAK_DISTANCE_MM)
            if far.size:
                first = start + int(far[0])
                break
    x, y, z = (float(value) for value in world[first])
    return (x, y, z), float(values[tuple(points[first])])


def _valid(shown: _Shown, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    file = shown.lesion.newest("statmap", "fnm", "valid")
    if file is None:
        return None
    valid = load_map(file)[1] > 0
    return valid if valid.shape == shape else None


def load_map(file: ResultFile) -> tuple[Any, NDArray[np.float32]]:
    """Read a map; NaN, which these files should not hold, would hide whole figures.

    Parameters
    ----------
    file : ResultFile

    Returns
    -------
    image : nibabel image
    values : array of float32, three dimensions
        Its data.

    Raises
    ------
    ValidationError
        The file is damaged, or is no map.
    """
    import nibabel as nb

    affine, data = read_volume(file.path)
    values = np.nan_to_num(data.astype(np.float32), posinf=0.0, neginf=0.0)
    return nb.Nifti1Image(values, affine), values


def read_volume(path: Path) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Read an image of three dimensions.

    Parameters
    ----------
    path : Path

    Returns
    -------
    affine : array, shape (4, 4)
    data : array, three dimensions

    Raises
    ------
    ValidationError
        The file is damaged, or has other dimensions.
    """
    from lacuna_nipype.core.images import open_image, read_voxels

    try:
        image = open_image(path)
        data = read_voxels(image)
    except OSError as error:
        raise ValidationError(f"{path} is damaged; make it again.") from error
    if data.ndim != 3:
        raise ValidationError(f"{path} has {data.ndim} dimensions; a map has three.")
    return image.affine, data


def _stats(shown: _Shown, analysis: str) -> dict[str, Any]:
    from lacuna_nipype.reports.results import read_object

    file = shown.lesion.newest("stats", analysis)
    return {} if file is None else read_object(file.path)


def _bars(table: RegionTable, key: str) -> list[Bars]:
    made = []
    for quantity in table.with_bars:
        if quantity.analysis != key:
            continue
        rows = table.top(quantity)
        longest = max((abs(value) for _, value in rows), default=1.0)
        if "%" in quantity.title:
            longest = 100.0
        made.append(
            Bars(
                f"{quantity.phrase}, {table.name}",
                quantity.title,
                tuple(
                    Bar(name, number_text(value), round(100 * abs(value) / longest, 1), value < 0)
                    for name, value in rows
                ),
            )
        )
    return made


def number_text(value: float) -> str:
    """Three digits, as a reader wants them."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def count_text(value: Any) -> str:
    """Write a number of streamlines, which weights may make a fraction."""
    number = float(value)
    return f"{number:,.0f}" if number.is_integer() else f"{number:,.1f}"
