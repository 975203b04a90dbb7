"""Atlases of EBRAINS through siibra-api: a source that is asked only when it is named.

What the service lists is kept for a day, with its version, which is part of the key of all that
is cached: what was fetched once is found again without a request, and offline. The questions that
the service answers are in ``siibra_queries``, its files in ``siibra_maps``.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nb
import pandas as pd

from lacuna_nipype.atlases.cache import CachedFiles, CacheSlot, cached, file_stem, request_label
from lacuna_nipype.atlases.checking import grid_resolution
from lacuna_nipype.atlases.entries import (
    AtlasEntry,
    AtlasFiles,
    AtlasKind,
    AtlasNotFound,
    SourceUnavailable,
)
from lacuna_nipype.atlases.matching import nearest_names
from lacuna_nipype.atlases.siibra_maps import (
    build_labelled_map,
    fetch_region_mask,
    fetch_statistical_map,
    save_labelled_map,
)
from lacuna_nipype.atlases.siibra_queries import (
    Parcellation,
    Region,
    SiibraMap,
    find_labelled_map,
    find_statistical_region,
    get_region,
    list_maps,
    list_parcellations,
    list_siibra_regions,
    template_space,
)
from lacuna_nipype.atlases.siibra_service import SiibraService, service_url
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import get_data_dir, read_json, write_json, write_table
from lacuna_nipype.core.spaces import GRID_TOLERANCE_MM, Grid

logger = logging.getLogger("lacuna_nipype")

#: What the ids of this source start with.
PREFIX = "siibra:"
_DAY_SECONDS = 86_400.0
# Raised when the stored listing gets other fields.
_LISTING_FORM = 1
# Writes the files of a slot and gives what its metadata says of them.
_Maker = Callable[[CacheSlot], dict[str, Any]]


@dataclass(frozen=True)
class ListedAtlas:
    """A parcellation with a labelled map in a space in which volumes can be used.

    Parameters
    ----------
    id : str
        Starts with :data:`PREFIX`; the rest is made of the short name.
    entity : str
        Value of the ``atlas`` entity.
    name, shortname : str
    parcellation, space_id : str
        Ids of the service.
    space : str
        TemplateFlow name.
    """

    id: str
    entity: str
    name: str
    shortname: str
    parcellation: str
    space_id: str
    space: str


@dataclass(frozen=True)
class Listing:
    """What the service listed.

    Parameters
    ----------
    version : str
        Of the service.
    atlases : tuple of ListedAtlas
    """

    version: str
    atlases: tuple[ListedAtlas, ...]


class SiibraSource:
    """Labelled maps, masks and statistical maps of siibra.

    Parameters
    ----------
    service : SiibraService, optional
        Made from LACUNA_SIIBRA_URL when it is needed and left out.
    offline : bool
        Make no request: only what was listed and fetched before is there.
    refresh : bool
        Ask the service even for what is there.
    verify : bool
        Compare stored files with their SHA-256.
    """

    name: str = "siibra"

    def __init__(
        self,
        service: SiibraService | None = None,
        *,
        offline: bool = False,
        refresh: bool = False,
        verify: bool = False,
    ) -> None:
        self._service = service
        self._offline, self._refresh, self._verify = offline, refresh, verify
        self._listing: Listing | None = None
        self._url = service.url if service is not None else service_url()

    def entries(self) -> list[AtlasEntry]:
        """List the parcellations that have a labelled map in a space for volumes.

        Returns
        -------
        list of AtlasEntry
            In the order of the service. Aliases are the id without its prefix, and the id, name
            and short name of the service, with the prefix and without.

        Raises
        ------
        SourceUnavailable
            The service cannot be reached; offline, it was never listed.
        """
        return [_entry(atlas, self._url) for atlas in self.listing().atlases]

    def listing(self) -> Listing:
        """Give what the service listed within the last day, or ask it.

        Returns
        -------
        Listing

        Raises
        ------
        SourceUnavailable
            As in :meth:`entries`.
        """
        if self._listing is None:
            path = _listing_path(self._url)
            stored = None if self._refresh else _read_listing(path, self._url)
            if stored is not None and (self._offline or _age_seconds(path) < _DAY_SECONDS):
                self._listing = stored
            else:
                self._listing = self._ask_listing(has_old=stored is not None)
                _write_listing(path, self._url, self._listing)
        return self._listing

    def _ask_listing(self, has_old: bool) -> Listing:
        service = self._online("its list of atlases", "atlas list --source siibra")
        try:
            return ask_listing(service)
        except SourceUnavailable as error:
            if has_old:
                raise SourceUnavailable(
                    f"{error} What was fetched before is there with --offline."
                ) from error
            raise

    def fetch(self, entry: AtlasEntry, resolution: float | None, target_dir: Path) -> AtlasFiles:
        """Fetch a labelled map, or find it in the cache.

        Parameters
        ----------
        entry : AtlasEntry
            One of :meth:`entries`.
        resolution : float or None
            Voxel size in mm; the service has one for each map, so any other is refused.
        target_dir : Path
            Folder of the cache.

        Returns
        -------
        AtlasFiles
            The table has the columns ``index`` (from 1 without gaps), ``name``, ``hemisphere``
            and ``source``.

        Raises
        ------
        AtlasNotFound
            The service has no such map any more.
        IntegrityError
            What came is not whole, or its parts do not fit together.
        SourceUnavailable
            The service cannot be reached; offline, the map was never fetched.
        ValidationError
            The map is of another resolution.
        SpatialMismatchError
            The map lies on the grid of another space.
        """
        atlas = self._listed(entry)
        request = self._request(atlas, "labelled map")
        stem = file_stem(atlas.space, entry.entities, None, "dseg")

        def make(slot: CacheSlot) -> dict[str, Any]:
            service = self._online(
                f"{entry.id} in {entry.space}",
                f"atlas fetch {entry.id} --space {entry.space}",
            )
            found = find_labelled_map(service, atlas.parcellation, atlas.space_id)
            result = build_labelled_map(service, found, atlas.space, slot.image.parent)
            save_labelled_map(result, slot.image, slot.labels)
            return {**result.to_dict(), **_origin(found)}

        stored, from_cache = self._cached(target_dir, stem, request, make)
        files = _files(entry, stored, from_cache)
        if resolution is not None and not _same_size(files.resolution, resolution):
            raise ValidationError(
                f"siibra has {entry.id} with voxels of {_size_text(files.resolution)} only, not "
                f"{resolution:g} mm; leave the resolution out, and resample it afterwards."
            )
        return files

    def fetch_region(
        self,
        entry: AtlasEntry,
        region: str,
        target_dir: Path,
        *,
        statistical: bool = False,
    ) -> AtlasFiles:
        """Fetch the mask or the statistical map of one region, or find it in the cache.

        Parameters
        ----------
        entry : AtlasEntry
            One of :meth:`entries`.
        region : str
            Exact name; case is ignored. A mask can be had of an inner node as well, a
            statistical map of a mapped region only.
        target_dir : Path
            Folder of the cache.
        statistical : bool
            The statistical map instead of the mask.

        Returns
        -------
        AtlasFiles
            The image is 3D: a mask of 0 and 1, or probabilities or other values above 0. The
            metadata of a statistical map has ``Minimum`` and ``Maximum``. The table has one row.

        Raises
        ------
        AtlasNotFound
            There is no such region or map; the message offers the nearest names.
        IntegrityError, SourceUnavailable, SpatialMismatchError
            As in :meth:`fetch`.
        """
        atlas = self._listed(entry)
        what = "statistical map" if statistical else "region mask"
        name = " ".join(region.split())
        # Names that differ in case are one region, so they share a place in the cache.
        request = {**self._request(atlas, what), "Region": name.casefold()}
        suffix = "probseg" if statistical else "mask"
        stem = file_stem(atlas.space, entry.entities, None, suffix, request_label(request))

        def make(slot: CacheSlot) -> dict[str, Any]:
            option = "--statistical" if statistical else "--region"
            service = self._online(
                f"the {what} of {name} of {entry.id}",
                f"atlas fetch {entry.id} --space {entry.space} {option} '{name}'",
            )
            return _make_region(service, atlas, name, statistical, slot)

        stored, from_cache = self._cached(target_dir, stem, request, make)
        kind: AtlasKind = "probabilistic" if statistical else "labelled"
        return _files(replace(entry, kind=kind), stored, from_cache)

    def list_regions(self, entry: AtlasEntry, find: str | None = None) -> list[Region]:
        """Ask for the tree of regions, inner nodes included.

        Parameters
        ----------
        entry : AtlasEntry
            One of :meth:`entries`.
        find : str, optional
            Text to look for.

        Returns
        -------
        list of Region

        Raises
        ------
        SourceUnavailable
            The service cannot be reached, or this source is offline.
        """
        atlas = self._listed(entry)
        service = self._online(f"the regions of {entry.id}", f"atlas regions {entry.id}")
        return list_siibra_regions(service, atlas.parcellation, find)

    def _cached(
        self, folder: Path, stem: str, request: Mapping[str, Any], make: _Maker
    ) -> tuple[CachedFiles, bool]:
        with cached(
            folder,
            stem,
            request,
            self.listing().version,
            refresh=self._refresh,
            verify=self._verify,
        ) as slot:
            if slot.stored is not None:
                return slot.stored, True
            stored = slot.commit({"Source": self.name, **make(slot)})
        self._forget_old_listing()
        return stored, False

    def _forget_old_listing(self) -> None:
        """Let the next run list anew when the service has another version than its listing."""
        version = self._service.version if self._service is not None else ""
        if version and version != self.listing().version:
            logger.warning("siibra is now of version %s; it is listed anew next time.", version)
            _listing_path(self._url).unlink(missing_ok=True)

    def _request(self, atlas: ListedAtlas, what: str) -> dict[str, Any]:
        return {
            "Service": self._url,
            "What": what,
            "Parcellation": atlas.parcellation,
            "Space": atlas.space_id,
        }

    def _listed(self, entry: AtlasEntry) -> ListedAtlas:
        for atlas in self.listing().atlases:
            if (atlas.id, atlas.space) == (entry.id, entry.space):
                return atlas
        offer = nearest_names(entry.id, [atlas.id for atlas in self.listing().atlases])
        raise AtlasNotFound(
            f"siibra has no {entry.id} in {entry.space}; there is {', '.join(offer) or 'nothing'}."
        )

    def _online(self, what: str, command: str) -> SiibraService:
        if self._offline:
            raise SourceUnavailable(
                f"siibra is asked offline, and {what} is not there; run once with a network: "
                f"lacuna-nipype {command}"
            )
        if self._service is None:
            self._service = SiibraService(self._url)
        return self._service


def ask_listing(service: SiibraService) -> Listing:
    """Ask for the parcellations with labelled maps in spaces for volumes.

    Parameters
    ----------
    service : SiibraService

    Returns
    -------
    Listing

    Raises
    ------
    SourceUnavailable
        The service cannot be reached.
    """
    parcellations = {item.id: item for item in list_parcellations(service)}
    places: dict[tuple[str, str], str] = {}
    for found in list_maps(service, "LABELLED"):
        space = template_space(found.space)
        if space is not None and found.parcellation in parcellations:
            places[found.parcellation, found.space] = space
    used = [parcellations[key] for key in dict.fromkeys(key for key, _ in places)]
    labels = dict(zip([item.id for item in used], _labels(used), strict=True))
    atlases = [
        ListedAtlas(
            PREFIX + labels[key].lower(),
            labels[key],
            parcellations[key].name,
            parcellations[key].shortname,
            key,
            space_id,
            space,
        )
        for (key, space_id), space in places.items()
    ]
    return Listing(service.version or "unknown", tuple(atlases))


def _labels(parcellations: Sequence[Parcellation]) -> list[str]:
    """Give each parcellation letters and digits of its own, of its short name where that is one's.

    Where neither that nor the name is its own, the id is added.
    """
    short = [_letters(item.shortname) for item in parcellations]
    long = [_letters(item.name) for item in parcellations]
    counts = [Counter(text.lower() for text in texts) for texts in (short, long)]
    labels = []
    for item, *texts in zip(parcellations, short, long, strict=True):
        own = [
            text
            for text, count in zip(texts, counts, strict=True)
            if text and count[text.lower()] == 1
        ]
        labels.append(own[0] if own else _letters(item.name + item.id))
    clashes = Counter(label.lower() for label in labels)
    return [
        label if clashes[label.lower()] == 1 else _letters(label + item.id)
        for label, item in zip(labels, parcellations, strict=True)
    ]


def _letters(text: str) -> str:
    return "".join(letter for letter in text if letter.isascii() and letter.isalnum())


def _entry(atlas: ListedAtlas, url: str) -> AtlasEntry:
    names = [name for name in (atlas.parcellation, atlas.name, atlas.shortname) if name]
    # With the prefix, a name is enough for the catalogue to ask this source.
    aliases = [atlas.id.removeprefix(PREFIX), *names, *(PREFIX + name for name in names)]
    return AtlasEntry(
        id=atlas.id,
        name=atlas.name,
        kind="labelled",
        space=atlas.space,
        resolutions=(),
        n_regions=None,
        source="siibra",
        entities={"atlas": atlas.entity},
        url=url,
        aliases=tuple(dict.fromkeys(aliases)),
    )


def _make_region(
    service: SiibraService, atlas: ListedAtlas, name: str, statistical: bool, slot: CacheSlot
) -> dict[str, Any]:
    where = (service, atlas.parcellation, atlas.space_id)
    facts: dict[str, Any] = {}
    if statistical:
        found, exact = find_statistical_region(*where, name)
        facts = fetch_statistical_map(*where, exact, atlas.space, slot.image)
    else:
        found = find_labelled_map(*where)
        exact = get_region(service, atlas.parcellation, name).name
        fetch_region_mask(*where, exact, atlas.space, slot.image)
    write_table(slot.labels, pd.DataFrame({"index": [1], "name": [" ".join(exact.split())]}))
    return {"Region": exact, **facts, **_origin(found)}


def _origin(found: SiibraMap) -> dict[str, Any]:
    # The service gives no licence; an empty text would look like one that was looked up.
    return {"Name": found.name, "Map": found.id, "URL": found.url, "Citation": found.citation}


def _files(entry: AtlasEntry, stored: CachedFiles, from_cache: bool) -> AtlasFiles:
    header = nb.load(stored.image)
    resolution = grid_resolution(Grid.make(header.shape[:3], header.affine))
    content = stored.content
    known = replace(
        entry,
        resolutions=() if resolution is None else (resolution,),
        n_regions=int(content.get("Regions", 1)),
        citation=str(content.get("Citation") or ""),
        url=str(content.get("URL") or entry.url),
    )
    return AtlasFiles(
        image=stored.image,
        labels=stored.labels,
        metadata=stored.metadata,
        from_cache=from_cache,
        entry=known,
        resolution=resolution,
        sha256=stored.sha256,
    )


def _same_size(found: float | None, wanted: float) -> bool:
    return found is not None and abs(found - wanted) <= GRID_TOLERANCE_MM


def _size_text(size: float | None) -> str:
    return "unequal edges" if size is None else f"{size:g} mm"


def _listing_path(url: str) -> Path:
    label = hashlib.sha256(url.encode()).hexdigest()[:12]
    return get_data_dir() / "atlases" / "siibra" / f"listing-{label}.json"


def _age_seconds(path: Path) -> float:
    age = time.time() - path.stat().st_mtime
    # A time in the future says nothing about the age.
    return age if age >= 0 else _DAY_SECONDS


def _read_listing(path: Path, url: str) -> Listing | None:
    """Read a stored listing; None where there is none, or none that this version understands."""
    try:
        content = read_json(path)
        if (content["Form"], content["URL"]) != (_LISTING_FORM, url):
            return None
        atlases = tuple(ListedAtlas(**fields) for fields in content["Atlases"])
        return Listing(str(content["Version"]), atlases)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        logger.warning("%s is damaged; the service is asked again.", path)
        return None


def _write_listing(path: Path, url: str, listing: Listing) -> None:
    write_json(
        path,
        {
            "Form": _LISTING_FORM,
            "URL": url,
            "Version": listing.version,
            "Atlases": [asdict(atlas) for atlas in listing.atlases],
        },
    )
