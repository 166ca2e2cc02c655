"""Tensor parallel: every matrix is split over the ranks, and with sequence parallel the residual stream as well.

The method is Megatron-LM's (Shoeybi et al. 2019, arXiv 1909.08053, section 3; Korthikanti et al. 2022,
arXiv 2205.05198, section 4.2.2). A parameter's role (``model.roles``) says how it is split. The first matrices of a
block are split by rows, so that each rank has whole heads, and the last matrices by columns. The embedding and the
output matrix are split by vocabulary. With ``sequence_parallel`` each rank holds a part of each sequence in the
residual stream and its norms. Sequences are gathered before a block and scattered after it.

The loss never needs a whole row of logits. Each rank computes the logits of its part of the vocabulary, block by block.
The ranks then exchange two numbers per row: one for the partition function and the target's logit.

Gains of norms and other small parameters are whole on every rank. Each rank computes only its part of their gradients
(its tokens, its heads). The parts are summed over the ranks once per optimizer step (``partial_gradients``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.distributed._functional_collectives import all_reduce
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from armillary.model import Layer, MixtureOfExperts, Role, Transformer, check_tokens
from armillary.model.operators import block_rows, counted_rows, counted_targets, product_dtype
from armillary.parallel.collectives import all_gather_single, reduce_scatter_single, wait_tensor
from armillary.parallel.mesh import Grid
from armillary.recipe import UsageError

# The dimension along which a parameter is split, by the cut of its role; other parameters are whole.
_CUT_DIMENSION = {"rows": 0, "columns": 1, "vocabulary": 0}


def shard_tensors(model: Transformer, grid: Grid) -> None:
    """Split the parameters of ``model`` over the ``tp`` ranks by their roles, in place.

    Raises:
        UsageError: a parameter cannot be split into ``tp`` equal parts.
    """
    for prefix, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            full = f"{prefix}.{name}"
            dim = _CUT_DIMENSION.get(model.roles[full].cut)
            if dim is None:
                continue
            if parameter.shape[dim] % grid.layout.tp:
                raise UsageError(
                    f"{full} is {' x '.join(map(str, parameter.shape))}: its {model.roles[full].cut} "
                    f"({parameter.shape[dim]}) must be a multiple of tp ({grid.layout.tp})"
                )
            cut = distribute_tensor(parameter, grid.mesh["tp"], [Shard(dim)])
            module.register_parameter(name, nn.Parameter(cut, requires_grad=parameter.requires_grad))
    if model.embedding is not None:
        model.embedding.forward = partial(_embed, model.embedding, grid)  # type: ignore[method-assign]
    for layer in cast(Iterable[Layer], model.layers.values()):
        parts = grid.layout.sequence_parallel
        _compute_own_part(layer.attention, grid, parts)
        block: nn.Module | None = layer.feed_forward
        if isinstance(block, MixtureOfExperts):
            # each rank routes its part of the sequence, even if the residual stream is whole on every rank
            block.forward = partial(_route_own_part, block.forward, grid.group("tp"), parts)  # type: ignore[method-assign]
            parts, block = True, block.shared
        if block is not None:
            _compute_own_part(block, grid, parts)
    if model.part.ends:
        loss = VocabularyParallelLoss(grid)
        model.criterion, model.token_criterion = loss, loss.each


def partial_gradients(model: Transformer, grid: Grid) -> list[nn.Parameter]:
    """The parameters that are whole on every ``tp`` rank but whose gradients are computed only in part on each."""
    cuts = ("whole", "once", "stream") if grid.layout.sequence_parallel else ("whole", "once")
    return [p for name, p in model.named_parameters() if p.requires_grad and model.roles[name].cut in cuts]


def _compute_own_part(block: nn.Module, grid: Grid, parts: bool) -> None:
    """Make ``block`` compute this rank's summand; with ``parts`` its input and output are parts of each sequence."""
    group = grid.group("tp")
    # the ranks' outputs are summed, so one of them adds the bias
    roles = cast(Mapping[str, Role], block.roles)
    others = [name for name, role in roles.items() if role.cut == "once"] if group.rank() else []
    once = [(block.get_submodule(module)._parameters, name) for module, _, name in (n.rpartition(".") for n in others)]
    enter, leave = (_GatherSequence, _ScatterSequence) if parts else (_SumGradient, _Sum)
    forward = block.forward
    cut = [
        (module._parameters, name)
        for module in block.modules()
        for name, parameter in module._parameters.items()
        if isinstance(parameter, DTensor)
    ]

    def call(x: Tensor, *rest: Any) -> Tensor:
        whole = enter.apply(x, group)
        held = [parameters[name] for parameters, name in (*cut, *once)]
        # plain tensors, so that nothing inside of the block is dispatched through DTensor
        for parameters, name in cut:
            parameters[name] = cast(DTensor, parameters[name]).to_local()  # type: ignore[assignment]
        for parameters, name in once:
            # not a new tensor of zeros: the parameter keeps its place in the graph, with a gradient of zeros
            parameters[name] = cast(Tensor, parameters[name]) * 0  # type: ignore[assignment]
        try:
            summand = forward(whole, *rest)
        finally:
            for (parameters, name), parameter in zip((*cut, *once), held, strict=True):
                parameters[name] = parameter
        summed: Tensor = leave.apply(summand, group)
        return summed

    block.forward = call


