"""Context parallel: each rank holds a part of every sequence, and attention goes over all parts.

A sequence is cut into twice as many chunks as there are ranks; rank r of n holds chunks r and 2 n - 1 - r, one from
the front and the one that mirrors it, so that the causal mask leaves every rank the same number of pairs (as
Llama 3 does; Llama Team 2024, arXiv 2407.21783, section 3.3.2). Keys and values come to the queries in one of two ways:

- *all-gather*: those of all ranks at once; few, large products, and keys and values of the whole sequence on each
  rank for as long as a layer's attention takes.
- *ring*: block after block from the neighbour, while the block before is computed (Liu et al. 2023, arXiv 2310.01889);
  memory of a rank stays that of its part and of one more.

Of the keys of an earlier rank, all queries see the front chunk and none the back one; those of a later rank are seen by
the queries of the back chunk alone. So besides a rank's own block nothing is masked, and nothing masked is computed.
What a block gives is merged by its log partition. Backward, every block's gradient follows from the merged output and
log partition alone (Dao et al. 2022, arXiv 2205.14135, algorithm 4): nothing but a rank's own part is kept between the
passes, keys and values come once more, and on the ring their gradients travel with them until they are home.

PyTorch's own ``context_parallel`` has no rule for the attention kernel of the CPU, which is why this is here.

Trade-offs: gradients of keys and values travel in fp32, twice the bytes of bf16; the ring sends whole blocks, also to
ranks that need only their front half, since who comes next needs the rest; on an accelerator whose PyTorch has no flash
attention for the precision or the head dimension, a plain formula computes with all scores of a block in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.distributed._functional_collectives import all_gather_single, reduce_scatter_single, wait_tensor

from armillary.model import Layer, Transformer
from armillary.model.operators import prepare
from armillary.parallel.mesh import Grid

aten = torch.ops.aten


def split_context(x: Tensor, rank: int, ranks: int) -> Tensor:
    """The chunks of the last dimension of ``x`` [..., T] that ``rank`` of ``ranks`` holds: [..., T / ranks]."""
    chunks = x.chunk(2 * ranks, dim=-1)
    return torch.cat((chunks[rank], chunks[2 * ranks - 1 - rank]), dim=-1)


def shard_context(model: Transformer, grid: Grid) -> None:
    """Put an attention over the ``cp`` ranks in the place of each layer's."""
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
        rotary: tuple[Tensor, Tensor],
        gains: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> Tensor:
        """As ``operators.attention``, for this rank's T / n tokens; ``rotary`` is for their positions."""
        q, k, v = (x.transpose(1, 2) for x in prepare(q, k, v, rotary, gains, eps))
        with torch.autocast(v.device.type, enabled=False):  # sums and partitions of blocks are fp32
            mixed: Tensor = self.kind.apply(q.to(v.dtype), torch.stack((k.to(v.dtype), v)), self.group)
        return mixed.transpose(1, 2).flatten(2)


