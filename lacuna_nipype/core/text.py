"""Reading numbers out of text that anybody may have written."""

from __future__ import annotations

# More digits than any count or label has; Python itself refuses some thousands.
_MOST_DIGITS = 18


def whole_number(text: str) -> int | None:
    """Read a whole number that is not negative.

    Parameters
    ----------
    text : str

    Returns
    -------
    int or None
        None unless the text is of 1 to 18 digits from 0 to 9.
    """
    if not text.isascii() or not text.isdigit() or len(text) > _MOST_DIGITS:
        return None
    return int(text)
