"""Specifications shipped with the package."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def load_json(name: str) -> Any:
    """Read one of the package's JSON specifications.

    Parameters
    ----------
    name : str
        File name, such as ``"spaces.json"``.

    Returns
    -------
    object
        The parsed content, shared between callers: do not change it.
    """
    return json.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def load_text(name: str) -> str:
    """Read one of the package's texts, such as a template or the bibliography.

    Parameters
    ----------
    name : str
        File name, such as ``"boilerplate.bib"``.

    Returns
    -------
    str
    """
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
