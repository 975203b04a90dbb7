"""Job scripts for a run that is split over an array of jobs: text only, nothing is run here.

The array goes through the connectome, each task through some of its files, and keeps what it
makes. One more job, which starts when all tasks have ended well, is the ordinary run: it takes
what is there and makes what is missing.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.execution.estimates import time_limit
from lacuna_nipype.execution.slurm_options import option_names, script_options

# What Python takes before it does anything, and pages of files that count against a job.
OVERHEAD_GB = 0.5
TASK_VARIABLE = "SLURM_ARRAY_TASK_ID"


@dataclass(frozen=True)
class Job:
    """A job, or an array of jobs, to be submitted.

    Parameters
    ----------
    name : str
        Of its script; of an array, also of the stage that its tasks do parts of.
    command : tuple of str
        Words; those of an array are told their part in addition.
    processors : int
    mem_gb : float
        What its processes take.
    minutes : float
        What it is expected to take.
    tasks : int or None
        Tasks of an array; None for a single job.
    """

    name: str
    command: tuple[str, ...]
    processors: int
    mem_gb: float
    minutes: float
    tasks: int | None = None

    @property
    def megabytes(self) -> int:
        """Memory to ask for, MiB."""
        return math.ceil((self.mem_gb + OVERHEAD_GB) * 1e9 / 2**20)

    def describe(self) -> str:
        """Say what it asks for."""
        many = "one job"
        if self.tasks is not None:
            many = f"array of {self.tasks} task{'s, each' if self.tasks > 1 else ','}"
        processors = f"{self.processors} processor{'s' if self.processors > 1 else ''}"
        gigabytes = self.megabytes / 1024
        memory = f"{gigabytes:.0f} GiB" if gigabytes >= 10 else f"{gigabytes:.2g} GiB"
        return f"{many} with {processors}, {memory} and {time_limit(self.minutes)} min at most"


def job_script(
    job: Job, *, run: str, folder: Path, start: Path, template: str, sbatch_args: Sequence[str]
) -> str:
    """Write the script of a job.

    Parameters
    ----------
    job : Job
    run : str
        Name of the run, for the job's.
    folder : Path
        For its log files.
    start : Path
        Where the command starts.
    template : str
        Begins with a line that names the shell; its other lines come before the command.
    sbatch_args : sequence of str
        The user's options, which are given to sbatch: here they only replace ours.

    Returns
    -------
    str

    Raises
    ------
    ValidationError
        SLURM cannot write into the folder.
    """
    if re.search(r"[\\\n\r]", str(folder)):
        raise ValidationError(
            f"SLURM cannot write log files into {str(folder)!r}, because of a backslash or a line "
            "break in the path; choose another output folder."
        )
    numbers = "%j" if job.tasks is None else "%A_%a"
    # A percent sign starts a pattern.
    log = f"{folder}/{job.name}-".replace("%", "%%") + f"{numbers}.log"
    options = {
        "job-name": job_name(job, run),
        "output": _quoted(log),
        "cpus-per-task": str(job.processors),
        "mem": f"{job.megabytes}M",
        "time": str(time_limit(job.minutes)),
    }
    given = option_names(sbatch_args) | script_options(template)
    lines = [f"{key}={value}" for key, value in options.items() if key not in given]
    if job.tasks is not None:
        lines.append(f"array=0-{job.tasks - 1}")
    shell, _, rest = template.partition("\n")
    asked = "".join(f"#SBATCH --{line}\n" for line in lines)
    # The first line that is no comment ends the options, so they come before the template's.
    return f"{shell}\n{asked}{rest}\ncd {shlex.quote(str(start))} || exit 1\n{_command(job)}\n"


def job_name(job: Job, run: str) -> str:
    """Name of a job in the queue.

    Parameters
    ----------
    job : Job
    run : str
        Name of the run.

    Returns
    -------
    str
    """
    return f"{job.name}-{run}"


def _quoted(value: str) -> str:
    """Quote a value for a line of options, where blanks, quotation marks and # mean something."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _command(job: Job) -> str:
    """Write the command of a job as a line of a shell."""
    line = f"exec {shlex.join(job.command)}"
    if job.tasks is not None:
        line += f' --submit-part "{job.name}:${TASK_VARIABLE}/{job.tasks}"'
    return line


def submit_script(
    arrays: Sequence[Job], last: Job, *, folder: Path, sbatch_args: Sequence[str]
) -> str:
    """Write a script that submits the jobs, each after those before it.

    Parameters
    ----------
    arrays : sequence of Job
    last : Job
    folder : Path
        Of the job scripts.
    sbatch_args : sequence of str
        The user's options.

    Returns
    -------
    str
        Its arguments go to the arrays, such as ``--array=3,7``.
    """
    lines = [
        "#!/bin/sh",
        "# Submits the run again; arguments such as --array=3,7 choose tasks. What is done is",
        "# not done again.",
        "set -e",
        "after=",
    ]
    options = "".join(f" {shlex.quote(word)}" for word in sbatch_args)
    for job in (*arrays, last):
        chosen = "" if job is last else ' "$@"'
        script = shlex.quote(str(folder / f"{job.name}.sh"))
        lines += [
            f"job=$(sbatch --parsable{options} $after{chosen} {script})",
            "job=${job%%;*}",
            f'echo "{job.name}: job $job"',
            f'after="{" ".join(after_options("$job"))}"',
        ]
    return "\n".join(lines) + "\n"


def after_options(job: int | str) -> list[str]:
    """Options of a job that starts when another has ended well, and goes when it has not."""
    return [f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes"]
