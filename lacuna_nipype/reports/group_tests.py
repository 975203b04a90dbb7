"""What the page of the group says of tests against scores and between groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.reports.figures import MapStyle
from lacuna_nipype.reports.group_parts import (
    ANY,
    KINDS,
    add_region,
    add_space,
    draw_map,
    participants_text,
    peak_of,
    place_text,
    title_of,
)
from lacuna_nipype.reports.group_results import GroupResults, RegionFinder, TestResults
from lacuna_nipype.reports.results import ResultFile
from lacuna_nipype.reports.sections import Analysis, Bar, Bars, attempt, load_map, number_text
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
MOST_NAMES = 6
MOST_BARS = 12
# Of sizes: the colour bar ends there, and a few voxels with huge t do not blacken the others.
_BAR_PERCENTILE = 98
_MAPS = {"lesion": "lesion or none", "fnm": "Fisher z", "snm": "streamlines cut (%)"}
# What core.association puts in the place of the t of a perfect fit.
_PERFECT_T = 1e6


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
        title = title_of(_test_title(test), test.entities, (other.entities for other in tests))
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
    title = KINDS.get(entities.get("desc", ""), entities.get("desc", ""))
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
    point, size, ties = peak_of(np.abs(values), image.affine)
    voxel = np.rint(np.linalg.inv(image.affine) @ [*point, 1])[:3].astype(int)
    t = float(values[tuple(voxel)])
    more = f", the middle of {ties:,} such voxels" if ties > 1 else ""
    part.facts.append(("Largest |t|", f"t = {number_text(t)} at {place_text(point)}{more}"))
    add_region(part, file, point, regions)
    add_space(part, file)
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
        threshold = min(ANY, size / 2)
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
    draw_map(part, file, image, style, point, folder, said, levels=True)


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
    point, size, _ = peak_of(np.abs(kept), image.affine)
    style = MapStyle(
        f"{part.title}: t, TFCE p < 0.05, corrected", unit, min(ANY, size / 2),
        _bar_end(kept), two_sided=bool((kept < 0).any()),
    )  # fmt: skip
    said = "Shown: t of voxels with p < 0.05, corrected, after cluster enhancement (TFCE)."
    draw_map(part, file, image, style, point, folder, said, levels=True)


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
