"""Nodes of connectivity matrices from atlases of every kind."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.atlases.labels import read_labels
from lacuna_nipype.atlases.nodes import (
    has_hard_labels,
    make_nodes,
    read_nodes_table,
    write_nodes,
)
from lacuna_nipype.core.exceptions import ValidationError

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2, 0, -20], [0, 0, 2, -30], [0, 0, 0, 1]])
SHAPE = (5, 4, 3)
DATA = Path(os.environ["LACUNA_TEST_DATA"]) if os.environ.get("LACUNA_TEST_DATA") else None


@pytest.fixture
def atlas(tmp_path):
    """Write an atlas image and its labels; give their paths."""

    def write(data, labels, labels_name="labels.txt"):
        nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "atlas.nii.gz")
        (tmp_path / labels_name).write_text(labels)
        return tmp_path / "atlas.nii.gz", tmp_path / labels_name

    return write


def labelled(values, dtype=np.int32):
    data = np.zeros(SHAPE, dtype=dtype)
    data.ravel()[: len(values)] = values
    return data


def test_numbers_follow_the_labels_file(atlas):
    data = labelled([7, 7, 2, 300, 0, 2])
    nodes = make_nodes(*atlas(data, "index\tname\n300\tc\n2\tb\n7\ta\n", "labels.tsv"))
    assert nodes.data.ravel()[:6].tolist() == [3, 3, 2, 1, 0, 2]
    assert nodes.data.sum() == 11
    assert nodes.data.dtype == np.int32
    assert nodes.data.shape == nodes.grid.shape == SHAPE
    assert np.array_equal(nodes.grid.affine, AFFINE)
    assert nodes.index.tolist() == [300, 2, 7]
    assert nodes.names == ("c", "b", "a")


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.uint8, [1, 200, 255]),
        (np.int16, [5, 256, 32_767]),
        (np.uint16, [1, 40_000, 65_535]),
        (np.int32, [1, 32_768, 2_000_000_001]),
        (np.int64, [1, 2, 3]),
        (np.float32, [1, 256, 40_000]),
        (np.float64, [3, 256, 70_000]),
    ],
)
def test_labels_of_any_size_and_type(atlas, dtype, values):
    data = labelled(values, dtype)
    image, labels = atlas(labelled([1]), "".join(f"{v} r{v}\n" for v in reversed(values)))
    nib.save(nib.Nifti1Image(data, AFFINE, dtype=dtype), image)
    nodes = make_nodes(image, labels)
    assert nodes.data.ravel()[:4].tolist() == [3, 2, 1, 0]
    assert nodes.index.tolist() == values[::-1]


def test_a_background_that_is_negative_or_not_a_number(atlas):
    data = np.full(SHAPE, -5, dtype=np.float32)
    data[0, 0, 0], data[1, 0, 0], data[2, 0, 0] = 4, 0, np.nan
    nodes = make_nodes(*atlas(data, "index\tname\n-5\tbackground\n4\tfour\n", "labels.tsv"))
    assert nodes.names == ("four",)
    assert np.argwhere(nodes.data).tolist() == [[0, 0, 0]]
    assert nodes.data[0, 0, 0] == 1


def test_a_label_without_a_voxel_keeps_its_row(atlas):
    nodes = make_nodes(*atlas(labelled([3, 1]), "3 three\n9 nine\n1 one\n2 two\n"))
    assert nodes.names == ("three", "nine", "one", "two")
    assert nodes.index.tolist() == [3, 9, 1, 2]
    assert nodes.data.ravel()[:3].tolist() == [1, 3, 0]


def test_labels_without_a_name_are_refused(atlas):
    with pytest.raises(ValidationError, match="17"):
        make_nodes(*atlas(labelled([1, 17]), "1 a\n"))


def test_volumes_have_no_hard_labels(atlas):
    image, labels = atlas(np.zeros((*SHAPE, 2), np.float32), "a\nb\n")
    assert not has_hard_labels(image)
    with pytest.raises(ValidationError, match=r"atlas\.nii\.gz") as error:
        make_nodes(image, labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [labelled([1, 2]), labelled([1, 2])[..., None]])
def test_one_volume_has_hard_labels(atlas, data):
    image, labels = atlas(data, "a\nb\n")
    assert has_hard_labels(image)
    assert make_nodes(image, labels).data.shape == SHAPE


def test_the_header_alone_tells(atlas, tmp_path):
    rng = np.random.default_rng(0)
    image, labels = atlas(rng.integers(0, 3, (30, 30, 30), dtype=np.int16), "a\nb\n")
    image.write_bytes(image.read_bytes()[:2000])
    assert has_hard_labels(image)
    with pytest.raises(ValidationError, match="damaged"):
        make_nodes(image, labels)
    with pytest.raises(ValidationError, match="exist"):
        has_hard_labels(tmp_path / "none.nii.gz")


def test_one_probability_map_is_no_atlas(atlas):
    with pytest.raises(ValidationError, match=r"atlas\.nii\.gz"):
        make_nodes(*atlas(np.full(SHAPE, 0.3, np.float32), "a\n"))


def test_written_and_read_back(atlas, tmp_path):
    odd = ["NA", "nan", "n/a", 'say "x"', "#hash", "a, b", "1"]
    text = "".join(f"{10 * number} {name}\n" for number, name in enumerate(odd, start=1))
    nodes = make_nodes(*atlas(labelled([70, 10, 30]), text))
    image, table = write_nodes(nodes, tmp_path / "out")
    assert table.read_text().splitlines()[0] == "index\tname"
    regions = read_nodes_table(table)
    assert [region.name for region in regions] == odd
    assert [region.index for region in regions] == nodes.index.tolist()
    stored = nib.load(image)
    assert stored.get_data_dtype() == np.int32
    assert np.array_equal(stored.affine, AFFINE)
    assert np.array_equal(np.asanyarray(stored.dataobj), nodes.data)


@pytest.mark.real_data
@pytest.mark.skipif(
    DATA is None or not (DATA / "parcellations").is_dir(),
    reason="LACUNA_TEST_DATA does not name a folder with the real data",
)
def test_real_atlases():
    folder = DATA / "parcellations"
    for stem, n_nodes in (
        ("tpl-MNI152NLin6Asym_res-01_atlas-Schaefer2018_desc-100Parcels7Networks_dseg", 100),
        ("tpl-MNI152NLin6Asym_res-01_atlas-TianSubcortex_desc-3TS1_dseg", 16),
    ):
        image, labels = folder / f"{stem}.nii.gz", folder / f"{stem}.txt"
        nodes = make_nodes(image, labels)
        # Labels of both are 1 to K already, in order.
        assert np.array_equal(nodes.data, np.asanyarray(nib.load(image).dataobj))
        assert list(nodes.names) == [region.name for region in read_labels(labels)]
        assert len(nodes.names) == nodes.data.max() == n_nodes
    volumes = folder / "tpl-MNI152NLin2009aAsym_res-01_atlas-HCP1065_desc-thr0p1_probseg.nii.gz"
    assert not has_hard_labels(volumes)
