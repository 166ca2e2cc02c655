"""Context parallel: each rank holds a part of every sequence, and attention covers all parts.

A sequence is split into twice as many chunks as there are ranks. Rank r of n holds chunks r and 2 n - 1 - r, so that
the causal mask leaves every rank the same number of query-key pairs (Llama Team 2024, arXiv 2407.21783, section 3.3.2).
Keys and values reach the queries in one of two ways:

- *all-gather*: all ranks' keys and values at once. The products are few and large, and each rank holds the keys and
  values of the whole sequence during a layer's attention.
- *ring*: one block at a time from the neighbour while the previous block is computed (Liu et al. 2023,
  arXiv 2310.01889). A rank's memory holds its own block and one more.

All queries see the front chunk of an earlier rank's keys, and none sees its back chunk. Only the queries of the back
chunk see a later rank's keys. So only a rank's own block needs a mask, and no masked pair of another block is computed.

Block results are merged by their log partition. In the backward pass, each block's gradient follows from the merged
output and log partition (Dao et al. 2022, arXiv 2205.14135, algorithm 4). Only a rank's own part is kept between the
passes: keys and values are sent again. On the ring their gradients travel with them, back to the rank that owns them.

PyTorch's own ``context_parallel`` has no rule for the CPU's attention kernel, hence this module.

Trade-offs:

- Gradients of keys and values travel in fp32, twice the bytes of bf16.
- The ring sends whole blocks even to ranks that need only the front half, because a later rank needs the rest.
- Without flash attention for the precision or the head dimension, a plain formula keeps all scores of a block in
  memory. The same holds for sequences with several documents: no kernel takes their mask and also returns the log
  partition of a query that sees no key of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from armillary.model import Layer, Places, Transformer, visible
from armillary.model.operators import prepare
from armillary.parallel.collectives import all_gather_single, reduce_scatter_single, wait_tensor
from armillary.parallel.mesh import Grid

aten = torch.ops.aten


def split_context(x: Tensor, rank: int, ranks: int) -> Tensor:
    """The chunks of ``x`` [..., T] that ``rank`` of ``ranks`` holds, along the last dimension: [..., T / ranks]."""
    chunks = x.chunk(2 * ranks, dim=-1)
    return torch.cat((chunks[rank], chunks[2 * ranks - 1 - rank]), dim=-1)


def shard_context(model: Transformer, grid: Grid) -> None:
    """Replace each layer's attention with one over the ``cp`` ranks."""
    kind = _RingAttention if grid.layout.context == "ring" else _GatheredAttention
    for layer in cast("Iterator[Layer]", model.layers.values()):
        layer.attention.core = ContextAttention(kind, grid.group("cp"))


class ContextAttention:
    """``operators.attention`` where each rank of ``group`` holds its chunks of the sequences."""

    def __init__(self, kind: type[Function], group: dist.ProcessGroup) -> None:
        self.kind, self.group = kind, group

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        places: Places,
        gains: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> Tensor:
        """As ``operators.attention``, for this rank's T / n tokens, whose positions are in ``places``."""
        q, k, v = (x.transpose(1, 2) for x in prepare(q, k, v, places, gains, eps))
        with torch.autocast(v.device.type, enabled=False):  # sums and partitions of blocks are fp32
            mixed: Tensor = self.kind.apply(
                q.to(v.dtype), torch.stack((k.to(v.dtype), v)), _Sight(self.group, places.starts)
            )
        return mixed.transpose(1, 2).flatten(2)


