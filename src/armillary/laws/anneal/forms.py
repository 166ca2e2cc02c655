"""The forms an annealing law may take, and their joint fit to the curves of several model sizes.

All forms are ``loss = E + A s^-alpha - B R^(m - p) sum_k (gap of r^p)_k G_k``: progress ``s`` along the schedule
follows a power law, and each fall of the learning rate ``r`` adds a gain that grows with the kernel ``G`` from 0 to 1.
The rises of the warm-up are negative gaps, so a constant rate R costs ``B R^m``, which a decay recovers.

- ``multi-power`` (Luo et al. 2025, arXiv 2503.12811, equation 5): s is the area under the rate, S1, p is 1, and
  ``G = 1 - (1 + C r_k^-gamma (S1(t) - S1(k)))^-beta`` at the rate r_k of the gap.
- ``tissue`` (Tissue et al. 2024, arXiv 2408.11029, equation 1): s is S1, p is 1, and ``G = 1 - exp(-C (t - k))`` in
  steps; the sum of gaps under this kernel is their S2, up to the unit.
- ``progress``: multi-power, but s grows by ``r^q`` per step with a fitted q, and begins with a fitted share of the
  warm-up; p is fitted too. Half the rate gives more than half the progress. Fits to nine schedules each at 25M and at
  100M parameters give q = 0.55 and 0.58, and reduce the error by a third.

The published forms have m = 1. They hold at one peak rate R. Curves at two peak rates and three sizes (Schaipp et al.
2025, arXiv 2501.18965) give m = 0.46 to 0.48: twice the rate costs less than one and a half times as much. Without m,
the error of a joint fit to both rates doubles.

Everything is dimensionless: rates in units of the typical peak rate of all curves, time in units of the typical length
of the fitted curves, losses in units of a typical loss of the size. So the priors apply to any model. They are normal
in the logarithms (except for the warm-up's share) and have two parts: the value of a parameter, and its difference
between sizes, along log size and around that trend. For a size with a single curve, the other sizes determine the
parameters that this curve leaves open.

Centres follow the published fits of Luo et al. The prior of q, the count of a curve and the early noise were tuned on
their curves at 25M and 100M, where each factor of two in them changes the held-out error by a tenth. The priors of m,
of p and of the differences between sizes were chosen on these curves and on those of Schaipp et al. together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.laws.anneal.curves import LEAST_RATE, Curve, Profile, profile
from armillary.laws.estimator import Array
from armillary.laws.solver import Fits, fit_many

PARAMETERS = ("E", "A", "alpha", "B", "C", "beta", "gamma", "q", "warmup", "p", "m")

# Number of rows of a curve in the fit, and the number of independent rows for which they count, since errors along a
# curve are correlated.
ROWS = 64
COUNT = 5.0

# Progress is at least this share of the unit of time; below it no law holds, and the loss would diverge.
LEAST_PROGRESS = 1e-3

MOST = 25.0

# Residuals beyond this many units of noise count linearly: 95 % efficient for normal noise (Huber 1964).
HUBER = 1.345

# value [P, n] and its derivatives [P, n, 4] by log C, log beta, log gamma, log p
Kernel = Callable[[Array, Profile], tuple[Array, Array]]


def power_kernel(theta: Array, schedule: Profile) -> tuple[Array, Array]:
    """Sum of gaps under the multi-power kernel."""
    c, beta, gamma = np.exp(theta[:, 4:7]).T[:, :, None]
    gap, by_p = gaps(theta, schedule)
    rate = np.log(schedule.gap_rate)
    passed = np.maximum(schedule.area[:, None] - schedule.gap_area, 0.0)
    x = (c * np.exp(-gamma * rate))[:, None, :] * passed
    log = np.log1p(x)
    left = np.exp(-beta[:, :, None] * log)
    slope = beta[:, :, None] * left * x / (1 + x)
    return _sum(1 - left, gap), np.stack(
        [
            _sum(slope, gap),
            beta * _sum(left * log, gap),
            -gamma * _sum(slope, rate * gap),
            _sum(1 - left, by_p),
        ],
        axis=-1,
    )


def decay_kernel(theta: Array, schedule: Profile) -> tuple[Array, Array]:
    """Sum of gaps under the exponential kernel in steps."""
    c = np.exp(theta[:, 4])[:, None, None]
    gap, by_p = gaps(theta, schedule)
    x = c * np.maximum(schedule.time[:, None] - schedule.gap_time, 0.0)
    left = np.exp(-x)
    by_c = _sum(x * left, gap)
    return _sum(1 - left, gap), np.stack(
        [by_c, np.zeros_like(by_c), np.zeros_like(by_c), _sum(1 - left, by_p)], axis=-1
    )


def gaps(theta: Array, schedule: Profile) -> tuple[Array, Array]:
    """Falls of ``rate^p`` [P, k] of laws ``theta`` [P, 11], and their derivatives [P, k] by log p."""
    p = np.exp(theta[:, 9:10])
    value, slope = [], []
    for rate in (schedule.gap_begin, schedule.gap_end):
        log = np.log(np.maximum(rate, LEAST_RATE))
        power = np.where(rate > 0, np.exp(p * log), 0.0)
        value.append(power)
        slope.append(p * log * power)
    return value[0] - value[1], slope[0] - slope[1]


def _sum(kernel: Array, gap: Array) -> Array:
    """[P, n] from a kernel [P, n, k] and gaps [P, k]."""
    return np.asarray((kernel @ gap[:, :, None])[:, :, 0])


@dataclass(frozen=True)
class Form:
    """A kernel, and for each parameter its prior.

    Attributes:
        kernel: sum of gaps under it.
        centre: [11] centre of the parameters in the order of ``PARAMETERS`` (logarithms but for ``warmup``).
        level: [11] standard deviation of the value that all sizes share.
        slope: [11] of the change per e-fold of size.
        scatter: [11] of each size around that.
        trend: [11] centre of the change per e-fold of size.
    """

    kernel: Kernel
    centre: Array
    level: Array
    slope: Array
    scatter: Array
    trend: Array


def _form(kernel: Kernel, **priors: tuple[float, float, float, float, float]) -> Form:
    """A form from ``parameter=(centre, level, slope, scatter, trend)``; an omitted one is fixed at its centre."""
    fixed = {"beta": 0.0, "gamma": 0.0, "q": 0.0, "warmup": 0.0, "p": 0.0}
    table = np.array([priors.get(name) or (fixed[name], 0.0, 0.0, 0.0, 0.0) for name in PARAMETERS])
    return Form(kernel, *table.T)


_COMMON = {
    "E": (np.log(0.93), 0.1, 0.04, 0.04, 0.0),
    "A": (np.log(0.08), 0.7, 0.1, 0.2, 0.0),
    "alpha": (np.log(0.47), 0.3, 0.07, 0.07, 0.0),
    "B": (np.log(0.05), 0.6, 0.15, 0.1, 0.25),
    "m": (np.log(0.4), 0.2, 0.02, 0.02, 0.0),
}
_POWER = {
    "C": (np.log(300.0), 2.0, 0.2, 0.3, 0.0),
    "beta": (np.log(0.6), 0.5, 0.1, 0.15, 0.0),
    "gamma": (np.log(0.55), 0.3, 0.05, 0.1, 0.0),
}
FORMS = {
    "progress": _form(
        power_kernel,
        **_COMMON,
        **_POWER,
        q=(np.log(0.55), 0.1, 0.02, 0.04, 0.0),
        warmup=(0.0, 0.15, 0.1, 0.1, 0.0),
        p=(np.log(0.9), 0.15, 0.02, 0.04, 0.0),
    ),
    "multi-power": _form(power_kernel, **_COMMON, **_POWER),
    "tissue": _form(decay_kernel, **_COMMON, C=(np.log(24.0), 1.5, 0.2, 0.3, 0.0)),
}


def law(form: Form, theta: Array, schedule: Profile) -> tuple[Array, Array]:
    """Losses [P, n] of laws ``theta`` [P, 11] along a schedule, and their derivatives [P, n, 11]."""
    # A solver step may go far out, where values must only stay finite.
    theta = np.clip(theta, -MOST, MOST)
    e, a, alpha, b = np.exp(theta[:, :4]).T[:, :, None]
    q, share = np.exp(theta[:, 7:8]), theta[:, 8:9]
    level = np.log(schedule.level)
    powers = np.exp(q * level)
    # A warm-up from 0 to 1 brings 1 / (1 + q) of its time; ``share`` shifts that.
    first = np.log(schedule.first_rate)
    height = np.exp(q * first)
    begin = (schedule.warmup / (1 + q) + share * (schedule.warmup + 0.01)) * height
    raw = powers @ schedule.dwell.T + begin
    alive = raw > LEAST_PROGRESS
    s = np.maximum(raw, LEAST_PROGRESS)
    by_q = q * ((powers * level) @ schedule.dwell.T + begin * first - height * schedule.warmup / (1 + q) ** 2)
    term = a * np.exp(-alpha * np.log(s))
    by_s = np.where(alive, -alpha * term / s, 0.0)
    gain, by_kernel = form.kernel(theta, schedule)
    p, m = np.exp(theta[:, 9:10]), np.exp(theta[:, 10:11])
    top = np.log(schedule.top)
    b = b * np.exp((m - p) * top)
    loss = e + term - b * gain
    by_c, by_beta, by_gamma, by_p = np.moveaxis(-b[:, :, None] * by_kernel, -1, 0)
    return loss, np.stack(
        [
            np.broadcast_to(e, term.shape),
            term,
            -alpha * np.log(s) * term,
            -b * gain,
            by_c,
            by_beta,
            by_gamma,
            by_s * by_q,
            by_s * (schedule.warmup + 0.01) * height,
            by_p + p * top * b * gain,
            -m * top * b * gain,
        ],
        axis=-1,
    )


@dataclass(frozen=True)
class Frame:
    """The units of a joint fit.

    Attributes:
        size: [J] parameters of each model. peak: [J] its highest fitted learning rate. loss: [J] its typical loss.
        centre: mean of the logarithms of the sizes.
        rate: the learning rate that counts as 1, at every size. unit: the number of steps that counts as 1.
        warmup_steps: of curves that do not have their own.
    """

    size: Array
    peak: Array
    loss: Array
    centre: float
    rate: float
    unit: float
    warmup_steps: float

    def index(self, size: float) -> int:
        """The index of a size."""
        return int(np.flatnonzero(self.size == size)[0])

    def profile(self, curve: Curve) -> Profile:
        """A curve of one of the sizes in these units."""
        warmup = self.warmup_steps if curve.warmup_steps is None else curve.warmup_steps
        return profile(curve, warmup, self.rate, self.unit)


@dataclass(frozen=True)
class Joint:
    """A form fitted to curves of J sizes.

    Attributes:
        form: its name.
        frame: the units.
        z: [11 J] standardised parameters.
        draws: [b, 11 J] posterior draws of the same.
        noise: relative standard deviation of measured losses around the law.
        freedom: degrees of freedom of ``noise``.
    """

    form: str
    frame: Frame
    z: Array
    draws: Array
    noise: float
    freedom: float

    def theta(self, z: Array) -> Array:
        """Parameters [P, J, 11] from standardised ones [P, 11 J]."""
        return _theta(FORMS[self.form], self.frame, _roots(FORMS[self.form], self.frame), z)

    def rate_known(self) -> float:
        """How far the data determine the cost of a peak rate: the posterior's standard deviation of m over the prior's.

        0 if they determine it, 1 if they do not; the mean over sizes.
        """
        m = PARAMETERS.index("m")
        drawn = np.stack([self.theta(z[None])[0][:, m] for z in self.draws])
        return float(np.mean(drawn.std(0))) / float(FORMS[self.form].level[m])

    def log_loss(self, schedule: Profile, size: float, z: Array) -> Array:
        """Log losses [P, n] along a schedule under standardised parameters [P, 11 J]."""
        j = self.frame.index(size)
        loss, _ = law(FORMS[self.form], self.theta(z)[:, j], schedule)
        return np.asarray(np.log(np.maximum(loss, LEAST_LOSS)) + np.log(self.frame.loss[j]))


# Losses are clipped from below at this share of the typical loss, so that logarithms of bad laws stay finite.
LEAST_LOSS = 1e-3

# Prior of the relative noise, weighted as this many observations. Reruns of a schedule differ by 0.03 %.
NOISE, NOISE_COUNT = 8e-4, 4.0

# Two runs of one schedule differ by a shift of their early progress, which fades. At an area of this share of the unit,
# the variance is twice its late value.
EARLY = 0.05


def early_variance(area: Array) -> Array:
    """Variance of the noise at an area under the rate, in units of its late value."""
    return np.asarray(1 + (EARLY / np.maximum(area, LEAST_PROGRESS)) ** 3)


class Problem:
    """The curves of a joint fit of one form, ready to be fitted as a whole or without some of them.

    Args:
        form: its name.
        frame: the units.
        curves: checked curves with losses, of the sizes of the frame.
    """

    def __init__(self, form: str, frame: Frame, curves: Sequence[Curve]) -> None:
        self._form, self._name, self._frame = FORMS[form], form, frame
        self._roots = _roots(self._form, frame)
        self._parts = []
        for curve in curves:
            rows = fitted_rows(curve, frame.warmup_steps)
            rows = rows[np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).round().astype(int)]
            assert curve.loss is not None
            j = frame.index(curve.size)
            schedule = frame.profile(curve).at(rows)
            scale = np.sqrt(early_variance(schedule.area))
            self._parts.append((j, schedule, np.log(curve.loss[rows] / frame.loss[j]), scale))
        # Each curve has the same total weight, and each row the weight of the steps around it.
        shares = [_shares(part[1].time) for part in self._parts]
        self._curve = np.repeat(np.arange(len(curves)), [len(share) for share in shares])
        self._weights = COUNT * np.concatenate(shares)

    def _fit(self, kept: NDArray[np.bool_], start: Array | None) -> tuple[Fits, Array, Array]:
        """The fits, and the noise and its degrees of freedom for each problem, [P] each."""
        count, p = len(kept), len(PARAMETERS) * len(self._frame.size)
        weights = kept[:, self._curve] * self._weights
        scale = np.full(count, NOISE)
        if start is None:
            # Starts: the prior's centre, and kernels that saturate earlier and later.
            shifts = np.zeros((3, p))
            shifts[1, 4], shifts[2, 4] = 1.0, -1.0
            many = self._solve(
                np.tile(shifts, (count, 1)), np.repeat(weights, 3, 0), np.repeat(scale, 3), iterations=60
            )
            best = np.arange(count) * 3 + many.objective.reshape(count, 3).argmin(1)
            start = many.parameters[best]
        for _ in range(4):
            fits = self._solve(start, weights, scale, iterations=200)
            start = fits.parameters
            miss, _ = self._residuals(start, np.ones(count))
            freedom = NOISE_COUNT + np.maximum(weights.sum(1) - fits.effective_parameters, 0.0)
            clipped = np.minimum(np.abs(miss), HUBER * 2 * scale[:, None])
            scale = np.sqrt((NOISE_COUNT * NOISE**2 + (weights * clipped**2).sum(1)) / freedom)
        return fits, scale, freedom

    def joints(self, kept: NDArray[np.bool_], start: Array | None, draws: int, seed: int) -> list[Joint]:
        """Fit P problems, each to its curves in the mask ``kept`` [P, curves], with draws.

        The draws are normal, from the curvature at the fit. ``start`` [P, 11 J] replaces the search for a starting
        point.
        """
        fits, scale, freedom = self._fit(kept, start)
        rng = np.random.default_rng(seed)
        found = []
        for k, z in enumerate(fits.parameters):
            root = np.linalg.cholesky(np.linalg.inv(fits.precision[k]))
            found.append(
                Joint(
                    form=self._name,
                    frame=self._frame,
                    z=z,
                    draws=z + rng.standard_normal((draws, len(z))) @ root.T,
                    noise=float(scale[k]),
                    freedom=float(freedom[k]),
                )
            )
        return found

    def _solve(self, start: Array, weights: Array, scale: Array, iterations: int) -> Fits:
        def residuals(z: Array, which: NDArray[np.intp]) -> tuple[Array, Array]:
            return self._residuals(z, scale[which])

        return fit_many(
            residuals, start, weights, np.zeros_like(start), np.ones(start.shape[1]), huber=HUBER, iterations=iterations
        )

    def _residuals(self, z: Array, scale: Array) -> tuple[Array, Array]:
        """Residuals of log losses [P, n] over the noise ``scale`` [P], and derivatives [P, n, 11 J]."""
        theta = _theta(self._form, self._frame, self._roots, z)
        rows, jacobians = [], []
        for j, schedule, measured, early in self._parts:
            loss, slope = law(self._form, theta[:, j], schedule)
            safe = np.maximum(loss, LEAST_LOSS)
            unit = scale[:, None] * early
            rows.append((np.log(safe) - measured) / unit)
            slope = slope * (1 / (safe * unit))[:, :, None]
            jacobians.append((slope[:, :, None, :] * self._roots[:, j, :].T).reshape(*rows[-1].shape, -1))
        return np.concatenate(rows, axis=1), np.concatenate(jacobians, axis=1)


def fitted_rows(curve: Curve, warmup_steps: float) -> NDArray[np.intp]:
    """The rows for a fit: those with a loss after the warm-up, which the forms do not describe."""
    assert curve.loss is not None
    known = np.isfinite(curve.loss)
    rising = np.flatnonzero(np.append(np.diff(curve.lr) <= 0, True))[0] if curve.lr[0] < curve.lr.max() / 2 else 0
    late = (curve.step >= warmup_steps) & (curve.step > 0) & (np.arange(len(curve.step)) >= rising)
    return np.flatnonzero(known & late if (known & late).any() else known)


def _shares(time: Array) -> Array:
    """The share of a curve's time around each of its rows, [n], summing to 1."""
    edges = np.concatenate([time[:1], (time[1:] + time[:-1]) / 2, time[-1:]])
    width = np.diff(edges)
    return np.asarray(width / width.sum() if width.sum() > 0 else np.full(len(time), 1 / len(time)))


def _roots(form: Form, frame: Frame) -> Array:
    """[11, J, J]: how standardised parameters become deviations from the prior's centre, size by size."""
    x = np.log(frame.size) - frame.centre
    covariance = (
        form.level[:, None, None] ** 2
        + form.slope[:, None, None] ** 2 * np.outer(x, x)
        + form.scatter[:, None, None] ** 2 * np.eye(len(x))
    )
    # A parameter that is fixed at its centre has covariance 0.
    held = form.level == 0
    covariance[held] = np.eye(len(x))
    roots = np.linalg.cholesky(covariance)
    roots[held] = 0.0
    return np.asarray(roots)


def _theta(form: Form, frame: Frame, roots: Array, z: Array) -> Array:
    """Parameters [P, J, 11] from standardised ones [P, 11 J] (size by size)."""
    centre = form.centre + np.outer(np.log(frame.size) - frame.centre, form.trend)
    return np.asarray(centre + np.einsum("kji,pik->pjk", roots, z.reshape(len(z), -1, len(form.centre))))
