"""MRtrix3 commands as Nipype interfaces.

nipype's own wrappers are subclassed where they exist. They date from before MRtrix3 3.0 and
name options that the commands no longer have; what is mended is said in each class.

Common to all: ``-quiet`` (progress bars would fill stderr), ``-force`` (nipype resumes a killed
node in its old folder, where a half-written output would stop MRtrix), quoted file names, and a
failure that ends in one sentence with MRtrix's own message.
"""

import re
import shlex
from contextlib import contextmanager
from pathlib import Path

from nipype import logging
from nipype.interfaces.base import (
    CommandLineInputSpec,
    File,
    InputMultiObject,
    TraitedSpec,
    Undefined,
    isdefined,
    traits,
)
from nipype.interfaces.mrtrix3.base import MRTrix3Base
from nipype.interfaces.mrtrix3.connectivity import BuildConnectome
from nipype.interfaces.mrtrix3.utils import ComputeTDI

from lacuna_nipype.connectomes.tractogram import parse_step_size, read_tck_header, write_tck
from lacuna_nipype.core.exceptions import LacunaError, ValidationError
from lacuna_nipype.execution.programs import require_mrtrix_commands
from lacuna_nipype.interfaces.contents import fingerprint_trait, unchanged_inputs

LOGGER = logging.getLogger("nipype.interface")

_REAL_DATATYPES = tuple(
    f"{kind}{order}"
    for kind in ("float32", "float64", "int64", "uint64", "int32", "uint32", "int16", "uint16")
    for order in ("", "le", "be")
)
_COMPLEX_DATATYPES = tuple(
    f"{kind}{order}" for kind in ("cfloat32", "cfloat64") for order in ("", "le", "be")
)
_SMALL_DATATYPES = ("int8", "uint8", "bit")
# A larger file of weights has some.
_MAX_COMMENT_BYTES = 1 << 16
_SPHERE = r"^\s*[-+.\deE]+(\s*,\s*[-+.\deE]+){3}\s*$"


class MRtrixError(LacunaError, RuntimeError):
    """An MRtrix3 command failed; the message is one sentence with the command's own reason."""


class _MRtrixInputSpec(CommandLineInputSpec):
    nthreads = traits.Range(
        low=0,
        value=0,
        usedefault=True,
        nohash=True,
        argstr="-nthreads %d",
        desc="number of extra threads; 0 means none, as for MRtrix itself (nipype's wrappers turn "
        "it into all processors), and suits a node that claims one processor",
    )
    quiet = traits.Bool(
        True,
        usedefault=True,
        nohash=True,
        argstr="-quiet",
        desc="print errors only, no progress bars",
    )
    force = traits.Bool(
        True,
        usedefault=True,
        nohash=True,
        argstr="-force",
        desc="overwrite what an interrupted run left in the working folder",
    )


class _MRtrixCommand(MRTrix3Base):
    """What every command here has in common."""

    # nipype's default polls the pipes a hundred times a second; there is nothing to stream.
    _terminal_output = "allatonce"
    # Inputs with the weights of streamlines, and with the streamlines.
    _weights, _tracks = None, "in_file"

    def _format_arg(self, name, trait_spec, value):
        if name == "nthreads":
            return trait_spec.argstr % value
        # nipype quotes plain File traits only, neither lists nor unions of types.
        if isinstance(value, list):
            value = [shlex.quote(str(item)) for item in value]
        elif isinstance(value, str) and name != "args" and not trait_spec.is_trait_type(File):
            value = shlex.quote(value)
        return super()._format_arg(name, trait_spec, value)

    def _parse_inputs(self, skip=None):
        if self._is_weighting_nothing():
            skip = [*(skip or []), self._weights]
        return super()._parse_inputs(skip)

    def _is_weighting_nothing(self):
        """Whether there are no streamlines and therefore no weights: an error for MRtrix."""
        weights = getattr(self.inputs, self._weights) if self._weights else Undefined
        if not isdefined(weights) or Path(weights).stat().st_size > _MAX_COMMENT_BYTES:
            return False
        if re.sub(r"#.*", "", Path(weights).read_text(errors="replace")).strip():
            return False
        from lacuna_nipype.connectomes.streamline_counts import count_streamlines

        tracks = getattr(self.inputs, self._tracks)
        files = tracks if isinstance(tracks, list) else [tracks]
        return not any(count_streamlines(path).n for path in files)

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        require_mrtrix_commands([self.cmd], path=runtime.environ.get("PATH"))
        runtime = super()._run_interface(runtime, correct_return_codes)
        if runtime.returncode not in correct_return_codes:
            raise MRtrixError(failure_sentence(self.cmd, runtime.returncode, runtime.stderr))
        return runtime

    def _list_outputs(self):
        outputs = self.output_spec().get()
        for name in outputs:
            value = getattr(self.inputs, name, Undefined)
            if isdefined(value):
                outputs[name] = str(Path(value).absolute())
        return outputs


