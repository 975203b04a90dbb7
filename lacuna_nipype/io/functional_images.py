"""Denoised 4D images in BIDS derivatives, one per participant, and what lies beside them.

Names are enough: fMRIPrep and XCP-D, like everything that follows BIDS derivatives, say space,
resolution and description in them. Nothing here opens an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lacuna_nipype.core.exceptions import BidsError, ValidationError
from lacuna_nipype.core.spaces import canonical_space
from lacuna_nipype.io.naming import parse_entities

_IMAGES = (".nii.gz", ".nii")
# Entities by which files of one acquisition differ from each other.
_OF_THE_FILE = frozenset({"space", "res", "den", "desc", "suffix", "extension"})
_CONFOUNDS_SUFFIXES = ("timeseries", "regressors")  # the second up to fMRIPrep 20.1
_FLAGS = {
    "ses": "--session-label",
    "task": "--task",
    "run": "--run",
    "res": "--res",
    "desc": "--desc",
}


@dataclass(frozen=True)
class ImageFilter:
    """Which images of a dataset are meant.

    Parameters
    ----------
    space : str
        Standard space, name or alias.
    desc : str
        Value of ``desc``: what XCP-D calls ``denoised``.
    res, task, run : str, optional
        Values of these entities; numbers with or without leading zeros.
    participants, sessions : tuple of str
        Labels without ``sub-`` and ``ses-``; all where empty.
    """

    space: str
    desc: str = "denoised"
    res: str | None = None
    task: str | None = None
    run: str | None = None
    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()

    def takes(self, entities: dict[str, str]) -> bool:
        """Whether an image with these entities is meant."""
        return (
            _in_space(entities, self.space)
            and entities.get("desc") == self.desc
            and all(
                wanted is None or _same_label(entities.get(key), wanted)
                for key, wanted in (("res", self.res), ("task", self.task), ("run", self.run))
            )
            and (not self.participants or entities.get("sub") in self.participants)
            and (not self.sessions or entities.get("ses") in self.sessions)
        )


@dataclass(frozen=True)
class _File:
    path: Path
    entities: dict[str, str]


def find_functional_images(folders: Sequence[Path], wanted: ImageFilter) -> list[Path]:
    """Find one image per participant.

    Parameters
    ----------
    folders : sequence of Path
        Derivatives datasets, with ``sub-*/[ses-*/]func`` in them.
    wanted : ImageFilter
        Which images.

    Returns
    -------
    list of Path
        Images in the order of their participants' labels.

    Raises
    ------
    BidsError
        A folder or participant is missing; nothing fits; or several images of a participant do,
        of which a connectome takes one, because it counts participants.
    """
    images = [
        file
        for folder in folders
        for file in _functional_files(folder)
        if file.entities.get("suffix") == "bold" and file.entities.get("extension") in _IMAGES
    ]
    found: dict[str, list[_File]] = {}
    for file in images:
        if wanted.takes(file.entities):
            found.setdefault(file.entities["sub"], []).append(file)
    if not found:
        raise BidsError(_nothing_found(folders, images, wanted))
    missing = [label for label in wanted.participants if label not in found]
    if missing:
        raise BidsError(
            f"Participant sub-{missing[0]} has no image of the kind that is asked for in "
            f"{_listed(folders)}; check the label and the other filters."
        )
    for subject, files in found.items():
        if len(files) > 1:
            raise BidsError(_too_many(subject, files))
    return [found[subject][0].path for subject in sorted(found)]


def find_beside(
    images: Sequence[Path], folders: Sequence[Path], what: str, space: str | None = None
) -> list[Path]:
    """Find the brain mask or the confounds table of each image.

    What belongs to an image has the same entities, or some of them, space, resolution and
    description aside; the one with most of them is taken.

    Parameters
    ----------
    images : sequence of Path
        Images with BIDS names.
    folders : sequence of Path
        Datasets to search; the folders of the images themselves where there are none.
    what : {"mask", "confounds"}
        ``desc-brain_mask`` in the space and resolution of the image, or
        ``desc-confounds_timeseries.tsv``.
    space : str, optional
        Standard space of masks.

    Returns
    -------
    list of Path
        One for each image, in their order.

    Raises
    ------
    BidsError
        An image has none, or two that fit as well as each other.
    """
    fits = _is_mask if what == "mask" else _is_confounds
    name = "brain mask (desc-brain_mask)" if what == "mask" else (
        "confounds table (desc-confounds_timeseries.tsv)"
    )  # fmt: skip
    if folders:
        files = [file for folder in folders for file in _functional_files(folder)]
    else:
        files = [file for folder in _parents(images) for file in _files(folder)]
    by_subject: dict[str | None, list[_File]] = {}
    for file in files:
        if fits(file.entities, space):
            by_subject.setdefault(file.entities.get("sub"), []).append(file)
    chosen = []
    for path in images:
        entities = parse_entities(path.name)
        candidates = [
            (len(_acquisition(file.entities)), file.path)
            for file in by_subject.get(entities.get("sub"), [])
            if _belongs(file.entities, entities, what)
        ]
        most = max((number for number, _ in candidates), default=0)
        best = [found for number, found in candidates if number == most]
        if not best:
            where = _listed(folders) if folders else str(path.parent)
            raise BidsError(f"There is no {name} for {path} in {where}.")
        if len(best) > 1:
            raise BidsError(
                f"Both {best[0]} and {best[1]} fit {path} as its {name}; move one away."
            )
        chosen.append(best[0])
    return chosen


def _is_mask(entities: dict[str, str], space: str | None) -> bool:
    return (
        (entities.get("suffix"), entities.get("desc")) == ("mask", "brain")
        and entities.get("extension") in _IMAGES
        and (space is None or _in_space(entities, space))
    )


def _is_confounds(entities: dict[str, str], _: str | None) -> bool:
    return (
        entities.get("suffix") in _CONFOUNDS_SUFFIXES
        and entities.get("desc") == "confounds"
        and entities.get("extension") == ".tsv"
    )


def _belongs(candidate: dict[str, str], image: dict[str, str], what: str) -> bool:
    if not _acquisition(candidate).items() <= _acquisition(image).items():
        return False
    # Masks of the anatomy carry no task, and lie on another grid.
    same_task = candidate.get("task") == image.get("task")
    return same_task and (what != "mask" or _same_label(candidate.get("res"), image.get("res")))


def _acquisition(entities: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in entities.items() if key not in _OF_THE_FILE}


def _functional_files(folder: Path) -> Iterator[_File]:
    """Files of the participants of a dataset, those of images and tables of time only."""
    if not folder.is_dir():
        raise BidsError(f"{folder} is not a folder; give a derivatives dataset.")
    for pattern in ("sub-*/func", "sub-*/ses-*/func"):
        for func in sorted(folder.glob(pattern)):
            yield from _files(func)


def _files(folder: Path) -> Iterator[_File]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("sub-"):
            yield _File(path, parse_entities(path.name))


def _parents(images: Iterable[Path]) -> list[Path]:
    return sorted({path.parent for path in images if path.parent.is_dir()})


def _in_space(entities: dict[str, str], space: str) -> bool:
    try:
        return canonical_space(entities.get("space", "")) == canonical_space(space)
    except ValidationError:
        return False  # T1w and the like


def _same_label(first: str | None, second: str | None) -> bool:
    if first is None or second is None:
        return first is second
    # 2 and 02 are one.
    return first == second or (first.isdigit() and second.isdigit() and int(first) == int(second))


def _listed(folders: Sequence[Path]) -> str:
    return " and ".join(map(str, folders))


def _nothing_found(folders: Sequence[Path], images: Sequence[_File], wanted: ImageFilter) -> str:
    if not images:
        return (
            f"{_listed(folders)} holds no image sub-*/func/*_bold.nii.gz; give a derivatives "
            "dataset, or the images themselves with --images."
        )
    there = []
    for key in ("space", "desc", "res", "task", "run"):
        values = sorted({file.entities[key] for file in images if key in file.entities})
        if values:
            there.append(f"{key} {', '.join(values[:6])}")
    asked = {
        "space": canonical_space(wanted.space), "desc": wanted.desc, "res": wanted.res,
        "task": wanted.task, "run": wanted.run, "sub": "|".join(wanted.participants),
        "ses": "|".join(wanted.sessions),
    }  # fmt: skip
    names = "_".join(f"{key}-{value}" for key, value in asked.items() if value)
    return (
        f"None of the {len(images)} images in {_listed(folders)} is {names}; there are "
        f"{'; '.join(there)}."
    )


def _too_many(subject: str, files: Sequence[_File]) -> str:
    keys = dict.fromkeys(key for file in files for key in file.entities)
    different = [key for key in keys if len({file.entities.get(key) for file in files}) > 1]
    flags = [_FLAGS[key] for key in different if key in _FLAGS]
    if flags:
        remedy = f"choose one by {' and '.join(flags)}"
    elif different and different != ["extension"]:
        remedy = "give the right ones with --images"
    else:
        remedy = "remove one of them"
    return (
        f"sub-{subject} has {len(files)} images that fit, {files[0].path.name} and "
        f"{files[1].path.name} among them, and a connectome takes one per participant; {remedy}."
    )
