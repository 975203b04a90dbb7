"""Find the lesion masks of a study, before any graph is built.

pybids indexes the folders and owns the vocabulary of entities. The values are read from each
file's path *below its dataset*, because pybids matches its patterns on the absolute path: a
study kept in ``/data/sub-07/study`` would otherwise belong to subject 07 as a whole.

Everything that would make a run wrong in silence is an error here (names that cannot be told
apart, contradicting spaces, misspelt participants); everything that was decided for the user is
returned as a notice, for the command line to print.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lacuna_nipype.core.exceptions import BidsError, ValidationError
from lacuna_nipype.core.files import read_json
from lacuna_nipype.core.spaces import same_space
from lacuna_nipype.io.naming import (
    ENTITY_NAMES,
    is_label,
    parse_entities,
    sanitize_label,
    split_extension,
)

_OWN_NAME = "lacuna-nipype"
_IMAGES = (".nii.gz", ".nii")
_MASK_SUFFIXES = ("mask", "roi")
_FALLBACK_LABEL = "L"  # reserved for lesions by BIDS

# BIDS' common labels of tissue. The short ones count only as BIDS writes them: a lesion may well
# be called label-st (stroke), and no tissue is.
_TISSUE_WORDS = {"brain", "brainmask", "head", "gm", "wm", "csf", "cgm", "sgm", "cbm"}
_TISSUE_CODES = {"BG", "BS", "B", "ST", "NB"}

_DATATYPES_SEARCHED = ("anat", "dwi")
_DATATYPES_SKIPPED = (
    *("func", "fmap", "perf", "meg", "eeg", "ieeg", "beh", "pet"),
    *("micr", "motion", "mrs", "nirs"),
)
_FOLDERS_SKIPPED = (
    *("figures", "log", "logs", "work", "code", "stimuli", "sourcedata", "models"),
    "derivatives",
)

# Entities that say where or when a mask was drawn, not what it shows: filtering by them is no
# statement that the file is a lesion.
_PLACE_ENTITIES = {"subject", "session", "run", "space", "res", "datatype", "extension"}
_FILTER_ENTITIES = {*ENTITY_NAMES.values(), "suffix", "extension", "datatype"}

_TEMPLATE = re.compile(r"(?<![a-zA-Z0-9])tpl-([a-zA-Z0-9+]+)")
_KNOWN_SPACE = re.compile(
    r"(?<![a-zA-Z0-9])(MNI152NLin2009[abc](?:Asym|Sym)|MNI152NLin6(?:Asym|Sym)|MNI152Lin"
    r"|MNI305|MNIColin27|MNIInfant|MNIPediatricAsym|NKI|OASIS30ANTs)(?![a-zA-Z0-9])"
)
# FSL's own names of its template, which is MNI152NLin6Asym.
_FSL_TEMPLATE = re.compile(r"(?<![a-zA-Z0-9])MNI152_T1_(?:0\.5|1|2)mm")


@dataclass(frozen=True)
class LesionRecord:
    """One lesion mask and what its name and sidecar say about it.

    Attributes
    ----------
    path : pathlib.Path
        The image, absolute; symbolic links are kept.
    subject, session, acquisition, run : str or None
        Labels without their keys (``"01"``, not ``"sub-01"``).
    label : str
        Name of the lesion in every output: ``label-``, else ``desc-``, else ``L``.
    space : str or None
        Declared space, as written; None when nothing declares it.
    space_source : str
        What declared it: ``"entity"``, ``"sidecar"``, ``"mask-space"``, or ``""``.
    dataset : str
        ``"raw"`` or the name of the derivatives dataset.
    root : pathlib.Path
        Folder of that dataset.
    sidecar : dict
        JSON metadata, inherited values included.
    problem : str
        Why the mask cannot be used whatever its voxels are (its name and sidecar contradict each
        other, or the sidecar is damaged), in one sentence that names it; empty for no reason.
    """

    path: Path
    subject: str
    session: str | None
    label: str
    acquisition: str | None
    run: str | None
    space: str | None
    space_source: str
    dataset: str
    root: Path
    sidecar: dict[str, Any] = field(default_factory=dict, hash=False)
    problem: str = ""

    @property
    def key(self) -> str:
        """Text that no other mask of the run has, such as ``sub-01_ses-01_label-L``."""
        parts = (
            ("sub", self.subject),
            ("ses", self.session),
            ("acq", self.acquisition),
            ("run", self.run),
            ("label", self.label),
        )
        return "_".join(f"{name}-{value}" for name, value in parts if value is not None)

    @property
    def entities(self) -> dict[str, str]:
        """Entities for :func:`lacuna_nipype.io.naming.build_path`; absent ones are left out."""
        values = {
            "subject": self.subject,
            "session": self.session,
            "acquisition": self.acquisition,
            "run": self.run,
            "space": self.space,
            "label": self.label,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Collection:
    """The masks of a run.

    Attributes
    ----------
    records : tuple of LesionRecord
        Sorted by key.
    notices : tuple of str
        Decisions that the user should see, one sentence each.
    """

    records: tuple[LesionRecord, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class _Root:
    """A dataset to search."""

    path: Path
    name: str
    is_raw: bool = False


@dataclass(frozen=True)
class _Image:
    """An image file, with its entities by pybids' names."""

    path: Path
    root: _Root
    entities: dict[str, str]

    @property
    def is_mask(self) -> bool:
        return self.entities.get("suffix") in _MASK_SUFFIXES


