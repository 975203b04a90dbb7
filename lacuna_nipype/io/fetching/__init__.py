"""Public connectomes, from their servers to a registered file.

``frame`` holds what every fetch does; ``functional`` and ``structural`` what is particular to a
connectome.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lacuna_nipype.connectomes.public import find_source, sources_file
from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.io.fetching.functional import fetch_gsp1000
from lacuna_nipype.io.fetching.keys import key_is_missing
from lacuna_nipype.io.fetching.places import clean_fetched, default_output_dir, get_fetch_status
from lacuna_nipype.io.fetching.records import (
    FetchConfig,
    FetchProgress,
    FetchResult,
    ProgressCallback,
)
from lacuna_nipype.io.fetching.structural import (
    VARIANTS,
    fetch_dtor985,
    fetch_dtor985_subsample,
    fetch_hcp1065,
)

__all__ = [
    "FetchConfig",
    "FetchProgress",
    "FetchResult",
    "ProgressCallback",
    "clean_fetched",
    "default_output_dir",
    "fetch_connectome",
    "fetch_dtor985",
    "fetch_dtor985_subsample",
    "fetch_gsp1000",
    "fetch_hcp1065",
    "fetcher_of",
    "get_fetch_status",
    "key_is_missing",
]
_FETCHERS: dict[str, Callable[..., FetchResult]] = {
    "gsp1000": fetch_gsp1000,
    "dtor985": fetch_dtor985,
    "hcp1065": fetch_hcp1065,
    **{f"dtor985_{variant}": partial(fetch_dtor985_subsample, variant) for variant in VARIANTS},
}


def fetcher_of(name: str) -> Callable[..., FetchResult]:
    """Find the function that fetches a connectome.

    Parameters
    ----------
    name : str
        Case is ignored.

    Returns
    -------
    callable
        With the folder as its only positional argument.

    Raises
    ------
    ValidationError
        A ValueError: no public connectome has this name, or it is one of the user's own that
        cannot be converted.
    """
    source = find_source(name)
    fetcher = _FETCHERS.get(source.name)
    if fetcher is None:
        raise ValidationError(
            f"{source.name} is in {sources_file()}, but there is no way to convert it; download "
            "it by hand and use `lacuna-nipype connectome register`."
        )
    return fetcher


def fetch_connectome(name: str, output_dir: Path | str, **options: Any) -> FetchResult:
    """Fetch a public connectome by name.

    Parameters
    ----------
    name : str
        As :func:`lacuna_nipype.connectomes.public.list_fetchable_connectomes` has it; case is
        ignored.
    output_dir : path-like
    **options
        Of the function for this connectome, e.g. :func:`fetch_gsp1000`.

    Returns
    -------
    FetchResult

    Raises
    ------
    ValidationError
        A ValueError: no public connectome has this name.
    """
    return fetcher_of(name)(output_dir, **options)
