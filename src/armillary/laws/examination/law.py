"""Predicts an examination's score from a run's validation loss in two steps: loss to task loss to accuracy.

The steps are those of the OLMo ladder (Bhagia et al. 2024, "Establishing Task Scaling Laws via Compute-Efficient Model
Ladders", section 3): the loss on the task's right answers follows the loss by a simple curve, and the accuracy follows
the task loss by a sigmoid from chance to a ceiling (their equation 3, with the lower end held at chance).

Trade-offs taken:

- The first step is a line in the losses or in their logarithms, weighted by their predictions of the best runs from the
  others. A ladder ends near its target in loss, so a more flexible form would only fit noise.
- Small models do not show the ceiling of the sigmoid. It has a prior (most of the way to 1, rarely below half), and its
  uncertainty is part of the interval.
- If all models of a ladder answer at chance, the sigmoid is unknown. ``fit`` then refuses instead of returning the
prior.
- Chance is an argument, not fitted: with four options it is 0.25, and a fitted lower end would follow the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from armillary.laws.estimator import (
    Array,
    Estimator,
    Prediction,
    check_reach,
    checked_draws,
    checked_interval,
    checked_positive,
    checked_table,
    refuse_where,
    require_fitted,
    target_name,
)
from armillary.laws.values import Array as ArrayField
from armillary.laws.values import Codec, Fields, Flag, Listed, Mapped, Number, Record, Text, Whole
from armillary.recipe import UsageError, counted

Rows = NDArray[np.intp]

FORMS = ("linear", "power")
LEAST_RUNS = 5
# A loss below the lowest fitted one by more than this factor is refused: over a whole ladder a loss falls by a fifth.
MOST_EXTRAPOLATION = 2.0
# Even without options some answers are right by luck; this many right answers do not count as above chance.
LUCKY = 2
# Priors of the sigmoid: ceiling between chance and 1 on the logit scale, and the runs' own scatter in accuracy.
CEILING, CEILING_STD = 2.0, 1.2
SCATTER, SCATTER_STD = float(np.log(0.01)), 0.7
# The sigmoid rises from a tenth to nine tenths within about this share of the task loss.
WIDTH, STEEP_STD = 0.4, 0.8
_PROPOSALS = 8_000
# Noise added to each draw of the parameters this many times, for smooth ends of the intervals.
_REPEATS = 20


class AtChanceError(UsageError):
    """The runs do not answer better than chance, so no score can be predicted from them."""


@dataclass(frozen=True)
class LeftOutRuns:
    """Predictions of the best runs by a law of the other runs.

    Attributes:
        rows: their rows in the table given to ``fit``, [k].
        predicted: accuracies by the law of the others, [k].
        low: lower ends of the 90 % intervals, [k].
        high: upper ends, [k].
        measured: their accuracies, [k].
        extrapolation: lowest loss kept over the lowest loss left out.
    """

    rows: Rows
    predicted: Array
    low: Array
    high: Array
    measured: Array
    extrapolation: float


class ExaminationLaw(Estimator):
    """Accuracy of a run on a task from its validation loss, with intervals for a new run.

    Args:
        form: of the first step: ``linear``, ``power``, or ``auto`` for the average of both.
        chance: accuracy of a guess, such as 0.25 for four options; 0 for free answers.
        items: number of items of the task.
        bootstraps: draws for the uncertainty of the parameters.
        seed: of these draws.

    Attributes:
        chance_: chance in the fit; ``items_`` likewise.
        weights_: weight of each form of the first step.
        parameters_: means of the sigmoid's ``ceiling``, ``middle`` (task loss half way up), ``steepness`` and
            ``scatter`` (standard deviation of a run's accuracy beside the choice of items).
        draws_: the same for each draw, [b, 4], as ``middle``, log ``steepness``, logit of the ceiling, log ``scatter``.
        above_chance_: runs whose accuracy is significantly above chance.
        held_out_: the best runs left out, a list of ``LeftOutRuns``.
    """

    PARAMS: ClassVar[dict[str, Codec]] = {
        "form": Text(),
        "chance": Number(),
        "items": Whole(),
        "bootstraps": Whole(),
        "seed": Whole(),
    }
    # b draws; the first step has intercept, slope and noise for each of the two forms.
    FITTED: ClassVar[Fields] = {
        "two_steps": ("_two_steps", Flag()),
        "chance": ("chance_", Number()),
        "items": ("items_", Whole()),
        "noise_seed": ("_noise_seed", Whole()),
        "weights": ("weights_", Mapped(Number())),
        "first_step": ("_first", ArrayField("2 b 3")),
        "draws": ("draws_", ArrayField("b 4")),
        "lowest_loss": ("_lowest", Number()),
        "highest_loss": ("_highest", Number()),
        "above_chance": ("above_chance_", Whole()),
        "held_out": (
            "held_out_",
            Listed(
                Record(
                    LeftOutRuns,
                    {
                        "rows": ArrayField("k", kind="i"),
                        "predicted": ArrayField("k"),
                        "low": ArrayField("k"),
                        "high": ArrayField("k"),
                        "measured": ArrayField("k"),
                        "extrapolation": Number(),
                    },
                )
            ),
        ),
    }

    def __init__(
        self, *, form: str = "auto", chance: float = 0.0, items: int = 0, bootstraps: int = 400, seed: int = 0
    ) -> None:
        self.form = form
        self.chance = chance
        self.items = items
        self.bootstraps = bootstraps
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to the runs of a ladder.

        Args:
            X: [n, 1] validation losses, n >= 5.
            y: [n, 2] task losses and accuracies, or accuracies alone, [n] or [n, 1]; the validation loss then takes
                the place of the task loss.

        Raises:
            UsageError: a value that is not finite or out of its range (with row and column), too few runs, losses
                that are all equal, or accuracies that fall as the loss falls.
            AtChanceError: no run is significantly above chance.
        """
        self._forget()
        losses, task, accuracy = self._checked(X, y)
        self._two_steps = task is not None
        self.chance_, self.items_, self._noise_seed = float(self.chance), self.items, self.seed + 1
        through = losses if task is None else task
        # Accuracies at chance rise or fall randomly, so only the direction of the others is checked.
        self.above_chance_ = self._count_above_chance(accuracy)
        _refuse_falling(through, accuracy, "losses" if task is None else "task losses", int(task is not None))
        self._lowest, self._highest = float(losses.min()), float(losses.max())
        self.held_out_ = []
        best = np.argsort(losses, kind="stable")[: len(losses) // 3]
        kept = np.setdiff1d(np.arange(len(losses)), best)
        scores = dict.fromkeys(FORMS, 0.0)
        if len(kept) >= LEAST_RUNS - 1 and np.ptp(losses[kept]) > 0 and np.ptp(through[kept]) > 0:
            if task is not None:
                scores = {form: _score(form, losses, task, kept, best) for form in FORMS}
            self._set_steps(losses[kept], through[kept], accuracy[kept], scores)
            at = losses[best][:, None]
            mean, low, high = (part[..., -1] if part.ndim == 2 else part for part in self._forecast(at, 0.9))
            factor = float(losses[kept].min() / losses[best].min())
            self.held_out_.append(LeftOutRuns(best, mean, low, high, accuracy[best], factor))
        self._set_steps(losses, through, accuracy, scores)
        self._derive()
        return self

    def _derive(self) -> None:
        """See ``Estimator``."""
        middle, steep, ceiling, scatter = self.draws_.T
        self.parameters_ = {
            "ceiling": float(np.mean(self.chance_ + (1 - self.chance_) * special.expit(ceiling))),
            "middle": float(np.mean(middle)),
            "steepness": float(np.exp(np.mean(steep))),
            "scatter": float(np.exp(np.mean(scatter))),
        }

    def predict(self, X: ArrayLike, interval: float = 0.9) -> Prediction:
        """Expected scores of new runs, with intervals for the score of one run.

        Args:
            X: [m, 1] validation losses, or [m, 3] with the ends of their own intervals of the same ``interval``, as
                a scaling law predicts them; the uncertainty of the loss then widens the interval of the score.
            interval: probability that the interval covers.

        Returns:
            Prediction of three arrays, [m, 2] with the task loss and the accuracy, or [m] with the accuracy alone.

        Raises:
            UsageError: not fitted; an X as ``fit`` refuses it, or ends that do not enclose the loss.
            ExtrapolationError: a loss far below those that were fitted.
        """
        require_fitted(self, "parameters_")
        table = _losses(X)
        checked_interval(interval)
        beyond = self.extrapolation(table)
        row = int(beyond.argmax())
        tested = max((left.extrapolation for left in self.held_out_), default=1.0)
        check_reach(
            float(beyond[row]),
            tested,
            f"a loss of {table[row, 0]:.4g}",
            "add runs with lower losses to the ladder",
            MOST_EXTRAPOLATION,
        )
        return self._forecast(table, interval)

    def extrapolation(self, X: ArrayLike) -> Array:
        """Lowest loss fitted over the losses X [m, 1 or 3], [m]; below 1 inside the data."""
        require_fitted(self, "parameters_")
        return np.asarray(self._lowest / _losses(X)[:, 0])

    def probe(self) -> list[Array]:
        """See ``Estimator``."""
        require_fitted(self, "parameters_")
        points = np.array([self._lowest, (self._lowest * self._highest) ** 0.5, self._highest])
        return [*self.predict(points[:, None])]

    def _checked(self, X: ArrayLike, y: ArrayLike) -> tuple[Array, Array | None, Array]:
        """Losses [n], task losses [n] or None, accuracies [n]."""
        checked_draws(self.bootstraps)
        if self.form not in ("auto", *FORMS):
            raise UsageError(f"form is {self.form!r}; give auto, {' or '.join(FORMS)}")
        if not 0 <= self.chance < 1:
            raise UsageError(f"chance is {self.chance!r}; give the accuracy of a guess, such as 0.25 for four options")
        if self.items < 1:
            raise UsageError(f"items is {self.items!r}; give the number of items of the task")
        losses = checked_positive("X", X, columns=1, labels=("loss",), rows=LEAST_RUNS)[:, 0]
        given = np.reshape(y, (-1, 1)) if np.ndim(y) == 1 else y
        columns = checked_table("y", given)
        if columns.shape[1] > 2:
            raise UsageError(
                f"y has {counted(columns.shape[1], 'column')}; give task losses and accuracies, or accuracies"
            )
        if len(columns) != len(losses):
            raise UsageError(f"X has {counted(len(losses), 'row')} and y has {len(columns)}; give one row for each run")
        outside = np.zeros(columns.shape, dtype=bool)
        outside[:, -1] = (columns[:, -1] < 0) | (columns[:, -1] > 1)
        refuse_where(outside, "y", columns, "an accuracy must be between 0 and 1", None)
        two = columns.shape[1] == 2
        if two:
            outside[:, 0], outside[:, 1] = columns[:, 0] <= 0, False
            refuse_where(outside, "y", columns, "a task loss is above 0", None)
        task, accuracy = (columns[:, 0] if two else None), columns[:, -1]
        for name, values in (("losses", losses), *([] if task is None else [("task losses", task)])):
            if np.ptp(values) < 1e-9 * values.max():
                raise UsageError(f"all {name} are {values[0]:g}; a law needs runs of several losses")
        return losses, task, accuracy

    def _count_above_chance(self, accuracy: Array) -> int:
        """How many runs are above chance, corrected for the number of runs.

        Raises:
            AtChanceError: none.
        """
        guess = max(self.chance, min(LUCKY / self.items, 0.5))
        right = np.round(accuracy * self.items)
        p_values = stats.binom.sf(right - 1, self.items, guess)
        above = int((p_values * len(accuracy) < 0.05).sum())
        if not above:
            raise AtChanceError(
                f"cannot be predicted: none of the {counted(len(accuracy), 'run')} answers significantly better "
                f"than chance "
                f"({self.chance:g}; the best has {accuracy.max():.4g} on {counted(self.items, 'item')}, p = "
                f"{p_values.min():.2g}, "
                f"and p below {0.05 / len(accuracy):.2g} is needed). Add larger runs or items, or predict the task "
                "loss with 'armillary fit scaling'"
            )
        return above

    def _set_steps(self, losses: Array, through: Array, accuracy: Array, scores: dict[str, float]) -> None:
        """Fit both steps; ``scores`` are the log scores of the forms of the first."""
        rng = np.random.default_rng(self.seed)
        top = max(scores.values())
        shares = {form: float(np.exp(score - top)) for form, score in scores.items()}
        if self.form != "auto":
            shares = {form: float(form == self.form) for form in FORMS}
        self.weights_ = {form: share / sum(shares.values()) for form, share in shares.items()}
        self._first = np.stack([_line(form, losses, through, self.bootstraps, rng) for form in FORMS])
        about = accuracy, _sampling(accuracy, self.items)
        self.draws_ = _sigmoid(through, about, self.chance, rng, self.bootstraps)

    def _forecast(self, table: Array, interval: float) -> Prediction:
        """See ``predict``; the input is good."""
        rng = np.random.default_rng(self._noise_seed)
        tail = (1 - interval) / 2
        # One draw of the noise for all rows, so that a run's prediction does not depend on the other rows.
        shape = (_REPEATS * len(self.draws_), 1)
        logs = np.log(table)
        about = (logs[:, 2] - logs[:, 1]) / (2 * stats.norm.isf(tail)) if table.shape[1] == 3 else 0.0
        losses = np.exp(logs[:, 0] + about * rng.standard_normal(shape))
        expected, through = losses, losses
        if self._two_steps:
            first = np.tile(self._first, (1, _REPEATS, 1))
            linear = rng.random(shape) < self.weights_["linear"]
            noise = rng.standard_normal(shape)
            lines, powers = (
                first[k, :, :1] + first[k, :, 1:2] * base for k, base in enumerate((losses, np.log(losses)))
            )
            floor = 1e-3 * self._lowest
            expected = np.where(linear, np.maximum(lines, floor), np.exp(powers))
            through = np.where(
                linear,
                np.maximum(lines + noise * first[0, :, 2:], floor),
                np.exp(powers + noise * first[1, :, 2:]),
            )
        draws = np.tile(self.draws_, (_REPEATS, 1))
        share = _accuracy(draws, through, self.chance_)
        spread = np.sqrt(np.exp(2 * draws[:, 3:]) + share * (1 - share) / self.items_)
        scores = np.clip(share + spread * rng.standard_normal(shape), 0.0, 1.0)
        parts = [_summary(_accuracy(draws, expected, self.chance_), scores, tail)]
        if self._two_steps:
            parts.insert(0, _summary(expected, through, tail))
            return Prediction(*(np.stack(part, axis=1) for part in zip(*parts, strict=True)))
        return Prediction(*parts[0])


def _refuse_falling(through: Array, accuracy: Array, name: str, target: int) -> None:
    """Raise UsageError if accuracies fall with the losses, which shows that a column was misinterpreted."""
    rank = stats.spearmanr(through, accuracy).statistic if np.ptp(accuracy) > 0 else 0.0
    if rank > 0.5:
        raise UsageError(
            f"{target_name(target)} falls as the {name} fall (rank correlation {rank:.2f}); an accuracy rises. Check "
            "the order of the columns"
        )


def _losses(X: ArrayLike) -> Array:
    """X as a table [m, 1 or 3] of losses above 0, the second and third column around the first."""
    table = checked_positive("X", X)
    if table.shape[1] not in (1, 3):
        raise UsageError(
            f"X has shape {list(table.shape)}; give a loss per row, or a loss and the ends of its interval"
        )
    if table.shape[1] == 3:
        wrong = np.zeros(table.shape, dtype=bool)
        wrong[:, 1], wrong[:, 2] = table[:, 1] > table[:, 0], table[:, 2] < table[:, 0]
        refuse_where(wrong, "X", table, "the ends of the interval must enclose the loss", ("loss", "low", "high"))
    return table


def _summary(expected: Array, drawn: Array, tail: float) -> tuple[Array, Array, Array]:
    """Median of the expectation and the ends of the interval, each [m], from draws [b, m]."""
    mean = np.median(expected, axis=0)
    low, high = np.quantile(drawn, (tail, 1 - tail), axis=0)
    return mean, np.minimum(low, mean), np.maximum(high, mean)


def _coordinates(form: str, losses: Array, through: Array) -> tuple[Array, Array]:
    return (losses, through) if form == "linear" else (np.log(losses), np.log(through))


def _least_squares(x: Array, y: Array) -> tuple[Array, Array, float, int]:
    """Coefficients, their unscaled covariance, the residual variance and its degrees of freedom.

    One extra residual of a hundredth of a percent keeps the noise above 0 for points on a line.
    """
    design = np.column_stack([np.ones_like(x), x])
    inverse = np.linalg.inv(design.T @ design)
    beta = inverse @ design.T @ y
    freedom = len(x) - 1
    residual = float(((y - design @ beta) ** 2).sum() + (1e-4 * np.abs(y).mean()) ** 2) / freedom
    return beta, inverse, residual, freedom


def _line(form: str, losses: Array, through: Array, count: int, rng: np.random.Generator) -> Array:
    """Draws [count, 3] of intercept, slope and noise, with a flat prior."""
    beta, inverse, residual, freedom = _least_squares(*_coordinates(form, losses, through))
    noise = np.sqrt(residual * freedom / rng.chisquare(freedom, count))
    root = np.linalg.cholesky(inverse)
    return np.column_stack([beta + noise[:, None] * (rng.standard_normal((count, 2)) @ root.T), noise])


def _score(form: str, losses: Array, task: Array, kept: Rows, best: Rows) -> float:
    """Log score of the runs ``best`` under a first step that was fitted to ``kept``, in units of log task loss."""
    x, y = _coordinates(form, losses, task)
    beta, inverse, residual, freedom = _least_squares(x[kept], y[kept])
    at = np.column_stack([np.ones(len(best)), x[best]])
    scale = np.sqrt(residual * (1 + np.einsum("ij,jk,ik->i", at, inverse, at)))
    found = stats.t.logpdf((y[best] - at @ beta) / scale, freedom) - np.log(scale)
    # A density of the task loss becomes one of its logarithm.
    return float((found + (np.log(task[best]) if form == "linear" else 0.0)).mean())


def _accuracy(draws: Array, task: Array, chance: float) -> Array:
    """The sigmoid [b, m] at task losses [b, m] or [m], for draws [b, 4]."""
    middle, steep, ceiling = (draws[:, k : k + 1] for k in range(3))
    rise = special.expit(np.exp(steep) * (middle - task))
    return np.asarray(chance + (1 - chance) * special.expit(ceiling) * rise)


def _sampling(accuracy: Array, items: int) -> Array:
    """Variance of accuracies [n] from the choice of items; above 0 even if all or none are right."""
    shrunk = (accuracy * items + 1) / (items + 2)
    return np.asarray(shrunk * (1 - shrunk) / items)


def _sigmoid(task: Array, measured: tuple[Array, Array], chance: float, rng: np.random.Generator, count: int) -> Array:
    """Draws [count, 4] of the sigmoid's parameters from their posterior, by importance resampling around its peak.

    ``measured`` holds the accuracies [n] and their variance by the choice of items.
    """
    centre, size = float(np.median(task)), float(np.mean(task))
    # Between a tenth and nine tenths a sigmoid covers 4.4 / steepness.
    prior = np.array([centre, np.log(4.4 / (WIDTH * size)), CEILING, SCATTER])
    about = np.array([0.5 * size + np.ptp(task), STEEP_STD, CEILING_STD, SCATTER_STD])
    accuracy, sampling = measured

    def log_posterior(theta: Array) -> Array:
        variance = np.exp(2 * theta[:, 3:]) + sampling
        misses = (accuracy - _accuracy(theta, task, chance)) ** 2 / variance + np.log(variance)
        return np.asarray(-0.5 * misses.sum(1) - 0.5 * (((theta - prior) / about) ** 2).sum(1))

    # The search for the peak starts at the best of many guesses from the prior.
    guesses = prior + about * rng.standard_normal((_PROPOSALS, 4))
    start = guesses[log_posterior(guesses).argmax()]
    peak = optimize.minimize(lambda theta: -log_posterior(theta[None])[0], start, method="BFGS").x
    mean, covariance = peak, _covariance(log_posterior, peak, about)
    # The second round uses mean and width of the first, for skewed posteriors.
    for _ in range(2):
        proposal = stats.multivariate_t(mean, 1.5 * covariance, df=4, seed=rng)
        theta = proposal.rvs(_PROPOSALS)
        logs = log_posterior(theta) - proposal.logpdf(theta)
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        mean = weights @ theta
        covariance = (theta - mean).T @ ((theta - mean) * weights[:, None]) + 1e-9 * np.diag(about**2)
    # Systematic resampling: less noise than independent draws.
    places = (np.arange(count) + rng.random()) / count
    chosen = np.minimum(np.searchsorted(np.cumsum(weights), places), _PROPOSALS - 1)
    return np.asarray(theta[rng.permutation(chosen)])


def _covariance(log_posterior: object, peak: Array, about: Array) -> Array:
    """Inverse curvature at the peak by finite differences; the prior's if the curvature is not that of a peak."""
    assert callable(log_posterior)
    step = 1e-3 * about
    eye = np.diag(step)
    corners = [peak + s * eye[i] + t * eye[j] for i in range(4) for j in range(4) for s in (1, -1) for t in (1, -1)]
    values = log_posterior(np.array(corners)).reshape(4, 4, 2, 2)
    curve = -(values[..., 0, 0] - values[..., 0, 1] - values[..., 1, 0] + values[..., 1, 1]) / (
        4 * np.outer(step, step)
    )
    wide, turn = np.linalg.eigh((curve + curve.T) / 2 * np.outer(about, about))
    # In units of the prior, limit the width: at most the prior's, and at least what finite differences resolve.
    scaled = turn @ np.diag(1 / np.clip(wide, 1.0, 1e8)) @ turn.T
    return np.asarray(scaled * np.outer(about, about))