@dataclass(frozen=True)
class _Choice:
    """What the user asked for, normalised."""

    subjects: tuple[str, ...]
    sessions: tuple[str, ...]
    pattern: str | None
    filters: Mapping[str, tuple[Any, ...]]

    @property
    def relaxed(self) -> bool:
        """Whether the user said which files are lesions, so that their names need not."""
        return self.pattern is not None or bool(set(self.filters) - _PLACE_ENTITIES)

    def takes(self, image: _Image) -> bool:
        """Tell whether an image is a lesion mask that was asked for (in any session)."""
        entities = image.entities
        if self.subjects and entities.get("subject") not in self.subjects:
            return False
        if "suffix" not in self.filters and not image.is_mask:
            return False
        if is_tissue(entities):
            return False
        if self.pattern is not None and not _matches(image.path.name, self.pattern):
            return False
        if not all(_allowed(entities.get(key), want) for key, want in self.filters.items()):
            return False
        return self.relaxed or _is_named_lesion(entities)


def collect_masks(
    bids_dir: str | os.PathLike[str],
    *,
    derivatives: Mapping[str, Path] | None = None,
    participant_label: Sequence[str] | str | None = None,
    session_label: Sequence[str] | str | None = None,
    pattern: str | None = None,
    bids_filters: Mapping[str, Any] | None = None,
    exclude: Sequence[Path] = (),
    mask_space: str | None = None,
) -> Collection:
    """Find the lesion masks of a BIDS dataset and of its derivatives.

    Parameters
    ----------
    bids_dir : path-like
        Dataset, raw or derivative. Where neither it nor ``derivatives`` holds a mask, its own
        ``derivatives/*`` are searched.
    derivatives : mapping of str to path, optional
        Further datasets by name. A mask that is in ``bids_dir`` too is taken from here.
    participant_label, session_label : sequence of str, optional
        Labels to keep, with or without ``sub-`` and ``ses-``. Default: all.
    pattern : str, optional
        Glob on the file name, with or without its extension. It narrows the search, and masks
        that it matches need neither ``label-`` nor ``desc-`` to count as lesions.
    bids_filters : mapping, optional
        Entities and their values as in the ``lesion`` query of a filter file: None means absent,
        ``"*"`` any value, a list any of its values.
    exclude : sequence of path, optional
        Folders that are never searched: those of outputs and of intermediate results.
    mask_space : str, optional
        Space of all masks, whatever their names and sidecars say.

    Returns
    -------
    Collection
        Masks and notices.

    Raises
    ------
    BidsError
        Nothing was found, a participant or session does not exist, or names contradict.
    ValidationError
        The filter names an unknown entity.

    Notes
    -----
    Without ``pattern`` and filters a mask is a lesion when its suffix is ``mask`` or ``roi``, and
    it either has a ``label-`` that names no tissue, or a ``desc-`` that contains "lesion", or the
    suffix ``roi``. Brain and tissue masks are never lesions. Datasets written by lacuna-nipype
    are searched only when named in ``derivatives``.
    """
    bids_root = _folder(bids_dir, "The dataset")
    named = tuple(
        _Root(_folder(path, f"The derivatives dataset {name!r}"), name)
        for name, path in (derivatives or {}).items()
    )
    choice = _Choice(
        _labels(participant_label, "sub-"),
        _labels(session_label, "ses-"),
        pattern,
        _normalised_filters(bids_filters or {}),
    )
    excluded = tuple(_real(path) for path in exclude)
    notices: list[str] = []

    roots = list(named)
    if _real(bids_root) not in {_real(root.path) for root in named}:
        if _is_own(bids_root):
            notices.append(
                f"{bids_root} was written by lacuna-nipype and not searched; name it in "
                "--derivatives to analyse its masks."
            )
        else:
            roots.insert(0, _Root(bids_root, "raw", is_raw=True))
    fallback = _derivatives_within(bids_root, roots, excluded)
    _check_participants(choice, [*roots, *fallback], bids_root)

    images = [image for root in roots for image in _index(root, choice, excluded)]
    chosen = _choose(images, choice)
    searched = roots
    if not chosen and fallback:
        more = [image for root in fallback for image in _index(root, choice, excluded)]
        images += more
        chosen = _choose(more, choice)
        searched = [*roots, *fallback]
        if chosen:
            names = ", ".join(dict.fromkeys(image.root.name for image in chosen))
            notices.append(
                f"No lesion mask in {bids_root} itself; those of its derivatives are used "
                f"({names})."
            )
    _check_sessions(choice, searched, images)
    if not chosen:
        raise BidsError(_nothing_found(bids_root, searched, images, choice, notices))

    _check_names(chosen)
    _check_twins(chosen)
    _check_content(chosen)
    chosen = _prefer_derivatives(chosen, notices)
    _check_collisions(chosen)
    records = _records(chosen, mask_space, notices)

    wanted = set(choice.subjects) or set().union(*(_subjects(root) for root in searched))
    missing = sorted(wanted - {record.subject for record in records})
    if missing:
        notices.append(
            f"No lesion mask for {_count(missing, 'participant')}: "
            f"{_sample(f'sub-{name}' for name in missing)}."
        )
    _note_left_out(images, choice, notices)
    return Collection(tuple(sorted(records, key=lambda record: record.key)), tuple(notices))


