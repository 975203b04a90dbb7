"""Pages that the real command writes, and what a browser makes of them."""

import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pages import CHROMIUM, browse, needs_browser, parse, summary, words

SPACE = "MNI152NLin6Asym"
DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None


@pytest.fixture(scope="module")
def reported(demonstration, full_arguments, run_command, tmp_path_factory):
    """A run of two participants with pages; one of them has two lesions."""
    folder = tmp_path_factory.mktemp("reported")
    arguments = (
        *(demonstration.bids_dir, folder / "out", "participant", *full_arguments),
        *("--participant-label", "01", "03", "--compute-disconnectivity-matrix"),
        *("--compute-roi-disconnection", "-w", folder / "work"),
    )
    process = run_command(*arguments, reports=True, timeout=280)
    assert process.returncode == 0, process.stdout
    return folder / "out", arguments, process


def test_every_participant_has_a_page_and_figures(reported):
    out, _, process = reported
    assert sorted(path.name for path in out.glob("*.html")) == ["sub-01.html", "sub-03.html"]
    assert f"Reports: {out / 'sub-01.html'} and 1 more" in process.stdout
    images = {path.name: len(list(parse(path).iter("img"))) for path in out.glob("*.html")}
    assert images == {"sub-01.html": 8, "sub-03.html": 16}
    for subject, number in (("01", 8), ("03", 16)):
        assert len(list((out / f"sub-{subject}" / "figures").iterdir())) == number
    heads = [words(head) for head in parse(out / "sub-03.html").iter("h2")]
    assert heads[1:3] == ["Lesion acuteinfarct", "Lesion haemorrhage"]
    assert "No errors and no warnings." in summary(out / "sub-01.html")


def test_numbers_on_the_page_are_those_of_the_results(reported, demonstration):
    out, _, _ = reported
    text = words(parse(out / "sub-01.html"))
    name = f"sub-01_ses-01_space-{SPACE}_label-acuteinfarct_mask.nii.gz"
    mask = np.asarray(nib.load(demonstration.bids_dir / "sub-01/ses-01/anat" / name).dataobj) > 0
    assert f"({mask.sum():,} voxels of 1 \u00d7 1 \u00d7 1 mm)" in text
    assert name in text
    (stats,) = (out / "sub-01").rglob("*_desc-snm_stats.json")
    numbers = json.loads(stats.read_text())
    assert f"{numbers['StreamlinesHit']:,} of {numbers['Streamlines']:,}" in text
    assert numbers["Matrices"]["Demo"]["ParcelOfMaximumDegreeLost"] in text


def test_the_folder_still_passes_the_bids_validator(reported, validate_bids):
    validate_bids(reported[0])


def test_citations_lie_beside_the_logs(reported):
    out, _, _ = reported
    (own,) = [path for path in (out / "logs").iterdir() if (path / "config.json").is_file()]
    for folder in (out / "logs", own):
        text = (folder / "CITATION.md").read_text()
        entries = re.findall(
            r"^@\w+\{(\w+),$", (folder / "CITATION.bib").read_text(), re.MULTILINE
        )
        assert set(re.findall(r"@(\w+)", text)) == set(entries)
        assert {"boes2015", "griffis2021", "benjamini1995"} <= set(entries)


def test_a_second_run_leaves_the_pages_alone(reported, run_command):
    out, arguments, _ = reported
    pages = [*out.glob("*.html"), *out.glob("sub-*/figures/*")]
    times = {path: path.stat().st_mtime_ns for path in pages}
    again = run_command(*arguments, reports=True)
    assert again.returncode == 0, again.stdout
    assert {path: path.stat().st_mtime_ns for path in pages} == times


def test_reports_only_makes_them_again_without_a_graph(reported, run_command, demonstration):
    out, _, _ = reported
    page = out / "sub-01.html"
    before, others = page.read_text(), (out / "sub-03.html").stat().st_mtime_ns
    logs = sorted(out.glob("logs/*"))
    page.unlink()
    shutil.rmtree(out / "sub-01" / "figures")
    run = run_command(
        *(demonstration.bids_dir, out, "participant", "--reports-only"),
        *("--participant-label", "01"),
        reports=True,
    )
    assert run.returncode == 0, run.stdout
    assert run.stdout.splitlines() == [f"Report: {page}", f"Results: {out}"]
    assert page.read_text() == before
    assert len(list((out / "sub-01" / "figures").iterdir())) == 8
    assert (out / "sub-03.html").stat().st_mtime_ns == others
    assert sorted(out.glob("logs/*")) == logs


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--reports-only", "--participant-label", "99"), "no results of sub-99"),
        (("--reports-only", "--no-reports"), "contradicts"),
    ],
)
def test_reports_that_cannot_be_made_are_a_usage_error(
    reported, run_command, demonstration, options, reason
):
    run = run_command(demonstration.bids_dir, reported[0], "participant", *options, reports=True)
    assert run.returncode == 2
    assert reason in run.stdout.splitlines()[-1]


