"""The derivatives dataset as a whole: description, links, lock, names of sidecars."""

import json
import multiprocessing
import time
from pathlib import Path

import pytest

from lacuna_nipype import __version__
from lacuna_nipype.core.exceptions import BidsError
from lacuna_nipype.io import derivatives
from lacuna_nipype.io.derivatives import (
    bids_uri,
    dataset_lock,
    prepare_dataset,
    read_description,
    sidecar_path,
)


@pytest.fixture
def dataset(tmp_path):
    return tmp_path / "derivatives"


def describe(dataset, **content):
    dataset.mkdir(exist_ok=True)
    (dataset / "dataset_description.json").write_text(json.dumps(content))


def test_fresh_dataset(dataset, tmp_path):
    assert prepare_dataset(dataset, {"raw": tmp_path / "bids"}) == []
    description = read_description(dataset)
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "lacuna-nipype"
    assert description["GeneratedBy"][0]["Version"] == __version__
    assert description["DatasetLinks"] == {"raw": str(tmp_path / "bids")}
    assert {"Name", "BIDSVersion"} <= set(description)
    ignored = (dataset / ".bidsignore").read_text().splitlines()
    assert {"*_statmap.*", "*_parcelstats.*", "figures"} <= set(ignored)
    # The validator does not understand a slash at the end.
    assert not [line for line in ignored if line.endswith("/")]


def test_again_changes_nothing(dataset, tmp_path):
    prepare_dataset(dataset, {"raw": tmp_path})
    description = dataset / "dataset_description.json"
    before = description.stat().st_mtime_ns, (dataset / ".bidsignore").read_text()
    assert prepare_dataset(dataset, {"raw": tmp_path}) == []
    assert (description.stat().st_mtime_ns, (dataset / ".bidsignore").read_text()) == before


def test_links_of_earlier_runs_stay(dataset, tmp_path):
    prepare_dataset(dataset, {"raw": tmp_path, "masks": tmp_path / "a"})
    assert prepare_dataset(dataset, {"raw": tmp_path, "more": tmp_path / "b"}) == []
    assert set(read_description(dataset)["DatasetLinks"]) == {"raw", "masks", "more"}


def test_changed_link_is_said(dataset, tmp_path):
    prepare_dataset(dataset, {"raw": tmp_path / "old"})
    (remark,) = prepare_dataset(dataset, {"raw": tmp_path / "new"})
    assert str(tmp_path / "old") in remark
    assert str(tmp_path / "new") in remark
    assert read_description(dataset)["DatasetLinks"]["raw"] == str(tmp_path / "new")


def test_links_that_are_no_text_are_left_out(dataset, tmp_path):
    prepare_dataset(dataset, {"raw": tmp_path})
    text = (dataset / "dataset_description.json").read_text()
    (dataset / "dataset_description.json").write_text(
        text.replace('"raw"', '"none": NaN, "many": Infinity, "number": 5, "list": [], "raw"')
    )
    assert prepare_dataset(dataset, {"more": tmp_path}) == []
    links = read_description(dataset)["DatasetLinks"]
    assert links == {"raw": str(tmp_path), "more": str(tmp_path)}


def test_results_of_another_version_are_said(dataset):
    describe(dataset, Name="x", GeneratedBy=[{"Name": "lacuna-nipype", "Version": "0.0.1"}])
    (remark,) = prepare_dataset(dataset, {})
    assert "0.0.1" in remark
    assert __version__ in remark
    assert prepare_dataset(dataset, {}) == []


@pytest.mark.parametrize(
    "content",
    [
        {"Name": "raw data", "BIDSVersion": "1.8.0"},
        {"Name": "fMRIPrep", "GeneratedBy": [{"Name": "fMRIPrep", "Version": "1"}]},
        {"Name": "odd", "GeneratedBy": []},
        {"Name": "odd", "GeneratedBy": {"Name": "lacuna-nipype"}},
        {"Name": "odd", "GeneratedBy": ["lacuna-nipype"]},
    ],
    ids=["raw", "other", "nobody", "no list", "no object"],
)
def test_foreign_dataset_is_refused_and_left_alone(dataset, content):
    describe(dataset, **content)
    before = (dataset / "dataset_description.json").read_text()
    with pytest.raises(BidsError, match=content["Name"]):
        prepare_dataset(dataset, {})
    assert (dataset / "dataset_description.json").read_text() == before
    assert not (dataset / ".bidsignore").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_damaged_description_reads_as_none(dataset, content):
    dataset.mkdir()
    (dataset / "dataset_description.json").write_text(content, encoding="latin-1")
    assert read_description(dataset) == {}


def test_no_description(tmp_path):
    assert read_description(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "sidecar"),
    [
        ("sub-01_mask.nii.gz", "sub-01_mask.json"),
        ("sub-01_mask.nii", "sub-01_mask.json"),
        ("sub-01_parcelstats.tsv", "sub-01_parcelstats.json"),
        ("sub-01_desc-1.5_map.nii.gz", "sub-01_desc-1.5_map.json"),
        ("whole.tck", "whole.json"),
    ],
)
def test_sidecar(name, sidecar):
    assert sidecar_path(Path("folder.d", name)) == Path("folder.d", sidecar)


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("/study/sub-01/anat/m.nii.gz", "bids:raw:sub-01/anat/m.nii.gz"),
        ("/study/derivatives/lesions/sub-01/m.nii.gz", "bids:lesions:sub-01/m.nii.gz"),
        ("/study/derivatives/other/m.nii.gz", "bids:raw:derivatives/other/m.nii.gz"),
        ("/study2/m.nii.gz", "m.nii.gz"),
        ("/elsewhere/m.nii.gz", "m.nii.gz"),
    ],
)
def test_uri(path, uri):
    links = {"raw": "/study", "lesions": Path("/study/derivatives/lesions")}
    assert bids_uri(Path(path), links) == uri


def add_one(dataset, times):
    """Read, wait and write a counter: loses updates without the lock."""
    counter = dataset / "counter"
    for _ in range(times):
        with dataset_lock(dataset):
            value = int(counter.read_text())
            time.sleep(0.002)
            counter.write_text(str(value + 1))


def test_lock_holds_between_processes(tmp_path):
    (tmp_path / "counter").write_text("0")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_one, args=(tmp_path, 10)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert (tmp_path / "counter").read_text() == "30"


def test_lock_is_released_after_an_error(dataset):
    with pytest.raises(RuntimeError), dataset_lock(dataset):
        raise RuntimeError
    with dataset_lock(dataset):
        assert (dataset / "logs").is_dir()


def test_ignored_names_are_those_that_are_written():
    """Each kind of file with a name that BIDS has not is covered by some pattern."""
    from fnmatch import fnmatch

    for name in (
        "a_statmap.nii.gz",
        "a_parcelstats.tsv",
        "a_stats.json",
        "a_desc-provenance.json",
    ):
        assert any(fnmatch(name, pattern) for pattern in derivatives.IGNORED)
