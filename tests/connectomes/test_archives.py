"""Archives: what comes out is what went in, and nothing lands anywhere else."""

import errno
import gzip
import io
import os
import shutil
import tarfile
import zipfile

import numpy as np
import pytest

from lacuna_nipype.connectomes import archives
from lacuna_nipype.connectomes.archives import archive_names, archive_sizes, iter_archive
from lacuna_nipype.core.exceptions import LacunaError, ProcessingError, ValidationError

KINDS = ["tar", "tar.gz", "zip"]
RNG = np.random.default_rng(3)
CONTENT = {
    "sub-1/func/a.nii.gz": RNG.bytes(3000),
    "sub-1/func/empty.txt": b"",
    "sub-2/func/Zürich Straße.nii.gz": RNG.bytes(700_000),
    "top.json": b"{}",
    f"{'long' * 40}/{'name' * 30}.txt": b"beyond the 100 characters of an old header",
}


def pack(path, content, kind="tar", *, prefix="", tar_format=tarfile.PAX_FORMAT):
    """Write an archive of ``{name: bytes}``."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for name, data in content.items():
                out.writestr(prefix + name, data)
        return path
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w", format=tar_format) as out:
        for name, data in content.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def pack_info(path, name="link", data=b"", **fields):
    """Write a tar archive of a good file and one entry of any kind."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    with tarfile.open(path, "w") as out:
        out.addfile(tarfile.TarInfo("good.txt"))
        out.addfile(info, io.BytesIO(data))
    return path


def files_below(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")
            if p.is_file()}  # fmt: skip


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def refused(path, folder, match, error=ValidationError, **settings):
    """Unpack all and expect one sentence; nothing unfinished stays."""
    with pytest.raises(error, match=match) as caught:
        list(iter_archive(path, folder, **settings))
    assert "\n" not in str(caught.value)
    assert not list(folder.rglob(".tmp-*"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "./", "GSP//x/./"])
def test_content_and_names(tmp_path, kind, prefix):
    path = pack(tmp_path / "a", CONTENT, kind, prefix=prefix)
    clean = "GSP/x/" if prefix.startswith("GSP") else ""
    expected = {clean + name: data for name, data in CONTENT.items()}
    written = list(iter_archive(path, tmp_path / "out"))
    assert [p.relative_to(tmp_path / "out").as_posix() for p in written] == list(expected)
    assert files_below(tmp_path / "out") == expected
    assert archive_names(path) == list(expected)
    assert archive_sizes(path) == {name: len(data) for name, data in expected.items()}


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_older_tar_formats(tmp_path, tar_format):
    content = {"sub-1/a.nii.gz": b"1" * 1000, f"{'d' * 90}/{'n' * 90}.x": b"2"}
    path = pack(tmp_path / "a.tar", content, tar_format=tar_format)
    list(iter_archive(path, tmp_path / "out"))
    assert files_below(tmp_path / "out") == content


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_on_disk_at_a_time(tmp_path, kind):
    content = {f"d/{n}.bin": RNG.bytes(5000) for n in range(5)}
    path = pack(tmp_path / "a", content, kind)
    found = {}
    for file in iter_archive(path, tmp_path / "out", wanted=lambda name: name != "d/3.bin"):
        assert list(files_below(tmp_path / "out")) == [f"d/{file.name}"]
        found[f"d/{file.name}"] = file.read_bytes()
        file.unlink()
    assert found == {name: data for name, data in content.items() if name != "d/3.bin"}


def test_links_are_no_matter_where_they_are_not_wanted(tmp_path):
    path = pack_info(tmp_path / "a.tar", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    (file,) = iter_archive(path, tmp_path / "out", wanted=lambda name: name == "good.txt")
    assert list(files_below(tmp_path / "out")) == [file.name]


def test_a_file_that_is_there_is_replaced_and_a_link_not_followed(tmp_path):
    path = pack(tmp_path / "a.tar", {"x.txt": b"new", "y.txt": b"new"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x.txt").write_text("old")
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "out/y.txt").symlink_to(tmp_path / "mine.txt")
    list(iter_archive(path, tmp_path / "out"))
    assert files_below(tmp_path / "out") == {"x.txt": b"new", "y.txt": b"new"}
    assert (tmp_path / "mine.txt").read_text() == "mine"


# Hostile


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    ["/etc/x.txt", "../x.txt", "a/../../x.txt", "a/../b.txt", "..", "..\\x.txt", "a\\b.txt",
     "//host/x"],
)  # fmt: skip
def test_names_that_lead_out(tmp_path, kind, name):
    path = pack(tmp_path / "a", {"good.txt": b"1", name: b"evil"}, kind)
    out = tmp_path / "deep/out"
    refused(path, out, "leads out of the folder")
    refused(path, tmp_path / "b/out", "leads out", wanted=lambda name: name == "good.txt")
    assert files_below(out) == {"good.txt": b"1"}
    assert not list(tmp_path.rglob("x.txt"))
    with pytest.raises(ValidationError, match="leads out"):
        archive_names(path)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "../.."}, "'link' .* link to '../..'"),
        ({"type": tarfile.LNKTYPE, "linkname": "good.txt"}, "link to 'good.txt'"),
        ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, "a device"),
        ({"type": tarfile.BLKTYPE}, "a device"),
        ({"type": tarfile.FIFOTYPE}, "a device"),
    ],
)
def test_links_and_devices_in_tar(tmp_path, fields, match):
    path = pack_info(tmp_path / "a.tar", **fields)
    refused(path, tmp_path / "out", match)
    assert names_in(tmp_path / "out") == ["good.txt"]


