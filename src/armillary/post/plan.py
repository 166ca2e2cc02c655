"""Plans a fine-tuning: the options, and the run that follows from options, model and data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from armillary.corpus import Corpus, SupervisedOrder, open_examples
from armillary.post.check import Counts, TooLong
from armillary.recipe import (
    Lora,
    ModelShape,
    OptimizerSpec,
    Preference,
    RunSpec,
    Schedule,
    Supervised,
    UsageError,
    first_problem,
)
from armillary.train import default_device

BATCH_TOKENS = 8192
PART_TOKENS = 4096  # tokens of a batch computed at once
LENGTH = 1024  # tokens of a sequence, unless a conversation is longer

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class TuningOptions:
    """Options common to all trainings on a user's file; None is replaced by a choice based on model and data.

    ``epochs`` are passes over the data. ``lr`` is the peak of a cosine that ends at a tenth of it. ``context_length``
    is the length of a packed sequence in tokens. ``precision`` is that of matrix products. ``template`` is as for
    ``open_renderer``, and ``dtype`` is that of the written model. With ``lora``, an adapter is trained instead of all
    weights, at ten times the learning rate.

    Raises:
        UsageError: a value outside its range.
    """

    epochs: float = 1.0
    lr: float | None = None
    context_length: int | None = None
    weight_decay: float = 0.0
    precision: Literal["fp32", "bf16"] | None = None
    seed: int = 0
    template: str | None = None
    dtype: Dtype | None = None
    lora: Lora | None = None

    # lower bounds of fields
    LEAST: ClassVar[dict[str, float]] = {"epochs": 0.0, "lr": 0.0}

    def __post_init__(self) -> None:
        for name, least in self.LEAST.items():
            value = getattr(self, name)
            if value is not None and (not math.isfinite(value) or value <= least):
                raise UsageError(f"{name} must be more than {least:g}, given {value!r}")
        if not math.isfinite(self.weight_decay) or self.weight_decay < 0:
            raise UsageError(f"weight_decay must be at least 0, given {self.weight_decay!r}")

    def settings(self) -> dict[str, Any]:
        """The options as plain data."""
        return {**asdict(replace(self, lora=None)), "lora": self.lora and self.lora.model_dump(mode="json")}


@dataclass(frozen=True)
class SftOptions(TuningOptions):
    """Options of a fine-tuning.

    ``batch_tokens`` is the number of tokens per step. ``too_long`` says how to treat a conversation that does not fit
    into a sequence. The warm-up takes 3% of the steps.
    """

    epochs: float = 3.0
    batch_tokens: int | None = None
    too_long: TooLong = "refuse"

    LEAST: ClassVar[dict[str, float]] = {**TuningOptions.LEAST, "batch_tokens": 1, "context_length": 1}


@dataclass(frozen=True)
class Steps:
    """The steps of a run.

    There are ``count`` steps of ``sequences`` packed sequences of ``length`` tokens. ``lr`` is the default learning
    rate, which ``TuningOptions.lr`` overrides; ``warmup`` is the share of warm-up steps.
    """

    length: int
    sequences: int
    count: int
    lr: float
    warmup: float


def run_of(
    shape: ModelShape, corpus: Corpus, options: TuningOptions, steps: Steps, objective: Supervised | Preference
) -> RunSpec:
    """The run of a training, without its start.

    Raises:
        UsageError: the sizes do not fit together.
    """
    divisors = (n for n in range(1, steps.sequences + 1) if steps.sequences % n == 0)
    parts = next(n for n in divisors if steps.sequences // n * steps.length <= PART_TOKENS or n == steps.sequences)
    warmup = min(steps.count, math.ceil(steps.warmup * steps.count))
    try:
        return RunSpec(
            corpus=corpus.hash,
            model=shape,
            context_length=steps.length,
            batch_sequences=steps.sequences,
            accumulation=parts,
            steps=steps.count,
            mixture=(),
            schedule=Schedule(kind="cosine", warmup_steps=warmup, final_ratio=0.1),
            optimizer=OptimizerSpec(lr=options.lr or steps.lr, weight_decay=options.weight_decay, beta2=0.95),
            seed=options.seed,
            precision=options.precision or fast_precision(),
            objective=objective,
        )
    except ValidationError as error:
        raise UsageError(f"the run cannot be made: {first_problem(error)}") from error


@dataclass(frozen=True)
class Plan:
    """The plan of a training: the run's specification, the counts of its data, and the template that rendered it."""

    spec: RunSpec
    counts: Counts
    template: str
    end: str
    sequences: int

    def lines(self) -> list[str]:
        """The plan as lines of text."""
        spec, counts = self.spec, self.counts
        lost = "".join(
            f", {value} {name.replace('_', ' ')}"
            for name, value in (
                ("cut", counts.cut),
                ("turns_cut", counts.turns_cut),
                ("dropped", counts.dropped),
                ("in one sample per answer", counts.apart),
            )
            if value
        )
        return [
            f"{counts.conversations} conversations with {counts.tokens:,} tokens, {counts.trained:,} of them trained"
            f"{lost}; template '{self.template}', a turn ends with {self.end}",
            f"{spec.steps} steps of {spec.batch_sequences} x {spec.context_length} tokens "
            f"({self.sequences} packed sequences, {spec.steps * spec.batch_sequences / self.sequences:.2f} passes), "
            f"learning rate {spec.optimizer.lr:.3g}, {spec.precision}",
        ]


def plan_for(
    shape: ModelShape, corpus: Corpus, examples: str, options: SftOptions, longest: int
) -> tuple[RunSpec, int]:
    """The run over a set of ``examples`` without its start, and the number of packed sequences.

    ``longest`` is the longest example in tokens.

    Raises:
        UsageError: the sizes do not fit together.
    """
    length = options.context_length or max(longest - 1, min(LENGTH, options.batch_tokens or LENGTH))
    pad = corpus.manifest.end_of_text_id
    sizes = {"seed": options.seed, "context_length": length, "pad": pad}
    rows = SupervisedOrder(open_examples(corpus, examples), batch_sequences=1, **sizes).sequences
    if options.batch_tokens is not None:
        sequences = max(1, round(options.batch_tokens / length))
    else:  # a small set needs many steps rather than large ones
        sequences = max(1, min(round(BATCH_TOKENS / length), rows // 10))
    # 2e-5, the usual rate for 7 billion parameters, scaled by the inverse root of the size.
    lr = min(3e-4, 2e-5 * math.sqrt(7e9 / shape.parameters)) * (1 if options.lora is None else 10)
    steps = Steps(length, sequences, max(1, math.ceil(options.epochs * rows / sequences)), lr, warmup=0.03)
    spec = run_of(shape, corpus, options, steps, Supervised(examples=examples))
    return spec, rows


def fast_precision() -> Literal["fp32", "bf16"]:
    """bf16 if the device multiplies faster in it than in fp32."""
    import torch

    if default_device().type != "cpu":
        return "bf16"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"
