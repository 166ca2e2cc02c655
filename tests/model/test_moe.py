"""Mixtures of experts against a plain loop over tokens, their formulas, and what balances them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from armillary.generate import Sampling
from armillary.generate.native import generate
from armillary.model import (
    MixtureOfExperts,
    Transformer,
    balance_experts,
    export_hf,
    import_hf,
    load_weights,
    mixtures,
    save_weights,
    set_batch_weight,
)
from armillary.recipe import Experts, ModelShape, UsageError


def with_experts(**fields: Any) -> ModelShape:
    return ModelShape(
        n_layers=3, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24, vocab_size=320, qk_norm=True,
        experts=Experts(**{"count": 6, "active": 2, "d_ff": 8, **fields}),
    )  # fmt: skip


@st.composite
def shapes(draw: Any) -> ModelShape:
    count = draw(st.integers(2, 6))
    layers = draw(st.integers(1, 4))
    every = draw(st.integers(1, layers))
    return ModelShape(
        n_layers=layers,
        d_model=8 * draw(st.integers(1, 3)),
        n_heads=2,
        n_kv_heads=draw(st.integers(1, 2)),
        head_dim=2 * draw(st.integers(1, 4)),
        d_ff=draw(st.integers(1, 20)),
        vocab_size=draw(st.integers(2, 40)),
        tied_embeddings=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        experts=Experts(
            count=count,
            active=draw(st.integers(1, count)),
            d_ff=8 * draw(st.integers(1, 3)),
            shared_d_ff=draw(st.sampled_from([0, 5, 16])),
            dense_layers=draw(st.integers(0, every - 1)),
            every=every,
            scores=draw(st.sampled_from(["softmax", "sigmoid"])),
            normalise=draw(st.booleans()),
            scale=draw(st.sampled_from([1.0, 2.5])),
            balance=draw(st.sampled_from(["bias", "auxiliary", "none"])),
            router_z_loss=draw(st.sampled_from([0.0, 0.1])),
            capacity_factor=draw(st.sampled_from([None, 0.4, 1.0])),
        ),
    )


def built(shape: ModelShape, seed: int = 0) -> Transformer:
    """A model with biases and gains other than those at the start, whose routers tell tokens well apart."""
    model = Transformer(shape)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + (0.0 if "bias" in name else 0.9))
            if "router" in name or "experts" in name:
                tensor.mul_(20)
    return model


def random_tokens(shape: ModelShape, batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, shape.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def by_loop(mixture: MixtureOfExperts, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a mixture computes for [B, T, d], token by token; and the auxiliary losses' mean over the tokens."""
    spec, experts = mixture.spec, mixture.experts
    rows, losses = [], []
    for sequence in x:
        logits = sequence @ mixture.router.weight.T
        scores = logits.softmax(-1) if spec.scores == "softmax" else logits.sigmoid()
        chosen = (scores + mixture.bias if spec.balance == "bias" else scores).topk(spec.active).indices
        taken = [0] * spec.count
        out = []
        for t, token in enumerate(sequence):
            total = scores[t, chosen[t]].sum() if spec.normalise else 1.0
            y = mixture.shared(token) if mixture.shared else torch.zeros_like(token)
            for e in chosen[t].tolist():
                capacity = math.inf
                if spec.capacity_factor:
                    capacity = math.ceil(round(spec.capacity_factor * len(sequence) * spec.active / spec.count, 9))
                if taken[e] < capacity:
                    inner = F.silu(experts.gate[e] @ token) * (experts.up[e] @ token)
                    y = y + spec.scale * scores[t, e] / total * (experts.down[e] @ inner)
                taken[e] += 1
            out.append(y)
        rows.append(torch.stack(out))
        loss = spec.router_z_loss * logits.logsumexp(-1).square().mean()
        if spec.balance == "auxiliary":
            # Fedus et al. 2021, equation 4, for more than one expert per token: 1 where all is even
            share = torch.bincount(chosen.flatten(), minlength=spec.count) / chosen.numel()
            mean = (scores / scores.sum(-1, keepdim=True)).mean(0)
            loss = loss + spec.auxiliary_weight * spec.count * (share * mean).sum()
        losses.append(loss)
    return torch.stack(rows), torch.stack(losses).mean()


