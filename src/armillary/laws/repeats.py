"""Before a comparison: the difference that it can find, and the seeds that a difference needs.

The test is that of ``best_of``: arms and seeds are crossed, the residual variance is pooled, and the interval of the
best of several arms is widened by Bonferroni's correction. Its power follows from the noncentral t distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from armillary.laws.estimator import Array, checked_interval
from armillary.recipe import UsageError

POWER = 0.8


@dataclass(frozen=True)
class SeedNoise:
    """Standard deviation between seeds with its 90 % interval, in the units of the losses.

    ``freedom`` is the number of degrees of freedom of the estimate.
    """

    std: float
    low: float
    high: float
    freedom: int

    @classmethod
    def of(cls, groups: Sequence[Array], interval: float = 0.9) -> SeedNoise:
        """The noise of ``groups``: losses [seeds] of each arm, pooled. Arms with one seed do not count.

        Seeds are not paired here, so noise that all arms of a seed share is included, and a paired test is at least as
        sensitive as the noise says.

        Raises:
            UsageError: no arm has two seeds.
        """
        squares = [((group - group.mean()) ** 2).sum() for group in groups if len(group) > 1]
        freedom = sum(len(group) - 1 for group in groups if len(group) > 1)
        if freedom < 1:
            raise UsageError("no arm has two seeds; train one mixture with at least two seeds")
        return cls._of(float(sum(squares)), freedom, interval)

    @classmethod
    def paired(cls, groups: Sequence[Array], interval: float = 0.9) -> SeedNoise:
        """The noise that remains if arms are compared seed by seed, as in ``best_of``: without what all arms share.

        ``groups`` are losses [seeds] of each arm, in the same order of seeds.

        Raises:
            UsageError: fewer than two arms or seeds, or arms of different lengths.
        """
        if len(groups) < 2 or len({len(group) for group in groups}) != 1 or len(groups[0]) < 2:
            raise UsageError("noise between pairs needs at least two arms with the same two or more seeds")
        losses = np.array(groups)
        rest = losses - losses.mean(1, keepdims=True) - losses.mean(0) + losses.mean()
        return cls._of(float((rest**2).sum()), (losses.shape[0] - 1) * (losses.shape[1] - 1), interval)

    @classmethod
    def _of(cls, squares: float, freedom: int, interval: float) -> SeedNoise:
        tail = (1 - checked_interval(interval)) / 2
        low, high = squares / stats.chi2.isf(tail, freedom), squares / stats.chi2.ppf(tail, freedom)
        return cls(float(np.sqrt(squares / freedom)), float(np.sqrt(low)), float(np.sqrt(high)), freedom)


def power(difference: float, noise: float, seeds: int, arms: int, interval: float = 0.9) -> float:
    """The chance that ``best_of`` finds an arm that is better than the reference by ``difference``.

    Args:
        difference: of the expected losses, above 0.
        noise: standard deviation between seeds of one arm, in the same units.
        seeds: of each arm, at least 2.
        arms: with the reference, at least 2; the other arms are as good as the reference.
        interval: of ``best_of``.
    """
    if seeds < 2 or arms < 2:
        raise UsageError(f"{seeds} seeds of {arms} arms cannot be compared; give at least two of each")
    freedom = (arms - 1) * (seeds - 1)
    critical = stats.t.isf((1 - checked_interval(interval)) / 2 / (arms - 1), freedom)
    if noise == 0:
        return 1.0 if difference > 0 else 0.0
    shift = difference / (noise * np.sqrt(2 / seeds))
    return float(stats.nct.sf(critical, freedom, shift))


def detectable(noise: float, seeds: int, arms: int, interval: float = 0.9, chance: float = POWER) -> float:
    """The smallest difference that ``best_of`` finds with this chance; arguments as in ``power``."""
    if noise == 0:
        return 0.0
    high = noise
    while power(high, noise, seeds, arms, interval) < chance:
        high *= 2
    return float(optimize.brentq(lambda size: power(size, noise, seeds, arms, interval) - chance, 0.0, high))


def seeds_needed(
    difference: float, noise: float, arms: int, interval: float = 0.9, chance: float = POWER, most: int = 10_000
) -> int | None:
    """The number of seeds of each arm from which ``best_of`` finds ``difference`` with this chance.

    None if more than ``most`` are needed. The other arguments are as in ``power``.
    """
    if difference <= 0:
        raise UsageError(f"the difference is {difference:g}; give one above 0")
    if power(difference, noise, most, arms, interval) < chance:
        return None
    low, high = 1, 2
    while power(difference, noise, high, arms, interval) < chance:
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, noise, middle, arms, interval) >= chance else (middle, high)
    return high
