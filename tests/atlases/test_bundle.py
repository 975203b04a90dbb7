"""Bundles: what is in the zip, that it is the same each time, and what happens when parts fail."""

import datetime
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile

import nibabel as nb
import numpy as np
import pandas as pd
import pytest

from lacuna_nipype.atlases import bundle as bundles
from lacuna_nipype.atlases.bundle import BundleError, bundle_atlas
from lacuna_nipype.atlases.entries import AtlasNotFound, IntegrityError, SpaceMismatch
from lacuna_nipype.atlases.services import fetch_parcellation, register_atlas
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.spaces import template_grid

pytestmark = pytest.mark.usefixtures("data_dir")
SPACE = "MNI152NLin6Asym"
STEM = f"tpl-{SPACE}_atlas-Mine_res-2_dseg"
# The first two differ in what a file name cannot hold.
NAMES = ("Area 1/left", "Area 1 left", "Höhle")


@pytest.fixture
def register(tmp_path, write_labels):
    """Register an atlas of three regions of ten voxels each."""

    def make(**options):
        image = write_labels(tmp_path / "mine.nii.gz", SPACE, 2, [1, 2, 3])
        labels = tmp_path / "mine.tsv"
        rows = "".join(f"{index}\t{name}\n" for index, name in enumerate(NAMES, start=1))
        labels.write_text(f"index\tname\n{rows}", encoding="utf-8")
        return register_atlas("Mine", image, labels, SPACE, **options)

    return make


@pytest.fixture
def write_template(tmp_path, monkeypatch):
    """Write a template into TemplateFlow's folder."""
    home = tmp_path / "templateflow"
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))

    def write(number="02", size=2, space=SPACE):
        grid = template_grid(space, size)
        path = home / f"tpl-{SPACE}" / f"tpl-{SPACE}_res-{number}_T1w.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = np.arange(np.prod(grid.shape)).reshape(grid.shape) % 251
        nb.save(nb.Nifti1Image(data.astype(np.uint8), grid.affine), path)
        return path

    return write


