"""Causal grouped-query attention (Ainslie et al. 2023) with rotary positions and optional QK-norm."""

from __future__ import annotations

from torch import Tensor, nn

from armillary.model.blocks.registry import AttentionModule, register_attention
from armillary.model.operators import attention
from armillary.model.places import Places
from armillary.model.roles import Role, bias, gain
from armillary.recipe import ModelShape


@register_attention("grouped-query")
class Attention(AttentionModule):
    """Grouped-query attention; ``core`` computes it from q, k and v (``operators.attention``)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        q_width, kv_width = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        self.q = nn.Linear(shape.d_model, q_width, bias="q" in shape.biases)
        self.k = nn.Linear(shape.d_model, kv_width, bias="k" in shape.biases)
        self.v = nn.Linear(shape.d_model, kv_width, bias="v" in shape.biases)
        self.out = nn.Linear(q_width, shape.d_model, bias="out" in shape.biases)
        self.q_norm = nn.RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.k_norm = nn.RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.eps = shape.norm_eps
        self.core = attention
        self.roles = {
            # with QK-norm the gain takes the factor of the head dimension
            "q.weight": Role("rows", width="hidden" if shape.qk_norm else "queries"),
            "k.weight": Role("rows"),
            "v.weight": Role("rows"),
            "out.weight": Role("columns", init="residual"),
        }
        names = [name for name in ("q", "k", "v", "out") if name in shape.biases]
        self.roles |= {f"{name}.bias": bias("once" if name == "out" else "rows") for name in names}
        if shape.qk_norm:
            self.roles |= {"q_norm.weight": gain("whole", width="query-gain"), "k_norm.weight": gain("whole")}

    def forward(self, x: Tensor, places: Places) -> Tensor:
        """[B, T, d_model] to the same."""
        gains = (self.q_norm.weight, self.k_norm.weight) if self.q_norm and self.k_norm else None
        x = self.out(self.core(self.q(x), self.k(x), self.v(x), places, gains, self.eps))
        return x
