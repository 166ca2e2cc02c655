"""AdamW (Loshchilov and Hutter 2019), with PyTorch's fused kernel.

It is elementwise, so it treats shards of parameters like whole parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from armillary.optim.registry import register
from armillary.recipe import OptimizerSpec

_STATE = ("step", "exp_avg", "exp_avg_sq")


def initial_state(parameter: Tensor) -> dict[str, Tensor]:
    """``step`` (no dimensions), ``exp_avg`` and ``exp_avg_sq``, all zero."""
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


@register("adamw", initial_state)
def build(
    groups: list[dict[str, Any]], sharded: Mapping[Tensor, DTensor], spec: OptimizerSpec
) -> torch.optim.Optimizer:
    """``torch.optim.AdamW`` over ``groups``."""
    return torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)


def step_group(group: dict[str, Any], state: MutableMapping[Tensor, Any], found_inf: Tensor | None = None) -> None:
    """Take a step of AdamW for one group; for optimizers that leave some parameters to AdamW.

    If ``found_inf`` is 1 instead of 0, nothing changes.
    """
    parameters = [p for p in group["params"] if p.grad is not None]
    for parameter in parameters:
        if not state[parameter]:
            state[parameter] = initial_state(parameter)
    steps, means, squares = ([state[p][key] for p in parameters] for key in _STATE)
    beta1, beta2 = group["betas"]
    adamw(
        parameters, [p.grad for p in parameters], means, squares, [], steps,
        fused=True, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
        weight_decay=group["weight_decay"], eps=group["eps"], maximize=False, found_inf=found_inf,
    )  # fmt: skip
