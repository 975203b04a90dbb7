"""Simulated parcels, lesions, series and streamlines have the structure they promise."""

import numpy as np
import pytest
from scipy import ndimage

from lacuna_nipype.core import simulation
from lacuna_nipype.core.simulation import NETWORKS, Cortex

AFFINE = np.array([[-2.0, 0, 0, 60], [0, 2, 0, -60], [0, 0, 2, -60], [0, 0, 0, 1]])
SHAPE = (61, 61, 61)


def world_of(mask):
    return np.argwhere(mask) @ AFFINE[:3, :3].T + AFFINE[:3, 3]


@pytest.fixture(scope="module")
def ball():
    grid = np.stack(np.meshgrid(*[np.arange(61) - 30.0] * 3, indexing="ij"))
    return np.sqrt((grid**2).sum(axis=0)) < 28


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_parcels_cover_all_points_and_are_of_similar_size(rng):
    points = rng.uniform(-50, 50, size=(4000, 3))
    labels = simulation.cluster_parcels(points, 20, rng)
    sizes = np.bincount(labels, minlength=20)
    assert labels.shape == (4000,)
    assert len(sizes) == 20
    assert sizes.min() > 80
    assert sizes.max() < 400


def test_as_many_parcels_as_points_gives_one_point_each(rng):
    points = rng.uniform(-50, 50, size=(12, 3))
    assert sorted(simulation.cluster_parcels(points, 12, rng)) == list(range(12))


def test_more_parcels_than_points_is_an_error(rng):
    with pytest.raises(ValueError, match="Cannot cut 3 points"):
        simulation.cluster_parcels(np.zeros((3, 3)), 4, rng)


def test_centroids_by_hand():
    points = np.array([[0.0, 0, 0], [2, 4, 6], [5, 5, 5]])
    centroids = simulation.parcel_centroids(points, np.array([0, 0, 2]), 3)
    np.testing.assert_array_equal(centroids[[0, 2]], [[1, 2, 3], [5, 5, 5]])
    assert np.isnan(centroids[1]).all()


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_reference_centre_belongs_to_its_network_on_both_sides(network, side):
    centres = np.array(simulation.NETWORK_CENTRES[network], float) * [-side, 1, 1]
    assert set(simulation.assign_networks(centres)) == {NETWORKS.index(network)}


def test_parcels_are_ordered_by_network_then_from_back_to_front():
    centroids = np.array([[0, 10, 0], [0, -10, 0], [0, 0, 0]], float)
    order = simulation.order_parcels(centroids, np.array([1, 1, 0]))
    assert order.tolist() == [2, 1, 0]


def test_names_count_within_a_network():
    assert simulation.parcel_names([0, 0, 6], "RH") == [
        "7Networks_RH_Vis_1",
        "7Networks_RH_Vis_2",
        "7Networks_RH_Default_1",
    ]


def test_nearest_parcel_stops_at_the_distance():
    points = np.array([[1.0, 0, 0], [5, 0, 0], [20, 0, 0]])
    parcels = np.array([[0.0, 0, 0], [6, 0, 0]])
    labels = simulation.nearest_parcel(points, parcels, np.array([3, 4]), max_distance=6)
    assert labels.tolist() == [3, 4, 0]


@pytest.mark.parametrize("side", [-1, 1])
def test_a_lesion_is_one_piece_in_its_hemisphere(ball, side):
    rng = np.random.default_rng(3)
    lesion = simulation.simulate_lesion(
        ball, AFFINE, (side * 20, 5, 5), (16, 16, 16), volume_ml=12, rng=rng
    )
    world = world_of(lesion)
    assert ndimage.label(lesion)[1] == 1
    assert not (lesion & ~ball).any()
    assert (world[:, 0] * side > 0).all()
    assert 9 < lesion.sum() * 0.008 <= 12
    np.testing.assert_allclose(world.mean(axis=0), [side * 20, 5, 5], atol=6)


def test_a_smaller_lesion_of_the_same_noise_lies_inside(ball):
    large, small = (
        simulation.simulate_lesion(
            ball, AFFINE, (-20, 0, 0), (16, 16, 16), volume, np.random.default_rng(3)
        )
        for volume in (12, 5)
    )
    assert small.sum() < 0.6 * large.sum()
    assert not (small & ~large).any()


