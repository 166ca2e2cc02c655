"""Which stages lie where, what a layout refuses, half precision in a pipeline, recompute and compile."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.profiler import ProfilerActivity, profile

from armillary.corpus import Batch
from armillary.model import Transformer
from armillary.parallel import Program
from armillary.parallel.recompute import recompute_all, recompute_cheap
from armillary.recipe import Layout, ModelShape, OptimizerSpec, UsageError

from .runs import INTERLEAVED, ZERO_BUBBLE, alone, batches, specification, spread, whole

CPU = torch.device("cpu")


@given(pp=st.integers(2, 8), per_rank=st.integers(1, 3), spare=st.integers(0, 30))
def test_layers_are_dealt_out_evenly_and_in_order(pp: int, per_rank: int, spare: int) -> None:
    layout = Layout(pp=pp, schedule="interleaved", stages_per_rank=per_rank)
    layers = layout.stage_layers(layout.stages + spare)
    assert [layer for stage in layers for layer in stage] == list(range(layout.stages + spare))
    counts = [len(stage) for stage in layers]
    assert max(counts) - min(counts) <= 1
    assert max(counts[0], counts[-1]) <= max(counts[1:-1], default=max(counts))


def test_a_published_layout_with_lighter_ends() -> None:
    counts = (3, *[4] * 22, 5)
    layers = Layout(pp=8, schedule="interleaved", stages_per_rank=3, layers_per_stage=counts).stage_layers(96)
    assert [len(stage) for stage in layers] == list(counts)


def test_a_v_begins_and_ends_on_the_first_rank() -> None:
    layout = Layout(pp=4, schedule="zb-v", stages_per_rank=2)
    assert [layout.stage_rank(stage) for stage in range(8)] == [0, 1, 2, 3, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages_per_rank": 2}, "pp is 1"),
        ({"microbatches": 4}, "pp is 1"),
        ({"layers_per_stage": (4,)}, "pp is 1"),
        ({"pp": 2, "stages_per_rank": 2}, "schedule '1f1b' has 1 stage"),
        ({"pp": 2, "schedule": "zb-v"}, "schedule 'zb-v' has 2 stages"),
        ({"pp": 2, "layers_per_stage": (1, 1, 2)}, "3 numbers for 2 x 1 stages"),
        ({**INTERLEAVED, "layers_per_stage": (2, 0, 1, 1)}, "only the first and the last stage"),
        ({**ZERO_BUBBLE, "recompute": "full"}, "use schedule '1f1b' or 'interleaved', or leave recompute out"),
        ({**ZERO_BUBBLE, "compile": True}, "leave compile out"),
        ({"pp": 0}, "greater than or equal to 1"),
    ],
)
def test_a_layout_that_contradicts_itself(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Layout(**fields)


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        (Layout(dp_shard=3), {}, r"batch_sequences \(8\) must be a multiple of data ranks times micro-batches \(3\)"),
        (Layout(tp=8), {}, r"n_heads \(4\) must be a multiple of tp \(8\)"),
        (Layout(tp=4), {}, r"n_kv_heads \(2\) must be a multiple of tp \(4\)"),
        (Layout(tp=2), {"d_ff": 65}, r"d_ff \(65\) must be a multiple of tp"),
        (Layout(tp=2), {"vocab_size": 127}, r"vocab_size \(127\) must be a multiple of tp"),
        (Layout(tp=2), {"context_length": 31}, r"context_length \(31\) must be a multiple of tp \(2\)"),
        (Layout(cp=3), {"context_length": 33}, r"context_length \(33\) must be a multiple of 2, cp and tp \(6\)"),
        (Layout(pp=2, microbatches=4), {"tied_embeddings": True}, "tied embeddings cannot be cut"),
        (Layout(pp=2, microbatches=1), {}, r"microbatches \(1\) of schedule '1f1b' must be at least 2"),
        (Layout(**{**INTERLEAVED, "microbatches": 3}), {"batch_sequences": 6}, "must be a multiple of pp 2"),
        (Layout(pp=2, microbatches=4), {"batch_sequences": 9, "accumulation": 3}, "multiple of the run's accumulation"),
        (Layout(pp=2, layers_per_stage=(1, 2)), {}, "layers_per_stage sums to 3, but the model has 4 layers"),
        (Layout(pp=8, microbatches=8), {}, "4 layers for 8 stages: use fewer stages"),
        (
            Layout(pp=2, microbatches=4, layers_per_stage=(0, 4)),
            {"optimizer": OptimizerSpec(lr=1e-3, kind="muon")},
            "each of the 2 ranks of the pipeline must have layers, only 1 have",
        ),
    ],
)
def test_a_layout_that_a_run_does_not_fit(layout: Layout, changes: dict[str, Any], message: str) -> None:
    run = {name: value for name, value in changes.items() if name not in ModelShape.model_fields}
    shape = {name: value for name, value in changes.items() if name in ModelShape.model_fields}
    spec = specification(**run)
    spec = spec.model_copy(update={"model": spec.model.model_copy(update=shape)})
    with pytest.raises(UsageError, match=message):
        layout.check(spec)


def build(layout: Layout) -> str:
    try:
        Program(specification(), layout, CPU)
    except UsageError as error:
        return str(error)
    return "built"


def test_another_number_of_ranks_than_the_layout_has(on_ranks: Any) -> None:
    for message in on_ranks(2, build, Layout(dp_shard=2, tp=2)):
        assert (
            message == "the layout has 4 ranks (dp_shard 2 x tp 2), but 2 were requested; start 4, or change the layout"
        )


def entropies(layout: Layout) -> list[float]:
    program = Program(specification(), layout, CPU)
    program.init_weights()
    tokens = batches(specification()).flatten(0, 1)
    return [program.entropy(tokens[:n]).item() for n in (1, 3, 8, 21)]


@pytest.mark.parametrize(
    "layout",
    [Layout(dp_shard=2), Layout(**{**ZERO_BUBBLE, "schedule": "zb-v"}), Layout(**INTERLEAVED), Layout(pp=4)],
    ids=lambda layout: f"{layout.schedule} {layout.sizes}",
)
def test_entropy_of_any_number_of_sequences(layout: Layout, on_ranks: Any) -> None:
    model = Transformer(specification().model)
    model.init_weights(specification().seed)
    tokens = batches(specification()).flatten(0, 1)
    with torch.no_grad():
        expected = [model.loss(tokens[:n])[1].item() / tokens[:n, 1:].numel() for n in (1, 3, 8, 21)]
    for found in on_ranks(layout.ranks, entropies, layout):
        assert found == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(pp=2, microbatches=4),
        Layout(pp=2, microbatches=4, recompute="selective"),
        Layout(pp=2, dp_shard=2, microbatches=4),
        Layout(**ZERO_BUBBLE, dp_shard=2),
    ],
    ids=lambda layout: f"{layout.schedule} {layout.sizes} {layout.recompute}",
)
def test_half_precision_in_a_pipeline(layout: Layout, on_ranks: Any) -> None:
    spec = specification(steps=2, precision="bf16")
    expected = alone(specification(steps=2))  # in fp32: bf16 comes near to it, not to the same digits as elsewhere
    for course in on_ranks(layout.ranks, spread, spec, layout):
        assert course.losses == pytest.approx(expected.losses, abs=0.03)
        for name, grad in course.gradients.items():
            assert (grad - expected.gradients[name]).norm() < 0.05 * expected.gradients[name].norm(), name


WIDE = ModelShape(n_layers=3, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=176, vocab_size=64, qk_norm=True)


def kept_and_gradients(prepare: Any, precision: torch.dtype) -> tuple[int, list[torch.Tensor]]:
    """Bytes that the forward pass leaves allocated, and what the backward pass gives."""
    model = Transformer(WIDE)
    model.init_weights(3)
    prepare(model)
    tokens = torch.randint(0, 64, (4, 129), generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16, cache_enabled=False):
        model.features(tokens[:, :-1])
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            features = model.features(tokens[:, :-1])
        objective, _ = model.criterion(features, model.output_weight, tokens[:, 1:], 0.0)
    objective.backward()
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages()), [
        p.grad for p in model.parameters() if p.grad is not None
    ]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_recompute_keeps_less_and_changes_no_bit(precision: torch.dtype) -> None:
    everything, expected = kept_and_gradients(lambda model: None, precision)
    some, cheap = kept_and_gradients(recompute_cheap, precision)
    least, full = kept_and_gradients(recompute_all, precision)
    assert all(torch.equal(a, b) for a, b in zip(cheap, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(full, expected, strict=True))
    assert some < 0.75 * everything
    # the input of each layer and the last norm, of 4 x 128 tokens
    assert least <= (WIDE.n_layers + 3) * 4 * 128 * WIDE.d_model * 4


def gradients(layout: Layout) -> dict[str, torch.Tensor]:
    program = Program(specification(), layout, CPU)
    program.init_weights()
    program.gradients(Batch(batches(specification())[0]))
    return {name: whole(p.grad) for name, p in program.named_parameters()}


@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize(
    "fields",
    [{"dp_shard": 2}, {"tp": 2}, {"cp": 2}, {"pp": 2, "microbatches": 4}, {"pp": 2, "schedule": "gpipe"}, INTERLEAVED],
    ids=lambda fields: " ".join(f"{key} {value}" for key, value in fields.items()),
)
def test_recompute_changes_no_bit_under_any_layout(kind: str, fields: dict[str, Any], on_ranks: Any) -> None:
    layout, again = Layout(**fields), Layout(**fields, recompute=kind)
    for expected, found in zip(on_ranks(2, gradients, layout), on_ranks(2, gradients, again), strict=True):
        assert all(torch.equal(grad, expected[name]) for name, grad in found.items())


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_compiled_layers_give_the_same(recompute: str, tmp_path: Any) -> None:
    """Without the C kernels, in the place of which layers are compiled on an accelerator only."""
    script = f"""
import torch, torch.distributed as dist
from armillary.corpus import Batch
from armillary.parallel import Program
from armillary.recipe import Layout
from tests.parallel.runs import alone, batches, specification, whole
dist.init_process_group("gloo", store=dist.FileStore({str(tmp_path / "store")!r}, 1), rank=0, world_size=1)
spec = specification(steps=1)
program = Program(spec, Layout(compile=True, recompute={recompute!r}), torch.device("cpu"))
program.init_weights()
loss = program.gradients(Batch(batches(spec)[0])).item()
expected = alone(spec)
assert all(layer._compiled_call_impl is not None for layer in program.parts[0].layers.values())
assert abs(loss - expected.losses[0]) < 2e-6
for name, parameter in program.named_parameters():
    assert torch.allclose(whole(parameter.grad), expected.gradients[name], atol=2e-6), name
"""
    environment = {**os.environ, "ARMILLARY_NATIVE": "0", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=280)
