"""The commands of SLURM: submit a job, ask for states, cancel."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lacuna_nipype.core.exceptions import ValidationError

_TIMEOUT_SECONDS = 120
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
    r"|configuration is not available|access/permission denied|not permitted",
    re.IGNORECASE,
)
_TOO_MANY_JOBS = re.compile(r"MaxSubmit")
# Short forms of those options that this program sets or must not contradict.
_LONG = {"c": "cpus-per-task", "e": "error", "J": "job-name", "o": "output", "t": "time"}
_MEMORY_OPTIONS = frozenset({"mem", "mem-per-cpu", "mem-per-gpu"})


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


def read_template(template: str | None) -> str:
    """Read what job scripts begin with.

    Parameters
    ----------
    template : str or None
        Text, or path of a file.

    Returns
    -------
    str
        Begins with a line that names the shell.

    Raises
    ------
    ValidationError
        It looks like a path, and there is no such file.
    """
    if not template:
        return "#!/bin/bash"
    text = template
    if "\n" not in template and not template.startswith("#"):
        path = Path(template).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValidationError(
                f"The template of job scripts, {template}, cannot be read; give the path of a "
                "text file, or the text itself."
            ) from error
    text = text.strip()
    return text if text.startswith("#!") else f"#!/bin/bash\n{text}"


def option_words(text: str | Sequence[str]) -> list[str]:
    """Split options as a shell does.

    Parameters
    ----------
    text : str or sequence of str
        A sequence holds words already.

    Returns
    -------
    list of str

    Raises
    ------
    ValidationError
        A quotation mark is not closed.
    """
    try:
        return shlex.split(text) if isinstance(text, str) else [str(word) for word in text]
    except ValueError as error:
        raise ValidationError(f"The options {text!r} cannot be read: {error}.") from error


def option_names(words: Sequence[str]) -> set[str]:
    """List the options among the words of a command line of sbatch, by their long names.

    Parameters
    ----------
    words : sequence of str

    Returns
    -------
    set of str
        Without dashes. All options of memory count as ``mem``.
    """
    names = set()
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
            names.add("mem" if name in _MEMORY_OPTIONS else name)
        elif word.startswith("-") and word[1:2] in _LONG:
            names.add(_LONG[word[1]])
    return names


def script_options(script: str) -> set[str]:
    """List the options that a job script sets in ``#SBATCH`` lines, by their long names.

    Parameters
    ----------
    script : str

    Returns
    -------
    set of str
    """
    lines = re.findall(r"^#SBATCH\s+(.*)$", script, flags=re.MULTILINE)
    return {name for line in lines for name in option_names(shlex.split(line, comments=True))}


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
    """Find the user's jobs that have not ended, by a part of their names.

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
    answer = _run(["squeue", "--noheader", f"--user={os.getuid()}", "--format=%A %j"])
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
    """Leave out what SLURM has set for the job that this process may itself be part of.

    Parameters
    ----------
    environment : mapping of str to str

    Returns
    -------
    dict of str to str
        Jobs inherit it; another job's memory or processors would contradict their own.
    """
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
    return {
        name: value
        for name, value in environment.items()
        if name in kept or not name.startswith(("SLURM_", "SLURMD_", "SRUN_"))
    }


def _run(words: Sequence[str]) -> str:
    """Run a command; its standard output."""
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            check=False,
            encoding="utf-8",
            env=clean_environment(os.environ),
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{words[0]} did not answer within {_TIMEOUT_SECONDS} s.") from error
    except FileNotFoundError as error:
        raise SlurmError(f"{words[0]} is not on PATH.", hopeless=True) from error
    except OSError as error:
        raise SlurmError(f"{words[0]} cannot be run: {error}.") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = "; ".join(lines[-2:]) or f"exit code {done.returncode}"
        raise SlurmError(
            f"{words[0]} failed: {said}",
            hopeless=_HOPELESS.search(said) is not None,
            too_many=_TOO_MANY_JOBS.search(said) is not None,
        )
    return done.stdout
