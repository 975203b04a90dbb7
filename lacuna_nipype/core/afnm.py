"""Functional network mapping between parcels instead of voxels (AFNM).

A connectome is reduced, once, to a matrix: the mean over subjects of Fisher's z of the
correlation between the mean series of every two parcels. A lesion is a row of weights over
parcels, and its scores are that row times the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from lacuna_nipype.core.correlation import R_LIMIT, unit_columns
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.parcels import Parcels, RegionalDamageResult, regional_damage
from lacuna_nipype.core.spaces import Grid

WEIGHTINGS = ("fractional", "binary", "voxel_count")
# Bounds the memory of the product of weights and series.
BLOCK_BYTES = 64_000_000


def parcel_series(series: NDArray[np.floating[Any]], weights: sp.csr_array) -> NDArray[np.float64]:
    """Mean raw series of every parcel.

    Parameters
    ----------
    series : array, shape (n_timepoints, n_voxels)
        One subject, raw. Voxels with a value that is not finite are left out.
    weights : sparse CSR array, shape (n_parcels, n_voxels)
        As in :class:`lacuna_nipype.core.parcels.Parcels`, over the voxels of the series.

    Returns
    -------
    array, shape (n_parcels, n_timepoints), float64
        NaN for a parcel that is left without a voxel.
    """
    n_timepoints, n_voxels = series.shape
    weights = sp.csr_array(weights, dtype=np.float64)
    finite = np.isfinite(series).all(axis=0)
    total = weights @ finite.astype(np.float64)
    out = np.empty((weights.shape[0], n_timepoints))
    step = max(1, BLOCK_BYTES // (8 * max(n_voxels, 1)))
    for start in range(0, n_timepoints, step):
        block = np.ascontiguousarray(series[start : start + step].T, dtype=np.float64)
        if not finite.all():
            block[~finite] = 0.0
        out[:, start : start + step] = weights @ block
    out /= np.where(total > 0, total, np.nan)[:, np.newaxis]
    return out


@dataclass
class FisherMean:
    """Running mean over subjects of Fisher's z between parcels.

    A parcel whose series does not vary over time in a subject (or that has no finite voxel
    there) counts with z = 0 for that subject, as a voxel does in voxel-wise mapping. The
    diagonal is 0 by convention: a parcel's correlation with itself says nothing and has no
    finite z, so a lesion adds nothing to the score of a parcel through that parcel itself.

    Parameters
    ----------
    n_subjects : int
        Subjects seen so far.
    total : array, shape (n_parcels, n_parcels), float64
        Sum of z.
    n_varying : array, shape (n_parcels,), int64
        In how many subjects the parcel's series varies.
    """

    n_subjects: int
    total: NDArray[np.float64]
    n_varying: NDArray[np.int64]

    @classmethod
    def zeros(cls, n_parcels: int) -> FisherMean:
        """Mean over no subject at all."""
        return cls(0, np.zeros((n_parcels, n_parcels)), np.zeros(n_parcels, dtype=np.int64))

    def add_series(self, series: NDArray[np.float64]) -> None:
        """Add a subject.

        Parameters
        ----------
        series : array, shape (n_parcels, n_timepoints)
            From :func:`parcel_series`; NaN for a parcel without a voxel.
        """
        unit, varies = unit_columns(series.T)
        self._add(unit, varies)

    def add_coefficients(self, coefficients: NDArray[np.float64]) -> None:
        """Add a subject whose series are given in a basis of its temporal space.

        Parameters
        ----------
        coefficients : array, shape (n_parcels, rank)
            Of centred series in an orthonormal basis, so that inner products over coefficients
            are those over time; any scale.
        """
        norm = np.sqrt(np.einsum("pk,pk->p", coefficients, coefficients))
        varies = norm > 0
        self._add((coefficients / np.where(varies, norm, 1.0)[:, np.newaxis]).T, varies)

    def _add(self, unit: NDArray[np.float64], varies: NDArray[np.bool_]) -> None:
        z = unit.T @ unit
        np.clip(z, -R_LIMIT, R_LIMIT, out=z)
        np.arctanh(z, out=z)
        np.fill_diagonal(z, 0.0)
        self.total += z
        self.n_varying += varies
        self.n_subjects += 1

    def merge(self, other: FisherMean) -> FisherMean:
        """Mean over two disjoint groups of subjects taken together."""
        return FisherMean(
            self.n_subjects + other.n_subjects,
            self.total + other.total,
            self.n_varying + other.n_varying,
        )

    def z_matrix(self) -> NDArray[np.float64]:
        """Mean of z over subjects.

        Returns
        -------
        array, shape (n_parcels, n_parcels), float64
            Symmetric, with a diagonal of 0. Rows and columns of parcels that vary in no subject,
            such as those without a voxel in the connectome, are NaN.
        """
        mean = (self.total + self.total.T) / (2 * max(self.n_subjects, 1))
        absent = self.n_varying == 0
        mean[absent] = np.nan
        mean[:, absent] = np.nan
        return mean


def lesion_weights(
    lesion_weight: NDArray[np.floating[Any]],
    total: NDArray[np.floating[Any]],
    weighting: str = "fractional",
) -> NDArray[np.float64]:
    """Turn the overlap of a lesion with parcels into its weights.

    Parameters
    ----------
    lesion_weight : array, shape (n_parcels,)
        Weight of each parcel inside the lesion: voxels, for a labelled atlas.
    total : array, shape (n_parcels,)
        Weight of the whole parcel.
    weighting : {"fractional", "binary", "voxel_count"}
        ``fractional``: 1 / number of parcels touched, for each of them; ``binary``: 1 for each
        parcel touched; ``voxel_count``: fraction of the parcel inside the lesion.

    Returns
    -------
    array, shape (n_parcels,), float64
        0 for parcels that are not touched.

    Raises
    ------
    ValidationError
        The weighting is unknown.
    """
    if weighting not in WEIGHTINGS:
        raise ValidationError(f"Unknown weighting {weighting!r}; one of {', '.join(WEIGHTINGS)}.")
    touched = (lesion_weight > 0) & (total > 0)
    if weighting == "voxel_count":
        return np.where(touched, lesion_weight / np.where(touched, total, 1.0), 0.0)
    share = 1.0 if weighting == "binary" else 1.0 / max(int(touched.sum()), 1)
    return np.where(touched, share, 0.0)


def has_connectivity(z_matrix: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Tell which parcels have a finite value with any other parcel, shape (n_parcels,)."""
    finite = np.isfinite(z_matrix)
    np.fill_diagonal(finite, False)
    return finite.any(axis=0)


