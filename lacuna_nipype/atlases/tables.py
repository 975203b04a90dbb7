"""Parcel tables: one row per region, in the order of the atlas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lacuna_nipype.core.files import write_json, write_table
from lacuna_nipype.core.parcels import Parcels, aggregate, regional_damage
from lacuna_nipype.core.spaces import Grid


def _region_columns(parcels: Parcels) -> pd.DataFrame:
    return pd.DataFrame({"index": parcels.index, "name": list(parcels.names)})


def write_damage(
    mask: NDArray[np.bool_],
    grid: Grid,
    parcels: Sequence[Parcels],
    folder: Path,
    names: Sequence[str] | None = None,
) -> tuple[list[Path], Path]:
    """Write regional damage tables and their summary.

    Parameters
    ----------
    mask : array of bool, shape of the grid
    grid : Grid
        The mask's.
    parcels : sequence of Parcels
        Atlases on their own grids.
    folder : Path
    names : sequence of str, optional
        Names of the atlases for the summary.

    Returns
    -------
    tables : list of Path
        One per atlas: index, name, damagepct (%), n_voxels, volume_ml, n_voxels_damaged,
        volume_damaged_ml; missing values for a region without voxels.
    summary : Path
        JSON.
    """
    tables, entries = [], []
    for number, atlas in enumerate(parcels):
        result = regional_damage(mask, grid, atlas)
        table = _region_columns(atlas)
        table["damagepct"] = result.damage
        table["n_voxels"] = result.total
        table["volume_ml"] = result.total * result.voxel_volume_ml
        table["n_voxels_damaged"] = result.damaged
        table["volume_damaged_ml"] = result.damaged * result.voxel_volume_ml
        tables.append(write_table(folder / f"damage-{number:02d}.tsv", table))
        name = {"Name": names[number]} if names else {}
        entries.append({**name, **_damage_summary(table, result.lesion_in_regions)})
    voxels = int(np.count_nonzero(mask))
    summary = {
        "LesionVoxels": voxels,
        "LesionVolumeML": voxels * grid.voxel_volume_ml,
        "Atlases": entries,
    }
    return tables, write_json(folder / "damage.json", summary)


def _damage_summary(table: pd.DataFrame, lesion_in_regions: float) -> dict[str, Any]:
    touched = table[table["damagepct"] > 0]
    entry: dict[str, Any] = {
        "Regions": len(table),
        "RegionsTouched": len(touched),
        "LesionInRegionsPercent": None if np.isnan(lesion_in_regions) else lesion_in_regions,
        "MostDamagedRegion": None,
        "MaximumDamagePercent": None,
    }
    if len(touched):
        worst = touched.loc[touched["damagepct"].idxmax()]
        entry["MostDamagedRegion"] = str(worst["name"])
        entry["MaximumDamagePercent"] = float(worst["damagepct"])
    return entry


def write_aggregates(
    maps: Iterable[tuple[str, NDArray[Any]]],
    valid: NDArray[np.bool_] | None,
    parcels: Sequence[Parcels],
    folder: Path,
    *,
    statistic: str = "mean",
    transforms: Sequence[str] | None = None,
) -> list[Path]:
    """Summarise maps over atlases and write one table for each pair.

    Parameters
    ----------
    maps : iterable of (str, array)
        Quantity (also its column) and map, all on one grid. They are taken one after the other,
        so that an iterator need not hold more than one.
    valid : array of bool or None
        Voxels at which the maps mean something.
    parcels : sequence of Parcels
        On the maps' grid.
    folder : Path
    statistic : str
        See :func:`lacuna_nipype.core.parcels.aggregate`.
    transforms : sequence of {"identity", "tanh"}, optional
        Applied to the summaries of each map.

    Returns
    -------
    list of Path
        Atlas by atlas, quantities varying fastest.

    Raises
    ------
    ValueError
        There are more or fewer transforms than maps.
    """
    tables: list[list[Path]] = [[] for _ in parcels]
    totals = [atlas.totals for atlas in parcels]
    named = zip(maps, transforms, strict=True) if transforms else ((one, "") for one in maps)
    for (quantity, values), transform in named:
        mask = np.ones(values.shape, dtype=bool) if valid is None else valid
        for number, atlas in enumerate(parcels):
            result, coverage = aggregate(atlas, values, mask, statistic)
            table = _region_columns(atlas)
            table[quantity] = np.tanh(result) if transform == "tanh" else result
            table["n_voxels"] = totals[number]
            table["volume_ml"] = totals[number] * atlas.grid.voxel_volume_ml
            table["coverage"] = coverage
            path = folder / f"parcels-{number:02d}_{quantity}.tsv"
            tables[number].append(write_table(path, table))
    return [path for of_atlas in tables for path in of_atlas]
