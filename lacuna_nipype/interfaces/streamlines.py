"""Structural disconnection with an index of the tractogram's streamlines."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
from nipype import logging
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from lacuna_nipype.interfaces.contents import fingerprint_trait, unchanged_inputs
from lacuna_nipype.interfaces.structural import write_disconnection

LOGGER = logging.getLogger("nipype.interface")


class _ConvertTractogramInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc=".trk, .trk.gz, .trx or .tt.gz")
    space = traits.Str(desc="standard space, for the sidecar")
    fingerprint = fingerprint_trait("file")


class _ConvertTractogramOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc=".tck with the step size in its header")


class ConvertTractogram(SimpleInterface):
    """Write a tractogram of another format as .tck, once for all lesions of a run."""

    input_spec = _ConvertTractogramInputSpec
    output_spec = _ConvertTractogramOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.tractogram_convert import convert_tractogram

        source, target = Path(self.inputs.in_file), Path(runtime.cwd) / "tractogram.tck"
        space = self.inputs.space if isdefined(self.inputs.space) else None
        with unchanged_inputs(self.inputs, in_file="fingerprint"):
            convert_tractogram(source, target, space=space)
        self._results["out_file"] = str(target)
        return runtime


class _CheckTractogramInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc=".tck file")
    fingerprint = fingerprint_trait("file")
    index = File(exists=True, desc="index of the tractogram, where there is one already")
    index_fingerprint = fingerprint_trait("index")


class _CheckTractogramOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the same file")
    fingerprint = traits.Str(desc="content of the file, for the steps that read it after this one")
    index_fingerprint = traits.Str(desc="content of the index, likewise")
    n_streamlines = traits.Int(desc="streamlines in the file, empty ones counted")
    meta_file = File(exists=True, desc="JSON: what was found, for sidecars")


class CheckTractogram(SimpleInterface):
    """Read a tractogram once through, before anything is made of it.

    A count in the header that disagrees with the file, or streamlines that do not lie where a
    brain is, are errors. The contents that it gives are those that all later steps insist on.
    """

    input_spec = _CheckTractogramInputSpec
    output_spec = _CheckTractogramOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.streamline_counts import check_count
        from lacuna_nipype.connectomes.tractogram_check import check_placement
        from lacuna_nipype.core.contents import unchanged
        from lacuna_nipype.core.files import write_json

        path = Path(self.inputs.in_file)
        self._record_contents()
        with unchanged({path: self._results["fingerprint"]}):
            counts, outside = check_count(path), check_placement(path)
        found = {
            "NumberOfStreamlines": counts.n,
            "EmptyStreamlines": counts.n_empty,
            "OnePointStreamlines": counts.n_one_point,
            "ZeroLengthStreamlines": counts.n_zero_length,
            "PointsOutsideBrainPercent": round(100 * outside, 3),
        }
        if counts.n_empty or counts.n_one_point or counts.n_zero_length:
            LOGGER.warning(
                "Of the %d streamlines of %s, %d have no points, %d have one, and %d have no "
                "length; those without points are in no voxel and in no matrix.",
                counts.n, path, counts.n_empty, counts.n_one_point, counts.n_zero_length,
            )  # fmt: skip
        meta_file = write_json(Path(runtime.cwd) / "tractogram.json", {"Tractogram": found})
        self._results["out_file"] = str(path)
        self._results["n_streamlines"] = counts.n
        self._results["meta_file"] = str(meta_file)
        return runtime

    def _record_contents(self):
        """Take the contents that were given, or those that are there now."""
        from lacuna_nipype.core.files import fingerprint

        for name, path in (("fingerprint", "in_file"), ("index_fingerprint", "index")):
            file, given = getattr(self.inputs, path), getattr(self.inputs, name)
            if isdefined(file):
                self._results[name] = given if isdefined(given) else fingerprint(Path(file))


class _BuildStreamlineIndexInputSpec(BaseInterfaceInputSpec):
    tractogram = File(exists=True, mandatory=True, desc=".tck file")
    reference = File(exists=True, mandatory=True, desc="image on the grid of the maps")
    space = traits.Str(mandatory=True, desc="standard space of the tractogram")
    upsample = traits.Range(low=1, desc="tckmap's ratio; from the header's step size otherwise")
    fingerprint = fingerprint_trait("tractogram")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads")


class _BuildStreamlineIndexOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="streamline index, HDF5")


class BuildStreamlineIndex(SimpleInterface):
    """Index a tractogram, once for all lesions of a run."""

    input_spec = _BuildStreamlineIndexInputSpec
    output_spec = _BuildStreamlineIndexOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.streamline_index import write_index
        from lacuna_nipype.core.images import load_map
        from lacuna_nipype.execution.progress import log_progress

        inputs = self.inputs
        _, grid = load_map(inputs.reference)
        target = Path(runtime.cwd) / "streamlines.h5"
        with unchanged_inputs(inputs, tractogram="fingerprint"):
            write_index(
                Path(inputs.tractogram),
                target,
                grid=grid,
                space=inputs.space,
                upsample=inputs.upsample if isdefined(inputs.upsample) else None,
                n_threads=inputs.num_threads,
                progress=log_progress(f"{Path(inputs.tractogram).name}: byte"),
            )
        self._results["out_file"] = str(target)
        return runtime


class _IndexedInputSpec(BaseInterfaceInputSpec):
    index = File(exists=True, mandatory=True, desc="from BuildStreamlineIndex")
    tractogram = File(exists=True, mandatory=True, desc="the .tck file that was indexed")
    fingerprint = fingerprint_trait("tractogram")
    index_fingerprint = fingerprint_trait("index")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads")


class _IndexedDensityInputSpec(_IndexedInputSpec):
    streamline_weights = File(exists=True, desc="one weight per streamline, text or .npy")


class _IndexedDensityOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="streamlines, or sum of their weights, per voxel")


class IndexedDensity(SimpleInterface):
    """Track density of the whole tractogram, as tckmap has it."""

    input_spec = _IndexedDensityInputSpec
    output_spec = _IndexedDensityOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.streamline_query import StreamlineIndex

        with _open_index(self.inputs, StreamlineIndex) as index:
            density = index.total_density(_weights(self.inputs, index))
            target = Path(runtime.cwd) / "tdi.nii.gz"
            self._results["out_file"] = _save_density(index, density, target)
        return runtime


class _AssignIndexedStreamlinesInputSpec(_IndexedInputSpec):
    nodes = File(exists=True, mandatory=True, desc="image of nodes 1 to K")
    search_radius = traits.Float(4.0, usedefault=True, units="mm", desc="how far to look, in mm")


class _AssignIndexedStreamlinesOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="nodes of every streamline's ends, .npy; 0 for none")


class AssignIndexedStreamlines(SimpleInterface):
    """Find the nodes in which streamlines end, by tck2connectome's radial search."""

    input_spec = _AssignIndexedStreamlinesInputSpec
    output_spec = _AssignIndexedStreamlinesOutputSpec

    def _run_interface(self, runtime):
        import nibabel as nb

        from lacuna_nipype.connectomes.streamline_query import StreamlineIndex
        from lacuna_nipype.core.mrtrix_grid import grid_of_image

        image = nb.load(self.inputs.nodes)
        grid = grid_of_image(image, self.inputs.nodes)
        labels = grid.from_stored(np.asanyarray(image.dataobj).astype(np.int32))
        with _open_index(self.inputs, StreamlineIndex) as index:
            pairs = index.assign_nodes(labels, grid, self.inputs.search_radius)
        self._results["out_file"] = _save_array(Path(runtime.cwd) / "assignments.npy", pairs)
        return runtime


