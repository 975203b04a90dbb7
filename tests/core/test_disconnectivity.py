"""Streamlines between parcels and in bundles: by hand, by a slow loop, and against MRtrix."""

import json
import shutil
import subprocess
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from lacuna_nipype.connectomes.tractogram import write_tck
from lacuna_nipype.core import disconnectivity
from lacuna_nipype.core.disconnectivity import (
    Disconnectivity,
    StreamlineGroups,
    assignment_statistics,
    bundle_disconnection,
    bundle_statistics,
    count_matrix,
    matrix_statistics,
    roi_disconnection,
)
from lacuna_nipype.core.exceptions import ValidationError

NAMES = ["empty", "A", "B", "C"]
PAIRS = np.array(
    [[2, 3], [3, 2], [2, 3], [2, 4], [4, 3], [4, 4], [0, 2], [0, 0], [2, 3]], dtype=np.int32
)
HITS = np.array([0, 1, 3, 5, 6])
FULL = [[0, 0, 0, 0], [0, 0, 4, 1], [0, 4, 0, 1], [0, 1, 1, 0]]
LESION = [[0, 0, 0, 0], [0, 0, 2, 1], [0, 2, 0, 0], [0, 1, 0, 0]]


@pytest.fixture
def by_hand():
    return Disconnectivity.make(count_matrix(PAIRS, 4), count_matrix(PAIRS, 4, selected=HITS))


def slow_matrix(pairs, n_nodes, weights, selected):
    matrix = np.zeros((n_nodes, n_nodes))
    for position in selected:
        first, second = pairs[position]
        if first and second and first != second:
            matrix[first - 1, second - 1] += weights[position]
            matrix[second - 1, first - 1] += weights[position]
    return matrix


def random_case(seed, n=3000, n_nodes=9):
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, n_nodes + 1, (n, 2), dtype=np.int32)
    weights = rng.lognormal(sigma=2, size=n).astype(np.float32)
    hits = np.flatnonzero(rng.random(n) < 0.3)
    return pairs, weights, hits


# Matrices


def test_matrices_by_hand(by_hand):
    assert by_hand.full.tolist() == FULL
    assert by_hand.lesion.tolist() == LESION
    assert by_hand.intact.tolist() == [[0, 0, 0, 0], [0, 0, 2, 0], [0, 2, 0, 1], [0, 0, 1, 0]]
    assert by_hand.percent.tolist() == [
        [0, 0, 0, 0], [0, 0, 50, 100], [0, 50, 0, 0], [0, 100, 0, 0]
    ]  # fmt: skip
    assert roi_disconnection(by_hand.full, by_hand.lesion).tolist() == [0, 60, 40, 50]


def test_weights_by_hand():
    weights = np.array([1, 2, 4, 8, 16, 32, 64, 128, 0.5], dtype=np.float32)
    full = count_matrix(PAIRS, 4, weights)
    lesion = count_matrix(PAIRS, 4, weights, HITS)
    assert full[1:, 1:].tolist() == [[0, 7.5, 8], [7.5, 0, 16], [8, 16, 0]]
    assert lesion[1:, 1:].tolist() == [[0, 3, 8], [3, 0, 0], [8, 0, 0]]
    matrices = Disconnectivity.make(full, lesion)
    assert matrices.percent[1].tolist() == [0, 0, 40, 100]
    assert roi_disconnection(full, lesion)[1] == pytest.approx(100 * 11 / 15.5)


@pytest.mark.parametrize("block_rows", [1 << 20, 7])
def test_equals_a_slow_loop(monkeypatch, block_rows):
    monkeypatch.setattr(disconnectivity, "BLOCK_ROWS", block_rows)
    pairs, weights, hits = random_case(1)
    ones, everything = np.ones(len(pairs)), range(len(pairs))
    for own in (None, weights):
        values = ones if own is None else own.astype(float)
        full, lesion = count_matrix(pairs, 9, own), count_matrix(pairs, 9, own, hits)
        np.testing.assert_allclose(full, slow_matrix(pairs, 9, values, everything), rtol=1e-12)
        np.testing.assert_allclose(lesion, slow_matrix(pairs, 9, values, hits), rtol=1e-12)
        assert np.array_equal(full, full.T)
        assert not full.diagonal().any()
        assert full.dtype == np.float64


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("share", [0, 0.01, 1])
def test_a_lesion_is_counted_and_compared_at_once(weighted, share):
    pairs, weights, _ = random_case(7)
    hits = np.flatnonzero(np.random.default_rng(8).random(len(pairs)) < share)
    own = weights if weighted else None
    full = count_matrix(pairs, 9, own)
    at_once = Disconnectivity.of_lesion(full + np.eye(9), pairs, hits, own)
    apart = Disconnectivity.make(full, count_matrix(pairs, 9, own, hits))
    for name in ("full", "lesion", "intact", "percent"):
        assert np.array_equal(getattr(at_once, name), getattr(apart, name)), name
    with pytest.raises(ValidationError, match="more streamlines"):
        Disconnectivity.of_lesion(full / 2, pairs, np.arange(len(pairs)), own)
    for shape in (full[0], full[:4]):
        with pytest.raises(ValidationError, match="parcellation"):
            Disconnectivity.of_lesion(shape, pairs, hits, own)


