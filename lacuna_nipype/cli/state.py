"""The record that an output folder keeps of each lesion: what was begun, and what was stored.

For every lesion a small file in ``logs/state`` says of each analysis whether it was begun or
completed, with a signature of all that its results depend on, and what its files were when it was
completed. A run that is killed leaves "begun", so nothing half-written is taken for a result; a
file that was changed since is not taken for one either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lacuna_nipype.core.files import fingerprint, read_json_object, write_json
from lacuna_nipype.io.derivatives import dataset_lock, earlier_outputs
from lacuna_nipype.io.lesions import Lesion
from lacuna_nipype.io.naming import ENTITY_NAMES, parse_entities

BEGUN, COMPLETE = "begun", "complete"
# The lesion's mask, which all analyses share, has entries of its own among theirs.
MASK = "lesion"
_SUFFIXES = ("mask", "statmap", "parcelstats", "stats", "relmat", "tractography")
# What tells lesions apart, whatever is made of them.
_IDENTITY = ("subject", "session", "acquisition", "run", "label")


@dataclass(frozen=True)
class Stored:
    """What is known of an analysis of a lesion.

    Parameters
    ----------
    state : {"begun", "complete"}
    signature : str
        From :func:`lacuna_nipype.cli.recovery.lesion_signatures`; of the mask, from
        :func:`mask_signature`.
    files : mapping of str to list
        By path relative to the output folder: size in bytes, time of the last change in ns, and
        fingerprint of each file; empty unless complete.
    """

    state: str
    signature: str
    files: Mapping[str, list[Any]] = field(default_factory=dict)

    def is_complete(self, signature: str) -> bool:
        """Tell whether results with this signature were completed."""
        return (self.state, self.signature) == (COMPLETE, signature)


def read_state(output_dir: Path, key: str) -> dict[str, Stored]:
    """Read what is known of a lesion.

    Parameters
    ----------
    output_dir : Path
    key : str
        Text that identifies the lesion.

    Returns
    -------
    dict of str to Stored
        By analysis. A damaged file says nothing, so the lesion is done again.
    """
    content = read_json_object(_state_file(output_dir, key))
    return {name: Stored(*entry) for name, entry in content.items() if _is_entry(name, entry)}


def _is_entry(name: str, entry: Any) -> bool:
    return (
        (not name.startswith(MASK) or len(name.split()) == 3)
        and isinstance(entry, list)
        and len(entry) == 3
        and all(isinstance(text, str) for text in entry[:2])
        and isinstance(entry[2], dict)
    )


def mask_entry(lesion: Lesion) -> str:
    """Name the entry of a lesion's mask: the space it was drawn in, and that it is brought to.

    Parameters
    ----------
    lesion : Lesion

    Returns
    -------
    str
        Three words. Masks of one lesion drawn in two spaces are two drawings, and a mask in the
        participant's own space may be brought to several.
    """
    return f"{MASK} {lesion.record.space} {lesion.space}"


def mask_signature(lesion: Lesion) -> str:
    """Sign what a lesion itself is: how it was drawn, and how it was brought to its space.

    Parameters
    ----------
    lesion : Lesion

    Returns
    -------
    str
        Two fingerprints with a dot between: of the mask, and of the transforms.
    """
    transforms = "\n".join(fingerprint(path) for path in lesion.normalisation)
    brought = hashlib.sha256(transforms.encode()).hexdigest()
    return f"{fingerprint(lesion.record.path)}.{brought}"


def other_masks(known: Mapping[str, Stored], entry: str, signature: str) -> dict[str, str]:
    """Find what is known of a mask that was another one.

    Parameters
    ----------
    known : mapping of str to Stored
        From :func:`read_state`.
    entry, signature : str
        From :func:`mask_entry` and :func:`mask_signature`, of the mask as it is.

    Returns
    -------
    dict of str to str
        Entries of other content with what is to be said of them now. Where the mask was drawn
        again, these are the entries of all spaces that it was brought to.
    """
    drawn, _, brought = signature.partition(".")
    space = entry.split()[1]
    found = {}
    for name, stored in known.items():
        if not name.startswith(MASK) or name.split()[1] != space:
            continue
        before, _, brought_before = stored.signature.partition(".")
        if before != drawn or (name == entry and brought_before != brought):
            found[name] = signature if name == entry else f"{drawn}.{brought_before}"
    return found


def note_state(output_dir: Path, key: str, analyses: Mapping[str, Stored]) -> None:
    """Write what is known of some analyses of a lesion; what was known of others stays.

    Parameters
    ----------
    output_dir : Path
    key : str
    analyses : mapping of str to Stored
    """
    path = _state_file(output_dir, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another run may note other analyses of the lesion at this moment.
    with dataset_lock(output_dir):
        known = {**read_state(output_dir, key), **analyses}
        content = {name: [each.state, each.signature, each.files] for name, each in known.items()}
        write_json(path, content, indent=None)


def _state_file(output_dir: Path, key: str) -> Path:
    return output_dir / "logs" / "state" / f"{key}.json"


def describe_files(output_dir: Path, paths: Iterable[str]) -> dict[str, list[Any]]:
    """Say what files are, so that a later change can be told.

    Parameters
    ----------
    output_dir : Path
    paths : iterable of str
        Relative to the output folder.

    Returns
    -------
    dict of str to list
        As in :class:`Stored`.
    """
    described = {}
    for path in paths:
        status = (output_dir / path).stat()
        described[path] = [status.st_size, status.st_mtime_ns, fingerprint(output_dir / path)]
    return described


def changed_files(
    output_dir: Path, paths: Iterable[str], known: Mapping[str, list[Any]]
) -> Iterator[str]:
    """Give the files that are missing, or are not what was stored.

    Parameters
    ----------
    output_dir : Path
    paths : iterable of str
        Relative to the output folder.
    known : mapping of str to list
        From :func:`describe_files`; a file that it does not name has to be there and hold
        something. A file is read only when it has the size and not the time, as in a copy.

    Yields
    ------
    str
    """
    for path in paths:
        target = output_dir / path
        try:
            status = target.stat()
            size, time, content = known.get(path) or (status.st_size, status.st_mtime_ns, None)
            same_size = 0 < status.st_size == size
            if same_size and (status.st_mtime_ns == time or fingerprint(target) == content):
                continue
        except (OSError, ValueError, TypeError):
            pass
        yield path


def results_of(output_dir: Path, lesion: Lesion, analysis: str) -> set[str]:
    """Find all results of an analysis of a lesion, whatever run made them.

    Parameters
    ----------
    output_dir : Path
    lesion : Lesion
    analysis : str

    Returns
    -------
    set of str
        Paths relative to the output folder, without figures.
    """
    wanted = {name: lesion.entities.get(name) for name in _IDENTITY}
    found = set()
    for path in earlier_outputs(output_dir, lesion.record.key):
        named = parse_entities(path.name)
        entities = {ENTITY_NAMES.get(key, key): value for key, value in named.items()}
        same = all(entities.get(name) == value for name, value in wanted.items())
        ours = entities.get("desc") == analysis and entities.get("suffix") in _SUFFIXES
        if same and ours and path.parent.name != "figures":
            found.add(path.relative_to(output_dir).as_posix())
    return found
