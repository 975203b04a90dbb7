"""A graph run to its end: Nipype's settings, the plugin, what failed and why."""

from __future__ import annotations

import configparser
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lacuna_nipype.core.exceptions import DependencyError, ValidationError
from lacuna_nipype.execution.progress import NodeRecord, RunProgress, step_name
from lacuna_nipype.execution.settings import use_settings
from lacuna_nipype.execution.signals import ended_by_signals
from lacuna_nipype.execution.telling import tell


@dataclass(frozen=True)
class Failure:
    """A step that failed.

    Parameters
    ----------
    node : str
        Full name in the graph.
    reason : str
        Last line of the error.
    crash_file : Path or None
    """

    node: str
    reason: str
    crash_file: Path | None


@dataclass(frozen=True)
class RunOutcome:
    """What became of a run.

    Parameters
    ----------
    nodes : dict of str to NodeRecord
        By full name.
    failures : tuple of Failure
    error : str or None
        Reason why the run as a whole ended early, where no step is to blame.
    """

    nodes: dict[str, NodeRecord]
    failures: tuple[Failure, ...]
    error: str | None


def configure_nipype(*, log_dir: Path, stop_on_first_crash: bool, verbose: int = 0) -> None:
    """Set Nipype's options; only graphs built afterwards follow them.

    The options are also written to ``nipype.cfg`` in the log folder and announced in the
    environment, because workers are fresh processes that read their own configuration.

    Parameters
    ----------
    log_dir : Path
        Crash files (as text) and ``run.log`` go here.
    stop_on_first_crash : bool
    verbose : int
        0: Nipype logs to the file only; 1: progress of nodes on the terminal; 2: everything.
    """
    options = {
        "execution": {
            "crashdump_dir": str(log_dir),
            "crashfile_format": "txt",
            # With true, a new connection to a finished node would run that node again.
            "remove_unnecessary_outputs": "false",
            # A content hash would read the whole connectome for every node.
            "hash_method": "timestamp",
            "stop_on_first_crash": str(stop_on_first_crash).lower(),
            # Files of a job may appear late on a network file system.
            "job_finished_timeout": "60",
            "check_version": "false",
        },
        "logging": {
            "log_directory": str(log_dir),
            "log_to_file": "false",
            "workflow_level": ("CRITICAL", "INFO", "DEBUG")[min(verbose, 2)],
            "utils_level": ("ERROR", "INFO", "DEBUG")[min(verbose, 2)],
            "interface_level": ("INFO", "INFO", "DEBUG")[min(verbose, 2)],
        },
    }
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_dict(options)
    with (log_dir / "nipype.cfg").open("w", encoding="utf-8") as stream:
        parser.write(stream)
    os.environ["NIPYPE_CONFIG_DIR"] = str(log_dir)
    use_settings(options)
    _log_to_file(log_dir / "run.log", verbose)


class _LogFile(logging.FileHandler):
    """A log that says once that it cannot be written, as on a full disk, and not at every line."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            reason = error.strerror or error
            tell(f"Warning: {self.baseFilename} cannot be written: {reason}.", sys.stderr)


def _log_to_file(path: Path, verbose: int) -> None:
    """Everything into the file; the terminal keeps Nipype's lines only when asked for."""
    root = logging.getLogger()
    if not verbose:
        for owner in (root, logging.getLogger("nipype")):
            for handler in list(owner.handlers):
                owner.removeHandler(handler)
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    root.addHandler(handler)
    for name in ("nipype.workflow", "nipype.utils", "nipype.interface", "lacuna_nipype"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose > 1 else logging.INFO)
    logging.captureWarnings(capture=True)


