"""SLERP: the great circle between two models' tensors. Shoemake 1985, "Animating rotation with quaternion curves".

Each tensor is one vector. If two are nearly parallel or opposite (a cosine beyond 0.9995, mergekit's bound), rounding
leaves the circle undefined, and the tensors are averaged. This is nearly always the case for fine-tunings of one base.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from armillary.post.merge.registry import Group, MergeOptions, Method, average, linear_weights, register
from armillary.recipe import UsageError

PARALLEL = 0.9995
# Below this length a vector has no direction.
_SHORT = 1e-8
_CHUNK = 1 << 20


def slerp_weights(options: MergeOptions, count: int) -> tuple[float, ...]:
    """The shares of two models; the second share is the position on the way from the first to the second.

    Raises:
        UsageError: not two models, or a negative weight.
    """
    if count != 2:
        raise UsageError(
            f"SLERP needs two models, but {count} are given; give two (one may be the base), or use another method"
        )
    found = linear_weights(options, count)
    if min(found) < 0:
        raise UsageError(
            f"SLERP needs shares from 0 to 1, not {found[0]:g} and {found[1]:g}; give weights of 0 or more"
        )
    return found


def combine(group: Group) -> Tensor:
    """See ``Method``."""
    a, b = group.models
    way = group.weights[1]
    if way in (0.0, 1.0):
        return average(group.models, group.weights)
    lengths = [math.sqrt(_dot(tensor, tensor)) for tensor in (a, b)]
    if min(lengths) <= _SHORT:
        return average(group.models, group.weights)
    cosine = max(-1.0, min(1.0, _dot(a, b) / lengths[0] / lengths[1]))
    if abs(cosine) > PARALLEL:
        return average(group.models, group.weights)
    angle = math.acos(cosine)
    return average(
        group.models, [math.sin((1 - way) * angle) / math.sin(angle), math.sin(way * angle) / math.sin(angle)]
    )


def _dot(a: Tensor, b: Tensor) -> float:
    """The inner product in fp64, without a copy of a whole tensor in fp64."""
    first, second = a.reshape(-1), b.reshape(-1)
    return sum(
        float(torch.dot(first[i : i + _CHUNK].double(), second[i : i + _CHUNK].double()))
        for i in range(0, first.numel(), _CHUNK)
    )


register("slerp", Method(combine, slerp_weights))
