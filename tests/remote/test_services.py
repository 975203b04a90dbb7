"""Listings of the services, against servers that answer as they do."""

import hashlib
import logging

import pytest
from loopback import (
    SIGNATURE,
    DataverseServer,
    Fault,
    FigshareServer,
    GithubServer,
    LoopbackServer,
    OsfServer,
    busy,
    page,
    refuse,
)

from lacuna_nipype.core.exceptions import AuthenticationError, DownloadError, ValidationError
from lacuna_nipype.remote.credentials import Secret
from lacuna_nipype.remote.download import BackOff, Client, Header, download_files
from lacuna_nipype.remote.services import (
    DATAVERSE_FIELD,
    FIGSHARE_FIELD,
    FIGSHARE_PREFIX,
    github_release,
    list_dataverse,
    list_figshare,
    osf_url,
    plain_file,
)
from lacuna_nipype.remote.transfer import RemoteFile

QUICK = BackOff(first=0.01, longest=0.02)
CONTENTS = {"raw/a.tar": b"a" * 1000, "raw/b c.tar": b"b" * 500, "README": b"read me"}
DOI = "doi:10.1/ABC/DEF"
LISTING = "/api/datasets/:persistentId/versions/:latest/files"


@pytest.fixture
def client():
    with Client(back_off=QUICK) as quick:
        yield quick


def dataverse_key(text="dataverse-test-key"):
    return Header(DATAVERSE_FIELD, Secret(text))


def figshare_key(text="figshare-test-key"):
    return Header(FIGSHARE_FIELD, Secret(text), FIGSHARE_PREFIX)


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_dataverse_listing(client):
    with DataverseServer(CONTENTS) as server:
        files = list_dataverse(f"{server.url}/", DOI, dataverse_key(), client=client)
    expected = [
        RemoteFile(
            name,
            f"{server.url}/api/access/datafile/{1000 + number}",
            len(content),
            md5=md5(content),
            service="dataverse",
        )
        for number, (name, content) in enumerate(CONTENTS.items())
    ]
    assert files == expected
    assert server.log[0].had_key


def test_dataverse_files_arrive_and_the_key_stays(tmp_path, client):
    with DataverseServer(CONTENTS) as server:
        files = list_dataverse(server.url, DOI, dataverse_key(), client=client)
        paths = download_files(files, tmp_path, header=dataverse_key(), back_off=QUICK)
    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())
    for name in CONTENTS:
        assert all(access.had_key for access in server.accesses(server.datafile_path(name)))
        stored = server.accesses(server.storage_path(name))
        assert [access.had_key for access in stored] == [False]
        assert stored[0].host == f"localhost:{server.port}"


@pytest.mark.parametrize(("kind", "field"), [("SHA-256", "sha256"), ("SHA-1", None)])
def test_dataverse_other_checksums(kind, field, client, caplog):
    with DataverseServer({"a": b"content"}, checksum=kind) as server:
        (file,) = list_dataverse(server.url, DOI, client=client)
    assert (file.md5, file.sha256) == (
        None,
        hashlib.sha256(b"content").hexdigest() if field else None,
    )
    assert len(caplog.records) == (0 if field else 1)


def test_dataverse_table_is_the_one_uploaded(tmp_path, client):
    with DataverseServer({"demographics.csv": b"id,age\n1,30\n"}, tables=["demographics.csv"]) as (
        server
    ):
        files = list_dataverse(server.url, DOI, dataverse_key(), client=client)
        assert (files[0].name, files[0].size, files[0].md5) == ("demographics.csv", 12, None)
        assert files[0].url.endswith("?format=original")
        (path,) = download_files(files, tmp_path, header=dataverse_key(), back_off=QUICK)
    assert path.read_bytes() == b"id,age\n1,30\n"


