"""Files that must stay what they are for as long as a run reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import fingerprint


def require_content(path: Path, expected: str) -> None:
    """Raise when a file is not, or no longer, the one that a run began with.

    Parameters
    ----------
    path : Path
    expected : str
        From :func:`lacuna_nipype.core.files.fingerprint`.

    Raises
    ------
    ValidationError
        Its content is another one, or it is gone.
    """
    try:
        found = fingerprint(path)
    except OSError as error:
        reason = error.strerror or error
        raise ValidationError(
            f"{path} cannot be read any more ({reason}); put it back and run again."
        ) from error
    if found != expected:
        raise ValidationError(
            f"{path} has changed since the run began; run again, and leave the file alone "
            "meanwhile."
        )


@contextmanager
def unchanged(contents: Mapping[Path, str]) -> Iterator[None]:
    """Hold files to their contents before and after they are read.

    Parameters
    ----------
    contents : mapping of Path to str
        Fingerprints.

    Raises
    ------
    ValidationError
        A file has changed. This is also said in place of what went wrong in the block, which is
        then what came of reading half of the one file and half of the other.
    """
    _require_all(contents)
    try:
        yield
    finally:
        _require_all(contents)


def _require_all(contents: Mapping[Path, str]) -> None:
    for path, expected in contents.items():
        require_content(path, expected)
