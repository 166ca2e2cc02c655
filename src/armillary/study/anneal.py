"""The annealing study: one stable trunk per seed, and branches that decay from its checkpoints.

All branches end at the same total of tokens, so they answer one question: how much of the budget should be annealing,
in which shape, and on which mixture? The trunk is trained once, yet each branch is bit for bit the same run as one
trained from the beginning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from armillary.laws import AnnealLaw, Curve, HeldOutCurve, SetAsideWarning, best_of, best_schedule
from armillary.recipe import ArmillaryError, DamagedFileError, Document, RunSpec
from armillary.store import Store
from armillary.study.lab import Annealing, Edge, Lab, RunSize, StageOutcome
from armillary.study.proxies import Design

# The usual choice without a study; another is taken only if it is significantly better.
_USUAL_SHARE = 0.2
_SEED = 2000

# Points of a training curve, each a mean over the steps between; a single batch is too noisy for a law.
_POINTS = 40


class Branch(Document):
    """One annealing: a run per seed, the target losses of runs with a result, and the same losses by run id."""

    annealing: Annealing
    measured: list[float]
    runs: list[str]
    losses: dict[str, float] = {}  # noqa: RUF012 (pydantic copies it)


class CurveOption(Document):
    """A decay over the last ``share`` of the steps, and the expected excess of its loss over the best one's."""

    share: float
    excess: float


class CurveEnding(Document):
    """Training for a different number of steps: ``lost`` is the cost of an unplanned schedule (nats per token)."""

    steps: int
    lost: float


class CurveForecast(Document):
    """The forecast of the learning-rate law, fitted to the training loss of the branches on the mixture found.

    All branches share their batches step by step, so their curves are comparable. The loss is the mean over seeds on
    training batches. ``held_out`` is the mean relative error on each left-out branch over its decay; before the decay,
    all branches are the same run. The annealing is chosen by the target loss alone, not by this law.
    """

    forms: dict[str, float]
    shape: str
    share: float
    decay_start: int
    nearby: list[CurveOption]
    endings: list[CurveEnding]
    held_out: dict[str, float]


class AnnealOutcome(StageOutcome):
    """The outcome of the annealing study; ``difference`` is the best branch's target loss minus the reference's.

    ``reason`` explains an annealing that was not compared, or an unusual reference. ``edges`` are the share and the
    sharpening of the best branch if they lie at an end of the tried range.
    """

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
    curve: CurveForecast | None = None
    reason: str = ""
    edges: list[Edge] = []  # noqa: RUF012 (pydantic copies it)
    trunks: list[str] = []  # noqa: RUF012

    @property
    def study_runs(self) -> dict[str, list[str]]:
        """Ids of the runs behind the annealing."""
        return {"anneal": [*self.trunks, *(run for branch in self.branches for run in branch.runs)]}


def anneal_study(lab: Lab, mixture: dict[str, float]) -> AnnealOutcome:
    """Run the study on ``mixture``, or return its recorded outcome.

    Raises:
        ArmillaryError: no annealing has all its runs; the next call retries runs with a transient cause.
        InterruptedStudyError: Ctrl-C; call again to resume.
    """
    recipe, study = lab.recipe, lab.recipe.study.anneal
    shape = lab.shape(recipe.model.family, study.depth)
    steps = lab.steps(lab.plan.tokens["anneal"])
    matched = 1.0 if Design.of(lab).earlier else lab.matched(steps)
    specs = _branches(
        lab, RunSize(shape, steps, round(recipe.training.warmup_share * steps), text_share=matched), mixture
    )
    every = [spec for group in specs.values() for spec in group]
    names = {option: option.name for option in specs}
    key = lab.key(every, [option.model_dump() for option in specs], recipe.training)
    known = lab.stored("anneal", key, AnnealOutcome)
    if known is not None:
        return known
    jobs = lab.with_trunks(every)
    owners = {spec.id: names[option] for option, group in specs.items() for spec in group}
    trained = lab.train("anneal", jobs, owners)
    losses = {run: lab.target_loss(result) for run, result in trained.results.items()}
    branches = [
        Branch(
            annealing=option,
            measured=[losses[spec.id] for spec in group if spec.id in losses],
            runs=[spec.id for spec in group],
            losses={spec.id: losses[spec.id] for spec in group if spec.id in losses},
        )
        for option, group in specs.items()
    ]
    complete = {b.annealing: b.measured for b in branches if trained.complete(specs[b.annealing])}
    usual = _nearest_to_usual([o for o in specs if o.sharpen == 1] or list(specs), specs)
    candidates = [o for o in specs if o.sharpen == 1 and o in complete] or [o for o in specs if o in complete]
    if not candidates:
        raise ArmillaryError(
            f"anneal: no annealing has all its runs; first cause: {trained.failed[0]}; the same command "
            "retries runs with a transient cause"
        )
    reference = _nearest_to_usual(candidates, specs)
    reason = ""
    if reference != usual:
        reason = f"{usual.name} lacks some runs, so {reference.name} is the reference instead"
    if len(complete) > 1:
        choice = best_of({names[option]: losses for option, losses in complete.items()}, reference=names[reference])
        best = next(option for option in specs if names[option] == choice.best)
        significant = choice.significant
        difference, low, high = (float(v) for v in choice.difference)
    else:
        best, significant, difference, low, high = reference, False, 0.0, 0.0, 0.0
        if len(specs) > 1:
            reason = f"only {reference.name} has all its runs, so it is used without a comparison"
    leading = min(complete, key=lambda option: float(np.mean(complete[option])))
    return lab.conclude(
        "anneal",
        key,
        AnnealOutcome(
            tokens=lab.tokens(steps),
            branches=branches,
            reference=names[reference],
            best=names[best],
            difference=difference,
            low=low,
            high=high,
            significant=significant,
            taken=best if significant else reference,
            trunk_tokens=max((job.spec.tokens for job in jobs if job.keep), default=0),
            curve=_curve(lab, branches),
            reason=reason,
            edges=_edges(leading, list(complete)),
            trunks=[job.spec.id for job in jobs if job.spec.id not in owners],
            failed=trained.failed,
        ),
    )


