"""Adapters: what they leave as it is, what they add, and their weights merged."""

from __future__ import annotations

import pytest
import torch

from armillary.model import Transformer, adapter_state, add_adapters, draw_adapters, merged_state
from armillary.recipe import Experts, Lora, ModelShape, UsageError

SHAPE = ModelShape(n_layers=2, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24, vocab_size=40)
TOKENS = torch.arange(30).view(2, 15)


def adapted(lora: Lora) -> tuple[Transformer, Transformer]:
    """A model and the same one with adapters."""
    plain, model = Transformer(SHAPE), Transformer(SHAPE)
    for one in (plain, model):
        one.init_weights(0)
    add_adapters(model, lora)
    draw_adapters(model, seed=3)
    return plain, model


def test_an_adapter_begins_as_the_model_and_trains_itself_alone() -> None:
    plain, model = adapted(Lora(rank=2, targets=("q", "down")))
    assert torch.equal(plain(TOKENS), model(TOKENS))
    model.loss(TOKENS)[0].backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    matrices = [f"layers.{layer}.{part}" for layer in range(2) for part in ("attention.q", "feed_forward.down")]
    assert (
        trained == {f"{name}.{part}" for name in matrices for part in ("lora_a", "lora_b")} == set(adapter_state(model))
    )
    assert set(model.roles) == {name for name, _ in model.named_parameters()}


def test_the_merged_weights_compute_the_same() -> None:
    plain, model = adapted(Lora(rank=4, alpha=2.0))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("lora_b"):
                value.normal_(0, 0.5, generator=torch.Generator().manual_seed(len(name)))
    expected = model(TOKENS)
    assert not torch.allclose(expected, plain(TOKENS), atol=1e-3)
    plain.load_state_dict(merged_state(model))
    assert torch.allclose(plain(TOKENS), expected, atol=1e-5)


def test_draws_depend_on_seed_and_name_alone() -> None:
    few, many = (adapted(Lora(rank=2, targets=targets))[1] for targets in (("q",), ("q", "v", "up")))  # type: ignore[arg-type]
    for name, value in adapter_state(few).items():
        assert torch.equal(value, adapter_state(many)[name])
    draw_adapters(many, seed=4)
    assert not torch.equal(*(adapter_state(model)["layers.0.attention.q.lora_a"] for model in (few, many)))


def test_matrices_that_a_model_lacks_are_named() -> None:
    experts = Experts(count=4, active=2, d_ff=8)
    model = Transformer(SHAPE.model_copy(update={"experts": experts}))
    with pytest.raises(UsageError, match=r"adapter.targets: no matrix of this model's layers is named down"):
        add_adapters(model, Lora(targets=("q", "down")))
