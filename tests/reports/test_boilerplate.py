"""The text of the methods says what ran, and everything it cites exists."""

import copy
import importlib.util
import re
from pathlib import Path

import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.reports.boilerplate import (
    bibtex,
    cited_references,
    describe_group_methods,
    describe_methods,
    load_references,
)

spec = importlib.util.spec_from_file_location("report_data", Path(__file__).parent / "conftest.py")
report_data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report_data)


def text_of(analyses=("rd", "fnm", "snm"), functional=None, structural=None, **parameters):
    run = copy.deepcopy(report_data.run_record())
    run["Parameters"] |= parameters
    run["Analyses"]["fnm"]["Connectome"] |= functional or {}
    run["Analyses"]["snm"] |= structural or {}
    run["Analyses"]["afnm"] = {"Weighting": "fractional", "Matrix": "z.tsv", "Connectome": {}}
    return describe_methods(dict.fromkeys(analyses, run))


def group_text(*kinds, software=None, **changes):
    """Text about an overlap or test of each kind: (analysis, suffix, name of the model)."""
    asked = {
        "Tested": "iq", "Covariates": ["age", "lesion_volume_ml"], "Permutations": 5000,
        "Seed": 2, "MinimumOverlapPercent": 10.0, "TFCE": False,
    }  # fmt: skip
    sidecars = []
    for number, (desc, suffix, model) in enumerate(kinds):
        entities = {"desc": desc, "suffix": suffix, **({"model": model} if model else {})}
        content = {"Entities": entities, "NumberOfParticipants": 30 + number}
        if model:
            content["Parameters"] = {**asked, **changes}
        else:
            content["Threshold"] = {"Comparison": "above", "Value": 5.0}
        sidecars.append(content)
    versions = report_data.run_record()["Software"] if software is None else software
    return describe_group_methods(sidecars, versions)


EVERYTHING = [
    *((desc, "statmap", "") for desc in ("lesion", "fnm", "snm")),
    *((desc, "statmap", "iq") for desc in ("lesion", "fnm", "snm")),
    *((desc, "parcelstats", "iq") for desc in ("rd", "fnm", "afnm", "snm")),
]


def variants():
    base = report_data.run_record()
    yield group_text(*EVERYTHING, TFCE=True)
    yield text_of()
    yield text_of(fnm_method="pini", streamline_weights="w.txt", streamline_groups="g.tsv")
    yield text_of(("rd", "fnm", "afnm", "snm"), structural={"Engine": "index"})
    for name in ("hcp1065.tck", "other.tck"):
        yield text_of(structural={"Connectome": {"Name": name, "SpaceName": report_data.SPACE}})
    for atlas in ("Tian_S1", "mine"):
        run = {
            **base,
            "Atlases": [{"Name": atlas, "Image": "x.nii.gz", "SpaceName": "x"}],
            "Inputs": [{"SpaceName": "MNI152NLin2009cAsym", "Transforms": ["x.h5"]}],
        }
        yield describe_methods({"rd": run, "fnm": run})


def test_everything_cited_exists():
    for text in variants():
        assert cited_references(text)
        keys = set(re.findall(r"@([a-z]+\d{4})", text))
        assert keys == {reference.key for reference in cited_references(text)}


def test_everything_in_the_bibliography_is_cited_by_some_text():
    cited = {reference.key for text in variants() for reference in cited_references(text)}
    assert cited == set(load_references())


def test_an_unknown_key_is_refused():
    with pytest.raises(ValidationError, match="nobody1999"):
        cited_references("This [@boes2015; @nobody1999].")


def test_references_are_complete():
    references = load_references()
    assert len(references) > 20
    assert len({reference.address for reference in references.values()}) == len(references)
    for key, reference in references.items():
        assert re.fullmatch(r"10\.\d{4,}/\S+", reference.fields["doi"]), key
        assert key.endswith(reference.fields["year"])
        assert reference.fields["title"]
        assert not re.search(r"[{}\\]", reference.full), key
        surname = reference.fields["author"].partition(",")[0].split()[-1]
        assert key.startswith(surname.lower()), key


