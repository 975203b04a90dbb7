"""Choosing a plugin: flags, a file, and both."""

import json
import os

import pytest

from lacuna_nipype.cli.parser import parse_config
from lacuna_nipype.cli.record import command_words


@pytest.fixture
def parse(tmp_path):
    (tmp_path / "bids").mkdir()
    connectome = tmp_path / "connectome.h5"
    connectome.touch()
    places = [tmp_path / "bids", tmp_path / "out", "participant", "-w", tmp_path / "work"]

    def parse_words(*words):
        given = [*places, "--functional-connectome", connectome, *words]
        return parse_config([str(word) for word in given])

    return parse_words


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        path = tmp_path / "plugin.yml"
        path.write_text(text)
        return path

    return write_file


@pytest.mark.parametrize("name", ["Linear", "MultiProc", "SLURM", "SGE", "PBS"])
def test_names_of_plugins(parse, name):
    assert parse("--plugin", name).plugin == name


@pytest.mark.parametrize("name", ["SLURMGraph", "SGEGraph", "PBSGraph", "CondorDAGMan"])
def test_plugins_that_leave_early_are_refused(parse, capsys, name):
    with pytest.raises(SystemExit) as stop:
        parse("--plugin", name)
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "queued" in last
    assert name.removesuffix("Graph").removesuffix("DAGMan") + "," in last


def test_arguments_of_a_plugin(parse):
    config = parse(
        "--plugin", "SLURM", "--plugin-args", '{"sbatch_args": "-p gpu", "max_jobs": 3}'
    )
    assert config.plugin_args == {"sbatch_args": "-p gpu", "max_jobs": 3}
    assert config.to_dict()["plugin_args"] == config.plugin_args
    assert parse().plugin_args == {}


def test_file_as_fmriprep_takes_it(parse, write):
    path = write(
        "plugin: MultiProc\nplugin_args: {n_procs: 3, memory_gb: 7.5, raise_insufficient: no}\n"
    )
    config = parse("--use-plugin", path)
    assert (config.plugin, config.nprocs, config.memory_gb) == ("MultiProc", 3, 7.5)
    assert config.plugin_args == {"raise_insufficient": False}
    assert parse("--use-plugin", path, "--nprocs", "2").nprocs == 2


def test_this_machine_says_nothing_of_those_of_a_cluster(parse, monkeypatch):
    monkeypatch.setattr("lacuna_nipype.execution.resources.available_processors", lambda: 2)
    monkeypatch.setattr("lacuna_nipype.execution.resources.available_memory_gb", lambda: 3.0)
    config = parse("--plugin", "SLURM")
    assert (config.memory_gb, config.nprocs, config.step_threads(4)) == (0, 2, 4)
    assert parse("--plugin", "SLURM", "--omp-nthreads", "16").step_threads(4) == 16
    assert parse("--plugin", "SLURM", "--mem", "8G").memory_gb == 8
    assert parse("--plugin", "SLURM", "--plugin-args", '{"memory_gb": 8}').memory_gb == 8
    here = parse("--omp-nthreads", "16")
    assert (here.memory_gb, here.step_threads(4)) == (3, 2)


def test_threads_that_are_asked_for_reach_the_jobs(parse):
    config = parse("--submit", "slurm-array", "--omp-nthreads", "16")
    assert (config.omp_nthreads, config.nprocs) == (16, 16)
    assert parse("--submit", "slurm-array").nprocs == 8
    assert parse("--submit", "slurm-array", "--omp-nthreads", "16", "--nprocs", "4").nprocs == 4


def test_flags_win_over_the_file(parse, write):
    path = write("plugin: SLURM\nplugin_args:\n  sbatch_args: -p one\n  max_jobs: 3\n")
    config = parse("--use-plugin", path, "--plugin-args", '{"max_jobs": 4}')
    assert config.plugin == "SLURM"
    assert config.plugin_args == {"sbatch_args": "-p one", "max_jobs": 4}
    with pytest.raises(SystemExit):
        parse("--use-plugin", path, "--plugin", "Linear")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "plugin: [",
        "plugin: Nothing",
        "plugin: SLURMGraph",
        "plugin_args: 3",
        "other: 1",
    ],
)
def test_files_that_are_no_use(parse, write, capsys, text):
    path = write(text)
    with pytest.raises(SystemExit) as stop:
        parse("--use-plugin", path)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("plugin", "arguments"),
    [
        ("MultiProc", {"n_procs": "2"}),
        ("MultiProc", {"n_procs": -1}),
        ("MultiProc", {"n_procs": 0}),
        ("MultiProc", {"n_procs": 2.5}),
        ("MultiProc", {"n_procs": True}),
        ("MultiProc", {"memory_gb": "4G"}),
        ("MultiProc", {"memory_gb": [1]}),
        ("MultiProc", {"memory_gb": float("nan")}),
        ("MultiProc", {"memory_gb": -3}),
        ("MultiProc", {"raise_insufficient": "no"}),
        ("MultiProc", {"sbatch_args": "-p gpu"}),
        ("Linear", {"raise_insufficient": True}),
        ("SLURM", {"sbatch_arg": "-p gpu"}),
        ("SLURM", {"max_jobs": "many"}),
        ("SLURM", {"squeue_interval": "soon"}),
        ("SLURM", {"squeue_timeout": float("inf")}),
        ("SLURM", {"status_callback": 1}),
        ("SGE", {"status_callback": 1}),
        ("SGE", {"a": float("nan")}),
        ("LegacyMultiProc", {"n_procs": "2"}),
    ],
)
def test_arguments_that_are_no_use(parse, capsys, plugin, arguments):
    with pytest.raises(SystemExit) as stop:
        parse("--plugin", plugin, "--plugin-args", json.dumps(arguments))
    assert stop.value.code == 2
    (name,) = arguments
    last = capsys.readouterr().err.splitlines()[-1]
    assert name in last or "JSON" in last


def test_a_file_holds_only_what_json_knows(parse, write, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--plugin", "SGE", "--use-plugin", write("plugin_args: {when: 2026-01-01}\n"))
    assert stop.value.code == 2
    assert "JSON" in capsys.readouterr().err


def test_a_pipe_is_no_file_of_a_plugin(parse, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.yml")
    with pytest.raises(SystemExit) as stop:
        parse("--use-plugin", tmp_path / "pipe.yml")
    assert stop.value.code == 2


@pytest.mark.parametrize("plugin", ["Linear", "PBS"])
def test_jobs_that_are_submitted_run_no_other_plugin(parse, plugin, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--submit", "slurm-array", "--plugin", plugin)
    assert stop.value.code == 2
    assert "--submit" in capsys.readouterr().err.splitlines()[-1]
    assert parse("--submit", "slurm-array", "--plugin-args", '{"sbatch_args": "-p x"}').submit


def test_arguments_come_back_from_the_record(parse):
    given = {"sbatch_args": "--account 'my lab'", "max_jobs": 3}
    config = parse("--plugin", "SLURM", "--plugin-args", json.dumps(given))
    words = command_words(config.to_dict())
    assert json.loads(words[words.index("--plugin-args") + 1]) == given
    assert "--plugin-args" not in command_words(parse().to_dict())
