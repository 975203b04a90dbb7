"""The page of the group, made from the derivatives folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lacuna_nipype import __version__
from lacuna_nipype.core.exceptions import LacunaError, ValidationError
from lacuna_nipype.core.files import atomic_path
from lacuna_nipype.reports.boilerplate import describe_group_methods, join_words
from lacuna_nipype.reports.group_results import (
    GROUP_RECORD,
    GroupResults,
    RegionFinder,
    find_group_results,
    read_group_runs,
    runs_of_results,
)
from lacuna_nipype.reports.participant import WrittenReport, is_current
from lacuna_nipype.reports.results import OUTCOME_NAME

PAGE_NAME = "group.html"


def write_group_report(output_dir: Path, *, again: bool = False) -> WrittenReport:
    """Write ``group.html`` and its ``figures`` from what the derivatives folder holds.

    Parameters
    ----------
    output_dir : Path
        Derivatives dataset.
    again : bool
        Write the page also where nothing has changed since it was written.

    Returns
    -------
    WrittenReport
        Results that are damaged are problems in it; they, and what is missing, are named on the
        page.

    Raises
    ------
    ValidationError
        There is nothing of a group in the folder.
    OSError
        The page cannot be written.
    """
    output_dir = Path(output_dir)
    path = output_dir / PAGE_NAME
    results = find_group_results(output_dir)
    problems: list[str] = []
    runs: tuple[dict[str, Any], ...] = ()
    try:
        runs = read_group_runs(output_dir)
    except LacunaError as error:
        problems.append(f"The record of a run cannot be read: {error}")
    if not results.files and not runs and not problems:
        raise ValidationError(
            f"{output_dir} holds no results of a group; run the group level there first."
        )
    datasets = _datasets(output_dir, runs)
    digest = _digest(output_dir, results, datasets, runs)
    if not again and is_current(path, digest, output_dir / "figures"):
        return WrittenReport("group", path, written=False)
    found, page = _make_page(output_dir, results, runs, datasets, digest, problems)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return WrittenReport("group", path, written=True, problems=tuple(found))


def methods_of_run(output_dir: Path, run_id: str) -> str:
    """Describe in words how the results of one run were made.

    Parameters
    ----------
    output_dir : Path
        Derivatives dataset.
    run_id : str

    Returns
    -------
    str
        Markdown; empty where the run left no results.

    Raises
    ------
    ValidationError
        A record or sidecar is damaged.
    """
    run = next(run for run in read_group_runs(output_dir) if run["RunID"] == run_id)
    made = set(run[GROUP_RECORD]["Results"])
    sidecars = [
        {**file.sidecar, "Entities": dict(file.entities)}
        for file in find_group_results(output_dir).files
        if file.path.relative_to(output_dir).as_posix() in made
    ]
    try:
        return describe_group_methods(sidecars, run["Software"])
    except KeyError as error:
        raise ValidationError(f"A sidecar of {output_dir} lacks {error}; run again.") from error


def _datasets(output_dir: Path, runs: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Folders with results of participants, this one first."""
    named = [str(path) for run in runs[-1:] for path in run[GROUP_RECORD].get("Datasets", [])]
    others = [Path(path) for path in named if Path(path) != output_dir and Path(path).is_dir()]
    return list(dict.fromkeys([output_dir, *others]))


def _make_page(
    output_dir: Path,
    results: GroupResults,
    runs: Sequence[dict[str, Any]],
    datasets: Sequence[Path],
    digest: str,
    problems: list[str],
) -> tuple[list[str], str]:
    """Give what went wrong, and the HTML."""
    from lacuna_nipype.reports.group_overlap import overlap_parts
    from lacuna_nipype.reports.group_tests import model_parts
    from lacuna_nipype.reports.page import Message, render_group_page
    from lacuna_nipype.reports.people import find_people, people_table

    sidecars = _sidecars(results, problems)
    members = sorted({str(name) for own in sidecars for name in own.get("Participants", [])})
    people = find_people(output_dir, datasets, members)
    problems += people.problems
    regions = RegionFinder(output_dir)
    folder = output_dir / "figures"
    overlaps = overlap_parts(results, folder, regions)
    models = model_parts(results, folder, regions)
    parts = [*overlaps, *(part for model in models for part in model.parts)]
    _remove_old_figures(folder, parts)
    problems += regions.problems
    methods = ""
    software = runs[-1]["Software"] if runs else {"lacuna-nipype": __version__}
    try:
        methods = describe_group_methods(sidecars, software)
    except (LacunaError, KeyError, TypeError, ValueError) as error:
        problems.append(f"A sidecar does not tell the methods: {error}")
    left_out: dict[str, str] = {}
    for own in sidecars:
        left_out.update(own.get("ParticipantsLeftOut", {}))
    content = {
        "n_participants": len(members or people.names),
        "overview": _overview(results, sidecars, len(members), people),
        "overlaps": overlaps,
        "models": models,
        "people": people_table(people, _columns(runs), left_out, members),
    }
    failures = [f"{part.title}: {text}" for part in parts for text in part.failures]
    messages = [Message(kind, text) for kind, text in _messages(results, runs, problems)]
    if failures:
        those = "1 result" if len(failures) == 1 else f"{len(failures)} results"
        messages.insert(0, Message("error", f"{those} cannot be shown, see below."))
    page = render_group_page(
        content, runs_of_results(runs, results, output_dir), messages,
        methods=methods, output_dir=output_dir, digest=digest,
    )  # fmt: skip
    return [*problems, *failures], page


