"""Names compared the way people misspell them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from lacuna_nipype.core.text import whole_number

MOST_NAMES = 5


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Key that sorts text with numbers by their value: 100 before 1000, 200 before 1000."""
    parts = re.split(r"(\d+)", text.casefold())
    numbers = [(part, whole_number(part)) for part in parts if part]
    return [(1, part) if number is None else (0, number) for part, number in numbers]


def nearest_names(wanted: str, names: Sequence[str], most: int = MOST_NAMES) -> list[str]:
    """List the names most like a wanted one, for a message.

    Parameters
    ----------
    wanted : str
    names : sequence of str
    most : int

    Returns
    -------
    list of str
        Nearest first; names that contain the wanted one count as near. The first ones in natural
        order where none is near.
    """
    spelled = {name.casefold(): name for name in names}
    low = wanted.casefold()
    near = difflib.get_close_matches(low, spelled, n=most, cutoff=0.6)
    inside = sorted((name for name in spelled if low and low in name), key=natural_key)
    found = list(dict.fromkeys([*near, *inside]))
    return [spelled[name] for name in (found or sorted(spelled, key=natural_key))[:most]]
