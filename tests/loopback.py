"""Servers on this machine that behave like those of public connectomes, faults included.

Each is a context manager with ``url``, a ``log`` of :class:`Access`, and faults that are queued
for a path: ``server.add_fault("/files/a", drop(1000))``. Files lie behind a redirect, as in
reality, to ``localhost`` with a signature in the query: for a client that is another host than
``127.0.0.1``, where the key must not go.
"""

import hashlib
import json
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

LAST_MODIFIED = formatdate(1_700_000_000, usegmt=True)
LOGIN_PAGE = b"<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>"
SIGNATURE = "signature-of-the-storage"
_BLOCK = 2**14


@dataclass
class Access:
    """One request; ``sent`` grows while the body goes out."""

    method: str
    path: str
    range: str | None
    sent: int
    had_key: bool
    status: int = 0
    host: str = ""
    fields: dict = field(default_factory=dict)

    @property
    def start(self):
        """First byte asked for."""
        return int(self.range.removeprefix("bytes=").partition("-")[0]) if self.range else 0


@dataclass(frozen=True)
class Fault:
    """What goes wrong with an answer; see the functions below."""

    status: int | None = None
    fields: tuple = ()
    body: bytes = b""
    drop_after: int | None = None
    reset: bool = True
    corrupt: bool = False
    ignore_range: bool = False
    wrong_range: bool = False
    without_length: bool = False
    without_validators: bool = False
    page: bool = False
    bytes_per_second: float | None = None
    silence: float = 0.0


def drop(after):
    """Reset the connection after some bytes."""
    return Fault(drop_after=after)


def truncate(after):
    """Close the connection in good order after some bytes; the announced length is right."""
    return Fault(drop_after=after, reset=False)


def stall(after, seconds):
    """Fall silent after some bytes."""
    return Fault(drop_after=after, silence=seconds)


def corrupt():
    """Send a wrong byte in the middle."""
    return Fault(corrupt=True)


def busy(status=503, retry_after=None):
    """Answer 429, 503 or the like."""
    fields = () if retry_after is None else (("Retry-After", str(retry_after)),)
    return Fault(status=status, fields=fields, body=b"busy")


def refuse(status=403):
    """Answer 401 or 403."""
    return Fault(status=status, body=b'{"status":"ERROR"}')


def ignore_range():
    """Send the whole file whatever was asked."""
    return Fault(ignore_range=True)


def wrong_range():
    """Send another part than asked."""
    return Fault(wrong_range=True)


def page():
    """Answer 200 with a login page."""
    return Fault(page=True)


def redirect(location, status=302):
    """Lead elsewhere."""
    return Fault(status=status, fields=(("Location", location),))


def slow(bytes_per_second):
    """Send slowly, so that a client can be killed in the middle."""
    return Fault(bytes_per_second=bytes_per_second)


@dataclass(frozen=True)
class Reply:
    """An answer: ``content`` when it is a file, which can be had in parts."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/octet-stream"
    fields: tuple = ()
    content: bytes | None = None


def json_reply(content, status=200):
    return Reply(status, json.dumps(content).encode(), "application/json")


def moved(location, status=302):
    return Reply(status, fields=(("Location", location),))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """Clients that are killed are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):  # noqa: A002
        pass

    def do_GET(self):
        self.server.owner.answer(self)

    def do_HEAD(self):
        self.server.owner.answer(self)


