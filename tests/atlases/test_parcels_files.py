"""From atlas images and label files to region weights."""

import os
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.atlases.parcels import load_parcels, open_atlas, read_parcels, save_parcels
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.spaces import Grid

PARCELLATIONS = Path(os.environ.get("LACUNA_TEST_DATA", "nowhere")) / "parcellations"
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 2, 0, -20], [0, 0, 2, -30], [0, 0, 0, 1]])
SHAPE = (5, 4, 3)


@pytest.fixture
def atlas(tmp_path):
    """Write an atlas image and its labels; give their paths."""

    def write(data, labels, name="atlas.nii.gz", labels_name="labels.txt", affine=AFFINE):
        nib.save(nib.Nifti1Image(data, affine), tmp_path / name)
        (tmp_path / labels_name).write_text(labels)
        return tmp_path / name, tmp_path / labels_name

    return write


def labelled(values, dtype=np.int32):
    data = np.zeros(SHAPE, dtype=dtype)
    data.ravel()[: len(values)] = values
    return data


def dense(parcels):
    return parcels.weights.toarray().reshape(len(parcels.names), *parcels.grid.shape)


# Labelled images


def test_rows_follow_the_labels_file(atlas):
    data = labelled([7, 7, 2, 300, 2, 2])
    parcels = load_parcels(
        *atlas(data, "index\tname\n300\tc\n2\tb\n7\ta\n", labels_name="labels.tsv")
    )
    assert parcels.index.tolist() == [300, 2, 7]
    assert parcels.names == ("c", "b", "a")
    assert parcels.totals.tolist() == [1, 3, 2]
    assert np.array_equal(dense(parcels), [data == 300, data == 2, data == 7])
    assert parcels.grid.shape == SHAPE
    assert np.array_equal(parcels.grid.affine, AFFINE)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.uint8, [1, 200, 255]),
        (np.int16, [1, 256, 32_767]),
        (np.uint16, [1, 40_000, 65_535]),
        (np.int32, [1, 32_768, 1_000_001]),
        (np.float32, [1, 256, 40_000]),
        (np.float64, [1, 256, 70_000]),
    ],
)
def test_labels_of_any_size_and_type(atlas, dtype, values):
    names = "".join(f"{value} r{value}\n" for value in reversed(values))
    parcels = load_parcels(*atlas(labelled(values, dtype), names))
    assert parcels.index.tolist() == values[::-1]
    assert parcels.totals.tolist() == [1, 1, 1]
    assert [np.argwhere(row.ravel()).item() for row in dense(parcels)] == [2, 1, 0]


@pytest.mark.parametrize("background", [-1, -32_768])
def test_a_negative_background(atlas, background):
    data = np.full(SHAPE, background, dtype=np.int16)
    data[0, 0, 0], data[1, 0, 0] = 1, 0
    parcels = load_parcels(*atlas(data, "one\n"))
    assert parcels.totals.tolist() == [1]


def test_a_background_of_nan(atlas):
    data = np.full(SHAPE, np.nan, dtype=np.float32)
    data[2, 1, 0] = 3
    parcels = load_parcels(*atlas(data, "3 three\n"))
    assert np.argwhere(dense(parcels)[0]).tolist() == [[2, 1, 0]]


def test_infinity_is_no_label(atlas):
    with pytest.raises(ValidationError, match=r"atlas\.nii\.gz"):
        load_parcels(*atlas(labelled([1, 2, np.inf], dtype=np.float64), "a\nb\n"))


def test_labels_scaled_in_the_header(tmp_path, atlas):
    image = nib.Nifti1Image(labelled([2, 4, 4], np.int16), AFFINE)
    image.header.set_slope_inter(0.5, 0)
    path, labels = atlas(labelled([1]), "a\nb\n")
    nib.save(image, path)
    assert load_parcels(path, labels).totals.tolist() == [1, 2]


def test_a_trailing_axis_of_one_is_no_probability(atlas):
    data = labelled([1, 2, 2])[..., None]
    image, labels = atlas(data, "a\nb\n")
    assert open_atlas(image)[2] == 0
    assert load_parcels(image, labels).totals.tolist() == [1, 2]


def test_names_without_a_voxel_are_left_out(atlas):
    parcels = load_parcels(*atlas(labelled([3, 1]), "9 nine\n3 three\n2 two\n1 one\n"))
    assert parcels.names == ("three", "one")


def test_labels_without_a_name_are_listed(atlas):
    image, labels = atlas(labelled([1, 2, 17, 40_000]), "1 a\n2 b\n")
    with pytest.raises(ValidationError, match=r"17, 40000") as error:
        load_parcels(image, labels)
    assert "labels.txt" in str(error.value)
    assert "atlas.nii.gz" in str(error.value)