def test_order_of_streamlines_and_of_their_ends_does_not_matter():
    pairs, _, hits = random_case(2)
    rng = np.random.default_rng(3)
    order = rng.permutation(len(pairs))
    moved = np.sort(np.flatnonzero(np.isin(order, hits)))
    turned = np.where(rng.random(len(pairs))[:, None] < 0.5, pairs, pairs[:, ::-1])[order]
    assert np.array_equal(count_matrix(pairs, 9), count_matrix(turned, 9))
    assert np.array_equal(
        count_matrix(pairs, 9, selected=hits), count_matrix(turned, 9, selected=moved)
    )
    assert assignment_statistics(pairs, hits) == assignment_statistics(turned, moved)


def test_all_cut_is_exactly_100_whatever_the_order_of_the_sums():
    pairs, _, _ = random_case(4, n=5000, n_nodes=4)
    # So different that their sums are not exact in double precision.
    weights = np.random.default_rng(4).lognormal(sigma=8, size=5000).astype(np.float32)
    full = count_matrix(pairs, 4, weights)
    again = count_matrix(pairs[::-1], 4, weights[::-1])
    assert not np.array_equal(full, again)
    for first, second in ((full, again), (again, full)):
        matrices = Disconnectivity.make(first, second)
        assert not matrices.intact.any()
        assert set(matrices.percent[np.triu_indices(4, 1)]) == {100.0}
        assert matrix_statistics(matrices, list("abcd"))["Preservation"] == 0


def test_weights_leave_nothing_below_zero():
    pairs, weights, hits = random_case(5)
    matrices = Disconnectivity.make(
        count_matrix(pairs, 9, weights), count_matrix(pairs, 9, weights, hits)
    )
    assert matrices.intact.min() >= 0
    assert matrices.percent.max() <= 100
    spared = np.setdiff1d(np.arange(len(pairs)), hits)
    np.testing.assert_allclose(
        matrices.intact, count_matrix(pairs, 9, weights, spared), rtol=1e-9, atol=1e-9
    )


def test_a_light_streamline_among_heavy_ones_is_not_lost_to_rounding():
    pairs = np.tile([[1, 2]], (1001, 1))
    weights = np.full(1001, 1000, dtype=np.float32)
    weights[-1] = 1e-3
    matrices = Disconnectivity.make(
        count_matrix(pairs, 2, weights), count_matrix(pairs, 2, weights, np.arange(1000))
    )
    assert matrices.intact[0, 1] == pytest.approx(1e-3, rel=1e-6)
    assert matrices.percent[0, 1] < 100


def test_diagonals_are_left_out(by_hand):
    full, lesion = by_hand.full + 5 * np.eye(4), by_hand.lesion + 5 * np.eye(4)
    assert roi_disconnection(full, lesion).tolist() == [0, 60, 40, 50]
    assert Disconnectivity.make(full, lesion).intact.tolist() == by_hand.intact.tolist()


def test_memory_is_bounded_by_the_block(monkeypatch):
    monkeypatch.setattr(disconnectivity, "BLOCK_ROWS", 10_000)
    rng = np.random.default_rng(6)
    pairs = rng.integers(0, 21, (1_000_000, 2), dtype=np.int32)
    weights = np.ones(len(pairs), dtype=np.float32)
    hits = np.arange(0, len(pairs), 2)
    tracemalloc.start()
    try:
        count_matrix(pairs, 20, weights)
        # The selection is looked at for its order, a byte per streamline cut.
        whole = tracemalloc.get_traced_memory()[1]
        count_matrix(pairs, 20, weights, hits)
        selected = tracemalloc.get_traced_memory()[1]
        assignment_statistics(pairs, np.arange(3))
        counted = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert whole < 1_000_000
    assert max(selected, counted) < 2_000_000


