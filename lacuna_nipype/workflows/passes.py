"""A part of the pass over a functional connectome, kept for the run that needs all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from lacuna_nipype.interfaces.functional import (
    ConnectomeMask,
    CorrelateBatch,
    SeedCorrelations,
    SelectSeeds,
)
from lacuna_nipype.interfaces.mask import ResampleMask
from lacuna_nipype.workflows.base import lesion_workflow_names, workflow_name
from lacuna_nipype.workflows.mask import init_mask_wf

STAGES = ("relate", "correlate")


def init_pass_wf(
    *,
    lesions: Sequence[Mapping[str, Any]],
    connectome_files: Sequence[str | Path],
    part: Sequence[int],
    partial_dir: str | Path,
    base_dir: str | Path,
    fingerprints: Sequence[str] = (),
    functional_space: str | None = None,
    stage: str = "correlate",
    method: str = "boes",
    pini_percentile: float = 20.0,
    memory_gb: float = 2.0,
    omp_nthreads: int = 1,
    name: str | None = None,
) -> pe.Workflow:
    """Go through some files of a functional connectome for the lesions of a run.

    What it makes lies in a folder afterwards, from which :func:`init_fnm_wf` takes it.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.workflows import init_pass_wf
            wf = init_pass_wf(
                lesions=[
                    {
                        "key": "sub-01_label-L",
                        "mask_file": "mask.nii.gz",
                        "entities": {"subject": "01", "space": "MNI152NLin6Asym", "label": "L"},
                    }
                ],
                connectome_files=["batch_1.h5", "batch_2.h5"],
                part=[1],
                partial_dir="passes",
                base_dir="work",
            )

    Parameters
    ----------
    lesions : sequence of mappings
        As for :func:`lacuna_nipype.workflows.init_lacuna_wf`; all lesions of the run.
    connectome_files : sequence of path-like
        All files of the connectome.
    part : sequence of int
        Places, from 0, of those to go through.
    partial_dir : path-like
        Folder in which the results are kept.
    base_dir : path-like
        Work folder, of this part alone.
    fingerprints : sequence of str
        Content of each file, as for :func:`init_fnm_wf`.
    functional_space : str, optional
        Standard space of the connectome.
    stage : {"relate", "correlate"}
        The first of the two passes of ``pini``, which chooses voxels; or the pass itself.
    method : {"boes", "pini"}
    pini_percentile : float
    memory_gb, omp_nthreads
        Budget of the pass over one file.
    name : str, optional
        Name of the workflow; one with the package's version otherwise.
    """
    workflow = pe.Workflow(name=name or workflow_name("pass"), base_dir=str(base_dir))
    masks = pe.Node(
        niu.Merge(len(lesions)), name="all_masks", run_without_submitting=True, mem_gb=0.1
    )
    for number, lesion in enumerate(lesions, start=1):
        warps = lesion.get("warps", {})
        mask_wf = init_mask_wf(
            space=lesion["entities"]["space"],
            normalisation=lesion.get("normalisation", ()),
            fingerprint=lesion.get("fingerprint"),
            normalisation_fingerprints=lesion.get("normalisation_fingerprints", ()),
            warps=warps,
            name=lesion_workflow_names(lesion["key"])[0],
        )
        mask_wf.inputs.inputnode.mask_file = str(Path(lesion["mask_file"]).absolute())
        field = f"mask_{functional_space}" if functional_space in warps else "mask_file"
        workflow.connect(mask_wf, f"outputnode.{field}", masks, f"in{number}")
    files = [str(Path(path).absolute()) for path in connectome_files]
    # A buffer, so that the graph can be built before the files are there.
    own = ["connectome_file", *(["fingerprint"] if fingerprints else [])]
    first = pe.Node(niu.IdentityInterface(fields=own), name="first")
    first.inputs.trait_set(**dict(zip(own, [files[0], *fingerprints[:1]], strict=True)))
    grid = [(field, field) for field in own]
    brain = pe.Node(ConnectomeMask(), name="brain")
    workflow.connect([(first, brain, list(grid))])
    seeds = pe.MapNode(ResampleMask(), iterfield=["in_file"], name="seeds")
    workflow.connect(
        [
            (masks, seeds, [("out", "in_file")]),
            (brain, seeds, [("out_file", "reference")]),
        ]
    )
    source = (seeds, "out_file")
    shared = {"files": files, "fingerprints": fingerprints, "partial_dir": partial_dir}
    # All the files, where other parts have been through theirs: those are only taken.
    related = part if stage == "relate" else range(len(files))
    if method == "pini":
        relate = _over_files(workflow, SeedCorrelations(), "relate", related, **shared)
        workflow.connect(seeds, "out_file", relate, "mask_files")
        if stage == "relate":
            return workflow
        select = pe.Node(SelectSeeds(percentile=pini_percentile), name="select")
        workflow.connect(
            [
                (first, select, list(grid)),
                (relate, select, [("out_file", "seed_files")]),
                (seeds, select, [("out_file", "mask_files")]),
            ]
        )
        source = (select, "mask_files")
    correlate = _over_files(
        workflow, CorrelateBatch(memory_gb=memory_gb), "correlate", part,
        n_procs=omp_nthreads, **shared,
    )  # fmt: skip
    workflow.connect(*source, correlate, "mask_files")
    return workflow


def _over_files(
    workflow, interface, name, part, *, files, fingerprints, partial_dir, n_procs=None
) -> pe.MapNode:
    """Make the step that goes through files, one piece each."""
    interface.inputs.partial_dir = str(Path(partial_dir).absolute())
    listed = pe.Node(
        niu.IdentityInterface(fields=["connectome_file", "fingerprint"]), name=f"{name}_files"
    )
    listed.inputs.connectome_file = [files[place] for place in part]
    fields = ["connectome_file"]
    if fingerprints:
        listed.inputs.fingerprint = [fingerprints[place] for place in part]
        fields.append("fingerprint")
    node = pe.MapNode(interface, iterfield=fields, name=name, n_procs=n_procs)
    workflow.connect([(listed, node, [(field, field) for field in fields])])
    return node
