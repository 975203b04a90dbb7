"""The commands of SLURM: submit a job, ask for states, cancel."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from lacuna_nipype.execution.signals import held_back

# Where sbatch alone looks for the cluster.
_OF_SBATCH = "SBATCH_CLUSTERS"
# In the folder of a workflow: what tells of its jobs.
JOBS_FOLDER = "slurm"
_TIMEOUT_SECONDS = 120
# Where the arguments of a plugin do not say: the pause before sbatch is tried again, and how long
# SLURM may take no job or give no answer.
RETRY_SECONDS, SILENCE_SECONDS = 2.0, 1800.0
# More than squeue says about a hundred thousand jobs.
_MOST_BYTES = 2**26
# Reasons to wait that pass by themselves, when others have had their turn.
_PATIENT_REASONS = frozenset(
    (
        *("None", "Priority", "Resources", "Dependency", "BeginTime", "Licenses", "Prolog"),
        *("JobArrayTaskLimit", "Cleaning", "SchedDefer", "Reservation", "BurstBufferResources"),
    )
)
_LIMIT_OF_MANY_JOBS = re.compile(
    r"(?:QOS|Assoc)(?!\w*(?:Per(?:Job|Node)|Minutes|Wall|Time))\w*Limit"
)
# States in which a job does nothing any more. One that was preempted may be queued again.
_FINAL = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    )
)
# Answers of sbatch that will be the same however often it is asked.
_HOPELESS = re.compile(
    r"invalid|unrecognized|unable to open file|can ?not be satisfied|mutually exclusive"
    r"|configuration is not available|access/permission denied|not permitted|than permitted"
    # The job alone is more than is allowed.
    r"|\b(?:QOS|Assoc)(?!\w*Submit)\w*Limit\b",
    re.IGNORECASE,
)
_TOO_MANY_JOBS = re.compile(r"(?:Max|Grp)Submit")
# Pauses between attempts grow up to this.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 60.0


class SlurmError(RuntimeError):
    """A command of SLURM has failed.

    Parameters
    ----------
    message : str
    hopeless : bool
        The same command would fail again.
    too_many : bool
        There are as many jobs as are allowed.
    """

    def __init__(self, message: str, *, hopeless: bool = False, too_many: bool = False) -> None:
        super().__init__(message)
        self.hopeless, self.too_many = hopeless, too_many


@dataclass(frozen=True)
class JobState:
    """What SLURM says about a job.

    Parameters
    ----------
    state : str
        Such as ``PENDING``.
    reason : str
        Why it waits or ended, in SLURM's word.
    """

    state: str
    reason: str

    @property
    def is_final(self) -> bool:
        """The job does nothing any more."""
        return self.state in _FINAL

    @property
    def reason_word(self) -> str:
        """The reason without details, as ``ReqNodeNotAvail, UnavailableNodes:n7`` has them."""
        return self.reason.partition(",")[0].strip()

    @property
    def may_never_start(self) -> bool:
        """The job waits for more than its turn."""
        word = self.reason_word
        passing = not word or word in _PATIENT_REASONS or _LIMIT_OF_MANY_JOBS.fullmatch(word)
        return self.state == "PENDING" and not passing


class Patience:
    """How long to go on asking a SLURM that refuses or does not answer.

    Parameters
    ----------
    first_seconds : float
        The first pause; each is twice the one before, up to a minute.
    limit_seconds : float
        How long it may take in all, from the first failure on.
    """

    def __init__(self, first_seconds: float, limit_seconds: float) -> None:
        self._first_seconds, self._limit_seconds = first_seconds, limit_seconds
        self.reset()

    def reset(self) -> None:
        """Begin again: SLURM has done what it was asked for."""
        self._since: float | None = None
        self._pause = min(max(self._first_seconds, _SHORTEST_PAUSE), _LONGEST_PAUSE)

    @property
    def is_tried(self) -> bool:
        """There was a failure since the beginning."""
        return self._since is not None

    def pause_after(self, error: SlurmError) -> float:
        """Say how long to wait before the next attempt.

        Parameters
        ----------
        error : SlurmError

        Returns
        -------
        float
            Seconds.

        Raises
        ------
        SlurmError
            There is no hope, or it has taken too long.
        """
        now = time.monotonic()
        if error.hopeless:
            raise SlurmError(f"The job could not be submitted: {error}") from error
        self._since = self._since or now
        left = self._since + self._limit_seconds - now
        if left <= 0:
            raise SlurmError(
                f"The job could not be submitted for {self._limit_seconds:g} s: {error}"
            ) from error
        pause = min(self._pause, left)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return pause


def submit_job(script: Path, options: Sequence[str]) -> int:
    """Submit a job script.

    Parameters
    ----------
    script : Path
    options : sequence of str
        Of sbatch, one word each.

    Returns
    -------
    int
        Number of the job.

    Raises
    ------
    SlurmError
        It was not accepted.
    """
    answer = _run(["sbatch", "--parsable", *options, str(script)])
    # "number" or "number;cluster", after what a site's own wrapper may say.
    found = re.search(r"^(\d+)(?:;\S*)?\s*$", answer, flags=re.MULTILINE)
    if found is None:
        raise SlurmError(f"sbatch answered without the number of the job: {answer.strip()!r}.")
    return int(found.group(1))


def submit_patiently(
    script: Path,
    options: Sequence[str],
    *,
    name: str,
    patience: Patience,
    tell: Callable[[str], None],
) -> int:
    """Submit a job script, again and again while there is hope; never two jobs.

    Parameters
    ----------
    script : Path
    options : sequence of str
        Of sbatch, one word each.
    name : str
        Of the job; no other job has it. By it, a job is found whose sbatch reported a failure.
    patience : Patience
    tell : callable
        Takes a sentence about a failure after which it goes on.

    Returns
    -------
    int
        Number of the job.

    Raises
    ------
    SlurmError
        It was not accepted; there may be a job all the same.
    """
    may_be_there = False
    while True:
        try:
            if may_be_there:
                found = [job for job, full in jobs_named(name).items() if full == name]
                if found:
                    return found[0]
                may_be_there = False
            return submit_job(script, [*options, f"--job-name={name}"])
        except SlurmError as error:
            pause = patience.pause_after(error)
            may_be_there = True
            tell(f"{error} Trying again in {pause:.3g} s.")
        time.sleep(pause)


def job_states(jobs: Collection[int]) -> dict[int, JobState]:
    """Ask for the states of jobs, of all in one go.

    Parameters
    ----------
    jobs : collection of int

    Returns
    -------
    dict of int to JobState
        Jobs that SLURM does not know (any more) are not in it.

    Raises
    ------
    SlurmError
        There was no answer: nothing is known about the jobs.
    """
    if not jobs:
        return {}
    numbers = ",".join(map(str, sorted(jobs)))
    words = ["squeue", "--noheader", "--states=all", "--format=%A %T %r", f"--jobs={numbers}"]
    try:
        answer = _run(words)
    except SlurmError as error:
        # So it says when it was asked for one job only, and has forgotten it.
        if "Invalid job id" in str(error):
            return {}
        raise
    found = re.findall(r"^(\d+) (\S+) ?(.*)$", answer, flags=re.MULTILINE)
    return {int(number): JobState(state, reason) for number, state, reason in found}


def jobs_named(part: str) -> dict[int, str]:
    """Find the user's jobs and arrays that have not ended, by a part of their names.

    Parameters
    ----------
    part : str

    Returns
    -------
    dict of int to str
        Names by numbers.

    Raises
    ------
    SlurmError
        There was no answer.
    """
    # Tasks of an array have the number of the array here.
    # Jobs in hidden partitions are shown with --all only, or by their numbers.
    answer = _run(["squeue", "--noheader", "--all", f"--user={os.getuid()}", "--format=%F %j"])
    found = re.findall(r"^(\d+) (.*)$", answer, flags=re.MULTILINE)
    return {int(number): name for number, name in found if part in name}


def exit_code(job: int) -> int | None:
    """Ask how a job ended.

    Parameters
    ----------
    job : int

    Returns
    -------
    int or None
        Negative for a signal; None where SLURM does not say.
    """
    try:
        answer = _run(["scontrol", "--oneliner", "show", "job", str(job)])
    except SlurmError:
        return None
    found = re.search(r"\bExitCode=(\d+):(\d+)", answer)
    if found is None:
        return None
    code, number = map(int, found.groups())
    return -number if number else code


def cancel_jobs(jobs: Collection[int]) -> None:
    """Cancel jobs; those that have ended do not matter.

    Parameters
    ----------
    jobs : collection of int

    Raises
    ------
    SlurmError
        SLURM did not take the order.
    """
    if jobs:
        _run(["scancel", "--quiet", *map(str, sorted(jobs))])


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out what would change the meaning of the commands.

    Parameters
    ----------
    environment : mapping of str to str

    Returns
    -------
    dict of str to str
        Without what SLURM has set for the job that this process may itself be part of: jobs
        inherit it, and another job's memory or processors would contradict their own. Without
        the user's habits of asking and cancelling: they hide jobs. Those of sbatch stay, but for
        the cluster, which all commands must be told.
    """
    # The token is how a user proves who asks, where a cluster has no munge.
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT")
    left_out = ("SLURM_", "SLURMD_", "SRUN_", "SQUEUE_", "SCANCEL_", "SCONTROL_", _OF_SBATCH)
    clean = {
        name: value
        for name, value in environment.items()
        if name in kept or not name.startswith(left_out)
    }
    if cluster := chosen_cluster(environment):
        clean["SLURM_CLUSTERS"] = cluster
    return clean


