"""Two models on the same items: the difference with its interval, a paired test, equivalence, and the flipped items.

Most items are easy for both models or hard for both. An unpaired test counts their spread as noise; a paired test looks
only at the items on which the models differ. For 63 and 48 right of 164, the unpaired test gives p = 0.080. If 22 items
flipped one way and 7 the other, the paired test gives p = 0.008.

The test flips signs: if the models are equal, both signs of a cluster's difference are equally likely. For independent
0-1 scores this is McNemar's exact test (a sign test on the discordant items). For whole-numbered differences, the
distribution of the sum is computed exactly. For others, sign flips are enumerated up to 14 clusters and sampled beyond.

The interval is the Bayesian bootstrap of ``intervals``, with half a pseudo-item in favour of each model. Test and
interval are separate methods and can disagree when p is close to 1 - level: the interval may include 0 although p is
below, or the reverse.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from armillary.evaluate.intervals import Array, Interval, check_level, cluster_totals, draw_means, score_table
from armillary.recipe import UsageError

# Sign flips drawn if there are too many to enumerate; the smallest p-value is then 1 / (this + 1).
FLIPS = 20_000
_ENUMERATED = 14
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Paired:
    """Two models on the same items, as second minus first.

    Attributes:
        difference: mean of second minus first, with its interval.
        p_value: two-sided, of the paired sign-flip test (``test`` names the form used).
        test: ``mcnemar-exact``, ``sign-flip-exact`` or ``sign-flip-sampled``.
        better: items on which the second model scored higher.
        worse: items on which it scored lower.
        items: number of items.
        clusters: number of independent passages.
        equivalent: whether the difference is within the margin by two one-sided tests, each at (1 - level) (Schuirmann
            1987); None without a margin.
        equivalence_p: the larger p-value of these two tests; None without a margin.
    """

    difference: Interval
    p_value: float
    test: str
    better: int
    worse: int
    items: int
    clusters: int
    equivalent: bool | None
    equivalence_p: float | None


@dataclass(frozen=True)
class Flip:
    """An item on which two models score differently."""

    id: str
    first: float
    second: float


def paired(
    first: ArrayLike,
    second: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    margin: float | None = None,
) -> Paired:
    """Compare ``second`` with ``first`` on the same items.

    Args:
        first: scores [n], or [n, variants] with the same prompt variants in both; a variant is then part of the item.
        second: as ``first``, the same items in the same order.
        clusters: name of the passage of each item [n]; None: items are independent.
        level: confidence level of the interval of the difference.
        margin: the largest difference that does not matter, in units of the score, such as 0.01.

    Raises:
        UsageError: different shapes, a score that is not finite, ``clusters`` of a different length, or a margin that
            is not above 0.
    """
    check_level(level)
    if margin is not None and not 0 < margin < np.inf:
        raise UsageError(f"the margin is {margin:g}; give the largest difference that does not matter, such as 0.01")
    a, b = score_table("scores of the first model", first), score_table("scores of the second model", second)
    if a.shape != b.shape:
        raise UsageError(f"the first model has scores {a.shape} and the second {b.shape}; give the same items in both")
    gap = (b - a).mean(axis=1)
    totals, sizes = cluster_totals(gap[:, None], clusters)
    value = float(gap.mean())
    # Scores outside 0 to 1 (a judge's 1 to 10) widen the bounds to the observed range.
    reach = max(1.0, float(np.abs(gap).max()))
    draws = draw_means(totals, sizes, (-reach, reach), seed=0)
    low, high = np.quantile(draws, ((1 - level) / 2, (1 + level) / 2))
    # Multiplied by the number of variants, 0-1 scores are whole numbers again, and their sum is exact.
    test, p_value = sign_flip_test(totals[:, 0] * a.shape[1])
    equivalence_p = None
    if margin is not None:
        equivalence_p = float(max(np.mean(draws <= -margin), np.mean(draws >= margin)))
    return Paired(
        difference=Interval(value, min(value, float(low)), max(value, float(high))),
        p_value=p_value,
        test=test,
        better=int((gap > 0).sum()),
        worse=int((gap < 0).sum()),
        items=len(gap),
        clusters=len(sizes),
        equivalent=None if equivalence_p is None else equivalence_p < 1 - level,
        equivalence_p=equivalence_p,
    )


def sign_flip_test(differences: Array) -> tuple[str, float]:
    """The form of the test, and the two-sided p-value of the sum of ``differences`` [K] under random signs."""
    sizes = np.abs(differences[differences != 0])
    observed = abs(float(differences.sum()))
    if len(sizes) == 0:
        return "mcnemar-exact", 1.0
    if (sizes == sizes[0]).all():
        fewer = int(min((differences > 0).sum(), (differences < 0).sum()))
        return "mcnemar-exact", float(stats.binomtest(fewer, len(sizes)).pvalue)
    whole = np.round(sizes)
    if np.allclose(sizes, whole, rtol=0, atol=1e-9):
        return "sign-flip-exact", _exact(whole.astype(int), round(observed))
    # A sum counts as equal to the observed one if only rounding separates them.
    threshold = observed - 1e-9 * float(sizes.sum())
    if len(sizes) <= _ENUMERATED:
        signs = 1.0 - 2 * ((np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes))) & 1)
        return "sign-flip-exact", float(np.mean(np.abs(signs @ sizes) >= threshold))
    rng = np.random.default_rng(0)
    farther, step = 0, max(1, _BLOCK // len(sizes))
    for start in range(0, FLIPS, step):
        signs = rng.integers(0, 2, (min(step, FLIPS - start), len(sizes)), dtype=np.int8) * 2.0 - 1.0
        farther += int((np.abs(signs @ sizes) >= threshold).sum())
    return "sign-flip-sampled", (farther + 1) / (FLIPS + 1)


def _exact(sizes: Array, observed: int) -> float:
    """P(|sum of +-sizes| >= observed) for whole ``sizes``; builds the distribution one cluster at a time."""
    total = int(sizes.sum())
    # chance[k]: probability that the clusters with a plus sign sum to k; the signed sum is then 2 k - total.
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    for size in sizes:
        moved = np.zeros_like(chance)
        moved[size:] = chance[: total + 1 - size]
        chance = (chance + moved) / 2
    sums = np.abs(2 * np.arange(total + 1) - total)
    return float(min(1.0, chance[sums >= observed].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values [m] in the given order, which bound the chance of any false alarm among all m (Holm 1979).

    Raises:
        UsageError: a value outside 0 to 1.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise UsageError(f"p-values must be between 0 and 1, not {', '.join(f'{value:g}' for value in values)}")
    order = np.argsort(values, kind="stable")
    raised = np.maximum.accumulate(values[order] * (len(values) - np.arange(len(values))))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(raised, 1.0)
    return [float(value) for value in adjusted]


def flipped(first: Mapping[str, float], second: Mapping[str, float]) -> list[Flip]:
    """The items of both mappings (id to score) whose scores differ, the largest losses of the second model first."""
    flips = [Flip(id, first[id], second[id]) for id in first.keys() & second.keys() if first[id] != second[id]]
    return sorted(flips, key=lambda flip: (flip.second - flip.first, flip.id))
