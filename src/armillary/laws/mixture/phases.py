"""Two phases as one design: the mixture of the stable phase, that of the annealing, and the share of the decay.

A *point* [2d + 1] holds both mixtures over the d training domains and the share of the tokens on which the learning
rate decays. The law of a loss has three parts:

- a smooth function of the *effective mixture* ``(1 - w) x + w y`` of both phases. A token of the annealing counts
  ``weight_`` times as much as one of the stable phase, so ``w = weight_ a / (1 - a + weight_ a)`` for the share ``a``;
- a linear effect of the order, ``w (y - x)``: a domain may profit more from text at the end than another;
- a quadratic effect of the logarithm of the share, for the decay itself.

All three are one Gaussian process on the log loss (Rasmussen and Williams 2006). Its constants are chosen by marginal
likelihood on a grid, ``weight_`` for all losses together. The target loss is fitted as one more loss, so its interval
has the errors that domains share. The law holds at one size; the study refits it from its runs, so it has no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from types import SimpleNamespace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg, stats
from scipy.spatial.distance import cdist

from armillary.laws.estimator import Array, Prediction, checked_interval, checked_mixtures, checked_positive
from armillary.laws.mixture.design import into_bounds, simplex_design
from armillary.laws.mixture.law import HeldOut, rank_correlation
from armillary.laws.mixture.refine import refining_mixtures
from armillary.recipe import UsageError, counted

FORM = "two-phase"
# Fewer points do not determine the law.
MIN_POINTS = 12
# A share of this size has the logarithm 0.
_USUAL = 0.2
# The grid of the constants: the weight of a token of the annealing, the length of the smooth part in square roots of
# weights, the variance of linear part and order relative to the smooth part, and that of the noise.
_WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0)
_LENGTHS = (0.3, 0.6, 1.2)
_LINEAR = (0.3, 3.0, 30.0)
_ORDER = (0.01, 0.3, 3.0)
_SHARE = 0.1
_NOISES = tuple(np.geomspace(1e-4, 3.0, 9))
# The search: the points that survive a generation, and the new ones; candidates differ by this much of the tokens.
_BEST, _NEW, _GENERATIONS, _DISTINCT = 32, 256, 30, 0.1
# Pessimism, as for one phase: the expected loss plus this many standard deviations of the law.
_PESSIMISM = 1.0


def split_points(points: ArrayLike) -> tuple[Array, Array, Array]:
    """The stable mixtures [n, d], annealing mixtures [n, d] and shares [n] of points [n, 2d + 1]."""
    rows = np.atleast_2d(np.asarray(points, dtype=float))
    d = rows.shape[1] // 2
    return rows[:, :d], rows[:, d : 2 * d], rows[:, -1]


@dataclass(frozen=True)
class PhaseBounds:
    """The region of a search: ``lower`` and ``upper`` [d] of each weight in both phases, ``shares`` (least, largest).

    ``passes`` [d] bounds the weight of a domain over both phases together.
    """

    lower: Array
    upper: Array
    passes: Array
    shares: tuple[float, float]

    def within(self, points: Array) -> Array:
        """Points [n, 2d + 1] moved into the bounds; the annealing may use what the stable phase leaves."""
        stable, annealing, share = split_points(points)
        share = np.clip(share, *self.shares)
        stable = into_bounds(stable, self.lower, np.minimum(self.upper, self.passes))
        room = (self.passes - (1 - share)[:, None] * stable) / share[:, None]
        room = np.clip(room, self.lower, self.upper)
        room *= np.maximum(1.0, 1.0 / room.sum(1, keepdims=True))
        return np.column_stack([stable, into_bounds(annealing, self.lower, room), share])


def phase_design(n: int, bounds: PhaseBounds, *, centre: ArrayLike, seed: int) -> Array:
    """``n`` points [n, 2d + 1] that fill both simplexes and the range of shares.

    The first point has the mixture ``centre`` [d] in both phases, the second the uniform one, both with a usual share.

    Raises:
        UsageError: fewer than ``MIN_POINTS``, or bounds without a mixture.
    """
    if n < MIN_POINTS:
        raise UsageError(f"a design of two phases of {counted(n, 'mixture')} was requested; give {MIN_POINTS} or more")
    upper = np.minimum(bounds.upper, bounds.passes)
    stable = simplex_design(n, bounds.lower, upper, centre=centre, seed=seed)
    annealing = simplex_design(n, bounds.lower, upper, centre=centre, seed=seed + 1)
    rng = np.random.default_rng(seed)
    annealing[2:] = annealing[2:][rng.permutation(n - 2)]
    low, high = np.log(bounds.shares)
    shares = np.exp(low + (high - low) * (rng.permutation(n) + 0.5) / n)
    shares[:2] = np.clip(_USUAL, *bounds.shares)
    return bounds.within(np.column_stack([stable, annealing, shares]))


class PhaseLaw:
    """Losses of several validation domains from points [n, 2d + 1].

    Attributes:
        weight_: the weight of a token of the annealing relative to one of the stable phase.
        held_out_: predictions of each run from all others, a ``HeldOut``.
        chosen_: the one form, with weights [v] of 1, as in ``MixtureLaw``.
    """

    def fit(self, points: ArrayLike, losses: ArrayLike) -> Self:
        """Fit to points [n, 2d + 1] and their losses [n, v].

        Raises:
            UsageError: too few points, a mixture that does not sum to 1, a loss that is not positive.
        """
        rows = np.asarray(points, dtype=float)
        if len(rows) < MIN_POINTS:
            raise UsageError(f"{counted(len(rows), 'run')} given; a law of two phases needs {MIN_POINTS}")
        for name, mixtures in zip(("stable", "annealing"), split_points(rows)[:2], strict=True):
            checked_mixtures(name, mixtures)
        self._points, self._losses = rows, checked_positive("losses", losses)
        logs = np.log(self._losses)
        fits = {weight: _fit(rows, logs, weight) for weight in _WEIGHTS}
        self.weight_ = max(fits, key=lambda weight: sum(part.likelihood for part in fits[weight]))
        self._parts = fits[self.weight_]
        self._targets: dict[tuple[float, ...], _Process] = {}
        held = np.exp(np.stack([part.held_out() for part in self._parts], axis=1))
        rmse = np.sqrt(((held - self._losses) ** 2).mean(0))
        self.held_out_ = HeldOut(
            predicted=held,
            measured=self._losses,
            spearman=np.array([rank_correlation(*pair) for pair in zip(held.T, self._losses.T, strict=True)]),
            rmse=rmse,
            rmse_of_model={FORM: rmse},
        )
        self.chosen_ = {FORM: np.ones(len(self._parts))}
        return self

    def predict(self, points: ArrayLike, interval: float = 0.9) -> Prediction:
        """Losses [m, v] of one new run at each point, with intervals."""
        return _prediction(self._parts, np.atleast_2d(points), interval)

    def target(self, points: ArrayLike, weights: ArrayLike, interval: float = 0.9) -> Prediction:
        """The target loss [m] of one new run at each point: the sum of the losses times ``weights`` [v]."""
        found = _prediction([self._target(weights)], np.atleast_2d(points), interval)
        return Prediction(*(part[:, 0] for part in found))

    def expected(self, points: Array, weights: ArrayLike) -> tuple[Array, Array]:
        """The expected target loss [m] and the law's standard deviation of it [m]."""
        mean, std = self._target(weights).at(points)
        return np.exp(mean), np.exp(mean) * std

    def _target(self, weights: ArrayLike) -> _Process:
        given = np.asarray(weights, dtype=float)
        key = tuple(given.tolist())
        if key not in self._targets:
            (self._targets[key],) = _fit(self._points, np.log(self._losses @ given)[:, None], self.weight_)
        return self._targets[key]


