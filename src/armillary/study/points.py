"""What a proxy of the mixture study tries: a mixture, or a mixture for each of two phases and the share of the decay.

A *point* is a row of numbers: the weights [d] of one mixture, or [2d + 1] for two phases, as ``laws.PhaseLaw`` takes
them. The studies handle points alike; the classes here turn them into runs, keep them within the limits, and name what
lies at an edge.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from armillary.laws import (
    PhaseBounds,
    phase_design,
    refining_mixtures,
    refining_points,
    simplex_design,
    split_points,
    weights_at_ends,
)
from armillary.recipe import Decay, RunSpec
from armillary.study.lab import Annealing, Edge, Lab, RunSize

# The decay of proxies on one mixture, as of the target. The annealing study decides later; this is the usual result.
SHAPE: Decay = "linear"
PROXY_ANNEALING = Annealing(share=0.2, shape=SHAPE)
# The shortest decay of two phases.
LEAST_SHARE = 0.02
# Shares that differ by less, relative to the share, are the same.
_SAME = 1e-3


class Points(Protocol):
    """A kind of points; every point is an array [k]."""

    def design(self, runs: int, natural: np.ndarray, seed: int) -> np.ndarray:
        """Points [runs, k]: that of the ``natural`` mixture [d], that of the uniform one, and others."""

    def plain(self, mixture: np.ndarray) -> np.ndarray:
        """The point of a run on one mixture [d] with the usual decay."""

    def within(self, point: np.ndarray) -> np.ndarray:
        """The point itself if it is within the limits, else the nearest one with the same proportions."""

    def further(self, best: np.ndarray, tried: np.ndarray, *, count: int, seed: int) -> np.ndarray:
        """Points [count, k] beyond the edges that ``best`` touches, else around it."""

    def edges(self, best: np.ndarray, tried: np.ndarray) -> list[Edge]:
        """What of ``best`` lies at an end of the points ``tried`` [n, k], or at a limit."""

    def mixture(self, point: np.ndarray) -> dict[str, float]:
        """The mixture of the stable phase."""

    def annealing(self, point: np.ndarray) -> Annealing:
        """The decay of a run at the point."""

    def run(self, size: RunSize, point: np.ndarray, seed: int) -> RunSpec:
        """A run at the point."""


class OnePhase:
    """Points that are mixtures [d] of a whole run."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._allowed = lab, lab.allowed()

    def design(self, runs: int, natural: np.ndarray, seed: int) -> np.ndarray:
        """See ``Points``."""
        return simplex_design(runs, self._allowed.lower, self._allowed.upper, centre=natural, seed=seed)

    def plain(self, mixture: np.ndarray) -> np.ndarray:
        """See ``Points``."""
        return mixture

    def within(self, point: np.ndarray) -> np.ndarray:
        """See ``Points``."""
        return self._allowed.within(point)

    def further(self, best: np.ndarray, tried: np.ndarray, *, count: int, seed: int) -> np.ndarray:
        """See ``Points``."""
        found = refining_mixtures(best, tried, self._allowed.lower, self._allowed.upper, count=count, seed=seed)
        return np.array([self._allowed.within(row) for row in found])

    def edges(self, best: np.ndarray, tried: np.ndarray) -> list[Edge]:
        """See ``Points``."""
        return [
            Edge(of=self._allowed.domains[at.domain], value=float(best[at.domain]), end=at.end, by=at.by)
            for at in weights_at_ends(best, tried, self._allowed.lower, self._allowed.upper)
        ]

    def mixture(self, point: np.ndarray) -> dict[str, float]:
        """See ``Points``."""
        return self._lab.named(point)

    def annealing(self, point: np.ndarray) -> Annealing:
        """See ``Points``."""
        return PROXY_ANNEALING

    def run(self, size: RunSize, point: np.ndarray, seed: int) -> RunSpec:
        """See ``Points``."""
        return self._lab.annealed(size, self.annealing(point), self.mixture(point), seed)


class TwoPhases:
    """Points [2d + 1] of a mixture for each phase and the share of the decay."""

    def __init__(self, lab: Lab) -> None:
        study, allowed = lab.recipe.study.anneal, lab.allowed()
        self._lab, self._allowed = lab, allowed
        self._tried = (min(study.shares), max(study.shares))
        several = len(study.shares) > 1
        ends = (min(LEAST_SHARE, self._tried[0]), max(study.max_share, self._tried[1])) if several else self._tried
        self.bounds = self._bounds(ends)

    def _bounds(self, shares: tuple[float, float]) -> PhaseBounds:
        allowed = self._allowed
        return PhaseBounds(allowed.lower, np.minimum(allowed.ceilings, 1.0), allowed.by_epochs, shares)

    def design(self, runs: int, natural: np.ndarray, seed: int) -> np.ndarray:
        """See ``Points``; the shares lie between those that the annealing study lists."""
        return phase_design(runs, self._bounds(self._tried), centre=natural, seed=seed)

    def plain(self, mixture: np.ndarray) -> np.ndarray:
        """See ``Points``."""
        share = float(np.clip(PROXY_ANNEALING.share, *self._tried))
        return np.concatenate([mixture, mixture, [share]])

    def within(self, point: np.ndarray) -> np.ndarray:
        """See ``Points``."""
        return np.asarray(self.bounds.within(point[None])[0])

    def further(self, best: np.ndarray, tried: np.ndarray, *, count: int, seed: int) -> np.ndarray:
        """See ``Points``."""
        return refining_points(best, tried, self.bounds, count=count, seed=seed)

    def edges(self, best: np.ndarray, tried: np.ndarray) -> list[Edge]:
        """See ``Points``; weights of the annealing mixture are named ``annealing: domain``."""
        found = []
        one, two, share = (part[0] for part in split_points(best))
        parts = split_points(tried)
        uppers = (self._allowed.upper, self.bounds.upper)
        for prefix, mixture, rows, upper in zip(("", "annealing: "), (one, two), parts[:2], uppers, strict=True):
            for at in weights_at_ends(mixture, rows, self.bounds.lower, upper):
                name = f"{prefix}{self._allowed.domains[at.domain]}"
                found.append(Edge(of=name, value=float(mixture[at.domain]), end=at.end, by=at.by))
        ends = {"low": (parts[2].min(), self.bounds.shares[0], -1), "high": (parts[2].max(), self.bounds.shares[1], 1)}
        for end, (last, limit, outward) in ends.items():
            if self.bounds.shares[0] < self.bounds.shares[1] and outward * (share - last) >= -_SAME * last:
                by = "limits" if outward * (limit - share) <= _SAME * limit else "tried"
                found.append(Edge(of="share", value=float(share), end=end, by=by))
        return found

    def mixture(self, point: np.ndarray) -> dict[str, float]:
        """See ``Points``."""
        return self._lab.named(split_points(point)[0][0])

    def annealing(self, point: np.ndarray) -> Annealing:
        """See ``Points``; without ``weights`` if both phases have one mixture."""
        one, two, share = (part[0] for part in split_points(point))
        weights = () if np.abs(one - two).max() < _SAME / 10 else tuple(self._lab.named(two).items())
        return Annealing(share=float(share), shape=SHAPE, weights=weights)

    def run(self, size: RunSize, point: np.ndarray, seed: int) -> RunSpec:
        """See ``Points``."""
        return self._lab.annealed(size, self.annealing(point), self.mixture(point), seed)
