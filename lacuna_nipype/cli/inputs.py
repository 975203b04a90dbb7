"""Everything a run needs, checked before the graph is built."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lacuna_nipype.atlases.catalogue import Atlas, check_atlas, custom_atlas
from lacuna_nipype.atlases.parcels import load_parcels
from lacuna_nipype.atlases.services import find_run_atlases
from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.cli.registered import registered_entry, registered_metadata
from lacuna_nipype.cli.routes import Spaces, find_route, why_unreachable
from lacuna_nipype.cli.structural import (
    SNM_RESOLUTION_MM,
    StructuralPlan,
    open_tractogram,
    plan_structural,
    structural_metadata,
)
from lacuna_nipype.connectomes.functional import (
    FunctionalConnectome,
    conversion_hint,
    open_connectome,
)
from lacuna_nipype.connectomes.maps import MapOptions
from lacuna_nipype.connectomes.prepare import read_matrix
from lacuna_nipype.connectomes.registry import RegisteredConnectome
from lacuna_nipype.connectomes.verify import source_paths
from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.files import combine_fingerprints, fingerprint
from lacuna_nipype.core.spaces import Grid, canonical_space, same_space
from lacuna_nipype.io.collect import (
    Collection,
    LesionRecord,
    collect_masks,
    read_bids_filter_file,
    single_mask_record,
)
from lacuna_nipype.io.lesions import Inspection, inspect_lesions
from lacuna_nipype.io.normalisation import (
    NativeTransform,
    check_xfm,
    find_native_transform,
    given_transform,
    is_native,
    is_native_space,
)

FNM_METHODS = {
    "boes": "Mean raw series of the lesion's voxels correlated with every voxel "
    "(Boes et al. 2015, doi:10.1093/brain/awv228).",
    "pini": "Mean raw series of the lesion's voxels that load on their first principal component "
    "over subjects, correlated with every voxel (Pini et al. 2021, "
    "doi:10.1093/braincomms/fcab259).",
}


@dataclass(frozen=True)
class MatchedMatrix:
    """A connectivity matrix and the atlas of the run that it was made with.

    Parameters
    ----------
    path : Path
    atlas : int
        Place of the atlas among those of the run.
    connectome : dict
        What the matrix's sidecar says about its connectome.
    """

    path: Path
    atlas: int
    connectome: dict[str, Any]


def match_matrix(path: Path, atlases: Sequence[Atlas]) -> MatchedMatrix:
    """Find the atlas whose regions a connectivity matrix relates.

    Parameters
    ----------
    path : Path
        Matrix of z from ``connectome prepare``.
    atlases : sequence of Atlas
        Those of the run.

    Returns
    -------
    MatchedMatrix

    Raises
    ------
    ValidationError
        The matrix is damaged or not of z, or belongs to none of the atlases.
    """
    matrix = read_matrix(path)
    names = [load_parcels(atlas.image, atlas.labels).names for atlas in atlases]
    fitting = [i for i, own in enumerate(names) if matrix.same_parcels(own)] or [0]
    # Of several atlases with the same names of regions, the one that the matrix is of.
    described = matrix.sidecar.get("Atlas")
    made_of = described.get("Name") if isinstance(described, dict) else None
    place = next((i for i in fitting if atlases[i].id == made_of), fitting[0])
    # Refuses a matrix of r, and lists the differences where no atlas fits.
    matrix.z_for(names[place], f"atlas {atlases[place].id}")
    return MatchedMatrix(path, place, dict(matrix.sidecar.get("Connectome", {})))


@dataclass(frozen=True)
class RunInputs:
    """Inputs of a run, all checked.

    Parameters
    ----------
    analyses : tuple of str
    inspection : Inspection
    atlases : tuple of Atlas
    functional : FunctionalConnectome or None
    structural : StructuralPlan or None
    notices : tuple of str
        What the user should know.
    metadata : dict of str to dict
        Sidecar content of each analysis.
    map_options : MapOptions
        Which functional maps to make.
    matrix : MatchedMatrix or None
        Connectivity matrix of the parcel-level analysis.
    verify_files : tuple of Path
        Source series to verify functional maps against; empty for no verification.
    spaces : Spaces
        Where maps are made and where they go.
    functional_content : tuple of str
        Fingerprints of the functional connectome's files.
    """

    analyses: tuple[str, ...]
    inspection: Inspection
    atlases: tuple[Atlas, ...]
    functional: FunctionalConnectome | None
    structural: StructuralPlan | None
    notices: tuple[str, ...]
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
    map_options: MapOptions = field(default_factory=MapOptions)
    matrix: MatchedMatrix | None = None
    verify_files: tuple[Path, ...] = ()
    spaces: Spaces = field(default_factory=Spaces)
    functional_content: tuple[str, ...] = ()

    def atlas_routes(self, atlas: Atlas) -> dict[str, list[Path]]:
        """Find the way of an atlas to every space of the run that is not its own."""
        wanted = {space for space, _ in self.spaces.analyses.values()}
        if {"rd", "afnm"} & set(self.analyses):
            wanted |= {lesion.space for lesion in self.inspection.lesions}
        return {
            space: find_route(atlas.space, space)
            for space in sorted(wanted)
            if not same_space(atlas.space, space)
        }

    def only(self, analyses: tuple[str, ...], inspection: Inspection) -> RunInputs:
        """Take the part of the inputs that some lesions and analyses need.

        Parameters
        ----------
        analyses : tuple of str
        inspection : Inspection

        Returns
        -------
        RunInputs
        """
        own = {key: place for key, place in self.spaces.analyses.items() if key in analyses}
        return replace(
            self,
            analyses=analyses,
            inspection=inspection,
            functional=self.functional if "fnm" in analyses else None,
            structural=self.structural if "snm" in analyses else None,
            matrix=self.matrix if "afnm" in analyses else None,
            metadata={key: self.metadata[key] for key in analyses if key in self.metadata},
            spaces=replace(self.spaces, analyses=own),
        )

    @property
    def used_atlases(self) -> tuple[Atlas, ...]:
        """Atlases that results are made with: the matrix's alone where nothing else needs one."""
        if set(self.analyses) == {"afnm"} and self.matrix is not None:
            return (self.atlases[self.matrix.atlas],)
        return self.atlases

    @property
    def fnm_maps(self) -> list[str]:
        """Quantities of the functional maps that the run makes."""
        if self.functional is None:
            return []
        return self.map_options.quantities(self.functional.n_subjects)