def _route_own_part(
    forward: Callable[[Tensor, Tensor | None], Tensor],
    group: dist.ProcessGroup,
    parts: bool,
    x: Tensor,
    counted: Tensor | None = None,
) -> Tensor:
    """Run ``forward`` on this rank's part of each sequence.

    With ``parts``, x and the result are parts of each sequence; otherwise they are whole on every rank. ``counted``
    [B, T] are the weights of whole sequences.
    """
    own = None if counted is None else counted.chunk(group.size(), dim=1)[group.rank()]
    if parts:
        return forward(x, own)
    whole: Tensor = _JoinSequence.apply(forward(_OwnSequence.apply(x, group), own), group)
    return whole


def _embed(embedding: nn.Embedding, grid: Grid, tokens: Tensor) -> Tensor:
    """Map token ids [B, T] to [B, T, d], or with sequence parallel to this rank's part [B, T / ranks, d].

    Each rank looks up its own part of the vocabulary. DTensor's embedding would do the same, but would allocate the
    gradient of the whole vocabulary on each rank.
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
    """Refuse a token that no rank holds: its embedding or logit would be 0, where a single device raises an error.

    Raises:
        TokenError: a token below 0 or beyond the vocabulary. On an accelerator it is an error of the device.
    """
    check_tokens(tokens, vocab_size)
    if tokens.device.type != "cpu":
        inside = ((tokens >= 0) & (tokens < vocab_size)).all()
        torch._assert_async(inside, f"a token is outside the vocabulary of {vocab_size}")  # asynchronous: no sync


class VocabularyParallelLoss:
    """``operators.linear_cross_entropy`` with the output matrix split over the ``tp`` ranks by vocabulary."""

    def __init__(self, grid: Grid) -> None:
        self.group, self.gathers = grid.group("tp"), grid.layout.sequence_parallel

    def __call__(
        self, features: Tensor, weight: Tensor, targets: Tensor, z_loss: float, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``operators.linear_cross_entropy``; the sums of both losses are the same on every rank.

        Raises:
            TokenError: a target is outside of the vocabulary, as in ``operators.linear_cross_entropy``.
        """
        assert isinstance(weight, DTensor)
        targets = counted_targets(targets, weights)
        _refuse_outside(targets, weight.shape[0])
        x = (_GatherSequence if self.gathers else _SumGradient).apply(features, self.group)
        rows, targets = x.flatten(0, -2), targets.flatten()
        weights = None if weights is None else weights.flatten()
        if (counted := counted_rows(weights)) is not None and weights is not None:
            rows, targets, weights = rows[counted], targets[counted], weights[counted]
        objective, entropy, *_ = _VocabularyLoss.apply(
            rows,
            weight.to_local(),
            targets,
            weights,
            z_loss,
            self.group,
            product_dtype(x),
            torch.is_grad_enabled(),
        )
        return objective, entropy

    @torch.no_grad()
    def each(self, features: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """As ``operators.token_cross_entropy``; the same on every rank. Raises TokenError as ``__call__`` does."""
        assert isinstance(weight, DTensor)
        targets = counted_targets(targets, weights)
        _refuse_outside(targets, weight.shape[0])
        product, own_weight = product_dtype(features), weight.to_local()
        x = _GatherSequence.apply(features, self.group) if self.gathers else features
        x, matrix = x.flatten(0, -2).to(product), own_weight.to(product)
        own = targets.flatten() - dist.get_rank(self.group) * len(matrix)
        found = torch.empty(len(x), dtype=torch.float32, device=x.device)
        rows = block_rows(x, len(matrix))
        for start in range(0, len(x), rows):
            logits = (x[start : start + rows] @ matrix.mT).float()
            log_z, logit, *_ = _over_ranks(logits, own[start : start + rows], self.group)
            found[start : start + rows] = log_z - logit
        return found.view(weights.shape).masked_fill(weights == 0, 0.0)


def _gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Gather [B, T / ranks, d] of each rank to [B, T, d]."""
    whole: Tensor = wait_tensor(all_gather_single(x, gather_dim=1, group=group))
    return whole


def _summed_part(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum [B, T, d] over the ranks and return this rank's part [B, T / ranks, d]."""
    own: Tensor = wait_tensor(reduce_scatter_single(x, "sum", scatter_dim=1, group=group))
    return own


def _own_part(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return this rank's part [B, T / ranks, d] of [B, T, d], which is the same on every rank."""
    return x.chunk(group.size(), dim=1)[group.rank()].contiguous()


class _GatherSequence(Function):
    """Gathers [B, T / ranks, d] of each rank to [B, T, d]; the gradients of all ranks are summed and split again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _summed_part(grad, ctx.group), None


class _ScatterSequence(Function):
    """Sums [B, T, d] over the ranks and splits it into [B, T / ranks, d]; the gradients are gathered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _summed_part(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gathered(grad, ctx.group), None


class _OwnSequence(Function):
    """Takes this rank's [B, T / ranks, d] of a [B, T, d] that every rank holds; the gradients are gathered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _own_part(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gathered(grad, ctx.group), None


class _JoinSequence(Function):
    """Gathers [B, T / ranks, d] of each rank to [B, T, d]; the gradient, the same on every rank, is split again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _own_part(grad, ctx.group), None


class _Sum(Function):
    """Sums over all ranks; the gradient is the same on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        whole: Tensor = wait_tensor(all_reduce(x, "sum", group))
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _SumGradient(Function):
    """Identity, for an input that is the same on every rank; the gradients of all ranks are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return wait_tensor(all_reduce(grad, "sum", ctx.group)), None


def _over_ranks(logits: Tensor, wanted: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The log partition and the target's logit, each [rows], over all ranks.

    ``logits`` [rows, V] are those of this rank's tokens; ``wanted`` [rows] counts from this rank's first token. Also
    returns which targets are on this rank [rows], and their columns [rows, 1].
    """
    here = (wanted >= 0) & (wanted < logits.shape[1])
    at = wanted.clamp(0, logits.shape[1] - 1)[:, None]
    part = torch.stack([torch.logsumexp(logits, 1), torch.where(here, logits.gather(1, at)[:, 0], 0.0)])
    parts = wait_tensor(all_gather_single(part[None], gather_dim=0, group=group))
    return torch.logsumexp(parts[:, 0], 0), parts[:, 1].sum(0), here, at


class _VocabularyLoss(Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        z_loss: float,
        group: dist.ProcessGroup,
        product: torch.dtype,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        x, matrix = features.to(product), weight.to(product)
        own = targets - dist.get_rank(group) * len(weight)  # negative or too large if another rank has the target
        # an argument, because ctx.needs_input_grad is also true under torch.no_grad
        if with_gradient:
            grad_x, grad_matrix = torch.empty_like(x), torch.zeros_like(matrix, dtype=torch.float32)
        sums = torch.zeros(2, dtype=torch.float32, device=x.device)
        rows = block_rows(x, len(weight))
        for start in range(0, len(x), rows):
            block, wanted = x[start : start + rows], own[start : start + rows]
            logits = (block @ matrix.mT).float()
            log_z, logit, here, at = _over_ranks(logits, wanted, group)
            counted = torch.ones_like(log_z) if weights is None else weights[start : start + rows]
            sums += torch.stack([((log_z - logit) * counted).sum(), (log_z.square() * counted).sum()])
            if with_gradient:
                slope = torch.exp_(logits.sub_(log_z[:, None])).mul_(1 + 2 * z_loss * log_z[:, None])
                slope.scatter_add_(1, at, -here[:, None].float())
                slope = slope.mul_(counted[:, None]).to(product)
                torch.mm(slope, matrix, out=grad_x[start : start + rows])
                grad_matrix.add_(slope.mT @ block)
                del slope
            del logits  # else this block would be there while the next one is computed
        entropy, squares = sums.unbind()
        ctx.dtypes = features.dtype, weight.dtype
        if with_gradient:
            ctx.save_for_backward(grad_x, grad_matrix)
        ctx.mark_non_differentiable(entropy)
        ctx.set_materialize_grads(False)
        return entropy + z_loss * squares, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_objective: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        grads = [(grad * grad_objective).to(dtype) for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return *grads, None, None, None, None, None, None
