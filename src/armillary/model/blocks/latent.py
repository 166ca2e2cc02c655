"""Multi-head latent attention (DeepSeek-AI 2024, arXiv 2405.04434, section 2.1).

Keys and values are computed from a latent of each token (equations 9 to 11), queries from the residual stream or from
a separate latent (12, 13). The part of queries and keys that carries positions is decoupled, and in the keys it is the
same for all heads (14 to 19). Latents are normalised (section 3.1.2 of the paper).

Queries, keys and values go through the same ``core`` as in every other attention. CPU kernels, fused attention and
context parallel therefore work here too. Trade-offs:

- The rotated dimensions come first in each half of a head, so that the rotary tables, whose other angles are 0, cover
  the whole head. Rows of published weights must be reordered accordingly.
- ``core`` takes values as wide as keys, so narrower values are padded with zeros. Memory and FLOPs of the weighted sum
  are those of ``head_dim``; ``forward_flops_per_token`` does not count the padding.
- Training expands keys and values, as in the paper. The latent would save memory in a cache, but ``generate`` has no
  latent cache. Context parallel sends the expanded keys and values.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 (the name the field uses)
from torch import Tensor, nn

from armillary.model.blocks.registry import AttentionModule, register_attention
from armillary.model.operators import attention
from armillary.model.places import Places
from armillary.model.roles import Role, gain
from armillary.recipe import Latent, ModelShape


@register_attention("latent")
class LatentAttention(AttentionModule):
    """Attention whose keys and values come from a latent; shapes as in ``recipe.blocks.Latent``."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        block, width, heads = cast(Latent, shape.attention), shape.d_model, shape.n_heads
        self.head_dim, self.rope_dim, self.value_dim = shape.head_dim, block.rope_head_dim, block.value_dim(shape)
        self.q_down = self.q_norm = None
        if block.q_rank is not None:
            self.q_down = nn.Linear(width, block.q_rank, bias=False)
            self.q_norm = nn.RMSNorm(block.q_rank, shape.norm_eps)
        self.q = nn.Linear(block.q_rank or width, heads * shape.head_dim, bias=False)
        self.kv_down = nn.Linear(width, block.kv_rank, bias=False)
        self.kv_norm = nn.RMSNorm(block.kv_rank, shape.norm_eps)
        self.k = nn.Linear(block.kv_rank, heads * (shape.head_dim - block.rope_head_dim), bias=False)
        self.v = nn.Linear(block.kv_rank, heads * self.value_dim, bias=False)
        self.k_rope = nn.Linear(width, block.rope_head_dim, bias=False)
        self.out = nn.Linear(heads * self.value_dim, width, bias=False)
        self.core = attention
        self.roles = {
            "q.weight": Role("rows", width="queries"),
            # every rank has the whole latent and the key shared by all heads
            "kv_down.weight": Role("whole"),
            "kv_norm.weight": gain("whole"),
            "k.weight": Role("rows"),
            "v.weight": Role("rows"),
            "k_rope.weight": Role("whole"),
            "out.weight": Role("columns", init="residual"),
        }
        if block.q_rank is not None:
            self.roles |= {"q_down.weight": Role("whole"), "q_norm.weight": gain("whole")}

    def forward(self, x: Tensor, places: Places) -> Tensor:
        """[B, T, d_model] to the same; ``places`` has the rotary tables of a whole head."""
        latent = _normalised(self.kv_down(x), self.kv_norm)
        still = self.k(latent).unflatten(-1, (-1, 2, (self.head_dim - self.rope_dim) // 2))
        turned = self.k_rope(x).unflatten(-1, (1, 2, self.rope_dim // 2)).expand(*still.shape[:-1], -1)
        k = torch.cat((turned, still), dim=-1).flatten(-3)
        v = self.v(latent).unflatten(-1, (-1, self.value_dim))
        v = F.pad(v, (0, self.head_dim - self.value_dim)).flatten(-2)
        if self.q_down is not None and self.q_norm is not None:
            q = self.q(_normalised(self.q_down(x), self.q_norm))
        else:
            q = self.q(x)
        mixed = self.core(q, k, v, places)
        values = mixed.unflatten(-1, (-1, self.head_dim))[..., : self.value_dim]  # type: ignore[no-untyped-call]
        out: Tensor = self.out(values.flatten(-2))
        return out


def _normalised(latent: Tensor, norm: nn.RMSNorm) -> Tensor:
    return F.rms_norm(latent, norm.normalized_shape, norm.weight.to(latent.dtype), norm.eps)
