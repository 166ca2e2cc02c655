"""The best learning-rate schedule for a budget, by an annealing law, and the cost of other lengths.

The law evaluates common shapes: a constant rate with a final decay (linear, cosine, or one minus the square root,
Hägele et al. 2024, arXiv 2405.18392) of many lengths, to several final rates. For comparison, a free shape is optimised
over ten knots of a non-increasing rate; it shows the possible further gain.

Trade-off: an optimum over many predictions selects the law's most favourable error. So a schedule stays between the
lowest and the highest fitted rate, and within ``MOST_BEYOND`` times the longest fitted curve. Of all shapes within a
twentieth of the law's uncertainty of the best one, the one with the shortest decay is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from armillary.laws.anneal.curves import SAME_RATE, Curve
from armillary.laws.anneal.law import AnnealLaw
from armillary.laws.estimator import Array, ExtrapolationError
from armillary.recipe import UsageError

# The rate from 1 to 0 as a function of the elapsed share of the decay.
SHAPES: dict[str, Callable[[Array], Array]] = {
    "linear": lambda along: 1 - along,
    "cosine": lambda along: np.asarray((1 + np.cos(np.pi * along)) / 2),
    "1-sqrt": lambda along: 1 - np.sqrt(along),
}
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
ENDS = (0.0, 0.05, 0.1, 0.2)
LENGTHS = (0.5, 0.7, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0)

# A budget with an area of more than this many times the largest fitted one is refused, and so is a peak above the
# fitted one by this factor.
MOST_BEYOND, MOST_PEAK = 5.0, 1.25

POINTS, KNOTS = 240, 10

# Peak rates tried between the lowest and the highest of a size.
PEAKS = 5

# A longer decay is not chosen for a gain below this share of half the 90 % interval.
INDIFFERENT = 0.05


@dataclass(frozen=True)
class Decay:
    """A schedule and the loss at its end: ``low`` to ``high`` covers one new run with 90 %.

    Attributes:
        shape: ``linear``, ``cosine``, ``1-sqrt``, or ``free``.
        share: of the steps, the part that decays.
        end: last rate over the peak.
        loss, low, high: at the last step.
        excess: loss minus that of the chosen schedule.
    """

    shape: str
    share: float
    end: float
    loss: float
    low: float
    high: float
    excess: float


@dataclass(frozen=True)
class Ending:
    """Another length: the loss if planned from the start, and if the chosen schedule is cut there or continued.

    Attributes:
        steps: in all.
        planned: loss with the chosen shape and share of decay, but of this length.
        unplanned: loss of the chosen schedule cut off at this step, or continued at its last rate up to it.
        lost: unplanned minus planned.
    """

    steps: int
    planned: float
    unplanned: float
    lost: float


@dataclass(frozen=True)
class BestSchedule:
    """The answer of ``best_schedule``.

    Attributes:
        chosen: the best schedule. curve: its rate at some hundred steps after the warm-up.
        decay_start: the step at which its decay begins.
        options: all evaluated shapes, the best first. nearby: the chosen shape and end with other shares of decay,
        shortest first. free: the best non-increasing rate of any shape.
        free_curve: its rate.
        endings: the cost of stopping earlier or continuing, shortest first.
        extrapolation: area under the rate over the largest fitted, times the factor in size.
    """

    chosen: Decay
    curve: Curve
    decay_start: int
    options: list[Decay]
    nearby: list[Decay]
    free: Decay
    free_curve: Curve
    endings: list[Ending]
    extrapolation: float


def best_schedule(
    law: AnnealLaw, *, size: float, steps: int, peak_lr: float | None = None, given: Curve | None = None
) -> BestSchedule:
    """The best schedule of a length, and the cost of other lengths.

    Args:
        law: fitted.
        size: parameters of the model.
        steps: in all, with the warm-up that the law was fitted with.
        peak_lr: highest rate; by default that of the fitted or given curves of this size, or the best of several
            between the lowest and the highest where they have several.
        given: a curve measured at this size.

    Raises:
        UsageError: the peak is unknown or not above 0, or there are no steps after the warm-up.
        ExtrapolationError: the budget or the peak is far beyond the fitted curves.
    """
    if given is not None:
        law = law.including(given)
    warmup = float(law.warmup_steps)
    if not warmup < steps < np.inf:
        raise UsageError(f"steps is {steps}; give more than the {warmup:g} of the warm-up")
    several = law.peak_lrs(size) if peak_lr is None else None
    if several is not None and np.log(several[1] / several[0]) > SAME_RATE:
        tried = [
            best_schedule(law, size=size, steps=steps, peak_lr=float(peak)) for peak in np.geomspace(*several, PEAKS)
        ]
        return min(tried, key=lambda best: best.chosen.loss)
    known = law.peak_lr(size)
    peak = known if peak_lr is None else peak_lr
    if peak is None or not 0 < peak < np.inf:
        given_as = "there is no peak" if peak_lr is None else f"peak_lr is {peak_lr:g}"
        raise UsageError(
            f"{given_as} at size {size:g}; give peak_lr, the highest learning rate (above 0), or a curve measured there"
        )
    if known is not None and peak > MOST_PEAK * known:
        raise ExtrapolationError(
            f"peak_lr {peak:g} is {peak / known:.2g} times the highest rate measured at size {size:g}; measure a curve "
            "at that rate first"
        )
    whole = _Asked(law.placed(size, peak), size, peak, warmup)
    far = float(whole.law.extrapolation(whole.curve(np.ones(POINTS), steps))[-1])
    longest = far / max(1.0, size / law.sizes_.max(), law.sizes_.min() / size)
    if longest > MOST_BEYOND:
        raise ExtrapolationError(
            f"{steps} steps are {longest:.3g} times the longest curve fitted, more than {MOST_BEYOND:g}; measure a "
            f"constant rate over at least {steps / MOST_BEYOND:.0f} steps first"
        )
    floor = min(law.lowest_rate_, 1.0)
    ends = sorted({max(end, floor) for end in ENDS})
    options = [whole.decay(shape, share, end, steps) for shape in SHAPES for share in SHARES for end in ends]
    options.sort(key=lambda option: option.loss)
    least = options[0]
    near = least.loss + INDIFFERENT * (least.high - least.low) / 2
    chosen = min((option for option in options if option.loss <= near), key=lambda o: (o.share, o.loss))

    def against(option: Decay) -> Decay:
        return replace(option, excess=option.loss - chosen.loss)

    nearby = [against(o) for o in options if (o.shape, o.end) == (chosen.shape, chosen.end)]
    free, free_curve = whole.free(least, floor, steps)
    curve = whole.curve(rates(chosen.shape, chosen.share, chosen.end), steps)
    return BestSchedule(
        chosen=against(chosen),
        curve=curve,
        decay_start=round(steps - chosen.share * (steps - warmup)),
        options=[against(option) for option in options],
        nearby=sorted(nearby, key=lambda option: option.share),
        free=against(free),
        free_curve=free_curve,
        endings=[
            whole.ending(chosen, curve, round(steps * length)) for length in LENGTHS if steps * length > 2 * warmup
        ],
        extrapolation=far,
    )


def rates(shape: str, share: float, end: float) -> Array:
    """Rates [240] in units of the peak, evenly spaced in time: constant, then over the last ``share`` down to ``end``.

    Raises:
        UsageError: an unknown shape, a share or an end outside [0, 1].
    """
    if shape not in SHAPES:
        raise UsageError(f"shape is {shape!r}; choose {', '.join(SHAPES)}")
    if not (0 <= share <= 1 and 0 <= end <= 1):
        raise UsageError(f"share {share!r} and end {end!r} must lie between 0 and 1")
    along = np.clip((np.linspace(0, 1, POINTS) - (1 - share)) / max(share, 1e-9), 0, 1)
    return np.asarray(end + (1 - end) * SHAPES[shape](along))


@dataclass(frozen=True)
class _Asked:
    """A law with the common arguments of all predictions."""

    law: AnnealLaw
    size: float
    peak: float
    warmup: float

    def curve(self, rate: Array, steps: int) -> Curve:
        """The schedule that follows ``rate`` from the end of the warm-up to the last step."""
        step = np.linspace(max(self.warmup, steps / 1e4), steps, len(rate))
        return Curve("planned", self.size, step, self.peak * rate)

    def decay(self, shape: str, share: float, end: float, steps: int) -> Decay:
        """A shape with the loss at its end."""
        return self._judged(shape, share, end, self.curve(rates(shape, share, end), steps))

    def _judged(self, shape: str, share: float, end: float, curve: Curve) -> Decay:
        mean, low, high = (float(v[-1]) for v in self.law.ends(curve))
        return Decay(shape, share, end, mean, low, high, 0.0)

    def ending(self, chosen: Decay, curve: Curve, steps: int) -> Ending:
        """The chosen schedule ended at another step."""
        planned = self.decay(chosen.shape, chosen.share, chosen.end, steps).loss
        step = curve.step[curve.step < steps]
        ended = replace(
            curve,
            step=np.append(step, steps),
            lr=np.append(curve.lr[: len(step)], np.interp(steps, curve.step, curve.lr)),
        )
        unplanned = float(self.law.ends(ended).mean[-1])
        return Ending(steps, planned, unplanned, unplanned - planned)

    def free(self, start: Decay, floor: float, steps: int) -> tuple[Decay, Curve]:
        """The non-increasing rate with the lowest final loss; the search starts from the best shape."""
        # Knots are closer towards the end, where the rate matters most. Each drop is a share of the height above the
        # floor, so the rate never rises and never falls below the floor.
        knots = 1 - np.geomspace(1, 0.01, KNOTS)
        along = np.linspace(0, 1, POINTS)

        def rate(x: Array) -> Array:
            left = np.cumprod(1 - 1 / (1 + np.exp(-x)))
            return np.asarray(np.interp(along, np.append(knots, 1.0), floor + (1 - floor) * np.append(1.0, left)))

        def loss(x: Array) -> float:
            return float(np.log(self.law.ends(self.curve(rate(x), steps)).mean[-1])) * 1e4

        at = np.clip(
            (np.interp(np.append(knots, 1.0), along, rates(start.shape, start.share, start.end)) - floor)
            / max(1 - floor, 1e-9),
            1e-3,
            1,
        )
        drop = np.clip(1 - at[1:] / at[:-1], 1e-3, 1 - 1e-3)
        found = optimize.minimize(
            loss,
            np.log(drop / (1 - drop)),
            method="L-BFGS-B",
            bounds=[(-8, 8)] * KNOTS,
            options={"maxiter": 15, "eps": 1e-3},
        )
        best = rate(found.x)
        curve = self.curve(best, steps)
        share = 1 - float(along[np.flatnonzero(best > 0.99)[-1]])
        return self._judged("free", share, float(best[-1]), curve), curve
