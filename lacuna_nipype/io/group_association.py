"""Maps and parcel tables of a cohort tested against a score, from files to files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nb
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.association import Association, Design, associate
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import write_json, write_table
from lacuna_nipype.core.images import save_image
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.io.group_collect import Regions, read_tables
from lacuna_nipype.io.group_maps import common_grid, iter_maps, read_on_grid
from lacuna_nipype.io.group_results import Cohort, ResultFile

if TYPE_CHECKING:
    import pandas as pd

# Which quantity of each analysis is tested. Functional maps are compared in Fisher's z, whose
# variance does not depend on its mean; t depends on the size of the connectome.
TESTED_MAPS: Mapping[str, str | None] = {"lesion": None, "fnm": "z", "snm": "disconnectionpct"}
TESTED_TABLES: Mapping[str, tuple[str, ...]] = {
    "rd": ("damagepct",),
    "fnm": ("z",),
    "snm": ("mapdisconnectionpct", "disconnectionpct", "streamlinespct"),
    "afnm": ("score",),
}
# Zero means "not touched" in these, and there have to be participants who are.
SPARSE = ("lesion", "rd", "snm")
STATISTICS: Mapping[str, dict[str, str]] = {
    "t": {"Description": "t of the score in a linear model of the maps.", "Units": "1"},
    "logpfwe": {
        "Description": "-log10 of the two-sided probability of t, corrected for the family of all "
        "tested voxels by permutation of the maximum; above 1.30 for p < 0.05.",
        "Units": "1",
    },
    "partialr": {
        "Description": "Partial correlation of map and score given the covariates.",
        "Units": "1",
    },
    "tested": {"Description": "Voxels that were tested.", "Units": "1"},
    "logptfce": {
        "Description": "-log10 of the two-sided probability after threshold-free cluster "
        "enhancement, corrected for the family of all tested voxels by permutation of the "
        "maximum; above 1.30 for p < 0.05.",
        "Units": "1",
    },
}
CLUSTER_COLUMNS = {
    "cluster_id": {"Description": "Number of the cluster; letters tell its further peaks."},
    "x": {"Description": "Position of the peak.", "Units": "mm"},
    "y": {"Description": "Position of the peak.", "Units": "mm"},
    "z_mm": {"Description": "Position of the peak on the axis z.", "Units": "mm"},
    "peak_t": {"Description": "t at the peak.", "Units": "1"},
    "cluster_size_mm3": {
        "Description": "Size of the cluster of voxels whose corrected p is at most 0.05.",
        "Units": "mm^3",
    },
}
PARCEL_COLUMNS = {
    "t_value": {"Description": "t of the score in a linear model of the region.", "Units": "1"},
    "partial_r": {
        "Description": "Partial correlation of region and score given the covariates.",
        "Units": "1",
    },
    "p_fwe": {
        "Description": "Two-sided probability of t, corrected for the family of all tested "
        "regions by permutation of the maximum.",
        "Units": "1",
    },
    "n_nonzero": {"Description": "Participants whose value is not zero."},
}


def minimum_count(percent: float, n: int) -> int:
    """Participants that make up a share, rounded up, at least one."""
    return max(1, math.ceil(percent / 100 * n - 1e-9))


def lesion_volumes(cohort: Cohort, masks: Sequence[ResultFile]) -> dict[str, float]:
    """Find the lesion volumes of participants.

    Parameters
    ----------
    cohort : Cohort
    masks : sequence of ResultFile
        Lesion masks, counted where a sidecar does not say the volume.

    Returns
    -------
    dict of str to float
        ml, by participant; those of whom neither is known are left out.
    """
    volumes: dict[str, float] = {}
    same = ("subject", "session", "acquisition", "run", "label")
    for file in cohort.files:
        stated = file.sidecar().get("LesionVolumeML")
        if isinstance(stated, int | float):
            volumes[file.participant] = float(stated)
            continue
        for mask in masks:
            if all(mask.entities.get(key) == file.entities.get(key) for key in same):
                grid = common_grid([mask.path])
                inside = np.count_nonzero(read_on_grid(mask.path, grid) > 0)
                volumes[file.participant] = float(inside * grid.voxel_volume_ml)
                break
    return volumes


def voxels_to_test(
    paths: Sequence[Path], grid: Grid, minimum: int, valid_paths: Sequence[Path] = ()
) -> NDArray[np.bool_]:
    """Find the voxels at which enough participants have something.

    Parameters
    ----------
    paths : sequence of Path
        Maps, read one at a time.
    grid : Grid
    minimum : int
        Participants whose map is not 0. (A voxel that is NaN in anyone is not tested at all.)
    valid_paths : sequence of Path
        Masks of the voxels at which maps mean something, of which every one must hold the voxel;
        they take the place of the maps.

    Returns
    -------
    array of bool, shape of the grid
    """
    count = np.zeros(grid.shape, dtype=np.int32)
    for data in iter_maps(valid_paths or paths, grid):
        count += data != 0
    return np.asarray(count >= (len(valid_paths) or minimum))


def read_values(
    paths: Sequence[Path], grid: Grid, voxels: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Read some voxels of maps.

    Parameters
    ----------
    paths : sequence of Path
    grid : Grid
    voxels : array of bool, shape of the grid

    Returns
    -------
    array of float32, shape (N, V)
        Voxels in C order.
    """
    values = np.empty((len(paths), int(voxels.sum())), dtype=np.float32)
    for row, data in enumerate(iter_maps(paths, grid)):
        values[row] = data[voxels]
    return values


