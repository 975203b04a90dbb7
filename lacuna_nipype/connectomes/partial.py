"""Partial results of the correlation pass: small HDF5 files, one per connectome file."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype import __version__
from lacuna_nipype.connectomes.functional import ConnectomeFile, iter_subjects
from lacuna_nipype.connectomes.seeds import Seed
from lacuna_nipype.connectomes.series import blocks_ahead, reading_bytes
from lacuna_nipype.connectomes.store import TILE
from lacuna_nipype.connectomes.store_pass import (
    correlate_store,
    store_block_bytes,
    store_bytes_per_seed,
)
from lacuna_nipype.core.correlation import (
    Moments,
    add_subject,
    block_bytes,
    bytes_per_seed,
    merge_moments,
)
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import atomic_path, fingerprint


def seeds_digest(seeds: Sequence[Seed]) -> str:
    """Fingerprint of the seeds of a pass, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for seed in seeds:
        digest.update(len(seed.voxels).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(seed.voxels, dtype="<i8").tobytes())
    return digest.hexdigest()


def stored_partial(
    file: ConnectomeFile, seeds: Sequence[Seed], folder: Path, kind: str = "moments"
) -> Path:
    """Name the file in which a pass over a connectome file is kept for another run.

    Parameters
    ----------
    file : ConnectomeFile
    seeds : sequence of Seed
    folder : Path
        Where such files are.
    kind : str
        What the pass makes.

    Returns
    -------
    Path
        Named after the content of the file, the seeds in their order, and the version of this
        package; it need not exist.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (__version__, kind, fingerprint(file.path), file.mask_digest, seeds_digest(seeds)):
        digest.update(part.encode() + b"\0")
    return folder / f"{kind}-{digest.hexdigest()}.h5"


TAKEN = "taken.txt"
"""Name of the file in which a step notes what it has taken from other runs, or kept for them."""


def take_partial(stored: Path, target: Path) -> bool:
    """Put a partial result that was kept where one is to be made.

    Parameters
    ----------
    stored : Path
        From :func:`stored_partial`.
    target : Path

    Returns
    -------
    bool
        Whether there was one that can be read.
    """
    try:
        with h5py.File(stored, "r", locking=False) as handle:
            complete = "mask_digest" in handle.attrs
    except OSError:
        return False
    if complete:
        _link(stored, target)
    return complete


def keep_partial(made: Path, stored: Path) -> None:
    """Keep a partial result for another run.

    Parameters
    ----------
    made : Path
        It shares its content with what is kept where the file system allows that.
    stored : Path
        From :func:`stored_partial`.
    """
    _link(made, stored)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it to another file system; never half of it."""
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


# Python with what a pass imports, and the compiler of the store's kernels, which the series of
# Lacuna's layout do without.
INTERPRETER_BYTES, COMPILER_BYTES = 120e6, 120e6


