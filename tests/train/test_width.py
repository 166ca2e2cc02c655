"""The coordinate check of muP (Yang et al. 2022, appendix D.1): what training changes does not move with the width."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from armillary.model import Transformer
from armillary.optim import LocalOptimizer
from armillary.recipe import MixturePhase, ModelShape, OptimizerSpec, RunSpec

WIDTHS = (64, 128, 256, 512)
STEPS = 3


def activations(model: Transformer, tokens: Tensor) -> dict[str, Tensor]:
    """What every block adds to the residual stream, the stream after every layer, and the logits."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            seen[name] = sum(output) if isinstance(output, tuple) else output

        return hook

    hooks = []
    for number, layer in model.layers.items():
        hooks += [
            layer.attention.register_forward_hook(keep(f"attention {number}")),
            layer.feed_forward.register_forward_hook(keep(f"feed forward {number}")),
            layer.register_forward_hook(keep(f"stream {number}")),
        ]
    with torch.no_grad():
        seen["logits"] = model(tokens)
    for hook in hooks:
        hook.remove()
    return seen


def changes(shape: ModelShape, optimizer: OptimizerSpec) -> dict[str, float]:
    """By how much some steps on the same batch change each activation: mean of the absolute values."""
    spec = RunSpec(
        corpus="none",
        model=shape,
        context_length=32,
        batch_sequences=4,
        steps=STEPS,
        mixture=(MixturePhase(start_step=0, weights={"text": 1.0}),),
        optimizer=optimizer,
        seed=3,
    )
    model = Transformer(shape)
    model.init_weights(spec.seed, optimizer)
    steps = LocalOptimizer(model.named_parameters(), spec)
    tokens = torch.randint(shape.vocab_size, (4, 33), generator=torch.Generator().manual_seed(1))
    before = activations(model, tokens[:, :-1])
    for _ in range(STEPS):
        model.loss(tokens)[0].backward()
        steps.step(optimizer.lr)
    after = activations(model, tokens[:, :-1])
    return {name: float((after[name] - before[name]).abs().mean()) for name in before}


def shape(width: int, **other: Any) -> ModelShape:
    fields: dict[str, Any] = {
        "n_layers": 2,
        "d_model": width,
        "n_heads": width // 16,
        "n_kv_heads": width // 16,
        "head_dim": 16,
    }
    return ModelShape(**{**fields, "d_ff": 2 * width, "vocab_size": 64, **other})


def growth(optimizer: OptimizerSpec, widths: tuple[int, int], grow_heads: bool, **other: Any) -> dict[str, float]:
    """How much more the same training changes each activation of the wider model."""
    narrow, wide = (
        changes(shape(width, **other, **(four_heads(width) if grow_heads else {})), optimizer) for width in widths
    )
    return {name: wide[name] / narrow[name] for name in narrow}


def four_heads(width: int) -> dict[str, int]:
    return {"n_heads": 4, "n_kv_heads": 4, "head_dim": width // 4}


@pytest.mark.parametrize("width", [128, 256, pytest.param(512, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("grow_heads", "other"),
    [(False, {}), (False, {"tied_embeddings": True}), (True, {}), (True, {"qk_norm": True})],
    ids=["more heads", "tied", "larger heads", "larger heads with QK-norm"],
)
def test_what_training_changes_does_not_move_with_the_width(
    width: int, grow_heads: bool, other: dict[str, Any]
) -> None:
    """From width 64 on: within a factor of 2 on the residual stream and in the logits, of 5 in each block."""
    optimizer = OptimizerSpec(lr=1e-2, base_width=64, base_head_dim=16)
    for name, factor in growth(optimizer, (64, width), grow_heads, **other).items():
        limit = 2 if name.startswith(("stream", "logits")) else 5
        assert 1 / limit < factor < limit, name


@pytest.mark.parametrize("width", [128, 256, pytest.param(512, marks=pytest.mark.slow)])
def test_without_transfer_it_moves(width: int) -> None:
    found = growth(OptimizerSpec(lr=1e-2), (64, width), False)
    assert found["stream 1"] > width / 64 * 2
    assert found["feed forward 0"] > width / 64 * 2


@pytest.mark.slow
def test_muon_does_not_move_with_the_width() -> None:
    plain = growth(OptimizerSpec(lr=3e-2, kind="muon"), (32, 128), False)
    carried = growth(OptimizerSpec(lr=3e-2, kind="muon", base_width=32), (32, 128), False)
    for name, factor in plain.items():
        assert 1 / 2 < carried[name] < 2, name
        # what embeddings add to the stream and the output matrix to the logits is AdamW's part
        assert factor > 3 or name.startswith(("stream", "logits")), name


def test_the_base_width_itself_changes_nothing() -> None:
    base = shape(64)
    plain, carried = (Transformer(base) for _ in range(2))
    plain.init_weights(1)
    carried.init_weights(1, OptimizerSpec(lr=1e-2, base_width=64, base_head_dim=16))
    for one, other in zip(plain.parameters(), carried.parameters(), strict=True):
        assert torch.equal(one, other)
