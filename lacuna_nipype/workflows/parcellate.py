"""Maps summarised over the regions of atlases."""

from __future__ import annotations

from collections.abc import Sequence

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from lacuna_nipype.interfaces.parcels import AggregateParcels


def init_parcellate_wf(
    *,
    quantities: Sequence[str],
    transforms: Sequence[str] | None = None,
    grid: str | None = None,
    name: str = "parcellate_wf",
) -> pe.Workflow:
    """Average maps over regions.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.workflows import init_parcellate_wf
            wf = init_parcellate_wf(quantities=["r", "z"], transforms=["tanh", "identity"])

    Parameters
    ----------
    quantities : sequence of str
        Name of each map's quantity, which becomes the column of its table.
    transforms : sequence of {"identity", "tanh"}, optional
        Applied to the average of each map; ``tanh`` averages a correlation through Fisher's z.
    grid : {"functional", "structural"}, optional
        Grid that the maps are on, for the estimate of what the step takes.
    name : str
        Name of the workflow.

    Inputs
    ------
    maps
        One map per quantity, on one grid.
    valid_mask
        Voxels at which the maps mean something.
    parcels_files
        Atlases from ``PrepareParcels``, on the maps' grid.

    Outputs
    -------
    tables
        TSV per atlas and quantity, quantities varying fastest.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(fields=["maps", "valid_mask", "parcels_files"]), name="inputnode"
    )
    outputnode = pe.Node(niu.IdentityInterface(fields=["tables"]), name="outputnode")
    aggregate = pe.Node(
        AggregateParcels(quantities=list(quantities)), name="aggregate", mem_gb=0.6
    )
    if transforms is not None:
        aggregate.inputs.transforms = list(transforms)
    if grid is not None:
        aggregate.plugin_args = {"grid": grid}
    workflow.connect(
        [
            (
                inputnode,
                aggregate,
                [
                    ("maps", "in_files"),
                    ("valid_mask", "valid_mask"),
                    ("parcels_files", "parcels_files"),
                ],
            ),
            (aggregate, outputnode, [("tables", "tables")]),
        ]
    )
    return workflow
