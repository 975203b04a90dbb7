"""Writing many files of a connectome: in parallel, resumable, all or nothing for each file.

A file carries the recipe it was made by (sources with fingerprints, and all settings), so that a
second run keeps what is finished. Files are written in a scratch folder inside the target folder
and moved into place; the folder goes away however the run ends, and what a killed run left behind
is removed by the next one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.functional import SUFFIXES
from lacuna_nipype.connectomes.hdf5 import DAMAGE
from lacuna_nipype.connectomes.store import TILE
from lacuna_nipype.core.compression import compress_subject
from lacuna_nipype.core.exceptions import LacunaError, ValidationError
from lacuna_nipype.core.files import fingerprint, lock_file, parse_json
from lacuna_nipype.core.processes import forkserver

RECIPE = "recipe"
DIGESTS = "subject_digests"
_SCRATCH = ".unfinished"
_SAMPLED_VOXELS = 16384
# A process at work holds about this many copies of a subject's series in float64.
_COPIES = 6
_PROCESS_BYTES = 250e6
_POLL_SECONDS = 0.2
_HEADER_BYTES = 16384


class IncompleteError(LacunaError):
    """Some files could not be written; those that are finished stay."""


class IngestTask(Protocol):
    """One file to write; must be picklable."""

    @property
    def target(self) -> Path:
        """Where the file goes."""

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides what is in the file, JSON-safe."""

    @property
    def subject_names(self) -> tuple[str, ...]:
        """How messages name the subjects of the file, in order."""

    @property
    def estimated_bytes(self) -> int:
        """Size that the file will have, roughly."""

    @property
    def subject_bytes(self) -> int:
        """Size of one subject's series in float64."""

    def write(self, path: Path, advance: Callable[[], None]) -> list[str]:
        """Write the file, call ``advance`` after each subject, give the subjects' digests."""


def describe_source(path: Path, name: str | None = None) -> dict[str, Any]:
    """Name, size and fingerprint of a source file, for a recipe."""
    return {
        "name": name or path.name,
        "bytes": path.stat().st_size,
        "fingerprint": fingerprint(path),
    }


def subject_digest(series: NDArray[np.floating[Any]]) -> str:
    """Fingerprint of a subject's series, by which one that occurs twice is found.

    Parameters
    ----------
    series : array, shape (n_timepoints, n_voxels)

    Returns
    -------
    str
        Empty for a subject without any series that varies: those are alike without being one.
    """
    if not _any_varies(series):
        return ""
    values = np.ascontiguousarray(series, dtype="<f4")
    return hashlib.blake2b(values.data, digest_size=16).hexdigest()


def _any_varies(series: NDArray[np.floating[Any]]) -> bool:
    for start in range(0, series.shape[1], TILE):
        block = series[:, start : start + TILE]
        if np.any((block != block[0]).any(axis=0) & np.isfinite(block).all(axis=0)):
            return True
    return False


