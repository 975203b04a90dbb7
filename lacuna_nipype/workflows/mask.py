"""From a mask as found to one that every analysis can use."""

from __future__ import annotations

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from lacuna_nipype.interfaces.mask import ValidateMask


def init_mask_wf(*, space: str | None = None, name: str = "mask_wf") -> pe.Workflow:
    """Validate a lesion mask.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.workflows import init_mask_wf
            wf = init_mask_wf(space="MNI152NLin6Asym")

    Parameters
    ----------
    space : str, optional
        Standard space the mask is in; a grid that contradicts it is an error.
    name : str
        Name of the workflow.

    Inputs
    ------
    mask_file
        Lesion mask, NIfTI.

    Outputs
    -------
    mask_file
        The mask as unsigned bytes 0 and 1, on its own grid.
    meta_file
        JSON: lesion voxels, volume, remarks.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=["mask_file"]), name="inputnode")
    outputnode = pe.Node(
        niu.IdentityInterface(fields=["mask_file", "meta_file"]), name="outputnode"
    )
    validate = pe.Node(ValidateMask(), name="validate", mem_gb=0.5)
    if space is not None:
        validate.inputs.space = space
    workflow.connect(
        [
            (inputnode, validate, [("mask_file", "in_file")]),
            (validate, outputnode, [("out_file", "mask_file"), ("out_meta", "meta_file")]),
        ]
    )
    return workflow
