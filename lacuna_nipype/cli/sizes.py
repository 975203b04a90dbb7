"""Sizes of a run's data, from headers, for estimates of memory and time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import nibabel as nb

from lacuna_nipype.atlases.catalogue import Atlas
from lacuna_nipype.atlases.labels import read_labels
from lacuna_nipype.atlases.parcels import open_atlas
from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.cli.inputs import RunInputs
from lacuna_nipype.cli.structural import Tractogram
from lacuna_nipype.connectomes.functional import FunctionalConnectome, read_connectome_file
from lacuna_nipype.connectomes.partial import pass_memory_gb
from lacuna_nipype.connectomes.tractogram_formats import tractogram_suffix
from lacuna_nipype.core.spaces import template_grid
from lacuna_nipype.execution.estimates import Sizes
from lacuna_nipype.workflows.mask import MASK_RESOLUTION_MM

# Share of an atlas's grid that labels fill, and that a volume of probabilities does.
_LABELLED, _PROBABLE = 0.3, 0.05
# How much larger a tractogram is as .tck, and streamlines of how many bytes it has then.
_INFLATED = {".trx": 2, ".trk.gz": 2, ".tt.gz": 10}
_STREAMLINE_BYTES = 700


def run_sizes(config: RunConfig, inputs: RunInputs, pass_gb: float) -> Sizes:
    """Gather what headers tell of a run's data.

    Parameters
    ----------
    config : RunConfig
    inputs : RunInputs
    pass_gb : float
        What the pass over one file of the functional connectome may take.

    Returns
    -------
    Sizes
    """
    found = {**_lesion_sizes(inputs), **_atlas_sizes(inputs.used_atlases)}
    if inputs.functional is not None:
        found |= _functional_sizes(inputs, inputs.functional)
    if inputs.structural is not None:
        found |= _structural_sizes(inputs.structural.tractogram)
    return Sizes(
        **found,
        maps=len(inputs.fnm_maps),
        pass_gb=pass_gb,
        transform_bytes=max((_size_of(way) for way in _ways(inputs)), default=0),
        threads=max(1, config.omp_nthreads),
    )


def _lesion_sizes(inputs: RunInputs) -> dict[str, int]:
    lesions = inputs.inspection.lesions
    voxels, returned = [0], [0]
    # Atlases of other spaces are brought to that of lesions, and as nodes to the tractogram's.
    targets = {lesion.space for lesion in lesions}
    if inputs.structural is not None:
        targets.add(inputs.structural.tractogram.space)
    reached = {space for atlas in inputs.used_atlases for space in inputs.atlas_routes(atlas)}
    voxels += [_n_voxels(space, MASK_RESOLUTION_MM) for space in targets & reached]
    for lesion in lesions:
        voxels.append(math.prod(nb.load(lesion.record.path).shape[:3]))
        if lesion.normalisation:
            voxels.append(_n_voxels(lesion.space, MASK_RESOLUTION_MM))
        warps = inputs.spaces.warps(lesion.space, lesion.normalisation)
        voxels += [_n_voxels(space, MASK_RESOLUTION_MM) for space in warps]
        for analysis in ("fnm", "snm"):
            way = inputs.spaces.way_back(analysis, lesion.space)
            if way is not None:
                returned.append(_n_voxels(way["space"], way["resolution"]))
    return {
        "lesions": max(1, len(lesions)),
        "mask_voxels": max(voxels),
        "returned_voxels": max(returned),
    }


def _n_voxels(space: str, resolution: float) -> int:
    return math.prod(template_grid(space, resolution).shape)


def _ways(inputs: RunInputs) -> Iterable[list[Path]]:
    """List transforms that the run applies together."""
    for lesion in inputs.inspection.lesions:
        yield list(lesion.normalisation)
        yield from inputs.spaces.warps(lesion.space, lesion.normalisation).values()
        for analysis in ("fnm", "snm"):
            yield (inputs.spaces.way_back(analysis, lesion.space) or {}).get("transforms", [])
    for atlas in inputs.used_atlases:
        yield from inputs.atlas_routes(atlas).values()


def _size_of(paths: Iterable[Path]) -> int:
    return sum(Path(path).stat().st_size for path in paths)


def _atlas_sizes(atlases: Iterable[Atlas]) -> dict[str, int]:
    voxels, values, regions = [0], [0], [0]
    for atlas in atlases:
        image, grid, n_volumes = open_atlas(atlas.image)
        own = math.prod(grid.shape)
        voxels.append(own)
        regions.append(len(read_labels(atlas.labels)))
        values.append(int(own * max(_LABELLED, _PROBABLE * n_volumes)))
        if n_volumes and atlas.image.suffix == ".gz":
            # What is not zero takes most of a compressed file.
            item_bytes = image.get_data_dtype().itemsize
            values[-1] = min(values[-1], int(1.5 * _size_of([atlas.image]) / item_bytes))
    return {
        "atlas_voxels": max(voxels),
        "atlas_values": max(values),
        "all_atlas_values": sum(values),
        "regions": max(regions),
    }


def _functional_sizes(
    inputs: RunInputs, functional: FunctionalConnectome
) -> dict[str, int | float]:
    largest = max(functional.files, key=lambda file: pass_memory_gb(file, 1))
    sources = [read_connectome_file(path) for path in inputs.verify_files]
    volumes = [lesion.volume_ml for lesion in inputs.inspection.lesions]
    return {
        "functional_voxels": math.prod(functional.grid.shape),
        "brain_voxels": functional.n_voxels,
        "timepoints": largest.n_timepoints,
        "subjects": max(file.n_subjects for file in functional.files),
        "connectome_bytes": max(path.stat().st_size for path in functional.paths),
        "all_subjects": functional.n_subjects,
        "files": len(functional.files),
        "seed_voxels": math.ceil(max(volumes, default=0) / functional.grid.voxel_volume_ml),
        "read_gb": max(pass_memory_gb(file, 1) for file in (largest, *sources)),
    }


def _structural_sizes(tractogram: Tractogram) -> dict[str, int]:
    suffix = tractogram_suffix(tractogram.path) or ".tck"
    n_bytes = tractogram.path.stat().st_size * _INFLATED.get(suffix, 1)
    return {
        "tractogram_bytes": n_bytes,
        "streamlines": tractogram.count or n_bytes // _STREAMLINE_BYTES,
        "structural_voxels": _n_voxels(tractogram.space, tractogram.resolution),
    }
