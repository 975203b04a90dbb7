"""Synthetic lesions, parcels, time series and streamlines with a known structure.

Arrays in, arrays out; every random number comes from the generator that the caller passes, so a
seed fixes the result. Coordinates are millimetres, RAS.
"""

from lacuna_nipype.core.simulation.lesions import simulate_lesion
from lacuna_nipype.core.simulation.parcels import (
    NETWORK_CENTRES,
    NETWORKS,
    assign_networks,
    cluster_parcels,
    nearest_parcel,
    order_parcels,
    parcel_centroids,
    parcel_names,
)
from lacuna_nipype.core.simulation.streamlines import Cortex, simulate_streamlines
from lacuna_nipype.core.simulation.timeseries import network_covariance, simulate_time_series

__all__ = [
    "NETWORKS",
    "NETWORK_CENTRES",
    "Cortex",
    "assign_networks",
    "cluster_parcels",
    "nearest_parcel",
    "network_covariance",
    "order_parcels",
    "parcel_centroids",
    "parcel_names",
    "simulate_lesion",
    "simulate_streamlines",
    "simulate_time_series",
]