class DuplicateCheck:
    """Finds a subject that occurs twice."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def pairs(self, names: Iterable[str], digests: Iterable[str]) -> list[tuple[str, str]]:
        """Take note of subjects; give those already seen, each with its first occurrence."""
        found = []
        for name, digest in zip(names, digests, strict=True):
            if digest and digest in self._seen:
                found.append((self._seen[digest], name))
            elif digest:
                self._seen[digest] = name
        return found

    def refuse(self, names: Iterable[str], digests: Iterable[str]) -> None:
        """Take note of subjects; the first that was seen before is an error."""
        for first, second in self.pairs(names, digests):
            raise ValidationError(
                f"{second} and {first} hold identical series: one subject counted twice; "
                "remove one of them."
            )


def sampled_rank(series: NDArray[np.floating[Any]]) -> int:
    """Coefficients per voxel that a store needs for a subject, from a sample of its voxels."""
    n_voxels = series.shape[1]
    step = max(1, n_voxels // _SAMPLED_VOXELS)
    return compress_subject(series[:, ::step]).rank


def store_bytes(n_subjects: int, n_voxels: int, rank: int, kind: str) -> int:
    """Size of a store file."""
    padded = -(-n_voxels // TILE) * TILE
    per_voxel = rank * np.dtype(kind).itemsize + 8
    return n_subjects * padded * per_voxel + 16 * n_voxels + _HEADER_BYTES


def run_tasks(
    tasks: Sequence[IngestTask],
    *,
    n_procs: int = 1,
    memory_gb: float | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write all files of a connectome into one folder.

    Parameters
    ----------
    tasks : sequence of IngestTask
        With targets in one folder.
    n_procs : int
        Processors to use: that many files at a time; what is left goes to linear algebra.
    memory_gb : float, optional
        Fewer files at a time where they would take more.
    overwrite : bool
        Replace files of other content.
    progress : callable, optional
        Called with (subjects done, subjects in all).

    Returns
    -------
    list of Path
        The targets. Files that are there already, made by the same recipe, are kept.

    Raises
    ------
    ValidationError
        The folder holds other files, has too little space or is being written to; a subject
        occurs twice; or no file could be made and the input is to blame.
    IncompleteError
        Some files could not be written.
    """
    folder = tasks[0].target.parent
    todo = _tasks_to_do(tasks, folder, overwrite)
    duplicates = DuplicateCheck()
    for task in tasks:
        if task not in todo:
            duplicates.refuse(task.subject_names, _recorded_digests(task.target))
    if not todo:
        return [task.target for task in tasks]
    _check_space(folder, todo)
    total = sum(len(task.subject_names) for task in tasks)
    kept = total - sum(len(task.subject_names) for task in todo)

    def report(done: int) -> None:
        if progress is not None:
            progress(kept + done, total)

    workers = _worker_count(todo, n_procs, memory_gb)
    with _scratch_folder(folder) as scratch:
        run = _run_here if workers == 1 else _run_in_processes
        failures: list[tuple[Path, Exception]] = []
        with closing(run(todo, scratch, workers, n_procs, report)) as outcomes:
            for task, outcome in outcomes:
                if isinstance(outcome, Exception):
                    failures.append((task.target, outcome))
                    if _is_disk_full(outcome) or isinstance(outcome, BrokenProcessPool):
                        break
                    continue
                duplicates.refuse(task.subject_names, outcome)
                os.replace(scratch / task.target.name, task.target)
    if failures:
        _raise_failure(failures, tasks)
    return [task.target for task in tasks]


def _tasks_to_do(tasks: Sequence[IngestTask], folder: Path, overwrite: bool) -> list[IngestTask]:
    """Leave out what is finished; refuse to mix with, or to replace, anything else."""
    names = [task.target.name for task in tasks]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValidationError(f"Two source files would both become {twice}; rename one of them.")
    if folder.exists() and not folder.is_dir():
        raise ValidationError(f"{folder} is a file; give a folder to write to.")
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            hidden = path.name.startswith(".")
            if path.suffix.lower() in SUFFIXES and not hidden and path.name not in names:
                raise ValidationError(
                    f"{path} is not part of this connectome, and all HDF5 files of a folder are "
                    "taken as one; choose another folder."
                )
    todo = []
    for task in tasks:
        if not task.target.exists():
            todo.append(task)
        elif _recorded_recipe(task.target) != task.recipe:
            if not overwrite:
                raise ValidationError(
                    f"{task.target} is there already and was made from other data or with other "
                    "settings; choose another folder, or add --overwrite to replace it."
                )
            todo.append(task)
    return todo


def _recorded_recipe(path: Path) -> Any:
    try:
        with h5py.File(path, "r", locking=False) as handle:
            return parse_json(str(handle.attrs.get(RECIPE, "null")))
    except DAMAGE:
        return None


def _recorded_digests(path: Path) -> list[str]:
    try:
        with h5py.File(path, "r", locking=False) as handle:
            return [digest.decode("ascii") for digest in handle[DIGESTS][()]]
    except DAMAGE as error:
        raise ValidationError(f"{path} is damaged; remove it and run again.") from error


def _check_space(folder: Path, todo: Sequence[IngestTask]) -> None:
    sizes = [task.estimated_bytes for task in todo]
    # The largest file exists twice for a moment.
    needed = sum(sizes) + max(sizes)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ValidationError(
            f"{folder} needs about {needed / 1e9:.3g} GB for the connectome, but "
            f"{free / 1e9:.3g} GB are free there; free some space or choose another folder."
        )


