"""Lesion masks inspected before a run: who takes part, who does not, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import EmptyMaskError, SpatialMismatchError, ValidationError
from lacuna_nipype.core.lesion_resampling import warp_mask
from lacuna_nipype.core.spaces import (
    Grid,
    canonical_space,
    check_declared_space,
    known_spaces,
    same_space,
    spaces_of_grid,
    template_grid,
)
from lacuna_nipype.core.transforms import check_domains, load_point_map
from lacuna_nipype.io.collect import LesionRecord
from lacuna_nipype.io.images import Mask, load_mask
from lacuna_nipype.io.normalisation import NativeTransform

ON_EMPTY = ("warn", "skip", "error")
# Finds the transform of a mask in the participant's own space; None for one in a standard space.
Normaliser = Callable[[LesionRecord, Grid], NativeTransform | None]
# Says why images of one space cannot be brought to another; None when they can.
Obstacle = Callable[[str, str], str | None]
# Finds the transforms from a standard space to that of the brain mask, in order.
Route = Callable[[str], Sequence[Path]]
# Every participant has a field of their own, of hundreds of megabytes while it is read.
_FEW_FIELDS = BoundedSemaphore(2)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Lesion:
    """A mask that was read and found fit for the run.

    Parameters
    ----------
    record : LesionRecord
    space : str
        TemplateFlow name.
    resolution : str or None
        ``res`` entity of the mask's grid, where it is whole millimetres.
    n_voxels : int
    volume_ml : float
    warnings : tuple of str
    normalisation : tuple of Path
        Transforms from the participant's own space to the standard one, in order; none for a
        mask that is there already.
    """

    record: LesionRecord
    space: str
    resolution: str | None
    n_voxels: int
    volume_ml: float
    warnings: tuple[str, ...]
    normalisation: tuple[Path, ...] = ()

    @property
    def entities(self) -> dict[str, str]:
        """BIDS entities of the lesion's outputs."""
        return {**self.record.entities, "space": self.space}


@dataclass(frozen=True)
class Inspection:
    """Outcome of the inspection of all masks.

    Parameters
    ----------
    lesions : tuple of Lesion
        To be analysed.
    refused : dict of str to str
        Key of each mask that cannot be used, and the reason in one sentence.
    skipped : dict of str to str
        Key of each empty mask that the user asked to skip, and the reason.
    """

    lesions: tuple[Lesion, ...]
    refused: dict[str, str]
    skipped: dict[str, str]