class _Sight:
    """Which keys this rank's queries see: by position alone, or also by document.

    Without documents the only mask is the causal one of a rank's own block, and the methods return None.
    """

    def __init__(self, group: dist.ProcessGroup, starts: Tensor | None) -> None:
        self.group, self.starts = group, starts

    def _places(self, length: int, rank: int) -> Tensor:
        assert self.starts is not None
        whole = torch.arange(length * self.group.size(), device=self.starts.device)
        return split_context(whole, rank, self.group.size())

    def of_block(self, length: int, source: int, queries: slice, keys: slice) -> Tensor | None:
        """The mask [B, 1, queries, keys] for the block of rank ``source``; a rank holds ``length`` tokens."""
        return self._mask(length, queries, self._places(length, source)[keys]) if self.starts is not None else None

    def of_whole(self, length: int, queries: slice, keys: slice) -> Tensor | None:
        """The same for keys of the whole sequence."""
        if self.starts is None:
            return None
        return self._mask(length, queries, torch.arange(keys.start, keys.stop, device=self.starts.device))

    def _mask(self, length: int, queries: slice, keys: Tensor) -> Tensor:
        assert self.starts is not None
        own = self._places(length, self.group.rank())[queries]
        return visible(self.starts[:, queries], own, keys)[:, None]


_ALL = slice(None)


class _GatheredAttention(Function):
    """Attention by all-gather. q is [B, heads, T / n, head_dim]; kv [2, B, kv heads, T / n, head_dim] stacks both."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, sight: _Sight) -> Tensor:
        group, length = sight.group, q.shape[2]
        arriving = all_gather_single(kv, 0, group)
        # copied: the other blocks are merged in place, and selective recompute may keep the kernel's output
        mask = sight.of_block(length, group.rank(), _ALL, _ALL)
        out, log_z = (x.clone() for x in _attend(q, kv, causal=True, mask=mask))
        whole = _in_order(wait_tensor(arriving), group)
        for queries, keys in _unmasked(length, group):
            mask = sight.of_whole(length, queries, keys)
            _merge(out, log_z, queries, _attend(q[:, :, queries], whole[..., keys, :], causal=False, mask=mask))
        out = out.to(q.dtype)
        ctx.sight = sight
        ctx.save_for_backward(q, kv, out, log_z)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        q, kv, out, log_z = ctx.saved_tensors
        sight, group, length = ctx.sight, ctx.sight.group, q.shape[2]
        rank, ranks = group.rank(), group.size()
        arriving = all_gather_single(kv, 0, group)
        mask = sight.of_block(length, rank, _ALL, _ALL)
        grad_q, own = _attend_back((grad, q, out, log_z), kv, causal=True, mask=mask)
        whole = _in_order(wait_tensor(arriving), group)
        grad_whole = torch.zeros_like(whole, dtype=torch.float32)
        for queries, keys in _unmasked(length, group):
            part = [x[:, :, queries] for x in (grad, q, out, log_z)]
            mask = sight.of_whole(length, queries, keys)
            found = _attend_back(part, whole[..., keys, :], causal=False, mask=mask)
            grad_q[:, :, queries] += found[0]
            grad_whole[..., keys, :] += found[1]
        # the chunks that split_context gives each rank
        chunks = grad_whole.chunk(2 * ranks, dim=-2)
        parts = torch.stack([torch.cat((chunks[r], chunks[2 * ranks - 1 - r]), dim=-2) for r in range(ranks)])
        parts[rank] += own
        grad_kv = wait_tensor(reduce_scatter_single(parts.flatten(0, 1), "sum", 0, group))
        return grad_q.to(q.dtype), grad_kv.to(kv.dtype), None


class _RingAttention(Function):
    """Attention around the ring, with the shapes of ``_GatheredAttention``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, sight: _Sight) -> Tensor:
        group, length = sight.group, q.shape[2]
        out = log_z = torch.empty(0)
        for source, block in _round(kv, group):
            own = source == group.rank()
            queries, keys = (_ALL, _ALL) if own else _seen(source, length, group)
            mask = sight.of_block(length, source, queries, keys)
            found = _attend(q[:, :, queries], block[..., keys, :], causal=own, mask=mask)
            if own:
                out, log_z = (x.clone() for x in found)
            else:
                _merge(out, log_z, queries, found)
        out = out.to(q.dtype)
        ctx.sight = sight
        ctx.save_for_backward(q, kv, out, log_z)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        q, kv, out, log_z = ctx.saved_tensors
        sight, group, length = ctx.sight, ctx.sight.group, q.shape[2]
        grad_q = torch.empty(0)
        arriving: Callable[[], Tensor] | None = None
        for source, block in _round(kv, group):
            own = source == group.rank()
            queries, keys = (_ALL, _ALL) if own else _seen(source, length, group)
            mask = sight.of_block(length, source, queries, keys)
            part = [x[:, :, queries] for x in (grad, q, out, log_z)]
            found = _attend_back(part, block[..., keys, :], causal=own, mask=mask)
            if own:
                grad_q, grad_block = found
            else:
                grad_q[:, :, queries] += found[0]
                grad_block = torch.zeros_like(block, dtype=torch.float32)
                grad_block[..., keys, :] = found[1]
            if arriving is not None:  # the sum of earlier ranks for this block
                grad_block += arriving()
            arriving = _pass_on(grad_block, group)
        assert arriving is not None
        # after a full round, these are the gradients of this rank's own block
        return grad_q.to(q.dtype), arriving().to(kv.dtype), None


