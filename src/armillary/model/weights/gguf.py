"""GGUF files of llama.cpp: written for the architectures it knows, with the tokenizer, and read back.

Llama (so also TeleChat2 within its training length), Qwen2, Qwen3 and Qwen3-MoE. Weights are fp32, fp16, bf16 or q8_0;
``q4_k_m`` takes llama.cpp's own quantizer of rows, which is inside the wheel of ``xllamacpp``, and its rules on which
tensor gets which type. Norms, biases and routers stay fp32, as llama.cpp requires.

Trade-offs: the tokenizer is written only if its splitting of text is one that llama.cpp has under a name, or that of
SentencePiece's byte-pair encoding (``sentencepiece.py``). Any other would give other tokens without an error, so it is
refused. Reading gives the tokenizer as the files of a Hugging Face folder (``gguf_tokenizer.py``).
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from armillary.model.rotary import ntk_base, rotary_frequencies
from armillary.model.weights.files import check_tensors
from armillary.model.weights.gguf_tokenizer import tokenizer_files
from armillary.model.weights.huggingface import check_exportable
from armillary.model.weights.sentencepiece import UNKNOWN, Vocabulary, begin_of, of_document, of_folder
from armillary.model.weights.shards import Planned
from armillary.model.weights.source import Export, Ours, Piece, Pieces, Source, Special, parameter_sizes, plan
from armillary.recipe import ArmillaryError, DamagedFileError, Experts, ModelShape, RopeScaling, UsageError

FILE = "model.gguf"
QUANTIZED = ("q8_0", "q4_k_m")
_ROW = 256  # numbers of a block of the K types
_FREQUENCIES = "rope_freqs.weight"
# The types of tokens in GGUF.
_NORMAL, _CONTROL, _USER = 1, 3, 4

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_WORDS = {**_BYTES, "use_regex": True}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# The steps that split text, for each of llama.cpp's names.
SPLITS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_WORDS],
    "smollm": [{"type": "Digits", "individual_digits": True}, _WORDS],
    "llama-bpe": [_split(_LLAMA3), _BYTES],
    "qwen2": [_split(_QWEN2), _BYTES],
}


def library() -> ModuleType:
    """The package ``gguf``; raises ArmillaryError with the command that installs it."""
    try:
        import gguf
    except ImportError as error:
        raise ArmillaryError("GGUF files need the package gguf: pip install 'armillary[llamacpp]'") from error
    return gguf


def architecture(shape: ModelShape) -> str:
    """The architecture of llama.cpp that computes ``shape``.

    Raises:
        UsageError: none does; the message names the feature.
    """
    check_exportable(shape)
    experts, scaling = shape.experts, shape.at_length(1).rope_scaling
    problems = {
        "experts in some layers only": experts is not None and len(shape.mixture_layers) < shape.n_layers,
        "experts whose scores are not normalised": experts is not None and not experts.normalise,
        "biases together with qk_norm": shape.qk_norm and bool(shape.biases),
        "yarn scaling of positions": scaling is not None and scaling.kind == "yarn",
        "an attention factor": scaling is not None and scaling.attention != 1.0,
    }
    found = [problem for problem, there in problems.items() if there]
    if found:
        raise UsageError(f"this model cannot be written as GGUF: it has {found[0]}; convert it to huggingface")
    if shape.qk_norm:
        return "qwen3moe" if experts is not None else "qwen3"
    return "qwen2" if set(shape.biases) == {"q", "k", "v"} else "llama"


def gguf_pieces(shape: ModelShape, arch: str) -> list[Piece]:
    """The tensors of ``shape`` in a GGUF file, in llama.cpp's order."""
    sizes = parameter_sizes(shape)
    names = {
        "token_embd.weight": "embedding.weight",
        "output_norm.weight": "norm.weight",
        "output.weight": "output.weight",
    }
    inside = {
        "attn_norm": "attention_norm",
        **{f"attn_{part}": f"attention.{part}" for part in "qkv"},
        "attn_output": "attention.out",
        **{f"attn_{part}_norm": f"attention.{part}_norm" for part in "qk"},
        "ffn_norm": "feed_forward_norm",
        **{f"ffn_{part}": f"feed_forward.{part}" for part in ("gate", "up", "down")},
        "ffn_gate_inp": "feed_forward.router",
    }
    for i in range(shape.n_layers):
        for theirs, ours in inside.items():
            names |= {f"blk.{i}.{theirs}.{part}": f"layers.{i}.{ours}.{part}" for part in ("weight", "bias")}
        for part in ("gate", "up", "down"):
            names[f"blk.{i}.ffn_{part}_exps.weight"] = f"layers.{i}.feed_forward.experts.{part}"
    pieces = []
    for theirs, ours in names.items():
        if ours not in sizes:
            continue
        join = split = None
        part = theirs.split(".")[-2]
        if arch == "llama" and part in ("attn_q", "attn_k"):
            heads = shape.n_heads if part == "attn_q" else shape.n_kv_heads
            join, split = partial(_interleave, heads), partial(_halves, heads)
        key: Ours = (ours, None)
        pieces.append(Piece(theirs, sizes[ours], (key,), join, split))
    return pieces


