"""Downloads from servers that misbehave; processes that are killed, interrupted, or meet."""

import errno
import fcntl
import hashlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
from loopback import (
    SIGNATURE,
    DataverseServer,
    Fault,
    LoopbackServer,
    busy,
    corrupt,
    drop,
    ignore_range,
    page,
    redirect,
    refuse,
    slow,
    stall,
    truncate,
    wrong_range,
)

from lacuna_nipype.core.exceptions import AuthenticationError, DownloadError, ValidationError
from lacuna_nipype.remote.credentials import Secret
from lacuna_nipype.remote.download import BackOff, Header, RemoteFile, download_files
from lacuna_nipype.remote.http_client import retry_after
from lacuna_nipype.remote.transfer import part_path
from lacuna_nipype.remote.web_addresses import check_address, shown_address

QUICK = BackOff(first=0.01, longest=0.02, longest_asked=0.05)
CONTENT = random.Random(6).randbytes(400_000)
NAME, PATH = "data/a.tar", "/files/data/a.tar"
KEY = "0f1e2d3c-test-key-4b5a"


@pytest.fixture
def server():
    with LoopbackServer({NAME: CONTENT}) as loopback:
        yield loopback


@pytest.fixture
def file(server):
    return describe(server)


def describe(server, name=NAME, **changes):
    content = server.contents[name]
    known = {"size": len(content), "md5": hashlib.md5(content).hexdigest()}  # noqa: S324
    return RemoteFile(name, server.file_url(name), **(known | changes))


def fetch(file, folder, **options):
    (path,) = download_files([file], folder, **({"back_off": QUICK} | options))
    return path


def leftovers(folder):
    """Temporary files of downloads."""
    return sorted(path.name for path in folder.rglob(".*"))


def ranges(server, path=PATH):
    return [access.range for access in server.accesses(path)]


def interrupt(server, file, folder, after=200_000):
    """Leave an unfinished file behind; its size."""
    server.add_fault(PATH, drop(after))
    with pytest.raises(DownloadError):
        fetch(file, folder, retries=0)
    return part_path(folder / file.name).stat().st_size


def test_file_arrives_whole(server, file, tmp_path):
    states = []
    path = fetch(file, tmp_path / "new" / "folder", progress=states.append)
    assert path == tmp_path / "new" / "folder" / NAME
    assert path.read_bytes() == CONTENT
    assert leftovers(tmp_path) == []
    assert ranges(server) == [None]
    first, last = states[0], states[-1]
    assert (first.bytes_transferred, first.files_completed, first.bytes_total) == (0, 0, 400_000)
    assert (last.bytes_transferred, last.files_completed, last.files_total) == (400_000, 1, 1)
    sizes = [state.bytes_transferred for state in states]
    assert sizes == sorted(sizes)
    assert {state.current_file for state in states} == {NAME}


@pytest.mark.parametrize("known", [{}, {"md5": None}, {"size": None}, {"size": None, "md5": None}])
@pytest.mark.parametrize("fault", [drop(200_000), truncate(200_000), stall(200_000, 1)])
def test_broken_connection_is_resumed(server, tmp_path, fault, known):
    server.add_fault(PATH, fault)
    path = fetch(describe(server, **known), tmp_path, timeouts=(5, 0.3))
    assert path.read_bytes() == CONTENT
    first, second = server.accesses(PATH)
    # What the client had when the connection broke, up to a block that was on its way.
    assert 200_000 - 2**16 <= second.start <= 200_000
    assert second.sent == 400_000 - second.start
    assert second.fields["If-Range"] == f'"{hashlib.md5(CONTENT).hexdigest()}"'  # noqa: S324
    assert first.range is None


@pytest.mark.parametrize(
    "fault", [busy(429, 0), busy(503), busy(500), busy(502), busy(504), corrupt()]
)
def test_passing_faults(server, file, tmp_path, fault):
    server.add_fault(PATH, fault)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert ranges(server) == [None, None]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("fault", [ignore_range(), wrong_range(), Fault(status=416)])
@pytest.mark.parametrize("md5", ["known", None])
def test_range_that_is_not_honoured(server, tmp_path, fault, md5):
    file = describe(server) if md5 else describe(server, md5=None)
    size = interrupt(server, file, tmp_path)
    server.add_fault(PATH, fault)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    expected = [f"bytes={size}-"] + ([] if fault.ignore_range else [None])
    assert ranges(server)[1:] == expected


