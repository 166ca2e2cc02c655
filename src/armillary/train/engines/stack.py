"""Parameters of many models of one shape in one buffer, trained by one program (`train.fleet`)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from armillary.corpus import Batch
from armillary.model import Transformer, mean_share, width_factors
from armillary.recipe import ModelShape, OptimizerSpec, Preference, RunSpec, UsageError
from armillary.train.engines.engine import autocast, parts


class Stack:
    """Parameters, gradients and moments of up to ``capacity`` models, one row each; rows in use come first.

    Raises:
        UsageError: the runs do not use AdamW, change their context length, have mixtures of experts, or learn
            preferences.
    """

    def __init__(self, spec: RunSpec, capacity: int, device: torch.device) -> None:
        if not spec.optimizer.own.stacks:
            raise UsageError(
                "a stack supports only AdamW; train a run with optimizer "
                f"kind '{spec.optimizer.kind}' by itself (train_run)"
            )
        if spec.lengths:
            raise UsageError(
                "members of a stack have one context length; train a run with 'lengths' by itself (train_run)"
            )
        if spec.model.experts:  # the number of tokens per expert, and so the tensor sizes, would differ between members
            raise UsageError("a stack does not support mixtures of experts; train such a run by itself (train_run)")
        if isinstance(spec.objective, Preference):  # its criterion computes a gradient inside the loss
            raise UsageError("a stack does not support objective 'preference'; train such a run by itself (train_run)")
        if spec.adapter is not None:
            raise UsageError("a stack does not support adapters; train such a run by itself (train_run)")
        self._spec = spec
        with torch.device("meta"):
            self._objective = _Objective(spec.model, spec.optimizer.z_loss)
        model = self._objective.model
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        # In a row, parameters with the same decay and rate are adjacent; the dictionaries have the model's order.
        kinds = {
            name: (not role.decay, width_factors(role, spec.model, spec.optimizer)[1])
            for name, role in model.roles.items()
        }
        in_row = sorted(self._shapes, key=kinds.__getitem__)
        ends = np.cumsum([self._shapes[name].numel() for name in in_row]).tolist()
        self._ends = dict(zip(in_row, ends, strict=True))
        self._parameters, self._gradients, self._mean, self._square = (
            torch.zeros(capacity, ends[-1], device=device) for _ in range(4)
        )
        # One count per parameter, as in a checkpoint; within a row all are equal.
        self._steps = torch.zeros(capacity, len(ends), device=device)
        # Spans of every row for the optimizer: adjacent parameters, whether they decay, and the factor of their rate.
        buffers = (self._parameters, self._gradients, self._mean, self._square)
        self._parts = []
        start = 0
        for (gain, factor), names in itertools.groupby(in_row, key=kinds.__getitem__):
            part = slice(start, start := self._ends[list(names)[-1]])
            rows = [(*(buffer[row, part] for buffer in buffers), self._steps[row, 0]) for row in range(capacity)]
            self._parts.append((rows, not gain, factor))

    def _cut(self, rows: Tensor) -> dict[str, Tensor]:
        """Views of [..., all parameters concatenated], by parameter."""
        return {
            name: rows[..., self._ends[name] - shape.numel() : self._ends[name]].unflatten(-1, shape)  # type: ignore[no-untyped-call]
            for name, shape in self._shapes.items()
        }

    @torch.no_grad()
    def put(self, row: int, model: Transformer, optimizer: torch.optim.Optimizer) -> None:
        """Copy a model and its AdamW moments into ``row``; both become views of it."""
        views = [self._cut(buffer[row]) for buffer in (self._parameters, self._mean, self._square)]
        counts = dict(zip(self._shapes, self._steps[row].unbind(), strict=True))
        for name, parameter in model.named_parameters():
            weights, mean, square = (view[name] for view in views)
            state = {"step": counts[name], "exp_avg": mean, "exp_avg_sq": square}
            before = optimizer.state.get(parameter) or {key: torch.zeros(()) for key in state}
            for key, view in state.items():
                view.copy_(before[key])
            weights.copy_(parameter)
            parameter.data = weights
            optimizer.state[parameter] = state

    def step(self, taken: Sequence[tuple[RunSpec, int]], batches: Sequence[Batch[Tensor]]) -> tuple[Tensor, Tensor]:
        """One optimizer step of the first rows, each with its specification, step (0-based) and batch.

        Either all batches have weights or none has, and likewise documents. Returns the mean cross entropy in nats and
        the gradient norm before clipping, both [members] and still on the device.
        """
        members = len(taken)
        gradients = self._gradients[:members]
        cut = list(self._cut(gradients).values())
        loss = self._backward(batches, cut)
        with torch.no_grad():
            # The norm of the parameters' norms, as for a single model.
            norms = [torch.linalg.vector_norm(part.flatten(1), dim=1) for part in cut]
            norm = torch.linalg.vector_norm(torch.stack(norms, dim=1), dim=1)
            limits = torch.tensor([spec.optimizer.grad_clip for spec, _ in taken]).to(norm.device, non_blocking=True)
            gradients.mul_(((norm + 1e-6).reciprocal() * limits).clamp(max=1.0)[:, None])
            self._steps[:members] += 1
            self._update(taken)
        return loss, norm

    def _backward(self, batches: Sequence[Batch[Tensor]], gradients: list[Tensor]) -> Tensor:
        """Write the gradients of all members; returns their cross entropies."""
        device = self._parameters.device
        stacked = _stacked(batches).map(lambda part: part.to(device, non_blocking=True))
        leaves = {
            f"model.{name}": view.detach().requires_grad_()
            for name, view in self._cut(self._parameters[: len(batches)]).items()
        }
        loss, count = torch.zeros(len(batches), device=device), self._spec.accumulation
        for number, part in enumerate(parts(stacked, count, dim=1)):
            inputs = [x for x in (part.tokens, part.weights, part.documents) if x is not None]
            with autocast(self._spec, device):
                objective, entropy = torch.vmap(partial(functional_call, self._objective))(leaves, tuple(inputs))
            weights = torch.tensor([batch.weight for batch in batches], dtype=objective.dtype).to(device)
            found = torch.autograd.grad(mean_share(objective, weights, count).sum(), list(leaves.values()))
            (torch._foreach_add_ if number else torch._foreach_copy_)(gradients, found)
            loss += mean_share(entropy.detach(), weights, count)
        return loss

    def _update(self, taken: Sequence[tuple[RunSpec, int]]) -> None:
        """AdamW, with one call for all rows of equal rate and constants."""
        calls: dict[tuple[float, OptimizerSpec], list[int]] = {}
        for row, (spec, step) in enumerate(taken):
            calls.setdefault((spec.lr(step), spec.optimizer), []).append(row)
        for (lr, o), rows in calls.items():
            for part, decays, factor in self._parts:
                weights, gradients, means, squares, steps = map(list, zip(*(part[row] for row in rows), strict=True))
                # The kernel of torch.optim.AdamW(fused=True), with its state from here instead of a dictionary.
                torch._fused_adamw_(
                    weights, gradients, means, squares, [], steps,
                    lr=lr * factor, beta1=o.beta1, beta2=o.beta2, eps=o.eps,
                    weight_decay=o.weight_decay / factor if decays else 0.0,
                    amsgrad=False, maximize=False,
                )  # fmt: skip


class _Objective(nn.Module):
    """The loss of a model as its ``forward``, so that ``functional_call`` can replace the parameters."""

    def __init__(self, shape: ModelShape, z_loss: float) -> None:
        super().__init__()
        self.model, self.z_loss = Transformer(shape), z_loss

    def forward(
        self, tokens: Tensor, weights: Tensor | None = None, documents: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The objective and the cross entropy of a member's part of a batch, both as sums."""
        return self.model.loss(tokens, self.z_loss, weights, documents)


def _stacked(batches: Sequence[Batch[Tensor]]) -> Batch[Tensor]:
    """The batches of all members stacked along a new first dimension."""
    weights = [batch.weights for batch in batches if batch.weights is not None]
    documents = [batch.documents for batch in batches if batch.documents is not None]
    return Batch(
        torch.stack([batch.tokens for batch in batches]),
        torch.stack(weights) if weights else None,
        torch.stack(documents) if documents else None,
        weight=0.0,  # each member has its own
    )