def _interleave(heads: int, parts: Sequence[Tensor]) -> Tensor:
    """Rows of a projection in the order of llama.cpp's Llama, where the dimensions of a pair are neighbours."""
    (x,) = parts
    return x.reshape(heads, 2, -1, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def _halves(heads: int, x: Tensor) -> list[Tensor]:
    """The inverse of ``_interleave``."""
    return [x.reshape(heads, -1, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)]


# ---- writing --------------------------------------------------------------------------------------------------------


def export_gguf(source: Source, dtype: torch.dtype, quantize: str | None = None) -> Export:
    """A GGUF file of ``source``, in ``dtype`` or quantized.

    Raises:
        UsageError: llama.cpp has no architecture for the shape, or no name for the way the tokenizer splits text.
        ArmillaryError: a package is not installed.
    """
    library()
    arch = architecture(source.shape)
    if quantize == "q4_k_m":
        _row_quantizer()
    tokenizer = _tokenizer(source)
    tensors = plan(gguf_pieces(source.shape, arch), source, torch.float32)
    write = partial(_write, source=source, arch=arch, kind=_kinds(source.shape, dtype, quantize), vocabulary=tokenizer)
    return Export({}, tensors, write)


def _kinds(shape: ModelShape, dtype: torch.dtype, quantize: str | None) -> Callable[[Planned], str]:
    """The function that gives the GGUF type of a tensor by its name and size."""
    plain = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]

    def kind(tensor: Planned) -> str:
        if len(tensor.size) == 1 or ".ffn_gate_inp." in tensor.name:
            return "F32"
        if quantize == "q8_0":
            return "Q8_0" if tensor.size[-1] % 32 == 0 else plain
        if quantize == "q4_k_m":
            return _mixed(tensor, shape)
        return plain

    return kind


def _mixed(tensor: Planned, shape: ModelShape) -> str:
    """The type of a tensor in ``q4_k_m`` (``llama_tensor_get_type`` of llama.cpp)."""
    name, layers = tensor.name, shape.n_layers
    fine = name in ("output.weight",) or (name == "token_embd.weight" and shape.tied_embeddings)
    if name.startswith("blk.") and (".attn_v." in name or ".ffn_down" in name):
        layer = int(name.split(".")[1])
        fine = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    if tensor.size[-1] % _ROW == 0:
        return "Q6_K" if fine else "Q4_K"
    if tensor.size[-1] % 32 == 0:  # what llama.cpp falls back to
        return "Q8_0" if fine else "Q5_0"
    return "F16"


_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}


