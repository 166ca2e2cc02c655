"""The input of an estimate: a model, its parallelism, and the training program. Plain data, no estimates.

A ``Parallelism`` differs from ``recipe.Layout``: it has the micro-batch and the ZeRO stage, and covers the layouts of
published runs, which other programs trained. ``ep`` is a part of ``dp`` (times ``cp``), as Megatron counts it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Literal

from armillary.plan.hardware_files import Accelerator
from armillary.recipe import ModelShape, UsageError

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Parallelism:
    """Sizes of the dimensions, and the options that time and memory depend on.

    ``zero`` is the stage of Rajbhandari et al. 2020 (arXiv 1910.02054): 0 nothing, 1 optimizer state, 2 gradients too,
    3 parameters too (FSDP) are in shards over ``shard`` data ranks (all of them by default). ``stages`` are the virtual
    stages on each pipeline rank. With ``recompute`` full, ``recompute_share`` of the layers run again.
    """

    tp: int = 1
    pp: int = 1
    stages: int = 1
    cp: int = 1
    ep: int = 1
    dp: int = 1
    micro_batch: int = 1
    recompute: Recompute = "none"
    zero: int = 1
    shard: int | None = None
    recompute_share: float = 1.0
    layers_per_stage: tuple[int, ...] | None = None

    @property
    def ranks(self) -> int:
        """Number of accelerators."""
        return self.tp * self.pp * self.cp * self.dp

    def counts(self, layers: int) -> tuple[int, ...]:
        """Layers of each pipeline rank, all its virtual stages together; nearly equal unless given."""
        if self.layers_per_stage is not None:
            return self.layers_per_stage
        spare = layers % self.pp
        start = (self.pp - spare + 1) // 2
        return tuple(layers // self.pp + (start <= i < start + spare) for i in range(self.pp))

    def __str__(self) -> str:
        parts = [f"{name} {size}" for name, size in (("tp", self.tp), ("pp", self.pp), ("virtual stages", self.stages),
                 ("cp", self.cp), ("ep", self.ep), ("dp", self.dp)) if size > 1]  # fmt: skip
        ends = [f"micro-batch {self.micro_batch}", f"ZeRO {self.zero}"]
        if self.recompute != "none":
            part = "" if self.recompute_share == 1 else f" of {self.recompute_share:.0%} of the layers"
            ends.append(f"recompute {self.recompute}{part}")
        return ", ".join([*(parts or ["one accelerator"]), *ends])


@dataclass(frozen=True)
class Software:
    """The properties of a family of training programs, from its documentation; see ``software.toml``."""

    name: str
    flash: bool = True
    fused: bool = True
    sequence_parallel: bool = True
    gradient_bytes: int = 4
    weight_bytes: int = 2
    interleaves: bool = False
    sends_parts: bool = False
    tp_overlap: float = 0.0
    dp_overlap: float = 0.8
    ep_overlap: float = 0.0
    attention: float = 1.0
    older_attention: bool = False
    selective: float = 0.1
    accumulate_bytes: float = 8.0
    logits_bytes: float = 10.0
    logits_bytes_tp: float | None = None
    logits_bytes_pp: float = 0.0
    rotary_copies: int = 1
    gate_copies: int = 0
    stage_buffers: float = 0.0
    receive_buffers: bool = False
    fragmentation: float = 0.05
    context_gb: float = 1.5
    host_layer_us: float = 300.0
    host_expert_us: float = 3000.0
    host_sync_us: float = 0.0
    expert_traffic: float = 1.0
    experts_over_tp: bool = True
    unfused: float | None = None
    frees_gradients: bool = False
    zero: int = 1
    recompute: Recompute = "none"


@dataclass(frozen=True)
class Extras:
    """Parts of a model beyond its ``ModelShape``, with their cost.

    ``windowed`` of the layers attend to the last ``window`` tokens only. ``ahead`` layers predict further tokens, each
    with the output matrix (DeepSeek-AI, arXiv 2412.19437, section 2.2). ``unfused`` means biases and limits on the
    activation function of the feed-forward blocks, for which programs have no fused operator.
    """

    window: int = 0
    windowed: float = 0.0
    ahead: int = 0
    unfused: bool = False

    def attended(self, keys: float) -> float:
        """The share of query-key pairs inside the window, of ``keys`` keys for a query."""
        return 1 - self.windowed * (1 - min(1.0, self.window / keys))


@dataclass(frozen=True)
class Job:
    """One training job: ``sequences`` of ``length`` tokens per optimizer step on a cluster of ``accelerator``.

    With an ``adapter`` (LoRA) the model's own weights have no gradients. ``offload`` keeps the optimizer in the host's
    memory.
    """

    model: ModelShape
    parallelism: Parallelism
    length: int
    sequences: int
    accelerator: Accelerator
    software: Software
    precision: str = "bf16"
    adapter: bool = False
    offload: bool = False
    accelerator_name: str = ""
    extras: Extras = Extras()

    @property
    def layers(self) -> int:
        """Number of layers, including those that predict further tokens."""
        return self.model.n_layers + self.extras.ahead

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """For each pipeline rank the number of its layers, and how many of them have experts."""
        experts = self.model.experts
        places = (experts.dense_layers, experts.every) if experts is not None else None
        return _stages(self.parallelism.counts(self.layers), places)

    @property
    def expert_tp(self) -> int:
        """Ranks over which each expert is divided: the tensor ranks, where experts are not divided among ranks."""
        p = self.parallelism
        return p.tp if self.software.experts_over_tp and p.ep == 1 else 1

    @property
    def number_bytes(self) -> int:
        """Bytes per number of activations and of messages between ranks."""
        return 4 if self.precision == "fp32" else 2

    @property
    def microbatches(self) -> int:
        """Micro-batches of one rank in one optimizer step."""
        return max(1, math.ceil(self.sequences / (self.parallelism.dp * self.parallelism.micro_batch)))

    @property
    def tokens(self) -> int:
        """Tokens of one optimizer step, over all ranks."""
        return self.microbatches * self.parallelism.dp * self.parallelism.micro_batch * self.length

    def with_parallelism(self, parallelism: Parallelism) -> Job:
        """The same job, divided differently."""
        return replace(self, parallelism=parallelism)

    def check(self) -> None:
        """Check that the model can be divided in this way.

        Raises:
            UsageError: the number that does not divide, and the nearest ones that do.
        """
        p, model = self.parallelism, self.model
        whole = [
            (model.n_heads, p.tp, "heads", "tp"),
            (model.d_ff, p.tp, "d_ff", "tp"),
            (self.length, p.cp * (2 if p.cp > 1 else 1), "sequence", "2 cp" if p.cp > 1 else "cp"),
            (p.dp * p.cp * p.tp, p.ep, "dp times cp times tp", "ep"),
        ]
        if model.experts is not None:
            whole.append((model.experts.count, p.ep, "experts", "ep"))
        elif p.ep > 1:
            raise UsageError(f"ep {p.ep}: the model has no experts; set ep to 1")
        for number, by, name, what in whole:
            if number % by:
                raise UsageError(
                    f"{name} ({number}) must be a multiple of {what} ({by}); {nearest_divisors(number, by)}"
                )
        if p.pp * p.stages > model.n_layers + 2:
            raise UsageError(
                f"{p.pp * p.stages} stages for {model.n_layers} layers; use at most {model.n_layers} stages: "
                f"pp {min(p.pp, model.n_layers)}, virtual stages {max(1, model.n_layers // p.pp)}"
            )
        if p.layers_per_stage is not None and sum(p.layers_per_stage) != model.n_layers:
            raise UsageError(
                f"layers_per_stage sums to {sum(p.layers_per_stage)}, but the model has {model.n_layers} layers"
            )


@lru_cache(4096)
def _stages(counts: tuple[int, ...], places: tuple[int, int] | None) -> tuple[tuple[int, int], ...]:
    if places is None:
        return tuple((count, 0) for count in counts)
    dense, every = places
    ends = [0, *accumulate(counts)]
    mixed = [max(end // every, dense // every) - dense // every for end in ends]
    return tuple((end - start, b - a) for start, end, a, b in zip(ends, ends[1:], mixed, mixed[1:], strict=False))


def nearest_divisors(number: int, by: int) -> str:
    """The divisors of ``number`` below and above ``by``, in words."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    divisors = sorted({*small, *(number // d for d in small)})
    below = max((d for d in divisors if d < by), default=1)
    above = min((d for d in divisors if d > by), default=None)
    return f"the nearest that divide are {below}" + (f" and {above}" if above else "")