def test_dataverse_errors_are_sentences(client):
    with DataverseServer(CONTENTS) as server:
        with pytest.raises(AuthenticationError, match="DATAVERSE_API_KEY") as caught:
            list_dataverse(server.url, DOI, dataverse_key("wrong-key-here"), client=client)
        # The server repeats the key; the message does not.
        assert "wrong-key-here" not in str(caught.value)
        with pytest.raises(DownloadError, match="no data set doi:10") as caught:
            list_dataverse(server.url, "doi:10.1/NOT/HERE", dataverse_key(), client=client)
        assert not isinstance(caught.value, AuthenticationError)
        with pytest.raises(DownloadError):
            list_dataverse(f"{server.url}/somewhere", DOI, client=client)
        server.add_fault(LISTING, page())
        with pytest.raises(DownloadError, match="login page"):
            list_dataverse(server.url, DOI, client=client)


def test_dataverse_without_key_to_a_restricted_file(tmp_path, client):
    with DataverseServer(CONTENTS) as server:
        files = list_dataverse(server.url, DOI, client=client)
        with pytest.raises(AuthenticationError, match="API Token"):
            download_files(files, tmp_path, back_off=QUICK)
    assert all(access.status != 200 for access in server.log[1:])


def test_listing_survives_a_busy_server(client):
    with DataverseServer(CONTENTS) as server:
        server.add_fault(LISTING, busy(503))
        server.add_fault(LISTING, busy(429, retry_after=0))
        server.add_fault(LISTING, Fault(drop_after=100))
        server.add_fault(LISTING, Fault(drop_after=100, reset=False))
        assert len(list_dataverse(server.url, DOI, client=client)) == 3
    assert len(server.accesses(LISTING)) == 5


@pytest.mark.parametrize(
    "answer",
    [
        b"not json",
        b"[]",
        b'{"data": 1}',
        b'{"data": [1]}',
        b'{"data": [{}]}',
        b'{"data": [{"dataFile": {"id": "x", "filename": "a"}}]}',
        b'{"data": [{"label": "a", "dataFile": {"id": 1, "filesize": "big"}}]}',
        b'{"data": [{"label": "../a", "dataFile": {"id": 1, "filesize": 1}}]}',
        b'{"data": [{"label": "a", "directoryLabel": "/etc", "dataFile": {"id": 1}}]}',
    ],
)
def test_dataverse_answer_that_is_no_listing(answer, client):
    with LoopbackServer() as server:
        server.add_fault(LISTING, Fault(status=200, body=answer))
        with pytest.raises((DownloadError, ValidationError)):
            list_dataverse(server.url, DOI, client=client)


def test_figshare_pages(client):
    contents = {f"part{number}.trk": bytes([number]) * (number + 1) for number in range(7)}
    with FigshareServer(contents) as server:
        for page_size in (2, 7, 100):
            files = list_figshare(
                server.api, 25209947, figshare_key(), client=client, page_size=page_size
            )
            assert [(file.name, file.size, file.md5) for file in files] == [
                (name, len(content), md5(content)) for name, content in contents.items()
            ]
    assert len(server.log) == 4 + 2 + 1
    assert {access.fields["Authorization"] for access in server.log} == {"token figshare-test-key"}


def test_figshare_files_arrive_and_the_token_stays(tmp_path, client):
    with FigshareServer({"dTOR.trk": b"t" * 3000}) as server:
        files = list_figshare(server.api, "25209947", figshare_key(), client=client)
        (path,) = download_files(files, tmp_path, header=figshare_key(), back_off=QUICK)
    assert path.read_bytes() == b"t" * 3000
    (stored,) = server.accesses(server.storage_path("dTOR.trk"))
    assert not stored.had_key


def test_figshare_server_without_pages(client):
    with LoopbackServer() as server:
        body = (
            b'[{"id": 1, "name": "a", "size": 1, "download_url": "%s/a"},'
            b' {"id": 2, "name": "b", "size": 1, "download_url": "%s/b"}]'
        ).replace(b"%s", server.url.encode())
        server.add_fault("/articles/1/files", Fault(status=200, body=body), times=None)
        files = list_figshare(server.url, 1, client=client, page_size=2)
    assert [file.name for file in files] == ["a", "b"]


