"""How much memory and how many processors a run may use."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lacuna_nipype.core.exceptions import ValidationError

_UNITS = {"": 1e-3, "m": 1e-3, "g": 1.0, "t": 1e3}
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def parse_memory(text: str) -> float:
    """Read an amount of memory.

    Parameters
    ----------
    text : str
        Number with an optional unit: ``16G``, ``1.5 GB``, ``16000`` (MB, as in fMRIPrep).

    Returns
    -------
    float
        GB (1e9 bytes).

    Raises
    ------
    ValidationError
        Not an amount, or less than 0.5 GB.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(?:([mgt])(?:i?b)?)?\s*", text.lower())
    if match is None:
        raise ValidationError(f"{text!r} is not an amount of memory; write 16G or 16000 (MB).")
    amount = float(match.group(1)) * _UNITS[match.group(2) or ""]
    if amount < 0.5:
        raise ValidationError(
            f"{text!r} is {amount:g} GB; at least 0.5 GB is needed (a number without unit is MB)."
        )
    return amount


def available_memory_gb() -> float:
    """Memory this process may count on, in GB.

    Returns
    -------
    float
        90 % of the smallest of: available memory, the control group's limit, SLURM's limit.
    """
    import psutil

    limits = [psutil.virtual_memory().available / 1e9]
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text) / 1e9)
    slurm = os.environ.get("SLURM_MEM_PER_NODE", "")
    if slurm.isdigit() and int(slurm) > 0:
        limits.append(int(slurm) * 1.048576e-3)
    return 0.9 * min(limits)


def available_processors() -> int:
    """Processors this process may use: its affinity, which SLURM and containers set."""
    return len(os.sched_getaffinity(0))
