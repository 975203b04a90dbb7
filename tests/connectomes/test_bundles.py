"""Tables of bundles, good and bad, and the real one."""

import gzip
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lacuna_nipype.connectomes import bundles as module
from lacuna_nipype.connectomes.bundles import read_streamline_groups, save_streamline_groups
from lacuna_nipype.core.disconnectivity import bundle_disconnection
from lacuna_nipype.core.exceptions import ValidationError

DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None


@pytest.fixture
def groups_file(tmp_path):
    def write(text, name="groups.tsv"):
        path = tmp_path / name
        data = text.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def members(groups):
    pairs = zip(groups.bundle.tolist(), groups.streamline.tolist(), strict=True)
    return {(groups.names[bundle], streamline) for bundle, streamline in pairs}


@pytest.mark.parametrize("block_rows", [1 << 20, 2])
@pytest.mark.parametrize("name", ["groups.tsv", "groups.tsv.gz"])
def test_positions_and_names(groups_file, monkeypatch, name, block_rows):
    monkeypatch.setattr(module, "BLOCK_ROWS", block_rows)
    path = groups_file(
        "bundle_index\tbundle\tstreamline\n9\tNA\t4\n0\tArcuate left\t0\n0\tArcuate left\t3\n"
        "9\tNA\t0\n1\t1\t4\n9\tNA\t4\n\n2\tn/a\t5\n",
        name,
    )
    groups = read_streamline_groups(path, 7)
    assert groups.names == ("NA", "Arcuate left", "1")
    assert groups.n_streamlines == 7
    assert members(groups) == {
        ("NA", 4), ("NA", 0), ("Arcuate left", 0), ("Arcuate left", 3), ("1", 4)
    }  # fmt: skip
    assert len(groups.streamline) == len(groups.bundle) == 5
    result = bundle_disconnection(groups, np.array([4, 5]))
    assert result.percent.tolist() == [50, 0, 100]


@pytest.mark.parametrize("block_rows", [1 << 20, 2])
def test_one_row_per_streamline(groups_file, monkeypatch, block_rows):
    monkeypatch.setattr(module, "BLOCK_ROWS", block_rows)
    groups = read_streamline_groups(groups_file("bundle\nb\na\nn/a\nb\n"), 4)
    assert groups.names == ("b", "a")
    assert members(groups) == {("b", 0), ("a", 1), ("b", 3)}
    with pytest.raises(ValidationError, match=r"groups\.tsv"):
        read_streamline_groups(groups_file("bundle\nb\na\nb\n"), 4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "streamline\tname\n0\ta\n",
        "streamline\tbundle\n",
        "streamline\tbundle\n0\tn/a\n",
        "streamline\tbundle\n0\t\n",
        "streamline\tbundle\n0\t  \n",
        "streamline\tbundle\n0\n",
        "streamline\tbundle\n0\ta\n5\ta\n",
        "streamline\tbundle\n-1\ta\n",
        "streamline\tbundle\n0.5\ta\n",
        "streamline\tbundle\n\ta\n",
        "streamline\tbundle\n0\ta\nn/a\tb\n",
        "streamline\tbundle\n99999999999999999999\ta\n",
        "streamline\tbundle\nTrue\ta\n",
        "streamline\tbundle\n0\ta\tmore\n0\ta\tmore\tand\tmore\n",
        "streamline,bundle\n0,a\n",
    ],
)
def test_what_is_no_table_of_bundles(groups_file, text):
    with pytest.raises(ValidationError, match=r"groups\.tsv") as error:
        read_streamline_groups(groups_file(text), 5)
    assert "\n" not in str(error.value)


def test_the_message_names_the_row(groups_file, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 2)
    path = groups_file("streamline\tbundle\n0\ta\n1\ta\n2\ta\n77\ta\n")
    with pytest.raises(ValidationError, match=r"'77' in row 4 .* to 4\."):
        read_streamline_groups(path, 5)


def test_files_that_cannot_be_read(groups_file, tmp_path):
    with pytest.raises(ValidationError, match=r"none\.tsv"):
        read_streamline_groups(tmp_path / "none.tsv", 5)
    for name in ("groups.tsv.gz", "groups.npz", "groups.tsv"):
        path = tmp_path / name
        path.write_bytes(b"\x80\x81\x82\n")
        with pytest.raises(ValidationError, match="groups"):
            read_streamline_groups(path, 5)
    path = groups_file("streamline\tbundle\n" + "0\ta\n" * 9000, "cut.tsv.gz")
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValidationError, match="cut"):
        read_streamline_groups(path, 5)


def test_prepared_groups(groups_file, tmp_path):
    groups = read_streamline_groups(groups_file("streamline\tbundle\n3\tä\n1\tb\n"), 5)
    path = save_streamline_groups(groups, tmp_path / "groups.npz")
    again = read_streamline_groups(path, 5)
    assert again.names == groups.names
    assert members(again) == members(groups) == {("ä", 3), ("b", 1)}
    assert again.n_streamlines == 5
    with pytest.raises(ValidationError):
        read_streamline_groups(path, 6)


@pytest.mark.real_data
@pytest.mark.skipif(
    DATA is None or not (DATA / "tractogram_hcp1065").is_dir(),
    reason="LACUNA_TEST_DATA does not name a folder with the real data",
)
def test_real_bundles():
    path = DATA / "tractogram_hcp1065" / "streamline_bundle.tsv.gz"
    with gzip.open(path, "rt") as stream:
        rows = [line.rstrip("\n").split("\t") for line in stream][1:]
    groups = read_streamline_groups(path, len(rows))
    assert len(rows) == 10_403
    assert len(groups.names) == 106
    assert list(groups.names) == list(dict.fromkeys(name for _, _, name in rows))
    hits = np.flatnonzero(np.random.default_rng(0).random(len(rows)) < 0.2)
    result = bundle_disconnection(groups, hits)
    counts = Counter(name for _, _, name in rows)
    cut = Counter(rows[hit][2] for hit in hits)
    assert result.n_streamlines.tolist() == [counts[name] for name in groups.names]
    assert result.n_streamlines_hit.tolist() == [cut[name] for name in groups.names]
    np.testing.assert_allclose(
        result.percent, [100 * cut[name] / counts[name] for name in groups.names]
    )
