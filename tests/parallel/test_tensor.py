"""Tensor and data parallel in depth: random shapes, what exists on a rank, precision, and which kernels run."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from armillary.corpus import Batch
from armillary.model import TokenError, Transformer
from armillary.parallel import Program
from armillary.recipe import Layout, ModelShape, OptimizerSpec, RunSpec

from .runs import batches, specification, whole

CPU = torch.device("cpu")


def alone(spec: RunSpec) -> tuple[float, dict[str, torch.Tensor], float]:
    model = Transformer(spec.model)
    model.init_weights(spec.seed, spec.optimizer)
    loss = 0.0
    for part in batches(spec)[0].chunk(spec.accumulation):
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bf16"):
            objective, entropy = model.loss(part, spec.optimizer.z_loss)
        (objective / spec.batch_tokens).backward()
        loss += entropy.item() / spec.batch_tokens
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    return loss, grads, float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))


def spread(spec: RunSpec, layout: Layout) -> tuple[float, dict[str, torch.Tensor], float]:
    program = Program(spec, layout, CPU)
    program.init_weights()
    loss = program.gradients(Batch(batches(spec)[0])).item()
    grads = {name: whole(p.grad) for name, p in program.named_parameters()}
    return loss, grads, float(program.clip(1.0))


def raised_by_program(spec: RunSpec, layout: Layout, tokens: tuple[int, ...]) -> list[str]:
    """What a batch and a validation window with each token as an input, or as a target only, raise on this rank."""
    program = Program(spec, layout, CPU)
    program.init_weights()
    said = []
    for token in tokens:
        for column in (0, -1):
            batch = batches(spec)[0].clone()
            batch[:, column] = token
            for act in (lambda batch: program.gradients(Batch(batch)), program.entropy):
                with pytest.raises(TokenError) as caught:
                    act(batch)
                said.append(str(caught.value))
    return said


@pytest.mark.parametrize("layout", [Layout(tp=2), Layout(dp_shard=2), Layout(pp=2), Layout(cp=2)], ids=str)
def test_a_token_outside_of_the_vocabulary_is_an_error_on_all_ranks(layout: Layout, on_ranks: Any) -> None:
    """Under every layout as on one device: nothing is ignored, and no rank waits for another."""
    spec, tokens = specification(), (-100, -1, 2**40)
    expected = [f"token {token} is outside the vocabulary of {spec.model.vocab_size}" for token in tokens]
    for said in on_ranks(2, raised_by_program, spec, layout, tokens):
        assert len(said) == 12
        assert all(expected[place // 4] in text for place, text in enumerate(said))


@st.composite
def runs(draw: Any) -> tuple[RunSpec, Layout]:
    layout = draw(
        st.sampled_from(
            [Layout(tp=2), Layout(dp_shard=2), Layout(dp_shard=2, tp=2), Layout(dp_replicate=2, dp_shard=2)]
        )
    )
    layout = layout.model_copy(update={"sequence_parallel": draw(st.booleans()), "reshard": draw(st.booleans())})
    kv_heads = 2 * draw(st.integers(1, 2))
    shape = ModelShape(
        n_layers=draw(st.integers(1, 2)),
        d_model=draw(st.integers(3, 20)),
        n_heads=kv_heads * draw(st.integers(1, 2)),
        n_kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 4)),
        d_ff=2 * draw(st.integers(1, 20)),
        vocab_size=2 * draw(st.integers(2, 60)),
        tied_embeddings=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
    )
    base_width = draw(st.sampled_from([None, 5]))
    optimizer = OptimizerSpec(lr=1e-2, z_loss=draw(st.sampled_from([0.0, 0.1])), base_width=base_width)
    accumulation = draw(st.integers(1, 2))
    changes = {"model": shape, "optimizer": optimizer, "context_length": 2 * draw(st.integers(1, 20))}
    return specification(**changes, batch_sequences=4 * accumulation, accumulation=accumulation), layout


@pytest.mark.slow
@settings(max_examples=6)
@given(run=runs())
def test_random_shapes(run: tuple[RunSpec, Layout], on_ranks: Any) -> None:
    spec, layout = run
    expected, grads, norm = alone(spec)
    for loss, found, total in on_ranks(layout.ranks, spread, spec, layout):
        assert loss == pytest.approx(expected, abs=2e-6)
        assert total == pytest.approx(norm, rel=1e-5)
        for name, grad in found.items():
            assert torch.allclose(grad, grads[name], rtol=1e-5, atol=1e-6 * (1 + norm)), name


class Seen(TorchDispatchMode):
    """What exists on this rank while it is open: operations, and sizes and types of the plain tensors they make."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[tuple[str, tuple[int, ...], torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # what it does on local tensors comes by again
        out = func(*args, **(kwargs or {}))
        for one in torch.utils._pytree.tree_leaves((args, out)):
            # DTensor asks for the size of a sum by tensors without memory
            if isinstance(one, torch.Tensor) and not isinstance(one, FakeTensor) and one.device == CPU:
                self.made.add((str(func), tuple(one.shape), one.dtype))
        return out


def seen(spec: RunSpec, layout: Layout | None) -> set[tuple[str, tuple[int, ...], torch.dtype]]:
    batch = batches(spec)[0]
    program = None if layout is None else Program(spec, layout, CPU)
    if program is not None:
        program.init_weights()
    with Seen() as record:
        if program is None:
            alone(spec)
        else:
            program.gradients(Batch(batch))
            program.clip(1.0)
    return record.made


