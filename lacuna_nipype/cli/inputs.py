"""Everything a run needs, checked before the graph is built."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lacuna_nipype.atlases.catalogue import (
    Atlas,
    check_atlas,
    custom_atlas,
    find_bids_atlases,
    select_atlases,
)
from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.connectomes.functional import FunctionalConnectome, open_connectome
from lacuna_nipype.connectomes.tractogram import check_tck, measure_step_size, upsample_ratio
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.spaces import canonical_space, template_grid
from lacuna_nipype.execution.programs import check_mrtrix
from lacuna_nipype.io.collect import (
    Collection,
    collect_masks,
    read_bids_filter_file,
    single_mask_record,
)
from lacuna_nipype.io.lesions import Inspection, inspect_lesions
from lacuna_nipype.io.provenance import combined_fingerprint, fingerprint

MRTRIX_COMMANDS = ("tckedit", "tckmap")
SNM_RESOLUTION_MM = 2.0


@dataclass(frozen=True)
class Tractogram:
    """A checked structural connectome.

    Parameters
    ----------
    path : Path
    space : str
        TemplateFlow name.
    count : int or None
        Streamlines according to the header.
    upsample : int or None
        Value for tckmap where the header has no step size; None lets tckmap choose.
    remark : str or None
        What was measured, and why.
    """

    path: Path
    space: str
    count: int | None
    upsample: int | None
    remark: str | None


@dataclass(frozen=True)
class RunInputs:
    """Inputs of a run, all checked.

    Parameters
    ----------
    analyses : tuple of str
    inspection : Inspection
    atlases : tuple of Atlas
    functional : FunctionalConnectome or None
    tractogram : Tractogram or None
    mrtrix_version : str or None
    notices : tuple of str
        What the user should know.
    metadata : dict of str to dict
        Sidecar content of each analysis.
    """

    analyses: tuple[str, ...]
    inspection: Inspection
    atlases: tuple[Atlas, ...]
    functional: FunctionalConnectome | None
    tractogram: Tractogram | None
    mrtrix_version: str | None
    notices: tuple[str, ...]
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)


def choose_analyses(config: RunConfig) -> tuple[str, ...]:
    """Analyses asked for, or else those whose inputs are given."""
    given = {
        "rd": bool(config.parcel_atlases or config.custom_parcellation),
        "fnm": config.functional_connectome is not None,
        "snm": config.structural_connectome is not None,
    }
    return tuple(
        name for name in given if name in config.analysis or (not config.analysis and given[name])
    )


def open_tractogram(path: Path, space: str | None) -> Tractogram:
    """Check a tractogram and find out how tckmap has to treat it.

    Parameters
    ----------
    path : Path
        ``.tck`` file.
    space : str or None
        Space given by the user; the ``Space`` of the JSON beside the file otherwise.

    Returns
    -------
    Tractogram

    Raises
    ------
    ValidationError
        The file is damaged or empty, or nothing says which space it is in.
    """
    header = check_tck(path)
    if space is None:
        sidecar = path.with_suffix(".json")
        if sidecar.is_file():
            try:
                space = json.loads(sidecar.read_text(encoding="utf-8")).get("Space")
            except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
                raise ValidationError(f"{sidecar} is not a valid JSON sidecar.") from error
    if not space:
        raise ValidationError(
            f"{path} does not say which space it is in; add --structural-space SPACE, or a JSON "
            f"beside it with the key Space."
        )
    space = canonical_space(space)
    if header.step_size is not None:
        return Tractogram(path, space, header.count, None, None)
    step = measure_step_size(header)
    upsample = upsample_ratio(step.median, template_grid(space, SNM_RESOLUTION_MM).voxel_sizes)
    return Tractogram(
        path, space, header.count, upsample,
        f"{path.name} has no step_size in its header, without which tckmap would not upsample; "
        f"{step.median:.3g} mm were measured, so -upsample {upsample} is passed"
        + ("." if step.regular else " (steps are irregular: the density is approximate)."),
    )  # fmt: skip


def _collect(config: RunConfig) -> Collection:
    if config.bids_dir.is_file():
        return Collection((single_mask_record(config.bids_dir, config.mask_space),), ())
    filters = None
    if config.bids_filter_file is not None:
        filters = read_bids_filter_file(config.bids_filter_file)
    return collect_masks(
        config.bids_dir,
        derivatives=dict(config.derivatives),
        participant_label=config.participant_label,
        session_label=config.session_label,
        pattern=config.pattern,
        bids_filters=filters,
        exclude=(config.output_dir, config.work_dir),
        mask_space=config.mask_space,
    )


def _find_atlases(config: RunConfig, space: str | None) -> list[Atlas]:
    atlases = [custom_atlas(*words) for words in config.custom_parcellation]
    if config.parcel_atlases:
        roots = [config.bids_dir] if config.bids_dir.is_dir() else []
        roots += [path for _, path in config.derivatives]
        available = [atlas for root in roots for atlas in find_bids_atlases(root)]
        atlases += select_atlases(config.parcel_atlases, available, space)
    names = [tuple(atlas.entities.values()) for atlas in atlases]
    for atlas in atlases:
        if names.count(tuple(atlas.entities.values())) > 1:
            raise ValidationError(f"Two atlases would write files named atlas-{atlas.atlas}.")
        check_atlas(atlas)
    return atlases


def gather_inputs(config: RunConfig) -> RunInputs:
    """Find and check everything a run needs.

    Parameters
    ----------
    config : RunConfig

    Returns
    -------
    RunInputs
        Bad masks are in its inspection; they do not raise.

    Raises
    ------
    DependencyError
        MRtrix3 is needed and missing or too old.
    LacunaError
        A connectome, an atlas or the choice of masks is unusable.
    """
    analyses = choose_analyses(config)
    if config.mask_space is not None:
        canonical_space(config.mask_space)
    mrtrix = check_mrtrix(MRTRIX_COMMANDS) if "snm" in analyses else None
    functional = tractogram = None
    notices: list[str] = []
    if "fnm" in analyses and config.functional_connectome is not None:
        functional = open_connectome(config.functional_connectome, config.functional_space)
    if "snm" in analyses and config.structural_connectome is not None:
        tractogram = open_tractogram(config.structural_connectome, config.structural_space)
        notices += [tractogram.remark] if tractogram.remark else []
    collection = _collect(config)
    notices += collection.notices
    spaces = [connectome.space for connectome in (functional, tractogram) if connectome]
    spaces += [record.space for record in collection.records if record.space]
    atlases = _find_atlases(config, spaces[0] if spaces else config.mask_space)
    targets = {f"atlas {atlas.id}": atlas.space for atlas in atlases}
    brain = None
    if functional is not None:
        targets[f"functional connectome {config.functional_connectome}"] = functional.space
        brain = (functional.mask(), functional.grid)
    if tractogram is not None:
        targets[f"structural connectome {tractogram.path}"] = tractogram.space
    inspection = inspect_lesions(
        collection.records,
        targets=targets,
        brain=brain,
        on_empty=config.on_empty,
        insist_on_space=config.mask_space is not None,
        n_threads=config.nprocs,
    )
    return RunInputs(
        analyses, inspection, tuple(atlases), functional, tractogram, mrtrix, tuple(notices),
        _metadata(analyses, functional, tractogram, mrtrix),
    )  # fmt: skip


def _metadata(
    analyses: Sequence[str],
    functional: FunctionalConnectome | None,
    tractogram: Tractogram | None,
    mrtrix: str | None,
) -> dict[str, dict[str, Any]]:
    """Sidecar content of each analysis."""
    metadata: dict[str, dict[str, Any]] = {analysis: {} for analysis in analyses}
    if "rd" in metadata:
        metadata["rd"]["Method"] = (
            "Voxels of every region inside the lesion, counted on the finer of the grids of mask "
            "and atlas."
        )
    if functional is not None:
        metadata["fnm"] |= {
            "Method": "Mean raw series of the lesion's voxels correlated with every voxel "
            "(Boes et al. 2015, doi:10.1093/brain/awv228).",
            "Connectome": {
                "Name": functional.paths[0].parent.name
                if len(functional.paths) > 1
                else functional.paths[0].name,
                "SpaceName": functional.space,
                "NumberOfFiles": len(functional.files),
                "NumberOfSubjects": functional.n_subjects,
                "Fingerprint": combined_fingerprint(functional.paths),
            },
        }
    if tractogram is not None:
        metadata["snm"] |= {
            "Method": "Streamlines with a vertex in the lesion (tckedit -include), mapped like "
            "the whole tractogram (tckmap) and divided by it.",
            "Connectome": {
                "Name": tractogram.path.name,
                "SpaceName": tractogram.space,
                "NumberOfStreamlines": tractogram.count,
                "Fingerprint": fingerprint(tractogram.path),
            },
            "Upsampling": tractogram.remark or "from the step_size of the tractogram's header",
            "MRtrixVersion": mrtrix,
        }
    return metadata
