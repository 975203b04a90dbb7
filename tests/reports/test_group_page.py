"""The page of the group: what it says is what the files hold, and what is damaged is named."""

import base64
import importlib.util
import json
import re
import shutil
from pathlib import Path

import nibabel as nb
import numpy as np
import pandas as pd
import pytest
from pages import by_id, facts, parse, table_rows, words

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.reports.group import write_group_report

spec = importlib.util.spec_from_file_location("report_data", Path(__file__).parent / "conftest.py")
report_data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report_data)
SPACE, SHAPE, RAS = report_data.SPACE, report_data.SHAPE, report_data.RAS
SUBJECTS = ("01", "02", "03", "04")
NAMES = [f"sub-{subject}" for subject in SUBJECTS]
RUN_ID = "20260303T030303-0123abcd"
REGIONS = ("front", "middle", "back", "rest")
ATLAS = "Toy"
TESTED = {
    "Tested": "Score <b>", "Covariates": ["age", "lesion_volume_ml"], "Permutations": 5000,
    "Seed": 3, "TwoSided": True, "MinimumOverlapPercent": 10.0, "TFCE": False,
}  # fmt: skip
LOG_ALPHA = -np.log10(0.05)


def result(out, ending, data, **sidecar):
    name = f"tpl-{SPACE}_res-6_label-stroke_{ending}.nii.gz"
    content = {"SpaceName": SPACE, "Resolution": "Isotropic voxels of 6 mm",
               "Participants": NAMES, "NumberOfParticipants": 4, **sidecar}  # fmt: skip
    return report_data.save(out / f"tpl-{SPACE}" / "anat" / name, data, **content)


def point(*voxel):
    """Point of a voxel as the page writes it."""
    x, y, z = RAS[:3, :3] @ voxel + RAS[:3, 3]
    return f"x {x:.0f}, y {y:.0f}, z {z:.0f} mm"


def sidecar_of_test(statistics, **others):
    return {
        "Parameters": TESTED, "DegreesOfFreedom": 7, "Statistics": statistics,
        "ParticipantsLeftOut": {"sub-04": "no score"}, "NumberOfParticipants": 3,
        "Participants": NAMES[:3], **others,
    }  # fmt: skip


def write_overlaps(out):
    count = np.zeros(SHAPE, dtype=np.int32)
    count[8:12, 10:14, 10:14] = 1
    count[9, 11, 12] = 3
    over = {"Threshold": {"Comparison": "above", "Value": 0.0}}
    result(out, "stat-count_desc-lesion_statmap", count, **over)
    result(out, "desc-overlap_probseg", (count / 4).astype(np.float32), **over)
    share = np.zeros(SHAPE, dtype=np.float32)
    share[20, 20, 14], share[20, 20, 15] = 0.75, 0.5
    for name, comparison, value in (("positive", "above", 5.0), ("negative", "below", -5.0)):
        result(
            out, f"stat-overlap{name}_desc-fnm_statmap", share,
            Threshold={"Comparison": comparison, "Value": value},
        )  # fmt: skip
    result(
        out, "stat-overlap_desc-snm_statmap", share[:, ::-1],
        Threshold={"Comparison": "at_least", "Value": 50.0},
    )  # fmt: skip