def test_the_storage_orientation_does_not_move_a_lesion(ball):
    flipped = AFFINE @ np.array([[-1.0, 0, 0, 60], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    one, other = (
        simulation.simulate_lesion(
            ball, affine, (-20, 0, 0), (12, 12, 12), 6, np.random.default_rng(0), irregularity=0
        )
        for affine in (AFFINE, flipped)
    )
    assert np.mean(one != other[::-1]) < 1e-4


def test_no_room_for_a_lesion_is_an_error(rng):
    with pytest.raises(ValueError, match="No room for 3 ml"):
        simulation.simulate_lesion(np.zeros(SHAPE, bool), AFFINE, (-20, 0, 0), (9, 9, 9), 3, rng)


def test_series_correlate_within_networks_only():
    networks = np.tile(np.arange(7), 2)
    parcels = np.repeat(np.arange(15), 20)
    z = np.mean(
        [
            np.arctanh(np.corrcoef(series, rowvar=False) * (1 - np.eye(300)))
            for series in (
                simulation.simulate_time_series(parcels, networks, 60, np.random.default_rng(s))
                for s in range(8)
            )
        ],
        axis=0,
    )
    r = np.tanh(z)
    network = np.concatenate([[-1], networks])[parcels]
    labelled, same = network >= 0, network[:, None] == network
    pairs = labelled[:, None] & labelled & ~np.eye(300, dtype=bool)
    default, attention = NETWORKS.index("Default"), NETWORKS.index("DorsAttn")
    assert r[pairs & same].mean() > r[pairs & ~same].mean() + 0.2
    assert r[np.ix_(network == default, network == attention)].mean() < -0.05
    assert abs(r[np.ix_(network == -1, labelled)].mean()) < 0.15


def test_series_are_float32_quantised_and_differ_between_subjects():
    parcels, networks = np.array([0, 1, 2]), np.array([0, 0])
    one, again, other = (
        simulation.simulate_time_series(parcels, networks, 50, np.random.default_rng(s))
        for s in (1, 1, 2)
    )
    assert one.shape == (50, 3)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one * 32, np.round(one * 32))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_network_covariance_is_valid():
    covariance = simulation.network_covariance()
    np.testing.assert_array_equal(covariance, covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > 0


@pytest.fixture(scope="module")
def cortex():
    """Eight parcels, four a side; the first and second of each side share a network."""
    centres = np.array(
        [[-40.0, 30, 30], [-40, -30, 50], [-40, -60, 10], [-20, -20, 60]], dtype=float
    )
    centres = np.concatenate([centres, centres * [-1, 1, 1]])
    cloud = np.random.default_rng(0).uniform(-5, 5, size=(50, 3))
    deep = np.array([[x, y, 20.0] for x in (-25, 25) for y in range(-60, 40, 10)])
    motor = NETWORKS.index("SomMot")
    return Cortex(
        points=(centres[:, None] + cloud).reshape(-1, 3),
        labels=np.repeat(np.arange(1, 9), 50),
        networks=np.tile([0, 0, 3, motor], 2),
        deep_white=deep,
        callosum=np.array([[0.0, y, 20] for y in range(-30, 30, 5)]),
    )


def test_streamlines_have_equal_steps_and_end_in_parcels(cortex):
    streamlines = simulation.simulate_streamlines(cortex, 300, np.random.default_rng(1), step=1.0)
    steps = np.concatenate([np.linalg.norm(np.diff(s, axis=0), axis=1) for s in streamlines])
    starts = np.array([s[0] for s in streamlines])
    nearest = np.linalg.norm(starts[:, None] - cortex.points, axis=2).min(axis=1)
    assert len(streamlines) == 300
    assert all(s.dtype == np.float32 and len(s) >= 2 for s in streamlines)
    assert np.median(steps) == pytest.approx(1, abs=0.01)
    assert steps.max() < 1.001
    assert nearest.max() < 2


def test_the_kinds_of_streamlines(cortex):
    streamlines = simulation.simulate_streamlines(cortex, 1000, np.random.default_rng(1))
    ends = np.array([[s[0], s[-1]] for s in streamlines])
    crossing = ends[:, 0, 0] * ends[:, 1, 0] < 0
    descending = ends[:, 1, 2] < -30
    assert crossing.sum() == 220
    assert descending.sum() == 80
    # A callosal streamline joins mirrored places, through the callosum.
    np.testing.assert_allclose(np.abs(ends[crossing, 0]), np.abs(ends[crossing, 1]), atol=14)
    middle = [
        s[np.abs(s[:, 0]).argmin(), 2] for s, c in zip(streamlines, crossing, strict=True) if c
    ]
    assert np.median(np.abs(np.array(middle) - 20)) < 3


def test_the_same_seed_gives_the_same_streamlines(cortex):
    one, other = (
        simulation.simulate_streamlines(cortex, 20, np.random.default_rng(5)) for _ in range(2)
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
