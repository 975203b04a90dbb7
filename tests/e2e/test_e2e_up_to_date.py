"""What an earlier run completed is not done again, unless something that it depends on changed."""

import copy
import json
import os
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.cli.claims import claimed


def results(out):
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and "logs" not in path.parts and "provenance" not in path.name
    }


def up_to_date(run):
    found = re.search(r"^(\d+) lesions? of an earlier run up to date", run.stdout, re.MULTILINE)
    return int(found[1]) if found else 0


def lesions_of_the_graph(run):
    """Lesions whose masks a dry run would store or whose steps it lists."""
    steps = re.findall(r"^  (sub_\w+?)_mask_wf\.", run.stdout, re.MULTILINE)
    return set(steps)


def steps_that_ran(run):
    found = re.search(r"^(\d+) steps ran,", run.stdout, re.MULTILINE)
    return int(found[1]) if found else 0


class Cohort:
    """Three participants of the tutorial, and a function that runs them."""

    def __init__(self, folder, words, run_command):
        self.folder, self.words, self.run_command = folder, words, run_command
        self.dataset, self.out, self.work = (folder / name for name in ("bids", "out", "work"))

    def __call__(self, *more, code=0, env=None):
        words = (self.dataset, self.out, "participant", *self.words, "-w", self.work)
        process = self.run_command(*words, *more, env=env)
        assert process.returncode == code, process.stdout
        return process


@pytest.fixture(scope="module")
def studies(demonstration, run_command, tmp_path_factory):
    """The cohort in a folder of its own, as it is before and after a first run."""
    home = tmp_path_factory.mktemp("up_to_date")
    words = ("--parcel-atlases", "Demo", "--plugin", "Linear")
    words += ("--functional-connectome", demonstration.functional_connectome)
    cohort = Cohort(home / "study", words, run_command)
    others = shutil.ignore_patterns("sub-04", "sub-05")
    shutil.copytree(demonstration.bids_dir, cohort.dataset, ignore=others)
    shutil.copytree(cohort.folder, home / "new")
    cohort()
    cohort.folder.rename(home / "done")
    return home, cohort


def restored(studies, name):
    # In one place, as steps are up to date for the paths that they were run with.
    home, cohort = studies
    shutil.rmtree(cohort.folder, ignore_errors=True)
    shutil.copytree(home / name, cohort.folder, symlinks=True)
    return cohort


@pytest.fixture
def cohort(studies):
    """The cohort without any results."""
    return restored(studies, "new")


@pytest.fixture
def done(studies):
    """The cohort after a first run with both analyses."""
    return restored(studies, "done")


def test_a_new_participant_costs_its_own_share_only(done, demonstration):
    before = results(done.out)
    shutil.copytree(demonstration.bids_dir / "sub-05", done.dataset / "sub-05")
    assert lesions_of_the_graph(done("--dry-run")) == {"sub_05_label_acuteinfarct"}
    run = done()
    assert up_to_date(run) == 5
    after = results(done.out)
    assert {name: after[name] for name in before} == before
    new = {name.split("/")[0] for name in set(after) - set(before)}
    assert new == {"sub-05"}
    # The result is that of a run of all.
    shutil.rmtree(done.out)
    shutil.rmtree(done.work)
    done()
    alone = results(done.out)
    assert set(alone) == set(after)
    for name in alone:
        if name.endswith(".nii.gz"):
            one, other = (
                nib.Nifti1Image.from_bytes(_unpacked(content)).get_fdata()
                for content in (alone[name], after[name])
            )
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def _unpacked(content):
    import gzip

    return gzip.decompress(content)


def test_other_processors_and_choices_change_nothing(done):
    before = results(done.out)
    words = ("--nprocs", "1", "--participant-label", "01", "--mem", "2G", "--verify", "5")
    run = done(*words, "--plugin", "MultiProc")
    assert up_to_date(run) == 1
    assert "not verified again" in run.stdout
    assert steps_that_ran(run) == 0
    assert results(done.out) == before


@pytest.mark.parametrize("change", ["parameter", "connectome", "atlas"])
def test_what_changed_is_done_again(done, demonstration, change, tmp_path):
    more = []
    if change == "parameter":
        more = ["--t-threshold", "2"]
    elif change == "connectome":
        # The same name, other content.
        folder = tmp_path / demonstration.functional_connectome.name
        shutil.copytree(demonstration.functional_connectome, folder)
        sorted(folder.glob("*.h5"))[0].unlink()
        more = ["--functional-connectome", folder]
    else:
        (labels,) = done.dataset.glob("tpl-*/*_dseg.tsv")
        text = labels.read_text()
        labels.write_text(text.replace(text.split("\n")[1].split("\t")[1], "another name", 1))
    run = done(*more)
    assert up_to_date(run) == 0
    assert steps_that_ran(run) > 0


