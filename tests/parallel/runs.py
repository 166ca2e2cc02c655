"""One small run, by one process and by many ranks: what the tests and ``benchmarks/equality.py`` compare."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from armillary.corpus import Batch
from armillary.model import Transformer, add_adapters, mixtures, set_batch_weight
from armillary.optim import LocalOptimizer, build_optimizer
from armillary.parallel import Program
from armillary.recipe import Layout, MixturePhase, ModelShape, OptimizerSpec, RunSpec
from armillary.train import train_step
from armillary.train.engines import autocast

CPU = torch.device("cpu")
SHAPE = ModelShape(n_layers=4, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, vocab_size=128, qk_norm=True)

INTERLEAVED = {"pp": 2, "schedule": "interleaved", "stages_per_rank": 2, "microbatches": 4}
ZERO_BUBBLE = {"pp": 2, "schedule": "zero-bubble", "stages_per_rank": 2, "microbatches": 4}

# Each dimension alone, with its choices.
ALONE = {
    "dp2": Layout(dp_shard=2),
    "dp2, gathered once per step": Layout(dp_shard=2, reshard=False),
    "hsdp 2x2": Layout(dp_replicate=2, dp_shard=2),
    "tp2": Layout(tp=2),
    "tp2 without sequence parallel": Layout(tp=2, sequence_parallel=False),
    "cp2 all-gather": Layout(cp=2),
    "cp2 ring": Layout(cp=2, context="ring"),
    "pp2 gpipe": Layout(pp=2, schedule="gpipe", microbatches=4),
    "pp2 1f1b": Layout(pp=2, microbatches=4),
    "pp2 1f1b, uneven": Layout(pp=2, microbatches=4, layers_per_stage=(1, 3)),
    "pp2 interleaved": Layout(**INTERLEAVED),
    "pp2 interleaved, ends without layers": Layout(**INTERLEAVED, layers_per_stage=(0, 2, 2, 0)),
    "pp2 zero-bubble": Layout(**ZERO_BUBBLE),
    "pp2 zb-v": Layout(**{**ZERO_BUBBLE, "schedule": "zb-v"}),
    "pp2 dualpipe-v": Layout(**{**ZERO_BUBBLE, "schedule": "dualpipe-v"}),
}
TOGETHER = {
    "dp2 x tp2": Layout(dp_shard=2, tp=2),
    "dp2 x cp2": Layout(dp_shard=2, cp=2),
    "tp2 x cp2": Layout(tp=2, cp=2, context="ring"),
    "pp2 x tp2": Layout(pp=2, tp=2, microbatches=4),
    "pp2 x tp2 zb-v": Layout(**{**ZERO_BUBBLE, "schedule": "zb-v"}, tp=2),
    "pp2 x dp2": Layout(pp=2, dp_shard=2, microbatches=4),
    "pp2 x dp2 interleaved": Layout(**INTERLEAVED, dp_shard=2),
    "pp2 x dp2 zero-bubble": Layout(**ZERO_BUBBLE, dp_shard=2),
    "pp2 x dp2 interleaved, full recompute": Layout(**INTERLEAVED, dp_shard=2, recompute="full"),
    "cp4 ring": Layout(cp=4, context="ring"),
    "pp2 x cp2": Layout(pp=2, cp=2, microbatches=4),
    "pp4 1f1b": Layout(pp=4, microbatches=4),
    "dp2 x tp2, selective recompute": Layout(dp_shard=2, tp=2, recompute="selective"),
}
EIGHT = {
    "pp2 x dp2 x tp2 interleaved": Layout(**INTERLEAVED, dp_shard=2, tp=2),
    "pp2 x dp2 x tp2 dualpipe-v": Layout(**{**ZERO_BUBBLE, "schedule": "dualpipe-v"}, dp_shard=2, tp=2),
    "dp2 x cp2 x tp2": Layout(dp_shard=2, cp=2, tp=2),
}


def specification(**changes: Any) -> RunSpec:
    fields = {
        "corpus": "none",
        "model": SHAPE,
        "context_length": 32,
        "batch_sequences": 8,
        "steps": 20,
        "mixture": (MixturePhase(start_step=0, weights={"text": 1.0}),),
        "optimizer": OptimizerSpec(lr=3e-3, grad_clip=0.5, z_loss=1e-3),
        "seed": 5,
    }
    return RunSpec(**{**fields, **changes})


@dataclass
class Course:
    """What a run showed: each step's loss and gradient norm, the first step's gradients, the loss on other text.

    Of experts their biases in the end, and how near to a tie the nearest choice between two of them was.
    """

    losses: list[float]
    norms: list[float]
    gradients: dict[str, Tensor]
    entropy: list[float]
    biases: dict[str, Tensor] = field(default_factory=dict)
    margin: float = math.inf


def batches(spec: RunSpec) -> Tensor:
    """The tokens of each step, and behind them those of a validation, of a number of sequences that nothing divides."""
    generator = torch.Generator().manual_seed(11)
    size = (spec.steps + 1, spec.batch_sequences, spec.context_length + 1)
    noise = torch.randint(0, 3, size, generator=generator)
    # something can be learned: each token is one to three after the one before it
    return (noise + 1).cumsum(-1) % spec.model.vocab_size


def alone(spec: RunSpec) -> Course:
    """The run by one process, with nothing of the parallel room."""
    return _alone(spec.model_dump_json())


@functools.cache
def _alone(spec_json: str) -> Course:
    spec = RunSpec.model_validate_json(spec_json)
    model = Transformer(spec.model)
    if spec.adapter is not None:
        add_adapters(model, spec.adapter)
    model.init_weights(spec.seed, spec.optimizer)
    optimizer = build_optimizer(model, spec)
    course = Course([], [], {}, [])
    *steps, held_out = batches(spec)
    for mixture in mixtures(model):
        mixture.register_forward_pre_hook(lambda mixture, inputs: _note_margin(course, mixture, inputs[0]))
    set_batch_weight(model, spec.batch_tokens)
    for part in steps[0].chunk(spec.accumulation):
        with autocast(spec, CPU):
            objective, _ = model.loss(part, spec.optimizer.z_loss)
        (objective / spec.batch_tokens).backward()
    course.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for step, batch in enumerate(steps):
        loss, norm = train_step(model, optimizer, spec, step, Batch(batch))
        course.losses.append(loss.item())
        course.norms.append(norm.item())
        if step in (0, spec.steps - 1):
            with torch.no_grad(), autocast(spec, CPU):
                course.entropy.append(model.loss(held_out[:5])[1].item() / held_out[:5, 1:].numel())
    course.biases = dict(model.named_buffers())
    return course


@torch.no_grad()
def _note_margin(course: Course, mixture: Any, x: Tensor) -> None:
    logits = x @ mixture.router.weight.T
    scores = logits.softmax(-1) if mixture.spec.scores == "softmax" else logits.sigmoid()
    if mixture.spec.balance == "bias":
        scores = scores + mixture.bias
    if mixture.spec.active < mixture.spec.count:
        falling = scores.sort(-1, descending=True).values
        gaps = falling[..., mixture.spec.active - 1] - falling[..., mixture.spec.active]
        course.margin = min(course.margin, float(gaps.min()))


def spread(spec: RunSpec, layout: Layout) -> Course:
    """The run under ``layout``, as this rank saw it; gradients are those of its stages."""
    program = Program(spec, layout, torch.device("cpu"))
    program.init_weights()
    optimizer = LocalOptimizer(program.named_parameters(), spec)
    course = Course([], [], {}, [])
    *steps, held_out = batches(spec)
    for step, batch in enumerate(steps):
        course.losses.append(program.gradients(Batch(batch)).item())
        if step == 0:
            course.gradients = {name: whole(p.grad) for name, p in program.named_parameters() if p.requires_grad}
        course.norms.append(program.clip(spec.optimizer.grad_clip).item())
        optimizer.step(spec.lr(step))
        program.balance()
        if step in (0, spec.steps - 1):
            course.entropy.append(program.entropy(held_out[:5]).item())
    course.biases = {name: bias for part in program.parts for name, bias in part.named_buffers()}
    return course


def whole(tensor: Any) -> Tensor:
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def differences(expected: Course, ranks: list[Course]) -> dict[str, float]:
    """How far the ranks are from ``expected`` at most.

    ``loss`` and ``norm`` (relative) of the first step, ``gradients`` relative to the largest of the same parameter,
    ``curve`` over the losses of all steps, and ``entropy`` of the other text. A parameter whose gradient is nothing but
    rounding (a router whose one expert always has the weight 1) is held against 1e-5 of the largest of all.
    """
    least = 1e-5 * max(float(grad.abs().max()) for grad in expected.gradients.values())
    assert {name for rank in ranks for name in rank.gradients} == set(expected.gradients)
    return {
        "loss": max(abs(rank.losses[0] - expected.losses[0]) for rank in ranks),
        "norm": max(abs(rank.norms[0] / expected.norms[0] - 1) for rank in ranks),
        "gradients": max(
            float((grad - expected.gradients[name]).abs().max())
            / max(least, float(expected.gradients[name].abs().max()))
            for rank in ranks
            for name, grad in rank.gradients.items()
        ),
        "curve": max(abs(a - b) for rank in ranks for a, b in zip(rank.losses, expected.losses, strict=True)),
        "entropy": max(abs(a - b) for rank in ranks for a, b in zip(rank.entropy, expected.entropy, strict=True)),
    }
