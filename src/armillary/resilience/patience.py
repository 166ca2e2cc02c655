"""How long a rank waits for the others in a collective, from the times measured in this attempt.

The limit is the last resort, for ranks that nothing watches: it lies beyond those of `detect`, so a watching process
finds a hang first. It is twice the detector's limit for the longest step or other work so far, and at least
``LEAST_S``. ``START_S`` holds until two steps are finished (loading, compiling), and during work of a kind that has
never ended in this attempt, such as the first validation.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from armillary.resilience.detect import TIMES

LEAST_S, START_S = 60.0, 1800.0
_BEYOND = 2.0  # times the limit of the detector


def wait_limit(longest_s: float) -> float:
    """How many seconds a rank may wait for others whose work has taken at most ``longest_s``."""
    return min(START_S, max(LEAST_S, _BEYOND * TIMES * longest_s))


class Patience:
    """Measures steps and other work, and calls ``limit`` with the seconds that a rank may wait from now on."""

    def __init__(self, limit: Callable[[float], None]) -> None:
        self._limit, self._limit_s = limit, START_S
        self._longest_s = 0.0  # of steps and of work that has ended
        self._known: set[str] = set()  # kinds of work that have ended
        self._work, self._since = "start", time.monotonic()
        limit(START_S)

    def step(self) -> None:
        """A step is finished; the first is part of the start."""
        if self._work == "step":
            self._ended()
        self.busy(None)

    def busy(self, work: str | None) -> None:
        """The kind of the next work if it may take longer than a step, else None."""
        if self._work not in ("start", "step"):
            self._ended()
        self._work, self._since = work or "step", time.monotonic()
        limit_s = wait_limit(self._longest_s) if self._work in self._known else START_S
        if limit_s != self._limit_s:
            self._limit_s = limit_s
            self._limit(limit_s)

    def _ended(self) -> None:
        self._longest_s = max(self._longest_s, time.monotonic() - self._since)
        self._known.add(self._work)
