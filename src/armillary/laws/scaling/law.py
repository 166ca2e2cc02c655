"""Scaling laws: the loss of a model as a function of its size and its training tokens, with intervals.

Far beyond the runs a forecast depends on the form, and an in-sample fit does not show which form holds there. So each
form predicts the largest runs after a fit to the others (leave-largest-out). The law is the average of the forms,
weighted by these held-out errors.

Trade-offs taken:

- The same code must fit six points of a laptop's ladder and hundreds of a cluster's: broad priors (``forms``).
- An interval must cover a *new run*, so it adds in quadrature, in log loss: the uncertainty of each form's parameters
  (posterior draws), the disagreement of the forms, the noise of one run, and the common error of all forms. Residuals
  do not show the last part: it is the law's error on left-out runs beyond what the other parts explain.
- Few such errors are known, so their average is mixed with a prior guess.
- N may count all parameters, or those outside the embedding, but must be consistent.
- Several choices were tuned on published held-out runs (Chinchilla's points, OLMo's ladder, Gemstones, IsoFLOP grids,
  repeated data), which therefore do not confirm them: the form ``ratio`` and the narrow prior of ``interaction`` around
  it, noise that may grow with the loss, ``SHARPNESS``, ``MISS`` and its growth with distance, the smaller weight of
  runs with large scatter in the check of intervals, the limit on sharing between targets (``fit.POOL``), and the level
  and width of the irreducible loss's prior (``forms.SHARE``).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from armillary.laws.estimator import (
    SET_ASIDE,
    Array,
    Estimator,
    ExtrapolationError,
    ExtrapolationWarning,
    Prediction,
    SetAside,
    SetAsideWarning,
    checked_draws,
    checked_interval,
    checked_noise,
    checked_positive,
    report_set_aside,
    require_fitted,
    row_name,
    target_name,
)
from armillary.laws.scaling.fit import Solution, draw, fit_form, height, reach, seed_noise
from armillary.laws.scaling.forms import SCALING_FORMS
from armillary.laws.scaling.outliers import FEWEST, contradicted
from armillary.laws.values import Array as ArrayField
from armillary.laws.values import Codec, Fields, Flag, Listed, Mapped, Names, Number, Record, Text, Together, Whole
from armillary.recipe import UsageError, counted

__all__ = ["SCALING_FORMS", "LeftOut", "ScalingLaw"]

# Prior of the relative error of all forms at one e-fold of extrapolation, weighted as MISS_COUNT observations.
MISS, MISS_COUNT = 0.006, 2.0

# The 95th percentile of a normal variate: nine tenths of its absolute values are below.
NORMAL = 1.645

# An interval wider than this in log loss, in either direction, is useless.
VOID = float(np.log(2.0))

# Forms are weighted by their held-out error to this power for each left-out set; a form below FAINT is dropped.
SHARPNESS = 2.0
FAINT = 0.02


# A description of the runs left out, and the mask of the runs kept [n].
Cut = tuple[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class LeftOut:
    """Predictions of the largest runs by a law of the other runs.

    Attributes:
        what: the left-out runs, such as ``tokens >= 1.2e+09``.
        rows: their rows in the table given to ``fit``, [k].
        predicted: losses by the law fitted without them, [k] or [k, t].
        measured: their losses, [k] or [k, t]; not a number where a loss is missing or was set aside.
        extrapolation: their compute N * D over the largest kept compute, [k].
    """

    what: str
    rows: NDArray[np.intp]
    predicted: Array
    measured: Array
    extrapolation: Array


@dataclass(frozen=True)
class Member:
    """One form of the average: its weight, parameters [t, p], draws [b, t, p] and precision [t, p, p].

    All are on the scale of the priors of the form's parameters.
    """

    form: str
    weight: float
    theta: Array
    draws: Array
    precision: Array


_LEFT_OUT = Listed(
    Record(
        LeftOut,
        {
            "what": Text(),
            "rows": ArrayField("k", kind="i"),
            "predicted": ArrayField("k ...", finite=False),
            "measured": ArrayField("k ...", finite=False),
            "extrapolation": ArrayField("k", finite=False),
        },
    )
)


class ScalingLaw(Estimator):
    """The loss of a run from its sizes, with intervals for a new run.

    Args:
        form: a name of ``SCALING_FORMS``, or ``auto`` for the average of all whose features are among ``features``.
        features: what the columns of X are. A named form reads its own features and ignores this.
        bootstraps: draws for the uncertainty of the parameters.
        seed: of these draws.
        max_extrapolation: times the fitted compute beyond which ``predict`` refuses.

    Attributes:
        features_: what the columns of X are.
        size_columns_: which of them are N and D.
        log_points_: logarithms of the fitted X.
        form_: the form with the largest weight.
        weights_: weight of each form.
        parameters_: parameters of ``form_`` in the units of its formula; numbers, or arrays [t] for several targets.
        draws_: the same for each draw, arrays [b] or [b, t].
        noise_: relative standard deviation of one new run around the law, a number or [t].
        miss_per_efold_: relative error of the law (standard deviation) at one e-fold of extrapolation in ``N`` and in
        ``D``, likewise. holdout_error_: left-out runs with predictions and measurements, a list of ``LeftOut``.
        held_out_: the same for each form.
        set_aside_: losses that contradict the other runs and were left out, a list of ``SetAside``.
    """

    PARAMS: ClassVar[dict[str, Codec]] = {
        "form": Text(),
        "features": Names(),
        "bootstraps": Whole(),
        "seed": Whole(),
        "max_extrapolation": Number(finite=False),
    }
    # n runs of c features, t targets; each form has p parameters and b draws.
    FITTED: ClassVar[Fields] = {
        "features": ("features_", Names()),
        "log_points": ("log_points_", ArrayField("n c")),
        "single_target": ("_single", Flag()),
        "noise": ("_noise", ArrayField("t")),
        "noise_tilt": ("_tilt", ArrayField("t")),
        "log_loss_range": ("_range", Together((ArrayField("t"), ArrayField("t")))),
        "noise_freedom": ("_freedom", ArrayField("t")),
        "miss_per_efold": ("_miss", ArrayField("2 t")),
        "miss_freedom": ("_miss_freedom", Number()),
        "interval_scale": ("_wide", ArrayField("t")),
        "forms": (
            "_members",
            Listed(
                Record(
                    Member,
                    {
                        "form": Text(),
                        "weight": Number(),
                        "theta": ArrayField("t p"),
                        "draws": ArrayField("b t p"),
                        "precision": ArrayField("t p p"),
                    },
                )
            ),
        ),
        "left_out": ("holdout_error_", _LEFT_OUT),
        "left_out_by_form": ("held_out_", Mapped(_LEFT_OUT)),
        "set_aside": ("set_aside_", Listed(Record(SetAside, SET_ASIDE))),
    }

    def __init__(
        self,
        *,
        form: str = "auto",
        features: Sequence[str] = ("params", "tokens"),
        bootstraps: int = 200,
        seed: int = 0,
        max_extrapolation: float = 1000.0,
    ) -> None:
        self.form = form
        self.features = features
        self.bootstraps = bootstraps
        self.seed = seed
        self.max_extrapolation = max_extrapolation

    def fit(self, X: ArrayLike, y: ArrayLike, noise: float | None = None, *, missing: ArrayLike | None = None) -> Self:
        """Fit to runs.

        A loss that contradicts the other runs (``outliers``) is left out of the fit, recorded in ``set_aside_`` and
        reported by a ``SetAsideWarning``.

        Args:
            X: [n, k], the features of each run, n >= 6.
            y: [n] losses, or [n, t] losses of the same runs on t corpora.
            noise: known relative standard deviation between runs that differ only in their seed, if any.
            missing: as ``y``, true where a run has no such loss; the others of the run count.

        Raises:
            UsageError: a value that is not finite or not positive (with row and column), too few runs, all runs with
                the same N or the same D, an unknown form or feature.
        """
        self._forget()
        names = self._candidates()
        points = checked_positive("X", X, columns=len(self.features_), labels=self.features_, rows=6)
        self._single = np.ndim(y) == 1
        table = np.reshape(y, (-1, 1)) if self._single else np.asarray(y)
        used = np.ones(table.shape, dtype=bool) if missing is None else ~np.reshape(missing, table.shape)
        losses = checked_positive("y", np.where(used, table, 1.0), labels=("loss",) if self._single else None)
        if len(losses) != len(points):
            raise UsageError(f"X has {counted(len(points), 'row')} and y has {len(losses)}; give one loss for each run")
        checked_noise(noise)
        checked_draws(self.bootstraps)
        self._check_sizes(points, used)
        logs, used = self._without_contradicted(names, np.log(points), np.log(losses), used)
        rows = np.flatnonzero(used.any(1))
        self._check_sizes(points, used)
        self.log_points_, logs, used = np.log(points[rows]), logs[rows], used[rows]
        cuts = self._cuts(used)
        kept = np.array([np.ones(len(logs), dtype=bool), *(kept for _, kept in cuts)])
        subsets = kept[:, None] & used.T
        # A named form is fitted like the published fits, with equal weights of all runs.
        tilted = self.form == "auto"
        known = seed_noise(self.log_points_, logs) if noise is None else np.full(logs.shape[1], noise)
        solutions = {}
        for name in names:
            form, seen = SCALING_FORMS[name], self._columns(name)
            whole = fit_form(form, seen, logs, subsets[:1], noise=known, tilted=tilted)
            left = fit_form(form, seen, logs, subsets[1:], noise=known, tilted=tilted, near=whole.theta[0])
            solutions[name] = (whole, left)
        misses = {name: self._misses(name, solutions[name][1], logs) for name in names}
        scatter = np.min([self._scatter(whole, 0, logs, logs) for whole, _ in solutions.values()], axis=0)
        self.weights_ = self._weigh(misses, cuts, scatter)
        rng = np.random.default_rng(self.seed)
        self._members = []
        for name, weight in self.weights_.items():
            count = max(2, round(weight * self.bootstraps))
            whole = solutions[name][0]
            draws = draw(SCALING_FORMS[name], self._columns(name), logs, whole, count, rng, used.T.astype(float))
            self._members.append(Member(name, weight, whole.theta[0], draws, whole.precision[0]))
        share = np.array(list(self.weights_.values()))
        scale = np.sqrt(share @ np.array([solutions[name][0].scale[0] ** 2 for name in self.weights_]))
        self._noise = scale if noise is None else np.maximum(scale, noise)
        self._tilt = share @ np.array([solutions[name][0].tilt[0] for name in self.weights_])
        self._range = (logs.min(0), logs.max(0))
        self._freedom = share @ np.array([solutions[name][0].freedom[0] for name in self.weights_])
        self._measure_misses({name: solutions[name][1] for name in self.weights_}, misses, cuts, logs)
        self._record(misses, cuts, logs, used, rows)
        self._derive()
        return self

    def _derive(self) -> None:
        """See ``Estimator``."""
        self.size_columns_ = _size_columns(self.features_)
        self.weights_ = {member.form: member.weight for member in self._members}
        self.form_ = max(self.weights_, key=lambda name: self.weights_[name])
        self.noise_ = self._shown(self._noise)
        self.miss_per_efold_ = {axis: self._shown(v) for axis, v in zip("ND", self._miss, strict=True)}
        best = next(member for member in self._members if member.form == self.form_)
        form, centre = SCALING_FORMS[self.form_], self._columns(self.form_).mean(0)
        self.parameters_ = {name: self._shown(v) for name, v in form.natural(best.theta, centre).items()}
        flat = form.natural(best.draws.reshape(-1, best.draws.shape[-1]), centre)
        shape = best.draws.shape[:1] if self._single else best.draws.shape[:2]
        self.draws_ = {name: v.reshape(shape) for name, v in flat.items()}

    def predict(self, X: ArrayLike, interval: float = 0.9) -> Prediction:
        """Expected losses of new runs, and intervals that hold for one run.

        Args:
            X: [m, k], the features of each run.
            interval: probability that the interval covers.

        Returns:
            Prediction of three arrays, [m] or [m, t] as ``y`` was.

        Raises:
            UsageError: not fitted; an X as ``fit`` refuses it; an interval outside (0, 1).
            ExtrapolationError: beyond ``max_extrapolation``, or with a useless interval.
        """
        points = self._checked(X)
        mean, half = self._forecast(points, interval)
        self._refuse_unknown(points, half, half.max(1) > VOID)
        return self._prediction(mean, half)

    def predict_known(self, X: ArrayLike, interval: float = 0.9) -> Prediction:
        """As ``predict``, but an undetermined loss has the interval 0 to infinity, as long as others are determined.

        Raises:
            UsageError, ExtrapolationError: as ``predict``; the second only if no loss of a run can be predicted.
        """
        points = self._checked(X)
        mean, half = self._forecast(points, interval)
        void = (half > VOID) & self._beyond(points)[:, None]
        self._refuse_unknown(points, half, half.min(1) > VOID)
        if void.any():
            columns = ", ".join(target_name(int(t)) for t in np.flatnonzero(void.any(0)))
            warnings.warn(
                f"the runs do not determine {columns}: the intervals are 0 to infinity; the other losses are predicted",
                ExtrapolationWarning,
                stacklevel=2,
            )
        return self._prediction(mean, np.where(void, np.inf, half))

    def _prediction(self, mean: Array, half: Array) -> Prediction:
        """From log losses [m, t] and half widths of their intervals."""
        parts = np.exp(mean), np.exp(mean - half), np.exp(mean + half)
        return Prediction(*((v[:, 0] if self._single else v) for v in parts))

    def _forecast(self, points: Array, interval: float) -> tuple[Array, Array]:
        """Log losses [m, t] at log points, and half the width of their intervals."""
        tail = (1 - checked_interval(interval)) / 2
        self._refuse_far(points)
        mean, variance = self._moments(points)
        known = variance + (self._noise * np.exp(self._tilt * height(mean.T, *self._range).T)) ** 2
        missed = reach(self._sized(points), self._sized(self.log_points_)) @ self._miss**2
        # Degrees of freedom of each part; Satterthwaite's (1946) formula gives those of their sum.
        freedom = (known + missed) ** 2 / (known**2 / self._freedom + missed**2 / self._miss_freedom)
        return mean, stats.t.isf(tail, freedom) * np.sqrt(known + missed) * self._wide

    def _beyond(self, points: Array) -> NDArray[np.bool_]:
        """A mask [m] of the log points beyond the runs."""
        return np.asarray(np.max(list(self._factors(points).values()), axis=0) > 1)

    def extrapolation(self, X: ArrayLike) -> Array:
        """Compute N * D of runs X [m, k] over the largest compute fitted, [m]; below 1 inside the ladder."""
        return self.extrapolation_factors(X)["compute"]

    def extrapolation_factors(self, X: ArrayLike) -> dict[str, Array]:
        """``N``, ``D`` and ``compute`` N * D of runs X [m, k], each over the largest fitted, [m]."""
        return self._factors(self._checked(X))

    def log_sizes(self, name: str, X: ArrayLike) -> Array:
        """Logarithms of a checked table [m, k] of this law's features; ``name`` is its name in errors."""
        require_fitted(self, "parameters_")
        return np.log(checked_positive(name, X, columns=len(self.features_), labels=self.features_))

    def probe(self) -> list[Array]:
        """Predictions at three of its own runs; a law file holds them to detect code of another version."""
        require_fitted(self, "parameters_")
        points = self.log_points_[:3]
        predicted = self.predict(np.exp(points))
        parameters = [np.asarray(values, dtype=float) for values in self.parameters_.values()]
        return [*predicted, self.variance_after(points, points[0]), self.extrapolation(np.exp(points)), *parameters]

    def variance_after(self, at: Array, run: Array | None) -> Array:
        """Expected variance [m, t] of the log loss of new runs ``at`` [m, k] after also fitting ``run`` [k] (or None).

        Both are logs. The posterior of each form is taken as normal around its fit.

        Raises:
            UsageError: not fitted.
        """
        require_fitted(self, "parameters_")
        mean, _ = self._moments(at)
        fitted = self.log_points_ if run is None else np.vstack([self.log_points_, run])
        total = reach(self._sized(at), self._sized(fitted)) @ self._miss**2
        total = total + (self._noise * np.exp(self._tilt * height(mean.T, *self._range).T)) ** 2
        for member in self._members:
            form, centre = SCALING_FORMS[member.form], self._columns(member.form).mean(0)
            law, slopes = form.evaluate(member.theta, self._columns(member.form, at), centre)
            precision = member.precision
            if run is not None:
                there, by = form.evaluate(member.theta, self._columns(member.form, run[None]), centre)
                scatter = self._noise * np.exp(self._tilt * height(there, *self._range)[:, 0])
                precision = precision + by[:, 0, :, None] * by[:, 0, None, :] / scatter[:, None, None] ** 2
            open_ = np.einsum("tmp,tpq,tmq->mt", slopes, np.linalg.inv(precision), slopes)
            total = total + member.weight * (open_ + (law.T - mean) ** 2)
        return np.asarray(total)

    def _candidates(self) -> list[str]:
        """Names of the forms to fit; sets ``features_`` and the columns of N and D."""
        if self.form != "auto" and self.form not in SCALING_FORMS:
            raise UsageError(f"unknown scaling form '{self.form}'; give auto or one of {', '.join(SCALING_FORMS)}")
        self.features_ = tuple(self.features if self.form == "auto" else SCALING_FORMS[self.form].features)
        sizes = [name for name in ("active_params", "params") if name in self.features_]
        names = [name for name, form in SCALING_FORMS.items() if set(form.features) <= set(self.features_)]
        if self.form != "auto":
            names = [self.form]
        if not names or not sizes or "tokens" not in self.features_:
            known = sorted({feature for form in SCALING_FORMS.values() for feature in form.features})
            raise UsageError(
                f"no form of scaling law reads the features {', '.join(self.features_)}; they must include params (or "
                f"active_params) and tokens, others known are {', '.join(known)}"
            )
        unread = set(self.features_) - {feature for name in names for feature in SCALING_FORMS[name].features}
        if unread:
            raise UsageError(
                f"no form of scaling law reads feature '{min(unread)}' together with the others; leave it out"
            )
        self.size_columns_ = _size_columns(self.features_)
        return names

    def _checked(self, X: ArrayLike) -> Array:
        return self.log_sizes("X", X)

    def _columns(self, name: str, points: Array | None = None) -> Array:
        """The columns of log points that a form reads."""
        points = self.log_points_ if points is None else points
        return points[:, [self.features_.index(feature) for feature in SCALING_FORMS[name].features]]

    def _sized(self, points: Array) -> Array:
        """Log N and log D of log points, [m, 2]."""
        return points[:, self.size_columns_]

    def _shown(self, values: Array) -> float | Array:
        """Values [t] in the user's form: a number for a single target."""
        return float(values[0]) if self._single else values

    def _moments(self, points: Array) -> tuple[Array, Array]:
        """Mean and variance [m, t] of the average of forms, without noise and error of the form."""
        means, variances = [], []
        for member in self._members:
            form, seen = SCALING_FORMS[member.form], self._columns(member.form, points)
            centre = self._columns(member.form).mean(0)
            means.append(form.evaluate(member.theta, seen, centre)[0].T)
            flat = form.evaluate(member.draws.reshape(-1, member.draws.shape[-1]), seen, centre)[0]
            variances.append(flat.reshape(*member.draws.shape[:2], -1).var(0).T)
        share = np.array([member.weight for member in self._members])[:, None, None]
        mean = (share * means).sum(0)
        return mean, (share * (variances + (np.array(means) - mean) ** 2)).sum(0)

    def _factors(self, points: Array) -> dict[str, Array]:
        sizes, fitted = self._sized(points), self._sized(self.log_points_)
        beyond = np.exp(sizes - fitted.max(0))
        return {"N": beyond[:, 0], "D": beyond[:, 1], "compute": np.exp(sizes.sum(1) - fitted.sum(1).max())}

    def _refuse_far(self, points: Array) -> None:
        """Raise ExtrapolationError beyond ``max_extrapolation``; warn beyond the distance tested on left-out runs."""
        factors = self._factors(points)
        farthest = np.max(list(factors.values()), axis=0)
        row = int(farthest.argmax())
        place = f"{row_name('X', row)} lies at " + ", ".join(
            f"{f[row]:.3g} times the largest {k}" for k, f in factors.items()
        )
        if farthest[row] > self.max_extrapolation:
            size, tokens = np.exp(self._sized(points)[row]) / np.sqrt(self.max_extrapolation)
            raise ExtrapolationError(
                f"{place} of the runs, beyond max_extrapolation = {self.max_extrapolation:g}; add runs up to about "
                f"{size:.2g} parameters on {tokens:.2g} tokens"
            )
        tested = max((float(left.extrapolation.max()) for left in self.holdout_error_), default=1.0)
        if farthest[row] > max(tested, 1.0):
            warnings.warn(
                f"{place} of the runs; leaving out its own largest runs has tested the law up to {tested:.3g} times "
                "the compute",
                ExtrapolationWarning,
                stacklevel=3,
            )

    def _refuse_unknown(self, points: Array, half: Array, void: NDArray[np.bool_]) -> None:
        """Raise ExtrapolationError where intervals beyond the runs, ``half`` [m, t] in log loss, are ``void`` [m]."""
        factors = self._factors(points)
        void = void & self._beyond(points)
        if void.any():
            row = int(np.flatnonzero(void)[0])
            size, tokens = np.exp((self._sized(points)[row] + self._sized(self.log_points_).max(0)) / 2)
            distances = ", ".join(f"{f[row]:.3g} times the largest {k}" for k, f in factors.items())
            raise ExtrapolationError(
                f"{row_name('X', row)} is at {distances} of the runs, which determine its loss only within a factor of "
                f"{np.exp(half[row].max()):.2g} either way; add runs of several sizes up to about {size:.2g} "
                f"parameters on {tokens:.2g} tokens"
            )

    def _cuts(self, used: NDArray[np.bool_]) -> list[Cut]:
        """Names of sets of largest runs, and masks of the kept runs; of the losses [n, t], only ``used`` ones count."""
        sizes = self._sized(self.log_points_)
        labels = [self.features_[column] for column in self.size_columns_]
        cuts = []
        for label, size in ((labels[0], sizes[:, 0]), (labels[1], sizes[:, 1]), ("compute", sizes.sum(1))):
            for cut in _levels(size):
                kept = size < cut
                if used[kept].sum(0).min() >= 4 and (np.ptp(sizes[kept], axis=0) > 0.05).all():
                    cuts.append((f"{label} >= {np.exp(cut):.3g}", kept))
        return cuts

    def _misses(self, name: str, left: Solution, logs: Array) -> Array:
        """Predicted minus measured log losses of all runs under the law of each subset, [g, n, t]."""
        form, seen = SCALING_FORMS[name], self._columns(name)
        groups, targets = left.scale.shape
        law = form.evaluate(left.theta.reshape(groups * targets, len(form.parameters)), seen, seen.mean(0))[0]
        return law.reshape(groups, targets, len(logs)).transpose(0, 2, 1) - logs

    def _weigh(self, misses: dict[str, Array], cuts: list[Cut], scatter: Array) -> dict[str, float]:
        """Weights of the forms from their errors [g, n, t]; small weights are dropped.

        A form's score is the geometric mean of its errors over runs, left-out sets and targets. Each error is in units
        of the run's ``scatter`` [n, t] around a law and at least 1, because smaller differences mean nothing.
        """
        score = {
            name: np.mean([np.log1p((miss[g] / scatter)[~kept] ** 2).mean() / 2 for g, (_, kept) in enumerate(cuts)])
            if cuts
            else 0.0
            for name, miss in misses.items()
        }
        power = SHARPNESS * len(cuts)
        weights = {name: float(np.exp(power * (min(score.values()) - value))) for name, value in score.items()}
        kept_weights = {name: w for name, w in weights.items() if w >= FAINT * sum(weights.values())}
        return {name: w / sum(kept_weights.values()) for name, w in kept_weights.items()}

    def _measure_misses(
        self, left: dict[str, Solution], misses: dict[str, Array], cuts: list[Cut], logs: Array
    ) -> None:
        """Estimate the error of the average per e-fold, and the coverage of intervals, from its held-out errors."""
        sizes, targets = self._sized(self.log_points_), logs.shape[1]
        share_of = np.array([self.weights_[name] for name in left])
        average = np.einsum("f,fgnt->gnt", share_of, np.array([misses[name] for name in left]))
        found, explained, distances, runs = [], [], [], []
        for g, (_, kept) in enumerate(cuts):
            out = np.flatnonzero(~kept)
            # Errors of runs left out together are correlated. They count as one observation: their mean, in which
            # farther runs have more weight.
            far = reach(sizes[out], sizes[kept])
            share = far.sum(1) / far.sum()
            together, each, noise = np.zeros(targets), np.zeros((len(out), targets)), np.zeros((len(logs), targets))
            for weight, (name, solution) in zip(share_of, left.items(), strict=True):
                seen = self._columns(name)
                slopes = SCALING_FORMS[name].evaluate(solution.theta[g], seen[out], seen.mean(0))[1]
                covariance = np.linalg.inv(solution.precision[g])
                apart = misses[name][g][out] - average[g][out]
                scatter = self._scatter(solution, g, logs[kept], logs + misses[name][g]) ** 2
                noise += weight * scatter
                slope = np.einsum("m,tmp->tp", share, slopes)
                together += weight * (
                    np.einsum("tp,tpq,tq->t", slope, covariance, slope) + (share @ apart) ** 2 + share**2 @ scatter[out]
                )
                each += weight * (np.einsum("tmp,tpq,tmq->mt", slopes, covariance, slopes) + apart**2 + scatter[out])
            found.append(share @ average[g][out])
            explained.append(together)
            distances.append(share @ far)
            runs.append((average[g][out], each, far, (noise.min(0) / noise)[out]))
        self._miss_freedom = MISS_COUNT + len(cuts)
        # Unexplained variance per e-fold of N and of D, by non-negative least squares. The prior guess counts as
        # MISS_COUNT errors, and an error that parameters and noise explain has little weight.
        self._miss = np.empty((2, targets))
        guess = np.sqrt(MISS_COUNT) * np.eye(2) / MISS**2
        for t in range(targets):
            far, known = np.reshape(distances, (-1, 2)), np.reshape(explained, (-1, targets))[:, t]
            beyond = np.reshape(found, (-1, targets))[:, t] ** 2 - known
            sure = 1 / (known + MISS**2 * far.sum(1))
            rows = np.concatenate([guess, sure[:, None] * far])
            self._miss[:, t] = np.sqrt(
                optimize.nnls(rows, np.concatenate([guess @ np.full(2, MISS**2), sure * beyond]))[0]
            )
        # Check the coverage on left-out runs: the 90th percentile of their errors over that of a normal variate. Runs
        # with more scatter have less weight, as in the fit.
        total, count = np.full(targets, MISS_COUNT), np.full(targets, MISS_COUNT)
        for miss, known, far, sure in runs:
            wide = np.abs(miss) / np.sqrt(known + far @ self._miss**2)
            decile = np.array([_quantile(w, v, 0.9) for w, v in zip(wide.T, sure.T, strict=True)]) / NORMAL
            total += sure.mean(0) * decile**2
            count += sure.mean(0)
        self._wide = np.sqrt(np.maximum(total / count, 1.0))

    def _scatter(self, solution: Solution, g: int, seen: Array, law: Array) -> Array:
        return np.asarray(solution.scale[g] * np.exp(solution.tilt[g] * height(law.T, seen.min(0), seen.max(0)).T))

    def _record(
        self,
        misses: dict[str, Array],
        cuts: list[Cut],
        logs: Array,
        used: NDArray[np.bool_],
        rows: NDArray[np.intp],
    ) -> None:
        """Record the left-out runs: predictions by each form, and by their average."""
        compute = self._sized(self.log_points_).sum(1)

        def left_out(g: int, cut: Cut, miss: Array) -> LeftOut:
            what, kept = cut
            out = np.flatnonzero(~kept)
            measured = np.where(used[out], np.exp(logs[out]), np.nan)
            predicted = np.exp(logs[out] + miss[g][out])
            if self._single:
                measured, predicted = measured[:, 0], predicted[:, 0]
            return LeftOut(what, rows[out], predicted, measured, np.exp(compute[out] - compute[kept].max()))

        average = sum(weight * misses[name] for name, weight in self.weights_.items())
        self.held_out_: dict[str, list[LeftOut]] = {
            name: [left_out(g, cut, miss) for g, cut in enumerate(cuts)] for name, miss in misses.items()
        }
        self.holdout_error_ = [left_out(g, cut, np.asarray(average)) for g, cut in enumerate(cuts)]

    def _check_sizes(self, points: Array, used: NDArray[np.bool_]) -> None:
        """Raise UsageError if points [n, k] are too few or too similar for a law of the used losses [n, t]."""
        if used.sum(0).min() < FEWEST:
            raise UsageError(f"{used.sum(0).min()} runs have a loss that can be fitted; at least {FEWEST} are needed")
        points = points[used.any(1)]
        for column in self.size_columns_:
            if np.ptp(np.log(points[:, column])) < 0.05:
                label = self.features_[column]
                raise UsageError(
                    f"all runs have {label} {points[0, column]:g}; a law in {label} needs runs with at least two values"
                )

    def _without_contradicted(
        self, names: Sequence[str], points: Array, logs: Array, used: NDArray[np.bool_]
    ) -> tuple[Array, NDArray[np.bool_]]:
        """Log losses [n, t] and a mask of the losses that count, after setting aside contradicted ones.

        An excluded loss is replaced by its expected value, so that it does not affect ranges and scatters.
        """
        forms = {name: SCALING_FORMS[name] for name in names}
        seen = {name: self._columns(name, points) for name in names}
        found = contradicted(forms, seen, self._sized(points), logs, used)
        self.set_aside_ = [
            SetAside(int(i), int(t), float(np.exp(logs[i, t])), float(np.exp(found.expected[i, t])))
            for i, t in np.argwhere(found.far)
        ]
        report_set_aside(self.set_aside_)
        for t in np.flatnonzero(found.many):
            warnings.warn(
                f"more than a quarter of the values of {target_name(int(t))} contradict the rest, so none was left out "
                "and intervals are wide; look for diverged runs, or a column that is not what its name says",
                SetAsideWarning,
                stacklevel=4,
            )
        used = used & ~found.far
        return np.where(used, logs, found.expected), used


def _size_columns(features: Sequence[str]) -> list[int]:
    """The indices of N and D among the features; N is the active parameters if they are given."""
    return [features.index("active_params" if "active_params" in features else "params"), features.index("tokens")]


def _levels(log_sizes: Array) -> list[float]:
    """Thresholds for leaving out runs: the largest one or two levels, or upper parts of many levels."""
    levels = np.unique(np.round(log_sizes / 0.05)) * 0.05
    if len(levels) > 12:
        return [float(np.quantile(log_sizes, share)) for share in (0.95, 0.85, 0.7)]
    # Half a rounding step below, so that all runs of a level fall on one side.
    return [float(level) - 0.025 for level in levels[::-1][:2] if level > levels[0]]


def _quantile(values: Array, weights: Array, share: float) -> float:
    """Weighted quantile of values [n] at ``share`` of the weight, with linear interpolation."""
    order = np.argsort(values)
    place = np.cumsum(weights[order]) - weights[order] / 2
    return float(np.interp(share * weights.sum(), place, values[order]))
