"""Files of region names."""

import pytest

from lacuna_nipype.atlases.labels import read_labels
from lacuna_nipype.core.exceptions import ValidationError


@pytest.fixture
def labels_of(tmp_path):
    def read(name, text, encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return [(region.index, region.name) for region in read_labels(path)]

    return read


THREE = [(3, "c"), (1, "Left Thalamus"), (40_000, "b")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "index\tname\n3\tc\n1\tLeft Thalamus\n40000\tb\n"),
        ("a.TSV", "name\tcolour\tindex\nc\tred\t3\nLeft Thalamus\t\t1\nb\tblue\t40000\n"),
        ("a.csv", "index,name\n3,c\n1,Left Thalamus\n40000,b"),
        ("a.csv", 'index,name\r\n3,"c"\r\n1,"Left Thalamus"\r\n40000,b\r\n'),
        ("a.tsv", "# made by hand\n\nindex\tname\n3\tc\n# more\n1\tLeft Thalamus\n40000\tb\n\n"),
        ("a.tsv", "index\tname\n0\tbackground\n3\tc\n1\tLeft Thalamus\n40000\tb\n"),
        ("a.txt", "3 c\n1 Left Thalamus\n40000\tb\n"),
        ("a.txt", "# id name\n  3   c\n\n1 Left Thalamus  \n40000 b\n0 Unknown\n"),
        ("labels", "3 c\n1 Left Thalamus\n40000 b"),
    ],
)
def test_formats_in_the_order_of_the_file(labels_of, name, text):
    assert labels_of(name, text) == THREE


@pytest.mark.parametrize("text", ["a\nb c\n7th nerve\n", "# names\na\n\nb c\n7th nerve"])
def test_one_name_a_line_counts_from_one(labels_of, text):
    assert labels_of("a.txt", text) == [(1, "a"), (2, "b c"), (3, "7th nerve")]


def test_names_that_are_numbers(labels_of):
    assert labels_of("a.txt", "10\n20\n") == [(1, "10"), (2, "20")]


def test_a_byte_order_mark_is_no_part_of_the_header(labels_of):
    assert labels_of("a.csv", "index,name\n1,ä\n", "utf-8-sig") == [(1, "ä")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.tsv", "index\tname\n1\ta\n1\tb\n"),
        ("x.tsv", "index\tname\n1\ta\n2\ta\n"),
        ("x.txt", "1 a\n2 b\n3 a\n"),
        ("x.txt", "a\nb\na\n"),
        ("x.tsv", "label\tname\n1\ta\n"),
        ("x.tsv", "index,name\n1,a\n"),
        ("x.csv", "index\tname\n1\ta\n"),
        ("x.tsv", "index\tname\none\ta\n"),
        ("x.tsv", "index\tname\n1.5\ta\n"),
        ("x.tsv", "index\tname\n²\ta\n"),
        ("x.tsv", "index\tname\n+-2\ta\n"),
        ("x.tsv", "index\tname\n1\t\n"),
        ("x.tsv", "index\tname\n1\n"),
        ("x.txt", ""),
        ("x.txt", "# nothing\n\n"),
        ("x.txt", "1 a\n2 b\na\x0bc\n4 d\n"),
        ("x.tsv", f"index\tname\n{'9' * 5000}\ta\n"),
        ("x.txt", f"1 a\n{'9' * 5000} b\n3 c\n"),
    ],
    ids=[
        "doubled number",
        "doubled name",
        "doubled name after numbers",
        "doubled line",
        "no index",
        "commas in tsv",
        "tabs in csv",
        "word for a number",
        "fraction",
        "exponent",
        "two signs",
        "empty name",
        "short row",
        "empty",
        "comments only",
        "two words for a number",
        "absurd number in a table",
        "absurd number in a line",
    ],
)
def test_bad_files_are_named(labels_of, name, text):
    with pytest.raises(ValidationError, match=r"x\.(tsv|csv|txt)") as error:
        labels_of(name, text)
    assert len(str(error.value)) < 500


def test_doubled_names_are_listed(labels_of):
    with pytest.raises(ValidationError, match="Thalamus"):
        labels_of("x.txt", "1 Thalamus\n2 Caudate\n3 Thalamus\n")


def test_an_exponent_is_a_name(labels_of):
    assert labels_of("a.txt", "² a\n3 b\n") == [(1, "² a"), (2, "3 b")]


def test_only_ends_of_lines_end_names(labels_of):
    assert labels_of("a.txt", "1 a\u2028b\r\n2 c\n") == [(1, "a\u2028b"), (2, "c")]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "folder").mkdir()
    for name in ("binary.txt", "nowhere.txt", "folder"):
        with pytest.raises(ValidationError, match=name):
            read_labels(tmp_path / name)
