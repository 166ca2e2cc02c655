"""Compares architectures at a target scale: which is better, by how much compute, and with what probability.

Each architecture is a family of runs. All families are fitted together: each has its own law, and the parameters of
these laws share a prior whose mean and width are learned from the families (``fit``). So common properties (the
irreducible loss of the data, exponents) are estimated from all runs, and other properties are free.

Trade-offs taken:

- One form for all families, the one that predicts their largest runs best after a fit to the others.
- Two or three runs per family suffice, since families share common properties; the intervals are then wide.
- Runs of several families at the same N and D have similar errors, because the form is wrong there and they share data
  and order. This common error says nothing about their difference. It is estimated, removed before the families are
  fitted again, and widens only the interval of a level.
- A wrong form is wrong for all families alike, so only the *difference* of two families' errors widens a comparison. It
  is mixed with a guess (``MISS``), because few such differences are known. A level includes the whole error of the
  form, with a guess as in ``ScalingLaw`` (``LEVEL_MISS``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from armillary.laws.estimator import (
    Array,
    Prediction,
    SetAside,
    check_reach,
    checked_interval,
    checked_positive,
    report_set_aside,
)
from armillary.laws.scaling.fit import NOISE_COUNT, SAME, Solution, draw, fit_form, reach, seed_noise
from armillary.laws.scaling.forms import SCALING_FORMS
from armillary.laws.scaling.outliers import FEWEST, contradicted
from armillary.recipe import UsageError, counted

FORMS = ("chinchilla", "ratio", "interaction")

# Relative difference of two families' errors per e-fold of compute, and its weight as a number of observations.
MISS, MISS_COUNT = 0.002, 2.0

# Relative error of the form common to all families, at one e-fold of extrapolation, and its weight likewise.
LEVEL_MISS = 0.006

# Scatter of a run beside others of the same N and D: a fifth of that around a law. Estimated from FREEDOM runs on.
NOISE_APART, FREEDOM = 0.0008, 3

# The least number of runs: of one family, and of all families together.
LEAST_RUNS, LEAST_TOTAL = 2, 6

# Families are tested on the upper half of their own compute, so extrapolation is tested up to about this factor.
TESTED = 10.0

# Compute multipliers are searched within a factor e^REACH in both directions.
REACH = 14.0


@dataclass(frozen=True)
class Versus:
    """The comparison of a family with the reference at the target.

    Attributes:
        family, reference: their names.
        multiplier: the compute at which the reference reaches the loss of ``family`` at the target, over the target's
            compute (N and D grow by the same factor); above 1 if ``family`` is better. Median and interval; an
            unreachable end is infinite or 0.
        difference: relative difference in loss at the target, family over reference minus 1, with the interval for
            one run of each.
        better: probability that ``family`` has the lower loss there, in one run of each.
    """

    family: str
    reference: str
    multiplier: Prediction
    difference: Prediction
    better: float


@dataclass(frozen=True)
class Comparison:
    """All families at a target: their losses, and the comparison of each with the reference.

    Attributes:
        at: parameters and tokens of the target.
        form: the form that all families were fitted with.
        loss: expected loss of each family at the target, with an interval that holds for one run.
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
        families: for each name its runs: X [n, 2] of parameters and tokens, n >= 2, and losses y [n]; six
            runs in all.
        at: (N, D) of the target, or its compute N * D alone: then N and D are split as in the runs (their median
            tokens per parameter).
        reference: the family to compare with; the first one by default.
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
            f"families are {', '.join(names) or 'none'}"
            + (f" and the reference is '{reference}'" if reference is not None else "")
            + "; give at least two families, with the reference among them"
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
    check_reach(float(factor), TESTED, "the target", "give a nearer target, or add larger runs of each family")

    fits = _Families(points, losses, member, len(names))
    rng = np.random.default_rng(seed)
    draws = fits.draws(bootstraps, rng)
    best = fits.expected(where)
    spread = [fits.law_at(draws, f, where[None])[:, 0] for f in range(len(names))]
    second = names.index(against)
    steps = np.linspace(-REACH, REACH, 561)
    path = fits.law_at(draws, second, where + steps[:, None] / 2)  # the loss decreases with compute, so bisection works
    versus = []
    for f, name in enumerate(names):
        if f == second:
            continue
        extra = fits.miss_apart(f, second, where) * rng.standard_normal(bootstraps)
        noise = np.hypot(fits.noise[f], fits.noise[second]) * rng.standard_normal(bootstraps)
        gap = spread[f] - spread[second] + extra
        reached = np.array(
            [
                np.interp(-(a + e), -row, steps, -np.inf, np.inf)
                for a, e, row in zip(spread[f], extra, path, strict=True)
            ]
        )
        low, middle, high = np.exp(np.quantile(reached, [tail, 0.5, 1 - tail], method="nearest"))
        ends = np.expm1(np.quantile(gap + noise, [tail, 1 - tail]))
        versus.append(
            Versus(
                name,
                against,
                Prediction(middle, low, high),
                Prediction(np.expm1(best[f] - best[second]), ends[0], ends[1]),
                float((gap + noise < 0).mean()),
            )
        )
    loss, level = {}, fits.levels(where, bootstraps, rng)
    for f, name in enumerate(names):
        wide = np.sqrt(fits.miss_of_level(where) ** 2 + fits.noise[f] ** 2 + fits.common**2)
        one = level[:, f] + wide * rng.standard_normal(bootstraps)
        loss[name] = Prediction(np.exp(best[f]), *np.exp(np.quantile(one, [tail, 1 - tail])))
    size, tokens = (float(v) for v in np.exp(where))
    return Comparison((size, tokens), fits.form, loss, versus)


