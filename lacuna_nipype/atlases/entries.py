"""What the catalogue of atlases holds: entries, files, the protocol of a source, and errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from lacuna_nipype.core.exceptions import LacunaError, SpatialMismatchError

AtlasKind = Literal["labelled", "probabilistic"]
SourceName = Literal["user", "bids", "bundled", "templateflow", "siibra"]

#: Sources in the order in which an id is looked for; siibra is asked only when it is named.
SOURCE_ORDER: tuple[SourceName, ...] = ("user", "bids", "bundled", "templateflow", "siibra")


class AtlasNotFound(LacunaError, KeyError):  # noqa: N818 - a state, like FileNotFound
    """No source has such an atlas, region or map."""

    # A KeyError would show its message in quotes.
    __str__ = Exception.__str__


class SpaceMismatch(SpatialMismatchError):  # noqa: N818
    """An atlas is not in the space in which it is wanted."""


class SourceUnavailable(LacunaError):  # noqa: N818
    """A source has an atlas, but cannot give it now: no network, or its files are missing."""


class IntegrityError(LacunaError):
    """A file is not what was asked for, or no longer what was stored."""


@dataclass(frozen=True)
class AtlasEntry:
    """An atlas in one space.

    Parameters
    ----------
    id : str
        Name that selects it, such as ``schaefer2018parcels100networks7``. The same atlas in two
        spaces is two entries with one id.
    name : str
        Name for people.
    kind : {"labelled", "probabilistic"}
        One 3D image of whole numbers, or a 4D image with one volume for each region.
    space : str
        TemplateFlow name.
    resolutions : tuple of float
        Voxel sizes in mm, finest first; empty where they are not known before it is fetched.
    n_regions : int or None
        None where it is not known before the atlas is fetched.
    source : {"user", "bids", "bundled", "templateflow", "siibra"}
    entities : mapping of str to str
        BIDS entities ``atlas``, ``seg`` and ``scale``, those that it has.
    citation, license, url : str
        Empty where they are not known.
    aliases : tuple of str
        Other names that select it, such as ``Schaefer2018_100Parcels7Networks``.
    """

    id: str
    name: str
    kind: AtlasKind
    space: str
    resolutions: tuple[float, ...]
    n_regions: int | None
    source: SourceName
    entities: Mapping[str, str] = field(hash=False)
    citation: str = ""
    license: str = ""
    url: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class AtlasFiles:
    """An atlas on this machine.

    Parameters
    ----------
    image : Path
        NIfTI image.
    labels : Path
        Table with the columns ``index`` and ``name``, separated by tabs.
    metadata : Path or None
        JSON; None where the source has none.
    from_cache : bool
        It was there before it was asked for.
    entry : AtlasEntry
    resolution : float or None
        Voxel size in mm; None where the voxels are not cubes.
    sha256 : str
        Of the image.
    """

    image: Path
    labels: Path
    metadata: Path | None
    from_cache: bool
    entry: AtlasEntry
    resolution: float | None
    sha256: str


@runtime_checkable
class AtlasSource(Protocol):
    """Where atlases come from."""

    name: str

    def entries(self) -> Iterable[AtlasEntry]:
        """List what the source has; only a remote source may use the network for this."""
        ...

    def fetch(self, entry: AtlasEntry, resolution: float | None, target_dir: Path) -> AtlasFiles:
        """Bring an atlas to this machine.

        Parameters
        ----------
        entry : AtlasEntry
            One of :meth:`entries`.
        resolution : float or None
            Voxel size in mm; None for the finest.
        target_dir : Path
            Folder of the cache. A source whose files stay where they are leaves it alone.

        Returns
        -------
        AtlasFiles

        Raises
        ------
        SourceUnavailable
            The files are missing and cannot be had now.
        ValidationError
            There is no such resolution, or the files cannot be used.
        """
        ...
