"""Steps side by side on this machine."""

from __future__ import annotations

from typing import Any

from nipype import logging

from lacuna_nipype.execution.resources import available_memory_gb, available_processors
from lacuna_nipype.execution.scheduling import Ending, SchedulingPlugin, Step
from lacuna_nipype.execution.workers import WorkerPool

logger = logging.getLogger("nipype.workflow")
# Sums of declared memory are sums of decimal fractions.
_ROUNDING_GB = 1e-6


class GuardedMultiProcPlugin(SchedulingPlugin):
    """Runs as many steps at once as processors and memory allow.

    In place of nipype's ``MultiProc``: a step whose process is killed has failed, while nipype
    waits for it for ever, and so it is with one that lacks a mandatory input; the next step
    starts as soon as one ends, without polling.

    Parameters
    ----------
    plugin_args : dict, optional
        ``n_procs``: processors, by default all that this process may use. ``memory_gb``: by
        default what is free, see :func:`available_memory_gb`. ``raise_insufficient``: refuse
        steps that declare more than that (default: false, they run alone).
        ``status_callback`` as in :class:`SchedulingPlugin`.

    Notes
    -----
    What a step declares is for planning; nothing holds it to that. Processors for graphics are
    not counted.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args)
        self.processors = int(self.plugin_args.get("n_procs") or available_processors())
        self.memory_gb = float(self.plugin_args.get("memory_gb") or available_memory_gb())

    def _begin(self, graph: Any, config: Any, updatehash: bool) -> None:
        super()._begin(graph, config, updatehash)
        for step in self._steps:
            if step.node.mem_gb > self.memory_gb or step.node.n_procs > self.processors:
                message = (
                    f"{step.node.fullname} declares {step.node.mem_gb:g} GB and "
                    f"{step.node.n_procs} processors; there are {self.memory_gb:g} GB and "
                    f"{self.processors}."
                )
                if self.plugin_args.get("raise_insufficient"):
                    raise RuntimeError(message)
                logger.warning("%s It will run alone.", message)

    def _open(self) -> None:
        self._pool = WorkerPool(self._config)

    def _close(self) -> None:
        self._pool.close()

    def _abandon(self) -> None:
        self._pool.kill()

    def _needs(self, step: Step) -> tuple[int, float]:
        return min(step.node.n_procs, self.processors), min(step.node.mem_gb, self.memory_gb)

    def _free(self) -> tuple[int, float]:
        """Processors and GB that no running step has declared."""
        needs = [self._needs(self._steps[number]) for number in self._running]
        processors = self.processors - sum(need[0] for need in needs)
        return processors, self.memory_gb - sum(need[1] for need in needs)

    def _is_full(self) -> bool:
        return self._free()[0] < 1

    def _has_room(self, step: Step) -> bool:
        processors, memory_gb = self._needs(step)
        free_processors, free_gb = self._free()
        return processors <= free_processors and memory_gb <= free_gb + _ROUNDING_GB

    def _submit(self, number: int, step: Step) -> bool:
        self._pool.submit(number, step.node, self._updatehash)
        return True

    def _wait(self) -> list[Ending]:
        return [Ending(number, traceback) for number, traceback in self._pool.wait()]
