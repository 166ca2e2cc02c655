"""Under every layout a run is the run that one process trains: first step's loss and gradients, and the curve."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armillary.recipe import Layout, ModelShape, OptimizerSpec, RunSpec

from .runs import ALONE, EIGHT, TOGETHER, Course, alone, differences, specification, spread

# Largest differences in fp32: losses in nats, norm and gradients relative (gradients to the largest of their parameter,
# of which some are small sums of large terms). What differs is the order of sums; steps carry it on.
TOLERANCE = {"loss": 2e-6, "norm": 2e-6, "gradients": 2e-5, "curve": 1e-5, "entropy": 1e-5}


def check(expected: Course, ranks: list[Course]) -> None:
    found = differences(expected, ranks)
    assert not {name: value for name, value in found.items() if not value <= TOLERANCE[name]}


# Each of their dimensions is in another layout of the default tests.
LONG = ("pp2 x cp2", "pp2 x dp2 interleaved", "dp2 x tp2, selective recompute", "tp2 without sequence parallel")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in ALONE | TOGETHER]
)
def test_the_first_steps(name: str, on_ranks: Any) -> None:
    spec, layout = specification(steps=2), (ALONE | TOGETHER)[name]
    check(alone(spec), on_ranks(layout.ranks, spread, spec, layout))


@pytest.mark.parametrize("name", ["dp2", "tp2", "pp2 1f1b", "pp2 zero-bubble"])
def test_accumulated_gradients(name: str, on_ranks: Any) -> None:
    spec, layout = specification(steps=2, accumulation=4), ALONE[name]
    check(alone(spec), on_ranks(layout.ranks, spread, spec, layout))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE | TOGETHER | EIGHT)
def test_twenty_steps(name: str, on_ranks: Any) -> None:
    spec, layout = specification(), (ALONE | TOGETHER | EIGHT)[name]
    check(alone(spec), on_ranks(layout.ranks, spread, spec, layout))


@st.composite
def runs(draw: st.DrawFn) -> tuple[RunSpec, Layout]:
    """A layout of 2 or 4 ranks, and a run that it can carry."""
    names = draw(st.lists(st.sampled_from(["pp", "dp_replicate", "dp_shard", "cp", "tp"]), min_size=1, max_size=2))
    sizes = {name: 2 ** names.count(name) for name in names}
    pp, cp, tp = (sizes.get(name, 1) for name in ("pp", "cp", "tp"))
    fields: dict[str, Any] = {**sizes, "sequence_parallel": draw(st.booleans()), "reshard": draw(st.booleans())}
    fields["context"] = draw(st.sampled_from(["ring", "all-gather"]))
    accumulation = draw(st.integers(1, 2))
    count, stages = accumulation, 1
    if pp > 1:
        schedule = draw(st.sampled_from(["gpipe", "1f1b", "interleaved", "zero-bubble", "zb-v", "dualpipe-v"]))
        per_rank = 2 if schedule.endswith("-v") else 1 if schedule in ("gpipe", "1f1b") else draw(st.integers(1, 2))
        stages = pp * per_rank
        count = stages * draw(st.integers(1, 2))
        fields |= {"schedule": schedule, "stages_per_rank": per_rank, "microbatches": count}
    if not fields.get("schedule", "").endswith(("-v", "bubble")):
        fields["recompute"] = draw(st.sampled_from(["none", "selective", "full"]))
    layout = Layout(**fields)
    kv_heads = tp * draw(st.integers(1, 2))
    shape = ModelShape(
        n_layers=draw(st.integers(max(1, stages - 2), stages + 2)),
        d_model=draw(st.integers(3, 20)),
        n_heads=kv_heads * draw(st.integers(1, 2)),
        n_kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 4)),
        d_ff=tp * draw(st.integers(3, 20)),
        vocab_size=tp * draw(st.integers(4, 40)),
        qk_norm=draw(st.booleans()),
        tied_embeddings=pp == 1 and tp == 1 and draw(st.booleans()),
    )
    spec = specification(
        model=shape,
        steps=2,
        accumulation=accumulation,
        context_length=2 * cp * tp * draw(st.integers(1, 4)),
        batch_sequences=layout.data * math.lcm(count, accumulation) * draw(st.integers(1, 2)),
        optimizer=OptimizerSpec(lr=1e-3, z_loss=draw(st.sampled_from([0.0, 1e-3]))),
    )
    return spec, layout


def check_any(run: tuple[RunSpec, Layout], on_ranks: Any) -> None:
    spec, layout = run
    layout.check(spec)
    check(alone(spec), on_ranks(layout.ranks, spread, spec, layout))


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(run=runs())
def test_any_shape_under_any_layout(run: tuple[RunSpec, Layout], on_ranks: Any) -> None:
    check_any(run, on_ranks)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(run=runs())
def test_many_shapes_under_many_layouts(run: tuple[RunSpec, Layout], on_ranks: Any) -> None:
    check_any(run, on_ranks)
