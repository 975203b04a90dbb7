"""Functional maps remade on another grid: relations between maps hold in every voxel."""

import nibabel as nb
import numpy as np
import pytest
from scipy import stats

from lacuna_nipype.connectomes.maps import MapOptions
from lacuna_nipype.connectomes.returned_maps import return_maps, write_returned_maps
from lacuna_nipype.core.spaces import Grid

SHAPE = (5, 4, 3)
N = 12


@pytest.fixture
def moved():
    """Z, its standard error, where they are valid, and a seed; one voxel does not vary."""
    rng = np.random.default_rng(4)
    z, error = rng.normal(0, 0.4, SHAPE), rng.uniform(0.05, 0.2, SHAPE)
    error[2, 2, 2] = 0
    valid = rng.random(SHAPE) < 0.8
    valid[2, 2, 2] = True
    seed = np.zeros(SHAPE, dtype=bool)
    seed[1, 1] = True
    return z, error, valid, seed


def test_everything_is_derived_from_z_and_its_error(moved):
    z, error, valid, seed = moved
    made = return_maps(z, error, valid, seed, N, MapOptions(t_threshold=2.0))
    assert set(made) == {"r", "z", "t", "p", "q", "qsig", "tsig", "valid"}
    varies = valid & (error > 0)
    np.testing.assert_allclose(made["r"][valid], np.tanh(z[valid]), rtol=1e-6)
    np.testing.assert_allclose(
        made["t"][varies], (z / np.where(error, error, 1))[varies], rtol=1e-6
    )
    assert made["t"][2, 2, 2] == 0
    p = 2 * stats.t.sf(np.abs(z[varies] / error[varies]), N - 1)
    np.testing.assert_allclose(made["p"][varies], p, rtol=1e-6)
    assert made["p"][2, 2, 2] == 1
    np.testing.assert_array_equal(made["tsig"] > 0, valid & (np.abs(made["t"]) > 2.0))
    np.testing.assert_array_equal(made["valid"] > 0, valid)


def test_false_discovery_is_controlled_outside_the_seed(moved):
    z, error, valid, seed = moved
    made = return_maps(z, error, valid, seed, N, MapOptions())
    family = valid & ~seed
    expected = stats.false_discovery_control(made["p"][family])
    np.testing.assert_allclose(made["q"][family], expected, rtol=1e-9)
    assert (made["q"][valid & seed] == 1).all()


def test_background_of_every_map(moved):
    z, error, valid, seed = moved
    made = return_maps(np.where(valid, z, np.nan), error, valid, seed, N, MapOptions())
    for key, background in {"r": 0, "z": 0, "t": 0, "p": 1, "q": 1, "qsig": 0, "valid": 0}.items():
        assert (made[key][~valid] == background).all(), key
        assert np.isfinite(made[key]).all(), key


def test_one_subject_has_z_and_r_only(moved):
    z, _, valid, seed = moved
    assert set(return_maps(z, None, valid, seed, 1, MapOptions())) == {"r", "z", "valid"}


def test_files(moved, tmp_path):
    grid = Grid.make(SHAPE, np.diag([2.0, 2, 2, 1]))
    made = return_maps(*moved, N, MapOptions())
    for key, path in write_returned_maps(made, grid, tmp_path).items():
        image = nb.load(path)
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), made[key])
        assert image.get_data_dtype() == made[key].dtype
