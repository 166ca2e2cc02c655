"""A dry run says what a real run of the same program has: held against ranks that compute, watched by other means."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import Function
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from armillary.cli import main
from armillary.corpus import Batch
from armillary.model.native import kernels
from armillary.parallel import Program, dry_run
from armillary.parallel.dry_mode import WithoutNumbers
from armillary.parallel.dry_run import RankReport, group_names, rehearse
from armillary.recipe import (
    Experts,
    Layout,
    LengthPhase,
    MixturePhase,
    ModelShape,
    OptimizerSpec,
    Preference,
    RunSpec,
)
from armillary.train import LocalOptimizer

DENSE = ModelShape(n_layers=4, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=128, vocab_size=256, qk_norm=True)
MIXTURE = DENSE.model_copy(update={"experts": Experts(count=8, active=2, d_ff=64, shared_d_ff=64)})


def specification(model: ModelShape = DENSE, **changes: Any) -> RunSpec:
    fields = {
        "corpus": "none",
        "model": model,
        "context_length": 64,
        "batch_sequences": 16,
        "steps": 20,
        "mixture": (MixturePhase(start_step=0, weights={"text": 1.0}),),
        "optimizer": OptimizerSpec(lr=3e-3),
        "seed": 5,
    }
    return RunSpec(**{**fields, **changes})


CASES: dict[str, tuple[RunSpec, Layout]] = {
    "dp2": (specification(), Layout(dp_shard=2)),
    "dp2 bf16, accumulated": (specification(precision="bf16", accumulation=2), Layout(dp_shard=2)),
    "hsdp 2 x 2": (specification(), Layout(dp_replicate=2, dp_shard=2)),
    "tp2": (specification(), Layout(tp=2)),
    "tp2 without sequence parallel": (specification(), Layout(tp=2, sequence_parallel=False)),
    "cp2": (specification(), Layout(cp=2)),
    "dp2 tp2, all recomputed": (specification(), Layout(dp_shard=2, tp=2, recompute="full")),
    "pp2 interleaved": (specification(), Layout(pp=2, schedule="interleaved", stages_per_rank=2, microbatches=8)),
    "pp2 dp2": (specification(), Layout(pp=2, dp_shard=2, microbatches=4)),
    "pp2 tp2, cheap recomputed": (specification(), Layout(pp=2, tp=2, microbatches=4, recompute="selective")),
}


class Wires(TorchDispatchMode):
    """Counts what is sent: by kind, name of the group and bytes of the whole vector."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[tuple[str, str, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if FakeTensor in types:  # DTensor thinks about shapes
            return func(*args, **(kwargs or {}))
        if any(kind not in (torch.Tensor, torch.nn.Parameter) for kind in types):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        c10d, functional = torch.ops.c10d, torch.ops._c10d_functional
        flat = {  # which argument is the whole vector, and which the group
            c10d._allgather_base_.default: ("all-gather", 0, 2),
            c10d._reduce_scatter_base_.default: ("reduce-scatter", 1, 2),
            c10d.allreduce_.default: ("all-reduce", 0, 1),
            c10d.send.default: ("send", 0, 1),
            c10d.recv_.default: ("receive", 0, 1),
            functional.all_gather_into_tensor.default: ("all-gather", None, -1),
            functional.reduce_scatter_tensor.default: ("reduce-scatter", 0, -1),
            functional.all_reduce.default: ("all-reduce", 0, -1),
            functional.all_to_all_single.default: ("all-to-all", 0, -1),
        }
        if func in flat:
            kind, at, group = flat[func]
            whole = out if at is None else args[at]
            whole = whole[0] if isinstance(whole, list) else whole
            name = args[group] if isinstance(args[group], str) else None
            if name is None:
                known = getattr(args[group], "group_name", None)
                name = known or dist.ProcessGroup.unbox(args[group]).group_name
            self.sent[kind, name, whole.nbytes] += 1
        else:
            silent = ("wait_tensor", "_wrap_tensor_autograd")
            assert func.namespace not in ("c10d", "_c10d_functional") or func._opname in silent, func
        return out


