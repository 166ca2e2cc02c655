"""TIES: trim each difference to its largest entries, elect a sign per parameter, and average the entries that agree.

Yadav et al. 2023, "TIES-Merging", algorithm 1. As in mergekit, the trim is per tensor, and the elected sign is the sign
of the weighted sum; for a sum of 0 it is positive.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from armillary.post.merge.registry import (
    Group,
    MergeOptions,
    Method,
    add_difference,
    check_density,
    given_weights,
    register,
)

_CHUNK = 1 << 20


def ties_weights(options: MergeOptions, count: int) -> tuple[float, ...]:
    """Equal by default; only their ratios matter, since the average divides by the weights that agree."""
    check_density(options)
    return given_weights(options, count, 1.0)


def trim(difference: Tensor, density: float) -> Tensor:
    """``difference``, changed in place: 0 except for the ``density`` largest magnitudes, the first ones in a tie.

    At least one entry stays.
    """
    count = difference.numel()
    kept = max(1, int(density * count))
    if kept >= count:
        return difference
    sizes = difference.abs().reshape(-1)
    # numpy's partition, because kthvalue also allocates an index of 8 bytes per value
    bound = float(np.partition(sizes.numpy(), count - kept)[count - kept])
    mask = sizes > bound
    mask[torch.nonzero(sizes == bound).reshape(-1)[: kept - int(mask.sum())]] = True
    del sizes
    return difference.mul_(mask.reshape_as(difference))


def combine(group: Group) -> Tensor:
    """See ``Method``."""
    differences = [
        trim(tensor - group.base, group.options.density).mul_(weight).reshape(-1)
        for tensor, weight in zip(group.models, group.weights, strict=True)
    ]
    merged = torch.empty_like(differences[0])
    for start in range(0, merged.numel(), _CHUNK):  # elementwise, so in chunks that need little memory
        parts = [difference[start : start + _CHUNK] for difference in differences]
        merged[start : start + _CHUNK] = elect(parts, group.weights)
    return add_difference(group, merged.reshape_as(group.base))


def elect(differences: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean of those ``differences`` with the sign of their sum; 0 if there are none."""
    total = torch.zeros_like(differences[0])
    for difference in differences:
        total += difference
    positive = total >= 0
    merged, divisor = torch.zeros_like(total), torch.zeros_like(total)
    for difference, weight in zip(differences, weights, strict=True):
        agrees = ((difference != 0) & ((difference > 0) == positive)).to(total.dtype)
        merged.addcmul_(difference, agrees)
        divisor.add_(agrees, alpha=weight)
    divisor[divisor == 0] = 1
    return merged.div_(divisor)


register("ties", Method(combine, ties_weights, uses=("density", "scale"), adds=True))
