"""What a run costs beside its steps' own work, for cohorts of growing size.

Run ``python benchmarks/overhead.py --data DIR``; see README.md in this folder. Masks, atlas and
connectomes are tiny and made from a seed, so that next to nothing is left but the overhead.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lacuna_nipype.connectomes.tractogram import write_tck
from lacuna_nipype.core.images import save_image
from lacuna_nipype.core.spaces import Grid, grid_of_size

SPACE = "MNI152NLin6Asym"
MASK_MM, CONNECTOME_MM, ATLAS_MM = 4, 8, 8
N_FILES, N_SUBJECTS, N_TIMEPOINTS, N_REGIONS, N_STREAMLINES = 2, 2, 20, 10, 500
# The aim of this package: seconds to build and expand the graph of so many masks.
AIM_MASKS, AIM_SECONDS = 400, 30
# Functions that are timed, by the phase that they are shown as. Some phases have several.
PHASES = {
    "inputs": ("cli.inputs:gather_inputs", "cli.participant:_prepare_output"),
    "recovery": ("cli.recovery:plan_recovery", "cli.recovery:begin", "cli.recovery:end"),
    "build": ("cli.participant:build_workflow",),
    "expand": ("execution.runner:expanded_nodes",),
    "run": ("execution.runner:run_graph",),
    "records": ("cli.participant:_record", "cli.participant:_report"),
}


def make_data(folder: Path, n_masks: int) -> list[str]:
    """Write what is missing of a cohort, and give the words of the command for it."""
    rng = np.random.default_rng(0)
    bids, shared = folder / f"bids-{n_masks}", folder / "shared"
    shared.mkdir(parents=True, exist_ok=True)
    if not (bids / "dataset_description.json").is_file():
        grid = grid_of_size(SPACE, MASK_MM)
        for number in range(n_masks):
            centre = rng.choice([-1, 1]) * rng.uniform(15, 45), *rng.uniform([-60, 0], [20, 40])
            name = f"sub-{number:03d}"
            path = bids / name / "anat" / f"{name}_space-{SPACE}_label-lesion_mask.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_image(path, _ball(grid, centre, rng.uniform(9, 15)), grid.affine, "u1")
        description = {"Name": "Balls", "BIDSVersion": "1.10.0", "DatasetType": "derivative",
                       "GeneratedBy": [{"Name": "overhead.py"}]}  # fmt: skip
        (bids / "dataset_description.json").write_text(json.dumps(description))
    atlas = _write_atlas(shared)
    return [
        *(str(bids), "OUT", "participant"),
        *("--functional-connectome", str(_write_functional(shared, rng))),
        *("--structural-connectome", str(_write_streamlines(shared, rng))),
        *("--structural-space", SPACE, "--snm-engine", "index", "--custom-parcellation", *atlas),
        *("-w", "WORK", "--no-reports"),
    ]


def _ball(grid: Grid, centre: Any, radius: float) -> np.ndarray:
    away = _positions(grid) - np.asarray(centre, dtype=float)[:, np.newaxis]
    return ((away**2).sum(axis=0) < radius**2).reshape(grid.shape)


def _brain(grid: Grid) -> np.ndarray:
    scaled = (_positions(grid) - [[0], [-18], [10]]) / [[68], [86], [70]]
    return ((scaled**2).sum(axis=0) < 1).reshape(grid.shape)


def _positions(grid: Grid) -> np.ndarray:
    index = np.indices(grid.shape).reshape(3, -1)
    return grid.affine[:3, :3] @ index + grid.affine[:3, 3:]


def _write_functional(folder: Path, rng: np.random.Generator) -> Path:
    location = folder / "functional"
    location.mkdir(exist_ok=True)
    grid = grid_of_size(SPACE, CONNECTOME_MM)
    voxels = np.argwhere(_brain(grid)).T
    shape = (N_SUBJECTS, N_TIMEPOINTS, voxels.shape[1])
    for number in range(N_FILES):
        path = location / f"part-{number}.h5"
        if path.is_file():
            continue
        with h5py.File(path, "w") as out:
            out["timeseries"] = rng.standard_normal(shape, dtype=np.float32)
            out["mask_indices"], out["mask_affine"] = voxels, grid.affine
            out.attrs["mask_shape"], out.attrs["space"] = grid.shape, SPACE
    return location


def _write_streamlines(folder: Path, rng: np.random.Generator) -> Path:
    path = folder / "tracks.tck"
    if not path.is_file():
        ways = np.linspace([-40, 0, 0], [40, 0, 0], 81)
        shifts = rng.uniform([-10, -60, -10], [10, 30, 40], (N_STREAMLINES, 3))
        write_tck(path, (ways + shift for shift in shifts), step_size=1.0)
    return path


def _write_atlas(folder: Path) -> list[str]:
    image, labels = folder / "atlas.nii.gz", folder / "atlas.txt"
    if not labels.is_file():
        grid = grid_of_size(SPACE, ATLAS_MM)
        inside = np.flatnonzero(_brain(grid))
        numbers = np.zeros(int(np.prod(grid.shape)), dtype=np.int16)
        numbers[inside] = 1 + np.arange(len(inside)) * N_REGIONS // len(inside)
        save_image(image, numbers.reshape(grid.shape), grid.affine, "i2")
        lines = (f"{number} Region{number}\n" for number in range(1, N_REGIONS + 1))
        labels.write_text("".join(lines))
    return ["Slabs", str(image), str(labels), SPACE]


def time_command(started: float, answer: Path, words: list[str]) -> int:
    """Run the command in this process, with its phases timed, and write the times down.

    Parameters
    ----------
    started : float
        When the process was started, in seconds of the epoch.
    answer : Path
        JSON to write.
    words : list of str
        Of the command.
    """
    times: dict[str, dict[str, float]] = {}
    outcomes: list[Any] = []

    def timed(phase: str, function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            wall, processor = time.time(), time.process_time()
            try:
                result = function(*args, **kwargs)
            finally:
                own = times.setdefault(phase, {"wall": 0.0, "cpu": 0.0, "first": wall})
                own["wall"] += time.time() - wall
                own["cpu"] += time.process_time() - processor
            if phase == "run":
                outcomes.append(result)
            return result

        return run

    for phase, places in PHASES.items():
        for place in places:
            module, name = place.split(":")
            owner = import_module(f"lacuna_nipype.{module}")
            setattr(owner, name, timed(phase, getattr(owner, name)))
    from lacuna_nipype.cli.main import main as run_command

    code = run_command(words)
    content = {
        "times": times,
        "start": min(own["first"] for own in times.values()) - started,
        "manager_cpu": time.process_time(),
        "steps": Counter(
            record.status for outcome in outcomes for record in outcome.nodes.values()
        ),
    }
    answer.write_text(json.dumps(content))
    return code


def measure(folder: Path, words: list[str], *options: str) -> dict[str, Any]:
    """Time the command in a process of its own; with the steps' own seconds, where it ran any."""
    out, work, answer = folder / "out", folder / "work", folder / "answer.json"
    for path in (out, work):
        shutil.rmtree(path, ignore_errors=True)
    places = {"OUT": str(out), "WORK": str(work)}
    own = [places.get(word, word) for word in words]
    started = time.time()
    command = [sys.executable, __file__, "--inside", str(started), str(answer), *own, *options]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             check=False)  # fmt: skip
    wall = time.time() - started
    if process.returncode:
        raise RuntimeError(process.stdout)
    said = process.stdout.splitlines()[-1]
    found = json.loads(answer.read_text())
    return {**found, "wall": wall, "compute": _compute(work), "said": said}


