"""The annealing study: one stable trunk per seed, and branches that decay from its checkpoints.

All branches end at the same total of tokens, so they answer one question: given the budget, how much of it should be
annealing, in which shape, and on which mixture? The trunk is trained once; a branch is nevertheless the same run, bit
for bit, as one trained from the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from armillary.laws import AnnealLaw, Curve, HeldOutCurve, best_of, best_schedule
from armillary.recipe import ArmillaryError, Document, UsageError
from armillary.study.lab import Annealing, Lab, record, sharpened, stage_key, stored
from armillary.study.store import Store

# The choice that is usual when nobody has looked; another one is taken only if it is better with significance.
_USUAL_SHARE = 0.2
_SEED = 2000

# Points of a training curve, each the mean over the steps between; one batch is too noisy for a law.
_POINTS = 40


class Branch(Document):
    """One annealing and the target loss that each seed reached with it."""

    annealing: Annealing
    measured: list[float]
    runs: list[str]


class CurveOption(Document):
    """A decay over the last ``share`` of the steps, and the loss it gives away against the best, by the law."""

    share: float
    excess: float


class CurveEnding(Document):
    """Training for another number of steps: ``lost`` where the schedule was not planned for it (nats per token)."""

    steps: int
    lost: float


class CurveForecast(Document):
    """What the law of the learning-rate curve says; fitted to the training loss of the branches on the mixture found.

    All branches share their batches step by step, so their curves can be compared; the loss is that on training
    batches, the mean over seeds. ``held_out`` is the mean relative error on each branch that was left out, over its
    decay alone: before it, all branches are the same run. The choice of the annealing is not the law's: that rests on
    the target loss alone.
    """

    forms: dict[str, float]
    shape: str
    share: float
    decay_start: int
    nearby: list[CurveOption]
    endings: list[CurveEnding]
    held_out: dict[str, float]


class AnnealOutcome(Document):
    """What the annealing study found; ``difference`` is the best branch's target loss minus the reference's."""

    tokens: int
    branches: list[Branch]
    reference: str
    best: str
    difference: float
    low: float
    high: float
    significant: bool
    taken: Annealing
    trunk_tokens: int
    failures: list[str]
    curve: CurveForecast | None = None


def anneal_study(lab: Lab, mixture: dict[str, float]) -> AnnealOutcome:
    """Carry out the study on ``mixture``, or return its outcome where it is in the store.

    Raises:
        ArmillaryError: too many runs failed.
        InterruptedStudyError: Ctrl-C; call again to go on.
    """
    recipe, study = lab.recipe, lab.recipe.study.anneal
    key = stage_key(
        lab.corpus, recipe.target_weights, recipe.training, recipe.families, study, lab.plan.size("anneal"), mixture
    )
    known = stored(lab.store, "anneal", key, AnnealOutcome)
    if known is not None:
        return known
    shape = lab.shape(recipe.model.family, study.depth)
    steps = lab.steps(lab.plan.tokens["anneal"])
    warmup = round(recipe.training.warmup_share * steps)
    options = [
        Annealing(share=share, shape=curve, sharpen=power)
        for power in study.sharpen
        for curve in study.shapes
        for share in study.shares
        if power == 1 or sharpened(mixture, power) != mixture
    ]
    seeds = [_SEED + i for i in range(study.seeds)]
    specs = {
        option: [lab.annealed(shape, steps, option, mixture, seed, warmup_steps=warmup) for seed in seeds]
        for option in options
    }
    jobs = lab.with_trunks([spec for group in specs.values() for spec in group])
    results, failures = lab.carry_out("anneal", jobs)
    branches = [
        Branch(
            annealing=option,
            measured=[lab.target_loss(results[spec.id]) for spec in group if spec.id in results],
            runs=[spec.id for spec in group],
        )
        for option, group in specs.items()
    ]
    complete = {b.annealing.name: b.measured for b in branches if len(b.measured) == len(seeds)}
    plain = [o for o in options if o.sharpen == 1 and o.name in complete] or [o for o in options if o.name in complete]
    if not plain:
        raise ArmillaryError("anneal: no annealing has all its runs; see `armillary runs` for what failed")
    reference = min(plain, key=lambda o: (abs(o.share - _USUAL_SHARE), options.index(o)))
    by_name = {option.name: option for option in options}
    if len(complete) > 1:
        choice = best_of(complete, reference=reference.name)
        best, significant = choice.name, choice.significant
        difference, low, high = (float(v) for v in choice.difference)
    else:
        best, significant, difference, low, high = reference.name, False, 0.0, 0.0, 0.0
    return record(
        lab.store,
        "anneal",
        key,
        AnnealOutcome(
            tokens=steps * recipe.training.batch_sequences * recipe.training.context_length,
            branches=branches,
            reference=reference.name,
            best=best,
            difference=difference,
            low=low,
            high=high,
            significant=significant,
            taken=by_name[best] if significant else reference,
            trunk_tokens=max((job.spec.tokens for job in jobs if job.keep), default=0),
            failures=[f"{f.run}: {f.error}" for f in failures],
            curve=curve_forecast(branches, lab.store),
        ),
    )


def curve_forecast(branches: Sequence[Branch], store: Store) -> CurveForecast | None:
    """The forecast from the branches' training curves; None where there are too few steps or curves for a law."""
    curves = []
    shares = {branch.annealing.name: branch.annealing.share for branch in branches}
    for branch in branches:
        runs = [run for run in branch.runs if store.result(run) is not None]
        if branch.annealing.sharpen != 1 or not runs:
            continue
        tables = [pq.read_table(store.run_folder(run) / "metrics.parquet", columns=["lr", "loss"]) for run in runs]
        lr = tables[0]["lr"].to_numpy()
        loss = np.mean([table["loss"].to_numpy() for table in tables], axis=0)
        warmup = int(np.argmax(lr >= 0.999 * lr.max()))
        width = (len(lr) - warmup) // _POINTS
        if width < 1:
            return None
        first = len(lr) - width * _POINTS

        def means(values: np.ndarray, first: int = first, width: int = width) -> np.ndarray:
            return np.asarray(values[first:].reshape(_POINTS, width).mean(axis=1))

        size = store.run_spec(runs[0]).model.parameters
        steps = np.arange(1, len(lr) + 1, dtype=float)
        curves.append((warmup, Curve(branch.annealing.name, float(size), means(steps), means(lr), means(loss))))
    if len(curves) < 2:
        return None
    law = AnnealLaw(warmup_steps=curves[0][0]).fit([curve for _, curve in curves])
    try:
        best = best_schedule(law, size=curves[0][1].size, steps=round(curves[0][1].step[-1]))
    except UsageError:  # too far beyond what was fitted
        return None
    return CurveForecast(
        forms=law.weights_,
        shape=best.chosen.shape,
        share=best.chosen.share,
        decay_start=best.decay_start,
        nearby=[CurveOption(share=option.share, excess=option.excess) for option in best.nearby],
        endings=[CurveEnding(steps=ending.steps, lost=ending.lost) for ending in best.endings],
        held_out={held.name: _after_trunk(held, shares[held.name]) for held in law.held_out_},
    )


def _after_trunk(held: HeldOutCurve, share: float) -> float:
    """Mean relative error of a left-out branch over the steps in which it decays."""
    decays = held.step >= held.step[-1] * (1 - share)
    return float(np.abs(held.predicted[decays] / held.measured[decays] - 1).mean())
