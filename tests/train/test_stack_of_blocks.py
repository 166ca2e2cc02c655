"""A stack trains models with other blocks as each would train alone."""

from __future__ import annotations

from typing import Any

import pytest

import new_blocks  # noqa: F401 (registers them)
from armillary.recipe import ModelShape
from armillary.train import Assignment, train_fleet, train_run

BLOCKS: dict[str, dict[str, Any]] = {
    "latent, relu2": {
        "attention": {"kind": "latent", "kv_rank": 12, "rope_head_dim": 4},
        "feed_forward": "relu2",
        "qk_norm": False,
    },
    "gated, shifted relu": {"attention": "gated", "feed_forward": "shifted-relu"},
}


@pytest.mark.parametrize("blocks", BLOCKS)
def test_a_stack_of_them(blocks: str, make_spec: Any, tiny_corpus: Any, tmp_path: Any) -> None:
    """But for the last digits: MKL rounds products of fewer than 16 rows, as small latents have, by their number."""
    usual = make_spec().model
    shape = ModelShape(**{**usual.model_dump(), "n_kv_heads": usual.n_heads, **BLOCKS[blocks]})
    specs = [make_spec(seed=seed, model=shape, steps=8) for seed in (2, 3)]
    found = dict(train_fleet([Assignment(spec, tmp_path / spec.id) for spec in specs], tiny_corpus, 2))
    for spec in specs:
        expected = train_run(spec, tiny_corpus, tmp_path / "alone" / spec.id)
        assert found[spec.id].loss == pytest.approx(expected.loss, abs=1e-5)
