"""Fitting one form of scaling law to several targets and several subsets of the runs at once.

Several corpora (one loss per run on each), several left-out sets of large runs and many starting points are fitted as
one batch of small problems (``solver``).

Trade-offs taken:

- The noise is fitted with the law and sets the weight of the priors. Noise is all scatter around the law, including
  misfit, so that a bad fit is not more certain than a good one.
- Targets of the same runs share strength through the prior of the parameters that shape a law (exponents, not the size
  of terms): its mean and width are learned from the targets themselves (empirical Bayes), never narrower than ``POOL``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.laws.estimator import Array
from armillary.laws.scaling.forms import ScalingForm, floor_share
from armillary.laws.solver import Fits, fit_many

# Prior of the relative scatter of a run around the law, and its weight as a number of observations.
NOISE, NOISE_COUNT = 0.004, 2.0

# Log sizes that differ by less are the same, and no noise is taken to be smaller than LEAST.
SAME, LEAST = 2e-3, 1e-4

# Residuals beyond this share of the loss count linearly, as in the published fits. This is far inside the noise, so
# that the fit is one of medians: robust with hundreds of points, inefficient with few. Up to MANY points the threshold
# is the one with 95 % efficiency for normal noise (Huber 1964), in units of the noise; beyond, it falls to the
# published value.
HUBER = 1e-3
EFFICIENT = 1.345
MANY = 30

# Runs of high loss (small, or trained on few tokens) scatter more around any law. Growth of log scatter per unit of log
# loss: the values to try, and the width of the prior around 0.
TILTS = np.linspace(0.0, 8.0, 17)
TILT_STD = 3.0

# Least width of a prior that was learned from other targets, on the scale of each kind of parameter.
POOL = {"floor": 0.02, "term": 0.1, "log": 0.2, "plain": 0.02}

# Starts: share of the irreducible loss in the lowest loss, and pairs of exponents.
STARTS = [(e, a, b) for e in (0.3, 0.6, 0.85) for a in (0.25, 0.5) for b in (0.25, 0.5)]


@dataclass(frozen=True)
class Solution:
    """A form fitted to t targets on g subsets of the runs.

    Attributes:
        theta: parameters [g, t, p].
        scale: relative scatter around the law of a run with the lowest loss [g, t].
        tilt: growth of the logarithm of the scatter per unit of log loss [g, t].
        freedom: degrees of freedom of ``scale`` [g, t].
        precision: of the parameters [g, t, p, p].
        prior_mean, prior_std: of the parameters [g, t, p].
        prior_common: covariance of the learned means of the priors, the same for all targets [g, p, p].
    """

    theta: Array
    scale: Array
    tilt: Array
    freedom: Array
    precision: Array
    prior_mean: Array
    prior_std: Array
    prior_common: Array


def fit_form(
    form: ScalingForm,
    points: Array,
    losses: Array,
    subsets: NDArray[np.bool_],
    *,
    noise: Array,
    tilted: bool,
    near: Array | None = None,
    pooled: tuple[str, ...] = ("log", "plain"),
) -> Solution:
    """Fit ``form`` to log losses [n, t] at log points [n, k] of each of the ``subsets`` [g, n], or [g, t, n] by target.

    Args:
        noise: relative standard deviation of a run before any fit, [t].
        tilted: whether runs of high loss may scatter more, and so have less weight. near: parameters [t, p] to start
        at, with two of the usual starts; None uses all usual starts.
        pooled: kinds of parameters whose prior the targets share.
    """
    groups, targets = len(subsets), losses.shape[1]
    problems = groups * targets
    whole = subsets if subsets.ndim == 3 else np.repeat(subsets[:, None], targets, 1)
    weights = whole.reshape(problems, len(points)).astype(float)
    data = np.tile(losses.T, (groups, 1))
    centre = points.mean(0)
    mean, std = priors(form, weights, data, points)
    base = mean
    starts = starting_points(form, mean, near)
    many = starts.shape[1]
    known = np.tile(noise, groups)
    lowest, highest = np.where(weights > 0, data, np.inf).min(1), np.where(weights > 0, data, -np.inf).max(1)
    scatter = np.repeat(known[:, None], len(points), 1)
    first = _solve(
        form,
        points,
        centre,
        np.repeat(data, many, 0),
        np.repeat(scatter, many, 0),
        starts.reshape(problems * many, len(form.parameters)),
        np.repeat(weights, many, 0),
        np.repeat(mean, many, 0),
        np.repeat(std, many, 0),
    )
    chosen = np.arange(problems) * many + first.objective.reshape(problems, many).argmin(1)
    fit = Fits(*(getattr(first, field)[chosen] for field in Fits.__dataclass_fields__))
    common = np.zeros((groups, len(form.parameters), len(form.parameters)))
    # The noise sets the weight of the priors and follows from the fit, and the targets determine their shared priors,
    # so a few rounds are needed to converge.
    for turn in range(5):
        law = form.evaluate(fit.parameters, points, centre)[0]
        above = height(law, lowest, highest)
        tilt = tilt_of(np.abs(law - data), above, weights) if tilted else np.zeros(problems)
        freedom = NOISE_COUNT + np.maximum(weights.sum(1) - fit.effective_parameters, 0.0)
        squares = (weights * ((law - data) * np.exp(-tilt[:, None] * above)) ** 2).sum(1)
        scale = np.sqrt((NOISE_COUNT * known**2 + squares) / freedom)
        scatter = scale[:, None] * np.exp(tilt[:, None] * above)
        if targets > 1 and turn > 0:
            mean, std, common = _pool(form, fit, base, mean, std, groups, pooled)
        fit = _solve(form, points, centre, data, scatter, fit.parameters, weights, mean, std)
    shape, p = (groups, targets), len(form.parameters)
    return Solution(
        fit.parameters.reshape(*shape, p),
        scale.reshape(shape),
        tilt.reshape(shape),
        freedom.reshape(shape),
        fit.precision.reshape(*shape, p, p),
        mean.reshape(*shape, p),
        std.reshape(*shape, p),
        common,
    )


def draw(
    form: ScalingForm,
    points: Array,
    losses: Array,
    solution: Solution,
    count: int,
    rng: np.random.Generator,
    weights: Array | None = None,
) -> Array:
    """``count`` posterior draws [count, t, p] of the parameters for the first subset of ``solution``.

    Log losses are perturbed by their scatter and priors by their width, and the law is fitted again (see ``solver``).
    Targets are perturbed independently, except for the uncertainty of the means of their priors, which they share.
    ``weights`` [t, n] are 0 for runs without a loss of this target.
    """
    n, targets = losses.shape
    theta, centre = np.tile(solution.theta[0], (count, 1)), points.mean(0)
    above = height(form.evaluate(solution.theta[0], points, centre)[0], losses.min(0), losses.max(0))
    scatter = np.tile(solution.scale[0][:, None] * np.exp(solution.tilt[0][:, None] * above), (count, 1))
    data = np.tile(losses.T, (count, 1)) + scatter * rng.standard_normal((count * targets, n))
    mean, std = (np.tile(prior[0], (count, 1)) for prior in (solution.prior_mean, solution.prior_std))
    mean = mean + std * rng.standard_normal(mean.shape)
    values, vectors = np.linalg.eigh(solution.prior_common[0])
    shift = rng.standard_normal((count, len(values))) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    mean = mean + np.repeat(shift, targets, 0)
    seen = np.ones_like(data) if weights is None else np.tile(weights, (count, 1))
    fits = _solve(form, points, centre, data, scatter, theta, seen, mean, std, tolerance=1e-5)
    return fits.parameters.reshape(count, targets, -1)


def height(law: Array, lowest: Array, highest: Array) -> Array:
    """Height of log losses [P, n] above the lowest measured one [P], limited to the measured range."""
    return np.asarray(np.clip(law, lowest[:, None], highest[:, None]) - lowest[:, None])


def seed_noise(points: Array, losses: Array) -> Array:
    """Relative standard deviation of one run [t] from runs at (almost) the same log points [n, k]; else ``NOISE``.

    A geometric mean of the guess and of the estimate from repeats, weighted by the estimate's degrees of freedom.
    """
    _, label = np.unique(np.round(points / SAME), axis=0, return_inverse=True)
    label = label.ravel()
    size = np.bincount(label)
    mean = np.stack([np.bincount(label, z) / size for z in losses.T], axis=1)
    freedom = len(points) - len(size)
    if freedom == 0:
        return np.full(losses.shape[1], NOISE)
    shown = np.maximum(np.sqrt(((losses - mean[label]) ** 2).sum(0) / freedom), LEAST)
    return np.asarray(np.exp((np.log(NOISE) + freedom * np.log(shown)) / (1 + freedom)))


def reach(sizes: Array, fitted: Array) -> Array:
    """Distance [m, 2] of log sizes beyond the fitted ones in N and in D, proportional to the variance of errors.

    For f e-folds it is (f + f^2) / 2: the error of a wrong form accumulates in one direction (f^2), but may change
    direction (f). If compute exceeds the largest fitted one by more than N and D together, the rest counts as D's.
    Inside the ladder's ranges and below its largest compute both are 0.
    """
    beyond = np.maximum(sizes - fitted.max(0), 0.0)
    compute = sizes.sum(1) - fitted.sum(1).max()
    beyond[:, 1] += np.maximum(compute - beyond.sum(1), 0.0)
    return np.asarray((beyond + beyond**2) / 2)


def tilt_of(miss: Array, above: Array, weights: Array) -> Array:
    """The growth of the logarithm of the scatter with the height of a run, [P], each in ``TILTS``.

    The maximum of a Laplace likelihood, which outliers do not dominate, with a normal prior.
    """
    grid = TILTS[:, None, None]
    count = weights.sum(1)
    mean = (weights * miss * np.exp(-grid * above)).sum(2) / count + 1e-12
    cost = count * np.log(mean) + TILTS[:, None] * (weights * above).sum(1) + (TILTS[:, None] / TILT_STD) ** 2 / 2
    return np.asarray(TILTS[cost.argmin(0)])


def _solve(
    form: ScalingForm,
    points: Array,
    centre: Array,
    data: Array,
    scatter: Array,
    start: Array,
    weights: Array,
    prior_mean: Array,
    prior_std: Array,
    tolerance: float = 1e-7,
) -> Fits:
    def residuals(theta: Array, which: NDArray[np.intp]) -> tuple[Array, Array]:
        law, jacobian = form.evaluate(theta, points, centre)
        s = scatter[which]
        return (law - data[which]) / s, jacobian / s[:, :, None]

    huber = np.maximum(HUBER / np.median(scatter, axis=1), EFFICIENT * np.minimum(1.0, MANY / weights.sum(1)))
    return fit_many(residuals, start, weights, prior_mean, prior_std, huber=huber, iterations=200, tolerance=tolerance)


def priors(form: ScalingForm, weights: Array, data: Array, points: Array) -> tuple[Array, Array]:
    """Means and standard deviations [P, p] of the priors, for problems that use the entries with positive weight.

    That of the irreducible loss depends on the size and tokens (log ``points``) of the run with the lowest loss.
    """
    seen = np.where(weights > 0, data, np.nan)
    lowest = points[np.nanargmin(seen, axis=1)]
    params = lowest[:, form.features.index("params" if "params" in form.features else "active_params")]
    share = floor_share(params, lowest[:, form.features.index("tokens")])
    base = {"floor": np.nanmin(seen, axis=1) + np.log(share), "term": np.nanmedian(seen, axis=1)}
    mean = np.stack([base.get(p.kind, np.zeros(len(data))) + p.mean for p in form.parameters], axis=1)
    return mean, np.broadcast_to([p.std for p in form.parameters], mean.shape)


def starting_points(form: ScalingForm, mean: Array, near: Array | None) -> Array:
    """Starting points of each problem, [P, starts, p]: around its prior's mean, or ``near`` with two of these."""
    floor, a, b, alpha = (
        next(k for k, p in enumerate(form.parameters) if p.name == name) for name in ("E", "A", "B", "alpha")
    )
    beta = next((k for k, p in enumerate(form.parameters) if p.name == "beta"), alpha)
    starts = []
    for e, first, second in STARTS if near is None else (STARTS[3], STARTS[8]):
        start = mean.copy()
        start[:, floor] += np.log(e) - form.parameters[floor].mean
        start[:, a] += np.log((1 - e) / 2) - form.parameters[a].mean
        start[:, b] += np.log((1 - e) / 2) - form.parameters[b].mean
        start[:, beta] = np.log(second)
        start[:, alpha] = np.log(first)
        starts.append(start)
    if near is not None:
        starts.append(np.tile(near, (len(mean) // len(near), 1)))
    return np.stack(starts, axis=1)


def _pool(
    form: ScalingForm, fit: Fits, first: Array, mean: Array, std: Array, groups: int, kinds: tuple[str, ...]
) -> tuple[Array, Array, Array]:
    """Priors of parameters of some ``kinds``, learned over the targets of each group.

    Returns their means and widths [groups * t, p], and the covariance [groups, p, p] of the learned means. ``first``
    are the means before anything was learned, ``mean`` and ``std`` the present priors, all [groups * t, p].

    Empirical Bayes with each target's likelihood as a normal with its whole covariance: with few runs the parameters of
    a target are nearly collinear, and their means, if learned separately, would overshoot from round to round.
    """
    shared = np.array([p.kind in kinds for p in form.parameters])
    widest = np.array([p.std for p in form.parameters])
    least = np.array([POOL[p.kind] for p in form.parameters]) ** 2
    shape = (groups, -1, len(widest))
    centre = first.reshape(shape).mean(1)
    # The likelihood alone, as precision and precision times mean: remove the current prior of shared parameters.
    pull = np.where(shared, 1 / std.reshape(shape) ** 2, 0.0)
    posterior = fit.precision.reshape(groups, -1, len(widest), len(widest))
    values, vectors = np.linalg.eigh(posterior - pull[..., None] * np.eye(len(widest)))
    alone = np.einsum("gtpk,gtk,gtqk->gtpq", vectors, np.maximum(values, 1e-6), vectors)
    evidence = np.einsum("gtpq,gtq->gtp", posterior, fit.parameters.reshape(shape)) - pull * mean.reshape(shape)
    between = np.where(shared, np.maximum(std.reshape(shape)[:, 0] ** 2, least), np.inf)
    for _ in range(20):
        inverse = 1 / between[:, None, :, None] * np.eye(len(widest))
        covariance = np.linalg.inv(alone + inverse)
        # The information of each target on the mean, with its own parameters integrated out; the first prior is that of
        # the mean.
        known = (inverse - inverse @ covariance @ inverse).sum(1) + np.diag(1 / widest**2)
        gathered = np.einsum("gtpq,gtqr,gtr->gp", np.broadcast_to(inverse, covariance.shape), covariance, evidence)
        middle = np.linalg.solve(known, (gathered + centre / widest**2)[..., None])[..., 0]
        theta = np.einsum("gtpq,gtq->gtp", covariance, evidence + middle[:, None] / between[:, None])
        spread = ((theta - middle[:, None]) ** 2 + np.einsum("gtpp->gtp", covariance)).mean(1)
        between = np.where(shared, np.clip(spread, least, np.maximum(widest**2, least)), np.inf)
    new_mean = np.where(shared, np.broadcast_to(middle[:, None], theta.shape), mean.reshape(shape))
    new_std = np.where(shared, np.broadcast_to(np.sqrt(between)[:, None], theta.shape), std.reshape(shape))
    both = shared[:, None] & shared
    sure = np.where(both, np.linalg.inv(known), 0.0)
    return new_mean.reshape(mean.shape), new_std.reshape(std.shape), sure
