"""Learning rate and batch size: the loss of a run at (N, D, lr, bs), and the best lr and bs.

Trade-offs taken:

- A prediction far from the runs needs three parts: the floor (a Chinchilla law), the position of the basin, and its
  shape (``basin`` has the form and its reasons). One law with priors, fitted to all runs at once, gives them from 20
  runs as well as from 2000. ``identified_`` shows which numbers the data did not determine.
- The predicted basin is the mean over the draws. If lr* is uncertain and the basin is steep on one side, the best
  choice on average keeps away from that side.
- The floor's error per e-fold of extrapolation is measured by leaving out the largest N, D and compute, as in
  ``ScalingLaw``. The basin's scatter between (N, D) is part of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from armillary.laws.estimator import (
    Array,
    Estimator,
    Prediction,
    check_reach,
    checked_draws,
    checked_interval,
    checked_noise,
    checked_positive,
    require_fitted,
)
from armillary.laws.hyperparameters import basin
from armillary.laws.hyperparameters.basin import COUNT, FORMS, NAMES, OPTIMUM, Rows
from armillary.laws.values import Array as ArrayField
from armillary.laws.values import Codec, Fields, Listed, Mapped, Number, Record, Text, Together, Whole
from armillary.recipe import UsageError, counted

COLUMNS = ("params", "tokens", "lr", "bs")
# Prior of the floor's relative error at one e-fold of extrapolation, weighted as COUNT observations.
MISS = 0.003
WIDEST = 100.0  # limit of half an interval, in log loss
FLAT = 1e-3  # the tolerated share of the loss, see HyperparameterOptimum


@dataclass(frozen=True)
class HeldOutGrid:
    """Predictions of the largest runs by a law of the other runs.

    Attributes:
        what: the left-out runs, such as ``params >= 4.3e+08``.
        form: the form of the prediction.
        rows: their rows in the table given to ``fit`` (without diverged ones), [k].
        predicted: losses by the law fitted without them, [k].
        measured: their losses, [k].
        extrapolation: their compute N * D over the largest kept compute, [k].
        regret: for each left-out (N, D) with at least four runs, the relative excess loss of the run that the law
            chooses over the best run, [pairs].
        shape_error: root mean square of relative errors near the floor, without the mean of each (N, D).
    """

    what: str
    form: str
    rows: Rows
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
        lr_flat: lowest and highest learning rate that cost less than 0.1 % of the loss at the best batch size.
        bs_flat: the same for the batch size at the best learning rate.
        extrapolation: compute N * D over the largest compute fitted.
    """

    lr: Prediction
    bs: Prediction
    loss: Prediction
    lr_flat: tuple[float, float]
    bs_flat: tuple[float, float]
    extrapolation: float


@dataclass(frozen=True)
class LearningRate:
    """A learning rate for one (N, D) and batch size, chosen instead of another one.

    Attributes:
        lr: the chosen rate.
        best: the rate with the lowest expected loss, with the interval of the true best rate, scalars.
        flat: lowest and highest rate that cost less than 0.1 % of the loss at ``best``.
        gain: relative excess of the loss at the other rate over that at ``lr``, with its interval, scalars.
        probability: that the expected loss at ``lr`` is below that at the other rate.
        extrapolation: compute N * D over the largest compute fitted.
    """

    lr: float
    best: Prediction
    flat: tuple[float, float]
    gain: Prediction
    probability: float
    extrapolation: float


