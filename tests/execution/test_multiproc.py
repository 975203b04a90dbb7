"""Steps side by side: results as nipype's own, and no fault makes the run wait for ever."""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from graph_runs import GraphRun, wait_until

# Four steps in a row of which the second fails, and one that has nothing to do with them.
CHAIN = """
def build(workflow, pe):
    first, after, last, other = (
        function(value, name) for name in ("first", "after", "last", "other")
    )
    bad = function({function}, "bad")
    first.inputs.x = 3
    other.inputs.x = 5
    workflow.connect([(first, bad, [("y", "x")]), (bad, after, [("y", "x")]),
                      (after, last, [("y", "x")])])
    workflow.add_nodes([other])
"""
PIECES = """
def build(workflow, pe):
    pieces = function({function}, "pieces", pe.MapNode, x=[0, 1, 2, 3], iterfield=["x"])
    sums = function(total, "sums")
    other = function(value, "other", x=5)
    workflow.connect(pieces, "y", sums, "x")
    workflow.add_nodes([other])
"""
# A list made by a step, pieces in a row, a MapNode of one piece, a step in the main process.
ALL_KINDS = """
def build(workflow, pe):
    numbers = function(value, "numbers", x=[4, 5, 6])
    ones = function(value, "ones", x=[1])
    twice = function(doubled, "twice", pe.MapNode, iterfield=["x"])
    again = function(doubled, "again", pe.MapNode, iterfield=["x"])
    single = function(doubled, "single", pe.MapNode, iterfield=["x"])
    sums, light = function(total, "sums"), function(total, "light", run_without_submitting=True)
    both = function(value, "both")
    workflow.connect([
        (numbers, twice, [("y", "x")]), (twice, again, [("y", "x")]), (again, sums, [("y", "x")]),
        (ones, single, [("y", "x")]), (single, light, [("y", "x")]), (sums, both, [("y", "x")]),
    ])
"""
SLEEPERS = """
def build(workflow, pe):
    workflow.add_nodes([function(sleeps, f"sleeper{n}", x=300) for n in range(2)])
"""


@pytest.fixture
def make(tmp_path):
    def make_run(build, **options):
        return GraphRun(tmp_path, build, plugin="MultiProc", **options)

    return make_run


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("is_killed", "signal 9"),
        ("leaves", "exit code 3"),
        ("raises", "Mask 3 is damaged: copy it again."),
    ],
)
def test_a_step_that_fails_fails_alone(make, function, reason):
    run = make(CHAIN.format(function=function))
    outcome = run.run()
    assert outcome["nodes"] == {"wf.first": "done", "wf.bad": "failed", "wf.other": "done"}
    assert list(outcome["failures"]) == ["wf.bad"]
    assert reason in outcome["failures"]["wf.bad"]
    assert outcome["values"]["other"] == 5
    assert outcome["error"] is None
    assert outcome["seconds"] < 60
    # The folder of the step and its inputs are in the crash file too.
    (crash,) = run.logs.glob("crash-*.txt")
    assert str(run.work / "bad") in crash.read_text()


def test_advice_for_a_killed_step_is_about_memory(make):
    reason = make(CHAIN.format(function="is_killed")).run()["failures"]["wf.bad"]
    assert "memory" in reason
    assert "--mem" in reason
    assert "--nprocs" in reason


def test_missing_input_is_a_failure_and_no_endless_wait(make):
    run = make("""
    def build(workflow, pe):
        from nipype.interfaces import utility as niu
        select = pe.Node(niu.Select(), name="select")
        select.inputs.inlist = [1, 2]
        workflow.add_nodes([select, function(value, "other", x=5)])
    """)
    outcome = run.run()
    assert outcome["nodes"] == {"wf.select": "failed", "wf.other": "done"}
    assert "index" in outcome["failures"]["wf.select"]


def test_input_that_cannot_be_sent_to_a_worker_is_a_failure(make):
    run = make("""
    def build(workflow, pe):
        odd = function(value, "odd")
        odd.inputs.x = lambda: 1
        workflow.add_nodes([odd, function(value, "other", x=5)])
    """)
    outcome = run.run()
    assert outcome["nodes"] == {"wf.odd": "failed", "wf.other": "done"}


def test_a_killed_piece_of_a_mapnode(make):
    outcome = make(PIECES.format(function="is_killed_if_one")).run()
    assert outcome["nodes"] == {
        **{f"wf.pieces._pieces{n}": "done" for n in (0, 2, 3)},
        "wf.pieces._pieces1": "failed",
        "wf.other": "done",
    }
    assert "signal 9" in outcome["failures"]["wf.pieces._pieces1"]


