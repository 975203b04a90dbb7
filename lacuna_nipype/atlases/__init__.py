"""Parcellations: labels, spaces and where they come from.

The functions of the catalogue can be imported from here. They are loaded when they are first
used, so that importing this package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "bundle": ("Bundle", "BundleError", "bundle_atlas"),
    "entries": (
        "AtlasEntry",
        "AtlasFiles",
        "AtlasNotFound",
        "AtlasSource",
        "IntegrityError",
        "SourceUnavailable",
        "SpaceMismatch",
    ),
    "resample": ("ResampledRegions",),
    "services": (
        "SpaceEntry",
        "fetch_parcellation",
        "find_run_atlases",
        "get_atlas",
        "list_atlases",
        "list_regions",
        "list_spaces",
        "map_info",
        "region_mask",
        "register_atlas",
        "resample_parcellation",
        "unregister_atlas",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
