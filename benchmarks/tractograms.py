"""Time and peak memory of converting tractograms: .trk, .trk.gz and a folder of bundles to .tck.

Run ``python benchmarks/tractograms.py --data DIR``; see README.md in this folder. Files are made
from a seed, batch after batch, and kept in DIR. Every conversion is a process of its own; what it
wrote is compared with what was made, streamline by streamline.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

SHAPE = (182, 218, 182)
# Bundles take turns: 1 mm as FSL has it, 2 mm, and 1.25 mm with the first axis from left to right.
AFFINES = tuple(
    np.array([[x * s, 0, 0, -x * 90], [0, s, 0, -126], [0, 0, s, -72], [0, 0, 0, 1.0]])
    for x, s in ((-1, 1.0), (-1, 2.0), (1, 1.25))
)
STEP = 1.0
SHORTEST, LONGEST = 20, 40
BATCH = 20_000
HEADER_BYTES = 1000
MOST_MEGABYTES = 500
# Coordinates were rounded to single precision in mm of the image, and once more in scanner space.
CLOSE_MM = 1e-4
CONVERT = """
import sys
from lacuna_nipype.connectomes.conversion import merge_trk_to_tck, trk_to_tck
source, target = sys.argv[1:]
convert = trk_to_tck if source.endswith((".trk", ".trk.gz")) else merge_trk_to_tck
convert(source, target, overwrite=True)
# Not getrusage, whose maximum a process takes over from the one that started it.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def make_batch(number: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of points of some streamlines, and their points one after the other, mm."""
    rng = np.random.default_rng([29, number])
    lengths = rng.integers(SHORTEST, LONGEST + 1, n)
    start = rng.uniform(-40, 40, (n, 3)) + np.array([0, -18, 16])
    heading = rng.standard_normal((n, 3))
    turn = 0.1 * rng.standard_normal((n, 3))
    along = np.arange(LONGEST)[:, np.newaxis, np.newaxis]
    steps = heading + turn * along
    steps *= STEP / np.linalg.norm(steps, axis=2, keepdims=True)
    points = np.cumsum(np.concatenate([start[np.newaxis], steps[1:]]), axis=0).swapaxes(0, 1)
    return lengths, points[np.arange(LONGEST) < lengths[:, np.newaxis]].astype(np.float32)


