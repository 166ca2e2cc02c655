"""The ladder: models of growing size and tokens with the recipe found, and a law fitted to their losses.

Every rung trains one stable trunk and decays from it at each data size, so a point costs little more than its decay
(Hägele et al. 2024, arXiv 2405.18392). A study can have ladders of several families.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import numpy as np

from armillary.laws import ExtrapolationError, ExtrapolationWarning, Prediction, ScalingLaw, SetAsideWarning
from armillary.recipe import ArmillaryError, Document, RunSpec, UsageError, counted
from armillary.study.lab import Annealing, Lab, RunSize, StageOutcome, laws_speak_of, quiet
from armillary.study.lr import PeakRates

_SEED = 3000
MIN_POINTS = 6
# A larger model whose loss is higher by this share at the same tokens: three times the usual spread between seeds.
RISE = 0.01


class Point(Document):
    """One run of the ladder: its size, and the loss on every validation domain and on the target."""

    run: str
    family: str
    depth: int
    seed: int
    parameters: int
    tokens: int
    flops: float
    loss: dict[str, float]
    target: float


class Rise(Document):
    """A larger model that ended with a higher target loss than a smaller one after the same tokens."""

    smaller: int
    larger: int
    tokens: int
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"after {self.tokens:,} tokens the target loss of depth {self.larger} is {self.after:.3f}, above the "
            f"{self.before:.3f} of depth {self.smaller}: with so few steps the learning rate does not suit the deeper "
            "models, and forecasts for larger ones are biased low; lower training.lr, or give more tokens"
        )


class LadderOutcome(StageOutcome):
    """All points of the ladder, for every family with enough points for a law.

    ``left_out`` says what every other family lacks, and ``aside`` holds the points of these families.
    """

    points: list[Point]
    left_out: dict[str, str] = {}  # noqa: RUF012 (pydantic copies it)
    aside: list[Point] = []  # noqa: RUF012
    trunks: list[str] = []  # noqa: RUF012

    @property
    def study_runs(self) -> dict[str, list[str]]:
        """Ids of the ladder's runs: trunks, points, and those without a result."""
        runs = [*self.trunks, *(p.run for p in (*self.points, *self.aside)), *self.lost]
        return {"ladder": list(dict.fromkeys(runs))}

    def sizes(self, family: str) -> np.ndarray:
        """[n, 2] parameters and tokens of a family's points."""
        return np.array([[p.parameters, p.tokens] for p in self.points if p.family == family], float)

    def rise(self, family: str) -> Rise | None:
        """The largest rise of the target loss from one depth to the next at the same tokens, if it exceeds ``RISE``."""
        means: dict[tuple[int, int], float] = {}
        own = [point for point in self.points if point.family == family]
        for depth, tokens in sorted({(point.depth, point.tokens) for point in own}):
            means[tokens, depth] = fmean(p.target for p in own if (p.depth, p.tokens) == (depth, tokens))
        steps = [
            Rise(smaller=a, larger=b, tokens=tokens, before=means[tokens, a], after=means[tokens, b])
            for (tokens, a), (other, b) in pairwise(sorted(means))
            if tokens == other
        ]
        worst = max(steps, key=lambda step: step.after / step.before, default=None)
        return worst if worst is not None and worst.after > (1 + RISE) * worst.before else None

    def losses(self, family: str, domain: str | None) -> np.ndarray:
        """[n] losses of a family's points on ``domain``, or on the target for None."""
        return np.array([p.target if domain is None else p.loss[domain] for p in self.points if p.family == family])


