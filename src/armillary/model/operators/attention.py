"""Causal attention with rotary positions and optional QK-norm."""

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
from armillary.model.places import Places, visible


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    places: Places,
    gains: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Causal grouped-query attention (Ainslie et al. 2023) with rotary positions (Su et al. 2021, equation 15).

    ``q`` is [B, T, n_heads * head_dim], ``k`` and ``v`` [B, T, n_kv_heads * head_dim]; ``places`` holds the rotary
    tables and where documents start, which tokens see no token before. With ``gains`` [head_dim] of queries and keys,
    both are normalised per head before they are turned (QK-norm). Returns [B, T, n_heads * head_dim].
    """
    q_gain, k_gain = gains or (None, None)
    if native(q) and q.dtype == product_dtype(q) and (q_gain is None or q_gain.dtype == torch.float32):
        tables = places.cos, places.sin, places.starts
        mixed: Tensor = _Attention.apply(q, k, v, *tables, q_gain, k_gain, eps)[0]  # type: ignore[no-untyped-call]
        return mixed
    mask = None
    if places.starts is not None:
        index = torch.arange(q.shape[1], device=q.device)
        mask = visible(places.starts, index, index)[:, None]
    q, k, v = prepare(q, k, v, places, gains, eps)
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q.shape != k.shape,
    )
    return mixed.transpose(1, 2).flatten(2)


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    places: Places,
    gains: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The steps of ``attention`` before the products: split q, k and v into heads, normalise and rotate q and k.

    Arguments are those of ``attention``. Returns q [B, T, n_heads, head_dim], k and v [B, T, n_kv_heads, head_dim].
    """
    head_dim = places.cos.shape[-1]
    q, k, v = (x.unflatten(-1, (-1, head_dim)) for x in (q, k, v))  # type: ignore[no-untyped-call]
    if gains is not None:
        q, k = (F.rms_norm(x, gain.shape, gain.to(x.dtype), eps) for x, gain in zip((q, k), gains, strict=True))
    q, k = (_Rotate.apply(x, places.cos, places.sin) for x in (q, k))  # type: ignore[no-untyped-call]
    return q, k, v


class _Attention(Function):
    """Gains are [head_dim], or [members, head_dim] where the first dimension of the rest is the members."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        starts: Tensor | None,
        q_gain: Tensor | None,
        k_gain: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        sizes = _attention_sizes(q, k, cos, q_gain)
        batch, length, n_heads, *_ = sizes
        cos, sin = cos.contiguous(), sin.contiguous()
        out = torch.empty_like(q)
        log_partition = q.new_empty((batch, n_heads, length), dtype=torch.float32)
        call("attention", q.dtype, *sizes, eps, q, k, v, cos, sin, starts, q_gain, k_gain, out, log_partition)
        return out, log_partition.view(*q.shape[:-2], n_heads, length)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, starts, q_gain, k_gain, ctx.eps = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*(x.contiguous() for x in tensors), starts, q_gain, k_gain, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        q, k, v, cos, sin, starts, q_gain, k_gain, out, log_partition = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (q, k, v)]
        grad_gains = [None if gain is None else torch.zeros_like(gain) for gain in (q_gain, k_gain)]
        sizes = _attention_sizes(q, k, cos, q_gain)
        tables = cos, sin, starts
        arguments = (q, k, v, *tables, q_gain, k_gain, out, log_partition, grad.contiguous(), *grads, *grad_gains)
        call("attention_back", q.dtype, *sizes, ctx.eps, *arguments)
        return *grads, None, None, None, *grad_gains, None

    @staticmethod
    def vmap(
        info: Any,
        dims: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        starts: Tensor | None,
        q_gain: Tensor | None,
        k_gain: Tensor | None,
        eps: float,
    ) -> Any:
        q, k, v, starts, q_gain, k_gain = (  # type: ignore[assignment]
            batch_first(info.batch_size, dims[i], t)
            for i, t in ((0, q), (1, k), (2, v), (5, starts), (6, q_gain), (7, k_gain))
        )
        if starts is not None:
            cos, sin = (batch_first(info.batch_size, dims[i], t) for i, t in ((3, cos), (4, sin)))  # type: ignore[assignment]
        tables = cos, sin, starts
        return _Attention.apply(q, k, v, *tables, q_gain, k_gain, eps), (0, 0)  # type: ignore[no-untyped-call]


def _attention_sizes(q: Tensor, k: Tensor, cos: Tensor, gain: Tensor | None) -> tuple[int, ...]:
    """Sequences, length, heads, kv heads, head_dim, how many share a member's gains, and whether each has tables."""
    length, batch = q.shape[-2], q.shape[:-2].numel()
    head_dim = cos.shape[-1]
    members = 1 if gain is None else gain.numel() // head_dim
    heads, kv_heads = q.shape[-1] // head_dim, k.shape[-1] // head_dim
    return batch, length, heads, kv_heads, head_dim, batch // members, int(cos.ndim > 2)


class _Rotate(Function):
    """Turns each pair (i, i + head_dim / 2) of the last dimension by its angle; the gradient is turned back."""

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _turn(x, cos, sin, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1), None, None

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        cos, sin = (t if dim is None else t.movedim(dim, 0) for t, dim in ((cos, dims[1]), (sin, dims[2])))
        return _Rotate.apply(batch_first(info.batch_size, dims[0], x), cos, sin), 0  # type: ignore[no-untyped-call]


def _turn(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    half = x.shape[-1] // 2
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    turned = x * cos  # fp32 even if x is half precision, because angles of late positions need the digits
    turned[..., :half].addcmul_(x[..., half:], sin, value=-direction)
    turned[..., half:].addcmul_(x[..., :half], sin, value=direction)
    return turned.to(x.dtype)
