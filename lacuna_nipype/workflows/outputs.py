"""Results to their places in the derivatives dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from lacuna_nipype.interfaces.bids import DerivativesDataSink
from lacuna_nipype.io.quantities import describe_map, describe_table


def init_output_wf(
    *,
    output_dir: str | Path,
    analysis: str,
    entities: Mapping[str, str],
    maps: Sequence[str] = (),
    map_entities: Mapping[str, str] | None = None,
    atlases: Sequence[Mapping[str, Any]] = (),
    tables: Sequence[str] = (),
    further: Sequence[tuple[str, Sequence[tuple[Mapping[str, str], Mapping[str, Any]]]]] = (),
    metadata: Mapping[str, Any] | None = None,
    with_meta_file: bool = False,
    name: str = "output_wf",
) -> pe.Workflow:
    """Store the maps, tables and summary of one analysis of one lesion.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.workflows import init_output_wf
            wf = init_output_wf(
                output_dir="derivatives",
                analysis="fnm",
                entities={"subject": "01", "space": "MNI152NLin6Asym", "label": "L"},
                maps=["r", "z"],
            )

    Parameters
    ----------
    output_dir : path-like
        Derivatives dataset.
    analysis : {"rd", "fnm", "snm"}
        Value of the ``desc`` entity.
    entities : mapping
        Entities of the lesion: subject, session, space, label, ...
    maps : sequence of str
        Quantities of the maps, in the order of the input.
    map_entities : mapping, optional
        Further entities of the maps, such as ``res``.
    atlases : sequence of mappings
        ``entities`` of each atlas that there are tables of, and optionally its
        ``description`` for the sidecars.
    tables : sequence of str
        Quantities of the tables of each atlas.
    further : sequence of (field, files)
        Further inputs; of each, entities and sidecar content of its files, in their order.
    metadata : mapping, optional
        Sidecar content that all files share.
    with_meta_file : bool
        Whether the input ``meta_file`` will be connected.
    name : str
        Name of the workflow.

    Inputs
    ------
    maps
        List of images.
    tables
        List of tables: atlas by atlas, quantities varying fastest.
    summary
        JSON with the numbers of the analysis, which go into the sidecars as well.
    meta_file
        JSON, or list of them, whose content goes into every sidecar.
    """
    workflow = pe.Workflow(name=name)
    inputnode = pe.Node(
        niu.IdentityInterface(
            fields=["maps", "tables", "summary", "meta_file", *(field for field, _ in further)]
        ),
        name="inputnode",
    )
    sink = pe.Node(
        DerivativesDataSink(
            base_directory=str(Path(output_dir).absolute()),
            entities={**entities, "desc": analysis},
            metadata=dict(metadata or {}),
        ),
        name=f"ds_{analysis}",
        mem_gb=0.3,
    )
    variants: list[dict[str, str]] = []
    described: list[dict[str, Any]] = []
    for quantity in maps:
        place = {"statistic": quantity, "suffix": "statmap"}
        variants.append({**place, **(map_entities or {})})
        described.append(describe_map(analysis, quantity, map_entities or {}))
    for atlas in atlases:
        for quantity in tables:
            variants.append({**atlas["entities"], "statistic": quantity, "suffix": "parcelstats"})
            described.append(
                {**describe_table(analysis, quantity), "Atlas": atlas.get("description", {})}
            )
    for _, stored in further:
        variants += [dict(own) for own, _ in stored]
        described += [dict(content) for _, content in stored]
    variants.append({"suffix": "stats"})
    described.append({})
    sink.inputs.variants, sink.inputs.variant_metadata = variants, described
    sources = [field for field, used in (("maps", maps), ("tables", atlases)) if used]
    sources += [field for field, _ in further]
    files = pe.Node(
        niu.Merge(len(sources) + 1), name="files", run_without_submitting=True, mem_gb=0.1
    )
    for number, field in enumerate([*sources, "summary"], start=1):
        workflow.connect(inputnode, field, files, f"in{number}")
    workflow.connect(files, "out", sink, "in_file")
    workflow.connect(inputnode, "summary", sink, "statistics_file")
    if with_meta_file:
        workflow.connect(inputnode, "meta_file", sink, "meta_files")
    return workflow
