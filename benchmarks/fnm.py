"""Time and memory of functional network mapping: our pass against the usual approach.

Run ``python benchmarks/fnm.py --data DIR``; see README.md in this folder. Data are made from a
seed and kept in DIR. Every measurement runs in a process of its own, rivals alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (91, 109, 91)
AFFINE = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
N_TIMES, REPETITION_TIME, BAND = 120, 3.0, (0.009, 0.08)
N_NETWORKS = 12
SUBJECTS_PER_FILE = 10
STORES = ("int16", "int8")
RIVALS = ("usual", "series", *STORES)
NAMES = {
    "usual": "usual approach, re-stated",
    "series": "ours, Lacuna's files",
    "int16": "ours, store int16",
    "int8": "ours, store int8",
}


# Data


def brain_voxels(n_voxels: int) -> np.ndarray:
    """The voxels nearest to the middle of the grid, in units of its extent: (3, n_voxels)."""
    place = np.indices(SHAPE).reshape(3, -1)
    extent = np.array(SHAPE)[:, np.newaxis] / 2
    distance = np.linalg.norm((place + 0.5 - extent) / extent, axis=0)
    return place[:, np.sort(np.argsort(distance, kind="stable")[:n_voxels])]


def networks(voxels: np.ndarray) -> np.ndarray:
    """Smooth loadings of voxels on networks: (N_NETWORKS, n_voxels), float32."""
    rng = np.random.default_rng(7)
    centres = voxels[:, rng.choice(voxels.shape[1], 2 * N_NETWORKS)].T
    squared = ((voxels.T[np.newaxis] - centres[:, np.newaxis]) ** 2).sum(axis=2)
    blobs = np.exp(-squared / (2 * 9.0**2)).reshape(2, N_NETWORKS, -1)
    return (1.5 * blobs.sum(axis=0)).astype(np.float32)


def make_subject(number: int, loadings: np.ndarray) -> np.ndarray:
    """One subject's series: networks and noise in the pass band, rank 50 of 120 time points."""
    import scipy.fft

    rng = np.random.default_rng([1, number])
    signals = rng.standard_normal((N_TIMES, N_NETWORKS), dtype=np.float32)
    series = rng.standard_normal((N_TIMES, loadings.shape[1]), dtype=np.float32)
    series += signals @ loadings
    spectrum = scipy.fft.rfft(series, axis=0)
    frequency = np.fft.rfftfreq(N_TIMES, REPETITION_TIME)
    spectrum[(frequency < BAND[0]) | (frequency > BAND[1])] = 0
    # Voxels differ in amplitude, as the mean raw series of a lesion has it.
    amplitude = np.exp(0.5 * np.random.default_rng(3).standard_normal(loadings.shape[1]))
    return scipy.fft.irfft(spectrum, n=N_TIMES, axis=0) * amplitude.astype(np.float32)


def lesions(voxels: np.ndarray, count: int) -> list[np.ndarray]:
    """Balls of 3 to 11 voxels radius (about 1 to 45 ml) as positions among the voxels."""
    rng = np.random.default_rng(11)
    out = []
    for _ in range(count):
        centre = voxels[:, rng.integers(voxels.shape[1])][:, np.newaxis]
        radius = rng.uniform(3, 11)
        out.append(np.flatnonzero(((voxels - centre) ** 2).sum(axis=0) <= radius**2))
    return out


def write_lacuna_file(path: Path, voxels: np.ndarray, subjects: range) -> None:
    """A file in Lacuna's layout: gzip level 4, one subject per chunk, no shuffle."""
    import zlib

    import h5py

    loadings = networks(voxels)

    def compressed(number: int) -> bytes:
        return zlib.compress(np.ascontiguousarray(make_subject(number, loadings)), 4)

    temporary = path.with_suffix(".part")
    with h5py.File(temporary, "w") as out, ThreadPoolExecutor(os.cpu_count()) as workers:
        shape = (len(subjects), N_TIMES, voxels.shape[1])
        series = out.create_dataset(
            "timeseries", shape, "f4", chunks=(1, *shape[1:]), compression="gzip"
        )
        for place, chunk in enumerate(workers.map(compressed, subjects)):
            series.id.write_direct_chunk((place, 0, 0), chunk)
        out["mask_indices"], out["mask_affine"] = voxels, AFFINE
        out.attrs["mask_shape"], out.attrs["space"] = SHAPE, "MNI152NLin6Asym"
    temporary.replace(path)


