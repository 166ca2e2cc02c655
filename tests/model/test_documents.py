"""Documents packed into one sequence give what each of them gives alone: losses and gradients, on every path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_transformer import LLAMA, QWEN, built, random_tokens, shapes
from torch import Tensor
from torch.func import functional_call

from armillary.model import Transformer, document_starts, native, set_batch_weight
from armillary.recipe import Experts, ModelShape

EXPERTS = QWEN.model_copy(update={"experts": Experts(count=4, active=2, d_ff=16, router_z_loss=1e-2)})
LATENT = ModelShape.model_validate(
    {
        **LLAMA.model_dump(exclude_defaults=True),
        "attention": {"kind": "latent", "kv_rank": 12, "rope_head_dim": 4},
        "feed_forward": {"kind": "relu2"},
    }
)
SHAPES = {"llama": LLAMA, "qwen": QWEN, "experts": EXPERTS, "latent": LATENT}
CORES = [pytest.param(True, id="kernels"), pytest.param(False, id="operators")]


def packed(lengths: list[list[int]], vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B, T + 1], weights and documents [B, T]; a document's last token predicts nothing."""
    total = max(map(sum, lengths))
    tokens = torch.randint(
        vocab_size, (len(lengths), total + 1), generator=torch.Generator().manual_seed(sum(lengths[0]))
    )
    weights, documents = torch.zeros(len(lengths), total), torch.full((len(lengths), total), -1)
    for row, sizes in enumerate(lengths):
        start = 0
        for number, size in enumerate(sizes):
            documents[row, start : start + size] = 7 * number
            weights[row, start : start + size - 1] = 1.0
            start += size
    return tokens, weights, documents


def sums(model: Transformer, *batch: Tensor | None) -> dict[str, Tensor]:
    tokens, weights, documents = batch
    assert tokens is not None
    objective, entropy = model.loss(tokens, 1e-3, weights, documents)
    objective.backward()
    return {"objective": objective.detach().float(), "entropy": entropy.detach().float()}


def together_and_alone(shape: ModelShape, lengths: list[list[int]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tokens, weights, documents = packed(lengths, shape.vocab_size)
    model, reference = built(shape), built(shape)
    for one in (model, reference):
        set_batch_weight(one, 1.0)
    found = sums(model, tokens, weights, documents)
    expected = {name: torch.zeros(()) for name in found}
    for row, sizes in enumerate(lengths):
        start = 0
        for size in sizes:
            if size > 1:
                alone = sums(reference, tokens[row : row + 1, start : start + size], None, None)
                expected = {name: expected[name] + alone[name] for name in expected}
            start += size
    for both, one in ((found, model), (expected, reference)):
        both |= {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in one.named_parameters()}
    return found, expected


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        scale = max(float(wanted.abs().max()), 1.0)
        assert float((found[name] - wanted).abs().max()) <= tolerance * scale, name


@pytest.fixture
def core(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and native.kernels(torch.float32) is None:
        pytest.skip("no C compiler on this machine")
    if not request.param:
        monkeypatch.setattr("armillary.model.operators.common.kernels", lambda dtype: None)


@pytest.mark.parametrize("core", CORES, indirect=True)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_packed_documents_are_each_what_they_are_alone(shape: ModelShape, core: None) -> None:
    lengths = [[1, 5, 33, 2, 40], [81], [64, 16, 1], [17] * 4 + [13]]
    assert_close(*together_and_alone(shape, lengths))


@given(shapes(), st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_lengths_in_any_shape(shape: ModelShape, lengths: list[list[int]], with_kernels: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not with_kernels:
            patch.setattr("armillary.model.operators.common.kernels", lambda dtype: None)
        assert_close(*together_and_alone(shape, lengths), tolerance=2e-5)


@pytest.mark.parametrize("core", CORES, indirect=True)
def test_half_precision_is_off_by_rounding_alone(core: None) -> None:
    tokens, weights, documents = packed([[3, 30, 31], [1, 62, 1]], QWEN.vocab_size)
    exact, half = built(QWEN), built(QWEN)
    sums(exact, tokens, weights, documents)
    with torch.autocast("cpu", torch.bfloat16):
        objective, _ = half.loss(tokens, 1e-3, weights, documents)
    objective.backward()
    for (name, p), q in zip(exact.named_parameters(), half.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        assert torch.linalg.vector_norm(p.grad - q.grad) < 0.1 * torch.linalg.vector_norm(p.grad), name


@pytest.mark.parametrize("core", CORES, indirect=True)
@pytest.mark.parametrize("shape", [LLAMA, QWEN], ids=["llama", "qwen"])
def test_members_of_a_stack_have_their_own_documents(shape: ModelShape, core: None) -> None:
    members = [packed(lengths, shape.vocab_size) for lengths in ([[1, 5, 10], [16]], [[8, 8], [2, 3, 11]])]
    models = [built(shape, seed) for seed in range(2)]

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Transformer(shape)

        def forward(self, tokens: Tensor, weights: Tensor, documents: Tensor) -> Any:
            return self.model.loss(tokens, 1e-3, weights, documents)

    skeleton = Loss()
    stacked = {
        f"model.{name}": torch.stack([dict(m.named_parameters())[name].detach() for m in models]).requires_grad_()
        for name, _ in models[0].named_parameters()
    }
    batch = [torch.stack(part) for part in zip(*members, strict=True)]
    objective, _ = torch.vmap(lambda p, *b: functional_call(skeleton, p, b))(stacked, *batch)
    objective.sum().backward()
    for i, model in enumerate(models):
        sums(model, *members[i])
        mine = {name.removeprefix("model."): p.grad[i] for name, p in stacked.items() if p.grad is not None}
        assert_close(mine, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("core", CORES, indirect=True)
def test_one_document_is_a_plain_sequence(core: None) -> None:
    tokens = random_tokens(QWEN, 2, 40)
    plain, one = built(QWEN), built(QWEN)
    expected = sums(plain, tokens, None, None)
    found = sums(one, tokens, torch.ones(2, 39), torch.full((2, 39), 5))
    expected |= {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    found |= {name: p.grad for name, p in one.named_parameters() if p.grad is not None}
    assert_close(found, expected, tolerance=1e-6)


@pytest.mark.parametrize("balance", ["bias", "auxiliary"])
def test_tokens_of_weight_0_do_not_balance_experts(balance: Any) -> None:
    """What pads a batch changes neither gradients nor the load that biases follow."""
    experts = Experts(count=4, active=2, d_ff=16, balance=balance, auxiliary_weight=0.1, router_z_loss=1e-2)
    shape = QWEN.model_copy(update={"experts": experts})
    tokens, weights, documents = packed([[9, 8], [12]], shape.vocab_size)
    courses = []
    for padding in (3, 11):
        model = built(shape)
        changed = tokens.clone()
        changed[1, 13:] = padding  # behind its document
        found = sums(model, changed, weights, documents)
        found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        loads = [m.take_load() for m in model.modules() if hasattr(m, "take_load") and balance == "bias"]
        courses.append((found, loads))
    assert_close(courses[0][0], courses[1][0], tolerance=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(courses[0][1], courses[1][1], strict=True))


def test_a_document_starts_where_the_number_changes() -> None:
    starts = document_starts(torch.tensor([[4, 4, 9, 9, 4], [0, 1, 2, 2, 2]]))
    assert starts.tolist() == [[0, 0, 2, 2, 4], [0, 1, 2, 2, 2]]