def test_a_failed_step_a_refused_mask_and_a_warning_are_on_the_pages(
    run_command, demonstration, tmp_path
):
    """MRtrix3 fails for one participant, and the mask of another cannot be used."""
    if shutil.which("tckedit") is None:
        pytest.skip("MRtrix3 is not on PATH")
    bids, out = tmp_path / "bids", tmp_path / "out"
    for subject in ("unlucky", "small", "wrong"):
        data = np.zeros((91, 109, 91), dtype=np.uint8)
        box = 2 if subject == "small" else 8
        data[20 : 20 + box, 50 : 50 + box, 40 : 40 + box] = 1
        if subject == "wrong":
            data[60:64, 50:58, 40:48] = 7
        affine = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
        path = bids / f"sub-{subject}/anat/sub-{subject}_space-{SPACE}_label-stroke_mask.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(data, affine), path)
    (bids / "dataset_description.json").write_text(
        json.dumps({"Name": "x", "BIDSVersion": "1.10.1", "DatasetType": "derivative"})
    )
    fake = tmp_path / "bin" / "tckedit"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\n"
        'case "$*$PWD" in *unlucky*) echo "tckedit: [ERROR] no space left" >&2; exit 1;; esac\n'
        f'exec {shutil.which("tckedit")} "$@"\n'
    )
    fake.chmod(0o755)
    run = run_command(
        *(bids, out, "participant", "--structural-connectome"),
        *(demonstration.structural_connectome, "--snm-engine", "mrtrix", "-w", tmp_path / "work"),
        env={"PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"},
        reports=True,
    )
    assert run.returncode == 1, run.stdout
    unlucky = summary(out / "sub-unlucky.html")
    assert "Error: Lesion stroke: Structural disconnection failed" in unlucky
    assert "no space left" in unlucky
    (crash,) = out.glob("logs/*/crash-*.txt")
    assert crash.name in unlucky
    assert "results are missing" in unlucky
    assert "Axial slices" in words(parse(out / "sub-unlucky.html"))
    small = summary(out / "sub-small.html")
    assert "Warning:" in small
    assert "8" in small
    assert "Error:" not in small
    wrong = parse(out / "sub-wrong.html")
    assert "sub-wrong" in summary(out / "sub-wrong.html")
    assert "There are no results of this participant." in words(wrong)


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)])
def test_a_browser_shows_the_page(reported, tmp_path, width, dark):
    page = reported[0] / "sub-01.html"
    seen, console = browse(page, tmp_path, width=width, dark=dark)
    assert console == []
    assert len(seen["widths"]) == 8
    assert min(seen["widths"]) > 500
    assert min(seen["shown"]) > 300
    # Nothing but what the page itself holds.
    assert all(name.startswith("data:") for name in seen["resources"])
    # Wide figures and tables scroll in their own frames.
    assert seen["overflow"] <= 0
    back, ink = (
        np.mean([int(number) for number in re.findall(r"\d+", seen[key])[:3]])
        for key in ("background", "ink")
    )
    assert (back < 60 and ink > 180) if dark else (back > 200 and ink < 80)
    # By damage: the most first, then the least; then by name.
    (table,) = (reported[0] / "sub-01").rglob("*_stat-damagepct_desc-rd_parcelstats.tsv")
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    by_damage = sorted(rows, key=lambda row: -float(row[2]))
    assert seen["first"] == [row[1] for row in by_damage[:3]]
    assert seen["second"] == [row[1] for row in rows if float(row[2]) == 0][:3]
    assert seen["third"][0] == "7Networks_LH_Cont_1"


@pytest.mark.real_data
@pytest.mark.skipif(
    DATA is None or not (DATA / "lesions_tutorial").is_dir(),
    reason="LACUNA_TEST_DATA does not name a folder with the real data",
)
def test_a_real_lesion_has_a_page(run_command, tmp_path):
    atlas = DATA / "parcellations"
    atlas /= "tpl-MNI152NLin6Asym_res-01_atlas-Schaefer2018_desc-100Parcels7Networks_dseg"
    out = tmp_path / "out"
    run = run_command(
        *(DATA / "lesions_tutorial", out, "participant", "--participant-label", "01"),
        *("--custom-parcellation", "Schaefer100", f"{atlas}.nii.gz", f"{atlas}.txt", SPACE),
        *("--structural-connectome", DATA / "tractogram_hcp1065" / "hcp1065_10403_step2mm.tck"),
        *("--structural-space", SPACE, "--compute-disconnectivity-matrix"),
        *("--compute-roi-disconnection", "-w", tmp_path / "work"),
        reports=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout
    page = out / "sub-01.html"
    text = words(parse(page))
    assert "14.1 ml (14,147 voxels" in text
    assert "Schaefer et al., 2018" in text
    assert "SomMot" in text
    if CHROMIUM is not None:
        seen, console = browse(page, tmp_path)
        assert console == []
        assert len(seen["widths"]) == 5
        assert min(seen["widths"]) > 500
