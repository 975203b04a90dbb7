"""The end of a run in which steps failed: which, whose, why, and what may help."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lacuna_nipype.execution.runner import Failure
from lacuna_nipype.io.lesions import Lesion
from lacuna_nipype.workflows.base import lesion_workflow_names

# What is found in reasons, in any case, and what to do about it.
_HINTS = {
    r"signal 9|killed|out of memory|\boom\b|MemoryError|cannot allocate|unable to allocate": (
        "Killed or out of memory: let fewer steps run at once (--nprocs), or give the run more "
        "memory (--mem, or the job's own limit on a cluster)."
    ),
    r"no space left|disk quota exceeded|disk full|\berrno (28|122)\b": (
        "Disk full: free some, or move the work folder with -w; the same command goes on from "
        "there."
    ),
    r"file too large|\berrno 27\b": (
        "File too large: raise the limit of file size (ulimit -f), or use another file system."
    ),
    r"templateflow|_xfm\.h5|fetch templates": (
        "Template missing: `lacuna-nipype fetch templates --for SPACE ...` gets it where there "
        "is a network."
    ),
    r"read-only file system|permission denied": (
        "Not writable: check the permissions of the output folder and of the work folder."
    ),
    r"timed? ?out|time limit|TIMEOUT": (
        "Out of time: give jobs more of it, or a connectome in more files makes smaller steps."
    ),
}


def failure_table(
    failures: Sequence[Failure], lesions: Sequence[Lesion], error: str | None = None
) -> list[str]:
    """Lay out the failed steps of a run.

    Parameters
    ----------
    failures : sequence of Failure
    lesions : sequence of Lesion
        All of the run.
    error : str, optional
        Why the run ended early, where no step is to blame.

    Returns
    -------
    list of str
        Lines: a heading, one per step (lesion, or "all" for a step that many share; step; reason;
        crash file), and hints, each once; nothing where nothing failed.
    """
    reasons = [*(failure.reason for failure in failures), *([error] if error else [])]
    hints = [f"Hint: {hint}" for pattern, hint in _HINTS.items() if _occurs(pattern, reasons)]
    if not failures:
        return hints
    rows = [("lesion", "step", "reason", "details")]
    for failure in failures:
        key, step = _whose(failure.node, lesions)
        rows.append((key, step, " ".join(failure.reason.split()), str(failure.crash_file or "")))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = ["Failed steps:"]
    for key, step, reason, details in rows:
        lines.append(f"  {key.ljust(widths[0])}  {step.ljust(widths[1])}  {reason}  {details}")
    return [*(line.rstrip() for line in lines), *hints]


def _occurs(pattern: str, reasons: Sequence[str]) -> bool:
    return any(re.search(pattern, reason, re.IGNORECASE) for reason in reasons)


def _whose(node: str, lesions: Sequence[Lesion]) -> tuple[str, str]:
    """Key of the lesion that a step belongs to, and its name within that."""
    parts = node.split(".")[1:] or [node]
    for lesion in lesions:
        if parts[0] in lesion_workflow_names(lesion.record.key):
            return lesion.record.key, ".".join(parts[1:]) or parts[0]
    return "all", ".".join(parts)
