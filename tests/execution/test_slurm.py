"""Steps as jobs of a real SLURM of one machine, and what goes wrong with clusters."""

import errno
import logging
import os
import re
import shutil
import signal
import stat
import sys
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
from graph_runs import GraphRun, wait_until
from slurm_cluster import reason_to_skip, running_cluster

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.core.files import write_json
from lacuna_nipype.execution import slurm, slurm_array
from lacuna_nipype.execution.scheduling import Step
from lacuna_nipype.execution.slurm_options import option_names, read_template, script_options

REASON = reason_to_skip()
needs_slurm = pytest.mark.skipif(REASON is not None, reason=str(REASON))

QUICK = {"squeue_interval": 0.5}
CHAIN = """
def build(workflow, pe):
    first, after = function(value, "first", x=3), function(value, "after")
    bad = function({function}, "bad")
    workflow.connect([(first, bad, [("y", "x")]), (bad, after, [("y", "x")])])
    workflow.add_nodes([function(value, "other", x=5)])
"""
PIECES = """
def build(workflow, pe):
    pieces = function(doubled, "pieces", pe.MapNode, x=[1, 2, 3], iterfield=["x"])
    sums, light = function(total, "sums"), function(doubled, "light", run_without_submitting=True)
    workflow.connect([(pieces, sums, [("y", "x")]), (sums, light, [("y", "x")])])
"""
ONE = """
def build(workflow, pe):
    workflow.add_nodes([function({function}, "one", x={x})])
"""
SLEEPERS = """
def build(workflow, pe):
    workflow.add_nodes([function(sleeps, f"sleeper{{n}}", x={seconds}) for n in range(2)])
"""


@pytest.fixture(scope="module")
def cluster():
    if REASON is not None:
        pytest.skip(REASON)
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def make(cluster, tmp_path):
    """Make a run on the cluster; what it leaves behind does not disturb the next test."""

    def make_run(build, environment=None, **plugin_args):
        variables = {**cluster.environment, **(environment or {})}
        return GraphRun(
            tmp_path, build, variables, plugin="SLURM", plugin_args={**QUICK, **plugin_args}
        )

    yield make_run
    cluster.command("scancel", "--user=root", check=False)
    wait_until(lambda: not cluster.jobs(), say=cluster.logs)


def job_of(cluster, run, step, state="RUNNING"):
    """Wait until the job of a step is in a state."""

    def find():
        names = cluster.jobs(state)
        return [job for job, name in names.items() if name.startswith(f"{step}.")]

    wait_until(find, say=lambda: f"{run.printed}{cluster.logs()}")
    return find()[0]


