"""What every study works with, and how a recipe becomes run specifications."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from armillary.corpus import Corpus
from armillary.recipe import (
    ArmillaryError,
    Decay,
    Document,
    Layout,
    MixturePhase,
    ModelShape,
    OptimizerSpec,
    Recipe,
    RunSpec,
    Schedule,
    UsageError,
    Validation,
    canonical_hash,
)
from armillary.study.executor import Executor, Failure, Job, Progress
from armillary.study.over_ranks import OverRanks
from armillary.study.rates import record_rates
from armillary.study.sizing import Plan
from armillary.study.store import Store, to_json
from armillary.train import RunResult

Outcome = TypeVar("Outcome", bound=BaseModel)


class Annealing(Document):
    """The end of a run: the share of its steps that decay, their shape, and how much the mixture is sharpened.

    ``sharpen`` raises each weight of the mixture to that power and normalises; 1 leaves it.
    """

    share: float
    shape: Decay
    sharpen: float = 1.0

    @property
    def name(self) -> str:
        """A short name for tables."""
        mixture = "" if self.sharpen == 1 else f", mixture^{self.sharpen:g}"
        return f"{100 * self.share:.4g}% {self.shape}{mixture}"


@dataclass(frozen=True)
class Lab:
    """A recipe with its corpus, store, executor and plan, and someone to tell of progress."""

    recipe: Recipe
    corpus: Corpus
    store: Store
    executor: Executor | OverRanks
    plan: Plan
    progress: Progress

    def shape(self, family: str, depth: int) -> ModelShape:
        """The shape of a family's member for this corpus."""
        return self.recipe.family(family).shape(depth, self.corpus.vocab_size)

    def steps(self, tokens: float) -> int:
        """Optimizer steps that come nearest to ``tokens``, at least 10."""
        training = self.recipe.training
        return max(10, round(tokens / (training.batch_sequences * training.context_length)))

    def spec(
        self,
        shape: ModelShape,
        steps: int,
        schedule: Schedule,
        mixture: Mapping[str, float],
        seed: int,
        annealing_mixture: Mapping[str, float] | None = None,
        validation_every: int | None = None,
    ) -> RunSpec:
        """A run of this recipe; ``annealing_mixture`` replaces the mixture where the decay starts."""
        training = self.recipe.training
        phases = [MixturePhase(start_step=0, weights=dict(mixture))]
        if annealing_mixture is not None and dict(annealing_mixture) != dict(mixture):
            phases.append(MixturePhase(start_step=schedule.decay_start(steps), weights=dict(annealing_mixture)))
        return RunSpec(
            corpus=self.corpus.hash,
            model=shape,
            context_length=training.context_length,
            batch_sequences=training.batch_sequences,
            steps=steps,
            mixture=tuple(phases),
            schedule=schedule,
            optimizer=OptimizerSpec(
                lr=training.peak_lr(shape.d_model),
                weight_decay=training.weight_decay,
                grad_clip=training.grad_clip,
                z_loss=training.z_loss,
                kind=training.optimizer,
                base_width=training.base_width,
            ),
            seed=seed,
            precision=self.plan.precision,
            validation=Validation(every=validation_every, windows=self.recipe.validation_windows),
        )

    def annealed(
        self,
        shape: ModelShape,
        steps: int,
        annealing: Annealing,
        mixture: Mapping[str, float],
        seed: int,
        *,
        warmup_steps: int,
        validation_every: int | None = None,
    ) -> RunSpec:
        """A whole warmup-stable-decay run with the given end."""
        schedule = Schedule(
            kind="wsd",
            warmup_steps=warmup_steps,
            decay_steps=min(steps - warmup_steps, max(1, round(annealing.share * steps))),
            decay=annealing.shape,
        )
        end = sharpened(mixture, annealing.sharpen)
        return self.spec(shape, steps, schedule, mixture, seed, end, validation_every)

    def with_trunks(self, branches: Sequence[RunSpec]) -> list[Job]:
        """Jobs for ``branches`` and for the stable trunks that they share, as few as possible.

        Branches that agree on all but their end get one trunk, as long as the longest of them needs.
        """
        jobs = []
        groups: dict[str, list[tuple[int, tuple[MixturePhase, ...], RunSpec]]] = {}
        for spec in {spec.id: spec for spec in branches}.values():
            start = spec.schedule.decay_start(spec.steps)
            same = spec.model_dump(mode="json", exclude={"steps", "schedule", "mixture"})
            stable = tuple(phase for phase in spec.mixture if phase.start_step < start)
            key = canonical_hash([same, to_jsonable_python(stable), spec.schedule.warmup_steps])
            if 0 < start < spec.steps:
                groups.setdefault(key, []).append((start, stable, spec))
            else:
                jobs.append(Job(spec))  # nothing of it is a trunk, or all of it
        for group in groups.values():
            _, stable, first = group[0]
            if len(group) == 1:
                jobs.append(Job(first))
                continue
            starts = tuple(sorted({start for start, *_ in group}))
            schedule = Schedule(kind="constant", warmup_steps=first.schedule.warmup_steps)
            trunk = first.model_copy(update={"steps": starts[-1], "schedule": schedule, "mixture": stable})
            jobs.append(Job(trunk, keep=starts))
            jobs.extend(Job(spec, trunk=(trunk.id, start)) for start, _, spec in group)
        # A run that was asked for may itself be a trunk; the later job is the one that leaves checkpoints.
        return list({job.spec.id: job for job in jobs}.values())

    def carry_out(self, study: str, jobs: Sequence[Job]) -> tuple[dict[str, RunResult], list[Failure]]:
        """Results by run id, and what failed; one failed run does not stop a study.

        Raises:
            ArmillaryError: fewer than three quarters of the runs have a result.
        """
        begun = time.time()
        outcomes = self.executor.run(study, jobs, self.progress)
        record_rates(self.executor, [job.spec for job in jobs], begun)
        results = {run: value for run, value in outcomes.items() if isinstance(value, RunResult)}
        failures = [value for value in outcomes.values() if isinstance(value, Failure)]
        if len(results) < 0.75 * len(outcomes):
            raise ArmillaryError(
                f"{study}: {len(failures)} of {len(outcomes)} runs have no result, too many to go on; "
                f"the first: {failures[0].error}"
            )
        for job in jobs:
            if job.keep:  # every branch has started from it: the checkpoints of a trunk have done their work
                shutil.rmtree(self.store.run_folder(job.spec.id) / "checkpoints", ignore_errors=True)
        return results, failures

    def for_target(self) -> Lab:
        """The lab in which the target runs are carried out: by ranks where the recipe has a layout, else as this."""
        layout = self.recipe.training.layout
        if layout is None or not isinstance(self.executor, Executor):
            return self
        return replace(self, executor=OverRanks(self.executor, layout))

    def check_layout(self, layout: Layout) -> None:
        """Hold a layout of the target run against its shape, lengths and optimizer.

        Raises:
            UsageError: the run cannot be divided like this.
        """
        shape = self.shape(self.recipe.model.family, self.recipe.model.depth)
        spec = self.spec(shape, 10, Schedule(kind="constant"), self.corpus.natural_mixture(), seed=0)
        try:
            layout.check(spec)
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


def sharpened(mixture: Mapping[str, float], power: float) -> dict[str, float]:
    """Each weight raised to ``power``, scaled to sum to 1."""
    if power == 1:
        return dict(mixture)
    raised = {name: weight**power for name, weight in mixture.items()}
    total = sum(raised.values())
    return {name: weight / total for name, weight in raised.items()}


def stored(store: Store, stage: str, key: str, model: type[Outcome]) -> Outcome | None:
    """The outcome of a stage for inputs that hash to ``key``, or None."""
    content = store.stage(stage, key)
    return None if content is None else model.model_validate(content)


def record(store: Store, stage: str, key: str, outcome: Outcome) -> Outcome:
    """Store an outcome and return it as it will be read again."""
    content = to_json(outcome.model_dump(mode="json"))
    store.record_stage(stage, key, content)
    return type(outcome).model_validate(content)


def stage_key(corpus: Corpus, *inputs: Any) -> str:
    """Hash of what a stage depends on."""
    return canonical_hash([corpus.hash, *to_jsonable_python(inputs)])
