"""Matrices of streamlines between parcels, and bundles, with and without a lesion.

Whatever found the nodes of every streamline and the streamlines that a lesion cuts, MRtrix or an
index, hands over ``.npy`` files: assignments (n_streamlines x 2, 0 for an end without a node) and
hits (rising positions from 0).
"""

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

from lacuna_nipype.interfaces.contents import fingerprint_trait, unchanged_inputs
from lacuna_nipype.interfaces.transforms import read_transforms


class _PrepareNodesInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="atlas: 3D labels")
    labels_file = File(exists=True, mandatory=True, desc="names of the regions")
    reference = File(
        exists=True,
        desc="image whose grid to use, of the atlas's space unless there are transforms; the "
        "atlas's own grid otherwise",
    )
    transforms = InputMultiObject(
        File(exists=True),
        requires=["reference"],
        desc="ITK transforms from the atlas's space to the tractogram's, in the order in which "
        "they are applied to the atlas",
    )
    fingerprint = fingerprint_trait("atlas")
    labels_fingerprint = fingerprint_trait("names")


class _PrepareNodesOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="image of nodes 1 to K, 0 for none")
    out_meta = File(exists=True, desc="JSON: regions lost, volumes before and after, transforms")
    table = File(exists=True, desc="TSV: label in the atlas and name; row i is node i")


class PrepareNodes(SimpleInterface):
    """Number the parcels of an atlas without gaps, in the order of its labels file.

    They move to another grid or space by nearest neighbour, so numbers never mix.
    """

    input_spec = _PrepareNodesInputSpec
    output_spec = _PrepareNodesOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.atlases.nodes import make_nodes, write_nodes
        from lacuna_nipype.core.files import write_json

        inputs, folder = self.inputs, Path(runtime.cwd)
        target, point_map, described = read_transforms(inputs.reference, inputs.transforms)
        with unchanged_inputs(inputs, in_file="fingerprint", labels_file="labels_fingerprint"):
            nodes = make_nodes(Path(inputs.in_file), Path(inputs.labels_file), target, point_map)
        image, table = write_nodes(nodes, folder)
        meta = {"RegionResampling": nodes.change.to_dict(), "Transforms": described}
        self._results["out_file"], self._results["table"] = str(image), str(table)
        self._results["out_meta"] = str(write_json(folder / "nodes.json", meta))
        return runtime


class _PrepareWeightsInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="text with one weight per streamline")
    n_streamlines = traits.Int(mandatory=True, desc="streamlines of the tractogram")
    fingerprint = fingerprint_trait("file")


class _PrepareWeightsOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the weights as .npy, float32")
    fingerprint = traits.Str(desc="content of the file, for the steps that read it after this one")


class PrepareWeights(SimpleInterface):
    """Check and convert the weights of streamlines, once for all lesions of a run."""

    input_spec = _PrepareWeightsInputSpec
    output_spec = _PrepareWeightsOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.weights import save_streamline_weights
        from lacuna_nipype.core.contents import unchanged
        from lacuna_nipype.core.files import fingerprint

        path, given = Path(self.inputs.in_file), self.inputs.fingerprint
        content = given if isdefined(given) else fingerprint(path)
        with unchanged({path: content}):
            weights = _read_weights(path, self.inputs.n_streamlines)
        self._results["fingerprint"] = content
        out_file = save_streamline_weights(weights, Path(runtime.cwd) / "weights.npy")
        self._results["out_file"] = str(out_file)
        return runtime


class _PrepareGroupsInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="table of streamlines and their bundles")
    n_streamlines = traits.Int(mandatory=True, desc="streamlines of the tractogram")
    fingerprint = fingerprint_trait("file")


class _PrepareGroupsOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the groups as .npz")


class PrepareGroups(SimpleInterface):
    """Check and convert a table of bundles, once for all lesions of a run."""

    input_spec = _PrepareGroupsInputSpec
    output_spec = _PrepareGroupsOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.bundles import (
            read_streamline_groups,
            save_streamline_groups,
        )

        with unchanged_inputs(self.inputs, in_file="fingerprint"):
            groups = read_streamline_groups(Path(self.inputs.in_file), self.inputs.n_streamlines)
        out_file = save_streamline_groups(groups, Path(runtime.cwd) / "groups.npz")
        self._results["out_file"] = str(out_file)
        return runtime


