"""The catalogue of atlases: every source behind one list and one way to fetch.

Sources are asked in the order of :data:`~lacuna_nipype.atlases.entries.SOURCE_ORDER`; the first
that has an id gives it. siibra is asked only where it is named, by ``source`` or by the beginning
``siibra:`` of an id, so that nothing else uses a network by surprise. Plug-ins of the entry-point
group ``lacuna_nipype.atlas_sources`` are asked after the sources of this package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lacuna_nipype.atlases.bids import BidsSource
from lacuna_nipype.atlases.cache import cache_folder, cached, file_stem, request_label
from lacuna_nipype.atlases.catalogue import Atlas
from lacuna_nipype.atlases.entries import (
    SOURCE_ORDER,
    AtlasEntry,
    AtlasFiles,
    AtlasNotFound,
    AtlasSource,
    IntegrityError,
    SpaceMismatch,
)
from lacuna_nipype.atlases.info import map_info
from lacuna_nipype.atlases.matching import MOST_NAMES, natural_key, nearest_names
from lacuna_nipype.atlases.resample import resample_parcellation
from lacuna_nipype.atlases.templateflow import TemplateFlowSource
from lacuna_nipype.atlases.user import UserSource, register_atlas, unregister_atlas
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.spaces import canonical_space, known_spaces, same_space, template_grids
from lacuna_nipype.data import load_json

if TYPE_CHECKING:
    import nibabel as nb
    import pandas as pd

__all__ = [
    "SpaceEntry",
    "fetch_parcellation",
    "find_run_atlases",
    "get_atlas",
    "list_atlases",
    "list_regions",
    "list_spaces",
    "map_info",
    "region_mask",
    "register_atlas",
    "resample_parcellation",
    "unregister_atlas",
]

SIIBRA_PREFIX = "siibra:"
PLUGIN_GROUP = "lacuna_nipype.atlas_sources"
Datasets = Sequence[Path] | Mapping[str, Path]


@dataclass(frozen=True)
class SpaceEntry:
    """A space that atlases are in.

    Parameters
    ----------
    name : str
        TemplateFlow name.
    aliases : tuple of str
    description : str
    usable : bool
        Volumes of this space can be used here.
    resolutions : tuple of float
        Voxel sizes of its standard grids in mm, finest first.
    siibra_id : str
        Id of the same space in siibra; empty where it has none.
    species : str
    """

    name: str
    aliases: tuple[str, ...]
    description: str
    usable: bool
    resolutions: tuple[float, ...]
    siibra_id: str = ""
    species: str = "Homo sapiens"


def list_spaces() -> list[SpaceEntry]:
    """List the spaces of atlases, those first whose volumes can be used.

    Returns
    -------
    list of SpaceEntry
    """
    content, more = load_json("spaces.json")["spaces"], load_json("atlas_spaces.json")
    usable = [
        SpaceEntry(
            name,
            tuple(content[name]["aliases"]),
            content[name]["description"],
            True,
            tuple(sorted({float(grid.voxel_sizes[0]) for grid in template_grids(name)})),
            more["siibra"].get(name, ""),
        )
        for name in known_spaces()
    ]
    others = [
        SpaceEntry(
            row["name"], tuple(row["aliases"]), row["description"], False, (), row["siibra"]
        )
        for row in more["not_usable"]
    ]
    return [*usable, *others]


# Sources


def _sources(
    wanted: str | None,
    datasets: Datasets,
    *,
    offline: bool = False,
    refresh: bool = False,
    verify: bool = False,
) -> list[AtlasSource]:
    """Give the sources to ask, in order: all but siibra, or the wanted one."""
    folders = datasets.values() if isinstance(datasets, Mapping) else datasets
    sources: list[AtlasSource] = [
        UserSource(verify=verify),
        BidsSource([Path(folder) for folder in folders]),
        TemplateFlowSource(offline=offline, refresh=refresh, verify=verify),
    ]
    if wanted == "siibra":
        from lacuna_nipype.atlases.siibra import SiibraSource

        return [SiibraSource(offline=offline, refresh=refresh, verify=verify)]
    plugins = {point.name: point for point in entry_points(group=PLUGIN_GROUP)}
    known = [*SOURCE_ORDER, *plugins]
    if wanted is not None and wanted not in known:
        raise ValidationError(
            f"There is no source of atlases {wanted!r}; there is {', '.join(known)}."
        )
    # A plug-in is loaded only when it is asked, but an id may be in any of them.
    names = [name for name in plugins if wanted in (None, name)]
    sources += [plugins[name].load()() for name in names]
    return [source for source in sources if wanted in (None, source.name)]


def list_atlases(
    space: str | None = None,
    source: str | None = None,
    kind: str | None = None,
    find: str | None = None,
    *,
    datasets: Datasets = (),
) -> list[AtlasEntry]:
    """List the atlases that can be had by their id.

    Parameters
    ----------
    space : str, optional
        Name or alias of a standard space; those of its family are of one anatomy.
    source : str, optional
        ``user``, ``bids``, ``bundled``, ``templateflow``, ``siibra``, or a plug-in's name. All but
        siibra, which needs a network, when left out.
    kind : {"labelled", "probabilistic"}, optional
    find : str, optional
        Text in the id, the name, an alias or an entity; case is ignored.
    datasets : sequence of Path, or mapping of name to Path
        BIDS datasets to look into.

    Returns
    -------
    list of AtlasEntry
        By source in order, then by id with numbers in their order, then by space.

    Raises
    ------
    ValidationError
        A space, source or kind is unknown.
    SourceUnavailable
        siibra was asked and cannot be reached.
    """
    if kind not in (None, "labelled", "probabilistic"):
        raise ValidationError(f"An atlas is labelled or probabilistic, not {kind!r}.")
    wanted = None if space is None else canonical_space(space)
    found = []
    for number, origin in enumerate(_sources(source, datasets)):
        for entry in origin.entries():
            if wanted is not None and not same_space(entry.space, wanted):
                continue
            if kind not in (None, entry.kind) or not _matches(entry, find):
                continue
            found.append((number, natural_key(entry.id), entry.space, entry))
    return [row[-1] for row in sorted(found, key=lambda row: row[:-1])]


def _matches(entry: AtlasEntry, find: str | None) -> bool:
    if not find:
        return True
    texts = [entry.id, entry.name, *entry.aliases, *entry.entities.values()]
    return any(find.casefold() in text.casefold() for text in texts)


def _names(entry: AtlasEntry) -> list[str]:
    return [entry.id, *entry.aliases]


def _is_called(entry: AtlasEntry, name: str) -> bool:
    return any(own.casefold() == name.casefold() for own in _names(entry))


def get_atlas(
    id: str,  # noqa: A002 - the word of the catalogue
    space: str | None = None,
    *,
    source: str | None = None,
    datasets: Datasets = (),
) -> AtlasEntry:
    """Find an atlas by its id or an alias; both are compared whole, case ignored.

    Parameters
    ----------
    id : str
    space : str, optional
        Name or alias; needed where the atlas is in several spaces.
    source : str, optional
        See :func:`list_atlases`.
    datasets : sequence of Path, or mapping of name to Path

    Returns
    -------
    AtlasEntry
        Of the first source that has it in this space.

    Raises
    ------
    AtlasNotFound
        There is none; the message offers the nearest names.
    SpaceMismatch
        It is in other spaces only.
    ValidationError
        Several atlases have this name; the message lists them.
    """
    return _find(id, space, _sources(_source_of(id, source), datasets))[0]


def _source_of(name: str, source: str | None) -> str | None:
    if source is None and name.casefold().startswith(SIIBRA_PREFIX):
        return "siibra"
    return source


def _find(
    name: str, space: str | None, sources: Sequence[AtlasSource]
) -> tuple[AtlasEntry, AtlasSource]:
    everything = [(entry, source) for source in sources for entry in source.entries()]
    called = [pair for pair in everything if _is_called(pair[0], name)]
    if not called:
        raise AtlasNotFound(_unknown(name, [entry for entry, _ in everything]))
    if space is not None:
        wanted = canonical_space(space)
        inside = [pair for pair in called if same_space(pair[0].space, wanted)]
        if not inside:
            spaces = ", ".join(dict.fromkeys(entry.space for entry, _ in called))
            raise SpaceMismatch(
                f"{name} is in {spaces} and not in {wanted}; fetch it there and warp it, or "
                "choose another atlas."
            )
        # Of one anatomy, the very space that was named comes first.
        called = [pair for pair in inside if pair[0].space == wanted] or inside
    return _only(name, [pair for pair in called if pair[1] is called[0][1]])


def _only(
    name: str, pairs: Sequence[tuple[AtlasEntry, AtlasSource]]
) -> tuple[AtlasEntry, AtlasSource]:
    """Refuse to guess among several atlases of one name."""
    exact = [pair for pair in pairs if pair[0].id.casefold() == name.casefold()] or list(pairs)
    if len(exact) == 1:
        return exact[0]
    listed = "; ".join(f"{entry.id} in {entry.space}" for entry, _ in exact)
    ids = {entry.id.casefold() for entry, _ in exact}
    what = "add its space" if len(ids) == 1 else "use the id of one"
    raise ValidationError(f"{name} means several atlases: {listed}; {what}.")


def _unknown(name: str, entries: Iterable[AtlasEntry]) -> str:
    # Ids first: an alias is offered only where no id is as near.
    ids = list(dict.fromkeys(entry.id for entry in entries))
    aliases = {alias: entry.id for entry in entries for alias in entry.aliases}
    near = nearest_names(name, ids)
    for alias in nearest_names(name, list(aliases)):
        if aliases[alias] not in near and len(near) < MOST_NAMES:
            near.append(aliases[alias])
    offer = f"there is {', '.join(near)}" if near else "there is none"
    return (
        f"Atlas {name!r} is not known; {offer}. `lacuna-nipype atlas list` shows all, "
        "and `lacuna-nipype atlas register` adds your own."
    )


# Files


def fetch_parcellation(
    id: str,  # noqa: A002
    space: str | None = None,
    resolution: float | None = None,
    region: str | None = None,
    *,
    source: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    verify: bool = False,
    datasets: Datasets = (),
    statistical: str | None = None,
) -> AtlasFiles:
    """Bring an atlas to this machine, or find it there.

    Parameters
    ----------
    id : str
        Id or alias.
    space : str, optional
        Name or alias; needed where the atlas is in several spaces.
    resolution : float, optional
        Voxel size in mm; the finest when left out.
    region : str, optional
        Give the mask of this region instead of the whole atlas.
    source : str, optional
        See :func:`list_atlases`.
    offline : bool
        Never use the network.
    refresh : bool
        Make again what is in the cache.
    verify : bool
        Compare what is in the cache with its SHA-256.
    datasets : sequence of Path, or mapping of name to Path
    statistical : str, optional
        Give the statistical map of this region; siibra has them.

    Returns
    -------
    AtlasFiles

    Raises
    ------
    AtlasNotFound, SpaceMismatch, ValidationError
        As :func:`get_atlas`; also for an unknown region, and a voxel size that there is none of.
    SourceUnavailable
        It is not on this machine and cannot be fetched; the message names the file and the
        command.
    IntegrityError
        A file is not what it must be.
    """
    if region is not None and statistical is not None:
        raise ValidationError("Ask for the mask or for the statistical map of a region, not both.")
    origins = _sources(
        _source_of(id, source), datasets, offline=offline, refresh=refresh, verify=verify
    )
    entry, origin = _find(id, space, origins)
    folder = cache_folder(entry.source, entry.space)
    if entry.source == "siibra" and (region or statistical):
        files: AtlasFiles = origin.fetch_region(  # type: ignore[attr-defined]
            entry, region or statistical, folder, statistical=statistical is not None
        )
        return files
    if statistical is not None:
        raise ValidationError(
            f"{entry.source} has no statistical maps; siibra does (--source siibra)."
        )
    _check_resolution(entry, resolution)
    whole = origin.fetch(entry, resolution, folder)
    if region is None:
        return whole
    return _fetch_region(whole, region, refresh=refresh, verify=verify)


def _check_resolution(entry: AtlasEntry, resolution: float | None) -> None:
    if resolution is None or not entry.resolutions:
        return
    if not any(abs(size - resolution) < 1e-3 for size in entry.resolutions):
        known = ", ".join(f"{size:g}" for size in entry.resolutions)
        raise ValidationError(
            f"{entry.id} is in {entry.space} at {known} mm, not {resolution:g} mm; leave the "
            "resolution out, and resample it."
        )


def _fetch_region(whole: AtlasFiles, region: str, *, refresh: bool, verify: bool) -> AtlasFiles:
    """Cut the mask of a region out of an atlas."""
    import nibabel as nb
    import pandas as pd

    from lacuna_nipype.atlases.region_tables import find_regions, read_table
    from lacuna_nipype.atlases.regions import mask_of_regions
    from lacuna_nipype.core.files import write_table

    entry = whole.entry
    (found,) = find_regions(read_table(whole.labels), [region])
    request = {
        "id": entry.id, "space": entry.space, "region": found.name, "source": entry.source
    }  # fmt: skip
    folder = cache_folder("regions", entry.space)
    stem = file_stem(entry.space, entry.entities, whole.resolution, "mask", request_label(request))
    # Of another image, the mask is another one.
    version = whole.sha256
    with cached(folder, stem, request, version, refresh=refresh, verify=verify) as slot:
        from_cache = slot.stored is not None
        if slot.stored is None:
            mask, _ = mask_of_regions(whole.image, whole.labels, [found.name])
            nb.save(mask, slot.image)
            table = pd.DataFrame({"index": [1], "name": [found.name]})
            write_table(slot.labels, table)
            slot.commit(
                {
                    "Source": entry.source,
                    "URL": entry.url,
                    "License": entry.license,
                    "Citation": entry.citation,
                    "Image": whole.image.name,
                }
            )
        stored = slot.stored
    if stored is None:
        raise IntegrityError(f"{stem} could not be stored in {folder}; try again.")
    return AtlasFiles(
        stored.image, stored.labels, stored.metadata, from_cache, entry, whole.resolution,
        stored.sha256,
    )  # fmt: skip


def list_regions(
    id: str,  # noqa: A002
    find: str | None = None,
    space: str | None = None,
    *,
    resolution: float | None = None,
    source: str | None = None,
    offline: bool = False,
    datasets: Datasets = (),
) -> pd.DataFrame:
    """List the regions of an atlas, which is fetched where it is not on this machine.

    Parameters
    ----------
    id : str
        Id or alias.
    find : str, optional
        Text in the name; case is ignored.
    space, resolution, source, offline, datasets
        See :func:`fetch_parcellation`.

    Returns
    -------
    DataFrame
        See :func:`lacuna_nipype.atlases.regions.measure_regions`.

    Raises
    ------
    LacunaError
        As :func:`fetch_parcellation`.
    """
    from lacuna_nipype.atlases.regions import measure_regions

    files = fetch_parcellation(
        id, space, resolution, source=source, offline=offline, datasets=datasets
    )
    table = measure_regions(files.image, files.labels)
    if find:
        wanted = find.casefold()
        table = table[[wanted in name.casefold() for name in table["name"]]]
    return table.reset_index(drop=True)


def region_mask(
    id: str,  # noqa: A002
    names: str | int | Iterable[str | int],
    space: str | None = None,
    resolution: float | None = None,
    *,
    threshold: float = 0.0,
    source: str | None = None,
    offline: bool = False,
    datasets: Datasets = (),
) -> nb.Nifti1Image:
    """Make one mask of some regions of an atlas.

    Parameters
    ----------
    id : str
        Id or alias.
    names : str, int, or iterable of them
        Names or numbers of regions; case is ignored.
    space, resolution, source, offline, datasets
        See :func:`fetch_parcellation`.
    threshold : float
        Of a probabilistic atlas: a voxel belongs to a region whose value is above this.

    Returns
    -------
    nibabel image, uint8

    Raises
    ------
    AtlasNotFound
        There is no such region, or no such atlas.
    LacunaError
        As :func:`fetch_parcellation`.
    """
    from lacuna_nipype.atlases.regions import mask_of_regions

    wanted = [names] if isinstance(names, (str, int)) else list(names)
    files = fetch_parcellation(
        id, space, resolution, source=source, offline=offline, datasets=datasets
    )
    return mask_of_regions(files.image, files.labels, wanted, threshold)[0]


# Runs


def find_run_atlases(
    ids: Sequence[str], space: str | None, *, datasets: Datasets = ()
) -> list[Atlas]:
    """Find the atlases of a run, which does not download.

    Parameters
    ----------
    ids : sequence of str
        Ids or aliases.
    space : str or None
        Space of the run: of the first source that has an id, the atlas of this space is
        preferred to those of others, which are warped.
    datasets : sequence of Path, or mapping of name to Path

    Returns
    -------
    list of Atlas
        In the order asked for, each once, at their finest voxels.

    Raises
    ------
    AtlasNotFound
        Some ids are unknown; the message names all of them, before anything is fetched.
    SourceUnavailable
        An atlas has to be fetched first; the message names the command.
    """
    sources = _sources(None, datasets, offline=True)
    if any(_source_of(name, None) == "siibra" for name in ids):
        sources += _sources("siibra", datasets, offline=True)
    everything = [(entry, source) for source in sources for entry in source.entries()]
    chosen: dict[tuple[str, str], tuple[AtlasEntry, AtlasSource]] = {}
    problems = []
    for name in ids:
        # The source siibra answers to its own ids alone.
        allowed = [
            pair
            for pair in everything
            if (pair[0].source == "siibra") == (_source_of(name, None) == "siibra")
        ]
        called = [pair for pair in allowed if _is_called(pair[0], name)]
        if not called:
            problems.append(_unknown(name, [entry for entry, _ in allowed]))
            continue
        entry, source = _preferred(name, called, space)
        chosen.setdefault((entry.id, entry.space), (entry, source))
    if problems:
        raise AtlasNotFound(" ".join(problems))
    return [_run_atlas(entry, source) for entry, source in chosen.values()]


def _preferred(
    name: str, called: Sequence[tuple[AtlasEntry, AtlasSource]], space: str | None
) -> tuple[AtlasEntry, AtlasSource]:
    first = [pair for pair in called if pair[1] is called[0][1]]
    wanted = None if space is None else canonical_space(space)
    inside = [pair for pair in first if wanted is not None and same_space(pair[0].space, wanted)]
    very = [pair for pair in inside if pair[0].space == wanted]
    left = very or inside or first
    ids = {entry.id.casefold() for entry, _ in left}
    # Other spaces are warped from, so any will do; other atlases will not.
    return left[0] if len(ids) == 1 else _only(name, left)


def _run_atlas(entry: AtlasEntry, source: AtlasSource) -> Atlas:
    files = source.fetch(entry, None, cache_folder(entry.source, entry.space))
    entities: dict[str, Any] = dict(entry.entities)
    return Atlas(
        entry.id, files.image, files.labels, entry.space, entities["atlas"],
        entities.get("seg"), entities.get("scale"),
        source=entry.source, citation=entry.citation, license=entry.license, url=entry.url,
    )  # fmt: skip
