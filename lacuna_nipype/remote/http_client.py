"""Requests over https that follow redirects with care, wait, and try again."""

from __future__ import annotations

import http.client
import logging
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, NoReturn, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.auth import AuthBase

from lacuna_nipype import __version__
from lacuna_nipype.core.exceptions import AuthenticationError, DownloadError
from lacuna_nipype.core.files import parse_json
from lacuna_nipype.core.text import whole_number
from lacuna_nipype.remote.credentials import Secret, Service, key_advice
from lacuna_nipype.remote.web_addresses import (
    check_address,
    is_loopback,
    origin_of,
    shown_address,
)

logger = logging.getLogger("lacuna_nipype")

TIMEOUTS = (10.0, 60.0)
MOST_REDIRECTS = 10
# A process that is killed loses at most one block.
BLOCK_BYTES = 2**16
MOST_JSON_BYTES = 2**26
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Header:
    """A field that carries a key.

    Parameters
    ----------
    name : str
        Name of the field, e.g. ``X-Dataverse-key``.
    secret : Secret
    prefix : str
        What precedes the key, e.g. ``"token "``.

    Notes
    -----
    It is sent to the origin (scheme, host and port) of the first address alone: a redirect to
    another one drops it for good.
    """

    name: str
    secret: Secret
    prefix: str = ""


@dataclass(frozen=True)
class BackOff:
    """Seconds to wait before another try.

    Parameters
    ----------
    first : float
        After the first failure; doubled after each further one.
    longest : float
        Limit of the doubling.
    longest_asked : float
        Limit of what a server may ask for with Retry-After.
    """

    first: float = 1.0
    longest: float = 60.0
    longest_asked: float = 300.0

    def seconds(self, failures: int, asked: float | None = None) -> float:
        """Give the time to wait.

        Parameters
        ----------
        failures : int
            Failures in a row, at least 1.
        asked : float, optional
            What the server asked for.

        Returns
        -------
        float
            Between half of the doubled time and all of it, so that many clients do not come
            back at once; what the server asked for when it did.
        """
        if asked is not None:
            return min(asked, self.longest_asked)
        longest = min(self.first * 2.0 ** min(failures - 1, 60), self.longest)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - nothing secret depends on it


BACK_OFF = BackOff()


