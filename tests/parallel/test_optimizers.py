"""The optimizers over parameters in parts: under every layout the steps that one process takes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils.flop_counter import FlopCounterMode

import lion  # noqa: F401 (registers it)
from armillary.corpus import Batch
from armillary.model import Role, Transformer, gain
from armillary.optim import LocalOptimizer, build_optimizer
from armillary.parallel import Program
from armillary.recipe import Layout, OptimizerSpec, RunSpec
from armillary.train import train_step

from .runs import specification

LAYOUTS = {
    "dp2": Layout(dp_shard=2),
    "tp2": Layout(tp=2),
    "dp2 tp2": Layout(dp_shard=2, tp=2),
    "hsdp2x2": Layout(dp_replicate=2, dp_shard=2),
}


def batches(spec: RunSpec) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    size = (spec.steps, spec.batch_sequences, spec.context_length + 1)
    return torch.randint(0, spec.model.vocab_size, size, generator=generator)


def alone(spec: RunSpec) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = Transformer(spec.model)
    model.init_weights(spec.seed, spec.optimizer)
    optimizer = build_optimizer(model, spec)
    losses = [
        train_step(model, optimizer, spec, step, Batch(batch))[0].item() for step, batch in enumerate(batches(spec))
    ]
    return losses, {name: p.detach() for name, p in model.named_parameters()}


def spread(spec: RunSpec, layout: Layout) -> tuple[list[float], dict[str, torch.Tensor]]:
    program = Program(spec, layout, torch.device("cpu"))
    program.init_weights()
    optimizer = LocalOptimizer(program.named_parameters(), spec)
    losses = []
    for step, batch in enumerate(batches(spec)):
        losses.append(program.gradients(Batch(batch)).item())
        program.clip(spec.optimizer.grad_clip)
        optimizer.step(spec.lr(step))
    values = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in program.named_parameters()}
    return losses, {name: value.detach().clone() for name, value in values.items()}


# Newton-Schulz iterates in bf16: where the last digit of a gradient tips a rounding, a step moves by 2^-8 of itself.
@pytest.mark.parametrize(("kind", "of_loss", "of_parameters"), [("adamw", 1e-5, 2e-4), ("muon", 5e-4, 2e-3)])
@pytest.mark.parametrize("name", [n if n == "tp2" else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS])
def test_twenty_steps_are_those_of_one_process(
    name: str, kind: str, of_loss: float, of_parameters: float, on_ranks: Any
) -> None:
    spec = specification(optimizer=OptimizerSpec(lr=3e-3, kind=kind, grad_clip=0.5, z_loss=1e-3))
    expected, parameters = alone(spec)
    for losses, found in on_ranks(LAYOUTS[name].ranks, spread, spec, LAYOUTS[name]):
        assert losses == pytest.approx(expected, abs=of_loss)
        for parameter, values in found.items():
            assert torch.allclose(values, parameters[parameter], atol=of_parameters), parameter


# Sizes that no number of ranks divides, and stacks of matrices.
PARAMETERS = {
    "layers.0.tall": (9, 5),
    "layers.0.wide": (5, 9),
    "layers.1.experts": (3, 4, 6),
    "layers.1.one": (1, 4),
    "layers.2.equal": (9, 5),
    "norm.weight": (7,),
    "embedding.weight": (11, 5),
}
ROLES = {
    **dict.fromkeys(("layers.0.tall", "layers.0.wide", "layers.1.one", "layers.2.equal"), Role("rows")),
    "layers.1.experts": Role("experts"),
    "norm.weight": gain("stream"),
    "embedding.weight": Role("vocabulary", width="input", matrix=False),
}
PLACEMENTS: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {
    "rows": ((2,), (Shard(0),)),
    "columns": ((2,), (Shard(-1),)),
    "rows, then rows": ((2, 2), (Shard(0), Shard(0))),
    "columns of rows": ((2, 2), (Shard(-1), Shard(0))),
    "copies of columns": ((2, 2), (Replicate(), Shard(-1))),
    "copies": ((2,), (Replicate(),)),
}


def values(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(size, generator=generator) for name, size in PARAMETERS.items()}


def three_steps(kind: str, sizes: tuple[int, ...], placements: tuple[Any, ...] | None) -> tuple[Any, Any, int]:
    """Parameters, states and FLOPs of three steps along given gradients."""
    spec = specification(optimizer=OptimizerSpec(lr=3e-3, kind=kind))

    def place(whole: torch.Tensor) -> torch.Tensor:
        if placements is None:
            return whole.clone()
        own = [Shard(0) if p.is_shard(-1) and whole.ndim == 1 else p for p in placements]
        own = [Shard(whole.ndim - 1) if p.is_shard(-1) else p for p in own]
        return distribute_tensor(whole, mesh, own)

    def taken(tensor: torch.Tensor, name: str) -> torch.Tensor:
        if placements is None or not tensor.ndim:
            return tensor.detach()
        like = parameters[name]
        return DTensor.from_local(tensor, mesh, like.placements, shape=like.shape, stride=like.stride()).full_tensor()

    mesh = None if placements is None else init_device_mesh("cpu", sizes, mesh_dim_names=("a", "b")[: len(sizes)])
    parameters: dict[str, Any] = {name: nn.Parameter(place(whole)) for name, whole in values(0).items()}
    optimizer = LocalOptimizer(parameters.items(), spec, ROLES)
    with FlopCounterMode(display=False) as counter:
        for step in range(1, 4):
            for name, grad in values(step).items():
                parameters[name].grad = place(grad)
            optimizer.step(1e-2)
    state = {f"{name}/{key}": taken(value, name) for name, own in optimizer.state.items() for key, value in own.items()}
    return {n: taken(p, n) for n, p in optimizer.local.items()}, state, counter.get_total_flops()


@pytest.mark.parametrize("kind", ["adamw", "muon", "lion"])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_steps_in_parts_are_those_of_whole_parameters(name: str, kind: str, on_ranks: Any) -> None:
    """But for the last digit, which AdamW's kernel rounds by place; and no rank does again what another one does."""
    sizes, placements = PLACEMENTS[name]
    *expected, flops = three_steps(kind, (), None)
    ranks = on_ranks(math.prod(sizes), three_steps, kind, sizes, placements)
    for *found, _ in ranks:
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            for key in one:
                assert torch.allclose(one[key], other[key], rtol=1e-6, atol=1e-7), key
    assert sum(done for *_, done in ranks) == flops
    if kind == "muon":
        assert max(done for *_, done in ranks) < 0.7 * flops
