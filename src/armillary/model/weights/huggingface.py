"""Model folders that Hugging Face ``transformers`` loads, written and read without it.

A shape without QK-norm is a ``LlamaForCausalLM``, one with QK-norm a ``Qwen3ForCausalLM``, and one with QK-norm and a
mixture of experts a ``Qwen3MoeForCausalLM``. Biases of q, k and v alone make it a ``Qwen2ForCausalLM``; for other
biases the class has zeros where the shape has none. ``MistralForCausalLM`` is read and written as Llama. All are
equivalent to our transformer, so logits agree to rounding.

Trade-offs: the configuration is written by hand and has only the keys that determine the computation, so an export
needs no further package. The test suite compares it with ``transformers`` itself. Reading refuses any feature that this
transformer does not have (sliding windows shorter than the context, other rotary positions), and any key that this
version does not know unless it is off: a newer ``transformers`` may have given it a meaning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import Tensor

from armillary.model.rotary import ntk_base
from armillary.model.transformer import Transformer
from armillary.model.weights import quantized
from armillary.model.weights.files import check_tensors, replace_folder, save_tensors
from armillary.model.weights.scaled import Scaled
from armillary.model.weights.shards import WEIGHTS, Shards
from armillary.model.weights.source import (
    Export,
    InMemory,
    Piece,
    Pieces,
    Source,
    Special,
    build,
    parameter_sizes,
    plan,
)
from armillary.recipe import ArmillaryError, Experts, ModelShape, Projection, UsageError, in_words

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}

# Fields of our shape and the keys that hold them.
SIZES = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "vocab_size": "vocab_size",
}

# Fields of our experts and the keys that hold them.
EXPERTS = {
    "count": "num_experts",
    "active": "num_experts_per_tok",
    "d_ff": "moe_intermediate_size",
    "normalise": "norm_topk_prob",
    "every": "decoder_sparse_step",
}

# Fields of our scaling of rotary positions and the keys that hold them, for each kind that is known there.
ROPE = {
    "linear": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "original_length": "original_max_position_embeddings",
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
    },
    "llama3": {
        "factor": "factor",
        "original_length": "original_max_position_embeddings",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
}

# Names of the matrices that are quantized: all of the layers except routers.
_MATRIX = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.(.*\.)?[a-z]+_proj\.weight")

# The context length of a configuration that states none.
_CONTEXT = 2048

# What must hold of a configuration for our transformer to compute the same; an absent key has this value.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, True),
    "mlp_bias": (False, True),
    "partial_rotary_factor": (1, None),
    "use_sliding_window": (False,),
    "pretraining_tp": (1, None),  # above 1, older versions of transformers computed sums in parts, which is the same
}
ATTENTION_BIASES: tuple[Projection, ...] = ("q", "k", "v", "out")
MLP_BIASES: tuple[Projection, ...] = ("gate", "up", "down")

# Keys without influence on what an evaluated model computes, and those that other parts of this file read.
KNOWN = frozenset(
    (
        *("architectures", "model_type", "torch_dtype", "dtype", "use_cache", "auto_map", "_name_or_path"),
        *("_model_name_or_path", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id"),
        *("unk_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id", "attention_dropout"),
        *("hidden_dropout", "dropout", "initializer_range", "max_position_embeddings", "tie_word_embeddings"),
        *("rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "sliding_window", "layer_types"),
        *("max_window_layers", "original_max_position_embeddings", "num_local_experts", "mlp_only_layers"),
        *("router_aux_loss_coef", "output_router_logits", "router_jitter_noise", "chunk_size_feed_forward"),
        *("id2label", "label2id", "problem_type", "task_specific_params", "tokenizer_class", "finetuning_task"),
        *("return_dict", "return_dict_in_generate", "output_attentions", "output_hidden_states", "torchscript"),
        *("gradient_checkpointing", "model_max_length", "unsloth_version", "unsloth_fixed", "is_decoder"),
        *("_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "is_llama_config"),
        "quantization_config",
        *("rope_interleaved", "transformers.js_config", "tf_legacy_loss", "pruned_heads", "prefix"),
        *("temperature", "top_k", "top_p", "do_sample", "max_length", "min_length", "repetition_penalty"),
        *("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "typical_p", "early_stopping"),
        *("num_return_sequences", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "suppress_tokens"),
        *("begin_suppress_tokens", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id"),
        *("exponential_decay_length_penalty", "remove_invalid_values", "output_scores", "head_dim"),
    )
)


def export_hf(
    model: Transformer,
    folder: Path,
    *,
    tokenizer_file: Path,
    end_token: str,
    context_length: int,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load; it appears only when it is whole.

    ``end_token`` is the token that ends a document; generation stops at it. ``files`` are written beside, or in the
    place of the files of these names; without a chat template among them, this is a model that continues text. An
    earlier export under ``folder`` is replaced at the very end.

    Raises:
        UsageError: the tokenizer cannot be read, lacks ``end_token`` or has more tokens than the model; ``folder``
            holds files that are not an export; or ``transformers`` has no known class for this mixture of experts.
    """
    check_exportable(model.shape)
    end = _end_token_id(tokenizer_file, end_token, model.shape.vocab_size)
    stored = getattr(torch, dtype)
    documents = {
        "config.json": _config(model.shape, context_length, Special(end=end), dtype),
        "generation_config.json": {"eos_token_id": end},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": end_token,
            "model_max_length": context_length,
            "clean_up_tokenization_spaces": False,
        },
    }
    with replace_folder(folder) as aside:
        for name, document in documents.items():
            (aside / name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (aside / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
        for name, data in files.items():
            (aside / name).write_bytes(data)
        source = InMemory(model)
        save_tensors({piece.name: piece.take(source).to(stored) for piece in _pieces(model.shape)}, aside / WEIGHTS)


def import_hf(folder: Path) -> Transformer:
    """The model in a ``transformers`` folder of a Llama, Mistral, Qwen2, Qwen3 or Qwen3-MoE model, in fp32 on the CPU.

    Weights may be one safetensors file or several with an index; half-precision weights are widened, which is exact.
    Experts may be separate or merged. The folder does not say how they were balanced, so the shape says ``none``.

    Raises:
        UsageError: no such folder, or a configuration that our transformer does not compute, naming the key.
        ArmillaryError: weights missing, torn or of other names or shapes than the configuration says.
    """
    return build(HuggingFaceSource(folder))


class HuggingFaceSource(Source):
    """A folder of ``transformers``; raises as ``import_hf``."""

    format = "huggingface"

    def __init__(self, folder: Path) -> None:
        self.folder, self.shape = folder, read_shape(folder)
        config = read_config(folder / "config.json")
        self.context_length, self.special = longest(config), special(config)
        self._shards = shards = Shards(folder)
        self.dtype = shards.dtype()
        pieces = _pieces(self.shape)
        found = {name: entry.size for name, entry in shards.entries.items()}
        # tables that old checkpoints carry, and the second name of a tied matrix
        ignored = [name for name in found if name.endswith("rotary_emb.inv_freq")]
        for name in [*ignored, *(["lm_head.weight"] if self.shape.tied_embeddings else [])]:
            found.pop(name, None)
        self._bits = self._take_packed(found, config)
        self._merged = self._take_merged(found)
        check_tensors(folder, found, {piece.name: piece.size for piece in pieces})
        self._pieces = Pieces(pieces, self._read)

    def _take_packed(self, found: dict[str, tuple[int, ...]], config: dict[str, Any]) -> int | None:
        """Replace quantized matrices in ``found`` with the plain ones; returns the bits of their numbers."""
        if config.get("quantization_config") is None:
            return None
        bits = quantized.bits_of(config["quantization_config"])
        assert bits is not None, "read_shape refuses others"
        self._sizes: dict[str, tuple[int, ...]] = {}
        for name in [name for name in found if name.endswith(".weight_packed")]:
            stem = name.removesuffix("weight_packed")
            for part in ("weight_packed", "weight_scale", "weight_shape"):
                if found.pop(f"{stem}{part}", None) is None:
                    raise ArmillaryError(f"{self.folder}: missing {stem}{part}; fetch the folder again")
            shape, packed, scales = (
                self._shards.entries[f"{stem}{part}"] for part in ("weight_shape", "weight_packed", "weight_scale")
            )
            size = tuple(self._shards.raw(f"{stem}weight_shape").flatten().tolist()[:3])
            wanted = (packed.size[0], packed.size[1] * 32 // bits) if len(packed.size) == 2 else None
            groups = scales.size[1] if len(scales.size) == 2 and scales.size[0] == packed.size[0] else 0
            if (shape.dtype, packed.dtype) != ("I64", "I32") or size != wanted or not groups or size[1] % groups:
                raise ArmillaryError(
                    f"{self.folder}: {stem}weight_shape is {list(size)}, and weight_packed is {list(packed.size)} with "
                    f"scales {list(scales.size)}, which do not belong to one matrix; fetch the folder again"
                )
            found[f"{stem}weight"] = self._sizes[f"{stem}weight"] = size
        return bits

    def _take_merged(self, found: dict[str, tuple[int, ...]]) -> dict[str, tuple[str, int, slice]]:
        """Replace merged experts in ``found`` with the separate ones; returns where each of these lies."""
        places: dict[str, tuple[str, int, slice]] = {}
        for name in [n for n in found if n.endswith(("mlp.experts.gate_up_proj", "mlp.experts.down_proj"))]:
            size = found.pop(name)
            if len(size) != 3:
                raise ArmillaryError(f"{self.folder}: {name} has {len(size)} dimensions and should have 3")
            prefix, part = name.rsplit(".", 1)
            half = size[1] // 2
            rows = {"down_proj": slice(0, size[1])}
            if part == "gate_up_proj":
                rows = {"gate_proj": slice(0, half), "up_proj": slice(half, size[1])}
            for i in range(size[0]):
                for key, where in rows.items():
                    places[f"{prefix}.{i}.{key}.weight"] = name, i, where
                    found[f"{prefix}.{i}.{key}.weight"] = where.stop - where.start, size[2]
        return places

    def _read(self, name: str) -> Tensor:
        if name not in self._merged:
            if self._bits is None or name in self._shards.entries:
                return self._shards.tensor(name)
            return quantized.restore(self._shards.raw, name.removesuffix("weight"), self._bits, self._sizes[name])
        merged, expert, rows = self._merged[name]
        return self._shards.tensor(merged, expert)[rows]

    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        """As ``Source.tensor``."""
        return self._pieces.tensor(name, expert)


def export_huggingface(source: Source, dtype: torch.dtype, quantize: str | None = None) -> Export:
    """What a folder of ``transformers`` holds of ``source``; ``quantize`` (``quantized.BITS``) packs its matrices.

    A scaling of rotary positions by the length of the sequence is fixed at what it is within the length of the first
    training, so such a model is the same up to that length.

    Raises:
        UsageError: no class of ``transformers`` that is known here computes the shape.
    """
    shape = source.shape
    check_exportable(shape)
    config = _config(shape, source.context_length or _CONTEXT, source.special, str(dtype).removeprefix("torch."))
    documents = {"config.json": config}
    if source.special.end is not None:
        documents["generation_config.json"] = {"eos_token_id": config["eos_token_id"]}
    tensors = plan(_pieces(shape), source, dtype)
    if quantize is not None:
        bits = quantized.BITS[quantize]
        chosen = {tensor.name for tensor in tensors if _MATRIX.fullmatch(tensor.name)}
        size = quantized.group_size([tensor.size[-1] for tensor in tensors if tensor.name in chosen], bits)
        routers = [f"model.layers.{i}.mlp.gate" for i in shape.mixture_layers]
        config["quantization_config"] = quantized.settings(bits, size, ["lm_head", *routers])
        steps = quantized.searched if bits == 4 and not isinstance(source, Scaled) else quantized.widest
        tensors = [
            part for t in tensors for part in (quantized.packed(t, bits, size, steps) if t.name in chosen else [t])
        ]
    return Export(documents, tensors)


def longest(config: dict[str, Any]) -> int | None:
    """The context length in a configuration."""
    length = config.get("max_position_embeddings")
    return length if isinstance(length, int) and length > 0 else None


def special(config: dict[str, Any]) -> Special:
    """The ids of special tokens in a configuration; values of other kinds count as not stated."""

    def one(key: str) -> int | None:
        value = config.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    ends = config.get("eos_token_id")
    several = tuple(ends) if isinstance(ends, list) and ends and all(isinstance(i, int) for i in ends) else None
    return Special(one("bos_token_id"), several or one("eos_token_id"), one("pad_token_id"))


def read_shape(folder: Path) -> ModelShape:
    """The shape that the ``config.json`` in a ``transformers`` folder states; raises as ``shape_of``."""
    return shape_of(folder / "config.json")


def shape_of(path: Path) -> ModelShape:
    """The shape that a configuration of ``transformers`` states.

    Raises:
        UsageError: no such file, or a configuration that our transformer does not compute, naming the key.
    """
    try:
        return _shape(path)
    except (TypeError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise UsageError(f"{path}: a value has the wrong type for its key ({error}); fetch the folder again") from error


def names_there(shape: ModelShape) -> dict[str, str]:
    """Map our name of each parameter to its name in ``transformers``, if it is a single tensor there too."""
    return {name: theirs for theirs, (name, at) in _names(shape).items() if at is None}


def _names(shape: ModelShape) -> dict[str, tuple[str, int | None]]:
    """Map each name in ``transformers`` to our parameter and, if that holds all experts, the index of the expert."""
    names: dict[str, tuple[str, int | None]] = {
        "model.embed_tokens.weight": ("embedding.weight", None),
        "model.norm.weight": ("norm.weight", None),
    }
    if not shape.tied_embeddings:
        names["lm_head.weight"] = ("output.weight", None)
    inside = {
        "attention_norm": "input_layernorm",
        **{f"attention.{part}": f"self_attn.{part}_proj" for part in "qkv"},
        "attention.out": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
    }
    if shape.qk_norm:
        inside |= {f"attention.{part}_norm": f"self_attn.{part}_norm" for part in "qk"}
    matrices = ("gate", "up", "down")
    for i in range(shape.n_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        here = dict(inside)
        if shape.experts is not None and i in shape.mixture_layers:
            here["feed_forward.router"] = "mlp.gate"
            for part in matrices:
                name = f"{ours}.feed_forward.experts.{part}"
                for expert in range(shape.experts.count):
                    names[f"{theirs}.mlp.experts.{expert}.{part}_proj.weight"] = (name, expert)
        else:
            here |= {f"feed_forward.{part}": f"mlp.{part}_proj" for part in matrices}
        for name, there in here.items():
            names[f"{theirs}.{there}.weight"] = (f"{ours}.{name}.weight", None)
            if name.rpartition(".")[2] in shape.biases:
                names[f"{theirs}.{there}.bias"] = (f"{ours}.{name}.bias", None)
    return names


def _kind(shape: ModelShape) -> tuple[str, tuple[Projection, ...]]:
    """The ``model_type`` that computes ``shape``, and the projections that have a bias there."""
    found = set(shape.biases)
    inside = MLP_BIASES if found & set(MLP_BIASES) else ()
    attention = ATTENTION_BIASES if found & set(ATTENTION_BIASES) else ()
    if shape.experts is not None or shape.qk_norm:
        return "qwen3_moe" if shape.experts else "qwen3", (*attention, *inside)
    return ("qwen2", shape.biases) if found == {"q", "k", "v"} else ("llama", (*attention, *inside))


def _pieces(shape: ModelShape) -> list[Piece]:
    """The tensors of ``shape`` in ``transformers``; zeros for biases that only the class has."""
    there = shape.model_copy(update={"biases": _kind(shape)[1]})
    sizes, ours = parameter_sizes(there), parameter_sizes(shape)
    return [
        Piece(theirs, sizes[name][0 if at is None else 1 :], ((name, at),) if name in ours else ())
        for theirs, (name, at) in _names(there).items()
    ]


def check_exportable(shape: ModelShape) -> None:
    """Raise UsageError if no class of ``transformers`` that is known here computes ``shape``."""
    for name, block in (("attention", shape.attention), ("feed_forward", shape.feed_forward)):
        if block is not None:
            raise UsageError(
                f"{name}: kind '{block.kind}' is not supported by {', '.join(ARCHITECTURES.values())} of transformers; "
                "keep the weights in armillary's own format"
            )
    inside = [name for name in shape.biases if name in MLP_BIASES]
    if inside and shape.qk_norm:
        raise UsageError(
            f"biases: '{inside[0]}' together with qk_norm is not supported by any class of transformers; keep the "
            "weights in armillary's own format"
        )
    experts = shape.experts
    if experts is None:
        return
    problems = {
        "qk_norm is false": not shape.qk_norm,
        "scores are a sigmoid": experts.scores != "softmax",
        "a bias chooses the experts": experts.balance == "bias",
        "there is a shared expert": experts.shared_d_ff > 0,
        "scale is not 1": experts.scale != 1.0,
        "capacity_factor drops tokens": experts.capacity_factor is not None,
    }
    found = [problem for problem, there in problems.items() if there]
    if found:
        raise UsageError(
            f"experts: {found[0]}, which Qwen3MoeForCausalLM, the class of transformers that mixtures of experts are "
            "exported as, does not compute; keep the weights in armillary's own format"
        )


def _rope_config(shape: ModelShape, context_length: int) -> dict[str, Any]:
    """The ``rope_parameters`` of ``transformers`` 5 for the angles of ``shape``."""
    scaling, theta = shape.rope_scaling, shape.rope_theta
    if scaling is not None and scaling.kind == "ntk":
        # not known there, but the same as a higher base; yarn by 1 stretches nothing and has an attention factor
        theta = ntk_base(shape)
        by_one = {"kind": "yarn", "factor": 1.0, "original_length": context_length}
        scaling = None if scaling.attention == 1.0 else scaling.model_copy(update=by_one)
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    values = {key: getattr(scaling, field) for field, key in ROPE[scaling.kind].items()}
    chosen = {key: value for key, value in values.items() if value is not None}
    return {"rope_type": scaling.kind, "rope_theta": theta, **chosen}


def _config(shape: ModelShape, context_length: int, special: Special, dtype: str) -> dict[str, Any]:
    kind, biases = _kind(shape)
    shape = shape.at_length(1)
    experts = shape.experts and {
        **{key: getattr(shape.experts, field) for field, key in EXPERTS.items()},
        "mlp_only_layers": list(range(shape.experts.dense_layers)),
    }
    rope = _rope_config(shape, context_length)
    older = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "dtype": dtype,
        "torch_dtype": dtype,  # the name of the key before transformers 5
        **{key: getattr(shape, field) for field, key in SIZES.items()},
        **(experts or {}),
        "tie_word_embeddings": shape.tied_embeddings,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],  # these two before transformers 5
        **({} if rope["rope_type"] == "default" else {"rope_scaling": older}),
        "max_position_embeddings": context_length,
        "hidden_act": "silu",
        **({} if kind == "qwen2" else {"attention_bias": "out" in biases}),
        **({"mlp_bias": "down" in biases} if kind == "llama" else {}),
        **({"use_sliding_window": False} if kind == "qwen2" else {}),
        "attention_dropout": 0.0,
        "bos_token_id": special.begin,
        "eos_token_id": list(special.end) if isinstance(special.end, tuple) else special.end,
        **({} if special.fill is None else {"pad_token_id": special.fill}),
        "use_cache": True,
    }


def _end_token_id(tokenizer_file: Path, end_token: str, vocab_size: int) -> int:
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # tokenizers raises bare Exception
        raise UsageError(f"{tokenizer_file}: not a tokenizer.json of Hugging Face tokenizers ({error})") from error
    end: int | None = tokenizer.token_to_id(end_token)
    if end is None:
        raise UsageError(f"{tokenizer_file}: has no token {end_token!r} to end documents with; name one of its tokens")
    if tokenizer.get_vocab_size() > vocab_size:
        raise UsageError(
            f"{tokenizer_file}: has {tokenizer.get_vocab_size()} tokens but the model only {vocab_size}; "
            "give the tokenizer that the model was trained with"
        )
    return end


def _rope(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a shape that say how positions turn, from the older key (which has precedence) or the newer one."""
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = {key: value for key, value in (config.get(name) or {}).items() if value is not None}
    theta = rope.pop("rope_theta", None) or config.get("rope_theta") or 10_000.0
    kind = rope.get("rope_type", rope.get("type", "default"))
    keys = ROPE.get(kind, {})
    rope.pop("rope_type", None), rope.pop("type", None)
    if rope.pop("partial_rotary_factor", 1) != 1 or (kind != "default" and not keys):
        raise UsageError(f"{path}: {name} is {config[name]!r}; supported are 'default', {', '.join(map(repr, ROPE))}")
    if kind == "default":
        return {"rope_theta": theta}
    if rope.get("truncate") is True:  # what an absent key means
        del rope["truncate"]
    if other := set(rope) - set(keys.values()):
        raise UsageError(
            f"{path}: {name} has {min(other)!r}, which is not supported; supported are {list(keys.values())}"
        )
    scaling = {field: rope[key] for field, key in keys.items() if key in rope}
    if "original_length" in keys:
        outside = config.get("original_max_position_embeddings")
        scaling["original_length"] = outside or scaling.get("original_length") or config.get("max_position_embeddings")
    return {"rope_theta": theta, "rope_scaling": {"kind": kind, **scaling}}


def read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read as a model configuration ({error})") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path}: is a JSON {type(config).__name__}, not the configuration of a model")
    return config


def _shape(path: Path) -> ModelShape:
    config = read_config(path)
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise UsageError(f"{path}: model_type is {kind!r}; supported are {', '.join(sorted(ARCHITECTURES))}")
    if config.get("architectures") not in (None, [ARCHITECTURES[kind]]):
        raise UsageError(
            f"{path}: architectures is {config['architectures']!r}; supported is {[ARCHITECTURES[kind]]!r}"
        )
    for key, values in SUPPORTED.items():
        if config.get(key, values[0]) not in values:
            raise UsageError(f"{path}: {key} is {config[key]!r}; supported is only {values[0]!r}")
    if any(layer != "full_attention" for layer in config.get("layer_types") or ()):
        raise UsageError(f"{path}: layer_types is {config['layer_types']!r}; supported is only 'full_attention'")
    quantization = config.get("quantization_config")
    if quantization is not None and quantized.bits_of(quantization) is None:
        raise UsageError(
            f"{path}: quantization_config is {str(quantization)[:120]!r}; supported is only weight-only int8 or int4 "
            "of compressed-tensors (pack-quantized, symmetric)"
        )
    if kind == "mistral":
        _check_window(path, config)
    _check_known(path, config)
    if kind in ("llama", "mistral", "qwen2"):  # Qwen3 derives neither of the two from the other sizes
        heads, width = config.get("num_attention_heads"), config.get("hidden_size")
        if config.get("num_key_value_heads") is None:
            # an absent key is 8 in the configuration of Mistral, and null is the number of heads
            absent = kind == "mistral" and "num_key_value_heads" not in config
            config["num_key_value_heads"] = 8 if absent else heads
        if config.get("head_dim") is None and heads and width:
            config["head_dim"] = width // heads
    if kind == "qwen3_moe" and config.get("num_experts") is None:
        config["num_experts"] = config.get("num_local_experts")  # its name in some versions of transformers
    needed = [*SIZES.values(), *(list(EXPERTS.values())[:3] if kind == "qwen3_moe" else [])]
    missing = [key for key in needed if config.get(key) is None]
    if missing:
        raise UsageError(f"{path}: the key {missing[0]} is missing; it decides the shape of the model")
    try:
        return ModelShape(
            **{field: config[key] for field, key in SIZES.items()},
            tied_embeddings=config.get("tie_word_embeddings", False),
            qk_norm=kind in ("qwen3", "qwen3_moe"),
            biases=_biases(config),
            **_rope(path, config),
            norm_eps=config.get("rms_norm_eps", 1e-6),
            experts=_experts(path, config) if kind == "qwen3_moe" else None,
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{ {**SIZES, **EXPERTS}.get(str(field), field) }: " for field in first["loc"])
        raise UsageError(f"{path}: not a valid model shape: {where}{in_words(first)}") from error


def _biases(config: dict[str, Any]) -> tuple[Projection, ...]:
    kind = config["model_type"]
    if kind == "qwen2":
        return ("q", "k", "v")
    attention = ATTENTION_BIASES if kind != "mistral" and config.get("attention_bias") else ()
    return (*attention, *(MLP_BIASES if kind == "llama" and config.get("mlp_bias") else ()))


def _check_window(path: Path, config: dict[str, Any]) -> None:
    """Refuse a sliding window that is shorter than the context: our attention sees all earlier tokens."""
    window = config.get("sliding_window", 4096)  # the value of an absent key
    length = config.get("max_position_embeddings", 131_072)
    if window is not None and (not isinstance(window, int) or not isinstance(length, int) or window < length):
        raise UsageError(
            f"{path}: sliding_window is {window!r}, less than max_position_embeddings ({length!r}), but only full "
            f"attention is supported; the two are equal within the window: set sliding_window to null and "
            f"max_position_embeddings to {window!r} to use the model up to that length"
        )


def _check_known(path: Path, config: dict[str, Any]) -> None:
    known = KNOWN | set(SIZES.values()) | set(EXPERTS.values()) | set(SUPPORTED)
    for key, value in config.items():
        if key not in known and value not in (None, False, [], {}, ""):
            raise UsageError(
                f"{path}: {key} is {str(value)[:80]!r}, but this version does not know the key; it may change what the "
                "model computes. Remove it if it does not"
            )


def _experts(path: Path, config: dict[str, Any]) -> Experts:
    """The experts of a configuration, whose layers without them must be the first ones or come at regular distances."""
    every, dense = config.get("decoder_sparse_step", 1), set(config.get("mlp_only_layers") or ())
    sparse = [i for i in range(config["num_hidden_layers"]) if (i + 1) % every == 0]
    mixed = [i for i in sparse if i not in dense]
    first = mixed[0] if mixed else config["num_hidden_layers"]
    if mixed != [i for i in sparse if i >= first]:
        raise UsageError(
            f"{path}: mlp_only_layers is {sorted(dense)}; supported are only the first layers of the model"
        )
    return Experts(
        **{field: config[key] for field, key in EXPERTS.items() if config.get(key) is not None}
        | {"normalise": config.get("norm_topk_prob", False)},
        dense_layers=max((i + 1 for i in dense if i < first), default=0),
        balance="none",
    )
