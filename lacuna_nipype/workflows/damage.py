"""Regional damage: how much of each region a lesion takes."""

from __future__ import annotations

from collections.abc import Sequence

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from lacuna_nipype.interfaces.parcels import RegionalDamage


def init_damage_wf(*, atlas_names: Sequence[str] = (), name: str = "damage_wf") -> pe.Workflow:
    """Compute the per cent of every region inside a lesion.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.workflows import init_damage_wf
            wf = init_damage_wf()

    Parameters
    ----------
    atlas_names : sequence of str
        Names of the atlases in the summary, in the order of the input.
    name : str
        Name of the workflow.

    Inputs
    ------
    mask_file
        Validated lesion mask on its own grid.
    parcels_files
        Atlases of the same space from ``PrepareParcels``, each on its own grid.

    Outputs
    -------
    tables
        TSV per atlas.
    summary
        JSON.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(fields=["mask_file", "parcels_files"]), name="inputnode"
    )
    outputnode = pe.Node(niu.IdentityInterface(fields=["tables", "summary"]), name="outputnode")
    damage = pe.Node(RegionalDamage(), name="damage", mem_gb=0.6)
    if atlas_names:
        damage.inputs.atlas_names = list(atlas_names)
    workflow.connect(
        [
            (
                inputnode,
                damage,
                [("mask_file", "mask_file"), ("parcels_files", "parcels_files")],
            ),
            (damage, outputnode, [("tables", "tables"), ("summary", "summary")]),
        ]
    )
    return workflow
