"""The whole graph of a participant run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from lacuna_nipype import __version__
from lacuna_nipype.core.spaces import same_space
from lacuna_nipype.interfaces.contents import expect_atlas
from lacuna_nipype.interfaces.functional import OWN_FILES, ListMaps, PickMaps
from lacuna_nipype.interfaces.parcels import PrepareParcels
from lacuna_nipype.interfaces.structural import TemplateGrid
from lacuna_nipype.io.structural_outputs import StructuralOutputs
from lacuna_nipype.workflows.fnm import init_fnm_wf
from lacuna_nipype.workflows.lesion import init_lesion_wf
from lacuna_nipype.workflows.mask import MASK_RESOLUTION_MM, init_mask_wf
from lacuna_nipype.workflows.snm import OUTPUTS, init_tractogram_wf


def workflow_name(level: str = "participant") -> str:
    """Name of a top workflow: nipype hashes inputs, not code, so the version is part of it.

    Parameters
    ----------
    level : {"participant", "group", "pass"}

    Returns
    -------
    str
    """
    which = {"participant": "lacuna", "group": "group", "pass": "pass"}[level]
    return f"{which}_{re.sub(r'[^0-9A-Za-z]+', '_', __version__)}_wf"


def lesion_workflow_names(key: str) -> tuple[str, str]:
    """Names of a lesion's mask workflow and of its analyses, from the text that identifies it."""
    # A plus sign is allowed in BIDS labels and not in node names.
    stem = re.sub(r"[^0-9A-Za-z]+", "_", key.replace("+", "_plus_"))
    return f"{stem}_mask_wf", f"{stem}_wf"


