"""Archives unpacked member by member, with nothing written outside of one folder.

An archive comes from the network, so nothing in it is believed: names decide where a member goes
only after they were checked, links and devices are not made, sizes are compared with what the
archive can hold. The end of a tar archive is looked for, because Python's reader takes a damaged
header for it in silence.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tarfile import EOFHeaderError, HeaderError  # type: ignore[attr-defined]
from typing import IO, Any

from lacuna_nipype.core.exceptions import ProcessingError, ValidationError
from lacuna_nipype.core.files import atomic_path

_BLOCK_BYTES = 2**20
# What is stored in connectome archives (mostly compressed itself) shrinks a few times at most;
# little enough is harmless however well it was packed.
_MOST_EXPANSION = 100
_HARMLESS_BYTES = 64 * 2**20
_MOST_MEMBERS = 200_000
# Left free on the disk, for everybody else on it.
_SPARE_BYTES = 32 * 2**20
# Headers of tar archives that are read into memory whole: long names and the like.
_LONG_HEADERS = frozenset(
    {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
     tarfile.SOLARIS_XHDTYPE}
)  # fmt: skip
_MOST_HEADER_BYTES = 2**20
# Record that a zip archive ends with, without its comment.
_ZIP_END_BYTES = 22
_FILE, _FOLDER = "file", "folder"


class _DamagedError(Exception):
    """The archive is not what it should be at this place."""


_DAMAGE = (
    _DamagedError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, tarfile.TarError,
    zipfile.BadZipFile, struct.error, UnicodeDecodeError,
)  # fmt: skip


@dataclass(frozen=True)
class _Member:
    """An entry of an archive; ``kind`` is file, folder, or in words what else it is."""

    name: str
    kind: str
    size: int
    open: Callable[[], IO[bytes] | None]
    packed_size: int | None = None


def iter_archive(
    path: Path,
    folder: Path,
    *,
    wanted: Callable[[str], bool] | None = None,
    most_bytes: int | None = None,
) -> Iterator[Path]:
    """Unpack an archive file by file.

    The caller may remove each file before it asks for the next, so that no more than one is on
    disk at a time. Permissions, owners and times are not taken over.

    Parameters
    ----------
    path : Path
        Archive: tar, tar.gz or zip, told by its content.
    folder : Path
        To write to; made when missing. Files that are there already are replaced.
    wanted : callable, optional
        Called with the name (relative, ``/`` between parts) of each member that is no folder;
        those it gives False for are passed over. All by default.
    most_bytes : int, optional
        Largest size of a file; by default what is free on the disk.

    Yields
    ------
    Path
        The file, complete: it appears under its name when all of it was read and its checksum,
        where the archive has one, agrees.

    Raises
    ------
    ValidationError
        The archive is missing, not one, truncated or damaged; any member has a name that is
        absolute, leads out of the folder or occurs twice; a wanted one is a link, a device,
        sparse or encrypted; sizes are implausible (more than 100 times the archive) or beyond
        ``most_bytes`` or the free space. Files yielded before stay.
    ProcessingError
        The disk is full.
    """
    names, limits = _Names(path), _Limits(path, most_bytes)
    with _explained(path, folder, names):
        folder.mkdir(parents=True, exist_ok=True)
        root = folder.resolve()
        for member in _iter_members(path):
            limits.check_plausible(member)
            name = names.take(member)
            if member.kind == _FOLDER or (wanted is not None and not wanted(name)):
                continue
            _check_kind(path, name, member)
            limits.check_room(name, member, root)
            target = root / name
            if not target.parent.resolve().is_relative_to(root):
                raise ValidationError(
                    f"{path} would write {name!r} through a link that leads out of {folder}; "
                    "remove the link or choose another folder."
                )
            _write(member, target)
            yield folder / name


def archive_names(path: Path) -> list[str]:
    """List the files in an archive.

    Parameters
    ----------
    path : Path
        As for :func:`iter_archive`.

    Returns
    -------
    list of str
        Names relative to where it would be unpacked, in the order of the archive; no folders.

    Raises
    ------
    ValidationError
        As there, but for what concerns the disk and kinds of members.
    """
    return list(archive_sizes(path))


def archive_sizes(path: Path) -> dict[str, int]:
    """Tell how large the files in an archive are; see :func:`archive_names`.

    Returns
    -------
    dict
        Size in bytes by name, in the order of the archive. Of a tar archive that is not
        compressed only the headers are read.
    """
    names, limits = _Names(path), _Limits(path, None)
    sizes = {}
    with _explained(path, path.parent, names):
        for member in _iter_members(path):
            limits.check_plausible(member)
            name = names.take(member)
            if member.kind != _FOLDER:
                sizes[name] = member.size
    return sizes


@contextmanager
def _explained(path: Path, folder: Path, names: _Names) -> Iterator[None]:
    """Turn what readers and the disk complain of into one sentence."""
    try:
        yield
    except _DAMAGE as error:
        place = f"after {names.last!r}" if names.last else "at its beginning"
        raise ValidationError(
            f"{path} is truncated or damaged {place}; download it again."
        ) from error
    # Not an open end: zipfile raises this for encryption and for methods of compression that
    # Python does not have.
    except NotImplementedError as error:
        raise ValidationError(
            f"{path} is packed by a method that cannot be read; pack it as tar, tar.gz or zip."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ProcessingError(
                f"Unpacking {path}",
                f"the disk that holds {folder} is full; free some space and start again.",
            ) from error
        raise ProcessingError(
            f"Unpacking {path} to {folder}", f"{error.strerror or error}; check both paths."
        ) from error


class _Names:
    """Names seen so far, each of which may lead to one place inside the folder only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self.last = ""

    def take(self, member: _Member) -> str:
        """Check a member's name; give it without what means nothing (``./``, ``//``)."""
        parts = PurePosixPath(member.name).parts
        # A backslash is a part's end where Windows unpacks, and would be two places.
        if member.name.startswith("/") or ".." in parts or "\\" in member.name:
            self._refuse(f"names {member.name!r}, which leads out of the folder")
        name = "/".join(parts)
        if not parts and member.kind != _FOLDER:
            self._refuse("holds a file without a name")
        folders = {"/".join(parts[:n]) for n in range(1, len(parts))}
        if member.kind == _FOLDER:
            folders.add(name)
        else:
            if name in self._files:
                self._refuse(f"holds {name!r} twice")
            self._files.add(name)
        self._folders |= folders
        if name in (self._folders if member.kind != _FOLDER else ()) or folders & self._files:
            self._refuse(f"holds {name!r} in conflict with a folder or file of that name")
        if len(self._files) + len(self._folders) > _MOST_MEMBERS:
            self._refuse(f"holds more than {_MOST_MEMBERS} members")
        self.last = name
        return name

    def _refuse(self, what: str) -> None:
        raise ValidationError(f"{self._path} {what}; it is not unpacked: check where it is from.")


