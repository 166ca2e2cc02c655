"""Sampling: the same for the same seed, within the nucleus, and greedy at temperature 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from armillary.generate import Sampling
from armillary.generate.native import generate
from armillary.model import Transformer
from armillary.recipe import Family, UsageError

SHAPE = Family().shape(1, 50)
DEFAULTS: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0}


@pytest.fixture(scope="module")
def model() -> Transformer:
    model = Transformer(SHAPE)
    model.init_weights(0)
    with torch.no_grad():
        model.output_weight.mul_(2)  # peaked enough that the nucleus matters
    return model


def sample(
    model: Transformer, prompt: list[int] | None = None, end_token: int | None = None, **changed: Any
) -> list[int]:
    return generate(model, [3, 4] if prompt is None else prompt, Sampling(**{**DEFAULTS, **changed}), end_token)


def test_the_seed_decides(model: Transformer) -> None:
    torch.manual_seed(1)
    first = sample(model, seed=7)
    torch.manual_seed(2)
    assert sample(model, seed=7) == first
    assert len(first) == 12
    assert len({tuple(sample(model, seed=seed)) for seed in range(5)}) > 1


def test_temperature_zero_and_a_tiny_nucleus_take_the_most_likely_token(model: Transformer) -> None:
    tokens = [3, 4]
    for _ in range(6):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert sample(model, temperature=0.0, max_new_tokens=6) == tokens[2:]
    assert sample(model, top_p=1e-9, max_new_tokens=6, seed=3) == tokens[2:]


def test_samples_follow_the_nucleus_of_the_softmax(model: Transformer) -> None:
    probabilities = model(torch.tensor([[3, 4]]))[0, -1].softmax(-1)
    order = probabilities.argsort(descending=True)
    kept = order[: int((probabilities[order].cumsum(0) < 0.7).sum()) + 1]
    assert 1 < len(kept) < SHAPE.vocab_size
    drawn = torch.tensor([sample(model, max_new_tokens=1, top_p=0.7, seed=seed)[0] for seed in range(400)])
    assert set(drawn.tolist()) <= set(kept.tolist())
    expected = probabilities[kept] / probabilities[kept].sum()
    measured = torch.stack([(drawn == token).float().mean() for token in kept])
    # five standard errors of a share of 400 draws
    assert (measured - expected).abs().max() < 5 * 0.5 / 20


def test_generation_stops_before_the_end_token(model: Transformer) -> None:
    free = sample(model, temperature=0.0)
    end = free[2]
    assert sample(model, temperature=0.0, end_token=end) == free[: free.index(end)]


@pytest.mark.parametrize(
    ("prompt", "changed", "named"),
    [
        ([], {}, "prompt is empty"),
        ([3, 50], {}, "token 50"),
        ([3, -1], {}, "token -1"),
        ([3], {"temperature": -1.0}, "temperature"),
        ([3], {"temperature": float("nan")}, "temperature"),
        ([3], {"top_p": 0.0}, "top_p"),
        ([3], {"top_p": 1.5}, "top_p"),
    ],
)
def test_wrong_arguments_are_named(model: Transformer, prompt: list[int], changed: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        sample(model, prompt, **changed)