def write_store_file(path: Path, voxels: np.ndarray, n_subjects: int, kind: str) -> None:
    """A file of our store, from the same subjects."""
    from lacuna_nipype.connectomes.store import StoreSource, write_store
    from lacuna_nipype.core.spaces import Grid

    loadings = networks(voxels)
    source = StoreSource(
        Grid.make(SHAPE, AFFINE), voxels, N_TIMES, "MNI152NLin6Asym", ("synthetic",)
    )
    write_store(path, source, (make_subject(i, loadings) for i in range(n_subjects)), kind=kind)


def data_files(folder: Path, n_voxels: int, n_subjects: int, rival: str) -> list[Path]:
    """Where a rival's files are, made or not."""
    if rival in STORES:
        return [folder / f"{rival}_{n_voxels}_{n_subjects}.h5"]
    starts = range(0, n_subjects, SUBJECTS_PER_FILE)
    return [folder / f"lacuna_{n_voxels}_{start:04d}.h5" for start in starts]


def make_data(folder: Path, n_voxels: int, counts: list[int], rivals: list[str]) -> None:
    """Write what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    voxels = brain_voxels(n_voxels)
    for count in counts:
        for rival in rivals:
            for number, path in enumerate(data_files(folder, n_voxels, count, rival)):
                if path.exists():
                    continue
                print(f"making {path.name}", file=sys.stderr, flush=True)
                if rival in STORES:
                    write_store_file(path, voxels, count, rival)
                else:
                    start = number * SUBJECTS_PER_FILE
                    write_lacuna_file(path, voxels, range(start, start + SUBJECTS_PER_FILE))


# Rivals: each takes files and lesions and makes maps of z and t, (n_lesions, n_voxels)


def run_usual(paths: list[Path], seeds: list[np.ndarray], threads: int) -> tuple[Any, Any]:
    """A plain re-statement of the usual approach, written for this benchmark.

    A file is inflated as a whole by h5py, standardised, correlated with einsum per lesion,
    transformed by np.arctanh, and the z of all subjects are stacked before the mean.
    """
    import h5py

    stacked: list[list[np.ndarray]] = [[] for _ in seeds]
    for path in paths:
        with h5py.File(path, "r") as handle:
            series = handle["timeseries"][:]
        means = [series[:, :, seed].mean(axis=2) for seed in seeds]
        series -= series.mean(axis=1, keepdims=True)
        series /= np.sqrt(np.einsum("stv,stv->sv", series, series))[:, np.newaxis]
        for mean, rows in zip(means, stacked, strict=True):
            centred = mean - mean.mean(axis=1, keepdims=True)
            centred /= np.linalg.norm(centred, axis=1, keepdims=True)
            r = np.einsum("st,stv->sv", centred, series)
            rows.append(np.arctanh(np.clip(r, -1 + 1e-7, 1 - 1e-7)))
    z, t = [], []
    for rows in stacked:
        subjects = np.concatenate(rows)
        z.append(subjects.mean(axis=0))
        with np.errstate(divide="ignore", invalid="ignore"):
            t.append(z[-1] / (subjects.std(axis=0, ddof=1) / np.sqrt(len(subjects))))
    return np.array(z), np.array(t)


def run_ours(paths: list[Path], seeds: list[np.ndarray], threads: int) -> tuple[Any, Any]:
    """The pass of the package: partial results per file on disk, merged, maps."""
    import tempfile

    from threadpoolctl import threadpool_limits

    from lacuna_nipype.connectomes.functional import read_connectome_file
    from lacuna_nipype.connectomes.partial import iter_merged, write_partial
    from lacuna_nipype.connectomes.seeds import make_seed
    from lacuna_nipype.core.correlation import correlation_maps

    voxels = brain_voxels(read_connectome_file(paths[0]).n_voxels)
    z, t = [], []
    with tempfile.TemporaryDirectory(dir=paths[0].parent) as scratch, threadpool_limits(1):
        partials = []
        for number, path in enumerate(paths):
            file = read_connectome_file(path)
            own = []
            for seed in seeds:
                mask = np.zeros(SHAPE, dtype=bool)
                mask[tuple(voxels[:, seed])] = True
                own.append(make_seed(mask, file))
            target = Path(scratch) / f"{number}.h5"
            partials.append(write_partial(file, own, target, memory_gb=4.0, n_threads=threads))
        for moments in iter_merged(partials):
            maps = correlation_maps(moments)
            z.append(maps.z[0].astype(np.float32))
            t.append(maps.t[0].astype(np.float32))
        place = np.full(SHAPE, -1)
        place[tuple(file.voxels)] = np.arange(file.n_voxels)
        back = place[tuple(voxels)]
    return np.array(z)[:, back], np.array(t)[:, back]


def worker(job: dict[str, Any]) -> None:
    """One measurement: prints its seconds and, for comparison, its maps' checksum values."""
    paths = [Path(path) for path in job["paths"]]
    voxels = brain_voxels(job["voxels"])
    seeds = lesions(voxels, job["lesions"])
    run: Callable[..., tuple[Any, Any]] = run_usual if job["rival"] == "usual" else run_ours
    imports: dict[str, Callable[[], object]] = {"usual": lambda: __import__("h5py")}
    start = time.perf_counter()
    imports.get(job["rival"], _import_ours)()
    loaded = time.perf_counter()
    used = time.process_time()
    z, t = run(paths, seeds, job["threads"])
    done, used = time.perf_counter(), time.process_time() - used
    if job.get("keep"):
        np.savez(job["keep"], z=z, t=t)
    print(json.dumps({"seconds": done - loaded, "import": loaded - start, "processor": used}))


