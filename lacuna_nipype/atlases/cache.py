"""Atlases that were fetched, kept so that a reader never sees half of one.

An atlas is three files of one stem in ``<data folder>/atlases/<source>/tpl-<space>``: the image,
the table of its regions, and a JSON file. The JSON is written last and removed first, so that
its presence says that the other two are whole. It holds the request it answers, from which
its key is made, and the size and SHA-256 of both files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lacuna_nipype import __version__
from lacuna_nipype.atlases.entries import IntegrityError
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import get_data_dir, lock_file, read_json, write_json

logger = logging.getLogger("lacuna_nipype")

IMAGE_ENDING, LABELS_ENDING, METADATA_ENDING = ".nii.gz", ".tsv", ".json"
_READ_BYTES = 1 << 20
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class CachedFiles:
    """What the cache holds of one atlas.

    Parameters
    ----------
    image, labels, metadata : Path
    content : dict
        Of the metadata.
    """

    image: Path
    labels: Path
    metadata: Path
    content: dict[str, Any]

    @property
    def sha256(self) -> str:
        """SHA-256 of the image, 64 hexadecimal digits."""
        return str(self.content["SHA256"])


def cache_folder(source: str, space: str) -> Path:
    """Give the folder of a source's atlases in a space; it need not be there."""
    return get_data_dir() / "atlases" / source / f"tpl-{space}"


def file_stem(
    space: str,
    entities: Mapping[str, str],
    resolution: float | None,
    suffix: str,
    description: str | None = None,
) -> str:
    """Name the files of an atlas, without their endings.

    Parameters
    ----------
    space : str
        TemplateFlow name.
    entities : mapping of str to str
        ``atlas``, and ``seg`` and ``scale`` where it has them.
    resolution : float or None
        mm; written with ``p`` for the point. Left out when None.
    suffix : {"dseg", "probseg", "mask"}
    description : str, optional
        Tells requests apart that have everything else in common, such as
        :func:`request_label`.

    Returns
    -------
    str
        Such as ``tpl-MNI152NLin6Asym_atlas-Schaefer2018_seg-7n_scale-100_res-1_dseg``.
    """
    parts = {"tpl": space, **{key: entities.get(key) for key in ("atlas", "seg", "scale")}}
    if resolution is not None:
        parts["res"] = f"{resolution:g}".replace(".", "p")
    parts["desc"] = description
    fields = [f"{key}-{value}" for key, value in parts.items() if value]
    return "_".join([*fields, suffix])


def cache_key(request: Mapping[str, Any], source_version: str) -> str:
    """Give the key of a request: SHA-256 of its canonical JSON.

    Parameters
    ----------
    request : mapping
        Resolved: ids and numbers as the source has them, no aliases; plain JSON values.
    source_version : str
        Version of what answers.

    Returns
    -------
    str
        64 hexadecimal digits. Requests of different fields or values never share one.
    """
    whole = {"Request": dict(request), "SourceVersion": source_version}
    text = json.dumps(
        whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def request_label(request: Mapping[str, Any]) -> str:
    """Give a short label of a request for :func:`file_stem`: letters and digits."""
    return cache_key(request, "")[:12]


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(_READ_BYTES), b""):
            digest.update(block)
    return digest.hexdigest()


