"""A parcellation from scratch: clusters of voxels, named after the nearest network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

NETWORK_CENTRES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "Vis": ((-10, -92, 0), (-8, -76, 4), (-26, -76, -10), (-30, -86, 14), (-14, -84, 30)),
    "SomMot": ((-40, -24, 56), (-8, -24, 66), (-22, -34, 68), (-56, -8, 32), (-56, -22, 10)),
    "DorsAttn": ((-26, -62, 54), (-24, -2, 58), (-46, -64, -4), (-40, -38, 46), (-52, 4, 32)),
    "SalVentAttn": (
        (-38, 8, 0),
        (-40, -10, -2),
        (-6, 10, 46),
        (-60, -38, 28),
        (-30, 46, 26),
        (-52, 10, 8),
    ),
    "Limbic": ((-12, 32, -22), (-34, 10, -36), (-28, -12, -32), (-24, 52, -14)),
    "Cont": (
        (-44, 32, 22),
        (-46, -50, 50),
        (-38, 52, 2),
        (-60, -46, -12),
        (-4, 28, 46),
        (-38, 20, 46),
    ),
    "Default": (
        (-6, 52, 16),
        (-6, 40, -8),
        (-6, -54, 28),
        (-48, -66, 32),
        (-60, -14, -16),
        (-50, 12, -22),
        (-22, 30, 46),
        (-48, 28, 0),
    ),
}
"""Approximate MNI centres (mm, RAS, left hemisphere) of the seven cortical networks."""

NETWORKS: tuple[str, ...] = tuple(NETWORK_CENTRES)


def cluster_parcels(
    points: NDArray[np.floating],
    n_parcels: int,
    rng: np.random.Generator,
    *,
    n_iterations: int = 40,
) -> NDArray[np.intp]:
    """Cut a cloud of points into compact parcels of similar size (k-means).

    Parameters
    ----------
    points : array, shape (n_points, 3)
        Coordinates in mm.
    n_parcels : int
        Number of parcels; at most the number of points.
    rng : numpy.random.Generator
        Source of the starting centres (k-means++).
    n_iterations : int
        Upper bound on the passes of Lloyd's algorithm.

    Returns
    -------
    array of int, shape (n_points,)
        Parcel of each point, 0 to ``n_parcels - 1``; no parcel is empty.
    """
    if not 1 <= n_parcels <= len(points):
        raise ValueError(f"Cannot cut {len(points)} points into {n_parcels} parcels.")
    centres = _spread_centres(points, n_parcels, rng)
    labels = np.full(len(points), -1, dtype=np.intp)
    for _ in range(n_iterations):
        updated = cKDTree(centres).query(points)[1]
        if np.array_equal(updated, labels):
            break
        labels = updated
        # An emptied cluster would vanish: it restarts at the worst served point.
        for empty in np.flatnonzero(np.bincount(labels, minlength=n_parcels) == 0):
            labels[np.argmax(np.linalg.norm(points - centres[labels], axis=1))] = empty
        centres = parcel_centroids(points, labels, n_parcels)
    return labels


def _spread_centres(
    points: NDArray[np.floating], n_parcels: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Choose starting centres, each far from the ones before (k-means++)."""
    chosen = [int(rng.integers(len(points)))]
    nearest = np.sum((points - points[chosen[0]]) ** 2, axis=1, dtype=np.float64)
    for _ in range(1, n_parcels):
        cumulative = np.cumsum(nearest)
        draw = rng.random() * cumulative[-1]
        chosen.append(min(int(np.searchsorted(cumulative, draw, "right")), len(points) - 1))
        nearest = np.minimum(nearest, np.sum((points - points[chosen[-1]]) ** 2, axis=1))
    return np.asarray(points[chosen], dtype=np.float64)


def parcel_centroids(
    points: NDArray[np.floating], labels: NDArray[np.integer], n_parcels: int
) -> NDArray[np.float64]:
    """Give the mean coordinate of each parcel.

    Parameters
    ----------
    points : array, shape (n_points, 3)
        Coordinates in mm.
    labels : array of int, shape (n_points,)
        Parcel of each point, from 0.
    n_parcels : int
        Number of parcels.

    Returns
    -------
    array, shape (n_parcels, 3)
        Centroids in mm; NaN for a parcel without points.
    """
    counts = np.bincount(labels, minlength=n_parcels).astype(np.float64)
    counts[counts == 0] = np.nan
    sums = [np.bincount(labels, weights=axis, minlength=n_parcels) for axis in points.T]
    return np.stack(sums, axis=1) / counts[:, None]


def assign_networks(centroids: NDArray[np.floating]) -> NDArray[np.intp]:
    """Assign each parcel to the network with the nearest reference centre.

    Parameters
    ----------
    centroids : array, shape (n_parcels, 3)
        MNI coordinates in mm; either hemisphere (the right one is mirrored).

    Returns
    -------
    array of int, shape (n_parcels,)
        Index into :data:`NETWORKS`.
    """
    centres = np.concatenate([np.asarray(c, float) for c in NETWORK_CENTRES.values()])
    owner = np.repeat(np.arange(len(NETWORKS)), [len(c) for c in NETWORK_CENTRES.values()])
    left = np.array(centroids, dtype=np.float64)
    left[:, 0] = -np.abs(left[:, 0])
    return owner[cKDTree(centres).query(left)[1]]


def order_parcels(
    centroids: NDArray[np.floating], networks: NDArray[np.integer]
) -> NDArray[np.intp]:
    """Order parcels by network, and from back to front within a network.

    Parameters
    ----------
    centroids : array, shape (n_parcels, 3)
        Coordinates in mm.
    networks : array of int, shape (n_parcels,)
        Network of each parcel.

    Returns
    -------
    array of int, shape (n_parcels,)
        Parcels in their new order, as :func:`numpy.argsort` gives it.
    """
    return np.lexsort((centroids[:, 0], centroids[:, 1], networks))


def parcel_names(networks: Sequence[int] | NDArray[np.integer], hemisphere: str) -> list[str]:
    """Name parcels the way the Schaefer atlas does, e.g. ``7Networks_LH_Vis_1``.

    Parameters
    ----------
    networks : sequence of int, shape (n_parcels,)
        Network of each parcel, index into :data:`NETWORKS`.
    hemisphere : str
        ``"LH"`` or ``"RH"``.

    Returns
    -------
    list of str
        Unique names; the number counts within the network.
    """
    seen = [0] * len(NETWORKS)
    names = []
    for network in networks:
        seen[network] += 1
        names.append(f"7Networks_{hemisphere}_{NETWORKS[network]}_{seen[network]}")
    return names


def nearest_parcel(
    points: NDArray[np.floating],
    parcel_points: NDArray[np.floating],
    parcel_labels: NDArray[np.integer],
    *,
    max_distance: float,
) -> NDArray[np.int64]:
    """Find the parcel nearest to each point.

    Parameters
    ----------
    points : array, shape (n_points, 3)
        Coordinates in mm to look up.
    parcel_points : array, shape (n_parcel_points, 3)
        Coordinates in mm of the voxels of the parcellation.
    parcel_labels : array of int, shape (n_parcel_points,)
        Label of each of them, from 1.
    max_distance : float
        Points farther than this (mm) from every parcel get 0.

    Returns
    -------
    array of int64, shape (n_points,)
        Label of each point, 0 where there is none.
    """
    tree = cKDTree(parcel_points)
    distance, index = tree.query(points, distance_upper_bound=max_distance)
    found = np.isfinite(distance)
    labels = np.zeros(len(points), dtype=np.int64)
    labels[found] = parcel_labels[index[found]]
    return labels