def test_a_vanished_region_keeps_its_row(atlas):
    # At every second voxel of the 1 mm grid only labels 1 and 3 are seen.
    data = np.zeros((6, 1, 1), dtype=np.int16)
    data[:, 0, 0] = [1, 2, 1, 0, 3, 0]
    image, labels = atlas(data, "one\ntwo\nthree\n", affine=np.eye(4))
    target = Grid.make((3, 1, 1), np.diag([2.0, 2, 2, 1]))
    parcels = load_parcels(image, labels, target)
    assert parcels.names == ("one", "two", "three")
    assert parcels.index.tolist() == [1, 2, 3]
    assert parcels.totals.tolist() == [2, 0, 1]
    assert dense(parcels)[:, :, 0, 0].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_an_atlas_stored_the_other_way_lands_on_its_own_side(atlas):
    data = labelled([])
    data[0, 1, 2] = 1  # world (10, -18, -26)
    image, labels = atlas(data, "one\n")
    target = Grid.make(SHAPE, [[2, 0, 0, 2], [0, 2, 0, -20], [0, 0, 2, -30], [0, 0, 0, 1]])
    parcels = load_parcels(image, labels, target)
    assert np.argwhere(dense(parcels)[0]).tolist() == [[4, 1, 2]]


# Volumes


def probabilities(rng, n_volumes=3):
    data = rng.random((*SHAPE, n_volumes)).astype(np.float32)
    data[data < 0.5] = 0
    return data


def test_one_probability_map_per_region(atlas):
    data = probabilities(np.random.default_rng(0))
    parcels = load_parcels(*atlas(data, "a\nb\nc\n"))
    assert parcels.names == ("a", "b", "c")
    assert parcels.index.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(dense(parcels), np.moveaxis(data, 3, 0))
    np.testing.assert_allclose(parcels.totals, data.sum(axis=(0, 1, 2), dtype=np.float64))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_one_binary_volume_per_region(atlas, dtype):
    data = (probabilities(np.random.default_rng(1)) > 0).astype(dtype)
    parcels = load_parcels(*atlas(data, "a\nb\nc\n"))
    np.testing.assert_array_equal(dense(parcels), np.moveaxis(data, 3, 0))
    assert parcels.totals.tolist() == [np.count_nonzero(data[..., i]) for i in range(3)]


def test_volumes_follow_the_numbers_of_the_labels_file(atlas):
    data = probabilities(np.random.default_rng(2))
    parcels = load_parcels(*atlas(data, "3 third\n1 first\n2 second\n"))
    assert parcels.names == ("first", "second", "third")
    np.testing.assert_array_equal(dense(parcels)[2], data[..., 2])


def test_background_of_nan_in_a_volume_does_not_spread(atlas):
    data = np.full((*SHAPE, 2), np.nan, dtype=np.float32)
    data[2, 2, 1] = 1
    image, labels = atlas(data, "a\nb\n")
    assert load_parcels(image, labels).totals.tolist() == [1, 1]
    affine = AFFINE.copy()
    affine[0, 3] += 1
    moved = load_parcels(image, labels, Grid.make(SHAPE, affine))
    np.testing.assert_allclose(moved.totals, [1, 1])
    assert moved.weights.nnz == 4


