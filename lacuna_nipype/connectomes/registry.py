"""Connectomes by name: a list in the data folder that runs and commands look names up in.

The list is one JSON file, ``<data folder>/connectomes/registry.json``. Changes are made under a
lock, so that two processes that register at once both find their entry, and the file is replaced
as a whole. A second file, ``registry.json.bak``, has the same content; it is written after the
first, so that one of the two is whole whatever happens.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lacuna_nipype.core.exceptions import SpatialMismatchError, ValidationError
from lacuna_nipype.core.files import (
    atomic_path,
    combined_fingerprint,
    get_data_dir,
    lock_file,
    read_json,
)

KINDS = ("functional", "structural")
FORMAT_VERSION = 1
# Those that runs offer for maps of tractograms.
MAP_RESOLUTIONS = (1.0, 2.0)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_NAMES = 8
_RESOLUTION_TOLERANCE_MM = 1e-3
_READ_BYTES = 1 << 20


class RegistryUnavailableError(ValidationError):
    """The registry's folder is not known, or this user may not read it."""


@dataclass(frozen=True)
class RegisteredConnectome:
    """One entry of the registry.

    Parameters
    ----------
    name : str
        As it was given; names that differ in case only are one name.
    kind : {"functional", "structural"}
    path : Path
        Absolute: HDF5 file or folder of them, tractogram, or streamline index.
    space : str
        TemplateFlow name.
    resolution : float or None
        Voxel size in mm: of the functional grid, or of the maps that a tractogram is for. None
        for a grid whose voxels are not cubes, and for a tractogram of which it was not said.
    n_subjects : int
        0 where it is not known, as for most tractograms.
    citation, licence : str
        Empty where not given.
    fingerprint : str
        Of the content when it was registered; see :func:`content_fingerprint`.
    added_on : str
        Time in UTC, ISO 8601.
    """

    name: str
    kind: str
    path: Path
    space: str
    resolution: float | None
    n_subjects: int
    citation: str
    licence: str
    fingerprint: str
    added_on: str


def registry_file() -> Path:
    """Give the place of the registry, whether or not it is there.

    Returns
    -------
    Path

    Raises
    ------
    ValidationError
        As :func:`get_data_dir`.
    """
    try:
        return get_data_dir() / "connectomes" / "registry.json"
    except ValidationError as error:
        raise RegistryUnavailableError(str(error)) from error


def list_registered() -> list[RegisteredConnectome]:
    """List the registered connectomes by name.

    Returns
    -------
    list of RegisteredConnectome
        Empty where nothing was registered yet.

    Raises
    ------
    ValidationError
        The registry is damaged, of a newer version, or cannot be read.
    """
    return _read(registry_file())


def find_registered(name: str) -> RegisteredConnectome | None:
    """Find a registered connectome by its name, whatever its case.

    Parameters
    ----------
    name : str

    Returns
    -------
    RegisteredConnectome or None
        The files may be gone or changed; see :func:`find_change`.

    Raises
    ------
    ValidationError
        As :func:`list_registered`.
    """
    return _by_name(list_registered(), name)


def registered_at(path: str | os.PathLike[str]) -> RegisteredConnectome | None:
    """Find the entry of a path, however the path is written.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    RegisteredConnectome or None
        None also where this user has no registry to read, because a path needs none. The files
        may have changed; see :func:`find_change`.

    Raises
    ------
    ValidationError
        The registry is damaged or of a newer version.
    """
    try:
        return _by_path(list_registered(), Path(path))
    except RegistryUnavailableError:
        return None


def registered_space(name_or_path: str | os.PathLike[str]) -> str | None:
    """Give the space of a registered connectome.

    Parameters
    ----------
    name_or_path : str or path-like
        A path that exists, or a name.

    Returns
    -------
    str or None
        TemplateFlow name. None for what is not registered, or is gone or not what was registered
        any more.

    Raises
    ------
    ValidationError
        The registry is damaged or of a newer version.
    """
    entry = registered_at(name_or_path)
    if entry is None and not Path(name_or_path).exists():
        entry = find_registered(str(name_or_path))
    return None if entry is None or find_change(entry) else entry.space


