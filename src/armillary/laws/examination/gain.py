"""Predicts the score or loss after fine-tuning on all data from runs on parts of it such as 1/8, 1/4 and 1/2.

The curve is a power law in the data with a floor, ``loss(D) = E + A D^-a``, on the scale of the loss, or on that of the
logit of the score above chance. Its parameters are those that runs determine best: the level at the largest part, the
gain of the last doubling before it, and the exponent. An exponent of 0 is a straight line in ``log D``; a small
negative one describes a skill that has just begun to rise.

Three sizes cannot determine level, gain, exponent and the noise between seeds. Level and gain follow the runs. Exponent
and noise have priors, stated below, and three sizes seldom add to them. Scores have two kinds of priors: for a skill
that is refined, and for one that the model does not have yet. The interval is a mixture over their values.
Several seeds per size make it narrower; more sizes do not.

The interval covers one new run on all of the data, examined on the held-out items. With the score of each item, it
holds for the same items. Their difficulty is then not noise, and the noise of a seed is estimated from the disagreement
of two runs. With means only, it holds for the same number of other items of the kind and is wider.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

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
)
from armillary.laws.examination.law import LUCKY, AtChanceError
from armillary.laws.values import Array as ArrayField
from armillary.laws.values import Codec, Fields, Number, Text, Whole
from armillary.recipe import UsageError

FORMS = ("score", "loss")
LEAST_SIZES = 3
# Beyond this factor over the largest part only the exponent matters, which the runs do not determine.
MOST_EXTRAPOLATION = 16.0
# The most common step, from one half to all, was tested by the step before it, from 1/4 to 1/2.
TESTED = 2.0


@dataclass(frozen=True)
class Kind:
    """Priors of one kind of learning: of the gain of the last doubling, the exponent, and the log noise of a seed.

    Gain and noise are in logits of a score, or in units of the last loss. ``share`` is the prior probability of the
    kind.
    """

    share: float
    gain: tuple[float, float]
    exponent: tuple[float, float]
    range: tuple[float, float]
    noise: tuple[float, float]


# The form is that of Zhang et al. 2024, "When Scaling Meets LLM Finetuning", equation 1, at one model size; the widths
# are ours. The noise of one seed: two seeds that differ by 6 points at a score of 0.3 correspond to a standard
# deviation of 0.2 in the logit. If the model lacks a skill at the smallest part and mostly has it at the end, the logit
# rises nearly linearly, by more than one per doubling. Its runs differ more, since a seed moves the time of the rise.
# Tuned on two fine-tunings of a small model on short tasks.
KINDS = {
    "score": (
        Kind(0.8, (0.0, 0.6), (0.4, 0.4), (-0.4, 2.0), (float(np.log(0.1)), 0.5)),
        Kind(0.2, (1.5, 1.0), (0.2, 0.5), (-0.8, 2.0), (float(np.log(0.3)), 0.5)),
    ),
    "loss": (Kind(1.0, (0.0, 0.2), (0.4, 0.4), (0.0, 2.0), (float(np.log(0.01)), 0.6)),),
}
_LEVEL_STD = 10.0
_PROPOSALS = 8_000
_REPEATS = 20


class GainLaw(Estimator):
    """Score or loss of a run by the data that it was fine-tuned on, with intervals for a new run on more of it.

    Args:
        form: ``score`` (a share of right answers, between chance and 1) or ``loss`` (above 0).
        chance: accuracy of a guess, for scores.
        items: number of held-out items, for scores that are given as means.
        bootstraps: draws for the uncertainty of the curve.
        seed: of these draws.

    Attributes:
        form_, chance_, items_: the arguments of the fit; ``items_`` is 0 for losses.
        draws_: posterior draws [b, 4] of level and gain of the last doubling (on the curve's scale), exponent, and log
            of the noise between seeds.
        parameters_: their means, under ``level``, ``gain``, ``exponent`` and ``noise``.
        flips_: share of the items' variance that differs between two runs of equal skill; 1 where only means are known.
        largest_: the largest part of the data, and ``smallest_``.
    """

    PARAMS: ClassVar[dict[str, Codec]] = {
        "form": Text(),
        "chance": Number(),
        "items": Whole(),
        "bootstraps": Whole(),
        "seed": Whole(),
    }
    FITTED: ClassVar[Fields] = {
        "form": ("form_", Text()),
        "chance": ("chance_", Number()),
        "items": ("items_", Whole()),
        "noise_seed": ("_noise_seed", Whole()),
        "unit": ("_unit", Number()),
        "flips": ("flips_", Number()),
        "smallest": ("smallest_", Number()),
        "largest": ("largest_", Number()),
        "draws": ("draws_", ArrayField("b 4")),
    }

    def __init__(
        self, *, form: str = "score", chance: float = 0.0, items: int = 0, bootstraps: int = 400, seed: int = 0
    ) -> None:
        self.form = form
        self.chance = chance
        self.items = items
        self.bootstraps = bootstraps
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to runs on parts of the data.

        Args:
            X: [n, 1] sizes of the parts, in any unit, of at least three sizes; seeds are rows of equal size.
            y: [n] mean scores or losses of the runs, or [n, items] with the score of each item, the same items in the
                same columns.

        Raises:
            UsageError: a value that is not finite or out of its range (with row and column), fewer than three sizes.
            AtChanceError: the runs on the largest part do not answer better than chance.
        """
        self._forget()
        checked_draws(self.bootstraps)
        if self.form not in FORMS:
            raise UsageError(f"form is {self.form!r}; give {' or '.join(FORMS)}")
        if not 0 <= self.chance < 1:
            raise UsageError(f"chance is {self.chance!r}; give the accuracy of a guess, such as 0.25 for four options")
        sizes = checked_positive("X", X, columns=1, labels=("data",), rows=LEAST_SIZES)[:, 0]
        table = checked_table("y", np.reshape(y, (-1, 1)) if np.ndim(y) == 1 else y)
        if len(table) != len(sizes):
            raise UsageError(f"X has {len(sizes)} rows and y has {len(table)}; give one row for each run")
        if len(np.unique(sizes)) < LEAST_SIZES:
            raise UsageError(
                f"the runs have {len(np.unique(sizes))} sizes of data; give runs on {LEAST_SIZES} or more, such as "
                "1/8, 1/4 and 1/2 of it"
            )
        # Sort, so that the result does not depend on the order, to the last bit.
        order = np.lexsort([*table.T[::-1], sizes])
        sizes, table = sizes[order], table[order]
        self.form_, self._noise_seed = self.form, self.seed + 1
        self.smallest_, self.largest_ = float(sizes[0]), float(sizes[-1])
        values, variance = self._scores(sizes, table) if self.form == "score" else self._losses(sizes, table)
        self.draws_ = _posterior(sizes / self.largest_, values, variance, self.form, self._drawing())
        self._derive()
        return self

    def predict(self, X: ArrayLike, interval: float = 0.9) -> Prediction:
        """Expected score or loss [m] of a new run on each size of data X [m, 1], with intervals for one run.

        Raises:
            UsageError: not fitted; an X as ``fit`` refuses it.
            ExtrapolationError: more than 16 times the largest part.
        """
        require_fitted(self, "parameters_")
        sizes = checked_positive("X", X, columns=1, labels=("data",))[:, 0]
        checked_interval(interval)
        beyond = self.extrapolation(X)
        row = int(beyond.argmax())
        remedy = "train on a larger part of the data first"
        check_reach(float(beyond[row]), TESTED, f"{sizes[row]:g} of data", remedy, MOST_EXTRAPOLATION)
        rng = np.random.default_rng(self._noise_seed)
        tail = (1 - interval) / 2
        draws = np.tile(self.draws_, (_REPEATS, 1))
        level, gain, exponent, log_noise = (draws[:, k : k + 1] for k in range(4))
        curve = level + gain * _rise(sizes / self.largest_, exponent)
        noisy = curve + np.exp(log_noise) * rng.standard_normal((len(draws), 1))
        if self.form_ == "loss":
            expected, seen = (self._unit * np.maximum(part, 1e-3) for part in (curve, noisy))
        else:
            expected, share = (self.chance_ + (1 - self.chance_) * special.expit(part) for part in (curve, noisy))
            flipped = np.sqrt(self.flips_ * share * (1 - share) / self.items_)
            seen = np.clip(share + flipped * rng.standard_normal((len(draws), 1)), 0.0, 1.0)
        mean = np.median(expected, axis=0)
        low, high = np.quantile(seen, (tail, 1 - tail), axis=0)
        return Prediction(mean, np.minimum(low, mean), np.maximum(high, mean))

    def extrapolation(self, X: ArrayLike) -> Array:
        """Sizes X [m, 1] over the largest part, [m]; below 1 inside the data."""
        require_fitted(self, "parameters_")
        return np.asarray(checked_positive("X", X, columns=1)[:, 0] / self.largest_)

    def probe(self) -> list[Array]:
        """See ``Estimator``."""
        require_fitted(self, "parameters_")
        return [*self.predict(np.array([[self.smallest_], [self.largest_], [TESTED * self.largest_]]))]

    def _derive(self) -> None:
        """See ``Estimator``."""
        means = self.draws_.mean(axis=0)
        self.parameters_ = dict(zip(("level", "gain", "exponent"), map(float, means[:3]), strict=True))
        self.parameters_["noise"] = float(np.exp(means[3]))

    def _drawing(self) -> tuple[np.random.Generator, int]:
        return np.random.default_rng(self.seed), self.bootstraps

    def _losses(self, sizes: Array, table: Array) -> tuple[Array, Array]:
        """Losses in units of that at the largest part, and their variance by the choice of items: the same, so 0."""
        refuse_where(table <= 0, "y", table, "a loss is above 0", None)
        losses = table.mean(axis=1)
        self.chance_, self.items_, self.flips_ = 0.0, 0, 0.0
        self._unit = float(losses[sizes == self.largest_].mean())
        return losses / self._unit, np.zeros(len(losses))

    def _scores(self, sizes: Array, table: Array) -> tuple[Array, Array]:
        """Logits of the scores above chance [n], and their variance from items that flip between runs."""
        refuse_where((table < 0) | (table > 1), "y", table, "a score must be between 0 and 1", None)
        items = table.shape[1] if table.shape[1] > 1 else self.items
        if items < 1:
            raise UsageError(f"items is {self.items!r}; give the number of held-out items, or the score of each")
        self.chance_, self.items_, self._unit = float(self.chance), items, 1.0
        scores = table.mean(axis=1)
        self._refuse_chance(scores[sizes == self.largest_])
        self.flips_ = _flips(sizes, table) if table.shape[1] > 1 else 1.0
        # Keep half an item away from chance and 1, where the logit is infinite.
        above = np.clip((scores - self.chance_) / (1 - self.chance_), 0.5 / (items + 1), 1 - 0.5 / (items + 1))
        shrunk = (scores * items + 1) / (items + 2)
        slope = 1 / (above * (1 - above) * (1 - self.chance_))
        return special.logit(above), self.flips_ * shrunk * (1 - shrunk) / items * slope**2

    def _refuse_chance(self, scores: Array) -> None:
        """Raise AtChanceError unless the runs on the largest part are above chance together."""
        guess = max(self.chance_, min(LUCKY / self.items_, 0.5))
        # The seeds share their items, so more seeds do not mean more items.
        right = round(float(scores.mean()) * self.items_)
        p_value = float(stats.binom.sf(right - 1, self.items_, guess))
        if p_value >= 0.05:
            raise AtChanceError(
                f"cannot be predicted: the runs on the largest part of the data answer {scores.mean():.4g} of "
                f"{self.items_} items, not significantly better than chance ({self.chance_:g}; p = {p_value:.2g}). Add "
                "items or data, or predict the loss (form 'loss')"
            )


def _rise(shares: Array, exponent: Array) -> Array:
    """The gain of the curve at shares [m] of the largest part, in units of its last doubling, [b, m]."""
    logs = np.log(shares)[None, :]
    straight = np.abs(exponent) < 1e-6
    safe = np.where(straight, 1.0, exponent)
    bent = -np.expm1(-safe * logs) / np.expm1(safe * np.log(2))
    return np.asarray(np.where(straight, logs / np.log(2), bent))


def _flips(sizes: Array, table: Array) -> float:
    """The share of the items' variance that two runs of equal skill do not share.

    Two runs of one size differ on an item with probability ``2 p (1 - p)`` for its own chance ``p``; half of that, over
    the variance of all items, is the share. Without two seeds of a size, runs of neighbouring sizes are used. They also
    differ by their gain, so the share is then too large.
    """
    pairs = [(i, i + 1) for i in range(len(sizes) - 1) if sizes[i] == sizes[i + 1]]
    pairs = pairs or [(i, i + 1) for i in range(len(sizes) - 1)]
    apart = float(np.mean([((table[i] - table[j]) ** 2).mean() for i, j in pairs])) / 2
    spread = float(np.mean(table.mean(axis=1) * (1 - table.mean(axis=1))))
    return float(np.clip(apart / spread, 0.02, 1.0)) if spread > 0 else 1.0


def _posterior(
    shares: Array, values: Array, variance: Array, form: str, drawing: tuple[np.random.Generator, int]
) -> Array:
    """Draws [b, 4] of level, gain, exponent and log noise.

    Given kind, exponent and noise the curve is linear in level and gain, whose posterior is then normal in closed form.
    The others are drawn from their priors and weighted by the marginal likelihood.
    """
    rng, count = drawing
    centre = float(values[-1])
    misses = values - centre
    fits = [_given(kind, shares, misses, variance, rng) for kind in KINDS[form]]
    exponent, log_noise, best, curvature, logs = (np.concatenate(part) for part in zip(*fits, strict=True))
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    places = (np.arange(count) + rng.random()) / count
    chosen = rng.permutation(np.minimum(np.searchsorted(np.cumsum(weights), places), len(weights) - 1))
    root = np.linalg.cholesky(np.linalg.inv(curvature[chosen]))
    drawn = best[chosen] + np.einsum("bij,bj->bi", root, rng.standard_normal((count, 2)))
    return np.column_stack([drawn[:, 0] + centre, drawn[:, 1], exponent[chosen], log_noise[chosen]])


def _given(
    kind: Kind, shares: Array, misses: Array, variance: Array, rng: np.random.Generator
) -> tuple[Array, Array, Array, Array, Array]:
    """Proposals of one kind: exponents and log noises [P], the normal posterior of level and gain (mean [P, 2] and
    precision [P, 2, 2]), and log weights [P]."""
    (mean, std), (lowest, highest) = kind.exponent, kind.range
    bounds = (lowest - mean) / std, (highest - mean) / std
    exponent = mean + std * stats.truncnorm.rvs(*bounds, size=_PROPOSALS, random_state=rng)
    log_noise = kind.noise[0] + kind.noise[1] * rng.standard_normal(_PROPOSALS)
    precision = 1 / (variance + np.exp(2 * log_noise)[:, None])  # [proposals, runs]
    rise = _rise(shares, exponent[:, None])
    # The normal equations of level and gain, [proposals, 2, 2] and [proposals, 2].
    design = np.stack([np.ones_like(rise), rise], axis=-1)
    prior = np.array([_LEVEL_STD**-2, kind.gain[1] ** -2])
    expected = np.array([0.0, kind.gain[0]])
    curvature = np.einsum("pn,pni,pnj->pij", precision, design, design) + np.diag(prior)
    pull = np.einsum("pn,pni,n->pi", precision, design, misses) + prior * expected
    best = np.linalg.solve(curvature, pull[..., None])[..., 0]
    logs = 0.5 * np.log(precision).sum(axis=1) - 0.5 * np.linalg.slogdet(curvature)[1]
    logs += 0.5 * (pull * best).sum(axis=1) - 0.5 * precision @ misses**2
    logs += np.log(kind.share) + 0.5 * (np.log(prior) - prior * expected**2).sum()
    return exponent, log_noise, best, curvature, logs
