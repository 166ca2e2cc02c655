"""Mixtures to run: a space-filling design on the simplex, within a floor and a ceiling for each weight.

Trade-off: a uniform design on the simplex of 8 domains hardly ever gives a domain more than half, and a maximin design
gives nothing but corners. The points here come from Dirichlet distributions of several widths, centred anywhere between
the natural and the uniform mixture. So they cover the neighbourhood of the usual mixtures as well as the far ends. A
scrambled Sobol sequence (Owen 1998) gives all random numbers, so the points spread evenly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from armillary.laws.estimator import Array, checked_mixtures
from armillary.recipe import UsageError, counted

# Concentration of the Dirichlet distributions as the sum of its parameters per domain: from nearly pure to even.
CONCENTRATION = (0.4, 4.0)


def simplex_design(n: int, lower: ArrayLike, upper: ArrayLike, *, centre: ArrayLike, seed: int) -> Array:
    """``n`` mixtures [n, d] that fill the simplex within the bounds.

    Args:
        n: how many, at least 2.
        lower: [d] floors.
        upper: [d] ceilings.
        centre: [d] the natural mixture, which becomes the first row unchanged; the second row is the uniform mixture,
            moved into the bounds.
        seed: of the scrambling.

    Raises:
        UsageError: fewer than 2 mixtures, bounds without a mixture, a centre that is not a mixture.
    """
    natural = checked_mixtures("centre", np.reshape(np.asarray(centre, dtype=float), (1, -1)))[0]
    floor, ceiling = checked_bounds(lower, upper, len(natural))
    if n < 2:
        raise UsageError(
            f"a design of {counted(n, 'mixture')} was requested; at least 2 are needed (natural and uniform)"
        )
    d = len(natural)
    uniform = np.full(d, 1 / d)
    quasi = stats.qmc.Sobol(d + 2, scramble=True, seed=seed).random(1 << max(1, (n - 1).bit_length()))[: n - 2]
    quasi = np.clip(quasi, 1e-9, 1 - 1e-9)
    middle = quasi[:, d, None] * natural + (1 - quasi[:, d, None]) * uniform
    concentration = d * CONCENTRATION[0] * (CONCENTRATION[1] / CONCENTRATION[0]) ** quasi[:, d + 1, None]
    # Gamma variates over their sum are Dirichlet. The lower limit keeps domains of tiny natural weight in the design.
    gamma = stats.gamma.ppf(quasi[:, :d], np.maximum(middle * concentration, 0.1)) + 1e-12
    points = np.concatenate([uniform[None], gamma / gamma.sum(1, keepdims=True)])
    return np.concatenate([natural[None], into_bounds(points, floor, ceiling)])


def checked_bounds(lower: ArrayLike, upper: ArrayLike, domains: int) -> tuple[Array, Array]:
    """Check floors and ceilings [d] and return them as arrays.

    Raises:
        UsageError: wrong length, a bound that is not finite, a floor above its ceiling or below 0, floors summing to
            more than 1, ceilings to less.
    """
    floor, ceiling = np.asarray(lower, dtype=float), np.asarray(upper, dtype=float)
    for name, bound in (("lower", floor), ("upper", ceiling)):
        if bound.shape != (domains,):
            raise UsageError(
                f"{name} has shape {list(bound.shape)}; give one bound for each of {counted(domains, 'domain')}"
            )
        if not np.isfinite(bound).all():
            raise UsageError(f"{name}[{int(np.flatnonzero(~np.isfinite(bound))[0])}] is not a finite number")
    ceiling = np.minimum(ceiling, 1.0)
    for i in np.flatnonzero((floor > ceiling) | (floor < 0) | (ceiling < 0)):
        raise UsageError(
            f"bounds of weight {i}: lower {floor[i]:g}, upper {ceiling[i]:g}; it must satisfy 0 <= lower <= upper"
        )
    if floor.sum() > 1 + 1e-9:
        raise UsageError(
            f"the lower bounds sum to {floor.sum():.6g}, more than 1: {floor.round(4).tolist()}; lower some"
        )
    if ceiling.sum() < 1 - 1e-9:
        raise UsageError(
            f"the upper bounds sum to {ceiling.sum():.6g}, less than 1: {ceiling.round(4).tolist()}; raise some "
            "(more epochs, or fewer tokens)"
        )
    return floor, ceiling


def into_bounds(points: Array, lower: Array, upper: Array) -> Array:
    """Points [m, d] (not negative) scaled row by row, then cut to the bounds, such that each row sums to 1.

    Scaling keeps the proportions of all weights that do not meet a bound.
    """
    inside = np.maximum(points, 1e-12)
    low, high = np.full((len(points), 1), -80.0), np.full((len(points), 1), 80.0)
    for _ in range(100):  # bisection on the logarithm of the scale, since the sum grows with it
        middle = (low + high) / 2
        short = np.clip(np.exp(middle) * inside, lower, upper).sum(1, keepdims=True) < 1
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.asarray(np.clip(np.exp((low + high) / 2) * inside, lower, upper))