def find_change(entry: RegisteredConnectome) -> str | None:
    """Compare a registered connectome with the files that are there now.

    Parameters
    ----------
    entry : RegisteredConnectome

    Returns
    -------
    str or None
        One sentence on what is wrong; None where the content is what was registered.
    """
    again = f"`lacuna-nipype connectome register {entry.name} PATH --overwrite`"
    try:
        found = content_fingerprint(entry.path)
    except (FileNotFoundError, NotADirectoryError):
        return (
            f"{entry.path}, which is registered as {entry.name}, is not there; bring it back, or "
            f"register its new place with {again}."
        )
    except OSError as error:
        return (
            f"{entry.path}, which is registered as {entry.name}, cannot be read "
            f"({error.strerror}); check its permissions."
        )
    if found == entry.fingerprint:
        return None
    return (
        f"{entry.path} is not what was registered as {entry.name} any more; bring that back, or "
        f"register what is there now with {again}."
    )


def get_connectome_path(name_or_path: str | os.PathLike[str]) -> Path:
    """Find a connectome by path or by name.

    Parameters
    ----------
    name_or_path : str or path-like
        A path that exists; else the name of a registered connectome; else that of a file or
        folder in the data folder's ``connectomes``, with or without ``.h5``. Case of names is
        ignored.

    Returns
    -------
    Path
        Absolute.

    Raises
    ------
    FileNotFoundError
        There is no such path and no such name; the message lists the names, nearest first.
    ValidationError
        The connectome of this name is gone, or is not what was registered; or the registry is
        damaged.
    """
    path = _absolute(Path(name_or_path))
    if path.exists():
        return path
    name = os.fspath(name_or_path)
    try:
        entries = list_registered()
    except RegistryUnavailableError:
        # What cannot be a name is a path that is not there, and is called that.
        if _NAME.fullmatch(name):
            raise
        entries = []
    entry = _by_name(entries, name)
    if entry is not None:
        problem = find_change(entry)
        if problem:
            raise ValidationError(problem)
        return entry.path
    return _in_data_folder(name) or _refuse_unknown(name, entries)


def _in_data_folder(name: str) -> Path | None:
    """Find a connectome that lies in the data folder without being registered."""
    if not _NAME.fullmatch(name):
        return None
    registry = registry_file()
    for file_name in (name, f"{name}.h5", name.lower(), f"{name.lower()}.h5"):
        path = registry.with_name(file_name)
        # The registry, its copy and its lock are no connectomes.
        if not file_name.startswith(registry.name) and path.exists():
            return path
    return None


def _refuse_unknown(name: str, entries: Sequence[RegisteredConnectome]) -> NoReturn:
    names = _nearest_first(name, entries)
    known = f"registered: {names}" if names else "none is registered"
    raise FileNotFoundError(
        f"{name} does not exist and is not the name of a connectome ({known}); give a path or a "
        "name, or get a public connectome with `lacuna-nipype fetch NAME --output-dir DIR`."
    )


