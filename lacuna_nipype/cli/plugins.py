"""Which plugins of nipype may run a graph, and how their arguments are given."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lacuna_nipype.core.files import open_regular, parse_json

# The first three are tested; ours stand in for MultiProc and SLURM.
PLUGINS = ("Linear", "MultiProc", "SLURM")
OTHERS = ("Condor", "IPython", "LegacyMultiProc", "LSF", "OAR", "PBS", "SGE", "SomaFlow")
# Arguments of ours; the two of all say what a run may use, as --nprocs and --mem do.
_OF_ALL = ("n_procs", "memory_gb")
_ARGUMENTS = {
    "Linear": _OF_ALL,
    # The last four are nipype's, as files for other programs have them, and change nothing here.
    "MultiProc": (
        *_OF_ALL, "raise_insufficient",
        "maxtasksperchild", "mp_context", "non_daemon", "scheduler",
    ),
    "SLURM": (
        *_OF_ALL, "template", "sbatch_args", "python", "max_jobs", "retry_timeout",
        "squeue_interval", "squeue_timeout",
    ),
}  # fmt: skip
_WHOLE = ("n_procs", "max_jobs")
_SECONDS = ("retry_timeout", "squeue_interval", "squeue_timeout")
_DETACHED = ("CondorDAGMan", "PBSGraph", "SGEGraph", "SLURMGraph")


def plugin_name(text: str) -> str:
    """Accept the name of a plugin.

    Parameters
    ----------
    text : str

    Returns
    -------
    str

    Raises
    ------
    argparse.ArgumentTypeError
        Nipype has none of that name, or it cannot be used.
    """
    if text in _DETACHED:
        raise argparse.ArgumentTypeError(
            f"{text} leaves while its jobs are still queued, so nobody would know what became of "
            f"the steps; use {text.removesuffix('Graph').removesuffix('DAGMan')}, which waits"
        )
    if text not in (*PLUGINS, *OTHERS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a plugin; choose {', '.join(PLUGINS)}, or one of nipype's "
            f"{', '.join(OTHERS)}"
        )
    return text


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    text : str

    Returns
    -------
    dict

    Raises
    ------
    argparse.ArgumentTypeError
        It is something else.
    """
    try:
        content = parse_json(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not a JSON object, such as {{"a": 1}}')
    return content


def plugin_file(text: str) -> dict[str, Any]:
    """Read a file with a plugin and its arguments, as fMRIPrep takes it.

    Parameters
    ----------
    text : str
        Path of a YAML file with the keys ``plugin`` and ``plugin_args``.

    Returns
    -------
    dict
        With these keys, as far as the file has them.

    Raises
    ------
    argparse.ArgumentTypeError
        The file cannot be read, or holds something else.
    """
    import yaml

    try:
        with open_regular(Path(text).expanduser()) as stream:
            content = yaml.safe_load(stream.read().decode("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise argparse.ArgumentTypeError(f"{text} cannot be read as YAML: {reason}") from error
    if not isinstance(content, dict) or not content:
        raise argparse.ArgumentTypeError(f"{text} must hold the keys plugin and plugin_args")
    unknown = sorted(map(str, content.keys() - {"plugin", "plugin_args"}))
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{text} holds {unknown[0]!r}; it may hold plugin and plugin_args only"
        )
    if "plugin" in content:
        content["plugin"] = plugin_name(str(content["plugin"]))
    if not isinstance(content.setdefault("plugin_args", {}), dict):
        raise argparse.ArgumentTypeError(f"{text}: plugin_args must be a mapping")
    return content


def merge_plugin(options: dict[str, Any]) -> str | None:
    """Put the file of a plugin and the flags together.

    Parameters
    ----------
    options : dict
        Of the parser; ``use_plugin`` is taken out, ``plugin`` and ``plugin_args`` are filled.

    Returns
    -------
    str or None
        What is wrong between them.
    """
    file = options.pop("use_plugin") or {}
    named = file.get("plugin", options["plugin"])
    if options["plugin"] not in (named, "MultiProc"):
        return f"--plugin {options['plugin']} and --use-plugin, which names {named}; leave one out"
    options["plugin"] = named
    options["plugin_args"] = {**file.get("plugin_args", {}), **options["plugin_args"]}
    return None


def find_argument_problem(plugin: str, arguments: Mapping[str, Any]) -> str | None:
    """Say what is wrong with the arguments of a plugin, or None.

    Parameters
    ----------
    plugin : str
    arguments : mapping
        Those of nipype's other plugins are its own affair, but for the two that all know.

    Returns
    -------
    str or None
    """
    known = _ARGUMENTS.get(plugin)
    for name, value in arguments.items():
        if name == "status_callback" or (known and name not in known):
            offered = f"; it takes {', '.join(known)}" if known else ""
            return f"plugin_args: {plugin} has no argument {name!r} to be set{offered}"
        problem = _value_problem(name, value, ours=known is not None)
        if problem:
            return f"plugin_args: {name} must be {problem}, not {value!r}"
    try:
        json.dumps(arguments, allow_nan=False)
    except (TypeError, ValueError):
        return "plugin_args: only what JSON knows can be given (text, numbers, lists, true, false)"
    return None


def _value_problem(name: Any, value: Any, *, ours: bool) -> str | None:
    """Say what a value should have been, or None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "memory_gb" and not (is_number and 0.5 <= value < math.inf):
        return "a number of GB of 0.5 or more"
    if name == "n_procs" or (ours and name in _WHOLE):
        is_whole = is_number and isinstance(value, int) and value >= 1
        return None if is_whole else "a whole number above 0"
    if ours and name in _SECONDS and not (is_number and 0 <= value < math.inf):
        return "a number of seconds of 0 or more"
    if ours and name == "raise_insufficient" and not isinstance(value, bool):
        return "true or false"
    return None
