"""Muon (Jordan et al. 2024) for the matrices of the layers, AdamW for all else, over whole parameters or shards.

Muon orthogonalises whole matrices. ``exchange`` gathers each sharded matrix on one rank, in bf16. Newton-Schulz
iterates in bf16 anyway, so the exchange adds no rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from armillary.optim import adamw
from armillary.optim.exchange import Exchange
from armillary.optim.registry import register
from armillary.recipe import OptimizerSpec

# Coefficients of the quintic iteration (Jordan et al. 2024), as in torch.optim.Muon.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7


def _initial_state(parameter: Tensor) -> dict[str, Tensor]:
    return {"momentum_buffer": torch.zeros_like(parameter)}


@register("muon", _initial_state)
def build(
    groups: list[dict[str, Any]], sharded: Mapping[Tensor, DTensor], spec: OptimizerSpec
) -> torch.optim.Optimizer:
    """Build Muon over ``groups``."""
    betas = (spec.beta1, spec.beta2)
    return _Muon(groups, sharded, {"lr": spec.lr, "betas": betas, "eps": spec.eps, "momentum": spec.momentum})


class _Muon(torch.optim.Optimizer):
    """Muon for its ``own`` groups, AdamW for the others.

    It equals ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")``, which supports whole matrices only. A parameter of
    three dimensions is a stack of matrices.
    """

    def __init__(
        self, groups: list[dict[str, Any]], sharded: Mapping[Tensor, DTensor], defaults: dict[str, Any]
    ) -> None:
        super().__init__(groups, defaults)
        matrices = [p for group in self.param_groups if group["own"] for p in group["params"]]
        self._whole = [p for p in matrices if p not in sharded]
        by_mesh: dict[DeviceMesh, list[Tensor]] = {}
        for parameter in matrices:
            if parameter in sharded:
                by_mesh.setdefault(sharded[parameter].device_mesh, []).append(parameter)
        self._exchanges = [
            (members, Exchange(mesh, [sharded[p] for p in members], _orthogonal)) for mesh, members in by_mesh.items()
        ]
        self._sides = {p: sharded.get(p, p).shape[-2:] for p in matrices}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients; none if ``found_inf`` is 1 (``LocalOptimizer.step``)."""
        directions: dict[Tensor, Tensor] = {}
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            if group["own"]:
                directions.update(self._momentum(group, found_inf))
            else:
                adamw.step_group(group, self.state, found_inf)
        for parameter in self._whole:
            directions[parameter] = _orthogonal(directions[parameter])
        for members, exchange in self._exchanges:
            directions.update(zip(members, exchange([directions[p] for p in members]), strict=True))
        for group in self.param_groups:
            for parameter in group["params"] if group["own"] else ():
                size = 0.2 * math.sqrt(max(self._sides[parameter]))
                before = parameter.clone() if found_inf is not None else parameter
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(directions[parameter], alpha=-group["lr"] * size)
                if found_inf is not None:
                    parameter.copy_(torch.where(found_inf.bool(), before, parameter))

    def _momentum(self, group: dict[str, Any], found_inf: Tensor | None) -> dict[Tensor, Tensor]:
        """Update the momenta with the gradients and return the matrices to orthogonalise, in bf16."""
        # all ranks must exchange the same matrices, so a missing gradient (an expert without tokens) counts as zero
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in group["params"]]
        for parameter in group["params"]:
            if not self.state[parameter]:
                self.state[parameter] = _initial_state(parameter)
        momenta = [self.state[p]["momentum_buffer"] for p in group["params"]]
        if found_inf is not None:  # a momentum that is averaged with itself stays
            grads = [torch.where(found_inf.bool(), m, g) for m, g in zip(momenta, grads, strict=True)]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
        return {p: update.bfloat16() for p, update in zip(group["params"], ahead, strict=True)}


def _orthogonal(matrices: Tensor) -> Tensor:
    """Approximate the nearest orthogonal matrix to [rows, columns] in bf16; for a stack, one matrix at a time."""
    if matrices.ndim > 2:
        return torch.stack([_orthogonal(matrix) for matrix in matrices])
    turned = matrices.shape[0] > matrices.shape[1]
    x = matrices.mT if turned else matrices
    x = x / x.norm().clamp(min=_EPS)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if turned else x
