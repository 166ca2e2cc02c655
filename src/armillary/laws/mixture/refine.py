"""Mixtures for a second round of runs: beyond the edge of the tried range, or around the optimum.

A law is only optimised where runs support it. If its optimum lies at the largest or smallest weight tried, a better
mixture may lie beyond. The next runs then move outward from the optimum, towards the limit. Otherwise they surround it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from armillary.laws.estimator import Array
from armillary.laws.mixture.design import into_bounds

# A weight within this distance of an end of its range counts as at the end.
AT_END = 1e-3
# The farthest new mixture moves a weight by this share of the way from the optimum to its limit.
REACH = 0.6
# Standard deviation of the logarithm of a weight around the optimum, and what is added to weights near 0.
SPREAD, LEAST = 0.5, 0.005


@dataclass(frozen=True)
class WeightAtEnd:
    """A weight of the best mixture at an end of its range: the ``tried`` one, or the one that the ``limits`` allow."""

    domain: int
    end: Literal["low", "high"]
    by: Literal["tried", "limits"]


def weights_at_ends(best: Array, tried: Array, lower: Array, upper: Array) -> list[WeightAtEnd]:
    """The weights of ``best`` [d] at an end of the tried range or at a limit.

    Args:
        best: the mixture [d].
        tried: mixtures [n, d] that were run.
        lower: floors [d]. upper: ceilings [d].

    A weight of 0 or 1 does not count, since no weight is smaller or larger.
    """
    low, high = _reachable(lower, upper)
    found: list[WeightAtEnd] = []
    for i, weight in enumerate(best):
        for end, extreme, limit, last in (
            ("low", tried[:, i].min(), low[i], 0.0),
            ("high", tried[:, i].max(), high[i], 1.0),
        ):
            outward = 1 if end == "high" else -1
            if outward * (limit - weight) <= AT_END:
                if abs(limit - last) > AT_END:
                    found.append(WeightAtEnd(i, end, "limits"))  # type: ignore[arg-type]
            elif outward * (extreme - weight) <= AT_END:
                found.append(WeightAtEnd(i, end, "tried"))  # type: ignore[arg-type]
    return found


def refining_mixtures(best: Array, tried: Array, lower: Array, upper: Array, *, count: int, seed: int) -> Array:
    """``count`` mixtures [count, d] to run next, within the bounds.

    If weights of ``best`` are at an end of the tried range, they move towards their limits in equal steps, and the
    others keep their proportions. Otherwise the mixtures are random ones around ``best``. The arguments are as in
    ``weights_at_ends``; ``seed`` is that of the random ones.
    """
    low, high = _reachable(lower, upper)
    ends = [end for end in weights_at_ends(best, tried, lower, upper) if end.by == "tried"]
    if not ends:
        spread = np.random.default_rng(seed).normal(0.0, SPREAD, (count, len(best)))
        return into_bounds(best * np.exp(spread) + LEAST, low, high)
    mixtures = []
    for step in (np.arange(count) + 1) / count:
        floor, ceiling, wanted = low.copy(), high.copy(), best.copy()
        for at in ends:
            i, moved = at.domain, high if at.end == "high" else low
            wanted[i] += REACH * step * (moved[i] - best[i])
            (floor if at.end == "high" else ceiling)[i] = wanted[i]
        # Several weights that grow together can exceed 1, and several that fall can leave a gap: move less then.
        floor -= max(0.0, floor.sum() - 1) * _shares(floor - low)
        ceiling += max(0.0, 1 - ceiling.sum()) * _shares(high - ceiling)
        mixtures.append(into_bounds(wanted[None], floor, ceiling)[0])
    return np.array(mixtures)


def _reachable(lower: Array, upper: Array) -> tuple[Array, Array]:
    """The smallest and largest value of each weight [d] that leave the others within their bounds."""
    return np.maximum(lower, 1 - (upper.sum() - upper)), np.minimum(upper, 1 - (lower.sum() - lower))


def _shares(parts: Array) -> Array:
    total = parts.sum()
    return parts / total if total > 0 else np.zeros_like(parts)
