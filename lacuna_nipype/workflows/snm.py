"""Structural disconnection: what is made once of a tractogram, and what of each lesion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from lacuna_nipype.interfaces.assignment import AssignStreamlines
from lacuna_nipype.interfaces.contents import expect, expect_atlas
from lacuna_nipype.interfaces.disconnectivity import (
    BundleDisconnection,
    DisconnectivityMatrix,
    FullMatrix,
    PrepareGroups,
    PrepareNodes,
    PrepareWeights,
)
from lacuna_nipype.interfaces.mrtrix import SelectStreamlines, TCKMap
from lacuna_nipype.interfaces.streamlines import (
    AssignIndexedStreamlines,
    BuildStreamlineIndex,
    CheckTractogram,
    ConvertTractogram,
    IndexedDensity,
    IndexedDisconnection,
)
from lacuna_nipype.interfaces.structural import (
    CombineSummaries,
    DisconnectionMap,
    TemplateGrid,
)

ENGINES = ("mrtrix", "index")
# Of an atlas that comes from another space.
NODES_RESOLUTION_MM = 1.0
# What is made once of a tractogram, for all lesions.
SHARED = (
    "template",
    "tractogram",
    "index",
    "full_tdi",
    "assignments",
    "nodes_tables",
    "full_matrices",
    "weights",
    "groups",
    "n_streamlines",
    "fingerprint",
    "index_fingerprint",
    "weights_fingerprint",
)
OUTPUTS = (*SHARED, "meta_file")


def _check_engine(engine: str) -> None:
    if engine not in ENGINES:
        raise ValueError(f"Unknown engine {engine!r}; one of {', '.join(ENGINES)}.")


def _absolute(path: str | Path) -> str:
    """Path as it reads from any folder: steps run in folders of their own."""
    return str(Path(path).absolute())


def init_tractogram_wf(
    *,
    tractogram: str | Path,
    space: str,
    resolution: float = 2.0,
    engine: str = "mrtrix",
    upsample: int | None = None,
    fingerprint: str | None = None,
    convert: bool = False,
    index_file: str | Path | None = None,
    index_fingerprint: str | None = None,
    node_atlases: Sequence[Mapping[str, Any]] = (),
    streamline_weights: str | Path | None = None,
    weights_fingerprint: str | None = None,
    streamline_groups: str | Path | None = None,
    groups_fingerprint: str | None = None,
    omp_nthreads: int = 1,
    name: str = "tractogram_wf",
) -> pe.Workflow:
    """Make of a tractogram what all lesions share.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.workflows import init_tractogram_wf
            wf = init_tractogram_wf(
                tractogram="whole_brain.tck", space="MNI152NLin2009cAsym", engine="index"
            )

    Parameters
    ----------
    tractogram : path-like
        MRtrix ``.tck`` file; with ``convert`` a file of another format.
    space : str
        Standard space of the tractogram.
    resolution : float
        Voxel size of the maps in mm.
    engine : {"mrtrix", "index"}
        MRtrix commands, or an index of the streamlines; both give the same numbers.
    upsample : int, optional
        Upsampling ratio of tckmap; needed when the file's header has no ``step_size``, without
        which tckmap would not upsample.
    fingerprint, index_fingerprint, weights_fingerprint, groups_fingerprint : str, optional
        Content of the tractogram and of the other files, from
        :func:`lacuna_nipype.core.files.fingerprint`: another content, and everything is made
        again. Where they are not given, the first step that reads a file finds out. A step that
        then meets another content fails; results of two tractograms are never mixed.
    convert : bool
        Write the tractogram as ``.tck`` first.
    index_file : path-like, optional
        Index of the tractogram that was made before, for the engine ``index``.
    node_atlases : sequence of mappings
        ``image`` and ``labels`` of the labelled atlases to make matrices of; ``transforms``,
        those that bring an atlas to the tractogram's space, where that is another.
    streamline_weights, streamline_groups : path-like, optional
        Text with one weight per streamline; table of streamlines and their bundles.
    omp_nthreads : int
        Threads of the steps that have a use for them.
    name : str
        Name of the workflow.

    Outputs
    -------
    template
        Empty image on the maps' grid.
    tractogram
        The ``.tck`` file.
    index
        Streamline index (engine ``index``).
    full_tdi
        Streamlines that pass each voxel, or the sum of their weights.
    assignments, nodes_tables, full_matrices
        Per atlas: nodes of every streamline, names of the nodes, and matrix of the whole.
    weights, groups
        Checked, in a form that loads fast.
    n_streamlines, meta_file
        Number of streamlines, and JSON with what the check of the tractogram found.
    fingerprint, index_fingerprint, weights_fingerprint
        Contents that the ``.tck`` file, an index that was given, and the weights must keep.
    """
    _check_engine(engine)
    workflow = pe.Workflow(name=name)
    outputnode = pe.Node(niu.IdentityInterface(fields=list(OUTPUTS)), name="outputnode")
    grid = pe.Node(TemplateGrid(space=space, resolution=resolution), name="grid", mem_gb=0.3)
    check = pe.Node(CheckTractogram(), name="check", mem_gb=0.5)
    if convert:
        source = pe.Node(
            ConvertTractogram(in_file=_absolute(tractogram), space=space),
            name="convert",
            mem_gb=0.5,
        )
        expect(source, fingerprint=fingerprint)
        workflow.connect(source, "out_file", check, "in_file")
    else:
        # Holds the path, so that a graph can be built before the file is there.
        source = pe.Node(niu.IdentityInterface(fields=["tractogram"]), name="tractogram_buffer")
        source.inputs.tractogram = _absolute(tractogram)
        workflow.connect(source, "tractogram", check, "in_file")
        expect(check, fingerprint=fingerprint)
    workflow.connect(
        [
            (grid, outputnode, [("out_file", "template")]),
            (
                check,
                outputnode,
                [
                    ("out_file", "tractogram"),
                    ("n_streamlines", "n_streamlines"),
                    ("meta_file", "meta_file"),
                    ("fingerprint", "fingerprint"),
                    ("index_fingerprint", "index_fingerprint"),
                ],
            ),
        ]
    )
    tables = {
        "weights": (streamline_weights, weights_fingerprint, PrepareWeights),
        "groups": (streamline_groups, groups_fingerprint, PrepareGroups),
    }
    for field, (path, content, interface) in tables.items():
        if path:
            node = pe.Node(interface(in_file=_absolute(path)), name=f"prepare_{field}", mem_gb=1.0)
            expect(node, fingerprint=content)
            workflow.connect(
                [
                    (check, node, [("n_streamlines", "n_streamlines")]),
                    (node, outputnode, [("out_file", field)]),
                ]
            )
    weights = workflow.get_node("prepare_weights")
    if weights is not None:
        workflow.connect(weights, "fingerprint", outputnode, "weights_fingerprint")
    if engine == "mrtrix":
        density = _tckmap_node("tckmap", upsample)
        workflow.connect(
            [
                (check, density, [("out_file", "in_file"), ("fingerprint", "fingerprint")]),
                (grid, density, [("out_file", "reference")]),
            ]
        )
        if weights is not None:
            density.inputs.tck_weights = _absolute(streamline_weights)
            workflow.connect(weights, "fingerprint", density, "weights_fingerprint")
    else:
        if index_file is not None:
            check.inputs.index = _absolute(index_file)
            expect(check, index_fingerprint=index_fingerprint)
        density = _index_nodes(
            workflow, check, grid, outputnode, space, upsample, index_file, omp_nthreads
        )
        if weights is not None:
            workflow.connect(weights, "out_file", density, "streamline_weights")
    workflow.connect(density, "out_file", outputnode, "full_tdi")
    if node_atlases:
        nodes = [_nodes_node(workflow, *item, space) for item in enumerate(node_atlases, start=1)]
        _assign_nodes(workflow, check, outputnode, nodes, engine, omp_nthreads)
    return workflow


# How the steps that read the tractogram itself, or the index, are told what to expect.
_TRACTOGRAM = [("out_file", "tractogram"), ("fingerprint", "fingerprint")]
_INDEXED = [*_TRACTOGRAM, ("index_fingerprint", "index_fingerprint")]


def _tckmap_node(name: str, upsample: int | None) -> pe.Node:
    tckmap = pe.Node(TCKMap(out_file="tdi.nii.gz"), name=name, mem_gb=0.5)
    if upsample is not None:
        tckmap.inputs.upsample = upsample
    return tckmap


def _index_nodes(
    workflow, check, grid, outputnode, space, upsample, index_file, omp_nthreads
) -> pe.Node:
    """Index the tractogram, or take the index that is there; give the node of the density."""
    index = pe.Node(niu.IdentityInterface(fields=["out_file"]), name="index_buffer")
    if index_file is not None:
        index.inputs.out_file = _absolute(index_file)
    else:
        build = pe.Node(
            BuildStreamlineIndex(space=space, num_threads=omp_nthreads),
            name="build_index",
            mem_gb=0.5 + 0.3 * omp_nthreads,
            n_procs=omp_nthreads,
        )
        if upsample is not None:
            build.inputs.upsample = upsample
        workflow.connect(
            [
                (check, build, list(_TRACTOGRAM)),
                (grid, build, [("out_file", "reference")]),
                (build, index, [("out_file", "out_file")]),
            ]
        )
    density = pe.Node(IndexedDensity(), name="density", mem_gb=0.5)
    workflow.connect(
        [
            (check, density, list(_INDEXED)),
            (index, density, [("out_file", "index")]),
            (index, outputnode, [("out_file", "index")]),
        ]
    )
    return density


def _nodes_node(workflow, number, atlas, space) -> pe.Node:
    """Make the node that numbers an atlas's regions, in the tractogram's space."""
    nodes = pe.Node(
        PrepareNodes(in_file=_absolute(atlas["image"]), labels_file=_absolute(atlas["labels"])),
        name=f"nodes_{number}",
        mem_gb=0.5,
    )
    nodes.plugin_args = {"grid": "masks"}
    expect_atlas(nodes, atlas)
    if atlas.get("transforms"):
        nodes.inputs.transforms = [_absolute(path) for path in atlas["transforms"]]
        grid = workflow.get_node("nodes_grid")
        if grid is None:
            # Streamlines end in voxels of the nodes, whatever the voxel size of the maps.
            grid = pe.Node(
                TemplateGrid(space=space, resolution=NODES_RESOLUTION_MM),
                name="nodes_grid",
                mem_gb=0.3,
            )
        workflow.connect(grid, "out_file", nodes, "reference")
    return nodes


def _assign_nodes(workflow, check, outputnode, all_nodes, engine, omp_nthreads) -> None:
    """Assign all streamlines to the nodes of each atlas, once."""
    lists = {
        field: pe.Node(
            niu.Merge(len(all_nodes)), name=field, run_without_submitting=True, mem_gb=0.1
        )
        for field in ("assignments", "nodes_tables", "full_matrices")
    }
    for number, nodes in enumerate(all_nodes, start=1):
        full = pe.Node(FullMatrix(), name=f"full_matrix_{number}", mem_gb=0.5)
        if engine == "mrtrix":
            assign = pe.Node(AssignStreamlines(), name=f"assign_{number}", mem_gb=0.5)
            workflow.connect(
                [(check, assign, [("out_file", "in_file"), ("fingerprint", "fingerprint")])]
            )
        else:
            assign = pe.Node(
                AssignIndexedStreamlines(num_threads=omp_nthreads),
                name=f"assign_{number}",
                mem_gb=0.5,
                n_procs=omp_nthreads,
            )
            index = workflow.get_node("index_buffer")
            workflow.connect(
                [
                    (check, assign, list(_INDEXED)),
                    (index, assign, [("out_file", "index")]),
                ]
            )
        workflow.connect(
            [
                (nodes, assign, [("out_file", "nodes")]),
                (nodes, full, [("table", "nodes_table")]),
                (assign, full, [("out_file", "assignments")]),
                (assign, lists["assignments"], [("out_file", f"in{number}")]),
                (nodes, lists["nodes_tables"], [("table", f"in{number}")]),
                (full, lists["full_matrices"], [("out_file", f"in{number}")]),
            ]
        )
        weights = workflow.get_node("prepare_weights")
        if weights is not None:
            workflow.connect(weights, "out_file", full, "streamline_weights")
    for field, node in lists.items():
        workflow.connect(node, "out", outputnode, field)


def init_snm_wf(
    *,
    engine: str = "mrtrix",
    upsample: int | None = None,
    hit_test: str = "vertices",
    atlas_names: Sequence[str] = (),
    with_matrices: bool = True,
    with_roi: bool = True,
    streamline_weights: str | Path | None = None,
    with_groups: bool = False,
    with_streamlines: bool = False,
    name: str = "snm_wf",
) -> pe.Workflow:
    """Map the disconnection that one lesion causes.

    The streamlines with a vertex in the lesion are selected on the mask's own grid, mapped like
    the whole tractogram, and divided by it.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.workflows import init_snm_wf
            wf = init_snm_wf(atlas_names=["Schaefer100"])

    Parameters
    ----------
    engine : {"mrtrix", "index"}
        As for the tractogram.
    upsample : int, optional
        The value used for the whole tractogram.
    hit_test : {"vertices", "segments"}
        A stored point inside the lesion, as tckedit has it; or, with the engine ``index``, any
        part of the path between points.
    atlas_names : sequence of str
        Names of the atlases to make matrices of, as given to :func:`init_tractogram_wf`.
    with_matrices, with_roi : bool
        Whether to write the matrices, and the table of each parcel's disconnection.
    streamline_weights : path-like, optional
        The text file that was given to :func:`init_tractogram_wf`.
    with_groups : bool
        Whether bundles were given.
    with_streamlines : bool
        Keep the streamlines of the lesion as a file.
    name : str
        Name of the workflow.

    Inputs
    ------
    mask_file
        Validated lesion mask in the tractogram's space, on its own grid; it may be empty.
    template, tractogram, index, full_tdi
        From :func:`init_tractogram_wf` with the same engine, one such workflow for all lesions.
        ``SHARED`` of this module lists every field that has one name there and here.
    assignments, nodes_tables, full_matrices
        From there too, when there are atlases.
    weights, groups, n_streamlines
        From there too, when they are used.
    fingerprint, index_fingerprint, weights_fingerprint
        From there too: contents that files must have when they are read.

    Outputs
    -------
    disconnection
        Per cent of each voxel's streamlines that pass the lesion.
    valid_mask
        Voxels with any streamline.
    summary
        JSON.
    matrices, roi_tables
        Lists of TSV, atlas by atlas; four matrices each.
    bundle_table
        TSV.
    lesion_tdi, lesion_tractogram
        Streamlines of the lesion: density, and file.
    """
    _check_engine(engine)
    if engine == "mrtrix" and hit_test != "vertices":
        raise ValueError(f"The engine mrtrix tests vertices only, not {hit_test}.")
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=["mask_file", *SHARED]), name="inputnode")
    outputnode = pe.Node(
        niu.IdentityInterface(
            fields=[
                "disconnection", "valid_mask", "summary", "matrices", "roi_tables",
                "bundle_table", "lesion_tdi", "lesion_tractogram",
            ]
        ),
        name="outputnode",
    )  # fmt: skip
    summaries = 1 + bool(atlas_names) + with_groups
    if engine == "mrtrix":
        with_positions = summaries > 1
        hits, disconnection = _mrtrix_nodes(
            workflow, inputnode, outputnode, upsample, with_positions, streamline_weights
        )
    else:
        disconnection = _indexed_node(
            workflow, inputnode, outputnode, hit_test, streamline_weights, with_streamlines
        )
        hits = (disconnection, "hits")
    workflow.connect(
        [
            (
                disconnection,
                outputnode,
                [("out_file", "disconnection"), ("valid_mask", "valid_mask")],
            )
        ]
    )
    if summaries == 1:
        workflow.connect(disconnection, "summary", outputnode, "summary")
        return workflow
    listed = pe.Node(
        niu.Merge(summaries), name="summaries", run_without_submitting=True, mem_gb=0.1
    )
    combine = pe.Node(CombineSummaries(), name="combine", mem_gb=0.2)
    workflow.connect(
        [
            (disconnection, listed, [("summary", "in1")]),
            (listed, combine, [("out", "in_files")]),
            (combine, outputnode, [("out_file", "summary")]),
        ]
    )
    further = []
    if atlas_names:
        further.append(
            _matrices_node(
                workflow, inputnode, outputnode, hits, atlas_names, with_matrices, with_roi,
                weighted=bool(streamline_weights),
            )
        )  # fmt: skip
    if with_groups:
        further.append(
            _bundles_node(workflow, inputnode, outputnode, hits, weighted=bool(streamline_weights))
        )
    for number, node in enumerate(further, start=2):
        workflow.connect(node, "summary", listed, f"in{number}")
    return workflow


def _mrtrix_nodes(
    workflow, inputnode, outputnode, upsample, with_positions, streamline_weights
) -> tuple[tuple[pe.Node, str], pe.Node]:
    """Select, map and divide with MRtrix; give where the positions come from, and the map."""
    select = pe.Node(
        SelectStreamlines(out_file="hit.tck", with_positions=with_positions),
        name="select",
        mem_gb=0.3,
    )
    tckmap = _tckmap_node("tckmap", upsample)
    disconnection = pe.Node(DisconnectionMap(), name="disconnection", mem_gb=0.5)
    workflow.connect(
        [
            (
                inputnode,
                select,
                [
                    ("tractogram", "in_files"),
                    ("fingerprint", "fingerprint"),
                    ("mask_file", "include"),
                ],
            ),
            (inputnode, tckmap, [("template", "reference")]),
            (
                inputnode,
                disconnection,
                [("n_streamlines", "n_streamlines"), ("full_tdi", "full_tdi")],
            ),
            (select, tckmap, [("out_file", "in_file")]),
            (select, disconnection, [("out_file", "lesion_tractogram")]),
            (tckmap, disconnection, [("out_file", "lesion_tdi")]),
            (select, outputnode, [("out_file", "lesion_tractogram")]),
            (tckmap, outputnode, [("out_file", "lesion_tdi")]),
        ]
    )
    if streamline_weights:
        select.inputs.tck_weights_in = _absolute(streamline_weights)
        select.inputs.tck_weights_out = "hit_weights.txt"
        workflow.connect(inputnode, "weights_fingerprint", select, "weights_fingerprint")
        workflow.connect(select, "tck_weights_out", tckmap, "tck_weights")
    return (select, "positions"), disconnection


def _indexed_node(
    workflow, inputnode, outputnode, hit_test, streamline_weights, with_streamlines
) -> pe.Node:
    """Select, map and divide with the index, in one node."""
    node = pe.Node(
        IndexedDisconnection(hit_test=hit_test, with_streamlines=with_streamlines),
        name="disconnection",
        mem_gb=0.5,
    )
    fields = [
        "mask_file", "index", "tractogram", "full_tdi", "fingerprint", "index_fingerprint",
    ]  # fmt: skip
    workflow.connect(
        [
            (inputnode, node, [(field, field) for field in fields]),
            (node, outputnode, [("lesion_tdi", "lesion_tdi")]),
        ]
    )
    if streamline_weights:
        workflow.connect(inputnode, "weights", node, "streamline_weights")
    if with_streamlines:
        workflow.connect(node, "lesion_tractogram", outputnode, "lesion_tractogram")
    return node


def _matrices_node(
    workflow, inputnode, outputnode, hits, atlas_names, with_matrices, with_roi, *, weighted
) -> pe.Node:
    node = pe.Node(
        DisconnectivityMatrix(
            atlas_names=list(atlas_names), with_matrices=with_matrices, with_roi=with_roi
        ),
        name="matrices",
        mem_gb=0.5,
    )
    fields = ["assignments", "nodes_tables", "full_matrices"]
    workflow.connect(
        [
            (hits[0], node, [(hits[1], "hits")]),
            (inputnode, node, [(field, field) for field in fields]),
            (node, outputnode, [("matrices", "matrices"), ("tables", "roi_tables")]),
        ]
    )
    if weighted:
        workflow.connect(inputnode, "weights", node, "streamline_weights")
    return node


def _bundles_node(workflow, inputnode, outputnode, hits, *, weighted) -> pe.Node:
    node = pe.Node(BundleDisconnection(), name="bundles", mem_gb=0.5)
    workflow.connect(
        [
            (hits[0], node, [(hits[1], "hits")]),
            (inputnode, node, [("groups", "groups_file"), ("n_streamlines", "n_streamlines")]),
            (node, outputnode, [("out_file", "bundle_table")]),
        ]
    )
    if weighted:
        workflow.connect(inputnode, "weights", node, "streamline_weights")
    return node
