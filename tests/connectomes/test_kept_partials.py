"""Passes over single connectome files that are kept for another run."""

import os

import h5py
import numpy as np
import pytest

from lacuna_nipype.connectomes import partial
from lacuna_nipype.connectomes.functional import read_connectome_file
from lacuna_nipype.connectomes.partial import keep_partial, stored_partial, take_partial
from lacuna_nipype.connectomes.seeds import Seed
from lacuna_nipype.core.images import save_image
from lacuna_nipype.interfaces.functional import CorrelateBatch, SeedCorrelations

SHAPE = (4, 5, 6)
SEEDS = [Seed(np.arange(3), 0), Seed(np.arange(7, 9), 1)]


@pytest.fixture
def connectome(tmp_path):
    def write(name="c.h5", seed=0):
        path = tmp_path / name
        with h5py.File(path, "w") as out:
            values = np.random.default_rng(seed).normal(size=(3, 12, 120))
            out["timeseries"] = values.astype(np.float32)
            out["mask_indices"] = np.indices(SHAPE).reshape(3, -1)
            out["mask_affine"] = np.eye(4)
            out.attrs["mask_shape"] = SHAPE
        return read_connectome_file(path)

    return write


@pytest.fixture
def mask(tmp_path):
    values = np.zeros(SHAPE, np.uint8)
    values[1:3, 2, 3] = 1
    return str(save_image(tmp_path / "mask.nii.gz", values, np.eye(4), "u1"))


def test_a_name_for_every_content(connectome, tmp_path):
    file, copy, other = connectome(), connectome("d.h5"), connectome("e.h5", seed=1)
    name = stored_partial(file, SEEDS, tmp_path)
    assert stored_partial(file, SEEDS, tmp_path) == name
    # The content counts, not the place.
    assert stored_partial(copy, SEEDS, tmp_path) == name
    different = {
        stored_partial(other, SEEDS, tmp_path),
        stored_partial(file, SEEDS[::-1], tmp_path),
        stored_partial(file, SEEDS[:1], tmp_path),
        stored_partial(file, SEEDS, tmp_path, "seeds"),
    }
    assert len(different | {name}) == 5


def test_another_version_makes_its_own(connectome, tmp_path, monkeypatch):
    before = stored_partial(connectome(), SEEDS, tmp_path)
    monkeypatch.setattr(partial, "__version__", "99")
    assert stored_partial(connectome(), SEEDS, tmp_path) != before


@pytest.mark.parametrize("links", [True, False])
def test_kept_and_taken(tmp_path, monkeypatch, links):
    made = tmp_path / "made.h5"
    with h5py.File(made, "w") as out:
        out.attrs["mask_digest"] = "x"
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    stored, target = tmp_path / "kept" / "a.h5", tmp_path / "node" / "partial.h5"
    keep_partial(made, stored)
    assert take_partial(stored, target)
    assert target.read_bytes() == made.read_bytes()
    assert target.samefile(made) == links
    # The one that was kept may go.
    stored.unlink()
    assert target.exists()
    assert sorted(path.name for path in tmp_path.rglob("*.h5")) == ["made.h5", "partial.h5"]


def test_what_is_missing_or_damaged_is_not_taken(tmp_path):
    damaged, empty = tmp_path / "damaged.h5", tmp_path / "empty.h5"
    damaged.write_bytes(b"half of it")
    h5py.File(empty, "w").close()
    for path in (damaged, empty, tmp_path / "missing.h5"):
        assert not take_partial(path, tmp_path / "target.h5")
    assert not (tmp_path / "target.h5").exists()


@pytest.mark.parametrize("interface", [CorrelateBatch, SeedCorrelations])
def test_a_step_takes_what_another_has_made(connectome, mask, tmp_path, interface):
    def run(name, **inputs):
        folder = tmp_path / name
        folder.mkdir()
        step = interface(connectome_file=str(connectome().path), mask_files=[mask], **inputs)
        return step.run(cwd=str(folder)).outputs.out_file

    kept = tmp_path / "kept"
    alone = run("alone")
    assert not kept.exists()
    first = run("first", partial_dir=str(kept))
    (stored,) = kept.iterdir()
    with open(first, "rb") as one, open(alone, "rb") as other:
        assert one.read() == other.read()
    second = run("second", partial_dir=str(kept))
    assert stored.samefile(second)
    # A damaged one is made anew, and kept.
    stored.unlink()
    stored.write_bytes(b"damaged")
    third = run("third", partial_dir=str(kept))
    assert stored.samefile(third)
    with open(third, "rb") as one, open(alone, "rb") as other:
        assert one.read() == other.read()
