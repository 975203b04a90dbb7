"""How much memory and how many processors a run may use."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from lacuna_nipype.core.exceptions import ValidationError

_UNITS = {"": 1e-3, "m": 1e-3, "g": 1.0, "t": 1e3}
# Where control groups are mounted: all of them (version 2), or each kind apart (version 1).
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


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
        90 % of the smallest of: available memory, the limits of the control groups that the
        process is in, and what SLURM gives to the job.
    """
    import psutil

    limits = [psutil.virtual_memory().available / 1e9]
    for folder in _control_groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limits += [bytes_ / 1e9 for bytes_ in _numbers(folder / name)[:1]]
    megabytes = _slurm_number("SLURM_MEM_PER_NODE") or (
        _slurm_number("SLURM_MEM_PER_CPU") * _slurm_number("SLURM_CPUS_ON_NODE")
    )
    if megabytes:
        limits.append(megabytes * 1.048576e-3)
    return 0.9 * min(limits)


def available_processors() -> int:
    """Processors this process may use.

    Returns
    -------
    int
        The smallest of its affinity, which containers and most clusters set, the share of time
        that its control groups have, such as with ``docker run --cpus``, and what SLURM gives to
        the job, which it may not enforce; at least 1.
    """
    limits: list[float] = [len(os.sched_getaffinity(0))]
    for folder in _control_groups("cpu"):
        quota = _numbers(folder / "cpu.max")
        if not quota:
            quota = [
                *_numbers(folder / "cpu.cfs_quota_us"), *_numbers(folder / "cpu.cfs_period_us")
            ]  # fmt: skip
        if len(quota) == 2 and quota[1]:
            limits.append(math.ceil(quota[0] / quota[1]))
    if given := _slurm_number("SLURM_CPUS_ON_NODE"):
        limits.append(given)
    return max(1, int(min(limits)))


def _control_groups(kind: str) -> list[Path]:
    """List the folders of the control groups that this process is in, up to the uppermost.

    Inside a container the path may be the host's, of which only the uppermost is there.
    """
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    folders = []
    for line in lines:
        _, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if not kinds or kind in kinds.split(","):
            top = _CGROUPS / kind if kinds else _CGROUPS
            own = Path(path.lstrip("/"))
            folders += [top / part for part in (own, *own.parents)]
    return folders or [_CGROUPS, _CGROUPS / kind]


def _numbers(path: Path) -> list[int]:
    """Read the whole numbers above 0 in a file; none where there is no limit, or no file."""
    try:
        words = path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []
    return [int(word) for word in words] if all(word.isdigit() for word in words) else []


def _slurm_number(name: str) -> int:
    """Give a number that SLURM tells its jobs; 0 where it tells none."""
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else 0