def single_mask_record(
    path: str | os.PathLike[str],
    mask_space: str | None = None,
) -> LesionRecord:
    """Describe one mask given in place of a dataset.

    Parameters
    ----------
    path : path-like
        NIfTI file. A BIDS-like name (``sub-...``) is taken apart; of any other name, the part
        before the extension becomes the subject.
    mask_space : str, optional
        Space of the mask, whatever its name and sidecar say.

    Returns
    -------
    LesionRecord
        The mask.

    Raises
    ------
    ValidationError
        The file is missing or no NIfTI file by its name.
    """
    mask = _absolute(path)
    if not mask.name.endswith(_IMAGES):
        raise ValidationError(f"{mask} is no NIfTI file: its name must end in .nii or .nii.gz.")
    if mask.is_symlink() and not mask.exists():
        raise BidsError(_no_content([mask]))
    if not mask.is_file():
        raise ValidationError(f"The mask {mask} does not exist.")
    stem, _ = split_extension(mask.name)
    folder = next((parent for parent in mask.parents if parent.name.startswith("sub-")), None)
    in_dataset = stem.startswith("sub-") and folder is not None
    root = folder.parent if in_dataset and folder is not None else mask.parent
    image = _image(mask, _Root(root, "raw", is_raw=True))
    if "subject" not in image.entities:
        image.entities["subject"] = sanitize_label(stem)
    _check_names([image])
    return _records([image], mask_space, [])[0]


