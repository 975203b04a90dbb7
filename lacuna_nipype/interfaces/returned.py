"""Maps on another grid, or in another space, than that in which they were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    OutputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)


class _ReturnInputSpec(BaseInterfaceInputSpec):
    valid_mask = File(
        exists=True, mandatory=True, desc="voxels at which the maps mean something, as made"
    )
    space = traits.Str(mandatory=True, desc="standard space to bring the maps to")
    resolution = traits.Float(mandatory=True, desc="voxel size there, mm")
    transforms = InputMultiObject(
        File(exists=True), desc="transforms to that space, in order; none for another grid only"
    )


class _ReturnMapInputSpec(_ReturnInputSpec):
    in_file = File(exists=True, mandatory=True, desc="continuous map")


class _ReturnMapOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the map on the standard grid; 0 where it means nothing")


class ReturnMap(SimpleInterface):
    """Bring a continuous map to a standard grid by linear interpolation."""

    input_spec = _ReturnMapInputSpec
    output_spec = _ReturnMapOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.core.images import load_map, save_image

        move, target = _mover(self.inputs)
        values, _ = move(load_map(self.inputs.in_file)[0])
        out_file = Path(runtime.cwd) / "map.nii.gz"
        self._results["out_file"] = str(save_image(out_file, values, target.affine, np.float32))
        return runtime


class _ReturnFunctionalMapsInputSpec(_ReturnInputSpec):
    z_map = File(exists=True, mandatory=True, desc="mean Fisher z")
    error_map = File(exists=True, desc="its standard error; none for a single subject")
    mask_file = File(exists=True, mandatory=True, desc="lesion mask in the space to return to")
    quantities = traits.List(traits.Str(), mandatory=True, desc="maps to make, in this order")
    n_subjects = traits.Int(mandatory=True, desc="subjects of the connectome")
    p_maps = traits.Bool(True, usedefault=True, desc="as for ReduceCorrelation")
    fdr_alpha = traits.Range(0.0, 1.0, 0.05, usedefault=True, desc="as for ReduceCorrelation")
    t_threshold = traits.Float(desc="as for ReduceCorrelation")


class _ReturnFunctionalMapsOutputSpec(TraitedSpec):
    out_files = OutputMultiObject(
        File(exists=True), desc="the maps in the order of quantities, then the valid voxels"
    )


class ReturnFunctionalMaps(SimpleInterface):
    """Make the functional maps of a lesion on another grid.

    z and its standard error are interpolated; r, t, p, q and thresholded maps are made of them.
    """

    input_spec = _ReturnFunctionalMapsInputSpec
    output_spec = _ReturnFunctionalMapsOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.maps import MapOptions
        from lacuna_nipype.connectomes.returned_maps import return_maps, write_returned_maps
        from lacuna_nipype.core.images import load_map
        from lacuna_nipype.core.lesion_resampling import resample_mask

        inputs = self.inputs
        move, target = _mover(inputs)
        z, valid = move(load_map(inputs.z_map)[0])
        error = move(load_map(inputs.error_map)[0])[0] if isdefined(inputs.error_map) else None
        lesion, grid = load_map(inputs.mask_file)
        seed, _ = resample_mask(lesion > 0, grid, target)
        threshold = inputs.t_threshold if isdefined(inputs.t_threshold) else None
        options = MapOptions(inputs.p_maps, inputs.fdr_alpha, threshold)
        made = return_maps(z, error, valid, seed, inputs.n_subjects, options)
        written = write_returned_maps(
            {key: made[key] for key in (*inputs.quantities, "valid")}, target, Path(runtime.cwd)
        )
        self._results["out_files"] = list(written.values())
        return runtime


def _mover(inputs):
    """Give a function that moves a map and says where it is valid, and the grid it moves to."""
    from lacuna_nipype.core.images import load_map
    from lacuna_nipype.core.spaces import template_grid
    from lacuna_nipype.core.transforms import load_point_map, warp_map

    valid, source = load_map(inputs.valid_mask)
    target = template_grid(inputs.space, inputs.resolution)
    paths = [Path(path) for path in inputs.transforms] if isdefined(inputs.transforms) else []
    point_map = load_point_map(paths)

    def move(data):
        return warp_map(data, source, target, point_map, valid=valid > 0)

    return move, target
