"""SwiGLU (Shazeer 2020, equation 6)."""

from __future__ import annotations

from torch import Tensor, nn

from armillary.model.blocks.registry import register_feed_forward
from armillary.model.operators import swiglu
from armillary.model.roles import Role
from armillary.recipe import ModelShape


class FeedForward(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)
        self.roles = {
            "gate.weight": Role("rows"),
            "up.weight": Role("rows"),
            "down.weight": Role("columns", init="residual"),
        }

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d_model] to the same."""
        x = self.down(swiglu(self.gate(x), self.up(x)))
        return x


@register_feed_forward("swiglu")
def build(shape: ModelShape) -> FeedForward:
    """The block of a layer without experts."""
    return FeedForward(shape.d_model, shape.d_ff)
