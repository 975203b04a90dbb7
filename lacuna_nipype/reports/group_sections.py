"""What the page of the group says of overlap maps and of tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.reports import figures
from lacuna_nipype.reports.figures import MapStyle
from lacuna_nipype.reports.group_results import (
    GroupResults,
    RegionFinder,
    TestResults,
)
from lacuna_nipype.reports.results import ResultFile
from lacuna_nipype.reports.sections import (
    TITLES,
    Analysis,
    Bar,
    Bars,
    Picture,
    attempt,
    load_map,
    number_text,
)
from lacuna_nipype.reports.tables import (
    QUANTITIES,
    Column,
    SortableTable,
    atlas_name,
    frame_content,
    frame_rows,
    read_table,
)

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.05
LOG_ALPHA = -math.log10(ALPHA)
# A share that half of the lesions reach is drawn from there on.
DRAWN_SHARE = 0.5
MOST_NAMES = 6
MOST_BARS = 12
# Of sizes: the colour bar ends there, and a few voxels with huge t do not blacken the others.
_BAR_PERCENTILE = 98
# So that only voxels of exactly zero, which were not tested, are left out.
_ANY = 1e-6
_KINDS = {"lesion": "Lesions", **TITLES}
_MAPS = {"lesion": "lesion or none", "fnm": "Fisher z", "snm": "streamlines cut (%)"}
# What core.association puts in the place of the t of a perfect fit.
_PERFECT_T = 1e6


def words_of(entities: Mapping[str, str]) -> str:
    """Say which lesions results are about.

    Parameters
    ----------
    entities : mapping of str to str
        By their keys in the file name.

    Returns
    -------
    str
        Such as ``session 01, stroke``.
    """
    words = {"ses": "session ", "acq": "acquisition ", "run": "run ", "label": ""}
    return ", ".join(f"{word}{entities[key]}" for key, word in words.items() if key in entities)


def _title(title: str, entities: Mapping[str, str], others: Iterable[Mapping[str, str]]) -> str:
    """Say in a title which lesions it is about, where there are several kinds."""
    apart = len({words_of(other) for other in others}) > 1
    return f"{title} ({words_of(entities)})" if apart else title


def participants_text(n: Any) -> str:
    """Write a number of participants."""
    return f"{n} participant{'' if n == 1 else 's'}"


# --- overlap --------------------------------------------------------------------------------


def overlap_parts(results: GroupResults, folder: Path, regions: RegionFinder) -> list[Analysis]:
    """Describe and draw the overlap maps.

    Parameters
    ----------
    results : GroupResults
    folder : Path
        Where the figures go.
    regions : RegionFinder

    Returns
    -------
    list of Analysis
        Lesions first. A map that is damaged is named in its own.
    """
    shares: dict[tuple[tuple[str, str], ...], ResultFile] = {}
    shown: list[tuple[ResultFile, list[ResultFile]]] = []
    for file in results.overlaps:
        if file.entities["suffix"] == "probseg":
            shares[_cohort(file.entities)] = file
    counted = set()
    for file in results.overlaps:
        kind = _cohort(file.entities)
        if file.entities.get("stat") == "count":
            counted.add(kind)
            shown.append((file, [share for key, share in shares.items() if key == kind]))
        elif file.entities["suffix"] != "probseg":
            shown.append((file, []))
    shown += [(share, []) for kind, share in shares.items() if kind not in counted]
    order = list(_KINDS)
    shown.sort(key=lambda pair: (order.index(_analysis(pair[0])), -_sign(pair[0])))
    parts = []
    for number, (file, others) in enumerate(shown, 1):
        kinds = [other.entities for other, _ in shown]
        part = Analysis(f"overlap-{number}", _title(_KINDS[_analysis(file)], file.entities, kinds))
        parts.append(part)
        part.files = [file.path, *(other.path for other in others)]
        attempt(part, "This map", lambda: _describe_overlap(part, file, folder, regions))  # noqa: B023
    return parts


def _cohort(entities: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    kept = ("tpl", "ses", "acq", "run", "res", "label")
    return tuple((key, entities[key]) for key in kept if key in entities)


def _analysis(file: ResultFile) -> str:
    desc = file.entities["desc"]
    return "lesion" if desc == "overlap" else desc


def _sign(file: ResultFile) -> int:
    return -1 if file.entities.get("stat") == "overlapnegative" else 1


def _describe_overlap(
    part: Analysis, file: ResultFile, folder: Path, regions: RegionFinder
) -> None:
    sidecar = file.sidecar
    n, threshold = sidecar.get("NumberOfParticipants"), _threshold(sidecar)
    is_count = file.entities.get("stat") == "count"
    what = {
        "lesion": "with a lesion here",
        "fnm": f"whose network map has t {threshold} here",
        "snm": f"with {threshold} % of the streamlines cut here",
    }[_analysis(file)]
    rule = {"fnm": f", t {threshold}", "snm": f", {threshold} % cut"}.get(_analysis(file), "")
    title = _KINDS[_analysis(file)]
    part.title = part.title.replace(title, f"{title}{rule}", 1)
    if n is not None:
        part.facts.append(("Participants", str(n)))
    image, values = load_map(file)
    if not (values > 0).any():
        part.remarks.append(f"There is no voxel for participants {what}: nothing is drawn.")
        return
    point, largest, ties = _peak(values, image.affine)
    share = largest / n if is_count and n else largest
    text = f"{100 * share:.0f} % of the participants"
    if n:
        text = f"{round(share * n)} of {participants_text(n)} ({100 * share:.0f} %)"
    where = _place(point)
    more = f", the middle of {ties:,} such voxels" if ties > 1 else ""
    part.facts += [("Largest overlap", f"{text} {what}"), ("Where", where + more)]
    _add_region(part, file, point, regions)
    volume = float(abs(np.linalg.det(image.affine[:3, :3])) * (values > 0).sum() / 1000)
    part.facts.append(("Touched in anyone", f"{number_text(volume)} ml"))
    _add_space(part, file)
    if not is_count:
        import nibabel as nb

        image = nb.Nifti1Image(100 * values, image.affine)
        largest *= 100
    low, said = _lowest_drawn(largest, is_count, _analysis(file) == "lesion")
    style = MapStyle(
        part.title, f"participants {'(count)' if is_count else '(%)'}", low, float(largest),
        colours="inferno", symmetric=False, whole=is_count,
    )  # fmt: skip
    said = f"Participants {what}{f' (of {n})' if n else ''}. {said}"
    _draw(part, file, image, style, point, folder, said)


def _threshold(sidecar: Mapping[str, Any]) -> str:
    rule = sidecar.get("Threshold", {})
    sign = {"above": ">", "below": "<", "at_least": "\u2265"}.get(rule.get("Comparison"), "beyond")
    value = rule.get("Value")
    return f"{sign} {value:g}".replace("-", "\u2212") if value is not None else "its threshold"


def _peak(
    values: NDArray[np.floating[Any]], affine: NDArray[np.float64]
) -> tuple[tuple[float, float, float], float, int]:
    """Largest value, where it is, and at how many voxels; of several, the one in their middle."""
    largest = float(values.max())
    voxels = np.argwhere(values == values.max())
    middle = voxels.mean(axis=0)
    chosen = voxels[np.argmin(((voxels - middle) ** 2).sum(axis=1))]
    x, y, z = affine[:3, :3] @ chosen + affine[:3, 3]
    return (float(x), float(y), float(z)), largest, len(voxels)


def _lowest_drawn(largest: float, is_count: bool, is_lesion: bool) -> tuple[float, str]:
    """Smallest value that is drawn, and the sentence that says so."""
    if is_count:
        return 0.5, "Shown: one and more."
    half = 100 * DRAWN_SHARE
    if is_lesion or largest < half:
        return _ANY, "Shown: all above zero."
    return half, f"Shown: {half:.0f} % and more."


def _place(point: Iterable[float]) -> str:
    return "x {:.0f}, y {:.0f}, z {:.0f} mm".format(*point)


def _add_region(
    part: Analysis, file: ResultFile, point: Sequence[float], regions: RegionFinder
) -> None:
    named = regions.describe(file.entities.get("tpl", ""), point)
    if named:
        part.facts.append(("Region there", named))


def _add_space(part: Analysis, file: ResultFile) -> None:
    resolution = file.sidecar.get("Resolution")
    space = file.sidecar.get("SpaceName") or file.entities.get("tpl", "not known")
    words = str(resolution)[0].lower() + str(resolution)[1:] if resolution else ""
    part.facts.append(("Space", f"{space}{f', {words}' if words else ''}"))


def _draw(
    part: Analysis,
    file: ResultFile,
    image: Any,
    style: MapStyle,
    point: Sequence[float],
    folder: Path,
    said: str,
    *,
    levels: bool = False,
) -> None:
    """Draw slices through a point, a transparent brain, and slices at the usual levels."""
    stem = file.path.name.removesuffix(".nii.gz").replace("tpl-", "group_space-", 1)
    where = _place(point)
    if levels:
        path = folder / f"{stem}slices.png"
        figures.draw_map_slices(image, style, path)
        alt = f"{style.title} on eight axial slices."
        part.pictures.append(
            Picture(path, alt, f"{said} z in mm, the same levels in every figure.")
        )
    path = folder / f"{stem}peak.png"
    figures.draw_map_peak(image, style, point, path)
    alt = f"{style.title}, three slices through the largest value at {where}."
    caption = f"Slices through the largest value ({where})."
    part.pictures.append(Picture(path, alt, caption if levels else f"{caption} {said}"))
    path = folder / f"{stem}glass.png"
    figures.draw_map_glass(image, style, path)
    alt = f"{style.title} in a transparent brain from four sides."
    part.pictures.append(Picture(path, alt, "The largest value along the line of sight."))


# --- tests ----------------------------------------------------------------------------------


@dataclass
class Model:
    """All tests of one score or of two groups.

    Parameters
    ----------
    title, short : str
        For the heading and for the list of parts.
    overview : Analysis
        What the tests share, and a table of what each found.
    tests : list of Analysis
    """

    title: str
    short: str
    overview: Analysis
    tests: list[Analysis] = field(default_factory=list)

    @property
    def parts(self) -> list[Analysis]:
        """All that the page says of it."""
        return [self.overview, *self.tests]


@dataclass(frozen=True)
class _Found:
    """What a test found, in a row of the overview."""

    what: str
    n: int | None
    tested: int | None
    largest: float | None
    p: float | None
    significant: int | None


def model_parts(results: GroupResults, folder: Path, regions: RegionFinder) -> list[Model]:
    """Describe and draw the tests, by the score or group that they are about.

    Parameters
    ----------
    results : GroupResults
    folder : Path
        Where the figures go.
    regions : RegionFinder

    Returns
    -------
    list of Model
        A result that is damaged is named in its test.
    """
    by_model: dict[str, list[TestResults]] = {}
    for test in results.tests:
        by_model.setdefault(test.entities["model"], []).append(test)
    return [
        _model(number, name, tests, folder, regions)
        for number, (name, tests) in enumerate(by_model.items(), 1)
    ]


def _model(
    number: int, name: str, tests: Sequence[TestResults], folder: Path, regions: RegionFinder
) -> Model:
    overview = Analysis(f"model-{number}-overview", "What the tests found")
    model = Model(f"Association with {name}", name, overview)
    rows: list[tuple[_Found, str]] = []
    for place, test in enumerate(tests, 1):
        title = _title(_test_title(test), test.entities, (other.entities for other in tests))
        part = Analysis(f"model-{number}-test-{place}", title)
        model.tests.append(part)
        part.files = [file.path for file in test.files.values()]
        describe = _describe_table if "parcelstats" in test.files else _describe_maps
        attempt(
            part,
            "This test",
            lambda: rows.append((describe(part, test, folder, regions), part.key)),  # noqa: B023
        )
    sidecars = [_readable(test.main) for test in tests]
    _describe_model(model, sidecars)
    overview.tables = [_overview([found for found, _ in rows], model.short)] if rows else []
    return model


def _readable(file: ResultFile) -> Mapping[str, Any]:
    """Sidecar of a result; a damaged one is told where the result is shown."""
    try:
        return file.sidecar
    except ValidationError:
        return {}


def _test_title(test: TestResults) -> str:
    entities = test.entities
    title = _KINDS.get(entities.get("desc", ""), entities.get("desc", ""))
    if "parcelstats" not in test.files:
        return f"{title}, voxel by voxel"
    quantity = _table_quantity(test)
    # Of disconnection, several quantities are tested.
    named = f": {quantity}" if entities.get("desc") == "snm" else ""
    atlas = " ".join(entities[key] for key in ("atlas", "seg", "scale") if key in entities)
    return f"{title}{named}, regions of {atlas}"


def _table_quantity(test: TestResults) -> str:
    analysis, stat = test.entities.get("desc", ""), test.entities.get("stat", "")
    return next((q.title for q in QUANTITIES if (q.analysis, q.stat) == (analysis, stat)), stat)


def _describe_model(model: Model, sidecars: Sequence[Mapping[str, Any]]) -> None:
    """Say what the tests of a score share; where they differ, each says its own."""
    told = [sidecar for sidecar in sidecars if "Parameters" in sidecar]
    tested = next((str(s["Parameters"].get("Tested", model.short)) for s in told), model.short)
    contrast = next((str(s["Contrast"]) for s in sidecars if "Contrast" in s), None)
    model.short = tested
    model.title = f"Groups of {tested}" if contrast else f"Association with {tested}"
    facts = model.overview.facts
    facts.append(("Contrast", contrast or f"{tested}, as a number; two-sided"))
    settings = [dict(_settings(sidecar)) for sidecar in sidecars]
    shared = [dict(_settings(sidecar)) for sidecar in told]
    if all(own == shared[0] for own in shared):
        facts += shared[0].items() if shared else []
    else:
        facts.append(("Covariates and permutations", "differ between the tests: see each"))
        for part, own in zip(model.tests, settings, strict=True):
            part.facts += own.items()
    facts.append(
        ("Corrected for", "all voxels or regions of a test (family-wise error, largest |t|)")
    )
    left: dict[str, str] = {}
    for sidecar in sidecars:
        left.update(sidecar.get("ParticipantsLeftOut", {}))
    numbers = sorted({int(s["NumberOfParticipants"]) for s in sidecars
                      if "NumberOfParticipants" in s})  # fmt: skip
    if numbers:
        facts.append(("Participants", " to ".join(map(str, sorted({numbers[0], numbers[-1]})))))
    facts.append(("Left out", left_out_text(left)))


def _settings(sidecar: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Covariates and permutations of a test."""
    asked = sidecar.get("Parameters", {})
    names = ", ".join(str(name) for name in asked.get("Covariates", []))
    return [
        ("Covariates", names.replace("lesion_volume_ml", "lesion volume (ml)") or "none"),
        ("Permutations", f"{asked.get('Permutations', '?')}, seed {asked.get('Seed', '?')}"),
        ("Cluster enhancement", "yes (TFCE)" if asked.get("TFCE") else "no"),
    ]