def read_bids_filter_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the ``lesion`` query of a filter file in fMRIPrep's format.

    Parameters
    ----------
    path : path-like
        JSON file ``{"lesion": {"session": "01", "desc": null}}``. Other queries (``t1w``,
        ``bold``, ...) are ignored, so that one file can serve several programs.

    Returns
    -------
    dict
        Entities and values for :func:`collect_masks`; empty when there is no such query.

    Raises
    ------
    ValidationError
        The file cannot be read, is no JSON object, or holds what is no filter.
    """
    try:
        content = read_json(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValidationError(f"The filter file {path} cannot be read: {error}.") from error
    except ValueError as error:
        raise ValidationError(f"The filter file {path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValidationError(f'The filter file {path} must hold an object {{"lesion": ...}}.')
    query = content.get("lesion")
    if query is None:
        # A misspelt query would otherwise be ignored like another program's.
        close = difflib.get_close_matches("lesion", [key.lower() for key in content], cutoff=0.8)
        if close and "lesion" not in content:
            raise ValidationError(
                f'The filter file {path} has a query like {close[0]!r} but none called "lesion".'
            )
        return {}
    if not isinstance(query, dict):
        raise ValidationError(f'The query "lesion" in {path} must be an object of entities.')
    try:
        _normalised_filters(query)
    except ValidationError as error:
        raise ValidationError(f"In the filter file {path}: {error}") from error
    return query


# --- what was asked for ---------------------------------------------------------------------


def _labels(labels: Sequence[str] | str | None, prefix: str) -> tuple[str, ...]:
    """Labels without their key, each once."""
    listed = [labels] if isinstance(labels, str) else list(labels or ())
    return tuple(dict.fromkeys(str(label).removeprefix(prefix) for label in listed))


def _normalised_filters(filters: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Name entities as pybids does, and list the values that each may have."""
    normalised: dict[str, tuple[Any, ...]] = {}
    for key, wanted in filters.items():
        name = ENTITY_NAMES.get(key, key)
        if name not in _FILTER_ENTITIES:
            close = difflib.get_close_matches(name, sorted(_FILTER_ENTITIES), n=3)
            advice = f"did you mean {' or '.join(close)}?" if close else "use a BIDS entity."
            raise ValidationError(f"The BIDS filter names an unknown entity {key!r}: {advice}")
        values = wanted if isinstance(wanted, list | tuple) else [wanted]
        for value in values:
            if isinstance(value, bool) or not (value is None or isinstance(value, str | int)):
                raise ValidationError(
                    f"The BIDS filter for {key!r} must be a text, a number, null, or a list of "
                    f"them, not {value!r}."
                )
        if name == "extension":
            values = [v if v in (None, "*") else "." + str(v).lstrip(".") for v in values]
        elif name in ("subject", "session"):
            values = [v if v is None else str(v).removeprefix(f"{name[:3]}-") for v in values]
        normalised[name] = tuple(values)
    return normalised


def _allowed(value: str | None, wanted: tuple[Any, ...]) -> bool:
    """Tell whether one of the wanted values of an entity is there (None: absent, "*": any)."""
    for want in wanted:
        if want is None or value is None:
            if want is None and value is None:
                return True
        elif isinstance(want, int):  # 1 is run-01 too
            if value.isdecimal() and int(value) == want:
                return True
        elif want in ("*", value):
            return True
    return False


def _matches(name: str, pattern: str) -> bool:
    """Tell whether a glob matches a file name or the part before its extension."""
    return fnmatchcase(name, pattern) or fnmatchcase(split_extension(name)[0], pattern)


def is_tissue(entities: Mapping[str, str]) -> bool:
    """Tell whether a mask shows the brain or a tissue.

    Parameters
    ----------
    entities : mapping of str to str
        ``label`` and ``desc`` decide.

    Returns
    -------
    bool
    """
    named = [entities[key] for key in ("label", "desc") if key in entities]
    return any(name in _TISSUE_CODES or name.casefold() in _TISSUE_WORDS for name in named)


def _is_named_lesion(entities: Mapping[str, str]) -> bool:
    """Tell whether the name alone makes a mask (that shows no tissue) a lesion."""
    if "label" in entities or entities.get("suffix") == "roi":
        return True
    return "lesion" in entities.get("desc", "").casefold()


def _choose(images: Iterable[_Image], choice: _Choice) -> list[_Image]:
    return [
        image
        for image in images
        if choice.takes(image)
        and (not choice.sessions or image.entities.get("session") in choice.sessions)
    ]


# --- datasets -------------------------------------------------------------------------------


def _folder(path: str | os.PathLike[str], what: str) -> Path:
    folder = _absolute(path)
    if not folder.exists():
        raise BidsError(f"{what} {folder} does not exist.")
    if not folder.is_dir():
        raise BidsError(f"{what} {folder} is not a folder.")
    return folder


def _absolute(path: str | os.PathLike[str]) -> Path:
    """Make a path absolute without following links: datalad's lead into its own storage."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _real(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(path))


def _description(root: Path) -> dict[str, Any]:
    """Read the dataset's description; empty where there is none that can be read."""
    path = root / "dataset_description.json"
    if path.exists() and not path.is_file():
        raise BidsError(f"{path} is no ordinary file; remove it or put the description there.")
    try:
        content = read_json(path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}  # masks are found by their names; a broken description need not stop a run
    except ValueError as error:
        raise BidsError(f"{path} holds {error}; write the description again.") from error
    generated = content.get("GeneratedBy", []) if isinstance(content, dict) else None
    if not isinstance(generated, list) or not all(isinstance(item, dict) for item in generated):
        # pybids stops at these with an error that does not name the file.
        raise BidsError(
            f"{path} must hold a JSON object, whose GeneratedBy (if any) is a list of objects."
        )
    return content