class LoopbackServer:
    """Files below ``/files/``; the other servers add their services.

    Parameters
    ----------
    contents : dict
        Content in bytes of each name.
    key : str, optional
        The key that counts.
    """

    def __init__(self, contents=None, key=None):
        self.contents, self.key = dict(contents or {}), key
        self.log, self._faults = [], defaultdict(deque)
        self._active, self.most_active = 0, 0
        self._lock = threading.Lock()

    def __enter__(self):
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add_fault(self, path, fault, times=1):
        """Let the next requests of a path go wrong, all of them when ``times`` is None."""
        with self._lock:
            self._faults[path].append([fault, times])

    def clear_faults(self):
        with self._lock:
            self._faults.clear()

    def accesses(self, path):
        """Requests of a path, in order."""
        return [access for access in self.log if access.path == path]

    def sent(self, path):
        """Bytes of bodies sent for a path."""
        return sum(access.sent for access in self.accesses(path))

    def file_url(self, name):
        return f"{self.url}/files/{quote(name)}"

    def storage_path(self, name):
        """Path behind the redirect, where the bytes of a file come from."""
        return f"/storage/{quote(name)}"

    def storage_url(self, name, host="localhost"):
        return f"http://{host}:{self.port}{self.storage_path(name)}?X-Signature={SIGNATURE}"

    def given_key(self, headers):
        """The key of a request."""
        return headers.get("X-Key")

    def route(self, path, query, headers):
        """Answer a request; None is 404."""
        name = unquote(path.removeprefix("/files/"))
        if path.startswith("/files/") and name in self.contents:
            return Reply(content=self.contents[name])
        return None

    def answer(self, handler):
        """Log a request, find its answer and its fault, and send both."""
        parts = urlsplit(handler.path)
        access = Access(
            handler.command, parts.path, handler.headers.get("Range"), 0,
            self.given_key(handler.headers) is not None,
            host=handler.headers.get("Host", ""), fields=dict(handler.headers),
        )  # fmt: skip
        with self._lock:
            self.log.append(access)
            fault = self._take_fault(parts.path)
        query = {name: texts[-1] for name, texts in parse_qs(parts.query).items()}
        reply = self._storage(parts.path, query) or self.route(parts.path, query, handler.headers)
        with self._counted():
            _send(handler, access, reply or Reply(404, b"nothing here", "text/plain"), fault)

    @contextmanager
    def _counted(self):
        """Count the answers that go out at the same time."""
        with self._lock:
            self._active += 1
            self.most_active = max(self.most_active, self._active)
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1

    def _take_fault(self, path):
        waiting = self._faults[path]
        if not waiting:
            return Fault()
        fault, times = waiting[0]
        if times is not None:
            waiting[0][1] -= 1
            if waiting[0][1] == 0:
                waiting.popleft()
        return fault

    def _storage(self, path, query):
        name = unquote(path.removeprefix("/storage/"))
        if not path.startswith("/storage/") or name not in self.contents:
            return None
        if query.get("X-Signature") != SIGNATURE:
            return Reply(403, b"<Error>AccessDenied</Error>", "application/xml")
        return Reply(content=self.contents[name])


def _send(handler, access, reply, fault):
    if fault.page:
        reply = Reply(200, LOGIN_PAGE, "text/html; charset=utf-8")
    elif fault.status is not None:
        reply = Reply(fault.status, fault.body, "text/plain", fault.fields)
    status, body, fields = reply.status, reply.body, list(reply.fields)
    if reply.content is not None:
        status, body, fields = _part(reply.content, handler.headers, fault)
    if not fault.without_length:
        fields.append(("Content-Length", str(len(body))))
    cut = fault.drop_after is not None or fault.without_length
    if cut:
        fields.append(("Connection", "close"))
    access.status = status
    handler.send_response(status)
    for name, text in [("Content-Type", reply.kind), *fields]:
        handler.send_header(name, text)
    handler.end_headers()
    if handler.command == "HEAD":
        return
    with suppress(BrokenPipeError, ConnectionResetError):
        _write(handler, access, body[: fault.drop_after], fault.bytes_per_second)
        time.sleep(fault.silence)
    if cut:
        handler.close_connection = True
        if fault.drop_after is not None and fault.reset:
            _reset(handler)


def _part(content, headers, fault):
    """Status, body and fields of a file, in the part asked for."""
    tag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
    fields = [("Accept-Ranges", "bytes")]
    if not fault.without_validators:
        fields += [("ETag", tag), ("Last-Modified", LAST_MODIFIED)]
    asked, condition = headers.get("Range"), headers.get("If-Range")
    body = content
    if fault.corrupt and content:
        middle = len(content) // 2
        body = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    unchanged = condition in (None, tag, LAST_MODIFIED)
    if asked is None or fault.ignore_range or not unchanged:
        return 200, body, fields
    first, _, last = asked.removeprefix("bytes=").partition("-")
    start, stop = int(first), int(last) + 1 if last else len(content)
    if start >= len(content):
        return 416, b"", [("Content-Range", f"bytes */{len(content)}")]
    if fault.wrong_range:
        start, stop = max(0, start - 7), stop - 7
    fields.append(("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}"))
    return 206, body[start:stop], fields


def _write(handler, access, body, bytes_per_second):
    block = _BLOCK if bytes_per_second is None else max(1, min(_BLOCK, int(bytes_per_second / 20)))
    for start in range(0, len(body), block):
        piece = body[start : start + block]
        handler.wfile.write(piece)
        access.sent += len(piece)
        if bytes_per_second is not None:
            time.sleep(len(piece) / bytes_per_second)


def _reset(handler):
    """Let the client see a reset instead of an orderly end."""
    # What was sent shall arrive first.
    time.sleep(0.05)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with suppress(OSError):
        handler.wfile.close()
    handler.connection.close()