def left_out_text(left_out: Mapping[str, str]) -> str:
    """Say who took no part in a test, and why.

    Parameters
    ----------
    left_out : mapping of str to str
        Reasons by participant.

    Returns
    -------
    str
        Such as ``2 participants: no score (sub-01, sub-02)``.
    """
    if not left_out:
        return "nobody"
    reasons: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        reasons.setdefault(reason, []).append(name)
    told = []
    for reason, names in reasons.items():
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        told.append(f"{reason} ({', '.join(names[:MOST_NAMES])}{more})")
    return f"{participants_text(len(left_out))}: {'; '.join(told)}"


def _overview(rows: Sequence[_Found], name: str) -> SortableTable:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "test": [row.what for row in rows],
            "participants": [row.n for row in rows],
            "tested": [row.tested for row in rows],
            "largest_t": [row.largest for row in rows],
            "smallest_p_fwe": [row.p for row in rows],
            "significant": [row.significant for row in rows],
        }
    )
    columns = (
        Column("Test", wraps=True),
        Column("Participants", is_number=True),
        Column("Tested", "Voxels or regions.", is_number=True),
        Column("Largest |t|", "With its sign.", is_number=True),
        Column("Smallest p", "Corrected for all that was tested.", is_number=True),
        Column("Significant", "Voxels or regions with p < 0.05, corrected.", is_number=True),
    )
    numbers = [column.is_number for column in columns]
    for column in frame.columns[1:]:
        frame[column] = pd.to_numeric(frame[column])
    return SortableTable(
        "What the tests found", "Table of tests", f"{len(rows)} tests.", columns,
        frame_rows(frame, numbers), frame_content(frame), f"group_{name}_tests.tsv",
    )  # fmt: skip


