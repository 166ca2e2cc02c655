"""Compares architectures at a target scale: which is better, by how much compute, and with what probability.

Each architecture is a family of runs. All families are fitted together: each has its own law, and the parameters of
these laws share a prior whose mean and width are learned from the families (``fit``). What the families have in
common (the irreducible loss of the data, exponents) is thus estimated from all runs, and what differs stays free.

Trade-offs taken:

- One form for all families, the one that predicts their largest runs best after a fit to the others.
- A wrong form is wrong for all families alike, so only the *difference* of two families' errors widens a comparison. It
  is mixed with a guess (``MISS``), because few such differences are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from armillary.laws.estimator import (
    Array,
    Prediction,
    SetAside,
    check_reach,
    checked_interval,
    checked_positive,
    report_set_aside,
)
from armillary.laws.scaling.fit import draw, fit_form, seed_noise
from armillary.laws.scaling.forms import SCALING_FORMS
from armillary.laws.scaling.outliers import contradicted
from armillary.recipe import UsageError, counted

FORMS = ("chinchilla", "ratio", "interaction")

# Relative difference of two families' misses per e-fold of compute, counted as this many observations.
MISS, MISS_COUNT = 0.002, 2.0

# Families are compared by the upper half of their own compute, so no farther than about this factor is tested.
TESTED = 10.0

# Compute multipliers are looked for within a factor e^REACH either way.
REACH = 14.0


@dataclass(frozen=True)
class Versus:
    """A family against the reference at the target.

    Attributes:
        family, reference: their names.
        multiplier: compute with which the reference reaches what ``family`` reaches at the target, over the target's
            compute (N and D grow alike); above 1 where ``family`` is better. Median and interval; an end that no
            compute reaches is infinite or 0.
        difference: relative difference in loss at the target, family over reference minus 1, with interval.
        better: probability that ``family`` has the lower loss there.
    """

    family: str
    reference: str
    multiplier: Prediction
    difference: Prediction
    better: float


@dataclass(frozen=True)
class Comparison:
    """All families at a target: their loss there, and each against the reference.

    Attributes:
        at: parameters and tokens of the target.
        form: the form that all families were fitted with.
        loss: expected loss of each family at the target, with the interval of its law (no noise of a run).
        versus: every other family against the reference.
    """

    at: tuple[float, float]
    form: str
    loss: dict[str, Prediction]
    versus: list[Versus]


def compare_families(
    families: Mapping[str, tuple[ArrayLike, ArrayLike]],
    at: ArrayLike,
    *,
    reference: str | None = None,
    interval: float = 0.9,
    bootstraps: int = 400,
    seed: int = 0,
) -> Comparison:
    """Fit families jointly and compare them at a target.

    Args:
        families: for each name its runs: X [n, 2] of parameters and tokens, n >= 4, and losses y [n].
        at: (N, D) of the target, or its compute N * D alone: then N and D are split as in the runs (their median
            tokens per parameter).
        reference: what the others are compared with; the first family by default.
        interval: probability that each interval covers.
        bootstraps: joint draws.
        seed: of the draws.

    Raises:
        UsageError: fewer than two families or an unknown reference; a family's table as ``ScalingLaw.fit`` refuses it,
            with its name; a target that is neither a number above 0 nor two.
    """
    tail = (1 - checked_interval(interval)) / 2
    names = list(families)
    if len(names) < 2 or (reference is not None and reference not in families):
        raise UsageError(
            f"families are {', '.join(names) or 'none'} and the reference is '{reference}'; give at least two families "
            "with the reference among them"
        )
    against = names[0] if reference is None else reference
    points, losses, member = _stacked(families)
    target = checked_positive("at", np.reshape(np.asarray(at, dtype=float), (1, -1)))[0]
    if len(target) not in (1, 2):
        raise UsageError(
            f"at has {counted(len(target), 'number')}; give parameters and tokens, or compute (their product)"
        )
    where = np.log(target)
    if len(where) == 1:
        ratio = np.median(points[:, 1] - points[:, 0])
        where = np.array([(where[0] - ratio) / 2, (where[0] + ratio) / 2])

    factor = np.exp(max(0.0, *(where - points.max(0)), where.sum() - points.sum(1).max()))
    check_reach(float(factor), TESTED, "the target", "add larger runs of each family")

    table = np.repeat(losses[:, None], len(names), 1)
    own = member[None] == np.arange(len(names))[:, None]
    compute = points.sum(1)
    cuts = []
    for quantile in (0.85, 0.7, 0.5):
        kept = np.array([compute < np.quantile(compute[rows], quantile) for rows in own]) & own
        if (kept.sum(1) >= 3).all():
            cuts.append(kept)
    noise = np.mean([seed_noise(points[rows], losses[rows, None])[0] for rows in own])
    common = {"noise": np.full(len(names), noise), "tilted": False, "pooled": ("floor", "term", "log", "plain")}
    scores, misses, wholes = {}, {}, {}
    for name in FORMS:
        form = SCALING_FORMS[name]
        wholes[name] = fit_form(form, points, table, own[None], **common)  # type: ignore[arg-type]
        if cuts:
            left = fit_form(form, points, table, np.array(cuts), near=wholes[name].theta[0], **common)  # type: ignore[arg-type]
            law = form.evaluate(left.theta.reshape(-1, left.theta.shape[-1]), points, points.mean(0))[0]
            misses[name] = law.reshape(len(cuts), len(names), -1) - losses
            scores[name] = np.mean([np.abs(misses[name][g][own & ~kept]).mean() for g, kept in enumerate(cuts)])
    chosen = min(scores, key=lambda name: scores[name]) if scores else FORMS[0]
    form, whole, centre = SCALING_FORMS[chosen], wholes[chosen], points.mean(0)
    rng = np.random.default_rng(seed)
    draws = draw(form, points, table, whole, bootstraps, rng, weights=own.astype(float))

    def law_at(family: int, sizes: Array) -> Array:
        """Log losses [b, m] of a family's draws at log sizes [m, 2]."""
        return form.evaluate(draws[:, family], sizes, centre)[0]

    best = [float(form.evaluate(theta[None], where[None], centre)[0][0, 0]) for theta in whole.theta[0]]
    spread = [law_at(f, where[None])[:, 0] for f in range(len(names))]
    second = names.index(against)
    steps = np.linspace(-REACH, REACH, 561)
    path = law_at(second, where + steps[:, None] / 2)  # the loss falls with compute, so it can be searched
    versus = []
    for f, name in enumerate(names):
        if f == second:
            continue
        far = max(0.0, where.sum() - compute[own[f] | own[second]].max())
        extra = (
            _miss(misses.get(chosen), cuts, own, compute, f, second) * np.sqrt(far) * rng.standard_normal(bootstraps)
        )
        gap = spread[f] - spread[second] + extra
        reached = np.array(
            [
                np.interp(-(a + e), -row, steps, -np.inf, np.inf)
                for a, e, row in zip(spread[f], extra, path, strict=True)
            ]
        )
        low, middle, high = np.exp(np.quantile(reached, [tail, 0.5, 1 - tail], method="nearest"))
        ends = np.expm1(np.quantile(gap, [tail, 1 - tail]))
        versus.append(
            Versus(
                name,
                against,
                Prediction(middle, low, high),
                Prediction(np.expm1(best[f] - best[second]), ends[0], ends[1]),
                float((gap < 0).mean()),
            )
        )
    loss = {
        name: Prediction(np.exp(best[f]), *np.exp(np.quantile(spread[f], [tail, 1 - tail])))
        for f, name in enumerate(names)
    }
    size, tokens = (float(v) for v in np.exp(where))
    return Comparison((size, tokens), chosen, loss, versus)


