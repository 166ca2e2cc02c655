"""The optimizer of a run over whole parameters or this rank's parts of them.

All optimizers work on plain tensors. For a DTensor, ``LocalOptimizer`` takes this rank's part of the parameter and of
its gradient without copying. A step therefore has no DTensor dispatch and costs the same as in a single process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from armillary.model import Role, Transformer, run_roles, width_factors
from armillary.optim import adamw
from armillary.optim.registry import find_kind
from armillary.recipe import RunSpec


def build_optimizer(model: Transformer, spec: RunSpec) -> torch.optim.Optimizer:
    """The optimizer of ``spec`` over the parameters of a model on one device; ``set_lr`` sets its learning rate."""
    return _build(dict(model.named_parameters()), {}, spec, model.roles)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next steps to ``lr`` times each group's width-transfer factor (``lr_factor``)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


class LocalOptimizer:
    """The optimizer of ``spec`` over this rank's part of each of the parameters ``named`` (name, parameter).

    ``roles`` gives the role of each parameter by name, by default those of the model of ``spec`` with its adapters.
    Frozen parameters are left out.

    ``local`` holds this rank's part of every parameter and ``state`` the optimizer's tensors, both by name. Both exist
    from the beginning: a checkpoint writes them, and a resume reads into them in place. AdamW has ``step`` (no
    dimensions), ``exp_avg`` and ``exp_avg_sq``; Muon has ``momentum_buffer`` for its own parameters. All but ``step``
    have the shape of the part.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], spec: RunSpec, roles: Mapping[str, Role] | None = None
    ) -> None:
        self._parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        self.local: dict[str, Tensor] = {
            name: p.to_local().detach() if isinstance(p, DTensor) else p for name, p in self._parameters.items()
        }
        sharded = {self.local[name]: p for name, p in self._parameters.items() if isinstance(p, DTensor)}
        self._optimizer = _build(self.local, sharded, spec, roles or run_roles(spec.model, spec.adapter))
        initial_state = find_kind(spec.optimizer.kind).initial_state
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                self._optimizer.state[parameter] = (initial_state if group["own"] else adamw.initial_state)(parameter)

    @property
    def state(self) -> dict[str, dict[str, Tensor]]:
        """The optimizer's tensors by parameter name and key."""
        return {name: self._optimizer.state[parameter] for name, parameter in self.local.items()}

    def step(self, lr: float, norm: Tensor | None = None) -> None:
        """Take one step at the learning rate ``lr`` with the parameters' gradients, and clear the gradients.

        If ``norm`` (no dimensions, on the device) is given and not finite, weights and state stay as they are. The
        value is not read, so an accelerator does not wait.
        """
        self._optimizer.found_inf = None if norm is None else (~norm.isfinite()).to(torch.float32)  # type: ignore[attr-defined]
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
        # A step decays by rate times weight_decay. Dividing by the factor keeps this product independent of the width.
        decay = o.weight_decay / factor if role.decay else 0.0
        key = (role.matrix or not o.own.matrices_only, decay, factor)
        groups.setdefault(key, []).append(parameter)
    described: list[dict[str, Any]] = [
        {"params": members, "weight_decay": decay, "lr_factor": factor, "own": own}
        for (own, decay, factor), members in groups.items()
    ]
    return kind.build(described, sharded, o)
