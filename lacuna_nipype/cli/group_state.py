"""What results of the group were made of: a run that fails removes only what is outdated."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna_nipype.core.files import read_json_object, write_json
from lacuna_nipype.io.derivatives import dataset_lock, sidecar_path

if TYPE_CHECKING:
    from lacuna_nipype.execution.runner import RunOutcome

_FINISHED = ("done", "cached")


def result_signatures(workflow: Any) -> dict[Path, str]:
    """Sign what each result of a graph depends on.

    Parameters
    ----------
    workflow : nipype Workflow
        Not expanded; without workflows inside.

    Returns
    -------
    dict of Path to str
        By file, a digest of the inputs of all steps before it: files by size and time, as nipype
        has it.
    """
    import networkx as nx

    graph, signed = workflow._graph, {}
    for sink in graph.nodes:
        if not hasattr(sink.interface, "targets"):
            continue
        digest = hashlib.sha256(workflow.name.encode())
        for node in sorted((*nx.ancestors(graph, sink), sink), key=lambda node: node.name):
            _, value = node.inputs.get_hashval(hash_method="timestamp")
            digest.update(f"{node.name} {value}\n".encode())
        signed.update(dict.fromkeys(sink.interface.targets(), digest.hexdigest()))
    return signed


def settle(
    output_dir: Path,
    signatures: Mapping[Path, str],
    steps: Mapping[Path, str],
    outcome: RunOutcome,
) -> None:
    """Note what finished results were made of, and remove those that a failed run left outdated.

    Parameters
    ----------
    output_dir : Path
    signatures : mapping of Path to str
        From :func:`result_signatures`.
    steps : mapping of Path to str
        Full name of the step that stores each file.
    outcome : RunOutcome
    """
    note = output_dir / "logs" / "state" / "group.json"
    # Not every plugin of nipype tells of each step.
    all_well = not (outcome.error or outcome.failures)
    with dataset_lock(output_dir):
        known = read_json_object(note)
        for path, step in steps.items():
            name = path.relative_to(output_dir).as_posix()
            record = outcome.nodes.get(step)
            if all_well or (record is not None and record.status in _FINISHED):
                known[name] = signatures[path]
            elif known.get(name) != signatures[path]:
                known.pop(name, None)
                path.unlink(missing_ok=True)
                sidecar_path(path).unlink(missing_ok=True)
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, known)