def test_many_drops_with_progress_between(server, file, tmp_path):
    server.add_fault(PATH, drop(70_000), times=4)
    assert fetch(file, tmp_path, retries=1).read_bytes() == CONTENT
    starts = [access.start for access in server.accesses(PATH)]
    assert starts == sorted(set(starts))


def test_drops_without_progress_come_to_an_end(server, file, tmp_path):
    server.add_fault(PATH, Fault(drop_after=150_000, ignore_range=True), times=None)
    with pytest.raises(DownloadError, match="given up after 4 tries"):
        fetch(file, tmp_path, retries=3)
    # The first one made progress.
    assert len(server.accesses(PATH)) == 4


@pytest.mark.parametrize("status", [429, 503])
def test_tries_are_counted(server, file, tmp_path, status):
    server.add_fault(PATH, busy(status, retry_after=30), times=None)
    start = time.monotonic()
    with pytest.raises(DownloadError, match=str(status)):
        fetch(file, tmp_path, retries=2)
    assert len(server.accesses(PATH)) == 3
    assert time.monotonic() - start >= 2 * QUICK.longest_asked


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (refuse(401), AuthenticationError),
        (refuse(403), AuthenticationError),
        (Fault(status=404), DownloadError),
        (Fault(status=410), DownloadError),
        (Fault(status=202), DownloadError),
        (page(), DownloadError),
        (Fault(status=200, body=b"\n <!doctype HTML><p>log in"), DownloadError),
    ],
)
def test_final_answers_are_not_repeated(server, file, tmp_path, fault, kind):
    server.add_fault(PATH, fault, times=None)
    with pytest.raises(DownloadError) as caught:
        fetch(file, tmp_path)
    assert type(caught.value) is kind
    assert server.file_url(NAME) in str(caught.value)
    assert len(server.log) == 1
    assert not (tmp_path / NAME).exists()
    assert leftovers(tmp_path) == []


def test_login_page_does_not_cost_the_part(server, file, tmp_path):
    size = interrupt(server, file, tmp_path)
    server.add_fault(PATH, page())
    with pytest.raises(DownloadError, match="login page"):
        fetch(file, tmp_path)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert ranges(server)[-1] == f"bytes={size}-"


def test_page_that_is_wanted(tmp_path):
    text = b"<!doctype html><p>terms"
    with LoopbackServer({"terms.html": text}) as server:
        assert fetch(describe(server, "terms.html"), tmp_path).read_bytes() == text


@pytest.mark.parametrize("options", [{}, {"skip_checksum": True}])
def test_wrong_checksum_twice(server, file, tmp_path, options):
    server.add_fault(PATH, corrupt(), times=None)
    if options:
        assert fetch(file, tmp_path, **options).read_bytes() != CONTENT
        return
    with pytest.raises(DownloadError, match="md5") as caught:
        fetch(file, tmp_path)
    assert NAME in str(caught.value)
    assert len(server.accesses(PATH)) == 2
    assert not (tmp_path / NAME).exists()
    assert leftovers(tmp_path) == []


def test_sha256(server, tmp_path):
    wrong = describe(server, md5=None, sha256="0" * 64)
    with pytest.raises(DownloadError, match="sha256"):
        fetch(wrong, tmp_path)
    right = describe(server, md5=None, sha256=hashlib.sha256(CONTENT).hexdigest().upper())
    assert fetch(right, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [399_999, 400_001, 0])
@pytest.mark.parametrize("fault", [Fault(), Fault(without_length=True)])
def test_listing_with_another_size(server, tmp_path, size, fault):
    server.add_fault(PATH, fault, times=None)
    with pytest.raises(DownloadError):
        fetch(describe(server, size=size, md5=None), tmp_path, retries=1)
    assert not (tmp_path / NAME).exists()


def test_part_is_checked_from_its_beginning(server, file, tmp_path):
    interrupt(server, file, tmp_path)
    part = part_path(tmp_path / NAME)
    damaged = bytearray(part.read_bytes())
    damaged[10] ^= 1
    part.write_bytes(damaged)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert ranges(server)[-1] is None


