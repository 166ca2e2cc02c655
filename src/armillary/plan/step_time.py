"""Time of one optimizer step, as a sum of parts that do not overlap.

The slowest pipeline rank sets the pace of 1F1B; the bubble is the time of the others' first and last micro-batch, over
the number of virtual stages (Narayanan et al. 2021, arXiv 2104.04473, section 2.2). The family of programs overlaps a
share of each dimension's communication with compute; the rest is in the sum. Time of the host counts if the accelerator
would be faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from armillary.plan.compute import Pass, Roofline
from armillary.plan.constants import Constants
from armillary.plan.job import Job
from armillary.plan.memory import rank_weights
from armillary.plan.network import Group, Network
from armillary.recipe import Latent


@dataclass(frozen=True)
class Step:
    """Seconds of one step by part; their sum is ``total``."""

    matmul: float = 0.0
    attention: float = 0.0
    memory_bound: float = 0.0
    recompute: float = 0.0
    host: float = 0.0
    tensor: float = 0.0
    context: float = 0.0
    expert: float = 0.0
    pipeline: float = 0.0
    bubble: float = 0.0
    data: float = 0.0
    optimizer: float = 0.0
    stragglers: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return float(sum(vars(self).values()))

    def parts(self) -> dict[str, float]:
        """Seconds by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class _Layer:
    """One layer and micro-batch on one rank: its compute, and the seconds of its other parts."""

    work: Pass
    recompute: float
    host: float
    tensor: float
    context: float
    expert: float

    def total(self, factor: float) -> float:
        return factor * (self.work.total + self.recompute) + self.host + self.tensor + self.context + self.expert


Memo = dict[Any, tuple[Roofline, _Layer, _Layer, Pass, Pass]]


def step_time(job: Job, constants: Constants, factor: float = 1.0, memo: Memo | None = None) -> Step:
    """The time of one step; ``factor`` multiplies the time of compute (the calibration of accelerator and software).

    ``memo`` caches times of single layers between calls for jobs that differ only in their parallelism.
    """
    shape, p, software = job.model, job.parallelism, job.software
    network = Network(job.accelerator, constants.of(job.accelerator), job.number_bytes)
    key = (p.tp, p.cp, p.ep, p.micro_batch, p.recompute, p.recompute_share)
    found = memo.get(key) if memo is not None else None
    if found is None:
        roofline = Roofline(job, constants)
        first, last = (one.forward.plus(one.backward) for one in (roofline.embedding(), roofline.output()))
        found = (roofline, *_layers(job, roofline, network, factor), first, last)
        if memo is not None:
            memo[key] = found
    roofline, plain, mixed, first, last = found
    counts = job.stages
    ends = [Pass()] * len(counts)
    ends[0] = first
    ends[-1] = ends[-1].plus(last, 1 + job.extras.ahead)
    paces = [
        some * mixed.total(factor) + (all_ - some) * plain.total(factor) + factor * end.total
        for (all_, some), end in zip(counts, ends, strict=True)
    ]
    slowest = max(range(len(counts)), key=paces.__getitem__)
    m, others, some = job.microbatches, counts[slowest][0] - counts[slowest][1], counts[slowest][1]
    work = ends[slowest].plus(plain.work, others).plus(mixed.work, some)

    pipeline = 0.0
    if p.pp > 1:
        # each tensor rank sends its part (Narayanan et al. 2021, section 4.1)
        senders = p.tp if software.sequence_parallel or software.sends_parts else 1
        nbytes = 2 * p.micro_batch * job.length / p.cp * shape.d_model / senders
        hop = network.send(nbytes, p.tp * p.cp * p.dp)
        pipeline = 2 * hop * (m * p.stages * constants.pipeline_exposed + p.pp - 1)
    heaviest = max(rank_weights(job), key=sum)
    step = Step(
        matmul=factor * m * work.matmul,
        attention=factor * m * work.attention,
        memory_bound=factor * m * work.memory,
        recompute=factor * m * (others * plain.recompute + some * mixed.recompute),
        host=m * (others * plain.host + some * mixed.host),
        tensor=m * (others * plain.tensor + some * mixed.tensor),
        context=m * (others * plain.context + some * mixed.context),
        expert=m * (others * plain.expert + some * mixed.expert),
        pipeline=pipeline,
        bubble=(sum(paces) - paces[slowest]) / p.stages,
        data=_data_communication(job, network, heaviest, factor * m * work.total * 2 / 3),
        optimizer=_optimizer(job, roofline, heaviest, constants),
    )
    return replace(step, stragglers=step.total * constants.straggle * math.log2(max(1, p.ranks / 8)))


