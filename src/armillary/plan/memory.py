"""Peak memory of the fullest rank, by kind.

Activations are summed over the operations: the tensors that each backward pass needs (Korthikanti et al. 2022, arXiv
2205.05198, section 4, for the bytes of a layer; attention keeps q, k, v, its output and one number per query, as flash
attention does). A pipeline rank keeps them for each micro-batch in flight: as many as ranks from it to the last one
(1F1B).

The overhead of the allocator (``fragmentation``) and the memory of the driver and the collectives' library
(``context``) are added to the live tensors. ``armillary train --dry-run`` counts live tensors only.
"""

from __future__ import annotations

from dataclasses import dataclass

from armillary.plan.constants import Constants
from armillary.plan.job import Job
from armillary.recipe import Latent, ReLU2

GB = 1e9


@dataclass(frozen=True)
class Memory:
    """GB (10^9 bytes) of one rank; ``apart`` is the part of the gradients that never coexists with most activations."""

    parameters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    gathered: float = 0.0
    fragmentation: float = 0.0
    context: float = 0.0
    apart: float = 0.0

    @property
    def total(self) -> float:
        """GB of all kinds."""
        return self.live + self.fragmentation + self.context

    @property
    def live(self) -> float:
        """GB of tensors, as a dry run counts them."""
        states = self.parameters + self.gradients + self.optimizer - self.apart
        return states + self.activations + self.logits + self.gathered


@dataclass(frozen=True)
class Weights:
    """Parameters of the parts of a model on one rank."""

    attention: float
    dense: float
    mixture: float
    experts: float
    ends: float

    @classmethod
    def of(cls, job: Job) -> Weights:
        """Per layer for ``attention`` (with norms), ``dense``, ``mixture`` (router and shared) and ``experts``."""
        shape, p = job.model, job.parallelism
        attention = shape.attention_block.matmul_parameters(shape) / p.tp + 2 * shape.d_model
        dense = shape.feed_forward_block.matmul_parameters(shape) / p.tp
        mixture = experts = 0.0
        if shape.experts is not None:
            mixture = shape.d_model * (shape.experts.count + 3 * shape.experts.shared_d_ff / p.tp)
            experts = 3 * shape.d_model * shape.experts.d_ff * shape.experts.count / p.ep / job.expert_tp
        return cls(attention, dense, mixture, experts, shape.vocab_size * shape.d_model / p.tp)


def rank_weights(job: Job) -> list[tuple[float, float]]:
    """For each pipeline rank, the parameters outside and inside of experts."""
    weights, stages, found = Weights.of(job), job.stages, []
    for count, mixed in stages:
        common = count * weights.attention + (count - mixed) * weights.dense + mixed * weights.mixture
        found.append((common, mixed * weights.experts))
    found[0] = (found[0][0] + weights.ends, found[0][1])
    if len(stages) > 1 or not job.model.tied_embeddings:
        found[-1] = (found[-1][0] + weights.ends, found[-1][1])
    return found


def layer_activations(job: Job) -> tuple[float, float, float]:
    """Bytes per micro-batch that one layer keeps: dense, with experts, and its input alone."""
    shape, p, software = job.model, job.parallelism, job.software
    tokens = p.micro_batch * job.length / p.cp
    shared = p.tp if software.sequence_parallel else 1
    h = shape.d_model
    boundary = 2 * h / shared
    byte = 1 if job.precision in ("fp8", "fp4") else 2  # of what only matrix products need
    wider = job.number_bytes / 2
    gated = not isinstance(shape.feed_forward_block, ReLU2)
    up = (2 if gated else 1) * shape.d_ff / p.tp
    attention = 2 * _attention_numbers(job) / p.tp
    norm = byte * h / shared
    product = byte * (1 + software.gate_copies) * shape.d_ff / p.tp
    if not software.fused and software.rotary_copies == 1:
        norm += 1.25 * h / shared  # gains and means in fp32
    if p.recompute == "selective":
        norm = product = 0.0  # norms and activation functions run again
        if software.selective >= 0.5:  # so does every second matrix product
            attention, up = (attention + 2 * shape.n_heads * shape.head_dim / p.tp) / 2, up / 2
    if not software.flash and p.recompute == "none":
        attention += 5 * job.length * shape.n_heads / p.tp  # scores, their softmax and the mask of dropout
    attention += boundary + norm
    dense = boundary + norm + 2 * up + product
    mixed = 0.0
    if shape.experts is not None:
        rows = shape.experts.active / (1 if job.expert_tp > 1 else shared)
        wide, shared_wide = shape.experts.d_ff / job.expert_tp, shape.experts.shared_d_ff / p.tp
        again = p.recompute == "selective"
        mixed = boundary + norm + rows * (byte * h + 2 * 2 * wide) + 2 * 2 * shared_wide
        if not again:
            mixed += rows * (2 * h + byte * wide) + byte * shared_wide
            if software.gate_copies:  # the sum of the shared expert and the others is stored separately
                mixed += software.gate_copies * byte * (rows * wide + shared_wide) + (boundary if shared_wide else 0.0)
    tokens *= wider
    return tokens * (attention + dense), tokens * (attention + mixed), tokens * boundary