@given(shapes(), st.integers(1, 3), st.integers(1, 7), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_output_and_gradients_are_those_of_a_loop_over_tokens(
    shape: ModelShape, batch: int, length: int, seed: int
) -> None:
    ours, theirs = mixtures(built(shape, seed))[0], mixtures(built(shape, seed))[0]
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(batch, length, shape.d_model, generator=generator) for _ in range(2))
    here, there = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours.batch_weight = batch * length
    found = ours(here)
    (found * y).mean().backward()
    expected, losses = by_loop(theirs, there)
    ((expected * y).mean() + losses).backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(here.grad, there.grad, rtol=1e-4, atol=1e-6)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad if q.grad is not None else torch.zeros_like(q), rtol=1e-4, atol=1e-6)
        assert p.grad is not None, name


@given(shapes())
@settings(max_examples=25, deadline=None)
def test_parameters_are_those_of_the_formula(shape: ModelShape) -> None:
    with torch.device("meta"):
        model = Transformer(shape)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert sum(sizes.values()) == shape.parameters
    assert shape.experts is not None
    idle = 1 - shape.experts.active / shape.experts.count
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    assert shape.active_parameters == round(shape.parameters - idle * experts)
    assert [i for i, layer in enumerate(model.layers.values()) if mixtures(layer)] == list(shape.mixture_layers)