# Statistics


def test_statistics_by_hand(by_hand):
    assert matrix_statistics(by_hand, NAMES) == {
        "Parcels": 4,
        "Edges": 3,
        "EdgesAffected": 2,
        "EdgesAffectedPercent": pytest.approx(200 / 3),
        "MeanDisconnectionPercent": 50,
        "MaximumDisconnectionPercent": 100,
        "MaximumDegreeLost": 3,
        "ParcelOfMaximumDegreeLost": "A",
        "MeanIntactDegree": 1.5,
        "Preservation": 0.5,
    }
    assert assignment_statistics(PAIRS, HITS) == {
        "StreamlinesAssigned": 7,
        "StreamlinesUnassigned": 2,
        "StreamlinesHitAssigned": 4,
        "StreamlinesHitUnassigned": 1,
    }


@pytest.mark.parametrize("hits", [np.array([], dtype=np.int64), np.array([])])
def test_no_streamline_hit_is_zero_and_valid_json(hits):
    matrices = Disconnectivity.make(count_matrix(PAIRS, 4), count_matrix(PAIRS, 4, selected=hits))
    statistics = matrix_statistics(matrices, NAMES) | assignment_statistics(PAIRS, hits)
    json.dumps(statistics, allow_nan=False)
    assert not matrices.lesion.any()
    assert not matrices.percent.any()
    assert matrices.intact.tolist() == FULL
    assert statistics["EdgesAffected"] == statistics["EdgesAffectedPercent"] == 0
    assert statistics["MaximumDegreeLost"] == statistics["StreamlinesHitAssigned"] == 0
    assert statistics["ParcelOfMaximumDegreeLost"] is None
    assert statistics["Preservation"] == 1


def test_no_connection_at_all_is_a_share_of_nothing():
    pairs = np.zeros((5, 2), dtype=np.int32)
    matrices = Disconnectivity.make(
        count_matrix(pairs, 3), count_matrix(pairs, 3, selected=np.arange(5))
    )
    statistics = matrix_statistics(matrices, ["a", "b", "c"])
    json.dumps(statistics, allow_nan=False)
    assert statistics["Edges"] == statistics["MeanDisconnectionPercent"] == 0
    assert statistics["EdgesAffectedPercent"] is statistics["Preservation"] is None
    assert roi_disconnection(matrices.full, matrices.lesion).tolist() == [0, 0, 0]


def test_a_tractogram_without_streamlines():
    pairs = np.zeros((0, 2), dtype=np.int32)
    assert count_matrix(pairs, 2).tolist() == [[0, 0], [0, 0]]
    assert set(assignment_statistics(pairs, np.array([])).values()) == {0}


# What does not belong together


@pytest.mark.parametrize(
    ("pairs", "weights", "selected"),
    [
        (PAIRS + 1, None, None),
        (PAIRS - 1, None, None),
        (PAIRS.ravel(), None, None),
        (PAIRS.astype(float), None, None),
        (PAIRS, np.ones(8), None),
        (PAIRS, None, np.array([0, 9])),
        (PAIRS, None, np.array([-1, 2])),
        (PAIRS, None, np.array([1, 1])),
        (PAIRS, None, np.array([3, 1])),
        (PAIRS, None, np.array([0.0, 1.0])),
        (PAIRS, None, np.ones(9, dtype=bool)),
    ],
)
def test_what_does_not_fit_the_tractogram_is_refused(pairs, weights, selected):
    with pytest.raises(ValidationError):
        count_matrix(pairs, 4, weights, selected)


def test_matrices_of_two_tractograms_are_refused():
    full = np.array([[0, 3], [3, 0]])
    with pytest.raises(ValidationError):
        Disconnectivity.make(full, full + 1)
    with pytest.raises(ValidationError):
        Disconnectivity.make(full, np.zeros((3, 3)))


# Bundles

GROUPS = StreamlineGroups(
    ("left", "right", "light"),
    np.array([0, 1, 2, 3, 1, 5, 6]),
    np.array([0, 0, 0, 0, 1, 1, 2], dtype=np.int32),
    8,
)


