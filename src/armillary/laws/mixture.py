"""From a mixture of training domains to the loss on each of several validation domains, with intervals.

The forms of ``forms`` and ``mixture_forms`` are weighed, for each validation domain, by how well they predict runs that
they have not seen (k-fold). What is reported as held-out error is that of the weighed ensemble, each fold predicted
with weights taken from the other folds.

Runs may be of several model sizes: then every form has parts that move with the logarithm of the size, and the law may
be asked at any size. Trade-offs taken:

- Repeats of one mixture, at whatever size, always stand in the same fold, else a held-out run would have been seen.
- A draw follows one form, picked with the ensemble's weights, so that the draws spread where the forms disagree.
- Every movement slows down with size, from one e-fold to the next by a share of 1 / reach. How soon depends on what
  sizes do not tell: with the constants of Hoffmann et al. 2022, between 1M and 1B, the reach is 4 at equal tokens, and
  without end where larger models see more tokens. ``REACH`` stands between the two, each draw has its own, and three
  sizes or more tell more of it. Each draw has its own bend, too, so that intervals grow with the extrapolation.
- With one size only, the movement is the prior of ``EffectiveData``, whatever the form.
- What no form describes is noise: read off held-out residuals, and unequal over mixtures and sizes (``mixture_noise``).
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
    check_reach,
    checked_draws,
    checked_interval,
    checked_mixtures,
    checked_positive,
    require_fitted,
)
from armillary.laws.forms import BoostedTrees, Form, GaussianProcess, Linear, Rows
from armillary.laws.mixture_forms import EffectiveData, Exponential
from armillary.laws.mixture_noise import RunNoise, correlation, nearest_distance
from armillary.recipe import UsageError

FORMS: dict[str, type[Form]] = {
    "linear": Linear,
    "lightgbm": BoostedTrees,
    "exponential": Exponential,
    "effective-data": EffectiveData,
    "gaussian-process": GaussianProcess,
}
MOVER = "effective-data"

MIN_ROWS = 8

# Times the largest fitted size beyond which a law does not answer: from a million parameters to a hundred billion.
MOST_SIZE = 1e5
FOLDS = 8

# Weights of the forms go with rmse to the power of minus this: a form twice as wrong counts a 16th.
SHARPNESS = 4.0

# e-folds of size over which movement slows down to 37 %, and a factor by which that may be wrong. The factor, and that
# one form moves for all beyond the sizes, were chosen after a look at test runs of tiny models on few tokens.
REACH = 12.0
_REACH_STD = 1.2

# Reaches that are tried where sizes tell of it, and how many runs are asked at most.
_REACHES, _ASKED = 12, 160

# How far log losses may bend away from that, per e-fold beyond the largest size: all domains alike (nobody says how
# many tokens the larger models see), and each alone. Chosen after a look at RegMix's test runs.
_BEND_COMMON, _BEND_OWN = 0.02, 0.01

# Share of a domain by which the noise's features ask how much a prediction turns on it.
_TINY = 0.001


@dataclass(frozen=True)
class HeldOut:
    """How the ensemble predicted runs it had not seen; n runs, v validation domains.

    Attributes:
        predicted: losses [n, v].
        measured: losses [n, v].
        spearman: rank correlation of the two among runs of one size, [v]; with several sizes the mean over runs.
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
        models: forms to weigh, of ``linear``, ``lightgbm``, ``exponential``, ``effective-data``, ``gaussian-process``.
        bootstraps: joint draws for the uncertainty.
        seed: of folds and draws.

    Attributes:
        held_out_: k-fold predictions and their errors, a ``HeldOut``.
        chosen_: weights of each form, arrays [v].
        noise_: relative standard deviation of a new run around the law, [v], at an average mixture.
        sizes_: different sizes that were fitted, ascending; empty if none were given.
        mixtures_: [n, d] what was fitted.
        run_sizes_: [n] the size of each run; 1 if none were given.
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

    def fit(self, X: ArrayLike, Y: ArrayLike, sizes: ArrayLike | None = None) -> Self:
        """Fit to runs.

        Args:
            X: [n, d] mixtures, each row summing to 1, d >= 2 and n >= 8 (30 to 60 for 8 domains give useful laws).
            Y: [n, v] losses.
            sizes: [n] parameters of each run's model. Some dozens of small runs and 16 to 32 of a larger size tell
                more of still larger ones than many runs of one size.

        Raises:
            UsageError: a value that is not finite, a loss or size that is not positive, a row that does not sum to 1
                (with row and column), too few rows, or an unknown model.
        """
        mixtures = checked_mixtures("X", X, rows=MIN_ROWS)
        losses = checked_positive("Y", Y)
        if len(losses) != len(mixtures):
            raise UsageError(f"X has {len(mixtures)} rows and Y has {len(losses)}; give the losses of each run")
        unknown = [name for name in self.models if name not in FORMS]
        if unknown or not self.models:
            raise UsageError(f"no mixture model {', '.join(unknown) or 'given'}; take some of {', '.join(FORMS)}")
        checked_draws(self.bootstraps)
        self.sizes_ = np.empty(0)
        self.run_sizes_ = np.ones(len(mixtures))
        e_folds = np.zeros(len(mixtures))
        if sizes is not None:
            given = _checked_sizes(sizes, len(mixtures))
            self.sizes_, self.run_sizes_ = np.unique(given), given
            e_folds = np.log(given / given.max())
        rng = np.random.default_rng(self.seed)
        logs = np.log(losses)
        targets = losses.shape[1]
        folds = _folds(mixtures, rng)
        self._span = -float(e_folds.min())
        self._reach, self._reaches = _reaches(mixtures, e_folds, logs, folds, self.bootstraps, rng)
        s = self._moves(e_folds, self._reach)
        forms = {name: FORMS[name]() for name in self.models}
        predicted = {name: form.held_out(mixtures, s, logs, folds) for name, form in forms.items()}
        # Each size counts as much as any other, however many runs it has.
        _, place, runs = np.unique(s, return_inverse=True, return_counts=True)
        importance = (len(s) / len(runs) / runs)[place.reshape(-1)]
        squares = importance[:, None] * np.stack([(p - logs) ** 2 for p in predicted.values()])  # [k, n, v]
        weights = _weights(squares.mean(1))
        self.chosen_ = dict(zip(self.models, weights, strict=True))
        self.held_out_, residuals = self._held_out(predicted, squares, folds, logs, e_folds)

        self._correlation = 0.9 * correlation(residuals) + 0.1 * np.eye(targets)
        noise = rng.standard_normal((self.bootstraps, *losses.shape)) @ np.linalg.cholesky(self._correlation).T
        # Beyond what was seen all forms move as the one whose movement has a meaning.
        self._borrows = MOVER in self.models
        self._forms: dict[str, Form] = {}
        for name, form in forms.items():
            if self.chosen_[name].any() or (self._borrows and name == MOVER):
                form.fit(mixtures, s, logs, noise, rng)
                self._forms[name] = form
        # One number per draw, the same for all validation domains: where two domains weigh the forms alike, a draw
        # takes the same form for both.
        self._pick = (np.arange(self.bootstraps) + rng.uniform(size=self.bootstraps)) / self.bootstraps
        rng.shuffle(self._pick)
        self._bend = _BEND_COMMON * rng.standard_normal((self.bootstraps, 1))
        self._bend = self._bend + _BEND_OWN * rng.standard_normal((self.bootstraps, targets))
        self.mixtures_ = mixtures
        self._freedom = len(mixtures) - 1
        self._design = np.unique(mixtures.round(9), axis=0)
        self._noise = RunNoise().fit(
            residuals, self._noise_features(mixtures, e_folds), self._draws(mixtures, e_folds).var(0)
        )
        self.noise_ = self._noise.scale_
        return self

    def predict(self, X: ArrayLike, interval: float = 0.9, *, sizes: float | ArrayLike | None = None) -> Prediction:
        """Expected losses of new runs on each validation domain, and intervals that hold for one run.

        Args:
            X: [m, d] mixtures.
            interval: probability that each interval covers.
            sizes: parameters of the models, one number or [m]; the largest fitted size if not given.

        Returns:
            Prediction of three arrays [m, v].

        Raises:
            UsageError: not fitted; an X as ``fit`` refuses it; an interval outside (0, 1); sizes where the law was
                fitted without.
        """
        mixtures = self._checked(X)
        s = self._moved(sizes, len(mixtures))
        mean = self._mean(mixtures, s)
        spread = ((self._draws(mixtures, s) - mean) ** 2).mean(0)
        half = self._quantile(interval) * np.sqrt(spread + self._noise_std(mixtures, s) ** 2)
        return Prediction(np.exp(mean), np.exp(mean - half), np.exp(mean + half))

    def target(
        self,
        X: ArrayLike,
        weights: ArrayLike,
        interval: float = 0.9,
        *,
        sizes: float | ArrayLike | None = None,
    ) -> Prediction:
        """The weighted sum of losses ``sum_v weights[v] * loss[v]`` of new runs, with intervals for one run.

        The interval comes from the joint draws and the joint noise: errors that domains share do not average out.

        Args:
            X: [m, d] mixtures.
            weights: [v], not negative, not all 0.
            interval: probability that each interval covers.
            sizes: as for ``predict``.

        Returns:
            Prediction of three arrays [m].

        Raises:
            UsageError: as ``predict``; weights of another length, negative or all 0.
        """
        mixtures = self._checked(X)
        weight = self.checked_weights(weights)
        s = self._moved(sizes, len(mixtures))
        mean = np.exp(self._mean(mixtures, s)) @ weight
        spread = ((np.exp(self._draws(mixtures, s)) @ weight - mean) ** 2).mean(0)
        noise = self.target_noise(mixtures, weight, sizes=sizes)
        half = self._quantile(interval) * np.sqrt(spread + noise**2)
        return Prediction(mean, mean - half, mean + half)

    def target_noise(self, X: ArrayLike, weights: ArrayLike, *, sizes: float | ArrayLike | None = None) -> Array:
        """Standard deviation [m] of the weighted sum of losses between runs of the same mixture; as ``target``."""
        mixtures = self._checked(X)
        s = self._moved(sizes, len(mixtures))
        scaled = np.exp(self._mean(mixtures, s)) * self.checked_weights(weights) * self._noise_std(mixtures, s)
        return np.asarray(np.sqrt(np.einsum("mv,vu,mu->m", scaled, self._correlation, scaled)))

    def extrapolation(self, sizes: float | ArrayLike | None = None) -> Array:
        """How many times the largest size that was fitted, [m]; 1 where no sizes are given.

        Raises:
            UsageError: not fitted; sizes that are not positive; sizes where the law was fitted without.
        """
        require_fitted(self, "held_out_")
        return np.asarray(np.exp(self._moved(sizes, np.size(1.0 if sizes is None else sizes))))

    def draws(self, X: ArrayLike, *, sizes: float | ArrayLike | None = None) -> Array:
        """Log losses [b, m, v] of mixtures [m, d] under each joint draw, without the noise of a new run.

        Raises:
            UsageError: as ``predict``.
        """
        mixtures = self._checked(X)
        return self._draws(mixtures, self._moved(sizes, len(mixtures)))

    def probe(self) -> list[Array]:
        """What the law says of three of its own runs; a law file holds it to tell a law from one of other code."""
        n, targets = self.held_out_.measured.shape
        if self.mixtures_.shape[0] != n or self.run_sizes_.shape != (n,) or set(self.chosen_) != set(self.models):
            raise ValueError("its runs, losses and forms do not belong together")
        X = self.mixtures_[:3]
        goal = self.target(X, np.ones(targets))
        return [*self.predict(X), *goal, self.target_noise(X, np.ones(targets)), self.draws(X).mean(0)]

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

    def _moved(self, sizes: float | ArrayLike | None, rows: int) -> Array:
        """e-folds [m] above the largest fitted size."""
        if sizes is None:
            return np.zeros(rows)
        if not len(self.sizes_):
            raise UsageError("the law was fitted without sizes and holds at one size; fit it with the runs' sizes")
        s: Array = np.log(_checked_sizes(sizes, rows) / self.sizes_[-1])
        if len(self.sizes_) == 1 and not self._borrows and s.any():
            raise UsageError(
                f"the law was fitted to runs of one size with models {', '.join(self.models)}, which cannot tell how "
                f"it moves; add runs at another size, or the model '{MOVER}'"
            )
        tested = float(self.sizes_[-1] / self.sizes_[0])
        remedy = "add some dozens of runs at a size nearer to it"
        check_reach(float(np.exp(s.max())), tested, "the size asked for", remedy, MOST_SIZE)
        return s

    def _moves(self, e_folds: float | Array, reach: float | Array) -> Array:
        """How far everything has moved at sizes so many e-folds from the largest, in e-folds of the fitted range.

        However soon it slows down, it leads from the smallest size to the largest. Straight below the smallest.
        """
        inside = np.maximum(e_folds, -self._span)
        moved = reach * -np.expm1(-inside / reach)
        if self._span > 0:
            moved = moved * self._span / (reach * np.expm1(self._span / reach))
        return np.asarray(moved + (e_folds - inside))

    def _lends(self, size: float) -> bool:
        """Whether one form's movement is taken for all: beyond the largest size, or away from the only one."""
        return self._borrows and (size > 0 or (size < 0 and self._span == 0))

    def _mean(self, X: Array, s: Array) -> Array:
        """Expected log losses [m, v]."""
        out = np.empty((len(X), self.held_out_.measured.shape[1]))
        for size in np.unique(s):
            rows = s == size
            slowed = float(self._moves(size, self._reach))
            moved: Array | float = 0.0
            if self._lends(size):
                mover = self._forms[MOVER]
                moved = mover.mean(X[rows], slowed) - mover.mean(X[rows], 0.0)
                slowed = 0.0
            parts = [self.chosen_[name] * form.mean(X[rows], slowed) for name, form in self._forms.items()]
            out[rows] = sum(parts) + moved
        return out

    def _draws(self, X: Array, s: Array) -> Array:
        """Log losses [b, m, v] under each draw."""
        out = np.empty((self.bootstraps, len(X), self.held_out_.measured.shape[1]))
        for size in np.unique(s):
            rows = s == size
            slowed = self._moves(size, self._reaches)
            moved: Array | float = 0.0
            if self._lends(size):
                mover = self._forms[MOVER]
                moved = mover.draws(X[rows], slowed) - mover.draws(X[rows], 0.0 * slowed)
                slowed = 0.0 * slowed
            start = np.zeros(out.shape[2])
            values = np.empty((self.bootstraps, int(rows.sum()), out.shape[2]))
            for name, form in self._forms.items():
                end = start + self.chosen_[name]
                chosen = (self._pick[:, None] >= start) & (self._pick[:, None] < end + 1e-9)  # [b, v]
                if chosen.any():
                    values = np.where(chosen[:, None, :], form.draws(X[rows], slowed), values)
                start = end
            out[:, rows] = values + moved + max(size, 0.0) * self._bend[:, None, :]
        return out

    def _quantile(self, interval: float) -> float:
        return float(stats.t.isf((1 - checked_interval(interval)) / 2, self._freedom))

    def _noise_features(self, X: Array, s: Array) -> Array:
        """What a run's noise may depend on, [m, v, k]; of the prediction, that at the largest fitted size."""
        here = np.zeros(len(X))
        logs = self._mean(X, here)
        turn = np.zeros_like(logs)
        for i in range(X.shape[1]):
            nudged = X * (1 - _TINY)
            nudged[:, i] += _TINY
            turn += (self._mean(nudged, here) - logs) ** 2
        apart = np.log(nearest_distance(X, self._design) + 1e-3)
        shared = np.broadcast_to(np.column_stack([apart, s])[:, None, :], (*logs.shape, 2))
        return np.concatenate([logs[:, :, None], 0.5 * np.log(turn + 1e-10)[:, :, None], shared], axis=2)

    def _noise_std(self, X: Array, s: Array) -> Array:
        return self._noise.std(self._noise_features(X, s))

    def _held_out(
        self, predicted: dict[str, Array], squares: Array, folds: list[Rows], logs: Array, s: Array
    ) -> tuple[HeldOut, Array]:
        """Held-out record of the ensemble, and its residuals [n, v] in log loss."""
        ensemble = np.empty_like(logs)
        for fold in folds:
            weights = _weights(np.delete(squares, fold, axis=1).mean(1))
            ensemble[fold] = sum(w * p[fold] for w, p in zip(weights, predicted.values(), strict=True))
        measured = np.exp(logs)

        def rmse(log_predicted: Array) -> Array:
            return np.asarray(np.sqrt(((np.exp(log_predicted) - measured) ** 2).mean(0)))

        ranks = np.zeros(logs.shape[1])
        for size in np.unique(s):
            rows = s == size
            ranks += rows.mean() * np.array(
                [rank_correlation(*pair) for pair in zip(ensemble[rows].T, logs[rows].T, strict=True)]
            )
        record = HeldOut(
            predicted=np.exp(ensemble),
            measured=measured,
            spearman=ranks,
            rmse=rmse(ensemble),
            rmse_of_model={name: rmse(values) for name, values in predicted.items()},
        )
        return record, ensemble - logs


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of two rows of numbers; 0 where one of them is constant and has no ranks."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def _checked_sizes(sizes: float | ArrayLike, rows: int) -> Array:
    """Sizes [rows], all above 0."""
    given = np.asarray(sizes, dtype=float)
    if given.ndim > 1 or given.size not in (1, rows):
        raise UsageError(f"sizes has shape {list(given.shape)}; give one size, or one for each of {rows} rows")
    return np.broadcast_to(checked_positive("sizes", given.reshape(-1, 1))[:, 0], rows)


