"""Noise first: what the confirmation of the mixture study can find, before its proxies are trained.

The natural and the uniform mixture are trained with the seeds of the confirmation, which needs these runs anyway. They
show the noise between seeds of each metric, the smallest difference that the confirmation finds, and the seeds that a
given difference needs. The spread of a metric over mixtures is its signal: first between these two mixtures, later
over the design.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from armillary.laws import POWER, SeedNoise, detectable, seeds_needed
from armillary.recipe import ArmillaryError, Document, Studies, UsageError
from armillary.study.lab import FailedRun, Lab
from armillary.study.proxies import MIN_MIXTURES, Design, train_confirmation
from armillary.study.sizing import further_annealings

TARGET = "target"
# No mixture is chosen by a target whose spread over the design is below this multiple of the noise between pairs.
MIN_RATIO = 1.0


class UnknownNoiseError(ArmillaryError):
    """No mixture has two seeds with a result."""


class MetricPower(Document):
    """What runs of the study's size show about a metric, in nats per token.

    ``noise`` is the standard deviation between seeds, with a 90 % interval. ``paired`` is the part of it that remains
    if mixtures are compared seed by seed. ``signal`` is the standard deviation over mixtures of one seed without that
    part, and ``ratio`` is signal over it. ``detectable`` is the smallest difference that the confirmation finds with a
    chance of 80 %. ``seeds`` are those that the requested difference needs; None if none was requested, or if it needs
    more than 10,000.
    """

    name: str
    mean: float
    noise: float
    noise_low: float
    noise_high: float
    paired: float
    signal: float
    ratio: float
    detectable: float
    seeds: int | None


class DecisionPower(Document):
    """What a choice of the studies finds in the target loss, in nats per token, with ``seeds`` seeds of ``arms`` arms.

    ``of`` is ``mixture``, ``anneal`` or ``lr``. ``detectable`` and ``needed`` are as ``detectable`` and ``seeds`` of a
    metric. The annealing study compares up to ``arms`` annealings, its reserve included.
    """

    of: str
    arms: int
    seeds: int
    detectable: float
    needed: int | None


class PowerOutcome(Document):
    """The power of the confirmation with ``seeds`` seeds of ``arms`` mixtures; metrics by falling signal to noise.

    ``mixtures`` is the number of mixtures behind the signal. ``difference`` is the requested one, if any. ``decisions``
    has the choice of the mixture and those of later studies. For these, the noise is the paired one of the proxies:
    their runs share batches, too. It is assumed to be the same at their sizes.
    """

    seeds: int
    arms: int
    chance: float
    mixtures: int
    difference: float | None
    metrics: list[MetricPower]
    decisions: list[DecisionPower] = []  # noqa: RUF012 (pydantic copies it)
    failed: list[FailedRun] = []  # noqa: RUF012 (pydantic copies it)

    @property
    def target(self) -> MetricPower:
        """The target loss."""
        return next(metric for metric in self.metrics if metric.name == TARGET)


def study_power(lab: Lab, difference: float | None = None) -> PowerOutcome:
    """Train the natural and the uniform mixture, and state the power of the confirmation for every metric.

    Args:
        lab: of the recipe.
        difference: in nats per token, for which the seeds needed are stated.

    Raises:
        UsageError: a difference that is not above 0; the limits leave no design.
        UnknownNoiseError: neither mixture has two seeds with a result.
        InterruptedStudyError: Ctrl-C; call again to resume.
    """
    if difference is not None and not 0 < difference < math.inf:
        raise UsageError(f"difference: {difference:g} is not possible; give nats per token above 0, such as 0.01")
    study, design = lab.recipe.study.mixture, Design.of(lab)
    confirm = design.confirmation(lab, design.references)
    trained = train_confirmation(lab, confirm)
    names = [TARGET, *lab.corpus.domains]
    # A uniform natural mixture has the same runs; they count once.
    arms = {specs[0].id: specs for specs in confirm.values()}.values()
    groups = [
        np.array([_row(lab, trained.results[spec.id].loss) for spec in specs if spec.id in trained.results])
        for specs in arms
    ]
    groups = [group for group in groups if len(group)]
    if all(len(group) < 2 for group in groups):
        raise UnknownNoiseError(
            f"power: no mixture has two seeds with a result; first cause: {trained.failed[0]}; the same command "
            "retries runs with a transient cause"
        )
    known = [lab.store.result(design.proxy(lab, mixture).id) for mixture in design.mixtures]
    designed = np.array([_row(lab, result.loss) for result in known if result is not None])
    number = study.candidates + len(confirm)
    metrics = []
    for column, name in enumerate(names):
        losses = [group[:, column] for group in groups]
        noise = SeedNoise.of(losses)
        same = len(losses) > 1 and len({len(values) for values in losses}) == 1
        paired = SeedNoise.paired(losses).std if same else noise.std
        if len(designed) >= MIN_MIXTURES:
            spread, per_run = designed[:, column], 1.0
        else:
            spread, per_run = np.array([values.mean() for values in losses]), 1 / study.confirm_seeds
        signal = signal_of(spread, paired, per_run)
        metrics.append(
            MetricPower(
                name=name,
                mean=float(np.mean([values.mean() for values in losses])),
                noise=noise.std,
                noise_low=noise.low,
                noise_high=noise.high,
                paired=paired,
                signal=signal,
                ratio=signal / paired if paired else math.inf,
                detectable=detectable(noise.std, study.confirm_seeds, number),
                seeds=None if difference is None else seeds_needed(difference, noise.std, number),
            )
        )
    target = metrics[0]
    decisions = [
        DecisionPower(
            of=of,
            arms=options,
            seeds=seeds,
            detectable=detectable(spread, seeds, options),
            needed=None if difference is None else seeds_needed(difference, spread, options),
        )
        for of, options, seeds, spread in _decisions(lab.recipe.study, number, target)
        if options > 1
    ]
    return PowerOutcome(
        decisions=decisions,
        seeds=study.confirm_seeds,
        arms=number,
        chance=POWER,
        mixtures=len(designed) if len(designed) >= MIN_MIXTURES else len(groups),
        difference=difference,
        metrics=sorted(metrics, key=lambda metric: -metric.ratio),
        failed=trained.failed,
    )


def _decisions(studies: Studies, mixtures: int, target: MetricPower) -> list[tuple[str, int, int, float]]:
    """Name, number of arms, seeds, and noise of each choice."""
    anneal, lr = studies.anneal, studies.lr
    listed = len(anneal.shares) * len(anneal.shapes) * len(anneal.sharpen)
    found = [
        ("mixture", mixtures, studies.mixture.confirm_seeds, target.noise),
        ("anneal", listed + further_annealings(anneal), anneal.seeds, target.paired),
    ]
    return found if lr is None else [*found, ("lr", 2, lr.confirm_seeds, target.paired)]


def signal_of(losses: np.ndarray, noise: float, per_run: float = 1.0) -> float:
    """The standard deviation of ``losses`` [n] over mixtures without that of ``noise``; 0 if noise explains it all.

    The losses are of one seed each, so the noise is that which mixtures of one seed do not share.

    ``per_run`` is the part of the noise's variance in each loss: 1 for single runs, 1 / seeds for means.
    """
    return math.sqrt(max(0.0, float(np.var(losses, ddof=1)) - noise**2 * per_run)) if len(losses) > 1 else 0.0


def _row(lab: Lab, loss: dict[str, float]) -> Sequence[float]:
    """The target loss and that of every domain."""
    weights = lab.recipe.target_weights
    return [sum(weight * loss[name] for name, weight in weights.items()), *(loss[name] for name in lab.corpus.domains)]
