"""A run that changes its length, under layouts: each phase is what one process computes; layouts that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from armillary.corpus import Batch
from armillary.model import Transformer
from armillary.parallel import Program
from armillary.recipe import (
    Layout,
    LengthPhase,
    MixturePhase,
    ModelShape,
    OptimizerSpec,
    RopeScaling,
    RunSpec,
    UsageError,
)

SCALING = RopeScaling(kind="yarn", factor=4, original_length=16)
SPEC = RunSpec(
    corpus="none",
    model=ModelShape(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, vocab_size=128),
    context_length=16,
    batch_sequences=8,
    steps=20,
    mixture=(MixturePhase(start_step=0, weights={"text": 1.0}),),
    optimizer=OptimizerSpec(lr=3e-3),
    seed=5,
    lengths=(LengthPhase(start_step=10, context_length=64, batch_sequences=4, rope_scaling=SCALING),),
)


def batch_of(run: RunSpec) -> torch.Tensor:
    size = (run.batch_sequences, run.context_length + 1)
    return torch.randint(0, run.model.vocab_size, size, generator=torch.Generator().manual_seed(1))


def spread(layout: Layout) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """Loss and gradients of a step of each phase, from one program."""
    program = Program(SPEC, layout, torch.device("cpu"))
    program.init_weights()
    found = []
    for _, _, run in [*SPEC.stretches(), SPEC.stretches()[0]]:
        for part in program.parts:
            part.turn_as(run.model)
        loss = program.gradients(Batch(batch_of(run))).item()
        whole = {}
        for name, parameter in program.named_parameters():
            grad: Any = parameter.grad
            whole[name] = (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).detach().clone()
            parameter.grad = None
        found.append((loss, whole))
    return found


@pytest.mark.parametrize(
    "layout",
    [Layout(dp_shard=2), Layout(cp=2, context="ring"), Layout(pp=2), Layout(pp=2, cp=2)],
    ids=["dp2", "cp2", "pp2", "pp2 cp2"],
)
def test_each_phase_is_what_one_process_computes(layout: Layout, on_ranks: Any) -> None:
    expected = []
    for _, _, run in [*SPEC.stretches(), SPEC.stretches()[0]]:
        model = Transformer(run.model)
        model.init_weights(SPEC.seed)
        objective, entropy = (x / run.batch_tokens for x in model.loss(batch_of(run)))
        objective.backward()
        expected.append((entropy.item(), {name: p.grad for name, p in model.named_parameters()}))
    for phases in on_ranks(layout.ranks, spread, layout):
        for (loss, grads), (entropy, whole) in zip(phases, expected, strict=True):
            assert loss == pytest.approx(entropy, abs=2e-6)
            for name, grad in grads.items():
                torch.testing.assert_close(grad, whole[name], atol=2e-6, rtol=0)


def test_a_layout_must_fit_every_phase() -> None:
    with pytest.raises(
        UsageError, match=r"lengths: from step 10 on: batch_sequences \(4\) must be a multiple of .* \(8\)"
    ):
        Layout(dp_shard=8).check(SPEC)
