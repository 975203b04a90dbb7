"""The participant level: check, build, run, record, report."""

from __future__ import annotations

import fcntl
import logging
import shlex
import sys
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna_nipype import __version__
from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.core.exceptions import DependencyError, LacunaError

if TYPE_CHECKING:
    from lacuna_nipype.cli.inputs import RunInputs
    from lacuna_nipype.cli.recovery import Recovery
    from lacuna_nipype.cli.reports import Reporter
    from lacuna_nipype.execution.runner import RunOutcome
    from lacuna_nipype.io.lesions import Lesion

OK, SOME_FAILED, USAGE, NOT_BUILT, MISSING_PROGRAM = 0, 1, 2, 70, 127
logger = logging.getLogger("lacuna_nipype")
# Without a log file yet, Python would print records of errors on the terminal once more.
logger.addHandler(logging.NullHandler())


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
    """
    from lacuna_nipype.cli.claims import claimed
    from lacuna_nipype.cli.inputs import gather_inputs
    from lacuna_nipype.cli.recovery import begin, plan_recovery
    from lacuna_nipype.cli.reports import Reporter, rebuild_reports
    from lacuna_nipype.cli.submit import run_part, submit_run
    from lacuna_nipype.execution.runner import require_plugin

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
        try:
            require_plugin(config.plugin, config.plugin_args)
            inputs = gather_inputs(config)
            config = replace(config, omp_nthreads=_threads(config, inputs))
            _show_inputs(inputs)
            links = _dataset_links(config, inputs)
            if not config.dry_run:
                held.enter_context(_own_work_folder(config.work_dir))
                _prepare_output(config, inputs, log_dir, links)
            recovery = plan_recovery(config, inputs)
            if recovery.inputs.inspection.lesions and not config.dry_run:
                held.enter_context(claimed(config.output_dir, run_id, recovery.signatures))
                begin(config, recovery)
            reporter = Reporter(config, inputs, run_id, started)
            reporter.begin()
        except DependencyError as error:
            return _end(MISSING_PROGRAM, str(error))
        except LacunaError as error:
            return _end(USAGE, str(error))
        except OSError as error:
            return _end(USAGE, _describe_os_error(error, config.output_dir))
        problems: list[str] = []
        if not inputs.inspection.lesions:
            with _noting(problems, log_dir):
                reporter.end()
            return _end_without_lesions(inputs)
        if recovery.up_to_date:
            done = _count(len(recovery.up_to_date), "lesion")
            _say(f"{done} of an earlier run up to date (--overwrite does them again).")
        if not recovery.inputs.inspection.lesions:
            with _noting(problems, log_dir):
                problems += reporter.end()
            return _end_up_to_date(config, inputs, problems)
        return _build_and_run(config, recovery, links, log_dir, run_id, started, argv, reporter)


@contextmanager
def _own_work_folder(folder: Path) -> Iterator[None]:
    """Keep a work folder for one run: two at once would overwrite each other's steps.

    The lock goes with the process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "run.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LacunaError(
                f"The work folder {folder} is in use by another run; wait for its end, or set "
                "another with -w."
            ) from error
        except OSError:
            logger.info("The file system of %s has no locks.", folder)
        yield


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
    from lacuna_nipype.cli.recovery import end
    from lacuna_nipype.cli.sizes import run_sizes
    from lacuna_nipype.cli.submit import clear_passes
    from lacuna_nipype.execution.estimates import apply_estimates
    from lacuna_nipype.execution.runner import configure_nipype, expanded_nodes, run_graph
    from lacuna_nipype.execution.threads import limited_threads

    if not config.dry_run:
        try:
            configure_nipype(
                log_dir=log_dir,
                stop_on_first_crash=config.stop_on_first_crash,
                verbose=config.verbose,
            )
        except OSError as error:
            return _end(USAGE, _describe_os_error(error, log_dir))
    inputs = recovery.inputs
    try:
        workflow = build_workflow(config, inputs, links)
        apply_estimates(workflow, run_sizes(config, inputs, _pass_memory(config, inputs)))
        nodes = expanded_nodes(workflow)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not the user's data
        logger.error("%s", traceback.format_exc())
        where = f"; the log is in {log_dir}" if log_dir.is_dir() else ""
        return _end(NOT_BUILT, f"The graph could not be built: {error}{where}")
    if config.dry_run:
        return _show_plan(nodes, config, inputs)
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
    if not (outcome.error or outcome.failures):
        clear_passes(config)
    problems: list[str] = []
    with _noting(problems, config.output_dir):
        _record(config, inputs, outcome, links, run_id, started, argv)
        end(config, recovery, outcome)
    return _report(config, inputs, outcome, log_dir, reporter, problems)