class _GatheredAttention(Function):
    """q is [B, heads, T / n, head_dim], kv [2, B, kv heads, T / n, head_dim]: keys and values in one."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, group: dist.ProcessGroup) -> Tensor:
        arriving = all_gather_single(kv, 0, group)
        # copied, since selective recompute may hold on to what a kernel gave, and the rest is merged into it
        out, log_z = (x.clone() for x in _attend(q, kv, causal=True))
        whole = _in_order(wait_tensor(arriving), group)
        for queries, keys in _unmasked(q.shape[2], group):
            _merge(out, log_z, queries, _attend(q[:, :, queries], whole[..., keys, :], causal=False))
        out = out.to(q.dtype)
        ctx.group = group
        ctx.save_for_backward(q, kv, out, log_z)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        q, kv, out, log_z = ctx.saved_tensors
        rank, ranks = ctx.group.rank(), ctx.group.size()
        arriving = all_gather_single(kv, 0, ctx.group)
        grad_q, own = _attend_back(grad, q, kv, out, log_z, causal=True)
        whole = _in_order(wait_tensor(arriving), ctx.group)
        grad_whole = torch.zeros_like(whole, dtype=torch.float32)
        for queries, keys in _unmasked(q.shape[2], ctx.group):
            part = [x[:, :, queries] for x in (grad, q, out, log_z)]
            found = _attend_back(part[0], part[1], whole[..., keys, :], part[2], part[3], causal=False)
            grad_q[:, :, queries] += found[0]
            grad_whole[..., keys, :] += found[1]
        # what split_context cuts out for each rank
        chunks = grad_whole.chunk(2 * ranks, dim=-2)
        parts = torch.stack([torch.cat((chunks[r], chunks[2 * ranks - 1 - r]), dim=-2) for r in range(ranks)])
        parts[rank] += own
        grad_kv = wait_tensor(reduce_scatter_single(parts.flatten(0, 1), "sum", 0, ctx.group))
        return grad_q.to(q.dtype), grad_kv.to(kv.dtype), None


class _RingAttention(Function):
    """Sizes as for ``_GatheredAttention``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, group: dist.ProcessGroup) -> Tensor:
        out = log_z = torch.empty(0)
        for source, block in _round(kv, group):
            if source == group.rank():
                out, log_z = (x.clone() for x in _attend(q, block, causal=True))
            else:
                queries, keys = _seen(source, q.shape[2], group)
                _merge(out, log_z, queries, _attend(q[:, :, queries], block[..., keys, :], causal=False))
        out = out.to(q.dtype)
        ctx.group = group
        ctx.save_for_backward(q, kv, out, log_z)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        q, kv, out, log_z = ctx.saved_tensors
        grad_q = torch.empty(0)
        arriving: Callable[[], Tensor] | None = None
        for source, block in _round(kv, ctx.group):
            if source == ctx.group.rank():
                grad_q, grad_block = _attend_back(grad, q, block, out, log_z, causal=True)
            else:
                queries, keys = _seen(source, q.shape[2], ctx.group)
                part = [x[:, :, queries] for x in (grad, q, out, log_z)]
                found = _attend_back(part[0], part[1], block[..., keys, :], part[2], part[3], causal=False)
                grad_q[:, :, queries] += found[0]
                grad_block = torch.zeros_like(block, dtype=torch.float32)
                grad_block[..., keys, :] = found[1]
            if arriving is not None:  # what the ranks before have found for this block
                grad_block += arriving()
            arriving = _pass_on(grad_block, ctx.group)
        assert arriving is not None
        # once round, they are the gradients of this rank's own block
        return grad_q.to(q.dtype), arriving().to(kv.dtype), None