class DataverseServer(LoopbackServer):
    """A data set whose files are restricted: listed for all, sent to those with the key."""

    def __init__(
        self, contents, key="dataverse-test-key", persistent_id="doi:10.1/ABC/DEF",
        checksum="MD5", tables=(),
    ):  # fmt: skip
        super().__init__(contents, key)
        self.persistent_id, self.checksum, self.tables = persistent_id, checksum, set(tables)

    def identifier(self, name):
        return 1000 + list(self.contents).index(name)

    def datafile_path(self, name):
        return f"/api/access/datafile/{self.identifier(name)}"

    def given_key(self, headers):
        return headers.get("X-Dataverse-key")

    def route(self, path, query, headers):
        given = self.given_key(headers)
        if given is not None and given != self.key:
            return json_reply({"status": "ERROR", "message": f"Bad API key {given}"}, 401)
        if path == "/api/datasets/:persistentId/versions/:latest/files":
            if query.get("persistentId") != self.persistent_id:
                return json_reply({"status": "ERROR", "message": "not found"}, 404)
            return json_reply({"status": "OK", "data": [self.entry(n) for n in self.contents]})
        for name in self.contents:
            if path == self.datafile_path(name):
                if given is None:
                    return json_reply({"status": "ERROR", "message": "restricted"}, 403)
                return moved(self.storage_url(name), 303)
        return None

    def entry(self, name):
        """One file of the listing, with the fields of the real service that matter."""
        content = self.contents[name]
        folder, _, label = name.rpartition("/")
        algorithm = self.checksum.replace("-", "").lower()
        digest = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
        data = {
            "id": self.identifier(name),
            "filename": label,
            "contentType": "application/x-tar",
            "filesize": len(content),
            "checksum": {"type": self.checksum, "value": digest},
        }
        if self.checksum == "MD5":
            data["md5"] = digest
        if name in self.tables:
            data |= {
                "filename": f"{label}.tab",
                "filesize": 12345,
                "originalFileFormat": "text/csv",
                "originalFileName": label,
                "originalFileSize": len(content),
                "md5": "0" * 32,
                "checksum": {"type": "MD5", "value": "0" * 32},
            }
        entry = {"label": data["filename"], "restricted": True, "dataFile": data}
        return entry | ({"directoryLabel": folder} if folder else {})


class FigshareServer(LoopbackServer):
    """An article of figshare's API v2, read with a token; its files are public."""

    def __init__(self, contents, key="figshare-test-key", article_id=25209947, links=()):
        super().__init__(contents, key)
        self.article_id, self.links = article_id, list(links)

    @property
    def api(self):
        return f"{self.url}/v2"

    def download_path(self, name):
        return f"/ndownloader/files/{4000 + list(self.contents).index(name)}"

    def given_key(self, headers):
        return headers.get("Authorization")

    def route(self, path, query, headers):
        given = self.given_key(headers)
        if given != f"token {self.key}":
            return json_reply({"message": "invalid token", "code": 0}, 403)
        if path == f"/v2/articles/{self.article_id}/files":
            page_size, page_number = int(query.get("page_size", 10)), int(query.get("page", 1))
            entries = [self.entry(name) for name in self.contents]
            entries += [
                {"id": number, "name": "elsewhere", "size": 0, "is_link_only": True,
                 "download_url": url, "computed_md5": "", "supplied_md5": ""}
                for number, url in enumerate(self.links)
            ]  # fmt: skip
            return json_reply(entries[(page_number - 1) * page_size :][:page_size])
        for name in self.contents:
            if path == self.download_path(name):
                return moved(self.storage_url(name), 302)
        return None

    def entry(self, name):
        content = self.contents[name]
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        path = self.download_path(name)
        return {
            "id": int(path.rpartition("/")[2]),
            "name": name,
            "size": len(content),
            "is_link_only": False,
            "download_url": f"{self.url}{path}",
            "supplied_md5": "",
            "computed_md5": digest,
            "mimetype": "application/octet-stream",
        }


class OsfServer(LoopbackServer):
    """``/{id}/download`` for each name in ``contents``, through two redirects."""

    def route(self, path, query, headers):
        parts = path.strip("/").split("/")
        if len(parts) == 2 and parts[0] in self.contents and parts[1] == "download":
            return moved(f"http://localhost:{self.port}/v1/resources/{parts[0]}", 302)
        if path.startswith("/v1/resources/") and parts[-1] in self.contents:
            return moved(self.storage_url(parts[-1], host="127.0.0.1"), 302)
        return None


class GithubServer(LoopbackServer):
    """Assets of a release, at ``release_url(name)``."""

    release = "/someone/atlas/releases/download/v1"

    def release_url(self, name):
        return f"{self.url}{self.release}/{quote(name)}"

    def route(self, path, query, headers):
        name = unquote(path.removeprefix(f"{self.release}/"))
        if path.startswith(self.release) and name in self.contents:
            return moved(self.storage_url(name), 302)
        return None
