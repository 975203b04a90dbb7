"""What the services that hold public connectomes offer: Dataverse, figshare, OSF, GitHub."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from lacuna_nipype.core.exceptions import DownloadError, ValidationError
from lacuna_nipype.remote.http_client import Client, Header, open_json
from lacuna_nipype.remote.transfer import RemoteFile
from lacuna_nipype.remote.web_addresses import check_address, shown_address

logger = logging.getLogger("lacuna_nipype")

DATAVERSE_SERVER = "https://dataverse.harvard.edu"
FIGSHARE_API = "https://api.figshare.com/v2"
OSF_SERVER = "https://osf.io"
DATAVERSE_FIELD = "X-Dataverse-key"
FIGSHARE_FIELD, FIGSHARE_PREFIX = "Authorization", "token "
_PAGE_SIZE = 100
_MOST_PAGES = 1000


def list_dataverse(
    server: str,
    persistent_id: str,
    header: Header | None = None,
    *,
    client: Client | None = None,
) -> list[RemoteFile]:
    """List the files of the latest version of a Dataverse data set.

    Parameters
    ----------
    server : str
        E.g. :data:`DATAVERSE_SERVER`.
    persistent_id : str
        E.g. ``doi:10.7910/DVN/ILXIKS``.
    header : Header, optional
        Key in the field :data:`DATAVERSE_FIELD`.
    client : Client, optional
        How to ask.

    Returns
    -------
    list of RemoteFile
        In the order of the server, restricted files included; names hold the folder in the data
        set. Tables that Dataverse has converted are those that were uploaded: their checksum is
        not known, since the one in the listing is not that of any file it sends.

    Raises
    ------
    AuthenticationError, DownloadError
        The key is wrong, the data set does not exist, or the answer is no listing.
    """
    base = server.rstrip("/")
    query = urlencode({"persistentId": persistent_id}, safe=":/")
    url = f"{base}/api/datasets/:persistentId/versions/:latest/files?{query}"
    answer = open_json(
        url,
        header=header,
        service="dataverse",
        not_found=f"this server has no data set {persistent_id}, or shows it to its owner alone.",
        client=client,
    )
    entries = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        raise _no_listing(url)
    try:
        return [_dataverse_file(base, entry) for entry in entries]
    except ValidationError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError):
        raise _no_listing(url) from None


def _dataverse_file(base: str, entry: Mapping[str, Any]) -> RemoteFile:
    content = entry["dataFile"]
    folder = entry.get("directoryLabel")
    label = entry.get("label") or content["filename"]
    size, checksum = content.get("filesize"), _dataverse_checksum(content)
    url = f"{base}/api/access/datafile/{int(content['id'])}"
    if content.get("originalFileFormat"):
        label, size = content.get("originalFileName") or label, content.get("originalFileSize")
        url, checksum = f"{url}?format=original", ("", "")
    name = f"{folder}/{label}" if folder else label
    kind, text = checksum
    if text and kind not in ("MD5", "SHA-256"):
        logger.warning("%s: a %s checksum is not compared, only the size.", name, kind)
    return RemoteFile(
        name,
        url,
        int(size) if size is not None else None,
        md5=text if kind == "MD5" else None,
        sha256=text if kind == "SHA-256" else None,
        service="dataverse",
    )


def _dataverse_checksum(content: Mapping[str, Any]) -> tuple[str, str]:
    checksum = content.get("checksum")
    if checksum:
        return str(checksum["type"]).upper(), str(checksum["value"])
    # Older servers have this field alone.
    return "MD5", content.get("md5") or ""


def list_figshare(
    api: str,
    article_id: int | str,
    header: Header | None = None,
    *,
    client: Client | None = None,
    page_size: int = _PAGE_SIZE,
) -> list[RemoteFile]:
    """List the files of a figshare article.

    Parameters
    ----------
    api : str
        E.g. :data:`FIGSHARE_API`.
    article_id : int or str
    header : Header, optional
        Token in the field :data:`FIGSHARE_FIELD`, after :data:`FIGSHARE_PREFIX`.
    client : Client, optional
        How to ask.
    page_size : int
        Files asked for at once.

    Returns
    -------
    list of RemoteFile
        In the order of the server. Links to files elsewhere are left out with a warning.

    Raises
    ------
    AuthenticationError, DownloadError
        The token is wrong, the article does not exist, or the answer is no listing.
    """
    base = api.rstrip("/")
    files: dict[int, RemoteFile] = {}
    seen: set[int] = set()
    for page in range(1, _MOST_PAGES + 1):
        url = f"{base}/articles/{quote(str(article_id), safe='')}/files?" + urlencode(
            {"page": page, "page_size": page_size}
        )
        entries = open_json(
            url,
            header=header,
            service="figshare",
            not_found=f"figshare has no public article {article_id}.",
            client=client,
        )
        if not isinstance(entries, list):
            raise _no_listing(url)
        try:
            new = {int(entry["id"]): entry for entry in entries if int(entry["id"]) not in seen}
            for number, entry in new.items():
                if entry.get("is_link_only"):
                    logger.warning("%s: is a link to another site, left out.", entry["name"])
                else:
                    files[number] = _figshare_file(base, entry)
        except ValidationError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError):
            raise _no_listing(url) from None
        seen |= set(new)
        # A server that ignores the pages gives the same one again.
        if len(entries) < page_size or not new:
            return list(files.values())
    raise _no_listing(base)


def _figshare_file(base: str, entry: Mapping[str, Any]) -> RemoteFile:
    url = str(entry["download_url"])
    check_address(url)
    host, home = urlsplit(url).hostname or "", urlsplit(base).hostname or ""
    # The token goes where the listing says, so that must be a server of the same service.
    domain = ".".join(home.split(".")[-2:])
    if host != home and not (host.endswith(f".{domain}") and "figshare" in domain):
        raise DownloadError(
            shown_address(url), f"{entry['name']} lies outside of figshare; get it by hand."
        )
    md5 = entry.get("computed_md5") or entry.get("supplied_md5") or None
    return RemoteFile(str(entry["name"]), url, int(entry["size"]), md5=md5, service="figshare")


def plain_file(
    url: str,
    name: str | None = None,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
) -> RemoteFile:
    """Describe a file that is at an address and needs no key.

    Parameters
    ----------
    url : str
    name : str, optional
        By default the last part of the address.
    size : int, optional
        Bytes, where they are known.
    md5, sha256 : str, optional
        Checksums, where they are known.

    Returns
    -------
    RemoteFile

    Raises
    ------
    DownloadError
        The address is not https (http within this machine is accepted).
    ValidationError
        The name, size or a checksum is none.
    """
    check_address(url)
    chosen = name or unquote(urlsplit(url).path.rpartition("/")[2])
    if not chosen:
        raise ValidationError(f"{shown_address(url)} does not end in the name of a file; give it.")
    return RemoteFile(chosen, url, size, md5=md5, sha256=sha256)


def osf_url(file_id: str, server: str = OSF_SERVER) -> str:
    """Give the address that sends a file of the Open Science Framework.

    Parameters
    ----------
    file_id : str
        Its short identifier: the letters and digits after ``osf.io/``.
    server : str

    Returns
    -------
    str

    Raises
    ------
    ValidationError
        The identifier is none.
    """
    if not re.fullmatch(r"[0-9A-Za-z]{5,32}", file_id):
        raise ValidationError(
            f"{file_id!r} is no OSF file identifier; these are the letters and digits after "
            "https://osf.io/."
        )
    return f"{server.rstrip('/')}/{file_id}/download"


def github_release(
    url: str,
    name: str | None = None,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
) -> RemoteFile:
    """Describe a file of a GitHub release.

    Parameters
    ----------
    url : str
        ``https://github.com/OWNER/REPOSITORY/releases/download/TAG/FILE``.
    name, size, md5, sha256
        As in :func:`plain_file`.

    Returns
    -------
    RemoteFile

    Raises
    ------
    ValidationError
        The address is not that of a file of a release.
    """
    if not re.fullmatch(r"/[^/]+/[^/]+/releases/download/[^/]+/[^/]+", urlsplit(url).path):
        raise ValidationError(
            f"{shown_address(url)} is not a file of a GitHub release; copy its address from the "
            "list of assets."
        )
    return plain_file(url, name, size, md5=md5, sha256=sha256)


def _no_listing(url: str) -> DownloadError:
    return DownloadError(
        shown_address(url), "its answer is not the list of files that was expected; is the "
        "address of the service right?"
    )  # fmt: skip
