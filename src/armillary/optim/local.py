"""The optimizer of a run over whole parameters or this rank's parts of them.

All optimizers work on plain tensors. Where a parameter is a DTensor, ``LocalOptimizer`` takes this rank's part of it,
and its gradient's, without copying: a step dispatches nothing through DTensor, and costs what it costs on one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from armillary.model import Role, Transformer, model_roles, width_factors
from armillary.optim import adamw
from armillary.optim.registry import find_kind
from armillary.recipe import RunSpec


def build_optimizer(model: Transformer, spec: RunSpec) -> torch.optim.Optimizer:
    """The optimizer of ``spec`` over the parameters of a model on one device, for the rate see ``set_lr``."""
    return _build(dict(model.named_parameters()), {}, spec, model.roles)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Have the next steps taken at ``lr``, times what the width transfer makes of it for each group (``lr_factor``)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


class LocalOptimizer:
    """The optimizer of ``spec`` over this rank's part of each of ``named`` parameters of its model.

    ``roles`` are those of the parameters where they are not the model's.

    ``local`` has that part of every parameter, and ``state`` the optimizer's tensors beside it, both by name. They are
    there from the beginning, and are what a checkpoint writes and what is read into in place. AdamW has ``step`` (no
    dimensions), ``exp_avg`` and ``exp_avg_sq``, Muon ``momentum_buffer`` for its own parameters; all but ``step`` are
    shaped as the part is.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], spec: RunSpec, roles: Mapping[str, Role] | None = None
    ) -> None:
        self._parameters = dict(named)
        self.local: dict[str, Tensor] = {
            name: p.to_local().detach() if isinstance(p, DTensor) else p for name, p in self._parameters.items()
        }
        sharded = {self.local[name]: p for name, p in self._parameters.items() if isinstance(p, DTensor)}
        self._optimizer = _build(self.local, sharded, spec, roles or model_roles(spec.model))
        own = find_kind(spec.optimizer.kind).initial_state
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                self._optimizer.state[parameter] = (own if group["own"] else adamw.initial_state)(parameter)

    @property
    def state(self) -> dict[str, dict[str, Tensor]]:
        """The optimizer's tensors by name of the parameter and key."""
        return {name: self._optimizer.state[parameter] for name, parameter in self.local.items()}

    def step(self, lr: float) -> None:
        """One step at the learning rate ``lr`` along the parameters' gradients, which are gone afterwards."""
        for name, parameter in self._parameters.items():
            if isinstance(parameter, DTensor):
                grad = parameter.grad
                self.local[name].grad = grad.to_local() if isinstance(grad, DTensor) else grad
        set_lr(self._optimizer, lr)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        for parameter in self._parameters.values():
            parameter.grad = None


def _build(
    parameters: Mapping[str, Tensor], sharded: Mapping[Tensor, DTensor], spec: RunSpec, roles: Mapping[str, Role]
) -> torch.optim.Optimizer:
    o = spec.optimizer
    kind = find_kind(o.kind)
    groups: dict[tuple[bool, float, float], list[Tensor]] = {}
    for name, parameter in parameters.items():
        role = roles[name]
        _, factor = width_factors(role, spec.model, o)
        # The decay of a step is rate times weight_decay: divided by the factor here, it does not move with the width.
        decay = o.weight_decay / factor if role.decay else 0.0
        key = (role.matrix or not o.own.matrices_only, decay, factor)
        groups.setdefault(key, []).append(parameter)
    described: list[dict[str, Any]] = [
        {"params": members, "weight_decay": decay, "lr_factor": factor, "own": own}
        for (own, decay, factor), members in groups.items()
    ]
    return kind.build(described, sharded, o)