@pytest.mark.parametrize("block_rows", [1 << 20, 2])
def test_bundles_by_hand(monkeypatch, block_rows):
    monkeypatch.setattr(disconnectivity, "BLOCK_ROWS", block_rows)
    result = bundle_disconnection(GROUPS, np.array([1, 4, 5]))
    assert result.n_streamlines.tolist() == [4, 2, 1]
    assert result.n_streamlines_hit.tolist() == [1, 2, 0]
    assert result.percent.tolist() == [25, 100, 0]
    assert bundle_statistics(GROUPS.names, result) == {
        "Bundles": 3,
        "BundlesAffected": 2,
        "MaximumBundleDisconnectionPercent": 100.0,
        "BundleOfMaximumDisconnection": "right",
    }
    weights = np.array([3, 1, 4, 2, 9, 7, 0, 5], dtype=np.float32)
    result = bundle_disconnection(GROUPS, np.array([1, 4, 5, 6]), weights)
    assert result.n_streamlines_hit.tolist() == [1, 2, 1]
    assert result.percent.tolist() == [10, 100, 0]


def test_bundles_cut_entirely_are_at_exactly_100():
    rng = np.random.default_rng(7)
    n = 10_000
    groups = StreamlineGroups(("a", "b"), np.arange(n), rng.integers(0, 2, n).astype("i4"), n)
    weights = rng.lognormal(sigma=2, size=n).astype(np.float32)
    assert bundle_disconnection(groups, np.arange(n), weights).percent.tolist() == [100, 100]


def test_bundles_of_a_lesion_that_cuts_nothing():
    result = bundle_disconnection(GROUPS, np.array([], dtype=np.int64))
    statistics = bundle_statistics(GROUPS.names, result)
    assert result.percent.tolist() == [0, 0, 0]
    assert statistics["BundleOfMaximumDisconnection"] is None
    json.dumps(statistics, allow_nan=False)


def test_bundles_of_another_tractogram_are_refused():
    with pytest.raises(ValidationError):
        bundle_disconnection(GROUPS, np.array([8]))
    with pytest.raises(ValidationError):
        bundle_disconnection(GROUPS, np.array([1]), np.ones(7))


# MRtrix


@pytest.mark.mrtrix
@pytest.mark.skipif(shutil.which("tck2connectome") is None, reason="MRtrix3 is not on PATH")
def test_equals_tck2connectome(tmp_path):
    """The whole tractogram and a part of it, from one file of assignments."""
    rng = np.random.default_rng(8)
    nodes = rng.integers(0, 7, (4, 4, 4)).astype(np.int32)
    affine = np.diag([6.0, 6, 6, 1])
    nib.save(nib.Nifti1Image(nodes, affine), tmp_path / "nodes.nii")
    # Ends up to 9 mm outside the image, so that some find no node within 4 mm.
    lines = [rng.uniform(-9, 27, (3, 3)).astype(np.float32) for _ in range(600)]
    weights = rng.lognormal(size=600).astype(np.float32)
    hits = np.flatnonzero(rng.random(600) < 0.4)

    def mrtrix(chosen, own=None):
        write_tck(tmp_path / "a.tck", [lines[i] for i in chosen], step_size=1.0)
        options = ["-symmetric", "-zero_diagonal", "-out_assignments", tmp_path / "pairs.txt"]
        if own is not None:
            np.savetxt(tmp_path / "weights.txt", own[chosen], fmt="%.9g")
            options += ["-tck_weights_in", tmp_path / "weights.txt"]
        subprocess.run(
            ["tck2connectome", "-quiet", "-force", tmp_path / "a.tck", tmp_path / "nodes.nii",
             tmp_path / "matrix.csv", *options],
            check=True,
            timeout=60,
        )  # fmt: skip
        return np.loadtxt(tmp_path / "matrix.csv", delimiter=",")

    full = mrtrix(np.arange(600))
    pairs = np.loadtxt(tmp_path / "pairs.txt", dtype=np.int32)
    assert 0 < assignment_statistics(pairs, hits)["StreamlinesUnassigned"] < 600
    assert np.array_equal(count_matrix(pairs, 6), full)
    assert np.array_equal(count_matrix(pairs, 6, selected=hits), mrtrix(hits))
    for chosen in (np.arange(600), hits):
        expected = mrtrix(chosen, weights)
        np.testing.assert_allclose(count_matrix(pairs, 6, weights, chosen), expected, rtol=1e-5)
