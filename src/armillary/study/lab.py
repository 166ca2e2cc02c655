"""The common base of all studies: specifications from a recipe, runs, failed runs, and recorded outcomes.

A failed run is a row of the outcome (contract 6). If a run failed for a transient cause, the outcome is shown but not
recorded, so the next call retries that run and keeps everything else.

The key of a recorded outcome covers everything that determines it: the ids of the runs, which hash their whole
specifications, the other inputs of the analysis, and the versions of the laws and of the outcome. A field of the recipe
affects a key exactly if it changes one of these, so there is no list of fields to maintain.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import ValidationError, model_validator
from pydantic_core import to_jsonable_python

from armillary.corpus import Corpus
from armillary.launch import Executor, Failure, Job, Progress, RankExecutor, settled
from armillary.laws import LAWS_VERSION, SetAsideWarning, rows_named
from armillary.recipe import (
    ArmillaryError,
    Decay,
    Document,
    MixturePhase,
    ModelShape,
    OptimizerSpec,
    Recipe,
    RunResult,
    RunSpec,
    Schedule,
    Training,
    UsageError,
    Validation,
    canonical_hash,
    first_problem,
)
from armillary.store import Store, to_json
from armillary.study.limits import Allowed
from armillary.study.rates import record_rates
from armillary.study.sizing import Plan, Stage
from armillary.train import check_run

# Increased when the content or computation of an outcome changes; it is then recomputed from the same runs.
_OUTCOME_FORMAT = 2
# Fields of ``training`` that only the target run reads, or that do not affect numbers.
_OF_THE_TARGET = frozenset({"tokens", "budget_share", "precision", "seeds", "layout"})
TRUNK = "trunk"
_NAMED_FAILURES = 3
# Sums of e to this power do not overflow.
_MOST_LOG = 600.0


class FailedRun(Document):
    """A run without a result: its arm and seed, ``status`` (failed, refused, diverged) and cause.

    ``passing`` is True if the next call retries the run. A diverged run is not retried, since it would diverge again.
    ``arm`` is ``trunk`` for a run that only shares its steps.
    """

    run: str
    arm: str
    seed: int | None
    status: str
    cause: str
    passing: bool

    def __str__(self) -> str:
        whose = f" ({self.arm}, seed {self.seed})" if self.arm and self.seed is not None else ""
        cause = self.cause if self.run in self.cause else f"{self.run}: {self.cause}"
        return f"{cause}{whose}" if self.status == "failed" else f"{cause}{whose} [{self.status}]"


class StageOutcome(Document):
    """The outcome of a stage; ``failed`` has a row per run without a result."""

    failed: list[FailedRun] = []  # noqa: RUF012 (pydantic copies it)

    @model_validator(mode="before")
    @classmethod
    def _rows_of_format_1(cls, value: Any) -> Any:
        """Outcomes of format 1 hold a sentence per failed run, and such runs were never retried."""
        if not isinstance(value, dict) or "failures" not in value:
            return value
        rows = [str(sentence).partition(": ") for sentence in value["failures"]]
        failed = [
            {"run": run, "arm": "", "seed": None, "status": "failed", "cause": cause, "passing": False}
            for run, _, cause in rows
        ]
        return {**{name: part for name, part in value.items() if name != "failures"}, "failed": failed}

    @property
    def failures(self) -> list[str]:
        """A sentence per failed run."""
        return [str(row) for row in self.failed]

    @property
    def lost(self) -> list[str]:
        """Ids of the runs without a result."""
        return [row.run for row in self.failed]

    @property
    def passing(self) -> list[FailedRun]:
        """The failed runs that the next call retries; without any, the outcome is final."""
        return [row for row in self.failed if row.passing]


Outcome = TypeVar("Outcome", bound=StageOutcome)


class Phase(Document):
    """A part of a run with one mixture: its first step, its share of the run's tokens, and the weights."""

    start_step: int
    share: float
    weights: dict[str, float]


class Edge(Document):
    """A choice at an end of the tried range, so that a better one may lie beyond it.

    ``of`` names a domain, for its weight, or the dimension (``share``, ``sharpen``). ``value`` is the choice, and
    ``end`` is ``low`` or ``high``. ``by`` names the cause of the end: ``limits`` of the recipe, or ``tried`` if the
    study had no run beyond it.
    """

    of: str
    value: float
    end: str
    by: str


class Round(Document):
    """``runs`` further runs of a study, trained after its first ones.

    They lie beyond the ``edges`` of the tried range that the best option so far touched, or around it if it touched
    none.
    """

    runs: int
    edges: list[Edge]