def test_another_analysis_leaves_complete_ones_alone(done, demonstration):
    before = results(done.out)
    # So that nothing can be taken from there.
    shutil.rmtree(done.work)
    more = ("--structural-connectome", demonstration.structural_connectome)
    run = done(*more)
    assert up_to_date(run) == 0
    assert not list(done.work.rglob("correlate"))
    after = results(done.out)
    assert {name: after[name] for name in before} == before
    assert [name for name in after if "_desc-snm_" in name]
    assert up_to_date(done(*more)) == 5


def test_one_lost_result_in_a_cleaned_work_folder_costs_its_own_share(done):
    lost = next(done.out.rglob("sub-01*_desc-fnm_statmap.nii.gz"))
    lost.unlink()
    for steps in done.work.glob("*_wf"):
        shutil.rmtree(steps)
    assert lesions_of_the_graph(done("--dry-run")) == {"sub_01_ses_01_label_acuteinfarct"}


def test_a_result_of_another_mask_is_none(cohort, run_command, tmp_path):
    alone = ("--participant-label", "03")
    packed = sorted(cohort.dataset.rglob("sub-03*_mask.nii.gz"))
    masks = [path.with_suffix("") for path in packed]
    for path, plain in zip(packed, masks, strict=True):
        nib.Nifti1Image.from_filename(path).to_filename(plain)
        path.unlink()
    cohort(*alone)
    assert [name for name in results(cohort.out) if "_desc-fnm_" in name]
    for mask in masks:
        image, time = nib.load(mask), mask.stat().st_mtime_ns
        moved = np.roll(np.asarray(image.dataobj), 2, axis=2)
        # Neither size nor time tells.
        nib.Nifti1Image(moved, image.affine, image.header).to_filename(mask)
        os.utime(mask, ns=(time, time))
    check = run_command("check", "output", cohort.dataset, cohort.out)
    assert check.returncode == 1
    assert "mask has changed" in check.stdout
    run = cohort(*alone, "--analysis", "rd")
    assert up_to_date(run) == 0
    assert "other parameters or inputs" in run.stdout
    after = results(cohort.out)
    assert not [name for name in after if "_desc-fnm_" in name]
    for mask in masks:
        label = mask.name.partition("label-")[2].partition("_")[0]
        stored = next(cohort.out.rglob(f"sub-03*label-{label}_*desc-lesion_mask.nii.gz"))
        np.testing.assert_array_equal(nib.load(stored).dataobj, nib.load(mask).dataobj)
    fresh = copy.copy(cohort)
    fresh.out, fresh.work = tmp_path / "out", tmp_path / "work"
    fresh(*alone, "--analysis", "rd")
    tables = [name for name in after if name.endswith("_parcelstats.tsv")]
    assert tables
    anew = results(fresh.out)
    assert {name: anew[name] for name in tables} == {name: after[name] for name in tables}


def test_masks_of_a_run_that_did_not_end_are_known(cohort):
    """What was stored before the end counts as made of the mask of that time."""
    alone = ("--participant-label", "03")
    cohort(*alone)
    states = sorted((cohort.out / "logs" / "state").glob("sub-03*.json"))
    for state in states:
        content = json.loads(state.read_text())
        # As a killed run leaves it.
        state.write_text(json.dumps({k: ["begun", v[1], {}] for k, v in content.items()}))
    for mask in cohort.dataset.rglob("sub-03*_mask.nii.gz"):
        image = nib.load(mask)
        moved = np.roll(np.asarray(image.dataobj), 2, axis=2)
        nib.save(nib.Nifti1Image(moved, image.affine, image.header), mask)
    cohort(*alone, "--analysis", "rd")
    assert not [name for name in results(cohort.out) if "_desc-fnm_" in name]


def test_analyses_that_were_left_out_keep_their_place_in_the_work_folder(done):
    table = next(done.out.rglob("sub-01*_desc-rd_parcelstats.tsv"))
    table.unlink()
    assert 0 < steps_that_ran(done()) < 5
    kept = next(done.out.rglob("sub-01*_desc-fnm_statmap.nii.gz"))
    kept.unlink()
    assert 0 < steps_that_ran(done()) < 5
    # Of both analyses, although the last run did one.
    methods = (done.out / "logs" / "CITATION.md").read_text()
    assert "**Regional damage.**" in methods
    assert "**Functional network mapping.**" in methods


def test_a_refused_run_changes_nothing(done):
    (labels,) = done.dataset.glob("tpl-*/*_dseg.tsv")
    labels.write_text(labels.read_text().replace("\n", " of another\n"))
    before = {path: path.read_bytes() for path in done.out.rglob("*") if path.is_file()}
    key = "sub-01_ses-01_label-acuteinfarct"
    with claimed(done.out, "another", {key: {"rd": "", "fnm": ""}}):
        run = done("--participant-label", "01", code=2)
    assert "Another run (another)" in run.stdout
    assert {path: path.read_bytes() for path in done.out.rglob("*") if path.is_file()} == before


