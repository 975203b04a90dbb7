"""What the user wants of all jobs: a template of scripts, options of sbatch, the Python to run."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import open_regular

# Short forms of those options that this program sets or must not contradict.
_LONG = {
    "a": "array", "c": "cpus-per-task", "e": "error", "J": "job-name", "M": "clusters",
    "o": "output", "t": "time", "W": "wait",
}  # fmt: skip
_ALIKE = {"mem-per-cpu": "mem", "mem-per-gpu": "mem", "cluster": "clusters"}
# One job is another number of jobs then, or none.
_UNFIT_OPTIONS = frozenset({"array", "test-only", "wait", "wrap"})
_NO_CLUSTER = (
    "which the commands that ask for jobs and cancel them would not know; leave it out and set "
    "SLURM_CLUSTERS, which all of them follow."
)


@dataclass(frozen=True)
class JobArguments:
    """What the user wants of all jobs.

    Parameters
    ----------
    template : str
        What job scripts begin with; the first line names the shell.
    sbatch_args : tuple of str
        Words of options of sbatch.
    python : tuple of str
        Words of the command that runs Python.
    """

    template: str
    sbatch_args: tuple[str, ...]
    python: tuple[str, ...]


def read_job_arguments(arguments: Mapping[str, Any]) -> JobArguments:
    """Read ``template``, ``sbatch_args`` and ``python`` among the arguments of a plugin.

    Parameters
    ----------
    arguments : mapping
        What is None or empty counts as not given.

    Returns
    -------
    JobArguments

    Raises
    ------
    ValidationError
        One of them is of no use; one sentence.
    """
    template = read_template(arguments.get("template"))
    sbatch_args = option_words(arguments.get("sbatch_args"))
    for what, names in (
        ("sbatch_args hold", option_names(sbatch_args)),
        ("The template of job scripts holds", script_options(template)),
    ):
        if "clusters" in names:
            raise ValidationError(f"{what} --clusters, {_NO_CLUSTER}")
        if unfit := sorted(names & _UNFIT_OPTIONS):
            raise ValidationError(
                f"{what} --{unfit[0]}, with which jobs are not what this program waits for; leave "
                "it out."
            )
    return JobArguments(
        template,
        tuple(sbatch_args),
        tuple(option_words(arguments.get("python"), "python") or [sys.executable]),
    )


def read_template(template: Any) -> str:
    """Read what job scripts begin with.

    Parameters
    ----------
    template : str or None
        Path of a file, or the text itself: begins with ``#`` or has several lines.

    Returns
    -------
    str
        Begins with a line that names the shell.

    Raises
    ------
    ValidationError
        It is no text, it looks like a path and there is no such file, or SLURM could not read
        one of its options.
    """
    if template is None or template == "":
        return "#!/bin/bash"
    if not isinstance(template, str):
        raise ValidationError(
            "The template of job scripts must be the path of a text file, or text, and not "
            f"{template!r}."
        )
    text = template
    if "\n" not in template and not template.startswith("#"):
        try:
            with open_regular(Path(template).expanduser()) as stream:
                text = stream.read().decode("utf-8")
        except (OSError, ValueError, RuntimeError) as error:
            raise ValidationError(
                f"The template of job scripts, {template!r}, cannot be read as a text file; to "
                "give the text itself, begin it with a line such as #!/bin/bash."
            ) from error
    text = text.replace("\r\n", "\n").strip()
    text = text if text.startswith("#!") else f"#!/bin/bash\n{text}"
    script_options(text)
    return text


def option_words(text: Any, what: str = "sbatch_args") -> list[str]:
    """Split options as a shell does.

    Parameters
    ----------
    text : str, sequence of str, or None
        A sequence holds words already.
    what : str
        Name of the argument, for errors.

    Returns
    -------
    list of str

    Raises
    ------
    ValidationError
        It is something else, or a quotation mark is not closed.
    """
    if text is None:
        return []
    try:
        words = shlex.split(text) if isinstance(text, str) else text
    except ValueError as error:
        raise ValidationError(f"{what}, {text!r}, cannot be read: {error}.") from error
    if not isinstance(words, (list, tuple)) or not all(map(_is_word, words)):
        raise ValidationError(f"{what} must be text or a list of words, and not {text!r}.")
    return [str(word) for word in words]


def _is_word(value: Any) -> bool:
    """Tell whether a value can be a word of a command line."""
    if isinstance(value, str):
        return "\0" not in value
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
            names.add(_ALIKE.get(name, name))
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
        SLURM does not look beyond the first command.

    Raises
    ------
    ValidationError
        A quotation mark is not closed.
    """
    names = set()
    for line in script.split("\n"):
        if line.strip() and not line.lstrip().startswith("#"):
            break
        found = re.match(r"#SBATCH\s+(.*)", line)
        if found is None:
            continue
        try:
            names |= option_names(shlex.split(found.group(1), comments=True))
        except ValueError as error:
            raise ValidationError(
                f"The line {line!r} of the template of job scripts cannot be read: {error}."
            ) from error
    return names


def log_pattern(path: Path) -> str:
    """Write the path of a log file as ``--output`` of sbatch takes it, which knows patterns.

    Parameters
    ----------
    path : Path

    Returns
    -------
    str
    """
    text = str(path)
    # One backslash anywhere, and SLURM looks for no percent signs.
    return text.replace("\\", "\\\\") if "\\" in text else text.replace("%", "%%")