def _import_ours() -> None:
    """Imports and compiled kernels (from numba's cache, once it is filled)."""
    import h5py  # noqa: F401
    import threadpoolctl  # noqa: F401

    import lacuna_nipype.connectomes.partial  # noqa: F401
    from lacuna_nipype.core import kernels

    kernels.fisher_z(np.zeros(8, dtype=np.float32))


# Measuring


def drop_cache(paths: list[Path]) -> None:
    """Ask the kernel to forget the files' pages."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read_all(paths: list[Path]) -> float:
    """Seconds to read the files with nothing else, by as many threads as our pass reads with."""
    piece, n_threads = 8_000_000, (os.cpu_count() or 1) + 1

    def read(path: Path, starts: range) -> None:
        buffer = bytearray(piece)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for start in starts:
                os.preadv(descriptor, [buffer], start)
        finally:
            os.close(descriptor)

    start = time.perf_counter()
    with ThreadPoolExecutor(n_threads) as workers:
        for path in paths:
            size = path.stat().st_size
            offsets = [range(i * piece, size, n_threads * piece) for i in range(n_threads)]
            list(workers.map(read, [path] * n_threads, offsets))
    return time.perf_counter() - start


def measure(job: dict[str, Any], cold: bool) -> dict[str, float]:
    """Run one job in a fresh process; seconds, and its peak memory in GB."""
    paths = [Path(path) for path in job["paths"]]
    if cold:
        drop_cache(paths)
    else:
        read_all(paths)
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        text = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{job['rival']} ended with code {process.returncode}")
    return {**json.loads(text), "memory": usage.ru_maxrss * 1024 / 1e9}


def bounds(paths: list[Path], n_subjects: int, n_voxels: int) -> dict[str, float]:
    """Seconds to read a rival's files cold and from memory."""
    drop_cache(paths)
    cold = read_all(paths)
    return {
        "bytes": float(sum(path.stat().st_size for path in paths)),
        "disk": cold,
        "memory": read_all(paths),
        "inflate": n_subjects * _inflate_seconds(n_voxels),
    }


def _inflate_seconds(n_voxels: int) -> float:
    """Seconds to inflate one subject on one core."""
    import zlib

    raw = np.ascontiguousarray(make_subject(0, networks(brain_voxels(n_voxels))))
    packed = zlib.compress(raw, 1)
    start = time.perf_counter()
    zlib.decompress(packed, bufsize=raw.nbytes)
    return time.perf_counter() - start


Key = tuple[int, int, bool, str]


def run_all(arguments: argparse.Namespace) -> dict[Key, list[dict[str, float]]]:
    """All measurements; rivals alternate within each repetition."""
    results: dict[Key, list[dict[str, float]]] = {}
    for n_subjects in arguments.subjects:
        for repetition in range(arguments.repeat):
            for count in arguments.lesions:
                for cold in (True, False):
                    for rival in arguments.rivals:
                        slow = rival in ("usual", "series") and n_subjects >= 100
                        if slow and (repetition or not cold):
                            continue
                        if rival == "usual" and n_subjects * count > 5000:
                            continue
                        job = {
                            "rival": rival,
                            "voxels": arguments.voxels,
                            "lesions": count,
                            "threads": arguments.threads,
                            "paths": [
                                str(path)
                                for path in data_files(
                                    arguments.data, arguments.voxels, n_subjects, rival
                                )
                            ],
                        }
                        found = measure(job, cold)
                        results.setdefault((n_subjects, count, cold, rival), []).append(found)
                        print(n_subjects, count, cold, rival, found, file=sys.stderr, flush=True)
    return results


