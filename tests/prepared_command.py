"""The command in processes of its own that are forked from one that has imported what it needs.

Most tests of the command wait for imports more than for anything else. Here an interpreter imports
once, and every command is a fork of it: a process with its own arguments, environment, folder,
limits and streams that runs ``python -m lacuna_nipype`` to its exit code. Where the
environment differs in what an interpreter or a library reads at its start, a new one is started.
"""

import atexit
import gc
import importlib
import json
import os
import random
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback

# Neither of them looks at the environment beyond what is compared below.
_IMPORTED = (
    *("bids.layout", "h5py", "nibabel", "nipype.pipeline.engine", "numba", "pandas", "requests"),
    *("scipy.fft", "scipy.ndimage", "scipy.sparse", "lacuna_nipype.cli.main"),
    *(f"lacuna_nipype.cli.{level}" for level in ("group", "graph", "participant", "recovery")),
)
_READ_AT_START = (
    *("PYTHON", "LD_", "LC_", "LANG", "HOME", "MALLOC_", "NUMBA_", "NIPYPE", "BIDS"),
    *("OMP_", "OPENBLAS_", "MKL_", "XDG_"),
)
_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]


def _read_at_start(environment):
    return {key: text for key, text in environment.items() if key.startswith(_READ_AT_START)}


class PreparedCommand:
    """Runs ``python -m lacuna_nipype`` as :func:`subprocess.run` does, in forks."""

    def __init__(self, environment):
        self._environment = _read_at_start(environment)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._socket = ours
        self._one_at_a_time = threading.Lock()

    def close(self):
        self._socket.close()
        self._server.wait()

    def run(self, words, *, env, cwd, timeout):
        """Both streams come back as one text; None where a new interpreter is needed.

        That is where it would start in another way, or while another command runs.
        """
        if _read_at_start(env) != self._environment:
            return None
        if not self._one_at_a_time.acquire(blocking=False):
            return None
        try:
            return self._run(words, env, cwd, timeout)
        finally:
            self._one_at_a_time.release()

    def _run(self, words, env, cwd, timeout):
        read, write = os.pipe()
        limits = {number: resource.getrlimit(number) for number in _LIMITS}
        request = {"words": words, "env": env, "cwd": str(cwd), "limits": limits}
        with open(read, "rb", buffering=0) as output:
            try:
                socket.send_fds(self._socket, [json.dumps(request).encode()], [write])
            finally:
                os.close(write)
            pid = self._receive()
            printed = _read(output, time.monotonic() + timeout)
            if printed is None:
                os.kill(pid, signal.SIGKILL)
            code = self._receive()
        if printed is None:
            raise subprocess.TimeoutExpired(words, timeout)
        return subprocess.CompletedProcess(words, code, printed.decode())

    def _receive(self):
        message = self._socket.recv(100)
        assert message, "the interpreter that commands are forked from has ended"
        return int(message)


def _read(output, deadline):
    """Everything until the last process that can write has ended; None where that is too late."""
    printed = bytearray()
    while select.select([output], [], [], max(0, deadline - time.monotonic()))[0]:
        block = output.read(2**16)
        if not block:
            return printed
        printed += block
    return None


# --- the interpreter that imports ---------------------------------------------------------------


def _serve(connection):
    """Fork at every request; returns in the forks, and at the end."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 2**20, 1)
        if not message:
            return False
        (stream,) = descriptors
        pid = os.fork()
        if pid == 0:
            connection.close()
            _become(json.loads(message), stream)
            return True
        os.close(stream)
        connection.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(request, stream):
    """Take on what a new process would have been given."""
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.close(stream)
    for number, limits in request["limits"].items():
        resource.setrlimit(int(number), limits)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["lacuna-nipype", *request["words"]]
    sys.path[0] = request["cwd"]
    random.seed()
    # Nothing in the package uses the global generator of numpy.


def _run():
    """Run the command and leave, without taking apart what was imported before the fork."""
    try:
        runpy.run_module("lacuna_nipype", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:  # noqa: BLE001 - as at the end of any script
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    # As the command itself sets it before it imports nipype.
    os.environ.setdefault("NIPYPE_NO_ET", "1")
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as ours:
        is_fork = _serve(ours)
    if is_fork:
        _run()