def fake_command(folder, name, text):
    """Put a command before the real one on PATH."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{path.parent}{os.pathsep}{os.environ['PATH']}"}


def test_results_are_those_of_a_run_without_a_cluster(make, tmp_path):
    # Containers may lack the variable; nipype's own plugin fails without it.
    outcome = make(PIECES, {"LOGNAME": ""}).run()
    assert outcome["failures"] == {}
    assert outcome["error"] is None
    assert outcome["values"]["sums"] == 12
    assert outcome["values"]["light"] == 24
    alone = GraphRun(tmp_path / "alone", PIECES, plugin="MultiProc").run()
    assert outcome["values"] == alone["values"]
    assert outcome["nodes"] == alone["nodes"]


def test_second_run_submits_nothing(make, cluster):
    run = make(PIECES)
    run.run()
    before = cluster.jobs("all")
    outcome = run.run()
    # The light step too is found finished.
    assert set(outcome["nodes"].values()) == {"cached"}
    assert cluster.jobs("all") == before
    # Nothing is left of jobs that went well.
    assert list((run.work / "slurm").glob("*/*")) == []


def test_a_step_that_raises(make):
    outcome = make(CHAIN.format(function="raises")).run()
    assert outcome["nodes"] == {"wf.first": "done", "wf.bad": "failed", "wf.other": "done"}
    assert outcome["failures"] == {"wf.bad": "Mask 3 is damaged: copy it again."}


def test_missing_input_is_a_failure(make):
    run = make("""
    def build(workflow, pe):
        from nipype.interfaces import utility as niu
        select = pe.Node(niu.Select(), name="select")
        select.inputs.inlist = [1, 2]
        workflow.add_nodes([select])
    """)
    assert "index" in run.run()["failures"]["wf.select"]


def test_a_failing_step_in_this_process_fails_the_run(make):
    run = make("""
    def build(workflow, pe):
        workflow.add_nodes([function(raises, "light", x=1, run_without_submitting=True)])
    """)
    outcome = run.run()
    assert outcome["nodes"] == {"wf.light": "failed"}
    assert outcome["failures"] == {"wf.light": "Mask 1 is damaged: copy it again."}


@pytest.mark.parametrize("function", ["is_killed", "leaves"])
def test_a_job_that_dies_is_a_failure_with_a_crash_file(make, function):
    run = make(CHAIN.format(function=function))
    outcome = run.run()
    assert outcome["nodes"] == {"wf.first": "done", "wf.bad": "failed", "wf.other": "done"}
    reason = outcome["failures"]["wf.bad"]
    assert ("signal 9" if function == "is_killed" else "exit code 3") in reason
    assert len(list(run.logs.glob("crash-*-bad-*.txt"))) == 1


def test_a_running_job_that_is_cancelled(make, cluster):
    run = make(CHAIN.format(function="sleeps").replace("x=3", "x=300"))
    process = run.start()
    cluster.command("scancel", job_of(cluster, run, "bad"))
    outcome = run.finish(process)
    assert outcome["nodes"]["wf.bad"] == "failed"
    assert "CANCELLED" in outcome["failures"]["wf.bad"]
    # The last line of what SLURM wrote for the job is there too.
    assert re.search(r"-bad\.log: slurmstepd.*CANCELLED", outcome["failures"]["wf.bad"])


def test_no_old_result_is_taken_when_a_job_is_cancelled_before_it_starts(make, cluster):
    run = make(ONE.format(function="doubled", x=1))
    assert run.run()["values"]["one"] == 2
    run.rebuild(ONE.format(function="doubled", x=7))
    process = run.start(plugin_args={**QUICK, "sbatch_args": "--hold"})
    job = job_of(cluster, run, "one", "PENDING")
    assert not list(run.work.glob("one/result_*"))
    cluster.command("scancel", job)
    outcome = run.finish(process)
    assert outcome["nodes"] == {"wf.one": "failed"}
    assert "CANCELLED" in outcome["failures"]["wf.one"]
    outcome = run.run()
    assert outcome["failures"] == {}
    assert outcome["values"]["one"] == 14


def test_a_job_that_is_killed_from_outside(make, cluster):
    run = make(CHAIN.format(function="sleeps").replace("x=3", "x=300"))
    process = run.start()
    job = job_of(cluster, run, "bad")
    wait_until((run.work / "bad" / "started").exists)
    cluster.kill_job(job)
    outcome = run.finish(process)
    assert outcome["nodes"] == {"wf.first": "done", "wf.bad": "failed", "wf.other": "done"}
    assert "signal 9" in outcome["failures"]["wf.bad"]


def test_squeue_that_fails_for_a_while_changes_nothing(make, tmp_path):
    """Also for jobs that end meanwhile: their outcome is a file."""
    started = tmp_path / "started"
    real = shutil.which("squeue")
    environment = fake_command(
        tmp_path,
        "squeue",
        f"[ -e {started} ] || date +%s > {started}\n"
        f"if [ $(( $(date +%s) - $(cat {started}) )) -lt 10 ]; then\n"
        '  echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2; exit 1\n'
        f'fi\nexec {real} "$@"',
    )
    run = make(CHAIN.format(function="times").replace("x=3", "x=12"), environment)
    outcome = run.run()
    assert started.exists()
    assert outcome["failures"] == {}
    assert set(outcome["nodes"].values()) == {"done"}
    assert run.log.count("Socket timed out") == 1
    assert "SLURM answers again" in run.log


def test_squeue_that_never_answers_ends_the_run(make, cluster, tmp_path):
    environment = fake_command(tmp_path, "squeue", "echo broken >&2; exit 1")
    run = make(ONE.format(function="sleeps", x=300), environment, squeue_timeout=3)
    outcome = run.run()
    assert "no answer for 3 s" in outcome["failures"]["wf.one"]
    assert "broken" in outcome["failures"]["wf.one"]
    # Nobody waits for its job any more.
    wait_until(lambda: not cluster.jobs(), 10, say=cluster.logs)


def test_jobs_that_are_given_up_are_cancelled_at_the_end_at_the_latest(make, cluster, tmp_path):
    environment = fake_command(tmp_path, "squeue", "echo broken >&2; exit 1")
    fake_command(
        tmp_path,
        "scancel",
        f"if [ ! -e {tmp_path}/once ]; then touch {tmp_path}/once; echo away >&2; exit 1; fi\n"
        f'exec {shutil.which("scancel")} "$@"',
    )
    run = make(ONE.format(function="sleeps", x=300), environment, squeue_timeout=3)
    assert "no answer" in run.run()["failures"]["wf.one"]
    assert "away" in run.log
    wait_until(lambda: not cluster.jobs(), 10, say=cluster.logs)


def test_habits_of_asking_and_cancelling_are_not_followed(make, cluster):
    """They would hide the jobs, cancel none of them, or ask without end."""
    habits = {"SQUEUE_PARTITION": "nowhere", "SCANCEL_INTERACTIVE": "1", "SCANCEL_STATE": "P"}
    run = make(SLEEPERS.format(seconds=300), habits)
    process = run.start()
    job = job_of(cluster, run, "sleeper0")
    job_of(cluster, run, "sleeper1")
    cluster.command("scancel", job)
    wait_until(lambda: list(run.logs.glob("crash-*-sleeper0-*")), 30, say=lambda: run.printed)
    process.terminate()
    process.wait(60)
    wait_until(lambda: not cluster.jobs(), 30)


def test_a_job_that_never_starts_is_told_once(make, cluster):
    # More than the partition allows.
    run = make(
        """
        from lacuna_nipype.execution import slurm
        slurm._STUCK_SECONDS = 1.0

        def build(workflow, pe):
            workflow.add_nodes([function(doubled, "one", x=1)])
        """,
        sbatch_args="--time=2:00:00",
    )
    process = run.start()
    job = job_of(cluster, run, "one", "PENDING")
    wait_until(lambda: "PartitionTimeLimit" in run.printed, say=cluster.logs)
    time.sleep(2)
    cluster.command("scontrol", "update", f"jobid={job}", "timelimit=5")
    assert run.finish(process)["failures"] == {}
    for text in (run.printed, run.log):
        assert text.count("PartitionTimeLimit") == 1
        assert f"job {job};" in text
    assert f"submitted as job {job}" in run.log


def test_controller_that_restarts_in_the_middle(make, cluster):
    run = make(SLEEPERS.format(seconds=6))
    process = run.start()
    job_of(cluster, run, "sleeper0")
    cluster.stop_daemon("slurmctld")
    time.sleep(3)
    cluster.start_daemon("slurmctld")
    outcome = run.finish(process)
    wait_until(cluster.is_ready, say=cluster.logs)
    assert outcome["failures"] == {}
    assert set(outcome["nodes"].values()) == {"done"}


def test_controller_that_is_away_when_a_job_is_submitted(make, cluster):
    run = make(ONE.format(function="doubled", x=1), retry_timeout=1)
    cluster.stop_daemon("slurmctld")
    try:
        process = run.start()
        wait_until(lambda: "Trying again" in run.log, 150)
    finally:
        cluster.start_daemon("slurmctld")
    outcome = run.finish(process, timeout=300)
    wait_until(cluster.is_ready, say=cluster.logs)
    assert outcome["failures"] == {}
    assert outcome["values"]["one"] == 2


def test_rejected_submission_is_one_clear_failure_per_step(make):
    outcome = make(CHAIN.format(function="value"), sbatch_args="--partition=nowhere").run()
    assert outcome["nodes"] == {"wf.first": "failed", "wf.other": "failed"}
    assert set(outcome["failures"]) == {"wf.first", "wf.other"}
    assert all("partition" in reason for reason in outcome["failures"].values())
    assert outcome["seconds"] < 60


def test_sbatch_that_made_the_job_but_did_not_say_so(make, cluster, tmp_path):
    """A time-out: the job must not run twice."""
    real = shutil.which("sbatch")
    environment = fake_command(
        tmp_path,
        "sbatch",
        f'if [ ! -e {tmp_path}/once ]; then touch {tmp_path}/once; {real} "$@" > /dev/null\n'
        'echo "sbatch: error: Batch job submission failed: Socket timed out" >&2; exit 1\n'
        f'fi\nexec {real} "$@"',
    )
    before = len(cluster.jobs("all"))
    outcome = make(ONE.format(function="times", x=8), environment, retry_timeout=1).run()
    assert outcome["failures"] == {}
    assert len(cluster.jobs("all")) == before + 1


@pytest.mark.parametrize("said", ["Socket timed out", "QOSMaxSubmitJobPerUserLimit"])
def test_sbatch_that_takes_nothing_for_a_while(make, tmp_path, said):
    """Also because of the user's other jobs."""
    calls = tmp_path / "calls"
    real = shutil.which("sbatch")
    environment = fake_command(
        tmp_path,
        "sbatch",
        f"echo >> {calls}; if [ $(wc -l < {calls}) -le 9 ]; then\n"
        f'echo "sbatch: error: {said}" >&2; exit 1; fi\nexec {real} "$@"',
    )
    run = make(ONE.format(function="doubled", x=1), environment, retry_timeout=0.01)
    outcome = run.run()
    assert outcome["failures"] == {}
    assert outcome["values"]["one"] == 2
    # The terminal tells of the first failure, the log of all.
    assert run.log.count("Trying again") == 9
    assert run.printed.count("Trying again") == 1