def test_file_that_changed_on_the_server(server, tmp_path):
    interrupt(server, describe(server, md5=None), tmp_path)
    server.contents[NAME] = CONTENT[::-1]
    assert fetch(describe(server, md5=None), tmp_path).read_bytes() == CONTENT[::-1]
    # Refused by If-Range, in one request.
    assert [access.status for access in server.accesses(PATH)] == [200, 200]


@pytest.mark.parametrize(("md5", "resumed"), [(None, False), ("known", True)])
def test_without_validators_only_a_checksum_lets_resume(server, tmp_path, md5, resumed):
    file = describe(server) if md5 else describe(server, md5=None)
    server.add_fault(PATH, Fault(drop_after=200_000, without_validators=True))
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert (ranges(server)[1] is not None) is resumed


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"url": 1}', b'{"url":"x","etag":"y","last_modified":1,"size":2}']
)
def test_damaged_record(server, file, tmp_path, text):
    interrupt(server, file, tmp_path)
    record = part_path(tmp_path / NAME).with_name(".a.tar.part.json")
    record.write_bytes(text)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert leftovers(tmp_path) == []


def test_part_that_is_whole(server, tmp_path):
    """Killed between the last byte and the renaming."""
    for known in ({}, {"size": None, "md5": None}):
        file = describe(server, **known)
        interrupt(server, file, tmp_path)
        part_path(tmp_path / NAME).write_bytes(CONTENT)
        n_before = len(server.log)
        assert fetch(file, tmp_path).read_bytes() == CONTENT
        # The size is known, or the server says that no byte follows.
        assert [access.status for access in server.log[n_before:]] == ([416] if known else [])
        (tmp_path / NAME).unlink()


def test_complete_file_needs_no_request(server, file, tmp_path):
    path = fetch(file, tmp_path)
    assert fetch(file, tmp_path) == path
    assert len(server.log) == 1
    fetch(file, tmp_path, force=True)
    assert len(server.log) == 2
    path.write_bytes(CONTENT[:-1] + b"x")
    assert fetch(file, tmp_path, skip_checksum=True).read_bytes() != CONTENT
    assert len(server.log) == 2
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    path.write_bytes(CONTENT[:-1])
    assert fetch(file, tmp_path, skip_checksum=True).read_bytes() == CONTENT
    assert len(server.log) == 4


def test_force_starts_anew(server, file, tmp_path):
    interrupt(server, file, tmp_path)
    fetch(file, tmp_path, force=True)
    assert ranges(server)[-1] is None


def test_empty_file(tmp_path):
    with LoopbackServer({"empty": b""}) as server:
        assert fetch(describe(server, "empty"), tmp_path).read_bytes() == b""
        assert fetch(describe(server, "empty", size=None), tmp_path, force=True).exists()


def test_nothing_to_do(tmp_path):
    assert download_files([], tmp_path) == []


def test_files_in_parallel(tmp_path):
    contents = {f"sub/{number}.tar": CONTENT[: 40_000 + number] for number in range(6)}
    with LoopbackServer(contents) as server:
        for name in contents:
            server.add_fault(f"/files/{name}", slow(400_000))
        files = [describe(server, name) for name in contents]
        paths = download_files(files, tmp_path, n_parallel=3, back_off=QUICK)
        assert server.most_active in (2, 3)
    assert [path.read_bytes() for path in paths] == list(contents.values())
    assert [path.name for path in paths] == [f"{number}.tar" for number in range(6)]


def test_one_failure_stops_the_others(tmp_path):
    contents = dict.fromkeys("abcd", CONTENT)
    with LoopbackServer(contents) as server:
        server.add_fault("/files/a", refuse(403))
        for name in "bcd":
            server.add_fault(f"/files/{name}", slow(100_000))
        start = time.monotonic()
        with pytest.raises(AuthenticationError):
            download_files([describe(server, name) for name in contents], tmp_path)
        assert time.monotonic() - start < 2
        assert not server.accesses("/files/d")
        server.clear_faults()
        download_files([describe(server, name) for name in contents], tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    ["", "/etc/a", "../a", "a/../../b", "a//b", "./a", "a\\b", "a\nb", "a\0b", "a/", "é" * 200,
     ".a.part", "b/.a.part.json"],
)  # fmt: skip
def test_names_that_are_refused(name):
    with pytest.raises(ValidationError):
        RemoteFile(name, "https://host.org/a")


