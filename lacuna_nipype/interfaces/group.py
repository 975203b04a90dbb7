"""Results of all participants together: tables, overlap, association."""

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

from lacuna_nipype.core.association import PERMUTATIONS


class _CollectTableInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="parcel tables of one kind, one per participant"
    )
    quantity = traits.Str(mandatory=True, desc="name of the column of values")
    first_columns = traits.List(
        traits.Tuple(traits.Str(), traits.List(traits.Str())),
        mandatory=True,
        desc="names and content of the columns before the regions, in the order of in_files",
    )


class _CollectTableOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="TSV: a row per participant, a column per region")


class CollectTable(SimpleInterface):
    """Put the parcel tables of all participants side by side."""

    input_spec = _CollectTableInputSpec
    output_spec = _CollectTableOutputSpec

    def _run_interface(self, runtime):
        import pandas as pd

        from lacuna_nipype.core.files import write_table
        from lacuna_nipype.io.group_collect import side_by_side

        ids = pd.DataFrame(dict(self.inputs.first_columns), dtype=str)
        paths = [Path(path) for path in self.inputs.in_files]
        table = side_by_side(ids, paths, self.inputs.quantity)
        self._results["out_file"] = str(write_table(Path(runtime.cwd) / "group.tsv", table))
        return runtime


class _CountOverlapInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="maps of one kind, one per participant"
    )
    comparisons = traits.List(
        traits.Enum("above", "below", "at_least"),
        mandatory=True,
        desc="how the values of each result compare with its threshold",
    )
    thresholds = traits.List(traits.Float(), mandatory=True, desc="threshold of each result")
    fractions = traits.List(
        traits.Bool(), mandatory=True, desc="give shares of the participants instead of numbers"
    )


class _CountOverlapOutputSpec(TraitedSpec):
    out_files = OutputMultiObject(File(exists=True), desc="one volume per threshold")


class CountOverlap(SimpleInterface):
    """Count the maps that pass thresholds at every voxel, with one map in memory at a time."""

    input_spec = _CountOverlapInputSpec
    output_spec = _CountOverlapOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.io.group_maps import write_overlaps

        inputs = self.inputs
        rows = list(zip(inputs.comparisons, inputs.thresholds, inputs.fractions, strict=True))
        written = write_overlaps([Path(p) for p in inputs.in_files], rows, Path(runtime.cwd))
        self._results["out_files"] = [str(path) for path in written]
        return runtime


class _AssociationInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="results of one kind, one per participant"
    )
    tested = traits.List(
        traits.Float(), mandatory=True, desc="score of each participant, or 0 and 1 for groups"
    )
    tested_name = traits.Str(mandatory=True, desc="name of the score")
    covariates = traits.List(
        traits.List(traits.Float()), desc="values of each covariate, one per participant"
    )
    covariate_names = traits.List(traits.Str(), desc="names of the covariates")
    minimum = traits.Range(
        low=1, value=1, usedefault=True, desc="participants whose value must not be zero"
    )
    permutations = traits.Range(
        low=1, value=PERMUTATIONS, usedefault=True, desc="permutations of the participants"
    )
    seed = traits.Int(0, usedefault=True, desc="seed of the permutations")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads of linear algebra")


def _design(inputs):
    """Build the design from the inputs of an interface."""
    import numpy as np

    from lacuna_nipype.core.association import make_design

    covariates = list(inputs.covariates) if isdefined(inputs.covariates) else []
    names = list(inputs.covariate_names) if isdefined(inputs.covariate_names) else []
    return make_design(
        inputs.tested,
        np.transpose(covariates) if covariates else None,
        tested_name=inputs.tested_name,
        covariate_names=names,
    )


class _AssociateMapsInputSpec(_AssociationInputSpec):
    valid_files = InputMultiObject(
        File(exists=True), desc="voxels at which the maps mean something, one per participant"
    )
    tfce = traits.Bool(False, usedefault=True, desc="threshold-free cluster enhancement too")


class _AssociateMapsOutputSpec(TraitedSpec):
    out_maps = OutputMultiObject(
        File(exists=True), desc="t, -log10 p, partial r, tested voxels; -log10 p of TFCE if asked"
    )
    clusters = File(exists=True, desc="TSV of clusters with coordinates of their peaks")
    summary = File(exists=True, desc="JSON: values tested, critical t, significant values")


class AssociateMaps(SimpleInterface):
    """Test every voxel of a cohort's maps against a score, by permutation."""

    input_spec = _AssociateMapsInputSpec
    output_spec = _AssociateMapsOutputSpec

    def _run_interface(self, runtime):
        from threadpoolctl import threadpool_limits

        from lacuna_nipype.io.group_association import associate_maps

        inputs = self.inputs
        valid = inputs.valid_files if isdefined(inputs.valid_files) else []
        with threadpool_limits(inputs.num_threads):
            maps, clusters, summary = associate_maps(
                [Path(path) for path in inputs.in_files],
                _design(inputs),
                Path(runtime.cwd),
                minimum=inputs.minimum,
                valid_paths=[Path(path) for path in valid],
                permutations=inputs.permutations,
                seed=inputs.seed,
                tfce=inputs.tfce,
            )
        self._results["out_maps"] = [str(path) for path in maps.values()]
        self._results["clusters"], self._results["summary"] = str(clusters), str(summary)
        return runtime


class _AssociateTablesInputSpec(_AssociationInputSpec):
    quantity = traits.Str(mandatory=True, desc="name of the column of values")


class _AssociateTablesOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="TSV: t, partial r and corrected p of every region")
    summary = File(exists=True, desc="JSON: values tested, critical t, significant values")


class AssociateTables(SimpleInterface):
    """Test every region of a cohort's parcel tables against a score, by permutation."""

    input_spec = _AssociateTablesInputSpec
    output_spec = _AssociateTablesOutputSpec

    def _run_interface(self, runtime):
        from threadpoolctl import threadpool_limits

        from lacuna_nipype.io.group_association import associate_tables

        inputs = self.inputs
        with threadpool_limits(inputs.num_threads):
            table, summary = associate_tables(
                [Path(path) for path in inputs.in_files],
                inputs.quantity,
                _design(inputs),
                Path(runtime.cwd),
                minimum=inputs.minimum,
                permutations=inputs.permutations,
                seed=inputs.seed,
            )
        self._results["out_file"], self._results["summary"] = str(table), str(summary)
        return runtime
