"""Annealing laws: the loss as a function of the whole learning-rate curve, for one or several model sizes.

The forms and their joint fit are in ``forms``, the curves in ``curves``. Trade-offs taken here:

- A fit that follows its three curves too closely predicts a fourth one worse than a stiffer fit. So each curve counts
  as a few observations for any number of rows, and priors determine the rest. The weights of the forms come from
  held-out schedules, not from residuals.
- Errors along one curve are correlated. The interval holds for each row of one new run, not for the curve as a whole.
- An interval adds, in log loss and in quadrature, the uncertainty of the parameters (draws, and the disagreement of the
  forms) and the noise of a run. Both assume that the form and the priors are right. So the sum is scaled by its errors
  on held-out data: on left-out schedules and, for a size that was not fitted, on left-out sizes with only one known
  curve. Its variance grows with the e-folds of progress beyond the longest curve.
- For a new size the law is fitted again together with the known curves (a tenth of a second per form). So a curve that
  is given later counts exactly as if it had been fitted from the beginning.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from armillary.laws.anneal.curves import (
    SAME_RATE,
    Curve,
    CurveSetAside,
    Profile,
    checked_curve,
    curve_name,
    several_rates,
    thinned,
    without_contradicted,
)
from armillary.laws.anneal.forms import FORMS, Frame, Joint, Problem, early_variance, fitted_rows
from armillary.laws.estimator import (
    SHOWN,
    Array,
    Estimator,
    ExtrapolationWarning,
    Prediction,
    SetAsideWarning,
    check_reach,
    checked_draws,
    checked_interval,
    require_fitted,
    thing_name,
)
from armillary.laws.values import Array as ArrayField
from armillary.laws.values import Codec, Fields, Flag, Listed, Mapped, Maybe, Number, Record, Text, Whole
from armillary.recipe import UsageError

# Rows kept of a curve, and rows at which the width of an interval is computed and then interpolated.
KEPT_ROWS = 600
WIDTH_ROWS = 80
CHUNK_ROWS = 512

# Draws for each fit with left-out curves.
FOLD_DRAWS = 40

# Prior weights of the forms. Held-out curves then count as in a likelihood, but at most MOST_CASES of them, because
# their errors are not independent.
TRUST = {"progress": 8.0, "multi-power": 1.0, "tissue": 1.0}
MOST_CASES = 8

# A form with a smaller weight is dropped.
LEAST_WEIGHT = 0.02

# Prior ratio of errors to expected errors, and its weight as a number of observations. Curves that are left out
# together count as two observations, for any number of curves.
SCALE, SCALE_COUNT, FOLD_COUNT = {"schedule": 1.0, "size": 0.6}, 6.0, 2.0

# Held-out errors below this (relative) do not distinguish forms.
SAME = 4e-4

# Several peak rates of one size are refused if the standard deviation of the cost's exponent is above this share of its
# prior's. With them, schedules may have a peak up to BEYOND_RATES (log) outside the fitted ones.
RATE_KNOWN, BEYOND_RATES = 0.75, np.log(1.5)

# Prior of the loss per e-fold of size (log loss), used before a curve is measured: the slope, its standard deviation,
# and the standard deviation of one size around the line.
SIZE_SLOPE, SIZE_SLOPE_STD, SIZE_SCATTER = -0.06, 0.015, 0.005


@dataclass(frozen=True)
class HeldOutCurve:
    """A left-out curve and its prediction from the others.

    Attributes:
        name: of its schedule, which was left out at every size with another schedule.
        size: of its model.
        step: [k] the rows compared.
        predicted: [k] predicted losses. measured: [k] measured losses.
        error: mean relative absolute error over its rows (PredE of Luo et al. 2025).
        new_size: whether the size was left out too, except for one curve of another schedule.
    """

    name: str
    size: float
    step: Array
    predicted: Array
    measured: Array
    error: float
    new_size: bool


@dataclass(frozen=True)
class _Fold:
    """Fitted curves, and the left-out curves to predict from them."""

    kept: NDArray[np.bool_]
    out: list[int]
    new_size: bool


@dataclass(frozen=True)
class _Standardised:
    """A ``Joint`` in a law file: without the name of its form and the units, which the law holds."""

    z: Array
    draws: Array
    noise: float
    freedom: float


class AnnealLaw(Estimator):
    """Loss along any learning-rate schedule, fitted to a few measured curves.

    Args:
        form: ``multi-power``, ``tissue``, ``progress`` (see ``forms``), or ``auto``: all three, weighted by their
            errors on held-out schedules.
        warmup_steps: length of the linear warm-up from 0 before the first row of each curve.
        bootstraps: draws for the uncertainty of the parameters.
        seed: of these draws.

    Attributes:
        sizes_: [J] sizes fitted.
        parameters_: for each form and size, its parameters: rates in units of ``unit_rate_``, time in units of
            ``unit_steps_``, E, A and B in the units of the loss.
        weights_: weight of each form; weights under 2 % are dropped. held_out_: predictions of left-out schedules and
        their measurements, a list of ``HeldOutCurve``. noise_: relative standard deviation of the losses around the
        law. scale_: ratio of errors to expected errors, for a new ``schedule`` and for a new ``size``.
        unit_steps_: steps in the unit of time. unit_rate_: learning rate in the unit of rates.
        lowest_rate_: the lowest rate fitted, over the highest of its size.
        set_aside_: spikes and diverged curves that were left out, a list of ``CurveSetAside``.
    """

    PARAMS: ClassVar[dict[str, Codec]] = {
        "form": Text(),
        "warmup_steps": Number(),
        "bootstraps": Whole(),
        "seed": Whole(),
    }
    # j sizes, n rows of a curve, q = 11 j standardised parameters, b draws.
    FITTED: ClassVar[Fields] = {
        "sizes": ("sizes_", ArrayField("s")),
        "units": (
            "_frame",
            Record(
                Frame,
                {
                    "size": ArrayField("j"),
                    "peak": ArrayField("j"),
                    "loss": ArrayField("j"),
                    "centre": Number(),
                    "rate": Number(),
                    "unit": Number(),
                    "warmup_steps": Number(),
                },
            ),
        ),
        "weights": ("weights_", Mapped(Number())),
        "forms": (
            "_joints",
            Mapped(
                Record(
                    _Standardised,
                    {
                        "z": ArrayField("q"),
                        "draws": ArrayField("b q"),
                        "noise": Number(),
                        "freedom": Number(),
                    },
                )
            ),
        ),
        "noise": ("noise_", Number()),
        "interval_scale": ("scale_", Mapped(Number())),
        "freedom": ("_freedom", Mapped(Number())),
        "loss_std_of_new_size": ("_loss_std", Mapped(Number())),
        "highest_log_loss": ("_highest", Number()),
        "longest_area": ("_longest", Number()),
        "lowest_rate": ("lowest_rate_", Number()),
        "curves": (
            "_curves",
            Listed(
                Record(
                    Curve,
                    {
                        "name": Text(),
                        "size": Number(),
                        "step": ArrayField("n"),
                        "lr": ArrayField("n"),
                        "loss": ArrayField("n", finite=False),
                        "warmup_steps": Maybe(Number()),
                    },
                )
            ),
        ),
        "left_out": (
            "held_out_",
            Listed(
                Record(
                    HeldOutCurve,
                    {
                        "name": Text(),
                        "size": Number(),
                        "step": ArrayField("k"),
                        "predicted": ArrayField("k", finite=False),
                        "measured": ArrayField("k", finite=False),
                        "error": Number(finite=False),
                        "new_size": Flag(),
                    },
                )
            ),
        ),
        "set_aside": (
            "set_aside_",
            Listed(
                Record(
                    CurveSetAside,
                    {"name": Text(), "size": Number(), "step": Maybe(Number(finite=False)), "why": Text()},
                )
            ),
        ),
    }

    def __init__(self, *, form: str = "auto", warmup_steps: int = 0, bootstraps: int = 100, seed: int = 0) -> None:
        self.form = form
        self.warmup_steps = warmup_steps
        self.bootstraps = bootstraps
        self.seed = seed

    def fit(self, curves: Sequence[Curve], y: None = None) -> Self:
        """Fit to measured curves of one or several sizes.

        Args:
            curves: with losses; at least one. Three curves of one size with different shapes (a constant rate, a decay,
                a step down) are a good set; other sizes then need only one.
            y: not used; the losses are in the curves.

        Raises:
            UsageError: no curve, one without losses or with bad rows, two of one size and name, an unknown form, a
                negative warm-up, fewer than two draws.
        """
        self._forget()
        if self.form != "auto" and self.form not in FORMS:
            raise UsageError(f"form is {self.form!r}; choose auto, {', '.join(FORMS)}")
        if not 0 <= self.warmup_steps < np.inf:
            raise UsageError(f"warmup_steps is {self.warmup_steps!r}; give the steps of the warm-up, 0 for none")
        checked_draws(self.bootstraps)
        whole = [checked_curve(curve, need_loss=True) for curve in curves]
        if not whole:
            raise UsageError("no curve to fit; give at least one measured curve")
        sound, self.set_aside_ = without_contradicted(whole)
        _report(self.set_aside_)
        if not sound:
            raise UsageError(f"every curve diverged: {curve_name(whole[0])}: {self.set_aside_[-1].why}")
        checked = [thinned(curve, KEPT_ROWS) for curve in sound]
        for curve in checked:
            if curve.step[-1] <= self.warmup_steps:
                raise UsageError(
                    f"{curve_name(curve)} ends at step {curve.step[-1]:g}, not beyond the "
                    f"warm-up of {self.warmup_steps:g} steps; a law needs the steps after it"
                )
        self._curves = sorted(checked, key=lambda curve: (curve.size, curve.name))
        for one, other in zip(self._curves[:-1], self._curves[1:], strict=True):
            if (one.size, one.name) == (other.size, other.name):
                raise UsageError(f"two curves at size {one.size:g} are named '{one.name}'; give each its own name")
        self._frame = _frame(self._curves, float(self.warmup_steps))
        self._know(self._curves)
        self._loss_std: dict[str, float] = {}
        self._joints: dict[str, Joint] = {}
        folds = _folds(self._curves)
        foretold: dict[str, list[Joint]] = {}
        for name in FORMS if self.form == "auto" else (self.form,):
            problem = Problem(name, self._frame, self._curves)
            every = np.ones((1, len(self._curves)), dtype=bool)
            (self._joints[name],) = problem.joints(every, None, self.bootstraps, self.seed)
            if folds:
                start = np.repeat(self._joints[name].z[None], len(folds), 0)
                kept = np.array([fold.kept for fold in folds])
                foretold[name] = problem.joints(kept, start, FOLD_DRAWS, self.seed)
        _check_rates(self._curves, self._joints)
        self._weigh(folds, foretold)
        self.noise_ = float(sum(self.weights_[name] * joint.noise for name, joint in self._joints.items()))
        self._derive()
        return self

    def _derive(self) -> None:
        """See ``Estimator``."""
        self._joints = {
            name: Joint(name, self._frame, joint.z, joint.draws, joint.noise, joint.freedom)
            for name, joint in self._joints.items()
        }
        self.unit_steps_, self.unit_rate_ = self._frame.unit, self._frame.rate
        self.parameters_ = {name: _natural(joint) for name, joint in self._joints.items()}

    def predict(self, schedule: Curve, interval: float = 0.9, *, given: Curve | None = None) -> Prediction:
        """Losses of a new run along a schedule, at each of its rows.

        Args:
            schedule: steps and rates; its losses, if any, are ignored. Its size may be new.
            interval: coverage probability of the interval, for each row separately.
            given: a curve measured at the size of the schedule, which then counts as if it had been fitted.

        Returns:
            Prediction of three arrays [n].

        Raises:
            UsageError: not fitted; bad rows; ``given`` of another size or without losses; an interval outside (0, 1).
            ExtrapolationError: far beyond the curves in size and length.
        """
        require_fitted(self, "weights_")
        schedule = checked_curve(schedule, need_loss=False)
        checked_interval(interval)
        if given is not None:
            if given.size != schedule.size:
                raise UsageError(
                    f"the given curve is of size {given.size:g} and the schedule of {schedule.size:g}; give a curve "
                    "measured at the requested size"
                )
            return self.including(given).predict(schedule, interval)
        remedy = "measure a constant rate at that size, or over that length, first"
        factor = float(self.extrapolation(schedule).max())
        known = schedule.size in self.sizes_
        check_reach(factor, 1.0 if known else factor, f"schedule '{schedule.name}'", remedy)
        self._check_tested(schedule)
        law = self.placed(schedule.size, float(schedule.lr.max()))
        profile = law._frame.profile(schedule)
        n = len(schedule.step)
        joints = list(law._joints.values())
        parts = np.array_split(np.arange(n), -(-n // CHUNK_ROWS))
        mean = np.concatenate([law._expected(joints, profile.at(rows), schedule.size)[0] for rows in parts])
        # Towards step 0 a power law of progress grows without bound, so it is limited to the highest fitted loss.
        mean = np.minimum(mean, law._highest)
        rows = np.unique(np.linspace(0, n - 1, min(n, WIDTH_ROWS)).round().astype(int))
        half = np.interp(np.arange(n), rows, law._half(profile.at(rows), schedule.size, interval))
        return Prediction(np.exp(mean), np.exp(mean - half), np.exp(mean + half))

    def ends(self, schedule: Curve, interval: float = 0.9) -> Prediction:
        """As ``predict``, but for the last row alone, [1]; the schedule is not checked and its size must be known."""
        require_fitted(self, "weights_")
        last = self._frame.profile(schedule).at(np.array([len(schedule.step) - 1]))
        mean, _ = self._expected(list(self._joints.values()), last, schedule.size)
        half = self._half(last, schedule.size, interval)
        return Prediction(np.exp(mean), np.exp(mean - half), np.exp(mean + half))

    def _check_tested(self, schedule: Curve) -> None:
        """Warn if no left-out curve tests a forecast of this size; refuse a peak rate far from the fitted ones.

        Raises:
            UsageError: the size was fitted at one peak rate and no size at several, or the rate is far outside.
        """
        count = sum(curve.size == schedule.size for curve in self._curves)
        fitted, peak = self.peak_lrs(schedule.size), float(schedule.lr.max())
        if fitted is not None and count:
            # The ratio of peak rates that some size was fitted at is known at every size.
            ratio = max(peaks[1] / peaks[0] for size in self.sizes_ if (peaks := self.peak_lrs(size)) is not None)
            reach = BEYOND_RATES if np.log(ratio) > SAME_RATE else SAME_RATE
            least, most = min(fitted[0], fitted[1] / ratio), max(fitted[1], fitted[0] * ratio)
            if not least * np.exp(-reach) <= peak <= most * np.exp(reach):
                known = several_rates([curve for curve in self._curves if curve.size == schedule.size])
                at = f"{fitted[0]:.4g} to {fitted[1]:.4g}" if known else f"{fitted[1]:.4g}"
                raise UsageError(
                    f"schedule '{schedule.name}' has a peak learning rate of {peak:.4g}, and size {schedule.size:g} "
                    f"was fitted at {at}; fit curves at that rate, too"
                )
        if count == 0:
            reason = "no curve was fitted at this size, and no whole size was held out"
        elif count == 1 and not any(held.new_size for held in self.held_out_):
            reason = "one curve was fitted at this size, and no other size was held out except for one curve"
        else:
            return
        text = f"the forecast at size {schedule.size:g} is untested: {reason}; measure a curve there to be sure"
        warnings.warn(text, ExtrapolationWarning, stacklevel=3)

    def probe(self) -> list[Array]:
        """Predictions along the first curve; a law file holds them to detect code of another version."""
        require_fitted(self, "weights_")
        if not self._curves or self.weights_.keys() != self._joints.keys():
            raise ValueError("its curves, forms and weights do not belong together")
        curve = self._curves[0]
        rows = np.unique(np.linspace(0, len(curve.step) - 1, 20).round().astype(int))
        schedule = replace(curve, step=curve.step[rows], lr=curve.lr[rows], loss=None)
        peaks = np.array([self.peak_lr(float(size)) for size in self.sizes_], dtype=float)
        levels = [peaks, np.array([self.lowest_rate_, self._longest, self.noise_], dtype=float)]
        return [*self.predict(schedule), *self.ends(schedule), *levels]

    def peak_lrs(self, size: float) -> tuple[float, float] | None:
        """The lowest and the highest peak learning rate fitted at a size; None for a size that was not fitted."""
        require_fitted(self, "weights_")
        peaks = [float(curve.lr.max()) for curve in self._curves if curve.size == size]
        return (min(peaks), max(peaks)) if peaks else None

    def peak_lr(self, size: float) -> float | None:
        """The highest fitted learning rate at a size; None for a size that was not fitted."""
        require_fitted(self, "weights_")
        return float(self._frame.peak[self._frame.index(size)]) if size in self._frame.size else None

    def including(self, given: Curve) -> AnnealLaw:
        """A copy of the law with one more measured curve, whose size may be new; the weights of forms stay.

        Raises:
            UsageError: not fitted; a curve without losses or with bad rows.
        """
        require_fitted(self, "weights_")
        given = thinned(checked_curve(given, need_loss=True), KEPT_ROWS)
        curves = sorted([*self._curves, given], key=lambda curve: (curve.size, curve.name))
        frame = replace(_frame(curves, self._frame.warmup_steps), rate=self._frame.rate, unit=self._frame.unit)
        law = self._refitted(frame, curves)
        _check_rates(curves, law._joints)
        law._know(curves)
        return law

    def extrapolation(self, schedule: Curve) -> Array:
        """The extrapolation factor of each row of a schedule, [n]; at most 1 inside the fitted range.

        The area under the rate (in units of the highest rate of its size) over the largest fitted, times the size over
        the largest fitted if it is larger, or the smallest over it if it is smaller.
        """
        require_fitted(self, "weights_")
        schedule = checked_curve(schedule, need_loss=False)
        frame, _ = self._extended(schedule.size, float(schedule.lr.max()))
        factor = max(schedule.size / self.sizes_.max(), self.sizes_.min() / schedule.size, 1.0)
        return np.asarray(frame.profile(schedule).area / self._longest * factor)

    def _expected(self, joints: Sequence[Joint], schedule: Profile, size: float) -> tuple[Array, Array]:
        """Log losses [n] under all forms together, and under each [forms, n]."""
        each = np.array([joint.log_loss(schedule, size, joint.z[None])[0] for joint in joints])
        return np.array([self.weights_[joint.form] for joint in joints]) @ each, each

    def _variance(self, joints: Sequence[Joint], schedule: Profile, size: float) -> Array:
        """Variance of log losses [n]: of each form's parameters, between the forms, and the noise of a run."""
        mean, each = self._expected(joints, schedule, size)
        within = np.array([joint.log_loss(schedule, size, joint.draws).var(0) for joint in joints])
        noise = np.array([joint.noise**2 * early_variance(schedule.area) for joint in joints])
        weights = np.array([self.weights_[joint.form] for joint in joints])
        return np.asarray(weights @ (within + noise + (each - mean) ** 2))

    def _half(self, schedule: Profile, size: float, interval: float) -> Array:
        """Half the width of the interval in log loss, [n]."""
        variance = self._variance(list(self._joints.values()), schedule, size)
        variance = variance + self._loss_std.get(f"{size:g}", 0.0) ** 2
        beyond = 1 + np.log(np.maximum(schedule.area / self._longest, 1.0))
        kind = "schedule" if sum(curve.size == size for curve in self._curves) > 1 else "size"
        width = stats.t.isf((1 - interval) / 2, self._freedom[kind]) * self.scale_[kind]
        return np.asarray(width * np.sqrt(variance * beyond))

    def placed(self, size: float, peak_lr: float) -> AnnealLaw:
        """This law, or an extrapolated one if the size was not fitted.

        Raises:
            UsageError: not fitted.
        """
        require_fitted(self, "weights_")
        if size in self._frame.size:
            return self
        frame, std = self._extended(size, peak_lr)
        law = self._refitted(frame, [*self._curves, self._imagined(frame, size)])
        law._loss_std = {f"{size:g}": std}
        return law

    def _refitted(self, frame: Frame, curves: list[Curve]) -> AnnealLaw:
        law = copy(self)
        every = np.ones((1, len(curves)), dtype=bool)
        law._frame = frame
        law._joints = {
            name: Problem(name, frame, curves).joints(every, None, len(joint.draws), self.seed)[0]
            for name, joint in self._joints.items()
        }
        law.parameters_ = {name: _natural(joint) for name, joint in law._joints.items()}
        return law

    def _extended(self, asked: float, peak_lr: float) -> tuple[Frame, float]:
        """The units including this size, and the uncertainty (log) of its typical loss."""
        if asked in self._frame.size:
            return self._frame, 0.0
        x, y = np.log(self._frame.size), np.log(self._frame.loss)
        # A line through the sizes with a prior on its slope, in closed form.
        away = x - x.mean()
        precision = 1 / SIZE_SLOPE_STD**2 + (away @ away) / SIZE_SCATTER**2
        slope = SIZE_SLOPE + away @ (y - SIZE_SLOPE * away) / SIZE_SCATTER**2 / precision
        efolds = float(np.log(asked) - x.mean())
        std = np.sqrt(efolds**2 / precision + SIZE_SCATTER**2 * (1 + 1 / len(x)))
        size = np.append(self._frame.size, asked)
        order = size.argsort()
        frame = replace(
            self._frame,
            size=size[order],
            peak=np.append(self._frame.peak, peak_lr)[order],
            loss=np.append(self._frame.loss, np.exp(y.mean() + slope * efolds))[order],
            centre=float(np.log(size).mean()),
        )
        return frame, float(std)

    def _know(self, curves: list[Curve]) -> None:
        """Set these curves, in the units of the frame, as the measured ones."""
        self._curves, self.sizes_ = curves, self._frame.size
        self._highest = float(max(np.log(curve.loss).max() for curve in curves if curve.loss is not None)) + 1.0
        self._longest = max(float(self._frame.profile(curve).area[-1]) for curve in curves)
        lowest = [
            c.lr[fitted_rows(c, self._frame.warmup_steps)].min() / self._frame.peak[self._frame.index(c.size)]
            for c in curves
        ]
        self.lowest_rate_ = float(min(lowest))

    def _imagined(self, frame: Frame, size: float) -> Curve:
        """The end of a curve at an unmeasured size, with its loss on the line through the sizes."""
        typical = min(self._curves, key=lambda curve: abs(np.log(_end(curve) / frame.loss[frame.index(curve.size)])))
        j, k = frame.index(size), frame.index(typical.size)
        lr = typical.lr * (frame.peak[j] / frame.peak[k])
        loss = np.append(np.full(len(lr) - 1, np.nan), frame.loss[j])
        return Curve("imagined", size, typical.step, lr, loss, typical.warmup_steps)

    def _weigh(self, folds: list[_Fold], foretold: dict[str, list[Joint]]) -> None:
        """The weights of the forms, the held-out predictions, and the scale of the intervals from them."""
        out: list[tuple[int, Curve, Array, Profile]] = []
        for k, fold in enumerate(folds):
            for curve in (self._curves[i] for i in fold.out):
                rows = fitted_rows(curve, self._frame.warmup_steps)
                assert curve.loss is not None
                out.append(
                    (
                        k,
                        replace(curve, step=curve.step[rows]),
                        np.log(curve.loss[rows]),
                        self._frame.profile(curve).at(rows),
                    )
                )
        trust = np.array([TRUST[name] for name in self._joints])
        if out:
            squares = [
                [((found[k].log_loss(part, c.size, found[k].z[None])[0] - y) ** 2).mean() for k, c, y, part in out]
                for found in foretold.values()
            ]
            accuracy = (np.mean(squares, axis=1) + SAME**2) ** (-min(len(out), MOST_CASES) / 2)
            trust = trust * accuracy / accuracy.max()
        kept = trust >= LEAST_WEIGHT * trust.sum()
        names = [name for name, keep in zip(self._joints, kept, strict=True) if keep]
        self.weights_ = dict(zip(names, (trust[kept] / trust[kept].sum()).tolist(), strict=True))
        self._joints = {name: self._joints[name] for name in names}
        foretold = {name: found for name, found in foretold.items() if name in self.weights_}
        self.held_out_: list[HeldOutCurve] = []
        ratios: list[list[float]] = [[] for _ in folds]
        for k, curve, measured, part in out:
            joints = [found[k] for found in foretold.values()]
            predicted, _ = self._expected(joints, part, curve.size)
            variance = self._variance(joints, part, curve.size)
            ratios[k].append(float(((predicted - measured) ** 2 / variance).mean()))
            self.held_out_.append(
                HeldOutCurve(
                    name=curve.name,
                    size=curve.size,
                    step=curve.step,
                    predicted=np.exp(predicted),
                    measured=np.exp(measured),
                    error=float(np.abs(np.expm1(predicted - measured)).mean()),
                    new_size=folds[k].new_size,
                )
            )
        self.scale_, self._freedom = {}, {}
        for kind, new_size in (("schedule", False), ("size", True)):
            means = [np.mean(ratio) for ratio, fold in zip(ratios, folds, strict=True) if fold.new_size == new_size]
            freedom = SCALE_COUNT + FOLD_COUNT * len(means)
            self.scale_[kind] = float(np.sqrt((SCALE_COUNT * SCALE[kind] ** 2 + FOLD_COUNT * sum(means)) / freedom))
            self._freedom[kind] = freedom