@contextmanager
def _noting(problems: list[str], folder: Path) -> Iterator[None]:
    """Note that records cannot be written, as on a full disk: the end of a run is told anyway."""
    try:
        yield
    except OSError as error:
        problems.append(_describe_os_error(error, folder))


def _describe_os_error(error: OSError, folder: Path) -> str:
    """Say which file, or else which folder, and why."""
    # Of a copy, the second is the one that was written.
    return f"{error.filename2 or error.filename or folder}: {error.strerror or error}."


def _threads(config: RunConfig, inputs: RunInputs) -> int:
    """Threads of one step: what is left of the processors when every file has one."""
    if config.omp_nthreads:
        return min(config.omp_nthreads, config.nprocs)
    n_files = len(inputs.functional.files) if inputs.functional else 1
    return max(1, min(8, config.nprocs // n_files))


def _dataset_links(config: RunConfig, inputs: RunInputs) -> dict[str, Path]:
    links = {"raw": config.bids_dir if config.bids_dir.is_dir() else config.bids_dir.parent}
    for lesion in inputs.inspection.lesions:
        links.setdefault(lesion.record.dataset, lesion.record.root)
    return links


def _prepare_output(
    config: RunConfig, inputs: RunInputs, log_dir: Path, links: dict[str, Path]
) -> None:
    from lacuna_nipype.cli.atlas_outputs import write_atlases
    from lacuna_nipype.core.files import write_json
    from lacuna_nipype.io.derivatives import (
        dataset_lock,
        earlier_outputs,
        prepare_dataset,
        refuse_foreign_dataset,
        remove_leftovers,
    )

    # Before the lock, which is a file in the folder.
    refuse_foreign_dataset(config.output_dir)
    with dataset_lock(config.output_dir):
        remarks = prepare_dataset(config.output_dir, links)
        if inputs.inspection.lesions:
            remarks += write_atlases(config.output_dir, inputs.used_atlases, links)
    log_dir.mkdir(parents=True)
    write_json(log_dir / "config.json", config.to_dict())
    subjects = {lesion.record.subject for lesion in inputs.inspection.lesions}
    remove_leftovers(config.output_dir, subjects, older_than_s=24 * 3600)
    for remark in remarks:
        _say(f"Note: {remark}")
    for key in inputs.inspection.refused:
        old = earlier_outputs(config.output_dir, key)
        if old:
            _say(
                f"Warning: {_count(len(old), 'result')} of an earlier run of {key}, which is "
                f"refused now, {'is' if len(old) == 1 else 'are'} still there, such as {old[0]}."
            )


def build_workflow(config: RunConfig, inputs: RunInputs, links: dict[str, Path]) -> Any:
    """Build the graph of a run.

    Parameters
    ----------
    config : RunConfig
    inputs : RunInputs
    links : dict of str to Path
        Datasets that source addresses refer to.

    Returns
    -------
    nipype Workflow
    """
    from lacuna_nipype.atlases.catalogue import atlas_description
    from lacuna_nipype.cli.submit import passes_folder
    from lacuna_nipype.workflows import init_lacuna_wf

    functional, passes = inputs.functional, passes_folder(config)
    return init_lacuna_wf(
        lesions=[
            _lesion_arguments(lesion, links, config, inputs)
            for lesion in inputs.inspection.lesions
        ],
        output_dir=config.output_dir,
        base_dir=config.work_dir,
        analyses=inputs.analyses,
        atlases=[
            {
                "image": atlas.image,
                "labels": atlas.labels,
                "entities": atlas.entities,
                "name": atlas.id,
                "description": atlas_description(atlas),
                "transforms": inputs.atlas_routes(atlas),
            }
            for atlas in inputs.atlases
        ],
        functional_files=functional.paths if functional else (),
        functional_fingerprints=inputs.functional_content,
        functional_space=functional.space if functional else None,
        functional_resolution=functional.grid.resolution_label if functional else None,
        fnm_maps=inputs.fnm_maps,
        fnm_options={
            "method": config.fnm_method,
            "pini_percentile": config.pini_percentile,
            "p_maps": config.p_map,
            "fdr_alpha": config.fdr_alpha,
            "t_threshold": config.t_threshold,
            "verify_voxels": config.verify if inputs.verify_files else 0,
            "verify_files": inputs.verify_files,
            "stored_error": functional.error_r if functional else 0.0,
            "partial_dir": passes if passes.is_dir() else None,
        },
        matrix_file=inputs.matrix.path if inputs.matrix else None,
        matrix_atlas=inputs.matrix.atlas if inputs.matrix else 0,
        afnm_weighting=config.afnm_weighting,
        **_structural_arguments(config, inputs),
        metadata=inputs.metadata,
        memory_gb=_pass_memory(config, inputs),
        omp_nthreads=config.omp_nthreads,
    )


def _structural_arguments(config: RunConfig, inputs: RunInputs) -> dict[str, Any]:
    """Arguments of the graph for structural disconnection."""
    plan = inputs.structural
    if plan is None:
        return {}
    tractogram = plan.tractogram
    return {
        "tractogram": {
            "tractogram": tractogram.path,
            "space": tractogram.space,
            "fingerprint": tractogram.content,
            "convert": tractogram.convert,
            "index_file": tractogram.index_file,
            "streamline_groups": config.streamline_groups,
        },
        "snm_resolution": tractogram.resolution,
        "snm_options": {
            "engine": plan.engine,
            "upsample": tractogram.upsample,
            "hit_test": config.hit_test,
            "streamline_weights": config.streamline_weights,
        },
        "snm_outputs": plan.outputs,
    }


def _pass_memory(config: RunConfig, inputs: RunInputs) -> float:
    """Memory for the pass over one file: its need, or its share of the budget if less."""
    from lacuna_nipype.connectomes.partial import pass_memory_gb

    if inputs.functional is None:
        return 1.0
    threads = config.omp_nthreads
    largest = max(inputs.functional.files, key=lambda file: pass_memory_gb(file, 1, threads))
    at_once = min(config.nprocs // config.omp_nthreads, len(inputs.functional.files))
    # Jobs of a cluster have their own memory, each.
    share = config.memory_gb / max(1, at_once if config.plugin == "MultiProc" else 1)
    need = pass_memory_gb(largest, len(inputs.inspection.lesions), threads)
    return round(max(min(need, share), pass_memory_gb(largest, 1, threads)), 3)


def _lesion_arguments(
    lesion: Lesion, links: dict[str, Path], config: RunConfig, inputs: RunInputs
) -> dict[str, Any]:
    from lacuna_nipype.io.derivatives import bids_uri

    returns = {
        analysis: way
        for analysis in ("fnm", "snm")
        if (way := inputs.spaces.way_back(analysis, lesion.space)) is not None
    }
    if "fnm" in returns and inputs.functional is not None:
        returns["fnm"] |= {
            "n_subjects": inputs.functional.n_subjects,
            "p_maps": config.p_map,
            "fdr_alpha": config.fdr_alpha,
            "t_threshold": config.t_threshold,
        }
    return {
        "key": lesion.record.key,
        "mask_file": lesion.record.path,
        "entities": lesion.entities,
        "resolution": lesion.resolution,
        "normalisation": lesion.normalisation,
        "warps": inputs.spaces.warps(lesion.space, lesion.normalisation),
        "returns": returns,
        "metadata": {
            "Sources": [bids_uri(lesion.record.path, links)],
            "SpaceName": lesion.space,
            "LesionVoxels": lesion.n_voxels,
            "LesionVolumeML": lesion.volume_ml,
            "Software": {"Name": "lacuna-nipype", "Version": __version__},
        },
    }


def _show_inputs(inputs: RunInputs) -> None:
    lesions = inputs.inspection.lesions
    participants = {lesion.record.subject for lesion in lesions}
    _say(
        f"{_count(len(lesions), 'lesion')} of {_count(len(participants), 'participant')}: "
        f"{', '.join(inputs.analyses)}."
    )
    if inputs.functional:
        _say(
            f"Functional connectome: {inputs.functional.n_subjects} subjects in "
            f"{len(inputs.functional.files)} files, {inputs.functional.n_voxels} voxels, "
            f"{inputs.functional.space}."
        )
    for notice in inputs.notices:
        _say(f"Note: {notice}")
    for lesion in lesions:
        for warning in lesion.warnings:
            _say(f"Warning: {warning}")
    for reason in inputs.inspection.skipped.values():
        _say(f"Skipped: {reason}")
    for reason in inputs.inspection.refused.values():
        _say(f"Error: {reason}")


def _end_without_lesions(inputs: RunInputs) -> int:
    if inputs.inspection.refused:
        first = next(iter(inputs.inspection.refused.values()))
        n_masks = len(inputs.inspection.refused)
        return _end(
            SOME_FAILED, f"None of the masks can be used ({n_masks} refused). The first: {first}"
        )
    return _end(OK, "All masks are empty and were skipped; there is nothing to do.")


def _show_plan(nodes: list[Any], config: RunConfig, inputs: RunInputs) -> int:
    """List the steps of the expanded graph and the files it would write."""
    _say("Steps:")
    for node in nodes:
        pieces = _known_pieces(node)
        times = f" x {pieces}" if pieces else ""
        _say(f"  {node.fullname.split('.', 1)[1]}{times}")
    _say("Outputs:")
    from lacuna_nipype.cli.atlas_outputs import planned_atlases
    from lacuna_nipype.cli.plan import planned_outputs

    outputs = [*planned_atlases(inputs.used_atlases), *planned_outputs(inputs)]
    for path in outputs:
        _say(f"  {config.output_dir / path}")
    return _end(OK, f"Dry run: {len(nodes)} steps, {len(outputs)} files; nothing was run.")


def _known_pieces(node: Any) -> int:
    """Count the pieces of a MapNode whose list is known before the run; 0 for any other node."""
    listed = getattr(node.inputs, node.iterfield[0]) if hasattr(node, "iterfield") else None
    return len(listed) if isinstance(listed, list) else 0


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
    _say(f"{ran} steps ran, {cached} were up to date, {len(outcome.failures)} failed.")
    for line in failure_table(outcome.failures, inputs.inspection.lesions, outcome.error):
        _say(line)
    with _noting(problems, log_dir):
        problems += reporter.end(outcome)
    planned = [*planned_atlases(inputs.used_atlases), *planned_outputs(inputs)]
    missing = [path for path in planned if not (config.output_dir / path).is_file()]
    if outcome.error or outcome.failures:
        for problem in problems:
            _say(f"Warning: {problem}")
        reason = outcome.error or outcome.failures[0].reason
        what = "The run ended early"
        if outcome.failures:
            what = f"{_count(len(outcome.failures), 'step')} failed"
        return _end(
            SOME_FAILED,
            f"{what}, outputs missing: {len(missing)}; first reason: {reason} Log: {log_dir}",
        )
    if missing:
        return _end(
            SOME_FAILED,
            f"Outputs missing: {len(missing)}, such as {missing[0]}; log: {log_dir}",
        )
    return _end_up_to_date(config, inputs, problems)


def _end_up_to_date(config: RunConfig, inputs: RunInputs, problems: Sequence[str]) -> int:
    """End a run all of whose results are there, but for masks that were refused."""
    if problems:
        return _end(
            SOME_FAILED,
            f"All results are there, but records or reports are incomplete ({len(problems)}); "
            f"the first: {problems[0]}",
        )
    refused = inputs.inspection.refused
    if refused:
        keys = ", ".join(list(refused)[:5]) + (", ..." if len(refused) > 5 else "")
        return _end(
            SOME_FAILED,
            f"{_count(len(refused), 'mask')} refused ({keys}; reasons above), all others are "
            f"done: {config.output_dir}",
        )
    return _end(OK, f"Results: {config.output_dir}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    logger.info("%s", text)


def _end(code: int, reason: str) -> int:
    """Print the reason as the last line, on the stream that fits the exit code."""
    stream = sys.stdout if code == OK else sys.stderr
    sys.stdout.flush()
    stream.write(f"{reason}\n" if code == OK else f"lacuna-nipype: {reason}\n")
    stream.flush()
    logger.log(logging.INFO if code == OK else logging.ERROR, "%s", reason)
    return code
