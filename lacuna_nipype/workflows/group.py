"""Results of all participants together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe

from lacuna_nipype.interfaces.bids import DerivativesDataSink
from lacuna_nipype.interfaces.group import (
    AssociateMaps,
    AssociateTables,
    CollectTable,
    CountOverlap,
)
from lacuna_nipype.io.group_association import CLUSTER_COLUMNS, PARCEL_COLUMNS, STATISTICS
from lacuna_nipype.io.group_maps import describe_overlap
from lacuna_nipype.io.quantities import resolution_text
from lacuna_nipype.workflows.base import workflow_name


def init_group_wf(
    *,
    output_dir: str | Path,
    base_dir: str | Path | None = None,
    tables: Sequence[Mapping[str, Any]] = (),
    overlaps: Sequence[Mapping[str, Any]] = (),
    map_tests: Sequence[Mapping[str, Any]] = (),
    table_tests: Sequence[Mapping[str, Any]] = (),
    omp_nthreads: int = 1,
    name: str | None = None,
) -> pe.Workflow:
    """Collect tables, count overlap and test associations; each stands on its own.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from lacuna_nipype.io.group_maps import overlap_maps
            from lacuna_nipype.workflows import init_group_wf
            wf = init_group_wf(
                output_dir="derivatives",
                overlaps=[{
                    "name": "lesion",
                    "paths": [],
                    "made": overlap_maps("lesion", None),
                    "entities": {"template": "MNI152NLin6Asym", "label": "L"},
                    "metadata": {},
                }],
            )

    Parameters
    ----------
    output_dir : path-like
        Derivatives dataset.
    base_dir : path-like, optional
        Work folder.
    tables : sequence of mappings
        ``name``, ``paths``, ``quantity``, ``first_columns``, ``entities``, ``metadata`` of each
        table of all participants.
    overlaps : sequence of mappings
        ``name``, ``paths``, ``made`` (of :class:`~lacuna_nipype.io.group_maps.OverlapMap`),
        ``entities``, ``metadata``.
    map_tests : sequence of mappings
        ``name``, ``paths``, ``valid_paths``, ``design``, ``minimum``, ``permutations``, ``seed``,
        ``tfce``, ``memory_gb``, ``entities``, ``metadata``.
    table_tests : sequence of mappings
        ``name``, ``paths``, ``quantity``, ``design``, ``minimum``, ``permutations``, ``seed``,
        ``entities``, ``metadata``.
    omp_nthreads : int
        Threads of a test.
    name : str, optional
        Name of the workflow; one with the package's version otherwise.

    Returns
    -------
    Workflow
    """
    workflow = pe.Workflow(
        name=name or workflow_name("group"), base_dir=str(base_dir) if base_dir else None
    )
    for settings in tables:
        _add_table(workflow, output_dir, settings)
    for settings in overlaps:
        _add_overlap(workflow, output_dir, settings)
    for settings in map_tests:
        _add_map_test(workflow, output_dir, settings, omp_nthreads)
    for settings in table_tests:
        _add_table_test(workflow, output_dir, settings)
    return workflow


def node_name(prefix: str, text: str) -> str:
    """Make the name of a node of words that nipype does not allow in one."""
    return re.sub(r"\W", "_", f"{prefix}_{text.replace('+', 'plus')}")


def _sink(
    output_dir: str | Path,
    settings: Mapping[str, Any],
    variants: Sequence[Mapping[str, str]],
    described: Sequence[Mapping[str, Any]],
    name: str,
) -> pe.Node:
    return pe.Node(
        DerivativesDataSink(
            base_directory=str(output_dir),
            entities=dict(settings["entities"]),
            metadata=dict(settings["metadata"]),
            variants=[dict(own) for own in variants],
            variant_metadata=[dict(content) for content in described],
        ),
        name=name,
        mem_gb=0.3,
    )


def _add_table(workflow: pe.Workflow, output_dir: str | Path, settings: Mapping[str, Any]) -> None:
    collect = pe.Node(
        CollectTable(
            in_files=[str(path) for path in settings["paths"]],
            quantity=settings["quantity"],
            first_columns=list(settings["first_columns"]),
        ),
        name=node_name("collect", settings["name"]),
        mem_gb=0.3,
    )
    sink = _sink(output_dir, settings, [{}], [{}], node_name("ds_collect", settings["name"]))
    workflow.connect(collect, "out_file", sink, "in_file")


def _add_overlap(
    workflow: pe.Workflow, output_dir: str | Path, settings: Mapping[str, Any]
) -> None:
    made = settings["made"]
    count = pe.Node(
        CountOverlap(
            in_files=[str(path) for path in settings["paths"]],
            comparisons=[one.rule.comparison for one in made],
            thresholds=[one.rule.threshold for one in made],
            fractions=[one.fraction for one in made],
        ),
        name=node_name("overlap", settings["name"]),
        mem_gb=0.5,
    )
    resolution = settings["entities"].get("res")
    described = [describe_overlap(one, len(settings["paths"]), resolution) for one in made]
    variants = [one.entities for one in made]
    sink = _sink(
        output_dir, settings, variants, described, node_name("ds_overlap", settings["name"])
    )
    workflow.connect(count, "out_files", sink, "in_file")


def _test_inputs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the inputs that the tests of maps and of tables share."""
    design = settings["design"]
    return {
        "in_files": [str(path) for path in settings["paths"]],
        "tested": design.tested.tolist(),
        "tested_name": design.tested_name,
        "covariates": design.covariates.T.tolist(),
        "covariate_names": list(design.covariate_names),
        "minimum": settings["minimum"],
        "permutations": settings["permutations"],
        "seed": settings["seed"],
    }