class TemporaryError(Exception):
    """A request failed in a way that another try may cure.

    Parameters
    ----------
    reason : str
        What happened, without an address.
    wait : float, optional
        Seconds to wait, where they are known.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


class Client:
    """The requests of one thread.

    Parameters
    ----------
    retries : int
        Further tries after failures without any progress between them.
    back_off : BackOff
    timeouts : (float, float)
        Seconds to connect, and to wait for the next bytes.
    cancelled : threading.Event, optional
        Once set, no request is made and no block is read.

    Notes
    -----
    Proxies and certificates are those that ``requests`` finds in the environment. Addresses of
    this machine are never asked of a proxy, and ``~/.netrc`` is not used.
    """

    def __init__(
        self,
        *,
        retries: int = 5,
        back_off: BackOff = BACK_OFF,
        timeouts: tuple[float, float] = TIMEOUTS,
        cancelled: threading.Event | None = None,
    ) -> None:
        self.retries, self.back_off, self.timeouts = retries, back_off, timeouts
        self.cancelled = cancelled or threading.Event()
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"lacuna-nipype/{__version__}"

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._session.close()

    @contextmanager
    def get(
        self,
        url: str,
        *,
        header: Header | None = None,
        service: Service | None = None,
        fields: Mapping[str, str] | None = None,
        not_found: str | None = None,
    ) -> Iterator[requests.Response]:
        """Ask for an address once, through its redirects.

        Parameters
        ----------
        url : str
        header : Header, optional
            Key to send.
        service : {"dataverse", "figshare"}, optional
            Whose key the address needs, for the message when it is refused.
        fields : mapping, optional
            Further fields of the request.
        not_found : str, optional
            Sentence for an address that does not exist.

        Yields
        ------
        requests.Response
            With status 200, 206 or 416, its body not read yet; see :meth:`read_blocks`.

        Raises
        ------
        TemporaryError
            Another try may help.
        AuthenticationError
            The key is missing, wrong, or not enough.
        DownloadError
            The address does not exist, is not https, or leads nowhere.
        """
        with self.follow(url, header=header, fields=fields) as response:
            if response.status_code not in (200, 206, 416):
                _refuse(response, url, header is not None, service, not_found)
            yield response

    @contextmanager
    def follow(
        self,
        url: str,
        *,
        header: Header | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> Iterator[requests.Response]:
        """Ask for an address once, through its redirects, whatever the answer is.

        Parameters
        ----------
        url : str
        header : Header, optional
            Key to send.
        fields : mapping, optional
            Further fields of the request.

        Yields
        ------
        requests.Response
            Of any status, its body not read yet; see :meth:`read_blocks`.

        Raises
        ------
        TemporaryError
            Another try may help.
        DownloadError
            The address is not https, or leads nowhere.
        """
        fields = {"Accept-Encoding": "identity", **(fields or {})}
        response = self._last_answer(url, header, fields)
        try:
            yield response
        finally:
            response.close()

    def _last_answer(
        self, url: str, header: Header | None, fields: Mapping[str, str]
    ) -> requests.Response:
        start, address = url, url
        check_address(address)
        for _ in range(MOST_REDIRECTS + 1):
            self.check_cancelled(start)
            response = self._request(address, header, fields)
            target = self._session.get_redirect_target(response)
            if target is None:
                return response
            response.close()
            following = urljoin(address, target)
            check_address(following, previous=address)
            if origin_of(following) != origin_of(address):
                header = None
            address = following
        raise DownloadError(
            shown_address(start), f"it leads through more than {MOST_REDIRECTS} redirects."
        )

    def _request(
        self, url: str, header: Header | None, fields: Mapping[str, str]
    ) -> requests.Response:
        host = urlsplit(url).hostname or ""
        try:
            return self._session.get(
                url,
                headers=dict(fields),
                auth=_KeyOrNothing(header),
                stream=True,
                allow_redirects=False,
                timeout=self.timeouts,
                proxies={"no_proxy": host} if is_loopback(host) else None,
            )
        except requests.exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise DownloadError(
                    shown_address(url),
                    f"the certificate of {host} is not trusted; behind a proxy with its own "
                    "certificate, name that in REQUESTS_CA_BUNDLE.",
                ) from None
            raise TemporaryError(f"the encrypted connection to {host} failed") from None
        except requests.Timeout:
            raise TemporaryError(f"{host} did not answer in time") from None
        except requests.exceptions.ProxyError:
            raise TemporaryError(f"the proxy does not connect to {host}") from None
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            raise TemporaryError(f"no connection to {host}") from None
        except (requests.RequestException, UnicodeError) as error:
            # Its text may hold the whole address, signatures in the query included.
            raise DownloadError(
                shown_address(url), f"it cannot be asked for ({type(error).__name__})."
            ) from None

    def read_blocks(self, response: requests.Response, url: str) -> Iterator[bytes]:
        """Read a body as it was sent, without undoing a compression.

        Parameters
        ----------
        response : requests.Response
        url : str
            Address asked for, for messages.

        Yields
        ------
        bytes
            At most :data:`BLOCK_BYTES`. The end of the body is not compared with its length.

        Raises
        ------
        TemporaryError
            The connection broke.
        """
        while True:
            self.check_cancelled(url)
            try:
                block = response.raw.read(BLOCK_BYTES, decode_content=False)
            except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
                raise TemporaryError(f"the connection broke ({type(error).__name__})") from None
            if not block:
                return
            yield block

    def keep_trying(
        self,
        attempt: Callable[[], _Result],
        url: str,
        reached: Callable[[], int] = lambda: 0,
    ) -> _Result:
        """Repeat a request while its failures are temporary.

        Parameters
        ----------
        attempt : callable
            Raises :class:`TemporaryError` when it is worth another try.
        url : str
            For messages.
        reached : callable
            Bytes there so far; failures are counted anew when they are more than ever before.

        Returns
        -------
        object
            What the attempt returns.

        Raises
        ------
        DownloadError
            The tries are used up, or the download was stopped.
        """
        failures, furthest = 0, reached()
        while True:
            self.check_cancelled(url)
            try:
                return attempt()
            except TemporaryError as error:
                now = reached()
                failures = 1 if now > furthest else failures + 1
                furthest = max(furthest, now)
                if failures > self.retries:
                    raise DownloadError(
                        shown_address(url),
                        f"{error.reason}; given up after {failures} tries, run the same again "
                        "later to go on from here.",
                    ) from None
                wait = self.back_off.seconds(failures, error.wait)
                logger.warning(
                    "%s: %s; next try in %.0f s.", shown_address(url), error.reason, wait
                )
                self.cancelled.wait(wait)

    def check_cancelled(self, url: str) -> None:
        """Stop here if that was asked for.

        Parameters
        ----------
        url : str
            For the message.

        Raises
        ------
        DownloadError
            The download was stopped.
        """
        if self.cancelled.is_set():
            raise DownloadError(
                shown_address(url), "the download was stopped; run the same again to go on."
            )


def open_json(
    url: str,
    *,
    header: Header | None = None,
    service: Service | None = None,
    not_found: str | None = None,
    client: Client | None = None,
) -> Any:
    """Read JSON from an address.

    Parameters
    ----------
    url : str
    header, service, not_found
        As in :meth:`Client.get`.
    client : Client, optional
        How to ask; with the usual patience by default.

    Returns
    -------
    object

    Raises
    ------
    DownloadError
        As in :meth:`Client.get`; or a web page or something else came instead of JSON.
    """

    def attempt(client: Client) -> Any:
        fields = {"Accept": "application/json"}
        with client.get(
            url, header=header, service=service, fields=fields, not_found=not_found
        ) as response:
            return _parse(response, client.read_blocks(response, url), url)

    if client is not None:
        chosen = client
        return chosen.keep_trying(lambda: attempt(chosen), url)
    with Client() as own:
        return own.keep_trying(lambda: attempt(own), url)


def _parse(response: requests.Response, blocks: Iterator[bytes], url: str) -> Any:
    content = bytearray()
    for block in blocks:
        content += block
        if len(content) > MOST_JSON_BYTES:
            raise DownloadError(shown_address(url), "its answer is too long to be a listing.")
    length = body_length(response)
    if length is not None and len(content) < length:
        raise TemporaryError("the answer was cut short")
    refuse_page(response, bytes(content[:BLOCK_BYTES]), url)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise DownloadError(shown_address(url), f"its answer is encoded as {encoding}.")
    try:
        return parse_json(content)
    except ValueError:
        raise DownloadError(
            shown_address(url), "its answer is not JSON; is the address of the service right?"
        ) from None


class _KeyOrNothing(AuthBase):
    """Add the key, if any; being there at all, it keeps ``requests`` from reading ~/.netrc."""

    def __init__(self, header: Header | None) -> None:
        self._header = header

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._header is not None:
            header = self._header
            request.headers[header.name] = header.prefix + header.secret.reveal()
        return request


def body_length(response: requests.Response) -> int | None:
    """Give the length of a body in bytes as announced, None when it was not.

    Parameters
    ----------
    response : requests.Response

    Returns
    -------
    int or None
    """
    text = response.headers.get("Content-Length", "").strip()
    # With several encodings of the transfer the length counts for nothing (RFC 9112, 6.3).
    return None if "Transfer-Encoding" in response.headers else whole_number(text)


def refuse_page(response: requests.Response, start: bytes, url: str) -> None:
    """Refuse a web page where data were asked for.

    Parameters
    ----------
    response : requests.Response
    start : bytes
        First bytes of the body, empty when it does not start at the file's beginning.
    url : str
        Address asked for.

    Raises
    ------
    DownloadError
        The type or the start of the body is that of HTML.
    """
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:32].lower()
    if kind in ("text/html", "application/xhtml+xml") or text.startswith(
        (b"<!doctype html", b"<html")
    ):
        raise DownloadError(
            shown_address(url),
            "a web page came instead of the data, probably a login page or a notice; open the "
            "address in a browser, and check the key and the terms of use.",
        )


def _refuse(
    response: requests.Response,
    url: str,
    with_key: bool,
    service: Service | None,
    not_found: str | None,
) -> NoReturn:
    status, shown = response.status_code, shown_address(url)
    if status in _TEMPORARY:
        wait = retry_after(response.headers.get("Retry-After"))
        raise TemporaryError(f"the server is busy or broken for now (status {status})", wait)
    if status in (401, 403):
        state = "the key was refused" if with_key else "a key is needed"
        advice = key_advice(service) if service else "check the key and the rights of its owner"
        if not with_key and not service:
            state, advice = "access is refused", "check in a browser whether it is public"
        raise AuthenticationError(shown, f"{state} (status {status}); {advice}.")
    if status in (404, 410):
        reason = not_found or "nothing is at this address; check it, or look for its new one."
        raise DownloadError(shown, reason)
    raise DownloadError(shown, f"the server answered with status {status} instead of the data.")


def retry_after(text: str | None, now: datetime | None = None) -> float | None:
    """Read a Retry-After field (RFC 9110, 10.2.3).

    Parameters
    ----------
    text : str or None
        Seconds, or a date.
    now : datetime, optional
        The present, with a time zone.

    Returns
    -------
    float or None
        Seconds from now, not negative; None when the field is missing or unreadable.
    """
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    present = now or datetime.now(timezone.utc)
    return max(0.0, (moment - present).total_seconds())
