"""Functional network mapping between parcels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from lacuna_nipype.core.afnm import WEIGHTINGS
from lacuna_nipype.interfaces.contents import fingerprint_trait, unchanged_inputs


class _ParcelScoresInputSpec(BaseInterfaceInputSpec):
    mask_file = File(exists=True, mandatory=True, desc="lesion mask on its own grid")
    parcels_file = File(
        exists=True, mandatory=True, desc="atlas from PrepareParcels, on its own grid"
    )
    matrix_file = File(
        exists=True,
        mandatory=True,
        desc="TSV of Fisher's z between the atlas's parcels, from 'connectome prepare'",
    )
    weighting = traits.Enum(
        *WEIGHTINGS,
        usedefault=True,
        desc="weight of a parcel that the lesion touches: 1 / number of such parcels, 1, or the "
        "fraction of the parcel inside the lesion",
    )
    matrix_fingerprint = fingerprint_trait("matrix")


class _ParcelScoresOutputSpec(TraitedSpec):
    table = File(exists=True, desc="TSV: score and weight of every parcel")
    summary = File(exists=True, desc="JSON: parcels touched, highest and lowest score")


class ParcelScores(SimpleInterface):
    """Score every parcel by its connectivity with the parcels that a lesion touches.

    The lesion's weights over parcels times the matrix of Fisher's z. Parcels without
    connectivity (``n/a`` in the matrix) take no part and have no score.
    """

    input_spec = _ParcelScoresInputSpec
    output_spec = _ParcelScoresOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.atlases.parcels import read_parcels
        from lacuna_nipype.connectomes.prepare import read_matrix
        from lacuna_nipype.core.afnm import lesion_scores
        from lacuna_nipype.core.files import write_json, write_table
        from lacuna_nipype.core.images import load_map

        inputs = self.inputs
        data, grid = load_map(inputs.mask_file)
        parcels = read_parcels(Path(inputs.parcels_file))
        with unchanged_inputs(inputs, matrix_file="matrix_fingerprint"):
            matrix = read_matrix(Path(inputs.matrix_file))
        z = matrix.z_for(parcels.names)
        result = lesion_scores(data > 0, grid, parcels, z, inputs.weighting)
        table = _score_table(parcels, result)
        voxels = int(np.count_nonzero(data > 0))
        summary = {
            "LesionVoxels": voxels,
            "LesionVolumeML": voxels * grid.voxel_volume_ml,
            "Weighting": inputs.weighting,
            "NumberOfSubjects": matrix.n_subjects,
            **_score_summary(table, result),
        }
        folder = Path(runtime.cwd)
        self._results["table"] = str(write_table(folder / "scores.tsv", table))
        self._results["summary"] = str(write_json(folder / "scores.json", summary))
        return runtime


def _score_table(parcels, result):
    """One row per parcel, in the order of the atlas."""
    import pandas as pd

    return pd.DataFrame(
        {
            "index": parcels.index,
            "name": list(parcels.names),
            "score": result.score,
            "n_voxels": result.damage.total,
            "volume_ml": result.damage.total * result.damage.voxel_volume_ml,
            "weight": result.weight,
        }
    )


def _score_summary(table, result):
    """Numbers of the lesion as a whole; none is NaN."""
    touched = result.damage.damaged > 0
    share = result.damage.lesion_in_regions
    scored = table[np.isfinite(table["score"])]
    summary = {
        "Regions": len(table),
        "RegionsTouched": int(touched.sum()),
        "LesionInRegionsPercent": None if np.isnan(share) else share,
        "RegionsWithoutConnectivity": int((~result.connected).sum()),
        "RegionsTouchedWithoutConnectivity": table["name"][touched & ~result.connected].tolist(),
    }
    for word, place in (("Highest", "idxmax"), ("Lowest", "idxmin")):
        row = scored.loc[getattr(scored["score"], place)()] if len(scored) else None
        found = row is not None and bool(table["weight"].any())
        summary[f"{word}Score"] = float(row["score"]) if found else None
        summary[f"RegionOf{word}Score"] = str(row["name"]) if found else None
    return summary
