"""Stretched rotary positions: what transformers computes, its configuration both ways, gradients, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from armillary.model import Places, Transformer, export_hf, import_hf
from armillary.model.operators import attention, prepare
from armillary.model.operators.common import native
from armillary.model.rotary import rotary_tables
from armillary.recipe import ModelShape, RopeScaling

SIZES: dict[str, Any] = {
    "n_layers": 2, "d_model": 48, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "d_ff": 80, "vocab_size": 320,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "ntk": {"factor": 4.0},
    "ntk with attention": {"factor": 4.0, "attention_factor": 1.2},
    "yarn": {"factor": 4.0, "original_length": 32},
    "yarn with options": {
        "factor": 8.0, "original_length": 64, "attention_factor": 1.3, "beta_fast": 8.0, "beta_slow": 2.0
    },
    "llama3": {"factor": 8.0, "original_length": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}  # fmt: skip


def shaped(name: str, qk_norm: bool = False) -> ModelShape:
    scaling = RopeScaling(kind=name.split(maxsplit=1)[0], **KINDS[name])  # type: ignore[arg-type]
    return ModelShape(**SIZES, qk_norm=qk_norm, rope_theta=500.0, rope_scaling=scaling)


@pytest.mark.parametrize("qk_norm", [False, True], ids=["llama", "qwen3"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("older", [False, True], ids=["", "as-before-5"])
def test_transformers_computes_the_same_logits(
    name: str, qk_norm: bool, older: bool, tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    model = Transformer(shaped(name, qk_norm))
    model.init_weights(1)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("q.weight", "k.weight")) and not qk_norm:
            parameter.data *= 5  # attention that is far from even
    export_hf(model, tmp_path / "model", tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=128)
    config = tmp_path / "model" / "config.json"
    fields = json.loads(config.read_text())
    # both ways of saying it are written; each is enough
    for key in ["rope_parameters"] if older else ["rope_scaling", "rope_theta"]:
        fields.pop(key, None)
    config.write_text(json.dumps(fields))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokens = torch.randint(0, 320, (2, 128), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = model(tokens)
        torch.testing.assert_close(theirs(tokens).logits, logits, rtol=0, atol=1e-5)
        again = import_hf(tmp_path / "model")
        torch.testing.assert_close(again(tokens), logits, rtol=0, atol=1e-6)
    plain = Transformer(model.shape.model_copy(update={"rope_scaling": None}))
    plain.load_state_dict(model.state_dict())
    assert (plain(tokens) - logits).abs().max() > 1e-3  # the test would see it if nothing were stretched


def test_a_factor_of_one_stretches_nothing() -> None:
    plain = rotary_tables(ModelShape(**SIZES), 64)
    for kind, options in (("linear", {}), ("ntk", {}), ("yarn", {"original_length": 32})):
        shape = ModelShape(**SIZES, rope_scaling=RopeScaling(kind=kind, factor=1.0, **options))  # type: ignore[arg-type]
        for one, other in zip(rotary_tables(shape, 64), plain, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_kernels_take_the_attention_factor_also_backwards() -> None:
    """Tables that are no rotation any more: the gradient must not rely on their being one."""
    tables = rotary_tables(shaped("yarn with options"), 24)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 24, n * 16, generator=generator).requires_grad_() for n in (4, 2, 2))
    assert native(q)
    found = attention(q, k, v, Places(*tables))
    turned = [x.transpose(1, 2) for x in prepare(q, k, v, Places(*tables))]
    expected = torch.nn.functional.scaled_dot_product_attention(*turned, is_causal=True, enable_gqa=True)
    expected = expected.transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "yarn", "factor": 4.0}, "context length of the first training"),
        ({"kind": "linear", "factor": 4.0, "original_length": 32}, "belongs to kind 'yarn' or 'llama3'"),
        ({"kind": "linear", "factor": 4.0, "attention_factor": 1.1}, "belongs to kind 'ntk' or 'yarn'"),
        ({"kind": "linear", "factor": 0.5}, "greater than or equal to 1"),
        ({"kind": "yarn", "factor": 4.0, "original_length": 8, "beta_slow": 40.0}, "less than beta_fast"),
        ({"kind": "dynamic", "factor": 4.0}, "'linear', 'ntk', 'yarn', 'llama3' or 'telechat2'"),
    ],
)
def test_what_cannot_be_stretched_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RopeScaling(**fields)
