"""Weights and documents under every layout: the losses and gradients of one process with nothing of this room."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from armillary.corpus import Batch
from armillary.model import Transformer, set_batch_weight
from armillary.parallel import Program
from armillary.recipe import Experts, Layout, RunSpec
from armillary.train.engines import autocast

from .runs import CPU, INTERLEAVED, SHAPE, ZERO_BUBBLE, specification, whole

TWO = {
    "dp2": Layout(dp_shard=2),
    "tp2": Layout(tp=2),
    "tp2 without sequence parallel": Layout(tp=2, sequence_parallel=False),
    "cp2 all-gather": Layout(cp=2),
    "cp2 ring": Layout(cp=2, context="ring"),
    "cp2 ring, full recompute": Layout(cp=2, context="ring", recompute="full"),
    "pp2 1f1b": Layout(pp=2, microbatches=4),
    "pp2 gpipe": Layout(pp=2, schedule="gpipe", microbatches=4),
    "pp2 interleaved": Layout(**INTERLEAVED),
    "pp2 zb-v": Layout(**{**ZERO_BUBBLE, "schedule": "zb-v"}),
}
FOUR = {
    "tp2 x cp2 ring": Layout(tp=2, cp=2, context="ring"),
    "dp2 x cp2": Layout(dp_shard=2, cp=2),
    "pp2 x cp2": Layout(pp=2, cp=2, microbatches=4),
    "pp2 x tp2": Layout(pp=2, tp=2, microbatches=4),
    "cp4 ring": Layout(cp=4, context="ring"),
    "cp4 all-gather": Layout(cp=4),
}
EXPERTS = {
    "ep2": Layout(ep=2),
    "tp2": Layout(tp=2),
    "tp2 without sequence parallel": Layout(tp=2, sequence_parallel=False),
    "cp2": Layout(cp=2),
    "pp2": Layout(pp=2, microbatches=4),
}


def batch_of(spec: RunSpec) -> Batch[Tensor]:
    """Documents of many lengths, weights of which a third is 0, and targets that are no tokens behind the last."""
    generator = torch.Generator().manual_seed(3)
    size = spec.batch_sequences, spec.context_length
    tokens = torch.randint(spec.model.vocab_size, (size[0], size[1] + 1), generator=generator)
    weights = torch.randint(0, 3, size, generator=generator) / 2
    documents = (torch.rand(size, generator=generator) < 0.15).cumsum(-1)
    documents[0] = 0
    weights[1, 20:] = 0.0
    tokens[1, 21:] = -100
    return Batch(tokens, weights, documents)


def alone(spec: RunSpec) -> tuple[float, dict[str, Tensor]]:
    """Each document computed apart, so that nothing is shared with the code for many of them in a sequence."""
    model = Transformer(spec.model)
    model.init_weights(spec.seed, spec.optimizer)
    batch = batch_of(spec)
    assert batch.weights is not None and batch.documents is not None
    set_batch_weight(model, batch.weight)
    loss = 0.0
    for tokens, weights, documents in zip(batch.tokens, batch.weights, batch.documents, strict=True):
        for number in documents.unique().tolist():
            places = (documents == number).nonzero()[:, 0]
            own = weights[places]
            if own.any():
                part = tokens[places[0] : places[-1] + 2][None]
                with autocast(spec, CPU):
                    objective, entropy = model.loss(part, spec.optimizer.z_loss, own[None])
                (objective / batch.weight).backward()
                loss += entropy.item() / batch.weight
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def together(spec: RunSpec) -> tuple[float, dict[str, Tensor]]:
    """The batch as it is, for models in which sequences matter (the balance of experts)."""
    model = Transformer(spec.model)
    model.init_weights(spec.seed, spec.optimizer)
    batch = batch_of(spec)
    set_batch_weight(model, batch.weight)
    objective, entropy = model.loss(batch.tokens, spec.optimizer.z_loss, batch.weights, batch.documents)
    (objective / batch.weight).backward()
    return entropy.item() / batch.weight, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def spread(spec: RunSpec, layout: Layout) -> tuple[float, dict[str, Tensor]]:
    program = Program(spec, layout, CPU)
    program.init_weights()
    loss = program.gradients(batch_of(spec)).item()
    return loss, {name: whole(p.grad) for name, p in program.named_parameters()}


def assert_equal(expected: tuple[float, dict[str, Tensor]], ranks: list[tuple[float, dict[str, Tensor]]]) -> None:
    loss, gradients = expected
    assert {name for _, found in ranks for name in found} == set(gradients)
    for found_loss, found in ranks:
        assert found_loss == pytest.approx(loss, abs=2e-6)
        for name, gradient in found.items():
            scale = max(float(gradients[name].abs().max()), 1e-3)
            assert float((gradient - gradients[name]).abs().max()) <= 2e-5 * scale, name


@pytest.mark.parametrize("layout", TWO.values(), ids=list(TWO))
def test_two_ranks_compute_what_each_document_gives_alone(layout: Layout, on_ranks: Any) -> None:
    spec = specification()
    assert_equal(alone(spec), on_ranks(2, spread, spec, layout))


@pytest.mark.slow
@pytest.mark.parametrize("layout", FOUR.values(), ids=list(FOUR))
def test_four_ranks_compute_what_each_document_gives_alone(layout: Layout, on_ranks: Any) -> None:
    spec = specification()
    assert_equal(alone(spec), on_ranks(4, spread, spec, layout))


@pytest.mark.parametrize("balance", ["auxiliary", "bias"])
@pytest.mark.parametrize("layout", EXPERTS.values(), ids=list(EXPERTS))
def test_weights_balance_experts_alike_under_every_layout(layout: Layout, balance: Any, on_ranks: Any) -> None:
    experts = Experts(count=4, active=2, d_ff=16, balance=balance, auxiliary_weight=0.1, router_z_loss=1e-2)
    spec = specification(model=SHAPE.model_copy(update={"experts": experts}))
    assert_equal(together(spec), on_ranks(2, spread, spec, layout))


@pytest.mark.parametrize("kind", ["ring", "all-gather"])
def test_half_precision_is_off_by_rounding_alone(kind: Any, on_ranks: Any) -> None:
    spec = specification(precision="bf16")
    _, exact = alone(specification())
    for _, found in on_ranks(2, spread, spec, Layout(cp=2, context=kind)):
        for name, gradient in found.items():
            assert (gradient - exact[name]).norm() <= 0.1 * exact[name].norm(), name
