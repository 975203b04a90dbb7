"""Resting-state series with a known network structure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lacuna_nipype.core.simulation.parcels import NETWORKS

GLOBAL_WEIGHT = 0.3
NETWORK_WEIGHT = 1.0
PARCEL_WEIGHT = 0.7
NOISE_WEIGHT = 0.9
QUANTUM = 1 / 32
"""Values are multiples of this, which is far below the noise and lets gzip work."""


def network_covariance() -> NDArray[np.float64]:
    """Give the covariance of the seven network signals.

    Returns
    -------
    array, shape (7, 7)
        Unit variances; slightly positive between networks, except that the default network is
        anticorrelated with both attention networks.
    """
    covariance = np.full((len(NETWORKS), len(NETWORKS)), 0.05)
    np.fill_diagonal(covariance, 1.0)
    default = NETWORKS.index("Default")
    for name, value in (("DorsAttn", -0.4), ("SalVentAttn", -0.3)):
        other = NETWORKS.index(name)
        covariance[default, other] = covariance[other, default] = value
    attention = NETWORKS.index("DorsAttn"), NETWORKS.index("SalVentAttn")
    covariance[attention] = covariance[attention[::-1]] = 0.15
    return covariance


def simulate_time_series(
    parcels: NDArray[np.integer],
    networks: NDArray[np.integer],
    n_timepoints: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Simulate one subject.

    A voxel of a parcel is the sum of a global signal, the signal of its network, the signal of
    its parcel (mostly shared with the parcel of the other hemisphere) and noise of its own; a
    voxel outside the parcels is global signal and noise. Network strength and noise level
    differ between subjects, that is between calls.

    Parameters
    ----------
    parcels : array of int, shape (n_voxels,)
        Parcel of each voxel from 1, 0 for none.
    networks : array of int, shape (n_parcels,)
        Network of each parcel; the second half are the homologues of the first, in order.
    n_timepoints : int
        Length of the series.
    rng : numpy.random.Generator
        Source of everything random.

    Returns
    -------
    array of float32, shape (n_timepoints, n_voxels)
        The series, rounded to multiples of :data:`QUANTUM`.
    """
    root = np.linalg.cholesky(network_covariance())
    independent = _smooth_signals(rng, n_timepoints, len(NETWORKS))
    network_signal = np.einsum("tj,ij->ti", independent, root)
    network_signal *= np.exp(0.15 * rng.standard_normal(len(NETWORKS)))
    pair = _smooth_signals(rng, n_timepoints, len(networks) // 2)
    own = _smooth_signals(rng, n_timepoints, len(networks))
    parcel_signal = np.sqrt(0.7) * np.tile(pair, 2) + np.sqrt(0.3) * own
    signal = NETWORK_WEIGHT * network_signal[:, networks] + PARCEL_WEIGHT * parcel_signal
    # Column 0 stands for voxels outside the parcels, which carry no signal of their own.
    signal = np.pad(signal, ((0, 0), (1, 0)))
    signal += GLOBAL_WEIGHT * _smooth_signals(rng, n_timepoints, 1)
    noise = rng.standard_normal((n_timepoints, len(parcels)), dtype=np.float32)
    noise *= np.float32(NOISE_WEIGHT * np.exp(0.15 * rng.standard_normal()))
    series = signal.astype(np.float32)[:, parcels] + noise
    return np.round(series / np.float32(QUANTUM)) * np.float32(QUANTUM)


def _smooth_signals(
    rng: np.random.Generator, n_timepoints: int, n_signals: int
) -> NDArray[np.float64]:
    """Draw slow signals of zero mean and unit variance, shape (n_timepoints, n_signals)."""
    signals = ndimage.gaussian_filter1d(
        rng.standard_normal((n_timepoints, n_signals)), sigma=0.8, axis=0, mode="wrap"
    )
    signals -= signals.mean(axis=0)
    return np.asarray(signals / signals.std(axis=0))
