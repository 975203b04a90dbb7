"""What is printed at the end of a run in which steps failed."""

from pathlib import Path
from types import SimpleNamespace

from lacuna_nipype.cli.failures import failure_table
from lacuna_nipype.execution.runner import Failure

KEYS = ("sub-01_ses-01_label-L", "sub-02_label-a+b")
LESIONS = [SimpleNamespace(record=SimpleNamespace(key=key)) for key in KEYS]


def table(*pairs):
    failures = [Failure(node, reason, Path(f"/logs/crash-{n}.txt"))
                for n, (node, reason) in enumerate(pairs)]  # fmt: skip
    return failure_table(failures, LESIONS)


def test_nothing_failed():
    assert failure_table([], LESIONS) == []


def test_every_step_has_its_lesion_reason_and_file():
    lines = table(
        ("lacuna_0_1_wf.sub_01_ses_01_label_L_wf.snm_wf.select", "tckedit ended with code 1."),
        ("lacuna_0_1_wf.sub_02_label_a_plus_b_mask_wf.validate", "two\nlines"),
        ("lacuna_0_1_wf.fnm_wf._correlate3", "broken"),
    )
    assert len(lines) == 5
    assert "sub-01_ses-01_label-L" in lines[2]
    assert "snm_wf.select" in lines[2]
    assert lines[2].endswith("tckedit ended with code 1.  /logs/crash-0.txt")
    assert lines[3].split()[:2] == ["sub-02_label-a+b", "validate"]
    assert "two lines" in lines[3]
    assert lines[4].split()[:2] == ["all", "fnm_wf._correlate3"]


def test_hints_are_given_once_for_what_is_known():
    lines = table(
        ("wf.a", "The worker was killed (signal 9), most likely for want of memory."),
        ("wf.b", "Unable to allocate 3 GiB"),
        ("wf.c", "[Errno 28] No space left on device"),
        ("wf.d", "tpl-MNI152NLin6Asym_from-MNI152NLin2009cAsym_mode-image_xfm.h5 is missing"),
        ("wf.e", "something else"),
    )
    hints = [line for line in lines if line.startswith("Hint: ")]
    assert len(hints) == 3
    assert any("--mem" in hint for hint in hints)
    assert any("Disk full" in hint for hint in hints)
    assert any("fetch templates" in hint for hint in hints)
