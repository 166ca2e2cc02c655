"""Finds runs that contradict the others before a scaling law is fitted, by a fit that is robust to a quarter of them.

A diverged run (a loss of 10.5 among losses near 2) or a mistyped digit harms a fit twice: it moves the law, and it
makes all runs look noisy. The method is least trimmed squares (Rousseeuw and Van Driessen 2006). A form is fitted to
several subsets of the runs. The fit that describes seven tenths of the runs best is refined on these runs, and every
run is compared with it.

A sound table must not lose a run. So a loss is set aside only if it is far off by every measure: by more than ``FAR``
standard deviations (of a run's scatter and of the prediction's uncertainty), by more than ``LEAST`` of the loss, and
under every form that describes the table about as well as the best. If more than a quarter of the losses are far off,
the forms do not describe the table, and nothing is set aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.laws.estimator import Array
from armillary.laws.scaling.fit import (
    EFFICIENT,
    NOISE,
    NOISE_COUNT,
    height,
    priors,
    starting_points,
    tilt_of,
)
from armillary.laws.scaling.forms import ScalingForm
from armillary.laws.solver import Fits, fit_many

# Standard deviations, and relative difference of the loss, beyond which a run is contradicted.
FAR, LEAST = 8.0, float(np.log(1.04))

# The same for a loss that is consistent with the order of the runs. A loss above that of a smaller run on fewer tokens,
# or below that of a larger run on more, is impossible; any other may just show an error of the forms.
UNORDERED = float(np.log(1.3))

# The share of the runs that the fit must describe, the size of the subsets as shares, and the largest share to set
# aside.
TRUSTED, SHARE, SUBSETS, MOST = 0.7, 0.6, 8, 0.25

# Upper limits for the scatter of a run, the second in units of the median scatter. More scatter than both means that
# the fit included a contradicted run.
NOISIEST, UNEVEN = 2 * LEAST, 3.0

# A form describes a table as well as the best if its trimmed residuals are less than this many times as large.
AS_WELL = 2.0

# Minimum number of runs for a fit.
FEWEST = 6

# Standard deviation of a normal variate over that of its central seven tenths.
TRIM = 1.8


@dataclass(frozen=True)
class Contradicted:
    """Contradicted losses: a mask ``far`` [n, t], and log losses ``expected`` [n, t] by the best form.

    ``many`` [t] marks targets with too many losses far off; none of them is then set aside.
    """

    far: NDArray[np.bool_]
    expected: Array
    many: NDArray[np.bool_]


def contradicted(
    forms: Mapping[str, ScalingForm],
    points: Mapping[str, Array],
    sizes: Array,
    logs: Array,
    used: NDArray[np.bool_],
) -> Contradicted:
    """Find the losses that no form describes together with the others.

    Args:
        forms: by name.
        points: log points [n, k] as each form reads them.
        sizes: log N and log D [n, 2].
        logs: log losses [n, t].
        used: [n, t] which of them count at all.
    """
    targets = logs.shape[1]
    far, expected = np.ones(logs.shape, dtype=bool), np.zeros(logs.shape)
    size, found = np.full((len(forms), targets), np.inf), []
    for f, name in enumerate(forms):
        law, off, size[f] = _judged(forms[name], points[name], logs, used)
        found.append((law, off))
    for f, (law, off) in enumerate(found):
        well = size[f] <= AS_WELL * np.maximum(size.min(0), NOISE / 4)
        far &= np.where(well, off, True)
        expected = np.where(size[f] <= size.min(0), law, expected)
    far &= used & (_out_of_order(sizes, logs, used) | (np.abs(logs - expected) > UNORDERED))
    count, spare = far.sum(0), used.sum(0)
    many = (count > MOST * spare) | (spare - count < FEWEST)
    return Contradicted(far & ~many, expected, many & (count > 0))


def _out_of_order(sizes: Array, logs: Array, used: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Losses [n, t] above one of a run no larger, or below one of a run no smaller, by more than ``LEAST``."""
    larger = np.asarray((sizes[:, None] >= sizes[None] - 1e-9).all(axis=2))  # [row, whether the other is not larger]
    lowest = np.where(larger[:, :, None] & used[None], logs[None], np.inf).min(1)
    highest = np.where(larger.T[:, :, None] & used[None], logs[None], -np.inf).max(1)
    return np.asarray((logs > lowest + LEAST) | (logs < highest - LEAST))


