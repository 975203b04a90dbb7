"""The commands ``check input`` and ``check output``: what is printed, and how they end."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.cli.atlas_outputs import planned_atlases
from lacuna_nipype.cli.inputs import gather_inputs
from lacuna_nipype.cli.main import main
from lacuna_nipype.cli.parser import parse_config
from lacuna_nipype.cli.plan import planned_outputs
from lacuna_nipype.core.spaces import template_grid

SPACE = "MNI152NLin6Asym"
GRID = template_grid(SPACE, 2.0)
DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None


def save(bids, subject, *, session=None, space=f"space-{SPACE}_", offset=0, value=1):
    """A lesion of 6 x 6 x 6 voxels on the left, in a place of its own."""
    data = np.zeros(GRID.shape, np.uint8)
    data[25:31, 40 + offset : 46 + offset, 35:41] = value
    place = f"sub-{subject}" + (f"/ses-{session}" if session else "")
    name = place.replace("/", "_")
    path = bids / place / "anat" / f"{name}_{space}label-stroke_mask.nii.gz"
    path.parent.mkdir(parents=True)
    image = nib.Nifti1Image(data, GRID.affine)
    image.set_sform(GRID.affine, 4)
    nib.save(image, path)
    return path


@pytest.fixture
def bids(tmp_path, monkeypatch):
    """Three good participants, one of them with a session."""
    root = tmp_path / "bids"
    save(root, "01", offset=0)
    save(root, "02", offset=2, session="b")
    save(root, "03", offset=4)
    description = {"Name": "t", "BIDSVersion": "1.10.0", "DatasetType": "derivative",
                   "GeneratedBy": [{"Name": "hand"}]}  # fmt: skip
    (root / "dataset_description.json").write_text(json.dumps(description))
    monkeypatch.chdir(tmp_path)
    return root


@pytest.fixture
def check(capsys):
    """Run the command; its exit code, the lines of both streams, and the last line."""

    def run(*words):
        capsys.readouterr()
        code = main(["check", *map(str, words)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        if code:
            assert err.splitlines()[-1].startswith("lacuna-nipype: ")
        last = (err if code else out).splitlines()[-1]
        return code, out.splitlines(), last

    return run


def rows(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


# --- input ----------------------------------------------------------------------------------


def test_good_masks(bids, check, tmp_path):
    code, lines, last = check("input", bids, "--output-file", tmp_path / "new" / "table.tsv")
    assert code == 0
    assert "3 masks" in last
    header, *table = (re.split(r"\s{2,}", line) for line in lines[:4])
    assert header[:5] == ["participant", "session", "label", "space", "voxels"]
    assert [row[0] for row in table] == ["sub-01", "sub-02", "sub-03"]
    assert table[1][:7] == ["sub-02", "ses-b", "stroke", SPACE, "216", "1.73", "left"]
    written = rows(tmp_path / "new" / "table.tsv")
    assert [row["participant_id"] for row in written] == ["sub-01", "sub-02", "sub-03"]
    assert [row["session_id"] for row in written] == ["n/a", "ses-b", "n/a"]
    for row in written:
        assert (row["voxels"], row["hemisphere"], row["left_pct"]) == ("216", "left", "100")
        assert float(row["volume_ml"]) == pytest.approx(216 * 8 / 1000)
        assert row["brain_pct"] == "100"
        assert row["warnings"] == row["errors"] == "n/a"
    assert written[1]["mask"].startswith("sub-02/ses-b/anat/")


def test_bad_masks_are_all_named(bids, check, tmp_path):
    """Every one of them, and the good ones are looked at all the same."""
    grey, vague = save(bids, "04", value=3), save(bids, "05", space="", offset=6)
    contradicting = save(bids, "06", offset=8)
    contradicting.with_name(contradicting.name.replace(".nii.gz", ".json")).write_text(
        json.dumps({"Space": "MNI152NLin2009cAsym"})
    )
    code, lines, last = check("input", bids, "--output-file", tmp_path / "table.tsv")
    assert code == 1
    assert "3 of 6 masks" in last
    assert str(grey) in last
    for path, part in (
        (grey, "not binary"),
        (vague, f"--mask-space {SPACE}"),
        (contradicting, "MNI152NLin2009cAsym"),
    ):
        (line,) = [line for line in lines if line.startswith("Error: ") and str(path) in line]
        assert part in line
    by_name = {row["participant_id"]: row for row in rows(tmp_path / "table.tsv")}
    assert [name for name, row in by_name.items() if row["errors"] != "n/a"] == [
        "sub-04", "sub-05", "sub-06",
    ]  # fmt: skip
    assert by_name["sub-04"]["voxels"] == "n/a"
    assert by_name["sub-05"]["space"] == "n/a"
    assert by_name["sub-05"]["voxels"] == "216"


def test_quiet_prints_errors_and_the_last_line(bids, check):
    code, lines, last = check("input", bids, "--quiet")
    assert (code, lines) == (0, [last])
    path = save(bids, "04", value=3)
    code, lines, last = check("input", bids, "--quiet")
    assert code == 1
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert str(path) in last


def test_warnings_do_not_fail(bids, check):
    copy = save(bids, "04", offset=4)
    code, lines, last = check("input", bids)
    assert code == 0
    assert "2 warnings" in last
    (line,) = [line for line in lines if line.startswith(f"Warning: Mask {copy}")]
    assert "sub-03" in line
    assert next(line for line in lines if line.startswith("sub-04")).split()[-1] == "1"


def test_options_choose_masks_as_in_a_run(bids, check):
    for words, number in (
        (("--participant-label", "01", "sub-03"), 2),
        (("--session_label", "b"), 1),
        (("--pattern", "sub-0[12]*"), 2),
    ):
        code, _, last = check("input", bids, *words)
        assert code == 0
        assert ("The mask" if number == 1 else f"{number} masks") in last
    (bids / "filter.json").write_text('{"lesion": {"session": null}}')
    assert "2 masks" in check("input", bids, "--bids-filter-file", bids / "filter.json")[2]
    elsewhere = bids.parent / "elsewhere"
    save(elsewhere, "09", offset=9)
    assert "4 masks" in check("input", bids, "--derivatives", f"x={elsewhere}")[2]


def test_mask_space_insists(bids, check):
    save(bids, "04", space="", offset=9)
    assert check("input", bids)[0] == 1
    assert check("input", bids, "--mask-space", SPACE)[0] == 0
    code, lines, last = check("input", bids, "--mask-space", "MNI152NLin2009cAsym")
    assert code == 0
    assert "4 warnings" in last
    assert any(line.startswith("Note: ") and "replaces" in line for line in lines)
    assert check("input", bids, "--mask-space", "MNI151")[0] == 2


def test_empty_masks(bids, check):
    save(bids, "04", value=0)
    assert check("input", bids)[0] == 0
    assert check("input", bids, "--on-empty", "skip")[0] == 0
    code, _, last = check("input", bids, "--on-empty", "error")
    assert code == 1
    assert "sub-04" in last


def test_a_native_mask_needs_a_transform(bids, check):
    path = save(bids, "04", space="space-T1w_")
    code, _, last = check("input", bids)
    assert code == 1
    assert str(path) in last
    assert "--derivatives" in last
    (bids.parent / "to.h5").touch()
    words = ("--xfm", bids.parent / "to.h5", "--xfm-space", SPACE)
    code, lines, _ = check("input", bids, *words)
    assert code == 0
    row = next(line for line in lines if line.startswith("sub-04")).split()
    assert (row[3], row[4], row[6]) == ("T1w", "216", "n/a")


def test_a_single_mask(bids, check):
    code, _, last = check("input", next(bids.rglob("sub-03*.nii.gz")))
    assert (code, last) == (0, "The mask can be used.")


@pytest.mark.parametrize(
    "words",
    [(), ("input",), ("inputs", "."), ("input", "absent"), ("input", ".", "--nprocs", "0")],
)
def test_wrong_words(bids, check, words):
    assert check(*words)[0] == 2


def test_what_cannot_be_searched(bids, check):
    code, _, last = check("input", bids, "--participant-label", "99")
    assert code == 2
    assert "sub-99" in last
    (bids.parent / "empty").mkdir()
    code, _, last = check("input", bids.parent / "empty")
    assert code == 2
    assert "No lesion mask" in last


def test_help_is_light():
    """It is for login nodes too."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lacuna_nipype", "check", "input", "--help"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "--output-file" in done.stdout
    imported = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
    assert "argparse" in imported
    assert not imported & {"nibabel", "numpy", "nilearn", "nipype", "pandas"}