def _write(
    folder: Path,
    tensors: Sequence[Planned],
    written: Callable[[int], None],
    *,
    source: Source,
    arch: str,
    kind: Callable[[Planned], str],
    vocabulary: Callable[[Any], None],
) -> None:
    gguf = library()
    types = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(folder / FILE, arch)
    try:
        _metadata(writer, source, arch)
        kinds = {tensor.name: kind(tensor) for tensor in tensors}
        matrices = {kinds[tensor.name] for tensor in tensors if len(tensor.size) > 1}
        mixed = "MOSTLY_Q4_K_M" if matrices & {"Q4_K", "Q6_K", "Q5_0"} else None
        common = next((k for k in ("Q8_0", "BF16", "F16") if k in matrices), "F32")
        writer.add_file_type(gguf.LlamaFileType[mixed or _FILE_TYPES[common]])
        vocabulary(writer)
        frequencies = _factors(source.shape)
        if frequencies is not None:
            writer.add_tensor_info(_FREQUENCIES, frequencies.shape, np.dtype(np.float32), frequencies.nbytes)
        for tensor in tensors:
            raw = types[kinds[tensor.name]]
            size = gguf.quant_shape_to_byte_shape(tensor.size, raw)
            plain = kinds[tensor.name] == "F32"
            writer.add_tensor_info(
                tensor.name,
                tensor.size if plain else size,
                np.dtype(np.float32 if plain else np.uint8),
                math.prod(size),
                raw_dtype=None if plain else raw,
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if frequencies is not None:
            writer.write_tensor_data(frequencies)
        for tensor in tensors:
            values = tensor.make().numpy()
            writer.write_tensor_data(_encoded(gguf, values, kinds[tensor.name]))
            written(tensor.bytes)
    finally:
        writer.close()


def _encoded(gguf: ModuleType, values: NDArray[np.float32], kind: str) -> NDArray[Any]:
    if kind == "F32":
        return np.ascontiguousarray(values)
    if kind in ("Q4_K", "Q6_K", "Q5_0"):
        return _quantized_rows(gguf, values, kind)
    found: NDArray[Any] = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    return found.view(np.uint8) if found.dtype != np.uint8 else found


def _row_quantizer() -> Any:
    """``ggml_quantize_chunk`` of llama.cpp; raises ArmillaryError where xllamacpp is not installed or lacks it."""
    found = importlib.util.find_spec("xllamacpp")
    try:
        assert found is not None and found.origin is not None
        path = next(Path(found.origin).parent.glob("xllamacpp*.so"))
        function = ctypes.CDLL(str(path)).ggml_quantize_chunk
    except (AssertionError, StopIteration, OSError, AttributeError) as error:
        raise ArmillaryError(
            "q4_k_m needs llama.cpp's quantizer, which is part of xllamacpp: pip install 'armillary[llamacpp]'"
        ) from error
    function.restype = ctypes.c_size_t
    number = ctypes.c_int64
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, number, number, number, ctypes.c_void_p]
    return function