def _is_own(root: Path) -> bool:
    generated = _description(root).get("GeneratedBy", [])
    return any(str(item.get("Name", "")).casefold() == _OWN_NAME for item in generated)


def _derivatives_within(
    bids_root: Path, roots: Sequence[_Root], excluded: Sequence[Path]
) -> list[_Root]:
    """List the datasets in ``derivatives/`` with participants, without our own output."""
    parent = bids_root / "derivatives"
    taken = {_real(root.path) for root in roots}
    found = []
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        real = _real(path)
        if not path.is_dir() or path.name.startswith(".") or real in taken:
            continue
        if any(real == folder or folder in real.parents for folder in excluded):
            continue
        if _subject_entries(path) and not _is_own(path):
            found.append(_Root(path, path.name))
    return found


def _entries(folder: Path, prefix: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name.startswith(prefix))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _subject_entries(root: Path) -> list[str]:
    return _entries(root, "sub-")


def _subjects(root: _Root) -> set[str]:
    """Participants of a dataset: its folders, and the files of a dataset without folders."""
    return {
        split_extension(name)[0].split("_")[0].removeprefix("sub-")
        if name.endswith(_IMAGES)
        else name.removeprefix("sub-")
        for name in _subject_entries(root.path)
        if name.endswith(_IMAGES) or (root.path / name).is_dir()
    }


def _check_participants(choice: _Choice, roots: Sequence[_Root], bids_root: Path) -> None:
    if choice.subjects:
        known = set().union(*(_subjects(root) for root in roots))
        _refuse_unknown("participant", "sub-", choice.subjects, known, bids_root)


def _check_sessions(choice: _Choice, roots: Sequence[_Root], images: Iterable[_Image]) -> None:
    if not choice.sessions:
        return
    known = {image.entities["session"] for image in images if "session" in image.entities}
    for root in roots:
        for subject in choice.subjects or _subjects(root):
            names = _entries(root.path / f"sub-{subject}", "ses-")
            known.update(name.removeprefix("ses-") for name in names)
    _refuse_unknown("session", "ses-", choice.sessions, known, roots[0].path if roots else None)


def _refuse_unknown(
    what: str, prefix: str, wanted: Iterable[str], known: set[str], where: Path | None
) -> None:
    unknown = [label for label in wanted if label not in known]
    if not unknown:
        return
    # Padding is the usual mistake (1 for 01) and too short a text for difflib's cutoff.
    close = [
        name
        for name in sorted(known)
        if any(name.lstrip("0") == label.lstrip("0") for label in unknown)
    ]
    for label in unknown:
        close += difflib.get_close_matches(label, sorted(known), n=3)
    listed = list(dict.fromkeys(close)) or sorted(known)
    hint = (
        f"{'close matches' if close else 'there are'}: "
        f"{_sample((prefix + name for name in listed), 5)}"
        if listed
        else f"no {what} was found there"
    )
    names = ", ".join(prefix + label for label in unknown)
    raise BidsError(f"Unknown {what} {names} in {where}; {hint}.")


# --- the index ------------------------------------------------------------------------------


def _index(root: _Root, choice: _Choice, excluded: Sequence[Path]) -> Iterator[_Image]:
    """List the images of a dataset's participants with pybids."""
    if not _subject_entries(root.path):
        return
    _description(root.path)
    from bids.layout import BIDSLayout, BIDSLayoutIndexer  # 0.3 s that --help need not pay

    layout = BIDSLayout(
        str(root.path),
        # Without "derivatives", a dataset that calls itself raw would have no label or desc.
        config=["bids", "derivatives"],
        validate=False,
        indexer=BIDSLayoutIndexer(
            validate=False,
            index_metadata=False,
            ignore=_ignored(root.path, choice, excluded),
        ),
    )
    for name in sorted(layout.get_files()):
        path = Path(name)
        if path.name.endswith(_IMAGES):
            yield _image(path, root)


