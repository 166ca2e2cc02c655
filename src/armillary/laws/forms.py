"""The forms a mixture law may take: from mixtures [n, d] to the log losses of several validation domains.

Each form is fitted to all validation domains at once and offers the same three things: predictions of held-out folds,
a best prediction, and joint draws from what the data leave open. The draws of all forms are posterior draws by
*randomise then optimise* (see ``solver``): the losses are disturbed by noise that is correlated over the domains as
the caller says, and the priors by their width. So an error that two domains share is shared in the draws.

- ``Linear``: ridge regression of the log loss on the weights. Cannot bend, but needs few runs.
- ``EffectiveData``: ``loss = E + A (d0 + sum_i e^{w_i} x_i^g)^-a``. Each training domain feeds the validation domain
  with a fitted strength, and data of one domain have diminishing returns.
- ``GaussianProcess``: a smooth function of ``sqrt(x)``, in which a step from 0 to 1 % is larger than from 30 to 31 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.spatial.distance import cdist

from armillary.laws.estimator import Array
from armillary.laws.solver import Fits, fit_many

Rows = NDArray[np.intp]


class Form(Protocol):
    """What the mixture law asks of a form; X are mixtures [n, d], Z log losses [n, v]."""

    def held_out(self, X: Array, Z: Array, folds: Sequence[Rows]) -> Array:
        """Log losses [n, v] of each fold's rows, predicted from all other rows."""

    def fit(self, X: Array, Z: Array, noise: Array, rng: np.random.Generator) -> None:
        """Fit, and prepare draws; ``noise`` [b, n, v] of variance 1 is correlated over domains as is wanted."""

    def mean(self, X: Array) -> Array:
        """Best prediction of log losses, [m, v]."""

    def draws(self, X: Array) -> Array:
        """Log losses under each draw, [b, m, v]; noise of a new run is not in it."""


class _Solved(Protocol):
    """A form that is solved anew without each fold, which costs it little."""

    def mean(self, X: Array) -> Array: ...

    def _solve(self, X: Array, Z: Array) -> object: ...

    def held_out(self, X: Array, Z: Array, folds: Sequence[Rows]) -> Array:
        """See ``Form``."""
        predicted = np.empty_like(Z)
        for fold in folds:
            kept = np.setdiff1d(np.arange(len(X)), fold)
            self._solve(X[kept], Z[kept])
            predicted[fold] = self.mean(X[fold])
        return predicted


class Linear(_Solved):
    """Ridge regression; its penalty is chosen for each validation domain by leave-one-out error in closed form."""

    def fit(self, X: Array, Z: Array, noise: Array, rng: np.random.Generator) -> None:
        """See ``Form``."""
        scale = self._solve(X, Z)
        disturbed = Z + scale * noise
        # A ridge penalty is a normal prior with this width on each coefficient.
        prior = rng.standard_normal((len(noise), X.shape[1], Z.shape[1])) * scale / np.sqrt(self._penalty)
        middle = disturbed.mean(1)
        rotated = np.einsum("ns,bnv->bsv", self._u, disturbed - middle[:, None])
        singular = self._s[:, None]
        solved = singular * rotated + self._penalty * np.einsum("sd,bdv->bsv", self._vt, prior)
        self._draws = np.einsum("sd,bsv->bdv", self._vt, solved / (singular**2 + self._penalty))
        self._draws_middle = middle

    def mean(self, X: Array) -> Array:
        """See ``Form``."""
        return np.asarray(self._middle + (X - self._centre) @ self._coefficients)

    def draws(self, X: Array) -> Array:
        """See ``Form``."""
        return np.asarray(self._draws_middle[:, None] + (X - self._centre) @ self._draws)

    def _solve(self, X: Array, Z: Array) -> Array:
        """Fit; returns the standard deviation [v] of the residuals."""
        self._centre, self._middle = X.mean(0), Z.mean(0)
        u, s, vt = np.linalg.svd(X - self._centre, full_matrices=False)
        kept = s > 1e-9 * s[0]  # weights sum to 1: one direction is empty
        self._u, self._s, self._vt = u[:, kept], s[kept], vt[kept]
        rotated = self._u.T @ (Z - self._middle)
        penalties = np.geomspace(1e-4, 1e2, 13) * self._s[0] ** 2
        shrink = self._s**2 / (self._s**2 + penalties[:, None])  # [penalty, s]
        fitted = np.einsum("ns,ps,sv->pnv", self._u, shrink, rotated)
        leverage = np.einsum("ns,ps->pn", self._u**2, shrink) + 1 / len(X)
        residual = Z - self._middle - fitted
        error = ((residual / (1 - leverage)[:, :, None]) ** 2).sum(1)  # [penalty, v]
        best = error.argmin(0)
        self._penalty = penalties[best]  # [v]
        self._coefficients = self._vt.T @ (self._s[:, None] / (self._s[:, None] ** 2 + self._penalty) * rotated)
        chosen = residual[best, :, np.arange(Z.shape[1])]  # [v, n]
        freedom = len(X) - leverage.sum(1)[best]
        return np.asarray(np.sqrt((chosen**2).sum(1) / np.maximum(freedom, 1.0)))


