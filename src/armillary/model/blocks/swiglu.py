"""SwiGLU (Shazeer 2020, equation 6)."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from armillary.model.blocks.registry import register_feed_forward
from armillary.model.operators import swiglu
from armillary.model.roles import Role, bias
from armillary.recipe import ModelShape


class FeedForward(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, d_model: int, d_ff: int, biases: Collection[str] = ()) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias="gate" in biases)
        self.up = nn.Linear(d_model, d_ff, bias="up" in biases)
        self.down = nn.Linear(d_ff, d_model, bias="down" in biases)
        self.roles = {
            "gate.weight": Role("rows"),
            "up.weight": Role("rows"),
            "down.weight": Role("columns", init="residual"),
        }
        names = [name for name in ("gate", "up", "down") if name in biases]
        self.roles |= {f"{name}.bias": bias("once" if name == "down" else "rows") for name in names}

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d_model] to the same."""
        x = self.down(swiglu(self.gate(x), self.up(x)))
        return x


@register_feed_forward("swiglu")
def build(shape: ModelShape) -> FeedForward:
    """The block of a layer without experts."""
    return FeedForward(shape.d_model, shape.d_ff, shape.biases)
