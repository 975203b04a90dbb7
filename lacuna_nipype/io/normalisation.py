"""Lesions in a participant's own space, and the transform that takes each to a standard one.

The files are fMRIPrep's (``sub-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5``) or those
that the user names. Nothing is opened here but headers of images: names decide, and a choice that
the names leave open is an error.

A participant has at most a handful of transforms, in ``anat`` folders whose paths are known, so
these folders are listed rather than indexed with pybids. For 1000 participants that takes 0.05 s;
a pybids index of each participant takes 130 s, and one of all with a query for each takes 24 s.
"""

from __future__ import annotations

import os
import re
import string
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import read_json
from lacuna_nipype.core.images import open_image
from lacuna_nipype.core.spaces import (
    Grid,
    canonical_space,
    known_spaces,
    same_space,
    template_grids,
)
from lacuna_nipype.core.transforms import AFFINE_SUFFIXES, COMPOSITE_SUFFIXES
from lacuna_nipype.io.collect import LesionRecord
from lacuna_nipype.io.naming import parse_entities, split_extension

#: Space of fMRIPrep's anatomical reference, from which its transforms start.
REFERENCE = "T1w"

# Names that mean the anatomical reference, and names that mean the image a mask was drawn on
# (which differ where several T1w images were merged to one reference).
_REFERENCE_NAMES = ("t1w", "anat", "individual")
_OWN_IMAGE_NAMES = ("orig", "native")
# Other images of the participant; the transform has to start from the same one.
_OTHER_IMAGES = (
    *("T2w", "FLAIR", "PDw", "T2starw", "T1map", "T2map", "UNIT1", "SWI"),
    *("dwi", "ADC", "TRACE", "boldref"),
)

_IMAGES = (".nii.gz", ".nii")
_UNREADABLE = (
    *(ImageFileError, HeaderDataError, OSError, EOFError, ValueError, IndexError),
    *(OverflowError, MemoryError, zlib.error),
)
_TRANSFORMS = (*COMPOSITE_SUFFIXES, *AFFINE_SUFFIXES)
# Programs that draw masks write quaternions and single precision, which moves corners a little.
_SAME_IMAGE_MM = 0.01
_PLACEHOLDERS = ("subject", "session")
# fMRIPrep's own two first: they are the ones that an error names as looked for.
_WRITTEN_BY_FMRIPREP = ("MNI152NLin2009cAsym", "MNI152NLin6Asym")
_TO = re.compile(r"(?:^|_)to-([a-zA-Z0-9]+)")
_FROM = re.compile(r"(?:^|_)from-([a-zA-Z0-9]+)")