def _check_rates(curves: Sequence[Curve], joints: dict[str, Joint]) -> None:
    """Refuse several peak rates of one size if the curves do not determine what a peak rate costs.

    Raises:
        UsageError: such curves, with the peak rate of each.
    """
    found = several_rates(curves)
    if found and min(joint.rate_known() for joint in joints.values()) > RATE_KNOWN:
        size, words = next(iter(found.items()))
        raise UsageError(
            f"the curves of size {size:g} have several peak learning rates, and they do not determine how the loss "
            f"depends on the rate: add a curve that decays at each rate, or fit the curves of each rate from a "
            f"separate folder ({words})"
        )


def _report(aside: Sequence[CurveSetAside]) -> None:
    """Warn in one line about what was left out."""
    if aside:
        parts = []
        for one in aside[:SHOWN]:
            name = thing_name(f"curve '{one.name}' at size {one.size:g}")
            parts.append(f"{name}{'' if one.step is None else f', step {one.step:g}'}: {one.why}")
        more = f" and {len(aside) - SHOWN} more" if len(aside) > SHOWN else ""
        warnings.warn(f"{len(aside)} left out of the fit: {'; '.join(parts)}{more}", SetAsideWarning, stacklevel=3)


def _frame(curves: Sequence[Curve], warmup_steps: float) -> Frame:
    size = np.array(sorted({curve.size for curve in curves}))
    ends = [_end(curve) for curve in curves]
    return Frame(
        size=size,
        peak=np.array([max(c.lr.max() for c in curves if c.size == s) for s in size]),
        loss=np.array([np.median([e for e, c in zip(ends, curves, strict=True) if c.size == s]) for s in size]),
        centre=float(np.log(size).mean()),
        rate=float(np.exp(np.mean([np.log(curve.lr.max()) for curve in curves]))),
        unit=float(np.median([curve.step[-1] for curve in curves])),
        warmup_steps=warmup_steps,
    )


