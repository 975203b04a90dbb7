"""Error rates, power, time and memory of the association of maps with a score.

Run ``python benchmarks/association.py``; see README.md in this folder. Cohorts are simulated from
seeds. Lesion volume may make maps and score alike: by itself, which the covariate of the group
level takes out, or by its logarithm, which that covariate takes out in part only.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import nibabel as nb
import numpy as np
from scipy import ndimage, stats

from lacuna_nipype.core.association import Design, associate, make_design

SHAPE = (20, 24, 20)  # a brain in voxels of 8 mm
SMOOTH = 1.5
NETWORK = (slice(4, 8), slice(10, 14), slice(8, 12))
# Reached by the network through smoothing, and therefore no error.
REACH = 6


def brain() -> np.ndarray:
    """Make an ellipsoid of voxels."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    return sum(axis**2 for axis in axes) <= 1


def simulate(
    seed: int, n: int, effect: float, kind: str, role: str
) -> tuple[np.ndarray, Design, np.ndarray]:
    """One cohort: maps (n, voxels), design, and the voxels; role is what volume does."""
    rng = np.random.default_rng(seed)
    inside = brain()
    volume = rng.lognormal(2.5, 1, size=n)
    log_volume = np.log(volume)
    acting = {"none": np.zeros(n), "linear": volume, "log": log_volume}[role]
    acting = (acting - acting.mean()) / (acting.std() or 1.0)
    maps = np.empty((n, int(inside.sum())), dtype=np.float32)
    load = np.empty(n)
    for row in range(n):
        field = ndimage.gaussian_filter(rng.normal(size=SHAPE), SMOOTH)
        field /= field.std()
        if kind == "lesion":
            # The largest values of a smooth field: an odd shape of some volume.
            share = min(0.4, 0.02 + 0.03 * (log_volume[row] - log_volume.min()))
            data = (field > np.quantile(field[inside], 1 - share)).astype(np.float32)
        else:
            data = field + 0.3 * acting[row]
        load[row] = data[NETWORK].mean()
        maps[row] = data[inside]
    noise = rng.normal(size=n) + 0.5 * acting
    spread = load.std() or 1.0
    score = noise + effect * (load - load.mean()) / spread
    if role == "none":
        return maps, make_design(score), inside
    return maps, make_design(score, volume[:, None], covariate_names=["volume"]), inside


def one_cohort(
    seed: int, *, n: int, effect: float, kind: str, role: str, permutations: int, tfce: bool
) -> tuple[bool, bool, bool]:
    """Whether anything is significant, anything in the network, anything out of its reach."""
    maps, design, inside = simulate(seed, n, effect, kind, role)
    if kind == "lesion":
        maps[:, (maps > 0).sum(axis=0) < math.ceil(0.1 * n)] = np.nan
    volume = nb.Nifti1Image(inside.astype(np.uint8), np.diag([8.0, 8, 8, 1])) if tfce else None
    result = associate(maps, design, permutations=permutations, seed=seed, volume=volume)
    log_p = result.log_p_tfce if tfce else result.log_p
    significant = np.zeros(SHAPE, dtype=bool)
    significant[inside] = np.nan_to_num(log_p) >= -math.log10(0.05) - 1e-12
    near = np.zeros(SHAPE, dtype=bool)
    near[NETWORK] = True
    far = ~ndimage.binary_dilation(near, iterations=REACH)
    return bool(significant.any()), bool(significant[near].any()), bool(significant[far].any())


def rates(options: argparse.Namespace) -> None:
    print("| maps | volume acts | test | n | cohorts | any p <= 0.05 | by chance | judgement |")
    print("|---|---|---|---|---|---|---|---|")
    rows = [(role, False) for role in options.roles] + [("linear", True)] * bool(
        options.tfce_cohorts
    )
    for role, tfce in rows:
        for kind in ("network", "lesion"):
            for n in (15, 40):
                cohorts = options.tfce_cohorts if tfce else options.cohorts
                run = partial(
                    one_cohort,
                    n=n,
                    effect=0.0,
                    kind=kind,
                    role=role,
                    permutations=options.permutations,
                    tfce=tfce,
                )
                hits = sum(any_ for any_, _, _ in over_processes(run, cohorts, options))
                low, high = stats.binom.interval(0.999, cohorts, 0.05)
                judgement = "too many" if hits > high else "fewer" if hits < low else "nominal"
                print(
                    f"| {kind} | {role} | {'TFCE' if tfce else 'voxels'} | {n} | {cohorts} | "
                    f"{hits} ({hits / cohorts:.1%}) | {low:.0f} to {high:.0f} | {judgement} |",
                    flush=True,
                )


def power(options: argparse.Namespace) -> None:
    print("\n| maps | n | planted r | cohorts | found in the network | something far from it |")
    print("|---|---|---|---|---|---|")
    for kind in ("network", "lesion"):
        for n in (20, 40, 80):
            for effect in (0.5, 1.0):
                run = partial(
                    one_cohort,
                    n=n,
                    effect=effect,
                    kind=kind,
                    role="linear",
                    permutations=options.permutations,
                    tfce=False,
                )
                found = over_processes(run, options.power_cohorts, options)
                hits, astray = (sum(row[k] for row in found) for k in (1, 2))
                r = effect / math.hypot(1, effect)
                print(
                    f"| {kind} | {n} | {r:.2f} | {len(found)} | {hits / len(found):.0%} | "
                    f"{astray / len(found):.0%} |",
                    flush=True,
                )


def over_processes(run: partial, cohorts: int, options: argparse.Namespace) -> list:
    with ProcessPoolExecutor(options.nprocs) as pool:
        return list(pool.map(run, range(1, cohorts + 1), chunksize=5))


def measure(voxels: int, n: int, permutations: int) -> None:
    """Run in a process of its own: print seconds and peak memory as JSON."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(n, voxels)).astype(np.float32)
    design = make_design(rng.normal(size=n), rng.normal(size=(n, 1)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    associate(maps, design, permutations=permutations)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak": peak / 1e6, "added": (peak - before) / 1e6}))


def speed(options: argparse.Namespace) -> None:
    print("\n| n | voxels | permutations | s | s for 5000 | peak GB | beyond the maps, GB |")
    print("|---|---|---|---|---|---|---|")
    for n in options.participants:
        words = [sys.executable, str(Path(__file__)), "--measure", options.voxels, n]
        words += [options.speed_permutations]
        done = subprocess.run(
            [str(word) for word in words], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout)
        scaled = found["seconds"] * 5000 / options.speed_permutations
        print(
            f"| {n} | {options.voxels} | {options.speed_permutations} | {found['seconds']:.1f} | "
            f"{scaled:.0f} | {found['peak']:.2f} | {found['added']:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cohorts", type=int, default=1000)
    parser.add_argument("--tfce-cohorts", type=int, default=200)
    parser.add_argument("--power-cohorts", type=int, default=200)
    parser.add_argument("--permutations", type=int, default=99)
    parser.add_argument(
        "--roles", nargs="+", choices=["none", "linear", "log"], default=["none", "linear", "log"]
    )
    parser.add_argument("--nprocs", type=int, default=2)
    parser.add_argument("--voxels", type=int, default=230_000, help="a brain in voxels of 2 mm")
    parser.add_argument("--participants", type=int, nargs="+", default=[33, 100, 500])
    parser.add_argument("--speed-permutations", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=["rates", "power", "speed"])
    parser.add_argument("--measure", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    for part in (rates, power, speed):
        if not options.only or part.__name__ in options.only:
            part(options)


if __name__ == "__main__":
    main()
