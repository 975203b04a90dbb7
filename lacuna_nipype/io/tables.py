"""What the columns of our tables mean, and matrices written as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.files import atomic_path

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
    "disconnectionpct": {
        "Description": "Share of the region's streamlines to other regions that pass the lesion.",
        "Units": "%",
    },
    "streamlinesfull": {
        "Description": "Streamlines between the region and others (sum of weights where "
        "streamlines have them)."
    },
    "streamlineslesion": {"Description": "Those of streamlinesfull that pass the lesion."},
    "streamlinespct": {
        "Description": "Share of the bundle's streamlines (of the sum of their weights where they "
        "have them) that pass the lesion.",
        "Units": "%",
    },
    "n_streamlines": {"Description": "Streamlines of the bundle."},
    "n_streamlines_hit": {"Description": "Streamlines of the bundle that pass the lesion."},
    "n_voxels": {
        "Description": "Voxels of the region on the grid used (sum of probabilities for a "
        "probabilistic atlas)."
    },
    "volume_ml": {"Description": "Volume of the region.", "Units": "mL"},
    "n_voxels_damaged": {"Description": "Voxels of the region inside the lesion."},
    "volume_damaged_ml": {"Description": "Volume of the region inside the lesion.", "Units": "mL"},
    "coverage": {"Description": "Share of the region at which the map is valid, 0 to 1."},
}

# Tables of bundles have these columns in another sense.
BUNDLE_COLUMNS = {
    "index": {"Description": "Number of the bundle, in the order of the streamline groups."},
    "name": {"Description": "Name of the bundle."},
}


def column_descriptions(path: Path) -> dict[str, dict[str, str]]:
    """Sidecar entries of the columns that a table has.

    Parameters
    ----------
    path : Path
        A table of regions or bundles, or a matrix: its columns are regions, which may have any
        name, so that only ``name`` is described.

    Returns
    -------
    dict
    """
    with path.open(encoding="utf-8") as stream:
        header = stream.readline().rstrip("\n").split("\t")
    if header[0] == "name":
        return {"name": COLUMNS["name"]}
    known = {**COLUMNS, **BUNDLE_COLUMNS} if "streamlinespct" in header else COLUMNS
    return {column: known[column] for column in header if column in known}


def write_matrix(path: Path, names: Sequence[str], values: NDArray[Any]) -> Path:
    """Write a matrix as a table: names on both axes, ten significant digits, atomically.

    Parameters
    ----------
    path : Path
    names : sequence of str
        Of rows and columns; the header starts with ``name``.
    values : array, shape (K, K)
        Whole numbers are written without a decimal point, NaN as ``n/a``.

    Returns
    -------
    Path
    """
    # One format for a whole row is three times as fast as one for each cell.
    row_format = "\t".join(["%.10g"] * len(names))
    labels = [_quoted(name) for name in names]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write("\t".join(["name", *labels]) + "\n")
        for label, row in zip(labels, np.asarray(values, dtype=np.float64), strict=True):
            cells = (row_format % tuple(row.tolist())).replace("nan", "n/a")
            file.write(f"{label}\t{cells}\n")
    return path


def _quoted(name: str) -> str:
    """Put a name in quotes where a table needs them."""
    cell = io.StringIO()
    csv.writer(cell, delimiter="\t", lineterminator="").writerow([name])
    return cell.getvalue()
