"""Functional network mapping: one pass over the connectome for all lesions of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Directory,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from lacuna_nipype.interfaces.contents import fingerprint_trait, unchanged_inputs


class _ConnectomeMaskInputSpec(BaseInterfaceInputSpec):
    connectome_file = File(exists=True, mandatory=True, desc="HDF5 file of a connectome")
    fingerprint = fingerprint_trait("file")


class _ConnectomeMaskOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="brain mask of the connectome, NIfTI")


class ConnectomeMask(SimpleInterface):
    """Write the brain mask of a functional connectome as an image: the grid of its maps."""

    input_spec = _ConnectomeMaskInputSpec
    output_spec = _ConnectomeMaskOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.functional import read_connectome_file
        from lacuna_nipype.core.images import save_image

        with _same_file(self.inputs):
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
    fingerprint = fingerprint_trait("file")
    memory_gb = traits.Float(
        2.0, usedefault=True, nohash=True, desc="memory to stay under, in GB (1e9 bytes)"
    )
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads of the linear algebra")
    partial_dir = Directory(
        nohash=True,
        desc="folder of results that other runs have kept: one that fits is taken, what is made "
        "is kept",
    )


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

        def write(out_file):
            with _same_file(self.inputs), threadpool_limits(limits=self.inputs.num_threads):
                write_partial(
                    file,
                    seeds,
                    out_file,
                    memory_gb=self.inputs.memory_gb,
                    n_threads=self.inputs.num_threads,
                    progress=log_progress(f"{file.path.name}: piece"),
                )

        with _same_file(self.inputs):
            file = read_connectome_file(Path(self.inputs.connectome_file))
        seeds = read_seeds(file, [Path(mask) for mask in self.inputs.mask_files])
        out_file = Path(runtime.cwd) / "partial.h5"
        _take_or_make(self.inputs.partial_dir, "moments", file, seeds, out_file, write)
        self._results["out_file"] = str(out_file)
        return runtime


def _same_file(inputs):
    """Raise when the connectome file is not, or no longer, the one that the run began with."""
    return unchanged_inputs(inputs, connectome_file="fingerprint")


def _take_or_make(folder, kind, file, seeds, out_file, write):
    """Take a result that another run has kept, or make it and keep it."""
    from lacuna_nipype.connectomes.partial import (
        TAKEN,
        keep_partial,
        stored_partial,
        take_partial,
    )

    if not isdefined(folder):
        write(out_file)
        return
    stored = stored_partial(file, seeds, Path(folder), kind)
    # Whoever removes what was kept learns from this that it was taken.
    out_file.with_name(TAKEN).write_text(f"{stored}\n", encoding="utf-8")
    if not take_partial(stored, out_file):
        write(out_file)
        keep_partial(out_file, stored)


class _SeedCorrelationsInputSpec(BaseInterfaceInputSpec):
    connectome_file = File(exists=True, mandatory=True, desc="one HDF5 file of the connectome")
    mask_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="all lesion masks, on the connectome's grid"
    )
    fingerprint = fingerprint_trait("file")
    partial_dir = Directory(
        nohash=True,
        desc="folder of results that other runs have kept: one that fits is taken, what is made "
        "is kept",
    )


class _SeedCorrelationsOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="HDF5: subjects by lesion voxels, one dataset per lesion")


class SeedCorrelations(SimpleInterface):
    """Correlate each lesion's voxels with the lesion's mean in one file of the connectome.

    First pass of the Pini method; only lesion voxels are touched.
    """

    input_spec = _SeedCorrelationsInputSpec
    output_spec = _SeedCorrelationsOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.functional import read_connectome_file
        from lacuna_nipype.connectomes.pini import write_seed_correlations
        from lacuna_nipype.connectomes.seeds import read_seeds

        def write(out_file):
            with _same_file(self.inputs):
                write_seed_correlations(file, seeds, out_file)

        with _same_file(self.inputs):
            file = read_connectome_file(Path(self.inputs.connectome_file))
        seeds = read_seeds(file, [Path(mask) for mask in self.inputs.mask_files])
        out_file = Path(runtime.cwd) / "seeds.h5"
        _take_or_make(self.inputs.partial_dir, "seeds", file, seeds, out_file, write)
        self._results["out_file"] = str(out_file)
        return runtime


class _SelectSeedsInputSpec(BaseInterfaceInputSpec):
    seed_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="results of SeedCorrelations, one per file"
    )
    mask_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="the lesion masks they were made with"
    )
    connectome_file = File(
        exists=True, mandatory=True, desc="any HDF5 file of the connectome, for the voxel grid"
    )
    fingerprint = fingerprint_trait("file of the connectome")
    percentile = traits.Range(
        0.0,
        100.0,
        20.0,
        usedefault=True,
        desc="voxels that load less than this share are left out",
    )


class _SelectSeedsOutputSpec(TraitedSpec):
    mask_files = traits.List(File(exists=True), desc="voxels that are kept, per lesion")
    meta_files = traits.List(File(exists=True), desc="JSON per lesion: what was kept")


class SelectSeeds(SimpleInterface):
    """Keep the lesion voxels that represent the lesion (Pini et al. 2021).

    The first principal component is over all subjects of the connectome, so that the choice
    does not depend on how the connectome is cut into files.
    """

    input_spec = _SelectSeedsInputSpec
    output_spec = _SelectSeedsOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.functional import read_connectome_file
        from lacuna_nipype.connectomes.pini import write_selected_seeds
        from lacuna_nipype.connectomes.seeds import read_seeds

        with _same_file(self.inputs):
            file = read_connectome_file(Path(self.inputs.connectome_file))
        masks, metas = write_selected_seeds(
            [Path(path) for path in self.inputs.seed_files],
            read_seeds(file, [Path(mask) for mask in self.inputs.mask_files]),
            file,
            Path(runtime.cwd),
            percentile=self.inputs.percentile,
        )
        self._results["mask_files"] = [str(path) for path in masks]
        self._results["meta_files"] = [str(path) for path in metas]
        return runtime


class _VerifyMapsInputSpec(BaseInterfaceInputSpec):
    source_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="the connectome's files in Lacuna's layout"
    )
    mask_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="seeds, on the connectome's grid"
    )
    r_maps = InputMultiObject(File(exists=True), mandatory=True, desc="maps to check")
    n_voxels = traits.Range(1, None, mandatory=True, desc="voxels to recompute in each map")
    stored_error = traits.Float(
        0.0, usedefault=True, desc="error of correlations that the store states"
    )


class _VerifyMapsOutputSpec(TraitedSpec):
    meta_files = traits.List(File(exists=True), desc="JSON per lesion: the largest difference")


class VerifyMaps(SimpleInterface):
    """Recompute some voxels of every map from the source series, one correlation at a time.

    The whole connectome is read once more; a map that differs by more than the connectome's
    stated precision is an error.
    """

    input_spec = _VerifyMapsInputSpec
    output_spec = _VerifyMapsOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.verify import verify_maps

        inputs = self.inputs
        paths = verify_maps(
            *([Path(path) for path in files]
              for files in (inputs.source_files, inputs.mask_files, inputs.r_maps)),
            Path(runtime.cwd),
            n_voxels=inputs.n_voxels,
            stored_error=inputs.stored_error,
        )  # fmt: skip
        self._results["meta_files"] = [str(path) for path in paths]
        return runtime


class _ReduceCorrelationInputSpec(BaseInterfaceInputSpec):
    partial_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="results of CorrelateBatch, one per file"
    )
    connectome_file = File(
        exists=True, mandatory=True, desc="any HDF5 file of the connectome, for the voxel grid"
    )
    fingerprint = fingerprint_trait("file of the connectome")
    p_maps = traits.Bool(
        True, usedefault=True, desc="make maps of p, of the false discovery rate, and thresholded"
    )
    fdr_alpha = traits.Range(
        0.0, 1.0, 0.05, usedefault=True, desc="false discovery rate below which a voxel is marked"
    )
    t_threshold = traits.Float(desc="mark voxels whose t is larger in size")
    with_errors = traits.Bool(
        False, usedefault=True, desc="write the standard error of z, to move maps to other grids"
    )


class _ReduceCorrelationOutputSpec(TraitedSpec):
    r_maps = traits.List(File(exists=True), desc="mean correlation per lesion: tanh(z)")
    z_maps = traits.List(File(exists=True), desc="mean Fisher z per lesion")
    t_maps = traits.List(
        File(exists=True), desc="one-sample t of z per lesion; none for a single subject"
    )
    p_maps = traits.List(File(exists=True), desc="two-sided probability of t per lesion")
    q_maps = traits.List(
        File(exists=True), desc="false discovery rate per lesion, over voxels outside the seed"
    )
    qsig_maps = traits.List(File(exists=True), desc="voxels with a rate below fdr_alpha")
    tsig_maps = traits.List(File(exists=True), desc="voxels with a t above t_threshold in size")
    error_maps = traits.List(
        File(exists=True), desc="standard error of z per lesion, if asked for"
    )
    valid_mask = File(exists=True, desc="voxels whose series vary in some subject")
    summaries = traits.List(File(exists=True), desc="JSON summary per lesion")


class ReduceCorrelation(SimpleInterface):
    """Merge partial results over the files of a connectome and write the maps of each lesion."""

    input_spec = _ReduceCorrelationInputSpec
    output_spec = _ReduceCorrelationOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.functional import read_connectome_file
        from lacuna_nipype.connectomes.maps import MapOptions, write_maps

        inputs = self.inputs
        threshold = inputs.t_threshold if isdefined(inputs.t_threshold) else None
        with _same_file(inputs):
            file = read_connectome_file(Path(inputs.connectome_file))
        written = write_maps(
            [Path(path) for path in inputs.partial_files],
            file,
            Path(runtime.cwd),
            MapOptions(inputs.p_maps, inputs.fdr_alpha, threshold),
            with_errors=inputs.with_errors,
        )
        self._results.update(written)
        return runtime


# Names of a lesion's own files, by the lists over lesions that they are taken from.
OWN_FILES = {
    **{f"{quantity}_maps": quantity for quantity in ("r", "z", "t", "p", "q", "qsig", "tsig")},
    "error_maps": "error",
    "summaries": "summary",
    "resampling": "resampling",
    "selection": "selection",
    "verification": "verification",
}


class _ListMapsInputSpec(BaseInterfaceInputSpec):
    r_maps = InputMultiObject(File(exists=True), desc="mean correlation, one per lesion")
    z_maps = InputMultiObject(File(exists=True), desc="mean Fisher z, one per lesion")
    t_maps = InputMultiObject(File(exists=True), desc="t of z, one per lesion")
    p_maps = InputMultiObject(File(exists=True), desc="probability of t, one per lesion")
    q_maps = InputMultiObject(File(exists=True), desc="false discovery rate, one per lesion")
    qsig_maps = InputMultiObject(File(exists=True), desc="voxels with a low rate, one per lesion")
    tsig_maps = InputMultiObject(File(exists=True), desc="voxels with a large t, one per lesion")
    error_maps = InputMultiObject(File(exists=True), desc="standard error of z, one per lesion")
    summaries = InputMultiObject(File(exists=True), desc="JSON summary, one per lesion")
    resampling = InputMultiObject(
        File(exists=True), desc="JSON on the change of grid, one per lesion"
    )
    selection = InputMultiObject(
        File(exists=True), desc="JSON on the voxels that were kept, one per lesion"
    )
    verification = InputMultiObject(
        File(exists=True), desc="JSON on the largest difference found, one per lesion"
    )
    valid_mask = File(exists=True, mandatory=True, desc="voxels whose series vary")


class _ListMapsOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="JSON: the lists, by the names of a lesion's own files")
    valid_mask = File(exists=True, desc="as given")


class ListMaps(SimpleInterface):
    """Write lists over all lesions into one file.

    A step of one lesion that is connected to such a list reads and checks all of it: the time of
    a run would grow with the square of the number of lesions. See :class:`PickMaps`.
    """

    input_spec = _ListMapsInputSpec
    output_spec = _ListMapsOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.core.files import write_json

        given = {own: getattr(self.inputs, listed) for listed, own in OWN_FILES.items()}
        lists = {own: list(files) for own, files in given.items() if isdefined(files)}
        out_file = Path(runtime.cwd) / "maps.json"
        self._results["out_file"] = str(write_json(out_file, lists))
        self._results["valid_mask"] = self.inputs.valid_mask
        return runtime


class _PickMapsInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="from ListMaps")
    number = traits.Range(0, None, mandatory=True, desc="place of the lesion, from 0")


class _PickMapsOutputSpec(TraitedSpec):
    r = File(exists=True, desc="mean correlation")
    z = File(exists=True, desc="mean Fisher z")
    t = File(exists=True, desc="t of z")
    p = File(exists=True, desc="probability of t")
    q = File(exists=True, desc="false discovery rate")
    qsig = File(exists=True, desc="voxels with a low rate")
    tsig = File(exists=True, desc="voxels with a large t")
    error = File(exists=True, desc="standard error of z")
    summary = File(exists=True, desc="JSON summary")
    resampling = File(exists=True, desc="JSON on the change of grid")
    selection = File(exists=True, desc="JSON on the voxels that were kept")
    verification = File(exists=True, desc="JSON on the largest difference found")


class PickMaps(SimpleInterface):
    """Take one lesion's files from those of all; what was not made stays undefined."""

    input_spec = _PickMapsInputSpec
    output_spec = _PickMapsOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.core.files import read_json

        for own, files in read_json(self.inputs.in_file).items():
            # An empty list is one that was not asked for.
            if files:
                self._results[own] = files[self.inputs.number]
        return runtime
