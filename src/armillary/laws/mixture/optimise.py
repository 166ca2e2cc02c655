"""The best mixtures for a target, under limits, and only near fitted runs.

A law's unconstrained optimum is where the law is least certain, because a minimum over many predictions selects the
most favourable error. Therefore:

- the objective is pessimistic: the expected target plus one standard deviation of the law (of the joint draws, which
  spread where data are sparse and where the forms disagree);
- no weight exceeds the largest weight of its domain in the design;
- the mean distance to the nearest three design mixtures is at most the 90th percentile of this distance among the
  design's own mixtures (distance of square roots, as Hellinger's);
- a mixture half-way back to the natural one is always among the candidates, if a natural one is given;
- the remaining optimism is measured and subtracted: the runs are split into halves, the law of one half chooses a
  mixture, and the law of the other half evaluates it. The gain that disappears in this evaluation is the ``optimism``
  (times 1 / sqrt 2 for the whole law). If the mixture has no effect, the predicted probability of being better than the
  natural mixture is then one half on average.

The search evolves a population, because the surface is cheap to evaluate in batches, flat, and has kinks at the bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.spatial.distance import cdist

from armillary.laws.estimator import Array, Prediction, checked_mixtures
from armillary.laws.mixture.design import checked_bounds, into_bounds
from armillary.laws.mixture.law import MOVER, MixtureLaw
from armillary.laws.mixture.outliers import MIN_ROWS
from armillary.recipe import UsageError

PESSIMISM = 1.0
NEIGHBOURS = 3
NEAR = 0.9
SHRINK = 0.5

# Candidates differ in at least this share of the tokens (total variation distance).
DISTINCT = 0.1

POPULATION = 256
GENERATIONS = 24

# Number of splits into halves for the optimism, one for many mixtures (with little optimism and slow laws), and the
# smaller settings for the law and the search of a half.
SPLITS, MANY = 2, 256
HALF_DRAWS, HALF_GENERATIONS = 16, 12

# The law's own spread counts as this many observations of the halves' error.
LUCK_COUNT = 2.0

# A weight is moved this far up and down to see whether it matters.
STEP = 0.05


@dataclass(frozen=True)
class Optimum:
    """A candidate mixture.

    Attributes:
        weights: [d], summing to 1.
        predicted: target loss of one new run with its 90 % interval, scalars.
        better_than: for each reference mixture, the probability that the expected target is lower here than there,
            after ``optimism``. One half where there are too few runs (fewer than 16 mixtures) to estimate it.
        optimism: for each reference mixture, the part of the predicted gain over it that is due to the choice, in units
            of the target; the whole gain if there are too few runs for an estimate.
        noise: standard deviation of the target of one run here.
        flat_low, flat_high: [d] lowest and highest value of each weight among mixtures predicted within ``noise`` of
            the best one, with the other weights free; the same for all candidates. matters: [d] the least cost of a
            weight 0.05 lower or higher than in the best mixture (the worse of both, if bounds and support allow it),
            with the other weights free, in units of ``noise``. Below 1, no single run would show it; the same for all
            candidates.
        shrunken: whether it is half-way between the best and the natural mixture.
    """

    weights: Array
    predicted: Prediction
    better_than: dict[str, float]
    optimism: dict[str, float]
    noise: float
    flat_low: Array
    flat_high: Array
    matters: Array
    shrunken: bool = False


def epoch_ceilings(domain_tokens: ArrayLike, budget_tokens: float, max_epochs: float) -> Array:
    """Largest weight [d] of each domain that repeats none more than ``max_epochs`` times at the whole budget.

    Args:
        domain_tokens: [d] tokens that each domain has; infinite for no limit.
        budget_tokens: tokens of the run that the mixture is for.
        max_epochs: how often a token may be seen.

    Raises:
        UsageError: a number that is not above 0.
    """
    tokens = np.asarray(domain_tokens, dtype=float)
    if np.isnan(tokens).any() or (tokens < 0).any():
        raise UsageError(f"domain_tokens are {tokens.tolist()}; give each domain's number of tokens")
    for name, value in (("budget_tokens", budget_tokens), ("max_epochs", max_epochs)):
        if not value > 0:
            raise UsageError(f"{name} is {value:g}; it must be above 0")
    return np.minimum(1.0, max_epochs * tokens / budget_tokens)


def optimise_mixture(
    law: MixtureLaw,
    weights: ArrayLike,
    *,
    upper: ArrayLike,
    lower: ArrayLike,
    support: ArrayLike,
    references: Mapping[str, ArrayLike],
    candidates: int,
    seed: int,
    size: float | None = None,
    tokens: float | None = None,
) -> list[Optimum]:
    """Several distinct mixtures with a low pessimistic target, the best first.

    The shrunken candidate is added last if ``references`` has a ``natural`` mixture, ``candidates`` is at least 2, and
    it differs from all others.

    Args:
        law: a fitted mixture law.
        weights: [v] of each validation domain in the target.
        upper: [d] ceilings (by choice, and by ``epoch_ceilings``).
        lower: [d] floors.
        support: [n, d] the mixtures that were run.
        references: mixtures [d] to compare with, by name.
        candidates: how many, at least 1.
        seed: of the search.
        size: parameters of the models that the mixture is for; the largest fitted size if not given.
        tokens: that these are trained on; those of the runs of that size if not given. If the law does not know the
            level of losses there, mixtures are only ranked, and ``predicted`` has an interval from 0 to infinity.

    Raises:
        UsageError: bounds without a mixture, or without a mixture near the runs; wrong shapes; a size outside the law's
            range.
    """
    target = law.checked_weights(weights)
    design = checked_mixtures("support", support, columns=law.mixtures_.shape[1])
    floor, ceiling = checked_bounds(lower, upper, design.shape[1])
    known = {
        name: checked_mixtures(f"references['{name}']", np.reshape(mixture, (1, -1)), columns=design.shape[1])
        for name, mixture in references.items()
    }
    if candidates < 1:
        raise UsageError(f"candidates is {candidates}; give at least 1")
    if size is None and tokens is None and len(law.sizes_):
        size = float(law.sizes_[-1])
    region = _Region(design, floor, ceiling)
    rng = np.random.default_rng(seed)

    goal = _Goal(law, target, size, tokens)
    found, values = _evolve(goal.pessimistic, region, rng)
    chosen = [found[values.argmin()]]
    natural = known.get("natural")
    shrunken = None
    if natural is not None and candidates > 1:
        between = into_bounds((1 - SHRINK) * chosen[0][None] + SHRINK * natural, floor, ceiling)[0]
        if _variation(between, chosen[0]) >= DISTINCT / 2:
            shrunken = between
    wanted = candidates - (shrunken is not None)
    for i in values.argsort():
        if len(chosen) == wanted:
            break
        if all(
            _variation(found[i], other) >= DISTINCT for other in (*chosen, *([] if shrunken is None else [shrunken]))
        ):
            chosen.append(found[i])
    mixtures = np.array(chosen if shrunken is None else [*chosen, shrunken])
    predicted = law.target(mixtures, target, sizes=size, tokens=tokens)
    noise = law.target_noise(mixtures, target, sizes=size, tokens=tokens)
    here = goal.draws(mixtures)
    there = {name: goal.draws(mixture) for name, mixture in known.items()}
    luck = _luck(goal, region, known, rng) if known else {}
    low, high, matters = _flatness(goal, found, values, region, float(noise[0]))
    optima = []
    for i, mixture in enumerate(mixtures):
        better, optimism = {}, {}
        for name, losses in there.items():
            gain = losses[:, 0] - here[:, i]
            if luck is None:
                optimism[name], better[name] = max(float(gain.mean()), 0.0), 0.5
                continue
            lost = luck[name]
            # Two to four halves determine the error of their mean poorly, so the law's own spread counts as two further
            # ones.
            freedom = LUCK_COUNT + len(lost) - 1
            variance = (LUCK_COUNT * gain.var() + ((lost - lost.mean()) ** 2).sum()) / freedom
            error = np.sqrt(variance * 2 / len(lost))
            # Optimism is proportional to the distance from the reference, relative to that of the best mixture.
            way = _variation(mixture, known[name][0]) / max(_variation(mixtures[0], known[name][0]), 1e-9)
            optimism[name] = float(lost.mean()) * min(way, 1.0)
            better[name] = float(stats.t.cdf((gain - optimism[name]) / max(error, 1e-12), freedom).mean())
        optima.append(
            Optimum(
                weights=mixture,
                predicted=Prediction(*(part[i] for part in predicted)),
                better_than=better,
                optimism=optimism,
                noise=float(noise[i]),
                flat_low=low,
                flat_high=high,
                matters=matters,
                shrunken=shrunken is not None and i == len(mixtures) - 1,
            )
        )
    return optima


@dataclass(frozen=True)
class _Goal:
    """The target under a law at a size."""

    law: MixtureLaw
    target: Array
    size: float | None
    tokens: float | None

    def draws(self, mixtures: Array) -> Array:
        """Target [b, m] under each joint draw."""
        return np.asarray(np.exp(self.law.draws(mixtures, sizes=self.size, tokens=self.tokens)) @ self.target)

    def expected(self, mixtures: Array) -> Array:
        """Expected target [m]."""
        return np.asarray(self.draws(mixtures).mean(0))

    def pessimistic(self, mixtures: Array) -> Array:
        """Expected target plus a standard deviation of the law, [m]."""
        losses = self.draws(mixtures)
        return np.asarray(losses.mean(0) + PESSIMISM * losses.std(0))


def _luck(
    goal: _Goal, region: _Region, known: Mapping[str, Array], rng: np.random.Generator
) -> dict[str, Array] | None:
    """For each reference, the optimism in the best mixture's gain over it, by each half of the runs [2 or 4].

    None if half of the runs is too few for a law.
    """
    law = goal.law
    # With sizes, a half may have runs of only one size, and then needs a form with a prior movement.
    kept = [name for name in law.models if law.chosen_[name].any()]
    if len(law.sizes_) and MOVER not in kept:
        kept.append(MOVER)
    _, group = np.unique(law.mixtures_.round(9), axis=0, return_inverse=True)
    group = group.reshape(-1)
    groups = int(group.max()) + 1
    if groups < 2 * MIN_ROWS:
        return None
    splits = SPLITS if groups < MANY else 1
    largest = np.array([law.run_sizes_[group == k].max() for k in range(groups)])
    lost: dict[str, list[float]] = {name: [] for name in known}
    for _ in range(splits):
        # Halves with similar sizes: every other mixture, ordered by size and then at random.
        half = np.empty(groups, dtype=int)
        half[np.lexsort((rng.uniform(size=groups), largest))] = np.arange(groups) % 2
        goals = []
        for side in (0, 1):
            rows = half[group] == side
            sizes = law.run_sizes_[rows] if len(law.sizes_) else None
            part = MixtureLaw(models=kept, bootstraps=HALF_DRAWS, seed=law.seed)
            tokens = law.run_tokens_[rows] if len(law.run_tokens_) else None
            part.fit(law.mixtures_[rows], law.held_out_.measured[rows], sizes, tokens)
            goals.append(_Goal(part, goal.target, goal.size, goal.tokens))
        for chooser, judge in (goals, goals[::-1]):
            found, values = _evolve(chooser.pessimistic, region, rng, HALF_GENERATIONS)
            best = found[values.argmin()][None]
            for name, mixture in known.items():
                both = np.concatenate([best, mixture])
                promised, kept_promise = -np.diff(chooser.expected(both))[0], -np.diff(judge.expected(both))[0]
                lost[name].append(float(kept_promise - promised) / np.sqrt(2))
    return {name: np.array(values) for name, values in lost.items()}


def _flatness(goal: _Goal, found: Array, values: Array, region: _Region, noise: float) -> tuple[Array, Array, Array]:
    """Lowest and highest value of each weight [d] among mixtures within ``noise`` of the best, and its importance.

    Args:
        goal: the target.
        found: [m, d] mixtures that the search evaluated.
        values: [m] their pessimistic targets.
        region: the admissible mixtures.
        noise: of one run.
    """
    best = found[values.argmin()]
    # The search covers the optimum's neighbourhood; add mixtures on straight lines away from it.
    aside = []
    for i, (floor, ceiling) in enumerate(zip(region.floor, region.ceiling, strict=True)):
        for weight in np.clip(best[i] + STEP * np.arange(-4, 5), floor, ceiling):
            low, high = region.floor.copy(), region.ceiling.copy()
            low[i] = high[i] = weight
            if low.sum() <= 1 <= high.sum():
                aside.append(into_bounds(best[None], low, high)[0])
    more = np.array([best, *aside])
    more = more[region.contains(more) | (np.arange(len(more)) == 0)]
    mixtures = np.concatenate([found, more])
    rise = np.concatenate([values, goal.pessimistic(more)]) - values.min()
    near = mixtures[rise <= noise]
    matters = np.zeros(len(best))
    for i, weight in enumerate(best):
        for side in (mixtures[:, i] <= weight - STEP, mixtures[:, i] >= weight + STEP):
            if side.any():
                matters[i] = max(matters[i], rise[side].min() / noise)
    return near.min(0), near.max(0), matters


class _Region:
    """The admissible mixtures: within the user's bounds and the design's largest weights, and near the design."""

    def __init__(self, design: Array, floor: Array, ceiling: Array) -> None:
        largest = design.max(0)
        self.floor = floor
        # A user's floor above the largest weight of the design takes precedence.
        self.ceiling = np.maximum(np.minimum(ceiling, largest), floor)
        if self.ceiling.sum() < 1:
            tight = np.flatnonzero((largest < ceiling) & (largest < 1)).tolist()
            raise UsageError(
                "within the upper bounds no mixture is supported by the design: its largest weights of domains "
                f"{tight} are {largest[tight].round(4).tolist()}; run a design under these bounds"
            )
        self._design = np.sqrt(np.unique(design.round(9), axis=0))
        own = np.sort(cdist(self._design, self._design), axis=1)[:, 1 : NEIGHBOURS + 1].mean(1)
        self._radius = float(np.quantile(own, NEAR))
        self.start = into_bounds(design, self.floor, self.ceiling)
        self.start = self.start[self.contains(self.start)]
        if not len(self.start):
            raise UsageError(
                "no mixture of the design, moved within the bounds, is near the design: the bounds "
                f"(lower {floor.round(4).tolist()}, upper {ceiling.round(4).tolist()}) exclude the region of the runs; "
                "run a design under these bounds"
            )

    def contains(self, mixtures: Array) -> NDArray[np.bool_]:
        """Whether mixtures [m, d] within the bounds are near the design, [m]."""
        distance = np.sort(cdist(np.sqrt(mixtures), self._design), axis=1)[:, :NEIGHBOURS].mean(1)
        return np.asarray(distance <= self._radius + 1e-12)


def _evolve(
    value: Callable[[Array], Array], region: _Region, rng: np.random.Generator, generations: int = GENERATIONS
) -> tuple[Array, Array]:
    """All evaluated admissible mixtures [m, d], and their values [m]."""
    found, values = region.start, value(region.start)
    width = 0.6
    for _ in range(generations):
        best = found[values.argsort()[: POPULATION // 8]]
        first, second = (best[rng.integers(len(best), size=POPULATION)] for _ in range(2))
        # New points between two of the best or slightly beyond, perturbed in proportion to each weight, with a few
        # domains dropped.
        share = rng.uniform(-0.3, 1.3, (POPULATION, 1))
        trial = np.maximum(share * first + (1 - share) * second, 1e-4)
        trial = trial * np.exp(width * rng.standard_normal(trial.shape))
        trial = np.where(rng.uniform(size=trial.shape) < 0.1, 1e-6, trial)
        trial = into_bounds(trial, region.floor, region.ceiling)
        trial = trial[region.contains(trial)]
        if len(trial):
            found, values = np.concatenate([found, trial]), np.concatenate([values, value(trial)])
        width *= 0.9
    return found, values


def _variation(a: Array, b: Array) -> float:
    return float(np.abs(a - b).sum() / 2)
