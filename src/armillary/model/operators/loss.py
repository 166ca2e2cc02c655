"""The cross entropy of the output matrix's logits, computed block by block, so the full logits never exist at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from armillary.model.operators.common import (
    batch_first,
    block_rows,
    call,
    check_tokens,
    native,
    product_dtype,
)


def mean_share(total: Tensor, batch_weight: float | Tensor, parts: int) -> Tensor:
    """The contribution of one of ``parts`` equal parts of a batch to its mean: ``total`` / ``batch_weight``, in fp32.

    ``total`` is the part's sum (``linear_cross_entropy``) and ``batch_weight`` the weight of the whole batch; in a
    stack, each member has its own [members]. The division has two steps: by a part's share of the weight, then by the
    number of parts. If all weights are 1, the share is the number of predictions in the part, and the result has the
    same bits as a mean of the parts' means.
    """
    return (total / (batch_weight / parts)).float() / parts


def reduce_logits(
    logits: Tensor, targets: Tensor, weights: Tensor | None, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce a block of logits [members, rows, V] to its part of the loss and the gradient of the objective.

    ``targets`` (int64) and ``weights`` (fp32) are [members, rows, 1]. Returns the sums of cross entropies and of
    squared log partition functions, [members] in fp32, and the gradient in the shape and precision of ``logits``.
    """
    log_probabilities, entropy, log_partition = _log_softmax(logits, targets)
    # d objective / d logits: p (1 + 2 z log Z) - 1[target], times the weight
    gradient = log_probabilities.exp_()
    if z_loss:
        gradient.mul_(1 + 2 * z_loss * log_partition)
    gradient.scatter_add_(2, targets, torch.full_like(log_partition, -1.0))
    total, squares = (_weighted(term, weights).sum((1, 2)) for term in (entropy, log_partition.square()))
    return total, squares, _weighted(gradient, weights).to(logits.dtype)