def failure_sentence(command, returncode, stderr):
    """Say in one sentence why an MRtrix command failed.

    Parameters
    ----------
    command : str
        Name of the command.
    returncode : int
        Its return code, of the process or of the shell around it.
    stderr : str or None
        What it printed.

    Returns
    -------
    str
        ``<command> failed: <MRtrix's own messages>.``
    """
    # MRtrix colours its messages even when it writes to a pipe.
    text = re.sub(r"\x1b\[[0-9;]*m", "", stderr or "")
    found = re.findall(r"\[(?:ERROR|SYSTEM FATAL CODE[^\]]*)\][ \t]*(.*)", text)
    reason = ""
    for message in dict.fromkeys(filter(None, map(str.strip, found))):
        joint = " " if reason.endswith(":") else "; "
        reason = f"{reason}{joint}{message}" if reason else message
    if not reason:
        signal = -returncode if returncode < 0 else returncode - 128
        reason = f"it ended with code {returncode} and gave no reason"
        if 0 < signal < 65:
            reason = f"it was killed by signal {signal}"
            if signal == 9:
                reason += ", most often because memory ran out"
    return f"{command} failed: {reason.rstrip('.')}."


def _roi_trait(option, desc):
    return InputMultiObject(
        traits.Either(File(exists=True), traits.String(regex=_SPHERE)),
        argstr=f"{option} %s...",
        desc=f"{desc}; mask images, or spheres as text 'x,y,z,radius' in mm",
    )


class _TCKEditInputSpec(_MRtrixInputSpec):
    in_files = InputMultiObject(
        File(exists=True),
        argstr="%s",
        position=-2,
        mandatory=True,
        desc="input track file(s), concatenated in this order",
    )
    out_file = File(
        "edited.tck",
        argstr="%s",
        position=-1,
        usedefault=True,
        hash_files=False,
        desc="output track file",
    )
    include = _roi_trait("-include", "regions that a streamline must all traverse")
    include_ordered = _roi_trait(
        "-include_ordered", "regions that a streamline must all traverse, in this order"
    )
    exclude = _roi_trait("-exclude", "regions none of which a streamline may enter")
    mask = _roi_trait("-mask", "regions outside of which streamlines are cut off")
    maxlength = traits.Range(
        low=0.0, argstr="-maxlength %s", units="mm", desc="maximum length of a streamline in mm"
    )
    minlength = traits.Range(
        low=0.0, argstr="-minlength %s", units="mm", desc="minimum length of a streamline in mm"
    )
    number = traits.Range(
        low=1, argstr="-number %d", desc="number of selected streamlines to write"
    )
    skip = traits.Range(
        low=1,
        argstr="-skip %d",
        desc="number of selected streamlines to omit before writing starts",
    )
    maxweight = traits.Range(
        low=0.0, argstr="-maxweight %s", desc="maximum weight of a streamline"
    )
    minweight = traits.Range(
        low=0.0,
        argstr="-minweight %s",
        desc="minimum weight of a streamline; tckedit drops negative ones in any case",
    )
    inverse = traits.Bool(
        argstr="-inverse",
        desc="write what fails at least one criterion, and the points outside the masks, instead",
    )
    ends_only = traits.Bool(
        argstr="-ends_only",
        desc="test only the two ends of a streamline against include and exclude regions",
    )
    tck_weights_in = File(
        exists=True, argstr="-tck_weights_in %s", desc="text file with one weight per streamline"
    )
    tck_weights_out = File(
        argstr="-tck_weights_out %s",
        hash_files=False,
        desc="text file to write with the weights of the streamlines selected",
    )


