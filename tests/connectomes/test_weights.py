"""Weights of streamlines as MRtrix writes and reads them."""

import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.connectomes import weights as module
from lacuna_nipype.connectomes.tractogram import write_tck
from lacuna_nipype.connectomes.weights import read_streamline_weights, save_streamline_weights
from lacuna_nipype.core.disconnectivity import count_matrix
from lacuna_nipype.core.exceptions import ValidationError

LAYOUTS = [
    "1 2.5 0\n",
    "1\n2.5\n0\n",
    "1\n2.5\n0",
    "1\r\n2.5\r\n0\r\n",
    "# command_history: tcksift2 in_1.tck out\n1 2.5 0\n",
    "1 # the first\n\n2.5\n  0  # the last",
    "1,2.5,0\n",
    "1\t2.5e0\t0.0\n",
]


@pytest.mark.parametrize("block_bytes", [1 << 24, 4])
@pytest.mark.parametrize("text", LAYOUTS)
def test_layouts(tmp_path, monkeypatch, text, block_bytes):
    monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    if block_bytes == 4 and "#" in text:
        # A comment longer than a block is not a line of text to this reader.
        monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    path = tmp_path / "weights.txt"
    path.write_bytes(text.encode())
    weights = read_streamline_weights(path, 3)
    assert weights.dtype == np.float32
    assert weights.tolist() == [1, 2.5, 0]


@pytest.mark.parametrize("separator", [" ", "\n"])
def test_blocks_cut_no_number(tmp_path, monkeypatch, separator):
    monkeypatch.setattr(module, "BLOCK_BYTES", 50)
    values = np.random.default_rng(0).lognormal(size=500).astype(np.float32)
    path = tmp_path / "weights.txt"
    path.write_text("# x\n" + separator.join(f"{value:.9g}" for value in values))
    assert np.array_equal(read_streamline_weights(path, 500), values)


@pytest.mark.parametrize(
    "text",
    ["1 2\n", "1 2 3 4\n", "", "# only this\n", "1 two 3\n", "1 1_0 3\n", "1 nan 3\n",
     "1 -0.5 3\n", "1 inf 3\n", "1 1e39 3\n", "1 \x00\x01 3\n", "1 0x10 3\n", "9" * 200],
)  # fmt: skip
def test_what_is_no_weight_per_streamline(tmp_path, monkeypatch, text):
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    path = tmp_path / "weights.txt"
    path.write_text(text)
    with pytest.raises(ValidationError, match=r"weights\.txt") as error:
        read_streamline_weights(path, 3)
    assert "\n" not in str(error.value)


def test_the_message_names_the_streamline(tmp_path):
    path = tmp_path / "weights.txt"
    path.write_text("1\n2\n-3\n")
    with pytest.raises(ValidationError, match=r"-3 .* 2 "):
        read_streamline_weights(path, 3)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValidationError, match=r"none\.txt"):
        read_streamline_weights(tmp_path / "none.txt", 3)
    with pytest.raises(ValidationError):
        read_streamline_weights(tmp_path, 3)
    (tmp_path / "weights.npy").write_bytes(b"no array")
    with pytest.raises(ValidationError, match=r"weights\.npy"):
        read_streamline_weights(tmp_path / "weights.npy", 3)


def test_prepared_weights(tmp_path):
    values = np.array([1, 0.25, 3], dtype=np.float32)
    path = save_streamline_weights(values, tmp_path / "weights.npy")
    assert np.array_equal(read_streamline_weights(path, 3), values)
    with pytest.raises(ValidationError):
        read_streamline_weights(path, 4)


@pytest.mark.mrtrix
@pytest.mark.skipif(shutil.which("tck2connectome") is None, reason="MRtrix3 is not on PATH")
@pytest.mark.parametrize("text", LAYOUTS)
def test_mrtrix_reads_the_same(tmp_path, text):
    nodes = np.zeros((7, 1, 1), dtype=np.int32)
    nodes[[0, 2, 4, 6], 0, 0] = [1, 2, 3, 4]
    nib.save(nib.Nifti1Image(nodes, np.eye(4)), tmp_path / "nodes.nii")
    lines = [np.array([[0, 0, 0], [x, 0, 0]], np.float32) for x in (2, 4, 6)]
    write_tck(tmp_path / "a.tck", lines, step_size=1.0)
    (tmp_path / "weights.txt").write_bytes(text.encode())
    subprocess.run(
        ["tck2connectome", "-quiet", "-symmetric", "-zero_diagonal", tmp_path / "a.tck",
         tmp_path / "nodes.nii", tmp_path / "out.csv", "-tck_weights_in",
         tmp_path / "weights.txt"],
        check=True,
        timeout=60,
    )  # fmt: skip
    own = read_streamline_weights(tmp_path / "weights.txt", 3)
    expected = np.loadtxt(tmp_path / "out.csv", delimiter=",")
    assert np.array_equal(count_matrix(np.array([[1, 2], [1, 3], [1, 4]]), 4, own), expected)
