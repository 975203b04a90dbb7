"""Which atlases a run can use: given on the command line, or found in BIDS datasets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lacuna_nipype.atlases.parcels import load_parcels, open_atlas
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import read_json
from lacuna_nipype.core.spaces import canonical_space, check_declared_space

IMAGE_ENDINGS = ("_dseg.nii.gz", "_dseg.nii", "_probseg.nii.gz", "_probseg.nii")


@dataclass(frozen=True)
class Atlas:
    """An atlas on disk.

    Parameters
    ----------
    id : str
        Name that selects it, unique within a run.
    image, labels : Path
        NIfTI image and file of names.
    space : str
        TemplateFlow name of its space.
    atlas : str
        Value of the ``atlas`` entity in output names.
    segmentation, scale : str or None
        Values of the ``seg`` and ``scale`` entities.
    source : str
        Where it is from, such as ``templateflow``; ``custom`` for files named one by one.
    citation, license, url : str
        Empty where they are not known, or are only in the JSON beside the labels.
    """

    id: str
    image: Path
    labels: Path
    space: str
    atlas: str
    segmentation: str | None = None
    scale: str | None = None
    source: str = "custom"
    citation: str = ""
    license: str = ""
    url: str = ""

    @property
    def entities(self) -> dict[str, str]:
        """BIDS entities that identify the atlas in output names."""
        pairs = {"atlas": self.atlas, "segmentation": self.segmentation, "scale": self.scale}
        return {key: value for key, value in pairs.items() if value}


def custom_atlas(name: str, image: Path, labels: Path, space: str) -> Atlas:
    """Atlas of the ``--custom-parcellation`` option.

    Parameters
    ----------
    name : str
        Any text with letters or digits; output names use those of it.
    image, labels : Path
    space : str
        Name or alias of a standard space.

    Returns
    -------
    Atlas

    Raises
    ------
    ValidationError
        The name has no letter or digit, or the space is unknown.
    """
    entity = "".join(
        character for character in name if character.isascii() and character.isalnum()
    )
    if not entity:
        raise ValidationError(f"Atlas name {name!r} has no letter or digit to name files with.")
    return Atlas(name, image, labels, canonical_space(space), entity)


def find_bids_atlases(root: Path) -> list[Atlas]:
    """List the atlases that a BIDS dataset carries in its ``tpl-*`` folders.

    Parameters
    ----------
    root : Path
        Dataset folder. Atlases are images named ``tpl-<space>_atlas-<name>[_seg-<>][_scale-<>]
        [_res-<>]_dseg|probseg`` with a ``.tsv`` of the same stem, or of one with fewer entities
        in the same folder or above it, as BIDS lets metadata be inherited.

    Returns
    -------
    list of Atlas
        One per image, in name order; images in an unsupported space or without a table are left
        out. The id is the atlas name, with ``seg`` and ``scale`` where one name has several. A
        ``desc``, by which TemplateFlow tells variants apart, stands for them.
    """
    found = []
    for path in sorted(root.glob("tpl-*/**/tpl-*_atlas-*")):
        ending = next((e for e in IMAGE_ENDINGS if path.name.endswith(e)), None)
        if ending is None:
            continue
        fields = path.name[: -len(ending)].split("_")
        labels = _find_table(path.parent, root, fields, ending.split(".")[0])
        parts = dict(field.split("-", 1) for field in fields if "-" in field)
        try:
            space = canonical_space(parts["tpl"])
        except ValidationError:
            continue
        if labels is not None:
            atlas, segmentation, scale = parts["atlas"], parts.get("seg"), parts.get("scale")
            if segmentation is None and scale is None and "desc" in parts:
                segmentation, scale = _meaning_of(parts["desc"])
            found.append(Atlas(atlas, path, labels, space, atlas, segmentation, scale))
    return [_with_unique_id(atlas, found) for atlas in found]


def _find_table(folder: Path, root: Path, fields: Sequence[str], suffix: str) -> Path | None:
    """Find the table that applies to an image: the nearest one with most of its entities."""
    for place in (folder, *folder.parents):
        ending = f"{suffix}.tsv"
        tables = [
            path
            for path in sorted(place.glob(f"*{ending}"))
            if f"atlas-{_atlas_of(fields)}" in path.name.split("_")
            and set(path.name[: -len(ending)].split("_")) <= set(fields)
        ]
        if tables:
            return max(tables, key=lambda path: path.name.count("_"))
        if place == root:
            return None
    return None


def _atlas_of(fields: Sequence[str]) -> str:
    return next(field for field in fields if field.startswith("atlas-")).removeprefix("atlas-")


def _meaning_of(description: str) -> tuple[str, str | None]:
    """Read the entities ``seg`` and ``scale`` from TemplateFlow's ``desc``."""
    match = re.fullmatch(r"([0-9]+)Parcels([0-9]+)Networks", description)
    return (f"{match.group(2)}n", match.group(1)) if match else (description, None)


def _with_unique_id(atlas: Atlas, everything: Sequence[Atlas]) -> Atlas:
    variants = {
        (other.segmentation, other.scale) for other in everything if other.atlas == atlas.atlas
    }
    if len(variants) == 1:
        return atlas
    full = atlas.atlas + "".join(
        f"_{key}-{value}"
        for key, value in (("seg", atlas.segmentation), ("scale", atlas.scale))
        if value
    )
    return Atlas(
        full, atlas.image, atlas.labels, atlas.space, atlas.atlas, atlas.segmentation, atlas.scale
    )


def check_atlas(atlas: Atlas) -> None:
    """Check an atlas before a run: image and labels readable and in accord, space plausible.

    Parameters
    ----------
    atlas : Atlas

    Raises
    ------
    ValidationError
        Image or labels cannot be used.
    SpatialMismatchError
        The grid contradicts the declared space.
    """
    _, grid, _ = open_atlas(atlas.image)
    check_declared_space(atlas.space, grid, f"Atlas image {atlas.image}")
    load_parcels(atlas.image, atlas.labels)
    atlas_description(atlas)


def atlas_description(atlas: Atlas) -> dict[str, Any]:
    """Describe an atlas for sidecars: name, file, and licence and citation where it has them.

    Parameters
    ----------
    atlas : Atlas

    Returns
    -------
    dict
        Licence, citation and links are those of the JSON beside its labels; what that lacks is
        taken from the atlas itself.

    Raises
    ------
    ValidationError
        The JSON beside the labels is damaged.
    """
    described: dict[str, Any] = {
        "Name": atlas.id, "Image": atlas.image.name, "SpaceName": atlas.space
    }  # fmt: skip
    content: dict[str, Any] = {}
    sidecar = atlas.labels.with_suffix(".json")
    if sidecar.is_file() and sidecar != atlas.labels:
        try:
            content = read_json(sidecar)
        except ValueError as error:
            raise ValidationError(f"{sidecar} is not valid JSON; repair or remove it.") from error
    own = {
        "License": atlas.license,
        "Citation": atlas.citation,
        "ReferencesAndLinks": [atlas.url] if atlas.url else [],
    }
    for key, value in own.items():
        known = (content.get(key) if isinstance(content, dict) else None) or value
        if known:
            described[key] = known
    return described
