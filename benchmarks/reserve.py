"""What the reserve of the mixture study is worth: runs beyond the edge of the design, or around the first optimum.

    python benchmarks/reserve.py [--worlds 16] [--domains 5] [--runs 36] [--json FILE]

Every world has known losses: for each validation domain ``E + A (d0 + sum_i e^w_i x_i^g)^-a`` with random parameters,
so the best mixture is known, too. The same number of noisy proxies is spent in two ways: all on the design, or with
the study's reserve, refined in two rounds. The result is the target loss of the law's best mixture above that of the
best possible one (the regret), in nats per token. The law does not know the worlds' parameters, but one of its forms
is that of the worlds; on other surfaces the gain may be smaller.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np

from armillary.laws import MixtureLaw, into_bounds, optimise_mixture, refining_mixtures, simplex_design
from armillary.recipe import MixtureStudy

NOISE = 0.004  # relative standard deviation of a loss between seeds
ROUNDS = 2


class World:
    """Losses of mixtures [n, d] on d validation domains, target weights, and a natural mixture."""

    def __init__(self, seed: int, domains: int) -> None:
        rng = np.random.default_rng(seed)
        self.d = domains
        self._floor, self._amplitude = rng.uniform(1.5, 2.5, domains), rng.uniform(0.8, 1.6, domains)
        self._gain, self._power = rng.uniform(0.4, 0.9), rng.uniform(0.15, 0.35)
        strength = rng.normal(-1.5, 1.0, (domains, domains))
        strength[np.arange(domains), np.arange(domains)] = rng.normal(1.5, 0.5, domains)
        self._strength = np.exp(strength)
        self.weights = rng.dirichlet(np.full(domains, 0.35))
        self.lower, self.upper = np.zeros(domains), np.ones(domains)
        self.natural = into_bounds(rng.dirichlet(np.ones(domains))[None], self.lower + 0.02, self.upper)[0]
        self._rng = np.random.default_rng(seed + 1000)
        self.best = self._best()

    def losses(self, mixtures: np.ndarray) -> np.ndarray:
        data = 0.02 + (mixtures[:, None, :] ** self._gain * self._strength[None]).sum(2)
        return np.asarray(self._floor + self._amplitude * data**-self._power)

    def measured(self, mixtures: np.ndarray) -> np.ndarray:
        """The losses with the noise of a run."""
        return self.losses(mixtures) * np.exp(self._rng.normal(0, NOISE, (len(mixtures), self.d)))

    def regret(self, mixture: np.ndarray) -> float:
        return float((self.losses(mixture[None]) @ self.weights)[0] - self.best)

    def _best(self) -> float:
        """The lowest target loss of all mixtures, by a search that narrows down."""
        rng = np.random.default_rng(1)
        found = np.concatenate([rng.dirichlet(np.full(self.d, c), 10_000) for c in (0.3, 0.6, 1, 2)])
        for step in range(6):
            found = found[np.argsort(self.losses(found) @ self.weights)[:200]]
            near = found.repeat(20, 0) * np.exp(rng.normal(0, 0.3 / (step + 1), (4000, self.d)))
            found = np.concatenate([found, into_bounds(near, self.lower, self.upper)])
        return float((self.losses(found) @ self.weights).min())


def best_mixture(world: World, mixtures: np.ndarray, losses: np.ndarray, seed: int) -> np.ndarray:
    law = MixtureLaw(seed=seed).fit(mixtures, losses)
    optima = optimise_mixture(
        law,
        world.weights,
        upper=world.upper,
        lower=world.lower,
        support=mixtures,
        references={"natural": world.natural},
        candidates=3,
        seed=seed,
    )
    return optima[0].weights


def spend(world: World, runs: int, reserve: int, seed: int) -> float:
    """The regret after ``runs`` proxies, of which ``reserve`` are trained after a first fit."""
    mixtures = simplex_design(runs, world.lower, world.upper, centre=world.natural, seed=seed)[: runs - reserve]
    losses = world.measured(mixtures)
    best = best_mixture(world, mixtures, losses, seed)
    for number in range(ROUNDS if reserve else 0):
        count = (reserve - number * (reserve // ROUNDS)) if number == ROUNDS - 1 else reserve // ROUNDS
        more = refining_mixtures(best, mixtures, world.lower, world.upper, count=count, seed=seed + number)
        mixtures, losses = np.vstack([mixtures, more]), np.vstack([losses, world.measured(more)])
        best = best_mixture(world, mixtures, losses, seed)
    return world.regret(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=16)
    parser.add_argument("--domains", type=int, default=5)
    parser.add_argument("--runs", type=int, default=36)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    reserve = round(MixtureStudy().reserve * options.runs)
    regrets: dict[str, list[float]] = {"all designed": [], f"{reserve} in reserve": []}
    for seed in range(options.worlds):
        for name, kept in zip(regrets, (0, reserve), strict=True):
            regrets[name].append(spend(World(seed, options.domains), options.runs, kept, seed))
        print(f"world {seed + 1} of {options.worlds}: " + ", ".join(f"{n} {v[-1]:.4f}" for n, v in regrets.items()))
    for name, values in regrets.items():
        print(f"{name}: mean {np.mean(values):.5f}, median {np.median(values):.5f}, largest {max(values):.4f}")
    if options.json:
        options.json.write_text(json.dumps(regrets, indent=1))


if __name__ == "__main__":
    main()
