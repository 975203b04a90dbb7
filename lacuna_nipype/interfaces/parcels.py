"""Parcellations: preparation, regional damage, summaries of maps."""

from __future__ import annotations

from pathlib import Path

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

from lacuna_nipype.core.parcels import STATISTICS
from lacuna_nipype.interfaces.contents import fingerprint_trait, unchanged_inputs
from lacuna_nipype.interfaces.transforms import read_transforms


class _PrepareParcelsInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="atlas: 3D labels or 4D probabilities")
    labels_file = File(exists=True, mandatory=True, desc="names of the regions")
    reference = File(
        exists=True,
        desc="image whose grid to use, of the atlas's space unless there are transforms; the "
        "atlas's own grid otherwise",
    )
    transforms = InputMultiObject(
        File(exists=True),
        requires=["reference"],
        desc="ITK transforms from the atlas's space to the reference's, in the order in which "
        "they are applied to the atlas",
    )
    fingerprint = fingerprint_trait("atlas")
    labels_fingerprint = fingerprint_trait("names")


class _PrepareParcelsOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="sparse region weights on the grid (.npz)")
    out_meta = File(exists=True, desc="JSON: regions lost, volumes before and after, transforms")


class PrepareParcels(SimpleInterface):
    """Turn an atlas into sparse region weights on a grid, once for all lesions of a run.

    Labels move by nearest neighbour, probabilities by trilinear interpolation, with or without
    transforms; a region that vanishes keeps its row.
    """

    input_spec = _PrepareParcelsInputSpec
    output_spec = _PrepareParcelsOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.atlases.parcels import bring_parcels, save_parcels
        from lacuna_nipype.core.files import write_json

        inputs, folder = self.inputs, Path(runtime.cwd)
        target, point_map, described = read_transforms(inputs.reference, inputs.transforms)
        with unchanged_inputs(inputs, in_file="fingerprint", labels_file="labels_fingerprint"):
            parcels, change = bring_parcels(
                Path(inputs.in_file), Path(inputs.labels_file), target, point_map
            )
        meta = {"RegionResampling": change.to_dict(), "Transforms": described}
        self._results["out_file"] = str(save_parcels(parcels, folder / "parcels.npz"))
        self._results["out_meta"] = str(write_json(folder / "parcels.json", meta))
        return runtime


class _RegionalDamageInputSpec(BaseInterfaceInputSpec):
    mask_file = File(exists=True, mandatory=True, desc="lesion mask on its own grid")
    parcels_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="atlases from PrepareParcels, on their own grids"
    )
    atlas_names = traits.List(
        traits.Str(), desc="names of the atlases in the summary, in the order of parcels_files"
    )


class _RegionalDamageOutputSpec(TraitedSpec):
    tables = OutputMultiObject(File(exists=True), desc="TSV per atlas, in the order given")
    summary = File(exists=True, desc="JSON: lesion size and most damaged region per atlas")


class RegionalDamage(SimpleInterface):
    """Per cent of every region inside the lesion."""

    input_spec = _RegionalDamageInputSpec
    output_spec = _RegionalDamageOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.atlases.parcels import read_parcels
        from lacuna_nipype.atlases.tables import write_damage
        from lacuna_nipype.core.images import load_map

        data, grid = load_map(self.inputs.mask_file)
        parcels = [read_parcels(Path(path)) for path in self.inputs.parcels_files]
        names = self.inputs.atlas_names if isdefined(self.inputs.atlas_names) else None
        tables, summary = write_damage(data > 0, grid, parcels, Path(runtime.cwd), names)
        self._results["tables"] = [str(path) for path in tables]
        self._results["summary"] = str(summary)
        return runtime


class _AggregateParcelsInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="maps to summarise")
    quantities = traits.List(
        traits.Str(), mandatory=True, desc="name of each map's quantity: the column of its table"
    )
    transforms = traits.List(
        traits.Enum("identity", "tanh"),
        desc="applied to the summary of each map; tanh turns a mean z into an r",
    )
    valid_mask = File(exists=True, desc="voxels at which the maps mean something; all otherwise")
    parcels_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="atlases from PrepareParcels, on the maps' grid"
    )
    statistic = traits.Enum(*STATISTICS, usedefault=True, desc="summary over a region's voxels")


class _AggregateParcelsOutputSpec(TraitedSpec):
    tables = OutputMultiObject(
        File(exists=True), desc="TSV per atlas and quantity, quantities varying fastest"
    )


class AggregateParcels(SimpleInterface):
    """Summarise maps over the regions of atlases."""

    input_spec = _AggregateParcelsInputSpec
    output_spec = _AggregateParcelsOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.atlases.parcels import read_parcels
        from lacuna_nipype.atlases.tables import write_aggregates
        from lacuna_nipype.core.images import load_map

        inputs = self.inputs
        # One after the other: a lesion has several maps, and they are large.
        named = zip(inputs.quantities, inputs.in_files, strict=True)
        maps = ((quantity, load_map(path)[0]) for quantity, path in named)
        valid = load_map(inputs.valid_mask)[0] > 0 if isdefined(inputs.valid_mask) else None
        transforms = inputs.transforms if isdefined(inputs.transforms) else None
        tables = write_aggregates(
            maps,
            valid,
            [read_parcels(Path(path)) for path in inputs.parcels_files],
            Path(runtime.cwd),
            statistic=inputs.statistic,
            transforms=transforms,
        )
        self._results["tables"] = [str(path) for path in tables]
        return runtime