@dataclass(frozen=True)
class NativeTransform:
    """Files that take an image from a participant's space to a standard one.

    Parameters
    ----------
    path : Path
        ITK transform from ``source`` to ``target``. As ITK has it, it maps points of the target
        to points of the source, which is what resampling onto a target grid needs.
    source : str
        Space of the participant, such as ``"T1w"``.
    target : str
        TemplateFlow name of the standard space.
    before : Path or None
        Transform to apply to the image first, from the image that the mask was drawn on to
        ``source``; only where fMRIPrep merged several T1w images to one reference.
    notices : tuple of str
        What was assumed, one sentence each, for the user to see.
    """

    path: Path
    source: str
    target: str
    before: Path | None = None
    notices: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, in the order in which they are applied to an image."""
        return (self.path,) if self.before is None else (self.before, self.path)


@dataclass(frozen=True)
class _Candidate:
    """A transform file of a participant and the entities of its name."""

    path: Path
    root: Path
    entities: Mapping[str, str]

    @property
    def source(self) -> str:
        return self.entities.get("from", "")

    @property
    def session(self) -> str | None:
        return self.entities.get("ses")

    @property
    def target(self) -> str:
        """Standard space it leads to; empty for any other."""
        return _standard(self.entities.get("to", ""))

    def has_place_of(self, record: LesionRecord) -> bool:
        """Tell whether acquisition and run are those of the mask."""
        wanted = {"acq": record.acquisition, "run": record.run}
        return all(_same_label(self.entities.get(key), value) for key, value in wanted.items())


# --- is it native? --------------------------------------------------------------------------


def is_native_space(space: str) -> bool:
    """Tell whether a name, whatever its case, means a space of the participant's own.

    Parameters
    ----------
    space : str
        Such as ``T1w``, ``orig`` or ``FLAIR``, from a file name, a sidecar or ``--mask-space``.

    Returns
    -------
    bool
    """
    return _native_source(space) is not None


def is_native(record: LesionRecord, grid: Grid | None = None) -> bool:
    """Tell whether a mask lies in its participant's own space.

    It does when ``T1w`` (or ``anat``, ``individual``, ``orig``, ``native``, or another image of
    the participant, such as ``FLAIR``) is its declared space. A mask that declares nothing is
    native by BIDS' rules, unless it lies on a standard grid (be it one that several spaces use,
    so that the mask's own space stays unknown).

    Parameters
    ----------
    record : LesionRecord
    grid : Grid, optional
        Grid of the mask, where it was read already. Else the header is read, for masks without a
        declared space only.

    Returns
    -------
    bool

    Raises
    ------
    ValidationError
        The header is needed and cannot be read.
    """
    if record.space is not None:
        return is_native_space(record.space)
    own = _grid_of(record.path) if grid is None else grid
    standard = (other for space in known_spaces() for other in template_grids(space))
    return not any(own.same_lattice(other) for other in standard)


def _native_source(space: str | None) -> str | None:
    """Space from which the transform of a mask in ``space`` starts; None for a standard one."""
    name = "" if space is None else space.casefold()
    if space is None or name in (*_REFERENCE_NAMES, *_OWN_IMAGE_NAMES):
        return REFERENCE
    return next((image for image in _OTHER_IMAGES if image.casefold() == name), None)


def _grid_of(path: Path) -> Grid:
    grid = _readable_grid(path)
    if grid is None:
        raise ValidationError(
            f"Mask {path} is not a readable NIfTI image (missing, damaged or another format); "
            "export it again as .nii.gz."
        )
    return grid


def _readable_grid(path: Path) -> Grid | None:
    """Grid by the header, or None where there is none to read (content not fetched, say)."""
    try:
        image = open_image(path)
        return Grid.make(image.shape[:3], image.affine)
    except _UNREADABLE:
        return None


# --- transforms of a derivatives dataset ----------------------------------------------------


def find_native_transform(
    record: LesionRecord,
    derivatives: Mapping[str, Path] | Sequence[Path],
    target_spaces: Sequence[str],
    *,
    grid: Grid | None = None,
) -> NativeTransform:
    """Find the transform with which fMRIPrep normalised a mask's participant.

    Parameters
    ----------
    record : LesionRecord
        A native mask, see :func:`is_native`.
    derivatives : mapping of str to Path, or sequence of Path
        Datasets to search. The one that the mask is in is searched too.
    target_spaces : sequence of str
        Spaces that the run needs, the preferred one first.
    grid : Grid, optional
        Grid of the mask, where it was read already.

    Returns
    -------
    NativeTransform
        Of the mask's session, or else of the participant as a whole (where fMRIPrep merges
        sessions). Among several target spaces: the first of ``target_spaces`` that is there,
        then one of its family (2009a, b and c), then the next; then any other standard space,
        from which the lesion has to be taken further. Acquisition and run that are the mask's
        own win over others.

    Raises
    ------
    ValidationError
        There is no transform, or several that the names do not tell apart, or one whose content
        is absent; or the mask declares no space and lies on no grid of the participant's images.

    Notes
    -----
    Where several T1w images were merged to one reference, each has a transform to that reference
    (``from-orig_to-T1w``). A mask that is not declared to be in ``space-T1w`` was drawn on one of
    the images, so that transform is put before.
    """
    source = _native_source(record.space)
    if source is None:
        raise ValueError(f"{record.path} is in {record.space}, which is no native space.")
    listed = list(derivatives.values() if isinstance(derivatives, Mapping) else derivatives)
    roots = list({os.path.realpath(root): Path(root) for root in (*listed, record.root)}.values())
    found = [candidate for root in roots for candidate in _transforms(root, record.subject)]
    usable = [
        item for item in found if item.source.casefold() == source.casefold() and item.target
    ]
    for session in dict.fromkeys((record.session, None)):
        tier = [item for item in usable if item.session == session]
        if tier:
            chosen = _choose(record, tier, target_spaces)
            return _complete(record, chosen, found, grid)
    raise ValidationError(_not_found(record, source, listed, target_spaces, usable))


def _transforms(root: Path, subject: str) -> Iterator[_Candidate]:
    """List the image transforms of a participant in a dataset."""
    participant = root / f"sub-{subject}"
    for session in ("", *_listed(participant, "ses-")):
        folder = participant / session / "anat"
        for name in _listed(folder, f"sub-{subject}_"):
            entities = parse_entities(name)
            if (
                entities.get("suffix") == "xfm"
                and entities.get("extension") in _TRANSFORMS
                and entities.get("mode", "image") == "image"
            ):
                if session:
                    entities.setdefault("ses", session.removeprefix("ses-"))
                yield _Candidate(folder / name, root, entities)


def _choose(
    record: LesionRecord, candidates: Sequence[_Candidate], target_spaces: Sequence[str]
) -> _Candidate:
    """Take the best target space, then the mask's own acquisition and run."""
    best = min(candidates, key=lambda item: _preference(item.target, target_spaces)).target
    left = [item for item in candidates if item.target == best]
    if len(left) > 1:
        left = [item for item in left if item.has_place_of(record)] or left
    if len(left) > 1:
        listed = ", ".join(str(item.path) for item in left)
        raise ValidationError(
            f"There are {len(left)} transforms to {best} for mask {record.path} that its name "
            f"does not tell apart ({listed}); name the right one with --xfm."
        )
    return left[0]


