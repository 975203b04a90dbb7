"""External programs: are they there, and are they new enough."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence

from lacuna_nipype.core.exceptions import DependencyError

_INSTALL_MRTRIX = (
    "install MRtrix3 with `apt-get install mrtrix3` (Debian, Ubuntu) "
    "or `conda install -c conda-forge -c MRtrix3 mrtrix3`"
)


def require_mrtrix_commands(commands: Sequence[str], *, path: str | None = None) -> None:
    """Raise when an MRtrix3 command cannot be found; nothing is executed.

    Parameters
    ----------
    commands : sequence of str
        Names of commands.
    path : str, optional
        Search path in the form of ``PATH``; the environment's by default.

    Raises
    ------
    DependencyError
        Some commands are missing; one sentence names them and says how to install MRtrix3.
    """
    missing = [name for name in dict.fromkeys(commands) if shutil.which(name, path=path) is None]
    if missing:
        noun = "command" if len(missing) == 1 else "commands"
        raise DependencyError(
            f"The MRtrix3 {noun} {', '.join(missing)} cannot be found on PATH; {_INSTALL_MRTRIX}."
        )


def check_mrtrix(commands: Sequence[str], minimum: str = "3.0.3") -> str:
    """Check that MRtrix3 commands are on PATH and new enough.

    Parameters
    ----------
    commands : sequence of str
        Names of the commands that will be run.
    minimum : str, optional
        Oldest version that will do.

    Returns
    -------
    str
        Version that the first command reports, such as ``3.0.3``.

    Raises
    ------
    DependencyError
        A command is missing, too old, or does not say its version; one sentence with the remedy.
    ValueError
        No command was named.
    """
    if not commands:
        raise ValueError("Name at least one MRtrix3 command.")
    require_mrtrix_commands(commands)
    # Every command is asked: two installations may share one PATH.
    versions = {name: _mrtrix_version(name) for name in commands}
    for name, version in versions.items():
        if _as_numbers(version) < _as_numbers(minimum):
            raise DependencyError(
                f"{name} is from MRtrix3 {version}, but {minimum} or newer is needed; "
                f"{_INSTALL_MRTRIX}."
            )
    return versions[commands[0]]


def _mrtrix_version(command: str) -> str:
    try:
        answer = subprocess.run(
            [command, "-version"],
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        output = answer.stdout
    except (OSError, subprocess.TimeoutExpired):
        output = ""
    # "== tckedit 3.0.3 ==", with "-12-g1234567" after the number in a build from source.
    found = re.search(r"^== \S+ (\d\S*)", output, flags=re.MULTILINE)
    if found is None:
        raise DependencyError(
            f"{command} -version does not answer as MRtrix3 does; {_INSTALL_MRTRIX}."
        )
    return found.group(1)


def _as_numbers(version: str) -> tuple[int, ...]:
    """Give the leading three numbers; "3.0_RC3" counts as 3.0.0."""
    found = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?", version)
    return tuple(int(number or 0) for number in found.groups()) if found else (0, 0, 0)
