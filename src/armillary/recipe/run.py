"""RunSpec: everything that determines the numbers of a training run, and nothing else (contract 1).

The id of a run is the hash of its canonical specification. Settings that do not change the numbers (storage, number of
ranks, study) are not part of it. The learning rate and the mixture are functions of the step. Two runs that agree on
every step up to ``s`` are therefore identical up to ``s``, and ``prefix_id`` hashes exactly this prefix. So a branch of
an annealing study can start from a trunk's checkpoint and still be a pure function of its own specification.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from armillary.recipe.adapter import Lora
from armillary.recipe.errors import FieldError
from armillary.recipe.objective import NextToken, Objective
from armillary.recipe.optimizers import MuonOptions, OptimizerKind, OptimizerOptions, options_of
from armillary.recipe.shapes import Document, ModelShape, RopeScaling

Decay = Literal["linear", "cosine", "1-sqrt"]


def decay_factor(shape: Decay, progress: float) -> float:
    """The remaining share of a decay at ``progress`` in [0, 1]: 1 at its start, 0 at its end.

    ``1-sqrt`` is the shape of Hägele et al. 2024 (arXiv 2405.18392), section 3.
    """
    if shape == "linear":
        return 1.0 - progress
    if shape == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - math.sqrt(progress)


class Schedule(Document):
    """Learning rate as a function of the step, relative to the optimizer's peak rate.

    A linear warm-up over ``warmup_steps`` is followed by ``kind``. ``constant`` keeps the peak rate. ``cosine`` and
    ``linear`` decay over all remaining steps. ``wsd`` (warmup-stable-decay, Hu et al. 2024, arXiv 2404.06395) keeps the
    peak rate until the last ``decay_steps``, which decay by ``decay``. Every decay ends at ``final_ratio`` of the peak.
    """

    kind: Literal["constant", "cosine", "linear", "wsd"] = "wsd"
    warmup_steps: int = Field(default=0, ge=0)
    decay_steps: int = Field(default=0, ge=0)
    decay: Decay = "linear"
    final_ratio: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _only_wsd_has_decay_steps(self) -> Self:
        if self.decay_steps and self.kind != "wsd":
            raise ValueError(f"decay_steps belongs to kind 'wsd'; kind is '{self.kind}', which has its own decay")
        return self

    def decay_start(self, steps: int) -> int:
        """First step whose rate is below the peak because of the decay; ``steps`` without a decay."""
        if self.kind == "constant":
            return steps
        return steps - self.decay_steps if self.kind == "wsd" else min(self.warmup_steps, steps)

    def ratio(self, step: int, steps: int) -> float:
        """The rate of ``step`` (0-based) in a run of ``steps``, as a share of the peak rate, in [0, 1]."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        start = self.decay_start(steps)
        if step < start:
            return 1.0
        shape: Decay = self.decay if self.kind == "wsd" else "cosine" if self.kind == "cosine" else "linear"
        # The first decaying step is already below the peak and the last one still above the end, so that no step has a
        # rate of exactly zero.
        progress = (step - start + 1) / (steps - start + 1)
        return self.final_ratio + (1.0 - self.final_ratio) * decay_factor(shape, progress)


class MixturePhase(Document):
    """From ``start_step`` on, sequences are drawn from the domains by these weights (they sum to 1)."""

    start_step: int = Field(ge=0)
    weights: dict[str, float]

    @model_validator(mode="after")
    def _weights_are_a_mixture(self) -> Self:
        bad = {name: w for name, w in self.weights.items() if w < 0}
        if bad:
            raise ValueError(f"mixture weights must not be negative, found {bad}")
        total = sum(self.weights.values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"mixture weights must sum to 1, these sum to {total:.8g}")
        return self


class LengthPhase(Document):
    """From ``start_step`` on, a step takes ``batch_sequences`` sequences of ``context_length`` tokens.

    A ``rope_theta`` or ``rope_scaling`` given here replaces the model's from this step on.
    """

    start_step: int = Field(ge=1)
    context_length: int = Field(ge=2)
    batch_sequences: int = Field(ge=1)
    rope_theta: float | None = Field(default=None, gt=0)
    rope_scaling: RopeScaling | None = None


