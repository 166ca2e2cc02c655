"""Blocks that the package does not have, as one new file: attention with a gate, and a ReLU with a learned shift."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from armillary.model.blocks import Attention, register_attention, register_feed_forward
from armillary.model.places import Places
from armillary.model.roles import Role
from armillary.recipe import FeedForwardBlock, ModelShape, register_block
from armillary.recipe.shapes import GroupedQuery


@register_block("gated")
class Gated(GroupedQuery):
    kind: Literal["gated"] = "gated"  # type: ignore[assignment]

    def matmul_parameters(self, shape: ModelShape) -> int:
        return super().matmul_parameters(shape) + shape.d_model * shape.n_heads * shape.head_dim


@register_attention("gated")
class GatedAttention(Attention):
    """``out(sigmoid(gate(x)) * attention(x))`` (Qiu et al. 2025, arXiv 2505.06708, equation 5)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__(shape)
        self.gate = nn.Linear(shape.d_model, shape.n_heads * shape.head_dim, bias=False)
        self.roles |= {"gate.weight": Role("rows")}

    def forward(self, x: Tensor, places: Places) -> Tensor:
        gains = (self.q_norm.weight, self.k_norm.weight) if self.q_norm and self.k_norm else None
        mixed = self.core(self.q(x), self.k(x), self.v(x), places, gains, self.eps)
        out: Tensor = self.out(torch.sigmoid(self.gate(x)) * mixed)
        return out


@register_block("shifted-relu")
class ShiftedReLU(FeedForwardBlock):
    """``shift`` is subtracted before the ReLU, besides what is learned; the width is ``d_ff + wider``."""

    kind: Literal["shifted-relu"] = "shifted-relu"
    shift: float = 0.0
    wider: int = 0

    def matmul_parameters(self, shape: ModelShape) -> int:
        return 2 * shape.d_model * (shape.d_ff + self.wider)

    def other_parameters(self, shape: ModelShape) -> int:
        return shape.d_ff + self.wider

    def kept(self, shape: ModelShape) -> int:
        return 2 * (shape.d_ff + self.wider)


@register_feed_forward("shifted-relu")
class ShiftedReLUModule(nn.Module):
    """A parameter of the block itself, and one that begins at zero: ``down(relu(up(x) + bias - shift))``."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        assert isinstance(shape.feed_forward, ShiftedReLU)
        self.shift = shape.feed_forward.shift
        width = shape.d_ff + shape.feed_forward.wider
        self.up = nn.Linear(shape.d_model, width, bias=False)
        self.bias = nn.Parameter(torch.empty(width))
        self.down = nn.Linear(width, shape.d_model, bias=False)
        self.roles = {
            "up.weight": Role("rows"),
            "bias": Role("rows", "zeros", width="input", decay=False, matrix=False),
            "down.weight": Role("columns", init="residual"),
        }

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(torch.relu(self.up(x) + self.bias - self.shift))
        return out