def register_connectome(
    name: str,
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    space: str | None = None,
    resolution: float | None = None,
    n_subjects: int | None = None,
    citation: str = "",
    licence: str = "",
    sha256: str | None = None,
    overwrite: bool = False,
) -> RegisteredConnectome:
    """Give a connectome a name, by which runs and commands find it from then on.

    Headers are read and checked; the content is not, but for its fingerprint.

    Parameters
    ----------
    name : str
        Letters, digits and ``_ . + -``, 64 at most, beginning with a letter or digit.
    path : path-like
        Functional: HDF5 file or folder of them. Structural: tractogram or streamline index.
    kind : {"functional", "structural"}, optional
        What the files are; read from them otherwise.
    space : str, optional
        Space where the files do not say; it also overrides what they say.
    resolution : float, optional
        Voxel size in mm of the maps that a tractogram is for. Other files have one of their own.
    n_subjects : int, optional
        Subjects behind a tractogram. Functional connectomes tell it themselves.
    citation, licence : str, optional
    sha256 : str, optional
        Checksum that the file must have, 64 hexadecimal digits; the whole file is read.
    overwrite : bool
        Replace the entry of this name.

    Returns
    -------
    RegisteredConnectome

    Raises
    ------
    ValidationError
        The name cannot be used or is taken, the path has another name already, the files are
        missing or damaged, they contradict what is said of them, or the registry cannot be
        changed.
    SpatialMismatchError
        Space or resolution contradict the files.
    """
    path = _absolute(Path(path))
    _check_texts(name, path, citation, licence)
    # Once before the files are read, which may take long, and once under the lock.
    _refuse_taken(list_registered(), name, path, overwrite)
    facts = _read_facts(path, kind, space, resolution, n_subjects)
    if sha256 is not None:
        _check_sha256(path, sha256)
    entry = RegisteredConnectome(
        name, facts.kind, path, facts.space, facts.resolution, facts.n_subjects,
        _one_line(citation), _one_line(licence), content_fingerprint(path),
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip
    with _locked() as registry:
        entries = _read(registry)
        _refuse_taken(entries, name, path, overwrite)
        others = [other for other in entries if not _same_name(other.name, name)]
        _write(registry, [*others, entry])
    return entry


def unregister_connectome(name: str) -> RegisteredConnectome:
    """Take a name off the registry; the connectome itself stays where it is.

    Parameters
    ----------
    name : str
        Case is ignored.

    Returns
    -------
    RegisteredConnectome
        The entry that was removed.

    Raises
    ------
    ValidationError
        There is no such name, or the registry is damaged or cannot be changed.
    """
    with _locked() as registry:
        entries = _read(registry)
        entry = _by_name(entries, name)
        if entry is None:
            names = _nearest_first(name, entries) or "there is none"
            raise ValidationError(f"No connectome is registered as {name} (registered: {names}).")
        _write(registry, [other for other in entries if other is not entry])
    return entry


def content_fingerprint(path: Path) -> str:
    """Identify the content of a connectome.

    Parameters
    ----------
    path : Path
        File, or folder of HDF5 files.

    Returns
    -------
    str
        :func:`lacuna_nipype.core.files.combined_fingerprint` of the files in name order; other
        files in the folder do not count.

    Raises
    ------
    OSError
        Something is missing or cannot be read.
    """
    return combined_fingerprint(_content_files(path))


def _content_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    from lacuna_nipype.connectomes.functional import connectome_paths

    try:
        return connectome_paths(path)
    except ValidationError:
        # An empty folder: whatever was there has been moved away.
        raise FileNotFoundError(str(path)) from None


def _absolute(path: Path) -> Path:
    # Not resolve(): datasets under datalad are links whose names matter.
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100


# The file


@contextmanager
def _locked() -> Iterator[Path]:
    """Keep other processes and threads from changing the registry; the lock ends with us."""
    registry = registry_file()
    lock = registry.with_name(f"{registry.name}.lock")
    try:
        registry.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("a")
    except OSError as error:
        raise _cannot_change(registry, error) from error
    with stream:
        try:
            lock_file(stream)
        except OSError as error:
            raise _cannot_change(registry, error) from error
        yield registry


def _cannot_change(registry: Path, error: OSError) -> ValidationError:
    return ValidationError(
        f"The registry {registry} cannot be changed ({error.strerror}); make room or set "
        "LACUNA_DATA_DIR to a folder on a disk that you may write to."
    )


def _read(registry: Path) -> list[RegisteredConnectome]:
    try:
        content = read_json(registry)
        version = content["FormatVersion"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ValidationError(
                f"The registry {registry} is of a newer version of this package; bring the "
                "package up to date, or set LACUNA_DATA_DIR to another folder."
            )
        if version != FORMAT_VERSION:
            raise TypeError(f"version {version}")
        entries = [_entry(fields) for fields in content["Connectomes"]]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RegistryUnavailableError(
            f"The registry {registry} cannot be read ({error.strerror}); check its permissions, "
            "or set LACUNA_DATA_DIR to a folder of your own."
        ) from error
    except ValidationError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(registry) from error
    return sorted(entries, key=lambda entry: entry.name.casefold())


def _damaged(registry: Path) -> ValidationError:
    copy = _copy_of(registry)
    remedy = "remove it and register again"
    if copy.is_file():
        remedy = f"put its copy back with `cp {copy} {registry}`"
    return ValidationError(f"The registry {registry} is damaged; {remedy}.")


def _copy_of(registry: Path) -> Path:
    return registry.with_name(f"{registry.name}.bak")


def _entry(fields: dict[str, Any]) -> RegisteredConnectome:
    """Make an entry of its JSON; KeyError or TypeError for one that is not whole."""
    texts = {
        key: fields[key]
        for key in ("name", "kind", "space", "citation", "licence", "fingerprint", "added_on")
    }
    resolution, n_subjects, path = fields["resolution"], fields["n_subjects"], fields["path"]
    if not (
        all(isinstance(text, str) for text in (*texts.values(), path))
        and texts["kind"] in KINDS
        and isinstance(n_subjects, int)
        and (resolution is None or isinstance(resolution, (int, float)))
    ):
        raise TypeError("a field of another type")
    return RegisteredConnectome(
        path=Path(path), resolution=resolution, n_subjects=n_subjects, **texts
    )


def _write(registry: Path, entries: Sequence[RegisteredConnectome]) -> None:
    ordered = sorted(entries, key=lambda entry: entry.name.casefold())
    content = {
        "FormatVersion": FORMAT_VERSION,
        "Connectomes": [{**asdict(entry), "path": str(entry.path)} for entry in ordered],
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        for target in (registry, _copy_of(registry)):
            with atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                # Power may fail: the name must not be there before the content is.
                os.fsync(out.fileno())
    except OSError as error:
        raise _cannot_change(registry, error) from error


# Names


def _same_name(first: str, second: str) -> bool:
    return first.casefold() == second.casefold()


def _by_name(entries: Sequence[RegisteredConnectome], name: str) -> RegisteredConnectome | None:
    return next((entry for entry in entries if _same_name(entry.name, name)), None)


def _by_path(entries: Sequence[RegisteredConnectome], path: Path) -> RegisteredConnectome | None:
    real = os.path.realpath(_absolute(path))
    return next((entry for entry in entries if os.path.realpath(entry.path) == real), None)


def _nearest_first(name: str, entries: Sequence[RegisteredConnectome]) -> str:
    """List names for a message, those most like the given one first."""
    spelled = {entry.name.casefold(): entry.name for entry in entries}
    near = difflib.get_close_matches(name.casefold(), spelled, n=_MOST_NAMES, cutoff=0.4)
    ordered = [*near, *(key for key in spelled if key not in near)]
    more = ", ..." if len(ordered) > _MOST_NAMES else ""
    return ", ".join(spelled[key] for key in ordered[:_MOST_NAMES]) + more


def _check_texts(name: str, path: Path, *others: str) -> None:
    """Refuse names that could be taken for paths or flags, and text that JSON cannot hold."""
    if not _NAME.fullmatch(name):
        raise ValidationError(
            f"{name!r} cannot be the name of a connectome; use letters, digits, _ . + and -, 64 "
            "at most, beginning with a letter or digit."
        )
    for text in (str(path), *others):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValidationError(f"{text!r} is not UTF-8 text; rename or correct it.") from None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _refuse_taken(
    entries: Sequence[RegisteredConnectome], name: str, path: Path, overwrite: bool
) -> None:
    """Refuse a name of another connectome, and a second name of one connectome."""
    entry = _by_name(entries, name)
    if entry is not None and not overwrite:
        raise ValidationError(
            f"{entry.name} is registered already, for {entry.path}; add --overwrite "
            "(overwrite=True) to replace the entry, or choose another name."
        )
    # A path with two names could have two spaces.
    entry = _by_path(entries, path)
    if entry is not None and not _same_name(entry.name, name):
        raise ValidationError(
            f"{path} is registered already, as {entry.name}; use that name, or remove it with "
            f"`lacuna-nipype connectome unregister {entry.name}`."
        )


# What the files say


class _Facts(NamedTuple):
    kind: str
    space: str
    resolution: float | None
    n_subjects: int


def _read_facts(
    path: Path,
    kind: str | None,
    space: str | None,
    resolution: float | None,
    n_subjects: int | None,
) -> _Facts:
    """Read what files say of themselves, and refuse what contradicts it."""
    from lacuna_nipype.connectomes.streamline_index import is_index
    from lacuna_nipype.connectomes.tractogram_formats import tractogram_suffix

    if kind is not None and kind not in KINDS:
        raise ValidationError(f"A connectome is {' or '.join(KINDS)}, not {kind!r}.")
    if resolution is not None and not (math.isfinite(resolution) and resolution > 0):
        raise ValidationError(f"A resolution is a positive number of mm, not {resolution}.")
    if n_subjects is not None and n_subjects < 0:
        raise ValidationError(f"A connectome cannot have {n_subjects} subjects.")
    if not path.exists():
        raise ValidationError(f"{path} does not exist; give a connectome that is there.")
    indexed = path.is_file() and is_index(path)
    found = "structural" if indexed or tractogram_suffix(path) else "functional"
    if kind is not None and kind != found:
        raise ValidationError(
            f"{path} looks like a {found} connectome, not a {kind} one; leave the kind out or "
            "give another path."
        )
    if found == "functional":
        return _functional_facts(path, space, resolution, n_subjects)
    if indexed:
        return _index_facts(path, space, resolution, n_subjects)
    return _tractogram_facts(path, space, resolution, n_subjects)


def _functional_facts(
    path: Path, space: str | None, resolution: float | None, n_subjects: int | None
) -> _Facts:
    from lacuna_nipype.connectomes.functional import open_connectome
    from lacuna_nipype.connectomes.inspection import open_undeclared

    if space is not None:
        connectome = open_connectome(path, space)
    else:
        connectome, declared = open_undeclared(path)
        if declared is None:
            raise _without_space(path)
    if n_subjects not in (None, connectome.n_subjects):
        raise ValidationError(
            f"{path} holds {connectome.n_subjects} subjects, not {n_subjects}; leave the number "
            "out."
        )
    sizes = connectome.grid.voxel_sizes
    isotropic = max(sizes) - min(sizes) < _RESOLUTION_TOLERANCE_MM
    own = round(float(sizes[0]), 3) if isotropic else None
    _refuse_other_resolution(path, own, resolution)
    return _Facts("functional", connectome.space, own, connectome.n_subjects)


def _index_facts(
    path: Path, space: str | None, resolution: float | None, n_subjects: int | None
) -> _Facts:
    from lacuna_nipype.connectomes.streamline_index import find_tractogram, read_index_record
    from lacuna_nipype.core.spaces import canonical_space

    record = read_index_record(path)
    find_tractogram(record)
    if space is not None and canonical_space(space) != record.space:
        raise SpatialMismatchError(
            f"{path} was made for {record.space}, not for {canonical_space(space)}; leave the "
            "space out, or make the index again."
        )
    own = round(float(record.grid.voxel_sizes[0]), 3)
    _refuse_other_resolution(path, own, resolution)
    return _Facts("structural", record.space, own, n_subjects or 0)


def _tractogram_facts(
    path: Path, space: str | None, resolution: float | None, n_subjects: int | None
) -> _Facts:
    from lacuna_nipype.connectomes.tractogram_formats import (
        read_tractogram_header,
        tractogram_sidecar,
    )
    from lacuna_nipype.core.spaces import canonical_space, declared_space

    read_tractogram_header(path)
    sidecar, content = tractogram_sidecar(path)
    if space:
        own = canonical_space(space)
    elif content.get("Space"):
        own = declared_space(content["Space"], sidecar)
    else:
        raise _without_space(path)
    if resolution is not None and resolution not in MAP_RESOLUTIONS:
        sizes = " or ".join(f"{size:g}" for size in MAP_RESOLUTIONS)
        raise ValidationError(
            f"Maps of a tractogram are made at {sizes} mm, not {resolution:g} mm; give one of "
            "these, or leave the resolution out."
        )
    return _Facts("structural", own, resolution, n_subjects or 0)


def _without_space(path: Path) -> ValidationError:
    return ValidationError(
        f"{path} does not say which space it is in; add --space SPACE (space=...)."
    )


def _refuse_other_resolution(path: Path, own: float | None, given: float | None) -> None:
    if given is None or (own is not None and abs(own - given) < _RESOLUTION_TOLERANCE_MM):
        return
    voxels = "voxels that are no cubes" if own is None else f"voxels of {own:g} mm"
    raise SpatialMismatchError(f"{path} has {voxels}, not of {given:g} mm; leave that out.")


def _check_sha256(path: Path, expected: str) -> None:
    wanted = expected.strip().lower().removeprefix("sha256:")
    if not _SHA256.fullmatch(wanted):
        raise ValidationError(f"{expected!r} is not a SHA-256, which has 64 hexadecimal digits.")
    if path.is_dir():
        raise ValidationError(f"{path} is a folder, and a SHA-256 belongs to one file.")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(_READ_BYTES), b""):
            digest.update(block)
    if digest.hexdigest() != wanted:
        raise ValidationError(
            f"{path} has the SHA-256 {digest.hexdigest()}, not the one given; copy or download it "
            "again."
        )
