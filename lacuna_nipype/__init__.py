"""Lesion network mapping with Nipype."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    # Imported when it is first used: the command must start fast.
    if name == "run":
        return import_module("lacuna_nipype.api").run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
