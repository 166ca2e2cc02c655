"""Pairs of answers under every layout: losses, measures and gradients of one process with nothing of this room."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from armillary.corpus import Batch
from armillary.model import Transformer
from armillary.parallel import Program
from armillary.recipe import Experts, Layout, OptimizerSpec, Preference, RunSpec
from armillary.train.engines import loss_sums, parts

from .runs import CPU, INTERLEAVED, SHAPE, ZERO_BUBBLE, specification, whole

TWO = {
    "dp2": Layout(dp_shard=2),
    "hsdp": Layout(dp_replicate=2),
    "tp2": Layout(tp=2),
    "tp2 without sequence parallel": Layout(tp=2, sequence_parallel=False),
    "cp2 all-gather": Layout(cp=2),
    "cp2 ring": Layout(cp=2, context="ring"),
    "pp2 1f1b": Layout(pp=2, microbatches=4),
    "pp2 interleaved": Layout(**INTERLEAVED),
    "pp2 zb-v": Layout(**{**ZERO_BUBBLE, "schedule": "zb-v"}),
}
SLOW = ("hsdp", "tp2 without sequence parallel")  # by far the longest ones
FOUR = {
    "dp2 x tp2": Layout(dp_shard=2, tp=2),
    "tp2 x cp2 ring": Layout(tp=2, cp=2, context="ring"),
    "dp2 x cp2": Layout(dp_shard=2, cp=2),
    "pp2 x cp2": Layout(pp=2, cp=2, microbatches=4),
    "pp2 x tp2": Layout(pp=2, tp=2, microbatches=4),
}
KINDS = {
    "sigmoid": {},
    "sigmoid, smoothed, with SFT": {"label_smoothing": 0.1, "sft_weight": 0.7},
    "ipo": {"loss": "ipo"},
}


def run_spec(**objective: Any) -> RunSpec:
    optimizer = OptimizerSpec(lr=3e-3, grad_clip=0.5)
    preference = Preference(examples="0" * 16, **{"beta": 0.3, **objective})
    return specification(mixture=(), objective=preference, optimizer=optimizer)


def batch_of(spec: RunSpec) -> Batch[Tensor]:
    """Pairs of many lengths, one to three in a sequence, whose last one may be cut by no padding or by much."""
    generator = torch.Generator().manual_seed(3)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    size = spec.batch_sequences, spec.context_length
    tokens = torch.randint(spec.model.vocab_size, (size[0], size[1] + 1), generator=generator)
    weights, reference = torch.zeros(size), torch.zeros(size)
    documents = torch.zeros(size, dtype=torch.int64)
    answers, pairs = [0, 0], 0
    for row in range(size[0]):
        at, document = 0, 0
        while at + 16 <= size[1] + 1 and document < 6:
            for side in (0, 1):
                prompt, answer = number(1, 4), number(1, 5)
                end = at + prompt + answer
                weights[row, at + prompt - 1 : end - 1] = 1.0
                reference[row, at + prompt - 1] = -5.0 * answer + number(0, 3)
                documents[row, at:end] = document
                answers[side] += answer
                at, document = end, document + 1
            pairs += 1
        documents[row, at:] = document
        tokens[row, at + 1 :] = -100
    return Batch(tokens, weights, documents, reference, weight=float(pairs), answers=(answers[0], answers[1]))


def alone(spec: RunSpec) -> tuple[list[float], dict[str, Tensor]]:
    """Each answer computed apart, from logits, by the formulas as they are published; once for each run."""
    if spec.id not in _ALONE:
        _ALONE[spec.id] = _alone(spec)
    return _ALONE[spec.id]


_ALONE: dict[str, tuple[list[float], dict[str, Tensor]]] = {}


def _alone(spec: RunSpec) -> tuple[list[float], dict[str, Tensor]]:
    objective = spec.objective
    assert isinstance(objective, Preference)
    model = Transformer(spec.model)
    model.init_weights(spec.seed, spec.optimizer)
    batch = batch_of(spec)
    assert batch.weights is not None and batch.documents is not None
    assert batch.reference is not None and batch.answers is not None
    means = torch.zeros(5)
    for tokens, weights, documents, reference in zip(
        batch.tokens, batch.weights, batch.documents, batch.reference, strict=True
    ):
        found = []
        for number in range(int(documents[weights != 0].max()) + 1):
            places = (documents == number).nonzero()[:, 0]
            own = weights[places]
            # the last token of a document that ends with the sequence is a target alone
            stop = int(places[own != 0].max()) + 2
            part = tokens[places[0] : stop][None]
            each = model(part[:, :-1]).log_softmax(-1)[0].gather(1, part[0, 1:, None])[:, 0]
            mask = own[: len(each)]
            found.append(((each * mask).sum(), float(reference[places].sum()), float(mask.sum())))
        for (chosen, r_c, n_c), (rejected, r_r, n_r) in zip(found[::2], found[1::2], strict=True):
            beta, smoothing = objective.beta, objective.label_smoothing
            if objective.loss == "ipo":
                loss = ((chosen - r_c) / n_c - (rejected - r_r) / n_r - 1 / (2 * beta)) ** 2
            else:
                delta = torch.sigmoid(beta * (chosen - r_c - rejected + r_r))
                loss = -(1 - smoothing) * delta.log() - smoothing * (1 - delta).log()
            loss = loss / batch.weight - objective.sft_weight * chosen / batch.answers[0]
            loss.backward()
            margin = beta * (chosen - r_c - rejected + r_r).detach()
            pair = torch.stack([margin, (margin > 0).float(), chosen.detach(), rejected.detach()])
            means += torch.cat([loss.detach()[None], pair / batch.weight])
    return means.tolist(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def spread(spec: RunSpec, layout: Layout) -> tuple[list[float], dict[str, Tensor]]:
    program = Program(spec, layout, CPU)
    program.init_weights()
    loss = program.gradients(batch_of(spec))
    return [loss.item(), *program.measured.tolist()], {n: whole(p.grad) for n, p in program.named_parameters()}


def on_one(spec: RunSpec, accumulation: int = 1) -> tuple[list[float], dict[str, Tensor]]:
    model = Transformer(spec.model)
    model.init_weights(spec.seed, spec.optimizer)
    means = torch.zeros(5)
    batch = batch_of(spec)
    for part in parts(batch, accumulation):
        objective, sums = loss_sums(model, part, spec)
        (objective / batch.weight).backward()
        means += sums / batch.weight
    return means.tolist(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(
    expected: tuple[list[float], dict[str, Tensor]], ranks: list[tuple[list[float], dict[str, Tensor]]]
) -> None:
    means, gradients = expected
    assert 0 < means[2] < 1  # the implicit reward is right for some of the pairs
    assert {name for _, found in ranks for name in found} == set(gradients)
    for found_means, found in ranks:
        assert found_means == pytest.approx(means, abs=2e-5)
        for name, gradient in found.items():
            scale = max(float(gradients[name].abs().max()), 1e-3)
            assert float((gradient - gradients[name]).abs().max()) <= 5e-5 * scale, name


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_one_process_computes_what_each_answer_gives_alone(kind: Any) -> None:
    spec = run_spec(**kind)
    expected = alone(spec)
    for accumulation in (1, 2, 8):
        assert_equal(expected, [on_one(spec, accumulation)])


@pytest.mark.parametrize(
    "layout",
    [pytest.param(layout, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, layout in TWO.items()],
)
def test_two_ranks_compute_what_each_answer_gives_alone(layout: Layout, on_ranks: Any) -> None:
    spec = run_spec(**KINDS["sigmoid, smoothed, with SFT"])
    assert_equal(alone(spec), on_ranks(2, spread, spec, layout))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("layout", FOUR.values(), ids=list(FOUR))
def test_four_ranks_compute_what_each_answer_gives_alone(layout: Layout, kind: Any, on_ranks: Any) -> None:
    spec = run_spec(**kind)
    assert_equal(alone(spec), on_ranks(4, spread, spec, layout))


@pytest.mark.parametrize("layout", [Layout(ep=2), Layout(tp=2)], ids=["ep2", "tp2"])
def test_experts_balance_by_the_tokens_of_the_answers(layout: Layout, on_ranks: Any) -> None:
    experts = Experts(count=4, active=2, d_ff=16, balance="auxiliary", auxiliary_weight=0.1, router_z_loss=1e-2)
    spec = run_spec().model_copy(update={"model": SHAPE.model_copy(update={"experts": experts})})

    def by_answers(spec: RunSpec) -> tuple[list[float], dict[str, Tensor]]:
        from armillary.model import set_batch_weight

        model = Transformer(spec.model)
        model.init_weights(spec.seed, spec.optimizer)
        batch = batch_of(spec)
        set_batch_weight(model, batch.predictions)
        objective, sums = loss_sums(model, batch, spec)
        (objective / batch.weight).backward()
        means = (sums / batch.weight).tolist()
        return means, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    assert_equal(by_answers(spec), on_ranks(2, spread, spec, layout))
