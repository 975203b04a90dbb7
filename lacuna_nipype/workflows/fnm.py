"""Functional network maps: one pass over the connectome for every lesion at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from lacuna_nipype.interfaces.functional import ConnectomeMask, CorrelateBatch, ReduceCorrelation
from lacuna_nipype.interfaces.mask import ResampleMask


def init_fnm_wf(
    *,
    connectome_files: Sequence[str | Path],
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
    connectome_files : sequence of path-like
        HDF5 files in Lacuna's layout that share one brain mask.
    memory_gb : float
        Memory in GB that the pass over one file may take.
    omp_nthreads : int
        Threads of the pass over one file.
    name : str
        Name of the workflow.

    Inputs
    ------
    mask_files
        List of validated lesion masks in the connectome's space, each on any grid.

    Outputs
    -------
    r_maps, z_maps, t_maps, summaries
        Lists in the order of the masks; ``t_maps`` is empty for a connectome of one subject.
    resampling
        List of JSON files: what the change of grid did to each lesion.
    valid_mask
        Voxels whose series vary in some subject.
    """
    files = [str(path) for path in connectome_files]
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=["mask_files"]), name="inputnode")
    outputnode = pe.Node(
        niu.IdentityInterface(
            fields=["r_maps", "z_maps", "t_maps", "summaries", "resampling", "valid_mask"]
        ),
        name="outputnode",
    )
    # A buffer, so that the graph can be built before the files are there.
    connectome = pe.Node(niu.IdentityInterface(fields=["files", "first"]), name="connectome")
    connectome.inputs.trait_set(files=files, first=files[0])
    brain = pe.Node(ConnectomeMask(), name="brain", mem_gb=0.5)
    seeds = pe.MapNode(ResampleMask(), iterfield=["in_file"], name="seeds", mem_gb=0.5)
    correlate = pe.MapNode(
        CorrelateBatch(memory_gb=memory_gb),
        iterfield=["connectome_file"],
        name="correlate",
        mem_gb=memory_gb,
        n_procs=omp_nthreads,
    )
    reduce_ = pe.Node(ReduceCorrelation(), name="reduce", mem_gb=1.0)
    workflow.connect(
        [
            (connectome, brain, [("first", "connectome_file")]),
            (connectome, correlate, [("files", "connectome_file")]),
            (connectome, reduce_, [("first", "connectome_file")]),
            (inputnode, seeds, [("mask_files", "in_file")]),
            (brain, seeds, [("out_file", "reference")]),
            (seeds, correlate, [("out_file", "mask_files")]),
            (correlate, reduce_, [("out_file", "partial_files")]),
            (seeds, outputnode, [("out_meta", "resampling")]),
            (
                reduce_,
                outputnode,
                [(key, key) for key in ("r_maps", "z_maps", "t_maps", "summaries", "valid_mask")],
            ),
        ]
    )
    return workflow
