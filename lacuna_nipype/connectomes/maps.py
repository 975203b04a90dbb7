"""From merged moments to maps on disk and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.functional import ConnectomeFile
from lacuna_nipype.connectomes.partial import iter_merged
from lacuna_nipype.core.correlation import CorrelationMaps, correlation_maps
from lacuna_nipype.core.files import write_json
from lacuna_nipype.core.images import save_image


def _write_volume(
    path: Path, values: NDArray[Any], file: ConnectomeFile, dtype: type[np.generic]
) -> str:
    volume = np.zeros(file.grid.shape, dtype=dtype)
    volume[tuple(file.voxels)] = values
    return str(save_image(path, volume, file.grid.affine, dtype))


def summarise(
    maps: CorrelationMaps, valid: NDArray[np.bool_], n_subjects: int, n_files: int
) -> dict[str, Any]:
    """Numbers of a functional network map for its JSON summary.

    Parameters
    ----------
    maps : CorrelationMaps
        Of one seed, arrays of shape (n_voxels,).
    valid : array of bool, shape (n_voxels,)
        Voxels to summarise.
    n_subjects, n_files : int
        Size of the connectome.

    Returns
    -------
    dict
        Plain numbers; None where nothing is valid.
    """
    r = maps.r[valid]

    def number(function: Any, values: NDArray[np.float64]) -> float | None:
        return float(function(values)) if values.size else None

    summary: dict[str, Any] = {
        "NumberOfSubjects": n_subjects,
        "NumberOfFiles": n_files,
        "ValidVoxels": int(valid.sum()),
        "RMean": number(np.mean, r),
        "RStandardDeviation": number(np.std, r),
        "RMinimum": number(np.min, r),
        "RMaximum": number(np.max, r),
    }
    if maps.t is not None:
        summary["TMinimum"] = number(np.min, maps.t[valid])
        summary["TMaximum"] = number(np.max, maps.t[valid])
        summary["DegreesOfFreedom"] = n_subjects - 1
    return summary


def write_maps(
    partial_files: Sequence[Path], file: ConnectomeFile, folder: Path
) -> dict[str, Any]:
    """Merge the partial results of a pass and write the maps of every seed.

    Parameters
    ----------
    partial_files : sequence of Path
        One per connectome file.
    file : ConnectomeFile
        Any file of the connectome: gives grid and voxels.
    folder : Path
        Where to write.

    Returns
    -------
    dict
        ``r_maps``, ``z_maps``, ``t_maps`` (empty for one subject) and ``summaries`` as lists in
        the order of the seeds, and ``valid_mask``. Maps are float32, 0 outside the brain.
    """
    with h5py.File(partial_files[0], "r", locking=False) as partial:
        inside, outside = partial["seed_voxels"][:], partial["seed_voxels_outside"][:]
    written: dict[str, Any] = {"r_maps": [], "z_maps": [], "t_maps": [], "summaries": []}
    valid = np.zeros(file.n_voxels, dtype=bool)
    for number, moments in enumerate(iter_merged(partial_files)):
        everything = correlation_maps(moments)
        maps = CorrelationMaps(
            everything.z[0], everything.r[0], None if everything.t is None else everything.t[0]
        )
        valid = moments.n_varying > 0
        stem = f"lesion-{number:04d}"
        for key, values in (("r", maps.r), ("z", maps.z), ("t", maps.t)):
            if values is not None:
                path = folder / f"{stem}_{key}.nii.gz"
                written[f"{key}_maps"].append(_write_volume(path, values, file, np.float32))
        summary = {
            "SeedVoxels": int(inside[number]),
            "SeedVoxelsOutsideConnectome": int(outside[number]),
            **summarise(maps, valid, moments.n_subjects, len(partial_files)),
        }
        written["summaries"].append(str(write_json(folder / f"{stem}.json", summary)))
    written["valid_mask"] = _write_volume(folder / "valid_mask.nii.gz", valid, file, np.uint8)
    return written
