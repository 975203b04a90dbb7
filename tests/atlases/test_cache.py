"""The cache of atlases: keys, whole files only, one maker at a time."""

import hashlib
import json
import multiprocessing
import os
import time

import pytest

from lacuna_nipype.atlases.cache import (
    cache_folder,
    cache_key,
    cached,
    file_stem,
    remove_stored,
    request_label,
)
from lacuna_nipype.atlases.entries import IntegrityError
from lacuna_nipype.core.exceptions import ValidationError

REQUEST = {"id": "a", "space": "S", "resolution": 1.0}
STEM = "tpl-S_atlas-A_res-1_dseg"


def fill(folder, content=b"image", request=REQUEST, version="1", **options):
    with cached(folder, STEM, request, version, **options) as slot:
        if slot.stored is not None:
            return slot.stored, False
        slot.image.write_bytes(content)
        slot.labels.write_text("index\tname\n1\ta\n")
        return slot.commit({"Source": "test", "License": "CC0"}), True


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_keys_do_not_collide():
    requests = [
        {"a": "b", "c": "d"}, {"a": "bc", "": "d"}, {"a": "b,c:d"}, {"a": ["b", "c"]},
        {"a": "", "c": None}, {"a": None, "c": ""}, {"c": "d", "a": "b "},
    ]  # fmt: skip
    keys = [cache_key(request, version) for request in requests for version in ("1", "2")]
    assert len(set(keys)) == len(keys)
    assert cache_key({"x": 1, "y": 2}, "v") == cache_key({"y": 2, "x": 1}, "v")
    assert len(request_label(REQUEST)) == 12
    assert request_label(REQUEST).isalnum()


def test_names_follow_bids(data_dir):
    entities = {"scale": "100", "seg": "7n", "atlas": "Schaefer2018"}
    stem = "tpl-S_atlas-Schaefer2018_seg-7n_scale-100_res-1p6_dseg"
    assert file_stem("S", entities, 1.6, "dseg") == stem
    assert file_stem("S", {"atlas": "A"}, None, "mask", "x1") == "tpl-S_atlas-A_desc-x1_mask"
    assert cache_folder("user", "S") == data_dir / "atlases" / "user" / "tpl-S"


def test_three_files_of_one_stem_and_a_second_call_makes_nothing(tmp_path):
    stored, made = fill(tmp_path)
    assert made
    assert visible(tmp_path) == [f"{STEM}{ending}" for ending in (".json", ".nii.gz", ".tsv")]
    content = json.loads(stored.metadata.read_text())
    digest = hashlib.sha256(b"image").hexdigest()
    assert (content["SHA256"], content["Size"], stored.sha256) == (digest, 5, digest)
    assert content["Request"] == REQUEST
    assert content["Key"] == cache_key(REQUEST, "1")
    assert (content["SourceVersion"], content["License"]) == ("1", "CC0")
    assert content["RetrievedAt"].endswith("+00:00")
    assert content["GeneratedBy"]["Name"] == "lacuna-nipype"
    again, made = fill(tmp_path, b"other")
    assert not made
    assert again.image.read_bytes() == b"image"


@pytest.mark.parametrize(
    "change", [{"version": "2"}, {"request": {**REQUEST, "id": "b"}}, {"refresh": True}]
)
def test_another_key_or_refresh_makes_it_again(tmp_path, change):
    fill(tmp_path)
    stored, made = fill(tmp_path, b"newer", **change)
    assert made
    assert stored.image.read_bytes() == b"newer"


@pytest.mark.parametrize("ending", [".nii.gz", ".tsv"])
def test_a_wrong_size_or_a_missing_file_is_noticed_each_time(tmp_path, ending, caplog):
    stored, _ = fill(tmp_path)
    (tmp_path / f"{STEM}{ending}").write_bytes(b"ima")
    _, made = fill(tmp_path)
    assert made
    assert "3 bytes" in caplog.text
    (tmp_path / f"{STEM}{ending}").unlink()
    assert fill(tmp_path)[1]
    assert stored.image.read_bytes() == b"image"


def test_without_its_json_nothing_is_stored(tmp_path):
    stored, _ = fill(tmp_path)
    stored.metadata.write_text("{")
    assert fill(tmp_path)[1]
    stored.metadata.unlink()
    assert fill(tmp_path)[1]


def test_same_size_other_content_is_found_by_verify_alone(tmp_path):
    stored, _ = fill(tmp_path)
    stored.image.write_bytes(b"IMAGE")
    assert not fill(tmp_path)[1]
    with pytest.raises(IntegrityError, match="refresh"):
        fill(tmp_path, verify=True)
    assert fill(tmp_path, refresh=True)[1]
    assert not fill(tmp_path, verify=True)[1]


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path):
    stored, _ = fill(tmp_path)

    def fail():
        with cached(tmp_path, STEM, REQUEST, "2") as slot:
            slot.image.write_bytes(b"half")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert stored.image.read_bytes() == b"image"
    assert len(visible(tmp_path)) == 3
    assert not list(tmp_path.glob(".tmp-*"))
    assert not fill(tmp_path)[1]


def _slow(folder, counter):
    with cached(folder, STEM, REQUEST, "1") as slot:
        if slot.stored is None:
            with counter.open("a") as stream:
                stream.write("made\n")
            time.sleep(0.3)
            slot.image.write_bytes(b"image")
            slot.labels.write_text("index\tname\n")
            slot.commit({})


def test_two_processes_make_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    counter = tmp_path / "counter"
    workers = [context.Process(target=_slow, args=(tmp_path / "cache", counter)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert counter.read_text() == "made\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_only_be_read_still_serves(tmp_path):
    fill(tmp_path)
    tmp_path.chmod(0o555)
    try:
        assert not fill(tmp_path)[1]
        with pytest.raises(ValidationError, match="LACUNA_DATA_DIR"):
            fill(tmp_path, version="2")
    finally:
        tmp_path.chmod(0o755)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValidationError, match="LACUNA_DATA_DIR"):
        fill(tmp_path / "file" / "atlases")


def test_removed(tmp_path):
    fill(tmp_path)
    remove_stored(tmp_path, STEM)
    assert visible(tmp_path) == []
    remove_stored(tmp_path, STEM)
