"""Files that a run insists on."""

import os

import pytest

from lacuna_nipype.core.contents import require_content, unchanged
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import fingerprint


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tracks.tck"
    path.write_bytes(b"first")
    return path


def test_the_same_content_under_another_time_is_the_same_file(path):
    expected = fingerprint(path)
    path.write_bytes(b"first")
    os.utime(path, (1, 1))
    require_content(path, expected)
    with unchanged({path: expected}):
        pass


def replace_in_the_middle(path):
    """Write another content of the same size and time while the file is being read."""
    expected, status = fingerprint(path), path.stat()
    with unchanged({path: expected}):
        path.write_bytes(b"other")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def fail_in_the_middle(path, replace):
    with unchanged({path: fingerprint(path)}):
        if replace:
            path.write_bytes(b"other")
        raise OSError("the file is shorter than its header says")


def test_another_content_of_the_same_size_and_time(path):
    with pytest.raises(ValidationError, match=r"tracks\.tck has changed"):
        replace_in_the_middle(path)


def test_nothing_is_read_of_a_file_that_has_changed_before(path):
    began = False
    with pytest.raises(ValidationError), unchanged({path: "sha256:0"}):
        began = True
    assert not began


def test_what_came_of_the_change_is_not_what_is_said(path):
    with pytest.raises(ValidationError, match="has changed"):
        fail_in_the_middle(path, replace=True)


def test_other_errors_stay_what_they_are(path):
    with pytest.raises(OSError, match="shorter"):
        fail_in_the_middle(path, replace=False)


def test_a_file_that_is_gone(path):
    expected = fingerprint(path)
    path.unlink()
    with pytest.raises(ValidationError, match="No such file"):
        require_content(path, expected)
