"""Brain masks of TemplateFlow, found and checked without a network."""

import hashlib
import shutil

import nibabel as nb
import numpy as np
import pytest
from transform_data import NLIN6, NLIN2009C, write_brain_mask

from lacuna_nipype.atlases import masks
from lacuna_nipype.atlases.masks import (
    BrainMaskMetadata,
    load_brain_mask,
    mask_metadata,
    mask_name,
    read_brain_mask,
)
from lacuna_nipype.core.spaces import template_grid


@pytest.fixture
def home(warps, tmp_path, monkeypatch):
    """A copy of the masks that a test may spoil."""
    for space in (NLIN6, NLIN2009C):
        shutil.copytree(warps.home / f"tpl-{space}", tmp_path / f"tpl-{space}")
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    return tmp_path


def path_of(home, space=NLIN6):
    return home / f"tpl-{space}" / f"tpl-{space}_res-02_desc-brain_mask.nii.gz"


@pytest.mark.parametrize(
    ("space", "resolution", "name"),
    [
        (NLIN6, 2, "MNI152NLin6Asym_2mm"),
        ("FSL", 1.0, "MNI152NLin6Asym_1mm"),
        (NLIN2009C, 2.0, "MNI152NLin2009cAsym_2mm"),
        ("MNI152NLin2009aAsym", 1, "MNI152NLin2009cAsym_1mm"),
        ("MNI152NLin2009bAsym", 2, "MNI152NLin2009cAsym_2mm"),
    ],
)
def test_names(space, resolution, name):
    assert mask_name(space, resolution) == name


@pytest.mark.parametrize("what", [("nowhere", 2), (NLIN6, 3), (NLIN6, 1.5), ("MNIColin27", 1)])
def test_unknown_combinations(what):
    for function in (mask_name, load_brain_mask, mask_metadata):
        with pytest.raises(KeyError, match="brain mask"):
            function(*what)


@pytest.mark.parametrize(
    ("space", "stored"),
    [(NLIN6, NLIN6), ("FSL", NLIN6), (NLIN2009C, NLIN2009C), ("MNI152NLin2009aAsym", NLIN2009C)],
)
def test_found_offline(home, space, stored):
    path = load_brain_mask(space, 2)
    assert path == path_of(home, stored)
    mask, grid = read_brain_mask(space, 2)
    assert grid.same_lattice(template_grid(stored, 2))
    assert mask.dtype == bool
    assert 200_000 < np.count_nonzero(mask) < 260_000
    data = np.asanyarray(nb.load(path).dataobj)
    assert np.array_equal(mask, data > 0)


def test_read_once_until_the_file_changes(home, monkeypatch):
    reads = []
    load = nb.load
    monkeypatch.setattr(masks.nb, "load", lambda path: reads.append(path) or load(path))
    first, _ = read_brain_mask(NLIN6, 2)
    load_brain_mask(NLIN6, 2)
    assert read_brain_mask(NLIN6, 2)[0] is first
    assert len(reads) == 1
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0, 0] = True
    image = load(path_of(home))
    data = np.asanyarray(image.dataobj).copy()
    data[45, 54, 45] = 0
    nb.save(nb.Nifti1Image(data, image.affine), path_of(home))
    assert np.count_nonzero(read_brain_mask(NLIN6, 2)[0]) == np.count_nonzero(first) - 1


def test_a_missing_file_names_the_command(home):
    path_of(home).write_bytes(b"")
    with pytest.raises(FileNotFoundError) as error:
        load_brain_mask("FSL", 2)
    assert path_of(home).name in str(error.value)
    assert f"lacuna-nipype fetch templates --for {NLIN6}" in str(error.value)
    with pytest.raises(FileNotFoundError):
        load_brain_mask(NLIN6, 1)


def spoil(path, change):
    image = nb.load(path)
    data, affine = change(np.asanyarray(image.dataobj).copy(), image.affine.copy())
    nb.save(nb.Nifti1Image(data, affine), path)


@pytest.mark.parametrize(
    "change",
    [
        lambda data, affine: (data.astype(np.float32) * 0.5, affine),
        lambda data, affine: (data * 2, affine),
        lambda data, affine: (data * 0, affine),
        lambda data, affine: (data * 0 + 1, affine),
        lambda data, affine: (data[..., None].repeat(2, 3), affine),
        lambda data, affine: (data[:-1], affine),
        lambda data, affine: (data, affine @ np.diag([-1, 1, 1, 1])),
        lambda data, affine: (data, affine + shift(2)),
    ],
    ids=["half", "two", "empty", "full", "4D", "smaller", "mirrored", "shifted"],
)
def test_invalid_files_are_refused(home, change):
    spoil(path_of(home), change)
    with pytest.raises(ValueError, match="Brain mask") as error:
        load_brain_mask(NLIN6, 2)
    assert str(path_of(home)) in str(error.value)
    assert load_brain_mask(NLIN6, 2, validate=False) == path_of(home)


def shift(millimetres):
    matrix = np.zeros((4, 4))
    matrix[1, 3] = millimetres
    return matrix


def test_a_damaged_file_is_refused(home):
    path_of(home).write_bytes(path_of(home).read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged"):
        load_brain_mask(NLIN6, 2)


def test_metadata(home):
    found = mask_metadata("FSL", 2)
    assert isinstance(found, BrainMaskMetadata)
    assert (found.name, found.space, found.resolution) == ("MNI152NLin6Asym_2mm", NLIN6, 2.0)
    assert found.source == "templateflow"
    assert found.url.endswith(f"/tpl-{NLIN6}/{path_of(home).name}")
    assert found.sha256 == hashlib.sha256(path_of(home).read_bytes()).hexdigest()
    with pytest.raises(AttributeError):
        found.space = "x"
    path_of(home).unlink()
    assert mask_metadata("FSL", 2).sha256 == ""
    assert BrainMaskMetadata("a", "b", 1).url == ""


def test_at_1_mm(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    path = write_brain_mask(tmp_path, NLIN2009C, 1)
    assert load_brain_mask("MNI152NLin2009bAsym", 1) == path