def seeds_per_group(file: ConnectomeFile, memory_gb: float, n_threads: int = 1) -> int:
    """How many seeds fit into memory at once.

    Parameters
    ----------
    file : ConnectomeFile
    memory_gb : float
        Budget in GB (1e9 bytes) for the whole process.
    n_threads : int
        Threads of the pass.

    Returns
    -------
    int
        At least 1: a single seed runs whatever the budget says.
    """
    ahead = _blocks_ahead(file, memory_gb, n_threads)
    # One byte more: an amount in GB is not exact.
    left = memory_gb * 1e9 - _fixed_bytes(file, n_threads, ahead) + 1
    return max(1, int(left // _bytes_per_seed(file, n_threads)))


def pass_memory_gb(file: ConnectomeFile, n_seeds: int, n_threads: int = 1) -> float:
    """Memory in GB that a pass over a file takes with all seeds in one group.

    With less than this, fewer subjects are inflated ahead and seeds go in groups.
    """
    ahead = blocks_ahead(file, n_threads)
    fixed = _fixed_bytes(file, n_threads, ahead)
    return (fixed + n_seeds * _bytes_per_seed(file, n_threads)) / 1e9


def least_pass_memory_gb(file: ConnectomeFile, n_threads: int = 1) -> float:
    """Memory in GB below which a pass cannot stay: one seed, and no subject inflated ahead."""
    return (_fixed_bytes(file, n_threads, 0) + _bytes_per_seed(file, n_threads)) / 1e9


def _blocks_ahead(file: ConnectomeFile, memory_gb: float, n_threads: int) -> int:
    """Blocks of subjects to inflate ahead, using no more than half of the memory."""
    ahead = blocks_ahead(file, n_threads)
    while ahead and _fixed_bytes(file, n_threads, ahead) > memory_gb * 1e9 / 2:
        ahead -= 1
    return ahead


def _fixed_bytes(file: ConnectomeFile, n_threads: int, ahead: int) -> float:
    if file.precision is not None:
        return INTERPRETER_BYTES + COMPILER_BYTES + store_block_bytes(file, n_threads)
    correlating = n_threads * block_bytes(file.n_timepoints)
    return INTERPRETER_BYTES + reading_bytes(file, n_threads, ahead) + correlating


def _bytes_per_seed(file: ConnectomeFile, n_threads: int) -> int:
    if file.precision is not None:
        return store_bytes_per_seed(file, n_threads)
    return bytes_per_seed(file.n_voxels)


def write_partial(
    file: ConnectomeFile,
    seeds: Sequence[Seed],
    target: Path,
    *,
    memory_gb: float,
    n_threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Correlate all seeds with all subjects of one connectome file and store the moments.

    Parameters
    ----------
    file : ConnectomeFile
    seeds : sequence of Seed
    target : Path
        HDF5 file to write (atomically): ``mean`` and ``m2``, shape (n_seeds, n_voxels), float64;
        ``n_varying``, shape (n_voxels,), int32; ``seed_voxels`` and ``seed_voxels_outside``, shape
        (n_seeds,); ``seed_positions``, the seeds' voxels one seed after another; attributes
        n_subjects, mask_digest, seeds_digest.
    memory_gb : float
        Budget; when the seeds do not fit at once, the file is read once per group of them.
    n_threads : int
        Threads that may work at the same time.
    progress : callable, optional
        Called with (pieces done, pieces to do), groups counted in.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    ValidationError
        No seed was given.
    """
    if not seeds:
        raise ValidationError(f"No lesion was given to correlate with {file.path}.")
    group_size = min(len(seeds), seeds_per_group(file, memory_gb, n_threads))
    groups = [slice(i, i + group_size) for i in range(0, len(seeds), group_size)]
    pieces = -(-file.n_voxels // TILE) if file.precision else file.n_subjects
    total, done = len(groups) * pieces, 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    def correlate(voxels: Sequence[NDArray[np.intp]], advance: Callable[[int], None]) -> Moments:
        if file.precision is not None:
            return correlate_store(file, voxels, n_threads=n_threads, progress=advance)
        ahead = _blocks_ahead(file, memory_gb, n_threads)
        return _correlate_series(file, voxels, n_threads, ahead, advance)

    with atomic_path(target) as temporary, h5py.File(temporary, "w") as out:
        shape = (len(seeds), file.n_voxels)
        mean = out.create_dataset("mean", shape, "f8", track_times=False)
        m2 = out.create_dataset("m2", shape, "f8", track_times=False)
        for group in groups:
            voxels = [seed.voxels for seed in seeds[group]]
            moments = correlate(voxels, advance)
            mean[group], m2[group] = moments.mean, moments.m2
        out.create_dataset("n_varying", data=moments.n_varying, track_times=False)
        for key, numbers in (
            ("seed_voxels", [len(seed.voxels) for seed in seeds]),
            ("seed_voxels_outside", [seed.n_outside for seed in seeds]),
            ("seed_positions", np.concatenate([seed.voxels for seed in seeds])),
        ):
            out.create_dataset(key, data=np.array(numbers, dtype=np.int64), track_times=False)
        out.attrs["n_subjects"] = file.n_subjects
        out.attrs["mask_digest"] = file.mask_digest
        out.attrs["seeds_digest"] = seeds_digest(seeds)
    return target


def _correlate_series(
    file: ConnectomeFile,
    voxels: Sequence[NDArray[np.intp]],
    n_threads: int,
    ahead: int,
    advance: Callable[[int], None],
) -> Moments:
    """Correlate with the series of Lacuna's layout; one pool inflates and computes."""
    from threadpoolctl import threadpool_limits

    moments = Moments.zeros(len(voxels), file.n_voxels)
    with ThreadPoolExecutor(n_threads) as pool, threadpool_limits(limits=1):
        for series in iter_subjects(file, pool, ahead):
            add_subject(moments, series, voxels, pool.map)
            advance(1)
    return moments


def iter_merged(paths: Sequence[Path]) -> Iterator[Moments]:
    """Merge partial results seed by seed.

    Parameters
    ----------
    paths : sequence of Path
        Partial files of one pass. Their order changes results by float64 rounding only.

    Yields
    ------
    Moments
        Of one seed each, over all subjects: arrays of shape (1, n_voxels).

    Raises
    ------
    ValidationError
        The files come from different seeds or connectomes.
    """
    handles = [h5py.File(path, "r", locking=False) for path in paths]
    try:
        for key in ("mask_digest", "seeds_digest"):
            if len({handle.attrs[key] for handle in handles}) != 1:
                raise ValidationError(
                    f"Partial results {', '.join(map(str, paths))} differ in {key}: they do not "
                    "belong to one pass; remove the work folder and run again."
                )
        for seed in range(handles[0]["mean"].shape[0]):
            merged: Moments | None = None
            for handle in handles:
                part = Moments(
                    int(handle.attrs["n_subjects"]),
                    handle["mean"][seed : seed + 1],
                    handle["m2"][seed : seed + 1],
                    handle["n_varying"][:],
                )
                merged = part if merged is None else merge_moments(merged, part)
            if merged is not None:
                yield merged
    finally:
        for handle in handles:
            handle.close()
