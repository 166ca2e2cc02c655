"""Scaling laws: the loss of a model as a function of its parameters N and its training tokens D.

One form so far, Chinchilla's (Hoffmann et al. 2022, equation 2): ``L = E + A / N^alpha + B / D^beta``.

Trade-offs taken:

- The same code must fit six points of a laptop's ladder and hundreds of a cluster's. Six points do not determine five
  parameters, so each has a broad log-normal prior (below). With some dozens of runs over a decade the data outweigh
  it; with six runs it keeps the fit in the region of all published laws, and the draws carry its width.
- An interval must cover a *new run*, so it adds three parts in quadrature, in log loss: what the parameters leave
  open (posterior draws), the noise of one run, and the wrongness of the form. The last is not in the residuals. It is
  measured by leaving out the largest runs and looking how far the law missed, beyond what the first two parts explain.
  Its variance grows in proportion to the e-folds of extrapolation asked for, as if the truth walked away from the form
  step by step: held-out misses on Chinchilla's points grow more slowly than the e-folds themselves.
- With few runs there are few such misses, so their average is mixed with a prior guess of 0.3 % at one e-fold.
- N is whatever the caller counts (all parameters, or those outside the embedding): be consistent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from armillary.laws.estimator import (
    Array,
    Prediction,
    checked_interval,
    checked_positive,
    require_fitted,
)
from armillary.laws.solver import Fits, fit_many
from armillary.recipe import UsageError

COLUMNS = ("parameters", "tokens")

# Priors (medians and standard deviations of logarithms). Published exponents lie between 0.2 and 0.7 (Kaplan 2020,
# Hoffmann 2022, Besiroglu 2024, DeepSeek 2024, Llama 3). The irreducible loss is some share of the lowest loss seen,
# and each of the other two terms some share of the median loss at the centre of the ladder.
EXPONENT, EXPONENT_STD = 0.4, 0.4
IRREDUCIBLE, IRREDUCIBLE_STD = 0.6, 0.5
TERM, TERM_STD = 0.3, 1.5

# Before any run is seen: relative noise of a run, and relative miss per e-fold of extrapolation, each counted as so
# many observations.
NOISE, NOISE_COUNT = 0.004, 2.0
MISS, MISS_COUNT = 0.003, 2.0

PRIOR_STD = np.array([IRREDUCIBLE_STD, TERM_STD, TERM_STD, EXPONENT_STD, EXPONENT_STD])

# Residuals beyond this share of the loss count linearly, as in the published fits. That is far inside the noise and
# makes a fit of medians: robust with hundreds of points, wasteful with few. Up to MANY points the threshold is the
# one that is 95 % efficient for normal noise (Huber 1964), in units of the noise; beyond, it falls to the published.
HUBER = 1e-3
EFFICIENT = 1.345
MANY = 30


@dataclass(frozen=True)
class LeftOut:
    """The largest runs left out, predicted from the others.

    Attributes:
        what: which were left out, such as ``tokens >= 1.2e+09``.
        rows: their rows in the table given to ``fit``, [k].
        predicted: losses by the law fitted without them, [k].
        measured: their losses, [k].
        extrapolation: their compute N * D over the largest compute that was kept, [k].
    """

    what: str
    rows: NDArray[np.intp]
    predicted: Array
    measured: Array
    extrapolation: Array


class ChinchillaLaw:
    """``L(N, D) = E + A / N^alpha + B / D^beta`` with intervals for a new run.

    Fitted by Huber's loss on the logarithm of the loss (Hoffmann et al. 2022, section D.2) from many starts.

    Args:
        bootstraps: draws for the uncertainty of the parameters.
        seed: of these draws.

    Attributes:
        parameters_: ``E``, ``A``, ``B``, ``alpha``, ``beta``.
        draws_: the same for each draw, arrays [bootstraps].
        residual_std_: relative standard deviation of the losses around the law.
        noise_: relative standard deviation of one run: the one given, else ``residual_std_``.
        miss_per_efold_: relative miss of the form (standard deviation) at one e-fold of extrapolation.
        holdout_error_: what was left out, predicted and measured, a list of ``LeftOut``.
    """

    def __init__(self, *, bootstraps: int = 200, seed: int = 0) -> None:
        self.bootstraps = bootstraps
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike, noise: float | None = None) -> Self:
        """Fit to runs.

        Args:
            X: [n, 2], parameters and tokens of each run, n >= 6 with at least two different values of each.
            y: [n] losses.
            noise: known relative standard deviation between runs that differ only in their seed, if any.

        Raises:
            UsageError: a value that is not finite or not positive (with row and column), too few runs, or all runs
                with the same N or the same D.
        """
        points = checked_positive("X", X, columns=2, labels=COLUMNS, rows=6)
        losses = checked_positive("y", np.reshape(y, (-1, 1)), labels=("loss",))[:, 0]
        if len(losses) != len(points):
            raise UsageError(f"X has {len(points)} rows and y has {len(losses)}; give one loss for each run")
        if noise is not None and not 0 < noise < 1:
            raise UsageError(f"noise is {noise!r}; give the relative standard deviation of a run, such as 0.003")
        if self.bootstraps < 2:
            raise UsageError(f"bootstraps is {self.bootstraps}; at least 2 are needed for an interval")
        for column, label in enumerate(COLUMNS):
            if np.ptp(np.log(points[:, column])) < 0.05:
                raise UsageError(
                    f"all runs have {label} {points[0, column]:g} (column {column} of X); a law in {label} needs runs "
                    "with at least two values of it"
                )
        self._log_points = np.log(points)
        self._log_losses = np.log(losses)
        self._centre = self._log_points.mean(0)

        everything = np.ones((1, len(points)))
        fit, scale, freedom = self._fit_with_noise(everything, noise)
        self.residual_std_ = float(scale[0])
        self.noise_ = self.residual_std_ if noise is None else noise
        self._theta = fit.parameters[0]
        self._freedom = float(freedom[0])
        self.parameters_ = {name: float(v[0]) for name, v in self._natural(fit.parameters).items()}
        self._draw(fit, scale)
        self.draws_ = self._natural(self._draws)
        self._leave_largest_out(noise)
        return self

    def predict(self, X: ArrayLike, interval: float = 0.9) -> Prediction:
        """Expected losses of new runs, and intervals that hold for one run.

        Args:
            X: [m, 2], parameters and tokens.
            interval: probability that the interval covers.

        Returns:
            Prediction of three arrays [m].

        Raises:
            UsageError: not fitted; an X as ``fit`` refuses it; an interval outside (0, 1).
        """
        require_fitted(self, "parameters_")
        points = np.log(checked_positive("X", X, columns=2, labels=COLUMNS))
        mean = self._log_law(self._theta[None], points)[0]
        spread = self._log_law(self._draws, points).std(0)
        miss = self.miss_per_efold_ * np.sqrt(_efolds(points, self._log_points))
        # Each part is known from so many observations; Satterthwaite's (1946) degrees of freedom for their sum.
        known, missed = (spread**2 + self.noise_**2), miss**2
        freedom = (known + missed) ** 2 / (known**2 / self._freedom + missed**2 / self._miss_freedom)
        half = stats.t.isf((1 - checked_interval(interval)) / 2, freedom) * np.sqrt(known + missed)
        return Prediction(np.exp(mean), np.exp(mean - half), np.exp(mean + half))

    def extrapolation(self, X: ArrayLike) -> Array:
        """Compute N * D of runs X [m, 2] over the largest compute fitted, [m]; below 1 inside the ladder."""
        require_fitted(self, "parameters_")
        points = np.log(checked_positive("X", X, columns=2, labels=COLUMNS))
        return np.asarray(np.exp(points.sum(1) - self._log_points.sum(1).max()))

    def _log_law(self, theta: Array, log_points: Array) -> Array:
        """Log losses [P, m] of laws theta [P, 5]: log E, log terms at the centre of the ladder, log exponents."""
        alpha, beta = np.exp(theta[:, 3:4]), np.exp(theta[:, 4:5])
        u = log_points - self._centre
        terms = np.stack(
            [
                np.broadcast_to(theta[:, 0:1], (len(theta), len(u))),
                theta[:, 1:2] - alpha * u[:, 0],
                theta[:, 2:3] - beta * u[:, 1],
            ]
        )
        return np.asarray(np.logaddexp.reduce(terms, axis=0))

    def _natural(self, theta: Array) -> dict[str, Array]:
        alpha, beta = np.exp(theta[:, 3]), np.exp(theta[:, 4])
        return {
            "E": np.exp(theta[:, 0]),
            "A": np.exp(theta[:, 1] + alpha * self._centre[0]),
            "B": np.exp(theta[:, 2] + beta * self._centre[1]),
            "alpha": alpha,
            "beta": beta,
        }

    def _solve(
        self, start: Array, weights: Array, prior_mean: Array, scale: Array, losses: Array | None = None
    ) -> Fits:
        """Fit problems with the noise ``scale`` [P]; ``losses`` [P, n] are log losses if they differ by problem."""
        u = self._log_points - self._centre

        def residuals(theta: Array, which: NDArray[np.intp]) -> tuple[Array, Array]:
            alpha, beta = np.exp(theta[:, 3:4]), np.exp(theta[:, 4:5])
            parts = np.exp(
                [
                    np.broadcast_to(theta[:, 0:1], (len(theta), len(u))),
                    np.minimum(theta[:, 1:2] - alpha * u[:, 0], 300),
                    np.minimum(theta[:, 2:3] - beta * u[:, 1], 300),
                ]
            )
            law = parts.sum(0)
            target = self._log_losses if losses is None else losses[which]
            shares = parts / law
            jacobian = np.stack(
                [*shares, -shares[1] * alpha * u[:, 0], -shares[2] * beta * u[:, 1]],
                axis=-1,
            )
            s = scale[which, None]
            return (np.log(law) - target) / s, jacobian / s[:, :, None]

        huber = max(HUBER, EFFICIENT * float(np.median(scale)) * min(1.0, MANY / len(u)))
        return fit_many(
            residuals, start, weights, prior_mean, PRIOR_STD, huber=huber / float(np.median(scale)), iterations=300
        )

    def _priors(self, weights: Array) -> Array:
        """Means of the priors [P, 5] of problems that see the runs with ``weights`` [P, n] above 0."""
        seen = np.where(weights > 0, self._log_losses, np.nan)
        lowest, median = np.nanmin(seen, axis=1), np.nanmedian(seen, axis=1)
        exponent = np.full(len(weights), np.log(EXPONENT))
        term = median + np.log(TERM)
        return np.stack([lowest + np.log(IRREDUCIBLE), term, term, exponent, exponent], axis=1)

    def _fit_with_noise(self, weights: Array, noise: float | None) -> tuple[Fits, Array, Array]:
        """Best of many starts for each row of ``weights`` [P, n], its noise [P], and degrees of freedom of that [P]."""
        count = len(weights)
        prior = self._priors(weights)
        grid = np.array([(e, a, b) for e in (0.3, 0.6, 0.85) for a in (0.25, 0.5) for b in (0.25, 0.5)])
        offsets = np.stack(
            [
                np.log(grid[:, 0] / IRREDUCIBLE),
                np.log((1 - grid[:, 0]) / 2 / TERM),
                np.log((1 - grid[:, 0]) / 2 / TERM),
                np.log(grid[:, 1] / EXPONENT),
                np.log(grid[:, 2] / EXPONENT),
            ],
            axis=1,
        )
        start = (prior[:, None, :] + offsets).reshape(-1, 5)
        many = len(grid)
        scale = np.full(count, NOISE if noise is None else noise)
        fit = self._solve(start, np.repeat(weights, many, 0), np.repeat(prior, many, 0), np.repeat(scale, many))
        first = np.arange(count) * many + fit.objective.reshape(count, many).argmin(1)
        fit = Fits(fit.parameters[first], fit.objective[first], fit.precision[first], fit.data_precision[first])
        known = NOISE_COUNT * (NOISE if noise is None else noise) ** 2
        # The noise decides how much the priors count, and the fit decides the noise: a few rounds settle both.
        for _ in range(4):
            miss = self._log_law(fit.parameters, self._log_points) - self._log_losses
            freedom = NOISE_COUNT + np.maximum(weights.sum(1) - fit.effective_parameters, 0.0)
            scale = np.sqrt((known + (weights * miss**2).sum(1)) / freedom)
            fit = self._solve(fit.parameters, weights, prior, scale)
        return fit, scale, freedom

    def _draw(self, fit: Fits, scale: Array) -> None:
        """Posterior draws of the parameters, [bootstraps, 5], by disturbing losses and priors (see ``solver``)."""
        rng = np.random.default_rng(self.seed)
        n, count = len(self._log_losses), self.bootstraps
        weights = np.ones((count, n))
        losses = self._log_losses + scale * rng.standard_normal((count, n))
        prior = self._priors(weights) + PRIOR_STD * rng.standard_normal((count, 5))
        start = np.repeat(fit.parameters, count, 0)
        self._draws = self._solve(start, weights, prior, np.repeat(scale, count), losses).parameters

    def _leave_largest_out(self, noise: float | None) -> None:
        """Hold back the largest runs by N, by D and by compute; from the misses, how wrong the form is per e-fold."""
        points = self._log_points
        cuts: list[tuple[str, NDArray[np.bool_]]] = []
        for label, size in ((COLUMNS[0], points[:, 0]), (COLUMNS[1], points[:, 1]), ("compute", points.sum(1))):
            for cut in _cuts(size):
                kept = size < cut
                if kept.sum() >= 4 and all(np.ptp(points[kept, column]) > 0.05 for column in (0, 1)):
                    cuts.append((f"{label} >= {np.exp(cut):.3g}", kept))
        self.holdout_error_: list[LeftOut] = []
        misses, explained, distances = (np.zeros(len(cuts)) for _ in range(3))
        if cuts:
            weights = np.array([kept for _, kept in cuts], dtype=float)
            fits, scale, _ = self._fit_with_noise(weights, noise)
            predicted = self._log_law(fits.parameters, points)
            for g, (what, kept) in enumerate(cuts):
                out = np.flatnonzero(~kept)
                miss = predicted[g, out] - self._log_losses[out]
                # Runs left out together are missed together: they count as one observation, their mean miss, in which
                # the farther ones weigh more.
                far = _efolds(points[out], points[kept])
                share = far / far.sum()
                slope = share @ self._slopes(fits.parameters[g], points[out])
                misses[g], distances[g] = share @ miss, share @ far
                explained[g] = slope @ np.linalg.inv(fits.precision[g]) @ slope + scale[g] ** 2 * (share**2).sum()
                factor = np.exp(points[out].sum(1) - points[kept].sum(1).max())
                self.holdout_error_.append(
                    LeftOut(what, out, np.exp(predicted[g, out]), np.exp(self._log_losses[out]), factor)
                )
        # Variance beyond what is explained, per e-fold; a miss that parameters and noise explain anyway says little.
        says = distances / (explained + MISS**2 * distances) ** 2
        found = max(0.0, float(says @ (misses**2 - explained) / (says @ distances))) if cuts else 0.0
        self._miss_freedom = MISS_COUNT + len(cuts)
        self.miss_per_efold_ = float(np.sqrt((MISS_COUNT * MISS**2 + len(cuts) * found) / self._miss_freedom))

    def _slopes(self, theta: Array, log_points: Array) -> Array:
        """Derivatives [m, 5] of the log loss by the parameters, by central differences."""
        step = 1e-5
        shifted = np.concatenate([theta + step * np.eye(5), theta - step * np.eye(5)])
        law = self._log_law(shifted, log_points)
        return np.asarray((law[:5] - law[5:]).T / (2 * step))


def _cuts(log_sizes: Array) -> list[float]:
    """Sizes from which on runs are left out: the largest one or two levels; of many levels, upper parts."""
    levels = np.unique(np.round(log_sizes / 0.05)) * 0.05
    if len(levels) > 12:
        return [float(np.quantile(log_sizes, share)) for share in (0.95, 0.85, 0.7)]
    # Half a rounding step below, so that all runs of a level fall on one side.
    return [float(level) - 0.025 for level in levels[::-1][:2] if level > levels[0]]


def _efolds(log_points: Array, fitted: Array) -> Array:
    """How far log points [m, 2] lie beyond those fitted, in e-folds [m].

    That is the excess of N plus that of D, or the excess of compute where it is larger; inside the ladder's ranges and
    below its largest compute it is 0.
    """
    beyond = np.maximum(log_points - fitted.max(0), 0.0).sum(1)
    compute = log_points.sum(1) - fitted.sum(1).max()
    return np.asarray(np.maximum(beyond, np.maximum(compute, 0.0)))
