"""The learning-rate study: short runs at multiples of the rule's peak rate, a law of the rate, and a confirmation.

The recipe's rule makes the peak rate a power of the width. This study trains a few small sizes of the target's family
at several multiples of it, on the mixture and annealing found, and fits a ``HyperparameterLaw`` to their target loss.
The law gives every size of the ladder and the target its own rate. These replace the rule only if two tests agree:

- by the law, the tuned rate is better at the target with a probability of at least ``SURE``: the rate with the lowest
  expected loss among those of which this holds, since the best rate of a size far beyond the runs is uncertain;
- at the largest tuned size, runs with new seeds are significantly better at the tuned rate than at the rule's.

Trade-offs: ladder and target use the same decision. If some sizes used the rule and others the law, the scaling law
would mistake the switch for an effect of size. One seed trains the whole grid, so rates are compared on the same
batches. A run that diverged has no loss and limits the tuned rates instead.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from armillary.launch import Job
from armillary.laws import ExtrapolationError, ExtrapolationWarning, HyperparameterLaw, best_of
from armillary.recipe import ArmillaryError, Document, ModelShape, RunSpec, counted
from armillary.study.lab import Annealing, Edge, Lab, RunSize, StageOutcome, Trained
from armillary.study.sizing import LR_BEYOND

_SEED, _CONFIRM_SEED = 4000, 5000
RULE, TUNED = "rule", "tuned"
# Least probability that a tuned rate is better than the rule's.
SURE = 0.95
# A law needs this many runs, and this share of the planned ones.
_MIN_RUNS, _ENOUGH = 6, 0.75
_DRAWS = 200


class PeakRates(Document):
    """Peak learning rates in place of the recipe's rule: for the ladder by ``family/depth``, and for the target."""

    ladder: dict[str, float]
    target: float


class LrPoint(Document):
    """A run of the grid: its size, its peak rate as a multiple of the rule's, and its target loss.

    ``scale`` is the factor that muP applies to the rate of this width's matrices, 1 without muP.
    """

    run: str
    depth: int
    parameters: int
    tokens: int
    multiple: float
    lr: float
    scale: float
    target: float


class SizeRate(Document):
    """The rule's peak rate and the tuned one, ``lr``, for one size; ``of`` is ``tuned``, ``ladder`` or ``target``.

    ``best`` is the law's best rate with its 90 % interval, and ``flat`` the rates that cost less than 0.1 % more than
    it. ``lr`` is nearer to the rule where only that is better than the rule with a probability of ``SURE``. ``gain``
    with its interval is the relative excess of the loss at the rule's rate over that at ``lr``, and ``probability``
    that it is above 0. ``extrapolation`` is parameters times tokens over the largest tuned ones.
    """

    of: str
    depth: int
    parameters: int
    tokens: int
    rule: float
    lr: float
    best: float
    low: float
    high: float
    flat: tuple[float, float]
    gain: float
    gain_low: float
    gain_high: float
    probability: float
    extrapolation: float


class RateArm(Document):
    """A rate trained with new seeds: ``measured`` are the target losses of the runs with a result."""

    name: str
    lr: float
    runs: list[str]
    measured: list[float]


class LrOutcome(StageOutcome):
    """The outcome of the learning-rate study; ``difference`` is the tuned rate's target loss minus the rule's.

    ``taken`` is ``rule`` or ``tuned``, ``rates`` the tuned rates if they are used. ``sizes`` has the longest run of
    every tuned depth, then the ladder's sizes, then the target. ``confirm`` holds the arms at the largest tuned size,
    and is empty if the law was not sure enough. Without a comparison ``reason`` says why, and
    ``difference``, ``low`` and ``high`` are 0. ``edges`` are multiples at an end of the tried range.
    """

    tokens: int
    batch_tokens: int
    points: list[LrPoint]
    sizes: list[SizeRate]
    confirm: list[RateArm]
    difference: float
    low: float
    high: float
    significant: bool
    taken: str
    rates: PeakRates | None = None
    reason: str = ""
    warnings: list[str] = []  # noqa: RUF012 (pydantic copies it)
    edges: list[Edge] = []  # noqa: RUF012
    trunks: list[str] = []  # noqa: RUF012

    @property
    def target(self) -> SizeRate | None:
        """The rates of the target, or None if no law could be fitted."""
        return next((row for row in self.sizes if row.of == "target"), None)

    @property
    def study_runs(self) -> dict[str, list[str]]:
        """Ids of the runs behind the rates, by study, including failed ones."""
        confirm = [run for arm in self.confirm for run in arm.runs]
        grid = [*self.trunks, *(point.run for point in self.points), *(run for run in self.lost if run not in confirm)]
        return {"lr": list(dict.fromkeys(grid)), "lr-confirm": confirm}


