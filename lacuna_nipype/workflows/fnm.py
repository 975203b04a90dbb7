"""Functional network maps: one pass over the connectome for every lesion at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces import utility as niu
from nipype.interfaces.base import isdefined
from nipype.pipeline import engine as pe

from lacuna_nipype.interfaces.functional import (
    ConnectomeMask,
    CorrelateBatch,
    ReduceCorrelation,
    SeedCorrelations,
    SelectSeeds,
    VerifyMaps,
)
from lacuna_nipype.interfaces.mask import ResampleMask

# Results of the last step that are handed on under their own names.
REDUCED = (
    "r_maps", "z_maps", "t_maps", "p_maps", "q_maps", "qsig_maps", "tsig_maps", "error_maps",
    "summaries", "valid_mask",
)  # fmt: skip


def init_fnm_wf(
    *,
    connectome_files: str | Path | Sequence[str | Path],
    fingerprints: Sequence[str] = (),
    method: str = "boes",
    pini_percentile: float = 20.0,
    p_maps: bool = True,
    fdr_alpha: float = 0.05,
    t_threshold: float | None = None,
    verify_voxels: int = 0,
    verify_files: Sequence[str | Path] = (),
    stored_error: float = 0.0,
    with_errors: bool = False,
    partial_dir: str | Path | None = None,
    memory_gb: float = 2.0,
    omp_nthreads: int = 1,
    name: str = "fnm_wf",
) -> pe.Workflow:
    """Map the functional network of lesions in a normative connectome.

    Each file of the connectome is read once for all lesions; the partial sums merge exactly.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.workflows import init_fnm_wf
            wf = init_fnm_wf(connectome_files=["batch_1.h5", "batch_2.h5"])

    Parameters
    ----------
    connectome_files : path-like or sequence of path-like
        HDF5 files, in Lacuna's layout or of the store, that share one brain mask; those of a
        folder are listed by :func:`lacuna_nipype.connectomes.functional.connectome_paths`.
    fingerprints : sequence of str
        Content of each file, from :func:`lacuna_nipype.core.files.fingerprint`. With them, the
        step that reads a file of other content fails; maps of two connectomes are never mixed.
    method : {"boes", "pini"}
        Seed: all lesion voxels, or those that load on the first principal component.
    pini_percentile : float
        Per cent of the lesion's voxels that ``pini`` leaves out.
    p_maps : bool
        Make maps of p, of the false discovery rate q, and of the voxels with q below
        ``fdr_alpha``.
    fdr_alpha : float
    t_threshold : float, optional
        Make a map of the voxels whose t is larger in size.
    verify_voxels : int
        Voxels of each map to recompute from the source files; 0 for none.
    verify_files : sequence of path-like
        The source files: the connectome's own where it is in Lacuna's layout.
    stored_error : float
        Error of correlations that the store states.
    with_errors : bool
        Make maps of the standard error of z, with which maps move to other grids.
    partial_dir : path-like, optional
        Folder in which passes over single files are kept for other runs, and are taken from.
    memory_gb : float
        Memory in GB that the pass over one file may take.
    omp_nthreads : int
        Threads of the pass over one file.
    name : str
        Name of the workflow.

    Inputs
    ------
    mask_files
        Validated lesion mask in the connectome's space, or a list of them, each on any grid.

    Outputs
    -------
    r_maps, z_maps, t_maps, p_maps, q_maps, qsig_maps, tsig_maps, error_maps, summaries
        Lists in the order of the masks, empty for maps that are not made: with a connectome of
        one subject there are only r and z.
    selection
        List of JSON files: the voxels that ``pini`` kept; undefined with ``boes``.
    verification
        List of JSON files: the largest difference found; undefined without ``verify_voxels``.
    resampling
        List of JSON files: what the change of grid did to each lesion.
    valid_mask
        Voxels whose series vary in some subject.
    """
    files = _absolute(connectome_files)
    if not files:
        raise ValueError("connectome_files is empty; give at least one HDF5 file.")
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=["mask_files"]), name="inputnode")
    outputnode = pe.Node(
        niu.IdentityInterface(
            fields=[*REDUCED, "resampling", "selection", "verification"],
        ),
        name="outputnode",
    )
    # A buffer, so that the graph can be built before the files are there.
    connectome = pe.Node(
        niu.IdentityInterface(
            fields=["files", "first", "fingerprints", "first_fingerprint", "sources"]
        ),
        name="connectome",
    )
    connectome.inputs.trait_set(files=files, first=files[0])
    brain = pe.Node(ConnectomeMask(), name="brain", mem_gb=0.5)
    seeds = pe.MapNode(ResampleMask(), iterfield=["in_file"], name="seeds", mem_gb=0.5)
    per_file, first = [("files", "connectome_file")], [("first", "connectome_file")]
    if fingerprints:
        connectome.inputs.trait_set(
            fingerprints=list(fingerprints), first_fingerprint=fingerprints[0]
        )
        per_file.append(("fingerprints", "fingerprint"))
        first.append(("first_fingerprint", "fingerprint"))
    correlate = pe.MapNode(
        CorrelateBatch(memory_gb=memory_gb),
        iterfield=[own for _, own in per_file],
        name="correlate",
        mem_gb=memory_gb,
        n_procs=omp_nthreads,
    )
    if partial_dir is not None:
        correlate.inputs.partial_dir = str(Path(partial_dir).absolute())
    reduce_ = pe.Node(ReduceCorrelation(), name="reduce", mem_gb=1.0)
    workflow.connect(
        [
            (connectome, brain, list(first)),
            (connectome, correlate, list(per_file)),
            (connectome, reduce_, list(first)),
            (inputnode, seeds, [("mask_files", "in_file")]),
            (brain, seeds, [("out_file", "reference")]),
            (correlate, reduce_, [("out_file", "partial_files")]),
            (seeds, outputnode, [("out_meta", "resampling")]),
            (
                reduce_,
                outputnode,
                [(key, key) for key in REDUCED],
            ),
        ]
    )
    reduce_.inputs.trait_set(p_maps=p_maps, fdr_alpha=fdr_alpha, with_errors=with_errors)
    if t_threshold is not None:
        reduce_.inputs.t_threshold = t_threshold
    if method == "boes":
        workflow.connect(seeds, "out_file", correlate, "mask_files")
    elif method == "pini":
        select = _connect_selection(
            workflow, connectome, (per_file, first), seeds, correlate, outputnode, pini_percentile
        )
    else:
        raise ValueError(f"method is boes or pini, not {method!r}.")
    if verify_voxels:
        verify = pe.Node(
            VerifyMaps(n_voxels=verify_voxels, stored_error=stored_error),
            name="verify",
            mem_gb=memory_gb,
        )
        connectome.inputs.sources = _absolute(verify_files)
        used = (select, "mask_files") if method == "pini" else (seeds, "out_file")
        workflow.connect(
            [
                (connectome, verify, [("sources", "source_files")]),
                (used[0], verify, [(used[1], "mask_files")]),
                (reduce_, verify, [("r_maps", "r_maps")]),
                (verify, outputnode, [("meta_files", "verification")]),
            ]
        )
    return workflow


def _absolute(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """List one path or several as they read from any folder: steps run in folders of their own."""
    listed = [paths] if isinstance(paths, str | Path) else paths
    return [str(Path(path).absolute()) for path in listed]


def _connect_selection(
    workflow, connectome, fields, seeds, correlate, outputnode, percentile
) -> pe.Node:
    """Put the choice of voxels between the lesions and the pass."""
    per_file, first = fields
    relate = pe.MapNode(
        SeedCorrelations(),
        iterfield=[own for _, own in per_file],
        name="relate",
        mem_gb=correlate.mem_gb,
    )
    if isdefined(correlate.inputs.partial_dir):
        relate.inputs.partial_dir = correlate.inputs.partial_dir
    select = pe.Node(SelectSeeds(percentile=percentile), name="select", mem_gb=1.0)
    workflow.connect(
        [
            (connectome, relate, list(per_file)),
            (connectome, select, list(first)),
            (seeds, relate, [("out_file", "mask_files")]),
            (seeds, select, [("out_file", "mask_files")]),
            (relate, select, [("out_file", "seed_files")]),
            (select, correlate, [("mask_files", "mask_files")]),
            (select, outputnode, [("meta_files", "selection")]),
        ]
    )
    return select
