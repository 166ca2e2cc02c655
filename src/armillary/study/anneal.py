"""The annealing study: one stable trunk per seed, and branches that decay from its checkpoints.

All branches end at the same total of tokens, so they answer one question: how much of the budget should be annealing,
in which shape, and on which mixture? The trunk is trained once, yet each branch is bit for bit the same run as one
trained from the beginning. If the best annealing lies at an edge of those listed, further ones are trained beyond it,
until the best lies inside, at a limit, or the reserve is spent.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from armillary.launch import Job
from armillary.laws import AnnealLaw, Curve, HeldOutCurve, SetAsideWarning, best_of, best_schedule
from armillary.recipe import AnnealStudy, ArmillaryError, DamagedFileError, Document, RunSpec
from armillary.store import Store
from armillary.study.lab import (
    Annealing,
    Edge,
    Lab,
    Round,
    RunSize,
    StageOutcome,
    Stopped,
    Trained,
    stopped_at,
)
from armillary.study.proxies import Design
from armillary.study.sizing import BEYOND, further_annealings

# The usual choice without a study; another is taken only if it is significantly better.
_USUAL_SHARE = 0.2
_SEED = 2000

# No further annealing is shorter than this share of the steps.
_LEAST_SHARE = 0.02
# Decimals of a further share or exponent.
_DIGITS = 4

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
    sharpening of the best branch if they lie at an end of the tried range. ``rounds`` describes the runs trained beyond
    such an end, and ``stopped`` says where the best branch lies in the end: ``inside``, at ``limits``, or at an edge
    although the ``reserve`` was spent. It is empty in an outcome of an earlier version.
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
    rounds: list[Round] = []  # noqa: RUF012
    stopped: Stopped = ""

    @property
    def study_runs(self) -> dict[str, list[str]]:
        """Ids of the runs behind the annealing."""
        return {"anneal": [*self.trunks, *(run for branch in self.branches for run in branch.runs)]}


def anneal_study(lab: Lab, mixture: dict[str, float], found: Annealing | None = None) -> AnnealOutcome:
    """Run the study on ``mixture``, or return its recorded outcome.

    ``found`` is the annealing that a mixture study of two phases found with ``mixture``. It is tried beside those of
    the recipe, and is the reference.

    Raises:
        ArmillaryError: no annealing has all its runs; the next call retries runs with a transient cause.
        InterruptedStudyError: Ctrl-C; call again to resume.
    """
    recipe, study = lab.recipe, lab.recipe.study.anneal
    shape = lab.shape(recipe.model.family, study.depth)
    steps = lab.steps(lab.plan.tokens["anneal"])
    matched = 1.0 if Design.of(lab).earlier else lab.matched(steps)
    size = RunSize(shape, steps, round(recipe.training.warmup_share * steps), text_share=matched)
    tried = _Tried(lab, size, mixture, found)
    key, known = _recorded(lab, tried.specs)
    if known is not None:
        return known
    tried.train_listed()
    listed = list(tried.specs)  # the reference is one of these: further annealings are no usual choice
    usual = found or _nearest_to_usual([o for o in listed if o.plain] or listed, listed)
    tried.train_beyond(further_annealings(study))
    lab.drop_trunks(tried.jobs, tried.trained)
    complete, specs = tried.complete(), tried.specs
    names = {option: option.name for option in specs}
    possible = [option for option in listed if option in complete]
    reference = usual
    if usual not in possible:
        reference = _nearest_to_usual([o for o in possible if o.plain] or possible, listed)
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
    branches, edges = tried.branches(), tried.edges()
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
            trunk_tokens=max((job.spec.tokens for job in tried.jobs if job.keep), default=0),
            curve=_curve(lab, branches),
            reason=reason,
            edges=edges,
            trunks=[job.spec.id for job in tried.jobs if job.spec.id not in tried.owners],
            failed=tried.trained.failed,
            rounds=tried.rounds,
            stopped=stopped_at(edges),
        ),
    )


def _recorded(lab: Lab, specs: Mapping[Annealing, Sequence[RunSpec]]) -> tuple[str, AnnealOutcome | None]:
    """The key of the study of these listed annealings, and its recorded outcome, if any.

    The key of a study that can train nothing beyond the list is that of earlier versions. A study that an earlier
    version concluded is kept as it is, unless the recipe asks for further annealings.
    """
    study = lab.recipe.study.anneal
    every, options = [spec for group in specs.values() for spec in group], [option.model_dump() for option in specs]
    earlier = lab.key(every, options, lab.recipe.training)
    if not further_annealings(study):
        return earlier, lab.stored("anneal", earlier, AnnealOutcome)
    key = lab.key(every, options, lab.recipe.training, study.reserve, study.max_share, study.max_sharpen)
    known = lab.stored("anneal", key, AnnealOutcome)
    if known is None and not study.model_fields_set & set(study.later):
        old = lab.stored("anneal", earlier, AnnealOutcome)
        known = old if old is not None and not old.stopped else None
    return key, known


class _Tried:
    """The annealings of the study with a run per seed each: those that the recipe lists, and those beyond them."""

    def __init__(self, lab: Lab, size: RunSize, mixture: dict[str, float], found: Annealing | None) -> None:
        study = lab.recipe.study.anneal
        self._lab, self._size, self._mixture = lab, size, mixture
        self.specs: dict[Annealing, list[RunSpec]] = {}
        self.jobs: list[Job] = []
        self.owners: dict[str, str] = {}
        self.trained = Trained({}, [])
        self.rounds: list[Round] = []
        listed = [
            Annealing(share=share, shape=curve, sharpen=power)
            for power in study.sharpen
            for curve in study.shapes
            for share in study.shares
        ]
        self.specs = self._new(listed if found is None else [found, *listed])

    def train_listed(self) -> None:
        """Train the annealings of the recipe.

        Raises:
            ArmillaryError: none has all its runs.
        """
        # The trunks keep checkpoints for longer decays, in case the longest listed one is best.
        later, share = [], max(option.share for option in self.specs)
        for _ in range(further_annealings(self._study)):
            share = self._next("share", share, "high")
            later += self._runs(next(iter(self.specs)).model_copy(update={"share": share}))
        every = [spec for group in self.specs.values() for spec in group]
        self._train(self._lab.with_trunks(every, later), self.specs)
        if not self.complete():
            raise ArmillaryError(
                f"anneal: no annealing has all its runs; first cause: {self.trained.failed[0]}; the same command "
                "retries runs with a transient cause"
            )

    def train_beyond(self, reserve: int) -> None:
        """Train at most ``reserve`` further annealings beyond the edges that the best one touches."""
        while reserve and not any(row.passing for row in self.trained.failed):
            edges = [edge for edge in self.edges() if edge.by == "tried"]
            moved = {edge.of: self._next(edge.of, edge.value, edge.end) for edge in edges}
            options = [self._best.model_copy(update={name: value}) for name, value in moved.items()]
            if len(moved) > 1:
                options.append(self._best.model_copy(update=moved))
            further = dict(list(self._new(options).items())[:reserve])
            if not further:
                return
            self._lab.say(f"anneal: beyond the edge of those tried: {', '.join(option.name for option in further)}")
            self.specs |= further
            runs = [spec for group in further.values() for spec in group]
            self._train(self._lab.from_trunks(runs, self.jobs), further)
            self.rounds.append(Round(runs=len(runs), edges=edges))
            reserve -= len(further)

    def complete(self) -> dict[Annealing, list[float]]:
        """The target losses of each annealing that has all its runs, in the order of the seeds."""
        return {
            option: [self._lab.target_loss(self.trained.results[spec.id]) for spec in group]
            for option, group in self.specs.items()
            if self.trained.complete(group)
        }

    def branches(self) -> list[Branch]:
        """A row for each annealing."""
        losses = {run: self._lab.target_loss(result) for run, result in self.trained.results.items()}
        return [
            Branch(
                annealing=option,
                measured=[losses[spec.id] for spec in group if spec.id in losses],
                runs=[spec.id for spec in group],
                losses={spec.id: losses[spec.id] for spec in group if spec.id in losses},
            )
            for option, group in self.specs.items()
        ]

    def edges(self) -> list[Edge]:
        """The share of the best annealing if it is at either end of those tried, its sharpening if at the upper end.

        An end is a limit if the next value is not allowed, or if the recipe's limits on mixtures undo its effect.
        """
        best, found = self._best, []
        for name, ends in (("share", ("low", "high")), ("sharpen", ("high",))):
            values = [getattr(option, name) for option in self.specs]
            value = getattr(best, name)
            if name == "sharpen" and best.weights:  # another mixture, not a sharpened one
                continue
            for end, last in (("low", min(values)), ("high", max(values))):
                if end in ends and value == last and min(values) < max(values):
                    moved = best.model_copy(update={name: self._next(name, value, end)})
                    by = "limits" if self._runs(moved)[0] == self.specs[best][0] else "tried"
                    found.append(Edge(of=name, value=value, end=end, by=by))
        return found

    @property
    def _best(self) -> Annealing:
        complete = self.complete()
        return min(complete, key=lambda option: float(np.mean(complete[option])))

    @property
    def _study(self) -> AnnealStudy:
        return self._lab.recipe.study.anneal

    def _next(self, name: str, value: float, end: str) -> float:
        """The next value beyond ``value``; ``value`` itself at a limit."""
        if end == "low":
            return min(value, max(_LEAST_SHARE, round(value / BEYOND, _DIGITS)))
        limit = self._study.max_share if name == "share" else self._study.max_sharpen
        return max(value, min(limit, round(value * BEYOND, _DIGITS)))

    def _runs(self, option: Annealing) -> list[RunSpec]:
        seeds = [_SEED + i for i in range(self._study.seeds)]
        return [self._lab.annealed(self._size, option, self._mixture, seed) for seed in seeds]

    def _new(self, options: Sequence[Annealing]) -> dict[Annealing, list[RunSpec]]:
        """The runs of those ``options`` that differ from all others.

        Limits can undo a sharpening, and with few steps two shares can coincide; the run is then the same.
        """
        found: dict[Annealing, list[RunSpec]] = {}
        for option in options:
            group = self._runs(option)
            if group[0] not in [others[0] for others in (*self.specs.values(), *found.values())]:
                found[option] = group
        return found

    def _train(self, jobs: list[Job], options: Mapping[Annealing, Sequence[RunSpec]]) -> None:
        self.owners |= {spec.id: option.name for option, group in options.items() for spec in group}
        self.jobs += jobs
        self.trained += self._lab.train("anneal", jobs, self.owners)


def _nearest_to_usual(options: Sequence[Annealing], order: Sequence[Annealing]) -> Annealing:
    return min(options, key=lambda option: (abs(option.share - _USUAL_SHARE), order.index(option)))


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
        if not branch.annealing.plain or len(branch.measured) < len(runs):
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
