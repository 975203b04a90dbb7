"""What each map and table holds, in the words of its sidecar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    ("snm", "tdi"): {
        "Description": "Streamlines of the lesion that pass the voxel, or the sum of their "
        "weights.",
        "Units": "1",
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
    ("snm", "disconnectionpct"): "Share of every region's streamlines to other regions that pass "
    "the lesion: row sums of the matrices of streamlines between regions.",
    ("snm", "streamlinespct"): "Share of every bundle's streamlines that pass the lesion.",
}

# The order in which the matrices of an atlas are made and stored.
MATRICES: dict[tuple[str, str], dict[str, Any]] = {
    ("snm", "streamlinesfull"): {
        "Description": "Streamlines of the whole tractogram between the regions of an atlas.",
        "RelationshipMeasure": "Number of streamlines",
        "Units": "1",
    },
    ("snm", "streamlineslesion"): {
        "Description": "Streamlines between the regions of an atlas that pass the lesion.",
        "RelationshipMeasure": "Number of streamlines",
        "Units": "1",
    },
    ("snm", "streamlinesintact"): {
        "Description": "Streamlines between the regions of an atlas that do not pass the lesion.",
        "RelationshipMeasure": "Number of streamlines",
        "Units": "1",
    },
    ("snm", "disconnectionpct"): {
        "Description": "Share of the streamlines between the regions of an atlas that pass the "
        "lesion; 0 where there is no streamline.",
        "RelationshipMeasure": "Share of streamlines that pass the lesion",
        "Units": "%",
    },
}
WEIGHTED_MEASURES = {
    "Number of streamlines": "Sum of streamline weights",
    "Share of streamlines that pass the lesion": "Share of the sum of streamline weights that "
    "passes the lesion",
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


def matrix_quantities(analysis: str) -> tuple[str, ...]:
    """Values of the ``stat`` entity of an analysis's matrices, in the order of the files."""
    return tuple(quantity for name, quantity in MATRICES if name == analysis)


def describe_matrix(
    analysis: str, quantity: str, *, weighted: bool = False, node_files: Sequence[str] = ()
) -> dict[str, Any]:
    """Sidecar content of a matrix between regions.

    Parameters
    ----------
    analysis, quantity : str
        Values of the ``desc`` and ``stat`` entities.
    weighted : bool
        Streamlines were counted by their weights.
    node_files : sequence of str
        BIDS URIs of the tables that describe the nodes.

    Returns
    -------
    dict
    """
    described = dict(MATRICES[analysis, quantity])
    if weighted:
        described["RelationshipMeasure"] = WEIGHTED_MEASURES[described["RelationshipMeasure"]]
        described["Description"] += " Each streamline counts by its weight."
        if described["Units"] == "1":
            described["Units"] = "arbitrary"
    # Weighted: the cells are amounts, not yes or no.
    described |= {
        "Directed": False,
        "Weighted": True,
        "ValidDiagonal": False,
        "NonNegative": True,
    }
    if node_files:
        described["NodeFiles"] = list(node_files)
    return described