def _ignored(root: Path, choice: _Choice, excluded: Sequence[Path]) -> list[re.Pattern[str]]:
    """Patterns on the path below the root, of folders and files that pybids need not enter."""
    wanted_types = {str(value) for value in choice.filters.get("datatype", ())}
    if "*" in wanted_types:
        wanted_types = set(_DATATYPES_SKIPPED)
    skipped = [name for name in _DATATYPES_SKIPPED if name not in wanted_types]
    patterns = [
        r"^/(?!sub-)",
        rf"/(?:{'|'.join([*skipped, *_FOLDERS_SKIPPED])})(?:/|$)",
        r"/[^/]*\.[^/]*(?<!\.nii)(?<!\.nii\.gz)$",
    ]
    if choice.subjects:
        names = "|".join(re.escape(name) for name in choice.subjects)
        patterns.append(rf"^/sub-(?!(?:{names})(?:[/_.]|$))")
    real_root = _real(root)
    for folder in excluded:
        if real_root in folder.parents:
            below = folder.relative_to(real_root).as_posix()
            patterns.append(rf"^/{re.escape(below)}(?:/|$)")
    return [re.compile(pattern) for pattern in patterns]


def _image(path: Path, root: _Root) -> _Image:
    """Entities of the name, and from the folders those that the name lacks."""
    parsed = parse_entities(path.name)
    entities = {ENTITY_NAMES.get(key, key): value for key, value in parsed.items()}
    folders = path.relative_to(root.path).parts[:-1]
    for folder in folders:
        for key in ("sub", "ses"):
            if folder.startswith(f"{key}-"):
                entities.setdefault(ENTITY_NAMES[key], folder[4:])
        if folder in _DATATYPES_SEARCHED or folder in _DATATYPES_SKIPPED:
            entities["datatype"] = folder
    return _Image(path, root, entities)


# --- checks of what was chosen --------------------------------------------------------------


def _label(image: _Image) -> str:
    return sanitize_label(
        image.entities.get("label") or image.entities.get("desc") or _FALLBACK_LABEL
    )


def _key(image: _Image) -> str:
    """Give the key that the record of an image will have: outputs differ by it."""
    return _record(image, None, "", {}).key


def _check_names(images: Iterable[_Image]) -> None:
    """Refuse names that contradict their folders, or that cannot be written again."""
    for image in images:
        if "subject" not in image.entities:
            raise BidsError(f"{image.path} names no participant: its name must hold sub-<label>.")
        folders = image.path.relative_to(image.root.path).parts[:-1]
        for key in ("sub", "ses"):
            in_name = image.entities.get(ENTITY_NAMES[key])
            for folder in folders:
                if folder.startswith(f"{key}-") and folder != f"{key}-{in_name}":
                    raise BidsError(
                        f"{image.path} is in the folder {folder} but its name says "
                        f"{key}-{in_name}: rename or move it."
                    )
        for name in ("subject", "session", "acquisition", "run"):
            value = image.entities.get(name)
            if value is not None and not is_label(value):
                raise BidsError(
                    f"The {name} {value!r} of {image.path} holds characters other than letters, "
                    "digits and +: rename the file (and its folder)."
                )


def _check_twins(images: Iterable[_Image]) -> None:
    by_stem: dict[Path, list[Path]] = defaultdict(list)
    for image in images:
        stem = split_extension(image.path.name)[0]
        by_stem[image.path.parent / stem].append(image.path)
    for twins in by_stem.values():
        if len(twins) > 1:
            raise BidsError(
                f"The mask {twins[0]} also exists as {twins[1].name}: remove one of the two."
            )


def _check_content(images: Iterable[_Image]) -> None:
    absent = [image.path for image in images if not image.path.exists()]
    if absent:
        raise BidsError(_no_content(absent))


def _no_content(paths: Sequence[Path]) -> str:
    more = f" and of {len(paths) - 1} more" if len(paths) > 1 else ""
    return (
        f"The content of {paths[0]}{more} is not there (a broken symbolic link): "
        "run `datalad get` on the dataset, or repair the link."
    )


def _prefer_derivatives(images: list[_Image], notices: list[str]) -> list[_Image]:
    """Of a mask that is in the dataset and in a derivative, keep the derivative's."""
    derived = {_key(image): image for image in images if not image.root.is_raw}
    double = [image for image in images if image.root.is_raw and _key(image) in derived]
    if double:
        first = derived[_key(double[0])]
        notices.append(
            f"{_count(double, 'mask')} of the dataset also in derivatives: the derivative is "
            f"used (first: {first.path.name} of {first.root.name})."
        )
    return [image for image in images if not (image.root.is_raw and _key(image) in derived)]


