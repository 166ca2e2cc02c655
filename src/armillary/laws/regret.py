"""Regret: what a choice among measured options costs against the best of them in hindsight.

The lowest of several noisy means is too low, so the difference to it overstates the regret. The expected losses of the
options are therefore drawn from a posterior in which they scatter around a common mean by an unknown amount (random
effects). The residual variance is that of ``best_of``: options and seeds are crossed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from armillary.laws.estimator import Prediction, checked_interval
from armillary.recipe import UsageError

_DRAWS = 4000
# The scatter of the options in units of the error of a mean: a grid with a flat prior.
_GRID = np.geomspace(1e-3, 100.0, 80)


def regret_of(groups: Mapping[str, Sequence[float]], chosen: str, interval: float = 0.9, seed: int = 0) -> Prediction:
    """The expected loss of ``chosen`` minus the lowest expected loss of all options, with its interval; scalars.

    Args:
        groups: losses of each option, one per seed in the same order; at least two options and two seeds.
        chosen: the name of the chosen option.
        interval: probability of the interval between equal tails.
        seed: of the draws.

    Raises:
        UsageError: too few options or seeds, rows of different lengths, or an unknown option.
    """
    checked_interval(interval)
    lengths = {len(values) for values in groups.values()}
    if len(groups) < 2 or len(lengths) != 1 or min(lengths) < 2:
        raise UsageError("a regret needs at least two options with the same two or more seeds each")
    if chosen not in groups:
        raise UsageError(f"no option '{chosen}' among {', '.join(groups)}")
    losses = np.array(list(groups.values()), dtype=float)
    means, (n, seeds) = losses.mean(1), losses.shape
    rest = losses - means[:, None] - losses.mean(0) + losses.mean()
    freedom = (n - 1) * (seeds - 1)
    error = float((rest**2).sum()) / freedom / seeds  # variance of a mean
    at = list(groups).index(chosen)
    offsets = means - means.mean()
    if error == 0:
        regret = np.full(_DRAWS, means[at] - means.min())
    else:
        rng = np.random.default_rng(seed)
        scatter = _GRID * np.sqrt(error)
        likelihood = -(n - 1) / 2 * np.log(scatter**2 + error) - (offsets**2).sum() / 2 / (scatter**2 + error)
        weight = np.exp(likelihood - likelihood.max()) * np.gradient(scatter)
        between = rng.choice(scatter, _DRAWS, p=weight / weight.sum()) ** 2
        within = freedom * error / rng.chisquare(freedom, _DRAWS)
        kept = between / (between + within)
        drawn = kept[:, None] * offsets + np.sqrt(kept * within)[:, None] * rng.normal(size=(_DRAWS, n))
        regret = drawn[:, at] - drawn.min(1)
    low, high = np.quantile(regret, [(1 - interval) / 2, (1 + interval) / 2])
    return Prediction(np.asarray(regret.mean()), np.asarray(low), np.asarray(high))