def _test_facts(part: Analysis, sidecar: Mapping[str, Any], unit: str) -> Mapping[str, Any]:
    """Say who was tested with what; the numbers of the result."""
    statistics: Mapping[str, Any] = sidecar.get("Statistics", {})
    n, freedom = sidecar.get("NumberOfParticipants"), sidecar.get("DegreesOfFreedom")
    if n is not None:
        part.facts.append(("Participants", f"{n} ({freedom} degrees of freedom)"))
    if sidecar.get("ParticipantsLeftOut"):
        part.facts.append(("Left out", left_out_text(sidecar["ParticipantsLeftOut"])))
    tested = statistics.get("ValuesTested")
    if tested is not None:
        least = sidecar.get("Parameters", {}).get("MinimumOverlapPercent")
        sparse = unit == "voxels" and sidecar.get("Quantity") in ("lesion", "disconnectionpct")
        touched = f" (touched in {least:g} % of the participants)" if sparse and least else ""
        part.facts.append(("Tested", f"{tested:,} {unit}{touched}"))
    critical = statistics.get("CriticalT")
    if critical is not None:
        part.facts.append(("Significant above", f"|t| = {number_text(critical)}"))
    return statistics


def _describe_maps(
    part: Analysis, test: TestResults, folder: Path, regions: RegionFinder
) -> _Found:
    file = test.files.get("t")
    if file is None:
        part.missing.append("There is no map of t.")
        return _Found(part.title, None, None, None, None, None)
    sidecar = file.sidecar
    part.facts.append(("Quantity", _MAPS.get(test.entities.get("desc", ""), "value")))
    statistics = _test_facts(part, sidecar, "voxels")
    image, values = load_map(file)
    significant = _significant(test, "logpfwe", values.shape)
    found = _Found(
        part.title,
        sidecar.get("NumberOfParticipants"),
        statistics.get("ValuesTested"),
        float(values.flat[np.abs(values).argmax()]),
        statistics.get("SmallestPFWE"),
        None if significant is None else int(significant.sum()),
    )
    if not values.any():
        part.remarks.append("The map is zero everywhere: there is nothing to draw.")
        return found
    unit = f"t, {sidecar.get('DegreesOfFreedom', '?')} degrees of freedom"
    _draw_test(part, file, (image, values, significant), unit, folder, regions)
    enhanced = _significant(test, "logptfce", values.shape)
    if enhanced is not None:
        _draw_enhanced(part, test.files["logptfce"], (image, values, enhanced), unit, folder)
    if "clusters" in test.files:
        _add_clusters(part, test.files["clusters"], regions)
    return found