@dataclass(frozen=True)
class PhaseOptimum:
    """The best points for a target, and the region within one standard error of the best.

    ``points`` [c, 2d + 1], the best first. ``flat_low`` and ``flat_high`` [2d + 1] are the ends of the values of points
    whose expected target loss is at most the law's standard deviation at the best, ``error``, above that of the best.
    """

    points: Array
    flat_low: Array
    flat_high: Array
    error: float


def optimise_phases(
    law: PhaseLaw,
    weights: ArrayLike,
    bounds: PhaseBounds,
    *,
    support: Array,
    natural: Array,
    candidates: int,
    seed: int,
) -> PhaseOptimum:
    """The best points within ``bounds`` and the range of values in ``support`` [n, 2d + 1].

    With two candidates or more, the last is half-way between the best one and the ``natural`` point [2d + 1].
    """
    rng = np.random.default_rng(seed)
    low, high = support.min(0), support.max(0)
    low[:-1] = 0.0  # no weight is above the largest one tried; lower ones are, as for one phase, free

    def inside(points: Array) -> Array:
        moved = bounds.within(points)
        return np.asarray(moved[((moved >= low - 1e-9) & (moved <= high + 1e-9)).all(1)])

    found = inside(support)
    values = np.stack(law.expected(found, weights), axis=1)
    width = 0.6
    for _ in range(_GENERATIONS):
        order = (values[:, 0] + _PESSIMISM * values[:, 1]).argsort()
        best = found[order[:_BEST]]
        first, second = (best[rng.integers(len(best), size=_NEW)] for _ in range(2))
        along = rng.uniform(-0.3, 1.3, (_NEW, 1))
        trial = np.maximum(along * first + (1 - along) * second, 1e-4)
        trial = inside(trial * np.exp(width * rng.standard_normal(trial.shape)))
        if len(trial):
            found = np.concatenate([found, trial])
            values = np.concatenate([values, np.stack(law.expected(trial, weights), axis=1)])
        width *= 0.9
    order = (values[:, 0] + _PESSIMISM * values[:, 1]).argsort()
    best = found[order[0]]
    middle = bounds.within((best + natural)[None] / 2)[0]
    chosen, wanted = [best], candidates - (candidates > 1)
    for i in order:
        if len(chosen) == wanted:
            break
        if all(_apart(found[i], other) >= _DISTINCT for other in (*chosen, middle)):
            chosen.append(found[i])
    if candidates > 1:
        chosen.append(middle)
    mean, error = values[order[0]]
    flat = found[values[:, 0] <= mean + error]
    return PhaseOptimum(np.array(chosen), flat.min(0), flat.max(0), float(error))