def _add_map_test(
    workflow: pe.Workflow,
    output_dir: str | Path,
    settings: Mapping[str, Any],
    omp_nthreads: int,
) -> None:
    test = pe.Node(
        AssociateMaps(**_test_inputs(settings), tfce=settings["tfce"]),
        name=node_name("associate", settings["name"]),
        mem_gb=settings["memory_gb"],
        n_procs=omp_nthreads,
    )
    if settings["valid_paths"]:
        test.inputs.valid_files = [str(path) for path in settings["valid_paths"]]
    names = [name for name in STATISTICS if name != "logptfce" or settings["tfce"]]
    resolution = settings["entities"].get("res")
    words = {"Resolution": resolution_text(resolution)} if resolution else {}
    variants = [{"statistic": name, "suffix": "statmap"} for name in names]
    described: list[dict[str, Any]] = [{**STATISTICS[name], **words} for name in names]
    variants.append({"statistic": "t", "suffix": "clusters"})
    described.append(
        {"Description": "Clusters of voxels whose corrected p is at most 0.05.", **CLUSTER_COLUMNS}
    )
    files = pe.Node(
        niu.Merge(2),
        name=node_name("files", settings["name"]),
        run_without_submitting=True,
        mem_gb=0.1,
    )
    sink = _sink(
        output_dir, settings, variants, described, node_name("ds_associate", settings["name"])
    )
    workflow.connect(
        [
            (test, files, [("out_maps", "in1"), ("clusters", "in2")]),
            (files, sink, [("out", "in_file")]),
            (test, sink, [("summary", "statistics_file")]),
        ]
    )


def _add_table_test(
    workflow: pe.Workflow, output_dir: str | Path, settings: Mapping[str, Any]
) -> None:
    test = pe.Node(
        AssociateTables(**_test_inputs(settings), quantity=settings["quantity"]),
        name=node_name("associate", settings["name"]),
        mem_gb=0.5,
    )
    described = [{"Description": "Association of every region with the score.", **PARCEL_COLUMNS}]
    sink = _sink(
        output_dir, settings, [{}], described, node_name("ds_associate", settings["name"])
    )
    workflow.connect(
        [
            (test, sink, [("out_file", "in_file"), ("summary", "statistics_file")]),
        ]
    )
