"""Expert parallel: the experts of each layer are distributed over the ``ep`` ranks, and tokens travel to their experts.

The method is GShard's (Lepikhin et al. 2020, arXiv 2006.16668, section 3.2) without padding. Ranks exchange the number
of rows for each expert, exchange the rows (all-to-all), compute, and send the results back the same way. The routing
weight of a token stays on the token's rank and is not sent.

Under ``tp`` every rank routes the tokens of its own part of the sequence, and experts stay whole. Experts are usually
narrow: splitting one would make thin matrix products and need every sequence on every rank. For experts, the ``tp``
ranks therefore act as data ranks. Expert parameters are sharded over ``dp_shard``, ``cp`` and ``tp`` together (FSDP2),
without copies, and the reduce-scatter sums their gradients. A shared expert is split over ``tp`` like every other
matrix. The router is whole on every rank, and its gradient is summed like that of a norm's gain.

The bias that balances experts follows the load of the whole batch, summed over all ranks with tokens of the batch.

Trade-off: the host needs the sizes of each exchange, so it waits for the device once per layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from armillary.model import MixtureOfExperts, balance_experts, dispatch, grouped_swiglu, mixtures
from armillary.parallel.collectives import all_gather_single, all_to_all_single, wait_tensor
from armillary.parallel.context import split_context
from armillary.parallel.mesh import Grid


def shard_experts(model: nn.Module, grid: Grid) -> None:
    """Keep only this rank's experts in ``model``, and exchange tokens with the ranks that hold the others."""
    for mixture in mixtures(model):
        if grid.layout.ep > 1:
            mixture.experts = DealtExperts(mixture.experts, grid)
            mixture.compute = Exchange(grid.group("ep"))
        if grid.layout.cp * grid.layout.tp > 1 and (
            mixture.spec.capacity_factor or mixture.spec.balance == "auxiliary"
        ):
            mixture.sequence = WholeSequences(grid)


def shard_expert_data(mixture: MixtureOfExperts, grid: Grid, mixed: MixedPrecisionPolicy, reshard: bool) -> None:
    """Shard this rank's experts over the ranks that hold the same experts."""
    mesh = grid.sharded(experts=True)
    shards = grid.layout.dp_shard * grid.layout.cp * grid.layout.tp
    experts = mixture.spec.count // grid.layout.ep

    def placement(parameter: nn.Parameter) -> Shard:
        # shard by whole experts if they divide evenly, else by the rows of each expert
        rows = experts % shards != 0 and parameter.shape[1] % shards == 0
        return Shard(1 if rows else 0)

    fully_shard(
        mixture.experts, mesh=mesh, reshard_after_forward=reshard, mp_policy=mixed, shard_placement_fn=placement
    )


def balance_dealt_experts(model: nn.Module, grid: Grid) -> None:
    """``balance_experts`` with the load summed over all ranks."""

    def total(load: Tensor) -> Tensor:
        dist.all_reduce(load, group=grid.tokens_group())
        if grid.layout.tp > 1:
            dist.all_reduce(load, group=grid.group("tp"))
        return load

    balance_experts(model, total)


class DealtExperts(nn.Module):
    """This rank's part of ``experts``, under the same parameter names."""

    def __init__(self, experts: nn.Module, grid: Grid) -> None:
        super().__init__()
        for name, parameter in experts.named_parameters():
            own = parameter.chunk(grid.layout.ep)[grid.rank("ep")].detach()
            dealt = DTensor.from_local(own, grid.mesh["ep"], [Shard(0)], run_check=False)
            self.register_parameter(name, nn.Parameter(dealt, requires_grad=parameter.requires_grad))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """As ``grouped_swiglu``."""
        matrices = (getattr(self, name).to_local() for name in ("gate", "up", "down"))
        return grouped_swiglu(rows, counts, *matrices)


class Exchange:
    """``experts(rows, counts)`` where each rank of ``group`` holds an equal part of the experts."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.ranks = group, group.size()

    def __call__(self, experts: nn.Module, rows: Tensor, counts: Tensor) -> Tensor:
        """Map rows [M, d], sorted by expert with ``counts`` [count] rows each, to results [M, d] in the same order."""
        arriving = wait_tensor(all_to_all_single(counts, None, None, self.group))
        sizes = torch.stack((counts, arriving)).view(2, self.ranks, -1)
        leave, arrive = sizes.sum(2).tolist()
        # rows arrive sorted by source rank, then by expert
        own = torch.arange(sizes.shape[2], device=rows.device).repeat(self.ranks)
        order = own.repeat_interleave(arriving, output_size=sum(arrive)).argsort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        kept = sum(leave)
        received: Tensor = _AllToAll.apply(rows[:kept], arrive, leave, self.group)
        results = experts(dispatch(received, order, place, 1), sizes[1].sum(0))
        returned: Tensor = _AllToAll.apply(dispatch(results, place, order, 1), leave, arrive, self.group)
        return returned if kept == len(rows) else nn.functional.pad(returned, (0, 0, 0, len(rows) - kept))


class WholeSequences:
    """Gathers the router's choices for whole sequences from the parts that the ranks hold."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def __call__(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, own T, active] to [B, T, active] in sequence order; also return this rank's positions in it."""
        cp, tp = self.grid.layout.cp, self.grid.layout.tp
        whole = chosen
        for name, ranks in (("tp", tp), ("cp", cp)):
            if ranks > 1:
                whole = wait_tensor(all_gather_single(whole, 1, self.grid.group(name)))
        positions = torch.arange(whole.shape[1], device=chosen.device)
        parts = [part for rank in range(cp) for part in split_context(positions, rank, cp).chunk(tp)]
        mine = parts[self.grid.rank("cp") * tp + self.grid.rank("tp")]
        return whole[:, torch.cat(parts).argsort()], mine


class _AllToAll(Function):
    """All-to-all: sends ``leave[r]`` rows to rank r and receives ``arrive[r]`` from it; gradients take the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, arrive: list[int], leave: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = (leave, arrive), group
        arrived: Tensor = wait_tensor(all_to_all_single(rows.contiguous(), arrive, leave, group))
        return arrived

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        arrive, leave = ctx.sizes
        return wait_tensor(all_to_all_single(grad.contiguous(), arrive, leave, ctx.group)), None, None, None