class _TCKEditOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="track file with the selected streamlines")
    tck_weights_out = File(exists=True, desc="weights of the selected streamlines")


class TCKEdit(_MRtrixCommand):
    """Select, cut and concatenate streamlines.

    A region is hit when a stored point lies in a voxel of it; nothing is interpolated between
    points. An include mask without a voxel is an error (see :class:`SelectStreamlines`).

    Example
    -------
    >>> edit = TCKEdit(in_files=["tracks.tck"], include=["lesion.nii.gz"])  # doctest: +SKIP
    >>> edit.cmdline  # doctest: +SKIP
    'tckedit -force -include lesion.nii.gz -nthreads 0 -quiet tracks.tck edited.tck'
    """

    _cmd = "tckedit"
    _weights, _tracks = "tck_weights_in", "in_files"
    input_spec = _TCKEditInputSpec
    output_spec = _TCKEditOutputSpec


class _SelectStreamlinesInputSpec(_TCKEditInputSpec):
    with_positions = traits.Bool(
        False,
        usedefault=True,
        desc="find out which streamlines of the one input file were selected, too",
    )
    fingerprint = fingerprint_trait("one input file")
    weights_fingerprint = fingerprint_trait("file of weights")


class _SelectStreamlinesOutputSpec(_TCKEditOutputSpec):
    count = traits.Int(desc="number of streamlines selected, from the header of the output")
    positions = File(
        exists=True,
        desc="with with_positions: rising positions of the streamlines selected, from 0 in the "
        "input file (.npy, int64, one per streamline of the output)",
    )


class SelectStreamlines(TCKEdit):
    """Select streamlines with tckedit; an empty inclusion mask selects none instead of failing.

    tckedit refuses a mask without a voxel, but a lesion that vanishes on the tractogram's grid is
    an answer and not an error: no streamline is hit. The output then is a track file of count 0
    with the step size of the input. With ``inverse`` an empty mask is left to tckedit, and fails.

    tckedit does not say which streamlines it kept. With ``with_positions`` it is given weights
    that are positions, and those that it writes are read back. Weights of the user's then never
    reach it: limits are applied and ``tck_weights_out`` is written here, with the same result.
    Streamlines without points have a position, but tckedit never selects them. tckedit needs
    about 60 bytes of memory per streamline of the input for the weights.
    """

    input_spec = _SelectStreamlinesInputSpec
    output_spec = _SelectStreamlinesOutputSpec

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        files = {"in_files": "fingerprint", "tck_weights_in": "weights_fingerprint"}
        with unchanged_inputs(self.inputs, **files):
            return self._select(runtime, correct_return_codes)

    def _select(self, runtime, correct_return_codes):
        selection = _Selection(self.inputs, Path(runtime.cwd))
        if self.inputs.with_positions:
            selection.check()
        empty = None if self.inputs.inverse is True else self._find_empty_mask()
        if empty is not None:
            LOGGER.warning("%s holds no voxel: no streamline is selected.", empty)
            selection.write_nothing()
            runtime.returncode = 0
        elif not self.inputs.with_positions:
            runtime = super()._run_interface(runtime, correct_return_codes)
        else:
            with selection.positions_as_weights():
                runtime = super()._run_interface(runtime, correct_return_codes)
                selection.read_positions()
        return runtime

    def _parse_inputs(self, skip=None):
        if not self.inputs.with_positions:
            return super()._parse_inputs(skip)
        # Streamlines that fail the user's limits have negative weights.
        ours = f"-tck_weights_in {_WEIGHTS_IN} -tck_weights_out {_WEIGHTS_OUT} -minweight 0"
        return [ours, *super()._parse_inputs([*(skip or []), *_WEIGHT_INPUTS])]

    def _find_empty_mask(self):
        for regions in (self.inputs.include, self.inputs.include_ordered):
            for region in regions if isdefined(regions) else []:
                if Path(region).is_file() and mask_is_empty(region):
                    return region
        return None

    def _list_outputs(self):
        outputs = super()._list_outputs()
        outputs["count"] = read_tck_header(outputs["out_file"]).count
        if self.inputs.with_positions:
            outputs["positions"] = str(Path(_POSITIONS).absolute())
        return outputs


