"""Whether a folder is a derivatives dataset, as far as its layout goes."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lacuna_nipype.core.exceptions import BidsError
from lacuna_nipype.core.files import read_json
from lacuna_nipype.io.naming import is_label

_DATATYPES = ("anat", "func", "dwi")
_ROOT_FILES = (
    *("dataset_description.json", "participants.tsv", "participants.json", "descriptions.tsv"),
    *("descriptions.json", "README*", "CHANGES*", "LICENSE*", "CITATION.cff", "*.html"),
    "atlas-*_description.json",
)
_ROOT_FOLDERS = ("sub-*", "tpl-*", "phenotype", "logs", "code", "docs", "sourcedata", "figures")


def validate_bids_derivatives(
    derivatives_dir: str | os.PathLike[str], raise_on_error: bool = True
) -> dict[str, list[str]]:
    """Check the layout of a derivatives dataset.

    The BIDS validator looks closer; this one needs no program of its own.

    Parameters
    ----------
    derivatives_dir : path-like
    raise_on_error : bool

    Returns
    -------
    dict
        ``errors`` and ``warnings``, sentences. Errors: the description of the dataset is missing
        or incomplete (``Name``, ``BIDSVersion``, ``GeneratedBy`` with a ``Name`` each), or a
        participant's folder has none of ``anat``, ``func``, ``dwi``. Warnings: what does not
        belong at the root, or no participants at all.

    Raises
    ------
    FileNotFoundError
        The folder is not there.
    BidsError
        There are errors, and ``raise_on_error``.
    """
    root = Path(derivatives_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    warnings = _unexpected(root)
    errors = _description_errors(root / "dataset_description.json", warnings)
    participants = sorted(path for path in root.glob("sub-*") if path.is_dir())
    if not participants:
        warnings.append(f"{root} holds no participant (sub-*).")
    for folder in participants:
        errors += _participant_errors(folder)
    if errors and raise_on_error:
        raise BidsError(f"{root} is no valid derivatives dataset: {' '.join(errors)}")
    return {"errors": errors, "warnings": warnings}


def _description_errors(path: Path, warnings: list[str]) -> list[str]:
    if not path.is_file():
        return [f"{path} is missing."]
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        return [f"{path} is not valid JSON: {error}."]
    if not isinstance(content, dict):
        return [f"{path} must hold a JSON object."]
    errors = [
        f"{path} lacks {key}."
        for key in ("Name", "BIDSVersion")
        if not isinstance(content.get(key), str) or not content[key].strip()
    ]
    if content.get("DatasetType") != "derivative":
        warnings.append(f"{path} does not have the DatasetType derivative.")
    return errors + _maker_errors(path, content.get("GeneratedBy"))


def _maker_errors(path: Path, makers: Any) -> list[str]:
    if makers is None:
        return [f"{path} lacks GeneratedBy."]
    if not isinstance(makers, list) or not makers:
        return [f"GeneratedBy in {path} must be a list with at least one object."]
    named = [isinstance(item, dict) and bool(item.get("Name")) for item in makers]
    return [] if all(named) else [f"Each entry of GeneratedBy in {path} must have a Name."]


def _participant_errors(folder: Path) -> list[str]:
    if not is_label(folder.name.removeprefix("sub-")):
        return [f"{folder} is no name of a participant: letters, digits and + only."]
    sessions = sorted(path for path in folder.glob("ses-*") if path.is_dir())
    return [
        f"{place} has none of the folders {', '.join(_DATATYPES)}."
        for place in sessions or [folder]
        if not any((place / name).is_dir() for name in _DATATYPES)
    ]


def _unexpected(root: Path) -> list[str]:
    """Name what does not belong at the root of a derivatives dataset."""
    warnings = []
    for path in sorted(root.iterdir()):
        known = _ROOT_FOLDERS if path.is_dir() else _ROOT_FILES
        if not path.name.startswith(".") and not any(fnmatchcase(path.name, k) for k in known):
            warnings.append(
                f"{path} is not expected at the root of a derivatives dataset "
                f"({'folder' if path.is_dir() else 'file'})."
            )
    return warnings