def read(path):
    """Members of a zip by name, in their order."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def voxels(content):
    image = nb.Nifti1Image.from_bytes(gzip.decompress(content))
    return np.asanyarray(image.dataobj)


def test_members_and_manifest(register, tmp_path):
    register(citation="Me 2020", license="CC0")
    files = fetch_parcellation("Mine")
    made = bundle_atlas("mine", tmp_path / "out" / "mine.zip", regions=["höhle", " Höhle"])
    found = read(made.path)
    region = f"regions/tpl-{SPACE}_atlas-Mine_res-2_desc-Hhle_mask"
    assert list(found) == list(made.members) == [
        "LICENSE.txt", "CITATION.txt",
        f"{STEM}.nii.gz", f"{STEM}.tsv", f"{STEM}.json",
        f"{region}.nii.gz", f"{region}.tsv", f"{region}.json",
        "manifest.json",
    ]  # fmt: skip
    assert made.sha256 == hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert found[f"{STEM}.nii.gz"] == files.image.read_bytes()
    assert found[f"{STEM}.tsv"] == files.labels.read_bytes()
    assert "CC0" in found["LICENSE.txt"].decode()
    assert "Me 2020" in found["CITATION.txt"].decode()
    manifest = json.loads(found["manifest.json"])
    # Every other member, with what is really in the file.
    assert [
        (member["Name"], member["Size"], member["SHA256"]) for member in manifest["Members"]
    ] == [
        (name, len(content), hashlib.sha256(content).hexdigest())
        for name, content in found.items()
        if name != "manifest.json"
    ]
    assert manifest["Request"] == {
        "Id": "Mine", "Space": SPACE, "Resolution": 2.0, "Source": "user", "Regions": ["höhle"],
        "Statistical": [], "Template": False,
    }  # fmt: skip
    assert manifest["GeneratedBy"]["Version"]
    assert manifest["Members"][2]["SourceVersion"]
    assert [m.get("Region") for m in manifest["Members"] if m.get("Kind") == "mask"] == ["Höhle"]
    metadata = json.loads(found[f"{STEM}.json"])
    assert metadata["SHA256"] == files.sha256
    assert (metadata["SpaceName"], metadata["License"]) == (SPACE, "CC0")


def test_two_bundles_are_identical(register, tmp_path, monkeypatch, write_template):
    """Also those of another day, machine (another cache, another umask) and file name."""
    write_template()
    content = []
    for number, umask in enumerate((0o022, 0o077)):
        monkeypatch.setenv("LACUNA_DATA_DIR", str(tmp_path / f"data{number}"))
        monkeypatch.setattr("lacuna_nipype.atlases.cache.datetime", Clock(2020 + number))
        before = os.umask(umask)
        try:
            register(citation="Me 2020")
            made = bundle_atlas(
                "Mine", tmp_path / f"{number}.zip", regions=NAMES, template=True, refresh=True
            )
        finally:
            os.umask(before)
        content.append(made.path.read_bytes())
    assert content[0] == content[1]
    assert fetch_parcellation("Mine").metadata.read_text().count("2021-")


class Clock:
    """Says another year."""

    def __init__(self, year):
        self._year = year

    def now(self, _zone):
        return datetime.datetime(self._year, 6, 1, tzinfo=datetime.timezone.utc)


def test_members_do_not_depend_on_the_machine(register, tmp_path):
    register()
    made = bundle_atlas("Mine", tmp_path / "a.zip")
    with zipfile.ZipFile(made.path) as archive:
        infos = archive.infolist()
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {(info.create_system, info.external_attr >> 16) for info in infos} == {(3, 0o100644)}
    assert str(tmp_path).encode() not in made.path.read_bytes()
    assert time.strftime("%Y-%m").encode() not in made.path.read_bytes()


def test_masks_of_regions_are_those_of_the_labels(register, tmp_path):
    register()
    made = bundle_atlas("Mine", tmp_path / "a.zip", regions=NAMES)
    found = read(made.path)
    labels = voxels(found[f"{STEM}.nii.gz"])
    masks = [name for name in found if name.startswith("regions/") and name.endswith(".nii.gz")]
    # Three files although two of the names look alike in a file name.
    assert len(set(map(str.casefold, masks))) == 3
    for number, name in enumerate(masks, start=1):
        np.testing.assert_array_equal(voxels(found[name]), labels == number)
        table = found[name.replace(".nii.gz", ".tsv")].decode()
        assert table == f"index\tname\n1\t{NAMES[number - 1]}\n"


def test_a_failing_part_fails_the_whole(register, tmp_path):
    register()
    target = tmp_path / "a.zip"
    target.write_bytes(b"before")
    with pytest.raises(BundleError, match=r"Area 9.*there is") as caught:
        bundle_atlas("Mine", target, regions=["Höhle", "Area 9"], overwrite=True)
    assert isinstance(caught.value.__cause__, AtlasNotFound)
    assert target.read_bytes() == b"before"
    assert not list(tmp_path.glob(".tmp*"))


def test_what_fails_can_be_left_out(register, tmp_path, write_template):
    register()
    made = bundle_atlas(
        "Mine", tmp_path / "a.zip", regions=["Area 9", "Höhle"], template=True, offline=True,
        keep_going=True,
    )  # fmt: skip
    found = read(made.path)
    errors = json.loads(found["errors.json"])["Errors"]
    assert [error["error"] for error in errors] == ["AtlasNotFound", "SourceUnavailable"]
    assert "Area 9" in errors[0]["part"]
    assert [part.part for part in made.missing] == [error["part"] for error in errors]
    assert "errors.json" in [m["Name"] for m in json.loads(found["manifest.json"])["Members"]]
    masks = [name for name in found if name.endswith("_mask.nii.gz")]
    assert len(masks) == 1
    assert not any(name.startswith("template/") for name in found)


def test_a_complete_bundle_has_no_errors(register, tmp_path):
    register()
    made = bundle_atlas("Mine", tmp_path / "a.zip", keep_going=True)
    assert made.missing == ()
    assert "errors.json" not in made.members


def test_a_bundle_of_nothing_is_not_written(data_dir, tmp_path):
    with pytest.raises(BundleError, match="atlas fetch hcp"):
        bundle_atlas("hcp", tmp_path / "a.zip", offline=True, keep_going=True)
    assert not (tmp_path / "a.zip").exists()


def test_template(register, tmp_path, write_template):
    register()
    other, path = write_template("01", 1), write_template()
    (path.parent / "LICENSE").write_text("Permission is granted to look at it.")
    made = bundle_atlas("Mine", tmp_path / "a.zip", template=True, offline=True)
    found = read(made.path)
    # At the voxel size of the atlas.
    assert found[f"template/{path.name}"] == path.read_bytes()
    assert f"template/{other.name}" not in found
    assert "Permission is granted" in found["LICENSE.txt"].decode()
    assert any(
        member.get("File") == f"tpl-{SPACE}/{path.name}"
        for member in json.loads(found["manifest.json"])["Members"]
    )


@pytest.mark.parametrize("fault", ["missing", "placeholder", "other space", "cut short"])
def test_template_that_cannot_be_used(register, tmp_path, write_template, fault):
    register()
    path = write_template(space="MNI152NLin2009cAsym" if fault == "other space" else SPACE)
    if fault == "missing":
        path.unlink()
    elif fault == "placeholder":
        path.write_bytes(b"")
    elif fault == "cut short":
        path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(BundleError, match=path.name.replace(".", r"\.")):
        bundle_atlas("Mine", tmp_path / "a.zip", template=True, offline=True)
    assert not (tmp_path / "a.zip").exists()


def test_the_templates_named_are_those_of_templateflow(tmp_path):
    """All names, against the list of the real client."""
    script = (
        "import os, sys; os.environ['TEMPLATEFLOW_HOME'] = sys.argv[1]\n"
        "os.environ['TEMPLATEFLOW_AUTOUPDATE'] = 'off'\n"
        "from templateflow import api, conf\n"
        "from pathlib import Path\n"
        "print(*(p.name for p in Path(sys.argv[1]).glob('tpl-*/*_T1w.nii.gz')), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "home"], capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    for space, numbers in bundles._TEMPLATES.items():
        for size in numbers:
            need = bundles._template_need(space, size)
            assert need.name.rpartition("/")[2] in done.stdout.split()


def test_what_is_not_known_is_said(register, tmp_path):
    register()
    found = read(bundle_atlas("Mine", tmp_path / "a.zip").path)
    assert "not known" in found["LICENSE.txt"].decode()
    assert "ask the authors" in found["CITATION.txt"].decode()


def test_an_atlas_of_a_dataset(tmp_path, write_labels):
    """Uncompressed, with metadata of its own."""
    folder = tmp_path / "dataset" / f"tpl-{SPACE}"
    image = write_labels(folder / f"tpl-{SPACE}_atlas-X_res-02_dseg.nii", SPACE, 2, [1, 2])
    table = folder / f"tpl-{SPACE}_atlas-X_dseg.tsv"
    table.write_text("index\tname\n1\ta\n2\tb\n")
    image.with_suffix(".json").write_text('{"License": "CC0", "Method": "by hand"}')
    made = bundle_atlas("X", tmp_path / "x.zip", datasets={"mine": tmp_path / "dataset"})
    found = read(made.path)
    assert found[image.name] == image.read_bytes()
    assert found[f"{image.stem}.tsv"] == table.read_bytes()
    assert json.loads(found[f"{image.stem}.json"])["Method"] == "by hand"
    assert "CC0" in found["LICENSE.txt"].decode()


def test_an_image_that_changes_meanwhile(register, tmp_path, monkeypatch):
    register()

    def change(*arguments, **options):
        files = fetch_parcellation(*arguments, **options)
        files.image.write_bytes(files.image.read_bytes() + b"more")
        return files

    monkeypatch.setattr(bundles, "fetch_parcellation", change)
    with pytest.raises(IntegrityError, match="again"):
        bundle_atlas("Mine", tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({"id": "Mine", "target": "a.tar"}, ValidationError),
        ({"id": "Mine", "target": "there.zip"}, ValidationError),
        ({"id": "Nobodys", "target": "a.zip"}, AtlasNotFound),
        ({"id": "Mine", "target": "a.zip", "space": "MNI152NLin2009cAsym"}, SpaceMismatch),
        ({"id": "hocpath0", "target": "a.zip"}, ValidationError),
    ],
)
def test_requests_that_are_refused(register, tmp_path, words, error):
    register()
    (tmp_path / "there.zip").write_bytes(b"before")
    with pytest.raises(error):
        bundle_atlas(**{**words, "target": tmp_path / words["target"]})
    assert (tmp_path / "there.zip").read_bytes() == b"before"
    assert not list(tmp_path.glob("a.*"))


def test_tables_agree_with_images(register, tmp_path):
    register()
    found = read(bundle_atlas("Mine", tmp_path / "a.zip").path)
    (tmp_path / "t.tsv").write_bytes(found[f"{STEM}.tsv"])
    table = pd.read_csv(tmp_path / "t.tsv", sep="\t")
    assert set(table["index"]) == set(np.unique(voxels(found[f"{STEM}.nii.gz"]))) - {0}
    assert tuple(table["name"]) == NAMES