# Runs by id with their depth and multiple, pairs of a depth and a multiple, and further multiples by depth.
_Specs = dict[str, tuple[int, float, RunSpec]]
_Rates = Collection[tuple[int, float]]
_Beyond = dict[int, list[float]]


@dataclass(frozen=True)
class _Size:
    """A size whose rate is asked for."""

    of: str
    depth: int
    shape: ModelShape
    tokens: int


@dataclass(frozen=True)
class _Grid:
    """The runs of the study on the mixture and annealing found."""

    lab: Lab
    mixture: dict[str, float]
    annealing: Annealing

    def shape(self, depth: int) -> ModelShape:
        return self.lab.shape(self.lab.recipe.model.family, depth)

    @property
    def steps(self) -> list[int]:
        """Steps of the runs of one rate, rising."""
        study = self.lab.recipe.study.lr
        assert study is not None
        longest = self.lab.steps(self.lab.plan.tokens["lr"])
        return sorted({max(2, round(fraction * longest)) for fraction in study.fractions})

    def run(self, depth: int, steps: int, lr: float, seed: int) -> RunSpec:
        # One warm-up for all runs of a trunk, as long as that of the longest if it fits into the shortest.
        shortest = self.steps[0]
        warmup = min(
            round(self.lab.recipe.training.warmup_share * self.steps[-1]),
            shortest - max(1, round(self.annealing.share * shortest)),
        )
        size = RunSize(self.shape(depth), steps, warmup, lr=lr)
        return self.lab.annealed(size, self.annealing, self.mixture, seed)

    def rates(self, depth: int, multiples: Sequence[float]) -> _Specs:
        """The runs of a depth at multiples of the rule's rate, by id, with their depth and multiple."""
        rule = self.lab.recipe.training.peak_lr(self.shape(depth).d_model)
        specs = {(m, steps): self.run(depth, steps, m * rule, _SEED) for m in multiples for steps in self.steps}
        return {spec.id: (depth, multiple, spec) for (multiple, _), spec in specs.items()}


def lr_study(lab: Lab, mixture: dict[str, float], annealing: Annealing) -> LrOutcome:
    """Run the study on ``mixture`` and ``annealing``, or return its recorded outcome.

    Raises:
        ArmillaryError: too few runs for a law have a result, and the next call retries some.
        InterruptedStudyError: Ctrl-C; call again to resume.
    """
    recipe, study = lab.recipe, lab.recipe.study.lr
    assert study is not None
    grid, multiples = _Grid(lab, mixture, annealing), sorted(study.multiples)
    specs = {run: row for depth in recipe.study.lr_depths for run, row in grid.rates(depth, multiples).items()}
    sizes = _sizes(grid)
    asked = [[size.of, size.depth, size.shape.parameters, size.tokens] for size in sizes]
    key = lab.key([spec for *_, spec in specs.values()], asked, recipe.training, multiples, study.confirm_seeds)
    known = lab.stored("lr", key, LrOutcome)
    if known is not None:
        return known
    planned = len(specs)
    jobs, trained = _train(lab, specs)
    more: _Specs = {}
    for depth, beyond in _beyond(specs, _points(lab, specs, trained), _diverged(specs, trained)).items():
        more |= grid.rates(depth, beyond)
    if more:
        specs |= more
        further, again = _train(lab, more)
        jobs += further
        trained = Trained(trained.results | again.results, [*trained.failed, *again.failed])
    points, diverged = _points(lab, specs, trained), _diverged(specs, trained)
    outcome = LrOutcome(
        tokens=lab.tokens(grid.steps[-1]),
        batch_tokens=lab.tokens(1),
        points=points,
        sizes=[],
        confirm=[],
        difference=0.0,
        low=0.0,
        high=0.0,
        significant=False,
        taken=RULE,
        edges=_edges(points, diverged),
        trunks=[job.spec.id for job in jobs if job.spec.id not in specs],
        failed=trained.failed,
    )
    if len(points) < max(_MIN_RUNS, _ENOUGH * planned):
        few = f"{len(points)} of {counted(len(specs), 'run')} have a result, too few for a law"
        if outcome.passing:
            raise ArmillaryError(
                f"lr: {few}; first cause: {outcome.passing[0]}; the same command retries runs with a transient cause"
            )
        return lab.conclude("lr", key, outcome.model_copy(update={"reason": f"{few}, so the rule is used"}))
    outcome = outcome.model_copy(update=_by_law(lab, outcome, sizes, _reach(specs, diverged)))
    if not outcome.reason:
        outcome = _confirmed(grid, outcome)
    for text in outcome.warnings:
        lab.say(f"lr: {text}")
    return lab.conclude("lr", key, outcome)


