"""The nodes of a parcellation in which the streamlines of a tractogram end."""

from contextlib import contextmanager
from pathlib import Path

from nipype import logging
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.interfaces.contents import fingerprint_trait, unchanged_inputs
from lacuna_nipype.interfaces.mrtrix import MRtrixError, TCK2Connectome

LOGGER = logging.getLogger("nipype.interface")

# tck2connectome allocates and prints a matrix of all labels up to the highest.
HIGHEST_LABEL = 10_000


class _AssignStreamlinesInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="track file, .tck")
    fingerprint = fingerprint_trait("track file")
    nodes = File(
        exists=True, mandatory=True, desc="3D image of node labels: whole numbers, 0 for no node"
    )
    search_radius = traits.Range(
        low=0.0,
        value=4.0,
        usedefault=True,
        units="mm",
        desc="radius in mm within which each end of a streamline looks for the nearest node; 4 is "
        "tck2connectome's default",
    )
    num_threads = traits.Range(
        low=1, value=1, usedefault=True, nohash=True, desc="threads of tck2connectome"
    )


class _AssignStreamlinesOutputSpec(TraitedSpec):
    out_file = File(
        exists=True,
        desc="nodes of both ends of every streamline, in the order of the tractogram; 0 is no "
        "node (.npy, int32, n_streamlines x 2)",
    )


class AssignStreamlines(SimpleInterface):
    """Find the nodes in which streamlines end, by tck2connectome's radial search.

    One run per tractogram and parcellation serves every lesion: the matrix of any selection of
    streamlines follows from its rows.

    tck2connectome cannot take a streamline without points: it crashes, or takes the nodes of
    another one. Such streamlines are kept from it, and have no node at either end. Those of one
    point, and of several equal ones, are assigned like all others.
    """

    input_spec = _AssignStreamlinesInputSpec
    output_spec = _AssignStreamlinesOutputSpec

    def _run_interface(self, runtime):
        import numpy as np

        from lacuna_nipype.core.files import atomic_path

        folder = Path(runtime.cwd)
        check_labels(self.inputs.nodes)
        with unchanged_inputs(self.inputs, in_file="fingerprint"):
            assignments = self._assign_all(Path(self.inputs.in_file), folder)
        out_file = folder / "assignments.npy"
        with atomic_path(out_file) as temporary, temporary.open("wb") as stream:
            np.save(stream, assignments)
        self._results["out_file"] = str(out_file)
        return runtime

    def _assign_all(self, path, folder):
        import numpy as np

        from lacuna_nipype.connectomes.streamline_counts import check_count
        from lacuna_nipype.core.disconnectivity import NODE_TYPE

        counts = check_count(path)
        assignments = np.zeros((counts.n, 2), NODE_TYPE)
        with _without_empty(path, counts, folder) as (tracks, given):
            assignments[given] = self._assign(tracks, counts.n - counts.n_empty, folder)
        return assignments

    def _assign(self, tracks, n_streamlines, folder):
        command = TCK2Connectome(
            in_file=str(tracks),
            in_parc=self.inputs.nodes,
            search_radius=self.inputs.search_radius,
            out_assignments="assignments.txt",
            # The command's 0 is no thread beside its own.
            nthreads=self.inputs.num_threads if self.inputs.num_threads > 1 else 0,
        )
        written = [folder / "assignments.txt", folder / command.inputs.out_file]
        try:
            command.run(cwd=str(folder))
            return read_assignments(written[0], n_streamlines)
        finally:
            for path in written:
                path.unlink(missing_ok=True)


@contextmanager
def _without_empty(path, counts, folder):
    """Give a track file without empty streamlines, and which rows its streamlines have."""
    import numpy as np

    from lacuna_nipype.connectomes.streamline_counts import copy_without_empty

    if not counts.n_empty:
        yield path, slice(None)
        return
    LOGGER.warning(
        "%d of the %d streamlines of %s have no points, and are assigned to no node.",
        counts.n_empty, counts.n, path,
    )  # fmt: skip
    copy = folder / "without_empty.tck"
    try:
        given = np.ones(counts.n, dtype=bool)
        given[copy_without_empty(path, copy)] = False
        yield copy, given
    finally:
        copy.unlink(missing_ok=True)


def check_labels(path):
    """Refuse labels that are too high for tck2connectome, which needs all pairs of them.

    Parameters
    ----------
    path : path-like
        Image of node labels. One that nibabel cannot read (such as .mif) is left to MRtrix, and
        so are labels that are negative or no whole numbers.

    Raises
    ------
    ValidationError
        A label is above :data:`HIGHEST_LABEL`.
    """
    import nibabel as nib
    import numpy as np

    try:
        data = np.asanyarray(nib.load(path).dataobj)
    except nib.filebasedimages.ImageFileError:
        return
    highest = data.max(initial=0)
    if highest > HIGHEST_LABEL:
        raise ValidationError(
            f"{path} has labels up to {highest:g}; tck2connectome makes a matrix of all labels "
            f"up to the highest, which may be {HIGHEST_LABEL} here; number the regions from 1 "
            "without gaps."
        )
    if highest == 0:
        LOGGER.warning("%s holds no label: no streamline is assigned to a node.", path)


def read_assignments(path, n_streamlines):
    """Read what tck2connectome wrote for ``-out_assignments``.

    Parameters
    ----------
    path : path-like
        Text: comments after ``#``, and two numbers per line.
    n_streamlines : int
        Streamlines that it was given.

    Returns
    -------
    array of uint16, shape (n_streamlines, 2)
        Nodes of the two ends of each streamline; 0 is no node.

    Raises
    ------
    MRtrixError
        The file does not hold two nodes for each of so many streamlines.
    """
    import numpy as np

    from lacuna_nipype.core.disconnectivity import NODE_TYPE

    if n_streamlines == 0:
        return np.zeros((0, 2), NODE_TYPE)
    try:
        # What is no node, or too high for one, is no number of this type.
        assignments = np.loadtxt(path, dtype=NODE_TYPE, ndmin=2)
    except ValueError as error:
        raise MRtrixError(
            f"tck2connectome failed: {path} does not hold two nodes per line."
        ) from error
    if assignments.shape != (n_streamlines, 2):
        raise MRtrixError(
            f"tck2connectome failed: {path} holds {' x '.join(map(str, assignments.shape))} nodes "
            f"for {n_streamlines} streamlines."
        )
    return assignments
