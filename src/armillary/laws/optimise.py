"""The best mixtures for a target, under limits, and only where the law has seen runs nearby.

A law's unrestrained optimum lies where the law knows least: a minimum over many guesses picks the luckiest error. So

- what is minimised is pessimistic: the expected target plus one standard deviation of the law there (the joint draws,
  which spread where data are thin and where the forms disagree);
- no weight goes beyond the largest that the design gave its domain;
- the mean distance to the nearest three design mixtures is at most what nine tenths of the design's own mixtures have
  to theirs (distance of square roots, as Hellinger's);
- a mixture half-way back to the natural one is always among the candidates, if a natural one is given.

The search is an evolution of a population: the surface is cheap to ask in batches, flat, and has kinks at the bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from armillary.laws.design import checked_bounds, into_bounds
from armillary.laws.estimator import Array, Prediction, checked_mixtures
from armillary.laws.mixture import MixtureLaw
from armillary.recipe import UsageError

PESSIMISM = 1.0
NEIGHBOURS = 3
NEAR = 0.9
SHRINK = 0.5

# Candidates differ in at least this share of the tokens (total variation distance).
DISTINCT = 0.1

POPULATION = 256
GENERATIONS = 24


@dataclass(frozen=True)
class Optimum:
    """A candidate mixture.

    Attributes:
        weights: [d], summing to 1.
        predicted: target loss of one new run at proxy size with its 90 % interval, scalars.
        better_than: for each reference mixture, the probability that the expected target is lower here than there.
        shrunken: whether it lies half-way between the best and the natural mixture.
    """

    weights: Array
    predicted: Prediction
    better_than: dict[str, float]
    shrunken: bool = False


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
) -> list[Optimum]:
    """Several distinct mixtures with a low pessimistic target, the best first.

    The shrunken candidate is added last if ``references`` has a ``natural`` mixture, ``candidates`` is at least 2, and
    it differs from all others.

    Args:
        law: a fitted mixture law.
        weights: [v] of the validation domains in the target.
        upper: [d] ceilings (a limit on epochs gives one for each domain).
        lower: [d] floors.
        support: [n, d] the design's mixtures, near which the answer must stay.
        references: mixtures [d] to compare with, such as ``natural`` and ``uniform``.
        candidates: at most so many.
        seed: of the search.

    Raises:
        UsageError: bounds that no mixture fulfils, or none near the design; wrong shapes or mixtures.
    """
    target = law.checked_weights(weights)
    d = law.mixtures_.shape[1]
    floor, ceiling = checked_bounds(lower, upper, d)
    design = checked_mixtures("support", support, columns=d, rows=NEIGHBOURS + 1)
    known = {
        name: checked_mixtures(f"reference '{name}'", np.reshape(np.asarray(mixture, dtype=float), (1, -1)), columns=d)
        for name, mixture in references.items()
    }
    if candidates < 1:
        raise UsageError(f"{candidates} candidates were asked for; ask for at least 1")
    region = _Region(design, floor, ceiling)
    rng = np.random.default_rng(seed)

    def pessimistic(mixtures: Array) -> Array:
        losses = np.exp(law.draws(mixtures)) @ target  # [b, m]
        return np.asarray(losses.mean(0) + PESSIMISM * losses.std(0))

    found, values = _evolve(pessimistic, region, rng)
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
    predicted = law.target(mixtures, target)
    here = np.exp(law.draws(mixtures)) @ target
    there = {name: np.exp(law.draws(mixture)) @ target for name, mixture in known.items()}
    return [
        Optimum(
            weights=mixture,
            predicted=Prediction(*(part[i] for part in predicted)),
            better_than={name: float((here[:, i] < losses[:, 0]).mean()) for name, losses in there.items()},
            shrunken=shrunken is not None and i == len(mixtures) - 1,
        )
        for i, mixture in enumerate(mixtures)
    ]


class _Region:
    """Where mixtures may lie: the user's bounds, the design's largest weights, and near the design."""

    def __init__(self, design: Array, floor: Array, ceiling: Array) -> None:
        largest = design.max(0)
        self.floor = floor
        # A floor that the user sets above what was seen is the user's word.
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
                "no mixture of the design, brought into the bounds, lies near the design: the bounds "
                f"(lower {floor.round(4).tolist()}, upper {ceiling.round(4).tolist()}) exclude where runs were made; "
                "run a design under these bounds"
            )

    def contains(self, mixtures: Array) -> NDArray[np.bool_]:
        """Whether mixtures [m, d], which fulfil the bounds, are near the design, [m]."""
        distance = np.sort(cdist(np.sqrt(mixtures), self._design), axis=1)[:, :NEIGHBOURS].mean(1)
        return np.asarray(distance <= self._radius + 1e-12)


def _evolve(value: Callable[[Array], Array], region: _Region, rng: np.random.Generator) -> tuple[Array, Array]:
    """All admissible mixtures asked [m, d], and their values [m]."""
    found, values = region.start, value(region.start)
    width = 0.6
    for _ in range(GENERATIONS):
        best = found[values.argsort()[: POPULATION // 8]]
        first, second = (best[rng.integers(len(best), size=POPULATION)] for _ in range(2))
        # Between two of the best, a little beyond, and disturbed in proportion to each weight; a few domains dropped.
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
