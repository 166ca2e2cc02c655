"""Options and parameter counts of the blocks that a shape can name besides the default ones."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from armillary.recipe.shapes import AttentionBlock, FeedForwardBlock, ModelShape, register_block


@register_block("latent")
class Latent(AttentionBlock):
    """Multi-head latent attention (DeepSeek-AI 2024, arXiv 2405.04434, section 2.1).

    Keys and values of all heads are computed from one latent of ``kv_rank`` numbers. Of the ``head_dim`` dimensions of
    queries and keys, ``rope_head_dim`` are turned by rotary positions. In the keys these come from the residual stream
    itself and are the same in all heads (the decoupled key). Values have ``value_head_dim`` dimensions; by default,
    this is the number of dimensions that are not turned. With ``q_rank``, queries come from a separate latent.
    """

    kind: Literal["latent"] = "latent"
    kv_rank: int = Field(ge=1)
    rope_head_dim: int = Field(ge=2, multiple_of=2)
    value_head_dim: int | None = Field(default=None, ge=1)
    q_rank: int | None = Field(default=None, ge=1)

    def check(self, shape: ModelShape) -> None:
        """Raise ValueError if heads share keys, QK-norm is on, or the head is too small for its parts."""
        if shape.n_kv_heads != shape.n_heads:
            raise ValueError(
                f"n_kv_heads ({shape.n_kv_heads}) must be n_heads ({shape.n_heads}): heads do not share keys"
            )
        if shape.qk_norm:
            raise ValueError("qk_norm belongs to kind 'grouped-query': here the latents are normalised")
        if self.rope_head_dim >= shape.head_dim:
            raise ValueError(f"rope_head_dim ({self.rope_head_dim}) must be less than head_dim ({shape.head_dim})")
        if self.value_dim(shape) > shape.head_dim:
            raise ValueError(f"value_head_dim ({self.value_head_dim}) must be at most head_dim ({shape.head_dim})")

    def value_dim(self, shape: ModelShape) -> int:
        """Dimensions of the values of a head."""
        return self.value_head_dim or shape.head_dim - self.rope_head_dim

    def rotary_dim(self, shape: ModelShape) -> int:
        """``rope_head_dim``."""
        return self.rope_head_dim

    def matmul_parameters(self, shape: ModelShape) -> int:
        """Parameters of the latents, the decoupled key, the matrices from the latents, and the output."""
        width, heads = shape.d_model, shape.n_heads
        queries = (width if self.q_rank is None else self.q_rank) * heads * shape.head_dim + width * (self.q_rank or 0)
        from_latent = self.kv_rank * heads * (shape.head_dim - self.rope_head_dim + self.value_dim(shape))
        return (
            queries + width * (self.kv_rank + self.rope_head_dim) + from_latent + heads * self.value_dim(shape) * width
        )

    def other_parameters(self, shape: ModelShape) -> int:
        """The gains of the latents."""
        return self.kv_rank + (self.q_rank or 0)

    def pair_flops(self, shape: ModelShape) -> int:
        """The score over ``head_dim``, the sum over the dimensions of the values."""
        return 2 * shape.n_heads * (shape.head_dim + self.value_dim(shape))

    def kept(self, shape: ModelShape) -> int:
        """Latents before and after their norms; queries, keys and values before and after; the mixed values."""
        latents = 2 * (self.kv_rank + (self.q_rank or 0)) + self.rope_head_dim
        return latents + 7 * shape.n_heads * shape.head_dim


@register_block("relu2")
class ReLU2(FeedForwardBlock):
    """``down(relu(up(x)) ** 2)`` (So et al. 2021, arXiv 2109.08668, section 4)."""

    kind: Literal["relu2"] = "relu2"

    def matmul_parameters(self, shape: ModelShape) -> int:
        """Of up and down."""
        return 2 * shape.d_model * shape.d_ff

    def kept(self, shape: ModelShape) -> int:
        """The ReLU and its square."""
        return 2 * shape.d_ff
