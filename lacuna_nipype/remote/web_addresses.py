"""Which addresses may be asked, and how they are shown."""

from __future__ import annotations

import ipaddress
from urllib.parse import parse_qsl, urlencode, urlsplit

from lacuna_nipype.core.exceptions import DownloadError

# Parts of a query that help to read an error message; all others may be secrets.
_SHOWN_FIELDS = {"persistentId", "page", "page_size"}


def check_address(url: str, previous: str | None = None) -> None:
    """Accept https, and http within this machine.

    Parameters
    ----------
    url : str
    previous : str, optional
        Address that redirects to it.

    Raises
    ------
    DownloadError
        The address is neither, holds a user name, or leaves https.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise DownloadError(shown_address(url), "it is not an address.") from None
    if not host or parts.scheme not in ("http", "https"):
        raise DownloadError(shown_address(url), "only addresses with https:// are downloaded.")
    if parts.username is not None or parts.password is not None:
        raise DownloadError(
            shown_address(url), "it holds a user name or password; remove them from the address."
        )
    if parts.scheme == "https":
        return
    if previous is not None and urlsplit(previous).scheme == "https":
        raise DownloadError(
            shown_address(previous), f"it redirects from https to http on {host}, refused."
        )
    if not is_loopback(host):
        raise DownloadError(
            shown_address(url), "http is not encrypted; use the address with https://."
        )


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine.

    Parameters
    ----------
    host : str
        Name or address, as :func:`urllib.parse.urlsplit` gives it.

    Returns
    -------
    bool
        True for ``localhost``, 127.0.0.0/8 and ::1; other names are not looked up.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def origin_of(url: str) -> tuple[str, str | None, int]:
    """Give the server of an address, with which a key is shared.

    Parameters
    ----------
    url : str
        Accepted by :func:`check_address`.

    Returns
    -------
    (str, str, int)
        Scheme, host and port.
    """
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def shown_address(url: str) -> str:
    """Give an address as it may be shown and stored.

    Parameters
    ----------
    url : str

    Returns
    -------
    str
        Without user name, password and fragment, and with those fields of the query alone that
        are known to hold no secret.
    """
    try:
        parts = urlsplit(url)
        fields = [(name, text) for name, text in parse_qsl(parts.query) if name in _SHOWN_FIELDS]
    except ValueError:
        return "(unreadable address)"
    query = "?" + urlencode(fields, safe=":/") if fields else ""
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}{query}"
