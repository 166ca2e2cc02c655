"""Checkpoints of MindSpore with the names of mindformers, for TeleChat2 and Llama, read and written without MindSpore.

A ``.ckpt`` file is a protobuf message: a repeated value with a name, and the tensor's sizes, type and bytes. A tensor
of more than 512 MB has several values of one name. The file may end with ``crc_num`` and a checksum. ``.safetensors``
files have the same names.

MindSpore's files do not hold the shape. It is in a ``config.json`` beside the weights, as TeleChat2 or Hugging Face
write it; ``convert`` writes one. Optimizer states and counters of a training checkpoint are ignored.

Trade-offs: the protobuf is read and written by hand, because the package ``protobuf`` would load a whole file at once.
MindSpore cannot read a ``.ckpt`` above 2 GiB, so larger models are written as safetensors only.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from armillary.model.weights import huggingface, telechat2
from armillary.model.weights.files import check_tensors
from armillary.model.weights.shards import WEIGHTS, Planned, ShardFiles, Shards, write_shards, write_tensor
from armillary.model.weights.source import Export, Piece, Pieces, Source, parameter_sizes, plan
from armillary.recipe import ArmillaryError, DamagedFileError, ForeignFileError, ModelShape, UsageError, reason_of

CHECKPOINT = "model.ckpt"
MAX_BYTES = 2**31 - 1
_TYPES = {
    "Float64": torch.float64,
    "Float32": torch.float32,
    "Float16": torch.float16,
    "BFloat16": torch.bfloat16,
}
_TYPE_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_EMBEDDING = "model.tok_embeddings.embedding_weight"
# Parts of a training checkpoint that are not weights.
_STATES = ("adam_m.", "adam_v.", "moment1.", "moment2.", "moments.", "accu_grads.", "hyper_map.")
_COUNTERS = frozenset(
    (
        *("epoch_num", "step_num", "global_step", "learning_rate", "loss_scale", "scale_sense", "beta1_power"),
        *("beta2_power", "current_iterator_step", "last_overflow_iterator_step", "network_name"),
    )
)
_REMEDY = "fetch or save it again"


@dataclass(frozen=True)
class _Value:
    """A tensor of a ``.ckpt`` file: sizes, type, and where its bytes lie."""

    size: tuple[int, ...]
    kind: str
    parts: tuple[tuple[int, int], ...]


class Checkpoint:
    """The tensors of a ``.ckpt`` file, read one at a time.

    Raises:
        ForeignFileError: another program's file.
        DamagedFileError: a torn file, or one that does not match its checksum.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DamagedFileError(
                f"{path}: cannot be read as a MindSpore checkpoint ({reason_of(error)}); {_REMEDY}"
            ) from error
        end = len(self._data)
        if self._data[end - 17 : end - 10] == b"crc_num":
            end -= 17
            self._check_sum(end, int.from_bytes(self._data[end + 7 : end + 17], "big"))
        if self._data[:1] != b"\x0a":
            kind = "; it is a file of PyTorch" if self._data[:4] == b"PK\x03\x04" or self._data[:1] == b"\x80" else ""
            raise ForeignFileError(f"{path}: not a MindSpore checkpoint{kind}; give a .ckpt file that MindSpore wrote")
        self.values: dict[str, _Value] = {}
        try:
            self._scan(end)
        except (ValueError, UnicodeDecodeError, IndexError) as error:
            raise DamagedFileError(
                f"{path}: is truncated, or not a MindSpore checkpoint ({error}); {_REMEDY}"
            ) from error

    def _check_sum(self, end: int, wanted: int) -> None:
        found = 0
        for start in range(0, end, 2**24):
            found = zlib.crc32(self._data[start : min(start + 2**24, end)], found)
        if found != wanted:
            raise DamagedFileError(f"{self.path}: does not match its checksum (crc_num); {_REMEDY}")

    def _scan(self, end: int) -> None:
        for number, start, stop in _fields(self._data, 0, end):
            if number != 1:
                raise ValueError(f"unknown field {number} at byte {start}")
            name, size, kind, content = "", list[int](), "", (start, start)
            for field, a, b in _fields(self._data, start, stop):
                if field == 1:
                    name = self._data[a:b].decode()
                elif field == 2:
                    size, kind, content = self._tensor(a, b)
            known = self.values.get(name)
            parts = (*(known.parts if known else ()), content)
            self.values[name] = _Value(tuple(size), kind, parts)

    def _tensor(self, start: int, stop: int) -> tuple[list[int], str, tuple[int, int]]:
        size, kind, content = list[int](), "", (start, start)
        for field, a, b in _fields(self._data, start, stop, plain={1}):
            if field == 1 and b < 0:  # one number
                size.append(a)
            elif field == 1:  # packed
                at = a
                while at < b:
                    value, at = _varint(self._data, at, b)
                    size.append(value)
            elif field == 2:
                kind = self._data[a:b].decode()
            elif field == 3:
                content = a, b
        return size, kind, content

    def tensor(self, name: str) -> Tensor:
        """The values of ``name`` in their stored type; raises DamagedFileError if bytes are missing."""
        value = self.values[name]
        dtype = _TYPES.get(value.kind)
        if dtype is None:
            raise ArmillaryError(
                f"{self.path}: {name} is of type {value.kind or 'none'}; supported are weights in {', '.join(_TYPES)}"
            )
        length = sum(b - a for a, b in value.parts)
        if length != prod(value.size) * dtype.itemsize:
            raise DamagedFileError(
                f"{self.path}: {name} has {length} bytes, but {list(value.size)} of {value.kind} needs "
                f"{prod(value.size) * dtype.itemsize}; {_REMEDY}"
            )
        data = bytearray(length)
        at = 0
        for a, b in value.parts:
            data[at : at + b - a] = self._data[a:b]
            at += b - a
        return torch.frombuffer(data, dtype=dtype).view(value.size)


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """The number at ``at`` and the place after it."""
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise ValueError(f"a number is cut off at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(
    data: mmap.mmap, at: int, end: int, plain: frozenset[int] | set[int] = frozenset()
) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field; of a number in ``plain``: its value and -1."""
    while at < end:
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == 2:
            length, at = _varint(data, at, end)
            if at + length > end:
                raise ValueError(f"field {number} at byte {at} has {length} bytes and only {end - at} follow")
            yield number, at, at + length
            at += length
        elif wire == 0:
            value, at = _varint(data, at, end)
            if number in plain:
                yield number, value, -1
        else:
            raise ValueError(f"field of kind {wire} at byte {at}")


def is_mindspore(path: Path) -> bool:
    """Whether ``path`` is a checkpoint of MindSpore, a safetensors file with its names, or a folder with one."""
    if path.suffix == ".ckpt":
        return path.is_file()
    if path.is_file():
        return path.suffix == ".safetensors"
    weights = any((path / name).is_file() for name in (WEIGHTS, f"{WEIGHTS}.index.json"))
    if not weights:
        return any(path.glob("*.ckpt"))
    try:  # a checkpoint of a training may lie beside the weights of another format
        return (path / "config.json").is_file() and _EMBEDDING in Shards(path).entries
    except ArmillaryError:
        return False


class MindSporeSource(Source):
    """A checkpoint of MindSpore, or a folder with one; ``config`` is the configuration if it does not lie beside it.

    Raises:
        UsageError: no configuration, or one that our transformer does not compute.
        ForeignFileError, DamagedFileError: as ``Checkpoint``.
        ArmillaryError: weights missing, or of other names or sizes than the configuration states.
    """

    format = "mindspore"

    def __init__(self, path: Path, config: Path | None = None) -> None:
        self.folder = path if path.is_dir() else path.parent
        read_from = config or self.folder / "config.json"
        if not read_from.is_file():
            raise UsageError(
                f"{read_from}: not found; MindSpore files do not record the model's shape: put the "
                "config.json of the same model next to them (in the format of TeleChat2 or Hugging Face), or name it "
                "with --config"
            )
        document = huggingface.read_config(read_from)
        self.special = huggingface.special(document)
        if telechat2.is_telechat2_config(document):
            self.shape = telechat2.shape_of(read_from, document)
            self.context_length = None if self.shape.rope_scaling is None else self.shape.rope_scaling.original_length
        else:
            self.shape, self.context_length = huggingface.shape_of(read_from), huggingface.longest(document)
        pieces = mindspore_pieces(self.shape)
        if self.shape.tied_embeddings:
            pieces = [piece for piece in pieces if piece.name != "lm_head.weight"]
        place, sizes, self._read, self.dtype = _opened(path)
        found = {name: size for name, size in sizes.items() if not name.startswith(_STATES) and name not in _COUNTERS}
        if self.shape.tied_embeddings:
            found.pop("lm_head.weight", None)
        check_tensors(place, found, {piece.name: piece.size for piece in pieces})
        self._pieces = Pieces(pieces, self._read)

    def tensor(self, name: str, expert: int | None = None) -> Tensor:
        """As ``Source.tensor``."""
        return self._pieces.tensor(name, expert)


def _opened(path: Path) -> tuple[Path, dict[str, tuple[int, ...]], Callable[[str], Tensor], torch.dtype]:
    """The file or folder of the weights, the sizes of its tensors, the function that reads one, and the usual type."""
    if path.is_dir() and (several := sorted(path.glob("*.ckpt"))):
        if len(several) > 1:
            raise UsageError(f"{path}: has {len(several)} .ckpt files; name one, such as {several[-1]}")
        path = several[0]
    if path.suffix == ".ckpt":
        checkpoint = Checkpoint(path)
        kinds = [value.kind for value in checkpoint.values.values() if value.kind in _TYPES]
        common = max(set(kinds), key=kinds.count, default="Float32")
        return path, {name: v.size for name, v in checkpoint.values.items()}, checkpoint.tensor, _TYPES[common]
    shards = Shards(path) if path.is_dir() else Shards(path.parent, path.name)
    return path, {name: entry.size for name, entry in shards.entries.items()}, shards.tensor, shards.dtype()


def _is_telechat2(shape: ModelShape) -> bool:
    scaled = shape.rope_scaling is not None and shape.rope_scaling.kind == "telechat2"
    return scaled or bool(set(shape.biases) & {"out", "down"})


def mindspore_pieces(shape: ModelShape) -> list[Piece]:
    """The tensors of ``shape`` under the names of mindformers."""
    if _is_telechat2(shape):
        return [replace(piece, name=_renamed(piece.name)) for piece in telechat2.telechat2_pieces(shape)]
    sizes = parameter_sizes(shape)
    output = "embedding.weight" if shape.tied_embeddings else "output.weight"
    names = {"embedding.weight": _EMBEDDING, "norm.weight": "model.norm_out.weight"}
    inside = {
        "attention_norm": "attention_norm",
        **{f"attention.{part}": f"attention.w{part}" for part in "qkv"},
        "attention.out": "attention.wo",
        "feed_forward_norm": "ffn_norm",
        **{f"feed_forward.{part}": f"feed_forward.{there}" for part, there in _FEED_FORWARD.items()},
    }
    for i in range(shape.n_layers):
        for ours, theirs in inside.items():
            for part in ("weight", "bias"):
                if (name := f"layers.{i}.{ours}.{part}") in sizes:
                    names[name] = f"model.layers.{i}.{theirs}.{part}"
    pieces = [Piece(theirs, sizes[name], ((name, None),)) for name, theirs in names.items()]
    return [*pieces, Piece("lm_head.weight", sizes[output], ((output, None),))]


_FEED_FORWARD = {"gate": "w1", "down": "w2", "up": "w3"}
_RENAMED = {
    "transformer.word_embeddings.weight": _EMBEDDING,
    "transformer.ln_f.weight": "model.norm_out.weight",
    "transformer.h.": "model.layers.",
    ".input_layernorm.": ".attention_norm.",
    ".post_attention_layernorm.": ".ffn_norm.",
    ".self_attention.query.": ".attention.wq.",
    ".self_attention.key_value.": ".attention.wk_v.",
    ".self_attention.dense.": ".attention.wo.",
    ".mlp.gate_proj.": ".feed_forward.w1.",
    ".mlp.down_proj.": ".feed_forward.w2.",
    ".mlp.up_proj.": ".feed_forward.w3.",
}


def _renamed(name: str) -> str:
    """The name in mindformers of a tensor of TeleChat2."""
    for theirs, there in _RENAMED.items():
        name = name.replace(theirs, there)
    return name


def export_mindspore(source: Source, dtype: torch.dtype, container: str) -> Export:
    """What a folder with a ``container`` (``ckpt`` or ``safetensors``) of MindSpore holds of ``source``.

    Raises:
        UsageError: the shape is neither TeleChat2's nor Llama's (with or without biases of q, k and v), or too large
            for one ``.ckpt`` file.
    """
    shape = source.shape
    if _is_telechat2(shape):
        documents = telechat2.export_telechat2(source, dtype).documents
    else:
        others = [name for name in shape.biases if name not in ("q", "k", "v")]
        found = [
            name
            for name, there in {
                "qk_norm": shape.qk_norm,
                "experts": shape.experts is not None,
                "attention": shape.attention is not None,
                "feed_forward": shape.feed_forward is not None,
                f"biases: {', '.join(others)}": bool(others),
            }.items()
            if there
        ]
        if found:
            raise UsageError(
                f"the mindformers models that can be written (TeleChat2, Llama) do not support {found[0]}; convert it "
                "to huggingface"
            )
        written = huggingface.export_huggingface(source, dtype).documents
        documents = {**written, "config.json": {**written["config.json"], "tie_word_embeddings": False}}
    tensors = plan(mindspore_pieces(shape), source, dtype)
    if container == "safetensors":
        files = ShardFiles(shard_bytes=2**63, framework="ms")
        return Export(documents, tensors, partial(write_shards, files=files))
    if sum(tensor.bytes + 4096 for tensor in tensors) > MAX_BYTES:
        raise UsageError("a MindSpore .ckpt file is limited to 2 GiB, but this model is larger; use safetensors")
    return Export(documents, tensors, _write_checkpoint)


def _write_checkpoint(folder: Path, tensors: Sequence[Planned], written: Callable[[int], None]) -> None:
    path = folder / CHECKPOINT
    with open(path, "wb") as file:
        for tensor in tensors:
            tag = _field(1, tensor.name.encode())
            sizes = b"".join(b"\x08" + _number(n) for n in tensor.size)
            kind = _field(2, _TYPE_NAMES[tensor.dtype].encode())
            content = b"\x1a" + _number(tensor.bytes)
            inner = len(sizes) + len(kind) + len(content) + tensor.bytes
            value = tag + b"\x12" + _number(inner) + sizes + kind + content
            file.write(b"\x0a" + _number(len(value) + tensor.bytes) + value)
            write_tensor(file, tensor)
            written(tensor.bytes)
        file.flush()
        os.fsync(file.fileno())


def _number(value: int) -> bytes:
    """``value`` as a varint."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _field(number: int, data: bytes) -> bytes:
    return _number(number << 3 | 2) + _number(len(data)) + data