_WEIGHT_INPUTS = ("tck_weights_in", "tck_weights_out", "minweight", "maxweight")
_WEIGHTS_IN, _WEIGHTS_OUT = "position_weights_in.txt", "position_weights_out.txt"
_POSITIONS = "positions.npy"


class _Selection:
    """What SelectStreamlines does around tckedit, in the node's folder."""

    def __init__(self, inputs, folder):
        self.inputs = inputs
        self.folder = folder
        self.weights = None
        self.n_streamlines = None

    def check(self):
        """Refuse inputs whose positions would mean nothing."""
        files = self.inputs.in_files
        if len(files) != 1:
            raise ValidationError(
                f"Positions of selected streamlines are those in one track file, but {len(files)} "
                "were given; merge them with `lacuna-nipype connectome convert`."
            )

    def write_nothing(self):
        """Write the outputs of a selection of no streamline."""
        steps = {read_tck_header(path).step_size for path in self.inputs.in_files}
        step_size = steps.pop() if len(steps) == 1 else None
        write_tck(self.folder / self.inputs.out_file, [], step_size=step_size)
        if isdefined(self.inputs.tck_weights_out):
            (self.folder / self.inputs.tck_weights_out).write_text("")
        if self.inputs.with_positions:
            self._save([])

    @contextmanager
    def positions_as_weights(self):
        """Keep the weights that are positions in the folder for as long as they are needed."""
        from lacuna_nipype.connectomes.streamline_counts import count_streamlines
        from lacuna_nipype.connectomes.streamline_positions import write_position_weights

        # The header's count may be missing or wrong; tckedit does not look at it either.
        self.n_streamlines = count_streamlines(self.inputs.in_files[0]).n
        try:
            write_position_weights(
                self.folder / _WEIGHTS_IN, self.n_streamlines, passing=self._find_passing()
            )
            yield
        finally:
            for name in (_WEIGHTS_IN, _WEIGHTS_OUT):
                (self.folder / name).unlink(missing_ok=True)

    def _find_passing(self):
        """Apply the limits of weights; None where every streamline passes them."""
        import numpy as np

        from lacuna_nipype.connectomes.weights import read_streamline_weights

        inputs = self.inputs
        if isdefined(inputs.tck_weights_in):
            self.weights = read_streamline_weights(Path(inputs.tck_weights_in), self.n_streamlines)
        weights = np.ones(self.n_streamlines, "f4") if self.weights is None else self.weights
        passing = None
        if isdefined(inputs.minweight):
            passing = weights >= np.float32(inputs.minweight)
        if isdefined(inputs.maxweight):
            below = weights <= np.float32(inputs.maxweight)
            passing = below if passing is None else passing & below
        return passing

    def read_positions(self):
        """Turn the weights that tckedit wrote into positions, and into the user's weights."""
        from lacuna_nipype.connectomes.streamline_positions import (
            read_positions,
            write_selected_weights,
        )

        positions = read_positions(self.folder / _WEIGHTS_OUT, self.n_streamlines)
        count = read_tck_header(self.folder / self.inputs.out_file).count
        if len(positions) != count:
            raise MRtrixError(
                f"tckedit failed: it wrote {count} streamlines but {len(positions)} weights."
            )
        if isdefined(self.inputs.tck_weights_out):
            target = self.folder / self.inputs.tck_weights_out
            write_selected_weights(target, self.weights, positions)
        self._save(positions)

    def _save(self, positions):
        import numpy as np

        from lacuna_nipype.core.files import atomic_path

        with atomic_path(self.folder / _POSITIONS) as temporary, temporary.open("wb") as stream:
            np.save(stream, np.asarray(positions, dtype=np.int64))


