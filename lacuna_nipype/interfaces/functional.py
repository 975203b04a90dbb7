"""Functional network mapping: one pass over the connectome for all lesions of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    traits,
)


class _ConnectomeMaskInputSpec(BaseInterfaceInputSpec):
    connectome_file = File(exists=True, mandatory=True, desc="HDF5 file of a connectome")


class _ConnectomeMaskOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="brain mask of the connectome, NIfTI")


class ConnectomeMask(SimpleInterface):
    """Write the brain mask of a functional connectome as an image: the grid of its maps."""

    input_spec = _ConnectomeMaskInputSpec
    output_spec = _ConnectomeMaskOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.functional import read_connectome_file
        from lacuna_nipype.core.images import save_image

        file = read_connectome_file(Path(self.inputs.connectome_file))
        brain = np.zeros(file.grid.shape, dtype=np.uint8)
        brain[tuple(file.voxels)] = 1
        out_file = Path(runtime.cwd) / "brain_mask.nii.gz"
        self._results["out_file"] = str(save_image(out_file, brain, file.grid.affine, np.uint8))
        return runtime


class _CorrelateBatchInputSpec(BaseInterfaceInputSpec):
    connectome_file = File(exists=True, mandatory=True, desc="one HDF5 file of the connectome")
    mask_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="all lesion masks, on the connectome's grid"
    )
    memory_gb = traits.Float(
        2.0, usedefault=True, nohash=True, desc="memory to stay under, in GB (1e9 bytes)"
    )
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads of the linear algebra")


class _CorrelateBatchOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="HDF5: mean and sum of squared deviations of Fisher's z")


class CorrelateBatch(SimpleInterface):
    """Correlate all lesions with every voxel in all subjects of one connectome file.

    Seeds are the lesion voxels inside the connectome's brain mask, averaged as raw series
    (Boes et al. 2015). The result holds moments that merge exactly with those of other files.
    """

    input_spec = _CorrelateBatchInputSpec
    output_spec = _CorrelateBatchOutputSpec

    def _run_interface(self, runtime):
        from threadpoolctl import threadpool_limits

        from lacuna_nipype.connectomes.functional import read_connectome_file
        from lacuna_nipype.connectomes.partial import write_partial
        from lacuna_nipype.connectomes.seeds import read_seeds
        from lacuna_nipype.execution.progress import log_progress

        file = read_connectome_file(Path(self.inputs.connectome_file))
        seeds = read_seeds(file, [Path(mask) for mask in self.inputs.mask_files])
        out_file = Path(runtime.cwd) / "partial.h5"
        with threadpool_limits(limits=self.inputs.num_threads):
            write_partial(
                file,
                seeds,
                out_file,
                memory_gb=self.inputs.memory_gb,
                n_threads=self.inputs.num_threads,
                progress=log_progress(f"{file.path.name}: piece"),
            )
        self._results["out_file"] = str(out_file)
        return runtime


class _ReduceCorrelationInputSpec(BaseInterfaceInputSpec):
    partial_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="results of CorrelateBatch, one per file"
    )
    connectome_file = File(
        exists=True, mandatory=True, desc="any HDF5 file of the connectome, for the voxel grid"
    )


class _ReduceCorrelationOutputSpec(TraitedSpec):
    r_maps = traits.List(File(exists=True), desc="mean correlation per lesion: tanh(z)")
    z_maps = traits.List(File(exists=True), desc="mean Fisher z per lesion")
    t_maps = traits.List(
        File(exists=True), desc="one-sample t of z per lesion; none for a single subject"
    )
    valid_mask = File(exists=True, desc="voxels whose series vary in some subject")
    summaries = traits.List(File(exists=True), desc="JSON summary per lesion")


class ReduceCorrelation(SimpleInterface):
    """Merge partial results over the files of a connectome and write the maps of each lesion."""

    input_spec = _ReduceCorrelationInputSpec
    output_spec = _ReduceCorrelationOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.functional import read_connectome_file
        from lacuna_nipype.connectomes.maps import write_maps

        written = write_maps(
            [Path(path) for path in self.inputs.partial_files],
            read_connectome_file(Path(self.inputs.connectome_file)),
            Path(runtime.cwd),
        )
        self._results.update(written)
        return runtime
