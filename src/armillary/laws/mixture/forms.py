"""The forms a mixture law may take: from mixtures [n, d] and sizes [n] to the log losses of several validation domains.

Each form is fitted to all validation domains at once and offers three things: predictions of held-out folds, a best
prediction, and joint posterior draws. Sizes are ``s = ln(N / N_largest)``, 0 for the largest fitted model. The draws
use *randomise then optimise* (see ``solver``): losses are perturbed by noise with the caller's correlation over the
domains, and priors by their width. So the draws keep errors that two domains share.

- ``Linear``: ridge regression of the log loss on the weights. It has no curvature, but needs few runs.
- ``GaussianProcess``: a smooth function of ``sqrt(x)``, in which a step from 0 to 1 % is larger than from 30 to 31 %.
- ``BoostedTrees``: the regression of RegMix by LightGBM. It needs hundreds of runs.

The laws in closed form are in ``closed_forms``. In the forms here, the movement with size is a second function of the
mixture, times ``s``, that is a priori smaller than the first. Trees have the size as one more column.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.spatial.distance import cdist

from armillary.laws.estimator import Array
from armillary.laws.values import Array as ArrayField
from armillary.laws.values import Fields, Listed, Number, Text, Whole
from armillary.recipe import ArmillaryError

Rows = NDArray[np.intp]


class Form(Protocol):
    """The interface of a form for the mixture law; X are mixtures [n, d], s sizes [n], Z log losses [n, v]."""

    # The form's fields in a law file: the fitted attributes that ``mean`` and ``draws`` need. Letters of shapes are
    # those of ``MixtureLaw``.
    FITTED: ClassVar[Fields]

    def held_out(self, X: Array, s: Array, Z: Array, folds: Sequence[Rows]) -> Array:
        """Log losses [n, v] of each fold's rows, predicted from all other rows."""

    def fit(self, X: Array, s: Array, Z: Array, noise: Array, rng: np.random.Generator) -> None:
        """Fit, and prepare draws; ``noise`` [b, n, v] has variance 1 and the wanted correlation over domains."""

    def mean(self, X: Array, s: float) -> Array:
        """Best prediction of log losses at one size, [m, v]."""

    def draws(self, X: Array, s: Array) -> Array:
        """Log losses under each draw, [b, m, v], at the size of each draw [b]; without the noise of a new run."""


class _Solved(Protocol):
    """A form that is cheap enough to be fitted again for each fold."""

    def _solve(self, X: Array, s: Array, Z: Array) -> object: ...

    def _predicted(self, X: Array, s: Array) -> Array:
        """Best prediction [m, v] for rows at sizes [m]."""

    def held_out(self, X: Array, s: Array, Z: Array, folds: Sequence[Rows]) -> Array:
        """See ``Form``."""
        predicted = np.empty_like(Z)
        for fold in folds:
            kept = np.setdiff1d(np.arange(len(X)), fold)
            self._solve(X[kept], s[kept], Z[kept])
            predicted[fold] = self._predicted(X[fold], s[fold])
        return predicted

    def mean(self, X: Array, s: float) -> Array:
        """See ``Form``."""
        return self._predicted(X, np.full(len(X), s))


