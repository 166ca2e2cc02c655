"""Time of the operations of a layer on one accelerator: a roofline with an efficiency that falls for small shapes.

A matrix product of T x K by K x N takes ``2TKN / (peak * matmul)`` plus the time in which its operands and result pass
through memory. The sum, instead of the larger of both, gives the slow rise of efficiency over the size that benchmarks
of matrix products show. ``matmul`` and the other constants are of ``Constants``.
"""

from __future__ import annotations

from dataclasses import dataclass

from armillary.plan.constants import Constants
from armillary.plan.job import Job
from armillary.recipe import Latent, ReLU2

_MB = 1e-6


@dataclass(frozen=True)
class Pass:
    """Seconds of one micro-batch on one rank, by kind of work; forward only or backward only."""

    matmul: float = 0.0
    attention: float = 0.0
    memory: float = 0.0

    @property
    def total(self) -> float:
        """Seconds."""
        return self.matmul + self.attention + self.memory

    def plus(self, other: Pass, times: float = 1.0) -> Pass:
        """The sum with ``times`` of ``other``."""
        return Pass(
            self.matmul + times * other.matmul,
            self.attention + times * other.attention,
            self.memory + times * other.memory,
        )


@dataclass(frozen=True)
class LayerTime:
    """Forward and backward of one layer, and whether a layer's host time is a mixture's."""

    forward: Pass
    backward: Pass


