"""Time and memory of a probabilistic atlas of 64 volumes, from files to one lesion's tables.

Run ``python benchmarks/atlases.py --data DIR``; see README.md in this folder. Atlas, lesion and
maps are made from a seed and kept in DIR. Every measurement is a process of its own; its tables
are compared with sums over whole volumes.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nb
import numpy as np
import pandas as pd
from scipy.ndimage import affine_transform

SPACE = "MNI152NLin6Asym"
VOLUMES = 64
MOST_SECONDS, MOST_MEGABYTES = 10.0, 1000
QUANTITIES = ("r", "z", "t")
# Probabilities are rounded to so much, as atlases of ten or more raters or subjects are.
LEAST = 0.01

# What the nodes of a run do, with the files that they leave between them.
DAMAGE = """
from lacuna_nipype.interfaces.parcels import PrepareParcels, RegionalDamage
prepare = PrepareParcels(in_file=image, labels_file=labels)
if transforms:
    prepare.inputs.reference, prepare.inputs.transforms = mask, transforms
made = prepare.run(cwd=out).outputs.out_file
RegionalDamage(mask_file=mask, parcels_files=[made]).run(cwd=out)
"""
MEANS = """
from lacuna_nipype.interfaces.parcels import AggregateParcels, PrepareParcels
prepare = PrepareParcels(in_file=image, labels_file=labels, reference=maps[0])
if transforms:
    prepare.inputs.transforms = transforms
made = prepare.run(cwd=out).outputs.out_file
AggregateParcels(
    in_files=maps, quantities=["r", "z", "t"], parcels_files=[made]
).run(cwd=out)
"""
MEASURED = """
import ast, sys
image, labels, mask, maps, transforms, out = ast.literal_eval(sys.argv[1])
{steps}
# Not getrusage, whose maximum a process takes over from the one that started it.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def grid_of(size: float) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of the standard grid, as FSL has it: from right to left."""
    shape = {1.0: (182, 218, 182), 2.0: (91, 109, 91)}[size]
    affine = np.diag([-size, size, size, 1])
    affine[:3, 3] = (90, -126, -72)
    return shape, affine


