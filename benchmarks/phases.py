"""Two phases as one design against the mixture first and its sharpening afterwards.

    python benchmarks/phases.py [--worlds 12] [--domains 5] [--runs 48] [--json FILE]

Every world has known losses: for each validation domain ``E + A (d0 + sum_i e^w_i z_i^g)^-a`` of an effective mixture
``z`` of both phases, in which a token of the annealing counts k times as much, with another k for each pair of domains.
A decay that is longer or shorter than the world's best one costs loss, too. The same number of noisy runs is spent in
three ways:

- *first, then sharpened*: three quarters of the runs on the mixture (law, reserve), the others on annealings of the
  best mixture: three shares, each with several powers. The annealing of the lowest measured loss is taken;
- *two phases*: all runs on points of both mixtures and the share (``PhaseLaw``), a fifth of them as a reserve;
- *one phase*: the best mixture of the first way with the usual decay.

The result is the target loss above that of the best possible point (the regret), in nats per token.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np

from armillary.laws import (
    MixtureLaw,
    PhaseBounds,
    PhaseLaw,
    into_bounds,
    optimise_mixture,
    optimise_phases,
    phase_design,
    refining_mixtures,
    refining_points,
    simplex_design,
)

NOISE = 0.004  # relative standard deviation of a loss between seeds
SHARES = (0.1, 0.2, 0.4)
RANGE = (0.05, 0.6)
RESERVE, ROUNDS = 0.2, 2


class World:
    """Losses of points [n, 2d + 1] on d validation domains, target weights, and a natural mixture."""

    def __init__(self, seed: int, domains: int) -> None:
        rng = np.random.default_rng(seed)
        self.d = domains
        self._floor, self._amplitude = rng.uniform(1.5, 2.5, domains), rng.uniform(0.8, 1.6, domains)
        self._gain, self._power = rng.uniform(0.4, 0.9), rng.uniform(0.15, 0.35)
        strength = rng.normal(-1.5, 1.0, (domains, domains))
        strength[np.arange(domains), np.arange(domains)] = rng.normal(1.5, 0.5, domains)
        self._strength = np.exp(strength)
        self._late = np.exp(rng.normal(0.7, 0.5, (domains, domains)))
        self._best_share, self._curvature = float(np.exp(rng.normal(np.log(0.2), 0.3))), rng.uniform(0.002, 0.01)
        self.weights = rng.dirichlet(np.full(domains, 0.35))
        self.bounds = PhaseBounds(np.zeros(domains), np.ones(domains), np.ones(domains), RANGE)
        self.natural = into_bounds(rng.dirichlet(np.ones(domains))[None], np.full(domains, 0.02), np.ones(domains))[0]
        self._rng = np.random.default_rng(seed + 1000)
        self.best = self._best()

    def losses(self, points: np.ndarray) -> np.ndarray:
        stable, annealing, share = points[:, : self.d], points[:, self.d : -1], points[:, -1, None, None]
        w = self._late * share / (1 - share + self._late * share)  # [n, validation, training]
        mixed = (1 - w) * stable[:, None, :] + w * annealing[:, None, :]
        data = 0.02 + (mixed**self._gain * self._strength).sum(2)
        decay = 1 + self._curvature * np.log(points[:, -1:] / self._best_share) ** 2
        return np.asarray((self._floor + self._amplitude * data**-self._power) * decay)

    def measured(self, points: np.ndarray) -> np.ndarray:
        """The losses with the noise of a run."""
        return self.losses(points) * np.exp(self._rng.normal(0, NOISE, (len(points), self.d)))

    def regret(self, point: np.ndarray) -> float:
        return float((self.losses(point[None]) @ self.weights)[0] - self.best)

    def _best(self) -> float:
        rng = np.random.default_rng(1)
        parts = [np.concatenate([rng.dirichlet(np.full(self.d, c), 8000) for c in (0.3, 0.6, 1, 2)]) for _ in range(2)]
        found = np.column_stack([*parts, np.exp(rng.uniform(*np.log(RANGE), len(parts[0])))])
        for step in range(8):
            found = found[np.argsort(self.losses(found) @ self.weights)[:200]]
            near = found.repeat(20, 0) * np.exp(rng.normal(0, 0.3 / (step + 1), (4000, 2 * self.d + 1)))
            found = np.concatenate([found, self.bounds.within(near)])
        return float((self.losses(found) @ self.weights).min())


def as_points(mixtures: np.ndarray, share: float = 0.2) -> np.ndarray:
    """Points with one mixture in both phases."""
    return np.column_stack([mixtures, mixtures, np.full(len(mixtures), share)])


def one_phase(world: World, runs: int, seed: int) -> np.ndarray:
    """The best mixture of the law after ``runs`` proxies, a fifth of them as the reserve of the study."""
    lower, upper = world.bounds.lower, world.bounds.upper
    reserve = round(RESERVE * runs)
    mixtures = simplex_design(runs, lower, upper, centre=world.natural, seed=seed)[: runs - reserve]
    losses = world.measured(as_points(mixtures))
    for number in range(ROUNDS + 1):
        law = MixtureLaw(bootstraps=40, seed=seed).fit(mixtures, losses)
        best = optimise_mixture(
            law,
            world.weights,
            upper=upper,
            lower=lower,
            support=mixtures,
            references={},
            candidates=1,
            seed=seed,
        )[0].weights
        if number < ROUNDS:
            count = reserve // ROUNDS + (number == 0) * (reserve % ROUNDS)
            more = refining_mixtures(best, mixtures, lower, upper, count=count, seed=seed + number)
            mixtures = np.vstack([mixtures, more])
            losses = np.vstack([losses, world.measured(as_points(more))])
    return best


def sharpened(world: World, mixture: np.ndarray, runs: int) -> np.ndarray:
    """The annealing with the lowest measured loss among ``runs`` of them."""
    powers = np.linspace(1, 3, runs // len(SHARES))
    options = []
    for share in SHARES:
        for power in powers:
            ending = mixture**power / (mixture**power).sum()
            options.append(np.concatenate([mixture, ending, [share]]))
    return options[int((world.measured(np.array(options)) @ world.weights).argmin())]


def two_phases(world: World, runs: int, seed: int) -> np.ndarray:
    """The best point of the law after ``runs`` proxies of the joint design."""
    reserve = round(RESERVE * runs)
    tried = PhaseBounds(world.bounds.lower, world.bounds.upper, world.bounds.passes, (SHARES[0], SHARES[-1]))
    points = phase_design(runs - reserve, tried, centre=world.natural, seed=seed)
    losses = world.measured(points)
    natural = as_points(world.natural[None])[0]
    for number in range(ROUNDS + 1):
        law = PhaseLaw().fit(points, losses)
        found = optimise_phases(
            law, world.weights, world.bounds, support=points, natural=natural, candidates=1, seed=seed
        )
        best = found.points[0]
        if number < ROUNDS:
            count = reserve // ROUNDS + (number == 0) * (reserve % ROUNDS)
            more = refining_points(best, points, world.bounds, count=count, seed=seed + 10 * number)
            points, losses = np.vstack([points, more]), np.vstack([losses, world.measured(more)])
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=12)
    parser.add_argument("--domains", type=int, default=5)
    parser.add_argument("--runs", type=int, default=48)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    regrets: dict[str, list[float]] = {"one phase": [], "first, then sharpened": [], "two phases": []}
    for seed in range(options.worlds):
        world = World(seed, options.domains)
        annealings = options.runs // 4
        mixture = one_phase(world, options.runs - annealings, seed)
        found = (
            as_points(mixture[None])[0],
            sharpened(world, mixture, annealings),
            two_phases(world, options.runs, seed),
        )
        for name, point in zip(regrets, found, strict=True):
            regrets[name].append(world.regret(point))
        print(
            f"world {seed + 1} of {options.worlds}: " + ", ".join(f"{n} {v[-1]:.4f}" for n, v in regrets.items()),
            flush=True,
        )
    for name, values in regrets.items():
        print(f"{name}: mean {np.mean(values):.5f}, median {np.median(values):.5f}, largest {max(values):.4f}")
    if options.json:
        options.json.write_text(json.dumps(regrets, indent=1))


if __name__ == "__main__":
    main()
