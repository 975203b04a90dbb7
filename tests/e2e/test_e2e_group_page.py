"""The page of the group that the real command writes, and what a browser makes of it."""

import base64
import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from pages import browse, by_id, cards, facts, needs_browser, parse, summary, table_rows, words

SPACE = "MNI152NLin6Asym"
DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None
ATLAS_STEM = "tpl-MNI152NLin6Asym_res-01_atlas-Schaefer2018_desc-100Parcels7Networks_dseg"


@pytest.fixture(scope="module")
def grouped(multiproc, demonstration, run_command, tmp_path_factory):
    """Overlap and a test of the whole demonstration cohort, with the page."""
    folder = tmp_path_factory.mktemp("grouped")
    shutil.copytree(multiproc.out, folder / "out")
    arguments = (
        *(demonstration.bids_dir, folder / "out", "group", "-w", folder / "work"),
        *("--score", "symptom_score", "--pool-sessions", "--permutations", 150),
        *("--participants-columns", "age", "--plugin", "Linear"),
    )
    process = run_command(*arguments, reports=True, timeout=280)
    assert process.returncode == 0, process.stdout
    return folder / "out", arguments, process


@pytest.fixture(scope="module")
def page(grouped):
    return parse(grouped[0] / "group.html")


def test_the_page_is_named_and_whole(grouped, page):
    out, _, process = grouped
    assert f"Report: {out / 'group.html'}" in process.stdout.splitlines()
    images = [image.get("src").partition(",")[2] for image in page.iter("img")]
    files = [path.read_bytes() for path in (out / "figures").iterdir()]
    assert sorted(map(base64.b64decode, images)) == sorted(files)
    # Four overlaps of each of two labels, two figures each; three tests of maps, three each.
    # (One participant's lesion cuts nothing by half or has no negative network: no figures.)
    assert 20 <= len(images) <= 25
    for link in (a.get("href") for a in page.iter("a")):
        assert link.startswith(("#", "data:", "https://doi.org/10.")) or (out / link).is_file()
    assert "Error" not in summary(out / "group.html")
    assert "too few to test" in summary(out / "group.html")


def test_overlaps_on_the_page_are_those_of_the_maps(grouped, page):
    out, _, _ = grouped
    shown = cards(page, "overlap-")
    (path,) = out.glob(f"tpl-{SPACE}/anat/*label-acuteinfarct_stat-count_*.nii.gz")
    count = np.asarray(nb.load(path).dataobj)
    told = facts(shown["Lesions (acuteinfarct)"])
    assert told["Largest overlap"].startswith(f"{count.max()} of 5 participants")
    assert f"the middle of {(count == count.max()).sum():,} such voxels" in told["Where"]
    x, y, z = map(int, re.findall(r"[xyz] (-?\d+)", told["Where"]))
    image = nb.load(path)
    voxel = np.rint(np.linalg.inv(image.affine) @ [x, y, z, 1])[:3].astype(int)
    assert count[tuple(voxel)] == count.max()
    (path,) = out.glob(f"tpl-{SPACE}/anat/*label-acuteinfarct_stat-overlappositive_*.nii.gz")
    share = np.asarray(nb.load(path).dataobj).max()
    told = facts(shown["Functional network, t > 5 (acuteinfarct)"])
    assert told["Largest overlap"].startswith(f"{round(5 * share)} of 5 participants")


def test_tests_on_the_page_are_those_of_the_files(grouped, page):
    out, _, _ = grouped
    shown = cards(page, "model-1-test")
    (path,) = out.glob(f"tpl-{SPACE}/anat/*model-symptomScore_stat-t_desc-fnm_statmap.nii.gz")
    t = np.asarray(nb.load(path).dataobj)
    sidecar = json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text())
    told = facts(shown["Functional network, voxel by voxel"])
    largest = t.flat[np.abs(t).argmax()]
    assert told["Largest |t|"].startswith(f"t = {largest:.3g} at x ")
    assert told["Tested"] == f"{sidecar['Statistics']['ValuesTested']:,} voxels"
    log_p = nb.load(Path(str(path).replace("stat-t_", "stat-logpfwe_"))).dataobj
    significant = int((np.asarray(log_p) > -np.log10(0.05) - 1e-5).sum())
    assert significant == sidecar["Statistics"]["SignificantValues"]
    text = words(shown["Functional network, voxel by voxel"])
    assert ("Nothing survives" in text) == (significant == 0)
    (table,) = out.glob(f"tpl-{SPACE}/anat/*model-symptomScore_stat-z_desc-fnm_parcelstats.tsv")
    regions = pd.read_csv(table, sep="\t", na_values=["n/a"])
    card = next(card for title, card in shown.items() if title.startswith("Functional network, r"))
    (bars,) = [t for t in card.iter("table") if t.get("class") == "bars tested"]
    order = regions["t_value"].abs().sort_values(ascending=False, kind="stable").index
    assert table_rows(bars)[1][0][0] == regions["name"][order[0]]
    marked = [row for row in table_rows(bars)[1] if row[2].endswith("*")]
    assert len(marked) == (regions["p_fwe"] <= 0.05).sum()


