"""Tensor parallel: every matrix cut over the ranks, and with sequence parallel also what lies between the matrices.

As Megatron-LM does it (Shoeybi et al. 2019, arXiv 1909.08053, section 3; Korthikanti et al. 2022, arXiv 2205.05198,
section 4.2.2): q, k, v, gate and up by rows, so that each rank has whole heads; out and down by columns; the embedding
and the output matrix by tokens of the vocabulary. With ``sequence_parallel`` the residual stream and its norms hold a
part of each sequence per rank; sequences are gathered before the matrices and scattered after.

The loss over the vocabulary never sees a whole row of logits: each rank computes those of its tokens, block by block,
and the ranks exchange one number per row for the partition function and one for the target's logit.

Gains of norms are whole on every rank. Their gradients are only each rank's part (its tokens, its heads) and are summed
over the ranks once per optimizer step (``partial_gradients``).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.distributed._functional_collectives import (
    AsyncCollectiveTensor,
    all_gather_single,
    all_reduce,
    reduce_scatter_single,
    wait_tensor,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    PrepareModuleInputOutput,
    RowwiseParallel,
    parallelize_module,
)

from armillary.model import Layer, MixtureOfExperts, Transformer, check_tokens
from armillary.model.operators import block_rows, product_dtype
from armillary.parallel.mesh import Grid


def shard_tensors(model: Transformer, grid: Grid) -> None:
    """Cut the matrices of ``model`` over the ``tp`` ranks, in place."""
    mesh = grid.mesh["tp"]
    between = Shard(1) if grid.layout.sequence_parallel else Replicate()
    if model.embedding is not None:
        distribute_module(model.embedding, mesh, _cut_vocabulary)
        model.embedding.forward = partial(_embed, model.embedding, grid)  # type: ignore[method-assign]
    for layer in cast(Iterable[Layer], model.layers.values()):
        plan = {
            "attention": PrepareModuleInput(
                input_layouts=(between, None, None), desired_input_layouts=(Replicate(), None, None)
            ),
            "attention.q": ColwiseParallel(),
            "attention.k": ColwiseParallel(),
            "attention.v": ColwiseParallel(),
            "attention.out": RowwiseParallel(output_layouts=between),
        }
        block: Any = layer.feed_forward
        taking: list[nn.Module] = [layer.attention, block]
        giving: list[nn.Module] = [layer.attention.out]
        path, inside = "feed_forward", between
        if isinstance(block, MixtureOfExperts):
            # each rank routes its part of the sequence, also where the residual stream is whole on every rank
            plan[path] = PrepareModuleInputOutput(
                input_layouts=(between,),
                desired_input_layouts=(Shard(1),),
                use_local_input=True,
                output_layouts=(Shard(1),),
                desired_output_layouts=(between,),
            )
            giving.append(block)
            path, inside, block = f"{path}.shared", Shard(1), block.shared
        if block is not None:
            plan |= {
                path: PrepareModuleInput(input_layouts=(inside,), desired_input_layouts=(Replicate(),)),
                f"{path}.gate": ColwiseParallel(),
                f"{path}.up": ColwiseParallel(),
                f"{path}.down": RowwiseParallel(output_layouts=inside),
            }
            giving.append(block.down)
            taking.append(block)
        parallelize_module(layer, mesh, plan)
        for module in dict.fromkeys(taking):
            module.register_forward_pre_hook(lambda _, inputs: (_Arrived.apply(inputs[0]), *inputs[1:]))
        for module in giving:
            module.register_forward_hook(lambda *arguments: _Arrived.apply(arguments[-1]))
    if model.output is not None:
        parallelize_module(model.output, mesh, ColwiseParallel())
    if model.part.ends:
        model.criterion = VocabularyParallelLoss(grid)


def partial_gradients(model: Transformer, grid: Grid) -> list[nn.Parameter]:
    """The parameters that are whole on every ``tp`` rank and whose gradients are only this rank's part."""
    ends = ("q_norm.weight", "k_norm.weight", "router.weight")
    gains = grid.layout.sequence_parallel
    return [p for name, p in model.named_parameters() if name.endswith(ends) or (gains and p.ndim == 1)]


def _cut_vocabulary(_: str, embedding: nn.Module, mesh: DeviceMesh) -> None:
    weight = cast(nn.Embedding, embedding).weight
    embedding.weight = nn.Parameter(distribute_tensor(weight, mesh, [Shard(0)]))


def _embed(embedding: nn.Embedding, grid: Grid, tokens: Tensor) -> Tensor:
    """Token ids [B, T] to [B, T, d], or this rank's part of the sequence of it.

    Each rank looks up its own tokens of the vocabulary. DTensor's embedding would do the same, but make the gradient of
    the whole vocabulary on each rank.
    """
    assert isinstance(embedding.weight, DTensor)
    weight, group = embedding.weight.to_local(), grid.group("tp")
    _refuse_outside(tokens, len(weight) * group.size())
    own = tokens - dist.get_rank(group) * len(weight)
    here = (own >= 0) & (own < len(weight))
    found = F.embedding(own.clamp(0, len(weight) - 1), weight) * here[..., None]
    summed: Tensor = (_ScatterSequence if grid.layout.sequence_parallel else _Sum).apply(found, group)
    return summed