def test_patience_with_sbatch_ends(make, cluster, tmp_path):
    """The job that is there all the same, and that squeue did not tell of, is cancelled."""
    started = tmp_path / "started"
    environment = fake_command(
        tmp_path,
        "sbatch",
        f'{shutil.which("sbatch")} "$@" > /dev/null; echo "Socket timed out" >&2; exit 1',
    )
    fake_command(
        tmp_path,
        "squeue",
        f"[ -e {started} ] || date +%s > {started}\n"
        f"[ $(( $(date +%s) - $(cat {started}) )) -ge 4 ] || exit 1\n"
        f'exec {shutil.which("squeue")} "$@"',
    )
    run = make(
        ONE.format(function="sleeps", x=300), environment, retry_timeout=1, squeue_timeout=3
    )
    outcome = run.run()
    assert "could not be submitted for 3 s" in outcome["failures"]["wf.one"]
    wait_until(lambda: not cluster.jobs(), 10, say=cluster.logs)


def test_odd_names_of_folders(cluster, tmp_path):
    """Log files are where they are looked for."""
    for name in ("it's", 'say "so"', "a #1", "100%j", "a b"):
        folder = tmp_path / name
        folder.mkdir()
        job = slurm_array.Job("merge", ("echo", "here"), 1, 0.1, 1)
        text = slurm_array.job_script(
            job, run="r1", folder=folder, start=tmp_path, template=read_template(None),
            sbatch_args=(),
        )  # fmt: skip
        script = tmp_path / "merge.sh"
        script.write_text(text)
        number = cluster.command("sbatch", "--parsable", "--wait", script).strip()
        log = folder / f"merge-{number}.log"
        wait_until(log.exists, 10, say=cluster.logs)
        assert log.read_text() == "here\n"