def _log_softmax(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log probabilities in fp32, and of each row the cross entropy and the log of the partition function."""
    # one pass over half-precision logits; the partition function follows from the target's logit without another
    log_probabilities = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    entropy = -log_probabilities.gather(2, targets)
    return log_probabilities, entropy, logits.gather(2, targets) + entropy


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    targets: Tensor,
    z_loss: float,
    weights: Tensor | None = None,
    *,
    reduce: Callable[..., tuple[Tensor, Tensor, Tensor]] = reduce_logits,
) -> tuple[Tensor, Tensor]:
    """Sum of the cross entropies of ``features @ weight.T`` against ``targets``, in nats, reduced in fp32 or fp64.

    The logits are by far the largest tensor of a small model, and the full logits never exist at once. One block is
    computed, reduced to its part of the loss and of both gradients while it is in the cache, and dropped (as in Liger
    Kernel, Hsu et al. 2024, arXiv 2410.10989, section 3.2).

    ``features`` is [..., d], ``weight`` [V, d], ``targets`` [...] (int64). ``weights`` [...] (fp32) multiply the terms
    of the sums, all 1 if not given. A position of weight 0 does not affect the loss, and its target may be any number.
    ``reduce`` is ``reduce_logits`` or a compiled form of it.

    Returns two sums, for the caller to divide by the weight of the whole batch (``mean_share``). The first is the
    objective: cross entropy plus ``z_loss`` times the squared log of the partition function (PaLM, Chowdhery et al.
    2022, section 5). The second is the cross entropy alone, without gradient. Matrix products run in the autocast
    precision if enabled.
    """
    objective, entropy, *_ = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        features.flatten(0, -2)[None],
        weight[None],
        targets.flatten()[None],
        None if weights is None else weights.flatten()[None],
        z_loss,
        product_dtype(features),
        torch.is_grad_enabled(),
        # a head with an adapter is frozen and needs no gradient; members of a stack are plain tensors
        not isinstance(weight, nn.Parameter) or weight.requires_grad,
        reduce,
    )
    return objective[0], entropy[0]


@torch.no_grad()
def token_cross_entropy(features: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The cross entropy of each prediction in nats (fp32), of which ``linear_cross_entropy`` returns the sum.

    Arguments are those of ``linear_cross_entropy``. Returns [...] without gradient, 0 at positions of weight 0.
    """
    x, targets = features.flatten(0, -2), counted_targets(targets, weights).flatten()
    check_tokens(targets, weight.shape[-2])
    product = product_dtype(features)
    x, matrix = x.to(product), weight.to(product)
    found = torch.empty(len(x), dtype=torch.float32, device=x.device)
    size = block_rows(x, len(matrix))
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        logits = (x[part] @ matrix.mT).float()
        found[part] = F.cross_entropy(logits, targets[part], reduction="none")
    return _weighted(found.view(weights.shape), weights)


class _LinearCrossEntropy(Function):
    """The loss of a stack of models: the first dimension of all tensors is the member; the losses are [members]."""

    @staticmethod
    def forward(
        features: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        z_loss: float,
        product: torch.dtype,
        with_gradient: bool,
        of_weight: bool,
        reduce: Callable[..., tuple[Tensor, Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        targets = counted_targets(targets, weights)
        check_tokens(targets, weight.shape[-2])
        x, matrix = features.to(product), weight.to(product)
        grads: _Grads | None = None
        if with_gradient:
            grads = torch.empty_like(x), torch.zeros_like(matrix, dtype=torch.float32) if of_weight else None
        if native(x):
            members = range(len(x))
            sums = [
                _native_sums(
                    (x[i], matrix[i], targets[i], None if weights is None else weights[i]),
                    z_loss,
                    grads and (grads[0][i], None if grads[1] is None else grads[1][i]),
                )
                for i in members
            ]
            entropy, squares = torch.tensor(sums, dtype=torch.float64).unbind(1)
        else:
            entropy, squares = _blocks((x, matrix, targets, weights), z_loss, grads, reduce)
        return entropy + z_loss * squares, entropy, *(grads or (None, None))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        features, weight, *_ = inputs
        _, cross_entropy, *grads = output
        ctx.mark_non_differentiable(cross_entropy, *(grad for grad in grads if grad is not None))
        ctx.set_materialize_grads(False)
        ctx.dtypes = features.dtype, weight.dtype
        ctx.save_for_backward(*grads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_objective: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grad_features, grad_weight = ctx.saved_tensors
        scale = grad_objective.float()[:, None, None]
        features_dtype, weight_dtype = ctx.dtypes
        scaled_weight = None if grad_weight is None else (grad_weight * scale).to(weight_dtype)
        return (grad_features * scale).to(features_dtype), scaled_weight, None, None, None, None, None, None, None

    @staticmethod
    def vmap(
        info: Any, dims: Any, features: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, *rest: Any
    ) -> Any:
        # A single model has a first dimension of size 1; in a stack it becomes the members.
        stacked = [
            batch_first(info.batch_size, dim, t)
            for dim, t in zip(dims, (features, weight, targets, weights), strict=False)
        ]
        tensors = [None if t is None else t.flatten(0, 1) for t in stacked]
        outputs = _LinearCrossEntropy.apply(*tensors, *rest)  # type: ignore[no-untyped-call]
        return tuple(None if t is None else t[:, None] for t in outputs), tuple(
            None if t is None else 0 for t in outputs
        )


def counted_targets(targets: Tensor, weights: Tensor | None) -> Tensor:
    """``targets`` with token 0 in place of targets of weight 0, which may be any number."""
    return targets if weights is None else targets.masked_fill(weights == 0, 0)


def counted_rows(weights: Tensor | None) -> Tensor | None:
    """The indices of nonzero ``weights`` [n], whose logits are computed; None for all.

    Always None on an accelerator, where the host would have to wait for the count.
    """
    if weights is None or weights.device.type != "cpu" or bool(weights.all()):
        return None
    return weights.nonzero()[:, 0]


def without_ignored(tokens: Tensor, weights: Tensor | None) -> Tensor:
    """``tokens`` [..., T + 1] with token 0 in place of padding, which may be any number; ``weights`` are [..., T].

    Padding is a target of weight 0 without a later prediction of nonzero weight.
    """
    if weights is None:
        return tokens
    reached = F.pad(weights != 0, (1, 1))  # as a target, and one more place behind the last token
    following = reached.flip(-1).cumsum(-1).flip(-1) > 0  # from this token on, as an input
    return tokens.masked_fill(~(reached[..., :-1] | following[..., 1:]), 0)


_Rows = tuple[Tensor, Tensor, Tensor, Tensor | None]  # features, output matrix, targets, weights
_Grads = tuple[Tensor, Tensor | None]  # of features and output matrix; None where the matrix is frozen


def _native_sums(rows: _Rows, z_loss: float, grads: _Grads | None) -> tuple[float, float]:
    """As ``_native_blocks``, with logits only where the weight is not 0: in supervised examples, a small part."""
    x, matrix, targets, weights = rows
    counted = counted_rows(weights)
    if counted is None or weights is None:
        return _native_blocks(rows, z_loss, grads)
    inner = x[counted]
    grad = torch.empty_like(inner)
    sums = _native_blocks(
        (inner, matrix, targets[counted], weights[counted]), z_loss, None if grads is None else (grad, grads[1])
    )
    if grads is not None:
        grads[0].zero_()[counted] = grad
    return sums


def _native_blocks(rows: _Rows, z_loss: float, grads: _Grads | None) -> tuple[float, float]:
    """Sums over the tokens of cross entropy and squared log partition; gradients are written or added."""
    x, matrix, targets, weights = rows
    sums = torch.zeros(2, dtype=torch.float64)
    vocab_size = matrix.shape[0]
    size = max(1, min(block_rows(x, vocab_size), len(x)))
    buffer = x.new_empty((size, vocab_size))
    targets, weights = targets.contiguous(), None if weights is None else weights.contiguous()
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        block, block_weights = x[part], None if weights is None else weights[part]
        logits = torch.mm(block, matrix.t(), out=buffer[: len(block)])
        arguments = (len(block), vocab_size, logits, targets[part], block_weights, z_loss, int(grads is not None), sums)
        call("cross_entropy", x.dtype, *arguments)
        if grads is not None:
            torch.mm(logits, matrix, out=grads[0][part])
            if grads[1] is None:
                continue
            if x.dtype == torch.float32:
                grads[1].addmm_(logits.t(), block)
            else:
                product = logits.t() @ block
                call("add_into", x.dtype, product.numel(), product, grads[1])
    entropy, squares = sums.tolist()
    return entropy, squares


def _blocks(
    rows: _Rows, z_loss: float, grads: _Grads | None, reduce: Callable[..., tuple[Tensor, Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """As ``_native_blocks``, in PyTorch and for all members of the stack at once."""
    x, matrix, targets, weights = rows
    size = max(1, block_rows(x, matrix.shape[1]) // len(x))
    entropy = torch.zeros(len(x), dtype=torch.float32, device=x.device)
    squares = torch.zeros_like(entropy)
    for start in range(0, x.shape[1], size):
        part = slice(start, start + size)
        block, block_targets = x[:, part], targets[:, part, None]
        block_weights = None if weights is None else weights[:, part, None]
        logits = block @ matrix.mT
        if grads is None:
            _, terms, log_partition = _log_softmax(logits, block_targets)
            entropy += _weighted(terms, block_weights).sum((1, 2))
            squares += _weighted(log_partition.square(), block_weights).sum((1, 2))
            continue
        total, total_squares, grad_logits = reduce(logits, block_targets, block_weights, z_loss)
        entropy += total
        squares += total_squares
        grads[0][:, part].copy_(grad_logits @ matrix)
        if grads[1] is not None:
            grads[1].add_(grad_logits.mT @ block)
        del logits, grad_logits  # else this block would be there while the next one is computed
    return entropy, squares


def _weighted(x: Tensor, weights: Tensor | None) -> Tensor:
    """``x`` times ``weights``; 0 wherever the weight is 0, even if ``x`` is not finite there."""
    return x if weights is None else (x * weights).masked_fill(weights == 0, 0.0)
