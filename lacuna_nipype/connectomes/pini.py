"""The first of the two passes of the Pini method: lesion voxels against their own mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.connectomes.functional import ConnectomeFile, iter_subjects
from lacuna_nipype.connectomes.seeds import Seed
from lacuna_nipype.connectomes.store_pass import correlate_seed_voxels
from lacuna_nipype.core.correlation import seed_series, unit_columns
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import atomic_path, write_json
from lacuna_nipype.core.images import save_image
from lacuna_nipype.core.pini import keep_voxels, principal_loadings


def write_seed_correlations(file: ConnectomeFile, seeds: Sequence[Seed], target: Path) -> Path:
    """Correlate the voxels of every lesion with the lesion's mean, in one connectome file.

    Parameters
    ----------
    file : ConnectomeFile
    seeds : sequence of Seed
    target : Path
        HDF5 file to write (atomically): a dataset per seed, shape (n_subjects, n_seed_voxels),
        float32. Only lesion voxels are touched, so it stays small.

    Returns
    -------
    Path
        The target.
    """
    with atomic_path(target) as temporary, h5py.File(temporary, "w") as out:
        out.attrs["mask_digest"] = file.mask_digest
        datasets = [
            out.create_dataset(
                f"{number:06d}", (file.n_subjects, len(seed.voxels)), "f4", track_times=False
            )
            for number, seed in enumerate(seeds)
        ]
        if file.precision is not None:
            voxels = [seed.voxels for seed in seeds]
            for number, positions, values in correlate_seed_voxels(file, voxels):
                datasets[number][:, positions] = values
        else:
            for subject, series in enumerate(iter_subjects(file)):
                for seed, dataset in zip(seeds, datasets, strict=True):
                    if len(seed.voxels):
                        dataset[subject] = _one_subject(series, seed.voxels)
    return target


def _one_subject(series: NDArray[np.floating], voxels: NDArray[np.intp]) -> NDArray[np.float64]:
    unit, _ = unit_columns(series[:, voxels])
    return seed_series(series, [voxels])[0] @ unit


def iter_seed_correlations(paths: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
    """Put the subjects of all files together, lesion by lesion.

    Parameters
    ----------
    paths : sequence of Path
        One per connectome file; their order does not matter to the principal component.

    Yields
    ------
    array, shape (n_subjects, n_seed_voxels), float32
    """
    handles = [h5py.File(path, "r", locking=False) for path in paths]
    try:
        if len({handle.attrs["mask_digest"] for handle in handles}) != 1:
            raise ValidationError(
                f"Seed correlations {', '.join(map(str, paths))} do not belong to one pass; "
                "remove the work folder and run again."
            )
        for key in sorted(handles[0]):
            yield np.concatenate([handle[key][()] for handle in handles])
    finally:
        for handle in handles:
            handle.close()


def write_selected_seeds(
    paths: Sequence[Path],
    seeds: Sequence[Seed],
    file: ConnectomeFile,
    folder: Path,
    *,
    percentile: float,
) -> tuple[list[Path], list[Path]]:
    """Choose the voxels of every lesion that represent it, over all subjects.

    Parameters
    ----------
    paths : sequence of Path
        Results of :func:`write_seed_correlations`, one per connectome file.
    seeds : sequence of Seed
        The seeds they were made with.
    file : ConnectomeFile
        Any file of the connectome, for the voxel grid.
    folder : Path
        Where to write.
    percentile : float
        See :func:`lacuna_nipype.core.pini.keep_voxels`.

    Returns
    -------
    masks : list of Path
        The voxels that are kept, as images on the connectome's grid.
    metas : list of Path
        JSON: how many voxels were kept, and the variance that the component explains.
    """
    masks, metas = [], []
    for number, (seed, correlations) in enumerate(
        zip(seeds, iter_seed_correlations(paths), strict=True)
    ):
        loadings, explained = principal_loadings(correlations)
        kept = seed.voxels[keep_voxels(loadings, percentile)]
        volume = np.zeros(file.grid.shape, dtype=np.uint8)
        volume[tuple(file.voxels[:, kept])] = 1
        stem = folder / f"lesion-{number:04d}"
        masks.append(save_image(stem.with_suffix(".nii.gz"), volume, file.grid.affine, "u1"))
        selection = {
            "Percentile": percentile,
            "VoxelsBefore": len(seed.voxels),
            "VoxelsKept": len(kept),
            "VarianceExplained": explained,
        }
        metas.append(write_json(stem.with_suffix(".json"), {"PiniSelection": selection}))
    return masks, metas