def test_figshare_token_is_not_sent_elsewhere(client, caplog):
    with FigshareServer({"a": b"a"}, links=["https://elsewhere.org/a"]) as server:
        with caplog.at_level(logging.WARNING):
            files = list_figshare(server.api, 25209947, figshare_key(), client=client)
        assert [file.name for file in files] == ["a"]
        assert "elsewhere" in caplog.text
    body = b'[{"id": 1, "name": "a", "size": 1, "download_url": "https://elsewhere.org/a"}]'
    with LoopbackServer() as server:
        server.add_fault("/articles/1/files", Fault(status=200, body=body))
        with pytest.raises(DownloadError, match="outside"):
            list_figshare(server.url, 1, figshare_key(), client=client)


def test_figshare_errors_are_sentences(client):
    with FigshareServer({"a": b"a"}) as server:
        with pytest.raises(AuthenticationError, match="FIGSHARE_API_KEY"):
            list_figshare(server.api, 25209947, client=client)
        with pytest.raises(AuthenticationError, match="refused") as caught:
            list_figshare(server.api, 25209947, figshare_key("wrong-token"), client=client)
        assert "wrong-token" not in str(caught.value)
        with pytest.raises(DownloadError, match="article 7"):
            list_figshare(server.api, 7, figshare_key(), client=client)
        server.add_fault("/v2/articles/7/files", Fault(status=200, body=b'{"data": []}'))
        with pytest.raises(DownloadError, match="list of files"):
            list_figshare(server.api, 7, figshare_key(), client=client)


def test_osf(tmp_path):
    with OsfServer({"ab3d5": b"streamlines"}) as server:
        url = osf_url("ab3d5", server.url)
        assert url == f"{server.url}/ab3d5/download"
        (path,) = download_files(
            [plain_file(url, "dtor985_10pct.tck", size=11)], tmp_path, back_off=QUICK
        )
    assert path.read_bytes() == b"streamlines"
    assert [access.host.partition(":")[0] for access in server.log] == [
        "127.0.0.1",
        "localhost",
        "127.0.0.1",
    ]
    assert osf_url("ab3d5") == "https://osf.io/ab3d5/download"


@pytest.mark.parametrize("identifier", ["", "abc", "ab/d5", "https://osf.io/ab3d5", "ab3d5?x"])
def test_osf_identifier(identifier):
    with pytest.raises(ValidationError):
        osf_url(identifier)


def test_github(tmp_path):
    content = b"PK" + b"z" * 998
    with GithubServer({"tracts trk.zip": content}) as server:
        file = github_release(
            server.release_url("tracts trk.zip"),
            size=1000,
            sha256=hashlib.sha256(content).hexdigest(),
        )
        assert file.name == "tracts trk.zip"
        (path,) = download_files([file], tmp_path, back_off=QUICK)
        server.add_fault(server.storage_path("tracts trk.zip"), refuse(403))
        with pytest.raises(AuthenticationError) as caught:
            download_files([file], tmp_path, force=True, back_off=QUICK)
    assert path.read_bytes() == content
    assert SIGNATURE not in str(caught.value)


def test_github_address():
    url = (
        "https://github.com/data-others/atlas/releases/download/hcp1065/hcp1065_avg_tracts_trk.zip"
    )
    assert github_release(url, size=587869457).name == "hcp1065_avg_tracts_trk.zip"
    with pytest.raises(ValidationError):
        github_release("https://github.com/data-others/atlas/blob/main/a.zip")
    with pytest.raises(DownloadError):
        github_release(url.replace("https", "http"))


def test_plain_file_name():
    assert plain_file("https://host.org/data/a%20b.tck?x=1").name == "a b.tck"
    for url in ("https://host.org/", "https://host.org/a%2F..%2F..%2Fb"):
        with pytest.raises(ValidationError):
            plain_file(url)
