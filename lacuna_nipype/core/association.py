"""Maps of a cohort against a score: general linear model, inference by permutation.

The statistics are nilearn's: :func:`nilearn.mass_univariate.permuted_ols` after Freedman & Lane
(1983, doi:10.1080/07350015.1983.10509354), with the distribution of the maximum over all values,
which controls the family-wise error (Winkler et al. 2014, doi:10.1016/j.neuroimage.2014.01.060),
and threshold-free cluster enhancement (Smith & Nichols 2009,
doi:10.1016/j.neuroimage.2008.03.061).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nb
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lacuna_nipype.core.exceptions import ValidationError

ALPHA = 0.05
PERMUTATIONS = 5000
# Values in one block; nilearn holds a block about six times.
BLOCK_VALUES = 2**23
# A statistic that a permutation reproduces may differ in its last bits, because sums are made in
# another order; it counts as equal.
_TIE = 1e-9
_TFCE_TIE = 1e-5  # its images are float32
_LARGEST_T = 1e6
_SINGULAR = 1e-7


@dataclass(frozen=True, eq=False)
class Design:
    """What maps are explained by.

    Parameters
    ----------
    tested : array of float64, shape (N,)
        The score, or 0 and 1 for two groups.
    covariates : array of float64, shape (N, C)
        Without a constant.
    tested_name : str
    covariate_names : tuple of str
    """

    tested: NDArray[np.float64]
    covariates: NDArray[np.float64]
    tested_name: str
    covariate_names: tuple[str, ...]

    @property
    def n(self) -> int:
        """Participants."""
        return len(self.tested)

    @property
    def degrees_of_freedom(self) -> int:
        """Of t: participants less covariates, intercept and score."""
        return self.n - self.covariates.shape[1] - 2

    @property
    def distinct_orders(self) -> float:
        """Orders of the participants that can differ in t.

        Without covariates, to swap participants with one score changes nothing.
        """
        same = [1] * self.n
        if not self.covariate_names and not self.covariates.shape[1]:
            same = np.unique(self.tested, return_counts=True)[1].tolist()
        return math.factorial(self.n) / math.prod(math.factorial(k) for k in same)


def make_design(
    tested: ArrayLike,
    covariates: ArrayLike | None = None,
    *,
    tested_name: str = "score",
    covariate_names: Sequence[str] = (),
) -> Design:
    """Check that a score can be tested beside its covariates.

    Parameters
    ----------
    tested : array-like, shape (N,)
        Finite.
    covariates : array-like, shape (N, C), optional
        Finite; an intercept is added by the model.
    tested_name : str
    covariate_names : sequence of str

    Returns
    -------
    Design

    Raises
    ------
    ValidationError
        Too few participants, a constant score, covariates that repeat each other or are
        constant, or a score that the covariates explain.
    """
    score = np.asarray(tested, dtype=np.float64)
    others = np.empty((len(score), 0)) if covariates is None else np.asarray(covariates, float)
    design = Design(score, others, tested_name, tuple(covariate_names))
    listed = ", ".join(covariate_names) or "none"
    if design.degrees_of_freedom < 1:
        who = "1 participant is" if design.n == 1 else f"{design.n} participants are"
        raise ValidationError(
            f"{who} too few to test {tested_name!r} with "
            f"{others.shape[1]} covariates ({listed}): at least {others.shape[1] + 3} are needed."
        )
    if np.ptp(score) == 0:
        raise ValidationError(
            f"{tested_name!r} is {score[0]:g} in all {design.n} participants; a constant cannot "
            "be associated with anything."
        )
    nuisance = _nuisance(design)
    scaled = nuisance / np.linalg.norm(nuisance, axis=0).clip(1e-300)
    if np.linalg.matrix_rank(scaled) < scaled.shape[1]:
        raise ValidationError(
            f"The covariates ({listed}) repeat each other or hold a constant among the "
            f"{design.n} participants; leave one out."
        )
    if _residual_share(score[:, None], nuisance)[0] < _SINGULAR:
        raise ValidationError(
            f"{tested_name!r} follows entirely from the covariates ({listed}); leave one out."
        )
    return design


def _nuisance(design: Design) -> NDArray[np.float64]:
    """Intercept and covariates, centred so that large covariates stay accurate."""
    centred = design.covariates - design.covariates.mean(axis=0)
    return np.column_stack([np.ones(design.n), centred])


def _residual_share(values: NDArray[Any], nuisance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Norm of what the nuisance leaves of each column, as a share of the column's norm."""
    basis, _ = np.linalg.qr(nuisance / np.linalg.norm(nuisance, axis=0).clip(1e-300))
    columns = np.asarray(values, dtype=np.float64)
    left = columns - basis @ (basis.T @ columns)
    size = np.linalg.norm(columns, axis=0)
    return np.asarray(np.linalg.norm(left, axis=0) / np.where(size > 0, size, 1))