def refining_points(best: Array, tried: Array, bounds: PhaseBounds, *, count: int, seed: int) -> Array:
    """``count`` points [count, 2d + 1] to run next: beyond the edges that ``best`` touches, else around it.

    Each phase is refined as one mixture is (``refining_mixtures``). A share at an end of the tried range moves outward
    to the bound in equal steps; else it is random around the best one.
    """
    stable, annealing, shares = split_points(tried)
    one, two, at = (part[0] for part in split_points(best))
    upper = np.minimum(bounds.upper, bounds.passes)
    first = refining_mixtures(one, stable, bounds.lower, upper, count=count, seed=seed)
    second = refining_mixtures(two, annealing, bounds.lower, bounds.upper, count=count, seed=seed + 1)
    steps = (np.arange(count) + 1) / count
    ends = {1: (shares.max(), bounds.shares[1]), -1: (shares.min(), bounds.shares[0])}
    drawn = at * np.exp(np.random.default_rng(seed + 2).normal(0.0, 0.3, count))
    for outward, (last, limit) in ends.items():
        if outward * (at - last) >= -1e-6 * last < outward * (limit - at):
            drawn = at * (limit / at) ** (steps / 2)
    return bounds.within(np.column_stack([first, second, drawn]))


@dataclass(frozen=True)
class _Process:
    """A fitted Gaussian process of one log loss."""

    points: Array
    logs: Array
    weight: float
    length: float
    linear: float
    order: float
    noise: float
    scale: float
    likelihood: float

    def at(self, points: Array) -> tuple[Array, Array]:
        """The mean [m] of the log loss and the standard deviation [m] of its function."""
        inverse = self._inverse
        cross = self._kernel(points, self.points)
        one = inverse.sum(1)
        constant = one @ self.logs / one.sum()
        mean = constant + cross @ (inverse @ (self.logs - constant))
        own = self._kernel_own(points)
        left = 1 - cross @ one
        variance = own - np.einsum("ij,jk,ik->i", cross, inverse, cross) + left**2 / one.sum()
        return mean, np.sqrt(self.scale * np.maximum(variance, 0.0))

    def held_out(self) -> Array:
        """The log loss [n] of each run, predicted from all others with the same constants."""
        one = self._inverse.sum(1)
        projected = self._inverse - np.outer(one, one) / one.sum()
        return np.asarray(self.logs - (projected @ self.logs) / np.diag(projected))

    @cached_property
    def _inverse(self) -> Array:
        kernel = self._kernel(self.points, self.points) + self.noise * np.eye(len(self.points))
        return np.asarray(linalg.inv(kernel))

    def _kernel(self, a: Array, b: Array) -> Array:
        return _kernel(_features(a, self.weight), _features(b, self.weight), self.length, self.linear, self.order)

    def _kernel_own(self, points: Array) -> Array:
        f = _features(points, self.weight)
        parts = self.linear * (f.roots**2).sum(1) + self.order * (f.order**2).sum(1) + _SHARE * (f.share**2).sum(1)
        return np.asarray(1.0 + parts)


