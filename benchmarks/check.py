"""Time of ``lacuna-nipype check input`` on a large cohort, against reading its masks one by one.

Run ``python benchmarks/check.py --data DIR``; see README.md in this folder. Masks are made from a
seed and kept in DIR. Every measurement is a process of its own, imports included; rivals take
turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import nibabel as nb
import numpy as np

# As FSL has it: the first axis runs from right to left.
SHAPE = (182, 218, 182)
AFFINE = np.array([[-1.0, 0, 0, 90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]])
SPACE = "MNI152NLin6Asym"
RADII_MM = (4, 34)  # 0.3 to 165 ml
TYPES = ("uint8", "int16", "float32", "float64")
RIVAL = """
import sys
import nibabel as nb
import numpy as np
paths = [line.strip() for line in open(sys.argv[1])]
print(sum(float(np.asanyarray(nb.load(path).dataobj).sum()) for path in paths))
"""


def make_mask(root: Path, dtype: str, number: int) -> Path:
    """Write a ragged ball somewhere in one hemisphere, as a mask of a participant of its own."""
    name = f"sub-{number:04d}"
    path = root / name / "anat" / f"{name}_space-{SPACE}_label-lesion_mask.nii.gz"
    if path.is_file():
        return path
    rng = np.random.default_rng([5, number])
    radius = rng.uniform(*RADII_MM)
    centre = np.array([rng.choice([50.0, 130.0]), rng.uniform(70, 150), rng.uniform(60, 110)])
    low = np.maximum(np.floor(centre - radius - 3), 0).astype(int)
    high = np.minimum(np.ceil(centre + radius + 3) + 1, SHAPE).astype(int)
    box = tuple(slice(*ends) for ends in zip(low, high, strict=True))
    place = np.indices(high - low) + low.reshape(3, 1, 1, 1)
    distance = np.sqrt(((place - centre.reshape(3, 1, 1, 1)) ** 2).sum(axis=0))
    data = np.zeros(SHAPE, dtype)
    data[box] = distance + rng.normal(0, 1.5, distance.shape) < radius
    image = nb.Nifti1Image(data, AFFINE)
    image.set_sform(AFFINE, 4)
    image.set_qform(AFFINE, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"part-{path.name}")
    nb.save(image, temporary)
    temporary.replace(path)
    return path


def measure(words: list[str]) -> tuple[float, float, float, str]:
    """Seconds, processor seconds, peak memory in MB, and last line of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{words[:6]} failed")
    return seconds, _processor(usage), usage.ru_maxrss / 1e3, output.splitlines()[-1]


def _processor(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder for the masks")
    parser.add_argument("--masks", type=int, default=1000)
    parser.add_argument("--dtype", choices=TYPES, default="uint8")
    parser.add_argument("--nprocs", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    root = arguments.data / f"{arguments.dtype}-{arguments.masks}"
    root.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        numbers = range(1, arguments.masks + 1)
        paths = list(pool.map(partial(make_mask, root, arguments.dtype), numbers, chunksize=8))
    description = {"Name": "masks", "BIDSVersion": "1.10.0", "DatasetType": "derivative",
                   "GeneratedBy": [{"Name": "benchmarks/check.py"}]}  # fmt: skip
    (root / "dataset_description.json").write_text(json.dumps(description))
    listing = arguments.data / "paths.txt"
    listing.write_text("".join(f"{path}\n" for path in paths))

    check = [sys.executable, "-m", "lacuna_nipype", "check", "input", str(root), "--nprocs"]
    rivals = {
        "nibabel, load and sum, one after another": [
            sys.executable, "-c", RIVAL, str(listing)
        ],
        "check input, 1 thread": [*check, "1"],
        f"check input, {arguments.nprocs} threads": [*check, str(arguments.nprocs)],
    }  # fmt: skip
    found: dict[str, list[tuple[float, float, float, str]]] = {name: [] for name in rivals}
    for _ in range(arguments.repeat):
        for name, words in rivals.items():
            found[name].append(measure(words))
    for name in list(rivals)[1:]:
        print(f"{name}: {found[name][0][3]}")
    size = sum(path.stat().st_size for path in paths) / 1e6
    print(
        f"\n{len(paths)} masks of {'x'.join(map(str, SHAPE))} voxels, {arguments.dtype}, "
        f"{size:.0f} MB compressed; medians of {arguments.repeat}.\n"
    )
    print("| | seconds | processor seconds | peak memory, MB | times as fast |")
    print("|---|---|---|---|---|")
    medians = {
        name: [statistics.median(run[column] for run in runs) for column in range(3)]
        for name, runs in found.items()
    }
    first = next(iter(medians.values()))[0]
    for name, (seconds, processor, memory) in medians.items():
        print(
            f"| {name} | {seconds:.1f} | {processor:.1f} | {memory:.0f} | {first / seconds:.2f} |"
        )


if __name__ == "__main__":
    main()