def _preference(target: str, target_spaces: Sequence[str]) -> tuple[int, int]:
    """Rank of a target space: smaller is better."""
    wanted = [canonical_space(space) for space in target_spaces]
    ranks = [2 * place for place, space in enumerate(wanted) if space == target]
    ranks += [2 * place + 1 for place, space in enumerate(wanted) if same_space(space, target)]
    return min(ranks, default=2 * len(wanted)), known_spaces().index(target)


def _check_content(path: Path) -> None:
    if not path.exists():
        raise ValidationError(
            f"The content of {path} is not there (a broken symbolic link); run `datalad get` on "
            "it, or repair the link."
        )


def _complete(
    record: LesionRecord, chosen: _Candidate, found: Sequence[_Candidate], grid: Grid | None
) -> NativeTransform:
    """Add what has to come before the transform, and what the user should know."""
    notices: list[str] = []
    drawn_on_own_image = record.space is None or record.space.casefold() in _OWN_IMAGE_NAMES
    if record.space is None:
        drawn_on_own_image = _place_undeclared(record, chosen, grid, notices)
    before = None
    if drawn_on_own_image and chosen.source == REFERENCE:
        before = _to_reference(record, chosen, found)
        if before is None and chosen.session != record.session:
            notices.append(
                f"{chosen.path} belongs to no session but mask {record.path} to "
                f"ses-{record.session}; they are taken to share one T1w image."
            )
    found_transform = NativeTransform(
        chosen.path, chosen.source, chosen.target, before, tuple(notices)
    )
    for path in found_transform.paths:
        _check_content(path)
    return found_transform


