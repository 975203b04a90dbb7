"""Atlases that the user registered.

Image and table are copied into the cache, where nothing moves or changes them, so an entry is
exactly what was checked.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lacuna_nipype.atlases.cache import (
    METADATA_ENDING,
    CacheSlot,
    cached,
    file_sha256,
    file_stem,
    locked,
    remove_stored,
)
from lacuna_nipype.atlases.catalogue import custom_atlas
from lacuna_nipype.atlases.checking import check_parcellation
from lacuna_nipype.atlases.copies import copy_atlas_image
from lacuna_nipype.atlases.entries import AtlasEntry, AtlasFiles, AtlasNotFound, IntegrityError
from lacuna_nipype.atlases.matching import nearest_names
from lacuna_nipype.atlases.region_tables import keep_regions, read_table, write_regions
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import get_data_dir, read_json
from lacuna_nipype.core.spaces import canonical_space

logger = logging.getLogger("lacuna_nipype")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_VERSION = "1"


class UserSource:
    """Atlases that were registered on this machine.

    Parameters
    ----------
    verify : bool
        Compare files with their SHA-256 before they are given.
    """

    name = "user"

    def __init__(self, *, verify: bool = False) -> None:
        self._verify = verify

    def entries(self) -> Iterable[AtlasEntry]:
        """List the registered atlases by name and space."""
        return [entry for entry, _, _ in _stored()]

    def fetch(self, entry: AtlasEntry, resolution: float | None, target_dir: Path) -> AtlasFiles:
        """Give the files of a registered atlas; see :class:`~.entries.AtlasSource`."""
        for known, metadata, content in _stored():
            if known.id.casefold() == entry.id.casefold() and known.space == entry.space:
                return self._open(known, metadata, content)
        raise AtlasNotFound(f"No atlas is registered as {entry.id} in {entry.space}.")

    def _open(self, entry: AtlasEntry, metadata: Path, content: dict[str, Any]) -> AtlasFiles:
        stem = metadata.name[: -len(METADATA_ENDING)]
        slot = CacheSlot(metadata.parent, stem, content["Request"], content["SourceVersion"])
        slot.look()
        if slot.stored is None:
            raise IntegrityError(
                f"{slot.problem} Register {entry.id} again with `lacuna-nipype atlas register`."
            )
        if self._verify:
            slot.verify()
        stored = slot.stored
        return AtlasFiles(
            stored.image, stored.labels, stored.metadata, True, entry,
            entry.resolutions[0] if entry.resolutions else None, stored.sha256,
        )  # fmt: skip


def user_folder() -> Path:
    """Give the folder of registered atlases, with a folder for each space."""
    return get_data_dir() / "atlases" / "user"


def register_atlas(
    name: str,
    image: Path,
    labels: Path,
    space: str,
    citation: str = "",
    license: str = "",  # noqa: A002 - the key of BIDS and TemplateFlow
    *,
    overwrite: bool = False,
) -> AtlasEntry:
    """Give an atlas a name, by which runs and commands find it from then on.

    Parameters
    ----------
    name : str
        Letters, digits and ``_ . + -``, 64 at most, beginning with a letter or digit.
    image : Path
        NIfTI: 3D whole numbers from 0 on, or 4D with one volume for each region, of
        probabilities or of 0 and 1.
    labels : Path
        Table with ``index`` and ``name`` (``.tsv``, ``.csv``), ``number name`` on each line, or
        one name on each line. Every label of the image needs a name, and no two the same.
    space : str
        Name or alias of the standard space it is in.
    citation, license : str
        Kept with it.
    overwrite : bool
        Replace an atlas of this name in this space.

    Returns
    -------
    AtlasEntry

    Raises
    ------
    SpatialMismatchError
        The image lies on the grid of another space.
    ValidationError
        Image, labels or name cannot be used, or the name is taken.
    """
    image, labels = Path(image), Path(labels)
    if not _NAME.fullmatch(name):
        raise ValidationError(
            f"{name!r} cannot be the name of an atlas; use letters, digits, _ . + and -, 64 at "
            "most, beginning with a letter or digit."
        )
    space = canonical_space(space)
    entity = custom_atlas(name, image, labels, space).atlas
    checked = check_parcellation(image, labels, space)
    if checked.empty:
        logger.warning(
            "%s names %d regions without a voxel in %s, such as %s.",
            labels, len(checked.empty), image, checked.empty[0].name,
        )  # fmt: skip
    suffix = "dseg" if checked.kind == "labelled" else "probseg"
    stem = file_stem(space, {"atlas": entity}, checked.resolution, suffix)
    facts = {
        "Name": name, "Kind": checked.kind, "Space": space, "Resolution": checked.resolution,
        "Regions": len(checked.regions), "Atlas": entity,
    }  # fmt: skip
    request = {"name": name, "image": file_sha256(image), "labels": file_sha256(labels)}
    folder = user_folder() / f"tpl-{space}"
    with locked(user_folder() / ".register.lock"):
        replaced = _find_replaced(name, entity, space, request, overwrite)
        with cached(folder, stem, request, _VERSION, refresh=True) as slot:
            copy_atlas_image(image, slot.image)
            write_regions(slot.labels, keep_regions(read_table(labels), checked.regions))
            slot.commit(
                {
                    "Entry": facts,
                    "Source": "user",
                    "RegisteredFrom": image.name,
                    "License": " ".join(license.split()),
                    "Citation": " ".join(citation.split()),
                }
            )
        for old in replaced:
            if old != (folder, stem):
                remove_stored(*old)
    return next(entry for entry, _, _ in _stored() if entry.id == name and entry.space == space)


def _find_replaced(
    name: str, entity: str, space: str, request: dict[str, str], overwrite: bool
) -> list[tuple[Path, str]]:
    """Find what an atlas takes the place of; refuse a name that is taken."""
    replaced = []
    for entry, metadata, content in _stored():
        if entry.space != space:
            continue
        if entry.id.casefold() == name.casefold():
            if not overwrite and content["Request"] != request:
                raise ValidationError(
                    f"{entry.id} is registered already in {space}; add --overwrite "
                    "(overwrite=True) to replace it, or choose another name."
                )
            replaced.append((metadata.parent, metadata.name[: -len(METADATA_ENDING)]))
        elif entry.entities["atlas"].casefold() == entity.casefold():
            raise ValidationError(
                f"{name} would write files named atlas-{entity}, as {entry.id} does, which is "
                "registered already; choose a name that differs in a letter or digit."
            )
    return replaced


def unregister_atlas(name: str) -> list[AtlasEntry]:
    """Forget an atlas; the files it was registered from stay.

    Parameters
    ----------
    name : str
        Case is ignored.

    Returns
    -------
    list of AtlasEntry
        What was removed: one for each space.

    Raises
    ------
    AtlasNotFound
        There is no such name.
    """
    with locked(user_folder() / ".register.lock"):
        stored = list(_stored())
        removed = []
        for entry, metadata, _ in stored:
            if entry.id.casefold() == name.casefold():
                remove_stored(metadata.parent, metadata.name[: -len(METADATA_ENDING)])
                removed.append(entry)
    if not removed:
        offer = nearest_names(name, [entry.id for entry, _, _ in stored])
        known = f"there is {', '.join(offer)}" if offer else "none is"
        raise AtlasNotFound(f"No atlas is registered as {name}; {known}.")
    return removed


def _stored() -> Iterator[tuple[AtlasEntry, Path, dict[str, Any]]]:
    """Give registered atlases with their metadata; damaged ones are told and left out."""
    for metadata in sorted(user_folder().glob(f"tpl-*/tpl-*{METADATA_ENDING}")):
        try:
            content = read_json(metadata)
            yield _entry(content), metadata, content
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("%s is damaged; register the atlas again.", metadata)


def _entry(content: dict[str, Any]) -> AtlasEntry:
    facts = content["Entry"]
    resolution = facts["Resolution"]
    return AtlasEntry(
        id=facts["Name"],
        name=facts["Name"],
        kind=facts["Kind"],
        space=facts["Space"],
        resolutions=() if resolution is None else (float(resolution),),
        n_regions=int(facts["Regions"]),
        source="user",
        entities={"atlas": facts["Atlas"]},
        citation=content.get("Citation", ""),
        license=content.get("License", ""),
    )
