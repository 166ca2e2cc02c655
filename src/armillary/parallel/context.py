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
attention for the precision or the head dimension, a plain formula computes with all scores of a block in memory; so it
does wherever sequences hold several documents, as no kernel takes their mask and returns the log partition of a query
that sees nothing of a block.
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
        places: Places,
        gains: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> Tensor:
        """As ``operators.attention``, for this rank's T / n tokens; ``places`` is for their positions."""
        q, k, v = (x.transpose(1, 2) for x in prepare(q, k, v, places, gains, eps))
        with torch.autocast(v.device.type, enabled=False):  # sums and partitions of blocks are fp32
            mixed: Tensor = self.kind.apply(
                q.to(v.dtype), torch.stack((k.to(v.dtype), v)), _Sight(self.group, places.starts)
            )
        return mixed.transpose(1, 2).flatten(2)


class _Sight:
    """Which keys the queries of this rank see: by their order alone, or also by the documents they belong to.

    Without documents nothing is masked but the future within a rank's own block, so there are no masks.
    """

    def __init__(self, group: dist.ProcessGroup, starts: Tensor | None) -> None:
        self.group, self.starts = group, starts

    def _places(self, length: int, rank: int) -> Tensor:
        assert self.starts is not None
        whole = torch.arange(length * self.group.size(), device=self.starts.device)
        return split_context(whole, rank, self.group.size())

    def of_block(self, length: int, source: int, queries: slice, keys: slice) -> Tensor | None:
        """The mask [B, 1, queries, keys] for the block of ``source``, of the ``length`` tokens that a rank has."""
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
    """q is [B, heads, T / n, head_dim], kv [2, B, kv heads, T / n, head_dim]: keys and values in one."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, sight: _Sight) -> Tensor:
        group, length = sight.group, q.shape[2]
        arriving = all_gather_single(kv, 0, group)
        # copied, since selective recompute may hold on to what a kernel gave, and the rest is merged into it
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
        # what split_context cuts out for each rank
        chunks = grad_whole.chunk(2 * ranks, dim=-2)
        parts = torch.stack([torch.cat((chunks[r], chunks[2 * ranks - 1 - r]), dim=-2) for r in range(ranks)])
        parts[rank] += own
        grad_kv = wait_tensor(reduce_scatter_single(parts.flatten(0, 1), "sum", 0, group))
        return grad_q.to(q.dtype), grad_kv.to(kv.dtype), None


class _RingAttention(Function):
    """Sizes as for ``_GatheredAttention``."""

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
            if arriving is not None:  # what the ranks before have found for this block
                grad_block += arriving()
            arriving = _pass_on(grad_block, group)
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
    """Whether PyTorch has an attention on the device of ``x`` that returns its log partition."""
    name, key = "aten::_scaled_dot_product_flash_attention", torch._C._dispatch_key_for_device(x.device.type)
    fits = x.dtype in (torch.float16, torch.bfloat16) and x.shape[-1] % 8 == 0 and x.shape[-1] <= 256
    return fits and torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


def _attend(q: Tensor, kv: Tensor, causal: bool, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention of q to one block of keys and values: values and log partition [B, heads, T], both fp32.

    A ``mask`` [B, 1, queries, keys] holds instead of ``causal``; it may leave a query nothing to see.
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

    ``queries`` are the gradient of the output, q, and output and log partition merged over all blocks.
    """
    grad, q, out, log_z = queries
    if q.device.type == "cpu" and mask is None:
        operator = aten._scaled_dot_product_flash_attention_for_cpu_backward
        grad_q, *grad_kv = operator(grad, q, *kv, out, log_z, 0.0, causal)
        return grad_q.float(), torch.stack(grad_kv).float()
    repeated = kv.repeat_interleave(q.shape[1] // kv.shape[2], dim=2)
    if mask is None and _has_flash(q):
        nothing = torch.empty(0, dtype=torch.uint64, device=q.device)  # random state, which no dropout needs
        lengths = q.shape[2], kv.shape[3]
        grad_q, *grad_kv = aten._scaled_dot_product_flash_attention_backward(
            grad, q, *repeated, out, log_z.contiguous(), None, None, *lengths, 0.0, causal, nothing, nothing
        )
    else:
        grad_q, *grad_kv = plain_back(queries, repeated, causal, mask)
    # what heads that share keys and values have found
    shared: Tensor = torch.stack(grad_kv).float().unflatten(2, (kv.shape[2], -1)).sum(3)
    return grad_q.float(), shared


def plain(q: Tensor, kv: Tensor, causal: bool, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As ``_attend``, for as many heads of keys as of queries, from the definition."""
    scores = _scores(q, kv[0], causal, mask)
    log_z = scores.logsumexp(-1)
    # where nothing is seen it is -inf, from which nothing may be subtracted
    weights = (scores - log_z.clamp(min=torch.finfo(scores.dtype).min)[..., None]).exp()
    return weights @ kv[1].float(), log_z


def plain_back(
    queries: Sequence[Tensor], kv: Tensor, causal: bool, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``_attend_back``, for as many heads of keys as of queries: the gradients of q, keys and values."""
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
