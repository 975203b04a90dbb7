"""Requests to siibra-api (v3), the atlas service of EBRAINS: pages, its errors, and files.

The service says "not found" with status 404, 400 or 500, and puts the reason as JSON into a field
of JSON; here that becomes the errors of the catalogue.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, urlencode

import requests

from lacuna_nipype.atlases.entries import AtlasNotFound, IntegrityError, SourceUnavailable
from lacuna_nipype.core.exceptions import DownloadError, ValidationError
from lacuna_nipype.core.files import parse_json
from lacuna_nipype.remote.http_client import (
    BACK_OFF,
    MOST_JSON_BYTES,
    BackOff,
    Client,
    TemporaryError,
    body_length,
    refuse_page,
    retry_after,
)
from lacuna_nipype.remote.web_addresses import shown_address

DEFAULT_URL = "https://siibra-api-stable.apps.ebrains.eu/v3_0"
URL_VARIABLE = "LACUNA_SIIBRA_URL"
VERSION_FIELD = "x-siibra-api-version"
#: Largest page that the service gives.
MOST_PER_PAGE = 100
# The first request for a map makes the service compute it, which takes minutes.
TIMEOUTS = (10.0, 300.0)
# A 500 is a reason, not a hiccup: the service answers so to unknown names.
_TEMPORARY = {429, 502, 503, 504}
_NOT_FOUND_TEXTS = (
    "has no entry matching",
    "could not be decoded under",
    "returns none",
    "not found",
)
_LONGEST_REASON = 300
_MOST_ERROR_BYTES = 2**20
_MOST_PAGES = 10_000
_GZIP_START = b"\x1f\x8b"
_Result = TypeVar("_Result")


def service_url() -> str:
    """Give the address of the service: LACUNA_SIIBRA_URL, else EBRAINS's own.

    Returns
    -------
    str
        Without a slash at its end.
    """
    return (os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")


class SiibraService:
    """The service, as one thread talks to it.

    Parameters
    ----------
    url : str, optional
        Address up to the version, :func:`service_url` by default.
    retries : int
        Further tries after 429, 502, 503, 504 and broken connections.
    back_off : BackOff
    timeouts : (float, float)
        Seconds to connect, and to wait for the next bytes.
    page_size : int
        Items asked for at once, 1 to 100.

    Raises
    ------
    ValidationError
        The size of a page is not one that the service takes.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        retries: int = 3,
        back_off: BackOff = BACK_OFF,
        timeouts: tuple[float, float] = TIMEOUTS,
        page_size: int = MOST_PER_PAGE,
    ) -> None:
        if not 1 <= page_size <= MOST_PER_PAGE:
            raise ValidationError(
                f"A page of siibra holds 1 to {MOST_PER_PAGE} items, not {page_size}."
            )
        self.url = (url or service_url()).rstrip("/")
        self.page_size = page_size
        #: Version that the service named last, empty before the first answer.
        self.version = ""
        self._client = Client(retries=retries, back_off=back_off, timeouts=timeouts)

    def __enter__(self) -> SiibraService:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.__exit__(kind, error, traceback)

    def address(self, *parts: str, **query: str | int | None) -> str:
        """Build the address of a route.

        Parameters
        ----------
        *parts : str
            Parts of the path; each is encoded as a whole, slashes included.
        **query : str, int or None
            Fields of the query; None leaves a field out.

        Returns
        -------
        str
        """
        path = "".join(f"/{quote(part, safe='')}" for part in parts)
        fields = {name: value for name, value in query.items() if value is not None}
        return f"{self.url}{path}" + (f"?{urlencode(fields)}" if fields else "")

    def read(self, *parts: str, **query: str | int | None) -> Any:
        """Read one answer in JSON.

        Parameters
        ----------
        *parts, **query
            As in :meth:`address`.

        Returns
        -------
        object

        Raises
        ------
        AtlasNotFound
            The service knows nothing of that name.
        ValidationError
            The service refuses the fields of the query.
        SourceUnavailable
            The service cannot be reached, fails, or is no siibra-api.
        """
        url = self.address(*parts, **query)
        return self._patiently(lambda: self._read_once(url), url)

    def read_pages(self, *parts: str, **query: str | int | None) -> list[dict[str, Any]]:
        """Read a listing to its end.

        Parameters
        ----------
        *parts, **query
            As in :meth:`address`.

        Returns
        -------
        list of dict
            The items of all pages.

        Raises
        ------
        AtlasNotFound, ValidationError, SourceUnavailable
            As in :meth:`read`; a listing that changes while it is read is unavailable.
        """
        items: list[dict[str, Any]] = []
        total = 0
        for number in range(1, _MOST_PAGES + 1):
            page = self.read(*parts, **query, page=number, size=self.page_size)
            found, total = self._check_page(page)
            items += found
            if len(items) >= total or not found:
                break
        if len(items) != total:
            raise SourceUnavailable(
                f"The list {shown_address(self.address(*parts))} has {total} items but gave "
                f"{len(items)}; it changed meanwhile, run the same again."
            )
        return items

    def _check_page(self, page: Any) -> tuple[list[dict[str, Any]], int]:
        fields = page if isinstance(page, dict) else {}
        items, total = fields.get("items"), fields.get("total")
        if not isinstance(total, int) or not isinstance(items, list):
            self.refuse_answer("a page of a list")
        if not all(isinstance(item, dict) for item in items):
            self.refuse_answer("a page of a list")
        return items, total

    def refuse_answer(self, what: str) -> NoReturn:
        """Complain that an answer has not the form that it must have.

        Parameters
        ----------
        what : str
            What was expected.

        Raises
        ------
        SourceUnavailable
        """
        raise SourceUnavailable(
            f"{shown_address(self.url)} did not answer with {what} as siibra-api v3 does; "
            f"check {URL_VARIABLE}."
        )

    def download(self, url: str, target: Path) -> None:
        """Write a file of the service, or of where it keeps its volumes.

        Parameters
        ----------
        url : str
        target : Path
            Where the bytes go. A name that ends in ``.gz`` must hold gzip.

        Raises
        ------
        IntegrityError
            Something else than gzip came.
        AtlasNotFound, ValidationError, SourceUnavailable
            As in :meth:`read`.
        """
        self._patiently(lambda: self._download_once(url, target), url)

    def _patiently(self, attempt: Callable[[], _Result], url: str) -> _Result:
        try:
            return self._client.keep_trying(attempt, url)
        except DownloadError as error:
            raise SourceUnavailable(f"siibra cannot be used now: {error}") from None

    def _read_once(self, url: str) -> Any:
        with self._answer(url, "application/json") as response:
            content = self._body(response, url, MOST_JSON_BYTES)
            refuse_page(response, content[:64], url)
            try:
                return parse_json(content)
            except ValueError:
                self.refuse_answer("JSON")

    def _download_once(self, url: str, target: Path) -> None:
        with self._answer(url, "application/octet-stream, */*") as response:
            size, start = 0, b""
            with target.open("wb") as stream:
                for block in self._client.read_blocks(response, url):
                    start = start if len(start) >= 64 else (start + block)[:64]
                    size += len(block)
                    stream.write(block)
            _check_length(response, size)
            refuse_page(response, start, url)
        if target.name.endswith(".gz") and not start.startswith(_GZIP_START):
            raise IntegrityError(
                f"{shown_address(url)} gave something else than a compressed image "
                f"({size} bytes); try later."
            )

    @contextmanager
    def _answer(self, url: str, accept: str) -> Iterator[requests.Response]:
        """Ask once; what is not a success becomes an error."""
        # Of any status, since the body of a refusal says what is wrong.
        with self._client.follow(url, fields={"Accept": accept}) as response:
            if url.startswith(self.url):
                self.version = response.headers.get(VERSION_FIELD, "") or self.version
            status = response.status_code
            if status in _TEMPORARY:
                wait = retry_after(response.headers.get("Retry-After"))
                raise TemporaryError(f"the server is busy or broken (status {status})", wait)
            if status != 200:
                content = self._body(response, url, _MOST_ERROR_BYTES)
                raise _error(url, status, _reason(content))
            yield response

    def _body(self, response: requests.Response, url: str, most: int) -> bytes:
        content = bytearray()
        for block in self._client.read_blocks(response, url):
            content += block
            if len(content) > most:
                raise DownloadError(shown_address(url), "its answer is too long.")
        _check_length(response, len(content))
        return bytes(content)


