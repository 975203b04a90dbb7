"""Runs from Python: ``lacuna_nipype.run`` takes masks and gives results.

A run is the command in a process of its own, with the same checks, graph, cache and records. So it
changes nothing in the caller's process (Nipype's settings, logging, the environment), and a script
that calls it needs no guard against being imported by worker processes.
"""

from __future__ import annotations

import difflib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import lacuna_nipype
from lacuna_nipype.cli.inputs import collect_lesions
from lacuna_nipype.cli.parser import build_parser, parse_config
from lacuna_nipype.cli.record import command_words
from lacuna_nipype.core.exceptions import (
    DependencyError,
    LacunaError,
    ProcessingError,
    ValidationError,
)
from lacuna_nipype.execution.signals import held_back
from lacuna_nipype.io.reading import load_derivatives
from lacuna_nipype.io.staging import STAGED_PATTERN, stage_masks

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

    from lacuna_nipype.cli.config import RunConfig
    from lacuna_nipype.io.containers import SubjectData

_ENDINGS: dict[int, type[LacunaError]] = {2: ValidationError, 127: DependencyError}
# What the command has and a call has not: its places are arguments, and it must run.
_NOT_SETTINGS = (
    *("help", "version", "bids_dir", "output_dir", "analysis_level", "dry_run"),
    *("submit", "array_size", "submit_part"),
)
_RESOURCE_FLAGS = {"nprocs": "--nprocs", "omp_nthreads": "--omp-nthreads"}
_PATIENCE_S = 15.0


def run(
    masks: str
    | os.PathLike[str]
    | SpatialImage
    | Sequence[str | os.PathLike[str] | SpatialImage]
    | Mapping[str, str | os.PathLike[str] | SpatialImage],
    *,
    functional_connectome: str | os.PathLike[str] | None = None,
    structural_connectome: str | os.PathLike[str] | None = None,
    atlases: Sequence[str | Sequence[str | os.PathLike[str]]] = (),
    work_dir: str | os.PathLike[str] = "work",
    output_dir: str | os.PathLike[str] | None = None,
    plugin: str = "MultiProc",
    **settings: Any,
) -> dict[str, SubjectData]:
    """Analyse lesions and give their results.

    Parameters
    ----------
    masks : path-like, nibabel image, or a sequence or mapping of these
        A BIDS dataset with lesion masks, a mask, or several. A file with a BIDS name keeps its
        participant, session and label; of any other name, the name is the participant. In a
        mapping the keys are the participants; images in a sequence become 01, 02, ... Images, and
        files whose names and JSON do not say it, need ``mask_space``.
    functional_connectome, structural_connectome : path-like, optional
        Or the registered name of one.
    atlases : sequence
        Ids of atlases, and atlases of your own as (name, image, labels, space).
    work_dir : path-like
        Intermediate results, in ``steps``; run again with the same folder to compute only what
        is missing. Masks that are no dataset yet are put in ``masks`` in it.
    output_dir : path-like, optional
        Derivatives dataset. Default: ``derivatives`` in the work folder.
    plugin : str
        How nipype runs the steps.
    **settings
        Options of the command, by their names with underscores: ``mask_space="MNI152NLin6Asym"``,
        ``nprocs=4``, ``compute_roi_disconnection=True``, ``p_map=False``,
        ``derivatives={"name": folder}``; ``memory_gb`` is the memory to stay under.

    Returns
    -------
    dict of str to SubjectData
        By lesion, such as ``sub-01_ses-01_label-acuteinfarct``: all results that the output
        folder holds of these lesions. Maps and tables are read when asked for.

    Raises
    ------
    TypeError
        There is no such setting.
    ValidationError, DependencyError, ProcessingError
        The last line of the command: a mistake in the arguments, a missing program, or a mask or
        step that failed. In the last case the results of all others are in the output folder,
        for :func:`lacuna_nipype.io.load_derivatives`.
    """
    options = _options(settings)
    options |= {"plugin": plugin, **_atlas_options(atlases)}
    for name, value in (
        ("functional_connectome", functional_connectome),
        ("structural_connectome", structural_connectome),
    ):
        options[name] = None if value is None else os.fspath(value)
    work = Path(work_dir)
    if isinstance(masks, (str, os.PathLike)):
        dataset = os.fspath(masks)
    else:
        dataset = str(work / "masks")
        options |= _stage(masks, dataset, settings)
    results = os.fspath(output_dir or work / "derivatives")
    words = [dataset, results, "participant", "-w", str(work / "steps"), *_words(options)]
    config = _parse(words)
    _run_command(words)
    collection = collect_lesions(config, (config.output_dir, config.work_dir))
    keys = [record.key for record in collection.records]
    if not any(config.output_dir.glob("sub-*")):
        return {}
    loaded = load_derivatives(config.output_dir)
    return {key: loaded[key] for key in keys if key in loaded}


