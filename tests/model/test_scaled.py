"""Activation-aware scaling: the same function before quantization, and less lost after it where channels differ."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from armillary.model import ConvertOptions, Transformer, build, convert, export_hf, open_model
from armillary.model.weights.scaled import scaled
from armillary.recipe import ArmillaryError, Experts, ModelShape, UsageError

torch.set_num_threads(1)
SIZES = {"n_layers": 2, "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "d_ff": 96, "vocab_size": 320}
TOKENS = torch.randint(0, 320, (8, 32), generator=torch.Generator().manual_seed(0))


def exported(folder: Path, tokenizer_file: Path, **changed: object) -> Path:
    """A model of which a few channels are much stronger than the others, as in large models."""
    model = Transformer(ModelShape(**{**SIZES, **changed}))  # type: ignore[arg-type]
    model.init_weights(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_norm.weight") and parameter.shape == (64,):
                parameter[::16] *= 20
            elif parameter.ndim == 2:
                parameter.mul_(3)
    export_hf(model, folder, tokenizer_file=tokenizer_file, end_token="<|end|>", context_length=64)
    return folder


@pytest.mark.parametrize("changed", [{}, {"qk_norm": True}, {"biases": ("q", "k", "v")}, {"tied_embeddings": True}])
def test_scaling_changes_nothing_before_quantization(
    changed: dict[str, object], tmp_path: Path, tokenizer_file: Path
) -> None:
    source = open_model(exported(tmp_path / "hf", tokenizer_file, **changed))
    found = scaled(source, TOKENS, 4)
    assert not torch.equal(
        found.tensor("layers.0.attention_norm.weight"), source.tensor("layers.0.attention_norm.weight")
    )
    with torch.no_grad():
        expected = build(source)(TOKENS)
        assert (build(found)(TOKENS) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_less_is_lost_where_channels_differ(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = exported(tmp_path / "hf", tokenizer_file)
    for name, options in (
        ("plain", ConvertOptions("huggingface", quantize="int4")),
        ("scaled", ConvertOptions("huggingface", quantize="int4", check=True, calibration=lambda source: TOKENS)),
    ):
        convert(folder, tmp_path / name, options)
    others = torch.randint(0, 320, (4, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = build(open_model(folder))(others)
        plain, less = (
            (build(open_model(tmp_path / name))(others) - expected).square().mean() for name in ("plain", "scaled")
        )
    assert less < 0.8 * plain


def test_experts_stay_and_other_kinds_are_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    experts = Experts(count=4, active=2, d_ff=32, balance="none")
    source = open_model(exported(tmp_path / "moe", tokenizer_file, qk_norm=True, experts=experts))
    found = scaled(source, TOKENS, 4)
    for name in ("layers.0.feed_forward_norm.weight", "layers.0.feed_forward.experts.gate"):
        assert torch.equal(found.tensor(name), source.tensor(name))
    with pytest.raises(UsageError, match="--calibrate: only for --quantize int8 or int4"):
        convert(tmp_path / "moe", tmp_path / "out", ConvertOptions("huggingface", calibration=lambda source: TOKENS))


def test_activations_that_are_not_finite_are_named(tmp_path: Path, tokenizer_file: Path) -> None:
    model = build(open_model(exported(tmp_path / "hf", tokenizer_file)))
    with torch.no_grad():
        model.get_parameter("layers.0.attention.out.weight")[0, 0] = float("nan")
    from armillary.model.weights.source import InMemory

    with pytest.raises(ArmillaryError, match=r"layers\.0\.feed_forward has activations that are not finite"):
        scaled(InMemory(model), TOKENS, 4)
