"""Threads of libraries of linear algebra: as many as a step was given, not as there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# What OpenMP, OpenBLAS and MKL look at when they are loaded.
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def limited_threads(n_threads: int) -> Iterator[None]:
    """Keep libraries, those loaded now and those loaded later, to a number of threads.

    Parameters
    ----------
    n_threads : int
    """
    from threadpoolctl import threadpool_limits

    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(dict.fromkeys(VARIABLES, str(n_threads)))
    try:
        with threadpool_limits(limits=n_threads):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
