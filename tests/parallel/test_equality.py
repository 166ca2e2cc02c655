"""Under every layout a run is the run that one process trains: first step's loss and gradients, and the curve."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from armillary.model import Transformer
from armillary.parallel import Program
from armillary.recipe import Layout, MixturePhase, ModelShape, OptimizerSpec, RunSpec

TOLERANCE = 2e-6

SHAPE = ModelShape(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, vocab_size=128, qk_norm=True)


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


def batches(spec: RunSpec, steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    size = (steps, spec.batch_sequences, spec.context_length + 1)
    return torch.randint(0, spec.model.vocab_size, size, generator=generator)


def alone(spec: RunSpec) -> tuple[float, dict[str, torch.Tensor]]:
    model = Transformer(spec.model)
    model.init_weights(spec.seed)
    loss = 0.0
    for part in batches(spec, 1)[0].chunk(spec.accumulation):
        objective, entropy = model.loss(part, spec.optimizer.z_loss)
        (objective / spec.accumulation).backward()
        loss += entropy.item() / spec.accumulation
    return loss, {name: p.grad for name, p in model.named_parameters()}


def spread(spec: RunSpec, layout: Layout) -> tuple[float, dict[str, torch.Tensor]]:
    program = Program(spec, layout, torch.device("cpu"))
    loss = program.gradients(batches(spec, 1)[0]).item()
    grads = {name: whole(p.grad) for name, p in program.named_parameters()}
    return loss, grads


def whole(tensor: Any) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


LAYOUTS = {
    "dp2": Layout(dp_shard=2),
    "hsdp2x2": Layout(dp_replicate=2, dp_shard=2),
    "tp2": Layout(tp=2),
    "tp2 without sequence parallel": Layout(tp=2, sequence_parallel=False),
    "dp2 tp2": Layout(dp_shard=2, tp=2),
    "pp2": Layout(pp=2),
    "pp2 gpipe": Layout(pp=2, schedule="gpipe"),
    "pp2 dp2": Layout(pp=2, dp_shard=2),
    "pp2 tp2": Layout(pp=2, tp=2),
    "cp2": Layout(cp=2),
    "cp2 ring": Layout(cp=2, context="ring"),
    "cp4 ring": Layout(cp=4, context="ring"),
    "dp2 cp2": Layout(dp_shard=2, cp=2),
    "cp2 tp2": Layout(cp=2, tp=2, context="ring"),
    "cp2 tp2 without sequence parallel": Layout(cp=2, tp=2, sequence_parallel=False),
    "pp2 cp2": Layout(pp=2, cp=2, context="ring"),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_first_step(name: str, accumulation: int, on_ranks: Any) -> None:
    spec = specification(accumulation=accumulation)
    expected, grads = alone(spec)
    for loss, found in on_ranks(LAYOUTS[name].ranks, spread, spec, LAYOUTS[name]):
        assert loss == pytest.approx(expected, abs=TOLERANCE)
        for parameter, grad in found.items():
            assert torch.allclose(grad, grads[parameter], atol=TOLERANCE), parameter
