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


@pytest.mark.mrtrix
@pytest.mark.skipif(shutil.which("tckmap") is None, reason="MRtrix3 is not on PATH")
@pytest.mark.parametrize("interface", INTERFACES)
def test_every_option_exists_and_none_is_lacking(interface):
    done = subprocess.run([interface._cmd, "-help"], capture_output=True, text=True, check=True)
    plain = re.sub(r".\x08", "", done.stdout)
    known = set(re.findall(r"^  -([a-z_]+)", plain, re.MULTILINE))
    traits = interface.input_spec().traits(argstr=lambda text: text is not None).values()
    ours = {t.argstr.split()[0][1:] for t in traits if t.argstr.startswith("-")}
    assert ours <= known
    standard = {"info", "debug", "config", "help", "version"}
    if interface is not MRCalc:  # whose operators are options
        assert known - ours - standard == set()


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


def test_wrong_regions_and_double_assignment_are_refused(folder):
    tracks = str(folder / "tracks.tck")
    for region in ("missing.nii.gz", "1,2,3"):
        with pytest.raises(TraitError):
            TCKEdit(in_files=[tracks], include=[region])
    with pytest.raises(OSError, match="mutually exclusive"):
        TCK2Connectome(in_file=tracks, search_radius=2.0, assignment_end_voxels=True)


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
