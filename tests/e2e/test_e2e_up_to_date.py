"""What an earlier run completed is not done again, unless something that it depends on changed."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest


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


@pytest.fixture
def cohort(demonstration, run_command, tmp_path):
    """Three participants of the tutorial, and a function that runs them."""
    dataset = tmp_path / "bids"
    shutil.copytree(
        demonstration.bids_dir, dataset, ignore=shutil.ignore_patterns("sub-04", "sub-05")
    )
    words = (
        *(dataset, tmp_path / "out", "participant", "--parcel-atlases", "Demo"),
        *("--functional-connectome", demonstration.functional_connectome),
        *("--plugin", "Linear", "-w", tmp_path / "work"),
    )

    def run(*more, code=0, env=None):
        process = run_command(*words, *more, env=env)
        assert process.returncode == code, process.stdout
        return process

    run.dataset, run.out, run.work = dataset, tmp_path / "out", tmp_path / "work"
    return run


def test_a_new_participant_costs_its_own_share_only(cohort, demonstration):
    cohort()
    before = results(cohort.out)
    shutil.copytree(demonstration.bids_dir / "sub-05", cohort.dataset / "sub-05")
    assert lesions_of_the_graph(cohort("--dry-run")) == {"sub_05_label_acuteinfarct"}
    run = cohort()
    assert up_to_date(run) == 5
    after = results(cohort.out)
    assert {name: after[name] for name in before} == before
    new = {name.split("/")[0] for name in set(after) - set(before)}
    assert new == {"sub-05"}
    # The result is that of a run of all.
    shutil.rmtree(cohort.out)
    shutil.rmtree(cohort.work)
    cohort()
    alone = results(cohort.out)
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


def test_other_processors_and_choices_change_nothing(cohort):
    cohort()
    before = results(cohort.out)
    run = cohort("--nprocs", "1", "--participant-label", "01", "--mem", "2G", "--plugin",
                 "MultiProc")  # fmt: skip
    assert up_to_date(run) == 1
    assert steps_that_ran(run) == 0
    assert results(cohort.out) == before


@pytest.mark.parametrize("change", ["parameter", "connectome", "atlas", "analysis"])
def test_what_changed_is_done_again(cohort, demonstration, change, tmp_path):
    cohort()
    more = []
    if change == "parameter":
        more = ["--t-threshold", "2"]
    elif change == "analysis":
        more = ["--structural-connectome", demonstration.structural_connectome]
    elif change == "connectome":
        # The same name, other content.
        folder = tmp_path / demonstration.functional_connectome.name
        shutil.copytree(demonstration.functional_connectome, folder)
        sorted(folder.glob("*.h5"))[0].unlink()
        more = ["--functional-connectome", folder]
    else:
        (labels,) = cohort.dataset.glob("tpl-*/*_dseg.tsv")
        text = labels.read_text()
        labels.write_text(text.replace(text.split("\n")[1].split("\t")[1], "another name", 1))
    run = cohort(*more)
    assert up_to_date(run) == 0
    assert steps_that_ran(run) > 0


def test_overwrite_does_all_again(cohort):
    cohort()
    (cohort.out / "sub-01").rename(cohort.out / "kept")
    shutil.copytree(cohort.out / "kept", cohort.out / "sub-01")
    table = next((cohort.out / "sub-01").rglob("*_parcelstats.tsv"))
    kept = table.read_bytes()
    table.write_text("spoilt\n")
    assert steps_that_ran(cohort()) == 0
    assert table.read_text() == "spoilt\n"
    run = cohort("--overwrite")
    assert up_to_date(run) == 0
    assert table.read_bytes() == kept


def test_a_run_that_did_not_end_completes_nothing(cohort):
    cohort()
    state = cohort.out / "logs" / "state"
    files = sorted(state.glob("*.json"))
    assert len(files) == 5
    content = json.loads(files[0].read_text())
    assert {entry[0] for entry in content.values()} == {"complete"}
    # As a killed run with another threshold leaves it.
    content["fnm"] = ["begun", "0" * 64]
    files[0].write_text(json.dumps(content))
    # A file cut in half is as good as none.
    files[1].write_text(files[1].read_text()[:20])
    run = cohort()
    assert up_to_date(run) == 3
    # The finished steps of the same graph are used again.
    assert steps_that_ran(run) == 0
    assert up_to_date(cohort()) == 5
