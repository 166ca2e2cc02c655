"""Blocks by kind: counts against built models, what is refused, what a stack and an outside format make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import new_blocks
from armillary.model import Transformer, export_hf
from armillary.model.blocks import register_attention
from armillary.model.places import Places
from armillary.model.rotary import rotary_tables
from armillary.recipe import Latent, ModelShape, UsageError, register_block

SIZES = {"n_layers": 2, "d_model": 16, "n_heads": 4, "n_kv_heads": 4, "head_dim": 8, "d_ff": 24, "vocab_size": 40}
BLOCKS: dict[str, dict[str, Any]] = {
    "gated": {"attention": "gated"},
    "latent": {"attention": {"kind": "latent", "kv_rank": 12, "rope_head_dim": 4}},
    "latent queries too, wide values": {
        "attention": {"kind": "latent", "kv_rank": 12, "rope_head_dim": 2, "value_head_dim": 8, "q_rank": 10}
    },
    "relu2": {"feed_forward": "relu2"},
    "shifted relu": {"feed_forward": {"kind": "shifted-relu", "shift": 0.1}},
}
LATENT = BLOCKS["latent"]


def built(blocks: dict[str, Any]) -> Transformer:
    model = Transformer(ModelShape(**SIZES, **blocks))
    model.init_weights(3)
    return model


@pytest.mark.parametrize("name", BLOCKS)
def test_parameters_are_those_of_the_formula(name: str) -> None:
    model = built(BLOCKS[name])
    assert sum(p.numel() for p in model.parameters()) == model.shape.parameters
    assert sum(p.numel() for p in model.layers.parameters()) + 16 == model.shape.non_embedding_parameters


@pytest.mark.parametrize("name", BLOCKS)
def test_flops_are_those_that_pytorch_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armillary.model.operators.common.kernels", lambda dtype: None)  # it cannot look into them
    model, tokens = built(BLOCKS[name]), torch.zeros((2, 10), dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens)
    counted = counter.get_total_flops()
    if isinstance(model.shape.attention, Latent):  # the sum over values that are padded to the width of keys
        padded = model.shape.head_dim - model.shape.attention.value_dim(model.shape)
        counted -= 2 * 10 * 10 * 2 * model.shape.n_layers * model.shape.n_heads * padded
    assert counted == 2 * 10 * model.shape.forward_flops_per_token(10, "full")


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_learns_and_sees_no_later_token(name: str) -> None:
    model = built(BLOCKS[name])
    tokens = torch.arange(48).view(2, 24) % 40
    changed = tokens.clone()
    changed[:, 12:] = 7
    with torch.no_grad():
        assert torch.equal(model(tokens)[:, :12], model(changed)[:, :12])
    optimizer = torch.optim.AdamW(model.optimizer_groups(0.1), lr=1e-2)
    losses = []
    for _ in range(20):
        loss, _ = model.loss(tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", BLOCKS)
def test_an_outside_format_refuses_it_by_name(name: str, tmp_path: Path, tokenizer_file: Path) -> None:
    with pytest.raises(UsageError, match=rf"{next(iter(BLOCKS[name]))}: kind '.*' is not supported by Llama"):
        out = {"tokenizer_file": tokenizer_file, "end_token": "<|end|>", "context_length": 32}
        export_hf(built(BLOCKS[name]), tmp_path / "out", **out)
    assert not (tmp_path / "out").exists()


def test_a_shape_has_one_form() -> None:
    plain = ModelShape(**SIZES)
    assert ModelShape(**SIZES, attention="grouped-query", feed_forward={"kind": "swiglu"}) == plain
    assert "attention" not in plain.model_dump()
    other = ModelShape(**SIZES, **BLOCKS["shifted relu"])
    assert ModelShape.model_validate_json(other.model_dump_json()) == other
    assert other.feed_forward == new_blocks.ShiftedReLU(shift=0.1)


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [
        ({"attention": "gatd"}, "kind 'gatd' is not registered; registered: 'grouped-query'"),
        ({"attention": "swiglu"}, "kind 'swiglu' is not registered"),
        ({"feed_forward": {"shift": 1.0}}, "has no kind; registered: 'swiglu'"),
        ({"feed_forward": {"kind": "shifted-relu", "shfit": 1.0}}, "shfit"),
        ({"attention": {"kind": "latent", "rope_head_dim": 4}}, "kv_rank"),
        ({**LATENT, "n_kv_heads": 2}, r"n_kv_heads \(2\) must be n_heads \(4\)"),
        ({**LATENT, "qk_norm": True}, "qk_norm belongs to kind 'grouped-query'"),
        ({**LATENT, "head_dim": 4}, r"rope_head_dim \(4\) must be less than head_dim \(4\)"),
        ({"attention": LATENT["attention"] | {"value_head_dim": 9}}, r"value_head_dim \(9\) must be at most head_dim"),
    ],
)
def test_what_is_no_block_is_refused(blocks: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        ModelShape(**(SIZES | blocks))


def test_a_kind_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'gated' is already registered"):
        register_block("gated")(new_blocks.Gated)
    with pytest.raises(ValueError, match="'gated' is already registered"):
        register_attention("gated")(new_blocks.GatedAttention)


def test_a_kind_without_module_is_named() -> None:
    register_block("only counted")(type("OnlyCounted", (new_blocks.Gated,), {}))
    shape = ModelShape(**SIZES, attention=new_blocks.Gated())
    object.__setattr__(shape.attention, "kind", "only counted")
    with pytest.raises(UsageError, match="registered for a block of kind 'only counted'; registered: gated"):
        Transformer(shape)


@torch.no_grad()
def test_latent_attention_is_that_of_the_paper() -> None:
    """Equations 9 to 19 of arXiv 2405.04434, head by head and query by query."""
    shape = ModelShape(**SIZES, **BLOCKS["latent queries too, wide values"])
    model = built(BLOCKS["latent queries too, wide values"])
    block = model.layers["0"].attention
    for parameter in block.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    x = torch.randn(9, 16, generator=torch.Generator().manual_seed(1))
    cos, sin = rotary_tables(shape, 9)
    weights = dict(block.named_parameters())

    def norm(latent: torch.Tensor, name: str) -> torch.Tensor:
        return latent * (latent.square().mean(-1, keepdim=True) + shape.norm_eps).rsqrt() * weights[name]

    def rotate(pair: torch.Tensor, t: int) -> torch.Tensor:
        angle = torch.tensor(float(t))  # of the first pair: theta to the power of 0
        c, s = angle.cos(), angle.sin()
        return torch.stack((pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s))

    queries = norm(x @ weights["q_down.weight"].T, "q_norm.weight") @ weights["q.weight"].T
    latent = norm(x @ weights["kv_down.weight"].T, "kv_norm.weight")
    keys, values = latent @ weights["k.weight"].T, latent @ weights["v.weight"].T
    shared = x @ weights["k_rope.weight"].T
    mixed = []
    for head in range(4):
        q, k, v = queries[:, 8 * head :][:, :8], keys[:, 6 * head :][:, :6], values[:, 8 * head :][:, :8]
        # dimensions 0 and 4 of a head are the pair that is turned
        q_rope = torch.stack([rotate(q[t, [0, 4]], t) for t in range(9)])
        k_rope = torch.stack([rotate(shared[t], t) for t in range(9)])
        scores = (q[:, [1, 2, 3, 5, 6, 7]] @ k.T + q_rope @ k_rope.T) / 8**0.5
        scores = scores.masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf)
        mixed.append(scores.softmax(-1) @ v)
    expected = torch.cat(mixed, 1) @ weights["out.weight"].T
    assert torch.allclose(block(x[None], Places(cos, sin))[0], expected, rtol=1e-4, atol=1e-4)