def _grouped_flops(a: Any, b: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    # rows times matrices [count, in, out], or (backward) [out, rows] times [rows, in]
    return 2 * math.prod(a) * b[-1]


@given(shapes(), st.integers(1, 3), st.integers(2, 9))
@settings(max_examples=10, deadline=None)
def test_flops_are_those_that_pytorch_counts(shape: ModelShape, batch: int, length: int) -> None:
    assert shape.experts is not None
    shape = shape.model_copy(update={"experts": shape.experts.model_copy(update={"capacity_factor": None})})
    model, tokens = built(shape), random_tokens(shape, batch, length + 1)
    counted = {torch.ops.aten._grouped_mm: _grouped_flops}  # PyTorch's counter has no rule for it
    with patch("armillary.model.operators.common.kernels", return_value=None), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False, custom_mapping=counted) as forward:
            model(tokens[:, :-1])
        with FlopCounterMode(display=False, custom_mapping=counted) as training:
            model.loss(tokens)[0].backward()
    assert forward.get_total_flops() == batch * length * shape.forward_flops_per_token(length, "full")
    assert training.get_total_flops() == batch * length * shape.train_flops_per_token(length, "full")


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("balance", ["bias", "auxiliary"])
def test_how_a_batch_is_divided_changes_nothing(balance: str, parts: int) -> None:
    shape = with_experts(balance=balance, capacity_factor=0.8, router_z_loss=0.1)
    tokens = random_tokens(shape, 4, 17)
    courses = []
    for divided in (1, parts):
        model = built(shape)
        set_batch_weight(model, 4 * 16)
        for part in tokens.chunk(divided):
            (model.loss(part)[0] / (4 * 16)).backward()
        balance_experts(model)
        courses.append(
            [*(p.grad for p in model.parameters() if p.grad is not None), *(b.clone() for b in model.buffers())]
        )
    for one, other in zip(*courses, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_bias_brings_experts_into_balance() -> None:
    shape = with_experts(bias_rate=0.01)
    model, tokens = built(shape), random_tokens(shape, 8, 33)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def spread() -> float:
        loads = torch.stack([mixture.take_load() for mixture in mixtures(model)])
        return (loads.max(1).values / loads.double().mean(1)).max().item()

    courses = []
    set_batch_weight(model, tokens[:, 1:].numel())
    for step in range(60):
        (model.loss(tokens)[0] / tokens[:, 1:].numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (0, 59):
            courses.append(spread())
        else:
            balance_experts(model)
    assert courses[0] > 1.6 and courses[1] < 1.25


def test_a_step_of_the_bias_is_the_sign_of_what_is_missing() -> None:
    mixture = mixtures(built(with_experts(bias_rate=0.5)))[0]
    mixture.bias.zero_()
    mixture.update_bias(torch.tensor([10, 0, 4, 4, 3, 3]))
    assert mixture.bias.tolist() == [-0.5, 0.5, 0.0, 0.0, 0.5, 0.5]


def test_load_is_counted_once_per_backward_pass() -> None:
    shape = with_experts()
    model, tokens = built(shape), random_tokens(shape, 2, 9)
    with torch.no_grad():
        model.loss(tokens)  # a validation
    model.loss(tokens)  # and a forward pass without a backward pass
    x = model.embedding(tokens[:, :-1])  # type: ignore[misc]
    (mixture, *_) = mixtures(model)
    checkpoint(mixture, x, use_reentrant=False).sum().backward()  # computed twice, counted once
    assert mixture.take_load().sum() == 2 * 8 * 2


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_bf16_by_autocast_stays_near_fp32(scores: str) -> None:
    shape = with_experts(scores=scores, shared_d_ff=16)
    tokens = random_tokens(shape, 4, 33)
    exact = built(shape).loss(tokens)[0].item()
    half = built(shape)
    with torch.autocast("cpu", torch.bfloat16):
        objective, _ = half.loss(tokens)
    objective.backward()
    assert objective.item() == pytest.approx(exact, rel=5e-3)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in half.parameters())


def test_text_comes_out_of_a_mixture() -> None:
    model = built(with_experts(shared_d_ff=8, scores="sigmoid"))
    answers = [generate(model, [1, 2], Sampling(max_new_tokens=5, temperature=t, top_p=0.9), None) for t in (0.0, 0.8)]
    assert [len(answer) for answer in answers] == [5, 5]


def test_own_weights_have_the_biases(tmp_path: Path) -> None:
    model = built(with_experts())
    save_weights(model, tmp_path / "model.safetensors")
    loaded = load_weights(tmp_path / "model.safetensors", model.shape)
    assert {k: v.tolist() for k, v in loaded.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }
    assert any("bias" in name for name in loaded.state_dict())
    loaded.loss(random_tokens(model.shape, 2, 9))[0].backward()
    balance_experts(loaded)


def test_capacity_is_that_of_the_decimal_that_was_written() -> None:
    mixture = mixtures(built(with_experts(count=6, active=5, capacity_factor=0.4)))[0]
    whole = torch.tensor([[[0, 1, 2, 3, 4]] * 3])
    assert mixture._kept(whole).tolist() == [[[True] * 5, [False] * 5, [False] * 5]]


# -- the folder of transformers

EXPORTED = {
    "as Qwen3": {"balance": "auxiliary"},
    "first layer dense, weights as they are": {"balance": "none", "dense_layers": 1, "normalise": False},
    "every second layer": {"balance": "none", "every": 2, "active": 1},
}


@pytest.mark.parametrize("name", EXPORTED)
def test_transformers_computes_the_same_logits(
    name: str, tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    model = built(with_experts(**EXPORTED[name]))
    export_hf(model, tmp_path / "ours", tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=64)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(theirs).__name__ == "Qwen3MoeForCausalLM"
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert sum(p.numel() for p in theirs.parameters()) == model.shape.parameters
    tokens = random_tokens(model.shape, 2, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        again = import_hf(tmp_path / folder)
        assert again.shape.mixture_layers == model.shape.mixture_layers
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_merged_experts_are_read(tmp_path: Path, tokenizer_file: Path) -> None:
    model = built(with_experts(balance="none"))
    export_hf(model, tmp_path / "model", tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=64)
    path = tmp_path / "model" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if ".experts." not in name}
    for i, mixture in enumerate(mixtures(model)):
        prefix = f"model.layers.{i}.mlp.experts"
        tensors[f"{prefix}.gate_up_proj"] = torch.cat((mixture.experts.gate, mixture.experts.up), 1).detach()
        tensors[f"{prefix}.down_proj"] = mixture.experts.down.detach().clone()
    save_file(tensors, path)
    again = import_hf(tmp_path / "model")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "a bias chooses the experts"),
        ({"balance": "none", "scores": "sigmoid"}, "scores are a sigmoid"),
        ({"balance": "none", "shared_d_ff": 8}, "there is a shared expert"),
        ({"balance": "none", "scale": 2.0}, "scale is not 1"),
        ({"balance": "none", "capacity_factor": 1.0}, "capacity_factor drops tokens"),
    ],
)
def test_what_no_class_computes_is_not_exported(
    fields: dict[str, Any], said: str, tmp_path: Path, tokenizer_file: Path
) -> None:
    model = built(with_experts(**fields))
    with pytest.raises(UsageError, match=said):
        export_hf(model, tmp_path / "model", tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=64)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"active": 7}, "active (7) must be at most the number of experts (count 6)"),
        ({"dense_layers": 3}, "none of the 3 layers has any"),
        ({"d_ff": 12}, "multiple of 8"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        with_experts(**fields)
    assert said in str(caught.value)
