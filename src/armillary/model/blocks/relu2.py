"""ReLU² (So et al. 2021, arXiv 2109.08668, section 4): two matrices instead of the three of SwiGLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from armillary.model.blocks.registry import register_feed_forward
from armillary.model.roles import Role
from armillary.recipe import ModelShape


@register_feed_forward("relu2")
class ReLU2FeedForward(nn.Module):
    """``down(relu(up(x)) ** 2)``."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.up = nn.Linear(shape.d_model, shape.d_ff, bias=False)
        self.down = nn.Linear(shape.d_ff, shape.d_model, bias=False)
        self.roles = {"up.weight": Role("rows"), "down.weight": Role("columns", init="residual")}

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d_model] to the same."""
        x = self.down(torch.relu(self.up(x)).square())
        return x
