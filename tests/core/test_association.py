"""Each number against something slow and obvious; error rates on simulated cohorts."""

import itertools
import math

import nibabel as nb
import numpy as np
import pytest
from scipy import stats

from lacuna_nipype.core.association import associate, can_be_tested, make_design
from lacuna_nipype.core.exceptions import ValidationError

RNG = np.random.default_rng(20)


def cohort(n=24, n_values=40, *, seed=0, covariates=2):
    rng = np.random.default_rng(seed)
    others = rng.normal(size=(n, covariates)) * 30 + 100
    score = rng.normal(size=n) + (0.02 * others[:, 0] if covariates else 0)
    values = rng.normal(size=(n, n_values)) + (0.05 * others[:, :1] if covariates else 0)
    return values, make_design(score, others, covariate_names=[f"c{k}" for k in range(covariates)])


def least_squares_t(values, design):
    """t of the score by ordinary least squares, one value at a time."""
    x = np.column_stack([design.tested, np.ones(design.n), design.covariates])
    found = []
    for y in values.T:
        beta, residual, *_ = np.linalg.lstsq(x, y, rcond=None)
        variance = residual[0] / (design.n - x.shape[1])
        found.append(beta[0] / math.sqrt(variance * np.linalg.inv(x.T @ x)[0, 0]))
    return np.array(found)


def residuals(values, design):
    x = np.column_stack([np.ones(design.n), design.covariates])
    return values - x @ np.linalg.lstsq(x, values, rcond=None)[0]


@pytest.mark.parametrize("covariates", [0, 1, 2])
def test_t_is_that_of_least_squares(covariates):
    values, design = cohort(covariates=covariates)
    result = associate(values, design, permutations=20)
    np.testing.assert_allclose(result.t, least_squares_t(values, design), rtol=1e-8)


def test_effect_is_the_partial_correlation():
    values, design = cohort()
    result = associate(values, design, permutations=20)
    score = residuals(design.tested[:, None], design)[:, 0]
    expected = [np.corrcoef(score, y)[0, 1] for y in residuals(values, design).T]
    np.testing.assert_allclose(result.effect, expected, rtol=1e-8)


def test_corrected_p_is_that_of_all_orders():
    """Six participants have 720 orders: the exact distribution against 20,000 random ones."""
    rng = np.random.default_rng(4)
    values, score = rng.normal(size=(6, 5)), rng.normal(size=6)
    design = make_design(score)
    result = associate(values, design, permutations=20_000, seed=3)
    observed = np.abs([stats.pearsonr(score, y)[0] for y in values.T])
    maxima = [
        max(abs(np.corrcoef(score[list(order)], y)[0, 1]) for y in values.T)
        for order in itertools.permutations(range(6))
    ]
    exact = [np.mean(np.array(maxima) >= r - 1e-12) for r in observed]
    error = 4 * np.sqrt(np.array(exact) * (1 - np.array(exact)) / 20_000) + 1e-4
    assert (np.abs(10**-result.log_p - exact) < error).all()


def test_orders_that_change_nothing_count_as_reaching_t():
    """Three against three have 20 divisions, two of them with the largest t: p is 0.1 at least.

    Most orders only swap participants within groups; rounding must not make p smaller.
    """
    group = np.array([0, 1] * 3)
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=(6, 1)) / 10 + 10 * group[:, None]
        p = 10 ** -associate(values, make_design(group), permutations=1000).log_p[0]
        assert p == pytest.approx(0.1, abs=0.04)


def test_blocks_change_nothing():
    values, design = cohort(n_values=101)
    whole = associate(values, design, permutations=200, seed=9)
    blocks = associate(values, design, permutations=200, seed=9, block_values=24 * 7)
    for name in ("t", "log_p", "effect"):
        np.testing.assert_allclose(getattr(blocks, name), getattr(whole, name), rtol=1e-9)
    assert blocks.critical_t == pytest.approx(whole.critical_t, rel=1e-9)


