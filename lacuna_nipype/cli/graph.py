"""The graph of a run, made of what was checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna_nipype import __version__
from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.core.files import fingerprint

if TYPE_CHECKING:
    from lacuna_nipype.cli.inputs import RunInputs
    from lacuna_nipype.io.lesions import Lesion


def dataset_links(config: RunConfig, inputs: RunInputs) -> dict[str, Path]:
    """Name the datasets that source addresses refer to."""
    links = {"raw": config.bids_dir if config.bids_dir.is_dir() else config.bids_dir.parent}
    for lesion in inputs.inspection.lesions:
        links.setdefault(lesion.record.dataset, lesion.record.root)
    return links


def build_workflow(config: RunConfig, inputs: RunInputs, links: dict[str, Path]) -> Any:
    """Build the graph of a run.

    Parameters
    ----------
    config : RunConfig
    inputs : RunInputs
    links : dict of str to Path
        Datasets that source addresses refer to.

    Returns
    -------
    nipype Workflow
    """
    from lacuna_nipype.atlases.catalogue import atlas_description
    from lacuna_nipype.cli.submit import passes_folder
    from lacuna_nipype.workflows import init_lacuna_wf

    functional, passes = inputs.functional, passes_folder(config)
    return init_lacuna_wf(
        lesions=[
            lesion_arguments(lesion, links, config, inputs) for lesion in inputs.inspection.lesions
        ],
        output_dir=config.output_dir,
        base_dir=config.work_dir,
        analyses=inputs.analyses,
        atlases=[
            {
                "image": atlas.image,
                "labels": atlas.labels,
                "entities": atlas.entities,
                "name": atlas.id,
                "description": atlas_description(atlas),
                "fingerprint": fingerprint(atlas.image),
                "labels_fingerprint": fingerprint(atlas.labels),
                "transforms": inputs.atlas_routes(atlas),
            }
            for atlas in inputs.atlases
        ],
        functional_files=functional.paths if functional else (),
        functional_fingerprints=inputs.functional_content,
        functional_space=functional.space if functional else None,
        functional_resolution=functional.grid.resolution_label if functional else None,
        fnm_maps=inputs.fnm_maps,
        fnm_options={
            "method": config.fnm_method,
            "pini_percentile": config.pini_percentile,
            "p_maps": config.p_map,
            "fdr_alpha": config.fdr_alpha,
            "t_threshold": config.t_threshold,
            "verify_voxels": config.verify if inputs.verify_files else 0,
            "verify_files": inputs.verify_files,
            "stored_error": functional.error_r if functional else 0.0,
            "partial_dir": passes if passes.is_dir() else None,
        },
        matrix_file=inputs.matrix.path if inputs.matrix else None,
        matrix_fingerprint=fingerprint(inputs.matrix.path) if inputs.matrix else None,
        matrix_atlas=inputs.matrix.atlas if inputs.matrix else 0,
        afnm_weighting=config.afnm_weighting,
        **_structural_arguments(config, inputs),
        metadata=inputs.metadata,
        memory_gb=pass_memory(config, inputs),
        omp_nthreads=config.omp_nthreads,
    )


def _structural_arguments(config: RunConfig, inputs: RunInputs) -> dict[str, Any]:
    """Arguments of the graph for structural disconnection."""
    plan = inputs.structural
    if plan is None:
        return {}
    tractogram = plan.tractogram
    return {
        "tractogram": {
            "tractogram": tractogram.path,
            "space": tractogram.space,
            "fingerprint": tractogram.content,
            "convert": tractogram.convert,
            "index_file": tractogram.index_file,
            "streamline_groups": config.streamline_groups,
            # Contents as the sidecars have them.
            "index_fingerprint": tractogram.index_content,
            "weights_fingerprint": plan.weights_content,
            "groups_fingerprint": plan.groups_content,
        },
        "snm_resolution": tractogram.resolution,
        "snm_options": {
            "engine": plan.engine,
            "upsample": tractogram.upsample,
            "hit_test": config.hit_test,
            "streamline_weights": config.streamline_weights,
        },
        "snm_outputs": plan.outputs,
    }


def pass_memory(config: RunConfig, inputs: RunInputs) -> float:
    """Memory for the pass over one file: its need, or its share of the budget if less."""
    from lacuna_nipype.connectomes.partial import least_pass_memory_gb, pass_memory_gb

    if inputs.functional is None:
        return 1.0
    files, threads = inputs.functional.files, config.omp_nthreads
    # Jobs of a cluster have their own memory, each, and what they need where nothing was said.
    share = config.memory_gb or math.inf
    if config.plugin == "MultiProc":
        share /= max(1, min(config.nprocs // threads, len(files)))
    need = max(pass_memory_gb(file, len(inputs.inspection.lesions), threads) for file in files)
    # Rounded down, the last seed would have no room and the file be read twice; rounded up, passes
    # would not fit side by side.
    need = math.ceil(need * 1000) / 1000
    # Subjects are inflated ahead where there is room for them only.
    least = math.ceil(max(least_pass_memory_gb(file, threads) for file in files) * 1000) / 1000
    return max(need if need <= share else math.floor(share * 1000) / 1000, least)


def lesion_arguments(
    lesion: Lesion, links: dict[str, Path], config: RunConfig, inputs: RunInputs
) -> dict[str, Any]:
    """Give the graph's arguments for a lesion.

    Parameters
    ----------
    lesion : Lesion
    links : dict of str to Path
        Datasets that source addresses refer to.
    config : RunConfig
    inputs : RunInputs

    Returns
    -------
    dict
        See :func:`lacuna_nipype.workflows.init_lacuna_wf`.
    """
    from lacuna_nipype.io.derivatives import bids_uri

    returns = {
        analysis: way
        for analysis in ("fnm", "snm")
        if (way := inputs.spaces.way_back(analysis, lesion.space)) is not None
    }
    if "fnm" in returns and inputs.functional is not None:
        returns["fnm"] |= {
            "n_subjects": inputs.functional.n_subjects,
            "p_maps": config.p_map,
            "fdr_alpha": config.fdr_alpha,
            "t_threshold": config.t_threshold,
        }
    return {
        "key": lesion.record.key,
        "mask_file": lesion.record.path,
        "entities": lesion.entities,
        "resolution": lesion.resolution,
        "normalisation": lesion.normalisation,
        "fingerprint": fingerprint(lesion.record.path),
        "normalisation_fingerprints": [fingerprint(path) for path in lesion.normalisation],
        "warps": inputs.spaces.warps(lesion.space, lesion.normalisation),
        "returns": returns,
        "metadata": {
            "Sources": [bids_uri(lesion.record.path, links)],
            "SpaceName": lesion.space,
            "LesionVoxels": lesion.n_voxels,
            "LesionVolumeML": lesion.volume_ml,
            "Software": {"Name": "lacuna-nipype", "Version": __version__},
        },
    }
