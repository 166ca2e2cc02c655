"""Weight-only quantization: the layout of compressed-tensors, round trips, and what is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from armillary.model import ConvertOptions, Transformer, build, convert, export_hf, open_model
from armillary.model.weights.quantized import _rounded, pack, searched, unpack, widest
from armillary.recipe import ArmillaryError, Experts, ModelShape, UsageError

SIZES = {"n_layers": 2, "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "d_ff": 96, "vocab_size": 320}
SHAPES = {
    "llama": {},
    "telechat2": {
        "biases": ("out", "down"),
        "rope_scaling": {"kind": "telechat2", "original_length": 64, "base_length": 64},
    },
    "experts": {"qk_norm": True, "experts": Experts(count=4, active=2, d_ff=32, balance="none")},
    "channel": {"d_model": 40, "head_dim": 8, "d_ff": 56},
}


def exported(name: str, folder: Path, tokenizer_file: Path) -> tuple[Transformer, Path]:
    model = Transformer(ModelShape(**{**SIZES, **SHAPES[name]}))
    model.init_weights(0)
    export_hf(model, folder, tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=64)
    return model, folder


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_that_of_compressed_tensors(bits: int) -> None:
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 64), generator=torch.Generator().manual_seed(0))
    numbers = pack(values.to(torch.int32), bits)
    assert numbers.dtype == torch.int32 and numbers.shape == (3, 2 * bits)
    assert torch.equal(unpack(numbers, bits), values)
    # by hand: the first number is in the lowest bits, with an offset
    first = sum((int(values[1, i]) + 2 ** (bits - 1)) << (bits * i) for i in range(32 // bits))
    assert int(numbers[1, 0]) % 2**32 == first


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("quantize", "steps"), [("int8", 255), ("int4", 15)])
def test_every_weight_is_within_half_a_step(
    name: str, quantize: str, steps: int, tmp_path: Path, tokenizer_file: Path
) -> None:
    model, folder = exported(name, tmp_path / "hf", tokenizer_file)
    found = convert(folder, tmp_path / "small", ConvertOptions("huggingface", quantize=quantize, check=True))
    assert found.dtype == quantize and found.relative is not None and found.relative < (0.05 if steps > 15 else 0.6)
    back = build(open_model(tmp_path / "small")).state_dict()
    changed = 0
    for key, value in model.state_dict().items():
        step = value.abs().max() * 2 / steps
        # at 4 bits, the largest numbers of a group may be cut off by two fifths of themselves
        assert (back[key] - value).abs().max() <= (step * 0.51 if steps > 15 else value.abs().max() * 0.41), key
        changed += int(not torch.equal(back[key], value))
        if value.ndim == 1 or key.startswith(("embedding", "output")) or "router" in key:
            assert torch.equal(back[key], value), key
    assert changed == 7 * 2
    config = json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert (group["weights"]["strategy"] == "channel") == (name == "channel") and "lm_head" in config["ignore"]
    # what was quantized converts to any other format
    convert(tmp_path / "small", tmp_path / "native", ConvertOptions("native", "float32"))
    again = build(open_model(tmp_path / "native")).state_dict()
    assert all(torch.equal(back[key], again[key]) for key in back)


def test_scales_are_searched_at_four_bits(tmp_path: Path) -> None:
    """The squared error is less than with the scale of the largest number, in every group."""
    values = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    values[:, ::64] *= 3
    grouped = values.view(64, -1, 64)

    def error(scales: torch.Tensor) -> torch.Tensor:
        restored = _rounded(values, scales, 4).view_as(grouped) * scales[..., None]
        return (restored - grouped).square().sum(-1)

    plain, found = error(widest(values, 4, 64)), error(searched(values, 4, 64))
    assert (found <= plain + 1e-6).all() and found.sum() < 0.9 * plain.sum()
    assert torch.equal(widest(values, 8, 64), grouped.abs().amax(-1) / 127.5)
    assert searched(torch.zeros(2, 64), 4, 64).min() > 0


def test_a_quantized_folder_that_is_damaged_or_another_is_named(tmp_path: Path, tokenizer_file: Path) -> None:
    _, folder = exported("llama", tmp_path / "hf", tokenizer_file)
    convert(folder, tmp_path / "small", ConvertOptions("huggingface", quantize="int4"))
    path = tmp_path / "small" / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.self_attn.q_proj.weight"
    for part in ("_scale", "_shape"):
        save_file({key: value for key, value in tensors.items() if key != name + part}, path)
        with pytest.raises(ArmillaryError, match=f"missing {name}{part}"):
            open_model(tmp_path / "small")
    packed, scale = tensors[f"{name}_packed"], tensors[f"{name}_scale"]
    for part, value in (
        ("shape", torch.tensor([64, 999])),
        ("shape", torch.tensor(64)),
        ("shape", torch.tensor([64.0, float("nan")])),
        ("scale", torch.zeros(scale.shape[0], 0)),
        ("scale", torch.tensor(1.0)),
        ("packed", packed.flatten()),
        ("packed", packed.float()),
        ("packed", packed.long()),
    ):
        save_file({**tensors, f"{name}_{part}": value}, path)
        with pytest.raises(ArmillaryError, match=f"{name}_shape is"):
            open_model(tmp_path / "small")
    save_file(tensors, path)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    other: list[Any] = [
        {"quant_method": "gptq"},
        {**config["quantization_config"], "format": "int-quantized"},
        {**config["quantization_config"], "config_groups": {}},
        "int4",
    ]
    for quantization in other:
        (tmp_path / "small" / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
        with pytest.raises(UsageError, match="quantization_config"):
            open_model(tmp_path / "small")


def test_what_cannot_be_quantized_is_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    model = Transformer(ModelShape(**{**SIZES, "d_ff": 90}))
    model.init_weights(0)
    export_hf(model, tmp_path / "hf", tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=64)
    with pytest.raises(UsageError, match="rows of 90 numbers"):
        convert(tmp_path / "hf", tmp_path / "out", ConvertOptions("huggingface", quantize="int4"))
    for to, quantize in (("huggingface", "q8_0"), ("native", "int8"), ("telechat2", "int4")):
        with pytest.raises(UsageError, match="--quantize "):
            convert(tmp_path / "hf", tmp_path / "out", ConvertOptions(to, quantize=quantize))


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_transformers_with_compressed_tensors_computes_the_same(
    quantize: str, tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("compressed_tensors")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    _, folder = exported("telechat2", tmp_path / "hf", tokenizer_file)
    convert(folder, tmp_path / "small", ConvertOptions("huggingface", quantize=quantize))
    settings = transformers.CompressedTensorsConfig(run_compressed=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small", quantization_config=settings)
    tokens = torch.randint(0, 320, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = build(open_model(tmp_path / "small"))(tokens)
        assert (theirs(tokens).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