class Roofline:
    """Times on the accelerator of a job, per micro-batch of ``tokens`` on one rank."""

    def __init__(self, job: Job, constants: Constants) -> None:
        self._job = job
        accelerator = job.accelerator
        self._c = constants = constants.of(accelerator)
        self.precision = "bf16" if job.precision == "fp16" and "fp16" not in accelerator.peak else job.precision
        self._low = job.precision in ("fp8", "fp4")
        self._peak = accelerator.flops(self.precision) * constants.matmul_of(self.precision)
        plain = next(p for p in ("bf16", "fp16", "fp32") if p in accelerator.peak)
        self._plain_peak = accelerator.flops(plain) * constants.matmul_of("bf16")
        older = job.software.older_attention and constants.attention_older
        self._attention_peak = accelerator.flops(plain) * (older or constants.attention)
        self._bandwidth = accelerator.bandwidth_gb_s * 1e9 * constants.bandwidth
        p = job.parallelism
        self.tokens = p.micro_batch * job.length / p.cp
        self.tp = p.tp
        self._back = 1.0 if job.adapter else 2.0  # products of the backward pass: frozen weights have no gradients

    def product(self, rows: float, inner: float, columns: float, plain: bool = False, copies: float = 1.0) -> float:
        """Seconds of ``copies`` products of ``rows`` x ``inner`` by ``inner`` x ``columns``."""
        flops = 2 * rows * inner * columns
        peak = self._plain_peak if plain or not self._low else self._peak
        size = self._job.number_bytes if plain or not self._low else 1.5
        traffic = size * (rows * inner + inner * columns + rows * columns)
        for side in (inner, columns):
            if side % 64:
                peak *= self._c.misaligned if side % 8 == 0 else self._c.misaligned / 2
        return copies * (flops / peak + self._c.traffic * traffic / self._bandwidth)

    def moved(self, count: float) -> float:
        """Seconds to move ``count`` bytes of 16-bit numbers through memory, or the same number of 32-bit numbers."""
        return count * self._job.number_bytes / 2 / self._bandwidth

    def attention_layer(self) -> LayerTime:
        """Norm, projections, attention and residual of one layer.

        The backward pass of flash attention computes the scores again: 2.5 times the products of the forward pass (Dao
        2023, arXiv 2307.08691).
        """
        job, shape, tp, T = self._job, self._job.model, self.tp, self.tokens
        block = shape.attention_block
        h, heads, hd = shape.d_model, shape.n_heads / tp, shape.head_dim
        if isinstance(block, Latent):
            value = block.value_dim(shape)
            q_rank = block.q_rank or 0
            sides: list[tuple[float, float]] = [
                (h, q_rank + block.kv_rank + block.rope_head_dim) if q_rank else (h, heads * hd)
            ]
            sides += [(q_rank, heads * hd)] if q_rank else [(h, block.kv_rank + block.rope_head_dim)]
            sides += [(block.kv_rank, heads * (hd - block.rope_head_dim + value)), (heads * value, h)]
            wide = 2 * q_rank + 2 * block.kv_rank + 4 * heads * hd
        else:
            value = hd
            kv = max(shape.n_kv_heads / tp, 1)
            sides = [(h, (heads + 2 * kv) * hd), (heads * hd, h)]
            wide = 2 * (heads + kv) * hd
        products = sum(self.product(T, k, n) for k, n in sides)
        keys = job.length / 2 if job.software.flash else job.length
        flops = 2 * T * keys * heads * (hd + value) * job.extras.attended(keys)
        fwd_attention, bwd_attention, scores = flops / self._attention_of(hd), 2.5 * flops / self._attention_of(hd), 0.0
        if not job.software.flash:
            peak = self._plain_peak * self._c.batched
            peak *= 1.0 if hd % 8 == 0 else 0.2
            fwd_attention, bwd_attention = flops / peak, 2 * flops / peak
            scores = self._c.scores_bytes * T * job.length * heads
        activations = 10 * h / self._shared() + 4 * wide / 2
        cast = self._cast(sum(k for k, _ in sides) + sum(n for _, n in sides))
        memory = self._c.elementwise * T * activations * self._unfused() + T * cast
        forward = Pass(products, fwd_attention, self.moved(memory + scores))
        backward = Pass(self._back * products, bwd_attention, self.moved(2 * memory + 1.5 * scores))
        return LayerTime(forward, backward)

    def feed_forward(self) -> LayerTime:
        """Norm, feed-forward block and residual of one dense layer."""
        shape, T = self._job.model, self.tokens
        h, f = shape.d_model, shape.d_ff / self.tp
        gated = not isinstance(shape.feed_forward_block, ReLU2)
        products = self.product(T, h, (2 if gated else 1) * f) + self.product(T, f, h)
        memory = self._c.elementwise * T * (10 * h / self._shared() + (6 if gated else 4) * f) * self._unfused()
        memory += T * self._cast(2 * h + (3 if gated else 2) * f)
        return LayerTime(
            Pass(products, 0.0, self.moved(memory)), Pass(self._back * products, 0.0, self.moved(2 * memory))
        )

    def mixture(self) -> LayerTime:
        """Router, permutation, experts and shared expert of one layer; each rank's experts take an equal share."""
        shape, T = self._job.model, self.tokens
        experts, ep, h = shape.experts, self._job.parallelism.ep, shape.d_model
        assert experts is not None
        local = experts.count / ep
        etp = self._job.expert_tp
        rows = T * experts.active / (1 if etp > 1 else self._shared())  # tp divides tokens where it divides no expert
        wide = experts.d_ff / etp
        per_expert = rows / local
        products = self.product(per_expert, h, 2 * wide, copies=local) + self.product(per_expert, wide, h, copies=local)
        products *= self._c.grouped
        products += self.product(T / self._shared(), h, experts.count, plain=True)
        shared = experts.shared_d_ff / self.tp
        if shared:
            products += self.product(T, h, 2 * shared) + self.product(T, shared, h)
        # Without a fused operator: biases, limits, sigmoid and products, each with its own reads and writes.
        activation = 40 * wide + 8 * h if self._job.extras.unfused else 6 * wide
        memory = self._c.elementwise * (
            T * 10 * h / self._shared() + rows * (self._c.permute * 4 * h + activation) + T * 6 * shared
        )
        memory += rows * self._cast(2 * h + 3 * wide)
        memory *= self._job.software.expert_traffic
        return LayerTime(
            Pass(products, 0.0, self.moved(memory)), Pass(self._back * products, 0.0, self.moved(2 * memory))
        )

    def embedding(self) -> LayerTime:
        """The look-up of the embedding, and the sum of its gradients."""
        memory = self.moved(4 * self.tokens * self._job.model.d_model)
        return LayerTime(Pass(0, 0, memory), Pass(0, 0, 2 * memory))

    def output(self) -> LayerTime:
        """Output matrix and loss."""
        shape, T = self._job.model, self.tokens
        columns = shape.vocab_size / self.tp
        products = self.product(T, shape.d_model, columns // 64 * 64, plain=True)  # vocabularies are padded
        memory = self.moved(self._c.logits_bytes * T * columns)
        return LayerTime(Pass(products, 0, memory), Pass(self._back * products, 0, memory / 2))

    def optimizer(self, numbers: float) -> float:
        """Seconds of AdamW's step over ``numbers`` parameters, by its reads and writes of weights and states."""
        return self._c.optimizer_bytes * numbers / self._bandwidth

    def _attention_of(self, head_dim: int) -> float:
        return self._attention_peak * self._job.software.attention * (1.0 if head_dim >= 96 else self._c.narrow_heads)

    def _shared(self) -> float:
        return self.tp if self._job.software.sequence_parallel else 1.0

    def _unfused(self) -> float:
        measured, own = self._job.accelerator.shares.get("unfused"), self._job.software.unfused
        return 1.0 if self._job.software.fused else measured or own or self._c.unfused

    def _cast(self, wide: float) -> float:
        return self._c.cast_bytes * wide if self._low else 0.0
