"""Task arithmetic: the base plus the weighted differences to it. Ilharco et al. 2023, "Editing Models with Task
Arithmetic", section 2."""

from __future__ import annotations

import torch
from torch import Tensor

from armillary.post.merge.registry import Group, Method, add_difference, register, task_weights


def combine(group: Group) -> Tensor:
    """See ``Method``."""
    difference = torch.zeros_like(group.base)
    for tensor, weight in zip(group.models, group.weights, strict=True):
        difference.add_(tensor - group.base, alpha=weight)
    return add_difference(group, difference)


register("task", Method(combine, task_weights, uses=("scale",), adds=True))