def test_writing_through_a_link_of_the_archive(tmp_path):
    """The classical attack: a link to a folder, then a file in it."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as out:
        link = tarfile.TarInfo("d")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        out.addfile(link)
        out.addfile(tarfile.TarInfo("d/x.txt"))
    refused(path, tmp_path / "out", "is a link")
    # Passing over the link does not make it either.
    refused(path, tmp_path / "out", "in conflict", wanted=lambda name: name != "d")
    assert not (tmp_path / "x.txt").exists()


def test_a_link_that_was_in_the_folder_before(tmp_path):
    path = pack(tmp_path / "a.tar", {"d/x.txt": b"1"})
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/d").symlink_to(tmp_path / "elsewhere")
    refused(path, tmp_path / "out", "through a link")
    assert not list((tmp_path / "elsewhere").iterdir())
    # The folder itself may be one.
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert [p.read_bytes() for p in iter_archive(path, tmp_path / "link")] == [b"1"]


@pytest.mark.parametrize(("mode", "match"), [(0o120777, "is a link"), (0o20666, "is a device")])
def test_links_and_devices_in_zip(tmp_path, mode, match):
    info = zipfile.ZipInfo("evil")
    info.external_attr = mode << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr("good.txt", b"1")
        out.writestr(info, "/etc/passwd")
    refused(tmp_path / "a.zip", tmp_path / "out", match)
    assert names_in(tmp_path / "out") == ["good.txt"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
def test_duplicates_and_conflicts(tmp_path, kind):
    content = {"a/x.txt": b"1", "a/./x.txt": b"2"}
    refused(pack(tmp_path / "a", content, kind), tmp_path / "o1", "holds 'a/x.txt' twice")
    content = {"a.d": b"1", "a.d/x.txt": b"2"}
    refused(pack(tmp_path / "b", content, kind), tmp_path / "o2", "in conflict")
    content = {"a.d/x.txt": b"1", "a.d": b"2"}
    refused(pack(tmp_path / "c", content, kind), tmp_path / "o3", "in conflict")


def test_encrypted_zip(tmp_path):
    path = pack(tmp_path / "a.zip", {"x.txt": b"1"}, "zip")
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + place] |= 1
    path.write_bytes(data)
    refused(path, tmp_path / "out", "is encrypted")


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
@pytest.mark.parametrize("n_files", [1, 40])
def test_bombs(tmp_path, monkeypatch, kind, n_files):
    """In one file, or in many small ones."""
    monkeypatch.setattr(archives, "_HARMLESS_BYTES", 1_000_000)
    size = 4_000_000 // n_files
    path = pack(tmp_path / "a", {f"{n}.bin": bytes(size) for n in range(n_files)}, kind)
    assert path.stat().st_size < 20_000
    refused(path, tmp_path / "out", "implausibly")
    assert sum(p.stat().st_size for p in (tmp_path / "out").iterdir()) <= 2_000_000
    with pytest.raises(ValidationError, match="implausibly"):
        archive_names(path)


def test_zip_that_understates_its_size(tmp_path):
    path = pack(tmp_path / "a.zip", {"x.bin": RNG.bytes(100) * 1000}, "zip")
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = (500).to_bytes(4, "little")
    path.write_bytes(data)
    refused(path, tmp_path / "out", "damaged")
    assert not list((tmp_path / "out").iterdir())


def test_tar_header_that_would_fill_the_memory(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**40
    (tmp_path / "a.tar").write_bytes(info.tobuf() + bytes(10240))
    refused(tmp_path / "a.tar", tmp_path / "out", "damaged")


def test_sparse_member(tmp_path):
    with (tmp_path / "hole.bin").open("wb") as out:
        out.truncate(10_000_000)
    if shutil.which("tar") is None:
        pytest.skip("needs GNU tar")
    os.system(f"cd {tmp_path} && tar --sparse -cf a.tar hole.bin")  # noqa: S605
    refused(tmp_path / "a.tar", tmp_path / "out", "sparse")


@pytest.mark.parametrize("kind", KINDS)
def test_limits_of_size_and_disk(tmp_path, monkeypatch, kind):
    path = pack(tmp_path / "a", {"a.bin": RNG.bytes(100), "b.bin": RNG.bytes(300)}, kind)
    refused(path, tmp_path / "out", "'b.bin' .* has 300 bytes where at most 200", most_bytes=200)
    assert list(files_below(tmp_path / "out")) == ["a.bin"]
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage)
    refused(path, tmp_path / "out", "free some space")


def test_disk_that_fills_up(tmp_path, monkeypatch):
    path = pack(tmp_path / "a.tar", {"a.bin": RNG.bytes(100)})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives.shutil, "copyfileobj", full)
    refused(path, tmp_path / "out", "disk .* is full", ProcessingError)
    assert not list((tmp_path / "out").iterdir())


# Damaged


def collect(path, folder, found):
    """Unpack, and keep content by name up to where it fails; nothing stays on disk."""
    for file in iter_archive(path, folder):
        found[file.relative_to(folder).as_posix()] = file.read_bytes()
        file.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere(tmp_path, kind):
    """A shorter file is never taken for whole; what is yielded is right."""
    content = {f"d/{n}.bin": RNG.bytes(1500) for n in range(4)}
    data = pack(tmp_path / "a", content, kind).read_bytes()
    size = len(data)
    if kind == "tar":
        # What follows the first block of zeros says nothing.
        size = 4 * (512 + 1536) + 512
    for length in {0, 1, 100, 511, 512, 513, 2047, 2048, 2049, *range(3, size, 379), size - 1}:
        (tmp_path / "cut").write_bytes(data[:length])
        out = tmp_path / "out"
        found = {}
        with pytest.raises(ValidationError, match=r"truncated or damaged|is not a tar"):
            collect(tmp_path / "cut", out, found)
        assert found.items() <= content.items()
        assert not list(out.rglob("*.bin"))
        assert not list(out.rglob(".tmp*"))


@pytest.mark.parametrize("kind", KINDS)
def test_any_byte_changed(tmp_path, kind):
    """Only one sentence ever comes out, and gzip and zip notice changed content."""
    content = {f"d/{n}.bin": RNG.bytes(400) for n in range(3)}
    data = pack(tmp_path / "a", content, kind).read_bytes()
    (tmp_path / "bad").mkdir()
    messages = []
    for place in range(0, min(len(data), 3000), 7):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        path = tmp_path / "bad/a"
        path.write_bytes(changed)
        found = {}
        try:
            collect(path, tmp_path / "out", found)
        except LacunaError as error:
            messages.append(str(error))
            continue
        if kind != "tar":
            assert list(found.values()) == list(content.values()), place
    assert messages
    assert not [text for text in messages if "\n" in text]


def test_damaged_header_is_not_the_end(tmp_path):
    """Python's reader would give two files of three, without a word."""
    content = {f"{n}.bin": RNG.bytes(400) for n in range(3)}
    path = pack(tmp_path / "a.tar", content)
    data = bytearray(path.read_bytes())
    data[2048 + 10] ^= 0xFF
    path.write_bytes(data)
    with tarfile.open(path) as archive:
        assert len(archive.getnames()) == 2
    refused(path, tmp_path / "out", "damaged after '1.bin'")
    with pytest.raises(ValidationError, match="damaged"):
        archive_names(path)


def test_files_that_are_none(tmp_path):
    for name, data, match in (
        ("page.zip", b"\n<!DOCTYPE html><html>Log in</html>", "a web page"),
        ("text.tar", b"some text " * 100, "not a tar"),
        ("zeros.tar", bytes(20480), "not a tar"),
        ("empty.tar", b"", "not a tar"),
        ("image.nii.gz", gzip.compress(RNG.bytes(5000)), "damaged at its beginning"),
    ):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, tmp_path / "out", rf"{name} .*{match}")
    refused(tmp_path / "gone.tar", tmp_path / "out", r"gone\.tar does not exist")


def test_folder_that_is_a_file(tmp_path):
    path = pack(tmp_path / "a.tar", {"a.bin": b"1"})
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ProcessingError, match="check both paths"):
        list(iter_archive(path, tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"