@pytest.mark.real_data
@pytest.mark.skipif(DATA is None, reason="LACUNA_TEST_DATA does not name a folder")
def test_the_tutorials_own_lesions(check, tmp_path):
    code, _, last = check("input", DATA / "lesions_tutorial", "--output-file", tmp_path / "t.tsv")
    assert code == 0, last
    table = rows(tmp_path / "t.tsv")
    assert [row["voxels"] for row in table] == ["14147", "11383", "7618"]
    assert [row["hemisphere"] for row in table] == ["right", "left", "right"]
    assert all(float(row["brain_pct"]) > 95 for row in table)


# --- output ---------------------------------------------------------------------------------


@pytest.fixture
def atlas(tmp_path):
    """Words of --custom-parcellation."""
    labels = np.zeros(GRID.shape, np.int16)
    labels[10:45, 10:90, 10:80], labels[45:80, 10:90, 10:80] = 1, 2
    nib.save(nib.Nifti1Image(labels, GRID.affine), tmp_path / "my halves.nii.gz")
    (tmp_path / "halves.txt").write_text("left half\nright half\n")
    files = [str(tmp_path / "my halves.nii.gz"), str(tmp_path / "halves.txt")]
    return ["--custom-parcellation", "Halves", *files, SPACE]


@pytest.fixture
def finish(bids, atlas, tmp_path):
    """Leave what a finished run of regional damage leaves: its record and all its files."""

    def finished(run, *words):
        out = tmp_path / "out"
        config = parse_config([str(bids), str(out), "participant", *atlas, *words])
        logs = out / "logs" / run
        logs.mkdir(parents=True)
        (logs / "config.json").write_text(json.dumps(config.to_dict()))
        inputs = gather_inputs(config)
        paths = [out / path for path in planned_outputs(inputs)]
        atlases = [out / path for path in planned_atlases(inputs.used_atlases)]
        for path in [*paths, *atlases]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        return out, paths

    return finished


