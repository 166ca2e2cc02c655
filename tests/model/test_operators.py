"""The CPU kernels against PyTorch's operators, stacks of models against single ones, and divergence that shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_transformer import LLAMA, QWEN, built, random_tokens, shapes
from torch import Tensor
from torch.func import functional_call

from armillary.model import Places, TokenError, Transformer, native, operators
from armillary.recipe import ModelShape

pytestmark = pytest.mark.skipif(native.kernels(torch.float32) is None, reason="no C compiler on this machine")


def loss_and_gradients(shape: ModelShape, tokens: Tensor, precision: torch.dtype) -> dict[str, Tensor]:
    model = built(shape)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        objective = model.loss(tokens, 1e-3)[0] / tokens[:, 1:].numel()
    objective.backward()
    return {"loss": objective.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def assert_equal_up_to(tolerance: float, ours: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    assert ours.keys() == reference.keys()
    for name, wanted in reference.items():
        # relative to the largest entry; but small gradients are what is left of large ones that cancel
        scale = max(wanted.abs().max().item(), 0.1)
        assert (ours[name] - wanted).abs().max().item() <= tolerance * scale, name


@given(shapes(), st.integers(1, 3), st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_kernels_equal_pytorchs_operators(shape: ModelShape, batch: int, length: int) -> None:
    tokens = random_tokens(shape, batch, length + 1)
    ours = loss_and_gradients(shape, tokens, torch.float32)
    with patch("armillary.model.operators.common.kernels", return_value=None):
        reference = loss_and_gradients(shape, tokens, torch.float32)
    assert_equal_up_to(1e-5, ours, reference)


@pytest.mark.parametrize("shape", [LLAMA, QWEN], ids=["llama", "qwen"])
def test_kernels_in_bf16_are_as_close_to_fp32_as_pytorchs(shape: ModelShape) -> None:
    tokens = random_tokens(shape, 3, 50)
    exact = loss_and_gradients(shape, tokens, torch.float32)
    ours = loss_and_gradients(shape, tokens, torch.bfloat16)
    with patch("armillary.model.operators.common.kernels", return_value=None):
        theirs = loss_and_gradients(shape, tokens, torch.bfloat16)

    def distance(one: dict[str, Tensor]) -> float:
        return sum(((one[n] - exact[n]).norm() / exact[n].norm()).item() for n in exact) / len(exact)

    assert 0 < distance(ours) < 1.2 * distance(theirs) < 0.05


@given(
    length=st.integers(1, 70),
    kv_heads=st.integers(1, 2),
    share=st.integers(1, 3),
    half=st.integers(1, 40),
    normed=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_attention_in_bf16_is_right_to_the_digits_of_bf16_at_any_size(
    length: int, kv_heads: int, share: int, half: int, normed: bool, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)

    def numbers(*size: int) -> Tensor:
        return torch.randn(*size, generator=random).bfloat16()

    dim = 2 * half
    given_ = [numbers(2, length, heads * dim) for heads in (kv_heads * share, kv_heads, kv_heads)]
    grad = numbers(2, length, kv_heads * share * dim)
    angles = torch.rand(length, half, generator=random) * 6
    rotary = torch.cat([angles, angles], 1).cos(), angles.sin()
    gains = tuple(numbers(dim).float() for _ in range(2)) if normed else None

    def outcome(dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in given_]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            mixed = operators.attention(*leaves, Places(*rotary), gains, 1e-5)
        mixed.backward(grad.to(dtype))
        return [mixed.detach(), *(leaf.grad for leaf in leaves)]

    found, exact = outcome(torch.bfloat16), outcome(torch.float32)
    with patch("armillary.model.operators.common.kernels", return_value=None):
        reference = outcome(torch.bfloat16)
    for ours, theirs, true in zip(found, reference, exact, strict=True):
        # The gradients of queries and keys nearly cancel where there are few keys, so they are held against the rest.
        # The norm of a short head divides the rounding by a small number: PyTorch's operators lose digits there too.
        unit = max(true.norm(), 0.1 * grad.float().norm())
        assert (ours.float() - true).norm() < 0.03 * unit + 3 * (theirs.float() - true).norm()


@given(shapes(), st.integers(1, 4), st.integers(2, 20), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_stack_gives_each_member_what_it_has_alone(
    shape: ModelShape, members: int, length: int, with_kernels: bool
) -> None:
    models = [built(shape, seed) for seed in range(members)]
    tokens = torch.stack([random_tokens(shape, 2, length, seed) for seed in range(members)])
    stacked = {
        name: torch.stack([dict(model.named_parameters())[name].detach() for model in models]).requires_grad_()
        for name, _ in models[0].named_parameters()
    }
    with patch("armillary.model.operators.common.kernels", native.kernels if with_kernels else lambda dtype: None):

        class Loss(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = Transformer(shape)

            def forward(self, tokens: Tensor) -> Any:
                return [x / tokens[:, 1:].numel() for x in self.model.loss(tokens, 1e-3)]

        skeleton = Loss()
        objective, entropy = torch.vmap(
            lambda parameters, tokens: functional_call(
                skeleton, {f"model.{name}": p for name, p in parameters.items()}, (tokens,)
            )
        )(stacked, tokens)
        objective.sum().backward()
        for i, model in enumerate(models):
            alone, alone_entropy = (x / tokens[i, :, 1:].numel() for x in model.loss(tokens[i], 1e-3))
            alone.backward()
            assert objective[i].item() == pytest.approx(alone.item(), abs=1e-5)
            assert entropy[i].item() == pytest.approx(alone_entropy.item(), abs=1e-5)
            mine = {name: p.grad[i] for name, p in stacked.items() if p.grad is not None}
            assert_equal_up_to(1e-5, mine, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["embedding.weight", "layers.1.feed_forward.gate.weight", "output.weight"])
def test_a_number_that_is_not_finite_reaches_the_loss(name: str, poison: float) -> None:
    model = built(LLAMA)
    with torch.no_grad():
        model.get_parameter(name)[5] = poison
    objective, _ = model.loss(torch.full((2, 20), 5))
    assert not torch.isfinite(objective)


@pytest.mark.parametrize("token", [-1, -100, 300, 2**40])
@pytest.mark.parametrize("place", [-1, 3])
def test_a_token_outside_of_the_vocabulary_is_an_error_that_names_it(token: int, place: int) -> None:
    """As a target alone (the last place), and as an input."""
    tokens = random_tokens(LLAMA, 2, 10)
    tokens[1, place] = token
    with pytest.raises(TokenError, match=f"token {token} is outside the vocabulary of 300"):
        built(LLAMA).loss(tokens)


def weighted(shape: ModelShape, tokens: Tensor, weights: Tensor | None, native: bool) -> dict[str, Tensor]:
    """Both sums and the gradients of the first, with the C kernels or with PyTorch's operators."""
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr("armillary.model.operators.common.kernels", lambda dtype: None)
        model = built(shape)
        objective, entropy = model.loss(tokens, 1e-3, weights)
        objective.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"objective": objective.detach().float(), "entropy": entropy.float(), **grads}


