"""Layers of each pipeline stage by integer programming: the slowest stage as fast as memory allows.

The first stage also has the embedding and the last one the output matrix and the loss. Early stages keep activations of
more micro-batches. Equal stages then wait for the last one, or do not fit.

With x_i layers on stage i: minimize t subject to x_i * layer_s_i + end_s_i <= t,
x_i * layer_gb_i + end_gb_i <= limit_gb and sum x_i = layers. ``scipy.optimize.milp`` solves it (HiGHS).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp


@dataclass(frozen=True)
class Stages:
    """Per stage: seconds and GB of one layer, what its ends add to both, and the GB that it may use."""

    layer_s: list[float]
    end_s: list[float]
    layer_gb: list[float]
    end_gb: list[float]
    limit_gb: float


def balance(layers: int, stages: Stages) -> tuple[int, ...] | None:
    """The number of layers of each stage for which the slowest one is fastest; None if nothing fits."""
    count = len(stages.layer_s)
    # variables: layers of each stage, then the time of the slowest
    slowest = np.zeros((count, count + 1))
    slowest[:, :count] = np.diag(stages.layer_s)
    slowest[:, count] = -1
    memory = np.hstack([np.diag(stages.layer_gb), np.zeros((count, 1))])
    total = np.array([[1.0] * count + [0.0]])
    found = milp(
        np.array([1e-9 * i for i in range(count)] + [1.0]),
        constraints=[
            LinearConstraint(slowest, ub=-np.array(stages.end_s)),
            LinearConstraint(memory, ub=stages.limit_gb - np.array(stages.end_gb)),
            LinearConstraint(total, layers, layers),
        ],
        integrality=np.array([1] * count + [0]),
        bounds=Bounds([1.0 if 0 < i < count - 1 else 0.0 for i in range(count)] + [0.0], np.inf),
        options={"time_limit": 0.5},
    )
    return None if found.x is None else tuple(round(value) for value in found.x[:count])