def test_seed_decides():
    values, design = cohort()
    first, again, other = (
        associate(values, design, permutations=99, seed=seed).log_p for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_both_signs_count():
    values, design = cohort(covariates=0, n_values=3)
    values[:, 0] += 5 * design.tested
    values[:, 1] -= 5 * design.tested
    result = associate(values, design, permutations=199)
    assert result.t[0] > 0 > result.t[1]
    np.testing.assert_allclose(result.log_p[:2], -math.log10(1 / 200), rtol=1e-6)
    mirrored = associate(-values, design, permutations=199)
    np.testing.assert_allclose(mirrored.t, -result.t, rtol=1e-9)
    np.testing.assert_allclose(mirrored.log_p, result.log_p)


def test_critical_t_divides_significant_from_others():
    values, design = cohort(n_values=300, covariates=1, seed=5)
    values[:, :30] += np.linspace(0, 2, 30) * design.tested[:, None]
    for permutations in (19, 99, 100, 500):
        result = associate(values, design, permutations=permutations)
        significant = 10**-result.log_p <= 0.05 + 1e-12
        np.testing.assert_array_equal(significant, np.abs(result.t) > result.critical_t)
        assert significant.any()
    too_few = associate(values, design, permutations=18)
    assert math.isinf(too_few.critical_t)
    assert too_few.to_dict()["CriticalT"] is None


def test_what_cannot_be_tested_is_missing():
    values, design = cohort(n_values=6)
    values[:, 1] = 3.25
    values[4, 2] = np.nan
    values[:, 3] = 2 * design.covariates[:, 0] - 7
    expected = [True, False, False, False, True, True]
    np.testing.assert_array_equal(can_be_tested(values, design), expected)
    result = associate(values, design, permutations=30)
    for found in (result.t, result.log_p, result.effect):
        np.testing.assert_array_equal(np.isfinite(found), expected)
    assert result.n_tested == 3
    nothing = associate(values[:, 1:4], design, permutations=30)
    assert nothing.to_dict() == {"ValuesTested": 0}


def test_perfect_fit_is_finite():
    _, design = cohort()
    values = np.column_stack([design.tested * 3, RNG.normal(size=24)])
    result = associate(values, design, permutations=99)
    assert np.isfinite(result.t).all()
    assert result.effect[0] == pytest.approx(1, abs=1e-6)
    assert 10 ** -result.log_p[0] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("score", "covariates", "words"),
    [
        ([1, 1, 1, 1], None, "is 1 in all 4"),
        ([1, 2], None, "2 participants are too few"),
        ([1, 2, 3, 5], [[1, 4], [2, 9], [5, 2], [1, 7]], "at least 5 are needed"),
        ([1, 2, 3, 5, 8], [[7.1]] * 5, "constant"),
        ([1, 2, 3, 5, 8], [[1, 2], [3, 6], [0, 0], [2, 4], [9, 18]], "repeat each other"),
        ([1, 2, 3, 5, 8], [[12], [14], [16], [20], [26]], "follows entirely"),
    ],
)
def test_designs_that_mean_nothing_are_refused(score, covariates, words):
    with pytest.raises(ValidationError, match=words):
        make_design(score, covariates, tested_name="iq", covariate_names=["a", "b"])


def test_enhancement_favours_what_hangs_together():
    """A signal in a block of voxels, of which few are significant each on its own."""
    rng = np.random.default_rng(7)
    shape = (9, 9, 9)
    mask = nb.Nifti1Image(np.ones(shape, np.uint8), np.eye(4))
    score = rng.normal(size=16)
    noise = rng.normal(size=(16, *shape))
    noise[:, 2:5, 2:5, 2:5] += 0.9 * score[:, None, None, None]
    values = noise.reshape(16, -1)
    design = make_design(score)
    result = associate(values, design, permutations=100, volume=mask)
    plain = associate(values, design, permutations=100)
    np.testing.assert_allclose(result.t, plain.t, rtol=1e-6)
    np.testing.assert_allclose(result.log_p, plain.log_p)
    inside = np.zeros(shape, bool)
    inside[2:5, 2:5, 2:5] = True
    enhanced = (10**-result.log_p_tfce <= 0.05).reshape(shape)
    alone = (10**-result.log_p <= 0.05).reshape(shape)
    assert enhanced[inside].sum() > alone[inside].sum()
    assert not enhanced[~inside].any()


def smooth_maps(rng, n):
    """Maps on a line whose neighbours are alike, as in networks."""
    kernel = np.exp(-0.5 * (np.arange(-8, 9) / 2.5) ** 2)
    noise = rng.normal(size=(n, 96))
    return np.apply_along_axis(np.convolve, 1, noise, kernel, mode="same")


def test_false_positives_are_at_their_nominal_rate():
    """200 cohorts without any effect; the volume explains maps and score alike."""
    hits = 0
    for number in range(200):
        rng = np.random.default_rng(1000 + number)
        volume = rng.lognormal(2, 1, size=20)
        score = rng.normal(size=20) + 0.03 * volume
        values = smooth_maps(rng, 20) + 0.1 * volume[:, None]
        result = associate(values, make_design(score, volume[:, None]), permutations=99, seed=1)
        hits += bool((10**-result.log_p <= 0.05 + 1e-12).any())
    low, high = stats.binom.interval(0.999, 200, 0.05)
    assert low <= hits <= high


def test_without_its_covariate_the_rate_is_wrong():
    """The simulation above can fail: left out, the volume makes false positives."""
    hits = 0
    for number in range(40):
        rng = np.random.default_rng(1000 + number)
        volume = rng.lognormal(2, 1, size=20)
        score = rng.normal(size=20) + 0.03 * volume
        values = smooth_maps(rng, 20) + 0.1 * volume[:, None]
        result = associate(values, make_design(score), permutations=99, seed=1)
        hits += bool((10**-result.log_p <= 0.05 + 1e-12).any())
    assert hits > stats.binom.ppf(0.999, 40, 0.05)


def test_a_planted_network_is_found_in_its_place():
    found, astray = 0, 0
    for number in range(20):
        rng = np.random.default_rng(number)
        volume = rng.lognormal(2, 1, size=40)
        score = rng.normal(size=40)
        values = smooth_maps(rng, 40) + 0.1 * volume[:, None]
        values[:, 30:40] += 2.0 * score[:, None]
        result = associate(values, make_design(score, volume[:, None]), permutations=99, seed=1)
        significant = 10**-result.log_p <= 0.05
        found += bool(significant[30:40].any())
        # The kernel reaches eight values to either side.
        astray += bool(significant[:22].any() or significant[48:].any())
    assert found >= 16
    assert astray <= stats.binom.ppf(0.999, 20, 0.05)
