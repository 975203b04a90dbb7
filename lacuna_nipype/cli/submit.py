"""``--submit slurm-array``: a run as an array of jobs and one after it."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna_nipype.cli.config import RunConfig

if TYPE_CHECKING:
    from lacuna_nipype.cli.inputs import RunInputs
    from lacuna_nipype.cli.recovery import Recovery
    from lacuna_nipype.execution.estimates import Sizes
    from lacuna_nipype.execution.slurm_array import Job
    from lacuna_nipype.execution.slurm_options import JobArguments

WAYS = ("slurm-array",)
# Where the flags do not say: processors of the last job, and of a task.
PROCESSORS, TASK_PROCESSORS = 8, 4
# A run checks its inputs before, and draws its pages after, all steps.
LEAST_GB, LEAST_LAST_GB = 0.5, 1.5
# Options that the jobs have of their own, or that are for the one who submits.
_NOT_FOR_JOBS = ("submit", "array_size", "submit_part", "plugin", "plugin_args", "use_plugin",
                 "work_dir")  # fmt: skip
# What a part of the pass needs of the other steps.
_BEFORE_PASS = ("ValidateMask", "ApplyTransform", "TemplateGrid", "ConnectomeMask", "ResampleMask",
                "SelectSeeds")  # fmt: skip


def read_part(text: str) -> tuple[str, int, int]:
    """Read which part of a pass is meant.

    Parameters
    ----------
    text : str
        Such as ``correlate:0/12``: the first of twelve.

    Returns
    -------
    stage : {"relate", "correlate"}
    number, total : int

    Raises
    ------
    argparse.ArgumentTypeError
        There is no such part.
    """
    found = re.fullmatch(r"(relate|correlate):(\d+)/(\d+)", text)
    if found is None or int(found[2]) >= int(found[3]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part, such as correlate:0/12")
    return found[1], int(found[2]), int(found[3])


def part_name(text: str) -> str:
    """Accept the name of a part."""
    read_part(text)
    return text


def passes_folder(config: RunConfig) -> Path:
    """Folder in which the parts of a pass are kept for the run that needs them all."""
    return config.work_dir / "passes"


def clear_passes(config: RunConfig) -> None:
    """Remove what was kept and the steps of this work folder have taken."""
    from lacuna_nipype.connectomes.partial import TAKEN
    from lacuna_nipype.workflows.base import workflow_name

    folder = passes_folder(config)
    notes = (config.work_dir / workflow_name() / "fnm_wf").rglob(TAKEN)
    for note in notes if folder.is_dir() else ():
        path = Path(note.read_text(encoding="utf-8").rstrip("\n"))
        if path.parent == folder:
            path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


# --- to submit --------------------------------------------------------------------------------


def submit_run(config: RunConfig, run_id: str) -> int:
    """Write the scripts of a run and submit them.

    Parameters
    ----------
    config : RunConfig
        With ``dry_run``, the scripts are only printed.
    run_id : str

    Returns
    -------
    int
        Exit code; the reason is the last line printed.
    """
    from lacuna_nipype.cli.ending import OK, end
    from lacuna_nipype.cli.inputs import gather_inputs
    from lacuna_nipype.cli.recovery import plan_recovery
    from lacuna_nipype.cli.summary import end_up_to_date, end_without_lesions, show_inputs
    from lacuna_nipype.cli.terminal import say
    from lacuna_nipype.execution.runner import require_plugin

    if not config.dry_run:
        require_plugin("SLURM", config.plugin_args)
    inputs = gather_inputs(config)
    show_inputs(inputs)
    recovery = plan_recovery(config, inputs)
    if not inputs.inspection.lesions:
        return end_without_lesions(inputs)
    if not recovery.inputs.inspection.lesions:
        say("Nothing is left to do: no job is submitted.")
        return end_up_to_date(config, inputs, [])
    plan = _plan(config, recovery, run_id)
    for line in plan.describe():
        say(line)
    if config.dry_run:
        for name, text in plan.scripts.items():
            say(f"\n{plan.folder / name}:\n{text}")
        return end(OK, "Dry run: nothing was written or submitted.")
    return _submit(config, plan)


@dataclass(frozen=True)
class _Plan:
    """Jobs of a run and their scripts."""

    arrays: tuple[Job, ...]
    last: Job
    scripts: dict[str, str]
    run: str
    folder: Path
    asked: JobArguments
    n_files: int

    def describe(self) -> list[str]:
        from lacuna_nipype.execution.slurm_options import option_names, script_options

        lines = []
        for job in self.arrays:
            done = "chooses voxels in" if job.name == "relate" else "goes through"
            lines.append(
                f"{job.name}: {job.describe()}; {done} {self.n_files} files of the connectome."
            )
        lines.append(f"merge: {self.last.describe()}; everything else.")
        given = option_names(self.asked.sbatch_args) | script_options(self.asked.template)
        theirs = [f"--{name}" for name in ("cpus-per-task", "mem", "time") if name in given]
        if theirs:
            lines.append(
                f"SLURM is asked for your {' and '.join(theirs)} instead; the commands in the "
                "jobs use no more than what is said here."
            )
        return lines


def _plan(config: RunConfig, recovery: Recovery, run_id: str) -> _Plan:
    from lacuna_nipype.execution.slurm_array import job_script, submit_script
    from lacuna_nipype.execution.slurm_options import read_job_arguments

    inputs = recovery.inputs
    folder = config.output_dir / "logs" / run_id / "submit"
    asked = read_job_arguments(config.plugin_args)
    arrays, last = _jobs(config, inputs, asked.python)
    layout: dict[str, Any] = {
        "run": run_id, "folder": folder, "start": Path.cwd(),
        "template": asked.template, "sbatch_args": asked.sbatch_args,
    }  # fmt: skip
    scripts = {f"{job.name}.sh": job_script(job, **layout) for job in (*arrays, last)}
    scripts["submit.sh"] = submit_script(
        arrays, last, folder=folder, sbatch_args=asked.sbatch_args
    )
    n_files = len(inputs.functional.files) if inputs.functional else 0
    return _Plan(tuple(arrays), last, scripts, run_id, folder, asked, n_files)


def _jobs(config: RunConfig, inputs: RunInputs, python: Sequence[str]) -> tuple[list[Job], Job]:
    """Arrays for the pass, and the job for everything else."""
    from lacuna_nipype.cli.graph import build_workflow, dataset_links, pass_memory
    from lacuna_nipype.cli.sizes import run_sizes
    from lacuna_nipype.execution.estimates import apply_estimates, iter_nodes
    from lacuna_nipype.execution.slurm_array import Job

    threads = config.omp_nthreads or min(TASK_PROCESSORS, config.nprocs)
    budget = config.memory_gb or math.inf
    # In a job, a pass may have all the memory.
    alone = replace(config, omp_nthreads=threads, nprocs=threads, memory_gb=budget)
    sizes = run_sizes(alone, inputs, pass_memory(alone, inputs))
    workflow = build_workflow(alone, inputs, dataset_links(alone, inputs))
    apply_estimates(workflow, sizes)
    steps = [node for node in iter_nodes(workflow) if "minutes" in (node.plugin_args or {})]
    passes = [node for node in steps if node.name in ("relate", "correlate")]
    others = [node for node in steps if node not in passes]
    before = [node for node in others if type(node.interface).__name__ in _BEFORE_PASS]

    def job(
        name: str, n_procs: int, gb: float, largest: Any, work: float, tasks: int | None = None
    ) -> Job:
        # They are told what they have: they may see more on their machine. A step that needs more
        # than the budget takes it all the same.
        gb = max(LEAST_GB, min(math.ceil(gb * 1000) / 1000, budget), largest.mem_gb)
        resources = ["--nprocs", str(n_procs), "--omp-nthreads", str(threads), "--mem", f"{gb}G"]
        command = (*python, "-m", "lacuna_nipype", *_words(config), *resources)
        return Job(name, command, n_procs, gb, work, tasks)

    arrays = []
    n_files = len(inputs.functional.files) if passes and inputs.functional else 0
    tasks = min(config.array_size or n_files, n_files)
    for node in sorted(passes, key=lambda node: node.name != "relate"):
        gb = max(node.mem_gb, _together(before, threads))
        work = _work(before, sizes) / threads + math.ceil(n_files / tasks) * _work([node], sizes)
        arrays.append(job(node.name, threads, gb, node, work, tasks))
    largest = max(steps, key=lambda node: node.mem_gb)
    gb = max(_together(others, config.nprocs), LEAST_LAST_GB, largest.mem_gb)
    work = _work(others, sizes) / config.nprocs + max(_work([node], sizes) for node in others)
    return arrays, job("merge", config.nprocs, gb, largest, work)


def _words(config: RunConfig) -> list[str]:
    """Words of the command without those on how it is run."""
    from lacuna_nipype.cli.record import command_words

    options = {k: v for k, v in config.to_dict().items() if k not in _NOT_FOR_JOBS}
    places = [str(config.bids_dir), str(config.output_dir), config.analysis_level]
    return [
        *places,
        *command_words(options),
        *(["--no-reports"] if not config.reports else []),
        *(["--stop-on-first-crash"] if config.stop_on_first_crash else []),
        *["-v"] * config.verbose,
        *("-w", str(config.work_dir)),
    ]


def _work(nodes: Sequence[Any], sizes: Sizes) -> float:
    """Minutes that steps take one after the other; pieces are lesions, but for those of files."""
    from lacuna_nipype.execution.estimates import estimate_resources

    return sum(
        estimate_resources(type(node.interface).__name__, sizes).minutes
        * (sizes.lesions if node.name == "seeds" else 1)
        for node in nodes
    )


def _together(nodes: Sequence[Any], count: int) -> float:
    """Memory of the largest steps, as many as may run at once."""
    return sum(sorted((node.mem_gb for node in nodes), reverse=True)[:count])


def _submit(config: RunConfig, plan: _Plan) -> int:
    from lacuna_nipype.cli.ending import OK, SOME_FAILED, end
    from lacuna_nipype.cli.terminal import say
    from lacuna_nipype.io.derivatives import refuse_foreign_dataset

    refuse_foreign_dataset(config.output_dir)
    passes_folder(config).mkdir(parents=True, exist_ok=True)
    plan.folder.mkdir(parents=True)
    for name, text in plan.scripts.items():
        (plan.folder / name).write_text(text, encoding="utf-8")
    problem = _submit_or_take_back(config, plan)
    if problem is not None:
        return end(SOME_FAILED, problem)
    if plan.arrays:
        say(
            "When a task fails, the jobs after it are cancelled. Then submit again what is "
            f"missing: sh {shlex.quote(str(plan.folder / 'submit.sh'))} (with --array=3,7 for "
            "these tasks only; tasks that have their part end at once)."
        )
    return end(OK, f"Submitted; scripts and log files: {plan.folder}")


def _submit_or_take_back(config: RunConfig, plan: _Plan) -> str | None:
    """Submit all jobs or, after an error or a signal, leave none; what went wrong."""
    from lacuna_nipype.cli.terminal import say
    from lacuna_nipype.execution.signals import ended_by_signals
    from lacuna_nipype.execution.slurm_commands import SlurmError

    submitted: list[int] = []
    with ended_by_signals():
        try:
            _submit_jobs(config, plan, submitted)
        except SlurmError as error:
            jobs = (*plan.arrays, plan.last)
            script = plan.folder / f"{jobs[len(submitted)].name}.sh"
            hint = " Lower --array-size." if "array specification" in str(error) else ""
            return f"{script}: {error}{hint} {_take_back(plan, submitted)}"
        except (KeyboardInterrupt, SystemExit):
            say(_take_back(plan, submitted))
            raise
    return None


def _submit_jobs(config: RunConfig, plan: _Plan, submitted: list[int]) -> None:
    """Submit the jobs, each after those before it, and note their numbers."""
    from lacuna_nipype.cli.terminal import say
    from lacuna_nipype.execution.slurm_array import after_options, job_name
    from lacuna_nipype.execution.slurm_commands import (
        RETRY_SECONDS,
        SILENCE_SECONDS,
        Patience,
        submit_patiently,
    )

    arguments = config.plugin_args
    for job in (*plan.arrays, plan.last):
        number = submit_patiently(
            plan.folder / f"{job.name}.sh",
            [*plan.asked.sbatch_args, *(after_options(submitted[-1]) if submitted else ())],
            name=job_name(job, plan.run),
            patience=Patience(
                float(arguments.get("retry_timeout", RETRY_SECONDS)),
                float(arguments.get("squeue_timeout", SILENCE_SECONDS)),
            ),
            tell=say,
        )
        submitted.append(number)
        say(f"Job {number}: {job.name}")


def _take_back(plan: _Plan, submitted: Sequence[int]) -> str:
    """Cancel what was submitted; say what is left."""
    from lacuna_nipype.execution.signals import undisturbed
    from lacuna_nipype.execution.slurm_array import job_name
    from lacuna_nipype.execution.slurm_commands import SlurmError, cancel_jobs, jobs_named

    try:
        with undisturbed():
            cancel_jobs(submitted)
            # One may be there although sbatch reported a failure.
            cancel_jobs(jobs_named(plan.run).keys() - set(submitted))
    except SlurmError as error:
        names = ",".join(job_name(job, plan.run) for job in (*plan.arrays, plan.last))
        return f"Jobs may be left ({error}); see squeue --name={names}, and end them with scancel."
    return "No job is left."


# --- a task of the array ----------------------------------------------------------------------


def run_part(config: RunConfig, part: str) -> int:
    """Go through a part of the connectome's files and keep the results.

    Parameters
    ----------
    config : RunConfig
        Of the whole run.
    part : str
        See :func:`read_part`.

    Returns
    -------
    int
        Exit code; the reason is the last line printed.
    """
    from lacuna_nipype.cli.claims import own_work_folder
    from lacuna_nipype.cli.ending import OK, end
    from lacuna_nipype.cli.inputs import gather_inputs
    from lacuna_nipype.cli.recovery import plan_recovery

    stage, number, total = read_part(part)
    folder = config.work_dir / "parts" / f"{stage}-{number + 1}-of-{total}"
    inputs = gather_inputs(config)
    config = replace(config, omp_nthreads=min(config.omp_nthreads or 1, config.nprocs))
    inputs = plan_recovery(config, inputs).inputs
    if inputs.functional is None or not inputs.inspection.lesions:
        return end(OK, "Nothing is left to do.")
    with own_work_folder(folder):
        code = _run_part(config, inputs, part, folder)
    if code == OK:
        shutil.rmtree(folder, ignore_errors=True)
    return code


def _run_part(config: RunConfig, inputs: RunInputs, part: str, folder: Path) -> int:
    from lacuna_nipype.cli.ending import OK, SOME_FAILED, end
    from lacuna_nipype.cli.graph import dataset_links, lesion_arguments, pass_memory
    from lacuna_nipype.cli.sizes import run_sizes
    from lacuna_nipype.execution.estimates import apply_estimates
    from lacuna_nipype.execution.runner import configure_nipype, expanded_nodes, run_graph
    from lacuna_nipype.execution.threads import limited_threads
    from lacuna_nipype.workflows.passes import init_pass_wf

    stage, number, total = read_part(part)
    log_dir = folder / "log"
    log_dir.mkdir(exist_ok=True)
    for old in log_dir.glob("crash-*"):
        old.unlink()
    configure_nipype(log_dir=log_dir, stop_on_first_crash=False, verbose=config.verbose)
    links = dataset_links(config, inputs)
    memory_gb = pass_memory(config, inputs)
    workflow = init_pass_wf(
        lesions=[
            lesion_arguments(lesion, links, config, inputs) for lesion in inputs.inspection.lesions
        ],
        connectome_files=inputs.functional.paths,
        part=range(number, len(inputs.functional.paths), total),
        fingerprints=inputs.functional_content,
        partial_dir=passes_folder(config),
        base_dir=folder,
        functional_space=inputs.functional.space,
        stage=stage,
        method=config.fnm_method,
        pini_percentile=config.pini_percentile,
        memory_gb=memory_gb,
        omp_nthreads=config.omp_nthreads,
    )
    apply_estimates(workflow, run_sizes(config, inputs, memory_gb))
    passes_folder(config).mkdir(parents=True, exist_ok=True)
    with limited_threads(config.omp_nthreads):
        outcome = run_graph(
            workflow,
            n_nodes=len(expanded_nodes(workflow)),
            plugin="MultiProc",
            nprocs=config.nprocs,
            memory_gb=config.memory_gb,
            crash_dir=log_dir,
        )
    if outcome.error or outcome.failures:
        reason = outcome.error or outcome.failures[0].reason
        return end(SOME_FAILED, f"Part {part} failed: {reason} Log: {log_dir}")
    return end(OK, f"Part {part} is done.")