def _place_undeclared(
    record: LesionRecord, chosen: _Candidate, grid: Grid | None, notices: list[str]
) -> bool:
    """Tell whether a mask without a declared space was drawn on an image of its own session.

    False: on the reference that its participant's images were merged to. A mask on the grid of
    neither may well be in a standard space, so it is not warped on suspicion.
    """
    own = _grid_of(record.path) if grid is None else grid
    reference = _t1w_images(chosen.path.parent, record.subject)
    session = "" if record.session is None else f"ses-{record.session}"
    raw = _t1w_images(record.root / f"sub-{record.subject}" / session / "anat", record.subject)
    on_reference = any(_is_drawn_on(own, other) for other in reference.values())
    on_raw = any(_is_drawn_on(own, other) for other in raw.values())
    seen = {**raw, **reference}
    if seen and not (on_reference or on_raw):
        raise ValidationError(
            f"Mask {record.path} does not say which space it is in, and its grid "
            f"({own.describe()}) is neither a standard one nor that of "
            f"{', '.join(path.name for path in seen)}; say it with --mask-space ({REFERENCE}, or "
            f"one of {', '.join(known_spaces())})."
        )
    compared = "has the grid of its participant's T1w image" if seen else "has no standard grid"
    notices.append(
        f"Mask {record.path} does not say which space it is in; it {compared}, so it is taken to "
        f"be in the participant's own space and normalised with {chosen.path}."
    )
    return on_raw or not (raw and on_reference)


def _is_drawn_on(mask: Grid, image: Grid) -> bool:
    return mask.same_lattice(image, tolerance_mm=_SAME_IMAGE_MM)


def _t1w_images(folder: Path, subject: str) -> dict[Path, Grid]:
    """Grids of the T1w images in a folder that are in the participant's own space."""
    grids = {}
    for name in _listed(folder, f"sub-{subject}_"):
        entities = parse_entities(name)
        if (
            entities.get("suffix") == "T1w"
            and entities.get("extension") in _IMAGES
            and _native_source(entities.get("space")) == REFERENCE
        ):
            grid = _readable_grid(folder / name)
            if grid is not None:
                grids[folder / name] = grid
    return grids


def _to_reference(
    record: LesionRecord, chosen: _Candidate, found: Sequence[_Candidate]
) -> Path | None:
    """Transform from the image that a mask was drawn on to the merged reference, if any."""
    all_steps = [
        item
        for item in found
        if item.root == chosen.root
        and item.source == "orig"
        and item.entities.get("to") == REFERENCE
        and (chosen.session is None or item.session == chosen.session)
    ]
    steps = [item for item in all_steps if item.session == record.session]
    if len(steps) > 1:
        steps = [item for item in steps if item.has_place_of(record)]
    if len(steps) == 1:
        return steps[0].path
    if all_steps:
        raise ValidationError(
            f"Mask {record.path} was drawn on one of several T1w images that were merged to the "
            f"reference of {chosen.path}, and its name does not say on which "
            f"({', '.join(item.path.name for item in all_steps)}); give it the session and run "
            "of its image, or space-T1w if it was drawn on the merged reference."
        )
    return None


def _not_found(
    record: LesionRecord,
    source: str,
    roots: Sequence[Path],
    target_spaces: Sequence[str],
    others: Sequence[_Candidate],
) -> str:
    """Say which file was looked for, where, and what to do."""
    mask = f"Mask {record.path}"
    start = (
        f"{mask} is in its participant's own space ({record.space}) and needs a transform to a "
        "standard one"
    )
    if record.space is None:
        start = (
            f"{mask} does not say which space it is in (no space- entity, no Space in its JSON); "
            f"add --mask-space SPACE (one of {', '.join(known_spaces())}) if that is a standard "
            "one; if it is its participant's own, it needs a transform"
        )
    if not roots:
        return f"{start}: give --derivatives fmriprep=PATH or --xfm FILE."
    spaces = [canonical_space(space) for space in target_spaces]
    wanted = [name for name in _WRITTEN_BY_FMRIPREP if any(same_space(name, s) for s in spaces)]
    first, *rest = dict.fromkeys([*wanted, *_WRITTEN_BY_FMRIPREP])
    stem = f"sub-{record.subject}" + (f"_ses-{record.session}" if record.session else "")
    folders = []
    for root in roots:
        for session in dict.fromkeys((record.session, None)):
            folder = Path(root) / f"sub-{record.subject}"
            folders.append(folder / f"ses-{session}" / "anat" if session else folder / "anat")
    there = f", only {', '.join(item.path.name for item in others)}" if others else ""
    return (
        f"{start}, but there is no {stem}_from-{source}_to-{first}_mode-image_xfm.h5 (nor "
        f"to-{', to-'.join(rest)}) in {' or '.join(map(str, folders))}{there}; name the right one "
        "with --xfm."
    )


