"""Where results come from: versions of software, and a record per participant."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from lacuna_nipype import __version__
from lacuna_nipype.core.files import read_json, write_json

PACKAGES = ("nipype", "nibabel", "numpy", "scipy", "h5py", "pandas", "nilearn", "pybids")


def software_versions(mrtrix: str | None = None) -> dict[str, str]:
    """Versions of this package, of Python and of what does the work.

    Parameters
    ----------
    mrtrix : str, optional
        Version of MRtrix3, where it is used.

    Returns
    -------
    dict
    """
    versions = {"lacuna-nipype": __version__, "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if mrtrix:
        versions["MRtrix3"] = mrtrix
    return versions


def append_run(path: Path, run: Mapping[str, Any]) -> None:
    """Add a run to a participant's provenance file; call it under the dataset's lock.

    Parameters
    ----------
    path : Path
        JSON with one list, ``Runs``; created when missing. A damaged file is kept beside it.
    run : mapping
        JSON-safe record.
    """
    runs: list[Any] = []
    if path.is_file():
        try:
            runs = list(read_json(path)["Runs"])
        except (ValueError, KeyError, TypeError):
            path.rename(path.with_suffix(".damaged"))
    write_json(path, {"Runs": [*runs, run]})