def test_overwrite_does_all_again(done):
    (done.out / "sub-01").rename(done.out / "kept")
    shutil.copytree(done.out / "kept", done.out / "sub-01")
    assert steps_that_ran(done()) == 0
    table = next((done.out / "sub-01").rglob("*_parcelstats.tsv"))
    kept, first = table.read_bytes(), table.stat().st_mtime_ns
    run = done("--overwrite")
    assert up_to_date(run) == 0
    assert re.search(r"^\d+ steps ran, 0 were up to date", run.stdout, re.MULTILINE)
    assert table.read_bytes() == kept
    assert table.stat().st_mtime_ns > first


def test_a_result_that_was_changed_is_stored_again(cohort, run_command):
    alone = ("--participant-label", "02")
    cohort(*alone)
    kept = results(cohort.out)
    cut = next(cohort.out.rglob("*ses-01*stat-z_desc-fnm_statmap.nii.gz"))
    os.truncate(cut, 1000)
    check = run_command("check", "output", cohort.dataset, cohort.out)
    assert check.returncode == 1
    assert cut.relative_to(cohort.out).as_posix() in check.stdout
    run = cohort(*alone)
    assert up_to_date(run) == 1
    assert steps_that_ran(run) == 1
    assert results(cohort.out) == kept
    # With nothing noted of it, a file that is there is nobody's.
    shutil.rmtree(cohort.out / "logs" / "state")
    next(cohort.out.rglob("*_parcelstats.tsv")).write_text("spoilt\n")
    cohort(*alone)
    assert results(cohort.out) == kept
    assert run_command("check", "output", cohort.dataset, cohort.out).returncode == 0


def test_results_are_those_of_the_options_given_last(cohort, tmp_path):
    alone = ("--participant-label", "02")
    cohort(*alone)
    first = results(cohort.out)
    cohort(*alone, "--fnm-method", "pini", "--no-p-map", "-w", tmp_path / "elsewhere")
    second = results(cohort.out)
    methods = {
        json.loads(content)["Method"]
        for name, content in second.items()
        if name.endswith("_desc-fnm_statmap.json")
    }
    assert len(methods) == 1
    assert not [name for name in second if "_stat-p_" in name]
    # The work folder still holds the steps of the first options, which are up to date.
    run = cohort(*alone)
    assert 0 < steps_that_ran(run) < 10
    assert results(cohort.out) == first


def test_results_of_another_atlas_stay(cohort):
    alone = ("--participant-label", "02", "--analysis", "rd")
    cohort(*alone)
    first = results(cohort.out)
    own = cohort.dataset / "own"
    own.mkdir()
    for path in (cohort.dataset / "tpl-MNI152NLin6Asym").glob("*_dseg.*"):
        shutil.copyfile(path, own / f"own{''.join(path.suffixes)}")
    words = ("--custom-parcellation", "Own", own / "own.nii.gz", own / "own.tsv")
    cohort(*alone, *words, "MNI152NLin6Asym")
    second = results(cohort.out)
    assert set(first) < set(second)
    assert [name for name in second if "atlas-Own" in name]
    # Options of another analysis, and the choice of maps, change no number of these.
    cohort("--participant-label", "02", "--t-threshold", "3", "--no-p-map")
    last = results(cohort.out)
    tables = [name for name in second if name.endswith("_parcelstats.tsv")]
    assert {name: last[name] for name in tables} == {name: second[name] for name in tables}
    assert [name for name in last if "_stat-r_desc-fnm_parcelstats" in name]


def test_analyses_one_by_one_share_the_mask(cohort, run_command):
    alone = ("--participant-label", "02")
    mask = nib.load(next(cohort.dataset.rglob("sub-02*_mask.nii.gz")))
    for analysis in ("fnm", "rd"):
        cohort(*alone, "--analysis", analysis)
    stored = next((cohort.out / "sub-02").rglob("*_desc-lesion_mask.nii.gz"))
    before = stored.stat().st_ino
    cohort(*alone, "--analysis", "fnm", "--t-threshold", "3")
    # Neither removed nor stored again, as it is the same for all of them.
    assert stored.stat().st_ino == before
    assert np.asarray(nib.load(stored).dataobj).sum() == np.asarray(mask.dataobj).sum() > 0
    assert steps_that_ran(cohort(*alone, "--analysis", "rd")) == 0
    check = run_command("check", "output", cohort.dataset, cohort.out)
    assert check.returncode == 0, check.stdout


def test_a_run_that_did_not_end_completes_nothing(done):
    state = done.out / "logs" / "state"
    files = sorted(state.glob("*.json"))
    assert len(files) == 5
    content = json.loads(files[0].read_text())
    assert {entry[0] for entry in content.values()} == {"complete"}
    # As a killed run with another threshold leaves it.
    content["fnm"] = ["begun", "0" * 64, {}]
    before = results(done.out)
    files[0].write_text(json.dumps(content))
    # A file cut in half is as good as none.
    files[1].write_text(files[1].read_text()[:20])
    run = done()
    assert up_to_date(run) == 3
    # The finished steps of the same graph are used again; results of other options, or of
    # nobody knows which, are stored again.
    assert 0 < steps_that_ran(run) <= 2 * 4
    assert results(done.out) == before
    assert up_to_date(done()) == 5