def write_image(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    """Write an image whose position is stated; no half file under the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nb.Nifti1Image(data, affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    temporary = path.with_name(f"part-{path.name}")
    nb.save(image, temporary)
    temporary.replace(path)
    return path


def places(shape: tuple[int, ...], affine: np.ndarray) -> list[np.ndarray]:
    """World coordinates in mm along each axis, to be broadcast."""
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return [affine[i, i] * axis + affine[i, 3] for i, axis in enumerate(axes)]


def make_atlas(folder: Path) -> tuple[Path, Path]:
    """Overlapping blobs in an ellipsoid as large as a brain, about six deep; float32 at 1 mm."""
    path, labels = folder / "blobs_probseg.nii.gz", folder / "blobs_probseg.txt"
    labels.write_text("".join(f"blob {number}\n" for number in range(1, VOLUMES + 1)))
    if path.is_file():
        return path, labels
    rng = np.random.default_rng(17)
    shape, affine = grid_of(1.0)
    x, y, z = (axis.astype(np.float32) for axis in places(shape, affine))
    brain = (x / 70) ** 2 + ((y + 18) / 88) ** 2 + ((z - 8) / 72) ** 2 < 1
    data = np.zeros((*shape, VOLUMES), np.float32, order="F")
    for number in range(VOLUMES):
        centre = rng.normal(size=3)
        centre *= rng.uniform(0.3, 0.95) / np.linalg.norm(centre) * np.array([70, 88, 72])
        width = rng.uniform(8, 14, 3)
        blob = np.exp(
            -(((x - centre[0]) / width[0]) ** 2)
            - ((y - centre[1] + 18) / width[1]) ** 2
            - ((z - centre[2] - 8) / width[2]) ** 2
        )
        data[..., number] = np.where(brain, np.round(blob / LEAST) * LEAST, 0)
    return write_image(path, data, affine), labels


def make_lesion(folder: Path) -> Path:
    """A ball of 30 mm radius, 113 ml, at 1 mm."""
    path = folder / "lesion.nii.gz"
    if not path.is_file():
        shape, affine = grid_of(1.0)
        x, y, z = places(shape, affine)
        ball = (x + 34) ** 2 + (y + 22) ** 2 + (z - 22) ** 2 <= 30**2
        write_image(path, ball.astype(np.uint8), affine)
    return path


def make_maps(folder: Path) -> list[Path]:
    """Three smooth maps at 2 mm, as functional network mapping leaves them."""
    paths = [folder / f"{quantity}.nii.gz" for quantity in QUANTITIES]
    shape, affine = grid_of(2.0)
    x, y, z = places(shape, affine)
    for number, path in enumerate(paths, start=1):
        if not path.is_file():
            data = number * np.sin(x / 17 + number) * np.cos(y / 23) * np.sin(z / 19 - number)
            write_image(path, data.astype(np.float32), affine)
    return paths


# The same numbers over whole volumes


def volumes(image: nb.Nifti1Image) -> Iterator[np.ndarray]:
    for number in range(image.shape[3]):
        yield np.asarray(image.dataobj[..., number], dtype=np.float64)


def expected_damage(atlas: Path, mask: Path) -> np.ndarray:
    """Per cent of each volume's sum inside the lesion; the mask is looked up voxel by voxel."""
    image, lesion = nb.load(atlas, keep_file_open=True), nb.load(mask)
    matrix = np.linalg.inv(lesion.affine) @ image.affine
    index = np.indices(image.shape[:3]).reshape(3, -1)
    # The lattices are the same but for their order.
    voxels = np.rint(matrix[:3, :3] @ index + matrix[:3, 3:]).astype(int)
    inside = np.all((voxels >= 0) & (voxels < np.reshape(lesion.shape, (3, 1))), axis=0)
    hit = np.zeros(len(inside))
    hit[inside] = np.asarray(lesion.dataobj)[tuple(voxels[:, inside])]
    hit = hit.reshape(image.shape[:3])
    return np.array([100 * (data * hit).sum() / data.sum() for data in volumes(image)])


def expected_means(atlas: Path, maps: list[Path]) -> np.ndarray:
    """Weighted means of the maps, of volumes interpolated as a whole: (maps, volumes)."""
    image, reference = nb.load(atlas, keep_file_open=True), nb.load(maps[0])
    values = np.stack([np.asarray(nb.load(path).dataobj, float).ravel() for path in maps])
    matrix = np.linalg.inv(image.affine) @ reference.affine
    means = []
    for data in volumes(image):
        weights = affine_transform(
            data, matrix, output_shape=reference.shape, order=1, mode="grid-constant"
        ).ravel()
        means.append(values @ weights / weights.sum())
    return np.array(means).T


def check_damage(out: Path, atlas: Path, mask: Path, maps: list[Path]) -> float:
    found = pd.read_csv(out / "damage-00.tsv", sep="\t")["damagepct"]
    return float(np.abs(found - expected_damage(atlas, mask)).max())


def check_means(out: Path, atlas: Path, mask: Path, maps: list[Path]) -> float:
    found = [pd.read_csv(out / f"parcels-00_{key}.tsv", sep="\t")[key] for key in QUANTITIES]
    return float(np.abs(np.array(found) - expected_means(atlas, maps)).max())


# Measurements


def processor_seconds() -> float:
    """Of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(steps: str, words: tuple[object, ...]) -> tuple[float, float, float]:
    """Seconds, those of a processor, and highest resident MB of a process, its start included."""
    start, used = time.perf_counter(), processor_seconds()
    run = subprocess.run(
        [sys.executable, "-c", MEASURED.format(steps=steps), repr(words)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if run.returncode:
        sys.exit(run.stderr)
    seconds = time.perf_counter() - start
    return seconds, processor_seconds() - used, int(run.stdout.split()[-1]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder for the data")
    parser.add_argument(
        "--atlas", type=Path, nargs=2, metavar=("NIFTI", "LABELS"),
        help=f"an atlas of your own beside the synthetic one, in {SPACE}",
    )  # fmt: skip
    parser.add_argument(
        "--transforms", type=Path, nargs="+", default=[],
        help="from another space to this one, to measure the way through them too",
    )  # fmt: skip
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    folder = options.data.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    atlases = [make_atlas(folder)]
    if options.atlas:
        atlases.append(tuple(path.absolute() for path in options.atlas))
    mask, maps = make_lesion(folder), make_maps(folder)
    jobs = [("damage", DAMAGE, [], check_damage), ("means of 3 maps", MEANS, [], check_means)]
    if options.transforms:
        jobs.append(("damage, warped", DAMAGE, options.transforms, None))
        jobs.append(("means of 3 maps, warped", MEANS, options.transforms, None))
    print("| atlas | tables | seconds | of a processor | MB | largest difference |")
    print("|---|---|---|---|---|---|")
    missed = []
    for image, labels in atlases:
        for name, steps, transforms, check in jobs:
            out = folder / "out"
            out.mkdir(exist_ok=True)
            words = (
                str(image), str(labels), str(mask), [str(path) for path in maps],
                [str(path.absolute()) for path in transforms], str(out),
            )  # fmt: skip
            results = [measure(steps, words) for _ in range(options.repeat)]
            seconds, busy, megabytes = (
                statistics.median(column) for column in zip(*results, strict=True)
            )
            error = "" if check is None else f"{check(out, image, mask, maps):.1e}"
            cells = (image.name, name, f"{seconds:.1f}", f"{busy:.1f}", f"{megabytes:.0f}", error)
            print(f"| {' | '.join(cells)} |")
            if error and float(error) > 1e-3:
                sys.exit(f"{name} of {image.name} differs from the sums over whole volumes.")
            # One thread: on a machine that nothing else uses both times are nearly the same.
            if busy > MOST_SECONDS or megabytes > MOST_MEGABYTES:
                missed.append(f"{name} of {image.name}")
    if missed:
        sys.exit(f"More than {MOST_SECONDS:g} s or {MOST_MEGABYTES} MB: {', '.join(missed)}.")


if __name__ == "__main__":
    main()