def _features(points: Array, weight: float) -> SimpleNamespace:
    """Square roots of the effective mixture [n, d], the effect of the order [n, d], that of the share [n, 2]."""
    stable, annealing, share = split_points(points)
    w = (weight * share / (1 - share + weight * share))[:, None]
    logs = np.log(share / _USUAL)
    return SimpleNamespace(
        roots=np.sqrt(np.maximum((1 - w) * stable + w * annealing, 0.0)),
        order=w * (annealing - stable),
        share=np.column_stack([logs, logs**2]),
    )


def _kernel(a: SimpleNamespace, b: SimpleNamespace, length: float, linear: float, order: float) -> Array:
    distance = np.sqrt(5.0) * cdist(a.roots, b.roots) / length
    smooth = (1 + distance + distance**2 / 3) * np.exp(-distance)
    return np.asarray(
        smooth + linear * a.roots @ b.roots.T + order * a.order @ b.order.T + _SHARE * a.share @ b.share.T
    )


def _fit(points: Array, logs: Array, weight: float) -> list[_Process]:
    """The likeliest process of each log loss [n, v], for this weight of a token of the annealing."""
    n, features = len(points), _features(points, weight)
    noises = np.array(_NOISES)[:, None]
    best: list[_Process | None] = [None] * logs.shape[1]
    for length, linear, order in product(_LENGTHS, _LINEAR, _ORDER):
        values, vectors = np.linalg.eigh(_kernel(features, features, length, linear, order))
        spectrum = np.maximum(values, 0.0) + noises  # [noises, n]
        ones = vectors.T @ np.ones(n)
        for v, column in enumerate(logs.T):
            rotated = vectors.T @ column
            constant = (ones * rotated / spectrum).sum(1) / (ones**2 / spectrum).sum(1)
            rest = rotated - ones * constant[:, None]
            scale = np.maximum((rest**2 / spectrum).mean(1), 1e-300)
            likelihood = -0.5 * (n * np.log(scale) + np.log(spectrum).sum(1))
            i = int(likelihood.argmax())
            known = best[v]
            if known is None or likelihood[i] > known.likelihood:
                constants = (weight, length, linear, order, float(_NOISES[i]), float(scale[i]), float(likelihood[i]))
                best[v] = _Process(points, column, *constants)
    return [part for part in best if part is not None]


def _prediction(parts: list[_Process], points: Array, interval: float) -> Prediction:
    """Losses [m, v] of one new run, with intervals."""
    half = float(stats.t.isf((1 - checked_interval(interval)) / 2, max(len(parts[0].logs) - 1, 1)))
    found = [(*part.at(points), part.scale * part.noise) for part in parts]
    mean = np.stack([values for values, *_ in found], axis=1)
    spread = half * np.stack([np.sqrt(std**2 + noise) for _, std, noise in found], axis=1)
    return Prediction(np.exp(mean), np.exp(mean - spread), np.exp(mean + spread))


def _apart(a: Array, b: Array) -> float:
    """The share of the tokens in which two points differ, over both phases, plus their difference in the share."""
    (x, z), (y, v), (p, q) = split_points(np.stack([a, b]))
    share = (p + q) / 2
    return float(((1 - share) * np.abs(x - z).sum() + share * np.abs(y - v).sum()) / 2 + abs(p - q))