def _check_collisions(images: Iterable[_Image]) -> None:
    seen: dict[str, _Image] = {}
    for image in images:
        other = seen.setdefault(_key(image), image)
        if other is not image:
            raise BidsError(
                f"{other.path} and {image.path} would have the same output names "
                f"({_key(image)}): choose one with --pattern, --bids-filter-file or "
                "--derivatives, or give them different labels."
            )


def _note_left_out(images: Iterable[_Image], choice: _Choice, notices: list[str]) -> None:
    """Say which masks no rule calls a lesion: one of them may be what the user meant."""
    if choice.relaxed:
        return
    left_out = [
        image.path.name
        for image in images
        if image.is_mask and not is_tissue(image.entities) and not _is_named_lesion(image.entities)
    ]
    if left_out:
        notices.append(
            f"{_count(left_out, 'mask')} left out, because neither label- nor desc- calls "
            f"{'it' if len(left_out) == 1 else 'them'} a lesion ({_sample(left_out)}); "
            "--pattern takes them in."
        )


def _nothing_found(
    bids_root: Path,
    roots: Sequence[_Root],
    images: Sequence[_Image],
    choice: _Choice,
    notices: Sequence[str],
) -> str:
    others = [root.name for root in roots if root.path != bids_root]
    where = f"{bids_root}" + (f" and {_sample(others)}" if others else "")
    masks = [image.path.name for image in images if image.is_mask]
    seen = f"{_count(images, 'image file')} seen"
    if masks:
        seen += f", {len(masks)} of them named _mask or _roi ({_sample(masks)})"
    elif images:
        seen += f", none of them named _mask or _roi ({_sample(i.path.name for i in images)})"
    elif not any(_subject_entries(root.path) for root in [_Root(bids_root, ""), *roots]):
        seen += " because there is no folder sub-<label> directly below"
    asked = [
        *(f"sub-{name}" for name in choice.subjects),
        *(f"ses-{name}" for name in choice.sessions),
        *([f"--pattern {choice.pattern!r}"] if choice.pattern is not None else []),
        *(["the BIDS filter"] if choice.filters else []),
    ]
    limits = f" with {_sample(asked, 6)}" if asked else ""
    text = (
        f"No lesion mask found in {where}{limits}: {seen}; name lesion masks like "
        "sub-01_space-MNI152NLin6Asym_label-lesion_mask.nii.gz, or point to them with --pattern "
        "or --derivatives."
    )
    return " ".join([text, *notices])


# --- records --------------------------------------------------------------------------------


def _records(
    images: Iterable[_Image], mask_space: str | None, notices: list[str]
) -> list[LesionRecord]:
    sidecars = _Sidecars()
    records = []
    overridden: list[str] = []
    for image in images:
        record = _describe(image, sidecars, mask_space)
        records.append(record)
        if mask_space is not None:
            others = [
                space
                for _, space in declared_spaces(image.entities, record.sidecar)
                if not _agree(space, mask_space)
            ]
            overridden += [f"{others[0]} of {image.path.name}"] if others else []
    if overridden:
        notices.append(
            f"--mask-space {mask_space} replaces the declared space of "
            f"{_count(overridden, 'mask')} (first: {overridden[0]})."
        )
    return records


def _describe(image: _Image, sidecars: _Sidecars, mask_space: str | None) -> LesionRecord:
    """Make the record of a mask; what is wrong with it alone must not end the run of others."""
    try:
        sidecar = sidecars.of(image)
    except BidsError as error:
        return _record(image, None, "", {}, f"Mask {image.path} cannot be described: {error}")
    if mask_space is not None:
        return _record(image, mask_space, "mask-space", sidecar)
    space, source, contradicting = settle_space(declared_spaces(image.entities, sidecar))
    if contradicting is None:
        return _record(image, space, source, sidecar)
    where = "name" if source == "entity" else "sidecar"
    problem = (
        f"Mask {image.path} is in {space} by its {where} but in {contradicting} by its sidecar: "
        "correct one of them, or decide with --mask-space."
    )
    return _record(image, None, "", sidecar, problem)


def _record(
    image: _Image,
    space: str | None,
    source: str,
    sidecar: dict[str, Any],
    problem: str = "",
) -> LesionRecord:
    return LesionRecord(
        path=image.path,
        subject=image.entities["subject"],
        session=image.entities.get("session"),
        label=_label(image),
        acquisition=image.entities.get("acquisition"),
        run=image.entities.get("run"),
        space=space,
        space_source=source,
        dataset=image.root.name,
        root=image.root.path,
        sidecar=sidecar,
        problem=problem,
    )


