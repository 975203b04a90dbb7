"""The pages of a run's participants, and the record that they are made from.

Pages are made after the graph and not by it, from what is on disk: then a participant of whom a
step failed has one too, and ``--reports-only`` makes all of them again without a graph.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna_nipype import __version__
from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.cli.ending import OK, SOME_FAILED, USAGE, end
from lacuna_nipype.cli.plan import planned_outputs
from lacuna_nipype.cli.terminal import say
from lacuna_nipype.core.exceptions import LacunaError
from lacuna_nipype.core.files import atomic_path, write_json

if TYPE_CHECKING:
    from lacuna_nipype.cli.inputs import RunInputs
    from lacuna_nipype.execution.runner import Failure, RunOutcome
    from lacuna_nipype.reports.participant import WrittenReport

logger = logging.getLogger("lacuna_nipype")
# Parts of the names of steps, and what readers call that.
_WORDS = {
    "mask": "The preparation of the mask",
    "damage": "Regional damage",
    "rd": "Regional damage",
    "fnm": "The functional network",
    "afnm": "The functional network by regions",
    "snm": "Structural disconnection",
    "tractogram": "Structural disconnection",
}


def write_outcome(
    inputs: RunInputs,
    output_dir: Path,
    run_id: str,
    *,
    started: datetime,
    outcome: RunOutcome | None = None,
    ended: bool = True,
) -> list[str]:
    """Record in the log folder of a run what there is to say of every participant.

    Written before the graph too: of a run that is killed that record remains, without an end.

    Parameters
    ----------
    inputs : RunInputs
        With all lesions, also those that were up to date.
    output_dir : Path
        Derivatives dataset.
    run_id : str
        Name of the log folder.
    started : datetime
    outcome : RunOutcome, optional
        What became of the graph, where one ran.
    ended : bool
        The run is over.

    Returns
    -------
    list of str
        Labels of the participants, in order.
    """
    from lacuna_nipype.reports.results import OUTCOME_NAME

    said: dict[str, dict[str, Any]] = defaultdict(
        lambda: {"Analyses": list(inputs.analyses), "Warnings": [], "Errors": [], "Missing": []}
    )
    inspection = inputs.inspection
    for lesion in inspection.lesions:
        said[lesion.record.subject]["Warnings"] += lesion.warnings
    for key, reason in inspection.skipped.items():
        said[_subject(key)]["Warnings"].append(reason)
    for key, reason in inspection.refused.items():
        said[_subject(key)]["Errors"].append(reason)
    if ended:
        for path in planned_outputs(inputs):
            if not (output_dir / path).is_file():
                said[_subject(path)]["Missing"].append(path)
    if outcome is not None:
        _add_failures(said, inputs, outcome, run_id)
    record = {
        "RunID": run_id,
        "Version": __version__,
        "Started": started.isoformat(timespec="seconds"),
        "Ended": datetime.now(timezone.utc).isoformat(timespec="seconds") if ended else None,
        "Participants": {name: said[name] for name in sorted(said)},
    }
    write_json(output_dir / "logs" / run_id / OUTCOME_NAME, record)
    return sorted(said)


def _subject(text: str) -> str:
    """Label of the participant at the start of a key or of a path."""
    return text.replace("/", "_").split("_")[0].removeprefix("sub-")


def _add_failures(
    said: dict[str, dict[str, Any]], inputs: RunInputs, outcome: RunOutcome, run_id: str
) -> None:
    """Tell every participant of the steps that failed for them."""
    from lacuna_nipype.workflows.base import lesion_workflow_names

    owners = {
        name: lesion.record
        for lesion in inputs.inspection.lesions
        for name in lesion_workflow_names(lesion.record.key)
    }
    for failure in outcome.failures:
        parts = failure.node.split(".")[1:]
        record = owners.get(parts[0]) if parts else None
        if record is not None:
            text = f"Lesion {record.label}: {_describe(failure, parts[1:], run_id)}"
            said[record.subject]["Errors"].append(text)
            continue
        # A step that all share; those who miss nothing did not need it.
        for own in said.values():
            if own["Missing"]:
                own["Errors"].append(_describe(failure, parts, run_id))
    if outcome.error:
        for own in said.values():
            if own["Missing"]:
                own["Errors"].append(f"The run ended early: {outcome.error}")


def _describe(failure: Failure, parts: Sequence[str], run_id: str) -> str:
    what = next((_WORDS[p.split("_")[0]] for p in parts if p.split("_")[0] in _WORDS), "A step")
    step = ".".join(parts)
    text = f"{what} failed in the step {step}: {failure.reason.rstrip('.')}."
    if failure.crash_file is not None:
        text += f" Details: logs/{run_id}/{failure.crash_file.name}."
    return text


class Reporter:
    """Keeps the record of a run for its pages, and has them made at the end.

    Parameters
    ----------
    config : RunConfig
    inputs : RunInputs
        With all lesions, also those that were up to date.
    run_id : str
    started : datetime
    """

    def __init__(
        self, config: RunConfig, inputs: RunInputs, run_id: str, started: datetime
    ) -> None:
        self.config, self.inputs, self.run_id, self.started = config, inputs, run_id, started

    def begin(self) -> None:
        """Record that the run has begun."""
        if not self.config.dry_run:
            write_outcome(
                self.inputs, self.config.output_dir, self.run_id, started=self.started, ended=False
            )

    def end(self, outcome: RunOutcome | None = None) -> tuple[str, ...]:
        """Record what came out and write pages and citations.

        Parameters
        ----------
        outcome : RunOutcome, optional
            What became of the graph, where one ran.

        Returns
        -------
        tuple of str
            What went wrong with the pages, in sentences.
        """
        if self.config.dry_run:
            return ()
        output_dir = self.config.output_dir
        problems: tuple[str, ...] = ()
        # Whatever is wrong here, the results are there, and what the run prints of them counts.
        try:
            participants = write_outcome(
                self.inputs, output_dir, self.run_id, started=self.started, outcome=outcome
            )
            if self.config.reports:
                problems = make_reports(self.config, participants)
            write_citations(output_dir, self.run_id, participants, self.inputs.analyses)
        except (LacunaError, OSError, KeyError) as error:
            problems = (*problems, f"{type(error).__name__}: {error}")
        return problems


def make_reports(
    config: RunConfig, participants: Sequence[str], *, again: bool = False
) -> tuple[str, ...]:
    """Write the pages of participants and say where they are.

    Parameters
    ----------
    config : RunConfig
    participants : sequence of str
        Labels without ``sub-``.
    again : bool
        Also those that are up to date.

    Returns
    -------
    tuple of str
        What went wrong, in sentences.
    """
    from lacuna_nipype.execution.resources import available_memory_gb
    from lacuna_nipype.reports.participant import MEMORY_GB, write_reports

    if not participants:
        return ()
    # With SLURM, the limit is that of its jobs, and pages are drawn here.
    memory_gb = available_memory_gb() if config.plugin == "SLURM" else config.memory_gb
    by_memory = max(1, int(memory_gb / MEMORY_GB))
    reports = write_reports(
        config.output_dir,
        participants,
        n_processes=min(config.nprocs, by_memory),
        again=again,
        progress=_log,
    )
    first = reports[0].path
    pages = f"{first}" if len(reports) == 1 else f"{first} and {len(reports) - 1} more"
    say(f"Report{'' if len(reports) == 1 else 's'}: {pages}")
    return tuple(
        f"sub-{report.participant}: {problem}" for report in reports for problem in report.problems
    )


def _log(report: WrittenReport) -> None:
    state = "written" if report.written else "up to date"
    logger.info("Report of sub-%s: %s", report.participant, state)


def write_citations(
    output_dir: Path, run_id: str, participants: Sequence[str], analyses: Sequence[str]
) -> None:
    """Write the text of a run's methods and its references beside the logs.

    Parameters
    ----------
    output_dir : Path
        Derivatives dataset.
    run_id : str
        The run; ``logs/RUN/CITATION.*`` are its own, ``logs/CITATION.*`` those of the last run.
    participants : sequence of str
        Labels without ``sub-``. Where the run did nothing new for any, nothing is written.
    analyses : sequence of str
        What was asked for, done by this run or complete before.

    Raises
    ------
    ValidationError
        A provenance file is damaged.
    """
    from lacuna_nipype.reports.boilerplate import describe_methods
    from lacuna_nipype.reports.results import read_runs

    runs = [read_runs(output_dir, participant) for participant in participants]
    if not any(run["RunID"] == run_id for own in runs for run in own):
        return
    latest: dict[str, list[dict[str, Any]]] = {}
    for own in runs:
        # A run does not do what was complete, and yet its results are made in that way.
        last = {name: run for run in own for name in run["Analyses"]}
        for name in analyses:
            latest.setdefault(name, []).extend([last[name]] if name in last else [])
    whole = {
        name: {**entries[-1], "Inputs": [item for run in entries for item in run["Inputs"]]}
        for name, entries in latest.items()
        if entries
    }
    text = describe_methods(whole)
    write_citation_files(output_dir, (output_dir / "logs" / run_id, output_dir / "logs"), text)


def write_citation_files(output_dir: Path, folders: Iterable[Path], text: str) -> None:
    """Write the text of methods, and the references that it cites.

    Parameters
    ----------
    output_dir : Path
        Derivatives dataset.
    folders : iterable of Path
        Where ``CITATION.md`` and ``CITATION.bib`` go.
    text : str
        Markdown.
    """
    from lacuna_nipype.io.derivatives import dataset_lock
    from lacuna_nipype.reports.boilerplate import bibtex, cited_references

    files = {"CITATION.md": text, "CITATION.bib": bibtex(cited_references(text))}
    with dataset_lock(output_dir):
        for folder in folders:
            for name, content in files.items():
                with atomic_path(folder / name) as temporary:
                    temporary.write_text(content, encoding="utf-8")


def rebuild_reports(config: RunConfig) -> int:
    """Write the pages of an output folder again (``--reports-only``).

    Parameters
    ----------
    config : RunConfig

    Returns
    -------
    int
        Exit code; the reason is the last line printed.
    """
    from lacuna_nipype.reports.results import list_participants, read_outcomes

    try:
        found = sorted({*list_participants(config.output_dir), *read_outcomes(config.output_dir)})
    except LacunaError as error:
        return end(USAGE, str(error))
    unknown = sorted(set(config.participant_label) - set(found))
    if not found or unknown:
        what = f"no results of sub-{unknown[0]}" if unknown else "no results of a participant"
        return end(USAGE, f"{config.output_dir} holds {what}; give the output folder of a run.")
    try:
        problems = make_reports(config, list(config.participant_label) or found, again=True)
    except OSError as error:
        return end(SOME_FAILED, f"The reports cannot be written: {error}")
    if problems:
        return end(
            SOME_FAILED,
            f"Reports are incomplete, {len(problems)} in all; the first: {problems[0]}",
        )
    return end(OK, f"Results: {config.output_dir}")