def fit_rates(points: Sequence[LrPoint], batch_tokens: int) -> HyperparameterLaw:
    """The law of the target loss over parameters, tokens and peak rate, in batches of ``batch_tokens``.

    With muP, its rate is the one that the optimizer applies to the matrices of a width: ``lr * scale``.
    """
    table = [[p.parameters, p.tokens, p.lr * p.scale, batch_tokens] for p in points]
    return HyperparameterLaw(form="basin", bootstraps=_DRAWS).fit(table, [p.target for p in points])


def _sizes(grid: _Grid) -> list[_Size]:
    """The longest run of each tuned depth, the ladder's sizes of the target's family, and the target."""
    lab, study = grid.lab, grid.lab.recipe.study

    def row(of: str, depth: int, steps: int) -> _Size:
        return _Size(of, depth, grid.shape(depth), lab.tokens(steps))

    ladder, target = lab.steps(lab.plan.tokens["ladder"]), lab.steps(lab.plan.tokens["target"])
    return [
        *(row(TUNED, depth, grid.steps[-1]) for depth in study.lr_depths),
        *(row("ladder", depth, ladder) for depth in study.ladder.depths),
        row("target", lab.recipe.model.depth, target),
    ]


def _scale(lab: Lab, shape: ModelShape) -> float:
    base = lab.recipe.training.base_width
    return 1.0 if base is None else base / shape.d_model


def _train(lab: Lab, specs: _Specs) -> tuple[list[Job], Trained]:
    jobs = lab.with_trunks([spec for *_, spec in specs.values()])
    arms = {run: f"depth {depth}, {multiple:.3g} times the rule" for run, (depth, multiple, _) in specs.items()}
    trained = lab.train("lr", jobs, arms)
    lab.drop_trunks(jobs, trained)
    return jobs, trained


def _points(lab: Lab, specs: _Specs, trained: Trained) -> list[LrPoint]:
    return [
        LrPoint(
            run=run,
            depth=depth,
            parameters=spec.model.parameters,
            tokens=spec.tokens,
            multiple=multiple,
            lr=spec.optimizer.lr,
            scale=_scale(lab, spec.model),
            target=lab.target_loss(trained.results[run]),
        )
        for run, (depth, multiple, spec) in specs.items()
        if run in trained.results
    ]


def _diverged(specs: _Specs, trained: Trained) -> set[tuple[int, float]]:
    """Depths and multiples of the runs that diverged."""
    return {specs[row.run][:2] for row in trained.failed if row.status == "diverged" and row.run in specs}


def _beyond(specs: _Specs, points: Sequence[LrPoint], diverged: _Rates) -> _Beyond:
    """Further multiples for each depth with a best run at an end of the grid."""
    found: _Beyond = {}
    grid = sorted({multiple for _, multiple, _ in specs.values()})
    for edge in _edges(points, diverged):
        end, step = (grid[0], grid[0] / grid[1]) if edge.end == "low" else (grid[-1], grid[-1] / grid[-2])
        for depth in {point.depth for point in _best(points) if point.multiple == edge.value}:
            found.setdefault(depth, []).extend(end * step**k for k in range(1, LR_BEYOND + 1))
    return found


def _best(points: Sequence[LrPoint]) -> list[LrPoint]:
    """The run with the lowest loss of each depth and number of tokens."""
    best: dict[tuple[int, int], LrPoint] = {}
    for point in points:
        known = best.get((point.depth, point.tokens))
        if known is None or point.target < known.target:
            best[point.depth, point.tokens] = point
    return list(best.values())


def _edges(points: Sequence[LrPoint], diverged: _Rates) -> list[Edge]:
    """The multiples of best runs that are the lowest or the highest tried at their depth.

    A rate that diverged is beyond the best one, so nothing better is expected there.
    """
    edges: dict[tuple[str, float], Edge] = {}
    for best in _best(points):
        tried = [point.multiple for point in points if (point.depth, point.tokens) == (best.depth, best.tokens)]
        tried += [multiple for depth, multiple in diverged if depth == best.depth]
        for end, limit in (("low", min(tried)), ("high", max(tried))):
            if best.multiple == limit and len(tried) > 1:
                edges[end, limit] = Edge(of="lr", value=limit, end=end, by="tried")
    return list(edges.values())


@dataclass(frozen=True)
class _Reach:
    """What the runs that diverged say: the highest multiple for a tuned rate, and whether the rule can be trained."""

    highest: float
    rule: bool


def _reach(specs: _Specs, diverged: _Rates) -> _Reach:
    first = min((multiple for _, multiple in diverged), default=math.inf)
    tried = [multiple for _, multiple, _ in specs.values()]
    below = max((multiple for multiple in tried if multiple < first), default=min(tried))
    return _Reach(below if diverged else math.inf, first > 1)


