"""Graphs: one scientific step per builder; composers only connect."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = {
    "init_afnm_wf": "afnm",
    "init_damage_wf": "damage",
    "init_fnm_wf": "fnm",
    "init_group_wf": "group",
    "init_lacuna_wf": "base",
    "init_lesion_wf": "lesion",
    "init_mask_wf": "mask",
    "init_output_wf": "outputs",
    "init_parcellate_wf": "parcellate",
    "init_pass_wf": "passes",
    "init_snm_wf": "snm",
    "init_tractogram_wf": "snm",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
