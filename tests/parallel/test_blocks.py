"""Blocks of other kinds than the usual ones: under every layout what one process computes, by their roles alone."""

from __future__ import annotations

from typing import Any

import pytest

import new_blocks  # noqa: F401 (registers them)
from armillary.recipe import Layout, ModelShape, UsageError

from .runs import CPU, Program, alone, differences, specification, spread
from .test_equality import TOLERANCE

LAYOUTS = {
    "dp2": Layout(dp_shard=2),
    "tp2": Layout(tp=2),
    "tp2 without sequence parallel": Layout(tp=2, sequence_parallel=False),
    "cp2 all-gather": Layout(cp=2),
    "cp2 ring": Layout(cp=2, context="ring"),
    "pp2 1f1b": Layout(pp=2, microbatches=4),
}
FOUR = {
    "dp2 x tp2": Layout(dp_shard=2, tp=2, recompute="selective"),
    "tp2 x cp2": Layout(tp=2, cp=2, context="ring"),
    "pp2 x tp2 zb-v": Layout(pp=2, tp=2, schedule="zb-v", stages_per_rank=2, microbatches=4),
}
LATENT = {"kind": "latent", "kv_rank": 12, "rope_head_dim": 4}
BLOCKS: dict[str, dict[str, Any]] = {
    "latent, relu2": {"attention": LATENT, "feed_forward": "relu2", "n_kv_heads": 4, "qk_norm": False},
    "biases": {"biases": ("q", "k", "v", "out", "gate", "up", "down")},
    "gated, shifted relu": {"attention": "gated", "feed_forward": "shifted-relu"},
}


def shape(blocks: dict[str, Any]) -> ModelShape:
    return ModelShape(**{**specification().model.model_dump(), **blocks})


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("name", [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.slow) for name in FOUR)])
def test_the_first_steps(name: str, blocks: str, on_ranks: Any) -> None:
    spec, layout = specification(model=shape(BLOCKS[blocks]), steps=2), (LAYOUTS | FOUR)[name]
    found = differences(alone(spec), on_ranks(layout.ranks, spread, spec, layout))
    assert not {name: value for name, value in found.items() if not value <= TOLERANCE[name]}


def refusal(spec: Any, layout: Layout) -> str:
    with pytest.raises(UsageError) as caught:
        Program(spec, layout, CPU)
    return str(caught.value)


def test_a_parameter_that_ranks_cannot_cut_is_named(on_ranks: Any) -> None:
    spec = specification(model=shape({"feed_forward": {"kind": "shifted-relu", "wider": 1}}))
    problem = "layers.0.feed_forward.bias is 65: its rows (65) must be a multiple of tp (2)"
    assert on_ranks(2, refusal, spec, Layout(tp=2)) == [problem] * 2
