"""The demonstration's parcellation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.simulation import (
    NETWORKS,
    assign_networks,
    cluster_parcels,
    order_parcels,
    parcel_centroids,
    parcel_names,
)
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.io.demonstration.anatomy import Anatomy, world_coordinates

N_PARCELS = 100
NETWORK_COLOURS = ("#781286", "#4682B4", "#00760E", "#C43AFA", "#DCF8A4", "#E69422", "#CD3E4E")


@dataclass(frozen=True)
class Parcellation:
    """Parcels of the cerebral cortex; the second half mirrors the first.

    Parameters
    ----------
    grid : Grid
        The voxel grid.
    labels : array of int16
        Parcel of each voxel, from 1; 0 is background.
    networks : array of int, shape (n_parcels,)
        Network of each parcel, index into :data:`lacuna_nipype.core.simulation.NETWORKS`.
    """

    grid: Grid
    labels: NDArray[np.int16]
    networks: NDArray[np.intp]

    def table(self) -> str:
        """Give the label table as text with tabs: index, name, hemisphere, network, color."""
        half = len(self.networks) // 2
        names = parcel_names(self.networks[:half], "LH") + parcel_names(self.networks[half:], "RH")
        rows = ["index\tname\themisphere\tnetwork\tcolor"]
        for index, (name, network) in enumerate(zip(names, self.networks, strict=True), start=1):
            side = "L" if index <= half else "R"
            rows.append(
                f"{index}\t{name}\t{side}\t{NETWORKS[network]}\t{NETWORK_COLOURS[network]}"
            )
        return "\n".join(rows) + "\n"


def make_parcellation(anatomy: Anatomy, rng: np.random.Generator) -> Parcellation:
    """Cut the left cortex into parcels and mirror them to the right.

    Parameters
    ----------
    anatomy : Anatomy
        Symmetric anatomy, on a RAS grid that is symmetric about x = 0.
    rng : numpy.random.Generator
        Source of the starting centres.

    Returns
    -------
    Parcellation
        100 parcels: the left ones first, ordered by network.
    """
    half = N_PARCELS // 2
    left = anatomy.cortex()
    left[left.shape[0] // 2 :] = False
    points = world_coordinates(anatomy.grid, left)
    clusters = cluster_parcels(points, half, rng)
    centroids = parcel_centroids(points, clusters, half)
    networks = assign_networks(centroids)
    order = order_parcels(centroids, networks)
    labels = np.zeros(anatomy.grid.shape, dtype=np.int16)
    labels[left] = np.argsort(order)[clusters] + 1
    mirrored = labels[::-1]
    labels = np.where(mirrored > 0, mirrored + half, labels).astype(np.int16)
    return Parcellation(anatomy.grid, labels, np.tile(networks[order], 2))