# --- transforms that the user names ---------------------------------------------------------


def check_xfm(pattern: str, records: Iterable[LesionRecord] = ()) -> None:
    """Refuse a value of ``--xfm`` that cannot give every mask its own transform.

    Parameters
    ----------
    pattern : str
        Path of a transform; ``{subject}`` and ``{session}`` stand for a mask's labels.
    records : iterable of LesionRecord, optional
        The native masks that it is meant for.

    Raises
    ------
    ValidationError
        Another placeholder, braces that do not match, or one file for several participants.
    """
    fields = _fields(pattern)
    subjects = sorted({record.subject for record in records})
    if len(subjects) > 1 and "subject" not in fields:
        raise ValidationError(
            f"--xfm {pattern} is one transform for {len(subjects)} participants "
            f"(sub-{subjects[0]}, sub-{subjects[1]}, ...); put {{subject}} where their labels "
            "stand in the paths."
        )


def _fields(pattern: str) -> set[str]:
    if not pattern:
        raise ValidationError("--xfm is empty; give the path of a transform.")
    try:
        parts = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise ValidationError(f"--xfm {pattern} has braces that do not match: {error}.") from error
    fields = set()
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if name not in _PLACEHOLDERS or spec or conversion:
            raise ValidationError(
                f"--xfm {pattern} has the placeholder {{{name}}}; only {{subject}} and "
                "{session} are known."
            )
        fields.add(name)
    return fields


def expand_xfm(pattern: str, record: LesionRecord) -> Path:
    """Fill in the path of the transform that the user names for a mask.

    Parameters
    ----------
    pattern : str
        Path in which ``{subject}`` and ``{session}`` stand for the labels of the mask, without
        ``sub-`` and ``ses-``; or a plain path.
    record : LesionRecord

    Returns
    -------
    Path
        Absolute; symbolic links are kept.

    Raises
    ------
    ValidationError
        The pattern is wrong, the mask has no session to fill in, the file is missing, or its
        name is that of another participant.
    """
    fields = _fields(pattern)
    if "session" in fields and record.session is None:
        raise ValidationError(
            f"--xfm {pattern} has the placeholder {{session}} but mask {record.path} belongs to "
            "no session."
        )
    path = _filled(pattern, record.subject, record.session)
    if not path.is_file():
        raise ValidationError(_missing(path, pattern, record))
    subject = parse_entities(path.name).get("sub")
    # The subject of a single mask with a plain name was made up from that name.
    named = f"sub-{record.subject}" in (*record.path.name.split("_"), *record.path.parts)
    if subject is not None and named and subject != record.subject:
        raise ValidationError(
            f"The transform {path} is that of sub-{subject} but mask {record.path} is of "
            f"sub-{record.subject}; put {{subject}} into --xfm, or correct it."
        )
    return path


def _filled(pattern: str, subject: str, session: str | None) -> Path:
    text = pattern.format(subject=subject, session=session)
    # Not resolve(): a link into a store of nameless content would lose the name.
    return Path(os.path.abspath(Path(text).expanduser()))  # noqa: PTH100


def _missing(path: Path, pattern: str, record: LesionRecord) -> str:
    text = f"The transform {path} of mask {record.path} does not exist (--xfm {pattern})"
    session = None if record.session is None else f"ses-{record.session}"
    for subject in (record.subject, f"sub-{record.subject}"):
        for other in (record.session, session):
            if _filled(pattern, subject, other).is_file():
                return (
                    f"{text}; write sub-{{subject}} and ses-{{session}}, as the placeholders "
                    "are the bare labels."
                )
    if path.is_symlink():
        return f"{text}: it is a broken symbolic link; run `datalad get` on it, or repair it."
    if path.is_dir():
        return f"{text}: it is a folder; name the file."
    return f"{text}; correct the path."


