"""Whether a step may be taken: its loss and gradient norm are finite, and the loss is no spike.

A spike lies above the median of the last ``WINDOW`` good losses by more than ``deviations`` standard deviations, which
are estimated from the median absolute deviation: the spike itself, and a few others before it, move neither. Losses
that hardly vary are taken to vary by ``LEAST_SHARE`` of the median.

The rule depends on the losses of the run alone, and all ranks have the same ones. So it decides the same on all ranks,
and again after a restart.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

WINDOW, LEAST = 64, 16  # good steps that are compared with, and how many there must be
LEAST_SHARE = 0.02
_SIGMA = 1.4826  # standard deviations of a normal distribution in a median absolute deviation


@dataclass(frozen=True)
class Verdict:
    """``what`` is wrong with a step, in words; ``finite``: it is a spike."""

    what: str
    finite: bool


class Judge:
    """Judges the steps of a run, in order; without ``deviations`` only whether they are finite."""

    def __init__(self, deviations: float | None = None) -> None:
        self.deviations = deviations
        self._accepted: set[int] = set()
        self.restore(0, ())

    def restore(self, step: int, losses: Iterable[float]) -> None:
        """Continue after ``step`` steps, whose last losses are given."""
        self._step = step
        self._good: deque[float] = deque(losses, maxlen=WINDOW)

    def accept(self, step: int) -> None:
        """Call no finite loss of ``step`` a spike."""
        self._accepted.add(step)

    def look(self, step: int, loss: float, norm: float) -> Verdict | None:
        """What is wrong with the ``step``-th step; a good one is remembered, and not judged again."""
        if step <= self._step:
            return None
        if not math.isfinite(loss) or not math.isfinite(norm):
            return Verdict(f"the loss is {loss} and the gradient norm {norm}", finite=False)
        limit = self._limit()
        if loss > limit and step not in self._accepted:
            return Verdict(f"the loss is {loss:.4g}, and the steps before it allow {limit:.4g}", finite=True)
        self._step = step
        self._good.append(loss)
        return None

    def _limit(self) -> float:
        if self.deviations is None or len(self._good) < LEAST:
            return math.inf
        middle = median(self._good)
        deviation = _SIGMA * median(abs(loss - middle) for loss in self._good)
        return middle + self.deviations * max(deviation, LEAST_SHARE * middle)
