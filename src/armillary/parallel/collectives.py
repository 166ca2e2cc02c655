"""The functional collectives of this room under the names of torch 2.13.

torch 2.13 renamed two of them. ``all_gather_tensor`` and ``reduce_scatter_tensor`` of 2.11 and 2.12 take the same
arguments but need contiguous tensors.
"""

from __future__ import annotations

from typing import Any

import torch.distributed._functional_collectives as functional
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single, wait_tensor

__all__ = ["all_gather_single", "all_to_all_single", "reduce_scatter_single", "wait_tensor"]

_gather: Any = getattr(functional, "all_gather_single", None) or functional.all_gather_tensor
_scatter: Any = getattr(functional, "reduce_scatter_single", None) or functional.reduce_scatter_tensor


def all_gather_single(x: Tensor, gather_dim: int, group: Any) -> Tensor:
    """Concatenate the tensors of all ranks of ``group`` along ``gather_dim``; complete after ``wait_tensor``."""
    whole: Tensor = _gather(x.contiguous(), gather_dim, group)
    return whole


def reduce_scatter_single(x: Tensor, kind: str, scatter_dim: int, group: Any) -> Tensor:
    """Reduce ``x`` over ``group`` and return this rank's part along ``scatter_dim``; complete after ``wait_tensor``."""
    part: Tensor = _scatter(x.contiguous(), kind, scatter_dim, group)
    return part
