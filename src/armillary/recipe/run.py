"""RunSpec: everything that decides what a training run computes, and nothing else (contract 1).

The id of a run is the hash of its canonical specification. What does not change the numbers (where the run is stored,
on how many ranks, in which study) is not part of it. The learning rate and the mixture are functions of the step, so
two runs that agree on every step up to ``s`` are the same run up to ``s``: ``prefix_id`` hashes exactly that, and it
is how a branch of an annealing study may start from a trunk's checkpoint and still be a pure function of its own spec.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from armillary.recipe.errors import FieldError
from armillary.recipe.shapes import Document, ModelShape

Decay = Literal["linear", "cosine", "1-sqrt"]


def decay_factor(shape: Decay, progress: float) -> float:
    """How much of the way down is left at ``progress`` in [0, 1] of a decay: 1 at its start, 0 at its end.

    ``1-sqrt`` is the shape of Hägele et al. 2024 (arXiv 2405.18392), section 3.
    """
    if shape == "linear":
        return 1.0 - progress
    if shape == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - math.sqrt(progress)


class Schedule(Document):
    """Learning rate as a function of the step, relative to the optimizer's peak rate.

    Linear warm-up over ``warmup_steps``, then by ``kind``: ``constant`` stays; ``cosine`` and ``linear`` fall over all
    remaining steps; ``wsd`` (warmup-stable-decay, Hu et al. 2024, arXiv 2404.06395) stays until the last
    ``decay_steps`` and falls in them by ``decay``. All falls end at ``final_ratio`` of the peak.
    """

    kind: Literal["constant", "cosine", "linear", "wsd"] = "wsd"
    warmup_steps: int = Field(default=0, ge=0)
    decay_steps: int = Field(default=0, ge=0)
    decay: Decay = "linear"
    final_ratio: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _only_wsd_has_decay_steps(self) -> Self:
        if self.decay_steps and self.kind != "wsd":
            raise ValueError(f"decay_steps belongs to kind 'wsd'; kind is '{self.kind}', which decays on its own")
        return self

    def decay_start(self, steps: int) -> int:
        """First step whose rate lies below the peak because of the decay; ``steps`` where nothing decays."""
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
        # The first decaying step lies one notch below the peak and the last one a notch above the end, so that no
        # step is trained with a rate of exactly zero.
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


class OptimizerSpec(Document):
    """AdamW (Loshchilov and Hutter 2019) or Muon, with decoupled decay on matrices only and a clipped global norm.

    With ``kind`` ``muon`` the matrices of the layers take Muon's steps (Jordan et al. 2024) with ``momentum`` and
    Nesterov's rule, scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982, equation 4), so that one ``lr``
    and one ``weight_decay`` serve both; embedding, output matrix and gains take AdamW's.

    With ``base_width`` rates and initial values are those of a model of that width, carried over to the model's own by
    muP (Yang et al. 2022, arXiv 2203.03466, table 8): what is found with a narrow model holds for a wide one of the
    same depth and proportions. ``base_head_dim`` is the base model's ``head_dim``, where heads grow with the width too.
    """

    later: ClassVar[tuple[str, ...]] = ("kind", "momentum", "base_width", "base_head_dim")

    lr: float = Field(gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    z_loss: float = Field(default=0.0, ge=0)
    kind: Literal["adamw", "muon"] = "adamw"
    momentum: float = Field(default=0.95, ge=0, lt=1)
    base_width: int | None = Field(default=None, ge=1)
    base_head_dim: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.kind != "muon" and self.momentum != type(self).model_fields["momentum"].default:
            raise FieldError(f"belongs to kind 'muon'; kind is '{self.kind}'", "momentum")
        if self.base_head_dim is not None and self.base_width is None:
            raise FieldError("needs base_width, the width of the same base model", "base_head_dim")
        return self


class Validation(Document):
    """After which steps, and on how many windows of each domain, the validation loss is taken (always at the end)."""

    every: int | None = Field(default=None, ge=1)
    windows: int = Field(default=64, ge=1)

    def due(self, step: int, steps: int) -> bool:
        """Whether the loss is taken after ``step`` steps are done."""
        return step == steps or (self.every is not None and step > 0 and step % self.every == 0)


class RunSpec(Document):
    """A training run. Sizes: ``batch_sequences * context_length`` tokens per step, ``steps`` steps."""

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
    seed: int = Field(ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    validation: Validation = Validation()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        starts = [phase.start_step for phase in self.mixture]
        if not starts or starts[0] != 0:
            raise ValueError("the first phase of the mixture must start at step 0")
        if starts != sorted(set(starts)):
            raise ValueError(f"phases of the mixture must start at growing steps, found {starts}")
        if self.batch_sequences % self.accumulation:
            raise ValueError(
                f"batch_sequences ({self.batch_sequences}) must be a multiple of accumulation ({self.accumulation})"
            )
        if self.schedule.warmup_steps + self.schedule.decay_steps > self.steps:
            raise ValueError(
                f"warmup_steps ({self.schedule.warmup_steps}) and decay_steps ({self.schedule.decay_steps}) "
                f"do not fit into {self.steps} steps"
            )
        return self

    @property
    def id(self) -> str:
        """16 hexadecimal digits: the SHA-256 of the canonical JSON of this specification."""
        return canonical_hash(self.model_dump(mode="json"))

    @property
    def batch_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch_sequences * self.context_length

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.batch_tokens

    @property
    def flops(self) -> float:
        """FLOPs of the whole run (6N plus causal attention; validation not counted)."""
        return self.tokens * self.model.train_flops_per_token(self.context_length)

    def lr(self, step: int) -> float:
        """Learning rate of ``step`` (0-based)."""
        return self.optimizer.lr * self.schedule.ratio(step, self.steps)

    def prefix_id(self, steps: int) -> str:
        """Hash of all that decides the first ``steps`` steps and what is measured in them.

        Runs of one prefix share the state after it, whatever schedule and mixture they go on with.
        """
        parts = self.model_dump(mode="json", exclude={"steps", "schedule", "mixture"})
        parts["mixture"] = [p.model_dump(mode="json") for p in self.mixture if p.start_step < steps]
        parts["lr"] = [self.lr(step) for step in range(steps)]
        return canonical_hash(parts)


def canonical_hash(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of ``value`` as JSON with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
