"""Lesion masks: validation and change of grid."""

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

from lacuna_nipype.interfaces.contents import fingerprint_trait, unchanged_inputs


class _ValidateMaskInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="lesion mask, NIfTI")
    space = traits.Str(
        desc="standard space the mask is declared to be in; checked against its grid"
    )
    fingerprint = fingerprint_trait("mask")


class _ValidateMaskOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the mask as unsigned bytes 0 and 1, on its own grid")
    out_meta = File(exists=True, desc="JSON: voxels, volume in ml, remarks")
    n_voxels = traits.Int(desc="number of lesion voxels; 0 for an empty mask")


class ValidateMask(SimpleInterface):
    """Read a lesion mask with every check and write it in one canonical form.

    An empty mask passes: all later steps give zeros for it.
    """

    input_spec = _ValidateMaskInputSpec
    output_spec = _ValidateMaskOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.core.files import write_json
        from lacuna_nipype.core.images import save_image
        from lacuna_nipype.core.spaces import check_declared_space
        from lacuna_nipype.io.images import load_mask

        with unchanged_inputs(self.inputs, in_file="fingerprint"):
            mask = load_mask(self.inputs.in_file)
        if isdefined(self.inputs.space):
            check_declared_space(self.inputs.space, mask.grid, f"Mask {self.inputs.in_file}")
        out_file = save_image(
            Path(runtime.cwd) / "mask.nii.gz", mask.data, mask.grid.affine, np.uint8
        )
        meta = {
            "LesionVoxels": mask.n_voxels,
            "LesionVolumeML": mask.volume_ml,
            "Warnings": list(mask.warnings),
        }
        self._results["out_file"] = str(out_file)
        self._results["out_meta"] = str(write_json(Path(runtime.cwd) / "mask.json", meta))
        self._results["n_voxels"] = mask.n_voxels
        return runtime


class _ResampleMaskInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="lesion mask, in the reference's space")
    reference = File(exists=True, mandatory=True, desc="image whose grid to bring the mask to")


class _ResampleMaskOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="mask on the reference's grid, unsigned bytes 0 and 1")
    out_meta = File(exists=True, desc="JSON: voxels and volume before and after")


class ResampleMask(SimpleInterface):
    """Bring a mask to another grid of the same space by nearest neighbour.

    A lesion that would vanish keeps the voxel that holds its centre of mass.
    """

    input_spec = _ResampleMaskInputSpec
    output_spec = _ResampleMaskOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.core.files import write_json
        from lacuna_nipype.core.images import load_map, save_image
        from lacuna_nipype.core.lesion_resampling import resample_mask

        data, grid = load_map(self.inputs.in_file)
        _, target = load_map(self.inputs.reference)
        resampled, accounting = resample_mask(data > 0, grid, target)
        folder = Path(runtime.cwd)
        out_file = save_image(folder / "mask.nii.gz", resampled, target.affine, np.uint8)
        meta = {"LesionResampling": accounting.to_dict()}
        self._results["out_file"] = str(out_file)
        self._results["out_meta"] = str(write_json(folder / "mask.json", meta))
        return runtime
