"""Streamlines between parcels and in bundles, and what a lesion takes of them.

A tractogram is known here only by the pair of nodes that the ends of each streamline belong to,
and a lesion only by the positions of the streamlines that it cuts. Whoever found them, MRtrix or
an index of streamlines, the matrices are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError

# Streamlines that are counted at a time; bounds the temporary arrays to a few ten megabytes.
BLOCK_ROWS = 1 << 20
# Of nodes in assignments. Matrices have at most some thousand rows, and a lesion's share of a
# million streamlines is read in the time that memory takes.
NODE_TYPE = np.uint16
# Sums of weights may differ by this share of the edge only because they were added in another
# order. Counts are whole numbers and exact.
ROUNDING = 1e-12


def count_matrix(
    assignments: NDArray[np.integer[Any]],
    n_nodes: int,
    weights: NDArray[np.floating[Any]] | None = None,
    selected: NDArray[np.integer[Any]] | None = None,
) -> NDArray[np.float64]:
    """Count the streamlines between every two nodes.

    The same numbers as ``tck2connectome -symmetric -zero_diagonal`` from its own assignments:
    a streamline with an end without a node is in no cell.

    Parameters
    ----------
    assignments : array of int, shape (n_streamlines, 2)
        Nodes (from 1) of the two ends of each streamline, in whatever order; 0 is no node.
    n_nodes : int
        Number of nodes K.
    weights : array, shape (n_streamlines,), optional
        What each streamline adds; 1 otherwise.
    selected : array of int, optional
        Rising positions (from 0) of the streamlines to count; all otherwise.

    Returns
    -------
    array, shape (K, K), float64
        Symmetric, with a diagonal of 0.

    Raises
    ------
    ValidationError
        Shapes disagree, a node is not between 0 and K, or a position is not in the tractogram.
    """
    sums = np.zeros((n_nodes, n_nodes))
    _add(assignments, weights, selected, sums)
    return sums


def _add(
    assignments: NDArray[np.integer[Any]],
    weights: NDArray[np.floating[Any]] | None,
    selected: NDArray[np.integer[Any]] | None,
    sums: NDArray[np.float64],
) -> None:
    """Add streamlines to a matrix, in place."""
    from lacuna_nipype.core import matrix_kernels as kernels

    n_streamlines = _n_streamlines(assignments, weights)
    own = np.zeros(0) if weights is None else weights
    if selected is None:
        code = kernels.add_streamlines(assignments, own, sums)
    else:
        positions = _as_positions(selected)
        code = kernels.add_selected(assignments, own, positions, sums)
        if code in (kernels.POSITION, kernels.ORDER):
            _check_positions(positions, n_streamlines)
    if code == kernels.NODE:
        raise ValidationError(
            f"Streamlines are assigned to nodes {assignments.min()} to {assignments.max()}, but "
            f"the parcellation has nodes 1 to {len(sums)} (0 is none); assign them again."
        )


def _n_streamlines(
    assignments: NDArray[np.integer[Any]], weights: NDArray[np.floating[Any]] | None
) -> int:
    if assignments.ndim != 2 or assignments.shape[1] != 2 or assignments.dtype.kind not in "iu":
        raise ValidationError(
            f"Assignments are two whole numbers per streamline, not an array of shape "
            f"{assignments.shape} and type {assignments.dtype}."
        )
    if weights is not None and weights.shape != (len(assignments),):
        raise ValidationError(
            f"There are {weights.size} weights for {len(assignments)} streamlines; both must "
            "come from one tractogram."
        )
    return len(assignments)


def _checked_positions(
    positions: NDArray[np.integer[Any]], n_streamlines: int
) -> NDArray[np.int64]:
    """Positions of streamlines, each once and all inside the tractogram."""
    chosen = _as_positions(positions)
    _check_positions(chosen, n_streamlines)
    return chosen


def _as_positions(positions: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    if positions.size == 0:
        return np.zeros(0, dtype=np.int64)
    if positions.ndim != 1 or positions.dtype.kind not in "iu":
        raise ValidationError("Positions of streamlines are one row of whole numbers.")
    return positions.astype(np.int64, copy=False)


def _check_positions(positions: NDArray[np.int64], n_streamlines: int) -> None:
    if np.any(positions[1:] <= positions[:-1]):
        raise ValidationError("Positions of streamlines must rise, each listed once.")
    if positions.size and (positions[0] < 0 or positions[-1] >= n_streamlines):
        raise ValidationError(
            f"Streamlines {positions[0]} to {positions[-1]} were selected from {n_streamlines} "
            f"(0 to {n_streamlines - 1}); selection and assignments must come from one tractogram."
        )


@dataclass(frozen=True, eq=False)
class Disconnectivity:
    """Connections between parcels, and what a lesion leaves of them.

    All are symmetric arrays of shape (K, K), float64, with a diagonal of 0 and never NaN.

    Parameters
    ----------
    full : array
        Streamlines (or sums of their weights) of the whole tractogram.
    lesion : array
        Those that the lesion cuts; nowhere more than ``full``.
    intact : array
        What is left, full - lesion; never below 0.
    percent : array
        Per cent that the lesion cuts; 0 where there is no connection.
    """

    full: NDArray[np.float64]
    lesion: NDArray[np.float64]
    intact: NDArray[np.float64]
    percent: NDArray[np.float64]

    @classmethod
    def make(cls, full: NDArray[Any], lesion: NDArray[Any]) -> Disconnectivity:
        """Compare two matrices, diagonals dropped.

        Parameters
        ----------
        full, lesion : array, shape (K, K)
            From :func:`count_matrix`, of one tractogram. An edge whose weights are cut to the
            last but for rounding counts as cut entirely.

        Returns
        -------
        Disconnectivity

        Raises
        ------
        ValidationError
            Shapes differ, or the lesion cuts more than there is.
        """
        if full.shape != lesion.shape or full.ndim != 2 or full.shape[0] != full.shape[1]:
            raise ValidationError(
                f"Matrices of shapes {full.shape} and {lesion.shape} are not of one parcellation."
            )
        parts = np.empty((3, *full.shape))
        parts[0] = lesion
        return cls._compare(full, parts)

    @classmethod
    def of_lesion(
        cls,
        full: NDArray[Any],
        assignments: NDArray[np.integer[Any]],
        hits: NDArray[np.integer[Any]],
        weights: NDArray[np.floating[Any]] | None = None,
    ) -> Disconnectivity:
        """Count what a lesion cuts and compare it with the whole.

        The same as :meth:`make` of :func:`count_matrix`.

        Parameters
        ----------
        full : array, shape (K, K)
            From :func:`count_matrix`, of all streamlines.
        assignments, weights
            As for :func:`count_matrix`.
        hits : array of int
            Rising positions (from 0) of the streamlines that the lesion cuts.

        Returns
        -------
        Disconnectivity

        Raises
        ------
        ValidationError
            As :func:`count_matrix` and :meth:`make`.
        """
        if full.ndim != 2 or full.shape[0] != full.shape[1]:
            raise ValidationError(f"A matrix of shape {full.shape} is of no parcellation.")
        # Counted where they are compared: to a new process, memory that it touches for the
        # first time is dearer than all the arithmetic.
        parts = np.empty((3, *full.shape))
        parts[0] = 0.0
        _add(assignments, weights, hits, parts[0])
        return cls._compare(full, parts)

    @classmethod
    def _compare(cls, full: NDArray[Any], parts: NDArray[np.float64]) -> Disconnectivity:
        """Fill in what is left and the per cent; ``parts[0]`` is what is lost."""
        from lacuna_nipype.core.matrix_kernels import compare

        full = _without_diagonal(full)
        if not compare(full, ROUNDING, parts):
            raise ValidationError(
                "A lesion cuts more streamlines between two parcels than the whole tractogram "
                "has there; both matrices must come from one tractogram and the same weights."
            )
        return cls(full, *parts)


def _without_diagonal(matrix: NDArray[Any]) -> NDArray[np.float64]:
    whole = np.ascontiguousarray(matrix, np.float64)
    if whole.diagonal().any():
        whole = whole.copy()
        np.fill_diagonal(whole, 0.0)
    return whole


def _percent(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """100 * part / whole, 0 where the whole is 0."""
    share = np.zeros(whole.shape)
    np.divide(part, whole, out=share, where=whole > 0)
    return 100.0 * share


def roi_disconnection(full: NDArray[Any], lesion: NDArray[Any]) -> NDArray[np.float64]:
    """Per cent of every parcel's connections that a lesion cuts.

    Parameters
    ----------
    full, lesion : array, shape (K, K)
        As in :class:`Disconnectivity`; diagonals are left out.

    Returns
    -------
    array, shape (K,), float64
        100 * row sum of lesion / row sum of full; 0 for a parcel without connections.
    """
    matrices = Disconnectivity.make(full, lesion)
    return _percent(matrices.lesion.sum(axis=1), matrices.full.sum(axis=1))


def matrix_statistics(matrices: Disconnectivity, names: Sequence[str]) -> dict[str, Any]:
    """Numbers of a disconnected network for its JSON summary.

    Parameters
    ----------
    matrices : Disconnectivity
    names : sequence of str
        Of the parcels.

    Returns
    -------
    dict
        JSON-safe. Edges are pairs of parcels with at least one streamline (upper triangle), and
        disconnection is averaged over them. The degree of a parcel is its row sum.
        ``Preservation`` is sum(intact) / sum(full). What would be a share of nothing is None.
    """
    exists = np.triu(matrices.full > 0, 1)
    percent = matrices.percent[exists]
    n_edges, n_affected = percent.size, int(np.count_nonzero(matrices.lesion[exists]))
    lost, left = matrices.lesion.sum(axis=1), matrices.intact.sum(axis=1)
    total, worst = float(matrices.full.sum()), int(lost.argmax())
    return {
        "Parcels": len(names),
        "Edges": n_edges,
        "EdgesAffected": n_affected,
        "EdgesAffectedPercent": 100.0 * n_affected / n_edges if n_edges else None,
        "MeanDisconnectionPercent": float(percent.mean()) if n_edges else 0.0,
        "MaximumDisconnectionPercent": float(percent.max()) if n_edges else 0.0,
        "MaximumDegreeLost": float(lost[worst]),
        "ParcelOfMaximumDegreeLost": str(names[worst]) if lost[worst] > 0 else None,
        "MeanIntactDegree": float(left.mean()),
        "Preservation": float(left.sum()) / total if total else None,
    }


def assignment_statistics(
    assignments: NDArray[np.integer[Any]], selected: NDArray[np.integer[Any]]
) -> dict[str, int]:
    """Count the streamlines that have a node at both ends.

    Parameters
    ----------
    assignments : array of int, shape (n_streamlines, 2)
        As for :func:`count_matrix`.
    selected : array of int
        Rising positions of the streamlines that a lesion cuts.

    Returns
    -------
    dict
        ``StreamlinesAssigned`` and ``StreamlinesUnassigned`` of the tractogram,
        ``StreamlinesHitAssigned`` and ``StreamlinesHitUnassigned`` of the lesion. Streamlines
        with both ends in one node are assigned, although no matrix shows them.
    """
    n_streamlines = _n_streamlines(assignments, None)
    chosen = _checked_positions(selected, n_streamlines)
    assigned = _count_assigned(assignments)
    assigned_hit = _count_assigned(assignments.take(chosen, axis=0))
    return {
        "StreamlinesAssigned": assigned,
        "StreamlinesUnassigned": n_streamlines - assigned,
        "StreamlinesHitAssigned": assigned_hit,
        "StreamlinesHitUnassigned": len(chosen) - assigned_hit,
    }


def _count_assigned(pairs: NDArray[np.integer[Any]]) -> int:
    blocks = (pairs[start : start + BLOCK_ROWS] for start in range(0, len(pairs), BLOCK_ROWS))
    return sum(int(np.count_nonzero((b[:, 0] > 0) & (b[:, 1] > 0))) for b in blocks)


@dataclass(frozen=True, eq=False)
class StreamlineGroups:
    """Which streamlines of a tractogram form which bundle.

    A streamline may be in several bundles, or in none.

    Parameters
    ----------
    names : tuple of str
        Of the bundles.
    streamline : array, shape (n_memberships,), int64
        Position (from 0) of a streamline in the tractogram.
    bundle : array, shape (n_memberships,), int32
        Position of its bundle among the names.
    n_streamlines : int
        Streamlines of the whole tractogram.
    """

    names: tuple[str, ...]
    streamline: NDArray[np.int64]
    bundle: NDArray[np.int32]
    n_streamlines: int


@dataclass(frozen=True, eq=False)
class BundleDisconnectionResult:
    """What a lesion takes of bundles; arrays of shape (n_bundles,).

    Parameters
    ----------
    n_streamlines, n_streamlines_hit : array, int64
        Streamlines of the bundle, and those of them that the lesion cuts.
    percent : array, float64
        Per cent of the bundle's streamlines (or of the sum of their weights) that is cut; 0
        for a bundle whose weights are all 0.
    """

    n_streamlines: NDArray[np.int64]
    n_streamlines_hit: NDArray[np.int64]
    percent: NDArray[np.float64]


def bundle_disconnection(
    groups: StreamlineGroups,
    hits: NDArray[np.integer[Any]],
    weights: NDArray[np.floating[Any]] | None = None,
) -> BundleDisconnectionResult:
    """Per cent of every bundle that a lesion cuts.

    Parameters
    ----------
    groups : StreamlineGroups
    hits : array of int
        Rising positions (from 0) of the streamlines that the lesion cuts.
    weights : array, shape (n_streamlines of the tractogram,), optional
        What each streamline counts; 1 otherwise.

    Returns
    -------
    BundleDisconnectionResult
        In the order of the names.

    Raises
    ------
    ValidationError
        A position is not in the tractogram, or weights are not one per streamline.
    """
    if weights is not None and weights.shape != (groups.n_streamlines,):
        raise ValidationError(
            f"There are {weights.size} weights for {groups.n_streamlines} streamlines; both must "
            "come from one tractogram."
        )
    cut = np.zeros(groups.n_streamlines, dtype=bool)
    cut[_checked_positions(hits, groups.n_streamlines)] = True
    n_bundles = len(groups.names)
    count, count_hit = np.zeros(n_bundles, dtype=np.int64), np.zeros(n_bundles, dtype=np.int64)
    total, total_hit = np.zeros(n_bundles), np.zeros(n_bundles)
    for start in range(0, len(groups.streamline), BLOCK_ROWS):
        streamline = groups.streamline[start : start + BLOCK_ROWS]
        bundle = groups.bundle[start : start + BLOCK_ROWS]
        hit = cut[streamline]
        count += np.bincount(bundle, minlength=n_bundles)
        count_hit += np.bincount(bundle[hit], minlength=n_bundles)
        if weights is not None:
            own = weights[streamline].astype(np.float64)
            total += np.bincount(bundle, own, n_bundles)
            # Zeros for what is spared: both sums add in one order, and agree when all is cut.
            total_hit += np.bincount(bundle, own * hit, n_bundles)
    if weights is None:
        total, total_hit = count.astype(np.float64), count_hit.astype(np.float64)
    return BundleDisconnectionResult(count, count_hit, _percent(total_hit, total))


def bundle_statistics(names: Sequence[str], result: BundleDisconnectionResult) -> dict[str, Any]:
    """Numbers of a lesion's bundles for its JSON summary.

    Parameters
    ----------
    names : sequence of str
        Of the bundles.
    result : BundleDisconnectionResult

    Returns
    -------
    dict
        JSON-safe; the most affected bundle is None when none is.
    """
    worst = int(result.percent.argmax())
    affected = result.percent[worst] > 0
    return {
        "Bundles": len(names),
        "BundlesAffected": int(np.count_nonzero(result.n_streamlines_hit)),
        "MaximumBundleDisconnectionPercent": float(result.percent[worst]),
        "BundleOfMaximumDisconnection": str(names[worst]) if affected else None,
    }
