"""The sum on the residual stream and its RMSNorm."""

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


def add_norm(x: Tensor, delta: Tensor | None, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x + delta`` on the residual stream, and its RMSNorm (Zhang and Sennrich 2019, equation 4).

    ``x`` and ``delta`` are [..., width], ``gain`` [width]; without ``delta`` the sum is ``x``. The norm is reduced in
    fp32 and returned in the precision of matrix products, to which it is converted once for all of them.
    """
    if native(x) and x.dtype == gain.dtype == torch.float32:
        total, normalised, _ = _AddNorm.apply(x, delta, gain, eps, product_dtype(x))  # type: ignore[no-untyped-call]
        return total, normalised
    total = x if delta is None else x + delta
    return total, F.rms_norm(total, gain.shape, gain.to(total.dtype), eps).to(product_dtype(x))


class _AddNorm(Function):
    """The gain is [width], or [members, width] where the first dimension of the rest is the members."""

    @staticmethod
    def forward(
        x: Tensor, delta: Tensor | None, gain: Tensor, eps: float, product: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, delta = x.contiguous(), delta if delta is None else delta.to(product).contiguous()
        total, normalised, scale = torch.empty_like(x), torch.empty_like(x, dtype=product), x.new_empty(x.shape[:-1])
        rows, width = scale.numel(), x.shape[-1]
        group = rows * width // gain.numel()
        call("add_norm", product, rows, width, group, eps, x, delta, gain.contiguous(), total, normalised, scale)
        return total, normalised, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, delta, gain, _, product = inputs
        total, _, scale = output
        ctx.mark_non_differentiable(scale)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, scale, gain.contiguous())
        ctx.product, ctx.delta = product, None if delta is None else delta.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direct: Tensor | None, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        total, scale, gain = ctx.saved_tensors
        rows, width = scale.numel(), total.shape[-1]
        grad_total, grad_gain = torch.empty_like(total), torch.zeros_like(gain)
        half = None if ctx.delta in (None, torch.float32) else torch.empty_like(total, dtype=ctx.product)
        direct = None if direct is None else direct.contiguous()
        arguments = (rows, width, rows * width // gain.numel(), total, scale, gain, direct, grad.contiguous())
        call("add_norm_back", ctx.product, *arguments, grad_total, half, grad_gain)
        grad_delta = None if ctx.delta is None else grad_total if half is None else half
        return grad_total, grad_delta, grad_gain, None, None

    @staticmethod
    def vmap(
        info: Any, dims: Any, x: Tensor, delta: Tensor | None, gain: Tensor, eps: float, product: torch.dtype
    ) -> Any:
        tensors = [batch_first(info.batch_size, dim, t) for dim, t in zip(dims, (x, delta, gain), strict=False)]
        return _AddNorm.apply(*tensors, eps, product), (0, 0, 0)  # type: ignore[no-untyped-call]
