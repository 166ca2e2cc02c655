"""Writes checkpoints: by the clock of rank 0, at the steps of the policy, and before a run stops."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from armillary.goodput import EventKind
from armillary.train.checkpoint import Progress, RetentionPolicy, Saver
from armillary.train.errors import LostStepError

if TYPE_CHECKING:
    from armillary.train.loop import Run


class Save:
    """A checkpoint is due at the steps of ``policy``, and when ``policy.every_s`` seconds have passed on ``clock``.

    ``kind`` is the kind of its event when training continues: a snapshot is a checkpoint in the machine's memory.
    """

    def __init__(
        self, saver: Saver, policy: RetentionPolicy, clock: bool = True, kind: EventKind = "checkpoint"
    ) -> None:
        self.saver, self.policy, self.clock, self.kind = saver, policy, clock, kind
        self._saved = time.perf_counter()

    def wish(self) -> bool:
        """Whether the seconds between two checkpoints have passed; false on ranks without the clock."""
        if not self.clock or time.perf_counter() - self._saved <= self.policy.every_s:
            return False
        self._saved = time.perf_counter()
        return True

    def due(self, step: int) -> bool:
        """Whether ``policy`` has a checkpoint at this step."""
        return self.policy.due(step)

    def act(self, run: Run[Any]) -> None:
        """Begin to write the checkpoint of this step.

        Raises:
            LostStepError: copies of the same values differ between ranks.
        """
        self.report(run)
        if run.step == run.began:
            return  # the run began with this checkpoint
        begin = time.perf_counter()
        run.reporter.write("checkpoint_begin", run.step, of=self.kind)
        # All ranks save or none does: the next checkpoint of a rank that saved alone would wait for the others.
        differ = run.engine.check_copies()
        if run.world.any(differ is not None):
            raise LostStepError(
                f"after step {run.step} {differ or 'the numbers of other ranks differ from their copies'}"
            )
        progress = Progress(run.spec, run.step, run.metrics.rows(), dict(run.skipped))
        self.saver.save(run.engine.pieces(), progress)
        self.report(run)
        self._saved = time.perf_counter()
        run.reporter.write(self.kind, run.step, self._saved - begin)

    def report(self, run: Run[Any]) -> str | None:
        """Report the finished checkpoints; return the problem of the last one, if any."""
        written = self.saver.finished()
        for saved in written:
            if saved.problem is None:
                run.reporter.write("checkpoint_durable", saved.step, of=self.kind, **saved.data)
            else:
                run.reporter.fault(
                    saved.step, f"step-{saved.step}", saved.problem, f"the {self.kind} before it is kept"
                )
        return written[-1].problem if written else None

    def wait(self, run: Run[Any]) -> str | None:
        """Wait until all checkpoints are written; return the same as ``report``."""
        self.saver.wait()
        return self.report(run)