@pytest.mark.parametrize(
    ("key", "short"),
    [
        ("boes2015", "Boes et al., 2015"),
        ("benjamini1995", "Benjamini and Hochberg, 1995"),
        ("yeh2022", "Yeh, 2022"),
        ("gorgolewski2016", "Gorgolewski et al., 2016"),
    ],
)
def test_references_are_cited_by_author_and_year(key, short):
    assert load_references()[key].short == short


def test_accents_are_resolved():
    assert "Varoquaux, Gaël" in load_references()["abraham2014"].fields["author"]
    assert "Germann, Jürgen" in load_references()["elias2024"].full


def test_bibtex_holds_what_was_cited():
    references = cited_references("[@boes2015; @pini2021]")
    text = bibtex(references)
    assert re.findall(r"^@\w+\{(\w+),$", text, re.MULTILINE) == ["boes2015", "pini2021"]
    assert text.count("{") == text.count("}")


def test_the_text_follows_the_parameters():
    boes, pini = text_of(), text_of(fnm_method="pini", pini_percentile=35.0)
    assert "@boes2015" in boes
    assert "@pini2021" not in boes
    assert "35 % of voxels" in pini
    assert "@boes2015" not in pini
    assert "1000 subjects" in boes
    assert "false discovery rate of 0.05 [@benjamini1995]" in boes
    assert "0.01" in text_of(fdr_alpha=0.01)
    assert "false discovery" not in text_of(p_map=False)
    assert "|t| > 5" in text_of(t_threshold=5.0)
    assert "|t|" not in boes


def test_one_subject_has_no_statistics():
    text = text_of(functional={"NumberOfSubjects": 1}, t_threshold=5.0)
    assert "1 subject." in text
    for word in ("one-sample", "false discovery", "|t|"):
        assert word not in text


def test_the_engine_is_named():
    assert "MRtrix3 3.0.4 [@tournier2019]" in text_of()
    index = text_of(structural={"Engine": "index", "HitTest": "segments"})
    assert "index of all streamlines" in index
    assert "any part of its path" in index


def test_only_what_ran_is_told():
    text = text_of(("rd",))
    assert "Functional network" not in text
    assert "Structural" not in text
    assert describe_methods({}) == ""


def test_warps_are_told_only_where_spaces_differ():
    # A lesion in NLin6Asym and a tractogram in 2009bAsym.
    assert "@ciric2022" in text_of()
    assert "@ciric2022" not in text_of(("rd", "fnm"))


def test_connectomes_are_cited():
    text = text_of()
    assert "GSP1000 (space MNI152NLin6Asym) [@cohen2020; @holmes2015]" in text
    assert "@elias2024" in text
    named = {"Name": "x.h5", "RegisteredName": "ours", "Citation": "Somebody, 2020"}
    assert "ours (space MNI152NLin6Asym) (Somebody, 2020)" in text_of(functional=named)


def test_the_text_of_a_group_says_what_was_done():
    text = group_text(*EVERYTHING)
    overlap, tests, software = text.strip().split("\n\n")
    assert overlap.startswith("**Overlap.**")
    assert "t > 5" in overlap
    assert "[@boes2015]" in overlap
    assert "(33 to 39 participants)" in tests
    assert "5,000 permutations (seed 2)" in tests
    assert "as covariates, age and the volume of the lesion" in tests
    assert "@freedman1983" in tests
    assert "@nichols2002" in tests
    assert "smith2009" not in tests
    assert "at least 10 %" in tests
    assert "nilearn 0.11 [@abraham2014]" in software


def test_the_text_of_a_group_leaves_out_what_was_not_done():
    text = group_text(("fnm", "statmap", "iq"), Covariates=[])
    assert "Overlap" not in text
    assert "as covariates" not in text
    assert "touched in at least" not in text
    assert "regions was" not in text
    assert describe_group_methods([], {}) == ""
    assert "Software" not in group_text(("fnm", "statmap", ""), software={})