def test_the_next_run_does_what_the_killed_one_left(make):
    run = make(PIECES.format(function="is_killed_if_one"))
    run.run()
    before = {path: path.stat().st_mtime_ns for path in run.work.rglob("result_*.pklz")}
    # The same function, which now is not killed.
    run.rebuild(PIECES.format(function="is_killed_if_one").replace("[0, 1,", "[0, 7,"))
    outcome = run.run()
    assert outcome["failures"] == {}
    assert outcome["values"]["sums"] == 12
    statuses = outcome["nodes"]
    assert [statuses[f"wf.pieces._pieces{n}"] for n in range(4)] == [
        "cached",
        "done",
        *["cached"] * 2,
    ]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def commands_of(pids):
    found = []
    for pid in pids:
        with suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0])
    return found


def test_commands_of_a_killed_worker_end_with_it(make):
    run = make("""
    def starts_and_is_killed(x):
        import os, signal, subprocess
        subprocess.Popen(["sleep", "300"])
        os.kill(os.getpid(), signal.SIGKILL)

    def build(workflow, pe):
        workflow.add_nodes([function(starts_and_is_killed, "bad", x=1),
                            function(times, "slow", x=2.0)])
    """)
    process = run.start()
    try:
        wait_until(lambda: list(run.logs.glob("crash-*.txt")), say=lambda: run.printed)
        # The command is told to end; that takes as long as it waits for a processor.
        wait_until(lambda: b"sleep" not in commands_of(run.processes()), 30)
    finally:
        outcome = run.finish(process)
    # A worker that had nothing to do with it went on.
    assert outcome["nodes"] == {"wf.bad": "failed", "wf.slow": "done"}


def test_results_and_reports_are_as_with_nipype(tmp_path):
    runs = {}
    for name, options in {
        "ours": {"plugin": "MultiProc"},
        "theirs": {"plugin": "MultiProc", "nipype": True},
        "linear": {"plugin": "Linear"},
    }.items():
        run = GraphRun(tmp_path / name, ALL_KINDS, **options)
        runs[name] = run.run()
        runs[f"{name} again"] = run.run()
    # By hand: 2 * 2 * (4 + 5 + 6), and 2 * 1.
    assert runs["ours"]["values"]["both"] == 60
    assert runs["ours"]["values"]["light"] == 2
    assert runs["ours"]["values"] == runs["theirs"]["values"]
    assert runs["ours"]["values"] == runs["ours again"]["values"]
    linear = runs["linear"]["values"]
    assert {name: runs["ours"]["values"][name] for name in linear} == linear
    assert runs["ours"]["nodes"] == runs["theirs"]["nodes"]
    assert runs["ours again"]["nodes"] == runs["theirs again"]["nodes"]
    assert set(runs["ours again"]["nodes"].values()) == {"cached"}


def test_declared_memory_and_processors_are_respected(make):
    run = make("""
    def build(workflow, pe):
        sizes = {"a": (1.5, 1), "b": (1.5, 1), "c": (0.4, 1), "d": (9.0, 1), "e": (0.1, 7)}
        workflow.add_nodes([
            function(times, name, x=0.4, mem_gb=memory, n_procs=processors)
            for name, (memory, processors) in sizes.items()
        ])
    """)
    values = run.run(nprocs=3, memory_gb=2.0)["values"]

    def overlap(one, other):
        return values[one][0] < values[other][1] and values[other][0] < values[one][1]

    assert not overlap("a", "b")
    # Steps that declare more than there is run, and run alone.
    assert not any(overlap(big, other) for big in "de" for other in "abc" if big != other)
    assert not overlap("d", "e")
    assert "d" in values


def test_steps_do_run_at_once(make):
    run = make("""
    def build(workflow, pe):
        workflow.add_nodes([function(times, f"s{n}", x=3.0) for n in range(3)])
    """)
    values = run.run(nprocs=3)["values"]
    assert max(start for start, _ in values.values()) < min(end for _, end in values.values())


def test_stop_on_first_crash_ends_what_runs(make):
    run = make("""
    def build(workflow, pe):
        bad = function(raises, "bad")
        slow = function(sleeps, "slow", x=300)
        workflow.connect(function(times, "first", x=1.0), "y", bad, "x")
        workflow.add_nodes([slow])
    """)
    outcome = run.run(stop=True)
    assert outcome["seconds"] < 100
    assert list(outcome["failures"]) == ["wf.bad"]
    wait_until(lambda: not run.processes())


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, None), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_no_process_outlives_the_run(make, number, code):
    run = make(SLEEPERS)
    process = run.start()
    try:
        wait_until(lambda: len(list(run.work.glob("*/started"))) == 2, say=lambda: run.printed)
        # Of this process alone, as a batch system or the kernel does it.
        os.kill(process.pid, number)
        process.wait(60)
        assert code is None or process.returncode == code
        assert process.returncode != 0
        wait_until(lambda: not run.processes(), 20)
    finally:
        for pid in run.processes():
            os.kill(pid, signal.SIGKILL)


IN_THIS_PROCESS = """
def build(workflow, pe):
    pieces = function(sleeps, "pieces", pe.MapNode, x=[300, 300], iterfield=["x"])
    later = function(sleeps, "later", x=300, run_without_submitting=True)
    workflow.add_nodes([pieces, later])
"""
ONE_HERE = """
def build(workflow, pe):
    workflow.add_nodes([function(sleeps, "here", x=300, run_without_submitting=True)])
"""