class _Limits:
    """Sizes that are believed."""

    def __init__(self, path: Path, most_bytes: int | None) -> None:
        self._path, self._most_bytes = path, most_bytes
        self._total = 0

    def check_plausible(self, member: _Member) -> None:
        """Refuse what no archive of this size holds in earnest."""
        self._total += member.size
        whole = max(_HARMLESS_BYTES, _MOST_EXPANSION * self._path.stat().st_size)
        if member.packed_size is not None:
            part = max(_HARMLESS_BYTES, _MOST_EXPANSION * member.packed_size)
        else:
            part = whole
        if member.size < 0 or member.size > part or self._total > whole:
            raise ValidationError(
                f"{self._path} states {self._total / 1e9:.3g} GB of content up to "
                f"{member.name!r}, implausibly more than what is packed in it; it is not "
                "unpacked: check where it is from."
            )

    def check_room(self, name: str, member: _Member, folder: Path) -> None:
        """Refuse what is larger than allowed, or than the disk."""
        if self._most_bytes is not None and member.size > self._most_bytes:
            raise ValidationError(
                f"{name!r} in {self._path} has {member.size} bytes where at most "
                f"{self._most_bytes} were expected; check where the archive is from."
            )
        free = shutil.disk_usage(folder).free
        if member.size + _SPARE_BYTES > free:
            raise ValidationError(
                f"{name!r} in {self._path} needs {member.size / 1e9:.3g} GB, but {folder} has "
                f"{free / 1e9:.3g} GB free; free some space or choose another folder."
            )


def _check_kind(path: Path, name: str, member: _Member) -> None:
    if member.kind != _FILE:
        raise ValidationError(
            f"{name!r} in {path} is {member.kind}, where only files are unpacked; check where "
            "the archive is from."
        )


def _write(member: _Member, target: Path) -> None:
    stream = member.open()
    if stream is None:
        raise _DamagedError
    with stream, atomic_path(target) as temporary:
        with temporary.open("wb") as out:
            shutil.copyfileobj(stream, out, _BLOCK_BYTES)
        if temporary.stat().st_size != member.size:
            raise _DamagedError


# The two formats


def _iter_members(path: Path) -> Iterator[_Member]:
    """Give the members in order; each can be opened until the next is asked for."""
    if not path.is_file():
        raise ValidationError(f"{path} does not exist; check the path.")
    with path.open("rb") as stream:
        start = stream.read(tarfile.BLOCKSIZE)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        yield from _iter_zip(path)
    elif start.startswith(b"\x1f\x8b"):
        with gzip.open(path, "rb") as unpacked:
            yield from _iter_tar(unpacked, "r|")
            _read_to_end(unpacked)
    elif _begins_tar(start):
        with path.open("rb") as stream:
            yield from _iter_tar(stream, "r:")
    elif start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ValidationError(
            f"{path} is a web page, most likely one to log in at or an error's, and no archive; "
            "remove it and download it again."
        )
    else:
        raise ValidationError(
            f"{path} is not a tar, tar.gz or zip archive; download it again or check the path."
        )


class _StrictTarInfo(tarfile.TarInfo):
    """A header that is damaged is an error, and not the end of the archive."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: Any, errors: str) -> Any:
        """Refuse what the reader would fill the memory with, or run in circles over."""
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in _LONG_HEADERS and info.size > _MOST_HEADER_BYTES):
            raise _DamagedError
        return info

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        """Tell the end of the archive (a block of zeros) from what cannot be read."""
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            raise
        except HeaderError as error:
            raise _DamagedError from error


def _begins_tar(start: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except HeaderError:
        return False
    return True


def _iter_tar(stream: IO[bytes] | gzip.GzipFile, mode: Any) -> Iterator[_Member]:
    with tarfile.open(
        fileobj=stream, mode=mode, tarinfo=_StrictTarInfo, bufsize=_BLOCK_BYTES
    ) as archive:
        for info in archive:
            yield _Member(info.name, _tar_kind(info), info.size, _tar_opener(archive, info))


def _tar_opener(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], IO[bytes] | None]:
    return lambda: archive.extractfile(info)


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.isdir():
        return _FOLDER
    if info.issym() or info.islnk():
        return f"a link to {info.linkname!r}"
    if info.issparse():
        return "a sparse file"
    return _FILE if info.isreg() else "a device or the like"


def _read_to_end(stream: gzip.GzipFile) -> None:
    """Read the padding after a tar archive, for the checksum at the end of what holds it."""
    n_bytes = 0
    while block := stream.read(_BLOCK_BYTES):
        n_bytes += len(block)
        if n_bytes > _HARMLESS_BYTES:
            raise _DamagedError


def _iter_zip(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        _check_zip_count(path, archive)
        for info in archive.infolist():
            yield _Member(
                info.filename, _zip_kind(info), info.file_size, _zip_opener(archive, info),
                info.compress_size,
            )  # fmt: skip


def _check_zip_count(path: Path, archive: zipfile.ZipFile) -> None:
    """Compare the entries with the number that stands at the end, which Python leaves aside."""
    with path.open("rb") as stream:
        stream.seek(-_ZIP_END_BYTES - len(archive.comment), os.SEEK_END)
        end = stream.read(_ZIP_END_BYTES)
    n_entries = int.from_bytes(end[10:12], "little")
    # All ones stand for a number that needs more than these two bytes.
    if not end.startswith(b"PK\x05\x06") or n_entries not in (0xFFFF, len(archive.infolist())):
        raise _DamagedError


def _zip_opener(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(info)


def _zip_kind(info: zipfile.ZipInfo) -> str:
    if info.is_dir():
        return _FOLDER
    if info.flag_bits & 1:
        return "encrypted"
    # Programs on Unix put the type of the file there; others leave it zero.
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a link"
    return _FILE if kind in (0, stat.S_IFREG) else "a device or the like"
