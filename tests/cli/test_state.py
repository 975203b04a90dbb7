"""What is known of the masks of a lesion, and what is no result of it any more."""

from types import SimpleNamespace

import pytest

from lacuna_nipype.cli.recovery import _of_other_masks
from lacuna_nipype.cli.state import COMPLETE, Stored, other_masks

T1W_A, T1W_B, OWN_A = "lesion T1w SpaceA", "lesion T1w SpaceB", "lesion SpaceA SpaceA"
KNOWN = {
    T1W_A: Stored(COMPLETE, "drawn.toA"),
    T1W_B: Stored(COMPLETE, "drawn.toB"),
    OWN_A: Stored(COMPLETE, "other."),
    "fnm": Stored(COMPLETE, "fnm.fnm"),
    "rd": Stored(COMPLETE, "rd.rd"),
}


@pytest.mark.parametrize(
    ("entry", "signature", "expected"),
    [
        (T1W_A, "drawn.toA", {}),
        # Brought to one more space.
        ("lesion T1w SpaceC", "drawn.toC", {}),
        # In another way: what was made there only.
        (T1W_A, "drawn.again", {T1W_A: "drawn.again"}),
        # Drawn again: what was made of it everywhere.
        (T1W_A, "new.toA", {T1W_A: "new.toA", T1W_B: "new.toB"}),
        ("lesion T1w SpaceC", "new.toC", {T1W_A: "new.toA", T1W_B: "new.toB"}),
        # Drawn in another space, it is another drawing.
        (OWN_A, "new.", {OWN_A: "new."}),
        ("lesion SpaceD SpaceD", "new.", {}),
    ],
)
def test_masks_that_were_others(entry, signature, expected):
    assert other_masks(KNOWN, entry, signature) == expected


def test_results_of_other_masks(tmp_path):
    folder = tmp_path / "sub-1" / "anat"
    folder.mkdir(parents=True)
    names = [
        f"sub-1_space-Space{space}_{rest.format(label)}"
        for space in "ABC"
        for label in "LM"
        for rest in ("res-1_label-{}_desc-lesion_mask.nii.gz",
                     "res-2_label-{}_stat-z_desc-fnm_statmap.nii.gz",
                     "atlas-X_label-{}_stat-damagepct_desc-rd_parcelstats.tsv")
    ]  # fmt: skip
    for name in names:
        (folder / name).touch()
    lesion = SimpleNamespace(
        record=SimpleNamespace(key="sub-1_label-L"), entities={"subject": "1", "label": "L"}
    )
    known = {name: stored for name, stored in KNOWN.items() if name != OWN_A}
    assert _of_other_masks(tmp_path, lesion, known, {}) == set()
    for redrawn, spaces in (({T1W_A: ""}, "AC"), ({T1W_A: "", T1W_B: ""}, "ABC")):
        found = _of_other_masks(tmp_path, lesion, known, redrawn)
        assert found == {
            f"sub-1/anat/{name}"
            for name in names
            if "label-L" in name and any(f"Space{space}" in name for space in spaces)
        }