class _FullMatrixInputSpec(BaseInterfaceInputSpec):
    assignments = File(exists=True, mandatory=True, desc="nodes of every streamline (.npy)")
    nodes_table = File(exists=True, mandatory=True, desc="nodes from PrepareNodes")
    streamline_weights = File(
        exists=True, desc="one weight per streamline, text or from PrepareWeights; 1 otherwise"
    )


class _FullMatrixOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="streamlines between every two nodes (.npy, K x K)")


class FullMatrix(SimpleInterface):
    """Count the streamlines of a whole tractogram between nodes, once for all lesions."""

    input_spec = _FullMatrixInputSpec
    output_spec = _FullMatrixOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.atlases.nodes import read_nodes_table
        from lacuna_nipype.core.disconnectivity import count_matrix
        from lacuna_nipype.core.files import atomic_path

        assignments = np.load(self.inputs.assignments)
        n_nodes = len(read_nodes_table(Path(self.inputs.nodes_table)))
        weights = _read_weights(self.inputs.streamline_weights, len(assignments))
        out_file = Path(runtime.cwd) / "full.npy"
        with atomic_path(out_file) as temporary, temporary.open("wb") as stream:
            np.save(stream, count_matrix(assignments, n_nodes, weights))
        self._results["out_file"] = str(out_file)
        return runtime


class _DisconnectivityMatrixInputSpec(BaseInterfaceInputSpec):
    hits = File(exists=True, mandatory=True, desc="streamlines that the lesion cuts (.npy)")
    assignments = InputMultiObject(
        File(exists=True), mandatory=True, desc="nodes of every streamline (.npy), per atlas"
    )
    nodes_tables = InputMultiObject(
        File(exists=True), mandatory=True, desc="nodes from PrepareNodes, per atlas"
    )
    full_matrices = InputMultiObject(
        File(exists=True), mandatory=True, desc="matrices from FullMatrix, per atlas"
    )
    streamline_weights = File(
        exists=True, desc="the weights that the full matrices were made with"
    )
    atlas_names = traits.List(
        traits.Str(), mandatory=True, desc="names of the atlases in the summary"
    )
    with_matrices = traits.Bool(True, usedefault=True, desc="write the matrices")
    with_roi = traits.Bool(
        True, usedefault=True, desc="write the disconnection of every parcel as a table"
    )


class _DisconnectivityMatrixOutputSpec(TraitedSpec):
    matrices = OutputMultiObject(
        File(exists=True),
        desc="TSV atlas by atlas: streamlinesfull, streamlineslesion, streamlinesintact, "
        "disconnectionpct",
    )
    tables = OutputMultiObject(File(exists=True), desc="TSV per atlas: disconnection of parcels")
    summary = File(exists=True, desc="JSON: statistics of the matrices, by name of the atlas")


class DisconnectivityMatrix(SimpleInterface):
    """Matrices of the streamlines that a lesion cuts and spares, one atlas after the other."""

    input_spec = _DisconnectivityMatrixInputSpec
    output_spec = _DisconnectivityMatrixOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.atlases.nodes import read_nodes_table
        from lacuna_nipype.core.disconnectivity import (
            Disconnectivity,
            assignment_statistics,
            matrix_statistics,
        )
        from lacuna_nipype.core.files import write_json

        inputs, folder = self.inputs, Path(runtime.cwd)
        hits, statistics, matrix_files, tables = np.load(inputs.hits), {}, [], []
        for number, (name, table, own, full) in enumerate(self._atlases()):
            nodes, assignments = read_nodes_table(Path(table)), np.load(own)
            weights = _read_weights(inputs.streamline_weights, len(assignments))
            whole = _read_full(full, nodes, table)
            matrices = Disconnectivity.of_lesion(whole, assignments, hits, weights)
            statistics[name] = matrix_statistics(matrices, [node.name for node in nodes])
            statistics[name] |= assignment_statistics(assignments, hits)
            if inputs.with_matrices:
                matrix_files += _write_matrices(matrices, nodes, folder, number)
            if inputs.with_roi:
                tables.append(_write_parcels(matrices, nodes, folder / f"roi-{number:02d}.tsv"))
        self._results["matrices"], self._results["tables"] = matrix_files, tables
        summary = write_json(folder / "matrices.json", {"Matrices": statistics})
        self._results["summary"] = str(summary)
        return runtime

    def _atlases(self):
        """Name and files of each atlas."""
        from lacuna_nipype.core.exceptions import ValidationError

        inputs = self.inputs
        lists = (inputs.atlas_names, inputs.nodes_tables, inputs.assignments, inputs.full_matrices)
        if len({len(values) for values in lists}) > 1 or len(set(lists[0])) < len(lists[0]):
            raise ValidationError(
                f"Atlases {', '.join(lists[0])} need one name of their own, one table of nodes, "
                "one file of assignments and one full matrix each."
            )
        return zip(*lists, strict=True)


