"""Chooses the next run: the one that reduces a law's uncertainty at the target most.

The posterior of each form is taken as normal around its fit (its precision matrix), and a run adds the outer product of
its slope to that matrix, divided by the variance of a run. The error of the form is computed at the target's distance
from the largest runs *including the new one*, so a larger run reduces it. The noise of the target run stays.

Trade-off: the computation is linearised, so that hundreds of candidates take a second. Candidates are assumed to reach
their predicted losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from armillary.laws.estimator import Array, checked_interval, checked_positive
from armillary.laws.scaling.law import ScalingLaw
from armillary.recipe import UsageError

# Number of sizes and of token counts to try without given candidates.
GRID = 12


@dataclass(frozen=True)
class NextRun:
    """A candidate run.

    Attributes:
        features: its sizes, by the law's features and in their order.
        flops: its cost, 6 N D.
        width_before: expected width of the interval at the target without this run, relative to the target's loss (mean
            over several corpora and targets).
        width_after: the same width with this run.
    """

    features: dict[str, float]
    flops: float
    width_before: float
    width_after: float


def next_runs(
    law: ScalingLaw,
    target: ArrayLike,
    candidates: ArrayLike | None = None,
    *,
    budget_flops: float | None = None,
    interval: float = 0.9,
) -> list[NextRun]:
    """Runs sorted by how narrow they would make the interval at ``target``, the best first.

    Args:
        law: fitted.
        target: [m, k] or [k] features of the runs to be predicted.
        candidates: [c, k] features of candidate runs. By default a grid over N and D from the ladder's centre to the
            target, which needs ``budget_flops``, with other features as in the farthest target.
        budget_flops: runs that cost more than this (6 N D) are left out.
        interval: probability that the interval covers.

    Raises:
        UsageError: a law that is not fitted, a table as ``ScalingLaw.predict`` refuses it, neither candidates nor a
            budget, or no candidate within the budget.
    """
    tail = (1 - checked_interval(interval)) / 2
    at = law.log_sizes("target", np.atleast_2d(np.asarray(target, dtype=float)))
    if candidates is None and budget_flops is None:
        raise UsageError("next_runs needs candidates or budget_flops")
    runs = law.log_sizes("candidates", candidates) if candidates is not None else _grid(law, at)
    cost = 6 * np.exp(runs[:, law.size_columns_].sum(1))
    if budget_flops is not None:
        limit = checked_positive("budget_flops", [[budget_flops]])[0, 0]
        runs, cost = runs[cost <= limit * (1 + 1e-9)], cost[cost <= limit * (1 + 1e-9)]
        if not len(runs):
            raise UsageError(f"no candidate costs at most {limit:.3g} FLOPs; raise budget_flops or give smaller runs")
    factor = 2 * stats.norm.isf(tail)
    before = factor * np.sqrt(law.variance_after(at, None)).mean()
    after = [factor * np.sqrt(law.variance_after(at, run)).mean() for run in runs]
    return [
        NextRun(
            dict(zip(law.features_, (float(v) for v in np.exp(runs[i])), strict=True)), float(cost[i]), before, after[i]
        )
        for i in np.lexsort((cost, after))
    ]


def _grid(law: ScalingLaw, at: Array) -> Array:
    """Log features [c, k] of runs between the centre of the ladder and the farthest target in N and D."""
    fitted = law.log_points_
    low, high = fitted.mean(0), np.maximum(at.max(0), fitted.max(0))
    first, second = law.size_columns_
    # Other features are as in the farthest target, scaled with the size where needed: total parameters are at least the
    # active ones, and tokens at least the unique ones.
    grid = np.tile(at[at[:, law.size_columns_].sum(1).argmax()], (GRID * GRID, 1))
    sizes = np.meshgrid(np.linspace(low[first], high[first], GRID), np.linspace(low[second], high[second], GRID))
    for column, name in enumerate(law.features_):
        if name == "total_params":
            grid[:, column] += sizes[0].ravel() - grid[:, first]
        if name == "unique_tokens":
            grid[:, column] = np.minimum(grid[:, column], sizes[1].ravel())
    grid[:, first], grid[:, second] = sizes[0].ravel(), sizes[1].ravel()
    return grid