class HyperparameterLaw(Estimator):
    """Loss at (N, D, learning rate, batch size), and the best learning rate and batch size at any (N, D).

    Forms: ``step-law`` (Li et al. 2025): lr* = c N^a D^b and bs* = d D^f through the best run of each (N, D), and a
    symmetric basin of common curvature around them; ``basin``: everything above, fitted to all runs at once;
    ``auto``: the form with the better prediction of left-out largest (N, D).

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
            the prior dominates: for ``lr_params`` if all runs have the same N, for ``bs`` if they have one batch size.
            A parameter that a form fixes counts as known.
        noise_: relative standard deviation of one run near the floor.
        shared_noise_: relative standard deviation of the error that runs of one (N, D, batch size) share.
        pair_std_: relative standard deviation of an (N, D) about the floor.
        place_std_: standard deviation of log lr* and log bs* of an (N, D) about their power laws.
        miss_per_efold_: relative error of the floor (standard deviation) at one e-fold of extrapolation.
        diverged_: rows of X that were left out, since their loss is far above that of a run that is not larger in N and
            D, or far below that of all runs that are not smaller.
        held_out_: predictions of left-out largest runs for each form tried, a list of ``HeldOutGrid``.
    """

    features = COLUMNS

    PARAMS: ClassVar[dict[str, Codec]] = {"form": Text(), "bootstraps": Whole(), "seed": Whole()}
    # b draws of the 20 numbers of ``basin.NAMES``, m pairs (N, D).
    FITTED: ClassVar[Fields] = {
        "form": ("form_", Text()),
        "theta": ("_theta", ArrayField("20")),
        "draws": ("_draws", ArrayField("b 20")),
        "centre": ("_centre", ArrayField("4")),
        "identified": ("identified_", Mapped(Number())),
        "noise": ("noise_", Number()),
        "noise_of_batch_size": ("shared_noise_", Number()),
        "noise_in_basin": ("_far", Number()),
        "noise_freedom": ("_freedom", Number()),
        "pair_std": ("pair_std_", Number()),
        "place_std": ("place_std_", Together((Number(), Number()))),
        "pairs": ("_pairs", ArrayField("m 2")),
        "pair_offsets": ("_offsets", ArrayField("m 3")),
        "pair_offset_std": ("_offset_std", ArrayField("m 3")),
        "miss_per_efold": ("miss_per_efold_", Number()),
        "miss_freedom": ("_miss_freedom", Number()),
        "largest_log_sizes": ("_most", ArrayField("2")),
        "largest_log_compute": ("_most_compute", Number()),
        "log_loss_ceiling": ("_ceiling", Number()),
        "diverged": ("diverged_", ArrayField("d", kind="i")),
        "left_out": (
            "held_out_",
            Listed(
                Record(
                    HeldOutGrid,
                    {
                        "what": Text(),
                        "form": Text(),
                        "rows": ArrayField("k", kind="i"),
                        "predicted": ArrayField("k", finite=False),
                        "measured": ArrayField("k", finite=False),
                        "extrapolation": ArrayField("k", finite=False),
                        "regret": ArrayField("r", finite=False),
                        "shape_error": Number(finite=False),
                    },
                )
            ),
        ),
    }

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
        self._forget()
        table = checked_positive("X", X, columns=4, labels=COLUMNS, rows=6)
        losses = checked_positive("y", np.reshape(y, (-1, 1)), labels=("loss",))[:, 0]
        if len(losses) != len(table):
            raise UsageError(f"X has {counted(len(table), 'row')} and y has {len(losses)}; give one loss for each run")
        checked_noise(noise)
        checked_draws(self.bootstraps)
        if self.form not in ("auto", *FORMS):
            raise UsageError(f"form is {self.form!r}; give auto, {' or '.join(FORMS)}")
        if (np.ptp(np.log(table[:, 2:]), axis=0) < 0.01).all():
            raise UsageError(
                f"all runs have learning rate {table[0, 2]:g} and batch size {table[0, 3]:g} (columns 2 and 3 of X); "
                "add runs at the same params and tokens with other learning rates (half and double), then with other "
                "batch sizes"
            )
        points, log_losses = np.log(table), np.log(losses)
        far_off = basin.diverged(points, log_losses)
        self.diverged_ = np.flatnonzero(far_off)
        rows = np.flatnonzero(~far_off)
        points, log_losses = points[rows], log_losses[rows]
        # A cap, because the power law would predict losses far above the worst measured one for very small models.
        self._ceiling = float(np.log(losses.max()) + basin.HIGHEST)
        self._most = points.max(0)[:2]
        self._most_compute = float(points[:, :2].sum(1).max())

        forms = FORMS if self.form == "auto" else (self.form,)
        self.held_out_: list[HeldOutGrid] = []
        misses = {form: self._leave_largest_out(form, points, log_losses, rows, noise) for form in forms}
        self.form_ = min(forms, key=self._held_out_error) if len(forms) > 1 else forms[0]
        self._set_miss(misses[self.form_])

        fitted = basin.fit(self.form_, points, log_losses, noise)
        self._theta, self._centre = fitted.theta, fitted.centre
        self.noise_, self.shared_noise_, self.pair_std_ = fitted.noise, fitted.shared, fitted.pair
        self._far, self._freedom = fitted.far, fitted.freedom
        self.place_std_ = fitted.place
        self._pairs, self._offsets, self._offset_std = fitted.pairs, fitted.offsets, fitted.offset_std
        self._draws = basin.draws(fitted, self.bootstraps, self.seed)
        fixed = fitted.width == basin.FIXED
        variance = np.where(fixed, fitted.about**2, np.diag(np.linalg.inv(fitted.precision)))
        self.identified_ = dict(zip(NAMES, np.clip(1 - variance / basin.STDS**2, 0.0, 1.0).tolist(), strict=True))
        self._derive()
        return self

    def _derive(self) -> None:
        """See ``Estimator``."""
        self.parameters_ = {name: float(v[0]) for name, v in self._natural(self._theta[None]).items()}
        self.draws_ = self._natural(self._draws)

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
        offset, offset_std = self._offset(points)
        x = points - self._centre
        x[:, 2:] -= offset[:, 1:]
        self._check_reach(points)
        heights = basin.height(self._draws, x)
        height = heights.mean(0)
        drawn = np.minimum(basin.floor(self._draws, x) + heights, self._ceiling)
        slopes = basin.jacobian(self._theta[None], x)[0, :, 5:7]
        run = self.noise_**2 + self.shared_noise_**2 + (self._far * height) ** 2
        known = run + drawn.var(0)
        place = offset_std[:, 0] ** 2 + ((offset_std[:, 1:] * slopes) ** 2).sum(1)
        miss = self.miss_per_efold_**2 * self._efolds(points)
        # Degrees of freedom of each part; Satterthwaite's (1946) formula gives those of their sum.
        total = known + place + miss
        share = known**2 / self._freedom + place**2 / (COUNT + len(self._pairs)) + miss**2 / self._miss_freedom
        # On a random table an interval may be huge; limit it to finite numbers.
        half = np.minimum(stats.t.isf(tail, total**2 / share) * np.sqrt(total), WIDEST)
        mean = drawn.mean(0) + offset[:, 0]
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
        point = np.log(checked_positive("N, D", [[N, D]], columns=2, labels=("N", "D")))
        self._check_reach(point)
        quantile = stats.norm.isf((1 - checked_interval(interval)) / 2)
        offset, offset_std = (part[0, 1:] for part in self._offset(point))
        size = point[0] - self._centre[:2]

        def cost(places: Array) -> Array:
            x = np.column_stack([np.tile(size, (len(places), 1)), places])
            return np.asarray(basin.height(self._draws, x).mean(0))

        # A shrinking grid: the basin of each draw is convex, and so is their mean.
        steps = np.linspace(-1, 1, 41)
        square = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
        best = basin.lowest(self._theta[None], size)[0]
        for reach in 2.0 / 4.0 ** np.arange(6):
            grid = best + reach * square
            best = grid[cost(grid).argmin()]
        to_log = self._centre[2:] + offset
        flat = []
        for axis in range(2):
            along = best + np.linspace(-6, 6, 4801)[:, None] * np.eye(2)[axis]
            inside = along[cost(along) <= cost(best[None]) + FLAT, axis] + to_log[axis]
            flat.append((float(np.exp(inside[0])), float(np.exp(inside[-1]))))
        middle = best + to_log
        half = quantile * np.sqrt(basin.lowest(self._draws, size).var(0) + offset_std**2)
        lr, bs = (Prediction(*np.exp([m, m - h, m + h])) for m, h in zip(middle, half, strict=True))
        run = [[N, D, *np.exp(middle)]]
        loss = Prediction(*(part[0] for part in self.predict(run, interval)))
        return HyperparameterOptimum(lr, bs, loss, flat[0], flat[1], float(self.extrapolation(run)[0]))

    def better_lr(
        self,
        size: tuple[float, float, float],
        other: float,
        most: float = np.inf,
        sure: float = 0.95,
        interval: float = 0.9,
    ) -> LearningRate:
        """A learning rate that is better than another one for a model of N parameters on D tokens.

        It is the rate with the lowest expected loss among those that are better than ``other`` with a probability of
        at least ``sure``. Far from the fitted runs it therefore stays near ``other``. Without such a rate it is the
        best of all, and ``probability`` is below ``sure``. Unlike ``optimum``, this keeps the batch size, so runs of a
        single batch size suffice. The scatter of lr* between (N, D) is part of all intervals and probabilities.

        Args:
            size: N, D and batch size, the latter in the unit of ``fit``.
            other: the learning rate to compare with.
            most: upper limit of the rate.
            sure: see above.
            interval: probability that each interval covers.

        Raises:
            UsageError: not fitted; a value that is not positive; an interval outside (0, 1).
            ExtrapolationError: N, D or N * D is too far beyond the fitted runs.
        """
        require_fitted(self, "parameters_")
        n, d, bs = size
        point = np.log(checked_positive("size", [[n, d, other, bs]], columns=4, labels=COLUMNS))
        tail = (1 - checked_interval(interval)) / 2
        self._check_reach(point)
        offset, offset_std = (part[0, 1:] for part in self._offset(point))
        at = point[0] - self._centre
        at[2:] -= offset
        rng = np.random.default_rng(self.seed)
        draws = self._draws.copy()
        draws[:, OPTIMUM.start : OPTIMUM.start + 2] += offset_std * rng.standard_normal((len(draws), 2))
        to_log = self._centre[2] + offset[0]
        rates = basin.lowest(self._theta[None], at[:2])[0, 0] + np.linspace(-6, 6, 2401)
        if np.isfinite(most):
            rates = np.append(rates[rates < np.log(most) - to_log], np.log(most) - to_log)
        x = np.tile(at, (len(rates) + 1, 1))
        x[:-1, 2] = rates
        heights, there = np.split(basin.height(draws, x), [len(rates)], axis=1)
        cost = heights.mean(0)
        valley = rates[heights.argmin(1)][:, None]
        # The error of the form grows with the height in the basin. On one side of it, all rates share this error.
        left, right = 1 + self._far * rng.standard_normal((2, len(draws), 1))
        heights = heights * np.where(rates < valley, left, right)
        there = there * np.where(at[2] < valley, left, right)
        probability = (heights < there).mean(0)
        allowed = probability >= sure
        chosen = int(np.where(allowed, cost, np.inf).argmin()) if allowed.any() else int(cost.argmin())
        gain = np.expm1(there[:, 0] - heights[:, chosen])
        best = np.exp(rates[cost.argmin()] + to_log)
        low, high = np.quantile(np.exp(valley + to_log), [tail, 1 - tail])
        inside = np.exp(rates[cost <= cost.min() + FLAT] + to_log)
        return LearningRate(
            float(np.exp(rates[chosen] + to_log)),
            Prediction(best, np.minimum(low, best), np.maximum(high, best)),
            (float(inside[0]), float(inside[-1])),
            Prediction(gain.mean(), *np.quantile(gain, [tail, 1 - tail])),
            float(probability[chosen]),
            float(self.extrapolation(np.exp(point))[0]),
        )

    def probe(self) -> list[Array]:
        """Predictions at the centre of the runs; a law file holds them to detect code of another version."""
        require_fitted(self, "parameters_")
        run = np.exp(self._centre)
        best = self.optimum(float(run[0]), float(run[1]))
        ends = np.array([best.lr, best.bs, best.loss, [*best.lr_flat, best.extrapolation], [*best.bs_flat, 0.0]])
        return [*self.predict(run[None]), ends]

    def _offset(self, points: Array) -> tuple[Array, Array]:
        """The offset of each (N, D) of log points [m, 2 or 4] from the law, [m, 3], and its standard deviations.

        A fitted (N, D) has its own offset; for any other only the scatter is known.
        """
        mean = np.zeros((len(points), 3))
        std = np.tile([self.pair_std_, *self.place_std_], (len(points), 1))
        for pair, offset, about in zip(self._pairs, self._offsets, self._offset_std, strict=True):
            same = (np.abs(points[:, :2] - pair) < 1e-3).all(1)
            mean[same], std[same] = offset, about
        return mean, std

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

    def _check_reach(self, points: Array) -> None:
        """Warn or refuse if log points [m, 2 or more] are far beyond the runs in N, D or compute."""
        beyond = self._efolds(points)
        row = int(beyond.argmax())
        tested = max((float(left.extrapolation.max()) for left in self.held_out_), default=1.0)
        size = ", ".join(f"{name} {np.exp(value):.3g}" for name, value in zip(COLUMNS[:2], points[row], strict=False))
        remedy = "run a small grid of learning rates and batch sizes nearer to it first"
        check_reach(float(np.exp(beyond[row])), tested, f"a run of {size}", remedy)

    def _efolds(self, points: Array) -> Array:
        """Distance [m] of log points [m, 4] beyond the fitted ones in N and D, or in compute if that is larger."""
        beyond = np.maximum(points[:, :2] - self._most, 0.0).sum(1)
        return np.asarray(np.maximum(beyond, points[:, :2].sum(1) - self._most_compute))

    def _held_out_error(self, form: str) -> float:
        """Mean regret and mean shape error on left-out runs; forms are compared by the runs that they choose."""
        records = [record for record in self.held_out_ if record.form == form]
        regret = np.concatenate([record.regret for record in records]) if records else np.zeros(0)
        if not len(regret):
            return float(form != "basin")
        return float(regret.mean() + np.mean([record.shape_error for record in records]))

    def _leave_largest_out(
        self, form: str, points: Array, losses: Array, rows: Rows, noise: float | None
    ) -> list[tuple[float, float, float]]:
        """Leave out the largest N, D and compute; return (error of the floor, its explained variance, e-folds)."""
        found: list[tuple[float, float, float]] = []
        seen: set[bytes] = set()
        sizes = (("params", points[:, 0]), ("tokens", points[:, 1]), ("compute", points[:, :2].sum(1)))
        for label, size in sizes:
            levels = np.unique(np.round(size, 3))
            if len(levels) < 2:
                continue
            # The largest level, or of many levels the largest quarter.
            kept = size < levels[-max(1, len(levels) // 4)] - 0.05
            if kept.tobytes() in seen or kept.sum() < 6 or (np.ptp(points[kept, 2:], axis=0) < 0.01).all():
                continue
            seen.add(kept.tobytes())
            fitted = basin.fit(form, points[kept], losses[kept], noise)
            out = ~kept
            x = points[out] - fitted.centre
            height = basin.height(fitted.theta[None], x)[0]
            predicted = basin.floor(fitted.theta[None], x)[0] + height
            miss = predicted - losses[out]
            near = 1 / (fitted.noise**2 + fitted.shared**2 + (basin.FAR * height) ** 2)
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
            slope = share @ basin.jacobian(fitted.theta[None], x)[0]
            explained = slope @ np.linalg.inv(fitted.precision) @ slope + fitted.pair**2 / (pair.max() + 1)
            found.append((float(share @ miss), float(explained), float(share @ far)))
        return found

    def _set_miss(self, found: list[tuple[float, float, float]]) -> None:
        """Unexplained variance per e-fold, from few errors and a prior guess."""
        miss, explained, far = np.array(found).reshape(-1, 3).T
        says = far / (explained + MISS**2 * far) ** 2
        beyond = max(0.0, float(says @ (miss**2 - explained) / (says @ far))) if len(far) else 0.0
        self._miss_freedom = COUNT + len(far)
        self.miss_per_efold_ = float(np.sqrt((COUNT * MISS**2 + len(far) * beyond) / self._miss_freedom))
