"""What a run of the participant level says of its inputs, its plan and its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.cli.ending import OK, SOME_FAILED, end
from lacuna_nipype.cli.terminal import count, say

if TYPE_CHECKING:
    from lacuna_nipype.cli.inputs import RunInputs


def show_inputs(inputs: RunInputs) -> None:
    """Say what goes into a run, and what the user should know of it."""
    lesions = inputs.inspection.lesions
    participants = {lesion.record.subject for lesion in lesions}
    say(
        f"{count(len(lesions), 'lesion')} of {count(len(participants), 'participant')}: "
        f"{', '.join(inputs.analyses)}."
    )
    if inputs.functional:
        say(
            f"Functional connectome: {inputs.functional.n_subjects} subjects in "
            f"{len(inputs.functional.files)} files, {inputs.functional.n_voxels} voxels, "
            f"{inputs.functional.space}."
        )
    for notice in inputs.notices:
        say(f"Note: {notice}")
    for lesion in lesions:
        for warning in lesion.warnings:
            say(f"Warning: {warning}")
    for reason in inputs.inspection.skipped.values():
        say(f"Skipped: {reason}")
    for reason in inputs.inspection.refused.values():
        say(f"Error: {reason}")


def end_without_lesions(inputs: RunInputs) -> int:
    """End a run that no mask is left for; gives the exit code."""
    if inputs.inspection.refused:
        first = next(iter(inputs.inspection.refused.values()))
        n_masks = len(inputs.inspection.refused)
        return end(
            SOME_FAILED, f"None of the masks can be used ({n_masks} refused). The first: {first}"
        )
    return end(OK, "All masks are empty and were skipped; there is nothing to do.")


def show_plan(nodes: list[Any], config: RunConfig, inputs: RunInputs) -> int:
    """List the steps of the expanded graph and the files it would write."""
    say("Steps:")
    for node in nodes:
        pieces = _known_pieces(node)
        times = f" x {pieces}" if pieces else ""
        say(f"  {node.fullname.split('.', 1)[1]}{times}")
    say("Outputs:")
    from lacuna_nipype.cli.atlas_outputs import planned_atlases
    from lacuna_nipype.cli.plan import planned_outputs

    outputs = [*planned_atlases(inputs.used_atlases), *planned_outputs(inputs)]
    for path in outputs:
        say(f"  {config.output_dir / path}")
    return end(OK, f"Dry run: {len(nodes)} steps, {len(outputs)} files; nothing was run.")


def _known_pieces(node: Any) -> int:
    """Count the pieces of a MapNode whose list is known before the run; 0 for any other node."""
    listed = getattr(node.inputs, node.iterfield[0]) if hasattr(node, "iterfield") else None
    return len(listed) if isinstance(listed, list) else 0


def end_up_to_date(config: RunConfig, inputs: RunInputs, problems: Sequence[str]) -> int:
    """End a run all of whose results are there, but for masks that were refused."""
    if problems:
        return end(
            SOME_FAILED,
            f"All results are there, but records or reports are incomplete ({len(problems)}); "
            f"the first: {problems[0]}",
        )
    refused = inputs.inspection.refused
    if refused:
        keys = ", ".join(list(refused)[:5]) + (", ..." if len(refused) > 5 else "")
        return end(
            SOME_FAILED,
            f"{count(len(refused), 'mask')} refused ({keys}; reasons above), all others are "
            f"done: {config.output_dir}",
        )
    return end(OK, f"Results: {config.output_dir}")
