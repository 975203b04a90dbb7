"""An atlas as one zip file to hand on: the same request gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from lacuna_nipype import __version__
from lacuna_nipype.atlases.cache import file_sha256
from lacuna_nipype.atlases.entries import (
    AtlasEntry,
    AtlasFiles,
    IntegrityError,
    SourceUnavailable,
)
from lacuna_nipype.atlases.labels import read_labels
from lacuna_nipype.atlases.services import (
    Datasets,
    _find,
    _source_of,
    _sources,
    fetch_parcellation,
)
from lacuna_nipype.core.exceptions import LacunaError, ValidationError
from lacuna_nipype.core.files import atomic_path, read_json
from lacuna_nipype.core.spaces import GRID_TOLERANCE_MM

MANIFEST, ERRORS = "manifest.json", "errors.json"
LICENSE, CITATION = "LICENSE.txt", "CITATION.txt"
# Raised when members or keys of the manifest change their meaning.
_FORM = 1
# The earliest date that a zip file can hold.
_DATE = (1980, 1, 1, 0, 0, 0)
_READ_BYTES = 1 << 20
# What differs between two copies of the same atlas in the cache.
_CHANGING = ("RetrievedAt", "GeneratedBy", "Key", "Files", "Size")
# TemplateFlow's numbers of its T1-weighted templates by voxel size in mm; None where the name has
# no number.
_TEMPLATES: dict[str, dict[float, str | None]] = {
    "MNI152NLin6Asym": {0.5: "03", 1.0: "01", 2.0: "02"},
    "MNI152NLin2009cAsym": {1.0: "01", 2.0: "02"},
    "MNI152NLin2009aAsym": {1.0: "1"},
    "MNI152NLin2009bAsym": {0.5: "1"},
    "MNIColin27": {1.0: None},
}


# Folder, and option of fetch_parcellation, of what a bundle has for single regions.
_REGIONAL = {"mask": ("regions", "region"), "statistical map": ("statistical", "statistical")}


class BundleError(LacunaError):
    """A part of a bundle could not be had, so nothing was written."""


@dataclass(frozen=True)
class MissingPart:
    """A part that was left out.

    Parameters
    ----------
    part : str
        What was asked for, such as ``the mask of Left Pallidum``.
    error : str
        Class of the error.
    message : str
        Its sentence.
    """

    part: str
    error: str
    message: str


@dataclass(frozen=True)
class Bundle:
    """A zip file that was written.

    Parameters
    ----------
    path : Path
    entry : AtlasEntry
    members : tuple of str
        Names in the file, in their order.
    missing : tuple of MissingPart
        Empty unless parts could be left out.
    sha256 : str
        Of the zip file.
    """

    path: Path
    entry: AtlasEntry
    members: tuple[str, ...]
    missing: tuple[MissingPart, ...]
    sha256: str


@dataclass(frozen=True)
class _Member:
    """A file of the bundle: a path, or its text.

    Images carry the SHA-256 that the catalogue knows and their metadata; ``facts`` go into the
    manifest.
    """

    name: str
    content: Path | str
    facts: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Request:
    """What a bundle is made of, and how its parts are fetched."""

    entry: AtlasEntry
    resolution: float | None
    regions: tuple[str, ...]
    statistical: tuple[str, ...]
    template: bool
    options: dict[str, Any]
    refresh: bool

    def fetch(self, **choice: Any) -> AtlasFiles:
        # The masks of a local atlas are cut from its image, which is renewed once.
        refresh = self.refresh and (not choice or self.entry.source == "siibra")
        options = {**self.options, "source": self.entry.source, "refresh": refresh}
        entry = self.entry
        return fetch_parcellation(entry.id, entry.space, self.resolution, **choice, **options)

    def to_dict(self) -> dict[str, Any]:
        return {
            "Id": self.entry.id,
            "Space": self.entry.space,
            "Resolution": self.resolution,
            "Source": self.entry.source,
            "Regions": list(self.regions),
            "Statistical": list(self.statistical),
            "Template": self.template,
        }


def bundle_atlas(
    id: str,  # noqa: A002 - the word of the catalogue
    target: Path,
    space: str | None = None,
    resolution: float | None = None,
    *,
    regions: Sequence[str] = (),
    statistical: Sequence[str] = (),
    template: bool = False,
    source: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    verify: bool = False,
    datasets: Datasets = (),
    keep_going: bool = False,
    overwrite: bool = False,
) -> Bundle:
    """Write an atlas, with all that it takes to use and to cite it, into a zip file.

    The file holds the image and the table and metadata of the same stem, ``LICENSE.txt``,
    ``CITATION.txt``, what else was asked for, and at last ``manifest.json`` with the request, the
    versions, and the SHA-256 of every other member. Members have a fixed order and date, so that
    the same request gives the same bytes.

    Parameters
    ----------
    id : str
        Id or alias.
    target : Path
        Ends in ``.zip``.
    space : str, optional
        Name or alias; needed where the atlas is in several spaces.
    resolution : float, optional
        Voxel size in mm; the finest when left out.
    regions : sequence of str
        Regions whose masks to add, in the folder ``regions``.
    statistical : sequence of str
        Regions whose statistical maps to add, in the folder ``statistical``; siibra has them.
    template : bool
        Add the space's T1-weighted template of TemplateFlow, in the folder ``template``.
    source, offline, refresh, verify, datasets
        See :func:`~lacuna_nipype.atlases.services.fetch_parcellation`.
    keep_going : bool
        Leave out what cannot be had, and say so in ``errors.json``.
    overwrite : bool
        Replace the file.

    Returns
    -------
    Bundle

    Raises
    ------
    BundleError
        A part cannot be had, or with ``keep_going`` all of the atlas. The target is as before.
    AtlasNotFound, SpaceMismatch, SourceUnavailable
        There is no such atlas, or its source cannot be asked.
    ValidationError
        The target exists or is no ``.zip``, or the name means several atlases.
    """
    target = Path(target)
    if target.suffix.lower() != ".zip":
        raise ValidationError(f"{target} does not end in .zip, which is what a bundle is.")
    if target.exists() and not overwrite:
        raise ValidationError(f"{target} exists; add --overwrite (overwrite=True) to replace it.")
    # As get_atlas does, but never over the network when offline.
    entry, _ = _find(id, space, _sources(_source_of(id, source), datasets, offline=offline))
    if resolution is None and entry.resolutions:
        resolution = entry.resolutions[0]
    request = _Request(
        entry, resolution, _each_once(regions), _each_once(statistical), template,
        {"offline": offline, "verify": verify, "datasets": datasets}, refresh,
    )  # fmt: skip
    members, missing = _collect(request, keep_going)
    if missing:
        members.append(_Member(ERRORS, _json({"Errors": [vars(part) for part in missing]})))
    with atomic_path(target) as temporary:
        _write_zip(temporary, members, request)
        digest = file_sha256(temporary)
    names = (*(member.name for member in members), MANIFEST)
    return Bundle(target, entry, names, tuple(missing), digest)


def _each_once(names: Iterable[str]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(name.strip().casefold(), name.strip())
    return tuple(found.values())


# Parts


def _collect(request: _Request, keep_going: bool) -> tuple[list[_Member], list[MissingPart]]:
    """Fetch all parts; those that fail are an error, or noted."""
    members: list[_Member] = []
    missing: list[MissingPart] = []
    taken: set[str] = set()
    parts = list(_parts(request, taken))
    remedy = "; --keep-going (keep_going=True) leaves out what is missing"
    hint = remedy if len(parts) > 1 else ""
    for what, make in parts:
        try:
            members += make()
        except LacunaError as error:
            if not keep_going:
                raise BundleError(
                    f"{what} cannot be had, so no bundle was written{hint}. {error}"
                ) from error
            missing.append(MissingPart(what, type(error).__name__, str(error)))
    if not any(member.metadata for member in members):
        raise BundleError(
            f"Nothing of {request.entry.id} can be had, so no bundle was written. "
            f"{missing[0].message}"
        )
    return [*_legal_texts(request, members), *members], missing


def _parts(
    request: _Request, taken: set[str]
) -> Iterator[tuple[str, Callable[[], list[_Member]]]]:
    """Give each part's name for messages, and what makes its members."""
    entry = request.entry
    yield f"The image of {entry.id}", partial(_whole, request)
    for name in request.regions:
        yield f"The mask of {name}", partial(_regional, request, "mask", name, taken)
    for name in request.statistical:
        part = partial(_regional, request, "statistical map", name, taken)
        yield f"The statistical map of {name}", part
    if request.template:
        yield f"The template of {entry.space}", partial(_template_members, request)


