"""DARE: drop random entries of each difference, rescale the rest, and add the differences as in task arithmetic.

Yu et al. 2024, "Language Models are Super Mario", equation 1. The random choice depends on the seed, the tensor's name
and the model's weights, but not on the order of models or tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from armillary.post.merge.registry import (
    Group,
    MergeOptions,
    Method,
    add_difference,
    check_density,
    register,
    task_weights,
)
from armillary.recipe import UsageError

RESCALES = ("density", "norm")
# A difference with a smaller sum of magnitudes is not rescaled to its norm, as in mergekit.
_SMALL = 1e-7


def dare_weights(options: MergeOptions, count: int) -> tuple[float, ...]:
    """As task arithmetic."""
    check_density(options)
    if options.rescale not in RESCALES:
        raise UsageError(f"rescale is '{options.rescale}'; give {' or '.join(RESCALES)}")
    return task_weights(options, count)


def kept_entries(group: Group, model: int) -> Tensor:
    """A boolean mask in the tensor's shape of the entries that stay in the model's difference."""
    drawn = torch.rand(group.base.shape, generator=group.generator(model))
    return drawn < group.options.density


def drop(difference: Tensor, kept: Tensor, options: MergeOptions) -> Tensor:
    """``difference`` with 0 for entries that are not ``kept``, scaled as ``options.rescale`` says."""
    left = difference * kept
    if options.rescale == "density":
        return left.div_(options.density)
    before, after = float(difference.abs().sum()), float(left.abs().sum())
    return left if min(before, after) < _SMALL else left.mul_(before / after)


def combine(group: Group) -> Tensor:
    """See ``Method``."""
    merged = torch.zeros_like(group.base)
    for model, (tensor, weight) in enumerate(zip(group.models, group.weights, strict=True)):
        merged.add_(drop(tensor - group.base, kept_entries(group, model), group.options), alpha=weight)
    return add_difference(group, merged)


register("dare", Method(combine, dare_weights, uses=("density", "scale", "rescale", "seed"), adds=True))