def chosen_cluster(environment: Mapping[str, str]) -> str:
    """Name the cluster that the user has chosen among several, as SLURM takes it; mostly none."""
    return environment.get("SLURM_CLUSTERS") or environment.get(_OF_SBATCH, "")


def _run(words: Sequence[str]) -> str:
    """Run a command; its standard output."""
    with ExitStack() as stack:
        # A signal between the start and what ends it would leave the command behind.
        with held_back():
            process = stack.enter_context(_start(words))
            stack.callback(_end, process)
        printed, complaint = _collect(process, words[0])
    if process.returncode:
        lines = [line.strip() for line in complaint.splitlines() if line.strip()]
        said = "; ".join(lines[-2:]) or f"exit code {process.returncode}"
        raise SlurmError(
            f"{words[0]} failed: {said}",
            hopeless=_HOPELESS.search(said) is not None,
            too_many=_TOO_MANY_JOBS.search(said) is not None,
        )
    return printed


def _start(words: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a command whose two streams are read."""
    try:
        return subprocess.Popen(
            words,
            env=clean_environment(os.environ),
            # Ctrl-C is for us, who may need the command to cancel jobs.
            start_new_session=True,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise SlurmError(f"{words[0]} is not on PATH.", hopeless=True) from error
    except (OSError, ValueError) as error:
        raise SlurmError(f"{words[0]} cannot be run: {error}.") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command that has not ended, and what it has started."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _collect(process: subprocess.Popen[bytes], name: str) -> tuple[str, str]:
    """Read what a command prints, on both streams, until it ends; not for ever."""
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    kept = (bytearray(), bytearray())
    with selectors.DefaultSelector() as selector:
        for stream, content in zip((process.stdout, process.stderr), kept, strict=True):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, content)
        while selector.get_map():
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                block = os.read(key.fd, 2**16)
                key.data.extend(block)
                if not block:
                    selector.unregister(key.fileobj)
            if sum(map(len, kept)) > _MOST_BYTES:
                raise SlurmError(f"{name} printed more than {_MOST_BYTES // 2**20} MiB.")
            if time.monotonic() >= deadline:
                raise SlurmError(f"{name} did not answer within {_TIMEOUT_SECONDS} s.")
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{name} did not end within {_TIMEOUT_SECONDS} s.") from error
    printed, complaint = (text.decode("utf-8", errors="replace") for text in kept)
    return printed, complaint
