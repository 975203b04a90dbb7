"""Structural disconnection from track density images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)


class _TemplateGridInputSpec(BaseInterfaceInputSpec):
    space = traits.Str(mandatory=True, desc="standard space")
    resolution = traits.Float(mandatory=True, desc="voxel size in mm")


class _TemplateGridOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="empty image on the space's standard grid")


class TemplateGrid(SimpleInterface):
    """Write an empty image on the standard grid of a space, for programs that want a template."""

    input_spec = _TemplateGridInputSpec
    output_spec = _TemplateGridOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.core.images import save_image
        from lacuna_nipype.core.spaces import template_grid

        grid = template_grid(self.inputs.space, self.inputs.resolution)
        out_file = save_image(
            Path(runtime.cwd) / "grid.nii.gz", np.zeros(grid.shape), grid.affine, np.uint8
        )
        self._results["out_file"] = str(out_file)
        return runtime


class _DisconnectionMapInputSpec(BaseInterfaceInputSpec):
    lesion_tdi = File(exists=True, mandatory=True, desc="density of the streamlines hit")
    full_tdi = File(exists=True, mandatory=True, desc="density of the whole tractogram")
    lesion_tractogram = File(exists=True, desc="streamlines hit, .tck: counted for the summary")
    n_streamlines = traits.Int(desc="streamlines of the whole tractogram, for the summary")


class _DisconnectionMapOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="per cent of each voxel's streamlines that are hit")
    valid_mask = File(exists=True, desc="voxels with any streamline at all")
    summary = File(exists=True, desc="JSON summary")


class DisconnectionMap(SimpleInterface):
    """Share of each voxel's streamlines that pass the lesion, in per cent.

    The arithmetic is that of ``mrcalc full 0 -gt hit full -divide 0 -if 100 -mult`` in float32:
    0 where there is no streamline, never NaN.
    """

    input_spec = _DisconnectionMapInputSpec
    output_spec = _DisconnectionMapOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.tractogram import read_tck_header
        from lacuna_nipype.core.images import load_map

        inputs = self.inputs
        hit, grid = load_map(inputs.lesion_tdi)
        full, _ = load_map(inputs.full_tdi)
        n_hit = None
        if isdefined(inputs.lesion_tractogram):
            n_hit = read_tck_header(Path(inputs.lesion_tractogram)).count
        counts = (inputs.n_streamlines if isdefined(inputs.n_streamlines) else None, n_hit)
        self._results.update(write_disconnection(hit, full, grid, counts, Path(runtime.cwd)))
        return runtime


def write_disconnection(hit, full, grid, counts, folder):
    """Write a disconnection map, its valid mask and its summary.

    Parameters
    ----------
    hit, full : array
        Track densities of the streamlines hit and of all.
    grid : Grid
    counts : (int or None, int or None)
        Streamlines of the tractogram, and streamlines hit.
    folder : Path

    Returns
    -------
    dict
        Paths of ``out_file``, ``valid_mask`` and ``summary``.
    """
    from lacuna_nipype.core.disconnection import disconnection_percent, summarise_disconnection
    from lacuna_nipype.core.files import write_json
    from lacuna_nipype.core.images import save_image

    percent = disconnection_percent(hit, full)
    paths = {
        key: str(save_image(folder / f"{name}.nii.gz", data, grid.affine, dtype))
        for key, name, data, dtype in (
            ("out_file", "disconnection", percent, "f4"),
            ("valid_mask", "valid_mask", full > 0, "u1"),
        )
    }
    summary = summarise_disconnection(percent, grid.voxel_volume_ml, *counts)
    return {**paths, "summary": str(write_json(folder / "summary.json", summary))}


class _CombineSummariesInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="JSON objects")


class _CombineSummariesOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="one JSON object with the keys of all")


class CombineSummaries(SimpleInterface):
    """Put the numbers of several steps of one analysis into one JSON file."""

    input_spec = _CombineSummariesInputSpec
    output_spec = _CombineSummariesOutputSpec

    def _run_interface(self, runtime):
        import json

        from lacuna_nipype.core.files import write_json

        combined = {}
        for path in self.inputs.in_files:
            combined.update(json.loads(Path(path).read_text(encoding="utf-8")))
        out_file = write_json(Path(runtime.cwd) / "summary.json", combined)
        self._results["out_file"] = str(out_file)
        return runtime