def plugin_arguments(
    plugin: str,
    *,
    nprocs: int,
    memory_gb: float,
    progress: Callable[[Any, str], None],
    asked: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of a Nipype plugin.

    Parameters
    ----------
    plugin : str
        Nipype's name of it.
    nprocs : int
    memory_gb : float
    progress : callable
        Told about every node: takes it and its status.
    asked : mapping, optional
        The user's own, which win.

    Returns
    -------
    dict
    """
    arguments: dict[str, Any] = {"status_callback": progress}
    if plugin in ("MultiProc", "LegacyMultiProc"):
        arguments |= {
            "n_procs": nprocs,
            "memory_gb": memory_gb,
            # A step that declares more than there is runs alone instead of never.
            "raise_insufficient": False,
        }
    return arguments | dict(asked or {})


def require_plugin(plugin: str, plugin_args: Mapping[str, Any] | None = None) -> None:
    """Raise when a plugin cannot work: commands are not there, or its arguments are no use.

    Parameters
    ----------
    plugin : str
    plugin_args : mapping, optional
        The user's own.

    Raises
    ------
    DependencyError
        One sentence with the missing commands.
    ValidationError
        One sentence on an argument.
    """
    if plugin in ("IPython", "SomaFlow"):
        try:
            make_plugin(plugin, {})
        except ImportError as error:
            raise DependencyError(
                f"--plugin {plugin} needs a library that is not there ({error}); install it, or "
                "choose another plugin."
            ) from error
    if plugin != "SLURM":
        return
    from lacuna_nipype.execution.slurm_commands import chosen_cluster
    from lacuna_nipype.execution.slurm_options import read_job_arguments

    read_job_arguments(plugin_args or {})
    cluster = chosen_cluster(os.environ)
    if "," in cluster or cluster == "all":
        raise ValidationError(
            f"SLURM_CLUSTERS is {cluster!r}: numbers of jobs mean something on one cluster only; "
            "name one."
        )
    commands = ("sbatch", "squeue", "scancel", "scontrol")
    missing = [name for name in commands if shutil.which(name) is None]
    if missing:
        raise DependencyError(
            f"--plugin SLURM needs {', '.join(missing)} on PATH; start the run on a machine that "
            "submits jobs, such as the login node, and not inside a container."
        )


def make_plugin(plugin: str, arguments: dict[str, Any]) -> Any:
    """Give what runs a workflow.

    Parameters
    ----------
    plugin : str
        Nipype's name; for ``Linear``, ``MultiProc`` and ``SLURM`` our own stand in.
    arguments : dict
        See :func:`plugin_arguments`.

    Returns
    -------
    nipype plugin
    """
    if plugin == "Linear":
        from lacuna_nipype.execution.linear import GuardedLinearPlugin

        return GuardedLinearPlugin(arguments)
    if plugin == "MultiProc":
        from lacuna_nipype.execution.multiproc import GuardedMultiProcPlugin

        return GuardedMultiProcPlugin(arguments)
    if plugin == "SLURM":
        from lacuna_nipype.execution.slurm import GuardedSLURMPlugin

        return GuardedSLURMPlugin(arguments)
    from nipype.pipeline import plugins

    return getattr(plugins, f"{plugin}Plugin")(plugin_args=arguments)


def expanded_nodes(workflow: Any) -> list[Any]:
    """List the nodes that would run, in an order in which they can; raises on a faulty graph."""
    import networkx as nx

    from lacuna_nipype.execution.expansion import expand

    return list(nx.topological_sort(expand(workflow)))


def run_graph(
    workflow: Any,
    *,
    n_nodes: int,
    plugin: str,
    nprocs: int,
    memory_gb: float,
    crash_dir: Path,
    plugin_args: Mapping[str, Any] | None = None,
) -> RunOutcome:
    """Run a workflow and collect what happened to its nodes.

    Parameters
    ----------
    workflow : nipype Workflow
        Without iterables and JoinNodes; nipype itself cannot run it any more afterwards.
    n_nodes : int
        Nodes of its expanded graph.
    plugin : str
    nprocs : int
    memory_gb : float
    crash_dir : Path
        Where the workflow's crash files go.
    plugin_args : mapping, optional
        The user's own arguments of the plugin.

    Returns
    -------
    RunOutcome
        Failing steps do not raise: everything that does not depend on them still runs.
    """
    from lacuna_nipype.execution.expansion import expand

    progress = RunProgress(n_nodes, base_dir=workflow.base_dir)
    arguments = plugin_arguments(
        plugin, nprocs=nprocs, memory_gb=memory_gb, progress=progress, asked=plugin_args
    )
    error = runs = None
    try:
        runs = make_plugin(plugin, arguments)
        with ended_by_signals():
            runs.run(expand(workflow), workflow.config)
    except Exception as exception:  # noqa: BLE001 - nipype raises whatever a node raised
        error = _last_line(str(exception)) or type(exception).__name__
    finally:
        progress.close()
    failures = _without_crash_file(
        read_failures(crash_dir, workflow.base_dir), runs, crash_dir, workflow.base_dir
    )
    return RunOutcome(progress.records, failures, error if error and not failures else None)


def _without_crash_file(
    read: tuple[Failure, ...], plugin: Any, crash_dir: Path, base_dir: str | Path | None
) -> tuple[Failure, ...]:
    """Add the failures that are not among the logs of the run: their disk may be full."""
    failures = {failure.node: failure for failure in read}
    for failed in getattr(plugin, "failed", ()):
        crash_file = failed.crash_file and Path(failed.crash_file)
        if crash_file is None or crash_file.parent != crash_dir:
            name = step_name(failed.node.fullname, Path(failed.node.output_dir()), base_dir)
            failures[name] = Failure(name, _reason(failed.traceback), crash_file)
    return tuple(failures.values())


def read_failures(crash_dir: Path, base_dir: str | Path | None = None) -> tuple[Failure, ...]:
    """Read the text crash files of a run.

    Parameters
    ----------
    crash_dir : Path
    base_dir : path-like, optional
        Work folder of the run: names the pieces of a MapNode after it.

    Returns
    -------
    tuple of Failure
        In order of time; one per node.
    """
    failures: dict[str, Failure] = {}
    for path in sorted(crash_dir.glob("crash-*.txt"), key=lambda path: path.stat().st_mtime):
        text = path.read_text(encoding="utf-8", errors="replace")
        match = re.search(r"^Node: (.+)$", text, flags=re.MULTILINE)
        node = match.group(1).strip() if match else path.stem
        folder = re.search(r"^Working directory: (.+)$", text, flags=re.MULTILINE)
        if folder:
            node = step_name(node, Path(folder.group(1).strip()), base_dir)
        failures[node] = Failure(node, _reason(text), path)
    return tuple(failures.values())


def _reason(text: str) -> str:
    """Last line that reads like ``package.Error: message``, without the package.

    Nipype appends the traceback of the interface, indented.
    """
    pattern = r"^[ \t]*(?:[A-Za-z_][\w.]*\.)?([A-Za-z_]\w*(?:Error|Exception))(?:: (.+))?$"
    errors = re.findall(pattern, text, flags=re.MULTILINE)
    if not errors:
        return _last_line(text)
    name, message = errors[-1]
    return message.strip() or name


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