def rerun_words(lines):
    """Words of the command that is proposed."""
    (line,) = [line for line in lines if line.startswith("  lacuna-nipype ")]
    return shlex.split(line)


def test_an_atlas_that_is_missing(bids, finish, check):
    out, _ = finish("20260101T000000-a")
    (table,) = out.glob("tpl-*/*_dseg.tsv")
    table.unlink()
    code, lines, last = check("output", bids, out)
    assert code == 1
    assert "lack 1 file" in last
    assert any(table.name in line and line.startswith("atlases:") for line in lines)
    assert "lack results" not in last
    assert "--participant-label" not in rerun_words(lines)


def test_a_complete_run(bids, finish, check):
    out, paths = finish("20260101T000000-a")
    assert len(paths) > 10
    code, lines, last = check("output", bids, out)
    assert (code, lines) == (0, [last])
    assert "3 lesions" in last
    assert "20260101T000000-a" in last


def test_missing_results_and_the_command_for_them(bids, finish, check, atlas):
    words = ("--on-empty", "skip", "--plugin", "Linear", "--nprocs", "7", "--mem", "3G")
    out, paths = finish("20260101T000000-a", *words)
    for path in paths:
        if path.name.startswith("sub-02") and path.suffix == ".tsv":
            path.unlink()
    (out / "sub-03").rename(out / "gone")
    code, lines, last = check("output", bids, out)
    assert code == 1
    assert "2 of 3 lesions" in last
    assert re.match(r"sub-02_ses-b_label-stroke: 1 of \d+ outputs missing.*parcelstats", lines[0])
    assert re.match(r"sub-03_label-stroke: all \d+ outputs missing", lines[1])
    again = rerun_words(lines)
    assert again[1:4] == [str(bids), str(out), "participant"]
    config = parse_config(again[1:])
    first = parse_config([str(bids), str(out), "participant", *atlas, *words])
    ours, theirs = config.to_dict(), first.to_dict()
    assert ours.pop("participant_label") == ["02", "03"]
    # What belongs to the machine is left to the one that runs it.
    for key in ("participant_label", "nprocs", "memory_gb", "omp_nthreads"):
        ours.pop(key, None)
        theirs.pop(key, None)
    assert ours == theirs


def test_an_empty_file_is_no_result(bids, finish, check):
    out, paths = finish("20260101T000000-a")
    paths[0].write_text("")
    code, lines, _ = check("output", bids, out)
    assert code == 1
    assert lines[0].startswith("sub-01_label-stroke: 1 of")
    assert "--participant-label 01 " in lines[-1]


def test_runs_of_one_participant_each_are_parts_of_one(bids, finish, check):
    """As the jobs of an array are; participants that none was for are not expected."""
    out, _ = finish("20260101T000000-a", "--participant-label", "01", "-w", "w1")
    finish("20260101T000000-b", "--participant-label", "02", "-w", "w2", "--nprocs", "1")
    code, _, last = check("output", bids, out)
    assert (code, "2 lesions" in last) == (0, True)
    shutil.rmtree(out / "sub-01")
    code, lines, _ = check("output", bids, out)
    assert code == 1
    assert lines[0].startswith("sub-01")
    # One that was for all makes all expected.
    finish("20260101T000000-c")
    shutil.rmtree(out / "sub-03")
    assert check("output", bids, out)[1][0].startswith("sub-03")