def choose_analyses(config: RunConfig) -> tuple[str, ...]:
    """Analyses asked for, or else those whose inputs are given."""
    given = {
        "rd": bool(config.parcel_atlases or config.custom_parcellation),
        "fnm": config.functional_connectome is not None,
        "snm": config.structural_connectome is not None,
        "afnm": config.connectivity_matrix is not None,
    }
    return tuple(
        name for name in given if name in config.analysis or (not config.analysis and given[name])
    )


def _precision(functional: FunctionalConnectome) -> dict[str, Any]:
    """How exactly a store keeps the series, for the sidecars; the worst of its files."""
    stored = [file.precision for file in functional.files if file.precision is not None]
    if not stored:
        return {"Layout": "series"}
    return {
        "Layout": "store",
        "StoredType": ", ".join(sorted({precision.kind for precision in stored})),
        "StoredRank": max(precision.rank for precision in stored),
        "EnergyLost": max(precision.energy_lost for precision in stored),
        "MeasuredErrorOfR": max(precision.error_r for precision in stored),
    }


def _verify_files(
    config: RunConfig, functional: FunctionalConnectome | None, notices: list[str]
) -> tuple[Path, ...]:
    """Find the source series to verify maps against, or say that they are not at hand."""
    if not config.verify or functional is None:
        return ()
    paths = source_paths(functional.files)
    if paths is None:
        notices.append(
            "The series that the store was made from are not at hand (moved or changed since), "
            "so --verify cannot recompute any voxel."
        )
    return tuple(paths or ())


