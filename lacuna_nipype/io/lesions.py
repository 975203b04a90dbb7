"""Lesion masks inspected before a run: who takes part, who does not, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import EmptyMaskError, SpatialMismatchError, ValidationError
from lacuna_nipype.core.resampling import resample_mask
from lacuna_nipype.core.spaces import (
    Grid,
    canonical_space,
    check_declared_space,
    known_spaces,
    same_space,
)
from lacuna_nipype.io.collect import LesionRecord
from lacuna_nipype.io.images import Mask, load_mask

ON_EMPTY = ("warn", "skip", "error")


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
    """

    record: LesionRecord
    space: str
    resolution: str | None
    n_voxels: int
    volume_ml: float
    warnings: tuple[str, ...]

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
            )
        except (ValidationError, SpatialMismatchError) as error:
            return error

    lesions: list[Lesion] = []
    refused: dict[str, str] = {}
    skipped: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=n_threads) as pool:
        for done, (record, result) in enumerate(
            zip(records, pool.map(inspect, records), strict=True), start=1
        ):
            if isinstance(result, Lesion):
                lesions.append(result)
            elif isinstance(result, EmptyMaskError) and on_empty == "skip":
                skipped[record.key] = str(result)
            else:
                refused[record.key] = str(result)
            if progress is not None:
                progress(done, len(records))
    return Inspection(tuple(lesions), refused, skipped)


def inspect_lesion(
    record: LesionRecord,
    *,
    targets: Mapping[str, str],
    brain: tuple[NDArray[np.bool_], Grid] | None = None,
    on_empty: str = "warn",
    insist_on_space: bool = False,
) -> Lesion:
    """Read one mask and check it against what it will be compared with.

    Parameters
    ----------
    record : LesionRecord
    targets, brain, on_empty, insist_on_space
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
    name = f"Mask {record.path}"
    mask = load_mask(record.path)
    warnings = list(mask.warnings)
    space = _space_of(record, mask, name, insist_on_space, warnings)
    for what, target in targets.items():
        if not same_space(space, target):
            raise SpatialMismatchError(
                f"{name} is in {space} but {what} is in {target}; bring the mask to {target} "
                "first (this version does not warp between spaces)."
            )
    reason = _why_empty(mask, brain)
    if reason is not None:
        if on_empty != "warn":
            raise EmptyMaskError(f"{name} {reason}.")
        warnings.append(f"{name} {reason}; its results are zero.")
    return Lesion(
        record, space, mask.grid.resolution_label, mask.n_voxels, mask.volume_ml, tuple(warnings)
    )


def _space_of(
    record: LesionRecord, mask: Mask, name: str, insist: bool, warnings: list[str]
) -> str:
    if record.space is None:
        raise ValidationError(
            f"{name} does not say which space it is in (no space- entity, no Space in its JSON); "
            f"add --mask-space SPACE (one of {', '.join(known_spaces())})."
        )
    try:
        canonical_space(record.space)
    except ValidationError as error:
        raise ValidationError(f"{name} cannot be placed: {error}") from error
    try:
        return check_declared_space(record.space, mask.grid, name)
    except SpatialMismatchError as error:
        if not insist:
            raise
        warnings.append(f"{error} --mask-space insists, so the declaration is followed.")
        return canonical_space(record.space)


def _why_empty(mask: Mask, brain: tuple[NDArray[Any], Grid] | None) -> str | None:
    if mask.n_voxels == 0:
        return "holds no lesion voxel"
    if brain is None:
        return None
    resampled, _ = resample_mask(mask.data, mask.grid, brain[1])
    if np.any(resampled & brain[0]):
        return None
    return "has no voxel inside the functional connectome's brain mask"
