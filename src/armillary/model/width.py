"""Width transfer (muP): what a narrow model's initial values and learning rates become in a wide one.

Yang et al. 2022 (arXiv 2203.03466), table 8, for Adam, with m = d_model / base_width and h = head_dim / base_head_dim:

==============  ========================  ==============  =============
``Role.width``  parameters                initial values  learning rate
==============  ========================  ==============  =============
``input``       embedding, gains          1               1
``hidden``      matrices of the layers    1 / sqrt(m)     1 / m
``output``      output matrix, router     1 / m           1 / m
``queries``     q, besides                1 / sqrt(h)     1 / sqrt(h)
``query-gain``  gain of the queries       1 / sqrt(h)     1 / sqrt(h)
==============  ========================  ==============  =============

The paper multiplies the logits by 1/m and the scores of attention by 1 / head_dim instead of 1 / sqrt(head_dim). Here
both factors lie in initial values and rates, which is the same for an optimizer whose steps do not depend on the size
of the gradient (Yang and Hu 2021, arXiv 2011.14522, section 3): so the model computes what it computes without, and
is exported as what it is. Where a parameter beside the matrix can take the factor alone, it does: the last gain where
output and embedding are one, and the gain of the queries where there is one.

A step of Muon, scaled to the size of AdamW's, has the spectral norm sqrt(d_model), where AdamW's has d_model; feature
learning wants the same at every width (Yang et al. 2023, arXiv 2310.17813, condition 1). So 1 / sqrt(m) takes the place
of 1 / m as its rate.

Trade-off: all widths of a model are taken to grow with d_model, as they do within a family.
"""

from __future__ import annotations

import math

from armillary.model.roles import Role
from armillary.recipe import ModelShape, OptimizerSpec


def orthogonalised(role: Role, optimizer: OptimizerSpec) -> bool:
    """Whether a parameter takes orthogonalised steps, as Muon's: those of the layers' matrices, stacks of them too."""
    return optimizer.own.spectral and role.matrix


def width_factors(role: Role, shape: ModelShape, optimizer: OptimizerSpec) -> tuple[float, float]:
    """By what the initial values, and by what the learning rate, of a parameter are multiplied."""
    if optimizer.base_width is None:
        return 1.0, 1.0
    wider = shape.d_model / optimizer.base_width
    taller = shape.head_dim / (optimizer.base_head_dim or shape.head_dim)
    if role.width == "output":
        return 1 / wider, 1 / wider
    if role.width == "query-gain":
        return 1 / math.sqrt(taller), 1 / math.sqrt(taller)
    if role.width == "input":
        return 1.0, 1.0
    initial = 1 / math.sqrt(wider)
    rate = 1 / math.sqrt(wider) if orthogonalised(role, optimizer) else 1 / wider
    if role.width == "queries":
        return initial / math.sqrt(taller), rate / math.sqrt(taller)
    return initial, rate