def _worker_count(todo: Sequence[IngestTask], n_procs: int, memory_gb: float | None) -> int:
    workers = min(n_procs, len(todo))
    if memory_gb is not None:
        each = _PROCESS_BYTES + _COPIES * max(task.subject_bytes for task in todo)
        workers = min(workers, int(memory_gb * 1e9 // each))
    return max(1, workers)


@contextmanager
def _scratch_folder(folder: Path) -> Iterator[Path]:
    """Give a folder for unfinished files that only this run uses, and remove it."""
    scratch = folder / _SCRATCH
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / "lock").open("w") as lock:
        if not lock_file(lock, wait=False):
            raise ValidationError(
                f"Another run is writing to {folder} at this moment; wait for it to end."
            )
        for path in scratch.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _write_file(
    task: IngestTask, scratch: Path, threads: int, advance: Callable[[], None]
) -> list[str]:
    from threadpoolctl import threadpool_limits

    path = scratch / task.target.name
    with threadpool_limits(threads):
        digests = task.write(path, advance)
    with h5py.File(path, "r+") as handle:
        handle.attrs[RECIPE] = json.dumps(task.recipe)
        values = np.array(digests, dtype="S32")
        handle.create_dataset(DIGESTS, data=values, track_times=False)
    return digests


_Outcome = list[str] | Exception


def _run_here(
    todo: Sequence[IngestTask],
    scratch: Path,
    workers: int,
    n_procs: int,
    report: Callable[[int], None],
) -> Generator[tuple[IngestTask, _Outcome], None, None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        report(done)

    for task in todo:
        try:
            outcome: _Outcome = _write_file(task, scratch, n_procs, advance)
        except (LacunaError, OSError, MemoryError) as error:
            outcome = error
        yield task, outcome


# What a worker process shares with the one that started it.
_shared: dict[str, Any] = {}


def _start_worker(counter: Any, cancelled: Any) -> None:
    # Ctrl-C reaches the whole group of processes; the one that started it decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _shared.update(counter=counter, cancelled=cancelled)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave at once when the parent was killed, instead of waiting for work for ever."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


class _CancelledError(Exception):
    """The run was interrupted."""


def _advance_shared() -> None:
    with _shared["counter"].get_lock():
        _shared["counter"].value += 1
    if _shared["cancelled"].is_set():
        raise _CancelledError


def _work(task: IngestTask, scratch: Path, threads: int) -> list[str]:
    return _write_file(task, scratch, threads, _advance_shared)


def _run_in_processes(
    todo: Sequence[IngestTask],
    scratch: Path,
    workers: int,
    n_procs: int,
    report: Callable[[int], None],
) -> Generator[tuple[IngestTask, _Outcome], None, None]:
    context = forkserver()
    counter, cancelled = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(counter, cancelled)
    )
    try:
        threads = max(1, n_procs // workers)
        futures: dict[Future[list[str]], IngestTask] = {
            pool.submit(_work, task, scratch, threads): task for task in todo
        }
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
            report(counter.value)
            for future in finished:
                try:
                    outcome: _Outcome = future.result()
                except (LacunaError, OSError, MemoryError, BrokenProcessPool) as error:
                    outcome = error
                yield futures[future], outcome
    finally:
        # Workers notice after the subject they are at.
        cancelled.set()
        pool.shutdown(cancel_futures=True)


def _is_disk_full(error: Exception) -> bool:
    # HDF5 says so in words.
    return isinstance(error, OSError) and (
        error.errno in (errno.ENOSPC, errno.EDQUOT)
        or "no space left" in str(error).lower()
        or "quota exceeded" in str(error).lower()
    )


def _raise_failure(
    failures: Sequence[tuple[Path, Exception]], tasks: Sequence[IngestTask]
) -> None:
    done = sum(_recorded_recipe(task.target) == task.recipe for task in tasks)
    target, error = failures[-1]
    kept = f"{done} of {len(tasks)} files are finished and kept in {target.parent}"
    if _is_disk_full(error):
        raise IncompleteError(
            f"The disk that holds {target.parent} is full; {kept}: free some space and run the "
            "same command again."
        ) from error
    if isinstance(error, BrokenProcessPool):
        raise IncompleteError(
            f"A worker process was killed, most likely for want of memory; {kept}: run the same "
            "command again with fewer processes (--nprocs)."
        ) from error
    target, error = failures[0]
    if done == 0 and isinstance(error, ValidationError):
        raise error
    raise IncompleteError(
        f"{len(failures)} of {len(tasks)} files failed, {target.name} first "
        f"({str(error).rstrip('.') or type(error).__name__}); {kept}."
    ) from error
