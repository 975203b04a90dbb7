"""The participant level: check, build, run, record, report."""

from __future__ import annotations

import logging
import shlex
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.cli.ending import NOT_BUILT, SOME_FAILED, describe_os_error, end
from lacuna_nipype.cli.graph import build_workflow, dataset_links, pass_memory
from lacuna_nipype.cli.submit import TASK_PROCESSORS
from lacuna_nipype.cli.summary import (
    end_up_to_date,
    end_without_lesions,
    show_inputs,
    show_plan,
)
from lacuna_nipype.cli.terminal import count, say

if TYPE_CHECKING:
    from lacuna_nipype.cli.inputs import RunInputs
    from lacuna_nipype.cli.recovery import Recovery
    from lacuna_nipype.cli.reports import Reporter
    from lacuna_nipype.execution.runner import RunOutcome

logger = logging.getLogger("lacuna_nipype")


def run_participant_level(config: RunConfig, argv: Sequence[str]) -> int:
    """Run the participant level.

    Parameters
    ----------
    config : RunConfig
    argv : sequence of str
        Words of the command line, for the record.

    Returns
    -------
    int
        Exit code; the reason is the last line printed.

    Raises
    ------
    LacunaError, OSError
        An input is unusable, a program is missing, or a folder cannot be written; nothing was
        computed.
    """
    from lacuna_nipype.cli.claims import claimed, own_work_folder
    from lacuna_nipype.cli.inputs import gather_inputs
    from lacuna_nipype.cli.recovery import plan_recovery
    from lacuna_nipype.cli.reports import Reporter, rebuild_reports
    from lacuna_nipype.cli.submit import run_part, submit_run
    from lacuna_nipype.execution.runner import require_plugin
    from lacuna_nipype.io.derivatives import refuse_foreign_dataset

    if config.reports_only:
        return rebuild_reports(config)
    if config.submit_part is not None:
        return run_part(config, config.submit_part)
    started = datetime.now(timezone.utc)
    run_id = f"{started:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    if config.submit is not None:
        return submit_run(config, run_id)
    log_dir = config.output_dir / "logs" / run_id
    with ExitStack() as held:
        require_plugin(config.plugin, config.plugin_args)
        inputs = gather_inputs(config)
        config = replace(config, omp_nthreads=_threads(config, inputs))
        show_inputs(inputs)
        links = dataset_links(config, inputs)
        if not config.dry_run:
            held.enter_context(own_work_folder(config.work_dir))
            # Before a lock or a claim, which are files in the folder.
            refuse_foreign_dataset(config.output_dir)
        recovery = plan_recovery(config, inputs)
        if not config.dry_run:
            if recovery.inputs.inspection.lesions:
                held.enter_context(
                    claimed(config.output_dir, run_id, recovery.claims, alone=config.overwrite)
                )
            _prepare_output(config, inputs, log_dir, links)
        reporter = Reporter(config, inputs, run_id, started)
        reporter.begin()
        problems: list[str] = []
        if not inputs.inspection.lesions:
            with _noting(problems, log_dir):
                reporter.end()
            return end_without_lesions(inputs)
        if recovery.up_to_date:
            done = count(len(recovery.up_to_date), "lesion")
            say(f"{done} of an earlier run up to date (--overwrite does them again).")
            if config.verify and "fnm" in inputs.analyses:
                say("Note: their maps are not verified again; --overwrite with --verify does so.")
        if not recovery.inputs.inspection.lesions:
            with _noting(problems, log_dir):
                problems += reporter.end()
            return end_up_to_date(config, inputs, problems)
        return _build_and_run(config, recovery, links, log_dir, run_id, started, argv, reporter)


def _build_and_run(
    config: RunConfig,
    recovery: Recovery,
    links: dict[str, Path],
    log_dir: Path,
    run_id: str,
    started: datetime,
    argv: Sequence[str],
    reporter: Reporter,
) -> int:
    from lacuna_nipype.cli.recovery import begin
    from lacuna_nipype.cli.recovery import end as note_end
    from lacuna_nipype.cli.sizes import run_sizes
    from lacuna_nipype.cli.submit import clear_passes
    from lacuna_nipype.execution.estimates import apply_estimates
    from lacuna_nipype.execution.runner import configure_nipype, expanded_nodes, run_graph
    from lacuna_nipype.execution.threads import limited_threads

    if not config.dry_run:
        configure_nipype(
            log_dir=log_dir,
            stop_on_first_crash=config.stop_on_first_crash,
            verbose=config.verbose,
        )
    inputs = recovery.inputs
    try:
        workflow = build_workflow(config, inputs, links)
        apply_estimates(workflow, run_sizes(config, inputs, pass_memory(config, inputs)))
        nodes = expanded_nodes(workflow)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not the user's data
        logger.error("%s", traceback.format_exc())
        where = f"; the log is in {log_dir}" if log_dir.is_dir() else ""
        return end(NOT_BUILT, f"The graph could not be built: {error}{where}")
    if config.dry_run:
        return show_plan(nodes, config, inputs)
    if removed := begin(config, recovery):
        say(
            f"Note: {count(removed, 'result')} of an earlier run with other parameters or inputs "
            "removed, as this run does not make them."
        )
    with limited_threads(config.omp_nthreads):
        outcome = run_graph(
            workflow,
            n_nodes=len(nodes),
            plugin=config.plugin,
            nprocs=config.nprocs,
            memory_gb=config.memory_gb,
            crash_dir=log_dir,
            plugin_args=config.plugin_args,
        )
    if not (outcome.error or outcome.failures) and "fnm" in inputs.analyses:
        clear_passes(config)
    problems: list[str] = []
    with _noting(problems, config.output_dir):
        _record(config, inputs, outcome, links, run_id, started, argv)
        note_end(config, recovery, outcome)
    return _report(config, inputs, outcome, log_dir, reporter, problems)