@pytest.mark.parametrize("tied", [False, True])
def test_no_rank_has_a_whole_row_of_logits_nor_a_whole_vocabulary(tied: bool, on_ranks: Any) -> None:
    shape = specification().model.model_copy(update={"vocab_size": 134, "tied_embeddings": tied})
    spec = specification(model=shape)
    assert any(134 in size for _, size, _ in seen(spec, None))
    for layout in (Layout(tp=2), Layout(tp=2, sequence_parallel=False), Layout(tp=2, dp_shard=2)):
        for made in on_ranks(layout.ranks, seen, spec, layout):
            assert any(67 in size for _, size, _ in made)
            assert not [one for one in made if 134 in one[1]]


def precisions(spec: RunSpec, layout: Layout) -> dict[str, set[torch.dtype]]:
    """In which precision parameters lie, are gathered and used, and gradients are added up and lie."""
    program = Program(spec, layout, CPU)
    program.init_weights()
    used = set()
    for layer in program.parts[0].layers.values():
        layer.feed_forward.down.register_forward_pre_hook(lambda module, _: used.add(module.weight.dtype))
    with Seen() as record:
        program.gradients(Batch(batches(spec)[0]))
    parameters = [p for _, p in program.named_parameters()]
    return {
        "parameters": {p.dtype for p in parameters},
        "gathered": {dtype for func, size, dtype in record.made if "allgather" in func and len(size) == 1},
        "used": used,
        "added": {dtype for func, size, dtype in record.made if "reduce_scatter" in func and len(size) == 1},
        "gradients": {p.grad.dtype for p in parameters if p.grad is not None},
    }


@pytest.mark.parametrize("layout", [Layout(dp_shard=2), Layout(dp_replicate=2, dp_shard=2)], ids=["fsdp", "hsdp"])
def test_half_precision_over_shards(layout: Layout, on_ranks: Any) -> None:
    """Gathered and used in bf16; master weights, and the sum of gradients, in fp32; near to autocast on one process."""
    spec = specification(precision="bf16")
    expected, grads, norm = alone(spec)
    whole_norm = alone(specification())[2]
    for found in on_ranks(layout.ranks, precisions, spec, layout):
        half, full = {torch.bfloat16}, {torch.float32}
        assert found == {"parameters": full, "gathered": half, "used": half, "added": full, "gradients": full}
    for loss, found, total in on_ranks(layout.ranks, spread, spec, layout):
        assert loss == pytest.approx(expected, abs=2e-3)
        assert total == pytest.approx(norm, rel=max(2e-2, 3 * abs(norm / whole_norm - 1)))
        for name, grad in found.items():
            assert torch.linalg.vector_norm(grad - grads[name]) < 0.05 * torch.linalg.vector_norm(grads[name]), name


# by name: the package exports functions under the names of its modules
USE_KERNELS = [import_module(f"armillary.model.operators.{name}") for name in ("attention", "loss", "norm", "swiglu")]


def kernels_called(spec: RunSpec, layout: Layout | None) -> set[str]:
    called = set()
    call = import_module("armillary.model.operators.common").call

    def noted(name: str, *arguments: Any) -> None:
        called.add(name)
        call(name, *arguments)

    for module in USE_KERNELS:
        module.call = noted
    try:
        if layout is None:
            alone(spec)
        else:
            spread(spec, layout)
    finally:
        for module in USE_KERNELS:
            module.call = call
    return called


def test_the_kernels_of_the_cpu_run_under_every_layout(on_ranks: Any) -> None:
    """But for the loss of a cut vocabulary, which is the same few products in PyTorch."""
    spec = specification()
    expected = kernels_called(spec, None)
    assert expected
    for layout in (Layout(tp=2), Layout(dp_shard=2), Layout(dp_shard=2, tp=2)):
        missing = {"cross_entropy"} if layout.tp > 1 else set()
        for found in on_ranks(layout.ranks, kernels_called, spec, layout):
            assert found == expected - missing


def loss_of(spec: RunSpec, layout: Layout | None, token: int, column: int) -> str | None:
    """How the loss of a batch ends, without a look at the batch before, if one of its tokens is ``token``."""
    batch = batches(spec)[0].clone()
    batch[1, column] = token
    try:
        if layout is None:
            model = Transformer(spec.model)
            model.init_weights(spec.seed, spec.optimizer)
            model.loss(batch)
        else:
            Program(spec, layout, CPU).parts[0].loss(batch)
    except IndexError as error:
        return str(error)
    return None


@pytest.mark.parametrize("layout", [Layout(tp=2), Layout(tp=2, sequence_parallel=False)], ids=["sequence", "whole"])
def test_the_loss_itself_refuses_a_token_outside_as_on_one_device(layout: Layout, on_ranks: Any) -> None:
    """As an input and as a target; no rank has it, so without a look it would count as a zero."""
    spec = specification()
    for token in (spec.model.vocab_size, -1, -100, 2**40):
        for column in (0, -1):  # only an input, only a target
            assert loss_of(spec, None, token, column) is not None
            said = on_ranks(2, loss_of, spec, layout, token, column)
            assert len(set(said)) == 1
            assert said[0].startswith(f"token {token} is outside the vocabulary of {spec.model.vocab_size} (")
    assert on_ranks(2, loss_of, spec, layout, spec.model.vocab_size - 1, -1) == [None, None]
