"""Compilation of inner loops by numba; imported only where they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(*, fast: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function; keep the result where numba finds a folder to write to.

    That is the package's own or the user's cache folder. Where neither can be written to, numba
    refuses to cache, and the function is compiled once per process (2 s).

    Parameters
    ----------
    fast : bool
        Let sums be reordered and multiplications and additions be fused. Without it, every
        operation is rounded as written.

    Returns
    -------
    callable
        Decorator. The compiled function gives up Python's lock while it runs.
    """
    # Divisions are not checked for zero: a check would keep loops from running over vectors.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    if fast:
        options["fastmath"] = {"contract", "reassoc", "nsz", "arcp"}

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            return numba.njit(**options)(function)

    return decorate
