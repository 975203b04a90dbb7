"""From a mask as found to one that every analysis can use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from lacuna_nipype.interfaces.contents import expect
from lacuna_nipype.interfaces.mask import ValidateMask
from lacuna_nipype.interfaces.structural import TemplateGrid
from lacuna_nipype.interfaces.transforms import ApplyTransform

# Masks are warped to the finest grid that results are made on.
MASK_RESOLUTION_MM = 1.0


def init_mask_wf(
    *,
    space: str | None = None,
    normalisation: Sequence[str | Path] = (),
    fingerprint: str | None = None,
    normalisation_fingerprints: Sequence[str] = (),
    with_transforms: bool = False,
    warps: Mapping[str, Sequence[str | Path]] | None = None,
    name: str = "mask_wf",
) -> pe.Workflow:
    """Validate a lesion mask and bring it to the spaces where it is needed.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.workflows import init_mask_wf
            wf = init_mask_wf(space="MNI152NLin6Asym")

    Parameters
    ----------
    space : str, optional
        Standard space the mask is in, or is normalised to; a grid that contradicts it is an
        error.
    normalisation : sequence of path-like
        Transforms of a mask in the participant's own space to the standard space, in the order
        in which they are applied.
    fingerprint : str, optional
        Content of the mask, from :func:`lacuna_nipype.core.files.fingerprint`: with another one
        it is read again, whatever the time of the file says, and a change meanwhile is refused.
    normalisation_fingerprints : sequence of str
        Contents of these transforms, in their order, likewise.
    with_transforms : bool
        These transforms come from another step of the pipeline: the input node has a field
        ``transforms`` to connect them to. It is not there otherwise, so that no mask stays
        where it is while its transforms go nowhere.
    warps : mapping of str to sequence of path-like, optional
        Other standard spaces that the mask is needed in, and the transforms from the mask as
        found to each, in order. Nothing is interpolated twice.
    name : str
        Name of the workflow.

    Inputs
    ------
    mask_file
        Lesion mask, NIfTI.

    Outputs
    -------
    mask_file
        The mask as unsigned bytes 0 and 1: on its own grid, or on the standard 1 mm grid it was
        normalised to.
    meta_file
        JSON, or list of them: lesion voxels, volume, remarks, what normalisation did.

    With ``with_transforms``, there is the input ``transforms``: a path, or a list in the order
    of application. With ``warps``, there are the outputs ``mask_<space>`` and ``meta_<space>``.

    Raises
    ------
    ValueError
        Transforms were given and will be connected too, or the space they lead to is missing.
    """
    if with_transforms and normalisation:
        raise ValueError("Either normalisation or with_transforms, not both.")
    if space is None and (with_transforms or normalisation):
        raise ValueError("Transforms need to know the space that they lead to.")
    workflow = pe.Workflow(name=name)
    warps = warps or {}
    inputnode = pe.Node(
        niu.IdentityInterface(fields=["mask_file", *(["transforms"] if with_transforms else [])]),
        name="inputnode",
    )
    further = [f"{kind}_{target}" for target in warps for kind in ("mask", "meta")]
    outputnode = pe.Node(
        niu.IdentityInterface(fields=["mask_file", "meta_file", *further]), name="outputnode"
    )
    validate = pe.Node(ValidateMask(), name="validate", mem_gb=0.5)
    workflow.connect(inputnode, "mask_file", validate, "in_file")
    expect(validate, fingerprint=fingerprint)
    if not (normalisation or with_transforms):
        if space is not None:
            validate.inputs.space = space
        workflow.connect(
            [(validate, outputnode, [("out_file", "mask_file"), ("out_meta", "meta_file")])]
        )
    else:
        normalise = _warp(workflow, validate, space, normalisation, "normalise")
        expect(normalise, fingerprints=list(normalisation_fingerprints))
        if with_transforms:
            normalise.inputs.require_transforms = True
            workflow.connect(inputnode, "transforms", normalise, "transforms")
        metas = pe.Node(niu.Merge(2), name="metas", run_without_submitting=True, mem_gb=0.1)
        workflow.connect(
            [
                (validate, metas, [("out_meta", "in1")]),
                (normalise, metas, [("out_meta", "in2")]),
                (normalise, outputnode, [("out_file", "mask_file")]),
                (metas, outputnode, [("out", "meta_file")]),
            ]
        )
    for target, transforms in warps.items():
        warp = _warp(workflow, validate, target, transforms, f"to_{target}")
        # The participant's own come first; those of the standard spaces do not change.
        expect(warp, fingerprints=list(normalisation_fingerprints))
        fields = [("out_file", f"mask_{target}"), ("out_meta", f"meta_{target}")]
        workflow.connect([(warp, outputnode, fields)])
    return workflow


def _warp(workflow, validate, space, transforms, name) -> pe.Node:
    """Bring the validated mask to the standard grid of a space."""
    grid = pe.Node(
        TemplateGrid(space=space, resolution=MASK_RESOLUTION_MM), name=f"grid_{name}", mem_gb=0.3
    )
    warp = pe.Node(
        ApplyTransform(interpolation="mask", target_space=space, account="LesionNormalisation"),
        name=name,
        mem_gb=1.5,
    )
    if transforms:
        warp.inputs.transforms = [str(Path(path).absolute()) for path in transforms]
    workflow.connect(
        [
            (validate, warp, [("out_file", "in_file")]),
            (grid, warp, [("out_file", "reference")]),
        ]
    )
    return warp