class _IndexedDisconnectionInputSpec(_IndexedInputSpec):
    mask_file = File(exists=True, mandatory=True, desc="lesion mask on its own grid")
    full_tdi = File(exists=True, mandatory=True, desc="density of the whole tractogram")
    hit_test = traits.Enum(
        "vertices",
        "segments",
        usedefault=True,
        desc="a stored point inside the mask, as tckedit has it, or any part of the path",
    )
    streamline_weights = File(exists=True, desc="one weight per streamline, text or .npy")
    with_streamlines = traits.Bool(
        False, usedefault=True, desc="write the streamlines that are hit as a .tck file too"
    )


class _IndexedDisconnectionOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="per cent of each voxel's streamlines that are hit")
    valid_mask = File(exists=True, desc="voxels with any streamline at all")
    summary = File(exists=True, desc="JSON summary")
    hits = File(exists=True, desc="positions of the streamlines hit, .npy, from 0")
    lesion_tdi = File(exists=True, desc="density of the streamlines hit")
    lesion_tractogram = File(exists=True, desc="the streamlines hit, .tck")


class IndexedDisconnection(SimpleInterface):
    """Share of each voxel's streamlines that pass the lesion, in per cent.

    The streamlines, densities and shares are those that tckedit, tckmap and mrcalc give.
    """

    input_spec = _IndexedDisconnectionInputSpec
    output_spec = _IndexedDisconnectionOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.streamline_query import StreamlineIndex, read_mask
        from lacuna_nipype.core.images import load_map

        inputs, folder, results = self.inputs, Path(runtime.cwd), self._results
        full, grid = load_map(inputs.full_tdi)
        with _open_index(inputs, StreamlineIndex) as index:
            hits = index.select(read_mask(Path(inputs.mask_file)), inputs.hit_test)
            density = index.count(hits, _weights(inputs, index))
            lesion = index.grid.to_stored(density)
            counts = (index.record.n_streamlines, len(hits))
            results["lesion_tdi"] = _save_density(index, density, folder / "lesion_tdi.nii.gz")
            if inputs.with_streamlines:
                target = index.write_streamlines(hits, folder / "hit.tck")
                results["lesion_tractogram"] = str(target)
        results["hits"] = _save_array(folder / "hits.npy", hits)
        results.update(write_disconnection(lesion, full, grid, counts, folder))
        return runtime


@contextmanager
def _open_index(inputs, opener):
    files = {"tractogram": "fingerprint", "index": "index_fingerprint"}
    with (
        unchanged_inputs(inputs, **files),
        opener(Path(inputs.index), Path(inputs.tractogram), n_threads=inputs.num_threads) as index,
    ):
        yield index


def _weights(inputs, index):
    from lacuna_nipype.connectomes.weights import read_streamline_weights

    if not isdefined(inputs.streamline_weights):
        return None
    return read_streamline_weights(Path(inputs.streamline_weights), index.record.n_streamlines)


def _save_density(index, density, target):
    from lacuna_nipype.core.images import save_image

    data = index.grid.to_stored(density)
    return str(save_image(target, data, index.record.grid.affine, data.dtype))


def _save_array(target, values):
    from lacuna_nipype.core.files import atomic_path

    with atomic_path(target) as temporary, temporary.open("wb") as stream:
        np.save(stream, values)
    return str(target)