@contextmanager
def _noting(problems: list[str], folder: Path) -> Iterator[None]:
    """Note that records cannot be written, as on a full disk: the end of a run is told anyway."""
    try:
        yield
    except OSError as error:
        problems.append(describe_os_error(error, folder))


def _threads(config: RunConfig, inputs: RunInputs) -> int:
    """Threads of one step: what is left of the processors when every file has one."""
    if config.plugin == "SLURM":
        return config.step_threads(TASK_PROCESSORS)
    n_files = len(inputs.functional.files) if inputs.functional else 1
    return config.step_threads(max(1, min(8, config.nprocs // n_files)))


def _prepare_output(
    config: RunConfig, inputs: RunInputs, log_dir: Path, links: dict[str, Path]
) -> None:
    from lacuna_nipype.cli.atlas_outputs import write_atlases
    from lacuna_nipype.core.files import write_json
    from lacuna_nipype.io.derivatives import (
        dataset_lock,
        earlier_outputs,
        prepare_dataset,
        remove_leftovers,
    )

    with dataset_lock(config.output_dir):
        remarks = prepare_dataset(config.output_dir, links)
        if inputs.inspection.lesions:
            remarks += write_atlases(config.output_dir, inputs.used_atlases, links)
    log_dir.mkdir(parents=True)
    write_json(log_dir / "config.json", config.to_dict())
    subjects = {lesion.record.subject for lesion in inputs.inspection.lesions}
    remove_leftovers(config.output_dir, subjects, older_than_s=24 * 3600)
    for remark in remarks:
        say(f"Note: {remark}")
    left_out = dict.fromkeys(inputs.inspection.refused, "refused")
    left_out |= dict.fromkeys(inputs.inspection.skipped, "skipped")
    for key, what in left_out.items():
        old = earlier_outputs(config.output_dir, key)
        if old:
            say(
                f"Warning: {count(len(old), 'result')} of an earlier run of {key}, which is "
                f"{what} now, {'is' if len(old) == 1 else 'are'} still there, such as {old[0]}."
            )


def _record(
    config: RunConfig,
    inputs: RunInputs,
    outcome: RunOutcome,
    links: dict[str, Path],
    run_id: str,
    started: datetime,
    argv: Sequence[str],
) -> None:
    """Append the run to the provenance of every participant and session."""
    from lacuna_nipype.cli.provenance import participant_records
    from lacuna_nipype.io.derivatives import dataset_lock
    from lacuna_nipype.io.provenance import append_run

    records = participant_records(
        config, inputs, outcome, links,
        run_id=run_id, started=started, command="lacuna-nipype " + shlex.join(argv),
    )  # fmt: skip
    with dataset_lock(config.output_dir):
        for path, record in records.items():
            append_run(config.output_dir / path, record)


def _report(
    config: RunConfig,
    inputs: RunInputs,
    outcome: RunOutcome,
    log_dir: Path,
    reporter: Reporter,
    problems: list[str],
) -> int:
    from lacuna_nipype.cli.atlas_outputs import planned_atlases
    from lacuna_nipype.cli.failures import failure_table
    from lacuna_nipype.cli.plan import planned_outputs

    cached = sum(record.status == "cached" for record in outcome.nodes.values())
    ran = sum(record.status == "done" for record in outcome.nodes.values())
    say(f"{ran} steps ran, {cached} were up to date, {len(outcome.failures)} failed.")
    for line in failure_table(outcome.failures, inputs.inspection.lesions, outcome.error):
        say(line)
    with _noting(problems, log_dir):
        problems += reporter.end(outcome)
    planned = [*planned_atlases(inputs.used_atlases), *planned_outputs(inputs)]
    missing = [path for path in planned if not (config.output_dir / path).is_file()]
    if outcome.error or outcome.failures:
        for problem in problems:
            say(f"Warning: {problem}")
        reason = outcome.error or outcome.failures[0].reason
        what = "The run ended early"
        if outcome.failures:
            what = f"{count(len(outcome.failures), 'step')} failed"
        return end(
            SOME_FAILED,
            f"{what}, outputs missing: {len(missing)}; first reason: {reason} Log: {log_dir}",
        )
    if missing:
        return end(
            SOME_FAILED,
            f"Outputs missing: {len(missing)}, such as {missing[0]}; log: {log_dir}",
        )
    return end_up_to_date(config, inputs, problems)
