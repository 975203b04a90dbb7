"""What an earlier run did already: which lesions a run has to do, and a record for the next one.

For every lesion a small file in ``logs/state`` of the output folder says which analyses were
begun and which were completed, each with a signature of all that its results depend on. A run
that is killed leaves "begun", so nothing half-written is taken for a result later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lacuna_nipype import __version__
from lacuna_nipype.cli.config import RunConfig
from lacuna_nipype.cli.inputs import RunInputs
from lacuna_nipype.cli.plan import planned_outputs
from lacuna_nipype.core.files import fingerprint, read_json, write_json
from lacuna_nipype.execution.runner import RunOutcome
from lacuna_nipype.io.lesions import Inspection, Lesion
from lacuna_nipype.workflows.base import lesion_workflow_names

Signatures = dict[str, str]
# Options that choose inputs (which count by their content) or resources: not the results.
_NO_PARAMETERS = frozenset(
    {"bids_dir", "output_dir", "analysis_level", "work_dir", "nprocs", "omp_nthreads",
     "memory_gb", "participant_label", "session_label", "derivatives", "bids_filter_file",
     "pattern", "mask_space", "on_empty", "xfm", "xfm_space", "analysis",
     "functional_connectome", "structural_connectome", "functional_space", "structural_space",
     "parcel_atlases", "custom_parcellation", "connectivity_matrix", "snm_engine", "plugin",
     "plugin_args", "use_plugin", "stop_on_first_crash", "dry_run", "verbose", "overwrite",
     "streamline_weights", "streamline_groups", "verify", "datasets", "write_graph",
     "resource_monitor", "batch_size", "reports", "reports_only", "submit", "array_size",
     "submit_part"}
)  # fmt: skip
# Both engines give the same numbers, and which one runs depends on the number of lesions.
_NO_METADATA = frozenset({"Method", "Engine", "MRtrixVersion"})
BEGUN, COMPLETE = "begun", "complete"
# In the work folder: the lesions of its last graph, whose finished steps can be used again.
_LAST_GRAPH = "lesions.json"


@dataclass(frozen=True)
class Recovery:
    """Which lesions a run has to do.

    Parameters
    ----------
    inputs : RunInputs
        Of the run that is left, with the lesions that it has to do.
    up_to_date : tuple of str
        Keys of the lesions whose results are there.
    signatures : dict of str to dict
        By lesion and analysis, of the lesions to do.
    """

    inputs: RunInputs
    up_to_date: tuple[str, ...]
    signatures: dict[str, Signatures]


def lesion_signatures(
    config: RunConfig, inputs: RunInputs, lesion: Lesion, atlases: Sequence[Any]
) -> Signatures:
    """Sign what the results of a lesion depend on.

    Parameters
    ----------
    config : RunConfig
    inputs : RunInputs
    lesion : Lesion
    atlases : sequence
        What tells the content of the atlases, in JSON's types.

    Returns
    -------
    dict of str to str
        SHA-256 by analysis, of: the version, the content of mask, transforms, connectome and
        atlases, the parameters, and the files that are to be written.
    """
    parameters = {k: v for k, v in config.to_dict().items() if k not in _NO_PARAMETERS}
    mask = [fingerprint(lesion.record.path), *map(fingerprint, lesion.normalisation)]
    alone = replace(inputs, inspection=Inspection((lesion,), {}, {}))
    signatures = {}
    for analysis in inputs.analyses:
        metadata = inputs.metadata.get(analysis, {})
        content = {
            "version": __version__,
            "parameters": parameters,
            "metadata": {k: v for k, v in metadata.items() if k not in _NO_METADATA},
            "atlases": atlases,
            "mask": mask,
            "space": lesion.space,
            "outputs": planned_outputs(replace(alone, analyses=(analysis,))),
        }
        text = json.dumps(content, sort_keys=True, default=str)
        signatures[analysis] = hashlib.sha256(text.encode()).hexdigest()
    return signatures


def plan_recovery(config: RunConfig, inputs: RunInputs) -> Recovery:
    """Decide which lesions are left to do.

    Parameters
    ----------
    config : RunConfig
        With ``overwrite``, all are.
    inputs : RunInputs

    Returns
    -------
    Recovery
        Where the work folder's last graph held all lesions that are left, and its others are
        what they were, the run takes that graph again: its finished steps are up to date, and a
        pass over the connectome for many lesions is not done anew for one of them.
    """
    lesions = inputs.inspection.lesions
    # Read once, not once per lesion.
    atlases = [
        [atlas.id, atlas.space, fingerprint(atlas.image), fingerprint(atlas.labels)]
        for atlas in inputs.atlases
    ]
    signatures = {
        lesion.record.key: lesion_signatures(config, inputs, lesion, atlases) for lesion in lesions
    }
    if config.overwrite:
        return Recovery(inputs, (), signatures)
    left = {
        lesion.record.key
        for lesion in lesions
        if not _is_complete(config.output_dir, inputs, lesion, signatures[lesion.record.key])
    }
    last = _read_last_graph(config.work_dir)
    same = {key for key, signed in last.items() if signatures.get(key) == signed}
    to_do = set(last) if left and left <= set(last) == same else left
    chosen = tuple(lesion for lesion in lesions if lesion.record.key in to_do)
    inspection = replace(inputs.inspection, lesions=chosen)
    return Recovery(
        replace(inputs, inspection=inspection),
        tuple(key for key in signatures if key not in left),
        {key: signed for key, signed in signatures.items() if key in to_do},
    )


def begin(config: RunConfig, recovery: Recovery) -> None:
    """Note that the lesions of a run are begun.

    Parameters
    ----------
    config : RunConfig
        With ``overwrite``, results that are there are removed.
    recovery : Recovery
    """
    if config.overwrite:
        for path in planned_outputs(recovery.inputs):
            (config.output_dir / path).unlink(missing_ok=True)
    complete = set(recovery.up_to_date)
    for key, signed in recovery.signatures.items():
        if key not in complete:
            _note(config.output_dir, key, signed, BEGUN)
    write_json(config.work_dir / _LAST_GRAPH, {"Lesions": recovery.signatures})


def end(config: RunConfig, recovery: Recovery, outcome: RunOutcome) -> None:
    """Note which lesions of a run are complete.

    Parameters
    ----------
    config : RunConfig
    recovery : Recovery
    outcome : RunOutcome
    """
    if outcome.error:
        return
    lesions = recovery.inputs.inspection.lesions
    failed = [_lesion_of(failure.node, lesions) for failure in outcome.failures]
    # A step that failed for all lesions speaks for none of them.
    if None in failed:
        return
    for lesion in lesions:
        key = lesion.record.key
        alone = replace(recovery.inputs, inspection=Inspection((lesion,), {}, {}))
        if key not in failed and _are_there(config.output_dir, planned_outputs(alone)):
            _note(config.output_dir, key, recovery.signatures[key], COMPLETE)


def _lesion_of(node: str, lesions: Iterable[Lesion]) -> str | None:
    """Key of the lesion that a step belongs to; None for a step that many share."""
    parts = set(node.split("."))
    for lesion in lesions:
        if parts & set(lesion_workflow_names(lesion.record.key)):
            return lesion.record.key
    return None


def _is_complete(
    output_dir: Path, inputs: RunInputs, lesion: Lesion, signatures: Signatures
) -> bool:
    state = _read_state(output_dir, lesion.record.key)
    if any(state.get(analysis) != [COMPLETE, signed] for analysis, signed in signatures.items()):
        return False
    alone = replace(inputs, inspection=Inspection((lesion,), {}, {}))
    return _are_there(output_dir, planned_outputs(alone))


def _are_there(output_dir: Path, paths: Iterable[str]) -> bool:
    for path in paths:
        try:
            if (output_dir / path).stat().st_size == 0:
                return False
        except OSError:
            return False
    return True


def _state_file(output_dir: Path, key: str) -> Path:
    return output_dir / "logs" / "state" / f"{key}.json"


def _read_state(output_dir: Path, key: str) -> dict[str, Any]:
    """State of each analysis; a damaged file says nothing, so the lesion is done again."""
    content = _read(_state_file(output_dir, key))
    return content if isinstance(content, dict) else {}


def _note(output_dir: Path, key: str, signatures: Mapping[str, str], state: str) -> None:
    path = _state_file(output_dir, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = {analysis: [state, signed] for analysis, signed in signatures.items()}
    write_json(path, {**_read_state(output_dir, key), **new})


def _read_last_graph(work_dir: Path) -> dict[str, Signatures]:
    content = _read(work_dir / _LAST_GRAPH)
    found = content.get("Lesions") if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None
