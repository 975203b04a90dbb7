"""From merged moments to maps on disk and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.functional import ConnectomeFile
from lacuna_nipype.connectomes.partial import iter_merged
from lacuna_nipype.core.correlation import CorrelationMaps, correlation_maps
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import write_json
from lacuna_nipype.core.images import save_image
from lacuna_nipype.core.statistics import p_values, q_values

# Type on disk, and value outside the brain, of each map. Probabilities need double precision:
# single precision ends at 1e-38.
MAPS: dict[str, tuple[str, float]] = {
    "r": ("f4", 0),
    "z": ("f4", 0),
    "t": ("f4", 0),
    "p": ("f8", 1),
    "q": ("f8", 1),
    "qsig": ("u1", 0),
    "tsig": ("u1", 0),
    # Goes into no derivative: what t is made of on another grid.
    "error": ("f4", 0),
}


@dataclass(frozen=True)
class MapOptions:
    """Which maps are made beside r, z and t.

    Parameters
    ----------
    p_maps : bool
        Probabilities, false discovery rates and their thresholded map.
    fdr_alpha : float
        Rate below which a voxel is marked.
    t_threshold : float or None
        Voxels whose t is larger in size are marked; None for no such map.
    """

    p_maps: bool = True
    fdr_alpha: float = 0.05
    t_threshold: float | None = None

    def quantities(self, n_subjects: int) -> list[str]:
        """Names of the maps for a connectome of so many subjects: one subject has no t."""
        if n_subjects < 2:
            return ["r", "z"]
        return [
            "r", "z", "t",
            *(["p", "q", "qsig"] if self.p_maps else []),
            *(["tsig"] if self.t_threshold is not None else []),
        ]  # fmt: skip


def derive_maps(
    maps: CorrelationMaps,
    n_subjects: int,
    family: NDArray[np.bool_],
    options: MapOptions,
) -> dict[str, NDArray[Any]]:
    """Compute all maps of one seed.

    Parameters
    ----------
    maps : CorrelationMaps
        Arrays of shape (n_voxels,).
    n_subjects : int
    family : array of bool, shape (n_voxels,)
        Voxels that are tested: those that vary, outside the seed.
    options : MapOptions

    Returns
    -------
    dict of str to array
        By quantity. q is 1 outside the family.
    """
    made: dict[str, NDArray[Any]] = {"r": maps.r, "z": maps.z}
    if maps.t is None:
        return made
    made["t"] = maps.t
    if options.p_maps:
        made["p"] = p_values(maps.t, n_subjects - 1)
        q = q_values(made["p"], family)
        made["q"] = np.where(np.isnan(q), 1.0, q)
        made["qsig"] = made["q"] < options.fdr_alpha
    if options.t_threshold is not None:
        made["tsig"] = np.abs(maps.t) > options.t_threshold
    return made


def summarise(
    made: dict[str, NDArray[Any]],
    valid: NDArray[np.bool_],
    family: NDArray[np.bool_],
    n_subjects: int,
    options: MapOptions,
) -> dict[str, Any]:
    """Numbers of a functional network map for its JSON summary.

    Parameters
    ----------
    made : dict of str to array
        Maps of one seed, arrays of shape (n_voxels,).
    valid, family : array of bool, shape (n_voxels,)
        Voxels to summarise, and those that are tested.
    n_subjects : int
    options : MapOptions

    Returns
    -------
    dict
        Plain numbers; None where nothing is valid.
    """

    def number(function: Any, key: str, where: NDArray[np.bool_] = valid) -> float | None:
        values = made[key][where]
        return float(function(values)) if values.size else None

    n_valid = int(valid.sum())
    summary: dict[str, Any] = {
        "ValidVoxels": n_valid,
        "RMean": number(np.mean, "r"),
        "RStandardDeviation": number(np.std, "r"),
        "RMinimum": number(np.min, "r"),
        "RMaximum": number(np.max, "r"),
    }
    if "t" in made:
        summary |= {
            "DegreesOfFreedom": n_subjects - 1,
            "TMinimum": number(np.min, "t"),
            "TMaximum": number(np.max, "t"),
        }
    if "p" in made:
        significant = int(made["qsig"].sum())
        summary |= {
            "PMinimum": number(np.min, "p", family),
            "PMaximum": number(np.max, "p", family),
            "FDRAlpha": options.fdr_alpha,
            "FDRFamilySize": int(family.sum()),
            "SignificantVoxels": significant,
            "SignificantPercent": 100.0 * significant / max(int(family.sum()), 1),
        }
    if "tsig" in made:
        above = int(made["tsig"].sum())
        summary |= {
            "TThreshold": options.t_threshold,
            "VoxelsAboveTThreshold": above,
            "PercentAboveTThreshold": 100.0 * above / max(n_valid, 1),
        }
    return summary


def write_maps(
    partial_files: Sequence[Path],
    file: ConnectomeFile,
    folder: Path,
    options: MapOptions | None = None,
    *,
    with_errors: bool = False,
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
    options : MapOptions, optional
    with_errors : bool
        Write the standard error of z too.

    Returns
    -------
    dict
        ``r_maps``, ``z_maps``, ... and ``summaries`` as lists in the order of the seeds (empty
        for maps that are not made), and ``valid_mask``.

    Raises
    ------
    ValidationError
        The partial results are not of one pass, or not on the voxels of ``file``.
    """
    options = options or MapOptions()
    with h5py.File(partial_files[0], "r", locking=False) as partial:
        if partial.attrs["mask_digest"] != file.mask_digest:
            raise ValidationError(
                f"{file.path} has other voxels than it had when the pass went through it; run "
                "again, and leave the files of the connectome alone meanwhile."
            )
        inside, outside = partial["seed_voxels"][:], partial["seed_voxels_outside"][:]
        seeds = np.split(partial["seed_positions"][:], np.cumsum(inside)[:-1])
    written: dict[str, Any] = {f"{key}_maps": [] for key in MAPS}
    written["summaries"] = []
    valid = np.zeros(file.n_voxels, dtype=bool)
    for number, moments in enumerate(iter_merged(partial_files)):
        maps = _first(correlation_maps(moments))
        valid = moments.n_varying > 0
        family = valid.copy()
        family[seeds[number]] = False
        made = derive_maps(maps, moments.n_subjects, family, options)
        if with_errors and maps.standard_error is not None:
            made["error"] = maps.standard_error
        stem = f"lesion-{number:04d}"
        for key, values in made.items():
            path = _write_volume(folder / f"{stem}_{key}.nii.gz", values, file, *MAPS[key])
            written[f"{key}_maps"].append(path)
        summary = {
            "SeedVoxels": int(inside[number]),
            "SeedVoxelsOutsideConnectome": int(outside[number]),
            "NumberOfSubjects": moments.n_subjects,
            "NumberOfFiles": len(partial_files),
            **summarise(made, valid, family, moments.n_subjects, options),
        }
        written["summaries"].append(str(write_json(folder / f"{stem}.json", summary)))
    written["valid_mask"] = _write_volume(folder / "valid_mask.nii.gz", valid, file, "u1", 0)
    return written


def _first(maps: CorrelationMaps) -> CorrelationMaps:
    """Take the maps of the only seed of a set."""
    t, error = maps.t, maps.standard_error
    return CorrelationMaps(
        maps.z[0],
        maps.r[0],
        None if t is None else t[0],
        None if error is None else error[0],
    )


def _write_volume(
    path: Path, values: NDArray[Any], file: ConnectomeFile, dtype: str, background: float
) -> str:
    volume = np.full(file.grid.shape, background, dtype=dtype)
    volume[tuple(file.voxels)] = values
    return str(save_image(path, volume, file.grid.affine, dtype))