def init_lacuna_wf(
    *,
    lesions: Sequence[Mapping[str, Any]],
    output_dir: str | Path,
    base_dir: str | Path,
    analyses: Sequence[str],
    atlases: Sequence[Mapping[str, Any]] = (),
    functional_files: Sequence[str | Path] = (),
    functional_fingerprints: Sequence[str] = (),
    functional_space: str | None = None,
    functional_resolution: str | None = None,
    fnm_maps: Sequence[str] = ("r", "z", "t", "p", "q", "qsig"),
    fnm_options: Mapping[str, Any] | None = None,
    matrix_file: str | Path | None = None,
    matrix_fingerprint: str | None = None,
    matrix_atlas: int = 0,
    afnm_weighting: str = "fractional",
    tractogram: Mapping[str, Any] | None = None,
    snm_resolution: float = 2.0,
    snm_options: Mapping[str, Any] | None = None,
    snm_outputs: StructuralOutputs | None = None,
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
    memory_gb: float = 2.0,
    omp_nthreads: int = 1,
    name: str | None = None,
) -> pe.Workflow:
    """Compose the analyses of all lesions of a run.

    The connectome is mapped over, not the lesions: its files are each read once for all lesions,
    and the whole tractogram is mapped once. The number of nodes grows with the number of lesions
    and with the number of files, never with their product.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.workflows import init_lacuna_wf
            wf = init_lacuna_wf(
                lesions=[
                    {
                        "key": "sub-01_label-L",
                        "mask_file": "mask.nii.gz",
                        "entities": {"subject": "01", "space": "MNI152NLin6Asym", "label": "L"},
                    }
                ],
                output_dir="derivatives",
                base_dir="work",
                analyses=["fnm"],
                functional_files=["batch_1.h5", "batch_2.h5"],
            )

    Parameters
    ----------
    lesions : sequence of mappings
        ``key`` (unique text), ``mask_file``, ``entities`` (``space`` included), and optionally
        ``resolution`` (of the mask), ``metadata`` (for all sidecars of the lesion),
        ``normalisation`` (transforms from the participant's own space), ``fingerprint`` and
        ``normalisation_fingerprints`` (see :func:`lacuna_nipype.workflows.init_mask_wf`),
        ``warps`` (transforms to the connectomes' spaces, by space) and ``returns`` (see
        :func:`lacuna_nipype.workflows.init_lesion_wf`).
    output_dir, base_dir : path-like
        Derivatives dataset and work folder.
    analyses : sequence of {"rd", "fnm", "snm", "afnm"}
        What to do.
    atlases : sequence of mappings
        ``image``, ``labels`` and ``entities`` of each atlas; optionally ``name`` and
        ``description`` for summaries and sidecars, ``fingerprint`` and ``labels_fingerprint``
        (contents), and ``transforms``: by standard space, those that bring the atlas there.
    functional_files : sequence of path-like
        HDF5 files of the functional connectome.
    functional_fingerprints : sequence of str
        Of their content; see :func:`lacuna_nipype.workflows.init_fnm_wf`.
    functional_space : str, optional
        Standard space of the functional connectome.
    functional_resolution : str, optional
        ``res`` entity of the functional maps.
    fnm_maps : sequence of str
        Quantities of the functional maps; with a connectome of one subject only r and z exist.
    fnm_options : mapping, optional
        ``method``, ``pini_percentile``, ``p_maps``, ``fdr_alpha``, ``t_threshold``,
        ``verify_voxels``, ``verify_files`` and ``stored_error`` of
        :func:`lacuna_nipype.workflows.init_fnm_wf`; they must make the ``fnm_maps``.
    matrix_file : path-like, optional
        Connectivity matrix of z between the regions of one atlas, for ``afnm``.
    matrix_fingerprint : str, optional
        Its content.
    matrix_atlas : int
        Place of that atlas among the atlases.
    afnm_weighting : str
        See :func:`lacuna_nipype.workflows.init_afnm_wf`.
    tractogram : mapping, optional
        ``tractogram`` (file), ``space``, and optionally ``fingerprint``, ``convert``,
        ``index_file`` and ``streamline_groups`` of
        :func:`lacuna_nipype.workflows.init_tractogram_wf`.
    snm_resolution : float
        Voxel size of the disconnection maps in mm.
    snm_options : mapping, optional
        ``engine``, ``upsample``, ``hit_test`` and ``streamline_weights`` of
        :func:`lacuna_nipype.workflows.init_snm_wf`.
    snm_outputs : StructuralOutputs, optional
        What to store of structural disconnection beside the map.
    metadata : mapping of str to mapping, optional
        Sidecar content of each analysis.
    memory_gb, omp_nthreads
        Budget of the functional pass over one file.
    name : str, optional
        Name of the workflow; the package's name and version otherwise.

    Returns
    -------
    nipype Workflow
    """
    workflow = pe.Workflow(name=name or workflow_name(), base_dir=str(base_dir))
    accounts = _accounts(fnm_options or {})
    fnm_wf = tractogram_wf = None
    if "fnm" in analyses:
        fnm_wf = init_fnm_wf(
            connectome_files=functional_files,
            fingerprints=functional_fingerprints,
            memory_gb=memory_gb,
            omp_nthreads=omp_nthreads,
            with_errors=any("fnm" in lesion.get("returns", {}) for lesion in lesions),
            **(fnm_options or {}),
        )
    if "snm" in analyses:
        tractogram_wf = _tractogram_wf(
            tractogram or {}, snm_resolution, snm_options or {}, snm_outputs, omp_nthreads
        )
    spaces = {"fnm": functional_space, "snm": (tractogram or {}).get("space")}
    parcels = _Parcels(workflow, atlases, {"fnm": fnm_wf, "snm": tractogram_wf}, spaces)
    mask_wfs, lesion_wfs = [], []
    for lesion in lesions:
        own = lesion.get("metadata", {})
        mask_name, lesion_name = lesion_workflow_names(lesion["key"])
        warps = lesion.get("warps", {})
        mask_wfs.append(
            init_mask_wf(
                space=lesion["entities"]["space"],
                normalisation=lesion.get("normalisation", ()),
                fingerprint=lesion.get("fingerprint"),
                normalisation_fingerprints=lesion.get("normalisation_fingerprints", ()),
                warps=warps,
                name=mask_name,
            )
        )
        mask_wfs[-1].inputs.inputnode.mask_file = _absolute(lesion["mask_file"])
        warped = [key for key, space in spaces.items() if space in warps and key in analyses]
        lesion_wfs.append(
            init_lesion_wf(
                entities=lesion["entities"],
                output_dir=output_dir,
                analyses=analyses,
                atlases=atlases,
                mask_resolution=lesion.get("resolution"),
                fnm_maps=fnm_maps,
                fnm_accounts=[*accounts, *(["normalisation"] if "fnm" in warped else [])],
                fnm_resolution=functional_resolution,
                matrix_file=matrix_file,
                matrix_fingerprint=matrix_fingerprint,
                matrix_atlas=matrix_atlas,
                afnm_weighting=afnm_weighting,
                snm_resolution=f"{snm_resolution:g}",
                snm_options=snm_options,
                snm_outputs=snm_outputs,
                map_spaces={key: spaces[key] for key in warped},
                returns=lesion.get("returns"),
                metadata={
                    key: {**own, **(metadata or {}).get(key, {})} for key in ("mask", *analyses)
                },
                name=lesion_name,
            )
        )
        workflow.connect(
            [
                (
                    mask_wfs[-1],
                    lesion_wfs[-1],
                    [
                        ("outputnode.mask_file", "inputnode.mask_file"),
                        ("outputnode.meta_file", "inputnode.mask_meta"),
                    ],
                )
            ]
        )
        for key in ("fnm", "snm"):
            if key in warped:
                fields = [(f"outputnode.meta_{spaces[key]}", f"inputnode.{key}_normalisation")]
                workflow.connect([(mask_wfs[-1], lesion_wfs[-1], fields)])
        if "snm" in analyses:
            source = f"mask_{spaces['snm']}" if "snm" in warped else "mask_file"
            fields = [(f"outputnode.{source}", "inputnode.snm_mask_file")]
            workflow.connect([(mask_wfs[-1], lesion_wfs[-1], fields)])
        for analysis in analyses if atlases else ():
            node = parcels.node(analysis, lesion["entities"]["space"])
            workflow.connect(node, "out", lesion_wfs[-1], f"inputnode.{analysis}_parcels")
    if fnm_wf is not None:
        masks = [
            f"mask_{functional_space}" if functional_space in lesion.get("warps", {})
            else "mask_file"
            for lesion in lesions
        ]  # fmt: skip
        with_errors = [bool(lesion.get("returns", {}).get("fnm")) for lesion in lesions]
        _connect_pass(
            workflow, fnm_wf, mask_wfs, masks, lesion_wfs, fnm_maps, accounts, with_errors
        )
    if tractogram_wf is not None:
        shared = [(f"outputnode.{field}", f"inputnode.snm_{field}") for field in OUTPUTS]
        for lesion_wf in lesion_wfs:
            # A list of its own: nipype keeps it and adds to it.
            workflow.connect([(tractogram_wf, lesion_wf, list(shared))])
    if not {"rd", "fnm", "snm", "afnm"} & set(analyses):
        raise ValueError(f"No known analysis among {list(analyses)}.")
    return workflow


