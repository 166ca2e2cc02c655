"""Linear: the average of the models' weights. Wortsman et al. 2022, "Model soups", equation 1, with any weights."""

from __future__ import annotations

from torch import Tensor

from armillary.post.merge.registry import Group, Method, average, linear_weights, register


def combine(group: Group) -> Tensor:
    """See ``Method``."""
    return average(group.models, group.weights)


register("linear", Method(combine, linear_weights))
