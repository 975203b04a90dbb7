"""MRtrix interfaces: command lines, results against commands typed by hand, failures, caching."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import nipype.pipeline.engine as pe
import numpy as np
import pytest
from nipype.interfaces.base import isdefined
from traits.api import TraitError

from lacuna_nipype.connectomes.tractogram import (
    check_tck,
    iter_tck_streamlines,
    read_tck_header,
    write_tck,
)
from lacuna_nipype.core.exceptions import DependencyError, ValidationError
from lacuna_nipype.interfaces.mrtrix import (
    MRCalc,
    MRtrixError,
    SelectStreamlines,
    TCK2Connectome,
    TCKEdit,
    TCKInfo,
    TCKMap,
    expand_expression,
    failure_sentence,
    mask_is_empty,
    parse_tckinfo,
)

INTERFACES = [MRCalc, SelectStreamlines, TCK2Connectome, TCKEdit, TCKInfo, TCKMap]
COMMANDS = sorted({interface._cmd for interface in INTERFACES})
# nipype's list (tools/checkspecs.py), with what traits itself puts there.
ALLOWED_METADATA = set(
    re.findall(
        r"\w+",
        """
        desc genfile xor requires nohash argstr position mandatory copyfile usedefault sep
        hash_files deprecated new_name min_ver max_ver name_source name_template keep_extension
        units output_name extensions
        type copy parent instance_handler comparison_mode array default editor
        """,
    )
)
GUARDED = "{1} 0 -gt {0} {1} -divide 100 -multiply 0 -if"


def needs_mrtrix(function):
    missing = any(shutil.which(command) is None for command in COMMANDS)
    skip = pytest.mark.skipif(missing, reason="MRtrix3 is not on PATH")
    return pytest.mark.mrtrix(skip(function))


def typed(folder, *command):
    """Run a command as a user would, in ``folder``."""
    words = [str(word) for word in command]
    subprocess.run([*words, "-quiet", "-force"], check=True, cwd=folder, capture_output=True)


def run(interface, base_dir, name="node", **node_options):
    return pe.Node(interface, name=name, base_dir=str(base_dir), **node_options).run()


def image(path, data):
    affine = np.eye(4)
    affine[:3, 3] = -10
    nib.save(nib.Nifti1Image(data, affine), path)
    return str(path)


def data_of(path):
    return np.asarray(nib.load(path).dataobj)


def points_of(path):
    header = read_tck_header(path)
    return Path(path).read_bytes()[header.offset :]


@pytest.fixture
def folder(tmp_path):
    """Tracks, a grid, a hitting and an empty mask, and labels, in a folder with a blank."""
    folder = tmp_path / "in put"
    folder.mkdir()
    rng = np.random.default_rng(5)
    steps = rng.normal(size=(60, 15, 3)) + np.array([1, 0, 0])
    steps /= np.linalg.norm(steps, axis=2, keepdims=True)
    lines = rng.uniform(-9, 5, (60, 1, 3)) + np.cumsum(steps, axis=1)
    write_tck(folder / "tracks.tck", list(lines), step_size=1.0, fields={"source": "a test"})
    empty = np.zeros((20, 20, 20), "u1")
    hitting = empty.copy()
    hitting[8:12, 8:12, 8:12] = 1
    labels = np.zeros((20, 20, 20), "u1")
    labels[:10], labels[10:] = 1, 2
    image(folder / "empty.nii.gz", empty)
    image(folder / "mask.nii.gz", hitting)
    image(folder / "labels.nii.gz", labels)
    return folder


# Specifications and command lines


@pytest.mark.parametrize("interface", INTERFACES)
def test_specification_rules(interface):
    assert interface._cmd
    assert interface.__doc__
    own = set(interface.input_spec().copyable_trait_names()) - {"args", "environ"}
    for spec, names in (
        (interface.input_spec(), own),
        (interface.output_spec(), interface.output_spec().copyable_trait_names()),
    ):
        for name in names:
            trait = spec.traits()[name]
            assert trait.desc, name
            assert set(trait.__dict__) <= ALLOWED_METADATA, name
            assert trait.mandatory in (None, True), name
    assert interface.input_spec().traits()["nthreads"].nohash is True


# Options of the commands that no interface has, and why.
LEFT_OUT = {
    "info": "quiet is what a workflow wants; an error is printed in any case",
    "debug": "as info",
    "config": "a user's configuration file is read, and no result should depend on more",
    "help": "not a way to run the command",
    "version": "not a way to run the command",
}


def options_in_help(command):
    """Options by name: whether each takes an argument, and whether it may be repeated."""
    done = subprocess.run([command, "-help"], capture_output=True, text=True, check=True)
    plain = re.sub(r".\x08", "", done.stdout)
    found = re.findall(
        r"^  -([a-z_0-9]+)((?: [a-z_]+)*)(  \(multiple uses permitted\))?$", plain, re.MULTILINE
    )
    return {name: (bool(arguments), bool(repeated)) for name, arguments, repeated in found}, plain


def options_of(interface):
    """The same of an interface, with the names of the inputs."""
    traits = interface.input_spec().traits(argstr=lambda text: text is not None)
    return {
        trait.argstr.split()[0][1:]: ("%" in trait.argstr, trait.argstr.endswith("..."))
        for trait in traits.values()
        if trait.argstr.startswith("-")
    }


@needs_mrtrix
@pytest.mark.parametrize("interface", INTERFACES)
def test_options_are_those_in_the_help(interface):
    known, _ = options_in_help(interface._cmd)
    ours = options_of(interface)
    assert set(ours) <= set(known)
    left_out = set(known) - set(ours)
    if interface is MRCalc:
        operators = left_out - set(LEFT_OUT)
        assert len(operators) > 40
        for name in operators:  # they are words of the expression
            assert expand_expression(f"{{0}} -{name}", ["a.nii"]) == ["a.nii", f"-{name}"]
        left_out -= operators
    assert left_out == set(LEFT_OUT)
    for name in ours:
        assert ours[name] == known[name], name


@needs_mrtrix
@pytest.mark.parametrize(
    ("interface", "name"),
    [
        (TCKMap, "contrast"),
        (TCKMap, "stat_vox"),
        (TCKMap, "stat_tck"),
        (TCK2Connectome, "stat_edge"),
        (MRCalc, "datatype"),
    ],
)
def test_choices_are_those_in_the_help(interface, name):
    _, text = options_in_help(interface._cmd)
    words = " ".join(re.search(rf"^  -{name} \w+$(.*?)^  -", text, re.M | re.S)[1].split())
    listed = re.search(r"(?:[Oo]ptions are|choices are): ([a-z0-9_, ]+)", words)[1]
    trait = interface.input_spec().traits()[name].trait_type
    assert set(trait.values) == set(re.split(r",\s*", listed.strip()))


# Every input of every interface: what is given, and what becomes of it. Each is run, too.
IMAGE = {"in_map": "mask.nii.gz"}
ARGUMENTS = {
    TCKEdit: [
        ({"include": ["mask.nii.gz", "-1,2,3,4.5"]}, "-include mask.nii.gz -include -1,2,3,4.5"),
        (
            {"include_ordered": ["0,0,0,8", "1,2,3,9"]},
            "-include_ordered 0,0,0,8 -include_ordered 1,2,3,9",
        ),
        ({"exclude": "1,2,3,4"}, "-exclude 1,2,3,4"),
        ({"mask": "mask.nii.gz"}, "-mask mask.nii.gz"),
        ({"maxlength": 10}, "-maxlength 10.0"),
        ({"minlength": 2.5}, "-minlength 2.5"),
        ({"number": 10}, "-number 10"),
        ({"number": 10, "skip": 5}, "-skip 5"),
        ({"tck_weights_in": "w.txt", "maxweight": 0.5}, "-maxweight 0.5"),
        ({"tck_weights_in": "w.txt", "minweight": 0.5}, "-minweight 0.5"),
        ({"include": "0,0,0,3", "inverse": True}, "-inverse"),
        ({"include": "0,0,0,3", "ends_only": True}, "-ends_only"),
        ({"tck_weights_in": "w.txt"}, "-tck_weights_in w.txt"),
        ({"tck_weights_out": "out.txt"}, "-tck_weights_out out.txt"),
    ],
    TCKMap: [
        ({"reference": "mask.nii.gz"}, "-template mask.nii.gz"),
        ({"vox_size": 2.5}, "-vox 2.5"),
        ({"vox_size": [1.5, 2, 2.25]}, "-vox 1.5,2.0,2.25"),
        ({"data_type": "float32"}, "-datatype float32"),
        ({"use_dec": True}, "-dec"),
        ({"dixel": 60}, "-dixel 60"),
        ({"dixel": "directions.txt"}, "-dixel directions.txt"),
        ({"max_tod": 4}, "-tod 4"),
        ({"contrast": "length"}, "-contrast length"),
        ({"contrast": "scalar_map", **IMAGE}, "-image mask.nii.gz"),
        ({"contrast": "vector_file", "vector_file": "w.txt"}, "-vector_file w.txt"),
        ({"stat_vox": "mean"}, "-stat_vox mean"),
        ({"contrast": "scalar_map", **IMAGE, "stat_tck": "median"}, "-stat_tck median"),
        (
            {"contrast": "scalar_map", **IMAGE, "stat_tck": "gaussian", "fwhm_tck": 4},
            "-fwhm_tck 4.0",
        ),
        ({"contrast": "scalar_map", **IMAGE, "map_zero": True}, "-map_zero"),
        (
            {"contrast": "scalar_map", **IMAGE, "stat_tck": "ends_max", "backtrack": True},
            "-backtrack",
        ),
        ({"upsample": 4}, "-upsample 4"),
        ({"precise": True}, "-precise"),
        ({"ends_only": True}, "-ends_only"),
        ({"tck_weights": "w.txt"}, "-tck_weights_in w.txt"),
    ],
    TCK2Connectome: [
        ({"assignment_end_voxels": True}, "-assignment_end_voxels"),
        ({"search_radius": 3}, "-assignment_radial_search 3.0"),
        ({"search_reverse": 0.0}, "-assignment_reverse_search 0.0"),
        ({"search_forward": 2.5}, "-assignment_forward_search 2.5"),
        ({"assignment_all_voxels": True}, "-assignment_all_voxels"),
        ({"scale_length": True}, "-scale_length"),
        ({"scale_invlength": True}, "-scale_invlength"),
        ({"scale_invnodevol": True}, "-scale_invnodevol"),
        ({"scale_file": "w.txt"}, "-scale_file w.txt"),
        ({"symmetric": True}, "-symmetric"),
        ({"zero_diagonal": True}, "-zero_diagonal"),
        ({"stat_edge": "mean"}, "-stat_edge mean"),
        ({"in_weights": "w.txt"}, "-tck_weights_in w.txt"),
        ({"keep_unassigned": True}, "-keep_unassigned"),
        ({"out_assignments": "nodes.txt"}, "-out_assignments nodes.txt"),
        ({"vector": True}, "-vector"),
    ],
    MRCalc: [({"datatype": "cfloat32"}, "-datatype cfloat32")],
    TCKInfo: [({"count_streamlines": True}, "-count")],
}
MANDATORY = {
    TCKEdit: {"in_files": ["tracks.tck"]},
    TCKMap: {"in_file": "tracks.tck"},
    TCK2Connectome: {"in_file": "tracks.tck", "in_parc": "labels.nii.gz"},
    MRCalc: {"in_files": ["mask.nii.gz"], "expression": "{0} 2 -mult"},
    TCKInfo: {"in_file": "tracks.tck"},
}
GENERAL = [
    ({"nthreads": 2}, "-nthreads 2"),
    ({}, "-nthreads 0"),
    ({}, "-quiet"),
    ({}, "-force"),
]


def test_every_input_is_tried():
    for interface, cases in ARGUMENTS.items():
        traits = interface.input_spec().traits(argstr=lambda text: text is not None)
        tried = {name for inputs, _ in cases for name in inputs}
        tried |= {*MANDATORY[interface], "args", "out_file", "nthreads", "quiet", "force"}
        assert set(traits) <= tried, interface


@needs_mrtrix
@pytest.mark.parametrize(
    ("interface", "inputs", "expected"),
    [
        pytest.param(interface, *case, id=f"{interface._cmd}-{case[1]}")
        for interface, cases in ARGUMENTS.items()
        for case in [*cases, *GENERAL]
    ],
)
def test_argument_reaches_the_command_and_is_taken(
    folder, tmp_path, monkeypatch, interface, inputs, expected
):
    monkeypatch.chdir(folder)
    (folder / "w.txt").write_text(" ".join(f"{value:.3f}" for value in np.linspace(0, 1, 60)))
    (folder / "directions.txt").write_text("0 0\n0 1.57\n1.57 1.57\n")
    if interface is TCKMap and "vox_size" not in inputs:
        inputs = {"reference": "mask.nii.gz", **inputs}
    tool = interface(**MANDATORY[interface], **inputs)
    assert f" {expected} " in f" {tool.cmdline} "
    for name in tool.inputs.copyable_trait_names():
        value = getattr(tool.inputs, name)
        if isinstance(value, str) and (folder / value).is_file() and value:
            setattr(tool.inputs, name, str(folder / value))
        elif isinstance(value, list) and name not in ("vox_size",):
            paths = [str(folder / v) if (folder / v).is_file() else v for v in value]
            setattr(tool.inputs, name, paths)
    result = tool.run(cwd=str(tmp_path))
    for name, value in result.outputs.get().items():
        if name.startswith(("out_", "tck_")) and isdefined(value):
            assert Path(value).is_file()
            assert Path(value).parent == tmp_path


@pytest.mark.parametrize(
    ("interface", "inputs"),
    [
        (TCKEdit, {"number": 0}),
        (TCKEdit, {"skip": 0}),
        (TCKEdit, {"minlength": -1.0}),
        (TCKEdit, {"maxlength": -1.0}),
        (TCKEdit, {"minweight": -1.0}),
        (TCKEdit, {"maxweight": -1.0}),
        (TCKEdit, {"include": ["missing.nii.gz"]}),
        (TCKEdit, {"include": ["1,2,3"]}),
        (TCKMap, {"upsample": 0}),
        (TCKMap, {"max_tod": 0}),
        (TCKMap, {"max_tod": 22}),
        (TCKMap, {"fwhm_tck": 0.0}),
        (TCKMap, {"data_type": "float16"}),
        (TCKMap, {"contrast": "density"}),
        (TCK2Connectome, {"search_radius": -1.0}),
        (TCK2Connectome, {"search_reverse": -1.0}),
        (TCK2Connectome, {"search_forward": -1.0}),
        (TCK2Connectome, {"stat_edge": "median"}),
        (MRCalc, {"datatype": "float128"}),
        (TCKInfo, {"nthreads": -1}),
    ],
)
def test_values_that_the_commands_refuse_are_refused_at_once(interface, inputs):
    with pytest.raises(TraitError):
        interface(**inputs)


@pytest.mark.parametrize("interface", INTERFACES)
def test_mandatory_inputs(interface):
    with pytest.raises(ValueError, match="requires a value for input"):
        interface().cmdline  # noqa: B018


@pytest.mark.parametrize(
    ("interface", "inputs", "expected"),
    [
        (
            TCKEdit,
            {
                "in_files": ["tracks.tck", "tracks.tck"],
                "include": ["mask.nii.gz", "-1,2,3,4.5"],
                "exclude": "1,2,3,4",
                "minlength": 2.5,
                "number": 10,
                "ends_only": True,
                "tck_weights_out": "w.txt",
            },
            (
                "tckedit -ends_only -exclude 1,2,3,4 -force -include mask.nii.gz "
                "-include -1,2,3,4.5 -minlength 2.5 -nthreads 0 -number 10 -quiet "
                "-tck_weights_out w.txt tracks.tck tracks.tck edited.tck"
            ),
        ),
        (
            TCKMap,
            {
                "in_file": "tracks.tck",
                "reference": "mask.nii.gz",
                "vox_size": [1.5, 2, 2.25],
                "contrast": "scalar_map_count",
                "in_map": "labels.nii.gz",
                "data_type": "float32",
                "dixel": 60,
                "upsample": 4,
                "nthreads": 2,
            },
            (
                "tckmap -contrast scalar_map_count -datatype float32 -dixel 60 -force "
                "-image labels.nii.gz -nthreads 2 -quiet -template mask.nii.gz -upsample 4 "
                "-vox 1.5,2.0,2.25 tracks.tck tdi.nii.gz"
            ),
        ),
        (
            TCK2Connectome,
            {
                "in_file": "tracks.tck",
                "in_parc": "labels.nii.gz",
                "out_file": "two words.csv",
                "search_radius": 4.0,
                "symmetric": True,
                "zero_diagonal": True,
                "stat_edge": "mean",
                "scale_length": True,
                "out_assignments": "nodes.txt",
            },
            (
                "tck2connectome -force -nthreads 0 -out_assignments nodes.txt -quiet "
                "-scale_length -assignment_radial_search 4.0 -stat_edge mean -symmetric "
                "-zero_diagonal tracks.tck labels.nii.gz 'two words.csv'"
            ),
        ),
        (
            MRCalc,
            {
                "in_files": ["mask.nii.gz", "labels.nii.gz"],
                "expression": GUARDED,
                "datatype": "float32",
            },
            (
                "mrcalc -datatype float32 -force -nthreads 0 -quiet labels.nii.gz 0 -gt "
                "mask.nii.gz labels.nii.gz -divide 100 -multiply 0 -if calculated.nii.gz"
            ),
        ),
        (
            TCKInfo,
            {"in_file": "tracks.tck", "count_streamlines": True},
            "tckinfo -count -force -nthreads 0 -quiet tracks.tck",
        ),
    ],
)
def test_command_lines(folder, monkeypatch, interface, inputs, expected):
    monkeypatch.chdir(folder)
    assert interface(**inputs).cmdline == expected


@pytest.mark.parametrize(
    "inputs",
    [
        {"search_radius": 2.0, "assignment_end_voxels": True},
        {"search_forward": 2.0, "search_reverse": 2.0},
        {"scale_length": True, "scale_invlength": True},
    ],
)
def test_options_that_exclude_each_other(inputs):
    with pytest.raises(OSError, match="mutually exclusive"):
        TCK2Connectome(**inputs)


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("{0} {2} -add", r"refers to \{2\}, but there are 2"),
        ("{0} other.nii -add", "'other.nii' in the expression"),
        ("{0} {1} -add ; reboot", "';' in the expression"),
        ("{0} 1 -add", "does not use b.nii"),
    ],
)
def test_expression_takes_no_hidden_files(expression, problem):
    with pytest.raises(ValidationError, match=problem):
        expand_expression(expression, ["a.nii", "b.nii"])


def test_expression_words():
    words = expand_expression("{0} -1.5e3 pi -log10 nan {1} {0}", ["a b.nii", "c.nii"])
    assert words == ["a b.nii", "-1.5e3", "pi", "-log10", "nan", "c.nii", "a b.nii"]


# Failures


def test_failure_sentences():
    coloured = "tckmap: \x1b[01;31m[ERROR] no such file:\x1b[0m\ntckmap: [ERROR]   a.tck\n"
    assert failure_sentence("tckmap", 1, coloured) == "tckmap failed: no such file: a.tck."
    crash = "tckmap: [SYSTEM FATAL CODE: SIGSEGV (11)] Segmentation fault: Invalid memory access"
    assert failure_sentence("tckmap", 11, crash).endswith("fault: Invalid memory access.")
    for code in (-9, 137):
        assert "killed by signal 9, most often because memory" in failure_sentence("x", code, "")
    assert failure_sentence("x", 3, None) == "x failed: it ended with code 3 and gave no reason."


@needs_mrtrix
def test_failure_ends_in_one_sentence(folder, tmp_path):
    garbage = folder / "garbage.tck"
    garbage.write_text("garbage\n")
    with pytest.raises(pe.nodes.NodeExecutionError) as error:
        run(TCKEdit(in_files=[str(garbage)]), tmp_path)
    last = str(error.value).strip().splitlines()[-1]
    assert re.search(r"MRtrixError: tckedit failed: invalid first line .*garbage\.tck.*\.$", last)
    assert "\x1b" not in last
    with pytest.raises(MRtrixError, match="is empty"):
        TCKEdit(in_files=[str(folder / "tracks.tck")], include=[str(folder / "empty.nii.gz")]).run(
            cwd=tmp_path
        )


@needs_mrtrix
def test_bad_expression_ends_in_one_sentence(folder, tmp_path):
    with pytest.raises(pe.nodes.NodeExecutionError) as error:
        run(MRCalc(in_files=[str(folder / "mask.nii.gz")], expression="{1} -neg"), tmp_path)
    assert "ValidationError: The expression refers to {1}" in str(error.value).splitlines()[-1]


def test_missing_program(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match="command tckinfo cannot be found"):
        TCKInfo(in_file=str(folder / "tracks.tck")).run(cwd=tmp_path)


# tckedit


@needs_mrtrix
def test_select_equals_tckedit_typed_by_hand(folder, tmp_path):
    tracks, mask = folder / "tracks.tck", folder / "mask.nii.gz"
    typed(tmp_path, "tckedit", tracks, "-include", mask, "hand.tck")
    outputs = run(SelectStreamlines(in_files=[str(tracks)], include=[str(mask)]), tmp_path).outputs
    assert outputs.out_file == str(tmp_path / "node" / "edited.tck")
    assert points_of(outputs.out_file) == points_of(tmp_path / "hand.tck")
    assert 0 < outputs.count < 60
    assert outputs.count == len(list(iter_tck_streamlines(outputs.out_file)))
    assert not isdefined(outputs.tck_weights_out)


@needs_mrtrix
def test_select_with_an_empty_mask(folder, tmp_path):
    inputs = {
        "in_files": [str(folder / "tracks.tck")],
        "include": [str(folder / "mask.nii.gz"), str(folder / "empty.nii.gz")],
    }
    selected = run(SelectStreamlines(**inputs, tck_weights_out="w.txt"), tmp_path).outputs
    assert selected.count == 0
    assert Path(selected.tck_weights_out).read_text() == ""
    assert read_tck_header(selected.out_file).step_size == 1.0
    with pytest.raises(ValidationError, match="holds no streamlines"):
        check_tck(selected.out_file)
    # What follows in the graph takes it.
    told = run(TCKInfo(in_file=selected.out_file, count_streamlines=True), tmp_path, "info")
    assert told.outputs.count == 0
    mapped = TCKMap(in_file=selected.out_file, reference=str(folder / "mask.nii.gz"))
    assert not data_of(run(mapped, tmp_path, "map").outputs.out_file).any()
    matrix = TCK2Connectome(in_file=selected.out_file, in_parc=str(folder / "labels.nii.gz"))
    found = np.loadtxt(run(matrix, tmp_path, "matrix").outputs.out_file, delimiter=",")
    np.testing.assert_array_equal(found, np.zeros((2, 2)))
    # The inverse of nothing is everything, which only tckedit itself may decide.
    with pytest.raises(pe.nodes.NodeExecutionError, match="is empty"):
        run(SelectStreamlines(**inputs, inverse=True), tmp_path, "inverse")


@needs_mrtrix
def test_select_misses(folder, tmp_path):
    select = SelectStreamlines(in_files=[str(folder / "tracks.tck")], include=["500,500,500,1"])
    outputs = run(select, tmp_path).outputs
    assert outputs.count == 0


@needs_mrtrix
@pytest.mark.parametrize(
    ("value", "dtype"),
    [(0.49, "f4"), (0.5, "f4"), (-1, "i2"), (-128, "i1"), (np.nan, "f4"), (np.inf, "f4")],
)
def test_mask_values_count_as_for_tckedit(folder, tmp_path, value, dtype):
    data = np.zeros((20, 20, 20), dtype)
    data[10, 10, 10] = value
    mask = image(tmp_path / "mask.nii", data)
    tracks = folder / "tracks.tck"
    words = ["tckedit", tracks, "-include", mask, "out.tck", "-quiet"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert mask_is_empty(mask) == ("image is empty" in done.stderr)
    assert mask_is_empty(mask) == (done.returncode != 0)


def test_masks_that_nibabel_cannot_read_are_left_to_mrtrix(tmp_path):
    (tmp_path / "mask.mif").write_text("mrtrix image\n")
    assert not mask_is_empty(tmp_path / "mask.mif")


@needs_mrtrix
def test_left_over_output_is_overwritten(folder, tmp_path):
    # nipype resumes the node of a killed worker in its old folder.
    (tmp_path / "edited.tck").write_text("half a fi")
    TCKEdit(in_files=[str(folder / "tracks.tck")]).run(cwd=tmp_path)
    assert check_tck(tmp_path / "edited.tck").count == 60


# tckmap, tck2connectome, mrcalc, tckinfo


@needs_mrtrix
@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ({}, []),
        ({"contrast": "length", "stat_vox": "mean"}, ["-contrast", "length", "-stat_vox", "mean"]),
        (
            {"contrast": "scalar_map_count", "in_map": "mask.nii.gz"},
            ["-contrast", "scalar_map_count", "-image", "mask.nii.gz"],
        ),
        ({"vox_size": [2.5], "data_type": "float32"}, ["-vox", "2.5", "-datatype", "float32"]),
        ({"upsample": 1}, ["-upsample", "1"]),
        ({"ends_only": True}, ["-ends_only"]),
    ],
)
def test_tckmap_equals_command_typed_by_hand(folder, tmp_path, monkeypatch, inputs, options):
    monkeypatch.chdir(folder)
    if "in_map" in inputs:
        inputs = {**inputs, "in_map": str(folder / inputs["in_map"])}
    typed(folder, "tckmap", "tracks.tck", "-template", "mask.nii.gz", *options, "hand.nii.gz")
    tdi = TCKMap(
        in_file=str(folder / "tracks.tck"), reference=str(folder / "mask.nii.gz"), **inputs
    )
    found = run(tdi, tmp_path).outputs.out_file
    assert found == str(tmp_path / "node" / "tdi.nii.gz")
    np.testing.assert_array_equal(data_of(found), data_of(folder / "hand.nii.gz"))
    assert data_of(found).any()


def upsampled(line, ratio):
    """Points that tckmap puts between those of a streamline, in single precision."""
    if ratio == 1 or len(line) < 2:
        return list(line)
    single, half = np.float32, np.float32(0.5)
    padded = [line[0] + (line[0] - line[1]), *line, line[-1] + (line[-1] - line[-2])]
    t = half * single(0.1)
    points = []
    for i in range(len(line) - 1):
        points.append(line[i])
        for k in range(1, ratio):
            p = single(k / ratio)
            p2 = p * p
            p3 = p * p2
            weights = [
                (half - t) * (single(2) * p2 - p3 - p),
                single(1) + (single(1.5) + t) * p3 - (single(2.5) + t) * p2,
                (single(2) + single(2) * t) * p2 + (half - t) * p - (single(1.5) + t) * p3,
                (half - t) * (p3 - p2),
            ]
            point = weights[0] * padded[i]
            for weight, other in zip(weights[1:], padded[i + 1 : i + 4], strict=True):
                point = point + weight * other
            points.append(point)
    return [*points, line[-1]]


def density(lines, weights, ratio, dtype):
    """Track density on the grid of the fixture, one streamline after the other."""
    found = np.zeros((20, 20, 20), dtype)
    for line, weight in zip(lines, weights, strict=True):
        voxels = set()
        for point in upsampled(line, ratio):
            position = point + np.float32(10)  # voxels of 1 mm, the first centre at -10 mm
            voxel = np.trunc(position + np.copysign(np.float32(0.5), position)).astype(int)
            if (voxel >= 0).all() and (voxel < 20).all():
                voxels.add(tuple(voxel))
        for voxel in voxels:
            found[voxel] += dtype(weight)
    return found


@needs_mrtrix
@pytest.mark.parametrize("step_size", [1.0, None])
def test_weighted_density_is_a_sum_in_the_order_of_the_tracks(folder, tmp_path, step_size):
    rng = np.random.default_rng(11)
    steps = rng.normal(size=(250, 12, 3)).astype("f4")
    steps /= np.linalg.norm(steps, axis=2, keepdims=True)
    lines = list(rng.uniform(-3, 3, (250, 1, 3)).astype("f4") + np.cumsum(steps, axis=1))
    lines[3], lines[8] = lines[3][:0], lines[8][:1]
    weights = rng.gamma(2.0, size=250).astype("f4")
    write_tck(tmp_path / "a.tck", lines, step_size=step_size)
    (tmp_path / "w.txt").write_text("\n".join(f"{weight:.9g}" for weight in weights.tolist()))
    tdi = TCKMap(
        in_file=str(tmp_path / "a.tck"),
        reference=str(folder / "mask.nii.gz"),
        tck_weights=str(tmp_path / "w.txt"),
    )
    found = data_of(run(tdi, tmp_path).outputs.out_file)
    # ceil(1 mm / (1 mm * 0.333)), or no upsampling where the step is not known.
    ratio = 4 if step_size else 1
    expected = density(lines, weights, ratio, np.float32)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view("u4"), expected.view("u4"))
    # Another order gives other sums.
    other = density(lines[::-1], weights[::-1], ratio, np.float32)
    assert (other != expected).sum() > 50
    plain = TCKMap(in_file=str(tmp_path / "a.tck"), reference=str(folder / "mask.nii.gz"))
    counted = data_of(run(plain, tmp_path, "plain").outputs.out_file)
    assert counted.dtype == np.uint32
    np.testing.assert_array_equal(counted, density(lines, np.ones(250), ratio, np.uint32))


@needs_mrtrix
def test_weights_of_no_streamlines(folder, tmp_path):
    """MRtrix fails on an empty file of weights, which is what a lesion that hits none leaves."""
    (tmp_path / "w.txt").write_text(" ".join(["1.5"] * 60))
    select = SelectStreamlines(
        in_files=[str(folder / "tracks.tck")],
        include=["500,500,500,1"],
        tck_weights_in=str(tmp_path / "w.txt"),
        tck_weights_out="hit.txt",
    )
    selected = run(select, tmp_path, "select").outputs
    tracks, weights = selected.out_file, selected.tck_weights_out
    assert selected.count == 0
    template = {"in_file": tracks, "reference": str(folder / "mask.nii.gz")}
    mapped = run(TCKMap(tck_weights=weights, **template), tmp_path, "map").outputs
    assert data_of(mapped.out_file).dtype == np.float32
    assert not data_of(mapped.out_file).any()
    typed_by_user = TCKMap(tck_weights=weights, data_type="uint16", **template)
    assert data_of(run(typed_by_user, tmp_path, "typed").outputs.out_file).dtype == np.uint16
    matrix = TCK2Connectome(
        in_file=tracks, in_parc=str(folder / "labels.nii.gz"), in_weights=weights
    )
    found = np.loadtxt(run(matrix, tmp_path, "matrix").outputs.out_file, delimiter=",")
    np.testing.assert_array_equal(found, np.zeros((2, 2)))
    again = SelectStreamlines(in_files=[tracks], tck_weights_in=weights, tck_weights_out="w.txt")
    assert run(again, tmp_path, "again").outputs.count == 0
    # Where there are streamlines, missing weights are an error.
    empty = tmp_path / "empty.txt"
    empty.write_text("# no number\n")
    with pytest.raises(MRtrixError, match="no data"):
        TCKMap(in_file=str(folder / "tracks.tck"), vox_size=2.0, tck_weights=str(empty)).run(
            cwd=tmp_path
        )


@needs_mrtrix
def test_connectome(folder, tmp_path):
    labels = folder / "labels.nii.gz"
    matrix = TCK2Connectome(
        in_file=str(folder / "tracks.tck"),
        in_parc=str(labels),
        assignment_end_voxels=True,
        symmetric=True,
        out_assignments="nodes.txt",
    )
    outputs = run(matrix, tmp_path).outputs
    found = np.loadtxt(outputs.out_file, delimiter=",")
    pairs = np.loadtxt(outputs.out_assignments, dtype=int)
    assert len(pairs) == 60
    expected = np.zeros((3, 3))
    for first, second in np.sort(pairs, axis=1):
        expected[first, second] += 1
    expected += np.triu(expected, 1).T
    np.testing.assert_array_equal(found, expected[1:, 1:])


@needs_mrtrix
def test_guarded_division(tmp_path):
    full = np.zeros((4, 4, 4), "u4")
    full[1], full[2] = 4, 8
    hit = np.zeros_like(full)
    hit[2] = 2
    paths = [image(tmp_path / "hit.nii", hit), image(tmp_path / "full.nii", full)]
    calc = MRCalc(in_files=paths, expression=GUARDED, datatype="float32")
    found = data_of(run(calc, tmp_path).outputs.out_file)
    assert found.dtype == np.float32
    assert [found[i].max() for i in range(4)] == [0, 0, 25, 0]
    assert np.isfinite(found).all()


@needs_mrtrix
@pytest.mark.parametrize("count_streamlines", [True, False])
def test_tckinfo(folder, tmp_path, count_streamlines):
    info = TCKInfo(in_file=str(folder / "tracks.tck"), count_streamlines=count_streamlines)
    outputs = run(info, tmp_path).outputs
    assert (outputs.count, outputs.step_size) == (60, 1.0)
    assert outputs.fields["source"] == "a test"


def test_tckinfo_text():
    text = (
        '*****\n  Tracks file: "a.tck"\n    command_history:      one: two\n'
        + " " * 26
        + "three\n    step_size:            variable\nactual count in file: 12\n"
    )
    fields, counted = parse_tckinfo(text)
    assert fields == {"command_history": "one: two\nthree", "step_size": "variable"}
    assert counted == 12


# Caching


def runs(base_dir, interface):
    """Run a node; whether it was executed and not taken from the cache."""
    marker = base_dir / "node" / "marker"
    if marker.parent.exists():
        marker.touch()  # nipype empties the folder of a node before it executes it
    run(interface, base_dir)
    return not marker.exists()


@needs_mrtrix
def test_cached_until_an_input_changes(folder, tmp_path):
    masks = [str(folder / "mask.nii.gz"), str(folder / "labels.nii.gz")]

    def calculate(**options):
        return MRCalc(in_files=masks, expression="{0} {1} -multiply", **options)

    assert runs(tmp_path, calculate())
    # Threads and noise are no part of the hash.
    assert not runs(tmp_path, calculate(nthreads=1, quiet=False))
    image(masks[1], np.ones((20, 20, 20), "u1"))
    os.utime(masks[1], (1, 1))
    assert runs(tmp_path, calculate())
    found = tmp_path / "node" / "calculated.nii.gz"
    np.testing.assert_array_equal(data_of(found), data_of(masks[0]))


@needs_mrtrix
@pytest.mark.parametrize("interface", [SelectStreamlines, TCKMap, TCK2Connectome, TCKInfo])
def test_second_run_is_cached(folder, tmp_path, interface):
    tracks, mask, labels = (
        str(folder / name) for name in ("tracks.tck", "mask.nii.gz", "labels.nii.gz")
    )
    inputs = {
        SelectStreamlines: {"in_files": [tracks], "include": [mask, "0,0,0,20"]},
        TCKMap: {"in_file": tracks, "reference": mask},
        TCK2Connectome: {"in_file": tracks, "in_parc": labels},
        TCKInfo: {"in_file": tracks},
    }[interface]
    assert runs(tmp_path, interface(**inputs))
    assert not runs(tmp_path, interface(**inputs))
    for path in (mask, labels, tracks):
        os.utime(path, (1, 1))
    assert runs(tmp_path, interface(**inputs))
