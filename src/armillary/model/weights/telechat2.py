"""TeleChat2 checkpoint folders (Tele-AI/TeleChat2, dense models), read and written without its modelling code.

The model differs from Llama in three ways. The weights of keys and values are fused per head, and ``dense`` and
``down_proj`` have biases. In sequences longer than those of the training, the RoPE base and the attention factor depend
on the sequence length (``RopeScaling`` of kind ``telechat2``). Our transformer computes all of this with ``biases``
``out`` and ``down``.

Trade-offs: while the published code generates, cached keys stay rotated with the table of an earlier, shorter sequence.
Here all positions of a sequence are rotated with one table, as in the published code without a cache. An export has
``config.json`` but not the modelling code; for ``transformers``, copy that code from a release.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from armillary.model.weights.files import check_tensors
from armillary.model.weights.huggingface import read_config, special
from armillary.model.weights.shards import Shards
from armillary.model.weights.source import Export, Ours, Piece, Pieces, Source, parameter_sizes, plan
from armillary.recipe import ModelShape, RopeScaling, UsageError, in_words

ARCHITECTURE = "TELECHAT2ForCausalLM"
PREFIX = "transformer."
THETA = 10_000.0  # fixed in the published code
_DEFAULT_CONTEXT = 2048  # context length of a source that does not state one

# Required keys of the shape, by our field.
_SIZES = {
    "n_layers": "n_layer",
    "d_model": "hidden_size",
    "n_heads": "n_head",
    "d_ff": "ffn_hidden_size",
    "vocab_size": "vocab_size",
    "norm_eps": "layer_norm_epsilon",
}
# Values with which our transformer computes the same; an absent key has the first value.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "apply_residual_connection_post_layernorm": (False,),
    "embed_layernorm": (False,),
    "logn": (False,),
    "hidden_act": ("silu",),
    "quantization_config": (None,),
    "rope_scaling": (None,),
}
# Keys that do not affect the outputs of a model in evaluation mode.
_NEUTRAL = frozenset(
    (
        *("architectures", "model_type", "torch_dtype", "dtype", "use_cache", "auto_map", "_name_or_path"),
        *("transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "user_token_id"),
        *("bot_token_id", "start_token_id", "system_token_id", "attention_dropout", "hidden_dropout"),
        *("hidden_dropout_prob", "attention_softmax_in_fp32", "bias_dropout_fusion", "flash_attn"),
        *("initializer_range", "masked_softmax_fusion", "skip_bias_add", "skip_bias_add_qkv", "seq_length"),
        *("gradient_checkpointing", "slow_but_exact", "semi_causal", "max_position_embeddings", "pretraining_tp"),
        *("tokenizer_class", "problem_type", "torchscript", "return_dict", "output_attentions"),
        *("output_hidden_states", "use_cache_quantization", "is_encoder_decoder", "tp", "verbose"),
    )
)
# Further keys of the shape, by our field.
_OTHERS = {
    "n_kv_heads": "num_key_value_heads",
    "original_length": "training_seqlen",
    "base_length": "base_seqlen",
    "tied_embeddings": "tie_word_embeddings",
}
_CHECKED = frozenset((*_SIZES.values(), *_OTHERS.values(), *_SUPPORTED))


def is_telechat2(folder: Path) -> bool:
    """Whether ``folder`` has a readable ``config.json`` of TeleChat2."""
    try:
        config = read_config(folder / "config.json")
    except UsageError:
        return False
    return is_telechat2_config(config)


def is_telechat2_config(config: dict[str, Any]) -> bool:
    """Whether the content of a ``config.json`` is that of TeleChat2."""
    return config.get("architectures") == [ARCHITECTURE] or config.get("model_type") in ("telechat", "telechat2")


class TeleChat2Source(Source):
    """A TeleChat2 checkpoint folder.

    Raises:
        UsageError: ``config.json`` cannot be read, or our transformer cannot compute the model; names the key.
        ArmillaryError: weights are missing or damaged, or their names or sizes do not fit the configuration.
    """

    format = "telechat2"

    def __init__(self, folder: Path) -> None:
        path = folder / "config.json"
        config = read_config(path)
        self.folder, self.special = folder, special(config)
        self.shape = shape_of(path, config)
        assert self.shape.rope_scaling is not None
        self.context_length = self.shape.rope_scaling.original_length
        self._shards = shards = Shards(folder)
        self.dtype = shards.dtype()
        # The weights of small releases lack the prefix.
        self._prefix = PREFIX if any(name.startswith(PREFIX) for name in shards.entries) else ""
        found = {self._full(name): entry.size for name, entry in shards.entries.items()}
        pieces = telechat2_pieces(self.shape)
        if self.shape.tied_embeddings:
            found.pop("lm_head.weight", None)
            pieces.pop()
        check_tensors(folder, found, {piece.name: piece.size for piece in pieces})
        self._pieces = Pieces(pieces, self._read)

    def _full(self, name: str) -> str:
        return name if self._prefix or name.startswith("lm_head.") else PREFIX + name

    def _read(self, name: str) -> Tensor:
        return self._shards.tensor(name if self._prefix else name.removeprefix(PREFIX))

    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        """As ``Source.tensor``."""
        return self._pieces.tensor(name, expert)


def shape_of(path: Path, config: dict[str, Any]) -> ModelShape:
    """The shape of the model with the configuration ``config``, which was read from ``path``.

    Raises:
        UsageError: our transformer cannot compute the model, or a value is missing or wrong; names the key.
    """
    for key, values in _SUPPORTED.items():
        if config.get(key, values[0]) not in values:
            raise UsageError(f"{path}: {key} is {config[key]!r}; supported is only {values[0]!r}")
    for key, value in config.items():
        if key not in _NEUTRAL and key not in _CHECKED and value not in (None, False):
            raise UsageError(
                f"{path}: {key} is {value!r}, but this version does not know the key, which may affect the outputs of "
                "the model; remove the key if it does not"
            )
    required = (*_SIZES.values(), "training_seqlen")
    missing = [key for key in required if config.get(key) is None]
    if missing:
        raise UsageError(
            f"{path}: the key {missing[0]} is missing, which the outputs of the model depend on; copy config.json from "
            "the release again, or add the key"
        )
    counts = {key: config[key] for key in required if key != _SIZES["norm_eps"]}
    counts |= {key: config[key] for key in ("num_key_value_heads", "base_seqlen") if config.get(key)}
    for key, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
            raise UsageError(f"{path}: {key} is {value!r}; expected a positive integer")
    sizes = {field: config[key] for field, key in _SIZES.items()}
    heads, width = sizes["n_heads"], sizes["d_model"]
    if width % heads:
        raise UsageError(f"{path}: hidden_size is {width} and must be a multiple of n_head ({heads})")
    try:
        return ModelShape(
            **sizes,
            n_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=width // heads,
            tied_embeddings=config.get("tie_word_embeddings", False),
            rope_theta=THETA,
            rope_scaling=RopeScaling(
                kind="telechat2",
                original_length=config["training_seqlen"],
                base_length=config.get("base_seqlen") or config["training_seqlen"],
            ),
            biases=("out", "down"),
        )
    except ValidationError as error:
        first = error.errors()[0]
        keys = _SIZES | _OTHERS
        where = "".join(f"{keys.get(str(field), field)}: " for field in first["loc"])
        raise UsageError(f"{path}: not a valid model shape: {where}{in_words(first)}") from error


def telechat2_pieces(shape: ModelShape) -> list[Piece]:
    """The tensors of a TeleChat2 checkpoint of ``shape``, layer by layer."""
    sizes = parameter_sizes(shape)

    def piece(theirs: str, name: str) -> Piece:
        ours: tuple[Ours, ...] = ((name, None),) if name in sizes else ()
        # TeleChat2 has its own output matrix, so tied embeddings are copied; a bias that we lack is written as zeros.
        if name == "output.weight" and shape.tied_embeddings:
            return Piece(theirs, sizes["embedding.weight"], (("embedding.weight", None),))
        return Piece(theirs, sizes.get(name, (shape.d_model,)), ours)

    pieces = [piece(f"{PREFIX}word_embeddings.weight", "embedding.weight")]
    join, split = fused(shape)
    for i in range(shape.n_layers):
        ours, theirs = f"layers.{i}", f"{PREFIX}h.{i}"
        keys, values = f"{ours}.attention.k.weight", f"{ours}.attention.v.weight"
        rows = 2 * shape.n_kv_heads * shape.head_dim
        pieces += [
            piece(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight"),
            piece(f"{theirs}.self_attention.query.weight", f"{ours}.attention.q.weight"),
            Piece(
                f"{theirs}.self_attention.key_value.weight",
                (rows, shape.d_model),
                ((keys, None), (values, None)),
                join,
                split,
            ),
            piece(f"{theirs}.self_attention.dense.weight", f"{ours}.attention.out.weight"),
            piece(f"{theirs}.self_attention.dense.bias", f"{ours}.attention.out.bias"),
            piece(f"{theirs}.post_attention_layernorm.weight", f"{ours}.feed_forward_norm.weight"),
            piece(f"{theirs}.mlp.gate_proj.weight", f"{ours}.feed_forward.gate.weight"),
            piece(f"{theirs}.mlp.up_proj.weight", f"{ours}.feed_forward.up.weight"),
            piece(f"{theirs}.mlp.down_proj.weight", f"{ours}.feed_forward.down.weight"),
            piece(f"{theirs}.mlp.down_proj.bias", f"{ours}.feed_forward.down.bias"),
        ]
    return [*pieces, piece(f"{PREFIX}ln_f.weight", "norm.weight"), piece("lm_head.weight", "output.weight")]


def fused(shape: ModelShape) -> tuple[Callable[..., Tensor], Callable[[Tensor], list[Tensor]]]:
    """Two functions: one joins keys and values [heads * dim, d] to rows [k of head 0, v of head 0, k of head 1, ...],
    the other splits these rows again."""

    def join(parts: list[Tensor]) -> Tensor:
        heads = [part.reshape(shape.n_kv_heads, shape.head_dim, *part.shape[1:]) for part in parts]
        return torch.stack(heads, dim=1).flatten(0, 2)

    def split(both: Tensor) -> list[Tensor]:
        heads = both.reshape(shape.n_kv_heads, 2, shape.head_dim, *both.shape[1:])
        return [part.flatten(0, 1) for part in heads.unbind(1)]

    return join, split


def export_telechat2(source: Source, dtype: torch.dtype) -> Export:
    """The files of a TeleChat2 checkpoint with the weights of ``source`` in ``dtype``.

    Raises:
        UsageError: the model has a feature that the format lacks; names all of them.
    """
    shape = source.shape
    _check_exportable(shape)
    scaling, length = shape.rope_scaling, source.context_length or _DEFAULT_CONTEXT
    base = length
    if scaling is not None:
        length, base = scaling.original_length or length, scaling.base_length or length
    config = {
        "architectures": [ARCHITECTURE],
        "model_type": "telechat",
        "torch_dtype": str(dtype).removeprefix("torch."),
        **{key: getattr(shape, field) for field, key in _SIZES.items()},
        "num_key_value_heads": None if shape.n_kv_heads == shape.n_heads else shape.n_kv_heads,
        "training_seqlen": length,
        "base_seqlen": base,
        "seq_length": length,
        "tie_word_embeddings": False,
        "bos_token_id": source.special.begin,
        "eos_token_id": list(source.special.end) if isinstance(source.special.end, tuple) else source.special.end,
        "pad_token_id": source.special.fill,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "embed_layernorm": False,
        "flash_attn": False,
        "logn": False,
        "initializer_range": 0.02,
        "use_cache": True,
    }
    return Export({"config.json": config}, plan(telechat2_pieces(shape), source, dtype))


def _check_exportable(shape: ModelShape) -> None:
    width = shape.n_heads * shape.head_dim
    others = [name for name in shape.biases if name not in ("out", "down")]
    scaling = shape.rope_scaling
    problems = {
        "it has qk_norm": shape.qk_norm,
        "it has experts": shape.experts is not None,
        "its attention is not grouped-query attention": shape.attention is not None,
        "its feed_forward is not SwiGLU": shape.feed_forward is not None,
        f"it has biases of {', '.join(others)}": bool(others),
        f"its head_dim is {shape.head_dim} instead of d_model / n_heads ({shape.d_model} / {shape.n_heads})": (
            width != shape.d_model
        ),
        f"its rope_theta is {shape.rope_theta:g} instead of {THETA:g}": shape.rope_theta != THETA,
        "its rope_scaling is not of kind telechat2": scaling is not None and scaling.kind != "telechat2",
    }
    found = [problem for problem, there in problems.items() if there]
    if found:
        raise UsageError(
            f"this model cannot be written as TeleChat2: {'; '.join(found)}; choose another format with --to"
        )
