"""Commands of SLURM, pretended: how they are called, and what is made of their answers."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from graph_runs import wait_until

from lacuna_nipype.core.exceptions import ValidationError
from lacuna_nipype.execution import slurm_commands
from lacuna_nipype.execution.runner import require_plugin
from lacuna_nipype.execution.slurm_commands import (
    JobState,
    Patience,
    SlurmError,
    cancel_jobs,
    clean_environment,
    job_states,
    jobs_named,
    submit_job,
    submit_patiently,
)
from lacuna_nipype.execution.slurm_options import (
    log_pattern,
    option_words,
    read_job_arguments,
    read_template,
    script_options,
)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Put commands on PATH that are scripts of a shell; each call is noted."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write(name, text):
        path = tmp_path / name
        path.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/{name}.calls\n{text}\n')
        path.chmod(0o755)
        return lambda: (tmp_path / f"{name}.calls").read_text().splitlines()

    return write


# --- how the commands are run -------------------------------------------------------------------


def test_habits_of_the_user_do_not_hide_jobs():
    habits = ("SQUEUE_PARTITION", "SQUEUE_USERS", "SCANCEL_STATE", "SCANCEL_INTERACTIVE")
    job = ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SLURMD_NODENAME", "SRUN_DEBUG", "SCONTROL_ALL")
    names = ("SBATCH_ACCOUNT", "SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "HOME")
    kept = dict.fromkeys(names, "x")
    assert clean_environment(kept | dict.fromkeys((*habits, *job), "x")) == kept


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"SBATCH_CLUSTERS": "b"}, "b"),
        ({"SLURM_CLUSTERS": "a", "SBATCH_CLUSTERS": "b"}, "a"),
        ({"SLURM_CLUSTERS": "", "SBATCH_CLUSTERS": "b"}, "b"),
    ],
)
def test_all_commands_are_told_the_same_cluster(given, told):
    assert clean_environment(given) == {"SLURM_CLUSTERS": told}


@pytest.mark.parametrize(
    "arguments",
    [
        {"sbatch_args": "--clusters=b"},
        {"sbatch_args": ["-M", "b"]},
        {"sbatch_args": "-Mb"},
        {"sbatch_args": "--cluster b"},
        {"template": "#SBATCH -A lab -M b\nmodule load x"},
    ],
)
def test_a_cluster_that_sbatch_alone_would_know_is_refused(arguments):
    with pytest.raises(ValidationError, match="set SLURM_CLUSTERS") as caught:
        read_job_arguments(arguments)
    assert next(iter(arguments)) in str(caught.value)


def test_another_cluster_may_have_a_job_of_the_same_number(monkeypatch):
    for value in ("a,b", "all"):
        monkeypatch.setenv("SLURM_CLUSTERS", value)
        with pytest.raises(ValidationError, match="name one"):
            require_plugin("SLURM")


def test_answers_of_another_cluster(fake):
    fake("sbatch", "echo '12;b'")
    assert submit_job(sys.executable, []) == 12
    fake("squeue", "echo 'CLUSTER: b'; echo '12 PENDING Resources'")
    assert job_states([12]) == {12: JobState("PENDING", "Resources")}


def test_commands_do_not_see_them(fake, monkeypatch):
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    fake("squeue", 'echo "7 [$SQUEUE_PARTITION] $SBATCH_ACCOUNT"')
    assert jobs_named("") == {7: "[] lab"}


@pytest.mark.parametrize("stream", ["1", "2"])
def test_a_command_that_prints_without_end_is_killed(fake, monkeypatch, tmp_path, stream):
    monkeypatch.setattr(slurm_commands, "_MOST_BYTES", 2**20)
    fake("scancel", f"echo $$ > {tmp_path}/pid\nyes 'Cancel job? [y/n]' >&{stream}")
    with pytest.raises(SlurmError, match="more than 1 MiB"):
        cancel_jobs([1])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def has_ended(noted):
    """Whether a process, killed a moment ago, has ended; it does when it is its turn."""
    try:
        # Whoever takes in orphans may not have done so yet.
        return Path("/proc", noted.read_text().strip(), "stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_a_command_that_hangs_is_killed_with_what_it_started(fake, monkeypatch, tmp_path):
    monkeypatch.setattr(slurm_commands, "_TIMEOUT_SECONDS", 1)
    fake("squeue", f"sleep 300 &\necho $! > {tmp_path}/pid\nwait")
    start = time.monotonic()
    with pytest.raises(SlurmError, match="within 1 s"):
        job_states([1])
    assert time.monotonic() - start < 10
    wait_until(lambda: has_ended(tmp_path / "pid"), 30)


def test_a_command_that_closes_its_streams_and_hangs(fake, monkeypatch):
    monkeypatch.setattr(slurm_commands, "_TIMEOUT_SECONDS", 1)
    fake("squeue", "exec > /dev/null 2>&1\nexec sleep 300")
    with pytest.raises(SlurmError, match="within 1 s"):
        job_states([1])


def test_ctrl_c_on_the_terminal_does_not_reach_the_commands(fake):
    # The terminal signals the group of processes in its foreground.
    fake("squeue", 'read -r _ _ _ _ group _ < /proc/$$/stat; echo "1 $group"')
    ((_, group),) = jobs_named("").items()
    assert int(group) != os.getpgrp()


@pytest.fixture
def raises_at_sigterm():
    """Let SIGTERM raise KeyboardInterrupt in the main thread."""

    def leave(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    yield
    assert signal.signal(signal.SIGTERM, before) is leave


def test_an_exception_takes_the_command_along(fake, tmp_path, raises_at_sigterm):
    fake("squeue", f"echo $$ > {tmp_path}/pid\nkill -TERM {os.getpid()}\nsleep 300")
    with pytest.raises(KeyboardInterrupt):
        jobs_named("")
    wait_until(lambda: has_ended(tmp_path / "pid"), 30)


def test_a_signal_at_the_start_of_a_command_takes_it_along(
    fake, tmp_path, monkeypatch, raises_at_sigterm
):
    def start(words):
        process = start_really(words)
        wait_until((tmp_path / "pid").exists)
        os.kill(os.getpid(), signal.SIGTERM)
        # Where the handler would run, were it not held back.
        time.sleep(0.1)
        return process

    start_really = slurm_commands._start
    monkeypatch.setattr(slurm_commands, "_start", start)
    fake("squeue", f"echo $$ > {tmp_path}/pid\nsleep 300")
    with pytest.raises(KeyboardInterrupt):
        jobs_named("")
    wait_until(lambda: has_ended(tmp_path / "pid"), 30)


def test_a_signal_while_a_command_cannot_be_started(fake, monkeypatch, raises_at_sigterm):
    def start(words):
        os.kill(os.getpid(), signal.SIGTERM)
        raise SlurmError("squeue cannot be run.")

    monkeypatch.setattr(slurm_commands, "_start", start)
    with pytest.raises(KeyboardInterrupt):
        jobs_named("")


def test_both_streams_are_read(fake):
    fake("sbatch", "echo 12; echo 'a warning' >&2")
    assert submit_job(sys.executable, []) == 12
    fake(
        "sbatch", "head -c 300000 /dev/zero | tr '\\0' x >&2; echo; echo 13; echo nope >&2; exit 3"
    )
    with pytest.raises(SlurmError, match="nope"):
        submit_job(sys.executable, [])


def test_jobs_in_hidden_partitions_are_found(fake):
    fake("squeue", '[[ " $* " == *" --all "* ]] && echo "7 merge-r1"')
    assert jobs_named("r1") == {7: "merge-r1"}


def test_a_command_that_is_not_there(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SlurmError, match="not on PATH") as caught:
        jobs_named("")
    assert caught.value.hopeless


# --- what the answers mean ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "hopeless", "too_many"),
    [
        ("Batch job submission failed: Socket timed out on send/recv operation", False, False),
        ("Unable to contact slurm controller (connect failure)", False, False),
        ("invalid partition specified: nowhere", True, False),
        ("Memory specification can not be satisfied", True, False),
        ("CPU count per node can not be satisfied: more than permitted", True, False),
        ("QOSMaxSubmitJobPerUserLimit\nerror: Job violates accounting/QOS policy", False, True),
        ("AssocGrpSubmitJobsLimit\nerror: Job violates accounting/QOS policy", False, True),
        ("QOSMaxCpuPerJobLimit\nerror: Job violates accounting/QOS policy", True, False),
        ("Job violates accounting/QOS policy (job submit limit, size or time)", False, False),
    ],
)
def test_errors_of_sbatch(fake, said, hopeless, too_many):
    fake("sbatch", f"echo 'sbatch: error: {said}' >&2; exit 1")
    with pytest.raises(SlurmError) as caught:
        submit_job(sys.executable, [])
    assert (caught.value.hopeless, caught.value.too_many) == (hopeless, too_many)


@pytest.mark.parametrize(
    ("reason", "stuck"),
    [
        *((reason, False) for reason in ("None", "", "Priority", "Resources", "BeginTime")),
        *((reason, False) for reason in ("QOSMaxJobsPerUserLimit", "AssocGrpCpuLimit")),
        *((reason, True) for reason in ("PartitionTimeLimit", "JobHeldUser", "BadConstraints")),
        *((reason, True) for reason in ("QOSMaxCpuPerJobLimit", "AssocGrpCPUMinutesLimit")),
        ("QOSNotAllowed", True),
        ("ReqNodeNotAvail, UnavailableNodes:n1", True),
    ],
)
def test_reasons_that_do_not_pass_by_themselves(reason, stuck):
    assert JobState("PENDING", reason).may_never_start is stuck
    assert not JobState("RUNNING", reason).may_never_start


# --- patience -----------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by sleeping only."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(slurm_commands, "time", clock)
    return clock


def test_pauses_grow_up_to_a_minute_until_the_time_is_over(clock):
    patience = Patience(2, 300)
    pauses = []
    while sum(pauses) < 300:
        pauses.append(patience.pause_after(SlurmError("away")))
        clock.sleep(pauses[-1])
    with pytest.raises(SlurmError, match=r"for 300 s: away"):
        patience.pause_after(SlurmError("away"))
    assert pauses[:6] == [2, 4, 8, 16, 32, 60]
    assert max(pauses) == 60
    # The last attempt is at the very end.
    assert sum(pauses) == 300
    patience.reset()
    assert patience.pause_after(SlurmError("away")) == 2


def test_no_patience_without_hope(clock):
    with pytest.raises(SlurmError, match="invalid"):
        Patience(2, 300).pause_after(SlurmError("invalid account", hopeless=True))


def refused_times(fake, tmp_path, times, and_before="true"):
    """Pretend an sbatch that fails so many times; it may make the job before it does."""
    return fake(
        "sbatch",
        f"if [ $(wc -l < {tmp_path}/sbatch.calls) -le {times} ]; then {and_before}\n"
        "echo 'sbatch: error: Socket timed out' >&2; exit 1; fi\necho 9",
    )


def submit(told, seconds=0.05, limit=20):
    return submit_patiently(
        sys.executable, ["-p", "main"], name="merge-r1",
        patience=Patience(seconds, limit), tell=told.append,
    )  # fmt: skip


def test_submission_is_repeated(fake, tmp_path):
    calls = refused_times(fake, tmp_path, 2)
    asked = fake("squeue", "echo '3 other-r1'")
    told = []
    assert submit(told) == 9
    assert len(calls()) == 3
    assert len(asked()) == len(told) == 2
    assert "Socket timed out" in told[0]
    assert calls()[0] == f"--parsable -p main --job-name=merge-r1 {sys.executable}"


def test_a_job_that_was_made_although_sbatch_failed_is_found(fake, tmp_path):
    calls = refused_times(fake, tmp_path, 1, f"echo '8 merge-r1' > {tmp_path}/queue")
    # At first squeue fails too, which says nothing about the job.
    fake(
        "squeue",
        f"if [ $(wc -l < {tmp_path}/squeue.calls) -le 2 ]; then exit 1; fi; cat {tmp_path}/queue",
    )
    assert submit([]) == 8
    assert len(calls()) == 1


def test_submission_is_given_up(fake, tmp_path):
    refused_times(fake, tmp_path, 1000)
    fake("squeue", "true")
    with pytest.raises(SlurmError, match="could not be submitted"):
        submit([], limit=0.3)
    calls = fake("sbatch", "echo 'invalid account' >&2; exit 1")
    before = len(calls())
    with pytest.raises(SlurmError, match="invalid account"):
        submit([])
    assert len(calls()) == before + 1


# --- what the user gives ------------------------------------------------------------------------


def test_options_after_the_first_command_do_not_count():
    script = "#!/bin/bash\n\n# note\n  \n  # note\n#SBATCH --mem=1G\nmodule load x\n#SBATCH -t 7\n"
    assert script_options(script) == {"mem"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"template": 5},
        {"template": ["#!/bin/bash"]},
        {"template": False},
        {"template": "module load x"},
        {"template": "/dev/null/head.sh"},
        {"template": "#!/bin/bash\n#SBATCH --comment=it's\n"},
        {"sbatch_args": 5},
        {"sbatch_args": {"mem": "4G"}},
        {"sbatch_args": "--comment=it's"},
        {"sbatch_args": [["--mem", "4G"]]},
        {"sbatch_args": ["a\0b"]},
        {"sbatch_args": False},
        {"sbatch_args": "--array=1-3"},
        {"sbatch_args": "-p gpu -W"},
        {"sbatch_args": ["--test-only"]},
        {"python": 3},
        {"python": {"a": 1}},
    ],
)
def test_arguments_of_no_use_are_refused_with_a_sentence(arguments):
    with pytest.raises(ValidationError) as caught:
        read_job_arguments(arguments)
    text = str(caught.value)
    assert "\n" not in text
    (name,) = arguments
    assert name in text


def test_text_of_a_template_in_one_line_is_explained():
    with pytest.raises(ValidationError, match="begin it with a line"):
        read_template("module load x")
    assert read_template("#!/bin/bash\nmodule load x") == "#!/bin/bash\nmodule load x"


def test_what_is_null_or_empty_is_not_given():
    default = read_job_arguments({})
    assert default.python == (sys.executable,)
    assert default.template.startswith("#!")
    for empty in (None, ""):
        asked = dict.fromkeys(("template", "sbatch_args", "python"), empty)
        assert read_job_arguments(asked) == default
    assert option_words(["--nice", 5]) == ["--nice", "5"]


def test_a_template_that_cannot_be_parsed_after_its_options_is_the_shell_s_affair(tmp_path):
    template = tmp_path / "head.sh"
    template.write_bytes(b"#SBATCH -A me\r\nmodule load x\r\n#SBATCH --comment=it's\r\n")
    assert read_template(str(template)).splitlines()[1:] == [
        "#SBATCH -A me",
        "module load x",
        "#SBATCH --comment=it's",
    ]


def test_paths_of_log_files(tmp_path):
    assert log_pattern(tmp_path / "100%") == f"{tmp_path}/100%%"
    # SLURM takes every other backslash away, and then leaves percent signs alone.
    assert log_pattern(tmp_path / "a\\b%j") == f"{tmp_path}/a\\\\b%j"