def _attention_numbers(job: Job) -> float:
    """Numbers per token that the attention of one layer keeps, on all tensor ranks together."""
    shape, p, copies = job.model, job.parallelism, job.software.rotary_copies
    again = p.recompute == "selective"
    queries, keys = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    block = shape.attention_block
    if not isinstance(block, Latent):
        turned = copies * (queries + keys)
        return turned + queries + keys * (copies if again else 1)
    latents = ((block.q_rank or 0) + block.kv_rank + block.rope_head_dim) * p.tp  # each tensor rank has them whole
    values = shape.n_heads * block.value_dim(shape)
    if copies == 1:  # the products from the low ranks run again
        return queries + (latents if again else block.kept(shape) / 7 * 3)
    if again:
        return 2 * queries - shape.n_heads * block.rope_head_dim + 3 * values + shape.d_model
    return 2 * latents + 2 * copies * queries + queries + values  # values are padded to the width of keys


def peak_memory(job: Job, constants: Constants) -> Memory:
    """The memory of the rank with the largest need."""
    stages = job.stages
    # The first ranks have most micro-batches in flight, the last one the logits, another one perhaps more layers.
    places = {0, min(1, len(stages) - 1), len(stages) - 1, max(range(len(stages)), key=lambda i: stages[i]),
              max(range(len(stages)), key=lambda i: stages[i][1])}  # fmt: skip
    weights, activations = rank_weights(job), layer_activations(job)
    return max(
        (_rank_memory(job, constants, i, weights[i], activations) for i in sorted(places)), key=lambda m: m.total
    )


def _rank_memory(
    job: Job, constants: Constants, rank: int, weights: tuple[float, float], activations: tuple[float, float, float]
) -> Memory:
    shape, p, software = job.model, job.parallelism, job.software
    (count, some), (common, experts), (dense, mixed, boundary) = job.stages[rank], weights, activations
    shard = p.shard or p.dp * p.cp
    expert_shard = max(1, shard // p.ep)
    master = software.weight_bytes == 4 or p.zero == 3
    sizes = (4 if master else software.weight_bytes, software.gradient_bytes, 8 if master else 12)
    # A program with fp32 weights keeps them in shards from stage 2 on, and a copy to compute with.
    first = 2 if software.weight_bytes == 4 else 3
    state = [
        size * (common / shard + experts / expert_shard if p.zero >= stage else common + experts) / GB
        for size, stage in zip(sizes, (first, 2, 1), strict=True)
    ]
    if job.adapter:
        state[1:] = 0.0, 0.0
    if job.offload:
        state[2] = 0.0
    flight = float(min(job.microbatches, p.pp - rank))
    if p.stages > 1:  # Korthikanti et al. 2022, section 4.2.3; each later rank starts two parts later
        flight = min(job.microbatches, p.pp + (p.pp - 1 - 2 * rank) / p.stages)
    if p.recompute == "full":
        whole, again = some * mixed + (count - some) * dense, p.recompute_share
        saved_bytes = flight * (again * count * boundary + (1 - again) * whole)
        saved_bytes += max(mixed if some else 0.0, dense if count > some else 0.0)
        if p.pp > 1:
            saved_bytes += software.stage_buffers * (flight + count + 1) * boundary
    else:
        saved_bytes = flight * (some * mixed + (count - some) * dense)
    if software.receive_buffers and p.pp > 1:
        # PyTorch's schedules allocate every micro-batch's input from the stage before and gradient from the one after.
        last = rank == len(job.stages) - 1
        messages = p.stages * 2 - (rank == 0) - last
        inputs = flight * (p.stages - (rank == 0) / p.stages)  # these are among the kept activations
        saved_bytes += max(0.0, job.microbatches * messages - inputs) * boundary
    gathered = 0.0
    if first == 2 and p.pp > 1:
        # The trainer's pipeline gathers parameters once a step, and sums whole gradients over its micro-batches.
        gathered, state[1] = (
            job.number_bytes * (common + experts),
            0.0 if job.adapter else sizes[1] * (common + experts) / GB,
        )
    elif p.zero == 3 and shard > 1:
        gathered = (
            2 * job.number_bytes * max((common + experts) / max(count, 1), shape.vocab_size * shape.d_model / p.tp)
        )
    elif p.zero == 2 and first == 2:
        gathered = job.number_bytes * (common + experts)
    logits = 0.0
    if rank == len(job.stages) - 1:
        each = software.logits_bytes if p.tp == 1 else software.logits_bytes_tp or software.logits_bytes
        each += software.logits_bytes_pp if p.pp > 1 else 0.0
        logits = (
            (1 + job.extras.ahead)
            * (each - job.number_bytes / 2 + 1)
            * p.micro_batch
            * job.length
            / p.cp
            * shape.vocab_size
            / p.tp
        )
    # One backward pass frees activations as it fills gradients, if the step before has freed those.
    apart = min(state[1], (saved_bytes + logits) / GB) if software.frees_gradients and job.microbatches == 1 else 0.0
    live = sum(state) - apart + (saved_bytes + logits + gathered) / GB
    groups = sum(size > 1 for size in (p.tp, p.pp, p.cp, p.ep, p.dp))
    context = software.context_gb + groups * constants.communicator_gb if software.context_gb else 0.0
    return Memory(
        state[0],
        state[1],
        state[2],
        saved_bytes / GB,
        logits / GB,
        gathered / GB,
        software.fragmentation * live,
        context,
        apart,
    )
