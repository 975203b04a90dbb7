"""Structural disconnection from track density images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
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
    full_tractogram = File(exists=True, desc="whole tractogram, .tck: counted for the summary")


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
        from lacuna_nipype.core.disconnection import disconnection_percent, summarise_disconnection
        from lacuna_nipype.core.files import write_json
        from lacuna_nipype.core.images import load_map, save_image

        inputs, folder = self.inputs, Path(runtime.cwd)
        hit, grid = load_map(inputs.lesion_tdi)
        full, _ = load_map(inputs.full_tdi)
        percent = disconnection_percent(hit, full)
        counts = [
            read_tck_header(Path(path)).count if isdefined(path) else None
            for path in (inputs.full_tractogram, inputs.lesion_tractogram)
        ]
        summary = summarise_disconnection(percent, grid.voxel_volume_ml, *counts)
        for key, data, dtype in (("out_file", percent, "f4"), ("valid_mask", full > 0, "u1")):
            self._results[key] = str(
                save_image(folder / f"{key}.nii.gz", data, grid.affine, dtype)
            )
        self._results["summary"] = str(write_json(folder / "summary.json", summary))
        return runtime