def batches(first: int, n_streamlines: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Streamlines of a file, by batches whose numbers begin with ``first``."""
    for number, done in enumerate(range(0, n_streamlines, BATCH), start=first):
        yield make_batch(number, min(BATCH, n_streamlines - done))


def _header(n_streamlines: int, affine: np.ndarray) -> bytes:
    header = bytearray(HEADER_BYTES)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    struct.pack_into("<6s3h3f", header, 0, b"TRACK", *SHAPE, *sizes)
    struct.pack_into("<16f", header, 440, *affine.ravel())
    struct.pack_into("4s", header, 948, b"LAS" if affine[0, 0] < 0 else b"RAS")
    struct.pack_into("<3i", header, 988, n_streamlines, 2, HEADER_BYTES)
    return bytes(header)


def write_trk(out: BinaryIO, n_streamlines: int, first: int, affine: np.ndarray) -> None:
    """Write a .trk file: each streamline's number of points, then its points."""
    out.write(_header(n_streamlines, affine))
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    to_voxel = np.linalg.inv(affine)
    for lengths, points in batches(first, n_streamlines):
        # The format counts in mm from the corner of the first voxel, not from its centre.
        stored = (points @ to_voxel[:3, :3].T + to_voxel[:3, 3] + 0.5) * sizes
        words = np.empty(len(lengths) + stored.size, dtype="<f4")
        starts = np.cumsum(1 + 3 * lengths) - (1 + 3 * lengths)
        inside = np.ones(len(words), dtype=bool)
        inside[starts] = False
        words[inside] = stored.ravel()
        words.view("<i4")[starts] = lengths
        out.write(words.tobytes())


def make_file(path: Path, n_streamlines: int, first: int, affine: np.ndarray) -> None:
    """Write a .trk or .trk.gz file, unless it is there."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    with temporary.open("wb") as plain, ExitStack() as stack:
        out: Any = plain
        if path.suffix == ".gz":
            out = stack.enter_context(gzip.GzipFile("", "wb", 1, plain, mtime=0))
        write_trk(out, n_streamlines, first, affine)
    temporary.replace(path)


def make_data(data: Path, n_streamlines: int, n_bundles: int) -> dict[str, Path]:
    """Write what is missing; sources by name."""
    folder = data / f"streamlines_{n_streamlines}"
    print(f"making what is missing in {folder.name}", file=sys.stderr, flush=True)
    one, packed, bundles = folder / "one.trk", folder / "one.trk.gz", folder / f"of_{n_bundles}"
    for path in (one, packed):
        make_file(path, n_streamlines, 0, AFFINES[0])
    share = n_streamlines // n_bundles
    for number in range(n_bundles):
        size = share if number else n_streamlines - share * (n_bundles - 1)
        name = f"bundle_{number:03d}.trk.gz"
        make_file(bundles / name, size, 1_000_000 * number, AFFINES[number % len(AFFINES)])
    make_file(bundles / "cranial_nerve" / "nerve.trk.gz", 1000, 999, AFFINES[0])
    return {".trk": one, ".trk.gz": packed, f"{n_bundles} bundles, .trk.gz": bundles}


def expected(source: Path, n_streamlines: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All that a source was made of, in the order of the output."""
    if source.is_file():
        yield from batches(0, n_streamlines)
        return
    n_bundles = len(list(source.glob("bundle_*")))
    share = n_streamlines // n_bundles
    for number in range(n_bundles):
        size = share if number else n_streamlines - share * (n_bundles - 1)
        yield from batches(1_000_000 * number, size)


def check(target: Path, source: Path, n_streamlines: int) -> float:
    """Compare every streamline with what was made; the largest difference in mm."""
    from lacuna_nipype.connectomes.tractogram import check_tck

    header = check_tck(target)
    if (header.count, header.step_size) != (n_streamlines, STEP):
        sys.exit(f"{target} has {header.count} streamlines and step {header.step_size}")
    worst = 0.0
    with target.open("rb") as stream:
        stream.seek(header.offset)
        for lengths, points in expected(source, n_streamlines):
            n_rows = len(points) + len(lengths)
            rows = np.frombuffer(stream.read(12 * n_rows), "<f4").reshape(n_rows, 3)
            ends = np.cumsum(lengths + 1) - 1
            if not np.isnan(rows[ends]).all():
                sys.exit(f"{target} has streamlines of other lengths than {source}")
            difference = np.abs(np.delete(rows, ends, axis=0) - points).max()
            if not difference <= CLOSE_MM:
                sys.exit(f"{target} differs from {source} by {difference} mm")
            worst = max(worst, float(difference))
    return worst


def check_mrtrix(target: Path, n_streamlines: int) -> str:
    """What tckinfo reads, or that it is missing."""
    if shutil.which("tckinfo") is None:
        return "not on PATH"
    told = subprocess.run(
        ["tckinfo", "-quiet", "-count", target], check=True, capture_output=True, text=True
    ).stdout
    count = re.search(r"actual count in file: (\d+)", told)
    step = re.search(r"^    step_size: +(\S+)$", told, re.MULTILINE)
    if not count or int(count[1]) != n_streamlines or not step or float(step[1]) != STEP:
        sys.exit(f"tckinfo reads {told}")
    return f"{count[1]}, step {step[1]}"


def measure(source: Path, target: Path) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak memory in MB of one conversion."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", CONVERT, str(source), str(target)], stdout=subprocess.PIPE
    )
    kilobytes = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{source} could not be converted")
    return seconds, usage.ru_utime + usage.ru_stime, int(kilobytes) * 1024 / 1e6


def megabytes(path: Path) -> float:
    files = [path] if path.is_file() else path.rglob("*.trk.gz")
    return sum(file.stat().st_size for file in files) / 1e6


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder for the tractograms")
    parser.add_argument("--streamlines", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--bundles", type=int, default=80)
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    print(
        "| streamlines | source | MB | seconds | processor seconds | peak memory, MB "
        "| largest difference, mm | tckinfo |"
    )
    print("|---|---|---|---|---|---|---|---|")
    most = 0.0
    for n_streamlines in arguments.streamlines:
        sources = make_data(arguments.data, n_streamlines, arguments.bundles)
        target = arguments.data / f"streamlines_{n_streamlines}" / "out.tck"
        for name, source in sources.items():
            runs = [measure(source, target) for _ in range(arguments.repeat)]
            seconds, processor = (statistics.median(run[i] for run in runs) for i in (0, 1))
            memory = max(run[2] for run in runs)
            most = max(most, memory)
            difference = check(target, source, n_streamlines)
            print(
                f"| {n_streamlines} | {name} | {megabytes(source):.0f} | {seconds:.1f} "
                f"| {processor:.1f} | {memory:.0f} | {difference:.1e} "
                f"| {check_mrtrix(target, n_streamlines)} |",
                flush=True,
            )
            target.unlink()
    if most > MOST_MEGABYTES:
        sys.exit(f"A conversion took {most:.0f} MB; {MOST_MEGABYTES} MB are allowed.")


if __name__ == "__main__":
    main()
