"""From a mixture of training domains to the loss on each of several validation domains, with intervals.

For each validation domain, the forms of ``forms`` and ``closed_forms`` are weighted by their error on held-out runs
(k-fold). The reported held-out error is that of the weighted ensemble, where each fold is predicted with weights from
the other folds.

If the runs have several model sizes, every form has parts that move with the logarithm of the size, and the law
predicts at any size. Trade-offs:

- Repeats of one mixture, at any size, are always in the same fold. Otherwise a held-out mixture would also be in the
fit.
- A draw follows one form, chosen by the ensemble's weights, so that the draws spread where the forms disagree.
- Every movement slows down with size, from one e-fold to the next by a share of 1 / reach. Two sizes do not determine
  the reach. With the constants of Hoffmann et al. 2022, between 1M and 1B, it is 4 at equal tokens, and infinite if
  larger models train on more tokens. ``scale.REACH`` is between the two, each draw has its own, and three sizes or more
  determine it better. Each draw also has its own bend, so that intervals grow with the extrapolation.
- With one size only, the movement is the prior of ``EffectiveData`` for every form.
- A scale is a size and its tokens. The level of losses is known at the fitted scales. With several sizes and numbers of
  tokens it is also known on the line or plane through them. Elsewhere, and at other sizes without tokens, only the
  ranks of mixtures are known, and intervals are 0 to infinity.
- A loss that is missing or contradicts the others is replaced by the prediction from the other runs. This adds no
  information for a smooth form. A run without any loss is left out.
- Deviations that no form describes are noise, estimated from held-out residuals and unequal over mixtures and sizes
  (``noise``).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from armillary.laws.estimator import (
    SET_ASIDE,
    Array,
    Estimator,
    ExtrapolationWarning,
    Prediction,
    SetAside,
    check_reach,
    checked_draws,
    checked_interval,
    checked_mixtures,
    checked_positive,
    report_set_aside,
    require_fitted,
)
from armillary.laws.mixture.closed_forms import EffectiveData, Exponential
from armillary.laws.mixture.forms import BoostedTrees, Form, GaussianProcess, Linear, Rows
from armillary.laws.mixture.noise import RunNoise, correlation, nearest_distance
from armillary.laws.mixture.outliers import FOLDS, MIN_ROWS, contradicted
from armillary.laws.mixture.scale import SAME_SCALE, checked_sizes, direction_of_scale, directions, likely_reaches
from armillary.laws.values import Array as ArrayField
from armillary.laws.values import Codec, Fields, Flag, Listed, Mapped, Names, Number, Record, Whole, restored
from armillary.recipe import UsageError, counted

FORMS: dict[str, type[Form]] = {
    "linear": Linear,
    "lightgbm": BoostedTrees,
    "exponential": Exponential,
    "effective-data": EffectiveData,
    "gaussian-process": GaussianProcess,
}
MOVER = "effective-data"

# Largest extrapolation in size, as a factor of the largest fitted size: from a million parameters to a hundred billion.
MOST_SIZE = 1e5

# Weights of the forms are rmse to the power of minus this: a form with twice the error counts a 16th.
SHARPNESS = 4.0

# Deviation of log losses from that movement, per e-fold beyond the largest size: shared by all domains (since the
# tokens of larger models are unknown), and separate for each domain. Tuned on RegMix's test runs.
_BEND_COMMON, _BEND_OWN = 0.02, 0.01

# Change of a domain's weight by which the noise's features measure a prediction's sensitivity.
_TINY = 0.001


@dataclass(frozen=True)
class HeldOut:
    """The ensemble's predictions of held-out runs; n runs, v validation domains.

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


def _form_codec(name: str) -> Codec | None:
    return Record(restored(FORMS[name]), FORMS[name].FITTED) if name in FORMS else None