def _stacked(families: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> tuple[Array, Array, Array]:
    """Log sizes [n, 2] and log losses [n] of all families' runs, and the number of each run's family [n].

    Runs that the others of their family contradict are left out and reported.
    """
    points, losses, member = [], [], []
    for f, (name, (X, y)) in enumerate(families.items()):
        sizes = checked_positive(f"X of family '{name}'", X, columns=2, labels=("params", "tokens"), rows=4)
        values = checked_positive(f"y of family '{name}'", np.reshape(np.asarray(y, dtype=float), (-1, 1)))
        if len(sizes) != len(values):
            raise UsageError(
                f"family '{name}' has {counted(len(sizes), 'row')} in X and {len(values)} in y; give a loss for each"
            )
        if (np.ptp(np.log(sizes), axis=0) < 0.05).any():
            raise UsageError(f"family '{name}' has runs of one size or of one number of tokens; it needs two of each")
        logs, forms = np.log(values), {form: SCALING_FORMS[form] for form in (*FORMS, "kaplan")}
        seen = np.log(sizes)
        found = contradicted(forms, dict.fromkeys(forms, seen), seen, logs, np.ones(logs.shape, dtype=bool))
        aside = [
            SetAside(int(i), 0, float(values[i, 0]), float(np.exp(found.expected[i, 0])))
            for i in np.flatnonzero(found.far[:, 0])
        ]
        report_set_aside(aside, name)
        kept = ~found.far[:, 0]
        points.append(seen[kept])
        losses.append(logs[kept, 0])
        member.append(np.full(int(kept.sum()), f))
    return np.concatenate(points), np.concatenate(losses), np.concatenate(member)


def _miss(misses: Array | None, cuts: list[Array], own: Array, compute: Array, first: int, second: int) -> float:
    """Relative difference of two families' misses (standard deviation) at one e-fold of compute."""
    squares = [MISS**2] * int(MISS_COUNT)
    for g, kept in enumerate(cuts):
        assert misses is not None
        means, far = [], []
        for f in (first, second):
            out = own[f] & ~kept[f]
            means.append(misses[g, f, out].mean())
            far.append(np.maximum(compute[out] - compute[kept[f]].max(), 0).mean())
        squares.append((means[0] - means[1]) ** 2 / max(np.mean(far), 0.5))
    return float(np.sqrt(np.mean(squares)))
