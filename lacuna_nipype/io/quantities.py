"""What each map and table holds, in the words of its sidecar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAPS: dict[tuple[str, str], dict[str, Any]] = {
    ("fnm", "r"): {
        "Description": "Correlation with the lesion's mean series, averaged over the subjects of "
        "the connectome through Fisher's z: r = tanh(z).",
        "Units": "1",
    },
    ("fnm", "z"): {
        "Description": "Mean over subjects of Fisher's z of the correlation with the lesion's "
        "mean series.",
        "Units": "1",
    },
    ("fnm", "t"): {
        "Description": "One-sample t of Fisher's z against zero over the subjects of the "
        "connectome; 0 where z does not vary.",
        "Units": "1",
    },
    ("fnm", "p"): {
        "Description": "Two-sided probability of t with N - 1 degrees of freedom, N being the "
        "subjects of the connectome; 1 outside the brain.",
        "Units": "1",
    },
    ("fnm", "q"): {
        "Description": "False discovery rate (Benjamini & Hochberg 1995) over the voxels that "
        "vary and lie outside the seed; 1 elsewhere.",
        "Units": "1",
    },
    ("fnm", "qsig"): {
        "Description": "Voxels with a false discovery rate below the threshold. With a large "
        "connectome nearly every voxel differs from zero: this map ranks nothing.",
        "Units": "1",
    },
    ("fnm", "tsig"): {
        "Description": "Voxels whose t is larger in size than the threshold.",
        "Units": "1",
    },
    ("fnm", "valid"): {
        "Description": "Voxels at which the maps of this analysis mean something: inside the "
        "connectome's brain mask, with a series that varies in some subject.",
        "Units": "1",
    },
    ("snm", "disconnectionpct"): {
        "Description": "Share of the tractogram's streamlines through the voxel that also pass "
        "the lesion; 0 where there is no streamline.",
        "Units": "%",
    },
}

# Functional maps that are summarised over regions, and what is done to the average: r is averaged
# as z and turned back.
FNM_TABLES = {"r": "tanh", "z": "identity", "t": "identity"}

TABLES: dict[tuple[str, str], str] = {
    ("rd", "damagepct"): "Share of every region inside the lesion.",
    ("fnm", "r"): "Mean correlation of every region, averaged through Fisher's z.",
    ("fnm", "z"): "Mean Fisher z of every region.",
    ("fnm", "t"): "Mean over voxels of the t map in every region.",
    ("afnm", "score"): "Connectivity of every region with those that the lesion touches: the "
    "lesion's weights over regions times the mean Fisher z between regions.",
    ("snm", "mapdisconnectionpct"): "Mean of the disconnection map over every region.",
}


def resolution_text(label: str) -> str:
    """Words for the value of a ``res`` entity, which BIDS wants in the sidecar."""
    return f"Isotropic voxels of {label} mm"


def describe_map(analysis: str, quantity: str, entities: Mapping[str, str]) -> dict[str, Any]:
    """Sidecar content of a map.

    Parameters
    ----------
    analysis, quantity : str
        Values of the ``desc`` and ``stat`` entities.
    entities : mapping
        Entities of the map; ``res`` is put into words.

    Returns
    -------
    dict
    """
    described = dict(MAPS[analysis, quantity])
    if "res" in entities:
        described["Resolution"] = resolution_text(entities["res"])
    return described


def describe_table(analysis: str, quantity: str) -> dict[str, Any]:
    """Sidecar content of a parcel table, apart from its columns."""
    return {"Description": TABLES[analysis, quantity]}