def mask_is_empty(path):
    """Tell whether MRtrix would find no voxel in a mask.

    Parameters
    ----------
    path : path-like
        Image. One that nibabel cannot read (such as .mif) counts as not empty: MRtrix judges it.

    Returns
    -------
    bool
        True when every voxel rounds to zero (halves away from zero) or is not finite.
    """
    import nibabel as nib
    import numpy as np

    try:
        data = np.asanyarray(nib.load(path).dataobj)
    except nib.filebasedimages.ImageFileError:
        return False
    # No abs(): it leaves the smallest integer of a type negative.
    return not bool((((data >= 0.5) | (data <= -0.5)) & np.isfinite(data)).any())


class _TCKMapInputSpec(_MRtrixInputSpec):
    in_file = File(exists=True, argstr="%s", position=-2, mandatory=True, desc="input track file")
    out_file = File(
        "tdi.nii.gz",
        argstr="%s",
        position=-1,
        usedefault=True,
        hash_files=False,
        desc="output track-weighted image",
    )
    reference = File(
        exists=True, argstr="-template %s", desc="image that gives the grid of the output"
    )
    vox_size = InputMultiObject(
        traits.Float,
        argstr="-vox %s",
        sep=",",
        units="mm",
        desc="voxel size of the output in mm: one number, or one per axis",
    )
    data_type = traits.Enum(
        *_REAL_DATATYPES,
        *_SMALL_DATATYPES,
        argstr="-datatype %s",
        desc="data type of the output image",
    )
    use_dec = traits.Bool(argstr="-dec", desc="map in directionally-encoded colour (DEC) space")
    dixel = traits.Either(
        traits.Int,
        File(exists=True),
        argstr="-dixel %s",
        desc="map to dixels within each voxel: a number of directions, or a text file with "
        "azimuth and elevation pairs",
    )
    max_tod = traits.Range(
        low=2,
        high=20,
        argstr="-tod %d",
        desc="map a track orientation distribution of this maximum spherical harmonic degree, "
        "an even number",
    )
    contrast = traits.Enum(
        "tdi",
        "length",
        "invlength",
        "scalar_map",
        "scalar_map_count",
        "fod_amp",
        "curvature",
        "vector_file",
        argstr="-contrast %s",
        desc="form of contrast of the output image",
    )
    in_map = File(
        exists=True,
        argstr="-image %s",
        desc="scalar image for the contrasts scalar_map and scalar_map_count, or spherical "
        "harmonics image for fod_amp",
    )
    vector_file = File(
        exists=True, argstr="-vector_file %s", desc="data file for the contrast vector_file"
    )
    stat_vox = traits.Enum(
        "sum",
        "min",
        "mean",
        "max",
        argstr="-stat_vox %s",
        desc="statistic over the streamlines of a voxel",
    )
    stat_tck = traits.Enum(
        "mean",
        "sum",
        "min",
        "max",
        "median",
        "mean_nonzero",
        "gaussian",
        "ends_min",
        "ends_mean",
        "ends_max",
        "ends_prod",
        argstr="-stat_tck %s",
        desc="statistic over the samples along a streamline (scalar_map, fod_amp, curvature)",
    )
    fwhm_tck = traits.Range(
        low=1e-6,
        argstr="-fwhm_tck %s",
        units="mm",
        desc="full width at half maximum in mm of the smoothing for stat_tck gaussian",
    )
    map_zero = traits.Bool(
        argstr="-map_zero", desc="map streamlines whose contribution is zero, too"
    )
    backtrack = traits.Bool(
        argstr="-backtrack",
        desc="with stat_tck ends_*, go back along a streamline that ends outside the image until "
        "a point inside is found",
    )
    upsample = traits.Range(
        low=1,
        argstr="-upsample %d",
        desc="upsampling ratio; without it tckmap derives it from the step_size in the header "
        "of the tracks, and does not upsample where that is missing",
    )
    precise = traits.Bool(
        argstr="-precise", desc="use the length of each streamline within each voxel"
    )
    ends_only = traits.Bool(argstr="-ends_only", desc="map the two ends of each streamline only")
    tck_weights = File(
        exists=True, argstr="-tck_weights_in %s", desc="text file with one weight per streamline"
    )
    fingerprint = fingerprint_trait("track file")
    weights_fingerprint = fingerprint_trait("file of weights")


class _TCKMapOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="track-weighted image")


