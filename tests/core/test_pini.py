"""The choice of voxels against scikit-learn's principal component analysis."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from lacuna_nipype.core.pini import keep_voxels, principal_loadings


@pytest.mark.parametrize("shape", [(12, 200), (60, 20), (2, 5)])
def test_loadings_agree_with_sklearn(shape):
    rng = np.random.default_rng(5)
    correlations = rng.normal(size=(shape[0], 1)) * rng.normal(size=shape[1])
    correlations = np.tanh(0.3 * correlations + 0.1 * rng.normal(size=shape))
    pca = PCA(n_components=1, svd_solver="full").fit(correlations)
    loadings, explained = principal_loadings(correlations)
    np.testing.assert_allclose(np.abs(loadings), np.abs(pca.components_[0]), atol=1e-10)
    assert explained == pytest.approx(pca.explained_variance_ratio_[0])


def test_order_of_subjects_does_not_matter():
    rng = np.random.default_rng(6)
    correlations = rng.uniform(-1, 1, size=(15, 40))
    first, _ = principal_loadings(correlations)
    second, _ = principal_loadings(correlations[rng.permutation(15)])
    np.testing.assert_allclose(np.abs(first), np.abs(second), atol=1e-12)


def test_percentile_by_hand():
    kept = keep_voxels(np.array([0.1, -0.5, 0.2, -0.3, 0.4]), 20)
    # The 20th percentile of 0.1 ... 0.5 is 0.1 + 0.8 * 0.1 = 0.18.
    assert kept.tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("shape", [(1, 7), (5, 1)])
def test_nothing_to_choose_from_keeps_everything(shape):
    loadings, explained = principal_loadings(np.full(shape, 0.25))
    assert explained == 0
    assert keep_voxels(loadings, 20).all()


def test_empty_lesion():
    loadings, _ = principal_loadings(np.zeros((5, 0)))
    assert keep_voxels(loadings, 20).tolist() == []