def _refuse_outside(tokens: Tensor, vocab_size: int) -> None:
    """No rank holds such a token: its embedding or logit would be 0 and the step go on, where one device fails.

    Raises:
        TokenError: a token below 0 or beyond the vocabulary; on an accelerator it is an error of the device.
    """
    check_tokens(tokens, vocab_size)
    if tokens.device.type != "cpu":
        inside = ((tokens >= 0) & (tokens < vocab_size)).all()
        torch._assert_async(inside, f"a token lies outside of the vocabulary of {vocab_size}")  # no wait for the device


class VocabularyParallelLoss:
    """``operators.linear_cross_entropy`` with the output matrix cut over the ``tp`` ranks by vocabulary."""

    def __init__(self, grid: Grid) -> None:
        self.group, self.gathers = grid.group("tp"), grid.layout.sequence_parallel

    def __call__(self, features: Tensor, weight: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
        """As ``operators.linear_cross_entropy``; the sums of both losses are the same on every rank.

        Raises:
            TokenError: a target is outside of the vocabulary, as ``operators.linear_cross_entropy`` has it.
        """
        assert isinstance(weight, DTensor)
        _refuse_outside(targets, weight.shape[0])
        x = (_GatherSequence if self.gathers else _SumGradient).apply(features, self.group)
        objective, entropy, *_ = _VocabularyLoss.apply(
            x.flatten(0, -2),
            weight.to_local(),
            targets.flatten(),
            z_loss,
            self.group,
            product_dtype(x),
            torch.is_grad_enabled(),
        )
        return objective, entropy


class _Arrived(Function):
    """What a collective is still bringing, once it is there: kernels need an address."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        arrived: Tensor = x.wait() if isinstance(x, AsyncCollectiveTensor) else x.view_as(x)
        return arrived

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        arrived: Tensor = grad.wait() if isinstance(grad, AsyncCollectiveTensor) else grad
        return arrived


class _GatherSequence(Function):
    """[B, T / ranks, d] of each rank to [B, T, d]; the gradients of all ranks are summed and cut apart again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        whole: Tensor = wait_tensor(all_gather_single(x, gather_dim=1, group=group))
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return wait_tensor(reduce_scatter_single(grad, "sum", scatter_dim=1, group=ctx.group)), None


class _ScatterSequence(Function):
    """[B, T, d] of each rank, summed and cut into [B, T / ranks, d]; the gradients are gathered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        own: Tensor = wait_tensor(reduce_scatter_single(x, "sum", scatter_dim=1, group=group))
        return own

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return wait_tensor(all_gather_single(grad, gather_dim=1, group=ctx.group)), None


class _Sum(Function):
    """The sum over all ranks, whose gradient is the same on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        whole: Tensor = wait_tensor(all_reduce(x, "sum", group))
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _SumGradient(Function):
    """The same on every rank; the gradients of all ranks are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return wait_tensor(all_reduce(grad, "sum", ctx.group)), None


class _VocabularyLoss(Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        targets: Tensor,
        z_loss: float,
        group: dist.ProcessGroup,
        product: torch.dtype,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        x, matrix = features.to(product), weight.to(product)
        own = targets - dist.get_rank(group) * len(weight)  # negative or too large where another rank has the target
        # by an argument: what needs a gradient is also told where nobody will ask for one (torch.no_grad)
        if with_gradient:
            grad_x, grad_matrix = torch.empty_like(x), torch.zeros_like(matrix, dtype=torch.float32)
        sums = torch.zeros(2, dtype=torch.float32, device=x.device)
        rows = block_rows(x, len(weight))
        for start in range(0, len(x), rows):
            block, wanted = x[start : start + rows], own[start : start + rows]
            logits = (block @ matrix.mT).float()
            here = (wanted >= 0) & (wanted < len(weight))
            at = wanted.clamp(0, len(weight) - 1)[:, None]
            part = torch.stack([torch.logsumexp(logits, 1), torch.where(here, logits.gather(1, at)[:, 0], 0.0)])
            parts = wait_tensor(all_gather_single(part[None], gather_dim=0, group=group))
            log_z, logit = torch.logsumexp(parts[:, 0], 0), parts[:, 1].sum(0)
            sums += torch.stack([(log_z - logit).sum(), log_z.square().sum()])
            if with_gradient:
                slope = torch.exp_(logits.sub_(log_z[:, None])).mul_(1 + 2 * z_loss * log_z[:, None])
                slope.scatter_add_(1, at, -here[:, None].float())
                slope = slope.to(product)
                torch.mm(slope, matrix, out=grad_x[start : start + rows])
                grad_matrix.add_(slope.mT @ block)
        entropy, squares = (sums / len(x)).unbind()
        ctx.count, ctx.dtypes = len(x), (features.dtype, weight.dtype)
        if with_gradient:
            ctx.save_for_backward(grad_x, grad_matrix)
        ctx.mark_non_differentiable(entropy)
        ctx.set_materialize_grads(False)
        return entropy + z_loss * squares, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_objective: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        scale = grad_objective / ctx.count
        grads = [(grad * scale).to(dtype) for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return *grads, None, None, None, None, None