@dataclass(frozen=True, eq=False)
class Association:
    """Result of a test of many values.

    Parameters
    ----------
    t : array of float64, shape (V,)
        NaN where nothing was tested.
    log_p : array of float64, shape (V,)
        -log10 of the two-sided probability, corrected for the family of all tested values.
    effect : array of float64, shape (V,)
        Partial correlation of value and score given the covariates.
    critical_t : float
        Size of t above which the corrected probability is at most 0.05; infinite where there are
        too few permutations for that.
    log_p_tfce : array of float64, shape (V,), or None
        As log_p, of the enhanced statistic.
    """

    t: NDArray[np.float64]
    log_p: NDArray[np.float64]
    effect: NDArray[np.float64]
    critical_t: float
    log_p_tfce: NDArray[np.float64] | None = None

    @property
    def n_tested(self) -> int:
        """Values that were tested."""
        return int(np.isfinite(self.t).sum())

    def to_dict(self) -> dict[str, Any]:
        """Numbers for a sidecar; None where nothing was tested."""
        if not self.n_tested:
            return {"ValuesTested": 0}
        strongest = int(np.nanargmax(np.abs(self.t)))
        summary = {
            "ValuesTested": self.n_tested,
            "CriticalT": self.critical_t if math.isfinite(self.critical_t) else None,
            "SignificantValues": int((self.log_p >= -math.log10(ALPHA)).sum()),
            "LargestT": float(self.t[strongest]),
            "SmallestPFWE": float(10 ** -np.nanmax(self.log_p)),
        }
        if self.log_p_tfce is not None:
            significant = self.log_p_tfce >= -math.log10(ALPHA)
            summary["SignificantValuesTFCE"] = int(significant.sum())
        return summary


def can_be_tested(values: NDArray[Any], design: Design) -> NDArray[np.bool_]:
    """Find the values that can be tested.

    Parameters
    ----------
    values : array, shape (N, V)
    design : Design

    Returns
    -------
    array of bool, shape (V,)
        Finite in all participants, and not explained by intercept and covariates alone.
    """
    usable = np.isfinite(values).all(axis=0)
    share = _residual_share(np.where(usable, values, 0), _nuisance(design))
    return np.asarray(usable & (share > _SINGULAR))


