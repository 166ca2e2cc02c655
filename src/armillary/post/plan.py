"""What a fine-tuning is to be: its options, and the run that they, the model and the data make."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from armillary.corpus import Corpus, SupervisedOrder, open_examples
from armillary.post.check import Counts, TooLong
from armillary.recipe import Lora, ModelShape, OptimizerSpec, RunSpec, Schedule, Supervised, UsageError, first_problem
from armillary.train import default_device

BATCH_TOKENS = 8192
PART_TOKENS = 4096  # of a batch that are computed at once
LENGTH = 1024  # of a sequence, where no conversation is longer

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class SftOptions:
    """How a model is fine-tuned; what is None is chosen from model and data (``Plan`` has the choice).

    ``epochs`` are passes over the conversations, ``lr`` is the peak of a cosine that ends at a tenth of it after a
    warm-up of 3% of the steps, ``batch_tokens`` are the tokens of one step, ``context_length`` those of a packed
    sequence, ``precision`` that of matrix products. ``template`` is as for ``open_renderer``, ``dtype`` that of the
    written model. With ``lora`` an adapter is trained in the place of all weights, at ten times the rate.
    """

    epochs: float = 3.0
    lr: float | None = None
    batch_tokens: int | None = None
    context_length: int | None = None
    weight_decay: float = 0.0
    precision: Literal["fp32", "bf16"] | None = None
    seed: int = 0
    too_long: TooLong = "refuse"
    template: str | None = None
    dtype: Dtype | None = None
    lora: Lora | None = None

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0.0), ("lr", 0.0), ("batch_tokens", 1), ("context_length", 1)):
            value = getattr(self, name)
            if value is not None and (not math.isfinite(value) or value <= least):
                raise UsageError(f"{name} must be more than {least}, given {value!r}")
        if not math.isfinite(self.weight_decay) or self.weight_decay < 0:
            raise UsageError(f"weight_decay must be at least 0, given {self.weight_decay!r}")


@dataclass(frozen=True)
class Plan:
    """What will be trained: the run's specification with its counts of data, and the template that rendered it."""

    spec: RunSpec
    counts: Counts
    template: str
    end: str
    sequences: int

    def lines(self) -> list[str]:
        """The choices for a person to read."""
        spec, counts = self.spec, self.counts
        lost = "".join(
            f", {value} {name.replace('_', ' ')}"
            for name, value in (("cut", counts.cut), ("turns_cut", counts.turns_cut), ("dropped", counts.dropped))
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
    """The run over a set of ``examples`` without its start, and how many packed sequences they are.

    ``longest`` is the most tokens that an example has.

    Raises:
        UsageError: the sizes do not fit together.
    """
    length = options.context_length or max(longest - 1, min(LENGTH, options.batch_tokens or LENGTH))
    pad = corpus.manifest.end_of_text_id
    sizes = {"seed": options.seed, "context_length": length, "pad": pad}
    rows = SupervisedOrder(open_examples(corpus, examples), batch_sequences=1, **sizes).sequences
    if options.batch_tokens is not None:
        sequences = max(1, round(options.batch_tokens / length))
    else:  # a small set wants more steps rather than large ones
        sequences = max(1, min(round(BATCH_TOKENS / length), rows // 10))
    divisors = (n for n in range(1, sequences + 1) if sequences % n == 0)
    parts = next(n for n in divisors if sequences // n * length <= PART_TOKENS or n == sequences)
    steps = max(1, math.ceil(options.epochs * rows / sequences))
    # From 2e-5 for 7 billion parameters, the usual rate, by the inverse root of the size.
    lr = min(3e-4, 2e-5 * math.sqrt(7e9 / shape.parameters)) * (1 if options.lora is None else 10)
    try:
        spec = RunSpec(
            corpus=corpus.hash,
            model=shape,
            context_length=length,
            batch_sequences=sequences,
            accumulation=parts,
            steps=steps,
            mixture=(),
            schedule=Schedule(kind="cosine", warmup_steps=min(steps, math.ceil(0.03 * steps)), final_ratio=0.1),
            optimizer=OptimizerSpec(lr=options.lr or lr, weight_decay=options.weight_decay, beta2=0.95),
            seed=options.seed,
            precision=options.precision or fast_precision(),
            objective=Supervised(examples=examples),
        )
    except ValidationError as error:
        raise UsageError(f"the run cannot be made: {first_problem(error)}") from error
    return spec, rows


def fast_precision() -> Literal["fp32", "bf16"]:
    """bf16 where the device multiplies in it faster than in fp32."""
    import torch

    if default_device().type != "cpu":
        return "bf16"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"