class TCKMap(_MRtrixCommand, ComputeTDI):
    """Map streamlines to an image.

    As nipype's ``ComputeTDI``, with these mended: the option ``-contrast`` (there
    ``-constrast``), ``scalar_map_count`` (``scalar_map_conut``), voxel sizes that are not whole
    numbers, data types that MRtrix knows, ``dixel`` as a number; ``vector_file`` and
    ``backtrack`` are new, and the default output is NIfTI. With ``tck_weights`` the image is
    Float32; without extra threads its sums are made in the order of the tracks. Weights of no
    streamlines (an empty file) are no error here.

    Example
    -------
    >>> tdi = TCKMap(in_file="tracks.tck", reference="t1w.nii.gz")  # doctest: +SKIP
    >>> tdi.cmdline  # doctest: +SKIP
    'tckmap -force -nthreads 0 -quiet -template t1w.nii.gz tracks.tck tdi.nii.gz'
    """

    _cmd = "tckmap"
    _weights = "tck_weights"
    input_spec = _TCKMapInputSpec
    output_spec = _TCKMapOutputSpec

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        files = {"in_file": "fingerprint", "tck_weights": "weights_fingerprint"}
        with unchanged_inputs(self.inputs, **files):
            return super()._run_interface(runtime, correct_return_codes)

    def _parse_inputs(self, skip=None):
        arguments = super()._parse_inputs(skip)
        if self._is_weighting_nothing() and not isdefined(self.inputs.data_type):
            # What tckmap chooses when there are weights.
            arguments.insert(0, "-datatype float32")
        return arguments


_ASSIGNMENTS = (
    "assignment_end_voxels",
    "search_radius",
    "search_reverse",
    "search_forward",
    "assignment_all_voxels",
)


class _TCK2ConnectomeInputSpec(_MRtrixInputSpec):
    in_file = File(exists=True, argstr="%s", position=-3, mandatory=True, desc="input track file")
    in_parc = File(
        exists=True, argstr="%s", position=-2, mandatory=True, desc="image of node labels"
    )
    out_file = File(
        "connectome.csv",
        argstr="%s",
        position=-1,
        usedefault=True,
        hash_files=False,
        desc="output matrix",
    )
    assignment_end_voxels = traits.Bool(
        argstr="-assignment_end_voxels",
        xor=_ASSIGNMENTS,
        desc="assign each end of a streamline to the label of its voxel",
    )
    search_radius = traits.Range(
        low=0.0,
        argstr="-assignment_radial_search %s",
        xor=_ASSIGNMENTS,
        units="mm",
        desc="assign each end to the nearest node within this radius in mm (MRtrix's default "
        "mechanism, with 4 mm)",
    )
    search_reverse = traits.Range(
        low=0.0,
        argstr="-assignment_reverse_search %s",
        xor=_ASSIGNMENTS,
        units="mm",
        desc="go from each end inwards, at most this far in mm (0: to the midpoint), and take the "
        "last node met",
    )
    search_forward = traits.Range(
        low=0.0,
        argstr="-assignment_forward_search %s",
        xor=_ASSIGNMENTS,
        units="mm",
        desc="project each end forwards, at most this far in mm, until a node is met",
    )
    assignment_all_voxels = traits.Bool(
        argstr="-assignment_all_voxels",
        xor=_ASSIGNMENTS,
        desc="assign a streamline to every node that it crosses",
    )
    scale_length = traits.Bool(
        argstr="-scale_length",
        xor=["scale_invlength"],
        desc="scale each contribution by the length of the streamline",
    )
    scale_invlength = traits.Bool(
        argstr="-scale_invlength",
        xor=["scale_length"],
        desc="scale each contribution by the inverse of the length of the streamline",
    )
    scale_invnodevol = traits.Bool(
        argstr="-scale_invnodevol",
        desc="scale each contribution by the inverse of the two node volumes",
    )
    scale_file = File(
        exists=True,
        argstr="-scale_file %s",
        desc="text file with one factor per streamline to scale its contribution",
    )
    symmetric = traits.Bool(
        argstr="-symmetric", desc="write both triangles of the matrix, not the upper one alone"
    )
    zero_diagonal = traits.Bool(
        argstr="-zero_diagonal",
        desc="set the diagonal (streamlines with both ends in one node) to zero",
    )
    stat_edge = traits.Enum(
        "sum",
        "mean",
        "min",
        "max",
        argstr="-stat_edge %s",
        desc="statistic over the streamlines of an edge",
    )
    in_weights = File(
        exists=True, argstr="-tck_weights_in %s", desc="text file with one weight per streamline"
    )
    keep_unassigned = traits.Bool(
        argstr="-keep_unassigned",
        desc="keep streamlines without a node, as first row and column of the matrix",
    )
    out_assignments = File(
        argstr="-out_assignments %s",
        hash_files=False,
        desc="text file to write with the nodes of every streamline, in the order of the tracks",
    )
    vector = traits.Bool(
        argstr="-vector",
        desc="write a vector of the nodes reached from one seed, not a matrix",
    )


