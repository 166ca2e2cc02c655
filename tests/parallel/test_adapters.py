"""Low-rank adapters under every layout: losses and gradients of one process; only adapters are trained."""

from __future__ import annotations

from typing import Any

import pytest

from armillary.recipe import Experts, Layout, Lora, Start, UsageError

from .runs import ALONE, INTERLEAVED, SHAPE, TOGETHER, alone, differences, specification, spread

START = Start(weights="base.safetensors", sha256="0" * 64)
FAST = ("tp2",)  # the ranks of tests/train/test_adapter_ranks.py take dp2 and pp2 too
OTHERS = [name for name in ALONE if name not in (*FAST, "pp2 interleaved, ends without layers")]


def run(name: str, on_ranks: Any, layout: Layout, **changes: Any) -> None:
    spec = specification(start=START, **{"adapter": Lora(rank=4), "steps": 6, **changes})
    expected = alone(spec)
    assert all(name.endswith((".lora_a", ".lora_b")) for name in expected.gradients)
    found = differences(expected, on_ranks(layout.ranks, spread, spec, layout))
    print(name, {key: f"{value:.1e}" for key, value in found.items()})
    assert found["gradients"] < 1e-4, name
    assert max(found[key] for key in ("loss", "norm", "curve", "entropy")) < 1e-4, name


@pytest.mark.parametrize("name", FAST)
def test_adapters_train_as_on_one_device(name: str, on_ranks: Any) -> None:
    run(name, on_ranks, ALONE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_adapters_train_as_on_one_device_in_every_dimension(name: str, on_ranks: Any) -> None:
    run(name, on_ranks, ALONE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dp2 x tp2", "tp2 x cp2", "pp2 x tp2", "pp2 x dp2", "dp2 x tp2, selective recompute"])
def test_adapters_train_as_on_one_device_in_two_dimensions(name: str, on_ranks: Any) -> None:
    run(name, on_ranks, TOGETHER[name])


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(dp_shard=2), Layout(ep=2), Layout(tp=2), Layout(pp=2, microbatches=4)])
def test_adapters_of_attention_beside_frozen_experts(layout: Layout, on_ranks: Any) -> None:
    shape = SHAPE.model_copy(update={"experts": Experts(count=4, active=2, d_ff=16)})
    run(str(layout), on_ranks, layout, model=shape, adapter=Lora(rank=4, targets=("q", "v", "out")))


def test_a_stage_without_layers_has_nothing_to_train() -> None:
    layout = Layout(**INTERLEAVED, layers_per_stage=(0, 2, 2, 0))
    with pytest.raises(UsageError, match="adapter: each stage of the pipeline must have layers"):
        layout.check(specification(start=START, adapter=Lora(rank=4)))
