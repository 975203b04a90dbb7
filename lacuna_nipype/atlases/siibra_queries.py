"""What siibra-api knows: atlases, parcellations, spaces, regions, their relations, and maps.

The service finds things by fuzzy names, so each single answer is compared with the question: what
is called otherwise is refused, and the nearest names are offered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from lacuna_nipype.atlases.entries import AtlasNotFound, IntegrityError, SpaceMismatch
from lacuna_nipype.atlases.matching import nearest_names
from lacuna_nipype.atlases.siibra_service import SiibraService
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.spaces import canonical_space
from lacuna_nipype.data import load_json

MapType = Literal["LABELLED", "STATISTICAL"]


class _Named(Protocol):
    @property
    def id(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]: ...


_Item = TypeVar("_Item", bound=_Named)


@dataclass(frozen=True)
class SiibraAtlas:
    """A species with its spaces and parcellations.

    Parameters
    ----------
    id, name, species : str
    spaces, parcellations : tuple of str
        Ids.
    """

    id: str
    name: str
    species: str
    spaces: tuple[str, ...]
    parcellations: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What it may be called."""
        return (self.name,)


@dataclass(frozen=True)
class Parcellation:
    """A parcellation, in whatever spaces it has maps.

    Parameters
    ----------
    id, name, shortname : str
    modality : str
        Empty where it is not known.
    version : str
        Empty where there are no versions.
    deprecated : bool
        There is a newer version.
    previous, following : str
        Ids of the neighbouring versions, empty where there are none.
    spaces : tuple of str
        Ids of its spaces.
    """

    id: str
    name: str
    shortname: str
    modality: str
    version: str
    deprecated: bool
    previous: str
    following: str
    spaces: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What it may be called."""
        return tuple(dict.fromkeys(name for name in (self.name, self.shortname) if name))


@dataclass(frozen=True)
class Space:
    """A space.

    Parameters
    ----------
    id, name, shortname : str
    template_space : str or None
        TemplateFlow name; None for one in which volumes cannot be used here (surfaces, other
        species, BigBrain). The units and axes that the service states are not those of its
        coordinates, which are mm, and are left out.
    """

    id: str
    name: str
    shortname: str
    template_space: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """What it may be called."""
        known = (self.name, self.shortname, self.template_space or "")
        return tuple(dict.fromkeys(name for name in known if name))


@dataclass(frozen=True)
class Region:
    """A node of the tree of regions, which need not be mapped.

    Parameters
    ----------
    id : str
        Changes with the service; for comparisons within one answer.
    name : str
    parents : tuple of str
        Ids.
    color : str
        As ``#rrggbb``, empty where it has none.
    centroid : (float, float, float) or None
        mm, where a space was asked for.
    """

    id: str
    name: str
    parents: tuple[str, ...]
    color: str
    centroid: tuple[float, float, float] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What it may be called."""
        return (self.name,)


@dataclass(frozen=True)
class Relation:
    """How a region relates to one of another parcellation.

    Parameters
    ----------
    qualification : str
        EXACT, OVERLAPS, CONTAINED, CONTAINS, APPROXIMATE, HOMOLOGOUS or OTHER_VERSION.
    region : str
        Name of the other region.
    parcellation, parcellation_id : str
        Name and id of its parcellation.
    """

    qualification: str
    region: str
    parcellation: str
    parcellation_id: str


@dataclass(frozen=True)
class FeatureType:
    """A kind of data that the service has for regions.

    Parameters
    ----------
    name : str
        Place in the hierarchy, with dots.
    display_name, category, path : str
        Empty where they are not known.
    """

    name: str
    display_name: str
    category: str
    path: str


@dataclass(frozen=True)
class MapIndex:
    """Where a region is in a map.

    Parameters
    ----------
    volume : int
        Place in the list of volumes.
    label : int or None
        Value of its voxels; None where the whole volume is the region.
    fragment : str or None
        Part of the volume, such as ``left hemisphere``.
    """

    volume: int
    label: int | None
    fragment: str | None