def _sidecars(results: GroupResults, problems: list[str]) -> list[dict[str, Any]]:
    """Sidecars of all results, each with the entities of its file under ``Entities``."""
    found = []
    for file in results.files:
        try:
            found.append({**file.sidecar, "Entities": dict(file.entities)})
        except LacunaError as error:
            problems.append(str(error))
    return found


def _overview(
    results: GroupResults, sidecars: Sequence[Mapping[str, Any]], n_members: int, people: Any
) -> Any:
    """Say what the page is about."""
    from lacuna_nipype.reports.sections import TITLES, Analysis

    part = Analysis("overview", "Overview")
    n = n_members or len(people.names)
    outside = len(people.names) - n
    text = str(n) + (f" ({outside} more in the folder)" if outside > 0 else "")
    part.facts.append(("Participants", text))
    sessions = sorted({person.session for person in people.persons if person.session})
    if sessions:
        listed = ", ".join(sessions[:8]) + (", ..." if len(sessions) > 8 else "")
        part.facts.append(("Sessions", f"{len(sessions)} ({listed})"))
    entities = [file.entities for file in results.files]
    labels = sorted({own["label"] for own in entities if "label" in own})
    if labels:
        part.facts.append(("Lesions", ", ".join(labels)))
    kinds = {own["desc"] for own in entities}
    names = [title for key, title in {"lesion": "Lesions", **TITLES}.items()
             if key in kinds or (key == "lesion" and "overlap" in kinds)]  # fmt: skip
    part.facts.append(("Analyses", ", ".join(names) or "none"))
    part.facts.append(("Space", "; ".join(_spaces(sidecars)) or "not known"))
    scores = sorted({str(own["Parameters"]["Tested"]) for own in sidecars
                     if "Tested" in own.get("Parameters", {})})  # fmt: skip
    part.facts.append(("Tested", ", ".join(scores) or "no score and no groups"))
    part.files = [file.path for file in results.tables]
    return part


def _spaces(sidecars: Sequence[Mapping[str, Any]]) -> list[str]:
    """Spaces of the maps, each with its resolutions."""
    sizes: dict[str, set[str]] = {}
    for own in sidecars:
        if own["Entities"]["suffix"] not in ("statmap", "probseg"):
            continue
        space = str(own.get("SpaceName") or own["Entities"].get("tpl", "not known"))
        sizes.setdefault(space, set())
        if own["Entities"].get("res"):
            sizes[space].add(own["Entities"]["res"])
    return [
        space + (f", voxels of {join_words(sorted(found))} mm" if found else "")
        for space, found in sorted(sizes.items())
    ]


def _messages(
    results: GroupResults, runs: Sequence[Mapping[str, Any]], problems: Sequence[str]
) -> list[tuple[str, str]]:
    """Say what the last run says, and what is wrong with the page."""
    said: Mapping[str, Any] = runs[-1][GROUP_RECORD] if runs else {}
    messages = [("error", str(text)) for text in (*said.get("Errors", ()), *problems)]
    if runs and runs[-1]["Ended"] is None:
        text = (
            f"The run {runs[-1]['RunID']} did not come to its end (it was killed, or it is still "
            "running); run the same command again to complete it."
        )
        messages.append(("error", text))
    missing = said.get("Missing", ())
    if missing:
        are = "result is" if len(missing) == 1 else "results are"
        messages.append(("error", f"{len(missing)} {are} missing, such as {missing[0]}."))
    if not results.files:
        messages.append(("error", "There are no results of the group."))
    return messages + [("warning", str(text)) for text in said.get("Warnings", ())]


def _remove_old_figures(folder: Path, parts: Sequence[Any]) -> None:
    """Remove figures that an earlier page showed and this one does not."""
    shown = {picture.path for part in parts for picture in part.pictures}
    for path in folder.glob("group_*.png"):
        if path not in shown:
            path.unlink()


def _digest(
    output_dir: Path,
    results: GroupResults,
    datasets: Sequence[Path],
    runs: Sequence[Mapping[str, Any]],
) -> str:
    """Stand for all that a page is made of: one that has it need not be made again."""
    files = {path for file in results.files for path in (file.path, file.sidecar_path)}
    files.update(output_dir.glob("tpl-*/tpl-*_dseg.*"))
    for root in datasets:
        files.update(root.glob("sub-*/**/anat/sub-*"))
        files.update(root.glob(f"logs/*/{OUTCOME_NAME}"))
    # What these say is in the records of runs; another run may say the same.
    files -= {output_dir / "logs" / str(run["RunID"]) / OUTCOME_NAME for run in runs}
    stamps = [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(files)
        if path.is_file()
    ]
    pages = sorted(str(path) for root in datasets for path in root.glob("sub-*.html"))
    said = [(run[GROUP_RECORD], run["Ended"] is None) for run in runs[-1:]]
    content = json.dumps([__version__, stamps, pages, said, _columns(runs)], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8")).hexdigest()


def _columns(runs: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, str]]:
    """Columns of the table of participants that runs used, the last one's where several did."""
    columns: dict[str, Mapping[str, str]] = {}
    for run in runs:
        columns.update(run[GROUP_RECORD].get("Columns", {}))
    return columns