@pytest.mark.parametrize(
    ("plugin", "build"), [("Linear", IN_THIS_PROCESS), ("MultiProc", ONE_HERE)]
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, None), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_whose_step_is_in_this_process(tmp_path, plugin, build, number, code):
    """Nipype takes what a signal raises inside a step for a failure of that step."""
    run = GraphRun(tmp_path, build, plugin=plugin)
    process = run.start()
    wait_until(lambda: list(run.work.rglob("started")), say=lambda: run.printed)
    os.kill(process.pid, number)
    process.wait(30)
    assert process.returncode != 0
    assert code is None or process.returncode == code
    assert len(list(run.work.rglob("started"))) == 1
    assert not list(run.logs.glob("crash-*"))


@pytest.mark.parametrize("plugin", ["Linear", "MultiProc"])
def test_percent_signs_in_paths(tmp_path, plugin):
    run = GraphRun(tmp_path / "50% of %(x)s", CHAIN.format(function="raises"), plugin=plugin)
    outcome = run.run()
    assert list(outcome["failures"]) == ["wf.bad"]
    assert outcome["values"]["other"] == 5


def test_a_signal_ends_the_command_of_a_step_in_this_process(tmp_path):
    run = GraphRun(tmp_path, COMMAND, plugin="Linear")
    process = run.start()
    wait_until(lambda: b"sleep" in commands_of(run.processes()), say=lambda: run.printed)
    os.kill(process.pid, signal.SIGTERM)
    process.wait(30)
    assert process.returncode == 143
    wait_until(lambda: b"sleep" not in commands_of(run.processes()), 30)


COMMAND = """
def starts(x):
    import subprocess
    # As nipype runs commands: what a signal raises here ends nothing.
    subprocess.Popen(["sleep", "300"]).communicate()

def build(workflow, pe):
    workflow.add_nodes([function(starts, "here", x=1)])
"""


def test_a_step_whose_files_are_gone_runs_again(tmp_path):
    """Clusters purge what is old; what nipype noted of a finished step may be younger."""
    run = GraphRun(tmp_path, FILES, plugin="MultiProc")
    assert run.run()["values"]["last"] == 3 * len("some text")
    written = sorted(run.work.rglob("written.txt"))
    assert len(written) == 4
    for path in written[1:]:
        path.unlink()
    again = run.run()
    assert again["failures"] == {}
    assert again["values"]["last"] == 3 * len("some text")
    assert sorted(run.work.rglob("written.txt")) == written
    # A note that is cut short is as good as none.
    for path in run.work.rglob("result_*.pklz"):
        os.truncate(path, 20)
    third = run.run()
    assert third["failures"] == {}
    assert third["values"]["last"] == 3 * len("some text")


FILES = """
def writes(x):
    from pathlib import Path
    path = Path("written.txt").absolute()
    path.write_text("some text" if x else "")
    return str(path)

def size(x):
    from pathlib import Path
    return sum(len(Path(path).read_text()) for path in x)

def build(workflow, pe):
    from nipype.interfaces.utility import Function
    def node(kind, function, name, **options):
        interface = Function(function=function, input_names=["x"], output_names=["y"])
        return kind(interface, name=name, **options)
    single, pieces = node(pe.Node, writes, "single"), node(
        pe.MapNode, writes, "pieces", iterfield=["x"])
    single.inputs.x, pieces.inputs.x = 1, [1, 1, 1]
    last = node(pe.Node, size, "last")
    workflow.connect(pieces, "y", last, "x")
    workflow.add_nodes([single])
"""


def test_hundreds_of_steps_cost_milliseconds_each(make):
    run = make("""
    def build(workflow, pe):
        workflow.add_nodes([function(value, f"n{n}", x=n) for n in range(400)])
    """)
    outcome = run.run()
    assert list(outcome["nodes"].values()) == ["done"] * 400
    # Nipype with its usual settings takes 400 s; alone on two processors this takes 6 s.
    assert outcome["seconds"] < 60


def test_a_long_path_of_temporary_files(tmp_path):
    """Sockets cannot have names that long; other temporary files are still there."""
    folder = tmp_path / ("temporary-" * 12)
    folder.mkdir()
    build = """
    import atexit
    from multiprocessing.util import get_temp_dir

    def folder_of_files(x):
        import tempfile
        return tempfile.gettempdir()

    def build(workflow, pe):
        atexit.register(lambda: print(f"sockets: {get_temp_dir()}"))
        workflow.add_nodes([function(folder_of_files, "one", x=1)])
    """
    run = GraphRun(tmp_path, build, {"TMPDIR": str(folder)}, plugin="MultiProc")
    outcome = run.run()
    assert outcome["failures"] == {}
    assert outcome["values"]["one"] == str(folder)
    (sockets,) = re.findall(r"sockets: (.+)", run.printed)
    assert not Path(sockets).is_relative_to(folder)
    assert not Path(sockets).exists()
