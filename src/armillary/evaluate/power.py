"""How many items a comparison needs to detect a difference, and which difference a number of items can detect.

All counts are for a two-sided test of two models at a given power (the chance to detect a real difference). Items that
share a passage count less: multiply by ``design_effect``.

Sources: for pairs Connor (1987), "Sample size for testing differences in proportions for the paired-sample design",
equation 2; unpaired Fleiss, Levin and Paik (2003), "Statistical Methods for Rates and Proportions", equation 4.14
without the correction for continuity; design effect Kish (1965).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from armillary.evaluate.intervals import check_level, cluster_totals, score_table
from armillary.recipe import UsageError


def items_needed(difference: float, discordant: float, power: float = 0.8, level: float = 0.95) -> int:
    """Items needed to detect ``difference`` in the mean 0-1 score of two models, compared in pairs.

    Args:
        difference: difference of the two accuracies, such as 0.01 for one point.
        discordant: share of items that only one model answers correctly; at least ``difference``. Two checkpoints of
            one run differ on 5 % to 15 % of items. Two unrelated models of accuracy p differ on 2 p (1 - p) if their
            errors are independent.
        power: the chance to detect it.
        level: 1 minus the chance of a false alarm.

    Raises:
        UsageError: a difference, share, power or level out of its range.
    """
    _check(difference, power, level)
    if not difference <= discordant <= 1:
        raise UsageError(
            f"the discordant share is {discordant:g}; a difference of {difference:g} needs a share between it and 1"
        )
    alarm, found = _quantiles(power, level)
    root = alarm * math.sqrt(discordant) + found * math.sqrt(max(0.0, discordant - difference**2))
    return math.ceil((root / difference) ** 2 - 1e-9)


def items_needed_unpaired(difference: float, score: float, power: float = 0.8, level: float = 0.95) -> int:
    """Items needed per model if each model answers different items; ``score`` is the lower accuracy.

    Raises:
        UsageError: a difference, score, power or level out of its range.
    """
    _check(difference, power, level)
    if not 0 <= score <= 1 - difference:
        raise UsageError(f"scores {score:g} and {score + difference:g} must both lie between 0 and 1")
    alarm, found = _quantiles(power, level)
    upper, middle = score + difference, score + difference / 2
    apart = score * (1 - score) + upper * (1 - upper)
    root = alarm * math.sqrt(2 * middle * (1 - middle)) + found * math.sqrt(apart)
    return math.ceil((root / difference) ** 2 - 1e-9)


def difference_seen(items: int, discordant: float, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest difference that ``items`` compared in pairs detect; infinite if they detect none.

    Raises:
        UsageError: fewer than one item, or a share, power or level out of its range.
    """
    _check(0.5, power, level)
    if items < 1:
        raise UsageError(f"{items} items; give at least 1")
    if not 0 < discordant <= 1:
        raise UsageError(f"the discordant share is {discordant:g}; it must be above 0 and at most 1")
    alarm, found = _quantiles(power, level)

    def excess(difference: float) -> float:
        root = alarm * math.sqrt(discordant) + found * math.sqrt(max(0.0, discordant - difference**2))
        return root - difference * math.sqrt(items)

    if excess(discordant) > 0:
        return math.inf
    return float(optimize.brentq(excess, 0.0, discordant))


def design_effect(scores: ArrayLike, clusters: Sequence[Hashable]) -> float:
    """The variance of the mean over passages, divided by that over items: clustered items per independent item.

    It is 1 if passages do not matter, and the size of the passages if the items of each are all alike. For pairs, pass
    the differences. It is also 1 if all scores are equal, since then it cannot be estimated.

    Raises:
        UsageError: no scores, a score that is not finite, ``clusters`` of a different length, or a single cluster.
    """
    table = score_table("scores", scores).mean(axis=1)[:, None]
    totals, sizes = cluster_totals(table, clusters)
    if len(sizes) < 2:
        raise UsageError("all items share one passage; the spread between passages needs at least two")
    count = float(len(table))
    independent = float(table.var(ddof=1)) / count
    if independent == 0:
        return 1.0
    # Linearised variance of a ratio of sums (Cochran 1977, equation 6.4).
    residuals = totals[:, 0] - table.mean() * sizes
    between = float(np.sum(residuals**2)) * len(sizes) / (len(sizes) - 1) / count**2
    return between / independent


def _quantiles(power: float, level: float) -> tuple[float, float]:
    return float(stats.norm.ppf((1 + level) / 2)), float(stats.norm.ppf(power))


def _check(difference: float, power: float, level: float) -> None:
    check_level(level)
    if not 0 < difference <= 1:
        raise UsageError(f"the difference is {difference:g}; give a share above 0 and at most 1, such as 0.01")
    if not 0.5 <= power < 1:
        raise UsageError(f"power is {power:g}; give a probability from 0.5 to below 1, such as 0.8")