class Linear(_Solved):
    """Ridge regression; its penalty is chosen for each validation domain by leave-one-out error in closed form."""

    FITTED: ClassVar[Fields] = {
        "span": ("_span", Number()),
        "centre": ("_centre", ArrayField("c")),
        "middle": ("_middle", ArrayField("v")),
        "coefficients": ("_coefficients", ArrayField("c v")),
        "draws": ("_draws", ArrayField("b c v")),
        "draws_middle": ("_draws_middle", ArrayField("b v")),
    }

    # The prior of a movement over the whole range of sizes equals that of a step of this size in a weight.
    _LEVEL = 3.0

    def fit(self, X: Array, s: Array, Z: Array, noise: Array, rng: np.random.Generator) -> None:
        """See ``Form``."""
        scale = self._solve(X, s, Z)
        disturbed = Z + scale * noise
        # A ridge penalty is a normal prior with this width on each coefficient.
        prior = rng.standard_normal((len(noise), len(self._centre), Z.shape[1])) * scale / np.sqrt(self._penalty)
        middle = disturbed.mean(1)
        rotated = np.einsum("ns,bnv->bsv", self._u, disturbed - middle[:, None])
        singular = self._s[:, None]
        solved = singular * rotated + self._penalty * np.einsum("sd,bdv->bsv", self._vt, prior)
        self._draws = np.einsum("sd,bsv->bdv", self._vt, solved / (singular**2 + self._penalty))
        self._draws_middle = middle
        del self._u

    def draws(self, X: Array, s: Array) -> Array:
        """See ``Form``."""
        d = X.shape[1]
        straight = self._draws[:, :d] + (s / self._span)[:, None, None] * self._draws[:, d + 1 :]
        level = (s / self._span)[:, None] * self._LEVEL * self._draws[:, d]
        centre = np.einsum("d,bdv->bv", self._centre, self._draws)
        return np.asarray((self._draws_middle + level - centre)[:, None] + X @ straight)

    def _columns(self, X: Array, s: Array) -> Array:
        along = (s / self._span)[:, None]
        return np.hstack([X, self._LEVEL * along, along * X])

    def _predicted(self, X: Array, s: Array) -> Array:
        return np.asarray(self._middle + (self._columns(X, s) - self._centre) @ self._coefficients)

    def _solve(self, X: Array, s: Array, Z: Array) -> Array:
        """Fit; returns the standard deviation [v] of the residuals."""
        self._span = max(float(np.ptp(s)), 1e-9)
        columns = self._columns(X, s)
        self._centre, self._middle = columns.mean(0), Z.mean(0)
        u, sigma, vt = np.linalg.svd(columns - self._centre, full_matrices=False)
        kept = sigma > 1e-9 * max(sigma[0], 1e-9)  # weights sum to 1, so one direction is constant
        self._u, self._s, self._vt = u[:, kept], sigma[kept], vt[kept]
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