class OptimizerSpec(Document):
    """AdamW (Loshchilov and Hutter 2019) or Muon, with decoupled decay on matrices only and a clipped global norm.

    With ``kind`` ``muon`` the matrices of the layers take Muon's steps (Jordan et al. 2024) with ``momentum`` and
    Nesterov's rule, scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982, equation 4), so that one ``lr``
    and one ``weight_decay`` serve both; embedding, output matrix and gains take AdamW's.

    With ``base_width``, rates and initial values are given for a model of that width and transferred to the model's own
    width by muP (Yang et al. 2022, arXiv 2203.03466, table 8). Values tuned on a narrow model then hold for a wide one
    of the same depth and proportions. ``base_head_dim`` is the base model's ``head_dim``, if heads grow with the width.

    Another ``kind`` that is registered (``armillary.optim``) has its own ``options``.
    """

    later: ClassVar[tuple[str, ...]] = ("kind", "momentum", "base_width", "base_head_dim", "options")

    lr: float = Field(gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    z_loss: float = Field(default=0.0, ge=0)
    kind: OptimizerKind = "adamw"
    momentum: float = Field(default=0.95, ge=0, lt=1)
    base_width: int | None = Field(default=None, ge=1)
    base_head_dim: int | None = Field(default=None, ge=2)
    options: SerializeAsAny[OptimizerOptions] | None = None

    @field_validator("options", mode="before")
    @classmethod
    def _options_are_of_the_kind(cls, value: Any, info: ValidationInfo) -> Any:
        kind = info.data.get("kind")
        if value is None or kind is None:  # a wrong kind is reported by its own field
            return None
        return options_of(kind).model_validate(value)

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.kind != "muon" and self.momentum != type(self).model_fields["momentum"].default:
            raise FieldError(f"belongs to kind 'muon'; kind is '{self.kind}'", "momentum")
        if self.base_head_dim is not None and self.base_width is None:
            raise FieldError("needs base_width, the width of the same base model", "base_head_dim")
        if self.options is not None and self.kind == "muon":
            raise FieldError("kind 'muon' takes no options; its momentum is the key momentum", "options")
        return self

    @property
    def own(self) -> OptimizerOptions:
        """The options of the optimizer's kind, given or default."""
        if self.kind == "muon":
            return MuonOptions(momentum=self.momentum)
        return self.options or options_of(self.kind)()


class Validation(Document):
    """When the validation loss is measured (always at the end), and on how many windows of each domain."""

    every: int | None = Field(default=None, ge=1)
    windows: int = Field(default=64, ge=1)

    def due(self, step: int, steps: int) -> bool:
        """Whether the validation loss is measured after ``step`` steps."""
        return step == steps or (self.every is not None and step > 0 and step % self.every == 0)


class Start(Document):
    """Initial weights of a run, instead of those drawn from its seed; the optimizer state starts from zero.

    ``run`` is the id of a finished run, whose final weights are used; its folder is beside the new run's folder.
    ``weights`` is a path: a safetensors file with the model's tensors under their own names, the folder of a checkpoint
    (``checkpoints/step-N``), or the folder of a finished run. With both, ``weights`` is the path of the weights of
    ``run``.

    ``sha256`` is the hash of the file. For a checkpoint it is the hash of its ``checkpoint.json``, which holds the
    hashes of all its files. Only ``sha256`` enters the run's id, because a file's path does not change the numbers.
    """

    run: str | None = Field(default=None, pattern="^[0-9a-f]{16}$")
    weights: str | None = Field(default=None, min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _names_weights(self) -> Self:
        if self.run is None and self.weights is None:
            raise ValueError("give run (the id of a finished run) or weights (the path of a file or a checkpoint)")
        return self


class RunSpec(Document):
    """A training run. Sizes: ``batch_sequences * context_length`` tokens per step, ``steps`` steps.

    ``lengths`` changes both sizes and the rotary scaling during the run. ``context_length``, ``batch_sequences``,
    ``batch_tokens`` and ``model`` are then those of the first step, and ``during`` returns the run at a later step. The
    longest context length must be a multiple of every other, so that text is not cut again (``corpus.order``).

    With an ``adapter``, only the adapter is trained; the weights of ``start`` are frozen.

    A run with a ``text_share`` below 1 draws from this share of the windows of each domain, chosen by the seed, so it
    repeats its text as often as a run of ``1 / text_share`` times its tokens repeats all of it.
    """

    later: ClassVar[tuple[str, ...]] = ("lengths", "start", "objective", "adapter", "text_share")

    format: Literal[1] = 1
    corpus: str
    model: ModelShape
    context_length: int = Field(ge=2)
    batch_sequences: int = Field(ge=1)
    accumulation: int = Field(default=1, ge=1)
    steps: int = Field(ge=1)
    mixture: tuple[MixturePhase, ...]
    schedule: Schedule = Schedule()
    optimizer: OptimizerSpec
    seed: int = Field(ge=0, lt=2**63)
    precision: Literal["fp32", "bf16"] = "fp32"
    validation: Validation = Validation()
    lengths: tuple[LengthPhase, ...] = ()
    start: Start | None = None
    objective: Objective = NextToken()
    adapter: Lora | None = None
    text_share: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        if isinstance(self.objective, NextToken):
            return self
        for name in ("mixture", "lengths"):
            if getattr(self, name):
                raise FieldError(
                    f"belongs to objective 'next-token', not to '{self.objective.kind}'; leave it empty", name
                )
        if self.text_share != 1:
            raise FieldError(
                f"belongs to objective 'next-token', not to '{self.objective.kind}'; leave it out", "text_share"
            )
        return self

    @model_validator(mode="after")
    def _adapter_has_a_base(self) -> Self:
        if self.adapter is not None and self.start is None:
            raise FieldError(
                "adapts the weights of a start, but start is missing; give it, or leave adapter out", "adapter"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        starts = [phase.start_step for phase in self.mixture]
        if isinstance(self.objective, NextToken) and (not starts or starts[0] != 0):
            raise FieldError("the first phase of the mixture must start at step 0", "mixture")
        if starts != sorted(set(starts)):
            raise FieldError(f"phases of the mixture must start at growing steps, found {starts}", "mixture")
        if self.batch_sequences % self.accumulation:
            raise FieldError(
                f"batch_sequences ({self.batch_sequences}) must be a multiple of accumulation ({self.accumulation})",
                "batch_sequences",
            )
        if self.schedule.warmup_steps + self.schedule.decay_steps > self.steps:
            raise FieldError(
                f"warmup_steps ({self.schedule.warmup_steps}) and decay_steps ({self.schedule.decay_steps}) "
                f"do not fit into {self.steps} steps",
                "schedule",
            )
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        starts = [phase.start_step for phase in self.lengths]
        if starts != sorted(set(starts)):
            raise FieldError(f"phases must start at growing steps, found {starts}", "lengths")
        if starts and starts[-1] >= self.steps:
            raise FieldError(f"a phase starts at step {starts[-1]}, but the run has {self.steps}", "lengths")
        longest = self.longest
        for _, _, run in self.stretches() if self.lengths else ():
            if longest % run.context_length:
                raise FieldError(
                    f"the longest context_length ({longest}) must be a multiple of every other, "
                    f"found {run.context_length}",
                    "lengths",
                )
            if run.batch_sequences % self.accumulation:
                raise FieldError(
                    f"batch_sequences ({run.batch_sequences}) must be a multiple of accumulation ({self.accumulation})",
                    "lengths",
                )
            ModelShape.model_validate(run.model.model_dump())
        return self

    @property
    def id(self) -> str:
        """16 hexadecimal digits: the SHA-256 of the canonical JSON of this specification."""
        return canonical_hash(self._content())

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of the runs from whose weights this run starts."""
        return () if self.start is None or self.start.run is None else (self.start.run,)

    def _content(self, *left_out: str) -> dict[str, Any]:
        """All fields that determine the numbers, without those ``left_out``."""
        content = self.model_dump(mode="json", exclude=set(left_out))
        if self.start is not None:
            content["start"] = {"sha256": self.start.sha256}
        return content

    @property
    def batch_tokens(self) -> int:
        """Tokens of one optimizer step; of the first step, if ``lengths`` changes them."""
        return self.batch_sequences * self.context_length

    @property
    def longest(self) -> int:
        """The longest context length of the run."""
        return max([self.context_length, *(phase.context_length for phase in self.lengths)])

    def stretches(self) -> list[tuple[int, int, RunSpec]]:
        """The parts of the run with constant sizes: first step, step after the last, and the run between them.

        Each run is this one with the part's sizes and without ``lengths``; its schedule is the whole run's.
        """
        starts = [0, *(phase.start_step for phase in self.lengths)]
        ends = [*starts[1:], self.steps]
        run = self.model_copy(update={"lengths": ()})
        found = [(0, ends[0], run)]
        for phase, end in zip(self.lengths, ends[1:], strict=True):
            turned = {name: getattr(phase, name) for name in ("rope_theta", "rope_scaling")}
            model = run.model.model_copy(update={name: v for name, v in turned.items() if v is not None})
            sizes = {"context_length": phase.context_length, "batch_sequences": phase.batch_sequences}
            run = run.model_copy(update={**sizes, "model": model})
            found.append((phase.start_step, end, run))
        return found

    def during(self, step: int) -> RunSpec:
        """The run of ``stretches`` that contains ``step`` (0-based)."""
        return next(run for start, _, run in reversed(self.stretches()) if start <= step) if self.lengths else self

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.tokens_after(self.steps)

    def tokens_after(self, steps: int) -> int:
        """Tokens of the first ``steps`` steps."""
        return sum(
            (min(end, steps) - start) * run.batch_tokens for start, end, run in self.stretches() if start < steps
        )

    @property
    def flops(self) -> float:
        """FLOPs of the whole run (6N plus causal attention; validation not counted)."""
        return sum(
            (end - start) * run.batch_tokens * run.model.train_flops_per_token(run.context_length)
            for start, end, run in self.stretches()
        )

    def lr(self, step: int) -> float:
        """Learning rate of ``step`` (0-based)."""
        return self.optimizer.lr * self.schedule.ratio(step, self.steps)

    def prefix_id(self, steps: int) -> str:
        """Hash of everything that determines the first ``steps`` steps and their measurements.

        Runs with the same prefix have the same state after it, even if schedule and mixture differ later. With
        ``lengths`` the hash also covers all phases. If the prefix ends in a phase below the longest length, it covers
        this phase's end and the mixture up to it: the order of short windows depends on how many long ones it needs.
        """
        parts = self._content("steps", "schedule", "mixture")
        settled = steps
        _, end, run = next(part for part in self.stretches() if part[1] >= min(steps, self.steps))
        if run.context_length < self.longest:
            parts["end"] = settled = end
        parts["mixture"] = [p.model_dump(mode="json") for p in self.mixture if p.start_step < settled]
        parts["lr"] = [self.lr(step) for step in range(steps)]
        return canonical_hash(parts)


def canonical_hash(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of ``value`` as JSON with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
