"""How many maps of a cohort pass a threshold at every voxel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError


@dataclass(frozen=True)
class Rule:
    """A threshold that a voxel passes or not.

    Parameters
    ----------
    comparison : {"above", "below", "at_least"}
        ``above`` and ``below`` are strict.
    threshold : float
    """

    comparison: Literal["above", "below", "at_least"]
    threshold: float

    def passed(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell where values pass; NaN never does."""
        if self.comparison == "above":
            return np.asarray(values > self.threshold)
        if self.comparison == "below":
            return np.asarray(values < self.threshold)
        return np.asarray(values >= self.threshold)


def count_overlap(
    maps: Iterable[NDArray[Any]], rules: Mapping[str, Rule]
) -> tuple[dict[str, NDArray[np.int32]], int]:
    """Count the maps that pass each rule.

    Parameters
    ----------
    maps : iterable of array
        Of one shape; consumed one by one, so that one is in memory at a time.
    rules : mapping of str to Rule

    Returns
    -------
    counts : dict of str to array of int32
        One volume per rule.
    n : int
        Number of maps.

    Raises
    ------
    ValidationError
        There is no map, or two differ in shape.
    """
    counts: dict[str, NDArray[np.int32]] = {}
    n = 0
    for values in maps:
        if not counts:
            counts = {name: np.zeros(values.shape, dtype=np.int32) for name in rules}
        for name, rule in rules.items():
            if counts[name].shape != values.shape:
                raise ValidationError(
                    f"Map {n + 1} has the shape {values.shape}, the first {counts[name].shape}."
                )
            counts[name] += rule.passed(values)
        n += 1
    if not n:
        raise ValidationError("There is no map to count.")
    return counts, n