@pytest.mark.parametrize("name", ["back\\slash %j", "it's 100%A"])
def test_odd_names_of_the_work_folder(cluster, tmp_path, name):
    run = GraphRun(
        tmp_path / name, ONE.format(function="leaves", x=1), cluster.environment,
        plugin="SLURM", plugin_args={**QUICK, "template": "#\necho from the log"},
    )  # fmt: skip
    outcome = run.run()
    assert "exit code 3" in outcome["failures"]["wf.one"]
    assert outcome["failures"]["wf.one"].endswith("from the log")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, None)])
def test_the_end_of_the_manager_is_the_end_of_its_jobs(make, cluster, number, code):
    run = make(SLEEPERS.format(seconds=300))
    process = run.start()
    for step in ("sleeper0", "sleeper1"):
        job_of(cluster, run, step)
    os.kill(process.pid, number)
    process.wait(60)
    assert process.returncode != 0
    assert code is None or process.returncode == code
    wait_until(lambda: not cluster.jobs(), 30)
    assert "wf.sleeper" not in run.printed


def test_jobs_of_a_killed_manager_end_when_it_runs_again(make, cluster):
    run = make(SLEEPERS.format(seconds=300))
    process = run.start()
    job_of(cluster, run, "sleeper0")
    job_of(cluster, run, "sleeper1")
    process.kill()
    process.wait(60)
    left = set(cluster.jobs())
    assert len(left) == 2
    run.rebuild(SLEEPERS.format(seconds=1))
    outcome = run.run()
    assert outcome["failures"] == {}
    assert left.isdisjoint(cluster.jobs())
    assert all(cluster.description(job)["JobState"] == "CANCELLED" for job in left)