def _absolute(path: str | Path) -> str:
    """Path as it reads from any folder: steps run in folders of their own."""
    return str(Path(path).absolute())


def _accounts(fnm_options) -> list[str]:
    """List what the functional pass tells of each lesion beside its maps."""
    return [
        "resampling",
        *(["selection"] if fnm_options.get("method") == "pini" else []),
        *(["verification"] if fnm_options.get("verify_voxels") else []),
    ]


def _tractogram_wf(tractogram, resolution, options, outputs, omp_nthreads) -> pe.Workflow:
    """Make what all lesions share of the tractogram."""
    shared = ("engine", "upsample", "streamline_weights")
    return init_tractogram_wf(
        **tractogram,
        **{key: options[key] for key in shared if key in options},
        resolution=resolution,
        node_atlases=outputs.matrix_atlases if outputs else (),
        omp_nthreads=omp_nthreads,
    )


# Grids that atlases are brought to, for the estimates of what that takes.
_GRIDS = {"fnm": "functional", "snm": "structural"}


class _Parcels:
    """Nodes that prepare every atlas where an analysis needs it, each made once."""

    def __init__(self, workflow, atlases, makers, spaces) -> None:
        self.workflow, self.atlases, self.makers, self.spaces = workflow, atlases, makers, spaces
        self.nodes: dict[str, dict[str, pe.Node]] = {}

    def node(self, analysis, lesion_space) -> pe.Node:
        """List the atlases for one analysis: on its maps' grid, or for lesions of a space."""
        space = self.spaces.get(analysis) or lesion_space
        for known, node in self.nodes.get(analysis, {}).items():
            if same_space(known, space):
                return node
        own = self.nodes.setdefault(analysis, {})
        own[space] = self._make(analysis, space, f"{analysis}_{space}" if own else analysis)
        return own[space]

    def _make(self, analysis, space, key) -> pe.Node:
        merged = pe.Node(
            niu.Merge(len(self.atlases)),
            name=f"{key}_parcels",
            run_without_submitting=True,
            mem_gb=0.1,
        )
        for number, atlas in enumerate(self.atlases, start=1):
            prepare = pe.Node(
                PrepareParcels(
                    in_file=_absolute(atlas["image"]), labels_file=_absolute(atlas["labels"])
                ),
                name=f"{key}_atlas_{number}",
                mem_gb=1.0,
            )
            prepare.plugin_args = {"grid": _GRIDS.get(analysis, "masks")}
            expect_atlas(prepare, atlas)
            transforms = atlas.get("transforms", {}).get(space, ())
            if transforms:
                prepare.inputs.transforms = [_absolute(path) for path in transforms]
            if analysis == "fnm":
                source = (self.makers["fnm"], "outputnode.valid_mask")
            elif analysis == "snm":
                source = (self.makers["snm"], "outputnode.template")
            else:
                source = (self._grid(space, f"{key}_grid"), "out_file") if transforms else None
            if source is not None:
                self.workflow.connect(*source, prepare, "reference")
            self.workflow.connect(prepare, "out_file", merged, f"in{number}")
        return merged

    def _grid(self, space, name) -> pe.Node:
        """Make the standard grid for an atlas that comes from another space."""
        node = self.workflow.get_node(name)
        if node is None:
            node = pe.Node(
                TemplateGrid(space=space, resolution=MASK_RESOLUTION_MM), name=name, mem_gb=0.3
            )
        return node


