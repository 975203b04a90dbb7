"""Records of a run for the provenance files of its participants."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lacuna_nipype.atlases.catalogue import atlas_description
from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.cli.inputs import RunInputs
from lacuna_nipype.core.files import fingerprint
from lacuna_nipype.execution.runner import RunOutcome
from lacuna_nipype.io.derivatives import bids_uri
from lacuna_nipype.io.lesions import Lesion
from lacuna_nipype.io.naming import build_path
from lacuna_nipype.io.provenance import software_versions
from lacuna_nipype.workflows.base import lesion_workflow_names


def participant_records(
    config: RunConfig,
    inputs: RunInputs,
    outcome: RunOutcome,
    links: dict[str, Path],
    *,
    run_id: str,
    started: datetime,
    command: str,
) -> dict[str, dict[str, Any]]:
    """Describe a run once for every participant and session that took part.

    Parameters
    ----------
    config, inputs, outcome
        What was asked, found and done.
    links : dict of str to Path
        Datasets that source addresses refer to.
    run_id : str
    started : datetime
    command : str
        The command line.

    Returns
    -------
    dict of str to dict
        Path of the provenance file relative to the output folder, and the record.
    """
    shared = {
        "RunID": run_id,
        "Started": started.isoformat(timespec="seconds"),
        "Ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "CommandLine": command,
        "Software": software_versions(
            inputs.structural.mrtrix_version if inputs.structural else None
        ),
        "Parameters": config.to_dict(),
        "Analyses": inputs.metadata,
        "Atlases": [
            {
                **atlas_description(atlas),
                "Fingerprint": fingerprint(atlas.image),
                "LabelsFingerprint": fingerprint(atlas.labels),
            }
            for atlas in inputs.atlases
        ],
    }
    by_file: dict[str, list[Lesion]] = defaultdict(list)
    for lesion in inputs.inspection.lesions:
        entities = {"subject": lesion.record.subject, "session": lesion.record.session}
        by_file[build_path({**entities, "desc": "provenance"})].append(lesion)
    steps = _steps_by_owner(outcome)
    return {
        path: {
            **shared,
            "Inputs": [
                {
                    "URI": bids_uri(lesion.record.path, links),
                    "Fingerprint": fingerprint(lesion.record.path),
                    "SpaceName": lesion.space,
                    "SpaceFrom": lesion.record.space_source,
                    "Transforms": [step.name for step in lesion.normalisation],
                    "Warnings": list(lesion.warnings),
                }
                for lesion in lesions
            ],
            "Steps": _steps(steps, lesions),
        }
        for path, lesions in by_file.items()
    }


def _steps_by_owner(outcome: RunOutcome) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """Sort the steps, with their places, by the workflow of a lesion; under "", what all share."""
    steps: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for place, (name, record) in enumerate(outcome.nodes.items()):
        parts = name.split(".")
        owner = parts[1] if len(parts) > 2 and parts[1].startswith("sub_") else ""
        seconds = None if record.seconds is None else round(record.seconds, 3)
        step = {"Name": ".".join(parts[1:]), "Status": record.status, "Seconds": seconds}
        steps[owner].append((place, step))
    return steps


def _steps(
    by_owner: dict[str, list[tuple[int, dict[str, Any]]]], lesions: list[Lesion]
) -> list[dict[str, Any]]:
    """List the steps that concern these lesions: their own, and those shared by all."""
    own = [name for lesion in lesions for name in lesion_workflow_names(lesion.record.key)]
    concerned = [step for owner in ("", *own) for step in by_owner.get(owner, ())]
    return [step for _, step in sorted(concerned, key=lambda item: item[0])]