class MixtureLaw(Estimator):
    """An ensemble of forms from mixtures [n, d] to losses [n, v].

    Args:
        models: the forms of the ensemble, from ``linear``, ``lightgbm``, ``exponential``, ``effective-data``,
            ``gaussian-process``.
        bootstraps: joint draws for the uncertainty.
        seed: of folds and draws.

    Attributes:
        held_out_: k-fold predictions and their errors, a ``HeldOut``.
        chosen_: weights of each form, arrays [v].
        noise_: relative standard deviation of a new run around the law, [v], at an average mixture.
        sizes_: different sizes that were fitted, ascending; empty if none were given.
        mixtures_: [n, d] fitted mixtures.
        run_sizes_: [n] the size of each run; 1 if none were given.
        run_tokens_: [n] the tokens of each run; empty if none were given.
        set_aside_: losses that contradict the other runs, a list of ``SetAside``.
    """

    PARAMS: ClassVar[dict[str, Codec]] = {"models": Names(), "bootstraps": Whole(), "seed": Whole()}
    # n runs of d training domains, v validation domains, b draws.
    FITTED: ClassVar[Fields] = {
        "mixtures": ("mixtures_", ArrayField("n d")),
        "run_sizes": ("run_sizes_", ArrayField("n")),
        "run_tokens": ("run_tokens_", ArrayField("m")),
        "sizes": ("sizes_", ArrayField("s")),
        "left_out": (
            "held_out_",
            Record(
                HeldOut,
                {
                    "predicted": ArrayField("n v", finite=False),
                    "measured": ArrayField("n v", finite=False),
                    "spearman": ArrayField("v", finite=False),
                    "rmse": ArrayField("v", finite=False),
                    "rmse_of_model": Mapped(ArrayField("v", finite=False)),
                },
            ),
        ),
        "noise": (
            "_noise",
            Record(
                restored(RunNoise),
                {
                    "scale": ("scale_", ArrayField("v")),
                    "coefficients": ("coefficients_", ArrayField("f")),
                    "middle": ("_middle", ArrayField("v f")),
                    "width": ("_width", ArrayField("v f")),
                    "low": ("_low", ArrayField("f")),
                    "high": ("_high", ArrayField("f")),
                },
            ),
        ),
        "noise_correlation": ("_correlation", ArrayField("v v")),
        "noise_freedom": ("_freedom", Whole()),
        "weights": ("chosen_", Mapped(ArrayField("v"))),
        "forms": ("_forms", Mapped(_form_codec)),
        "form_of_draw": ("_pick", ArrayField("b")),
        "bend_of_draw": ("_bend", ArrayField("b v")),
        "reach_of_draw": ("_reaches", ArrayField("b")),
        "reach": ("_reach", Number()),
        "scale_direction": ("_along", ArrayField("2")),
        "largest_log_scale": ("_top", Number()),
        "fitted_e_folds": ("_span", Number()),
        "one_form_moves_all": ("_borrows", Flag()),
        "set_aside": ("set_aside_", Listed(Record(SetAside, SET_ASIDE))),
    }

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

    def fit(
        self,
        X: ArrayLike,
        Y: ArrayLike,
        sizes: ArrayLike | None = None,
        tokens: ArrayLike | None = None,
        *,
        missing: ArrayLike | None = None,
    ) -> Self:
        """Fit to runs.

        Args:
            X: [n, d] mixtures, each row summing to 1, d >= 2 and n >= 8 (30 to 60 for 8 domains give useful laws).
            Y: [n, v] losses.
            sizes: [n] parameters of each run's model. Some dozens of small runs with 16 to 32 of a larger size predict
                even larger models better than many runs of one size.
            tokens: [n] tokens of each run's training, with ``sizes``. Without them the law holds at the fitted sizes.
            missing: [n, v], true if a run lacks this loss; its other losses count.

        Raises:
            UsageError: a value that is not finite, a loss or size that is not positive, a row that does not sum to 1
                (with row and column), too few rows, or an unknown model.
        """
        self._forget()
        mixtures = checked_mixtures("X", X, rows=MIN_ROWS)
        gone = np.zeros(np.shape(Y), dtype=bool) if missing is None else np.asarray(missing, dtype=bool)
        losses = checked_positive("Y", Y if missing is None else np.where(gone, 1.0, np.asarray(Y, dtype=float)))
        if len(losses) != len(mixtures):
            raise UsageError(
                f"X has {counted(len(mixtures), 'row')} and Y has {len(losses)}; give the losses of each run"
            )
        unknown = [name for name in self.models if name not in FORMS]
        if unknown or not self.models:
            raise UsageError(
                f"unknown mixture model {', '.join(unknown) or '(none given)'}; choose from {', '.join(FORMS)}"
            )
        checked_draws(self.bootstraps)
        if tokens is not None and sizes is None:
            raise UsageError("tokens were given without sizes; give the parameters of each run's model too")
        n = len(mixtures)
        given = np.ones(n) if sizes is None else checked_sizes(sizes, n)
        seen = np.empty(0) if tokens is None else checked_sizes(tokens, n, "tokens")
        logs = np.log(losses)
        self._along = direction_of_scale(mixtures, logs, gone, np.log(given), np.log(seen) if len(seen) else None)
        scale = np.log(np.stack([given, seen if len(seen) else np.ones(n)], axis=1)) @ self._along
        logs, kept = self._without_contradicted(mixtures, scale - scale.max(), logs, gone)
        mixtures, losses, logs, scale = mixtures[kept], np.exp(logs[kept]), logs[kept], scale[kept]
        self.run_sizes_, self.run_tokens_ = given[kept], seen[kept] if len(seen) else seen
        self.sizes_ = np.empty(0) if sizes is None else np.unique(self.run_sizes_)
        e_folds = scale - scale.max()
        self._top = float(scale.max())
        rng = np.random.default_rng(self.seed)
        targets = losses.shape[1]
        folds = _folds(mixtures, rng)
        self._span = -float(e_folds.min())
        self._reach, self._reaches = likely_reaches(mixtures, e_folds, logs, folds, self.bootstraps, rng)
        s = self._moves(e_folds, self._reach)
        forms = {name: FORMS[name]() for name in self.models}
        predicted = {name: form.held_out(mixtures, s, logs, folds) for name, form in forms.items()}
        # Each size has the same total weight.
        _, place, runs = np.unique(s, return_inverse=True, return_counts=True)
        importance = (len(s) / len(runs) / runs)[place.reshape(-1)]
        squares = importance[:, None] * np.stack([(p - logs) ** 2 for p in predicted.values()])  # [k, n, v]
        weights = _weights(squares.mean(1))
        self.chosen_ = dict(zip(self.models, weights, strict=True))
        self.held_out_, residuals = self._held_out(predicted, squares, folds, logs, e_folds)

        self._correlation = 0.9 * correlation(residuals) + 0.1 * np.eye(targets)
        noise = rng.standard_normal((self.bootstraps, *losses.shape)) @ np.linalg.cholesky(self._correlation).T
        # Beyond the fitted sizes all forms use the movement of MOVER, the only form with a meaningful one.
        self._borrows = MOVER in self.models
        self._forms: dict[str, Form] = {}
        for name, form in forms.items():
            if self.chosen_[name].any() or (self._borrows and name == MOVER):
                form.fit(mixtures, s, logs, noise, rng)
                self._forms[name] = form
        # One number per draw for all validation domains: if two domains have equal weights of the forms, a draw uses
        # the same form for both.
        self._pick = (np.arange(self.bootstraps) + rng.uniform(size=self.bootstraps)) / self.bootstraps
        rng.shuffle(self._pick)
        self._bend = _BEND_COMMON * rng.standard_normal((self.bootstraps, 1))
        self._bend = self._bend + _BEND_OWN * rng.standard_normal((self.bootstraps, targets))
        self.mixtures_ = mixtures
        self._freedom = len(mixtures) - 1
        self._design = _different(mixtures)
        self._noise = RunNoise().fit(
            residuals, self._noise_features(mixtures, e_folds), self._draws(mixtures, e_folds).var(0)
        )
        self._derive()
        return self

    def _derive(self) -> None:
        """See ``Estimator``."""
        self._design = _different(self.mixtures_)
        self.noise_ = self._noise.scale_

    def predict(
        self,
        X: ArrayLike,
        interval: float = 0.9,
        *,
        sizes: float | ArrayLike | None = None,
        tokens: float | ArrayLike | None = None,
    ) -> Prediction:
        """Expected losses of new runs on each validation domain, and intervals that hold for one run.

        Args:
            X: [m, d] mixtures.
            interval: probability that each interval covers.
            sizes: parameters of the models, one number or [m]; the largest fitted scale if not given.
            tokens: tokens of the models' training, one number or [m]; those of the runs of that size if not given.

        Returns:
            Prediction of three arrays [m, v]. If the level is unknown (``level_known``), the values only rank mixtures;
            their intervals are 0 to infinity, with a warning.

        Raises:
            UsageError: not fitted; an X as ``fit`` refuses it; an interval outside (0, 1); sizes for a law that was
                fitted without sizes.
        """
        mixtures = self._checked(X)
        s = self._moved(sizes, len(mixtures), tokens)
        mean = self._mean(mixtures, s)
        spread = ((self._draws(mixtures, s) - mean) ** 2).mean(0)
        half = self._quantile(interval) * np.sqrt(spread + self._noise_std(mixtures, s) ** 2)
        half = np.where(self._checked_level(sizes, tokens, len(mixtures))[:, None], half, np.inf)
        return Prediction(np.exp(mean), np.exp(mean - half), np.exp(mean + half))

    def target(
        self,
        X: ArrayLike,
        weights: ArrayLike,
        interval: float = 0.9,
        *,
        sizes: float | ArrayLike | None = None,
        tokens: float | ArrayLike | None = None,
    ) -> Prediction:
        """The weighted sum of losses ``sum_v weights[v] * loss[v]`` of new runs, with intervals for one run.

        The interval comes from the joint draws and the joint noise: errors that domains share do not average out.

        Args:
            X: [m, d] mixtures.
            weights: [v], not negative, not all 0.
            interval: probability that each interval covers.
            sizes: as for ``predict``.
            tokens: as for ``predict``.

        Returns:
            Prediction of three arrays [m].

        Raises:
            UsageError: as ``predict``; weights of another length, negative or all 0.
        """
        mixtures = self._checked(X)
        weight = self.checked_weights(weights)
        s = self._moved(sizes, len(mixtures), tokens)
        mean = np.exp(self._mean(mixtures, s)) @ weight
        spread = ((np.exp(self._draws(mixtures, s)) @ weight - mean) ** 2).mean(0)
        noise = self.target_noise(mixtures, weight, sizes=sizes, tokens=tokens)
        half = self._quantile(interval) * np.sqrt(spread + noise**2)
        known = self._checked_level(sizes, tokens, len(mixtures))
        return Prediction(mean, np.where(known, mean - half, 0.0), np.where(known, mean + half, np.inf))

    def level_known(
        self, sizes: float | ArrayLike | None = None, tokens: float | ArrayLike | None = None, rows: int = 1
    ) -> NDArray[np.bool_]:
        """Whether the runs determine the level of losses at sizes and tokens, [rows]; if not, they only rank mixtures.

        Raises:
            UsageError: not fitted; sizes or tokens for a law that was fitted without them.
        """
        require_fitted(self, "noise_")
        if sizes is None and tokens is None:
            return np.ones(rows, dtype=bool)
        at = self._scales(sizes, tokens, rows)
        fitted = np.log(self.run_sizes_)[:, None]
        if len(self.run_tokens_):
            fitted = np.column_stack([fitted, np.log(self.run_tokens_)])
        else:
            at = at[:, :1]
        near = np.asarray((np.abs(at[:, None] - fitted) < SAME_SCALE).all(axis=2)).any(axis=1)
        if not len(self.run_tokens_):
            return np.asarray(near)
        # The distance of the scale from the line or plane through the fitted scales.
        off = at - fitted.mean(0)
        for direction in directions(fitted):
            off = off - np.outer(off @ direction, direction)
        return np.asarray(near | ((np.abs(off) < SAME_SCALE).all(1) & np.isfinite(off).all(1)))

    def target_noise(
        self,
        X: ArrayLike,
        weights: ArrayLike,
        *,
        sizes: float | ArrayLike | None = None,
        tokens: float | ArrayLike | None = None,
    ) -> Array:
        """Standard deviation [m] of the weighted sum of losses between runs of the same mixture; as ``target``."""
        mixtures = self._checked(X)
        s = self._moved(sizes, len(mixtures), tokens)
        scaled = np.exp(self._mean(mixtures, s)) * self.checked_weights(weights) * self._noise_std(mixtures, s)
        return np.asarray(np.sqrt(np.einsum("mv,vu,mu->m", scaled, self._correlation, scaled)))

    def extrapolation(self, sizes: float | ArrayLike | None = None, tokens: float | ArrayLike | None = None) -> Array:
        """The scale as a multiple of the largest fitted scale, in parameters, [m]; 1 without sizes.

        Raises:
            UsageError: not fitted; sizes that are not positive; sizes for a law that was fitted without sizes.
        """
        require_fitted(self, "noise_")
        rows = max(np.size(1.0 if given is None else given) for given in (sizes, tokens))
        return np.asarray(np.exp(self._moved(sizes, rows, tokens)))

    def draws(
        self, X: ArrayLike, *, sizes: float | ArrayLike | None = None, tokens: float | ArrayLike | None = None
    ) -> Array:
        """Log losses [b, m, v] of mixtures [m, d] under each joint draw, without the noise of a new run.

        Raises:
            UsageError: as ``predict``.
        """
        mixtures = self._checked(X)
        return self._draws(mixtures, self._moved(sizes, len(mixtures), tokens))

    def probe(self) -> list[Array]:
        """Predictions of three of its own runs; a law file holds them to detect code of another version."""
        require_fitted(self, "noise_")
        targets = len(self.noise_)
        voices = [name for name, weight in self.chosen_.items() if weight.any()]
        if not set(voices) <= set(self._forms) or len(self.run_tokens_) not in (0, len(self.mixtures_)):
            raise ValueError("its runs, weights and forms do not belong together")
        X = self.mixtures_[:3]
        goal = self.target(X, np.ones(targets))
        return [*self.predict(X), *goal, self.target_noise(X, np.ones(targets)), self.draws(X).mean(0)]

    def checked_weights(self, weights: ArrayLike) -> Array:
        """Target weights [v] as an array, or UsageError."""
        require_fitted(self, "noise_")
        weight = np.asarray(weights, dtype=float)
        targets = self.held_out_.measured.shape[1]
        if weight.shape != (targets,) or not np.isfinite(weight).all() or (weight < 0).any() or not weight.any():
            raise UsageError(
                f"target weights are {weight.tolist()}; give {counted(targets, 'number')}, one for each "
                f"validation domain, "
                "none negative and not all 0"
            )
        return weight

    def _checked(self, X: ArrayLike) -> Array:
        require_fitted(self, "noise_")
        return checked_mixtures("X", X, columns=self.mixtures_.shape[1])

    def _scales(self, sizes: float | ArrayLike | None, tokens: float | ArrayLike | None, rows: int) -> Array:
        """Log size and log tokens [rows, 2]; NaN for unknown tokens."""
        if sizes is not None and not len(self.sizes_):
            raise UsageError("the law was fitted without sizes and is valid at one size; fit it with the runs' sizes")
        if tokens is not None and not len(self.run_tokens_):
            raise UsageError("the law was fitted without tokens; fit it with the tokens of each run")
        top = self.run_sizes_.max() if sizes is None else sizes
        logs = np.log(checked_sizes(top, rows))
        if tokens is not None:
            return np.stack([logs, np.log(checked_sizes(tokens, rows, "tokens"))], axis=1)
        seen = np.full(rows, np.nan)
        if len(self.run_tokens_):
            for i, size in enumerate(logs):
                same = np.abs(np.log(self.run_sizes_) - size) < SAME_SCALE
                if same.any() and np.ptp(np.log(self.run_tokens_[same])) < SAME_SCALE:
                    seen[i] = np.log(self.run_tokens_[same][0])
        return np.stack([logs, seen], axis=1)

    def _checked_level(
        self, sizes: float | ArrayLike | None, tokens: float | ArrayLike | None, rows: int
    ) -> NDArray[np.bool_]:
        """``level_known``, with a warning if false."""
        known = self.level_known(sizes, tokens, rows)
        if not known.all():
            why = (
                "the runs do not span that size and its tokens"
                if len(self.run_tokens_)
                else "it was fitted without tokens"
            )
            warnings.warn(
                f"at {int((~known).sum())} of {counted(rows, 'row')} the level of the losses is unknown "
                f"({why}): values only "
                "rank mixtures, and intervals are 0 to infinity; add runs at that scale, or give each run's tokens",
                ExtrapolationWarning,
                stacklevel=3,
            )
        return known

    def _moved(self, sizes: float | ArrayLike | None, rows: int, tokens: float | ArrayLike | None = None) -> Array:
        """e-folds [m] above the largest fitted scale."""
        if sizes is None and tokens is None:
            return np.zeros(rows)
        at = self._scales(sizes, tokens, rows)
        # Unknown tokens are taken from the largest scale; this affects levels but not ranks.
        largest = (np.log(self.run_sizes_) * self._along[0]).argmax()
        usual = np.log(self.run_tokens_[largest]) if len(self.run_tokens_) else 0.0
        s: Array = np.where(np.isfinite(at), at, usual) @ self._along - self._top
        s = np.where(np.abs(s) < 1e-9, 0.0, s)
        if self._span == 0 and not self._borrows and s.any():
            raise UsageError(
                f"the law was fitted to runs of one size with models {', '.join(self.chosen_)}, which do not predict "
                f"how it changes with size; add runs at another size, or the model '{MOVER}'"
            )
        remedy = "add a few dozen runs at a size nearer to it"
        # No size is left out of the fit, so no larger size is tested.
        check_reach(float(np.exp(s.max())), 1.0, "the requested size", remedy, MOST_SIZE)
        return s

    def _without_contradicted(
        self, X: Array, s: Array, logs: Array, gone: NDArray[np.bool_]
    ) -> tuple[Array, NDArray[np.bool_]]:
        """Log losses [n, v] with excluded entries replaced by predictions, and a mask [n] of rows with any loss."""
        self.set_aside_ = []
        kept = np.asarray(~gone.all(axis=1))
        if kept.sum() < MIN_ROWS:
            raise UsageError(f"{int(kept.sum())} runs have losses; at least {MIN_ROWS} are needed")
        found, expected = contradicted(X[kept], s[kept], logs[kept], gone[kept])
        rows = np.flatnonzero(kept)
        self.set_aside_ = [
            SetAside(int(rows[i]), int(v), float(np.exp(logs[rows[i], v])), float(np.exp(expected[i, v])))
            for i, v in np.argwhere(found)
        ]
        report_set_aside(self.set_aside_, "Y")
        filled = logs.copy()
        filled[kept] = np.where(found | gone[kept], expected, logs[kept])
        kept[rows[(found | gone[kept]).all(1)]] = False
        return filled, kept

    def _moves(self, e_folds: float | Array, reach: float | Array) -> Array:
        """The movement at sizes this many e-folds from the largest, in e-folds of the fitted range.

        For any reach, the movement from the smallest to the largest size equals the whole range. Below the smallest
        size it is linear.
        """
        inside = np.maximum(e_folds, -self._span)
        moved = reach * -np.expm1(-inside / reach)
        if self._span > 0:
            moved = moved * self._span / (reach * np.expm1(self._span / reach))
        return np.asarray(moved + (e_folds - inside))

    def _lends(self, size: float) -> bool:
        """Whether all forms use one form's movement: beyond the largest size, or away from the only one."""
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
        out = np.empty((len(self._pick), len(X), self.held_out_.measured.shape[1]))
        for size in np.unique(s):
            rows = s == size
            slowed = self._moves(size, self._reaches)
            moved: Array | float = 0.0
            if self._lends(size):
                mover = self._forms[MOVER]
                moved = mover.draws(X[rows], slowed) - mover.draws(X[rows], 0.0 * slowed)
                slowed = 0.0 * slowed
            start = np.zeros(out.shape[2])
            values = np.empty((len(self._pick), int(rows.sum()), out.shape[2]))
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
        """The features of a run's noise, [m, v, k]; the prediction is taken at the largest fitted size."""
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
    """Spearman's rank correlation of two rows of numbers; 0 if one of them is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def _different(mixtures: Array) -> Array:
    """The different rows of mixtures."""
    return np.asarray(np.unique(mixtures.round(9), axis=0))


def _folds(mixtures: Array, rng: np.random.Generator) -> list[Rows]:
    """Rows of each fold; equal mixtures are in one fold."""
    _, group = np.unique(mixtures.round(9), axis=0, return_inverse=True)
    group = group.reshape(-1)
    groups = int(group.max()) + 1
    if groups < MIN_ROWS:
        raise UsageError(
            f"X has {groups} different mixtures in {counted(len(mixtures), 'row')}; at least {MIN_ROWS} are needed"
        )
    fold = rng.permutation(groups) % min(FOLDS, groups)
    return [np.flatnonzero(fold[group] == k) for k in range(min(FOLDS, groups))]


def _weights(mean_squares: Array) -> Array:
    """Weights [k, v] of the forms from their mean squared errors [k, v]; below 2 % a form is left out."""
    relative = (mean_squares + 1e-18) / (mean_squares.min(0) + 1e-18)
    weights = relative ** (-SHARPNESS / 2)
    weights = weights / weights.sum(0)
    weights = np.where(weights < 0.02, 0.0, weights)
    return np.asarray(weights / weights.sum(0))