def _by_law(lab: Lab, outcome: LrOutcome, sizes: Sequence[_Size], reach: _Reach) -> dict[str, object]:
    """The law's rates for all sizes, with its warnings, and a reason if it does not support them at the target."""
    law = fit_rates(outcome.points, outcome.batch_tokens)
    rows: list[SizeRate] = []
    heard: list[str] = []
    for size in sizes:
        scale, rule = _scale(lab, size.shape), lab.recipe.training.peak_lr(size.shape.d_model)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ExtrapolationWarning)
            at = (float(size.shape.parameters), float(size.tokens), float(outcome.batch_tokens))
            try:
                found = law.better_lr(at, rule * scale, rule * scale * reach.highest, SURE if reach.rule else 0.0)
            except ExtrapolationError as error:
                return {"sizes": rows, "reason": f"{error}; the rule is used"}
        if size.of == "target":
            heard = [str(warning.message) for warning in caught]
        rows.append(
            SizeRate(
                of=size.of,
                depth=size.depth,
                parameters=size.shape.parameters,
                tokens=size.tokens,
                rule=rule,
                lr=found.lr / scale,
                best=float(found.best.mean) / scale,
                low=float(found.best.low) / scale,
                high=float(found.best.high) / scale,
                flat=(found.flat[0] / scale, found.flat[1] / scale),
                gain=float(found.gain.mean),
                gain_low=float(found.gain.low),
                gain_high=float(found.gain.high),
                probability=found.probability,
                extrapolation=found.extrapolation,
            )
        )
    reason = ""
    if reach.rule and rows[-1].probability < SURE:
        reason = (
            f"by the law, no rate is better at the target with a probability of {SURE:.0%} "
            f"({rows[-1].probability:.0%} for the best), so the rule is used"
        )
    return {"sizes": rows, "warnings": heard, "reason": reason}


def _confirmed(grid: _Grid, outcome: LrOutcome) -> LrOutcome:
    """The outcome with runs of new seeds at the largest tuned size, at the rule's rate and at the tuned one."""
    lab, study = grid.lab, grid.lab.recipe.study.lr
    assert study is not None
    largest = [row for row in outcome.sizes if row.of == TUNED][-1]
    lrs = {RULE: largest.rule, TUNED: largest.lr}
    seeds = range(_CONFIRM_SEED, _CONFIRM_SEED + study.confirm_seeds)
    specs = {name: [grid.run(largest.depth, grid.steps[-1], lr, seed) for seed in seeds] for name, lr in lrs.items()}
    every = {spec.id: name for name, group in specs.items() for spec in group}
    trained = lab.train("lr-confirm", [Job(spec) for group in specs.values() for spec in group], every)
    losses = {
        name: [lab.target_loss(trained.results[spec.id]) for spec in group if spec.id in trained.results]
        for name, group in specs.items()
    }
    arms = [
        RateArm(name=name, lr=lrs[name], runs=[spec.id for spec in group], measured=losses[name])
        for name, group in specs.items()
    ]
    update: dict[str, object] = {"confirm": arms, "failed": [*outcome.failed, *trained.failed]}
    lost_rule = [row for row in trained.failed if row.arm == RULE]
    if trained.complete(specs[TUNED]) and any(row.status == "diverged" for row in lost_rule):
        reason = "at the rule's rate, runs with new seeds diverged, so the tuned rates are used untested"
        update |= {"taken": TUNED, "rates": _rates(lab, outcome.sizes), "reason": reason}
        return outcome.model_copy(update=update)
    if not all(trained.complete(group) for group in specs.values()):
        lost = ", ".join(f"{row.arm} seed {row.seed}" for row in trained.failed)
        return outcome.model_copy(
            update={**update, "reason": f"the confirmation lacks some runs ({lost}), so the rule is used"}
        )
    choice = best_of(losses, reference=RULE)
    difference, low, high = (float(part) for part in choice.difference)
    update |= {"difference": difference, "low": low, "high": high, "significant": choice.significant}
    if choice.significant:
        update |= {"taken": TUNED, "rates": _rates(lab, outcome.sizes)}
    return outcome.model_copy(update=update)


def _rates(lab: Lab, sizes: Sequence[SizeRate]) -> PeakRates:
    """The tuned rates; other families get the factor over the rule of the nearest size of the target's family."""
    study, own = lab.recipe.study.ladder, [row for row in sizes if row.of == "ladder"]
    ladder = {}
    for family in study.families:
        for depth in study.depths:
            shape = lab.shape(family, depth)
            near = min(own, key=lambda row: abs(math.log(row.parameters / shape.parameters)))
            rule = lab.recipe.training.peak_lr(shape.d_model)
            ladder[f"{family}/{depth}"] = rule * near.lr / near.rule
    return PeakRates(ladder=ladder, target=sizes[-1].lr)