def _whole(request: _Request) -> list[_Member]:
    files = request.fetch()
    return _atlas_members(files, request.entry, _stem(files.image), {"Kind": "atlas"})


def _regional(request: _Request, kind: str, name: str, taken: set[str]) -> list[_Member]:
    folder, option = _REGIONAL[kind]
    files = request.fetch(**{option: name})
    (found,) = read_labels(files.labels)
    stem = _regional_stem(files.image, found.name, taken)
    facts = {"Kind": kind, "Region": found.name}
    return _atlas_members(files, request.entry, f"{folder}/{stem}", facts)


def _stem(image: Path) -> str:
    return image.name.removesuffix(".gz").removesuffix(".nii")


def _regional_stem(image: Path, region: str, taken: set[str]) -> str:
    """Name a regional image after its region, instead of after its request."""
    fields = [part for part in _stem(image).split("_") if not part.startswith("desc-")]
    label = "".join(letter for letter in region if letter.isascii() and letter.isalnum())
    wanted, number = label or "region", 1
    # Names that differ in other signs alone get a number.
    while "_".join([*fields, wanted]).casefold() in taken:
        number += 1
        wanted = f"{label or 'region'}{number}"
    taken.add("_".join([*fields, wanted]).casefold())
    return "_".join([*fields[:-1], f"desc-{wanted}", fields[-1]])