def inspect_lesions(
    records: Sequence[LesionRecord],
    *,
    targets: Mapping[str, str],
    brain: tuple[NDArray[np.bool_], Grid] | None = None,
    on_empty: str = "warn",
    insist_on_space: bool = False,
    normalise: Normaliser | None = None,
    obstacle: Obstacle | None = None,
    route: Route | None = None,
    n_threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Read every mask once and decide whether it can be analysed.

    Parameters
    ----------
    records : sequence of LesionRecord
    targets : mapping of str to str
        What the masks will be compared with ("functional connectome x.h5", ...) and its space.
    brain : (array of bool, Grid), optional
        Brain mask of the functional connectome: a lesion outside it is treated as empty.
    on_empty : {"warn", "skip", "error"}
        What to do with an empty mask: analyse it (all results are zero), leave it out, refuse it.
    insist_on_space : bool
        The space was given by the user explicitly; a grid of another space is a remark then.
    normalise : callable, optional
        Finds the transform of a mask in the participant's own space; None for a mask in a
        standard space.
    obstacle : callable, optional
        Says why a mask of one space cannot be brought to another; None when it can. Without it,
        spaces of another anatomy cannot be reached.
    route : callable, optional
        Finds the transforms from a mask's standard space to that of the brain mask. Without it,
        masks of another space are not compared with the brain.
    n_threads : int
        Masks read at the same time.
    progress : callable, optional
        Called with (done, total).

    Returns
    -------
    Inspection
        One bad mask never prevents the others.
    """
    if on_empty not in ON_EMPTY:
        raise ValueError(f"on_empty is one of {', '.join(ON_EMPTY)}, not {on_empty!r}.")

    def inspect(record: LesionRecord) -> Lesion | Exception:
        try:
            return inspect_lesion(
                record,
                targets=targets,
                brain=brain,
                insist_on_space=insist_on_space,
                on_empty=on_empty,
                normalise=normalise,
                obstacle=obstacle,
                route=route,
            )
        except (ValidationError, SpatialMismatchError) as error:
            return error

    lesions: list[Lesion] = []
    refused: dict[str, str] = {}
    skipped: dict[str, str] = {}
    results = map_threads(inspect, records, n_threads=n_threads, progress=progress)
    for record, result in zip(records, results, strict=True):
        if isinstance(result, Lesion):
            lesions.append(result)
        elif isinstance(result, EmptyMaskError) and on_empty == "skip":
            skipped[record.key] = str(result)
        else:
            refused[record.key] = str(result)
    return Inspection(tuple(lesions), refused, skipped)


def map_threads(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    *,
    n_threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[_Result]:
    """Apply a function to every item, several at a time.

    Parameters
    ----------
    function : callable
        Spends its time outside the interpreter, in decompression or numpy.
    items : sequence
    n_threads : int
    progress : callable, optional
        Called with (done, total).

    Yields
    ------
    object
        Results in the order of the items. What was not begun when the caller stops, or is
        interrupted, is not done.
    """
    pool = ThreadPoolExecutor(max_workers=n_threads)
    try:
        for done, result in enumerate(pool.map(function, items), start=1):
            if progress is not None:
                progress(done, len(items))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def inspect_lesion(
    record: LesionRecord,
    *,
    targets: Mapping[str, str],
    brain: tuple[NDArray[np.bool_], Grid] | None = None,
    on_empty: str = "warn",
    insist_on_space: bool = False,
    normalise: Normaliser | None = None,
    obstacle: Obstacle | None = None,
    route: Route | None = None,
) -> Lesion:
    """Read one mask and check it against what it will be compared with.

    Parameters
    ----------
    record : LesionRecord
    targets, brain, on_empty, insist_on_space, normalise, obstacle, route
        See :func:`inspect_lesions`.

    Returns
    -------
    Lesion

    Raises
    ------
    ValidationError
        The file is no usable mask, or its space is unknown.
    SpatialMismatchError
        The declared space contradicts the grid, or differs from a target's.
    EmptyMaskError
        Nothing of the mask is in the brain, and ``on_empty`` is not ``warn``.
    """
    if record.problem:
        raise ValidationError(record.problem)
    return judge_mask(
        record,
        load_mask(record.path),
        targets=targets,
        brain=brain,
        on_empty=on_empty,
        insist_on_space=insist_on_space,
        normalise=normalise,
        obstacle=obstacle,
        route=route,
    )


def judge_mask(
    record: LesionRecord,
    mask: Mask,
    *,
    targets: Mapping[str, str],
    brain: tuple[NDArray[np.bool_], Grid] | None = None,
    on_empty: str = "warn",
    insist_on_space: bool = False,
    normalise: Normaliser | None = None,
    obstacle: Obstacle | None = None,
    route: Route | None = None,
) -> Lesion:
    """Check a mask that was read against what it will be compared with.

    Parameters
    ----------
    record : LesionRecord
    mask : Mask
        Its image.
    targets, brain, on_empty, insist_on_space, normalise, obstacle, route
        See :func:`inspect_lesions`.

    Returns
    -------
    Lesion

    Raises
    ------
    ValidationError, SpatialMismatchError, EmptyMaskError
        See :func:`inspect_lesion`.
    """
    name = f"Mask {record.path}"
    warnings = list(mask.warnings)
    native = normalise(record, mask.grid) if normalise is not None else None
    if native is None:
        space = _space_of(record, mask, name, insist_on_space, warnings)
    else:
        space = native.target
        warnings += native.notices
    for what, target in targets.items():
        if not same_space(space, target):
            _check_way(name, space, what, target, obstacle)
    steps = [*(native.paths if native else ()), *(route(space) if route else ())]
    knows_the_way = route is not None or all(same_space(space, t) for t in targets.values())
    within = brain if knows_the_way else None
    with _FEW_FIELDS if native else nullcontext():
        reason = _why_empty(mask, within, native, steps, name, warnings)
    if reason is not None:
        if on_empty != "warn":
            raise EmptyMaskError(f"{name} {reason}.")
        warnings.append(f"{name} {reason}; its results are zero.")
    return Lesion(
        record,
        space,
        mask.grid.resolution_label if native is None else "1",
        mask.n_voxels,
        mask.volume_ml,
        tuple(warnings),
        tuple(native.paths) if native is not None else (),
    )


def _check_way(name: str, space: str, what: str, target: str, obstacle: Obstacle | None) -> None:
    """Refuse a mask that cannot be brought to where it is needed."""
    reason = f"bring the mask to {target} first."
    if obstacle is not None:
        found = obstacle(space, target)
        if found is None:
            return
        reason = found
    raise SpatialMismatchError(f"{name} is in {space} but {what} is in {target}; {reason}")


def _space_of(
    record: LesionRecord, mask: Mask, name: str, insist: bool, warnings: list[str]
) -> str:
    if record.space is None:
        raise ValidationError(
            f"{name} does not say which space it is in (no space- entity, no Space in its JSON); "
            f"{which_space(mask.grid, '--mask-space')}."
        )
    try:
        canonical_space(record.space)
    except ValidationError as error:
        text = f"{name} cannot be placed: {error}"
        likely = spaces_of_grid(mask.grid)
        # A name such as MNI is vague; one such as MNI152NLin2009aSym is another space.
        if any(space.casefold().startswith(record.space.casefold()) for space in likely):
            text = f"{text.rstrip('.')}; {which_space(mask.grid, '--mask-space')}."
        raise ValidationError(text) from error
    try:
        return check_declared_space(record.space, mask.grid, name)
    except SpatialMismatchError as error:
        if not insist:
            raise
        warnings.append(f"{error} --mask-space insists, so the declaration is followed.")
        return canonical_space(record.space)


def which_space(grid: Grid, flag: str, whose: str = "its grid") -> str:
    """Say what to do about an image that does not say its space; a grid is a hint, no proof.

    Parameters
    ----------
    grid : Grid
        Grid of the image.
    flag : str
        Option that names the space.
    whose : str
        How the sentence calls the grid.

    Returns
    -------
    str
        End of a sentence, without a full stop.
    """
    likely = spaces_of_grid(grid)
    if not likely:
        return f"add {flag} SPACE (one of {', '.join(known_spaces())})"
    if all(same_space(likely[0], space) for space in likely):
        return f"{whose} is that of {likely[0]}: add {flag} {likely[0]} if that is right"
    return f"{whose} is that of {' or '.join(likely)}: add {flag} with the right one"


def _why_empty(
    mask: Mask,
    brain: tuple[NDArray[Any], Grid] | None,
    native: NativeTransform | None,
    steps: Sequence[Path],
    name: str,
    warnings: list[str],
) -> str | None:
    if mask.n_voxels == 0:
        return "holds no lesion voxel"
    if brain is None:
        return None
    if native is not None:
        # A transform that leads elsewhere must not pass for a lesion outside the brain.
        standard = template_grid(native.target, 1.0)
        check_domains(native.paths, standard, space=native.target, source=mask.grid)
    moved, account = warp_mask(mask.data, mask.grid, brain[1], load_point_map(steps))
    if np.any(moved & brain[0]):
        if account.kept_by_centre:
            warnings.append(
                f"{name} falls between the voxels of the functional connectome; the one that "
                "holds its centre of mass stands for it."
            )
        return None
    return "has no voxel inside the functional connectome's brain mask"
