"""JSON of whatever origin."""

import os

import pytest

from lacuna_nipype.core.files import parse_json, read_json


def test_what_was_written_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, "ü"]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": [1, "ü"]}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000], ids=["lists", "objects"])
def test_deep_nesting_is_no_recursion_error(text):
    with pytest.raises(ValueError, match="nested"):
        parse_json(text)


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"{", b"", b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_is_no_json_is_a_value_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r".+"):
        read_json(tmp_path / "a.json")


def test_folders_links_and_pipes_are_os_errors(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe", "loop", "folder", "missing"):
        with pytest.raises(OSError, match=name):
            read_json(tmp_path / f"{name}.json")
