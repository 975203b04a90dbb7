"""Resampling along the length, against arcs computed by hand and by walking."""

from itertools import pairwise

import numpy as np
import pytest

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.streamline_resampling import arc_lengths, resample_streamline

CORNER = np.array([[0, 0, 0], [3, 0, 0], [3, 4, 0]], "f4")


def walk(points, step):
    """Slow reference: advance along the segments, dropping a point too close to the end."""
    points = np.asarray(points, float)
    total = sum(np.linalg.norm(b - a) for a, b in pairwise(points))
    found, at = [points[0]], step
    while at < total - 0.01 * step:
        left = at
        for a, b in pairwise(points):
            length = np.linalg.norm(b - a)
            if left <= length:
                found.append(a + (b - a) * left / length)
                break
            left -= length
        at += step
    return np.array([*found, points[-1]])


def test_arc_lengths_by_hand():
    np.testing.assert_array_equal(arc_lengths(CORNER), [0, 3, 7])
    np.testing.assert_array_equal(arc_lengths(CORNER[:1]), [0])


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (2, [[0, 0, 0], [2, 0, 0], [3, 1, 0], [3, 3, 0], [3, 4, 0]]),
        (3.5, [[0, 0, 0], [3, 0.5, 0], [3, 4, 0]]),
        (3, [[0, 0, 0], [3, 0, 0], [3, 3, 0], [3, 4, 0]]),
        # 6.98 is closer to the end than 1 % of a step.
        (6.98, CORNER),
        (6.9, [[0, 0, 0], [3, 3.9, 0], [3, 4, 0]]),
        (7, CORNER),
        (100, CORNER),
    ],
)
def test_by_hand(step, expected):
    found = resample_streamline(CORNER, step)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("step", [0.05, 0.3, 1.0, 2.5])
def test_against_walking(step):
    rng = np.random.default_rng(3)
    for n_points in (2, 3, 10, 60):
        line = (rng.normal(size=3) + np.cumsum(rng.exponential(0.5, (n_points, 3)), 0)).astype(
            "f4"
        )
        found = resample_streamline(line, step)
        if arc_lengths(line)[-1] > 1.01 * step:
            np.testing.assert_allclose(found, walk(line, step), atol=2e-5)
        # First and last point keep their bits.
        np.testing.assert_array_equal(found[[0, -1]], line[[0, -1]])


def test_steps_on_a_circle():
    angles = np.linspace(0, np.pi, 2001)
    line = 40 * np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    found = resample_streamline(line, 1.5)
    at = 1.5 / 40 * np.arange(len(found) - 1)
    np.testing.assert_allclose(found[:-1, 0], 40 * np.cos(at), atol=1e-4)
    np.testing.assert_allclose(found[:-1, 1], 40 * np.sin(at), atol=1e-4)
    steps = np.linalg.norm(np.diff(found, axis=0), axis=1)
    assert (steps <= 1.5 * 1.01).all()
    np.testing.assert_allclose(steps[:-1], 1.5, rtol=1e-3)


@pytest.mark.parametrize("n_points", [0, 1])
def test_without_a_segment(n_points):
    line = np.full((n_points, 3), 0.1, "f4")
    np.testing.assert_array_equal(resample_streamline(line, 1), line)


def test_short_ones_keep_their_points():
    line = np.array([[0, 0, 0], [0.3, 0, 0], [0.4, 0.2, 0], [0.4, 0.5, 0.1]], "f4")
    np.testing.assert_array_equal(resample_streamline(line, 1), line)


def test_points_that_repeat():
    line = np.repeat(CORNER, 3, axis=0)
    np.testing.assert_allclose(resample_streamline(line, 2), walk(CORNER, 2), atol=1e-6)
    stuck = np.full((5, 3), 2.5, "f4")
    np.testing.assert_array_equal(resample_streamline(stuck, 0.1), stuck)


def test_regular_points_stay():
    line = np.zeros((80, 3), "f4")
    line[:, 1] = np.arange(80, dtype="f4") * np.float32(0.7) - 20
    np.testing.assert_allclose(resample_streamline(line, 0.7), line, atol=1e-4)


@pytest.mark.parametrize("step", [0, -1, float("nan"), float("inf")])
def test_steps_that_are_none(step):
    with pytest.raises(ValidationError, match="step size"):
        resample_streamline(CORNER, step)
