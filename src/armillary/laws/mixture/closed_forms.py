"""Mixture laws in closed form, whose parameters move with the size of the model.

- ``EffectiveData``: ``loss = E + A (d0 + sum_i e^{w_i} x_i^g)^-a`` for each validation domain. Each training domain
  helps the validation domain with a fitted strength, and data of one domain have diminishing returns.
- ``Exponential``: ``loss = c + k exp(sum_i t_i x_i)`` (Ye et al. 2024, arXiv 2403.16952, equation 6).

Parameters are logarithms (except ``t``), and each is linear in the logarithm of the model's size:
``theta(N) = theta + s theta'`` with ``s = ln(N / N_largest)``. So each follows a power of N. Trade-offs:

- The validation domains share their movement. A first pass estimates each domain's movement, and later passes shrink
  all of them towards their mean, by the spread that was found. So a few runs at a second size suffice.
- With runs of one size, the movement is that of the prior. Losses fall, and the domains whose loss depends most on the
  mixture approach the others. Both were measured between 1M and 60M parameters (RegMix, arXiv 2407.01492): the spreads
  (standard deviations) of the losses of 13 domains at 60M follow the power 0.58 of those at 1M. An easy domain, such as
  arithmetic, takes a larger model less text. This is not universal: in models of 1,000 to 100,000 parameters outside
  the embedding, after 160,000 tokens, spreads grew by some per cent per e-fold. Ranks there were equally good with and
  without this movement.
- Starts, folds, domains and draws are one batch of small fits (``solver``).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from armillary.laws.estimator import Array
from armillary.laws.mixture.forms import Rows
from armillary.laws.solver import fit_many
from armillary.laws.values import Array as ArrayField
from armillary.laws.values import Fields

# Per e-fold of parameters at the same tokens: the fall of log losses, and the share by which the differences between
# the log spreads of the validation domains shrink (0.58 over a factor of 60).
LEVEL = -0.09
CONTRACTION = 0.147

# Uncertainty per e-fold of the fall common to all domains, with runs of one size. Widened after the losses of tiny
# models on few tokens fell by only 0 to 0.05.
_COMMON_STD = 0.05

# Larger exponents occur only in bad steps of a search; they are clipped to avoid overflow.
_LARGEST = 60.0

# Prior of a run's relative noise, weighted as two observations.
_NOISE = 0.004


class ClosedForm(abc.ABC):
    """Base class of the laws in closed form: q parameters and their q movements per validation domain, as one array.

    A subclass has its priors, its starts, and its value with its gradient. Below, P counts fits, G folds, v domains.
    """

    FITTED: ClassVar[Fields] = {
        "theta": ("_theta", ArrayField("v q")),
        "draws": ("_draws", ArrayField("b v q")),
    }

    # The parameters that are levels of the loss; all domains share their movement.
    _LEVELS = slice(0, 2)

    def held_out(self, X: Array, s: Array, Z: Array, folds: Sequence[Rows]) -> Array:
        """See ``Form``."""
        weights = np.ones((len(folds), len(X)))
        for k, fold in enumerate(folds):
            weights[k, fold] = 0.0
        # The fit to all runs is only the starting point of the folds' fits.
        whole = self._solve(X, s, Z, np.ones((1, len(X))))[0]
        theta = self._solve(X, s, Z, weights, np.repeat(whole, len(folds), axis=0))[0]
        predicted = np.empty_like(Z)
        for k, fold in enumerate(folds):
            predicted[fold] = self._values(theta[k], X[fold], s[fold]).T
        return predicted

    def fit(self, X: Array, s: Array, Z: Array, noise: Array, rng: np.random.Generator) -> None:
        """See ``Form``."""
        count, targets = len(noise), Z.shape[1]
        theta, scale, middle, std = (part[0] for part in self._solve(X, s, Z, np.ones((1, len(X)))))
        prior = middle + std * rng.standard_normal((count, *middle.shape))
        prior[:, :, len(std) // 2 :][:, :, self._LEVELS] += _COMMON_STD * rng.standard_normal((count, 1, 1))
        disturbed = (Z + scale * noise).transpose(0, 2, 1).reshape(count * targets, len(X))
        draws, _, _ = self._minimise(
            X,
            s,
            np.tile(theta, (count, 1)),
            disturbed,
            np.ones_like(disturbed),
            prior.reshape(count * targets, -1),
            std,
            np.tile(scale, count),
            12,
            1e-4,
        )
        self._theta = theta
        self._draws = draws.reshape(prior.shape).astype(np.float32)

    def mean(self, X: Array, s: float) -> Array:
        """See ``Form``."""
        return self._values(self._theta, X, np.full(len(X), s)).T

    def draws(self, X: Array, s: Array) -> Array:
        """See ``Form``."""
        count, targets, width = self._draws.shape
        half = width // 2
        theta = self._draws[:, :, :half] + s[:, None, None] * self._draws[:, :, half:]
        law = self._in_parts(theta.reshape(count * targets, half).astype(float), X)
        return np.asarray(law.reshape(count, targets, len(X)).transpose(0, 2, 1))

    @abc.abstractmethod
    def _prior(self, Z: Array, weights: Array, domains: int) -> tuple[Array, Array]:
        """Means [G, v, q] of the parameters for log losses [n, v] with ``weights`` [G, n], and widths [q]."""

    @abc.abstractmethod
    def _move_prior(self, spread: Array, domains: int) -> tuple[Array, Array]:
        """Means [v, q] of the movements, for domains of log spreads [v] around their median, and widths [q]."""

    @abc.abstractmethod
    def _starts(self, prior: Array, leaning: Array) -> list[Array]:
        """Starting parameters [G, v, q]; ``leaning`` [G, v, d] is how much each training domain lowers the loss."""

    @abc.abstractmethod
    def _law(self, theta: Array, X: Array) -> tuple[Array, Array]:
        """Log losses [P, m] and their gradient [P, m, q] for parameters [P, q]."""

    def _in_parts(self, theta: Array, X: Array) -> Array:
        """Log losses [P, m] for parameters [P, q], computed in blocks."""
        size = max(1, 1_000_000 // X.size)
        return np.concatenate([self._law(theta[i : i + size], X)[0] for i in range(0, len(theta), size)])

    def _values(self, theta: Array, X: Array, s: Array) -> Array:
        """Log losses [P, m] of parameters with movements [P, 2 q], for rows at sizes ``s`` [m]."""
        out = np.empty((len(theta), len(X)))
        half = theta.shape[1] // 2
        for size in np.unique(s):
            out[:, s == size] = self._in_parts(theta[:, :half] + size * theta[:, half:], X[s == size])
        return out

    def _solve(
        self, X: Array, s: Array, Z: Array, weights: Array, begin: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        """Fit all domains once for each row of ``weights`` [G, n], from the best of several starts or from ``begin``.

        Returns:
            Parameters with movements [G, v, 2 q], noise [G, v], means [G, v, 2 q] and widths [G, 2 q] of the priors.
        """
        (groups, n), targets, domains = weights.shape, Z.shape[1], X.shape[1]
        # Runs are compared within their size; differences between sizes belong to the movement.
        inside = X.copy()
        level = Z - LEVEL * s[:, None]
        spread = np.zeros(targets)
        for size in np.unique(s):
            rows = s == size
            inside[rows] -= X[rows].mean(0)
            spread += ((np.exp(Z[rows]) - np.exp(Z[rows]).mean(0)) ** 2).sum(0)
        spread = 0.5 * np.log(spread / n + 1e-12)
        start, start_std = self._prior(level, weights, domains)
        move, move_std = self._move_prior(np.clip(spread - np.median(spread), -1.5, 1.5), domains)
        q = len(start_std)
        prior = np.concatenate([start, np.broadcast_to(move, start.shape)], axis=2)
        std = np.concatenate([start_std, move_std])

        count = groups * targets
        losses, each = np.tile(Z.T, (groups, 1)), np.repeat(weights, targets, axis=0)
        flat = prior.reshape(count, 2 * q)
        scale = np.full(count, _NOISE)
        if begin is None:
            weighted = inside * weights[:, :, None]
            slope = -np.einsum("gnd,nv->gvd", weighted, level) / ((weighted * inside).sum(1)[:, None] + 1e-9)
            leaning = 2.0 * slope / np.maximum(np.abs(slope).max(2, keepdims=True), 1e-12)
            starts = [np.concatenate([first, prior[:, :, q:]], axis=2) for first in self._starts(start, leaning)]
            many = len(starts)
            tries, objective, _ = self._minimise(
                X,
                s,
                np.reshape(starts, (many * count, 2 * q)),
                np.tile(losses, (many, 1)),
                np.tile(each, (many, 1)),
                np.tile(flat, (many, 1)),
                std,
                np.tile(scale, many),
                30,
                1e-4,
            )
            best = objective.reshape(many, count).argmin(0)
            theta = tries.reshape(many, count, -1)[best, np.arange(count)]
        else:
            theta = begin.reshape(count, 2 * q)
        # Iterate, because the noise sets the weight of the priors, but noise and movements follow from the fit.
        for _ in range(3):
            theta, _, decided = self._minimise(X, s, theta, losses, each, flat, std, scale, 30, 1e-6)
            miss = each * (self._values(theta, X, s) - losses) ** 2
            scale = np.sqrt((2.0 * _NOISE**2 + miss.sum(1)) / (2.0 + np.maximum(each.sum(1) - decided, 0.0)))
            found = theta.reshape(groups, targets, 2 * q)[:, :, q:] - move
            together = found.sum(1, keepdims=True) / (targets + 1)  # the prior's guess counts as one domain
            prior[:, :, q:] = move + together
            if np.ptp(s) > 0:
                std[q:] = np.clip(np.sqrt(((found - together) ** 2).mean((0, 1))), 0.3 * move_std, move_std)
        shape = (groups, targets)
        return theta.reshape(*shape, -1), scale.reshape(shape), prior, np.broadcast_to(std, (groups, 2 * q))

    def _minimise(
        self,
        X: Array,
        s: Array,
        start: Array,
        losses: Array,
        weights: Array,
        prior: Array,
        std: Array,
        scale: Array,
        iterations: int,
        tolerance: float,
    ) -> tuple[Array, Array, Array]:
        """Parameters with movements [P, 2 q], objective [P], and the number of parameters that the data determine [P].

        With runs of one size the movements are not fitted but have the values of the prior.
        """
        half = len(std) // 2
        used = 2 * half if np.ptp(s) > 0 else half
        sizes = [(size, np.flatnonzero(s == size)) for size in np.unique(s)]

        def residuals(theta: Array, which: Rows) -> tuple[Array, Array]:
            if used == half:
                law, jacobian = self._law(theta, X)
            else:
                law, jacobian = np.empty((len(theta), len(X))), np.empty((len(theta), len(X), used))
                for size, rows in sizes:
                    law[:, rows], gradient = self._law(theta[:, :half] + size * theta[:, half:], X[rows])
                    jacobian[:, rows, :half], jacobian[:, rows, half:] = gradient, size * gradient
            noise = scale[which, None]
            return (law - losses[which]) / noise, jacobian / noise[:, :, None]

        fits = fit_many(
            residuals,
            start[:, :used],
            weights,
            prior[:, :used],
            std[:used],
            huber=3.0,
            iterations=iterations,
            tolerance=tolerance,
        )
        return np.hstack([fits.parameters, prior[:, used:]]), fits.objective, fits.effective_parameters


class EffectiveData(ClosedForm):
    """``loss = E + A (d0 + sum_i e^{w_i} x_i^g)^-a``.

    Log-normal priors keep what few runs cannot determine in a sensible region: E about 0.6 of the lowest loss, the rest
    about 0.3 of the median, g about 0.7, a about 0.3, strengths e^w within about a factor of 7 of each other.
    """

    _MEDIANS = np.log([0.6, 0.3, 0.1, 0.7, 0.3])  # E (of the lowest loss), A (of the median loss), d0, g, a
    _STDS = np.array([0.4, 1.0, 1.5, 0.4, 0.5])
    _STRENGTH_STD = 2.0
    _MOVE_STDS = np.array([0.03, 0.03, 0.1, 0.03, 0.05])
    _STRENGTH_MOVE_STD = 0.1

    def _prior(self, Z: Array, weights: Array, domains: int) -> tuple[Array, Array]:
        seen = np.where(weights[:, :, None] > 0, Z, np.nan)
        prior = np.zeros((len(weights), Z.shape[1], 5 + domains))
        prior[:, :, :5] = self._MEDIANS
        prior[:, :, 0] += np.nanmin(seen, axis=1)
        prior[:, :, 1] += np.nanmedian(seen, axis=1)
        return prior, np.concatenate([self._STDS, np.full(domains, self._STRENGTH_STD)])

    def _move_prior(self, spread: Array, domains: int) -> tuple[Array, Array]:
        mean = np.zeros((len(spread), 5 + domains))
        mean[:, 0] = LEVEL
        mean[:, 1] = LEVEL - CONTRACTION * spread
        return mean, np.concatenate([self._MOVE_STDS, np.full(domains, self._STRENGTH_MOVE_STD)])

    def _starts(self, prior: Array, leaning: Array) -> list[Array]:
        starts = []
        for strengths in (np.zeros_like(leaning), leaning):
            for exponent, floor in ((0.15, 0.3), (0.5, 0.03)):
                start = prior.copy()
                start[:, :, 2], start[:, :, 4] = np.log(floor), np.log(exponent)
                start[:, :, 5:] = strengths
                starts.append(start)
        return starts

    def _law(self, theta: Array, X: Array) -> tuple[Array, Array]:
        log_x = np.log(np.maximum(X, 1e-12))
        theta = np.clip(theta, -_LARGEST, _LARGEST)
        g, a = np.exp(theta[:, 3]), np.exp(theta[:, 4])
        fed = np.exp(theta[:, None, 5:] + g[:, None, None] * log_x)  # [P, m, d]
        d0 = np.exp(theta[:, 2])[:, None]
        data = d0 + fed.sum(2)
        log_data = np.log(data)
        floor = np.exp(theta[:, 0])[:, None]
        rest = np.exp(np.clip(theta[:, 1][:, None] - a[:, None] * log_data, -_LARGEST, _LARGEST))
        law = floor + rest
        jacobian = np.empty((*law.shape, theta.shape[1]))
        per_data = -a[:, None] * rest / (law * data)
        jacobian[:, :, 0] = floor / law
        jacobian[:, :, 1] = rest / law
        jacobian[:, :, 2] = per_data * d0
        jacobian[:, :, 3] = per_data * g[:, None] * np.einsum("pnd,nd->pn", fed, log_x)
        jacobian[:, :, 4] = -a[:, None] * log_data * rest / law
        jacobian[:, :, 5:] = per_data[:, :, None] * fed
        return np.log(law), jacobian


class Exponential(ClosedForm):
    """``loss = c + k exp(sum_i t_i x_i)``, Ye et al. 2024; c about 0.6 of the lowest loss, t of the order of 1."""

    _MEDIANS = np.log([0.6, 0.4])  # c (of the lowest loss), k (of the median loss)
    _STDS = np.array([0.4, 0.7])
    _SLOPE_STD = 1.5
    _MOVE_STDS = np.array([0.03, 0.03])
    _SLOPE_MOVE_STD = 0.1

    def _prior(self, Z: Array, weights: Array, domains: int) -> tuple[Array, Array]:
        seen = np.where(weights[:, :, None] > 0, Z, np.nan)
        prior = np.zeros((len(weights), Z.shape[1], 2 + domains))
        prior[:, :, :2] = self._MEDIANS
        prior[:, :, 0] += np.nanmin(seen, axis=1)
        prior[:, :, 1] += np.nanmedian(seen, axis=1)
        return prior, np.concatenate([self._STDS, np.full(domains, self._SLOPE_STD)])

    def _move_prior(self, spread: Array, domains: int) -> tuple[Array, Array]:
        mean = np.zeros((len(spread), 2 + domains))
        mean[:, 0] = LEVEL
        mean[:, 1] = LEVEL - CONTRACTION * spread
        return mean, np.concatenate([self._MOVE_STDS, np.full(domains, self._SLOPE_MOVE_STD)])

    def _starts(self, prior: Array, leaning: Array) -> list[Array]:
        leaned = prior.copy()
        leaned[:, :, 2:] = -leaning
        return [prior, leaned]

    def _law(self, theta: Array, X: Array) -> tuple[Array, Array]:
        floor = np.exp(np.clip(theta[:, :1], -_LARGEST, _LARGEST))
        rest = np.exp(np.clip(theta[:, 1:2] + theta[:, 2:] @ X.T, -_LARGEST, _LARGEST))
        law = floor + rest
        share = rest / law
        return np.log(law), np.concatenate(
            [(floor / law)[:, :, None], share[:, :, None], share[:, :, None] * X], axis=2
        )