def test_stop_on_first_crash_cancels_what_runs(make, cluster):
    run = make("""
    def build(workflow, pe):
        workflow.add_nodes([function(raises, "bad", x=1), function(sleeps, "slow", x=300)])
    """)
    outcome = run.run(stop=True)
    assert list(outcome["failures"]) == ["wf.bad"]
    wait_until(lambda: not cluster.jobs(), 30)


def test_what_a_step_declares_reaches_slurm(make, cluster, tmp_path):
    template = tmp_path / "head.sh"
    template.write_text("#!/bin/bash\n#SBATCH --comment=from-template\nexport LACUNA_HEAD=seen\n")
    run = make(
        """
        def head(x):
            import os
            return [os.environ.get("LACUNA_HEAD"), os.environ["SLURM_JOB_ID"]]

        def build(workflow, pe):
            plain = function(head, "plain", x=1, n_procs=3, mem_gb=1.5)
            own = function(head, "own", x=1, n_procs=3)
            own.plugin_args = {"sbatch_args": "--mem 300M -t 7", "minutes": 33}
            timed = function(head, "timed", x=1)
            timed.plugin_args = {"sbatch_args": "-c2", "overwrite": True, "minutes": 33}
            workflow.add_nodes([plain, own, timed])
        """,
        template=str(template),
        sbatch_args="--nice=5 --oversubscribe --export=ALL",
    )
    values = run.run()["values"]
    jobs = {name: cluster.description(job) for name, (_, job) in values.items()}
    assert {head for head, _ in values.values()} == {"seen"}
    assert {job["Comment"] for job in jobs.values()} == {"from-template"}
    assert jobs["plain"]["NumCPUs"] == "3"
    # 2 GB in MiB: what the step declares, and Python.
    assert jobs["plain"]["MinMemoryNode"] == "1908M"
    assert jobs["plain"]["Nice"] == "5"
    # --oversubscribe and --export do not hide -o and -e, as they do from nipype.
    assert jobs["plain"]["StdErr"].startswith(str(run.work / "slurm"))
    assert (jobs["own"]["MinMemoryNode"], jobs["own"]["TimeLimit"]) == ("300M", "00:07:00")
    assert jobs["own"]["Nice"] == "5"
    assert (jobs["timed"]["NumCPUs"], jobs["timed"]["TimeLimit"]) == ("2", "00:33:00")
    assert "Nice" not in jobs["timed"] or jobs["timed"]["Nice"] == "0"


def test_options_in_the_template_are_not_contradicted(make, cluster):
    run = make(
        ONE.format(function="times", x=0),
        template="#SBATCH --mem-per-cpu=123M\n#SBATCH --cpus-per-task=2  # two",
    )
    assert run.run()["failures"] == {}
    (job,) = [job for job in cluster.jobs("all") if job == max(cluster.jobs("all"))]
    description = cluster.description(job)
    assert (description["MinMemoryCPU"], description["NumCPUs"]) == ("123M", "2")


def test_no_more_jobs_than_allowed(make):
    run = make(
        """
        def build(workflow, pe):
            workflow.add_nodes([function(times, f"n{n}", x=0.5) for n in range(4)])
        """,
        max_jobs=1,
    )
    spans = sorted(run.run()["values"].values())
    assert all(one[1] <= other[0] for one, other in pairwise(spans))


def test_jobs_run_at_once(make):
    run = make("""
    def build(workflow, pe):
        workflow.add_nodes([function(times, f"n{n}", x=8.0) for n in range(3)])
    """)
    values = run.run()["values"]
    assert max(start for start, _ in values.values()) < min(end for _, end in values.values())


