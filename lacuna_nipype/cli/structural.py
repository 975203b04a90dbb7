"""What a run needs for structural disconnection, checked before the graph is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lacuna_nipype.atlases.catalogue import Atlas, atlas_description
from lacuna_nipype.atlases.nodes import has_hard_labels
from lacuna_nipype.cli.atlas_outputs import atlas_table_uri
from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.cli.routes import find_route
from lacuna_nipype.connectomes.bundles import read_streamline_groups
from lacuna_nipype.connectomes.streamline_index import (
    find_tractogram,
    is_index,
    read_index_record,
)
from lacuna_nipype.connectomes.tractogram import check_tck, measure_step_size, upsample_ratio
from lacuna_nipype.connectomes.tractogram_formats import (
    TRACTOGRAM_SUFFIXES,
    tractogram_sidecar,
    tractogram_suffix,
)
from lacuna_nipype.connectomes.weights import read_streamline_weights
from lacuna_nipype.core.exceptions import DependencyError, ValidationError
from lacuna_nipype.core.files import fingerprint
from lacuna_nipype.core.spaces import (
    canonical_space,
    declared_space,
    same_space,
    template_grid,
)
from lacuna_nipype.execution.programs import check_mrtrix
from lacuna_nipype.io.naming import sanitize_label
from lacuna_nipype.io.structural_outputs import StructuralOutputs

SNM_RESOLUTION_MM = 2.0
# From so many lesions on, making an index first takes less time than MRtrix for each of them.
INDEX_FROM_LESIONS = 5


@dataclass(frozen=True)
class Tractogram:
    """A checked structural connectome.

    Parameters
    ----------
    path : Path
        As given; the ``.tck`` file, where an index was given.
    space : str
        TemplateFlow name.
    count : int or None
        Streamlines according to the header.
    upsample : int or None
        Value for tckmap where the header has no step size; None lets tckmap choose.
    remark : str or None
        What was measured, and why.
    content : str
        Fingerprint of the file.
    convert : bool
        Whether it is of another format than ``.tck``.
    index_file : Path or None
        The index that was given.
    index_content : str or None
        Fingerprint of the index.
    resolution : float
        Voxel size of the maps, mm.
    """

    path: Path
    space: str
    count: int | None
    upsample: int | None
    remark: str | None
    content: str
    convert: bool = False
    index_file: Path | None = None
    index_content: str | None = None
    resolution: float = SNM_RESOLUTION_MM


@dataclass(frozen=True)
class StructuralPlan:
    """How a run finds disconnections.

    Parameters
    ----------
    tractogram : Tractogram
    engine : {"mrtrix", "index"}
    mrtrix_version : str or None
    outputs : StructuralOutputs
        What is stored beside the map.
    notices : tuple of str
        What the user should know.
    weights_content, groups_content : str or None
        Fingerprints of the weights and of the table of bundles that were given.
    """

    tractogram: Tractogram
    engine: str
    mrtrix_version: str | None
    outputs: StructuralOutputs
    notices: tuple[str, ...] = ()
    weights_content: str | None = None
    groups_content: str | None = None


def open_tractogram(
    path: Path, space: str | None, resolution: float = SNM_RESOLUTION_MM
) -> Tractogram:
    """Check a structural connectome and find out how tckmap has to treat it.

    Parameters
    ----------
    path : Path
        ``.tck``, another tractogram, or a streamline index.
    space : str or None
        Space given by the user; that of the index, or the ``Space`` of the JSON beside the file,
        otherwise.
    resolution : float
        Voxel size of the maps in mm; an index brings its own.

    Returns
    -------
    Tractogram

    Raises
    ------
    ValidationError
        The file is damaged or empty, or nothing says which space it is in.
    """
    if path.is_dir():
        raise ValidationError(
            f"{path} is a folder; --structural-connectome takes one tractogram "
            f"({', '.join(TRACTOGRAM_SUFFIXES)}) or streamline index (.h5)."
        )
    if is_index(path):
        return _open_indexed(path, space)
    suffix = tractogram_suffix(path)
    if suffix is None or suffix == ".tck":
        return _open_tck(path, _find_space(path, space), resolution)
    return Tractogram(
        path, _find_space(path, space), None, None,
        f"{path.name} is converted to .tck first; `lacuna-nipype connectome convert` does that "
        "once for all runs.",
        fingerprint(path), convert=True, resolution=resolution,
    )  # fmt: skip


def _find_space(path: Path, space: str | None) -> str:
    if space is not None:
        return canonical_space(space)
    sidecar, content = tractogram_sidecar(path)
    if not content.get("Space"):
        raise ValidationError(
            f"{path} does not say which space it is in; add --structural-space SPACE, or a JSON "
            f"beside it with the key Space."
        )
    return declared_space(content["Space"], sidecar)


def _open_tck(path: Path, space: str, resolution: float) -> Tractogram:
    header, content = check_tck(path), fingerprint(path)
    if header.step_size is not None:
        return Tractogram(path, space, header.count, None, None, content, resolution=resolution)
    step = measure_step_size(header)
    upsample = upsample_ratio(step.median, template_grid(space, resolution).voxel_sizes)
    return Tractogram(
        path, space, header.count, upsample,
        f"{path.name} has no step_size in its header, without which tckmap would not upsample; "
        f"{step.median:.3g} mm were measured, so -upsample {upsample} is passed"
        + ("." if step.regular else " (steps are irregular: the density is approximate)."),
        content, resolution=resolution,
    )  # fmt: skip


def _open_indexed(path: Path, space: str | None) -> Tractogram:
    content, record = fingerprint(path), read_index_record(path)
    tck = find_tractogram(record)
    if space is not None and canonical_space(space) != record.space:
        raise ValidationError(
            f"{path} was made for {record.space}, not for {canonical_space(space)} as "
            "--structural-space says; leave that out, or make the index again."
        )
    resolution = float(record.grid.voxel_sizes[0])
    if not record.grid.same_as(template_grid(record.space, resolution)):
        raise ValidationError(
            f"{path} is not on a standard grid of {record.space} "
            f"({record.grid.describe()}); make it again with `lacuna-nipype connectome convert`."
        )
    remark = None
    if record.step_size is None:
        remark = (
            f"{tck.name} has no step_size in its header; the index was made with an upsampling "
            f"ratio of {record.upsample}."
        )
    return Tractogram(
        tck, record.space, record.n_streamlines, record.upsample, remark, record.fingerprint,
        index_file=path, index_content=content, resolution=resolution,
    )  # fmt: skip


def plan_structural(
    config: RunConfig, tractogram: Tractogram, atlases: Sequence[Atlas], n_lesions: int
) -> StructuralPlan:
    """Choose the engine and what is stored.

    Parameters
    ----------
    config : RunConfig
    tractogram : Tractogram
    atlases : sequence of Atlas
        Those of the run.
    n_lesions : int
        Masks found.

    Returns
    -------
    StructuralPlan

    Raises
    ------
    DependencyError
        The engine ``mrtrix`` was asked for, and MRtrix3 is missing or too old.
    ValidationError
        Weights or bundles do not fit the tractogram.
    """
    notices = [tractogram.remark] if tractogram.remark else []
    asked = config.compute_disconnectivity_matrix or config.compute_roi_disconnection
    labelled = [atlas for atlas in atlases if asked and has_hard_labels(atlas.image)]
    if asked and len(labelled) < len(atlases):
        left_out = ", ".join(atlas.id for atlas in atlases if atlas not in labelled)
        notices.append(
            f"Streamlines end in one region each, so there are no matrices with probabilistic "
            f"atlases: {left_out}."
        )
    engine, version, reason = _choose_engine(config, tractogram, n_lesions, bool(labelled))
    # What they held before they are checked: steps insist on it.
    contents = {
        f"{name}_content": fingerprint(path)
        for name, path in (
            ("weights", config.streamline_weights),
            ("groups", config.streamline_groups),
        )
        if path is not None
    }
    _check_tables(config, tractogram)
    outputs = StructuralOutputs(
        matrix_atlases=[
            {
                "image": atlas.image,
                "labels": atlas.labels,
                "entities": atlas.entities,
                "name": atlas.id,
                "description": atlas_description(atlas),
                "node_files": [atlas_table_uri(atlas)],
                "fingerprint": fingerprint(atlas.image),
                "labels_fingerprint": fingerprint(atlas.labels),
                "transforms": []
                if same_space(atlas.space, tractogram.space)
                else find_route(atlas.space, tractogram.space),
            }
            for atlas in labelled
        ],
        matrices=bool(labelled) and config.compute_disconnectivity_matrix,
        roi=bool(labelled) and config.compute_roi_disconnection,
        bundles=_bundles_name(config.streamline_groups),
        intermediate=config.keep_intermediate,
        weighted=config.streamline_weights is not None,
    )
    notices += [reason] if reason else []
    return StructuralPlan(tractogram, engine, version, outputs, tuple(notices), **contents)


def _bundles_name(path: Path | None) -> str | None:
    """Name of a table of bundles, as the value of an entity."""
    if path is None:
        return None
    return sanitize_label(path.name.removesuffix(".gz").removesuffix(".tsv"))


def _choose_engine(
    config: RunConfig, tractogram: Tractogram, n_lesions: int, with_matrices: bool
) -> tuple[str, str | None, str | None]:
    """Engine, version of MRtrix if it is used, and why, if the user did not choose."""
    commands = ("tckedit", "tckmap", *(("tck2connectome",) if with_matrices else ()))
    if config.snm_engine == "mrtrix":
        return "mrtrix", check_mrtrix(commands), None
    if (
        config.snm_engine == "index"
        or tractogram.index_file is not None
        or config.hit_test != "vertices"
    ):
        return "index", None, None
    if n_lesions >= INDEX_FROM_LESIONS:
        return "index", None, None
    try:
        return "mrtrix", check_mrtrix(commands), None
    except DependencyError as error:
        return "index", None, f"The streamline index stands in for MRtrix3. {error}"


def _check_tables(config: RunConfig, tractogram: Tractogram) -> None:
    """Refuse weights and bundles that do not fit, where the number of streamlines is known."""
    if tractogram.count is None:
        return
    if config.streamline_weights is not None:
        read_streamline_weights(config.streamline_weights, tractogram.count)
    if config.streamline_groups is not None:
        read_streamline_groups(config.streamline_groups, tractogram.count)


def structural_metadata(config: RunConfig, plan: StructuralPlan) -> dict[str, Any]:
    """Sidecar content of structural disconnection."""
    tractogram = plan.tractogram
    passing = "a stored point" if config.hit_test == "vertices" else "any part of their path"
    method = f"Streamlines with {passing} in the lesion, counted per voxel and divided by all."
    if plan.engine == "mrtrix":
        method += " With tckedit -include and tckmap of MRtrix3."
    else:
        method += (
            " With a streamline index that follows the rules of MRtrix3's tckedit and tckmap."
        )
    metadata: dict[str, Any] = {
        "Method": method,
        "Engine": plan.engine,
        "HitTest": config.hit_test,
        "Connectome": {
            "Name": tractogram.path.name,
            "SpaceName": tractogram.space,
            "Fingerprint": tractogram.content,
        },
        "Upsampling": tractogram.remark or "from the step_size of the tractogram's header",
    }
    if plan.mrtrix_version:
        metadata["MRtrixVersion"] = plan.mrtrix_version
    for key, path, content in (
        ("StreamlineWeights", config.streamline_weights, plan.weights_content),
        ("StreamlineGroups", config.streamline_groups, plan.groups_content),
    ):
        if path is not None:
            metadata[key] = {"Name": path.name, "Fingerprint": content}
    return metadata