def write_map_test(out, desc, *, significant, tfce=False):
    """t of 1 to 2 in a block; one voxel of -9, and two more of 6 when something is significant."""
    t = np.zeros(SHAPE, dtype=np.float32)
    t[8:14, 10:16, 10:16] = np.linspace(1, 2, 216).reshape(6, 6, 6)
    t[9, 12, 12] = -9
    t[10, 12, 12] = t[11, 12, 12] = 6
    log_p = np.where(np.abs(t) > 5, 2.0 if significant else 1.0, 0.1).astype(np.float32)
    log_p[10, 12, 12] = LOG_ALPHA if significant else 0.1
    start = f"model-score_stat-{{}}_desc-{desc}_statmap"
    sidecar = sidecar_of_test({"ValuesTested": 216, "CriticalT": 5.5, "SmallestPFWE": 0.01})
    sidecar["Parameters"] = {**TESTED, "TFCE": tfce}
    sidecar["Quantity"] = "lesion" if desc == "lesion" else "disconnectionpct"
    result(out, start.format("t"), t, **sidecar)
    result(out, start.format("logpfwe"), log_p, **sidecar)
    result(out, start.format("partialr"), t / 10, **sidecar)
    if tfce:
        enhanced = np.where(t > 1.9, 1.5, 0).astype(np.float32)
        result(out, start.format("logptfce"), enhanced, **sidecar)
    lines = ["cluster_id\tx\ty\tz_mm\tpeak_t\tcluster_size_mm3"]
    if significant:
        x, y, z = RAS[:3, :3] @ [9, 12, 12] + RAS[:3, 3]
        lines += [f"1\t{x}\t{y}\t{z}\t-9\t216", f"1a\t{x + 6}\t{y}\t{z}\t6\t"]
    name = f"tpl-{SPACE}_res-6_label-stroke_model-score_stat-t_desc-{desc}_clusters.tsv"
    (out / f"tpl-{SPACE}" / "anat" / name).write_text("\n".join(lines) + "\n")


def write_table_test(out):
    name = f"tpl-{SPACE}_atlas-{ATLAS}_label-stroke_model-score_stat-damagepct_desc-rd_parcelstats"
    path = out / f"tpl-{SPACE}" / "anat" / f"{name}.tsv"
    frame = pd.DataFrame(
        {"index": range(1, 5), "name": REGIONS, "t_value": [-4.5, 2.25, np.nan, 0.5],
         "partial_r": [-0.8, 0.5, np.nan, 0.1], "p_fwe": [0.05, 0.2, np.nan, 1.0],
         "n_nonzero": [3, 2, 0, 3]}
    )  # fmt: skip
    frame.to_csv(path, sep="\t", index=False, na_rep="n/a")
    sidecar = sidecar_of_test({"ValuesTested": 3, "CriticalT": 4.25}, Atlas={"Name": ATLAS})
    report_data.write_json(path.with_suffix(".json"), {**sidecar, "Quantity": "damagepct"})


def write_atlas(out):
    labels = np.full(SHAPE, 4, dtype=np.int16)
    labels[:, 24:], labels[:, :8], labels[9, 11:13] = 1, 3, 2
    path = out / f"tpl-{SPACE}" / f"tpl-{SPACE}_atlas-{ATLAS}_res-6_dseg.nii.gz"
    report_data.save(path, labels, Name=ATLAS)
    rows = [f"{number}\t{name}" for number, name in enumerate(REGIONS, 1)]
    text = "\n".join(["index\tname", *rows]) + "\n"
    path.with_name(path.name.replace(".nii.gz", ".tsv")).write_text(text)


def write_masks(out):
    """Left, right and both hemispheres; the last participant has no functional network."""
    for number, subject in enumerate(SUBJECTS):
        mask = np.zeros(SHAPE, dtype=np.uint8)
        if number != 1:
            mask[6:8, 14:16, 12:14] = 1
        if number in (1, 2):
            mask[22:24, 14 : 16 + number, 12:14] = 1
        home = out / f"sub-{subject}" / "anat"
        start = f"sub-{subject}_space-{SPACE}"
        report_data.save(home / f"{start}_res-6_label-stroke_desc-lesion_mask.nii.gz", mask)
        (
            home / f"{start}_atlas-{ATLAS}_label-stroke_stat-damagepct_desc-rd_parcelstats.tsv"
        ).touch()
        if subject != "04":
            (home / f"{start}_res-6_label-stroke_stat-t_desc-fnm_statmap.nii.gz").touch()
    (out / "sub-01.html").write_text("<p>of the participant</p>")


def write_run(out, run_id=RUN_ID, **changes):
    """Write the record of a run of the group level."""
    results = [path.relative_to(out).as_posix() for path in out.glob("tpl-*/anat/*")]
    own = {
        "Datasets": [str(out)], "Results": results, "Warnings": ["Few participants."],
        "Errors": [], "Missing": [],
        "Columns": {"Score <b>": {"sub-01": "1.50", "sub-02": "-3", "sub-03": "12"},
                    "side": {"sub-01": "left"}},
    }  # fmt: skip
    record = {
        "RunID": run_id, "Version": "0.1.0", "Started": "2026-03-03T03:03:03+00:00",
        "Ended": "2026-03-03T03:04:03+00:00",
        "CommandLine": "lacuna-nipype in out group --score 'Score <b>'",
        "Software": report_data.run_record()["Software"],
        "Parameters": {"dry_run": False, "group_level": {"seed": 3}},
        "Group": {**own, **changes.pop("Group", {})}, **changes,
    }  # fmt: skip
    report_data.write_json(out / "logs" / run_id / "outcome.json", record)


