"""Connectomes by name: the commands of the registry, and names where runs take paths."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import nibabel as nb
import numpy as np
import pytest

import lacuna_nipype
from lacuna_nipype.cli.inputs import gather_inputs
from lacuna_nipype.cli.main import main
from lacuna_nipype.cli.parser import parse_config
from lacuna_nipype.connectomes.registry import find_registered, register_connectome, registry_file
from lacuna_nipype.connectomes.streamline_index import write_index
from lacuna_nipype.connectomes.tractogram import write_tck
from lacuna_nipype.core.spaces import template_grid

SPACE, OTHER = "MNI152NLin6Asym", "MNI152NLin2009cAsym"
GRID = template_grid(SPACE, 2)
# A grid of 8 mm, which is no standard one, so that only words can say the space.
SHAPE = (8, 9, 7)
AFFINE = np.array([[8.0, 0, 0, -28], [0, 8, 0, -32], [0, 0, 8, -24], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    monkeypatch.setenv("LACUNA_DATA_DIR", str(folder))
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A lesion mask, an atlas, and connectomes that do not say which space they are in."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(4)
    brain = np.ones(SHAPE, dtype=bool)
    (folder / "rest").mkdir()
    for number in range(2):
        with h5py.File(folder / "rest" / f"batch_{number}.h5", "w") as handle:
            series = rng.normal(size=(2, 15, np.count_nonzero(brain)))
            handle["timeseries"] = series.astype(np.float32)
            handle["mask_indices"], handle["mask_affine"] = np.array(np.nonzero(brain)), AFFINE
            handle.attrs["mask_shape"] = SHAPE
    steps = np.cumsum(np.tile([[0, 0, 1.0]], (30, 1)), axis=0)
    write_tck(folder / "lines.tck", [steps + np.array([k, 0, 0]) for k in range(5)], step_size=1.0)
    lesion = np.zeros(GRID.shape, np.uint8)
    centre = np.rint(np.linalg.inv(GRID.affine) @ [4, 0, 8, 1]).astype(int)[:3]
    lesion[tuple(slice(c - 2, c + 3) for c in centre)] = 1
    save(folder / "mask.nii.gz", lesion, GRID.affine)
    labels = np.ones(SHAPE, np.int16)
    labels[:4] = 2
    save(folder / "atlas.nii.gz", labels, AFFINE)
    (folder / "atlas.tsv").write_text("index\tname\n1\tright\n2\tleft\n")
    return folder


def save(path, data, affine):
    image = nb.Nifti1Image(data, affine)
    image.set_sform(affine, 4)
    nb.save(image, path)


def run_words(study, tmp_path, *words):
    return [
        str(word)
        for word in (
            study / "mask.nii.gz", tmp_path / "out", "participant", "--mask-space", SPACE,
            "-w", tmp_path / "work", "--nprocs", 1, *words,
        )
    ]  # fmt: skip


def inputs_of(study, tmp_path, *words):
    return gather_inputs(parse_config(run_words(study, tmp_path, *words)))


def succeed(capsys, *words):
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, ""), printed
    return printed.out


def refused(capsys, *words):
    """Exit code 2 and one sentence at the end, without a traceback."""
    assert main([str(word) for word in words]) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err.strip().splitlines()[-1]


# Commands


def test_register_list_and_unregister(study, capsys, tmp_path):
    assert succeed(capsys, "connectome", "list").startswith("No connectome is registered in ")
    assert json.loads(succeed(capsys, "connectome", "list", "--json")) == []
    printed = succeed(
        capsys, "connectome", "register", "Rest", study / "rest", "--space", "FSL", "--citation",
        "Doe 2020", "--license", "CC0", "--n_subjects", "4",
    )  # fmt: skip
    assert printed.startswith(f"Registered: Rest (functional, 4 subjects, {SPACE}), ")
    assert str(registry_file()) in printed
    words = ("connectome", "register", "Lines", study / "lines.tck", "--space", OTHER)
    assert "structural" in succeed(capsys, *words, "--resolution", 1)
    header, *rows = succeed(capsys, "connectome", "list").splitlines()
    assert header.split() == ["name", "kind", "subjects", "space", "mm", "path"]
    assert [row.split() for row in rows] == [
        ["Lines", "structural", "-", OTHER, "1", str(study / "lines.tck")],
        ["Rest", "functional", "4", SPACE, "8", str(study / "rest")],
    ]
    listed = succeed(capsys, "connectome", "list", "--kind", "functional", "--json")
    (entry,) = json.loads(listed)
    assert (entry["name"], entry["space"], entry["licence"]) == ("Rest", SPACE, "CC0")
    assert entry["exists"] is True
    assert str(study / "rest") in succeed(capsys, "connectome", "unregister", "REST")
    assert find_registered("Rest") is None
    assert (study / "rest" / "batch_0.h5").is_file()


def test_list_marks_what_is_gone(capsys, tmp_path):
    path = tmp_path / "lines.tck"
    write_tck(path, [np.eye(3)], step_size=1.0)
    register_connectome("Lines", path, space=SPACE)
    path.unlink()
    assert succeed(capsys, "connectome", "list").rstrip().endswith(f"{path} (not there)")
    assert json.loads(succeed(capsys, "connectome", "list", "--json"))[0]["exists"] is False


def test_wrong_use_of_the_commands(study, capsys, tmp_path):
    register = ("connectome", "register")
    rest = study / "rest"
    for words, reason in [
        ([*register], "NAME"),
        ([*register, "Rest"], "PATH"),
        ([*register, "Rest", tmp_path / "none"], "does not exist"),
        ([*register, "Rest", tmp_path], "holds no .h5"),
        ([*register, "Rest", rest], "add --space SPACE"),
        ([*register, "Rest", rest, "--space", "Mars"], "'Mars'"),
        ([*register, "a b", rest, "--space", SPACE], "cannot be the name"),
        ([*register, "Rest", rest, "--space", SPACE, "--kind", "structural"], "a functional"),
        ([*register, "Rest", rest, "--space", SPACE, "--kind", "both"], "--kind"),
        ([*register, "Rest", rest, "--space", SPACE, "--n-subjects", "-1"], "--n-subjects"),
        ([*register, "Rest", rest, "--space", SPACE, "--n-subjects", "5"], "holds 4 subjects"),
        ([*register, "Rest", rest, "--space", SPACE, "--resolution", "x"], "--resolution"),
        ([*register, "Rest", rest, "--space", SPACE, "--resolution", "2"], "voxels of 8 mm"),
        ([*register, "Rest", rest, "--space", SPACE, "--sha256", "00"], "64 hexadecimal"),
        (["connectome", "unregister", "Rest"], "No connectome is registered as Rest"),
        (["connectome", "unregister"], "NAME"),
        (["connectome", "info", "Rest"], "lacuna-nipype fetch"),
        (["connectome", "info", ""], "empty path"),
        (["connectome", "info", "x" * 5000], "name too long"),
    ]:
        assert reason in refused(capsys, *words), words
        assert not registry_file().exists()
    register_connectome("Rest", rest, space=SPACE)
    assert "--overwrite" in refused(capsys, *register, "rest", rest, "--space", SPACE)
    assert "as Rest" in refused(capsys, *register, "Other", rest, "--space", SPACE)
    succeed(capsys, *register, "rest", rest, "--space", OTHER, "--overwrite")
    registry_file().write_bytes(registry_file().read_bytes()[:-9])
    for words in (["list"], ["unregister", "Rest"], ["info", "Rest"], ["info", rest]):
        assert "is damaged; put its copy back" in refused(capsys, "connectome", *words)


def test_info_of_a_name(study, capsys):
    register_connectome("Rest", study / "rest", space=SPACE, citation="Doe 2020")
    by_name = json.loads(succeed(capsys, "connectome", "info", "rest", "--json", "--check-data"))
    assert by_name == json.loads(
        succeed(capsys, "connectome", "info", study / "rest", "--json", "--check-data")
    )
    entry = find_registered("Rest")
    assert by_name["Fingerprint"] == entry.fingerprint
    assert by_name["Check"]["SeriesNotFinite"] == 0
    assert by_name["Registered"] == {
        "Name": "Rest",
        "Space": SPACE,
        "NumberOfSubjects": 4,
        "Citation": "Doe 2020",
        "License": None,
        "AddedOn": entry.added_on,
        "Unchanged": True,
    }
    text = succeed(capsys, "connectome", "info", "Rest")
    assert "Registered:" in text
    assert "Doe 2020" in text


def test_convert_and_prepare_take_names(study, capsys, tmp_path):
    register_connectome("Rest", study / "rest", space=SPACE)
    register_connectome("Lines", study / "lines.tck", space=OTHER)
    succeed_with_log(capsys, "connectome", "convert", "Rest", tmp_path / "store", "--nprocs", 1)
    info = json.loads(succeed(capsys, "connectome", "info", tmp_path / "store", "--json"))
    assert (info["Space"], info["NumberOfSubjects"]) == (SPACE, 4)
    succeed_with_log(capsys, "connectome", "convert", "lines", tmp_path / "copy.tck")
    assert json.loads((tmp_path / "copy.json").read_text())["Space"] == OTHER
    # Without a name, nothing says the space.
    words = (
        tmp_path / "matrices", "--custom-parcellation", "Halves", study / "atlas.nii.gz",
        study / "atlas.tsv", SPACE, "--nprocs", 1,
    )  # fmt: skip
    succeed_with_log(capsys, "connectome", "prepare", "Rest", *words)
    (sidecar,) = (tmp_path / "matrices").glob("rest_*stat-z*.json")
    assert find_registered("Rest").fingerprint in sidecar.read_text()
    register_connectome("Rest", study / "rest", space=OTHER, overwrite=True)
    assert f"connectome is in {OTHER}" in refused(
        capsys, "connectome", "prepare", "Rest", *words, "--overwrite"
    )


def succeed_with_log(capsys, *words):
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_commands_have_names_in_their_help():
    code = (
        "import sys\nfrom lacuna_nipype.cli.main import main\n"
        "for words in (['connectome'], ['connectome', 'info'], ['connectome', 'convert'],"
        " ['connectome', 'prepare'], ['connectome', 'register'], ['connectome', 'list']):\n"
        "    main([*words, '--help'])\n"
        "print(sorted({'numpy', 'h5py', 'nibabel', 'nipype'} & set(sys.modules)))"
    )
    checkout = str(Path(lacuna_nipype.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": checkout},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"
    text = " ".join(done.stdout.split())
    assert text.count("name of a registered one") == 3
    for word in (" register ", " unregister ", " list ", "--citation", "NAME|PATH"):
        assert word in text


# Runs


def test_help_of_runs_says_that_names_are_accepted(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag in ("--functional-connectome", "--structural-connectome"):
        assert f"{flag} NAME|PATH" in text
    assert text.count("the name of one in 'connectome list'") == 2


def test_a_run_takes_the_space_of_a_name(study, tmp_path):
    register_connectome("Rest", study / "rest", space=SPACE, citation="Doe 2020", licence="CC0")
    by_name = inputs_of(study, tmp_path, "--functional-connectome", "REST")
    by_path = inputs_of(study, tmp_path, "--functional-connectome", study / "rest")
    for inputs in (by_name, by_path):
        assert inputs.functional.space == SPACE
        assert inputs.functional.paths == sorted((study / "rest").iterdir())
        connectome = inputs.metadata["fnm"]["Connectome"]
        assert connectome["RegisteredName"] == "Rest"
        assert (connectome["Citation"], connectome["License"]) == ("Doe 2020", "CC0")
        assert connectome["Fingerprint"] == find_registered("Rest").fingerprint
    # The flag comes before the registry.
    register_connectome("Rest", study / "rest", space=OTHER, overwrite=True)
    words = ("--functional-connectome", "Rest", "--functional-space", SPACE)
    assert inputs_of(study, tmp_path, *words).functional.space == SPACE


def test_a_run_takes_space_and_resolution_of_a_tractogram(study, tmp_path):
    words = ("--structural-connectome", "lines", "--snm-engine", "index")
    register_connectome("Lines", study / "lines.tck", space=SPACE, citation="Doe 2021")
    inputs = inputs_of(study, tmp_path, *words)
    tractogram = inputs.structural.tractogram
    assert (tractogram.path, tractogram.space) == (study / "lines.tck", SPACE)
    assert tractogram.resolution == 2.0
    assert inputs.metadata["snm"]["Connectome"]["Citation"] == "Doe 2021"
    register_connectome("Lines", study / "lines.tck", space=SPACE, resolution=1, overwrite=True)
    assert inputs_of(study, tmp_path, *words).structural.tractogram.resolution == 1.0
    asked = inputs_of(study, tmp_path, *words, "--output-resolution", 2)
    assert asked.structural.tractogram.resolution == 2.0
    index = tmp_path / "lines.h5"
    write_index(study / "lines.tck", index, grid=GRID, space=SPACE, upsample=2)
    register_connectome("Index", index)
    tractogram = inputs_of(study, tmp_path, *words[:1], "Index").structural.tractogram
    assert (tractogram.index_file, tractogram.path) == (index, study / "lines.tck")
    assert tractogram.resolution == 2.0


def test_dry_run_with_names(study, capsys, tmp_path):
    words = run_words(
        study, tmp_path, "--functional-connectome", "Rest", "--structural-connectome", "Lines",
        "--snm-engine", "index", "--dry-run",
    )  # fmt: skip
    assert "Rest does not exist and is not the name" in refused(capsys, *words)
    register_connectome("rest", study / "rest", space=SPACE)
    register_connectome("lines", study / "lines.tck", space=SPACE)
    printed = succeed_with_log(capsys, *words)
    assert f"Functional connectome: 4 subjects in 2 files, {np.prod(SHAPE)} voxels" in printed
    assert f"voxels, {SPACE}." in printed
    assert "Dry run: " in printed.splitlines()[-1]
    assert "desc-snm" in printed
    assert not (tmp_path / "out").exists()


def test_names_that_a_run_cannot_use(study, capsys, tmp_path):
    words = run_words(study, tmp_path, "--dry-run", "--snm-engine", "index")
    functional, structural = ("--functional-connectome",), ("--structural-connectome",)
    # Without its name a connectome is as it was: nothing says the space.
    line = refused(capsys, *words[:-2], *functional, study / "rest")
    assert line.endswith("add --functional-space SPACE.")
    gone = tmp_path / "gone.tck"
    write_tck(gone, [np.eye(3)], step_size=1.0)
    for name, path in (("Rest", study / "rest"), ("Lines", study / "lines.tck"), ("Gone", gone)):
        register_connectome(name, path, space=SPACE)
    write_tck(gone, [np.eye(3)] * 2, step_size=1.0)
    for flags, reason in [
        ([*functional, "Rost"], "(registered: Rest, "),
        ([*structural, "Rest"], "Rest is a functional connectome; give it with --functional-"),
        ([*structural, study / "rest"], "Rest is a functional connectome"),
        ([*structural, "Gone"], "is not what was registered as Gone"),
        ([*structural, gone], "add --structural-space"),
    ]:
        assert reason in refused(capsys, *words, *flags), flags
    assert "Lines is a structural connectome" in refused(capsys, *words[:-2], *functional, "Lines")
    gone.unlink()
    assert "is not there" in refused(capsys, *words, *structural, "Gone")


def test_a_changed_file_by_its_path(study, tmp_path):
    """What the registry says is of other content: it is not used, and the run says so."""
    path = tmp_path / "lines.tck"
    write_tck(path, [np.eye(3)], step_size=1.0)
    register_connectome("Mine", path, space=OTHER, citation="Doe 2021")
    path.write_bytes((study / "lines.tck").read_bytes())
    inputs = inputs_of(
        study, tmp_path, "--structural-connectome", path, "--structural-space", SPACE,
        "--snm-engine", "index",
    )  # fmt: skip
    assert inputs.structural.tractogram.space == SPACE
    assert "Citation" not in inputs.metadata["snm"]["Connectome"]
    assert sum("not what was registered as Mine" in notice for notice in inputs.notices) == 1