def test_participants_on_the_page_are_those_of_the_folder(grouped, page, demonstration):
    out, _, _ = grouped
    people = pd.read_csv(demonstration.bids_dir / "participants.tsv", sep="\t", index_col=0)
    (table,) = by_id(page, "participants").iter("table")
    heads, rows = table_rows(table)
    assert {row[0] for row in rows} == set(people.index)
    for row in rows:
        own = dict(zip(heads, row, strict=True))
        assert float(own["symptom_score"]) == people.loc[own["Participant"], "symptom_score"]
        assert float(own["age"]) == people.loc[own["Participant"], "age"]
        session = "" if own["Session"] == "n/a" else f"ses-{own['Session']}"
        masks = (out / own["Participant"] / session / "anat").glob("*_desc-lesion_mask.nii.gz")
        volume = sum(np.count_nonzero(nb.load(path).dataobj) / 1000 for path in masks)
        assert own["Lesion (ml)"] == f"{volume:.3g}"


def test_the_folder_still_passes_the_bids_validator(grouped, validate_bids):
    validate_bids(grouped[0])


def test_citations_lie_beside_the_log(grouped):
    (path,) = [
        p for p in grouped[0].glob("logs/*/CITATION.md") if "symptom_score" in p.read_text()
    ]
    text = path.read_text()
    entries = re.findall(r"^@\w+\{(\w+),$", path.with_suffix(".bib").read_text(), re.MULTILINE)
    assert set(re.findall(r"@(\w+)", text)) == set(entries)
    assert {"boes2015", "nichols2002", "freedman1983"} <= set(entries)


def test_a_second_run_leaves_the_page_alone(grouped, run_command):
    out, arguments, _ = grouped
    files = [out / "group.html", *(out / "figures").iterdir()]
    times = {path: path.stat().st_mtime_ns for path in files}
    again = run_command(*arguments, reports=True)
    assert again.returncode == 0, again.stdout
    assert {path: path.stat().st_mtime_ns for path in files} == times


def test_reports_only_makes_the_page_again_without_a_graph(grouped, run_command):
    out, arguments, _ = grouped
    before, logs = (out / "group.html").read_text(), sorted(out.glob("logs/*"))
    (out / "group.html").unlink()
    shutil.rmtree(out / "figures")
    run = run_command(*arguments[:3], "--reports-only", reports=True)
    assert run.returncode == 0, run.stdout
    assert run.stdout.splitlines() == [f"Report: {out / 'group.html'}", f"Results: {out}"]
    after = (out / "group.html").read_text()
    # The runs that made the results may have been told apart since.
    assert re.sub(r"(?s)<section id=\"origin\".*", "", after) == re.sub(
        r"(?s)<section id=\"origin\".*", "", before
    )
    assert sorted(out.glob("logs/*")) == logs


def test_without_reports_there_is_no_page(grouped, demonstration, run_command, tmp_path):
    out = tmp_path / "out"
    run = run_command(
        *(demonstration.bids_dir, out, "group", "-d", f"old={grouped[0]}", "-w", tmp_path / "w"),
        *("--analysis", "rd", "--pool-sessions", "--plugin", "Linear", "--no-reports"),
    )
    assert run.returncode == 0, run.stdout
    assert not list(out.glob("*.html"))
    assert not (out / "figures").exists()


def test_a_failed_step_is_on_the_page(grouped, run_command, demonstration, tmp_path):
    """A damaged map makes one step fail; the others are shown."""
    out = tmp_path / "out"
    shutil.copytree(
        grouped[0], out, ignore=shutil.ignore_patterns("tpl-*", "phenotype", "figures", "*.html")
    )
    path = next((out / "sub-04").rglob("*_stat-disconnectionpct_desc-snm_statmap.nii.gz"))
    # Its header can be read, so the plan is made.
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run = run_command(
        *(demonstration.bids_dir, out, "group", "-w", tmp_path / "work", "--pool-sessions"),
        *("--analysis", "lesion", "snm", "--plugin", "Linear"),
        reports=True,
    )
    assert run.returncode == 1, run.stdout
    assert "Traceback" not in run.stdout
    text = summary(out / "group.html")
    assert "Error: The overlap of space-" in text
    assert path.name in text
    assert "missing, such as" in text
    assert "Lesions (acuteinfarct)" in cards(parse(out / "group.html"), "overlap-")


def test_a_damaged_result_is_a_sentence(grouped, run_command, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(grouped[0], out)
    (path,) = out.glob(f"tpl-{SPACE}/anat/*label-acuteinfarct_stat-count_*.nii.gz")
    path.write_bytes(path.read_bytes()[:100])
    run = run_command(*(grouped[1][0], out, "group", "--reports-only"), reports=True)
    assert run.returncode == 1, run.stdout
    assert "Traceback" not in run.stdout
    assert path.name in run.stdout.splitlines()[-1]
    assert path.name in words(parse(out / "group.html"))


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)])
def test_a_browser_shows_the_page(grouped, tmp_path, width, dark):
    page = grouped[0] / "group.html"
    seen, console = browse(
        page, tmp_path, width=width, dark=dark, table="#participants table", heading="Lesion (ml)"
    )
    assert console == []
    assert len(seen["widths"]) >= 20
    assert min(seen["widths"]) > 500
    assert min(seen["shown"]) > 300
    assert all(name.startswith("data:") for name in seen["resources"])
    assert seen["overflow"] <= 0
    back, ink = (
        np.mean([int(number) for number in re.findall(r"\d+", seen[key])[:3]])
        for key in ("background", "ink")
    )
    assert (back < 60 and ink > 180) if dark else (back > 200 and ink < 80)
    # By volume: the largest first, then the smallest; then by name.
    _, rows = table_rows(next(by_id(parse(page), "participants").iter("table")))
    by_volume = sorted(rows, key=lambda row: -float(row[2]))
    assert seen["first"] == [row[0] for row in by_volume[:3]]
    assert seen["second"] == [row[0] for row in by_volume[::-1][:3]]
    assert seen["third"][0] == "sub-01"
