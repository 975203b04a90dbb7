"""What the page of the group says of overlap maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

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
from lacuna_nipype.reports.group_results import GroupResults, RegionFinder
from lacuna_nipype.reports.results import ResultFile
from lacuna_nipype.reports.sections import Analysis, attempt, load_map, number_text

# A share that half of the lesions reach is drawn from there on.
DRAWN_SHARE = 0.5


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
    order = list(KINDS)
    shown.sort(key=lambda pair: (order.index(_analysis(pair[0])), -_sign(pair[0])))
    parts = []
    for number, (file, others) in enumerate(shown, 1):
        kinds = [other.entities for other, _ in shown]
        part = Analysis(
            f"overlap-{number}", title_of(KINDS[_analysis(file)], file.entities, kinds)
        )
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
    title = KINDS[_analysis(file)]
    part.title = part.title.replace(title, f"{title}{rule}", 1)
    if n is not None:
        part.facts.append(("Participants", str(n)))
    image, values = load_map(file)
    if not (values > 0).any():
        part.remarks.append(f"There is no voxel for participants {what}: nothing is drawn.")
        return
    point, largest, ties = peak_of(values, image.affine)
    share = largest / n if is_count and n else largest
    text = f"{100 * share:.0f} % of the participants"
    if n:
        text = f"{round(share * n)} of {participants_text(n)} ({100 * share:.0f} %)"
    where = place_text(point)
    more = f", the middle of {ties:,} such voxels" if ties > 1 else ""
    part.facts += [("Largest overlap", f"{text} {what}"), ("Where", where + more)]
    add_region(part, file, point, regions)
    volume = float(abs(np.linalg.det(image.affine[:3, :3])) * (values > 0).sum() / 1000)
    part.facts.append(("Touched in anyone", f"{number_text(volume)} ml"))
    add_space(part, file)
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
    draw_map(part, file, image, style, point, folder, said)


def _threshold(sidecar: Mapping[str, Any]) -> str:
    rule = sidecar.get("Threshold", {})
    sign = {"above": ">", "below": "<", "at_least": "\u2265"}.get(rule.get("Comparison"), "beyond")
    value = rule.get("Value")
    return f"{sign} {value:g}".replace("-", "\u2212") if value is not None else "its threshold"


def _lowest_drawn(largest: float, is_count: bool, is_lesion: bool) -> tuple[float, str]:
    """Smallest value that is drawn, and the sentence that says so."""
    if is_count:
        return 0.5, "Shown: one and more."
    half = 100 * DRAWN_SHARE
    if is_lesion or largest < half:
        return ANY, "Shown: all above zero."
    return half, f"Shown: {half:.0f} % and more."
