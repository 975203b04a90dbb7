"""Seed-based correlation of one subject after another, kept as running moments.

The only arrays that live on between subjects are the number of subjects, and per seed and voxel
the mean of Fisher's z and the sum of its squared deviations (M2). Moments of separate groups of
subjects merge exactly (Chan, Golub & LeVeque 1979, doi:10.21236/ADA083170), so that the pieces of
a connectome can be processed anywhere, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# |r| never reaches 1, so that z stays finite: arctanh(1 - 1e-7) = 8.4.
R_LIMIT = 1.0 - 1e-7
VOXEL_BLOCK = 4096


@dataclass
class Moments:
    """Running moments of Fisher's z over subjects.

    Parameters
    ----------
    n_subjects : int
        Subjects seen so far.
    mean : array, shape (n_seeds, n_voxels), float64
        Mean of z.
    m2 : array, shape (n_seeds, n_voxels), float64
        Sum of squared deviations of z from its mean.
    n_varying : array, shape (n_voxels,), int32
        In how many subjects the voxel's series varies over time (and is finite).
    """

    n_subjects: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    n_varying: NDArray[np.int32]

    @classmethod
    def zeros(cls, n_seeds: int, n_voxels: int) -> Moments:
        """Moments of no subject at all."""
        return cls(
            0,
            np.zeros((n_seeds, n_voxels)),
            np.zeros((n_seeds, n_voxels)),
            np.zeros(n_voxels, dtype=np.int32),
        )


def bytes_per_seed(n_voxels: int) -> int:
    """Memory that each further seed takes in a pass, in bytes (two float64 maps, a block)."""
    return 2 * 8 * n_voxels + 4 * 8 * VOXEL_BLOCK


def block_bytes(n_timepoints: int) -> int:
    """Memory that a thread takes for a block of voxels, whatever the number of seeds."""
    return 2 * 8 * n_timepoints * VOXEL_BLOCK


def seed_series(
    series: NDArray[np.floating], seeds: Sequence[NDArray[np.intp]]
) -> NDArray[np.float64]:
    """Mean raw series of each seed (Boes et al. 2015, doi:10.1093/brain/awv228), unit norm.

    Parameters
    ----------
    series : array, shape (n_timepoints, n_voxels)
        One subject. Voxels with a value that is not finite are left out of the mean.
    seeds : sequence of int arrays
        Positions of each seed's voxels on the second axis; may be empty.

    Returns
    -------
    array, shape (n_seeds, n_timepoints), float64
        Centred over time and of unit norm; zeros for a seed that is empty or does not vary.
    """
    out = np.zeros((len(seeds), series.shape[0]))
    for row, voxels in enumerate(seeds):
        values = series[:, voxels]
        finite = np.isfinite(values).all(axis=0)
        if not finite.any():
            continue
        mean = values[:, finite].mean(axis=1, dtype=np.float64)
        # Taking the first value off beforehand makes a constant series exactly zero.
        mean -= mean[0]
        mean -= mean.mean()
        norm = np.sqrt(mean @ mean)
        if norm > 0:
            out[row] = mean / norm
    return out


def unit_columns(block: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Centre each voxel's series over time and scale it to unit norm.

    Parameters
    ----------
    block : array, shape (n_timepoints, n_voxels)

    Returns
    -------
    unit : array, shape (n_timepoints, n_voxels), float64
        Zeros where the series is constant or holds a value that is not finite.
    varies : array of bool, shape (n_voxels,)
    """
    values = block.astype(np.float64)
    finite = np.isfinite(values).all(axis=0)
    if not finite.all():
        values[:, ~finite] = 0.0
    values -= values[0]
    values -= values.mean(axis=0)
    norm = np.sqrt(np.einsum("tv,tv->v", values, values))
    varies = norm > 0
    values /= np.where(varies, norm, 1.0)
    return values, varies


def add_subject(
    moments: Moments,
    series: NDArray[np.floating],
    seeds: Sequence[NDArray[np.intp]],
    run: Callable[[Callable[[int], None], Iterable[int]], Iterable[None]] = map,
) -> None:
    """Correlate every seed with every voxel of one subject and update the moments in place.

    Parameters
    ----------
    moments : Moments
        Changed in place.
    series : array, shape (n_timepoints, n_voxels)
        One subject's series, raw.
    seeds : sequence of int arrays
        As in :func:`seed_series`; one row of the moments each.
    run : callable
        Applies a function to each block of voxels like ``map``, which is the default; ``map`` of
        a thread pool gives the same numbers.
    """
    seed = seed_series(series, seeds)
    moments.n_subjects += 1
    for _ in run(
        lambda start: _add_block(moments, series, seed, start),
        range(0, series.shape[1], VOXEL_BLOCK),
    ):
        pass