def _compute(work: Path) -> float:
    """Sum of the seconds that the interfaces of finished nodes took, as nipype noted them."""
    seconds = 0.0
    for path in work.rglob("result_*.pklz"):
        with gzip.open(path, "rb") as stream:
            result = pickle.load(stream)  # noqa: S301 - written by our own run
        # A MapNode's own result is made of those of its pieces.
        if not isinstance(result.runtime, list):
            seconds += getattr(result.runtime, "duration", None) or 0.0
    return seconds


def show_graphs(folder: Path, sizes: list[int]) -> None:
    """Print what building and expanding graphs takes: dry runs, of which nothing is run."""
    print("| masks | steps | build, s | expand, s | inputs, s | recovery, s | command, s |")
    print("|---|---|---|---|---|---|---|")
    for size in sizes:
        found = measure(folder, make_data(folder, size), "--dry-run")
        walls = {phase: own["wall"] for phase, own in found["times"].items()}
        steps = found["said"].split(":")[1].split()[0]
        print(
            f"| {size} | {steps} | {walls['build']:.1f} | {walls['expand']:.1f} "
            f"| {walls['inputs']:.1f} | {walls['recovery']:.1f} | {found['wall']:.1f} |",
            flush=True,
        )
        # On a machine that others use too, the processor's seconds are those that count.
        spent = found["times"]["build"]["cpu"] + found["times"]["expand"]["cpu"]
        if size == AIM_MASKS and spent > AIM_SECONDS:
            raise RuntimeError(f"{size} masks took {spent:.0f} s, not {AIM_SECONDS} s.")


def show_runs(folder: Path, sizes: list[int], ways: list[tuple[str, int]]) -> None:
    """Print what runs take, and where that goes."""
    print(
        "| masks | plugin | steps | command, s | steps' own work, s | ratio | start | inputs "
        "| recovery | build and expand | graph | records | graph per step, ms "
        "| processor of the manager, s |"
    )
    print("|" + "---|" * 14)
    for size in sizes:
        words = make_data(folder, size)
        for plugin, nprocs in ways:
            found = measure(folder, words, "--plugin", plugin, "--nprocs", str(nprocs))
            walls = {phase: own["wall"] for phase, own in found["times"].items()}
            n_steps = found["steps"]["done"]
            print(
                f"| {size} | {plugin}, {nprocs} | {n_steps} | {found['wall']:.1f} "
                f"| {found['compute']:.1f} | {found['wall'] / found['compute']:.2f} "
                f"| {found['start']:.1f} | {walls['inputs']:.1f} | {walls['recovery']:.1f} "
                f"| {walls['build'] + walls['expand']:.1f} | {walls['run']:.1f} "
                f"| {walls['records']:.1f} | {1000 * walls['run'] / n_steps:.0f} "
                f"| {found['manager_cpu']:.1f} |",
                flush=True,
            )


def main() -> None:
    """Command line."""
    if sys.argv[1:2] == ["--inside"]:
        sys.exit(time_command(float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder for the data")
    parser.add_argument("--masks", type=int, nargs="+", default=[4, 40, 400])
    parser.add_argument("--nprocs", type=int, default=2, help="of MultiProc")
    parser.add_argument("--plugins", nargs="+", default=["Linear", "MultiProc"])
    parser.add_argument("--only", choices=["graphs", "runs"])
    arguments = parser.parse_args()
    os.environ["LACUNA_DATA_DIR"] = str(arguments.data / "registry")
    if arguments.only != "runs":
        show_graphs(arguments.data, arguments.masks)
    if arguments.only != "graphs":
        ways = [(plugin, 1 if plugin == "Linear" else arguments.nprocs)
                for plugin in arguments.plugins]  # fmt: skip
        show_runs(arguments.data, arguments.masks, ways)


if __name__ == "__main__":
    main()
