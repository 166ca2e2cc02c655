"""SwiGLU between its matrices."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from armillary.model.operators.common import (
    batch_first,
    call,
    native,
    product_dtype,
)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` (Shazeer 2020, equation 6) of two tensors [..., width]."""
    if native(gate) and gate.dtype == product_dtype(gate):
        gated: Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
        return gated
    return F.silu(gate) * up


class _SwiGLU(Function):
    @staticmethod
    def forward(gate: Tensor, up: Tensor) -> Tensor:
        out = torch.empty_like(gate, memory_format=torch.contiguous_format)
        call("swiglu", gate.dtype, out.numel(), gate.contiguous(), up.contiguous(), out)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*(x.contiguous() for x in inputs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grads = torch.empty_like(gate), torch.empty_like(up)
        call("swiglu_back", gate.dtype, grad.numel(), gate, up, grad.contiguous(), *grads)
        return grads

    @staticmethod
    def vmap(info: Any, dims: Any, gate: Tensor, up: Tensor) -> Any:
        tensors = (batch_first(info.batch_size, dim, x) for dim, x in zip(dims, (gate, up), strict=True))
        return _SwiGLU.apply(*tensors), 0  # type: ignore[no-untyped-call]
