"""Attention over parts of sequences is attention over the whole ones, and each rank sees and computes only its part."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import DTensor

from armillary.corpus import Batch
from armillary.model import Places
from armillary.model.operators import attention
from armillary.model.rotary import rotary_tables
from armillary.parallel import Program
from armillary.parallel.context import (
    ContextAttention,
    _attend,
    _attend_back,
    _GatheredAttention,
    _RingAttention,
    plain,
    plain_back,
    split_context,
)
from armillary.recipe import Layout, MixturePhase, ModelShape, OptimizerSpec, RunSpec

KINDS = {"ring": _RingAttention, "all-gather": _GatheredAttention}


def inputs(case: dict[str, Any]) -> tuple[list[torch.Tensor], tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """q, k, v and gains; rotary tables of all positions; a gradient."""
    generator = torch.Generator().manual_seed(case["seed"])
    batch, length, kv, group, width = (case[name] for name in ("batch", "length", "kv_heads", "group", "head_dim"))

    def draw(*size: int) -> torch.Tensor:
        drawn = torch.randn(size, generator=generator).to(case["dtype"])
        return (drawn.float() if case.get("exact") else drawn).requires_grad_()

    tensors = [draw(batch, length, heads * width) for heads in (kv * group, kv, kv)]
    tensors += [draw(width).detach().float().requires_grad_() for _ in range(2)]
    shape = ModelShape(n_layers=1, d_model=8, n_heads=1, n_kv_heads=1, head_dim=width, d_ff=8, vocab_size=8)
    return tensors, rotary_tables(shape, length), draw(batch, length, kv * group * width).detach()


def whole(case: dict[str, Any]) -> list[torch.Tensor]:
    (q, k, v, *gains), tables, grad = inputs(case)
    pair = (gains[0], gains[1]) if case["qk_norm"] else None
    out = attention(q, k, v, Places(*tables), pair, 1e-5)
    out.backward(grad)
    return [out.detach(), *(x.grad for x in (q, k, v, *(gains if case["qk_norm"] else ())) if x.grad is not None)]


def parts(case: dict[str, Any], kind: str) -> list[torch.Tensor]:
    """What ``whole`` gives, from this rank's part and put together over the ranks."""
    group = dist.group.WORLD
    assert group is not None
    place = group.rank(), group.size()
    (q, k, v, *gains), (cos, sin), grad = inputs(case)

    def cut(x: torch.Tensor) -> torch.Tensor:
        return split_context(x.detach().transpose(-1, -2), *place).transpose(-1, -2).contiguous()

    own = [cut(x).requires_grad_() for x in (q, k, v)]
    pair = (gains[0], gains[1]) if case["qk_norm"] else None
    out = ContextAttention(KINDS[kind], group)(*own, Places(cut(cos), cut(sin)), pair, 1e-5)
    out.backward(cut(grad))
    found = [out.detach(), *(x.grad for x in own)]
    order = torch.argsort(
        torch.cat([split_context(torch.arange(q.shape[1]), r, group.size()) for r in range(place[1])])
    )
    joined = []
    for x in found:
        gathered = [torch.empty_like(x.contiguous()) for _ in range(place[1])]
        dist.all_gather(gathered, x.contiguous())
        joined.append(torch.cat(gathered, 1)[:, order])
    if case["qk_norm"]:
        for gain in gains:
            dist.all_reduce(gain.grad)
            joined.append(gain.grad)
    return joined


@st.composite
def cases(draw: Any, ranks: int) -> dict[str, Any]:
    return {
        "batch": draw(st.integers(1, 3)),
        "length": 2 * ranks * draw(st.integers(1, 9)),
        "kv_heads": draw(st.integers(1, 2)),
        "group": draw(st.integers(1, 3)),
        "head_dim": 2 * draw(st.integers(1, 9)),
        "qk_norm": draw(st.booleans()),
        "dtype": torch.float32,
        "seed": draw(st.integers(0, 1000)),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_attention_over_parts_is_attention_over_the_whole(ranks: int, kind: str, on_ranks: Any) -> None:
    @given(cases(ranks))
    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def check(case: dict[str, Any]) -> None:
        expected = whole(case)
        for found in on_ranks(ranks, parts, case, kind):
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_off_by_rounding_alone(kind: str, on_ranks: Any) -> None:
    case = {"batch": 2, "length": 64, "kv_heads": 2, "group": 2, "head_dim": 16, "qk_norm": True, "seed": 3}
    case |= {"dtype": torch.bfloat16}
    for found in on_ranks(2, parts, case, kind):
        for one, exact in zip(found, whole({**case, "exact": True}), strict=True):
            assert (one.float() - exact).norm() <= 0.02 * exact.norm()  # bf16 rounds to 0.4 %


@pytest.mark.parametrize("causal", [False, True])
def test_the_formula_for_devices_without_a_kernel(causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, grad = (torch.randn(2, 3, 10, 8, generator=generator) for _ in range(2))
    kv = torch.randn(2, 2, 3, 10 if causal else 14, 8, generator=generator)
    out, log_z = _attend(q, kv, causal)
    for one, other in zip(plain(q, kv, causal), (out, log_z), strict=True):
        torch.testing.assert_close(one, other)
    grad_q, *grad_kv = plain_back((grad, q, out, log_z), kv, causal)
    expected = _attend_back((grad, q, out, log_z), kv, causal)
    torch.testing.assert_close(grad_q, expected[0])
    torch.testing.assert_close(torch.stack(grad_kv), expected[1])


def gradients(spec: RunSpec, layout: Layout, tokens: torch.Tensor) -> list[torch.Tensor]:
    program = Program(spec, layout, torch.device("cpu"))
    program.init_weights()
    program.gradients(Batch(tokens))
    return [cast("DTensor", p.grad).full_tensor() for _, p in program.named_parameters()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recompute_changes_nothing(kind: str, precision: str, on_ranks: Any) -> None:
    """Bit for bit: what selective recompute keeps is what the kernel gave, not what blocks were merged into."""
    shape = ModelShape(n_layers=2, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32, vocab_size=64)
    mixture = (MixturePhase(start_step=0, weights={"text": 1.0}),)
    fields: dict[str, Any] = {"corpus": "", "model": shape, "context_length": 16, "batch_sequences": 2, "steps": 1}
    spec = RunSpec(**fields, mixture=mixture, optimizer=OptimizerSpec(lr=1e-3), seed=1, precision=precision)
    tokens = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(0))
    layouts = [Layout(cp=2, context=kind, recompute=how) for how in ("none", "selective", "full")]  # type: ignore[arg-type]
    plain, *others = (on_ranks(2, gradients, spec, layout, tokens)[0] for layout in layouts)
    for found in others:
        assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))