def given_transform(
    pattern: str, record: LesionRecord, xfm_space: str | None = None
) -> NativeTransform:
    """Describe the transform that the user names for a mask.

    Parameters
    ----------
    pattern : str
        Value of ``--xfm``, see :func:`expand_xfm`.
    record : LesionRecord
    xfm_space : str, optional
        Value of ``--xfm-space``: the target, whatever name and sidecar of the transform say.

    Returns
    -------
    NativeTransform

    Raises
    ------
    ValidationError
        See :func:`expand_xfm` and :func:`transform_target`; or the transform starts from another
        image of the participant than the mask is in.
    """
    path = expand_xfm(pattern, record)
    target = transform_target(path, xfm_space)
    name = split_extension(path.name)[0]
    notices = []
    match = _FROM.search(name)
    source = _native_source(record.space) or REFERENCE
    if match is not None:
        start = _native_source(match[1])
        if record.space is not None and start is not None and start != source:
            raise ValidationError(
                f"The transform {path} starts from {match[1]} but mask {record.path} is in "
                f"{record.space}; give one that starts from there."
            )
        source = start or match[1]
    session = parse_entities(path.name).get("ses")
    if session is not None and session != record.session:
        notices.append(
            f"The transform {path} is of ses-{session} but mask {record.path} of "
            f"{'no session' if record.session is None else f'ses-{record.session}'}."
        )
    return NativeTransform(path, source, target, None, tuple(notices))


def transform_target(path: Path, xfm_space: str | None = None) -> str:
    """Tell which standard space a transform leads to.

    Parameters
    ----------
    path : Path
        Transform whose name holds ``_to-<SPACE>_``, or beside which a JSON of the same name has
        ``Space`` (or ``To``).
    xfm_space : str, optional
        The answer, whatever name and JSON say.

    Returns
    -------
    str
        TemplateFlow name.

    Raises
    ------
    ValidationError
        Nothing says the target, or two things say it differently, or the transform leads from
        the standard space to the participant.
    """
    name, _ = split_extension(path.name)
    ends = {key: regex.search(name) for key, regex in (("from", _FROM), ("to", _TO))}
    start, end = (match[1] if match else "" for match in (ends["from"], ends["to"]))
    if _standard(start) and _native_source(end or None) is not None:
        raise ValidationError(
            f"The transform {path} leads from {start} to the participant by its name; give the "
            f"opposite one, from-{end or REFERENCE}_to-{start}."
        )
    if xfm_space is not None:
        return canonical_space(xfm_space)
    said = {
        where: space
        for where, text in (("its name", end), ("its JSON", _space_in_sidecar(path)))
        if (space := _standard(text))
    }
    if len(set(said.values())) > 1:
        raise ValidationError(
            f"The transform {path} leads to {said['its name']} by its name but to "
            f"{said['its JSON']} by its JSON; correct one of them, or decide with --xfm-space."
        )
    if not said:
        raise ValidationError(
            f"Nothing says which standard space the transform {path} leads to (no _to-SPACE_ in "
            f"its name, no Space in a JSON beside it); add --xfm-space SPACE (one of "
            f"{', '.join(known_spaces())})."
        )
    return next(iter(said.values()))


def _space_in_sidecar(path: Path) -> str:
    sidecar = path.with_name(split_extension(path.name)[0] + ".json")
    if not sidecar.is_file():
        return ""
    try:
        content = read_json(sidecar)
    except (OSError, ValueError) as error:
        raise ValidationError(f"The sidecar {sidecar} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ValidationError(f"The sidecar {sidecar} must hold a JSON object.")
    return str(content.get("Space") or content.get("To") or "")


# --- small helpers --------------------------------------------------------------------------


def _standard(space: str) -> str:
    """TemplateFlow name of a standard space; empty for any other name."""
    try:
        return canonical_space(space)
    except ValidationError:
        return ""


def _same_label(first: str | None, second: str | None) -> bool:
    """Tell whether two labels agree; 1 and 01 do."""
    if first is not None and second is not None and first.isdecimal() and second.isdecimal():
        return int(first) == int(second)
    return first == second


def _listed(folder: Path, prefix: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name.startswith(prefix))
    except (FileNotFoundError, NotADirectoryError):
        return []