def _branches(lab: Lab, size: RunSize, mixture: dict[str, float]) -> dict[Annealing, list[RunSpec]]:
    """The runs of each annealing of the recipe, one per seed."""
    study = lab.recipe.study.anneal
    seeds = [_SEED + i for i in range(study.seeds)]
    specs: dict[Annealing, list[RunSpec]] = {}
    for power in study.sharpen:
        for curve in study.shapes:
            for share in study.shares:
                option = Annealing(share=share, shape=curve, sharpen=power)
                group = [lab.annealed(size, option, mixture, seed) for seed in seeds]
                # Limits can undo a sharpening, and with few steps two shares can coincide; the run is then the same.
                if group[0] not in [others[0] for others in specs.values()]:
                    specs[option] = group
    return specs


def _nearest_to_usual(options: Sequence[Annealing], order: Mapping[Annealing, object]) -> Annealing:
    places = list(order)
    return min(options, key=lambda option: (abs(option.share - _USUAL_SHARE), places.index(option)))


def _edges(best: Annealing, tried: Sequence[Annealing]) -> list[Edge]:
    """The share of ``best`` if it is at either end of those tried, and its sharpening if at the upper end."""
    edges = []
    for name, ends in (("share", ("low", "high")), ("sharpen", ("high",))):
        values = [getattr(option, name) for option in tried]
        value = getattr(best, name)
        for end, limit in (("low", min(values)), ("high", max(values))):
            if end in ends and value == limit and min(values) < max(values):
                edges.append(Edge(of=name, value=value, end=end, by="tried"))
    return edges


def _curve(lab: Lab, branches: Sequence[Branch]) -> CurveForecast | None:
    """The forecast of the curves. It decides nothing, so a failure is only reported."""
    try:
        return curve_forecast(branches, lab.store)
    except (ArmillaryError, OSError, pa.ArrowException, KeyError) as error:
        lab.say(f"anneal: the law of the learning-rate curve is left out: {error}")
        return None


def curve_forecast(branches: Sequence[Branch], store: Store) -> CurveForecast | None:
    """The forecast from the branches' training curves; None if there are too few steps or curves for a law.

    Raises:
        ArmillaryError: a run's metrics are missing or damaged, or no law fits them.
    """
    curves = []
    shares = {branch.annealing.name: branch.annealing.share for branch in branches}
    for branch in branches:
        runs = branch.runs
        # A mean over fewer seeds than the others would differ for that reason alone.
        if branch.annealing.sharpen != 1 or len(branch.measured) < len(runs):
            continue
        tables = [_curve_table(store.run_folder(run) / "metrics.parquet", store.run_spec(run)) for run in runs]
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
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SetAsideWarning)
        law = AnnealLaw(warmup_steps=curves[0][0]).fit([curve for _, curve in curves])
    if not law.held_out_:
        raise ArmillaryError("; ".join(str(warning.message) for warning in caught) or "too few curves are left")
    best = best_schedule(law, size=curves[0][1].size, steps=round(curves[0][1].step[-1]))
    return CurveForecast(
        forms=law.weights_,
        shape=best.chosen.shape,
        share=best.chosen.share,
        decay_start=best.decay_start,
        nearby=[CurveOption(share=option.share, excess=option.excess) for option in best.nearby],
        endings=[CurveEnding(steps=ending.steps, lost=ending.lost) for ending in best.endings],
        held_out={held.name: _after_trunk(held, shares[held.name]) for held in law.held_out_},
    )


def _curve_table(path: Path, spec: RunSpec) -> pa.Table:
    """Learning rate and training loss of every step of a run."""
    table = pq.read_table(path, columns=["lr", "loss"])
    if len(table) != spec.steps:
        raise DamagedFileError(f"{path}: metrics of {len(table)} steps, but the run has {spec.steps}")
    return table


def _after_trunk(held: HeldOutCurve, share: float) -> float:
    """Mean relative error of a left-out branch over the steps in which it decays."""
    decays = held.step >= held.step[-1] * (1 - share)
    return float(np.abs(held.predicted[decays] / held.measured[decays] - 1).mean())