class _Families:
    """Laws of one form, fitted to all families at once.

    Args:
        points, losses, member: log sizes [n, 2] and log losses [n] of all runs, and the number of each run's family.
        count: how many families there are.

    Attributes:
        form: its name.
        noise: relative standard deviation of one run of each family without the common error, [count]. common: relative
        standard deviation of the error common to all families at one N and D.
    """

    def __init__(self, points: Array, losses: Array, member: NDArray[np.intp], count: int) -> None:
        self._points, self._centre = points, points.mean(0)
        self._own = member[None] == np.arange(count)[:, None]
        self._cuts = self._largest_left_out()
        noise = np.mean([seed_noise(points[rows], losses[rows, None])[0] for rows in self._own])
        first = self._fitted(losses, noise)
        shared, self.common, apart = _in_common(points, first.missed, member)
        self._last = self._fitted(losses - shared, noise if apart is None else apart) if self.common else first
        self._first = first
        self.form, self._misses = self._last.form, self._last.misses
        self.noise = self._last.solution.scale[0]
        self._table = self._last.table

    def draws(self, count: int, rng: np.random.Generator) -> Array:
        """Posterior draws of all families' parameters, [count, families, p]."""
        weights = self._own.astype(float)
        return draw(
            SCALING_FORMS[self.form], self._points, self._table, self._last.solution, count, rng, weights=weights
        )

    def law_at(self, draws: Array, family: int, sizes: Array) -> Array:
        """Log losses [b, m] of a family's draws at log sizes [m, 2]."""
        return SCALING_FORMS[self.form].evaluate(draws[:, family], sizes, self._centre)[0]

    def levels(self, where: Array, count: int, rng: np.random.Generator) -> Array:
        """Draws of each family's log loss at a log size [2], [count, families], with independent noise of runs.

        The common error at the target is unknown, so for a level it is noise like any other.
        """
        form, solution = SCALING_FORMS[self._first.form], self._first.solution
        weights = self._own.astype(float)
        theta = draw(form, self._points, self._first.table, solution, count, rng, weights=weights)
        law = form.evaluate(theta.reshape(-1, theta.shape[-1]), where[None], self._centre)[0]
        return law.reshape(count, -1)

    def expected(self, where: Array) -> list[float]:
        """The log loss of each family's best fit at a log size [2]."""
        law = SCALING_FORMS[self.form].evaluate(self._last.solution.theta[0], where[None], self._centre)[0]
        return [float(value) for value in law[:, 0]]

    def miss_apart(self, first: int, second: int, where: Array) -> float:
        """Relative difference of two families' errors (standard deviation) at a log size [2]."""
        compute = self._points.sum(1)
        squares = [MISS**2] * int(MISS_COUNT)
        for g, kept in enumerate(self._cuts):
            means, far = [], []
            for f in (first, second):
                out = self._own[f] & ~kept[f]
                means.append(self._misses[g, f, out].mean())
                far.append(np.maximum(compute[out] - compute[kept[f]].max(), 0).mean())
            squares.append((means[0] - means[1]) ** 2 / max(np.mean(far), 0.5))
        beyond = max(0.0, where.sum() - compute[self._own[first] | self._own[second]].max())
        return float(np.sqrt(np.mean(squares) * beyond))

    def miss_of_level(self, where: Array) -> float:
        """Relative error common to all families (standard deviation) at a log size [2]."""
        squares = [LEVEL_MISS**2] * int(MISS_COUNT)
        for g, kept in enumerate(self._cuts):
            means, far = [], []
            for f, rows in enumerate(self._own):
                out = rows & ~kept[f]
                means.append(self._misses[g, f, out].mean())
                far.append(reach(self._points[out], self._points[kept[f]]).sum(1).mean())
            squares.append(np.mean(means) ** 2 / max(np.mean(far), 0.5))
        beyond = reach(where[None], self._points).sum()
        return float(np.sqrt(np.mean(squares) * beyond))

    def _largest_left_out(self) -> list[NDArray[np.bool_]]:
        """Which runs of each family are kept, [families, n], when the largest by compute are left out."""
        compute = self._points.sum(1)
        cuts: list[NDArray[np.bool_]] = []
        for quantile in (0.85, 0.7, 0.5):
            kept = np.array([compute < np.quantile(compute[rows], quantile) for rows in self._own]) & self._own
            enough = (kept.sum(1) >= LEAST_RUNS).all() and kept.sum() >= LEAST_TOTAL
            if enough and not any((kept == other).all() for other in cuts):
                cuts.append(kept)
        return cuts

    def _fitted(self, losses: Array, noise: float) -> _Fitted:
        """The form with the smallest errors on left-out runs, fitted to log losses [n]."""
        families = len(self._own)
        table = np.repeat(losses[:, None], families, 1)
        common = {"noise": np.full(families, noise), "tilted": False, "pooled": ("floor", "term", "log", "plain")}
        scores, misses, wholes = {}, {}, {}
        for name in FORMS:
            form = SCALING_FORMS[name]
            wholes[name] = fit_form(form, self._points, table, self._own[None], **common)  # type: ignore[arg-type]
            if self._cuts:
                near, cuts = wholes[name].theta[0], np.array(self._cuts)
                left = fit_form(form, self._points, table, cuts, near=near, **common)  # type: ignore[arg-type]
                law = form.evaluate(left.theta.reshape(-1, left.theta.shape[-1]), self._points, self._centre)[0]
                misses[name] = law.reshape(len(cuts), families, -1) - losses
                scores[name] = np.mean(
                    [np.abs(misses[name][g][self._own & ~kept]).mean() for g, kept in enumerate(self._cuts)]
                )
        chosen = min(scores, key=lambda name: scores[name]) if scores else FORMS[0]
        whole = wholes[chosen]
        law = SCALING_FORMS[chosen].evaluate(whole.theta[0], self._points, self._centre)[0]
        missed = losses - np.where(self._own, law, 0.0).sum(0)
        return _Fitted(chosen, whole, table, misses.get(chosen, np.zeros((0, families, len(losses)))), missed)


