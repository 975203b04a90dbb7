"""Names of BIDS files: taken apart, put together, and kept within the allowed characters.

The patterns themselves live in ``data/lacuna_bids_config.json``, which pybids reads too, so the
names written here and the names a user queries with pybids cannot drift apart. Nothing in this
module imports pybids: nodes that only write a file should not pay for its index.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.data import load_json

#: Key in a file name -> name of the entity in pybids and in the path patterns.
ENTITY_NAMES: Mapping[str, str] = {
    "sub": "subject",
    "ses": "session",
    "sample": "sample",
    "task": "task",
    "acq": "acquisition",
    "ce": "ceagent",
    "stain": "staining",
    "trc": "tracer",
    "rec": "reconstruction",
    "dir": "direction",
    "run": "run",
    "mod": "modality",
    "echo": "echo",
    "flip": "flip",
    "inv": "inv",
    "mt": "mt",
    "part": "part",
    "proc": "proc",
    "hemi": "hemi",
    "tpl": "template",
    "space": "space",
    "atlas": "atlas",
    "seg": "segmentation",
    "scale": "scale",
    "res": "res",
    "den": "den",
    "label": "label",
    "roi": "roi",
    "model": "model",
    "subset": "subset",
    "stat": "statistic",
    "desc": "desc",
}

_TOKEN = re.compile(
    r"\{(?P<name>\w+)(?:<(?P<allowed>[^>]*)>)?(?:\|(?P<default>[^{}]*))?\}"
    r"|(?P<bracket>[\[\]])"
    r"|(?P<text>[^\[\]{}]+)"
)
_CHUNK = re.compile(r"([a-zA-Z]+)-(.+)")
# Only letters and digits between the dots, so that a dot inside a value does not start it.
_EXTENSION = re.compile(r"(?:\.[a-zA-Z0-9]+)+$")
_LABEL = re.compile(r"[a-zA-Z0-9+]+")


def load_patterns() -> tuple[str, ...]:
    """Read the path patterns of this package's outputs.

    Returns
    -------
    tuple of str
        Patterns in the order in which they are tried.
    """
    return tuple(load_json("lacuna_bids_config.json")["default_path_patterns"])


def build_path(
    entities: Mapping[str, str | None],
    patterns: Sequence[str] | None = None,
) -> str:
    """Build the path of an output, relative to its dataset.

    Parameters
    ----------
    entities : mapping
        Entities by pybids' names (``subject``, ``segmentation``, ``statistic``, ...) or by their
        keys in file names (``sub``, ``seg``, ``stat``, ...). None means absent.
    patterns : sequence of str, optional
        Patterns in the order to try: ``{entity}`` is mandatory, ``{entity<a|b>}`` allows only
        these values, ``{entity<a|b>|a}`` has a default, and ``[...]`` is left out when its
        entity is absent. Default: the patterns of this package.

    Returns
    -------
    str
        Path with forward slashes, from the first pattern whose mandatory entities are given,
        whose values are allowed, and that uses every given entity (an entity left unused would
        let two outputs overwrite each other).

    Raises
    ------
    ValidationError
        No pattern fits, or a value holds characters that BIDS does not allow.

    Examples
    --------
    >>> build_path({"subject": "01", "label": "L", "desc": "snm", "suffix": "stats"})
    'sub-01/anat/sub-01_label-L_desc-snm_stats.json'
    """
    given = _checked(entities)
    for pattern in load_patterns() if patterns is None else patterns:
        path = _fill(pattern, given)
        if path is not None:
            return path
    listed = ", ".join(f"{name}={value}" for name, value in given.items()) or "no entity at all"
    raise ValidationError(
        f"No file name pattern fits {listed}: an entity is missing, has no place in the name, "
        "or has a value that the pattern does not allow."
    )


def sanitize_label(text: str) -> str:
    """Turn any text into a BIDS label.

    Parameters
    ----------
    text : str
        Text such as ``"acute infarct"``.

    Returns
    -------
    str
        Only letters, digits and ``+``; words are joined in camel case (``"acuteInfarct"``),
        accents are dropped. A valid label comes back unchanged.

    Raises
    ------
    ValidationError
        Nothing is left.
    """
    plain = unicodedata.normalize("NFKD", str(text))
    plain = "".join(char for char in plain if not unicodedata.combining(char))
    words = _LABEL.findall(plain)
    if not words:
        raise ValidationError(f"{text!r} holds no letter or digit to make a BIDS label of.")
    return words[0] + "".join(word[0].upper() + word[1:] for word in words[1:])


def parse_entities(name: str) -> dict[str, str]:
    """Take the name of a BIDS file apart.

    Parameters
    ----------
    name : str
        File name; folders before it are ignored.

    Returns
    -------
    dict
        Values by their keys in the name (``sub``, ``ses``, ``label``, ...), then ``suffix`` and
        ``extension`` where the name has them. Of a repeated key, the first value counts.

    Examples
    --------
    >>> parse_entities("sub-01_label-L_mask.nii.gz")
    {'sub': '01', 'label': 'L', 'suffix': 'mask', 'extension': '.nii.gz'}
    """
    stem, extension = split_extension(name)
    chunks = stem.split("_")
    entities: dict[str, str] = {}
    for chunk in chunks:
        match = _CHUNK.fullmatch(chunk)
        if match:
            entities.setdefault(match[1], match[2])
    if chunks[-1] and "-" not in chunks[-1]:
        entities["suffix"] = chunks[-1]
    if extension:
        entities["extension"] = extension
    return entities


def split_extension(name: str) -> tuple[str, str]:
    """Split a file name before its extension, however many dots that has.

    Parameters
    ----------
    name : str
        File name; folders before it are dropped.

    Returns
    -------
    stem, extension : str
        Such as ``("sub-01_mask", ".nii.gz")``.
    """
    base = re.split(r"[/\\]", name)[-1]
    match = _EXTENSION.search(base, 1)
    return (base[: match.start()], match[0]) if match else (base, "")


def is_label(text: str) -> bool:
    """Tell whether a text is a valid BIDS label.

    Parameters
    ----------
    text : str
        Text to look at.

    Returns
    -------
    bool
        Whether it holds letters, digits and ``+`` only, and at least one.
    """
    return _LABEL.fullmatch(text) is not None


def _checked(entities: Mapping[str, str | None]) -> dict[str, str]:
    """Entities by long name, absent ones dropped, values safe inside a path."""
    given: dict[str, str] = {}
    for key, raw in entities.items():
        if raw is None:
            continue
        name, value = ENTITY_NAMES.get(key, key), str(raw)
        if name == "extension":
            value = "." + value.lstrip(".")
            valid = _EXTENSION.fullmatch(value) is not None
        else:
            valid = is_label(value)
        if not valid:
            raise ValidationError(
                f"{value!r} cannot be the {name} in a file name: only letters, digits and + are "
                "allowed there."
            )
        if given.setdefault(name, value) != value:
            raise ValidationError(f"The {name} is given twice: {given[name]!r} and {value!r}.")
    return given


def _fill(pattern: str, given: Mapping[str, str]) -> str | None:
    """Put the entities into a pattern; None when it does not fit."""
    done: list[str] = []
    used: set[str] = set()
    # Text and entities of the optional part being read; None outside of one.
    part: list[str] | None = None
    part_names: list[str] = []
    for token in _TOKEN.finditer(pattern):
        if token["bracket"] == "[":
            part, part_names = [], []
            continue
        if token["bracket"] == "]":
            if part_names and all(name in given for name in part_names):
                done.extend(part or [])
                used.update(part_names)
            part = None
            continue
        name = token["name"]
        if name is None:
            text = token["text"]
        elif name in given:
            if token["allowed"] and given[name] not in token["allowed"].split("|"):
                return None
            text = given[name]
        elif part is not None:
            text = ""
        elif token["default"] is not None:
            text = token["default"]
        else:
            return None
        if part is None:
            done.append(text)
            if name is not None:
                used.add(name)
        else:
            part.append(text)
            if name is not None:
                part_names.append(name)
    return "".join(done) if used >= set(given) else None
