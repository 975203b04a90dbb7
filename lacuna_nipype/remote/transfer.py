"""One file on its way: resumed where it stopped, checked, and renamed when it is whole."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import requests

from lacuna_nipype.core.exceptions import DownloadError, ValidationError
from lacuna_nipype.core.files import lock_file, read_json, write_json
from lacuna_nipype.remote.credentials import Service
from lacuna_nipype.remote.http_client import (
    Client,
    Header,
    TemporaryError,
    body_length,
    refuse_page,
)
from lacuna_nipype.remote.web_addresses import shown_address

logger = logging.getLogger("lacuna_nipype")

_DIGEST_LENGTHS = {"md5": 32, "sha256": 64}
_PAGE_SUFFIXES = {".html", ".htm", ".xhtml"}
# Room for what is put around a name to make that of a temporary file.
_LONGEST_NAME = 230
_LOCK_SECONDS = 0.2
_READ_BYTES = 2**20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

Report = Callable[[int, str], None]


@dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Parameters
    ----------
    name : str
        Where it goes: a relative POSIX path below the folder of the download.
    url : str
    size : int, optional
        Bytes, where they are known.
    md5, sha256 : str, optional
        Checksums in hexadecimal, where they are known.
    service : {"dataverse", "figshare"}, optional
        Whose key it needs, for messages.

    Raises
    ------
    ValidationError
        The name leaves the folder or cannot be a file's, or the size or a checksum is none.
    """

    name: str
    url: str
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None
    service: Service | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.size is not None and self.size < 0:
            raise ValidationError(f"{self.name}: a size of {self.size} bytes is impossible.")
        for kind, length in _DIGEST_LENGTHS.items():
            text = getattr(self, kind)
            if text is None:
                continue
            if not re.fullmatch(f"[0-9a-fA-F]{{{length}}}", text):
                raise ValidationError(f"{self.name}: {text!r} is no {kind} checksum.")
            object.__setattr__(self, kind, text.lower())


def _check_name(name: str) -> None:
    parts = name.split("/")
    last = parts[-1]
    if (
        any(part in ("", ".", "..") or len(os.fsencode(part)) > _LONGEST_NAME for part in parts)
        or "\\" in name
        or not name.isprintable()
    ):
        raise ValidationError(
            f"A file to download is called {name!r}, which is not a path below a folder."
        )
    if last.startswith(".") and ".part" in last:
        raise ValidationError(
            f"A file to download is called {name!r}, a name kept for unfinished downloads."
        )


def part_path(target: Path) -> Path:
    """Give the path of the unfinished file beside a target.

    Parameters
    ----------
    target : Path

    Returns
    -------
    Path
        ``.NAME.part``; ``.NAME.part.json`` and ``.NAME.part.lock`` belong to it.
    """
    return target.with_name(f".{target.name}.part")