def _layers(job: Job, roofline: Roofline, network: Network, factor: float) -> tuple[_Layer, _Layer]:
    """A dense layer and one with experts; the latter is a dense one where the model has none."""
    software, attention = job.software, roofline.attention_layer()
    again = {"none": 0.0, "selective": software.selective, "full": job.parallelism.recompute_share}[
        job.parallelism.recompute
    ]
    tensor, context, expert = _layer_communication(job, network)
    twice = 1 + (0.5 * job.parallelism.recompute_share if job.parallelism.recompute == "full" else 0.0)
    hidden = 0.7 * factor * (attention.forward.attention + attention.backward.attention)
    found: list[_Layer] = []
    blocks = [(roofline.feed_forward(), False)]
    if job.model.experts is not None:
        blocks.append((roofline.mixture(), True))
    for block, experts in blocks:
        forward = attention.forward.plus(block.forward)
        work = forward.plus(attention.backward).plus(block.backward)
        layer = _Layer(
            work,
            again * forward.total,
            0.0,
            tensor * twice * (1 - software.tp_overlap),
            max(0.0, context * twice - hidden),
            expert * twice * (1 - software.ep_overlap) if experts else 0.0,
        )
        starts = (software.host_expert_us if experts else software.host_layer_us) * 1e-6 * job.accelerator.host
        busy = factor * (work.total + layer.recompute) + layer.tensor
        # The host waits for the number of tokens per expert before it starts the products, so no work is queued.
        wait = software.host_sync_us * 1e-6 * job.accelerator.host if experts else 0.0
        host = starts * (1 + again / 3) - (0.0 if job.accelerator.host_serial else busy)
        found.append(replace(layer, host=max(wait, host)))
    return found[0], found[-1]


def _optimizer(job: Job, roofline: Roofline, weights: tuple[float, float], constants: Constants) -> float:
    """Seconds of AdamW over the rank's share of the parameters, and of the accumulation of gradients."""
    if job.adapter:
        return 0.0
    p, (common, experts) = job.parallelism, weights
    shard = 1 if p.zero == 0 else p.shard or p.dp * p.cp
    numbers = common / shard + experts / (1 if p.zero == 0 else max(1, shard // p.ep))
    if job.offload:
        return numbers * constants.offload_s_per_number
    sums = job.microbatches if job.microbatches > 1 else 0
    return roofline.optimizer(numbers) + roofline.moved(
        2 / job.number_bytes * sums * job.software.accumulate_bytes * (common + experts)
    )


def _layer_communication(job: Job, network: Network) -> tuple[float, float, float]:
    """Seconds per layer and micro-batch, forward and backward: tensor, context, expert."""
    shape, p = job.model, job.parallelism
    tokens = p.micro_batch * job.length / p.cp
    # two sums over tp forward and two backward, each an all-reduce or a reduce-scatter with an all-gather
    tensor = 4 * network.all_reduce(2 * tokens * shape.d_model, Group(p.tp, 1)) if p.tp > 1 else 0.0
    context = 0.0
    if p.cp > 1:
        block = shape.attention_block
        if isinstance(block, Latent):
            wide = shape.n_heads * (shape.head_dim + block.value_dim(shape))
        else:
            wide = 2 * shape.n_kv_heads * shape.head_dim
        whole = 2 * p.micro_batch * job.length * wide / p.tp
        context = 3 * network.gather(whole, Group(p.cp, p.tp))
    expert = 0.0
    if p.ep > 1 and shape.experts is not None:
        rows = tokens * shape.experts.active / (p.tp if job.software.sequence_parallel else 1)
        group = Group(p.ep, p.tp)
        # a token for several experts of one node crosses the network once
        nodes, k = p.ep / group.inside(job.accelerator.node), shape.experts.active
        crossing = nodes * (1 - (1 - 1 / nodes) ** k) / k if nodes > 1 else 1.0
        expert = 4 * network.all_to_all(2 * rows * shape.d_model * crossing, group)
    return tensor, context, expert


def _data_communication(job: Job, network: Network, weights: tuple[float, float], backward: float) -> float:
    """Seconds per step for exchanging gradients and parameters, as far as compute does not overlap them."""
    p, software, (common, experts) = job.parallelism, job.software, weights
    trained = 0.0 if job.adapter else 1.0
    overlap = 0.0 if job.accelerator.host_serial else software.dp_overlap  # a CPU sends with the cores that compute
    group = Group(p.shard or p.dp * p.cp, p.tp)
    if p.zero == 3:
        expert_group = Group(max(1, group.size // p.ep), p.tp * p.ep)
        per = sum(
            2 * network.gather(2 * n, g) + trained * network.gather(2 * n, g)
            for n, g in ((common, group), (experts, expert_group))
            if n
        )
        whole = job.microbatches * per
        # the gathers of the forward pass hide behind it, the others behind the backward pass
        return max(whole * (1 - overlap), whole - backward * 1.5 * overlap)
    everyone, expert_ranks = Group(p.dp * p.cp, p.tp), Group(max(1, p.dp * p.cp // p.ep), p.tp * p.ep)
    size = software.gradient_bytes + 2
    whole = sum(network.gather(trained * size * n, g) for n, g in ((common, everyone), (experts, expert_ranks)) if n)
    room = 1.5 * backward / job.microbatches * overlap  # one backward and one forward pass
    return max(whole * (1 - overlap), whole - room)
