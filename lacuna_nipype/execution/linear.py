"""Steps one after the other, in this process."""

from __future__ import annotations

from lacuna_nipype.execution.scheduling import Ending, SchedulingPlugin, Step


class GuardedLinearPlugin(SchedulingPlugin):
    """Runs one step at a time.

    In place of nipype's ``Linear``, which ends the whole run where the crash file of a step
    cannot be written, as on a full disk.
    """

    def _open(self) -> None:
        self._ended: list[Ending] = []

    def _close(self) -> None:
        """Nothing is left: steps run here."""

    def _abandon(self) -> None:
        """Nothing is left: steps run here."""

    def _has_room(self, step: Step) -> bool:
        return True

    def _is_full(self) -> bool:
        return bool(self._running)

    def _submit(self, number: int, step: Step) -> bool:
        step.node.run(updatehash=self._updatehash)
        self._ended.append(Ending(number))
        return True

    def _wait(self) -> list[Ending]:
        ended, self._ended = self._ended, []
        return ended
