"""Public connectomes: where they are, and what is known of them. Nothing is downloaded here.

The table is data (``data/connectomes.json``). The user's own file of the same shape, in the data
folder, changes single fields of an entry or adds one, e.g. when a service moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import get_data_dir, read_json
from lacuna_nipype.data import load_json

KINDS = ("functional", "structural")
SOURCE_TYPES = ("dataverse", "figshare", "github", "osf")


@dataclass(frozen=True)
class ConnectomeSource:
    """A public connectome.

    Parameters
    ----------
    name : str
        Name that selects it.
    display_name : str
    type : {"functional", "structural"}
    description : str
    source_type : {"dataverse", "figshare", "github", "osf"}
    persistent_id : str, optional
        Of the data set on Dataverse.
    dataverse_server : str
    download_url : str, optional
        Address of the file (GitHub, OSF), or of another figshare API than the public one.
    article_id : str, optional
        Of the article on figshare.
    default_batches : int
        Files that a functional connectome is cut into.
    requires_mask : bool
        A brain mask is needed to convert it.
    mask_url : str, optional
        Address of the brain mask, where the data set does not hold it.
    n_subjects : int
    space : str
        TemplateFlow name.
    estimated_size_gb : float
        Of the download.
    citation, licence : str
    register_name : str
        Name in the registry of connectomes unless the user gives another.
    size_bytes : int, optional
        Of a single file that is downloaded, where it is known.
    md5, sha256 : str, optional
        Its checksum, where it is known.
    """

    name: str
    display_name: str
    type: Literal["functional", "structural"]
    description: str
    source_type: Literal["dataverse", "figshare", "github", "osf"]
    persistent_id: str | None = None
    dataverse_server: str = "https://dataverse.harvard.edu"
    download_url: str | None = None
    article_id: str | None = None
    default_batches: int = 10
    requires_mask: bool = False
    mask_url: str | None = None
    n_subjects: int = 0
    space: str = "MNI152NLin6Asym"
    estimated_size_gb: float = 0.0
    citation: str = ""
    licence: str = ""
    register_name: str = ""
    size_bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None


def sources_file() -> Path:
    """Give the place of the user's own table, whether or not it is there.

    Returns
    -------
    Path
        ``connectomes/sources.json`` in the data folder: an object of objects, by name.
    """
    return get_data_dir() / "connectomes" / "sources.json"


def list_fetchable_connectomes() -> list[ConnectomeSource]:
    """List the public connectomes that ``fetch`` knows.

    Returns
    -------
    list of ConnectomeSource
        The package's own and the user's, in name order.

    Raises
    ------
    ValidationError
        The user's table is no such table.
    """
    table = {name: dict(entry) for name, entry in load_json("connectomes.json").items()}
    for name, entry in _users_table().items():
        table[name] = {**table.get(name, {}), **entry}
    return [_make(name, entry) for name, entry in sorted(table.items())]


def find_source(name: str) -> ConnectomeSource:
    """Find a public connectome.

    Parameters
    ----------
    name : str
        Case is ignored.

    Returns
    -------
    ConnectomeSource

    Raises
    ------
    ValidationError
        A ValueError: there is none of this name; the message lists those there are.
    """
    sources = list_fetchable_connectomes()
    for source in sources:
        if source.name.casefold() == name.casefold():
            return source
    known = ", ".join(source.name for source in sources)
    raise ValidationError(f"There is no public connectome {name!r}; known are {known}.")


def _users_table() -> dict[str, dict[str, Any]]:
    path = sources_file()
    try:
        table = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValidationError(f"{path} is not valid JSON; repair or remove it.") from error
    if not isinstance(table, dict) or not all(isinstance(e, dict) for e in table.values()):
        raise ValidationError(f"{path} is not an object of objects by name; repair or remove it.")
    return {str(name).lower(): dict(entry) for name, entry in table.items()}


def _make(name: str, entry: Mapping[str, Any]) -> ConnectomeSource:
    # The name is the key of the entry.
    known = {field.name: field for field in fields(ConnectomeSource) if field.name != "name"}
    unknown = sorted(set(entry) - set(known))
    if unknown:
        raise ValidationError(
            f"{sources_file()}: {name} has the unknown field {unknown[0]!r}; known are "
            f"{', '.join(sorted(known))}."
        )
    for key, value in entry.items():
        if not _fits(value, known[key].type):
            raise ValidationError(f"{sources_file()}: {key} of {name} cannot be {value!r}.")
    defaults = {
        "display_name": name, "description": "", "register_name": name, "type": None,
        "source_type": None,
    }  # fmt: skip
    source = ConnectomeSource(name=name, **{**defaults, **entry})
    for key, allowed in (("type", KINDS), ("source_type", SOURCE_TYPES)):
        if getattr(source, key) not in allowed:
            raise ValidationError(
                f"{sources_file()}: {key} of {name} must be one of {', '.join(allowed)}."
            )
    return source


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value from JSON has the type that a field was declared with."""
    text = str(annotation)
    if value is None:
        return "None" in text
    if isinstance(value, bool):
        return text == "bool"
    if isinstance(value, (int, float)):
        return text.startswith("float") or (text.startswith("int") and isinstance(value, int))
    return isinstance(value, str) and text.startswith(("str", "Literal"))