@pytest.mark.parametrize("fields", [{"size": -1}, {"md5": "0" * 31}, {"sha256": "x" * 64}])
def test_impossible_descriptions(fields):
    with pytest.raises(ValidationError):
        RemoteFile("a", "https://host.org/a", **fields)


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b")])
def test_names_that_collide(names, tmp_path):
    files = [RemoteFile(name, "https://host.org/a") for name in names]
    with pytest.raises(ValidationError):
        download_files(files, tmp_path)


def test_disk_too_small_is_said_before_the_start(server, file, tmp_path, monkeypatch):
    free = lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 300_000, 300_000)
    monkeypatch.setattr(shutil, "disk_usage", free)
    with pytest.raises(DownloadError, match=r"0\.40 MB .* 0\.30 MB") as caught:
        fetch(file, tmp_path / "not" / "there")
    assert str(tmp_path / "not" / "there") in str(caught.value)
    assert not server.log


def test_space_counts_what_is_missing(server, file, tmp_path, monkeypatch):
    size = interrupt(server, file, tmp_path)
    needed = 400_000 - size + 2**26
    for free, enough in ((needed - 1, False), (needed, True)):
        usage = shutil._ntuple_diskusage(10**9, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        if enough:
            fetch(file, tmp_path)
        else:
            with pytest.raises(DownloadError, match="free"):
                fetch(file, tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_that_gets_full(server, file, tmp_path):
    (tmp_path / "data").mkdir()
    part_path(tmp_path / NAME).symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="no space is left") as caught:
        fetch(file, tmp_path)
    assert str(tmp_path / NAME) in str(caught.value)
    assert len(server.log) == 1


def test_disk_that_gets_full_at_the_end(server, file, tmp_path, monkeypatch):
    def fsync(number):
        raise OSError(errno.EDQUOT, "quota")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(DownloadError, match="no space is left"):
            fetch(file, tmp_path)
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert len(server.log) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://host.org/a",
        "http://localhost.host.org/a",
        "http://127.0.0.1.host.org/a",
        "http://10.0.0.1/a",
        "http://127.0.0.1\\@host.org/a",
        "ftp://host.org/a",
        "file:///etc/passwd",
        "https:///a",
        "https://user:word@host.org/a",
        "https://[::1/a",
        "https://host.org:port/a",
        "a.tar",
        "",
    ],
)
def test_addresses_that_are_refused(url, tmp_path):
    with pytest.raises(DownloadError) as caught:
        fetch(RemoteFile("a", url), tmp_path)
    assert "word" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    "url",
    ["https://host.org/a", "http://localhost/a", "http://127.8.9.1:80/a", "http://[::1]:8080/a"],
)
def test_addresses_that_are_accepted(url):
    check_address(url)


def test_redirects(server, file, tmp_path):
    server.add_fault(PATH, redirect("http://host.org/a"))
    with pytest.raises(DownloadError, match="https"):
        fetch(file, tmp_path)
    for target in ("http://127.0.0.1/a", "http://host.org/a"):
        with pytest.raises(DownloadError, match="redirects from https to http"):
            check_address(target, previous="https://host.org/b")
    server.add_fault(PATH, redirect("?again=1"), times=None)
    with pytest.raises(DownloadError, match="redirects"):
        fetch(file, tmp_path)
    assert len(server.accesses(PATH)) == 1 + 11
    server.clear_faults()
    server.add_fault(PATH, redirect("../../files/data/./a.tar", 307))
    assert fetch(file, tmp_path).read_bytes() == CONTENT


def test_key_is_dropped_for_good_when_the_host_changes(server, file, tmp_path):
    header = Header("X-Key", Secret(KEY))
    server.add_fault(PATH, redirect(f"http://localhost:{server.port}{PATH}"))
    server.add_fault(PATH, redirect(server.file_url(NAME)))
    fetch(file, tmp_path, header=header)
    assert [access.had_key for access in server.log] == [True, False, False]
    # Another port of the same host is another server.
    with LoopbackServer({NAME: CONTENT}) as other:
        server.add_fault(PATH, redirect(other.file_url(NAME)))
        fetch(file, tmp_path, header=header, force=True)
        assert [access.had_key for access in other.log] == [False]
    server.add_fault(PATH, redirect(f"{PATH}?again=1"))
    fetch(file, tmp_path, header=header, force=True)
    assert [access.had_key for access in server.log[-2:]] == [True, True]


