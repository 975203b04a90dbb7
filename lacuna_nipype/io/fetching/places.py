"""What there is of a public connectome on this machine, and where."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lacuna_nipype.connectomes.public import ConnectomeSource, find_source
from lacuna_nipype.connectomes.registry import find_registered
from lacuna_nipype.core.files import get_data_dir
from lacuna_nipype.io.fetching.record import recorded_folder

#: Folders below that of a connectome: what came from the server, and HDF5 files made of it.
RAW, PROCESSED = "raw", "processed"
#: Where an archive is unpacked to while it is converted.
UNPACKED = "unpacked"


def default_output_dir(name: str) -> Path:
    """Give the folder that ``fetch`` uses when none is given.

    Parameters
    ----------
    name : str

    Returns
    -------
    Path
        ``connectomes/<name>`` in the data folder.
    """
    return get_data_dir() / "connectomes" / find_source(name).name


def get_fetch_status(name: str) -> dict[str, Any]:
    """Tell what there is of a public connectome on this machine.

    Parameters
    ----------
    name : str
        Case is ignored.

    Returns
    -------
    dict
        ``downloaded``: something came from the server; ``processed``: what a run reads is there;
        ``registered``: under which the registry knows it or not (bool); ``location``: its folder
        as text, None where there is nothing; ``size_bytes`` of that folder.

    Raises
    ------
    ValidationError
        A ValueError: no public connectome has this name.
    """
    source = find_source(name)
    entry = find_registered(source.register_name)
    folder = recorded_folder(source.name) or default_output_dir(source.name)
    results = result_files(source, folder)
    files = [p for p in folder.rglob("*") if p.is_file()] if folder.is_dir() else []
    originals = [p for p in files if not p.name.startswith(".") and p not in results]
    return {
        "downloaded": bool(originals or results),
        "processed": bool(results),
        "registered": entry is not None,
        "location": str(folder) if files else None,
        "size_bytes": sum(path.stat().st_size for path in files),
    }


def result_path(source: ConnectomeSource, folder: Path) -> Path:
    """Place of a connectome that was fetched to a folder: one of HDF5 files, or a .tck file."""
    return folder / (PROCESSED if source.type == "functional" else f"{source.name}.tck")


def result_files(source: ConnectomeSource, folder: Path) -> list[Path]:
    """List the files of a fetched connectome that runs read.

    Parameters
    ----------
    source : ConnectomeSource
    folder : Path
        Where it was fetched to.

    Returns
    -------
    list of Path
    """
    result = result_path(source, folder)
    if source.type == "functional":
        return sorted(result.glob("*.h5"))
    return [result] if result.is_file() else []


def clean_fetched(name: str) -> tuple[list[Path], int]:
    """Remove what a fetch left besides its result: originals, unfinished and unpacked pieces.

    Parameters
    ----------
    name : str

    Returns
    -------
    removed : list of Path
    n_bytes : int
        Freed.

    Raises
    ------
    ValidationError
        A ValueError: no public connectome has this name.
    """
    source = find_source(name)
    folder = recorded_folder(source.name) or default_output_dir(source.name)
    removed, n_bytes = [], 0
    folders = [folder / RAW, folder / UNPACKED, folder / "gsp1000_unpacked"]
    pieces = [p for part in folders if part.is_dir() for p in part.rglob("*") if p.is_file()]
    if folder.is_dir():
        pieces += [p for p in folder.glob(".*.part*") if p.is_file()]
    for path in sorted(set(pieces)):
        n_bytes += path.stat().st_size
        path.unlink()
        removed.append(path)
    for part in folders:
        shutil.rmtree(part, ignore_errors=True)
    return removed, n_bytes
