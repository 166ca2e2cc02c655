"""Decides whether a step is good: its loss and gradient norm are finite, and the loss is not a spike.

A spike is above the median of the last ``WINDOW`` good losses by more than ``deviations`` standard deviations. These
are estimated from the median absolute deviation, so a few earlier spikes do not affect the limit. For losses that
hardly vary, the deviation counts as at least ``LEAST_SHARE`` of the median.

The rule depends only on the losses of the run, which are equal on all ranks. So the decision is the same on all ranks
and after a restart.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

WINDOW, LEAST = 64, 16  # good steps to compare with: at most, and at least
LEAST_SHARE = 0.02
_SIGMA = 1.4826  # standard deviations per median absolute deviation, for a normal distribution


@dataclass(frozen=True)
class Verdict:
    """``what`` describes the problem of a step; if ``finite``, it is a spike."""

    what: str
    finite: bool


class Judge:
    """Judges the steps of a run in order; without ``deviations``, only checks that they are finite."""

    def __init__(self, deviations: float | None = None) -> None:
        self.deviations = deviations
        self._accepted: set[int] = set()
        self.restore(0, ())

    def restore(self, step: int, losses: Iterable[float]) -> None:
        """Continue after ``step`` steps with the given last losses."""
        self._step = step
        self._good: deque[float] = deque(losses, maxlen=WINDOW)

    def accept(self, step: int) -> None:
        """Accept any finite loss of ``step``."""
        self._accepted.add(step)

    def look(self, step: int, loss: float, norm: float) -> Verdict | None:
        """The problem of the ``step``-th step, or None; a good step is remembered and not judged again."""
        if step <= self._step:
            return None
        if not math.isfinite(loss) or not math.isfinite(norm):
            return Verdict(f"the loss is {loss} and the gradient norm {norm}", finite=False)
        limit = self._limit()
        if loss > limit and step not in self._accepted:
            return Verdict(f"the loss is {loss:.4g}, above the limit {limit:.4g} from the steps before it", finite=True)
        self._step = step
        self._good.append(loss)
        return None

    def _limit(self) -> float:
        if self.deviations is None or len(self._good) < LEAST:
            return math.inf
        middle = median(self._good)
        deviation = _SIGMA * median(abs(loss - middle) for loss in self._good)
        return middle + self.deviations * max(deviation, LEAST_SHARE * middle)