def _in_order(gathered: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Blocks of all ranks [ranks * 2, B, heads, T / ranks, head_dim] as whole sequences [2, B, heads, T, head_dim]."""
    front, back = gathered.unflatten(0, (group.size(), 2)).chunk(2, dim=-2)
    return torch.cat((*front, *back.flip(0)), dim=-2)


def _unmasked(length: int, group: dist.ProcessGroup) -> Iterator[tuple[slice, slice]]:
    """Queries of a rank's ``length`` and keys of the whole sequence that they see entirely, besides its own block."""
    rank, ranks, chunk = group.rank(), group.size(), length // 2
    if rank > 0:
        yield slice(None), slice(0, rank * chunk)
    if rank < ranks - 1:
        yield slice(chunk, None), slice((rank + 1) * chunk, (2 * ranks - 1 - rank) * chunk)


def _seen(source: int, length: int, group: dist.ProcessGroup) -> tuple[slice, slice]:
    """Queries of this rank, and the keys of another rank ``source`` that all of them see and no other one does."""
    half = length // 2
    return (slice(None), slice(half)) if source < group.rank() else (slice(half, None), slice(None))


def _round(block: Tensor, group: dist.ProcessGroup) -> Iterator[tuple[int, Tensor]]:
    """Every rank and its block in turn, this rank's own first; the next is on its way while one is in use."""
    ranks = group.size()
    for step in range(ranks):
        arriving = _pass_on(block, group) if step < ranks - 1 else None
        yield (group.rank() - step) % ranks, block
        if arriving is not None:
            block = arriving()


def _pass_on(x: Tensor, group: dist.ProcessGroup) -> Callable[[], Tensor]:
    """Begin to send ``x`` to the next rank; the function returned waits for what the rank before has sent."""
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
    """Take in what ``queries`` found in one more block of keys, in place (Milakov and Gimelshein 2018, section 3.1)."""
    out, log_z = out[:, :, queries], log_z[:, :, queries]
    total = torch.logaddexp(log_z, block[1])
    out.mul_((log_z - total).exp_()[..., None]).addcmul_(block[0], (block[1] - total).exp_()[..., None])
    log_z.copy_(total)


def _has_flash(x: Tensor) -> bool:
    """Whether PyTorch has an attention on the device of ``x`` that tells its log partition."""
    name, key = "aten::_scaled_dot_product_flash_attention", torch._C._dispatch_key_for_device(x.device.type)
    fits = x.dtype in (torch.float16, torch.bfloat16) and x.shape[-1] % 8 == 0 and x.shape[-1] <= 256
    return fits and torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


def _attend(q: Tensor, kv: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention of q to one block of keys and values: values and log partition [B, heads, T], both fp32."""
    if q.device.type == "cpu":
        out, log_z = aten._scaled_dot_product_flash_attention_for_cpu(q, *kv, 0.0, causal)
        return out.float(), log_z
    kv = kv.repeat_interleave(q.shape[1] // kv.shape[2], dim=2)
    if not _has_flash(q):
        return plain(q, kv, causal)
    out, log_z, *_ = aten._scaled_dot_product_flash_attention(q, *kv, 0.0, causal)
    return out.float(), log_z


def _attend_back(
    grad: Tensor, q: Tensor, kv: Tensor, out: Tensor, log_z: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    """This block's part of the gradients of q and kv, fp32; ``out`` and ``log_z`` are merged over all blocks."""
    if q.device.type == "cpu":
        operator = aten._scaled_dot_product_flash_attention_for_cpu_backward
        grad_q, *grad_kv = operator(grad, q, *kv, out, log_z, 0.0, causal)
        return grad_q.float(), torch.stack(grad_kv).float()
    repeated = kv.repeat_interleave(q.shape[1] // kv.shape[2], dim=2)
    if _has_flash(q):
        nothing = torch.empty(0, dtype=torch.uint64, device=q.device)  # random state, which no dropout needs
        lengths = q.shape[2], kv.shape[3]
        grad_q, *grad_kv = aten._scaled_dot_product_flash_attention_backward(
            grad, q, *repeated, out, log_z.contiguous(), None, None, *lengths, 0.0, causal, nothing, nothing
        )
    else:
        grad_q, *grad_kv = plain_back(grad, q, repeated, out, log_z, causal)
    # what heads that share keys and values have found
    shared: Tensor = torch.stack(grad_kv).float().unflatten(2, (kv.shape[2], -1)).sum(3)
    return grad_q.float(), shared


def plain(q: Tensor, kv: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """As ``_attend``, for as many heads of keys as of queries, from the definition."""
    scores = _scores(q, kv[0], causal)
    log_z = scores.logsumexp(-1)
    return (scores - log_z[..., None]).exp() @ kv[1].float(), log_z


def plain_back(
    grad: Tensor, q: Tensor, kv: Tensor, out: Tensor, log_z: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``_attend_back``, for as many heads of keys as of queries: the gradients of q, keys and values."""
    grad, (keys, values) = grad.float(), kv.float()
    weights = (_scores(q, keys, causal) - log_z[..., None]).exp()
    slope = weights * (grad @ values.mT - (grad * out.float()).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    return slope @ keys, slope.mT @ q.float(), weights.mT @ grad


def _scores(q: Tensor, keys: Tensor, causal: bool) -> Tensor:
    scores: Tensor = q.float() @ keys.float().mT * q.shape[-1] ** -0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu_(1)
        scores.masked_fill_(later, -torch.inf)
    return scores
