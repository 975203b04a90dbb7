"""p and q against scipy; the smallest probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lacuna_nipype.core.statistics import p_values, q_values


@pytest.mark.parametrize("degrees_of_freedom", [1, 2, 11, 999])
def test_p_agrees_with_scipy(degrees_of_freedom):
    t = np.linspace(-40, 40, 801)
    expected = 2 * stats.t.sf(np.abs(t), degrees_of_freedom)
    # Below about 1e-290 scipy's two ways to the tail differ by more than rounding.
    np.testing.assert_allclose(p_values(t, degrees_of_freedom), expected, rtol=1e-9)


def test_p_is_one_where_t_says_nothing_and_never_zero():
    p = p_values(np.array([0.0, np.nan, np.inf, 1e12]), 999)
    assert p[:2].tolist() == [1.0, 1.0]
    assert p[2] == 1.0
    assert 0 < p[3] <= 1e-300
    assert np.isfinite(-np.log10(p)).all()


def test_q_by_hand():
    """Four tests: p * 4 / rank = 0.04, 0.04, 0.053.., 0.5 and monotone from the end."""
    q = q_values(np.array([0.5, 0.01, 0.04, 0.02]), np.ones(4, dtype=bool))
    np.testing.assert_allclose(q, [0.5, 0.04, 0.16 / 3, 0.04])


def test_q_agrees_with_scipy_and_leaves_out_what_is_not_tested():
    rng = np.random.default_rng(3)
    p = rng.uniform(size=500) ** 3
    family = rng.uniform(size=500) < 0.7
    q = q_values(p, family)
    np.testing.assert_allclose(q[family], stats.false_discovery_control(p[family]))
    assert np.isnan(q[~family]).all()
    assert np.isnan(q_values(p, np.zeros(500, dtype=bool))).all()


def test_ties_have_one_rate():
    q = q_values(np.array([0.02, 0.02, 0.02, 0.9]), np.ones(4, dtype=bool))
    assert len(set(q[:3])) == 1