def test_volumes_are_interpolated_by_hand(atlas):
    data = np.zeros((3, 1, 1, 1), dtype=np.float32)
    data = np.repeat(data, 2, axis=3)
    data[:, 0, 0, 0], data[:, 0, 0, 1] = [0.2, 0.6, 0], [0, 0, 1]
    image, labels = atlas(data, "a\nb\n", affine=np.eye(4))
    target = Grid.make((2, 1, 1), [[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    rows = load_parcels(image, labels, target).weights.toarray()
    np.testing.assert_allclose(rows, [[0.4, 0.3], [0, 0.5]], rtol=1e-6)


def test_an_empty_volume_keeps_its_row(atlas):
    data = probabilities(np.random.default_rng(3))
    data[..., 1] = 0
    parcels = load_parcels(*atlas(data, "a\nb\nc\n"))
    assert parcels.names == ("a", "b", "c")
    assert parcels.totals[1] == 0


def test_volumes_and_names_must_be_equally_many(atlas):
    with pytest.raises(ValidationError, match=r"labels\.txt"):
        load_parcels(*atlas(probabilities(np.random.default_rng(4)), "a\nb\n"))


def test_negative_probabilities_are_refused(atlas):
    data = probabilities(np.random.default_rng(5))
    data[0, 0, 0, 1] = -0.1
    with pytest.raises(ValidationError, match=r"atlas\.nii\.gz"):
        load_parcels(*atlas(data, "a\nb\nc\n"))


@pytest.mark.parametrize("name", ["atlas.nii", "atlas.nii.gz"])
def test_only_one_volume_is_in_memory(atlas, name):
    shape, n_volumes = (40, 40, 40), 30
    data = np.zeros((*shape, n_volumes), dtype=np.float32)
    for volume in range(n_volumes):
        data[volume, :5, :5, volume] = 0.5
    total, one = data.nbytes, data[..., 0].nbytes
    image, labels = atlas(data, "".join(f"r{i}\n" for i in range(n_volumes)), name=name)
    del data
    tracemalloc.start()
    try:
        parcels = load_parcels(image, labels)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert parcels.totals.tolist() == [12.5] * n_volumes
    assert peak < 8 * one < total / 3


@pytest.mark.real_data
@pytest.mark.skipif(not PARCELLATIONS.is_dir(), reason="LACUNA_TEST_DATA has no parcellations")
def test_64_tracts_are_those_of_whole_volumes():
    path = next(PARCELLATIONS.glob("*atlas-HCP1065*_probseg.nii.gz"))
    labels = path.with_name(path.name.replace(".nii.gz", ".txt"))
    target = Grid.make(
        (91, 109, 91), [[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]
    )
    own, coarse = load_parcels(path, labels), load_parcels(path, labels, target)
    image = nib.load(path, keep_file_open=True)
    assert len(own.names) == image.shape[3] == 64
    for number in range(0, 64, 9):
        data = np.asarray(image.dataobj[..., number])
        row = own.weights[[number]].toarray().reshape(data.shape)
        np.testing.assert_array_equal(row, data)
        # Every second voxel from x = 90 to -90, -126 to 90 and -72 to 108 mm.
        there = coarse.weights[[number]].toarray().reshape(target.shape)
        np.testing.assert_allclose(there, data[1:182:2, ::2, ::2][::-1], atol=1e-6)


# Images that are no atlas


@pytest.mark.parametrize(
    "data",
    [
        np.zeros(SHAPE, np.uint8),
        np.full(SHAPE, 0.3, np.float32),
        np.zeros((5, 4), np.uint8),
        np.zeros((*SHAPE, 2, 2), np.uint8),
        np.zeros(SHAPE, np.complex64),
        np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]),
    ],
    ids=["no label", "one probability map", "2D", "5D", "complex", "colours"],
)
def test_images_that_are_no_atlas(atlas, data):
    with pytest.raises(ValidationError, match=r"atlas\.nii\.gz"):
        load_parcels(*atlas(data, "a\nb\n"))


@pytest.mark.parametrize("name", ["atlas.nii", "atlas.nii.gz"])
def test_truncated_images(atlas, name):
    rng = np.random.default_rng(6)
    for data in (rng.integers(0, 3, (30, 30, 30), np.int16), probabilities(rng, 40)):
        image, labels = atlas(data, "".join(f"r{i}\n" for i in range(40)), name=name)
        raw = image.read_bytes()
        image.write_bytes(raw[: len(raw) // 2])
        with pytest.raises(ValidationError, match=r"atlas\.nii"):
            load_parcels(image, labels)


def damaged_header(raw):
    return raw[:70] + (999).to_bytes(2, "little") + raw[72:]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.nii.gz", b"no image"),
        ("text.nii", b"no image"),
        ("empty.nii.gz", b""),
        ("surface.gii", b"<GIFTI></GIFTI>"),
        ("page.html", b"<html></html>"),
    ],
)
def test_other_files(tmp_path, atlas, name, content):
    _, labels = atlas(labelled([1]), "a\n")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValidationError, match=name):
        load_parcels(tmp_path / name, labels)


def test_a_header_of_an_unknown_type(atlas):
    image, labels = atlas(labelled([1]), "a\n", name="atlas.nii")
    image.write_bytes(damaged_header(image.read_bytes()))
    with pytest.raises(ValidationError, match=r"atlas\.nii"):
        load_parcels(image, labels)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0, 1e30])
def test_an_affine_that_places_no_voxel(atlas, value):
    image, labels = atlas(labelled([1]), "a\n", name="atlas.nii")
    header = bytearray(image.read_bytes())
    # The first row of the sform.
    header[280:296] = np.array([value] * 4, "<f4").tobytes()
    image.write_bytes(header)
    with pytest.raises(ValidationError, match=r"atlas\.nii"):
        load_parcels(image, labels)


def test_another_image_format(tmp_path, atlas):
    _, labels = atlas(labelled([1]), "a\n")
    nib.save(nib.MGHImage(labelled([1]), AFFINE), tmp_path / "atlas.mgz")
    with pytest.raises(ValidationError, match=r"atlas\.mgz"):
        load_parcels(tmp_path / "atlas.mgz", labels)


def test_missing_files(tmp_path, atlas):
    image, labels = atlas(labelled([1]), "a\n")
    with pytest.raises(ValidationError, match=r"nowhere\.nii"):
        load_parcels(tmp_path / "nowhere.nii", labels)
    with pytest.raises(ValidationError, match=r"nowhere\.txt"):
        load_parcels(image, tmp_path / "nowhere.txt")


# Saved weights


@pytest.mark.parametrize("probabilistic", [False, True])
def test_saved_weights_come_back(tmp_path, atlas, probabilistic):
    rng = np.random.default_rng(7)
    data = probabilities(rng) if probabilistic else labelled([3, 1, 1, 2], np.int16)
    parcels = load_parcels(*atlas(data, "ä\nb\nc\n"))
    path = save_parcels(parcels, tmp_path / "deep" / "parcels.npz")
    back = read_parcels(path)
    assert list(path.parent.iterdir()) == [path]
    assert back.names == ("ä", "b", "c")
    assert np.array_equal(back.index, parcels.index)
    assert back.grid.shape == parcels.grid.shape
    assert np.array_equal(back.grid.affine, parcels.grid.affine)
    assert np.array_equal(back.weights.toarray(), parcels.weights.toarray())