def _reaches(
    X: Array, e_folds: Array, Z: Array, folds: list[Rows], count: int, rng: np.random.Generator
) -> tuple[float, Array]:
    """The likeliest reach, and draws [count] of it: what was known before, weighed by held-out errors if sizes tell."""
    grid = REACH * np.exp(_REACH_STD * stats.norm.ppf((np.arange(_REACHES) + 0.5) / _REACHES))
    if len(np.unique(e_folds)) < 3:
        return REACH, rng.choice(grid, count)
    rows = rng.permutation(len(X))[:_ASKED]
    parts = [part for part in (np.flatnonzero(np.isin(rows, fold)) for fold in folds) if len(part)]
    X, e_folds, Z = X[rows], e_folds[rows], Z[rows]
    errors = []
    for reach in grid:
        s = reach * -np.expm1(-e_folds / reach)
        errors.append(np.log(((GaussianProcess().held_out(X, s, Z, parts) - Z) ** 2).mean(0) + 1e-12).mean())
    # Domains err alike: all of them count as one.
    likelihood = np.exp(-0.5 * len(Z) * (np.array(errors) - min(errors)))
    weights = likelihood / likelihood.sum()
    return float(np.exp(weights @ np.log(grid))), rng.choice(grid, count, p=weights)


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
    relative = (mean_squares + 1e-18) / (mean_squares.min(0) + 1e-18)
    weights = relative ** (-SHARPNESS / 2)
    weights = weights / weights.sum(0)
    weights = np.where(weights < 0.02, 0.0, weights)
    return np.asarray(weights / weights.sum(0))