# --- declared spaces ------------------------------------------------------------------------


def declared_spaces(
    entities: Mapping[str, str], sidecar: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Everything that names an image's space, most trusted first.

    Parameters
    ----------
    entities : mapping
        Entities of the name, among them ``space``.
    sidecar : mapping
        JSON metadata. ``SpatialReference`` counts where it names one template: by TemplateFlow's
        name or address, or as FSL calls its own. Of an object, ``VolumeReference`` counts, or
        else all values together.

    Returns
    -------
    list of (source, space)
        The source is ``"entity"`` or ``"sidecar"``; spaces are as written.
    """
    declared: list[tuple[str, str]] = []
    if entities.get("space"):
        declared.append(("entity", entities["space"]))
    space = sidecar.get("Space")
    if isinstance(space, str) and space.strip():
        declared.append(("sidecar", space.strip()))
    reference = sidecar.get("SpatialReference")
    if isinstance(reference, dict):
        reference = reference.get("VolumeReference", list(reference.values()))
    names: set[str] = set()
    for text in reference if isinstance(reference, list) else [reference]:
        if isinstance(text, str):
            fsl = ["MNI152NLin6Asym"] if _FSL_TEMPLATE.search(text) else []
            names.update(_TEMPLATE.findall(text) or _KNOWN_SPACE.findall(text) or fsl)
    if len(names) == 1:  # a reference to several spaces declares none
        declared.append(("sidecar", names.pop()))
    return declared


def settle_space(
    declared: Sequence[tuple[str, str]],
) -> tuple[str | None, str, str | None]:
    """Draw the conclusion from all declarations of an image's space.

    Parameters
    ----------
    declared : sequence of (source, space)
        See :func:`declared_spaces`.

    Returns
    -------
    space : str or None
        The most trusted one, or one that says the same more exactly (``MNI152NLin2009cAsym``
        rather than ``MNI152``); None when there is none.
    source : str
        What declared it; empty for none.
    contradicting : str or None
        Another declared space that cannot be true too.
    """
    if not declared:
        return None, "", None
    source, space = declared[0]
    for other_source, other in declared[1:]:
        if not _agree(space, other):
            return space, source, other
        if len(other) > len(space) and _begins_with(other, space):
            source, space = other_source, other
    return space, source, None


def _agree(first: str, second: str) -> bool:
    """Tell whether two names of a space can both be true.

    "MNI152" says less than "MNI152NLin2009cAsym"; it does not contradict it.
    """
    if _begins_with(first, second) or _begins_with(second, first):
        return True
    try:
        return same_space(first, second)
    except ValidationError:
        return False


def _begins_with(text: str, start: str) -> bool:
    return text.casefold().startswith(start.casefold())


class _Sidecars:
    """JSON metadata with BIDS inheritance; every folder is listed and every file read once."""

    def __init__(self) -> None:
        self._names: dict[Path, list[str]] = {}
        self._content: dict[Path, dict[str, Any]] = {}

    def of(self, image: _Image) -> dict[str, Any]:
        """Metadata of an image; what is nearer to it, or more specific, wins."""
        chunks = split_extension(image.path.name)[0].split("_")
        folder = image.root.path
        folders = [folder]
        for part in image.path.relative_to(folder).parts[:-1]:
            folder = folder / part
            folders.append(folder)
        merged: dict[str, Any] = {}
        for folder in folders:
            applicable = []
            for name in self._listed(folder):
                parts = name.removesuffix(".json").split("_")
                if parts[-1] == chunks[-1] and set(parts) <= set(chunks):
                    applicable.append((len(parts), name))
            for _, name in sorted(applicable):
                merged.update(self._read(folder / name))
        return merged

    def _listed(self, folder: Path) -> list[str]:
        if folder not in self._names:
            self._names[folder] = [n for n in _entries(folder, "") if n.endswith(".json")]
        return self._names[folder]

    def _read(self, path: Path) -> dict[str, Any]:
        if path not in self._content:
            try:
                content = read_json(path)
            except FileNotFoundError as error:
                raise BidsError(_no_content([path])) from error
            except (OSError, ValueError) as error:
                raise BidsError(f"The sidecar {path} cannot be read: {error}.") from error
            if not isinstance(content, dict):
                raise BidsError(f"The sidecar {path} must hold a JSON object.")
            self._content[path] = content
        return self._content[path]


# --- wording --------------------------------------------------------------------------------


def _count(things: Sequence[Any], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _sample(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    more = f", ... {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
