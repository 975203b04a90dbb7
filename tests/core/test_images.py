"""Images of whatever origin: absurd headers, damage that only a checksum shows, odd files."""

import gzip
import os
import resource
import struct

import nibabel as nb
import numpy as np
import pytest

from lacuna_nipype.core.images import (
    load_map,
    open_image,
    read_voxels,
    save_image,
    verify_checksum,
)

VALUES = np.random.default_rng(0).normal(size=(6, 7, 5)).astype(np.float32)


@pytest.fixture(params=["a.nii", "a.nii.gz"])
def path(request, tmp_path):
    return save_image(tmp_path / request.param, VALUES, np.diag([2.0, 2, 2, 1]), "f4")


def patch(path, offset, form, *values):
    """Overwrite a field of the header, inside of the compression."""
    zipped = path.suffix == ".gz"
    data = bytearray(gzip.decompress(path.read_bytes()) if zipped else path.read_bytes())
    struct.pack_into(form, data, offset, *values)
    path.write_bytes(gzip.compress(bytes(data)) if zipped else bytes(data))


def test_sound_images_come_back(path):
    np.testing.assert_array_equal(read_voxels(open_image(path)), VALUES)
    assert read_voxels(open_image(path), dtype=np.float64).dtype == np.float64
    stacked = nb.Nifti1Image(np.stack([VALUES, 2 * VALUES], axis=3), np.eye(4))
    nb.save(stacked, path)
    np.testing.assert_array_equal(read_voxels(open_image(path), volume=1), 2 * VALUES)


@pytest.mark.parametrize("size", [2000, 32_767])
def test_absurd_dimensions_are_refused_without_memory(path, size):
    patch(path, 42, "<3h", size, size, size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(OSError, match="too short"):
        read_voxels(open_image(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        *((108, "<f", float("inf")), (108, "<f", float("nan"))),
        *((42, "<h", -3), (44, "<h", 0), (70, "<h", 99)),
    ],
    ids=["offset inf", "offset nan", "negative", "no voxel", "datatype"],
)
def test_absurd_headers_are_one_kind_of_error(path, offset, form, value):
    patch(path, offset, form, value)
    with pytest.raises(OSError, match=path.name):
        load_map(path)


def test_a_wrong_checksum_is_damage(tmp_path):
    path = save_image(tmp_path / "a.nii.gz", VALUES, np.eye(4), "f4")
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="damaged"):
        read_voxels(open_image(path))
    with pytest.raises(OSError, match="damaged"):
        verify_checksum(open_image(path))


def test_two_compressed_members_are_one_image(tmp_path):
    plain = save_image(tmp_path / "a.nii", VALUES, np.eye(4), "f4").read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(plain[:500]) + gzip.compress(plain[500:]))
    np.testing.assert_array_equal(read_voxels(open_image(path)), VALUES)


def test_a_pipe_does_not_wait_for_ever(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    with pytest.raises(OSError, match="pipe"):
        open_image(tmp_path / "a.nii")
