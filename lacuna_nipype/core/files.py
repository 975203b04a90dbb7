"""Local files written so that nobody ever sees half of one."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from lacuna_nipype.core.exceptions import ValidationError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("lacuna_nipype")

# Files up to the first size are hashed whole, larger ones in evenly spaced blocks.
WHOLE_FILE_BYTES = 64 * 2**20
SAMPLE_BYTES = 2**16
N_SAMPLES = 64


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside the target, moved over it when the block succeeds.

    Parameters
    ----------
    target : path-like
        Final path. Its folder is created when missing.

    Yields
    ------
    pathlib.Path
        Path with the same suffixes as the target (so that writers which look at the extension
        behave), in the same folder. It is removed when the block raises.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(target.suffixes[-2:]) if target.name.endswith(".gz") else target.suffix
    handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; results are as readable as any file the user creates.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file that anybody may have written.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    object

    Raises
    ------
    OSError
        The file is missing, cannot be read, or is a folder, a pipe or a device.
    ValueError
        It is not JSON, not UTF-8, or nested too deeply to be read.
    """
    with open_regular(path) as stream:
        return parse_json(stream.read().decode("utf-8"))


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object of our own that can be made again.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    dict
        Empty where there is none, where it cannot be read, and where it holds something else.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def parse_json(text: str | bytes | bytearray) -> Any:
    """Parse JSON; :class:`ValueError` for what is none, or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open an ordinary file for reading.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    binary file

    Raises
    ------
    OSError
        As ``open``, or the file is a pipe or a device. Opening a pipe into which nobody writes
        would wait for ever.
    """
    path = Path(path)
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device", str(path))
    return path.open("rb")


def write_json(target: str | os.PathLike[str], content: Any, *, indent: int | None = 2) -> Path:
    """Write JSON atomically.

    Parameters
    ----------
    target : path-like
        File to write.
    content : object
        Anything :func:`json.dumps` takes, and arrays, numbers of numpy and paths. NaN and
        infinities become null, as JSON has neither: they come from files that other programs
        wrote, and from statistics that are not defined.
    indent : int or None
        Spaces per level; None for one line.

    Returns
    -------
    pathlib.Path
        The target.
    """
    text = json.dumps(json_safe(content), indent=indent, ensure_ascii=False, allow_nan=False)
    with atomic_path(target) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return Path(target)


def json_safe(value: Any) -> Any:
    """Make a value fit for JSON.

    Parameters
    ----------
    value : object

    Returns
    -------
    object
        With None for NaN and infinities, lists for arrays and tuples, text for paths and keys.
    """
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    if hasattr(value, "tolist"):
        return json_safe(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def lock_file(stream: IO[Any], *, wait: bool = True) -> bool:
    """Lock a file for this process; the lock goes with the process, however that ends.

    Parameters
    ----------
    stream : file
        Open for writing: NFS locks nothing else.
    wait : bool
        Until the process that has it lets it go.

    Returns
    -------
    bool
        False when another process has it. On a file system without locks, such as Lustre mounted
        without them, nothing is locked: the log says so, and the answer is True.

    Raises
    ------
    OSError
        The file cannot be locked for another reason.
    """
    try:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                return False
            logger.info("Waiting for the process that has locked %s.", stream.name)
            fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
            raise
        _warn_of_no_locks(stream.name)
    return True


@lru_cache(maxsize=1000)
def _warn_of_no_locks(path: str) -> None:
    """Say it once for each file."""
    logger.warning("The file system of %s has no locks: let no other run write there.", path)


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Write a table: tabs, ``n/a`` for missing values, ten significant digits, atomically.

    Parameters
    ----------
    path : Path
    table : DataFrame
        The index is not written.

    Returns
    -------
    Path
    """
    with atomic_path(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, na_rep="n/a", float_format="%.10g")
    return path


def fingerprint(path: Path) -> str:
    """Identify a file's content without reading a hundred gigabytes.

    Parameters
    ----------
    path : Path

    Returns
    -------
    str
        ``sha256:...`` of the whole content up to 64 MiB; for larger files ``sampled-sha256:...``
        of the size and 64 evenly spaced blocks of 64 KiB, which tells versions of a file apart
        but is no proof against tampering.
    """
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size <= WHOLE_FILE_BYTES:
            for block in iter(lambda: stream.read(2**20), b""):
                digest.update(block)
            return f"sha256:{digest.hexdigest()}"
        digest.update(size.to_bytes(8, "little"))
        for number in range(N_SAMPLES):
            stream.seek((size - SAMPLE_BYTES) * number // (N_SAMPLES - 1))
            digest.update(stream.read(SAMPLE_BYTES))
    return f"sampled-sha256:{digest.hexdigest()}"


def combined_fingerprint(paths: Sequence[Path]) -> str:
    """Identify the content of several files, in the order given; see :func:`fingerprint`."""
    return combine_fingerprints([fingerprint(path) for path in paths])


def combine_fingerprints(fingerprints: Sequence[str]) -> str:
    """Make one fingerprint of those of several files; that of a single file stays as it is.

    Parameters
    ----------
    fingerprints : sequence of str
        From :func:`fingerprint`.

    Returns
    -------
    str
        Of several, ``combined-sha256:`` and the SHA-256 of the fingerprints in their order.
    """
    if len(fingerprints) == 1:
        return fingerprints[0]
    digest = hashlib.sha256("".join(fingerprints).encode("ascii"))
    return f"combined-sha256:{digest.hexdigest()}"


def get_data_dir() -> Path:
    """Give the folder in which this package keeps what belongs to the user.

    Returns
    -------
    Path
        ``LACUNA_DATA_DIR``, else ``XDG_CACHE_HOME/lacuna``, else ``~/.cache/lacuna``; absolute,
        and not necessarily there.

    Raises
    ------
    ValidationError
        None of the variables is set, and the user has no home folder.
    """
    own = os.environ.get("LACUNA_DATA_DIR")
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser().absolute()
        # The standard of these variables says to ignore a relative path.
        if cache and Path(cache).is_absolute():
            return Path(cache) / "lacuna"
        return Path.home() / ".cache" / "lacuna"
    except RuntimeError as error:
        raise ValidationError(
            "There is no home folder to keep data in; set LACUNA_DATA_DIR to a folder."
        ) from error
