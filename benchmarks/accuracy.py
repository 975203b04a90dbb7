"""Errors of our stores: z and t from int16 and int8 coefficients against float64 series.

Run ``python benchmarks/accuracy.py``; it takes about a minute and writes nothing that stays.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from fnm import AFFINE, N_TIMES, SHAPE, STORES, brain_voxels, lesions, make_subject, networks
from threadpoolctl import threadpool_limits

from lacuna_nipype.connectomes.functional import read_connectome_file
from lacuna_nipype.connectomes.seeds import make_seed
from lacuna_nipype.connectomes.store import StoreSource, write_store
from lacuna_nipype.connectomes.store_pass import correlate_store
from lacuna_nipype.core.correlation import Moments, correlation_maps
from lacuna_nipype.core.spaces import Grid

# Relative errors of t where t > 3 with 200 subjects: median and 99th percentile.
EXPECTED = {"int16": (2e-6, 1.2e-5), "int8": (3.5e-4, 2.1e-3)}


def exact(subjects: list[np.ndarray], seeds: list[np.ndarray]) -> Moments:
    """Moments of z, from a plain loop in float64."""
    shape = (len(subjects), len(seeds), subjects[0].shape[1])
    z = np.zeros(shape)
    for subject, series in enumerate(subjects):
        values = series.astype(np.float64)
        for row, seed in enumerate(seeds):
            mean = values[:, seed].mean(axis=1)
            centred = values - values.mean(axis=0)
            mean -= mean.mean()
            r = mean @ centred / np.linalg.norm(mean) / np.linalg.norm(centred, axis=0)
            z[subject, row] = np.arctanh(np.clip(r, -1 + 1e-7, 1 - 1e-7))
    mean = z.mean(axis=0)
    varying = np.full(shape[2], len(subjects), dtype=np.int32)
    return Moments(len(subjects), mean, ((z - mean) ** 2).sum(axis=0), varying)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voxels", type=int, default=4000)
    parser.add_argument("--subjects", type=int, default=200)
    parser.add_argument("--lesions", type=int, default=10)
    arguments = parser.parse_args()
    # Spread over the whole brain, so that correlations are of all sizes.
    whole = brain_voxels(235_375)
    chosen = np.linspace(0, whole.shape[1] - 1, arguments.voxels).astype(int)
    voxels, loadings = whole[:, chosen], np.ascontiguousarray(networks(whole)[:, chosen])
    subjects = [make_subject(number, loadings) for number in range(arguments.subjects)]
    seeds = lesions(voxels, arguments.lesions)
    expected = correlation_maps(exact(subjects, seeds))
    outside = np.ones(expected.z.shape, dtype=bool)
    for row, seed in enumerate(seeds):
        outside[row, seed] = False
    source = StoreSource(Grid.make(SHAPE, AFFINE), voxels, N_TIMES, "MNI152NLin6Asym", ("x",))
    quartiles = np.percentile(expected.t[outside & (expected.t > 3)], [25, 50, 75]).round(1)
    print(
        f"{arguments.subjects} subjects, {arguments.voxels} voxels, {arguments.lesions} lesions; "
        "voxels outside the lesion; relative errors of t where t > 3 "
        f"(quartiles of t there {', '.join(map(str, quartiles))}).\n"
    )
    print("| store | rank | z: median | z: p99 | t: median | t: p99 | expected t (median, p99) |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        for kind in STORES:
            path = write_store(Path(folder) / f"{kind}.h5", source, iter(subjects), kind=kind)
            file = read_connectome_file(path)
            own = []
            for seed in seeds:
                mask = np.zeros(SHAPE, dtype=bool)
                mask[tuple(voxels[:, seed])] = True
                own.append(make_seed(mask, file).voxels)
            maps = correlation_maps(correlate_store(file, own))
            place = np.full(SHAPE, -1)
            place[tuple(file.voxels)] = np.arange(file.n_voxels)
            back = place[tuple(voxels)]
            z_error = np.abs(maps.z[:, back] - expected.z)[outside]
            large = outside & (expected.t > 3)
            t_error = np.abs(maps.t[:, back] / np.where(large, expected.t, 1.0) - 1)[large]
            cells = (
                f"{value:.1e}"
                for error in (z_error, t_error)
                for value in (np.median(error), np.percentile(error, 99))
            )
            rank = file.precision.rank if file.precision else 0
            print(
                f"| {kind} | {rank} | {' | '.join(cells)} | "
                f"{EXPECTED[kind][0]:.1e}, {EXPECTED[kind][1]:.1e} |"
            )
    print(
        "\nNot shown: real data (other ranks and spatial smoothness), voxels inside the lesion, "
        "whose correlation with its mean may be near 1, where z magnifies any error."
    )


if __name__ == "__main__":
    main()