def test_the_latest_run_counts(bids, finish, check):
    out, _ = finish("20260101T000000-a", "--session-label", "b")
    finish("20260102T000000-a", "--pattern", "sub-01*")
    code, _, last = check("output", bids, out)
    assert code == 0
    assert "1 lesion of the run 20260102" in last


def test_run_options_narrow_and_change(bids, finish, check):
    out, paths = finish("20260101T000000-a")
    paths[0].unlink()
    assert check("output", bids, out, "--participant-label", "02", "03")[0] == 0
    assert check("output", bids, out, "--participant_label", "sub-01")[0] == 1
    assert check("output", bids, out, "--on-empty", "never")[0] == 2


def test_an_option_that_looks_like_a_flag(bids, finish, check):
    out, paths = finish("20260101T000000-a", "--pattern=*-0[13]*")
    config = json.loads((out / "logs/20260101T000000-a/config.json").read_text())
    (out / "logs/20260101T000000-a/config.json").write_text(
        json.dumps({**config, "streamline_groups": None, "of_another_version": [1]})
    )
    paths[0].unlink()
    code, lines, _ = check("output", bids, out)
    assert code == 1
    assert parse_config(rerun_words(lines)[1:]).pattern == "*-0[13]*"


def test_a_mask_that_changed_since(bids, finish, check):
    out, _ = finish("20260101T000000-a")
    key = next(bids.rglob("sub-03*.nii.gz")).name.partition("_space")[0] + "_label-stroke"
    for signature in ("of another mask", None):
        mask = ["complete", signature, {}]
        state = {f"lesion {SPACE} {SPACE}": mask, "rd": ["complete", "", {}]}
        note = out / "logs" / "state" / f"{key}.json"
        note.parent.mkdir(exist_ok=True)
        # A damaged note is as good as none.
        note.write_text(json.dumps(state) if signature else "{")
        code, lines, _ = check("output", bids, out)
        assert code == (1 if signature else 0)
        assert ("changed" in lines[0]) == bool(signature)


def test_masks_that_cannot_be_used_any_more(bids, finish, check):
    out, _ = finish("20260101T000000-a")
    mask = next(bids.rglob("sub-03*.nii.gz"))
    mask.write_bytes(b"no image")
    code, lines, last = check("output", bids, out)
    assert code == 1
    assert str(mask) in lines[0]
    assert "1 mask cannot be used" in last


def test_inputs_that_are_gone(bids, finish, check, tmp_path, atlas):
    out, _ = finish("20260101T000000-a")
    Path(atlas[2]).rename(tmp_path / "moved.nii.gz")
    code, _, last = check("output", bids, out)
    assert code == 2
    assert "my halves.nii.gz" in last
    words = (*atlas[:2], tmp_path / "moved.nii.gz", *atlas[3:])
    assert check("output", bids, out, *words)[0] == 0
    config = json.loads((out / "logs/20260101T000000-a/config.json").read_text())
    (out / "logs/20260101T000000-a/config.json").write_text(
        json.dumps({**config, "bids_filter_file": "/gone/filter.json"})
    )
    code, _, last = check("output", bids, out)
    assert code == 2
    assert "/gone/filter.json" in last
    assert "--bids-filter-file" in last


def test_folders_without_a_record(bids, check, tmp_path):
    out = tmp_path / "out"
    (out / "logs" / "x").mkdir(parents=True)
    for content, part in ((None, "no record"), ("{", "cannot be read"), ("[]", "object")):
        if content is not None:
            (out / "logs/x/config.json").write_text(content)
        code, _, last = check("output", bids, out)
        assert code == 2
        assert str(out) in last
        assert part in last
    assert check("output", bids)[0] == 2
    assert check("output", bids, "absent")[0] == 2


@pytest.mark.e2e
def test_a_real_run(bids, atlas, check, tmp_path):
    """The plan that is compared with is what a run really writes."""
    out = tmp_path / "out"
    words = [bids, out, "participant", *atlas, "--plugin", "Linear", "-w", tmp_path / "work"]
    run = subprocess.run(
        [sys.executable, "-m", "lacuna_nipype", *map(str, words)],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert check("output", bids, out)[0] == 0
    mask = next(bids.rglob("sub-03*.nii.gz"))
    nib.save(
        nib.Nifti1Image(np.asarray(nib.load(mask).dataobj)[::-1], nib.load(mask).affine), mask
    )
    code, lines, _ = check("output", bids, out)
    assert code == 1
    assert lines[0].startswith("sub-03")
