"""Pages of participants, made from the derivatives folder."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lacuna_nipype import __version__
from lacuna_nipype.core.exceptions import LacunaError, sentence_of
from lacuna_nipype.core.files import atomic_path
from lacuna_nipype.core.processes import forkserver
from lacuna_nipype.reports.results import (
    LesionResults,
    RunRecords,
    find_results,
    read_outcomes,
    read_runs,
)

logger = logging.getLogger("lacuna_nipype")
# Measured: 0.4 with nilearn, matplotlib and maps of 2 mm; maps of 1 mm take more.
MEMORY_GB = 0.7
_DIGEST = re.compile(rb'<meta name="lacuna-digest" content="([0-9a-f]+)">')


@dataclass(frozen=True)
class WrittenReport:
    """A page that was written, or was up to date.

    Parameters
    ----------
    participant : str
    path : Path
    written : bool
        False where the page was up to date.
    problems : tuple of str
        What is there and could not be shown.
    """

    participant: str
    path: Path
    written: bool
    problems: tuple[str, ...] = ()


def write_participant_report(
    output_dir: Path,
    participant: str,
    *,
    outcome: Mapping[str, Any] | None = None,
    again: bool = False,
) -> WrittenReport:
    """Write ``sub-XX.html`` and ``sub-XX/figures`` from what the derivatives folder holds.

    Parameters
    ----------
    output_dir : Path
        Derivatives dataset.
    participant : str
        Label without ``sub-``.
    outcome : mapping, optional
        What the last run says of the participant, see
        :class:`lacuna_nipype.reports.results.RunRecords`; read from the folder by default.
    again : bool
        Write the page also where nothing has changed since it was written.

    Returns
    -------
    WrittenReport
        Results that are damaged are problems in it; they, and what is missing, are named on the
        page.

    Raises
    ------
    OSError
        The page cannot be written.
    """
    output_dir = Path(output_dir)
    path = output_dir / f"sub-{participant}.html"
    if outcome is None:
        outcome = read_outcomes(output_dir).get(participant, {})
    lesions = find_results(output_dir, participant)
    digest = _digest(output_dir, participant, lesions, outcome)
    if not again and is_current(path, digest, path.with_suffix("") / "figures"):
        return WrittenReport(participant, path, written=False)
    problems, page = _make_page(output_dir, participant, lesions, outcome, digest)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return WrittenReport(participant, path, written=True, problems=problems)


def _make_page(
    output_dir: Path,
    participant: str,
    lesions: Sequence[LesionResults],
    outcome: Mapping[str, Any],
    digest: str,
) -> tuple[tuple[str, ...], str]:
    from lacuna_nipype.reports.boilerplate import describe_methods
    from lacuna_nipype.reports.page import Message, render_page
    from lacuna_nipype.reports.sections import lesion_section

    problems: list[str] = []
    try:
        records = RunRecords(read_runs(output_dir, participant), outcome)
    except (LacunaError, KeyError, TypeError) as error:
        problems.append(f"The record of the runs cannot be read: {error}")
        records = RunRecords((), outcome)
    methods = ""
    try:
        methods = describe_methods(records.analyses)
    except (LacunaError, KeyError, TypeError) as error:
        problems.append(f"The record of a run does not tell its methods: {error}")
    folder = output_dir / f"sub-{participant}" / "figures"
    expected = dict.fromkeys((*outcome.get("Analyses", ()), *records.analyses), True)
    sections = [lesion_section(lesion, folder, expected) for lesion in lesions]
    messages = [Message("error", text) for text in (*outcome.get("Errors", ()), *problems)]
    missing = outcome.get("Missing", ())
    if missing:
        are = "result is" if len(missing) == 1 else "results are"
        text = f"{len(missing)} {are} missing, such as {missing[0]}."
        messages.append(Message("error", text))
    if not sections:
        messages.append(Message("error", "There are no results of this participant."))
    messages += [Message("warning", text) for text in outcome.get("Warnings", ())]
    page = render_page(
        participant, sections, records, messages,
        methods=methods, output_dir=output_dir, digest=digest,
    )  # fmt: skip
    of_sections = [f"{s.lesion.title}: {text}" for s in sections for text in s.failures]
    return (*problems, *of_sections), page


def _digest(
    output_dir: Path,
    participant: str,
    lesions: Iterable[LesionResults],
    outcome: Mapping[str, Any],
) -> str:
    """Stand for all that a page is made of: one that has it need not be made again."""
    home = output_dir / f"sub-{participant}"
    files = {
        *(file.path for lesion in lesions for file in lesion.files),
        *home.glob("**/*.json"),
    }
    stamps = [
        (path.relative_to(home).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(files)
    ]
    # A run that did nothing new says the same under another name.
    said = {key: value for key, value in outcome.items() if key != "RunID"}
    content = json.dumps([__version__, stamps, said], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8")).hexdigest()


def is_current(path: Path, digest: str, figures: Path) -> bool:
    """Tell whether a page was made of what it would be made of now, and has its figures.

    Parameters
    ----------
    path : Path
        The page.
    digest : str
        Stands for everything that it is made of.
    figures : Path
        Folder.

    Returns
    -------
    bool
    """
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        match = _DIGEST.search(stream.read(2048))
    return match is not None and match[1].decode() == digest and figures.is_dir()


def write_reports(
    output_dir: Path,
    participants: Sequence[str],
    *,
    n_processes: int = 1,
    again: bool = False,
    progress: Callable[[WrittenReport], None] | None = None,
) -> list[WrittenReport]:
    """Write the pages of several participants, several at a time.

    Parameters
    ----------
    output_dir : Path
        Derivatives dataset.
    participants : sequence of str
        Labels without ``sub-``.
    n_processes : int
        Pages made at the same time; each takes up to :data:`MEMORY_GB` of memory.
    again : bool
        See :func:`write_participant_report`.
    progress : callable, optional
        Told about every page.

    Returns
    -------
    list of WrittenReport
        In the order of the participants. A page that cannot be made is one with a problem.

    Raises
    ------
    ValidationError
        The record of a run in the log folder is damaged.
    """
    output_dir = Path(output_dir)
    outcomes = read_outcomes(output_dir)
    tasks = [(output_dir, name, outcomes.get(name, {}), again) for name in participants]
    n_processes = min(n_processes, len(tasks))
    done: dict[str, WrittenReport] = {}
    if n_processes <= 1:
        for task in tasks:
            done[task[1]] = _settle(task, _write)
            if progress is not None:
                progress(done[task[1]])
    else:
        _write_in_processes(tasks, n_processes, done, progress)
    return [done[name] for name in participants]


_Task = tuple[Path, str, Mapping[str, Any], bool]


def _write_in_processes(
    tasks: Sequence[_Task],
    n_processes: int,
    done: dict[str, WrittenReport],
    progress: Callable[[WrittenReport], None] | None,
) -> None:
    # Fresh processes: a copy of this one would hold the memory of a whole graph.
    context = forkserver()
    with ProcessPoolExecutor(n_processes, mp_context=context) as pool:
        futures: dict[Future[WrittenReport], _Task] = {
            pool.submit(_write, task): task for task in tasks
        }
        for future in as_completed(futures):
            task = futures[future]
            done[task[1]] = _settle(task, lambda _: future.result())  # noqa: B023
            if progress is not None:
                progress(done[task[1]])


def _write(task: _Task) -> WrittenReport:
    output_dir, participant, outcome, again = task
    return write_participant_report(output_dir, participant, outcome=outcome, again=again)


def _settle(task: _Task, make: Callable[[_Task], WrittenReport]) -> WrittenReport:
    """Turn whatever goes wrong with one page into its problem."""
    try:
        return make(task)
    except Exception as error:
        logger.exception("The page of sub-%s cannot be made", task[1])
        path = task[0] / f"sub-{task[1]}.html"
        return WrittenReport(task[1], path, written=False, problems=(sentence_of(error),))
