"""Time and memory of structural network mapping: our index against MRtrix3's commands.

Run ``python benchmarks/snm.py --data DIR``; see README.md in this folder. A tractogram is made
from a seed and kept in DIR. Every measurement runs in a process of its own, rivals alternate, and
every result is compared bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

# 1 mm images as FSL has them: the first axis runs from right to left.
SHAPE = (182, 218, 182)
AFFINE = np.array([[-1.0, 0, 0, 90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]])
SPACE, RESOLUTION = "MNI152NLin6Asym", 2.0
STEP = 1.0
# An ellipsoid in the place of the brain, mm; depths are shares of its radii.
CENTRE, RADII = np.array([0.0, -18.0, 16.0]), np.array([68.0, 86.0, 60.0])
SULCUS, CORTEX = 0.15, 0.2
SHARES = (0.70, 0.22, 0.08)  # association, callosal, corticospinal
N_DENSE = 96
BATCH = 20_000
MOST_POINTS = 200  # room per streamline, on average of a batch
PLACES = ((-28, -8, 20), (30, -30, 24), (-42, 16, 10), (9, -25, 26), (-18, -58, 14))
FLOORS = {
    "map": "150x in memory",
    "matrices": "1000x in memory",
    "build": "at most 1x of one tckmap",
    "size": "at most a third of the .tck",
    "memory": "build under 2 GB",
}
Found = dict[str, Any]
QUANTITIES = ("full", "lesion", "intact", "percent")


# Data


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _cortex(directions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Points below the surface in some directions, (n, 3)."""
    depth = rng.uniform(0, SULCUS, (len(directions), 1))
    return CENTRE + RADII * directions * (1 - depth)