# Where the best option lies when a study trains no further runs: inside the tried range, at a limit, or still at an
# edge when the reserve was spent. Outcomes of earlier versions have none of these.
Stopped = Literal["", "inside", "limits", "reserve"]


def stopped_at(edges: Sequence[Edge]) -> Stopped:
    """Why a study trains no further runs, by the edges of its best option."""
    if not edges:
        return "inside"
    return "reserve" if any(edge.by == "tried" for edge in edges) else "limits"


@dataclass(frozen=True)
class Trained:
    """The outcome of a study's runs: results by run id, and a row per run without one."""

    results: dict[str, RunResult]
    failed: list[FailedRun]

    def __add__(self, other: Trained) -> Trained:
        return Trained({**self.results, **other.results}, [*self.failed, *other.failed])

    def complete(self, specs: Sequence[RunSpec]) -> bool:
        """Whether every run of an arm has a result."""
        return all(spec.id in self.results for spec in specs)

    def may_pass(self, specs: Sequence[RunSpec]) -> bool:
        """Whether all failed runs of an arm failed for a transient cause."""
        lost = {spec.id for spec in specs}
        return all(row.passing for row in self.failed if row.run in lost)


def quiet(text: str) -> None:
    """Ignore a sentence."""


@contextlib.contextmanager
def laws_speak_of(runs: Sequence[str], losses: Sequence[str], say: Callable[[str], None]) -> Iterator[None]:
    """In this context, laws name row ``i`` of their tables by ``runs``, and ``say`` gets the rows they leave out."""

    def name(_table: str, row: int) -> str | None:
        return runs[row] if 0 <= row < len(runs) else None

    with warnings.catch_warnings(record=True) as caught, rows_named(name, losses):
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if issubclass(warning.category, SetAsideWarning):
            say(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


class Annealing(Document):
    """The end of a run: the share of decay steps, the shape of the decay, and the sharpening of the mixture.

    ``sharpen`` raises each weight of the mixture to that power and normalises; 1 means no change. ``weights``, pairs of
    a domain and its weight, are the mixture of the decay if the mixture study found it; else empty.
    """

    later: ClassVar[tuple[str, ...]] = ("weights",)

    share: float
    shape: Decay
    sharpen: float = 1.0
    weights: tuple[tuple[str, float], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the decay keeps the mixture of the stable phase."""
        return self.sharpen == 1 and not self.weights

    @property
    def name(self) -> str:
        """A short name for tables."""
        mixture = "" if self.sharpen == 1 else f", mixture^{self.sharpen:g}"
        mixture = ", annealing mixture" if self.weights else mixture
        return f"{100 * self.share:.4g}% {self.shape}{mixture}"


@dataclass(frozen=True)
class RunSize:
    """The size of a run: its shape, its steps with those of the warm-up, and the steps between validations.

    ``validation_every`` None leaves the interval to the trainer. ``text_share`` is as in ``RunSpec``. ``lr`` is the
    peak learning rate; None is the recipe's rule.
    """

    shape: ModelShape
    steps: int
    warmup_steps: int = 0
    validation_every: int | None = None
    text_share: float = 1.0
    lr: float | None = None


@dataclass(frozen=True)
class Lab:
    """A recipe with its corpus, store, executor and plan; ``say`` gets sentences for the user."""

    recipe: Recipe
    corpus: Corpus
    store: Store
    executor: Executor
    plan: Plan
    progress: Progress
    say: Callable[[str], None] = quiet

    def shape(self, family: str, depth: int) -> ModelShape:
        """The shape of a family's member for this corpus."""
        return self.recipe.family(family).shape(depth, self.corpus.vocab_size)

    def steps(self, tokens: float) -> int:
        """The number of optimizer steps nearest to ``tokens``, at least 10."""
        training = self.recipe.training
        return max(10, round(tokens / (training.batch_sequences * training.context_length)))

    def tokens(self, steps: int) -> int:
        """Tokens of a run of ``steps`` steps."""
        return steps * self.recipe.training.batch_sequences * self.recipe.training.context_length

    def matched(self, steps: int) -> float:
        """The share of the text with which a run of ``steps`` steps repeats its domains as often as the target run.

        1 if the recipe does not ask for it, or if the target run repeats no domain on any allowed mixture.
        """
        target = self.steps(self.plan.tokens["target"])
        if not self.recipe.study.match_repetition or not self.allowed().repeats(self.tokens(target)).any():
            return 1.0
        return min(1.0, steps / target)

    def allowed(self) -> Allowed:
        """The mixtures that the limits allow for the target run, and therefore for every run of the studies.

        Raises:
            UsageError: the limits leave no mixture.
        """
        tokens = self.tokens(self.steps(self.plan.tokens["target"]))
        return Allowed.of(self.corpus, self.recipe.limits, tokens)

    def spec(
        self,
        size: RunSize,
        schedule: Schedule,
        mixture: Mapping[str, float],
        seed: int,
        annealing_mixture: Mapping[str, float] | None = None,
    ) -> RunSpec:
        """A run of this recipe; ``annealing_mixture`` replaces the mixture when the decay starts."""
        training = self.recipe.training
        phases = [MixturePhase(start_step=0, weights=dict(mixture))]
        if annealing_mixture is not None and dict(annealing_mixture) != dict(mixture):
            start = schedule.decay_start(size.steps)
            # A run that decays from its first step has only the mixture of the decay.
            phases = [*phases[: start > 0], MixturePhase(start_step=start, weights=dict(annealing_mixture))]
        return RunSpec(
            corpus=self.corpus.hash,
            model=size.shape,
            context_length=training.context_length,
            batch_sequences=training.batch_sequences,
            steps=size.steps,
            mixture=tuple(phases),
            schedule=schedule,
            optimizer=OptimizerSpec(
                lr=training.peak_lr(size.shape.d_model) if size.lr is None else size.lr,
                weight_decay=training.weight_decay,
                grad_clip=training.grad_clip,
                z_loss=training.z_loss,
                kind=training.optimizer,
                base_width=training.base_width,
            ),
            seed=seed,
            precision=self.plan.precision,
            validation=Validation(every=size.validation_every, windows=self.recipe.validation_windows),
            text_share=size.text_share,
        )

    def annealed(self, size: RunSize, annealing: Annealing, mixture: Mapping[str, float], seed: int) -> RunSpec:
        """A whole warmup-stable-decay run with the given end."""
        schedule = Schedule(
            kind="wsd",
            warmup_steps=size.warmup_steps,
            decay_steps=_decay_steps(size.steps, size.warmup_steps, annealing),
            decay=annealing.shape,
        )
        return self.spec(size, schedule, mixture, seed, self.ending(mixture, annealing))

    def ending(self, mixture: Mapping[str, float], annealing: Annealing) -> dict[str, float]:
        """The mixture of the decay, ``mixture`` sharpened or another, within the limits for the whole target run.

        Runs of a study decay on the same mixture as the target, independent of their own number of tokens.
        """
        if annealing.plain:
            return dict(mixture)
        steps = self.steps(self.plan.tokens["target"])
        share = _decay_steps(steps, round(self.recipe.training.warmup_share * steps), annealing) / steps
        asked = dict(annealing.weights) or sharpened(mixture, annealing.sharpen)
        before, wanted = self.vector(mixture), self.vector(asked)
        return self.named(self.allowed().ending(before, wanted, share))

    def with_trunks(self, branches: Sequence[RunSpec], later: Sequence[RunSpec] = ()) -> list[Job]:
        """Jobs for ``branches`` and their shared stable trunks, as few as possible.

        Branches that differ only in their end share one trunk, as long as the longest of them needs. A trunk also keeps
        checkpoints for ``later`` branches that decay before its end (see ``from_trunks``).
        """
        jobs = []
        groups: dict[str, list[tuple[int, tuple[MixturePhase, ...], RunSpec]]] = {}
        for spec in {spec.id: spec for spec in branches}.values():
            start, stable, key = _stable_part(spec)
            if 0 < start < spec.steps:
                groups.setdefault(key, []).append((start, stable, spec))
            else:
                jobs.append(Job(spec))  # no part of it is a trunk, or all of it is
        further: dict[str, list[int]] = {}
        for spec in later:
            start, _, key = _stable_part(spec)
            further.setdefault(key, []).append(start)
        for key, group in groups.items():
            _, stable, first = group[0]
            if len(group) == 1:
                jobs.append(Job(first))
                continue
            starts = tuple(sorted({start for start, *_ in group}))
            schedule = Schedule(kind="constant", warmup_steps=first.schedule.warmup_steps)
            trunk = first.model_copy(update={"steps": starts[-1], "schedule": schedule, "mixture": stable})
            kept = {start for start in further.get(key, ()) if 0 < start < starts[-1]}
            jobs.append(Job(trunk, keep=tuple(sorted({*starts, *kept}))))
            jobs.extend(Job(spec, trunk=(trunk.id, start)) for start, _, spec in group)
        # A requested run can itself be a trunk; the later job is the one that writes checkpoints.
        return list({job.spec.id: job for job in jobs}.values())

    def from_trunks(self, branches: Sequence[RunSpec], jobs: Sequence[Job]) -> list[Job]:
        """Jobs for further ``branches``, each from the last suitable checkpoint of the trunks in ``jobs``.

        A branch without one is trained from step 0.
        """
        trunks = {_stable_part(job.spec)[2]: job for job in jobs if job.keep}
        found = []
        for spec in branches:
            start, _, key = _stable_part(spec)
            trunk = trunks.get(key)
            before = [] if trunk is None else [step for step in trunk.keep if step <= start]
            found.append(Job(spec, trunk=(trunk.spec.id, max(before)) if trunk is not None and before else None))
        return found

    def train(self, study: str, jobs: Sequence[Job], arms: Mapping[str, str]) -> Trained:
        """Train the runs without a result. ``arms`` names the arm of each run id; a run without an arm is a trunk.

        A failed run does not stop the others, and each failure is reported. Runs that failed for a transient cause are
        retried.
        """
        jobs = list({job.spec.id: job for job in jobs}.values())
        unfinished = {job.spec.id for job in jobs if not isinstance(settled(self.store, job.spec.id), RunResult)}
        wanted = {job.trunk[0] for job in jobs if job.trunk and job.spec.id in unfinished}
        # A trunk that no branch needs any more is not touched, for any outcome.
        jobs = [job for job in jobs if job.spec.id in arms or job.spec.id in wanted or job.spec.id not in unfinished]
        begun = time.time()
        outcomes = self.executor.run(study, jobs, self.progress)
        try:
            record_rates(self.executor, [job.spec for job in jobs], begun)
        except ArmillaryError as error:  # without them the sizes of later studies are less exact, but still valid
            self.say(f"{study}: the rates of its runs were not recorded: {error}")
        results = {run: value for run, value in outcomes.items() if isinstance(value, RunResult)}
        failed = [
            FailedRun(
                run=job.spec.id,
                arm=arms.get(job.spec.id, TRUNK),
                seed=job.spec.seed,
                status=value.status,
                cause=value.error,
                # The branches have trained all steps, so nothing is lost without the trunk.
                passing=value.status != "diverged" and job.spec.id in arms,
            )
            for job in jobs
            if isinstance(value := outcomes[job.spec.id], Failure)
        ]
        self._report(study, failed, len(jobs))
        return Trained(results, failed)

    def drop_trunks(self, jobs: Sequence[Job], trained: Trained) -> None:
        """Delete the checkpoints of trunks in ``jobs`` from which every branch has started."""
        again = {row.run for row in trained.failed if row.passing}
        still_needed = {job.trunk[0] for job in jobs if job.trunk and job.spec.id in again}
        for job in jobs:
            if job.keep and job.spec.id not in still_needed:
                shutil.rmtree(self.store.run_folder(job.spec.id) / "checkpoints", ignore_errors=True)

    def _report(self, study: str, failed: Sequence[FailedRun], runs: int) -> None:
        """Report the runs of a study without a result, and the consequences."""
        for row in failed[:_NAMED_FAILURES]:
            self.say(f"{study}: run {row}")
        if failed:
            again = sum(row.passing for row in failed)
            later = f"; the same command retries {again} of them" if again else ""
            self.say(f"{study}: {len(failed)} of {runs} runs have no result{later}")

    def stored(self, stage: str, key: str, model: type[Outcome]) -> Outcome | None:
        """The recorded outcome of a stage for inputs that hash to ``key``, or None.

        An unreadable record is not changed, and the stage is recomputed from its runs.
        """
        content = self.store.stage(stage, key)
        if content is None:
            return None
        try:
            return model.model_validate(content)
        except ValidationError as error:
            self.say(f"{stage}: its record {key} is damaged ({first_problem(error)}); recomputed")
            return None

    def conclude(self, stage: str, key: str, outcome: Outcome) -> Outcome:
        """Record a final outcome, and return it as read back. An outcome with runs to retry is not recorded."""
        content = to_json(outcome.model_dump(mode="json"))
        if not outcome.passing:
            self.store.record_stage(stage, key, content)
        return type(outcome).model_validate(content)

    def key(self, specs: Iterable[RunSpec], *inputs: Any) -> str:
        """Key of a stage that trains ``specs`` and whose analysis also reads ``inputs``."""
        return stage_key(self.corpus, list(specs), self.recipe.target_weights, *inputs)

    def for_target(self) -> Lab:
        """The lab that trains the target runs: over ranks if the recipe has a layout, else this lab."""
        layout = self.recipe.training.layout
        if layout is None or isinstance(self.executor, RankExecutor):
            return self
        return replace(self, executor=RankExecutor(self.executor, layout))

    def check(self) -> None:
        """Check that all runs of the studies and the target run can be trained, before anything is trained.

        Raises:
            UsageError: the limits leave no mixture, or a run of the plan cannot be trained.
        """
        domains = len(self.corpus.training_domains)
        # The mixture has every domain that the limits do not exclude.
        every = self.named(self.allowed().within(np.full(domains, 1 / domains)))
        training, study = self.recipe.training, self.recipe.study
        family = self.recipe.model.family
        sizes: list[tuple[str, int, Stage]] = [
            (family, study.mixture.depth, "mixture"),
            (family, study.anneal.depth, "anneal"),
            *((family, depth, "lr") for depth in study.lr_depths),
            *((name, depth, "ladder") for name in study.ladder.families for depth in study.ladder.depths),
            (family, self.recipe.model.depth, "target"),
        ]
        for name, depth, stage in sizes:
            steps = self.steps(self.plan.tokens[stage])
            spec = self.spec(RunSize(self.shape(name, depth), steps), Schedule(kind="constant"), every, seed=0)
            check_run(spec, self.corpus)
            if stage == "target" and training.layout is not None:
                try:
                    training.layout.check(spec)
                except UsageError as error:
                    raise UsageError(f"training.layout: {error}") from error

    def target_loss(self, result: RunResult) -> float:
        """The recipe's target: the weighted mean of the validation losses, in nats per token."""
        return sum(weight * result.loss[domain] for domain, weight in self.recipe.target_weights.items())

    def vector(self, mixture: Mapping[str, float]) -> np.ndarray:
        """A mixture as an array in the order of the training domains."""
        return np.array([mixture.get(domain, 0.0) for domain in self.corpus.training_domains])

    def named(self, vector: np.ndarray) -> dict[str, float]:
        """An array over the training domains as a mixture that sums to 1."""
        values = np.clip(np.asarray(vector, float), 0.0, None)
        return dict(zip(self.corpus.training_domains, (values / values.sum()).tolist(), strict=True))


def _stable_part(spec: RunSpec) -> tuple[int, tuple[MixturePhase, ...], str]:
    """The step at which a run decays, its phases before that step, and a hash that runs with one trunk share."""
    start = spec.schedule.decay_start(spec.steps)
    same = spec.model_dump(mode="json", exclude={"steps", "schedule", "mixture"})
    stable = tuple(phase for phase in spec.mixture if phase.start_step < start)
    return start, stable, canonical_hash([same, to_jsonable_python(stable), spec.schedule.warmup_steps])


def _decay_steps(steps: int, warmup_steps: int, annealing: Annealing) -> int:
    return min(steps - warmup_steps, max(1, round(annealing.share * steps)))


def sharpened(mixture: Mapping[str, float], power: float) -> dict[str, float]:
    """Each weight raised to ``power``, scaled to sum to 1; a weight of 0 stays 0."""
    if power == 1:
        return dict(mixture)
    logs = {name: power * math.log(weight) for name, weight in mixture.items() if weight > 0}
    if max(map(abs, logs.values())) < _MOST_LOG:
        raised = {name: mixture[name] ** power for name in logs}
    else:  # relative to the largest weight, to avoid overflow and underflow
        raised = {name: math.exp(value - max(logs.values())) for name, value in logs.items()}
    total = sum(raised.values())
    return {name: raised.get(name, 0.0) / total for name in mixture}


def phases(spec: RunSpec) -> list[Phase]:
    """The mixtures of a run, each with its share of the run's tokens."""
    ends = [*(phase.start_step for phase in spec.mixture[1:]), spec.steps]
    return [
        Phase(
            start_step=phase.start_step,
            share=(spec.tokens_after(end) - spec.tokens_after(phase.start_step)) / spec.tokens,
            weights=phase.weights,
        )
        for phase, end in zip(spec.mixture, ends, strict=True)
    ]


def stage_key(corpus: Corpus, *inputs: Any) -> str:
    """Hash of everything that determines the outcome of a stage.

    A RunSpec in ``inputs`` counts by its id, and ``training`` without the fields that only the target run reads.
    """
    return canonical_hash([corpus.hash, LAWS_VERSION, _OUTCOME_FORMAT, [_plain(value) for value in inputs]])


def _plain(value: Any) -> Any:
    match value:
        case RunSpec():
            return value.id
        case Training():
            return value.model_dump(mode="json", exclude=set(_OF_THE_TARGET))
        case list() | tuple():
            return [_plain(part) for part in value]
    return to_jsonable_python(value)