def collect_lesions(config: RunConfig | Namespace, exclude: Sequence[Path] = ()) -> Collection:
    """Find the masks that options ask for.

    Parameters
    ----------
    config : RunConfig or Namespace
        With the options for choosing masks.
    exclude : sequence of Path
        Folders to leave out, such as those that a run writes to.

    Returns
    -------
    Collection

    Raises
    ------
    LacunaError
        There are no such masks, or their names contradict each other.
    """
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
        exclude=exclude,
        mask_space=config.mask_space,
    )


def _find_atlases(config: RunConfig, space: str | None) -> list[Atlas]:
    atlases = [custom_atlas(*words) for words in config.custom_parcellation]
    if config.parcel_atlases:
        roots = [config.bids_dir] if config.bids_dir.is_dir() else []
        roots += [path for _, path in (*config.derivatives, *config.datasets)]
        atlases += find_run_atlases(config.parcel_atlases, space, datasets=roots)
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
    if config.mask_space is not None and not is_native_space(config.mask_space):
        canonical_space(config.mask_space)
    functional = tractogram = structural = None
    content: tuple[str, ...] = ()
    notices: list[str] = []
    entries: dict[str, RegisteredConnectome | None] = {}
    if "fnm" in analyses and config.functional_connectome is not None:
        entry = registered_entry(config.functional_connectome, "functional", notices)
        space = config.functional_space or (entry.space if entry else None)
        functional = open_connectome(config.functional_connectome, space)
        content = tuple(fingerprint(path) for path in functional.paths)
        entries["fnm"] = entry
        hint = conversion_hint(functional.files)
        notices += [hint] if hint else []
        if functional.n_subjects == 1:
            notices.append(
                "The functional connectome has one subject, so there is no variance over subjects "
                "and only r and z are made: no t, p or q."
            )
    if "snm" in analyses and config.structural_connectome is not None:
        entry = registered_entry(config.structural_connectome, "structural", notices)
        tractogram = open_tractogram(
            config.structural_connectome,
            config.structural_space or (entry.space if entry else None),
            config.output_resolution or (entry and entry.resolution) or SNM_RESOLUTION_MM,
        )
        entries["snm"] = entry
    verify_files = _verify_files(config, functional, notices)
    collection = collect_lesions(config, (config.output_dir, config.work_dir))
    notices += collection.notices
    spaces = [connectome.space for connectome in (functional, tractogram) if connectome]
    spaces += [
        record.space
        for record in collection.records
        if record.space and not is_native_space(record.space)
    ]
    atlases = _find_atlases(config, spaces[0] if spaces else config.mask_space)
    _check_atlas_routes([made.space for made in (functional, tractogram) if made], atlases)
    if tractogram is not None:
        structural = plan_structural(config, tractogram, atlases, len(collection.records))
        notices += structural.notices
    matrix = None
    if "afnm" in analyses and config.connectivity_matrix is not None:
        matrix = match_matrix(config.connectivity_matrix, atlases)
    targets = {f"atlas {atlas.id}": atlas.space for atlas in atlases}
    brain = None
    if functional is not None:
        targets[f"functional connectome {config.functional_connectome}"] = functional.space
        brain = (functional.mask(), functional.grid)
    if tractogram is not None:
        targets[f"structural connectome {config.structural_connectome}"] = tractogram.space
    inspection = inspect_lesions(
        collection.records,
        targets=targets,
        brain=brain,
        on_empty=config.on_empty,
        insist_on_space=config.mask_space is not None,
        normalise=find_transforms(config, collection, list(targets.values())),
        obstacle=why_unreachable,
        route=None if functional is None else partial(find_route, target=functional.space),
        n_threads=config.nprocs,
    )
    return RunInputs(
        analyses, inspection, tuple(atlases), functional, structural, tuple(notices),
        _metadata(config, analyses, functional, content, structural, matrix, entries),
        MapOptions(config.p_map, config.fdr_alpha, config.t_threshold),
        matrix,
        verify_files,
        _spaces(config, functional, structural),
        content,
    )  # fmt: skip


