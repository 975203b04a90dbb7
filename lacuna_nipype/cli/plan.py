"""Which files a run writes."""

from __future__ import annotations

from pathlib import Path

from lacuna_nipype.cli.inputs import RunInputs
from lacuna_nipype.io.derivatives import sidecar_path
from lacuna_nipype.io.lesions import Lesion
from lacuna_nipype.io.naming import build_path
from lacuna_nipype.io.quantities import FNM_TABLES


def planned_outputs(inputs: RunInputs) -> list[str]:
    """List the files that a complete run leaves, each followed by its sidecar.

    Parameters
    ----------
    inputs : RunInputs

    Returns
    -------
    list of str
        Paths relative to the output folder, lesion by lesion.
    """
    paths = []
    for lesion in inputs.inspection.lesions:
        for entities in _lesion_outputs(lesion, inputs):
            path = build_path({**lesion.entities, **entities})
            paths.append(path)
            if not path.endswith(".json"):
                paths.append(str(sidecar_path(Path(path))))
    return paths


def _lesion_outputs(lesion: Lesion, inputs: RunInputs) -> list[dict[str, str]]:
    resolution = {"res": lesion.resolution} if lesion.resolution else {}
    outputs = [{**resolution, "desc": "lesion", "suffix": "mask", "extension": ".nii.gz"}]
    maps: dict[str, list[str]] = {"rd": [], "snm": ["disconnectionpct"], "afnm": []}
    tables = {"rd": ["damagepct"], "snm": ["mapdisconnectionpct"], "afnm": ["score"]}
    labels: dict[str, str | None] = {}
    if inputs.structural is not None:
        labels["snm"] = f"{inputs.structural.tractogram.resolution:g}"
    if inputs.functional is not None:
        tables["fnm"] = [quantity for quantity in inputs.fnm_maps if quantity in FNM_TABLES]
        maps["fnm"] = [*inputs.fnm_maps, "valid"]
        labels["fnm"] = inputs.functional.grid.resolution_label
    for analysis in inputs.analyses:
        place = {}
        if analysis in labels:
            place = inputs.spaces.entities(analysis, lesion.space, labels[analysis])
        for quantity in maps[analysis]:
            outputs.append({**place, "statistic": quantity, "desc": analysis, "suffix": "statmap"})
        atlases = inputs.atlases
        if analysis == "afnm" and inputs.matrix is not None:
            atlases = (inputs.atlases[inputs.matrix.atlas],)
        for atlas in atlases:
            for quantity in tables[analysis]:
                outputs.append(
                    {
                        **atlas.entities,
                        "statistic": quantity,
                        "desc": analysis,
                        "suffix": "parcelstats",
                    }
                )
        if analysis == "snm" and inputs.structural is not None:
            made = inputs.spaces.made_entities("snm", lesion.space, labels["snm"])
            for _, stored in inputs.structural.outputs.files(made):
                outputs += [{**own, "desc": "snm"} for own, _ in stored]
        outputs.append({"desc": analysis, "suffix": "stats"})
    return outputs
