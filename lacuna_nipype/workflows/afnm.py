"""Functional network mapping between parcels."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from lacuna_nipype.interfaces.afnm import ParcelScores
from lacuna_nipype.interfaces.contents import expect


def init_afnm_wf(
    *,
    matrix_file: str | Path,
    weighting: str = "fractional",
    matrix_fingerprint: str | None = None,
    name: str = "afnm_wf",
) -> pe.Workflow:
    """Score the parcels of an atlas by their connectivity with those that a lesion touches.

    The lesion's weights over parcels are multiplied with a matrix that was made once from a
    functional connectome, so that no connectome is read here.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.workflows import init_afnm_wf
            wf = init_afnm_wf(matrix_file="connectome_atlas-Demo_stat-z_relmat.tsv")

    Parameters
    ----------
    matrix_file : path-like
        Table of Fisher's z between parcels, from ``lacuna-nipype connectome prepare``.
    weighting : {"fractional", "binary", "voxel_count"}
        Weight of a parcel that the lesion touches: 1 / number of such parcels, 1, or the
        fraction of the parcel inside the lesion.
    matrix_fingerprint : str, optional
        Content of the table, from :func:`lacuna_nipype.core.files.fingerprint`: with another one
        scores are made again, and a change meanwhile is refused.
    name : str
        Name of the workflow.

    Inputs
    ------
    mask_file
        Validated lesion mask on its own grid.
    parcels_file
        Atlas of the same space from ``PrepareParcels``, on its own grid, with the parcels of the
        matrix.

    Outputs
    -------
    table
        TSV of scores.
    summary
        JSON.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(fields=["mask_file", "parcels_file"]), name="inputnode"
    )
    outputnode = pe.Node(niu.IdentityInterface(fields=["table", "summary"]), name="outputnode")
    # The graph can be built before the matrix is there.
    matrix_buffer = pe.Node(niu.IdentityInterface(fields=["matrix_file"]), name="matrix_buffer")
    matrix_buffer.inputs.matrix_file = str(Path(matrix_file).absolute())
    scores = pe.Node(ParcelScores(weighting=weighting), name="scores", mem_gb=0.6)
    expect(scores, matrix_fingerprint=matrix_fingerprint)
    workflow.connect(
        [
            (
                inputnode,
                scores,
                [("mask_file", "mask_file"), ("parcels_file", "parcels_file")],
            ),
            (matrix_buffer, scores, [("matrix_file", "matrix_file")]),
            (scores, outputnode, [("table", "table"), ("summary", "summary")]),
        ]
    )
    return workflow
