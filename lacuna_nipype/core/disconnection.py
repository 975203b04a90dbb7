"""Disconnection as a share of streamlines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lacuna_nipype.core.exceptions import ValidationError


def disconnection_percent(hit: NDArray[Any], full: NDArray[Any]) -> NDArray[np.float32]:
    """Per cent of streamlines that a lesion cuts, voxel by voxel.

    Parameters
    ----------
    hit, full : array, equal shapes
        Streamlines per voxel: of those that pass the lesion, and of all.

    Returns
    -------
    array, float32
        (hit / full) * 100 in single precision, as MRtrix's mrcalc computes it; 0 where full is
        0. Never NaN.

    Raises
    ------
    ValidationError
        The shapes differ.
    """
    if hit.shape != full.shape:
        raise ValidationError(
            f"Densities of shapes {hit.shape} and {full.shape} are not on one grid."
        )
    numerator, denominator = hit.astype(np.float32), full.astype(np.float32)
    some = denominator > 0
    ratio = np.zeros(hit.shape, dtype=np.float32)
    np.divide(numerator, denominator, out=ratio, where=some)
    return ratio * np.float32(100)


def summarise_disconnection(
    percent: NDArray[np.float32],
    voxel_volume_ml: float,
    n_streamlines: int | None,
    n_streamlines_hit: int | None,
) -> dict[str, Any]:
    """Numbers of a disconnection map for its JSON summary.

    Parameters
    ----------
    percent : array
        Disconnection in per cent.
    voxel_volume_ml : float
        Volume of one voxel in ml.
    n_streamlines, n_streamlines_hit : int or None
        Counts of the tractogram and of the streamlines that pass the lesion, where known.

    Returns
    -------
    dict
        Mean and maximum are over voxels above 0, and 0 when there is none; JSON-safe.
    """
    affected = percent[percent > 0].astype(np.float64)
    summary: dict[str, Any] = {
        "Streamlines": n_streamlines,
        "StreamlinesHit": n_streamlines_hit,
        "StreamlinesHitPercent": None,
        "VoxelsAffected": int(affected.size),
        "MeanDisconnectionPercent": float(affected.mean()) if affected.size else 0.0,
        "MaximumDisconnectionPercent": float(affected.max()) if affected.size else 0.0,
        "VolumeHalfDisconnectedML": float(np.count_nonzero(affected >= 50) * voxel_volume_ml),
    }
    if n_streamlines and n_streamlines_hit is not None:
        summary["StreamlinesHitPercent"] = 100.0 * n_streamlines_hit / n_streamlines
    return summary