def _add_block(
    moments: Moments, series: NDArray[np.floating], seed: NDArray[np.float64], start: int
) -> None:
    block = slice(start, min(start + VOXEL_BLOCK, series.shape[1]))
    z, varies = correlate_block(series[:, block], seed)
    np.clip(z, -R_LIMIT, R_LIMIT, out=z)
    np.arctanh(z, out=z)
    # Welford's update: equal values leave the deviations at exactly zero.
    delta = z - moments.mean[:, block]
    moments.mean[:, block] += delta / moments.n_subjects
    z -= moments.mean[:, block]
    moments.m2[:, block] += np.multiply(delta, z, out=delta)
    moments.n_varying[block] += varies


def correlate_block(
    block: NDArray[np.floating], seed: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Correlate seeds with some voxels.

    Parameters
    ----------
    block : array, shape (n_timepoints, n_voxels)
        Raw series.
    seed : array, shape (n_seeds, n_timepoints), float64
        Centred, of unit norm.

    Returns
    -------
    r : array, shape (n_seeds, n_voxels), float64
        Zero where the voxel's series is constant or holds a value that is not finite.
    varies : array of bool, shape (n_voxels,)
    """
    n_times = block.shape[0]
    with np.errstate(invalid="ignore", over="ignore"):
        # Relative to the first value a constant series is exactly zero. That value lies within
        # sqrt(T) standard deviations of the mean, so the variance below loses three digits at
        # most, and the series need not be centred: the seeds are.
        values = np.subtract(block, block[0], dtype=np.float64)
        squares = np.einsum("tv,tv->v", values, values)
        if not np.isfinite(squares).all():
            values[:, ~np.isfinite(squares)] = 0.0
            squares[~np.isfinite(squares)] = 0.0
    sums = np.concatenate([seed, np.ones((1, n_times))]) @ values
    squares -= sums[-1] ** 2 / n_times
    varies = squares > 0
    r = sums[:-1]
    r /= np.sqrt(np.where(varies, squares, 1.0))
    r[:, ~varies] = 0.0
    return r, varies


def merge_moments(first: Moments, second: Moments) -> Moments:
    """Moments of two disjoint groups of subjects taken together.

    Parameters
    ----------
    first, second : Moments
        Of the same seeds and voxels; left unchanged.

    Returns
    -------
    Moments
    """
    n = first.n_subjects + second.n_subjects
    if n == 0:
        return Moments.zeros(*first.mean.shape)
    delta = second.mean - first.mean
    return Moments(
        n,
        first.mean + delta * (second.n_subjects / n),
        first.m2 + second.m2 + delta**2 * (first.n_subjects * second.n_subjects / n),
        first.n_varying + second.n_varying,
    )


@dataclass(frozen=True)
class CorrelationMaps:
    """Group maps of one or more seeds; arrays of shape (..., n_voxels), float64.

    Parameters
    ----------
    z : array
        Mean of Fisher's z over subjects.
    r : array
        tanh of z: the mean correlation, averaged through z.
    t : array or None
        One-sample t of z against zero; 0 where z does not vary over subjects; None for a single
        subject, which has no variance.
    standard_error : array or None
        Of z; 0 where z does not vary over subjects; None for a single subject.
    """

    z: NDArray[np.float64]
    r: NDArray[np.float64]
    t: NDArray[np.float64] | None
    standard_error: NDArray[np.float64] | None = None


def correlation_maps(moments: Moments) -> CorrelationMaps:
    """Turn moments into group maps.

    Parameters
    ----------
    moments : Moments
        Of all subjects.

    Returns
    -------
    CorrelationMaps
        t = z / (sd / sqrt(N)) with sd over subjects, ddof = 1. A deviation at the level of
        float64 rounding counts as none.
    """
    n = moments.n_subjects
    z = moments.mean
    if n < 2:
        return CorrelationMaps(z, np.tanh(z), None)
    rounding = n * (16 * np.finfo(np.float64).eps * np.maximum(np.abs(z), 1.0)) ** 2
    varies = moments.m2 > rounding
    standard_error = np.sqrt(np.where(varies, moments.m2, 0.0) / (n - 1) / n)
    return CorrelationMaps(z, np.tanh(z), t_values(z, standard_error), standard_error)


def t_values(z: NDArray[np.floating], standard_error: NDArray[np.floating]) -> NDArray[np.float64]:
    """One-sample t: z over its standard error, 0 where that is 0."""
    varies = standard_error > 0
    return np.where(varies, z / np.where(varies, standard_error, 1.0), 0.0)