def parcel_scores(
    m: NDArray[np.floating[Any]], z_matrix: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Multiply the weights of a lesion with a connectivity matrix.

    Parameters
    ----------
    m : array, shape (n_parcels,)
        From :func:`lesion_weights`.
    z_matrix : array, shape (n_parcels, n_parcels)
        NaN where there is no connectivity; such entries are left out of the sums.

    Returns
    -------
    array, shape (n_parcels,), float64
        m times z; NaN for a parcel that has no connectivity with any other.
    """
    scores = np.asarray(m, dtype=np.float64) @ np.where(np.isfinite(z_matrix), z_matrix, 0.0)
    return np.where(has_connectivity(z_matrix), scores, np.nan)


@dataclass(frozen=True, eq=False)
class LesionScores:
    """Scores of one lesion; arrays of shape (n_parcels,).

    Parameters
    ----------
    score : array, float64
        NaN for a parcel without connectivity.
    weight : array, float64
        Weight of the parcel in the lesion's row.
    connected : array of bool
        Parcels with connectivity.
    damage : RegionalDamageResult
        Overlap of lesion and parcels.
    """

    score: NDArray[np.float64]
    weight: NDArray[np.float64]
    connected: NDArray[np.bool_]
    damage: RegionalDamageResult


def lesion_scores(
    mask: NDArray[np.bool_],
    mask_grid: Grid,
    parcels: Parcels,
    z_matrix: NDArray[np.float64],
    weighting: str = "fractional",
) -> LesionScores:
    """Score every parcel by its connectivity with the parcels that a lesion touches.

    Parameters
    ----------
    mask : array of bool, shape of the mask's grid
    mask_grid : Grid
    parcels : Parcels
        On the atlas's own grid; overlap is counted as for regional damage.
    z_matrix : array, shape (n_parcels, n_parcels)
        In the order of the parcels.
    weighting : {"fractional", "binary", "voxel_count"}
        See :func:`lesion_weights`. Parcels without connectivity have weight 0 and are not
        among those that ``fractional`` counts.

    Returns
    -------
    LesionScores
        Scores of 0 for a lesion that touches no parcel with connectivity.
    """
    damage = regional_damage(mask, mask_grid, parcels)
    connected = has_connectivity(z_matrix)
    weight = lesion_weights(np.where(connected, damage.damaged, 0.0), damage.total, weighting)
    return LesionScores(parcel_scores(weight, z_matrix), weight, connected, damage)