def ladder_study(
    lab: Lab, mixture: dict[str, float], annealing: Annealing, rates: PeakRates | None = None
) -> LadderOutcome:
    """Run the ladder with ``mixture``, ``annealing`` and ``rates``, or return its recorded outcome.

    Without ``rates``, the peak learning rates follow the recipe's rule. A family with too few points is left out of the
    comparison.

    Raises:
        ArmillaryError: too few points for a law of the target's family; the next call retries runs with a transient
            cause.
        InterruptedStudyError: Ctrl-C; call again to resume.
    """
    recipe, study = lab.recipe, lab.recipe.study.ladder
    longest = lab.steps(lab.plan.tokens["ladder"])
    # One warm-up for all points of a trunk, as long as that of a whole run if it fits into the shortest.
    shortest = max(2, round(min(study.fractions) * longest))
    warmup = min(round(recipe.training.warmup_share * longest), shortest - max(1, round(annealing.share * shortest)))
    specs: dict[str, tuple[str, int, int, RunSpec]] = {}
    for family in study.families:
        for depth in study.depths:
            shape = lab.shape(family, depth)
            lr = None if rates is None else rates.ladder[f"{family}/{depth}"]
            for seed in range(_SEED, _SEED + study.seeds):
                for fraction in study.fractions:
                    steps = max(2, round(fraction * longest))
                    spec = lab.annealed(RunSize(shape, steps, warmup, lr=lr), annealing, mixture, seed)
                    specs[spec.id] = (family, depth, seed, spec)
    every = [spec for *_, spec in specs.values()]
    key = lab.key(every, [[family, depth] for family, depth, *_ in specs.values()], recipe.model.family)
    known = lab.stored("ladder", key, LadderOutcome)
    if known is not None:
        return known
    jobs = lab.with_trunks(every)
    arms = {run: f"{family}/{depth}" for run, (family, depth, *_) in specs.items()}
    trained = lab.train("ladder", jobs, arms)
    lab.drop_trunks(jobs, trained)
    points = [
        Point(
            run=run,
            family=family,
            depth=depth,
            seed=seed,
            parameters=spec.model.parameters,
            tokens=spec.tokens,
            flops=spec.flops,
            loss=trained.results[run].loss,
            target=lab.target_loss(trained.results[run]),
        )
        for run, (family, depth, seed, spec) in specs.items()
        if run in trained.results
    ]
    left_out = {family: why for family in study.families if (why := _too_few(points, family))}
    if recipe.model.family in left_out:
        first = f"; first cause: {trained.failed[0]}" if trained.failed else ""
        raise ArmillaryError(
            f"ladder: {left_out[recipe.model.family]}{first}; add depths or fractions under study.ladder, or run the "
            "same command again, which retries runs with a transient cause"
        )
    for family, why in left_out.items():
        lab.say(f"ladder: family '{family}' is left out: {why}")
    outcome = LadderOutcome(
        points=[point for point in points if point.family not in left_out],
        left_out=left_out,
        aside=[point for point in points if point.family in left_out],
        trunks=[job.spec.id for job in jobs if job.spec.id not in specs],
        failed=trained.failed,
    )
    for family in dict.fromkeys(point.family for point in outcome.points):
        if (rise := outcome.rise(family)) is not None:
            lab.say(f"ladder: family '{family}': {rise}")
    return lab.conclude("ladder", key, outcome)


def _too_few(points: Sequence[Point], family: str) -> str | None:
    """The reason why a family has too few points for a law, or None."""
    own = [point for point in points if point.family == family]
    sizes, tokens = len({point.parameters for point in own}), len({point.tokens for point in own})
    if len(own) >= MIN_POINTS and sizes >= 2 and tokens >= 2:
        return None
    return (
        f"{counted(len(own), 'point')} of {counted(sizes, 'size')} and {counted(tokens, 'number')} of tokens "
        f"for family '{family}', but a law needs "
        f"{MIN_POINTS} of at least 2 sizes and 2 numbers of tokens"
    )


def fit_law(
    outcome: LadderOutcome, family: str, domains: Sequence[str], say: Callable[[str], None] = quiet
) -> ScalingLaw:
    """One law for the losses on all ``domains`` and, in the last column, the target loss.

    ``say`` gets the losses that the law leaves out, with their runs.

    Raises:
        ArmillaryError: the family has too few points.
    """
    try:
        runs = [f"run {point.run}" for point in outcome.points if point.family == family]
        with laws_speak_of(runs, [*domains, "target"], say):
            return ScalingLaw().fit(outcome.sizes(family), _table(outcome, family, domains))
    except UsageError as error:  # not the user's input: the runs do not suit a law
        raise ArmillaryError(f"ladder: no law can be fitted to the points of family '{family}': {error}") from error


@dataclass(frozen=True)
class HeldOutRung:
    """Predictions for the largest models or the longest runs by a law fitted without them; k runs, t losses.

    ``what`` names the feature and the bound of the held-out runs; ``extrapolation`` [k] is their compute over the
    largest kept run's (see ``fit_law``).
    """

    what: str
    prediction: Prediction
    measured: np.ndarray
    extrapolation: np.ndarray


def hold_out_rungs(outcome: LadderOutcome, family: str, domains: Sequence[str]) -> list[HeldOutRung]:
    """Hold out the largest models, then the longest runs, if the rest suffices for a law.

    The longest runs share their trunks with shorter ones, so they are a milder test than the largest models.
    """
    sizes, losses = outcome.sizes(family), _table(outcome, family, domains)
    rungs = []
    for column, label in enumerate(("parameters", "tokens")):
        largest = sizes[:, column].max()
        smaller = sizes[:, column] < 0.99 * largest
        if smaller.sum() < MIN_POINTS or any(len(np.unique(sizes[smaller, other])) < 2 for other in (0, 1)):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExtrapolationWarning)  # extrapolation is the purpose here
            warnings.simplefilter("ignore", SetAsideWarning)  # the law of all points reports the rows it leaves out
            try:
                law = ScalingLaw().fit(sizes[smaller], losses[smaller])
                prediction = law.predict(sizes[~smaller])
            except (ExtrapolationError, UsageError):  # too few runs are left for a prediction
                continue
        rungs.append(
            HeldOutRung(f"{label} = {largest:.3g}", prediction, losses[~smaller], law.extrapolation(sizes[~smaller]))
        )
    return rungs


def _table(outcome: LadderOutcome, family: str, domains: Sequence[str]) -> np.ndarray:
    return np.stack([outcome.losses(family, domain) for domain in (*domains, None)], axis=1)