def _check_length(response: requests.Response, size: int) -> None:
    length = body_length(response)
    if length is not None and size < length:
        raise TemporaryError(f"the answer was cut short after {size} of {length} bytes")


def _reason(content: bytes) -> str:
    """Give the text within an error, which is JSON in a field of JSON."""
    text = content.decode("utf-8", errors="replace").strip()
    try:
        outer = parse_json(text)
    except ValueError:
        return text
    inner = outer.get("message", outer.get("detail", "")) if isinstance(outer, Mapping) else outer
    if isinstance(inner, str):
        try:
            inner = parse_json(inner)
        except ValueError:
            return inner.strip()
    if isinstance(inner, Mapping) and "detail" in inner:
        inner = inner["detail"]
    return inner.strip() if isinstance(inner, str) else json.dumps(inner)


def _error(url: str, status: int, reason: str) -> Exception:
    shown = shown_address(url)
    short = reason if len(reason) <= _LONGEST_REASON else reason[:_LONGEST_REASON] + " ..."
    lower = reason.lower()
    known = any(text in lower for text in _NOT_FOUND_TEXTS)
    # Without a reason, 400 is what /map says where there is no map.
    if status == 404 or (status in (400, 500) and known) or (status == 400 and not reason):
        return AtlasNotFound(f"siibra has nothing at {shown}: {short or 'no reason given'}")
    if status == 422:
        return ValidationError(f"siibra refuses the request of {shown}: {short}")
    if status in (401, 403):
        return SourceUnavailable(f"{shown} is not public (status {status}).")
    return SourceUnavailable(f"{shown} failed with status {status}: {short or 'no reason given'}")
