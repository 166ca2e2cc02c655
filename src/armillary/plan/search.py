"""Finds the best layout of a model on a cluster among all valid ones that fit, and compares it with the next ones.

Dominated layouts are not tried: of two that differ only in recomputation, the one with less is faster if it fits. A
layout fits if the upper end of its memory's 90 % interval does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from armillary.plan.balance import Stages, balance
from armillary.plan.calibrate import factor_names
from armillary.plan.constants import Constants
from armillary.plan.job import Job, Parallelism, Recompute
from armillary.plan.memory import GB, Memory, Weights, layer_activations, peak_memory
from armillary.plan.step_time import Memo, Step, step_time
from armillary.plan.uncertainty import kind_of
from armillary.recipe import UsageError

NEXT = 10
_MICRO_BATCHES = (1, 2, 4, 8, 16)
_SHORTEST_PART = 4096  # tokens of a sequence on one rank, below which context parallelism is not tried
_MOST_TOKENS = 65_536  # of a micro-batch on one rank
_MOST_EXPERTS = 32  # on one rank
_BALANCED = 4  # of the best pipelines


@dataclass(frozen=True)
class Candidate:
    """A layout that fits, with its predicted step and memory."""

    job: Job
    step: Step
    memory: Memory
    memory_high: float

    @property
    def cost(self) -> float:
        """Accelerator seconds per token."""
        return self.step.total * self.job.parallelism.ranks / self.job.tokens

    def to_json(self, constants: Constants) -> dict[str, Any]:
        """As plain data; the kinds of memory are those at the peak and sum to ``total``."""
        p, tokens = self.job.parallelism, self.job.tokens / self.step.total / self.job.parallelism.ranks
        low, high = constants.interval(kind_of(self.job, ())).around(tokens)
        flops = self.job.model.train_flops_per_token(self.job.length)
        memory = {**vars(self.memory), "gradients": self.memory.gradients - self.memory.apart}
        del memory["apart"]
        return {
            "layout": {**vars(p), "ranks": p.ranks, "microbatches": self.job.microbatches},
            "step_time_s": self.step.total,
            "step_time_low_s": self.step.total * tokens / high,
            "step_time_high_s": self.step.total * tokens / low,
            "tokens_per_s_per_accelerator": tokens,
            "mfu": tokens * flops / self.job.accelerator.flops(self.job.precision),
            "parts_s": self.step.parts(),
            "memory_gb": {**memory, "total": self.memory.total, "upper_end": self.memory_high},
        }


@dataclass(frozen=True)
class Found:
    """The best layout and the next ones, with the number of layouts that were estimated."""

    best: Candidate
    others: list[Candidate]
    tried: int

    def reason(self, other: Candidate) -> str:
        """The parts of the step of ``other`` that take longer than the best one's, per token."""
        scale = self.best.job.tokens / other.job.tokens
        mine, theirs = self.best.step.parts(), other.step.parts()
        more = sorted(((theirs[name] * scale - mine[name], name) for name in mine), reverse=True)
        shown = [f"{name.replace('_', ' ')} +{difference:.3g} s" for difference, name in more[:2] if difference > 0]
        return ", ".join(shown) or "as fast"