class CacheSlot:
    """Place of one request in the cache, held by :func:`cached`.

    Parameters
    ----------
    folder : Path
    stem : str
    request : mapping
    source_version : str

    Attributes
    ----------
    stored : CachedFiles or None
        What is there; None when it has to be made.
    problem : str
        One sentence on why nothing is stored although files are there; otherwise empty.
    image, labels : Path
        Where to write both files before :meth:`commit`.
    """

    def __init__(
        self, folder: Path, stem: str, request: Mapping[str, Any], source_version: str
    ) -> None:
        self.folder, self.stem = folder, stem
        self.request, self.source_version = dict(request), source_version
        self.key = cache_key(request, source_version)
        self.stored: CachedFiles | None = None
        self.problem = ""
        self._temporary: Path | None = None

    def path(self, ending: str) -> Path:
        """Give the final place of a file."""
        return self.folder / f"{self.stem}{ending}"

    @property
    def image(self) -> Path:
        """Temporary path to write the image to; ends in ``.nii.gz``."""
        return self._temporary_folder() / f"image{IMAGE_ENDING}"

    @property
    def labels(self) -> Path:
        """Temporary path to write the table of regions to; ends in ``.tsv``."""
        return self._temporary_folder() / f"labels{LABELS_ENDING}"

    def _temporary_folder(self) -> Path:
        if self._temporary is None:
            # Beside the target: a file can only be moved as a whole within one file system.
            self._temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.folder))
        return self._temporary

    def look(self) -> None:
        """Set ``stored`` or ``problem`` from what is in the folder now."""
        self.stored, self.problem = None, ""
        metadata = self.path(METADATA_ENDING)
        try:
            content = read_json(metadata)
            key, sizes = content["Key"], content["Files"]
            files = {
                ending: (int(sizes[ending]["Size"]), str(sizes[ending]["SHA256"]))
                for ending in (IMAGE_ENDING, LABELS_ENDING)
            }
        except (FileNotFoundError, NotADirectoryError):
            return
        except (ValueError, KeyError, TypeError):
            self.problem = f"{metadata} is damaged."
            return
        if key != self.key:
            self.problem = f"{metadata} is of another version of the source."
            return
        for ending, (size, _) in files.items():
            path = self.path(ending)
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                has = "is missing" if found is None else f"has {found} bytes instead of {size}"
                self.problem = f"{path} {has}."
                return
        self.stored = CachedFiles(
            self.path(IMAGE_ENDING), self.path(LABELS_ENDING), metadata, content
        )

    def verify(self) -> None:
        """Compare the stored files with their SHA-256.

        Raises
        ------
        IntegrityError
            A file was changed since it was stored.
        """
        if self.stored is None:
            return
        for ending in (IMAGE_ENDING, LABELS_ENDING):
            path = self.path(ending)
            if file_sha256(path) != self.stored.content["Files"][ending]["SHA256"]:
                raise IntegrityError(
                    f"{path} is not what was stored, its SHA-256 differs; fetch it again with "
                    "--refresh (refresh=True)."
                )

    def commit(self, metadata: Mapping[str, Any]) -> CachedFiles:
        """Move the files that were written to ``image`` and ``labels`` to their place.

        Parameters
        ----------
        metadata : mapping
            For the JSON: ``Source``, ``URL``, ``License``, ``Citation`` and what else is known.

        Returns
        -------
        CachedFiles
        """
        temporary = {IMAGE_ENDING: self.image, LABELS_ENDING: self.labels}
        files = {
            ending: {"Size": path.stat().st_size, "SHA256": file_sha256(path)}
            for ending, path in temporary.items()
        }
        content = {
            "Request": self.request,
            "SourceVersion": self.source_version,
            "Key": self.key,
            **metadata,
            "SHA256": files[IMAGE_ENDING]["SHA256"],
            "Size": files[IMAGE_ENDING]["Size"],
            "Files": files,
            "RetrievedAt": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "GeneratedBy": {"Name": "lacuna-nipype", "Version": __version__},
        }
        self.path(METADATA_ENDING).unlink(missing_ok=True)
        for ending, path in temporary.items():
            # Made private by some writers; the cache is as readable as any file of the user's.
            path.chmod(0o666 & ~_umask())
            os.replace(path, self.path(ending))
        write_json(self.path(METADATA_ENDING), content)
        self.look()
        if self.stored is None:
            raise IntegrityError(f"{self.problem} Something else changes it; try again.")
        return self.stored

    def discard(self) -> None:
        """Remove what was written and not committed."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextmanager
def cached(
    folder: Path,
    stem: str,
    request: Mapping[str, Any],
    source_version: str,
    *,
    refresh: bool = False,
    verify: bool = False,
) -> Iterator[CacheSlot]:
    """Look a request up, and hold its place while it is being made.

    Where ``slot.stored`` is None, the block writes ``slot.image`` and ``slot.labels`` and calls
    ``slot.commit``; other processes that want the same wait until the block ends, and find it
    stored. A block that raises leaves what was there before.

    Parameters
    ----------
    folder : Path
        See :func:`cache_folder`; created when something is to be made.
    stem : str
        See :func:`file_stem`.
    request : mapping
        See :func:`cache_key`. What is stored for another key is replaced.
    source_version : str
    refresh : bool
        Take nothing for stored.
    verify : bool
        Compare stored files with their SHA-256 and not with their size alone.

    Yields
    ------
    CacheSlot

    Raises
    ------
    IntegrityError
        A stored file was changed, with ``verify``.
    ValidationError
        The folder cannot be written to.
    """
    slot = CacheSlot(folder, stem, request, source_version)
    if not refresh:
        slot.look()
        if slot.stored is not None:
            # A folder that this user may only read needs no lock.
            if verify:
                slot.verify()
            yield slot
            return
    with locked(folder / f".{stem}.lock"):
        if not refresh:
            slot.look()
            if verify:
                slot.verify()
            if slot.problem:
                logger.warning("%s It is made again.", slot.problem)
        try:
            yield slot
        finally:
            slot.discard()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process or thread at a time into a block.

    Parameters
    ----------
    path : Path
        Empty file that stands for the lock; its folder is created. It stays, since removing it
        could let two in.

    Raises
    ------
    ValidationError
        The folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a")
    except OSError as error:
        if error.errno not in (*_NOT_WRITABLE, errno.ENOTDIR, errno.EEXIST, errno.ENOSPC):
            raise
        raise ValidationError(
            f"The folder of atlases {path.parent} cannot be written to ({error.strerror}); make "
            "room, or set LACUNA_DATA_DIR to a folder of your own."
        ) from error
    with stream:
        lock_file(stream)
        yield


def remove_stored(folder: Path, stem: str) -> None:
    """Remove an atlas from the cache; nothing happens where there is none."""
    with locked(folder / f".{stem}.lock"):
        for ending in (METADATA_ENDING, IMAGE_ENDING, LABELS_ENDING):
            (folder / f"{stem}{ending}").unlink(missing_ok=True)
