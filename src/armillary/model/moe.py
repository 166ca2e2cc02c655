"""Mixture-of-experts in place of a feed-forward block: a router, its experts, and their balancing.

Tokens are sorted by expert, and one grouped product covers all experts. Sizes stay on the device, so the host never
waits for them. Like the rest of the model, this module contains no parallel code. Parallel layouts replace two plain
functions: ``compute`` (where a token's experts are) and ``sequence`` (where the rest of a sequence is).

Trade-offs:

- The loss does not contain the auxiliary losses. Their gradient is written by hand and added to the router's gradient
  in the backward pass (``_Balance``). This also works in a pipeline stage and with recomputed activations. The load is
  counted there too, so validation, which has no backward pass, does not count.
- Capacity and auxiliary loss depend on a single sequence, and the bias on the whole batch of an optimizer step. No
  result depends on which sequences are computed together.
- A grouped product needs rows that are multiples of 16 bytes, so ``ModelShape`` requires widths that are multiples of
  8.
- The experts of a layer are stored in one tensor, as grouped products need them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from armillary.model.operators import product_dtype, swiglu
from armillary.model.roles import Role
from armillary.recipe import Experts


class GroupedExperts(nn.Module):
    """SwiGLU experts (Shazeer 2020, equation 6) in three tensors, whose first dimension is the expert."""

    def __init__(self, count: int, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(count, d_ff, d_model))
        self.up = nn.Parameter(torch.empty(count, d_ff, d_model))
        self.down = nn.Parameter(torch.empty(count, d_model, d_ff))
        self.roles = {"gate": Role("experts"), "up": Role("experts"), "down": Role("experts", init="residual")}

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Map rows [M, d_model] to results of the same shape, as ``grouped_swiglu``."""
        return grouped_swiglu(rows, counts, self.gate, self.up, self.down)