@pytest.mark.parametrize("native", [True, False])
def test_weights_multiply_the_terms_of_the_sums(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armillary.model.operators.common.CPU_BLOCK", 7 * QWEN.vocab_size)  # many blocks
    monkeypatch.setattr("armillary.model.operators.common.CPU_ROWS", 1)
    tokens = random_tokens(QWEN, 3, 12)
    weights = torch.tensor([0.0, 1.0, 0.5, 2.0]).repeat(9)[:33].view(3, 11)
    found = weighted(QWEN, tokens, weights, native)
    model = built(QWEN)
    logits = model(tokens[:, :-1]).flatten(0, 1)
    each = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
    entropy = (each * weights.flatten()).sum()
    objective = entropy + 1e-3 * (logits.logsumexp(-1).square() * weights.flatten()).sum()
    objective.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_equal_up_to(1e-5, found, {"objective": objective.detach(), "entropy": entropy.detach(), **grads})


@pytest.mark.parametrize("native", [True, False])
def test_weights_of_one_change_no_bit(native: bool) -> None:
    tokens = random_tokens(QWEN, 3, 12)
    plain, ones = (weighted(QWEN, tokens, w, native) for w in (None, torch.ones(3, 11)))
    assert all(torch.equal(plain[name], ones[name]) for name in plain)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("ignored", [-100, 2**40, 7])
def test_a_position_of_weight_0_never_reaches_the_loss(native: bool, ignored: int) -> None:
    tokens = random_tokens(QWEN, 2, 12)
    weights = torch.ones(2, 11)
    weights[:, -1] = 0.0
    short = weighted(QWEN, tokens[:, :-1], None, native)
    tokens[:, -1] = ignored
    assert_equal_up_to(1e-6, weighted(QWEN, tokens, weights, native), short)


def test_logits_are_computed_only_where_a_weight_is_not_0() -> None:
    """So what a position of weight 0 has come to cannot spoil the gradient, and costs nothing."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 8, generator=generator)
    matrix = torch.randn(20, 8, generator=generator).requires_grad_()
    weights = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.5, 0.0])
    targets = torch.arange(6)
    found = []
    for value in (0.0, float("nan")):
        rows = features.masked_fill((weights == 0)[:, None], value).requires_grad_()
        objective, _ = operators.linear_cross_entropy(rows, matrix, targets, 1e-3, weights)
        found.append((objective, *torch.autograd.grad(objective, (rows, matrix))))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert found[0][1].count_nonzero(1).tolist() == [0, 8, 0, 0, 8, 0]


@pytest.mark.parametrize("native", [True, False])
def test_a_frozen_head_costs_no_gradient_and_changes_no_other(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr("armillary.model.operators.common.kernels", lambda dtype: None)
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(40, (9,), generator=generator)
    values = torch.randn((9, 16), generator=generator), torch.randn((40, 16), generator=generator)
    found = []
    for trained in (True, False):
        rows, matrix = values[0].clone().requires_grad_(), torch.nn.Parameter(values[1].clone(), requires_grad=trained)
        operators.linear_cross_entropy(rows, matrix, targets, 1e-3)[0].backward()
        assert (matrix.grad is not None) == trained
        found.append(rows.grad)
    assert found[0] is not None and torch.equal(*found)


def test_without_a_compiler_the_same_is_computed_and_said(tmp_path: Path) -> None:
    script = (
        "import torch; from armillary.model import Transformer; from armillary.recipe import Family\n"
        "model = Transformer(Family().shape(1, 50)); model.init_weights(0)\n"
        "print(model.loss(torch.arange(40).view(2, 20))[0].item() / 38)"
    )
    seen = {}
    for name, changed in {"with": {}, "without": {"CC": "no-such-compiler"}}.items():
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / name), **changed}
        seen[name] = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
    assert float(seen["with"].stdout) == pytest.approx(float(seen["without"].stdout), abs=1e-6)
    assert "no C compiler was found" in seen["without"].stderr
    assert [path.suffix for path in (tmp_path / "with" / "armillary").iterdir()] == [".so"]
