"""The hook that keeps a tracker up to date while a run trains.

The metrics are in the run's folder already (`train`), so the hook sends nothing: it starts the process that reads them
there, and passes on what that process says. It costs a training the look at a pipe every ``EVERY`` steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from armillary.trackers.destination import Destination
from armillary.trackers.follower import Follower

EVERY = 25  # steps: when the losses are fetched anyway


class Track:
    """A tracker of one run, for ``hooks=`` of `train_run` and `train_ranks`; all ranks have it and the first acts.

    ``name`` is what the run is called, and ``say`` gets lines for the user. Call ``close`` after training: it waits
    until the tracker has everything, but not for long. Without it, the tracker's process ends after that of training.
    """

    def __init__(
        self,
        where: Destination,
        folder: Path,
        name: str | None = None,
        say: Callable[[str], None] = logging.getLogger(__name__).warning,
    ) -> None:
        self.follower, self.say = Follower(where, folder, name), say

    def due(self, step: int) -> bool:
        """Every ``EVERY`` steps."""
        return step % EVERY == 0

    def act(self, run: Any) -> None:
        """Start the tracker's process if it does not run, and report its messages; never waits and never fails."""
        if run.world.rank == 0:
            self.follower.start()
            for line in self.follower.words():
                self.say(line)

    def close(self) -> None:
        """End the tracker's process."""
        for line in self.follower.close():
            self.say(line)