def _significant(test: TestResults, name: str, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """Voxels whose corrected p is at most 0.05, from a map of -log10 p."""
    if name not in test.files:
        return None
    # The map holds float32, in which p of exactly 0.05 may be a little more.
    found = load_map(test.files[name])[1] >= LOG_ALPHA * (1 - 1e-6)
    if found.shape != shape:
        raise ValidationError(f"{test.files[name].path} lies on another grid than its t.")
    return np.asarray(found)


_Map = tuple[Any, NDArray[np.float32], NDArray[np.bool_] | None]


def _draw_test(
    part: Analysis, file: ResultFile, given: _Map, unit: str, folder: Path, regions: RegionFinder
) -> None:
    """Draw t where it is significant, or everywhere where it is nowhere."""
    import nibabel as nb

    image, values, significant = given
    point, size, ties = _peak(np.abs(values), image.affine)
    voxel = np.rint(np.linalg.inv(image.affine) @ [*point, 1])[:3].astype(int)
    t = float(values[tuple(voxel)])
    more = f", the middle of {ties:,} such voxels" if ties > 1 else ""
    part.facts.append(("Largest |t|", f"t = {number_text(t)} at {_place(point)}{more}"))
    _add_region(part, file, point, regions)
    _add_space(part, file)
    tested = dict(part.facts).get("Tested", "").split(" (")[0]
    if significant is not None and significant.any():
        n = int(significant.sum())
        volume = float(abs(np.linalg.det(image.affine[:3, :3])) * n / 1000)
        part.facts.append(("Significant", f"{n:,} voxels ({number_text(volume)} ml)"))
        values = np.where(significant, values, 0).astype(np.float32)
        image = nb.Nifti1Image(values, image.affine)
        threshold = float(np.abs(values[significant]).min())
        title, said = "p < 0.05, corrected", "Shown: voxels with p < 0.05, corrected."
    else:
        of = f" of the {tested}" if tested else ""
        known = "is significant" if significant is not None else "is known to be significant"
        part.remarks.append(
            f"Nothing survives: none{of} {known} at p < 0.05, corrected. The "
            "figures show t without a threshold, for orientation only."
        )
        threshold = min(_ANY, size / 2)
        title, said = "no threshold", "Shown: t of all tested voxels; none is significant."
    perfect = int((np.abs(values) >= _PERFECT_T).sum())
    if perfect:
        part.remarks.append(
            f"At {perfect:,} voxel{'' if perfect == 1 else 's'} the map follows from the score "
            f"without any error. t is infinite there, and {_PERFECT_T:,.0f} stands for it."
        )
    style = MapStyle(
        f"{part.title}: t, {title}", unit, threshold, _bar_end(values, threshold),
        two_sided=bool((values < 0).any()),
    )  # fmt: skip
    _draw(part, file, image, style, point, folder, said, levels=True)


def _bar_end(values: NDArray[np.floating[Any]], threshold: float = 0.0) -> float:
    """End of the colour bar: nearly the largest size, whatever a few voxels have."""
    sizes = np.abs(values[(values != 0) & (np.abs(values) < _PERFECT_T)])
    largest = float(np.percentile(sizes, _BAR_PERCENTILE)) if sizes.size else 2 * threshold
    return max(largest, 1.05 * threshold)


def _draw_enhanced(part: Analysis, file: ResultFile, given: _Map, unit: str, folder: Path) -> None:
    """Draw t where it is significant after threshold-free cluster enhancement."""
    import nibabel as nb

    image, values, significant = given
    if significant is None or not significant.any():
        part.facts.append(("Significant with cluster enhancement", "none (TFCE)"))
        return
    kept = np.where(significant, values, 0).astype(np.float32)
    part.facts.append(
        ("Significant with cluster enhancement", f"{int(significant.sum()):,} voxels (TFCE)")
    )
    if not kept.any():
        return
    image = nb.Nifti1Image(kept, image.affine)
    point, size, _ = _peak(np.abs(kept), image.affine)
    style = MapStyle(
        f"{part.title}: t, TFCE p < 0.05, corrected", unit, min(_ANY, size / 2),
        _bar_end(kept), two_sided=bool((kept < 0).any()),
    )  # fmt: skip
    said = "Shown: t of voxels with p < 0.05, corrected, after cluster enhancement (TFCE)."
    _draw(part, file, image, style, point, folder, said, levels=True)


def _add_clusters(part: Analysis, file: ResultFile, regions: RegionFinder) -> None:
    frame = read_table(file.path, "cluster_id", "x", "y", "z_mm", "peak_t", "cluster_size_mm3")
    if frame.empty:
        return
    space = file.entities.get("tpl", "")
    points = frame[["x", "y", "z_mm"]].to_numpy(float)
    frame["region"] = [regions.describe(space, point) for point in points]
    columns = [
        Column("Cluster", "Letters tell further peaks of a cluster."),
        *(Column(f"{axis} (mm)", is_number=True) for axis in "xyz"),
        Column("Peak t", is_number=True),
        Column("Size (mm\u00b3)", "Of its significant voxels.", is_number=True),
        Column("Region at the peak"),
    ]
    numeric = [column.is_number for column in columns]
    if not frame["region"].any():
        frame, columns = frame.drop(columns="region"), columns[:-1]
    n = int(frame["cluster_size_mm3"].notna().sum())
    part.tables.append(
        SortableTable(
            "Clusters of significant voxels",
            "Table of clusters",
            f"{n} cluster{'' if n == 1 else 's'} with p < 0.05, corrected; letters: more peaks.",
            tuple(columns),
            frame_rows(frame, numeric[: len(columns)]),
            frame_content(frame),
            file.path.name,
        )
    )


def _describe_table(
    part: Analysis, test: TestResults, folder: Path, regions: RegionFinder
) -> _Found:
    file = test.files["parcelstats"]
    sidecar = file.sidecar
    name = atlas_name(file)
    part.facts += [("Quantity", _table_quantity(test)), ("Atlas", name)]
    statistics = _test_facts(part, sidecar, "regions")
    frame = read_table(file.path, "name", "t_value", "p_fwe")
    t = frame["t_value"].to_numpy(float)
    p = frame["p_fwe"].to_numpy(float)
    significant = p <= ALPHA * (1 + 1e-9)
    known = np.isfinite(t)
    largest = float(t[np.nanargmax(np.abs(t))]) if known.any() else None
    if significant.any():
        names = [str(region) for region in frame["name"][significant]]
        order = np.argsort(p[significant], kind="stable")
        first = ", ".join(names[place] for place in order[:MOST_NAMES])
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        part.facts.append(("Significant", f"{len(names)} of {known.sum()}: {first}{more}"))
    else:
        part.remarks.append(
            f"Nothing survives: none of the {known.sum()} regions is significant at p < 0.05, "
            "corrected."
        )
    part.bars.append(_test_bars(frame, significant, name))
    part.tables.append(_region_table(frame, name, file))
    n, tested = sidecar.get("NumberOfParticipants"), statistics.get("ValuesTested")
    smallest = float(np.nanmin(p)) if np.isfinite(p).any() else None
    return _Found(part.title, n, tested, largest, smallest, int(significant.sum()))


def _test_bars(frame: pd.DataFrame, significant: NDArray[np.bool_], atlas: str) -> Bars:
    """Regions with the largest |t|; all significant ones are among them."""
    rows = frame.assign(marked=significant).dropna(subset=["t_value"])
    rows = rows.reindex(rows["t_value"].abs().sort_values(ascending=False, kind="stable").index)
    rows = rows.iloc[: max(MOST_BARS, int(significant.sum()))]
    longest = float(rows["t_value"].abs().max()) if len(rows) else 1.0
    bars = tuple(
        Bar(
            str(row["name"]),
            number_text(float(row["t_value"])),
            round(100 * abs(float(row["t_value"])) / (longest or 1.0), 1),
            bool(row["t_value"] < 0),
            bool(row["marked"]),
        )
        for _, row in rows.iterrows()
    )
    note = "* p < 0.05, corrected for all regions tested. Blue: positive t; pink: negative."
    if not significant.any():
        note = "No region is significant. Blue: positive t; pink: negative."
    return Bars(f"Regions with the largest |t|, {atlas}", "t", bars, note)


def _region_table(frame: pd.DataFrame, atlas: str, file: ResultFile) -> SortableTable:
    known = {
        "name": Column("Region"),
        "t_value": Column("t", is_number=True),
        "partial_r": Column("Partial r", "Given the covariates.", is_number=True),
        "p_fwe": Column("Corrected p", "Corrected for all regions tested.", is_number=True),
        "n_nonzero": Column("Touched in", "Participants whose value is not 0.", is_number=True),
    }
    columns = {key: column for key, column in known.items() if key in frame}
    return SortableTable(
        f"All regions of {atlas}", "Table of regions", f"{len(frame)} regions.",
        tuple(columns.values()),
        frame_rows(frame[list(columns)], [column.is_number for column in columns.values()]),
        frame_content(frame), file.path.name,
    )  # fmt: skip
