"""Streamlines between the parcels of a brain.

Every streamline is a smooth curve of two cubic Bezier pieces that meet at a way point: somewhere
in deep white matter (association), in the corpus callosum (callosal) or in the internal capsule
(corticospinal).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from lacuna_nipype.core.simulation.parcels import NETWORKS, parcel_centroids

Points = NDArray[np.float64]

KIND_SHARES = {"association": 0.70, "callosal": 0.22, "corticospinal": 0.08}
WITHIN_NETWORK_FACTOR = 3.0
DISTANCE_SCALE_MM = 35.0
JITTER_MM = 1.2
N_DENSE = 256


@dataclass(frozen=True)
class Cortex:
    """Where streamlines start, pass and end; all coordinates are mm, RAS.

    Parameters
    ----------
    points : array, shape (n_points, 3)
        Voxel centres of the parcels.
    labels : array of int, shape (n_points,)
        Parcel of each point, from 1; the second half of the parcels are the homologues of the
        first, in order.
    networks : array of int, shape (n_parcels,)
        Network of each parcel.
    deep_white : array, shape (n_deep, 3)
        Points of deep white matter, both hemispheres, without the corpus callosum.
    callosum : array, shape (n_callosum, 3)
        Points of the corpus callosum near the midline.
    """

    points: Points
    labels: NDArray[np.integer]
    networks: NDArray[np.integer]
    deep_white: Points
    callosum: Points


@dataclass(frozen=True)
class _Routes:
    """Control points of the curves, each of shape (n_streamlines, 3)."""

    start: Points
    leave: Points
    way: Points
    tangent: Points
    arrive: Points
    end: Points


def simulate_streamlines(
    cortex: Cortex,
    n_streamlines: int,
    rng: np.random.Generator,
    *,
    step: float = 1.0,
) -> list[NDArray[np.float32]]:
    """Simulate a whole-brain tractogram.

    Parameters
    ----------
    cortex : Cortex
        Where streamlines start, pass and end.
    n_streamlines : int
        Number of streamlines.
    rng : numpy.random.Generator
        Source of everything random.
    step : float
        Distance of neighbouring vertices along the curve, in mm.

    Returns
    -------
    list of arrays of float32, shape (n_vertices, 3)
        Vertices in mm, in random order of streamlines; two vertices or more each.
    """
    makers = (_association_routes, _callosal_routes, _corticospinal_routes)
    counts = np.floor(np.array(list(KIND_SHARES.values())) * n_streamlines).astype(int)
    counts[0] += n_streamlines - counts.sum()
    curves = np.concatenate(
        [
            _curves(maker(cortex, int(count), rng), rng)
            for maker, count in zip(makers, counts, strict=True)
            if count
        ]
    )
    return [_resample(curves[index], step) for index in rng.permutation(len(curves))]


def _association_routes(cortex: Cortex, n: int, rng: np.random.Generator) -> _Routes:
    """Connect parcels of one hemisphere, near and of the same network preferred."""
    n_parcels = len(cortex.networks)
    centroids = parcel_centroids(cortex.points, cortex.labels - 1, n_parcels)
    first, second = np.triu_indices(n_parcels, k=1)
    half = n_parcels // 2
    ipsilateral = (first < half) == (second < half)
    first, second = first[ipsilateral], second[ipsilateral]
    distance = np.linalg.norm(centroids[first] - centroids[second], axis=1)
    weight = np.exp(-distance / DISTANCE_SCALE_MM)
    weight[cortex.networks[first] == cortex.networks[second]] *= WITHIN_NETWORK_FACTOR
    pair = rng.choice(len(first), size=n, p=weight / weight.sum())
    start = _draw_ends(cortex, first[pair] + 1, rng)
    end = _draw_ends(cortex, second[pair] + 1, rng)
    leave, arrive = (_nearest(cortex.deep_white, ends) for ends in (start, end))
    way = _nearest(cortex.deep_white, (leave + arrive) / 2)
    return _Routes(start, leave, way, (arrive - leave) / 4, arrive, end)


def _callosal_routes(cortex: Cortex, n: int, rng: np.random.Generator) -> _Routes:
    """Connect homologous parcels through the corpus callosum."""
    half = len(cortex.networks) // 2
    left = rng.integers(1, half + 1, size=n)
    start, end = _draw_ends(cortex, left, rng), _draw_ends(cortex, left + half, rng)
    leave, arrive = (_nearest(cortex.deep_white, ends) for ends in (start, end))
    way = _nearest(cortex.callosum, (leave + arrive) / 2)
    tangent = np.sign(end[:, :1] - start[:, :1]) * np.array([14.0, 0.0, 0.0])
    return _Routes(start, leave, way, tangent, arrive, end)


def _corticospinal_routes(cortex: Cortex, n: int, rng: np.random.Generator) -> _Routes:
    """Lead from upper sensorimotor cortex through the internal capsule to the brain stem."""
    centroids = parcel_centroids(cortex.points, cortex.labels - 1, len(cortex.networks))
    motor = (cortex.networks == NETWORKS.index("SomMot")) & (centroids[:, 2] > 25)
    start = _draw_ends(cortex, rng.choice(np.flatnonzero(motor) + 1, size=n), rng)
    side = np.sign(start[:, :1])
    scatter = rng.standard_normal((n, 3))

    def passage(x: float, y: float, z: float) -> Points:
        return np.hstack([side * x, np.tile([y, z], (n, 1))]) + 1.5 * scatter

    tangent = np.hstack([side * -3.0, np.tile([-2.0, -12.0], (n, 1))])
    leave = (_nearest(cortex.deep_white, start) + passage(26, -20, 30)) / 2
    return _Routes(
        start, leave, passage(22, -16, 8), tangent, passage(10, -20, -16), passage(6, -26, -40)
    )


def _draw_ends(cortex: Cortex, labels: NDArray[np.integer], rng: np.random.Generator) -> Points:
    """Draw one point of each labelled parcel, off the voxel centre by up to 1 mm."""
    order = np.argsort(cortex.labels, kind="stable")
    bounds = np.searchsorted(cortex.labels[order], np.arange(len(cortex.networks) + 2))
    sizes = bounds[labels + 1] - bounds[labels]
    index = order[bounds[labels] + (rng.random(len(labels)) * sizes).astype(np.intp)]
    return cortex.points[index] + rng.uniform(-1, 1, size=(len(labels), 3))


def _nearest(points: Points, queries: Points) -> Points:
    """Give the point nearest to each query, shape (n_queries, 3)."""
    return points[cKDTree(points).query(queries)[1]]


def _curves(routes: _Routes, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw densely sampled curves, shape (n_streamlines, n_dense, 3), with a smooth jitter."""
    first = (routes.start, routes.leave, routes.way - routes.tangent, routes.way)
    second = (routes.way, routes.way + routes.tangent, routes.arrive, routes.end)
    halves = [_bezier(control, N_DENSE // 2) for control in (first, second)]
    curves = np.concatenate([halves[0], halves[1][:, 1:]], axis=1)
    t = np.linspace(0, 1, curves.shape[1])
    for wave in (1, 2, 3):
        amplitude = JITTER_MM / wave * rng.standard_normal((len(curves), 1, 3))
        curves += amplitude * np.sin(np.pi * wave * t)[:, None]
    return curves.astype(np.float32)


def _bezier(control: tuple[Points, Points, Points, Points], n_points: int) -> Points:
    """Evaluate cubic Bezier curves at equal parameters, shape (n_streamlines, n_points, 3)."""
    t = np.linspace(0, 1, n_points)[:, None]
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    terms = [weight * point[:, None, :] for weight, point in zip(weights, control, strict=True)]
    return np.asarray(terms[0] + terms[1] + terms[2] + terms[3])


def _resample(curve: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    """Cut a curve into equal steps; what is left at the end, less than a step, is dropped."""
    dense = curve.astype(np.float64)
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(dense, axis=0), axis=1))])
    n_steps = max(1, int(length[-1] / step))
    at = np.minimum(np.arange(n_steps + 1) * step, length[-1])
    return np.stack([np.interp(at, length, axis) for axis in dense.T], axis=1).astype(np.float32)