def find_transforms(
    config: RunConfig | Namespace, collection: Collection, targets: Sequence[str]
) -> Callable[[LesionRecord, Grid], NativeTransform | None]:
    """Prepare to find the transforms of masks that are in a participant's own space.

    Parameters
    ----------
    config : RunConfig or Namespace
        With the options for choosing masks.
    collection : Collection
    targets : sequence of str
        Standard spaces that are wanted; the first that a transform leads to is taken.

    Returns
    -------
    callable
        Takes a mask's record and grid; gives None where it needs no transform or has none.

    Raises
    ------
    ValidationError
        --xfm names a file that is missing for some mask.
    """
    derivatives = [path for _, path in config.derivatives]
    if config.xfm is not None:
        check_xfm(config.xfm, [r for r in collection.records if is_native(r)])

    def normalise(record: LesionRecord, grid: Grid) -> NativeTransform | None:
        if not is_native(record, grid):
            return None
        if config.xfm is not None:
            return given_transform(config.xfm, record, config.xfm_space)
        if record.space is None and not derivatives:
            return None
        return find_native_transform(record, derivatives, targets, grid=grid)

    return normalise


def _spaces(
    config: RunConfig,
    functional: FunctionalConnectome | None,
    structural: StructuralPlan | None,
) -> Spaces:
    """Where the maps of the run are made, and where they go."""
    made: dict[str, tuple[str, float | None]] = {}
    if functional is not None:
        label = functional.grid.resolution_label
        made["fnm"] = (functional.space, float(label) if label else None)
    if structural is not None:
        made["snm"] = (structural.tractogram.space, structural.tractogram.resolution)
    return Spaces(made, config.return_input_space, config.output_resolution)


def _check_atlas_routes(spaces: Sequence[str], atlases: Sequence[Atlas]) -> None:
    """Refuse atlases that cannot be brought to the connectomes' spaces."""
    for atlas in atlases:
        for target in spaces:
            if not same_space(atlas.space, target):
                reason = why_unreachable(atlas.space, target)
                if reason is not None:
                    raise SpatialMismatchError(
                        f"Atlas {atlas.id} is in {atlas.space} but a connectome is in {target}; "
                        f"{reason}"
                    )


def _metadata(
    config: RunConfig,
    analyses: Sequence[str],
    functional: FunctionalConnectome | None,
    content: Sequence[str],
    structural: StructuralPlan | None,
    matrix: MatchedMatrix | None,
    entries: Mapping[str, RegisteredConnectome | None],
) -> dict[str, dict[str, Any]]:
    """Sidecar content of each analysis."""
    metadata: dict[str, dict[str, Any]] = {analysis: {} for analysis in analyses}
    if "rd" in metadata:
        metadata["rd"]["Method"] = (
            "Voxels of every region inside the lesion, counted on the finer of the grids of mask "
            "and atlas."
        )
    if matrix is not None:
        metadata["afnm"] |= {
            "Method": "Regions that the lesion touches, weighted, times the connectivity matrix "
            "of Fisher's z between regions.",
            "Weighting": config.afnm_weighting,
            "Matrix": matrix.path.name,
            "MatrixFingerprint": fingerprint(matrix.path),
            "Connectome": matrix.connectome,
        }
    if functional is not None:
        metadata["fnm"] |= {
            "Method": FNM_METHODS[config.fnm_method],
            "Connectome": {
                "Name": functional.paths[0].parent.name
                if len(functional.paths) > 1
                else functional.paths[0].name,
                "SpaceName": functional.space,
                "NumberOfFiles": len(functional.files),
                "NumberOfSubjects": functional.n_subjects,
                "Fingerprint": combine_fingerprints(content),
                **_precision(functional),
            },
        }
    if structural is not None:
        metadata["snm"] |= structural_metadata(config, structural)
    for analysis, entry in entries.items():
        if entry is not None:
            metadata[analysis]["Connectome"] |= registered_metadata(entry)
    return metadata