def grouped_swiglu(rows: Tensor, counts: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Apply n SwiGLUs with matrices ``gate`` and ``up`` [n, d_ff, d] and ``down`` [n, d, d_ff] to ``rows`` [M, d].

    The first ``counts[0]`` (int64) rows go through the first SwiGLU, and so on. Results and gradients of rows beyond
    the sum of ``counts`` are undefined.
    """
    ends = counts.cumsum(0, dtype=torch.int32)
    hidden = swiglu(_grouped(rows, gate, ends), _grouped(rows, up, ends))
    return _grouped(hidden, down, ends)


def _grouped(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply the rows up to ``ends[i]`` by the i-th matrix of ``weight`` [count, out, in], in product precision."""
    product = product_dtype(rows)
    return F.grouped_mm(rows.to(product), weight.to(product).mT, offs=ends)


class MixtureOfExperts(nn.Module):
    """Top-k routing (Shazeer et al. 2017, arXiv 1701.06538) to experts, and a shared one that takes every token."""

    bias: Tensor

    def __init__(self, d_model: int, experts: Experts, shared: nn.Module | None) -> None:
        super().__init__()
        self.spec = experts
        self.router = nn.Linear(d_model, experts.count, bias=False)
        self.experts: nn.Module = GroupedExperts(experts.count, d_model, experts.d_ff)
        self.shared = shared
        # the number of experts does not grow with the width; under tensor parallel each rank routes its own tokens
        self.roles = {"router.weight": Role("whole", width="output")}
        if experts.balance == "bias":
            self.register_buffer("bias", torch.empty(experts.count, dtype=torch.float32))
        # The divisor of the objective's sums.
        self.batch_weight = 1.0
        self.compute: Callable[[nn.Module, Tensor, Tensor], Tensor] = lambda module, rows, counts: module(rows, counts)
        self.sequence: Callable[[Tensor], tuple[Tensor, Tensor | slice]] = lambda chosen: (chosen, slice(None))
        self._load: Tensor | None = None

    def forward(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """Map [B, T, d_model] to the same shape; ``counted`` [B, T] are the weights of the predictions (None: all 1).

        Balancing uses these weights too, so a token of weight 0 does not affect it.
        """
        weights, chosen, kept = self._route(x, counted)
        # dropped tokens are sorted behind all others
        expert = chosen.where(kept, self.spec.count).flatten()
        order = expert.argsort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        counts = _count(expert, self.spec.count + 1)[:-1]
        tokens = x.flatten(0, 1).to(product_dtype(x))
        rows = dispatch(tokens, order, place, self.spec.active)
        if self.spec.capacity_factor is None:
            rows = self.compute(self.experts, rows, counts)
        else:
            # rows without an expert are undefined, forward and backward
            dropped = (torch.arange(len(rows), device=rows.device) >= counts.sum())[:, None]
            rows = self.compute(self.experts, rows.masked_fill(dropped, 0), counts).masked_fill(dropped, 0)
        mixed: Tensor = _Combine.apply(rows, weights.to(rows.dtype), order, place)  # type: ignore[no-untyped-call]
        if self.shared is not None:
            mixed = mixed + self.shared(x)
        return mixed

    def _route(self, x: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (fp32), experts (int64) and whether the expert takes the token, each [B, T, active]."""
        spec = self.spec
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.router.weight.float())
        raw = logits.detach()
        choosing = raw.softmax(-1) if spec.scores == "softmax" else raw.sigmoid()
        if spec.balance == "bias":
            choosing = choosing + self.bias
        chosen = choosing.topk(spec.active, dim=-1, sorted=False).indices
        # the whole sequence, even if it is split over ranks
        whole, own = self.sequence(chosen)
        if torch.is_grad_enabled():
            all_counted = counted
            if counted is not None and spec.balance == "auxiliary":
                all_counted = self.sequence(counted[..., None])[0][..., 0]
            logits = _Balance.apply(logits, self, chosen, whole, counted, all_counted)  # type: ignore[no-untyped-call]
        scores = logits.softmax(-1) if spec.scores == "softmax" else logits.sigmoid()
        weights = scores.gather(-1, chosen)
        if spec.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * spec.scale, chosen, self._kept(whole)[:, own]

    def _kept(self, whole: Tensor) -> Tensor:
        """Which choices [B, T, active] of whole sequences lie within the capacity of their expert."""
        if self.spec.capacity_factor is None:
            return torch.ones_like(whole, dtype=torch.bool)
        flat = whole.flatten(1)
        # the exact decimal of the recipe: in binary floating point, 0.4 * 15 / 6 may exceed 1
        factor = Fraction(str(self.spec.capacity_factor))
        capacity = math.ceil(factor * flat.shape[1] / self.spec.count)
        order = flat.argsort(dim=1, stable=True)
        counts = _count_each(flat, self.spec.count)
        starts = counts.cumsum(1) - counts
        rank = torch.arange(flat.shape[1], device=flat.device) - starts.gather(1, flat.gather(1, order))
        return torch.empty_like(flat).scatter_(1, order, rank).view_as(whole) < capacity

    def auxiliary_gradient(
        self, logits: Tensor, whole: Tensor, counted: Tensor | None, all_counted: Tensor | None
    ) -> Tensor:
        """Gradient by ``logits`` [B, T, count] of the sum of the auxiliary losses, divided by ``batch_weight``.

        Each token's term is multiplied by its weight in ``counted`` [B, T]; ``all_counted`` are those of ``whole``.
        """
        spec = self.spec
        gradient = torch.zeros_like(logits)
        if spec.router_z_loss:
            log_partition = torch.logsumexp(logits, -1, keepdim=True)
            gradient += 2 * spec.router_z_loss * log_partition * (logits - log_partition).exp()
        if spec.balance == "auxiliary":
            # count / active * share of the choices in the sequence: 1 if all experts are chosen equally often
            if all_counted is None:
                share = _count_each(whole.flatten(1), spec.count) / whole[0].numel()
            else:
                each = all_counted[..., None].expand(whole.shape).flatten(1)
                counts = logits.new_zeros(len(whole), spec.count).scatter_add_(1, whole.flatten(1), each)
                share = counts / each.sum(1, keepdim=True).clamp(min=torch.finfo(each.dtype).tiny)
            slope = (spec.auxiliary_weight * spec.count * share)[:, None]
            scores = logits.softmax(-1) if spec.scores == "softmax" else logits.sigmoid()
            shares = scores / scores.sum(-1, keepdim=True)
            change = shares * (slope - (shares * slope).sum(-1, keepdim=True))
            gradient += change if spec.scores == "softmax" else change * (1 - scores)
        if counted is not None:
            gradient *= counted[..., None]
        return gradient / self.batch_weight

    def add_load(self, chosen: Tensor, counted: Tensor | None) -> None:
        """Add the choices [B, T, active] of one more backward pass to the load; tokens of weight 0 are left out."""
        if counted is not None:  # tokens of weight 0 are counted in an extra bin behind all experts
            chosen = chosen.masked_fill((counted == 0)[..., None], self.spec.count)
        load = _count(chosen.flatten(), self.spec.count + 1)[:-1]
        self._load = load if self._load is None else self._load + load

    def take_load(self) -> Tensor:
        """Return the tokens per expert [count] (int64) of all backward passes since the last call."""
        assert self._load is not None, "there was no backward pass"
        load, self._load = self._load, None
        return load

    @torch.no_grad()
    def update_bias(self, load: Tensor) -> None:
        """Take one step of the bias for the ``load`` [count] of the whole batch (arXiv 2408.15664, algorithm 1)."""
        # in integers, so that the bias of an expert at the mean does not change
        missing = load.sum() - self.spec.count * load
        self.bias += self.spec.bias_rate * missing.sign()


def mixtures(model: nn.Module) -> list[MixtureOfExperts]:
    """The mixtures of experts in ``model``, in the order of its layers."""
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]


def set_batch_weight(model: nn.Module, weight: float) -> None:
    """Set the divisor of the auxiliary losses in ``model``: the weight of the batch over all calls and ranks.

    The caller divides the model's objective, which is a sum. The gradient of the auxiliary losses bypasses it.
    """
    for mixture in mixtures(model):
        mixture.batch_weight = weight


def balance_experts(model: nn.Module, total: Callable[[Tensor], Tensor] = lambda load: load) -> None:
    """Update the biases of experts from their load; called once after each optimizer step.

    ``total`` sums the loads [mixtures, count] (int64) over all ranks that computed a part of the batch.
    """
    biased = [mixture for mixture in mixtures(model) if mixture.spec.balance == "bias"]
    if biased:
        loads = total(torch.stack([mixture.take_load() for mixture in biased]))
        for mixture, load in zip(biased, loads, strict=True):
            mixture.update_bias(load)


def _count(values: Tensor, size: int) -> Tensor:
    """Count how often each number below ``size`` occurs in ``values`` (int64)."""
    # not bincount, which waits for the device to find the largest number
    return torch.zeros(size, dtype=torch.int64, device=values.device).scatter_add_(0, values, torch.ones_like(values))


def _count_each(values: Tensor, size: int) -> Tensor:
    """As ``_count`` for each row of ``values``."""
    counts = torch.zeros(len(values), size, dtype=torch.int64, device=values.device)
    return counts.scatter_add_(1, values, torch.ones_like(values))


class _Balance(Function):
    """Identity for the logits; backward counts the load and adds the gradient of the auxiliary losses."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        mixture: MixtureOfExperts,
        chosen: Tensor,
        whole: Tensor,
        counted: Tensor | None,
        all_counted: Tensor | None,
    ) -> Tensor:
        ctx.mixture = mixture
        ctx.save_for_backward(logits, chosen, whole, counted, all_counted)
        return logits.view_as(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, chosen, whole, counted, all_counted = ctx.saved_tensors
        mixture = cast(MixtureOfExperts, ctx.mixture)
        if mixture.spec.balance == "bias":
            mixture.add_load(chosen, counted)
        gradient = mixture.auxiliary_gradient(logits, whole, counted, all_counted)
        return grad + gradient, None, None, None, None, None


def dispatch(x: Tensor, order: Tensor, place: Tensor, copies: int) -> Tensor:
    """Repeat rows [N, d] ``copies`` times and reorder them by ``order`` [N * copies], whose inverse is ``place``."""
    rows: Tensor = _Dispatch.apply(x, order, place, copies)  # type: ignore[no-untyped-call]
    return rows


class _Dispatch(Function):
    """Indexing by a permutation; PyTorch's own indexing adds gradients row by row, as indices might repeat."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(place)
        ctx.copies = copies
        return x[order // copies]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (place,) = ctx.saved_tensors
        return grad[place].view(-1, ctx.copies, grad.shape[1]).sum(1), None, None, None


class _Combine(Function):
    """The sorted rows [N * active, d] of each token, weighted by [..., active] and summed: [..., d].

    Sums have a fixed order, so the result is reproducible. Adding rows in place is not reproducible on accelerators.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, order: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights, order, place)
        return (rows[place].view(*weights.shape, -1) * weights[..., None]).sum(-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, weights, order, place = ctx.saved_tensors
        grad_weights = (rows[place].view(*weights.shape, -1) * grad[..., None, :]).sum(-1)
        grad_rows = grad.flatten(0, -2)[order // weights.shape[-1]] * weights.flatten()[order][:, None]
        return grad_rows, grad_weights, None, None
