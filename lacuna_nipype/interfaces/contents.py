"""Inputs that name the content which the file of another input must have."""

from __future__ import annotations

from pathlib import Path

from nipype.interfaces.base import isdefined, traits


def fingerprint_trait(of: str) -> traits.Str:
    """Make an input for the content that a file must have before and after it is read."""
    return traits.Str(desc=f"content that the {of} must have before and after it is read")


def fingerprints_trait(of: str) -> traits.List:
    """Make an input for the contents that the first of several files must have, in order."""
    return traits.List(
        traits.Str(),
        desc=f"contents that the first of the {of} must have before and after they are read",
    )


def expect(node, **contents):
    """Say which contents the files of a step must have, as far as they are known.

    Parameters
    ----------
    node : nipype Node
    **contents : str, sequence of str or None
        Fingerprints, by the input that takes them.
    """
    node.inputs.trait_set(**{name: content for name, content in contents.items() if content})


def expect_atlas(node, atlas):
    """Say which contents the image and the names of an atlas must have, as far as known."""
    contents = {name: atlas.get(name) for name in ("fingerprint", "labels_fingerprint")}
    expect(node, **contents)


def unchanged_inputs(inputs, **fields):
    """Hold files to the fingerprints that were given with them, for as long as they are read.

    Parameters
    ----------
    inputs : input spec
    **fields : str
        Name of the input with the fingerprint, by the name of the input with the file; both may
        be lists, the files that have no fingerprint last. Where either is not given, nothing is
        looked at.

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
            contents.update(zip(map(Path, _listed(file)), _listed(content), strict=False))
    return unchanged(contents)


def _listed(value):
    return value if isinstance(value, list) else [value]
