"""Files appear whole or not at all."""

import errno
import fcntl
import json
import os

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from lacuna_nipype.core.files import (
    atomic_path,
    lock_file,
    read_json_object,
    write_json,
    write_table,
)


@pytest.fixture
def umask():
    """Set the umask of the process for one test."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


def test_target_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == target.parent
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def interrupted():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_target_that_cannot_be_replaced_leaves_nothing(tmp_path):
    target = tmp_path / "folder"
    (target / "inside").mkdir(parents=True)

    def onto_a_folder():
        with atomic_path(target) as temporary:
            temporary.write_text("x")

    with pytest.raises(OSError, match="folder"):
        onto_a_folder()
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, umask, mask, mode):
    umask(mask)
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == mode
    assert umask(mask) == mask


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.nii.gz", ".nii.gz"), ("sub-1.5_map.nii", ".nii"), ("a.tsv", ".tsv"), ("a", "")],
)
def test_temporary_name_has_the_suffix_that_writers_look_at(tmp_path, name, suffix):
    with atomic_path(tmp_path / name) as temporary:
        assert temporary.name.endswith(suffix)
        assert temporary.name.startswith(".")
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    if suffix.startswith(".nii"):
        with atomic_path(tmp_path / name) as temporary:
            nib.save(image, temporary)
        magic = (tmp_path / name).read_bytes()[:2]
        assert (magic == b"\x1f\x8b") == name.endswith(".gz")


def test_json_roundtrip(tmp_path):
    content = {"Überschrift": [1, 2.5, None], "deep": {"x": "ä"}}
    path = write_json(tmp_path / "deep" / "a.json", content)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert "Überschrift" in text
    assert text.endswith("\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_nan(tmp_path, value):
    path = write_json(tmp_path / "a.json", {"deep": [{"x": value}], "array": np.array([1, value])})
    assert json.loads(path.read_text()) == {"deep": [{"x": None}], "array": [1, None]}
    assert list(tmp_path.iterdir()) == [path]


def test_table_by_hand(tmp_path):
    table = pd.DataFrame({"index": [2, 1], "name": ["b", None], "value": [1 / 3, np.nan]})
    path = write_table(tmp_path / "a.tsv", table)
    assert path.read_text() == "index\tname\tvalue\n2\tb\t0.3333333333\n1\tn/a\tn/a\n"


def test_a_lock_is_one_process_at_a_time(tmp_path):
    with (tmp_path / "a.lock").open("w") as first, (tmp_path / "a.lock").open("w") as second:
        assert lock_file(first)
        assert not lock_file(second, wait=False)
        first.close()
        assert lock_file(second)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_file_systems_without_locks_are_used_all_the_same(tmp_path, monkeypatch, caplog, number):
    def without(stream, flags):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without)
    with (tmp_path / "a.lock").open("w") as stream:
        assert lock_file(stream)
        assert lock_file(stream, wait=False)
    assert str(tmp_path) in caplog.text


def test_a_file_that_cannot_be_locked_for_other_reasons_is_an_error(tmp_path, monkeypatch):
    def broken(stream, flags):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with (tmp_path / "a.lock").open("w") as stream, pytest.raises(OSError, match="Input"):
        lock_file(stream)


@pytest.mark.parametrize("text", [None, "{", "[1]", "\xff", '{"A": 1}'])
def test_json_objects_that_can_be_made_again(tmp_path, text):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    assert read_json_object(path) == ({"A": 1} if text == '{"A": 1}' else {})