def test_environment_of_requests(server, file, tmp_path, monkeypatch):
    """No name and password from ~/.netrc; no proxy for this machine."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password hidden\ndefault login a password b")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    fetch(file, tmp_path)
    assert "Authorization" not in server.log[0].fields


def test_nobody_answers(tmp_path):
    with LoopbackServer({NAME: CONTENT}) as server:
        file = describe(server)
    with pytest.raises(DownloadError, match="no connection to 127"):
        fetch(file, tmp_path, retries=1)


def test_retry_after():
    now = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
    assert retry_after("120", now) == 120
    later = format_datetime(now + timedelta(seconds=90), usegmt=True)
    assert retry_after(later, now) == 90
    assert retry_after(format_datetime(now - timedelta(1), usegmt=True), now) == 0
    for text in (None, "", "soon", "-1", "1.5"):
        assert retry_after(text, now) is None


def test_back_off():
    times = BackOff(first=1, longest=10, longest_asked=20)
    for failures, longest in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (5000, 10)):
        drawn = [times.seconds(failures) for _ in range(50)]
        assert longest / 2 <= min(drawn) < max(drawn) <= longest
    assert times.seconds(1, 15) == 15
    assert times.seconds(1, 9999) == 20


def test_shown_address():
    url = "https://me:word@host.org:8080/a?key=x&persistentId=doi:10.1/A&token=y#z"
    assert shown_address(url) == "https://host.org:8080/a?persistentId=doi:10.1/A"


def test_stop_by_event(server, file, tmp_path):
    server.add_fault(PATH, slow(200_000))
    stop = threading.Event()

    def progress(state):
        if state.bytes_transferred > 50_000:
            stop.set()

    with pytest.raises(DownloadError, match="stopped"):
        fetch(file, tmp_path, cancelled=stop, progress=progress)
    assert 0 < part_path(tmp_path / NAME).stat().st_size < 400_000
    assert fetch(file, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_error_in_the_callback_stops_the_threads(server, file, tmp_path, error):
    server.add_fault(PATH, slow(200_000))

    def progress(state):
        if state.bytes_transferred > 50_000:
            raise error

    with pytest.raises(error):
        fetch(file, tmp_path, progress=progress)
    size = part_path(tmp_path / NAME).stat().st_size
    time.sleep(0.3)
    assert part_path(tmp_path / NAME).stat().st_size == size
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={size}-"]


SCRIPT = """
import logging, sys
from pathlib import Path
from lacuna_nipype.remote.credentials import find_key
from lacuna_nipype.remote.download import BackOff, Header, download_files
from lacuna_nipype.remote.services import list_dataverse

logging.basicConfig(level=logging.DEBUG)
header = Header("X-Dataverse-key", find_key("dataverse"))
files = list_dataverse(sys.argv[1], "doi:10.1/ABC/DEF", header)
back_off = BackOff(first=0.01, longest=0.02)
download_files(files, Path(sys.argv[2]), header=header, back_off=back_off, progress=print)
"""
PAIR = {"raw/a.tar": CONTENT, "raw/b.tar": CONTENT[::-1]}


def start(server, folder, key=KEY):
    """Download a data set in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, server.url, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DATAVERSE_API_KEY": key, "PYTHONFAULTHANDLER": "1"},
    )


def wait_for_parts(process, folder, size):
    """Wait until every part has some bytes; the parts."""
    parts = [part_path(folder / name) for name in PAIR]
    end = time.monotonic() + 30
    while not all(part.exists() and part.stat().st_size >= size for part in parts):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    return parts


def test_kill_and_second_call_asks_for_the_rest(tmp_path):
    with DataverseServer(PAIR, key=KEY) as server:
        for name in PAIR:
            server.add_fault(server.storage_path(name), slow(200_000))
        process = start(server, tmp_path)
        parts = wait_for_parts(process, tmp_path, 130_000)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        sizes = [part.stat().st_size for part in parts]
        assert all(130_000 <= size < 400_000 for size in sizes)
        assert not any((tmp_path / name).exists() for name in PAIR)
        server.clear_faults()
        second = start(server, tmp_path)
        output = second.communicate(timeout=60)
    assert second.returncode == 0, output
    for (name, content), size in zip(PAIR.items(), sizes, strict=True):
        assert (tmp_path / name).read_bytes() == content
        _, resumed = server.accesses(server.storage_path(name))
        assert (resumed.range, resumed.sent) == (f"bytes={size}-", 400_000 - size)
    assert leftovers(tmp_path) == []