def write_group(out):
    write_overlaps(out)
    write_map_test(out, "lesion", significant=True)
    write_map_test(out, "snm", significant=False)
    write_table_test(out)
    write_atlas(out)
    write_masks(out)
    (out / "phenotype").mkdir()
    (
        out / "phenotype" / f"group_space-{SPACE}_label-stroke_stat-z_desc-fnm_parcelstats.tsv"
    ).touch()
    write_run(out)
    said = {"Warnings": ["The mask has 9\tvoxels."], "Errors": ["A step failed."]}
    report_data.write_json(
        out / "logs" / "20260101-a" / "outcome.json",
        {"RunID": "a", "Ended": "now", "Participants": {"02": said}},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page, made once for the tests that only look at it."""
    out = tmp_path_factory.mktemp("group") / "out"
    write_group(out)
    report = write_group_report(out)
    assert report.problems == ()
    assert report.path == out / "group.html"
    return out


@pytest.fixture(scope="module")
def page(folder):
    return parse(folder / "group.html")


@pytest.fixture
def quick(monkeypatch):
    """Draw nothing: figures take seconds, and are looked at elsewhere."""
    dot = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgAB"
        "SK+kcQAAAABJRU5ErkJggg=="
    )

    def draw(image, style, *others):
        assert style.maximum > style.threshold > 0
        path = others[-1]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(dot)

    for name in ("slices", "peak", "glass"):
        monkeypatch.setattr(f"lacuna_nipype.reports.figures.draw_map_{name}", draw)


@pytest.fixture
def out(folder, tmp_path, quick):
    """A copy to change."""
    shutil.copytree(folder, tmp_path / "out")
    return tmp_path / "out"


def heading(element):
    return words(element.find("h3"))


def cards(page, start):
    found = (e for e in page.iter("div") if (e.get("id") or "").startswith(start))
    return {heading(card): card for card in found}


def test_the_page_is_one_file_without_anything_from_outside(folder, page):
    for element in page.iter():
        for name in ("src", "data", "action", "poster", "srcset"):
            assert element.get(name, "data:").startswith("data:")
        link = element.get("href")
        if link is None or link.startswith(("data:", "#", "https://doi.org/10.")):
            continue
        assert (folder / link).is_file(), link
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    inside = {e.get("href")[1:] for e in page.iter("a") if e.get("href").startswith("#")}
    assert inside <= set(ids)
    assert [words(head) for head in page.iter("h2")] == [
        "Summary", "Overlap", "Association with Score <b>", "Participants", "Methods",
        "Where this comes from",
    ]  # fmt: skip


def test_figures_are_embedded_described_and_lie_beside_the_page(folder, page):
    images = list(page.iter("img"))
    files = {path.read_bytes() for path in (folder / "figures").iterdir()}
    # Two of each of four overlaps, three of each of two tests.
    assert len(images) == len(files) == 14
    assert {base64.b64decode(i.get("src").partition(",")[2]) for i in images} == files
    assert all(len(image.get("alt")) > 30 for image in images)
    assert all(heads.get("scope") for table in page.iter("table") for heads in table.iter("th"))


def test_what_the_page_is_about(page):
    told = facts(by_id(page, "summary"))
    assert told["Participants"] == "4"
    assert told["Space"] == f"{SPACE}, voxels of 6 mm"
    assert told["Lesions"] == "stroke"
    assert "Functional network" in told["Analyses"]
    assert "Warning: Few participants." in words(by_id(page, "summary"))


def test_overlaps_tell_their_maxima(page):
    shown = cards(page, "overlap-")
    assert list(shown) == [
        "Lesions", "Functional network, t > 5", "Functional network, t < \u22125",
        "Structural disconnection, \u2265 50 % cut",
    ]  # fmt: skip
    lesions = facts(shown["Lesions"])
    assert lesions["Largest overlap"] == "3 of 4 participants (75 %) with a lesion here"
    assert lesions["Where"] == point(9, 11, 12)
    assert lesions["Region there"] == f"middle ({ATLAS})"
    # 64 voxels of 6 mm.
    assert lesions["Touched in anyone"] == f"{64 * 0.216:.3g} ml"
    links = [a.get("href").rpartition("/")[2] for a in shown["Lesions"].iter("a")]
    assert sum(name.endswith(".nii.gz") for name in links) == 2
    network = facts(shown["Functional network, t > 5"])
    assert network["Largest overlap"].startswith("3 of 4 participants (75 %) whose network map")
    assert network["Where"] == point(20, 20, 14)
    assert "Shown: 50 % and more." in words(shown["Functional network, t > 5"])


def test_a_tie_is_told(out):
    (path,) = out.glob("tpl-*/anat/*stat-count*.nii.gz")
    image = nb.load(path)
    data = np.asarray(image.dataobj).copy()
    data[9, 11, 11] = data[9, 11, 13] = 3
    nb.save(nb.Nifti1Image(data, image.affine), path)
    assert write_group_report(out).written
    lesions = facts(cards(parse(out / "group.html"), "overlap-")["Lesions"])
    assert lesions["Where"] == f"{point(9, 11, 12)}, the middle of 3 such voxels"


def test_a_significant_map(page):
    card = cards(page, "model-1-test")["Lesions, voxel by voxel"]
    told = facts(card)
    assert told["Largest |t|"] == f"t = -9 at {point(9, 12, 12)}"
    assert told["Region there"] == f"middle ({ATLAS})"
    # One of them at the limit.
    assert told["Significant"] == f"3 voxels ({3 * 0.216:.3g} ml)"
    assert told["Tested"] == "216 voxels (touched in 10 % of the participants)"
    assert told["Significant above"] == "|t| = 5.5"
    assert told["Participants"] == "3 (7 degrees of freedom)"
    assert told["Left out"] == "1 participant: no score (sub-04)"
    assert "Nothing survives" not in words(card)
    (table,) = [t for t in card.iter("table") if t.get("class") == "regions"]
    heads, rows = table_rows(table)
    assert heads[:5] == ["Cluster", "x (mm)", "y (mm)", "z (mm)", "Peak t"]
    x, y, z = RAS[:3, :3] @ [9, 12, 12] + RAS[:3, 3]
    assert rows[0] == ["1", f"{x:g}", f"{y:g}", f"{z:g}", "-9", "216", f"middle ({ATLAS})"]
    assert rows[1][4:] == ["6", "n/a", f"rest ({ATLAS})"]


def test_where_nothing_survives_the_page_says_so(page):
    card = cards(page, "model-1-test")["Structural disconnection, voxel by voxel"]
    assert "Nothing survives: none of the 216 voxels is significant" in words(card)
    assert "Shown: t of all tested voxels; none is significant." in words(card)
    assert facts(card)["Largest |t|"].startswith("t = -9 at")
    assert not [t for t in card.iter("table") if t.get("class") == "regions"]


def test_regions_of_a_test(folder, page):
    card = cards(page, "model-1-test")[f"Regional damage, regions of {ATLAS}"]
    assert facts(card)["Significant"] == "1 of 3: front"
    (bars,) = [t for t in card.iter("table") if t.get("class") == "bars tested"]
    rows = bars.findall("./tbody/tr")
    assert [(words(row.find("th")), words(row.findall("td")[1])) for row in rows] == [
        ("front", "-4.5 *"), ("middle", "2.25"), ("rest", "0.5"),
    ]  # fmt: skip
    assert [row.get("class") for row in rows] == ["marked", None, None]
    lengths = [row.find(".//span/span").get("style") for row in rows]
    assert lengths == ["width:100.0%", "width:50.0%", "width:11.1%"]
    (table,) = [t for t in card.iter("table") if t.get("class") == "regions"]
    heads, rows = table_rows(table)
    assert heads == ["Region", "t", "Partial r", "Corrected p", "Touched in"]
    assert rows[0] == ["front", "-4.5", "-0.8", "0.05", "3"]
    assert rows[2] == ["back", "n/a", "n/a", "n/a", "0"]
    (source,) = folder.glob("tpl-*/anat/*parcelstats.tsv")
    links = {a.get("download"): a.get("href") for a in card.iter("a") if a.get("download")}
    taken = base64.b64decode(links[source.name].partition(",")[2]).decode()
    assert taken.split() == source.read_text().replace("1.0\t", "1\t").split()


def test_the_tests_of_a_score_stand_in_one_table(page):
    section = by_id(page, "model-1")
    told = facts(section)
    assert told["Covariates"] == "age, lesion volume (ml)"
    assert told["Permutations"] == "5000, seed 3"
    assert told["Contrast"] == "Score <b>, as a number; two-sided"
    table = next(t for t in section.iter("table") if t.get("class") == "regions")
    _, rows = table_rows(table)
    assert rows == [
        ["Lesions, voxel by voxel", "3", "216", "-9", "0.01", "3"],
        [f"Regional damage, regions of {ATLAS}", "3", "3", "-4.5", "0.05", "1"],
        ["Structural disconnection, voxel by voxel", "3", "216", "-9", "0.01", "0"],
    ]


def test_tests_with_other_settings_say_their_own(out):
    (path,) = out.glob("tpl-*/anat/*stat-damagepct_desc-rd_parcelstats.json")
    content = json.loads(path.read_text())
    content["Parameters"] |= {"Covariates": [], "Seed": 8}
    path.write_text(json.dumps(content))
    assert write_group_report(out).written
    page = parse(out / "group.html")
    shown = cards(page, "model-1-test")
    assert facts(shown[f"Regional damage, regions of {ATLAS}"])["Covariates"] == "none"
    assert facts(shown["Lesions, voxel by voxel"])["Permutations"] == "5000, seed 3"
    assert "seed 8" in words(by_id(page, "methods"))


def test_groups_and_cluster_enhancement(out):
    write_map_test(out, "lesion", significant=True, tfce=True)
    for path in out.glob("tpl-*/anat/*model-score*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "Contrast": "b against a"}))
    report = write_group_report(out)
    assert report.problems == ()
    page = parse(report.path)
    assert "Groups of Score <b>" in [words(head) for head in page.iter("h2")]
    assert facts(by_id(page, "model-1"))["Contrast"] == "b against a"
    card = cards(page, "model-1-test")["Lesions, voxel by voxel"]
    # The last of the block, from 1.9 to 2, and the two of 6.
    t = np.asarray(nb.load(next(out.glob("tpl-*/anat/*stat-t_desc-lesion*.nii.gz"))).dataobj)
    told = facts(card)["Significant with cluster enhancement"]
    assert told == f"{(t > 1.9).sum()} voxels (TFCE)"
    assert len(list(card.iter("img"))) == 6
    assert "Smith and Nichols, 2009" in words(by_id(page, "methods"))


def test_the_table_of_participants(page):
    section = by_id(page, "participants")
    (table,) = section.iter("table")
    heads, rows = table_rows(table)
    assert heads == [
        "Participant", "Lesion (ml)", "Hemisphere", "Lesions", "RD", "FNM", "Score <b>", "side",
        "Flags",
    ]  # fmt: skip
    # 8, 12 and 24 voxels of 0.216 ml.
    volumes = [8, 12, 8 + 16, 8]
    assert [row[1] for row in rows] == [f"{0.216 * n:.3g}" for n in volumes]
    assert [row[2] for row in rows] == ["left", "right", "both", "left"]
    assert [row[5] for row in rows] == ["yes", "yes", "yes", "missing"]
    assert [row[6] for row in rows] == ["1.50", "-3", "12", "n/a"]
    assert rows[1][8] == "Error: A step failed. Warning: The mask has 9 voxels."
    assert rows[3][8] == "Left out of a test: no score."
    cells = [row.findall("td")[5] for row in table.findall("./tbody/tr")]
    assert [cell.get("data-v") for cell in cells] == ["1.5", "-3.0", "12.0", None]
    links = [[a.get("href") for a in row.find("th").iter("a")] for row in table.iter("tr")]
    assert links[1:] == [["sub-01.html"], [], [], []]
    (link,) = [a for a in section.iter("a") if a.get("download")]
    lines = base64.b64decode(link.get("href").partition(",")[2]).decode().splitlines()
    assert lines[0].split("\t")[:3] == ["participant_id", "lesion_volume_ml", "hemisphere"]
    assert len(lines) == 5
    assert {len(line.split("\t")) for line in lines} == {9}


def test_methods_and_origin(page):
    text = words(by_id(page, "methods"))
    for part in ("Boes et al., 2015", "Freedman and Lane, 1983", "Nichols and Holmes, 2002",
                 "5,000 permutations (seed 3)", "age and the volume of the lesion",
                 "1 participant was left out", "at least 10 % of the participants"):  # fmt: skip
        assert part in text, part
    assert "Smith and Nichols" not in text
    origin = by_id(page, "origin")
    assert RUN_ID in words(origin)
    assert "--score 'Score <b>'" in words(origin)
    assert "group_level: seed" in words(origin)


DAMAGES = {
    "map of overlap": ("tpl-*/anat/*stat-count*.nii.gz", "desc-lesion_statmap"),
    "map of t": ("tpl-*/anat/*stat-t_desc-lesion_statmap.nii.gz", "stat-t_desc-lesion"),
    "map of p": ("tpl-*/anat/*stat-logpfwe_desc-lesion*.nii.gz", "logpfwe_desc-lesion"),
    "clusters": ("tpl-*/anat/*desc-lesion_clusters.tsv", "clusters.tsv"),
    "regions": ("tpl-*/anat/*desc-rd_parcelstats.tsv", "parcelstats.tsv"),
    "sidecar of a test": ("tpl-*/anat/*stat-t_desc-snm_statmap.json", "stat-t_desc-snm"),
    "sidecar of an overlap": ("tpl-*/anat/*overlappositive*.json", "overlappositive"),
    "atlas": ("tpl-*/*dseg.nii.gz", "dseg"),
    "table of the atlas": ("tpl-*/*dseg.tsv", "dseg"),
    "mask": ("sub-02/anat/*mask.nii.gz", "sub-02"),
    "record of a run": (f"logs/{RUN_ID}/outcome.json", "outcome.json"),
}


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize("content", [b"", b"\x00\xff[1,2", None])
def test_what_is_damaged_is_named(out, what, content):
    pattern, name = DAMAGES[what]
    (path,) = out.glob(pattern)
    # Half of a file is what a full disk leaves.
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    report = write_group_report(out)
    if content is None and path.suffix == ".tsv":
        # The first lines of a table are a table.
        return
    assert report.written
    assert any(name in problem for problem in report.problems), report.problems
    page = parse(report.path)
    assert "Error:" in words(by_id(page, "summary"))
    text = words(page)
    assert name in text
    for part in ("Traceback", "zlib", "Errno", "codec"):
        assert part not in text
    assert "Nothing survives" in text or what == "sidecar of a test"
    assert len(list(page.iter("img"))) >= 10


def test_maps_of_two_grids_are_named(out):
    (path,) = out.glob("tpl-*/anat/*stat-logpfwe_desc-lesion*.nii.gz")
    nb.save(nb.Nifti1Image(np.zeros((4, 4, 4), np.float32), RAS), path)
    report = write_group_report(out)
    assert "another grid" in " ".join(report.problems)


def test_a_map_without_its_sidecar_is_shown(out):
    for path in out.glob("tpl-*/anat/*.json"):
        path.unlink()
    report = write_group_report(out)
    assert report.problems == ()
    page = parse(report.path)
    assert len(list(page.iter("img"))) == 14
    assert "cannot be stated" in words(by_id(page, "methods"))


def test_a_perfect_fit_does_not_blacken_the_map(out):
    (path,) = out.glob("tpl-*/anat/*stat-t_desc-lesion_statmap.nii.gz")
    image = nb.load(path)
    t = np.asarray(image.dataobj).copy()
    t[11, 12, 12] = 1e6
    nb.save(nb.Nifti1Image(t, image.affine), path)
    report = write_group_report(out)
    card = cards(parse(report.path), "model-1-test")["Lesions, voxel by voxel"]
    assert "At 1 voxel the map follows" in words(card)


def test_a_folder_without_a_group_is_one_sentence(tmp_path):
    report_data.write_participant(tmp_path)
    with pytest.raises(ValidationError, match="holds no results of a group"):
        write_group_report(tmp_path)
    assert not (tmp_path / "group.html").exists()


def test_a_run_without_results_has_a_page(tmp_path, quick):
    write_run(tmp_path, Group={"Errors": ["The test failed: disk full."], "Missing": ["tpl-x/a"]})
    report = write_group_report(tmp_path)
    text = words(by_id(parse(report.path), "summary"))
    assert "Error: The test failed: disk full." in text
    assert "1 result is missing, such as tpl-x/a" in text
    assert "There are no results of the group." in text


def test_a_run_that_did_not_end_is_told(out):
    write_run(out, "20260404T040404-x", Started="2026-04-04", Ended=None)
    assert write_group_report(out).written
    assert "20260404T040404-x did not come to its end" in words(parse(out / "group.html"))


def test_the_page_is_made_again_only_when_something_changed(out):
    # The copy has other paths and times.
    assert write_group_report(out).written
    assert not write_group_report(out).written
    results = json.loads((out / "logs" / RUN_ID / "outcome.json").read_text())["Group"]
    write_run(out, "20260404T040404-same", Started="2026-04-04", Group=results)
    assert not write_group_report(out).written
    (out / "sub-03.html").touch()
    assert write_group_report(out).written
    changed = {**results, "Warnings": []}
    write_run(out, "20260405T040404-other", Started="2026-04-05", Group=changed)
    assert write_group_report(out).written
    shutil.rmtree(out / "figures")
    assert write_group_report(out).written


def test_figures_of_what_is_gone_are_removed(out):
    (out / "figures" / "mine.png").touch()
    for path in out.glob("tpl-*/anat/*overlapnegative*"):
        path.unlink()
    assert write_group_report(out).written
    names = [path.name for path in (out / "figures").iterdir()]
    assert len(names) == 13
    assert "mine.png" in names
    assert not [name for name in names if "overlapnegative" in name]


def test_results_elsewhere_are_in_the_table(tmp_path, quick):
    old, new = tmp_path / "old", tmp_path / "new"
    write_masks(old)
    write_overlaps(new)
    write_run(new, Group={"Datasets": [str(old)]})
    report = write_group_report(new)
    section = by_id(parse(report.path), "participants")
    (table,) = section.iter("table")
    assert [row[0] for row in table_rows(table)[1]] == NAMES
    assert [a.get("href") for a in table.iter("a")] == ["../old/sub-01.html"]


def test_sessions_have_rows_of_their_own(tmp_path, quick):
    write_overlaps(tmp_path)
    for session in ("01", "02"):
        report_data.write_participant(tmp_path, "01", session=session)
    report_data.write_participant(tmp_path, "09")
    page = parse(write_group_report(tmp_path).path)
    heads, rows = table_rows(next(by_id(page, "participants").iter("table")))
    assert heads[:2] == ["Participant", "Session"]
    assert [row[:2] for row in rows[:2]] == [["sub-01", "01"], ["sub-01", "02"]]
    # Those of whom there is nothing but their names in the group; one who is not in it.
    inside = {row[0]: row[heads.index("In the group")] for row in rows}
    assert inside == {**dict.fromkeys(NAMES, "yes"), "sub-09": "no"}
    assert facts(by_id(page, "summary"))["Participants"] == "4 (1 more in the folder)"


def test_many_participants_make_a_small_page(tmp_path):
    people = {f"sub-{n:04d}": f"{n / 7:.3f}" for n in range(1000)}
    for name in people:
        home = tmp_path / name / "anat"
        home.mkdir(parents=True)
        (home / f"{name}_label-L_stat-t_desc-fnm_statmap.nii.gz").touch()
    write_run(tmp_path, Group={"Columns": {"score": people}})
    report = write_group_report(tmp_path)
    assert report.problems == ()
    assert report.path.stat().st_size < 600_000
    text = report.path.read_text()
    assert len(re.findall(r'<th scope="row">sub-\d{4}</th>', text)) == 1000
