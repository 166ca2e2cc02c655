"""The shape of a decoder-only transformer, with its parameters and FLOPs counted by formula.

With formulas, a study can be sized before any model exists. The test suite compares these counts with the built model
and with PyTorch's own FLOP counter. There are two conventions for attention: *full* counts every query-key pair (PaLM,
Megatron-LM), *causal* only the pairs that the mask allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from armillary.recipe.errors import FieldError

Attention = Literal["causal", "full"]
Projection = Literal["q", "k", "v", "out", "gate", "up", "down"]


class Document(BaseModel):
    """A part of a recipe or a run: immutable; an unknown key or a number that is not finite is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Fields added in later versions. They are not written at their default, so that documents without them keep their
    # id.
    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        for name in self.later:
            if getattr(self, name) == type(self).model_fields[name].default:
                written.pop(name, None)
        return written


class Experts(Document):
    """Mixture-of-experts instead of the feed-forward block: ``count`` SwiGLUs of width ``d_ff`` in a layer.

    Each token goes to the ``active`` experts with the highest scores, a ``softmax`` or ``sigmoid`` of the router's
    logits. The scores weight the experts' outputs. With ``normalise`` they are divided by their sum over the chosen
    experts, and then multiplied by ``scale``. A shared expert of width ``shared_d_ff`` takes every token. The first
    ``dense_layers`` layers have a plain feed-forward block of the model's ``d_ff``. So does every layer whose number,
    counted from 1, is not a multiple of ``every``.

    ``balance`` prevents unused experts:

    - ``bias`` (Wang et al. 2024, arXiv 2408.15664): each expert has a bias that is added to its score only for the
      choice. After each optimizer step it goes up by ``bias_rate`` if fewer tokens of the batch than the mean chose the
      expert, and down if more did.
    - ``auxiliary``: the loss of Switch Transformer (Fedus et al. 2021, arXiv 2101.03961, equation 4) times
      ``auxiliary_weight``. It is computed per sequence, as in DeepSeek-V3 (arXiv 2412.19437, equations 17 to 20), so
      that it does not depend on which sequences are computed together.

    ``router_z_loss`` weights the mean squared log of the router's partition function (Zoph et al. 2022,
    arXiv 2202.08906, equation 5).

    Without ``capacity_factor`` no token is dropped. With it, an expert takes from each sequence of T tokens the first
    ``ceil(capacity_factor * T * active / count)`` that chose it. For other tokens the expert adds nothing to the
    residual stream. Capacity is per sequence for the same reason as the auxiliary loss.
    """

    count: int = Field(ge=2)
    active: int = Field(ge=1)
    d_ff: int = Field(ge=8, multiple_of=8)
    shared_d_ff: int = Field(default=0, ge=0)
    dense_layers: int = Field(default=0, ge=0)
    every: int = Field(default=1, ge=1)
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalise: bool = True
    scale: float = Field(default=1.0, gt=0)
    balance: Literal["bias", "auxiliary", "none"] = "bias"
    bias_rate: float = Field(default=1e-3, gt=0)
    auxiliary_weight: float = Field(default=1e-2, gt=0)
    router_z_loss: float = Field(default=0.0, ge=0)
    capacity_factor: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        if self.active > self.count:
            raise ValueError(f"active ({self.active}) must be at most the number of experts (count {self.count})")
        return self


