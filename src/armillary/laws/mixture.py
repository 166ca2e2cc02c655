"""From a mixture of training domains to the loss on each of several validation domains, with intervals.

The forms of ``forms`` are weighed, for each validation domain, by how well they predict runs that they have not seen
(k-fold). What is reported as held-out error is that of the weighed ensemble, each fold predicted with weights taken
from the other folds.

Trade-offs taken:

- Repeats of one mixture always stand in the same fold, else a held-out run would have been seen.
- A draw follows one form, picked with the ensemble's weights, so that the draws spread where the forms disagree.
- The noise of a new run is what the held-out residuals show beyond the spread of the draws; it contains what no form
  describes. It is taken as the same everywhere, and as correlated over domains as the residuals are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from armillary.laws.estimator import (
    Array,
    Prediction,
    checked_interval,
    checked_mixtures,
    checked_positive,
    require_fitted,
)
from armillary.laws.forms import FORMS, Form, Rows
from armillary.recipe import UsageError

MIN_ROWS = 8
FOLDS = 8

# Weights of the forms go with rmse to the power of minus this: a form twice as wrong counts a 16th.
SHARPNESS = 4.0


@dataclass(frozen=True)
class HeldOut:
    """How the ensemble predicted runs it had not seen; n runs, v validation domains.

    Attributes:
        predicted: losses [n, v].
        measured: losses [n, v].
        spearman: rank correlation of the two, [v].
        rmse: root mean square of the difference, [v], in units of the loss.
        rmse_of_model: the same for each form alone.
    """

    predicted: Array
    measured: Array
    spearman: Array
    rmse: Array
    rmse_of_model: dict[str, Array]


class MixtureLaw:
    """An ensemble of forms from mixtures [n, d] to losses [n, v].

    Args:
        models: forms to weigh, of ``linear``, ``effective-data`` and ``gaussian-process``.
        bootstraps: joint draws for the uncertainty.
        seed: of folds and draws.

    Attributes:
        held_out_: k-fold predictions and their errors, a ``HeldOut``.
        chosen_: weights of each form, arrays [v].
        noise_: relative standard deviation of a new run around the law, [v].
    """

    def __init__(
        self,
        *,
        models: Sequence[str] = ("linear", "effective-data", "gaussian-process"),
        bootstraps: int = 100,
        seed: int = 0,
    ) -> None:
        self.models = models
        self.bootstraps = bootstraps
        self.seed = seed

    def fit(self, X: ArrayLike, Y: ArrayLike) -> Self:
        """Fit to runs.

        Args:
            X: [n, d] mixtures, each row summing to 1, d >= 2 and n >= 8 (30 to 60 for 8 domains give useful laws).
            Y: [n, v] losses.

        Raises:
            UsageError: a value that is not finite, a loss that is not positive, a row that does not sum to 1 (with row
                and column), too few rows, or an unknown model.
        """
        mixtures = checked_mixtures("X", X, rows=MIN_ROWS)
        losses = checked_positive("Y", Y)
        if len(losses) != len(mixtures):
            raise UsageError(f"X has {len(mixtures)} rows and Y has {len(losses)}; give the losses of each run")
        unknown = [name for name in self.models if name not in FORMS]
        if unknown or not self.models:
            raise UsageError(f"no mixture model {', '.join(unknown) or 'given'}; take some of {', '.join(FORMS)}")
        if self.bootstraps < 2:
            raise UsageError(f"bootstraps is {self.bootstraps}; at least 2 are needed for an interval")
        rng = np.random.default_rng(self.seed)
        logs = np.log(losses)
        folds = _folds(mixtures, rng)
        predicted = {name: FORMS[name]().held_out(mixtures, logs, folds) for name in self.models}
        squares = np.stack([(p - logs) ** 2 for p in predicted.values()])  # [k, n, v]
        weights = _weights(squares.mean(1))
        self.chosen_ = dict(zip(self.models, weights, strict=True))
        self.held_out_, residuals = self._held_out(predicted, squares, folds, logs)

        correlation = np.atleast_2d(np.corrcoef(residuals.T))
        targets = losses.shape[1]
        correlation = 0.9 * np.nan_to_num(correlation) + 0.1 * np.eye(targets)
        shape = (self.bootstraps, *losses.shape)
        noise = rng.standard_normal(shape) @ np.linalg.cholesky(correlation).T
        self._forms: dict[str, Form] = {}
        for name in self.models:
            if self.chosen_[name].any():
                self._forms[name] = FORMS[name]()
                self._forms[name].fit(mixtures, logs, noise, rng)
        # One number per draw, the same for all validation domains: where two domains weigh the forms alike, a draw
        # takes the same form for both.
        self._pick = (np.arange(self.bootstraps) + rng.uniform(size=self.bootstraps)) / self.bootstraps
        rng.shuffle(self._pick)
        # A few far misses (mixtures without any text like a validation domain) would widen all intervals if noise were
        # the root mean square: take what nine tenths of the held-out residuals keep within, as for a normal one.
        within = np.quantile(np.abs(residuals), 0.9, axis=0) / stats.norm.ppf(0.95)
        scale = np.minimum(within, residuals.std(0))
        spread = self.draws(mixtures).var(0).mean(0)
        # Never less than half: the draws know nothing of what no form describes.
        self.noise_ = scale * np.sqrt(np.maximum(1 - spread / np.maximum(scale**2, 1e-300), 0.25))
        self._noise = correlation * np.outer(self.noise_, self.noise_)
        self._freedom = len(mixtures) - 1
        self.mixtures_ = mixtures
        return self

    def predict(self, X: ArrayLike, interval: float = 0.9) -> Prediction:
        """Expected losses of new runs on each validation domain, and intervals that hold for one run.

        Args:
            X: [m, d] mixtures.
            interval: probability that each interval covers.

        Returns:
            Prediction of three arrays [m, v].

        Raises:
            UsageError: not fitted; an X as ``fit`` refuses it; an interval outside (0, 1).
        """
        mixtures = self._checked(X)
        mean = self._mean(mixtures)
        half = self._quantile(interval) * np.sqrt(((self.draws(mixtures) - mean) ** 2).mean(0) + self.noise_**2)
        return Prediction(np.exp(mean), np.exp(mean - half), np.exp(mean + half))

    def target(self, X: ArrayLike, weights: ArrayLike, interval: float = 0.9) -> Prediction:
        """The weighted sum of losses ``sum_v weights[v] * loss[v]`` of new runs, with intervals for one run.

        The interval comes from the joint draws and the joint noise: errors that domains share do not average out.

        Args:
            X: [m, d] mixtures.
            weights: [v], not negative, not all 0.
            interval: probability that each interval covers.

        Returns:
            Prediction of three arrays [m].

        Raises:
            UsageError: as ``predict``; weights of another length, negative or all 0.
        """
        mixtures = self._checked(X)
        weight = self.checked_weights(weights)
        losses = np.exp(self._mean(mixtures))
        mean = losses @ weight
        spread = ((np.exp(self.draws(mixtures)) @ weight - mean) ** 2).mean(0)
        scaled = losses * weight
        noise = np.einsum("mv,vu,mu->m", scaled, self._noise, scaled)
        half = self._quantile(interval) * np.sqrt(spread + noise)
        return Prediction(mean, mean - half, mean + half)

    def draws(self, X: Array) -> Array:
        """Log losses [b, m, v] at checked mixtures [m, d] under each joint draw, without the noise of a new run."""
        result = np.empty((self.bootstraps, len(X), self.held_out_.measured.shape[1]))
        start = np.zeros(result.shape[2])
        for name in self.models:
            if name in self._forms:
                end = start + self.chosen_[name]
                chosen = (self._pick[:, None] >= start) & (self._pick[:, None] < end + 1e-9)  # [b, v]
                values = self._forms[name].draws(X)
                result = np.where(chosen[:, None, :], values, result)
                start = end
        return result

    def checked_weights(self, weights: ArrayLike) -> Array:
        """Target weights [v] as an array, or UsageError."""
        require_fitted(self, "held_out_")
        weight = np.asarray(weights, dtype=float)
        targets = self.held_out_.measured.shape[1]
        if weight.shape != (targets,) or not np.isfinite(weight).all() or (weight < 0).any() or not weight.any():
            raise UsageError(
                f"target weights are {weight.tolist()}; give {targets} numbers, one for each validation domain, "
                "none negative and not all 0"
            )
        return weight

    def _checked(self, X: ArrayLike) -> Array:
        require_fitted(self, "held_out_")
        return checked_mixtures("X", X, columns=self.mixtures_.shape[1])

    def _mean(self, X: Array) -> Array:
        return np.asarray(sum(self.chosen_[name] * form.mean(X) for name, form in self._forms.items()))

    def _quantile(self, interval: float) -> float:
        return float(stats.t.isf((1 - checked_interval(interval)) / 2, self._freedom))

    def _held_out(
        self, predicted: dict[str, Array], squares: Array, folds: list[Rows], logs: Array
    ) -> tuple[HeldOut, Array]:
        """Held-out record of the ensemble, and its residuals [n, v] in log loss."""
        ensemble = np.empty_like(logs)
        for fold in folds:
            weights = _weights(np.delete(squares, fold, axis=1).mean(1))
            ensemble[fold] = sum(w * p[fold] for w, p in zip(weights, predicted.values(), strict=True))
        measured = np.exp(logs)

        def rmse(log_predicted: Array) -> Array:
            return np.asarray(np.sqrt(((np.exp(log_predicted) - measured) ** 2).mean(0)))

        ranks = [_spearman(ensemble[:, v], logs[:, v]) for v in range(logs.shape[1])]
        record = HeldOut(
            predicted=np.exp(ensemble),
            measured=measured,
            spearman=np.array(ranks),
            rmse=rmse(ensemble),
            rmse_of_model={name: rmse(values) for name, values in predicted.items()},
        )
        return record, ensemble - logs


def _spearman(a: Array, b: Array) -> float:
    """Rank correlation; 0 where one of the two is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def _folds(mixtures: Array, rng: np.random.Generator) -> list[Rows]:
    """Rows of each fold; equal mixtures stand in one fold."""
    _, group = np.unique(mixtures.round(9), axis=0, return_inverse=True)
    group = group.reshape(-1)
    groups = int(group.max()) + 1
    if groups < MIN_ROWS:
        raise UsageError(f"X holds {groups} different mixtures in {len(mixtures)} rows; at least {MIN_ROWS} are needed")
    fold = rng.permutation(groups) % min(FOLDS, groups)
    return [np.flatnonzero(fold[group] == k) for k in range(min(FOLDS, groups))]


def _weights(mean_squares: Array) -> Array:
    """Weights [k, v] of the forms from their mean squared errors [k, v]; below 2 % a form is left out."""
    relative = mean_squares / np.maximum(mean_squares.min(0), 1e-300)
    weights = relative ** (-SHARPNESS / 2)
    weights = weights / weights.sum(0)
    weights = np.where(weights < 0.02, 0.0, weights)
    return np.asarray(weights / weights.sum(0))
