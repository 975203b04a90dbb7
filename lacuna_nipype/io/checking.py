"""A cohort's masks looked at one by one before any analysis: what is in them, what is wrong."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import EmptyMaskError, SpatialMismatchError, ValidationError
from lacuna_nipype.core.masks import hemisphere_of, left_share, lesion_points, share_inside
from lacuna_nipype.core.spaces import Grid
from lacuna_nipype.io.collect import LesionRecord
from lacuna_nipype.io.images import Mask, load_mask
from lacuna_nipype.io.lesions import Normaliser, judge_mask, map_threads
from lacuna_nipype.io.normalisation import REFERENCE

if TYPE_CHECKING:
    import pandas as pd

# Of 36 real lesions in MNI coordinates, the one that strays furthest has 88 % inside.
EXPECTED_SHARE_IN_BRAIN = 0.8


@dataclass(frozen=True)
class MaskCheck:
    """What one mask holds and what is wrong with it.

    Parameters
    ----------
    record : LesionRecord
    space : str or None
        Space of the mask: TemplateFlow name, or that of an image of the participant; as declared
        where that cannot be used; None where nothing declares it.
    n_voxels : int or None
        None where the voxels cannot be used; the same for the volume.
    volume_ml : float or None
    left_share : float or None
        Share of what lies in either hemisphere that lies in the left one, 0 to 1. None as
        well where the mask is not in a standard space, or all voxels are at the midline.
    share_in_brain : float or None
        Share of the voxels inside the MNI152 brain, 0 to 1; None as well where the mask is not
        in a standard space.
    warnings, errors : tuple of str
        A mask with errors cannot be analysed.
    content : str
        Equal for masks with the same voxels; empty where there are none.
    """

    record: LesionRecord
    space: str | None
    n_voxels: int | None = None
    volume_ml: float | None = None
    left_share: float | None = None
    share_in_brain: float | None = None
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    content: str = ""

    @property
    def hemisphere(self) -> str | None:
        """``left`` or ``right`` (at least 95 % of the lesion), else ``both``."""
        return None if self.left_share is None else hemisphere_of(self.left_share)


def check_masks(
    records: Sequence[LesionRecord],
    *,
    brain: tuple[NDArray[np.bool_], Grid],
    on_empty: str = "warn",
    insist_on_space: bool = False,
    normalise: Normaliser | None = None,
    n_threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[MaskCheck, ...]:
    """Read every mask once and say what is in it and what is wrong with it.

    Parameters
    ----------
    records : sequence of LesionRecord
    brain : (array of bool, Grid)
        Brain mask in MNI coordinates, see
        :func:`lacuna_nipype.core.brain.load_brain_mask`.
    on_empty : {"warn", "skip", "error"}
        What a run would do with an empty mask; ``error`` makes an error of it, the others a
        warning.
    insist_on_space : bool
        The space was given by the user explicitly; a grid of another space is a warning then.
    normalise : callable, optional
        Finds the transform of a mask in the participant's own space, see
        :func:`lacuna_nipype.io.lesions.inspect_lesions`.
    n_threads : int
        Masks read at the same time.
    progress : callable, optional
        Called with (done, total).

    Returns
    -------
    tuple of MaskCheck
        In the order of the records. Masks of different participants with the same voxels have a
        warning each.
    """

    def check(record: LesionRecord) -> MaskCheck:
        return check_mask(
            record,
            brain=brain,
            on_empty=on_empty,
            insist_on_space=insist_on_space,
            normalise=normalise,
        )

    checks = map_threads(check, records, n_threads=n_threads, progress=progress)
    return _note_copies(list(checks))


def check_mask(
    record: LesionRecord,
    *,
    brain: tuple[NDArray[np.bool_], Grid],
    on_empty: str = "warn",
    insist_on_space: bool = False,
    normalise: Normaliser | None = None,
) -> MaskCheck:
    """Read one mask and say what is in it and what is wrong with it.

    Parameters
    ----------
    record : LesionRecord
    brain, on_empty, insist_on_space, normalise
        See :func:`check_masks`.

    Returns
    -------
    MaskCheck
    """
    known = MaskCheck(record, record.space)
    if record.problem:
        known = replace(known, errors=(record.problem,))
    try:
        mask = load_mask(record.path)
    except ValidationError as error:
        return replace(known, errors=(*known.errors, str(error)))
    known = replace(
        known, n_voxels=mask.n_voxels, volume_ml=mask.volume_ml, warnings=mask.warnings
    )
    if record.problem:
        return known
    try:
        lesion = judge_mask(
            record,
            mask,
            targets={},
            on_empty=on_empty,
            insist_on_space=insist_on_space,
            normalise=normalise,
        )
    except EmptyMaskError as error:
        if on_empty == "skip":
            text = f"{error} A run leaves it out (--on-empty skip)."
            return replace(known, warnings=(*known.warnings, text))
        return replace(known, errors=(str(error),))
    except (ValidationError, SpatialMismatchError) as error:
        return replace(known, errors=(str(error),))
    known = replace(known, warnings=lesion.warnings)
    if lesion.normalisation:
        return replace(known, space=record.space or REFERENCE)
    return _located(replace(known, space=lesion.space), mask, brain)


def _located(check: MaskCheck, mask: Mask, brain: tuple[NDArray[np.bool_], Grid]) -> MaskCheck:
    """Add where in the brain a lesion of known space is."""
    if mask.n_voxels == 0:
        return check
    points = lesion_points(mask.data, mask.grid)
    share = share_inside(points, *brain)
    warnings = check.warnings
    if share < EXPECTED_SHARE_IN_BRAIN:
        extent = f"only {100 * share:.0f} % of its voxels" if share else "no voxel"
        text = (
            f"Mask {check.record.path} has {extent} inside the MNI152 brain; its space or its "
            "orientation may not be what it says."
        )
        warnings = (*warnings, text)
    return replace(
        check,
        left_share=left_share(points),
        share_in_brain=share,
        warnings=warnings,
        content=hashlib.blake2b(points.astype(np.float32).tobytes(), digest_size=16).hexdigest(),
    )


def _note_copies(checks: list[MaskCheck]) -> tuple[MaskCheck, ...]:
    """Warn of masks of different participants that have the same voxels."""
    same: dict[str, list[MaskCheck]] = defaultdict(list)
    for check in checks:
        if check.content:
            same[check.content].append(check)
    noted = []
    for check in checks:
        others = [
            other.record.path
            for other in same.get(check.content, ())
            if other.record.subject != check.record.subject
        ]
        if others:
            more = f" and of {len(others) - 1} more" if len(others) > 1 else ""
            text = (
                f"Mask {check.record.path} has exactly the voxels of {others[0]}{more}, of "
                "another participant; one of them may be a copy by mistake."
            )
            check = replace(check, warnings=(*check.warnings, text))
        noted.append(check)
    return tuple(noted)


def check_table(checks: Sequence[MaskCheck]) -> pd.DataFrame:
    """Put the outcome of all checks into a table, a row per mask.

    Parameters
    ----------
    checks : sequence of MaskCheck

    Returns
    -------
    DataFrame
        Columns ``participant_id``, ``session_id``, ``label``, ``space``, ``voxels``,
        ``volume_ml``, ``hemisphere``, ``left_pct``, ``brain_pct`` (per cent of the voxels inside
        the MNI152 brain), ``warnings``, ``errors`` (sentences), ``mask`` (path within its
        dataset). Missing values are None or NaN.
    """
    import pandas as pd

    return pd.DataFrame(
        {
            "participant_id": [f"sub-{check.record.subject}" for check in checks],
            "session_id": [
                f"ses-{check.record.session}" if check.record.session else None for check in checks
            ],
            "label": [check.record.label for check in checks],
            "space": [check.space for check in checks],
            "voxels": pd.array([check.n_voxels for check in checks], dtype="Int64"),
            "volume_ml": [_rounded(check.volume_ml, 1, 6) for check in checks],
            "hemisphere": [check.hemisphere for check in checks],
            "left_pct": [_rounded(check.left_share, 100, 2) for check in checks],
            "brain_pct": [_rounded(check.share_in_brain, 100, 2) for check in checks],
            "warnings": [" ".join(check.warnings) or None for check in checks],
            "errors": [" ".join(check.errors) or None for check in checks],
            "mask": [_path_in_dataset(check.record) for check in checks],
        }
    )


def _rounded(value: float | None, factor: float, digits: int) -> float:
    return float("nan") if value is None else round(factor * value, digits)


def _path_in_dataset(record: LesionRecord) -> str:
    return record.path.relative_to(record.root).as_posix()
