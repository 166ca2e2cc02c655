"""TeleChat2: the published code's logits, loss and gradients, and folders that are refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from armillary.model import Transformer, build, open_model
from armillary.model.weights.telechat2 import telechat2_pieces
from armillary.recipe import ArmillaryError, ModelShape, RopeScaling, UsageError
from vectors import vectors

SHAPE = ModelShape(
    n_layers=2,
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    vocab_size=96,
    norm_eps=1e-8,
    rope_scaling=RopeScaling(kind="telechat2", original_length=32, base_length=16),
    biases=("out", "down"),
)
CONFIG = {
    "architectures": ["TELECHAT2ForCausalLM"],
    "model_type": "telechat",
    "n_layer": 2,
    "hidden_size": 32,
    "n_head": 4,
    "num_key_value_heads": 2,
    "ffn_hidden_size": 48,
    "vocab_size": 96,
    "layer_norm_epsilon": 1e-8,
    "training_seqlen": 32,
    "base_seqlen": 16,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}


def drawn(shape: ModelShape) -> dict[str, torch.Tensor]:
    """Random tensors of TeleChat2's names and sizes; gains around one."""
    source = torch.Generator().manual_seed(0)
    tensors = {piece.name: 0.1 * torch.randn(piece.size, generator=source) for piece in telechat2_pieces(shape)}
    return {name: 1 + t if "norm" in name or "ln_f" in name else t for name, t in tensors.items()}