def _in_order(gathered: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Blocks of all ranks [ranks * 2, B, heads, T / ranks, head_dim] as whole sequences [2, B, heads, T, head_dim]."""
    front, back = gathered.unflatten(0, (group.size(), 2)).chunk(2, dim=-2)
    return torch.cat((*front, *back.flip(0)), dim=-2)


def _unmasked(length: int, group: dist.ProcessGroup) -> Iterator[tuple[slice, slice]]:
    """Queries of this rank, and the keys outside its block that these queries all see, as slices of whole sequences."""
    rank, ranks, chunk = group.rank(), group.size(), length // 2
    if rank > 0:
        yield slice(None), slice(0, rank * chunk)
    if rank < ranks - 1:
        yield slice(chunk, None), slice((rank + 1) * chunk, (2 * ranks - 1 - rank) * chunk)


def _seen(source: int, length: int, group: dist.ProcessGroup) -> tuple[slice, slice]:
    """Queries of this rank, and the keys of another rank ``source`` that exactly these queries see."""
    half = length // 2
    return (slice(None), slice(half)) if source < group.rank() else (slice(half, None), slice(None))


def _round(block: Tensor, group: dist.ProcessGroup) -> Iterator[tuple[int, Tensor]]:
    """Yield each rank and its block, this rank's first; the next block is received while one is in use."""
    ranks = group.size()
    for step in range(ranks):
        arriving = _pass_on(block, group) if step < ranks - 1 else None
        yield (group.rank() - step) % ranks, block
        if arriving is not None:
            block = arriving()


def _pass_on(x: Tensor, group: dist.ProcessGroup) -> Callable[[], Tensor]:
    """Start sending ``x`` to the next rank; the returned function waits for the previous rank's tensor."""
    rank, ranks = group.rank(), group.size()
    found = torch.empty_like(x)
    operations = [
        dist.P2POp(dist.isend, x, group=group, group_peer=(rank + 1) % ranks),
        dist.P2POp(dist.irecv, found, group=group, group_peer=(rank - 1) % ranks),
    ]
    works = dist.batch_isend_irecv(operations)

    def arrive() -> Tensor:
        for work in works:
            work.wait()
        return found

    return arrive


def _merge(out: Tensor, log_z: Tensor, queries: slice, block: tuple[Tensor, Tensor]) -> None:
    """Merge one more block's result for ``queries``, in place (Milakov and Gimelshein 2018, section 3.1)."""
    out, log_z = out[:, :, queries], log_z[:, :, queries]
    total = torch.logaddexp(log_z, block[1])
    out.mul_((log_z - total).exp_()[..., None]).addcmul_(block[0], (block[1] - total).exp_()[..., None])
    log_z.copy_(total)


def _has_flash(x: Tensor) -> bool:
    """Whether PyTorch has flash attention for ``x`` (device, dtype, head dimension) that returns its log partition."""
    name, key = "aten::_scaled_dot_product_flash_attention", torch._C._dispatch_key_for_device(x.device.type)
    fits = x.dtype in (torch.float16, torch.bfloat16) and x.shape[-1] % 8 == 0 and x.shape[-1] <= 256
    return fits and torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


def _attend(q: Tensor, kv: Tensor, causal: bool, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention of q to one block of keys and values: values and log partition [B, heads, T], both fp32.

    A ``mask`` [B, 1, queries, keys] replaces ``causal``; it may leave a query without any key.
    """
    if q.device.type == "cpu" and mask is None:
        out, log_z = aten._scaled_dot_product_flash_attention_for_cpu(q, *kv, 0.0, causal)
        return out.float(), log_z
    kv = kv.repeat_interleave(q.shape[1] // kv.shape[2], dim=2)
    if mask is not None or not _has_flash(q):
        return plain(q, kv, causal, mask)
    out, log_z, *_ = aten._scaled_dot_product_flash_attention(q, *kv, 0.0, causal)
    return out.float(), log_z


def _attend_back(
    queries: Sequence[Tensor], kv: Tensor, causal: bool, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """This block's part of the gradients of q and kv, fp32.

    ``queries`` holds the gradient of the output, q, and the output and log partition merged over all blocks.
    """
    grad, q, out, log_z = queries
    if q.device.type == "cpu" and mask is None:
        operator = aten._scaled_dot_product_flash_attention_for_cpu_backward
        grad_q, *grad_kv = operator(grad, q, *kv, out, log_z, 0.0, causal)
        return grad_q.float(), torch.stack(grad_kv).float()
    repeated = kv.repeat_interleave(q.shape[1] // kv.shape[2], dim=2)
    if mask is None and _has_flash(q):
        nothing = torch.empty(0, dtype=torch.uint64, device=q.device)  # the random state, unused without dropout
        lengths = q.shape[2], kv.shape[3]
        grad_q, *grad_kv = aten._scaled_dot_product_flash_attention_backward(
            grad, q, *repeated, out, log_z.contiguous(), None, None, *lengths, 0.0, causal, nothing, nothing
        )
    else:
        grad_q, *grad_kv = plain_back(queries, repeated, causal, mask)
    # summed over the heads that share keys and values
    shared: Tensor = torch.stack(grad_kv).float().unflatten(2, (kv.shape[2], -1)).sum(3)
    return grad_q.float(), shared


def plain(q: Tensor, kv: Tensor, causal: bool, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As ``_attend``, from the definition, for equally many heads of keys and queries."""
    scores = _scores(q, kv[0], causal, mask)
    log_z = scores.logsumexp(-1)
    # a query that sees no key has -inf, and -inf minus -inf would be NaN
    weights = (scores - log_z.clamp(min=torch.finfo(scores.dtype).min)[..., None]).exp()
    return weights @ kv[1].float(), log_z


def plain_back(
    queries: Sequence[Tensor], kv: Tensor, causal: bool, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``_attend_back``, for equally many heads of keys and queries: the gradients of q, keys and values."""
    grad, q, out, log_z = queries
    grad, (keys, values) = grad.float(), kv.float()
    weights = (_scores(q, keys, causal, mask) - log_z[..., None]).exp()
    slope = weights * (grad @ values.mT - (grad * out.float()).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    return slope @ keys, slope.mT @ q.float(), weights.mT @ grad


def _scores(q: Tensor, keys: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    scores: Tensor = q.float() @ keys.float().mT * q.shape[-1] ** -0.5
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    elif causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1)
        scores.masked_fill_(later, -torch.inf)
    return scores
