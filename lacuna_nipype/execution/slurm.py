"""Steps as jobs of a SLURM cluster."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nipype.utils.misc import str2bool

from lacuna_nipype.execution.job import OUTCOME_SUFFIX, TASK_SUFFIX, write_task
from lacuna_nipype.execution.scheduling import Ending, SchedulingPlugin, Step
from lacuna_nipype.execution.slurm_commands import (
    JOBS_FOLDER,
    RETRY_SECONDS,
    SILENCE_SECONDS,
    JobState,
    Patience,
    SlurmError,
    cancel_jobs,
    exit_code,
    job_states,
    jobs_named,
    submit_job,
)
from lacuna_nipype.execution.slurm_options import (
    log_pattern,
    option_names,
    option_words,
    read_job_arguments,
    script_options,
)
from lacuna_nipype.execution.telling import going_on, is_open

logger = logging.getLogger("nipype.workflow")
# For the log only: what is told on the terminal, see cli.terminal.
told = logging.getLogger("lacuna_nipype.terminal")

# What Python and the imports of a step take, which steps do not declare.
_OVERHEAD_GB = 0.5
# How often the folder of outcomes is looked at: a share of the time since the last news.
_LOOK_SHARE, _SHORTEST_LOOK, _LONGEST_LOOK = 0.05, 0.1, 2.0
# A job that was ended from outside writes nothing any more, but may have done so just before.
_GRACE_SECONDS = 5.0
_CANCEL_ATTEMPTS = 5
# A job that waits for longer than this, and not for its turn, is worth a remark.
_STUCK_SECONDS = 60.0
_MOST_LISTED = 5
_LOG_TAIL_BYTES = 8192


class JobEndedError(RuntimeError):
    """The job of a step has ended without an outcome."""


@dataclass
class _Job:
    """A job that was submitted.

    ``gone`` is when it was first found to have ended, ``stuck`` when it was first found to wait
    for more than its turn, ``reasons`` are those that the user was told.
    """

    id: int
    stem: Path
    gone: float | None = None
    stuck: float | None = None
    reasons: set[str] = field(default_factory=set)


class GuardedSLURMPlugin(SchedulingPlugin):
    """Runs every step as a job of its own.

    In place of nipype's ``SLURM``. A job writes how it went into a file of its own, which is what
    ends a step: no result of an earlier run can be taken for that of this one. SLURM is asked
    for all jobs at once and seldom, and only to notice those that will write nothing.

    Parameters
    ----------
    plugin_args : dict, optional
        ``template``: text or file that job scripts begin with, such as ``module load`` lines and
        ``#SBATCH`` options. ``sbatch_args``: more options of sbatch; they come last and so win.
        ``python``: command in place of this interpreter. ``max_jobs``: how many jobs may be
        queued or running at once (default: 500). ``retry_timeout`` (2 s, doubled each time up
        to a minute): pause after sbatch that fails. ``squeue_interval`` (5 s): how often SLURM
        is asked. ``squeue_timeout`` (1800 s): how long it may give no answer, or take no job, and
        how long the work folder may not be readable.
        ``status_callback`` as in :class:`SchedulingPlugin`.

    Notes
    -----
    What a step declares becomes ``--cpus-per-task`` and ``--mem``, unless the template or the
    options say otherwise. A step's own ``plugin_args`` may hold ``sbatch_args``, ``overwrite``
    (its options replace the general ones) and ``minutes``, which becomes ``--time``.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args)
        arguments = self.plugin_args
        self._asked = read_job_arguments(arguments)
        self._max_jobs = max(1, int(arguments.get("max_jobs", 500)))
        self._retry_seconds = float(arguments.get("retry_timeout", RETRY_SECONDS))
        self._squeue_interval = float(arguments.get("squeue_interval", 5))
        self._squeue_timeout = float(arguments.get("squeue_timeout", SILENCE_SECONDS))

    # --- begin and end of a run ---------------------------------------------------------------

    def _begin(self, graph: Any, config: Any, updatehash: bool) -> None:
        super()._begin(graph, config, updatehash)
        self._jobs: dict[int, _Job] = {}
        self._doubtful: set[int] = set()
        # Jobs that nobody waits for any more and that may still be there; jobs without a number.
        self._loose: set[int] = set()
        self._may_be_more = False
        self._patience = Patience(self._retry_seconds, self._squeue_timeout)
        self._not_before = 0.0
        self._silent_since: float | None = None
        # Since when the outcomes of steps cannot be read.
        self._unread: dict[int, float] = {}
        self._last_news = self._last_squeue = time.monotonic()
        self._late_seconds = float(config["execution"]["job_finished_timeout"])
        self._token = uuid.uuid4().hex[:12]

    def _open(self) -> None:
        node = self._steps[0].node
        top = str(getattr(node, "_hierarchy", None) or "").partition(".")[0]
        folder = Path(node.base_dir or Path.cwd(), top, JOBS_FOLDER).absolute()
        if folder.is_dir():
            _clear_earlier_runs(folder, self._late_seconds)
        self._folder = folder / self._token
        self._folder.mkdir(parents=True)

    def _close(self) -> None:
        """Leave only what tells of failures."""
        if self._loose or self._may_be_more:
            self._cancel_all(self._loose)
        # All steps have ended; that the folder cannot be removed now changes nothing.
        with suppress(OSError):
            if not any(self._folder.iterdir()):
                self._folder.rmdir()

    def _abandon(self) -> None:
        jobs = {job.id for job in self._jobs.values()}
        self._jobs.clear()
        self._cancel_all(jobs | self._loose)

    def _cancel_all(self, jobs: set[int]) -> None:
        """Cancel jobs and whatever else is there of this run."""
        for attempt in range(_CANCEL_ATTEMPTS):
            try:
                cancel_jobs(jobs)
                # By name too: sbatch may have been interrupted after the job was made.
                cancel_jobs(jobs_named(self._token).keys() - jobs)
                return
            except SlurmError as error:
                reason = error
                if attempt < _CANCEL_ATTEMPTS - 1:
                    time.sleep(self._retry_seconds)
        logger.error(
            "Jobs of this run may still be there (%s); end them with scancel: %s",
            reason,
            _listed(jobs) or f"those whose names hold {self._token}",
        )

    # --- start of a step ----------------------------------------------------------------------

    def _is_full(self) -> bool:
        return len(self._running) >= self._max_jobs or time.monotonic() < self._not_before

    def _has_room(self, step: Step) -> bool:
        # A step that runs here needs no job, but SLURM may have asked for patience.
        return not self._is_full()

    def _expects_news(self) -> bool:
        # What SLURM did not take now, it may take later.
        return bool(self._ready)

    def _submit(self, number: int, step: Step) -> bool:
        stem = self._folder / f"{number:05d}-{step.node.name}"[:100]
        name = _job_name(step.node, f"{self._token}-{number}")
        try:
            job = self._find_lost(number, name)
            if job is None:
                job = self._submit_new(step.node, stem, name)
        except SlurmError as error:
            return self._put_off(number, error)
        self._patience.reset()
        self._jobs[number] = _Job(job, stem)
        self._last_news = time.monotonic()
        logger.info("%s was submitted as job %d.", step.node, job)
        return True

    def _submit_new(self, node: Any, stem: Path, name: str) -> int:
        """Write what a job needs and submit it."""
        script = _with_suffix(stem, ".sh")
        write_task(
            _with_suffix(stem, TASK_SUFFIX),
            node,
            self._nipype_settings(),
            updatehash=self._updatehash,
        )
        script.write_text(self._script(stem), encoding="utf-8")
        if not self._updatehash and str2bool(node.config["execution"]["local_hash_check"]):
            # It is out of date; nobody is to take it for that of this job.
            _result_file(node).unlink(missing_ok=True)
        return submit_job(script, self._options(node, stem, name))

    def _find_lost(self, number: int, name: str) -> int | None:
        """Find the job of an sbatch that failed: a time-out may come after the job was made."""
        if number not in self._doubtful:
            return None
        found = jobs_named(name)
        self._doubtful.discard(number)
        return next((job for job, full in found.items() if full == name), None)

    def _put_off(self, number: int, error: SlurmError) -> bool:
        """Have patience with SLURM, or give the step up."""
        if error.too_many and self._running:
            # There is room when they end, however long that takes.
            self._patience.reset()
            self._not_before = time.monotonic() + self._squeue_interval
            return False
        if not error.hopeless:
            self._doubtful.add(number)
        is_first = not self._patience.is_tried
        try:
            pause = self._patience.pause_after(error)
        except SlurmError:
            self._may_be_more |= number in self._doubtful
            raise
        self._warn(f"{error} Trying again in {pause:.3g} s.", aloud=is_first)
        self._not_before = time.monotonic() + pause
        return False

    def _nipype_settings(self) -> dict[str, dict[str, Any]]:
        sections = ("execution", "logging", "check")
        return {name: dict(self._config[name]) for name in sections if name in self._config}

    def _script(self, stem: Path) -> str:
        task = str(_with_suffix(stem, TASK_SUFFIX))
        command = [*self._asked.python, "-m", "lacuna_nipype.execution.job", task]
        return f"{self._asked.template}\nexec {shlex.join(command)}\n"

    def _options(self, node: Any, stem: Path, name: str) -> list[str]:
        """Options of sbatch for a step; the user's come last, and the last wins."""
        asked = node.plugin_args if isinstance(node.plugin_args, dict) else {}
        own = option_words(asked.get("sbatch_args"))
        theirs = own if asked.get("overwrite") else [*self._asked.sbatch_args, *own]
        given = option_names(theirs) | script_options(self._asked.template)
        megabytes = math.ceil((node.mem_gb + _OVERHEAD_GB) * 1e9 / 2**20)
        options = {
            "output": log_pattern(_with_suffix(stem, ".log")),
            "cpus-per-task": str(node.n_procs),
            "mem": f"{megabytes}M",
        }
        if "minutes" in asked:
            options["time"] = str(math.ceil(asked["minutes"]))
        ours = [f"--{key}={value}" for key, value in options.items() if key not in given]
        # The name is how a lost job is found again.
        return [*ours, *theirs, f"--job-name={name}"]

    # --- end of a step ------------------------------------------------------------------------

    def _wait(self) -> list[Ending]:
        now = time.monotonic()
        look = _LOOK_SHARE * (now - self._last_news)
        time.sleep(min(max(look, _SHORTEST_LOOK), _LONGEST_LOOK))
        ended = self._with_outcome()
        if not ended and time.monotonic() - self._last_squeue >= self._squeue_interval:
            ended = self._without_outcome()
            self._last_squeue = time.monotonic()
        for ending in ended:
            del self._jobs[ending.number]
            self._last_news = time.monotonic()
        return ended

    def _with_outcome(self) -> list[Ending]:
        """List the steps whose jobs have written how it went."""
        try:
            # Reading the folder, other than asking for a file, makes a network file system look.
            names = {entry.name for entry in os.scandir(self._folder)}
        except OSError as error:
            return self._cannot_read(self._jobs, error)
        ended, unread = [], {}
        for number, job in self._jobs.items():
            outcome = _with_suffix(job.stem, OUTCOME_SUFFIX)
            if outcome.name not in names:
                continue
            try:
                traceback = json.loads(outcome.read_text(encoding="utf-8"))["traceback"]
            except (OSError, ValueError) as error:
                unread[number] = error
                continue
            if traceback is None and not self._result_is_there(number, job):
                continue
            if traceback is None:
                _remove_files(job)
            ended.append(Ending(number, traceback))
        if self._unread and not unread:
            logger.warning("%s can be read again.", self._folder)
        self._unread = {number: self._unread[number] for number in self._unread.keys() & unread}
        for number, error in unread.items():
            ended += self._cannot_read([number], error)
        return ended

    def _cannot_read(self, numbers: Collection[int], error: Exception) -> list[Ending]:
        """Take steps for running as long as their outcomes cannot be read, within reason."""
        now = time.monotonic()
        if not self._unread:
            logger.warning(
                "%s cannot be read: %s. The jobs are taken to be still there.", self._folder, error
            )
        for number in numbers:
            self._unread.setdefault(number, now)
        lost = [n for n in numbers if now - self._unread[n] >= self._squeue_timeout]
        self._cancel_loose({self._jobs[number].id for number in lost})
        reason = f"{self._folder} could not be read for {self._squeue_timeout:g} s: {error}"
        return [Ending(number, [f"{type(error).__name__}: {reason}\n"]) for number in lost]

    def _result_is_there(self, number: int, job: _Job) -> bool:
        """Tell whether the result has arrived on this machine; its time to do so is limited."""
        result = _result_file(self._steps[number].node)
        try:
            there = result in result.parent.iterdir()
        except OSError:
            there = False
        job.gone = job.gone or time.monotonic()
        # The steps after it will say what is missing.
        return there or time.monotonic() - job.gone > self._late_seconds

    def _without_outcome(self) -> list[Ending]:
        """List the steps whose jobs have ended and will not write how it went."""
        try:
            states = job_states([job.id for job in self._jobs.values()])
        except SlurmError as error:
            return self._without_answer(error)
        if self._silent_since is not None:
            logger.warning("SLURM answers again.")
            self._silent_since = None
        now = time.monotonic()
        ended = []
        for number, job in self._jobs.items():
            state = states.get(job.id)
            if number in self._unread or (state is not None and not state.is_final):
                job.gone = None
                stuck = state is not None and state.may_never_start
                job.stuck = (job.stuck or now) if stuck else None
                continue
            job.gone = job.gone or now
            tidy = state is None or state.state == "COMPLETED"
            if now - job.gone >= (self._late_seconds if tidy else _GRACE_SECONDS):
                reason = _describe_end(job.id, state, self._late_seconds) + self._last_line(job)
                ended.append(Ending(number, [f"{JobEndedError.__name__}: {reason}\n"]))
        self._tell_of_stuck(states)
        # SLURM may have forgotten one for a moment, or may queue it again.
        self._cancel_loose({self._jobs[ending.number].id for ending in ended})
        return ended

    def _tell_of_stuck(self, states: Mapping[int, JobState]) -> None:
        """Tell of jobs that may never start, once for each job and reason."""
        told_now: dict[str, list[int]] = {}
        for job in self._jobs.values():
            state = states.get(job.id)
            if state is None or not state.may_never_start or job.stuck is None:
                continue
            waited = time.monotonic() - job.stuck
            if waited >= _STUCK_SECONDS and state.reason_word not in job.reasons:
                job.reasons.add(state.reason_word)
                told_now.setdefault(state.reason, []).append(job.id)
        for reason, jobs in told_now.items():
            more = len(jobs) - _MOST_LISTED
            them = _listed(jobs[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
            self._warn(
                f"SLURM does not start {'job' if len(jobs) == 1 else 'jobs'} {them}; it gives "
                f"the reason {reason}. The run goes on waiting.",
                aloud=True,
            )

    def _cancel_loose(self, jobs: set[int]) -> None:
        """Cancel jobs of steps that were given up; at the end of the run again if that fails."""
        try:
            cancel_jobs(jobs)
        except SlurmError as error:
            self._warn(f"{error} Jobs {_listed(jobs)} may still be there.")
            self._loose |= jobs

    def _warn(self, text: str, *, aloud: bool = False) -> None:
        """Log a warning, and show it on the terminal too."""
        if not aloud:
            logger.warning("%s", text)
            return
        from tqdm import tqdm

        if is_open(sys.stderr):
            # Not through the bar of the run, if there is one.
            with going_on(sys.stderr):
                tqdm.write(f"Warning: {text}", file=sys.stderr)
        told.warning("%s", text)

    def _without_answer(self, error: SlurmError) -> list[Ending]:
        """Take the jobs for running as long as SLURM does not answer, within reason."""
        now = time.monotonic()
        if self._silent_since is None:
            logger.warning("%s The jobs are taken to be still there.", error)
            self._silent_since = now
        if now - self._silent_since < self._squeue_timeout:
            return []
        reason = f"SLURM gave no answer for {self._squeue_timeout:g} s: {error}"
        self._cancel_loose({job.id for job in self._jobs.values()})
        return [Ending(number, [f"SlurmError: {reason}\n"]) for number in self._jobs]

    def _last_line(self, job: _Job) -> str:
        path = _with_suffix(job.stem, ".log")
        try:
            with path.open("rb") as stream:
                stream.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
                text = stream.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f" The last line of {path}: {lines[-1]}" if lines else ""


def _with_suffix(stem: Path, suffix: str) -> Path:
    # Not with_suffix(): names of steps may hold dots.
    return stem.with_name(stem.name + suffix)


def _remove_files(job: _Job) -> None:
    """Remove what a job needed and wrote that went well."""
    for suffix in (TASK_SUFFIX, OUTCOME_SUFFIX, ".sh", ".log"):
        # What stays goes with the next run in this work folder.
        with suppress(OSError):
            _with_suffix(job.stem, suffix).unlink(missing_ok=True)


def _result_file(node: Any) -> Path:
    """Path of the file in which nipype keeps the result of a step."""
    return Path(node.output_dir(), f"result_{node.name}.pklz")


def _job_name(node: Any, mark: str) -> str:
    """Name a job so that its step comes first in the narrow columns of squeue."""
    return ".".join([*reversed(str(node.fullname).split(".")), mark])


def _describe_end(job: int, state: JobState | None, late_seconds: float) -> str:
    """Say how a job ended that wrote no outcome."""
    if state is None or state.state == "COMPLETED":
        return (
            f"Job {job} has ended, but what it wrote did not appear within {late_seconds:g} s; "
            "is the work folder on a file system that all nodes share?"
        )
    if state.state == "OUT_OF_MEMORY":
        return f"Job {job} ran out of memory; give it more with sbatch_args, such as --mem=16G."
    if state.state == "TIMEOUT":
        return f"Job {job} ran out of time; give it more with sbatch_args, such as --time=4:00:00."
    code = exit_code(job) if state.state == "FAILED" else None
    if code == -9:
        return f"Job {job} was killed (signal 9), most likely for want of memory."
    how = "" if code is None else f", {'signal' if code < 0 else 'exit code'} {abs(code)}"
    return f"Job {job} has ended before its step had: {state.state}{how}."


def _clear_earlier_runs(folder: Path, patience_seconds: float) -> None:
    """End jobs that a run has left which was killed: they would work on the same files."""
    tokens = [path.name for path in folder.iterdir() if path.is_dir()]
    deadline = time.monotonic() + patience_seconds
    cancelled = False
    while tokens:
        try:
            jobs = jobs_named("")
            left = {job for job, name in jobs.items() if any(token in name for token in tokens)}
            if not left:
                break
            if not cancelled:
                logger.warning("Cancelling jobs that an earlier run has left: %s", _listed(left))
                cancel_jobs(left)
                cancelled = True
            problem = f"they do not end: {_listed(left)}"
        except SlurmError as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise RuntimeError(
                "An earlier run in this work folder may have left jobs, which would work on the "
                f"same files, and {problem}"
            )
        time.sleep(_SHORTEST_LOOK)
    for token in tokens:
        shutil.rmtree(folder / token, ignore_errors=True)


def _listed(jobs: Collection[int]) -> str:
    return " ".join(map(str, sorted(jobs)))
