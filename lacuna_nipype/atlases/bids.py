"""Atlases that BIDS datasets carry in their ``tpl-*`` folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lacuna_nipype.atlases.cache import file_sha256
from lacuna_nipype.atlases.catalogue import Atlas, find_bids_atlases
from lacuna_nipype.atlases.checking import check_image, grid_resolution
from lacuna_nipype.atlases.entries import AtlasEntry, AtlasFiles, AtlasNotFound
from lacuna_nipype.atlases.labels import read_labels
from lacuna_nipype.atlases.parcels import open_atlas
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import read_json

_NETWORKS = re.compile(r"(\d+)n")


class BidsSource:
    """Atlases of BIDS datasets.

    Parameters
    ----------
    datasets : sequence of Path
        Dataset folders, in the order in which they are preferred.
    """

    name = "bids"

    def __init__(self, datasets: Sequence[Path] = ()) -> None:
        self._datasets = tuple(datasets)

    def entries(self) -> Iterable[AtlasEntry]:
        """List the atlases; each once for a space, at all its voxel sizes.

        Raises
        ------
        ValidationError
            A dataset is no folder, or an image cannot be opened.
        """
        return [_entry(atlases) for atlases in self._groups().values()]

    def fetch(self, entry: AtlasEntry, resolution: float | None, target_dir: Path) -> AtlasFiles:
        """Give the files of the dataset, checked; see :class:`~.entries.AtlasSource`."""
        for (name, space), atlases in self._groups().items():
            if name.casefold() == entry.id.casefold() and space == entry.space:
                return _files(entry, _pick(atlases, entry, resolution))
        raise AtlasNotFound(f"No dataset carries the atlas {entry.id} in {entry.space}.")

    def _groups(self) -> dict[tuple[str, str], list[tuple[Atlas, float | None]]]:
        """Images of one atlas and space, of the first dataset that has it, finest first."""
        groups: dict[tuple[str, str], list[tuple[Atlas, float | None]]] = {}
        for folder in self._datasets:
            if not folder.is_dir():
                raise ValidationError(f"The dataset {folder} is no folder; correct --datasets.")
            own: dict[tuple[str, str], list[tuple[Atlas, float | None]]] = {}
            for atlas in find_bids_atlases(folder):
                resolution = grid_resolution(open_atlas(atlas.image)[1])
                own.setdefault((atlas.id, atlas.space), []).append((atlas, resolution))
            for key, atlases in own.items():
                finest = sorted(atlases, key=lambda pair: pair[1] or float("inf"))
                groups.setdefault(key, finest)
        return groups


def _entry(atlases: Sequence[tuple[Atlas, float | None]]) -> AtlasEntry:
    atlas = atlases[0][0]
    labelled = "_dseg." in atlas.image.name
    content: dict[str, Any] = {}
    for sidecar in reversed(_sidecars(atlas)):
        content |= {key: value for key, value in _read_json(sidecar).items() if value}
    pairs = {"atlas": atlas.atlas, "seg": atlas.segmentation, "scale": atlas.scale}
    entities = {key: value for key, value in pairs.items() if value}
    links = content.get("ReferencesAndLinks") or []
    return AtlasEntry(
        id=atlas.id,
        name=str(content.get("Name") or atlas.id),
        kind="labelled" if labelled else "probabilistic",
        space=atlas.space,
        resolutions=tuple(size for _, size in atlases if size is not None),
        n_regions=None,
        source="bids",
        entities=entities,
        citation=str(content.get("Citation") or ""),
        license=str(content.get("License") or ""),
        url=str(links[0]) if isinstance(links, list) and links else "",
        aliases=schaefer_names(entities),
    )


def schaefer_names(entities: dict[str, str]) -> tuple[str, ...]:
    """Give the names that Schaefer's atlases have elsewhere, none for other atlases.

    Parameters
    ----------
    entities : dict
        ``atlas``, ``seg`` (such as 7n) and ``scale``.

    Returns
    -------
    tuple of str
        Id and TemplateFlow's name.
    """
    match = _NETWORKS.fullmatch(entities.get("seg", ""))
    scale = entities.get("scale", "")
    if entities.get("atlas") != "Schaefer2018" or match is None or not scale.isdecimal():
        return ()
    networks = match.group(1)
    return (
        f"schaefer2018parcels{scale}networks{networks}",
        f"Schaefer2018_{scale}Parcels{networks}Networks",
    )


def _sidecars(atlas: Atlas) -> list[Path]:
    """JSON of the image, of its table and of the atlas, those that there are; nearest first."""
    stem = atlas.image.name.removesuffix(".gz").removesuffix(".nii")
    root = atlas.image.parent
    while not root.name.startswith("tpl-"):
        root = root.parent
    candidates = [
        atlas.image.with_name(f"{stem}.json"),
        atlas.labels.with_suffix(".json"),
        root.parent / f"atlas-{atlas.atlas}_description.json",
    ]
    return [path for path in dict.fromkeys(candidates) if path.is_file()]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValidationError(f"{path} is not valid JSON; repair or remove it.") from error
    return content if isinstance(content, dict) else {}


def _pick(
    atlases: Sequence[tuple[Atlas, float | None]], entry: AtlasEntry, resolution: float | None
) -> tuple[Atlas, float | None]:
    if resolution is None:
        return atlases[0]
    for atlas, size in atlases:
        if size is not None and abs(size - resolution) < 1e-3:
            return atlas, size
    raise ValidationError(f"{entry.id} is not in its dataset at {resolution:g} mm.")


def _files(entry: AtlasEntry, found: tuple[Atlas, float | None]) -> AtlasFiles:
    atlas, resolution = found
    check_image(
        atlas.image,
        read_labels(atlas.labels),
        atlas.space,
        image_name=f"Atlas image {atlas.image}",
        table=f"Labels file {atlas.labels}",
    )
    return AtlasFiles(
        atlas.image,
        atlas.labels,
        next(iter(_sidecars(atlas)), None),
        True,
        entry,
        resolution,
        file_sha256(atlas.image),
    )