class _TCK2ConnectomeOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="matrix of edge weights")
    out_assignments = File(exists=True, desc="nodes of every streamline")


class TCK2Connectome(_MRtrixCommand, BuildConnectome):
    """Count streamlines between the nodes of a parcellation.

    As nipype's ``BuildConnectome``, without the inputs whose options MRtrix3 3.0 no longer has
    (``vox_lookup``, now ``assignment_end_voxels``; ``metric`` and ``in_scalar``, now ``scale_*``
    and ``stat_edge``) and with those that it lacks.

    On a streamline without points the command crashes, or answers with the nodes of a streamline
    that it read before (:class:`~lacuna_nipype.interfaces.assignment.AssignStreamlines` does
    neither). It reads at most as many streamlines as the header's ``count`` says.

    Example
    -------
    >>> mat = TCK2Connectome(in_file="tracks.tck", in_parc="atlas.nii.gz")  # doctest: +SKIP
    >>> mat.cmdline  # doctest: +SKIP
    'tck2connectome -force -nthreads 0 -quiet tracks.tck atlas.nii.gz connectome.csv'
    """

    _cmd = "tck2connectome"
    _weights = "in_weights"
    input_spec = _TCK2ConnectomeInputSpec
    output_spec = _TCK2ConnectomeOutputSpec


class _MRCalcInputSpec(_MRtrixInputSpec):
    in_files = InputMultiObject(
        File(exists=True), mandatory=True, desc="images that the expression refers to"
    )
    expression = traits.Str(
        argstr="%s",
        position=-2,
        mandatory=True,
        desc="operands and operators in mrcalc's reverse Polish order, separated by blanks; {0} "
        "is the first of in_files, {1} the second, and so on",
    )
    out_file = File(
        "calculated.nii.gz",
        argstr="%s",
        position=-1,
        usedefault=True,
        hash_files=False,
        desc="output image",
    )
    datatype = traits.Enum(
        *_REAL_DATATYPES,
        *_COMPLEX_DATATYPES,
        *_SMALL_DATATYPES,
        argstr="-datatype %s",
        desc="data type of the output image",
    )


class _MRCalcOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="calculated image")


class MRCalc(_MRtrixCommand):
    """Calculate voxel by voxel.

    Images are named in ``in_files`` and not inside the expression, so that nipype hashes them: a
    changed image makes the node run again.

    Example
    -------
    A guarded division, in which 0 / 0 is 0 and not NaN:

    >>> calc = MRCalc(
    ...     in_files=["hit.nii.gz", "full.nii.gz"],
    ...     expression="{1} 0 -gt {0} {1} -divide 100 -multiply 0 -if",
    ... )  # doctest: +SKIP
    """

    _cmd = "mrcalc"
    input_spec = _MRCalcInputSpec
    output_spec = _MRCalcOutputSpec

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        # nipype hides an error raised while it builds the command line behind two others.
        expand_expression(self.inputs.expression, self.inputs.in_files)
        return super()._run_interface(runtime, correct_return_codes)

    def _format_arg(self, name, trait_spec, value):
        if name == "expression":
            words = expand_expression(value, self.inputs.in_files)
            return " ".join(shlex.quote(word) for word in words)
        return super()._format_arg(name, trait_spec, value)