class EffectiveData:
    """``loss = E + A (d0 + sum_i e^{w_i} x_i^g)^-a`` for each validation domain, all fits in one batch.

    Log-normal priors keep what few runs cannot tell in a sensible region: E about 0.6 of the lowest loss, the rest
    about 0.3 of the median, g about 0.7, a about 0.3, strengths e^w within about a factor of 7 of each other.
    """

    _MEDIANS = np.log([0.6, 0.3, 0.1, 0.7, 0.3])  # E (of the lowest loss), A (of the median loss), d0, g, a
    _STDS = np.array([0.4, 1.0, 1.5, 0.4, 0.5])
    _STRENGTH_STD = 2.0
    _NOISE = 0.004  # relative, counted as two observations

    def held_out(self, X: Array, Z: Array, folds: Sequence[Rows]) -> Array:
        """See ``Form``."""
        targets = Z.shape[1]
        weights = np.ones((len(folds), len(X)))
        for k, fold in enumerate(folds):
            weights[k, fold] = 0.0
        target = np.tile(np.arange(targets), len(folds))
        fits, _ = self._solve(X, Z, target, np.repeat(weights, targets, 0))
        predicted = np.empty_like(Z)
        for k, fold in enumerate(folds):
            predicted[fold] = self._law(fits.parameters[k * targets : (k + 1) * targets], X[fold]).T
        return predicted

    def fit(self, X: Array, Z: Array, noise: Array, rng: np.random.Generator) -> None:
        """See ``Form``."""
        count, targets = len(noise), Z.shape[1]
        fits, scale = self._solve(X, Z, np.arange(targets), np.ones((targets, len(X))))
        self._theta = fits.parameters
        disturbed = (Z + scale * noise).transpose(0, 2, 1).reshape(count * targets, len(X))
        everywhere = np.ones_like(disturbed)
        std = self._prior_std(X.shape[1])
        prior = np.tile(self._prior(Z.T, everywhere[:targets], X.shape[1]), (count, 1))
        prior = prior + std * rng.standard_normal(prior.shape)
        again = self._minimise(
            X, np.tile(self._theta, (count, 1)), disturbed, everywhere, prior, np.tile(scale, count), 12, 1e-4
        )
        self._draws = again.parameters.reshape(count, targets, -1)

    def mean(self, X: Array) -> Array:
        """See ``Form``."""
        return self._law(self._theta, X).T

    def draws(self, X: Array) -> Array:
        """See ``Form``."""
        count, targets, p = self._draws.shape
        law = self._law(self._draws.reshape(-1, p), X)
        return np.asarray(law.reshape(count, targets, len(X)).transpose(0, 2, 1))

    def _prior_std(self, domains: int) -> Array:
        return np.concatenate([self._STDS, np.full(domains, self._STRENGTH_STD)])

    def _prior(self, targets: Array, weights: Array, domains: int) -> Array:
        """Prior means [P, 5 + d] for log losses [P, n] seen with ``weights`` [P, n]."""
        seen = np.where(weights > 0, targets, np.nan)
        prior = np.zeros((len(targets), 5 + domains))
        prior[:, :5] = self._MEDIANS
        prior[:, 0] += np.nanmin(seen, axis=1)
        prior[:, 1] += np.nanmedian(seen, axis=1)
        return prior

    def _solve(self, X: Array, Z: Array, target: Rows, weights: Array) -> tuple[Fits, Array]:
        """Fit problem p to column ``target[p]`` of Z with ``weights[p]``; returns fits and their noise [P]."""
        count, domains = len(target), X.shape[1]
        losses = Z.T[target]
        prior = self._prior(losses, weights, domains)
        # Where each domain's weight lowers the loss, a start with that domain strong; and one with all alike.
        centred = (X - X.mean(0)) * weights[:, :, None]
        slope = -np.einsum("pnd,pn->pd", centred, losses) / ((centred**2).sum(1) + 1e-9)
        leaning = 2.0 * slope / np.maximum(np.abs(slope).max(1, keepdims=True), 1e-12)
        starts = []
        for strengths in (np.zeros_like(leaning), leaning):
            for exponent, floor in ((0.15, 0.3), (0.5, 0.03)):
                start = prior.copy()
                start[:, 2] = np.log(floor)
                start[:, 4] = np.log(exponent)
                start[:, 5:] = strengths
                starts.append(start)
        many = len(starts)
        scale = np.full(count, self._NOISE)
        tries = self._minimise(
            X,
            np.concatenate(starts),
            np.tile(losses, (many, 1)),
            np.tile(weights, (many, 1)),
            np.tile(prior, (many, 1)),
            np.tile(scale, many),
            30,
            1e-4,
        )
        theta = tries.parameters.reshape(many, count, -1)[
            tries.objective.reshape(many, count).argmin(0), np.arange(count)
        ]
        # The noise decides how much the priors count, and the fit decides the noise.
        for _ in range(3):
            fits = self._minimise(X, theta, losses, weights, prior, scale, 30, 1e-6)
            theta = fits.parameters
            miss = weights * (self._law(theta, X) - losses) ** 2
            freedom = 2.0 + np.maximum(weights.sum(1) - fits.effective_parameters, 0.0)
            scale = np.sqrt((2.0 * self._NOISE**2 + miss.sum(1)) / freedom)
        return fits, scale

    def _minimise(
        self,
        X: Array,
        start: Array,
        losses: Array,
        weights: Array,
        prior: Array,
        scale: Array,
        iterations: int,
        tolerance: float,
    ) -> Fits:
        log_x = np.log(np.maximum(X, 1e-12))

        def residuals(theta: Array, which: Rows) -> tuple[Array, Array]:
            g, a = np.exp(theta[:, 3]), np.exp(theta[:, 4])
            fed = np.exp(theta[:, None, 5:] + g[:, None, None] * log_x)  # [P, n, d]
            d0 = np.exp(theta[:, 2])[:, None]
            data = d0 + fed.sum(2)
            log_data = np.log(data)
            floor = np.exp(theta[:, 0])[:, None]
            rest = np.exp(theta[:, 1][:, None] - a[:, None] * log_data)
            law = floor + rest
            jacobian = np.empty((*law.shape, theta.shape[1]))
            per_data = -a[:, None] * rest / (law * data)
            jacobian[:, :, 0] = floor / law
            jacobian[:, :, 1] = rest / law
            jacobian[:, :, 2] = per_data * d0
            jacobian[:, :, 3] = per_data * g[:, None] * np.einsum("pnd,nd->pn", fed, log_x)
            jacobian[:, :, 4] = -a[:, None] * log_data * rest / law
            jacobian[:, :, 5:] = per_data[:, :, None] * fed
            s = scale[which, None]
            return (np.log(law) - losses[which]) / s, jacobian / s[:, :, None]

        std = self._prior_std(X.shape[1])
        return fit_many(residuals, start, weights, prior, std, huber=3.0, iterations=iterations, tolerance=tolerance)

    def _law(self, theta: Array, X: Array) -> Array:
        """Log losses [P, m] of laws theta [P, 5 + d]."""
        log_x = np.log(np.maximum(X, 1e-12))
        out = np.empty((len(theta), len(X)))
        size = max(1, 2_000_000 // X.size)
        for first in range(0, len(theta), size):
            t = theta[first : first + size]
            fed = np.exp(t[:, None, 5:] + np.exp(t[:, 3])[:, None, None] * log_x).sum(2)
            log_data = np.log(np.exp(t[:, 2])[:, None] + fed)
            out[first : first + size] = np.log(
                np.exp(t[:, 0])[:, None] + np.exp(t[:, 1][:, None] - np.exp(t[:, 4])[:, None] * log_data)
            )
        return out


class GaussianProcess(_Solved):
    """A constant plus a linear and a Matern-5/2 function of ``sqrt(x)``, plus noise (Rasmussen and Williams 2006).

    Length, share of the linear part and noise are chosen for each validation domain by marginal likelihood on a grid.
    Draws are exact at the data and use random Fourier features for the prior (Wilson et al. 2020, pathwise
    conditioning), so that one draw is one function that may be asked anywhere.
    """

    _LENGTHS = (0.25, 0.5, 1.0, 2.0)
    _LINEAR = (0.0, 1.0, 10.0)
    _NOISES = np.geomspace(1e-4, 3.0, 10)  # variance of the noise over that of the Matern part
    _FEATURES = 256

    def fit(self, X: Array, Z: Array, noise: Array, rng: np.random.Generator) -> None:
        """See ``Form``."""
        self._solve(X, Z)
        count, _, targets = noise.shape
        domains = X.shape[1]
        # A multivariate t with 5 degrees of freedom is the spectral density of Matern 5/2.
        normal = rng.standard_normal((domains, self._FEATURES))
        self._frequencies = normal / np.sqrt(rng.chisquare(5, self._FEATURES) / 5)
        self._phases = rng.uniform(0, 2 * np.pi, self._FEATURES)
        # Prior functions of correlated domains are correlated as their noise is.
        mix = np.linalg.cholesky(np.cov(noise.reshape(-1, targets).T).reshape(targets, targets))
        self._feature_weights = rng.standard_normal((count, self._FEATURES, targets)) @ mix.T
        self._linear_weights = rng.standard_normal((count, domains, targets)) @ mix.T
        ones = np.ones(len(X))
        self._paths = np.empty((count, len(X), targets))
        self._path_constants = np.empty((count, targets))
        for v in range(targets):
            disturbed = Z[:, v] - self._prior_path(X, v) + np.sqrt(self._noise[v] * self._scale[v]) * noise[:, :, v]
            factor = linalg.cho_factor(self._kernel(X, X, v) + self._noise[v] * np.eye(len(X)))
            solved, one = linalg.cho_solve(factor, disturbed.T), linalg.cho_solve(factor, ones)
            constant = solved.sum(0) / one.sum()
            self._paths[:, :, v] = (solved - np.outer(one, constant)).T
            self._path_constants[:, v] = constant

    def mean(self, X: Array) -> Array:
        """See ``Form``."""
        columns: list[Array] = [
            self._constant[v] + self._kernel(X, self._X, v) @ self._alpha[:, v] for v in range(len(self._constant))
        ]
        return np.stack(columns, axis=1)

    def draws(self, X: Array) -> Array:
        """See ``Form``."""
        columns = [
            self._path_constants[:, v, None]
            + self._prior_path(X, v)
            + self._paths[:, :, v] @ self._kernel(self._X, X, v)
            for v in range(len(self._constant))
        ]
        return np.stack(columns, axis=2)

    def _prior_path(self, X: Array, v: int) -> Array:
        """Draws [b, m] of the prior for domain v."""
        root = np.sqrt(X)
        features = np.cos(root @ self._frequencies / self._length[v] + self._phases) * np.sqrt(2 / self._FEATURES)
        smooth = self._feature_weights[:, :, v] @ features.T
        straight = np.sqrt(self._linear[v]) * self._linear_weights[:, :, v] @ root.T
        return np.asarray(np.sqrt(self._scale[v]) * (smooth + straight))

    def _kernel(self, A: Array, B: Array, v: int) -> Array:
        return np.asarray(_matern(A, B, self._length[v]) + self._linear[v] * np.sqrt(A) @ np.sqrt(B).T)

    def _solve(self, X: Array, Z: Array) -> None:
        n, targets = Z.shape
        self._X = X
        best = np.full(targets, -np.inf)
        self._length, self._linear, self._noise = np.ones(targets), np.zeros(targets), np.ones(targets)
        self._constant, self._scale, self._alpha = np.zeros(targets), np.ones(targets), np.zeros((n, targets))
        root = np.sqrt(X)
        for length in self._LENGTHS:
            for linear in self._LINEAR:
                values, vectors = np.linalg.eigh(_matern(X, X, length) + linear * root @ root.T)
                rotated, ones = vectors.T @ Z, vectors.T @ np.ones(n)
                for noise in self._NOISES:
                    spectrum = np.maximum(values, 0.0) + noise
                    constant = (ones / spectrum) @ rotated / ((ones**2 / spectrum).sum())
                    rest = rotated - ones[:, None] * constant
                    scale = np.maximum((rest**2 / spectrum[:, None]).mean(0), 1e-300)
                    likelihood = -0.5 * (n * np.log(scale) + np.log(spectrum).sum())
                    for v in np.flatnonzero(likelihood > best):
                        best[v] = likelihood[v]
                        self._length[v], self._linear[v], self._noise[v] = length, linear, noise
                        self._constant[v], self._scale[v] = constant[v], scale[v]
                        self._alpha[:, v] = vectors @ (rest[:, v] / spectrum)


def _matern(A: Array, B: Array, length: float) -> Array:
    """Matern-5/2 correlation [a, b] of mixtures by the distance of their square roots."""
    distance = np.sqrt(5) / length * cdist(np.sqrt(A), np.sqrt(B))
    return np.asarray((1 + distance + distance**2 / 3) * np.exp(-distance))


FORMS: dict[str, type[Form]] = {"linear": Linear, "effective-data": EffectiveData, "gaussian-process": GaussianProcess}
