"""Which files a run writes."""

from __future__ import annotations

from lacuna_nipype.cli.inputs import SNM_RESOLUTION_MM, RunInputs
from lacuna_nipype.io.lesions import Lesion
from lacuna_nipype.io.naming import build_path


def planned_outputs(inputs: RunInputs) -> list[str]:
    """List the files that a complete run leaves, sidecars aside.

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
            paths.append(build_path({**lesion.entities, **entities}))
    return paths


def _lesion_outputs(lesion: Lesion, inputs: RunInputs) -> list[dict[str, str]]:
    resolution = {"res": lesion.resolution} if lesion.resolution else {}
    outputs = [{**resolution, "desc": "lesion", "suffix": "mask", "extension": ".nii.gz"}]
    maps: dict[str, list[str]] = {"rd": [], "snm": ["disconnectionpct"]}
    tables = {"rd": ["damagepct"], "snm": ["mapdisconnectionpct"]}
    resolutions = {"snm": f"{SNM_RESOLUTION_MM:g}"}
    if inputs.functional is not None:
        tables["fnm"] = ["r", "z", *(["t"] if inputs.functional.n_subjects > 1 else [])]
        maps["fnm"] = [*tables["fnm"], "valid"]
        label = inputs.functional.grid.resolution_label
        resolutions |= {"fnm": label} if label else {}
    for analysis in inputs.analyses:
        place = {"res": resolutions[analysis]} if analysis in resolutions else {}
        for quantity in maps[analysis]:
            outputs.append({**place, "statistic": quantity, "desc": analysis, "suffix": "statmap"})
        for atlas in inputs.atlases:
            for quantity in tables[analysis]:
                outputs.append(
                    {
                        **atlas.entities,
                        "statistic": quantity,
                        "desc": analysis,
                        "suffix": "parcelstats",
                    }
                )
        outputs.append({"desc": analysis, "suffix": "stats"})
    return outputs