def expand_expression(expression, files):
    """Put files into an mrcalc expression, and refuse whatever could be a file in disguise.

    Parameters
    ----------
    expression : str
        Words separated by blanks: ``{i}``, numbers, ``rand``, ``randn``, ``e``, ``pi``, operators.
    files : sequence of str
        What ``{0}``, ``{1}``, ... stand for.

    Returns
    -------
    list of str
        The words, with files in place.

    Raises
    ------
    ValidationError
        A word is none of these, an index has no file, or a file is not used.
    """
    words, used = [], set()
    for word in expression.split():
        index = re.fullmatch(r"\{(\d+)\}", word)
        if index is not None and int(index.group(1)) < len(files):
            used.add(int(index.group(1)))
            words.append(files[int(index.group(1))])
        elif index is not None:
            raise ValidationError(
                f"The expression refers to {word}, but there are {len(files)} input images, "
                "counted from {0}."
            )
        elif re.fullmatch(r"-[a-z]+[0-9]*", word) or _is_value(word):
            words.append(word)
        else:
            raise ValidationError(
                f"{word!r} in the expression is neither an image such as {{0}}, nor a number, nor "
                "an operator such as -add; name images in in_files."
            )
    if unused := [str(file) for i, file in enumerate(files) if i not in used]:
        raise ValidationError(f"The expression does not use {', '.join(unused)}.")
    return words


def _is_value(word):
    if word in ("rand", "randn", "e", "pi"):
        return True
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word


class _TCKInfoInputSpec(_MRtrixInputSpec):
    in_file = File(exists=True, argstr="%s", position=-1, mandatory=True, desc="input track file")
    count_streamlines = traits.Bool(
        argstr="-count", desc="count the streamlines in the file instead of trusting its header"
    )


class _TCKInfoOutputSpec(TraitedSpec):
    count = traits.Int(desc="number of streamlines; undefined where the header has none")
    step_size = traits.Float(
        desc="distance between consecutive points in mm; undefined where MRtrix does not know it"
    )
    fields = traits.Dict(
        traits.Str,
        traits.Str,
        desc="fields of the header, as text; repeated ones on several lines",
    )


class TCKInfo(_MRtrixCommand):
    """Read the header of a track file, and count its streamlines if asked to.

    Example
    -------
    >>> info = TCKInfo(in_file="tracks.tck", count_streamlines=True)  # doctest: +SKIP
    >>> info.cmdline  # doctest: +SKIP
    'tckinfo -count -force -nthreads 0 -quiet tracks.tck'
    """

    _cmd = "tckinfo"
    input_spec = _TCKInfoInputSpec
    output_spec = _TCKInfoOutputSpec

    def _run_interface(self, runtime, correct_return_codes=(0,)):
        runtime = super()._run_interface(runtime, correct_return_codes)
        self._fields, self._counted = parse_tckinfo(runtime.stdout)
        return runtime

    def _list_outputs(self):
        outputs = self.output_spec().get()
        count = self._fields.get("count", "")
        if self._counted is not None:
            outputs["count"] = self._counted
        elif count.isdigit():
            outputs["count"] = int(count)
        step_size = parse_step_size(self._fields.get("step_size"))
        if step_size is not None:
            outputs["step_size"] = step_size
        outputs["fields"] = self._fields
        return outputs


def parse_tckinfo(text):
    """Read what tckinfo prints about one file.

    Parameters
    ----------
    text : str
        Its standard output.

    Returns
    -------
    fields : dict of str to str
        Header fields; the lines of a repeated field are joined by newlines.
    counted : int or None
        What ``-count`` found; None without that option.
    """
    fields, counted, key = {}, None, None
    for line in text.splitlines():
        entry = re.match(r" {4}(\S[^:]*): *(.*)$", line)
        total = re.match(r"actual count in file: *(\d+)", line)
        if total:
            counted = int(total.group(1))
        elif entry:
            key = entry.group(1)
            value = entry.group(2).strip()
            fields[key] = f"{fields[key]}\n{value}" if key in fields else value
        elif key is not None and line.startswith(" " * 26):
            fields[key] += f"\n{line.strip()}"
    return fields, counted
