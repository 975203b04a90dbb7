"""Fingerprints of inputs and the record of runs."""

import hashlib
import json

import numpy as np
import pytest

from lacuna_nipype import __version__
from lacuna_nipype.core import files
from lacuna_nipype.core.files import combined_fingerprint, fingerprint
from lacuna_nipype.io import provenance
from lacuna_nipype.io.provenance import append_run, software_versions


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file above the limit for whole files: 1 MiB, sampled in 8 blocks of 4 KiB."""
    monkeypatch.setattr(files, "WHOLE_FILE_BYTES", 2**18)
    monkeypatch.setattr(files, "SAMPLE_BYTES", 2**12)
    monkeypatch.setattr(files, "N_SAMPLES", 8)
    path = tmp_path / "large.bin"
    path.write_bytes(np.random.default_rng(0).bytes(2**20))
    return path


@pytest.mark.parametrize("content", [b"", b"lesion", b"x" * (2**20 + 3)])
def test_small_file_has_its_sha256(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert fingerprint(path) == f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_large_file_is_sampled(large):
    first = fingerprint(large)
    assert first.startswith("sampled-sha256:")
    assert fingerprint(large) == first


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("position", [0, 2**12 - 1, -1, -(2**12)])
def test_sampled_fingerprint_sees_both_ends(large, position):
    before = fingerprint(large)
    flip(large, position)
    assert fingerprint(large) != before


def test_every_sampled_block_counts(large):
    for number in range(8):
        before = fingerprint(large)
        flip(large, (2**20 - 2**12) * number // 7 + 17)
        assert fingerprint(large) != before


def test_size_counts(large):
    before = fingerprint(large)
    with large.open("ab") as stream:
        stream.write(b"\0")
    assert fingerprint(large) != before


def test_several_files(tmp_path):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_text(path.name)
    assert combined_fingerprint(paths[:1]) == fingerprint(paths[0])
    both = combined_fingerprint(paths)
    assert both.startswith("combined-sha256:")
    assert both != combined_fingerprint(paths[::-1])
    paths[1].write_text("changed")
    assert combined_fingerprint(paths) != both


def test_versions():
    versions = software_versions("3.0.4")
    assert versions["lacuna-nipype"] == __version__
    assert versions["MRtrix3"] == "3.0.4"
    assert {"Python", "numpy", "nipype"} <= set(versions)
    assert "MRtrix3" not in software_versions()


def test_package_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package"))
    assert "no-such-package" not in software_versions()


def test_runs_are_appended(tmp_path):
    path = tmp_path / "sub-01" / "sub-01_desc-provenance.json"
    append_run(path, {"RunID": "a"})
    append_run(path, {"RunID": "b"})
    assert json.loads(path.read_text()) == {"Runs": [{"RunID": "a"}, {"RunID": "b"}]}


@pytest.mark.parametrize("damaged", ["", '{"Runs": [{"RunID"', "[]", "{}", '{"Runs": 1}', "null"])
def test_damaged_record_is_kept_beside(tmp_path, damaged):
    path = tmp_path / "sub-01_desc-provenance.json"
    path.write_text(damaged)
    append_run(path, {"RunID": "b"})
    assert json.loads(path.read_text()) == {"Runs": [{"RunID": "b"}]}
    (kept,) = (other for other in tmp_path.iterdir() if other != path)
    assert kept.read_text() == damaged