def _quantized_rows(gguf: ModuleType, values: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    raw = gguf.GGMLQuantizationType[kind]
    values = np.ascontiguousarray(values, np.float32)
    out = np.empty(gguf.quant_shape_to_byte_shape(values.shape, raw), np.uint8)
    width = values.shape[-1]
    size = _row_quantizer()(int(raw), values.ctypes.data, out.ctypes.data, 0, values.size // width, width, None)
    assert size == out.nbytes
    return out


def _metadata(writer: Any, source: Source, arch: str) -> None:
    shape = source.shape.at_length(1)
    writer.add_name(source.folder.resolve().name)
    writer.add_context_length(source.context_length or 2048)
    writer.add_embedding_length(shape.d_model)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.d_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(_base(shape))
    writer.add_vocab_size(shape.vocab_size)
    if shape.rope_scaling is not None and shape.rope_scaling.kind == "linear":
        writer.add_rope_scaling_type(library().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.rope_scaling.factor)
    if shape.experts is not None:
        writer.add_expert_count(shape.experts.count)
        writer.add_expert_used_count(shape.experts.active)
        writer.add_expert_feed_forward_length(shape.experts.d_ff)


def _base(shape: ModelShape) -> float:
    return ntk_base(shape) if shape.rope_scaling is not None and shape.rope_scaling.kind == "ntk" else shape.rope_theta


def _factors(shape: ModelShape) -> NDArray[np.float32] | None:
    """What llama.cpp divides the frequencies of ``llama3`` scaling by."""
    if shape.rope_scaling is None or shape.rope_scaling.kind != "llama3":
        return None
    plain = rotary_frequencies(shape.model_copy(update={"rope_scaling": None}))
    return (plain / rotary_frequencies(shape)).numpy()


def _tokenizer(source: Source) -> Callable[[Any], None]:
    """The function that writes the tokenizer in the folder of ``source``."""
    path = source.folder / "tokenizer.json"
    if not path.is_file():
        if not path.with_name("tokenizer.model").is_file():
            raise UsageError(
                f"{path}: not found; a GGUF file contains the tokenizer, which is read from this file or "
                "tokenizer.model"
            )
        return _sentencepiece(source, of_folder(source.folder, source.shape.vocab_size), None)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        model = document["model"]
        vocabulary: dict[str, int] = dict(model["vocab"])
        merges = [" ".join(pair) if isinstance(pair, list) else str(pair) for pair in model["merges"]]
        added = {
            token["content"]: (token["id"], bool(token["special"])) for token in document.get("added_tokens") or []
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: not the tokenizer.json of a byte-pair encoding ({error!r})") from error
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        try:
            found = of_document(path, document, source.shape.vocab_size)
        except UsageError:
            if not path.with_name("tokenizer.model").is_file():
                raise
            found = of_folder(source.folder, source.shape.vocab_size)  # as it was trained
        return _sentencepiece(source, found, document)
    pre = pre_tokenizer(document)
    if model.get("type") != "BPE" or pre is None:
        shown = json.dumps(document.get("pre_tokenizer"), ensure_ascii=False)[:200]
        raise UsageError(
            f"{path}: splits text in a way that llama.cpp does not support ({model.get('type')}, {shown}); it "
            "would produce different tokens. Supported are the splits of GPT-2, SmolLM, Llama 3 and Qwen2"
        )
    size = source.shape.vocab_size
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [5] * size  # unused
    begin = _added_begin(path, document)
    for text, number in vocabulary.items():
        if number >= size:
            raise UsageError(
                f"{path}: has token {number}, but the model has only {size} tokens; give the tokenizer of the model"
            )
        tokens[number], kinds[number] = text, _NORMAL
    for text, (number, control) in added.items():
        if number >= size:
            raise UsageError(
                f"{path}: has token {number}, but the model has only {size} tokens; give the tokenizer of the model"
            )
        tokens[number], kinds[number] = text, _CONTROL if control else _USER

    def write(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(merges)
        _write_special(writer, source, begin)

    return write


def _sentencepiece(source: Source, found: Vocabulary, document: dict[str, Any] | None) -> Callable[[Any], None]:
    """The function that writes a vocabulary of SentencePiece; ``document`` is its ``tokenizer.json``, if it has one."""
    folder = source.folder
    begin = begin_of(folder, found) if document is None else _added_begin(folder / "tokenizer.json", document)

    def write(writer: Any) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(found.pieces)
        writer.add_token_scores(found.scores)
        writer.add_token_types(found.kinds)
        writer.add_add_space_prefix(found.space_prefix)
        if UNKNOWN in found.kinds:
            writer.add_unk_token_id(found.kinds.index(UNKNOWN))
        _write_special(writer, source, begin)

    return write


def _write_special(writer: Any, source: Source, begin: int | None) -> None:
    """Write the ids of special tokens, the token ``begin`` that starts every text (None: none), and the template."""
    special = source.special
    end = special.end[0] if isinstance(special.end, tuple) else special.end
    for number, add in (
        (special.begin if begin is None else begin, writer.add_bos_token_id),
        (end, writer.add_eos_token_id),
        (special.fill, writer.add_pad_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(begin is not None)
    template = source.folder / "chat_template.jinja"
    chat = (
        template.read_text(encoding="utf-8") if template.is_file() else _tokenizer_config(source).get("chat_template")
    )
    if isinstance(chat, str):
        writer.add_chat_template(chat)


def _tokenizer_config(source: Source) -> dict[str, Any]:
    """The ``tokenizer_config.json`` of a folder; empty if there is none that can be read."""
    try:
        found = json.loads((source.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _added_begin(path: Path, document: dict[str, Any]) -> int | None:
    """The special token that the ``tokenizer.json`` in ``path`` puts before every text; None if it puts none there."""
    try:
        processor = document.get("post_processor") or {}
        for step in processor.get("processors", [processor]):
            first = (step.get("single") or [{}])[0] if step.get("type") == "TemplateProcessing" else {}
            if "SpecialToken" in first:
                return int(step["special_tokens"][first["SpecialToken"]["id"]]["ids"][0])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: its post_processor cannot be read ({error!r}); fetch the folder again") from error
    return None


def pre_tokenizer(document: dict[str, Any]) -> str | None:
    """llama.cpp's name of the way that a ``tokenizer.json`` splits text; None if it has none.

    With the name of Llama 3, llama.cpp takes a word that is a token without merging, as its ``ignore_merges`` says.
    """
    name = _split_name(document)
    ignored = bool((document.get("model") or {}).get("ignore_merges"))
    return name if ignored == (name == "llama-bpe") else None


def _split_name(document: dict[str, Any]) -> str | None:
    if document.get("normalizer") not in (None, {"type": "NFC"}):
        return None
    pre = document.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    *before, last = steps
    plain = last.get("use_regex", True)
    if not before:
        return "gpt-2" if plain else None
    if len(before) != 1:
        return None
    (first,) = before
    if first.get("type") == "Digits" and first.get("individual_digits") and plain:
        return "smollm"
    pattern = (first.get("pattern") or {}).get("Regex")
    if first.get("type") == "Split" and first.get("behavior") == "Isolated" and not first.get("invert") and not plain:
        return {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}.get(str(pattern))
    return None


# ---- reading --------------------------------------------------------------------------------------------------------


def is_gguf(path: Path) -> bool:
    """Whether ``path`` is a GGUF file by its first bytes, or a folder with one that is written here."""
    path = path / FILE if path.is_dir() else path
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def gguf_metadata(path: Path) -> dict[str, Any]:
    """The values in the header of a GGUF file by name, without its lists.

    Raises:
        DamagedFileError: a torn file.
        ArmillaryError: the package ``gguf`` is not installed.
    """
    return _header(path)[1]


def _header(path: Path) -> tuple[Any, dict[str, Any]]:
    gguf = library()
    try:
        reader = gguf.GGUFReader(path)
        return reader, {name: field.contents() for name, field in reader.fields.items() if len(field.data) <= 1}
    except Exception as error:  # gguf raises many kinds for a torn file
        raise DamagedFileError(f"{path}: cannot be read as a GGUF file ({error}); fetch it again") from error


class GGUFSource(Source):
    """A GGUF file of an architecture that is written here; quantized weights are given in fp32.

    Raises:
        UsageError: another architecture.
        DamagedFileError: a torn file, or one without the numbers that decide the shape.
        ArmillaryError: tensors missing or of other sizes; the package ``gguf`` is not installed.
    """

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.folder = path = path / FILE if path.is_dir() else path
        self._reader, values = _header(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        arch = values.get("general.architecture")
        if arch not in ("llama", "qwen2", "qwen3", "qwen3moe"):
            raise UsageError(f"{path}: architecture is {arch!r}; supported are llama, qwen2, qwen3 and qwen3moe")
        if _FREQUENCIES in self._tensors:
            raise UsageError(f"{path}: has {_FREQUENCIES}, a scaling of positions that is not supported in GGUF files")
        try:
            self.shape = _shape_of(values, str(arch), self._tensors)
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            raise DamagedFileError(f"{path}: its numbers do not describe a model ({error}); fetch it again") from error
        self.context_length = values.get(f"{arch}.context_length")
        self.special = Special(*(values.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")))
        self.dtype = torch.float32
        pieces = gguf_pieces(self.shape, str(arch))
        found = {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in self._tensors.items()}
        check_tensors(path, found, {piece.name: piece.size for piece in pieces})
        self._pieces = Pieces(pieces, self._read)

    def _read(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        values = library().quants.dequantize(tensor.data, tensor.tensor_type)
        size = tuple(int(n) for n in reversed(tensor.shape))
        return torch.from_numpy(np.array(values, np.float32)).reshape(size)

    def tokenizer_files(self) -> Mapping[str, str]:
        """As ``Source.tokenizer_files``: the tokenizer that the file holds."""
        begin = "tokenizer."
        fields = {name: field for name, field in self._reader.fields.items() if name.startswith(begin)}
        try:
            values = {name.removeprefix(begin): field.contents() for name, field in fields.items()}
        except (ValueError, IndexError) as error:
            raise DamagedFileError(f"{self.folder}: its tokenizer cannot be read ({error}); fetch it again") from error
        return tokenizer_files(self.folder, values, SPLITS)

    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        """As ``Source.tensor``."""
        whole = self._pieces.tensor(name)
        return whole if expert is None else whole[expert]


def _shape_of(values: dict[str, Any], arch: str, tensors: dict[str, Any]) -> ModelShape:
    def number(name: str) -> Any:
        return values[f"{arch}.{name}"]

    heads, width = number("attention.head_count"), number("embedding_length")
    kind = values.get(f"{arch}.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise ValueError(f"rope.scaling.type is {kind!r}; supported are none and linear")
    scaling = RopeScaling(kind="linear", factor=number("rope.scaling.factor")) if kind == "linear" else None
    there = {name.removeprefix("blk.0.").removesuffix(".bias") for name in tensors if name.endswith(".bias")}
    biases = {"attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "out"}
    biases |= {f"ffn_{part}": part for part in ("gate", "up", "down")}
    experts = None
    if arch == "qwen3moe":
        experts = Experts(
            count=number("expert_count"),
            active=number("expert_used_count"),
            d_ff=number("expert_feed_forward_length"),
            balance="none",
        )
    return ModelShape(
        n_layers=number("block_count"),
        d_model=width,
        n_heads=heads,
        n_kv_heads=values.get(f"{arch}.attention.head_count_kv", heads),
        head_dim=values.get(f"{arch}.attention.key_length", width // heads),
        d_ff=number("feed_forward_length"),
        vocab_size=tensors["token_embd.weight"].shape[1],
        tied_embeddings="output.weight" not in tensors,
        qk_norm=arch.startswith("qwen3"),
        rope_theta=values.get(f"{arch}.rope.freq_base", 10_000.0),
        rope_scaling=scaling,
        norm_eps=number("attention.layer_norm_rms_epsilon"),
        experts=experts,
        biases=tuple(ours for theirs, ours in biases.items() if theirs in there),  # type: ignore[misc]
    )