def test_late_files_of_a_network_file_system_are_waited_for(make, tmp_path):
    """The outcome is held back: it appears some seconds after the job has ended."""
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/bash
task="${{@: -1}}"
cp "$task" {tmp_path}/one.task
{sys.executable} -m lacuna_nipype.execution.job {tmp_path}/one.task
late="sleep 7; mv {tmp_path}/one.outcome '${{task%.task}}.outcome'"
setsid sh -c "$late" < /dev/null > /dev/null 2>&1 &
""")
    python.chmod(0o755)
    start = time.monotonic()
    outcome = make(ONE.format(function="doubled", x=4), python=str(python)).run()
    assert outcome["failures"] == {}
    assert outcome["values"]["one"] == 8
    assert time.monotonic() - start > 7


def test_names_of_options():
    words = [
        "--mem-per-cpu=3G",
        "-c4",
        "-o",
        "x.log",
        "--oversubscribe",
        "--export=ALL",
        "x",
        "-p",
    ]
    assert option_names(words) == {"mem", "cpus-per-task", "output", "oversubscribe", "export"}
    script = "#!/bin/bash\n#SBATCH -e err.log --time=3 # --mem=1\n# SBATCH --mem=2\n ##SBATCH -c 1"
    assert script_options(script) == {"error", "time"}


def test_template_that_is_not_there_is_said():
    with pytest.raises(ValidationError, match="nowhere"):
        read_template("/nowhere/head.sh")
    assert read_template(None).startswith("#!")
    assert (
        read_template("#SBATCH -A me\nmodule load x")
        == "#!/bin/bash\n#SBATCH -A me\nmodule load x"
    )


# --- a work folder that cannot be read for a while, without a cluster --------------------------


class Finished(SimpleNamespace):
    """A step whose result is there."""

    name = "one"

    def output_dir(self):
        return str(self.folder)


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """A plugin that waits for the jobs of two steps; SLURM says that both have ended."""
    from networkx import DiGraph

    monkeypatch.setattr(slurm, "job_states", lambda jobs: {})
    cancelled = set()
    monkeypatch.setattr(slurm, "cancel_jobs", cancelled.update)
    monkeypatch.setattr(slurm, "_SHORTEST_LOOK", 0.01)
    plugin = slurm.GuardedSLURMPlugin({"squeue_interval": 0, "squeue_timeout": 0.3})
    settings = {"stop_on_first_crash": "false", "job_finished_timeout": "0"}
    plugin._begin(DiGraph(), {"execution": settings}, False)
    plugin._folder, plugin.cancelled = tmp_path / "jobs", cancelled
    plugin._folder.mkdir()
    (tmp_path / "result_one.pklz").touch()
    for number in range(2):
        plugin._steps.append(Step(Finished(folder=tmp_path)))
        plugin._jobs[number] = slurm._Job(70 + number, plugin._folder / f"{number}-one")
        write_json(plugin._folder / f"{number}-one.outcome", {"traceback": None})
    return plugin


def broken(*_, **__):
    raise OSError(errno.ESTALE, "Stale file handle")


@pytest.mark.parametrize("what", ["os.scandir", "pathlib.Path.read_text"])
def test_a_work_folder_that_cannot_be_read_is_no_news(waiting, monkeypatch, caplog, what):
    logging.getLogger("nipype").propagate = True
    with monkeypatch.context() as patch:
        patch.setattr(what, broken)
        assert [waiting._wait() for _ in range(3)] == [[], [], []]
    assert [ending.number for ending in waiting._wait()] == [0, 1]
    assert not waiting.cancelled
    assert list(waiting._folder.iterdir()) == []
    first, last = (record.getMessage() for record in caplog.records)
    assert "Stale file handle" in first
    assert "can be read again" in last


def test_patience_with_a_work_folder_ends(waiting, monkeypatch):
    monkeypatch.setattr("os.scandir", broken)
    ended = []
    wait_until(lambda: ended.extend(waiting._wait()) or ended, 10)
    assert {ending.number for ending in ended} == {0, 1}
    assert "could not be read for 0.3 s: [Errno 116] Stale" in ended[0].traceback[0]
    assert waiting.cancelled == {70, 71}


def test_one_outcome_that_cannot_be_read_is_one_failure(waiting):
    (waiting._folder / "1-one.outcome").write_text("{")
    assert [ending.number for ending in waiting._wait()] == [0]
    ended = []
    wait_until(lambda: ended.extend(waiting._wait()) or ended, 10)
    assert [ending.number for ending in ended] == [1]
    assert waiting.cancelled == {71}
