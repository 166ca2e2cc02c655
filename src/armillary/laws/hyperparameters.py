"""Learning rate and batch size: the loss that a run at (N, D, lr, bs) reaches, and which lr and bs are best.

``log L = log floor(N, D) + h``: a Chinchilla floor, which a run with the best learning rate and batch size reaches,
and a basin ``h >= 0`` around these. In ``u = log lr - log lr*(N, D)`` and ``v = log bs - log bs*(N, D)``:

    lr* = c N^a D^b,  bs* = d N^e D^f,  h = N^p D^q (k1 psi(c1, u) + k2 psi(c2, v) + k3 psi(c3, u - rho v))
    psi(c, z) = 2 (exp(c z) - 1 - c z) / c^2         (Varian's 1975 "linex": z^2 for c = 0; steeper on one side else)

So the basin is convex with its lowest point at lr*, bs*; too high a learning rate may cost more than one as much too
low; and the third term ties the learning rate to a power of the batch size (gradient noise goes with lr / bs^rho).

Trade-offs taken:

- Near the floor the form is right, far up its walls it is not, and diverged runs say nothing: a run counts with the
  variance ``noise^2 + (FAR h)^2``, and runs that lie more than DIVERGED above the best of their (N, D) are left out.
- Each (N, D) is off the Chinchilla floor by some amount of its own, and runs of one (N, D, bs) may share an error: a
  loss read off the last batch is that batch's loss, and with the same seed they all end on the same batch. Both are
  random effects whose sizes are estimated; they are taken out by whitening, not fitted one by one.
- Twenty parameters from twenty runs: each has a prior, in logarithms and relative to the centre of the data. Those of
  the exponents are round numbers amid published ones (Li et al. 2025, arXiv 2503.04715: lr N^-0.71 D^0.31, bs D^0.57;
  Bjorck et al. 2024, arXiv 2409.19913: lr N^-0.23 D^-0.32; DeepSeek 2024, arXiv 2401.02954: lr C^-0.125, bs C^0.33;
  Zhang et al. 2024, arXiv 2410.21676: bs D^0.47, without N), a standard deviation covering them. ``identified_`` tells
  what the data say beyond the prior.
- The predicted basin is the mean over the draws: where lr* is uncertain and the basin is steep on one side, the run
  that is best on average keeps away from that side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from armillary.laws.estimator import (
    Array,
    Prediction,
    checked_interval,
    checked_positive,
    require_fitted,
)
from armillary.laws.solver import Fits, fit_many
from armillary.recipe import UsageError

COLUMNS = ("params", "tokens", "lr", "bs")
FORMS = ("step-law", "basin")

# What each number in theta is, with the mean and standard deviation of its prior. Floor: logarithms, E as a share of
# the lowest loss, each term as a share of the median loss, at the centre of the data. lr and bs: logarithms at the
# centre, relative to the mean best run. Steepness: logarithm of the relative loss one e-fold away from the best.
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
FLOOR, OPTIMUM = slice(0, 5), slice(5, 11)
FIXED = 1e-4  # the standard deviation of what a form holds fixed

FAR = 0.25
DIVERGED = 0.1
# Before any run is seen, relative standard deviations: of a run, of what runs of one (N, D, bs) share, of an (N, D)
# about the floor, and of the floor's miss at one e-fold of extrapolation. Each counts as so many observations.
NOISE, SHARED, PAIR, MISS, COUNT = 0.002, 0.0005, 0.003, 0.003, 2.0
SNAPPED = 0.5  # standard deviation of the best point of a grid about the best of all, in e-folds
HUBER = 2.0
ROUNDS = 8
FLAT = 1e-3  # the loss one may give away, see HyperparameterOptimum
STEEP, HIGHEST = 6.0, 2.0  # where the exponentials of a basin end, so that nothing overflows

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class HeldOutGrid:
    """The largest runs left out, predicted from the others.

    Attributes:
        what: which were left out, such as ``params >= 4.3e+08``.
        form: the form that predicted.
        rows: their rows in the table given to ``fit`` (without diverged ones), [k].
        predicted: losses by the law fitted without them, [k].
        measured: their losses, [k].
        extrapolation: their compute N * D over the largest compute that was kept, [k].
        regret: for each (N, D) left out with at least four runs, by how much of the loss the run that the law takes
            for best is worse than the best, [pairs].
        shape_error: root mean square of relative errors near the floor, after taking out each (N, D)'s own mean.
    """

    what: str
    form: str
    rows: NDArray[np.intp]
    predicted: Array
    measured: Array
    extrapolation: Array
    regret: Array
    shape_error: float


@dataclass(frozen=True)
class HyperparameterOptimum:
    """The best learning rate and batch size at one (N, D).

    Attributes:
        lr, bs: best values with intervals, scalars.
        loss: predicted loss of one run there, with its interval.
        lr_flat: learning rates, low and high, that cost less than 0.1 % of the loss at the best batch size.
        bs_flat: the same for the batch size at the best learning rate.
        extrapolation: compute N * D over the largest compute fitted.
    """

    lr: Prediction
    bs: Prediction
    loss: Prediction
    lr_flat: tuple[float, float]
    bs_flat: tuple[float, float]
    extrapolation: float


class HyperparameterLaw:
    """Loss at (N, D, learning rate, batch size), and the best learning rate and batch size at any (N, D).

    Forms: ``step-law`` (Li et al. 2025): lr* = c N^a D^b and bs* = d D^f through the best run of each (N, D), and a
    symmetric basin of common curvature around them; ``basin``: everything above, fitted to all runs at once;
    ``auto``: the one that foretells better the largest (N, D) when these are left out.

    Args:
        form: ``step-law``, ``basin`` or ``auto``.
        bootstraps: draws for the uncertainty of the parameters.
        seed: of these draws.

    Attributes:
        form_: the form that is used.
        parameters_: floor ``E``, ``A``, ``B``, ``alpha``, ``beta`` as in Chinchilla's law; ``lr_coefficient``,
            ``lr_params``, ``lr_tokens``: lr* = coefficient * N^params * D^tokens, and the same for ``bs``; ``steep_*``,
            ``skew_*``, ``rho``, ``steep_params``, ``steep_tokens`` of the basin.
        draws_: the same for each draw, arrays [bootstraps].
        identified_: for each fitted number the share of its prior's variance that the data removed, in [0, 1]. Near 0
            the prior speaks: about ``lr_params`` if all runs have the same N, about ``bs`` if they have one batch size.
        noise_: relative standard deviation of one run, near the floor; ``shared_noise_`` of what runs of one (N, D,
            batch size) share.
        pair_std_: relative standard deviation of an (N, D) about the floor.
        miss_per_efold_: relative miss of the floor (standard deviation) at one e-fold of extrapolation.
        diverged_: rows of X that were left out because they lie far above the best run of their (N, D).
        held_out_: largest runs left out, for each form that was tried, a list of ``HeldOutGrid``.
    """

    features = COLUMNS

    def __init__(self, *, form: str = "auto", bootstraps: int = 100, seed: int = 0) -> None:
        self.form = form
        self.bootstraps = bootstraps
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike, noise: float | None = None) -> Self:
        """Fit to runs; grids need not be complete.

        Args:
            X: [n, 4], parameters, tokens, learning rate and batch size of each run, n >= 6. The batch size may be
                counted in sequences or tokens, but in one unit throughout.
            y: [n] losses; diverged runs may be among them.
            noise: known relative standard deviation between runs that differ only in their seed, if any.

        Raises:
            UsageError: a value that is not finite or not positive (with row and column), too few runs, an unknown
                form, or runs that all have the same learning rate and the same batch size.
        """
        table = checked_positive("X", X, columns=4, labels=COLUMNS, rows=6)
        losses = checked_positive("y", np.reshape(y, (-1, 1)), labels=("loss",))[:, 0]
        if len(losses) != len(table):
            raise UsageError(f"X has {len(table)} rows and y has {len(losses)}; give one loss for each run")
        if noise is not None and not 0 < noise < 1:
            raise UsageError(f"noise is {noise!r}; give the relative standard deviation of a run, such as 0.003")
        if self.bootstraps < 2:
            raise UsageError(f"bootstraps is {self.bootstraps}; at least 2 are needed for an interval")
        if self.form not in ("auto", *FORMS):
            raise UsageError(f"form is {self.form!r}; give auto, {' or '.join(FORMS)}")
        if (np.ptp(np.log(table[:, 2:]), axis=0) < 0.01).all():
            raise UsageError(
                f"all runs have learning rate {table[0, 2]:g} and batch size {table[0, 3]:g} (columns 2 and 3 of X); "
                "add runs at the same params and tokens with other learning rates (half and double), then with other "
                "batch sizes"
            )
        points, log_losses = np.log(table), np.log(losses)
        diverged = _diverged(points, log_losses)
        self.diverged_ = np.flatnonzero(diverged)
        rows = np.flatnonzero(~diverged)
        points, log_losses = points[rows], log_losses[rows]
        self._most = points.max(0)[:2]
        self._most_compute = float(points[:, :2].sum(1).max())

        forms = FORMS if self.form == "auto" else (self.form,)
        self.held_out_: list[HeldOutGrid] = []
        misses = {form: self._leave_largest_out(form, points, log_losses, rows, noise) for form in forms}
        self.form_ = min(forms, key=self._held_out_error) if len(forms) > 1 else forms[0]
        self._set_miss(misses[self.form_])

        fitted = _fit(self.form_, points, log_losses, noise)
        self._theta, self._centre = fitted.theta, fitted.centre
        self.noise_, self.shared_noise_, self.pair_std_ = fitted.noise, fitted.shared, fitted.pair
        self._far, self._freedom = fitted.far, fitted.freedom
        self._pairs, self._offsets, self._offset_std = fitted.pairs, fitted.offsets, fitted.offset_std
        self._draws = _draws(fitted, self.bootstraps, self.seed)
        self.parameters_ = {name: float(v[0]) for name, v in self._natural(self._theta[None]).items()}
        self.draws_ = self._natural(self._draws)
        posterior = np.einsum("kk->k", np.linalg.inv(fitted.precision))
        self.identified_ = dict(zip(NAMES, np.clip(1 - posterior / fitted.width**2, 0.0, 1.0).tolist(), strict=True))
        return self

    def predict(self, X: ArrayLike, interval: float = 0.9) -> Prediction:
        """Expected losses of new runs, and intervals that hold for one run.

        Args:
            X: [m, 4], parameters, tokens, learning rate, batch size.
            interval: probability that the interval covers.

        Returns:
            Prediction of three arrays [m].

        Raises:
            UsageError: not fitted; an X as ``fit`` refuses it; an interval outside (0, 1).
        """
        require_fitted(self, "parameters_")
        points = np.log(checked_positive("X", X, columns=4, labels=COLUMNS))
        tail = (1 - checked_interval(interval)) / 2
        x = points - self._centre
        floor = _floor(self._theta[None], x)[0]
        basins = _basin(self._draws, x)
        basin = basins.mean(0)
        open_ = (_floor(self._draws, x) + basins).var(0)
        # An (N, D) that was fitted keeps its own place about the floor.
        offset, about = np.zeros(len(x)), np.full(len(x), self.pair_std_**2)
        for pair, value, std in zip(self._pairs, self._offsets, self._offset_std, strict=True):
            same = (np.abs(points[:, :2] - pair) < 1e-3).all(1)
            offset[same], about[same] = value, std**2
        run = self.noise_**2 + self.shared_noise_**2 + (self._far * basin) ** 2
        miss = self.miss_per_efold_**2 * self._efolds(points)
        known = open_ + run
        wrong = about + miss
        freedom = (known + wrong) ** 2 / (known**2 / self._freedom + wrong**2 / self._miss_freedom)
        half = stats.t.isf(tail, freedom) * np.sqrt(known + wrong)
        mean = floor + offset + basin
        return Prediction(np.exp(mean), np.exp(mean - half), np.exp(mean + half))

    def extrapolation(self, X: ArrayLike) -> Array:
        """Compute N * D of runs X [m, 4] over the largest compute fitted, [m]; below 1 inside the data."""
        require_fitted(self, "parameters_")
        points = np.log(checked_positive("X", X, columns=4, labels=COLUMNS))
        return np.asarray(np.exp(points[:, :2].sum(1) - self._most_compute))

    def optimum(self, N: float, D: float, interval: float = 0.9) -> HyperparameterOptimum:
        """The best learning rate and batch size for a model of N parameters on D tokens.

        Raises:
            UsageError: not fitted; N or D not finite or not positive; an interval outside (0, 1).
        """
        require_fitted(self, "parameters_")
        size = np.log(checked_positive("N, D", [[N, D]], columns=2, labels=("N", "D")))[0] - self._centre[:2]
        quantile = stats.norm.isf((1 - checked_interval(interval)) / 2)
        # The run that is best on average over the draws; the basin of each is convex, so their mean is.
        steps = np.linspace(-1, 1, 41)
        best, reach = _optimum(self._theta[None], size)[0], 2.0
        spread = _optimum(self._draws, size).std(0)
        for _ in range(6):
            grid = best + reach * np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
            cost = _basin(self._draws, np.column_stack([np.tile(size, (len(grid), 1)), grid])).mean(0)
            best, reach = grid[cost.argmin()], reach / 4
        flat = []
        for axis in range(2):
            along = best + np.linspace(-6, 6, 4801)[:, None] * np.eye(2)[axis]
            cost = _basin(self._draws, np.column_stack([np.tile(size, (len(along), 1)), along])).mean(0)
            inside = along[cost <= cost.min() + FLAT, axis] + self._centre[2 + axis]
            flat.append((float(np.exp(inside[0])), float(np.exp(inside[-1]))))
        middle = best + self._centre[2:]
        half = quantile * spread
        lr, bs = (Prediction(*np.exp([m, m - h, m + h])) for m, h in zip(middle, half, strict=True))
        run = [[N, D, *np.exp(middle)]]
        loss = Prediction(*(part[0] for part in self.predict(run, interval)))
        return HyperparameterOptimum(lr, bs, loss, flat[0], flat[1], float(self.extrapolation(run)[0]))

    def _natural(self, theta: Array) -> dict[str, Array]:
        t = dict(zip(NAMES, theta.T, strict=True))
        n, d, lr, bs = self._centre
        alpha, beta = np.exp(t["alpha"]), np.exp(t["beta"])
        return {
            "E": np.exp(t["E"]),
            "A": np.exp(t["A"] + alpha * n),
            "B": np.exp(t["B"] + beta * d),
            "alpha": alpha,
            "beta": beta,
            "lr_coefficient": np.exp(t["lr"] + lr - t["lr_params"] * n - t["lr_tokens"] * d),
            "bs_coefficient": np.exp(t["bs"] + bs - t["bs_params"] * n - t["bs_tokens"] * d),
            **{name: t[name] for name in ("lr_params", "lr_tokens", "bs_params", "bs_tokens")},
            **{name: np.exp(t[name]) for name in ("steep_lr", "steep_bs", "steep_ratio")},
            **{name: t[name] for name in ("skew_lr", "skew_bs", "skew_ratio", "rho", "steep_params", "steep_tokens")},
        }

    def _efolds(self, points: Array) -> Array:
        """How far log points [m, 4] lie beyond those fitted in N and D, or in compute where that is more, [m]."""
        beyond = np.maximum(points[:, :2] - self._most, 0.0).sum(1)
        return np.asarray(np.maximum(beyond, points[:, :2].sum(1) - self._most_compute))

    def _held_out_error(self, form: str) -> float:
        """Mean regret and mean shape error of what was left out; a form is as good as where it would have sent us."""
        records = [record for record in self.held_out_ if record.form == form]
        regret = np.concatenate([record.regret for record in records]) if records else np.zeros(0)
        if not len(regret):
            return float(form != "basin")
        return float(regret.mean() + np.mean([record.shape_error for record in records]))

    def _leave_largest_out(
        self, form: str, points: Array, losses: Array, rows: NDArray[np.intp], noise: float | None
    ) -> list[tuple[float, float, float]]:
        """Hold back the largest N, D and compute; returns (miss of the floor, its explained variance, e-folds)."""
        found = []
        sizes = (("params", points[:, 0]), ("tokens", points[:, 1]), ("compute", points[:, :2].sum(1)))
        for label, size in sizes:
            levels = np.unique(np.round(size, 3))
            if len(levels) < 2:
                continue
            cut = levels[-1] - 0.05 if label != "tokens" else levels[-max(1, len(levels) // 4)] - 0.05
            kept = size < cut
            if kept.sum() < 6 or (np.ptp(points[kept, 2:], axis=0) < 0.01).all():
                continue
            fitted = _fit(form, points[kept], losses[kept], noise)
            out = ~kept
            x = points[out] - fitted.centre
            basin = _basin(fitted.theta[None], x)[0]
            predicted = _floor(fitted.theta[None], x)[0] + basin
            miss = predicted - losses[out]
            near = 1 / (fitted.noise**2 + fitted.shared**2 + (FAR * basin) ** 2)
            _, pair = np.unique(np.round(points[out, :2], 3), axis=0, return_inverse=True)
            pair = pair.ravel()
            regret, centred = [], np.empty_like(miss)
            for p in range(pair.max() + 1):
                mine = pair == p
                centred[mine] = miss[mine] - np.average(miss[mine], weights=near[mine])
                if mine.sum() >= 4:
                    regret.append(np.expm1(losses[out][mine][predicted[mine].argmin()] - losses[out][mine].min()))
            most = points[kept, :2].sum(1).max()
            self.held_out_.append(
                HeldOutGrid(
                    f"{label} >= {np.exp(size[out].min()):.3g}",
                    form,
                    rows[out],
                    np.exp(predicted),
                    np.exp(losses[out]),
                    np.exp(points[out, :2].sum(1) - most),
                    np.array(regret),
                    float(np.sqrt(np.average(centred**2, weights=near))),
                )
            )
            share = near / near.sum()
            far = np.maximum(points[out, :2] - points[kept, :2].max(0), 0.0).sum(1)
            far = np.maximum(far, points[out, :2].sum(1) - most)
            slope = share @ _jacobian(fitted.theta[None], x)[0]
            explained = slope @ np.linalg.inv(fitted.precision) @ slope + fitted.pair**2 / (pair.max() + 1)
            found.append((float(share @ miss), float(explained), float(share @ far)))
        return found

    def _set_miss(self, found: list[tuple[float, float, float]]) -> None:
        """Variance per e-fold beyond what is explained, from few misses and a prior guess."""
        miss, explained, far = np.array(found).reshape(-1, 3).T
        says = far / (explained + MISS**2 * far) ** 2
        beyond = max(0.0, float(says @ (miss**2 - explained) / (says @ far))) if len(far) else 0.0
        self._miss_freedom = COUNT + len(far)
        self.miss_per_efold_ = float(np.sqrt((COUNT * MISS**2 + len(far) * beyond) / self._miss_freedom))


def _diverged(points: Array, losses: Array) -> NDArray[np.bool_]:
    """Rows more than DIVERGED above the best of their (N, D), and more than twice as far as most of these."""
    bad = np.zeros(len(losses), dtype=bool)
    _, pair = np.unique(np.round(points[:, :2], 3), axis=0, return_inverse=True)
    for p in range(pair.max() + 1):
        mine = np.flatnonzero(pair.ravel() == p)
        above = losses[mine] - losses[mine].min()
        bad[mine] = above > max(DIVERGED, 2 * float(np.median(above)))
    return bad


def _optimum(theta: Array, size: Array) -> Array:
    """log lr*, log bs* [P, 2] about the centre at one centred log (N, D)."""
    t = theta[:, OPTIMUM]
    return np.asarray(t[:, :2] + t[:, [2, 4]] * size[0] + t[:, [3, 5]] * size[1])


def _floor(theta: Array, x: Array) -> Array:
    """Log floors [P, m] at centred log points x [m, 4]."""
    terms = _floor_terms(theta, x)
    return np.asarray(np.logaddexp.reduce(terms, axis=0))


def _floor_terms(theta: Array, x: Array) -> Array:
    power = np.exp(theta[:, 3:5])
    return np.stack(
        [
            np.broadcast_to(theta[:, 0:1], (len(theta), len(x))),
            np.minimum(theta[:, 1:2] - power[:, 0:1] * x[:, 0], 300.0),
            np.minimum(theta[:, 2:3] - power[:, 1:2] * x[:, 1], 300.0),
        ]
    )


def _linex(skew: Array, z: Array) -> tuple[Array, Array, Array]:
    """2 psi(skew, z), with its derivatives by z and by the skew; beyond ``skew * z = STEEP`` it goes on as a square."""
    a = np.clip(skew * z, -STEEP, STEEP)
    small = np.abs(a) < 0.02
    b = np.where(small, 1.0, a)
    grown = np.expm1(b)
    f = np.where(small, 1 / 2 + a / 6 + a * a / 24, (grown - b) / b**2)
    slope = np.where(small, 1 / 6 + a / 12 + a * a / 40, ((grown + 1) * (b - 2) + b + 2) / b**3)
    slope = np.where(np.abs(a) < STEEP, slope, 0.0)
    return 2 * z * z * f, 4 * z * f + 2 * z * z * slope * skew, 2 * z**3 * slope


def _basin_terms(theta: Array, x: Array) -> tuple[Array, list[tuple[Array, Array, Array]], Array, Array]:
    """Factor [P, m] of each of three terms, the terms with derivatives, and (u, v) [P, m]."""
    t = {name: theta[:, k : k + 1] for k, name in enumerate(NAMES)}
    u = x[:, 2] - t["lr"] - t["lr_params"] * x[:, 0] - t["lr_tokens"] * x[:, 1]
    v = x[:, 3] - t["bs"] - t["bs_params"] * x[:, 0] - t["bs_tokens"] * x[:, 1]
    scale = np.minimum(t["steep_params"] * x[:, 0] + t["steep_tokens"] * x[:, 1], 20.0)
    factor = np.exp(np.stack([scale + t["steep_lr"], scale + t["steep_bs"], scale + t["steep_ratio"]]))
    along = (u, v, u - t["rho"] * v)
    terms = [_linex(t[skew], z) for skew, z in zip(("skew_lr", "skew_bs", "skew_ratio"), along, strict=True)]
    return factor, terms, u, v


def _basin(theta: Array, x: Array) -> Array:
    """Relative loss above the floor, as a logarithm, [P, m]; at most HIGHEST."""
    factor, terms, _, _ = _basin_terms(theta, x)
    return np.asarray(np.minimum(sum(f * term[0] for f, term in zip(factor, terms, strict=True)), HIGHEST))


def _jacobian(theta: Array, x: Array) -> Array:
    """Derivatives [P, m, 20] of the log loss."""
    parts = np.exp(_floor_terms(theta, x))
    shares = parts / parts.sum(0)
    power = np.exp(theta[:, 3:5])
    factor, terms, _, v = _basin_terms(theta, x)
    height = [f * term[0] for f, term in zip(factor, terms, strict=True)]
    slope = [f * term[1] for f, term in zip(factor, terms, strict=True)]
    skew = [f * term[2] for f, term in zip(factor, terms, strict=True)]
    rho = theta[:, NAMES.index("rho"), None]
    by_lr, by_bs = -(slope[0] + slope[2]), -(slope[1] - rho * slope[2])
    n, d, total = x[:, 0], x[:, 1], sum(height)
    columns = [*shares, -shares[1] * power[:, 0:1] * n, -shares[2] * power[:, 1:2] * d]
    columns += [by_lr, by_bs, by_lr * n, by_lr * d, by_bs * n, by_bs * d]
    columns += [*height, *skew, -slope[2] * v, total * n, total * d]
    return np.stack(columns, axis=-1)


class _Whitening:
    """Turns errors into independent ones of variance 1: errors of runs, of (N, D, bs) and of (N, D).

    With errors of variance ``s_i^2`` plus one of variance ``t^2`` that a group shares, ``I - k a a'`` applied to
    ``a_i r_i``, ``a_i = 1 / s_i``, does so. Rows must be sorted by group; done for (N, D, bs), then for (N, D).
    """

    def __init__(self, spread: Array, shared: float, pair: float, batches: Rows, pairs: Rows) -> None:
        self.levels = []
        self.first = a = 1 / spread
        for size, starts in ((shared, batches), (pair, pairs)):
            length = np.diff(np.append(starts, len(a)))
            total = np.add.reduceat(a * a, starts)
            kept = 1 / np.sqrt(1 + size**2 * total)
            self.levels.append((starts, length, a, (1 - kept) / total, total))
            a = self._apply(a, len(self.levels) - 1)
        self.shared, self.pair = shared, pair

    def _apply(self, values: Array, level: int) -> Array:
        """One level, on the last axis."""
        starts, length, a, k, _ = self.levels[level]
        common = k * np.add.reduceat(a * values, starts, axis=-1)
        return np.asarray(values - a * np.repeat(common, length, axis=-1))

    def __call__(self, values: Array) -> Array:
        """Whitened errors [..., n]."""
        return self._apply(self._apply(values * self.first, 0), 1)

    def split(self, errors: Array) -> tuple[Array, Array, Array, Array]:
        """Expected squares of the errors of runs [n] and of those shared [batches]; offsets of pairs, their variance.

        This is the E step of EM for the sizes of random effects (Laird and Ware 1982).
        """
        (batch, length, a, _, total), (pairs, lengths, b, _, weight) = self.levels
        solved = self.first * self._apply(self._apply(self(errors), 1), 0)  # inverse covariance times errors
        share = self.pair**2 / (1 + self.pair**2 * weight)
        inverse = a * a * (1 - np.repeat(self.shared**2 / (1 + self.shared**2 * total), length) * a * a)
        inverse = inverse - np.repeat(share, lengths) * (self.first * self._apply(b, 0)) ** 2
        own = 1 / a**2
        runs = (own * solved) ** 2 + own - own**2 * inverse
        seen = np.add.reduceat(b * b, batch)
        seen = seen - share[np.searchsorted(pairs, batch, side="right") - 1] * seen**2
        together = (self.shared**2 * np.add.reduceat(solved, batch)) ** 2 + self.shared**2 - self.shared**4 * seen
        offsets = self.pair**2 * np.add.reduceat(solved, pairs)
        variance = self.pair**2 / (1 + self.pair**2 * weight)
        return runs, together, offsets, variance


@dataclass(frozen=True)
class _Fitted:
    """A form fitted to rows (sorted), with what draws and predictions need."""

    theta: Array  # [20]
    precision: Array
    centre: Array  # [4] of the log points
    prior: Array
    width: Array
    about: Array  # how uncertain the priors' means are, [20]: ``width`` but where a form holds a number fixed
    x: Array
    losses: Array
    whiten: _Whitening
    noise: float
    shared: float
    pair: float
    far: float
    freedom: float
    pairs: Array  # log (N, D) [pairs, 2], how far each lies off the floor, and how sure that is
    offsets: Array
    offset_std: Array


def _fit(form: str, points: Array, losses: Array, noise: float | None) -> _Fitted:
    """Fit a form to log points [n, 4] and log losses [n]."""
    levels = np.round(points, 3)
    order = np.lexsort((levels[:, 3], levels[:, 1], levels[:, 0]))
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
        prior[OPTIMUM], about[OPTIMUM] = _through_best(x[best])
        width[OPTIMUM] = FIXED
        for name in ("skew_lr", "skew_bs", "skew_ratio", "steep_params", "steep_tokens"):
            k = NAMES.index(name)
            prior[k], width[k], about[k] = 0.0, FIXED, FIXED

    above = losses - np.repeat(losses[best], ends - pairs)
    own, far, shared, pair = (NOISE if noise is None else noise), FAR, NOISE, PAIR
    start = np.tile(prior, (4, 1))
    start[:, NAMES.index("rho")] = [0.5, 1.0, 0.5, 1.0]
    for name in ("steep_lr", "steep_bs", "steep_ratio"):
        start[2:, NAMES.index(name)] -= 1.5
    for _ in range(ROUNDS):
        spread = np.sqrt(own**2 + (FAR * above) ** 2)
        whiten = _Whitening(spread, shared, pair, batches, pairs)
        fits = _minimise(whiten, x, losses, start, prior, width)
        chosen = fits.objective.argmin()
        theta = fits.parameters[chosen : chosen + 1]
        start = theta
        basin = _basin(theta, x)[0]
        errors = losses - _floor(theta, x)[0] - basin
        runs, together, offsets, variance = whiten.split(errors)
        # The fit has taken up some of the errors.
        freed = len(x) / max(len(x) - float(fits.effective_parameters[chosen]), 1.0)
        near = own**2 / spread**2
        relative = freed * runs / spread**2
        far = np.sqrt((COUNT * FAR**2 + FAR**2 * ((1 - near) * relative).sum()) / (COUNT + (1 - near).sum()))
        if noise is None:
            own = np.sqrt((COUNT * NOISE**2 + own**2 * (near * relative).sum()) / (COUNT + near.sum()))
        shared = np.sqrt((COUNT * SHARED**2 + together.sum()) / (COUNT + len(batches)))
        pair = np.sqrt((COUNT * PAIR**2 + (offsets**2 + variance).sum()) / (COUNT + len(pairs)))
        above = np.maximum(basin, 0.0)
    freedom = COUNT + max(len(x) - float(fits.effective_parameters[chosen]), 0.0)
    return _Fitted(
        theta[0],
        fits.precision[chosen],
        centre,
        prior,
        width,
        about,
        x,
        losses,
        whiten,
        float(own),
        float(shared),
        float(pair),
        float(far),
        freedom,
        points[pairs, :2],
        offsets,
        np.sqrt(variance),
    )


def _minimise(
    whiten: _Whitening,
    x: Array,
    losses: Array,
    start: Array,
    prior: Array,
    width: Array,
    disturbed: Array | None = None,
) -> Fits:
    """Fit from each start [P, 20]; prior means [20] or [P, 20]; whitened losses are moved by ``disturbed`` [P, n]."""

    def residuals(theta: Array, which: Rows) -> tuple[Array, Array]:
        errors = whiten(_floor(theta, x) + _basin(theta, x) - losses)
        jacobian = whiten(_jacobian(theta, x).transpose(0, 2, 1)).transpose(0, 2, 1)
        return errors if disturbed is None else errors - disturbed[which], jacobian

    means = np.broadcast_to(prior, start.shape)
    weights = np.ones((len(start), len(x)))
    return fit_many(residuals, start, weights, means, width, huber=HUBER, iterations=60, tolerance=1e-5)


def _draws(fitted: _Fitted, count: int, seed: int) -> Array:
    """Posterior draws of theta [count, 20], by disturbing losses and priors (see ``solver``)."""
    rng = np.random.default_rng(seed)
    disturbed = rng.standard_normal((count, len(fitted.x)))
    prior = fitted.prior + fitted.about * rng.standard_normal((count, len(NAMES)))
    start = np.tile(fitted.theta, (count, 1))
    return _minimise(fitted.whiten, fitted.x, fitted.losses, start, prior, fitted.width, disturbed).parameters


def _through_best(best: Array) -> tuple[Array, Array]:
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
