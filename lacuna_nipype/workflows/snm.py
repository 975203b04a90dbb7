"""Structural disconnection with MRtrix3."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from lacuna_nipype.interfaces.mrtrix import SelectStreamlines, TCKMap
from lacuna_nipype.interfaces.structural import DisconnectionMap, TemplateGrid


def _tractogram_buffer(tractogram: str | Path) -> pe.Node:
    """Hold the tractogram's path, so that a graph can be built before the file is there."""
    buffer = pe.Node(niu.IdentityInterface(fields=["tractogram"]), name="tractogram_buffer")
    buffer.inputs.tractogram = str(tractogram)
    return buffer


def _tckmap_node(name: str, upsample: int | None, mem_gb: float) -> pe.Node:
    tckmap = pe.Node(TCKMap(out_file="tdi.nii.gz"), name=name, mem_gb=mem_gb)
    if upsample is not None:
        tckmap.inputs.upsample = upsample
    return tckmap


def init_tdi_wf(
    *,
    tractogram: str | Path,
    space: str,
    resolution: float = 2.0,
    upsample: int | None = None,
    name: str = "tdi_wf",
) -> pe.Workflow:
    """Map the whole tractogram to a grid, once for all lesions.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.workflows import init_tdi_wf
            wf = init_tdi_wf(tractogram="whole_brain.tck", space="MNI152NLin2009cAsym")

    Parameters
    ----------
    tractogram : path-like
        MRtrix ``.tck`` file.
    space : str
        Standard space of the tractogram.
    resolution : float
        Voxel size of the map in mm.
    upsample : int, optional
        Passed to ``tckmap``; needed when the file's header has no ``step_size``, without which
        tckmap would not upsample.
    name : str
        Name of the workflow.

    Outputs
    -------
    template
        Empty image on the map's grid.
    full_tdi
        Number of streamlines that pass each voxel.
    """
    workflow = pe.Workflow(name=name)
    outputnode = pe.Node(niu.IdentityInterface(fields=["template", "full_tdi"]), name="outputnode")
    grid = pe.Node(TemplateGrid(space=space, resolution=resolution), name="grid", mem_gb=0.3)
    tckmap = _tckmap_node("tckmap", upsample, mem_gb=0.5)
    buffer = _tractogram_buffer(tractogram)
    workflow.connect(
        [
            (buffer, tckmap, [("tractogram", "in_file")]),
            (grid, tckmap, [("out_file", "reference")]),
            (grid, outputnode, [("out_file", "template")]),
            (tckmap, outputnode, [("out_file", "full_tdi")]),
        ]
    )
    return workflow


def init_snm_wf(
    *, tractogram: str | Path, upsample: int | None = None, name: str = "snm_wf"
) -> pe.Workflow:
    """Map the disconnection that one lesion causes.

    The streamlines with a vertex in the lesion are selected on the mask's own grid, mapped like
    the whole tractogram, and divided by it.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.workflows import init_snm_wf
            wf = init_snm_wf(tractogram="whole_brain.tck")

    Parameters
    ----------
    tractogram : path-like
        MRtrix ``.tck`` file.
    upsample : int, optional
        The value used for the whole tractogram.
    name : str
        Name of the workflow.

    Inputs
    ------
    mask_file
        Validated lesion mask in the tractogram's space, on its own grid; it may be empty.
    template, full_tdi
        From :func:`init_tdi_wf` of the same tractogram.

    Outputs
    -------
    disconnection
        Per cent of each voxel's streamlines that pass the lesion.
    valid_mask
        Voxels with any streamline.
    summary
        JSON.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(fields=["mask_file", "template", "full_tdi"]), name="inputnode"
    )
    outputnode = pe.Node(
        niu.IdentityInterface(fields=["disconnection", "valid_mask", "summary"]),
        name="outputnode",
    )
    buffer = _tractogram_buffer(tractogram)
    select = pe.Node(SelectStreamlines(out_file="hit.tck"), name="select", mem_gb=0.3)
    tckmap = _tckmap_node("tckmap", upsample, mem_gb=0.5)
    disconnection = pe.Node(DisconnectionMap(), name="disconnection", mem_gb=0.5)
    workflow.connect(
        [
            (buffer, select, [("tractogram", "in_files")]),
            (buffer, disconnection, [("tractogram", "full_tractogram")]),
            (inputnode, select, [("mask_file", "include")]),
            (inputnode, tckmap, [("template", "reference")]),
            (inputnode, disconnection, [("full_tdi", "full_tdi")]),
            (select, tckmap, [("out_file", "in_file")]),
            (select, disconnection, [("out_file", "lesion_tractogram")]),
            (tckmap, disconnection, [("out_file", "lesion_tdi")]),
            (
                disconnection,
                outputnode,
                [
                    ("out_file", "disconnection"),
                    ("valid_mask", "valid_mask"),
                    ("summary", "summary"),
                ],
            ),
        ]
    )
    return workflow
