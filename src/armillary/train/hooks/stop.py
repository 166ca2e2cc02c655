"""Ends a run after the checkpoint of its last step if any rank received a request to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from armillary.recipe import ArmillaryError
from armillary.train.errors import InterruptedRunError

if TYPE_CHECKING:
    from armillary.train.loop import Run


class Stop:
    """``asked()`` returns whether this rank received a request to stop."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked

    def wish(self) -> bool:
        """Whether this rank received a request to stop."""
        return self.asked()

    def due(self, step: int) -> bool:
        """False: the hook acts only on a wish."""
        return False

    def act(self, run: Run[Any]) -> NoReturn:
        """Wait for the checkpoint and end the run.

        Raises:
            InterruptedRunError: the run can be resumed.
            ArmillaryError: its last checkpoint could not be written.
        """
        begin = time.perf_counter()
        problem = run.world.share(run.save.wait(run))
        run.reporter.write("stop", run.step, time.perf_counter() - begin)
        where = f"run {run.spec.id} stopped after step {run.step} of {run.spec.steps}"
        if problem is not None:
            raise ArmillaryError(f"{where}, but its checkpoint is lost: {problem}; the one before is kept")
        raise InterruptedRunError(f"{where}; start it again to resume")