def _atlas_members(
    files: AtlasFiles, entry: AtlasEntry, stem: str, facts: dict[str, Any]
) -> list[_Member]:
    ending = ".nii.gz" if files.image.name.endswith(".gz") else ".nii"
    metadata = {
        "Id": entry.id,
        "Name": entry.name,
        "SpaceName": entry.space,
        "License": entry.license,
        "Citation": entry.citation,
        "URL": entry.url,
        **_lasting_metadata(files.metadata),
        "SHA256": files.sha256,
    }
    facts = {**facts, "SourceVersion": metadata.get("SourceVersion")}
    return [
        _Member(f"{stem}{ending}", files.image, facts, files.sha256, metadata),
        _Member(f"{stem}.tsv", files.labels),
        _Member(f"{stem}.json", _json(metadata)),
    ]


def _lasting_metadata(path: Path | None) -> dict[str, Any]:
    """Read the metadata of an atlas without what depends on when and where it was fetched."""
    if path is None:
        return {}
    try:
        content = read_json(path)
    except ValueError as error:
        raise IntegrityError(f"{path} is not valid JSON; repair or remove it.") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"{path} holds no JSON object; repair or remove it.")
    return {key: value for key, value in content.items() if value and key not in _CHANGING}


def _template_members(request: _Request) -> list[_Member]:
    """Find the template, or fetch it."""
    from lacuna_nipype.atlases.checking import read_volumes
    from lacuna_nipype.atlases.parcels import open_atlas
    from lacuna_nipype.atlases.templates import (
        TemplateFetchError,
        fetch_template,
        templateflow_home,
    )
    from lacuna_nipype.core.spaces import check_declared_space

    need = _template_need(request.entry.space, request.resolution)
    path = need.path
    if path is None and request.options["offline"]:
        raise SourceUnavailable(
            f"TemplateFlow's {need.name} is missing from {templateflow_home()}; make the bundle "
            "once without --offline where there is a network."
        )
    if path is None:
        # Its list comes with the client; it is not to look for a newer one.
        os.environ["TEMPLATEFLOW_AUTOUPDATE"] = "off"
        try:
            path = fetch_template(need)
        except TemplateFetchError as error:
            raise SourceUnavailable(str(error)) from error
    name = f"TemplateFlow's {path}"
    image, grid, _ = open_atlas(path)
    check_declared_space(request.entry.space, grid, name)
    for _ in read_volumes(image, name):
        pass
    return [_Member(f"template/{path.name}", path, {"Kind": "template", "File": need.name})]