def _end(curve: Curve) -> float:
    """Mean loss over the last twentieth of a curve's rows."""
    assert curve.loss is not None
    return float(np.mean(curve.loss[-max(1, len(curve.loss) // 20) :]))


def _folds(curves: Sequence[Curve]) -> list[_Fold]:
    """The held-out cases: each schedule at every size with another one, and each size except its steadiest curve."""
    size = np.array([curve.size for curve in curves])
    name = np.array([curve.name for curve in curves])
    folds = []
    for schedule in dict.fromkeys(name.tolist()):
        same = name == schedule
        out = [i for i in np.flatnonzero(same).tolist() if ((size == size[i]) & ~same).any()]
        if out:
            folds.append(_Fold(~np.isin(np.arange(len(curves)), out), out, new_size=False))
    sizes = np.unique(size)
    for s in sizes if len(sizes) > 1 else ():
        here = np.flatnonzero(size == s).tolist()
        steady = min(here, key=lambda i: (float(np.std(curves[i].lr) / np.mean(curves[i].lr)), curves[i].step[-1]))
        out = [i for i in here if i != steady]
        if out and (np.unique(size[size != s], return_counts=True)[1] > 1).any():
            folds.append(_Fold(~np.isin(np.arange(len(curves)), out), out, new_size=True))
    return folds


def _natural(joint: Joint) -> dict[str, dict[str, float]]:
    """Parameters by size, E, A and B in the units of the loss."""
    theta = joint.theta(joint.z[None])[0]
    table = {}
    for j, size in enumerate(joint.frame.size):
        e, a, alpha, b, c, beta, gamma, q, _, p, m = np.exp(theta[j])
        table[f"{size:g}"] = {
            "E": float(e * joint.frame.loss[j]),
            "A": float(a * joint.frame.loss[j]),
            "alpha": float(alpha),
            "B": float(b * joint.frame.loss[j]),
            "C": float(c),
            "beta": float(beta),
            "gamma": float(gamma),
            "q": float(q),
            "warmup": float(theta[j, 8]),
            "p": float(p),
            "m": float(m),
        }
    return table
