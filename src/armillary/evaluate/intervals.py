"""Intervals of mean scores: a Bayesian bootstrap over items, over the passages they share, and over prompt variants.

A plain bootstrap of 20 right answers out of 20 returns 20 of 20 every time: a point, not an interval. Here each draw
weights the clusters by a Dirichlet distribution (Rubin 1981, "The Bayesian bootstrap") and adds half a pseudo-item at
each bound of the score. For independent 0-1 scores this is exactly Jeffreys' interval, Beta(k + 1/2, n - k + 1/2)
(Brown, Cai and DasGupta 2001, "Interval estimation for a binomial proportion", section 4.3). It is computed in closed
form and does not collapse at 0 of n or n of n.

The variance of clustered and graded scores must be estimated from K clusters. A weight of 1 per cluster would estimate
the variance of the mean as s²/K with the divisor K in s². The concentration (K - 2)/K gives the unbiased estimate,
s²/(K - 1). tests/evaluate/test_intervals.py measures the coverage on simulated items.

Prompt variants are crossed with the items, and there are only two to ten of them. Each draw weights the items, which
gives one mean per variant. It then shifts the mean over variants by Student's t with their spread. Weighting the
variants instead could not leave the observed range, and covers 82 % instead of 95 % with two variants.

Not covered: dependence between passages, and items chosen by looking at the scores.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from armillary.recipe import UsageError

Array = NDArray[np.float64]

# Draws of a bootstrap: the ends of a 95 % interval then wander by about 2 % of its width between seeds.
DRAWS = 4000
# Weights of one block of draws, in numbers: 32 MiB.
_BLOCK = 4_000_000
# For two clusters the unbiased concentration is 0; this one spreads the draws from one cluster to the other.
LEAST_CONCENTRATION = 0.1


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval: ``low <= value <= high``."""

    value: float
    low: float
    high: float


def mean_interval(
    scores: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Interval:
    """Mean score with its interval.

    Args:
        scores: one score per item [n], or one row per item and one column per prompt variant [n, variants].
        clusters: name of the passage of each item [n]; items with the same name share it. None: items are independent.
        level: probability that the interval covers the mean over all such items (and variants).
        bounds: the lowest and highest possible score of an item.
        seed: seed of the draws. The same input and seed give the same digits.

    Raises:
        UsageError: no scores, a score that is not finite or out of ``bounds``, ``clusters`` of a different length, or a
            level outside (0, 1).
    """
    check_level(level)
    table = score_table("scores", scores)
    low, high = bounds
    if not low < high:
        raise UsageError(f"bounds are {low:g} to {high:g}; the lowest score must be below the highest")
    outside = (table < low) | (table > high)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise UsageError(
            f"score {table[row, column]:g} of item {row} is outside {low:g} to {high:g}; pass the bounds of this metric"
        )
    totals, sizes = cluster_totals(table, clusters)
    value = float(table.mean())
    tails = ((1 - level) / 2, (1 + level) / 2)
    if len(sizes) == table.size and np.isin(table, (low, high)).all():
        top = float((table == high).sum())
        ends = stats.beta.ppf(tails, top + 0.5, table.size - top + 0.5) * (high - low) + low
    else:
        ends = np.quantile(draw_means(totals, sizes, bounds, seed), tails)
    return Interval(value, min(value, float(ends[0])), max(value, float(ends[1])))


def check_level(level: float) -> None:
    """Raises UsageError unless ``level`` is a probability between 0 and 1."""
    if not 0 < level < 1:
        raise UsageError(f"level is {level:g}; give a probability between 0 and 1, such as 0.95")


def score_table(name: str, scores: ArrayLike) -> Array:
    """``scores`` [n] or [n, variants] as [n, variants] with at least one number.

    Raises:
        UsageError: a wrong number of dimensions, no scores, or a score that is not finite.
    """
    try:
        table = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} are not a table of numbers: {error}") from None
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or table.size == 0:
        raise UsageError(f"{name} have shape {table.shape}; give one score per item, or items x prompt variants")
    if not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise UsageError(f"{name}: item {row} has the score {table[row, column]}; every score must be finite")
    return table


def cluster_totals(table: Array, clusters: Sequence[Hashable] | None) -> tuple[Array, Array]:
    """Sums of ``table`` [n, variants] over clusters [K, variants], and the number of items in each [K].

    Raises:
        UsageError: the lengths of ``clusters`` and the table differ.
    """
    if clusters is None:
        return table, np.ones(len(table))
    if len(clusters) != len(table):
        raise UsageError(f"{len(clusters)} clusters for {len(table)} items; give one cluster per item")
    places: dict[Hashable, int] = {}
    where = np.array([places.setdefault(cluster, len(places)) for cluster in clusters])
    totals = np.zeros((len(places), table.shape[1]))
    np.add.at(totals, where, table)
    return totals, np.bincount(where).astype(np.float64)


def draw_means(totals: Array, sizes: Array, bounds: tuple[float, float], seed: int) -> Array:
    """Draws [DRAWS] of the mean score under random weights of clusters and a random shift between variants.

    Args:
        totals: sum of the scores of each cluster, per variant [K, variants].
        sizes: items of each cluster [K].
        bounds: the lowest and highest score of an item.
        seed: seed of the draws.
    """
    rng = np.random.default_rng(seed)
    # Clusters of equal content share one Dirichlet weight with the sum of their concentrations: 14,000 items of a
    # graded metric with 11 values need only 11 weights per draw.
    kinds, counts = np.unique(np.column_stack([totals, sizes]), axis=0, return_counts=True)
    concentration = max((len(sizes) - 2) / len(sizes), LEAST_CONCENTRATION)
    size = float(sizes.mean())
    pseudo = np.full((2, totals.shape[1]), size) * np.array(bounds)[:, None]
    sums = np.concatenate([kinds[:, :-1], pseudo])
    items = np.concatenate([kinds[:, -1], [size, size]])
    shape = np.concatenate([counts * concentration, [0.5, 0.5]])
    variants = totals.shape[1]
    result = np.empty(DRAWS)
    step = max(1, _BLOCK // len(shape))
    for start in range(0, DRAWS, step):
        rows = min(step, DRAWS - start)
        weights = rng.standard_gamma(shape, (rows, len(shape)))
        means = (weights @ sums) / (weights @ items)[:, None]
        result[start : start + rows] = means.mean(axis=1)
        if variants > 1:
            error = means.std(axis=1, ddof=1) / np.sqrt(variants)
            result[start : start + rows] += error * rng.standard_t(variants - 1, rows)
    return np.clip(result, *bounds)
