"""The transformer against its formulas, a reference loss and what causality and determinism demand."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from armillary.model import Transformer, mean_share
from armillary.recipe import Family, ModelShape

LLAMA = Family().shape(2, 300)
QWEN = Family(qk_norm=True, query_heads_per_kv_head=2, tied_embeddings=True).shape(2, 300)


@st.composite
def shapes(draw: Any) -> ModelShape:
    kv_heads = draw(st.integers(1, 3))
    return ModelShape(
        n_layers=draw(st.integers(1, 3)),
        d_model=draw(st.integers(1, 40)),
        n_heads=kv_heads * draw(st.integers(1, 3)),
        n_kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 8)),
        d_ff=draw(st.integers(1, 50)),
        vocab_size=draw(st.integers(2, 60)),
        tied_embeddings=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
    )


def built(shape: ModelShape, seed: int = 0) -> Transformer:
    model = Transformer(shape)
    model.init_weights(seed)
    return model


def random_tokens(shape: ModelShape, batch: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, shape.vocab_size, (batch, length), generator=generator)


def reference_loss(model: Transformer, tokens: torch.Tensor, z_loss: float) -> torch.Tensor:
    logits = model(tokens[:, :-1]).flatten(0, 1).double()
    entropy = F.cross_entropy(logits, tokens[:, 1:].flatten())
    return entropy + z_loss * torch.logsumexp(logits, dim=-1).square().mean()


@given(shapes())
@settings(max_examples=50, deadline=None)
def test_parameters_are_those_of_the_formula(shape: ModelShape) -> None:
    with torch.device("meta"):
        model = Transformer(shape)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    embedding = sum(n for name, n in sizes.items() if name.startswith(("embedding", "output")))
    assert sum(sizes.values()) == shape.parameters
    assert embedding == shape.embedding_parameters
    groups = model.optimizer_groups(0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert sum(p.numel() for p in groups[1]["params"]) == shape.norm_parameters
    assert sum(p.numel() for group in groups for p in group["params"]) == shape.parameters


@given(shapes(), st.integers(1, 3), st.integers(2, 9))
@settings(max_examples=25, deadline=None)
def test_flops_are_those_that_pytorch_counts(shape: ModelShape, batch: int, length: int) -> None:
    # The counter counts matrix products, 2 per multiply-add, and knows nothing of the causal mask. The math back end
    # shows it attention's products (forward 2, backward 4 of the same size); the fused ones recompute in backward. It
    # cannot look into the CPU kernels, so they are left out.
    model, tokens = built(shape), random_tokens(shape, batch, length + 1)
    with patch("armillary.model.operators.common.kernels", return_value=None), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            model(tokens[:, :-1])
        with FlopCounterMode(display=False) as training:
            model.loss(tokens)[0].backward()
    assert forward.get_total_flops() == batch * length * shape.forward_flops_per_token(length, "full")
    assert training.get_total_flops() == batch * length * shape.train_flops_per_token(length, "full")


@given(shapes(), st.integers(2, 12), st.data())
@settings(max_examples=25, deadline=None)
def test_no_logit_depends_on_a_later_token(shape: ModelShape, length: int, data: st.DataObject) -> None:
    model, tokens = built(shape), random_tokens(shape, 2, length)
    changed_at = data.draw(st.integers(1, length - 1))
    changed = tokens.clone()
    changed[:, changed_at] = (changed[:, changed_at] + 1) % shape.vocab_size
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :changed_at], before[:, :changed_at], rtol=0, atol=1e-6)
    assert not torch.equal(after[:, changed_at], before[:, changed_at])


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("shape", [LLAMA, QWEN], ids=["llama", "qwen"])
def test_loss_and_gradient_equal_the_reference(
    shape: ModelShape, z_loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # blocks of 7 tokens: several whole ones and a rest
    monkeypatch.setattr("armillary.model.operators.common.CPU_BLOCK", 7 * shape.vocab_size)
    monkeypatch.setattr("armillary.model.operators.common.CPU_ROWS", 1)
    ours, theirs = built(shape), built(shape)
    tokens = random_tokens(shape, 4, 26)
    objective, entropy = (mean_share(x, 4 * 25, 1) for x in ours.loss(tokens, z_loss))
    (3 * objective).backward()
    expected = reference_loss(theirs, tokens, z_loss)
    (3 * expected).backward()
    assert objective.item() == pytest.approx(expected.item(), abs=1e-6)
    assert entropy.item() == pytest.approx(reference_loss(theirs, tokens, 0.0).item(), abs=1e-6)
    assert not entropy.requires_grad
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        assert torch.linalg.vector_norm(p.grad - q.grad) < 1e-5 * torch.linalg.vector_norm(q.grad), name


def test_loss_survives_extreme_logits() -> None:
    model = built(LLAMA)
    with torch.no_grad():
        model.output_weight.mul_(1e4)
    tokens = random_tokens(LLAMA, 2, 9)
    objective, entropy = (mean_share(x, 2 * 8, 1) for x in model.loss(tokens, 1e-9))
    objective.backward()
    assert entropy.item() == pytest.approx(reference_loss(model, tokens, 0.0).item(), rel=1e-5)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_loss_without_gradient_is_the_same() -> None:
    model, tokens = built(LLAMA), random_tokens(LLAMA, 2, 17)
    with torch.no_grad():
        silent = model.loss(tokens)
    assert not silent[0].requires_grad
    assert [x.item() for x in silent] == [x.item() for x in model.loss(tokens)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [LLAMA, QWEN], ids=["llama", "qwen"])
def test_bf16_by_autocast_stays_near_fp32(shape: ModelShape) -> None:
    exact, half = built(shape), built(shape)
    tokens = random_tokens(shape, 4, 33)
    exact.loss(tokens)[0].backward()
    with torch.autocast("cpu", torch.bfloat16):
        assert half(tokens).dtype == torch.bfloat16
        objective, entropy = half.loss(tokens)
    objective.backward()
    assert objective.dtype == entropy.dtype  # whatever sums have here; a mean is fp32
    assert mean_share(entropy, 4 * 32, 1).dtype == torch.float32
    assert objective.item() == pytest.approx(exact.loss(tokens)[0].item(), rel=2e-3)
    for (name, p), q in zip(exact.named_parameters(), half.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and q.grad.dtype == torch.float32
        assert torch.linalg.vector_norm(p.grad - q.grad) < 0.1 * torch.linalg.vector_norm(p.grad), name


def test_a_model_built_on_meta_computes_once_its_weights_are_drawn() -> None:
    with torch.device("meta"):
        model = Transformer(QWEN)
    model.to_empty(device="cpu")
    model.init_weights(5)
    tokens = random_tokens(QWEN, 1, 8)
    assert torch.equal(model(tokens), built(QWEN, 5)(tokens))


def test_a_longer_context_changes_nothing_before_it() -> None:
    # the model has seen 5 tokens, then sees 40: its tables grow; one cast to half and back has lost them
    tokens = random_tokens(LLAMA, 1, 40)
    grown, cast = built(LLAMA), built(LLAMA)
    grown(tokens[:, :5])
    cast(tokens)
    cast.bfloat16()
    cast.float()
    cast.init_weights(0)
    expected = built(LLAMA)(tokens)
    assert torch.equal(grown(tokens), expected)
    assert torch.equal(cast(tokens), expected)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        return dict(built(LLAMA, seed).state_dict())

    first = drawn(1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    model = Transformer(LLAMA)
    torch.set_rng_state(state)
    torch.set_num_threads(2)
    try:
        model.init_weights(1)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), state)
    second = model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = drawn(2)
    assert all(not torch.equal(first[name], other[name]) for name in first if first[name].ndim > 1)


def test_initial_weights_of_a_layer_do_not_depend_on_the_other_layers() -> None:
    # the residual scale aside: what a rank that holds only some layers relies on
    deep = built(LLAMA.model_copy(update={"n_layers": 3}))
    assert torch.equal(deep.layers["1"].attention.q.weight, built(LLAMA).layers["1"].attention.q.weight)
    assert torch.equal(deep.output_weight, built(LLAMA).output_weight)


def test_the_initial_model_predicts_nearly_uniformly() -> None:
    loss = built(Family().shape(3, 2048)).loss(random_tokens(Family().shape(3, 2048), 4, 65))[1] / (4 * 64)
    assert loss.item() == pytest.approx(torch.tensor(2048.0).log().item(), rel=0.1)
