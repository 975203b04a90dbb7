"""The demonstration's connectomes: HDF5 time series and a tractogram."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.files import atomic_path, write_json
from lacuna_nipype.core.simulation import (
    Cortex,
    nearest_parcel,
    simulate_streamlines,
    simulate_time_series,
)
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.io.demonstration.anatomy import Anatomy, world_coordinates
from lacuna_nipype.io.demonstration.atlas import Parcellation
from lacuna_nipype.io.demonstration.dataset import SPACE

N_FILES = 2
N_SUBJECTS = 6
N_TIMEPOINTS = 60
N_STREAMLINES = 12_000
STEP_MM = 1.0
PARCEL_REACH_MM = 6.0
GREY_THRESHOLD = 0.35
_SOURCE = "Simulated by lacuna-nipype tutorial; not for science"


@dataclass(frozen=True)
class FunctionalVoxels:
    """The voxels of the functional connectome.

    Parameters
    ----------
    grid : Grid
        The voxel grid.
    indices : array of int32, shape (3, n_voxels)
        Voxel indices, in C order.
    parcels : array of int, shape (n_voxels,)
        Parcel of each voxel from 1, 0 for none.
    """

    grid: Grid
    indices: NDArray[np.int32]
    parcels: NDArray[np.int64]


def functional_voxels(anatomy: Anatomy, parcellation: Parcellation) -> FunctionalVoxels:
    """Find the brain's voxels and the parcel of each.

    Parameters
    ----------
    anatomy : Anatomy
        Tissue on the grid of the functional connectome.
    parcellation : Parcellation
        Parcels, on a grid of their own.

    Returns
    -------
    FunctionalVoxels
        All voxels of the brain; those of grey matter near a parcel belong to it.
    """
    points = world_coordinates(anatomy.grid, anatomy.brain)
    labelled = parcellation.labels > 0
    parcels = nearest_parcel(
        points,
        world_coordinates(parcellation.grid, labelled),
        parcellation.labels[labelled],
        max_distance=PARCEL_REACH_MM,
    )
    parcels[anatomy.grey[anatomy.brain] < GREY_THRESHOLD] = 0
    indices = np.argwhere(anatomy.brain).T.astype(np.int32)
    return FunctionalVoxels(anatomy.grid, indices, parcels)


def write_functional_file(
    path: Path,
    voxels: FunctionalVoxels,
    networks: NDArray[np.integer],
    seeds: list[list[int]],
) -> None:
    """Write one HDF5 file of a functional connectome.

    Parameters
    ----------
    path : pathlib.Path
        File to write.
    voxels : FunctionalVoxels
        Where the voxels are and which parcel they belong to.
    networks : array of int, shape (n_parcels,)
        Network of each parcel.
    seeds : list of list of int
        One seed per subject of the file.
    """
    import h5py

    n_voxels = voxels.indices.shape[1]
    shape = (len(seeds), N_TIMEPOINTS, n_voxels)
    attributes: dict[str, Any] = {
        "mask_shape": np.array(voxels.grid.shape, dtype=np.int64),
        "n_subjects": len(seeds),
        "n_timepoints": N_TIMEPOINTS,
        "n_voxels": n_voxels,
        "space": SPACE,
        "description": "Synthetic resting-state series with seven networks, 4 mm",
        "source": _SOURCE,
    }
    # Times in the file would make two equal files differ.
    with atomic_path(path) as temporary, h5py.File(temporary, "w", track_order=False) as store:
        series = store.create_dataset(
            "timeseries",
            shape,
            dtype="<f4",
            chunks=(1, *shape[1:]),
            compression="gzip",
            compression_opts=4,
            shuffle=True,
            track_times=False,
        )
        for subject, seed in enumerate(seeds):
            rng = np.random.default_rng(seed)
            series[subject] = simulate_time_series(voxels.parcels, networks, N_TIMEPOINTS, rng)
        store.create_dataset("mask_indices", data=voxels.indices, track_times=False)
        store.create_dataset("mask_affine", data=voxels.grid.affine, track_times=False)
        store.attrs.update(attributes)


def make_cortex(anatomy: Anatomy, parcellation: Parcellation) -> Cortex:
    """Gather where streamlines start, pass and end.

    Parameters
    ----------
    anatomy : Anatomy
        Tissue.
    parcellation : Parcellation
        Parcels.

    Returns
    -------
    Cortex
        Input of :func:`lacuna_nipype.core.simulation.simulate_streamlines`.
    """
    labelled = parcellation.labels > 0
    return Cortex(
        points=world_coordinates(parcellation.grid, labelled),
        labels=parcellation.labels[labelled].astype(np.intp),
        networks=parcellation.networks,
        deep_white=world_coordinates(anatomy.grid, anatomy.deep_white()),
        callosum=world_coordinates(anatomy.grid, anatomy.callosum()),
    )


def write_tractogram(path: Path, cortex: Cortex, rng: np.random.Generator) -> None:
    """Simulate a tractogram and write it with its sidecar.

    Parameters
    ----------
    path : pathlib.Path
        The ``.tck`` file to write; the sidecar ``.json`` goes beside it.
    cortex : Cortex
        Where streamlines start, pass and end.
    rng : numpy.random.Generator
        Source of everything random.
    """
    import nibabel as nib

    streamlines = simulate_streamlines(cortex, N_STREAMLINES, rng, step=STEP_MM)
    tractogram = nib.streamlines.Tractogram(streamlines, affine_to_rasmm=np.eye(4))
    # Without a step size in the header, tckmap would not upsample.
    header = {"step_size": f"{STEP_MM:g}"}
    with atomic_path(path) as temporary:
        nib.streamlines.TckFile(tractogram, header=header).save(temporary)
    write_json(
        path.with_suffix(".json"),
        {
            "Description": "Synthetic whole-brain tractogram",
            "Space": SPACE,
            "StepSize": STEP_MM,
            "Count": len(streamlines),
            "Units": "mm",
            "Source": _SOURCE,
        },
    )