class FusedNorm(Function):
    """RMSNorm of rows [..., width] with the formula of the operator that accelerators have, and what that one keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = x.float().square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normalised, slope = x * scale, grad * weight
        grad_x = (slope - normalised * (slope * normalised).mean(-1, keepdim=True)) * scale
        return grad_x.to(x.dtype), (grad * normalised).flatten(0, -2).sum(0).to(weight.dtype), None


def one_step(spec: RunSpec, layout: Layout) -> dict[str, Any]:
    """What a rank that computes has, in its second step."""
    os.environ["ARMILLARY_NATIVE"] = "0"  # what the C kernels take for themselves, PyTorch's allocator does not see
    kernels.cache_clear()  # an earlier test in this process may have had them
    composed = torch.nn.functional.rms_norm
    torch.nn.functional.rms_norm = lambda x, size, weight, eps: FusedNorm.apply(x, weight, eps)  # type: ignore
    try:
        program = Program(spec, layout, torch.device("cpu"))
        program.init_weights()
        optimizer = LocalOptimizer(program.named_parameters(), spec)
        tokens = torch.arange(spec.batch_sequences * (spec.context_length + 1)).remainder(spec.model.vocab_size)
        batch = tokens.view(spec.batch_sequences, -1)
        program.gradients(
            Batch(batch)
        )  # the first step tells neighbours in a pipeline of shapes, which is no part of a step
        optimizer.step(spec.lr(0))
        parts = [p.to_local() if hasattr(p, "to_local") else p for _, p in program.named_parameters()]
        wires = Wires()
        with wires:
            program.gradients(Batch(batch))
            program.clip(1.0)
            grads = [p.grad for _, p in program.named_parameters()]
            kept = sum((g.to_local() if hasattr(g, "to_local") else g).nbytes for g in grads)
            optimizer.step(spec.lr(1))
        gc.collect()  # what earlier tests left in this process must not be let go of while it is watched
        gc.freeze()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            program.gradients(Batch(batch))
            program.clip(1.0)
            optimizer.step(spec.lr(2))
        gc.unfreeze()
        # what PyTorch's allocator gave and took, as it says itself
        events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
        changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    finally:
        del os.environ["ARMILLARY_NATIVE"]
        kernels.cache_clear()
        torch.nn.functional.rms_norm = composed
    names = group_names(program.grid)
    return {
        "parameters": sum(p.nbytes for p in parts),
        "gradients": kept,
        "optimizer": sum(t.nbytes for state in optimizer.state.values() for t in state.values()),
        "sent": {(kind, *names[group], nbytes): count for (kind, group, nbytes), count in wires.sent.items()},
        "peak": max(accumulate(changes)),
    }


def rehearsals(spec: RunSpec, layout: Layout) -> list[RankReport]:
    with ProcessPoolExecutor(2, get_context("forkserver"), max_tasks_per_child=1) as pool:
        return list(
            pool.map(rehearse, *zip(*[(spec, layout, LocalOptimizer, r) for r in range(layout.ranks)], strict=True))
        )


SHORT = ("dp2 bf16, accumulated", "tp2")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SHORT else pytest.mark.slow) for n in CASES])
def test_what_is_said_is_what_a_real_rank_has(name: str, on_ranks: Any) -> None:
    spec, layout = CASES[name]
    real = on_ranks(layout.ranks, one_step, spec, layout)
    for said, found in zip(rehearsals(spec, layout), real, strict=True):
        for kept in ("parameters", "gradients", "optimizer"):
            assert getattr(said, kept) == found[kept]
        assert {(c.kind, c.group, c.ranks, c.nbytes): c.count for c in said.collectives} == found["sent"]
        # models this small are mostly buffers that live for a moment; when gloo lets go of one differs by run and rank
        assert said.peak - said.parameters - said.optimizer == pytest.approx(found["peak"], rel=0.2)


@pytest.mark.slow
def test_experts_are_as_a_balanced_router_would_have_them(on_ranks: Any) -> None:
    spec, layout = specification(MIXTURE), Layout(dp_shard=2, ep=2)
    real = on_ranks(layout.ranks, one_step, spec, layout)
    said = rehearsals(spec, layout)
    for mine, found in zip(said, real, strict=True):
        assert (mine.parameters, mine.gradients, mine.optimizer) == tuple(
            found[kept] for kept in ("parameters", "gradients", "optimizer")
        )
        others = {(c.kind, c.group, c.ranks, c.nbytes): c.count for c in mine.collectives if c.kind != "all-to-all"}
        assert others == {key: count for key, count in found["sent"].items() if key[0] != "all-to-all"}
    # how many rows one expert gets is the router's choice; how many exchanges and rows there are in all is not
    exchanges = [c for mine in said for c in mine.collectives if c.kind == "all-to-all"]
    found = [(key[3], count) for sent in real for key, count in sent["sent"].items() if key[0] == "all-to-all"]
    assert sum(c.count for c in exchanges) == sum(count for _, count in found)
    assert sum(c.count * c.nbytes for c in exchanges) == pytest.approx(sum(n * count for n, count in found), rel=0.02)


@pytest.mark.slow
def test_every_phase_of_lengths_is_rehearsed() -> None:
    """A short context with many sequences may hold more than the long one at the end; a phase without steps is none."""
    lengths = (
        LengthPhase(start_step=8, context_length=16, batch_sequences=512),
        LengthPhase(start_step=12, context_length=128, batch_sequences=4),
        LengthPhase(start_step=16, context_length=128, batch_sequences=4, rope_theta=5e5),
    )
    found = dry_run(specification(lengths=lengths), Layout(), LocalOptimizer)
    shown = [(r.first_step, r.context_length, r.batch_sequences, r.microbatches) for r in found.reports]
    assert shown == [(0, 64, 16, 1), (8, 16, 512, 1), (12, 128, 4, 1)]
    first, many, long = found.reports
    assert found.peak == many.peak == found.largest.peak
    assert many.peak > 4 * long.peak and many.peak > 4 * first.peak
    assert first.parameters == many.parameters == long.parameters
    begun = dry_run(specification(lengths=(lengths[0].model_copy(update={"start_step": 0}),)), Layout(), LocalOptimizer)
    assert [(r.first_step, r.batch_sequences, r.peak) for r in begun.reports] == [(0, 512, many.peak)]


@pytest.mark.slow
def test_a_run_on_pairs_is_rehearsed_as_one_on_text() -> None:
    pairs = specification().model_copy(update={"objective": Preference(examples="0" * 16)})
    found, expected = (dry_run(spec, Layout(tp=2), LocalOptimizer) for spec in (pairs, specification()))
    assert (found.peak, found.largest.collectives) == (expected.peak, expected.largest.collectives)


def test_a_norm_keeps_its_input_and_one_number_of_each_row() -> None:
    """As ``aten::_fused_rms_norm`` of an accelerator; the composition of a CPU keeps several copies."""
    kept: dict[torch.dtype, list[tuple[torch.Size, torch.dtype]]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        with WithoutNumbers():
            x = torch.empty(2, 6, 8, dtype=dtype, requires_grad=True)
            gain = torch.empty(8, dtype=dtype, requires_grad=True)
            y = torch.nn.functional.rms_norm(x, gain.shape, gain, 1e-5)
            kept[dtype] = [(t.shape, t.dtype) for t in y.grad_fn.saved_tensors]  # type: ignore[union-attr]
            y.backward(torch.empty_like(y))
        assert y.shape == x.shape and y.dtype == dtype
        assert x.grad is not None and x.grad.shape == x.shape and x.grad.dtype == dtype
        assert gain.grad is not None and gain.grad.shape == gain.shape
        assert kept[dtype] == [(x.shape, dtype), (gain.shape, dtype), (torch.Size((2, 6, 1)), torch.float32)]
    # outside it is PyTorch's own again
    x = torch.randn(3, 8)
    assert torch.equal(torch.nn.functional.rms_norm(x, (8,)), torch.rms_norm(x, (8,)))


def test_a_layout_that_does_not_fit_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[2] / "examples" / "telechat2-115b.yaml"
    changed = tmp_path / "run.yaml"
    changed.write_text(path.read_text(encoding="utf-8").replace("  tp: 8", "  tp: 7"), encoding="utf-8")
    for file, words in (
        (changed, "n_heads (64) must be a multiple of tp (7)"),
        (tmp_path / "none.yaml", "cannot be read"),
    ):
        monkeypatch.setattr(sys, "argv", ["armillary", "train", str(file), "--dry-run"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        assert words in capsys.readouterr().err.replace("\n", " ")
