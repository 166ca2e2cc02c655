"""The basin of the loss in learning rate and batch size: its form, and how it is fitted. See ``law``.

``log L = log floor(N, D) + h``: a Chinchilla floor, which a run with the best learning rate and batch size reaches,
and a basin ``h >= 0`` around these. In ``u = log lr - log lr*(N, D)`` and ``v = log bs - log bs*(N, D)``:

    lr* = c N^a D^b,  bs* = d N^e D^f,  h = N^p D^q (k1 psi(c1, u) + k2 psi(c2, v) + k3 psi(c3, u - rho v))
    psi(c, z) = 2 (exp(c z) - 1 - c z) / c^2         (Varian's 1975 "linex": z^2 for c = 0, else steeper on one side)

So the basin is convex with its lowest point at lr*, bs*. A learning rate that is too high may cost more than one that
is too low by the same factor. The third term ties the learning rate to a power of the batch size (gradient noise scales
with lr / bs^rho).

Trade-offs taken:

- The form is accurate near the floor but not high on the walls, and diverged runs carry no information. So a run has
  the variance ``noise^2 + (FAR h)^2``, and runs more than DIVERGED above a smaller one are left out.
- Three errors are shared between runs. Each (N, D) deviates from the Chinchilla floor, and its best learning rate and
  batch size deviate from their power laws. Runs of one (N, D, bs) may share a third error: a loss on the last batch
  depends on that batch, and with the same data order all these runs end on it. All are random effects; EM estimates
  their sizes, and whitening removes them instead of fitting each.
- Twenty parameters from twenty runs: each has a prior, in logarithms and relative to the centre of the data. Those of
  the exponents are round numbers amid published ones (Li et al. 2025, arXiv 2503.04715: lr N^-0.71 D^0.31, bs D^0.57;
  Bjorck et al. 2024, arXiv 2409.19913: lr N^-0.23 D^-0.32; DeepSeek 2024, arXiv 2401.02954: lr C^-0.125, bs C^0.33;
  Zhang et al. 2024, arXiv 2410.21676: bs D^0.47, without N), with a standard deviation that covers them.

Three choices were tuned on the grids of Li et al., which therefore do not confirm them: the skew of the basin (a
symmetric basin selects runs three times as far from the best), FAR (0.15 to 0.4 are equally good), and PLACE.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.laws.estimator import Array
from armillary.laws.solver import Fits, fit_many

Rows = NDArray[np.intp]
FORMS = ("step-law", "basin")

# The meaning of each number in theta, with the mean and standard deviation of its prior. Floor: logarithms, E as a
# share of the lowest loss, each term as a share of the median loss, at the centre of the data. lr and bs: logarithms at
# the centre, relative to the mean best run. Steepness: logarithm of the relative loss one e-fold away from the best.
PRIORS = {
    "E": (np.log(0.6), 0.5),
    "A": (np.log(0.3), 1.5),
    "B": (np.log(0.3), 1.5),
    "alpha": (np.log(0.4), 0.4),
    "beta": (np.log(0.4), 0.4),
    "lr": (0.0, 1.5),
    "bs": (0.0, 1.5),
    "lr_params": (-0.4, 0.3),
    "lr_tokens": (0.0, 0.3),
    "bs_params": (0.0, 0.2),
    "bs_tokens": (0.5, 0.2),
    "steep_lr": (np.log(0.006), 1.5),
    "steep_bs": (np.log(0.006), 1.5),
    "steep_ratio": (np.log(0.006), 1.5),
    "skew_lr": (0.8, 0.8),
    "skew_bs": (0.4, 0.8),
    "skew_ratio": (0.4, 0.8),
    "rho": (0.75, 0.4),
    "steep_params": (0.0, 0.3),
    "steep_tokens": (0.0, 0.3),
}
NAMES = tuple(PRIORS)
MEANS, STDS = np.array(list(PRIORS.values())).T
OPTIMUM = slice(5, 11)
FIXED = 1e-4  # the standard deviation of a parameter that a form fixes

FAR = 0.25  # error of the form as a share of the height in the basin
DIVERGED, LEAST, TOO_LOW = 0.1, 6, 0.2  # see ``diverged``
# Prior standard deviations: of the log loss of a run, of the error that runs of one (N, D, bs) share, of an (N, D)
# about the floor, and of the log lr* and log bs* of an (N, D) about their power laws. Each is weighted as COUNT
# observations.
NOISE, SHARED, PAIR, PLACE, COUNT = 0.002, 0.0005, 0.003, 0.1, 2.0
BEFORE = (SHARED, PAIR, PLACE, PLACE)
# The parameters in theta that compete with an effect for the same errors. For the effect of a batch size: none. For
# offsets of (N, D): the floor. For positions of the basins in lr or bs: the power law of lr* or bs*.
EFFECTS: tuple[list[int], ...] = ([], [0, 1, 2, 3, 4], [5, 7, 8], [6, 9, 10])
SNAPPED = 0.5  # standard deviation of the best point of a grid about the best of all, in e-folds
HUBER = 2.0  # errors beyond this many of their standard deviations count linearly
ROUNDS = 6  # rounds that alternate between fitting and estimating the sizes of the errors
STEEP, HIGHEST = 6.0, 2.0  # limit for the exponents of a basin, to avoid overflow


def diverged(points: Array, losses: Array) -> NDArray[np.bool_]:
    """Rows of log points [n, 4] with a log loss far above that of a run with no more parameters and tokens.

    Also rows far below all runs that are not smaller: a mistyped loss, which would make all others look diverged. Far
    above means more than DIVERGED, and more than four times the excess of the best quarter of the rows. At least LEAST
    rows are kept.
    """
    low = _too_low(points, losses)
    sizes, which = np.unique(np.round(points[:, :2], 3), axis=0, return_inverse=True)
    which = which.ravel()
    reached = np.full(len(sizes), np.inf)
    np.minimum.at(reached, which[~low], losses[~low])
    smaller = (sizes[:, None] >= sizes[None]).all(2)  # [size, whether the other size is not larger]
    above = np.where(low, np.inf, losses - np.where(smaller, reached, np.inf).min(1)[which])
    limit = max(DIVERGED, 4 * float(np.quantile(above, 0.25)), float(np.sort(above)[min(LEAST, len(above)) - 1]))
    return np.asarray((above > limit) | low)


def _too_low(points: Array, losses: Array) -> NDArray[np.bool_]:
    """Rows with a log loss more than TOO_LOW below all others of their (N, D) and below all larger runs."""
    low = np.zeros(len(losses), dtype=bool)
    sizes = np.round(points[:, :2], 3)
    for i in range(len(losses)):
        larger = (sizes >= sizes[i]).all(1)
        larger[i] = False
        low[i] = larger.sum() >= 3 and losses[i] < losses[larger].min() - TOO_LOW
    return low if low.sum() * 10 <= len(losses) else np.zeros_like(low)


def lowest(theta: Array, size: Array) -> Array:
    """log lr*, log bs* [P, 2] about the centre at one centred log (N, D)."""
    t = theta[:, OPTIMUM]
    return np.asarray(t[:, :2] + t[:, [2, 4]] * size[0] + t[:, [3, 5]] * size[1])


def floor(theta: Array, x: Array) -> Array:
    """Log floors [P, m] at centred log points x [m, 4]."""
    return np.asarray(np.logaddexp.reduce(floor_terms(theta, x), axis=0))


def floor_terms(theta: Array, x: Array) -> Array:
    """Logarithms of the three terms of the floor, [3, P, m]."""
    power = np.exp(theta[:, 3:5])
    return np.stack(
        [
            np.broadcast_to(theta[:, 0:1], (len(theta), len(x))),
            np.minimum(theta[:, 1:2] - power[:, 0:1] * x[:, 0], 300.0),
            np.minimum(theta[:, 2:3] - power[:, 1:2] * x[:, 1], 300.0),
        ]
    )


def linex(skew: Array, z: Array) -> tuple[Array, Array, Array]:
    """psi(skew, z), with its derivatives by z and by the skew; beyond ``skew * z = STEEP`` it is quadratic."""
    a = np.clip(skew * z, -STEEP, STEEP)
    small = np.abs(a) < 0.02
    b = np.where(small, 1.0, a)
    grown = np.expm1(b)
    f = np.where(small, 1 / 2 + a / 6 + a * a / 24, (grown - b) / b**2)
    slope = np.where(small, 1 / 6 + a / 12 + a * a / 40, ((grown + 1) * (b - 2) + b + 2) / b**3)
    slope = np.where(np.abs(a) < STEEP, slope, 0.0)
    return 2 * z * z * f, 4 * z * f + 2 * z * z * slope * skew, 2 * z**3 * slope


def basin_terms(theta: Array, x: Array) -> tuple[Array, list[tuple[Array, Array, Array]], Array]:
    """Factors [3, P, m] of the three terms, the terms with their derivatives (``linex``), and v [P, m]."""
    t = {name: theta[:, k : k + 1] for k, name in enumerate(NAMES)}
    u = x[:, 2] - t["lr"] - t["lr_params"] * x[:, 0] - t["lr_tokens"] * x[:, 1]
    v = x[:, 3] - t["bs"] - t["bs_params"] * x[:, 0] - t["bs_tokens"] * x[:, 1]
    scale = np.minimum(t["steep_params"] * x[:, 0] + t["steep_tokens"] * x[:, 1], 20.0)
    factor = np.exp(np.stack([scale + t["steep_lr"], scale + t["steep_bs"], scale + t["steep_ratio"]]))
    along = (u, v, u - t["rho"] * v)
    terms = [linex(t[skew], z) for skew, z in zip(("skew_lr", "skew_bs", "skew_ratio"), along, strict=True)]
    return factor, terms, v


def height(theta: Array, x: Array) -> Array:
    """Relative loss above the floor, as a logarithm, [P, m]; at most HIGHEST."""
    factor, terms, _ = basin_terms(theta, x)
    return np.asarray(np.minimum(sum(f * term[0] for f, term in zip(factor, terms, strict=True)), HIGHEST))


def jacobian(theta: Array, x: Array) -> Array:
    """Derivatives [P, m, 20] of the log loss."""
    parts = np.exp(floor_terms(theta, x))
    shares = parts / parts.sum(0)
    power = np.exp(theta[:, 3:5])
    factor, terms, v = basin_terms(theta, x)
    heights = [f * term[0] for f, term in zip(factor, terms, strict=True)]
    slope = [f * term[1] for f, term in zip(factor, terms, strict=True)]
    skew = [f * term[2] for f, term in zip(factor, terms, strict=True)]
    rho = theta[:, NAMES.index("rho"), None]
    by_lr, by_bs = -(slope[0] + slope[2]), -(slope[1] - rho * slope[2])
    n, d, total = x[:, 0], x[:, 1], sum(heights)
    columns = [*shares, -shares[1] * power[:, 0:1] * n, -shares[2] * power[:, 1:2] * d]
    columns += [by_lr, by_bs, by_lr * n, by_lr * d, by_bs * n, by_bs * d]
    columns += [*heights, *skew, -slope[2] * v, total * n, total * d]
    return np.stack(columns, axis=-1)


class Whitening:
    """Transforms errors of runs, some of them shared, into independent errors of variance 1.

    Errors ``r`` are ``s_i e_i`` and, for each effect, ``std * g_i * b`` with one ``b`` for each of its groups; e and b
    are normal of variance 1. Then ``I - k a a'`` applied to ``r_i / s_i``, with ``a_i = g_i / s_i``, leaves errors
    without that effect. The effects are removed one after another. Rows must be sorted such that groups are contiguous.

    Args:
        spread: [n] the s.
        effects: (std, first row of each group, [n] the g) each; groups of the first are subsets of the groups of the
            others, and all others have the same groups.
    """

    def __init__(self, spread: Array, effects: Sequence[tuple[float, Rows, Array]]) -> None:
        self._inverse = 1 / spread
        self._effects = effects
        self._levels: list[tuple[Rows, Rows, Array, Array, Array]] = []
        for std, starts, vector in effects:
            a = self._apply(vector * self._inverse, range(len(self._levels)))
            grown = 1 + std**2 * np.add.reduceat(a * a, starts)
            length = np.diff(np.append(starts, len(a)))
            self._levels.append((starts, length, a, std**2 / (grown + np.sqrt(grown)), std**2 / grown))

    def _apply(self, values: Array, levels: Iterable[int]) -> Array:
        for level in levels:
            starts, length, a, k, _ = self._levels[level]
            values = values - a * np.repeat(k * np.add.reduceat(a * values, starts, axis=-1), length, axis=-1)
        return values

    def __call__(self, values: Array) -> Array:
        """Whitened errors [..., n]."""
        return self._apply(values * self._inverse, range(len(self._levels)))

    def split(self, errors: Array) -> tuple[Array, list[tuple[Array, Array]]]:
        """Split errors [n] into expected squares of the runs' own [n], and mean and variance of each effect's groups.

        This is the E step of EM for the sizes of random effects (Laird and Ware 1982).
        """
        count = len(self._levels)
        solved = self._inverse * self._apply(self(errors), range(count - 1, -1, -1))  # inverse covariance times errors
        # The inverse covariance is diag(1 / s^2) less c b b' for each level.
        back = [self._inverse * self._apply(a, range(k - 1, -1, -1)) for k, (_, _, a, _, _) in enumerate(self._levels)]
        inverse = self._inverse**2
        for b, (_, length, _, _, c) in zip(back, self._levels, strict=True):
            inverse = inverse - np.repeat(c, length) * b * b
        own = self._inverse**-2
        runs = (own * solved) ** 2 + own - own**2 * inverse
        shared = []
        for k, (std, starts, vector) in enumerate(self._effects):
            if k == 0:
                seen = np.add.reduceat((vector * self._inverse) ** 2, starts)
                for b, (outer, _, _, _, c) in zip(back, self._levels, strict=True):
                    which = np.searchsorted(outer, starts, side="right") - 1
                    seen = seen - c[which] * np.add.reduceat(vector * b, starts) ** 2
            else:
                seen = np.add.reduceat(self(vector) ** 2, starts)
            shared.append((std**2 * np.add.reduceat(vector * solved, starts), std**2 - std**4 * seen))
        return runs, shared


@dataclass(frozen=True)
class Fitted:
    """A form fitted to rows, with the values that draws and predictions need.

    Attributes:
        theta, precision: parameters in the order of NAMES [20], and their inverse covariance.
        prior, width, about: means and standard deviations of the priors; ``about`` is the uncertainty of a mean, which
            exceeds ``width`` if a form fixes the number.
        centre: of the log points, [4].
        x, losses, whiten: the sorted rows, about the centre, and their errors.
        noise, shared, pair, place, far: sizes of the errors; ``far`` is relative to the height in the basin.
        freedom: degrees of freedom of the noise.
        pairs, offsets, offset_std: the fitted log (N, D) [pairs, 2], and the deviation of each from the law in log
            floor, log lr*, log bs* [pairs, 3], with standard deviations.
    """

    theta: Array
    precision: Array
    prior: Array
    width: Array
    about: Array
    centre: Array
    x: Array
    losses: Array
    whiten: Whitening
    noise: float
    shared: float
    pair: float
    place: tuple[float, float]
    far: float
    freedom: float
    pairs: Array
    offsets: Array
    offset_std: Array


def fit(form: str, points: Array, losses: Array, noise: float | None) -> Fitted:
    """Fit a form to log points [n, 4] and log losses [n]; ``noise`` is the known noise, if any."""
    levels = np.round(points, 3)
    order = np.lexsort((levels[:, 2], levels[:, 3], levels[:, 1], levels[:, 0]))
    points, losses, levels = points[order], losses[order], levels[order]
    changes = np.abs(np.diff(levels, axis=0)) > 0
    pairs = np.append(0, 1 + np.flatnonzero(changes[:, :2].any(1)))
    batches = np.append(0, 1 + np.flatnonzero(changes[:, [0, 1, 3]].any(1)))
    ends = np.append(pairs[1:], len(losses))
    best = np.array([a + losses[a:b].argmin() for a, b in zip(pairs, ends, strict=True)])
    centre = points[best].mean(0)
    x = points - centre
    prior, width, about = MEANS.copy(), STDS.copy(), STDS.copy()
    prior[0] += losses.min()
    prior[1:3] += np.median(losses)
    if form == "step-law":
        prior[OPTIMUM], about[OPTIMUM] = through_best(x[best])
        width[OPTIMUM] = FIXED
        for name in ("skew_lr", "skew_bs", "skew_ratio", "steep_params", "steep_tokens"):
            k = NAMES.index(name)
            prior[k], width[k], about[k] = 0.0, FIXED, FIXED

    own, far = (NOISE if noise is None else noise), FAR
    stds = [NOISE, PAIR, PLACE, PLACE]
    above = losses - np.repeat(losses[best], ends - pairs)
    slopes = np.ones((4, len(x)))
    slopes[2:] = 0.0  # the basin's walls are still unknown
    start = np.tile(prior, (4, 1))
    start[:, NAMES.index("rho")] = [0.5, 1.0, 0.5, 1.0]
    for name in ("steep_lr", "steep_bs", "steep_ratio"):
        start[2:, NAMES.index(name)] -= 1.5
    for _ in range(ROUNDS):
        spread = np.sqrt(own**2 + (FAR * above) ** 2)
        groups = (batches, pairs, pairs, pairs)
        whiten = Whitening(spread, list(zip(stds, groups, slopes, strict=True)))
        fits = _minimise(whiten, x, losses, start, prior, width)
        chosen = fits.objective.argmin()
        start = theta = fits.parameters[chosen : chosen + 1]
        above = height(theta, x)[0]
        runs, shared = whiten.split(losses - floor(theta, x)[0] - above)
        # The fit has absorbed some of the errors.
        freedom = max(len(x) - float(fits.effective_parameters[chosen]), 1.0)
        near = own**2 / spread**2
        relative = len(x) / freedom * runs / spread**2
        far = FAR * np.sqrt((COUNT + ((1 - near) * relative).sum()) / (COUNT + (1 - near).sum()))
        if noise is None:
            own = np.sqrt((COUNT * NOISE**2 + own**2 * (near * relative).sum()) / (COUNT + near.sum()))
        taken = np.diag(np.linalg.solve(fits.precision[chosen], fits.data_precision[chosen]))
        for k, (mean, variance) in enumerate(shared):
            size = len(mean)
            left = max(size - float(taken[EFFECTS[k]].sum()), 1.0)
            square = size / left * (mean**2).sum() + variance.sum()
            stds[k] = float(np.sqrt((COUNT * BEFORE[k] ** 2 + square) / (COUNT + size)))
        slopes[2:] = jacobian(theta, x)[0, :, 5:7].T
    return Fitted(
        theta=theta[0],
        precision=fits.precision[chosen],
        prior=prior,
        width=width,
        about=about,
        centre=centre,
        x=x,
        losses=losses,
        whiten=whiten,
        noise=float(own),
        shared=stds[0],
        pair=stds[1],
        place=(stds[2], stds[3]),
        far=float(far),
        freedom=COUNT + freedom,
        pairs=points[pairs, :2],
        offsets=np.stack([mean for mean, _ in shared[1:]], axis=1),
        offset_std=np.sqrt(np.stack([variance for _, variance in shared[1:]], axis=1)),
    )


def _minimise(
    whiten: Whitening,
    x: Array,
    losses: Array,
    start: Array,
    prior: Array,
    width: Array,
    disturbed: Array | None = None,
) -> Fits:
    """Fit from each start [P, 20]; prior means [20] or [P, 20]; whitened losses are moved by ``disturbed`` [P, n]."""

    def residuals(theta: Array, which: Rows) -> tuple[Array, Array]:
        errors = whiten(floor(theta, x) + height(theta, x) - losses)
        slopes = whiten(jacobian(theta, x).transpose(0, 2, 1)).transpose(0, 2, 1)
        return errors if disturbed is None else errors - disturbed[which], slopes

    means = np.broadcast_to(prior, start.shape)
    weights = np.ones((len(start), len(x)))
    return fit_many(residuals, start, weights, means, width, huber=HUBER, iterations=60, tolerance=1e-4)


def draws(fitted: Fitted, count: int, seed: int) -> Array:
    """Posterior draws of theta [count, 20], by disturbing losses and priors (see ``solver``)."""
    rng = np.random.default_rng(seed)
    disturbed = rng.standard_normal((count, len(fitted.x)))
    prior = fitted.prior + fitted.about * rng.standard_normal((count, len(NAMES)))
    start = np.tile(fitted.theta, (count, 1))
    return _minimise(fitted.whiten, fitted.x, fitted.losses, start, prior, fitted.width, disturbed).parameters


def through_best(best: Array) -> tuple[Array, Array]:
    """Step Law: lr* = c N^a D^b and bs* = d D^f through the best runs [pairs, 4], with the priors of the exponents.

    Returns the optimum's six numbers in the order of NAMES and their standard deviations.
    """
    design = np.column_stack([np.ones(len(best)), best[:, :2]])
    means, stds = [], []
    for column, names in ((2, ("lr", "lr_params", "lr_tokens")), (3, ("bs", "bs_params", "bs_tokens"))):
        prior, width = np.array([PRIORS[name] for name in names]).T
        if column == 3:
            prior[1], width[1] = 0.0, FIXED
        precision = design.T @ design / SNAPPED**2 + np.diag(width**-2)
        means.append(np.linalg.solve(precision, design.T @ best[:, column] / SNAPPED**2 + prior / width**2))
        stds.append(np.sqrt(np.diag(np.linalg.inv(precision))))
    order = [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (1, 2)]
    return np.array([means[a][b] for a, b in order]), np.array([stds[a][b] for a, b in order])