class RopeScaling(Document):
    """Scaling of rotary positions by ``factor``, for text longer than in a model's first training.

    - ``linear`` scales all pairs (position interpolation).
    - ``ntk`` raises the base.
    - ``yarn`` and ``llama3`` scale the pairs that turn slowly within ``original_length`` tokens, which only these two
      need. The ramp of ``yarn`` is between ``beta_fast`` and ``beta_slow`` turns; that of ``llama3`` is set by
      ``low_freq_factor`` and ``high_freq_factor``.

    ``attention_factor`` scales queries and keys, and hence logits by its square (``ntk`` and ``yarn``). Its default is
    ``0.1 ln(factor) + 1`` for ``yarn`` and 1 for ``ntk``. ``model.rotary`` computes the scaling and names the sources.

    ``telechat2`` is the only dynamic one: within ``original_length`` tokens, the factor is the one of that length. A
    longer sequence has ``ntk`` scaling by its own length in units of ``base_length`` and an attention factor by its
    length in units of ``original_length`` (``at``). ``factor`` cannot be given.
    """

    kind: Literal["linear", "ntk", "yarn", "llama3", "telechat2"]
    factor: float = Field(default=1.0, ge=1)
    original_length: int | None = Field(default=None, ge=1)
    base_length: int | None = Field(default=None, ge=1)
    attention_factor: float | None = Field(default=None, gt=0)
    beta_fast: float = Field(default=32.0, gt=0)
    beta_slow: float = Field(default=1.0, gt=0)
    low_freq_factor: float = Field(default=1.0, gt=0)
    high_freq_factor: float = Field(default=4.0, gt=0)

    later = ("base_length",)

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.kind != "telechat2" and "factor" not in self.model_fields_set:
            raise FieldError("Field required", "factor")
        belongs = {
            "factor": ("linear", "ntk", "yarn", "llama3"),
            "original_length": ("yarn", "llama3", "telechat2"),
            "base_length": ("telechat2",),
            "attention_factor": ("ntk", "yarn"),
            "beta_fast": ("yarn",),
            "beta_slow": ("yarn",),
            "low_freq_factor": ("llama3",),
            "high_freq_factor": ("llama3",),
        }
        for name, kinds in belongs.items():
            default = type(self).model_fields[name].default
            if self.kind not in kinds and getattr(self, name) != default:
                raise FieldError(f"belongs to kind {' or '.join(map(repr, kinds))}; kind is '{self.kind}'", name)
        if self.original_length is None and self.kind in belongs["original_length"]:
            raise FieldError(f"kind '{self.kind}' needs the context length of the first training", "original_length")
        if self.kind == "telechat2" and self.base_length is None:
            raise FieldError("kind 'telechat2' needs the context length that its scaling is relative to", "base_length")
        for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
            if getattr(self, low) >= getattr(self, high):
                raise FieldError(f"must be less than {high} ({getattr(self, high):g})", low)
        return self

    @property
    def attention(self) -> float:
        """The factor of cosines and sines (``yarn``: Peng et al. 2023, arXiv 2309.00071, section 3.4)."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.kind == "yarn" else 1.0

    def at(self, length: int) -> RopeScaling | None:
        """The scaling of a sequence of ``length`` tokens, which no longer depends on it; None if nothing is scaled.

        Kind ``telechat2`` becomes ``ntk`` (the ``get_ntk_alpha`` and ``get_mscale`` of Tele-AI/TeleChat2).
        """
        if self.kind != "telechat2":
            return self
        assert self.original_length is not None and self.base_length is not None
        longest = max(length, self.original_length)
        factor = max(2 ** math.ceil(math.log(longest / self.base_length, 2) + 1) - 1, 1)
        attention = 0.1 * math.log(longest / self.original_length) + 1.0
        if factor == 1 and attention == 1.0:
            return None
        return RopeScaling(kind="ntk", factor=factor, attention_factor=attention)


class Block(Document):
    """A block of a layer: its options, and its counts in a model of a given shape.

    A new kind is a subclass with a new ``kind``, registered by ``register_block`` under the class that it
    specialises, and a module of the same kind in ``armillary.model.blocks``.
    """

    kind: str

    def check(self, shape: ModelShape) -> None:
        """Raise ValueError if the block does not fit the other sizes."""

    def matmul_parameters(self, shape: ModelShape) -> int:
        """Weights that take part in matrix products, in one layer; every kind has its formula."""
        raise NotImplementedError

    def other_parameters(self, shape: ModelShape) -> int:
        """All other parameters in one layer: gains."""
        return 0

    def kept(self, shape: ModelShape) -> int:
        """The approximate numbers per token that one layer keeps between forward and backward, besides its input."""
        raise NotImplementedError


class AttentionBlock(Block):
    """An attention with ``n_heads`` heads, whose queries and keys have ``head_dim`` dimensions."""

    def rotary_dim(self, shape: ModelShape) -> int:
        """The number of dimensions of a head that rotary positions turn; in each half they come first."""
        return shape.head_dim

    def pair_flops(self, shape: ModelShape) -> int:
        """FLOPs of one layer for one query and one key, over all heads: the score and the weighted sum."""
        return 4 * shape.n_heads * shape.head_dim


class FeedForwardBlock(Block):
    """A feed-forward block of width ``d_ff``."""


_Block = TypeVar("_Block", bound=Block)
_BLOCKS: dict[type[Block], dict[str, type[Block]]] = {AttentionBlock: {}, FeedForwardBlock: {}}


def register_block(kind: str) -> Callable[[type[_Block]], type[_Block]]:
    """Register the decorated class as the block that a shape names by ``kind``.

    Raises:
        ValueError: the kind is taken.
    """

    def add(block: type[_Block]) -> type[_Block]:
        known = next(kinds for base, kinds in _BLOCKS.items() if issubclass(block, base))
        if kind in known:
            raise ValueError(f"a block of kind {kind!r} is already registered")
        known[kind] = block
        return block

    return add


@register_block("grouped-query")
class GroupedQuery(AttentionBlock):
    """Grouped-query attention, with QK-norm if the shape has it."""

    kind: Literal["grouped-query"] = "grouped-query"

    def matmul_parameters(self, shape: ModelShape) -> int:
        """Of q, k, v and o."""
        return shape.d_model * shape.head_dim * (2 * shape.n_heads + 2 * shape.n_kv_heads)

    def other_parameters(self, shape: ModelShape) -> int:
        """The gains of QK-norm, and the biases."""
        queries, keys = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        sizes = {"q": queries, "k": keys, "v": keys, "out": shape.d_model}
        return (2 * shape.head_dim if shape.qk_norm else 0) + sum(sizes.get(name, 0) for name in shape.biases)

    def kept(self, shape: ModelShape) -> int:
        """Queries, keys and values before and after they are turned, and the mixed values."""
        return 2 * (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim + shape.n_heads * shape.head_dim


@register_block("swiglu")
class SwiGLU(FeedForwardBlock):
    """SwiGLU."""

    kind: Literal["swiglu"] = "swiglu"

    def matmul_parameters(self, shape: ModelShape) -> int:
        """Of gate, up and down."""
        return 3 * shape.d_model * shape.d_ff

    def other_parameters(self, shape: ModelShape) -> int:
        """The biases."""
        sizes = {"gate": shape.d_ff, "up": shape.d_ff, "down": shape.d_model}
        return sum(sizes.get(name, 0) for name in shape.biases)

    def kept(self, shape: ModelShape) -> int:
        """Gate, up and their product."""
        return 3 * shape.d_ff


class ModelShape(Document):
    """A decoder-only transformer: RMSNorm before each block, rotary positions, grouped-query attention, SwiGLU.

    With ``qk_norm`` queries and keys are normalised per head, as in Qwen3; without it the shape is Llama's.
    ``attention`` and ``feed_forward`` name other registered blocks, by kind or as a mapping with options;
    ``feed_forward`` is used in all layers without experts. ``biases`` names the projections of the default blocks that
    have one: all four of attention in some models of Llama's family, ``q``, ``k``, ``v`` in Qwen2, ``out`` and ``down``
    in TeleChat2.
    """

    n_layers: int = Field(ge=1, le=10_000)
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
    experts: Experts | None = None
    rope_scaling: RopeScaling | None = None
    attention: SerializeAsAny[AttentionBlock] | None = None
    feed_forward: SerializeAsAny[FeedForwardBlock] | None = None
    biases: tuple[Projection, ...] = ()

    later = ("experts", "rope_scaling", "attention", "feed_forward", "biases")

    @field_validator("attention", mode="before")
    @classmethod
    def _attention_is_registered(cls, value: Any) -> Any:
        return _registered(AttentionBlock, GroupedQuery, value)

    @field_validator("feed_forward", mode="before")
    @classmethod
    def _feed_forward_is_registered(cls, value: Any) -> Any:
        return _registered(FeedForwardBlock, SwiGLU, value)

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        for name, block in (("attention", self.attention), ("feed_forward", self.feed_forward)):
            if block is not None:
                try:
                    block.check(self)
                except ValueError as error:
                    raise FieldError(str(error), name) from error
        return self

    @field_validator("biases")
    @classmethod
    def _biases_have_one_order(cls, value: tuple[Projection, ...]) -> tuple[Projection, ...]:
        return tuple(name for name in get_args(Projection) if name in value)  # so that a shape has one hash

    @model_validator(mode="after")
    def _biases_have_a_projection(self) -> Self:
        inside = [name for name in self.biases if name in ("gate", "up", "down")]
        outside = [name for name in self.biases if name not in inside]
        for names, block, with_biases in (
            (outside, self.attention_block, GroupedQuery),
            (inside, self.feed_forward_block, SwiGLU),
        ):
            if names and not isinstance(block, with_biases):
                raise FieldError(f"{names[0]!r}: kind '{block.kind}' has no biases", "biases")
        if inside and self.experts is not None:
            raise FieldError(f"{inside[0]!r}: layers with experts have no biases", "biases")
        return self

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary embedding turns pairs")
        kind = None if self.rope_scaling is None else self.rope_scaling.kind
        if kind in ("ntk", "telechat2") and self.rotary_dim == 2:
            raise ValueError(f"rope_scaling: kind '{kind}' needs a head_dim above 2: it needs two rotary pairs or more")
        return self

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        if self.experts is None:
            return self
        if not self.mixture_layers:
            raise ValueError(
                f"experts: none of the {self.n_layers} layers has any: dense_layers is {self.experts.dense_layers} and "
                f"every is {self.experts.every}"
            )
        if self.d_model % 8:
            raise ValueError(
                f"d_model ({self.d_model}) must be a multiple of 8 for experts: grouped matrix products on "
                "accelerators need rows of a multiple of 16 bytes"
            )
        return self

    @property
    def mixture_layers(self) -> tuple[int, ...]:
        """The layers (0-based) with a mixture of experts instead of the feed-forward block."""
        if self.experts is None:
            return ()
        return tuple(i for i in range(self.experts.dense_layers, self.n_layers) if (i + 1) % self.experts.every == 0)

    @property
    def attention_block(self) -> AttentionBlock:
        """The attention of every layer."""
        return self.attention or GroupedQuery()

    @property
    def feed_forward_block(self) -> FeedForwardBlock:
        """The feed-forward block of every layer without experts."""
        return self.feed_forward or SwiGLU()

    @property
    def rotary_dim(self) -> int:
        """How many of the ``head_dim`` dimensions of queries and keys rotary positions turn."""
        return self.attention_block.rotary_dim(self)

    def at_length(self, length: int) -> ModelShape:
        """This shape with the scaling of rotary positions that a sequence of ``length`` tokens has."""
        scaling = None if self.rope_scaling is None else self.rope_scaling.at(length)
        return self if scaling == self.rope_scaling else self.model_copy(update={"rope_scaling": scaling})

    @property
    def layer_matmul_parameters(self) -> int:
        """Weights of one dense layer that take part in matrix products."""
        return self.attention_block.matmul_parameters(self) + self.feed_forward_block.matmul_parameters(self)

    def _layers_matmul_parameters(self, experts: int) -> int:
        """Weights of all layers that take part in matrix products, with this many ``experts`` of each mixture."""
        dense = self.n_layers * self.layer_matmul_parameters
        if self.experts is None:
            return dense
        router = self.experts.count * self.d_model
        mixture = router + 3 * self.d_model * (self.experts.shared_d_ff + experts * self.experts.d_ff)
        return dense + len(self.mixture_layers) * (mixture - self.feed_forward_block.matmul_parameters(self))

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding and, if untied, of the output matrix."""
        return self.vocab_size * self.d_model * (1 if self.tied_embeddings else 2)

    @property
    def norm_parameters(self) -> int:
        """RMSNorm gains: two per layer, one at the end, and those of the blocks with their biases."""
        per_layer = 2 * self.d_model + self.attention_block.other_parameters(self)
        dense = self.n_layers - len(self.mixture_layers)
        return self.n_layers * per_layer + dense * self.feed_forward_block.other_parameters(self) + self.d_model

    @property
    def parameters(self) -> int:
        """All parameters, without the biases of experts, which have no gradient."""
        return self.non_embedding_parameters + self.embedding_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters used for one token: all except those of the experts that it is not sent to."""
        if self.experts is None:
            return self.parameters
        idle = self.experts.count - self.experts.active
        return self.parameters - len(self.mixture_layers) * idle * 3 * self.d_model * self.experts.d_ff

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters without embedding and output matrix (the N of Kaplan et al. 2020)."""
        return self._layers_matmul_parameters(self.experts.count if self.experts else 0) + self.norm_parameters

    @property
    def matmul_parameters(self) -> int:
        """Parameters in matrix products for one token: the layers' and the output matrix's.

        Of the experts, only those that a token is sent to count, assuming that no token is dropped.
        """
        active = self.experts.active if self.experts else 0
        return self._layers_matmul_parameters(active) + self.vocab_size * self.d_model

    def forward_flops_per_token(self, context_length: int, attention: Attention = "causal") -> float:
        """FLOPs of a forward pass per token: 2 per matmul parameter, plus the two attention products.

        A query sees ``context_length`` keys by the full convention, ``(context_length + 1) / 2`` on average by the
        causal one; each pair costs ``AttentionBlock.pair_flops`` per layer (scores and weighted sum).
        """
        keys = context_length if attention == "full" else (context_length + 1) / 2
        return 2 * self.matmul_parameters + self.n_layers * self.attention_block.pair_flops(self) * keys

    def train_flops_per_token(self, context_length: int, attention: Attention = "causal") -> float:
        """FLOPs of forward and backward per token: three times the forward pass ("6N plus attention")."""
        return 3 * self.forward_flops_per_token(context_length, attention)


def _registered(base: type[Block], usual: type[Block], value: Any) -> Any:
    """The block that ``value`` (a kind, or a mapping with one) describes; None for the default block."""
    if isinstance(value, str):
        value = {"kind": value}
    if isinstance(value, dict):
        known, kind = _BLOCKS[base], value.get("kind")
        if not isinstance(kind, str) or kind not in known:
            problem = "has no kind" if kind is None else f"kind {kind!r} is not registered"
            raise FieldError(f"{problem}; registered: {', '.join(map(repr, known))}", "kind")
        value = known[kind].model_validate(value)
    # so that a shape has one form and one hash
    return None if type(value) is usual else value


class Family(Document):
    """A family of shapes with one dial, the depth, which sets width, heads and feed-forward size.

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