def _template_need(space: str, resolution: float | None) -> Any:
    from lacuna_nipype.atlases.templates import template_need

    numbers = _TEMPLATES.get(space)
    if numbers is None:
        raise SourceUnavailable(f"There is no template of {space}; leave --template out.")
    wanted = 1.0 if resolution is None else resolution
    # The finer one where two are as near.
    size = min(sorted(numbers), key=lambda size: round(abs(size - wanted) / GRID_TOLERANCE_MM))
    number = numbers[size]
    field_text = f"_res-{number}" if number else ""
    return template_need(
        "template", space, f"tpl-{space}{field_text}_T1w.nii.gz", (space,),
        resolution=int(number) if number else None, atlas=None, desc=None, suffix="T1w",
        extension=".nii.gz",
    )  # fmt: skip


# Texts


def _legal_texts(request: _Request, members: Sequence[_Member]) -> list[_Member]:
    """Write what may be done with the atlas, and what to cite, in words."""
    entry = request.entry
    said = next(member.metadata for member in members if member.metadata)
    title = f"{entry.name} ({entry.id}, {entry.space})"
    ask = "The licence is not known to this package; ask the authors before you pass it on."
    where = f"\nSee {said['URL']}" if said["URL"] else ""
    licence = f"{title}\n{said['License'] or ask}{where}\n"
    template = next((m for m in members if m.facts.get("Kind") == "template"), None)
    if template is not None:
        licence += f"\n{template.name}\n{_template_licence(entry.space)}\n"
    unknown = "No citation is known to this package; ask the authors for one."
    return [
        _Member(LICENSE, licence),
        _Member(CITATION, f"{title}\n{said['Citation'] or unknown}{where}\n"),
    ]


def _template_licence(space: str) -> str:
    """Give the licence that TemplateFlow keeps beside a template."""
    from lacuna_nipype.atlases.templates import find_template

    path = find_template(f"tpl-{space}/LICENSE")
    if path is None:
        return "The template's licence is that of TemplateFlow's folder: https://templateflow.org"
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


# The file


def _write_zip(path: Path, members: Sequence[_Member], request: _Request) -> None:
    listed = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member in members:
            size, digest = _add(archive, member)
            # The bytes that went in are those that the catalogue checked.
            if member.sha256 and digest != member.sha256:
                raise IntegrityError(f"{member.content} changed meanwhile; make the bundle again.")
            listed.append({"Name": member.name, "Size": size, "SHA256": digest, **member.facts})
        _add(archive, _Member(MANIFEST, _json(_manifest(request, listed))))


def _manifest(request: _Request, listed: list[dict[str, Any]]) -> dict[str, Any]:
    entry = request.entry
    return {
        "Form": _FORM,
        "Request": request.to_dict(),
        "Name": entry.name,
        "Kind": entry.kind,
        "Entities": dict(entry.entities),
        "GeneratedBy": {"Name": "lacuna-nipype", "Version": __version__},
        "Members": listed,
    }


def _add(archive: zipfile.ZipFile, member: _Member) -> tuple[int, str]:
    """Add a member; its size and SHA-256."""
    info = zipfile.ZipInfo(member.name, _DATE)
    # As a plain file of Unix that all may read, wherever it is made. Images are compressed
    # already, and what zlib makes of the texts could differ between its versions.
    info.create_system, info.external_attr = 3, 0o100644 << 16
    info.compress_type = zipfile.ZIP_STORED
    digest, size = hashlib.sha256(), 0
    with closing(_open(member)) as stream, archive.open(info, "w", force_zip64=True) as out:
        for block in iter(lambda: stream.read(_READ_BYTES), b""):
            digest.update(block)
            out.write(block)
            size += len(block)
    return size, digest.hexdigest()


def _open(member: _Member) -> IO[bytes]:
    if isinstance(member.content, Path):
        return member.content.open("rb")
    return io.BytesIO(member.content.encode("utf-8"))
