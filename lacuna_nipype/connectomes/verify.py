"""Maps checked against the source series, voxel by voxel, the slow and obvious way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.functional import (
    SUFFIXES,
    ConnectomeFile,
    iter_subjects,
    read_connectome_file,
)
from lacuna_nipype.connectomes.hdf5 import DAMAGE, text_of
from lacuna_nipype.connectomes.seeds import make_seed
from lacuna_nipype.core.correlation import R_LIMIT
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import fingerprint, parse_json, write_json
from lacuna_nipype.core.images import load_map

# Maps are stored in single precision, and correlations of 0.99 lose a digit or two of it.
FLOOR = 1e-5
# A store states the largest error of the correlations it checked; others may be somewhat larger.
MARGIN = 5.0


@dataclass(frozen=True, eq=False)
class Probe:
    """Voxels of one lesion's map that are recomputed.

    Parameters
    ----------
    seed : array of int
        Positions of the lesion's voxels among the source's.
    voxels : array of int
        Positions of the voxels to check.
    """

    seed: NDArray[np.intp]
    voxels: NDArray[np.intp]


def source_paths(files: Sequence[ConnectomeFile]) -> list[Path] | None:
    """Find the files in Lacuna's layout that a connectome consists of or was made from.

    Parameters
    ----------
    files : sequence of ConnectomeFile

    Returns
    -------
    list of Path or None
        None when some are not at hand: not recorded, moved, or changed since.
    """
    found = []
    for file in files:
        if file.precision is None:
            found.append(file.path)
            continue
        try:
            with h5py.File(file.path, "r", locking=False) as handle:
                (source,) = parse_json(text_of(handle.attrs["sources"]))
                folder = text_of(handle.attrs["source_folder"])
            name, recorded = str(source).rsplit(" ", 1)
        except DAMAGE:
            return None
        if not folder:
            return None
        path = Path(folder) / name
        if (
            not path.is_file()
            or path.suffix.lower() not in SUFFIXES
            or fingerprint(path) != recorded
        ):
            return None
        found.append(path)
    return found


def recompute_z(
    files: Sequence[ConnectomeFile], probes: Sequence[Probe]
) -> list[NDArray[np.float64]]:
    """Mean Fisher z of some voxels of each lesion, one np.corrcoef at a time.

    Parameters
    ----------
    files : sequence of ConnectomeFile
        In Lacuna's layout, which keeps the series themselves.
    probes : sequence of Probe

    Returns
    -------
    list of arrays
        For each probe the mean over all subjects at its voxels; 0 for an empty seed.
    """
    sums = [np.zeros(len(probe.voxels)) for probe in probes]
    n_subjects = 0
    for file in files:
        for series in iter_subjects(file):
            n_subjects += 1
            for total, probe in zip(sums, probes, strict=True):
                total += _one_subject(series, probe)
    return [total / max(n_subjects, 1) for total in sums]


def _one_subject(series: NDArray[np.floating[Any]], probe: Probe) -> NDArray[np.float64]:
    z = np.zeros(len(probe.voxels))
    inside = series[:, probe.seed].astype(np.float64)
    inside = inside[:, np.isfinite(inside).all(axis=0)]
    if not inside.shape[1]:
        return z
    mean = inside.mean(axis=1)
    for place, voxel in enumerate(probe.voxels):
        values = series[:, voxel].astype(np.float64)
        if np.isfinite(values).all() and np.ptp(values) > 0 and np.ptp(mean) > 0:
            r = np.corrcoef(mean, values)[0, 1]
            z[place] = np.arctanh(np.clip(r, -R_LIMIT, R_LIMIT))
    return z


def verify_maps(
    source_files: Sequence[Path],
    mask_files: Sequence[Path],
    r_maps: Sequence[Path],
    folder: Path,
    *,
    n_voxels: int,
    stored_error: float = 0.0,
) -> list[Path]:
    """Recompute some voxels of every lesion's map from the source files.

    Parameters
    ----------
    source_files : sequence of Path
        All files of the connectome in Lacuna's layout.
    mask_files : sequence of Path
        Seeds on the connectome's grid, as they were used.
    r_maps : sequence of Path
        Maps to check, in the order of the seeds.
    folder : Path
        Where to write.
    n_voxels : int
        Voxels per map, drawn at random from a fixed seed.
    stored_error : float
        Error of correlations that the store states; 0 for maps made from the source itself.

    Returns
    -------
    list of Path
        JSON per lesion: number of voxels, largest difference of r, and the limit.

    Raises
    ------
    ValidationError
        A difference exceeds the limit: five times the stored error plus 1e-5.
    """
    files = [read_connectome_file(path) for path in source_files]
    rng = np.random.default_rng(0)
    probes, found = [], []
    for mask_file, r_map in zip(mask_files, r_maps, strict=True):
        mask, _ = load_map(mask_file)
        values, _ = load_map(r_map)
        count = min(n_voxels, files[0].n_voxels)
        chosen = np.sort(rng.choice(files[0].n_voxels, size=count, replace=False))
        probes.append(Probe(make_seed(mask > 0, files[0]).voxels, chosen))
        found.append(values[tuple(files[0].voxels[:, chosen])])
    limit = FLOOR + MARGIN * stored_error
    written = []
    for number, (z, values) in enumerate(zip(recompute_z(files, probes), found, strict=True)):
        difference = float(np.abs(np.tanh(z) - values).max(initial=0.0))
        # A map with NaN compares as neither larger nor smaller.
        if not difference <= limit:
            raise ValidationError(
                f"Map {r_maps[number]} differs from a recomputation out of "
                f"{source_files[0].parent} by {difference:.2g} in r, more than {limit:.2g}; "
                "convert the connectome again."
            )
        record = {
            "Voxels": len(values),
            "LargestDifferenceOfR": difference,
            "Limit": limit,
            "SourceFiles": [path.name for path in source_files],
        }
        path = folder / f"lesion-{number:04d}.json"
        written.append(write_json(path, {"Verification": record}))
    return written
