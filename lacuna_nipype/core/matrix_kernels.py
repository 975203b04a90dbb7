"""The compiled inner loops over matrices of connections; imported only where they run.

All matrices are C-contiguous, (K, K) and float64.
"""

from __future__ import annotations

from typing import Any

from lacuna_nipype.core.compiling import compiled

# What a loop over streamlines or cells ran into.
FINE, NODE, POSITION, ORDER = 0, 1, 2, 3


@compiled()
def add_streamlines(pairs: Any, weights: Any, sums: Any) -> int:
    """Add streamlines to the cells of their two nodes; with no weights, 1 each."""
    n_nodes = sums.shape[0]
    for i in range(pairs.shape[0]):
        one, other = pairs[i, 0], pairs[i, 1]
        if one < 0 or other < 0 or one > n_nodes or other > n_nodes:
            return NODE
        if one != other and one > 0 and other > 0:
            weight = weights[i] if weights.size else 1.0
            sums[one - 1, other - 1] += weight
            sums[other - 1, one - 1] += weight
    return FINE


@compiled()
def add_selected(pairs: Any, weights: Any, selected: Any, sums: Any) -> int:
    """As :func:`add_streamlines`, of the streamlines at rising positions."""
    n_nodes, n_streamlines = sums.shape[0], pairs.shape[0]
    last = -1
    for k in range(selected.size):
        i = selected[k]
        if i < 0 or i >= n_streamlines:
            return POSITION
        if i <= last:
            return ORDER
        last = i
        one, other = pairs[i, 0], pairs[i, 1]
        if one < 0 or other < 0 or one > n_nodes or other > n_nodes:
            return NODE
        if one != other and one > 0 and other > 0:
            weight = weights[i] if weights.size else 1.0
            sums[one - 1, other - 1] += weight
            sums[other - 1, one - 1] += weight
    return FINE


@compiled()
def compare(full: Any, rounding: float, parts: Any) -> bool:
    """Fill (3, K, K), which begins with what is lost, with what is left and lost in per cent.

    Returns whether that can be: no more is lost than there is.
    Diagonals are 0. A cell of which no more than a share is left is lost entirely.
    """
    possible = True
    for i in range(full.shape[0]):
        for j in range(full.shape[0]):
            whole, lost = full[i, j], parts[0, i, j]
            if i == j:
                whole = lost = 0.0
            left = whole - lost
            if left < -1e-6 * whole:
                possible = False
            if left <= rounding * whole:
                lost = whole
            parts[0, i, j] = lost
            parts[1, i, j] = whole - lost
            parts[2, i, j] = 100.0 * (lost / whole) if whole > 0.0 else 0.0
    return possible