def _median(found: list[dict[str, float]], key: str) -> float:
    return statistics.median(one[key] for one in found)


def table(
    results: dict[Key, list[dict[str, float]]], n_subjects: int, cold: bool
) -> Iterator[str]:
    """Lines of a Markdown table: seconds (median), ratio to the usual approach, memory."""
    rivals = [r for r in RIVALS if any(k[0] == n_subjects and k[3] == r for k in results)]
    counts = sorted({k[1] for k in results if k[0] == n_subjects})
    yield "| lesions | " + " | ".join(NAMES[rival] for rival in rivals) + " |"
    yield "|---" * (len(rivals) + 1) + "|"
    for count in counts:
        # The usual approach inflates: that it was measured cold only makes little difference.
        usual = results.get((n_subjects, count, cold, "usual")) or results.get(
            (n_subjects, count, True, "usual")
        )
        cells = []
        for rival in rivals:
            found = results.get((n_subjects, count, cold, rival))
            if not found:
                cells.append("-")
                continue
            seconds = _median(found, "seconds")
            ratio = f", {_median(usual, 'seconds') / seconds:.1f}x" if usual else ""
            processor, memory = _median(found, "processor"), _median(found, "memory")
            cells.append(f"{seconds:.2f} s{ratio} ({processor:.2f} s, {memory:.2f} GB)")
        yield f"| {count} | " + " | ".join(cells) + " |"


def report(results: dict[Key, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    """Print everything as Markdown."""
    print(
        f"V = {arguments.voxels}, T = {N_TIMES}, {arguments.threads} threads, medians of up to "
        f"{arguments.repeat} runs; seconds from opened files to maps of z and t; x: times as "
        "fast as the usual approach; in brackets processor time of all threads (which says more "
        "where others use the machine) and peak memory of the process."
    )
    for n_subjects in arguments.subjects:
        for cold in (True, False):
            print(f"\n## {n_subjects} subjects, {'cold' if cold else 'warm'}\n")
            print("\n".join(table(results, n_subjects, cold)))
        _report_bounds(results, arguments, n_subjects)
    print(
        "\nCold: the files' pages were dropped with posix_fadvise(DONTNEED); caches of a virtual "
        "disk's host stay. The usual approach and Lacuna's files with 100 subjects or more were "
        "run once, cold. Not shown: real data (smooth in space, other ranks), network file "
        "systems, other processors, the command's start-up (about 1 s), resampling and writing "
        "of images."
    )


def _report_bounds(
    results: dict[Key, list[dict[str, float]]], arguments: argparse.Namespace, n_subjects: int
) -> None:
    columns = ("", "bytes", "read cold", "read warm", "inflate, one core", "one more lesion")
    print(f"\n| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|")
    for rival in arguments.rivals:
        paths = data_files(arguments.data, arguments.voxels, n_subjects, rival)
        bound = bounds(paths, n_subjects, arguments.voxels)
        counts = sorted(
            k[1] for k in results if k[0] == n_subjects and k[3] == rival and k[2] is True
        )
        slope = "-"
        if len(counts) > 1:
            low, high = (
                _median(results[(n_subjects, count, True, rival)], "processor")
                for count in (counts[0], counts[-1])
            )
            each = (high - low) / (counts[-1] - counts[0]) / n_subjects / arguments.voxels
            slope = f"{each * 1e9:.2f} ns of processor per (voxel, subject)"
        inflate = "-" if rival in STORES else f"{bound['inflate']:.1f} s"
        print(
            f"| {NAMES[rival]} | {bound['bytes'] / 1e9:.2f} GB | {bound['disk']:.2f} s "
            f"({bound['bytes'] / bound['disk'] / 1e9:.1f} GB/s) | {bound['memory']:.2f} s | "
            f"{inflate} | {slope} |"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder that keeps the data between runs")
    parser.add_argument("--voxels", type=int, default=235_375, help="fewer for a quick look")
    parser.add_argument("--subjects", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--large", action="store_true", help="1000 subjects too (150 GB)")
    parser.add_argument("--lesions", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only-make-data", action="store_true")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    if arguments.data is None:
        parser.error("--data is needed")
    if arguments.large:
        arguments.subjects.append(1000)
    make_data(arguments.data, arguments.voxels, arguments.subjects, arguments.rivals)
    if not arguments.only_make_data:
        report(run_all(arguments), arguments)


if __name__ == "__main__":
    main()
