"""What the columns of our tables mean."""

from __future__ import annotations

from pathlib import Path

# What each column of our tables means; sidecars take the entries of the columns they describe.
COLUMNS: dict[str, dict[str, str]] = {
    "index": {"Description": "Number of the region in the atlas."},
    "name": {"Description": "Name of the region."},
    "damagepct": {"Description": "Share of the region inside the lesion.", "Units": "%"},
    "r": {
        "Description": "Correlation with the lesion, averaged over voxels and subjects "
        "through Fisher's z.",
        "Units": "1",
    },
    "z": {"Description": "Mean of Fisher's z over voxels and subjects.", "Units": "1"},
    "t": {"Description": "Mean over voxels of the one-sample t of z.", "Units": "1"},
    "score": {
        "Description": "Weights of the regions that the lesion touches times their mean Fisher z "
        "with the region; the region itself adds nothing.",
        "Units": "1",
    },
    "weight": {"Description": "Weight of the region in the sum that makes the scores."},
    "mapdisconnectionpct": {
        "Description": "Mean over voxels of the share of streamlines that pass the lesion.",
        "Units": "%",
    },
    "n_voxels": {
        "Description": "Voxels of the region on the grid used (sum of probabilities for a "
        "probabilistic atlas)."
    },
    "volume_ml": {"Description": "Volume of the region.", "Units": "mL"},
    "n_voxels_damaged": {"Description": "Voxels of the region inside the lesion."},
    "volume_damaged_ml": {"Description": "Volume of the region inside the lesion.", "Units": "mL"},
    "coverage": {"Description": "Share of the region at which the map is valid, 0 to 1."},
}


def column_descriptions(path: Path) -> dict[str, dict[str, str]]:
    """Sidecar entries of the columns that a table has."""
    header = path.open(encoding="utf-8").readline().rstrip("\n").split("\t")
    return {column: COLUMNS[column] for column in header if column in COLUMNS}
