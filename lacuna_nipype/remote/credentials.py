"""Keys of download services: where they are found, and how they stay out of sight."""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn
from urllib.parse import quote, quote_plus

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import open_regular

logger = logging.getLogger("lacuna_nipype")

Service = Literal["dataverse", "figshare"]
HIDDEN = "***"
# Files whose open permissions were reported; once is enough.
_reported: set[Path] = set()


@dataclass(frozen=True)
class _KeySource:
    """Where the key of a service is kept, and where to get one."""

    variable: str
    entry: str
    advice: str


_SOURCES: dict[str, _KeySource] = {
    "dataverse": _KeySource(
        "DATAVERSE_API_KEY",
        "dataverse_api_key",
        "log in to the Dataverse server (https://dataverse.harvard.edu for the public "
        "connectomes), accept the terms of the data set, and make a key under your name, "
        "API Token",
    ),
    "figshare": _KeySource(
        "FIGSHARE_API_KEY",
        "figshare_api_key",
        "log in to https://figshare.com and make a personal token under your name, Applications",
    ),
}


class Secret:
    """A text that is neither printed nor stored by accident.

    Parameters
    ----------
    text : str
        Key or token: printable ASCII characters without blanks; blanks around it are removed.

    Raises
    ------
    ValidationError
        The text is empty or holds other characters. The message does not repeat it.

    Notes
    -----
    ``repr``, ``str`` and formatting give ``***``; pickling and copying are refused; equality is
    identity. Only :meth:`reveal` gives the text.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        text = text.strip()
        if not text:
            raise ValidationError("A key for downloads is empty; give its text.")
        if not all("!" <= character <= "~" for character in text):
            raise ValidationError(
                "A key for downloads holds blanks or characters that no key has; copy it again."
            )
        self._text = text

    def reveal(self) -> str:
        """Give the text itself, for the one place that sends it.

        Returns
        -------
        str
        """
        return self._text

    def __repr__(self) -> str:
        return HIDDEN

    def __format__(self, specification: str) -> str:
        return HIDDEN

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("A secret cannot be pickled or copied.")


def find_key(service: Service, given: str | None = None) -> Secret | None:
    """Find the key of a service.

    Parameters
    ----------
    service : {"dataverse", "figshare"}
    given : str, optional
        What the user typed; an empty text counts as nothing.

    Returns
    -------
    Secret or None
        The first of: ``given``; the environment variable (``DATAVERSE_API_KEY``,
        ``FIGSHARE_API_KEY``); the entry ``dataverse_api_key`` or ``figshare_api_key`` of
        :func:`configuration_file`. None when there is none.

    Raises
    ------
    ValidationError
        The key cannot be one, or the configuration file is no YAML mapping.
    """
    source = _SOURCES[service]
    for text in (given, os.environ.get(source.variable)):
        if text and text.strip():
            return Secret(text)
    text = _read_entry(configuration_file(), source.entry)
    return Secret(text) if text else None


def key_advice(service: Service) -> str:
    """Say where to get a key and how to give it.

    Parameters
    ----------
    service : {"dataverse", "figshare"}

    Returns
    -------
    str
        Part of a sentence, without a full stop.
    """
    source = _SOURCES[service]
    return f"{source.advice}, then give it with --api-key or in {source.variable}"


def configuration_file() -> Path:
    """Give the path of the user's configuration file, which need not exist.

    Returns
    -------
    Path
        ``lacuna/config.yaml`` below ``XDG_CONFIG_HOME``, else below ``~/.config``.
    """
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "lacuna" / "config.yaml"


def redact(text: str, *secrets: Secret | None) -> str:
    """Replace secrets in a text, also where they are quoted for an address.

    Parameters
    ----------
    text : str
    *secrets : Secret or None

    Returns
    -------
    str
    """
    for secret in secrets:
        if secret is not None:
            key = secret.reveal()
            for form in {key, quote(key, safe=""), quote(key), quote_plus(key)}:
                text = text.replace(form, HIDDEN)
    return text


def _read_entry(path: Path, entry: str) -> str | None:
    import yaml  # type: ignore[import-untyped]

    try:
        with open_regular(path) as stream:
            content = stream.read().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ValidationError(f"{path} cannot be read ({type(error).__name__}).") from None
    _report_open_permissions(path)
    try:
        entries = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # The parser quotes the line at fault, which may be the one with the key.
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark is not None else ""
        raise ValidationError(f"{path} is not valid YAML{place}; correct it.") from None
    if entries is None:
        return None
    if not isinstance(entries, dict):
        raise ValidationError(f"{path} must hold lines like {entry}: KEY.")
    text = entries.get(entry)
    if text is not None and not isinstance(text, str):
        raise ValidationError(f"{path}: put the value of {entry} in quotes.")
    return text.strip() if text else None


def _report_open_permissions(path: Path) -> None:
    if path not in _reported and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        _reported.add(path)
        logger.warning("%s is open to other users; run: chmod 600 %s", path, path)
