"""Everything that is done for one lesion alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from lacuna_nipype.interfaces.bids import DerivativesDataSink
from lacuna_nipype.interfaces.returned import ReturnFunctionalMaps, ReturnMap
from lacuna_nipype.io.quantities import FNM_TABLES, resolution_text
from lacuna_nipype.io.structural_outputs import StructuralOutputs
from lacuna_nipype.workflows.afnm import init_afnm_wf
from lacuna_nipype.workflows.damage import init_damage_wf
from lacuna_nipype.workflows.outputs import init_output_wf
from lacuna_nipype.workflows.parcellate import init_parcellate_wf
from lacuna_nipype.workflows.snm import OUTPUTS, SHARED, init_snm_wf

INPUTS = (
    "mask_file",
    "mask_meta",
    "rd_parcels",
    "afnm_parcels",
    "fnm_r",
    "fnm_z",
    "fnm_t",
    "fnm_p",
    "fnm_q",
    "fnm_qsig",
    "fnm_tsig",
    "fnm_valid_mask",
    "fnm_parcels",
    "fnm_summary",
    "fnm_resampling",
    "fnm_selection",
    "fnm_verification",
    "fnm_error",
    "fnm_normalisation",
    "snm_mask_file",
    "snm_normalisation",
    "snm_parcels",
    *(f"snm_{field}" for field in OUTPUTS),
)


def init_lesion_wf(
    *,
    entities: Mapping[str, str],
    output_dir: str | Path,
    analyses: Sequence[str],
    atlases: Sequence[Mapping[str, Any]] = (),
    mask_resolution: str | None = None,
    fnm_maps: Sequence[str] = ("r", "z", "t"),
    fnm_accounts: Sequence[str] = ("resampling",),
    fnm_resolution: str | None = None,
    matrix_file: str | Path | None = None,
    matrix_fingerprint: str | None = None,
    matrix_atlas: int = 0,
    afnm_weighting: str = "fractional",
    snm_resolution: str | None = None,
    snm_options: Mapping[str, Any] | None = None,
    snm_outputs: StructuralOutputs | None = None,
    map_spaces: Mapping[str, str] | None = None,
    returns: Mapping[str, Mapping[str, Any]] | None = None,
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
    name: str = "lesion_wf",
) -> pe.Workflow:
    """Compose the steps that concern a single lesion.

    What is shared by all lesions (atlases, the whole tractogram's density, the functional pass)
    comes in through the input node, so that a lesion that fails takes no other with it.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.workflows import init_lesion_wf
            wf = init_lesion_wf(
                entities={"subject": "01", "space": "MNI152NLin6Asym", "label": "L"},
                output_dir="derivatives",
                analyses=["rd"],
                atlases=[{"entities": {"atlas": "Demo"}}],
            )

    Parameters
    ----------
    entities : mapping
        BIDS entities of the lesion; ``space`` included.
    output_dir : path-like
        Derivatives dataset.
    analyses : sequence of {"rd", "fnm", "snm", "afnm"}
        What to do.
    atlases : sequence of mappings
        ``entities`` and optionally ``name`` and ``description`` of each atlas, in the order of
        the prepared parcels.
    mask_resolution, fnm_resolution, snm_resolution : str, optional
        Values of the ``res`` entity of the mask and of each analysis's maps.
    fnm_maps : sequence of str
        Quantities of the functional maps.
    fnm_accounts : sequence of {"resampling", "selection", "verification"}
        Accounts of the seed that go into the sidecars of the functional results.
    matrix_file : path-like, optional
        Connectivity matrix, for ``afnm``.
    matrix_fingerprint : str, optional
        Its content; see :func:`lacuna_nipype.workflows.init_afnm_wf`.
    matrix_atlas : int
        Place of the matrix's atlas among the atlases.
    afnm_weighting : str
        See :func:`lacuna_nipype.workflows.init_afnm_wf`.
    snm_options : mapping, optional
        ``engine``, ``upsample``, ``hit_test`` and ``streamline_weights`` of
        :func:`lacuna_nipype.workflows.init_snm_wf`.
    snm_outputs : StructuralOutputs, optional
        What to store of structural disconnection beside the map.
    map_spaces : mapping of str to str, optional
        Standard space of the maps of ``fnm`` and ``snm`` as made, where it is not the lesion's.
    returns : mapping of str to mapping, optional
        Maps of ``fnm`` and ``snm`` to bring to another space or grid: ``space``,
        ``resolution`` (mm) and ``transforms`` (in order; none for another grid only). For
        ``fnm`` also ``n_subjects``, ``p_maps``, ``fdr_alpha`` and ``t_threshold``.
    metadata : mapping of str to mapping, optional
        Sidecar content of ``mask`` and of each analysis.
    name : str
        Name of the workflow.

    Inputs
    ------
    mask_file, mask_meta
        Validated mask and its JSON, from :func:`lacuna_nipype.workflows.init_mask_wf`.
    rd_parcels, afnm_parcels, fnm_parcels, snm_parcels
        Prepared parcels: on the atlases' own grids, and on the grids of the maps.
    fnm_r, fnm_z, fnm_t, fnm_p, fnm_q, fnm_qsig, fnm_tsig
        Functional maps of this lesion.
    fnm_valid_mask, fnm_summary, fnm_resampling, fnm_selection, fnm_verification, fnm_error
        Of this lesion, from the functional pass.
    snm_mask_file
        The mask in the tractogram's space.
    fnm_normalisation, snm_normalisation
        JSON: what bringing the mask to the connectome's space did.
    snm_template, snm_tractogram, snm_index, snm_full_tdi
        Of the whole tractogram, from :func:`lacuna_nipype.workflows.init_tractogram_wf`.
    snm_assignments, snm_nodes_tables, snm_full_matrices
        From there, per atlas.
    snm_weights, snm_groups, snm_n_streamlines, snm_meta_file
        From there.
    snm_fingerprint, snm_index_fingerprint, snm_weights_fingerprint
        From there.
    """
    workflow = pe.Workflow(name=name)
    metadata = metadata or {}
    shared = {"output_dir": output_dir, "entities": entities}
    inputnode = pe.Node(niu.IdentityInterface(fields=list(INPUTS)), name="inputnode")
    mask_sink = _mask_sink(output_dir, entities, mask_resolution, metadata.get("mask", {}))
    workflow.connect(
        [(inputnode, mask_sink, [("mask_file", "in_file"), ("mask_meta", "meta_files")])]
    )
    if "rd" in analyses:
        output_wf = init_output_wf(
            **shared,
            analysis="rd",
            atlases=atlases,
            tables=["damagepct"],
            metadata=metadata.get("rd"),
            name="rd_output_wf",
        )
        damage_wf = init_damage_wf(
            atlas_names=[atlas["name"] for atlas in atlases if "name" in atlas]
        )
        _connect_damage(workflow, inputnode, damage_wf, output_wf)
    if "afnm" in analyses:
        output_wf = init_output_wf(
            **shared,
            analysis="afnm",
            atlases=[atlases[matrix_atlas]],
            tables=["score"],
            metadata=metadata.get("afnm"),
            name="afnm_output_wf",
        )
        afnm_wf = init_afnm_wf(
            matrix_file=matrix_file,
            matrix_fingerprint=matrix_fingerprint,
            weighting=afnm_weighting,
        )
        _connect_afnm(workflow, inputnode, afnm_wf, output_wf, matrix_atlas)
    places = {
        analysis: _map_entities(analysis, native, map_spaces or {}, returns or {})
        for analysis, native in (("fnm", fnm_resolution), ("snm", snm_resolution))
    }
    if "fnm" in analyses:
        averaged = [quantity for quantity in fnm_maps if quantity in FNM_TABLES]
        output_wf = init_output_wf(
            **shared,
            analysis="fnm",
            maps=[*fnm_maps, "valid"],
            map_entities=places["fnm"],
            atlases=atlases,
            tables=averaged,
            metadata=metadata.get("fnm"),
            with_meta_file=True,
            name="fnm_output_wf",
        )
        _list_files(workflow, inputnode, fnm_accounts, "fnm_accounts", output_wf, "meta_file")
        way = (returns or {}).get("fnm")
        _connect_fnm(
            workflow, inputnode, output_wf, fnm_maps, averaged if atlases else (),
            _return_fnm(workflow, inputnode, fnm_maps, way) if way else None,
        )  # fmt: skip
    if "snm" in analyses:
        outputs = snm_outputs or StructuralOutputs()
        native = _map_entities("snm", snm_resolution, map_spaces or {}, {})
        further = outputs.files(native)
        output_wf = init_output_wf(
            **shared,
            analysis="snm",
            maps=["disconnectionpct"],
            map_entities=places["snm"],
            atlases=atlases,
            tables=["mapdisconnectionpct"],
            further=further,
            metadata=metadata.get("snm"),
            with_meta_file=True,
            name="snm_output_wf",
        )
        snm_wf = init_snm_wf(
            **(snm_options or {}),
            atlas_names=[atlas["name"] for atlas in outputs.matrix_atlases],
            with_matrices=outputs.matrices,
            with_roi=outputs.roi,
            with_groups=bool(outputs.bundles),
            with_streamlines=outputs.intermediate,
        )
        _list_metas(workflow, inputnode, output_wf, "snm" in (map_spaces or {}))
        stored = [field for field, _ in further]
        _connect_snm(
            workflow, inputnode, snm_wf, output_wf, stored,
            with_atlases=bool(atlases),
            way=(returns or {}).get("snm"),
        )  # fmt: skip
    return workflow


def _map_entities(analysis, native, map_spaces, returns) -> dict[str, str]:
    """Entities of an analysis's maps: where they are returned to, or where they were made."""
    if analysis in returns:
        way = returns[analysis]
        return {"space": way["space"], **_res(f"{way['resolution']:g}")}
    space = {"space": map_spaces[analysis]} if analysis in map_spaces else {}
    return {**space, **_res(native)}


def _list_metas(workflow, inputnode, output_wf, warped) -> None:
    """Gather what is known of the tractogram, and of the mask's way to its space."""
    if not warped:
        workflow.connect(inputnode, "snm_meta_file", output_wf, "inputnode.meta_file")
        return
    listed = pe.Node(niu.Merge(2), name="snm_metas", run_without_submitting=True, mem_gb=0.1)
    workflow.connect(
        [
            (inputnode, listed, [("snm_meta_file", "in1"), ("snm_normalisation", "in2")]),
            (listed, output_wf, [("out", "inputnode.meta_file")]),
        ]
    )


def _return_fnm(workflow, inputnode, quantities, way) -> pe.Node:
    """Make the functional maps in the lesion's space, or on the grid asked for."""
    node = pe.Node(
        ReturnFunctionalMaps(quantities=list(quantities), **_plain_way(way)),
        name="fnm_return",
        mem_gb=1.5,
    )
    workflow.connect(
        [
            (
                inputnode,
                node,
                [
                    ("mask_file", "mask_file"),
                    ("fnm_z", "z_map"),
                    ("fnm_valid_mask", "valid_mask"),
                ],
            )
        ]
    )
    if "t" in quantities:
        workflow.connect(inputnode, "fnm_error", node, "error_map")
    return node


def _plain_way(way: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a way that are given, paths as text."""
    given = {key: value for key, value in way.items() if value is not None}
    return {
        **given,
        "transforms": [str(Path(path).absolute()) for path in given.get("transforms", ())],
    }


def _res(resolution: str | None) -> dict[str, str]:
    return {"res": resolution} if resolution else {}


def _mask_sink(output_dir, entities, resolution, metadata) -> pe.Node:
    sink = pe.Node(
        DerivativesDataSink(
            base_directory=str(Path(output_dir).absolute()),
            entities={**entities, **_res(resolution), "desc": "lesion", "suffix": "mask"},
            metadata={
                "Description": "Lesion mask as analysed.",
                "Type": "Lesion",
                **({"Resolution": resolution_text(resolution)} if resolution else {}),
                **metadata,
            },
        ),
        name="ds_mask",
        mem_gb=0.3,
    )
    return sink


def _pick(items, number):
    """Take one atlas's file from a list over atlases (nipype stores the source of this)."""
    return items[number]


def _connect_afnm(workflow, inputnode, afnm_wf, output_wf, atlas) -> None:
    workflow.connect(
        [
            (
                inputnode,
                afnm_wf,
                [
                    ("mask_file", "inputnode.mask_file"),
                    (("afnm_parcels", _pick, atlas), "inputnode.parcels_file"),
                ],
            ),
            (
                afnm_wf,
                output_wf,
                [
                    ("outputnode.table", "inputnode.tables"),
                    ("outputnode.summary", "inputnode.summary"),
                ],
            ),
        ]
    )


def _connect_damage(workflow, inputnode, damage_wf, output_wf) -> None:
    workflow.connect(
        [
            (
                inputnode,
                damage_wf,
                [
                    ("mask_file", "inputnode.mask_file"),
                    ("rd_parcels", "inputnode.parcels_files"),
                ],
            ),
            (
                damage_wf,
                output_wf,
                [
                    ("outputnode.tables", "inputnode.tables"),
                    ("outputnode.summary", "inputnode.summary"),
                ],
            ),
        ]
    )


def _list_files(workflow, inputnode, fields, name, target_wf, target) -> None:
    """Gather functional fields of the input node into one list for an inner workflow."""
    listed = pe.Node(niu.Merge(len(fields)), name=name, run_without_submitting=True, mem_gb=0.1)
    for place, field in enumerate(fields, start=1):
        workflow.connect(inputnode, f"fnm_{field}", listed, f"in{place}")
    workflow.connect(listed, "out", target_wf, f"inputnode.{target}")


def _connect_fnm(workflow, inputnode, output_wf, quantities, averaged, returned) -> None:
    if returned is None:
        stored = [*quantities, "valid_mask"]
        _list_files(workflow, inputnode, stored, "fnm_maps", output_wf, "maps")
    else:
        workflow.connect(returned, "out_files", output_wf, "inputnode.maps")
    workflow.connect(
        [
            (
                inputnode,
                output_wf,
                [("fnm_summary", "inputnode.summary")],
            ),
        ]
    )
    if averaged:
        transforms = [FNM_TABLES[quantity] for quantity in averaged]
        # r is averaged as z and turned back, so z stands in its place.
        fields = [
            "z" if transform == "tanh" else quantity
            for quantity, transform in zip(averaged, transforms, strict=True)
        ]
        parcellate_wf = init_parcellate_wf(
            quantities=averaged, transforms=transforms, grid="functional",
            name="fnm_parcellate_wf",
        )  # fmt: skip
        _list_files(workflow, inputnode, fields, "fnm_maps_to_average", parcellate_wf, "maps")
        workflow.connect(
            [
                (
                    inputnode,
                    parcellate_wf,
                    [
                        ("fnm_valid_mask", "inputnode.valid_mask"),
                        ("fnm_parcels", "inputnode.parcels_files"),
                    ],
                ),
                (parcellate_wf, output_wf, [("outputnode.tables", "inputnode.tables")]),
            ]
        )


def _connect_snm(workflow, inputnode, snm_wf, output_wf, stored, *, with_atlases, way) -> None:
    shared = [(f"snm_{field}", f"inputnode.{field}") for field in SHARED]
    workflow.connect(
        [
            (inputnode, snm_wf, [("snm_mask_file", "inputnode.mask_file"), *shared]),
            (
                snm_wf,
                output_wf,
                [
                    ("outputnode.summary", "inputnode.summary"),
                    *((f"outputnode.{field}", f"inputnode.{field}") for field in stored),
                ],
            ),
        ]
    )
    if way is None:
        workflow.connect(snm_wf, "outputnode.disconnection", output_wf, "inputnode.maps")
    else:
        node = pe.Node(ReturnMap(**_plain_way(way)), name="snm_return", mem_gb=1.5)
        workflow.connect(
            [
                (
                    snm_wf,
                    node,
                    [
                        ("outputnode.disconnection", "in_file"),
                        ("outputnode.valid_mask", "valid_mask"),
                    ],
                ),
                (node, output_wf, [("out_file", "inputnode.maps")]),
            ]
        )
    if with_atlases:
        parcellate_wf = init_parcellate_wf(
            quantities=["mapdisconnectionpct"], grid="structural", name="snm_parcellate_wf"
        )
        workflow.connect(
            [
                (inputnode, parcellate_wf, [("snm_parcels", "inputnode.parcels_files")]),
                (
                    snm_wf,
                    parcellate_wf,
                    [
                        ("outputnode.disconnection", "inputnode.maps"),
                        ("outputnode.valid_mask", "inputnode.valid_mask"),
                    ],
                ),
                (parcellate_wf, output_wf, [("outputnode.tables", "inputnode.tables")]),
            ]
        )