class _BundleDisconnectionInputSpec(BaseInterfaceInputSpec):
    groups_file = File(
        exists=True,
        mandatory=True,
        desc="table of streamlines and their bundles, or what PrepareGroups made of it",
    )
    hits = File(exists=True, mandatory=True, desc="streamlines that the lesion cuts (.npy)")
    n_streamlines = traits.Int(mandatory=True, desc="streamlines of the tractogram")
    streamline_weights = File(
        exists=True, desc="one weight per streamline, text or from PrepareWeights; 1 otherwise"
    )


class _BundleDisconnectionOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="TSV: per cent of every bundle that is cut")
    summary = File(exists=True, desc="JSON: bundles affected, and the most affected one")


class BundleDisconnection(SimpleInterface):
    """Per cent of the streamlines of every bundle that a lesion cuts."""

    input_spec = _BundleDisconnectionInputSpec
    output_spec = _BundleDisconnectionOutputSpec

    def _run_interface(self, runtime):
        from lacuna_nipype.connectomes.bundles import read_streamline_groups
        from lacuna_nipype.core.disconnectivity import bundle_disconnection, bundle_statistics
        from lacuna_nipype.core.files import write_json, write_table

        inputs, folder = self.inputs, Path(runtime.cwd)
        groups = read_streamline_groups(Path(inputs.groups_file), inputs.n_streamlines)
        weights = _read_weights(inputs.streamline_weights, inputs.n_streamlines)
        result = bundle_disconnection(groups, np.load(inputs.hits), weights)
        out_file = write_table(folder / "bundles.tsv", _bundle_table(groups, result))
        summary = {"Bundles": bundle_statistics(groups.names, result)}
        self._results["out_file"] = str(out_file)
        self._results["summary"] = str(write_json(folder / "bundles.json", summary))
        return runtime


def _read_weights(path, n_streamlines):
    """Weights of the streamlines, None where none are given."""
    from lacuna_nipype.connectomes.weights import read_streamline_weights

    return read_streamline_weights(Path(path), n_streamlines) if isdefined(path) else None


def _read_full(path, nodes, table):
    """Read the matrix of the whole tractogram between nodes."""
    from lacuna_nipype.core.exceptions import ValidationError

    whole = np.load(path)
    if len(whole) != len(nodes):
        raise ValidationError(
            f"{table} lists {len(nodes)} nodes, and {path} is a matrix of {len(whole)}; make both "
            "again from one parcellation."
        )
    return whole


def _write_matrices(matrices, nodes, folder, number):
    from lacuna_nipype.io.quantities import matrix_quantities
    from lacuna_nipype.io.tables import write_matrix

    values = {
        "streamlinesfull": matrices.full,
        "streamlineslesion": matrices.lesion,
        "streamlinesintact": matrices.intact,
        "disconnectionpct": matrices.percent,
    }
    names = [node.name for node in nodes]
    return [
        str(write_matrix(folder / f"matrix-{number:02d}_{key}.tsv", names, values[key]))
        for key in matrix_quantities("snm")
    ]


def _write_parcels(matrices, nodes, path):
    import pandas as pd

    from lacuna_nipype.core.disconnectivity import roi_disconnection
    from lacuna_nipype.core.files import write_table

    table = pd.DataFrame(
        {
            "index": [node.index for node in nodes],
            "name": [node.name for node in nodes],
            "disconnectionpct": roi_disconnection(matrices.full, matrices.lesion),
            "streamlinesfull": matrices.full.sum(axis=1),
            "streamlineslesion": matrices.lesion.sum(axis=1),
        }
    )
    return str(write_table(path, table))


def _bundle_table(groups, result):
    """One row per bundle, in the order of the groups."""
    import pandas as pd

    return pd.DataFrame(
        {
            "index": range(1, len(groups.names) + 1),
            "name": list(groups.names),
            "streamlinespct": result.percent,
            "n_streamlines": result.n_streamlines,
            "n_streamlines_hit": result.n_streamlines_hit,
        }
    )