def associate(
    values: NDArray[Any],
    design: Design,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    volume: nb.Nifti1Image | None = None,
    block_values: int = BLOCK_VALUES,
) -> Association:
    """Test many values of a cohort against a score.

    Parameters
    ----------
    values : array, shape (N, V)
        Participants by voxels or regions. A column with NaN, or without variance beside the
        covariates, is not tested.
    design : Design
    permutations : int
        Orders of the participants that make the distribution under the null hypothesis.
    seed : int
        Same seed, same permutations.
    volume : image, optional
        Mask whose V voxels, in C order, are the values: asks for threshold-free cluster
        enhancement, for which all values are in memory at once.
    block_values : int
        Values (participants times voxels) to hold at a time otherwise. All blocks see the same
        permutations, so that the distribution of the maximum is that of the whole.

    Returns
    -------
    Association
    """
    n_values = values.shape[1]
    step = max(1, block_values // design.n)
    chosen = np.concatenate(
        [
            np.flatnonzero(can_be_tested(values[:, start : start + step], design)) + start
            for start in range(0, n_values, step)
        ]
        or [np.empty(0, dtype=np.intp)]
    )
    t, log_p, effect = (np.full(n_values, np.nan) for _ in range(3))
    if not len(chosen):
        return Association(t, log_p, effect, math.nan)
    maxima = np.zeros(permutations)
    enhanced: NDArray[np.float64] | None = None
    if volume is not None:
        step = len(chosen)
    for start in range(0, len(chosen), step):
        part = chosen[start : start + step]
        masker = None if volume is None else _masker(volume, part)
        found = _permute(values[:, part], design, permutations, seed, masker)
        t[part] = _finite(found["t"][0])
        maxima = np.maximum(maxima, _finite(np.asarray(found["h0_max_t"]).reshape(-1)))
        if masker is not None:
            enhanced = np.full(n_values, np.nan)
            enhanced[part] = _log_p(found["tfce"][0], found["h0_max_tfce"], _TFCE_TIE)
    log_p[chosen] = _log_p(t[chosen], maxima, _TIE)
    effect[chosen] = t[chosen] / np.hypot(t[chosen], math.sqrt(design.degrees_of_freedom))
    return Association(t, log_p, effect, _critical(maxima), enhanced)


def _critical(maxima: NDArray[np.float64]) -> float:
    """Largest maximum that is still reached too often to be significant."""
    allowed = int(ALPHA * (len(maxima) + 1) + 1e-9) - 1
    return float(np.sort(maxima)[::-1][allowed]) if allowed >= 0 else math.inf


def _permute(
    values: NDArray[Any], design: Design, permutations: int, seed: int, masker: Any
) -> dict[str, NDArray[np.float64]]:
    """Call nilearn; its own p values are not used, see :func:`_log_p`."""
    from nilearn.mass_univariate import permuted_ols

    # Until nilearn 0.13 a tuple was the default.
    known = inspect.signature(permuted_ols).parameters
    form = {"output_type": "dict"} if "output_type" in known else {}
    covariates = np.ascontiguousarray(_nuisance(design)[:, 1:])
    with warnings.catch_warnings():
        # A perfect fit divides by zero; _finite takes care of it.
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.filterwarnings("ignore", message=".*output_type.*")
        warnings.filterwarnings("ignore", message=".*CONTIGUOUS.*")
        found: dict[str, NDArray[np.float64]] = permuted_ols(
            design.tested[:, None],
            np.asarray(values, dtype=np.float64),
            confounding_vars=covariates if covariates.shape[1] else None,
            model_intercept=True,
            n_perm=permutations,
            two_sided_test=True,
            random_state=seed,
            n_jobs=1,
            masker=masker,
            tfce=masker is not None,
            **form,
        )
    return found


def _masker(volume: nb.Nifti1Image, chosen: NDArray[np.intp]) -> Any:
    """Nilearn's mask of the tested voxels."""
    from nilearn.maskers import NiftiMasker

    inside = np.asarray(volume.dataobj) > 0
    tested = np.zeros(int(inside.sum()), dtype=np.uint8)
    tested[chosen] = 1
    data = np.zeros(inside.shape, dtype=np.uint8)
    data[inside] = tested
    return NiftiMasker(nb.Nifti1Image(data, volume.affine), standardize=False).fit()


def _finite(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put a large number in the place of the t of a perfect fit."""
    return np.clip(
        np.nan_to_num(t, nan=_LARGEST_T, posinf=_LARGEST_T, neginf=-_LARGEST_T),
        -_LARGEST_T,
        _LARGEST_T,
    )


def _log_p(
    statistic: NDArray[np.float64], maxima: NDArray[np.float64], tie: float
) -> NDArray[np.float64]:
    """-log10 of the share of permutations, the data's own order included, that reach it.

    Permutations that leave the statistic as it is must count as reaching it, whatever rounding
    does: with few participants they are frequent, and p would come out too small.
    """
    ordered = np.sort(np.abs(np.asarray(maxima).reshape(-1)))
    below = np.searchsorted(ordered, np.abs(statistic) * (1 - tie), side="left")
    return np.asarray(-np.log10((1 + len(ordered) - below) / (1 + len(ordered))))
