"""The shape of a decoder-only transformer, with its parameters and FLOPs counted by formula.

Counting by formula lets a study be sized before any model exists; the test suite holds these counts against the built
model and against PyTorch's own FLOP counter. Two conventions of the field are offered for attention: *full* counts
every query-key pair (PaLM, Megatron-LM), *causal* counts only those the mask lets through.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Attention = Literal["causal", "full"]


class Document(BaseModel):
    """A part of a recipe or a run: immutable; an unknown key or a number that is not finite is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Fields that came after others had been hashed: where they have their default they are not written, so that what
    # does not use them keeps its id.
    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        for name in self.later:
            if getattr(self, name) == type(self).model_fields[name].default:
                written.pop(name, None)
        return written


class ModelShape(Document):
    """A decoder-only transformer: RMSNorm before each block, rotary positions, grouped-query attention, SwiGLU.

    With ``qk_norm`` queries and keys are normalised per head (as Qwen3 does), without it the shape is Llama's.
    """

    n_layers: int = Field(ge=1)
    d_model: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    n_kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    d_ff: int = Field(ge=1)
    vocab_size: int = Field(ge=2)
    tied_embeddings: bool = False
    qk_norm: bool = False
    rope_theta: float = Field(default=10_000.0, gt=0)
    norm_eps: float = Field(default=1e-5, gt=0)

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary embedding turns pairs")
        return self

    @property
    def layer_matmul_parameters(self) -> int:
        """Weights of one layer that take part in matrix products: q, k, v, o and the three of SwiGLU."""
        attention = self.d_model * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)
        return attention + 3 * self.d_model * self.d_ff

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding and, where untied, of the output matrix."""
        return self.vocab_size * self.d_model * (1 if self.tied_embeddings else 2)

    @property
    def norm_parameters(self) -> int:
        """RMSNorm gains: two per layer, one at the end, and two per layer of head_dim with ``qk_norm``."""
        per_layer = 2 * self.d_model + (2 * self.head_dim if self.qk_norm else 0)
        return self.n_layers * per_layer + self.d_model

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.non_embedding_parameters + self.embedding_parameters

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters without embedding and output matrix (the N of Kaplan et al. 2020)."""
        return self.n_layers * self.layer_matmul_parameters + self.norm_parameters

    @property
    def matmul_parameters(self) -> int:
        """Parameters that take part in a matrix product for every token: the layers' and the output matrix's."""
        return self.n_layers * self.layer_matmul_parameters + self.vocab_size * self.d_model

    def forward_flops_per_token(self, context_length: int, attention: Attention = "causal") -> float:
        """FLOPs of a forward pass per token: 2 per matmul parameter, plus the two attention products.

        A query sees ``context_length`` keys by the full convention, ``(context_length + 1) / 2`` on average by the
        causal one; each pair costs ``4 * n_heads * head_dim`` FLOPs per layer (scores and weighted sum).
        """
        keys = context_length if attention == "full" else (context_length + 1) / 2
        return 2 * self.matmul_parameters + 4 * self.n_layers * self.n_heads * self.head_dim * keys

    def train_flops_per_token(self, context_length: int, attention: Attention = "causal") -> float:
        """FLOPs of forward and backward per token: three times the forward pass ("6N plus attention")."""
        return 3 * self.forward_flops_per_token(context_length, attention)


class Family(Document):
    """A family of shapes on one dial, the depth: width, heads and feed-forward size follow from it.

    ``shape(depth)`` has ``d_model = depth * width_per_layer`` (rounded up to whole heads) and
    ``d_ff = ffn_ratio * d_model`` rounded up to a multiple of 32.
    """

    name: str = "base"
    width_per_layer: int = Field(default=32, ge=1)
    head_dim: int = Field(default=32, ge=2, multiple_of=2)
    query_heads_per_kv_head: int = Field(default=1, ge=1)
    ffn_ratio: float = Field(default=8 / 3, gt=0)
    tied_embeddings: bool = False
    qk_norm: bool = False
    rope_theta: float = Field(default=10_000.0, gt=0)

    def shape(self, depth: int, vocab_size: int) -> ModelShape:
        """The family's member of the given depth, for a tokenizer of ``vocab_size``."""
        group = self.head_dim * self.query_heads_per_kv_head
        n_kv_heads = max(1, round(depth * self.width_per_layer / group))
        n_heads = n_kv_heads * self.query_heads_per_kv_head
        d_model = n_heads * self.head_dim
        return ModelShape(
            n_layers=depth,
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=self.head_dim,
            d_ff=-(-round(d_model * self.ffn_ratio) // 32) * 32,
            vocab_size=vocab_size,
            tied_embeddings=self.tied_embeddings,
            qk_norm=self.qk_norm,
            rope_theta=self.rope_theta,
        )