def released(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **changed: Any) -> Path:
    folder.mkdir()
    config = {key: value for key, value in {**CONFIG, **changed}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(drawn(SHAPE) if tensors is None else tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["gqa", "mha", "long"])
def test_the_published_codes_logits_loss_and_gradients(name: str) -> None:
    folder = vectors("telechat2", name)
    expected = load_file(folder / "expected.safetensors")
    model = build(open_model(folder))
    tokens = expected["tokens"]
    with torch.no_grad():
        off = (model(tokens) - expected["logits"]).abs().max() / expected["logits"].abs().max()
    assert off < 1e-5
    # their sequence is one token longer than its predictions, and its length is what scales the positions
    loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    assert abs(loss.item() - expected["loss"].item()) < 1e-5
    if name != "long":
        assert abs((model.loss(tokens)[1] / tokens[:, 1:].numel()).item() - expected["loss"].item()) < 1e-5
    if name == "long":  # of the kind that acts there, so that this test cannot pass without it
        assert (
            tokens.shape[1] > 32 and model.shape.at_length(100).rope_scaling != model.shape.at_length(32).rope_scaling
        )
    state = {name: parameter.grad for name, parameter in model.named_parameters()}
    compared = 0
    for piece in telechat2_pieces(model.shape):
        if (theirs := expected.get(f"grad.{piece.name}")) is not None:
            ours = [state[part] for part, _ in piece.ours]
            grad = ours[0] if piece.join is None else piece.join(ours)
            assert (grad - theirs).abs().max() / theirs.abs().max() < 1e-4, piece.name
            compared += 1
    assert compared == sum(key.startswith("grad.") for key in expected)


def by_hand(tensors: dict[str, torch.Tensor], tokens: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """The model as the facts of the format state it, in fp64, for sequences within the training length."""
    t = {name.removeprefix("transformer."): tensor.double() for name, tensor in tensors.items()}
    heads, groups = config["n_head"], config["num_key_value_heads"] or config["n_head"]
    dim, length = config["hidden_size"] // heads, tokens.shape[1]

    def norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + config["layer_norm_epsilon"]).rsqrt() * gain

    longest = max(length, config["training_seqlen"])
    ratio = torch.tensor(longest / config["base_seqlen"]).log2()
    alpha = max(2 ** int((ratio + 1).ceil()) - 1, 1)
    base = 10_000 * alpha ** (dim / (dim - 2))
    angles = torch.outer(torch.arange(length).double(), 1 / base ** (torch.arange(0, dim, 2).double() / dim))
    angles = torch.cat([angles, angles], -1)
    scale = 0.1 * torch.tensor(longest / config["training_seqlen"]).double().log() + 1

    def turn(x: torch.Tensor) -> torch.Tensor:
        half = torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1)
        return (x * angles.cos() + half * angles.sin()) * scale

    x = t["word_embeddings.weight"][tokens]
    for i in range(config["n_layer"]):
        at = f"h.{i}."
        y = norm(x, t[at + "input_layernorm.weight"])
        q = (y @ t[at + "self_attention.query.weight"].T).view(*tokens.shape, heads, dim).transpose(1, 2)
        both = (y @ t[at + "self_attention.key_value.weight"].T).view(*tokens.shape, groups, 2, dim).transpose(1, 2)
        k, v = (part.repeat_interleave(heads // groups, 1) for part in both.unbind(3))
        scores = turn(q) @ turn(k).mT / dim**0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + mixed @ t[at + "self_attention.dense.weight"].T + t[at + "self_attention.dense.bias"]
        y = norm(x, t[at + "post_attention_layernorm.weight"])
        gate, up = (y @ t[f"{at}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        hidden = torch.nn.functional.silu(gate) * up
        x = x + hidden @ t[at + "mlp.down_proj.weight"].T + t[at + "mlp.down_proj.bias"]
    return norm(x, t["ln_f.weight"]) @ t["lm_head.weight"].T


@pytest.mark.parametrize("heads", [2, None])
@pytest.mark.parametrize("length", [20, 32, 33, 50, 70])
def test_the_facts_of_the_format_at_any_length(heads: int | None, length: int, tmp_path: Path) -> None:
    shape = SHAPE.model_copy(update={"n_kv_heads": heads or 4})
    tensors = drawn(shape)
    model = build(open_model(released(tmp_path / "model", tensors, num_key_value_heads=heads)))
    assert model.shape == shape
    tokens = torch.randint(0, 96, (2, length), generator=torch.Generator().manual_seed(1))
    expected = by_hand(tensors, tokens, {**CONFIG, "num_key_value_heads": heads})
    with torch.no_grad():
        for _ in range(2):  # a shorter sequence between must not leave its tables behind
            assert (model(tokens) - expected).abs().max() < 1e-5 * expected.abs().max()
            model(tokens[:, :5])


def test_a_release_without_the_prefix(tmp_path: Path) -> None:
    tensors = drawn(SHAPE)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    one, other = (
        build(open_model(released(tmp_path / n, t))).state_dict() for n, t in (("one", tensors), ("other", bare))
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "change",
    [
        {"apply_residual_connection_post_layernorm": True},
        {"embed_layernorm": True},
        {"logn": True},
        {"rope_scaling": {"type": "linear", "factor": 2}},
        {"use_qk_norm": True},
        {"n_routed_experts": 8},
        {"n_layer": "absent"},
        {"training_seqlen": "absent"},
        {"n_head": 5},
        {"num_key_value_heads": 3},
        {"ffn_hidden_size": "wide"},
        {"hidden_size": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_configuration_that_is_not_computed_is_refused_by_its_key(change: dict[str, Any], tmp_path: Path) -> None:
    folder = released(tmp_path / "model", **change)
    with pytest.raises(UsageError) as caught:
        open_model(folder)
    key = next(iter(change))
    assert str(folder / "config.json") in str(caught.value)
    assert key in str(caught.value) or (key == "num_key_value_heads" and "n_kv_heads" in str(caught.value))


@pytest.mark.parametrize("key", ["n_layer", "hidden_size", "n_head", "num_key_value_heads", "training_seqlen"])
@pytest.mark.parametrize("value", ["32", True, -1, [2]])
def test_a_wrong_type_is_named_with_its_value(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{key} is {value!r}; expected a positive integer")):
        open_model(released(tmp_path / "model", **{key: value}))


def test_tensors_that_do_not_belong_are_named(tmp_path: Path) -> None:
    tensors = drawn(SHAPE)
    tensors["transformer.h.0.self_attention.q_norm.weight"] = torch.ones(8)
    tensors["transformer.ln_f.weight"] = torch.ones(31)
    del tensors["transformer.h.1.mlp.down_proj.bias"]
    with pytest.raises(ArmillaryError) as caught:
        open_model(released(tmp_path / "model", tensors))
    assert "transformer.ln_f.weight is [31] and should be [32]" in str(caught.value)
    assert "missing transformer.h.1.mlp.down_proj.bias" in str(caught.value)
    assert "unexpected transformer.h.0.self_attention.q_norm.weight" in str(caught.value)


def test_generation_computes_the_same_within_the_training_length_and_refuses_more(tmp_path: Path) -> None:
    from armillary.generate import Sampling
    from armillary.generate.native import generate

    model = build(open_model(released(tmp_path / "model")))
    found = generate(model, [5, 6, 7], Sampling(max_new_tokens=20), end_token=None)
    tokens = torch.tensor([[5, 6, 7]])
    for _ in range(20):
        with torch.no_grad():
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    assert found == tokens[0, 3:].tolist()
    with pytest.raises(UsageError, match="longer than the 32 tokens"):
        generate(model, [5] * 20, Sampling(max_new_tokens=20), end_token=None)


def test_every_bias_counts_and_draws_zero() -> None:
    shape = SHAPE.model_copy(update={"biases": ("q", "k", "v", "out", "gate", "up", "down")})
    model = Transformer(shape)
    model.init_weights(0)
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters
    assert all(not parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))
    assert ModelShape.model_validate({**shape.model_dump(), "biases": ["down", "q", "q"]}).biases == ("q", "down")