def _connect_pass(
    workflow, fnm_wf, mask_wfs, mask_fields, lesion_wfs, fnm_maps, accounts, with_errors
) -> None:
    """Collect all masks for the one pass, and hand every lesion its own maps."""
    masks = pe.Node(
        niu.Merge(len(lesion_wfs)), name="all_masks", run_without_submitting=True, mem_gb=0.1
    )
    workflow.connect(masks, "out", fnm_wf, "inputnode.mask_files")
    maps = pe.Node(ListMaps(), name="fnm_lists", mem_gb=0.3)
    lists = [*(f"{quantity}_maps" for quantity in fnm_maps), "summaries", *accounts]
    if any(with_errors) and "t" in fnm_maps:
        lists.append("error_maps")
    fields = [(f"outputnode.{name}", name) for name in [*lists, "valid_mask"]]
    workflow.connect([(fnm_wf, maps, fields)])
    for number, (mask_wf, lesion_wf) in enumerate(zip(mask_wfs, lesion_wfs, strict=True)):
        workflow.connect(mask_wf, f"outputnode.{mask_fields[number]}", masks, f"in{number + 1}")
        pick = pe.Node(
            PickMaps(number=number), name="fnm_pick", run_without_submitting=True, mem_gb=0.1
        )
        own = [OWN_FILES[name] for name in lists if name != "error_maps" or with_errors[number]]
        inputnode = lesion_wf.get_node("inputnode")
        lesion_wf.connect([(pick, inputnode, [(name, f"fnm_{name}") for name in own])])
        workflow.connect(
            [
                (
                    maps,
                    lesion_wf,
                    [("out_file", "fnm_pick.in_file"), ("valid_mask", "inputnode.fnm_valid_mask")],
                )
            ]
        )
