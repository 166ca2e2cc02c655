"""Scaling laws: the loss of a model as a function of its size and its training tokens, with intervals far out.

What decides a forecast far beyond the runs is the form, and no fit in sample tells which form holds out there. So each
form is asked for the largest runs after a fit to the others (leave-largest-out), and the law is the average of the
forms, weighted by how well they did.

Trade-offs taken:

- The same code must fit six points of a laptop's ladder and hundreds of a cluster's: broad priors (``scaling_forms``).
- An interval must cover a *new run*, so it adds in quadrature, in log loss: what the parameters of each form leave open
  (posterior draws), how far the forms lie apart, the noise of one run, and the wrongness of all forms. The last is not
  in the residuals: it is how far the law missed the runs left out, beyond what the other parts explain.
- Few such misses are known, so their average is mixed with a prior guess.
- N is whatever the caller counts (all parameters, or those outside the embedding): be consistent.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from armillary.laws.estimator import (
    Array,
    ExtrapolationError,
    ExtrapolationWarning,
    Prediction,
    checked_interval,
    checked_positive,
    require_fitted,
)
from armillary.laws.scaling_fit import Solution, draw, fit_form
from armillary.laws.scaling_forms import SCALING_FORMS
from armillary.recipe import UsageError

__all__ = ["SCALING_FORMS", "LeftOut", "ScalingLaw"]

# Relative miss of all forms per e-fold of extrapolation, before any run is left out, counted as so many observations.
MISS, MISS_COUNT = 0.003, 2.0

# Forms are weighted by their held-out error to this power, at most; and by that many times the sets left out, at most.
SHARPNESS = 4.0
FAINT = 0.02


# What was left out, and which runs were kept [n].
Cut = tuple[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class LeftOut:
    """The largest runs left out, predicted from the others.

    Attributes:
        what: which were left out, such as ``tokens >= 1.2e+09``.
        rows: their rows in the table given to ``fit``, [k].
        predicted: losses by the law fitted without them, [k] or [k, t].
        measured: their losses, [k] or [k, t].
        extrapolation: their compute N * D over the largest compute that was kept, [k].
    """

    what: str
    rows: NDArray[np.intp]
    predicted: Array
    measured: Array
    extrapolation: Array


@dataclass(frozen=True)
class Member:
    """One form of the average: its weight, parameters [t, p] and draws [b, t, p] on the scale of their priors."""

    form: str
    weight: float
    theta: Array
    draws: Array


class ScalingLaw:
    """The loss of a run from its sizes, with intervals for a new run.

    Args:
        form: a name of ``SCALING_FORMS``, or ``auto`` for the average of all whose features are among ``features``.
        features: what the columns of X are. A named form reads its own features and ignores this.
        bootstraps: draws for the uncertainty of the parameters.
        seed: of these draws.
        max_extrapolation: times the fitted compute beyond which ``predict`` refuses.

    Attributes:
        features_: what the columns of X are.
        form_: the form with the largest weight.
        weights_: weight of each form.
        parameters_: parameters of ``form_`` in the units of its formula; numbers, or arrays [t] for several targets.
        draws_: the same for each draw, arrays [b] or [b, t].
        noise_: relative standard deviation of one new run around the law, a number or [t].
        miss_per_efold_: relative miss of the law (standard deviation) at one e-fold of extrapolation, likewise.
        holdout_error_: what was left out, predicted and measured, a list of ``LeftOut``.
        held_out_: the same for each form.
    """

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

    def fit(self, X: ArrayLike, y: ArrayLike, noise: float | None = None) -> Self:
        """Fit to runs.

        Args:
            X: [n, k], the features of each run, n >= 6.
            y: [n] losses, or [n, t] losses of the same runs on t corpora.
            noise: known relative standard deviation between runs that differ only in their seed, if any.

        Raises:
            UsageError: a value that is not finite or not positive (with row and column), too few runs, all runs with
                the same N or the same D, an unknown form or feature.
        """
        names = self._candidates()
        points = checked_positive("X", X, columns=len(self.features_), labels=self.features_, rows=6)
        self._single = np.ndim(y) == 1
        table = np.reshape(y, (-1, 1)) if self._single else y
        losses = checked_positive("y", table, labels=("loss",) if self._single else None)
        if len(losses) != len(points):
            raise UsageError(f"X has {len(points)} rows and y has {len(losses)}; give one loss for each run")
        if noise is not None and not 0 < noise < 1:
            raise UsageError(f"noise is {noise!r}; give the relative standard deviation of a run, such as 0.003")
        if self.bootstraps < 2:
            raise UsageError(f"bootstraps is {self.bootstraps}; at least 2 are needed for an interval")
        for column in self._sizes:
            if np.ptp(np.log(points[:, column])) < 0.05:
                label = self.features_[column]
                raise UsageError(
                    f"all runs have {label} {points[0, column]:g} (column {column} of X); a law in {label} needs runs "
                    "with at least two values of it"
                )
        self._log_points = np.log(points)
        logs = np.log(losses)
        cuts = self._cuts()
        subsets = np.array([np.ones(len(points), dtype=bool), *(kept for _, kept in cuts)])
        solutions = {}
        for name in names:
            form, seen = SCALING_FORMS[name], self._columns(name)
            whole = fit_form(form, seen, logs, subsets[:1], noise=noise, pooled=True)
            left = fit_form(form, seen, logs, subsets[1:], noise=noise, pooled=True, near=whole.theta[0])
            solutions[name] = (whole, left)
        misses = {name: self._misses(name, solutions[name][1], subsets[1:], logs) for name in names}
        self.weights_ = self._weigh(misses, cuts, {name: whole.scale[0] for name, (whole, _) in solutions.items()})
        self.form_ = max(self.weights_, key=lambda name: self.weights_[name])
        rng = np.random.default_rng(self.seed)
        self._members = []
        for name, weight in self.weights_.items():
            count = max(2, round(weight * self.bootstraps))
            whole = solutions[name][0]
            draws = draw(SCALING_FORMS[name], self._columns(name), logs, whole, count, rng)
            self._members.append(Member(name, weight, whole.theta[0], draws))
        share = np.array(list(self.weights_.values()))
        scale = np.sqrt(share @ np.array([solutions[name][0].scale[0] ** 2 for name in self.weights_]))
        self._noise = scale if noise is None else np.maximum(scale, noise)
        self._freedom = share @ np.array([solutions[name][0].freedom[0] for name in self.weights_])
        self._measure_misses({name: solutions[name][1] for name in self.weights_}, misses, cuts, logs)
        self.noise_ = self._shown(self._noise)
        self.miss_per_efold_ = self._shown(self._miss)
        best = next(member for member in self._members if member.form == self.form_)
        form, centre = SCALING_FORMS[self.form_], self._columns(self.form_).mean(0)
        self.parameters_ = {name: self._shown(v) for name, v in form.natural(best.theta, centre).items()}
        flat = form.natural(best.draws.reshape(-1, best.draws.shape[-1]), centre)
        shape = best.draws.shape[:1] if self._single else best.draws.shape[:2]
        self.draws_ = {name: v.reshape(shape) for name, v in flat.items()}
        return self

    def predict(self, X: ArrayLike, interval: float = 0.9) -> Prediction:
        """Expected losses of new runs, and intervals that hold for one run.

        Args:
            X: [m, k], the features of each run.
            interval: probability that the interval covers.

        Returns:
            Prediction of three arrays, [m] or [m, t] as ``y`` was.

        Raises:
            UsageError: not fitted; an X as ``fit`` refuses it; an interval outside (0, 1).
            ExtrapolationError: beyond ``max_extrapolation``, or so far out that the interval says nothing.
        """
        points = self._checked(X)
        tail = (1 - checked_interval(interval)) / 2
        self._refuse_far(points)
        mean, variance = self._moments(points)
        known = variance + self._noise**2
        missed = self._miss**2 * _efolds(self._sized(points), self._sized(self._log_points))[:, None]
        # Each part is known from so many observations; Satterthwaite's (1946) degrees of freedom for their sum.
        freedom = (known + missed) ** 2 / (known**2 / self._freedom + missed**2 / self._miss_freedom)
        half = stats.t.isf(tail, freedom) * np.sqrt(known + missed)
        mean, low, high = np.exp(mean), np.exp(mean - half), np.exp(mean + half)
        return Prediction(*((v[:, 0] if self._single else v) for v in (mean, low, high)))

    def extrapolation(self, X: ArrayLike) -> Array:
        """Compute N * D of runs X [m, k] over the largest compute fitted, [m]; below 1 inside the ladder."""
        return self.extrapolation_factors(X)["compute"]

    def extrapolation_factors(self, X: ArrayLike) -> dict[str, Array]:
        """``N``, ``D`` and ``compute`` N * D of runs X [m, k], each over the largest fitted, [m]."""
        return self._factors(self._checked(X))

    def _candidates(self) -> list[str]:
        """Names of the forms to fit; sets ``features_`` and which columns are N and D."""
        if self.form != "auto" and self.form not in SCALING_FORMS:
            raise UsageError(f"no scaling form '{self.form}'; give auto or one of {', '.join(SCALING_FORMS)}")
        self.features_ = tuple(self.features if self.form == "auto" else SCALING_FORMS[self.form].features)
        sizes = [name for name in ("active_params", "params") if name in self.features_]
        names = [name for name, form in SCALING_FORMS.items() if set(form.features) <= set(self.features_)]
        if self.form != "auto":
            names = [self.form]
        if not names or not sizes or "tokens" not in self.features_:
            known = sorted({feature for form in SCALING_FORMS.values() for feature in form.features})
            raise UsageError(
                f"no form of scaling law reads the features {', '.join(self.features_)}; they must hold params (or "
                f"active_params) and tokens, others known are {', '.join(known)}"
            )
        unread = set(self.features_) - {feature for name in names for feature in SCALING_FORMS[name].features}
        if unread:
            raise UsageError(f"no form of scaling law reads feature '{min(unread)}' beside the others; leave it out")
        self._sizes = [self.features_.index(sizes[0]), self.features_.index("tokens")]
        return names

    def _checked(self, X: ArrayLike) -> Array:
        require_fitted(self, "parameters_")
        return np.log(checked_positive("X", X, columns=len(self.features_), labels=self.features_))

    def _columns(self, name: str, points: Array | None = None) -> Array:
        """The columns of log points that a form reads."""
        points = self._log_points if points is None else points
        return points[:, [self.features_.index(feature) for feature in SCALING_FORMS[name].features]]

    def _sized(self, points: Array) -> Array:
        """Log N and log D of log points, [m, 2]."""
        return points[:, self._sizes]

    def _shown(self, values: Array) -> float | Array:
        """Values [t] as the user sees them: a number for a single target."""
        return float(values[0]) if self._single else values

    def _moments(self, points: Array) -> tuple[Array, Array]:
        """Mean and variance [m, t] of the average of forms, without noise and miss."""
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
        sizes, fitted = self._sized(points), self._sized(self._log_points)
        beyond = np.exp(sizes - fitted.max(0))
        return {"N": beyond[:, 0], "D": beyond[:, 1], "compute": np.exp(sizes.sum(1) - fitted.sum(1).max())}

    def _refuse_far(self, points: Array) -> None:
        factors = self._factors(points)
        row = int(factors["compute"].argmax())
        said = ", ".join(f"{factor[row]:.3g} times the largest {name}" for name, factor in factors.items())
        if factors["compute"][row] > self.max_extrapolation:
            raise ExtrapolationError(f"row {row} of X is {said} of the runs")
        tested = max((float(left.extrapolation.max()) for left in self.holdout_error_), default=1.0)
        if factors["compute"][row] > tested:
            warnings.warn(f"row {row} of X is {said}; tested {tested:.3g}", ExtrapolationWarning, stacklevel=3)

    def _cuts(self) -> list[Cut]:
        """Names of sets of largest runs, and which runs are kept."""
        sizes = self._sized(self._log_points)
        labels = [self.features_[column] for column in self._sizes]
        cuts = []
        for label, size in ((labels[0], sizes[:, 0]), (labels[1], sizes[:, 1]), ("compute", sizes.sum(1))):
            for cut in _levels(size):
                kept = size < cut
                if kept.sum() >= 4 and (np.ptp(sizes[kept], axis=0) > 0.05).all():
                    cuts.append((f"{label} >= {np.exp(cut):.3g}", kept))
        return cuts

    def _misses(self, name: str, left: Solution, subsets: NDArray[np.bool_], logs: Array) -> Array:
        """Predicted minus measured log losses of all runs under the law of each subset, [g, n, t]."""
        form, seen = SCALING_FORMS[name], self._columns(name)
        groups, targets = left.scale.shape
        law = form.evaluate(left.theta.reshape(groups * targets, -1), seen, seen.mean(0))[0]
        return law.reshape(groups, targets, -1).transpose(0, 2, 1) - logs

    def _weigh(self, misses: dict[str, Array], cuts: list[Cut], scale: dict[str, Array]) -> dict[str, float]:
        """Weights of the forms from their misses [g, n, t]; faint ones are dropped.

        A form's score is the root mean square of its misses over all sets left out, as a geometric mean over targets.
        Misses within the scatter of the best fit tell nothing and do not count for or against.
        """
        if not cuts:
            return {name: 1 / len(misses) for name in misses}
        floor = np.min(list(scale.values()), axis=0) ** 2
        score = {
            name: float(
                np.log(np.mean([(miss[g][~kept] ** 2).mean(0) for g, (_, kept) in enumerate(cuts)], 0) + floor).mean()
                / 2
            )
            for name, miss in misses.items()
        }
        power = min(SHARPNESS, len(cuts))
        weights = {name: np.exp(power * (min(score.values()) - value)) for name, value in score.items()}
        kept_weights = {name: w for name, w in weights.items() if w >= FAINT * sum(weights.values())}
        return {name: float(w / sum(kept_weights.values())) for name, w in kept_weights.items()}

    def _measure_misses(
        self, left: dict[str, Solution], misses: dict[str, Array], cuts: list[Cut], logs: Array
    ) -> None:
        """Record what was left out; from the misses of the average, how wrong it is per e-fold."""
        sizes, targets = self._sized(self._log_points), logs.shape[1]
        share_of = np.array([self.weights_[name] for name in left])
        average = np.einsum("f,fgnt->gnt", share_of, np.array([misses[name] for name in left]))
        self.held_out_: dict[str, list[LeftOut]] = {
            name: [self._left_out(cut, miss[g], logs) for g, cut in enumerate(cuts)] for name, miss in misses.items()
        }
        self.holdout_error_ = [self._left_out(cut, average[g], logs) for g, cut in enumerate(cuts)]
        found, explained = np.zeros((len(cuts), targets)), np.zeros((len(cuts), targets))
        distances = np.zeros(len(cuts))
        for g, (_, kept) in enumerate(cuts):
            out = np.flatnonzero(~kept)
            # Runs left out together are missed together: they count as one observation, their mean miss, in which the
            # farther ones weigh more.
            far = _efolds(sizes[out], sizes[kept])
            share = far / far.sum()
            distances[g] = share @ far
            found[g] = share @ average[g][out]
            for weight, (name, solution) in zip(share_of, left.items(), strict=True):
                seen = self._columns(name)
                slopes = SCALING_FORMS[name].evaluate(solution.theta[g], seen[out], seen.mean(0))[1]
                slope = np.einsum("m,tmp->tp", share, slopes)
                open_ = np.einsum("tp,tp->t", slope, np.linalg.solve(solution.precision[g], slope[:, :, None])[:, :, 0])
                apart = (share @ (misses[name][g] - average[g])[out]) ** 2
                explained[g] += weight * (open_ + apart + solution.scale[g] ** 2 * (share**2).sum())
        # Variance beyond what is explained, per e-fold; a miss that parameters and noise explain anyway says little.
        says = distances[:, None] / (explained + MISS**2 * distances[:, None]) ** 2
        beyond = np.maximum(
            (says * (found**2 - explained)).sum(0) / np.maximum((says * distances[:, None]).sum(0), 1e-300), 0
        )
        self._miss_freedom = MISS_COUNT + len(cuts)
        self._miss = np.sqrt((MISS_COUNT * MISS**2 + len(cuts) * beyond) / self._miss_freedom)

    def _left_out(self, cut: Cut, miss: Array, logs: Array) -> LeftOut:
        what, kept = cut
        out, compute = np.flatnonzero(~kept), self._sized(self._log_points).sum(1)
        measured, predicted = np.exp(logs[out]), np.exp(logs[out] + miss[out])
        if self._single:
            measured, predicted = measured[:, 0], predicted[:, 0]
        return LeftOut(what, out, predicted, measured, np.exp(compute[out] - compute[kept].max()))


def _levels(log_sizes: Array) -> list[float]:
    """Sizes from which on runs are left out: the largest one or two levels; of many levels, upper parts."""
    levels = np.unique(np.round(log_sizes / 0.05)) * 0.05
    if len(levels) > 12:
        return [float(np.quantile(log_sizes, share)) for share in (0.95, 0.85, 0.7)]
    # Half a rounding step below, so that all runs of a level fall on one side.
    return [float(level) - 0.025 for level in levels[::-1][:2] if level > levels[0]]


def _efolds(sizes: Array, fitted: Array) -> Array:
    """How far log sizes [m, 2] lie beyond those fitted, in e-folds [m].

    That is the excess of N plus that of D, or the excess of compute where it is larger; inside the ladder's ranges and
    below its largest compute it is 0.
    """
    beyond = np.maximum(sizes - fitted.max(0), 0.0).sum(1)
    compute = sizes.sum(1) - fitted.sum(1).max()
    return np.asarray(np.maximum(beyond, np.maximum(compute, 0.0)))
