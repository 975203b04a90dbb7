"""TemplateFlow's transforms: what is needed, what is there, and how the rest is fetched.

Everything is looked up offline. Only :func:`fetch_template` uses the network, and only the
command ``lacuna-nipype fetch`` calls it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lacuna_nipype.core.exceptions import LacunaError, ValidationError
from lacuna_nipype.core.spaces import canonical_space, is_warpable, same_space

#: Spaces between which TemplateFlow has transforms, one for each anatomy.
WARPED_SPACES = ("MNI152NLin6Asym", "MNI152NLin2009cAsym")


class TemplateFetchError(LacunaError):
    """A file of TemplateFlow could not be fetched."""


@dataclass(frozen=True)
class TemplateNeed:
    """A file of TemplateFlow that something needs.

    Parameters
    ----------
    kind : {"transform", "brain mask", "atlas"}
    name : str
        Path below TemplateFlow's folder.
    path : Path or None
        Where it is; None where it is missing.
    command : str
        What fetches it.
    spaces : tuple of str
        Spaces that the command names.
    query : tuple of (str, value)
        How TemplateFlow's client finds it, the template first.
    """

    kind: str
    name: str
    path: Path | None
    command: str
    spaces: tuple[str, ...]
    query: tuple[tuple[str, Any], ...]

    @property
    def expected(self) -> Path:
        """Where the file is, or will be."""
        return templateflow_home() / self.name


def templateflow_home() -> Path:
    """Folder of TemplateFlow's files: TEMPLATEFLOW_HOME, else ``~/.cache/templateflow``.

    As in TemplateFlow, XDG_CACHE_HOME takes the place of ``~/.cache``.
    """
    home = os.environ.get("TEMPLATEFLOW_HOME")
    if home:
        return Path(home).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "templateflow"


def find_template(name: str) -> Path | None:
    """Find a file of TemplateFlow on this machine.

    Parameters
    ----------
    name : str
        Path below TemplateFlow's folder.

    Returns
    -------
    Path or None
        None where it is missing, or a placeholder of zero bytes whose content was not fetched.
    """
    path = templateflow_home() / name
    return path if path.is_file() and path.stat().st_size > 0 else None


def fetch_command(spaces: Iterable[str]) -> str:
    """Command that fetches what runs between spaces need."""
    return f"lacuna-nipype fetch templates --for {' '.join(dict.fromkeys(spaces))}"


def template_need(
    kind: str, template: str, name: str, spaces: Sequence[str], **query: Any
) -> TemplateNeed:
    """Look one file up.

    Parameters
    ----------
    kind, spaces
        See :class:`TemplateNeed`.
    template : str
        TemplateFlow's name of the template.
    name : str
        File name in the folder of the template.
    **query
        Entities by which TemplateFlow's client finds it.
    """
    name = f"tpl-{template}/{name}"
    return TemplateNeed(
        kind,
        name,
        find_template(name),
        fetch_command(spaces),
        tuple(spaces),
        (("template", template), *query.items()),
    )


# Transforms


def transform_chain(source: str, target: str) -> list[tuple[str, str]]:
    """List the transforms that take images from one standard space to another.

    Parameters
    ----------
    source, target : str
        Names or aliases of standard spaces.

    Returns
    -------
    list of (from, to)
        In the order in which they are applied to images, by the names in TemplateFlow's files;
        empty for one anatomy, such as 2009a, 2009b and 2009c, where only the grid changes.

    Raises
    ------
    ValidationError
        There is no transform, as for MNIColin27; or a space is unknown.
    """
    if same_space(source, target):
        return []
    for space in (source, target):
        if not is_warpable(space):
            raise ValidationError(
                f"There is no transform between {canonical_space(source)} and "
                f"{canonical_space(target)}; normalise the images to {canonical_space(target)} "
                "from each participant's own scans, or declare it if they are in it."
            )
    return [(_representative(source), _representative(target))]


def _representative(space: str) -> str:
    return next(name for name in WARPED_SPACES if same_space(name, space))


def find_transform(source_space: str, target_space: str) -> Path | None:
    """Find TemplateFlow's transform from one standard space to another on this machine.

    Parameters
    ----------
    source_space, target_space : str
        Names or aliases of two spaces of different anatomy.

    Returns
    -------
    Path or None
        File that takes images of the source to the target, never the opposite one; None where
        it is missing.

    Raises
    ------
    ValidationError
        No transform is needed, or there is none to be had.
    """
    chain = transform_chain(source_space, target_space)
    if not chain:
        raise ValidationError(
            f"{source_space} and {target_space} are one anatomy; only the grid has to change."
        )
    return _transform_need(*chain[0]).path


def _transform_need(source: str, target: str) -> TemplateNeed:
    return template_need(
        "transform",
        target,
        f"tpl-{target}_from-{source}_mode-image_xfm.h5",
        (source, target),
        **{"from": source, "mode": "image", "suffix": "xfm", "extension": ".h5"},
    )


def template_needs(pairs: Iterable[tuple[str, str]]) -> list[TemplateNeed]:
    """List the files that moving images between spaces needs, present or missing.

    Parameters
    ----------
    pairs : iterable of (source, target)
        Names or aliases of standard spaces. Pairs of one anatomy need nothing.

    Returns
    -------
    list of TemplateNeed
        Each file once.

    Raises
    ------
    ValidationError
        See :func:`transform_chain`.
    """
    steps = dict.fromkeys(step for pair in pairs for step in transform_chain(*pair))
    return [_transform_need(*step) for step in steps]


def missing_sentence(needs: Iterable[TemplateNeed]) -> str:
    """Say which files are missing, and the command that fetches them; empty for none."""
    missing = [need for need in needs if need.path is None]
    if not missing:
        return ""
    plural = len(missing) > 1
    spaces = [space for need in missing for space in need.spaces]
    return (
        f"TemplateFlow's {'files' if plural else 'file'} "
        f"{' and '.join(need.name for need in missing)} {'are' if plural else 'is'} missing from "
        f"{templateflow_home()}; run `{fetch_command(spaces)}` where there is a network."
    )


# The network

# First bytes of the files that are fetched, by the end of their names; tables begin with anything
# and are checked when they are read.
_MAGIC = {".h5": b"\x89HDF\r\n\x1a\n", ".nii.gz": b"\x1f\x8b", ".tsv": b""}


def fetch_template(need: TemplateNeed) -> Path:
    """Fetch one file with TemplateFlow's client, which shows its progress.

    Parameters
    ----------
    need : TemplateNeed

    Returns
    -------
    Path

    Raises
    ------
    TemplateFetchError
        The network, the server or the disk fails, or TemplateFlow has no such file. What was
        written of it is removed.
    """
    found = find_template(need.name)
    if found is not None:
        return found
    whole = False
    try:
        _download(**dict(need.query))
        found = find_template(need.name)
        whole = found is not None and _has_right_kind(found)
    except (OSError, RuntimeError) as error:
        # requests' errors are OSErrors; they quote each other at length.
        reason = f"{type(error).__name__}: {error}"
        reason = type(error).__name__ if len(reason) > 150 or "\n" in reason else reason
        raise TemplateFetchError(
            f"{need.name} could not be fetched from TemplateFlow ({reason}); check the network "
            "and run the command again."
        ) from error
    finally:
        # An empty placeholder, as TemplateFlow has it, in the place of half a file.
        if not whole and need.expected.is_file():
            os.truncate(need.expected, 0)
    if not whole:
        what = "knows no such file" if found is None else "was answered with something else"
        raise TemplateFetchError(
            f"{need.name} could not be fetched: TemplateFlow's client {what}; check the network, "
            "or install a newer templateflow."
        )
    return need.expected


def _download(template: str, **entities: Any) -> None:
    # Read when the client is first imported; both must mean one folder.
    os.environ["TEMPLATEFLOW_HOME"] = str(templateflow_home())
    from templateflow import conf

    # The list of files comes with the client, so it is completed without a network.
    conf.update(local=True, overwrite=False, silent=True)
    from templateflow import api

    api.get(template, **entities)


def _has_right_kind(path: Path) -> bool:
    """Tell a file from a server's message that was stored in its place."""
    magic = next(magic for end, magic in _MAGIC.items() if path.name.endswith(end))
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic
