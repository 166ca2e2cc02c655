"""Means, paired differences and the choice among groups, from few repeats.

Usually only two or three seeds are affordable. So all functions use Student's t, pair results of equal seeds, and pool
the variance over groups. Trade-off: pooling assumes similar noise in all groups. This holds for runs of one size but
not between sizes, so compare only groups of one size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from armillary.laws.estimator import Array, Prediction, checked_interval
from armillary.recipe import UsageError, counted


def mean_interval(samples: ArrayLike, interval: float = 0.9) -> Prediction:
    """Mean of ``samples`` [n] (n >= 2) with Student's t interval for it; scalars.

    Raises:
        UsageError: fewer than two samples, or one that is not finite.
    """
    return _student(_samples("samples", samples), checked_interval(interval))


def paired_difference(a: ArrayLike, b: ArrayLike, interval: float = 0.9) -> Prediction:
    """Mean of ``a - b`` over pairs ([n] each, n >= 2, in the same order of seeds) with Student's t interval; scalars.

    Raises:
        UsageError: different lengths, fewer than two pairs, or a value that is not finite.
    """
    first, second = _samples("a", a), _samples("b", b)
    if len(first) != len(second):
        raise UsageError(
            f"a has {counted(len(first), 'sample')} and b has {len(second)}; pairs need the same seeds in both"
        )
    return _student(first - second, checked_interval(interval))


@dataclass(frozen=True)
class Choice:
    """The chosen group, and the comparison behind the choice.

    Attributes:
        name: the chosen group: ``best`` if it is significantly better, else the reference. best: the group with the
        lowest mean, without the reference. difference: mean of ``best`` minus mean of the reference, with its interval
        (widened for the selection). significant: whether the whole interval is below 0.
    """

    name: str
    best: str
    difference: Prediction
    significant: bool


def best_of(groups: Mapping[str, Sequence[float]], reference: str, interval: float = 0.9) -> Choice:
    """Find the group with the lowest mean, and decide whether it is better than ``reference`` beyond the noise.

    Every group has one loss per seed, in the same order of seeds. Groups and seeds are two crossed factors; the
    residual has ``(G - 1)(S - 1)`` degrees of freedom and gives one variance for all differences. The best of G - 1
    groups is selected, so its interval is widened by Bonferroni's correction (slightly wider than Dunnett's 1955 exact
    one). If no group is better than the reference, a study reports none as better with probability ``(1 + interval) /
    2``.

    Raises:
        UsageError: fewer than two groups or two seeds, groups of different lengths, an unknown reference, a value that
            is not finite.
    """
    checked_interval(interval)
    if reference not in groups:
        raise UsageError(f"no group '{reference}' among {', '.join(groups) or 'none'}; choose one of them as reference")
    if len(groups) < 2:
        raise UsageError(f"only the reference '{reference}' is given; a choice needs at least two groups")
    table = {name: _samples(f"group '{name}'", values) for name, values in groups.items()}
    for name, values in table.items():
        if len(values) != len(table[reference]):
            raise UsageError(
                f"group '{name}' has {counted(len(values), 'sample')} and '{reference}' has {len(table[reference])}; "
                "run the same seeds for each"
            )
    values = np.array(list(table.values()))
    means = values.mean(1)
    rest = values - means[:, None] - values.mean(0) + values.mean()
    n_groups, n_seeds = values.shape
    freedom = (n_groups - 1) * (n_seeds - 1)
    std = float(np.sqrt((rest**2).sum() / freedom * 2 / n_seeds))
    others = [name for name in table if name != reference]
    best = min(others, key=lambda name: float(table[name].mean()))
    tail = (1 - interval) / 2 / len(others)
    half = float(stats.t.isf(tail, freedom)) * std
    difference = table[best].mean() - table[reference].mean()
    significant = bool(difference + half < 0)
    return Choice(
        name=best if significant else reference,
        best=best,
        difference=Prediction(difference, difference - half, difference + half),
        significant=significant,
    )


def _samples(name: str, values: ArrayLike) -> Array:
    samples = np.asarray(values, dtype=float)
    if samples.ndim != 1 or len(samples) < 2:
        raise UsageError(f"{name}: at least two samples in one row are needed, found shape {list(samples.shape)}")
    bad = np.flatnonzero(~np.isfinite(samples))
    if len(bad):
        raise UsageError(f"{name}: sample {bad[0]} is {samples[bad[0]]}; leave out the seed in all groups, or rerun it")
    return samples


def _student(samples: Array, interval: float) -> Prediction:
    mean = samples.mean()
    half = stats.t.isf((1 - interval) / 2, len(samples) - 1) * samples.std(ddof=1) / np.sqrt(len(samples))
    return Prediction(mean, mean - half, mean + half)
