"""Connectomes by name: the type of arguments that take one, and the commands of the registry."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna_nipype.cli.arguments import natural_number
from lacuna_nipype.cli.terminal import columns, print_lines

if TYPE_CHECKING:
    from lacuna_nipype.connectomes.registry import RegisteredConnectome

KINDS = ("functional", "structural")
REGISTER_SUMMARY = "give a connectome a name, which commands take instead of its path"
UNREGISTER_SUMMARY = "forget the name of a connectome; its files stay"
LIST_SUMMARY = "list the connectomes that have a name"
_COLUMNS = ("name", "kind", "subjects", "space", "mm", "path")


def connectome_location(text: str) -> Path:
    """Read an argument that is the path or the registered name of a connectome.

    Parameters
    ----------
    text : str

    Returns
    -------
    Path
        Absolute.

    Raises
    ------
    argparse.ArgumentTypeError
        There is no such path or name, or what has the name is gone or changed.
    """
    from lacuna_nipype.connectomes.registry import get_connectome_path
    from lacuna_nipype.core.exceptions import ValidationError

    if not text:
        raise argparse.ArgumentTypeError("an empty path was given")
    try:
        return get_connectome_path(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except OSError as error:
        # The system's own errors have a number before their reason.
        reason = f"{text}: {error.strerror}" if error.strerror else str(error)
        raise argparse.ArgumentTypeError(reason) from error


def registered_entry(location: Path, kind: str, notices: list[str]) -> RegisteredConnectome | None:
    """Find what the registry says of the connectome that a run was given.

    Parameters
    ----------
    location : Path
    kind : {"functional", "structural"}
        What the run needs.
    notices : list of str
        A sentence is added where the files changed since they were registered.

    Returns
    -------
    RegisteredConnectome or None
        None where there is no entry, or where it describes other content than is there now.

    Raises
    ------
    ValidationError
        The connectome is of the other kind, or the registry is damaged.
    """
    from lacuna_nipype.connectomes.registry import find_change, registered_at
    from lacuna_nipype.core.exceptions import ValidationError

    entry = registered_at(location)
    if entry is None:
        return None
    if entry.kind != kind:
        raise ValidationError(
            f"{entry.name} is a {entry.kind} connectome; give it with "
            f"--{entry.kind}-connectome, and a {kind} one with --{kind}-connectome."
        )
    problem = find_change(entry)
    if problem:
        notices.append(f"{problem} Until then nothing is taken from the registry.")
        return None
    return entry


def registered_metadata(entry: RegisteredConnectome) -> dict[str, str]:
    """Give what sidecars say of a registered connectome beside what its files say.

    Parameters
    ----------
    entry : RegisteredConnectome

    Returns
    -------
    dict
        ``RegisteredName``, and ``Citation`` and ``License`` where known.
    """
    content = {
        "RegisteredName": entry.name, "Citation": entry.citation, "License": entry.licence
    }  # fmt: skip
    return {key: value for key, value in content.items() if value}


def describe_registration(location: Path) -> dict[str, Any] | None:
    """Say for ``connectome info`` under which name a connectome is registered.

    Parameters
    ----------
    location : Path

    Returns
    -------
    dict or None
        JSON-safe; None for a connectome without a name.
    """
    from lacuna_nipype.connectomes.registry import find_change, registered_at

    entry = registered_at(location)
    if entry is None:
        return None
    return {
        "Name": entry.name,
        "Space": entry.space,
        "NumberOfSubjects": entry.n_subjects,
        "Citation": entry.citation or None,
        "License": entry.licence or None,
        "AddedOn": entry.added_on,
        "Unchanged": find_change(entry) is None,
    }


# connectome register


def add_register(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``connectome register``."""
    parser.add_argument(
        "name", metavar="NAME", help="letters, digits and _ . + -; case is ignored"
    )
    parser.add_argument(
        "connectome", metavar="PATH",
        help="HDF5 file, folder of HDF5 files, tractogram, or streamline index",
    )  # fmt: skip
    parser.add_argument("--kind", choices=KINDS, help="(default: what the files are)")
    parser.add_argument("--space", metavar="SPACE", help="its space, where the files do not say")
    parser.add_argument(
        "--resolution", type=_number, metavar="MM",
        help="voxel size of the maps that a tractogram is for",
    )  # fmt: skip
    parser.add_argument(
        "--n-subjects", type=natural_number, metavar="N", help="subjects behind a tractogram"
    )
    parser.add_argument(
        "--citation", default="", metavar="TEXT", help="what to cite; goes into sidecars"
    )
    parser.add_argument("--licence", "--license", default="", metavar="TEXT")
    parser.add_argument(
        "--sha256", metavar="HEX", help="checksum that the file must have; reads all of it"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the entry that has the name"
    )


def register(options: argparse.Namespace) -> None:
    """Register a connectome and print its entry."""
    from lacuna_nipype.connectomes.registry import register_connectome, registry_file

    entry = register_connectome(
        options.name,
        options.connectome,
        kind=options.kind,
        space=options.space,
        resolution=options.resolution,
        n_subjects=options.n_subjects,
        citation=options.citation,
        licence=options.licence,
        sha256=options.sha256,
        overwrite=options.overwrite,
    )
    subjects = f", {entry.n_subjects} subjects" if entry.n_subjects else ""
    print_lines(
        f"Registered: {entry.name} ({entry.kind}{subjects}, {entry.space}), {entry.path}",
        f"Registry: {registry_file()}",
    )


# connectome unregister


def add_unregister(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``connectome unregister``."""
    parser.add_argument("name", metavar="NAME", help="case is ignored")


def unregister(options: argparse.Namespace) -> None:
    """Remove a name and print where the files still are."""
    from lacuna_nipype.connectomes.registry import unregister_connectome

    entry = unregister_connectome(options.name)
    print_lines(f"Removed the name {entry.name}; the files are still there: {entry.path}")


# connectome list


def add_list(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``connectome list``."""
    parser.add_argument("--kind", choices=KINDS, help="only these (default: both)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def list_all(options: argparse.Namespace) -> None:
    """Print the registry as a table or as JSON."""
    from lacuna_nipype.connectomes.registry import list_registered, registry_file

    entries = [
        entry for entry in list_registered() if options.kind in (None, entry.kind)
    ]  # fmt: skip
    if options.json:
        print_lines(json.dumps([_fields(entry) for entry in entries], indent=2, allow_nan=False))
    elif entries:
        print_lines(*columns([_COLUMNS, *(_row(entry) for entry in entries)]))
    else:
        kind = f"{options.kind} " if options.kind else ""
        print_lines(f"No {kind}connectome is registered in {registry_file()}.")


def _fields(entry: RegisteredConnectome) -> dict[str, Any]:
    return {**vars(entry), "path": str(entry.path), "exists": _is_there(entry)}


def _row(entry: RegisteredConnectome) -> tuple[str, ...]:
    return (
        entry.name,
        entry.kind,
        str(entry.n_subjects or "-"),
        entry.space,
        "-" if entry.resolution is None else f"{entry.resolution:g}",
        str(entry.path) if _is_there(entry) else f"{entry.path} (not there)",
    )


def _is_there(entry: RegisteredConnectome) -> bool:
    try:
        return entry.path.exists()
    except OSError:
        return False


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of mm") from None
