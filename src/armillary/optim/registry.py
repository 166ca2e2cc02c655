"""The registry of optimizers by kind.

A kind has two parts. Its options, and the few facts that rooms without torch need, are a document of ``recipe``
(``OptimizerOptions``, registered by ``register_options``). Its steps are a function registered here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from armillary.recipe import OptimizerSpec, UsageError

Build = Callable[[list[dict[str, Any]], Mapping[Tensor, DTensor], OptimizerSpec], torch.optim.Optimizer]


@dataclass(frozen=True)
class Kind:
    """``build`` makes the optimizer; ``initial_state`` returns the state of one parameter before the first step."""

    build: Build
    initial_state: Callable[[Tensor], dict[str, Tensor]]


_KINDS: dict[str, Kind] = {}


def register(name: str, initial_state: Callable[[Tensor], dict[str, Tensor]]) -> Callable[[Build], Build]:
    """Register the decorated function as the optimizer of ``OptimizerSpec.kind`` ``name``.

    The function receives parameter groups, and a map from each sharded parameter (this rank's part) to its DTensor.
    Groups have ``params``, ``weight_decay``, ``lr_factor`` (by which ``set_lr`` multiplies the rate) and ``own``.
    ``own`` is false for parameters that a kind with ``matrices_only`` leaves to AdamW (``adamw.step_group``).

    The optimizer's state holds only tensors, under the keys of ``initial_state``. Each has the parameter's shape or no
    dimensions, and a step changes it in place.

    Raises:
        ValueError: the name is taken.
    """

    def add(build: Build) -> Build:
        if name in _KINDS:
            raise ValueError(f"an optimizer of kind {name!r} is already registered")
        _KINDS[name] = Kind(build, initial_state)
        return build

    return add


def find_kind(name: str) -> Kind:
    """The registered kind.

    Raises:
        UsageError: options are registered under this name, but no optimizer.
    """
    if name not in _KINDS:
        raise UsageError(
            f"optimizer.kind is {name!r}, but no such optimizer is registered; registered: {', '.join(sorted(_KINDS))}"
        )
    return _KINDS[name]
