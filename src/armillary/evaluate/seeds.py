"""Compare two recipes over several seeds each: one interval over seeds and items, and how many of both are needed.

Two seeds of one fine-tuning can differ by several points on the same items. An interval over items alone then holds
for the two models, not for the recipes behind them. Here the mean difference has two sources of noise, which are
estimated separately and added:

- items (or the passages they share): the spread of their differences, each averaged over the seeds;
- seeds: the spread of a seed's mean score within each arm. The part due to single items that flip is subtracted, since
  the first source includes it.

The spread between seeds is pooled over the arms. The degrees of freedom are Satterthwaite's (1946), so that two seeds
per arm give a wide interval rather than a wrong one: a bootstrap over two seeds can never leave the observed ones.

Not covered: other random choices of a recipe (except the data order), and seeds selected by their score.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from armillary.evaluate.intervals import Array, Interval, check_level, cluster_totals, score_table
from armillary.evaluate.paired import Paired
from armillary.recipe import UsageError

# The most seeds per arm that a plan proposes.
MOST_SEEDS = 100
# Assumed without measurements: two seeds of a fine-tuning are then 2 points apart on average, and up to 6.
ASSUMED_STD = 0.015
ASSUMED_APART = 0.15
_MOST_ITEMS = 10_000_000


@dataclass(frozen=True)
class SeedNoise:
    """The contribution of seeds to the noise of a comparison.

    Attributes:
        first, second: number of seeds of each arm.
        std: standard deviation of a seed's mean score, without the part due to single items that flip.
        flips: share of items on which two seeds of one arm differ (for graded scores, the mean squared difference).
        share: part of the variance of the difference that comes from the seeds.
        freedom: degrees of freedom of the interval.
    """

    first: int
    second: int
    std: float
    flips: float
    share: float
    freedom: float


def paired_over_seeds(
    first: ArrayLike,
    second: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    margin: float | None = None,
) -> tuple[Paired, SeedNoise]:
    """Compare two recipes from the scores of several seeds of each on the same items.

    Args:
        first: scores [n, seeds of the first arm].
        second: scores [n, seeds of the second arm], the same items; the numbers of seeds may differ.
        clusters: name of the passage of each item [n]; None: items are independent.
        level: confidence level of the interval.
        margin: the largest difference that does not matter.

    Raises:
        UsageError: different items, scores that are not finite, one seed in each arm (use ``paired``), or one item.
    """
    check_level(level)
    if margin is not None and not 0 < margin < np.inf:
        raise UsageError(f"the margin is {margin:g}; give the largest difference that does not matter, such as 0.01")
    arms = [score_table(f"scores of the {name} arm", given) for name, given in (("first", first), ("second", second))]
    counts = [arm.shape[1] for arm in arms]
    if len(arms[0]) != len(arms[1]):
        raise UsageError(f"the first arm has {len(arms[0])} items and the second {len(arms[1])}; give the same items")
    if max(counts) < 2:
        raise UsageError("each arm has one seed; the noise between seeds needs two or more in one of them")
    gap = arms[1].mean(axis=1) - arms[0].mean(axis=1)
    totals, sizes = cluster_totals(gap[:, None], clusters)
    if len(sizes) < 2:
        raise UsageError("all items share one passage; the spread between passages needs at least two")
    value, items, freedom_of_items = float(gap.mean()), len(gap), len(sizes) - 1
    residuals = totals[:, 0] - value * sizes
    of_items = float((residuals**2).sum()) * len(sizes) / freedom_of_items / items**2
    seeds = _Seeds(arms, clusters)
    weight = sum(1 / count for count in counts)
    of_seeds = weight * max(0.0, seeds.variance - seeds.flipped)
    # The seeds' part is a difference. It is as uncertain as the variance before subtraction, even if it is cut at 0.
    doubt = of_items**2 / freedom_of_items + (weight * seeds.variance) ** 2 / seeds.freedom
    variance = of_items + of_seeds
    freedom = variance**2 / doubt if doubt > 0 else float(freedom_of_items)
    error = math.sqrt(variance)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    reach = max(1.0, float(np.abs(gap).max()))
    equivalence_p = None
    if margin is not None:
        equivalence_p = max(_tail(value + margin, error, freedom), _tail(margin - value, error, freedom))
    compared = Paired(
        difference=Interval(value, max(-reach, value - half), min(reach, value + half)),
        p_value=min(1.0, 2 * _tail(abs(value), error, freedom)),
        test="mixed-model-t",
        better=int((gap > 0).sum()),
        worse=int((gap < 0).sum()),
        items=items,
        clusters=len(sizes),
        equivalent=None if equivalence_p is None else equivalence_p < 1 - level,
        equivalence_p=equivalence_p,
    )
    std = math.sqrt(of_seeds / weight)
    share = of_seeds / variance if variance > 0 else 0.0
    return compared, SeedNoise(counts[0], counts[1], std, seeds.flips, share, freedom)


def noise_of_seeds(scores: ArrayLike) -> tuple[float, float]:
    """``std`` and ``flips`` of ``SeedNoise`` from scores [n, seeds] of one recipe.

    Raises:
        UsageError: fewer than two seeds, or scores that are not finite.
    """
    arm = score_table("scores", scores)
    if arm.shape[1] < 2:
        raise UsageError("a single seed has no spread; give two or more seeds of one recipe")
    seeds = _Seeds([arm], None)
    return math.sqrt(max(0.0, seeds.variance - seeds.flipped)), seeds.flips


class _Seeds:
    """The spread between seeds, pooled over arms.

    ``variance``: variance of a seed's mean score; ``flipped``: its part due to independent flips of items; ``flips``:
    mean squared difference of two seeds on an item; ``freedom``: degrees of freedom.
    """

    def __init__(self, arms: Sequence[Array], clusters: Sequence[Hashable] | None) -> None:
        several = [arm for arm in arms if arm.shape[1] > 1]
        self.freedom = sum(arm.shape[1] - 1 for arm in several)
        self.variance = self.flipped = self.flips = 0.0
        for arm in several:
            part = (arm.shape[1] - 1) / self.freedom
            totals, _ = cluster_totals(arm - arm.mean(axis=0), clusters)
            self.variance += part * float(arm.mean(axis=0).var(ddof=1))
            self.flipped += part * float(totals.var(axis=1, ddof=1).sum()) / len(arm) ** 2
            self.flips += part * 2 * float(arm.var(axis=1, ddof=1).mean())


def _tail(distance: float, error: float, freedom: float) -> float:
    """P(t >= distance / error)."""
    if error == 0:
        return 0.0 if distance > 0 else 1.0
    return float(stats.t.sf(distance / error, freedom))


@dataclass(frozen=True)
class Noise:
    """Assumptions about a comparison before it is made.

    Attributes:
        difference: the difference to detect, as a share.
        discordant: share of items on which a run of one recipe and a run of the other differ.
        seed_std: standard deviation of a seed's score without item flips, as ``noise_of_seeds`` estimates it.
        flips: share of items on which two seeds of one recipe differ. This part of ``discordant`` averages out over
            seeds; 0 is the conservative choice.
    """

    difference: float
    discordant: float
    seed_std: float
    flips: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.difference <= 1:
            raise UsageError(f"the difference is {self.difference:g}; give a share above 0, such as 0.02")
        if not self.difference <= self.discordant <= 1:
            raise UsageError(
                f"the discordant share is {self.discordant:g}; a difference of {self.difference:g} needs a share "
                "between it and 1"
            )
        if not 0 <= self.seed_std < 1:
            raise UsageError(f"seed_std is {self.seed_std:g}; give the standard deviation of a score, such as 0.01")
        if not 0 <= self.flips <= 1:
            raise UsageError(f"flips is {self.flips:g}; give the share of items on which two seeds differ")


def items_needed_over_seeds(noise: Noise, seeds: int, power: float = 0.8, level: float = 0.95) -> float:
    """Items needed to compare two recipes of ``seeds`` runs each; infinite if no number of items makes up for the
    seeds.

    Raises:
        UsageError: fewer than two seeds, a power or level out of its range.
    """
    check_level(level)
    if not 0.5 <= power < 1:
        raise UsageError(f"power is {power:g}; give a probability from 0.5 to below 1, such as 0.8")
    if seeds < 2:
        raise UsageError(f"{seeds} seeds per arm; estimating their noise needs two or more")
    if _power(noise, seeds, _MOST_ITEMS, level) < power:
        return math.inf
    low, high = 1, _MOST_ITEMS
    while low < high:
        middle = (low + high) // 2
        if _power(noise, seeds, middle, level) >= power:
            high = middle
        else:
            low = middle + 1
    return low


def seeds_needed(noise: Noise, items: int, power: float = 0.8, level: float = 0.95) -> float:
    """Seeds of each recipe needed with ``items``; infinite if ``MOST_SEEDS`` are too few.

    Raises:
        UsageError: fewer than two items, a power or level out of its range.
    """
    check_level(level)
    if items < 2:
        raise UsageError(f"{items} items; give at least 2")
    for seeds in range(2, MOST_SEEDS + 1):
        if items_needed_over_seeds(noise, seeds, power, level) <= items:
            return seeds
    return math.inf


def _power(noise: Noise, seeds: int, items: int, level: float) -> float:
    """Chance to detect the difference: noncentral t distribution with the degrees of freedom of the interval."""
    of_seeds = 2 * noise.seed_std**2 / seeds
    flips = min(noise.flips, noise.discordant)
    apart = max(noise.discordant - flips * (1 - 1 / seeds) - noise.difference**2, 1e-12)
    of_items = apart / items
    variance = of_seeds + of_items
    freedom = variance**2 / (of_items**2 / max(1, items - 1) + of_seeds**2 / (2 * (seeds - 1)))
    bound = float(stats.t.ppf((1 + level) / 2, freedom))
    return float(stats.nct.sf(bound, freedom, noise.difference / math.sqrt(variance)))


@dataclass(frozen=True)
class ComparisonPlan:
    """The question to ``plan_comparison``: fields as in ``Noise``, None for values to measure or assume.

    ``items`` is the number of items available, ``power`` the required chance to detect the difference.
    """

    difference: float
    discordant: float | None = None
    seed_std: float | None = None
    items: int | None = None
    power: float = 0.8


def plan_comparison(asked: ComparisonPlan, scores: ArrayLike | None = None) -> dict[str, Any]:
    """Items needed with 2, 3, 4, 5, 8 and 12 seeds per recipe, and the seeds needed with ``items``.

    Args:
        asked: the known values.
        scores: scores of several seeds of one recipe [n, seeds], to estimate the noise from; None assumes it.

    Returns:
        ``rows`` of ``seeds`` and ``items`` (None: no number is enough), ``seeds`` (None: likewise, or not asked), and
        the noise with its origin (``from``).

    Raises:
        UsageError: values out of range, or a single seed.
    """
    std, flips = noise_of_seeds(scores) if scores is not None else (ASSUMED_STD, 0.0)
    discordant = asked.discordant
    if discordant is None:  # two recipes differ on the items that seeds flip and on those gained
        discordant = min(1.0, max(asked.difference, flips + asked.difference if scores is not None else ASSUMED_APART))
    noise = Noise(asked.difference, discordant, std if asked.seed_std is None else asked.seed_std, flips)
    rows = []
    for seeds in (2, 3, 4, 5, 8, 12):
        items = items_needed_over_seeds(noise, seeds, asked.power)
        rows.append({"seeds": seeds, "items": None if math.isinf(items) else int(items)})
    needed = math.inf if asked.items is None else seeds_needed(noise, asked.items, asked.power)
    return {
        **asdict(noise),
        "power": asked.power,
        "from": "given or assumed" if scores is None else "measured on the seeds, where not given",
        "rows": rows,
        "seeds": None if math.isinf(needed) else int(needed),
    }