def _stage(masks: Any, dataset: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Write masks as a dataset; gives the option that selects them alone."""
    if settings.get("pattern") is not None:
        raise TypeError("pattern chooses among the masks of a dataset; leave out masks instead.")
    several = isinstance(masks, (Sequence, Mapping))
    stage_masks(masks if several else [masks], Path(dataset))
    # Derivatives, given for their atlases or transforms, may hold other masks.
    return {"pattern": STAGED_PATTERN}


# --- words of the command -------------------------------------------------------------------


def _options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check the names of settings, and write their values as a record of a run has them."""
    taken = {"functional_connectome", "structural_connectome", "plugin", "work_dir"}
    taken |= {"parcel_atlases", "custom_parcellation", *_NOT_SETTINGS}
    known = {action.dest for action in build_parser()._actions} - taken
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, "atlases"], n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}."
            raise TypeError(f"run() has no setting {name!r}; {hint}")
    return {name: _plain(name, value) for name, value in settings.items()}


def _plain(name: str, value: Any) -> Any:
    if name == "derivatives" and isinstance(value, Mapping):
        return [[key, os.fspath(path)] for key, path in value.items()]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    listed = {action.dest for action in build_parser()._actions if action.nargs == "+"}
    if name in listed and isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple, set)):
        return [os.fspath(v) if isinstance(v, os.PathLike) else v for v in value]
    return value


def _atlas_options(atlases: Sequence[Any]) -> dict[str, Any]:
    if isinstance(atlases, (str, os.PathLike)):
        raise TypeError(f"atlases is a list, such as [{os.fspath(atlases)!r}].")
    own = [[os.fspath(part) for part in atlas] for atlas in atlases if not isinstance(atlas, str)]
    wrong = next((atlas for atlas in own if len(atlas) != 4), None)
    if wrong is not None:
        raise TypeError(f"An atlas of your own is (name, image, labels, space), not {wrong}.")
    ids = [atlas for atlas in atlases if isinstance(atlas, str)]
    return {"parcel_atlases": ids, "custom_parcellation": own}


def _words(options: Mapping[str, Any]) -> list[str]:
    """Write options as words; those that a record leaves out, of the machine, come last."""
    words = command_words(options)
    for name, flag in _RESOURCE_FLAGS.items():
        if options.get(name) is not None:
            words += [flag, str(options[name])]
    if options.get("memory_gb") is not None:
        words += ["--mem", f"{options['memory_gb']}G"]
    if options.get("stop_on_first_crash"):
        words.append("--stop-on-first-crash")
    return [*words, *["--verbose"] * int(options.get("verbose") or 0)]


def _parse(words: Sequence[str]) -> RunConfig:
    """Check the words here: the command would show all of its usage with a mistake."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parse_config(words)
    except SystemExit:
        raise ValidationError(_reason(said.getvalue())) from None


def _reason(printed: str) -> str:
    """Last line of what the command printed, without its name."""
    return printed.strip().rpartition("\n")[2].removeprefix("lacuna-nipype: ")


# --- the process ----------------------------------------------------------------------------


def _run_command(words: Sequence[str]) -> None:
    """Run the command, show what it prints, and raise its last line where it fails."""
    last = ""
    with ExitStack() as stack:
        # An interruption between the start and what ends it would leave the command behind.
        with held_back():
            process = stack.enter_context(_start(words))
            stack.callback(_stop, process)
        for line in process.stdout or ():
            # Not left to the process: a notebook shows what goes through sys.stdout only.
            sys.stdout.write(line)
            sys.stdout.flush()
            last = line.strip() or last
        code = process.wait()
    if code:
        _fail(code, _reason(last))


def _start(words: Sequence[str]) -> subprocess.Popen[str]:
    checkout = str(Path(lacuna_nipype.__file__).parents[1])
    paths = [checkout, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "lacuna_nipype", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        # The same package, wherever the caller found it.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"},
        # Its own group, so that an interruption reaches its workers too, and once.
        start_new_session=True,
    )


def _fail(code: int, reason: str) -> NoReturn:
    if code in _ENDINGS:
        raise _ENDINGS[code](reason)
    raise ProcessingError("run", reason or f"the command ended with code {code}.")


def _stop(process: subprocess.Popen[str]) -> None:
    """End the command, if it has not ended, as Ctrl-C does, then what is left of it."""
    if process.returncode is not None:
        return
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_PATIENCE_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