@dataclass(frozen=True)
class _Fitted:
    """One form fitted to all families: its name, parameters, the fitted log losses [n, t], the errors of the left-out
    runs [g, t, n], and the residual of each run from its family's law [n]."""

    form: str
    solution: Solution
    table: Array
    misses: Array
    missed: Array


def _in_common(points: Array, missed: Array, member: NDArray[np.intp]) -> tuple[Array, float, float | None]:
    """The common part of the residuals of several families' runs at the same log size.

    Returns:
        The common part of each run [n], its standard deviation, and that of the rest (None where nothing repeats).
    """
    _, label = np.unique(np.round(points / SAME), axis=0, return_inverse=True)
    label = label.ravel()
    shared, within, freedom, between = np.zeros(len(missed)), 0.0, 0, []
    groups = [np.flatnonzero(label == k) for k in range(label.max() + 1)]
    groups = [rows for rows in groups if len(np.unique(member[rows])) > 1]
    for rows in groups:
        mean = float(missed[rows].mean())
        within += float(((missed[rows] - mean) ** 2).sum())
        freedom += len(rows) - 1
        between.append((rows, mean))
    if freedom < FREEDOM:
        return shared, 0.0, None
    apart = np.sqrt((NOISE_COUNT * NOISE_APART**2 + within) / (NOISE_COUNT + freedom))
    common = max(0.0, float(np.mean([mean**2 - apart**2 / len(rows) for rows, mean in between])))
    for rows, mean in between:
        shared[rows] = mean * common / (common + apart**2 / len(rows)) if common else 0.0
    return shared, float(np.sqrt(common)), float(apart)


def _stacked(families: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> tuple[Array, Array, NDArray[np.intp]]:
    """Log sizes [n, 2] and log losses [n] of all families' runs, and the number of each run's family [n].

    Runs that contradict the others of their family are left out and reported.
    """
    points, losses, member = [], [], []
    for f, (name, (X, y)) in enumerate(families.items()):
        sizes = checked_positive(f"X of family '{name}'", X, columns=2, labels=("params", "tokens"), rows=LEAST_RUNS)
        values = checked_positive(f"y of family '{name}'", np.reshape(np.asarray(y, dtype=float), (-1, 1)))
        if len(sizes) != len(values):
            raise UsageError(
                f"family '{name}' has {counted(len(sizes), 'row')} in X and {len(values)} in y; give a loss for each"
            )
        if np.ptp(np.log(sizes).sum(1)) < 0.05:
            raise UsageError(f"family '{name}' has runs of one compute N * D; it needs two of each family")
        logs, forms = np.log(values), {form: SCALING_FORMS[form] for form in (*FORMS, "kaplan")}
        seen = np.log(sizes)
        kept = np.ones(len(logs), dtype=bool)
        if len(logs) >= FEWEST and (np.ptp(seen, axis=0) > 0.05).all():
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
    every = np.concatenate(points)
    if len(every) < LEAST_TOTAL:
        raise UsageError(f"the families have {counted(len(every), 'run')} in all; give at least {LEAST_TOTAL}")
    for column, label in enumerate(("sizes", "numbers of tokens")):
        # A size that only one family has cannot be separated from the effect of the family.
        if max(np.ptp(sizes[:, column]) for sizes in points) < 0.05:
            raise UsageError(f"no family has runs of two {label}; at least one must")
    return every, np.concatenate(losses), np.concatenate(member)
