"""Shares with Wilson's interval, for counts of verified, accepted or refused items."""

from __future__ import annotations

from scipy import stats

from armillary.evaluate import Interval


def share_interval(count: int, of: int, level: float = 0.95) -> Interval:
    """``count`` out of ``of`` with Wilson's score interval (Wilson 1927), which does not collapse at 0 or ``of``."""
    found = stats.binomtest(count, of).proportion_ci(level, method="wilson")
    return Interval(count / of, min(float(found.low), count / of), max(float(found.high), count / of))