@dataclass(frozen=True)
class SiibraMap:
    """A map of a parcellation in a space.

    Parameters
    ----------
    id, name : str
    map_type : {"LABELLED", "STATISTICAL"}
    parcellation, space : str
        Ids.
    citation, url : str
        Of its publications; empty where it has none.
    indices : mapping of str to tuple of MapIndex
        By name of the region, in the order of the service; empty in a listing.
    volumes : tuple of mapping
        For each volume, what ``providedVolumes`` holds: by format an address, or addresses by
        fragment; empty in a listing.
    """

    id: str
    name: str
    map_type: str
    parcellation: str
    space: str
    citation: str
    url: str
    indices: Mapping[str, tuple[MapIndex, ...]]
    volumes: tuple[Mapping[str, str | Mapping[str, str]], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What it may be called."""
        return (self.name,)


@dataclass(frozen=True)
class MapRange:
    """Smallest and largest value of a statistical map, zeros outside the region included.

    Parameters
    ----------
    minimum, maximum : float
    """

    minimum: float
    maximum: float


def template_space(space_id: str) -> str | None:
    """Translate the id of a space to its TemplateFlow name.

    Parameters
    ----------
    space_id : str

    Returns
    -------
    str or None
        None for a space in which volumes cannot be used here.
    """
    known: dict[str, str] = load_json("atlas_spaces.json")["siibra"]
    label = space_id.rpartition("/")[2]
    return next((name for name, own in known.items() if own.rpartition("/")[2] == label), None)


def list_siibra_atlases(service: SiibraService) -> list[SiibraAtlas]:
    """List the atlases, one for each species.

    Parameters
    ----------
    service : SiibraService

    Returns
    -------
    list of SiibraAtlas
    """
    return [_atlas(service, model) for model in service.read_pages("atlases")]


def list_parcellations(service: SiibraService) -> list[Parcellation]:
    """List the parcellations of all species and versions.

    Parameters
    ----------
    service : SiibraService

    Returns
    -------
    list of Parcellation
    """
    return [_parcellation(service, model) for model in service.read_pages("parcellations")]


def list_siibra_spaces(service: SiibraService) -> list[Space]:
    """List the spaces of all species, surfaces included.

    Parameters
    ----------
    service : SiibraService

    Returns
    -------
    list of Space
    """
    return [_space(service, model) for model in service.read_pages("spaces")]


def get_siibra_atlas(service: SiibraService, name: str) -> SiibraAtlas:
    """Give one atlas.

    Parameters
    ----------
    service : SiibraService
    name : str
        Its id or name; case is ignored.

    Returns
    -------
    SiibraAtlas

    Raises
    ------
    AtlasNotFound
        Nothing is called exactly so; the message offers what is near.
    """
    ask = lambda: _atlas(service, service.read("atlases", name))
    return _exactly(name, "atlas", ask, lambda: list_siibra_atlases(service))


def get_parcellation(service: SiibraService, name: str) -> Parcellation:
    """Give one parcellation.

    Parameters
    ----------
    service : SiibraService
    name : str
        Its id, name or short name; case is ignored. A part of a name, for which the service
        would take some version, is refused.

    Returns
    -------
    Parcellation

    Raises
    ------
    AtlasNotFound
        Nothing is called exactly so; the message offers what is near.
    """
    ask = lambda: _parcellation(service, service.read("parcellations", name))
    return _exactly(name, "parcellation", ask, lambda: list_parcellations(service))


def get_space(service: SiibraService, name: str) -> Space:
    """Give one space.

    Parameters
    ----------
    service : SiibraService
    name : str
        Its id, name or short name, or the TemplateFlow name of a space or an alias of it.

    Returns
    -------
    Space

    Raises
    ------
    AtlasNotFound
        Nothing is called exactly so; the message offers what is near.
    SpaceMismatch
        It is a standard space that the service does not have.
    """
    try:
        standard = canonical_space(name)
    except ValidationError:
        ask = lambda: _space(service, service.read("spaces", name))
        return _exactly(name, "space", ask, lambda: list_siibra_spaces(service))
    return _standard_space(standard, list_siibra_spaces(service))


def _standard_space(standard: str, spaces: Sequence[Space]) -> Space:
    for space in spaces:
        if space.template_space == standard:
            return space
    usable = sorted({space.template_space for space in spaces if space.template_space})
    raise SpaceMismatch(
        f"siibra has nothing in {standard}; there is {', '.join(usable) or 'no usable space'}, "
        "from where a run warps an atlas itself."
    )


def list_siibra_regions(
    service: SiibraService, parcellation_id: str, find: str | None = None
) -> list[Region]:
    """List the regions of a parcellation, inner nodes of its tree included.

    Parameters
    ----------
    service : SiibraService
    parcellation_id : str
    find : str, optional
        Text to look for.

    Returns
    -------
    list of Region
    """
    models = service.read_pages("regions", parcellation_id=parcellation_id, find=find or None)
    return [_region(service, model) for model in models]


def leaf_regions(regions: Iterable[Region]) -> list[Region]:
    """Leave out the nodes of which others are part.

    Parameters
    ----------
    regions : iterable of Region
        All regions of a parcellation, as :func:`list_siibra_regions` gives them without ``find``.

    Returns
    -------
    list of Region
    """
    everything = list(regions)
    parents = {parent for region in everything for parent in region.parents}
    return [region for region in everything if region.id not in parents]


def get_region(
    service: SiibraService, parcellation_id: str, name: str, space_id: str | None = None
) -> Region:
    """Give one region, mapped or an inner node.

    Parameters
    ----------
    service : SiibraService
    parcellation_id : str
    name : str
        Its exact name; case is ignored.
    space_id : str, optional
        Adds the centroid in that space, where the service has it.

    Returns
    -------
    Region

    Raises
    ------
    AtlasNotFound
        Nothing is called exactly so; the message offers what is near.
    """
    query = {"parcellation_id": parcellation_id, "space_id": space_id}
    ask = lambda: _region(service, service.read("regions", name, **query))
    everything = lambda: list_siibra_regions(service, parcellation_id)
    return _exactly(name, f"region of {parcellation_id}", ask, everything)


def list_related_regions(
    service: SiibraService, parcellation_id: str, region: str
) -> list[Relation]:
    """List how a region relates to those of other parcellations.

    Parameters
    ----------
    service : SiibraService
    parcellation_id : str
    region : str
        Exact name.

    Returns
    -------
    list of Relation
        Often empty.

    Raises
    ------
    AtlasNotFound
        There is no such region.
    """
    exact = get_region(service, parcellation_id, region).name
    models = service.read_pages("regions", exact, "related", parcellation_id=parcellation_id)
    relations = []
    for model in models:
        other = _part(service, model, "assigned_structure")
        parcellation = _part(service, model, "assigned_structure_parcellation")
        relations.append(
            Relation(
                _text(service, model, "qualification"),
                _text(service, other, "name"),
                _text(service, parcellation, "name"),
                _text(service, parcellation, "@id"),
            )
        )
    return relations


def list_feature_types(service: SiibraService) -> list[FeatureType]:
    """List the kinds of data that the service has for regions.

    Parameters
    ----------
    service : SiibraService

    Returns
    -------
    list of FeatureType
    """
    return [
        FeatureType(
            _text(service, model, "name"),
            *(str(model.get(key) or "") for key in ("display_name", "category", "path")),
        )
        for model in service.read_pages("feature", "_types")
    ]


def list_maps(
    service: SiibraService,
    map_type: MapType | None = None,
    parcellation_id: str | None = None,
    space_id: str | None = None,
) -> list[SiibraMap]:
    """List maps, without their indices and volumes.

    Parameters
    ----------
    service : SiibraService
    map_type : {"LABELLED", "STATISTICAL"}, optional
    parcellation_id, space_id : str, optional
        Ids; the service compares them exactly.

    Returns
    -------
    list of SiibraMap
    """
    models = service.read_pages(
        "maps", parcellation_id=parcellation_id, space_id=space_id, map_type=map_type
    )
    return [_map(service, model) for model in models]


def get_map(service: SiibraService, map_id: str) -> SiibraMap:
    """Give one map with its indices and volumes.

    Parameters
    ----------
    service : SiibraService
    map_id : str

    Returns
    -------
    SiibraMap

    Raises
    ------
    AtlasNotFound
        There is no such map.
    """
    found = _map(service, service.read("maps", map_id))
    if found.id != map_id:
        raise AtlasNotFound(f"siibra gave the map {found.id} when asked for {map_id}.")
    return found


def find_labelled_map(service: SiibraService, parcellation_id: str, space_id: str) -> SiibraMap:
    """Give the labelled map of a parcellation in a space, with indices and volumes.

    Parameters
    ----------
    service : SiibraService
    parcellation_id, space_id : str

    Returns
    -------
    SiibraMap

    Raises
    ------
    AtlasNotFound
        There is none, or several.
    """
    maps = list_maps(service, "LABELLED", parcellation_id, space_id)
    if len(maps) != 1:
        names = "; ".join(found.name for found in maps)
        state = f"{len(maps)} labelled maps ({names})" if maps else "no labelled map"
        raise AtlasNotFound(f"siibra has {state} of {parcellation_id} in the space {space_id}.")
    return get_map(service, maps[0].id)


def find_statistical_region(
    service: SiibraService, parcellation_id: str, space_id: str, region: str
) -> tuple[SiibraMap, str]:
    """Find the statistical map that has a region.

    Parameters
    ----------
    service : SiibraService
    parcellation_id, space_id : str
    region : str
        Exact name of a mapped region (a leaf); case is ignored.

    Returns
    -------
    SiibraMap
    str
        The region as the indices of that map spell it.

    Raises
    ------
    AtlasNotFound
        No statistical map has that region; the message offers what is near.
    """
    mapped: list[str] = []
    for listed in list_maps(service, "STATISTICAL", parcellation_id, space_id):
        found = get_map(service, listed.id)
        for name in found.indices:
            if _same(name, region):
                return found, name
        mapped += found.indices
    if not mapped:
        raise AtlasNotFound(
            f"siibra has no statistical map of {parcellation_id} in the space {space_id}."
        )
    raise AtlasNotFound(
        f"siibra has no statistical map of the region {region!r}; {_offer(region, mapped)}."
    )


def read_map_range(
    service: SiibraService, parcellation_id: str, space_id: str, region: str
) -> MapRange:
    """Ask for the range of a region's statistical map.

    Parameters
    ----------
    service : SiibraService
    parcellation_id, space_id : str
    region : str
        Name of a mapped region.

    Returns
    -------
    MapRange

    Raises
    ------
    AtlasNotFound
        There is no such map.
    IntegrityError
        The values are no numbers: the service counts NaN in.
    """
    _, exact = find_statistical_region(service, parcellation_id, space_id, region)
    query = {"parcellation_id": parcellation_id, "region_id": exact, "space_id": space_id}
    answer = service.read("map", "statistical_map.info.json", **query)
    if not isinstance(answer, Mapping):
        service.refuse_answer("the range of a map")
    low, high = (_number(service, answer.get(key)) for key in ("min", "max"))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise IntegrityError(
            f"siibra gives the range {low} to {high} for {exact!r}: its map holds values that are "
            "no numbers; fetch the map and look at it with map_info."
        )
    return MapRange(low, high)


def _same(first: str, second: str) -> bool:
    return " ".join(first.split()).casefold() == " ".join(second.split()).casefold()


def _exactly(
    wanted: str, what: str, ask: Callable[[], _Item], everything: Callable[[], list[_Item]]
) -> _Item:
    """Ask for one thing; refuse it when it is called otherwise."""
    try:
        found = ask()
    except AtlasNotFound:
        known = [name for item in everything() for name in item.names]
        raise AtlasNotFound(
            f"siibra has no {what} called {wanted!r}; {_offer(wanted, known)}."
        ) from None
    if any(_same(wanted, name) for name in (found.id, *found.names)):
        return found
    items = everything()
    exact = [item for item in items if any(_same(wanted, n) for n in (item.id, *item.names))]
    if len(exact) == 1:
        return exact[0]
    if len(exact) > 1:
        ids = ", ".join(item.id for item in exact)
        raise AtlasNotFound(f"siibra has several of the {what} called {wanted!r}: {ids}.")
    known = [name for item in items for name in item.names]
    raise AtlasNotFound(
        f"siibra takes {wanted!r} for {found.names[0]!r}, which is not its id or name; "
        f"{_offer(wanted, known)}."
    )


def _offer(wanted: str, known: Sequence[str]) -> str:
    return f"there is {'; '.join(nearest_names(wanted, known)) or 'nothing'}"


def _text(service: SiibraService, model: Any, key: str) -> str:
    value = model.get(key) if isinstance(model, Mapping) else None
    if not isinstance(value, str) or not value:
        service.refuse_answer(f"a text for {key}")
    return value


def _number(service: SiibraService, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        service.refuse_answer("a number")
    return float(value)


def _part(service: SiibraService, model: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = model.get(key)
    if not isinstance(value, Mapping):
        service.refuse_answer(f"an object for {key}")
    return value


def _ids(service: SiibraService, models: Any) -> tuple[str, ...]:
    if models is None:
        return ()
    if not isinstance(models, list):
        service.refuse_answer("a list of ids")
    return tuple(_text(service, model, "@id") for model in models)


def _atlas(service: SiibraService, model: Any) -> SiibraAtlas:
    return SiibraAtlas(
        _text(service, model, "@id"),
        _text(service, model, "name"),
        str(model.get("species") or ""),
        _ids(service, model.get("spaces")),
        _ids(service, model.get("parcellations")),
    )


def _parcellation(service: SiibraService, model: Any) -> Parcellation:
    name = _text(service, model, "name")
    version = model.get("version") or {}
    previous, following = (
        str((version.get(key) or {}).get("@id") or "") for key in ("prev", "next")
    )
    spaces = [entry.get("coordinateSpace") for entry in model.get("brainAtlasVersions") or []]
    return Parcellation(
        _text(service, model, "@id"),
        name,
        str(model.get("shortname") or ""),
        str(model.get("modality") or ""),
        str(version.get("name") or ""),
        bool(version.get("deprecated")),
        previous,
        following,
        _ids(service, spaces),
    )


def _space(service: SiibraService, model: Any) -> Space:
    identifier = _text(service, model, "@id")
    return Space(
        identifier,
        _text(service, model, "fullName"),
        str(model.get("shortName") or ""),
        template_space(identifier),
    )


def _region(service: SiibraService, model: Any) -> Region:
    annotation = model.get("hasAnnotation") if isinstance(model, Mapping) else None
    annotation = annotation or {}
    return Region(
        _text(service, model, "@id"),
        _text(service, model, "name"),
        _ids(service, model.get("hasParent")),
        str(annotation.get("displayColor") or ""),
        _centroid(annotation.get("bestViewPoint")),
    )


def _centroid(point: Any) -> tuple[float, float, float] | None:
    values = [
        entry.get("value") for entry in (point or {}).get("coordinates") or [] if entry is not None
    ]
    if len(values) != 3 or not all(isinstance(value, int | float) for value in values):
        return None
    return float(values[0]), float(values[1]), float(values[2])


def _map(service: SiibraService, model: Any) -> SiibraMap:
    identifier = _text(service, model, "@id")
    publications = model.get("publications") or []
    citations = [entry.get("citation") for entry in publications if entry.get("citation")]
    urls = [entry.get("url") for entry in publications if entry.get("url")]
    indices = {
        name: tuple(_index(service, entry) for entry in entries)
        for name, entries in (model.get("indices") or {}).items()
    }
    return SiibraMap(
        identifier,
        _text(service, model, "name"),
        str(model.get("maptype") or ""),
        _text(service, _part(service, model, "parcellation"), "@id"),
        _text(service, _part(service, model, "space"), "@id"),
        " ".join(citations),
        urls[0] if urls else "",
        indices,
        tuple(_part(service, volume, "providedVolumes") for volume in model.get("volumes") or []),
    )


def _index(service: SiibraService, entry: Any) -> MapIndex:
    if not isinstance(entry, Mapping):
        service.refuse_answer("the indices of a map")
    volume, label = entry.get("volume") or 0, entry.get("label")
    if not isinstance(volume, int) or not (label is None or isinstance(label, int)):
        service.refuse_answer("the indices of a map")
    return MapIndex(volume, label, entry.get("fragment"))
