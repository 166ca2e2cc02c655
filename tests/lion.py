"""An optimizer that the package does not have, as one new file: Lion (Chen et al. 2023, arXiv 2302.06675)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.distributed.tensor import DTensor

from armillary.optim import register
from armillary.recipe import OptimizerOptions, OptimizerSpec, register_options


@register_options("lion")
class LionOptions(OptimizerOptions):
    """``slow`` is how much of the momentum a step keeps."""

    slow: float = Field(default=0.99, ge=0, lt=1)


def initial_state(parameter: Tensor) -> dict[str, Tensor]:
    return {"momentum": torch.zeros_like(parameter)}


@register("lion", initial_state)
def build(
    groups: list[dict[str, Any]], sharded: Mapping[Tensor, DTensor], spec: OptimizerSpec
) -> torch.optim.Optimizer:
    assert isinstance(spec.own, LionOptions)
    return Lion(groups, {"lr": spec.lr, "fast": spec.beta1, "slow": spec.own.slow})


class Lion(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter] = initial_state(parameter)
                momentum = self.state[parameter]["momentum"]
                direction = torch.lerp(parameter.grad, momentum, group["fast"]).sign()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - group["slow"])