def search(job: Job, constants: Constants, objective: Literal["time", "cost"] = "time") -> Found:
    """The best layout of ``job``, whose parallelism has the number of ranks as ``dp`` and is otherwise replaced.

    ``time`` uses all ranks; ``cost`` also tries halves of them, for the fewest accelerator seconds per token.

    Raises:
        UsageError: no layout divides the model and the batch, or none fits; the message has the nearest one.
    """
    sizes = [job.parallelism.dp]
    while objective == "cost" and sizes[-1] % 2 == 0 and len(sizes) < 8:
        sizes.append(sizes[-1] // 2)
    factor, memo = constants.factor(*factor_names(job)), Memo()
    spread = math.exp(constants.interval("memory").high) if "memory" in constants.intervals else 1.1
    limit = job.accelerator.memory_gb
    found: list[Candidate] = []
    tightest: tuple[float, Job] | None = None
    tried = 0
    for ranks in sizes:
        for shape in _divisions(job, ranks):
            for zero in _zero_stages(job):
                for trial in _least_recompute(job, shape, zero):
                    tried += 1
                    memory = peak_memory(trial, constants)
                    high = memory.total * spread
                    if high <= limit:
                        found.append(Candidate(trial, step_time(trial, constants, factor, memo), memory, high))
                        break
                    if tightest is None or high < tightest[0]:
                        tightest = high, trial
                    if (memory.total - memory.activations) * spread > limit:
                        break
    if not found:
        raise UsageError(_nothing(job, tightest, limit))
    found.sort(key=lambda one: one.cost)
    balanced = [one for one in found if one.job.parallelism.pp > 1 and one.job.parallelism.stages == 1][:_BALANCED]
    for one in balanced:
        uneven = _uneven(one, constants, limit / spread)
        if uneven is not None:
            memory = peak_memory(uneven, constants)
            step = step_time(uneven, constants, factor, memo)
            if memory.total * spread <= limit and step.total < one.step.total * 0.999:
                found.append(Candidate(uneven, step, memory, memory.total * spread))
    found.sort(key=lambda one: one.cost)
    return Found(found[0], _distinct(found)[1 : NEXT + 1], tried)


def _distinct(found: list[Candidate]) -> list[Candidate]:
    """Remove layouts that differ from a better one only in the ZeRO stage."""
    seen, kept = set(), []
    for one in found:
        key = replace(one.job.parallelism, zero=0)
        if key not in seen:
            seen.add(key)
            kept.append(one)
    return kept


def _zero_stages(job: Job) -> tuple[int, ...]:
    # The trainer has whole copies (0), parameters gathered once a step (2) and for each pass (3).
    return (2, 3) if job.software.weight_bytes == 4 else (1, 3)


def _divisions(job: Job, ranks: int) -> Iterator[Parallelism]:
    """The valid sizes of the dimensions, with virtual stages and micro-batch."""
    shape, experts = job.model, job.model.experts
    node = job.accelerator.node
    for tp in (t for t in _divisors(ranks, min(node, 16)) if _divides_tensors(job, t)):
        for pp in _divisors(ranks // tp, min(shape.n_layers, 64)):
            if pp > 1 and shape.tied_embeddings and job.software.name.startswith("armillary"):
                continue
            for cp in (c for c in (1, 2, 4, 8, 16, 32) if c == 1 or _divides_sequence(job, c, tp)):
                if ranks % (tp * pp * cp):
                    continue
                dp = ranks // (tp * pp * cp)
                if job.sequences % dp:
                    continue
                for ep in _expert_sizes(dp, experts.count if experts is not None else 1):
                    for micro_batch in (b for b in _MICRO_BATCHES if (job.sequences // dp) % b == 0):
                        if micro_batch > 1 and micro_batch * job.length / cp > _MOST_TOKENS:
                            break
                        m = job.sequences // dp // micro_batch
                        if pp > 1 and m < pp:
                            continue
                        for stages in _virtual(shape.n_layers, pp, m):
                            yield Parallelism(tp, pp, stages, cp, ep, dp, micro_batch)


def _divides_tensors(job: Job, tp: int) -> bool:
    shape = job.model
    sides = [shape.n_heads, shape.n_kv_heads, shape.d_ff, shape.vocab_size, job.length]
    if shape.experts is not None:
        sides.append(shape.experts.shared_d_ff)
    return all(side % tp == 0 for side in sides)


def _divides_sequence(job: Job, cp: int, tp: int) -> bool:
    return job.length % (2 * cp * tp) == 0 and job.length // cp >= _SHORTEST_PART


def _expert_sizes(dp: int, count: int) -> list[int]:
    """Expert parallel sizes with at most ``_MOST_EXPERTS`` experts per rank, and the largest possible size."""
    most = math.gcd(dp, count)
    return [ep for ep in _divisors(most, 256) if count // ep <= _MOST_EXPERTS or ep == most] or [1]


def _virtual(layers: int, pp: int, microbatches: int) -> list[int]:
    if pp == 1 or layers % pp or microbatches % pp:
        return [1]
    per_rank = layers // pp
    return [1, *(v for v in (2, 3, 4, 5, 6, 8) if per_rank % v == 0)][:3]


def _least_recompute(job: Job, parallelism: Parallelism, zero: int) -> Iterator[Job]:
    choices: tuple[Recompute, ...] = ("none", "selective", "full")
    for again in choices:
        yield job.with_parallelism(replace(parallelism, zero=zero, recompute=again))


def _divisors(number: int, largest: int) -> list[int]:
    return [d for d in range(1, min(number, largest) + 1) if number % d == 0]


def _uneven(candidate: Candidate, constants: Constants, limit: float) -> Job | None:
    """The candidate's job with stages balanced by ``balance``; None if the stages do not change."""
    job, p = candidate.job, candidate.job.parallelism
    experts = job.model.experts
    if experts is not None and (experts.dense_layers or experts.every > 1):
        return None  # layers differ, but the program below assumes equal ones
    per_layer = candidate.step.total - candidate.step.bubble - candidate.step.data - candidate.step.optimizer
    layer_s = per_layer / max(p.counts(job.model.n_layers))
    dense, mixed, boundary = layer_activations(job)
    activations = boundary if p.recompute == "full" else mixed if experts is not None else dense
    weights = Weights.of(job)
    numbers = weights.attention + (weights.mixture if experts is not None else weights.dense)
    bytes_each = (candidate.memory.parameters + candidate.memory.gradients + candidate.memory.optimizer) * GB
    of_number = bytes_each / max(1.0, _numbers(job))
    share = 1 + job.software.fragmentation
    flights = [min(job.microbatches, p.pp - rank) for rank in range(p.pp)]
    ends = [0.0] * p.pp
    ends[0] += weights.ends * of_number
    ends[-1] += weights.ends * of_number + candidate.memory.logits * GB
    output = job.model.vocab_size * job.model.d_model / p.tp
    end_s = [0.0] * p.pp
    end_s[-1] = layer_s * output / numbers
    found = balance(
        job.model.n_layers,
        Stages([layer_s] * p.pp, end_s, [share * (numbers * of_number + f * activations) / GB for f in flights],
               [share * end / GB + candidate.memory.context for end in ends], limit),
    )  # fmt: skip
    return None if found is None else job.with_parallelism(replace(p, layers_per_stage=found))


def _numbers(job: Job) -> float:
    weights = Weights.of(job)
    count = max(job.parallelism.counts(job.model.n_layers))
    mixture = weights.mixture + weights.experts if job.model.experts is not None else weights.dense
    return count * (weights.attention + mixture) + weights.ends


def _nothing(job: Job, tightest: tuple[float, Job] | None, limit: float) -> str:
    ranks, shape = job.parallelism.dp, job.model
    if tightest is not None:
        return (
            f"nothing fits into {limit:g} GB on {ranks} accelerators; the nearest layout is "
            f"{tightest[1].parallelism}, which may need {tightest[0]:.1f} GB; use more accelerators, or a smaller batch"
        )
    near = _batch_that_divides(job)
    suggested = f"; a batch of {near} sequences ({near * job.length} tokens) can be divided" if near else ""
    fewer = next((n for n in range(ranks - 1, 0, -1) if next(_divisions(job, n), None) is not None), None)
    suggested += f"; {fewer} of the accelerators divide this batch" if fewer else ""
    return (
        f"no layout of {ranks} accelerators divides {shape.n_heads} heads ({shape.n_kv_heads} of keys), "
        f"{shape.n_layers} layers and a batch of {job.sequences} sequences{suggested}"
    )


def _batch_that_divides(job: Job) -> int | None:
    """The smallest batch from the job's own on, by powers of two times the odd part of the ranks, that has layouts."""
    near = job.parallelism.dp
    while near % 2 == 0:
        near //= 2
    for _ in range(40):
        if near >= job.sequences and next(_divisions(replace(job, sequences=near), job.parallelism.dp), None):
            return near
        near *= 2
    return None