def _judged(
    form: ScalingForm, points: Array, logs: Array, used: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_], Array]:
    """A robust fit of one form: its log losses [n, t], which losses are far off [n, t], trimmed residuals [t]."""
    n, targets = logs.shape
    centre = points.mean(0)
    rng = np.random.default_rng(0)
    # Random subsets, and all runs.
    tried = np.array([np.ones(n), *(rng.permuted(np.arange(n) < max(FEWEST - 1, SHARE * n)) for _ in range(SUBSETS))])
    weights = (tried[:, None] * used.T).reshape(-1, n)  # [subset * target, n]
    data = np.tile(logs.T, (len(tried), 1))
    mean, std = priors(form, weights, data, points)
    many = starting_points(form, mean, None)[:, [3, 5, 8]]
    each = many.shape[1]

    def solved(start: Array, weights: Array, data: Array, mean: Array, std: Array, scale: Array) -> Fits:
        def residuals(theta: Array, which: NDArray[np.intp]) -> tuple[Array, Array]:
            law, jacobian = form.evaluate(theta, points, centre)
            s = scale[which]
            return (law - data[which]) / s, jacobian / s[:, :, None]

        return fit_many(residuals, start, weights, mean, std, huber=EFFICIENT, iterations=60, tolerance=1e-4)

    def many_times(values: Array) -> Array:
        return np.repeat(values, each, 0)

    flat = many.reshape(-1, many.shape[2])
    scale = np.full((len(flat), n), NOISE)
    first = solved(flat, many_times(weights), many_times(data), many_times(mean), many_times(std), scale)
    law = form.evaluate(first.parameters, points, centre)[0].reshape(len(tried), targets, each, n)
    miss = np.abs(law - logs.T[None, :, None])
    trusted = np.ceil(TRUSTED * used.sum(0)).astype(int)
    trimmed = _trimmed(miss, used.T[None, :, None], trusted[None, :, None])
    best = trimmed.transpose(1, 0, 2).reshape(targets, -1).argmin(1)
    theta = first.parameters.reshape(len(tried), targets, each, -1).transpose(1, 0, 2, 3)
    theta = theta.reshape(targets, len(tried) * each, -1)[np.arange(targets), best]
    # Refine on the runs that it describes best, then on all that are not far off.
    law = form.evaluate(theta, points, centre)[0]
    kept = _nearest(np.abs(law - logs.T), used.T, trusted)
    widen = TRIM
    for _ in range(4):
        mean, std = priors(form, kept.astype(float), logs.T, points)
        law = form.evaluate(theta, points, centre)[0]
        lowest, highest = np.where(kept, logs.T, np.inf).min(1), np.where(kept, logs.T, -np.inf).max(1)
        above = height(law, lowest, highest)
        lean = tilt_of(np.abs(law - logs.T), above, kept.astype(float))[:, None]
        squares = (kept * ((law - logs.T) * np.exp(-lean * above)) ** 2).sum(1)
        freedom = np.maximum(kept.sum(1) - len(form.parameters), 1) + NOISE_COUNT
        scatter = np.sqrt((NOISE_COUNT * NOISE**2 + widen**2 * squares) / freedom)[:, None] * np.exp(lean * above)
        scatter = np.minimum(scatter, np.maximum(NOISIEST, UNEVEN * np.median(scatter, axis=1, keepdims=True)))
        fit = solved(theta, kept.astype(float), logs.T, mean, std, scatter)
        theta = fit.parameters
        law, slopes = form.evaluate(theta, points, centre)
        open_ = np.einsum("tnp,tpq,tnq->tn", slopes, np.linalg.inv(fit.precision), slopes)
        miss = np.abs(law - logs.T)
        off = (miss > FAR * np.sqrt(scatter**2 + np.where(kept, 0.0, open_))) & (miss > LEAST)
        kept, widen = used.T & ~off, 1.0
    miss = np.abs(law - logs.T)
    return law.T, off.T, _trimmed(miss, used.T, trusted)


def _trimmed(miss: Array, used: NDArray[np.bool_], trusted: NDArray[np.int_]) -> Array:
    """Mean of the ``trusted`` smallest errors along the last axis."""
    order = np.sort(np.where(used, miss, np.inf), axis=-1)
    counted = np.arange(order.shape[-1]) < trusted[..., None]
    return np.asarray(np.where(counted, order, 0.0).sum(-1) / trusted)


def _nearest(miss: Array, used: NDArray[np.bool_], trusted: NDArray[np.int_]) -> NDArray[np.bool_]:
    """The ``trusted`` [t] entries with the smallest errors [t, n]."""
    rank = np.where(used, miss, np.inf).argsort(1).argsort(1)
    return np.asarray((rank < trusted[:, None]) & used)