def fetch_file(
    file: RemoteFile,
    folder: Path,
    client: Client,
    *,
    header: Header | None = None,
    skip_checksum: bool = False,
    force: bool = False,
    report: Report = lambda size, message: None,
) -> Path:
    """Download one file, from where an earlier attempt stopped.

    Parameters
    ----------
    file : RemoteFile
    folder : Path
        Created when missing.
    client : Client
    header : Header, optional
        Key to send.
    skip_checksum : bool
        Trust the size alone.
    force : bool
        Download again even if the file, or part of it, is there.
    report : callable
        Called with (bytes there, what is being done).

    Returns
    -------
    Path
        The file, of the announced size and checksum. It is written under a temporary name
        beside it and renamed at the end.

    Raises
    ------
    AuthenticationError, DownloadError
        It cannot be had, or is not what the listing announced; see
        :class:`lacuna_nipype.remote.http_client.Client`.
    """
    target = folder / PurePosixPath(file.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    transfer = _Transfer(file, target, client, header, skip_checksum, report)
    waiting = lambda: report(0, f"waiting for another download of {file.name}")
    with _lock(part_path(target).with_name(f".{target.name}.part.lock"), file, client, waiting):
        if force:
            transfer.discard()
        elif transfer.is_complete():
            report(target.stat().st_size, f"{file.name} is there")
            return target
        return transfer.run()


class _WrongContentError(Exception):
    """What arrived is not what was announced; starting anew may help once."""


@dataclass(frozen=True)
class _Record:
    """What the bytes of an unfinished file belong to."""

    url: str
    etag: str | None
    last_modified: str | None
    size: int | None

    @property
    def validator(self) -> str | None:
        """Text for If-Range, which takes strong entity tags only (RFC 9110, 13.1.5)."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified


class _Transfer:
    def __init__(
        self,
        file: RemoteFile,
        target: Path,
        client: Client,
        header: Header | None,
        skip_checksum: bool,
        report: Report,
    ) -> None:
        self._file, self._target, self._client = file, target, client
        self._header, self._report = header, report
        self._part = part_path(target)
        self._record_path = self._part.with_name(f"{self._part.name}.json")
        wanted = {kind: getattr(file, kind) for kind in _DIGEST_LENGTHS}
        self._wanted = {} if skip_checksum else {k: v for k, v in wanted.items() if v is not None}
        self._start_digests()

    def is_complete(self) -> bool:
        """Tell whether the target is there with the announced size and checksums."""
        file, target = self._file, self._target
        if not target.is_file():
            return False
        size = target.stat().st_size
        if file.size is not None and size != file.size:
            logger.warning("%s is not of the announced size; it is downloaded anew.", target)
            return False
        if self._wanted:
            self._hash(target, f"checking {file.name}")
            if self._wrong_checksum() is not None:
                logger.warning("%s has another checksum; it is downloaded anew.", target)
                return False
        return True

    def discard(self) -> None:
        """Remove what an earlier attempt left."""
        self._part.unlink(missing_ok=True)
        self._record_path.unlink(missing_ok=True)
        self._report(0, f"downloading {self._file.name}")

    def run(self) -> Path:
        """Download what is missing, check it, and rename it."""
        self._start_digests()
        problem = ""
        for _ in range(2):
            try:
                self._client.keep_trying(self._attempt, self._file.url, self._part_size)
                wrong = self._wrong_checksum()
                if wrong is None:
                    return self._finish()
                problem = wrong
            except _WrongContentError as error:
                problem = str(error)
            logger.warning("%s: %s.", self._file.name, problem)
            self.discard()
        raise DownloadError(
            shown_address(self._file.url),
            f"{self._file.name} is not what the listing announced, twice: {problem}; try later, "
            "or ask the service which version is right.",
        )

    def _attempt(self) -> None:
        """Make one request; return when every byte is there."""
        file, start = self._file, self._resumable()
        self._report(start, f"downloading {file.name}")
        if start and start == file.size:
            return
        record = self._read_record()
        fields = {}
        if start and record is not None:
            fields["Range"] = f"bytes={start}-"
            if record.validator:
                fields["If-Range"] = record.validator
        with self._client.get(
            file.url, header=self._header, service=file.service, fields=fields
        ) as response:
            if response.status_code == 416:
                self._past_the_end(response, start)
            else:
                self._receive(response, start)

    def _receive(self, response: requests.Response, start: int) -> None:
        """Append a body to the unfinished file, which is emptied when the body is the whole."""
        blocks = self._client.read_blocks(response, self._file.url)
        first = next(blocks, b"")
        if response.status_code == 206:
            self._refuse_page(response, b"")
            total = self._check_range(response, start)
        else:
            # Looked at before the part is emptied: a login page must not cost what is there.
            self._refuse_page(response, first)
            start, total = 0, body_length(response)
        if total is not None and self._file.size not in (None, total):
            raise _WrongContentError(f"it has {total} bytes instead of {self._file.size}")
        if start == 0:
            self._begin(response, total)
        self._append(chain([first], blocks), start, total)

    def _refuse_page(self, response: requests.Response, start: bytes) -> None:
        if PurePosixPath(self._file.name).suffix.lower() not in _PAGE_SUFFIXES:
            refuse_page(response, start, self._file.url)

    def _check_range(self, response: requests.Response, start: int) -> int | None:
        """Compare a partial answer with the question; give the length of the whole file."""
        text = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", text.strip())
        record = self._read_record()
        total = int(match[3]) if match and match[3] != "*" else None
        changed = record is not None and None not in (total, record.size) and total != record.size
        if match is None or int(match[1]) != start or changed:
            self.discard()
            raise TemporaryError("the server sent another part than was asked for", wait=0)
        return total

    def _past_the_end(self, response: requests.Response, start: int) -> None:
        """Deal with 416: the part is the whole file, or belongs to another one."""
        match = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", "").strip())
        whole = match is not None and int(match[1]) == start
        if not start or not whole or self._file.size not in (None, start):
            self.discard()
            raise TemporaryError("the server has no more bytes, the file may have changed", wait=0)

    def _resumable(self) -> int:
        """Give the bytes of an earlier attempt that can be continued; drop what cannot."""
        size, record = self._part_size(), self._read_record()
        if (
            size == 0
            or record is None
            or record.url != shown_address(self._file.url)
            or (self._file.size is not None and size > self._file.size)
            or (None not in (self._file.size, record.size) and self._file.size != record.size)
            # Nothing would tell that the rest belongs to the same version.
            or not (record.validator or self._wanted)
        ):
            if size or record is not None:
                self.discard()
            self._start_digests()
            return 0
        if self._hashed != size:
            self._hash(self._part, f"checking what is there of {self._file.name}")
        return size

    def _begin(self, response: requests.Response, total: int | None) -> None:
        """Empty the part before its record is written, so that neither is of another version."""
        with self._part.open("wb"):
            self._start_digests()
        fields = response.headers
        content = {
            "url": shown_address(self._file.url),
            "etag": fields.get("ETag"),
            "last_modified": fields.get("Last-Modified"),
            "size": total if total is not None else self._file.size,
        }
        try:
            write_json(self._record_path, content)
        except OSError as error:
            self._explain_disk(error)
            raise

    def _append(self, blocks: Iterator[bytes], start: int, total: int | None) -> None:
        expected = total if total is not None else self._file.size
        size = start
        with self._part.open("ab", buffering=0) as stream:
            for block in blocks:
                if expected is not None and size + len(block) > expected:
                    raise _WrongContentError(f"it has more than the {expected} bytes announced")
                self._write(stream, block)
                self._update(block)
                size += len(block)
                self._report(size, f"downloading {self._file.name}")
        if expected is not None and size < expected:
            raise TemporaryError(f"the connection ended after {size} of {expected} bytes")

    def _write(self, stream: io.FileIO, block: bytes) -> None:
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[stream.write(rest) :]
        except OSError as error:
            self._explain_disk(error)
            raise

    def _finish(self) -> Path:
        try:
            with self._part.open("rb+") as stream:
                os.fsync(stream.fileno())
        except OSError as error:
            self._explain_disk(error)
            raise
        os.replace(self._part, self._target)
        self._record_path.unlink(missing_ok=True)
        self._report(self._target.stat().st_size, f"{self._file.name} is complete")
        return self._target

    def _explain_disk(self, error: OSError) -> None:
        if error.errno in _DISK_FULL:
            raise DownloadError(
                shown_address(self._file.url),
                f"no space is left for {self._target}; what is there is kept, make room and run "
                "the same again.",
            ) from None

    def _part_size(self) -> int:
        try:
            return self._part.stat().st_size
        except FileNotFoundError:
            return 0

    def _read_record(self) -> _Record | None:
        try:
            content = read_json(self._record_path)
            return _Record(**content)
        except (FileNotFoundError, ValueError, TypeError):
            # A record that cannot be read costs a download from the beginning, no more.
            return None

    def _start_digests(self) -> None:
        self._hashed = 0
        self._digests: dict[str, Any] = {
            kind: hashlib.new(kind, usedforsecurity=False) for kind in self._wanted
        }

    def _update(self, block: bytes) -> None:
        self._hashed += len(block)
        for digest in self._digests.values():
            digest.update(block)

    def _hash(self, path: Path, message: str) -> None:
        self._start_digests()
        with path.open("rb") as stream:
            for block in iter(lambda: stream.read(_READ_BYTES), b""):
                self._client.check_cancelled(self._file.url)
                self._update(block)
                self._report(self._hashed, message)

    def _wrong_checksum(self) -> str | None:
        for kind, wanted in self._wanted.items():
            found = self._digests[kind].hexdigest()
            if found != wanted:
                return f"its {kind} checksum is {found} instead of {wanted}"
        return None


@contextmanager
def _lock(
    path: Path, file: RemoteFile, client: Client, waiting: Callable[[], None]
) -> Iterator[None]:
    """Let one process at a time download a file; the next finds it complete."""
    stream = path.open("ab")
    try:
        while True:
            if not lock_file(stream, wait=False):
                waiting()
                client.check_cancelled(file.url)
                client.cancelled.wait(_LOCK_SECONDS)
                continue
            if _is_open_file(path, stream):
                break
            # The one before has removed its lock file while this one waited.
            stream.close()
            stream = path.open("ab")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        stream.close()


def _is_open_file(path: Path, stream: io.BufferedWriter) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False