def _on_side(directions: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Directions mirrored to one hemisphere, a little off the midline."""
    x = side * np.maximum(np.abs(directions[:, 0]), 0.06)
    return np.column_stack([x, directions[:, 1:]])


def routes(n: int, rng: np.random.Generator) -> np.ndarray:
    """Control points of two cubic Bezier pieces per streamline, (n, 2, 4, 3)."""
    kind = rng.choice(3, n, p=SHARES)[:, np.newaxis]
    side = rng.choice([-1.0, 1.0], n)
    noise = rng.standard_normal((n, 3))
    begin = _on_side(_unit(rng.standard_normal((n, 3))), side)
    motor = _on_side(_unit(np.array([0.5, -0.05, 0.9]) + 0.15 * rng.standard_normal((n, 3))), side)
    begin = np.where(kind == 2, motor, begin)
    spread = np.exp(rng.uniform(np.log(0.25), np.log(2.0), (n, 1)))
    finish = _on_side(_unit(begin + spread * rng.standard_normal((n, 3))), side)
    mirrored = begin * [-1, 1, 1] + 0.2 * rng.standard_normal((n, 3))
    finish = np.where(kind == 1, _on_side(_unit(mirrored), -side), finish)
    start, end = _cortex(begin, rng), _cortex(finish, rng)

    def by_side(x: float, y: float, z: float) -> np.ndarray:
        return np.column_stack([side * x, np.full(n, y), np.full(n, z)])

    end = np.where(kind == 2, by_side(6, -26, -40) + 1.5 * noise, end)
    # Everything bends towards the middle of its hemisphere; long ones pass near to it.
    core = by_side(25, -18, 20)
    leave = start + 0.45 * (core - start)
    core_of_end = np.where(kind == 1, core * [-1, 1, 1], core)
    arrive = np.where(
        kind == 2, by_side(10, -20, -16) + 1.5 * noise, end + 0.45 * (core_of_end - end)
    )
    middle, span = (leave + arrive) / 2, arrive - leave
    pull = 0.8 * np.clip(np.linalg.norm(span, axis=1, keepdims=True) / 80, 0, 1)
    way = middle + pull * (core - middle) + 3 * noise
    y = np.clip(middle[:, 1], -40, 28)
    callosum = np.column_stack([np.zeros(n), y, 26 - ((y + 6) / 34) ** 2 * 10]) + 2 * noise
    way = np.where(
        kind == 1, callosum, np.where(kind == 2, by_side(22, -16, 8) + 1.5 * noise, way)
    )
    across = np.column_stack([-14 * side, np.zeros(n), np.zeros(n)])
    tangent = np.where(kind == 1, across, np.where(kind == 2, by_side(-3, -2, -12), span / 4))
    first = np.stack([start, leave, way - tangent, way], axis=1)
    second = np.stack([way, way + tangent, arrive, end], axis=1)
    return np.stack([first, second], axis=1)


def _cut(
    control: Any, jitter: Any, weights: Any, sines: Any, step: float, points: Any
) -> int:  # compiled
    """Cut curves into equal steps; separators between streamlines; the number of rows."""
    n_dense = weights.shape[0]
    one, two = np.empty(3), np.empty(3)
    row = 0
    for i in range(control.shape[0]):
        need = 0.0
        for d in range(2 * n_dense):
            piece, at = d // n_dense, d % n_dense
            length = 0.0
            for axis in range(3):
                place = 0.0
                for k in range(4):
                    place += weights[at, k] * control[i, piece, k, axis]
                for k in range(3):
                    place += sines[d, k] * jitter[i, k, axis]
                two[axis] = place
                length += (place - one[axis]) ** 2
            length = np.sqrt(length) if d else 0.0
            gone = 0.0
            while need <= length - gone:
                if row + 2 > points.shape[0]:
                    return -1
                gone += need
                share = gone / length if length else 1.0
                for axis in range(3):
                    points[row, axis] = one[axis] + share * (two[axis] - one[axis])
                row += 1
                need = step
            need -= length - gone
            one[:] = two
        points[row] = np.nan
        row += 1
    return row


def make_batch(number: int, n: int, cut: Callable[..., int]) -> bytes:
    """Points of some streamlines as a .tck file has them."""
    rng = np.random.default_rng([17, number])
    t = np.linspace(0, 1, N_DENSE)[:, np.newaxis]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    waves = np.arange(1, 4)
    sines = np.sin(np.pi * waves * np.linspace(0, 1, 2 * N_DENSE)[:, np.newaxis])
    jitter = 1.2 / waves[:, np.newaxis] * rng.standard_normal((n, 3, 3))
    points = np.empty((n * MOST_POINTS, 3), dtype="<f4")
    rows = cut(routes(n, rng), jitter, weights, sines, STEP, points)
    if rows < 0:
        raise SystemExit("A batch holds more points than there is room for.")
    return points[:rows].tobytes()


def write_tractogram(path: Path, n_streamlines: int) -> None:
    """A .tck file, batch after batch."""
    import numba

    cut = numba.njit(nogil=True)(_cut)
    text = f"mrtrix tracks\nstep_size: {STEP}\ndatatype: Float32LE\ncount: {n_streamlines}\n"
    temporary, offset = path.with_suffix(".part"), 256
    sizes = [min(BATCH, n_streamlines - i) for i in range(0, n_streamlines, BATCH)]
    n_threads = os.cpu_count() or 1
    waiting: deque[Future[bytes]] = deque()
    with temporary.open("wb") as out, ThreadPoolExecutor(n_threads) as workers:
        out.write(f"{text}file: . {offset}\nEND\n".encode().ljust(offset, b"\0"))
        for number, size in enumerate(sizes):
            waiting.append(workers.submit(make_batch, number, size, cut))
            if len(waiting) > n_threads:
                out.write(waiting.popleft().result())
        while waiting:
            out.write(waiting.popleft().result())
        out.write(np.full(3, np.inf, "<f4").tobytes())
    temporary.replace(path)


def _world() -> np.ndarray:
    """Centres of the voxels of the 1 mm images, mm: (3, *SHAPE)."""
    indices = np.indices(SHAPE, dtype=np.float32)
    flat = AFFINE[:3, :3] @ indices.reshape(3, -1) + AFFINE[:3, 3:]
    return flat.reshape(3, *SHAPE)


def _save(path: Path, data: np.ndarray, dtype: Any) -> None:
    from lacuna_nipype.core.images import save_image

    save_image(path, data, AFFINE, dtype)


def write_labels(path: Path, n_parcels: int) -> None:
    """Even patches of a cortical ribbon, 1 mm; left hemisphere first."""
    from scipy.spatial import cKDTree

    place = (_world() - CENTRE.reshape(3, 1, 1, 1)) / RADII.reshape(3, 1, 1, 1)
    radius = np.linalg.norm(place, axis=0)
    ribbon = (radius > 1 - CORTEX) & (radius <= 1.0)
    half = n_parcels // 2
    x = (np.arange(half) + 0.5) / half
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(half)
    rim = np.sqrt(1 - x**2)
    seeds = np.column_stack([x, rim * np.cos(angle), rim * np.sin(angle)])
    directions = _unit(place[:, ribbon].T)
    right = directions[:, 0] > 0
    _, nearest = cKDTree(seeds).query(
        np.abs(directions[:, :1]) * [1, 0, 0] + directions * [0, 1, 1]
    )
    labels = np.zeros(SHAPE, dtype=np.int32)
    labels[ribbon] = nearest + 1 + half * right
    _save(path, labels, np.int32)


def write_lesion(path: Path, n_voxels: int, number: int) -> None:
    """A ball with an uneven surface, n_voxels large."""
    from scipy.ndimage import gaussian_filter

    place = np.array(PLACES[number % len(PLACES)], dtype=float).reshape(3, 1, 1, 1)
    rng = np.random.default_rng([23, number, n_voxels])
    noise = gaussian_filter(rng.standard_normal(SHAPE, dtype=np.float32), 3.0)
    radius = (3 * n_voxels / (4 * np.pi)) ** (1 / 3)
    distance = np.linalg.norm(_world() - place, axis=0) / radius + 0.15 * noise / noise.std()
    inside = np.zeros(SHAPE, dtype=np.uint8)
    inside.ravel()[np.argpartition(distance.ravel(), n_voxels)[:n_voxels]] = 1
    _save(path, inside, np.uint8)


def folder_of(data: Path, n_streamlines: int) -> Path:
    return data / f"streamlines_{n_streamlines}"


def lesion_path(data: Path, n_voxels: int, number: int) -> Path:
    return data / f"lesion_{n_voxels}_{number % len(PLACES)}.nii.gz"


def labels_path(data: Path, n_parcels: int) -> Path:
    return data / f"labels_{n_parcels}.nii.gz"


def make_data(arguments: argparse.Namespace) -> None:
    """Write what is missing."""
    from lacuna_nipype.core.images import save_image
    from lacuna_nipype.core.spaces import template_grid

    def missing(path: Path) -> bool:
        if not path.exists():
            print(f"making {path.name}", file=sys.stderr, flush=True)
        return not path.exists()

    data = arguments.data
    for n_streamlines in arguments.streamlines:
        folder = folder_of(data, n_streamlines)
        folder.mkdir(parents=True, exist_ok=True)
        if missing(folder / "tracks.tck"):
            write_tractogram(folder / "tracks.tck", n_streamlines)
    for size in arguments.lesions:
        for number in range(min(arguments.repeat, len(PLACES))):
            if missing(lesion_path(data, size, number)):
                write_lesion(lesion_path(data, size, number), size, number)
    for n_parcels in arguments.parcels:
        if missing(labels_path(data, n_parcels)):
            write_labels(labels_path(data, n_parcels), n_parcels)
    if missing(data / "grid.nii.gz"):
        grid = template_grid(SPACE, RESOLUTION)
        save_image(data / "grid.nii.gz", np.zeros(grid.shape), grid.affine, np.uint8)


# MRtrix


def command(words: Sequence[object], folder: Path) -> Found:
    """Run an MRtrix command with its default number of threads."""
    return measure({"job": "command", "words": [*map(str, words)], "folder": str(folder)})


def job_command(job: dict[str, Any]) -> Found:
    """Seconds and peak memory of a command; a small parent, as memory is inherited."""
    start = time.perf_counter()
    subprocess.run([*job["words"], "-quiet", "-force"], cwd=job["folder"], check=True)
    seconds, usage = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": seconds,
        "processor": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss * 1024 / 1e9,
    }


def mrtrix_map(folder: Path, data: Path, lesion: Path, scratch: Path) -> Found:
    """Streamlines of a lesion, their density, and its share of the whole, as files."""
    parts = {
        "tckedit": command(
            ["tckedit", folder / "tracks.tck", "hit.tck", "-include", lesion], scratch
        ),
        "tckmap": command(
            ["tckmap", "hit.tck", "hit.nii", "-template", data / "grid.nii.gz"], scratch
        ),
        "mrcalc": command(
            ["mrcalc", folder / "full.nii", 0, "-gt", "hit.nii", folder / "full.nii", "-divide",
             0, "-if", 100, "-multiply", "percent.nii.gz"],
            scratch,
        ),
    }  # fmt: skip
    return _summed(parts)


def mrtrix_matrices(folder: Path, data: Path, n_parcels: int, scratch: Path) -> dict[str, Found]:
    """Matrices of the streamlines that were hit, and of all."""
    made = {}
    for name, tracks in (("lesion", "hit.tck"), ("full", folder / "tracks.tck")):
        words = ["tck2connectome", tracks, labels_path(data, n_parcels), f"{name}.csv"]
        made[name] = command([*words, "-symmetric", "-zero_diagonal"], scratch)
    return made


def _summed(parts: dict[str, Found]) -> Found:
    found = {name: part["seconds"] for name, part in parts.items()}
    found["seconds"] = sum(part["seconds"] for part in parts.values())
    found["processor"] = sum(part["processor"] for part in parts.values())
    found["memory"] = max(part["memory"] for part in parts.values())
    return found


# Ours: one job per process


class Clock:
    """Seconds between marks, on the wall and of all threads' processors."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.processor: dict[str, float] = {}
        self._last = time.perf_counter(), time.process_time()

    def mark(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        self.parts[name] = now[0] - self._last[0]
        self.processor[name] = now[1] - self._last[1]
        self._last = now

    def sums(self, name: str, parts: Sequence[str]) -> Found:
        """Both of several parts together."""
        return {
            name: sum(self.parts[part] for part in parts),
            f"{name}_processor": sum(self.processor[part] for part in parts),
        }


def job_build(job: dict[str, Any]) -> Found:
    """Index a tractogram."""
    from lacuna_nipype.connectomes.streamline_index import write_index
    from lacuna_nipype.core.spaces import template_grid

    folder, clock = Path(job["folder"]), Clock()
    write_index(
        folder / "tracks.tck",
        folder / "index.h5",
        grid=template_grid(SPACE, RESOLUTION),
        space=SPACE,
        n_threads=job["threads"],
    )
    clock.mark("seconds")
    return clock.parts


def job_map(job: dict[str, Any]) -> Found:
    """From a mask on disk to a map on disk."""
    from lacuna_nipype.connectomes.streamline_query import StreamlineIndex, read_mask
    from lacuna_nipype.core.disconnection import disconnection_percent
    from lacuna_nipype.core.images import save_image

    out, clock = Path(job["out"]), Clock()
    with StreamlineIndex(Path(job["folder"]) / "index.h5", n_threads=job["threads"]) as index:
        clock.mark("open")
        crop = read_mask(Path(job["lesion"]))
        clock.mark("mask")
        hits = index.select(crop, job["hit_test"])
        clock.mark("select")
        density = index.count(hits)
        clock.mark("count")
        percent = disconnection_percent(density, index.total_density())
        clock.mark("divide")
        stored = index.grid.to_stored(percent)
        save_image(out / "ours.nii.gz", stored, index.record.grid.affine, "f4")
        clock.mark("write")
        # Once more, with the index's pages in place.
        index.count(index.select(crop, job["hit_test"]))
        clock.mark("again")
        np.save(out / "density.npy", index.grid.to_stored(density))
    np.save(out / "hits.npy", hits)
    steps = ("open", "mask", "select", "count", "divide", "write")
    sums = clock.sums("in_memory", steps[2:5]) | clock.sums("seconds", steps)
    return {**clock.parts, **sums, "hits": len(hits)}


def job_assign(job: dict[str, Any]) -> Found:
    """Nodes of all ends and the whole tractogram's matrix, once per parcellation."""
    import nibabel as nb

    from lacuna_nipype.connectomes.streamline_query import StreamlineIndex
    from lacuna_nipype.core.disconnectivity import count_matrix
    from lacuna_nipype.core.mrtrix_grid import grid_of_image

    folder, clock = Path(job["folder"]), Clock()
    with StreamlineIndex(folder / "index.h5", n_threads=job["threads"]) as index:
        image = nb.load(job["labels"])
        grid = grid_of_image(image, job["labels"])
        labels = grid.from_stored(np.asarray(image.dataobj).astype(np.int32))
        assignments = index.assign_nodes(labels, grid)
    full = count_matrix(assignments, job["parcels"])
    np.save(folder / f"assignments_{job['parcels']}.npy", assignments)
    np.save(folder / f"full_{job['parcels']}.npy", full)
    clock.mark("seconds")
    return clock.parts


def job_matrices(job: dict[str, Any]) -> Found:
    """From assignments and hits on disk to matrices on disk."""
    from lacuna_nipype.core.disconnectivity import Disconnectivity
    from lacuna_nipype.io.tables import write_matrix

    folder, out, n_parcels, clock = Path(job["folder"]), Path(job["out"]), job["parcels"], Clock()
    assignments = np.load(folder / f"assignments_{n_parcels}.npy")
    full = np.load(folder / f"full_{n_parcels}.npy")
    hits = np.load(out / "hits.npy")
    clock.mark("load")
    matrices = Disconnectivity.of_lesion(full, assignments, hits)
    values = [getattr(matrices, name) for name in QUANTITIES]
    clock.mark("in_memory")
    names = [f"parcel {i + 1}" for i in range(n_parcels)]
    for name, value in zip(QUANTITIES, values, strict=True):
        write_matrix(out / f"{name}.tsv", names, value)
    clock.mark("write")
    np.savez(out / "matrices.npz", full=full, lesion=matrices.lesion)
    return {**clock.parts, **clock.sums("seconds", list(clock.parts))}


JOBS: dict[str, Callable[[dict[str, Any]], Found]] = {
    "command": job_command,
    "build": job_build,
    "map": job_map,
    "assign": job_assign,
    "matrices": job_matrices,
}


def worker(job: dict[str, Any]) -> None:
    """One measurement; kernels are loaded from numba's cache before its clock starts."""
    start = time.perf_counter()
    if job["job"] in ("build", "map", "assign"):
        _load_kernels()
    elif job["job"] == "matrices":
        _load_matrix_kernels()
    started, used = time.perf_counter() - start, time.process_time()
    found = JOBS[job["job"]](job)
    # Pages of mapped files are the kernel's cache, shared by processes; anonymous ones our own.
    lines = Path("/proc/self/status").read_text().splitlines()
    status = {words[0]: words[1] for words in map(str.split, lines) if len(words) > 1}
    own = {
        "start": started,
        "processor": time.process_time() - used,
        "memory": int(status["VmHWM:"]) * 1024 / 1e9,
        "own_memory": int(status["RssAnon:"]) * 1024 / 1e9,
    }
    print(json.dumps(own | found))


def _load_kernels() -> None:
    """Index and question a tractogram of three streamlines."""
    from lacuna_nipype.connectomes.streamline_index import write_index
    from lacuna_nipype.connectomes.streamline_query import HIT_TESTS, StreamlineIndex
    from lacuna_nipype.connectomes.tractogram import write_tck
    from lacuna_nipype.core.mrtrix_grid import grid_of_image
    from lacuna_nipype.core.spaces import Grid
    from lacuna_nipype.core.streamline_index import crop_mask

    import nibabel as nb  # isort: skip

    line = np.linspace([-9, 0, 0], [9, 1, 2], 19)
    grid = Grid.make(
        (11, 11, 11), np.array([[2.0, 0, 0, -10], [0, 2, 0, -10], [0, 0, 2, -10], [0, 0, 0, 1]])
    )
    mask = np.zeros(grid.shape, dtype=bool)
    mask[5, 5, 5] = True
    image = nb.Nifti1Image(mask.astype(np.uint8), grid.affine)
    with tempfile.TemporaryDirectory() as scratch:
        tracks = Path(scratch) / "few.tck"
        write_tck(tracks, [line, line + 1, line[:1]], step_size=1.0)
        write_index(tracks, tracks.with_suffix(".h5"), grid=grid, space=SPACE)
        with StreamlineIndex(tracks.with_suffix(".h5")) as index:
            own = grid_of_image(image, "mask")
            for test in HIT_TESTS:
                index.count(index.select(crop_mask(mask, own), test))
            index.assign_nodes(mask.astype(np.int32), own)


def _load_matrix_kernels() -> None:
    """Take one of two streamlines out of a matrix of three nodes."""
    from lacuna_nipype.core.disconnectivity import Disconnectivity, count_matrix

    assignments = np.array([[1, 2], [2, 3]], dtype=np.uint16)
    full = count_matrix(assignments, 3)
    Disconnectivity.of_lesion(full, assignments, np.array([1]))
    Disconnectivity.make(full, full)


# Measuring


def drop_cache(paths: Sequence[Path]) -> None:
    """Ask the kernel to forget the files' pages."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read_all(paths: Sequence[Path]) -> float:
    """Seconds to read the files with nothing else, by one thread."""
    buffer = bytearray(8_000_000)
    start = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return time.perf_counter() - start


def measure(job: dict[str, Any]) -> Found:
    """Run one job in a fresh process."""
    words = [sys.executable, __file__, "--worker", json.dumps(job)]
    ended = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise SystemExit(f"{job} ended with code {ended.returncode}")
    found: Found = json.loads(ended.stdout)
    return found


class Results:
    """Everything measured, by name."""

    def __init__(self) -> None:
        self.found: dict[tuple[Any, ...], list[Found]] = {}

    def add(self, key: tuple[Any, ...], found: Found) -> Found:
        self.found.setdefault(key, []).append(found)
        print(*key, json.dumps(found), file=sys.stderr, flush=True)
        return found

    def values(self, key: tuple[Any, ...], name: str) -> list[float]:
        return [found[name] for found in self.found.get(key, [])]

    def median(self, key: tuple[Any, ...], name: str) -> float:
        values = self.values(key, name)
        return statistics.median(values) if values else float("nan")

    def ratios(
        self, key: tuple[Any, ...], rival: tuple[Any, ...], name: str, theirs: str = "seconds"
    ) -> str:
        """Median and lowest ratio of turns that followed one another."""
        pairs = zip(self.values(key, name), self.values(rival, theirs), strict=True)
        ratios = [theirs / ours for ours, theirs in pairs]
        return f"{statistics.median(ratios):.0f}x (least {min(ratios):.0f}x)" if ratios else "-"


def run_build(arguments: argparse.Namespace, n_streamlines: int, results: Results) -> None:
    """One tckmap of the whole tractogram, then one index of it."""
    folder = folder_of(arguments.data, n_streamlines)
    tracks = folder / "tracks.tck"
    for _ in range(arguments.repeat_build):
        read_all([tracks])
        words = [
            "tckmap",
            tracks,
            folder / "full.nii",
            "-template",
            arguments.data / "grid.nii.gz",
        ]
        results.add((n_streamlines, "build", "mrtrix"), command(words, folder))
        read_all([tracks])
        job = {"job": "build", "folder": str(folder), "threads": arguments.threads}
        found = measure(job)
        found["bytes"] = (folder / "index.h5").stat().st_size
        results.add((n_streamlines, "build", "ours"), found)
    _compare_whole(folder)
    for n_parcels in arguments.parcels:
        job = {
            "job": "assign",
            "folder": str(folder),
            "threads": arguments.threads,
            "labels": str(labels_path(arguments.data, n_parcels)),
            "parcels": n_parcels,
        }
        results.add((n_streamlines, "assign", n_parcels), measure(job))


def run_lesions(arguments: argparse.Namespace, n_streamlines: int, results: Results) -> None:
    """Rivals take turns, lesion by lesion."""
    data = arguments.data
    folder = folder_of(data, n_streamlines)
    files = [folder / "tracks.tck", folder / "index.h5"]
    for number in range(arguments.repeat):
        for size in arguments.lesions:
            lesion = lesion_path(data, size, number)
            for cold in (True, False):
                with tempfile.TemporaryDirectory(dir=data) as scratch:
                    out = Path(scratch)

                    def ready(cold: bool = cold, lesion: Path = lesion) -> None:
                        (drop_cache if cold else read_all)([*files, lesion])

                    key = (n_streamlines, "map", size, cold)
                    ready()
                    results.add((*key, "mrtrix"), mrtrix_map(folder, data, lesion, out))
                    for hit_test in ("segments", "vertices"):
                        ready()
                        job = {
                            "job": "map",
                            "folder": str(folder),
                            "threads": arguments.threads,
                            "lesion": str(lesion),
                            "hit_test": hit_test,
                            "out": str(out),
                        }
                        results.add((*key, hit_test), measure(job))
                        if hit_test == "segments":
                            shutil.move(out / "hits.npy", out / "segments.npy")
                    _compare_map(folder, out)
                    if not cold:
                        _run_matrices(arguments, n_streamlines, size, results, out)


def _run_matrices(
    arguments: argparse.Namespace, n_streamlines: int, size: int, results: Results, out: Path
) -> None:
    folder = folder_of(arguments.data, n_streamlines)
    for n_parcels in arguments.parcels:
        key = (n_streamlines, "matrices", size, n_parcels)
        made = mrtrix_matrices(folder, arguments.data, n_parcels, out)
        results.add((*key, "mrtrix hits"), made["lesion"])
        results.add((*key, "mrtrix"), _summed(made))
        job = {"job": "matrices", "folder": str(folder), "out": str(out), "parcels": n_parcels}
        results.add((*key, "ours"), measure(job))
        ours = np.load(out / "matrices.npz")
        for name in ("lesion", "full"):
            theirs = np.loadtxt(out / f"{name}.csv", delimiter=",")
            _require(np.array_equal(theirs, ours[name]), f"{name} matrices differ")


# Comparing


def _require(equal: bool, complaint: str) -> None:
    if not equal:
        raise SystemExit(f"Results differ: {complaint}.")


def _image(path: Path) -> np.ndarray:
    import nibabel as nb

    return np.asarray(nb.load(path).dataobj)


def _compare_whole(folder: Path) -> None:
    from lacuna_nipype.connectomes.streamline_query import StreamlineIndex

    with StreamlineIndex(folder / "index.h5") as index:
        ours = index.grid.to_stored(index.total_density())
        _require(np.array_equal(ours, _image(folder / "full.nii")), "whole density")


def _compare_map(folder: Path, out: Path) -> None:
    """Streamlines, density and shares, bit for bit."""
    from lacuna_nipype.connectomes.streamline_query import StreamlineIndex

    hits, segments = np.load(out / "hits.npy"), np.load(out / "segments.npy")
    _require(bool(np.isin(hits, segments).all()), "segments miss a vertex")
    _require(np.array_equal(np.load(out / "density.npy"), _image(out / "hit.nii")), "density")
    ours, theirs = _image(out / "ours.nii.gz"), _image(out / "percent.nii.gz")
    _require(ours.dtype == theirs.dtype == np.float32, "types of shares")
    _require(np.array_equal(ours.view(np.uint32), theirs.view(np.uint32)), "shares")
    with StreamlineIndex(folder / "index.h5") as index:
        index.write_streamlines(hits, out / "ours.tck")
    _require(_body(out / "ours.tck") == _body(out / "hit.tck"), "streamlines that are hit")


def _body(path: Path) -> bytes:
    """All points of a .tck file."""
    from lacuna_nipype.connectomes.tractogram import read_tck_header

    with path.open("rb") as stream:
        stream.seek(read_tck_header(path).offset)
        return stream.read()


# Reporting


def report(results: Results, arguments: argparse.Namespace) -> None:
    """Print everything as Markdown."""
    print(
        f"{arguments.threads} threads for ours, MRtrix's default number for MRtrix; medians of "
        f"{arguments.repeat} lesions per size (builds: {arguments.repeat_build} turns). All "
        "results were equal bit for bit: densities, shares, streamlines that are hit, matrices."
    )
    for n_streamlines in arguments.streamlines:
        folder = folder_of(arguments.data, n_streamlines)
        size = (folder / "tracks.tck").stat().st_size
        print(
            f"\n## {n_streamlines:,} streamlines, {size / 1e9:.2f} GB, "
            f"{size / n_streamlines:.0f} bytes each\n"
        )
        print("\n".join(_build_table(results, n_streamlines, size)))
        for cold in (True, False):
            print(f"\n### Map of a lesion, {'cold' if cold else 'warm'}\n")
            print("\n".join(_map_table(results, arguments, n_streamlines, cold)))
        print("\n### Where ours spends its time, milliseconds\n")
        print("\n".join(_parts_table(results, arguments, n_streamlines)))
        print("\n### Matrices of a lesion, warm\n")
        print("\n".join(_matrix_table(results, arguments, n_streamlines)))
        print("\n### Bounds\n")
        print("\n".join(_bounds_table(folder)))
    print(
        "\nCold: the files' pages were dropped with posix_fadvise(DONTNEED); caches of a virtual "
        "disk's host stay. MRtrix is timed from command to command, start-up and files included; "
        "ours without Python's start-up, imports and loading of kernels (`start` above), which a "
        "run pays once for all lesions. In memory: select, count and divide; `again`: select and "
        "count a second time in the same process. The lesions are deep, 1 mm, and on the voxels "
        "of the standard space; masks on other grids leave more streamlines to test point by "
        "point. Not shown: real tractograms (other order and crossing), other steps and grids, "
        "weights, network file systems, other processors, Nipype's own time per node."
    )


def _build_table(results: Results, n_streamlines: int, size: int) -> Iterator[str]:
    theirs, ours = (n_streamlines, "build", "mrtrix"), (n_streamlines, "build", "ours")
    seconds = results.median(ours, "seconds")
    ratio = statistics.median(
        a / b
        for a, b in zip(
            results.values(ours, "seconds"), results.values(theirs, "seconds"), strict=True
        )
    )
    own = results.median(ours, "bytes")
    yield "| | measured | floor |"
    yield "|---|---|---|"
    yield (
        f"| one tckmap of all | {results.median(theirs, 'seconds'):.1f} s (processor "
        f"{results.median(theirs, 'processor'):.1f} s, {results.median(theirs, 'memory'):.2f} GB) "
        "| |"
    )
    yield (
        f"| build | {seconds:.1f} s (processor {results.median(ours, 'processor'):.1f} s), "
        f"{ratio:.2f}x | {FLOORS['build']} |"
    )
    memory = results.median(ours, "memory")
    yield f"| peak memory of the build | {memory:.2f} GB | {FLOORS['memory']} |"
    yield (
        f"| size | {own / n_streamlines:.0f} bytes per streamline, {own / size:.3f} of the .tck "
        f"| {FLOORS['size']} |"
    )
    for key, found in results.found.items():
        if key[:2] == (n_streamlines, "assign"):
            yield (
                f"| nodes of all ends and the full matrix, {key[2]} parcels, once | "
                f"{found[0]['seconds']:.2f} s | |"
            )


def _map_table(
    results: Results, arguments: argparse.Namespace, n_streamlines: int, cold: bool
) -> Iterator[str]:
    yield (
        "| voxels | streamlines hit | MRtrix | ours in memory | ratio, floor "
        f"{FLOORS['map']} | of processor time | ours file to file | ratio | of processor time "
        "| segments in memory | hits more | peak memory (own, at the end) |"
    )
    yield "|---" * 12 + "|"
    for size in arguments.lesions:
        key = (n_streamlines, "map", size, cold)
        theirs, ours, segments = (*key, "mrtrix"), (*key, "vertices"), (*key, "segments")
        hits = results.values(ours, "hits")
        memory, own = (results.median(ours, name) for name in ("memory", "own_memory"))
        pairs = zip(hits, results.values(segments, "hits"), strict=True)
        more = [b / a - 1 for a, b in pairs if a]
        processor = results.median(theirs, "processor")
        yield (
            f"| {size:,} | {min(hits):,} to {max(hits):,} "
            f"| {results.median(theirs, 'seconds'):.2f} s (processor {processor:.2f} s) "
            f"| {_milliseconds(results, ours, 'in_memory')} "
            f"| {results.ratios(ours, theirs, 'in_memory')} "
            f"| {results.ratios(ours, theirs, 'in_memory_processor', 'processor')} "
            f"| {_milliseconds(results, ours, 'seconds')} "
            f"| {results.ratios(ours, theirs, 'seconds')} "
            f"| {results.ratios(ours, theirs, 'seconds_processor', 'processor')} "
            f"| {_milliseconds(results, segments, 'in_memory')} "
            f"| {100 * statistics.median(more or [0]):.1f} % "
            f"| {memory:.2f} ({own:.2f}) GB |"
        )


def _milliseconds(results: Results, key: tuple[Any, ...], name: str) -> str:
    """Seconds on the wall and of processors."""
    wall, processor = (results.median(key, n) for n in (name, f"{name}_processor"))
    return f"{1e3 * wall:.1f} ms (processor {1e3 * processor:.1f} ms)"


def _parts_table(
    results: Results, arguments: argparse.Namespace, n_streamlines: int
) -> Iterator[str]:
    names = ("start", "open", "mask", "select", "count", "divide", "write", "again")
    yield f"| voxels | | {' | '.join(names)} |"
    yield "|---" * (len(names) + 2) + "|"
    for cold in (True, False):
        for size in arguments.lesions:
            for test in ("vertices", "segments"):
                key = (n_streamlines, "map", size, cold, test)
                cells = [f"{1e3 * results.median(key, name):.1f}" for name in names]
                where = f"{'cold' if cold else 'warm'}, {test}"
                yield f"| {size:,} | {where} | {' | '.join(cells)} |"


def _matrix_table(
    results: Results, arguments: argparse.Namespace, n_streamlines: int
) -> Iterator[str]:
    yield (
        "| voxels | parcels | tck2connectome, hits | and whole | ours in memory | ratio, floor "
        f"{FLOORS['matrices']} | of hits alone | ours file to file | ratio |"
    )
    yield "|---" * 9 + "|"
    for size in arguments.lesions:
        for n_parcels in arguments.parcels:
            key = (n_streamlines, "matrices", size, n_parcels)
            ours, theirs, part = (*key, "ours"), (*key, "mrtrix"), (*key, "mrtrix hits")
            yield (
                f"| {size:,} | {n_parcels} | {results.median(part, 'seconds'):.2f} s "
                f"| {results.median(theirs, 'seconds'):.2f} s "
                f"| {1e3 * results.median(ours, 'in_memory'):.2f} ms "
                f"| {results.ratios(ours, theirs, 'in_memory')} "
                f"| {results.ratios(ours, part, 'in_memory')} "
                f"| {1e3 * results.median(ours, 'seconds'):.0f} ms "
                f"| {results.ratios(ours, theirs, 'seconds')} |"
            )


def _bounds_table(folder: Path) -> Iterator[str]:
    yield "| | bytes | read cold, one thread | read warm |"
    yield "|---|---|---|---|"
    for name in ("tracks.tck", "index.h5"):
        path = folder / name
        drop_cache([path])
        cold, size = read_all([path]), path.stat().st_size
        yield (
            f"| {name} | {size / 1e9:.2f} GB | {cold:.2f} s ({size / cold / 1e9:.1f} GB/s) "
            f"| {read_all([path]):.2f} s |"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder that keeps the data between runs")
    parser.add_argument("--streamlines", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--lesions", type=int, nargs="+", default=[100, 1000, 5000, 40_000])
    parser.add_argument("--parcels", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--repeat", type=int, default=3, help="lesions of each size")
    parser.add_argument("--repeat-build", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only-make-data", action="store_true")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    if arguments.data is None:
        parser.error("--data is needed")
    arguments.data = arguments.data.absolute()
    make_data(arguments)
    if arguments.only_make_data:
        return
    results = Results()
    for n_streamlines in arguments.streamlines:
        run_build(arguments, n_streamlines, results)
        run_lesions(arguments, n_streamlines, results)
    report(results, arguments)


if __name__ == "__main__":
    main()
