"""The page of the group, and the record of a run that it is made from."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna_nipype import __version__
from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.cli.ending import OK, SOME_FAILED, USAGE, describe_os_error, end
from lacuna_nipype.cli.reports import write_citation_files
from lacuna_nipype.cli.terminal import say
from lacuna_nipype.core.exceptions import LacunaError
from lacuna_nipype.core.files import write_json

if TYPE_CHECKING:
    from lacuna_nipype.cli.group import GroupPlan
    from lacuna_nipype.execution.runner import Failure, RunOutcome

# Starts of the names of steps, and what readers call that.
_WORDS = {
    "collect": "The table of all participants",
    "overlap": "The overlap",
    "associate": "The test",
    "files": "The test",
}


class GroupReporter:
    """Keeps the record of a run of the group level, and has the page made at the end.

    Parameters
    ----------
    config : RunConfig
    plan : GroupPlan
    run_id : str
    started : datetime
    argv : sequence of str
        Words of the command line.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: GroupPlan,
        run_id: str,
        started: datetime,
        argv: Sequence[str],
    ) -> None:
        self.config, self.plan, self.run_id = config, plan, run_id
        self.started, self.argv = started, argv

    def begin(self, outputs: Sequence[Path]) -> None:
        """Record that the run has begun: of one that is killed, that remains.

        Parameters
        ----------
        outputs : sequence of Path
            Files that it will write.
        """
        self._record(outputs, None)

    def end(self, outputs: Sequence[Path], outcome: RunOutcome) -> tuple[str, ...]:
        """Record what came out, and write the page and the citations.

        Parameters
        ----------
        outputs : sequence of Path
        outcome : RunOutcome

        Returns
        -------
        tuple of str
            What went wrong with the page, in sentences.
        """
        problems: tuple[str, ...] = ()
        # Whatever is wrong here, the results are there, and what the run prints of them counts.
        try:
            self._record(outputs, outcome)
            if self.config.reports:
                problems = _make_page(self.config.output_dir)
            self._write_citations()
        except LacunaError as error:
            problems = (*problems, str(error))
        except OSError as error:
            problems = (*problems, describe_os_error(error, self.config.output_dir))
        return problems

    def _record(self, outputs: Sequence[Path], outcome: RunOutcome | None) -> None:
        from lacuna_nipype.io.provenance import software_versions
        from lacuna_nipype.reports.group_results import GROUP_RECORD
        from lacuna_nipype.reports.results import OUTCOME_NAME

        output_dir, ended = self.config.output_dir, None
        errors: list[str] = []
        missing: list[str] = []
        names = [path.relative_to(output_dir).as_posix() for path in outputs]
        if outcome is not None:
            ended = datetime.now(timezone.utc).isoformat(timespec="seconds")
            errors = [self._describe(failure) for failure in outcome.failures]
            if outcome.error:
                errors.append(f"The run ended early: {outcome.error}")
            missing = [name for name in names if not (output_dir / name).is_file()]
        record = {
            "RunID": self.run_id,
            "Version": __version__,
            "Started": self.started.isoformat(timespec="seconds"),
            "Ended": ended,
            "CommandLine": "lacuna-nipype " + shlex.join(self.argv),
            "Software": software_versions(),
            "Parameters": self.config.to_dict(),
            GROUP_RECORD: {
                "Datasets": [str(path) for path in self.plan.datasets],
                "Results": names,
                "Columns": self.plan.columns,
                "Warnings": list(dict.fromkeys(self.plan.notices)),
                "Errors": errors,
                "Missing": missing,
            },
        }
        write_json(output_dir / "logs" / self.run_id / OUTCOME_NAME, record)

    def _describe(self, failure: Failure) -> str:
        """Say in words which step failed, and why."""
        from lacuna_nipype.workflows.group import node_name

        step = failure.node.split(".", 1)[-1]
        plan = self.plan
        entries = [*plan.tables, *plan.overlaps, *plan.map_tests, *plan.table_tests]
        what = f"The step {step}"
        for name in (str(settings["name"]) for settings in entries):
            for prefix, words in _WORDS.items():
                if step in (node_name(prefix, name), node_name(f"ds_{prefix}", name)):
                    what = f"{words} of {name}"
        text = f"{what} failed: {failure.reason.rstrip('.')}."
        if failure.crash_file is not None:
            text += f" Details: logs/{self.run_id}/{failure.crash_file.name}."
        return text

    def _write_citations(self) -> None:
        from lacuna_nipype.reports.group import methods_of_run

        text = methods_of_run(self.config.output_dir, self.run_id)
        if text:
            folder = self.config.output_dir / "logs" / self.run_id
            write_citation_files(self.config.output_dir, [folder], text)


def _make_page(output_dir: Path, *, again: bool = False) -> tuple[str, ...]:
    """Write the page, say where it is, and give what went wrong."""
    from lacuna_nipype.reports.group import write_group_report

    report = write_group_report(output_dir, again=again)
    say(f"Report: {report.path}")
    return report.problems


def rebuild_group_report(config: RunConfig) -> int:
    """Write the page of the group again (``--reports-only``).

    Parameters
    ----------
    config : RunConfig

    Returns
    -------
    int
        Exit code; the reason is the last line printed.
    """
    if config.dry_run:
        return end(OK, f"Dry run: {config.output_dir / 'group.html'}; nothing was written.")
    try:
        problems = _make_page(config.output_dir, again=True)
    except LacunaError as error:
        return end(USAGE, str(error))
    except OSError as error:
        reason = describe_os_error(error, config.output_dir)
        return end(SOME_FAILED, f"The report cannot be written: {reason}")
    if problems:
        return end(SOME_FAILED, incomplete(problems))
    return end(OK, f"Results: {config.output_dir}")


def incomplete(problems: Sequence[Any]) -> str:
    """Say that a page does not show everything."""
    return f"The report is incomplete ({len(problems)} in all); the first: {problems[0]}"
