"""A SLURM cluster of one machine, for tests: its own daemons, keys, and folder.

Processors are pretended, so that jobs overlap on small machines. Memory is not enforced.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
_PATIENCE_SECONDS = 60
_CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
# Nothing here may depend on control groups, systemd, or a database.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
# Several jobs at once, each as soon as it is there.
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
MessageTimeout=20
NodeName={host} NodeAddr=127.0.0.1 CPUs={processors} RealMemory={megabytes}
PartitionName=main Nodes={host} Default=YES MaxTime=60 State=UP
"""


def reason_to_skip():
    """Say why there can be no cluster here, or None."""
    if os.geteuid() != 0:
        return "a SLURM cluster for tests needs root"
    missing = [name for name in (*DAEMONS, "sbatch", "squeue") if _program(name) is None]
    return f"{', '.join(missing)} not installed (slurm-wlm, munge)" if missing else None


def _program(name):
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))


class SlurmCluster:
    """Daemons that run while the cluster is open.

    ``environment`` holds what a process needs to talk to it.
    """

    def __init__(self, folder, processors=8, megabytes=64000):
        self.folder = Path(folder)
        self.host = socket.gethostname().partition(".")[0]
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        controller_port, node_port = _free_ports(2)
        (self.folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                folder=self.folder, host=self.host, controller_port=controller_port,
                node_port=node_port, processors=processors, megabytes=megabytes,
            )
        )  # fmt: skip
        self._processes = {}

    def start(self):
        self.start_daemon("munged")
        _wait_until((self.folder / "munge.socket").exists, self.logs)
        self.start_daemon("slurmctld")
        self.start_daemon("slurmd")
        _wait_until(self.is_ready, self.logs)

    def start_daemon(self, name):
        """Start a daemon in the foreground: it is a child of this process."""
        words = {
            "munged": [
                "--force", "--foreground", f"--key-file={self.folder}/munge.key",
                f"--socket={self.folder}/munge.socket", f"--pid-file={self.folder}/munged.pid",
                f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munge.seed",
            ],
            "slurmctld": ["-D"],
            "slurmd": ["-D"],
        }[name]  # fmt: skip
        with (self.folder / f"{name}.printed").open("a") as stream:
            self._processes[name] = subprocess.Popen(
                [_program(name), *words],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop_daemon(self, name):
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self):
        if "slurmctld" in self._processes:
            self.command("scancel", "--user=root", check=False)
            deadline = time.monotonic() + 10
            while self.jobs() and time.monotonic() < deadline:
                time.sleep(0.1)
        for name in reversed(DAEMONS):
            self.stop_daemon(name)

    def command(self, *words, check=True):
        """Run a command of SLURM: what it printed."""
        done = subprocess.run(
            list(map(str, words)),
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def is_ready(self):
        return self.command("sinfo", "-h", "-o", "%T", check=False).strip() in ("idle", "mixed")

    def jobs(self, *states):
        """Names of jobs by their numbers; of those that have not ended by default."""
        words = [f"--states={','.join(states)}"] if states else []
        lines = self.command("squeue", "-h", "-o", "%A %j", *words, check=False).splitlines()
        return {int(line.split()[0]): line.split()[1] for line in lines}

    def description(self, job):
        """What scontrol says about a job, as a dictionary."""
        words = self.command("scontrol", "-o", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def processes_of(self, job):
        """Processes of a job, from the environment that SLURM gives them."""
        mark = f"SLURM_JOB_ID={job}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                variables = path.read_bytes().split(b"\0")
            except OSError:
                continue
            own = f"SLURM_CONF={self.folder}/slurm.conf".encode()
            if mark in variables and own in variables:
                found.append(int(path.parent.name))
        return found

    def kill_job(self, job):
        """Kill the processes of a job, as the kernel does that has no memory left."""
        for pid in self.processes_of(job):
            os.kill(pid, signal.SIGKILL)

    def logs(self):
        return "\n".join(
            f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}"
            for path in sorted(self.folder.glob("*.log")) + sorted(self.folder.glob("*.printed"))
        )


@contextmanager
def running_cluster(processors=8):
    """Give a cluster that is ready, and end it afterwards."""
    # Names of sockets must be short, which those of pytest's folders are not.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = SlurmCluster(folder, processors)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait_until(condition, say):
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, say()
        time.sleep(0.05)
