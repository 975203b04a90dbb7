"""Processes that run steps: each by itself, so that the death of one is the failure of one step.

The pool of the standard library ends all its workers when one dies, and does not say which step
was to blame. Here every worker has a pipe of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from traceback import format_exception
from typing import Any

from lacuna_nipype.core.processes import forkserver
from lacuna_nipype.execution.settings import use_settings
from lacuna_nipype.execution.threads import limited_threads

# Imported once, by the process that all workers are forked from.
_PRELOADED = ["nipype.pipeline.engine", "lacuna_nipype.execution.workers"]
# Sections of nipype's settings that a worker can take over.
_SECTIONS = ("execution", "logging", "check")
_ATTEMPTS = 3
_PATIENCE_SECONDS = 5.0


class WorkerDiedError(RuntimeError):
    """The process that ran a step has ended without a word."""


def describe_death(exit_code: int | None) -> str:
    """Say how a process ended, and what most likely helps.

    Parameters
    ----------
    exit_code : int or None
        Negative for a signal; None where it is not known.

    Returns
    -------
    str
        One sentence.
    """
    if exit_code == -signal.SIGKILL:
        return (
            "The worker was killed (signal 9), most likely for want of memory; get more of it, or "
            "let fewer steps run at once (lower --nprocs, or --mem)."
        )
    if exit_code is None:
        return "The worker has ended, nobody knows how."
    if exit_code < 0:
        try:
            name = f", {signal.Signals(-exit_code).name}"
        except ValueError:
            name = ""
        return f"The worker was ended by signal {-exit_code}{name} while it ran this step."
    return f"The worker left with exit code {exit_code} in the middle of this step."


def run_step(node: Any, updatehash: bool = False) -> list[str] | None:
    """Run a node, whatever happens.

    Nipype's own function for this fails where the node fails before it has a result, as for want
    of a mandatory input, and the run then waits for ever.

    Parameters
    ----------
    node : nipype Node
    updatehash : bool

    Returns
    -------
    list of str or None
        Lines of the error; None where it succeeded. The result lies in the node's folder.
    """
    # Steps that run beside others do not share the terminal.
    if getattr(node.interface, "terminal_output", "") == "stream":
        node.interface.terminal_output = "allatonce"
    try:
        with limited_threads(node.n_procs):
            node.run(updatehash=updatehash)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - told by the one who asked
        return format_exception(error)
    return None


@dataclass(eq=False)
class _Worker:
    process: Any
    connection: Connection


class WorkerPool:
    """Processes that run steps; one is started whenever none is idle.

    Parameters
    ----------
    settings : dict
        Nipype's settings, which the workers follow too.

    Notes
    -----
    A worker leads a process group: with it go the external commands that it has started. It ends
    by itself when this process does, however that happens.
    """

    def __init__(self, settings: Any) -> None:
        self._settings = {name: dict(settings[name]) for name in _SECTIONS if name in settings}
        self._context = forkserver()
        self._context.set_forkserver_preload(_PRELOADED)
        self._idle: list[_Worker] = []
        self._busy: dict[int, _Worker] = {}

    def submit(self, number: int, node: Any, updatehash: bool = False) -> None:
        """Let a worker run a step.

        Parameters
        ----------
        number : int
            Names the step in :meth:`wait`.
        node : nipype Node
        updatehash : bool

        Raises
        ------
        Exception
            The node cannot be pickled, or no worker can be started.
        """
        task = bytes(ForkingPickler.dumps((node, updatehash)))
        for attempt in range(_ATTEMPTS):
            worker = self._idle.pop() if self._idle else self._start()
            try:
                worker.connection.send_bytes(task)
            except OSError:
                # It died while it was idle.
                code = self._bury(worker)
                if attempt == _ATTEMPTS - 1:
                    raise WorkerDiedError(describe_death(code)) from None
            else:
                self._busy[number] = worker
                return

    def wait(self) -> list[tuple[int, list[str] | None]]:
        """Wait until a step has ended.

        Returns
        -------
        list of (int, list of str or None)
            Numbers of the steps, and the lines of their errors.
        """
        if not self._busy:
            return []
        handles = [
            handle
            for worker in self._busy.values()
            for handle in (worker.connection, worker.process.sentinel)
        ]
        ready = set(wait(handles))
        ended = []
        for number, worker in list(self._busy.items()):
            if ready.isdisjoint((worker.connection, worker.process.sentinel)):
                continue
            del self._busy[number]
            ended.append((number, self._hear(worker)))
        return ended

    def _hear(self, worker: _Worker) -> list[str] | None:
        """Take the answer of a worker, or note its death."""
        try:
            # Where only the process has ended, it may have answered before.
            if not worker.connection.poll():
                raise EOFError
            answer: list[str] | None = worker.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            message = describe_death(self._bury(worker))
            return format_exception(WorkerDiedError(message))
        self._idle.append(worker)
        return answer

    def close(self) -> None:
        """Let idle workers go, and end those that do not."""
        for worker in self._idle:
            worker.connection.close()
        for worker in self._idle:
            worker.process.join(_PATIENCE_SECONDS)
        self._idle = [worker for worker in self._idle if worker.process.exitcode is None]
        self.kill()

    def kill(self) -> None:
        """End all workers and what they have started, at once."""
        workers = [*self._idle, *self._busy.values()]
        for worker in workers:
            _kill_group(worker.process)
        for worker in workers:
            self._bury(worker)
        self._idle, self._busy = [], {}

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work,
            args=(theirs, self._settings, dict(os.environ), str(Path.cwd())),
            name="lacuna-worker",
            daemon=False,
        )
        process.start()
        # Only the worker may hold its end: its death then closes the pipe.
        theirs.close()
        return _Worker(process, ours)

    def _bury(self, worker: _Worker) -> int | None:
        """Clear a worker away; its exit code."""
        worker.connection.close()
        _kill_group(worker.process)
        worker.process.join(_PATIENCE_SECONDS)
        code: int | None = worker.process.exitcode
        if code is not None:
            worker.process.close()
        return code


def _kill_group(process: Any) -> None:
    """End a worker and the commands that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # It may not lead a group yet.
    process.kill()


def _work(connection: Connection, settings: Any, environment: dict[str, str], folder: str) -> None:
    """Run steps until there are no more."""
    os.setpgid(0, 0)
    # Ctrl-C is for the process that gave the work; commands must not inherit that it is ignored.
    signal.signal(signal.SIGINT, lambda *_: None)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    use_settings(settings)
    while True:
        try:
            task = connection.recv_bytes()
        except EOFError:
            return
        try:
            node, updatehash = pickle.loads(task)  # noqa: S301 - written by our own run
        except Exception as error:  # noqa: BLE001 - told by the one who asked
            connection.send(format_exception(error))
            continue
        connection.send(run_step(node, updatehash))
        # The next step may need the memory.
        del node, task


def _end_with_parent() -> None:
    """End this worker and its commands when the process that gave the work has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os.killpg(0, signal.SIGKILL)
