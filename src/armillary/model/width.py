"""Width transfer (muP): scales a narrow model's initial values and learning rates to a wide model.

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
both factors are part of initial values and rates. This is equivalent for an optimizer whose steps do not depend on the
gradient's size (Yang and Hu 2021, arXiv 2011.14522, section 3). The model's formulas stay the same with and without
width transfer, so its export needs no change. If a gain can take the factor instead of a matrix, it does: the last gain
if output and embedding are tied, and the gain of the queries with QK-norm.

A step of Muon, scaled to the size of AdamW's, has the spectral norm sqrt(d_model), and AdamW's has d_model. Feature
learning needs a norm that does not depend on the width (Yang et al. 2023, arXiv 2310.17813, condition 1). So Muon's
rate has the factor 1 / sqrt(m) instead of 1 / m.

Trade-off: all widths of a model are assumed to grow with d_model, as they do within a family.
"""

from __future__ import annotations

import math

from armillary.model.roles import Role
from armillary.recipe import ModelShape, OptimizerSpec


def orthogonalised(role: Role, optimizer: OptimizerSpec) -> bool:
    """Whether a parameter takes orthogonalised steps, as under Muon: matrices of the layers and stacks of them."""
    return optimizer.own.spectral and role.matrix


def width_factors(role: Role, shape: ModelShape, optimizer: OptimizerSpec) -> tuple[float, float]:
    """The factors of a parameter's initial values and of its learning rate."""
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