def test_interrupt_from_the_keyboard(tmp_path):
    with DataverseServer(PAIR, key=KEY) as server:
        for name in PAIR:
            server.add_fault(server.storage_path(name), slow(100_000))
        process = start(server, tmp_path)
        parts = wait_for_parts(process, tmp_path, 60_000)
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert time.monotonic() - pressed < 4
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0
    assert all(part.stat().st_size >= 60_000 for part in parts)


def test_two_processes_share_the_work(tmp_path):
    with DataverseServer(PAIR, key=KEY) as server:
        for name in PAIR:
            server.add_fault(server.storage_path(name), slow(400_000), times=None)
        processes = [start(server, tmp_path) for _ in range(2)]
        outputs = [process.communicate(timeout=60) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
        for name, content in PAIR.items():
            assert (tmp_path / name).read_bytes() == content
            assert server.sent(server.storage_path(name)) == 400_000
    assert leftovers(tmp_path) == []


def test_two_threads_share_the_work(server, file, tmp_path):
    server.add_fault(PATH, slow(800_000), times=None)
    threads = [threading.Thread(target=fetch, args=(file, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.sent(PATH) == 400_000
    assert leftovers(tmp_path) == []


def test_lock_file_removed_by_the_one_before(server, file, tmp_path):
    """What was waited for is no lock once another process has made a new one."""
    (tmp_path / "data").mkdir()
    path = part_path(tmp_path / NAME).with_name(".a.tar.part.lock")
    first = path.open("wb")
    fcntl.flock(first, fcntl.LOCK_EX)
    thread = threading.Thread(target=fetch, args=(file, tmp_path))
    thread.start()
    time.sleep(0.3)
    path.unlink()
    with path.open("wb") as second:
        fcntl.flock(second, fcntl.LOCK_EX)
        first.close()
        time.sleep(0.5)
        assert not server.log
    thread.join(10)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def files_with(folder, *texts):
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and any(text.encode() in path.read_bytes() for text in texts)
    ]


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [drop(200_000), busy(503)],
        [corrupt(), corrupt()],
        [page()],
        [refuse(403)],
        [redirect("http://host.org/?X-Signature=" + SIGNATURE)],
        "kill",
        "wrong key",
    ],
    ids=["good", "passing", "corrupt", "page", "refused", "redirect", "kill", "key"],
)
def test_key_is_nowhere(tmp_path, faults):
    """Neither in files, nor in what a process says at its most talkative, nor in its name."""
    folder = tmp_path / "out"
    given = "another-key-9z8y" if faults == "wrong key" else KEY
    with DataverseServer(PAIR, key=KEY) as server:
        storage = server.storage_path("raw/a.tar")
        for fault in faults if isinstance(faults, list) else ():
            server.add_fault(storage, fault)
        if faults == "kill":
            for name in PAIR:
                server.add_fault(server.storage_path(name), slow(200_000))
        process = start(server, folder, key=given)
        if faults == "kill":
            wait_for_parts(process, folder, 60_000)
            command = Path(f"/proc/{process.pid}/cmdline")
            assert not command.exists() or given not in command.read_text()
            process.kill()
        said = "".join(process.communicate(timeout=60))
        assert given in (server.log[0].fields["X-Dataverse-key"])
    assert given not in said
    assert files_with(tmp_path, given, SIGNATURE) == []
    succeeds = faults == [] or (isinstance(faults, list) and len(faults) == 2 and "503" in said)
    assert (process.returncode == 0) is succeeds, said


def test_key_is_in_no_traceback(server, file, tmp_path, caplog):
    """Not even in one that shows the local variables of every frame."""
    header = Header("X-Key", Secret(KEY), "token ")
    server.add_fault(PATH, drop(100_000), times=2)
    server.add_fault(PATH, refuse(401))
    with caplog.at_level(logging.DEBUG), pytest.raises(AuthenticationError) as caught:
        fetch(file, tmp_path, header=header)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert KEY not in "".join(shown.format())
    assert KEY not in caplog.text
    assert all(access.had_key for access in server.log)
