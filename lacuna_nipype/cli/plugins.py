"""Which plugins of nipype may run a graph, and how their arguments are given."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lacuna_nipype.core.files import parse_json

# The first three are tested; ours stand in for MultiProc and SLURM.
PLUGINS = ("Linear", "MultiProc", "SLURM")
OTHERS = ("Condor", "IPython", "LegacyMultiProc", "LSF", "OAR", "PBS", "SGE", "SomaFlow")
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
        content = yaml.safe_load(Path(text).expanduser().read_text(encoding="utf-8"))
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
