"""Messages are one printable line, whatever the files hold that they quote."""

import pytest

from lacuna_nipype.core.exceptions import DownloadError, ValidationError


def test_ordinary_messages_are_left_alone():
    text = "Mask /data/läsion ärm/sub-01.nii.gz is not binary; Schwelle: ≥ 0.5."
    assert str(ValidationError(text)) == text


@pytest.mark.parametrize("part", ["\n", "\r", "\x1b[31m", "\x00", "\u202e", "\u2028", "\ud800"])
def test_line_ends_and_commands_for_terminals_are_escaped(part):
    text = str(ValidationError(f"x.tsv holds a{part}b; correct it."))
    assert text.isprintable()
    assert text.startswith("x.tsv holds a\\")
    assert text.endswith("b; correct it.")


def test_megabytes_of_a_file_do_not_flood_the_message():
    text = str(
        DownloadError("https://example.org/x", f"the answer {'9' * 1_000_000} is no number.")
    )
    assert len(text) < 1100
    assert text.startswith("https://example.org/x")
    assert text.endswith("is no number.")
