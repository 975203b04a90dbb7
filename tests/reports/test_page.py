"""The page of a participant: valid HTML in one file that says what there is and what is not."""

import base64
import gzip
import importlib.util
import json
import os
import re
import time
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest
from pages import parse, words

from lacuna_nipype import __version__
from lacuna_nipype.reports.participant import write_participant_report, write_reports

spec = importlib.util.spec_from_file_location("report_data", Path(__file__).parent / "conftest.py")
report_data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report_data)
NOTHING_SAID = {"Analyses": ["rd", "fnm", "snm"], "Errors": [], "Warnings": [], "Missing": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page of one lesion, made once for the tests that only look at it."""
    out = tmp_path_factory.mktemp("page") / "out"
    report_data.write_participant(out)
    report = write_participant_report(out, "01")
    assert report.problems == ()
    return out


@pytest.fixture(scope="module")
def page(folder):
    return parse(folder / "sub-01.html")


def test_the_page_is_one_file_without_anything_from_outside(folder, page):
    for element in page.iter():
        for name in ("src", "data", "action", "poster", "srcset"):
            assert element.get(name, "data:").startswith("data:")
        link = element.get("href")
        if link is None or link.startswith(("data:", "#")):
            continue
        if link.startswith("https://doi.org/10."):
            assert element.tag == "a"
            continue
        assert (folder / link).is_file(), link
    text = (folder / "sub-01.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    assert not page.findall(".//link")


def test_links_within_the_page_lead_somewhere(page):
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    links = {element.get("href")[1:] for element in page.iter("a")
             if element.get("href").startswith("#")}  # fmt: skip
    assert links <= set(ids)


def test_figures_are_embedded_described_and_lie_beside_the_page(folder, page):
    images = list(page.iter("img"))
    names = sorted(path.name for path in (folder / "sub-01" / "figures").iterdir())
    assert names == [
        f"sub-01_label-stroke_desc-{name}.png"
        for name in ("fnmglass", "fnmpeak", "fnmslices", "lesionglass", "lesionslices",
                     "matrixSchaefer2018100", "snmglass", "snmslices")
    ]  # fmt: skip
    files = {path.read_bytes() for path in (folder / "sub-01" / "figures").iterdir()}
    shown = {base64.b64decode(image.get("src").partition(",")[2]) for image in images}
    assert shown == files
    for image in images:
        assert len(image.get("alt")) > 30
        assert int(image.get("width")) > 500
        assert int(image.get("height")) > 200
    captions = [words(caption) for caption in page.iter("figcaption")]
    assert len(captions) == len(images)
    assert any("strongest 10 %" in caption and "|t| \u2265" in caption for caption in captions)


def test_facts_of_the_lesion(page):
    text = words(page)
    # 5 x 6 x 5 voxels of 6 mm.
    assert "32.4 ml (150 voxels of 6 \u00d7 6 \u00d7 6 mm)" in text
    assert "left (100 % left, 0 % right)" in text
    # Indices 6 to 10, 14 to 19, 12 to 16.
    assert "x -39, y -21, z 14 mm" in text
    assert "drawn_mask.nii.gz" in text
    assert "150 of 160 lesion voxels lie in the connectome's brain (94 %)" in text
    assert "4,000 to 150 voxels, 32 to 32.4 ml, centre moved by 0.4 mm" in text
    assert "1,938 of 12,000 (16.1 %)" in text or "1,938 of 12,000 (16.2 %)" in text
    assert "2 of 6 regions touched" in text
    assert "2 of 5" in text


def test_the_peak_away_from_the_lesion_is_named(page):
    match = re.search(r"t = ([-\d.]+) at x ([-\d]+), y ([-\d]+), z ([-\d]+) mm", words(page))
    # The block of 20 on the right: indices 22 to 24, 14 to 19, 12 to 16.
    assert float(match[1]) == 20
    x, y, z = (float(match[i]) for i in (2, 3, 4))
    assert 45 <= x <= 57
    assert -36 <= y <= -6
    assert 2 <= z <= 26


def test_tables_have_headings_and_sortable_numbers(page):
    (table,) = [table for table in page.iter("table") if table.get("class") == "regions"]
    heads = table.findall("./thead/tr/th")
    assert [words(head) for head in heads] == [
        "Region", "Network", "Volume (ml)", "Damaged (%)", "t", "Connections cut (%)"
    ]  # fmt: skip
    assert all(head.get("scope") == "col" and head.find("button") is not None for head in heads)
    assert heads[4].get("title") == "What t is."
    rows = table.findall("./tbody/tr")
    assert [words(row.find("th")) for row in rows] == report_data.REGIONS
    damaged = [row.findall("td")[2] for row in rows]
    assert [words(cell) for cell in damaged] == ["0", "65.1", "8.5", "0", "0", "0"]
    assert [float(cell.get("data-v")) for cell in damaged] == [0, 65.1461, 8.5, 0, 0, 0]
    missing = rows[5].findall("td")[3]
    assert words(missing) == "n/a"
    assert missing.get("data-v") is None
    for other in page.iter("table"):
        assert all(head.get("scope") for head in other.iter("th"))


def test_the_table_can_be_taken_along_with_all_its_digits(page):
    (link,) = [a for a in page.iter("a") if (a.get("download") or "").endswith(".tsv")]
    text = base64.b64decode(link.get("href").partition(",")[2]).decode()
    lines = text.splitlines()
    assert lines[0].split("\t")[:4] == ["index", "name", "network", "volume_ml"]
    assert lines[2].split("\t") == ["2", "7Networks_LH_SomMot_1", "SomMot", "8.5", "65.14606",
                                    "20", "94.5"]  # fmt: skip
    assert lines[6].split("\t")[5] == "n/a"


def test_bars_are_as_long_as_their_values(page):
    bars = [table for table in page.iter("table") if table.get("class") == "bars"]
    assert len(bars) == 3
    damage, network, _ = (
        [(words(row.find("th")), row.find(".//span/span"), words(row.findall("td")[1]))
         for row in table.findall("./tbody/tr")]
        for table in bars
    )  # fmt: skip
    assert [(name, bar.get("style"), value) for name, bar, value in damage] == [
        ("7Networks_LH_SomMot_1", "width:65.1%", "65.1"),
        ("7Networks_LH_Default_1", "width:8.5%", "8.5"),
    ]
    assert [(bar.get("style"), bar.get("class"), value) for _, bar, value in network[:3]] == [
        ("width:100.0%", None, "20"),
        ("width:90.0%", None, "18"),
        ("width:75.0%", "negative", "-15"),
    ]


def test_methods_are_cited_and_can_be_taken_along(page):
    text = words(page)
    assert "(Boes et al., 2015)" in text
    assert "doi:10.1093/brain/awv228" in text
    assert "[@" not in text
    assert "**" not in text
    links = {a.get("download"): a.get("href") for a in page.iter("a") if a.get("download")}
    taken = {name: base64.b64decode(href.partition(",")[2]).decode()
             for name, href in links.items()}  # fmt: skip
    assert "[@boes2015]" in taken["CITATION.md"]
    assert "@article{boes2015," in taken["CITATION.bib"]


def test_the_run_is_told_and_escaped(page):
    text = words(page)
    assert "--mem '<16G>'" in text
    assert report_data.RUN_ID in text
    assert "sha256:m" in text
    assert "dTOR985.tck" in text
    assert "0.1.0" in text


def test_a_region_cannot_put_code_into_the_page(out):
    (path,) = out.glob("**/*_stat-damagepct_desc-rd_parcelstats.tsv")
    evil = '<script>alert("x")</script>'
    path.write_text(path.read_text().replace("7Networks_LH_SomMot_1", evil))
    report = write_participant_report(out, "01")
    page = parse(report.path)
    assert len(list(page.iter("script"))) == 1
    assert any(words(cell) == evil for cell in page.iter("th"))


def test_errors_and_warnings_stand_at_the_top(out):
    said = {**NOTHING_SAID, "Errors": ["Structural disconnection failed: no space left."],
            "Warnings": ["The mask has 9 voxels."], "Missing": ["sub-01/anat/x.tsv"]}  # fmt: skip
    report = write_participant_report(out, "01", outcome=said)
    (summary,) = [e for e in parse(report.path).iter("section") if e.get("id") == "summary"]
    messages = [words(p) for p in summary.iter("p")]
    assert messages[0] == "Error: Structural disconnection failed: no space left."
    assert messages[1].startswith("Error: 1 result is missing")
    assert messages[2] == "Warning: The mask has 9 voxels."


def test_an_analysis_without_results_is_named(out):
    for path in out.glob("**/*desc-snm*"):
        path.unlink()
    report = write_participant_report(out, "01", outcome=NOTHING_SAID)
    (card,) = [e for e in parse(report.path).iter("div") if e.get("id") == "lesion-1-snm"]
    assert "There are no results of this analysis." in words(card)
    assert report.problems == ()


def test_one_damaged_map_does_not_take_the_page_with_it(out):
    (path,) = out.glob("**/*_stat-t_desc-fnm_statmap.nii.gz")
    path.write_bytes(b"this is no image")
    report = write_participant_report(out, "01", outcome=NOTHING_SAID)
    assert len(report.problems) == 1
    assert "Functional network cannot be shown" in report.problems[0]
    page = parse(report.path)
    assert len(list(page.iter("img"))) == 5
    assert "Functional network cannot be shown" in words(page)
    assert "Regions most strongly connected" in words(page)


def test_a_damaged_mask_leaves_the_maps_without_its_outline(out):
    (path,) = out.glob("**/*_desc-lesion_mask.nii.gz")
    image = nb.load(path)
    image.header.set_data_shape((20000, 20000, 20000))
    path.write_bytes(gzip.compress(image.header.binaryblock + bytes(4)))
    report = write_participant_report(out, "01", outcome=NOTHING_SAID)
    assert report.written
    (problem,) = report.problems
    assert "The lesion cannot be shown" in problem
    assert f"{path.name} is damaged" in problem
    text = words(parse(report.path))
    assert "The lesion cannot be shown" in text
    assert "Regions most strongly connected" in text


def test_a_pipe_in_place_of_a_table_is_not_waited_for(out):
    (path,) = out.glob("**/*_stat-damagepct_desc-rd_parcelstats.tsv")
    path.unlink()
    os.mkfifo(path)
    report = write_participant_report(out, "01", outcome=NOTHING_SAID)
    assert report.written
    assert any(path.name in problem for problem in report.problems)


def test_a_damaged_record_does_not_take_the_page_with_it(out):
    (path,) = out.glob("**/*_desc-provenance.json")
    path.write_text("{")
    report = write_participant_report(out, "01", outcome=NOTHING_SAID)
    assert "desc-provenance.json is damaged" in report.problems[0]
    assert "No run left a record of this participant" in words(parse(report.path))


@pytest.mark.parametrize(
    ("key", "message"),
    [("Parameters", "lacks what a run records"), ("Connectome", "does not tell its methods")],
)
def test_an_incomplete_record_is_told(out, key, message):
    (path,) = out.glob("**/*_desc-provenance.json")
    record = json.loads(path.read_text())
    del (record["Runs"][0] if key == "Parameters" else record["Runs"][0]["Analyses"]["fnm"])[key]
    path.write_text(json.dumps(record))
    report = write_participant_report(out, "01", outcome=NOTHING_SAID)
    assert any(message in problem for problem in report.problems)
    page = parse(report.path)
    assert message in words(page)
    assert len(list(page.iter("img"))) == 8


def test_an_empty_mask_has_a_page(tmp_path):
    report_data.write_participant(tmp_path, mask=np.zeros(report_data.SHAPE, dtype=np.uint8))
    report = write_participant_report(tmp_path, "01")
    assert report.problems == ()
    assert "holds no lesion voxel" in words(parse(report.path))


def test_a_map_of_zeros_has_a_page(out):
    for path in out.glob("**/*_statmap.nii.gz"):
        image = nb.load(path)
        nb.save(nb.Nifti1Image(np.zeros(image.shape, dtype=np.float32), image.affine), path)
    report = write_participant_report(out, "01")
    assert report.problems == ()
    text = words(parse(report.path))
    assert "The map is zero everywhere" in text
    assert "cuts no streamline" in text


def test_a_participant_without_results_has_a_page(tmp_path):
    said = {**NOTHING_SAID, "Errors": ["Mask x.nii.gz is not binary."]}
    report = write_participant_report(tmp_path, "09", outcome=said)
    text = words(parse(report.path))
    assert "Mask x.nii.gz is not binary." in text
    assert "There are no results of this participant." in text


def test_sessions_and_labels_are_sections(tmp_path):
    report_data.write_participant(tmp_path, "02", session="01")
    report_data.write_participant(tmp_path, "02", session="02")
    page = parse(write_participant_report(tmp_path, "02").path)
    heads = [words(head) for head in page.iter("h2")]
    assert heads[1:3] == ["Session 01, lesion stroke", "Session 02, lesion stroke"]
    assert len(list(page.iter("img"))) == 16


def test_a_page_is_made_again_only_when_something_changed(out):
    first = write_participant_report(out, "01", outcome=NOTHING_SAID)
    assert first.written
    before = first.path.stat().st_mtime_ns
    said = {**NOTHING_SAID, "RunID": "another run that did nothing new"}
    assert not write_participant_report(out, "01", outcome=said).written
    assert first.path.stat().st_mtime_ns == before
    assert write_participant_report(out, "01", outcome=said, again=True).written
    assert write_participant_report(out, "01", outcome={**said, "Errors": ["x"]}).written
    assert write_participant_report(out, "01", outcome=said).written
    (table,) = out.glob("**/*_stat-damagepct_desc-rd_parcelstats.tsv")
    os.utime(table, (time.time() + 5, time.time() + 5))
    assert write_participant_report(out, "01", outcome=said).written


def test_the_page_names_the_version_that_made_it(page):
    (meta,) = [e for e in page.iter("meta") if e.get("name") == "generator"]
    assert meta.get("content") == f"lacuna-nipype {__version__}"


@pytest.mark.parametrize("n_processes", [1, 2])
def test_pages_of_many(tmp_path, n_processes):
    out = tmp_path / "out"
    for subject in ("01", "02"):
        report_data.write_participant(out, subject)
    report_data.write_json(
        out / "logs" / "20260101-a" / "outcome.json",
        {"RunID": "a", "Ended": "now", "Participants": {"02": {"Errors": ["of 02"]}}},
    )
    told = []
    reports = write_reports(out, ["02", "01"], n_processes=n_processes, progress=told.append)
    assert [report.participant for report in reports] == ["02", "01"]
    assert {report.participant for report in told} == {"01", "02"}
    assert all(report.written and report.problems == () for report in reports)
    assert "of 02" in words(parse(out / "sub-02.html"))
    assert "of 02" not in words(parse(out / "sub-01.html"))


def test_a_page_that_cannot_be_written_is_a_problem_of_its_own(out):
    (out / "sub-01.html").mkdir()
    report_data.write_participant(out, "02")
    bad, good = write_reports(out, ["01", "02"])
    assert not bad.written
    assert bad.problems
    assert good.written


def test_a_report_is_json_safe(out):
    report = write_participant_report(out, "01")
    assert json.dumps([report.participant, str(report.path), report.written])
