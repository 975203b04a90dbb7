"""Inputs that name the content which the file of another input must have."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import isdefined, traits


def fingerprint_trait(of: str) -> traits.Str:
    """Make an input for the content that a file must have before and after it is read."""
    return traits.Str(desc=f"content that the {of} must have before and after it is read")


def unchanged_inputs(inputs, **fields):
    """Hold files to the fingerprints that were given with them, for as long as they are read.

    Parameters
    ----------
    inputs : input spec
    **fields : str
        Name of the input with the fingerprint, by the name of the input with the file. Where
        either is not given, nothing is looked at.

    Returns
    -------
    context manager
        See :func:`lacuna_nipype.core.contents.unchanged`.
    """
    from lacuna_nipype.core.contents import unchanged

    contents = {}
    for name, expected in fields.items():
        file, content = getattr(inputs, name), getattr(inputs, expected)
        if isdefined(file) and isdefined(content):
            contents.update({Path(path): content for path in _listed(file)})
    return unchanged(contents)


def _listed(file):
    return file if isinstance(file, list) else [file]
