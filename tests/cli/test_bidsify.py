"""The command ``bidsify``: what is printed, how it ends, and what other commands say of it."""

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.cli.main import main
from lacuna_nipype.core.spaces import template_grid

SPACE = "MNI152NLin6Asym"
GRID = template_grid(SPACE, 2.0)
DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None


@pytest.fixture
def run(capsys):
    """Run a command; its exit code, the lines of its output, and the last line."""

    def command(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        if code:
            assert err.splitlines()[-1].startswith("lacuna-nipype: ")
        return code, out.splitlines(), (err if code else out).splitlines()[-1]

    return command


@pytest.fixture
def save(tmp_path):
    """Write masks of different places into the folder ``in``."""

    def write(name, offset=0, value=1):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = np.zeros(GRID.shape, np.uint8)
        data[25:31, 40 + offset : 46 + offset, 35:41] = value
        image = nib.Nifti1Image(data, GRID.affine)
        image.set_sform(GRID.affine, 4)
        image.header.set_xyzt_units("mm")
        nib.save(image, path)
        return path

    return write


@pytest.fixture
def validate_bids():
    """Run the BIDS validator on a dataset; skips where it is not installed."""

    def validate(dataset):
        beside_python = Path(sys.executable).parent / "bids-validator-deno"
        validator = shutil.which("bids-validator-deno") or shutil.which(beside_python)
        if validator is None:
            pytest.skip("bids-validator-deno is not installed")
        words = [validator, dataset]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout

    return validate


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "in", tmp_path / "out"


def test_a_folder_becomes_a_dataset_that_a_run_can_use(run, save, folders, validate_bids):
    save("P 01-left.nii")
    save("deep/P02.nii.gz", offset=2)
    save("sub-03_ses-2_acq-hi_rec-x_run-01_res-2_label-stroke_desc-acute_mask.nii.gz", offset=4)
    table = folders[0].parent / "people.tsv"
    table.write_text("file\tage\tsex\nP02.nii.gz\t50\tF\nsub-03\t\tM\n")
    code, _, last = run(
        "bidsify", *folders, "--space", "FSL", "--session", "ses-9", "--label", "infarct",
        "--participants", table, "--manual",
    )  # fmt: skip
    assert code == 0
    assert "3 masks" in last
    people = (folders[1] / "participants.tsv").read_text()
    assert people == (
        "participant_id\tage\tsex\nsub-03\tn/a\tM\nsub-P01Left\tn/a\tn/a\nsub-P02\t50\tF\n"
    )
    validate_bids(folders[1])
    code, _, last = run("check", "input", folders[1])
    assert (code, last) == (0, "All 3 masks can be used.")


def test_native_masks_validate_too(run, save, folders, tmp_path, validate_bids):
    image = nib.load(save("a.nii.gz"))
    affine = image.affine + np.array([[0, 0, 0, 0.3]] * 3 + [[0, 0, 0, 0]])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), tmp_path / "in" / "a.nii.gz")
    assert run("bidsify", *folders, "--space", "T1w")[0] == 0
    validate_bids(folders[1])
    code, _, last = run("check", "input", folders[1])
    assert code == 1
    assert "--derivatives" in last


def test_the_space_has_to_be_given(run, save, folders):
    save("a.nii")
    code, _, last = run("bidsify", *folders)
    assert code == 2
    assert f"add --space {SPACE}" in last
    assert not folders[1].exists()


def test_refused_masks_are_all_named_and_the_others_done(run, save, folders):
    save("good.nii")
    bad = [save("a_1.nii"), save("a-1.nii"), save("grey.nii", value=3)]
    code, lines, last = run("bidsify", *folders, "--space", SPACE)
    assert code == 1
    assert "3 of 4 masks" in last
    for path in bad:
        assert sum(line.startswith("Error: ") and str(path) in line for line in lines) >= 1
    assert len(list(folders[1].glob("sub-*"))) == 1
    code, _, last = run("check", "input", folders[1])
    assert code == 0


def test_again(run, save, folders):
    save("a.nii")
    run("bidsify", *folders, "--space", SPACE)
    code, _, last = run("bidsify", *folders, "--space", SPACE)
    assert code == 0
    assert "0 new, 1 there already" in last
    save("a.nii", offset=3)
    code, _, last = run("bidsify", *folders, "--space", SPACE)
    assert code == 1
    assert "another content" in last


@pytest.mark.parametrize(
    "words",
    [
        ("--space", "MNI151"),
        ("--space", SPACE, "--session", "a_b"),
        ("--space", SPACE, "--label", "a-b"),
        ("--space", SPACE, "--participants", "absent.tsv"),
        ("--space", SPACE, "--manual", "--automatic"),
        ("--space", SPACE, "--pattern", "nothing*"),
    ],
)
def test_wrong_words(run, save, folders, words):
    save("a.nii")
    assert run("bidsify", *folders, *words)[0] == 2
    assert not folders[1].exists()


@pytest.mark.real_data
@pytest.mark.skipif(DATA is None, reason="LACUNA_TEST_DATA does not name a folder")
def test_stroke_lesions(run, tmp_path, validate_bids):
    """33 real masks whose headers name no space, on a grid that is no template's."""
    originals, out = DATA / "lesions_stroke", tmp_path / "out"
    code, _, last = run("bidsify", originals, out)
    assert code == 2
    assert "--space SPACE" in last
    assert SPACE in last
    assert run("bidsify", originals, out, "--space", SPACE)[0] == 0
    masks = sorted(out.rglob("*_mask.nii.gz"))
    assert len(masks) == 33
    for mask in masks:
        (original,) = originals.glob(f"Subject_{mask.name[11:14]}.nii.gz")
        assert gzip.decompress(mask.read_bytes()) == gzip.decompress(original.read_bytes())
    validate_bids(out)
    code, _, last = run("check", "input", out, "--output-file", tmp_path / "t.tsv")
    assert (code, last) == (0, "All 33 masks can be used.")
    table = [line.split("\t") for line in (tmp_path / "t.tsv").read_text().splitlines()]
    column = {name: [row[i] for row in table[1:]] for i, name in enumerate(table[0])}
    assert set(column["hemisphere"]) == {"left"}
    assert min(map(float, column["brain_pct"])) > 88
    image = nib.load(originals / "Subject_001.nii.gz")
    assert column["voxels"][0] == str(np.count_nonzero(np.asarray(image.dataobj)))
    # The same masks as they are: a run, and so the check, has to be told the space.
    code, _, last = run("check", "input", masks[0])
    assert code == 0
    code, _, last = run("check", "input", originals / "Subject_001.nii.gz")
    assert code == 1
    assert "--mask-space SPACE" in last
    words = ("check", "input", originals / "Subject_001.nii.gz", "--mask-space", SPACE)
    assert run(*words)[0] == 0