def associate_maps(
    paths: Sequence[Path],
    design: Design,
    folder: Path,
    *,
    minimum: int,
    valid_paths: Sequence[Path] = (),
    permutations: int,
    seed: int,
    tfce: bool = False,
) -> tuple[dict[str, Path], Path, Path]:
    """Test every voxel of the maps of a cohort.

    Parameters
    ----------
    paths : sequence of Path
        One map per participant of the design, on one grid.
    design : Design
    folder : Path
        Where to write.
    minimum : int
        Participants who must have something at a voxel, see :func:`voxels_to_test`.
    valid_paths : sequence of Path
    permutations, seed : int
    tfce : bool
        Threshold-free cluster enhancement too.

    Returns
    -------
    maps : dict of str to Path
        By the names of :data:`STATISTICS`; 0 where nothing was tested.
    clusters : Path
        TSV of the clusters in which p is at most 0.05, corrected.
    summary : Path
        JSON.

    Raises
    ------
    SpatialMismatchError
        Maps lie on different grids.
    ValidationError
        No voxel can be tested.
    """
    grid = common_grid([*paths, *valid_paths])
    voxels = voxels_to_test(paths, grid, minimum, valid_paths)
    values = read_values(paths, grid, voxels)
    volume = nb.Nifti1Image(voxels.astype(np.uint8), grid.affine) if tfce else None
    result = associate(values, design, permutations=permutations, seed=seed, volume=volume)
    if not result.n_tested:
        raise ValidationError(
            f"No voxel can be tested for {design.tested_name!r}: none has something in at least "
            f"{minimum} of {design.n} participants and differs between them; lower --min-overlap."
        )
    maps = _write_maps(result, voxels, grid, folder)
    clusters = write_table(folder / "clusters.tsv", cluster_table(maps["t"], result.critical_t))
    summary = write_json(folder / "association.json", result.to_dict())
    return maps, clusters, summary


def _write_maps(
    result: Association, voxels: NDArray[np.bool_], grid: Grid, folder: Path
) -> dict[str, Path]:
    """Put values back into volumes."""
    found: dict[str, NDArray[Any]] = {
        "t": result.t,
        "logpfwe": result.log_p,
        "partialr": result.effect,
        "tested": np.isfinite(result.t),
    }
    if result.log_p_tfce is not None:
        found["logptfce"] = result.log_p_tfce
    maps = {}
    for name, values in found.items():
        dtype = np.uint8 if name == "tested" else np.float32
        data = np.zeros(grid.shape, dtype=dtype)
        data[voxels] = np.nan_to_num(values)
        maps[name] = save_image(folder / f"{name}.nii.gz", data, grid.affine, dtype)
    return maps


def cluster_table(t_map: Path, threshold: float) -> pd.DataFrame:
    """List the clusters of a map of t with their peaks.

    Parameters
    ----------
    t_map : Path
    threshold : float
        Size of t above which voxels count; infinite for none.

    Returns
    -------
    DataFrame
        Columns as :data:`CLUSTER_COLUMNS`; no row where there is no cluster.
    """
    import warnings

    import pandas as pd
    from nilearn.reporting import get_clusters_table

    columns = list(CLUSTER_COLUMNS)
    data = np.asarray(nb.load(t_map).dataobj)
    if not math.isfinite(threshold) or not (np.abs(data) > threshold).any():
        return pd.DataFrame(columns=columns)
    with warnings.catch_warnings():
        # One sign may have no cluster; that is no news.
        warnings.filterwarnings("ignore", message=".*[Nn]o clusters")
        table = get_clusters_table(str(t_map), stat_threshold=threshold, two_sided=True)
    return table.set_axis(columns, axis=1)


def associate_tables(
    paths: Sequence[Path],
    quantity: str,
    design: Design,
    folder: Path,
    *,
    minimum: int,
    permutations: int,
    seed: int,
) -> tuple[Path, Path]:
    """Test every region of the parcel tables of a cohort.

    Parameters
    ----------
    paths : sequence of Path
        One table per participant of the design.
    quantity : str
    design : Design
    folder : Path
        Where to write.
    minimum : int
        Participants whose value must not be zero.
    permutations, seed : int

    Returns
    -------
    table : Path
        TSV: index, name and :data:`PARCEL_COLUMNS`, every region in its place.
    summary : Path
        JSON.

    Raises
    ------
    ValidationError
        Tables are damaged or differ in their regions, or no region can be tested.
    """
    regions, values = read_tables(paths, quantity)
    present = np.count_nonzero(np.nan_to_num(values), axis=0)
    result = associate(
        np.where(present >= minimum, values, np.nan),
        design,
        permutations=permutations,
        seed=seed,
    )
    if not result.n_tested:
        raise ValidationError(
            f"No region can be tested for {design.tested_name!r}: none has a value in all "
            f"{design.n} participants that is not zero in {minimum} of them and differs between "
            "them; lower --min-overlap."
        )
    table = write_table(folder / "association.tsv", _parcel_table(regions, result, present))
    return table, write_json(folder / "association.json", result.to_dict())


def _parcel_table(regions: Regions, result: Association, present: NDArray[Any]) -> pd.DataFrame:
    import pandas as pd

    numbers = regions.index or [str(n) for n in range(1, len(regions.names) + 1)]
    return pd.DataFrame(
        {
            "index": numbers,
            "name": list(regions.names),
            "t_value": result.t,
            "partial_r": result.effect,
            "p_fwe": 10**-result.log_p,
            "n_nonzero": present,
        }
    )