class GaussianProcess(_Solved):
    """A constant plus a linear and a Matern-5/2 function of ``sqrt(x)``, plus noise (Rasmussen and Williams 2006).

    Length, share of the linear part and noise are chosen for each validation domain by marginal likelihood on a grid.
    Draws are exact at the data and use random Fourier features for the prior (Wilson et al. 2020, pathwise
    conditioning), so one draw is one function that can be evaluated anywhere. A draw needs as much memory as the data,
    so with many runs there are fewer different draws than requested, and they repeat.
    """

    # k features, u different draws with w weights each.
    FITTED: ClassVar[Fields] = {
        "mixtures": ("_X", ArrayField("n d")),
        "sizes": ("_sizes", ArrayField("n")),
        "span": ("_span", Number()),
        "length": ("_length", ArrayField("v")),
        "linear": ("_linear", ArrayField("v")),
        "scale": ("_scale", ArrayField("v")),
        "constant": ("_constant", ArrayField("v")),
        "alpha": ("_alpha", ArrayField("n v")),
        "draw_count": ("_count", Whole()),
        "frequencies": ("_frequencies", ArrayField("d k")),
        "phases": ("_phases", ArrayField("k")),
        "weights": ("_weights", ArrayField("u w v")),
        "paths": ("_paths", ArrayField("u n v")),
        "path_constants": ("_path_constants", ArrayField("u v")),
    }

    _LENGTHS = (0.25, 0.5, 1.0, 2.0)
    _LINEAR = (0.0, 1.0, 10.0)
    _NOISES = np.geomspace(1e-4, 3.0, 10)  # variance of the noise relative to the Matern part
    _FEATURES = 128
    _NUMBERS = 150_000

    # Variance of the movement over the whole range of sizes, in units of the Matern part: of the level, of the rest.
    _LEVEL, _MOVE = 10.0, 0.2

    def fit(self, X: Array, s: Array, Z: Array, noise: Array, rng: np.random.Generator) -> None:
        """See ``Form``."""
        self._solve(X, s, Z)
        self._count, targets = len(noise), Z.shape[1]
        domains = X.shape[1]
        different = int(np.clip(self._NUMBERS // ((len(X) + self._FEATURES) * targets), 8, self._count))
        noise = noise[: min(different, self._count)]
        # A multivariate t with 5 degrees of freedom is the spectral density of Matern 5/2.
        normal = rng.standard_normal((domains, self._FEATURES))
        self._frequencies = normal / np.sqrt(rng.chisquare(5, self._FEATURES) / 5)
        self._phases = rng.uniform(0, 2 * np.pi, self._FEATURES)
        # Prior functions of domains have the same correlation as their noise.
        mix = np.linalg.cholesky(
            np.cov(noise.reshape(-1, targets).T).reshape(targets, targets) + 1e-9 * np.eye(targets)
        )
        width = 2 * (self._FEATURES + domains) + 1
        self._weights = rng.standard_normal((len(noise), width, targets)) @ mix.T
        ones, along = np.ones(len(X)), s / self._span
        self._paths = np.empty((len(noise), len(X), targets))
        self._path_constants = np.empty((len(noise), targets))
        kernels, features = self._stills(X, X), self._smooth(X)
        for v in range(targets):
            still, moving = self._prior_parts(features, X, v)
            prior = still + along * moving
            disturbed = Z[:, v] - prior + np.sqrt(self._noise[v] * self._scale[v]) * noise[:, :, v]
            factor = linalg.cho_factor(self._moving(kernels[v], s, s) + self._noise[v] * np.eye(len(X)))
            solved, one = linalg.cho_solve(factor, disturbed.T), linalg.cho_solve(factor, ones)
            constant = solved.sum(0) / one.sum()
            self._paths[:, :, v] = (solved - np.outer(one, constant)).T
            self._path_constants[:, v] = constant

    def draws(self, X: Array, s: Array) -> Array:
        """See ``Form``."""
        out = np.empty((self._count, len(X), len(self._constant)))
        pick = np.arange(self._count) % len(self._paths)
        kernels, features = self._stills(self._X, X), self._smooth(X)
        for v in range(out.shape[2]):
            # A draw is linear in the size: a value at 0 and a slope.
            paths = self._paths[:, :, v]
            still, moving = self._prior_parts(features, X, v)
            still = self._path_constants[:, v, None] + still + paths @ kernels[v]
            out[:, :, v] = still[pick]
            if s.any():
                paths = paths * (self._sizes / self._span)
                moving = moving + self._MOVE * paths @ kernels[v] + self._LEVEL * paths.sum(1, keepdims=True)
                out[:, :, v] += (s / self._span)[:, None] * moving[pick]
        return out

    def _predicted(self, X: Array, s: Array) -> Array:
        columns: list[Array] = [
            self._constant[v] + self._moving(still, s, self._sizes) @ self._alpha[:, v]
            for v, still in enumerate(self._stills(X, self._X))
        ]
        return np.stack(columns, axis=1)

    def _smooth(self, X: Array) -> dict[float, Array]:
        """Random Fourier features [m, 128] of each length."""
        turned = np.sqrt(X) @ self._frequencies
        return {
            length: np.cos(turned / length + self._phases) * np.sqrt(2 / self._FEATURES)
            for length in np.unique(self._length).tolist()
        }

    def _prior_parts(self, smooth: dict[float, Array], X: Array, v: int) -> tuple[Array, Array]:
        """Draws [b, m] of the prior for domain v at size 0, and their movement over the whole range of sizes."""
        features = np.hstack([smooth[float(self._length[v])], np.sqrt(self._linear[v] * X)])
        weights = np.sqrt(self._scale[v]) * self._weights[:, :, v]
        width = features.shape[1]
        moving = np.sqrt(self._MOVE) * weights[:, width:-1] @ features.T + np.sqrt(self._LEVEL) * weights[:, -1:]
        return weights[:, :width] @ features.T, moving

    def _stills(self, A: Array, B: Array) -> list[Array]:
        """The kernel [a, b] of each validation domain at one size; equal kernels share one array."""
        distance, product = _distance(A, B), np.sqrt(A) @ np.sqrt(B).T
        pairs = list(zip(self._length.tolist(), self._linear.tolist(), strict=True))
        known = {(length, linear): _matern(distance, length) + linear * product for length, linear in set(pairs)}
        return [known[pair] for pair in pairs]

    def _moving(self, still: Array, a: Array, b: Array) -> Array:
        along = np.outer(a / self._span, b / self._span)
        return np.asarray(still * (1 + self._MOVE * along) + self._LEVEL * along)

    def _solve(self, X: Array, s: Array, Z: Array) -> None:
        n, targets = Z.shape
        self._X, self._sizes = X, s
        self._span = max(float(np.ptp(s)), 1e-9)
        best = np.full(targets, -np.inf)
        self._length, self._linear, self._noise = np.ones(targets), np.zeros(targets), np.ones(targets)
        self._constant, self._scale, self._alpha = np.zeros(targets), np.ones(targets), np.zeros((n, targets))
        distance, product = _distance(X, X), np.sqrt(X) @ np.sqrt(X).T
        for length in self._LENGTHS:
            smooth = _matern(distance, length)
            for linear in self._LINEAR:
                still = smooth + linear * product
                values, vectors = np.linalg.eigh(self._moving(still, s, s))
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


class BoostedTrees:
    """The regression of RegMix (Liu et al. 2024, arXiv 2407.01492) by LightGBM: 1,000 trees at a rate of 0.01.

    Other options are LightGBM's defaults, without early stopping (the published notebook stops on its test set). Trees
    do not quantify their uncertainty. So a draw is the prediction plus a random smooth function of ``sqrt(x)``. Its
    size is that of the held-out residuals, or of the losses' spread if ``held_out`` was not called before.
    """

    FITTED: ClassVar[Fields] = {
        "trees": ("_trees", Listed(Text())),
        "trend": ("_trend", ArrayField("2 v")),
        "frequencies": ("_frequencies", ArrayField("d k")),
        "phases": ("_phases", ArrayField("k")),
        "weights": ("_weights", ArrayField("b k v")),
    }

    _FEATURES = 64
    _LENGTH = 0.5

    def held_out(self, X: Array, s: Array, Z: Array, folds: Sequence[Rows]) -> Array:
        """See ``Form``."""
        predicted = np.empty_like(Z)
        for fold in folds:
            kept = np.setdiff1d(np.arange(len(X)), fold)
            trees, trend = self._grown(X[kept], s[kept], Z[kept])
            predicted[fold] = self._predicted(trees, trend, X[fold], s[fold])
        self._miss = np.sqrt(((predicted - Z) ** 2).mean(0))
        return predicted

    def fit(self, X: Array, s: Array, Z: Array, noise: Array, rng: np.random.Generator) -> None:
        """See ``Form``."""
        trees, self._trend = self._grown(X, s, Z)
        self._trees = [booster.model_to_string() for booster in trees]
        normal = rng.standard_normal((X.shape[1], self._FEATURES))
        self._frequencies = normal / np.sqrt(rng.chisquare(5, self._FEATURES) / 5) / self._LENGTH
        self._phases = rng.uniform(0, 2 * np.pi, self._FEATURES)
        size = getattr(self, "_miss", Z.std(0))
        self._weights = size * rng.standard_normal((len(noise), self._FEATURES, Z.shape[1]))

    def mean(self, X: Array, s: float) -> Array:
        """See ``Form``."""
        trees = [_lightgbm().Booster(model_str=text) for text in self._trees]
        return self._predicted(trees, self._trend, X, np.full(len(X), s))

    def draws(self, X: Array, s: Array) -> Array:
        """See ``Form``."""
        smooth = np.cos(np.sqrt(X) @ self._frequencies + self._phases) * np.sqrt(2 / self._FEATURES)
        return np.asarray(self.mean(X, float(s.mean())) + smooth @ self._weights)

    def _grown(self, X: Array, s: Array, Z: Array) -> tuple[list[Any], Array]:
        """One booster per validation domain, fitted to losses minus a line in the size, and the lines [2, v]."""
        columns = np.column_stack([np.ones(len(s)), s])
        losses = np.exp(Z)
        trend = np.linalg.lstsq(columns, losses, rcond=None)[0] if np.ptp(s) > 0 else np.zeros((2, Z.shape[1]))
        options = {
            "objective": "regression",
            "learning_rate": 0.01,
            "seed": 42,
            "num_threads": 1,
            "deterministic": True,
            "verbosity": -1,
        }
        data = np.column_stack([X, s])
        rest = losses - columns @ trend
        lightgbm = _lightgbm()
        return [lightgbm.train(options, lightgbm.Dataset(data, y), 1000) for y in rest.T], trend

    @staticmethod
    def _predicted(trees: list[Any], trend: Array, X: Array, s: Array) -> Array:
        losses = np.column_stack([np.asarray(booster.predict(np.column_stack([X, s]))) for booster in trees])
        losses += np.column_stack([np.ones(len(s)), s]) @ trend
        return np.asarray(np.log(np.maximum(losses, 1e-6)))


def _lightgbm() -> ModuleType:
    """LightGBM, loaded only when needed: it takes half a second, and a system without OpenMP cannot load it.

    Raises:
        ArmillaryError: it cannot be loaded.
    """
    try:
        import lightgbm
    except (ImportError, OSError) as error:
        raise ArmillaryError(
            f"LightGBM cannot be loaded ({error}); install the system's OpenMP library (libgomp1), or leave the model "
            "'lightgbm' out"
        ) from error
    return lightgbm


def _distance(A: Array, B: Array) -> Array:
    """Distance [a, b] of the square roots of mixtures."""
    return np.asarray(cdist(np.sqrt(A), np.sqrt(B)))


def _matern(distance: Array, length: float) -> Array:
    """Matern-5/2 correlation of points at this ``distance``."""
    scaled = np.sqrt(5) / length * distance
    return np.asarray((1 + scaled + scaled**2 / 3) * np.exp(-scaled))
